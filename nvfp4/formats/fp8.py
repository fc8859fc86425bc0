"""Store weights as FP8: 8-bit floats, one scale for a whole weight.

`codes.encode_fp8` does the arithmetic, numba's kernels do the same faster. `scaled` decodes, also
what this program does not write: `scaled_fp8` is the older form, `plain_fp8` has no scale.
"""

from __future__ import annotations

import torch

from nvfp4.dtypes import E4M3_MAX
from nvfp4.formats.base import Parts
from nvfp4.formats.encoding import Encoded, Encoder, Given, encode_rows, with_damage
from nvfp4.formats.scaled import Scaled
from nvfp4.numeric.codes import E4M3, decode_fp8, encode_fp8, fp8_scale
from nvfp4.numeric.feedback import Feedback, Rounded, levels_in_order
from nvfp4.numeric.grids import Grid


class Fp8(Scaled):
    """Store a weight [N, K] as F8_E4M3 [N, K] and one float32 scale.

    The layout is that of comfy_kitchen's TensorCoreFP8Layout. ComfyUI multiplies in FP8 (W8A8)
    where there is an input scale, and decodes to 16 bits for full-precision matmul. Without either
    it casts activations with scale 1, clipped at 448.
    """

    name = title = "FP8"
    usual_error = 0.027
    option = kernel = "fp8"
    config = "float8_e4m3fn"
    is_configured = True
    weight_dtype = "F8_E4M3"
    scale_suffix = "weight_scale"
    needs_input_scale = True
    embedding_since = Scaled.since
    older_form = "scaled FP8"
    # A summary's `amax` is the largest activation, which E4M3's largest number is to stand for.
    activation_max = E4M3_MAX
    summary_column = ("amax", E4M3_MAX)
    full_precision_option = "fp8_full_precision_mm"
    runs_scaled = "FP8 weights times FP8 activations at the baked scale"
    runs_unscaled = "FP8 weights times FP8 activations that are clamped at 448"
    # Half of NVFP4's, which searches the scale of every block.
    encoding_cost = 2
    grid = Grid(E4M3)

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the two tensors of a weight [N, K]: codes F8_E4M3 [N, K] and their scale F32.

        The scale has shape [], here and in comfy_kitchen; `ScaledFp8` stores shape [1]. Rows and
        columns are not padded.
        """
        return {"weight": (self.weight_dtype, shape), "weight_scale": ("F32", self.scalar_shape)}

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K] at amax / 448, or at the scale that the source stored it with.

        Codes are float8_e4m3fn [n, K] by chunks of rows. They are bit-identical to those of
        comfy_kitchen.quantize_per_tensor_fp8 for the weight in float32; with `encoder.dtype`
        bfloat16 or float16 the weight is cast first.
        """
        # Kernels are there only for float32; other dtypes are cast first, by `with_damage`.
        plain = with_damage(
            lambda rows, scale: (encode_fp8(rows, scale),), decode_fp8, encoder.dtype
        )
        encode = encoder.kernels.encode_fp8 if encoder.kernels else plain
        # With the source's own scale, its FP8 codes come back as they were; another would round
        # values a second time.
        known = given.source_scale
        scale = fp8_scale(given.amax) if known is None else torch.tensor(known)
        return encode_rows(given.weight, scale.to(given.amax), encode, encoder)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`.

        Codes are float8_e4m3fn [N, K] in chunks of rows, and the scale is float32 []. Nothing is
        padded.
        """
        return {"weight": [*encoded.codes], "weight_scale": [encoded.scale]}

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] to FP8; without a scale they clip at 448."""
        scale = torch.tensor(1.0 if input_scale is None else input_scale, device=rows.device)
        return decode_fp8(encode_fp8(rows, scale), scale)

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Cast rounded levels to codes float8_e4m3fn [n, K].

        Columns are in the weight's own order again. Levels are values of E4M3 already, so that
        nothing is rounded a second time.
        """
        return [levels_in_order(rounded, feedback).to(torch.float8_e4m3fn)]


FP8 = Fp8()
