"""Read FP8 of every dtype, with one scale, scales by rows or by blocks, as other programs store it.

`AnyFp8` is what all FP8 formats share: how stored weights are decoded. Its rows here are only read,
never written; `fp8` and `scaled_fp8` are what this program writes, `plain_fp8` is without a scale.
"""

from __future__ import annotations

import math

import torch

from nvfp4.dtypes import SCALE_FLOATS
from nvfp4.formats.base import Format, Parts
from nvfp4.model import TensorRef
from nvfp4.numeric.float8 import block_shape, decode_float8, multiply_blocks, scales_by_rows


class AnyFp8(Format):
    """Decode weights of 8-bit floats of any shape by the scale or the scales beside them."""

    rank = 8
    is_configured = False
    unconfigured = "unread scale"
    weight_bits = activation_bits = 8
    is_adopted = is_decoded = True
    runs_full_precision = "FP8 weights, scaled and multiplied in 16-bit"

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
        """Multiply codes of 8-bit floats [n, ...] by their scales: float32 of the same shape.

        Between codes and scale may be scales of blocks, float32 [n, blocks of K]. With one scale,
        comfy_kitchen.dequantize_per_tensor_fp8 gives the same in float32.
        """
        codes, *blocks, scale = parts_and_scale
        values = decode_float8(codes)
        if not blocks:
            return values.mul_(scale)
        return multiply_blocks(values.view(len(values), -1), blocks[0] * scale).view(codes.shape)


class ForeignFp8(AnyFp8):
    """Describe FP8 of one dtype beside a scale of one name; despite some names all multiply."""

    runs_full_precision = "FP8 weights whose scale ComfyUI does not read"

    def __init__(self, dtype: str, scale_suffix: str, config: str = "") -> None:
        """Enter a row: dtype as safetensors has it, config where ComfyUI knows the format."""
        kind = dtype.replace("F8_", "FP8 ").removesuffix(" E4M3")
        self.title = kind if scale_suffix == "weight_scale" else f"{kind}, {scale_suffix}"
        self.weight_dtype, self.scale_suffix, self.config = dtype, scale_suffix, config
        self.is_configured = bool(config)
        super().__init__()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """List the suffixes of weight and scale: such formats may have no name in ComfyUI."""
        return (*self.parts((1, 1)), "input_scale")

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scale of a weight [N, K], as it is with one scale."""
        return {"weight": (self.weight_dtype, shape), self.scale_suffix: ("F32", ())}


# DeepSeek calls it weight_scale_inv, though a weight is multiplied by it, as by all the others.
INVERSE = "weight_scale_inv"
FOREIGN_ROWS = (
    ForeignFp8("F8_E4M3", INVERSE),
    ForeignFp8("F8_E5M2", "weight_scale", config="float8_e5m2"),
    *(ForeignFp8("F8_E5M2", suffix) for suffix in ("scale_weight", INVERSE)),
    *(
        ForeignFp8(dtype, suffix)
        for dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ")
        for suffix in ("weight_scale", "scale_weight", INVERSE)
    ),
)
