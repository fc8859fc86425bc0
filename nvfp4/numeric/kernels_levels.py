"""Write the loops that search W4A8's and W6A8's group scales, so that numba can compile them.

They do what `level_search` does, with the same bits: weights are snapped to whole numbers of small
units there, so that errors are whole numbers, too, and their sums have no order. Nothing calls
these loops uncompiled. Arrays are numpy's; groups lie side by side, [16, lanes].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nvfp4.numeric.codes import LAST_E4M3_CODE
from nvfp4.numeric.int8 import INT8_MAX, LANE_COLUMNS, LEAST_ROW_SCALE
from nvfp4.numeric.kernels import FLOAT32, LARGEST_FLOAT32, e4m3_codes_of_at_least, e4m3_values
from nvfp4.numeric.kernels_int8 import ROUND_TO_INTEGERS, add_lanes, rotate_columns, row_amax
from nvfp4.numeric.level_search import (
    E4M3_SIGN,
    FOUR_BIT_UNITS,
    SIX_BIT_UNITS,
    TABLE_COLUMNS,
    TABLE_MIDDLE,
)
from nvfp4.numeric.w4a8 import LARGEST_SIX_BITS, W4A8_GROUP

# Groups worked on side by side: their 16 weights as int16 are 2 kB.
GROUP_LANES = 64
WHOLE_UNITS = np.int16(FOUR_BIT_UNITS)


class Room(NamedTuple):
    """Hold the arrays that groups side by side are searched in: [16, lanes], or [lanes].

    turned: weights in units, int16; levels, nearest: what they are compared with, int16; sums,
    first, sides, codes, best: int32; scales, inverses, errors, least: float32.
    """

    turned: np.ndarray
    levels: np.ndarray
    nearest: np.ndarray
    sums: np.ndarray
    first: np.ndarray
    sides: np.ndarray
    codes: np.ndarray
    best: np.ndarray
    scales: np.ndarray
    inverses: np.ndarray
    errors: np.ndarray
    least: np.ndarray


def snap_row(
    values: np.ndarray, scale: np.float32, units: np.float32, snapped: np.ndarray
) -> float:
    """Round a row to whole numbers of small units, and measure its energy.

    values: [K] float32; scale: that of the row; units: how many one of INT8's steps has, float32;
    snapped: [K] int16, filled. Returns the energy in units of the scale.
    """
    lanes = np.zeros(LANE_COLUMNS, FLOAT32)
    for begin in range(0, len(values), LANE_COLUMNS):
        some, out = values[begin : begin + LANE_COLUMNS], snapped[begin : begin + LANE_COLUMNS]
        for j in range(len(some)):
            scaled = some[j] / scale
            out[j] = np.int32((scaled * units + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS)
            lanes[j] += scaled * scaled
    return np.float64(add_lanes(lanes))


def first_scales(
    turned: np.ndarray, top: np.float32, units: np.float32, mirrored: bool, room: Room
) -> None:
    """Find the smallest scale that clips nothing of each group, and the side of its largest weight.

    turned: [16, GROUP_LANES] int16; top: the codebook's largest level; units: those of the weights;
    mirrored: whether scales may be negative; room: `first` gets E4M3 codes, `sides` 1 where the
    largest weight is a negative one.
    """
    high, low, largest = room.nearest, room.levels[0], room.errors
    high[:], low[:] = turned[0], turned[0]
    for i in range(1, W4A8_GROUP):
        row = turned[i]
        for j in range(GROUP_LANES):
            high[j], low[j] = max(high[j], row[j]), min(low[j], row[j])
    for j in range(GROUP_LANES):
        most, least = np.int32(high[j]), -np.int32(low[j])
        largest[j] = FLOAT32(max(most, least)) / units / top
        room.sides[j] = mirrored and least > most
    e4m3_codes_of_at_least(largest, room.first)


def codebook_errors(turned: np.ndarray, book: np.ndarray, room: Room) -> None:
    """Compute the squared errors of groups to the nearest of 16 levels, in units squared.

    turned: [16, GROUP_LANES] int16; book: [16] float32, the levels; room: `scales` of either sign
    are read, `errors` filled.
    """
    levels, nearest, sums, scales = room.levels, room.nearest, room.sums, room.scales
    for k in range(len(book)):
        made = levels[k]
        for j in range(GROUP_LANES):
            level = (book[k] * scales[j] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            level = min(max(level, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
            made[j] = np.int16(np.int32(level)) * WHOLE_UNITS
    sums[:] = 0
    for i in range(W4A8_GROUP):
        row = turned[i]
        for j in range(GROUP_LANES):
            least = np.int16(abs(np.int16(levels[0, j] - row[j])))
            # The length of the loop is known, so that it becomes 16 steps of vector instructions.
            for k in range(1, 16):
                least = min(least, np.int16(abs(np.int16(levels[k, j] - row[j]))))
            nearest[j] = least
        for j in range(GROUP_LANES):
            error = np.int32(nearest[j])
            sums[j] += error * error
    for j in range(GROUP_LANES):
        room.errors[j] = sums[j]


def uniform_errors(turned: np.ndarray, room: Room) -> None:
    """Compute the squared errors of groups to the nearest of W6A8's levels, in INT8's steps.

    turned: [16, GROUP_LANES] int16; room: `scales` >= 0 are read, `errors` filled. The nearest
    level is that of the nearest multiple of the scale, or a neighbour.
    """
    inverses, errors, scales = room.inverses, room.errors, room.scales
    largest = FLOAT32(LARGEST_SIX_BITS)
    errors[:] = 0
    for j in range(GROUP_LANES):
        inverses[j] = FLOAT32(1) / scales[j] if scales[j] > 0 else FLOAT32(0)
    for i in range(W4A8_GROUP):
        row = turned[i]
        for j in range(GROUP_LANES):
            value = FLOAT32(row[j]) * FLOAT32(1 / SIX_BIT_UNITS)
            middle = (value * inverses[j] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            nearest = FLOAT32(2 * INT8_MAX)
            for step in range(3):
                code = min(max(middle + FLOAT32(step - 1), -largest), largest)
                level = (code * scales[j] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
                level = min(max(level, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
                nearest = min(nearest, abs(level - value))
            errors[j] += nearest * nearest


def best_scales(
    turned: np.ndarray, book: np.ndarray, tried: tuple[int, int, int, int], room: Room
) -> None:
    """Search the best group scales as `level_search.search_slice` does.

    turned: [16, GROUP_LANES] int16; book: the levels, [16] or [63]; tried: first and last offset of
    the scales that are tried, and the same for scales of the other sign, none where the last is
    before the first; room: `best` gets E4M3 bytes, `least` the errors.
    """
    first, sides, codes, scales = room.first, room.sides, room.codes, room.scales
    best, least, errors = room.best, room.least, room.errors
    uniform = len(book) > W4A8_GROUP
    units = FLOAT32(SIX_BIT_UNITS) if uniform else FLOAT32(FOUR_BIT_UNITS)
    first_scales(turned, book[-1], units, tried[2] <= tried[3], room)
    least[:] = LARGEST_FLOAT32
    for side in range(2):
        for offset in range(tried[2 * side], tried[2 * side + 1] + 1):
            for j in range(GROUP_LANES):
                codes[j] = min(max(first[j] + offset, 0), LAST_E4M3_CODE)
            e4m3_values(codes, scales)
            for j in range(GROUP_LANES):
                scales[j] = -scales[j] if sides[j] != side else scales[j]
                codes[j] |= E4M3_SIGN if sides[j] != side else 0
            if uniform:
                uniform_errors(turned, room)
            else:
                codebook_errors(turned, book, room)
            for j in range(GROUP_LANES):
                better = errors[j] < least[j]
                best[j] = codes[j] if better else best[j]
                least[j] = errors[j] if better else least[j]


def take_codes(
    snapped: np.ndarray, scales: np.ndarray, table: np.ndarray, shift: int, codes: np.ndarray
) -> None:
    """Look up the codes of a row's weights under the scales chosen.

    snapped: [K] int16; scales: [K/16] uint8, E4M3 bytes; table: the codes of a LevelTables; shift:
    which half of an INT8 step is two to the power of, in units; codes: [K] uint8, filled.
    """
    up, columns = np.int32((1 << shift) - 1), np.empty(W4A8_GROUP, np.int32)
    for group in range(len(scales)):
        begin = group * W4A8_GROUP
        some, out = snapped[begin : begin + W4A8_GROUP], codes[begin : begin + W4A8_GROUP]
        code = np.int32(scales[group])
        sign = np.int32(-1) if code & E4M3_SIGN else np.int32(1)
        line = table[(code & ~E4M3_SIGN) * TABLE_COLUMNS :]
        for i in range(W4A8_GROUP):
            columns[i] = ((sign * some[i] + up) >> shift) + TABLE_MIDDLE
        for i in range(W4A8_GROUP):
            # Numba looks whether a signed index is negative.
            out[i] = line[np.uint32(columns[i])]


def pack_row(codes: np.ndarray, packed: np.ndarray) -> None:
    """Pack a row's codes as `w4a8.pack_w4a8` does.

    codes: [K] uint8; packed: [K/2] uint8 for 4 bits, [3K/4] for 6, filled.
    """
    half = len(codes) // 2
    for j in range(half):
        packed[j] = (codes[2 * j] & 15) | (codes[2 * j + 1] << 4)
    upper = packed[half:]
    for j in range(len(upper)):
        low = (codes[4 * j] >> 4) | ((codes[4 * j + 1] >> 4) << 2)
        upper[j] = low | ((codes[4 * j + 2] >> 4) << 4) | ((codes[4 * j + 3] >> 4) << 6)


def encode_row(
    snapped: np.ndarray,
    book: np.ndarray,
    tried: tuple[int, int, int, int],
    scales: np.ndarray,
    room: Room,
) -> float:
    """Choose the group scales of a row.

    snapped: [K] int16; book, tried: as for `best_scales`; scales: [K/16] uint8, filled with E4M3
    bytes. Returns the row's squared error, in units squared of 4 bits, or in INT8's steps.
    """
    error, turned = 0.0, room.turned
    for begin in range(0, len(scales), GROUP_LANES):
        count = min(GROUP_LANES, len(scales) - begin)
        # Lanes beyond the last group keep what they held, and nobody reads what they give.
        some = snapped[begin * W4A8_GROUP : (begin + count) * W4A8_GROUP]
        groups = some.reshape(count, W4A8_GROUP)
        for i in range(W4A8_GROUP):
            row = turned[i]
            for j in range(count):
                row[j] = groups[j, i]
        best_scales(turned, book, tried, room)
        for j in range(count):
            scales[begin + j] = room.best[j]
            error += room.least[j]
    return error


def make_room() -> Room:
    """Allocate a Room, as allocating it for each group of lanes would take longer than the work."""
    shape = (GROUP_LANES,)
    return Room(
        np.zeros((W4A8_GROUP, GROUP_LANES), np.int16),
        np.empty((W4A8_GROUP, GROUP_LANES), np.int16),
        np.empty(shape, np.int16),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
    )


def encode_groups(
    rows: np.ndarray,
    grid: tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]],
    packed: np.ndarray,
    scales: np.ndarray,
    row_scales: np.ndarray,
) -> tuple[float, float]:
    """Rotate rows and quantise them to 4 or 6 bits as `level_search.encode_levels` does.

    rows: [n, K] float32, K a multiple of 256; grid: levels, table of codes, and scales to try, see
    `best_scales`; packed: [n, K * bits / 8] uint8, scales: [n, K/16] uint8 and row_scales: [n]
    float32, filled. Returns squared error and energy, summed over rows in float64.
    """
    book, table, tried = grid
    columns, uniform = rows.shape[1], len(book) > W4A8_GROUP
    values, snapped = np.empty(columns, FLOAT32), np.empty(columns, np.int16)
    codes, error, energy = np.empty(columns, np.uint8), 0.0, 0.0
    room = make_room()
    units, shift = (SIX_BIT_UNITS, 7) if uniform else (FOUR_BIT_UNITS, 4)
    for row in range(len(rows)):
        values[:] = rows[row]
        rotate_columns(values)
        scale = max(row_amax(values) / FLOAT32(INT8_MAX), FLOAT32(LEAST_ROW_SCALE))
        row_scales[row], unit = scale, np.float64(scale) * np.float64(scale)
        energy += snap_row(values, scale, FLOAT32(units), snapped) * unit
        found = encode_row(snapped, book, tried, scales[row], room)
        error += (found if uniform else found / (FOUR_BIT_UNITS * FOUR_BIT_UNITS)) * unit
        take_codes(snapped, scales[row], table, shift, codes)
        if uniform:
            for j in range(columns):
                codes[j] += 1
        pack_row(codes, packed[row])
    return error, energy


# In the order in which `compile_kernels` compiles them.
LEVEL_KERNELS = (
    snap_row,
    first_scales,
    codebook_errors,
    uniform_errors,
    best_scales,
    take_codes,
    pack_row,
    encode_row,
    make_room,
    encode_groups,
)
