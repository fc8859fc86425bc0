"""The inputs that all converting nodes share, and what the converter makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io as texts
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from types import ModuleType

import comfy.model_management
import comfyui_version
import torch
from comfy_api.latest import io

from .files import (
    ENCODERS,
    LISTED,
    NONE,
    find_lora,
    ggufs,
    names_of,
    one_of,
    output_file,
    output_folder,
    recordings,
)
from .inputs import NodeError, hold, told
from .wording import error_on_node

# What LoRAs to merge travel as from node to node: pairs of ComfyUI's name and a strength.
LORAS = io.Custom("NVFP4_LORAS")
THIS_CARD, ANY_CARD = "this computer's card", "any card"
CARDS = {
    THIS_CARD: "",
    ANY_CARD: "",
    "GeForce RTX 50 (Blackwell)": "blackwell",
    "GeForce RTX 40 (Ada)": "ada",
    "GeForce RTX 30 (Ampere)": "ampere",
    "GeForce RTX 20 (Turing)": "turing",
    "Radeon RX 9000, 7000 (RDNA)": "rdna",
}
# The page cuts silently what is above an input's largest number, so that is above every model.
LARGEST_GB = 1_000_000.0
GOALS = ("balanced", "speed", "quality")
RECIPES = ("mixed", "fp8", "int8", "w4a8", "scaled-fp8")
RECIPE_FILES = Path(__file__).with_name("recipes")
# Options that no byte of the new file depends on are the node's own business; but these say how to
# compute.
HOW_TO_COMPUTE = {"--goal", "--device", "--low-mem", "--partial-guide"}
# What `task_of` says itself, beside what inputs say.
OWN_FIELDS = {"source", "output", "dry_run"}


def settings_inputs() -> list[io.Input]:
    """List the inputs: those that most people set first, the others shown as advanced."""
    recipe_files = sorted(file.stem for file in RECIPE_FILES.glob("*.toml"))
    return [
        io.Combo.Input(
            "goal",
            options=[*GOALS],
            tooltip="speed: the edge blocks are quantised, too; quality: INT8 in place of all "
            "4-bit formats; balanced: in between",
        ),
        io.Combo.Input(
            "card",
            options=[*CARDS],
            tooltip="the card the model will run on: only formats that it multiplies fast are "
            "chosen; any card: NVFP4 wherever a layer bears it",
        ),
        io.Float.Input(
            "target_size_gb",
            default=0.0,
            min=0.0,
            max=LARGEST_GB,
            step=0.001,
            round=0.001,
            tooltip="measure every layer, and choose the formats with the least error so that the "
            "file is just smaller than so many GB (1 GB is 1,000,000,000 bytes); 0: no limit",
        ),
        io.Combo.Input(
            "statistics",
            options=[NONE, *names_of(recordings)],
            tooltip="a recording of Calibrate Model (NVFP4) or of the recorder: its input scales "
            "are baked in, and with second moments weights are rounded to the least "
            "error of the layer's output",
        ),
        io.String.Input(
            "name",
            default="",
            placeholder="the source's name + format",
            tooltip="of the new file in models/diffusion_models (checkpoints and "
            "text encoders go to their own folders); empty: the source's name with the format at "
            "its end",
        ),
        io.Boolean.Input(
            "overwrite",
            default=False,
            tooltip="replace a file of this name; off: one that was made in the same way is used "
            "as it is, and any other is left alone and an error",
        ),
        LORAS.Input(
            "loras",
            optional=True,
            tooltip="merged in float32 before the weights are quantised: Merge LoRA (NVFP4)",
        ),
        io.Combo.Input(
            "recipe",
            options=[*RECIPES],
            tooltip="mixed: NVFP4 where a layer bears it; the others: that one format for all of "
            "these layers",
            advanced=True,
        ),
        io.Combo.Input(
            "recipe_file",
            options=[NONE, *recipe_files],
            tooltip="options that come with the converter for this model; the inputs here win; "
            "those for Wan 2.2 need a GGUF",
            advanced=True,
        ),
        io.Combo.Input(
            "gguf",
            options=[NONE, *names_of(ggufs)],
            tooltip="a GGUF of the same model, in a folder of diffusion models: its types choose "
            "the precisions (needs the Python package gguf)",
            advanced=True,
        ),
        io.String.Input(
            "formats",
            default="",
            placeholder="by the card",
            tooltip="what may be chosen from, such as nvfp4,int8,16bit; empty: by the card",
            advanced=True,
        ),
        io.Combo.Input(
            "device",
            options=["auto", "cpu"],
            tooltip="where to compute; auto: ComfyUI's own card, where loaded models give way to "
            "what the conversion needs",
            advanced=True,
        ),
        io.String.Input(
            "more_options",
            default="",
            placeholder="--option value",
            tooltip="further options of the command line (docs/options.md), such as "
            "--edge-blocks 1 --exclude head",
            advanced=True,
        ),
    ]


def input_names() -> set[str]:
    """Name the inputs of the converting nodes: most are called as the option they stand for."""
    return {one.id for one in settings_inputs()}


def pick_device(device: str) -> str:
    """Name the device to compute on as the converter does: ComfyUI's own, or "cpu"."""
    own = comfy.model_management.get_torch_device()
    return str(own) if device == "auto" and own.type == "cuda" else "cpu"


def card_here(program: ModuleType) -> str:
    """Name the class of ComfyUI's card for --card, "" where it has none that is known."""
    own = comfy.model_management.get_torch_device()
    if own.type != "cuda":
        return ""
    if torch.version.hip:
        return "rdna"
    return program.card_of(torch.cuda.get_device_capability(own))


def formats_here(program: ModuleType, card: str, values: dict) -> str:
    """List the formats to choose from where this ComfyUI is too old for some; "" where it is not.

    A goal or a recipe that names formats itself is left alone.
    """
    if values["goal"] == "quality" or values["recipe"] != "mixed":
        return ""
    usual = program.DEFAULT_FORMATS
    fast = [word for word in usual if not card or word in program.CARDS[card].fast]
    here = version_key(comfyui_version.__version__)
    known = [w for w in fast if version_key(program.COMFYUI_SINCE.get(w, "0")) <= here]
    return "" if known == fast else ",".join(known)


def bakes_scales(program: ModuleType, card: str, formats: str, values: dict) -> bool:
    """Tell whether a format that may be chosen takes the input scales of a recording."""
    if "--no-input-scale" in values["more_options"]:
        return False
    if values["recipe"] != "mixed":
        return program.RECIPES[values["recipe"]].format in program.MARKED_FORMATS
    if not formats and values["goal"] == "quality":
        return False
    named = formats.split(",") if formats else program.DEFAULT_FORMATS
    if card and not formats:
        named = program.formats_of_card(card)
    return not program.MARKED_FORMATS.isdisjoint(named)


def version_key(text: str) -> tuple[int, ...]:
    """Make a version comparable: "0.29.0" is newer than "0.10"."""
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def files_of(values: dict) -> dict[str, Path]:
    """Find the files that inputs name: {input: path}. Raises NodeError for one that is gone."""
    lists = {"gguf": (ggufs, "GGUF"), "statistics": (recordings, "recording")}
    return {
        name: one_of(files(), values[name], what)
        for name, (files, what) in lists.items()
        if values[name] != NONE
    }


def merges(loras: object) -> Iterator[str]:
    """Write what Merge LoRA gives, or None, as --merge-lora takes it. Raises NodeError."""
    pairs = loras if isinstance(loras, list | tuple) else [loras] if loras else []
    for pair in pairs:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or type(pair[1]) not in (int, float):
            raise NodeError(f"loras: {told(pair)} is nothing that Merge LoRA (NVFP4) gives")
        yield f"{find_lora(pair[0])}:{pair[1]:g}"


def words_of(
    program: ModuleType, values: dict, files: dict[str, Path], kind: str = ""
) -> Iterator[str]:
    """Write the inputs as the command line takes them.

    files: those of `files_of`; kind: the folder of the source. Text encoders take no input scales.
    """
    if values["goal"] != "balanced":
        yield from ("--goal", values["goal"])
    card = card_here(program) if values["card"] == THIS_CARD else CARDS[values["card"]]
    if card:
        yield from ("--card", card)
    if values["target_size_gb"]:
        yield from ("--target-size", str(max(1, round(values["target_size_gb"] * 1e9))))
    if values["recipe"] != "mixed":
        yield from ("--recipe", values["recipe"])
    if values["recipe_file"] != NONE:
        yield from ("--recipe-file", str(RECIPE_FILES / f"{values['recipe_file']}.toml"))
    if "gguf" in files:
        yield from ("--gguf", str(files["gguf"]))
    if formats := values["formats"] or formats_here(program, card, values):
        yield from ("--formats", formats)
    if "statistics" in files:
        headroom = kind != ENCODERS and bakes_scales(program, card, formats, values)
        yield from ("--activation-stats", str(files["statistics"]))
        yield from ("--input-scale-policy", "headroom") * headroom
    for merged in merges(values.get("loras")):
        yield from ("--merge-lora", merged)
    yield from ("--device", pick_device(values["device"]))
    yield from further_words(program, values["more_options"])


def further_words(program: ModuleType, text: str) -> list[str]:
    """Split the options that a person wrote; raises NodeError for those that are not for nodes.

    They are looked at again with all others (`refuse_foreign`); here it can be said who named them.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise NodeError(f"more_options: {error}") from None
    with refusing(program, of_more_options=True):
        named = vars(program.build_parser().parse_args(words))
    rows = {flag: row for row in program.all_options(program.Options) for flag in row.flags}
    for flag, value in named.items():
        if value in (None, []):
            continue
        if flag not in rows or rows[flag].name in OWN_FIELDS or is_of_the_run(rows[flag]):
            raise NodeError(f"more_options: {flag} is not for nodes: {told(str(value))}")
        if not all(map(comes_along, paths_in(value))):
            raise NodeError(f"more_options: {flag}: only what comes with the converter, by name")
    return words


def is_of_the_run(row: object) -> bool:
    """Tell whether a row of the options table says what else a run does or writes, not the file.

    Those are the node's to say; an option that is added to the table is refused until it is named
    in HOW_TO_COMPUTE, unless the file's bytes depend on it.
    """
    return row.writes or (not row.trace and HOW_TO_COMPUTE.isdisjoint(row.flags))


def refuse_foreign(program: ModuleType, task: object, own: Iterable[PurePath]) -> None:
    """Raise NodeError where a finished task would do more than make its file of what is `own`.

    Who may queue workflows need not be who may read and write any file of this computer. So
    whatever inputs, recipe files and further options made of the task, of each row of the options
    table is asked: is it the node's own business, and is every path a file that an input names by
    ComfyUI's folders, or one that comes with the converter?
    """
    own = {*own}
    for row in program.options_of(type(task)):
        value = getattr(task, row.name)
        if row.name in OWN_FIELDS or value == row.default:
            continue
        if is_of_the_run(row):
            raise NodeError(f"{row.flag} is not for nodes: {told(str(value))}")
        if foreign := [one for one in paths_in(value) if one not in own and not comes_along(one)]:
            raise NodeError(f"{row.flag} is not for nodes: {told(str(foreign[0]))}")


def paths_in(value: object) -> Iterator[PurePath]:
    """Find the paths in an option's value, however deep; of a Hub, in memory or on a disk."""
    if isinstance(value, PurePath):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from paths_in(one)


def comes_along(path: PurePath) -> bool:
    """Tell whether a file is one of this folder's."""
    return isinstance(path, Path) and Path(__file__).parent.resolve() in path.resolve().parents


@contextlib.contextmanager
def refusing(program: ModuleType, *, of_more_options: bool = False) -> Iterator[None]:
    """Raise a NodeError for what the command line would print before it ends."""
    told_here = texts.StringIO()
    try:
        with program.telling(told_here):
            yield
    except SystemExit:
        lines = told_here.getvalue().splitlines()
        problems = [line.partition("error: ")[2].strip() for line in lines]
        asked = "that asks for a text, and for no conversion"
        problem = "; ".join(filter(None, problems))
        if of_more_options:
            raise NodeError(f"more_options: {problem.removeprefix('argument ') or asked}") from None
        raise NodeError(error_on_node(program, problem, input_names())) from None


def task_of(program: ModuleType, source: object, kind: str, values: dict) -> object:
    """Make the converter's Options of a node's inputs.

    source: the path of a model, or what stands for one in memory; kind: MODELS or CHECKPOINTS, the
    folder that the new file goes to. The errors are those of the command line, in a NodeError.
    """
    # What another node of the same queue made a moment ago is to be found.
    LISTED.clear()
    hold(settings_inputs(), values)
    folder = output_folder(kind)
    folder.mkdir(parents=True, exist_ok=True)
    output = output_file(kind, values["name"]) if values["name"].strip() else folder
    files = files_of(values)
    # A dry run takes any name; whether a file has it is seen to by `deliver`.
    words = [str(source), str(output), "--dry-run", *words_of(program, values, files, kind)]
    with refusing(program):
        (task,) = program.parse_tasks(words)
    loras = (find_lora(name) for name, _ in values.get("loras") or ())
    refuse_foreign(program, task, [*files.values(), *loras])
    if folder not in task.output.parents:
        raise NodeError(f"{task.output}: is not in {folder}")
    return dataclasses.replace(
        task, source=source, output=task.output, dry_run=False, quiet=True, make_folder=True
    )
