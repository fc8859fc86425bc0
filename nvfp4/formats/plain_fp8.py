"""Plain FP8: weights cast to 8-bit floats without any scale. It is read, never written."""

from __future__ import annotations

import torch

from nvfp4.formats.base import Format
from nvfp4.numeric.codes import decode_fp8


class PlainFp8(Format):
    """F8_E4M3 weights that stand for themselves; ComfyUI casts them to 16 bits."""

    title = "plain FP8"
    rank = 8
    is_configured = False
    unconfigured = ""
    weight_dtype = "F8_E4M3"
    weight_bits = 8

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        return decode_fp8(*parts_and_scale)


PLAIN_FP8 = PlainFp8()
