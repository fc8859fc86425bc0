"""A dry run tells what a run would refuse: the same lines, in the same order."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c

WEIGHTS = {f"blocks.{i}.x.weight": torch.randn(64, 64) for i in range(4)}
JOURNAL = "o.safetensors.partial.journal"


def refusals(capsys, folder, *arguments):
    """The lines with which a command is refused, by a run or by a dry run."""
    output = [] if any("OUT=" in word for word in arguments) else ["OUT=o.safetensors"]
    words = [word.removeprefix("OUT=") for word in (*output, *arguments)]
    status = c.main([str(folder / "m.safetensors"), *words, "--preset", "all", "--quiet"])
    err = capsys.readouterr().err
    assert status == (1 if err else 0)
    return [line.removeprefix("error: ") for line in err.splitlines()]


@contextlib.contextmanager
def locked(path):
    """Another run holds a journal."""
    with path.open("a+b") as file:
        assert c.lock(file)
        yield


@contextlib.contextmanager
def limited(nbytes):
    """No file may be larger, as on FAT32."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def without_space():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
        yield


def stop_a_run(*arguments):
    """Leave what a run that was stopped leaves for --resume."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "encode_tensors", interrupt)
        command = [str(Path("m.safetensors").resolve()), "o.safetensors", "--preset", "all"]
        assert c.main([*command, "--quiet", "--resume", *arguments]) == 130
    assert Path(JOURNAL).exists()


def change_after_a_run():
    stop_a_run()
    os.utime("m.safetensors", ns=(0, 0))


def make_lora():
    lora = {
        "blocks.0.x.lora_A.weight": torch.ones(4, 64),
        "blocks.0.x.lora_B.weight": torch.ones(64, 4),
    }
    save_file(lora, "o.safetensors")


def make(name, what=Path.touch):
    """Make a file, or what else, of a name in the folder of the run."""
    return lambda: what(Path(name))


def forbidden():
    """A folder that nobody may write into, root neither."""
    folder = Path("/sys/kernel")
    if not folder.is_dir() or not c.refused_by(folder):
        pytest.skip("no folder is read-only here")
    return folder


# {what is wrong: (how it comes about, in a folder; further arguments; a part of what is told)}
NOTHING = contextlib.nullcontext
OUTPUT, SHARDED = "o.safetensors", "--output-sharded"
SITUATIONS = {
    "no folder": (NOTHING, ["OUT=no/o.safetensors"], "no: no such folder; create it first"),
    "a folder": (make(OUTPUT, Path.mkdir), [], "is a folder; name the file to write"),
    "a partial folder": (make(f"{OUTPUT}.partial", Path.mkdir), [], "is a folder; name the file"),
    "a forbidden folder": (NOTHING, ["OUT={forbidden}/o.safetensors"], "cannot write into this"),
    "a name too long": (NOTHING, [f"OUT={'x' * 235}.safetensors"], "name too long"),
    "too long for a journal": (NOTHING, [f"OUT={'x' * 229}.safetensors"], "name too long"),
    "no space": (without_space, [], "5 bytes are free, the output needs"),
    "a file too large": (lambda: limited(5000), [], f"{OUTPUT}.partial: File too large; FAT32"),
    "a shard too large": (lambda: limited(5000), [SHARDED], "File too large; FAT32"),
    "the source": (NOTHING, ["OUT=m.safetensors"], "is an input of this conversion"),
    "a LoRA": (make_lora, ["--merge-lora", "{folder}/o.safetensors"], "is an input of this"),
    "two problems": (without_space, ["OUT=m.safetensors"], "is an input of this conversion"),
    "another run": (lambda: locked(Path(JOURNAL)), [], "another run is writing this output"),
    "another rank": (lambda: locked(Path(f"{JOURNAL}.1")), [], "a rank of another run still"),
    "a link": (make(JOURNAL, lambda path: path.symlink_to("m.safetensors")), [], "is a link"),
    "another journal": (make(JOURNAL, lambda path: path.write_text("mine")), [], "is no journal"),
    "a journal's folder": (make(JOURNAL, Path.mkdir), [], f"{JOURNAL}: Is a directory"),
    "older shards": (make("o-00001-of-00001.safetensors"), [SHARDED], "old and new shards"),
    "no such GPU": (NOTHING, ["--device", "cuda:99"], "--device cuda:99: torch sees"),
    "a report": (NOTHING, ["--report", "no/r.json"], "no: no such folder; create it first"),
    "one file": (NOTHING, ["--layer-config-out", "a.json", "--report", "a.json"], "a.json: is an"),
    "a size": (NOTHING, ["--target-size", "8GB"], "leaves nothing to choose"),
    "nothing to do": (NOTHING, ["--exclude", "x"], "no layer would be quantised"),
    "other options": (stop_a_run, ["--resume", "--exclude", "1"], "other options than before"),
    "another source": (change_after_a_run, ["--resume"], "changed since, or was another"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_a_run_refuses_a_dry_run_tells(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    save_file(WEIGHTS, tmp_path / "m.safetensors")
    setting, arguments, told = SITUATIONS[name]
    there = {"folder": tmp_path}
    if "forbidden" in name:
        there["forbidden"] = forbidden()
    arguments = [word.format(**there) for word in arguments]
    if os.name == "nt" and name in ("a link", "another run", "another rank"):
        pytest.skip("locks and links are tried on POSIX")
    made = setting()
    with made if isinstance(made, contextlib.AbstractContextManager) else NOTHING():
        capsys.readouterr()
        before = sorted(path.name for path in tmp_path.iterdir())
        dry = refusals(capsys, tmp_path, *arguments, "--dry-run")
        # What is there stays as it is, and nothing is added.
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert dry == refusals(capsys, tmp_path, *arguments)
    assert told in dry[0]
    assert len(dry) == (2 if name == "two problems" else len(dry))


def test_what_a_run_goes_on_with_a_dry_run_does_not_refuse(tmp_path, monkeypatch, capsys):
    """The run that was stopped did not know yet what float16 cannot hold."""
    monkeypatch.chdir(tmp_path)
    weights = WEIGHTS | {"y.weight": torch.full((4, 4, 4), 1e6)}
    save_file(weights, tmp_path / "m.safetensors")
    arguments = ["--resume", "--dtype", "float16"]
    stop_a_run(*arguments[1:])
    capsys.readouterr()
    assert refusals(capsys, tmp_path, *arguments, "--dry-run") == []
    assert refusals(capsys, tmp_path, *arguments) == []
    assert (tmp_path / "o.safetensors").exists()


def test_the_largest_file_goes_by_the_file_system(monkeypatch, tmp_path):
    assert c.largest_file(tmp_path) > 1 << 32
    monkeypatch.setitem(c.largest_file.__globals__, "file_system", lambda _: "vfat")
    assert c.largest_file(tmp_path) == (4 << 30) - 1


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="it is Linux that has it")
def test_linux_names_the_file_system_of_a_folder(tmp_path):
    assert c.file_system(Path("/proc")) == "proc"
    assert c.file_system(tmp_path) not in ("", *c.FAT_NAMES)


def test_nan_is_for_a_run_to_find_and_help_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"x.weight": torch.full((64, 64), torch.nan)}, tmp_path / "m.safetensors")
    assert refusals(capsys, tmp_path, "--dry-run") == []
    assert "holds NaN" in refusals(capsys, tmp_path)[0]
    (row,) = (row for row in c.OPTIONS if row.name == "dry_run")
    assert "except NaN in weights" in row.help
