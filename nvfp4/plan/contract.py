"""Make the rules that follow from ComfyUI's own classes: what may be quantised at all.

ComfyUI loads packed weights into linear layers alone, and recognises models by the shapes of some
of them. `modules` knows which; the rules made here are least precisions, whatever chose another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Set

from nvfp4.dtypes import FP4_MATMUL_N
from nvfp4.errors import examples, in_number, percentage
from nvfp4.formats.base import Format
from nvfp4.formats.floats import HALF
from nvfp4.model import Model, TensorRef, bare
from nvfp4.modules import is_doubtful, not_linear, shape_read
from nvfp4.notes import Note, Rank
from nvfp4.plan.records import Rule, TensorPlan
from nvfp4.reasons import Reason, Why


def is_exact(pattern: str, ref: TensorRef) -> bool:
    """Tell whether a pattern is the full name of a layer, and so no sweep over many.

    The name may have its prefix and `.weight`, dots may be escaped, and ^ and $ stand around it.
    """
    name = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^").removesuffix("$")).lower()
    return name in {known.lower() for known in (bare(ref.layer), ref.layer, ref.name)}


def doubtful_layers(model: Model, included: tuple[str, ...]) -> frozenset[str]:
    """Name the weights that may be no linear layers' and that none of `included` names exactly."""
    return frozenset(
        ref.name
        for ref in model.linear_weights
        if ref.module is None
        and is_doubtful(bare(ref.layer), ref.shape, has_bias=f"{ref.layer}.bias" in model.tensors)
        and not any(is_exact(pattern, ref) for pattern in included)
    )


def module_instead(ref: TensorRef) -> str:
    """Say what ComfyUI has for a weight instead of a linear layer, "" where it has one."""
    if ref.module is not None:
        return ref.module and f"your ComfyUI has a {ref.module} there, and no linear layer"
    return str(not_linear(bare(ref.layer)) or "")


def embedding_rules(model: Model, asked: Set[str] = frozenset()) -> list[Rule]:
    """Make a rule for each kind of weights that are no linear layers' in ComfyUI's classes.

    asked: weights that have none, as a --layer-config quantises them by their names.
    """
    groups = defaultdict(set)
    for ref in model.tensors.values():
        if ref.is_matrix and ref.name not in asked and (found := module_instead(ref)):
            groups[found].add(ref.name)
    return [
        Rule(names=frozenset(names), precision=HALF, reason=Reason(Why.SOURCE, found))
        for found, names in groups.items()
    ]


def recognition_rules(model: Model, unpadded: Format) -> list[Rule]:
    """Make the rules for layers whose shape ComfyUI reads.

    Where it reads columns, which packing halves, the layer stays 16-bit; so do layers outside the
    numbered blocks whose rows it reads, as these are inputs and outputs of the whole model. Rows of
    layers in blocks are only not padded: they are `unpadded` instead of formats that pad rows. Such
    a format would keep any shape, but the others are few, and a file whose first layers are plain
    numbers can still be told by any program.
    """
    padding = frozenset(row for row in Format.rows if row.row_multiple > 1)
    groups = defaultdict(set)
    for ref in model.linear_weights:
        read = shape_read(bare(ref.layer))
        if read and (read.columns or not read.in_block):
            groups[read.classes, HALF, frozenset()].add(ref.name)
        elif read and ref.shape[0] % FP4_MATMUL_N:
            groups[read.classes, unpadded, padding].add(ref.name)
    return [
        Rule(
            names=frozenset(names),
            precision=precision,
            reason=Reason(Why.RECOGNITION, f"ComfyUI recognises {classes} by its shape"),
            instead_of=instead_of,
        )
        for (classes, precision, instead_of), names in groups.items()
    ]


def contract_rules(
    model: Model, included: tuple[str, ...], unpadded: Format, embeddings: Set[str]
) -> list[Rule]:
    """List the least precisions that ComfyUI's classes ask for.

    included: the patterns of --include, and the keys of --layer-config that quantise; unpadded: the
    format for layers whose rows must not be padded; embeddings: those that it quantises.
    """
    doubt = Reason(Why.DOUBTFUL, "maybe no linear layer, by its name or shape")
    doubtful = doubtful_layers(model, included)
    return [
        *embedding_rules(model, embeddings),
        *recognition_rules(model, unpadded),
        Rule(names=doubtful, precision=HALF, reason=doubt),
    ]


def contract_notes(model: Model, plans: list[TensorPlan]) -> list[str]:
    """Note layers that stay 16-bit because they may be no linear layers, and banks of experts.

    Only layers that would have been quantised otherwise are noted.
    """
    notes = []
    doubtful = [plan.ref.layer for plan in plans if plan.reason.kind is Why.DOUBTFUL]
    if doubtful:
        what = in_number(len(doubtful), "layers stay 16-bit")
        why = "as names or shapes may be those of embeddings or routers"
        how = "--include with a layer's full name packs it"
        notes.append(Note(f"{what}, {why}: {examples(doubtful)}; {how}", Rank.HINT))
    beside = model.beside
    banks = [plan.ref for plan in plans if plan.ref.is_expert_bank and plan.ref.name not in beside]
    if banks:
        share = percentage(sum(ref.nbytes for ref in banks), model.nbytes)
        names = examples(ref.name for ref in banks)
        what = in_number(len(banks), "tensors are not quantised")
        why = f"as they have several experts' weights each, {share} of the source's bytes"
        notes.append(Note(f"{what}, {why}: {names}", Rank.NOTE))
    return notes
