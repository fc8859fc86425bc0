"""Start other programs: none that lies in the current folder, and none that may run for ever.

The current folder is where models are kept, and may hold files of any name that came with one. A
`python -c` begins with that folder in its search path, where a `json.py` would be found before
Python's own, and Windows looks there first for programs. What a process is started with here looks
only where a person has installed something.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

# How a program for `python -c` begins. sys is built into Python, as faulthandler is: it ends the
# process after the seconds of the first argument, even where the process that started it was
# killed meanwhile. An isolated Python, such as that of a portable ComfyUI, has the standard library
# first in its path, and no empty entry.
BEGINNING = (
    "import sys; sys.path = [place for place in sys.path if place]; import faulthandler; "
    "faulthandler.dump_traceback_later(float(sys.argv.pop(1)), exit=True); "
)
# How a server's script is run. Its pipe is read under another number, and stdin leads nowhere: on
# Windows a program that looks at a stdin which is being read waits for what may never come.
SERVING = (
    "import os, sys; sys.path = [place for place in sys.path if place]; import runpy, threading; "
    "held = os.dup(0); os.dup2(os.open(os.devnull, os.O_RDONLY), 0); "
    "threading.Thread(target=lambda: (os.read(held, 1), os._exit(1)), daemon=True).start(); "
    "sys.argv = sys.argv[1:]; sys.path.insert(0, os.path.dirname(sys.argv[0])); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
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


def server_command(python: Path, script: Path, *arguments: object) -> list:
    """Write the command that runs a script which serves until it is ended, as `python SCRIPT` does.

    It is to be started with `stdin=subprocess.PIPE`, and ends when whoever started it has closed
    that pipe or is gone, however that ended.
    """
    flags = ("-B", "-s") if is_embedded(python) else ("-B",)
    return [python, *flags, "-c", SERVING, script, *arguments]


def is_embedded(python: Path) -> bool:
    """Tell whether a Python is the one that a portable ComfyUI brings, by its folder's name.

    It runs without the packages of the user's folder.
    """
    return python.parent.name.lower() in ("python_embeded", "python_embedded")


def start_server(command: list, output: BinaryIO, folder: Path) -> subprocess.Popen:
    """Start a server's process in a folder, as the first of a group of its own.

    output: what it prints goes there. Ctrl-C, which a terminal sends to a whole group, does not
    reach it: whoever started it ends it by `end_tree`. Raises OSError.
    """
    is_windows = os.name == "nt"
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=not is_windows,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP if is_windows else 0,
    )


def end_tree(process: subprocess.Popen) -> None:
    """End a process that `start_server` started and all that it started, and wait for it."""
    if os.name == "nt":
        # Only while it runs: its number may be another's afterwards.
        killer = Path(os.environ.get("SYSTEMROOT", "C:/Windows"), "System32", "taskkill.exe")
        if process.poll() is None and killer.is_file():
            command = [killer, "/T", "/F", "/PID", str(process.pid)]
            subprocess.run(command, capture_output=True, check=False, timeout=GRACE)
    else:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.stdin.close()
    process.wait(GRACE)
