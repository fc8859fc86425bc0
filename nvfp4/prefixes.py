"""Find the names that ComfyUI has for a file's tensors, where wrappers and prefixes hide them.

Trainers save models as they hold them: compiled, sharded over GPUs, as a part of a pipeline, as a
moving average. What is only a prefix goes, what ComfyUI strips itself may stay, and where a file
has the model twice nothing is guessed. Sources, GGUFs, files to verify and to compare all come
through here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nvfp4.errors import ConvertError, examples
from nvfp4.families import (
    ENCODERS,
    HEAD_PREFIX,
    encoder_of,
    model_prefixes,
    renamed_prefixes,
    with_prefixes,
)
from nvfp4.file_kinds import FileKind, kind_of_file, lora_kind
from nvfp4.model import (
    COMFYUI_PREFIX,
    PREFIXES,
    UNREAD_PREFIXES,
    WRAPPED,
    Model,
    TensorRef,
    bare,
    diffusion_prefix,
    is_beside,
    unwrapped,
)
from nvfp4.notes import Note, Rank

# Parts of names that are nothing but a prefix where all names of a file begin with them. No model
# of ComfyUI has all its tensors in a module of such a name.
MERE_PARTS = (
    "model", "diffusion_model", "net", "module", "transformer", "dit", "unet", "pipe", "denoiser",
    "model_ema", "ema_model", "ema", "state_dict", "base_model",
)  # fmt: skip
# The one part that all names of a model of ComfyUI begin with (PixelDiT).
OWN_PARTS = {"core"}
# Of MERE_PARTS, moving averages of the weights, which lie beside the weights themselves as a rule.
AVERAGES = ("model_ema.", "ema_model.", "ema.", "module.model_ema.", "module.ema.")
# What becomes of a text encoder that ComfyUI builds without its operations for quantised layers.
HALF_ENCODER = (
    "ComfyUI loads it in 16 bits alone, and would read no scales of quantised layers: leave it as "
    "it is"
)


class Renaming(NamedTuple):
    """Hold the names that ComfyUI has for all tensors of a file, and what the file's had besides.

    names: {name in the file: name for ComfyUI}, in the order of the file.
    lost: prefixes and wrappers that are in the file's names and not in ComfyUI's.
    put: the prefix, or several, that the names of the model got instead, or "".
    """

    names: dict[str, str]
    lost: tuple[str, ...]
    put: str = ""

    @property
    def note(self) -> str:
        """Make a line of it for people; "" where nothing was renamed."""
        if not self.lost:
            return ""
        instead = f"have {self.put} instead of" if self.put else "lose"
        if self.lost == (HEAD_PREFIX,):
            return (
                f"names {instead} {HEAD_PREFIX}, as ComfyUI renames the weight without its scales"
            )
        return f"names {instead} their {' and '.join(self.lost)}, which ComfyUI does not know"


def comfyui_names(path: Path, tensors: Mapping[str, TensorRef]) -> Renaming:
    """Find the names for ComfyUI of all tensors of a file.

    path: of the file, for messages. The diffusion model's prefix goes if every tensor has it, and
    becomes the one that ComfyUI strips where a text encoder or the like lies beside it. Raises
    ConvertError where the file has two models, or two tensors would get one name.
    """
    names = {name: unwrapped(name) for name in tensors}
    lost = {f"{match[0].strip('.')}." for name in names if (match := WRAPPED.search(name))}
    lost |= {"module." for name in names if WRAPPED.sub("", name) != names[name]}
    refuse_equal_names(path, names)
    refuse_averages(path, names)
    shapes = {names[name]: ref.shape for name, ref in tensors.items()}
    # Some diffusion models have a language model inside, named as a text encoder's file names it.
    is_model = bool(model_prefixes(shapes))
    if not is_model and (prefixes := renamed_prefixes(shapes)):
        names = {old: with_prefixes(name, prefixes) for old, name in names.items()}
        refuse_equal_names(path, names)
        there = {old for old in prefixes if any(name.startswith(old) for name in shapes)}
        put = " and ".join(sorted({prefixes[old] for old in there}))
        return Renaming(names, tuple(sorted(lost | there)), put)
    if not is_model and encoder_of(shapes)[0]:
        return Renaming(names, tuple(sorted(lost)))
    prefix = only_prefix(path, shapes)
    put = ""
    if prefix:
        put = "" if all(name.startswith(prefix) for name in names.values()) else COMFYUI_PREFIX
        names = {
            old: put + name.removeprefix(prefix) if name.startswith(prefix) else name
            for old, name in names.items()
        }
        refuse_equal_names(path, names)
    return Renaming(names, tuple(sorted(lost | ({prefix} - {""}))), put)


def refuse_equal_names(path: Path, names: dict[str, str]) -> None:
    """Raise ConvertError where two of {name in the file: name for ComfyUI} become one."""
    olds: dict[str, str] = {}
    for old, name in names.items():
        if (other := olds.setdefault(name, old)) != old:
            raise ConvertError(
                f"{path}: {examples([other, old])} are both {examples([name])} for ComfyUI: give a "
                "file that has each tensor once"
            )


def refuse_averages(path: Path, names: dict[str, str]) -> None:
    """Raise ConvertError where moving averages lie beside the weights that they are averages of."""
    for prefix in AVERAGES:
        averages = {n.removeprefix(prefix) for n in names.values() if n.startswith(prefix)}
        others = {bare(name) for name in names.values() if not name.startswith(prefix)}
        if len(averages & others) > len(averages) / 2:
            twice = examples(sorted(averages & others)[:1])
            raise ConvertError(
                f"{path}: holds the model twice, as {prefix}* and without it ({twice}): give a "
                "file with one of the two"
            )


def only_prefix(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Find the prefix of the diffusion model's names that ComfyUI does not strip; "" without any.

    A family is recognised behind any prefix. For a model of no family a prefix is what all names
    have; see `mere_prefix`. Raises ConvertError where there are two models.
    """
    found = model_prefixes(shapes)
    if len(found) > 1:
        named = " and ".join(f"{prefix}*" for prefix in found)
        raise ConvertError(f"{path}: holds several models, named {named}: give a file with one")
    if found:
        prefix = found[0]
    elif (prefix := diffusion_prefix(shapes)) not in UNREAD_PREFIXES:
        prefix = mere_prefix(shapes)
    return "" if prefix in PREFIXES and prefix not in UNREAD_PREFIXES else prefix


def mere_prefix(names: Mapping[str, tuple[int, ...]]) -> str:
    """Find the longest prefix that all names have and no model of ComfyUI: "module.transformer.".

    names: {name: shape}. It is of any parts where it holds a whole model, else of MERE_PARTS.
    """
    # Each column has one part of all names; the shortest name ends it.
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda column: len({*column}) == 1, columns)
    parts = list(itertools.takewhile(lambda part: part not in OWN_PARTS, (c[0] for c in shared)))
    if not holds_a_model(names, parts):
        parts = itertools.takewhile(MERE_PARTS.__contains__, parts)
    return "".join(f"{part}." for part in parts)


def holds_a_model(names: Mapping[str, tuple[int, ...]], parts: list[str]) -> bool:
    """Tell whether the module of these parts, in which all names are, is a model of several.

    Trainers give it names of their own. What is numbered is a block, or a list of them, and another
    kind of file, such as a text encoder, keeps its names.
    """
    inside = [name.split(".")[len(parts) :] for name in names]
    modules = {name[0] for name in inside}
    return (
        (len(modules) > 1 or modules <= OWN_PARTS)
        and not any(part.isdigit() for part in (*parts, *modules))
        and any(part.isdigit() for name in inside for part in name)
        and kind_of_file(names, is_model=False) is None
    )


def comparable_names(path: Path, tensors: Mapping[str, TensorRef]) -> dict[str, str]:
    """Give all tensors of a file the names by which files are compared: {name: bare name}.

    Where the file has two models, their names stay apart.
    """
    try:
        names = comfyui_names(path, tensors).names
    except ConvertError:
        names = {name: name for name in tensors}
    return {name: bare(new) for name, new in names.items()}


def file_kind(path: Path, tensors: Mapping[str, TensorRef]) -> FileKind | None:
    """Tell what a file is that is no diffusion model; None for what may be one, or is empty.

    None stands for a text encoder that is converted, too; see `text_encoder`.
    Of a file that has more than a diffusion model, that alone is looked at.
    """
    # Prefixes of a LoRA are none of the model's.
    if kind := lora_kind(tensors):
        return kind
    try:
        names = comfyui_names(path, tensors).names
    except ConvertError:
        return None
    shapes = {names[name]: ref.shape for name, ref in tensors.items()}
    if encoder_of(shapes)[0]:
        return half_encoder(shapes)
    prefix = diffusion_prefix(names.values())
    own = {name: shape for name, shape in shapes.items() if not is_beside(name, prefix)}
    return kind_of_file(own or shapes, is_model=bool(model_prefixes(own)))


def half_encoder(shapes: Mapping[str, tuple[int, ...]]) -> FileKind | None:
    """Tell a text encoder that is not converted, as ComfyUI loads no quantised layers of it."""
    name, size = encoder_of(shapes)
    if not name or not ENCODERS[name].half_only:
        return None
    return FileKind(f"a text encoder ({ENCODERS[name].title} {size})", HALF_ENCODER)


def text_encoder(path: Path, tensors: Mapping[str, TensorRef]) -> tuple[str, str]:
    """Find the text encoder that a whole file is: its row in ENCODERS and its size, or ""."""
    try:
        names = comfyui_names(path, tensors).names
    except ConvertError:
        return "", ""
    return encoder_of({names[name]: ref.shape for name, ref in tensors.items()})


def named_for_comfyui(path: Path, model: Model) -> tuple[Model, list[str]]:
    """Give a model's tensors the names that ComfyUI has for them, with a note on what changed.

    Layers that the header configures are renamed along. Raises ConvertError as `comfyui_names`.
    """
    renaming = comfyui_names(path, model.tensors)
    if not renaming.lost:
        return model, []
    tensors = {
        renaming.names[name]: dataclasses.replace(ref, name=renaming.names[name])
        for name, ref in model.tensors.items()
    }
    layers = {
        old.rpartition(".")[0]: name.rpartition(".")[0] for old, name in renaming.names.items()
    }
    metadata = renamed_layers(model.metadata, layers)
    renamed = dataclasses.replace(model, tensors=tensors, metadata=metadata)
    return renamed, [Note(renaming.note, Rank.INFORMATION)]


def renamed_layers(metadata: dict[str, str], layers: dict[str, str]) -> dict[str, str]:
    """Rename the layers that a header's metadata configures, by {old name: new name}.

    What cannot be read stays, for the checks to tell of.
    """
    key = "_quantization_metadata"
    try:
        listed = json.loads(metadata[key])
        listed["layers"] = {layers.get(old, old): found for old, found in listed["layers"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return metadata
    return metadata | {key: json.dumps(listed)}
