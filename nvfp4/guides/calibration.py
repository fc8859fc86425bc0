"""Take input scales from files: summaries, recordings, quantised models.

Each source becomes {bare layer: Calibration}, which `match_calibration` matches to the model. An
input scale is the largest activation to expect over the largest value that the format can hold:
2688 for NVFP4 (6 x 448), 448 for FP8.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from nvfp4.dtypes import E4M3_MAX, NVFP4_MAX
from nvfp4.errors import ConvertError, did_you_mean, examples, in_number, of_another_model
from nvfp4.formats.base import written_formats
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.columns import percentile_key
from nvfp4.guides.records import Calibration, Recorded
from nvfp4.model import Model, TensorRef, bare, unwrapped
from nvfp4.notes import Note, Rank
from nvfp4.options import Options
from nvfp4.quantisers import quantiser_of
from nvfp4.read.checkpoint import open_model, opened, parse_header
from nvfp4.read.json_files import measured_rows, positive, read_rows
from nvfp4.read.tensors import load


def read_summary(options: Options) -> tuple[list[dict], list[str]]:
    """Read the rows of a calibration summary whose layers were measured, and a note on others.

    Without --input-scale-summary-json, both are empty. Raises ConvertError for a file that is no
    summary, or has no measured layer.
    """
    if not (path := options.input_scale_summary_json):
        return [], []
    key = percentile_key(options.input_scale_summary_percentile)
    scaled = (form.summary_column for form in written_formats() if form.summary_column)
    columns = [f"{column}_{key}" for column, _ in scaled]
    if options.input_scale_summary_fp16_std:
        columns += ["scale_std", "scale_mean"]
    return measured_rows(path, read_rows(path, "calibration summary"), columns)


def summary_calibration(options: Options, rows: list[dict]) -> dict[str, Calibration]:
    """Return {bare layer: Calibration} of a calibration summary, at one percentile over calls.

    `rows` are the summary's. NVFP4 takes column `scale_pXX`, FP8 `amax_pXX` / 448 where there is
    one; both are multiplied with --input-scale-summary-multiplier. Raises ConvertError where rows
    lack the percentile or hold no positive number.
    """
    path = options.input_scale_summary_json
    key = percentile_key(options.input_scale_summary_percentile)
    # Summaries have a fixed set of percentiles; another one is not interpolated, but refused.
    lacking = [row["layer"] for row in rows if f"scale_{key}" not in row]
    if lacking:
        known = {name for row in rows for name in row if name.startswith("scale_p")}
        # The option takes 99.9 for the column scale_p99_9.
        percentiles = (name.removeprefix("scale_p").replace("_", ".") for name in known)
        hint = did_you_mean(f"{options.input_scale_summary_percentile:g}", percentiles)
        raise ConvertError(
            f"{path}: has no scale_{key} for {examples(lacking)}; it has {examples(known)}{hint}"
        )
    multiplier = options.input_scale_summary_multiplier
    # A summary's scale is that of NVFP4 already; FP8's is made from the activation itself.
    columns = {form: form.summary_column for form in written_formats() if form.summary_column}
    source = f"summary {key.replace('_', '.')} x {multiplier:g}"
    return {
        bare(row["layer"]): Calibration(
            scales={
                form: positive(path, row, f"{column}_{key}") * multiplier / divisor
                for form, (column, divisor) in columns.items()
                if f"{column}_{key}" in row
            },
            source=source,
        )
        for row in rows
    }


def recorded_calibration(
    options: Options, recording: dict[str, Recorded]
) -> dict[str, Calibration]:
    """Return {bare layer: Calibration} with headroom over the largest magnitude that was recorded.

    The margin is --input-scale-headroom; for NVFP4 it is smaller where it would push small blocks
    into E4M3's subnormals (see `Recorded.headroom`). Layers that only saw zeros get no scale.
    Raises ConvertError for inputs that are modelled, as their maxima are.
    """
    if any(recorded.is_modelled for recorded in recording.values()):
        raise ConvertError(
            "--input-scale-policy headroom: statistics of calib/model_inputs.py have no largest "
            "values of prompts; record some, or leave the policy out"
        )
    margin = options.input_scale_headroom
    found = {}
    for layer, recorded in recording.items():
        # An input of zeros would give the scale 0, by which nothing can be divided.
        if recorded.amax > 0:
            fp8 = recorded.amax * margin / E4M3_MAX
            scales = {NVFP4: recorded.headroom(margin) / NVFP4_MAX, FP8: fp8}
            # The margin may have been cut: the report names the one that was used.
            actual = recorded.headroom(margin) / recorded.amax
            found[layer] = Calibration(scales=scales, source=f"headroom x {actual:.3g}")
    return found


def read_reference_scales(path: Path) -> tuple[dict[str, Calibration], list[str]]:
    """Read the input scales of a quantised model: a safetensors file, an index, or a folder.

    Returns {bare layer: Calibration}, and a note that counts scales which cannot be used; their
    layers have no scale for any format. Raises ConvertError where the model cannot be read, has no
    input scales, or none that can be used.
    """
    if path.is_dir() or path.suffix.lower() == ".json":
        return parse_reference_scales(path, open_model(path).tensors)
    # A single file is opened once: its header and its scales are read through the same handle.
    with opened(path) as file:
        tensors, _ = parse_header(path, file)
        return parse_reference_scales(path, tensors, file)


def parse_reference_scales(
    path: Path, tensors: dict[str, TensorRef], file: BinaryIO | None = None
) -> tuple[dict[str, Calibration], list[str]]:
    """Take the input_scale tensors of a model's header; `file` is its file, if it is open.

    Each must be a single float32 beside an NVFP4 (U8) or FP8 (F8_E4M3) weight, and positive; others
    are left out. The scale is converted to both formats by the largest activation it stands for,
    since the layer may get the other one here. Returns as `read_reference_scales` does.
    """
    found, odd = {}, {}
    scaled = [form for form in written_formats() if form.activation_max]
    for ref in tensors.values():
        layer = ref.name.removesuffix(".input_scale")
        if layer == ref.name:
            continue
        # An input scale alone does not tell its format, and so not the activation it stands for.
        weight = tensors.get(f"{layer}.weight")
        largest = next((f.activation_max for f in scaled if weight and f.stores(weight)), None)
        if ref.dtype != "F32" or ref.nbytes != 4 or largest is None:
            problem = f"{ref.name} is not one float32 beside an NVFP4 or FP8 weight"
            odd[layer] = f"{path}: {problem}"
            continue
        row = {"layer": layer, "input_scale": load(ref, file).item()}
        try:
            amax = positive(path, row, "input_scale") * largest
        except ConvertError as error:
            odd[layer] = str(error)
            continue
        scales = {form: amax / form.activation_max for form in scaled}
        found[bare(unwrapped(layer))] = Calibration(scales=scales, source=path.name)
    if not found:
        program, layers = quantiser_of(tensors)
        if program:
            raise ConvertError(
                f"{path}: is quantised by another program ({program}: {examples(layers)}), whose "
                "activations are not scaled as ComfyUI scales those of NVFP4 and FP8"
            )
        raise ConvertError(*[*odd.values()][:1] or [f"{path}: has no input_scale tensors"])
    what = in_number(len(odd), "input scales are left out")
    what = f"{what}, as none is one positive float32 beside an NVFP4 or FP8 weight"
    # The file tells of these layers all the same: it is not of another model for their sake.
    unusable = {bare(unwrapped(layer)): Calibration(scales={}, source=path.name) for layer in odd}
    notes = [Note(f"{path.name}: {what}: {examples(odd)}", Rank.NOTE)] if odd else []
    return unusable | found, notes


def match_calibration(
    options: Options, model: Model, sources: list[tuple[Path, dict[str, Calibration]]]
) -> dict[str, Calibration]:
    """Return {layer: Calibration} of the model's linear layers.

    `sources` are (file, {bare layer: Calibration}); where several have a layer, the first one
    counts, and --input-scale-value only where none has it. Raises ConvertError for a source that
    has none of the model's layers.
    """
    layers = {bare(ref.layer): ref.layer for ref in model.linear_weights}
    found = {}
    if options.input_scale_value is not None:
        # The option is for NVFP4; FP8's scale follows from the same largest activation.
        value = options.input_scale_value
        scales = {NVFP4: value, FP8: value * NVFP4_MAX / E4M3_MAX}
        calibration = Calibration(scales=scales, source="--input-scale-value")
        found = dict.fromkeys(layers.values(), calibration)
    # In reverse, so that the first source is written last and stays.
    for path, rows in reversed(sources):
        if not rows.keys() & layers.keys():
            raise of_another_model(path, it_has=rows, other_has=layers)
        # Layers that the model lacks are passed over; only a source without any of its layers is
        # refused.
        known = {name: row for name, row in rows.items() if name in layers and row.scales}
        found |= {layers[name]: row for name, row in known.items()}
    return found
