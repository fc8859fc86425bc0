"""Lay text out for a terminal: labels in a column of their own, long lines broken between words."""

from __future__ import annotations

import shutil
import sys
import textwrap

# Labels stand in a column of this width; what they are of, and what goes on, stands behind it.
LABEL_WIDTH = 10
# Lines of more characters are hard to read, however wide the window is.
MAX_WIDTH = 100


def stdout_width() -> int | None:
    """Tell how wide lines on stdout should be; None, which breaks no line, for a file or a pipe.

    Programs that search what was printed find whole sentences on one line.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    # A line that fills the last column would make some terminals begin an empty one.
    return max(3 * LABEL_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size().columns - 1))


def broken(line: str, width: int | None, indent: int = 2) -> list[str]:
    """Break a line between words; what follows is indented. Options and names stay whole."""
    if width is None or len(line) <= width:
        return [line]
    margin = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=margin + " " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def labelled(label: str, texts: list[str], width: int | None) -> list[str]:
    """Put a label before the first of some texts, and align the others and what is broken off."""
    lines = []
    for text in texts:
        start = f"{label if not lines else '':{LABEL_WIDTH}}"
        lines += broken(f"{start}{text}", width, 0 if start.isspace() else LABEL_WIDTH)
    return lines


def spent(seconds: float) -> str:
    """Write how long something took: "4.1 s", "3 min 12 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"
