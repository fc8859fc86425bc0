"""Group layers into panels, and make the pages that plots are drawn on.

Layers of one kind share a panel, since blocks are compared with each other: numbers of blocks are
on the x axis, and all panels have one y axis. Kinds of layers that are given the same input,
such as q and k of an attention, have the same figures and are drawn once. matplotlib is optional,
so that functions import what they use of it.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvfp4.errors import one_line
from nvfp4.names import kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of layers, and of sensitive layers and thresholds: blue and vermilion of Okabe and Ito,
# which colour-blind readers tell apart. Their markers differ as well, for prints in grey.
PLAIN, MARKED = "#0072B2", "#D55E00"
DOT, DIAMOND = "o", "D"
# Width and height of a panel, in inches: ACROSS of them are as wide as a page of GitHub, 830 CSS
# pixels, so that text is as large there as it is set here.
PANEL = 2.75, 2.2
# Dots an inch: twice those of such a page, so that screens of double resolution show it sharp.
DPI = 200
# Height of a title of two lines, and of the legend below the panels, in inches.
TITLE, LEGEND = 0.5, 0.3
# Panels beside each other on a page; more kinds than these begin a new row.
ACROSS = 3
# Sizes of text, in points: the title's, that of names and axes, and that of ticks.
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 11, 9, 8
# Characters of a panel's title in a line.
TITLE_WIDTH = 38
# The kind under which all layers outside of the blocks are shown together.
ELSEWHERE = "outside the blocks"
# What is on the y axis of scales; they have no unit.
SCALE_LABEL = "input scale (amax / 2688)"
# An axis that spans at least this factor gets ticks at powers of ten, and at 3 times these up to
# the next factor; else at more digits.
TICKS = ((3_000, (1,)), (20, (1, 3)), (0, (1, 2, 3, 5, 7)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Hold what one panel shows: kinds of layers whose figures are the same.

    kinds: one at least, such as "blocks.*.self_attn.q". found: [(number of its block, row)] of the
    first kind, which stand for those of the others.
    """

    kinds: tuple[str, ...]
    found: list[tuple[int, dict]]

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether these are the layers outside of the blocks."""
        return self.kinds == (ELSEWHERE,)

    @property
    def title(self) -> str:
        """Name the kinds, what they have in common once: "blocks.*.self_attn.k = q"."""
        heads = {kind.rpartition(".")[0] for kind in self.kinds}
        others = self.kinds[1:]
        if len(heads) == 1:
            others = [kind.rpartition(".")[2] for kind in others]
        lines = textwrap.wrap(one_line(" = ".join([self.kinds[0], *others])), TITLE_WIDTH)
        return "\n".join(lines)


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


def panels_of(rows: Iterable[dict], drawn: Callable[[dict], object]) -> list[Panel]:
    """Make a panel for each kind of layer, and one for all kinds that would look the same.

    drawn: what is drawn of a row. Kinds are the same where it is equal in every block.
    """
    alike = defaultdict(list)
    kinds = by_kind(rows)
    for kind, found in kinds.items():
        alike[tuple((place, drawn(row)) for place, row in found)].append(kind)
    return [Panel(kinds=tuple(same), found=kinds[same[0]]) for same in alike.values()]


def page(
    panels: int, title: str, *, legend: float = 0.0, across: int = ACROSS, compared: bool = True
) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels, in rows of `across`.

    panels: one at least; axes that the last row has beyond them are switched off. title: of a few
    lines. legend: inches below the panels that `add_legend` needs. compared: all panels have one y
    axis. Returns the figure and the axes of the panels. pyplot is not used, as it would look for a
    display.
    """
    from matplotlib.figure import Figure

    across = min(panels, across)
    down = -(-panels // across)
    height = PANEL[1] * down + TITLE + legend
    figure = Figure(figsize=(PANEL[0] * ACROSS, height), dpi=DPI, layout="constrained")
    # Constrained layout knows nothing of a figure's legend before matplotlib 3.7.
    figure.get_layout_engine().set(rect=(0, legend / height, 1, 1 - legend / height))
    axes = figure.subplots(down, across, squeeze=False, sharey=compared).ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    for used in axes[:panels]:
        used.tick_params(labelsize=TICK_SIZE)
    figure.suptitle(title, fontsize=TITLE_SIZE)
    return figure, list(axes[:panels])


def name_panel(axes: Axes, panel: Panel, label: str) -> None:
    """Give a panel its title and its x axis: a label, or the names of layers outside the blocks."""
    axes.set_title(panel.title, fontsize=LABEL_SIZE)
    axes.set_xlabel(label, fontsize=LABEL_SIZE)


def name_layers(axes: Axes, panel: Panel) -> None:
    """Put the names of the layers outside the blocks below the x axis."""
    names = [one_line(row["layer"]) for _, row in panel.found]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=TICK_SIZE)
    axes.set_xlabel("")


def add_legend(figure: Figure, entries: dict[str, dict]) -> None:
    """Put a legend below all panels: {text: colour and marker of a line}."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=2.2, markersize=5, **look) for look in entries.values()]
    figure.legend(handles, [*entries], loc="lower center", ncol=len(entries), fontsize=LABEL_SIZE,
                  frameon=False)  # fmt: skip


def log_axis(pages: list[Axes], values: Iterable[float], label: str) -> None:
    """Make the shared y axis logarithmic, with ticks that can be read within a power of ten, too.

    pages: axes that share it, of which those at the left get the label; all get a grid. values:
    all that is shown, positive; a margin is added on both sides, 8 % of their distance.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = [*values]
    lowest, highest = min(values), max(values)
    span = max(highest / lowest, 1.01)
    # The same share of the axis at both ends, however much it spans.
    margin = span**0.08
    steps = next(steps for least, steps in TICKS if span >= least)
    for axes in pages:
        axes.set_yscale("log")
        axes.set_ylim(lowest / margin, highest * margin)
        axes.yaxis.set_major_locator(MaxNLocator(6) if span < 4 else LogLocator(subs=steps))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", linewidth=0.3)
    for axes in pages[::ACROSS]:
        axes.set_ylabel(label, fontsize=LABEL_SIZE)


def plain_number(value: float) -> str:
    """Write a tick with three digits and without an exponent down to 0.00001."""
    if not 1e-5 <= value < 1:
        return f"{value:.3g}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}".rstrip("0")
