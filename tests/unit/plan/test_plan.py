"""Decisions: golden plans of the documented commands, and each rule on its own."""

import json

import gguf
import pytest
import torch
from make_wan import write_gguf
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.files import model_with
from support.make_golden import COMMANDS, golden_texts, planned
from support.paths import GOLDEN

P = c.Precision


@pytest.fixture(scope="module")
def texts():
    return golden_texts()


@pytest.mark.parametrize("name", COMMANDS)
def test_plans_of_the_documented_commands(texts, name):
    """After a change that is meant, run tests/support/make_golden.py and read the difference."""
    assert texts[name] == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "nvfp4", "fp8"), [("wan22_i2v_14b_low", 252, 108), ("wan22_ti2v_5b", 182, 0)]
)
def test_counts_of_the_documented_commands(tmp_path, name, nvfp4, fp8):
    size, arguments = COMMANDS[name]
    plans = planned(size, arguments, tmp_path / "m.gguf").plans
    found = [plan for plan in plans if plan.precision is P.NVFP4]
    assert len(found) == nvfp4
    assert sum(plan.precision is P.FP8 for plan in plans) == fp8
    assert all(plan.input_scale is not None for plan in found)
    assert all(plan.full_precision for plan in plans if plan.precision is P.FP8)


def test_a_baked_scale_is_percentile_times_multiplier(tmp_path):
    size, arguments = COMMANDS["wan22_ti2v_5b"]
    plans = planned(size, arguments, tmp_path / "m.gguf").plans
    rows = json.loads((c.HERE / "calib/scales_summary_wan22_5b.json").read_text())["layers"]
    expected = {row["layer"]: row["scale_p99_9"] * 1.08 for row in rows}
    found = {plan.ref.layer: plan.input_scale for plan in plans if plan.is_quantised}
    assert found == pytest.approx(expected, rel=1e-12)


def plan_of(tmp_path, tensors, *arguments):
    """{name: TensorPlan} of a single-file source with these tensors."""
    source = tmp_path / "m.safetensors"
    save_file(tensors, source)
    options = c.parse_options([str(source), str(tmp_path / "o.safetensors"), *arguments])
    model = c.open_model(source)
    plans, notes = c.make_plans(options, model, c.read_guides(options, model))
    return {plan.ref.name: plan for plan in plans}, notes


ALL = ("--preset", "none", "--include", ".")


def weight(rows=32, columns=64, dtype=torch.float32):
    return torch.ones(rows, columns, dtype=dtype)


BLOCK = {
    "blocks.0.ffn.0.weight": weight(),
    "blocks.0.ffn.2.weight": weight(),
    "blocks.0.self_attn.v.weight": weight(),
}


def test_exclude_goes_before_include(tmp_path):
    plans, _ = plan_of(tmp_path, BLOCK, "--include", "", "--exclude", r"FFN\.2$")
    assert plans["blocks.0.ffn.2.weight"].precision is P.HALF
    assert plans["blocks.0.ffn.2.weight"].reason.text == r"--exclude FFN\.2$"
    assert plans["blocks.0.ffn.0.weight"].precision is P.NVFP4


def test_minimums_raise_and_say_what_they_raised(tmp_path):
    minimums = ("--min-ffn-fp8", "--min-ffn2-fp16")
    plans, _ = plan_of(tmp_path, BLOCK, "--include", ".", *minimums)
    assert plans["blocks.0.ffn.0.weight"].precision is P.FP8
    assert str(plans["blocks.0.ffn.0.weight"].reason) == "--min-ffn-fp8 (else --include .)"
    assert plans["blocks.0.ffn.2.weight"].precision is P.HALF
    assert plans["blocks.0.self_attn.v.weight"].precision is P.NVFP4


@pytest.mark.parametrize(
    ("rows", "columns", "bias", "precision"),
    [
        (32, 64, True, P.NVFP4),
        (32, 48, False, P.FP8),
        (24, 64, True, P.FP8),
        (24, 64, False, P.NVFP4),
    ],
)
def test_shapes_that_blackwell_cannot_multiply_go_to_fp8(tmp_path, rows, columns, bias, precision):
    tensors = {"blocks.1.x.weight": weight(rows, columns)}
    if bias:
        tensors["blocks.1.x.bias"] = torch.ones(rows)
    plans, _ = plan_of(tmp_path, tensors | BLOCK, "--include", ".")
    assert plans["blocks.1.x.weight"].precision is precision


def test_wans_first_ffn_is_not_padded(tmp_path):
    tensors = BLOCK | {"blocks.0.ffn.0.weight": weight(24, 64)}
    plans, _ = plan_of(tmp_path, tensors, "--include", ".")
    assert plans["blocks.0.ffn.0.weight"].precision is P.FP8


@pytest.mark.parametrize(
    "layer",
    [
        "patch_embedding",
        "patch_embedding_pose",
        "head.head",
        "img_in",
        "txt_in",
        "vector_in.in_layer",
        "cap_embedder.1",
        "x_embedder.proj.1",
        "txt_in.input_embedder",
    ],
)
@pytest.mark.parametrize("prefix", ["", *c.PREFIXES])
def test_layers_that_comfyui_recognises_a_model_by_are_never_packed(tmp_path, layer, prefix):
    tensors = {f"{prefix}{layer}.weight": weight(), f"{prefix}other.weight": weight()}
    plans, _ = plan_of(tmp_path, tensors, "--include", ".")
    assert plans[f"{prefix}{layer}.weight"].precision is P.HALF
    assert "by its shape" in str(plans[f"{prefix}{layer}.weight"].reason)
    assert plans[f"{prefix}other.weight"].precision is P.NVFP4


def test_without_a_gguf_small_tensors_keep_the_sources_precision(tmp_path):
    tensors = BLOCK | {
        "blocks.0.ffn.0.bias": torch.ones(32),
        "blocks.0.modulation": torch.ones(1, 6, 32),
        "patch_embedding.weight": torch.ones(32, 4, 1, 2, 2),
        "ids": torch.arange(4),
        "__index_timestep_zero__": torch.empty(0),
        "half": torch.ones(4, 4, 4, dtype=torch.bfloat16),
        "double": torch.ones(4, 4, dtype=torch.float64),
    }
    plans, _ = plan_of(tmp_path, tensors, "--include", "ffn", "--dtype", "float16")
    kept = {name for name, plan in plans.items() if plan.precision is P.KEPT}
    assert kept == {
        "blocks.0.ffn.0.bias",
        "blocks.0.modulation",
        "ids",
        "__index_timestep_zero__",
        "double",
    }
    assert plans["patch_embedding.weight"].dtype == "F16"
    assert plans["half"].dtype == "F16"


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
    plans, notes = plan_of(tmp_path, fp8, *ALL)
    assert plans["blocks.0.x.weight"].config["full_precision_matrix_mult"] is True
    shaped = "1 layers are FP8 for their shape: blocks.0.x"
    lacking = "1 FP8 layers have no input scale and get full-precision matmul: blocks.0.x"
    assert notes == [lacking, shaped]
    plans, notes = plan_of(tmp_path, fp8, *ALL, "--input-scale-value", "0.01")
    assert plans["blocks.0.x.weight"].config == {"format": "float8_e4m3fn"}
    assert plans["blocks.0.x.weight"].input_scale == pytest.approx(0.06)
    assert notes == [shaped]


def test_an_fp8_layer_whose_row_has_no_amax_runs_in_full_precision(tmp_path):
    (tmp_path / "s.json").write_text('{"layers": [{"layer": "blocks.0.x", "scale_p99_9": 1}]}')
    summary = ("--input-scale-summary-json", str(tmp_path / "s.json"))
    tensors = BLOCK | {"blocks.0.x.weight": weight(32, 48)}
    plans, notes = plan_of(tmp_path, tensors, "--include", ".", *summary)
    assert plans["blocks.0.x.weight"].full_precision.kind is c.Why.NO_INPUT_SCALE
    assert plans["blocks.0.x.weight"].input_scale is None
    assert any(note.startswith("1 FP8 layers have no input scale") for note in notes)


@pytest.mark.parametrize("value", ["1e300", "1e-60"])
def test_an_input_scale_that_float32_cannot_hold_is_an_error(tmp_path, value):
    with pytest.raises(c.ConvertError, match="is no positive float32"):
        plan_of(tmp_path, BLOCK, "--include", ".", "--input-scale-value", value)


def test_what_the_gguf_lacks_is_named(tmp_path):
    tensors = BLOCK | {"blocks.0.modulation": torch.ones(1, 6, 32)}
    shapes = {"blocks.0.ffn.0.weight": (32, 64)}
    write_gguf(tmp_path / "m.gguf", shapes, lambda *_: gguf.GGMLQuantizationType.Q4_0)
    plans, notes = plan_of(tmp_path, tensors, "--gguf", str(tmp_path / "m.gguf"))
    assert plans["blocks.0.modulation"].reason.text == "not in the GGUF"
    assert notes == [
        "3 tensors not in the GGUF stay 16-bit: "
        "blocks.0.ffn.2.weight, blocks.0.modulation, blocks.0.self_attn.v.weight"
    ]


def test_w4a4_layers_without_a_row_stay_dynamic_and_are_counted(tmp_path):
    row = {"layer": "blocks.0.ffn.0", "scale_p99_9": 0.5}
    (tmp_path / "s.json").write_text(json.dumps({"layers": [row]}))
    summary = ("--input-scale-summary-json", str(tmp_path / "s.json"))
    plans, notes = plan_of(tmp_path, BLOCK, *ALL, *summary)
    assert plans["blocks.0.ffn.2.weight"].input_scale is None
    assert notes == [
        "2 W4A4 layers have no calibration row and stay dynamic: "
        "blocks.0.ffn.2, blocks.0.self_attn.v"
    ]


def test_a_layer_list_marks_its_layers_and_counts_the_rest(tmp_path):
    (tmp_path / "l.txt").write_text("blocks.0.ffn.0\nblocks.9.ffn.0 # gone\n")
    listed = ("--full-precision-mm-layers", str(tmp_path / "l.txt"))
    plans, notes = plan_of(tmp_path, BLOCK, *ALL, *listed)
    marked = {name: str(plan.full_precision) for name, plan in plans.items() if plan.full_precision}
    assert marked == {"blocks.0.ffn.0.weight": "l.txt"}
    assert notes == ["l.txt: 1 names match nothing: blocks.9.ffn.0"]


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
    assert c.FULL_PRECISION_OPTIONS.keys() <= SHORTHANDS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--include", "nope"], "--include nope: matches no linear layer of the source, which has"),
        (["--include", ".", "--exclude", "nope"], "--exclude nope: matches no linear layer"),
        (["--include", ".", "--full-precision-mm-pattern", "nope"], "-pattern nope: matches no"),
        (["--include", ".", "--full-precision-mm-cross-attn-kv"], "cross-attn-kv: matches no"),
        (["--include", ".", "--exclude", "."], "no layer would become NVFP4 or FP8"),
    ],
)
def test_what_matches_nothing_is_an_error(tmp_path, arguments, message):
    with pytest.raises(c.ConvertError) as caught:
        plan_of(tmp_path, BLOCK, *arguments)
    assert message in str(caught.value)


def test_lists_and_summaries_of_another_model_are_errors(tmp_path):
    (tmp_path / "l.txt").write_text("double_blocks.0.img_mlp.0\n")
    with pytest.raises(c.ConvertError, match=r"l\.txt: names no layer of the source"):
        plan_of(
            tmp_path, BLOCK, "--include", ".", "--full-precision-mm-layers", str(tmp_path / "l.txt")
        )
    (tmp_path / "s.json").write_text('{"layers": [{"layer": "x", "scale_p99_9": 1}]}')
    with pytest.raises(c.ConvertError, match=r"s\.json: is of another model"):
        plan_of(
            tmp_path,
            BLOCK,
            "--include",
            ".",
            "--input-scale-summary-json",
            str(tmp_path / "s.json"),
        )


@pytest.mark.parametrize(
    "name", ["a.comfy_quant", "a.scale_weight", "a.weight_scale_2", "weight_scale_inv"]
)
def test_a_source_that_is_already_quantised_is_refused(tmp_path, name):
    save_file(BLOCK | {name: torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(c.ConvertError, match="is already quantised"):
        c.open_source(tmp_path / "m.safetensors")


def test_edge_blocks_are_the_first_and_last_in_running_order():
    names = [f"double_blocks.{i}.x.weight" for i in range(3)]
    names += [f"single_blocks.{i}.x.weight" for i in range(12)]
    rules = c.edge_block_rules(model_with(names), c.ANY_FAMILY, 2)
    assert sorted(name for rule in rules for name in rule.names) == [
        "double_blocks.0.x.weight",
        "double_blocks.1.x.weight",
        "single_blocks.10.x.weight",
        "single_blocks.11.x.weight",
    ]


def test_edge_blocks_need_blocks():
    with pytest.raises(c.ConvertError, match=r"has no transformer blocks named blocks\.N"):
        c.edge_block_rules(model_with(["head.weight"]), c.ANY_FAMILY, 2)
