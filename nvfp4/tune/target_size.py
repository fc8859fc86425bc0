"""Choose precisions for --target-size by what each byte gains.

Every open layer is measured in each precision that it could have. Then layers are raised, the best
gain per byte first, until the file is just smaller than the target: a Lagrangian choice on each
layer's lower convex hull. The same measurements give the curve of other sizes that the report
shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.encode.compute import Compute, pick_device, single_threaded
from nvfp4.encode.float16 import float16_overflows
from nvfp4.encode.layer import quantise
from nvfp4.encode.pieces import pieces_of, read_ahead, tensors_of_rank
from nvfp4.errors import ConvertError, exact_size, gigabytes
from nvfp4.formats.base import Format, candidate_formats
from nvfp4.layout import bytes_in_output, output_size
from nvfp4.model import Model
from nvfp4.numeric.damage import Damage, measure_damage
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.scale_search import SCALE_SEARCHES
from nvfp4.options import TARGET, Options
from nvfp4.plan.records import UNNAMED, Plan, TensorPlan, plan_tensor, widen
from nvfp4.progress import progress_bar
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import file_bytes

# The header's size depends on the precisions chosen, and these on the bytes that it leaves: the
# choice is repeated up to 8 times until both agree.
SIZE_TRIALS = 8
# The most bytes that a mark for full-precision matmul takes, in comfy_quant and in the header.
MARK_BYTES = 96
# The most bytes of a pre_quant_scale besides its values: its entry in the header, and alignment.
SCALE_BYTES = 200


class Alternative(NamedTuple):
    """Describe a precision that a layer could have: the bytes it would take, and its error.

    Errors are squared, so that they add up over layers.
    """

    precision: Format
    nbytes: int
    error: float  # squared, relative to the layer


class SizePoint(NamedTuple):
    """Describe a file that --target-size could have made: its bytes, and its mean error."""

    nbytes: int
    error: float  # relative RMSE, in the mean over the layers that could be chosen


class SizedPlan(NamedTuple):
    """Hold the plan of --target-size, and the files that it could have made instead."""

    plan: Plan
    sizes: tuple[SizePoint, ...]


def lower_hull(alternatives: Iterable[Alternative]) -> list[Alternative]:
    """Keep the alternatives that are best at some price of a byte, smallest first.

    These are the corners of the lower convex hull of error over size. Between two of them the gain
    per byte falls from step to step, so that greedy steps are the best ones.
    """
    kept: list[Alternative] = []
    for more in sorted(alternatives, key=lambda row: (row.nbytes, row.error)):
        if kept and more.error >= kept[-1].error:
            continue
        while len(kept) > 1 and gain(kept[-2], more) >= gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(more)
    return kept


def gain(less: Alternative, more: Alternative) -> float:
    """Return the squared error that one byte more takes away between two alternatives."""
    return (less.error - more.error) / (more.nbytes - less.nbytes)


def upgrades(layers: dict[str, list[Alternative]]) -> list[tuple[str, Alternative, Alternative]]:
    """List every step (layer, from, to) along the layers' hulls, the best gain per byte first."""
    steps = [
        (name, less, more)
        for name, hull in layers.items()
        for less, more in itertools.pairwise(hull)
    ]
    return sorted(steps, key=lambda step: -gain(*step[1:]))


def choose_for_size(layers: dict[str, list[Alternative]], budget: int) -> dict[str, Alternative]:
    """Choose the layers' precisions with the least total error in `budget` bytes.

    `layers` is {layer: its alternatives}. It is the optimum but for one step: room that is left
    where the next step does not fit is filled with any alternatives that do. Where even the
    smallest ones do not fit they come back all the same; the caller checks.
    """
    hulls = {name: lower_hull(rows) for name, rows in layers.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(row.nbytes for row in chosen.values())
    steps = [(name, more) for name, _, more in upgrades(hulls)]
    # All alternatives, the least error first: what fills the room that the last step left.
    every = sorted((row.error, name, row) for name, rows in layers.items() for row in rows)
    for name, more in [*steps, *((name, row) for _, name, row in every)]:
        cost = more.nbytes - chosen[name].nbytes
        if more.error < chosen[name].error and cost <= left:
            chosen[name], left = more, left - cost
    return chosen


def size_curve(layers: dict[str, list[Alternative]], fixed: int) -> list[SizePoint]:
    """Compute size and error after each step, from the smallest file to the largest.

    `fixed` are the bytes of all that is not chosen, headers included.
    """
    hulls = {name: lower_hull(rows) for name, rows in layers.items()}
    size = fixed + sum(hull[0].nbytes for hull in hulls.values())
    error = sum(hull[0].error for hull in hulls.values())
    points = [SizePoint(size, mean_error(error, layers))]
    for _, less, more in upgrades(hulls):
        size, error = size + more.nbytes - less.nbytes, error + more.error - less.error
        points.append(SizePoint(size, mean_error(error, layers)))
    return points


def mean_error(total: float, layers: dict) -> float:
    """Return the relative RMSE in the mean over layers, from the sum of their squared errors."""
    return math.sqrt(max(total, 0.0) / len(layers))


def measure_alternatives(
    options: Options, candidates: dict[str, list[TensorPlan]], ranks: Ranks
) -> dict[str, list[Alternative]]:
    """Measure every candidate's size and error: {weight: its alternatives}.

    `candidates` is {weight: its plans}. Each weight is read once and quantised in each way; the
    ranks of a torchrun share the weights, and all of them get all results.
    """
    # The first candidate has the lowest precision: it is quantised, and so is read whole.
    plans = tensors_of_rank([rows[0] for rows in candidates.values()], ranks)
    pieces = [piece for plan in plans for piece in pieces_of(plan)]
    dtype, search = TORCH_DTYPES[DTYPE_OPTIONS[options.quant_dtype]], options.scale_search
    found = {}
    device, nbytes = pick_device(options.device, ranks), sum(piece.nbytes for piece in pieces)
    with (
        single_threaded() as threads,
        Compute(device, dtype, SCALE_SEARCHES[search], threads) as compute,
        progress_bar("measuring", nbytes=nbytes, quiet=options.quiet) as bar,
    ):
        compute.compile(plans)
        pinned = compute.device.type == "cuda"
        for piece, weight in read_ahead(pieces, options.buffers, pinned=pinned):
            name = piece.plan.ref.name
            # All alternatives of a layer are measured while its weight is in memory.
            found[name] = [
                Alternative(plan.precision, bytes_in_output(plan), damage_of(plan, weight, compute))
                for plan in candidates[name]
            ]
            bar.update(piece.nbytes)
    return {name: rows for share in ranks.gather(found) for name, rows in share.items()}


def damage_of(plan: TensorPlan, weight: torch.Tensor, compute: Compute) -> float:
    """Return the squared relative error of a layer as planned: of its output, if that is known.

    `weight` [N, K] is the layer's weight as it was read. Without statistics it is the error of the
    decoded weight.
    """
    if not plan.is_quantised:
        dtype = TORCH_DTYPES[plan.dtype]
        made = compute.map(lambda rows: measure_damage(rows, rows.to(dtype).float()), weight)
        return Damage.total(made, torch.ones(())).relative_rmse ** 2
    _, damage = quantise(plan, weight, compute)
    # Rounding by statistics trades the weight's error for the output's, which then counts.
    known = damage.relative_rmse if damage.output_after is None else damage.output_after
    return known**2


def plan_for_size(
    options: Options, model: Model, planner: Callable[..., Plan], ranks: Ranks
) -> SizedPlan | None:
    """Choose precisions for --target-size by error, from those that `planner` begins with.

    `planner` makes a plan for {layer: precision}. What float16 cannot hold is float32 in the plan
    that comes back. None without a target; raises ConvertError for one that cannot be reached.
    """
    if not options.target(model):
        return None
    plans, _ = planner()
    # What other options will add once the precisions are settled is left free now.
    target = options.target(model) - reserved(options, plans)
    # A target that is out of reach is told from the headers alone, as reading may take an hour.
    candidates, fixed = reachable(options, model, planner, target)
    # Asked once, for all tensors that could be 16-bit, whatever is chosen later.
    widened = wide_halves(options, plans)
    if widened:
        candidates, fixed = reachable(options, model, planner, target, widened)
    layers = measure_alternatives(options, candidates, ranks)
    # In source order again, which the ranks' results are not: ties go by it.
    layers = {name: layers[name] for name in candidates}
    # `fixed` is what the last plan had besides the chosen layers, its header included. Should it
    # never agree with the choice that was made by it, the last plan that fits is as good.
    for _ in range(SIZE_TRIALS):
        chosen = choose_for_size(layers, target - fixed)
        precisions = {name: row.precision for name, row in chosen.items()}
        plans, notes = planner(chosen=precisions)
        plans = widen(plans, widened)
        size = output_size(options, model, plans)
        left = size - sum(row.nbytes for row in chosen.values())
        if size <= target and left == fixed:
            break
        fixed = left if size <= target else max(left, fixed)
    refuse_too_small(target, size)
    return SizedPlan(Plan(plans, notes), tuple(size_curve(layers, fixed)))


def reserved(options: Options, plans: Iterable[TensorPlan]) -> int:
    """Return the bytes that options may add at most once the precisions are settled.

    --w4a4-share marks layers and --pre-quant-scale adds a tensor [K] to them, but both measure the
    plan that comes out here.
    """
    layers = [plan for plan in plans if plan.is_layer]
    added = len(layers) * MARK_BYTES if options.w4a4_share else 0
    if options.pre_quant_scale:
        added += sum(2 * plan.ref.shape[-1] + SCALE_BYTES for plan in layers if plan.moments)
    return added


def wide_halves(options: Options, plans: Iterable[TensorPlan]) -> frozenset[str]:
    """Name the tensors that would be float32, for a value beyond float16's, if not quantised."""
    half = DTYPE_OPTIONS[options.dtype]
    halves = [plan_tensor(plan.ref, UNNAMED, half) if plan.is_quantised else plan for plan in plans]
    return float16_overflows(halves, options)


def reachable(
    options: Options,
    model: Model,
    planner: Callable[..., Plan],
    target: int,
    widened: frozenset[str] = frozenset(),
) -> tuple[dict[str, list[TensorPlan]], int]:
    """List what each open layer could be, as `list_candidates` does, and what all else takes.

    target: the bytes that open layers and all else may take together. The second result is the
    bytes of the file without its open layers. Raises ConvertError where the smallest file is
    larger than the target, where the largest is not, and where no layer is open to a choice.
    """
    plans, _ = planner()
    start = {plan.ref.name: plan for plan in widen(plans, widened)}
    size = output_size(options, model, [*start.values()])
    candidates = list_candidates(options, planner, start, widened, lower=size > target)
    if not candidates and size <= target:
        raise ConvertError(f"{TARGET}: no layer is left: other options decide for all")
    fixed = size - sum(bytes_in_output(start[name]) for name in candidates)
    sizes = [[bytes_in_output(plan) for plan in plans] for plans in candidates.values()]
    refuse_too_small(target, fixed + sum(map(min, sizes)))
    most, wanted = fixed + sum(map(max, sizes)), options.target(model)
    if size <= target and most <= wanted:
        given = f"--target-ratio {options.target_ratio}" if options.target_ratio else TARGET
        raise ConvertError(
            f"{given}: {exact_size(wanted)} leaves nothing to choose: with every open layer "
            f"unquantised, {options.source.name} ({gigabytes(file_bytes(model))}) becomes "
            f"{exact_size(most)}; give less"
        )
    return candidates, fixed


def refuse_too_small(target: int, least: int) -> None:
    """Raise ConvertError if the smallest file of this plan, `least` bytes, exceeds the target."""
    if least > target:
        raise ConvertError(
            f"{TARGET}: {exact_size(target)} is too little: the smallest that this plan allows is "
            f"about {exact_size(least)}; fewer --edge-blocks and --exclude, or --preset all, leave "
            "more to choose"
        )


def list_candidates(
    options: Options,
    planner: Callable[..., Plan],
    start: dict[str, TensorPlan],
    widened: frozenset[str] = frozenset(),
    *,
    lower: bool,
) -> dict[str, list[TensorPlan]]:
    """List what each open layer could be besides what it is: all lower precisions, or all higher.

    Returns {weight: its plans, from the lowest precision}. Plans come from `planner`, so that
    floors and input scales apply to them. What has no other precision is left out.
    """
    names = [name for name, plan in start.items() if plan.is_open and plan.ref.is_linear_weight]
    # One plan of the whole model for each precision, as floors and scales depend on all of it.
    ways = [planner(chosen=dict.fromkeys(names, kind))[0] for kind in candidate_formats()]
    by_name = [{plan.ref.name: plan for plan in plans} for plans in ways]
    candidates = {}
    for name in names:
        first = start[name]
        # 16-bit is always possible, whatever the rules make of the layer.
        (half,) = widen([plan_tensor(first.ref, UNNAMED, DTYPE_OPTIONS[options.dtype])], widened)
        plans = {plan.precision: plan for plan in [*(way[name] for way in by_name), half]}
        candidates[name] = [
            plan
            for precision, plan in sorted(plans.items())
            if (precision <= first.precision if lower else precision >= first.precision)
        ]
    return {name: plans for name, plans in candidates.items() if len(plans) > 1}
