"""Render the inventory of one file, or of two files side by side.

What is rendered is the data that `describe` and `compare_sides` make, with no look at the files.
The verdict comes first, then what differs and what to do, then the tables; `tables` lays them out,
and `entry` prints the text.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

from nvfp4.cards import CARDS
from nvfp4.compare.schemes import is_unquantised
from nvfp4.compare.tables import Table, lay_out, table
from nvfp4.compare.verdict import RANKS
from nvfp4.errors import gigabytes, in_number
from nvfp4.names import kind_of
from nvfp4.notes import Note
from nvfp4.report.summary import least_first
from nvfp4.stored.defects import DEFECTS, Outcome
from nvfp4.work import render_work

# Layers in the table of the worst errors: the means by kind below it speak for all others.
MOST_DIFFERENT = 10
# From this estimate on a file is called faster than 16-bit: less would not be felt.
FASTER = 1.05
# What ends a text about headers alone.
VALUES_HINT = "hint: headers alone were read; convert_nvfp4.py --verify FILE checks the values"


def side_by_side(
    title: str, a: dict[str, object], b: dict[str, object], show: Callable[[object], str] = str
) -> list[Table]:
    """Put what differs between two dicts into columns A and B, with a row for each such key.

    Keys stay in the order of A, then come those of B alone. A dash stands where a side lacks the
    key or has nothing under it, such as 0 or an empty dict.

    show: makes the text of a value; str unless it is given. Returns no table where all is equal.
    """
    # A dict and not a set, to keep the order of the keys.
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    rows = [(key, *(show(side[key]) if side.get(key) else "-" for side in (a, b))) for key in keys]
    return table(title, [("", "A", "B"), *rows]) if rows else []


def counted(counts: dict[str, int]) -> str:
    """Show counts in one cell, in their order: {"F32": 48, "F16": 2} as "48 F32, 2 F16"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def where_it_runs(work: dict | None) -> str:
    """Tell in a sentence's end which ComfyUI a file needs, and on which cards it is faster."""
    if not work or not work["comfyui"]:
        return ""
    faster = [CARDS[name].series.removeprefix("GeForce ")
              for name, speed in work["speed"].items() if speed >= FASTER]  # fmt: skip
    cards = (
        f"faster than 16-bit on {', '.join(faster)}"
        if faster
        else "no faster than 16-bit on any card"
    )
    return f"; needs ComfyUI {work['comfyui']} or newer, {cards}"


def render_verdict(side: dict, letter: str = "") -> str:
    """Tell in one line what ComfyUI will do with a file.

    side: its data from `describe`. letter: what the file is called further down, "A" or "B".
    """
    found, size = side["verdict"], gigabytes(side["bytes"])
    defects = sum(defect["outcome"] != Outcome.LOADS.name for defect in found["defects"])
    more = f"; defects: {defects}, see below" if defects else ""
    runs = found["outcome"] not in (None, Outcome.FAILS.name)
    more += where_it_runs(side["work"]) if runs else ""
    name = f"{letter}: {side['file']}" if letter else side["file"]
    return f"{name} ({side['tensors']:,} tensors, {size}) {found['ending']}{more}"


def render_remarks(side: dict, letter: str = "") -> list[str]:
    """Tell a file's defects with consequence, remedy and examples, and the advice on it."""
    found, of = side["verdict"], f"{letter}: " if letter else ""
    lines = []
    for defect in found["defects"]:
        text = f"{of}{defect['outcome']}: {defect['count']} x {defect['what']}"
        lines += [
            Note(text, RANKS[Outcome[defect["outcome"]]]).line,
            f"  {defect['consequence']}; to do: {defect['remedy']}",
            f"  {defect['examples']}",
        ]
    return lines + [Note(f"{of}{note}", note.rank).line for note in found["advice"]]


def render_runs(side: dict, title: str) -> list[str]:
    """Tell how a file's layers run, how much of the work that is, and what it needs."""
    found = side["verdict"]
    # How the layers of a file that does not load would run would be read as how they do.
    if found["outcome"] == Outcome.FAILS.name:
        return []
    lines = [f"  {in_number(run['layers'], f'layers {label}')}: {run['how']}"
             for label, run in found["runs"].items()]  # fmt: skip
    lines += [f"  {line}" for line in render_work(side["work"])]
    # A quantised layer of a GGUF, or without a configuration, has nothing in runs either.
    other = DEFECTS["other program"].what in (defect["what"] for defect in found["defects"])
    if not found["runs"] and is_unquantised(side["schemes"]) and not other:
        lines.append("  no layer is quantised")
    return ["", title, *lines] if lines else []


def layers_and_size(found: dict[str, int]) -> tuple[str, str]:
    """Make the cells of a number of layers and of their bytes."""
    return str(found["layers"]), gigabytes(found["bytes"])


def render_one(data: dict, width: int = 0, *, every_layer: bool = True) -> str:
    """Render the inventory of one file: the verdict, then its tables.

    data: what `describe` made of it. width: of a line, 0 for any. every_layer: list all linear
    layers with shape, scheme and size at the end; the kinds of layers are listed anyway. Tables
    without rows are left out.
    """
    kinds = ((kind, label, *layers_and_size(sizes)) for kind, found in data["kinds"].items()
             for label, sizes in found.items())  # fmt: skip
    schemes = ((label, *layers_and_size(sizes)) for label, sizes in data["schemes"].items())
    rest = ((role, counted(found)) for role, found in data["not_quantised"].items() if found)
    naming = ((key, str(count)) for key, count in data["naming"].items())
    layers = ((x["name"], str(x["shape"]), x["scheme"], gigabytes(x["bytes"]))
              for x in data["layers"])  # fmt: skip
    remarks = render_remarks(data)
    parts = [
        render_verdict(data),
        *([""] if remarks else []),
        *remarks,
        *render_runs(data, "how it runs"),
        *table("linear layers", schemes),
        *table("by kind", kinds),
        *table("not quantised", rest),
        *table("scales and configurations", naming),
        *table("metadata", data["metadata"].items()),
    ]
    hints = []
    if every_layer:
        parts += table("every linear layer", layers)
    elif data["layers"]:
        hints += ["hint: --layers lists every linear layer, --pattern REGEX some of them"]
    hints += [VALUES_HINT] if data["work"] and data["work"]["comfyui"] else []
    parts += ["", *hints] if hints else []
    return lay_out(parts, width)


def render_difference(data: dict) -> str:
    """Tell in one line what is different between two files: layers, other tensors, metadata."""
    a, b = data["a"], data["b"]
    errors = data.get("relative_rmse", {}).values()
    if data["same_file"]:
        return "A and B are the same file"
    if data["same_structure"]:
        compared = "values were not compared: --values"
        if errors or data.get("not_compared"):
            different = sum(error != 0 for error in errors)
            compared = f"decoded weights differ in {different} of {len(errors)} layers"
            compared = compared if different else f"all {len(errors)} decoded weights are equal"
        metadata = "the same metadata" if data["same_metadata"] else "other metadata"
        return f"A and B have the same structure and {metadata} ({compared})"
    common = {x["name"] for x in a["layers"]} & {x["name"] for x in b["layers"]}
    layers = sum(row["layers"] for row in data["layers_that_differ"])
    others = sum(row["tensors"] for row in data["tensors_that_differ"])
    found = [f"{layers} of {len(common)} linear layers are stored or multiplied differently"]
    found += [f"{others} other tensor{'s' * (others > 1)} of another dtype or shape"] * bool(others)
    found += [f"{sum(data[key].values()):,} tensors are only in {key[-1].upper()}"
              for key in ("only_in_a", "only_in_b") if data[key]]  # fmt: skip
    return f"A and B differ: {'; '.join(found)}"


def render_two(data: dict, width: int = 0) -> str:
    """Render the verdict on two files, what is different between them, and the tables of that.

    data: what `compare_sides` made of them. width: of a line, 0 for any. Layers that differ are
    grouped by their schemes and kinds, so that a kind of all blocks takes one row. What is equal on
    both sides is not in the tables.
    """
    a, b = data["a"], data["b"]
    parts = [render_verdict(a, "A"), render_verdict(b, "B"), render_difference(data)]
    if data["same_file"]:
        return lay_out([parts[0], parts[2], *render_remarks(a)], width)
    remarks = [*render_remarks(a, "A"), *render_remarks(b, "B")]
    parts += ["", *remarks] if remarks else []
    if not data["same_structure"]:
        parts += [*render_runs(a, "how A runs"), *render_runs(b, "how B runs")]
    parts += side_by_side("linear layers", a["schemes"], b["schemes"],
                          lambda found: str(found["layers"]))  # fmt: skip
    for row in data["layers_that_differ"]:
        kinds = ((x["kind"], str(x["layers"]), x["stored"]) for x in row["kinds"])
        parts += table(f"{row['layers']} x {row['a']} -> {row['b']}", kinds)
    others = ((x["kind"], str(x["tensors"]), x["stored"]) for x in data["tensors_that_differ"])
    parts += table("other tensors that differ", others)
    parts += side_by_side("not quantised", a["not_quantised"], b["not_quantised"], counted)
    parts += side_by_side("scales and configurations", a["naming"], b["naming"])
    for letter in "ab":
        only = data[f"only_in_{letter}"].items()
        parts += table(f"only in {letter.upper()}", ((kind, str(count)) for kind, count in only))
    for letter, one, other in (("A", a, b), ("B", b, a)):
        unlike = [(key, value) for key, value in one["metadata"].items()
                  if other["metadata"].get(key) != value]  # fmt: skip
        parts += table(f"metadata of {letter} that {'B' if letter == 'A' else 'A'} has not", unlike)
    return lay_out([*parts, *render_values(data)], width)


def render_values(data: dict) -> list[Table]:
    """Render the relative RMSE of B's weights against A's.

    data: what `compare_sides` made. Returns a table of the MOST_DIFFERENT worst layers, one of
    means by kind and scheme in B, and one of the layers that were not compared with the reasons. No
    table at all where the values were not compared, or all are equal.
    """
    if not any(error != 0 for error in data.get("relative_rmse", {}).values()):
        return [*table("not compared", data.get("not_compared", {}).items())]
    # JSON has no NaN, so the data has None in its place.
    found = {
        name: math.nan if error is None else error for name, error in data["relative_rmse"].items()
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
        *table("relative RMSE, worst layers", shown),
        *table("relative RMSE, mean by kind and scheme in B", means),
        *table("not compared", data.get("not_compared", {}).items()),
    ]
