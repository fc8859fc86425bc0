"""What has to be installed, and one line for whoever lacks it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# What `import` calls the packages of requirements.txt; the names on PyPI are the same.
REQUIRED = ("torch", "safetensors", "gguf", "numpy", "tqdm")


def require(*names: str) -> None:
    """End the program with one line on stderr, and status 1, where packages are not installed.

    names: top-level packages. Nothing is imported, so this takes milliseconds.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        there = Path(sys.argv[0]).with_name("requirements.txt").is_file()
        what = "-r requirements.txt" if there else " ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        sys.exit(f"error: {', '.join(missing)} {verb} missing: python -m pip install {what}")
