"""Describe a finished or planned conversion as data.

`conversion` fills a Report; `report_data` makes JSON-ready objects of it. The text on the terminal
(`summary`) reads the Report itself, the page (`page`) the data, so that --report's .json and .html
always tell the same. Figures are computed here once; wording and layout stand in the others.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from nvfp4.asking.answers import Answer
from nvfp4.fit import Stage, stage_data
from nvfp4.formats.floats import HALF
from nvfp4.layout import bytes_in_output, planned_tensors
from nvfp4.notes import by_rank
from nvfp4.numeric.damage import Damage
from nvfp4.options import Options, __version__
from nvfp4.plan.multiply_work import family_of, planned_work
from nvfp4.plan.records import TensorPlan, weights_of
from nvfp4.report.loading import loading_data
from nvfp4.report.usual import errors_data, outliers_data
from nvfp4.tune.activations import CurvePoint
from nvfp4.tune.target_size import SizePoint
from nvfp4.work import work_data

# What a conversion has checked before its file got its name; see `write.partial_files.read_back`.
CHECKED = "no defect found: names, shapes, scales, configurations, read back"
# How reports call layers that were quantised in the source already and go over untouched: they are
# kept apart from those that this conversion quantised, whose error is known.
AS_IT_WAS = "as it was"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Hold what a conversion did, or what it would do after --dry-run.

    `plans` has every tensor's fate in the source's order, `origin` is what the header tells of how
    the file was made, and sizes are those of files in bytes, headers included. `damage` is
    {layer: its error}, empty after a dry run; `curve` and `sizes` are the trade-offs that
    --w4a4-share and --target-size found, empty without them, and `size_error` the mean error of
    what --target-size chose. `asked` is what a ComfyUI answered, None where none was asked; `stage`
    is what the card of --fit holds, None without it.
    `notes` have ranks (see `notes`), and `problems` are what a run would refuse, found by a dry
    run. `seconds` is how long all of it took, and `device` what encoded: "cpu (2 cores)", or the
    name of a GPU.
    """

    options: Options
    plans: tuple[TensorPlan, ...]
    origin: dict[str, object]  # how the file was made, as its header tells
    source_bytes: int
    output_bytes: int
    notes: tuple[str, ...]
    damage: dict[str, Damage] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    sizes: tuple[SizePoint, ...] = ()
    size_error: float = 0.0
    asked: Answer | None = None
    stage: Stage | None = None
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    device: str = ""

    @property
    def work(self) -> dict:
        """Describe the multiply work of the output, for the card that it is for."""
        return work_data(planned_work(self.plans), self.options.card)


def label_of(plan: TensorPlan) -> str:
    """Name how a tensor lies in the output: "NVFP4", "FP8", AS_IT_WAS, or its safetensors dtype."""
    if plan.ref.is_kept:
        return AS_IT_WAS
    return plan.precision.kind if plan.is_quantised else plan.dtype


def totals(plans: Iterable[TensorPlan]) -> dict[str, dict[str, int]]:
    """Add up {how it is stored: {"layers", "tensors", "bytes"}}, quantised ones first.

    "layers" counts linear layers, "tensors" those of the output file, scales and configurations
    included, and "bytes" is their size without the header.
    """
    groups = defaultdict(list)
    for plan in plans:
        # Sorted by precision first; all unquantised formats count as one and go by their dtype.
        groups[min(plan.precision.rank, HALF.rank), label_of(plan)].append(plan)
    return {
        label: {
            "layers": sum(plan.is_layer for plan in members),
            "tensors": sum(len(planned_tensors(plan)) for plan in members),
            "bytes": sum(map(bytes_in_output, members)),
        }
        for (_, label), members in sorted(groups.items())
    }


def matmul(plan: TensorPlan) -> str:
    """Name a layer's matmul by bits: W4A4, W4A16, W8A8 or W8A16.

    The first number is the bits of a stored weight, the second those of the activations that it is
    multiplied by. With full-precision matmul the activations stay 16-bit.
    """
    # The mark is read from the configuration, as layers that were quantised in the source have it
    # only there.
    form = plan.format
    activations = 16 if plan.is_decoded else form.activation_bits
    return f"W{form.weight_bits}A{activations}"


def matmuls(plans: Iterable[TensorPlan]) -> dict[str, dict[str, float]]:
    """Add up {matmul: {"layers", "share"}} over the quantised layers.

    "share" is the part of all linear weights, those of unquantised layers and banks of experts
    included, so that the shares sum up to less than 1 where some stay 16-bit.
    """
    # Packed layers of the source count, too: their configuration tells how they are multiplied.
    multiplied = [plan for plan in plans if plan.is_multiplied]
    every, kinds = weights_of(multiplied), defaultdict(list)
    for plan in multiplied:
        if plan.is_quantised or plan.ref.config:
            kinds[matmul(plan)].append(plan)
    return {
        kind: {"layers": len(found), "share": weights_of(found) / every}
        for kind, found in sorted(kinds.items())
    }


def summary_data(report: Report) -> dict:
    """Make all of the report JSON-ready that is not of single tensors.

    A user's scripts may read the keys; docs/report.schema.json has them all. Files appear by name
    only, without folders.
    """
    options = report.options
    forms = {plan.ref.layer: plan.precision for plan in report.plans if plan.is_quantised}
    return {
        "task": "conversion",
        "version": __version__,
        "dry_run": options.dry_run,
        "source": report.options.source.name,
        "output": report.options.written.name,
        "source_bytes": report.source_bytes,
        "output_bytes": report.output_bytes,
        "seconds": round(report.seconds, 3) or None,
        "device": report.device or None,
        "checked": None if options.dry_run else CHECKED,
        "origin": report.origin,
        "totals": totals(report.plans),
        "matmuls": matmuls(report.plans),
        "work": report.work,
        "load": loading_of(report),
        "errors": errors_data(report.damage, forms),
        "outliers": outliers_data(report.damage, forms),
        "comfyui": report.asked.data if report.asked else None,
        "notes": [note.data for note in by_rank(report.notes)],
        "problems": list(report.problems),
        "w4a4_curve": [point._asdict() for point in report.curve],
        "size_curve": [point._asdict() for point in report.sizes],
        "size_error": report.size_error if report.sizes else None,
        "fit": stage_data(report.stage, report.output_bytes) if report.stage else None,
    }


def loading_of(report: Report) -> dict[str, str | None]:
    """Describe the next step in ComfyUI, for JSON."""
    took = report.asked is not None and report.asked.is_known
    shapes = {plan.ref.name: plan.ref.shape for plan in report.plans}
    known = took or bool(family_of(report.plans))
    return loading_data(shapes, sharded=report.options.output_sharded, known=known)


def report_data(report: Report) -> dict:
    """Make the whole report JSON-ready: the summary, and every tensor's plan, reason and error.

    This is what --report's .json has; the page is made of the same data.
    """
    return {
        **summary_data(report),
        "tensors": [tensor_data(plan, report.damage.get(plan.ref.layer)) for plan in report.plans],
    }


def tensor_data(plan: TensorPlan, damage: Damage | None) -> dict:
    """Describe one tensor of the plan, with its layer's error where one was measured.

    A quantised layer has its matmul and input scale besides; after a conversion also
    `relative_rmse` and `sqnr_db` of the decoded weight, and the output errors if it was rounded by
    statistics. Figures that there are none of are None.
    """
    data = {
        "name": plan.ref.name,
        "shape": plan.ref.shape,
        "source_dtype": plan.ref.dtype,
        "precision": plan.precision.name,
        "reason": str(plan.reason),
        "stored_as": label_of(plan),
        "stored": {key: dtype for key, (dtype, _) in planned_tensors(plan).items()},
        "bytes": bytes_in_output(plan),
    }
    if plan.is_quantised and not plan.is_looked_up:
        data |= {
            "matmul": matmul(plan),
            "full_precision_mm": str(plan.full_precision) if plan.full_precision else None,
            "input_scale": plan.input_scale,
            "input_scale_source": plan.input_scale_source or None,
            "saturated_blocks": plan.saturated_blocks,
        }
    if damage is not None and plan.is_quantised:
        lossless = math.isinf(damage.sqnr_db)  # stored as null, as JSON has no infinity
        data |= {
            "relative_rmse": damage.relative_rmse,
            "sqnr_db": None if lossless else damage.sqnr_db,
            "output_before": damage.output_before,
            "output_after": damage.output_after,
            "output_w4a4": damage.output_w4a4,
        }
    return data


def render_json(data: dict) -> str:
    """Render the data as the text of a .json file; raises ValueError for NaN and infinity."""
    # Python would write NaN as a bare word that other JSON parsers refuse.
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def json_line(data: dict) -> str:
    """Render data as one line of JSON, for --json; raises ValueError for NaN and infinity."""
    return json.dumps(data, allow_nan=False)
