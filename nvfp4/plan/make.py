"""Plan every tensor of a model, and warn of plans that people regret.

`make_plans` is the whole of planning: rules give a precision, then come full-precision matmul,
input scales, statistics and notes. It is pure: options, model and guides in, plans out. What tunes
a plan by measuring stands in `tune`, and the bytes of a plan in `layout`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from pathlib import Path

from nvfp4.cards import CARDS, card_of
from nvfp4.coverage import blocks_of, check_cover
from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.errors import ConvertError, examples, in_number
from nvfp4.families import MOST_NVFP4, Family
from nvfp4.formats.base import Format, format_titled
from nvfp4.formats.floats import HALF
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.records import GGUF_BITS, Guides
from nvfp4.model import Model, bare
from nvfp4.names import kind_of, natural_key
from nvfp4.notes import Note, Rank
from nvfp4.options import LEGACY_RECIPE, TARGET, Options
from nvfp4.plan.choosing import can_be, format_called
from nvfp4.plan.contract import contract_notes
from nvfp4.plan.encoders import IN_16_BITS, refuse_idle
from nvfp4.plan.inputs import (
    as_scaled_fp8,
    attach_recording,
    attach_scale,
    kept_marks,
    marks_by_precision,
    sensitive_floors,
)
from nvfp4.plan.parts import plan_parts
from nvfp4.plan.records import Plan, Rule, TensorPlan, plan_tensor, weights_of
from nvfp4.plan.rules import choice_rules, decide, fitted, floor_rules, refuse_for_kept
from nvfp4.reasons import Why


def make_plans(
    options: Options, model: Model, guides: Guides, chosen: dict[str, Format] | None = None
) -> Plan:
    """Plan every tensor of a model, in source order, with notes for the report.

    No file is opened: the same arguments give the same plans. `chosen` is {tensor: precision} that
    --target-size settled on. Text encoders beside a diffusion model are planned each by itself.
    Raises ConvertError if options name what the model lacks, if an input scale is no positive
    float32, and if nothing would be quantised.
    """
    plan = plan_model(options, model.main, guides, chosen)
    parts = plan_parts(options, model, guides, plan_model)
    plans = [parts.plans.get(one.ref.name, one) for one in plan.plans]
    return Plan(plans, (*plan.notes, *parts.notes))


def plan_model(
    options: Options, model: Model, guides: Guides, chosen: dict[str, Format] | None = None
) -> Plan:
    """Plan a diffusion model, or a text encoder that is a whole file, as `make_plans` says."""
    refuse_for_kept(options, model)
    refuse_idle(options, model, guides)
    choices = choice_rules(options, model, guides, chosen or {})
    marks, unknown = marks_by_precision(options, model, guides)
    floors = [*floor_rules(options, model, guides), *measured_floors(guides)]
    floors += sensitive_floors(options, model, marks[NVFP4])
    floors += kept_marks(options, marks[NVFP4], {*(chosen or {})})
    plans, scales = [], guides.scales
    for ref in model.tensors.values():
        rule = fitted(options, decide(ref.name, choices, floors), ref)
        plan = plan_tensor(ref, rule, DTYPE_OPTIONS[options.dtype])
        if ref.config and model.part_of(ref.name):
            plan = dataclasses.replace(plan, full_precision=IN_16_BITS)
        elif plan.is_quantised and not plan.is_looked_up:
            # The first mark that names the layer is the reason that the report gives.
            asked = (mark.reason for mark in marks[plan.precision] if ref.name in mark.names)
            marked = dataclasses.replace(plan, full_precision=next(asked, None))
            plan = attach_scale(marked, scales.get(ref.layer))
        plans.append(plan)
    refuse_unquantised(options, plans, guides.kinds or {})
    plans, recorded = attach_recording(options, plans, guides.recording)
    # Without other calibration than the --layer-config's, dynamic layers are what was asked for.
    calibrated = not guides.calibration.keys() <= guides.configured.keys()
    notes = [*guides.notes, *cover_notes(plans, guides, options.partial_guide)]
    notes += list_notes(plans, guides, options.full_precision_mm_layers)
    notes += [*recorded, *unknown, *scale_notes(plans, calibrated)]
    notes += gguf_notes(options, plans, guides.kinds or {})
    notes += [*plan_notes(plans, guides.family), *contract_notes(model, plans)]
    # Last, as the shared switch depends on every layer's input scale.
    if options.recipe == LEGACY_RECIPE:
        plans, more = as_scaled_fp8(plans)
        notes += more
    return Plan(plans, tuple(notes))


def measured_floors(guides: Guides) -> list[Rule]:
    """Make a floor for each measured figure that asks for 16 bits, whatever chose a precision."""
    return [
        Rule(names=measured.weights, precision=HALF, reason=measured.reason)
        for measured in guides.measured
        if measured.is_half
    ]


def refuse_unquantised(options: Options, plans: list[TensorPlan], kinds: dict[str, str]) -> None:
    """Raise ConvertError for a plan that quantises nothing, with the most likely remedy.

    `kinds` is {tensor: GGML type}, empty without a GGUF. The message names the reason that most
    linear layers have for staying as they are.
    """
    if any(plan.is_quantised for plan in plans):
        return
    include = ", or name layers with --include"
    # Later cases are more certain than earlier ones, and replace their advice.
    bits = [GGUF_BITS[kind] for kind in kinds.values() if GGUF_BITS[kind] <= 8]
    depth = f"give --gguf-nvfp4-max-bitdepth {min(bits)}" if bits else "take another GGUF"
    if not kinds:
        depth = "give fewer --edge-blocks"
    if bits and min(bits) <= options.gguf_nvfp4_max_bitdepth:
        depth = "relax what keeps them"
    kept = Counter(plan.reason for plan in plans if plan.is_layer)
    if not bits and any(plan.ref.config and plan.is_layer for plan in plans):
        depth = "nothing is left to quantise: give the original 16- or 32-bit model"
        include = ""
    if any(reason.kind is Why.TARGET_SIZE for reason in kept):
        depth = f"give a smaller {TARGET}"
    usual = f" (mostly: {kept.most_common(1)[0][0]})" if kept else ""
    raise ConvertError(f"{options.source}: no layer would be quantised{usual}; {depth}{include}")


def cover_notes(plans: list[TensorPlan], guides: Guides, partial: bool) -> list[str]:
    """Note what share of the NVFP4 layers each guide covers, if it is `partial`.

    Asked are layers of the kinds that the guide tells of, as a calibration knows only kinds that
    were quantised while it was recorded. Raises ConvertError for gaps without `partial`.
    """
    notes = []
    configured = {bare(layer) for layer in guides.configured}
    for cover in guides.covers:
        kinds = {*map(kind_of, cover.layers)}
        wanted = {
            bare(plan.ref.layer): plan.ref.nbytes
            for plan in plans
            if plan.is_quantised and plan.has_nvfp4_input and kind_of(plan.ref.layer) in kinds
        }
        for layer in configured:
            wanted.pop(layer, None)
        notes += check_cover(cover, wanted, partial)
    return notes


def list_notes(plans: list[TensorPlan], guides: Guides, path: Path | None) -> list[str]:
    """Note NVFP4 blocks behind the last one that a list for full-precision matmul names.

    A list of a smaller relative ends early; one of a few layers, as people write them, tells
    nothing: it has to name layers of half of the blocks.
    """
    if guides.listed is None:
        return []
    packed = blocks_of(bare(plan.ref.layer) for plan in plans if plan.is_w4a4)
    named = blocks_of(bare(name) for name in guides.listed.weights)
    behind = sorted(packed - named, key=natural_key)
    last = max(map(natural_key, named), default=[])
    behind = [block for block in behind if natural_key(block) > last]
    if 2 * len(named) < len(packed | named) or not behind:
        return []
    what = f"{path.name} names no layer of the last NVFP4 blocks: {examples(behind)}"
    return [Note(what, Rank.NOTE)]


def scale_notes(plans: list[TensorPlan], calibrated: bool) -> list[str]:
    """Note W4A4 layers that lack a calibration row, and FP8 layers without an input scale.

    `calibrated` tells whether any calibration was given besides the --layer-config; without one all
    layers are dynamic, and that needs no note.
    """
    dynamic = [plan.ref.layer for plan in plans if plan.is_w4a4 and plan.input_scale is None]
    forced = [
        plan.ref.layer
        for plan in plans
        if plan.full_precision and plan.full_precision.kind is Why.NO_INPUT_SCALE
    ]
    notes = []
    if calibrated and dynamic:
        what = in_number(len(dynamic), "W4A4 layers have no calibration row and stay dynamic")
        notes.append(Note(f"{what}: {examples(dynamic)}", Rank.NOTE))
    if forced:
        what = in_number(
            len(forced), "FP8 layers have no input scale and get full-precision matmul"
        )
        notes.append(Note(f"{what}: {examples(forced)}", Rank.HINT))
    return notes


def dynamic_notes(options: Options, plans: list[TensorPlan]) -> list[str]:
    """Note what it costs that no W4A4 layer has an input scale, unless that was asked for."""
    w4a4 = [plan for plan in plans if plan.is_w4a4 and plan.is_quantised]
    if not w4a4 or options.no_input_scale or any(plan.input_scale for plan in w4a4):
        return []
    what = in_number(len(w4a4), "W4A4 layers have no input scale")
    cost = "which is fine: ComfyUI measures it on every call, one more pass over the input"
    how = "calibration would store it (docs/calibration.md)"
    return [Note(f"{what}, {cost}; {how}", Rank.HINT)]


def card_notes(
    options: Options, plans: list[TensorPlan], capability: tuple[int, int] | None
) -> list[Note]:
    """Hint at --card where this machine's card decodes layers that others multiply as they are.

    capability: the compute capability of the card here, None where there is none that has one.
    """
    word = card_of(capability) if capability else ""
    if not word or options.card:
        return []
    quantised = [plan for plan in plans if plan.is_quantised and not plan.full_precision]
    slow = [plan for plan in quantised if plan.format.option not in (*CARDS[word].fast, "")]
    if not slow:
        return []
    what = in_number(len(slow), "layers are in formats")
    better = f"--card {word} ({CARDS[word].series}) takes those it multiplies"
    return [Note(f"{what} that the card here decodes to 16 bits; {better}", Rank.HINT)]


def gguf_notes(options: Options, plans: list[TensorPlan], kinds: dict[str, str]) -> list[str]:
    """Note layers that the GGUF has in few bits and that stay 16-bit, with --card or --formats.

    Whoever asks for these wants layers to be fast, and --use-int8 would make them so. `kinds` is
    {tensor: GGML type}.
    """
    left = [
        plan.ref.layer
        for plan in plans
        if plan.is_layer and plan.reason.kind is Why.GGUF and not plan.is_quantised
        if GGUF_BITS[kinds.get(plan.ref.name, "F32")] <= 8
    ]
    asked = (options.card or options.formats) and "int8" in options.allowed
    if not left or not asked:
        return []
    what = in_number(len(left), "layers stay 16-bit that --use-int8 would make INT8")
    return [Note(f"{what}: {examples(left)}", Rank.HINT)]


def plan_notes(plans: list[TensorPlan], family: Family) -> list[str]:
    """Warn about choices in the plan that usually turn out badly.

    Those are: layers that are quantised twice, layers that keep their packed form, a --layer-config
    that floors overrule, too much NVFP4 in an image model, and a file that is no faster than
    16-bit.
    """
    notes, layers = [], [plan for plan in plans if plan.is_layer]
    # A layer that keeps its codes is quantised once.
    twice = defaultdict(list)
    for plan in layers:
        if plan.ref.coding and plan.is_quantised and not plan.keeps_codes:
            twice[format_titled(plan.ref.coding.title).kind].append(plan.ref.layer)
    for kind, named in sorted(twice.items()):
        what = in_number(len(named), f"layers are {kind} in the source and quantised twice")
        why = f"which is worse than from the 16-bit model; errors are against the {kind} weights"
        notes.append(Note(f"{what}, {why}: {examples(named)}", Rank.HINT))
    if passed := sum(bool(plan.ref.config) for plan in layers):
        what = in_number(passed, "layers are quantised in the source and go over as they are")
        notes.append(Note(what, Rank.INFORMATION))
    # Floors overrule a --layer-config; its author may expect otherwise.
    raised = [plan.ref.layer for plan in layers if Why.LAYER_CONFIG in plan.reason.overruled_kinds]
    if raised:
        what = in_number(len(raised), "layers get more than --layer-config says")
        notes.append(Note(f"{what}: {examples(raised)}", Rank.NOTE))
    packed = [plan for plan in layers if plan.has_nvfp4_input]
    part = weights_of(packed) / (weights_of(plan for plan in plans if plan.is_multiplied) or 1)
    if family.makes == ("image",) and part > MOST_NVFP4:
        what = f"{100 * part:.0f} % of the linear weights are NVFP4: image models are known to give"
        how = "noise then; keep more layers with --exclude, --edge-blocks or --target-size"
        notes.append(Note(f"{what} {how}", Rank.WARNING))
    quantised = [plan for plan in layers if plan.config]
    if any(plan.full_precision is IN_16_BITS for plan in quantised):
        what = "ComfyUI multiplies text encoders in 16 bits: the file saves memory, and no time"
        notes.append(Note(what, Rank.INFORMATION))
    elif packed and all("full_precision_matrix_mult" in plan.config for plan in quantised):
        what = "no layer is W4A4: the file saves memory, and no time over 16-bit"
        notes.append(Note(what, Rank.NOTE))
    return notes


def shape_notes(options: Options, plans: list[TensorPlan]) -> list[str]:
    """Note layers whose shape decides on their format, of plans that nothing changes any more.

    Those are: layers that another format suits, and those that --target-size or a mark would give a
    format which does not store them, and for which none that may be chosen stands in.
    """
    shaped, limited = defaultdict(list), defaultdict(list)
    is_sized = options.is_sized
    for plan in plans:
        if plan.is_layer and plan.reason.kind is Why.SHAPE:
            shaped[plan.precision].append(plan.ref.layer)
        elif plan.is_layer and plan.is_quantised and (is_sized or plan.full_precision):
            forms = map(format_called, options.allowed)
            lacking = [str(form) for form in forms if not can_be(options, form, plan.ref.shape)]
            limited[" or ".join(lacking)].append(plan.ref.layer)
    limited.pop("", None)
    notes = []
    for form, named in shaped.items():
        what = in_number(len(named), f"layers are {form} for their shape")
        notes.append(Note(f"{what}: {examples(named)}", Rank.INFORMATION))
    for form, named in limited.items():
        what = in_number(len(named), f"layers cannot be {form} for their shape")
        why = "and --formats leaves nothing to stand in"
        notes.append(Note(f"{what}, {why}: {examples(named)}", Rank.NOTE))
    return notes
