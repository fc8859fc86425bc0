"""Print results on stdout and problems on stderr, on any console; no other module colours words.

Consoles differ in what they can show, and what is printed may end in a pipe that nobody reads to
the end. Neither is a reason to fail after hours of work.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from nvfp4.errors import ConvertError, Listed, one_line
from nvfp4.progress import SCREEN, phase

# A damaged index may have as many problems as tensors, and a name may be 10,000 characters long:
# print at most 50 lines, and 2,000 characters of each.
MAX_PROBLEMS, MAX_PROBLEM = 50, 2_000
# The words that lines begin with, by rank, and what ANSI's sequences for their colours hold.
RANK_COLOURS = {"error": "1;31", "warning": "1;33", "note": "36", "hint": "32"}
RANKED_LINE = re.compile(rf"^({'|'.join(RANK_COLOURS)}):", re.MULTILINE)
# What Windows calls its consoles, by file number, and the mode in which one understands sequences.
WINDOWS_HANDLES, VIRTUAL_TERMINAL = {1: -11, 2: -12}, 4


def tolerate_consoles() -> None:
    """Have characters that the console lacks printed as question marks, instead of failing.

    Windows consoles lack most characters that a tensor's or a file's name may have. Streams that a
    test put in place of stdout are left alone. A stream that is closed (`>&-`, pythonw, a service)
    leads nowhere from then on.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Its number is taken again, too: a model that got number 1 would get what libraries
            # print.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def announce(*, quiet: bool = False) -> None:
    """Say that torch is being loaded, and end at once with one line when Ctrl-C comes meanwhile.

    A shell that had the signal ignored has it ignored further.
    """
    phase("starting: loading torch", quiet=quiet, at_once=True)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end_at_once)


def end_at_once(number: int, _: object) -> NoReturn:
    """Handle a signal: print one line, and let the signal end the process."""
    SCREEN.clear()
    print("interrupted", file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    sys.exit(128 + number)


def understands_colours(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colours, and the user wants them.

    NO_COLOR is what no-color.org says; a console of Windows is asked to understand sequences.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    if os.name != "nt":
        return True
    import ctypes

    kernel, mode = ctypes.windll.kernel32, ctypes.c_ulong()
    handle = kernel.GetStdHandle(WINDOWS_HANDLES.get(stream.fileno(), 0))
    known = kernel.GetConsoleMode(handle, ctypes.byref(mode))
    return bool(known and kernel.SetConsoleMode(handle, mode.value | VIRTUAL_TERMINAL))


def coloured(text: str, stream: TextIO) -> str:
    """Colour the ranks that lines of a text begin with, where the stream shows colours."""
    if not understands_colours(stream):
        return text
    return RANKED_LINE.sub(lambda found: f"\x1b[{RANK_COLOURS[found[1]]}m{found[0]}\x1b[0m", text)


def show(text: str) -> None:
    """Print a result; a reader that has seen enough, such as `head`, is no error.

    After a broken pipe, stdout leads nowhere, so that all further results vanish in silence. Where
    the system refuses to write it, as to a full disk, a line tells so, and the process ends with 1.
    """
    SCREEN.clear()
    try:
        print(coloured(text, sys.stdout), flush=True)
    except OSError as error:
        # Python flushes stdout when it exits, and would fail with a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Windows calls a broken pipe an invalid argument.
        if error.errno not in (errno.EPIPE, errno.EINVAL):
            show_problems(ConvertError(f"stdout: cannot write the result: {error.strerror}"))
            sys.exit(1)


def show_problems(error: ConvertError) -> None:
    """Print one line for each problem on stderr, whatever characters are in it.

    What is listed below a problem is indented. Long lines and long lists are cut, and it is told
    how much is missing.
    """
    SCREEN.clear()
    shown = [*error.problems[:MAX_PROBLEMS]]
    if more := error.problems[MAX_PROBLEMS:]:
        shown.append(Listed(f"... and {len(more):,} more"))
    for problem in shown:
        line, begin = one_line(problem), "  " if isinstance(problem, Listed) else "error: "
        cut = f" ... ({len(line):,} characters)" if len(line) > MAX_PROBLEM else ""
        print(coloured(f"{begin}{line[:MAX_PROBLEM]}{cut}", sys.stderr), file=sys.stderr)
