"""Quantise rotated weights to 4 or 6 bits that decode to INT8: ComfyUI's asym_w4a8_int8.

A code stands for a level of a codebook. Level times group scale, rounded to an integer from -127
to 127, is the INT8 weight that the matmul takes; a scale for each row belongs to that. So every
choice here is measured through the rounding to integers. Codebook and group scales are those of
comfy_kitchen's quantiser, bit for bit at equal rotated weights.
"""

from __future__ import annotations

from collections.abc import Sized

import torch

from nvfp4.numeric.codes import LAST_E4M3_CODE, decode_e4m3, divide
from nvfp4.numeric.int8 import INT8_MAX

# Columns that share a group scale.
W4A8_GROUP = 16
# The levels of comfy_kitchen's 4-bit codebook (tensor/w4a8_packed.py), fitted to normal numbers.
KITCHEN_CODEBOOK = (
    -0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720,
    0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671,
)  # fmt: skip
# 6-bit codes stand for the integers from -31 to 31, stored from 1 on.
LARGEST_SIX_BITS = 31
# Sums of squares and scales are at least this: comfy_kitchen's bound against division by 0.
LEAST_SUM = 1e-8
# Times that group scales are fitted to the levels chosen, and levels chosen anew.
FITS = 2


def codebook_of(bits: int, device: torch.device) -> torch.Tensor:
    """Return the levels that codes of 4 or 6 bits stand for, ascending: float32 [16] or [63]."""
    if bits == 4:
        return torch.tensor(KITCHEN_CODEBOOK, device=device)
    largest = LARGEST_SIX_BITS
    return torch.arange(-largest, largest + 1, device=device, dtype=torch.float32)


def code_bits(levels: Sized) -> int:
    """Tell how many bits a code has that stands for one of 16 levels of a codebook, or of 63."""
    return 4 if len(levels) == 1 << 4 else 6


def nearest_levels(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Find the nearest of ascending levels, the lower one of two that are as near.

    values: float32 [..., c]; levels: float32 [m], or [..., m] for each group of values. Returns
    int64 of the shape of the values.
    """
    above = torch.searchsorted(levels, values.contiguous())
    below = (above - 1).clamp_(min=0)
    above.clamp_(max=levels.shape[-1] - 1)
    low, high = (take_levels(levels, index) for index in (below, above))
    return torch.where((values - high).abs() < (values - low).abs(), above, below)


def take_levels(levels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Look levels up: [m] for all, or [..., m] for each group, by an index [..., c]."""
    return levels[index] if levels.dim() == 1 else levels.gather(-1, index)


def integer_levels(levels: torch.Tensor, group_scale: torch.Tensor) -> torch.Tensor:
    """Compute the INT8 weights that levels stand for in each group: float32 [n, g, m].

    levels: [m]; group_scale: float8_e4m3fn [n, g].
    """
    products = levels * decode_e4m3(group_scale).unsqueeze(-1)
    return products.round_().clamp_(-INT8_MAX, INT8_MAX)


def fit_group_scales(groups: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Fit group scales and levels to each other, without any rounding of scales.

    groups: float32 [n, g, 16]; levels: [m]. Returns the group scales [n, g, 1] and the weights
    that they make [n, g, 16].
    """
    scale = groups.abs().amax(-1, keepdim=True)
    # Parity: of 6 bits the largest level is 31, of the codebook it counts as 1.
    if code_bits(levels) == 6:
        scale = divide(scale, LARGEST_SIX_BITS)
    scale = scale.clamp(min=LEAST_SUM)
    chosen = take_levels(levels, nearest(groups / scale, levels))
    for _ in range(FITS):
        energy = (chosen * chosen).sum(-1, keepdim=True).clamp(min=LEAST_SUM)
        scale = ((groups * chosen).sum(-1, keepdim=True) / energy).clamp(min=LEAST_SUM)
        chosen = take_levels(levels, nearest(groups / scale, levels))
    return scale, chosen * scale


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Find the nearest levels; integers by rounding, ties to even, a codebook by its order."""
    if code_bits(levels) == 4:
        return nearest_levels(values, levels)
    largest = LARGEST_SIX_BITS
    return values.round().clamp_(-largest, largest).add_(largest).long()


def encode_w4a8(rows: torch.Tensor, bits: int) -> tuple[torch.Tensor, ...]:
    """Quantise rotated rows [n, K] float32 to 4 or 6 bits, K a multiple of 16.

    Returns codes int8 [n, K * bits / 8], group scales float8_e4m3fn [n, K/16] and row scales
    float32 [n]: those of comfy_kitchen.quantize_w4a8_int8_weight where it takes its own codebook.
    """
    levels = codebook_of(bits, rows.device)
    groups = rows.unflatten(1, (-1, W4A8_GROUP))
    scale, made = fit_group_scales(groups, levels)
    row_scale = divide(made.abs().amax((1, 2)), INT8_MAX).clamp(min=LEAST_SUM)
    group_scale = (scale.squeeze(-1) / row_scale.unsqueeze(1)).to(torch.float8_e4m3fn)
    target = groups / row_scale.view(-1, 1, 1)
    codes, _ = round_groups(target, levels, group_scale)
    if bits == 6:
        group_scale, codes = try_neighbours(target, levels, group_scale)
        codes = codes + 1
    return pack_w4a8(codes.flatten(1), bits), group_scale.contiguous(), row_scale


def round_groups(
    target: torch.Tensor, levels: torch.Tensor, group_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round groups to the nearest integer levels of their scales.

    target: weight / row scale, float32 [n, g, 16]; group_scale: float8_e4m3fn [n, g]. Returns
    indices of levels int64 [n, g, 16] and squared errors [n, g].
    """
    made = integer_levels(levels, group_scale)
    codes = nearest_levels(target, made)
    return codes, (made.gather(-1, codes) - target).square_().sum(-1)


def try_neighbours(
    target: torch.Tensor, levels: torch.Tensor, group_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the E4M3 neighbour of each group scale where that has less error.

    Arguments as for `round_groups`. Returns group scales and codes; of equal errors the scale that
    was there stays.
    """
    bits = group_scale.view(torch.uint8)
    others = [(bits - 1).clamp(min=1), (bits + 1).clamp(max=LAST_E4M3_CODE)]
    best, (codes, least) = group_scale, round_groups(target, levels, group_scale)
    for other in (code.view(torch.float8_e4m3fn) for code in others):
        found, error = round_groups(target, levels, other)
        better = error < least
        best = torch.where(better, other.view(torch.uint8), best.view(torch.uint8))
        best = best.view(torch.float8_e4m3fn)
        codes = torch.where(better.unsqueeze(-1), found, codes)
        least = torch.where(better, error, least)
    return best, codes


def pack_w4a8(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes [n, K] of 4 or 6 bits: int8 [n, K * bits / 8].

    Two columns share a byte, the even one in the low nibble; of 6 bits the upper two follow after
    all of the lower ones, four columns in a byte, the first in its lowest bits.
    """
    codes = codes.to(torch.uint8)
    packed = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)
    if bits == 6:
        upper = codes >> 4
        quarters = (upper[:, index::4] << (2 * index) for index in range(4))
        packed = torch.cat([packed, sum(quarters)], dim=1)
    return packed.view(torch.int8)


def unpack_w4a8(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Unpack what `pack_w4a8` packed: codes uint8 [n, columns]; the width tells the bits."""
    packed = packed.view(torch.uint8)
    low, upper = packed[:, : columns // 2], packed[:, columns // 2 :]
    codes = torch.stack([low & 15, low >> 4], dim=2).flatten(1)
    if upper.shape[1]:
        shifts = torch.arange(0, 8, 2, device=packed.device, dtype=torch.uint8)
        codes |= ((upper.unsqueeze(2) >> shifts) & 3).flatten(1) << 4
    return codes


def decode_w4a8(
    packed: torch.Tensor, group_scale: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """Decode to the INT8 weights that the matmul takes: float32 [n, K], integers.

    packed: int8, as `pack_w4a8` gives it; group_scale: float8_e4m3fn [n, K/16]; levels: by code,
    [16] or [64].
    """
    codes = unpack_w4a8(packed, group_scale.shape[1] * W4A8_GROUP)
    values = levels[codes.int()].unflatten(1, (-1, W4A8_GROUP))
    values = values * group_scale.float().unsqueeze(-1)
    return values.round_().clamp_(-INT8_MAX, INT8_MAX).flatten(1)
