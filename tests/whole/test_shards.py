"""An output of several files, and what a kill between their names leaves."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file

import convert_nvfp4 as c
from support.conversions import convert_tiny
from support.files import OLDER
from support.kills import NAMES, command, killed, needs_sigkill, run_killed

pytestmark = pytest.mark.slow


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


def test_every_shard_tells_of_its_own_layers(sharded, capsys):
    for path in sharded.parent.glob("o-*.safetensors"):
        tensors, metadata = c.read_header(path)
        packed = {name[:-12] for name in tensors if name.endswith(".comfy_quant")}
        assert packed == set(c.header_layers(metadata))
        assert json.loads(metadata["convert_nvfp4"])["plan"]["NVFP4"] == 28
        assert c.main(["--verify", str(path), "--quiet"]) == 1
        assert "is one shard of several" in capsys.readouterr().err


def test_shards_are_verified_against_their_source(sharded, tiny, capsys):
    index = sharded.with_name("o.safetensors.index.json")
    assert c.main(["--verify", str(index), "--source", str(tiny), "--quiet"]) == 0
    text = capsys.readouterr().out
    verdict = "no defect found: whole, but in 5 shards, and ComfyUI takes one file"
    assert text.startswith(f"verdict   {verdict}\n")
    assert "layers    28 NVFP4, 12 FP8\n" in text
    assert "take one file, not shards" in text


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


@needs_sigkill
@pytest.mark.parametrize("named", [0, 1, 2])
def test_shards_get_the_rest_of_their_names(sharded, tiny, tmp_path, capsys, named):
    out, more = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    arguments = command(tiny, out, *more)
    run_killed(NAMES, str(named), *arguments)
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
    run_killed(NAMES, "1", *arguments)
    (shard,) = tmp_path.glob("o-*.safetensors")
    os.utime(shard, (0, 0))
    assert c.main(arguments) == 1
    assert f"{shard.name}: exists; delete it, or old and new" in capsys.readouterr().err


@needs_sigkill
def test_what_a_run_of_other_shards_left_is_told(tiny, tmp_path, capsys):
    out, shards = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    run_killed(NAMES, "1", *command(tiny, out, *shards))
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
    out.write_bytes(OLDER)
    killed(tiny, out)
    assert c.main(command(tiny, out, *shards)) == 0
    told = "note: o.safetensors.partial of an earlier run are still there; delete them\n"
    assert told in capsys.readouterr().out
    assert out.read_bytes() == OLDER


@needs_sigkill
def test_a_kill_once_all_shards_are_named_is_made_good(tiny, sharded, tmp_path):
    out, shards = tmp_path / "o.safetensors", ["--output-sharded", "--max-shard-size", "3MB"]
    arguments = command(tiny, out, *shards)
    killed_late = NAMES.replace("c.rename = kill", "c.sync_folder = lambda _: kill(0, 0)")
    run_killed(killed_late, "0", *arguments)
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
