"""Render the inventory of one file, or of two files side by side.

What is rendered is the data that `describe` and `compare_sides` make, with no look at the files.
Every cell is put on one line here, since names come from files and may hold anything; `entry`
prints the text.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from nvfp4.compare.schemes import is_unquantised
from nvfp4.errors import gigabytes, one_line
from nvfp4.names import kind_of
from nvfp4.report.summary import least_first
from nvfp4.stored.defects import DEFECTS
from nvfp4.work import render_work

# A column whose cells all match this is set to the right: numbers and sizes, and the headings and
# gaps that a column of them has.
NUMBER = r"[\d,.]+( [GM]B)?|-|A|B|"
# Layers in the table of the worst errors: the means by kind below it speak for all others.
MOST_DIFFERENT = 10


def aligned(cells: tuple[str, ...]) -> list[str]:
    """Pad the cells of one column to the width of the longest.

    A column of numbers, sizes and gaps is set to the right, so that digits stand below each other;
    any other column to the left. Returns the padded cells in the same order.
    """
    width = max(map(len, cells))
    numbers = all(re.fullmatch(NUMBER, cell) for cell in cells)
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in cells]


def table_lines(title: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lay out a table under its title, after an empty line; give no line at all without rows.

    rows: of equal length, a text for each column. Line breaks and control characters in a cell are
    escaped. Each line is indented by two spaces and has none at its end.
    """
    # A name with a line break in it could otherwise forge a row.
    rows = [tuple(map(one_line, row)) for row in rows]
    lines = zip(*map(aligned, zip(*rows, strict=True)), strict=True)
    lines = [f"  {'  '.join(cells)}".rstrip() for cells in lines]
    return ["", title, *lines] if lines else []


def side_by_side(
    title: str, a: dict[str, object], b: dict[str, object], show: Callable[[object], str] = str
) -> list[str]:
    """Lay out two dicts in columns A and B, with a row for each key of either.

    Keys stay in the order of A, then come those of B alone. A dash stands where a side lacks the
    key or has nothing under it, such as 0 or an empty dict.

    show: makes the text of a value; str unless it is given. Returns no line where both are empty.
    """
    # A dict and not a set, to keep the order of the keys.
    keys = dict.fromkeys([*a, *b])
    rows = [(key, *(show(side[key]) if side.get(key) else "-" for side in (a, b))) for key in keys]
    return table_lines(title, [("", "A", "B"), *rows]) if rows else []


def counted(counts: dict[str, int]) -> str:
    """Show counts in one cell, in their order: {"F32": 48, "F16": 2} as "48 F32, 2 F16"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def render_verdict(letter: str, side: dict) -> list[str]:
    """Tell in words what ComfyUI will do with a file, and what to change in it.

    letter: what the file is called, "A", "B" or "verdict". side: its data from `describe`.

    Returns an empty line, the outcome, then how the layers run and how fast, the defects with
    consequence, remedy and examples, and the advice.
    """
    found = side["verdict"]
    lines = ["", f"{letter}: {side['file']} {found['ending']}"]
    lines += [
        f"  {run['layers']} layers {label}: {run['how']}" for label, run in found["runs"].items()
    ]
    lines += [f"  {line}" for line in render_work(side["work"])]
    for defect in found["defects"]:
        lines += [
            f"  {defect['outcome']}: {defect['count']} x {defect['what']}",
            f"    {defect['consequence']}; to do: {defect['remedy']}",
            f"    {defect['examples']}",
        ]
    # A quantised layer of a GGUF, or without a configuration, has nothing in runs either.
    other = DEFECTS["other program"].what in (defect["what"] for defect in found["defects"])
    if not found["runs"] and is_unquantised(side["schemes"]) and not other:
        lines.append("  no layer is quantised")
    return lines + [f"  {text}" for text in found["advice"]]


def render_one(data: dict) -> str:
    """Render the inventory of one file.

    data: what `describe` made of it. The text has a row for every linear layer with its shape,
    scheme and bytes, totals per kind and per scheme, what is not quantised, the names of scales,
    the metadata and the verdict. Tables without rows are left out.
    """
    layers = (
        (x["name"], str(x["shape"]), x["scheme"], f"{x['bytes']:,} bytes") for x in data["layers"]
    )
    kinds = (
        (kind, str(sizes["layers"]), label, gigabytes(sizes["bytes"]))
        for kind, found in data["kinds"].items()
        for label, sizes in found.items()
    )
    schemes = (
        (label, str(sizes["layers"]), gigabytes(sizes["bytes"]))
        for label, sizes in data["schemes"].items()
    )
    rest = ((role, counted(found)) for role, found in data["not_quantised"].items() if found)
    naming = ((key, str(count)) for key, count in data["naming"].items())
    lines = [
        f"{data['file']}: {data['tensors']:,} tensors, {gigabytes(data['bytes'])}",
        *table_lines("linear layers", layers),
        *table_lines("by kind", kinds),
        *table_lines("in all", schemes),
        *table_lines("not quantised", rest),
        *table_lines("scales and configurations", naming),
        *table_lines("metadata", data["metadata"].items()),
        *render_verdict("verdict", data),
    ]
    return "\n".join(lines)


def render_two(data: dict) -> str:
    """Render what is different between two files, and the verdict on each.

    data: what `compare_sides` made of them. Layers that differ are grouped by their schemes and
    kinds, so that a kind of all blocks takes one row. The last line tells whether the two files
    have one structure.
    """
    a, b = data["a"], data["b"]
    more = f" ({b['tensors'] - a['tensors']:+,})"
    lines = [
        f"A  {a['file']}: {a['tensors']:,} tensors, {gigabytes(a['bytes'])}",
        f"B  {b['file']}: {b['tensors']:,} tensors{more}, {gigabytes(b['bytes'])}",
        *side_by_side(
            "linear layers", a["schemes"], b["schemes"], lambda found: str(found["layers"])
        ),
    ]
    for row in data["layers_that_differ"]:
        kinds = ((x["kind"], str(x["layers"]), x["stored"]) for x in row["kinds"])
        lines += table_lines(f"{row['layers']} x {row['a']} -> {row['b']}", kinds)
    lines += side_by_side("not quantised", a["not_quantised"], b["not_quantised"], counted)
    lines += side_by_side("scales and configurations", a["naming"], b["naming"])
    for letter in "ab":
        only = data[f"only_in_{letter}"].items()
        title = f"only in {letter.upper()}"
        lines += table_lines(title, ((kind, str(count)) for kind, count in only))
    lines += side_by_side("metadata", a["metadata"], b["metadata"])
    lines += render_values(data)
    same = "the same structure" if data["same_structure"] else "different structures"
    return "\n".join([*lines, *render_verdict("A", a), *render_verdict("B", b), "", same])


def render_values(data: dict) -> list[str]:
    """Render the relative RMSE of B's weights against A's.

    data: what `compare_sides` made. Returns a table of the MOST_DIFFERENT worst layers, one of
    means by kind and scheme in B, and one of the layers that were not compared with the reasons. No
    line at all where the values were not compared.
    """
    # JSON has no NaN, so the data has None in its place.
    found = {
        name: math.nan if error is None else error
        for name, error in data.get("relative_rmse", {}).items()
    }
    labels = {layer["name"]: layer["scheme"] for layer in data["b"]["layers"]}
    # NaN is the worst error of all, as the weight it came from is not finite.
    worst = sorted(found.items(), key=lambda item: least_first(-item[1]))[:MOST_DIFFERENT]
    kinds = defaultdict(list)
    for name, error in found.items():
        kinds[kind_of(name), labels[name]].append(error)
    means = (
        (kind, label, str(len(errors)), f"{sum(errors) / len(errors):.4f}")
        for (kind, label), errors in sorted(kinds.items())
    )
    shown = ((name, f"{error:.4f}") for name, error in worst)
    return [
        *table_lines("relative RMSE, worst layers", shown),
        *table_lines("relative RMSE, mean by kind and scheme in B", means),
        *table_lines("not compared", data.get("not_compared", {}).items()),
    ]
