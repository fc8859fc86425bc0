"""Find the user's ComfyUI: the folder that is named, or one where people have it; without torch.

A folder that is named is refused if it is no ComfyUI's, before anything else is read.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nvfp4.errors import ConvertError
from nvfp4.options.checks import COMFYUI_ROOT
from nvfp4.options.kinds import input_path
from nvfp4.requirements import HERE

# What `named_by` says of a ComfyUI that nobody named.
NEARBY = "found nearby"
# Bytes of comfyui_version.py that are read: it is a line with a comment.
VERSION_TEXT = 4096
# Where a ComfyUI has its own Python, beside its folder in the portable version for Windows.
INTERPRETERS = (
    "venv/Scripts/python.exe", ".venv/Scripts/python.exe", "../python_embeded/python.exe",
    "venv/bin/python", ".venv/bin/python",
)  # fmt: skip
# Folders that people keep a ComfyUI in: below their own, and of the system. `comfy install` makes
# the second; the last two are where the desktop app brings its code.
HOMES = (
    "~/ComfyUI", "~/comfy/ComfyUI", "~/Documents/ComfyUI", "~/ComfyUI_windows_portable/ComfyUI",
    "~/Downloads/ComfyUI_windows_portable/ComfyUI", "~/Desktop/ComfyUI_windows_portable/ComfyUI",
    "C:/ComfyUI_windows_portable/ComfyUI", "/Applications/ComfyUI.app/Contents/Resources/ComfyUI",
)  # fmt: skip
DESKTOP_APP = "~/AppData/Local/Programs"
# Where the desktop app writes down the folder of its models, which has its Python, too.
DESKTOP_CONFIGURATIONS = (
    "~/AppData/Roaming/ComfyUI/config.json", "~/Library/Application Support/ComfyUI/config.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyUI:
    """Name a ComfyUI to ask.

    folder: with main.py and comfy/ in it. named_by: the option or the environment variable that
    gave the folder, or NEARBY: nothing in such a folder may be run. python: the interpreter that
    runs it. version: "" where it tells none. absent: why there is none to ask, where the
    environment names no ComfyUI's folder.
    """

    folder: Path
    named_by: str
    python: Path
    version: str
    absent: str = ""

    @property
    def title(self) -> str:
        """Name it as in "ComfyUI 0.33.0"."""
        return f"ComfyUI {self.version}".strip()

    @property
    def runs_this(self) -> bool:
        """Tell whether its Python is the one that runs this program, under whatever name."""
        return self.python.parent.resolve() == Path(sys.executable).parent.resolve()


def find_comfyui(folder: Path | None) -> ComfyUI | None:
    """Find the ComfyUI to ask: that of --comfyui, else of COMFYUI_ROOT, else None.

    Raises ConvertError where --comfyui is no ComfyUI's folder; where the environment names none,
    the result tells so in `absent`. Only its version is read.
    """
    given = os.environ.get(COMFYUI_ROOT)
    named_by = COMFYUI_ROOT if folder is None else "--comfyui"
    if folder is None and not given:
        return None
    folder = input_path(given) if folder is None else folder
    if not is_comfyui(folder):
        inner = folder / "ComfyUI"
        instead = f"give {inner}" if is_comfyui(inner) else "give the folder that has main.py"
        told = f"{folder} is no ComfyUI folder, with main.py and comfy/ in it; {instead}"
        if named_by != COMFYUI_ROOT:
            raise ConvertError(f"{named_by}: {told}")
        return ComfyUI(folder=folder, named_by=named_by, python=Path(), version="", absent=told)
    return comfyui_in(folder, named_by)


def comfyui_in(folder: Path, named_by: str) -> ComfyUI:
    """Make the record of a folder that is ComfyUI's: its Python, and the version that it tells."""
    folder = folder.resolve()
    desktop = desktop_folder() if folder.parent.name.lower() == "resources" else None
    roots = (folder, *([desktop] if desktop else []))
    places = (root / place for root in roots for place in INTERPRETERS)
    python = next((place for place in places if place.is_file()), Path(sys.executable))
    version = version_of(folder)
    return ComfyUI(folder=folder, named_by=named_by, python=python, version=version)


def is_comfyui(folder: Path) -> bool:
    """Tell whether a folder looks like ComfyUI's; one that may not be looked into does not."""
    try:
        return (folder / "comfy").is_dir() and (folder / "main.py").is_file()
    except OSError:
        return False


def version_of(folder: Path) -> str:
    """Read the version that a ComfyUI tells in comfyui_version.py, "" if there is none."""
    file = folder / "comfyui_version.py"
    try:
        # Opening a pipe of that name would wait for ever.
        with file.open("rb") if file.is_file() else io.BytesIO() as stream:
            text = stream.read(VERSION_TEXT).decode(errors="replace")
    except OSError:
        return ""
    found = re.search(r"""__version__ = ["']([\w.+-]{1,40})["']""", text)
    return found[1] if found else ""


def nearby_comfyui() -> ComfyUI | None:
    """Find a ComfyUI where nobody named one, or None; anybody may have put it there.

    Looked at are this folder, that of the program and that of the Python that runs it, with their
    parents and a ComfyUI/ beside each; then HOMES and the desktop app's folder.
    """
    for place in usual_places():
        if is_comfyui(place):
            return comfyui_in(place, NEARBY)
    return None


def usual_places() -> Iterator[Path]:
    """List the folders where a ComfyUI may be, the likeliest first; most are not there."""
    for start in (Path.cwd(), HERE, Path(sys.prefix).resolve()):
        for folder in (start, *start.parents):
            yield from (folder, folder / "ComfyUI")
    yield from map(at_home, HOMES)
    yield from at_home(DESKTOP_APP).glob("*comfyui-electron/resources/ComfyUI")


def at_home(name: str) -> Path:
    """Expand `~`; it stays where the system knows no home of the user, as in some containers."""
    return Path(os.path.expanduser(name))  # noqa: PTH111


def desktop_folder() -> Path | None:
    """Read from the desktop app's configuration which folder it keeps models and Python in."""
    for name in DESKTOP_CONFIGURATIONS:
        try:
            text = at_home(name).read_text(encoding="utf-8")
            return Path(json.loads(text)["basePath"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
