"""The report as a page."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from html import escape

from nvfp4.errors import gigabytes, printable, share
from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.model import bare
from nvfp4.options import Options, options_of
from nvfp4.report.page_style import PAGE_STYLE
from nvfp4.report.summary import output_errors

WORST_SHOWN = 20  # layers; the others are folded away
PAGE_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""


def escaped(value: object) -> str:
    return escape(printable(str(value)))


def chip(label: str) -> str:
    """A label in its own colour: what it says are its classes."""
    return f'<span class="chip {escaped(label)}">{escaped(label)}</span>'


def marks(layer: dict) -> str:
    return f"{layer['stored_as']} {layer.get('matmul', '')}".strip()


def decibels(sqnr_db: float | None) -> str:
    return "lossless" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def html_name(layer: dict) -> str:
    """A layer's name, which may break after its dots."""
    return escaped(layer["name"].removesuffix(".weight")).replace(".", ".<wbr>")


def html_head(*columns: str) -> str:
    return "<tr>" + "".join(f'<th scope="col">{column}</th>' for column in columns) + "</tr>"


def html_table(caption: str, head: str, rows: Iterable[Iterable[str]]) -> str:
    """A table of ready cells, of which a row's first is its heading."""
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        for name, *cells in rows
    )
    head = f"<caption>{caption}</caption><thead>{head}</thead>"
    return f"<table>{head}<tbody>\n{lines}</tbody></table>\n"


def html_tip(layer: dict) -> str:
    """All about a layer, shown while its cell is pointed at, focused or tapped."""
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
    """A coloured cell; where it is narrow, its number loses the leading zero, then vanishes."""
    data = {"name": layer["name"], "stored": layer["stored_as"]}
    label = escaped(label)
    if "relative_rmse" in layer:
        data["rmse"] = repr(layer["relative_rmse"])
        label += f" {layer['relative_rmse']:.3f}".replace(" 0.", " <i>0</i>.")
    attributes = "".join(f' data-{name}="{escaped(value)}"' for name, value in data.items())
    return (
        f'<div class="cell {escaped(marks(layer))}" tabindex="0"{attributes}>'
        f'<div class="fit"><span>{label}</span></div>{html_tip(layer)}</div>'
    )


def html_heading(name: str, attributes: str) -> str:
    """A column's heading, which turns upright where its column is narrow."""
    long = ' class="long"' if len(name) > 3 else ""
    return f'<th {attributes}><div class="fit"><span{long}>{escaped(name)}</span></div></th>'


def html_blocks(family: str, layers: dict[tuple[str, str], dict]) -> str:
    """A row per block and a column per kind of layer: "self_attn" over "q", "k", ..."""
    groups = defaultdict(list)
    for kind in dict.fromkeys(kind for _, kind in layers):
        groups[kind.partition(".")[0]].append(kind)
    columns = [kind for kinds in groups.values() for kind in kinds]
    upper = "".join(
        html_heading(group, f'scope="colgroup" colspan="{len(kinds)}"')
        for group, kinds in groups.items()
    )
    lower = "".join(html_heading(kind.partition(".")[2], 'scope="col"') for kind in columns)
    corner = '<th scope="col" rowspan="2">N</th>'
    rows = [
        [block]
        + [html_cell(layers[block, kind]) if (block, kind) in layers else "" for kind in columns]
        for block in sorted({block for block, _ in layers}, key=int)
    ]
    table = html_table(f"{escaped(family)}.N", f"<tr>{corner}{upper}</tr><tr>{lower}</tr>", rows)
    return f'<div class="map" style="--kinds:{len(columns)}">{table}</div>'


def html_map(layers: list[dict]) -> str:
    """Every layer as a coloured cell: tables of blocks, and a list of what is outside them."""
    families, outside = defaultdict(dict), []
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
    measured = any("relative_rmse" in layer for layer in layers)
    return (
        "<section><h2>Precision map</h2>\n<p>A marked corner is a full-precision matmul"
        f"{', numbers are the relative RMSE of the stored weight' if measured else ''}. Point at a"
        " cell, tap it or move to it by keyboard for all about its layer.</p>\n"
        f'<ul class="legend">{legend}</ul>\n{tables}</section>\n'
    )


def html_errors(layers: list[dict]) -> str:
    """Every quantised layer's error as a bar, worst first; nothing after a dry run."""
    damaged = [layer for layer in layers if "relative_rmse" in layer]
    damaged.sort(key=lambda layer: -layer["relative_rmse"])
    if not damaged:
        return ""
    worst = damaged[0]["relative_rmse"] or 1
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
    table = html_table("Worst first", head, rows[:WORST_SHOWN])
    if more := rows[WORST_SHOWN:]:
        rest = html_table("In the same order", head, more)
        table += f"<details><summary>{len(more)} more layers</summary>{rest}</details>"
    return f"<section><h2>Error per layer</h2>\n{table}</section>\n"


def html_shares(caption: str, columns: tuple[str, ...], rows: list[tuple]) -> str:
    """A stacked bar and its table, of rows (label, share, further numbers)."""
    parts = "".join(
        f'<div class="fit {escaped(label)}" style="width:{100 * part:.3f}%">'
        f"<span>{escaped(label)}</span></div>"
        for label, part, *_ in rows
    )
    lines = (
        (chip(label), *(f"{number:,}" for number in numbers), share(part, 1))
        for label, part, *numbers in rows
    )
    table = html_table(caption, html_head(*columns, "Share"), lines)
    return f'<div><div class="stack" aria-hidden="true">{parts}</div>{table}</div>'


def html_totals(totals: dict, matmuls: dict) -> str:
    """What each precision takes of the file, and each kind of matmul of the work."""
    size = sum(total["bytes"] for total in totals.values()) or 1
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
        + "</div></section>\n"
    )


def command_line(options: dict) -> Iterator[tuple[str, str]]:
    """Options under the names and with the values they have on the command line."""
    rows = {row.name: row for row in options_of(Options)}
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            pair = (one, True) if rows[name].switches else (rows[name].flag, one)
            yield escaped(pair[0]), "on" if pair[1] is True else escaped(pair[1])


def html_origin(origin: dict) -> str:
    """How the file was made: version, options, source files."""
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
    """The file, where it came from, its size, and what there is to know about it."""
    output, source = data["output_bytes"], data["source_bytes"]
    facts = (
        ("Output", gigabytes(output), f"{output:,} bytes"),
        ("Source", gigabytes(source), f"{source:,} bytes"),
        ("Ratio", share(output, source), "of the source's size"),
        ("Quantised", sum("matmul" in layer for layer in layers), f"of {len(layers)} layers"),
    )
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>"
        for name, value, more in facts
    )
    notes = "".join(f"<li>{escaped(note)}</li>" for note in data["notes"])
    return (
        f"<header><h1>{escaped(data['output'])}</h1><p>from {escaped(data['source'])}</p>\n"
        f'<dl class="facts">{tiles}</dl>\n'
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + "</header>\n"
    )


def render_html(data: dict) -> str:
    """The report as one self-contained page, from the same data as the JSON."""
    layers = [
        tensor
        for tensor in data["tensors"]
        if len(tensor["shape"]) == 2 and tensor["name"].endswith(".weight")
    ]
    return (
        f"{PAGE_HEAD}<title>{escaped(data['output'])}: conversion report</title>\n"
        f"<style>{PAGE_STYLE}</style></head>\n<body><main>\n{html_title(data, layers)}"
        f"{html_map(layers)}{html_errors(layers)}{html_totals(data['totals'], data['matmuls'])}"
        f"{html_origin(data['origin'])}</main></body></html>\n"
    )
