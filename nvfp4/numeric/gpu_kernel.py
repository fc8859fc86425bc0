"""Round the columns of a block on a GPU, as triton compiles it.

`compiled.compile_rounder` compiles the function and launches it; nothing else calls it. Torch's own
operations would launch some kernels for each of a block's 16 columns instead of one in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # At run time nothing is imported: triton is optional, and `compile_rounder` puts `tl` among
    # the names that the kernel sees.
    import triton.language as tl


def round_lanes(  # noqa: PLR0913
    wanted, free, within, pivots, steps, book, levels, changes, costs, rows, lanes, stride, columns,
    least: tl.constexpr, largest: tl.constexpr, shift: tl.constexpr, count: tl.constexpr,
    width: tl.constexpr,
):  # fmt: skip
    """Do what `feedback.round_columns` does, in one kernel.

    A lane is one row under one block scale. wanted, free: [columns, rows]; within: [columns,
    columns], its rows `stride` elements apart; pivots: [columns]; steps: [m, rows], flat; levels,
    changes: [columns, m, rows], filled; costs: [m, rows], filled; all float32 pointers. lanes is m
    * rows; least, largest, shift are those of a float format; book: [count], the levels of a
    codebook, where count is not 0; width is the number of lanes a program. Sums are contracted, so
    that bits may differ from those of other devices.
    """
    lane = tl.program_id(0) * width + tl.arange(0, width)
    inside, row = lane < lanes, lane % rows
    step = tl.load(steps + lane, mask=inside, other=1.0)
    cost = tl.zeros((width,), dtype=tl.float32)
    for column in range(columns):
        want = tl.load(wanted + column * rows + row, mask=inside)
        for other in range(column):
            change = tl.load(changes + other * lanes + lane, mask=inside)
            want += tl.load(within + column * stride + other) * change
        if count:
            scaled = want * (1.0 / step)
            if count > 16:
                # More levels than 16 are whole numbers.
                first, last = tl.load(book), tl.load(book + count - 1)
                high = tl.ceil(scaled)
                low = tl.minimum(tl.maximum(high - 1.0, first), last)
                high = tl.minimum(tl.maximum(high, first), last)
            else:
                low = tl.zeros((width,), dtype=tl.float32) + tl.load(book)
                high = tl.zeros((width,), dtype=tl.float32) + tl.load(book + count - 1)
                for index in tl.static_range(count):
                    up, down = tl.load(book + index), tl.load(book + count - 1 - index)
                    low = tl.where(up < scaled, up, low)
                    high = tl.where(down >= scaled, down, high)
            # Adding 1.5 * 2**23 and taking it away again leaves the nearest integer, ties to even.
            below = (low * step + 12582912.0) - 12582912.0
            above = (high * step + 12582912.0) - 12582912.0
            below = tl.minimum(tl.maximum(below, -127.0), 127.0)
            above = tl.minimum(tl.maximum(above, -127.0), 127.0)
            is_upper = tl.abs(above - want) < tl.abs(want - below)
            level, decoded = tl.where(is_upper, high, low), tl.where(is_upper, above, below)
        else:
            scaled = want / step
            power = tl.minimum(tl.maximum(tl.abs(scaled), least), largest)
            power = (power.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
            level = (scaled + power * shift) - power * shift
            level = tl.minimum(tl.maximum(level, -largest), largest)
            decoded = level * step
        error = decoded - want
        cost += tl.load(pivots + column) * error * error
        tl.store(levels + column * lanes + lane, level, mask=inside)
        change = tl.load(free + column * rows + row, mask=inside) - decoded
        tl.store(changes + column * lanes + lane, change, mask=inside)
    tl.store(costs + lane, cost, mask=inside)
