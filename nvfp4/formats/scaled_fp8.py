"""Scaled FP8: the older form of FP8 files, which a marker tensor tells from others."""

from __future__ import annotations

import torch

from nvfp4.formats.fp8 import Fp8

# Its number of elements decides for every layer: 2 ask for full-precision matmul, 0 for FP8 matmul.
MARKER = "scaled_fp8"
LEGACY_NAMES = {"weight_scale": "scale_weight", "input_scale": "scale_input"}


class ScaledFp8(Fp8):
    """FP8 with other names for its scales, of shape [1], and no configuration.

    Working Wan FP8 files have this form. ComfyUI reads it where MARKER is in the file and
    `_quantization_metadata` is not.
    """

    title = "scaled FP8"
    is_configured = is_candidate = False
    scale_suffix = "scale_weight"
    scalar_shape = (1,)
    marker = MARKER
    full_precision_option = ""

    def stored_name(self, suffix: str) -> str:
        return LEGACY_NAMES.get(suffix, suffix)


def marker_tensor(*, full_precision: bool) -> torch.Tensor:
    """The marker of a file whose layers all get full-precision matmul, or all FP8 matmul."""
    return torch.zeros(2 if full_precision else 0).to(torch.float8_e4m3fn)


SCALED_FP8 = ScaledFp8()
