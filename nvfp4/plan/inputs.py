"""Plan how a layer takes its input: input scale, full-precision matmul, statistics.

A quantised layer either multiplies quantised activations (W4A4, FP8), for which it wants an input
scale, or is marked for full-precision matmul (W4A16). `make` calls the functions here once a
tensor's precision is settled by `rules`. Scales and statistics come matched from `guides`; no file
is opened.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Set
from typing import NamedTuple

import numpy as np
import torch

from nvfp4.errors import ConvertError, examples, in_number
from nvfp4.formats.base import Format, format_titled, written_formats
from nvfp4.formats.floats import HALF
from nvfp4.formats.scaled_fp8 import MARKER
from nvfp4.guides.records import Calibration, Guides, Recorded
from nvfp4.model import Model, bare
from nvfp4.notes import Note, Rank
from nvfp4.options import FULL_PRECISION_OPTIONS, Options
from nvfp4.plan.choosing import can_be, marked_format, preset_sensitive
from nvfp4.plan.encoders import IN_16_BITS, encoder_weights
from nvfp4.plan.presets import preset_reason, sensitive_names
from nvfp4.plan.records import Rule, TensorPlan
from nvfp4.plan.rules import BY_LAYER_CONFIG, select
from nvfp4.reasons import Reason, Why

# A note names layers in which more than 0.1 % of the recorded blocks clip at their input scale.
MANY_SATURATED = 0.001


class Mark(NamedTuple):
    """Name weights whose matmul is to stay 16-bit if they are quantised, with the reason."""

    reason: Reason
    names: Set[str]


def full_precision_marks(
    options: Options, model: Model, guides: Guides
) -> tuple[list[Mark], list[str]]:
    """List what options and files mark for full-precision matmul, with notes.

    The order is that in which reasons count: switches by kind of layer, patterns, the
    --layer-config, the list of --full-precision-mm-layers. A note tells of names in that list that
    match nothing. Raises ConvertError for a switch or pattern that matches no linear layer.
    """
    wanted = {
        option: switch.layers
        for option, switch in FULL_PRECISION_OPTIONS.items()
        if option in options.full_precision
    }
    wanted |= {f"--full-precision-mm-pattern {p}": p for p in options.full_precision_mm_pattern}
    marks = [
        Mark(Reason(Why.OPTION, option), select(model, pattern, option))
        for option, pattern in wanted.items()
    ]
    configured = (setting.names for setting in guides.settings if setting.full_precision)
    marks.append(Mark(BY_LAYER_CONFIG, frozenset().union(*configured)))
    if guides.listed is None:
        return marks, []
    name, (weights, unknown) = options.full_precision_mm_layers.name, guides.listed
    marks.append(Mark(Reason(Why.LAYER_LIST, name), weights))
    what = in_number(len(unknown), "names match nothing")
    note = Note(f"{name}: {what}: {examples(unknown)}", Rank.NOTE)
    # Names that match nothing are no error, as long as some do: `match_layer_list` sees to that.
    return marks, [note] if unknown else []


def sensitive_marks(options: Options, model: Model, guides: Guides) -> Iterator[Mark]:
    """Yield marks that are meant for 4-bit layers: the preset's, then those of measured figures.

    A preset marks no layer that a --layer-config names, and none that can have another format for
    what is sensitive. Measured figures count here only where their action is a full-precision
    matmul; those that ask for 16 bits are floors of the precision.
    """
    family, form = guides.family, preset_sensitive(options)
    if options.has_family and family.full_precision:
        marked = [
            ref
            for ref in model.linear_weights
            if form.takes_mark or not can_be(options, form, ref.shape)
        ]
        names = sensitive_names(family, {ref.name: bare(ref.layer) for ref in marked})
        # A --layer-config decides on full-precision matmul for all its layers, also where it is
        # silent.
        configured = frozenset().union(*(setting.names for setting in guides.settings))
        yield Mark(preset_reason(options, family), names - configured)
    for measured in guides.measured:
        if not measured.is_half:
            yield Mark(measured.reason, measured.weights)


def marks_by_precision(
    options: Options, model: Model, guides: Guides
) -> tuple[dict[Format, list[Mark]], list[str]]:
    """List each format's marks, and notes: {format: its marks, of which the first one counts}.

    A switch for all layers of a format, such as --fp8-full-precision-mm, takes the place of all
    others.
    """
    marks, notes = full_precision_marks(options, model, guides)
    # Sensitive layers were measured in 4 bits, and presets mean these alone.
    sensitive = [*marks, *sensitive_marks(options, model, guides)]
    found = {}
    for form in written_formats():
        found[form] = sensitive if form.has_nvfp4_input else marks if form.takes_mark else []
        option = form.full_precision_option
        if option and getattr(options, option):
            why = Reason(Why.OPTION, "--" + option.replace("_", "-"))
            found[form] = [Mark(why, model.tensors.keys())]
        if encoders := encoder_weights(model):
            found[form] = [Mark(IN_16_BITS, encoders), *found[form]]
    return found, notes


def sensitive_floors(options: Options, model: Model, marks: list[Mark]) -> list[Rule]:
    """Make floors of the marks of NVFP4 layers, where --sensitive-as makes other formats of them.

    What a --layer-config marks stays as it is written there, and layers are marked whose shape has
    no such format.
    """
    form = marked_format(options)
    if form.takes_mark:
        return []
    kept = frozenset(r.name for r in model.linear_weights if not can_be(options, form, r.shape))
    kept = kept.union(*(mark.names for mark in marks if mark.reason is BY_LAYER_CONFIG))
    return [
        Rule(names=mark.names - kept, precision=form, reason=mark.reason)
        for mark in marks
        if mark.reason not in (BY_LAYER_CONFIG, IN_16_BITS)
    ]


def kept_marks(options: Options, marks: list[Mark], chosen: set[str]) -> list[Rule]:
    """Make rules that keep layers which somebody named for full-precision matmul to that.

    marks: of NVFP4 layers; chosen: tensors that --target-size chose formats for. Of these, it gives
    the named ones no format that cannot be marked: they stay 16-bit instead. --sensitive-as says
    what else they may become.
    """
    if not marked_format(options).takes_mark:
        return []
    unmarked = frozenset(form for form in written_formats() if not form.takes_mark)
    return [
        Rule(
            names=frozenset(mark.names & chosen),
            precision=HALF,
            reason=mark.reason,
            instead_of=unmarked,
        )
        for mark in marks
        if mark.reason.kind in (Why.OPTION, Why.LAYER_LIST)
    ]


def attach_scale(plan: TensorPlan, row: Calibration | None) -> TensorPlan:
    """Give a quantised layer its input scale, or full-precision matmul where it must have one.

    `row` are the layer's calibrated scales, None without any. ComfyUI casts the input of an FP8
    layer without input_scale unscaled and clamps it at 448, so that such a layer gets
    full-precision matmul. An NVFP4 layer without one stays dynamic. Raises ConvertError for a scale
    that float32 cannot hold as a positive number.
    """
    if row is not None and plan.precision in row.scales:
        scale = row.scales[plan.precision]
        # Stored as float32: a tiny Python float would become 0, a huge one infinite.
        if not 0 < torch.tensor(scale, dtype=torch.float32) < math.inf:
            raise ConvertError(
                f"{plan.ref.layer}: input scale {scale:g} ({row.source}) is no positive float32"
            )
        return dataclasses.replace(plan, input_scale=scale, input_scale_source=row.source)
    if plan.precision.needs_input_scale and not plan.full_precision:
        why = Reason(Why.NO_INPUT_SCALE, f"{plan.precision} without an input scale")
        return dataclasses.replace(plan, full_precision=why)
    return plan


def as_scaled_fp8(plans: list[TensorPlan]) -> tuple[list[TensorPlan], list[str]]:
    """Turn FP8 layers into scaled FP8, which has one switch for full-precision matmul in the file.

    Returns the plans and a note. If any layer needs full-precision matmul, all of them get it; the
    note says so where the others would not have needed it. Raises ConvertError for layers whose
    format has no older form.
    """
    layers = [plan for plan in plans if plan.is_quantised]
    if others := [plan.ref.layer for plan in layers if not plan.precision.older_form]:
        raise ConvertError(f"--recipe scaled-fp8: has no form for {examples(others)}")
    needing = sum(
        # ComfyUI drops an input scale of exactly 1, and would take the layer for one without.
        bool(plan.full_precision) or np.float32(plan.input_scale) == 1
        for plan in layers
    )
    # One marker tensor tells ComfyUI of all layers: what one layer needs, all get.
    reason = Reason(Why.SHARED_SWITCH, f"{MARKER} holds for every layer") if needing else None
    shared = [
        dataclasses.replace(
            plan,
            precision=format_titled(plan.precision.older_form),
            full_precision=plan.full_precision or reason,
        )
        if plan.is_quantised
        else plan
        for plan in plans
    ]
    what = f"scaled FP8 has one switch for all its {len(layers)} layers"
    note = Note(f"{what}: full-precision matmul for all, as {needing} need it", Rank.NOTE)
    return shared, [note] if 0 < needing < len(layers) else []


def attach_recording(
    options: Options, plans: list[TensorPlan], recording: dict[str, Recorded]
) -> tuple[list[TensorPlan], list[str]]:
    """Add to plans what --activation-stats tells of their layers' inputs; return them with notes.

    `recording` is {bare layer: Recorded}: from it come the share of blocks that clip, and the
    statistics for rounding.
    """
    plans, clipped = count_saturated(plans, recording)
    plans, aware = attach_moments(options, plans, recording)
    return plans, [*clipped, *aware]


def count_saturated(
    plans: list[TensorPlan], recording: dict[str, Recorded]
) -> tuple[list[TensorPlan], list[str]]:
    """Add the share of recorded blocks that clip at each NVFP4 layer's input scale, with notes.

    A block of 16 channels clips where its scale would exceed E4M3's 448. A note names the layers in
    which that is more than MANY_SATURATED of the blocks.
    """
    counted = []
    for plan in plans:
        recorded = recording.get(bare(plan.ref.layer))
        # A dynamic scale follows its input and clips nothing; FP8 layers have no blocks.
        if recorded and plan.has_nvfp4_input and plan.input_scale is not None:
            clipped = recorded.saturated(plan.input_scale)
            counted.append(dataclasses.replace(plan, saturated_blocks=clipped))
        else:
            counted.append(plan)
    notes = []
    many = [plan.ref.layer for plan in counted if (plan.saturated_blocks or 0) > MANY_SATURATED]
    if many:
        what = f"clip more than {MANY_SATURATED:.1%} of the blocks recorded"
        told = f"input scales of {in_number(len(many), 'layers')} {what}: {examples(many)}"
        notes.append(Note(told, Rank.WARNING))
    return counted, notes


def attach_moments(
    options: Options, plans: list[TensorPlan], recording: dict[str, Recorded]
) -> tuple[list[TensorPlan], list[str]]:
    """Give quantised layers the statistics to round them by, and the bias that goes along.

    Rounding may move a layer's mean output, which its bias makes up for, so that the bias is
    planned with the weight; where only the mean of an input is known, the bias alone moves. Returns
    the plans with notes on layers without statistics, and on recordings or options by which nothing
    is done.
    """
    # By name, as a layer's bias is a tensor of its own with a plan of its own.
    biases = {plan.ref.name: plan for plan in plans if plan.ref.is_float}
    given = [
        with_statistics(plan, recording, biases.get(f"{plan.ref.layer}.bias"))
        if plan.is_quantised
        else plan
        for plan in plans
    ]
    if not any(plan.moments or plan.mean is not None for plan in given):
        # A recording without second moments still gives scales and the counts of what clips.
        if not recording or any(plan.input_scale for plan in plans):
            return plans, []
        none = "has no second moments, and gives no input scales without --input-scale-policy"
        what = f"--activation-stats {none} headroom: nothing is done with it"
        return plans, [Note(what, Rank.WARNING)]
    # That search looks at weights alone, and who asks for it gets no rounding by statistics.
    if options.scale_search == "amax":
        what = "--scale-search amax: second moments and means are not used"
        return plans, [Note(what, Rank.NOTE)]
    return given, notes_on_statistics(given)


def with_statistics(
    plan: TensorPlan, recording: dict[str, Recorded], bias: TensorPlan | None
) -> TensorPlan:
    """Give one quantised layer what a recording has of it, second moments before means.

    bias: the plan of its bias, None without one, which means alone can do nothing for.
    """
    recorded = recording.get(bare(plan.ref.layer))
    if recorded is None:
        return plan
    if recorded.moments:
        return dataclasses.replace(plan, moments=recorded.moments, bias=bias)
    mean = recorded.sums.mean if recorded.sums and bias else None
    return plan if mean is None else dataclasses.replace(plan, mean=mean, bias=bias)


def notes_on_statistics(plans: list[TensorPlan]) -> list[str]:
    """Tell of quantised layers that are not rounded by statistics, and what is done instead."""
    multiplied = (plan for plan in plans if plan.is_quantised and not plan.is_looked_up)
    lacking = [plan for plan in multiplied if not plan.moments]
    moved = [plan.ref.layer for plan in lacking if plan.mean is not None]
    notes = []
    if lacking:
        what = in_number(len(lacking), "layers have no second moments, and the plain search")
        names = examples([plan.ref.layer for plan in lacking])
        notes.append(Note(f"{what}: {names}", Rank.NOTE))
    if moved:
        what = "make up for the mean error, as the mean is most of their input"
        told = f"biases of {len(moved)} of these {what}: {examples(moved)}"
        notes.append(Note(told, Rank.INFORMATION))
    return notes
