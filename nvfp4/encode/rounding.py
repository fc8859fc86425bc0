"""Rounding a layer to the least error of its output."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import torch

from nvfp4.encode.compute import Compute
from nvfp4.formats.base import Encoded, Format
from nvfp4.guides.recording import load_statistics
from nvfp4.numeric.codes import quantised_rows
from nvfp4.numeric.damage import Damage, squared
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.feedback import (
    MORE_DAMPINGS,
    Feedback,
    Rounder,
    Statistics,
    make_feedback,
    output_error,
)
from nvfp4.numeric.scale_search import LEAST_SEARCHED_SCALE
from nvfp4.plan.records import TensorPlan
from nvfp4.read.tensors import load

DAMPING_ROWS = 256
FEEDBACK_ROWS = 1280  # of a weight, that a thread rounds at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How a layer is rounded by its statistics."""

    rounder: Rounder
    feedback: Feedback
    mean: torch.Tensor  # of its input [K], in the feedback's order; zeros without a bias
    format: Format
    scale: torch.Tensor
    dtype: torch.dtype


def round_by_moments(
    plan: TensorPlan, weight: torch.Tensor, plain: Encoded, compute: Compute
) -> tuple[Encoded, torch.Tensor | None]:
    """The layer rounded to the least output error, and the bias that goes with it if it gains.

    Where no second moment is positive definite, and where rounding by it does not lower the output
    error, `plain` comes back.
    """
    rounding = choose_rounding(plan, weight, plain, compute) if plan.precision.grid else None
    if rounding is None:
        return plain, None
    parts = [torch.cat(plain.codes), *plain.by_rows]
    made = compute.map(partial(round_piece, rounding), weight, *parts, rows=FEEDBACK_ROWS)
    codes, *by_rows, errors, means, damages = zip(*made, strict=True)
    unit = float(plain.scale)
    energy, before, after = (sum(column) * unit**2 for column in zip(*errors, strict=True))
    output, drift, new_drift = torch.cat(means, dim=1) * unit
    energy, before = energy + squared(output), before + squared(drift)
    bias, moved, left = moved_bias(plan, new_drift)
    if not after + left < before:
        best, after, bias, moved = plain, before, None, 0.0
    else:
        after += left
        damage = Damage.total(damages, plain.scale)
        whole = tuple(map(torch.cat, by_rows))
        best = Encoded(codes=codes, by_rows=whole, scale=plain.scale, damage=damage)
    measured = {
        "output_before": math.sqrt(before / energy) if energy else 0.0,
        "output_after": math.sqrt(after / energy) if energy else 0.0,
    }
    if plan.precision.activation_bits == 4:
        measured["output_w4a4"] = w4a4_error(plan, weight, best, moved, compute)
    return dataclasses.replace(best, damage=dataclasses.replace(best.damage, **measured)), bias


def choose_rounding(
    plan: TensorPlan, weight: torch.Tensor, plain: Encoded, compute: Compute
) -> Rounding | None:
    """With the damping that has the least output error on some rows; None without a feedback."""
    given, centred = recall_statistics(plan, compute), plan.bias is not None
    grid, group = plan.precision.grid, plan.precision.group

    def make(_: object, __: torch.device) -> list[Feedback | None]:
        maker = partial(make_feedback, given, group=group, centred=centred)
        found = [*compute.pool.map(maker, given.dampings)]
        # Means far larger than deviations leave the covariance few of its bits: damp it more.
        more = (damping for damping in MORE_DAMPINGS if damping > given.dampings[-1])
        return found if any(found) else [next(filter(None, map(maker, more)), None)]

    def error(feedback: Feedback) -> float:
        return output_error(compute.rounder.round_rows(some, feedback, grid, 0).residual, feedback)

    own = plan.ref.name if plan.smoothing is not None else ""
    feedbacks = [*filter(None, compute.recall((plan.moments, group, centred, own), make))]
    if not feedbacks or plain.scale < LEAST_SEARCHED_SCALE:
        return None
    best = feedbacks[0]
    if len(feedbacks) > 1:
        some = weight[:: max(1, len(weight) // DAMPING_ROWS)].to(compute.dtype).float()
        some = some / plain.scale
        errors = [*compute.pool.map(error, feedbacks)]
        best = feedbacks[errors.index(min(errors))]
    mean = given.mean if centred else torch.zeros_like(given.mean)
    return Rounding(
        rounder=compute.rounder,
        feedback=best,
        mean=mean[best.order],
        format=plan.precision,
        scale=plain.scale,
        dtype=compute.dtype,
    )


def recall_statistics(plan: TensorPlan, compute: Compute) -> Statistics:
    """Of what the layer's weight multiplies."""
    given = compute.recall(plan.moments, load_statistics)
    if plan.smoothing is None:
        return given
    scale = plan.smoothing.to(compute.device).float()
    second = given.second * scale * scale.unsqueeze(1)
    mean, rows = given.mean * scale, given.rows * scale
    return dataclasses.replace(given, mean=mean, second=second, rows=rows)


def round_piece(rounding: Rounding, rows: torch.Tensor, *plain: torch.Tensor) -> tuple:
    """Rows [n, K] of a weight and what the plain search stores of them -> what is stored now, the
    squared outputs, errors before and after, their means [3, n], and the damage; in its units.
    """
    feedback, unit = rounding.feedback, rounding.scale
    values = rows.to(rounding.dtype).float() / unit
    rounded = rounding.rounder.round_rows(values, feedback, rounding.format.grid)
    decoded = rounding.format.decode(*plain, torch.ones_like(unit))
    before = (values - decoded).t()[feedback.order]
    parts = (values.t()[feedback.order], before, rounded.residual)
    errors = [output_error(part, feedback) for part in parts]
    means = torch.stack([rounding.mean @ part for part in parts])
    damage = Damage(error=squared(rounded.residual), energy=squared(values))
    return *rounding.format.round_to_levels(rounded, feedback), errors, means, damage


def moved_bias(
    plan: TensorPlan, drift: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | float, float]:
    """The layer's bias [N] with a mean error [N] made up for, its change, and what is left."""
    if plan.bias is None:
        return None, 0.0, 0.0
    bias = load(plan.bias.ref).to(drift.device).float()
    moved = (bias + drift).to(TORCH_DTYPES[plan.bias.dtype])
    return moved, moved.float() - bias, squared(bias + drift - moved.float())


def w4a4_error(
    plan: TensorPlan,
    weight: torch.Tensor,
    stored: Encoded,
    moved: torch.Tensor | float,
    compute: Compute,
) -> float:
    """Relative RMSE of the layer's output for recorded rows, quantised as they are on Blackwell."""
    rows = recall_statistics(plan, compute).rows
    quantised = quantised_rows(rows, plan.input_scale)

    def outputs(some: torch.Tensor, *parts: torch.Tensor) -> tuple:
        exact = rows @ some.float().t()
        decoded = plan.precision.decode(*parts, stored.scale)
        return exact, quantised @ decoded.t() - exact

    parts = (torch.cat(stored.codes), *stored.by_rows)
    made = compute.map(outputs, weight, *parts, rows=FEEDBACK_ROWS)
    exact, error = (torch.cat(parts, dim=1) for parts in zip(*made, strict=True))
    energy = squared(exact)
    return math.sqrt(squared(error + moved) / energy) if energy else 0.0
