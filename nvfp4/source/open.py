"""A model to convert: quantised layers decoded, taken over or refused."""

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
from nvfp4.stored.defects import DEFECTS, grouped
from nvfp4.stored.layers import StoredLayer, stored_layers, stored_scale, undecodable
from nvfp4.stored.lint import FileFacts, lint, lint_scalars, lint_values


def open_source(path: Path) -> Source:
    """Read a model's headers, and settle what becomes of layers that are quantised in it.

    FP8 layers with their scales are decoded as they are read; NVFP4 layers, and quantised ones
    that are not of the diffusion model, go over as they are; any others are refused.
    """
    model = open_model(path)
    if model.tensors and all(map(LORA_KEY.fullmatch, model.tensors)):
        raise ConvertError(f"{path}: is a LoRA: give the model, and this with --merge-lora")
    prefix, notes = diffusion_prefix(model.tensors), []
    found = stored_layers(model).items()
    layers = {name: layer for name, layer in found if layer.format and layer.format.is_adopted}
    problems = {name: foreign(layer, name.startswith(prefix)) for name, layer in layers.items()}
    tensors, scales, known, markers = {}, 0, layer_parts(), marker_names()
    for ref in model.tensors.values():
        name, _, suffix = ref.name.rpartition(".")
        inside = name.startswith(prefix)
        part = ref
        if name in layers and not problems[name] and suffix in known and suffix != "bias":
            part = adopted(ref, layers[name], inside)
        if part is not None and suffix not in markers:
            tensors[ref.name] = part
        scales += part is None and suffix in ("input_scale", "scale_input")
    refuse_quantised(path, tensors.values(), prefix, problems)
    kept = {ref.layer: layers[ref.layer] for ref in tensors.values() if ref.config}
    for defect, names in grouped(lint(model, kept)).items():
        notes.append(f"in the source, {DEFECTS[defect].what}: {examples(names)}")
    if scales:
        notes.append(
            f"{scales} input scales of FP8 layers are left out; --input-scale-from takes those "
            "that are named input_scale from any file"
        )
    if prefix in UNREAD_PREFIXES:
        whole = all(name.startswith(prefix) for name in tensors)
        new = "" if whole else COMFYUI_PREFIX
        refs = (
            dataclasses.replace(ref, name=renamed(ref, prefix, new)) for ref in tensors.values()
        )
        tensors = {ref.name: ref for ref in refs}
        instead = f"have {new} instead of" if new else "lose"
        notes.append(f"names {instead} their {prefix}, which ComfyUI does not know")
    return Source(dataclasses.replace(model, tensors=tensors), tuple(notes))


def foreign(layer: StoredLayer, inside: bool) -> str:
    """Why a quantised layer of a source cannot be used; or ""."""
    decoded = inside and layer.format.is_decoded
    configured = layer.configured.config if layer.configured else ""
    if not decoded and configured != layer.format.config:
        return "has no configuration of its format"
    reason = undecodable(layer)
    if decoded and not reason and not 0 < stored_scale(layer) < math.inf:
        reason = f"its scale is {float(stored_scale(layer))}"
    if not reason and not layer.format.is_decoded:
        facts = FileFacts(legacy=False, fp8_matmul=False, values=True)
        found = [*lint_scalars(layer, facts), *lint_values(layer)]
        bad = [finding.detail for finding in found if finding.defect == "bad scale"]
        reason = f"it has a scale that is none, {bad[0]}" if bad else ""
    return reason


def adopted(ref: TensorRef, layer: StoredLayer, inside: bool) -> TensorRef | None:
    """A part of a quantised layer as the source of a conversion has it; None if it goes."""
    suffix = ref.name.rpartition(".")[2]
    if inside and layer.format.is_decoded:
        if suffix != "weight":
            return None
        return dataclasses.replace(ref, scale=float(stored_scale(layer)))
    if suffix == "comfy_quant":  # written anew, as it may be in the header alone
        return None
    config = json.dumps(layer.config) if suffix == "weight" else ""
    return dataclasses.replace(ref, config=config, is_kept=True)


def refuse_quantised(
    source: Path, refs: Iterable[TensorRef], prefix: str, problems: dict[str, str]
) -> None:
    """Raises ConvertError for quantised tensors that nobody can decode."""
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
