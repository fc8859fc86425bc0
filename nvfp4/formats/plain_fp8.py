"""Read plain FP8: weights cast to 8-bit floats without any scale.

Such files come from other tools. Their layers are decoded or compared; a conversion never writes
them.
"""

from __future__ import annotations

from nvfp4.formats.scaled import Scaled


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
