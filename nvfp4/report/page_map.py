"""Lay the layers out as the precision map, and render it for the page.

Inside known transformer blocks a row is a kind of layer and a column a block; all other layers
follow as a list. `map_svg` draws the same rows and columns as a picture.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from nvfp4.errors import gigabytes, in_number
from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.model import bare
from nvfp4.report.looks import SHADES, shade_step
from nvfp4.report.page_parts import (
    chip,
    decibels,
    escaped,
    html_fold,
    html_name,
    html_scroll,
    html_section,
    html_table,
    layer_look,
    layers_of,
    shown_error,
)
from nvfp4.report.summary import output_errors

# What the reason of a layer in an edge block has in it.
EDGE = "edge block"
# A longer list of layers outside the blocks is folded.
OUTSIDE_SHOWN = 12


class BlockMap(NamedTuple):
    """Hold one family's blocks: rows by kind of layer, columns by block.

    family: the name before the blocks' numbers, such as "blocks". kinds: in the order in which the
    model has them, those of one module side by side. blocks: their numbers in order, as in names.
    cells: {(block, kind): tensor of the report's data}; blocks may lack kinds. edges: blocks that
    were kept as edge blocks.
    """

    family: str
    kinds: list[str]
    blocks: list[str]
    cells: dict[tuple[str, str], dict]
    edges: set[str]

    def runs(self) -> list[tuple[str, int]]:
        """Tell which columns are edge blocks: ("edge" or "", number of columns) from the left."""
        marks = ("edge" if block in self.edges else "" for block in self.blocks)
        return [(mark, len([*run])) for mark, run in itertools.groupby(marks)]


class ErrorScale(NamedTuple):
    """Hold what shades and numbers of cells go by.

    largest: the largest error of the model (see `shown_error`); None after a dry run. unusual:
    names of layers whose error stands out.
    """

    largest: float | None
    unusual: set[str]

    def step(self, layer: dict) -> int:
        """Tell the shade of a layer; one without an error, in a model with errors, lost nothing."""
        if self.largest is None:
            return shade_step(None, 0)
        return shade_step(shown_error(layer) or 0, self.largest)


def error_scale(data: dict) -> ErrorScale:
    """Find the largest error of a report's layers, and those that stand out."""
    errors = filter(None, map(shown_error, layers_of(data)))
    measured = bool(data["errors"])
    return ErrorScale(
        largest=max(errors, default=0.0) if measured else None,
        unusual={one["layer"] for one in data["outliers"]},
    )


def block_maps(layers: Iterable[dict]) -> tuple[list[BlockMap], list[dict]]:
    """Sort layers into the blocks of their families, and those outside of any."""
    families, outside = defaultdict(dict), []
    # Matched on bare names; a prefix is put before the family's name again.
    inside = re.compile(rf"({'|'.join(TRANSFORMER_BLOCKS)})\.?(\d{{1,9}})\.(.+)\.weight", re.DOTALL)
    for layer in layers:
        name = bare(layer["name"])
        if found := inside.fullmatch(name):
            families[layer["name"].removesuffix(name) + found[1]][found[2], found[3]] = layer
        else:
            outside.append(layer)
    return [block_map(family, cells) for family, cells in families.items()], outside


def block_map(family: str, cells: dict[tuple[str, str], dict]) -> BlockMap:
    """Put one family's layers, {(block, kind): tensor of the data}, into rows and columns."""
    modules = defaultdict(list)
    for kind in dict.fromkeys(kind for _, kind in cells):
        modules[kind.partition(".")[0]].append(kind)
    return BlockMap(
        family=family,
        kinds=[kind for kinds in modules.values() for kind in kinds],
        blocks=sorted({block for block, _ in cells}, key=int),  # "10" comes after "9"
        cells=cells,
        edges={block for (block, _), layer in cells.items() if EDGE in layer["reason"]},
    )


def html_tip(layer: dict) -> str:
    """Render the facts about a layer that show while its cell is pointed at or tapped.

    `layer` is a tensor of the report's data. Errors and matmul are left out where it has none.
    """
    facts = {
        "stored as": f"{layer['stored_as']}, {gigabytes(layer['bytes'])}",
        "shape": " x ".join(map(str, layer["shape"])),
        "reason": layer["reason"],
    }
    if "matmul" in layer:
        full, scale = layer["full_precision_mm"], layer["input_scale"]
        facts["matmul"] = layer["matmul"] + (f", {full}" if full else "")
        facts["input scale"] = f"none, {'not used' if full else 'dynamic'}"
        if scale is not None:
            facts["input scale"] = f"{scale:.9g}, {layer['input_scale_source']}"
    if "relative_rmse" in layer:
        facts["relative RMSE"] = f"{layer['relative_rmse']:.6f}"
        facts["SQNR"] = decibels(layer["sqnr_db"])
        if layer["output_before"] is not None:
            facts["output error"] = output_errors(layer)
    lines = "".join(f"<dt>{name}</dt><dd>{escaped(fact)}</dd>" for name, fact in facts.items())
    return f'<div class="tip"><b>{html_name(layer)}</b><dl>{lines}</dl></div>'


def html_cell(layer: dict, scale: ErrorScale) -> str:
    """Render a layer as a cell in its look and shade, with the tip inside it.

    Its error is printed if it stands out, else the look's label where there is room; a narrow cell
    drops a number's leading zero. Name, format and error also stand in data attributes, for scripts
    of a user and for the tests. A cell can be tapped, but the Tab key passes it by: a model has
    hundreds, and the table of all layers tells the same.
    """
    look = layer_look(layer)
    data = {"name": layer["name"], "stored": layer["stored_as"]}
    label = f'<span class="name">{look.label}</span>'
    if "relative_rmse" in layer:
        # The error has all its digits here, so that scripts need not read the rounded label.
        data["rmse"] = repr(layer["relative_rmse"])
        if layer["name"].removesuffix(".weight") in scale.unusual:
            # The leading zero is an element of its own, which the style sheet hides.
            number = f"{shown_error(layer):.3f}".replace("0.", "<i>0</i>.", 1)
            label = f"<span>{number}</span>"
    attributes = "".join(f' data-{name}="{escaped(value)}"' for name, value in data.items())
    return (
        f'<div class="cell {look.css} e{scale.step(layer)}" tabindex="-1"{attributes}>'
        f'<div class="fit">{label}</div>{html_tip(layer)}</div>'
    )


def html_blocks(blocks: BlockMap, scale: ErrorScale) -> str:
    """Render one family's blocks as a table; a block that lacks a kind has an empty cell there."""
    family = escaped(blocks.family)
    edges = "".join(
        f'<th scope="colgroup" colspan="{count}">{mark}</th>'
        if mark
        else f"<td colspan={count}></td>"
        for mark, count in blocks.runs()
    )
    edges = f'<tr><td class="corner"></td>{edges}</tr>' if blocks.edges else ""
    numbers = "".join(f'<th scope="col">{block}</th>' for block in blocks.blocks)
    rows, module = "", ""
    for kind in blocks.kinds:
        # A gap stands before the first kind of a module, such as self_attn.q after ffn.2.
        above, module = module, kind.partition(".")[0]
        gap = " class=first" if above not in ("", module) else ""
        heading = escaped(kind).replace(".", ".<wbr>")
        cells = (blocks.cells.get((block, kind)) for block in blocks.blocks)
        cells = "".join(f"<td>{html_cell(cell, scale) if cell else ''}</td>" for cell in cells)
        rows += f'<tr><th scope="row"{gap}>{heading}</th>{cells}</tr>\n'
    head = f'{edges}<tr><th class="corner" scope="col">block</th>{numbers}</tr>'
    table = (
        f'<table style="--columns:{len(blocks.blocks)}">'
        f"<caption>{family}: {len(blocks.blocks)} blocks</caption>"
        f"<thead>{head}</thead><tbody>\n{rows}</tbody></table>"
    )
    return html_scroll(f"Map of {family}", table, "scroll map")


def html_legend(layers: list[dict], scale: ErrorScale) -> str:
    """Render what colours and patterns mean, how many layers have each, and the scale of errors."""
    items = [
        f"<li>{chip(look)} {look.says}, {in_number(count, 'layers')}</li>"
        for look, count in Counter(map(layer_look, layers)).most_common()
    ]
    if scale.largest is not None:
        worst = max(layers, key=lambda layer: shown_error(layer) or 0)
        css = layer_look(worst).css
        steps = "".join(f'<span class="{css} e{step}"></span>' for step in range(SHADES))
        items.append(
            f'<li>error 0 <span class="scale" aria-hidden="true">{steps}</span> '
            f"{scale.largest:.4f}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def html_map(data: dict) -> str:
    """Render the section of the precision map: legend, blocks, and layers outside of them."""
    layers, scale = layers_of(data), error_scale(data)
    maps, outside = block_maps(layers)
    says = (
        "Point at a cell or tap it for all about its layer; all layers are also in the table below."
    )
    if scale.largest is not None:
        says = (
            "The stronger the colour, the larger the error: the relative RMSE of the stored "
            "weight, or of the layer's output where rounding went by statistics. Numbers stand "
            f"where it stands out from what is usual for its format. {says}"
        )
    columns = max((len(blocks.blocks) for blocks in maps), default=1)
    body = f'<p class="soft">{says}</p>\n{html_legend(layers, scale)}'
    # All tables have columns of one width, which the style sheet finds from the largest number.
    body += f'<div style="--blocks:{columns}">'
    body += "".join(html_blocks(blocks, scale) for blocks in maps) + "</div>"
    if outside:
        rows = (
            (html_name(layer), html_cell(layer, scale), escaped(layer["reason"]))
            for layer in outside
        )
        table = html_table("Outside the blocks", ("Layer", "Precision", "Reason"), rows)
        fold = in_number(len(outside), "layers outside the blocks")
        body += table if len(outside) <= OUTSIDE_SHOWN else html_fold(fold, table)
    return html_section("Precision map", body)
