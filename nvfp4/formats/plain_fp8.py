"""Read plain FP8: weights cast to 8-bit floats without any scale.

Such files come from other tools. Their layers are decoded or compared; a conversion never writes
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nvfp4.formats.base import layer_parts, marker_names
from nvfp4.formats.scaled import Scaled

# Scales with these words in their names are of a layer's input, or of nothing that is stored.
NO_WEIGHT_SCALE = re.compile(r"input|(^|_)act|pre_quant|scale_shift")


class PlainFp8(Scaled):
    """Describe weights of 8-bit floats that stand for themselves; ComfyUI casts them to 16 bits.

    A layer is taken for it where its weight is of the row's dtype, and no other format finds a
    scale beside it.
    """

    # ComfyUI loads such weights without a configuration, so that nothing is missing.
    unconfigured = ""
    activation_bits = 16
    runs_full_precision = "FP8 weights without a scale, cast to 16-bit"

    def __init__(self, dtype: str) -> None:
        """Enter the row of one safetensors dtype."""
        self.title = "plain " + dtype.replace("F8_", "FP8 ").removesuffix(" E4M3")
        self.weight_dtype = dtype
        super().__init__()


PLAIN_FP8 = {
    dtype: PlainFp8(dtype) for dtype in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
}


def unread_scales(names: Iterable[str]) -> dict[str, str]:
    """Find what may be a weight's scale by its name, but is one of no format: {tensor: scale}.

    names: of a file's tensors. Scales of a layer's input, and smoothing, say nothing of its weight.
    """
    found, known = {}, {*layer_parts(), *marker_names()}
    for name in names:
        layer, _, suffix = name.rpartition(".")
        if "scale" in suffix and suffix not in known and not NO_WEIGHT_SCALE.search(suffix):
            # The scale of `experts.down_proj` is `experts.down_proj_scale`, or `.down_proj.scale`.
            stem = f"{layer}.{suffix}".rpartition("scale")[0].rstrip("._")
            found |= {f"{layer}.weight": name, layer: name, stem: name}
    return found
