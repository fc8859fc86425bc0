"""Print what the doctor finds, line by line as it is found, and return the exit status."""

from __future__ import annotations

import json

from nvfp4.cli.console import show, show_problems
from nvfp4.doctor.examine import examine
from nvfp4.doctor.records import Examined
from nvfp4.errors import ConvertError, one_line
from nvfp4.options.tasks import Doctor
from nvfp4.progress import SCREEN, phase
from nvfp4.report.lines import broken, stdout_width

# Columns of the topic, and of what goes on below an advice.
TOPIC_WIDTH, ADVICE_INDENT = 15, 4


def run_doctor(task: Doctor) -> int:
    """Examine, and print each line when it is known; with --json, one line of data at the end.

    Returns 1 where no conversion can run, or --comfyui names no ComfyUI, else 0.
    """
    found, width = [], stdout_width()
    try:
        for one in examine(task):
            found.append(one)
            if not task.json:
                show(render_examined(one, width))
            phase("asking torch, which takes seconds to load", quiet=task.quiet)
    except ConvertError as error:
        show_problems(error)
        return 1
    finally:
        SCREEN.clear()
    if task.json:
        show(json.dumps(examined_data(found)))
    return int(any(one.fails for one in found))


def examined_data(found: list[Examined]) -> dict:
    """Describe an examination for JSON: docs/report.schema.json has all keys."""
    runs = not any(one.fails for one in found)
    return {"task": "doctor", "conversions_run": runs, "examined": [one.data for one in found]}


def render_examined(one: Examined, width: int | None) -> str:
    """Write a line, and those of each advice below it, broken at a width; None breaks none.

    A command has a line of its own, which is never broken, so that it can be copied.
    """
    lines = broken(f"{one.topic:{TOPIC_WIDTH}}{one_line(one.state)}", width, TOPIC_WIDTH)
    for advice in one.advice:
        end = ":" if advice.command else ""
        lines += broken(f"{advice.rank}: {one_line(advice.text)}{end}", width, ADVICE_INDENT)
        if advice.command:
            lines.append(" " * ADVICE_INDENT + one_line(advice.command))
    return "\n".join(lines)
