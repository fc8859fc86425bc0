"""Input scales and sensitivities from files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nvfp4.errors import ConvertError, examples
from nvfp4.formats import E4M3_MAX, NVFP4_MAX, Precision
from nvfp4.guides.recording import read_recording, read_recordings
from nvfp4.model import Model, bare
from nvfp4.options import Options
from nvfp4.read.checkpoint import read_header
from nvfp4.read.json_files import is_figure, positive, read_rows
from nvfp4.read.tensors import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Input scales of one layer, by what its weight becomes; where they come from."""

    scales: dict[Precision, float]
    source: str


def percentile_key(percentile: float) -> str:
    """99.9 -> "p99_9", as calibration summaries name their columns."""
    return f"p{percentile:g}".replace(".", "_")


def read_summary(options: Options) -> dict[str, Calibration]:
    """{bare layer: Calibration} from a calibration summary, at one percentile over calls."""
    path = options.input_scale_summary_json
    rows = read_rows(path, "calibration summary")
    key = percentile_key(options.input_scale_summary_percentile)
    lacking = [row["layer"] for row in rows if f"scale_{key}" not in row]
    if lacking:
        known = sorted({name for row in rows for name in row if name.startswith("scale_p")})
        raise ConvertError(
            f"{path}: has no scale_{key} for {examples(lacking)}; it has {examples(known)}"
        )
    multiplier = options.input_scale_summary_multiplier
    columns = {Precision.NVFP4: (f"scale_{key}", 1.0), Precision.FP8: (f"amax_{key}", E4M3_MAX)}
    source = f"summary {key.replace('_', '.')} x {multiplier:g}"
    return {
        bare(row["layer"]): Calibration(
            scales={
                precision: positive(path, row, column) * multiplier / divisor
                for precision, (column, divisor) in columns.items()
                if column in row
            },
            source=source,
        )
        for row in rows
    }


def recorded_calibration(options: Options) -> dict[str, Calibration]:
    """{bare layer: Calibration} with headroom over the largest magnitude that was recorded."""
    margin = options.input_scale_headroom
    found = {}
    for layer, recorded in read_recordings(options.activation_stats).items():
        if recorded.amax > 0:
            fp8 = recorded.amax * margin / E4M3_MAX
            scales = {Precision.NVFP4: recorded.headroom(margin) / NVFP4_MAX, Precision.FP8: fp8}
            actual = recorded.headroom(margin) / recorded.amax
            found[layer] = Calibration(scales=scales, source=f"headroom x {actual:.3g}")
    return found


def read_sensitivity(
    path: Path, wanted: list[str], calibration: dict[str, Calibration]
) -> dict[str, dict[str, float]]:
    """{bare layer: {"rel_rmse": ..., "clip_rate": ...}} from a sensitivity JSON, which may lack
    what is not wanted, a summary with rel_rmse, or a recording.

    A recording's clip rate is the share of blocks that saturate at the layer's input scale.
    """
    if path.suffix.lower() == ".safetensors":
        scales = {
            bare(layer): row.scales[Precision.NVFP4]
            for layer, row in calibration.items()
            if Precision.NVFP4 in row.scales
        }
        return {
            layer: {
                "rel_rmse": recorded.rel_rmse,
                "clip_rate": recorded.saturated(scales.get(layer, math.inf)),
            }
            for layer, recorded in read_recording(path).items()
        }
    figures = {}
    for row in read_rows(path, "sensitivity file"):
        found = {figure: row.get(f"{figure}_mean", row.get(figure)) for figure in wanted}
        if wrong := [figure for figure, value in found.items() if not is_figure(value)]:
            raise ConvertError(f"{path}: layer {row['layer']}: needs a number as {wrong[0]}_mean")
        figures[bare(row["layer"])] = found
    return figures


def varying_layers(options: Options) -> set[str]:
    """Bare layers whose input scale varies over calls, by deviation or coefficient of variation.

    Without a threshold on the deviation, that of nine tenths of the layers is one.
    """
    path = options.input_scale_summary_json
    rows = {bare(row["layer"]): row for row in read_rows(path, "calibration summary")}
    wrong = [
        name
        for name, row in rows.items()
        if not all(is_figure(row.get(column)) for column in ("scale_std", "scale_mean"))
    ]
    if wrong:
        raise ConvertError(f"{path}: has no scale_std and scale_mean for {examples(wrong)}")
    limit = options.input_scale_summary_std_threshold
    if limit is None:
        limit = sorted(row["scale_std"] for row in rows.values())[int((len(rows) - 1) * 0.9)]
    return {
        name
        for name, row in rows.items()
        if row["scale_std"] > 0
        and (
            row["scale_std"] >= limit
            or row["scale_std"] >= options.input_scale_summary_cv_threshold * row["scale_mean"]
        )
    }


def read_reference_scales(path: Path) -> dict[str, Calibration]:
    """{bare layer: Calibration} from the input_scale tensors of a quantised safetensors file."""
    tensors, _ = read_header(path)
    found = {}
    for ref in tensors.values():
        layer = ref.name.removesuffix(".input_scale")
        if layer == ref.name:
            continue
        weight = tensors.get(f"{layer}.weight")
        largest = {"U8": NVFP4_MAX, "F8_E4M3": E4M3_MAX}.get(weight.dtype if weight else "")
        if ref.dtype != "F32" or ref.nbytes != 4 or largest is None:
            problem = f"{ref.name} is not one float32 beside an NVFP4 or FP8 weight"
            raise ConvertError(f"{path}: {problem}")
        row = {"layer": layer, "input_scale": load(ref).item()}
        amax = positive(path, row, "input_scale") * largest
        scales = {Precision.NVFP4: amax / NVFP4_MAX, Precision.FP8: amax / E4M3_MAX}
        found[bare(layer)] = Calibration(scales=scales, source=path.name)
    if not found:
        raise ConvertError(f"{path}: has no input_scale tensors")
    return found


def read_calibration(options: Options, model: Model) -> dict[str, Calibration]:
    """{layer: Calibration} of the model's linear layers: file, recording, summary, value."""
    sources = []
    if options.input_scale_from:
        sources.append((options.input_scale_from, read_reference_scales(options.input_scale_from)))
    if options.input_scale_policy == "headroom":
        sources.append((options.activation_stats[0], recorded_calibration(options)))
    if options.input_scale_summary_json:
        sources.append((options.input_scale_summary_json, read_summary(options)))
    layers = {bare(ref.layer): ref.layer for ref in model.linear_weights}
    found = {}
    if options.input_scale_value is not None:
        value = options.input_scale_value
        scales = {Precision.NVFP4: value, Precision.FP8: value * NVFP4_MAX / E4M3_MAX}
        calibration = Calibration(scales=scales, source="--input-scale-value")
        found = dict.fromkeys(layers.values(), calibration)
    for path, rows in reversed(sources):
        if not rows.keys() & layers.keys():
            raise ConvertError(
                f"{path}: is of another model: none of its layers is in the source; "
                f"it has {examples(rows)}; the source has {examples(layers)}"
            )
        found |= {layers[name]: row for name, row in rows.items() if name in layers}
    return found
