"""Count values in bounded memory; compute moments and percentiles.

A log may have any number of calls, and a layer keeps its distinct values with their counts: few, as
activations are 16-bit floats. Percentiles are exact as long as there are no more than MOST_VALUES
of them. `rows` makes columns of the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from nvfp4.guides.columns import percentile_key
from nvfp4.logs.records import rounded

# Numbers that a layer collects before they are counted: a scale and an amax for each of 2,048
# calls. Sorting fewer at a time would take longer than reading them.
PENDING = 2 * 2048
# Distinct values of a layer that are kept exactly; beyond these, 12 bits are kept of each.
MOST_VALUES = 16_384
# The same limit for one step of a layer, since there are as many tallies as steps.
MOST_STEP_VALUES = 512
# The bits of a float32's mantissa that folding gives up, which leaves a resolution of 2**-12.
FOLDED_BITS = np.uint32(0x7FF)
# Folding puts a value into the middle of those that share its other bits: at most 2**-13 off.
HALF_FOLDED = np.uint32(0x400)
# Values so many standard deviations from the mean are counted as outliers.
OUTLIER = 3.0


class Tally:
    """Values and how often each came, in memory that is bounded.

    Activations are 16-bit floats, so that amax has a few hundred distinct values however long
    the log is. If more than `most` come all the same, all are rounded to 12 bits: 4,096 values
    remain for each power of two that they span.

    values, counts: float64 and int64 arrays of the same length, ascending; `settle` brings them up
    to date. number: values added. least, largest: exact, whatever was rounded.
    """

    __slots__ = ("counts", "fresh", "largest", "least", "most", "number", "values", "waiting")

    def __init__(self, most: int = MOST_VALUES):
        """Begin empty; `most` is how many distinct values are kept before they are folded."""
        self.values, self.counts = np.empty(0), np.empty(0, np.int64)
        self.fresh: list[np.ndarray] = []
        self.number = self.waiting = 0
        self.most, self.least, self.largest = most, math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Take values to be counted; they may wait until there are enough to sort.

        values: float64 [n], n at least 1, positive and of float32's normal range.
        """
        self.least = min(self.least, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        self.fresh.append(values)
        self.number += len(values)
        self.waiting += len(values)
        if self.waiting >= min(self.most, PENDING // 2):
            self.settle()

    def settle(self) -> None:
        """Count the values that wait, and fold all of them if there are too many distinct ones.

        Folding more than once does no further harm: what is folded stays where it is.
        """
        values = np.concatenate([self.values, *self.fresh])
        counts = np.concatenate([self.counts, np.ones(self.waiting, np.int64)])
        self.fresh, self.waiting = [], 0
        self.values, self.counts = merged(values, counts)
        if len(self.values) > self.most:
            self.values, self.counts = merged(folded(self.values), self.counts)


def merged(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort values and sum the counts of equal ones.

    values: float64 [n], counts: int64 [n], n at least 1. Returns the distinct values in ascending
    order and the count of each.
    """
    # A stable sort is quick on what is sorted already, as the kept values are.
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    # Where a value differs from the one before it, its run begins.
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return values[first], np.add.reduceat(counts, first)


def folded(values: np.ndarray) -> np.ndarray:
    """Round positive float64 values to 12 bits of mantissa; what is rounded already stays.

    The values have to be of float32's normal range; the result is at most 2**-13 of each off.
    """
    bits = values.astype(np.float32).view(np.uint32)
    return (bits & ~FOLDED_BITS | HALF_FOLDED).view(np.float32).astype(np.float64)


def tally_figures(tally: Tally, percentiles: Iterable[float]) -> dict[str, float | None]:
    """Compute the figures of a tally that has one value at least, six digits of each.

    Returns min, max, mean, std (of a population), kurtosis (excess; None where all values are
    equal), outlier_frac_3std (the share beyond 3 std), and p50, p99_9 ... for the percentiles.
    """
    tally.settle()
    # Folding has moved the ends, too; the exact ones are known, and nothing lies beyond them.
    values, counts = np.clip(tally.values, tally.least, tally.largest), tally.counts
    number = tally.number
    # The first value is the origin: of equal values, the deviation has to be 0 and not a rounding.
    mean = values[0] + ((values - values[0]) * counts).sum() / number
    deviation = values - mean
    std = math.sqrt((deviation**2 * counts).sum() / number)
    # Equal values have no kurtosis, and dividing by their deviation would warn.
    kurtosis = None
    if std:
        kurtosis = rounded(float(((deviation / std) ** 4 * counts).sum() / number - 3))
    found = {
        "min": tally.least,
        "max": tally.largest,
        "mean": float(mean),
        "std": std,
        "kurtosis": kurtosis,
        "outlier_frac_3std": int(counts[abs(deviation) > OUTLIER * std].sum()) / number,
    }
    found |= zip(
        map(percentile_key, percentiles), quantiles(values, counts, percentiles), strict=True
    )
    return {key: rounded(value) for key, value in found.items()}


def quantiles(values: np.ndarray, counts: np.ndarray, percentiles: Iterable[float]) -> list[float]:
    """Compute percentiles of counted values as numpy's default does, linear between neighbours.

    values: float64 [n], ascending; counts: int64 [n]; percentiles: from 0 to 100. The neighbours
    are those in rank, so that nothing of the length of the log is made.
    """
    # The value of rank r is the first one whose counts, summed up, exceed r.
    ends = np.cumsum(counts)
    ranks = (ends[-1] - 1) * np.asarray(tuple(percentiles)) / 100
    below = np.floor(ranks)
    left, right = (
        values[np.searchsorted(ends, np.minimum(rank, ends[-1] - 1), side="right")]
        for rank in (below, below + 1)
    )
    return (left + (right - left) * (ranks - below)).tolist()
