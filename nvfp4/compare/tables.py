"""Lay out prose and tables for a terminal of some width.

Every cell is put on one line here, since names come from files and may hold anything. Tables are
kept as rows until the width is known: a row that a terminal would break is no row any more.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable
from typing import NamedTuple

from nvfp4.errors import one_line
from nvfp4.report.lines import broken

# A column whose cells all match this is set to the right: numbers and sizes, and the headings and
# gaps that a column of them has.
NUMBER = r"[\d,.]+( [GM]B| bytes)?|-|A|B|"
# A column that has to be cut keeps so many characters at least.
LEAST_COLUMN = 12
GAP, INDENT = 2, 2


class Table(NamedTuple):
    """Hold a table: its title, and rows of equal length, a text for each column."""

    title: str
    rows: list[tuple[str, ...]]


def table(title: str, rows: Iterable[tuple[str, ...]]) -> list[Table]:
    """Make a table of rows; none without rows. Line breaks and control characters are escaped."""
    # A name with a line break in it could otherwise forge a row.
    rows = [tuple(map(one_line, row)) for row in rows]
    return [Table(title, rows)] if rows else []


def terminal_width() -> int:
    """Tell how many characters a line of stdout has; 0 where it is no terminal, for any number."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return 0
    return shutil.get_terminal_size().columns


def is_number_column(cells: Iterable[str]) -> bool:
    """Tell whether a column is set to the right, so that digits stand below each other."""
    return all(re.fullmatch(NUMBER, cell) for cell in cells)


def shortened(text: str, width: int) -> str:
    """Cut a text to a width; its middle goes, as names differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def table_lines(found: Table, width: int) -> list[str]:
    """Lay out a table under its title, after an empty line.

    width: of a line; where the rows are wider, the widest column of texts is cut. 0: any width.
    """
    columns = [*zip(*found.rows, strict=True)]
    widths = [max(map(len, cells)) for cells in columns]
    texts = [index for index, cells in enumerate(columns) if not is_number_column(cells)]
    over = INDENT + sum(widths) + GAP * (len(widths) - 1) - width
    if width and over > 0 and texts:
        widest = max(texts, key=widths.__getitem__)
        widths[widest] = max(widths[widest] - over, LEAST_COLUMN)
    padded = [
        [shortened(cell, size).ljust(size) if index in texts else cell.rjust(size)
         for cell in cells]
        for index, (cells, size) in enumerate(zip(columns, widths, strict=True))
    ]  # fmt: skip
    lines = [f"{' ' * INDENT}{(' ' * GAP).join(row)}".rstrip() for row in zip(*padded, strict=True)]
    return ["", found.title, *lines]


def lay_out(parts: Iterable[str | Table], width: int) -> str:
    """Make text of lines of prose and of tables. width: of a line; 0 for any width."""
    lines = []
    for part in parts:
        lines += (
            table_lines(part, width) if isinstance(part, Table) else broken(part, width or None)
        )
    return "\n".join(lines)
