"""Name files as ComfyUI knows them: what its folders hold, and where a new model goes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import folder_paths

from .inputs import NodeError, is_plain, told

# The first choice of a list where nothing is chosen.
NONE = "none"
MODELS, CHECKPOINTS, ENCODERS = "diffusion_models", "checkpoints", "text_encoders"
SUFFIX = ".safetensors"
# What the converter reads: ComfyUI has other kinds in its folders, too.
READABLE = (SUFFIX, ".sft")
# ComfyUI asks for the inputs of every node several times in a row: folders are looked through once
# in so many seconds for that. {function: (when, names)}
LISTED_FOR = 2.0
LISTED: dict[Callable, tuple[float, list[str]]] = {}
# Characters of a file's name in that of its report, which is longer by a few.
LONGEST_STEM = 60


class ModelName(str):
    """Name a new file as a loader's input does, and tell Check Model File the kind of its folder.

    A loader for checkpoints takes names without "checkpoints/", by which Check Model File would
    find a diffusion model of the same name.
    """

    kind = MODELS

    @classmethod
    def of(cls, path: Path, kind: str) -> ModelName:
        """Name a file in the folder for new models of a kind."""
        made = cls(comfy_name(path, kind))
        made.kind = kind
        return made


def model_names() -> list[str]:
    """List the models to convert: diffusion models by their names, others as "checkpoints/NAME"."""
    others = (
        f"{kind}/{name}"
        for kind in (CHECKPOINTS, ENCODERS)
        for name in folder_paths.get_filename_list(kind)
    )
    names = [*folder_paths.get_filename_list(MODELS), *others]
    return [name for name in names if name.lower().endswith(READABLE)]


def find_model(name: str) -> tuple[Path, str]:
    """Find a model by a name of `model_names`: its path, and the kind of folder that it is in.

    That of a checkpoint or encoder may come without its folder, as a converting node gives it.
    Raises NodeError where there is none of this name.
    """
    if isinstance(name, str) and name.lower().endswith(READABLE):
        kinds = (MODELS, CHECKPOINTS, ENCODERS)
        # A name that comes by a link may know its kind.
        known = getattr(name, "kind", MODELS)
        first = (known, *(kind for kind in kinds if kind != known))
        places = [(kind, name.removeprefix(f"{kind}/")) for kind in first]
        for kind, one in places:
            if path := listed(kind, one):
                return path, kind
    raise NodeError(f"{told(name)}: is in none of ComfyUI's folders for models")


def find_lora(name: str) -> Path:
    """Find a LoRA by ComfyUI's name for it. Raises NodeError."""
    if path := listed("loras", name):
        return path
    raise NodeError(f"{told(name)}: is in none of ComfyUI's folders for LoRAs")


def listed(kind: str, name: object) -> Path | None:
    """Return the path of a file that ComfyUI lists in the folders of a kind, None for another.

    Names may come by links, and be no texts or lead elsewhere.
    """
    if not isinstance(name, str) or name not in folder_paths.get_filename_list(kind):
        return None
    path = folder_paths.get_full_path(kind, name)
    return path and Path(path)


def below(folders: list[str | Path], suffix: str) -> dict[str, Path]:
    """List files of a kind in some folders and theirs, links followed: {name: path}.

    Names have slashes on every system, so that workflows may be shared.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        names, _ = folder_paths.recursive_search(str(folder), excluded_dir_names=[".git"])
        for name in sorted(names):
            if name.lower().endswith(suffix):
                found.setdefault(name.replace("\\", "/"), Path(folder) / name)
    return found


def names_of(files: Callable[[], dict[str, Path]]) -> list[str]:
    """List the names of `recordings` or `ggufs` for a node's input, at most every LISTED_FOR."""
    now = time.monotonic()
    if files not in LISTED or LISTED[files][0] < now - LISTED_FOR:
        LISTED[files] = now, [*files()]
    return LISTED[files][1]


def recordings_folder() -> Path:
    """Return the folder that the recorder writes into."""
    return Path(folder_paths.get_output_directory()) / "nvfp4_calibration"


def recordings() -> dict[str, Path]:
    """List the recorder's statistics: {name: path}."""
    return below([recordings_folder()], SUFFIX)


def ggufs() -> dict[str, Path]:
    """List the GGUF files among the diffusion models: {name: path}."""
    return below(folder_paths.get_folder_paths(MODELS), ".gguf")


def one_of(files: dict[str, Path], name: str, what: str) -> Path:
    """Find a file by its name in a list; raises NodeError where it is gone."""
    if not isinstance(name, str) or name not in files:
        raise NodeError(f"{told(name)}: there is no {what} of this name")
    return files[name]


def output_folder(kind: str) -> Path:
    """Return ComfyUI's folder for new models of a kind.

    ComfyUI lists models/unet, the old name, first among those of diffusion models.
    """
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
    old = Path(folder_paths.models_dir) / "unet"
    return next((folder for folder in folders if folder != old), folders[0])


def output_file(kind: str, name: str) -> Path:
    """Return the path for a new model's name, which may be in folders and without suffix.

    Raises NodeError for a name that would lead elsewhere.
    """
    plain = name.strip().replace("\\", "/")
    if not all(map(is_plain, plain.split("/"))):
        raise NodeError(f"name: {name!r} is no file name; folders may stand before it: wan/small")
    plain += SUFFIX * (not plain.lower().endswith(SUFFIX))
    return output_folder(kind) / plain


def comfy_name(path: Path, kind: str) -> str:
    """Name a file as ComfyUI's loaders do: relative to its folder, in the system's own slashes."""
    return str(path.relative_to(output_folder(kind)))


def listed_in(path: Path, kind: str) -> Path:
    """Return ComfyUI's folder of a kind that a file lies in: names in lists are relative to it."""
    folders = map(Path, folder_paths.get_folder_paths(kind))
    return next((folder for folder in folders if folder in path.parents), path.parent)


def page_name(path: Path, what: str = "") -> str:
    """Name the page of a report on a file, so that no two files share one.

    what: tells kinds of reports apart. What was converted into models/diffusion_models itself has
    its own name, and all others a digest of their paths behind it.
    """
    told = hashlib.sha256(f"{path.as_posix()} {what}".encode()).hexdigest()[:8]
    is_plain = not what and path.parent == output_folder(MODELS)
    return f"{path.stem[:LONGEST_STEM]}{what}{'' if is_plain else f'-{told}'}.html"


def hidden_by(path: Path, kind: str) -> Path | None:
    """Find the file that ComfyUI would load instead of a new one, as it has its name elsewhere."""
    found = folder_paths.get_full_path(kind, comfy_name(path, kind))
    return None if found is None or Path(found) == path else Path(found)


def forget_list(kind: str) -> None:
    """Make ComfyUI list a folder again the next time that it is asked for its files."""
    folder_paths.filename_list_cache.pop(kind, None)
