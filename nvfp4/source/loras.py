"""Find the tensors that LoRA files change, and what fits them.

`lora_names` knows what files call layers and parts, `lora_alpha` what their changes are scaled by.
The result are Patches in the model's TensorRefs; `numeric.lora` computes with them when a tensor is
read.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from nvfp4.dtypes import VIEWED
from nvfp4.errors import EXAMPLES, ConvertError, examples, in_number
from nvfp4.families import ENCODERS, model_prefixes, recognise
from nvfp4.file_kinds import LORA
from nvfp4.model import Lora, Model, Patch, Source, TensorRef
from nvfp4.notes import Note, Rank
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.lora import merge
from nvfp4.prefixes import file_kind
from nvfp4.read.checkpoint import model_in, read_header
from nvfp4.source.lora_alpha import lora_scales
from nvfp4.source.lora_names import (
    LORA_KINDS,
    LORA_PARTS,
    NOT_MERGED,
    SECOND_MODEL,
    UNNAMED_ADAPTER,
    describe_unmatched,
    encoder_layers,
    is_swapped,
    layer_names,
    locate,
    parse_key,
    rows_of,
)

# The kinds of patches that a layer may have beside one of its weight.
OF_BIAS = {"bias", "lora_bias"}
# What a folder has its LoRA under: PEFT's name, and that of diffusers.
LORA_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
# What is merged although ComfyUI leaves it out, by the end of its key.
MORE_THAN_COMFYUI = {
    "modulations (diff_m)": r".+\.diff_m",
    "biases beside lora_B": r".+[._]lora_B(\.[^.]+)?\.bias",
}

# {layer: {kind: {part: TensorRef}}}, with layers named as in the file.
Layers = dict[str, dict[str, dict[str, TensorRef]]]


class LoraMatch(NamedTuple):
    """Hold what of a LoRA goes into which tensors of a model.

    patches: by tensor. problems: a line for each kind of thing that cannot be merged, or not with
    certainty. notes: of what is merged. is_idle: whether it has layers whose alpha is 0, which
    change nothing.
    """

    patches: dict[str, list[Patch]]
    problems: list[str]
    notes: list[str]
    is_idle: bool


def lora_in(path: Path) -> Path:
    """Find the LoRA in a folder, as PEFT and diffusers write one; a file is itself.

    Raises ConvertError where a folder has none, or several and none of the usual name.
    """
    if not path.is_dir():
        return path
    named = (path / name for name in LORA_FILES if (path / name).is_file())
    return next(named, None) or model_in(path)


def group_keys(path: Path) -> tuple[Layers, list[str], dict[str, str]]:
    """Read a LoRA file's header, and group its keys by layer and kind.

    Returns the layers, the keys that are no part of a layer, and the metadata. A layer has one kind
    of patch and, beside it, perhaps one for its bias; alpha and dora_scale are put among the parts
    of that kind. Raises ConvertError where a layer has two kinds or a part twice, or a dtype that
    cannot be computed with, and for a file of several adapters.
    """
    layers, unknown, adapters = defaultdict(lambda: defaultdict(dict)), [], set()
    header, metadata = read_header(path)
    for key, ref in header.items():
        if not (match := parse_key(key)):
            unknown.append(key)
            continue
        # Integers of 8 bits are codes without their scale; others no conversion computes with.
        if ref.dtype not in TORCH_DTYPES or ref.dtype in VIEWED:
            raise ConvertError(f"{path}: {key} is {ref.dtype}; give the LoRA in a 16-bit type")
        kind = next(kind for kind in LORA_KINDS if match[kind])
        part = "diff" if kind in OF_BIAS else LORA_PARTS.get(match[kind], match[kind])
        # Only A and B of PEFT have an adapter's name. A text encoder's may have another one.
        if kind in ("lora", "lora_bias") and not re.match(NOT_MERGED["of a text encoder"], key):
            adapters.add(match["adapter"] or match["adapter_of_bias"] or UNNAMED_ADAPTER)
        if len(adapters) > 1:
            raise ConvertError(f"{path}: has several adapters, {examples(adapters)}; keep one")
        parts = layers[match["layer"]][kind]
        if part in parts:
            raise ConvertError(f"{path}: {key} and {parts[part].name} are the same thing twice")
        parts[part] = ref
    unknown += join_scaling(path, layers)
    return layers, unknown, metadata


def join_scaling(path: Path, layers: Layers) -> list[str]:
    """Put each layer's alpha and dora_scale among the parts of its patch, in place.

    They say nothing of the kind, and may come before the parts that do. Returns the keys of those
    that have no patch. Raises ConvertError where a layer has two kinds of patches.
    """
    alone = []
    for layer, kinds in layers.items():
        scaling = kinds.pop("scaling", {})
        if len(kinds.keys() - OF_BIAS) > 1:
            raise ConvertError(f"{path}: {layer} is {' and '.join(kinds)} at once; keep one kind")
        for kind in kinds.keys() - OF_BIAS:
            kinds[kind] |= scaling
        if not kinds:
            alone += [ref.name for ref in scaling.values()]
    return alone


def read_lora(lora: Lora, model: Model) -> LoraMatch:
    """Match a LoRA file with a model, by its header and alphas alone.

    In the result q, k and v of a fused layer are patches of their own. Raises ConvertError for a
    file that `group_keys` refuses, where two of its layers are the same rows of a tensor, and where
    it is of two models at once.
    """
    layers, unknown, metadata = group_keys(lora.path)
    # What lies beside the diffusion model goes over to the byte.
    beside = model.beside
    names = layer_names([name for name in model.tensors if name not in beside])
    is_encoder = recognise(model)[0] in ENCODERS
    own = encoder_layers(layers) if is_encoder else {layer: layer for layer in layers}
    found = {layer: locate(name, names) for layer, name in own.items()}
    places = {layer: place for layer, place in found.items() if place}
    known = {layer: layers[layer] for layer in places}
    second, scales = second_model(lora.path, known), lora_scales(lora.path, metadata, known)
    patches, misfits, packed = defaultdict(list), [], []
    for layer, kinds in layers.items():
        for kind, parts in kinds.items():
            patch, target = place_patch(kind, parts, places.get(layer), model)
            if patch is None:
                unknown += [ref.name for ref in parts.values()]
                continue
            if layer in scales.idle and kind != "bias":
                continue
            scale = scales.by_part.get((layer, kind), 1.0)
            patch = dataclasses.replace(patch, strength=lora.strength, scale=scale)
            # Two spellings of one layer in a file: merging both would count its change twice.
            if any(other.rows == patch.rows for other in patches[target]):
                raise ConvertError(f"{lora.path}: {layer} and another name are both {target}")
            misfit = find_misfit(patch, model.tensors[target])
            if model.tensors[target].is_kept:
                packed.append(target)
            elif misfit:
                misfits.append(misfit)
            else:
                patches[target].append(patch)
    problems = lora_problems(misfits, packed, unknown) + scales.problems
    notes = [*second, *scales.notes, *more_than_comfyui(known)]
    return LoraMatch(patches, problems, notes, is_idle=bool(scales.idle))


def place_patch(
    kind: str, parts: dict[str, TensorRef], place: tuple[str, dict] | None, model: Model
) -> tuple[Patch | None, str]:
    """Make the patch of one kind for the tensor that it changes, and name that.

    place: what `locate` found for the layer. The patch is None where the model has no such tensor.
    """
    name, found = place or ("", {})
    target = f"{name.removesuffix('.weight')}.bias" if kind in OF_BIAS else name
    if target not in model.tensors:
        return None, target
    patch = Patch(
        kind="diff" if kind in OF_BIAS else kind,
        parts=parts,
        strength=1.0,
        rows=rows_of(found, model.tensors[name]),
        swapped=is_swapped(found, model.tensors[name]),
    )
    return patch, target


def second_model(path: Path, layers: Layers) -> list[str]:
    """Return a note where a LoRA is for the second one of a pipeline's two models.

    layers: those that the model has. Raises ConvertError for a file that is for both: only one of
    them is given, and which one it is its tensors do not tell.
    """
    second = [layer for layer in layers if SECOND_MODEL.match(layer)]
    first = layers.keys() - {*second}
    if second and first:
        raise ConvertError(
            f"{path}: is for two models: {examples(second)}; and {examples(first)}; keep the keys "
            "of the one that SOURCE is"
        )
    what = "which in Wan 2.2 is the one for low noise; SOURCE has to be that one"
    prefix = SECOND_MODEL.match(second[0])[2] if second else ""
    return [Note(f"is for the model {prefix}, {what}", Rank.NOTE)] if second else []


def more_than_comfyui(layers: Layers) -> list[str]:
    """Return a note for each kind of change that is merged although ComfyUI leaves it out."""
    keys = [
        ref.name for kinds in layers.values() for parts in kinds.values() for ref in parts.values()
    ]
    counts = {what: sum(bool(re.fullmatch(row, key)) for key in keys)
              for what, row in MORE_THAN_COMFYUI.items()}  # fmt: skip
    return [
        Note(f"{count} {what} are merged, which ComfyUI leaves out", Rank.INFORMATION)
        for what, count in counts.items()
        if count
    ]


def lora_problems(misfits: list[str], packed: list[str], unmatched: list[str]) -> list[str]:
    """Tell what of a LoRA cannot be merged, counted: a line for each kind of problem.

    misfits: sentences of `find_misfit`; packed: tensors that the source has quantised already;
    unmatched: keys that are of no tensor of the model.
    """
    problems = []
    if misfits:
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        problems.append(f"does not fit the model: {misfits[0]}{more}")
    if packed:
        what = in_number(len(packed), "layers are quantised in the source already")
        problems.append(f"{what}, so nothing can be merged there: {examples(packed)}")
    if unmatched:
        problems.append(describe_unmatched(unmatched))
    return problems


def find_misfit(patch: Patch, target: TensorRef) -> str:
    """Say why a patch does not fit a tensor, or "".

    The merge itself is tried on torch's meta device, which computes shapes without any data, so
    that this check and the merge can never disagree.
    """
    shown = ", ".join(f"{ref.name} {list(ref.shape)}" for ref in patch.parts.values())
    try:
        # A missing part is a KeyError of the merge; shapes that do not fit are its other errors.
        parts = {part: torch.empty(ref.shape, device="meta") for part, ref in patch.parts.items()}
        merge(patch, parts, torch.empty(target.shape, device="meta"))
    except KeyError as error:
        return f"{shown}: {error.args[0]} is missing"
    except (IndexError, RuntimeError, ValueError):
        rows = "" if patch.rows == slice(None) else f"rows {patch.rows.start} on of "
        return f"{shown} do not fit {rows}{target.name} {list(target.shape)}"
    return ""


def merge_loras(loras: Iterable[Lora], model: Model, *, partial: bool) -> Source:
    """Have LoRAs merged into a model when its tensors are read; notes tell of each LoRA.

    partial: whether to go on where some of a LoRA cannot be merged; that is noted then. Several
    LoRAs are merged in the order given. Raises ConvertError where a LoRA has nothing for the model
    or, without `partial`, not all of it fits.
    """
    loras = [*loras]
    tensors, notes = dict(model.tensors), repeated(loras)
    for given in loras:
        lora = given._replace(path=lora_in(given.path))
        patches, problems, more, is_idle = read_lora(lora, model)
        merged = sum(map(bool, patches.values()))
        what = f"merged into {in_number(merged, 'tensors')} at strength {lora.strength:g}"
        told = [Note(what, Rank.INFORMATION), *map(Note.of, [*problems, *more])]
        notes += [Note(f"{given.path.name}: {note}", note.rank) for note in told]
        if not (merged or is_idle) or (problems and not partial):
            if not merged:
                refuse_no_lora(lora.path)
            end = "--lora-partial goes on" if merged else "nothing of it can be merged"
            problems = [f"{lora.path}: {problem}" for problem in problems[-EXAMPLES:]]
            last = problems.pop() if problems else f"{lora.path}: holds no LoRA"
            raise ConvertError(*problems, f"{last}; {end}")
        for name, found in patches.items():
            old = tensors[name]
            tensors[name] = dataclasses.replace(old, patches=(*old.patches, *found))
    return Source(dataclasses.replace(model, tensors=tensors), tuple(notes))


def repeated(loras: Iterable[Lora]) -> list[str]:
    """Note each LoRA file that is given more than once: all of its changes are added."""
    counts = Counter(lora_in(lora.path).resolve() for lora in loras)
    return [
        Note(f"{path.name}: is given {count} times, and counts as often", Rank.WARNING)
        for path, count in counts.items()
        if count > 1
    ]


def refuse_no_lora(path: Path) -> None:
    """Raise ConvertError for what is no LoRA but another file that is known: say which."""
    header, _ = read_header(path)
    kind = file_kind(path, header)
    is_model = kind is None and model_prefixes({name: ref.shape for name, ref in header.items()})
    title = kind.title if kind else "a whole model" if is_model else ""
    if title and kind is not LORA:
        raise ConvertError(f"{path}: is {title}, not a LoRA that can be merged")
