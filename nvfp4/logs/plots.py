"""Plot a summary as PNG files.

matplotlib is optional, so that functions import what they use of it; `need_matplotlib` tells before
the long reading if it is missing. `panels` groups layers, and makes the pages that are drawn on.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvfp4.errors import ConvertError, one_line
from nvfp4.files import translated, write_bytes
from nvfp4.guides.columns import percentile_key
from nvfp4.logs.lists import sensitive_layers
from nvfp4.logs.panels import (
    ACROSS,
    DIAMOND,
    DOT,
    LABEL_SIZE,
    LEGEND,
    MARKED,
    PLAIN,
    SCALE_LABEL,
    TICK_SIZE,
    Panel,
    add_legend,
    log_axis,
    name_layers,
    name_panel,
    page,
    panels_of,
)
from nvfp4.logs.records import Criteria, LogSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Bars of a histogram.
BINS = 40
# The colour of a line that stands for several blocks: no colour of a single one.
SEVERAL = "#444444"
# From this kurtosis on, a few layers would crowd all others into the first bar: its axis becomes
# logarithmic.
HEAVY = 10.0
# What a histogram's x axis shows: the column of the summary, and its name in two lines.
HISTOGRAMS = {
    "scale_cv": "scale_cv: standard deviation\nof the input scale over its mean",
    "scale_kurtosis": "scale_kurtosis: excess kurtosis of\nthe input scale (normal: 0)",
    "scale_outlier_frac_3std": "scale_outlier_frac_3std: share of\ncalls beyond 3 std of the mean",
    "rel_rmse": "rel_rmse: relative RMSE of\nthe inputs in NVFP4",
}


def need_matplotlib() -> None:
    """Raise ConvertError where matplotlib is not installed.

    It is asked before a log is read, so that nobody waits minutes for this answer.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        problem = "--plots-dir needs matplotlib: pip install matplotlib, or leave the option out"
        raise ConvertError(problem) from error


def as_png(figure: Figure) -> bytes:
    """Draw a figure into memory; returns the bytes of a PNG file.

    It is written from there like any other file: whole, or not at all.
    """
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def title_of(summary: LogSummary, what: str) -> str:
    """Make a page's title of two lines: the model and how much was measured, then what is shown."""
    model = f"{one_line(summary.model)}: " if summary.model else ""
    return f"{model}{summary.measured}\n{what}"


def same_layers(count: int) -> str:
    """Say how many layers one line or band stands for."""
    return f"the same in {count:,} layers"


def draw_bars(axes: Axes, found: list[tuple[int, dict]], ends: tuple[str, str], look: dict) -> None:
    """Draw a bar for each block from one column to another, with the median on it.

    found: [(place on the x axis, row)]. ends: columns of the lowest and the highest percentile.
    look: colour and marker of all of them.
    """
    places = [place for place, _ in found]
    heights = ([row[key] for _, row in found] for key in ends)
    axes.vlines(places, *heights, color=look["color"], linewidth=2.2)
    dots = [row.get("scale_p50", math.nan) for _, row in found]
    axes.plot(places, dots, linestyle="", markersize=3.2, **look)


def draw_band(axes: Axes, panel: Panel, ends: tuple[str, str], look: dict) -> None:
    """Draw blocks of equal figures as one band from the first to the last, and say how many."""
    row, places = panel.found[0][1], [place for place, _ in panel.found]
    across = min(places) - 0.4, max(places) + 0.4
    low, high = (row[key] for key in ends)
    axes.bar(across[0], high - low, across[1] - across[0], low, align="edge", color=look["color"],
             alpha=0.3)  # fmt: skip
    # The median has the marker of its legend at the band's ends.
    median = row.get("scale_p50", math.nan)
    axes.plot(across, [median] * 2, markersize=3.2, **look)
    text = same_layers(len(places) * len(panel.kinds))
    place = (sum(across) / 2, high)
    axes.annotate(text, place, (0, 4), textcoords="offset points", ha="center", fontsize=TICK_SIZE)


def plot_layers(summary: LogSummary, criteria: Criteria) -> Figure:
    """Plot the input scales of all layers: a panel for each kind, a bar for each block.

    criteria: what makes a layer sensitive; these have a colour and a marker of their own. A bar
    goes from the lowest percentile to the highest one, and a dot is the median. Layers outside of
    the blocks have their names below the bars. Returns the figure.
    """
    marked = {*sensitive_layers(summary.rows, criteria)}
    ends = tuple(f"scale_{percentile_key(summary.percentiles[i])}" for i in (0, -1))

    def drawn(row: dict) -> tuple:
        return *(row.get(key) for key in (*ends, "scale_p50")), row["layer"] in marked

    panels = panels_of(summary.rows, drawn)
    title = title_of(summary, "input scale over calls, by block")
    figure, pages = page(len(panels), title, legend=LEGEND)
    looks = ({"color": PLAIN, "marker": DOT}, {"color": MARKED, "marker": DIAMOND})
    for axes, panel in zip(pages, panels, strict=True):
        alike = {drawn(row) for _, row in panel.found}
        if len(alike) == 1 < len(panel.found) and not panel.is_elsewhere:
            draw_band(axes, panel, ends, looks[alike.pop()[-1]])
        else:
            # One after the other, so that those which are marked lie on top.
            for is_marked, look in enumerate(looks):
                chosen = [x for x in panel.found if (x[1]["layer"] in marked) == is_marked]
                draw_bars(axes, chosen, ends, look)
        name_panel(axes, panel, "block")
        if panel.is_elsewhere:
            name_layers(axes, panel)
    log_axis(pages, [row[key] for row in summary.rows for key in ends], SCALE_LABEL)
    bar = f"bar: p{summary.percentiles[0]:g} to p{summary.percentiles[-1]:g}"
    entries = {f"{bar}, dot: median": looks[0]}
    if marked:
        share = f"{sum(row['layer'] in marked for row in summary.rows):,} of {len(summary.rows):,}"
        entries[f"sensitive: {' or '.join(criteria.texts)} ({share} layers)"] = looks[1]
    add_legend(figure, entries)
    return figure


def plot_histograms(summary: LogSummary, criteria: Criteria) -> Figure:
    """Plot how many inputs have which variation, kurtosis, share of outliers and error.

    Layers with equal figures, as those that are given the same input, count once. A column that no
    row has gets no panel. A threshold of `criteria` is a labelled line across its own panel.
    Returns the figure, of up to four panels.
    """
    distinct = {tuple(row.get(column) for column in ("scale_mean", "scale_std", *HISTOGRAMS)): row
                for row in summary.rows}.values()  # fmt: skip
    known = {
        column: [row[column] for row in distinct if row.get(column) is not None]
        for column in HISTOGRAMS
    }
    known = {column: values for column, values in known.items() if values}
    what = "how many inputs have which figures"
    if len(distinct) < len(summary.rows):
        what += f" ({len(distinct):,} inputs: layers of the same figures count once)"
    across = 2 if len(known) == len(HISTOGRAMS) else ACROSS
    # Counts of different figures are not compared with each other.
    figure, pages = page(len(known), title_of(summary, what), across=across, compared=False)
    for axes, (column, values) in zip(pages, known.items(), strict=True):
        draw_histogram(axes, column, values)
        if column in criteria.thresholds:
            limit = criteria.thresholds[column]
            only = Criteria(thresholds={column: limit}, cross_attention=False)
            flagged = len(sensitive_layers(summary.rows, only))
            axes.axvline(limit, color=MARKED, linewidth=1.5, linestyle="--")
            text = f"sensitive from {limit:g}:\n{flagged:,} of {len(summary.rows):,} layers"
            axes.set_title(text, fontsize=LABEL_SIZE, color=MARKED)
        axes.set_ylabel("inputs", fontsize=LABEL_SIZE)
    return figure


def draw_histogram(axes: Axes, column: str, values: list[float]) -> None:
    """Draw the histogram of one column; a kurtosis that spans much gets a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if column == "scale_kurtosis" and max(values) > HEAVY:
        # Of equal width on the axis: arcsinh is linear around 0 and logarithmic beyond.
        bins = np.sinh(np.linspace(*np.arcsinh([min(values), max(values)]), BINS + 1))
        axes.set_xscale("symlog")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        bins = BINS
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.hist(values, bins, color=PLAIN)
    axes.set_xlabel(HISTOGRAMS[column], fontsize=LABEL_SIZE)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def plot_steps(summary: LogSummary) -> Figure:
    """Plot a panel for each kind of layer: each block's mean input scale from step to step.

    summary: one with rows by step. Blocks are told by their shade, from the first to the last, and
    blocks of equal figures are one dark line that says how many it stands for; layers outside of
    the blocks get colours of their own and a legend.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    panels = panels_of(summary.steps, lambda row: (row["step"], row["scale_mean"]))
    inner = [place for panel in panels if not panel.is_elsewhere for place, _ in panel.found]
    shades = Normalize(min(inner, default=0), max(inner, default=0) or 1)
    # The last tenth of the map is a yellow that is hard to see on white.
    seen = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    colours = ScalarMappable(shades, seen)
    figure, pages = page(len(panels), title_of(summary, "mean input scale at each step, by block"))
    for axes, panel in zip(pages, panels, strict=True):
        draw_steps(axes, panel, colours)
        name_panel(axes, panel, "step (0 is the first)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    log_axis(pages, [row["scale_mean"] for row in summary.steps], SCALE_LABEL)
    if inner:
        bar = figure.colorbar(colours, ax=pages, fraction=0.02, pad=0.01, aspect=40)
        bar.set_label("block", fontsize=LABEL_SIZE)
        bar.ax.tick_params(labelsize=TICK_SIZE)
        bar.locator = MaxNLocator(8, integer=True)
    return figure


def draw_steps(axes: Axes, panel: Panel, colours: ScalarMappable) -> None:
    """Draw a line for each layer of a panel, and one for all that have the same figures.

    colours: those of blocks by their number; layers outside the blocks get matplotlib's own.
    """
    lines, alike = defaultdict(list), defaultdict(list)
    for place, row in panel.found:
        lines[row["layer"], place].append((row["step"], row["scale_mean"]))
    for layer, points in lines.items():
        alike[tuple(sorted(points))].append(layer)
    for points, layers in alike.items():
        look = {"linewidth": 1.2}
        if panel.is_elsewhere:
            look["label"] = ", ".join(one_line(name) for name, _ in layers)
        elif len(layers) == 1:
            look["color"] = colours.to_rgba(layers[0][1])
        else:
            look |= {"color": SEVERAL, "linewidth": 2.2}
            place = points[len(points) // 2]
            text = same_layers(len(layers) * len(panel.kinds))
            axes.annotate(text, place, (0, 5), ha="center", fontsize=TICK_SIZE,
                          textcoords="offset points")  # fmt: skip
        axes.plot(*zip(*points, strict=True), **look)
    if panel.is_elsewhere:
        axes.legend(fontsize=TICK_SIZE - 2)


def write_plots(folder: Path, summary: LogSummary, criteria: Criteria) -> list[Path]:
    """Write histograms.png, layers.png and, where there are steps, steps.png into a folder.

    criteria: what makes a layer sensitive. The folder is made if it is not there; its parent has to
    be. Returns the files that were written. Raises ConvertError where the disk refuses; all figures
    are drawn before the first one is written.
    """
    figures = {
        "histograms.png": plot_histograms(summary, criteria),
        "layers.png": plot_layers(summary, criteria),
    }
    if summary.steps:
        figures["steps.png"] = plot_steps(summary)
    drawn = {name: as_png(figure) for name, figure in figures.items()}
    with translated(folder):
        folder.mkdir(exist_ok=True)
    for name, data in drawn.items():
        write_bytes(data, folder / name)
    return [folder / name for name in drawn]
