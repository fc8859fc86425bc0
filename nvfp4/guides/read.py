"""Read all guides of a conversion, each file once.

Guides are the files that steer a plan: GGUF, layer config, calibration, recordings, sensitivity,
layer list. `read_guides` makes one frozen record of them, matched to the source, from which any
number of plans is made without opening a file again. The parsing stands in the other modules here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvfp4.coverage import Cover, check_blocks
from nvfp4.guides.calibration import (
    match_calibration,
    read_reference_scales,
    read_summary,
    recorded_calibration,
    summary_calibration,
)
from nvfp4.guides.family import find_family
from nvfp4.guides.gguf import match_gguf
from nvfp4.guides.layer_config import match_layer_list, read_layer_config
from nvfp4.guides.parts import part_guides
from nvfp4.guides.recording import add_recordings, check_recording, named_as_in, read_recording
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
    # Text encoders beside a diffusion model go by their own rows, and by no file.
    parts, model, partial = part_guides(options, model), model.main, options.partial_guide
    family, notes = find_family(options, model)
    kinds, lacking = match_gguf(options.gguf, model, partial) if options.gguf else (None, [])
    # An option that was not given has no file to match.
    settings = read_layer_config(options.layer_config, model) if options.layer_config else []
    path = options.input_scale_from
    reference, odd = read_reference_scales(path) if path else ({}, [])
    # By path, so that a file that is named twice, or as --sensitivity-json too, is read once.
    recordings = {path: read_recording(path) for path in dict.fromkeys(options.activation_stats)}
    # A file that is named twice counts twice, as two equal recordings would.
    recording = add_recordings((path, recordings[path]) for path in options.activation_stats)
    recording = named_as_in(model, recording)
    summary, left_out = read_summary(options)
    sources = calibration_sources(options, reference, recording, summary)
    listed = options.full_precision_mm_layers
    guides = Guides(
        family=family,
        kinds=kinds,
        settings=tuple(settings),
        calibration=match_calibration(options, model, sources),
        recording=recording,
        listed=match_layer_list(listed, model, partial) if listed else None,
        notes=(*notes, *lacking, *odd, *left_out),
        parts=parts,
    )
    # Measured figures come after the rest, as what clips depends on the input scales.
    figures, unmeasured = read_sensitivity(options, recordings, summary, guides.scales)
    measured = measured_layers(options, model, figures, summary)
    # A recording of --sensitivity-json alone is matched to the model by `measured_layers`.
    if options.activation_stats:
        check_recording(recording, model)
    covers = covers_of(options, sources, recording)
    # Figures may be of a few layers, as people write such files by hand: no layer has to be there.
    measures = [Cover((options.sensitivity_json,), frozenset(figures))] if figures else []
    parts = [n for cover in (*covers, *measures) for n in check_blocks(cover, model, partial)]
    notes = (*guides.notes, *unmeasured, *parts)
    return dataclasses.replace(guides, measured=measured, covers=tuple(covers), notes=notes)


def calibration_sources(
    options: Options,
    reference: dict[str, Calibration],
    recording: dict[str, Recorded],
    summary: list[dict],
) -> list[tuple[Path, dict[str, Calibration]]]:
    """List the files that options take input scales from, each with {bare layer: Calibration}.

    In order of precedence: `reference`, of --input-scale-from; `recording`, with
    --input-scale-policy headroom; `summary`, a calibration summary's rows.
    """
    sources = []
    if options.input_scale_from:
        sources.append((options.input_scale_from, reference))
    if options.input_scale_policy == "headroom":
        sources.append((options.activation_stats[0], recorded_calibration(options, recording)))
    if options.input_scale_summary_json:
        rows = summary_calibration(options, summary)
        sources.append((options.input_scale_summary_json, rows))
    return sources


def covers_of(
    options: Options,
    sources: list[tuple[Path, dict[str, Calibration]]],
    recording: dict[str, Recorded],
) -> list[Cover]:
    """List the guides that have to cover the source, with the layers that each one tells of.

    Sources of input scales cover it together. With --input-scale-value no layer lacks one.
    """
    covers = []
    if sources and options.input_scale_value is None:
        files = tuple(path for path, _ in sources)
        covers.append(Cover(files, frozenset().union(*(rows for _, rows in sources))))
    if recording:
        covers.append(Cover(options.activation_stats, frozenset(recording)))
    return covers


def read_sensitivity(
    options: Options,
    recordings: dict[Path, dict[str, Recorded]],
    summary: list[dict],
    scales: dict[str, Calibration],
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return {bare layer: {figure: value}} of --sensitivity-json, {} without it, and notes.

    The file may be a recording (.safetensors) or JSON, and it may be the same as another guide,
    whose content is then used again: `recordings` are by path, `summary` has the summary's rows.
    `scales` are the layers' input scales, by which a recording tells what clips.
    """
    path = options.sensitivity_json
    if path is None:
        return {}, []
    # The two kinds are told by the suffix alone: a recording is never JSON.
    if path.suffix.lower() == ".safetensors":
        read_already = path in recordings
        recording = recordings[path] if read_already else read_recording(path)
        return recorded_sensitivity(recording, scales), []
    is_summary = path == options.input_scale_summary_json
    rows = summary if is_summary else read_rows(path, "sensitivity file")
    return listed_sensitivity(options, rows)
