"""Read plain FP8: weights cast to 8-bit floats without any scale.

Such files come from other tools. Their layers are decoded or compared; a conversion never writes
them.
"""

from __future__ import annotations

import torch

from nvfp4.formats.base import Format
from nvfp4.numeric.codes import decode_fp8


class PlainFp8(Format):
    """Describe F8_E4M3 weights [N, K] that stand for themselves; ComfyUI casts them to 16 bits.

    A layer is taken for it where its weight is F8_E4M3 and neither of the other FP8 formats finds
    its scale.
    """

    title = "plain FP8"
    rank = 8
    # ComfyUI loads such weights without a configuration, so that nothing is missing.
    is_configured = False
    unconfigured = ""
    weight_dtype = "F8_E4M3"
    weight_bits = 8
    runs_full_precision = "FP8 weights without a scale, cast to 16-bit"

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Decode codes float8_e4m3fn [n, K] to float32 [n, K].

        The last argument is a scale of 1, which `unpack` gives where a layer has none.
        """
        return decode_fp8(*parts_and_scale)


PLAIN_FP8 = PlainFp8()
