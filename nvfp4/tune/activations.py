"""Tune by recorded inputs: which layers stay W4A4, and per-channel smoothing.

--w4a4-share takes 4-bit activations from the layers that gain most by it; --pre-quant-scale moves
outliers of what is left from the activations into the weights. Both measure on the rows that a
recording kept of each layer's input and on some rows of its weight. The plans they return differ in
`full_precision`, `smoothing` and `input_scale` alone, or in what --sensitive-as makes of a layer.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from nvfp4.errors import ConvertError, in_number
from nvfp4.notes import Note, Rank
from nvfp4.numeric.codes import decode_nvfp4, encode_nvfp4, largest_magnitude, nvfp4_global_scale
from nvfp4.numeric.damage import squared
from nvfp4.numeric.scale_search import mse_block_scales
from nvfp4.options import TARGET, Options
from nvfp4.plan.choosing import spared
from nvfp4.plan.multiply_work import work_by_weight
from nvfp4.plan.records import TensorPlan
from nvfp4.progress import each_with_bar
from nvfp4.read.tensors import load, load_some_rows
from nvfp4.reasons import Reason, Why
from nvfp4.tune.measuring import added_error, recorded_rows

# How much of an input's range goes over to the weight: shares that are tried for each layer.
SMOOTHING = (0.25, 0.5, 0.75)
# A pre_quant_scale has to lower the W4A4 output error by 5 %: older versions of ComfyUI ignore it
# and give noise, so that it must be worth that.
LEAST_SMOOTHING_GAIN = 0.05
# Rounding by statistics comes later and leaves about a tenth of the plain search's squared output
# error: what the search measures here counts by that much.
FEEDBACK_LEAVES = 0.1


class CurvePoint(NamedTuple):
    """Describe the trade-off once one more layer has full-precision matmul.

    `layer` is that layer, "" at the beginning of the curve.
    """

    layer: str
    share: float  # of the multiply work, in W4A4
    error: float  # of the squared output error that 4-bit activations add


class Tuned(NamedTuple):
    """Hold plans changed by what was measured, and notes.

    `curve` is --w4a4-share's whole trade-off, empty where it was not asked for.
    """

    plans: list[TensorPlan]
    notes: tuple[str, ...]
    curve: tuple[CurvePoint, ...]


def tune_activations(options: Options, plans: list[TensorPlan]) -> Tuned:
    """Do what --w4a4-share and --pre-quant-scale ask for, the second for what the first leaves.

    Without either, the plans come back as they are. Raises ConvertError where a share is asked for
    and no layer has statistics.
    """
    plans, shared, curve = limit_w4a4(options, plans)
    plans, smoothing = smooth(options, plans)
    return Tuned(plans, (*shared, *smoothing), curve)


def study(plan: TensorPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a layer's recorded input rows [r, K] and some rows of its weight [n, K], float32."""
    return recorded_rows(plan), load_some_rows(plan.ref).float()


def limit_w4a4(
    options: Options, plans: list[TensorPlan]
) -> tuple[list[TensorPlan], list[str], tuple[CurvePoint, ...]]:
    """Spare layers 4-bit activations, those first that gain most for their work.

    They are marked for full-precision matmul, or become what --sensitive-as says. Returns plans,
    notes and the whole curve, whatever other options marked.
    """
    wanted = options.w4a4_share
    if wanted is None:
        return plans, [], ()
    studied = [plan for plan in plans if plan.has_nvfp4_input and plan.moments]
    if not studied:
        raise ConvertError(f"--w4a4-share: {nothing_studied(plans)}")
    work = work_by_weight(plans)
    bar = each_with_bar("comparing", studied, quiet=options.quiet)
    added = {plan.ref.name: added_error(plan, *study(plan)) for plan in bar}
    # By error for their work; names break ties, so that equal inputs give equal plans.
    order = sorted(added, key=lambda name: (-added[name] / work[name], name))
    left = sum(work[plan.ref.name] for plan in plans if plan.is_w4a4 and plan.is_multiplied)
    marked = {plan.ref.name for plan in studied if plan.full_precision}
    curve = trade_off(order, added, work, left + sum(work[name] for name in marked))
    notes = []
    if marked:
        error = 1 - sum(added[name] for name in marked) / (sum(added.values()) or 1)
        best = next(point for point in curve if point.share <= left + 1e-9)
        what = f"other options mark {in_number(len(marked), 'layers')}: W4A4 {100 * left:.0f} %"
        notes.append(
            Note(
                f"{what}, which leave {100 * error:.0f} % of the error that 4-bit activations add; "
                "the layers that gain most for their work would leave "
                f"{100 * best.error:.0f} %",
                Rank.HINT,
            )
        )
    chosen = set()
    for name in order:
        if left > wanted and name not in marked:
            chosen.add(name)
            left -= work[name]
    if left > wanted:
        what = f"--w4a4-share: {100 * left:.0f} % is W4A4 without second moments"
        notes.append(Note(what, Rank.NOTE))
    reason = Reason(Why.W4A4_SHARE, f"--w4a4-share {wanted:g}")
    plans = [spared(options, plan, reason) if plan.ref.name in chosen else plan for plan in plans]
    return plans, notes, curve


def nothing_studied(plans: list[TensorPlan]) -> str:
    """Say why no layer can be compared: none is NVFP4, or none of these has statistics."""
    if any(plan.has_nvfp4_input for plan in plans):
        return "no NVFP4 layer has second moments in --activation-stats"
    if not any(plan.reason.kind is Why.TARGET_SIZE for plan in plans):
        return "no layer is NVFP4"
    return (
        f"{TARGET} chose other formats than NVFP4 for all layers; give --fp4-share instead for the "
        "share of the work that it leaves in W4A4, or --formats for what it chooses from"
    )


def trade_off(
    order: list[str], added: dict[str, float], work: dict[str, float], share: float
) -> tuple[CurvePoint, ...]:
    """Compute what is left in W4A4, and of the error it adds, after each layer in turn.

    `order` are the layers' weights; `added` and `work` are {weight: squared error it adds} and
    {weight: its share of the multiply work}; `share` is the W4A4 share with none marked. The first
    point has all of the error, the last none.
    """
    names, points = [*order], [CurvePoint("", share, 1.0)]
    whole = sum(added.values()) or 1.0  # layers without any error: a curve all the same
    while names:
        name = names.pop(0)
        share, error = max(share - work[name], 0.0), sum(added[name] for name in names) / whole
        points.append(CurvePoint(name.removesuffix(".weight"), share, error))
    return tuple(points)


def smooth(options: Options, plans: list[TensorPlan]) -> tuple[list[TensorPlan], list[str]]:
    """Give W4A4 layers a pre_quant_scale where that lowers their output error.

    Returns the plans and a note on how many gained, and on what such a file asks of ComfyUI.
    """
    if not options.pre_quant_scale:
        return plans, []
    candidates = [plan for plan in plans if plan.is_w4a4 and plan.moments]
    bar = each_with_bar("smoothing", candidates, quiet=options.quiet)
    found = {plan.ref.name: plan for plan in map(smoothed, bar) if plan.smoothing is not None}
    note = (
        f"{len(found)} of {len(candidates)} layers have a pre_quant_scale: ComfyUI 0.29 and older "
        "ignore it and give noise, and LoRAs on these layers come out wrong"
    )
    if not found:
        note = f"--pre-quant-scale: none of {len(candidates)} W4A4 layers gains by it"
    return [found.get(plan.ref.name, plan) for plan in plans], [Note(note, Rank.NOTE)]


def smoothed(plan: TensorPlan) -> TensorPlan:
    """Return the plan with the per-channel scales that leave the least W4A4 output error.

    Scales are [K], bfloat16; the input is multiplied by them and the weight divided. Candidates are
    w ** (1 - s) / x ** s for the shares s in SMOOTHING, with x and w the largest magnitudes of a
    channel's input and weight. The same plan comes back where none gains.
    """
    rows, weight = study(plan)
    exact = rows @ weight.t()
    absmax = torch.stack([load(refs[-1]) for refs in plan.moments.recordings]).amax(0)
    # A channel that was never used has magnitude 0, and would get an infinite scale.
    ranges = absmax.clamp(min=float(absmax.max()) * 2.0**-10 or 1.0)
    weights = weight.abs().amax(0)
    weights = weights.clamp(min=float(weights.max()) * 2.0**-10 or 1.0)

    def error(scale: torch.Tensor, input_scale: float | None) -> float:
        folded = weight / scale
        amax = nvfp4_global_scale(largest_magnitude(folded))
        decoded = decode_nvfp4(*encode_nvfp4(folded, amax, mse_block_scales), amax)
        given = rows * scale
        activations = (plan.precision.quantised_input(given, input_scale) - given) @ folded.t()
        return squared(activations) + FEEDBACK_LEAVES * squared(given @ decoded.t() - exact)

    def input_scale(scale: torch.Tensor) -> float | None:
        if plan.input_scale is None:
            return None
        return plan.input_scale * float((absmax * scale).max() / absmax.max())

    best, least = plan, error(torch.ones_like(absmax), plan.input_scale)
    least *= (1 - LEAST_SMOOTHING_GAIN) ** 2  # errors here are squared
    for share in SMOOTHING:
        scale = weights ** (1 - share) / ranges**share
        scale = (scale / scale.log().mean().exp()).bfloat16()  # any matmul's dtype can hold it
        found = error(scale.float(), input_scale(scale.float()))
        if found < least:
            least = found
            best = dataclasses.replace(
                plan, smoothing=scale, input_scale=input_scale(scale.float())
            )
    return best
