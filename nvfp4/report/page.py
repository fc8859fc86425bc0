"""Render the report as one HTML page.

`render_html` takes the data of `data.report_data`, the same as --report's .json has, and makes a
page that needs no other file, no script and no network. Names from the source's headers are
untrusted text: everything goes through `escaped`, and a Content-Security-Policy forbids scripts.
The style sheet stands in `page_style`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from html import escape

from nvfp4.asking.answers import NOT_ASKED
from nvfp4.errors import gigabytes, percentage, printable
from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.model import bare
from nvfp4.options import Options, options_of
from nvfp4.report.page_style import PAGE_STYLE
from nvfp4.report.summary import output_errors
from nvfp4.work import render_work

# The table of errors opens with the 20 worst layers: a model has hundreds, and the rest would push
# all that follows off the page. They are folded, not left out.
WORST_SHOWN = 20
# The policy lets no script and no foreign file in, should a name ever get past `escaped`.
PAGE_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""


def escaped(value: object) -> str:
    """Make any value safe for HTML text and attributes, control characters included."""
    return escape(printable(str(value)))


def chip(label: str) -> str:
    """Render a label in its own colour: its text is also the class that the style sheet colours."""
    return f'<span class="chip {escaped(label)}">{escaped(label)}</span>'


def marks(layer: dict) -> str:
    """Return a layer's classes: how it is stored, and its matmul if it is quantised."""
    return f"{layer['stored_as']} {layer.get('matmul', '')}".strip()


def decibels(sqnr_db: float | None) -> str:
    """Render an SQNR in dB; None, as the data have it where nothing was lost, is "lossless"."""
    return "lossless" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def html_name(layer: dict) -> str:
    """Render a layer's name so that a browser may break it after its dots."""
    return escaped(layer["name"].removesuffix(".weight")).replace(".", ".<wbr>")


def html_head(*columns: str) -> str:
    """Render a table's head row of ready column titles."""
    return "<tr>" + "".join(f'<th scope="col">{column}</th>' for column in columns) + "</tr>"


def html_table(caption: str, head: str, rows: Iterable[Iterable[str]]) -> str:
    """Render a table of ready HTML cells; the first cell of each row becomes the row's heading.

    `caption`, `head` and the cells are inserted as they are, so the caller escapes them.
    """
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        for name, *cells in rows
    )
    head = f"<caption>{caption}</caption><thead>{head}</thead>"
    return f"<table>{head}<tbody>\n{lines}</tbody></table>\n"


def html_tip(layer: dict) -> str:
    """Render the facts about a layer that show while its cell is pointed at, focused or tapped.

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


def html_cell(layer: dict, label: str = "") -> str:
    """Render a layer as a coloured cell with its error as a number, and the tip inside it.

    Name, format and error also stand in data attributes, for scripts of a user and for the tests.
    Where the cell is narrow its number loses the leading zero first, and then vanishes.
    """
    # The error has all its digits here, so that scripts need not read the rounded label.
    data = {"name": layer["name"], "stored": layer["stored_as"]}
    label = escaped(label)
    if "relative_rmse" in layer:
        data["rmse"] = repr(layer["relative_rmse"])
        # The leading zero is an element of its own, which the style sheet hides in narrow cells.
        label += f" {layer['relative_rmse']:.3f}".replace(" 0.", " <i>0</i>.")
    attributes = "".join(f' data-{name}="{escaped(value)}"' for name, value in data.items())
    return (
        f'<div class="cell {escaped(marks(layer))}" tabindex="0"{attributes}>'
        f'<div class="fit"><span>{label}</span></div>{html_tip(layer)}</div>'
    )


def html_heading(name: str, attributes: str) -> str:
    """Render a column's heading; a long name is set upright where its column is narrow."""
    long = ' class="long"' if len(name) > 3 else ""
    return f'<th {attributes}><div class="fit"><span{long}>{escaped(name)}</span></div></th>'


def html_blocks(family: str, layers: dict[tuple[str, str], dict]) -> str:
    """Render one family's blocks as a table: a row per block, a column per kind of layer.

    `layers` is {(block number, kind): tensor of the data}. Kinds with a common first word share an
    upper heading, such as "self_attn" over "q", "k" and "v". A block that lacks a kind has an empty
    cell there.
    """
    # Kinds in the order in which the model has them, those of one module side by side.
    groups = defaultdict(list)
    for kind in dict.fromkeys(kind for _, kind in layers):
        groups[kind.partition(".")[0]].append(kind)
    columns = [kind for kinds in groups.values() for kind in kinds]
    upper = "".join(
        html_heading(group, f'scope="colgroup" colspan="{len(kinds)}"')
        for group, kinds in groups.items()
    )
    lower = "".join(html_heading(kind.partition(".")[2], 'scope="col"') for kind in columns)
    # The corner over the block numbers spans both rows of headings.
    corner = '<th scope="col" rowspan="2">N</th>'
    rows = [
        [block]
        + [html_cell(layers[block, kind]) if (block, kind) in layers else "" for kind in columns]
        for block in sorted({block for block, _ in layers}, key=int)  # "10" comes after "9"
    ]
    table = html_table(f"{escaped(family)}.N", f"<tr>{corner}{upper}</tr><tr>{lower}</tr>", rows)
    # The style sheet needs the number of columns to know how narrow the table may become.
    return f'<div class="map" style="--kinds:{len(columns)}">{table}</div>'


def html_map(layers: list[dict]) -> str:
    """Render the precision map: every layer as a coloured cell, and a legend that counts them.

    Layers inside known transformer blocks are in tables of blocks; all others follow as a list with
    the reason for their precision.
    """
    families, outside = defaultdict(dict), []
    # Matched on bare names; a prefix is put before the family's name again.
    inside = re.compile(rf"({'|'.join(TRANSFORMER_BLOCKS)})\.(\d{{1,9}})\.(.+)\.weight", re.DOTALL)
    for layer in layers:
        name = bare(layer["name"])
        if found := inside.fullmatch(name):
            families[layer["name"].removesuffix(name) + found[1]][found[2], found[3]] = layer
        else:
            outside.append(layer)
    tables = "".join(html_blocks(family, members) for family, members in families.items())
    if outside:
        head = html_head("Layer", "Reason", "Stored as")
        rows = (
            (html_name(layer), escaped(layer["reason"]), html_cell(layer, layer["stored_as"]))
            for layer in outside
        )
        tables += html_table("Outside the blocks", head, rows)
    legend = "".join(
        f"<li>{chip(kind)} {count} layers</li>"
        for kind, count in Counter(map(marks, layers)).most_common()
    )
    measured = any("relative_rmse" in layer for layer in layers)  # not after a dry run
    return (
        "<section><h2>Precision map</h2>\n<p>A marked corner is a full-precision matmul"
        f"{', numbers are the relative RMSE of the stored weight' if measured else ''}. Point at a"
        " cell, tap it or move to it by keyboard for all about its layer.</p>\n"
        f'<ul class="legend">{legend}</ul>\n{tables}</section>\n'
    )


def html_errors(layers: list[dict]) -> str:
    """Render every quantised layer's error as a bar, worst first; "" after a dry run.

    Bars are relative to the largest error. The column of output errors appears only if any layer
    was rounded by statistics. All but the first WORST_SHOWN layers are folded away.
    """
    damaged = [layer for layer in layers if "relative_rmse" in layer]
    damaged.sort(key=lambda layer: -layer["relative_rmse"])
    if not damaged:
        return ""
    worst = damaged[0]["relative_rmse"] or 1  # all lossless: bars of no length, no division by 0
    measured = any(layer["output_before"] is not None for layer in damaged)

    def known(layer: dict) -> str:
        return "-" if layer["output_before"] is None else escaped(output_errors(layer))

    rows = [
        (
            html_name(layer),
            chip(layer["stored_as"]),
            f'<div class="bar {escaped(layer["stored_as"])}" style="--part:'
            f'{100 * layer["relative_rmse"] / worst:.1f}%">{layer["relative_rmse"]:.4f}</div>',
            decibels(layer["sqnr_db"]),
            *([known(layer)] if measured else []),
        )
        for layer in damaged
    ]
    output = ["Output error"] if measured else []
    head = html_head("Layer", "Stored as", "Relative RMSE", "SQNR", *output)
    # <details> folds without a script, which the page's policy would forbid.
    table = html_table("Worst first", head, rows[:WORST_SHOWN])
    if more := rows[WORST_SHOWN:]:
        rest = html_table("In the same order", head, more)
        table += f"<details><summary>{len(more)} more layers</summary>{rest}</details>"
    return f"<section><h2>Error per layer</h2>\n{table}</section>\n"


def html_shares(caption: str, columns: tuple[str, ...], rows: list[tuple]) -> str:
    """Render a stacked bar and the table that explains it.

    `rows` are (label, share from 0 to 1, further numbers ...); `columns` are the titles of the
    label and of the further numbers. The bar is hidden from screen readers, as the table says the
    same.
    """
    # Three digits of a per cent, as parts that were rounded more would not fill the bar.
    parts = "".join(
        f'<div class="fit {escaped(label)}" style="width:{100 * part:.3f}%">'
        f"<span>{escaped(label)}</span></div>"
        for label, part, *_ in rows
    )
    lines = (
        (chip(label), *(f"{number:,}" for number in numbers), percentage(part, 1))
        for label, part, *numbers in rows
    )
    table = html_table(caption, html_head(*columns, "Share"), lines)
    return f'<div><div class="stack" aria-hidden="true">{parts}</div>{table}</div>'


def html_totals(data: dict) -> str:
    """Render two bars: each precision's part of the bytes, and each matmul's part of the weights.

    Below them stand the lines on the multiply work. Unquantised layers, which `matmuls` leaves out,
    are shown as W16A16, so that the second bar is whole.
    """
    totals, matmuls = data["totals"], data["matmuls"]
    size = sum(total["bytes"] for total in totals.values()) or 1  # a file may hold no bytes
    stored = [
        (name, total["bytes"] / size, total["layers"], total["tensors"], total["bytes"])
        for name, total in totals.items()
    ]
    work = [(kind, found["share"], found["layers"]) for kind, found in matmuls.items()]
    layers = sum(total["layers"] for total in totals.values())
    if rest := layers - sum(found["layers"] for found in matmuls.values()):
        work.append(("W16A16", 1 - sum(found["share"] for found in matmuls.values()), rest))
    return (
        '<section><h2>Size and work</h2><div class="pair">'
        + html_shares("Bytes per precision", ("Stored as", "Layers", "Tensors", "Bytes"), stored)
        + html_shares("Matmuls, by share of the linear weights", ("Matmul", "Layers"), work)
        + "</div>\n"
        + "".join(f"<p>{escaped(line)}</p>\n" for line in render_work(data["work"]))
        + "</section>\n"
    )


def command_line(options: dict) -> Iterator[tuple[str, str]]:
    """Yield (option, value) as the command line has them, both escaped.

    `options` are those that the header records, by field name. A repeatable option yields a pair
    for each value, a switch "on".
    """
    rows = {row.name: row for row in options_of(Options)}
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            # A set of switches is recorded as the flags that were given; they have no value.
            pair = (one, True) if rows[name].switches else (rows[name].flag, one)
            yield escaped(pair[0]), "on" if pair[1] is True else escaped(pair[1])


def html_origin(origin: dict) -> str:
    """Render how the file was made: version, options, and the source's files with their sizes."""
    files = [(escaped(name), gigabytes(size)) for name, size in origin["sources"].items()]
    return (
        f"<section><h2>Origin</h2><p>Made by convert_nvfp4.py {escaped(origin['version'])}</p>\n"
        '<div class="pair"><div>'
        + html_table("Options", html_head("Option", "Value"), command_line(origin["options"]))
        + "</div><div>"
        + (html_table("Source files", html_head("File", "Size"), files) if files else "")
        + "</div></div></section>\n"
    )


def html_title(data: dict, layers: list[dict]) -> str:
    """Render the head of the page: file names, sizes, ratio, number of quantised layers, notes,
    and what a ComfyUI answered.

    `layers` are the linear layers among the data's tensors, of which the quantised ones are
    counted.
    """
    output, source = data["output_bytes"], data["source_bytes"]
    facts = (
        ("Output", gigabytes(output), f"{output:,} bytes"),
        ("Source", gigabytes(source), f"{source:,} bytes"),
        ("Ratio", percentage(output, source), "of the source's size"),
        ("Quantised", sum("matmul" in layer for layer in layers), f"of {len(layers)} layers"),
    )
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>"
        for name, value, more in facts
    )
    asked = data["comfyui"]["answer"] if data["comfyui"] else NOT_ASKED
    told = (*data["notes"], *({"rank": "error", "text": text} for text in data["problems"]))
    notes = "".join(f"<li>{escaped(note['rank'])}: {escaped(note['text'])}</li>" for note in told)
    return (
        f"<header><h1>{escaped(data['output'])}</h1><p>from {escaped(data['source'])}</p>\n"
        f"<p>{escaped(asked)}</p>\n"
        f'<dl class="facts">{tiles}</dl>\n'
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + "</header>\n"
    )


def render_html(data: dict) -> str:
    """Render the report's data (see `data.report_data`) as a self-contained HTML page.

    Layers are the 2-D tensors whose names end in `.weight`, quantised or not; biases and norms
    count in the totals only.
    """
    # The JSON has no "layer" mark: a linear layer is told by shape and name, as in the plan.
    layers = [
        tensor
        for tensor in data["tensors"]
        if len(tensor["shape"]) == 2 and tensor["name"].endswith(".weight")
    ]
    return (
        f"{PAGE_HEAD}<title>{escaped(data['output'])}: conversion report</title>\n"
        f"<style>{PAGE_STYLE}</style></head>\n<body><main>\n{html_title(data, layers)}"
        f"{html_map(layers)}{html_errors(layers)}{html_totals(data)}"
        f"{html_origin(data['origin'])}</main></body></html>\n"
    )
