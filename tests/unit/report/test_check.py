"""What is told of whole files in shards, by --verify, by comparisons and by their conversion."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.compare.entry import compare_models


@pytest.fixture
def shards(tmp_path):
    """A 16-bit model in two shards, with its index."""
    names = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        layer = f"blocks.{number - 1}.x.weight"
        save_file({layer: torch.ones(64, 64, dtype=torch.bfloat16)}, tmp_path / name)
        names[layer] = name
    index = {"metadata": {}, "weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return tmp_path


def test_a_whole_model_in_shards_is_nothing_that_comfyui_loads(shards, capsys):
    assert main(["--verify", str(shards), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "verdict   no defect found: nothing is quantised; whole, but in 2 shards, and ComfyUI "
        "takes one file\n"
    )


def test_an_index_is_no_shard(shards, capsys):
    compare_models([str(shards)])
    assert " is whole, but in 2 shards, which ComfyUI does not load" in capsys.readouterr().out


def test_a_folder_that_is_missing_is_told_once(shards, capsys):
    out, report = shards / "o.safetensors", shards / "no" / "r.html"
    given = [str(shards), str(out), "--preset", "all", "--quiet", "--report", str(report)]
    for more in ([], ["--dry-run"]):
        assert main([*given, *more]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "no such folder; create it first" in line


def test_input_scales_are_offered_and_not_asked_for(shards, capsys):
    """Nearly every first conversion has this hint."""
    given = [str(shards), str(shards / "o.safetensors"), "--preset", "all", "--quiet", "--dry-run"]
    told = "one more pass over the input; calibration would store it (docs/calibration.md)"
    assert main(given) == 0
    assert told in capsys.readouterr().out
    assert main([*given, "--no-input-scale"]) == 0
    assert told not in capsys.readouterr().out
