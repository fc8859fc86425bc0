"""Plan text encoders that lie beside a diffusion model: each as if it were a file of its own.

A checkpoint's encoder is taken out under its names without prefix, planned by its own row, and put
back. What names layers, sizes or files is meant for the diffusion model, and left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from nvfp4.guides.family import find_family
from nvfp4.guides.records import Guides
from nvfp4.model import Model, ModelPart
from nvfp4.notes import Note
from nvfp4.options import GENERAL, Options, options_of
from nvfp4.plan.records import Plan, TensorPlan

# Options besides the general ones that are for text encoders as well.
SHARED_OPTIONS = ("formats", "card")
Planner = Callable[[Options, Model, Guides], Plan]


class PlannedParts(NamedTuple):
    """Hold the plans of text encoders, {tensor in the file: plan}, and notes on them."""

    plans: dict[str, TensorPlan]
    notes: tuple[str, ...]


def part_options(options: Options) -> Options:
    """Make the options of a text encoder: --text-encoder-preset is its preset."""
    others = {
        row.name: row.default
        for row in options_of(Options)
        if row.group not in ("", GENERAL) and row.name not in SHARED_OPTIONS
    }
    others["preset"] = options.text_encoder_preset
    return dataclasses.replace(options, **others)


def plan_parts(options: Options, model: Model, planner: Planner) -> PlannedParts:
    """Plan all text encoders that lie beside the diffusion model and are converted.

    planner: plans a model that is one file. Raises ConvertError as that does.
    """
    plans, notes = {}, []
    for part in model.encoders:
        if part.prefix:
            found = plan_part(part_options(options), model, part, planner)
            plans |= found.plans
            notes += found.notes
    return PlannedParts(plans, tuple(notes))


def plan_part(options: Options, model: Model, part: ModelPart, planner: Planner) -> PlannedParts:
    """Plan one text encoder, by names without its prefix; each note begins with the prefix."""
    inside = {
        name.removeprefix(part.prefix): ref
        for name, ref in model.tensors.items()
        if name.startswith(part.prefix)
    }
    tensors = {name: dataclasses.replace(ref, name=name) for name, ref in inside.items()}
    alone = Model(tensors=tensors, metadata={}, files=model.files, encoders=(ModelPart(part.row),))
    family, notes = find_family(options, alone)
    plan = planner(options, alone, Guides(family=family, notes=tuple(notes)))
    # --target-size chooses for the diffusion model alone.
    put_back = partial(dataclasses.replace, is_open=False)
    plans = {
        inside[one.ref.name].name: put_back(one, ref=inside[one.ref.name]) for one in plan.plans
    }
    told = map(Note.of, plan.notes)
    return PlannedParts(plans, tuple(Note(f"{part.prefix}*: {one}", one.rank) for one in told))
