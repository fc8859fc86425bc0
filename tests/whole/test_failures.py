"""What a failure leaves behind: the older file, and one line of error."""

import contextlib
import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.files import OLDER

INTERRUPTED = "interrupted: nothing was kept; with --resume from the start it would be\n"


@pytest.fixture
def simple(tmp_path):
    """A source, and an older output whose bytes must survive every failure."""
    tensors = {"x.weight": torch.ones(16, 32), "y.weight": torch.ones(16, 32)}
    save_file(tensors, tmp_path / "m.safetensors")
    (tmp_path / "o.safetensors").write_bytes(OLDER)
    return tmp_path


def run(folder, *arguments, source="m.safetensors", output="o.safetensors"):
    include = ("--include", "x", "--quiet")
    return c.main([str(folder / source), str(folder / output), *include, *arguments])


def assert_untouched(folder):
    assert (folder / "o.safetensors").read_bytes() == OLDER
    assert not list(folder.glob("*.partial*"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(simple, capsys, bad):
    weight = torch.ones(16, 32)
    weight[7, 9] = bad
    save_file({"x.weight": weight}, simple / "m.safetensors")
    assert run(simple) == 1
    error = capsys.readouterr().err
    assert "m.safetensors: x.weight holds NaN or Inf: the file is damaged" in error
    assert error.count("\n") == 1
    assert_untouched(simple)


def test_a_full_disk_leaves_the_older_file(simple, capsys, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:  # the first one is the journal's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(simple) == 1
    assert "o.safetensors.partial: No space left on device" in capsys.readouterr().err
    assert_untouched(simple)


def test_a_disk_that_is_full_at_the_header_leaves_the_older_file(simple, capsys):
    """The limit on file sizes stands in for the full disk: a real error from a real write."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    weights = {f"{'x' * 200}{index}.weight": torch.ones(16, 32) for index in range(60)}
    save_file(weights, simple / "m.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        status = run(simple)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    error = capsys.readouterr().err
    assert "o.safetensors.partial: File too large; FAT32 takes no file of 4 GiB" in error
    assert "--output-sharded --max-shard-size 4GB" in error
    assert_untouched(simple)


def test_a_folder_that_cannot_be_synced_is_no_failure(simple, monkeypatch):
    calls = []

    def refuse_folders(descriptor, fsync=os.fsync):
        calls.append(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert run(simple) == 0
    assert len(calls) == 3  # the journal's head, the file, the folder
    assert (simple / "o.safetensors").stat().st_size > 1000


def test_a_report_that_fails_late_does_not_hide_the_model(simple, capsys, monkeypatch):
    def fail(*_):
        raise c.ConvertError("r.json: cannot write: No space left on device")

    monkeypatch.setattr(c, "write_text", fail)
    assert run(simple, "--report", str(simple / "r.json")) == 1
    printed = capsys.readouterr()
    assert f"exactly {(simple / 'o.safetensors').stat().st_size:,} bytes" in printed.out
    assert printed.err == "error: r.json: cannot write: No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX")
def test_a_name_that_is_no_utf8(simple):
    out = os.fsencode(simple) + b"/\xe4.safetensors"
    assert c.main([str(simple / "m.safetensors"), os.fsdecode(out), "--preset", "all"]) == 0
    assert os.stat(out).st_size  # noqa: PTH116


@pytest.mark.parametrize("source", ["o-00001-of-00005.safetensors", "m.safetensors"])
def test_shards_of_widened_tensors_spare_what_is_there(tmp_path, capsys, source):
    """The plan changes on the way, and its files' names with it."""
    weights = {f"blocks.{i}.ffn.0.weight": torch.randn(1024, 1024) for i in range(8)}
    for i in range(4, 8):
        weights[f"blocks.{i}.ffn.0.weight"][0, 0] = 1e6  # beyond float16
    save_file(weights, tmp_path / source)
    index, other = tmp_path / "x.safetensors.index.json", tmp_path / "o-00001-of-00005.safetensors"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, source)}))
    if not other.exists():
        other.write_bytes(b"mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = [
        str(index),
        str(tmp_path / "o.safetensors"),
        "--output-sharded",
        "--dtype",
        "float16",
    ]
    command += ["--max-shard-size", "4500kB", "--preset", "all", "--exclude", "blocks.[4-7]"]
    assert c.main([*command, "--quiet"]) == 1
    told = (
        "is an input of this conversion" if source == other.name else "old and new shards could mix"
    )
    assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("report", ["missing/r.json", "folder.json", "m.safetensors"])
def test_a_report_that_cannot_be_written_is_known_before_the_work(simple, capsys, report):
    (simple / "folder.json").mkdir()
    if report == "m.safetensors":
        (simple / "link.json").symlink_to(simple / report)
        report = "link.json"
    assert run(simple, "--report", str(simple / report)) == 1
    assert str(simple) in capsys.readouterr().err
    assert_untouched(simple)


def test_a_dry_run_tells_what_would_fail(simple, capsys):
    assert run(simple, "--dry-run", output="missing/o.safetensors") == 1
    out, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert "missing: no such folder" in error
    assert "\ndry run   this would fail, see the end; nothing was written; " in out


def test_too_little_space_is_known_before_the_work(simple, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    monkeypatch.setattr(c, "write_model", None)
    assert run(simple) == 1
    assert "5 bytes are free, the output needs 2,511 bytes" in capsys.readouterr().err
    assert_untouched(simple)


def test_ctrl_c_leaves_the_older_file(simple, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(c, "quantise", interrupt)
    assert run(simple) == 130
    assert capsys.readouterr().err == INTERRUPTED
    assert_untouched(simple)


def test_a_source_that_shrinks_under_way(simple, capsys, monkeypatch):
    output_problems = c.output_problems

    def shrink(*arguments):
        problems = output_problems(*arguments)
        os.truncate(simple / "m.safetensors", 2000)
        return problems

    monkeypatch.setattr(c, "output_problems", shrink)
    assert run(simple) == 1
    told = f"ended inside x.weight; {c.CHANGED_UNDER_WAY}"
    assert capsys.readouterr().err == f"error: {simple / 'm.safetensors'}: {told}\n"
    assert_untouched(simple)


def rewrite(path):
    """The same size at every moment, other weights: no reader meets a short file."""
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(0, 0))  # a clock of whole seconds could miss the change


def replace(path):
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_source_that_changes_under_way(simple, capsys, monkeypatch, change, resume):
    quantise = c.quantise

    def change_first(*arguments):
        change(simple / "m.safetensors")
        return quantise(*arguments)

    monkeypatch.setattr(c, "quantise", change_first)
    assert run(simple, *resume) == 1
    error = capsys.readouterr().err
    assert error == f"error: {simple / 'm.safetensors'}: {c.CHANGED_UNDER_WAY}\n"
    assert (simple / "o.safetensors").read_bytes() == OLDER
    assert bool(list(simple.glob("*.partial"))) == bool(resume)
    monkeypatch.setattr(c, "quantise", quantise)
    assert run(simple, *resume) == len(resume)
    assert ("m.safetensors changed since, or was another; " in capsys.readouterr().err) == bool(
        resume
    )


def test_a_list_that_changes_under_way_was_read_already(simple, monkeypatch):
    (simple / "layers.txt").write_text("y\n")
    publish = c.PartialFiles.publish
    monkeypatch.setattr(
        c.PartialFiles,
        "publish",
        lambda self: (simple / "layers.txt").write_text("x\n") and publish(self),
    )
    assert run(simple, "--full-precision-mm-layers", str(simple / "layers.txt")) == 0


def test_a_run_whose_files_were_deleted_leaves_the_next_one_alone(simple, capsys, monkeypatch):
    publish, partial = c.PartialFiles.publish, simple / "o.safetensors.partial"
    journal = simple / "o.safetensors.partial.journal"

    def usurp(self):
        for path in (partial, journal):
            path.unlink()
            path.write_bytes(b"another run's")
        publish(self)

    monkeypatch.setattr(c.PartialFiles, "publish", usurp)
    assert run(simple) == 1
    assert capsys.readouterr().err == f"error: {partial}: was deleted meanwhile; run again\n"
    assert (simple / "o.safetensors").read_bytes() == OLDER
    assert partial.read_bytes() == journal.read_bytes() == b"another run's"


def test_a_partial_file_that_may_not_be_deleted(simple, capsys, monkeypatch):
    """As in a folder like /tmp, where it is another user's."""
    partial, unlink = simple / "o.safetensors.partial", type(simple).unlink
    partial.write_bytes(b"")

    def forbid(path, **keywords):
        if path == partial:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path, **keywords)

    monkeypatch.setattr(type(simple), "unlink", forbid)
    assert run(simple) == 1
    assert capsys.readouterr().err == f"error: {partial}: Operation not permitted\n"
    assert (simple / "o.safetensors").read_bytes() == OLDER


def test_ctrl_c_after_the_file_got_its_name(simple, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(c, "sync_folder", interrupt)
    assert run(simple) == 130
    out = simple / "o.safetensors"
    assert capsys.readouterr().err == f"interrupted: {out} was complete already\n"
    assert c.main(["--verify", str(out)]) == 0
    assert not list(simple.glob("*.partial*"))


def test_ctrl_c_between_the_names_of_shards(simple, capsys, monkeypatch):
    rename, calls = c.rename, []

    def interrupt(path, name):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        rename(path, name)

    big = {f"x.{index}.weight": torch.ones(1024, 1024) for index in range(4)}
    save_file(big, simple / "m.safetensors")
    monkeypatch.setattr(c, "rename", interrupt)
    shards = ("--output-sharded", "--max-shard-size", "1MB")
    assert run(simple, *shards, output="s.safetensors") == 130
    assert capsys.readouterr().err == INTERRUPTED
    assert not list(simple.glob("s*"))


def test_a_partial_file_that_reads_back_wrong_is_not_published(simple, capsys, monkeypatch):
    publish = c.PartialFiles.publish

    def corrupt(self):
        with (simple / "o.safetensors.partial").open("r+b") as file:
            file.seek(9)
            file.write(b"#")
        publish(self)

    monkeypatch.setattr(c.PartialFiles, "publish", corrupt)
    assert run(simple) == 1
    assert "the safetensors header is damaged" in capsys.readouterr().err
    assert_untouched(simple)


@pytest.fixture
def like_windows(monkeypatch):
    """What is open can neither be deleted, nor renamed, nor replaced."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd")

    def is_open(path):
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if link.readlink() == path.absolute():
                    return True
        return False

    def guard(function):
        def guarded(path, *others, **keywords):
            if any(map(is_open, (path, *others))):
                raise PermissionError(errno.EACCES, "is in use", str(path))
            return function(path, *others, **keywords)

        return guarded

    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, guard(getattr(Path, name)))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("like_windows")
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_nothing_is_open_when_it_is_named_or_deleted(simple, monkeypatch, resume):
    assert run(simple, *resume) == 0
    assert left_in(simple) == ["m.safetensors", "o.safetensors"]
    monkeypatch.setattr(c, "read_back", None)  # a failure, and no ConvertError
    with pytest.raises(TypeError):
        run(simple)
    assert left_in(simple) == ["m.safetensors", "o.safetensors"]


@pytest.mark.usefixtures("like_windows")
@pytest.mark.parametrize("shards", [[], ["--output-sharded", "--max-shard-size", "1MB"]])
def test_a_float16_overflow_where_open_files_cannot_be_deleted(simple, shards):
    (simple / "o.safetensors").unlink()
    save_file({"x.weight": torch.ones(16, 32), "big": torch.ones(2, 2, 2) * 1e5}, simple / "b.st")
    (simple / "b.st").replace(simple / "m.safetensors")
    assert run(simple, "--dtype", "float16", "--resume", *shards) == 0
    assert not list(simple.glob("*.partial*"))


@pytest.mark.usefixtures("like_windows")
def test_an_older_output_that_is_open_elsewhere(simple, capsys, monkeypatch):
    with (simple / "o.safetensors").open("rb") as reader:
        assert run(simple, "--resume") == 1
        told = f"error: {simple / 'o.safetensors'}: is in use; is it open in another program?\n"
        assert capsys.readouterr().err == told
        assert reader.read() == OLDER
    monkeypatch.setattr(c, "quantise", None)  # nothing is left to do
    assert run(simple, "--resume") == 0
    assert left_in(simple) == ["m.safetensors", "o.safetensors"]


def test_an_output_that_is_an_input_is_refused(simple, capsys):
    before = (simple / "m.safetensors").read_bytes()
    (simple / "link.safetensors").symlink_to(simple / "m.safetensors")
    for name in ("m.safetensors", "link.safetensors"):
        assert run(simple, output=name) == 1
        assert f"{name}: is an input of this conversion" in capsys.readouterr().err
    assert (simple / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/o.safetensors", "missing: no such folder; create it first"),
        ("folder.safetensors", "folder.safetensors: is a folder; name the file to write"),
    ],
)
def test_an_output_that_cannot_be_written(simple, capsys, output, message):
    (simple / "folder.safetensors").mkdir()
    assert run(simple, output=output) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_permission(simple, capsys):
    simple.chmod(0o500)
    try:
        assert run(simple) == 1
        assert "o.safetensors.partial: Permission denied" in capsys.readouterr().err
    finally:
        simple.chmod(0o700)
    assert_untouched(simple)
