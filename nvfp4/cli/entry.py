"""Carry out what the command line asks for, and end with its status.

The exit status is 0 when all went well, 1 when a problem was printed or a checked file is not as it
should be, 2 when the options are wrong, and 130 after Ctrl-C. Importing this module loads torch;
`cli.parse` reads options without it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from nvfp4.cli.console import coloured, show, show_problems, tolerate_consoles
from nvfp4.cli.doctor import run_doctor
from nvfp4.cli.parse import parse_tasks
from nvfp4.cli.pipeline import Pipeline
from nvfp4.conversion import is_converted, look_ahead, run_phases
from nvfp4.errors import ConvertError, printable
from nvfp4.files import exists, full_path, is_same, is_still
from nvfp4.options import Doctor, Options, Verification
from nvfp4.options.naming import NameTakenError
from nvfp4.progress import SCREEN, terminal_columns
from nvfp4.ranks import read_ranks
from nvfp4.report.check import check_data, render_check
from nvfp4.report.data import Report, json_line, summary_data
from nvfp4.report.lines import broken, stdout_width
from nvfp4.report.summary import render_report
from nvfp4.report.texts import write_check, write_texts
from nvfp4.stored.defects import Outcome
from nvfp4.verify import verify_file


def run(task: Options | Verification, heard: list[Report] | None = None) -> tuple[str, int]:
    """Carry out a task: convert and write the reports asked for, or check a file.

    heard: where the report of a conversion goes, too, for whoever tells of several. Returns the
    text to print on stdout, "" in all ranks but the first, and the exit status. A check
    ends with 1 for any defect that is worse than LOADS. Raises ConvertError; where only a report
    could not be written, or a dry run found what a run would refuse, the summary is printed before
    that.
    """
    if isinstance(task, Verification):
        check = verify_file(task)
        write_check(check, task.report)
        text = json_line(check_data(check)) if task.json else render_check(check, stdout_width())
        return text, int(check.outcome > Outcome.LOADS)
    report = run_phases(task)
    if heard is not None:
        heard.append(report)
    # All ranks have the same report; one prints it.
    if not read_ranks().is_first:
        return "", 0
    text = printed_report(report)
    try:
        write_texts(report)
    except ConvertError:
        # The model itself was written: tell so before the error, which is about a report.
        show(printable(text))
        raise
    if report.problems:
        show(printable(text))
        raise ConvertError(*report.problems)
    return text, 0


def printed_report(report: Report) -> str:
    """Write the summary of a conversion for stdout: as text, or with --json as data."""
    if not report.options.json:
        return render_report(report, stdout_width())
    path = None if report.options.dry_run else str(full_path(report.options.written))
    return json_line({**summary_data(report), "path": path})


def carry_out(task: Options | Verification, heard: list[Report] | None = None) -> int:
    """Run a task, print its result or its problems, and return the exit status.

    heard: as in `run`.

    After Ctrl-C one line says what is left: nothing, a run to go on with, or a file that was
    complete already.
    """
    path = task.written if isinstance(task, Options) else None
    # An output of an earlier run may be there: only one that was replaced counts as written.
    older = path.stat() if path and exists(path) else None
    try:
        text, status = run(task, heard)
        if text:
            show(printable(text))
    except ConvertError as error:
        show_problems(error)
        return 1
    except KeyboardInterrupt:
        left = left_after(task)
        if path and exists(path) and not (older and is_still(older, path)):
            left = f"{path} was complete already"
        SCREEN.clear()
        SCREEN.tell(f"interrupted: {left}")
        return 130
    return status


def carry_out_all(tasks: Sequence[Options | Verification]) -> int:
    """Carry out tasks one after another, and return the exit status: that of the one that failed.

    Several conversions are looked at before the first begins. The first that fails is the last:
    what ends one of them, a full disk or Ctrl-C, would end the others, too. A line on stderr tells
    then which models were converted, and which were not.
    """
    if len(tasks) == 1:
        return carry_out(tasks[0])
    # The processes of a torchrun find the same problems; one tells.
    is_first = read_ranks().is_first
    pipeline, heard = Pipeline.of(tasks), []
    tasks, problems = not_yet_done(pipeline.tasks)
    if problems := [*problems, *problems_ahead(tasks), *pipeline.problems]:
        if is_first:
            show_problems(ConvertError(*problems))
        return 1
    for number, task in enumerate(tasks):
        if status := carry_out(task, heard):
            done, left = (
                ", ".join(str(one.source) for one in some) or "none"
                for some in (tasks[:number], tasks[number + 1 :])
            )
            which = f"converted: {done}; stopped at: {task.source}; not begun: {left}"
            go_on = "the same command goes on" if task.resume else f"to go on, leave out {done}"
            which += f"; {go_on}" * (bool(number) or task.resume)
            if is_first:
                tell_broken(f"note: {which}")
            return status
    if is_first and (text := pipeline.told(heard)):
        show(printable(text))
    return 0


def tell_broken(text: str) -> None:
    """Print a line on stderr, on a terminal broken between words."""
    columns = terminal_columns(sys.stderr)
    lines = broken(printable(text), columns and columns - 1)
    SCREEN.tell(coloured("\n".join(lines), sys.stderr))


def not_yet_done(tasks: Sequence[Options]) -> tuple[list[Options], list[str]]:
    """Leave out the conversions that an earlier run of the same command has done, with --resume.

    Returns those that are left, and the problems of made names that other files have. A line on
    stderr tells of each that is left out.
    """
    left, problems = [], []
    for task in tasks:
        try:
            if task.resume and not task.dry_run and is_converted(task):
                if not task.quiet and read_ranks().is_first:
                    tell_broken(f"{task.written}: is complete already, made of {task.source}")
                continue
            refuse_taken(task)
            left.append(task)
        except NameTakenError as error:
            problems.append(error.beside_others(task.source))
        except ConvertError as error:
            problems += error.problems
    return left, problems


def refuse_taken(task: Options) -> None:
    """Raise ConvertError if a file has the name that is made for a conversion without OUTPUT.

    Where the output was named by a person, it is replaced.
    """
    if task.resume and not task.dry_run:
        in_folder = dataclasses.replace(task, output=task.output.parent, dry_run=True)
        if in_folder.output == task.output:
            dataclasses.replace(task, output=task.output.parent)


def problems_ahead(tasks: Sequence[Options]) -> list[str]:
    """List what keeps any of several conversions from being done, as far as headers tell it.

    One that would write what another is yet to read is such a problem, too.
    """
    problems, read = {}, {}
    for number, task in enumerate(tasks):
        try:
            read[number] = look_ahead(task)
        except ConvertError as error:
            problems |= dict.fromkeys(error.problems)
    for task in tasks:
        for target in (task.written, *task.texts):
            for number, paths in read.items():
                other = tasks[number]
                if other is not task and any(is_same(target, path) for path in paths):
                    what = f"{target}: would be written for {task.source}, and is read for "
                    problems[what + str(other.source)] = None
    return [*problems]


def left_after(task: Options | Verification) -> str:
    """Say what an interrupted task leaves, and what would have left more."""
    if not isinstance(task, Options) or task.dry_run:
        return "nothing was written"
    # The journal stays only with --resume; else the partial files were deleted.
    if task.resume:
        return "the same command goes on from here"
    return "nothing was kept; with --resume from the start it would be"


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    argv: the arguments, without the program's name; those of the process if None. Wrong options and
    `--help` raise SystemExit, as argparse does.
    """
    tolerate_consoles()
    try:
        tasks = parse_tasks(argv)
        if isinstance(tasks[0], Doctor):
            return run_doctor(tasks[0])
        return carry_out_all(tasks)
    except KeyboardInterrupt:
        # It came before or after the work, so there is nothing to tell of a file.
        SCREEN.clear()
        SCREEN.tell("interrupted")
        return 130


def interrupt(*_: object) -> None:
    """Handle a signal as Python handles Ctrl-C: raise KeyboardInterrupt in the main thread."""
    raise KeyboardInterrupt
