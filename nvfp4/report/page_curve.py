"""Render the trade-offs that --target-size and --w4a4-share found, as curves with their tables."""

from __future__ import annotations

from typing import NamedTuple

from nvfp4.errors import gigabytes, percentage
from nvfp4.report.page_parts import escaped, html_fold, html_section, html_table

# The drawing's size and the margins of its axes, in units of its viewBox. It is as narrow as a
# phone, so that its text is legible there.
CURVE_WIDTH, CURVE_HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 18, 40


class CurveLabels(NamedTuple):
    """Label a curve's axes: the smallest and the largest x, the largest y, and what it shows."""

    left: str
    right: str
    top: str
    says: str


def html_curve(
    points: list[tuple[float, float]], labels: CurveLabels, here: tuple[float, float] | None = None
) -> str:
    """Draw points (x, y), y from 0 up, and a dot where this file is, if that is known.

    The drawing is one image for people who cannot see it: a table beside it has to tell the
    figures.
    """
    xs, ys = zip(*points, *([here] if here else []), strict=True)
    left, right, top = min(xs), max(xs), max(ys)
    floor, end = CURVE_HEIGHT - BOTTOM, CURVE_WIDTH - RIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1) * (end - LEFT)
        return round(LEFT + across, 1), round(floor - y / (top or 1) * (floor - TOP), 1)

    line = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
    dot = ""
    if here:
        x, y = at(*here)
        anchor = "end" if x > CURVE_WIDTH / 2 else "start"
        dot = f'<circle class="here" cx="{x}" cy="{y}" r="5"/>'
        dot += f'<text x="{x}" y="{y - 10:.1f}" text-anchor="{anchor}">this file</text>'
    return (
        f'<svg class="curve" viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" '
        f'aria-label="{escaped(labels.says)}">'
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{end}"/>'
        f'<polyline class="line" points="{line}"/>{dot}'
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{labels.top}</text>'
        f'<text x="{LEFT - 5}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{floor + 16}">{labels.left}</text>'
        f'<text x="{end}" y="{floor + 16}" text-anchor="end">{labels.right}</text></svg>\n'
    )


def html_sizes(data: dict) -> str:
    """Render --target-size's trade-off between size and error; "" without it."""
    if not data["size_curve"]:
        return ""
    points = [(point["nbytes"], point["error"]) for point in data["size_curve"]]
    here = (data["output_bytes"], data["size_error"])
    marked = sorted([*((*point, "") for point in points), (*here, "this file")])
    labels = CurveLabels(
        left=gigabytes(marked[0][0]),
        right=gigabytes(marked[-1][0]),
        top=f"{max(error for _, error, _ in marked):.4f}",
        says="File size, and mean relative RMSE of the outputs, by weights and activations, of the "
        "layers that could be chosen",
    )
    rows = ((f"{size:,}", f"{error:.4f}", mark) for size, error, mark in marked)
    table = html_table("Sizes and their mean errors", ("Bytes", "#Mean error", "Of these"), rows)
    return (
        f"<h3>Size and error</h3><p class=soft>{labels.says}. The file need not lie on the line: "
        f"leftover bytes were filled with other layers.</p>\n"
        f"{html_curve(points, labels, here)}{html_fold(f'{len(marked)} sizes', table, 'long')}"
    )


def html_w4a4(data: dict) -> str:
    """Render --w4a4-share's trade-off between 4-bit inputs and their error; "" without it."""
    if not data["w4a4_curve"]:
        return ""
    points = [(point["share"], point["error"]) for point in data["w4a4_curve"]]
    low, high, top = min(points)[0], max(points)[0], max(error for _, error in points)
    labels = CurveLabels(
        left=percentage(low, 1),
        right=percentage(high, 1),
        top=percentage(top, 1),
        says="W4A4 share of the multiply work, and what is left of the squared error it adds",
    )
    rows = (
        (percentage(share, 1), percentage(error, 1), escaped(point["layer"] or "-"))
        for point, (share, error) in zip(data["w4a4_curve"], points, strict=True)
    )
    columns = ("W4A4 share", "#Error left", "Next layer with full-precision matmul")
    table = html_table("Shares and what is left of the error", columns, rows)
    return (
        f"<h3>W4A4 share and error</h3><p class=soft>{labels.says}.</p>\n"
        f"{html_curve(points, labels)}{html_fold(f'{len(points)} shares', table, 'long')}"
    )


def html_curves(data: dict) -> str:
    """Render the section of all trade-offs; "" where none was asked for."""
    body = html_sizes(data) + html_w4a4(data)
    return html_section("Trade-offs", body) if body else ""
