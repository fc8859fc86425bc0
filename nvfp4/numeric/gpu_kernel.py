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
    wanted, free, within, pivots, steps, levels, changes, costs, rows, lanes, stride, columns,
    least: tl.constexpr, largest: tl.constexpr, shift: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Do what `feedback.round_columns` does, in one kernel.

    A lane is one row under one block scale. wanted, free: [columns, rows]; within: [columns,
    columns], its rows `stride` elements apart; pivots: [columns]; steps: [m, rows], flat; levels,
    changes: [columns, m, rows], filled; costs: [m, rows], filled; all float32 pointers. lanes is m
    * rows; least, largest, shift are those of the grid; width is the number of lanes a program.
    Sums are contracted, so that bits may differ from those of other devices.
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
        scaled = want / step
        power = tl.minimum(tl.maximum(tl.abs(scaled), least), largest)
        power = (power.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        level = (scaled + power * shift) - power * shift
        level = tl.minimum(tl.maximum(level, -largest), largest)
        error = level * step - want
        cost += tl.load(pivots + column) * error * error
        tl.store(levels + column * lanes + lane, level, mask=inside)
        change = tl.load(free + column * rows + row, mask=inside) - level * step
        tl.store(changes + column * lanes + lane, change, mask=inside)
    tl.store(costs + lane, cost, mask=inside)
