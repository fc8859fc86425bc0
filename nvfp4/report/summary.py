"""The report as text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from nvfp4.errors import examples, gigabytes, share
from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.formats.base import stored_formats
from nvfp4.model import bare
from nvfp4.numeric.damage import Damage
from nvfp4.plan.records import TensorPlan
from nvfp4.read.checkpoint import file_bytes
from nvfp4.report.data import Report, matmuls, stored_as, totals
from nvfp4.stored.defects import DEFECTS, Finding, Outcome, grouped
from nvfp4.tune.activations import CurvePoint
from nvfp4.verify import Check

CURVE_POINTS = 10  # of a trade-off that are printed


def render_findings(found: Iterable[Finding]) -> list[str]:
    """A paragraph per defect: outcome, how often, what; what ComfyUI does, what to do, where."""
    lines = []
    for key, where in grouped(found).items():
        defect = DEFECTS[key]
        lines += [
            f"  {defect.outcome.name:6} {len(where)} x {defect.what}",
            f"         {defect.consequence}; to do: {defect.remedy}",
            f"         {examples(where)}",
        ]
    return lines


def render_check(check: Check) -> str:
    """The file's schemes, its defects the worst first, and its layers' errors if measured."""
    schemes = Counter(layer.scheme for layer in check.layers.values())
    titles = [row.title for row in stored_formats() if schemes[row.title]]
    quantised = ", ".join(f"{schemes[title]} {title}" for title in titles)
    quantised = f"{quantised} layers" if quantised else "nothing is quantised"
    path, size = check.model.files[0], gigabytes(file_bytes(check.model))
    title = f"{path.name}: {len(check.model.tensors):,} tensors, {size}, {quantised}"
    defects = render_findings(check.findings) or ["  no defect found"]
    if check.outcome > Outcome.LOADS:
        defects.append("  to have none of these, convert the original model again")
    return "\n".join([title, *defects, *render_worst(check.damage)])


def render_totals(report: Report) -> list[str]:
    """One line per precision: layers, tensors and bytes."""
    lines = [f"  {'':10} {'layers':>7} {'tensors':>8} {'size':>11}"]
    for label, total in totals(report.plans).items():
        size = gigabytes(total["bytes"])
        lines.append(f"  {label:10} {total['layers']:7} {total['tensors']:8} {size:>11}")
    return lines


def render_matmuls(report: Report) -> str:
    parts = [
        f"{kind} {found['layers']} layers ({100 * found['share']:.0f} %)"
        for kind, found in matmuls(report.plans).items()
    ]
    return f"  matmuls: {', '.join(parts)} of the linear weights, the rest unquantised"


def least_first(number: float) -> float:
    """A key to sort by that puts NaN before everything."""
    return -math.inf if math.isnan(number) else number


def render_worst(damage: dict[str, Damage], count: int = 5) -> list[str]:
    """The layers that quantising hurt most, by relative RMSE of the decoded weight."""
    worst = sorted(damage.items(), key=lambda item: least_first(-item[1].relative_rmse))[:count]
    lines = [f"    {d.relative_rmse:.4f}  {d.sqnr_db:5.1f} dB  {layer}" for layer, d in worst]
    title = "  worst layers by relative RMSE and SQNR of the decoded weight:"
    return [title, *lines] if lines else []


def render_output_errors(report: Report, count: int = 5) -> list[str]:
    """What rounding by statistics gained: how many layers, by how much, and the worst of them."""
    found = {
        layer: damage for layer, damage in report.damage.items() if damage.output_before is not None
    }
    asked = [plan.ref.layer for plan in report.plans if plan.moments]
    failed = [layer for layer in asked if layer in report.damage.keys() - found.keys()]
    lines = []
    if failed:
        what = "second moments are not positive definite: the plain search"
        lines.append(f"  {len(failed)} layers' {what}: {examples(failed)}")
    if not found:
        return lines
    pairs = [(damage.output_before, damage.output_after) for damage in found.values()]
    kept = sum(before == after for before, after in pairs)
    before, after = (geometric_mean(errors) for errors in zip(*pairs, strict=True))
    lines += [
        f"  output errors of the {len(found)} layers rounded by their input's statistics: "
        f"{before:.4f} -> {after:.4f} (geometric mean; {kept} did not gain), the largest:"
    ]
    worst = sorted(found.items(), key=lambda item: -item[1].output_after)[:count]
    for layer, damage in worst:
        lines.append(f"    {output_errors(dataclasses.asdict(damage))}  {layer}")
    return lines


def render_curve(curve: tuple[CurvePoint, ...]) -> list[str]:
    """--w4a4-share's trade-off at some points."""
    if not curve:
        return []
    step = max(1, (len(curve) - 1) // (CURVE_POINTS - 1))
    points = [*curve[:-1:step], curve[-1]]
    return [
        "  W4A4 share of the linear weights, and what is left of the squared error it adds:",
        "    " + "  ".join(f"{100 * point.share:3.0f} %" for point in points),
        "    " + "  ".join(f"{100 * point.error:3.0f} %" for point in points),
    ]


def render_sizes(report: Report) -> list[str]:
    """--target-size: what other sizes cost, and what one more gigabyte would buy."""
    points, size = report.sizes, report.output_bytes
    if not points:
        return []
    here = min(points, key=lambda point: abs(point.nbytes - size))
    some = {round(i * (len(points) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}
    lines = ["  size and mean relative RMSE of the layers that could be chosen:"]
    for point in sorted({here, *(points[index] for index in some)}):
        mark = "  <- this file" if point is here else ""
        lines.append(f"    {gigabytes(point.nbytes):>10}  {point.error:.4f}{mark}")
    more = max((point for point in points if point.nbytes <= size + 10**9), default=here)
    if more.nbytes > here.nbytes and here.error:
        left = (more.error / here.error) ** 2
        added = gigabytes(more.nbytes - here.nbytes)
        lines.append(f"    {added} more would leave {100 * left:.0f} % of the squared error")
    return lines


def output_errors(data: dict) -> str:
    w4a4 = "" if data["output_w4a4"] is None else f", W4A4 {data['output_w4a4']:.4f}"
    return f"{data['output_before']:.4f} -> {data['output_after']:.4f}{w4a4}"


def geometric_mean(values: Iterable[float]) -> float:
    """Of those above zero; 0 if there are none."""
    logarithms = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else 0.0


def render_plan(report: Report) -> list[str]:
    """Tensors of one kind, shape and fate on one line, or each on its own with --verbose."""
    groups = defaultdict(list)
    for plan in report.plans:
        fate = stored_as(plan)
        mark = f"; full-precision matmul: {plan.full_precision}" if plan.full_precision else ""
        row = (fate, list(plan.ref.shape), f"{plan.reason}{mark}")
        number = (
            None if report.options.verbose else re.search(r"(?<=\.)\d{1,9}(?=\.)", plan.ref.name)
        )
        name = plan.ref.name
        if number and bare(name).startswith(TRANSFORMER_BLOCKS):
            key = f"{name[: number.start()]}*{name[number.end() :]}"
            groups[key, str(row)].append((int(number[0]), row))
        else:
            groups[name, str(row)].append((0, row))
    lines = []
    for (key, _), members in groups.items():
        name = key.replace("*", f"{{{ranges([number for number, _ in members])}}}", 1)
        fate, shape, reason = members[0][1]
        lines.append(f"  {fate:8} {len(members):4} x {shape!s:20} {name}  [{reason}]")
    return lines


def ranges(numbers: list[int]) -> str:
    """[2, 3, 4, 7] -> "2-4,7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def render_scales(report: Report) -> list[str]:
    """--input-scale-layer-summary: every quantised layer's input scale and its origin."""

    def clipped(plan: TensorPlan) -> str:
        share = plan.saturated_blocks
        return "" if share is None else f"  clips {100 * share:.3g} % of the blocks"

    return ["  input scales:"] + [
        f"    {plan.ref.layer}  {plan.input_scale:.9g}  {plan.input_scale_source}{clipped(plan)}"
        if plan.input_scale is not None
        else f"    {plan.ref.layer}  none ({'not used' if plan.full_precision else 'dynamic'})"
        for plan in report.plans
        if plan.is_quantised
    ]


def render_report(report: Report) -> str:
    """The summary a person reads at the end; with --dry-run or --verbose, the plan before it."""
    options = report.options
    verb = "would become" if options.dry_run else "->"
    lines = render_plan(report) if options.dry_run or options.verbose else []
    lines += [
        f"{options.source.name}: {gigabytes(report.source_bytes)} {verb} {options.written.name}: "
        f"{gigabytes(report.output_bytes)}, exactly {report.output_bytes:,} bytes "
        f"({share(report.output_bytes, report.source_bytes)})",
        *render_totals(report),
        render_matmuls(report),
        *render_worst(report.damage),
        *render_output_errors(report),
        *render_curve(report.curve),
        *render_sizes(report),
        *(render_scales(report) if options.input_scale_layer_summary else []),
        *(f"  note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)
