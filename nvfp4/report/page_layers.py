"""Render the table of all layers for the report's page: worst first, folded, with a filter."""

from __future__ import annotations

from collections import Counter

from nvfp4.errors import gigabytes, in_number
from nvfp4.report.looks import every_look
from nvfp4.report.page_parts import (
    chip,
    decibels,
    escaped,
    html_fold,
    html_name,
    html_section,
    html_table,
    layer_look,
    layers_of,
)
from nvfp4.report.summary import output_errors


def filter_rules() -> str:
    """Write the CSS rules that hide the rows of a look while its box is not checked.

    They take the place of a script, which the page's policy would forbid.
    """
    looks = (
        f".layers:has(#show-{look.css}:not(:checked)) tr:has(.{look.css}) {{ display: none; }}"
        for look in every_look()
    )
    unusual = ".layers:has(#unusual:checked) tbody tr:not(:has(.unusual)) { display: none; }"
    return "\n".join([*looks, unusual])


def html_filter(layers: list[dict], unusual: int) -> str:
    """Render a box to check for each look that there is, and one for `unusual` layers, if any."""
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{look.css}" checked> {chip(look)} {count}</label>'
        for look, count in Counter(map(layer_look, layers)).most_common()
    )
    if unusual:
        boxes += (
            f'<label><input type="checkbox" id="unusual"> only the {unusual} that stand out</label>'
        )
    return f"<fieldset><legend>Show</legend>{boxes}</fieldset>"


def html_error(layer: dict, largest: float, usual: float | None) -> str:
    """Render a layer's error as a bar, relative to the largest error; "-" where there is none.

    usual: what is usual for its format, where its error stands out from that.
    """
    if "relative_rmse" not in layer:
        return "-"
    error = layer["relative_rmse"]
    part = f"--part:{100 * error / (largest or 1):.1f}%"
    told = f' <small class="unusual">usual {usual:.2g}</small>' if usual else ""
    return f'<div class="bar {layer_look(layer).css}" style="{part}">{error:.4f}</div>{told}'


def html_layers(data: dict) -> str:
    """Render every linear layer as a row, the largest error first, then those without an error.

    The columns of errors are left out after a dry run, that of output errors where no layer was
    rounded by statistics. The table is folded: a model has hundreds of layers.
    """
    layers, usual = layers_of(data), {one["layer"]: one["usual"] for one in data["outliers"]}
    damaged = [layer for layer in layers if "relative_rmse" in layer]
    rounded = any(layer["output_before"] is not None for layer in damaged)
    largest = max((layer["relative_rmse"] for layer in damaged), default=0)

    def row(layer: dict) -> list[str]:
        errors = []
        if damaged:
            unusual = usual.get(layer["name"].removesuffix(".weight"))
            errors = [html_error(layer, largest, unusual), "-"]
            if "relative_rmse" in layer:
                errors[1] = decibels(layer["sqnr_db"])
        if rounded:
            known = layer.get("output_before") is not None
            errors.append(escaped(output_errors(layer)) if known else "-")
        shape = " x ".join(map(str, layer["shape"]))
        size = [gigabytes(layer["bytes"]), shape, escaped(layer["reason"])]
        return [html_name(layer), chip(layer_look(layer)), *errors, *size]

    columns = ["Layer", "Precision"]
    columns += ["Relative RMSE", "#SQNR"] if damaged else []
    columns += ["Output error"] if rounded else []
    columns += ["#Size", "#Shape", "Reason"]
    rows = map(row, sorted(layers, key=lambda layer: -layer.get("relative_rmse", -1)))
    caption = "All linear layers, the largest error first" if damaged else "All linear layers"
    table = html_table(caption, tuple(columns), rows)
    fold = html_fold(
        in_number(len(layers), "layers"), html_filter(layers, len(usual)) + table, "long"
    )
    return html_section("All layers", f'<div class="layers">{fold}</div>')
