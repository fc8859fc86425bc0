"""Read the command line of the log analyser.

Nothing here imports torch or numpy, so that --help and --version answer at once. LOGS_COMMAND_LINE
is a table of all options; what excludes or needs what is checked in `wrong_usage`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

from nvfp4.cli.arguments import ArgumentReader, called_as
from nvfp4.errors import examples
from nvfp4.guides.columns import percentile_key
from nvfp4.logs.records import LOG_DEFAULTS, Criteria
from nvfp4.logs.text import render_trade
from nvfp4.options.kinds import FILE, SUMMARY, natural, percentile, real_number

LOGS_DESCRIPTION = """\
Turn a calibration log into input-scale statistics, plots and a list of sensitive layers.

The recorder (comfyui_nvfp4) writes a log while ComfyUI runs prompts, a line for each
call of a linear layer: docs/calibration.md tells how, and what all columns and plots mean.
  format <tab> mode <tab> layer <tab> scale <tab> amax <tab> shape
scale is the input scale that the call measured, amax / 2688; amax its input's largest magnitude.
Older logs lack the first column, which was always nvfp4.

The summary (--json) is for convert_nvfp4.py --input-scale-summary-json, the list of layers
(--sensitive-layers) for --full-precision-mm-layers. --summary reads a summary again, so that lists
and plots can be made without the log.

Exit status: 0 done, 1 a file that is no log, summary or recording, 2 wrong usage.
"""
# What -h prints: at most 80 columns, as it is printed unchanged.
LOGS_SHORT = """\
usage: {program} --input LOG ... [options]
       {program} --summary FILE [options]

Turn the log of the calibration recorder into input scales, plots and a list of
sensitive layers:
  {program} --input NAME.log --json summary.json

  --input LOG ...           logs of the recorder, plain or .gz, .xz, .bz2
  --summary FILE            or a summary that was made earlier
  --recording FILE ...      also NAME.safetensors of the recorder, for rel_rmse
  --json FILE               write input scales, for the converter
  --csv FILE                write the same as a table
  --plots-dir DIR           draw plots (needs matplotlib)
  --sensitive-layers FILE   write layers that vary most, for the converter,
    --cv-threshold X          from scale_cv X up: 0.1 to 0.2 is usual
    --cross-attn              and all of cross-attention

All options: {program} --help
How to calibrate: docs/calibration.md
"""
# There is no default threshold: the figure that was published flags nine layers in ten.
LOGS_EPILOG = """\
choosing --cv-threshold:
  The owner of this project wrote that layers went on the list from a scale_cv of 0.01
  up. That would flag nine layers in ten and leave next to nothing in W4A4. The lists in use
  correspond to 0.16 (TI2V 5B), 0.11 (I2V 14B low noise) and 0.12 (high noise), plus --cross-attn.

"""
# The option that sets a criterion's threshold: the column of the summary that it is compared with.
# All three flag values that are equal to the threshold, or larger.
THRESHOLDS = {
    "cv_threshold": "scale_cv",
    "kurtosis_threshold": "scale_kurtosis",
    "rel_rmse_threshold": "rel_rmse",
}
# Options that choose or group lines of a log, and mean nothing to a summary.
LINE_OPTIONS = ("format", "mode", "percentiles", "steps")
# Options that say how calls are dealt out to steps, and mean nothing without them.
STEP_OPTIONS = ("cfg_passes", "step_percentile")


def percentile_list(text: str) -> tuple[float, ...]:
    """Read percentiles such as 50,99.9 as (50.0, 99.9), ascending and each once.

    The median is always among them, as the tables and plots show it. Raises ArgumentTypeError for
    what is not from 0 to 100, and for two that would share a column's name: that has six
    significant digits.
    """
    values = sorted({50.0, *map(percentile, text.split(","))})
    if len({*map(percentile_key, values)}) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: two percentiles are equal in six digits")
    return tuple(values)


def positive_int(text: str) -> int:
    """Read a whole number of 1 or more; raises ArgumentTypeError for anything else."""
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def finite(text: str) -> float:
    """Read a number to compare with.

    Raises ArgumentTypeError for NaN and infinities, which every or no layer would reach.
    """
    value = real_number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a number to compare with")
    return value


# What the value of an option is called in the help, and what reads its text.
OUTPUT_FILE = FILE.keywords
# A name without a folder is also looked for in calib/, where the shipped summaries are.
SHIPPED_SUMMARY = SUMMARY.keywords
COUNT = {"metavar": "N", "type": positive_int}
THRESHOLD = {"metavar": "X", "type": finite}
LOG_FILES = FILE.keywords | {"metavar": "LOG", "nargs": "+"}
# Rows of one option each, which the formatter would spread over several lines.
# fmt: off
LOGS_COMMAND_LINE = {
    "read (--input or --summary)": {
        "--input": (LOG_FILES, "calibration logs, plain or .gz, .xz, .bz2"),
        "--summary": (SHIPPED_SUMMARY,
            "a summary made earlier; also looked for in calib/ beside this script"),
        "--recording": (LOG_FILES | {"metavar": "FILE"},
            "the recorder's .safetensors: each layer's error in NVFP4 (rel_rmse)"),
        "--format": ({"metavar": "NAME"}, "lines that count, or all (default: nvfp4)"),
        "--mode": ({"metavar": "NAME"}, "lines that count, or all (default: dynamic)"),
        "--percentiles": ({"metavar": "P,P", "type": percentile_list},
            "over calls; 50 is always among them (default: 50,90,95,99,99.9)"),
        "--steps": (COUNT, "steps of a run: also give statistics for each"),
        "--cfg-passes": (COUNT | {"metavar": "M"},
            "calls of a layer in one step, 2 with classifier-free guidance (default: 1)"),
        "--step-percentile": ({"metavar": "P", "type": percentile},
            "of each step, over its calls (default: the highest of --percentiles); "
            "also each layer's mean, least and largest of these over the steps"),
    },
    "write": {
        "--csv": (OUTPUT_FILE, "a row for each layer"),
        "--json": (OUTPUT_FILE, "the summary, for convert_nvfp4.py --input-scale-summary-json"),
        "--plots-dir": (OUTPUT_FILE | {"metavar": "DIR"}, "plots as PNG (needs matplotlib)"),
        "--sensitive-layers": (OUTPUT_FILE,
            "a list for convert_nvfp4.py --full-precision-mm-layers, by the following"),
    },
    "what makes a layer sensitive (no defaults)": {
        "--cv-threshold": (THRESHOLD, "scale_cv of X or more: the scale's std / mean over calls"),
        "--kurtosis-threshold": (THRESHOLD, "scale_kurtosis of X or more (a normal one has 0)"),
        "--rel-rmse-threshold": (THRESHOLD,
            "rel_rmse of X or more: root of squared error / energy of inputs in NVFP4"),
        "--cross-attn": ({"action": "store_true"},
            "cross-attention q, k, v, o of every block that was measured"),
    },
}
# fmt: on


def logs_parser() -> ArgumentReader:
    """Make the parser of analyze_input_scale_log.py.

    What is not given is None, so that `wrong_usage` can tell it from a default; LOG_DEFAULTS come
    after that.
    """
    parser = ArgumentReader(
        "analyze_input_scale_log.py",
        LOGS_DESCRIPTION,
        LOGS_SHORT.format(program=called_as("analyze_input_scale_log.py")),
        usage="%(prog)s (--input LOG ... | --summary FILE) [options]",
        epilog=LOGS_EPILOG + render_trade(),
    )
    for title, options in LOGS_COMMAND_LINE.items():
        group = parser.add_argument_group(title)
        for option, (keywords, text) in options.items():
            group.add_argument(option, **keywords, help=text)
    return parser


def wrong_usage(given: dict[str, object]) -> Iterator[str]:
    """Yield what is wrong with the options as a whole, in words for the user.

    given: {option: value, or None}. Options that exclude each other are told, and those that would
    do nothing without another one.
    """
    if (given["input"] is None) == (given["summary"] is None):
        yield "give --input LOG or --summary FILE, and not both"
    for option in LINE_OPTIONS:
        if given[option] is not None and given["input"] is None:
            yield f"--{option} needs --input"
    for option in STEP_OPTIONS:
        if given[option] is not None and given["steps"] is None:
            yield f"--{option.replace('_', '-')} needs --steps"
    if given["input"] and given["rel_rmse_threshold"] is not None and not given["recording"]:
        yield "--rel-rmse-threshold needs --recording"
    # A list by no criterion would always be empty.
    if given["sensitive_layers"] and not criteria_of(given):
        flags = ("--" + name.replace("_", "-") for name in THRESHOLDS)
        yield f"--sensitive-layers needs {examples(flags)} or --cross-attn"


def criteria_of(given: dict[str, object]) -> Criteria:
    """Collect the criteria that were given: thresholds by column, and --cross-attn.

    given: {option: value, or None}. Without any, the result is false.
    """
    limits = {column: given[option] for option, column in THRESHOLDS.items()}
    limits = {column: limit for column, limit in limits.items() if limit is not None}
    return Criteria(thresholds=limits, cross_attention=given["cross_attn"])


def parse_analysis(argv: list[str] | None = None) -> dict[str, object]:
    """Read the command line to {option: value}, with LOG_DEFAULTS for what was not given.

    argv: the words, or those of this process where it is None. Names of options have underscores.
    Paths come as Path, counts as int, thresholds as float, percentiles as an ascending tuple.
    --help and --version exit with 0, wrong usage with 2.
    """
    parser = logs_parser()
    given = vars(parser.parse_args(argv))
    for problem in wrong_usage(given):
        parser.error(problem)
    return given | {name: value for name, value in LOG_DEFAULTS.items() if given[name] is None}
