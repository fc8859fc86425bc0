"""Rounding by the statistics of a layer's input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nvfp4.dtypes import BLOCK_SIZE, E2M1_MAX
from nvfp4.errors import ConvertError
from nvfp4.numeric.codes import (
    E2M1,
    E4M3_ONE,
    FLOAT32_EXPONENT,
    FloatGrid,
    e4m3_code_of_at_least,
    e4m3_value,
)
from nvfp4.numeric.scale_search import candidate_codes

# Rounding with feedback: damping is tried on some rows of a weight, relative to the mean of the
# second moment's diagonal.
DAMPINGS = (0.002, 0.02)
MORE_DAMPINGS = (0.1, 0.3, 1.0)  # where none of those leaves it positive definite
SWEEPS = 1  # over all columns after they were rounded once: the second gained a third of the first
FEEDBACK_BATCH = 128  # columns whose errors reach all others by one matrix product


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of a layer's recorded input of K channels: mean [K], second moment [K, K], rows [r, K]."""

    mean: torch.Tensor
    second: torch.Tensor
    rows: torch.Tensor
    independent: float  # different rows that the moments are of

    @property
    def dampings(self) -> list[float]:
        """What is worth trying: with n rows, the energy of K directions is known to K / n."""
        least = min(len(self.mean) / self.independent, 1.0)
        return [damping for damping in DAMPINGS if damping > 2 * least] or [
            max(least, DAMPINGS[-1])
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A damped second moment S [K, K] in the order of rounding: S = lower.T * pivots @ lower."""

    order: torch.Tensor  # [K]
    lower: torch.Tensor  # unit lower triangular
    full: torch.Tensor  # S, each row divided by its diagonal
    diagonal: torch.Tensor
    pivots: torch.Tensor
    added: float  # to the diagonal, as damping


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """Rows of a weight while they are rounded, [K, n] in the order of a Feedback."""

    levels: torch.Tensor
    residual: torch.Tensor
    codes: torch.Tensor  # int16 E4M3 codes of block scales [K/16, n]


# Rounding that knows what a weight multiplies. With X a layer's recorded input and E = W - decoded
# W, its output is off by X E^T, in the mean square tr(E S E^T), S = X^T X / tokens. A weight may be
# rounded to the farther value where that makes up for the errors of others.
#
# Weights are transposed here, their columns in the order they are rounded in, and in units of the
# layer's scale: [K, n]. Residual: weight - decoded weight. Level: decoded weight / block scale.
def round_to_grid(values: torch.Tensor, grid: FloatGrid, out: torch.Tensor) -> torch.Tensor:
    """Nearest values of a float format, ties to even, saturating; any sign. float32."""
    power = values.abs().clamp_(grid.least_normal, grid.largest)
    power = power.view(torch.int32).bitwise_and_(FLOAT32_EXPONENT).view(torch.float32)
    torch.add(values, power, alpha=grid.shift, out=out)
    return out.sub_(power, alpha=grid.shift).clamp_(-grid.largest, grid.largest)


def round_columns(
    wanted: torch.Tensor,
    free: torch.Tensor,
    coefficients: tuple[torch.Tensor, torch.Tensor],
    steps: torch.Tensor,
    grid: FloatGrid,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round the columns of a block one after the other, each knowing the errors of those before.

    wanted [c, n]: what to round, with the feedback of all other blocks; free [c, n]: the decoded
    weights that would change no residual; coefficients: of the feedback within the block [c, c] and
    the cost of an error of 1 in each column [c]; steps [m, n]: block scales to try.
    Returns levels and changes of the residuals [c, m, n], and costs [m, n].
    """
    within, pivots = coefficients
    levels, changes, costs = made = room_for(wanted, steps)
    scaled, inverse = torch.empty_like(steps), 1 / steps
    for column in range(len(wanted)):
        want = wanted[column].expand_as(steps)
        if column:
            before = changes[:column].view(column, -1).t()
            want = want + torch.mv(before, within[column, :column]).view_as(steps)
        torch.mul(want, inverse, out=scaled)
        decoded = round_to_grid(scaled, grid, levels[column]) * steps
        torch.sub(free[column], decoded, out=changes[column])
        if len(steps) > 1:
            error = decoded.sub_(want)
            costs.addcmul_(error, error * pivots[column])
    return made


def room_for(wanted: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `round_columns` returns: levels and changes to be filled, costs of zero."""
    levels, changes = wanted.new_empty(2, len(wanted), *steps.shape)
    return levels, changes, torch.zeros_like(steps)


def take_best(
    levels: torch.Tensor, changes: torch.Tensor, costs: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Of m block scales that were tried, what each row [n] takes: that with the least cost."""
    if len(codes) == 1:
        return levels[:, 0], changes[:, 0], codes[0]
    best = costs.argmin(0, keepdim=True)
    index = best.expand(len(levels), 1, -1)
    return levels.gather(1, index)[:, 0], changes.gather(1, index)[:, 0], codes.gather(0, best)[0]


def make_feedback(
    given: Statistics, damping: float, group: int, *, centred: bool
) -> Feedback | None:
    """What rounding by a second moment needs, or by the covariance where a bias makes up for the
    mean; None if it is not positive definite.

    `damping` times the mean of the diagonal is added to it. Groups of columns with the largest
    moments come first: their errors can be made up for by all the others.
    """
    second = given.second
    if centred:
        second = second - given.mean.unsqueeze(1) * given.mean
    energy = second.diagonal().view(-1, group).sum(1)
    order = energy.argsort(descending=True, stable=True).unsqueeze(1) * group
    order = (order + torch.arange(group, device=order.device)).flatten()
    damped = second[order][:, order].double()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    reverse, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    root = reverse.flip(0, 1)  # upper triangular, damped = root @ root.T
    pivots = root.diagonal().clone()
    if failed or not torch.isfinite(pivots).all():
        return None
    return Feedback(
        order=order,
        lower=root.div_(pivots).t().float().contiguous(),
        full=(damped / damped.diagonal().unsqueeze(1)).float(),
        diagonal=damped.diagonal().float(),
        pivots=pivots.square().float(),
        added=float(damping * second.diagonal().double().mean()),
    )


def unrounded(weight: torch.Tensor) -> Rounded:
    codes = torch.empty(-(-len(weight) // BLOCK_SIZE), weight.shape[1], device=weight.device)
    return Rounded(
        levels=torch.zeros_like(weight),
        residual=torch.zeros_like(weight),
        codes=torch.full_like(codes, E4M3_ONE, dtype=torch.int16),
    )


# What `round_columns` is given and returns, whatever compiled it.
RoundColumns = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
FEEDBACK_TENSORS = ("lower", "full", "pivots")  # of a Feedback, that passes over columns read


class Rounder:
    """Rounds rows of weights by feedback; one serves all layers of a conversion on one device.

    It knows what rounds the columns of a block: `round_columns`, or compiled code that does the
    same. On a GPU it keeps a CUDA graph for each shape of rows, with tensors as large as those:
    they live as long as the rounder does.
    """

    def __init__(self, columns: RoundColumns = round_columns):
        self.round_columns = columns
        self.graphs: dict[tuple, tuple] = {}

    def round_rows(
        self, rows: torch.Tensor, feedback: Feedback, grid: FloatGrid, sweeps: int = SWEEPS
    ) -> Rounded:
        """Round rows [n, K] float32 of a weight, in units of its scale, to the least output error.

        Raises ConvertError where a GPU left its work undone.
        """
        weight = rows.t()[feedback.order].contiguous()
        if weight.is_cuda:
            with torch.cuda.device(weight.device):  # graphs and triton take the current one
                return self.replay(weight, feedback, grid, sweeps)
        rounded = unrounded(weight)
        self.make_passes(weight, rounded, feedback, grid, sweeps)
        return rounded

    def make_passes(
        self,
        weight: torch.Tensor,
        rounded: Rounded,
        feedback: Feedback,
        grid: FloatGrid,
        sweeps: int,
    ) -> None:
        self.feed_back(weight, rounded, feedback, grid, first=True)
        for _ in range(sweeps):
            self.feed_back(weight, rounded, feedback, grid, first=False)

    def replay(
        self, weight: torch.Tensor, feedback: Feedback, grid: FloatGrid, sweeps: int
    ) -> Rounded:
        """Do `make_passes` as a CUDA graph: launching its ten thousand kernels takes longer.

        The graph of each shape is captured once, and works on tensors of its own.
        """
        key = (weight.device, weight.shape, grid, sweeps)
        if key not in self.graphs:
            tensors = {name: getattr(feedback, name).clone() for name in FEEDBACK_TENSORS}
            own = (weight.clone(), unrounded(weight), dataclasses.replace(feedback, **tensors))
            self.make_passes(*own, grid, sweeps)  # compiles what has to be
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # of this device
                self.make_passes(*own, grid, sweeps)
            self.graphs[key] = graph, *own
        graph, own_weight, own_rounded, own_feedback = self.graphs[key]
        own_weight.copy_(weight)
        for name in FEEDBACK_TENSORS:
            getattr(own_feedback, name).copy_(getattr(feedback, name))
        own_rounded.residual.zero_()
        own_rounded.codes.fill_(E4M3_ONE)
        own_rounded.levels.fill_(math.nan)
        graph.replay()
        if not own_rounded.levels.isfinite().all():
            raise ConvertError(
                f"{weight.device}: a CUDA graph left its work undone; try --device cpu"
            )
        return Rounded(**{name: getattr(own_rounded, name).clone() for name in Rounded.__slots__})

    def feed_back(
        self,
        weight: torch.Tensor,
        rounded: Rounded,
        feedback: Feedback,
        grid: FloatGrid,
        *,
        first: bool,
    ) -> None:
        """One pass over all columns: the first rounds them in order, further ones improve on it.

        In the first, errors of the columns before are fed back (GPTQ, in the form that needs no
        inverse: S = L^T D L), and each block takes the scale with the least cost. In a further one
        those of all columns are (coordinate descent), under the scales that there are.
        """
        coefficients = feedback.lower if first else feedback.full
        residual, columns = rounded.residual, len(weight)
        for begin in range(0, columns, FEEDBACK_BATCH):
            end = min(begin + FEEDBACK_BATCH, columns)
            reach = begin if first else columns
            fed = coefficients[begin:end, :reach] @ residual[:reach]
            for at in range(begin, end, BLOCK_SIZE):
                block = slice(at, min(at + BLOCK_SIZE, end))
                own, rest = slice(at - begin, block.stop - begin), slice(block.stop - begin, None)
                old = residual[block].clone()
                wanted = (weight[block] - old).add_(fed[own])  # a column's own coefficient is 1
                index = at // BLOCK_SIZE
                codes = rounded.codes[index : index + 1]
                if first and grid is E2M1:
                    least = e4m3_code_of_at_least(wanted.abs().amax(0) / E2M1_MAX)
                    codes = candidate_codes(least)
                within = (coefficients[block, block], feedback.pivots[block])
                free, steps = weight[block] - old, e4m3_value(codes)
                tried = self.round_columns(wanted, free, within, steps, grid)
                levels, changes, codes = take_best(*tried, codes)
                rounded.codes[index], rounded.levels[block] = codes, levels
                residual[block] += changes
                fed[rest] += coefficients[block.stop : end, block] @ changes


def output_error(residual: torch.Tensor, feedback: Feedback) -> float:
    """tr(E S E^T) of a residual [K, n], S without the damping; in units of the weight's scale."""
    costs = torch.mul(feedback.full @ residual, residual).sum(1, dtype=torch.float64)
    damping = feedback.added * float(residual.square().sum(dtype=torch.float64))
    return max(float(costs @ feedback.diagonal.double()) - damping, 0.0)


def levels_in_order(rounded: Rounded, feedback: Feedback) -> torch.Tensor:
    """The levels of rounded rows [n, K], their columns in the weight's own order again."""
    levels = torch.empty_like(rounded.levels)
    levels[feedback.order] = rounded.levels
    return levels.t().contiguous()
