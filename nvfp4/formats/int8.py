"""Read INT8: 8-bit integers with one scale or a scale for every row, as they are or rotated.

The layout is that of comfy_kitchen's TensorWiseINT8Layout, which ComfyUI calls int8_tensorwise.
LightX2V and vLLM store the same without a configuration, and never rotated.
"""

from __future__ import annotations

import torch

from nvfp4.formats.base import Parts
from nvfp4.formats.scaled import Scaled
from nvfp4.model import TensorRef
from nvfp4.numeric.rotation import unrotate


class Int8(Scaled):
    """Describe I8 weights [N, K] beside a `weight_scale` F32 [] or [N, 1].

    A row of this class is for one size of the groups of columns that were rotated (ConvRot); 0 is
    for weights that were not.
    """

    config = "int8_tensorwise"
    is_configured = True
    weight_dtype = "I8"
    scale_suffix = "weight_scale"
    unconfigured = "integers"
    runs_unscaled = "8-bit weights times 8-bit activations, whose scales are measured by rows"

    def __init__(self, group: int) -> None:
        """Enter the row of one group size."""
        self.rotated = group
        self.title = f"INT8 rotated by {group}" if group else "INT8"
        super().__init__()

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scales of a weight [N, K], as it is with scales of rows."""
        return {"weight": (self.weight_dtype, shape), "weight_scale": ("F32", (shape[0], 1))}

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is INT8 of this rotation, by its tensors and configuration.

        A layer without a configuration is taken as not rotated.
        """
        named = config.get("format", self.config) == self.config
        return named and rotated_group(config) == self.rotated and super().holds(weight, parts, {})

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: as for all scaled ones, and rotated in whole groups.

        Only the columns of a matrix are rotated.
        """
        weight = parts["weight"].shape
        if self.rotated and (len(weight) != 2 or weight[1] % self.rotated):
            return f"its weight {list(weight)} has no whole groups of {self.rotated} columns"
        return super().undecodable(parts, shape)

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply codes int8 [n, K] by their scales, and rotate them back: float32 [n, K].

        comfy_kitchen.dequantize_int8_convrot_weight gives the same but for float32's rounding.
        """
        values = super().decode(*parts_and_scale)
        return unrotate(values, self.rotated) if self.rotated else values


def rotated_group(config: dict) -> int:
    """Tell from a layer's configuration how many columns were rotated together; 0 for none.

    Returns -1 where the configuration names no such number. ComfyUI takes entries of the
    configuration before those of its `params`, and 256 without any (comfy/ops.py).
    """
    params = config.get("params")
    both = {**(params if isinstance(params, dict) else {}), **config}
    group = both.get("convrot_groupsize", 256)
    if not both.get("convrot", False):
        return 0
    return group if isinstance(group, int) and group > 0 else -1


# The rotation is by Hadamard matrices whose sizes are powers of four; comfy_kitchen takes 256.
INT8_ROWS = tuple(Int8(group) for group in (0, *(4**power for power in range(1, 7))))
