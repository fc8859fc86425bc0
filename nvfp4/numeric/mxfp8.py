"""Quantise to MXFP8: E4M3 numbers, and a power of two for every 32 of a row."""

from __future__ import annotations

import torch

from nvfp4.dtypes import E4M3_MAX, MX_BLOCK
from nvfp4.numeric.codes import divide
from nvfp4.numeric.float8 import decode_e8m0

# The code of 1.0 in E8M0, and the largest one that is a number.
E8M0_ONE, LAST_E8M0_CODE = 127, 254
# The bits of a float32's mantissa.
MANTISSA_BITS = 0x7FFFFF


def first_rounded_up() -> torch.Tensor:
    """Find the least mantissa of each exponent whose float32 logarithm is above the exponent.

    Returns int32 [255] by the exponent's bits; those of 0 are for numbers from 2**-127 on, which
    are subnormal. A logarithm is rounded: that of a little more than a power of two is a whole one.
    """
    exponents = torch.arange(LAST_E8M0_CODE + 1, dtype=torch.int32)
    least = torch.where(exponents == 0, 1 << 22, 0).to(torch.int32)
    # The logarithms of 23 numbers at most are rounded down to a whole one.
    bits = (exponents << 23 | least).unsqueeze(1) + torch.arange(32, dtype=torch.int32)
    below = bits.view(torch.float32).log2().ceil() <= (exponents - E8M0_ONE).unsqueeze(1)
    return least + below.sum(1, dtype=torch.int32)


# Made on the CPU once: logarithms of other devices are rounded otherwise, and cost more.
FIRST_ROUNDED_UP = first_rounded_up()


def amax_power_scales(magnitude: torch.Tensor) -> torch.Tensor:
    """Compute the least powers of two that clip nothing: E8M0 codes uint8 [n, K/32].

    magnitude: [n, K] float32 >= 0, K a multiple of 32. A block of zeros has code 0. The codes are
    those of comfy_kitchen.quantize_mxfp8.
    """
    amax = magnitude.unflatten(1, (-1, MX_BLOCK)).amax(-1)
    bits = divide(amax, E4M3_MAX).clamp(min=2.0**-E8M0_ONE).view(torch.int32)
    exponent, mantissa = bits >> 23, bits & MANTISSA_BITS
    # Parity: comfy_kitchen rounds a logarithm up, which is itself rounded: see FIRST_ROUNDED_UP.
    codes = exponent + (mantissa >= FIRST_ROUNDED_UP.to(bits.device)[exponent])
    return torch.where(amax > 0, codes, 0).to(torch.uint8)


def encode_mxfp8(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Quantise rows [n, K] float32 at the E8M0 codes of their blocks: float8_e4m3fn [n, K].

    scales: uint8 [n, K/32]; code 0 is that of blocks of zeros. Saturates at 448. With the codes of
    `amax_power_scales` the bytes are those of comfy_kitchen.quantize_mxfp8, but where the whole
    block is below 2**-118: comfy_kitchen divides that by 0.
    """
    blocks = rows.unflatten(1, (-1, MX_BLOCK))
    # Readers take a scale of code 0 for 0 or for 2**-127: all that it scales becomes +0.
    scaled = (blocks / decode_e8m0(scales).unsqueeze(-1)).masked_fill_(
        (scales == 0).unsqueeze(-1), 0
    )
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).flatten(1).to(torch.float8_e4m3fn)


def quantise_mxfp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows [n, K] of floats: codes float8_e4m3fn [n, K32], powers float32 [n, K32/32].

    Columns are padded with zeros to K32, a multiple of 32; the powers of two are those of blocks.
    """
    padded = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % MX_BLOCK))
    scales = amax_power_scales(padded.abs())
    return encode_mxfp8(padded, scales), decode_e8m0(scales)


def quantised_mxfp8_rows(rows: torch.Tensor) -> torch.Tensor:
    """Quantise and dequantise input rows [r, K] as ComfyUI's MXFP8 matmul sees them: float32."""
    codes, scales = quantise_mxfp8(rows)
    values = codes.float().unflatten(1, (-1, MX_BLOCK)) * scales.unsqueeze(-1)
    return values.flatten(1)[:, : rows.shape[1]]
