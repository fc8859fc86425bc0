"""Render the report as text for the terminal.

`render_report` is what a conversion prints on stdout at its end. All functions here take records
and return text or lines; nothing is measured. The data come from `data.Report`; the page of
--report is made by `page`, and what --verify prints by `check`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from nvfp4.asking.answers import NOT_ASKED
from nvfp4.errors import examples, gigabytes, in_number, percentage
from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.files import full_path
from nvfp4.fit import memory_told
from nvfp4.model import bare
from nvfp4.notes import by_rank
from nvfp4.numeric.damage import Damage
from nvfp4.options import Options
from nvfp4.plan.records import TensorPlan
from nvfp4.report.data import Report, label_of, matmul, matmuls, summary_data, totals
from nvfp4.report.lines import broken, labelled, spent
from nvfp4.report.usual import render_errors
from nvfp4.tune.activations import CurvePoint
from nvfp4.tune.choice import SizePoint
from nvfp4.work import render_work

# A trade-off may have hundreds of steps, one for each layer. About 10 of them show its bend and
# fit into a terminal of usual width.
CURVE_POINTS = 10


def render_totals(report: Report) -> list[str]:
    """Render a table with one line per precision: layers, tensors of the output, and bytes."""
    lines = [f"  {'':10} {'layers':>7} {'tensors':>8} {'size':>11}"]
    for label, total in totals(report.plans).items():
        size = gigabytes(total["bytes"])
        lines.append(f"  {label:10} {total['layers']:7} {total['tensors']:8} {size:>11}")
    return lines


def render_matmuls(report: Report) -> str:
    """Render one line of how the linear layers are multiplied, each kind with its share."""
    parts = [
        f"{kind} {in_number(found['layers'], 'layers')} ({100 * found['share']:.0f} %)"
        for kind, found in matmuls(report.plans).items()
    ]
    return f"  matmuls: {', '.join(parts)} of the linear weights, the rest unquantised"


def least_first(number: float) -> float:
    """Make a sort key that puts NaN before every number, as NaN compares false with everything."""
    return -math.inf if math.isnan(number) else number


def render_worst(damage: dict[str, Damage], count: int = 5) -> list[str]:
    """Render the `count` layers with the largest relative RMSE of the decoded weight, worst first.

    `damage` is {layer: Damage}; SQNR in dB stands beside each figure. Layers without a number (NaN)
    are the worst of all, those without an error are left out. No lines where none is left.
    """
    # Negated, so that the largest comes first, and NaN before it.
    damaged = [(layer, found) for layer, found in damage.items() if found.relative_rmse != 0]
    worst = sorted(damaged, key=lambda item: least_first(-item[1].relative_rmse))[:count]
    lines = [f"    {d.relative_rmse:.4f}  {d.sqnr_db:5.1f} dB  {layer}" for layer, d in worst]
    title = "  worst layers by relative RMSE and SQNR of the decoded weight:"
    return [title, *lines] if lines else []


def rounded_layers(report: Report) -> dict[str, Damage]:
    """Collect the layers that were rounded by statistics: {layer: its error}."""
    return {
        layer: damage for layer, damage in report.damage.items() if damage.output_before is not None
    }


def render_output_errors(report: Report) -> list[str]:
    """Render what rounding by statistics gained over the plain search.

    One line has the geometric means, over all such layers, of the output's relative RMSE before and
    after, and how many layers did not gain. Layers whose second moments could not be used are named
    first: they got the plain search.
    """
    found = rounded_layers(report)
    # Planned with moments, measured without an output error: its rounding fell back.
    asked = [plan.ref.layer for plan in report.plans if plan.moments]
    failed = [layer for layer in asked if layer in report.damage.keys() - found.keys()]
    lines = []
    if failed:
        what = f"second moments of {in_number(len(failed), 'layers')} are not positive definite"
        lines.append(f"{what}, which got the plain search: {examples(failed)}")
    if not found:
        return lines
    # The mean is geometric: a gain is a ratio, and each layer's counts alike.
    pairs = [(damage.output_before, damage.output_after) for damage in found.values()]
    kept = sum(before == after for before, after in pairs)
    before, after = (geometric_mean(errors) for errors in zip(*pairs, strict=True))
    return [
        *lines,
        f"output errors of the {in_number(len(found), 'layers')} rounded by their input's "
        f"statistics: {before:.4f} -> {after:.4f} (geometric mean; {kept} did not gain)",
    ]


def render_largest(report: Report, count: int = 5) -> list[str]:
    """Render the `count` layers rounded by statistics with the largest error of the output left."""
    worst = sorted(rounded_layers(report).items(), key=lambda item: -item[1].output_after)[:count]
    lines = [f"    {output_errors(dataclasses.asdict(d))}  {layer}" for layer, d in worst]
    return ["  largest output errors of layers rounded by statistics:", *lines] if lines else []


def render_curve(curve: tuple[CurvePoint, ...]) -> list[str]:
    """Render --w4a4-share's trade-off at about CURVE_POINTS points, as three lines.

    For a share of the multiply work left in W4A4 they show the part that remains of the squared
    output error that 4-bit activations add.
    """
    if not curve:
        return []
    step = max(1, (len(curve) - 1) // (CURVE_POINTS - 1))
    points = [*curve[:-1:step], curve[-1]]  # both ends of the curve are always there
    return [
        "  W4A4 share of the multiply work, and what is left of the squared error it adds:",
        "    " + "  ".join(f"{100 * point.share:3.0f} %" for point in points),
        "    " + "  ".join(f"{100 * point.error:3.0f} %" for point in points),
    ]


def render_sizes(report: Report) -> list[str]:
    """Render --target-size's trade-off: sizes, their mean errors, and which of them is this file.

    Errors are relative RMSE of outputs, in the mean over the layers that could be chosen. The last
    line says what one more gigabyte (1e9 bytes) would leave of the squared error, if there is such
    a size.
    """
    points, size = report.sizes, report.output_bytes
    if not points:
        return []
    # The file need not lie on the curve: leftover bytes were filled with other layers.
    here = SizePoint(size, report.size_error)
    some = {round(i * (len(points) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}
    lines = [
        "  size, and mean relative RMSE of the outputs, by weights and activations, of the layers "
        "that could be chosen:"
    ]
    for point in sorted({here, *(points[index] for index in some)}):
        mark = "  <- this file" if point is here else ""
        lines.append(f"    {gigabytes(point.nbytes):>10}  {point.error:.4f}{mark}")
    more = max((point for point in points if point.nbytes <= size + 10**9), default=here)
    if more.nbytes > here.nbytes and here.error:
        left = (more.error / here.error) ** 2  # errors are RMSE; what adds up is their square
        added = gigabytes(more.nbytes - here.nbytes)
        lines.append(f"    {added} more would leave {100 * left:.0f} % of the squared error")
    return lines


def output_errors(data: dict) -> str:
    """Render a layer's output error before and after rounding, and with 4-bit activations if known.

    `data` has `output_before`, `output_after` and `output_w4a4` (or None), relative RMSE each; a
    Damage as a dictionary and a tensor of the report's data both have them.
    """
    w4a4 = "" if data["output_w4a4"] is None else f", W4A4 {data['output_w4a4']:.4f}"
    return f"{data['output_before']:.4f} -> {data['output_after']:.4f}{w4a4}"


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of the values above zero; 0 if there are none."""
    logarithms = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else 0.0


# The number of a transformer's block within a block of a UNet.
WITHIN_BLOCK = re.compile(r"(?<=\.transformer_blocks\.)\d{1,9}(?=\.)")


def render_plan(report: Report) -> list[str]:
    """Render every tensor's precision, shape, name and reason, alike blocks together on one line.

    Tensors of the transformer blocks that differ in nothing but the block's number share a line,
    such as `blocks.{0-3,7}.ffn.0.weight`, unless --verbose asks for each on its own; so do blocks
    within the same blocks, as a UNet has them. Weights come first, and what is planned otherwise in
    other blocks stands next to it.
    """
    groups, first = defaultdict(list), {}
    for plan in report.plans:
        fate = label_of(plan)
        mark = f"; full-precision matmul: {plan.full_precision}" if plan.full_precision else ""
        row = (fate, str(list(plan.ref.shape)), f"{plan.reason}{mark}")
        # The first number in a name is the block's; only known families' blocks share a line, as
        # other numbers may count anything.
        number = (
            None
            if report.options.verbose
            else re.search(r"(?:(?<=\.)|(?<=\.block))\d{1,9}(?=\.)", plan.ref.name)
        )
        name, block, inner = plan.ref.name, 0, 0
        if number and bare(name).startswith(TRANSFORMER_BLOCKS):
            head, tail, block = name[: number.start()], name[number.end() :], int(number[0])
            if within := WITHIN_BLOCK.search(tail):
                tail, inner = f"{tail[: within.start()]}*{tail[within.end() :]}", int(within[0])
            name = f"{head}*{tail}"
        is_weight = plan.is_multiplied or plan.is_quantised or plan.ref.name.endswith(".weight")
        first.setdefault(name, (not (is_weight and len(plan.ref.shape) > 1), len(first)))
        groups[name, row, inner].append(block)
    # {what a line tells: numbers within the blocks}
    merged = defaultdict(list)
    for (name, row, inner), blocks in groups.items():
        merged[name, row, tuple(blocks)].append(inner)
    lines = []
    for (name, row, blocks), inner in sorted(merged.items(), key=lambda group: first[group[0][0]]):
        # Only the first stars are ours: they stand for the numbers.
        for numbers in (blocks, inner):
            name = name.replace("*", f"{{{ranges(numbers)}}}", 1)
        fate, shape, reason = row
        lines.append(f"  {fate:8} {len(blocks) * len(inner):4} x {shape:20} {name}  [{reason}]")
    return lines


def ranges(numbers: list[int]) -> str:
    """Render numbers as runs: [2, 3, 4, 7] becomes "2-4,7". They may come in any order."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def render_scales(report: Report) -> list[str]:
    """Render every quantised layer's input scale, where it is from, and what it clips.

    That is --input-scale-layer-summary. A layer without one is "dynamic" where ComfyUI measures its
    input on every call, or "not used" with full-precision matmul. The share of blocks that clip is
    known only with a recording.
    """

    def clipped(plan: TensorPlan) -> str:
        share = plan.saturated_blocks
        return "" if share is None else f"  clips {100 * share:.3g} % of the blocks"

    return ["  input scales:"] + [
        f"    {plan.ref.layer}  {plan.input_scale:.9g}  {plan.input_scale_source}{clipped(plan)}"
        if plan.input_scale is not None
        else f"    {plan.ref.layer}  none ({'not used' if plan.full_precision else 'dynamic'})"
        for plan in report.plans
        if plan.is_quantised and not plan.is_looked_up
    ]


def render_details(report: Report) -> list[str]:
    """Render what --verbose and --dry-run print before the summary: the plan, totals, errors."""
    options = report.options
    if not (options.dry_run or options.verbose):
        return []
    errors = [*render_worst(report.damage), *render_largest(report)]
    return [*render_plan(report), *render_totals(report), render_matmuls(report), *errors, ""]


def render_layers(report: Report) -> str:
    """Render one line of how many layers are stored and multiplied in which way."""
    counts = defaultdict(Counter)
    for plan in report.plans:
        if plan.is_layer:
            packed = plan.is_quantised or plan.ref.config
            counts[label_of(plan)][matmul(plan) if packed else ""] += 1
    parts = []
    for label in totals(report.plans):
        found = counts[label]
        kinds = [kind for kind in sorted(found) if kind]
        several = ", ".join(f"{found[kind]} {kind}" for kind in kinds)
        told = several if len(kinds) > 1 else "".join(kinds)
        told = f" ({told})" if told not in ("", label) else ""
        parts += [f"{found.total()} {label}{told}"] if found else []
    return ", ".join(parts)


def told_goal(options: Options) -> str:
    """Say in one line what --goal stood for, "" without one."""
    if not options.goal:
        return ""
    meant = " ".join(f"{flag} {value}" for flag, value in options.expanded.items())
    return f"--goal {options.goal} stands for {meant or 'the defaults'}"


def render_written(report: Report, data: dict) -> list[tuple[str, list[str]]]:
    """Render the beginning of the summary, as labels and their texts: file, size, time, layers."""
    options, path = report.options, full_path(report.options.written)
    size, share = report.output_bytes, percentage(report.output_bytes, report.source_bytes)
    source = f"{share} of the source's {gigabytes(report.source_bytes)}"
    fails = "this would fail, see the end; " if report.problems else ""
    planned = f"{fails}nothing was written; this would be {path}"
    on = f" on {report.device}" if report.device else ""
    is_timed = report.seconds and not options.dry_run
    return [
        ("dry run", [planned]) if options.dry_run else ("written", [str(path)]),
        ("size", [f"{gigabytes(size)}, exactly {size:,} bytes, {source}"]),
        ("time", [f"{spent(report.seconds)}{on}" if is_timed else ""]),
        ("checked", [data["checked"]]),
        ("memory", [memory_told(report.stage, size) if report.stage else ""]),
        ("layers", [render_layers(report)]),
        ("goal", [told_goal(options)]),
    ]


def render_use(report: Report, data: dict) -> list[tuple[str, list[str]]]:
    """Render the rest of the summary, as labels and their texts: speed, errors, the next step."""
    options, load = report.options, data["load"]["text"]
    shares, speed, needs = render_work(data["work"]) or ("", "", "")
    more = "--report FILE.html tells of every layer, --verbose prints the tables here"
    if options.report:
        more = f"every layer and its error: {full_path(options.report)}"
    errors = render_errors(data["errors"], data["outliers"])
    asked = report.asked.sentence if report.asked else NOT_ASKED
    return [
        ("work", [shares]),
        ("speed", [speed.removeprefix("speed ")]),
        ("errors", [*errors, *render_output_errors(report)]),
        ("ComfyUI", ["" if report.problems else load, needs, asked]),
        ("details", ["" if options.dry_run else more]),
    ]


def render_report(report: Report, width: int | None = None) -> str:
    """Render the summary that a person reads at the end of a conversion.

    width: of the terminal, by which long lines are broken; None breaks none. With --dry-run or
    --verbose the plan stands before it. Size in bytes is exact in both cases, since the layout is
    known before anything is written. Notes come last, warnings nearest to the prompt.
    """
    data = summary_data(report)
    lines = render_details(report)
    for label, texts in (*render_written(report, data), *render_use(report, data)):
        lines += labelled(label, [text for text in texts if text], width)
    lines += [*render_curve(report.curve), *render_sizes(report)]
    lines += render_scales(report) if report.options.input_scale_layer_summary else []
    for note in by_rank(report.notes):
        lines += broken(note.line, width)
    return "\n".join(lines)
