"""Tell the multiply work of planned layers: how each is multiplied, and by how many tokens."""

from __future__ import annotations

from collections.abc import Iterable

from nvfp4.cards import UNITS
from nvfp4.families import ENCODERS, recognise
from nvfp4.model import OTHER_PARTS, Model, bare
from nvfp4.plan.records import TensorPlan
from nvfp4.reasons import Why
from nvfp4.tokens import ENCODER_FAMILY, tokens_of
from nvfp4.work import SMOOTHING_SINCE, Multiplied, Work, work_of


def multiplied(plan: TensorPlan) -> Multiplied:
    """Tell how ComfyUI multiplies by a layer, or by one of a bank of experts.

    A quantised embedding has no weights to multiply by, but needs its version of ComfyUI.
    """
    ref, layer = plan.ref, bare(plan.ref.layer)
    if plan.is_looked_up:
        form = plan.format
        return Multiplied(layer, 0, since=form.embedding_since, kitchen=form.since_kitchen)
    # A text encoder beside the model multiplies once for a prompt, and not in each step.
    weights = 0 if ref.name.startswith(OTHER_PARTS) else plan.weights // experts_in(plan)
    if not (plan.is_quantised or ref.config):
        return Multiplied(layer, weights)
    shape = plan.format.logical_shape(ref.shape[-2:], None) if ref.config else ref.shape
    is_marked = bool(plan.config.get("full_precision_matrix_mult"))
    word = plan.format.runs_as(shape, full_precision=is_marked)
    if plan.full_precision and plan.full_precision.kind is Why.ENCODER:
        word = "16bit"
    since = plan.format.since if plan.smoothing is None else SMOOTHING_SINCE
    return Multiplied(layer, weights, word, since, plan.format.since_kitchen)


def is_in_fp4(plan: TensorPlan) -> bool:
    """Tell whether Blackwell multiplies by a tensor in FP4: a W4A4 layer, of a shape that fits."""
    return plan.is_multiplied and UNITS[multiplied(plan).word] == "FP4"


def experts_in(plan: TensorPlan) -> int:
    """Count the experts whose weights are in a tensor [E, N, K], or configured for [E * N, K]."""
    shape, count = plan.ref.shape, plan.config.get("num_experts")
    if len(shape) == 3:
        return max(shape[0], 1)
    return count if isinstance(count, int) and count > 0 and shape[0] % count == 0 else 1


def family_of(plans: Iterable[TensorPlan]) -> str:
    """Find the family of a model by the plans of all its tensors; "" where it is of none.

    For a text encoder it is ENCODER_FAMILY.
    """
    refs = {plan.ref.name: plan.ref for plan in plans}
    name, _ = recognise(Model(tensors=refs, metadata={}, files=()))
    return ENCODER_FAMILY if name in ENCODERS else name


def planned_work(plans: Iterable[TensorPlan]) -> Work:
    """Add up the multiply work of a model's linear layers and convolutions, by format."""
    plans = [*plans]
    told = (p for p in plans if p.is_multiplied or p.is_looked_up or p.is_convolution)
    return work_of(map(multiplied, told), family_of(plans))


def work_by_weight(plans: Iterable[TensorPlan]) -> dict[str, float]:
    """Share the multiply work between linear layers and convolutions: {weight's name: share}.

    plans: of all tensors of the model. How a layer is multiplied makes no difference. The shares
    add up to 1.
    """
    plans = [*plans]
    family = family_of(plans)
    counts = {}
    for plan in plans:
        if plan.is_multiplied or plan.is_convolution:
            found = multiplied(plan)
            counts[plan.ref.name] = found.weights * tokens_of(found.layer, family)
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items()}
