"""Choose precisions for --target-size by what each byte gains.

Every open layer is measured in each format that it could have, activations' error included. Then
layers are raised, the best gain per byte first, until the file is just smaller than the target;
with --fp4-share, those that lose least by it stay in W4A4. The same measurements give the curve of
other sizes that the report shows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from nvfp4.cards import UNITS
from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.encode.float16 import float16_overflows
from nvfp4.errors import ConvertError, exact_size, gigabytes
from nvfp4.formats.base import Format, written_formats
from nvfp4.formats.floats import HALF
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.layout import bytes_in_output, output_size
from nvfp4.model import Model, bare
from nvfp4.names import block_of
from nvfp4.notes import Note, Rank
from nvfp4.options import TARGET, Options
from nvfp4.plan.choosing import fitting, marked_format, sensitive_format
from nvfp4.plan.multiply_work import is_in_fp4, multiplied, planned_work, work_by_weight
from nvfp4.plan.records import UNNAMED, Plan, TensorPlan, plan_tensor, widen
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import file_bytes
from nvfp4.tune.choice import SizePoint, choose_for_size, keep_fp4, mean_error, size_curve
from nvfp4.tune.importance import importance
from nvfp4.tune.measuring import Measurements, measure_alternatives

# Fewer bytes are meant by nobody: such a number lacks its unit.
LEAST_MEANT = 1_000_000
# The header's size depends on the precisions chosen, and these on the bytes that it leaves: the
# choice is repeated up to 8 times until both agree.
SIZE_TRIALS = 8
# The most bytes that a mark for full-precision matmul takes, in comfy_quant and in the header, and
# about what W4A8's configuration, codebook and entries take more.
MARK_BYTES, W4A8_BYTES = 96, 400
# A float32 for each row.
ROW_SCALE_BYTES = 4
# The most bytes of a pre_quant_scale besides its values: its entry in the header, and alignment.
SCALE_BYTES = 200


class SizedPlan(NamedTuple):
    """Hold the plan of --target-size, its error, and the files that it could have made instead.

    error: relative RMSE, in the mean over the layers that could be chosen, as in `sizes`.
    """

    plan: Plan
    error: float
    sizes: tuple[SizePoint, ...]


class Reach(NamedTuple):
    """Hold what open layers could be, and the bytes of the files that may come of it.

    candidates: {weight: its plans}; fixed: of a file without its open layers; least, most: of the
    smallest file, what other options add later included, and of the largest.
    """

    candidates: dict[str, list[TensorPlan]]
    fixed: int
    least: int
    most: int


def plan_for_size(
    options: Options,
    model: Model,
    planner: Callable[..., Plan],
    ranks: Ranks,
    is_capped: bool = False,
) -> SizedPlan | None:
    """Choose precisions for --target-size by error, from those that `planner` begins with.

    `planner` makes a plan of options and of {layer: precision}. is_capped: whether the target is
    met by the best of all formats, and not refused. What float16 cannot hold is float32 in the plan
    that comes back. None without a target; raises ConvertError for one that
    cannot be reached.
    """
    if not options.target(model):
        return None
    plans, _ = planner(options)
    alone = slow_work(options, plans)
    # What other options will add once the precisions are settled is left free now.
    target = options.target(model) - reserved(options, plans)
    # A target that is out of reach is told from the headers alone, as reading may take an hour.
    candidates, fixed = reachable(options, model, planner, is_capped=is_capped)
    # Asked once, for all tensors that could be 16-bit, whatever is chosen later.
    widened = wide_halves(options, plans)
    if widened:
        candidates, fixed = reachable(options, model, planner, widened, is_capped)
    work = work_by_weight(plans)
    least = least_fp4(options, plans, candidates, work)
    measured = measure_alternatives(options, candidates, ranks, work)
    counts = importance_of(plans, measured)
    layers = {
        name: [row._replace(error=row.error * counts[name]) for row in rows]
        for name, rows in measured.choices.items()
    }
    layers = keep_fp4(layers, target - fixed, least)
    # `fixed` is what the last plan had besides the chosen layers, its header included. Should it
    # never agree with the choice that was made by it, the last plan that fits is as good.
    for _ in range(SIZE_TRIALS):
        chosen = choose_for_size(layers, target - fixed)
        precisions = {name: row.precision for name, row in chosen.items()}
        plans, notes = planner(options, chosen=precisions)
        plans = widen(plans, widened)
        size = output_size(options, model, plans)
        left = size - sum(row.nbytes for row in chosen.values())
        if size <= target and left == fixed:
            break
        fixed = left if size <= target else max(left, fixed)
    if size > target:
        raise too_small(options, model, planner, size + options.target(model) - target)
    count = sum(counts.values())
    error = mean_error(sum(row.error for row in chosen.values()), count)
    notes = (*notes, *slow_notes(options, alone, slow_work(options, plans)))
    return SizedPlan(Plan(plans, notes), error, tuple(size_curve(layers, fixed, count)))


def importance_of(plans: Iterable[TensorPlan], measured: Measurements) -> dict[str, float]:
    """Tell how much the errors of the open layers count: {weight: factor}, by `importance`."""
    layers = {plan.ref.name: bare(plan.ref.layer) for plan in plans if plan.is_multiplied}
    energies = {layers[name]: energy for name, energy in measured.energies.items()}
    blocks = len({*map(block_of, layers.values())} - {""})
    factors = importance((layers[name] for name in measured.choices), energies, blocks)
    return {name: factors[layers[name]] for name in measured.choices}


def slow_work(options: Options, plans: list[TensorPlan]) -> float:
    """Return the share of the multiply work at 16-bit speed on --card, without it on every card."""
    return planned_work(plans).shares(options.card)[UNITS[HALF.option]]


def slow_notes(options: Options, alone: float, now: float) -> list[str]:
    """Note that a size made layers 16-bit which the preset `alone` would multiply faster.

    alone, now: shares of the multiply work at 16-bit speed.
    """
    # Less than half a per cent would show as equal numbers.
    if not (options.card or options.formats) or now < alone + 0.005:
        return []
    fast = ",".join(word for word in options.allowed if word != HALF.option)
    on = f" on {options.card}" if options.card else ""
    what = f"{100 * now:.0f} % of the multiply work is at 16-bit speed{on}, where the preset alone"
    how = f"--formats {fast} keeps what is chosen fast"
    return [Note(f"{what} has {100 * alone:.0f} %: {how}", Rank.HINT)]


def reserved(options: Options, plans: Iterable[TensorPlan]) -> int:
    """Return the bytes that options may add at most once the precisions are settled.

    --w4a4-share marks layers, or makes W4A8 of them, and --pre-quant-scale adds a tensor [K] to
    them, but both measure the plan that comes out here. What stands in for W4A8 is larger: layers
    that are open to a choice are not NVFP4 then, see `list_candidates`.
    """
    layers = [plan for plan in plans if plan.is_layer]
    added = 0
    if options.w4a4_share:
        added = len(layers) * MARK_BYTES
        if options.sensitive_as == "w4a8":
            added = sum(W4A8_BYTES + ROW_SCALE_BYTES * plan.ref.shape[0] for plan in layers)
            settled = (plan for plan in layers if not plan.is_open and plan.is_quantised)
            added += sum(larger_if_spared(options, plan) for plan in settled)
    if options.pre_quant_scale:
        added += sum(2 * plan.ref.shape[-1] + SCALE_BYTES for plan in layers if plan.moments)
    return added


def larger_if_spared(options: Options, plan: TensorPlan) -> int:
    """Return the bytes by which a layer in NVFP4 grows if --w4a4-share makes INT8 of it, else 0."""
    form = sensitive_format(options, plan)
    if not plan.is_w4a4 or not plan.moments or form in (NVFP4, marked_format(options)):
        return 0
    larger = dataclasses.replace(plan, precision=form, input_scale=None)
    return bytes_in_output(larger) - bytes_in_output(plan)


def wide_halves(options: Options, plans: Iterable[TensorPlan]) -> frozenset[str]:
    """Name the tensors that would be float32, for a value beyond float16's, if not quantised."""
    half = DTYPE_OPTIONS[options.dtype]
    halves = [plan_tensor(plan.ref, UNNAMED, half) if plan.is_quantised else plan for plan in plans]
    return float16_overflows(halves, options)


def reachable(
    options: Options,
    model: Model,
    planner: Callable[..., Plan],
    widened: frozenset[str] = frozenset(),
    is_capped: bool = False,
) -> tuple[dict[str, list[TensorPlan]], int]:
    """List what each open layer could be, as `list_candidates` does, and what all else takes.

    The second result is the bytes of the file without its open layers. Raises ConvertError where
    the smallest file is larger than the target, where the largest is not, unless `is_capped`, and
    where no layer is open to a choice.
    """
    reach, wanted = reach_of(options, model, planner, widened), options.target(model)
    if not reach.candidates and reach.least <= wanted:
        raise ConvertError(f"{TARGET}: no layer is left: other options decide for all")
    if reach.least > wanted:
        raise too_small(options, model, planner, reach.least)
    if reach.most <= wanted and not is_capped:
        largest = max(rows[-1].precision for rows in reach.candidates.values())
        form = f"in {largest}" if largest.is_quantised else "unquantised"
        raise ConvertError(
            f"{given_target(options)}: {exact_size(wanted)} leaves nothing to choose: with every "
            f"open layer {form}, {options.source.name} ({gigabytes(file_bytes(model))}) becomes "
            f"{exact_size(reach.most)}; give less"
        )
    return reach.candidates, reach.fixed


def reach_of(
    options: Options,
    model: Model,
    planner: Callable[..., Plan],
    widened: frozenset[str] = frozenset(),
) -> Reach:
    """Tell how small and how large the file can be by what its open layers could be."""
    plans, _ = planner(options)
    start = {plan.ref.name: plan for plan in widen(plans, widened)}
    candidates = list_candidates(options, planner, start, widened)
    size = output_size(options, model, [*start.values()])
    fixed = size - sum(bytes_in_output(start[name]) for name in candidates)
    small = {name: min(rows, key=bytes_in_output) for name, rows in candidates.items()}
    # Laid out, as its header is not that of the plan to begin with.
    chosen = {name: plan.precision for name, plan in small.items()}
    smallest = widen(planner(options, chosen=chosen)[0], widened)
    return Reach(
        candidates,
        fixed,
        least=output_size(options, model, smallest) + reserved(options, plans),
        most=fixed + sum(max(map(bytes_in_output, rows)) for rows in candidates.values()),
    )


def too_small(
    options: Options, model: Model, planner: Callable[..., Plan], least: int
) -> ConvertError:
    """Make the error for a target below the smallest file, with what to type instead.

    least: bytes of the smallest file by these options. The error is returned, not raised.
    """
    wanted = options.target(model)
    told = f"{given_target(options)}: {exact_size(wanted)} is too little: the smallest that this "
    told += f"plan allows is {exact_size(least)}"
    if options.target_size and wanted < LEAST_MEANT:
        return ConvertError(f"{told}; was a unit forgotten, as in 8GB?")
    # What makes more layers open to a choice, that first which costs least.
    edges = "--edge-blocks 0" if options.edge_blocks != 0 else ""
    if options.gguf_keep_edge_blocks_fp16:
        edges += " in place of --gguf-keep-edge-blocks-fp16"
    opened = {"edge_blocks": 0, "gguf_keep_edge_blocks_fp16": False}
    ways = [(edges, opened, "")] if edges else []
    if options.has_family:
        harm = " (it may give noise: layers that presets spare are quantised, too)"
        ways.append((f"{edges} --preset all".strip(), {**opened, "preset": "all"}, harm))
    best, flags = least, ""
    for words, fields, harm in ways:
        freer = reach_of(dataclasses.replace(options, **fields), model, planner).least
        if freer <= wanted:
            return ConvertError(f"{told}; add {words}, which allows {gigabytes(freer)}{harm}")
        if not harm and freer < best:
            best, flags = freer, f" {words}"
    held = {"--exclude": options.exclude, "--layer-config": options.layer_config}
    holding = " and ".join(flag for flag, value in held.items() if value)
    without = f"; without {holding} it may be less" if holding else ""
    least_typed = f"{as_typed(options, model, best)}{flags}"
    return ConvertError(f"{told}; the least to ask for is {least_typed}{without}")


def given_target(options: Options) -> str:
    """Name the option that asks for a size, a ratio with its value."""
    return f"--target-ratio {options.target_ratio}" if options.target_ratio else TARGET


def as_typed(options: Options, model: Model, size: int) -> str:
    """Write a target of at least `size` bytes as one types it: "--target-size 11.6GB"."""
    if options.target_ratio and size <= model.nbytes:
        return f"--target-ratio {math.ceil(1000 * size / model.nbytes) / 1000:g}"
    unit, bytes_each = ("GB", 10**9) if size >= 10**9 else ("MB", 10**6)
    return f"{TARGET} {math.ceil(100 * size / bytes_each) / 100:g}{unit}"


def list_candidates(
    options: Options,
    planner: Callable[..., Plan],
    start: dict[str, TensorPlan],
    widened: frozenset[str] = frozenset(),
) -> dict[str, list[TensorPlan]]:
    """List what each open layer could be, of the formats that --formats and --card allow.

    Returns {weight: its plans, from the lowest precision}. Plans come from `planner`, so that
    floors and input scales apply to them. What could be nothing else than it is is left out.
    """
    names = [name for name, plan in start.items() if plan.is_open and plan.ref.is_linear_weight]
    # One plan of the whole model for each format, as floors and scales depend on all of it.
    ways = [
        {
            plan.ref.name: plan
            for plan in planner(
                options, chosen={n: fitting(options, form, start[n].ref.shape) for n in names}
            )[0]
        }
        for form in written_formats()
        if form.option in options.allowed
    ]
    candidates = {}
    for name in names:
        plans = {way[name].precision: way[name] for way in ways}
        if HALF.option in options.allowed:
            # It is always possible, whatever the rules make of the layer.
            half = plan_tensor(start[name].ref, UNNAMED, DTYPE_OPTIONS[options.dtype])
            plans[HALF] = half
        kept = (plan for _, plan in sorted(plans.items()) if not is_idle(plan, plans, options))
        if options.w4a4_share:
            kept = (plan for plan in kept if not larger_if_spared(options, plan))
        candidates[name] = widen(kept, widened)
    return {
        name: plans
        for name, plans in candidates.items()
        if len(plans) > 1 or (plans and plans[0].precision is not start[name].precision)
    }


def is_idle(plan: TensorPlan, plans: dict[Format, TensorPlan], options: Options) -> bool:
    """Tell whether a quantised layer is multiplied at 16-bit speed, and need not be.

    That is FP8 without an input scale where INT8 may be chosen. `plans` are the layer's by format.
    --sensitive-as w4a16 asks for such layers.
    """

    def is_fast(other: TensorPlan) -> bool:
        return other.is_quantised and multiplied(other).word != HALF.kernel

    if not plan.is_quantised or is_fast(plan) or options.sensitive_as == "w4a16":
        return False
    return any(is_fast(other) and plan.precision <= other.precision for other in plans.values())


def least_fp4(
    options: Options,
    plans: Iterable[TensorPlan],
    candidates: dict[str, list[TensorPlan]],
    work: dict[str, float],
) -> float:
    """Return the share of the work that the open layers have to do in W4A4, for --fp4-share.

    Choices that other options settle count, too. Raises ConvertError where not enough can be W4A4.
    """
    if options.fp4_share is None:
        return 0.0
    settled = [p.ref.name for p in plans if is_in_fp4(p) and p.ref.name not in candidates]
    able = [name for name, rows in candidates.items() if any(map(is_in_fp4, rows))]
    done, most = (sum(work[name] for name in names) for names in (settled, settled + able))
    if most < options.fp4_share - 1e-9:
        raise ConvertError(
            f"--fp4-share {options.fp4_share:g}: at most {math.floor(1000 * most) / 10:g} % of the "
            "multiply work can be W4A4; other options, or the layers' shapes, keep the rest from it"
        )
    return options.fp4_share - done
