"""Store weights as MXFP8: E4M3 numbers, and a power of two for every 32 of a row.

The layout is that of comfy_kitchen's TensorCoreMXFP8Layout: as in NVFP4, scales lie in swizzled
tiles.
"""

from __future__ import annotations

import torch

from nvfp4.cards import COMFYUI_SINCE
from nvfp4.dtypes import MX_BLOCK, TILE_COLUMNS, TILE_ROWS, VIEWED, round_up
from nvfp4.formats.base import Parts
from nvfp4.formats.encoding import Encoded, Encoder, Given, encode_by_rows
from nvfp4.formats.scaled import Scaled, bad_scales
from nvfp4.model import TensorRef
from nvfp4.numeric.codes import E4M3, swizzle, unswizzle
from nvfp4.numeric.feedback import Feedback, Rounded, levels_in_order, steps_in_order
from nvfp4.numeric.float8 import decode_e8m0
from nvfp4.numeric.grids import E8M0_STEPS, Grid
from nvfp4.numeric.mxfp8 import quantise_mxfp8, quantised_mxfp8_rows


class Mxfp8(Scaled):
    """Store a weight as F8_E4M3 [N32, K32] and a `weight_scale` of E8M0 in swizzled tiles.

    N32 and K32 are N and K rounded up to 32. Other programs store such scales in other orders, so
    that only a configuration tells this one.
    """

    name = title = "MXFP8"
    usual_error = 0.027
    option = kernel = "mxfp8"
    since = COMFYUI_SINCE["mxfp8"]
    config = "mxfp8"
    is_configured = True
    weight_dtype = "F8_E4M3"
    scale_suffix = "weight_scale"
    row_multiple = MX_BLOCK
    grid = Grid(E4M3, MX_BLOCK, E8M0_STEPS)
    runs_full_precision = "FP8 weights, decoded and multiplied in 16-bit"
    runs_unscaled = "FP8 weights times FP8 activations with scales of blocks, on Blackwell"

    @property
    def kind(self) -> str:
        """Name it MXFP8."""
        return self.title

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the two tensors of a weight [N, K]: codes, and scales that are bytes of E8M0."""
        height, width = (round_up(size, MX_BLOCK) for size in shape)
        tiles = (round_up(height, TILE_ROWS), round_up(width // MX_BLOCK, TILE_COLUMNS))
        return {"weight": (self.weight_dtype, (height, width)), "weight_scale": ("F8_E8M0", tiles)}

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is configured as MXFP8, and has its tensors."""
        return config.get("format") == self.config and super().holds(weight, parts, config)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K32] of codes [N32, K32] by the length of the bias; N32 where that does not."""
        rows = stored[0] if bias_rows is None else bias_rows
        return rows if round_up(rows, MX_BLOCK) == stored[0] else stored[0], stored[1]

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: codes and whole tiles of scales have to fit."""
        weight, scale = parts["weight"], parts["weight_scale"]
        if len(weight.shape) != 2 or 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        expected = self.parts(weight.shape)
        fits = scale.shape == expected["weight_scale"][1] and weight.shape == expected["weight"][1]
        if fits and scale.dtype in ("F8_E8M0", *VIEWED):
            return ""
        return f"its scale is {scale.dtype} {list(scale.shape)} for a weight {list(weight.shape)}"

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K]: codes float8_e4m3fn [n, K32] in chunks, scales [N, K32/32].

        Scales are float32 here, powers of two. With `--scale-search amax` the bytes are those of
        comfy_kitchen.quantize_mxfp8.
        """
        compiled = encoder.kernels and encoder.kernels.encode_mxfp8
        return encode_by_rows(given, quantise_mxfp8, self.decode, encoder, compiled)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`: codes, padding rows last, and scales swizzled into tiles."""
        scales, missing = encoded.by_rows[0], -shape[0] % MX_BLOCK
        # torch 2.4 fills no tensors of FP8; all its bits are zero.
        padding = torch.zeros(missing, encoded.codes[0].shape[1], dtype=torch.uint8)
        # The exponent of a power of two is its E8M0 code; of 2**-127, which is subnormal, it is 0.
        codes = (scales.view(torch.int32) >> 23).to(torch.uint8)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
        return {
            "weight": [*encoded.codes, padding.view(torch.float8_e4m3fn)],
            "weight_scale": [swizzle(codes)],
        }

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Cast rounded levels to codes float8_e4m3fn [n, K], and decode the scales [n, K/32]."""
        codes = levels_in_order(rounded, feedback).to(torch.float8_e4m3fn)
        return [codes, decode_e8m0(steps_in_order(rounded, feedback))]

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find scales of blocks that are NaN; E8M0 has neither signs nor zeros."""
        return bad_scales({"weight_scale": decode_e8m0(scales["weight_scale"].view(torch.uint8))})

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] in blocks of 32."""
        return quantised_mxfp8_rows(rows)

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring stored codes and scales into rows, as `decode` takes them.

        Returns codes float8_e4m3fn [N32, K32], scales float32 [N32, K32/32], and a scale of 1.
        """
        codes = tensors["weight"]
        tiles = tensors["weight_scale"].view(torch.uint8)
        scales = unswizzle(tiles, codes.shape[0], codes.shape[1] // MX_BLOCK)
        return [codes, decode_e8m0(scales)], torch.ones(())


MXFP8 = Mxfp8()
