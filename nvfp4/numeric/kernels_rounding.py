"""Write the loops that round by statistics, so that numba can compile them.

They do what `feedback.round_columns` does, which takes a weight's rows as lanes side by side.
Nothing calls them uncompiled. Arrays are numpy's.
"""

from __future__ import annotations

import numpy as np

from nvfp4.numeric.codes import FLOAT32_EXPONENT
from nvfp4.numeric.int8 import INT8_MAX
from nvfp4.numeric.kernels import FLOAT32
from nvfp4.numeric.kernels_int8 import ROUND_TO_INTEGERS
from nvfp4.numeric.w4a8 import W4A8_GROUP

# Rows that `round_in_turn` works on at once: 16 columns of 256 float32 are 16 kB, which stay in a
# core's first-level cache.
ROWS_IN_TURN = 256


def add_feedback(want: np.ndarray, factors: np.ndarray, changes: np.ndarray) -> None:
    """Add the feedback of columns that are rounded to one that is to be rounded.

    want: [n] float32, updated; factors: [c]; changes: [c, n]. The sum factors @ changes runs one
    column after the other, not in the order of torch's matrix product.
    """
    for column in range(len(factors)):
        factor, change = factors[column], changes[column]
        for row in range(len(want)):
            want[row] += factor * change[row]


def round_levels(
    want: np.ndarray, step: np.ndarray, grid: tuple[np.float32, ...], level: np.ndarray
) -> None:
    """Round one column to a float format's values, as `FloatGrid.under` does with want / step.

    want, step: [n] float32; grid: its least normal, its largest value and its shift, float32;
    level: [n] float32, filled.
    """
    least, largest, shift, _ = grid
    powers = np.empty(len(want), FLOAT32)
    bits = powers.view(np.int32)
    for row in range(len(want)):
        level[row] = want[row] / step[row]
        powers[row] = min(max(abs(level[row]), least), largest)
    # Without its mantissa, a value is the power of two at or below it, which scales the shift.
    for row in range(len(want)):
        bits[row] &= FLOAT32_EXPONENT
    for row in range(len(want)):
        large = powers[row] * shift
        level[row] = min(max(level[row] + large - large, -largest), largest)


def enclose(scaled: np.ndarray, book: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Find the levels that enclose numbers: the last one below, and the next.

    scaled: [n] float32; book: [L] float32, ascending: 16 levels, or more that are whole numbers;
    low, high: [n] float32, filled. Beyond the first and last level both are that one.
    """
    if len(book) > W4A8_GROUP:
        for row in range(len(scaled)):
            above = np.ceil(scaled[row])
            low[row] = min(max(above - FLOAT32(1), book[0]), book[-1])
            high[row] = min(max(above, book[0]), book[-1])
        return
    low[:], high[:] = book[0], book[-1]
    for index in range(len(book)):
        up, down = book[index], book[len(book) - 1 - index]
        for row in range(len(scaled)):
            low[row] = up if up < scaled[row] else low[row]
            high[row] = down if down >= scaled[row] else high[row]


def round_to_book(
    want: np.ndarray, step: np.ndarray, book: np.ndarray, level: np.ndarray, decoded: np.ndarray
) -> None:
    """Round one column to the levels of a codebook, as `Codebook.under` does.

    want, step: [n] float32; book: [L] float32; level, decoded: at least [n] float32, filled: the
    levels, and the integers that they are decoded to under the steps.
    """
    high, scaled = np.empty(len(want), FLOAT32), np.empty(len(want), FLOAT32)
    for row in range(len(want)):
        scaled[row] = want[row] * (FLOAT32(1) / step[row])
    enclose(scaled, book, level, high)
    for row in range(len(want)):
        below = (level[row] * step[row] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
        above = (high[row] * step[row] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
        below = min(max(below, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
        above = min(max(above, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
        is_upper = abs(above - want[row]) < abs(want[row] - below)
        level[row] = high[row] if is_upper else level[row]
        decoded[row] = above if is_upper else below


def round_in_turn(
    inputs: tuple[np.ndarray, ...], grid: tuple[np.float32, ...], made: tuple[np.ndarray, ...]
) -> None:
    """Round the columns of a block as `feedback.round_columns` does.

    inputs: wanted [c, n], free [c, n], within [c, c], pivots [c] and steps [m, n]; grid: as in
    `round_levels`, and last the levels of a codebook, which count where there are any; made: levels
    [c, m, n], changes [c, m, n] and costs [m, n], filled. All float32. A few rows are taken at a
    time, so that what they need stays in the first-level cache.
    """
    (wanted, free, within, pivots, steps), (levels, changes, costs) = inputs, made
    columns, rows = wanted.shape
    decoded = np.empty(ROWS_IN_TURN, FLOAT32)
    for scale in range(len(steps)):
        for begin in range(0, rows, ROWS_IN_TURN):
            some = slice(begin, min(begin + ROWS_IN_TURN, rows))
            step, cost = steps[scale, some], costs[scale, some]
            for column in range(columns):
                want, spare = wanted[column, some].copy(), free[column, some]
                add_feedback(want, within[column, :column], changes[:column, scale, some])
                level, change = levels[column, scale, some], changes[column, scale, some]
                if len(grid[-1]):
                    round_to_book(want, step, grid[-1], level, decoded)
                else:
                    round_levels(want, step, grid, level)
                    for row in range(len(want)):
                        decoded[row] = level[row] * step[row]
                for row in range(len(want)):
                    change[row] = spare[row] - decoded[row]
                    error = decoded[row] - want[row]
                    cost[row] += error * error * pivots[column]


# In the order in which `compile_kernels` compiles them.
ROUNDING_KERNELS = (add_feedback, round_levels, enclose, round_to_book, round_in_turn)
