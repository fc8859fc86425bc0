"""Files with INT8, W4A8, W6A8, MXFP8 and ConvRot INT4 layers, sound and with one defect each.

Cases are like those of `broken`, and break one layer of a file that `sound_integers` makes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nvfp4.encode.compute import Compute
from nvfp4.formats.base import format_titled
from nvfp4.formats.encoding import Given
from nvfp4.numeric.codes import decode_fp8, largest_magnitude
from support.broken import Stored
from support.kitchen import kitchen_layout

CASES: dict[str, tuple[str, Callable]] = {}
# Titles of the formats, each of which one layer of the file has.
TITLES = ("INT8", "INT8 not rotated", "W4A8", "W6A8", "MXFP8", "ConvRot INT4")


def case(defect: str) -> Callable:
    def add(change: Callable) -> Callable:
        CASES[change.__name__] = (defect, change)
        return change

    return add


class Integers(Stored):
    """A sound file in memory: the layer of each format, in the order of the blocks."""

    def __init__(self, path: Path):
        super().__init__(path)
        stored = json.loads(self.metadata["integers"])
        self.int8, self.plain, self.w4a8, self.w6a8, self.mxfp8, self.convrot = stored

    def set(self, layer: str, **options: object) -> None:
        """Change the configuration of a layer."""
        self.configure(layer, self.layers[layer] | options)


def encoded(weight: torch.Tensor, title: str) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a weight [N, K] in a format, by suffix, and its configuration."""
    if title == "ConvRot INT4":
        codes, params = kitchen_layout("TensorCoreConvRotW4A4Layout").quantize(weight)
        return {"weight": codes, "weight_scale": params.scale}, {"format": "convrot_w4a4"}
    form = format_titled(title)
    with Compute(torch.device("cpu"), threads=1) as compute:
        made = form.encode(Given("layer", weight, largest_magnitude(weight)), compute)
    packed = form.pack(made, tuple(weight.shape))
    tensors = {k: torch.cat(p) if len(p) > 1 else p[0] for k, p in packed.items()}
    if title == "MXFP8":
        if not hasattr(torch, "float8_e8m0fnu"):
            pytest.skip("this torch has no dtype for the scales of MXFP8")
        tensors["weight_scale"] = tensors["weight_scale"].view(torch.float8_e8m0fnu)
    # On a CPU, ComfyUI multiplies MXFP8 in full precision alone.
    return tensors, form.configuration(full_precision=title == "MXFP8")


def sound_integers(converted: Path, path: Path) -> Path:
    """A conversion with FP8 layers, of which one becomes each of TITLES."""
    file, chosen = Stored(converted), []
    for title, layer in zip(TITLES, file.fp8s, strict=False):
        weight = decode_fp8(file.get("weight", layer), file.get("weight_scale", layer))
        tensors, config = encoded(weight, title)
        for suffix in ("weight_scale", "input_scale"):
            file.drop(suffix, layer)
        for suffix, tensor in tensors.items():
            file.put(suffix, tensor, layer)
        file.configure(layer, config)
        chosen.append(layer)
    file.metadata["integers"] = json.dumps(chosen)
    return file.save(path)


def write_integers(name: str, sound: Path, path: Path) -> Path:
    file = Integers(sound)
    CASES[name][1](file)
    return file.save(path)


@case("no scale")
def int8_without_scales(file):
    file.drop("weight_scale", file.int8)


@case("no scale")
def w4a8_without_group_scales(file):
    file.drop("weight_s_rel", file.w4a8)


@case("no scale")
def w4a8_without_row_scales(file):
    file.drop("weight_s_channel", file.w4a8)


@case("no scale")
def mxfp8_without_scales(file):
    file.drop("weight_scale", file.mxfp8)


@case("no scale")
def convrot_without_scales(file):
    file.drop("weight_scale", file.convrot)


@case("float16 scale")
def int8_scales_in_float16(file):
    file.put("weight_scale", file.get("weight_scale", file.int8).half(), file.int8)


@case("dtype")
def w4a8_group_scales_in_float16(file):
    file.put("weight_s_rel", file.get("weight_s_rel", file.w4a8).half(), file.w4a8)


@case("dtype")
def w4a8_row_scales_in_bfloat16(file):
    file.put("weight_s_channel", file.get("weight_s_channel", file.w4a8).bfloat16(), file.w4a8)


@case("flat scales")
def int8_scales_in_one_row(file):
    file.put("weight_scale", file.get("weight_scale", file.int8).flatten(), file.int8)


@case("shape")
def int8_scales_of_half_the_rows(file):
    file.put("weight_scale", file.get("weight_scale", file.int8)[::2], file.int8)


@case("shape")
def w4a8_group_scales_of_32_columns(file):
    file.put("weight_s_rel", file.get("weight_s_rel", file.w4a8)[:, ::2], file.w4a8)


@case("shape")
def w4a8_codebook_of_8(file):
    file.put("weight_codebook", file.get("weight_codebook", file.w4a8)[::2], file.w4a8)


@case("no codebook")
def w4a8_without_its_codebook(file):
    file.drop("weight_codebook", file.w4a8)


@case("extra codebook")
def w6a8_with_a_codebook(file):
    file.put("weight_codebook", file.get("weight_codebook", file.w4a8).clone(), file.w6a8)


@case("same bits")
def int8_codes_as_unsigned_bytes(file):
    file.put("weight", file.get("weight", file.int8).view(torch.uint8), file.int8)


@case("same bits")
def w4a8_group_scales_as_bytes(file):
    scales = file.get("weight_s_rel", file.w4a8)
    file.put("weight_s_rel", scales.view(torch.uint8), file.w4a8)


@case("weight dtype")
def int8_weight_in_bfloat16(file):
    file.put("weight", file.get("weight", file.int8).bfloat16() * 0.7, file.int8)


@case("bad scale")
def an_int8_scale_not_a_number(file):
    file.get("weight_scale", file.int8)[3] = torch.nan


@case("bad scale")
def a_group_scale_not_a_number(file):
    file.get("weight_s_rel", file.w4a8).view(torch.uint8)[5, 2] = 0x7F


@case("bad scale")
def a_row_scale_infinite(file):
    file.get("weight_s_channel", file.w6a8)[7] = torch.inf


@case("bad scale")
def an_mxfp8_scale_not_a_number(file):
    file.get("weight_scale", file.mxfp8).view(torch.uint8)[0, 0] = 255


@case("groups")
def int8_in_groups_larger_than_its_columns(file):
    file.set(file.int8, convrot_groupsize=1024)


@case("groups")
def int8_in_groups_that_no_matrix_rotates(file):
    file.set(file.int8, convrot_groupsize=128)


@case("groups")
def w4a8_in_groups_that_its_scales_do_not_have(file):
    file.set(file.w4a8, group_size=32)


@case("groups")
def w6a8_in_a_rotation_larger_than_its_columns(file):
    file.set(file.w6a8, convrot_groupsize=1024)


@case("idle")
def int8_marked_for_full_precision(file):
    file.set(file.int8, full_precision_matrix_mult=True)


@case("idle")
def w4a8_with_an_input_scale(file):
    file.put("input_scale", torch.tensor(0.01), file.w4a8)


@case("smoothed")
def int8_divided_by_a_smoothing(file):
    file.put("pre_quant_scale", torch.full((256,), 2.0).bfloat16(), file.int8)
    file.put("weight_scale", file.get("weight_scale", file.int8) / 2, file.int8)
