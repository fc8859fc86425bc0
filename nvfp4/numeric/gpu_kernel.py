"""Rounding columns on a GPU, as triton can compile it: compiled.py does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Nothing at run time: triton is optional, and compile_rounder hands `tl` to the kernel.
    import triton.language as tl


def round_lanes(  # noqa: PLR0913
    wanted, free, within, pivots, steps, levels, changes, costs, rows, lanes, stride, columns,
    least: tl.constexpr, largest: tl.constexpr, shift: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Do what `round_columns` does, in one kernel: a lane is one row under one block scale.

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
