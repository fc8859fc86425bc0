"""Every tensor's plan, and notes on it."""

from __future__ import annotations

import dataclasses
from collections import Counter

from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.errors import ConvertError, examples
from nvfp4.families import Family
from nvfp4.formats.base import Format
from nvfp4.formats.floats import HALF
from nvfp4.guides.records import GGUF_BITS, Guides
from nvfp4.model import Model
from nvfp4.options import LEGACY_RECIPE, TARGET, Options
from nvfp4.plan.inputs import attach_recording, attach_scale, marks_by_precision, share_marker
from nvfp4.plan.records import Plan, Rule, TensorPlan, plan_tensor, weights_of
from nvfp4.plan.rules import choice_rules, decide, floor_rules, refuse_for_kept
from nvfp4.reasons import Why

MOST_NVFP4 = 0.9  # of an image model's linear weights


def make_plans(
    options: Options, model: Model, guides: Guides, chosen: dict[str, Format] | None = None
) -> Plan:
    """Plan every tensor of a model, in source order, and note what the report should carry.

    No file is opened: the same arguments give the same plans. `chosen`: precisions that
    --target-size settled on. Raises ConvertError where options name what the model lacks, where a
    layer's input scale is none, and where nothing would be quantised.
    """
    refuse_for_kept(options, model)
    choices = choice_rules(options, model, guides, chosen or {})
    floors = floor_rules(options, model)
    floors += [
        Rule(names=measured.weights, precision=HALF, reason=measured.reason)
        for measured in guides.measured
        if measured.is_half
    ]
    marks, unknown = marks_by_precision(options, model, guides)
    plans, scales = [], guides.scales
    for ref in model.tensors.values():
        rule = decide(ref.name, choices, floors)
        plan = plan_tensor(ref, rule, DTYPE_OPTIONS[options.dtype])
        if plan.is_quantised:
            asked = (mark.reason for mark in marks[plan.precision] if ref.name in mark.names)
            marked = dataclasses.replace(plan, full_precision=next(asked, None))
            plan = attach_scale(marked, scales.get(ref.layer))
        plans.append(plan)
    refuse_unquantised(options, plans, guides.kinds or {})
    plans, recorded = attach_recording(options, plans, guides.recording)
    calibrated = not guides.calibration.keys() <= guides.configured.keys()
    notes = [*guides.notes, *recorded, *unknown, *scale_notes(plans, calibrated)]
    notes += plan_notes(plans, guides.family)
    if options.recipe == LEGACY_RECIPE:
        plans, more = share_marker(plans)
        notes += more
    return Plan(plans, tuple(notes))


def why_full_precision(plan: TensorPlan, options: Options, marks: dict[str, frozenset[str]]) -> str:
    """Why a quantised layer gets full-precision matmul; "" if nothing asks for it."""
    option = plan.precision.full_precision_option
    if option and getattr(options, option):
        return "--" + option.replace("_", "-")
    return next((why for why, names in marks.items() if plan.ref.name in names), "")


def refuse_unquantised(options: Options, plans: list[TensorPlan], kinds: dict[str, str]) -> None:
    """A plan that quantises nothing is a mistake; say what is behind it."""
    if any(plan.is_quantised for plan in plans):
        return
    bits = [GGUF_BITS[kind] for kind in kinds.values() if GGUF_BITS[kind] <= 8]
    depth = f"give --gguf-nvfp4-max-bitdepth {min(bits)}" if bits else "take another GGUF"
    if not kinds:
        depth = "give fewer --edge-blocks"
    if bits and min(bits) <= options.gguf_nvfp4_max_bitdepth:
        depth = "relax what keeps them"
    kept = Counter(plan.reason for plan in plans if plan.is_layer)
    if any(plan.ref.config for plan in plans):
        depth = "nothing is left to quantise: take the 16-bit model"
    if any(reason.kind is Why.TARGET_SIZE for reason in kept):
        depth = f"give a smaller {TARGET}"
    usual = f" (mostly: {kept.most_common(1)[0][0]})" if kept else ""
    raise ConvertError(
        f"{options.source}: no layer would become NVFP4 or FP8{usual}; "
        f"{depth}, or name layers with --include"
    )


def scale_notes(plans: list[TensorPlan], calibrated: bool) -> list[str]:
    dynamic = [plan.ref.layer for plan in plans if plan.is_w4a4 and plan.input_scale is None]
    forced = [
        plan.ref.layer
        for plan in plans
        if plan.full_precision and plan.full_precision.kind is Why.NO_INPUT_SCALE
    ]
    notes = []
    if calibrated and dynamic:
        notes.append(
            f"{len(dynamic)} W4A4 layers have no calibration row and stay dynamic: "
            + examples(dynamic)
        )
    if forced:
        notes.append(
            f"{len(forced)} FP8 layers have no input scale and get full-precision matmul: "
            + examples(forced)
        )
    return notes


def plan_notes(plans: list[TensorPlan], family: Family) -> list[str]:
    """What a plan is likely to be regretted for."""
    notes, layers = [], [plan for plan in plans if plan.is_layer]
    twice = [
        plan.ref.layer
        for plan in layers
        if plan.ref.scale is not None
        and plan.is_quantised
        and (plan.ref.patches or not plan.precision.is_decoded)
    ]
    if twice:
        notes.append(
            f"{len(twice)} layers are FP8 in the source and quantised twice, which is worse than "
            f"from the 16-bit model; errors are against the FP8 weights: {examples(twice)}"
        )
    if passed := sum(bool(plan.ref.config) for plan in plans):
        notes.append(f"{passed} layers are quantised in the source and go over as they are")
    raised = [plan.ref.layer for plan in layers if Why.LAYER_CONFIG in plan.reason.overruled_kinds]
    if raised:
        notes.append(f"{len(raised)} layers get more than --layer-config says: {examples(raised)}")
    packed = [plan for plan in layers if plan.is_fp4]
    part = weights_of(packed) / (weights_of(layers) or 1)
    if family.image and part > MOST_NVFP4:
        notes.append(
            f"{100 * part:.0f} % of the linear weights are NVFP4: image models are known to give "
            "noise then; keep more layers with --exclude, --edge-blocks or --target-size"
        )
    if packed and not any(plan.is_w4a4 for plan in packed):
        notes.append("no layer is W4A4: the file saves memory, and no time over 16-bit")
    shaped = [plan.ref.layer for plan in layers if plan.reason.kind is Why.FP4_MATMUL]
    if shaped:
        notes.append(f"{len(shaped)} layers are FP8 for their shape: {examples(shaped)}")
    return notes
