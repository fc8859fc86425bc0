"""Convert from the stand-in of the Hub: headers alone, the pinned commit, the cache, no secrets."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save

from nvfp4.cli.console import show_problems
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.hub.path import Hub
from nvfp4.options import Options
from nvfp4.read.checkpoint import open_model, read_header
from support.hub_client import use_hub
from support.hub_server import HubServer
from support.tiny_models import tiny_model

huggingface_hub = pytest.importorskip("huggingface_hub")
SOURCE = "hf://owner/model"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model("wan_t2v", tmp_path_factory.mktemp("wan") / "wan_bf16.safetensors")


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr("nvfp4.hub.path.HUB", Hub())
    monkeypatch.setattr("nvfp4.hub.client.WAITS", (0.01,) * 7)
    with HubServer() as server:
        server.put("owner/model", {"wan_bf16.safetensors": tiny.read_bytes(), "README.md": b"x"})
        use_hub(monkeypatch, server, tmp_path)
        monkeypatch.chdir(tmp_path)
        yield server


def converted(**more):
    return convert(Options(**{"source": SOURCE, "edge_blocks": 0, "quiet": True} | more))


def data_of(path):
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_bytes_are_those_of_the_local_conversion(hub, tiny, tmp_path):
    report = converted(output="a.safetensors")
    converted(source=tiny, output="b.safetensors")
    assert data_of(tmp_path / "a.safetensors") == data_of(tmp_path / "b.safetensors")
    record = json.loads(read_header(tmp_path / "a.safetensors")[1]["convert_nvfp4"])
    assert record["revisions"] == {SOURCE: hub.repo("owner/model").refs["main"]}
    assert report.origin == record


def test_a_dry_run_reads_headers_alone_and_says_what_it_did_not_look_at(hub, tiny):
    report = converted(dry_run=True, dtype="float16")
    assert report.options.output.name == "model_nvfp4.safetensors"
    assert 0 < hub.sent() <= 1 << 18
    assert hub.sent() < tiny.stat().st_size / 10
    with pytest.raises(ConvertError, match="--target-size measures weights"):
        converted(dry_run=True, target_size="1MB")


def test_a_dry_run_measures_no_weights_of_a_lora(hub, tiny):
    layer = "blocks.0.ffn.0"
    rows, columns = open_model(tiny).tensors[f"{layer}.weight"].shape
    lora = {f"{layer}.lora_down.weight": torch.ones(2, columns) / 64,
            f"{layer}.lora_up.weight": torch.ones(rows, 2) / 64}  # fmt: skip
    hub.put("owner/lora", {"lora.safetensors": save(lora)})
    merged = {"source": tiny, "merge_lora": ["hf://owner/lora/lora.safetensors"], "dry_run": True}
    with pytest.raises(ConvertError, match=r"download the file first \(hf://owner/lora/lora"):
        converted(**merged, target_size="1MB", output="o.safetensors")
    others = {"preset": "none", "include": r"blocks\.1", "output": "o.safetensors"}
    report = converted(**merged, **others, dtype="float16")
    assert any("not looked at: float16 may not hold them" in note for note in report.notes)
    assert hub.sent() <= 1 << 18


def test_resume_stays_with_the_commit_that_the_journal_notes(hub, monkeypatch):
    old = hub.repo("owner/model").refs["main"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("nvfp4.write.partial_files.PartialFiles.publish", stop)
        with pytest.raises(KeyboardInterrupt):
            converted(output="a.safetensors", resume=True)
    hub.put("owner/model", {"wan_bf16.safetensors": b"another", "README.md": b"y"})
    assert hub.repo("owner/model").refs["main"] != old
    monkeypatch.setattr("nvfp4.hub.path.HUB", Hub())
    with monkeypatch.context() as patched:
        commits = hub.repo("owner/model").commits
        patched.delitem(commits, old)
        with pytest.raises(ConvertError, match=f"{old}, which the stopped run read, is gone"):
            converted(output="a.safetensors", resume=True)
    report = converted(output="a.safetensors", resume=True)
    assert report.origin["revisions"] == {SOURCE: old}
    assert any("were there already" in note for note in report.notes)


def test_what_the_cache_has_is_not_fetched(hub, tmp_path, monkeypatch):
    huggingface_hub.hf_hub_download("owner/model", "wan_bf16.safetensors")
    # Another commit with the same file.
    files = hub.repo("owner/model").commits[hub.repo("owner/model").refs["main"]]
    content = {"wan_bf16.safetensors": files["wan_bf16.safetensors"].content, "README.md": b"new"}
    hub.put("owner/model", content)
    hub.asked.clear()
    converted(output="a.safetensors")
    assert [asked.path for asked in hub.asked] == ["/api/models/owner/model"]
    hub.asked.clear()
    monkeypatch.setattr("nvfp4.hub.path.HUB", Hub())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    converted(output="b.safetensors")
    assert hub.asked == []
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(ConvertError, match="not in the Hub's cache, and HF_HUB_OFFLINE forbids"):
        converted(output="c.safetensors")


def test_a_repository_of_several_models_lists_them(hub, capsys):
    two = {"a/x.safetensors": b"1" * 5_000_000, "b/y.safetensors": b"2" * 300, "z.gguf": b""}
    others = ("a/wan_lora_rank64.safetensors", "loras/z.safetensors", "vae/z.safetensors")
    hub.put("owner/many", two | dict.fromkeys(others, b"3"))
    with pytest.raises(ConvertError) as refused:
        converted(source="hf://owner/many")
    what, *models = refused.value.problems
    assert what == "hf://owner/many: holds several files; give the one to convert:"
    assert models == ["hf://owner/many/a/x.safetensors (5.00 MB)",
                      "hf://owner/many/b/y.safetensors (300 bytes)"]  # fmt: skip
    show_problems(refused.value)
    _, first, second = capsys.readouterr().err.splitlines()
    assert [first.split()[0], second.split()[0]] == [model.split()[0] for model in models]


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (None, "is gated: accept its licence at http.*/owner/model, then log in with `hf auth"),
        ("hf_secret_other", "is gated, and your account has no access: accept its licence"),
        ("hf_secret_wrong", "the Hub does not know the token: log in anew with `hf auth"),
    ],
)
def test_who_is_not_let_in_learns_what_to_do_and_no_token(hub, monkeypatch, token, told):
    hub.repo("owner/model").gated = True
    hub.store.tokens = {"hf_secret_other": set()}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConvertError, match=told) as refused:
        converted()
    assert "secret" not in str(refused.value)


def test_a_token_is_written_nowhere_and_not_sent_to_the_storage(hub, monkeypatch, tmp_path):
    hub.repo("owner/model").private = True
    hub.store.tokens = {"hf_secret": {"owner/model"}}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    converted(output="a.safetensors", report="a.json")
    assert {asked.token for asked in hub.of("hub")} == {"hf_secret"}
    assert {asked.token for asked in hub.of("cdn")} == {None}
    for file in tmp_path.glob("a.*"):
        assert b"hf_secret" not in file.read_bytes()
        assert b"Signature" not in file.read_bytes()
