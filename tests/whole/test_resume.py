"""Runs that were killed and go on, shards, and several processes: the same bytes in the end."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import RECIPE, convert_tiny, torchrun
from support.kills import KILL, needs_sigkill
from support.paths import ROOT


def command(tiny, out, *more):
    return [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE, "--quiet", *more]


def killed(tiny, out, *more, at="blocks.4.ffn.0.weight"):
    """A conversion that gets SIGKILL once a tensor is written; what it leaves."""
    done = subprocess.run(
        [sys.executable, "-c", KILL, at, *command(tiny, out, *more)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return unfinished(out)


def unfinished(out):
    return c.unfinished(out), c.unfinished(out).with_name(f"{out.name}.partial.journal")


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
    assert (f"{there} of 231 tensors were there already" in data["notes"]) == bool(there)
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
        "note: overwrote o.safetensors.partial of an earlier run; --resume goes on with such files"
    )
    assert note in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


@needs_sigkill
def test_other_options_or_a_changed_source_are_refused(tmp_path, capsys):
    out, source = tmp_path / "o.safetensors", tmp_path / "m.safetensors"
    save_file({f"x.{i}.weight": torch.randn(512, 512) for i in range(4)}, source)
    arguments = [str(source), str(out), "--include", "x", "--quiet", "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", KILL, "x.2.weight", *arguments], check=False, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for other in (["--scale-search", "amax"], ["--input-scale-value", "0.01"]):
        assert c.main([*arguments, *other]) == 1
        error = capsys.readouterr().err
        assert "error: --resume: other options than before; give those again; without" in error
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
    out, quantise, calls = tmp_path / "o.safetensors", c.quantise, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return quantise(*arguments)

    monkeypatch.setattr(c, "quantise", interrupt)
    monkeypatch.setattr(c, "SYNC_BYTES", 1 << 18)
    assert c.main(command(tiny, out, "--resume")) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from here\n"
    assert not out.exists()
    calls.clear()
    monkeypatch.setattr(c, "quantise", lambda *arguments: calls.append(1) or quantise(*arguments))
    assert c.main(command(tiny, out, "--resume")) == 0
    assert len(calls) < 35
    assert out.read_bytes() == converted.read_bytes()
    assert list(tmp_path.iterdir()) == [out]


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
    _, journal = unfinished(out)
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
    subprocess.run([sys.executable, "-c", KILL, "x.2.weight", *high, *more], check=False, cwd=ROOT)
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


# Shards


@pytest.fixture(scope="module")
def sharded(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("sharded") / "o.safetensors"
    convert_tiny(tiny, out, "--quiet", "--output-sharded", "--max-shard-size", "3MB")
    return out


def test_shards_hold_what_the_single_file_holds(sharded, converted):
    shards = sorted(sharded.parent.glob("o-*.safetensors"))
    assert [path.name for path in shards] == [
        f"o-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert len(shards) > 3
    single, found = load_file(converted), {}
    index = json.loads(sharded.with_name("o.safetensors.index.json").read_text())
    for path in shards:
        part = load_file(path)
        assert sum(tensor.nbytes for tensor in part.values()) <= 3e6
        assert all(index["weight_map"][name] == path.name for name in part)
        found |= part
    assert found.keys() == single.keys() == index["weight_map"].keys()
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in single.values())}
    for name, tensor in single.items():
        assert torch.equal(
            tensor.view(-1).view(torch.uint8), found[name].view(-1).view(torch.uint8)
        )


def test_every_shard_tells_of_its_own_layers(sharded):
    for path in sharded.parent.glob("o-*.safetensors"):
        tensors, metadata = c.read_header(path)
        packed = {name[:-12] for name in tensors if name.endswith(".comfy_quant")}
        assert packed == set(c.header_layers(metadata))
        assert json.loads(metadata["convert_nvfp4"])["plan"]["NVFP4"] == 28
        assert c.main(["--verify", str(path), "--quiet"]) == 0


def test_shards_are_verified_against_their_source(sharded, tiny, capsys):
    index = sharded.with_name("o.safetensors.index.json")
    assert c.main(["--verify", str(index), "--source", str(tiny), "--quiet"]) == 0
    assert "28 NVFP4, 12 FP8 layers\n  no defect found" in capsys.readouterr().out


def test_shards_are_not_written_over(sharded, tiny, capsys):
    before = {path: path.read_bytes() for path in sharded.parent.iterdir()}
    more = ["--output-sharded", "--max-shard-size", "3MB"]
    assert c.main(command(tiny, sharded, *more)) == 1
    assert "exists; delete it, or old and new shards could mix" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sharded.parent.iterdir()} == before


def test_shards_whose_names_fail_half_way_get_none(tiny, sharded, tmp_path, capsys, monkeypatch):
    out, rename, calls = tmp_path / "o.safetensors", c.rename, []

    def fail(path, name):
        calls.append(name)
        if len(calls) == 2:
            raise c.ConvertError(f"{name}: is open in another program")
        rename(path, name)

    monkeypatch.setattr(c, "rename", fail)
    more = ["--output-sharded", "--max-shard-size", "3MB", "--resume"]
    assert c.main(command(tiny, out, *more)) == 1
    assert "is open in another program" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(c, "rename", rename)
    monkeypatch.setattr(c, "quantise", None)  # nothing is left to do
    assert c.main(command(tiny, out, *more)) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in sharded.parent.iterdir()}


def test_shards_of_another_size_do_not_join_older_ones(sharded, tiny, capsys):
    before = set(sharded.parent.iterdir())
    assert c.main(command(tiny, sharded, "--output-sharded", "--max-shard-size", "2MB")) == 1
    assert "exists; delete it, or old and new shards could mix" in capsys.readouterr().err
    assert set(sharded.parent.iterdir()) == before


@needs_sigkill
def test_shards_go_on_after_a_kill(sharded, tiny, tmp_path):
    out, more = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    killed(tiny, out, "--resume", *more)
    assert c.main(command(tiny, out, "--resume", *more)) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in sharded.parent.iterdir()}


NAMES = """
import os, signal, sys
import convert_nvfp4 as c
rename, named = c.rename, []
def kill(path, name):
    if len(named) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    named.append(name)
    rename(path, name)
c.rename = kill
sys.exit(c.main(sys.argv[2:]))
"""


@needs_sigkill
@pytest.mark.parametrize("named", [0, 1, 2])
def test_shards_get_the_rest_of_their_names(sharded, tiny, tmp_path, capsys, named):
    out, more = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    arguments = command(tiny, out, *more)
    done = subprocess.run(
        [sys.executable, "-c", NAMES, str(named), *arguments], check=False, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    shards = sorted(tmp_path.glob("o-*.safetensors"))
    assert len(shards) == named
    if named:
        assert c.main(arguments) == 1
        there = ", ".join(path.name for path in shards)
        told = "its run was killed while naming shards; --resume names the rest"
        assert capsys.readouterr().err == f"error: {there}: {told}\n"
    assert c.main([*arguments, "--resume"]) == 0
    assert "231 of 231 tensors were there already" in capsys.readouterr().out
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in sharded.parent.iterdir()}


@needs_sigkill
def test_a_shard_that_changed_since_is_an_older_one(tiny, tmp_path, capsys):
    out, more = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    arguments = command(tiny, out, *more, "--resume")
    subprocess.run([sys.executable, "-c", NAMES, "1", *arguments], check=False, cwd=ROOT)
    (shard,) = tmp_path.glob("o-*.safetensors")
    os.utime(shard, (0, 0))
    assert c.main(arguments) == 1
    assert f"{shard.name}: exists; delete it, or old and new" in capsys.readouterr().err


@needs_sigkill
def test_what_a_run_of_other_shards_left_is_told(tiny, tmp_path, capsys):
    out, shards = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    arguments = [sys.executable, "-c", NAMES, "1", *command(tiny, out, *shards)]
    subprocess.run(arguments, check=False, cwd=ROOT)
    left = {path.name for path in tmp_path.iterdir()} - {"o.safetensors.partial.journal"}
    assert len(left) > 3
    assert c.main(command(tiny, out)) == 0
    told = re.search(
        r"note: (.*) of an earlier run are still there; delete them", capsys.readouterr().out
    )
    assert set(told[1].replace(" and ", ", ").split(", ")[:2]) < left
    assert {path.name for path in tmp_path.iterdir()} == left | {"o.safetensors"}


@needs_sigkill
def test_a_complete_output_is_not_left_by_a_killed_run(tiny, tmp_path, capsys):
    out, shards = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    out.write_bytes(b"older")
    killed(tiny, out)
    assert c.main(command(tiny, out, *shards)) == 0
    told = "note: o.safetensors.partial of an earlier run are still there; delete them\n"
    assert told in capsys.readouterr().out
    assert out.read_bytes() == b"older"


@needs_sigkill
def test_a_kill_once_all_shards_are_named_is_made_good(tiny, sharded, tmp_path):
    out, shards = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    arguments = command(tiny, out, *shards)
    killed_late = NAMES.replace("c.rename = kill", "c.sync_folder = lambda _: kill(0, 0)")
    subprocess.run([sys.executable, "-c", killed_late, "0", *arguments], check=False, cwd=ROOT)
    assert len(list(tmp_path.glob("*.index.json"))) == 1
    assert c.main([*arguments, "--resume"]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in sharded.parent.iterdir()}


def test_shards_of_scaled_fp8_have_one_marker(tiny, tmp_path):
    arguments = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    arguments += ["--recipe", "scaled-fp8", "--output-sharded", "--max-shard-size", "5MB"]
    assert c.main([*arguments, "--quiet"]) == 0
    index = json.loads((tmp_path / "o.safetensors.index.json").read_text())["weight_map"]
    assert sum(name == "scaled_fp8" for name in index) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("4GiB", 4 << 30), ("1.5 mb", 1500000), ("7", 7), ("2T", 2 * 10**12)],
)
def test_sizes(text, size):
    assert c.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 XB", "0", "1e9", "5iB"])
def test_what_is_no_size(text, capsys):
    with pytest.raises(SystemExit) as stop:
        c.parse_options(["a", "o.safetensors", "--output-sharded", "--max-shard-size", text])
    assert stop.value.code == 2
    assert "is no size like 5GB" in capsys.readouterr().err


# Several processes


def test_two_ranks_write_the_same_file(tiny, converted, tmp_path):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    process = torchrun(*command(tiny, out, "--report", str(report)))
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.read_bytes() == converted.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out, report]
    assert text.count("\n  NVFP4 ") == 1
    rows = json.loads(report.read_text())["tensors"]
    assert sum("relative_rmse" in row for row in rows) == 40


def test_work_is_dealt_evenly_and_once(tiny):
    options = c.parse_options(command(tiny, "o.safetensors"))
    model = c.open_model(tiny)
    plans, _ = c.make_plans(options, model, c.read_guides(options, model))
    for size in (1, 2, 3, 4):
        shares = [c.share_of(plans, c.Ranks(rank, size)) for rank in range(size)]
        dealt = [plan.ref.name for share in shares for plan in share]
        assert sorted(dealt) == sorted(plan.ref.name for plan in plans)
        loads = [sum(plan.ref.nbytes for plan in share) for share in shares]
        assert max(loads) < 1.3 * min(loads)


def test_an_error_in_one_rank_ends_all_of_them(tmp_path):
    weights = {f"x.{i}.weight": torch.randn(256, 256) for i in range(8)}
    weights["x.5.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "m.safetensors")
    (tmp_path / "o.safetensors").write_bytes(b"older")
    arguments = [str(tmp_path / name) for name in ("m.safetensors", "o.safetensors")]
    process = torchrun(*arguments, "--include", "x", "--quiet")
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert text == ""
    assert errors.count("x.5.weight holds NaN or Inf: the file is damaged") == 1
    assert (tmp_path / "o.safetensors").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 2


@needs_sigkill
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_fails_the_run_and_another_run_goes_on(tiny, converted, tmp_path, rank):
    out, script = tmp_path / "o.safetensors", tmp_path / "kill.py"
    script.write_text(KILL.replace("if name ==", f'if os.environ["RANK"] == "{rank}" and name =='))
    options, model = c.parse_options(command(tiny, out, "--resume")), c.open_model(tiny)
    plans, _ = c.make_plans(options, model, c.read_guides(options, model))
    at = [plan.ref.name for plan in c.share_of(plans, c.Ranks(rank, 2)) if plan.is_quantised][-2]
    more = {"env": os.environ | {"PYTHONPATH": str(ROOT)}}
    process = torchrun(at, *command(tiny, out, "--resume"), script=str(script), **more)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert not out.exists()
    noted = [line for path in tmp_path.glob("*.journal*") for line in path.open()]
    assert sum('"tensor"' in line for line in noted) > 20
    assert c.main(command(tiny, out, "--resume")) == 0
    assert out.read_bytes() == converted.read_bytes()
    assert sorted(tmp_path.iterdir()) == [script, out]


EARLY = {  # what makes each script import torch or numpy
    "convert_nvfp4": ("m.safetensors", "o.safetensors"),
    "compare_models": ("a.safetensors", "b.safetensors"),
    "analyze_input_scale_log": ("--input", "calls.tsv"),
}


@needs_sigkill
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
@pytest.mark.parametrize("program", EARLY)
def test_an_impatient_ctrl_c_leaves_no_traceback(tmp_path, program, before):
    """While torch is imported; it counts for nothing where the shell had it ignored."""
    early = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)"
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text(early)
    done = subprocess.run(
        [sys.executable, f"{program}.py", *EARLY[program]],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
    )
    assert done.stdout + done.stderr == b""
    assert done.returncode == (7 if before is signal.SIG_IGN else -signal.SIGINT)


@needs_sigkill
def test_sigterm_cleans_up(tmp_path):
    save_file({"x.weight": torch.randn(8192, 4096)}, tmp_path / "m.safetensors")
    arguments = [str(tmp_path / name) for name in ("m.safetensors", "o.safetensors")]
    process = subprocess.Popen(
        [sys.executable, "convert_nvfp4.py", *arguments, "--include", "x", "--quiet"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "o.safetensors.partial").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_two_ranks_give_up_a_plan_together(tmp_path):
    """A value that float16 cannot hold shows in one rank only; all go on with the changed plan."""
    tensors = {f"x.{i}.weight": torch.randn(64, 64) for i in range(4)} | {"big": torch.tensor(1e5)}
    save_file(tensors, tmp_path / "m.safetensors")
    one, two = (str(tmp_path / name) for name in ("1.safetensors", "2.safetensors"))
    more = ["--include", "x", "--dtype", "float16", "--quiet"]
    assert c.main([str(tmp_path / "m.safetensors"), one, *more]) == 0
    process = torchrun(str(tmp_path / "m.safetensors"), two, *more)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3
