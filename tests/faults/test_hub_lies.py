"""What a Hub that lies, or a mirror that is broken, does to a conversion: one line, no local file.

Also what is asked of one repository in one process more than once, and passwords in HF_ENDPOINT.
"""

import base64
import sys
import time

import pytest

from nvfp4.errors import ConvertError
from nvfp4.hub import client
from nvfp4.progress import watched_by
from support.hub_runs import CDN, FILE, FIRST, REPOSITORY, SECOND, convert, parts, told
from support.hub_server import Blob, Fault

huggingface_hub = pytest.importorskip("huggingface_hub")
SOURCE = f"hf://{REPOSITORY}/{FILE}"
FORMS = (SOURCE, f"hf://models/{REPOSITORY}/{FILE}", f"hf://{REPOSITORY}@feature%2Fx/{FILE}")


@pytest.mark.parametrize("source", FORMS)
def test_a_second_conversion_in_one_process_reads_the_commit_that_it_tells(
    source, hub, local, tmp_path, capsys
):
    output, card = tmp_path / "out.safetensors", tmp_path / "card.md"
    branch = "feature/x" if "feature" in source else "main"
    for content in (FIRST, SECOND):
        hub.put(REPOSITORY, {FILE: content}, branch=branch)
        commit = hub.repo(REPOSITORY).refs[branch]
        assert convert(source, output, "--model-card", str(card)) == 0, told(capsys)
        assert parts(output)[1] == local[content][1]
        assert commit in output.read_bytes().decode("latin-1")
        # The command is that of this commit, however the path was typed.
        command = f"convert_nvfp4.py hf://{REPOSITORY}@{commit}/{FILE} out.safetensors"
        assert command in card.read_text(encoding="utf-8")


def test_a_card_names_a_renamed_repository_by_its_name_today(hub, tmp_path):
    hub.store.renamed["old/name"] = REPOSITORY
    card = tmp_path / "card.md"
    options = ("--model-card", str(card), "--dry-run")
    assert convert(f"hf://old/name/{FILE}", tmp_path / "out.safetensors", *options) == 0
    text = card.read_text(encoding="utf-8")
    assert huggingface_hub.ModelCard.load(card).data.base_model == REPOSITORY
    assert f"[{REPOSITORY}](https://huggingface.co/{REPOSITORY})" in text
    assert "old/name" not in text


def test_a_long_wait_is_told(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nvfp4.progress.SHORT_WAIT", 0.0)
    monkeypatch.setattr(client, "GLANCE", 0.05)
    monkeypatch.setattr(client, "WAITS", (0.3,))
    monkeypatch.setattr(client, "LONGEST_ASKED", 0.3)
    hub.faults = [Fault(of="hub", status=429, times=1), Fault(**CDN, status=503, times=1, skip=2)]
    heard = set()

    def watch(activity):
        heard.add(activity.parts(time.monotonic(), time.time())[0][1])

    with watched_by(watch):
        assert convert(SOURCE, tmp_path / "out.safetensors") == 0, told(capsys)
    assert any("waiting for the Hub (answered 429), 1 s" in text for text in heard)


def test_who_watches_may_cancel_a_long_wait(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "GLANCE", 0.05)
    monkeypatch.setattr(client, "LONGEST_ASKED", 310.0)
    hub.faults = [Fault(**CDN, status=429, headers={"Retry-After": "300"}, skip=3)]
    calls = []

    def cancel(activity):
        calls.append(activity.parts(time.monotonic(), time.time())[0][1])
        if any("waiting for the Hub (answered 429)" in text for text in calls):
            raise KeyboardInterrupt

    with watched_by(cancel):
        assert convert(SOURCE, tmp_path / "out.safetensors") == 130
    assert not (tmp_path / "out.safetensors").exists()


def one(content, **facts):
    """The listing with other facts of the model's file."""
    for sibling in content["siblings"]:
        if sibling["rfilename"] == FILE:
            sibling |= facts
    return content


def lfs(**facts):
    return {"lfs": {"sha256": "0" * 64, "size": 5, "pointerSize": 1} | facts}


BROKEN = {
    "no commit": (lambda told: told | {"sha": None}, "the commit is None"),
    "a commit that colours": (lambda told: told | {"sha": "\x1b[31m"}, r"the commit is '\x1b[31m'"),
    "another repository's name": (lambda told: told | {"id": "../../x"}, "name is '../../x'"),
    "a size of letters": (lambda told: one(told, size="abc", lfs=None), f"{FILE} has the size 'a"),
    "a negative size": (lambda told: one(told, **lfs(size=-5)), f"{FILE} has the size -5"),
    "an endless size": (lambda told: one(told, **lfs(size=10**30)), f"{FILE} has the size 10000"),
    "a path as hash": (
        lambda told: one(told, **lfs(sha256="/etc/passwd")),
        f"{FILE} has the hash '/etc/passwd'",
    ),
    "a name that is a number": (lambda told: one(told, rfilename=5), "by the name 5"),
    "files that are a text": (
        lambda told: told | {"siblings": "abc"},
        "the Hub's answer is broken, or one that the installed huggingface_hub cannot read",
    ),
    "a list": (lambda _: [1], "the Hub's answer is broken, or one"),
}


@pytest.mark.parametrize(("spoil", "line"), BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_refused_in_one_line(spoil, line, hub, tmp_path, capsys):
    hub.spoil = spoil
    assert convert(SOURCE, tmp_path / "o.safetensors") == 1
    message = told(capsys)
    assert line in message
    assert message.startswith(f"error: hf://{REPOSITORY}: the Hub's answer is broken")
    # Nothing is asked twice that cannot become better.
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    "name",
    [
        "/x.sft",
        "./x.sft",
        "a//x.sft",
        "a/../x.sft",
        "../x.sft",
        "..\\x.sft",
        "a\x1bb.sft",
        "a/",
        "",
    ],
)
def test_names_that_are_no_plain_paths_are_refused(name, hub, tmp_path, capsys):
    repo = hub.repo(REPOSITORY)
    blob = Blob(FIRST, len(FIRST), "0" * 64, True)
    repo.commits[repo.refs["main"]] = {"a/y.safetensors": blob, "b/z.safetensors": blob, name: blob}
    assert convert(f"hf://{REPOSITORY}", tmp_path / "o.safetensors") == 1
    assert f"the Hub's answer is broken: it lists a file by the name {name!a}" in told(capsys)


def test_a_hash_that_is_a_path_opens_no_file_of_this_disk(hub, tmp_path, capsys):
    private = tmp_path / "private.safetensors"
    private.write_bytes(SECOND)
    hub.spoil = lambda answer: one(answer, **lfs(sha256=str(private), size=len(SECOND)))
    assert convert(SOURCE, tmp_path / "o.safetensors") == 1
    assert "has the hash" in told(capsys)


def test_bytes_that_a_proxy_encoded_are_asked_for_again(hub, local, tmp_path, capsys):
    encoded = {"headers": {"Content-Encoding": "gzip"}, **CDN}
    hub.faults = [Fault(**encoded, skip=3, times=2)]
    output = tmp_path / "out.safetensors"
    assert (convert(SOURCE, output), told(capsys)) == (0, "")
    assert parts(output) == local[FIRST]
    hub.faults = [Fault(**encoded)]
    assert convert(SOURCE, output) == 1
    assert "bytes came encoded that were asked for as they are; 5 tries" in told(capsys)


def test_a_network_that_wants_a_login_is_told_at_once(hub, tmp_path, capsys):
    hub.spoil = lambda _: b"<html>Log in to use this network</html>"
    assert convert(SOURCE, tmp_path / "o.safetensors") == 1
    assert "what answered is not the Hub: look whether this network wants a login" in told(capsys)
    assert len(hub.asked) == 1


@pytest.mark.usefixtures("hub")
def test_a_token_that_no_header_can_hold_is_told_at_once(tmp_path, capsys, monkeypatch):
    token = "hf_\u20acSecret"
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("nvfp4.hub.client.WAITS", (60,))
    assert convert(SOURCE, tmp_path / "o.safetensors") == 1
    message = told(capsys)
    assert "the token has characters that none has: log in anew" in message
    assert token not in message


def test_redirects_without_an_end_are_told_in_words(hub, tmp_path, capsys):
    hub.faults = [Fault(of="cdn", status=302, headers={"Location": "/repos/00"})]
    assert convert(SOURCE, tmp_path / "o.safetensors") == 1
    assert "the Hub leads from one address to another" in told(capsys)


def test_the_way_from_https_to_http_is_refused(monkeypatch):
    class Found:
        location, etag, size = "http://cdn/x", "", 1

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: Found)
    with pytest.raises(ConvertError, match="from https to http"):
        client.address_of("hf://o/r/x", "https://hub/o/r/resolve/x")
    assert client.address_of("hf://o/r/x", "http://hub/o/r/resolve/x").url == Found.location


def test_a_password_in_the_endpoint_gets_nowhere(hub, tmp_path, capsys, monkeypatch):
    address = hub.url.replace("http://", "http://user:PASSWORD@")
    # The client then sends no token, but what the stand-in does not know.
    basic = "Basic " + base64.b64encode(b"user:PASSWORD").decode()
    hub.store.tokens[basic] = set()
    monkeypatch.delenv("HF_TOKEN")
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "huggingface_hub" and "ENDPOINT" in vars(module):
            monkeypatch.setattr(module, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    files = {"--report": "r.json", "--model-card": "card.md"}
    words = [word for flag, name in files.items() for word in (flag, str(tmp_path / name))]
    output = tmp_path / "out.safetensors"
    texts = []
    for gated, faults, status in (
        (True, [], 1),
        (False, [Fault(of="hub", path="resolve", status=503)], 1),
        (False, [Fault(**CDN, status=503)], 1),
        (False, [], 0),
    ):
        hub.repo(REPOSITORY).gated, hub.faults = gated, faults
        assert convert(SOURCE, output, *words) == status
        texts += capsys.readouterr()
    assert any(f"accept its licence at {hub.url}/{REPOSITORY}" in text for text in texts)
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir() if path.is_file()]
    assert not [text for text in texts if "PASSWORD" in text]


def test_a_choice_of_thousands_is_told_without_long_work(hub, tmp_path, capsys):
    repo = hub.repo(REPOSITORY)
    blob = Blob(FIRST, len(FIRST), "0" * 64, True)
    # Work that grows with the square of it would take minutes.
    files = {f"d{number:05}/x.safetensors": blob for number in range(5_000)}
    repo.commits[repo.refs["main"]] = files
    assert convert(f"hf://{REPOSITORY}", tmp_path / "o.safetensors") == 1
    assert "holds several files; give the one to convert" in told(capsys)
    assert convert(f"hf://{REPOSITORY}/d00007/y.safetensors", tmp_path / "o.safetensors") == 1
    assert "did you mean d00007/x.safetensors?" in told(capsys)
