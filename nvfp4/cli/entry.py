"""Running, printing, exit status."""

from __future__ import annotations

import sys

from nvfp4.cli.console import show, show_problems, tolerate_consoles
from nvfp4.cli.parse import parse_options
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError, printable
from nvfp4.files import exists, is_still, write_text
from nvfp4.options import Options, Verification
from nvfp4.ranks import read_ranks
from nvfp4.report.data import render_json, report_data
from nvfp4.report.layer_config import layer_config
from nvfp4.report.page import render_html
from nvfp4.report.summary import render_check, render_report
from nvfp4.stored.defects import Outcome
from nvfp4.verify import verify_file

# What writes --report, by the suffix of its file: a row for each of REPORT_KINDS.
REPORTS = {".json": render_json, ".html": render_html}


def run(task: Options | Verification) -> tuple[str, int]:
    """What the command line prints, and its exit status."""
    if isinstance(task, Verification):
        check = verify_file(task)
        return render_check(check), int(check.outcome > Outcome.LOADS)
    report = convert(task)
    if not read_ranks().is_first:
        return "", 0
    text = render_report(report)
    try:
        if task.report:
            render = REPORTS[task.report.suffix.lower()]
            write_text(render(report_data(report)), task.report)
        if task.layer_config_out:
            write_text(layer_config(report.plans), task.layer_config_out)
    except ConvertError:
        show(printable(text))  # the model itself was written
        raise
    return text, 0


def carry_out(task: Options | Verification) -> int:
    path = task.written if isinstance(task, Options) else task.file
    older = path.stat() if exists(path) else None
    try:
        text, status = run(task)
        if text:
            show(printable(text))
    except ConvertError as error:
        show_problems(error)
        return 1
    except KeyboardInterrupt:
        resumes = isinstance(task, Options) and task.resume
        left = "the same command goes on from here" if resumes else "nothing was written"
        if exists(path) and not (older and is_still(older, path)):
            left = f"{path} was complete already"
        print(f"interrupted: {left}", file=sys.stderr)
        return 130
    return status


def main(argv: list[str] | None = None) -> int:
    tolerate_consoles()
    try:
        return carry_out(parse_options(argv))
    except KeyboardInterrupt:  # before or after the work
        print("interrupted", file=sys.stderr)
        return 130


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
