"""All guides of a conversion, each file read once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvfp4.guides.calibration import (
    match_calibration,
    read_reference_scales,
    recorded_calibration,
    summary_calibration,
)
from nvfp4.guides.family import find_family
from nvfp4.guides.gguf import match_gguf
from nvfp4.guides.layer_config import match_layer_list, read_layer_config
from nvfp4.guides.recording import add_recordings, check_recording, read_recording
from nvfp4.guides.records import Calibration, Guides, Recorded
from nvfp4.guides.sensitivity import listed_sensitivity, measured_layers, recorded_sensitivity
from nvfp4.model import Model
from nvfp4.options import Options
from nvfp4.read.json_files import read_rows


def read_guides(options: Options, model: Model) -> Guides:
    """Read what options name beside the source, and match it to the source's layers.

    Every file is read once, also where two options name the same one. Raises ConvertError for a
    file that cannot be read, is damaged, or is of another model.
    """
    family, notes = find_family(options, model)
    kinds, lacking = match_gguf(options.gguf, model) if options.gguf else (None, [])
    settings = read_layer_config(options.layer_config, model) if options.layer_config else []
    reference = read_reference_scales(options.input_scale_from) if options.input_scale_from else {}
    recordings = {path: read_recording(path) for path in dict.fromkeys(options.activation_stats)}
    recording = add_recordings((path, recordings[path]) for path in options.activation_stats)
    path = options.input_scale_summary_json
    summary = read_rows(path, "calibration summary") if path else []
    listed = options.full_precision_mm_layers
    guides = Guides(
        family=family,
        kinds=kinds,
        settings=tuple(settings),
        calibration=read_calibration(options, model, reference, recording, summary),
        recording=recording,
        listed=match_layer_list(listed, model) if listed else None,
        notes=(*notes, *lacking),
    )
    figures = read_sensitivity(options, recordings, summary, guides.scales)
    measured = measured_layers(options, model, figures, summary)
    if options.activation_stats:
        check_recording(recording, model)
    return dataclasses.replace(guides, measured=measured)


def read_calibration(
    options: Options,
    model: Model,
    reference: dict[str, Calibration],
    recording: dict[str, Recorded],
    summary: list[dict],
) -> dict[str, Calibration]:
    """{layer: Calibration}: those of another file, of the recordings, of the summary's rows."""
    sources = []
    if options.input_scale_from:
        sources.append((options.input_scale_from, reference))
    if options.input_scale_policy == "headroom":
        sources.append((options.activation_stats[0], recorded_calibration(options, recording)))
    if options.input_scale_summary_json:
        rows = summary_calibration(options, summary)
        sources.append((options.input_scale_summary_json, rows))
    return match_calibration(options, model, sources)


def read_sensitivity(
    options: Options,
    recordings: dict[Path, dict[str, Recorded]],
    summary: list[dict],
    scales: dict[str, Calibration],
) -> dict[str, dict[str, float]]:
    """{bare layer: {figure: ...}} of --sensitivity-json, which may be another guide, too."""
    path = options.sensitivity_json
    if path is None:
        return {}
    if path.suffix.lower() == ".safetensors":
        read_already = path in recordings
        recording = recordings[path] if read_already else read_recording(path)
        return recorded_sensitivity(recording, scales)
    is_summary = path == options.input_scale_summary_json
    rows = summary if is_summary else read_rows(path, "sensitivity file")
    return listed_sensitivity(options, rows)
