"""Block scales by least squared error."""

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

# The scale search, in codes from the smallest scale that clips nothing; why: `mse_block_scales`.
FIRST_OFFSET, LAST_OFFSET = -3, 6
MAY_CLIP = 3  # only so many of the smallest candidates can be exceeded by a weight
UNHALVED_E4M3_CODE = 15  # from here on, half of every E4M3 value is one too
LEAST_SEARCHED_SCALE = 2.0**-100  # reciprocals of smaller global scales leave float32's range
DOUBT = 2.0**-20  # widens the search's bounds by more than float32 rounding can move them
OTHER_LARGEST_SCALES = (416, 384, 352, 320, 288, 256)
CPU_SLICE = 1 << 13  # blocks whose errors are summed at once


def mse_block_scales(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """E4M3 scale of each block with the least squared error over all 126 positive E4M3 values.

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
    blocks = magnitude.view(-1, BLOCK_SIZE).t().contiguous()  # [16, b]: sums in a fixed order
    block_amax = blocks.amax(0) / global_scale
    first = e4m3_code_of_at_least(block_amax / E2M1_MAX * (1 + DOUBT))
    codes = candidate_codes(first)
    errors = scale_errors(blocks, codes, global_scale)
    error = errors.amin(0)
    best = codes.masked_fill_(errors > error, LAST_E4M3_CODE).amin(0)  # the smaller one of equals

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
    """Each block's best code from its lowest to its highest bound, or the best one so far."""
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
    """Squared error of every block under each of its candidate scales.

    blocks: [16, b] float32 >= 0; codes: [m, b] int16, E4M3 codes 1..126, ascending. Returns
    [m, b] float32 in units of global_scale**2.
    """
    scales = e4m3_value(codes)
    return sum_of_errors(blocks, 1.0 / (scales * global_scale)).mul_(scales).mul_(scales)


def sum_of_errors(blocks: torch.Tensor, reciprocals: torch.Tensor) -> torch.Tensor:
    """Squared distance of blocks * reciprocals to E2M1's values, summed: [16, b] -> [m, b].

    Every operation is exact or rounded once and the sum is a tree, so that the compiled version
    below gives the same bits. On a CPU, slices that stay in a core's cache.
    """
    sums = torch.empty_like(reciprocals)
    width = blocks.shape[1] if blocks.is_cuda else min(CPU_SLICE, blocks.shape[1])
    scratch = blocks.new_empty(3, BLOCK_SIZE, width)
    parts = (tensor.split(width, dim=1) for tensor in (blocks, reciprocals, sums))
    for part, some_reciprocals, some_sums in zip(*parts, strict=True):
        write_sums(part, some_reciprocals, some_sums, scratch[:, :, : part.shape[1]])
    return sums


def write_sums(
    blocks: torch.Tensor, reciprocals: torch.Tensor, sums: torch.Tensor, scratch: torch.Tensor
) -> None:
    """One slice of `sum_of_errors`, in place and with few calls: Python's lock is shared."""
    scaled, power, rounded = scratch
    bits, (low, high) = power.view(torch.int32), scaled.chunk(2)
    quarters, pairs, halves = low.chunk(2), low[:4].chunk(2), low[:2].unbind(0)
    for index, (reciprocal, total) in enumerate(zip(reciprocals, sums, strict=True)):
        torch.mul(blocks, reciprocal, out=scaled)
        torch.clamp(scaled, 1.0, 4.0, out=power)
        bits.bitwise_and_(FLOAT32_EXPONENT)
        torch.add(scaled, power, alpha=ROUND_TO_HALVES, out=rounded)
        rounded.sub_(power, alpha=ROUND_TO_HALVES)
        if index < MAY_CLIP:
            rounded.clamp_(max=E2M1_MAX)
        torch.ops.aten.mse_loss.out(scaled, rounded, 0, out=scaled)  # the difference, squared
        low.add_(high)
        quarters[0].add_(quarters[1])
        pairs[0].add_(pairs[1])
        torch.add(*halves, out=total)


SCALE_SEARCHES = {"mse": mse_block_scales, "amax": amax_block_scales}


def candidate_codes(first: torch.Tensor) -> torch.Tensor:
    """E4M3 codes [m, b] (int16) of block scales to try, around the smallest that clips nothing."""
    offsets = torch.arange(FIRST_OFFSET, LAST_OFFSET + 1, dtype=torch.int16, device=first.device)
    return (first + offsets.unsqueeze(1)).clamp_(1, LAST_E4M3_CODE)
