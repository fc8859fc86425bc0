"""Input scales from files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from nvfp4.dtypes import E4M3_MAX, NVFP4_MAX
from nvfp4.errors import ConvertError, examples, of_another_model
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.records import Calibration, Recorded
from nvfp4.model import Model, bare
from nvfp4.options import Options
from nvfp4.read.checkpoint import opened, parse_header
from nvfp4.read.json_files import positive
from nvfp4.read.tensors import load


def percentile_key(percentile: float) -> str:
    """99.9 -> "p99_9", as calibration summaries name their columns."""
    return f"p{percentile:g}".replace(".", "_")


def summary_calibration(options: Options, rows: list[dict]) -> dict[str, Calibration]:
    """{bare layer: Calibration} from a calibration summary's rows, at one percentile over calls."""
    path = options.input_scale_summary_json
    key = percentile_key(options.input_scale_summary_percentile)
    lacking = [row["layer"] for row in rows if f"scale_{key}" not in row]
    if lacking:
        known = sorted({name for row in rows for name in row if name.startswith("scale_p")})
        raise ConvertError(
            f"{path}: has no scale_{key} for {examples(lacking)}; it has {examples(known)}"
        )
    multiplier = options.input_scale_summary_multiplier
    columns = {NVFP4: (f"scale_{key}", 1.0), FP8: (f"amax_{key}", E4M3_MAX)}
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


def recorded_calibration(
    options: Options, recording: dict[str, Recorded]
) -> dict[str, Calibration]:
    """{bare layer: Calibration} with headroom over the largest magnitude that was recorded."""
    margin = options.input_scale_headroom
    found = {}
    for layer, recorded in recording.items():
        if recorded.amax > 0:
            fp8 = recorded.amax * margin / E4M3_MAX
            scales = {NVFP4: recorded.headroom(margin) / NVFP4_MAX, FP8: fp8}
            actual = recorded.headroom(margin) / recorded.amax
            found[layer] = Calibration(scales=scales, source=f"headroom x {actual:.3g}")
    return found


def read_reference_scales(path: Path) -> dict[str, Calibration]:
    """{bare layer: Calibration} from the input_scale tensors of a quantised safetensors file."""
    with opened(path) as file:
        return parse_reference_scales(path, file)


def parse_reference_scales(path: Path, file: BinaryIO) -> dict[str, Calibration]:
    """Read the input_scale tensors of an open file; raises ConvertError where one is malformed."""
    tensors, _ = parse_header(path, file)
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
        row = {"layer": layer, "input_scale": load(ref, file).item()}
        amax = positive(path, row, "input_scale") * largest
        scales = {NVFP4: amax / NVFP4_MAX, FP8: amax / E4M3_MAX}
        found[bare(layer)] = Calibration(scales=scales, source=path.name)
    if not found:
        raise ConvertError(f"{path}: has no input_scale tensors")
    return found


def match_calibration(
    options: Options, model: Model, sources: list[tuple[Path, dict[str, Calibration]]]
) -> dict[str, Calibration]:
    """{layer: Calibration} of the model's linear layers, those of the first source before others.

    --input-scale-value goes last. Raises ConvertError for a source that has none of the layers.
    """
    layers = {bare(ref.layer): ref.layer for ref in model.linear_weights}
    found = {}
    if options.input_scale_value is not None:
        value = options.input_scale_value
        scales = {NVFP4: value, FP8: value * NVFP4_MAX / E4M3_MAX}
        calibration = Calibration(scales=scales, source="--input-scale-value")
        found = dict.fromkeys(layers.values(), calibration)
    for path, rows in reversed(sources):
        if not rows.keys() & layers.keys():
            raise of_another_model(path, it_has=rows, other_has=layers)
        found |= {layers[name]: row for name, row in rows.items() if name in layers}
    return found
