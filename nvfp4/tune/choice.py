"""Choose an alternative for each layer within a number of bytes, and a share of work in FP4.

A Lagrangian choice: on each layer's lower convex hull of error over size, layers are raised, the
best gain per byte first, until the bytes are used up. Plain arithmetic on records: no tensors, no
plans.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from nvfp4.formats.base import Format

# Halvings of the price of FP4 work: after these, float64 cannot tell the two ends apart.
PRICE_TRIALS = 60


class Alternative(NamedTuple):
    """Describe a precision that a layer could have: the bytes it would take, and its error.

    Errors are squared, so that they add up over layers. `fp4` is the layer's share of the model's
    multiply work where it would be multiplied in FP4, else 0.
    """

    precision: Format
    nbytes: int
    error: float  # squared, relative to the layer's output
    fp4: float = 0.0


Choices = dict[str, list[Alternative]]


class SizePoint(NamedTuple):
    """Describe a file that --target-size could have made: its bytes, and its mean error."""

    nbytes: int
    error: float  # relative RMSE, in the mean over the layers that could be chosen


def lower_hull(alternatives: Iterable[Alternative]) -> list[Alternative]:
    """Keep the alternatives that are best at some price of a byte, smallest first.

    These are the corners of the lower convex hull of error over size. Between two of them the gain
    per byte falls from step to step, so that greedy steps are the best ones.
    """
    kept: list[Alternative] = []
    for more in sorted(alternatives, key=lambda row: (row.nbytes, row.error)):
        if kept and more.error >= kept[-1].error:
            continue
        while len(kept) > 1 and gain(kept[-2], more) >= gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(more)
    return kept


def gain(less: Alternative, more: Alternative) -> float:
    """Return the squared error that one byte more takes away between two alternatives."""
    return (less.error - more.error) / (more.nbytes - less.nbytes)


def upgrades(layers: Choices) -> list[tuple[str, Alternative, Alternative]]:
    """List every step (layer, from, to) along the layers' hulls, the best gain per byte first."""
    steps = [
        (name, less, more)
        for name, hull in layers.items()
        for less, more in itertools.pairwise(hull)
    ]
    return sorted(steps, key=lambda step: -gain(*step[1:]))


def choose_for_size(layers: Choices, budget: int) -> dict[str, Alternative]:
    """Choose the layers' precisions with the least total error in `budget` bytes.

    `layers` is {layer: its alternatives}. It is the optimum but for one step: room that is left
    where the next step does not fit is filled with any alternatives that do. Where even the
    smallest ones do not fit they come back all the same; the caller checks.
    """
    hulls = {name: lower_hull(rows) for name, rows in layers.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(row.nbytes for row in chosen.values())
    steps = [(name, more) for name, _, more in upgrades(hulls)]
    # All alternatives, the least error first: what fills the room that the last step left.
    every = sorted((row.error, name, row) for name, rows in layers.items() for row in rows)
    for name, more in [*steps, *((name, row) for _, name, row in every)]:
        cost = more.nbytes - chosen[name].nbytes
        if more.error < chosen[name].error and cost <= left:
            chosen[name], left = more, left - cost
    return chosen


def fp4_work(rows: Iterable[Alternative]) -> float:
    """Sum up the share of the multiply work that alternatives do in FP4."""
    return sum(row.fp4 for row in rows)


def keep_fp4(layers: Choices, budget: int, least: float) -> Choices:
    """Settle which layers stay in FP4, so that they do at least `least` of the multiply work.

    Work in FP4 earns a price that is taken off the errors: the lowest one at which the choice for
    `budget` bytes has enough of it. Of the layers that are in FP4 then, those that lose most by it
    are set free as far as the share allows. Returns the alternatives, for the layers that stay the
    one in FP4 alone, which should be its smallest. All that can be in FP4 has to be
    enough.
    """

    def choose_at(price: float) -> dict[str, Alternative]:
        priced = {
            name: [row._replace(error=row.error - price * row.fp4) for row in rows]
            for name, rows in layers.items()
        }
        return choose_for_size(priced, budget)

    # Sums of shares may miss what they stand for by float64's rounding.
    least -= 1e-9
    free = choose_for_size(layers, budget)
    if fp4_work(free.values()) >= least:
        return layers
    rows = [row for rows in layers.values() for row in rows]
    # At the upper end FP4 pays in every layer that can have it, whatever error it brings.
    low, high = 0.0, 2 * max(row.error for row in rows) / min(row.fp4 for row in rows if row.fp4)
    for _ in range(PRICE_TRIALS):
        price = (low + high) / 2
        enough = fp4_work(choose_at(price).values()) >= least
        low, high = (low, price) if enough else (price, high)
    held = {name: row for name, row in choose_at(high).items() if row.fp4}
    # Choices alike have one price and come in together: what is more than enough goes out again.
    left = fp4_work(held.values()) - least
    # A priced error is lower than the true one by what the price earns.
    loss = {n: row.error / row.fp4 + high - free[n].error / row.fp4 for n, row in held.items()}
    for name in sorted(held, key=loss.__getitem__, reverse=True):
        if held[name].fp4 <= left:
            left -= held.pop(name).fp4
    return layers | {name: [row for row in layers[name] if row.fp4] for name in held}


def size_curve(layers: Choices, fixed: int, count: float) -> list[SizePoint]:
    """Compute size and error after each step, from the smallest file to the largest.

    `fixed` are the bytes of all that is not chosen, headers included; `count` is how many layers
    the errors are of, each as often as it counts.
    """
    hulls = {name: lower_hull(rows) for name, rows in layers.items()}
    size = fixed + sum(hull[0].nbytes for hull in hulls.values())
    error = sum(hull[0].error for hull in hulls.values())
    points = [SizePoint(size, mean_error(error, count))]
    for _, less, more in upgrades(hulls):
        size, error = size + more.nbytes - less.nbytes, error + more.error - less.error
        points.append(SizePoint(size, mean_error(error, count)))
    return points


def mean_error(total: float, count: float) -> float:
    """Return the relative RMSE in the mean over layers, from the sum of their squared errors."""
    return math.sqrt(max(total, 0.0) / count)
