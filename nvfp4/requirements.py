"""Look for the packages that have to be installed.

Who starts the program without them reads one line with the command that installs them, instead of
a traceback. The check comes after `--help` and `--version` are answered, which need none of them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# The names under which the packages of requirements.txt are imported; those on PyPI are the same.
REQUIRED = ("torch", "safetensors", "gguf", "numpy", "tqdm")


def require(*names: str) -> None:
    """End the program with one line on stderr, and status 1, where packages are not installed.

    names: top-level packages. Nothing is imported, so this takes milliseconds. The line suggests
    `-r requirements.txt` where that file lies beside the script, or else the packages by name, for
    whoever copied the script alone.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        there = Path(sys.argv[0]).with_name("requirements.txt").is_file()
        what = "-r requirements.txt" if there else " ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        sys.exit(f"error: {', '.join(missing)} {verb} missing: python -m pip install {what}")
