"""The tasks beside a conversion, and the rows of all tasks.

A task is a frozen dataclass whose fields are options, as `Options` in `options.table` is. What it
shares with a conversion is a row of `Options`, by `same_option`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from nvfp4.model import Lora
from nvfp4.options.checks import all_of_calibration, page_or_data
from nvfp4.options.kinds import FILE, FOLDER, LOCAL_FILE, NATURAL, SWITCH, Kind, positive_float
from nvfp4.options.option import Other, all_options, by_name, check_task, option, same_option
from nvfp4.options.recipe_files import recipe_path
from nvfp4.options.table import GENERAL, Options

# The headings of these options in `--help` and in docs/options.md.
VERIFY = "verify (instead of converting)"
DOCTOR = "doctor (instead of converting)"
CALIBRATE = "calibrate (instead of converting)"
# What an own workflow says itself.
IN_WORKFLOW = Other("--workflow", why=", which says so itself")


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Describe one check of a file, `--verify FILE`, against its source or without.

    Its fields are the options that go with it, some of them rows of `Options`. Raises ConvertError
    as `Options` does.
    """

    # fmt: off
    file: Path = option(MISSING, VERIFY, FILE,
        "name every defect of a quantised file and what ComfyUI does about it", flag="--verify",
        everyday="check a quantised file: its defects, what to do")
    source: Path | None = option(None, VERIFY, FILE,
        "the model it was made from: decode everything and measure each layer's error")
    merge_lora: tuple[Lora, ...] = same_option(
        Options, "merge_lora", needs=[Other("--source", why=" to verify against")])
    lora_partial: bool = same_option(Options, "lora_partial")
    report: Path | None = same_option(Options, "report", check=page_or_data)
    comfyui: Path | None = same_option(Options, "comfyui")
    quiet: bool = same_option(Options, "quiet")
    json: bool = same_option(Options, "json")
    # fmt: on

    def __post_init__(self) -> None:
        check_task(self)


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Describe a look at what conversions and ComfyUI need here: `--doctor`."""

    # fmt: off
    doctor: bool = option(False, DOCTOR, SWITCH,
        "look at Python, torch, cards, ComfyUI, memory and disk: what is missing or slower than it "
        "could be, and what to do about it",
        everyday="what is missing or slow here, what to do")
    comfyui: Path | None = same_option(Options, "comfyui")
    json: bool = same_option(Options, "json")
    quiet: bool = same_option(Options, "quiet")
    # fmt: on

    def __post_init__(self) -> None:
        check_task(self)


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRun:
    """Describe one calibration, `--calibrate MODEL`: prompts sampled in a ComfyUI and recorded."""

    # fmt: off
    calibrate: Path = option(MISSING, CALIBRATE, LOCAL_FILE,
        "start --comfyui without a window, sample --prompts from this model and record what its "
        "layers are given, for --activation-stats",
        everyday="record a model's inputs with your prompts", check=all_of_calibration)
    prompts: Path | None = option(None, CALIBRATE, LOCAL_FILE,
        "a text file with a prompt on each line; a few dozen, like those that you will use")
    comfyui: Path | None = same_option(Options, "comfyui")
    text_encoder: tuple[Path, ...] = option((), CALIBRATE, LOCAL_FILE._replace(repeatable=True),
        "the text encoder's file (repeatable where a model has two)", conflicts=[IN_WORKFLOW])
    low_noise: Path | None = option(None, CALIBRATE, LOCAL_FILE,
        "the other half of Wan 2.2 14B: --calibrate has the high-noise one, and both are recorded",
        conflicts=[IN_WORKFLOW])
    vae: Path | None = option(None, CALIBRATE, LOCAL_FILE,
        "the VAE's file, for models that are given an image", conflicts=[IN_WORKFLOW])
    image: tuple[Path, ...] = option((), CALIBRATE, LOCAL_FILE._replace(repeatable=True),
        "an image that a video begins with (repeatable: prompts take them in turn)",
        needs=["--vae"], conflicts=[IN_WORKFLOW])
    workflow: Path | None = option(None, CALIBRATE, LOCAL_FILE,
        "your own workflow instead of the one that comes with the program: exported from ComfyUI's "
        "menu by Export (API), or a PNG that was made by it")
    negative: str = option("", CALIBRATE, Kind(str, "TEXT"), "the negative prompt of all prompts",
        conflicts=[IN_WORKFLOW])
    size: tuple[int, int, int] | None = same_option(
        Options, "size", needs=(), conflicts=[IN_WORKFLOW])
    steps: int | None = option(None, CALIBRATE, NATURAL,
        "steps of a run (default: what the model is usually used with)", conflicts=[IN_WORKFLOW])
    cfg: float | None = option(None, CALIBRATE, Kind(positive_float, "X"),
        "guidance scale (default: what the model is usually used with)", conflicts=[IN_WORKFLOW])
    seed: int = option(1, CALIBRATE, NATURAL,
        "seed of the first prompt; each further prompt takes the next (default: {default})")
    second_moments: str = option("none", CALIBRATE,
        Kind(choices=("none", "inner blocks", "all")),
        "also record what rounding by statistics needs: gigabytes (default: {default})")
    record_encoder: bool = option(False, CALIBRATE, SWITCH,
        "record the text encoders, too, a recording for each: what rounding by statistics takes "
        "when its file is converted")
    results: Path = option("nvfp4_calibration", CALIBRATE, FOLDER,
        "the folder for MODEL.log and MODEL.safetensors, made if missing; a recording that is "
        "there is added to (default: {default})")
    comfyui_args: str = option("", CALIBRATE, Kind(str, "TEXT"),
        "more arguments for ComfyUI, in one text: --comfyui-args=\"--lowvram --fp16-vae\"")
    quiet: bool = same_option(Options, "quiet")
    # fmt: on

    def __post_init__(self) -> None:
        check_task(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Describe what the command line alone takes: it stands for options, which win over it."""

    # fmt: off
    recipe_file: Path | None = option(None, GENERAL, Kind(recipe_path, "RECIPE"),
        "take options from this .toml or .json, also looked for in recipes/ beside this script "
        "(--list-recipes); those that are given here win over it",
        everyday="options from a file or by name: --list-recipes")
    # fmt: on


# What is done instead of a conversion where the first row of one of these is given.
OTHER_TASKS = (Verification, Doctor, CalibrationRun)
# All rows, in the order of `--help`.
OPTIONS = tuple(all_options(Options, CommandLine, *OTHER_TASKS))
