"""Tell which layers' errors stand out from what is usual for their format.

The page prints numbers in these cells of its map alone: a number in every cell shows nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median

# Of fewer layers of one format nobody can say what is usual.
FEWEST_ALIKE = 5
# How far over the median an error has to be: by this factor, and by this many median deviations. On
# trained models, layers of one format that nothing is wrong with differ by some per cent.
FAR_FACTOR, FAR_DEVIATIONS = 1.25, 5


def standing_out(errors: Iterable[tuple[str, str, float]]) -> set[str]:
    """Name the layers whose error is far over what is usual for their format.

    errors: (layer, how it is stored, relative RMSE). Layers that lost nothing do not count for what
    is usual.
    """
    formats = defaultdict(dict)
    for layer, stored_as, error in errors:
        if error:
            formats[stored_as][layer] = error
    found = set()
    for alike in formats.values():
        usual = median(alike.values())
        deviation = median(abs(error - usual) for error in alike.values())
        least = max(FAR_FACTOR * usual, usual + FAR_DEVIATIONS * deviation)
        if len(alike) >= FEWEST_ALIKE:
            found |= {layer for layer, error in alike.items() if error > least}
    return found
