"""Render what the log analyser prints, and what thresholds cost.

The output ends with two tables: the layers whose input scale varies most, and how many layers each
criterion flags. Nothing here imports numpy, as `render_trade` is part of --help.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nvfp4.cli.arguments import called_beside
from nvfp4.doctor.facts import as_word
from nvfp4.errors import one_line
from nvfp4.logs.lists import sensitive_layers
from nvfp4.logs.records import Criteria, LogSummary
from nvfp4.notes import Rank, by_rank

# The converter's option for a file that was written by an option of this program.
NEXT = {"json": "--input-scale-summary-json", "sensitive_layers": "--full-precision-mm-layers"}
# Layers in the table of the most variable input scales; the CSV has all of them.
MOST_VARIABLE = 10
# What thresholds cost: model, --cv-threshold, per cent of the measured layers that it flags, per
# cent of their multiply work that stays W4A4 without these, and without all cross-attention, too.
# calib/make_shipped.py --trade computes these figures, and a test compares.
TRADE = (
    ("TI2V 5B", 0.01, 94, 4, 0),
    ("TI2V 5B", 0.16, 43, 64, 54),
    ("I2V 14B low", 0.01, 90, 9, 0),
    ("I2V 14B low", 0.11, 33, 64, 51),
    ("I2V 14B high", 0.01, 89, 10, 0),
    ("I2V 14B high", 0.12, 42, 68, 55),
)


def columns_of(title: str, rows: list[tuple[str, ...]]) -> list[str]:
    """Lay out a table under its title, after an empty line.

    rows: of the same length, the headings first. The first column is set to the left, numbers in
    the others to the right. Returns the lines, indented by two spaces.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return ["", title, *(f"  {line}".rstrip() for line in lines)]


def figure_text(value: float | None) -> str:
    """Show a figure in a table: whole numbers in full, others with three digits.

    None, which stands for what is not known, becomes "-".
    """
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def render_variable(summary: LogSummary) -> list[str]:
    """Render a table of the layers whose input scale varies most, by scale_cv.

    The column rel_rmse is in it where any layer has one, and "-" where a layer lacks a figure.
    """
    worst = sorted(summary.rows, key=lambda row: -row["scale_cv"])[:MOST_VARIABLE]
    columns = {
        "calls": "count",
        "median": "scale_p50",
        f"p{summary.percentiles[-1]:g}": summary.highest,
        "scale_cv": "scale_cv",
        "kurtosis": "scale_kurtosis",
    }
    if any("rel_rmse" in row for row in summary.rows):
        columns["rel_rmse"] = "rel_rmse"
    rows = [(one_line(row["layer"]), *(figure_text(row.get(k)) for k in columns.values()))
            for row in worst]  # fmt: skip
    return columns_of("the most variable input scales", [("layer", *columns), *rows])


def render_flags(summary: LogSummary, criteria: Criteria) -> list[str]:
    """Render how many layers each criterion flags, and all together; nothing without criteria.

    --cross-attn flags layers that have no row, too, so the table has two columns: all that are
    flagged, and those of them that were measured.
    """
    if not criteria:
        return []
    every = {f"{column} >= {limit:g}": Criteria(thresholds={column: limit}, cross_attention=False)
             for column, limit in criteria.thresholds.items()}  # fmt: skip
    if criteria.cross_attention:
        every["cross-attention"] = Criteria(thresholds={}, cross_attention=True)
    # Layers without a row are only flagged by --cross-attn.
    measured = {row["layer"] for row in summary.rows}
    rows = [("", "flagged", f"of {len(measured):,} measured")]
    for what, one in [*every.items(), ("sensitive", criteria)]:
        flagged = sensitive_layers(summary.rows, one)
        rows.append((what, figure_text(len(flagged)), figure_text(len(measured & flagged.keys()))))
    return columns_of("sensitive layers", rows)


def render_analysis(
    summary: LogSummary, criteria: Criteria, written: dict[str, Path], plots: Iterable[Path] = ()
) -> str:
    """Render all that is printed at the end: what was read, tables, notes, what was written.

    criteria: what flags layers, perhaps nothing. written: {option: file}, in the order in which
    they were written, and plots after them; perhaps none. The last line is what to type next.
    """
    notes = by_rank(summary.notes)
    read = [note.line for note in notes if note.rank == Rank.INFORMATION]
    others = [note.line for note in notes if note.rank > Rank.INFORMATION]
    files = [*written.values(), *plots]
    return "\n".join(
        [
            *read,
            summary.measured,
            *render_variable(summary),
            *render_flags(summary, criteria),
            *([""] if others else []),
            *others,
            "",
            *(f"written: {path}" for path in files),
            *render_next(written),
        ]
    )


def render_next(written: dict[str, Path]) -> list[str]:
    """Render the converter's command for what was written, or what to write for one.

    written: {option: file}. A file that the converter does not read has no line.
    """
    flags = [f"{NEXT[name]} {as_word(path)}" for name, path in written.items() if name in NEXT]
    if flags:
        return [f"next: {called_beside('convert_nvfp4.py')} SOURCE {' '.join(flags)}"]
    return ["hint: --json FILE writes the summary that convert_nvfp4.py takes input scales from"]


def render_trade() -> str:
    """Render the table of what thresholds cost, for --help.

    It tells what no single log can: which share of the work is left in W4A4 when layers are listed
    from some scale_cv on.
    """
    rows = [("", "--cv-threshold", "layers flagged", "stays W4A4", "with --cross-attn")]
    rows += [(model, f"{limit:g}", *(f"{share} %" for share in shares))
             for model, limit, *shares in TRADE]  # fmt: skip
    title = "  Of the multiply work of the measured layers:"
    return "\n".join(columns_of(title, rows)[1:])
