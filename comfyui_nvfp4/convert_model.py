"""The node that converts what is loaded: a MODEL, with the LoRAs that were merged into it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import folder_paths
from comfy_api.latest import io

from .convert import ALIASES, Source, deliver, delivering_outputs
from .files import CHECKPOINTS, MODELS, output_file
from .inputs import fit_for_file
from .loaded import DIGEST, Loaded, show_model
from .made import changes, note_files
from .runtime import NodeError, converting
from .settings import settings_inputs, task_of
from .workflow import MODEL_SUFFIXES, loras_behind

# What patches are called where the workflow names no LoRA for them.
UNNAMED = "patches of the MODEL"


class NVFP4ConvertModel(io.ComfyNode):
    """Convert a MODEL as it is loaded, LoRAs merged, into a new file of ComfyUI's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="NVFP4ConvertModel",
            display_name="Convert Model (NVFP4)",
            category="advanced/quantization",
            description=(
                "Converts what is loaded, with its LoRAs merged, to NVFP4, INT8, FP8 or a mix of "
                "them: a new file in models/diffusion_models. The MODEL stays as it is, and is not "
                "loaded once more."
            ),
            search_aliases=[*ALIASES, "save model", "bake lora", "merge lora"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="from a loader, LoRA loaders or merging nodes: its patches are merged "
                    "in float32 and rounded once",
                ),
                *settings_inputs(),
            ],
            outputs=delivering_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, **values: object) -> tuple:
        """Tell ComfyUI whether the node has to run again; whether the MODEL changed it knows."""
        return changes(cls.hidden.unique_id, values)

    @classmethod
    def execute(cls, model: object, overwrite: bool, **values: object) -> io.NodeOutput:
        """Convert, and return the new file's name."""
        prompt, node = cls.hidden.prompt or {}, str(cls.hidden.unique_id)
        loras = loras_behind(prompt, node)
        with converting(cls.hidden.unique_id) as program:
            shown = show_model(model)
            values["overwrite"] = overwrite
            with task_in_memory(program, shown, loras, values) as task:
                refuse_own_source(task.output, [shown.path, *models_behind(prompt, node)])
                refuse_others_work(program, task, shown, overwrite)
                source = Source(MODELS, shown.identity, partial(notes_of, shown, loras))
                done = deliver(program, task, source, overwrite=overwrite)
        note_files(cls.hidden.unique_id, [task.output, *task.inputs])
        return done.output


@contextlib.contextmanager
def task_in_memory(
    program: ModuleType, shown: Loaded, loras: list[tuple[str, float]], values: dict
) -> Iterator[object]:
    """Make the Options of a conversion whose source is in memory, for the `with` block.

    loras: those that the workflow names; values: the node's inputs. Raises NodeError for a MODEL
    that was loaded as FP8, unless --plain-fp8 is given.
    """
    with contextlib.ExitStack() as files:
        named = program.memory_file(shown.path.name, shown.weights, shown.metadata)
        task = task_of(program, files.enter_context(named), MODELS, values)
        if shown.lost and not task.plain_fp8:
            raise NodeError(f"{shown.lost}, or give --plain-fp8 in more_options")
        title = program.source_name(shown.path)
        if shown.merged:
            name, strength = name_patches(loras)
            path = files.enter_context(program.memory_file(name, shown.merged))
            given = (program.Lora(path, strength), *task.merge_lora)
            task = dataclasses.replace(task, merge_lora=given)
            title += f"-{Path(loras[0][0]).stem}" if len(loras) == 1 else "-merged"
        if not values["name"].strip():
            made = output_file(MODELS, f"{fit_for_file(title)}_{program.format_word(task)}")
            task = dataclasses.replace(task, output=made)
        yield task


def name_patches(loras: list[tuple[str, float]]) -> tuple[str, float]:
    """Name the patches of a MODEL for the header and the report, and tell their strength.

    One LoRA is called as the command line calls it; of several, names and strengths are one name.
    """
    if len(loras) == 1:
        return loras[0]
    return " + ".join(f"{name}:{strength:g}" for name, strength in loras) or UNNAMED, 1.0


def models_behind(prompt: dict, node: str) -> Iterator[Path]:
    """Find the model files that a workflow names behind a node's MODEL, all of merged ones.

    `prompt` and the way are as in `loras_behind`. What is named by a link is not found.
    """
    seen, ahead = set(), [node]
    while ahead:
        node = ahead.pop()
        if node not in prompt or node in seen:
            continue
        seen.add(node)
        for key, value in prompt[node].get("inputs", {}).items():
            if isinstance(value, list) and key.lower().startswith("model"):
                ahead.append(str(value[0]))
            elif isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
                found = (folder_paths.get_full_path(kind, value) for kind in (MODELS, CHECKPOINTS))
                yield from map(Path, filter(None, found))


def refuse_own_source(output: Path, sources: Iterable[Path]) -> None:
    """Raise NodeError where the new file would replace one that the MODEL was loaded from."""
    for source in sources:
        if source.exists() and output.exists() and source.samefile(output):
            raise NodeError(
                f"{output}: the MODEL was loaded from this file, which would be gone: give another "
                "name"
            )


def refuse_others_work(program: ModuleType, task: object, shown: Loaded, overwrite: bool) -> None:
    """Raise NodeError where a file is there with other patches merged into it.

    The record of a conversion tells names and strengths of LoRAs, and of merged models nothing.
    """
    if overwrite or not task.output.is_file():
        return
    _, metadata = program.read_header(task.output)
    if metadata.get(DIGEST) != shown.metadata.get(DIGEST):
        raise NodeError(
            f"{task.output}: exists already, with other LoRAs merged; give another name, or switch "
            "overwrite on"
        )


def notes_of(shown: Loaded, loras: list[tuple[str, float]]) -> Iterator[str]:
    """Yield lines of what is to be said of the MODEL beside the converter's report."""
    yield from (f"note: {note}" for note in shown.notes)
    yield from (f"note: ComfyUI could not merge: {line}" for line in shown.unmerged)
    if loras and not shown.merged:
        yield f"note: {name_patches(loras)[0]}: changes nothing in this MODEL"
