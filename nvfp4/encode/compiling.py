"""Compile kernels in another process, while this one encodes with torch's operations.

Numba keeps the machine code in a cache, from which it is loaded in a second or two. A thread would
not do: it would share Python's lock with the encoding threads, which took four times as long
(28 seconds became 116 on two cores), and the process could not end before it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from nvfp4.numeric.compiled import compile_kernels, is_nothing_to_compile
from nvfp4.programs import python_command
from nvfp4.progress import tell_watcher

# What the other process runs. The package, or the single file, is found in the folder that it is
# given. Nothing is ever written to its stdin: that ends with the process that began this one, which
# may have been killed.
COMPILING = "import os, threading; \
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start(); \
sys.path.insert(0, sys.argv[1]); import importlib; \
getattr(importlib.import_module(sys.argv[2]), sys.argv[3])()"
# Seconds between two looks at whether somebody cancels the conversion.
LISTEN_EVERY = 0.25
# Seconds; on a slow machine it takes two minutes.
LONGEST_COMPILING = 600


def start_compiling() -> subprocess.Popen | None:
    """Begin to compile all kernels for the cache; None where that would be of no use.

    It is of none where the cache has them already, or where numba finds no folder for it. The
    process ends by itself; whether it succeeded is seen when the kernels are loaded, where it did
    not they are compiled then. Raises ImportError without numba.
    """
    if is_nothing_to_compile():
        return None
    # The name that another process imports this by: of the package, or of the single file.
    name = __name__ if "." in __name__ else Path(__file__).stem
    folder = Path(__file__).resolve().parents[name.count(".")]
    asked = folder, name, compile_kernels.__name__
    command = python_command(
        Path(sys.executable), COMPILING, *asked, seconds=LONGEST_COMPILING, flags=()
    )
    silent = subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=silent, stderr=silent)
    except OSError:
        return None


def wait_for_compiling(process: subprocess.Popen, seconds: float = LONGEST_COMPILING) -> None:
    """Wait until another process has compiled the kernels; one that hangs is ended."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()
        tell_watcher()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LISTEN_EVERY)
