"""Progress bars, all of them on stderr.

Results go to stdout, so that they can be redirected to a file while the bars stay on the terminal.
What a bar looks like and when it is redrawn is tqdm's business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(
    what: str,
    items: Iterable | None = None,
    *,
    nbytes: int | None = None,
    quiet: bool = False,
    delay: float = 0,
) -> tqdm:
    """Open a bar that goes on with each of `items` it yields, or to `nbytes` by its `update`.

    `what` stands in front of the bar, which is shown after `delay` seconds: what is done by then
    shows none. All bars of all programs are made here, so that all go to stderr, and none is shown
    if `quiet`.
    """
    in_bytes = {} if nbytes is None else {"total": nbytes, "unit": "B", "unit_scale": True}
    # sys.stderr is looked up now, as tqdm's own default would keep the stream of its import.
    return tqdm(items, what, disable=quiet, delay=delay, file=sys.stderr, **in_bytes)
