"""Look for the packages that have to be installed.

Who starts the program without them reads one line with the command that installs them, instead of
a traceback. The check comes after `--help` and `--version` are answered, which need none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

# The names under which the packages of requirements.txt are imported; those on PyPI are the same.
REQUIRED = ("torch", "safetensors", "gguf", "numpy")
# Where an installed package has calib/ and sensitive_layers/, as pyproject.toml lays it out.
INSTALLED_DATA = Path(__file__).resolve().with_name("data")
# The folder of calib/ and sensitive_layers/, and of requirements.txt unless it is installed: the
# checkout, or where the single file lies.
HERE = Path(__file__).resolve().parents[__name__.count(".")]
if "." in __name__ and INSTALLED_DATA.is_dir():
    HERE = INSTALLED_DATA


def require(*names: str) -> None:
    """End the program with one line on stderr, and status 1, where packages are not installed.

    names: top-level packages, as `import` calls them; those that are not among REQUIRED are looked
    for on PyPI by the same name. Nothing is imported, so this takes milliseconds. The line suggests
    `-r requirements.txt` where that file is in the checkout, or else the packages by name, for
    whoever copied the single file alone.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        listed, wanted = HERE / "requirements.txt", missing
        if listed.is_file() and not {*REQUIRED}.isdisjoint(missing):
            shown = os.path.relpath(listed) if listed.is_relative_to(Path.cwd()) else str(listed)
            shown = f'"{shown}"' if " " in shown else shown
            wanted = [f"-r {shown}", *(name for name in missing if name not in REQUIRED)]
        verb = "is" if len(missing) == 1 else "are"
        command = f"python -m pip install {' '.join(wanted)}"
        sys.exit(f"error: {', '.join(missing)} {verb} missing: {command}")


def load_torch() -> None:
    """Import torch, or end the program with one line on stderr, and status 1, where it is broken.

    A library of CUDA that is missing is an ImportError on Linux, and an OSError on Windows.
    """
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:
        what = str(error).partition("\n")[0]
        sys.exit(
            f"error: torch cannot be imported: {what}; convert_nvfp4.py --doctor says what to do"
        )
