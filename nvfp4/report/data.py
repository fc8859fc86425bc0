"""The report as data."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from nvfp4.formats.floats import HALF
from nvfp4.layout import stored_bytes, stored_tensors
from nvfp4.numeric.damage import Damage
from nvfp4.options import Options, __version__
from nvfp4.plan.records import TensorPlan, weights_of
from nvfp4.tune.activations import CurvePoint
from nvfp4.tune.target_size import SizePoint

AS_IT_WAS = "as it was"  # how layers are stored that were quantised in the source


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done, as data; `render_report` makes text of it."""

    options: Options
    plans: tuple[TensorPlan, ...]
    origin: dict[str, object]  # how the file was made, as its header tells
    source_bytes: int
    output_bytes: int
    notes: tuple[str, ...]
    damage: dict[str, Damage] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    sizes: tuple[SizePoint, ...] = ()


def stored_as(plan: TensorPlan) -> str:
    if plan.ref.is_kept:
        return AS_IT_WAS
    return plan.precision.name if plan.is_quantised else plan.dtype


def totals(plans: Iterable[TensorPlan]) -> dict[str, dict[str, int]]:
    """{how it is stored: layers, tensors and bytes}, quantised ones first."""
    groups = defaultdict(list)
    for plan in plans:
        groups[min(plan.precision, HALF), stored_as(plan)].append(plan)
    return {
        label: {
            "layers": sum(plan.is_layer for plan in members),
            "tensors": sum(len(stored_tensors(plan)) for plan in members),
            "bytes": sum(map(stored_bytes, members)),
        }
        for (_, label), members in sorted(groups.items())
    }


def matmul(plan: TensorPlan) -> str:
    """W4A4, W4A16, W8A8 or W8A16: bits of the weight and of the activations it multiplies."""
    form = plan.format
    activations = 16 if plan.config.get("full_precision_matrix_mult") else form.activation_bits
    return f"W{form.weight_bits}A{activations}"


def matmuls(plans: Iterable[TensorPlan]) -> dict[str, dict[str, float]]:
    """{matmul: layers, and their share of all linear weights}; the rest is 16-bit."""
    layers = [plan for plan in plans if plan.is_layer]
    kinds = defaultdict(list)
    for plan in layers:
        if plan.is_quantised or plan.ref.config:
            kinds[matmul(plan)].append(plan)
    return {
        kind: {"layers": len(found), "share": weights_of(found) / weights_of(layers)}
        for kind, found in sorted(kinds.items())
    }


def report_data(report: Report) -> dict:
    """The whole report as JSON: every tensor's plan and reason, every layer's error, totals."""
    return {
        "version": __version__,
        "source": report.options.source.name,
        "output": report.options.written.name,
        "source_bytes": report.source_bytes,
        "output_bytes": report.output_bytes,
        "origin": report.origin,
        "totals": totals(report.plans),
        "matmuls": matmuls(report.plans),
        "notes": list(report.notes),
        "w4a4_curve": [point._asdict() for point in report.curve],
        "size_curve": [point._asdict() for point in report.sizes],
        "tensors": [tensor_data(plan, report.damage.get(plan.ref.layer)) for plan in report.plans],
    }


def tensor_data(plan: TensorPlan, damage: Damage | None) -> dict:
    data = {
        "name": plan.ref.name,
        "shape": plan.ref.shape,
        "source_dtype": plan.ref.dtype,
        "precision": plan.precision.name,
        "reason": str(plan.reason),
        "stored_as": stored_as(plan),
        "stored": {key: dtype for key, (dtype, _) in stored_tensors(plan).items()},
        "bytes": stored_bytes(plan),
    }
    if plan.is_quantised:
        data |= {
            "matmul": matmul(plan),
            "full_precision_mm": str(plan.full_precision) if plan.full_precision else None,
            "input_scale": plan.input_scale,
            "input_scale_source": plan.input_scale_source or None,
            "saturated_blocks": plan.saturated_blocks,
        }
        if damage is not None and plan.is_quantised:
            lossless = math.isinf(damage.sqnr_db)  # JSON has no infinity
            data |= {
                "relative_rmse": damage.relative_rmse,
                "sqnr_db": None if lossless else damage.sqnr_db,
                "output_before": damage.output_before,
                "output_after": damage.output_after,
                "output_w4a4": damage.output_w4a4,
            }
    return data


def render_json(data: dict) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
