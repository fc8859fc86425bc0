"""Check values that their kinds accept: an Option's `check`, which sees all that is given.

Each gets the flag, the value and {flag: value}, and returns a sentence, or "" where all is well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nvfp4.files import exists
from nvfp4.options.option import GivenOptions

# Shards of fewer bytes are refused: their unit was forgotten.
LEAST_SHARD = 1_000_000


def must_end_in(*kinds: str, why: str = "") -> Callable[[str, Path, GivenOptions], str]:
    """Make the check of a file's suffix, for an Option's `check`.

    kinds: suffixes in lower case; the case of the path's own does not matter. why: goes on with the
    sentence.
    """

    def check(flag: str, path: Path, _: GivenOptions) -> str:
        wrong = path.suffix.lower() not in kinds
        return f"{flag} must end in {' or '.join(kinds)}{why}: {path}" if wrong else ""

    return check


def original_only(flag: str, path: Path, _: GivenOptions) -> str:
    """Refuse a GGUF as SOURCE: the model that it was made from has to be given."""
    wrong = path.suffix.lower() == ".gguf"
    return f"{flag} must be the original .safetensors; a GGUF goes with --gguf" if wrong else ""


def model_name(flag: str, path: Path, given: GivenOptions) -> str:
    """Refuse an OUTPUT that is no .safetensors, and tell what may be meant instead."""
    problem = must_end_in(".safetensors", why=", as ComfyUI looks for it")(flag, path, given)
    if not problem or not exists(path):
        return problem
    if path.is_dir() and exists(given["SOURCE"]):
        problem += "; give the file to write in that folder"
    # A folder with a model in it may be the SOURCE that is meant.
    has_model = not path.is_dir() or any(path.glob("*.safetensors"))
    return problem + "; are SOURCE and OUTPUT swapped?" * (has_model or not exists(given["SOURCE"]))


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
