"""The inputs that all converting nodes share, and what the converter makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io as texts
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import comfy.model_management
import comfyui_version
import torch
from comfy_api.latest import io

from .files import NONE, find_lora, ggufs, names_of, one_of, output_file, output_folder, recordings
from .runtime import NodeError

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
# Options that are of no use on a node; those that write files of their own are refused as well.
NOT_HERE = ("--comfyui", "--dry-run", "--json", "--output-sharded", "--resume", "--verbose")


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
            tooltip="of the new file in models/diffusion_models (a checkpoint goes to "
            "models/checkpoints); empty: the source's name with the format at its end",
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


def words_of(program: ModuleType, values: dict) -> Iterator[str]:
    """Write the inputs as the command line takes them."""
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
    if values["gguf"] != NONE:
        yield from ("--gguf", str(one_of(ggufs(), values["gguf"], "GGUF")))
    if formats := values["formats"] or formats_here(program, card, values):
        yield from ("--formats", formats)
    if values["statistics"] != NONE:
        path = one_of(recordings(), values["statistics"], "recording")
        headroom = bakes_scales(program, card, formats, values)
        yield from ("--activation-stats", str(path))
        yield from ("--input-scale-policy", "headroom") * headroom
    for name, strength in values.get("loras") or ():
        yield from ("--merge-lora", f"{find_lora(name)}:{strength:g}")
    yield from ("--device", pick_device(values["device"]))
    yield from further_words(program, values["more_options"])


def further_words(program: ModuleType, text: str) -> list[str]:
    """Split the options that a person wrote; raises NodeError for those that are not for nodes.

    Who may queue workflows need not be who may read and write any file of this computer: files are
    for the other inputs, which know ComfyUI's folders. What comes with the converter may be named.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise NodeError(f"more_options: {error}") from None
    with refusing():
        named = vars(program.build_parser().parse_args(words))
    given = {flag: value for flag, value in named.items() if value not in (None, [])}
    rows = {flag: row for row in program.all_options(program.Options) for flag in row.flags}
    for flag, value in given.items():
        row = rows.get(flag)
        if row is None or row.writes or flag in ("SOURCE", "OUTPUT", *NOT_HERE):
            raise NodeError(f"more_options: {flag} is not for nodes: {value}")
        if row.reads and not all(comes_along(path) for path in flat(value)):
            raise NodeError(f"more_options: {flag}: only what comes with the converter, by name")
    return words


def flat(value: object) -> list:
    """List the values of an option that may be repeated, or has one."""
    return [*value] if isinstance(value, list | tuple) else [value]


def comes_along(path: object) -> bool:
    """Tell whether a file is one of this folder's."""
    return isinstance(path, Path) and Path(__file__).parent.resolve() in path.resolve().parents


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Raise a NodeError for what the command line would print before it ends."""
    told = texts.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            yield
    except SystemExit:
        problems = [line.partition("error: ")[2].strip() for line in told.getvalue().splitlines()]
        asked = "more_options: that asks for a text, and for no conversion"
        raise NodeError("; ".join(filter(None, problems)) or asked) from None


def task_of(program: ModuleType, source: object, kind: str, values: dict) -> object:
    """Make the converter's Options of a node's inputs.

    source: the path of a model, or what stands for one in memory; kind: MODELS or CHECKPOINTS, the
    folder that the new file goes to. The errors are those of the command line, in a NodeError.
    """
    folder = output_folder(kind)
    folder.mkdir(parents=True, exist_ok=True)
    output = output_file(kind, values["name"]) if values["name"].strip() else folder
    # A dry run takes any name; whether a file has it is seen to by `deliver`.
    words = [str(source), str(output), "--dry-run", *words_of(program, values)]
    with refusing():
        (task,) = program.parse_tasks(words)
    return dataclasses.replace(
        task, source=source, output=task.output, dry_run=False, quiet=True, make_folder=True
    )
