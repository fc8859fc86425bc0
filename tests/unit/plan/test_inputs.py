"""How a layer takes its input: input scale and full-precision matmul."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.formats.fp8 import FP8
from nvfp4.guides.recording import read_recording
from nvfp4.options import FULL_PRECISION_OPTIONS
from nvfp4.reasons import Why
from support.plans import ALL, BLOCK, plan_of, plans_of, weight

# What has to have 8 bits is FP8, as it was before INT8.
FP8_TOO = (*ALL, "--formats", "nvfp4,fp8,16bit")


def test_file_goes_before_summary_before_value(tmp_path):
    save_file(
        {
            "blocks.0.ffn.0.weight": torch.zeros(32, 32, dtype=torch.uint8),
            "blocks.0.ffn.0.input_scale": torch.tensor(0.25),
        },
        tmp_path / "ref.safetensors",
    )
    rows = [
        {"layer": f"blocks.0.{layer}", "scale_p50": 0.5, "amax_p50": 1344.0}
        for layer in ("ffn.0", "ffn.2")
    ]
    (tmp_path / "s.json").write_text(json.dumps({"layers": rows}))
    plans, _ = plan_of(
        tmp_path,
        BLOCK,
        *("--include", ".", "--input-scale-value", "2", "--input-scale-summary-percentile", "50"),
        *("--input-scale-summary-json", str(tmp_path / "s.json")),
        *("--input-scale-from", str(tmp_path / "ref.safetensors")),
    )
    scales = {name: (plan.input_scale, plan.input_scale_source) for name, plan in plans.items()}
    assert scales == {
        "blocks.0.ffn.0.weight": (0.25, "ref.safetensors"),
        "blocks.0.ffn.2.weight": (0.5, "summary p50 x 1"),
        "blocks.0.self_attn.v.weight": (2.0, "--input-scale-value"),
    }


def test_an_fp8_layer_has_an_input_scale_or_full_precision(tmp_path):
    fp8 = {"blocks.0.x.weight": weight(32, 48)}
    plans, notes = plan_of(tmp_path, fp8, *FP8_TOO)
    assert plans["blocks.0.x.weight"].config["full_precision_matrix_mult"] is True
    shaped = "1 layer is FP8 for its shape: blocks.0.x"
    lacking = "1 FP8 layer has no input scale and gets full-precision matmul: blocks.0.x"
    assert [*notes] == [lacking, shaped]
    plans, notes = plan_of(tmp_path, fp8, *FP8_TOO, "--input-scale-value", "0.01")
    assert plans["blocks.0.x.weight"].config == {"format": "float8_e4m3fn"}
    assert plans["blocks.0.x.weight"].input_scale == pytest.approx(0.06)
    assert [*notes] == [shaped]


def test_an_fp8_layer_whose_row_has_no_amax_runs_in_full_precision(tmp_path):
    (tmp_path / "s.json").write_text('{"layers": [{"layer": "blocks.0.x", "scale_p99_9": 1}]}')
    summary = ("--input-scale-summary-json", str(tmp_path / "s.json"))
    tensors = BLOCK | {"blocks.0.x.weight": weight(32, 48)}
    plans, notes = plan_of(tmp_path, tensors, *FP8_TOO, *summary)
    assert plans["blocks.0.x.weight"].full_precision.kind is Why.NO_INPUT_SCALE
    assert plans["blocks.0.x.weight"].input_scale is None
    assert any(note.startswith("1 FP8 layer has no input scale") for note in notes)


@pytest.mark.parametrize("value", ["1e300", "1e-60"])
def test_an_input_scale_that_float32_cannot_hold_is_an_error(tmp_path, value):
    with pytest.raises(ConvertError, match="is no positive float32"):
        plan_of(tmp_path, BLOCK, "--include", ".", "--input-scale-value", value)


def test_w4a4_layers_without_a_row_stay_dynamic_and_are_counted(tmp_path):
    row = {"layer": "blocks.0.ffn.0", "scale_p99_9": 0.5}
    (tmp_path / "s.json").write_text(json.dumps({"layers": [row]}))
    summary = ("--input-scale-summary-json", str(tmp_path / "s.json"))
    plans, notes = plan_of(tmp_path, BLOCK, *ALL, *summary)
    assert plans["blocks.0.ffn.2.weight"].input_scale is None
    assert [*notes] == [
        "2 W4A4 layers have no calibration row and stay dynamic: "
        "blocks.0.ffn.2, blocks.0.self_attn.v"
    ]


def test_a_layer_list_marks_its_layers_and_counts_the_rest(tmp_path):
    (tmp_path / "l.txt").write_text("blocks.0.ffn.0\nblocks.0.ffn.9 # gone\n")
    listed = ("--full-precision-mm-layers", str(tmp_path / "l.txt"))
    plans, notes = plan_of(tmp_path, BLOCK, *ALL, *listed)
    marked = {name: str(plan.full_precision) for name, plan in plans.items() if plan.full_precision}
    assert marked == {"blocks.0.ffn.0.weight": "l.txt"}
    assert [*notes] == ["l.txt: 1 name matches nothing: blocks.0.ffn.9"]


ATTENTION = [f"blocks.0.{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in "qkvo"]


LAYERS = [*ATTENTION, "blocks.0.cross_attn.k_img", "blocks.0.ffn.0", "blocks.0.ffn.2"]


SHORTHANDS = {
    "--full-precision-mm": LAYERS,
    "--full-precision-mm-cross-attn-kv": [
        "blocks.0.cross_attn.k",
        "blocks.0.cross_attn.v",
        "blocks.0.cross_attn.k_img",
    ],
    "--full-precision-mm-cross-attn-qkvo": [layer for layer in LAYERS if "cross" in layer],
    "--full-precision-mm-self-attn-qkvo": [layer for layer in LAYERS if "self" in layer],
    "--full-precision-mm-ffn-up": ["blocks.0.ffn.0"],
    "--full-precision-mm-ffn-down": ["blocks.0.ffn.2"],
    "--full-precision-mm-pattern=ffn": ["blocks.0.ffn.0", "blocks.0.ffn.2"],
}


@pytest.mark.parametrize("option", SHORTHANDS)
def test_full_precision_options_name_their_layers(tmp_path, option):
    tensors = {f"{layer}.weight": weight() for layer in LAYERS}
    plans, _ = plan_of(tmp_path, tensors, "--include", ".", option)
    assert {p.ref.layer for p in plans.values() if p.full_precision} == set(SHORTHANDS[option])


def test_every_full_precision_shorthand_is_tested():
    assert FULL_PRECISION_OPTIONS.keys() <= SHORTHANDS.keys()


def test_headroom_scales_every_quantised_layer(tiny, recording):
    plans, _ = plans_of(
        tiny, "--activation-stats", str(recording), "--input-scale-policy", "headroom"
    )
    figures = read_recording(recording)
    quantised = [plan for plan in plans.values() if plan.is_quantised]
    assert {plan.precision.name for plan in quantised} == {"NVFP4", "FP8"}
    for plan in quantised:
        row, fp8 = figures[plan.ref.layer], plan.precision is FP8
        assert plan.input_scale >= row.amax / (448 if fp8 else 2688)
        assert not plan.full_precision
        assert plan.saturated_blocks == (None if fp8 else 0.0)
