"""Choose the E4M3 block scales with the least squared error.

The scale that maps a block's largest weight to 6 is rarely the best one: E2M1 is coarse between 3
and 6. `mse_block_scales` finds the best of all 126 positive E4M3 values and tries few of them.
`kernels` has the same search as loops for numba, with the same bits; `SCALE_SEARCHES` lists what
--scale-search offers.
"""

from __future__ import annotations

import torch

from nvfp4.dtypes import BLOCK_SIZE, E2M1_MAX
from nvfp4.numeric.codes import (
    FIRST_NORMAL_E4M3_CODE,
    FLOAT32_EXPONENT,
    LAST_E4M3_CODE,
    ROUND_TO_HALVES,
    amax_block_scales,
    e4m3_code_of_at_least,
    e4m3_value,
)

# Candidates are E4M3 codes counted from that of the smallest scale that clips nothing; the
# docstring of `mse_block_scales` proves that the best scale lies within these offsets, or below.
FIRST_OFFSET, LAST_OFFSET = -3, 6
# Only the candidates with negative offsets can clip a weight; the others are spared the clamp.
MAY_CLIP = 3
# Halves of E4M3 values above this code are E4M3 values; at or below it, those of odd codes are not.
UNHALVED_E4M3_CODE = 15
# At smaller global scales the reciprocals that the search multiplies by leave float32's range.
LEAST_SEARCHED_SCALE = 2.0**-100
# Bounds of the search are widened by this share, which is more than float32 rounding moves them.
DOUBT = 2.0**-20
# E4M3 values that the block scale of the largest weight gets under the other global scales tried:
# a weight of 6 times one of these stays exact. Smaller global scales would clip that weight, which
# cost more than they gave in every tensor tried.
OTHER_LARGEST_SCALES = (416, 384, 352, 320, 288, 256)
# Blocks whose errors a CPU sums at once, so that the scratch memory stays in a core's cache.
CPU_SLICE = 1 << 13


def mse_block_scales(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Choose each block's scale of least squared error among all 126 positive E4M3 values.

    magnitude: [n, k] float32 >= 0, global_scale: at least max / 2688 and 2**-100. Returns
    [n, k/16] float8_e4m3fn; equal errors go to the smaller scale; a block of zeros gets scale 0.

    Only some scales are tried, but the best is among them. Let a be the block's largest
    magnitude, u = block scale * global scale, c the code of the smallest scale with 6u >= a:
      - Too large: where u >= 2a/7, no magnitude exceeds 3.5u, so all of them round to
        {0, .5, 1, 1.5, 2, 3}u. The grid of u/2 contains these, so u/2 is no worse, and smaller.
        Codes above c + 6 have u >= 2a/7, as seven codes up from a normal one are a factor of
        at least 16/9 > 12/7. Half of a scale is an E4M3 value too, unless the scale's code is
        odd and at most 15: where c <= 8, all codes up to 15 are tried.
      - Too small: rounding a alone costs (a - 6u)**2. Codes below c - 3 are tried as far down
        as this is less than the best error found; few blocks have any.
    """
    # Transposed to [16, b], sums over a block have a fixed order on every device.
    blocks = magnitude.view(-1, BLOCK_SIZE).t().contiguous()
    block_amax = blocks.amax(0) / global_scale
    first = e4m3_code_of_at_least(block_amax / E2M1_MAX * (1 + DOUBT))
    codes = candidate_codes(first)
    errors = scale_errors(blocks, codes, global_scale)
    error = errors.amin(0)
    # Of codes with equal errors the smallest is taken.
    best = codes.masked_fill_(errors > error, LAST_E4M3_CODE).amin(0)

    # What is left below the candidates, or, for the few smallest scales, around them.
    lowest = (block_amax - error.sqrt()) / E2M1_MAX * (1 - DOUBT)
    few = first <= FIRST_NORMAL_E4M3_CODE
    low = e4m3_code_of_at_least(lowest).clamp_(min=1).masked_fill_(few, 1)
    high = (first + (FIRST_OFFSET - 1)).masked_fill_(few, UNHALVED_E4M3_CODE)
    rest = ((low <= high) & (block_amax > 0)).nonzero().squeeze(1)
    if len(rest):
        bounds, so_far = (low[rest], high[rest]), (best[rest], error[rest])
        best[rest] = search_codes(blocks.index_select(1, rest), bounds, so_far, global_scale)
    best.masked_fill_(block_amax == 0, 0)
    return best.to(torch.uint8).view(torch.float8_e4m3fn).view(len(magnitude), -1)


def search_codes(
    blocks: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
    so_far: tuple[torch.Tensor, torch.Tensor],
    global_scale: torch.Tensor,
) -> torch.Tensor:
    """Try the block scales that the candidates left out, from bound to bound.

    blocks: [16, b] float32 magnitudes; bounds: lowest and highest E4M3 code of each block [b],
    int16; so_far: each block's best code [b] int16 and its error [b] float32. Returns the best
    codes [b] int16; of equal errors the smaller code wins. The longest range decides how many
    rounds there are.
    """
    (low, high), (best, error) = bounds, so_far
    for step in range(int((high - low).max()) + 1):
        code = torch.minimum(low + step, high)
        found = scale_errors(blocks, code.unsqueeze(0), global_scale)[0]
        better = (found < error) | ((found == error) & (code < best))
        best, error = torch.where(better, code, best), torch.where(better, found, error)
    return best


def scale_errors(
    blocks: torch.Tensor, codes: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """Compute the squared error of every block under each of its candidate scales.

    blocks: [16, b] float32 >= 0; codes: [m, b] int16, E4M3 codes 1..126, ascending, since those
    after the third are taken not to clip; global_scale: float32 scalar. Returns [m, b] float32 in
    units of global_scale**2.
    """
    scales = e4m3_value(codes)
    return sum_of_errors(blocks, 1.0 / (scales * global_scale)).mul_(scales).mul_(scales)


def sum_of_errors(blocks: torch.Tensor, reciprocals: torch.Tensor) -> torch.Tensor:
    """Sum the squared distances of scaled blocks to the nearest E2M1 values.

    blocks: [16, b] float32 >= 0; reciprocals: [m, b] float32, of block scale times global scale.
    Returns [m, b] float32. Every operation is exact or rounded once and the sum is a tree, so that
    `block_errors` in `kernels` gives the same bits.
    """
    # A GPU takes all blocks in one slice: there, launching many small kernels takes longer.
    sums = torch.empty_like(reciprocals)
    width = blocks.shape[1] if blocks.is_cuda else min(CPU_SLICE, blocks.shape[1])
    scratch = blocks.new_empty(3, BLOCK_SIZE, width)
    parts = (tensor.split(width, dim=1) for tensor in (blocks, reciprocals, sums))
    for part, some_reciprocals, some_sums in zip(*parts, strict=True):
        fill_sums(part, some_reciprocals, some_sums, scratch[:, :, : part.shape[1]])
    return sums


def fill_sums(
    blocks: torch.Tensor, reciprocals: torch.Tensor, sums: torch.Tensor, scratch: torch.Tensor
) -> None:
    """Compute one slice of `sum_of_errors` in place.

    blocks: [16, s]; reciprocals and sums: [m, s], sums being filled; scratch: [3, 16, s],
    overwritten; all float32. Calls of torch are few, because threads share Python's lock between
    them.
    """
    scaled, power, rounded = scratch
    bits, (low, high) = power.view(torch.int32), scaled.chunk(2)
    quarters, pairs, halves = low.chunk(2), low[:4].chunk(2), low[:2].unbind(0)
    for index, (reciprocal, total) in enumerate(zip(reciprocals, sums, strict=True)):
        torch.mul(blocks, reciprocal, out=scaled)
        # The power of two at or below a value decides its step; E2M1 has the powers 1, 2 and 4.
        torch.clamp(scaled, 1.0, 4.0, out=power)
        bits.bitwise_and_(FLOAT32_EXPONENT)
        torch.add(scaled, power, alpha=ROUND_TO_HALVES, out=rounded)
        rounded.sub_(power, alpha=ROUND_TO_HALVES)
        if index < MAY_CLIP:
            rounded.clamp_(max=E2M1_MAX)
        # With reduction 0, mse_loss is the squared difference of each element in one call.
        torch.ops.aten.mse_loss.out(scaled, rounded, 0, out=scaled)
        # Sixteen squares become one sum by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
        low.add_(high)
        quarters[0].add_(quarters[1])
        pairs[0].add_(pairs[1])
        torch.add(*halves, out=total)


# What --scale-search may choose.
SCALE_SEARCHES = {"mse": mse_block_scales, "amax": amax_block_scales}


def candidate_codes(first: torch.Tensor) -> torch.Tensor:
    """List the E4M3 codes of block scales to try around the smallest that clips nothing.

    first: [b] int16, the code of that smallest scale. Returns [10, b] int16 in ascending order,
    from 3 codes below it to 6 above, clamped to 1..126.
    """
    offsets = torch.arange(FIRST_OFFSET, LAST_OFFSET + 1, dtype=torch.int16, device=first.device)
    return (first + offsets.unsqueeze(1)).clamp_(1, LAST_E4M3_CODE)
