"""Processes of their own for programs that import the converter, without a second for the import.

A server imports it once and forks for each program. Elsewhere than on Linux a new Python is started
for each, which does the same.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from support.paths import ROOT, TESTS

CAN_FORK = sys.platform == "linux"
SERVE = "import sys; sys.path.append(sys.argv[1]); from support.forks import serve; serve()"
# Seconds after which a program gets a signal that ends it.
LONGEST = 300
STREAMS = ("stdin", "stdout", "stderr")  # by their numbers


def run_forked(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program's text as `python -c` does, in the project's folder."""
    return run_together(program, arguments, [{}])[0]


def run_together(program, arguments, environments) -> list[subprocess.CompletedProcess]:
    """Run a program in several processes at once, each with variables of its own added."""
    runs = [[program, [*map(str, arguments)], more] for more in environments]
    if not CAN_FORK:
        return run_anew(runs)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(runs))]
        for place in places:
            place.mkdir()
            (place / "stdin").touch()
        asked = [[*run, str(place)] for run, place in zip(runs, places, strict=True)]
        server().stdin.write(json.dumps(asked) + "\n")
        server().stdin.flush()
        statuses = json.loads(server().stdout.readline())
        return [
            subprocess.CompletedProcess(arguments, status, *(
                (place / name).read_text(encoding="utf-8") for name in STREAMS[1:]
            ))
            for status, place in zip(statuses, places, strict=True)
        ]  # fmt: skip


def run_anew(runs) -> list[subprocess.CompletedProcess]:
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-c", program, *given], env=os.environ | more, **pipes)
        for program, given, more in runs
    ]
    ended = [process.communicate() for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, ended, strict=True)
    ]


@functools.cache
def server() -> subprocess.Popen:
    """Start what forks. It ends with this process, which closes its stdin."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SERVE, str(TESTS)], cwd=ROOT, **pipes)


def serve() -> None:
    """Fork for each of a line's programs, and print their return codes once all have ended."""
    import torch.distributed

    # Threads that torch had begun would be missing in a fork, which would wait for them for ever.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    import convert_nvfp4  # noqa: F401
    import nvfp4.cli.entry  # noqa: F401

    for line in sys.stdin:
        children = [fork(threads, *run) for run in json.loads(line)]
        ended = [os.waitpid(child, 0)[1] for child in children]
        print(json.dumps([os.waitstatus_to_exitcode(status) for status in ended]), flush=True)


def fork(threads, program, arguments, environment, place) -> int:
    """Return the child's number; the child itself runs the program and ends with it."""
    import torch

    if child := os.fork():
        return child
    torch.set_num_threads(threads)
    signal.alarm(LONGEST)
    for number, name in enumerate(STREAMS):
        os.dup2(os.open(Path(place, name), os.O_RDWR | os.O_CREAT), number)
    os.environ |= environment
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})
    sys.exit()
