"""Read the formats of 4-bit integers that ComfyUI multiplies in and this program never writes.

ConvRot W4A4 is rotated and has a scale for every row; AWQ has a scale and a zero point for every 64
columns. The layouts are those of comfy_kitchen's TensorCoreConvRotW4A4Layout and
TensorCoreAWQW4A16Layout. Layers of a source are kept as they are.
"""

from __future__ import annotations

import torch

from nvfp4.dtypes import SOURCE_FLOATS, VIEWED
from nvfp4.formats.base import Format, Parts
from nvfp4.formats.int8 import rotated_group
from nvfp4.formats.reading import rotates
from nvfp4.model import TensorRef
from nvfp4.numeric.rotation import rotate
from nvfp4.numeric.w4a8 import unpack_w4a8

# Columns that share a scale and a zero point in AWQ's layout.
AWQ_GROUP = 64


class Int4(Format):
    """Describe weights [N, K] of two codes a byte, I8 [N, K/2], the even column in the low bits."""

    rank = weight_bits = 4
    weight_dtype = "I8"
    scale_suffix = "weight_scale"
    unconfigured = "integers"
    takes_mark = False
    is_adopted = True

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is configured as this format, and has all of its tensors."""
        has_parts = weight.dtype in VIEWED and self.parts((1, 1)).keys() <= parts.keys()
        return has_parts and self.is_meant_by(config)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K] of codes [N, K/2]."""
        return stored[0], stored[1] * 2

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: each tensor has to have its shape."""
        weight = parts["weight"].shape
        if len(weight) != 2 or 0 in weight:
            return f"its weight is {list(weight)}"
        for suffix, (_, expected) in self.parts(shape).items():
            ref = parts[suffix]
            fits = ref.shape == expected or self.accepts(suffix, ref, expected)
            if not fits or (suffix != "weight" and ref.dtype not in SOURCE_FLOATS):
                return f"its {suffix} is {ref.dtype} {list(ref.shape)}"
        return ""


class ConvRotInt4(Int4):
    """Describe signed codes, -8 to 7, of weights whose columns were rotated in groups.

    A row of this class is for one size of the groups; `weight_scale` is F32 [N].
    """

    config = "convrot_w4a4"
    since = "0.28"
    activation_bits = 4
    runs_unscaled = (
        "4-bit integers times 4-bit activations, rotated, whose scales are measured by rows"
    )

    def __init__(self, group: int) -> None:
        """Enter the row of one group size."""
        self.rotated = group
        self.title = "ConvRot INT4" if group == 256 else f"ConvRot INT4 by {group}"
        super().__init__()

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scales of a weight [N, K]."""
        return {
            "weight": (self.weight_dtype, (shape[0], shape[1] // 2)),
            "weight_scale": ("F32", (shape[0],)),
        }

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of this format with this size of groups."""
        group = rotated_group({**config, "convrot": True})
        return super().is_meant_by(config) and group == self.rotated

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell whether comfy_kitchen has the rotation that a configuration asks for."""
        return rotates(config, parts["weight"].shape[-1] * 2)

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that comfy_kitchen takes scales [N, 1] for [N]."""
        return suffix == "weight_scale" and ref.dtype == "F32" and ref.shape == (*expected, 1)

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded; its columns have to be whole groups."""
        if len(shape) == 2 and shape[1] % self.rotated:
            return f"its {shape[1]} columns are no whole groups of {self.rotated}"
        return super().undecodable(parts, shape)

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give codes int8 [N, K/2] and scales float32 [N, 1], as `decode` takes them; a scale 1."""
        scales = tensors["weight_scale"].float().reshape(-1, 1)
        return [tensors["weight"].view(torch.int8), scales], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply signed codes by their row's scale, and rotate them back: float32 [n, K]."""
        codes, rows, scale = parts_and_scale
        return rotate(nibbles(codes, signed=True).float() * (rows * scale), self.rotated)


class AwqInt4(Int4):
    """Describe codes 0 to 15 that stand for (code - 8) * scale + zero.

    `weight_scale` and `weight_zeros` are 16-bit floats [K/64, N]. They are never quantised here:
    AWQ chooses them by activations.
    """

    title, config, since = "AWQ INT4", "awq_w4a16", "0.37"
    runs_unscaled = "4-bit integers with zero points, multiplied in 16-bit"

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes, scales and zero points of a weight [N, K]."""
        groups = ("BF16", (shape[1] // AWQ_GROUP, shape[0]))
        weight = (self.weight_dtype, (shape[0], shape[1] // 2))
        return {"weight": weight, "weight_scale": groups, "weight_zeros": groups}

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of AWQ in groups of 64."""
        return super().is_meant_by(config) and config.get("group_size", AWQ_GROUP) == AWQ_GROUP

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that ComfyUI takes scales and zero points in any float that a model may have."""
        return suffix != "weight" and ref.dtype in SOURCE_FLOATS and ref.shape == expected

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give codes int8 [N, K/2], scales and zero points float32 [N, K/64], and a scale of 1."""
        by_rows = (
            tensors[name].float().t().contiguous() for name in ("weight_scale", "weight_zeros")
        )
        return [tensors["weight"].view(torch.int8), *by_rows], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Decode codes by scales and zero points of their groups: float32 [n, K]."""
        codes, scales, zeros, scale = parts_and_scale
        grouped = nibbles(codes, signed=False).unflatten(1, (-1, AWQ_GROUP)).float() - 8
        return (grouped * scales[..., None] + zeros[..., None]).flatten(1) * scale


def nibbles(codes: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Unpack int8 [n, K/2] to int8 [n, K], the even column from the low four bits."""
    both = unpack_w4a8(codes, codes.shape[1] * 2).to(torch.int8)
    return both - ((both & 8) << 1) if signed else both


# The rotation is by Hadamard matrices whose sizes are powers of four; comfy_kitchen takes 256.
INT4_ROWS = (*(ConvRotInt4(4**power) for power in range(2, 7)), AwqInt4())
