"""What --target-size may choose from, and sizes that leave nothing to choose."""

import functools
import re

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.parse import parse_options
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.guides.read import read_guides
from nvfp4.notes import Rank
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.source.read import read_source
from nvfp4.tune.target_size import list_candidates, slow_notes
from support.activations import correlated
from support.recorder import recorder

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
    planner = functools.partial(make_plans, model=model, guides=read_guides(options, model))
    start = {plan.ref.name: plan for plan in planner(options).plans}
    for plans in list_candidates(options, planner, start).values():
        assert {str(plan.precision) for plan in plans} == found


def blocks(folder, count=8, columns=512):
    """Save random blocks of two layers each, which no family has, and name the file."""
    made = torch.Generator().manual_seed(1)
    shapes = {f"blocks.{i}.{name}.weight": (512, columns) for i in range(count) for name in "xy"}
    shapes["mixer.weight"] = (512, columns)
    tensors = {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}
    save_file({n: t.to(torch.bfloat16) for n, t in tensors.items()}, folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--target-size 3.5MB --preset smart", "; add --edge-blocks 0, which allows "),
        ("--target-size 3.5MB --preset smart --exclude 3.x", "; add --edge-blocks 0, which "),
        ("--target-size 2.7MB --preset smart", "; add --edge-blocks 0 --preset all, which allows "),
        ("--target-size 2.7MB --preset smart --edge-blocks 0", "; add --preset all, which allows "),
        ("--target-size 1MB --preset smart", "; the least to ask for is --target-size "),
        ("--target-size 1MB --preset all", "; the least to ask for is --target-size "),
        ("--target-ratio 0.1 --preset smart", "; the least to ask for is --target-ratio "),
        ("--target-size 3MB --preset smart --card turing", "; the least to ask for is "),
        ("--target-size 1MB --preset all --exclude 3.x", "; without --exclude it may be less"),
    ],
)
def test_a_refused_size_tells_what_to_type_and_that_is_accepted(tmp_path, given, told):
    words = [str(blocks(tmp_path)), str(tmp_path / "o.safetensors"), "--quiet", "--dry-run"]
    with pytest.raises(ConvertError, match="is too little: the smallest") as found:
        convert(parse_options([*words, *given.split()]))
    assert told in str(found.value)
    added = re.search("(?:add|is) ((?:--[a-z-]+ [a-z0-9.MB]+ ?)+)", str(found.value))[1].split()
    given = given.split()
    wanted = dict(zip(given[::2], given[1::2], strict=True))
    wanted |= dict(zip(added[::2], added[1::2], strict=True))
    more = [word for pair in wanted.items() for word in pair]
    assert convert(parse_options([*words, *more])).sizes


def test_layers_that_a_size_makes_slow_are_noted():
    card = Options(source="s.safetensors", output="o.safetensors", card="ada")
    (note,) = slow_notes(card, 0.5, 0.62)
    assert note.startswith("62 % of the multiply work is at 16-bit speed on ada, where the preset")
    assert note.rank is Rank.HINT
    assert slow_notes(card, 0.5, 0.5) == slow_notes(card, 0.5, 0.4) == []
    assert slow_notes(Options(source="s.safetensors", output="o.safetensors"), 0.5, 0.6) == []


def conversions(tmp_path, weights, **given):
    """Yield what both interfaces make of random weights {name: shape}, in Python first."""
    made = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=made) for name, shape in weights.items()}
    save_file(tensors, tmp_path / "m.safetensors")
    task = {"source": tmp_path / "m.safetensors", "output": tmp_path / "o.safetensors"}
    yield lambda: convert(Options(**task, quiet=True, **given))
    words = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--quiet"]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        words += [*value] if isinstance(value, frozenset) else [flag, str(value)]
    yield lambda: convert(parse_options(words))


def recorded(tmp_path, weights):
    """A recording with second moments of all layers of weights {name: shape}."""
    made = recorder.Recording(tmp_path, "stats")
    layers = {name.removesuffix(".weight"): shape[1] for name, shape in weights.items()}
    made.begin({}, 4096, layers)
    for index, (layer, columns) in enumerate(layers.items()):
        made.observe(layer, correlated(columns, 256, index))
    made.save()
    return tmp_path / "stats.safetensors"


def test_what_stands_in_for_w4a8_makes_no_file_larger_than_asked(tmp_path):
    weights = {f"blocks.{i}.x.weight": (256, 320) for i in range(6)}
    weights |= {f"blocks.{i}.y.weight": (256, 256) for i in range(6)}
    given = {"preset": "all", "w4a4_share": 0.05, "sensitive_as": "w4a8"}
    given |= {"activation_stats": recorded(tmp_path, weights), "target_ratio": 0.3}
    for run in conversions(tmp_path, weights, **given, include=r"blocks\.[01]"):
        report = run()
        assert report.output_bytes <= 0.3 * 4 * 6 * 256 * (320 + 256)
        assert {
            str(p.precision) for p in report.plans if p.ref.layer in ("blocks.0.x", "blocks.0.y")
        } == {"W4A8", "INT8 not rotated"}
    for run in conversions(tmp_path, weights, **given | {"target_ratio": 0.18}):
        with pytest.raises(ConvertError, match="is too little: the smallest that this plan"):
            run()


def test_a_size_is_reached_with_the_formats_that_may_be_chosen(tmp_path):
    weights = {f"blocks.{i}.x.weight": (256, 320) for i in range(6)}
    weights |= {f"blocks.{i}.y.weight": (256, 256) for i in range(6)}
    given = {"preset": "all", "formats": "nvfp4,w4a8,16bit", "target_ratio": 0.25}
    for run in conversions(tmp_path, weights, **given):
        report = run()
        assert {str(plan.precision) for plan in report.plans} <= {"NVFP4", "W4A8", "16-bit"}
        told = "layers cannot be W4A8 for their shape, and --formats leaves nothing to stand in: "
        assert any(told in note for note in report.notes)


def test_named_layers_keep_16_bit_activations(tmp_path):
    """--target-size gives them formats that can be marked, or 16 bits."""
    weights = {f"blocks.{i}.self_attn.q.weight": (256, 256) for i in range(4)}
    weights |= {f"blocks.{i}.ffn.0.weight": (256, 256) for i in range(8)}
    given = {"preset": "all", "target_ratio": 0.24, "full_precision_mm_pattern": "self_attn"}
    for run in conversions(tmp_path, weights, **given):
        report = run()
        named = [plan for plan in report.plans if "self_attn" in plan.ref.name]
        assert all(plan.full_precision or not plan.is_quantised for plan in named)
        assert any(plan.is_quantised for plan in named)
        assert {str(p.precision) for p in report.plans if "ffn" in p.ref.name} & {"W4A8", "INT8"}
    for run in conversions(tmp_path, weights, **given, sensitive_as="w4a8"):
        named = [plan for plan in run().plans if "self_attn" in plan.ref.name]
        assert {str(plan.precision) for plan in named} <= {"W4A8", "INT8", "16-bit"}


def test_layers_of_at_least_8_bits_are_int8(tmp_path):
    weights = {f"blocks.{i}.ffn.0.weight": (256, 256) for i in range(4)}
    weights |= {f"blocks.{i}.self_attn.q.weight": (256, 256) for i in range(4)}
    given = {"preset": "all", "target_ratio": 0.24, "minimums": frozenset({"--min-ffn-fp8"})}
    for run in conversions(tmp_path, weights, **given):
        plans = run().plans
        assert {str(p.precision) for p in plans if "ffn" in p.ref.name} <= {"INT8", "16-bit"}
        assert any(str(plan.precision) == "INT8" for plan in plans)


def test_the_most_work_that_can_be_w4a4_is_not_rounded_up(tmp_path):
    weights = {f"blocks.{i}.x.weight": (512, 512) for i in range(8)} | {"odd.weight": (32, 72)}
    for run in conversions(tmp_path, weights, preset="all", target_ratio=0.24, fp4_share=1):
        with pytest.raises(ConvertError, match=r"--fp4-share 1: at most 99\.8 % of the multiply "):
            run()
