"""Render what --verify found as one HTML page: verdict, defects, map and table of the layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nvfp4.asking.answers import NOT_ASKED
from nvfp4.errors import examples, gigabytes, in_number
from nvfp4.numeric.damage import Damage
from nvfp4.report.check import check_data
from nvfp4.report.page import PAGE_HEAD
from nvfp4.report.page_layers import filter_rules, html_layers
from nvfp4.report.page_map import html_map
from nvfp4.report.page_parts import escaped, html_list, html_section, html_table
from nvfp4.report.page_style import page_style
from nvfp4.report.usual import render_errors
from nvfp4.stored.defects import DEFECTS, Outcome, grouped
from nvfp4.stored.layers import StoredLayer
from nvfp4.verify import Check

# What is told of a layer in the place of the reason that a conversion has.
WITHOUT_DEFECT = "no defect found"


def layer_data(layer: StoredLayer, damage: Damage | None, defects: str) -> dict:
    """Describe a stored layer as the report of a conversion describes a tensor, for the same page.

    defects: what is wrong with it, for people.
    """
    form = layer.format
    data = {
        "name": f"{layer.name}.weight",
        "shape": layer.shape,
        "stored_as": layer.scheme,
        "bytes": sum(ref.nbytes for suffix, ref in layer.parts.items() if suffix != "bias"),
        "reason": defects or WITHOUT_DEFECT,
    }
    if form and form.is_quantised:
        full = layer.full_precision and form.takes_mark
        data |= {
            "matmul": f"W{form.weight_bits}A{16 if full else form.activation_bits}",
            "full_precision_mm": "as it is configured" if full else None,
            "input_scale": None,
        }
    if damage is not None:
        lossless = math.isinf(damage.sqnr_db)
        data |= {
            "relative_rmse": damage.relative_rmse,
            "sqnr_db": None if lossless else damage.sqnr_db,
            "output_before": None,
        }
    return data


def layers_data(check: Check) -> list[dict]:
    """Describe every layer of a checked file that has a weight."""
    wrong: dict[str, dict[str, None]] = {}
    for finding in check.findings:
        wrong.setdefault(finding.name, {})[DEFECTS[finding.defect].what] = None
    return [
        layer_data(layer, check.damage.get(name), "; ".join(wrong.get(name, ())))
        for name, layer in check.layers.items()
        if layer.weight is not None
    ]


def html_outcome(check: Check, data: dict) -> str:
    """Render the verdict and what the file is: the first thing that a person wants to know."""
    is_good = check.kind is None and check.outcome <= Outcome.LOADS
    mark, css = ("&#10003;", "good") if is_good else ("&#10007;", "warn")
    measured = f"{in_number(data['measured'], 'layers')} compared with the source"
    told = [
        f"{gigabytes(data['bytes'])}, {data['tensors']:,} tensors",
        ", ".join(f"{count} {title}" for title, count in data["layers"].items()),
        measured if data["measured"] else "no layer was compared with a source",
    ]
    errors = render_errors(data["errors"], data["outliers"])
    use = [
        data["load"]["text"] if data["load"] else "",
        data["comfyui"]["answer"] if data["comfyui"] else NOT_ASKED,
    ]
    return (
        f'<header><p class="verdict {css}">{mark} {escaped(data["verdict"])}</p>\n'
        f'<h1>{escaped(data["file"])}</h1>\n<p class="soft">checked by convert_nvfp4.py '
        f"{escaped(data['version'])}: {escaped('; '.join(filter(None, told)))}</p>\n"
        f"<p><b>In ComfyUI:</b> {escaped('. '.join(filter(None, use)))}</p>\n"
        f"{html_list('Errors', map(escaped, errors))}</header>\n"
    )


def defect_rows(check: Check) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each kind of defect, the worst first."""
    for key, where in grouped(check.findings).items():
        defect = DEFECTS[key]
        texts = (defect.what, defect.consequence, defect.remedy, examples(where))
        yield (escaped(defect.outcome.name), f"{len(where):,}", *map(escaped, texts))


def html_defects(check: Check, data: dict) -> str:
    """Render the section of defects, "" without any."""
    if not check.findings:
        return ""
    columns = ("Outcome", "#Where", "What", "In ComfyUI", "To do", "Layers or tensors")
    advice = f"<p>To do: {escaped(data['advice'])}</p>\n" if data["advice"] else ""
    return html_section("Defects", advice + html_table("Defects", columns, defect_rows(check)))


def render_check_page(check: Check, data: dict | None = None) -> str:
    """Render a check as a self-contained HTML page, in the style of a conversion's report.

    data: that of `check_data` with other words, for a program that shows the page in its own.
    """
    data = data or check_data(check)
    shown = data | {"tensors": layers_data(check)}
    return (
        f"{PAGE_HEAD}<title>{escaped(data['file'])}: check</title>\n"
        f"<style>{page_style()}{filter_rules()}</style></head>\n<body><main>\n"
        f"{html_outcome(check, data)}{html_defects(check, data)}{html_map(shown)}"
        f"{html_layers(shown)}</main></body></html>\n"
    )
