"""Draw the precision map as a picture: one SVG file that needs nothing else.

It has the rows, columns, colours and patterns of the page's map (`page_map`, `looks`), for light
and dark pages, and shows in an <img> as well as on its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from nvfp4.errors import gigabytes, in_number, percentage
from nvfp4.report.looks import LOOKS, SHADES, Look
from nvfp4.report.page_map import BlockMap, ErrorScale, block_maps, error_scale
from nvfp4.report.page_parts import escaped, layer_look, layers_of
from nvfp4.report.page_style import PAGE_COLOURS

# The picture's width, the column of row headings, a row's height, and the line height of text, in
# units of its viewBox.
SVG_WIDTH, SVG_HEAD, SVG_ROW, SVG_LINE = 960, 130, 16, 18
# The widest a cell becomes where there are few blocks.
WIDEST_CELL = 104
# The width that a block's number takes; where cells are narrower, only some blocks have theirs.
SVG_NUMBER = 16
# The estimated width of a letter, by which the legend is broken into lines.
LETTER = 6.4
# The tiles of the page's patterns, as paths in a box of 6 by 6, drawn with round ends: a line of no
# length is a dot.
TILES = {
    "rising": "M0 6L6 0",
    "falling": "M0 0L6 6",
    "crossed": "M0 6L6 0M0 0L6 6",
    "dots": "M1.5 1.5h0M4.5 4.5h0",
    "sparse": "M3 3h0",
    "level": "M0 2.5H6",
    "upright": "M3 0V6",
    "dash": "M1 3H5",
}


def svg_rules(looks: list[Look], scheme: str) -> str:
    """Write the rules of all colours that occur, on "light" or "dark" pages."""
    index = ("light", "dark").index(scheme)
    ink, soft = (PAGE_COLOURS[name][index] for name in ("ink", "soft"))
    rules = [f"text{{fill:{ink}}}.soft{{fill:{soft}}}"]
    for look in looks:
        colours = getattr(look.tint, scheme)
        line = f".{look.css}{{stroke:{colours.line}}}path.{look.css}{{fill:{colours.line}}}"
        shades = (f".{look.css}.e{step}{{fill:{colours.shade(step)}}}" for step in range(SHADES))
        rules += [line, *shades]
    return "".join(rules)


def svg_style(looks: list[Look], scheme: str) -> str:
    """Write the style sheet for "light" or "dark", or for both by what the reader prefers: ""."""
    if scheme:
        return svg_rules(looks, scheme)
    dark = svg_rules(looks, "dark")
    return f"{svg_rules(looks, 'light')}@media (prefers-color-scheme:dark){{{dark}}}"


def svg_patterns(looks: list[Look]) -> str:
    """Define the patterns that occur, one for each look: its lines have the look's colour."""
    return "".join(
        f'<pattern id="tile-{look.css}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<path class="{look.css}" d="{TILES[word]}" stroke-width=".9" stroke-linecap="round"/>'
        "</pattern>"
        for look in looks
        for word in look.pattern.split()
        if word in TILES
    )


def svg_text(x: float, y: float, text: str, more: str = "") -> str:
    """Draw a text, which is escaped, from x on, its baseline at y."""
    return f'<text x="{x:g}" y="{y:g}"{more and f" {more}"}>{escaped(text)}</text>\n'


def svg_cell(x: float, y: float, width: float, look: Look, step: int) -> str:
    """Draw a cell: its fill, and over it the pattern of its look."""
    box = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{SVG_ROW - 3}" rx="2"'
    parts = [f'<rect class="{look.css} e{step}" {box}/>']
    if {*look.pattern.split()} & TILES.keys():
        parts.append(f'<rect fill="url(#tile-{look.css})" {box}/>')
    if "corner" in look.pattern:
        corner = f"M{x + width - 6:g} {y:g}h6v6z"
        parts.append(f'<path class="{look.css}" d="{corner}"/>')
    return "".join(parts)


def svg_blocks(blocks: BlockMap, scale: ErrorScale, cell: float, top: float) -> Iterator[str]:
    """Draw one family's blocks from `top` on: a row of numbers, and a row for each kind."""
    numbers = {block: SVG_HEAD + column * cell for column, block in enumerate(blocks.blocks)}
    width, every = cell - min(2, cell / 4), math.ceil(SVG_NUMBER / cell)
    yield svg_text(0, top + SVG_LINE - 5, blocks.family, 'font-weight="600"')
    for block, x in [*numbers.items()][::every]:
        middle = 'text-anchor="middle" font-size="9" class="soft"'
        yield svg_text(x + width / 2, top + SVG_LINE - 5, block, middle)
    for row, kind in enumerate(blocks.kinds):
        y = top + SVG_LINE + row * SVG_ROW
        yield svg_text(0, y + 10, kind, 'class="soft"')
        for block, x in numbers.items():
            if layer := blocks.cells.get((block, kind)):
                yield svg_cell(x, y, width, layer_look(layer), scale.step(layer))
    yield "\n"


def svg_legend(layers: list[dict], scale: ErrorScale, top: float) -> tuple[list[str], float]:
    """Draw the legend from `top` on, in as many lines as it takes; return it and where it ends."""
    parts, x, y = [], 0.0, top
    counts = Counter(map(layer_look, layers)).most_common()
    items = [
        (look, f"{look.label}: {look.says}, {in_number(count, 'layers')}") for look, count in counts
    ]
    for look, text in items:
        width = 30 + LETTER * len(text)
        if x and x + width > SVG_WIDTH:
            x, y = 0.0, y + SVG_LINE
        parts.append(svg_cell(x, y, 20, look, SHADES - 1) + svg_text(x + 26, y + 10, text))
        x += width + 12
    if scale.largest is not None:
        y += SVG_LINE
        text = f"stronger colour: larger error (relative RMSE), up to {scale.largest:.4f}"
        steps = (svg_cell(21 * step, y, 20, LOOKS["W4A4"], step) for step in range(SHADES))
        parts += [*steps, svg_text(21 * SHADES + 6, y + 10, text)]
    return parts, y + SVG_LINE


def precision_map_svg(data: dict, scheme: str = "") -> str:
    """Draw the precision map of a report's data (see `data.report_data`, or a --report .json).

    scheme: "light" or "dark"; "" for what the reader's system prefers, which need not be what a
    site such as GitHub shows. The title tells the file's name, its size and what part that is of
    the source's. Layers outside the transformer blocks are counted in the legend only.
    """
    layers = layers_of(data)
    scale, (maps, _) = error_scale(data), block_maps(layers)
    looks = [*dict.fromkeys([LOOKS["W4A4"], *map(layer_look, layers)])]
    columns = max((len(blocks.blocks) for blocks in maps), default=1)
    cell = min((SVG_WIDTH - SVG_HEAD) / columns, WIDEST_CELL)
    output, source = data["output_bytes"], data["source_bytes"]
    plan = "dry run, " if data["dry_run"] else ""
    title = (
        f"{data['output']}: {plan}{gigabytes(output)}, {percentage(output, source)} of the source"
    )
    parts, top = [svg_text(0, 16, title, 'font-size="15" font-weight="600"')], 26.0
    for blocks in maps:
        parts += svg_blocks(blocks, scale, cell, top)
        top += SVG_LINE + SVG_ROW * len(blocks.kinds) + 8
    legend, end = svg_legend(layers, scale, top + 4)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -4 {SVG_WIDTH + 16} {end + 8:g}" '
        f'width="{SVG_WIDTH}" role="img" font-family="system-ui, sans-serif" font-size="11.5">'
        f"<title>Precision map of {escaped(title)}</title>\n"
        f"<style>{svg_style(looks, scheme)}</style>\n"
        f"<defs>{svg_patterns(looks)}</defs>\n{''.join([*parts, *legend])}</svg>\n"
    )
