"""Quantise tensors to NVFP4 and FP8, and dequantise them again.

A weight [N, K] in NVFP4 is E2M1 codes, two in a byte, an E4M3 block scale for every 16 columns of a
row, and a float32 global scale: weight = code * block scale * global scale. In FP8 it is E4M3 codes
and one scale. What is stored is bit-identical to comfy_kitchen at equal scales; the block scales
with the least error come from `scale_search`, faster code from `compiled`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from nvfp4.dtypes import (
    BLOCK_SIZE,
    E2M1_MAX,
    E4M3_MAX,
    NVFP4_MAX,
    TILE_COLUMNS,
    TILE_ROWS,
    round_up,
)

# The decoders put a small float's bits where float16 has its exponent and mantissa. The value is
# then too small by the difference of the exponent biases, 15 - 1 for E2M1 and 15 - 7 for E4M3.
E2M1_TO_HALF_SCALE = 2.0**14
E4M3_TO_HALF_SCALE = 2.0**8
# A float32 masked with these bits is the power of two at or below its magnitude.
FLOAT32_EXPONENT = 0x7F800000
# The smallest subnormal float32: an amax that divides to less than half of it loses everything.
LEAST_FLOAT32 = 2.0**-149
# A float32 of this size has a unit in the last place of 0.5, so adding it rounds to halves.
ROUND_TO_HALVES = 2.0**22
# Positive E4M3 codes run from 1 (2**-9) to 126 (448), with 127 a NaN; those below 8 are subnormal.
LAST_E4M3_CODE = 126
FIRST_NORMAL_E4M3_CODE = 8
# Other global scales are tried where more than this share of the block scales is subnormal in E4M3.
MANY_SUBNORMALS = 0.01
# The E4M3 code of 1.0: the block scale of formats that have none, and of rows not yet rounded.
E4M3_ONE = 56

# Rounds a column: (what to round [m, n], where the levels go [m, n]) -> decoded values [m, n].
Nearest = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FloatGrid(NamedTuple):
    """Describe the values that a small float format can hold.

    mantissa_bits: those stored, without the implied leading one; least_normal: the smallest normal
    value, below which values are evenly spaced; largest: the magnitude where values saturate.
    Rounding by statistics (`feedback`) and its compiled kernels round to any such grid.
    """

    mantissa_bits: int
    least_normal: float
    largest: float

    @property
    def shift(self) -> float:
        """Return the float32 constant that rounds when it is added and subtracted.

        Scaled by the power of two at or below a value, it lifts a sum to where float32's unit in
        the last place is the grid's step. The factor 1.5 keeps sums with negative values in the
        same binade.
        """
        return 1.5 * 2.0 ** (23 - self.mantissa_bits)

    @property
    def kind(self) -> FloatGrid:
        """Return the grid itself, which is all that code for it depends on."""
        return self

    def under(self, steps: torch.Tensor) -> Nearest:
        """Make a function that rounds to the nearest multiples of these values by steps.

        steps: [m, n] float32. What it returns takes what to round [m, n] and where the values go
        that are multiplied, and returns them times the steps.
        """
        scaled, inverse = torch.empty_like(steps), 1 / steps

        def nearest(want: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            torch.mul(want, inverse, out=scaled)
            return round_to_grid(scaled, self, out) * steps

        return nearest


E2M1 = FloatGrid(1, 1.0, E2M1_MAX)
E4M3 = FloatGrid(3, 2.0**-6, E4M3_MAX)
# The integers of INT8: spaced by 1 from 64 to 127, and below. comfy_kitchen never stores -128.
INTEGERS = FloatGrid(6, 64.0, 127.0)


def round_to_grid(values: torch.Tensor, grid: FloatGrid, out: torch.Tensor) -> torch.Tensor:
    """Round to the nearest values of a float format, ties to even, saturating.

    values: float32 of any sign and shape, finite; grid: the format; out: float32 of the same shape,
    filled and returned. Adding and subtracting the grid's shift, scaled by each value's power of
    two, leaves the rounding to float32 itself.
    """
    power = values.abs().clamp_(grid.least_normal, grid.largest)
    power = power.view(torch.int32).bitwise_and_(FLOAT32_EXPONENT).view(torch.float32)
    torch.add(values, power, alpha=grid.shift, out=out)
    return out.sub_(power, alpha=grid.shift).clamp_(-grid.largest, grid.largest)


def largest_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Find max |w| of a tensor of any shape and float dtype, as a float32 scalar.

    The result is NaN where the tensor holds a NaN, and inf where it holds an infinity, so one look
    at the scalar tells whether a whole weight is finite. One pass of aminmax needs no copy of the
    absolute values.
    """
    low, high = weight.aminmax()
    return torch.maximum(-low, high).float()


def divide(values: torch.Tensor, number: float) -> torch.Tensor:
    """Divide a tensor by a Python number, in the tensor's dtype and rounded once.

    On CUDA, torch multiplies by the reciprocal of a plain number, which rounds twice and may differ
    in the last bit from what a CPU computes; a divisor that is a tensor on the device prevents it.
    """
    return values / torch.tensor(number, dtype=values.dtype, device=values.device)


def nvfp4_global_scale(amax: torch.Tensor) -> torch.Tensor:
    """Compute the global scale of a weight: amax / (448 * 6), a float32 scalar.

    amax: the largest magnitude, a float32 scalar. This is what comfy_kitchen's
    TensorCoreNVFP4Layout computes, except that a weight of zeros, or one so small that the quotient
    underflows to 0, gets scale 1: all its codes are zero either way, and nothing is divided by 0.
    """
    # Parity: comfy_kitchen divides by the product 2688, not by 448 and then by 6.
    scale = divide(amax, NVFP4_MAX)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fp8_scale(amax: torch.Tensor) -> torch.Tensor:
    """Compute the scale of an FP8 weight: amax / 448, a float32 scalar.

    amax: the largest magnitude, a float32 scalar. The scale is at least the smallest normal
    float32, because `encode_fp8` multiplies by its reciprocal, which would overflow; zeros get
    scale 1.
    """
    scale = divide(amax, E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def amax_block_scales(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Compute the block scale that makes each block's largest weight an E2M1 6.

    magnitude: [n, k] float32 >= 0, k a multiple of 16; global_scale: float32 scalar. Returns [n,
    k/16] float8_e4m3fn, saturated at 448. This is `--scale-search amax`. Both divisions, in this
    order, are needed to match comfy_kitchen.quantize_nvfp4 bit for bit.
    """
    # Pooling is three times faster than amax over an inner dimension of 16, and exact as well.
    block_amax = torch.nn.functional.max_pool1d(magnitude, BLOCK_SIZE)
    block_scale = divide(block_amax, E2M1_MAX) / global_scale
    return block_scale.clamp_(max=E4M3_MAX).to(torch.float8_e4m3fn)


def encode_nvfp4(
    weight: torch.Tensor, global_scale: torch.Tensor, block_scales: Callable = amax_block_scales
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows of a weight to NVFP4 at a given global scale.

    weight: [n, k] float32, bfloat16 or float16, finite; k is padded with zeros to K16, a multiple
    of 16. global_scale: float32 scalar. block_scales: one of SCALE_SEARCHES, which gets the
    magnitudes [n, K16] and the global scale. Returns packed codes [n, K16/2] uint8 (the even column
    in the high nibble) and block scales [n, K16/16] float8_e4m3fn, not swizzled. Rounds to nearest,
    ties to even; with `amax_block_scales` bit-identical to comfy_kitchen.quantize_nvfp4 at the same
    global scale.
    """
    rows, columns = weight.shape
    values = weight.float()
    if columns % BLOCK_SIZE:
        values = torch.nn.functional.pad(values, (0, -columns % BLOCK_SIZE))
    magnitude = values.abs()
    block_scale = block_scales(magnitude, global_scale)
    step = decode_e4m3(block_scale) * global_scale
    # A block scale that rounds to 0 loses its block: its codes become +0 even for negative values,
    # as comfy_kitchen has it.
    dead = step == 0
    if dead.any():
        values = values.unflatten(1, (-1, BLOCK_SIZE)).masked_fill(dead.unsqueeze(-1), 0.0)
        magnitude, values = values.abs().flatten(1), values.flatten(1)
        step = step.masked_fill(dead, 1.0)
    # Parity: comfy_kitchen divides by the step; a multiplied reciprocal would move ties.
    blocks = magnitude.view(rows, -1, BLOCK_SIZE)
    torch.div(blocks, step.unsqueeze(-1), out=blocks)
    return pack_e2m1(round_to_e2m1(magnitude), values), block_scale


def round_to_e2m1(scaled: torch.Tensor) -> torch.Tensor:
    """Round magnitudes in units of their block's step to E2M1 codes.

    scaled: float32 >= 0 of any shape, which is overwritten. Returns codes 0..7 (uint8) without a
    sign; beyond 6 they saturate, and ties go to the even code. E2M1 has steps of half of each
    value's power of two (of 0.5 below 1, as well). Adding 2**22 times that power makes float32's
    own rounding leave the number of steps in the lowest mantissa bits. The power's exponent field,
    shifted to count two codes for each power, supplies the rest of the code: power 1 has field 127,
    and 127 * 2 is 6 modulo 8, hence the 2 that is added.
    """
    # In place throughout: a chunk of rows is made to fit a core's cache.
    scaled.clamp_(max=E2M1_MAX)
    power = scaled.clamp(min=1.0).view(torch.int32).bitwise_and_(FLOAT32_EXPONENT)
    scaled.add_(power.view(torch.float32), alpha=ROUND_TO_HALVES)
    steps = scaled.view(torch.int32).add_(power.bitwise_right_shift_(22))
    return steps.to(torch.uint8).add_(2).bitwise_and_(7)


def swap_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Swap the upper and lower four bits of bytes, uint8 or int8 of any shape."""
    swapped = codes.view(torch.uint8)
    swapped = torch.bitwise_left_shift(swapped, 4) | torch.bitwise_right_shift(swapped, 4)
    return swapped.view(codes.dtype)


def pack_e2m1(codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Add signs to E2M1 codes and pack two columns into a byte.

    codes: [n, k] uint8 0..7, which are overwritten; values: [n, k] float32 whose sign bits count,
    so that a negative value rounded to zero stays -0. Returns [n, k/2] uint8 with the even column
    in the high nibble, as comfy_kitchen packs with hi_first=True. Little-endian bytes are assumed.
    """
    # Float32's sign bit, moved down by 28, is bit 3, where an E2M1 code has its own.
    signs = torch.bitwise_right_shift(values.view(torch.int32), 28).to(torch.uint8)
    # Two codes read as one int16 have the even column in the low byte.
    pairs = codes.bitwise_or_(signs.bitwise_and_(8)).view(torch.int16)
    high = torch.bitwise_left_shift(pairs, 4)
    return high.bitwise_or_(pairs.bitwise_right_shift_(8)).to(torch.uint8)


def decode_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Unpack E2M1 codes to the values they stand for, without any scale.

    packed: [n, k/2] uint8, the even column in the high nibble. Returns [n, k] float32. Sign,
    exponent and mantissa are moved to where float16 has them, and the difference of the exponents'
    biases is multiplied away. A table look-up is ten times slower, and float32 bits would make 0.5
    a subnormal, which CPUs handle slowly.
    """
    # Each byte becomes an int16 whose low byte, read first, is the high nibble.
    wide = packed.to(torch.int16)
    pairs = ((wide & 15) << 8).bitwise_or_(wide >> 4)
    codes = pairs.view(torch.uint8).to(torch.int16)
    # The sign goes to bit 15, the exponent's two bits and the mantissa's one to bits 9 to 11.
    half = ((codes & 8) << 12).bitwise_or_((codes & 7) << 9)
    return half.view(torch.float16).float().mul_(E2M1_TO_HALF_SCALE)


def decode_e4m3(codes: torch.Tensor) -> torch.Tensor:
    """Decode E4M3 numbers to float32, exactly.

    codes: float8_e4m3fn of any shape, or uint8 with the same bits; a NaN (0x7F) becomes 480 and is
    for the caller to refuse. The bits are moved to where float16 has them, as torch's own cast is
    many times slower.
    """
    wide = codes.view(torch.uint8).to(torch.int16)
    # The sign goes to bit 15, exponent and mantissa to bits 7 to 13.
    half = ((wide & 0x80) << 8).bitwise_or_((wide & 0x7F) << 7)
    return half.view(torch.float16).float().mul_(E4M3_TO_HALF_SCALE)


def e4m3_value(code: torch.Tensor) -> torch.Tensor:
    """Decode positive E4M3 codes that are held as int16, to float32.

    code: int16 of any shape, 0 to 127. Code 127, a NaN in E4M3, counts on to 480: the scale
    searches use it as the value after the last one.
    """
    return (code << 7).view(torch.float16).float().mul_(E4M3_TO_HALF_SCALE)


def e4m3_code_of_at_least(value: torch.Tensor) -> torch.Tensor:
    """Find the smallest E4M3 code whose value is not below a number.

    value: float32 of any shape; negative ones count as 0. Returns int16 of the same shape, 127
    where the number is above 448. Scale searches turn a bound for a block scale into codes with it.
    """
    # The cast rounds to nearest, so that the code found may be one too low, never two.
    nearest = value.clamp(0.0, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    return nearest + (e4m3_value(nearest) < value).to(torch.int16)


def decode_nvfp4(
    packed: torch.Tensor, block_scale: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """Dequantise what `encode_nvfp4` returns, to float32.

    packed: [n, K16/2] uint8; block_scale: [n, K16/16] float8_e4m3fn, not swizzled; global_scale:
    float32 scalar. Returns [n, K16], padded columns included. Block scale and global scale are
    multiplied first, as comfy_kitchen.dequantize_nvfp4 does it.
    """
    values = decode_e2m1(packed)
    blocks = values.view(len(values), -1, BLOCK_SIZE)
    blocks.mul_((decode_e4m3(block_scale) * global_scale).unsqueeze(-1))
    return values


def encode_fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantise a weight to FP8 (E4M3) at one scale.

    weight: floats of any shape; scale: float32 scalar. Returns float8_e4m3fn of the same shape,
    saturated at 448. Bit-identical to comfy_kitchen.quantize_per_tensor_fp8 of the weight in
    float32, which multiplies by the reciprocal of the scale rather than dividing by it.
    """
    # Parity: comfy_kitchen multiplies by the reciprocal, and saturates before it casts.
    scaled = weight.float() * (1.0 / scale)
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def decode_fp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Dequantise what `encode_fp8` returns, to float32 of the same shape.

    codes: float8_e4m3fn of any shape; scale: a float32 tensor that broadcasts against them. Each
    value is the code times the scale, rounded once.
    """
    return decode_e4m3(codes).mul_(scale)


def swizzle(block_scale: torch.Tensor) -> torch.Tensor:
    """Rearrange block scales into the 128x4 tiles that cuBLAS reads.

    block_scale: [n, b] of a one-byte dtype, a row's scales in the order of its blocks. Returns
    [roundup(n, 128), roundup(b, 4)] of the same dtype, the padding zero. Within a tile, row r and
    column c lie at byte (r % 32) * 16 + (r // 32) * 4 + c, as in NVIDIA's documentation of cuBLAS
    and comfy_kitchen's to_blocked.
    """
    rows, columns = block_scale.shape
    height, width = round_up(rows, TILE_ROWS), round_up(columns, TILE_COLUMNS)
    padding = (0, width - columns, 0, height - rows)
    scales = torch.nn.functional.pad(block_scale.view(torch.uint8), padding)
    # The 4 bytes of a tile's row move together, as one int32: [tile rows, 4, 32, tile columns].
    words = scales.view(torch.int32).view(-1, 4, 32, width // TILE_COLUMNS)
    tiles = words.permute(0, 3, 2, 1).contiguous()
    return tiles.view(torch.uint8).view(height, width).view(block_scale.dtype)


def unswizzle(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Bring tiles of block scales back into rows, the inverse of `swizzle`.

    tiles: [N128, B4] of a one-byte dtype, padded to whole tiles; rows, columns: how much of it is
    not padding. Returns [rows, columns] of the same dtype, in memory of its own.
    """
    height, width = tiles.shape
    words = tiles.view(torch.uint8).flatten().view(torch.int32)
    scales = words.view(-1, width // TILE_COLUMNS, 32, 4).permute(0, 3, 2, 1).contiguous()
    flat = scales.view(torch.uint8).view(height, width)[:rows, :columns]
    return flat.contiguous().view(tiles.dtype)


def quantised_rows(rows: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Quantise and dequantise input rows as a W4A4 matmul sees them.

    rows: [r, K] floats; scale: the layer's input scale, or None to take that of these rows, as
    ComfyUI does for a layer without one. Returns [r, K] float32. Block scales are those of amax:
    ComfyUI searches for nothing while it samples.
    """
    amax = largest_magnitude(rows)
    scale = nvfp4_global_scale(amax) if scale is None else torch.full_like(amax, scale)
    return decode_nvfp4(*encode_nvfp4(rows, scale), scale)[:, : rows.shape[1]]


def has_many_subnormals(block_scale: torch.Tensor) -> bool:
    """Tell whether over 1 % of the used block scales are E4M3 subnormals.

    block_scale: float8_e4m3fn of any shape. Scales of zero do not count. A subnormal (below 2**-6)
    has fewer than four significant bits, so another global scale may fit such blocks better.
    """
    codes = block_scale.view(torch.uint8)
    subnormal = (codes > 0) & (codes < FIRST_NORMAL_E4M3_CODE)
    return int(subnormal.sum()) > MANY_SUBNORMALS * int((codes > 0).sum())
