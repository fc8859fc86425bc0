"""Quantise to 8-bit integers with a scale for every row, as comfy_kitchen does."""

from __future__ import annotations

import torch

from nvfp4.numeric.codes import divide
from nvfp4.numeric.rotation import rotate

# The largest code of a row whose scale is its largest magnitude over it.
INT8_MAX = 127
# The least scale of a row: comfy_kitchen's, so that a row of zeros is not divided by 0.
LEAST_ROW_SCALE = 1e-30


def amax_row_scales(rows: torch.Tensor) -> torch.Tensor:
    """Compute the scales that make each row's largest magnitude 127: [n, 1] for rows [n, K].

    Rows and scales are float32.
    """
    # Parity: comfy_kitchen divides the largest magnitude, and bounds the quotient.
    return divide(rows.abs().amax(1, keepdim=True), INT8_MAX).clamp_(min=LEAST_ROW_SCALE)


def encode_int8(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantise rows [n, K] float32 at their scales [n, 1]: int8 [n, K], ties to even.

    With `amax_row_scales` the codes are those of comfy_kitchen.quantize_int8_rowwise.
    """
    return (rows / scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX).to(torch.int8)


def quantise_int8(rows: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate rows [n, K] and quantise them: codes int8 [n, K], row scales float32 [n, 1].

    rows: floats; group: columns rotated together, or 0. The bytes are those of comfy_kitchen's
    layout, but for ties that the last bit of a rotation decides.
    """
    values = rotate(rows.float(), group) if group else rows.float()
    scale = amax_row_scales(values)
    return encode_int8(values, scale), scale


def quantised_int8_rows(rows: torch.Tensor, group: int) -> torch.Tensor:
    """Quantise and dequantise input rows as ComfyUI's INT8 matmul sees them.

    rows: [r, K] floats; group: columns rotated together, or 0. Returns [r, K] float32. Every row
    has a scale of its own, measured on every call.
    """
    codes, scale = quantise_int8(rows, group)
    decoded = codes.float().mul_(scale)
    return rotate(decoded, group) if group else decoded
