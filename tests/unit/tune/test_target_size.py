"""What --target-size may choose from, and sizes that leave nothing to choose."""

import functools

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.guides.read import read_guides
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.source.read import read_source
from nvfp4.tune.target_size import list_candidates, slow_notes

NOTHING = " leaves nothing to choose: with every open layer unquantised, m.safetensors (0.52 MB) "


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"target_size": "8GB"}, f"--target-size: 8.00 GB (8,000,000,000 bytes){NOTHING}becomes "),
        ({"target_size": 300_000}, f"--target-size: 0.30 MB (300,000 bytes){NOTHING}becomes 0.27 "),
        (
            {"target_ratio": 0.9},
            f"--target-ratio 0.9: 0.47 MB (471,859 bytes){NOTHING}becomes 0.27",
        ),
        (
            {"target_size": "2kB"},
            "2,000 bytes is too little: the smallest that this plan allows is ",
        ),
        ({"target_size": "2kB", "preset": "smart"}, "2,000 bytes is too little: the smallest that"),
        (
            {"target_size": "2kB", "include": "8", "preset": "none"},
            "2,000 bytes is too little: the",
        ),
        (
            {"target_size": "1GB", "include": "8", "preset": "none"},
            ": no layer is left: other opti",
        ),
        ({"target_size": "1GB", "exclude": "0"}, f"{NOTHING}becomes 0.2"),
    ],
    ids=str,
)
def test_a_size_out_of_reach_is_told_before_any_weight_is_read(tmp_path, dtype, wanted, told):
    """Reading a weight would find the NaN in it."""
    weights = {f"blocks.{i}.8.weight": torch.full((128, 128), torch.nan) for i in range(8)}
    save_file(weights, tmp_path / "m.safetensors")
    task = {"source": tmp_path / "m.safetensors", "output": tmp_path / "o.safetensors"}
    task |= {"preset": "all", "dtype": dtype, "quiet": True} | wanted
    with pytest.raises(ConvertError) as found:
        convert(Options(**task))
    assert told in str(found.value)
    del task[next(name for name in task if "target" in name)]
    if task["preset"] == "all":
        with pytest.raises(ConvertError, match=r"holds NaN"):
            convert(Options(**task, target_size=150_000))


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, {"NVFP4", "W4A8", "INT8", "16-bit"}),
        ({"sensitive_as": "w4a16"}, {"NVFP4", "W4A8", "INT8", "FP8", "16-bit"}),
        ({"formats": "nvfp4,fp8,16bit"}, {"NVFP4", "FP8", "16-bit"}),
        ({"formats": "w4a8,fp8"}, {"W4A8", "FP8"}),
        ({"input_scale_value": 0.1}, {"NVFP4", "W4A8", "INT8", "FP8", "16-bit"}),
    ],
    ids=str,
)
def test_8_bits_at_16_bit_speed_are_for_where_nothing_else_has_8_bits(tmp_path, more, found):
    """FP8 without an input scale is decoded for every call, where INT8 is multiplied as it is."""
    weights = {f"blocks.{i}.8.weight": torch.ones(256, 256) for i in range(8)}
    save_file(weights, tmp_path / "m.safetensors")
    task = {"source": tmp_path / "m.safetensors", "output": tmp_path / "o.safetensors"}
    options = Options(**task, preset="all", target_size=200_000, **more)
    model = read_source(options).model
    planner = functools.partial(make_plans, options, model, read_guides(options, model))
    start = {plan.ref.name: plan for plan in planner().plans}
    for plans in list_candidates(options, planner, start).values():
        assert {str(plan.precision) for plan in plans} == found


def test_layers_that_a_size_makes_slow_are_noted():
    card = Options(source="s.safetensors", output="o.safetensors", card="ada")
    (note,) = slow_notes(card, 0.5, 0.62)
    assert note.startswith("62 % of the multiply work is at 16-bit speed, where the preset alone")
    assert slow_notes(card, 0.5, 0.5) == slow_notes(card, 0.5, 0.4) == []
    assert slow_notes(Options(source="s.safetensors", output="o.safetensors"), 0.5, 0.6) == []
