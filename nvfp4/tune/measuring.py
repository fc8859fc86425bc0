"""Measure what each alternative of a layer costs: bytes, and the squared error of the output.

The error has two parts, which are independent and add up: that of the weight, on some of its rows,
and that of activations that ComfyUI quantises, on recorded rows or, without a recording, on made-up
ones.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.encode.compute import Compute, pick_device, single_threaded
from nvfp4.encode.layer import measure_rows
from nvfp4.encode.pieces import Piece, read_ahead, tensors_of_rank
from nvfp4.errors import printable
from nvfp4.formats.base import Format
from nvfp4.layout import bytes_in_output
from nvfp4.model import bare
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.damage import Damage, damage_unit, measure_damage, squared
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.scale_search import SCALE_SEARCHES
from nvfp4.options import Options
from nvfp4.plan.multiply_work import is_in_fp4
from nvfp4.plan.records import TensorPlan
from nvfp4.progress import progress_bar
from nvfp4.ranks import Ranks
from nvfp4.read.tensors import load
from nvfp4.tune.choice import Alternative, Choices
from nvfp4.tune.importance import branch_ended

# A weight of more than twice as many rows is measured on about this many, evenly spaced: errors of
# rows differ so little that the error is within 1 or 2 % of the whole weight's.
MEASURED_ROWS = 512
# Rows of a weight that recorded inputs are multiplied by.
STUDIED_OUTPUTS = 256
# Inputs are made up as this many rows of normal numbers, each channel times exp(SPREAD * normal).
# The spread is the standard deviation of log(RMS) over channels in a recording of
# a small trained Wan, 0.45 in the mean over its layers. Measurements there / made up: NVFP4
# 0.0934 / 0.0930, INT8 rotated 0.0067 / 0.0070 (0.0077 / 0.0077 of 768 channels), not rotated
# 0.0123 / 0.0103, FP8 0.0264 / 0.0265.
MADE_ROWS, SPREAD = 64, 0.45


class Measurements(NamedTuple):
    """Hold what was measured of layers, by the names of their weights.

    choices: {weight: its alternatives}; energies: {weight: mean square of the layer's output}, of
    layers that end a branch of a block and have recorded inputs.
    """

    choices: Choices
    energies: dict[str, float]


def measure_alternatives(
    options: Options,
    candidates: dict[str, list[TensorPlan]],
    ranks: Ranks,
    work: dict[str, float] | None = None,
) -> Measurements:
    """Measure every candidate's size and error, and what branches add to the residual stream.

    `candidates` is {weight: its plans}, `work` {weight: its share of the multiply work}. Some rows
    of each weight are quantised in each way; the ranks of a torchrun share the weights, and all of
    them get all results, in the order of the candidates.
    """
    work = work or {}
    # The first candidate has the lowest precision: it is quantised. Rows of all of it are measured.
    plans = tensors_of_rank([rows[0] for rows in candidates.values()], ranks)
    pieces = [Piece(plan=plan, begin=0, end=plan.ref.nbytes) for plan in plans]
    dtype, search = TORCH_DTYPES[DTYPE_OPTIONS[options.quant_dtype]], options.scale_search
    found, energies = {}, {}
    device, nbytes = pick_device(options.device, ranks), sum(piece.nbytes for piece in pieces)
    with (
        single_threaded() as threads,
        Compute(device, dtype, SCALE_SEARCHES[search], threads) as compute,
        progress_bar("measuring", nbytes, quiet=options.quiet) as bar,
    ):
        # Measurements decide precisions: all of them are made by the same code.
        bar.at("compiling kernels")
        compute.compile(plans)
        pinned = compute.device.type == "cuda"
        for piece, weight in read_ahead(pieces, options.buffers, pinned=pinned):
            name = piece.plan.ref.name
            bar.at(printable(name))
            # All alternatives of a layer are measured while its weight is in memory.
            found[name] = [
                Alternative(
                    precision=plan.precision,
                    nbytes=bytes_in_output(plan),
                    error=weight_error(plan, weight, compute) + input_error(plan, weight),
                    fp4=work.get(name, 0.0) if is_in_fp4(plan) else 0.0,
                )
                for plan in candidates[name]
            ]
            if piece.plan.moments and branch_ended(bare(piece.plan.ref.layer)):
                outputs = recorded_rows(piece.plan) @ some_outputs(weight).t()
                energies[name] = float(outputs.double().square().mean())
            bar.update(piece.nbytes)
    made = [*ranks.gather((found, energies))]
    every = {name: rows for share, _ in made for name, rows in share.items()}
    # In source order again, which the ranks' results are not: ties go by it.
    choices = {name: every[name] for name in candidates}
    return Measurements(
        choices, {name: value for _, share in made for name, value in share.items()}
    )


def some_outputs(weight: torch.Tensor) -> torch.Tensor:
    """Take some rows of a weight [N, K], evenly spaced, for recorded inputs: float32 [n, K]."""
    return weight[:: max(1, len(weight) // STUDIED_OUTPUTS)].float()


def weight_error(plan: TensorPlan, weight: torch.Tensor, compute: Compute) -> float:
    """Return the squared relative error of a weight as planned: of its output, if that is known.

    `weight` [N, K] is the layer's weight as it was read, of which some rows are measured. Without
    statistics it is the error of the decoded weight.
    """
    rows = slice(None, None, max(1, len(weight) // MEASURED_ROWS))
    if plan.is_quantised:
        damage = measure_rows(plan, weight, compute, rows)
    else:
        dtype = TORCH_DTYPES[plan.dtype]
        unit = damage_unit(largest_magnitude(weight[rows]))

        def measure(some: torch.Tensor) -> Damage:
            return measure_damage(some.float() / unit, some.to(dtype).float() / unit)

        damage = Damage.total(compute.map(measure, weight[rows]), unit)
    # Rounding by statistics trades the weight's error for the output's, which then counts.
    known = damage.relative_rmse if damage.output_after is None else damage.output_after
    return known**2


def input_error(plan: TensorPlan, weight: torch.Tensor) -> float:
    """Return the squared relative error of a layer's output that quantised activations add.

    `weight` is [N, K]. Without recorded rows it is that of made-up activations by themselves: a
    weight of random signs passes it on as it is.
    """
    if not plan.quantises_input:
        return 0.0
    if plan.moments is None:
        return made_up_error(plan.precision, plan.ref.shape[1])
    outputs = some_outputs(weight)
    # A relative error is the same in any units, but squares have to stay in float32's range.
    return added_error(plan, recorded_rows(plan), outputs / damage_unit(largest_magnitude(outputs)))


def recorded_rows(plan: TensorPlan) -> torch.Tensor:
    """Load the rows of a layer's input that recordings kept: float32 [r, K]."""
    return torch.cat([load(refs[2]).float() for refs in plan.moments.recordings])


def added_error(plan: TensorPlan, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Measure the squared error of an output that quantising the input adds, over its energy.

    rows: recorded inputs [r, K]; weight: some exact rows [n, K]; both float32. 0 where the output
    is.
    """
    energy = squared(rows @ weight.t())
    error = plan.precision.quantised_input(rows, plan.input_scale) - rows
    return squared(error @ weight.t()) / energy if energy else 0.0


@functools.cache
def made_up_error(form: Format, columns: int) -> float:
    """Return the squared relative error of quantising activations that nobody recorded.

    They are made up as the constants above say, always the same ones for a number of columns. An
    input scale, where the format needs one, is that of the largest of them.
    """
    made = torch.Generator().manual_seed(columns)
    channels = (SPREAD * torch.randn(columns, generator=made)).exp()
    rows = torch.randn(MADE_ROWS, columns, generator=made) * channels
    scale = float(rows.abs().max()) / form.activation_max if form.needs_input_scale else None
    return squared(form.quantised_input(rows, scale) - rows) / squared(rows)
