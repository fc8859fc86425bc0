"""Print results on stdout and problems on stderr, on any console.

Consoles differ in what they can show, and what is printed may end in a pipe that nobody reads to
the end. Neither is a reason to fail after hours of work.
"""

from __future__ import annotations

import os
import sys

from nvfp4.errors import ConvertError, one_line

# A damaged index may have as many problems as tensors, and a name may be 10,000 characters long:
# print at most 50 lines, and 2,000 characters of each.
MAX_PROBLEMS, MAX_PROBLEM = 50, 2_000


def tolerate_consoles() -> None:
    """Have characters that the console lacks printed as question marks, instead of failing.

    Windows consoles lack most characters that a tensor's or a file's name may have. Streams that a
    test put in place of stdout are left alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def show(text: str) -> None:
    """Print a result; a reader that has seen enough, such as `head`, is no error.

    After a broken pipe, stdout leads nowhere, so that all further results vanish in silence.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout when it exits, and would fail with a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_problems(error: ConvertError) -> None:
    """Print one line for each problem on stderr, whatever characters are in it.

    Long lines and long lists are cut, and it is told how much is missing.
    """
    shown = [one_line(problem) for problem in error.problems[:MAX_PROBLEMS]]
    if more := error.problems[MAX_PROBLEMS:]:
        shown.append(f"... and {len(more):,} more")
    for line in shown:
        cut = f" ... ({len(line):,} characters)" if len(line) > MAX_PROBLEM else ""
        print(f"error: {line[:MAX_PROBLEM]}{cut}", file=sys.stderr)
