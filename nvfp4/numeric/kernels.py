"""Write the hot loops over a few rows so that numba can compile them.

What `codes` and `scale_search` do with many torch operations, these loops do in one
pass over memory and without Python's lock: the same bits, and ten times faster once `compiled` has
compiled them. Nothing calls them uncompiled. Arrays are numpy's; blocks lie side by side, [16, b],
so that each loop over lanes becomes vector instructions.
"""

from __future__ import annotations

import numpy as np
import torch

from nvfp4.dtypes import BLOCK_SIZE, E2M1_MAX, E4M3_MAX
from nvfp4.numeric.codes import FIRST_NORMAL_E4M3_CODE, LAST_E4M3_CODE, ROUND_TO_HALVES
from nvfp4.numeric.scale_search import DOUBT, FIRST_OFFSET, LAST_OFFSET, UNHALVED_E4M3_CODE

# The float32 value of each positive E4M3 code; the last one, 127, is NaN.
E4M3_VALUES = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
# Blocks worked on side by side: the 16 magnitudes of each, 4 kB, stay in the first-level cache, and
# loops over them become vector instructions.
LANES = 64
# Plain Python numbers would make numba compute in float64, and round otherwise than torch does.
FLOAT32 = np.float32
# The least error so far before any scale was tried: no error that is finite is larger.
LARGEST_FLOAT32 = FLOAT32(3e38)


def e4m3_codes(values: np.ndarray, codes: np.ndarray) -> None:
    """Round float32 values from 0 to 448 to the nearest E4M3 codes, ties to even.

    values: [n] float32; codes: [n] int32, filled. The result is that of torch's cast to
    float8_e4m3fn.
    """
    bits = values.view(np.int32)
    for j in range(len(values)):
        # Half of the 20 bits that are dropped is added, less one where the last kept bit is even;
        # 960 is the difference of the exponents' biases, (127 - 7) * 8.
        normal = ((bits[j] + 0x7FFFF + ((bits[j] >> 20) & 1)) >> 20) - 960
        # Subnormals are multiples of 2**-9: adding 2**23 rounds to whole ones, ties to even.
        subnormal = np.int32((values[j] * FLOAT32(512) + FLOAT32(8388608)) - FLOAT32(8388608))
        codes[j] = normal if values[j] >= FLOAT32(2**-6) else subnormal


def e4m3_codes_of_at_least(values: np.ndarray, codes: np.ndarray) -> None:
    """Find the smallest E4M3 codes whose values are not below the numbers given.

    values: [n] float32, clamped in place to 0..448; codes: [n] int32, filled. Up to 448 the same as
    `codes.e4m3_code_of_at_least`; larger numbers get 126 here and 127 there.
    """
    for j in range(len(values)):
        values[j] = min(max(values[j], FLOAT32(0)), FLOAT32(E4M3_MAX))
    e4m3_codes(values, codes)
    for j in range(len(values)):
        codes[j] += E4M3_VALUES[codes[j]] < values[j]


def block_errors(
    magnitudes: np.ndarray, codes: np.ndarray, global_scale: np.float32, errors: np.ndarray
) -> None:
    """Compute the squared error of blocks side by side, each at one block scale.

    magnitudes: [16, b] float32; codes: [b] int32, E4M3 codes; global_scale: float32; errors: [b]
    float32, filled, in units of global_scale**2. Sums run in the order of
    `scale_search.scale_errors`, so that the bits are the same.
    """
    count = magnitudes.shape[1]
    sums, reciprocals = np.zeros((8, count), FLOAT32), np.empty(count, FLOAT32)
    for j in range(count):
        reciprocals[j] = FLOAT32(1) / (E4M3_VALUES[codes[j]] * global_scale)
    for i in range(BLOCK_SIZE):
        row, total = magnitudes[i], sums[i % 8]
        for j in range(count):
            # Values from 0, 2 and 4 on have steps of 0.5, 1 and 2, hence three shifts.
            scaled = row[j] * reciprocals[j]
            large = FLOAT32(ROUND_TO_HALVES)
            large = FLOAT32(2 * ROUND_TO_HALVES) if scaled >= FLOAT32(2) else large
            large = FLOAT32(4 * ROUND_TO_HALVES) if scaled >= FLOAT32(4) else large
            error = scaled - min((scaled + large) - large, FLOAT32(E2M1_MAX))
            total[j] += error * error
    # Parity: the same tree of additions as `fill_sums`, whose first step made 8 of 16 sums.
    for half in (4, 2, 1):
        for i in range(half):
            for j in range(count):
                sums[i, j] += sums[i + half, j]
    for j in range(count):
        scale = E4M3_VALUES[codes[j]]
        errors[j] = sums[0, j] * scale * scale


def keep_better(codes: np.ndarray, errors: np.ndarray, best: np.ndarray, least: np.ndarray) -> None:
    """Keep, for each block, the better of a new block scale and the best one so far.

    codes: [b] int32, and errors: [b] float32, of the new ones; best, least: those of the best ones,
    updated. A smaller error is better, and of equal errors the smaller code.
    """
    for j in range(len(codes)):
        better = (errors[j] < least[j]) | ((errors[j] == least[j]) & (codes[j] < best[j]))
        best[j] = codes[j] if better else best[j]
        least[j] = errors[j] if better else least[j]


def best_codes(
    magnitudes: np.ndarray, block_amax: np.ndarray, global_scale: np.float32, best: np.ndarray
) -> None:
    """Search the best block scales as `scale_search.mse_block_scales` does.

    magnitudes: [16, b] float32; block_amax: [b] float32, the largest of each block, overwritten;
    global_scale: float32; best: [b] int32, filled with E4M3 codes, 0 for a block of zeros.
    """
    count = len(block_amax)
    first, codes = np.empty(count, np.int32), np.empty(count, np.int32)
    values, errors, least = (
        np.empty(count, FLOAT32),
        np.empty(count, FLOAT32),
        np.empty(count, FLOAT32),
    )
    for j in range(count):
        block_amax[j] /= global_scale
        # Parity: every step is rounded to float32 in the order of `mse_block_scales`.
        values[j] = block_amax[j] / FLOAT32(E2M1_MAX) * FLOAT32(1 + DOUBT)
        best[j], least[j] = LAST_E4M3_CODE + 1, LARGEST_FLOAT32
    e4m3_codes_of_at_least(values, first)
    for offset in range(FIRST_OFFSET, LAST_OFFSET + 1):
        for j in range(count):
            codes[j] = min(max(first[j] + offset, 1), LAST_E4M3_CODE)
        block_errors(magnitudes, codes, global_scale, errors)
        keep_better(codes, errors, best, least)
    # A few blocks may have better scales below the candidates; a block of zeros gets scale 0.
    search_below(magnitudes, block_amax, global_scale, (first, best, least))
    for j in range(count):
        best[j] = best[j] if block_amax[j] > 0 else 0


def search_below(
    magnitudes: np.ndarray,
    block_amax: np.ndarray,
    global_scale: np.float32,
    so_far: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Search on below the candidates, for the few blocks whose bound leaves codes there.

    Does what `scale_search.search_codes` does. magnitudes: [16, b]; block_amax: [b], in units of
    the global scale; so_far: the code of each block's smallest scale that clips nothing, its best
    code and its least error, [b] each; the best codes are updated and the first ones overwritten.
    """
    first, best, least = so_far
    values, low = np.empty(len(first), FLOAT32), np.empty(len(first), np.int32)
    for j in range(len(first)):
        bound = (block_amax[j] - np.sqrt(least[j])) / FLOAT32(E2M1_MAX)
        values[j] = bound * FLOAT32(1 - DOUBT)
    e4m3_codes_of_at_least(values, low)
    count, steps, rest = 0, 0, np.empty(len(first), np.int32)
    for j in range(len(first)):
        few = first[j] <= FIRST_NORMAL_E4M3_CODE
        low[j] = 1 if few else max(low[j], 1)
        first[j] = UNHALVED_E4M3_CODE if few else first[j] + FIRST_OFFSET - 1
        if low[j] <= first[j] and block_amax[j] > 0:
            rest[count] = j
            count += 1
            steps = max(steps, first[j] - low[j] + 1)
    # The few blocks are copied side by side, as errors are computed for many lanes at a time.
    rest = rest[:count]
    some, codes, errors = magnitudes[:, rest], low[rest], np.empty(count, FLOAT32)
    some_best, some_least = best[rest], least[rest]
    for _ in range(steps):
        block_errors(some, codes, global_scale, errors)
        keep_better(codes, errors, some_best, some_least)
        for j in range(count):
            codes[j] = min(codes[j] + 1, first[rest[j]])
    for j in range(count):
        best[rest[j]] = some_best[j]


def round_blocks(
    magnitudes: np.ndarray, best: np.ndarray, global_scale: np.float32, codes: np.ndarray
) -> tuple[float, float]:
    """Round blocks side by side to E2M1 codes, and measure the error.

    magnitudes: [16, b] float32; best: [b] int32, E4M3 codes of the block scales; codes: [16, b]
    int32, filled with 0..7. Returns squared error and energy in units of the global scale, summed
    in float64 over the lanes.
    """
    count = len(best)
    steps, scales = np.empty(count, FLOAT32), np.empty(count, FLOAT32)
    errors, energies = np.zeros(count, FLOAT32), np.zeros(count, FLOAT32)
    unit = FLOAT32(1) / global_scale
    for j in range(count):
        scales[j] = E4M3_VALUES[best[j]]
        steps[j] = scales[j] * global_scale
    for i in range(BLOCK_SIZE):
        magnitude, code = magnitudes[i], codes[i]
        for j in range(count):
            scaled = magnitude[j] / (steps[j] if steps[j] > 0 else FLOAT32(1))
            scaled = min(scaled, FLOAT32(E2M1_MAX)) if steps[j] > 0 else FLOAT32(0)
            power = FLOAT32(4) if scaled >= 4 else FLOAT32(2) if scaled >= 2 else FLOAT32(1)
            large = power * FLOAT32(ROUND_TO_HALVES)
            rounded = scaled + large - large
            # A power's values are steps of half of it; each power begins two codes further up.
            start = 4 if scaled >= 4 else 2 if scaled >= 2 else 0
            code[j] = np.int32(rounded * (FLOAT32(2) / power)) + start
            original = magnitude[j] * unit
            error = rounded * scales[j] - original
            errors[j] += error * error
            energies[j] += original * original
    return total(errors), total(energies)


def encode_blocks(
    bits: np.ndarray, global_scale: np.float32, search: bool, packed: np.ndarray, scales: np.ndarray
) -> tuple[float, float]:
    """Quantise blocks to NVFP4 as `codes.encode_nvfp4` does.

    bits: [b, 16] int32, float32's bits; search: least error, else amax; packed: [b] uint64, filled,
    bytes in order; scales: [b] uint8, filled. Returns squared error and energy in units of the
    global scale.
    """
    shape = (BLOCK_SIZE, LANES)
    turned, codes = np.empty(shape, np.int32), np.empty(shape, np.int32)
    magnitudes = np.empty(shape, FLOAT32)
    block_amax, best = np.empty(LANES, FLOAT32), np.empty(LANES, np.int32)
    error, energy = 0.0, 0.0
    for begin in range(0, len(bits), LANES):
        count = min(LANES, len(bits) - begin)
        # Lanes beyond the last block hold zeros, which add nothing to error and energy.
        if count < LANES:
            turned[:] = 0
        some = bits[begin : begin + count]
        for j in range(count):
            for i in range(BLOCK_SIZE):
                turned[i, j] = some[j, i]
        values, block_amax[:] = turned.view(FLOAT32), 0
        for i in range(BLOCK_SIZE):
            row, magnitude = values[i], magnitudes[i]
            for j in range(LANES):
                magnitude[j] = abs(row[j])
                block_amax[j] = max(block_amax[j], magnitude[j])
        if search:
            best_codes(magnitudes, block_amax, global_scale, best)
        else:
            for j in range(LANES):
                scale = block_amax[j] / FLOAT32(E2M1_MAX) / global_scale
                block_amax[j] = min(scale, FLOAT32(E4M3_MAX))
            e4m3_codes(block_amax, best)
        more_error, more_energy = round_blocks(magnitudes, best, global_scale, codes)
        error, energy = error + more_error, energy + more_energy
        scales[begin : begin + count] = best[:count]
        for j in range(count):
            # What a scale of zero loses becomes +0, as in `codes.encode_nvfp4`: no sign bit (8).
            dead = E4M3_VALUES[best[j]] * global_scale == 0
            best[j] = 0 if dead else 8
        pack_blocks(codes, turned, best, packed[begin : begin + count])
    return error, energy


def pack_blocks(codes: np.ndarray, bits: np.ndarray, signs: np.ndarray, packed: np.ndarray) -> None:
    """Pack codes of blocks with their signs, as `codes.pack_e2m1` does.

    codes: [16, b] int32; bits: [16, b] int32, the float32 bits with the signs; signs: [b] int32, 8
    where they count and 0 where a block is all +0; packed: [b] uint64, filled, its lowest byte the
    first one in the file.
    """
    packed[:] = 0
    for i in range(BLOCK_SIZE // 2):
        even, odd = codes[2 * i], codes[2 * i + 1]
        even_bits, odd_bits = bits[2 * i], bits[2 * i + 1]
        for j in range(len(packed)):
            high = even[j] | ((even_bits[j] >> 28) & signs[j])
            low = odd[j] | ((odd_bits[j] >> 28) & signs[j])
            packed[j] |= np.uint64((high << 4) | low) << np.uint64(8 * i)


def e4m3_values(codes: np.ndarray, values: np.ndarray) -> None:
    """Decode E4M3 codes to float32 by their bits.

    codes: [n] int32, 0..126; values: [n] float32, filled. A look-up in E4M3_VALUES would take one
    code at a time, where this becomes vector instructions.
    """
    bits = values.view(np.int32)
    for j in range(len(codes)):
        # The inverse of what `e4m3_codes` does for normal numbers.
        bits[j] = (codes[j] + 960) << 20
    for j in range(len(codes)):
        subnormal = FLOAT32(codes[j]) * FLOAT32(2**-9)
        values[j] = values[j] if codes[j] >= FIRST_NORMAL_E4M3_CODE else subnormal


def encode_bytes(weights: np.ndarray, scale: np.float32, codes: np.ndarray) -> tuple[float, float]:
    """Quantise weights to FP8 as `codes.encode_fp8` does.

    weights: [n] float32; scale: float32; codes: [n] uint8, filled with E4M3 bits. Returns squared
    error and energy in units of the scale.
    """
    # As many weights at a time as `encode_blocks` takes, though FP8 has no blocks.
    width, bits = LANES * BLOCK_SIZE, weights.view(np.int32)
    reciprocal = FLOAT32(1) / scale
    magnitudes, values = np.empty(width, FLOAT32), np.empty(width, FLOAT32)
    errors, energies = np.zeros(width, FLOAT32), np.zeros(width, FLOAT32)
    found = np.empty(width, np.int32)
    for begin in range(0, len(weights), width):
        # Numba vectorises loops over slices, not over indices that it cannot prove positive.
        end = begin + width
        some, signs, out = weights[begin:end], bits[begin:end], codes[begin:end]
        for j in range(len(some)):
            magnitudes[j] = abs(some[j]) * reciprocal
            values[j] = min(magnitudes[j], FLOAT32(E4M3_MAX))
        e4m3_codes(values, found)
        for j in range(len(some)):
            out[j] = found[j] | ((signs[j] >> 24) & 0x80)
        e4m3_values(found, values)
        # One sum for each lane: a single one would wait for its last addition.
        for j in range(len(some)):
            difference = values[j] - magnitudes[j]
            errors[j] += difference * difference
            energies[j] += magnitudes[j] * magnitudes[j]
    return total(errors), total(energies)


def total(values: np.ndarray) -> float:
    """Sum values [n] one after the other in float64."""
    result = 0.0
    for value in values:
        result += value
    return result


# In the order in which `compile_kernels` compiles them: a loop comes after those that it calls.
KERNELS = (
    e4m3_codes,
    e4m3_codes_of_at_least,
    e4m3_values,
    total,
    block_errors,
    keep_better,
    search_below,
    best_codes,
    round_blocks,
    pack_blocks,
    encode_blocks,
    encode_bytes,
)
