"""Ask the system, and other Pythons, for facts: none of it needs torch in this Python."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

from nvfp4.doctor.records import Gpu, PythonFacts
from nvfp4.programs import installed_program, is_embedded, python_command

# What runs in the Python that is asked. tools/single_file.py puts the text itself here.
PROBER = Path(__file__).with_name("prober.py").read_text(encoding="utf-8")
PROBE_BOOT = (
    "import json; exec(compile(sys.argv[1], 'prober.py', 'exec')); "
    "print(json.dumps(probe_python(kitchen='kitchen' in sys.argv)))"
)
# Seconds. The first import of torch from a slow disk takes a minute.
LONGEST_PROBE = 120
LONGEST_QUERY = 15
# A path with one of these is put in quotes on Windows; elsewhere, a space is all that needs these.
WINDOWS_QUOTED = " &()^;,=%'`$@{}!"
CARD_QUERY = (
    "--query-gpu=name,compute_cap,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)


class Probe:
    """Ask a Python what it has, in a process of its own, which runs while others are asked."""

    def __init__(self, python: Path, *, kitchen: bool):
        """Start the process.

        kitchen: ask comfy_kitchen as well, which takes a second or two to load. A portable ComfyUI
        runs without the packages of the user's folder, and so does its Python here.
        """
        self.python = python
        alone = ["-s"] if sys.flags.no_user_site or is_embedded(python) else []
        asked, flags = (PROBER, *["kitchen"] * kitchen), ("-B", *alone)
        command = python_command(python, PROBE_BOOT, *asked, seconds=LONGEST_PROBE, flags=flags)
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        try:
            self.process = subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=pipe)
        except OSError as error:
            self.process, self.problem = None, str(error)

    @cached_property
    def facts(self) -> PythonFacts:
        """Wait for the process, and read its last line."""
        if self.process is None:
            return self.silent(f"cannot be started: {self.problem}")
        try:
            out, said = self.process.communicate(timeout=LONGEST_PROBE)
            found = json.loads(out.splitlines()[-1])
            return PythonFacts(
                path=self.python,
                python=str(found["python"]),
                versions=dict(found["versions"]),
                torch=dict(found.get("torch", {})),
                kitchen=dict(found.get("kitchen", {})),
            )
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.silent(f"gave no answer within {LONGEST_PROBE} seconds")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            return self.silent(": ".join(["gave no answer", *last]))

    def silent(self, why: str) -> PythonFacts:
        """Make the record of a Python that told nothing."""
        return PythonFacts(
            path=self.python, python="", versions={}, torch={}, kitchen={}, silence=why
        )


def pip_command(python: Path) -> str:
    """Write how packages are installed into a Python, as a command line begins."""
    # An environment that uv made has no pip of its own.
    if python == Path(sys.executable) and find_spec("pip") is None:
        return f"uv pip install --python {as_word(python)}"
    return f"{python_words(python)} -m pip install"


def python_words(python: Path) -> str:
    """Write how a Python is started, as a command line begins."""
    plain = shutil.which("python")
    is_plain = python == Path(sys.executable) and plain and Path(plain) == python
    return f"{'python' if is_plain else as_word(python)}{' -s' if is_embedded(python) else ''}"


def program_words() -> str:
    """Write how this program was started, as a command line begins."""
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        return script.stem
    as_module = script.name == "__main__.py"
    return f"{python_words(Path(sys.executable))} {'-m nvfp4' if as_module else as_word(script)}"


def as_word(path: Path) -> str:
    """Write a path as one word of a command line, in which a shell finds nothing to do."""
    text = str(path)
    rest = text.replace(" ", "")
    if os.name != "nt" and shlex.quote(rest) != rest:
        return shlex.quote(text)
    return f'"{text}"' if {*text} & {*WINDOWS_QUOTED} else text


@cache
def system_cards() -> list[Gpu]:
    """List NVIDIA's cards by nvidia-smi, which comes with the driver; torch is not asked."""
    program = installed_program("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *CARD_QUERY], capture_output=True, check=True, timeout=LONGEST_QUERY
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(", ") for line in done.stdout.decode(errors="replace").splitlines())
    return [card_of_row(*row) for row in rows if len(row) == 4]


def card_of_row(name: str, capability: str, memory: str, driver: str) -> Gpu:
    """Make a card of a row of nvidia-smi; memory is in MiB, and may be told as [N/A]."""
    numbers = capability.split(".")
    return Gpu(
        name=name,
        capability=tuple(map(int, numbers)) if all(map(str.isdigit, numbers)) else None,
        memory=int(memory) << 20 if memory.isdigit() else 0,
        driver=driver,
    )


def memory_sizes() -> tuple[int, int] | None:
    """Tell the bytes of memory, and how many of them are free; None where the system tells none.

    macOS does not tell what is free in a way that this reads: both are the whole then.
    """
    if os.name == "nt":
        return windows_memory()
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return tuple(int(told[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    return None


def windows_memory() -> tuple[int, int] | None:
    """Ask Windows for its memory: MEMORYSTATUSEX is two 32-bit and seven 64-bit numbers."""
    import ctypes

    numbers = (ctypes.c_uint64 * 8)()
    numbers[0] = ctypes.sizeof(numbers)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(numbers):
        return None
    return numbers[1], numbers[2]
