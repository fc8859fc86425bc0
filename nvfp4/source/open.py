"""Open a model to convert: its quantised layers decoded, kept or refused.

A source may hold FP8 or NVFP4 layers of an earlier conversion. What becomes of each is decided
here, from headers and scales, and written into its TensorRefs: nothing is decoded before
`read.tensors` reads it. Planning then sees FP8 layers as 16-bit ones, and leaves kept ones alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

from nvfp4.dtypes import ONE_BYTE
from nvfp4.errors import ConvertError, examples
from nvfp4.formats.base import is_quantised_part, layer_parts, marker_names
from nvfp4.model import (
    COMFYUI_PREFIX,
    UNREAD_PREFIXES,
    Source,
    TensorRef,
    diffusion_prefix,
    renamed,
)
from nvfp4.read.checkpoint import open_model
from nvfp4.source.loras import LORA_KEY
from nvfp4.source.quantisers import quantiser_of
from nvfp4.stored.defects import DEFECTS, grouped
from nvfp4.stored.layers import StoredLayer, stored_layers, stored_scale, undecodable
from nvfp4.stored.lint import FileFacts, lint, lint_scalars, lint_values


def open_source(path: Path) -> Source:
    """Read a model's headers, and settle what becomes of layers that are quantised in it.

    FP8 layers with their scales are decoded as they are read; NVFP4 layers, and quantised ones
    that are not of the diffusion model, go over as they are; any others are refused. The notes
    tell of defects in kept layers, of input scales left out and of names that were changed. Raises
    ConvertError for what is no model, is a LoRA, or cannot be decoded.
    """
    model = open_model(path)
    if model.tensors and all(map(LORA_KEY.fullmatch, model.tensors)):
        raise ConvertError(f"{path}: is a LoRA: give the model, and this with --merge-lora")
    prefix, notes = diffusion_prefix(model.tensors), []
    program, packed = quantiser_of(name for name in model.tensors if name.startswith(prefix))
    if program:
        raise ConvertError(
            f"{path}: is already quantised ({program}: {examples(packed)}); give the original "
            "16- or 32-bit model"
        )
    found = stored_layers(model).items()
    layers = {name: layer for name, layer in found if layer.format and layer.format.is_adopted}
    problems = {name: foreign(layer, name.startswith(prefix)) for name, layer in layers.items()}
    tensors, scales, known, markers = {}, 0, layer_parts(), marker_names()
    for ref in model.tensors.values():
        name, _, suffix = ref.name.rpartition(".")
        inside = name.startswith(prefix)
        # A bias is no part of the packing: it is cast and planned like any other tensor.
        part = ref
        if name in layers and not problems[name] and suffix in known and suffix != "bias":
            part = adopted(ref, layers[name], inside)
        if part is not None and suffix not in markers:
            tensors[ref.name] = part
        scales += part is None and suffix in ("input_scale", "scale_input")
    refuse_quantised(path, tensors.values(), prefix, problems)
    # Defects of layers that are kept would be the output's, too. They are noted, not refused.
    kept = {ref.layer: layers[ref.layer] for ref in tensors.values() if ref.config}
    for defect, names in grouped(lint(model, kept)).items():
        notes.append(f"in the source, {DEFECTS[defect].what}: {examples(names)}")
    if scales:
        notes.append(
            f"{scales} input scales of FP8 layers are left out; --input-scale-from takes those "
            "that are named input_scale from any file"
        )
    if prefix in UNREAD_PREFIXES:
        tensors, note = reprefixed(tensors, prefix)
        notes.append(note)
    return Source(dataclasses.replace(model, tensors=tensors), tuple(notes))


def reprefixed(tensors: dict[str, TensorRef], prefix: str) -> tuple[dict[str, TensorRef], str]:
    """Rename tensors whose prefix ComfyUI does not know: {name: TensorRef}, and a note on it.

    The prefix goes if every tensor has it. Beside other things, such as a text encoder, it becomes
    the one that ComfyUI strips in checkpoints.
    """
    whole = all(name.startswith(prefix) for name in tensors)
    new = "" if whole else COMFYUI_PREFIX
    refs = (dataclasses.replace(ref, name=renamed(ref, prefix, new)) for ref in tensors.values())
    instead = f"have {new} instead of" if new else "lose"
    note = f"names {instead} their {prefix}, which ComfyUI does not know"
    return {ref.name: ref for ref in refs}, note


def foreign(layer: StoredLayer, inside: bool) -> str:
    """Say why a quantised layer of a source cannot be used; or "".

    inside: whether it is part of the diffusion model. Layers outside, as those of a text encoder,
    are never decoded but kept, and ComfyUI has to find them configured then. A kept layer's scales
    have to be sound, as nothing computes them anew.
    """
    decoded = inside and layer.format.is_decoded
    configured = layer.configured.config if layer.configured else ""
    if not decoded and configured != layer.format.config:
        return "has no configuration of its format"
    reason = undecodable(layer)
    # NaN is not greater than 0, so it is refused, too.
    if decoded and not reason and not 0 < stored_scale(layer) < math.inf:
        reason = f"its scale is {float(stored_scale(layer))}"
    if not reason and not layer.format.is_decoded:
        facts = FileFacts(legacy=False, fp8_matmul=False, values=True)
        found = [*lint_scalars(layer, facts), *lint_values(layer)]
        bad = [finding.detail for finding in found if finding.defect == "bad scale"]
        reason = f"it has a scale that is none, {bad[0]}" if bad else ""
    return reason


def adopted(ref: TensorRef, layer: StoredLayer, inside: bool) -> TensorRef | None:
    """Mark a part of a quantised layer for decoding or keeping; None if it is left out.

    A decoded layer keeps its weight alone, with the scale it is decoded by. Of a kept one all parts
    stay, and the weight carries the configuration.
    """
    suffix = ref.name.rpartition(".")[2]
    if inside and layer.format.is_decoded:
        if suffix != "weight":
            return None
        return dataclasses.replace(ref, scale=float(stored_scale(layer)))
    # The configuration is written anew, as the source may have it in the header alone.
    if suffix == "comfy_quant":
        return None
    config = json.dumps(layer.config) if suffix == "weight" else ""
    return dataclasses.replace(ref, config=config, is_kept=True)


def refuse_quantised(
    source: Path, refs: Iterable[TensorRef], prefix: str, problems: dict[str, str]
) -> None:
    """Raise ConvertError if quantised tensors are left that can be neither decoded nor kept.

    refs: the tensors that are to be converted; prefix: of the diffusion model, outside of which
    everything is copied as it is. problems: {layer: why it could not be used}, of which the first
    one is told.
    """
    # FP8 without any scale, and bytes in a matrix named as a weight, are packed by some other tool.
    quantised = [
        ref.name
        for ref in refs
        if not ref.is_kept
        and ref.scale is None
        and ref.name.startswith(prefix)
        and (
            is_quantised_part(ref.name)
            or ref.dtype.startswith("F8_")
            or (ref.dtype in ONE_BYTE and len(ref.shape) == 2 and ref.name.endswith(".weight"))
        )
    ]
    if quantised:
        named = (f"; {name}: {problem}" for name, problem in problems.items() if problem)
        raise ConvertError(
            f"{source}: is already quantised ({examples(quantised)}), and not as NVFP4 or as FP8 "
            f"with a scale for each weight{next(named, '')}; give the original 16- or 32-bit model"
        )
