"""Encode one planned layer into the tensors that are stored of it.

`quantise` is what a conversion and --target-size call for each weight: smoothing, the scale search
of the layer's format, rounding by statistics where there are some, and the bias that goes along.
"""

from __future__ import annotations

import dataclasses
import re

import torch

from nvfp4.encode.compute import Compute
from nvfp4.encode.float16 import cast
from nvfp4.encode.pieces import Piece
from nvfp4.encode.rounding import bias_by_mean, round_by_moments
from nvfp4.errors import ConvertError
from nvfp4.formats.encoding import Encoded, Given
from nvfp4.layout import planned_tensors
from nvfp4.model import bare
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.damage import Damage
from nvfp4.numeric.rotation import LARGEST_ROTATED
from nvfp4.plan.records import TensorPlan
from nvfp4.read.tensors import coded_scales, load, load_weight


def quantise(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute
) -> tuple[dict[str, list[torch.Tensor]], Damage]:
    """Encode a weight as planned, with its bias where that goes along.

    plan: of a quantised layer; weight: [N, K], as read, on the CPU. Returns the layer's tensors,
    {key: rows in pieces} on the device of `compute`, and the damage of the weight, with output
    errors if it was rounded by statistics. Raises ConvertError where the weight holds NaN or Inf.
    """
    best, bias = encode_weight(plan, weight, compute)
    stored = store(plan, best)
    if plan.bias:
        whole = Piece(plan=plan.bias, begin=0, end=plan.bias.ref.nbytes)
        # The bias goes along with its layer, as rounding by statistics may have moved it.
        stored[plan.bias.ref.name] = [
            cast(whole, load_weight(plan.bias.ref)) if bias is None else bias
        ]
    return stored, best.damage


def measure_rows(plan: TensorPlan, weight: torch.Tensor, compute: Compute, rows: slice) -> Damage:
    """Measure what `quantise` would lose, on some rows of a weight at the scale of all of it.

    The other arguments and what is raised are those of `quantise`, rows: the rows to take.
    """
    return encode_weight(plan, weight, compute, rows)[0].damage


def encode_weight(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute, rows: slice = slice(None)
) -> tuple[Encoded, torch.Tensor | None]:
    """Encode a weight, or some rows of it: smoothing, scale search, rounding by statistics.

    weight: [N, K], as read. Returns the encoding, and the bias of these rows where statistics moved
    it. Raises ConvertError where the weight holds NaN or Inf, in whatever rows.
    """
    # On a CPU this is no copy, and --target-size quantises the same weight in several ways: nothing
    # below may change it.
    weight = weight.to(compute.device)
    # ComfyUI multiplies the input by the smoothing, which the weight is divided by.
    if plan.smoothing is not None:
        weight = weight.to(compute.dtype).float() / plan.smoothing.to(compute.device).float()
    kept = as_stored(plan, weight, rows)
    best = kept or search_scales(plan, weight, compute, rows)
    if plan.moments and not kept:
        return round_by_moments(plan, weight[rows], best, compute, rows)
    if plan.mean is None or kept:
        return best, None
    return best, bias_by_mean(plan, weight[rows], best, compute, rows)


def as_stored(plan: TensorPlan, weight: torch.Tensor, rows: slice) -> Encoded | None:
    """Take codes and scales as the source has them, where nothing changed their layer.

    weight: what they decode to; rows: those to take. Returns None where the layer is encoded anew:
    it had another format, or one scale, which the format's own encoder goes by.
    """
    ref, form = plan.ref, plan.precision
    if not plan.keeps_codes or form.has_one_scale:
        return None
    if ref.coding.scale is None:
        by_rows, scale = coded_scales(ref, ref.coding)
    else:
        # One scale for all rows is written once for each.
        by_rows, scale = [torch.full((ref.shape[0], 1), ref.coding.scale)], torch.ones(())
    # Squares of weights of any size are in float64's range.
    norm = torch.linalg.vector_norm(weight[rows], dtype=torch.float64)
    damage = Damage(error=0.0, energy=float(norm) ** 2)
    some = tuple(part[rows] for part in by_rows)
    kept = Encoded(codes=(load(ref)[rows],), by_rows=some, scale=scale, damage=damage)
    made, expected = form.pack(kept, ref.shape).values(), form.parts(ref.shape).values()
    # Other programs have scales of blocks where the format itself has them of rows.
    same = (part[0].shape[1:] == shape[1:] for part, (_, shape) in zip(made, expected, strict=True))
    return kept if all(same) else None


def search_scales(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute, rows: slice = slice(None)
) -> Encoded:
    """Encode rows of a weight with the least squared error, by its format's scale search.

    weight: [N, K] on the device of `compute`, smoothing applied. Raises ConvertError where it is
    not finite, in whatever rows, also where only the cast to --quant-dtype makes it so, or too
    large to be rotated; the message names the option that leaves the layer out.
    """
    dtype = compute.dtype
    amax = torch.stack(compute.map(lambda some: largest_magnitude(some.to(dtype)), weight)).amax()
    if not amax.isfinite() or (plan.precision.rotated and amax > LARGEST_ROTATED):
        as_cast = "" if dtype is torch.float32 else f" (as {dtype}, the --quant-dtype)"
        held = f"NaN or Inf{as_cast}"
        if amax.isfinite():
            held = f"numbers too large to be rotated for {plan.precision} ({float(amax):.1e})"
        raise ConvertError(
            f"{plan.ref.path}: {plan.ref.name} holds {held}: the file is damaged, or leave the "
            f"layer 16-bit with --exclude '^{re.escape(bare(plan.ref.layer))}$'"
        )
    given = Given(plan.ref.layer, weight[rows].contiguous(), amax, plan.kept_scale)
    best = plan.precision.encode(given, compute)
    if best.damage.energy or not given.weight.any():
        return best
    # The cast to --quant-dtype made zeros of weights whose squares are too small for the units.
    return dataclasses.replace(best, damage=Damage(error=1.0, energy=1.0))


def store(plan: TensorPlan, encoded: Encoded) -> dict[str, list[torch.Tensor]]:
    """List the tensors of a quantised layer: {key: its rows in pieces}.

    They come in the order of `planned_tensors`: the format's own parts, input scale F32, smoothing
    BF16, and the configuration as U8, each where the plan has it.
    """
    # `planned_tensors` has the same parts in the same order; strict zip holds the two together.
    parts = [*plan.precision.pack(encoded, plan.ref.shape).values()]
    if plan.input_scale is not None:
        parts.append([torch.tensor(plan.input_scale, dtype=torch.float32)])
    if plan.smoothing is not None:
        parts.append([plan.smoothing])
    if plan.precision.is_configured:
        parts.append([torch.frombuffer(bytearray(plan.config_bytes), dtype=torch.uint8)])
    return dict(zip(planned_tensors(plan), parts, strict=True))
