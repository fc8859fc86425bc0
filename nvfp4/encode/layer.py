"""A planned layer to its stored tensors, by least error of the weight."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial

import torch

from nvfp4.encode.compute import Compute, Encoded
from nvfp4.encode.pieces import Piece, cast
from nvfp4.encode.rounding import round_by_moments
from nvfp4.errors import ConvertError
from nvfp4.formats import BLOCK_SIZE, E4M3_MAX, NVFP4_MAX, Precision
from nvfp4.layout import stored_tensors
from nvfp4.model import bare
from nvfp4.numeric.codes import (
    LEAST_FLOAT32,
    amax_block_scales,
    decode_fp8,
    decode_nvfp4,
    encode_fp8,
    encode_nvfp4,
    fp8_scale,
    has_many_subnormals,
    largest_magnitude,
    nvfp4_global_scale,
    swizzle,
)
from nvfp4.numeric.damage import Damage, measure
from nvfp4.numeric.scale_search import LEAST_SEARCHED_SCALE, OTHER_LARGEST_SCALES
from nvfp4.plan.records import TensorPlan
from nvfp4.read.tensors import load_weight


def quantise(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute
) -> tuple[dict[str, list[torch.Tensor]], Damage]:
    """The stored tensors of one NVFP4 or FP8 layer, and the error of what they decode to."""
    weight = weight.to(compute.device)
    if plan.smoothing is not None:
        weight = weight.to(compute.dtype).float() / plan.smoothing.to(compute.device).float()
    best, bias = search_scales(plan, weight, compute), None
    if plan.moments:
        best, bias = round_by_moments(plan, weight, best, compute)
    stored = store(plan, best)
    if plan.bias:
        whole = Piece(plan=plan.bias, begin=0, end=plan.bias.ref.nbytes)
        stored[plan.bias.ref.name] = [
            cast(whole, load_weight(plan.bias.ref)) if bias is None else bias
        ]
    return stored, best.damage


def search_scales(plan: TensorPlan, weight: torch.Tensor, compute: Compute) -> Encoded:
    """The layer with the least squared error of its weight."""
    dtype = compute.dtype
    amax = torch.stack(compute.map(lambda rows: largest_magnitude(rows.to(dtype)), weight)).amax()
    if not amax.isfinite():
        as_cast = "" if dtype is torch.float32 else f" (as {dtype}, the --quant-dtype)"
        raise ConvertError(
            f"{plan.ref.path}: {plan.ref.name} holds NaN or Inf{as_cast}: the file is damaged, or "
            f"leave the layer 16-bit with --exclude '^{re.escape(bare(plan.ref.layer))}$'"
        )
    if plan.precision is Precision.FP8:
        plain = measured(lambda rows, scale: (encode_fp8(rows, scale),), decode_fp8, dtype)
        encode = compute.kernels.encode_fp8 if compute.kernels else plain
        # with it, FP8 codes of the source come back as they were
        stored = None if plan.ref.patches else plan.ref.scale
        scale = fp8_scale(amax) if stored is None else torch.tensor(stored)
        return encode_layer(weight, scale.to(amax), encode, compute)
    scale, search = nvfp4_global_scale(amax), compute.search
    if search is not amax_block_scales and scale < LEAST_SEARCHED_SCALE:
        search = amax_block_scales
        compute.notes.append(f"{plan.ref.layer}: too small weights for the scale search")
    encode = measured(partial(encode_nvfp4, block_scales=search), decode_nvfp4, dtype)
    if compute.kernels:
        encode = partial(compute.kernels.encode_nvfp4, block_scales=search)
    best = encode_layer(weight, scale, encode, compute)
    if search is not amax_block_scales:
        best = try_other_global_scales(weight, best, encode, compute)
    if 0 < amax <= NVFP4_MAX * LEAST_FLOAT32 / 2:  # all is lost, and its squares are 0, too
        best = dataclasses.replace(best, damage=Damage(error=1.0, energy=1.0))
    return best


def try_other_global_scales(
    weight: torch.Tensor, best: Encoded, encode: Callable, compute: Compute
) -> Encoded:
    """The encoding with the least error in all, where block scales run out of E4M3's precision."""
    if has_many_subnormals(best.block_scale):
        plain = best.scale
        for largest in OTHER_LARGEST_SCALES:
            other = encode_layer(weight, plain * (E4M3_MAX / largest), encode, compute)
            best = min(best, other, key=lambda encoded: encoded.damage.error)
    return best


def measured(encode: Callable, decode: Callable, dtype: torch.dtype) -> Callable:
    """(rows, scale) -> their parts, encoded from `dtype`, and the error of what those decode to."""

    def encode_rows(rows: torch.Tensor, scale: torch.Tensor) -> tuple:
        parts = encode(rows.to(dtype), scale)
        # In units of the scale, as the squares of huge and tiny weights leave float32's range.
        return *parts, measure(rows.float() / scale, decode(*parts, torch.ones_like(scale)))

    return encode_rows


def encode_layer(
    weight: torch.Tensor, scale: torch.Tensor, encode: Callable, compute: Compute
) -> Encoded:
    """All rows at one scale, by what `measured` returns or a compiled encoder."""
    made = compute.map(lambda rows: encode(rows, scale), weight)
    codes, *scales, damages = zip(*made, strict=True)
    return Encoded(
        codes=codes,
        block_scale=torch.cat(*scales) if scales else None,
        scale=scale,
        damage=Damage.total(damages, scale),
    )


def store(plan: TensorPlan, encoded: Encoded) -> dict[str, list[torch.Tensor]]:
    """{key: its rows in pieces} of a quantised layer, in the order of `stored_tensors`."""
    parts = [[*encoded.codes], [encoded.scale]]
    if plan.precision is Precision.NVFP4:
        columns, missing = encoded.codes[0].shape[1], -plan.ref.shape[0] % BLOCK_SIZE
        padding = torch.zeros(missing, columns, dtype=torch.uint8)
        parts = [[*encoded.codes, padding], [swizzle(encoded.block_scale)], [encoded.scale]]
    if plan.input_scale is not None:
        parts.append([torch.tensor(plan.input_scale, dtype=torch.float32)])
    if plan.smoothing is not None:
        parts.append([plan.smoothing])
    if not plan.legacy:
        parts.append([torch.frombuffer(bytearray(plan.config_bytes), dtype=torch.uint8)])
    return dict(zip(stored_tensors(plan), parts, strict=True))
