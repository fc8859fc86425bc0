"""Print what the doctor finds, line by line as it is found, and return the exit status."""

from __future__ import annotations

import shutil
import textwrap

from nvfp4.cli.console import show, show_problems
from nvfp4.doctor.examine import examine
from nvfp4.doctor.records import Examined
from nvfp4.errors import ConvertError, one_line
from nvfp4.options.tasks import Doctor
from nvfp4.progress import SCREEN, phase

# Columns of the topic, and the widest line that is still read at once.
TOPIC_WIDTH, WIDEST = 15, 100


def run_doctor(task: Doctor) -> int:
    """Examine, and print each line when it is known.

    Returns 1 where no conversion can run, or --comfyui names no ComfyUI, else 0.
    """
    fails = False
    try:
        for one in examine(task):
            show(render_examined(one))
            phase("asking torch, which takes seconds to load")
            fails |= one.fails
    except ConvertError as error:
        show_problems(error)
        return 1
    finally:
        SCREEN.clear()
    return int(fails)


def render_examined(one: Examined) -> str:
    """Write a line, and those of each advice below it, broken where the terminal ends.

    A command has a line of its own, which is never broken, so that it can be copied.
    """
    lines = [filled(f"{one.topic:{TOPIC_WIDTH}}", one.state, TOPIC_WIDTH)]
    for advice in one.advice:
        end = ":" if advice.command else ""
        lines.append(filled(f"{advice.rank}: ", advice.text + end, 4))
        lines += [f"    {one_line(advice.command)}"] if advice.command else []
    return "\n".join(lines)


def filled(start: str, text: str, indent: int) -> str:
    """Break a line at spaces; those that follow are indented."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    how = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(start + one_line(text), width, subsequent_indent=" " * indent, **how)
