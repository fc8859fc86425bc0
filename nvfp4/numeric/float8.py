"""Decode codes of one byte, and scales that lie on a grid over a weight.

Other programs store FP8 in four dtypes, or INT8, and scale it once, by rows, or by blocks of rows
and columns. `codes` has what this program itself writes: E4M3 with one scale.
"""

from __future__ import annotations

import math

import torch

from nvfp4.dtypes import NAN_E4M3, SCALE_BLOCK
from nvfp4.numeric.codes import decode_e4m3

# The first byte, without its sign, that is no finite number: E5M2 has infinities there, too.
NO_NUMBER = {torch.float8_e4m3fn: NAN_E4M3, torch.float8_e5m2: 0x7C}
# The one NaN of the FNUZ dtypes is what would be a negative zero.
NAN_FNUZ = 0x80
# Blocks of fewer columns are not used by any program; a scale of such a shape is for something
# else, such as rows that were taken for columns.
LEAST_BLOCK = 16


def decode_byte(codes: torch.Tensor) -> torch.Tensor:
    """Decode 8-bit floats of any of torch's four dtypes for weights, or int8, to float32, exactly.

    codes: of any shape; what is no finite number is for the caller to refuse: see `has_no_number`.
    """
    if codes.dtype == torch.float8_e4m3fn:
        return decode_e4m3(codes)
    if codes.dtype == torch.float8_e5m2:
        # E5M2 is the upper byte of a float16.
        return (codes.view(torch.uint8).to(torch.int16) << 8).view(torch.float16).float()
    return codes.float()


def decode_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """Decode E8M0 numbers, powers of two from 2**-127 on, to float32; NaN (255) becomes infinity.

    codes: uint8 of any shape. They are the exponent's bits of a float32, but for the smallest one,
    a subnormal.
    """
    bits = codes.to(torch.int32) << 23
    return torch.where(codes == 0, 1 << 22, bits).view(torch.float32)


def has_no_number(codes: torch.Tensor) -> bool:
    """Tell whether stored codes of any dtype hold NaN or an infinity; integers never do."""
    bits = codes.view(torch.uint8)
    if codes.dtype in NO_NUMBER:
        # The sign bit is masked out, as there is a negative NaN, too.
        return bool(((bits & 0x7F) >= NO_NUMBER[codes.dtype]).any())
    return codes.dtype.is_floating_point and bool((bits == NAN_FNUZ).any())


def block_lengths(size: int, count: int) -> set[int]:
    """List how many rows or columns may share a scale, where `count` scales are for `size` of them.

    The last block may be shorter, as DeepSeek's blocks of 128 are. Blocks are powers of two, or
    divide the size; two lengths come back where both are possible, none where neither is.
    """
    if count in (1, size):
        return {size // count}
    if -(-size // SCALE_BLOCK) == count:
        return {SCALE_BLOCK}
    lengths = {2**power for power in range(1, size.bit_length())}
    lengths = {length for length in lengths if -(-size // length) == count}
    return lengths if size % count else {*lengths, size // count}


def block_shape(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Tell the rows and columns of a weight that share one scale, or None where none fits.

    weight: [N, K], or of more dimensions, whose rows have one scale each at most; scale: [], [1]
    and the like for one scale, [N] or [N, 1] for rows, [blocks of N, blocks of K] for blocks; more
    dimensions of 1 may follow, as in kohya's [N, blocks of K, 1].
    """
    rows, columns = weight[0] if weight else 1, math.prod(weight[1:])
    if math.prod(scale) == 1:
        return rows, columns
    high, wide, *more = (*scale, 1) if len(scale) == 1 else scale
    if math.prod(more) != 1 or not 0 < high <= rows or not 0 < wide <= columns:
        return None
    heights, widths = block_lengths(rows, high), block_lengths(columns, wide)
    # Where two lengths are possible, only a square block tells which one it is.
    if len(heights) != 1 or len(widths) != 1:
        heights = widths = heights & widths
    if len(heights) != 1:
        return None
    height, width = *heights, *widths
    # kohya's blocks divide the columns, and convolutions and vectors have no blocks.
    uneven = bool(more) and wide * width != columns
    nested = len(weight) != 2 and (height, wide) != (1, 1)
    # A row of as many scales as there are rows may be a column that was transposed.
    narrow = 1 < wide < columns and width < LEAST_BLOCK
    lying = high == 1 < rows == wide
    return None if uneven or nested or narrow or lying else (height, width)


def scales_by_rows(scale: torch.Tensor, weight: tuple[int, ...]) -> torch.Tensor:
    """Spread a grid of scales over the rows of a weight.

    scale: floats of a shape that `block_shape` takes, more than one; weight: [N, K]. Returns
    float32 [N, blocks of K], or [N, K] where the number of blocks does not tell their length.
    """
    height, width = block_shape(weight, tuple(scale.shape))
    grid, columns = scale.float().reshape(scale.shape[0], -1), math.prod(weight[1:])
    if len(block_lengths(columns, grid.shape[1])) > 1:
        grid = grid.repeat_interleave(width, 1)[:, :columns]
    return grid.repeat_interleave(height, 0)[: weight[0]]


def multiply_blocks(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply rows of values by the scales of their blocks of columns, in place.

    values: float32 [n, K]; scales: float32 [n, blocks of K], as `scales_by_rows` gives them. Each
    product is rounded once.
    """
    (width,) = block_lengths(values.shape[1], scales.shape[1])
    whole = values.shape[1] // width
    values[:, : whole * width].unflatten(1, (whole, width)).mul_(scales[:, :whole, None])
    values[:, whole * width :].mul_(scales[:, whole:])
    return values
