"""Decode weights of one byte by the scale, or the scales of rows or blocks, that lie beside them.

Programs store FP8 and INT8 alike: codes, and one float or a grid of them. `Scaled` is what all such
formats share, those that this program writes as well as those of `foreign_fp8`, `plain_fp8` and
`int8`, which are only read.
"""

from __future__ import annotations

import math

import torch

from nvfp4.dtypes import SCALE_FLOATS
from nvfp4.formats.base import Format
from nvfp4.model import TensorRef
from nvfp4.numeric.float8 import block_shape, decode_byte, multiply_blocks, scales_by_rows


def bad_scales(scales: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Find scales that are no positive, finite numbers: keys of DEFECTS with details.

    scales: {suffix: floats of any shape}.
    """
    wrong = {suffix: ~((found > 0) & found.isfinite()) for suffix, found in scales.items()}
    return [("bad scale", suffix) for suffix, bad in wrong.items() if bad.any()]


class Scaled(Format):
    """Decode weights of any shape whose codes take a byte each."""

    rank = 8
    is_configured = False
    unconfigured = "unread scale"
    weight_bits = activation_bits = 8
    is_adopted = is_decoded = True
    runs_full_precision = "FP8 weights, scaled and multiplied in 16-bit"

    @property
    def kind(self) -> str:
        """Name it FP8, or INT8, whatever its scales are."""
        return "INT8" if self.weight_dtype == "I8" else "FP8"

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a stored weight of any number of dimensions cannot be decoded, or return "".

        Its scale has to be one float, or a grid of them that `block_shape` takes.
        """
        scale, weight = parts.get(self.scale_suffix), parts["weight"]
        if 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        fits = scale is None or scale.dtype in SCALE_FLOATS
        if fits and (scale is None or block_shape(weight.shape, scale.shape)):
            return ""
        return f"its scale is {scale.dtype} {list(scale.shape)} for a weight {list(weight.shape)}"

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring codes and scales of a stored weight into the form that `decode` takes.

        Several scales become float32 [N, blocks of K] beside the codes, and the one scale is 1.
        """
        weight, scale = tensors["weight"], tensors.get(self.scale_suffix)
        if scale is None or math.prod(scale.shape) == 1:
            return super().unpack(tensors)
        return [weight, scales_by_rows(scale, tuple(weight.shape))], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply codes [n, ...] by their scales: float32 of the same shape.

        Between codes and scale may be scales of blocks, float32 [n, blocks of K]. With one scale,
        comfy_kitchen.dequantize_per_tensor_fp8 gives the same in float32.
        """
        codes, *blocks, scale = parts_and_scale
        values = decode_byte(codes)
        if not blocks:
            return values.mul_(scale)
        return multiply_blocks(values.view(len(values), -1), blocks[0] * scale).view(codes.shape)
