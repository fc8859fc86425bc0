"""The node that converts a model file, and what all converting nodes do with their result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import comfy.model_management
import folder_paths
from comfy_api.latest import io

from .files import (
    ModelName,
    comfy_name,
    find_model,
    forget_list,
    hidden_by,
    listed_in,
    model_names,
    page_name,
)
from .inputs import hold
from .made import changes, digest_of, is_made_of, note_files, note_made
from .pages import page_file
from .runtime import NodeError, converting, for_node
from .settings import LORAS, input_names, merges, settings_inputs, task_of
from .wording import Words

# Columns of the summary on a node.
WIDTH = 60
# What a conversion needs on the card, in bytes, without statistics and with second moments: torch's
# reserved memory at the widths of Wan 14B was 4.5 and 19.9 GB at most, on an H200 with torch 2.11.
NEEDED_BYTES, WITH_STATISTICS = 5 * 10**9, 20 * 10**9
ALIASES = [
    "quantize", "quantise", "nvfp4", "convert model", "int8", "fp8", "fp4", "4-bit",
    "compress model", "gguf", "quantization", "shrink model", "save quantized",
]  # fmt: skip


class Source(NamedTuple):
    """Tell of a source what its path does not.

    kind: the folder of ComfyUI's that the new file goes to; facts: what tells a MODEL in memory
    from others; notes: called after the conversion for more lines of the text.
    """

    kind: str
    facts: str = ""
    notes: Callable[[], Iterable[str]] = tuple


class Delivered(NamedTuple):
    """Hold what a conversion gives a node: the name for a loader, a text, and its report's page."""

    name: ModelName
    text: str
    page: str

    @property
    def output(self) -> io.NodeOutput:
        """Make the node's outputs, and show the text on it."""
        shown = {"text": (self.text,)} | ({"nvfp4_page": (self.page,)} if self.page else {})
        return io.NodeOutput(self.name, self.text, ui=shown)


def delivering_outputs() -> list[io.Output]:
    """List the outputs of a node that converts."""
    return [
        io.AnyType.Output(
            "file",
            display_name="file",
            tooltip="the new file's name: link it to the loader's own input for it",
        ),
        io.String.Output("summary", display_name="summary", tooltip="what was done, as text"),
    ]


@contextlib.contextmanager
def room_on_card(task: object) -> Iterator[None]:
    """Let loaded models give way on the card to what the conversion needs, and clean up after it.

    It needs the same whatever the model's size: a layer and what is computed of it. ComfyUI brings
    back what it took away when the model is sampled next.
    """
    if task.device == "cpu":
        yield
        return
    needed = WITH_STATISTICS if task.activation_stats else NEEDED_BYTES
    comfy.model_management.free_memory(needed, comfy.model_management.get_torch_device())
    try:
        yield
    finally:
        comfy.model_management.soft_empty_cache()


def deliver(program: ModuleType, task: object, source: Source, *, overwrite: bool) -> Delivered:
    """Convert, unless that was done already, and tell ComfyUI of the new file.

    task: the Options, as `task_of` makes them. Raises NodeError where another file has the name and
    `overwrite` is off: one of another version, other settings or other inputs, or of which nothing
    tells what it was made of.
    """
    output, is_there = task.output, task.output.exists()
    if other := hidden_by(output, source.kind):
        raise NodeError(f"{other}: has this name, and ComfyUI would load it: give another name")
    page, made_of = page_file(page_name(output)), digest_of(task, source.facts)
    record = page.with_suffix(".json")
    if is_there:
        refuse_to_replace(program, task)
    if is_there and not overwrite:
        if not (is_made_of(output, made_of, record) and program.is_converted(task)):
            raise NodeError(
                f"{output}: exists already, and nothing tells that it was made of these inputs in "
                "this way: give another name, or switch overwrite on"
            )
        size = program.gigabytes(output.stat().st_size)
        text = (
            f"{comfy_name(output, source.kind)}: {size}, used as it is: it was made in the same way"
        )
        shown = page.name if page.is_file() else ""
        return Delivered(ModelName.of(output, source.kind), text, shown)
    with room_on_card(task):
        report = program.convert(dataclasses.replace(task, report=page))
    note_made(output, made_of, record)
    forget_list(source.kind)
    words, folder = Words(source.kind, input_names()), listed_in(output, source.kind)
    data = words.report(program.report_data(report), str(output.relative_to(folder)))
    program.write_text(program.render_html(data), page)
    text = "\n".join([program.render_report(report), *source.notes()])
    summary = written_for_node(program, text, words, folder)
    return Delivered(ModelName.of(output, source.kind), summary, page.name)


def refuse_to_replace(program: ModuleType, task: object) -> None:
    """Raise NodeError for a name that is the source's, or of a file that others made.

    The converter refuses that, too, with advice for a command line.
    """
    if isinstance(task.source, Path) and program.is_same(task.output, task.source):
        raise NodeError(f"{task.output}: is the model that is converted: give another name")
    if not program.is_ours(task.output):
        raise NodeError(f"{task.output}: was not made by this converter: give another name")


def written_for_node(program: ModuleType, text: str, words: Words, folder: Path) -> str:
    """Write a summary, whose lines are not broken, for a node: WIDTH columns, labels on the left.

    A path of `folder`, which is ComfyUI's own, becomes a name alone.
    """
    text = words.summary(for_node(program, text)).replace(f"{folder}{os.sep}", "")
    lines = []
    for line in text.splitlines():
        label, rest = line[: program.LABEL_WIDTH], line[program.LABEL_WIDTH :]
        if label.endswith(" ") and len(label.split()) < 2:
            lines += program.labelled(label.strip(), [rest.strip()], WIDTH)
        else:
            lines += program.broken(line, WIDTH)
    return "\n".join(lines)


class NVFP4Convert(io.ComfyNode):
    """Convert a model file that ComfyUI knows into a smaller one beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="NVFP4Convert",
            display_name="Convert Model File (NVFP4)",
            category="advanced/quantization",
            description=(
                "Converts a diffusion model to NVFP4, INT8, FP8 or a mix of them, layer by layer, "
                "into a new file of ComfyUI's. Memory does not grow with the model."
            ),
            search_aliases=ALIASES,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "model_file",
                    options=model_names(),
                    tooltip="a 16-bit (or FP8) model of models/diffusion_models, "
                    "models/checkpoints or models/text_encoders",
                ),
                *settings_inputs(),
            ],
            outputs=delivering_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, **values: object) -> tuple:
        """Tell ComfyUI whether the node has to run again: where what it read or made changed."""
        return changes(cls.hidden.unique_id, values)

    @classmethod
    def execute(cls, model_file: str, overwrite: bool, **values: object) -> io.NodeOutput:
        """Convert, and return the new file's name."""
        with converting(cls.hidden.unique_id) as program:
            source, kind = find_model(model_file)
            task = task_of(program, source, kind, {"overwrite": overwrite, **values})
            done = deliver(program, task, Source(kind), overwrite=overwrite)
        note_files(cls.hidden.unique_id, [task.output, *task.inputs])
        return done.output


class NVFP4MergeLora(io.ComfyNode):
    """Name a LoRA for a conversion, and those before it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="NVFP4MergeLora",
            display_name="Merge LoRA (NVFP4)",
            category="advanced/quantization",
            description=(
                "Names a LoRA, LoHa, LoKr or DoRA that a conversion merges in float32 before it "
                "quantises. Several of these nodes may follow one another."
            ),
            search_aliases=["lora nvfp4", "merge lora", "bake lora", "lora stack", "quantize lora"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="a file of models/loras",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="how much of it",
                ),
                LORAS.Input("loras", optional=True, tooltip="the LoRAs to merge before this one"),
            ],
            outputs=[LORAS.Output("merged", display_name="loras", tooltip="for a converting node")],
        )

    @classmethod
    def execute(cls, lora_name: str, strength: float, loras: tuple = ()) -> io.NodeOutput:
        """Put this LoRA behind the others."""
        hold(cls.define_schema().inputs, {"lora_name": lora_name, "strength": strength})
        before = loras if [*merges(loras)] else ()
        return io.NodeOutput((*before, (lora_name, strength)))
