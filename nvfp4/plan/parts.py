"""Plan text encoders that lie beside a diffusion model: each as if it were a file of its own.

A checkpoint's encoder is taken out under its names without prefix, planned by its own row, and put
back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from nvfp4.guides.records import Guides
from nvfp4.model import Model
from nvfp4.notes import Note
from nvfp4.options import Options, part_options
from nvfp4.plan.records import Plan, TensorPlan

Planner = Callable[[Options, Model, Guides], Plan]


class PlannedParts(NamedTuple):
    """Hold the plans of text encoders, {tensor in the file: plan}, and notes on them."""

    plans: dict[str, TensorPlan]
    notes: tuple[str, ...]


def plan_parts(options: Options, model: Model, guides: Guides, planner: Planner) -> PlannedParts:
    """Plan all text encoders that lie beside the diffusion model and are converted.

    planner: plans a model that is one file. Each note begins with the prefix of its encoder. Raises
    ConvertError as the planner does.
    """
    plans, notes = {}, []
    for part in model.encoders:
        if not part.prefix:
            continue
        plan = planner(part_options(options), model.alone(part), guides.parts[part.prefix])
        for one in plan.plans:
            ref = model.tensors[part.prefix + one.ref.name]
            # --target-size chooses for the diffusion model alone.
            plans[ref.name] = dataclasses.replace(one, ref=ref, is_open=False)
        told = map(Note.of, plan.notes)
        notes += [Note(f"{part.prefix}*: {note}", note.rank) for note in told]
    return PlannedParts(plans, tuple(notes))
