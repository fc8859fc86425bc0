"""Start other programs: none that lies in the current folder, and none that may run for ever.

The current folder is where models are kept, and may hold files of any name that came with one. A
`python -c` begins with that folder in its search path, where a `json.py` would be found before
Python's own, and Windows looks there first for programs. What a process is started with here looks
only where a person has installed something.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

# How a program for `python -c` begins. sys is built into Python, as faulthandler is: it ends the
# process after the seconds of the first argument, even where the process that started it was
# killed meanwhile. An isolated Python, such as that of a portable ComfyUI, has the standard library
# first in its path, and no empty entry.
BEGINNING = (
    "import sys; sys.path = [place for place in sys.path if place]; import faulthandler; "
    "faulthandler.dump_traceback_later(float(sys.argv.pop(1)), exit=True); "
)
# Seconds that a process has beyond the time after which whoever waits for it ends it.
GRACE = 10


def python_command(
    python: Path, program: str, *arguments: object, seconds: float, flags: Sequence[str] = ("-B",)
) -> list:
    """Write the command that runs a program in a Python: nothing is imported from where it starts.

    program: one line, which finds the arguments from sys.argv[1] on. seconds: after these, and
    GRACE, the process ends by itself. flags: options of Python.
    """
    return [python, *flags, "-c", BEGINNING + program, str(seconds + GRACE), *arguments]


def installed_program(name: str) -> Path | None:
    """Find a program in the folders of PATH, None without one; relative folders do not count."""
    file = f"{name}.exe" if os.name == "nt" else name
    places = (Path(folder, file) for folder in os.get_exec_path() if Path(folder).is_absolute())
    return next((one for one in places if os.access(one, os.X_OK) and one.is_file()), None)
