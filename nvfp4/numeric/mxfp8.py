"""Quantise to MXFP8: E4M3 numbers, and a power of two for every 32 of a row."""

from __future__ import annotations

import torch

from nvfp4.dtypes import E4M3_MAX, MX_BLOCK
from nvfp4.numeric.codes import divide
from nvfp4.numeric.float8 import decode_e8m0

# The code of 1.0 in E8M0, and the largest one that is a number.
E8M0_ONE, LAST_E8M0_CODE = 127, 254


def amax_power_scales(magnitude: torch.Tensor) -> torch.Tensor:
    """Compute the least powers of two that clip nothing: E8M0 codes uint8 [n, K/32].

    magnitude: [n, K] float32 >= 0, K a multiple of 32. A block of zeros has code 0. The codes are
    those of comfy_kitchen.quantize_mxfp8.
    """
    amax = magnitude.unflatten(1, (-1, MX_BLOCK)).amax(-1)
    needed = divide(amax, E4M3_MAX).clamp(min=2.0**-E8M0_ONE)
    # Parity: comfy_kitchen rounds the logarithm up.
    codes = needed.log2().ceil().to(torch.int32) + E8M0_ONE
    return torch.where(amax > 0, codes.clamp(0, LAST_E8M0_CODE), 0).to(torch.uint8)


def encode_mxfp8(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Quantise rows [n, K] float32 at the E8M0 codes of their blocks: float8_e4m3fn [n, K].

    scales: uint8 [n, K/32]; code 0 is that of blocks of zeros. Saturates at 448.
    """
    blocks = rows.unflatten(1, (-1, MX_BLOCK))
    scaled = blocks / decode_e8m0(scales).unsqueeze(-1)
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).flatten(1).to(torch.float8_e4m3fn)


def quantised_mxfp8_rows(rows: torch.Tensor) -> torch.Tensor:
    """Quantise and dequantise input rows [r, K] as ComfyUI's MXFP8 matmul sees them: float32."""
    padded = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % MX_BLOCK))
    scales = amax_power_scales(padded.abs())
    values = encode_mxfp8(padded, scales).float().unflatten(1, (-1, MX_BLOCK))
    return (values * decode_e8m0(scales).unsqueeze(-1)).flatten(1)[:, : rows.shape[1]]
