"""Print results on stdout and problems on stderr, whatever the console can show."""

from __future__ import annotations

import os
import sys

from nvfp4.errors import ConvertError, one_line

MAX_PROBLEMS, MAX_PROBLEM = 50, 2_000  # lines printed, and characters of one


def tolerate_consoles() -> None:
    """A Windows console may lack a name's characters: print a question mark then."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def show(text: str) -> None:
    """Print a result; a reader that has seen enough, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else exiting fails


def show_problems(error: ConvertError) -> None:
    """One line for each, on stderr."""
    shown = [one_line(problem) for problem in error.problems[:MAX_PROBLEMS]]
    if more := error.problems[MAX_PROBLEMS:]:
        shown.append(f"... and {len(more):,} more")
    for line in shown:
        cut = f" ... ({len(line):,} characters)" if len(line) > MAX_PROBLEM else ""
        print(f"error: {line[:MAX_PROBLEM]}{cut}", file=sys.stderr)
