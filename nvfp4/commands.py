"""Start the programs by the commands that an installed package has, and by the scripts at the root.

Each function does what `python -m` does, so that there is one way in which a program starts: its
`__main__` module reads the options before anything loads torch, and handles signals.
"""

from __future__ import annotations

import runpy


def convert_command() -> None:
    """Convert or check a model: the command convert-nvfp4. Ends with SystemExit."""
    runpy.run_module("nvfp4.__main__", run_name="__main__")


def compare_command() -> None:
    """Compare two checkpoints: the command nvfp4-compare. Ends with SystemExit."""
    runpy.run_module("nvfp4.compare.__main__", run_name="__main__")


def analyze_command() -> None:
    """Analyse calibration logs: the command nvfp4-analyze. Ends with SystemExit."""
    runpy.run_module("nvfp4.logs.__main__", run_name="__main__")
