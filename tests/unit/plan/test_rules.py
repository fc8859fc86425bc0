"""Which precision a tensor gets: each rule on its own."""

import gguf
import pytest
import torch
from make_wan import write_gguf

from nvfp4.errors import ConvertError
from nvfp4.formats.base import format_titled
from nvfp4.formats.floats import HALF, KEPT
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.int8 import INT8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.formats.w4a8 import W4A8
from nvfp4.model import PREFIXES
from support.plans import BLOCK, plan_of, weight


def test_exclude_goes_before_include(tmp_path):
    plans, _ = plan_of(tmp_path, BLOCK, "--include", "", "--exclude", r"FFN\.2$")
    assert plans["blocks.0.ffn.2.weight"].precision is HALF
    assert plans["blocks.0.ffn.2.weight"].reason.text == r"--exclude FFN\.2$"
    assert plans["blocks.0.ffn.0.weight"].precision is NVFP4


# Versions before INT8 chose from these.
OLDER = ("--formats", "nvfp4,fp8,16bit")
PLAIN_INT8 = format_titled("INT8 not rotated")


@pytest.mark.parametrize(("formats", "eight"), [((), PLAIN_INT8), (OLDER, FP8)])
def test_minimums_raise_and_say_what_they_raised(tmp_path, formats, eight):
    minimums = ("--min-ffn-fp8", "--min-ffn2-fp16", *formats)
    plans, _ = plan_of(tmp_path, BLOCK, "--include", ".", *minimums)
    assert plans["blocks.0.ffn.0.weight"].precision is eight
    shape = "not rotated: columns % 256 != 0 (else {})" if eight is PLAIN_INT8 else "{}"
    reason = shape.format("--min-ffn-fp8 (else --include .)")
    assert str(plans["blocks.0.ffn.0.weight"].reason) == reason
    assert plans["blocks.0.ffn.2.weight"].precision is HALF
    assert plans["blocks.0.self_attn.v.weight"].precision is NVFP4


@pytest.mark.parametrize(
    ("rows", "columns", "bias", "precision"),
    [
        (32, 64, True, NVFP4), (32, 48, False, PLAIN_INT8), (24, 64, True, PLAIN_INT8),
        (24, 64, False, NVFP4), (24, 256, True, INT8),
    ],
)  # fmt: skip
def test_shapes_that_blackwell_cannot_multiply_in_fp4_have_8_bits(
    tmp_path, rows, columns, bias, precision
):
    tensors = {"blocks.1.x.weight": weight(rows, columns)}
    if bias:
        tensors["blocks.1.x.bias"] = torch.ones(rows)
    plans, _ = plan_of(tmp_path, tensors | BLOCK, "--include", ".")
    assert plans["blocks.1.x.weight"].precision is precision
    plans, _ = plan_of(tmp_path, tensors | BLOCK, "--include", ".", *OLDER)
    older = NVFP4 if precision is NVFP4 else FP8
    assert plans["blocks.1.x.weight"].precision is older
    # No 8-bit format is allowed: 16-bit is.
    plans, _ = plan_of(tmp_path, tensors | BLOCK, "--include", ".", "--formats", "nvfp4")
    assert plans["blocks.1.x.weight"].precision is (NVFP4 if precision is NVFP4 else HALF)


def test_wans_first_ffn_is_not_padded(tmp_path):
    tensors = BLOCK | {"blocks.0.ffn.0.weight": weight(24, 256)}
    for formats, precision in (((), INT8), (OLDER, FP8), (("--formats", "w4a8,16bit"), W4A8)):
        plans, _ = plan_of(tmp_path, tensors, "--include", ".", *formats)
        assert plans["blocks.0.ffn.0.weight"].precision is precision


@pytest.mark.parametrize(
    "layer",
    [
        "head.head",
        "img_in",
        "txt_in",
        "vector_in.in_layer",
        "cap_embedder.1",
        "x_embedder.proj.1",
        "txt_in.input_embedder",
        "label_emb.0.0",
        "input_blocks.7.1.transformer_blocks.0.attn2.to_k",
        "core.pixel_blocks.13.adaLN_modulation.0",
    ],
)
@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_layers_that_comfyui_recognises_a_model_by_are_never_packed(tmp_path, layer, prefix):
    tensors = {f"{prefix}{layer}.weight": weight(), f"{prefix}other.weight": weight()}
    plans, _ = plan_of(tmp_path, tensors, "--include", ".")
    assert plans[f"{prefix}{layer}.weight"].precision is HALF
    assert "by its shape" in str(plans[f"{prefix}{layer}.weight"].reason)
    assert plans[f"{prefix}other.weight"].precision is NVFP4


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
    kept = {name for name, plan in plans.items() if plan.precision is KEPT}
    assert kept == {
        "blocks.0.ffn.0.bias",
        "blocks.0.modulation",
        "ids",
        "__index_timestep_zero__",
        "double",
    }
    assert plans["patch_embedding.weight"].dtype == "F16"
    assert plans["half"].dtype == "F16"


def test_what_the_gguf_lacks_is_named(tmp_path):
    tensors = BLOCK | {"blocks.0.modulation": torch.ones(1, 6, 32)}
    shapes = {"blocks.0.ffn.0.weight": (32, 64)}
    write_gguf(tmp_path / "m.gguf", shapes, lambda *_: gguf.GGMLQuantizationType.Q4_0)
    guide = ["--gguf", str(tmp_path / "m.gguf"), "--partial-guide"]
    plans, notes = plan_of(tmp_path, tensors, *guide)
    assert plans["blocks.0.modulation"].reason.text == "not in the GGUF"
    assert [*notes] == [
        "--partial-guide: 33 % of the linear weights' bytes follow m.gguf",
        "3 tensors not in the GGUF stay 16-bit: "
        "blocks.0.ffn.2.weight, blocks.0.modulation, blocks.0.self_attn.v.weight",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--include", "nope"], "--include nope: matches no linear layer of the source, which has"),
        (["--include", ".", "--exclude", "nope"], "--exclude nope: matches no linear layer"),
        (["--include", ".", "--full-precision-mm-pattern", "nope"], "-pattern nope: matches no"),
        (["--include", ".", "--full-precision-mm-cross-attn-kv"], "cross-attn-kv: matches no"),
        (["--include", ".", "--exclude", "."], "no layer would be quantised"),
    ],
)
def test_what_matches_nothing_is_an_error(tmp_path, arguments, message):
    with pytest.raises(ConvertError) as caught:
        plan_of(tmp_path, BLOCK, *arguments)
    assert message in str(caught.value)
