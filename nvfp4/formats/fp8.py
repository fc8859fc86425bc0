"""FP8: 8-bit floats with one scale for the whole weight."""

from __future__ import annotations

import torch

from nvfp4.dtypes import E4M3_MAX
from nvfp4.formats.base import Encoded, Encoder, Format, Given, Parts, encode_rows, measured
from nvfp4.numeric.codes import E4M3, decode_fp8, encode_fp8, fp8_scale
from nvfp4.numeric.feedback import Feedback, Rounded, levels_in_order


class Fp8(Format):
    """Weights [N, K] as F8_E4M3 [N, K] and one float32 scale.

    Multiplied in FP8 (W8A8) where there is an input scale, else decoded to 16 bits: without one
    ComfyUI casts activations with scale 1, clipped at 448.
    """

    name = title = "FP8"
    rank = 8
    config = "float8_e4m3fn"
    weight_dtype = "F8_E4M3"
    scale_suffix = "weight_scale"
    unconfigured = "unread scale"
    weight_bits = activation_bits = 8
    needs_input_scale = True
    activation_max = E4M3_MAX
    summary_column = ("amax", E4M3_MAX)
    full_precision_option = "fp8_full_precision_mm"
    is_candidate = is_adopted = is_decoded = True
    encoding_cost = 2
    grid = E4M3

    def parts(self, shape: tuple[int, int]) -> Parts:
        return {"weight": (self.weight_dtype, shape), "weight_scale": ("F32", self.scalar_shape)}

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        plain = measured(lambda rows, scale: (encode_fp8(rows, scale),), decode_fp8, encoder.dtype)
        encode = encoder.kernels.encode_fp8 if encoder.kernels else plain
        # With the source's own scale, its FP8 codes come back as they were.
        known = given.source_scale
        scale = fp8_scale(given.amax) if known is None else torch.tensor(known)
        return encode_rows(given.weight, scale.to(given.amax), encode, encoder)

    def stored(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        return {"weight": [*encoded.codes], "weight_scale": [encoded.scale]}

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        return decode_fp8(*parts_and_scale)

    def round_to_levels(self, rounded: Rounded, feedback: Feedback) -> list[torch.Tensor]:
        return [levels_in_order(rounded, feedback).to(torch.float8_e4m3fn)]


FP8 = Fp8()
