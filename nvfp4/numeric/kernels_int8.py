"""Write the loops of 8-bit formats with scales of rows or blocks, so that numba can compile them.

They are to `int8`, `rotation` and `mxfp8` what `kernels` is to `codes`: the same bits in one pass
over a row that stays in a core's cache. Nothing calls them uncompiled. Arrays are numpy's.
"""

from __future__ import annotations

import numpy as np

from nvfp4.dtypes import E4M3_MAX, FLOAT32_MAX, MX_BLOCK
from nvfp4.numeric.int8 import INT8_MAX, LANE_COLUMNS, LEAST_ROW_SCALE
from nvfp4.numeric.kernels import FLOAT32, e4m3_codes, e4m3_values
from nvfp4.numeric.mxfp8 import E8M0_ONE, FIRST_ROUNDED_UP, LAST_E8M0_CODE, MANTISSA_BITS

# The least mantissas that `mxfp8.amax_power_scales` rounds up, by exponent.
ROUNDED_UP = FIRST_ROUNDED_UP.numpy()
# Columns of a row that MXFP8 is made of at a time: 4 kB an array, of which there are four.
MX_COLUMNS = 1024
# Added to a float32 up to 2**22 and subtracted again, it leaves the nearest integer, ties to even.
ROUND_TO_INTEGERS = FLOAT32(1.5 * 2.0**23)
# The bits of a float32 without its sign; as integers they are in the order of the magnitudes.
MAGNITUDE_BITS = np.int32(0x7FFFFFFF)


def rotate_columns(values: np.ndarray) -> None:
    """Rotate a row [K] float32 in groups of 256 columns as `rotation.rotate` does, in place."""
    for j in range(len(values) // 4):
        a, b, c, d = values[4 * j], values[4 * j + 1], values[4 * j + 2], values[4 * j + 3]
        half = ((a + b) + (c + d)) * FLOAT32(0.5)
        values[4 * j], values[4 * j + 1] = half - d, half - c
        values[4 * j + 2], values[4 * j + 3] = half - b, half - a
    # Steps are written out, so that each loop has a length that the compiler knows.
    for step in (4, 16, 64):
        for begin in range(0, len(values), 4 * step):
            some = values[begin : begin + 4 * step]
            mix_fours(
                some[:step], some[step : 2 * step], some[2 * step : 3 * step], some[3 * step :]
            )


def mix_fours(first: np.ndarray, second: np.ndarray, third: np.ndarray, fourth: np.ndarray) -> None:
    """Apply one factor of the rotation to four parts of a group, [step] float32 each, in place."""
    for j in range(len(first)):
        a, b, c, d = first[j], second[j], third[j], fourth[j]
        half = ((a + b) + (c + d)) * FLOAT32(0.5)
        first[j], second[j], third[j], fourth[j] = half - d, half - c, half - b, half - a


def row_amax(values: np.ndarray) -> np.float32:
    """Find the largest magnitude of a row [K] float32 that is finite."""
    bits, largest = values.view(np.int32), np.zeros(1, np.int32)
    # Integers, as numba makes no vector instructions of the largest of many floats.
    most = np.int32(0)
    for j in range(len(bits)):
        most = max(most, bits[j] & MAGNITUDE_BITS)
    largest[0] = most
    return largest.view(FLOAT32)[0]


def add_lanes(lanes: np.ndarray) -> np.float32:
    """Sum lanes [a power of two] float32 by halves, in place: the last tree of a row's sum."""
    half = len(lanes) // 2
    while half:
        low, high = lanes[:half], lanes[half : 2 * half]
        for j in range(half):
            low[j] += high[j]
        half //= 2
    return lanes[0]


def round_row(
    values: np.ndarray, scale: np.float32, codes: np.ndarray, lanes: np.ndarray
) -> tuple[float, float]:
    """Round a row to integers as `int8.encode_int8` does, and measure the error.

    values: [K] float32; scale: that of the row; codes: [K] int8, filled; lanes: [2, LANE_COLUMNS]
    float32, overwritten. Returns squared error and energy in units of the scale.
    """
    lanes[:] = 0
    errors, energies = lanes[0], lanes[1]
    for begin in range(0, len(values), LANE_COLUMNS):
        some, out = values[begin : begin + LANE_COLUMNS], codes[begin : begin + LANE_COLUMNS]
        for j in range(len(some)):
            # Parity: comfy_kitchen divides, and saturates what is rounded.
            scaled = some[j] / scale
            level = (scaled + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            level = min(max(level, FLOAT32(-INT8_MAX - 1)), FLOAT32(INT8_MAX))
            out[j] = np.int32(level)
            error = scaled - level
            errors[j] += error * error
            energies[j] += scaled * scaled
    return np.float64(add_lanes(errors)), np.float64(add_lanes(energies))


def row_error(values: np.ndarray, scale: np.float32, lanes: np.ndarray) -> np.float32:
    """Compute the squared error of a row at a scale as `int8.mse_row_scales` does.

    values: [K] float32; lanes: [LANE_COLUMNS] float32, overwritten.
    """
    lanes[:], reciprocal = 0, FLOAT32(1) / scale
    for begin in range(0, len(values), LANE_COLUMNS):
        some = values[begin : begin + LANE_COLUMNS]
        for j in range(len(some)):
            scaled = some[j] * reciprocal
            level = (scaled + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            error = min(max(level, FLOAT32(-INT8_MAX - 1)), FLOAT32(INT8_MAX)) - scaled
            lanes[j] += error * error
    return add_lanes(lanes) * scale * scale


def best_row_scale(values: np.ndarray, tried: np.ndarray, lanes: np.ndarray) -> np.float32:
    """Choose the scale of a row as `int8.mse_row_scales` does.

    values: [K] float32; tried: [m] float32, what the largest magnitude may be in units of the
    scale, in the order of trying, or none for 127; lanes: [LANE_COLUMNS], overwritten.
    """
    amax, least = row_amax(values), FLOAT32(FLOAT32_MAX)
    best = max(amax / FLOAT32(INT8_MAX), FLOAT32(LEAST_ROW_SCALE))
    for index in range(len(tried)):
        scale = max(amax / tried[index], FLOAT32(LEAST_ROW_SCALE))
        error = row_error(values, scale, lanes)
        if error < least:
            best, least = scale, error
    return best


def encode_integers(
    rows: np.ndarray, rotated: bool, tried: np.ndarray, codes: np.ndarray, scales: np.ndarray
) -> tuple[float, float]:
    """Rotate rows and quantise them to INT8 as `int8.quantise_int8` does.

    rows: [n, K] float32; rotated: whether in groups of 256; tried: see `best_row_scale`; codes: [n,
    K] int8, filled; scales: [n] float32, filled. Returns squared error and energy, summed over rows
    in float64.
    """
    values, lanes = np.empty(rows.shape[1], FLOAT32), np.empty((2, LANE_COLUMNS), FLOAT32)
    error, energy = 0.0, 0.0
    for row in range(len(rows)):
        values[:] = rows[row]
        if rotated:
            rotate_columns(values)
        scale = best_row_scale(values, tried, lanes[0])
        scales[row], unit = scale, np.float64(scale) * np.float64(scale)
        more_error, more_energy = round_row(values, scale, codes[row], lanes)
        error, energy = error + more_error * unit, energy + more_energy * unit
    return error, energy


def power_codes(values: np.ndarray, codes: np.ndarray) -> int:
    """Find the E8M0 codes of a row's blocks as `mxfp8.amax_power_scales` does.

    values: [K] float32; codes: [K/32] uint8, filled. Returns the largest code.
    """
    largest = 0
    for block in range(len(codes)):
        amax = row_amax(values[block * MX_BLOCK : (block + 1) * MX_BLOCK])
        needed = np.empty(1, FLOAT32)
        needed[0] = max(amax / FLOAT32(E4M3_MAX), FLOAT32(2.0**-E8M0_ONE))
        bits = needed.view(np.int32)[0]
        exponent, mantissa = bits >> 23, bits & MANTISSA_BITS
        code = exponent + (mantissa >= ROUNDED_UP[exponent])
        codes[block] = code if amax > 0 else 0
        largest = max(largest, codes[block])
    return largest


def spread_powers(codes: np.ndarray, largest: int, powers: np.ndarray) -> None:
    """Give each column what its block is multiplied by, and its part of the row's unit.

    codes: [b] uint8, E8M0; largest: that of the row, whose power of two is the unit; powers: [2,
    32b] float32, filled.
    """
    bits = powers.view(np.int32)
    for block in range(len(codes)):
        some = slice(block * MX_BLOCK, (block + 1) * MX_BLOCK)
        code = np.int32(codes[block])
        # The exponent's bits of 2**(127 - code); 2**-127 is a subnormal. Code 0 makes zeros.
        inverse = ((2 * E8M0_ONE - code) << 23) if code else 0
        bits[0, some] = (1 << 22) if code == LAST_E8M0_CODE else inverse
        # Shares below float32's range are those of errors that nobody sees.
        bits[1, some] = max(E8M0_ONE + code - largest, 0) << 23


def encode_powers(rows: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> tuple[float, float]:
    """Quantise rows to MXFP8 as `mxfp8.encode_mxfp8` does at the scales of amax.

    rows: [n, K] float32, K a multiple of 32; codes: [n, K] uint8, filled with E4M3 bits; scales:
    [n, K/32] uint8, filled. Returns squared error and energy, summed over rows in float64.
    """
    shape = (MX_COLUMNS,)
    magnitudes, values, found = (
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
        np.empty(shape, np.int32),
    )
    powers, lanes = np.empty((2, MX_COLUMNS), FLOAT32), np.empty((2, MX_COLUMNS), FLOAT32)
    total_error, total_energy = 0.0, 0.0
    for row in range(len(rows)):
        largest = power_codes(rows[row], scales[row])
        lanes[:] = 0
        errors, energies = lanes[0], lanes[1]
        for begin in range(0, rows.shape[1], MX_COLUMNS):
            some, out = (
                rows[row, begin : begin + MX_COLUMNS],
                codes[row, begin : begin + MX_COLUMNS],
            )
            signs, count = some.view(np.int32), len(some)
            spread_powers(
                scales[row, begin // MX_BLOCK : (begin + count) // MX_BLOCK], largest, powers
            )
            inverses, shares = powers[0], powers[1]
            for j in range(count):
                magnitudes[j] = abs(some[j]) * inverses[j]
                values[j] = min(magnitudes[j], FLOAT32(E4M3_MAX))
            e4m3_codes(values[:count], found)
            for j in range(count):
                sign = (signs[j] >> 24) & 0x80
                out[j] = found[j] | (sign if inverses[j] > 0 else 0)
            e4m3_values(found[:count], values)
            for j in range(count):
                error, original = (values[j] - magnitudes[j]) * shares[j], magnitudes[j] * shares[j]
                errors[j] += error * error
                energies[j] += original * original
        unit = 4.0 ** (largest - E8M0_ONE)
        total_error += add_lanes(errors) * unit
        total_energy += add_lanes(energies) * unit
    return total_error, total_energy


# In the order in which `compile_kernels` compiles them.
INT8_KERNELS = (
    mix_fours,
    rotate_columns,
    row_amax,
    add_lanes,
    round_row,
    row_error,
    best_row_scale,
    encode_integers,
    power_codes,
    spread_powers,
    encode_powers,
)
