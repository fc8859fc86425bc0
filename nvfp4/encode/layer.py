"""A planned layer to its stored tensors, by least error of the weight."""

from __future__ import annotations

import re

import torch

from nvfp4.encode.compute import Compute
from nvfp4.encode.float16 import cast
from nvfp4.encode.pieces import Piece
from nvfp4.encode.rounding import round_by_moments
from nvfp4.errors import ConvertError
from nvfp4.formats.base import Encoded, Given
from nvfp4.layout import stored_tensors
from nvfp4.model import bare
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.damage import Damage
from nvfp4.plan.records import TensorPlan
from nvfp4.read.tensors import load_weight


def quantise(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute
) -> tuple[dict[str, list[torch.Tensor]], Damage]:
    """The stored tensors of one quantised layer, and the error of what they decode to."""
    weight = weight.to(compute.device)
    if plan.smoothing is not None:
        weight = weight.to(compute.dtype).float() / plan.smoothing.to(compute.device).float()
    best, bias = search_scales(plan, weight, compute), None
    if plan.moments:
        best, bias = round_by_moments(plan, weight, best, compute)
    stored = store(plan, best)
    if plan.bias:
        whole = Piece(plan=plan.bias, begin=0, end=plan.bias.ref.nbytes)
        stored[plan.bias.ref.name] = [
            cast(whole, load_weight(plan.bias.ref)) if bias is None else bias
        ]
    return stored, best.damage


def search_scales(plan: TensorPlan, weight: torch.Tensor, compute: Compute) -> Encoded:
    """The layer with the least squared error of its weight."""
    dtype = compute.dtype
    amax = torch.stack(compute.map(lambda rows: largest_magnitude(rows.to(dtype)), weight)).amax()
    if not amax.isfinite():
        as_cast = "" if dtype is torch.float32 else f" (as {dtype}, the --quant-dtype)"
        raise ConvertError(
            f"{plan.ref.path}: {plan.ref.name} holds NaN or Inf{as_cast}: the file is damaged, or "
            f"leave the layer 16-bit with --exclude '^{re.escape(bare(plan.ref.layer))}$'"
        )
    source_scale = None if plan.ref.patches else plan.ref.scale
    return plan.precision.encode(Given(plan.ref.layer, weight, amax, source_scale), compute)


def store(plan: TensorPlan, encoded: Encoded) -> dict[str, list[torch.Tensor]]:
    """{key: its rows in pieces} of a quantised layer, in the order of `stored_tensors`."""
    parts = [*plan.precision.stored(encoded, plan.ref.shape).values()]
    if plan.input_scale is not None:
        parts.append([torch.tensor(plan.input_scale, dtype=torch.float32)])
    if plan.smoothing is not None:
        parts.append([plan.smoothing])
    if plan.precision.is_configured:
        parts.append([torch.frombuffer(bytearray(plan.config_bytes), dtype=torch.uint8)])
    return dict(zip(stored_tensors(plan), parts, strict=True))
