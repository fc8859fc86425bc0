"""What the network, the Hub and its storage do to a conversion from hf://, and what a person sees.

Faults that pass leave the bytes of the local conversion; of others one line tells, nothing is
half-written, and an older output stays. No token and no signed address gets anywhere.
"""

import os
import time

import pytest

from nvfp4.cli.entry import main
from nvfp4.files import unfinished
from support.files import OLDER
from support.hub_runs import (
    BLOCK,
    CDN,
    FILE,
    FIRST,
    REPOSITORY,
    SECOND,
    TOKEN,
    convert,
    forget_the_hub,
    parts,
    told,
)
from support.hub_server import Fault

pytest.importorskip("huggingface_hub")
PASSING = {
    "cut off in a range": [Fault(**CDN, cut=1000, times=3)],
    "reset in a range": [Fault(**CDN, cut=1000, reset=True, skip=2, times=3)],
    "429, asked to wait": [Fault(**CDN, status=429, headers={"Retry-After": "1"}, times=3)],
    "429 without a word": [Fault(**CDN, status=429, times=3)],
    "429 of the Hub": [
        Fault(of="hub", status=429, headers={"RateLimit": '"api";r=0;t=1'}, times=2)
    ],
    "5xx of the storage": [Fault(**CDN, status=status, times=1) for status in (500, 502, 503, 504)],
    "5xx of the Hub": [Fault(of="hub", status=503, skip=skip, times=1) for skip in (0, 1)],
    "less than was asked for": [Fault(**CDN, lengthen=-100, skip=3, times=5)],
    "more than was asked for": [Fault(**CDN, lengthen=100, skip=3)],
    "other bytes than asked for": [Fault(**CDN, shift=16, skip=3, times=2)],
    "the whole file at times": [Fault(**CDN, ignore_range=True, skip=3, times=2)],
    "a connection that falls silent": [Fault(**CDN, stall=3, stall_at=999, skip=3, times=1)],
    "a storage that forgets": [Fault(**CDN, status=404, skip=3, times=1)],
    "addresses that expire": [Fault(**CDN, status=403, skip=skip, times=4) for skip in (3, 9)],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_what_passes_leaves_the_bytes_of_the_local_conversion(faults, hub, local, tmp_path, capsys):
    # Records count what happened to them: each run has its own.
    hub.faults = [Fault(**vars(fault)) for fault in faults]
    before = [fault.times for fault in hub.faults]
    output = tmp_path / "out.safetensors"
    status = convert(f"hf://{REPOSITORY}/{FILE}", output)
    assert (status, told(capsys)) == (0, "")
    assert parts(output) == local[FIRST]
    assert [fault.times for fault in hub.faults] != before or before == [float("inf")]
    assert {asked.token for asked in hub.of("cdn")} == {None}
    assert not unfinished(output).exists()


def test_addresses_that_expire_are_asked_for_again(hub, local, tmp_path, capsys):
    # Those of the first answer hold for no time at all.
    hub.link_life = 0
    hub.faults = [Fault(of="hub", path="resolve", skip=1, times=1, first=hold_longer)]
    output = tmp_path / "out.safetensors"
    assert (convert(f"hf://{REPOSITORY}/{FILE}", output), told(capsys)) == (0, "")
    assert parts(output) == local[FIRST]
    assert 403 in {asked.status for asked in hub.of("cdn")}
    assert len(hub.of("hub", "resolve")) == 2


def hold_longer(hub):
    hub.link_life = 60


def test_a_slow_line_and_an_old_name(hub, local, tmp_path, capsys):
    hub.each = 4e5
    hub.store.renamed["old/name"] = REPOSITORY
    output = tmp_path / "out.safetensors"
    assert (convert(f"hf://old/name/{FILE}", output), told(capsys)) == (0, "")
    assert parts(output) == local[FIRST]
    assert hub.busiest > 1


def test_a_line_that_breaks_again_and_again(hub, local, tmp_path, capsys, monkeypatch):
    # Older versions of the library give up to 256 KiB at once, and lose what came before a break.
    monkeypatch.setattr("nvfp4.hub.blocks.BLOCK_BYTES", 1 << 20)
    hub.faults = [Fault(**CDN, cut=300_000)]
    output = tmp_path / "out.safetensors"
    assert (convert(f"hf://{REPOSITORY}/{FILE}", output), told(capsys)) == (0, "")
    assert parts(output) == local[FIRST]
    assert len(hub.of("cdn")) > len(FIRST) / 300_000


@pytest.mark.parametrize("pinned", [True, False])
def test_a_branch_that_moves_changes_nothing(pinned, hub, local, tmp_path, capsys):
    commit = hub.repo(REPOSITORY).refs["main"]
    hub.faults = [Fault(**CDN, skip=5, times=1, first=move)]
    output, at = tmp_path / "out.safetensors", f"@{commit}" if pinned else ""
    assert (convert(f"hf://{REPOSITORY}{at}/{FILE}", output), told(capsys)) == (0, "")
    assert hub.repo(REPOSITORY).refs["main"] != commit
    assert parts(output) == local[FIRST]
    assert commit in output.read_bytes().decode("latin-1")


def move(hub):
    hub.put(REPOSITORY, {FILE: SECOND})


def swapped(hub):
    """Other content at the same commit; addresses of the old one hold no longer."""
    hub.swap(REPOSITORY, FILE, SECOND)
    hub.store.large = {
        name: blob for name, blob in hub.store.large.items() if blob.content is SECOND
    }


REFUSED = {
    "gated, without a token": (
        "is gated: accept its licence at {url}/owner/model, then log in with `hf auth login`, or "
        "set HF_TOKEN",
        lambda hub: setattr(hub.repo(REPOSITORY), "gated", True),
        None,
    ),
    "gated, of another account": (
        "is gated, and your account has no access: accept its licence at {url}/owner/model",
        lambda hub: setattr(hub.repo(REPOSITORY), "gated", True),
        "hf_Another",
    ),
    "private": (
        "no such repository, or a private one: check its name, or log in with `hf auth login`",
        lambda hub: setattr(hub.repo(REPOSITORY), "private", True),
        None,
    ),
    "a wrong token": ("the Hub does not know the token: log in anew", None, "hf_Wrong"),
    "disabled": (
        "access to the repository is disabled by the Hub",
        lambda hub: setattr(hub.repo(REPOSITORY), "disabled", True),
        TOKEN,
    ),
    "absent": (
        "no such repository, or a private one",
        lambda hub: hub.store.repos.pop(REPOSITORY),
        None,
    ),
    "another content, told first": (
        "changed on the Hub while it was read; convert again",
        lambda hub: hub.faults.append(Fault(of="hub", path="resolve", first=swapped, times=1)),
        TOKEN,
    ),
    "another content in the middle": (
        "changed on the Hub while it was read; convert again",
        lambda hub: hub.faults.append(Fault(**CDN, first=swapped, status=403, skip=5, times=1)),
        TOKEN,
    ),
    "another file in the storage": (
        "changed on the Hub while it was read; convert again",
        lambda hub: hub.faults.append(Fault(**CDN, etag="another", skip=5)),
        TOKEN,
    ),
    "another size": (
        "changed on the Hub while it was read; convert again",
        lambda hub: hub.faults.append(Fault(of="hub", path="resolve", size_error=8)),
        TOKEN,
    ),
    "no bytes at all": (
        "5 tries brought nothing: try again later",
        lambda hub: hub.faults.append(Fault(**CDN, cut=0, skip=5)),
        TOKEN,
    ),
    "429 for ever": (
        "HTTP 429; 5 tries brought nothing: try again later",
        lambda hub: hub.faults.append(Fault(**CDN, status=429, skip=5)),
        TOKEN,
    ),
    "the Hub is down": (
        "HTTP 503; 5 tries brought nothing: try again later",
        lambda hub: hub.faults.append(Fault(of="hub", status=503)),
        TOKEN,
    ),
    "a storage that gives whole files alone": (
        "the whole file came where a part was asked for",
        lambda hub: hub.faults.append(Fault(**CDN, ignore_range=True)),
        TOKEN,
    ),
}


@pytest.fixture(params=REFUSED.values(), ids=REFUSED)
def refused(request, hub, monkeypatch):
    """What is to be told of a Hub that is spoilt so, for this token."""
    message, spoil, token = request.param
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if spoil:
        spoil(hub)
    return message.format(url=hub.url)


def test_what_does_not_pass_is_told_and_nothing_is_written(refused, tmp_path, capsys):
    older = tmp_path / "older.safetensors"
    older.write_bytes(OLDER)
    assert convert(f"hf://{REPOSITORY}/{FILE}", older) == 1
    line = told(capsys)
    assert line.startswith(f"error: hf://{REPOSITORY}")
    assert refused in line
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {older.name}
    assert older.read_bytes() == OLDER


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"hf://{REPOSITORY}@absent/{FILE}", "the repository has no such revision"),
        (f"hf://{REPOSITORY}/absent.safetensors", "no such file"),
    ],
)
def test_what_is_not_there_is_told(source, message, hub, tmp_path, capsys):
    assert convert(source, tmp_path / "o.safetensors") == 1
    assert message in told(capsys)
    assert hub.sent() == 0


def test_nobody_answers(hub, tmp_path, capsys):
    hub.ports["hub"].shutdown()
    hub.ports["hub"].server_close()
    assert convert(f"hf://{REPOSITORY}/{FILE}", tmp_path / "o.safetensors") == 1
    assert "cannot reach the Hub: Connection refused" in told(capsys)


def test_resume_goes_on_at_the_commit_that_was_begun(hub, local, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nvfp4.write.partial_files.SYNC_BYTES", 1 << 14)
    source, output = f"hf://{REPOSITORY}/{FILE}", tmp_path / "out.safetensors"
    monkeypatch.setattr("nvfp4.hub.client.LONGEST_SILENCE", 30.0)

    def wait_for_a_tensor(_):
        for _ in range(2000):
            if any('"tensor"' in path.read_text() for path in tmp_path.glob("*.journal")):
                return
            time.sleep(0.01)

    hub.faults = [Fault(**CDN, cut=0, skip=40, first=wait_for_a_tensor)]
    assert convert(source, output, "--resume") == 1
    assert "tries brought nothing" in told(capsys)
    journal = next(tmp_path.glob("*.journal")).read_text()
    assert TOKEN not in journal
    hub.faults, before = [], len(hub.asked)
    move(hub)
    forget_the_hub(monkeypatch)
    assert (convert(source, output, "--resume"), told(capsys)) == (0, "")
    assert parts(output) == local[FIRST]
    # The header is read again, and what was not written yet.
    later = [
        asked for asked in hub.asked[before:] if not (asked.range or "").startswith("bytes=0-")
    ]
    assert 0 < sum(asked.sent for asked in later) < len(FIRST) - BLOCK
    assert not [*tmp_path.glob("*.journal")]


def test_no_token_and_no_address_gets_into_any_file(hub, tmp_path, capsys):
    hub.repo(REPOSITORY).gated = True
    texts = {"--report": "r.json", "--layer-config-out": "c.json", "--model-card": "card.md"}
    output = tmp_path / "out.safetensors"
    options = [word for flag, name in texts.items() for word in (flag, str(tmp_path / name))]
    assert convert(f"hf://{REPOSITORY}/{FILE}", output, *options) == 0
    page = ["--report", str(tmp_path / "r.html"), "--dry-run", "--verbose", "--preset", "all"]
    assert main([f"hf://{REPOSITORY}/{FILE}", str(output), *page]) == 0
    out, err = capsys.readouterr()
    assert {asked.token for asked in hub.of("hub")} == {TOKEN}
    assert {asked.token for asked in hub.of("cdn")} == {None}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"r.json", "r.html", "c.json", "card.md"}
    for text in (out, err, *(path.read_bytes().decode("latin-1") for path in files)):
        for secret in (TOKEN, "Signature", hub.ports["cdn"].url, os.environ["HF_HOME"]):
            assert secret not in text


def test_the_model_card_names_repository_and_commit(hub, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card, output = tmp_path / "README.md", tmp_path / "out.safetensors"
    commit = hub.repo(REPOSITORY).refs["main"]
    assert convert(f"hf://{REPOSITORY}@main/{FILE}", output, "--model-card", str(card)) == 0
    assert huggingface_hub.ModelCard.load(card).data.base_model == REPOSITORY
    text = card.read_text(encoding="utf-8")
    assert "**Fill in** at the top of this file: the licence, the task." in text
    link = f"[{REPOSITORY}](https://huggingface.co/{REPOSITORY}) at commit `{commit}`"
    assert f"from `{FILE}` in {link}." in text
    assert (
        f"convert_nvfp4.py hf://{REPOSITORY}@{commit}/{FILE} out.safetensors --preset all" in text
    )


def test_a_dry_run_reads_the_header_alone(hub, tmp_path):
    assert convert(f"hf://{REPOSITORY}/{FILE}", tmp_path / "o.safetensors", "--dry-run") == 0
    # What a reader asks for at once.
    assert hub.sent() == 1 << 18
