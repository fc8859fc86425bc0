"""Record text encoders in the run that records a model: --record-encoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nvfp4.calibrate.shipped import Workflow
from nvfp4.calibrate.workflow import behind, links, outputs_of, put_recorders, type_of
from nvfp4.errors import ConvertError
from nvfp4.families import ENCODERS
from nvfp4.guides.recording import check_recording, read_recording
from nvfp4.prefixes import text_encoder
from nvfp4.read.checkpoint import open_model, opened, parse_header


def put_encoder_recorders(
    workflow: Workflow, samplers: list[str], inputs: dict[str, object], info: dict[str, dict]
) -> None:
    """Put a recorder behind each node that loads text encoders for the samplers, in place.

    inputs: those of a recorder, beside the CLIP. Raises ConvertError where no node loads one.
    """
    needed = behind(workflow, samplers)
    loaders = [
        node
        for node in workflow
        if node in needed
        and "CLIP" in outputs_of(workflow[node], info)
        and not any(
            type_of(workflow[origin], place, info) == "CLIP"
            for _, origin, place in links(workflow[node])
        )
    ]
    if not loaders:
        raise ConvertError("--record-encoder: the workflow loads no text encoder")
    put_recorders(workflow, dict.fromkeys(loaders, inputs), info, "CLIP")


def encoder_recordings_in(folder: Path) -> dict[Path, int]:
    """Find the recordings of text encoders in a folder, and when each was written."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with opened(path) as file:
                _, metadata = parse_header(path, file)
        except ConvertError:
            continue
        if metadata.get("encoder"):
            found[path] = path.stat().st_mtime_ns
    return found


def stays_16_bit(encoder: Path) -> bool:
    """Tell whether a file is a text encoder that ComfyUI loads in 16 bits alone, such as CLIP."""
    name, _ = text_encoder(encoder, open_model(encoder).tensors)
    return bool(name) and ENCODERS[name].half_only


def file_of_recording(recording: Path, encoders: Iterable[Path]) -> Path | None:
    """Find which of several encoders' files a recording is of, by its layers; None for none."""
    layers = read_recording(recording)
    for path in encoders:
        try:
            check_recording(layers, open_model(path))
        except ConvertError:
            continue
        return path
    return None
