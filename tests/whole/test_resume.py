"""Runs that were killed and go on: the same bytes in the end."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.conversions import convert_tiny
from support.kills import KILL, command, killed, left_behind, needs_sigkill, run_killed
from support.paths import ROOT

pytestmark = pytest.mark.slow

QUANTISE = c.quantise


def counted_layers(monkeypatch, interrupted_at=0):
    """A list that gets an item for each layer quantised from now on; one of them is Ctrl-C."""
    calls = []

    def count(*arguments):
        calls.append(1)
        if len(calls) == interrupted_at:
            raise KeyboardInterrupt
        return QUANTISE(*arguments)

    monkeypatch.setattr(c, "quantise", count)
    return calls


@needs_sigkill
@pytest.mark.parametrize(
    "at", ["patch_embedding.weight", "blocks.4.ffn.0.weight", "head.modulation"]
)
@pytest.mark.parametrize("first", [["--resume"], []])
def test_a_killed_run_goes_on(tiny, converted, tmp_path, at, first):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    partial, journal = killed(tiny, out, *first, at=at)
    assert not out.exists()
    assert partial.exists()
    there = sum("tensor" in json.loads(line) for line in journal.read_text().splitlines())
    with journal.open("a") as file:
        file.write('{"tensor": "blocks.7.ffn.2.wei')  # as a kill within a line leaves it
    assert c.main(command(tiny, out, "--resume", "--report", str(report))) == 0
    assert out.read_bytes() == converted.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out, report]
    assert there > 0 or at == "patch_embedding.weight"
    plain, data = tmp_path / "plain.json", json.loads(report.read_text())
    told = [note["text"] for note in data["notes"] if note["rank"] == "information"]
    assert (f"{there} of 231 tensors were there already" in told) == bool(there)
    convert_tiny(tiny, out, "--quiet", "--report", str(plain))
    assert data["tensors"] == json.loads(plain.read_text())["tensors"]


@needs_sigkill
def test_an_output_in_its_sources_folder_goes_on(tiny, converted, tmp_path):
    """The folder itself changes with every file that is made in it."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    out = folder / "o.safetensors"
    killed(folder, out)
    assert c.main(command(folder, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()


@needs_sigkill
def test_what_was_synced_is_not_done_again(tiny, converted, tmp_path, monkeypatch):
    out, encoded, quantise = tmp_path / "o.safetensors", [], c.quantise
    _, journal = killed(tiny, out)
    done = {json.loads(line).get("tensor") for line in journal.read_text().splitlines()}
    monkeypatch.setattr(
        c, "quantise", lambda plan, *rest: encoded.append(plan.ref.name) or quantise(plan, *rest)
    )
    assert c.main(command(tiny, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()
    assert 0 < len(encoded) < 40
    assert not done & set(encoded)


@needs_sigkill
def test_without_resume_it_starts_over_and_says_so(tiny, converted, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    killed(tiny, out)
    assert c.main(command(tiny, out)) == 0
    assert out.read_bytes() == converted.read_bytes()
    note = (
        "hint: overwrote o.safetensors.partial of an earlier run; --resume goes on with such files"
    )
    assert note in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


@needs_sigkill
def test_other_options_or_a_changed_source_are_refused(tmp_path, capsys):
    out, source = tmp_path / "o.safetensors", tmp_path / "m.safetensors"
    save_file({f"x.{i}.weight": torch.randn(512, 512) for i in range(4)}, source)
    arguments = [str(source), str(out), "--include", "x", "--quiet", "--resume"]
    run_killed(KILL, "x.2.weight", *arguments)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for other, told in (
        (["--scale-search", "amax"], "--scale-search: not given, now amax"),
        (["--input-scale-value", "0.01"], "--input-scale-value: not given, now 0.01"),
        (["--output-sharded"], "--max-shard-size: not given, now 5000000000"),
    ):
        assert c.main([*arguments, *other]) == 1
        error = capsys.readouterr().err
        assert f"error: --resume: other options than before ({told}); give those again" in error
    os.utime(source, ns=(0, 0))
    assert c.main(arguments) == 1
    told = f"error: --resume: {source} changed since, or was another; without --resume it starts"
    assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@needs_sigkill
def test_a_lost_partial_file_is_made_anew(tiny, converted, tmp_path):
    out = tmp_path / "o.safetensors"
    partial, _ = killed(tiny, out)
    partial.unlink()
    assert c.main(command(tiny, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()


def test_ctrl_c_with_resume_keeps_what_was_done(tiny, converted, tmp_path, capsys, monkeypatch):
    out = tmp_path / "o.safetensors"
    counted_layers(monkeypatch, interrupted_at=20)
    monkeypatch.setattr(c, "SYNC_BYTES", 1 << 18)
    assert c.main(command(tiny, out, "--resume")) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from here\n"
    assert not out.exists()
    calls = counted_layers(monkeypatch)
    again = [word for word in command(tiny, out, "--resume") if word != "--quiet"]
    assert c.main(again) == 0
    assert len(calls) < 35
    told = r"going on: \d+ of 231 tensors \([\d.]+/[\d.]+ MB\) are written already\n"
    assert re.search(told, capsys.readouterr().err)
    assert out.read_bytes() == converted.read_bytes()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("sync_bytes", [1 << 16, 1 << 30])
def test_what_is_encoded_at_ctrl_c_is_kept(tiny, converted, tmp_path, monkeypatch, sync_bytes):
    """Without it all since the last sync would be done again, or what was given during syncs."""
    out, sync = tmp_path / "o.safetensors", os.fsync
    given = [word for word in command(tiny, out, "--resume") if word != "--low-mem"]
    counted_layers(monkeypatch, interrupted_at=20)
    with monkeypatch.context() as patch:
        patch.setattr(c, "SYNC_BYTES", sync_bytes)
        patch.setattr(os, "fsync", lambda file: (time.sleep(0.01), sync(file)))
        assert c.main(given) == 130
    calls = counted_layers(monkeypatch)
    assert c.main(given) == 0
    assert len(calls) == 40 - 19
    assert out.read_bytes() == converted.read_bytes()


class FullOnce:
    """A file whose disk is full at one write, and has space again for those behind it."""

    def __init__(self, file, at):
        self.file, self.at = file, at

    def write(self, data):
        self.at -= 1
        if not self.at:
            time.sleep(0.2)  # what comes next is given meanwhile
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("sync_bytes", [1, 1 << 30])
def test_nothing_is_noted_after_a_write_that_failed(
    tiny, converted, tmp_path, monkeypatch, sync_bytes
):
    """The bytes of a noted tensor would be missing in the file."""
    out, opened = tmp_path / "o.safetensors", c.PartialFiles.open
    # With --low-mem nothing is given before what came before it is written.
    given = [word for word in command(tiny, out, "--resume") if word != "--low-mem"]

    def open_full(self, mode):
        opened(self, mode)
        self.files = {path: FullOnce(file, 39) for path, file in self.files.items()}

    with monkeypatch.context() as patch:
        patch.setattr(c.PartialFiles, "open", open_full)
        patch.setattr(c, "SYNC_BYTES", sync_bytes)
        assert c.main(given) == 1
    assert c.main(given) == 0
    assert out.read_bytes() == converted.read_bytes()


def test_a_float16_overflow_is_remembered(tmp_path, monkeypatch):
    """The plan changes under way; a run that goes on has to come to the changed one at once."""
    tensors = {"a": torch.full((2, 2, 2), 1e5)}
    tensors |= {f"x.{i}.weight": torch.randn(16, 32) for i in range(4)}
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file(tensors, source)
    arguments = [str(source), str(out), "--include", "x", "--dtype", "float16", "--quiet"]
    assert c.main(arguments) == 0
    expected, quantise, calls = out.read_bytes(), c.quantise, []
    out.unlink()

    def fail_late(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return quantise(*given)

    monkeypatch.setattr(c, "quantise", fail_late)
    monkeypatch.setattr(c, "SYNC_BYTES", 0)
    assert c.main([*arguments, "--resume"]) == 130
    monkeypatch.setattr(c, "quantise", quantise)
    monkeypatch.setattr(c, "float16_overflows", None)
    assert c.main([*arguments, "--resume"]) == 0
    assert out.read_bytes() == expected


def test_a_second_run_to_the_same_output_is_refused(tiny, tmp_path, monkeypatch):
    out, quantise, statuses = tmp_path / "o.safetensors", c.quantise, []

    def run_again(*arguments):
        if not statuses:
            statuses.append(None)
            statuses[0] = subprocess.run(
                [sys.executable, "convert_nvfp4.py", *command(tiny, out)],
                check=False,
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
        return quantise(*arguments)

    monkeypatch.setattr(c, "quantise", run_again)
    assert c.main(command(tiny, out)) == 0
    assert statuses[0].returncode == 1
    expected = "o.safetensors: another run is writing this output; wait for it\n"
    assert statuses[0].stderr.endswith(expected)
    assert c.main(["--verify", str(out)]) == 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture(scope="module")
def left(tiny, tmp_path_factory):
    return killed(tiny, tmp_path_factory.mktemp("left") / "o.safetensors")


@needs_sigkill
@pytest.mark.parametrize(
    "line",
    [
        b"123",
        b"null",
        b'{"tensor": "blocks.7.ffn.2.weight"}',
        b'{"tensor": "blocks.7.ffn.2.weight", "damage": {"foo": 1}}',
        b'{"tensor": "blocks.3.ffn.2.weight", "damage": null}',
        b'{"tensor": ["x"], "damage": null}',
        b'{"tensor": "blocks.7.ffn.2.weight", "damage": 0.0}',
        b'{"tensor": "blocks.7.ffn.2.weight", "damage": {"error": 1, "energy": "1"}}',
        b'{"tensor": "blocks.7.ffn.2.weight", "damage": {"error": Infinity, "energy": 1.0}}',
        b'{"tensor": "blocks.7.ffn.2.weight", "damage": {"error": 1.0, "energy": 1.0, '
        b'"output_before": 0.5}}',
        b'{"shards": 5}',
        b'{"shards": [["o.safetensors", 0, 0], 5]}',
        b"[" * 100_000,
    ],
)
def test_lines_that_nobody_wrote_count_for_nothing(tiny, converted, left, tmp_path, line):
    out = tmp_path / "o.safetensors"
    for path in left:
        shutil.copy(path, tmp_path)
    with (tmp_path / left[1].name).open("ab") as file:
        file.write(b"\n" + line + b"\n")
    assert c.main(command(tiny, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()


@needs_sigkill
@pytest.mark.parametrize("files", [5, [5], [[]], [{}], "m.safetensors", None])
@pytest.mark.parametrize("plan", ["", []])
def test_a_head_that_nobody_wrote_is_of_other_options(tiny, tmp_path, capsys, files, plan):
    out = tmp_path / "o.safetensors"
    _, journal = left_behind(out)
    noted = {"plan": plan, "files": files}
    journal.write_text(json.dumps({"fingerprint": noted, "widened": [["x"], "y", 5]}))
    assert c.main(command(tiny, out, "--resume")) == 1
    assert "--resume: other options than before; give those again" in capsys.readouterr().err
    assert not out.exists()


LINKS = [
    "o.safetensors.partial",
    "o.safetensors.partial.journal",
    "o.safetensors.partial.journal.1",
]


@needs_sigkill
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", [*LINKS, "r.json.partial"])
def test_links_are_not_written_through(tiny, tmp_path, capsys, name, hard):
    """One in an unpacked folder could name any file of the user's."""
    victim, link = tmp_path / "victim", tmp_path / name
    victim.write_bytes(b"mine")
    link.hardlink_to(victim) if hard else link.symlink_to(victim)
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    status = c.main(command(tiny, out, "--resume", "--report", str(report)))
    assert victim.read_bytes() == b"mine"
    assert status == ("journal" in name)
    if status:
        assert capsys.readouterr().err == f"error: {link}: is a link; delete it\n"
        assert set(tmp_path.iterdir()) == {victim, link}
    else:
        assert not report.is_symlink()


@pytest.mark.parametrize("name", LINKS[1:])
def test_what_is_no_journal_is_left_alone(tiny, tmp_path, capsys, name):
    (tmp_path / name).write_text("my notes")
    assert c.main(command(tiny, tmp_path / "o.safetensors")) == 1
    told = f"error: {tmp_path / name}: is no journal of this tool; move it away\n"
    assert capsys.readouterr().err == told
    assert [path.read_text() for path in tmp_path.iterdir()] == ["my notes"]


@needs_sigkill
def test_a_source_of_the_same_name_size_and_time_is_another(tmp_path, capsys):
    """As high and low noise may be, once unpacked."""
    folders = [tmp_path / "high", tmp_path / "low"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        weights = torch.full((512, 512), number + 1.0)
        save_file({f"x.{i}.weight": weights.clone() for i in range(4)}, folder / "m.safetensors")
        os.utime(folder / "m.safetensors", (0, 0))
    high, low = ([str(folder), str(tmp_path / "o.safetensors")] for folder in folders)
    more = ["--include", "x", "--quiet", "--resume"]
    run_killed(KILL, "x.2.weight", *high, *more)
    assert c.main([*low, *more]) == 1
    told = f"--resume: {folders[1] / 'm.safetensors'} changed since, or was another; without"
    assert told in capsys.readouterr().err
    assert c.main([*high, *more]) == 0


@needs_sigkill
def test_a_partial_file_of_another_size_is_made_anew(tiny, converted, tmp_path):
    out = tmp_path / "o.safetensors"
    partial, _ = killed(tiny, out)
    os.truncate(partial, 1000)
    assert c.main(command(tiny, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()


def test_files_with_similar_names_are_left_alone(tiny, tmp_path):
    out = tmp_path / "o.safetensors"
    others = [tmp_path / f"o.safetensors.partial.journal{end}" for end in (".bak", "s.txt", ".1.x")]
    for path in others:
        path.write_text("mine")
    assert c.main(command(tiny, out)) == 0
    assert [path.read_text() for path in others] == ["mine"] * 3


def test_a_rank_that_outlived_its_run_keeps_the_next_one_out(tiny, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    with c.Journal(c.parse_options(command(tiny, out)), c.Ranks()) as left:
        orphan = left.path.with_name(left.path.name + ".1")
    with orphan.open("ab") as file:
        assert c.lock(file)
        assert c.main(command(tiny, out)) == 1
    assert "journal.1: a rank of another run still writes; end it" in capsys.readouterr().err
    assert c.main(command(tiny, out)) == 0
    assert list(tmp_path.iterdir()) == [out]


def test_without_locks_it_converts_all_the_same(tiny, converted, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="POSIX")

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    out = tmp_path / "o.safetensors"
    assert c.main(command(tiny, out)) == 0
    assert out.read_bytes() == converted.read_bytes()
