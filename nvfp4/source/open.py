"""Open a model to convert: its quantised layers decoded, kept or refused.

A source may hold quantised layers, of an earlier conversion or of another program. What becomes of
each is decided here, from headers and scales, and written into its TensorRefs: nothing is decoded
before `read.tensors` reads it. Planning then sees FP8 layers as 16-bit ones, and leaves kept ones
alone.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path

from nvfp4.dtypes import ONE_BYTE
from nvfp4.errors import ConvertError, examples, in_number
from nvfp4.families import Size, checkpoint_encoders, encoder_size, recognise
from nvfp4.file_kinds import FileKind, lora_kind
from nvfp4.formats.base import is_quantised_part, layer_parts, marker_names
from nvfp4.model import Coding, Model, ModelPart, Source, TensorRef, diffusion_prefix, is_beside
from nvfp4.notes import Note, Rank
from nvfp4.prefixes import file_kind, named_for_comfyui, text_encoder
from nvfp4.quantisers import quantiser_of
from nvfp4.read.checkpoint import open_model
from nvfp4.read.origin import origin_text
from nvfp4.read.tensors import fetching
from nvfp4.source.beside import carried, flaws_beside, kept_part, note_beside
from nvfp4.source.plain import plain_notes, taken_as_is
from nvfp4.stored.defects import DEFECTS, Outcome, grouped
from nvfp4.stored.layers import StoredLayer, coding_of, own_parts, stored_layers, undecodable
from nvfp4.stored.lint import FileFacts, lint, lint_scalars, lint_values

# Tensors of a decoded layer that are no part of its weight.
BESIDE_WEIGHT = {"bias", "comfy_quant", "input_scale", "scale_input"}


def open_source(path: Path, *, plain_fp8: bool = False, encoders: bool = False) -> Source:
    """Read a model's headers, and settle what becomes of layers that are quantised in it.

    FP8 layers with their scales are decoded as they are read, NVFP4 layers go over as they are, and
    any others are refused. All that is not of the diffusion model goes over as it is, quantised or
    not. plain_fp8: whether a model whose FP8 has no scales is taken.
    encoders: whether text encoders beside the diffusion model are converted, too. The notes tell of
    defects in kept layers, of what has no scale, of input scales left out and of names that were
    changed.
    Raises ConvertError for what is no diffusion model, or cannot be decoded.
    """
    model = open_model(path)
    refuse_kind(path, lora_kind(model.tensors))
    model, notes = named_for_comfyui(path, model)
    if encoders:
        model, told = with_encoders(path, model)
        notes = [*notes, *told]
    prefix, beside = diffusion_prefix(model.tensors), model.beside
    program, packed = quantiser_of(name for name in model.tensors if name not in beside)
    if program:
        raise ConvertError(
            f"{path}: is already quantised ({program}: {examples(packed)}); give the original "
            "16- or 32-bit model"
        )
    refuse_kind(path, file_kind(path, model.tensors))
    encoder, size = text_encoder(path, model.tensors)
    if encoder:
        model = dataclasses.replace(model, encoders=(ModelPart(encoder),))
        notes += tokenizer_notes(path, model, encoder_size(encoder, size))
    layers = stored_layers(model)
    tensors, scales = adopted_tensors(path, model, layers)
    inner = [ref for name, ref in tensors.items() if name not in beside]
    notes += plain_notes(path, inner, plain_fp8)
    # Defects of layers that are kept would be the output's, too. They are noted, not refused.
    kept = {ref.layer: layers[ref.layer] for ref in tensors.values() if ref.config}
    kept = {name: layer for name, layer in kept.items() if not is_beside(name, prefix)}
    flaws = dict.fromkeys([*lint(model, kept), *flaws_beside(model, layers)])
    for defect, names in grouped(flaws).items():
        rank = Rank.WARNING if DEFECTS[defect].outcome > Outcome.LOADS else Rank.INFORMATION
        notes.append(Note(f"in the source, {DEFECTS[defect].what}: {examples(names)}", rank))
    notes += note_beside(model)
    if scales:
        what = in_number(scales, "input scales of FP8 layers are left out")
        how = "--input-scale-from FILE takes those that are named input_scale"
        notes.append(Note(f"{what}; {how}", Rank.HINT))
    if origin := origin_text(model.metadata):
        what = f"SOURCE is a conversion itself ({origin})"
        notes.append(Note(f"{what}; its original gives a better file", Rank.HINT))
    quantised = count_quantised(layers, beside)
    return Source(dataclasses.replace(model, tensors=tensors, quantised=quantised), tuple(notes))


def refuse_kind(path: Path, kind: FileKind | None) -> None:
    """Raise ConvertError for a file that is of a known kind other than one to convert."""
    if kind:
        raise ConvertError(f"{path}: is {kind.title}: {kind.what_to_do}")


def with_encoders(path: Path, model: Model) -> tuple[Model, list[str]]:
    """Find the text encoders of a checkpoint that are converted, with a note on the others.

    Raises ConvertError where there is none that ComfyUI would read quantised layers of.
    """
    shapes = {name: ref.shape for name, ref in model.tensors.items()}
    rows, others = checkpoint_encoders(shapes, recognise(model)[0])
    why = "ComfyUI reads no quantised layers of them there"
    if not rows:
        lacking = (
            f"has {examples(others)}, but {why}" if others else "has no text encoder beside it"
        )
        raise ConvertError(f"--text-encoder-preset: {path} {lacking}")
    parts = tuple(ModelPart(row, prefix) for prefix, row in rows.items())
    note = Note(f"text encoders stay as they are, as {why}: {examples(others)}", Rank.NOTE)
    return dataclasses.replace(model, encoders=parts), [note] if others else []


def tokenizer_notes(path: Path, model: Model, size: Size) -> list[str]:
    """Warn of a text encoder without the tokenizer that ComfyUI takes from the same file."""
    if not size.tokenizer or size.tokenizer in model.tensors:
        return []
    what = f"{path.name} lacks {size.tokenizer}, the tokenizer that ComfyUI takes from this file"
    return [Note(f"{what}; the file repackaged for ComfyUI has it", Rank.WARNING)]


def count_quantised(layers: dict[str, StoredLayer], beside: Container[str]) -> dict[str, int]:
    """Count the diffusion model's quantised layers: {format's title: layers}, sorted by title.

    layers: all of the file; beside: names of tensors that are not of the diffusion model.
    """
    titles = Counter(
        layer.format.title
        for layer in layers.values()
        if layer.format and layer.weight.name not in beside
    )
    return dict(sorted(titles.items()))


def adopted_tensors(
    path: Path, model: Model, layers: dict[str, StoredLayer]
) -> tuple[dict[str, TensorRef], int]:
    """Settle what becomes of each tensor: {name: TensorRef}, and how many input scales are dropped.

    layers: all of the file. Raises ConvertError where quantised layers of the diffusion model can
    be neither decoded nor kept.
    """
    beside = carried(model, layers)
    found = {
        name: layer
        for name, layer in layers.items()
        if layer.format and layer.format.is_adopted and layer.weight.name not in beside
    }
    codings, problems = {}, unknown_formats(layers, beside)
    parts = [pair for layer in found.values() for pair in own_parts(layer).items()]
    with fetching(ref for suffix, ref in parts if suffix != "weight"):
        for name, layer in found.items():
            codings[name], problems[name] = decoding(layer)
    tensors, scales, known, markers = {}, 0, layer_parts(), marker_names()
    for ref in model.tensors.values():
        name, _, suffix = ref.name.rpartition(".")
        part = beside.get(ref.name, ref)
        if ref.name in beside:
            pass
        elif suffix in markers:
            part = None
        # A bias is no part of the packing: it is cast and planned like any other tensor.
        elif name in found and not problems[name] and suffix in known and suffix != "bias":
            part = adopted(ref, found[name], codings[name])
            scales += part is None and suffix in ("input_scale", "scale_input")
        elif not problems.get(name):
            part = taken_as_is(ref)
        if part is not None:
            tensors[ref.name] = part
    refuse_quantised(path, (ref for ref in tensors.values() if ref.name not in beside), problems)
    return tensors, scales


def unknown_formats(layers: dict[str, StoredLayer], beside: dict) -> dict[str, str]:
    """Name the layers of the diffusion model in formats that are known by name alone.

    beside: all that is not of it. Returns {layer: what is to be said}.
    """
    return {
        name: f"is stored as {layer.scheme}, which is not decoded here"
        for name, layer in layers.items()
        if layer.weight and layer.weight.name not in beside and layer.config and not layer.format
    }


def decoding(layer: StoredLayer) -> tuple[Coding | None, str]:
    """Tell how a quantised layer of the diffusion model is decoded, None for one that is kept.

    Returns as well why it can be neither, or "".
    """
    if layer.experts or not layer.format.is_decoded:
        return None, foreign(layer)
    # Another scale, a zero point or a smoothing would change what the weight decodes to.
    more = layer.parts.keys() - {*layer.format.suffixes, "weight"} - BESIDE_WEIGHT
    if more:
        return None, f"beside {layer.format} it has {', '.join(sorted(more))}"
    reason = undecodable(layer)
    if not reason and layer.shape != layer.weight.shape:
        reason = f"its weight {list(layer.weight.shape)} is padded from {list(layer.shape)}"
    return (None, reason) if reason else coding_of(layer)


def foreign(layer: StoredLayer) -> str:
    """Say why a quantised layer of the diffusion model cannot be kept; or "".

    It has to be configured, and its scales have to be sound, as nothing computes them anew.
    """
    if (layer.config or {}).get("format") != layer.format.config:
        return "has no configuration of its format; other programs pack NVFP4 in another order"
    reason = undecodable(layer)
    if not reason:
        facts = FileFacts(values=True)
        experts = map(layer.expert, range(layer.experts)) if layer.experts else (layer,)
        found = [
            one for each in experts for one in (*lint_scalars(each, facts), *lint_values(each))
        ]
        bad = [finding.detail for finding in found if finding.defect == "bad scale"]
        reason = f"it has a scale that is none, {bad[0]}" if bad else ""
    return reason


def adopted(ref: TensorRef, layer: StoredLayer, coding: Coding | None) -> TensorRef | None:
    """Mark a part of a quantised layer for decoding or keeping; None if it is left out.

    coding: how the layer is decoded, None for one that is kept. A decoded layer keeps its weight
    alone, with what it is decoded by. A kept one keeps all of its parts.
    """
    if coding is None:
        return kept_part(ref, layer)
    return dataclasses.replace(ref, coding=coding) if ref.name.endswith(".weight") else None


def refuse_quantised(source: Path, refs: Iterable[TensorRef], problems: dict[str, str]) -> None:
    """Raise ConvertError if quantised tensors are left that can be neither decoded nor kept.

    refs: the tensors that are to be converted, those of the diffusion model. problems: {layer: why
    it could not be used}, of which the first one is told.
    """
    # FP8 without any scale, and bytes in a matrix named as a weight, are packed by some other tool.
    quantised = [
        ref.name
        for ref in refs
        if not ref.is_kept
        and ref.coding is None
        and (
            is_quantised_part(ref.name)
            or ref.dtype.startswith("F8_")
            or (ref.dtype in ONE_BYTE and len(ref.shape) == 2 and ref.name.endswith(".weight"))
        )
    ]
    if quantised:
        named = (f"; {name}: {problem}" for name, problem in problems.items() if problem)
        raise ConvertError(
            f"{source}: is already quantised ({examples(quantised)}), and not in a way that is "
            f"read here{next(named, '')}; give the original 16- or 32-bit model"
        )
