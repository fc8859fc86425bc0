"""Ask a ComfyUI which layers of an unknown model are linear: it decides, in place of names."""

from __future__ import annotations

import dataclasses
from collections import Counter

from nvfp4.asking.ask import answer_of
from nvfp4.asking.find import ComfyUI
from nvfp4.asking.question import question_of_model
from nvfp4.errors import in_number
from nvfp4.families import recognise
from nvfp4.model import Model, Source
from nvfp4.notes import Note, Rank


def modules_told(comfyui: ComfyUI | None, model: Model) -> tuple[dict[str, str], tuple[str, ...]]:
    """Ask which module has each weight of a model that is of no family, and note what came of it.

    Returns {name: class}, "" for linear layers, as in `Taken`; {} for a known family, without a
    ComfyUI, and where that does not know the model, which asking about the output tells. Raises
    ConvertError as `answer_of`.
    """
    if comfyui is None or recognise(model)[0]:
        return {}, ()
    answer = answer_of(comfyui, {"file": question_of_model(model, is_source=True)})
    if not answer.is_known or not answer.file.modules:
        return {}, ()
    others = Counter(kind for kind in answer.file.modules.values() if kind)
    told = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common())
    linear = in_number(len(answer.file.modules) - others.total(), "linear layers")
    note = f"{comfyui.title} recognises {answer.file.recognised}, and has {linear}"
    note += f"; other weights of two dimensions stay 16-bit: {told}" if told else ""
    return answer.file.modules, (Note(note, Rank.INFORMATION),)


def with_modules(source: Source, modules: dict[str, str], notes: tuple[str, ...]) -> Source:
    """Let each weight of a source know which module of ComfyUI has it, as `modules_told` found."""
    if not modules:
        return source
    tensors = {
        name: dataclasses.replace(ref, module=modules.get(name))
        for name, ref in source.model.tensors.items()
    }
    model = dataclasses.replace(source.model, tensors=tensors)
    return Source(model, (*source.notes, *notes))
