"""Round a layer to the least error of its output.

`numeric.feedback` has the algorithm. Here the damping is chosen on some rows of the weight, the
whole weight is rounded, the bias makes up for the mean error, and output errors are measured before
and after: a layer that does not gain keeps what the plain search gave.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import torch

from nvfp4.encode.compute import Compute
from nvfp4.formats.base import Format
from nvfp4.formats.encoding import Encoded
from nvfp4.guides.recording import load_statistics
from nvfp4.numeric.codes import largest_magnitude, quantised_rows
from nvfp4.numeric.damage import Damage, damage_unit, squared
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.feedback import (
    MORE_DAMPINGS,
    Feedback,
    Rounder,
    Statistics,
    make_feedback,
    output_error,
)
from nvfp4.numeric.grids import Grid
from nvfp4.numeric.rotation import rotate
from nvfp4.numeric.scale_search import LEAST_SEARCHED_SCALE
from nvfp4.plan.records import TensorPlan
from nvfp4.read.tensors import load

# About this many rows of a weight, evenly spaced, decide which damping it gets.
DAMPING_ROWS = 256
# Rows of a weight that a thread rounds at once; a GPU takes all of them.
FEEDBACK_ROWS = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Hold how a layer is rounded by its statistics.

    feedback: the second moment of its input, damped and factored; mean: that of its input [K],
    zeros where no bias makes up for it; both are in the basis of the stored weight, rotated where
    the format is. format, scale: of the layer, whose block scales alone are
    chosen anew; grid: what is rounded to; largest: the largest unit of a row, or one near the
    largest weight where rows have none, in units of the scale; dtype: what weights are cast to
    first (--quant-dtype).
    """

    rounder: Rounder
    feedback: Feedback
    mean: torch.Tensor
    format: Format
    grid: Grid
    scale: torch.Tensor
    largest: torch.Tensor
    dtype: torch.dtype

    def in_units(
        self, rows: torch.Tensor, *by_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring rows of a weight into the basis and the units that they are rounded in.

        rows: [n, K]; by_rows: block scales and the like of their encoding. Returns the values
        [n, K], rotated where the format is, each row in units of its own; and these units over the
        largest one, [1, n] or [].
        """
        # In units of the scale, one feedback and one set of codes serve weights of any size.
        values = rotate(rows.to(self.dtype).float() / self.scale, self.format.rotated)
        units = self.format.row_units(*by_rows)
        return values / units, (units / self.largest).t()


def round_by_moments(
    plan: TensorPlan,
    weight: torch.Tensor,
    plain: Encoded,
    compute: Compute,
    rows: slice = slice(None),
) -> tuple[Encoded, torch.Tensor | None]:
    """Round a layer to the least output error, and move its bias along, if that gains.

    weight: [N, K] on the device that computes, smoothing applied; plain: what the scale search
    gave; rows: which rows of the layer's weight these are. Returns the encoding, with output errors
    in its damage, and the new bias [N] or None.
    `plain` comes back with no bias where no second moment is positive definite, and where rounding
    does not lower the output error.
    """
    grid = plan.precision.grid
    # Groups that padding fills up have no statistics.
    can = grid is not None and weight.shape[1] % grid.group == 0
    rounding = choose_rounding(plan, weight, plain, compute) if can else None
    if rounding is None:
        return plain, None
    # The plain result goes along, by the same chunks of rows, so that both errors are measured.
    parts = [torch.cat(plain.codes), *plain.by_rows]
    made = compute.map(partial(round_piece, rounding), weight, *parts, rows=FEEDBACK_ROWS)
    # Everything was measured in units of the scale; squared errors take its square.
    codes, *by_rows, errors, means, damages = zip(*made, strict=True)
    unit = float(plain.scale * rounding.largest)
    energy, before, after = (sum(column) * unit**2 for column in zip(*errors, strict=True))
    # The feedback is that of the covariance where a bias makes up for the mean; what the mean
    # contributes to output and errors is added here.
    # In float64, which holds the squares of any weights.
    output, drift, new_drift = torch.cat(means, dim=1).double() * unit
    energy, before = energy + squared(output), before + squared(drift)
    bias, moved, left = moved_bias(plan, new_drift.float(), rows)
    # Written so that NaN keeps the plain result, too.
    if not after + left < before:
        best, after, bias, moved = plain, before, None, 0.0
    else:
        after += left
        damage = Damage.total(damages, plain.scale * rounding.largest)
        whole = tuple(map(torch.cat, by_rows))
        best = Encoded(codes=codes, by_rows=whole, scale=plain.scale, damage=damage)
    measured = {
        "output_before": math.sqrt(before / energy) if energy else 0.0,
        "output_after": math.sqrt(after / energy) if energy else 0.0,
    }
    if plan.precision.has_nvfp4_input:
        measured["output_w4a4"] = w4a4_error(plan, weight, best, moved, compute)
    return dataclasses.replace(best, damage=dataclasses.replace(best.damage, **measured)), bias


def choose_rounding(
    plan: TensorPlan, weight: torch.Tensor, plain: Encoded, compute: Compute
) -> Rounding | None:
    """Choose the damping that has the least output error on some rows of a weight.

    Returns None where no damping leaves the second moment positive definite, and where the scale is
    so small that block scales cannot be searched.
    """
    form, given = plan.precision, recall_statistics(plan, compute)
    feedbacks = recall_feedbacks(plan, given, compute)
    if not feedbacks or plain.scale < LEAST_SEARCHED_SCALE:
        return None
    mean = given.mean if plan.bias is not None else torch.zeros_like(given.mean)
    units = form.row_units(*plain.by_rows)
    # Rows without units of their own are measured near the largest weight: see `damage_unit`.
    largest = units.amax() if units.dim() else damage_unit(largest_magnitude(weight) / plain.scale)
    rounding = Rounding(
        rounder=compute.rounder,
        feedback=feedbacks[0],
        mean=rotate(mean.unsqueeze(0), form.rotated).squeeze(0),
        format=form,
        grid=form.grid_of(*plain.by_rows),
        scale=plain.scale,
        largest=largest,
        dtype=compute.dtype,
    )
    # A single feedback needs no trial; of several, each rounds some rows without a sweep.
    if len(feedbacks) == 1:
        return rounding
    each = slice(None, None, max(1, len(weight) // DAMPING_ROWS))
    rows, *by_rows = (tensor[each] for tensor in (weight, *plain.by_rows))
    some, weights = rounding.in_units(rows, *by_rows)

    def error(feedback: Feedback) -> float:
        found = compute.rounder.round_rows(some, feedback, rounding.grid, 0)
        return output_error(found.residual * weights, feedback)

    errors = [*compute.pool.map(error, feedbacks)]
    return dataclasses.replace(rounding, feedback=feedbacks[errors.index(min(errors))])


def recall_feedbacks(plan: TensorPlan, given: Statistics, compute: Compute) -> list[Feedback]:
    """Make the feedbacks of the dampings worth trying, or recall them.

    They are remembered for the layers that share the input, the basis and the size of groups. An
    empty list tells that no damping leaves the second moment positive definite.
    """
    form, centred = plan.precision, plan.bias is not None

    def make(_: object, __: torch.device) -> list[Feedback | None]:
        turned = given.rotated(form.rotated)
        maker = partial(make_feedback, turned, group=form.grid.group, centred=centred)
        found = [*compute.pool.map(maker, given.dampings)]
        # Means far larger than deviations leave the covariance few of its bits: damp it more.
        more = (damping for damping in MORE_DAMPINGS if damping > given.dampings[-1])
        return found if any(found) else [next(filter(None, map(maker, more)), None)]

    # Smoothing makes the input a layer's own.
    own = plan.ref.name if plan.smoothing is not None else ""
    key = (plan.moments, form.grid.group, form.rotated, centred, own)
    return [*filter(None, compute.recall(key, make))]


def recall_statistics(plan: TensorPlan, compute: Compute) -> Statistics:
    """Load the statistics of what a layer's weight multiplies, or recall them.

    Smoothing multiplies the input, so that mean, second moment and rows are scaled by it.
    """
    given = compute.recall(plan.moments, load_statistics)
    if plan.smoothing is None:
        return given
    # With D the diagonal of smoothing factors, X becomes X D, and X^T X becomes D X^T X D.
    scale = plan.smoothing.to(compute.device).float()
    second = given.second * scale * scale.unsqueeze(1)
    mean, rows = given.mean * scale, given.rows * scale
    return dataclasses.replace(given, mean=mean, second=second, rows=rows)


def round_piece(rounding: Rounding, rows: torch.Tensor, *plain: torch.Tensor) -> tuple:
    """Round some rows of a weight, and measure them against what the plain search stores.

    rows: [n, K]; plain: their codes and block scales. Returns, in units of the layer's scale times
    the largest row's unit:
      - the new codes and block scales, one result each;
      - squared output, error before, and error after, without what the mean adds;
      - the means of output, error before and error after, [3, n];
      - the damage of the weight.
    """
    form, feedback, by_rows = rounding.format, rounding.feedback, plain[1:]
    values, weights = rounding.in_units(rows, *by_rows)
    rounded = rounding.rounder.round_rows(values, feedback, rounding.grid)
    decoded = form.decode(*plain, torch.ones_like(rounding.scale))
    decoded = rotate(decoded, form.rotated) / form.row_units(*by_rows)
    before = (values - decoded).t()[feedback.order]
    # Rows count by their units: all is in units of the largest row's from here on.
    parts = (values.t()[feedback.order], before, rounded.residual)
    parts = [part * weights for part in parts]
    errors = [output_error(part, feedback) for part in parts]
    # By the mean input, each part gives the mean of an output, or of its error.
    means = torch.stack([rounding.mean[feedback.order] @ part for part in parts])
    damage = Damage(error=squared(parts[2]), energy=squared(parts[0]))
    return *form.round_to_levels(rounded, feedback, by_rows), errors, means, damage


def bias_by_mean(
    plan: TensorPlan, weight: torch.Tensor, plain: Encoded, compute: Compute, which: slice
) -> torch.Tensor:
    """Move a layer's bias by the mean of its input alone, and leave the weight as it is.

    weight: [N, K], the rows `which` of the layer; plain: its encoding. What the decoded weight
    makes of the mean input is off by as much as the new bias [N] adds, in its output dtype.
    """
    mean = torch.from_numpy(plan.mean).to(compute.device)

    def error(rows: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        decoded = plan.precision.decode(*parts, plain.scale)
        return (rows.float() - decoded[:, : len(mean)]) @ mean

    parts = (torch.cat(plain.codes), *plain.by_rows)
    drift = torch.cat(compute.map(error, weight, *parts, rows=FEEDBACK_ROWS))
    return moved_bias(plan, drift, which)[0]


def moved_bias(
    plan: TensorPlan, drift: torch.Tensor, rows: slice
) -> tuple[torch.Tensor | None, torch.Tensor | float, float]:
    """Move a layer's bias so that it makes up for the mean error of the rounded weight.

    drift: [N] float32, the mean error of each output; rows: which rows of the layer these are.
    Returns the new bias [N] in its output dtype, its change [N] float32, and the squared error that
    casting leaves; None, 0 and 0 without a bias.
    """
    if plan.bias is None:
        return None, 0.0, 0.0
    bias = load(plan.bias.ref)[rows].to(drift.device).float()
    # Casting the bias to the dtype that it is stored in leaves some of the drift.
    moved = (bias + drift).to(TORCH_DTYPES[plan.bias.dtype])
    return moved, moved.float() - bias, squared((bias + drift - moved.float()).double())


def w4a4_error(
    plan: TensorPlan,
    weight: torch.Tensor,
    stored: Encoded,
    moved: torch.Tensor | float,
    compute: Compute,
) -> float:
    """Measure the relative RMSE of a layer's output where activations are 4-bit, too.

    weight: [N, K], smoothing applied; stored: its encoding; moved: the change of its bias, or 0.
    The recorded rows are quantised as ComfyUI does it on Blackwell, by the layer's input scale if
    it has one, and multiplied by the decoded weight; matmul is float32.
    """
    rows = recall_statistics(plan, compute).rows
    quantised = quantised_rows(rows, plan.input_scale)
    # The error is relative: in units near the largest weight, squares stay in float32's range.
    unit = damage_unit(largest_magnitude(weight))

    def outputs(some: torch.Tensor, *parts: torch.Tensor) -> tuple:
        exact = rows @ (some.float() / unit).t()
        decoded = plan.precision.decode(*parts, stored.scale / unit)
        return exact, quantised @ decoded.t() - exact

    parts = (torch.cat(stored.codes), *stored.by_rows)
    made = compute.map(outputs, weight, *parts, rows=FEEDBACK_ROWS)
    exact, error = (torch.cat(parts, dim=1) for parts in zip(*made, strict=True))
    energy = squared(exact)
    return math.sqrt(squared(error + moved / unit) / energy) if energy else 0.0
