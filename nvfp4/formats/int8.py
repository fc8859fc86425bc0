"""Store weights as INT8: 8-bit integers with a scale for every row, rotated or as they are.

The layout is that of comfy_kitchen's TensorWiseINT8Layout, which ComfyUI calls int8_tensorwise.
LightX2V and vLLM store the same without a configuration, never rotated, and with one scale.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from nvfp4.cards import COMFYUI_SINCE
from nvfp4.dtypes import VIEWED
from nvfp4.formats.base import Parts
from nvfp4.formats.encoding import Encoded, Encoder, Given, encode_by_rows
from nvfp4.formats.reading import Misreading, configured_options
from nvfp4.formats.scaled import Scaled, bad_scales
from nvfp4.model import TensorRef
from nvfp4.numeric.codes import INTEGERS, amax_block_scales
from nvfp4.numeric.feedback import Feedback, Rounded, levels_in_order
from nvfp4.numeric.grids import Grid
from nvfp4.numeric.int8 import amax_row_scales, mse_row_scales, quantise_int8, quantised_int8_rows
from nvfp4.numeric.rotation import WRITTEN_GROUP, rotate

# comfy_kitchen's CUDA kernels refuse other numbers of columns (seen on an H200); rows are any.
INT8_MATMUL_K = 4


class Int8(Scaled):
    """Store a weight [N, K] as I8 [N, K] and a `weight_scale` F32 [N, 1]; one may have [].

    A row of this class is for one size of the groups of columns that were rotated (ConvRot); 0 is
    for weights that were not. Groups of 256 are written, and 0 where K has no whole groups; others
    are only read. ComfyUI rotates the input, too, and measures a scale for each of its rows.
    """

    config = "int8_tensorwise"
    is_configured = True
    weight_dtype = "I8"
    scale_suffix = "weight_scale"
    unconfigured = "integers"
    since = COMFYUI_SINCE["int8"]
    kernel = "int8"
    takes_mark = False
    encodes_rows = True
    grid = Grid(INTEGERS)
    # The first that is known to look up rows of INT8 (ComfyUI#15035).
    embedding_since = "0.29"
    runs_unscaled = "8-bit weights times 8-bit activations, whose scales are measured by rows"

    def __init__(self, group: int) -> None:
        """Enter the row of one group size."""
        self.rotated = group
        self.title = f"INT8 rotated by {group}" if group else "INT8 not rotated"
        self.name = "" if group else "INT8_PLAIN"
        # Without a rotation, large weights make their rows coarse: 0.009 where all are normal
        # numbers, 0.02 to 0.04 where some are far larger.
        self.usual_error = 0.009 if group else 0.02
        self.column_multiple, self.stand_in = group or INT8_MATMUL_K, "16-bit"
        if group == WRITTEN_GROUP:
            self.name = self.title = "INT8"
            self.option, self.stand_in = "int8", "INT8 not rotated"
        super().__init__()

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """Make the configuration, which tells how many columns were rotated together."""
        rotation = {"convrot": True, "convrot_groupsize": self.rotated} if self.rotated else {}
        return {"format": self.config, **rotation}

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scales of a weight [N, K], as it is with scales of rows."""
        return {"weight": (self.weight_dtype, shape), "weight_scale": ("F32", (shape[0], 1))}

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is INT8 of this rotation, by its tensors and configuration.

        A layer without a configuration is taken as not rotated.
        """
        # ComfyUI takes the bits of U8 for those of I8; only a configuration tells that they are.
        dtypes = VIEWED if config else (self.weight_dtype,)
        has_parts = weight.dtype in dtypes and self.scale_suffix in parts
        return has_parts and self.is_meant_by({"format": self.config, **config})

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of INT8 with this rotation."""
        return super().is_meant_by(config) and rotated_group(config) == self.rotated

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell that no layer is loaded whose rotation there is not, as rows have all there are."""
        return False

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that ComfyUI takes one F32 scale for all rows as well."""
        return suffix == "weight_scale" and ref.dtype == "F32" and math.prod(ref.shape) == 1

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: as for all scaled ones, and rotated in whole groups.

        Only the columns of a matrix are rotated.
        """
        weight = parts["weight"].shape
        if self.rotated and (len(weight) != 2 or weight[1] % self.rotated):
            return f"its weight {list(weight)} has no whole groups of {self.rotated} columns"
        return super().undecodable(parts, shape)

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K]: codes int8 [n, K] in chunks, and row scales float32 [N, 1].

        Row scales are those of least squared error. With `--scale-search amax` and float32 the
        bytes are those of comfy_kitchen's layout, but for ties that the last bit of a rotation
        decides.
        """
        is_searched = encoder.search is not amax_block_scales
        row_scales = mse_row_scales if is_searched else amax_row_scales
        quantise = partial(quantise_int8, group=self.rotated, row_scales=row_scales)
        compiled = encoder.kernels and partial(
            encoder.kernels.encode_int8, rotated=self.rotated > 0, row_scales=row_scales
        )
        return encode_by_rows(given, quantise, self.decode, encoder, compiled)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`: codes int8 in chunks of rows, and the row scales."""
        return {"weight": [*encoded.codes], "weight_scale": [encoded.by_rows[0]]}

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply codes int8 [n, K] by their scales, and rotate them back: float32 [n, K].

        comfy_kitchen.dequantize_int8_convrot_weight gives the same but for float32's rounding.
        """
        codes, *scales = parts_and_scale
        values = super().decode(codes.view(torch.int8), *scales)
        return rotate(values, self.rotated) if self.rotated else values

    def row_units(self, *by_rows: torch.Tensor) -> torch.Tensor:
        """Return the scales of the rows, float32 [n, 1]."""
        return by_rows[0]

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Cast rounded levels to codes int8 [n, K]; the rows keep their scales."""
        return [levels_in_order(rounded, feedback).to(torch.int8), *by_rows]

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find row scales that are no positive numbers."""
        return bad_scales({"weight_scale": scales["weight_scale"]})

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """Give the same parts with the rotation undone, or applied where none is configured."""
        told = (
            "not rotated, but configured so" if self.rotated else "rotated, but not configured so"
        )
        group = self.rotated or WRITTEN_GROUP
        if len(parts[0].shape) != 2 or parts[0].shape[1] % group:
            return {}
        return {told: Misreading(parts, lambda *stored: rotate(self.decode(*stored), group))}

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K], each with a scale of its own."""
        return quantised_int8_rows(rows, self.rotated)


def rotated_group(config: dict) -> int:
    """Tell from a layer's configuration how many columns were rotated together; 0 for none.

    Returns -1 where the configuration names no such number; ComfyUI takes 256 without any.
    """
    is_rotated, group = configured_options(config, convrot=False, convrot_groupsize=WRITTEN_GROUP)
    if not is_rotated:
        return 0
    return group if isinstance(group, int) and group > 0 else -1


# The rotation is by Hadamard matrices whose sizes are powers of four; comfy_kitchen takes 256.
INT8_GROUPS = (WRITTEN_GROUP, 0, *(4**power for power in range(1, 7) if power != 4))
INT8_ROWS = tuple(map(Int8, INT8_GROUPS))
INT8 = INT8_ROWS[0]
