"""Carry out an analysis: read, summarise, write, print.

The command line was read by `command`. Everything that can be known before logs are read, which
takes minutes, is checked first. Files are written whole or not at all, in the order of OUTPUTS,
then the plots.
"""

from __future__ import annotations

from collections import Counter

from nvfp4.cli.console import show, show_problems, tolerate_consoles
from nvfp4.errors import ConvertError, printable
from nvfp4.files import target_problems, translated, write_text
from nvfp4.logs.command import criteria_of, parse_analysis
from nvfp4.logs.lists import render_list
from nvfp4.logs.outputs import summary_csv, summary_json
from nvfp4.logs.plots import need_matplotlib, write_plots
from nvfp4.logs.records import LineChoice, LogSummary
from nvfp4.logs.summary import read_errors, read_log_summary, summarise_logs, with_errors
from nvfp4.logs.text import render_analysis
from nvfp4.progress import phase

# Options that name a file to write, in the order they are written in; --plots-dir names a folder,
# and comes after them.
OUTPUTS = ("csv", "json", "sensitive_layers")


def check_files(given: dict[str, object]) -> None:
    """Raise ConvertError for what would go wrong after the long reading and is known before it.

    given: the parsed options. That is a file named twice (by whatever path), an input that is not
    there, an output that cannot be written, a folder that cannot be made, and matplotlib where it
    is needed and missing. Wrong and missing paths are told together.
    """
    inputs = [*(given["input"] or [given["summary"]]), *(given["recording"] or [])]
    targets, folder = [given[name] for name in OUTPUTS if given[name]], given["plots_dir"]
    # A file may be named in two ways; what is read must not be written over.
    known, problems = [path.resolve() for path in [*inputs, *targets]], []
    problems += [f"{path}: is given twice; what is written needs a name of its own"
                 for path, times in Counter(known).items() if times > 1]  # fmt: skip
    problems += [f"{path}: is a folder; give the file in it" if path.is_dir()
                 else f"{path}: no such file" for path in inputs if not path.is_file()]  # fmt: skip
    for target in targets:
        # A file that another program has locked, or that may not be written to, raises OSError.
        with translated(target):
            problems += target_problems(target)
    if folder and folder.exists() and not folder.is_dir():
        problems.append(f"{folder}: is no folder; give another name for the folder of plots")
    if folder and not folder.parent.is_dir():
        problems.append(f"{folder.parent}: no such folder; create it first")
    if problems:
        raise ConvertError(*problems)
    if folder:
        need_matplotlib()


def summarise(given: dict[str, object]) -> LogSummary:
    """Make the summary from logs or an earlier one, with the errors that recordings have.

    given: the parsed options; --input or --summary is among them. Returns the LogSummary, with the
    column rel_rmse where there is a recording. Raises ConvertError for a file that is not what it
    is given as, and where a threshold is on errors that no layer has.
    """
    # Recordings are quickly read, so a wrong one is told before the logs take minutes.
    errors = read_errors(given["recording"] or [])
    if given["summary"]:
        summary = read_log_summary(given["summary"])
    else:
        choice = LineChoice(
            format=given["format"],
            mode=given["mode"],
            steps=given["steps"] or 0,
            passes=given["cfg_passes"],
            step_percentile=given["step_percentile"],
        )
        summary = summarise_logs(given["input"], choice, given["percentiles"])
    if given["recording"]:
        summary = with_errors(summary, errors)
    unknown = all(row.get("rel_rmse") is None for row in summary.rows)
    if given["rel_rmse_threshold"] is not None and unknown:
        problem = "--rel-rmse-threshold: no layer has a rel_rmse; give --recording FILE"
        raise ConvertError(problem)
    return summary


def carry_out_analysis(given: dict[str, object]) -> str:
    """Do everything that the options ask for: check, read, summarise, write.

    given: the parsed options. Returns what is printed. Raises ConvertError; files that were written
    before stay.
    """
    check_files(given)
    criteria, summary = criteria_of(given), summarise(given)
    # Rendered one by one when they are written, as each can be megabytes.
    texts = {
        "csv": lambda: summary_csv(summary),
        "json": lambda: summary_json(summary),
        "sensitive_layers": lambda: render_list(summary.rows, criteria),
    }
    written, plots = {}, []
    for name in OUTPUTS:
        if given[name]:
            write_text(texts[name](), given[name])
            written[name] = given[name]
    if given["plots_dir"]:
        phase("drawing plots")
        plots = write_plots(given["plots_dir"], summary, criteria)
    return render_analysis(summary, criteria, written, plots)


def analyze_log(argv: list[str] | None = None) -> int:
    """Run analyze_input_scale_log.py with these words, or with those of this process.

    Problems are printed on stderr, a line each, without a traceback. Returns the exit status: 0
    done, 1 where a file is not what it should be, and 130 after Ctrl-C. Wrong usage does not
    return: it exits with 2.
    """
    tolerate_consoles()
    given = parse_analysis(argv)
    try:
        text = carry_out_analysis(given)
    except ConvertError as error:
        show_problems(error)
        return 1
    # 128 + SIGINT, as shells report it.
    except KeyboardInterrupt:
        return 130
    # Names from a log may hold terminal escape sequences.
    show(printable(text))
    return 0
