"""Quantise to 8-bit integers with a scale for every row: comfy_kitchen's, or one of less error."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nvfp4.dtypes import FLOAT32_MAX
from nvfp4.numeric.codes import divide
from nvfp4.numeric.rotation import rotate

# The largest code of a row whose scale is its largest magnitude over it.
INT8_MAX = 127
# The least scale of a row: comfy_kitchen's, so that a row of zeros is not divided by 0.
LEAST_ROW_SCALE = 1e-30
# What a row's largest magnitude is tried as, in units of the scale: up to 7 % coarser than 127,
# which may suit the other weights better, down to where 13 units of that one weight are clipped.
LARGEST_TRIED = range(120, 141)
# Columns of a row whose squares are summed side by side. They are the lanes of a row's sum, too:
# all groups of as many columns are added one after the other, and then the lanes by halves.
LANE_COLUMNS = 256


def amax_row_scales(rows: torch.Tensor) -> torch.Tensor:
    """Compute the scales that make each row's largest magnitude 127: [n, 1] for rows [n, K].

    Rows and scales are float32.
    """
    # Parity: comfy_kitchen divides the largest magnitude, and bounds the quotient.
    return divide(rows.abs().amax(1, keepdim=True), INT8_MAX).clamp_(min=LEAST_ROW_SCALE)


def mse_row_scales(rows: torch.Tensor) -> torch.Tensor:
    """Choose row scales of least squared error among largest magnitude / 120 to / 140.

    rows: float32 [n, K]. Returns [n, 1] float32; of equal errors the larger scale wins. Rows of
    normal numbers gain 2.6 % of their error over `amax_row_scales` at K = 256, 1.7 % at 2,048 and
    3.5 % at 14,336. Every operation is rounded once and sums run as `sum_by_lanes` has them, so
    that compiled loops can give the same bits.
    """
    amax = rows.abs().amax(1, keepdim=True)
    # Of rows whose squares leave float32's range, no scale is better than that of amax.
    best, error = amax_row_scales(rows), torch.full_like(amax, FLOAT32_MAX)
    scaled, rounded = torch.empty_like(rows), torch.empty_like(rows)
    for largest in LARGEST_TRIED:
        scale = divide(amax, largest).clamp_(min=LEAST_ROW_SCALE)
        torch.round(torch.mul(rows, 1 / scale, out=scaled), out=rounded)
        # Passes over memory are what this takes: nothing is clipped up to 127.
        if largest > INT8_MAX:
            rounded.clamp_(-INT8_MAX - 1, INT8_MAX)
        # With reduction 0, mse_loss is the squared difference of each element in one call.
        torch.ops.aten.mse_loss.out(rounded, scaled, 0, out=scaled)
        found = sum_by_lanes(scaled) * scale * scale
        better = found < error
        best, error = torch.where(better, scale, best), torch.where(better, found, error)
    return best


def sum_by_lanes(values: torch.Tensor) -> torch.Tensor:
    """Sum rows [n, K] in an order that is the same on every device: [n, 1].

    Groups of 256 columns are added one after the other, then their 256 sums by halves.
    """
    if missing := -values.shape[1] % LANE_COLUMNS:
        values = torch.nn.functional.pad(values, (0, missing))
    first, *others = values.unflatten(1, (-1, LANE_COLUMNS)).unbind(1)
    lanes = first.clone()
    for other in others:
        lanes.add_(other)
    while lanes.shape[1] > 1:
        low, high = lanes.chunk(2, dim=1)
        lanes = low + high
    return lanes


def encode_int8(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantise rows [n, K] float32 at their scales [n, 1]: int8 [n, K], ties to even.

    With `amax_row_scales` the codes are those of comfy_kitchen.quantize_int8_rowwise.
    """
    return (rows / scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX).to(torch.int8)


def quantise_int8(
    rows: torch.Tensor, group: int, row_scales: Callable = amax_row_scales
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate rows [n, K] and quantise them: codes int8 [n, K], row scales float32 [n, 1].

    rows: floats; group: columns rotated together, or 0; row_scales: what chooses the scales. With
    those of amax the bytes are those of comfy_kitchen's layout, but for ties that the last bit of a
    rotation decides.
    """
    values = rotate(rows.float(), group) if group else rows.float()
    scale = row_scales(values)
    return encode_int8(values, scale), scale


def quantised_int8_rows(rows: torch.Tensor, group: int) -> torch.Tensor:
    """Quantise and dequantise input rows as ComfyUI's INT8 matmul sees them.

    rows: [r, K] floats; group: columns rotated together, or 0. Returns [r, K] float32. Every row
    has a scale of its own, measured on every call.
    """
    codes, scale = quantise_int8(rows, group)
    decoded = codes.float().mul_(scale)
    return rotate(decoded, group) if group else decoded
