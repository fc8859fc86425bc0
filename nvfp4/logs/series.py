"""Collect the calls of one layer, and count lines that are left out.

`reading` hands the text of two numbers to `add` for each line. Series collects them until there are
enough to be worth sorting, then gives them to the tallies of `statistics`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nvfp4.logs.records import LineChoice
from nvfp4.logs.statistics import MOST_STEP_VALUES, PENDING, Tally

# Scales and amax are measured in float32, so that what is outside of its normal range is damage.
LEAST, MOST = map(float, (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class ZeroInputError(ValueError):
    """A call whose input was all zeros, such as an empty prompt's.

    There is no scale to learn from it, but it is no damage either: such calls are counted apart
    from malformed lines.
    """


class Series:
    """Collect all calls of one layer: tallies of its scales and amax, and of its scales by step.

    calls: how many are counted; those that are pending come with `settle`.
    kinds: the (format, mode) pairs that its lines had.
    scale, amax: tallies over all calls; steps: a tally of scales for each step of a run.
    """

    # A log may have 20,000 layers: without slots, each would carry a dict.
    __slots__ = ("amax", "calls", "choice", "kinds", "pending", "scale", "steps")

    def __init__(self, choice: LineChoice):
        """Begin without calls; `choice` tells how many steps a run has, and calls a step."""
        self.choice, self.calls = choice, 0
        self.kinds: set[tuple[str, str]] = set()
        self.scale, self.amax, self.pending = Tally(), Tally(), array("d")
        self.steps = [Tally(MOST_STEP_VALUES) for _ in range(choice.steps)]

    def add(self, scale: bytes, amax: bytes) -> None:
        """Count a call from the text of its two numbers.

        scale, amax: as the line has them, in bytes. Raises ZeroInputError where both are 0, and
        ValueError for what is no number, not positive, or beyond float32's normal range. The
        numbers are pending until there are PENDING of them.
        """
        numbers = float(scale), float(amax)
        # An empty prompt gives such inputs; their scale is 0, too.
        if numbers == (0, 0):
            raise ZeroInputError
        # NaN fails every comparison, so it is refused here as well.
        if not (LEAST <= numbers[0] <= MOST and LEAST <= numbers[1] <= MOST):
            raise ValueError("scale and amax must be positive and finite")
        self.pending.extend(numbers)
        if len(self.pending) >= PENDING:
            self.settle()

    def settle(self) -> None:
        """Count the calls that are pending, each at its step.

        A layer's calls come in the order of steps: `passes` of them for one step, and after the
        last step the first again. It is called when enough are pending, and once before the figures
        are read.
        """
        if not self.pending:
            return
        # The pending numbers are pairs, one after the other.
        scales, amaxs = np.array(self.pending).reshape(-1, 2).T
        self.pending = array("d")
        self.scale.add(scales)
        self.amax.add(amaxs)
        if self.steps:
            # Numbers of the calls within the layer: files that are given together go on from one
            # another.
            calls = self.calls + np.arange(len(scales))
            step = calls // self.choice.passes % self.choice.steps
            for index in np.unique(step):
                self.steps[index].add(scales[step == index])
        self.calls += len(scales)


@dataclass(slots=True, kw_only=True)
class LeftOut:
    """Stand in a layer's place for lines that --format or --mode leave out, and count them.

    counts: of the log, by (format, mode), which it adds to.
    kind: the pair that these lines have.
    """

    counts: Counter[tuple[str, str]]
    kind: tuple[str, str]

    def add(self, scale: bytes, amax: bytes) -> None:  # noqa: ARG002 (what Series.add takes)
        """Count a line, whatever its numbers are.

        It takes what `Series.add` takes, so that the loop over lines need not ask which of the two
        it has.
        """
        self.counts[self.kind] += 1
