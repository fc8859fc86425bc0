"""Round weights to the least error of their layer's output.

Rows of a weight are rounded column by column; the error made so far is fed back into what is left
to round, by the second moment of the layer's recorded input (GPTQ). `encode.rounding` chooses the
damping and measures the gain; `guides.recording` reads the statistics; the kernels in `compiled`
can take the innermost loop over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nvfp4.errors import ConvertError
from nvfp4.numeric.codes import FloatGrid
from nvfp4.numeric.grids import Codebook, Grid
from nvfp4.numeric.rotation import rotate

# Rounding that knows what a weight multiplies. With X a layer's recorded input and E = W - decoded
# W, its output is off by X E^T, in the mean square tr(E S E^T), S = X^T X / tokens. A weight may be
# rounded to the farther value where that makes up for the errors of other columns.
#
# Weights are transposed here, their columns in the order they are rounded in, and in units of the
# layer's scale: [K, n]. Residual: weight - decoded weight. Level: decoded weight / block scale.

# Dampings that are tried on some rows of a weight, in units of the mean of the second moment's
# diagonal. Without damping, directions that the recording hardly saw would get any error.
DAMPINGS = (0.002, 0.02)
# Larger dampings, for a second moment that none of the others leaves positive definite.
MORE_DAMPINGS = (0.1, 0.3, 1.0)
# Sweeps over all columns after they were rounded once: a second one gained a third of the first.
SWEEPS = 1
# Columns whose errors reach all other columns by one matrix product, instead of one at a time.
FEEDBACK_BATCH = 128
# The sign of an E4M3 step.
SIGN_BIT = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Hold what a recording tells of a layer's input of K channels.

    mean: [K] float32; second: the second moment X^T X / tokens, [K, K] float32; rows: some recorded
    rows [r, K]; independent: how many different rows the moments are of, at least 1, since a
    prompt's text is the same at every step. All tensors are on the device that rounds.
    """

    mean: torch.Tensor
    second: torch.Tensor
    rows: torch.Tensor
    independent: float

    @property
    def dampings(self) -> list[float]:
        """List the dampings worth trying, relative to the mean of the diagonal.

        n independent rows tell the energy of K directions to about K / n, at most 1. Dampings up to
        twice that only add noise and are left out; where all of DAMPINGS are, K / n itself or the
        largest of them, whichever is more, is the only one.
        """
        least = min(len(self.mean) / self.independent, 1.0)
        return [damping for damping in DAMPINGS if damping > 2 * least] or [
            max(least, DAMPINGS[-1])
        ]

    def rotated(self, group: int) -> Statistics:
        """Return the statistics of the input rotated in groups of columns; itself for group 0.

        With R the rotation of a column of inputs, mean and second moment become R mean and R S R^T.
        The output error of a rotated weight is the same by these as by the others.
        """
        if not group:
            return self
        half = rotate(self.second, group).t().contiguous()
        mean, rows = (rotate(some, group) for some in (self.mean.unsqueeze(0), self.rows))
        second = rotate(half, group)
        return dataclasses.replace(self, mean=mean.squeeze(0), second=second, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Hold a damped second moment S [K, K], factored as lower.T * pivots @ lower.

    order: [K], the columns in the order of rounding, which all other fields are in; lower: [K, K],
    unit lower triangular; full: S, each row divided by its diagonal element; diagonal: [K], that of
    S; pivots: [K], the cost of an error of 1 in a column after those rounded later have made up for
    it; added: what damping added to the diagonal. Tensors are float32.
    """

    order: torch.Tensor
    lower: torch.Tensor
    full: torch.Tensor
    diagonal: torch.Tensor
    pivots: torch.Tensor
    added: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """Hold rows of a weight while they are rounded, [K, n] in the order of a Feedback.

    levels: those of the grid, before steps multiply them; residual: weight - decoded weight, in
    the units of the rows; both float32. codes: [blocks, n] int16, of each block's step; all zero
    where the grid's steps are fixed.
    """

    levels: torch.Tensor
    residual: torch.Tensor
    codes: torch.Tensor


def round_columns(
    wanted: torch.Tensor,
    free: torch.Tensor,
    coefficients: tuple[torch.Tensor, torch.Tensor],
    steps: torch.Tensor,
    grid: FloatGrid | Codebook,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round the columns of a block one after the other, each knowing the errors of those before.

    wanted: [c, n], what to round, with the feedback of all other blocks; free: [c, n], the decoded
    weights that would change no residual; coefficients: those of the feedback within the block [c,
    c], and the cost of an error of 1 in each column [c]; steps: [m, n], block scales to try; grid:
    levels to round to. All float32. Returns levels and changes of the residuals [c, m, n], and
    costs [m, n]; costs stay zero if there is only one scale to try.
    """
    within, pivots = coefficients
    levels, changes, costs = made = room_for(wanted, steps)
    nearest = grid.under(steps)
    for column in range(len(wanted)):
        want = wanted[column].expand_as(steps)
        if column:
            before = changes[:column].view(column, -1).t()
            want = want + torch.mv(before, within[column, :column]).view_as(steps)
        decoded = nearest(want, levels[column])
        torch.sub(free[column], decoded, out=changes[column])
        # Costs only choose among scales: with a single one nobody reads them.
        if len(steps) > 1:
            error = decoded.sub_(want)
            costs.addcmul_(error, error * pivots[column])
    return made


def room_for(wanted: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Allocate what `round_columns` returns, on the device of its arguments.

    wanted: [c, n]; steps: [m, n]. Returns levels and changes [c, m, n], not initialised, and costs
    [m, n] of zero.
    """
    levels, changes = wanted.new_empty(2, len(wanted), *steps.shape)
    return levels, changes, torch.zeros_like(steps)


def take_best(
    levels: torch.Tensor, changes: torch.Tensor, costs: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Take, for each row, the block scale with the least cost of those that were tried.

    levels, changes: [c, m, n]; costs: [m, n]; codes: [m, n] int16, the scales. Returns levels and
    changes [c, n] and codes [n] of the best; of equal costs the first, which is the smaller scale.
    """
    if len(codes) == 1:
        return levels[:, 0], changes[:, 0], codes[0]
    # Gathering keeps the choice on the device: a CUDA graph cannot wait for the CPU.
    best = costs.argmin(0, keepdim=True)
    index = best.expand(len(levels), 1, -1)
    return levels.gather(1, index)[:, 0], changes.gather(1, index)[:, 0], codes.gather(0, best)[0]


def make_feedback(
    given: Statistics, damping: float, group: int, *, centred: bool
) -> Feedback | None:
    """Factor a damped second moment for rounding, or return None if it is not positive definite.

    damping: how many times the mean of the diagonal is added to the diagonal; group: columns that
    share a scale (16, or 1); centred: round by the covariance instead, where a bias makes up for
    the mean error. Groups with the largest moments come first, because all later columns can make
    up for their errors. The factorisation is float64; what is returned is float32.
    """
    # The covariance of the input is its second moment less the square of its mean.
    second = given.second
    if centred:
        second = second - given.mean.unsqueeze(1) * given.mean
    # Columns that share a block scale stay together, so that whole groups are put in order.
    energy = second.diagonal().view(-1, group).sum(1)
    order = energy.argsort(descending=True, stable=True).unsqueeze(1) * group
    order = (order + torch.arange(group, device=order.device)).flatten()
    damped = second[order][:, order].double()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    # Flipped, Cholesky's lower factor becomes the upper triangular one: damped = root @ root.T.
    reverse, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    root = reverse.flip(0, 1)
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


def unrounded(weight: torch.Tensor, grid: Grid) -> Rounded:
    """Allocate a Rounded for rows that are not rounded yet.

    weight: [K, n] float32, transposed. Levels and residuals are zero, so that nothing is fed back
    from columns that are still to come.
    """
    codes = weight.new_zeros(-(-len(weight) // grid.block), weight.shape[1], dtype=torch.int16)
    return Rounded(levels=torch.zeros_like(weight), residual=torch.zeros_like(weight), codes=codes)


# A function with the arguments and results of `round_columns`, plain or compiled.
RoundColumns = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
# The fields of a Feedback that passes over columns read: a CUDA graph has copies of its own.
FEEDBACK_TENSORS = ("lower", "full", "pivots")


class Rounder:
    """Round rows of weights by feedback; one serves all layers of a conversion on one device.

    columns: what rounds the columns of a block, `round_columns` or compiled code that does the
    same. On a GPU a Rounder keeps a CUDA graph for each shape of rows, with tensors as large as
    those: they live as long as the Rounder does.
    """

    def __init__(self, columns: RoundColumns = round_columns):
        """Take the function that rounds columns; no graph is captured yet."""
        self.round_columns = columns
        self.graphs: dict[tuple, tuple] = {}

    def round_rows(
        self, rows: torch.Tensor, feedback: Feedback, grid: Grid, sweeps: int = SWEEPS
    ) -> Rounded:
        """Round rows of a weight to the least output error.

        rows: [n, K] float32, in units of the layer's scale or each in its own, rotated where the
        format is; feedback: of its input, rotated likewise; sweeps: passes after the first one.
        Returns levels, residuals and steps in the order of the feedback. Raises ConvertError where
        a GPU left its work undone.
        """
        weight = rows.t()[feedback.order].contiguous()
        if weight.is_cuda:
            # CUDA graphs and triton take the current device, not that of the tensors.
            with torch.cuda.device(weight.device):
                return self.replay(weight, feedback, grid, sweeps)
        rounded = unrounded(weight, grid)
        self.make_passes(weight, rounded, feedback, grid, sweeps)
        return rounded

    def make_passes(
        self, weight: torch.Tensor, rounded: Rounded, feedback: Feedback, grid: Grid, sweeps: int
    ) -> None:
        """Round all columns of a transposed weight [K, n] once, and improve on it `sweeps` times.

        `rounded` is filled in place, with no allocation that depends on values and no look at them
        from the CPU: a CUDA graph can capture it.
        """
        self.feed_back(weight, rounded, feedback, grid, first=True)
        for _ in range(sweeps):
            self.feed_back(weight, rounded, feedback, grid, first=False)

    def replay(self, weight: torch.Tensor, feedback: Feedback, grid: Grid, sweeps: int) -> Rounded:
        """Do `make_passes` as a CUDA graph, of its ten thousand kernels.

        Launching these one by one takes longer than they run. The graph of each device, shape, kind
        of grid and number of sweeps is captured once, on tensors of its own; arguments are copied
        into them and results out of them. Raises ConvertError where a replay did not write all
        levels.
        """
        key = (weight.device, weight.shape, grid.kind, sweeps)
        if key not in self.graphs:
            tensors = {name: getattr(feedback, name).clone() for name in FEEDBACK_TENSORS}
            feedback_copy = dataclasses.replace(feedback, **tensors)
            own = (weight.clone(), unrounded(weight, grid), feedback_copy, grid.copy())
            # A first run outside the graph: triton cannot compile while one is captured.
            self.make_passes(*own, sweeps)
            graph = torch.cuda.CUDAGraph()
            # The default capture stream may be of another GPU; a new one is of the current device.
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                self.make_passes(*own, sweeps)
            self.graphs[key] = graph, *own
        graph, own_weight, own_rounded, own_feedback, own_grid = self.graphs[key]
        own_weight.copy_(weight)
        for copied, given in zip(own_grid.codebook, grid.codebook, strict=True):
            copied.copy_(given)
        for name in FEEDBACK_TENSORS:
            getattr(own_feedback, name).copy_(getattr(feedback, name))
        own_rounded.residual.zero_()
        # A replay writes every level, so a NaN that is left tells of one that did not run.
        own_rounded.levels.fill_(math.nan)
        graph.replay()
        if not own_rounded.levels.isfinite().all():
            raise ConvertError(
                f"{weight.device}: a CUDA graph left its work undone; try --device cpu"
            )
        return Rounded(**{name: getattr(own_rounded, name).clone() for name in Rounded.__slots__})

    def feed_back(
        self, weight: torch.Tensor, rounded: Rounded, feedback: Feedback, grid: Grid, *, first: bool
    ) -> None:
        """Make one pass over all columns, the first or one that improves on it.

        In the first, errors of the columns before are fed back (GPTQ, in the form that needs no
        inverse: S = L^T D L), and each block takes the scale with the least cost. In a further one
        those of all columns are (coordinate descent), under the scales there are. weight: [K, n];
        rounded is updated.
        """
        coefficients = feedback.lower if first else feedback.full
        residual, columns = rounded.residual, len(weight)
        for begin in range(0, columns, FEEDBACK_BATCH):
            end = min(begin + FEEDBACK_BATCH, columns)
            reach = begin if first else columns
            fed = coefficients[begin:end, :reach] @ residual[:reach]
            for at in range(begin, end, grid.block):
                block = slice(at, min(at + grid.block, end))
                own, rest = slice(at - begin, block.stop - begin), slice(block.stop - begin, None)
                old = residual[block].clone()
                # A column's own coefficient is 1: `fed` holds its own residual, taken away here.
                wanted = (weight[block] - old).add_(fed[own])
                index = at // grid.block
                codes = rounded.codes[index : index + 1]
                if first:
                    codes = grid.candidates(wanted, codes)
                within = (coefficients[block, block], feedback.pivots[block])
                free, steps = weight[block] - old, grid.values(codes)
                tried = self.round_columns(wanted, free, within, steps, grid.levels)
                levels, changes, codes = take_best(*tried, codes)
                rounded.codes[index], rounded.levels[block] = codes, levels
                residual[block] += changes
                fed[rest] += coefficients[block.stop : end, block] @ changes


def output_error(residual: torch.Tensor, feedback: Feedback) -> float:
    """Compute the squared output error tr(E S E^T) of a residual, with S not damped.

    residual: [K, n] float32, in the feedback's order. Returns a float in units of the layer's scale
    squared, summed in float64 and never below 0, which rounding could take it to.
    """
    # `full` has rows of S divided by the diagonal, which the last product brings back.
    costs = torch.mul(feedback.full @ residual, residual).sum(1, dtype=torch.float64)
    damping = feedback.added * float(residual.square().sum(dtype=torch.float64))
    return max(float(costs @ feedback.diagonal.double()) - damping, 0.0)


def levels_in_order(rounded: Rounded, feedback: Feedback) -> torch.Tensor:
    """Bring the levels of rounded rows back into the weight's own order of columns.

    Returns [n, K] float32, contiguous: what a format packs (`Format.round_to_levels`).
    """
    levels = torch.empty_like(rounded.levels)
    levels[feedback.order] = rounded.levels
    return levels.t().contiguous()


def steps_in_order(rounded: Rounded, feedback: Feedback) -> torch.Tensor:
    """Bring the codes of steps back into the order of the weight's groups: uint8 [n, blocks].

    Codes below 0 get a sign bit.
    """
    # Groups of columns were kept together: the first column of each tells where a block was.
    group = len(feedback.order) // len(rounded.codes)
    codes = torch.empty_like(rounded.codes)
    codes[feedback.order[::group] // group] = rounded.codes
    codes = torch.where(codes < 0, SIGN_BIT - codes, codes)
    return codes.t().contiguous().to(torch.uint8)
