"""Summarise logs, read summaries again, join them with recordings.

This is where a LogSummary comes from: from logs by way of `reading` and `rows`, or from an earlier
summary's JSON. A recording adds what a log cannot tell, the error of each layer's input in NVFP4.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from nvfp4.errors import ConvertError, examples, in_number, one_line
from nvfp4.guides.recording import read_recordings
from nvfp4.logs.reading import OPENERS, read_log
from nvfp4.logs.records import LOG_DEFAULTS, LineChoice, Log, LogSummary, rounded
from nvfp4.logs.rows import (
    in_natural_order,
    is_row,
    layer_row,
    over_steps,
    shared_percentiles,
    step_rows,
    with_cv,
    without_nan,
)
from nvfp4.logs.series import Series
from nvfp4.model import bare
from nvfp4.names import natural_key
from nvfp4.notes import Note, Rank
from nvfp4.read.json_files import load_json, measured_rows, rows_in

# Endings of logs that are no part of a model's name.
LOG_SUFFIXES = (".log", ".tsv", ".txt", *OPENERS)
# Pairs of format and mode that are listed as left out; a damaged log could have thousands.
MOST_LEFT_OUT = 20


def summarise_logs(
    paths: Iterable[Path], choice: LineChoice, percentiles: tuple[float, ...]
) -> LogSummary:
    """Summarise all logs as if they were one: the calls of a layer go on from file to file.

    paths: in the order in which they were recorded, if steps are asked for. choice: which lines
    count. percentiles: ascending, from 0 to 100.

    Returns a LogSummary whose notes tell what became of the lines. Raises ConvertError for a file
    that is no log or has no line that counts.
    """
    found: dict[str, Series] = {}
    # All logs fill the same dict, one after another.
    logs = [read_log(path, choice, found) for path in paths]
    used = {name: found[name] for name in sorted(found, key=natural_key)}
    for series in used.values():
        series.settle()
    # A layer whose calls were all zeros has no figures.
    used = {name: series for name, series in used.items() if series.calls}
    asked = choice.step_percentile
    of_step = percentiles[-1] if asked is None else asked
    steps = {name: [*step_rows(name, series, of_step)] for name, series in used.items()}
    return LogSummary(
        format=choice.format,
        mode=choice.mode,
        percentiles=percentiles,
        rows=[
            layer_row(name, series, percentiles)
            | ({} if asked is None else over_steps(steps[name], asked))
            for name, series in used.items()
        ],
        steps=[*itertools.chain(*steps.values())],
        notes=[*itertools.chain(*map(log_notes, logs)), *series_notes(used, choice)],
        model=", ".join(dict.fromkeys(model_behind(log.path) for log in logs)),
    )


def model_behind(log: Path) -> str:
    """Name the model that a log is of: the recorder calls the log by the model's file."""
    while log.suffix.lower() in LOG_SUFFIXES:
        log = log.with_suffix("")
    return log.name


def log_notes(log: Log) -> Iterator[Note]:
    """Tell how many lines of a log were used, and why the others were not.

    Yields the file's own line with the reasons under it, indented. Malformed lines, shown with
    their number and beginning, and a last line without its end have notes of their own.
    """
    lines = [f"{log.path}: {log.lines:,} lines, {log.used:,} used"]
    lines += [f"  left out: {count:,} of format {kind}, mode {mode}"
              for (kind, mode), count in log.left_out.most_common(MOST_LEFT_OUT)]  # fmt: skip
    if log.zeros:
        lines += [f"  left out: {log.zeros:,} calls whose input was all zeros"]
    yield Note("\n".join(lines), Rank.INFORMATION)
    if log.malformed:
        shown = "".join(f"\n  {one_line(text)}" for text in log.shown)
        yield Note(f"{log.path}: left out: {log.malformed:,} malformed{shown}", Rank.WARNING)
    if log.incomplete:
        problem = "left out: the last line, which has no end: is the log still being written?"
        yield Note(f"{log.path}: {problem}", Rank.NOTE)


def series_notes(found: dict[str, Series], choice: LineChoice) -> Iterator[Note]:
    """Tell which layers have lines of several kinds, or calls that do not fill whole runs.

    found: {layer: its calls}. Lines of two formats in one layer are of two recordings; calls that
    are no multiple of steps and passes were interrupted, and later ones are then dealt to wrong
    steps.
    """
    mixed = [name for name, series in found.items() if len(series.kinds) > 1]
    if mixed:
        problem = "layers have lines of several formats or modes, taken together"
        yield Note(f"{in_number(len(mixed), problem)}: {examples(mixed)}", Rank.WARNING)
    if choice.steps:
        whole = choice.steps * choice.passes
        odd = [name for name, series in found.items() if series.calls % whole]
        if odd:
            problem = f"{len(odd)} layers' calls are no multiple of {choice.steps} steps x " \
                      f"{choice.passes}, so that steps are mixed up"  # fmt: skip
            yield Note(f"{problem}: {examples(odd)}", Rank.WARNING)


def read_log_summary(path: Path) -> LogSummary:
    """Read a summary that was made earlier, its rows in natural order.

    path: of the JSON. Its percentiles are those that every row has, whatever it says itself, and
    scale_cv is computed anew. Layers that were not measured are left out with a note; NaN elsewhere
    stands for no figure. Raises ConvertError for a file that cannot be read, and for rows that are
    malformed, of one layer twice, or without a percentile in common.
    """
    data = load_json(path, "summary")
    rows, notes = measured_rows(path, rows_in(path, data), ("scale_mean", "scale_std"))
    rows, steps = [*map(without_nan, rows)], data.get("steps", [])
    for what, found, needed in (("layers", rows, "scale_std"), ("steps", steps, "step")):
        if not isinstance(found, list) or not all(is_row(row, needed) for row in found):
            problem = (
                f"`{what}` must be a list of rows: a layer's name, a positive scale_mean, "
                f"{needed}, and otherwise numbers or null"
            )
            raise ConvertError(f"{path}: {problem}")
    percentiles = shared_percentiles(rows)
    if not percentiles:
        raise ConvertError(f"{path}: its layers have no percentile in common, like scale_p99_9")
    return LogSummary(
        format=str(data.get("format", LOG_DEFAULTS["format"])),
        mode=str(data.get("mode", LOG_DEFAULTS["mode"])),
        percentiles=percentiles,
        rows=in_natural_order(map(with_cv, rows)),
        steps=steps,
        notes=notes,
        # Older summaries do not name the model: the file's own name is the next best.
        model=str(data.get("model", path.stem)),
    )


def read_errors(paths: Iterable[Path]) -> dict[str, float | None]:
    """Read each layer's relative RMSE of its inputs in NVFP4 from recordings.

    paths: .safetensors files of the recorder, which add up. Returns {bare layer: error}, rounded to
    six digits, and None where no input had energy. Raises ConvertError for a file that is no
    recording.
    """
    return {
        layer: rounded(recorded.rel_rmse) if recorded.energy else None
        for layer, recorded in read_recordings(paths).items()
    }


def with_errors(summary: LogSummary, errors: dict[str, float | None]) -> LogSummary:
    """Add the column rel_rmse to a summary, and notes on layers that only one side has.

    errors: {bare layer: relative RMSE, or None}. A layer that the recording does not have keeps the
    error it had, or gets None. Returns a new LogSummary; the given one is not changed.
    """
    names = {bare(row["layer"]) for row in summary.rows}
    rows = [
        row | {"rel_rmse": errors.get(bare(row["layer"]), row.get("rel_rmse"))}
        for row in summary.rows
    ]
    # A recorded layer without energy has no error either.
    unmeasured = names - {name for name, error in errors.items() if error is not None}
    notes = [
        Note(f"{in_number(len(found), what)}: {examples(found)}", Rank.NOTE)
        for found, what in (
            (unmeasured, "layers have no error in the recording"),
            (errors.keys() - names, "recorded layers are not in the log or summary"),
        )
        if found
    ]
    return dataclasses.replace(summary, rows=rows, notes=[*summary.notes, *notes])
