"""Store weights as scaled FP8, the older form of FP8 files.

A marker tensor tells them from other files, and their scales have other names and shapes. Codes and
scales have the values that `fp8` gives them.
"""

from __future__ import annotations

import torch

from nvfp4.formats.fp8 import Fp8

# The number of elements of this tensor decides for every layer of the file: 2 ask for
# full-precision matmul, 0 for FP8 matmul.
MARKER = "scaled_fp8"
# What such files call the scales that newer ones call otherwise.
LEGACY_NAMES = {"weight_scale": "scale_weight", "input_scale": "scale_input"}


class ScaledFp8(Fp8):
    """Store a weight as Fp8 does, with other names and no configuration.

    `scale_weight` F32 [1] and `scale_input` F32 [1] lie beside the weight F8_E4M3 [N, K]. Working
    Wan FP8 files have this form. ComfyUI reads it where MARKER is in the file and
    `_quantization_metadata` is not.
    """

    title = "scaled FP8"
    is_configured = False
    scale_suffix = "scale_weight"
    scalar_shape = (1,)
    marker = MARKER
    option = full_precision_option = ""
    older_form = ""

    def name_in_file(self, suffix: str) -> str:
        """Name a part as such files do.

        `weight_scale` is `scale_weight` there, and `input_scale` is `scale_input`; other names are
        the same.
        """
        return LEGACY_NAMES.get(suffix, suffix)


def marker_tensor(*, full_precision: bool) -> torch.Tensor:
    """Make the marker of a file whose layers all get full-precision matmul, or all FP8 matmul.

    Returns float8_e4m3fn zeros of shape [2] for full-precision matmul and [0] for FP8 matmul:
    ComfyUI looks at the number of elements alone.
    """
    return torch.zeros(2 if full_precision else 0).to(torch.float8_e4m3fn)


SCALED_FP8 = ScaledFp8()
