"""Make the small parts that the report's page is put together from: chips, tables, folds.

Names from the source's headers are untrusted text: everything goes through `escaped`. All other
functions insert what they get as it is, so the caller escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from nvfp4.errors import printable
from nvfp4.report.looks import Look, look_of


def escaped(value: object) -> str:
    """Make any value safe for HTML text and attributes, control characters included."""
    return escape(printable(str(value)))


def layers_of(data: dict) -> list[dict]:
    """List the linear layers among the report's tensors: the 2-D ones that end in `.weight`.

    The data have no mark for them: they are told by shape and name, as in the plan. Quantised or
    not, they are in the map and in the table of layers; the rest counts in the totals only.
    """
    return [
        tensor
        for tensor in data["tensors"]
        if len(tensor["shape"]) == 2 and tensor["name"].endswith(".weight")
    ]


def layer_look(layer: dict) -> Look:
    """Find how a tensor of the report's data is shown."""
    return look_of(layer["stored_as"], layer.get("matmul", ""))


def shown_error(layer: dict) -> float | None:
    """Find the relative RMSE by which a layer is shown; None where nothing was lost or measured.

    It is the output's where rounding went by statistics: that enlarges the weight's error to lessen
    the output's.
    """
    after = layer.get("output_after")
    return layer.get("relative_rmse") if after is None else after


def chip(look: Look, label: str = "") -> str:
    """Render a label in a look's colour and pattern; the look's own label if none is given."""
    return f'<span class="chip {look.css}"><span>{escaped(label or look.label)}</span></span>'


def decibels(sqnr_db: float | None) -> str:
    """Render an SQNR in dB; None, as the data have it where nothing was lost, is "lossless"."""
    return "lossless" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def html_name(layer: dict) -> str:
    """Render a layer's name so that a browser may break it after its dots."""
    return escaped(layer["name"].removesuffix(".weight")).replace(".", ".<wbr>")


def html_head(*columns: str) -> str:
    """Render a table's head row of ready column titles; those that begin with "#" hold numbers."""
    cells = (
        f'<th scope="col"{" class=n" * title.startswith("#")}>{title.removeprefix("#")}</th>'
        for title in columns
    )
    return f"<tr>{''.join(cells)}</tr>"


def html_table(caption: str, columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """Render a table of ready HTML cells; the first cell of each row becomes the row's heading.

    Columns whose titles begin with "#" are set to the right, as numbers are.
    """
    marks = [" class=n" * title.startswith("#") for title in columns[1:]]
    lines = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, cells, strict=True))
        + "</tr>\n"
        for name, *cells in rows
    )
    head = f"<caption>{caption}</caption><thead>{html_head(*columns)}</thead>"
    table = f"<table>{head}<tbody>\n{lines}</tbody></table>"
    return html_scroll(caption, table)


def html_scroll(label: str, table: str, css: str = "scroll") -> str:
    """Let a wide table be scrolled on its own, by keyboard as well, under a label."""
    return f'<div class="{css}" tabindex="0" role="region" aria-label="{label}">{table}</div>\n'


def html_fold(summary: str, body: str, css: str = "") -> str:
    """Fold a body away behind a line; <details> does it without a script."""
    return f'<details class="{css}"><summary>{summary}</summary>{body}</details>\n'


def html_list(label: str, items: Iterable[str]) -> str:
    """Render a list that screen readers call `label`; "" without items."""
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="notes" aria-label="{label}">{lines}</ul>\n' if lines else ""


def html_section(title: str, body: str) -> str:
    """Render a section under a heading."""
    return f"<section><h2>{title}</h2>\n{body}</section>\n"


def html_stack(parts: Iterable[tuple[Look, str, float]]) -> str:
    """Render a stacked bar of (look, label, share from 0 to 1).

    It is hidden from screen readers: a list or a table beside it has to say the same.
    """
    # Three digits of a per cent, as parts that were rounded more would not fill the bar.
    cells = "".join(
        f'<div class="fit {look.css}" style="width:{100 * part:.3f}%">'
        f"<span>{escaped(label)}</span></div>"
        for look, label, part in parts
        if part
    )
    return f'<div class="stack" aria-hidden="true">{cells}</div>'
