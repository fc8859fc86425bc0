"""NVFP4 and FP8 of a tensor, and back."""

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

# How far a float's bits move to become those of a wider float with the same value (see decoders).
E2M1_TO_HALF_SCALE = 2.0**14  # exponent bias: 15 - 1
E4M3_TO_HALF_SCALE = 2.0**8  # exponent bias: 15 - 7
FLOAT32_EXPONENT = 0x7F800000
LEAST_FLOAT32 = 2.0**-149
ROUND_TO_HALVES = 2.0**22  # float32 at this size has a unit in the last place of 0.5
LAST_E4M3_CODE = 126  # 448; 127 is NaN
FIRST_NORMAL_E4M3_CODE = 8
# Global scales tried where more than so many block scales fall into E4M3's subnormals: the
# largest weight is 6 times 448 or one of these E4M3 values, so that it stays exact. Smaller
# global scales would clip it, which cost more than they gave in every tensor tried.
MANY_SUBNORMALS = 0.01
E4M3_ONE = 56  # the code of 1.0


class FloatGrid(NamedTuple):
    """The values of a float format: bits of the mantissa, its smallest normal, its largest."""

    mantissa_bits: int
    least_normal: float
    largest: float

    @property
    def shift(self) -> float:
        """Added to a value times its power of two and taken away, it leaves the value rounded."""
        return 1.5 * 2.0 ** (23 - self.mantissa_bits)


E2M1 = FloatGrid(1, 1.0, E2M1_MAX)
E4M3 = FloatGrid(3, 2.0**-6, E4M3_MAX)


def largest_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """max |w| as a float32 scalar; NaN where the weight holds a NaN, inf where it holds an inf."""
    low, high = weight.aminmax()
    return torch.maximum(-low, high).float()


def divide(values: torch.Tensor, number: float) -> torch.Tensor:
    """values / number, rounded once: CUDA would multiply by the reciprocal of a plain number."""
    return values / torch.tensor(number, dtype=values.dtype, device=values.device)


def nvfp4_global_scale(amax: torch.Tensor) -> torch.Tensor:
    """amax / (448 * 6) in float32, as comfy_kitchen's TensorCoreNVFP4Layout computes it.

    A weight of zeros, or one so small that the quotient underflows, gets 1: all codes are zero.
    """
    scale = divide(amax, NVFP4_MAX)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fp8_scale(amax: torch.Tensor) -> torch.Tensor:
    """amax / 448 in float32, never so small that its reciprocal overflows; 1 for zeros."""
    scale = divide(amax, E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def amax_block_scales(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """E4M3 scale of each block from its largest weight: [n, k] float32 -> [n, k/16] float8_e4m3fn.

    Both divisions, in this order, are needed to match comfy_kitchen bit for bit.
    """
    # Pooling is three times faster than amax over an inner dimension of 16.
    block_amax = torch.nn.functional.max_pool1d(magnitude, BLOCK_SIZE)
    block_scale = divide(block_amax, E2M1_MAX) / global_scale
    return block_scale.clamp_(max=E4M3_MAX).to(torch.float8_e4m3fn)


def encode_nvfp4(
    weight: torch.Tensor, global_scale: torch.Tensor, block_scales: Callable = amax_block_scales
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows of a weight to NVFP4, with block scales chosen by one of SCALE_SEARCHES.

    weight: [n, k] float32, bfloat16 or float16, finite; k is padded with zeros to K16.
    Returns packed codes [n, K16/2] uint8 (even column in the high nibble) and block scales
    [n, K16/16] float8_e4m3fn, not swizzled. Rounds to nearest, ties to even; with
    `amax_block_scales` bit-identical to comfy_kitchen.quantize_nvfp4 at the same global scale.
    """
    rows, columns = weight.shape
    values = weight.float()
    if columns % BLOCK_SIZE:
        values = torch.nn.functional.pad(values, (0, -columns % BLOCK_SIZE))
    magnitude = values.abs()
    block_scale = block_scales(magnitude, global_scale)
    step = decode_e4m3(block_scale) * global_scale
    dead = step == 0
    if dead.any():  # -0.0 and values lost to a zero scale become +0, as comfy_kitchen has it
        values = values.unflatten(1, (-1, BLOCK_SIZE)).masked_fill(dead.unsqueeze(-1), 0.0)
        magnitude, values = values.abs().flatten(1), values.flatten(1)
        step = step.masked_fill(dead, 1.0)
    blocks = magnitude.view(rows, -1, BLOCK_SIZE)
    torch.div(blocks, step.unsqueeze(-1), out=blocks)
    return pack_e2m1(round_to_e2m1(magnitude), values), block_scale


def round_to_e2m1(scaled: torch.Tensor) -> torch.Tensor:
    """E2M1 codes 0..7 (uint8) of non-negative float32 values, which are overwritten.

    E2M1 has steps of a half of each value's power of two (of 1 below 1). Adding 2**22 times that
    power lets float32's own rounding leave the code's step count in the lowest mantissa bits;
    the power's exponent supplies the rest (127 * 2 = 6 modulo 8, hence the 2).
    """
    scaled.clamp_(max=E2M1_MAX)
    power = scaled.clamp(min=1.0).view(torch.int32).bitwise_and_(FLOAT32_EXPONENT)
    scaled.add_(power.view(torch.float32), alpha=ROUND_TO_HALVES)
    steps = scaled.view(torch.int32).add_(power.bitwise_right_shift_(22))
    return steps.to(torch.uint8).add_(2).bitwise_and_(7)


def pack_e2m1(codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Add the signs of float32 `values` [n, k] to the codes and pack two a byte, even one high."""
    signs = torch.bitwise_right_shift(values.view(torch.int32), 28).to(torch.uint8)
    pairs = codes.bitwise_or_(signs.bitwise_and_(8)).view(torch.int16)  # even column: low byte
    high = torch.bitwise_left_shift(pairs, 4)
    return high.bitwise_or_(pairs.bitwise_right_shift_(8)).to(torch.uint8)


def decode_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Packed codes [n, k/2] uint8 -> float32 [n, k]: placed as float16 bits, then rebiased.

    A table look-up is ten times slower, and float32 bits would make 0.5 a slow denormal.
    """
    wide = packed.to(torch.int16)
    pairs = ((wide & 15) << 8).bitwise_or_(wide >> 4)
    codes = pairs.view(torch.uint8).to(torch.int16)
    half = ((codes & 8) << 12).bitwise_or_((codes & 7) << 9)
    return half.view(torch.float16).float().mul_(E2M1_TO_HALF_SCALE)


def decode_e4m3(codes: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn -> float32, through float16 bits: torch's own cast is many times slower."""
    wide = codes.view(torch.uint8).to(torch.int16)
    half = ((wide & 0x80) << 8).bitwise_or_((wide & 0x7F) << 7)
    return half.view(torch.float16).float().mul_(E4M3_TO_HALF_SCALE)


def e4m3_value(code: torch.Tensor) -> torch.Tensor:
    """Values (float32) of positive E4M3 codes (int16, up to 127, which counts on to 480)."""
    return (code << 7).view(torch.float16).float().mul_(E4M3_TO_HALF_SCALE)


def e4m3_code_of_at_least(value: torch.Tensor) -> torch.Tensor:
    """The smallest E4M3 code (int16) whose value is at least `value`; 127 beyond 448."""
    nearest = value.clamp(0.0, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    return nearest + (e4m3_value(nearest) < value).to(torch.int16)


def decode_nvfp4(
    packed: torch.Tensor, block_scale: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """Inverse of `encode_nvfp4`: float32 [n, K16], what comfy_kitchen dequantises to."""
    values = decode_e2m1(packed)
    blocks = values.view(len(values), -1, BLOCK_SIZE)
    blocks.mul_((decode_e4m3(block_scale) * global_scale).unsqueeze(-1))
    return values


def encode_fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float -> float8_e4m3fn: comfy_kitchen.quantize_per_tensor_fp8 of the float32 weight."""
    scaled = weight.float() * (1.0 / scale)
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def decode_fp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Inverse of `encode_fp8`: float32."""
    return decode_e4m3(codes).mul_(scale)


def swizzle(block_scale: torch.Tensor) -> torch.Tensor:
    """Block scales [n, b] into cuBLAS's 128x4 tiles: [roundup(n, 128), roundup(b, 4)], 0-padded.

    Within a tile, row r and column c lie at byte (r % 32) * 16 + (r // 32) * 4 + c.
    """
    rows, columns = block_scale.shape
    height, width = round_up(rows, TILE_ROWS), round_up(columns, TILE_COLUMNS)
    padding = (0, width - columns, 0, height - rows)
    scales = torch.nn.functional.pad(block_scale.view(torch.uint8), padding)
    words = scales.view(torch.int32).view(-1, 4, 32, width // TILE_COLUMNS)  # a tile row's 4 bytes
    tiles = words.permute(0, 3, 2, 1).contiguous()
    return tiles.view(torch.uint8).view(height, width).view(block_scale.dtype)


def unswizzle(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Inverse of `swizzle`: [N128, B4] -> [rows, columns], the padding dropped."""
    height, width = tiles.shape
    words = tiles.view(torch.uint8).flatten().view(torch.int32)
    scales = words.view(-1, width // TILE_COLUMNS, 32, 4).permute(0, 3, 2, 1).contiguous()
    flat = scales.view(torch.uint8).view(height, width)[:rows, :columns]
    return flat.contiguous().view(tiles.dtype)


def quantised_rows(rows: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Input rows [r, K] as W4A4 sees them, at an input scale or at that of these rows."""
    amax = largest_magnitude(rows)
    scale = nvfp4_global_scale(amax) if scale is None else torch.full_like(amax, scale)
    return decode_nvfp4(*encode_nvfp4(rows, scale), scale)[:, : rows.shape[1]]


def has_many_subnormals(block_scale: torch.Tensor) -> bool:
    """Whether a good part of the scales is in E4M3's subnormals, with fewer than four bits."""
    codes = block_scale.view(torch.uint8)
    subnormal = (codes > 0) & (codes < FIRST_NORMAL_E4M3_CODE)
    return int(subnormal.sum()) > MANY_SUBNORMALS * int((codes > 0).sum())
