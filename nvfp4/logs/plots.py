"""Plot a summary as PNG files.

matplotlib is optional, so that functions import what they use of it; `need_matplotlib` tells before
the long reading if it is missing. Layers of one kind share a panel, since blocks are compared with
each other: numbers of blocks are on the x axis.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvfp4.errors import ConvertError, one_line
from nvfp4.files import translated, write_bytes
from nvfp4.guides.columns import percentile_key
from nvfp4.logs.lists import sensitive_layers
from nvfp4.logs.records import Criteria, LogSummary
from nvfp4.names import kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of layers, and of sensitive layers and thresholds.
PLAIN, MARKED = "#3b6ea5", "#d1495b"
# Width and height of a panel, in inches.
PANEL = 3.6, 2.5
# Panels beside each other on a page; more kinds than these begin a new row.
ACROSS = 3
# The kind under which all layers outside of the blocks are shown together.
ELSEWHERE = "outside the blocks"
# Bars of a histogram.
BINS = 40
# From this kurtosis on, a few layers would crowd all others into the first bar: its axis becomes
# logarithmic.
HEAVY = 10.0


def need_matplotlib() -> None:
    """Raise ConvertError where matplotlib is not installed.

    It is asked before a log is read, so that nobody waits minutes for this answer.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConvertError("--plots-dir needs matplotlib: pip install matplotlib") from error


def page(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels, in rows of ACROSS.

    panels: one at least; axes that the last row has beyond them are switched off. Returns the
    figure and the axes of the panels. pyplot is not used, as it would look for a display.
    """
    from matplotlib.figure import Figure

    across = min(panels, ACROSS)
    down = -(-panels // across)
    # A single panel would be too narrow for the title.
    size = PANEL[0] * max(across, 2), PANEL[1] * down + 0.8
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure, list(axes[:panels])


def as_png(figure: Figure) -> bytes:
    """Draw a figure into memory; returns the bytes of a PNG file.

    It is written from there like any other file: whole, or not at all.
    """
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def by_kind(rows: Iterable[dict]) -> dict[str, list[tuple[int, dict]]]:
    """Group rows as {kind of layer: [(number of its block, row)]}.

    rows: of a summary, or its steps. The kind is the layer's name with * for its block's number.
    Layers outside of the blocks are one kind, ELSEWHERE, numbered in the order in which they first
    come; rows of one layer share its number.
    """
    kinds, elsewhere = defaultdict(list), {}
    for row in rows:
        kind, block = kind_of(row["layer"]), re.search(r"(?<=\.)\d+(?=\.)", row["layer"])
        if "*" in kind and block:
            kinds[kind].append((int(block[0]), row))
        else:
            place = elsewhere.setdefault(row["layer"], len(elsewhere))
            kinds[ELSEWHERE].append((place, row))
    return dict(kinds)


def log_axis(axes: Axes, lowest: float, highest: float) -> None:
    """Make the y axis logarithmic, with ticks that can be read within one power of ten, too.

    axes: the panel, whose y axis is limited, labelled and given a grid. lowest, highest: the
    positive values that are shown; a margin is added on both sides, which is 8 % of their distance
    on the axis.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    span = max(highest / lowest, 1.01)
    # The same share of the axis at both ends, however much it spans.
    margin = span**0.08
    steps = (1,) if span > 300 else (1, 3) if span > 20 else (1, 2, 3, 5, 7)
    axes.set_yscale("log")
    axes.set_ylim(lowest / margin, highest * margin)
    axes.yaxis.set_major_locator(MaxNLocator(6) if span < 4 else LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.3)


def plot_layers(summary: LogSummary, marked: set[str]) -> Figure:
    """Plot the input scales of all layers: a panel for each kind, a bar for each block.

    marked: names of the layers that are drawn in red, as sensitive. A bar goes from the lowest
    percentile to the highest one, and a dot is the median. Layers outside of the blocks have their
    names below the bars. Returns the figure.
    """
    kinds = by_kind(summary.rows)
    low, high = (f"scale_{percentile_key(summary.percentiles[i])}" for i in (0, -1))
    title = (
        f"Input scale over calls, by block: bar from p{summary.percentiles[0]:g} to "
        f"p{summary.percentiles[-1]:g}, dot: median"
    )
    title += "; red: sensitive by the given thresholds" if marked else ""
    figure, panels = page(len(kinds), title)
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        # One after the other, so that those which are marked lie on top.
        for colour in (PLAIN, MARKED):
            chosen = [x for x in found if (x[1]["layer"] in marked) == (colour == MARKED)]
            places = [place for place, _ in chosen]
            ends = ([row[key] for _, row in chosen] for key in (low, high))
            axes.vlines(places, *ends, color=colour, linewidth=2.5)
            dots = [row.get("scale_p50", math.nan) for _, row in chosen]
            axes.plot(places, dots, "o", color=colour, markersize=3.5)
        log_axis(axes, min(row[low] for _, row in found), max(row[high] for _, row in found))
        axes.set_title(one_line(kind), fontsize=9)
        if kind == ELSEWHERE:
            names = [one_line(row["layer"]) for _, row in found]
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        else:
            axes.set_xlabel("block", fontsize=8)
    return figure


def plot_histograms(summary: LogSummary, criteria: Criteria) -> Figure:
    """Plot how many layers have which variation, kurtosis, share of outliers and error.

    Values are those of the summary's rows; a column that no row has gets no panel. A threshold of
    `criteria` is a red line across its own panel. Returns the figure, of up to four panels.
    """
    from matplotlib.ticker import MaxNLocator

    columns = {
        "scale_cv": "scale_cv = std / mean",
        "scale_kurtosis": "scale_kurtosis, excess (normal: 0)",
        "scale_outlier_frac_3std": "share of calls beyond 3 std",
        "rel_rmse": "relative RMSE of inputs in NVFP4",
    }
    known = {
        column: [row[column] for row in summary.rows if row.get(column) is not None]
        for column in columns
    }
    known = {column: values for column, values in known.items() if values}
    figure, panels = page(len(known), f"{len(summary.rows)} layers by their input scales")
    for axes, (column, values) in zip(panels, known.items(), strict=True):
        heavy = column == "scale_kurtosis" and max(values) > HEAVY
        # Of equal width on the axis: arcsinh is linear around 0 and logarithmic beyond.
        bins = np.linspace(*np.arcsinh([min(values), max(values)]), BINS + 1)
        axes.hist(values, np.sinh(bins) if heavy else BINS, color=PLAIN)
        if heavy:
            axes.set_xscale("symlog")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        if column in criteria.thresholds:
            axes.axvline(criteria.thresholds[column], color=MARKED, linewidth=1.5)
        axes.set_xlabel(columns[column], fontsize=8)
        axes.set_ylabel("layers", fontsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
    return figure


def plot_steps(summary: LogSummary) -> Figure:
    """Plot a panel for each kind of layer: each block's mean input scale from step to step.

    summary: one with rows by step. Blocks are told by their shade, from the first to the last;
    layers outside of the blocks get colours of their own and a legend.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    kinds = by_kind(summary.steps)
    shades = Normalize(0, max(place for found in kinds.values() for place, _ in found) or 1)
    colours = ScalarMappable(shades, colormaps["viridis"])
    figure, panels = page(len(kinds), "Mean input scale at each step, a line for each block")
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        lines = defaultdict(list)
        for place, row in found:
            lines[row["layer"], place].append((row["step"], row["scale_mean"]))
        for (name, place), points in lines.items():
            # None leaves the colour to matplotlib, which goes through its own: no block's number is
            # there to tell.
            colour = None if kind == ELSEWHERE else colours.to_rgba(place)
            places = zip(*sorted(points), strict=True)
            axes.plot(*places, color=colour, linewidth=0.9, label=one_line(name))
        if kind == ELSEWHERE:
            axes.legend(fontsize=5)
        means = [row["scale_mean"] for _, row in found]
        log_axis(axes, min(means), max(means))
        axes.set_title(one_line(kind), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    figure.colorbar(colours, ax=panels, label="block", fraction=0.02, pad=0.01)
    return figure


def write_plots(folder: Path, summary: LogSummary, criteria: Criteria) -> list[Path]:
    """Write histograms.png, layers.png and, where there are steps, steps.png into a folder.

    criteria: what draws layers red and thresholds as lines. The folder is made if it is not there;
    its parent has to be. Returns the files that were written. Raises ConvertError where the disk
    refuses; all figures are drawn before the first one is written.
    """
    marked = set(sensitive_layers(summary.rows, criteria))
    figures = {
        "histograms.png": plot_histograms(summary, criteria),
        "layers.png": plot_layers(summary, marked),
    }
    if summary.steps:
        figures["steps.png"] = plot_steps(summary)
    with translated(folder):
        folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_bytes(as_png(figure), folder / name)
    return [folder / name for name in figures]
