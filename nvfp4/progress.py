"""Progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(
    what: str, items: Iterable | None = None, *, nbytes: int | None = None, quiet: bool
) -> tqdm:
    """Open a bar that goes on with each of `items` it yields, or to `nbytes` by its `update`.

    All of the program's bars are made here, so that all go to stderr, and none is shown if `quiet`.
    """
    in_bytes = {} if nbytes is None else {"total": nbytes, "unit": "B", "unit_scale": True}
    return tqdm(items, what, disable=quiet, file=sys.stderr, **in_bytes)
