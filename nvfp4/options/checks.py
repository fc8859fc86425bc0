"""Check values that their kinds accept: an Option's `check`, which sees all that is given.

Each gets the flag, the value and {flag: value}, and returns a sentence, or "" where all is well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from nvfp4.errors import did_you_mean
from nvfp4.files import exists
from nvfp4.hub.address import may_be_repository
from nvfp4.options.option import GivenOptions
from nvfp4.virtual import VirtualPath

# The environment variable that names a ComfyUI where --comfyui does not.
COMFYUI_ROOT = "COMFYUI_ROOT"
# What a calibration cannot do without: options one of which is enough, and how it is told.
CALIBRATION_NEEDS = {
    ("--comfyui",): "--comfyui DIR",
    ("--text-encoder", "--workflow"): "--text-encoder FILE",
    ("--prompts",): "--prompts FILE",
}
# What OUTPUT is given as by mistake, and no folder ends in.
OTHER_FILES = (".gguf", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".json", ".html")
# Shards of fewer bytes are refused: their unit was forgotten.
LEAST_SHARD = 1_000_000


def page_or_data(flag: str, path: Path, given: GivenOptions) -> str:
    """Refuse a report of a check that is neither page nor data, or would replace an index."""
    if path.name.lower().endswith(".safetensors.index.json"):
        return f"{flag} must not replace an index: {path}"
    return must_end_in(".json", ".html")(flag, path, given)


def must_end_in(*kinds: str, why: str = "") -> Callable[[str, Path, GivenOptions], str]:
    """Make the check of a file's suffix, for an Option's `check`.

    kinds: suffixes in lower case; the case of the path's own does not matter. why: goes on with the
    sentence.
    """

    told = " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))

    def check(flag: str, path: Path, _: GivenOptions) -> str:
        wrong = path.suffix.lower() not in kinds
        return f"{flag} must end in {told}{why}: {path}" if wrong else ""

    return check


def original_only(flag: str, path: Path, _: GivenOptions) -> str:
    """Refuse a GGUF as SOURCE, and a repository's name without hf:// where no file is called so."""
    if may_be_repository(path):
        return f"{flag}: no such file {path}; on the Hugging Face Hub, it is hf://{path.as_posix()}"
    wrong = path.suffix.lower() == ".gguf"
    return f"{flag} must be the original .safetensors; a GGUF goes with --gguf" if wrong else ""


def is_model_file(path: Path) -> bool:
    """Tell whether OUTPUT names the file to write, and no folder for it."""
    return path.suffix.lower() == ".safetensors"


def model_name(flag: str, path: Path, given: GivenOptions) -> str:
    """Refuse an OUTPUT that is neither a .safetensors nor a folder, and tell what may be meant."""
    if isinstance(path, VirtualPath):
        return f"{flag}: {path}: has to be on a disk of this machine"
    if is_model_file(path):
        return ""
    source = given["SOURCE"]
    if path.is_dir():
        is_swapped = not exists(source) and any(path.glob("*.safetensors.index.json"))
        no_source = f"{source}: no such file; are SOURCE and {flag} swapped?"
        return no_source if is_swapped else ""
    problem = f"{flag} must end in .safetensors, as ComfyUI looks for it, or be a folder: {path}"
    if exists(path):
        return f"{problem}; are SOURCE and {flag} swapped?"
    suffix = path.suffix.lower()
    if suffix in OTHER_FILES or did_you_mean(suffix, [".safetensors"]):
        return problem
    if "--make-folder" in given:
        return ""
    # A suffix of letters is that of a file; the dot of wan2.2 belongs to a folder's name.
    if re.fullmatch(r"\.[a-z]\w*", suffix):
        return problem
    create = "create it first, or give --make-folder"
    return f"{flag}: {path}: no such folder; {create} (a file's name would end in .safetensors)"


def none_needs_include(flag: str, preset: str, given: GivenOptions) -> str:
    """Refuse `--preset none` without --include: it quantises nothing by itself."""
    wrong = preset == "none" and "--include" not in given
    return f"{flag} none quantises what --include REGEX names: give that" if wrong else ""


def grows_not(flag: str, form: str, given: GivenOptions) -> str:
    """Refuse to make INT8 of NVFP4 layers once --target-size has settled on sizes."""
    sized = {"--target-size", "--target-ratio"} & given.keys()
    if form != "int8" or not sized or "--w4a4-share" not in given:
        return ""
    return f"{flag} int8 contradicts --w4a4-share with {sized.pop()}: layers would become larger"


def large_enough(flag: str, size: int, _: GivenOptions) -> str:
    """Refuse shards of less than LEAST_SHARD bytes: whoever gives "5" means "5GB"."""
    wrong = size < LEAST_SHARD
    return f"{flag}: {size:,} bytes are too few; give 5GB or so" if wrong else ""


def all_of_calibration(flag: str, _: Path, given: GivenOptions) -> str:
    """Name all at once that a calibration lacks."""
    found = {*given, *(["--comfyui"] if os.environ.get(COMFYUI_ROOT) else [])}
    lacking = [told for flags, told in CALIBRATION_NEEDS.items() if not found.intersection(flags)]
    *more, last = lacking or [""]
    return f"{flag} needs {', '.join(more)}{' and ' * bool(more)}{last}" if last else ""
