#!/usr/bin/env python3
"""Turn a calibration log into input-scale statistics, plots and a list of sensitive layers.

A log has one line for each call of a linear layer, written while ComfyUI runs prompts:
  format <tab> mode <tab> layer <tab> scale <tab> amax <tab> shape
scale is the input scale that the call measured, amax / 2688; amax its input's largest magnitude.
Older logs lack the first column, which was always nvfp4.

The summary (--json) goes to convert_nvfp4.py --input-scale-summary-json, the list
(--sensitive-layers) to --full-precision-mm-layers. A summary is also an input (--summary), so
that lists and plots can be made again without the log.

Exit status: 0 done, 1 a file that is no log, summary or recording, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import csv
import gzip
import io
import itertools
import lzma
import math
import re
import signal
import sys
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import numpy as np
from tqdm import tqdm

import convert_nvfp4 as c
from compare_models import kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ── 1. Tables and records ────────────────────────────────────────────────────────────────────────

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
CHUNK = 1 << 20  # bytes of log read at once
LONGEST_LINE = 1 << 16  # bytes; a file without line ends would otherwise fill the memory
SHOWN_TEXT = 80  # characters of a malformed line

LARGEST = sys.float_info.max  # JSON's integers can be larger, and then not be compared
LEAST, MOST = map(float, (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
PENDING = 2 * 2048  # numbers a layer collects before they are counted: a scale and an amax a call
MOST_VALUES = 16_384  # distinct values of a layer that are kept exactly; beyond, 12 bits of each
MOST_STEP_VALUES = 512  # the same for one step of a layer
MOST_LAYERS = 20_000  # of a log: each costs some kilobytes
MOST_MALFORMED = 100_000  # lines of a file that has no other: it is no log
MOST_LEFT_OUT = 20  # formats and modes that are listed
FOLDED_BITS = np.uint32(0x7FF)  # of a float32 that are given up: a resolution of 2**-12
HALF_FOLDED = np.uint32(0x400)  # the middle of what shares the other bits: at most 2**-13 off
DIGITS = 6  # significant ones, of every number that is written
OUTLIER = 3.0  # standard deviations from the mean

ALL = "all"  # the --format and --mode that leave nothing out
DEFAULTS = {
    "format": "nvfp4",
    "mode": "dynamic",
    "percentiles": (50.0, 90.0, 95.0, 99.0, 99.9),
    "cfg_passes": 1,
}
# The option that sets a criterion's threshold: the column it is compared with.
THRESHOLDS = {
    "cv_threshold": "scale_cv",
    "kurtosis_threshold": "scale_kurtosis",
    "rel_rmse_threshold": "rel_rmse",
}
CROSS_ATTENTION = c.FULL_PRECISION_OPTIONS["--full-precision-mm-cross-attn-qkvo"][0]
CROSS_ATTENTION_PARTS = "qkvo"
BLOCK = re.compile(rf"(?:.*\.)?(?:{'|'.join(c.TRANSFORMER_BLOCKS)})\.\d+(?=\.)")
WORST_SHOWN = 10

# calib/make_shipped.py --trade computes these, and a test compares: model, --cv-threshold, per cent
# of the measured layers it flags, per cent of the multiply work that stays W4A4 without them, and
# without all cross-attention, too.
TRADE = (
    ("TI2V 5B", 0.01, 94, 4, 0),
    ("TI2V 5B", 0.16, 43, 64, 54),
    ("I2V 14B low", 0.01, 90, 9, 0),
    ("I2V 14B low", 0.11, 33, 64, 51),
    ("I2V 14B high", 0.01, 89, 10, 0),
    ("I2V 14B high", 0.12, 42, 68, 55),
)


@dataclass(slots=True, kw_only=True)
class Log:
    """What became of one file's lines."""

    path: Path
    lines: int = 0
    malformed: int = 0
    zeros: int = 0  # calls whose input was all zeros, such as an empty prompt's
    shown: list[str] = field(default_factory=list)  # the first malformed ones
    left_out: Counter = field(default_factory=Counter)  # lines by (format, mode)
    incomplete: bool = False  # the last line has no end yet

    @property
    def used(self) -> int:
        return self.lines - self.malformed - self.zeros - sum(self.left_out.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which lines count, and how a layer's calls are dealt out to steps (0: not at all)."""

    format: str
    mode: str
    steps: int
    passes: int

    def takes(self, kind: str, mode: str) -> bool:
        return self.format in (ALL, kind) and self.mode in (ALL, mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What makes a layer sensitive: a column's value of at least so much, or its place."""

    thresholds: dict[str, float]  # by column
    cross_attention: bool

    def __bool__(self) -> bool:
        return bool(self.thresholds) or self.cross_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Statistics of every layer, as they are written and read again."""

    format: str
    mode: str
    percentiles: tuple[float, ...]
    rows: list[dict]  # one a layer, in natural order
    steps: list[dict]  # one a layer and step, if asked for
    notes: list[str]

    @property
    def highest(self) -> str:
        return f"scale_{c.percentile_key(self.percentiles[-1])}"


# ── 2. Counts ────────────────────────────────────────────────────────────────────────────────────


class Tally:
    """Values and how often each came, in memory that is bounded.

    Activations are 16-bit floats, so that amax has a few hundred distinct values however long
    the log is. If more than `most` come all the same, all are rounded to 12 bits: 4,096 values
    remain for each power of two that they span.
    """

    __slots__ = ("counts", "fresh", "largest", "least", "most", "number", "values", "waiting")

    def __init__(self, most: int = MOST_VALUES):
        self.values, self.counts = np.empty(0), np.empty(0, np.int64)
        self.fresh: list[np.ndarray] = []
        self.number = self.waiting = 0
        self.most, self.least, self.largest = most, math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Count float64 values of float32's normal range; there must be one at least."""
        self.least = min(self.least, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        self.fresh.append(values)
        self.number += len(values)
        self.waiting += len(values)
        if self.waiting >= min(self.most, PENDING // 2):
            self.settle()

    def settle(self) -> None:
        """Count what waits; sorting a few values at a time would take longer than reading them."""
        values = np.concatenate([self.values, *self.fresh])
        counts = np.concatenate([self.counts, np.ones(self.waiting, np.int64)])
        self.fresh, self.waiting = [], 0
        self.values, self.counts = merged(values, counts)
        if len(self.values) > self.most:
            self.values, self.counts = merged(folded(self.values), self.counts)


def merged(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in ascending order, and their counts summed; there must be one at least."""
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return values[first], np.add.reduceat(counts, first)


def folded(values: np.ndarray) -> np.ndarray:
    """Positive float64 values rounded to 12 bits of mantissa; what is rounded already stays."""
    bits = values.astype(np.float32).view(np.uint32)
    return (bits & ~FOLDED_BITS | HALF_FOLDED).view(np.float32).astype(np.float64)


class ZeroInputError(ValueError):
    """A call whose input was all zeros: no scale to learn from."""


class Series:
    """All calls of one layer."""

    __slots__ = ("amax", "calls", "choice", "kinds", "pending", "scale", "steps")

    def __init__(self, choice: Choice):
        self.choice, self.calls = choice, 0
        self.kinds: set[tuple[str, str]] = set()
        self.scale, self.amax, self.pending = Tally(), Tally(), array("d")
        self.steps = [Tally(MOST_STEP_VALUES) for _ in range(choice.steps)]

    def add(self, scale: bytes, amax: bytes) -> None:
        """Count a call. Raises ValueError."""
        numbers = float(scale), float(amax)
        if numbers == (0, 0):
            raise ZeroInputError
        if not (LEAST <= numbers[0] <= MOST and LEAST <= numbers[1] <= MOST):
            raise ValueError("scale and amax must be positive and finite")
        self.pending.extend(numbers)
        if len(self.pending) >= PENDING:
            self.settle()

    def settle(self) -> None:
        """Count what is pending."""
        if not self.pending:
            return
        scales, amaxs = np.array(self.pending).reshape(-1, 2).T
        self.pending = array("d")
        self.scale.add(scales)
        self.amax.add(amaxs)
        if self.steps:
            calls = self.calls + np.arange(len(scales))
            step = calls // self.choice.passes % self.choice.steps
            for index in np.unique(step):
                self.steps[index].add(scales[step == index])
        self.calls += len(scales)


@dataclass(slots=True, kw_only=True)
class LeftOut:
    """In a layer's place, for lines that --format or --mode leave out."""

    counts: Counter
    kind: tuple[str, str]

    def add(self, scale: bytes, amax: bytes) -> None:  # noqa: ARG002
        self.counts[self.kind] += 1


# ── 3. Read ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """A log's reading errors as one line; those of damaged archives have no number."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        problem = f"the compressed log is damaged or cut off: {error}; unpack what is left of it"
        raise c.ConvertError(f"{path}: {problem}") from error
    except OSError as error:
        raise c.ConvertError(f"{path}: cannot read the log: {error.strerror or error}") from error


def read_lines(log: Log) -> Iterator[list[bytes]]:
    """A log's complete lines, some thousand at a time. Raises ConvertError."""
    rest = b""
    with readable(log.path), log.path.open("rb") as raw:
        opener: Callable = OPENERS.get(log.path.suffix.lower(), lambda file, _: file)
        file: BinaryIO = opener(raw, "rb")
        with tqdm(total=log.path.stat().st_size, desc=c.printable(log.path.name), unit="B",
                  unit_scale=True, delay=1, file=sys.stderr) as bar:  # fmt: skip
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    problem = f"is no log: line {log.lines + len(lines) + 1} does not end"
                    raise c.ConvertError(f"{log.path}: {problem}")
                yield lines
                bar.update(raw.tell() - bar.n)
    log.incomplete = bool(rest)


def read_log(path: Path, choice: Choice, found: dict[str, Series]) -> Log:
    """Add a log's calls to what was found; malformed lines are counted. Raises ConvertError."""
    log, known = Log(path=path), {}
    for lines in read_lines(log):
        for number, line in enumerate(lines, start=log.lines + 1):
            columns = line.rsplit(b"\t", 3)
            try:
                target = known.get(columns[0])
                if target is None:
                    target = known[columns[0]] = open_target(columns, log, choice, found)
                target.add(columns[1], columns[2])
            except ZeroInputError:
                log.zeros += 1
            except ValueError as error:
                log.malformed += 1
                if log.malformed <= c.EXAMPLES:
                    log.shown.append(f"{path} line {number}: {error}: {excerpt(line)}")
                elif log.malformed == number > MOST_MALFORMED:
                    problem = f"is no log: its first {number:,} lines are malformed"
                    raise c.ConvertError(f"{path}: {problem}") from error
        log.lines += len(lines)
    if not log.used:
        raise c.ConvertError(f"{path}: {nothing_usable(log, choice)}")
    return log


def excerpt(line: bytes) -> str:
    """The beginning of a malformed line."""
    text = line[: 4 * SHOWN_TEXT].decode("utf-8", "replace")
    cut = "..." if len(text) > SHOWN_TEXT else ""
    return c.one_line(text[:SHOWN_TEXT].replace("\t", "\\t")) + cut


def open_target(
    columns: list[bytes], log: Log, choice: Choice, found: dict[str, Series]
) -> Series | LeftOut:
    """Where the lines of one format, mode and layer go. Raises ValueError for no such line."""
    head = columns[0].removeprefix(b"\xef\xbb\xbf") if not log.lines else columns[0]
    words = head.decode().split("\t")  # a UnicodeDecodeError is a ValueError
    if len(columns) != 4 or len(words) not in (2, 3):
        raise ValueError(f"{len(words) + len(columns) - 1} columns instead of 6, or 5")
    if not columns[3].lstrip().startswith((b"(", b"[", b"torch.Size")):
        raise ValueError("its last column is no shape")
    kind, mode, layer = words if len(words) == 3 else (DEFAULTS["format"], *words)
    if not all(map(is_name, (kind, mode, layer))):
        raise ValueError("a name is empty or has a space, a # or a control character")
    float(columns[1]), float(columns[2])  # else a damaged line's name would become a layer
    if not choice.takes(kind, mode):
        return LeftOut(counts=log.left_out, kind=(kind, mode))
    series = found.get(c.bare(layer)) or found.setdefault(c.bare(layer), Series(choice))
    if len(found) > MOST_LAYERS:
        raise c.ConvertError(f"{log.path}: is of no model: it has more than {MOST_LAYERS:,} layers")
    series.kinds.add((kind, mode))
    return series


def nothing_usable(log: Log, choice: Choice) -> str:
    """Why a log gave nothing: what it has instead."""
    wanted = f"no line of format {choice.format} and mode {choice.mode}"
    has = [
        f"{count:,} of {kind} {mode}"
        for (kind, mode), count in log.left_out.most_common(c.EXAMPLES)
    ]
    if log.malformed:
        has.append(f"{log.malformed:,} malformed, as {log.shown[0].removeprefix(f'{log.path} ')}")
    if log.incomplete:
        has.append("a last line without its end")
    advice = "; give --format and --mode" if log.left_out else ""
    return f"{wanted}; it has {', '.join(has) or 'no line at all'}{advice}"


def read_errors(paths: Iterable[Path]) -> dict[str, float | None]:
    """{bare layer: relative RMSE of its inputs in NVFP4}, of all recordings together.

    None where no input had energy. Raises ConvertError.
    """
    return {
        layer: rounded(recorded.rel_rmse) if recorded.energy else None
        for layer, recorded in c.read_recordings(paths).items()
    }


def read_summary(path: Path) -> Summary:
    """A summary made earlier. Raises ConvertError."""
    data = c.load_json(path, "summary")
    rows, steps = data.get("layers"), data.get("steps", [])
    for what, found, needed in (("layers", rows, "scale_std"), ("steps", steps, "step")):
        if not isinstance(found, list) or not all(is_row(row, needed) for row in found):
            problem = (
                f"`{what}` must be a list of rows: a layer's name, a positive scale_mean, "
                f"{needed}, and otherwise numbers or null"
            )
            raise c.ConvertError(f"{path}: {problem}")
    if not rows:
        raise c.ConvertError(f"{path}: has no layers")
    names = Counter(c.bare(row["layer"]) for row in rows)
    if len(names) < len(rows):
        raise c.ConvertError(f"{path}: has two rows for layer {names.most_common(1)[0][0]}")
    percentiles = shared_percentiles(rows)
    if not percentiles:
        raise c.ConvertError(f"{path}: its layers have no percentile in common, like scale_p99_9")
    return Summary(
        format=str(data.get("format", DEFAULTS["format"])),
        mode=str(data.get("mode", DEFAULTS["mode"])),
        percentiles=percentiles,
        rows=natural(map(with_cv, rows)),
        steps=steps,
        notes=[],
    )


def is_row(row: object, needed: str) -> bool:
    """A name, and otherwise what JSON and CSV can hold: NaN would be no JSON."""
    if not isinstance(row, dict) or not is_name(row.get("layer")):
        return False
    numbers = {key: value for key, value in row.items() if key != "layer" and value is not None}
    return (
        all(
            type(value) in (int, float) and -LARGEST <= value <= LARGEST
            for value in numbers.values()
        )
        and numbers.get("scale_mean", 0) > 0
        and numbers.get(needed, -1) >= 0
    )


def is_name(word: object) -> bool:
    """Whether a list of layers could hold it: # begins a comment there."""
    return isinstance(word, str) and word.isprintable() and bool(re.fullmatch(r"[^\s#]+", word))


def shared_percentiles(rows: Iterable[dict]) -> tuple[float, ...]:
    """Those of the scale that every row has: scale_p99_9 -> 99.9."""
    positive = ({key for key, value in row.items() if key != "layer" and value is not None
                 and value > 0} for row in rows)  # fmt: skip
    found = (
        re.fullmatch(r"scale_p(\d{1,3})(?:_(\d{1,9}))?", key) for key in set.intersection(*positive)
    )
    return tuple(sorted(float(f"{match[1]}.{match[2] or 0}") for match in found if match))


# ── 4. Statistics ────────────────────────────────────────────────────────────────────────────────


def statistics(tally: Tally, percentiles: Iterable[float]) -> dict[str, float | None]:
    """Moments over a population, excess kurtosis, and percentiles as numpy's default has them."""
    tally.settle()
    values, counts = np.clip(tally.values, tally.least, tally.largest), tally.counts
    number = tally.number
    # The first value as origin: of equal values, the deviation has to be 0 and not a rounding.
    mean = values[0] + ((values - values[0]) * counts).sum() / number
    deviation = values - mean
    std = math.sqrt((deviation**2 * counts).sum() / number)
    kurtosis = None
    if std:
        kurtosis = rounded(float(((deviation / std) ** 4 * counts).sum() / number - 3))
    found = {
        "min": tally.least,
        "max": tally.largest,
        "mean": float(mean),
        "std": std,
        "kurtosis": kurtosis,
        "outlier_frac_3std": int(counts[abs(deviation) > OUTLIER * std].sum()) / number,
    }
    found |= zip(
        map(c.percentile_key, percentiles), quantiles(values, counts, percentiles), strict=True
    )
    return {key: rounded(value) for key, value in found.items()}


def quantiles(values: np.ndarray, counts: np.ndarray, percentiles: Iterable[float]) -> list[float]:
    """Percentiles of ascending values with counts, linear between neighbours in rank."""
    ends = np.cumsum(counts)
    ranks = (ends[-1] - 1) * np.asarray(tuple(percentiles)) / 100
    below = np.floor(ranks)
    left, right = (
        values[np.searchsorted(ends, np.minimum(rank, ends[-1] - 1), side="right")]
        for rank in (below, below + 1)
    )
    return (left + (right - left) * (ranks - below)).tolist()


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def with_cv(row: dict) -> dict:
    """A row with its scale_cv, from figures as written: a log's and its summary's agree."""
    return row | {"scale_cv": rounded(row["scale_std"] / row["scale_mean"])}


def natural_key(name: str) -> list[int | str]:
    """A key to sort by that puts blocks.2 before blocks.10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def natural(rows: Iterable[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: natural_key(row["layer"]))


def layer_row(layer: str, series: Series, percentiles: Iterable[float]) -> dict:
    """One layer's row of the summary."""
    row = {"layer": layer, "count": series.calls}
    for prefix, tally in (("scale", series.scale), ("amax", series.amax)):
        found = statistics(tally, percentiles)
        row |= {f"{prefix}_{key}": value for key, value in found.items()}
    return with_cv(row)


def step_rows(layer: str, series: Series, highest: float) -> Iterator[dict]:
    """One row for each step that a layer was called in."""
    key = c.percentile_key(highest)
    for step, tally in enumerate(series.steps):
        if tally.number:
            found = statistics(tally, [highest])
            kept = {f"scale_{name}": found[name] for name in ("mean", "max", key)}
            yield {"layer": layer, "step": step, "count": tally.number} | kept


def analyse(paths: Iterable[Path], choice: Choice, percentiles: tuple[float, ...]) -> Summary:
    """All logs as one: the calls of a layer go on from file to file. Raises ConvertError."""
    found: dict[str, Series] = {}
    logs = [read_log(path, choice, found) for path in paths]
    used = {name: found[name] for name in sorted(found, key=natural_key)}
    for series in used.values():
        series.settle()
    used = {name: series for name, series in used.items() if series.calls}
    return Summary(
        format=choice.format,
        mode=choice.mode,
        percentiles=percentiles,
        rows=[layer_row(name, series, percentiles) for name, series in used.items()],
        steps=[row for x in used.items() for row in step_rows(*x, percentiles[-1])],
        notes=[*itertools.chain(*map(log_notes, logs)), *series_notes(used, choice)],
    )


def log_notes(log: Log) -> Iterator[str]:
    """What was not used of a log, and why."""
    yield f"{log.path}: {log.lines:,} lines, {log.used:,} used"
    for (kind, mode), count in log.left_out.most_common(MOST_LEFT_OUT):
        yield f"  left out: {count:,} of format {kind}, mode {mode}"
    if log.zeros:
        yield f"  left out: {log.zeros:,} calls whose input was all zeros"
    if log.malformed:
        yield f"  left out: {log.malformed:,} malformed"
    yield from (f"    {c.one_line(text)}" for text in log.shown)
    if log.incomplete:
        yield "  left out: the last line, which has no end: is the log still being written?"


def series_notes(found: dict[str, Series], choice: Choice) -> Iterator[str]:
    mixed = [name for name, series in found.items() if len(series.kinds) > 1]
    if mixed:
        yield f"{len(mixed)} layers have lines of several formats or modes, taken together: " \
              f"{c.examples(mixed)}"  # fmt: skip
    if choice.steps:
        whole = choice.steps * choice.passes
        odd = [name for name, series in found.items() if series.calls % whole]
        if odd:
            yield f"{len(odd)} layers' calls are no multiple of {choice.steps} steps x " \
                  f"{choice.passes}, so that steps are mixed up: {c.examples(odd)}"  # fmt: skip


def with_errors(summary: Summary, errors: dict[str, float | None]) -> None:
    """Add rel_rmse to the rows that have one, and note those that do not."""
    names = {c.bare(row["layer"]) for row in summary.rows}
    for row in summary.rows:
        row["rel_rmse"] = errors.get(c.bare(row["layer"]), row.get("rel_rmse"))
    unmeasured = names - {name for name, error in errors.items() if error is not None}
    for found, what in (
        (unmeasured, "layers have no error in the recording"),
        (errors.keys() - names, "recorded layers are not in the log or summary"),
    ):
        if found:
            summary.notes.append(f"{len(found)} {what}: {c.examples(found)}")


# ── 5. Sensitive layers ──────────────────────────────────────────────────────────────────────────


def reasons(row: dict, criteria: Criteria) -> list[str]:
    """Every threshold that a layer reaches: "scale_cv 0.172 >= 0.16"."""
    return [
        f"{column} {row[column]:.3g} >= {threshold:g}"
        for column, threshold in criteria.thresholds.items()
        if row.get(column) is not None and row[column] >= threshold
    ]


def sensitive_layers(rows: Iterable[dict], criteria: Criteria) -> dict[str, list[str]]:
    """{layer: why it is sensitive} in natural order; cross-attention with or without a row."""
    found = defaultdict(list)
    for row in rows:
        found[row["layer"]] += reasons(row, criteria)
        block = BLOCK.match(row["layer"])
        if criteria.cross_attention and block:
            names = [f"{block[0]}.cross_attn.{part}" for part in CROSS_ATTENTION_PARTS]
            names += [row["layer"]] if re.search(CROSS_ATTENTION, row["layer"]) else []
            for name in names:
                if "cross-attention" not in found[name]:
                    found[name].insert(0, "cross-attention")
    return {name: found[name] for name in sorted(found, key=natural_key) if found[name]}


def render_list(rows: Iterable[dict], criteria: Criteria) -> str:
    """The list for --full-precision-mm-layers: a name a line, its reasons as a comment."""
    found = sensitive_layers(rows, criteria)
    by = [f"{column} >= {threshold:g}" for column, threshold in criteria.thresholds.items()]
    by += ["all cross-attention of these blocks"] if criteria.cross_attention else []
    lines = [
        f"# {len(found)} layers for convert_nvfp4.py --full-precision-mm-layers: {', '.join(by)}",
        *(f"{name}  # {', '.join(why)}" for name, why in found.items()),
    ]
    return "\n".join(lines) + "\n"


# ── 6. Write ─────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, data: bytes) -> None:
    """A file, whole or not at all. Raises ConvertError."""
    temporary = c.unfinished(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise c.ConvertError(f"{path}: cannot write: {error.strerror}") from error


def render_json(summary: Summary) -> str:
    data = {
        "format": summary.format,
        "mode": summary.mode,
        "percentiles": summary.percentiles,
        "layers": summary.rows,
    }
    return c.render_json(data | ({"steps": summary.steps} if summary.steps else {}))


def render_csv(summary: Summary) -> str:
    """One row a layer; what is unknown is empty."""
    columns = dict.fromkeys(key for row in summary.rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary.rows)
    return text.getvalue()


# ── 7. Plots ─────────────────────────────────────────────────────────────────────────────────────

PLAIN, MARKED, QUIET = "#3b6ea5", "#d1495b", "#555555"
PANEL = 3.6, 2.5  # inches
ACROSS = 3  # panels beside each other
ELSEWHERE = "outside the blocks"
BINS = 40
HEAVY = 10.0  # kurtosis from which a few layers would crowd all others into the first bin


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise c.ConvertError("--plots-dir needs matplotlib: pip install matplotlib") from error


def page(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels; without pyplot, which would look for a display."""
    from matplotlib.figure import Figure

    across = min(panels, ACROSS)
    down = -(-panels // across)
    size = PANEL[0] * max(across, 2), PANEL[1] * down + 0.8
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure, list(axes[:panels])


def as_png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def by_kind(rows: Iterable[dict]) -> dict[str, list[tuple[int, dict]]]:
    """{kind of layer: its rows with their block}; layers outside the blocks are one kind."""
    kinds, elsewhere = defaultdict(list), {}
    for row in rows:
        kind, block = kind_of(row["layer"]), re.search(r"(?<=\.)\d+(?=\.)", row["layer"])
        if "*" in kind and block:
            kinds[kind].append((int(block[0]), row))
        else:
            place = elsewhere.setdefault(row["layer"], len(elsewhere))
            kinds[ELSEWHERE].append((place, row))
    return dict(kinds)


def log_axis(axes: Axes, lowest: float, highest: float) -> None:
    """A log axis whose ticks can be read where it spans less than a power of ten, too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    span = max(highest / lowest, 1.01)
    margin = span**0.08
    steps = (1,) if span > 300 else (1, 3) if span > 20 else (1, 2, 3, 5, 7)
    axes.set_yscale("log")
    axes.set_ylim(lowest / margin, highest * margin)
    axes.yaxis.set_major_locator(MaxNLocator(6) if span < 4 else LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.3)


def plot_layers(summary: Summary, marked: set[str]) -> Figure:
    """A panel for each kind of layer: a bar of percentiles for each block, the median a dot."""
    kinds = by_kind(summary.rows)
    low, high = (f"scale_{c.percentile_key(summary.percentiles[i])}" for i in (0, -1))
    title = (
        f"Input scale over calls, by block: bar from p{summary.percentiles[0]:g} to "
        f"p{summary.percentiles[-1]:g}, dot: median"
    )
    title += "; red: sensitive by the given thresholds" if marked else ""
    figure, panels = page(len(kinds), title)
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        for colour in (PLAIN, MARKED):
            chosen = [x for x in found if (x[1]["layer"] in marked) == (colour == MARKED)]
            places = [place for place, _ in chosen]
            ends = ([row[key] for _, row in chosen] for key in (low, high))
            axes.vlines(places, *ends, color=colour, linewidth=2.5)
            dots = [row.get("scale_p50", math.nan) for _, row in chosen]
            axes.plot(places, dots, "o", color=colour, markersize=3.5)
        log_axis(axes, min(row[low] for _, row in found), max(row[high] for _, row in found))
        axes.set_title(c.one_line(kind), fontsize=9)
        if kind == ELSEWHERE:
            names = [c.one_line(row["layer"]) for _, row in found]
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        else:
            axes.set_xlabel("block", fontsize=8)
    return figure


def plot_histograms(summary: Summary, criteria: Criteria) -> Figure:
    """How many layers have which variation, kurtosis, share of outliers and error."""
    from matplotlib.ticker import MaxNLocator

    columns = {
        "scale_cv": "scale_cv = std / mean",
        "scale_kurtosis": "scale_kurtosis, excess (normal: 0)",
        "scale_outlier_frac_3std": "share of calls beyond 3 std",
        "rel_rmse": "relative RMSE of inputs in NVFP4",
    }
    known = {
        column: [row[column] for row in summary.rows if row.get(column) is not None]
        for column in columns
    }
    known = {column: values for column, values in known.items() if values}
    figure, panels = page(len(known), f"{len(summary.rows)} layers by their input scales")
    for axes, (column, values) in zip(panels, known.items(), strict=True):
        heavy = column == "scale_kurtosis" and max(values) > HEAVY
        bins = np.linspace(*np.arcsinh([min(values), max(values)]), BINS + 1)
        axes.hist(values, np.sinh(bins) if heavy else BINS, color=PLAIN)
        if heavy:
            axes.set_xscale("symlog")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        if column in criteria.thresholds:
            axes.axvline(criteria.thresholds[column], color=MARKED, linewidth=1.5)
        axes.set_xlabel(columns[column], fontsize=8)
        axes.set_ylabel("layers", fontsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
    return figure


def plot_steps(summary: Summary) -> Figure:
    """A panel for each kind of layer: each block's mean input scale from step to step."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    kinds = by_kind(summary.steps)
    shades = Normalize(0, max(place for found in kinds.values() for place, _ in found) or 1)
    colours = ScalarMappable(shades, colormaps["viridis"])
    figure, panels = page(len(kinds), "Mean input scale at each step, a line for each block")
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        lines = defaultdict(list)
        for place, row in found:
            lines[row["layer"], place].append((row["step"], row["scale_mean"]))
        for (name, place), points in lines.items():
            colour = None if kind == ELSEWHERE else colours.to_rgba(place)
            places = zip(*sorted(points), strict=True)
            axes.plot(*places, color=colour, linewidth=0.9, label=c.one_line(name))
        if kind == ELSEWHERE:
            axes.legend(fontsize=5)
        means = [row["scale_mean"] for _, row in found]
        log_axis(axes, min(means), max(means))
        axes.set_title(c.one_line(kind), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    figure.colorbar(colours, ax=panels, label="block", fraction=0.02, pad=0.01)
    return figure


def write_plots(folder: Path, summary: Summary, criteria: Criteria) -> list[Path]:
    marked = set(sensitive_layers(summary.rows, criteria))
    figures = {
        "histograms.png": plot_histograms(summary, criteria),
        "layers.png": plot_layers(summary, marked),
    }
    if summary.steps:
        figures["steps.png"] = plot_steps(summary)
    with c.translated(folder):
        folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        write(folder / name, as_png(figure))
    return [folder / name for name in figures]


# ── 8. Text ──────────────────────────────────────────────────────────────────────────────────────


def columns_of(title: str, rows: list[tuple[str, ...]]) -> list[str]:
    """A table under a title, its first row the headings: names to the left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return ["", title, *(f"  {line}".rstrip() for line in lines)]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def render_worst(summary: Summary) -> list[str]:
    """The layers whose input scale varies most."""
    worst = sorted(summary.rows, key=lambda row: -row["scale_cv"])[:WORST_SHOWN]
    columns = {
        "calls": "count",
        "median": "scale_p50",
        f"p{summary.percentiles[-1]:g}": summary.highest,
        "scale_cv": "scale_cv",
        "kurtosis": "scale_kurtosis",
    }
    if any("rel_rmse" in row for row in summary.rows):
        columns["rel_rmse"] = "rel_rmse"
    rows = [(c.one_line(row["layer"]), *(number(row.get(k)) for k in columns.values()))
            for row in worst]  # fmt: skip
    return columns_of("the most variable input scales", [("layer", *columns), *rows])


def render_flags(summary: Summary, criteria: Criteria) -> list[str]:
    """How many layers each criterion flags, and all together."""
    if not criteria:
        return []
    every = {f"{column} >= {limit:g}": Criteria(thresholds={column: limit}, cross_attention=False)
             for column, limit in criteria.thresholds.items()}  # fmt: skip
    if criteria.cross_attention:
        every["cross-attention"] = Criteria(thresholds={}, cross_attention=True)
    measured = {row["layer"] for row in summary.rows}
    rows = [("", "flagged", f"of {len(measured):,} measured")]
    for what, one in [*every.items(), ("sensitive", criteria)]:
        flagged = sensitive_layers(summary.rows, one)
        rows.append((what, number(len(flagged)), number(len(measured & flagged.keys()))))
    return columns_of("sensitive layers", rows)


def render(summary: Summary, criteria: Criteria, written: Iterable[Path]) -> str:
    calls = [row["count"] for row in summary.rows if row.get("count")]
    least, most = min(calls, default=0), max(calls, default=0)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return "\n".join(
        [
            *summary.notes,
            f"{len(summary.rows):,} layers, {each} calls each",
            *render_worst(summary),
            *render_flags(summary, criteria),
            *([""] if written else []),
            *(f"written: {path}" for path in written),
        ]
    )


def render_trade() -> str:
    """What thresholds cost, for --help."""
    rows = [("", "--cv-threshold", "layers flagged", "stays W4A4", "with --cross-attn")]
    rows += [(model, f"{limit:g}", *(f"{share} %" for share in shares))
             for model, limit, *shares in TRADE]  # fmt: skip
    title = "  Of the multiply work of the measured layers:"
    return "\n".join(columns_of(title, rows)[1:])


# ── 9. Command line ──────────────────────────────────────────────────────────────────────────────


def percentile_list(text: str) -> tuple[float, ...]:
    """50,99.9 -> (50.0, 99.9), ascending; the median is always among them."""
    values = sorted({50.0, *map(float, text.split(","))})
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: percentiles are from 0 to 100")
    if len({*map(c.percentile_key, values)}) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: two percentiles are equal in six digits")
    return tuple(values)


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a number to compare with")
    return value


COUNT = {"metavar": "N", "type": positive_int}
THRESHOLD = {"metavar": "X", "type": finite}
LOGS = {"metavar": "LOG", "type": c.input_path, "nargs": "+"}

# fmt: off
COMMAND_LINE = {
    "read (--input or --summary)": {
        "--input": (LOGS, "calibration logs, plain or .gz, .xz, .bz2"),
        "--summary": (c.SUMMARY.keywords,
            "a summary made earlier; also looked for in calib/ beside this script"),
        "--recording": (LOGS | {"metavar": "FILE"},
            "the recorder's .safetensors: each layer's error in NVFP4 (rel_rmse)"),
        "--format": ({"metavar": "NAME"}, "lines that count, or all (default: nvfp4)"),
        "--mode": ({"metavar": "NAME"}, "lines that count, or all (default: dynamic)"),
        "--percentiles": ({"metavar": "P,P", "type": percentile_list},
            "over calls; 50 is always among them (default: 50,90,95,99,99.9)"),
        "--steps": (COUNT, "steps of a run: also give statistics for each"),
        "--cfg-passes": (COUNT | {"metavar": "M"},
            "calls of a layer in one step, 2 with classifier-free guidance (default: 1)"),
    },
    "write": {
        "--csv": (c.FILE.keywords, "a row for each layer"),
        "--json": (c.FILE.keywords, "the summary, for convert_nvfp4.py --input-scale-summary-json"),
        "--plots-dir": (c.FILE.keywords | {"metavar": "DIR"}, "plots as PNG (needs matplotlib)"),
        "--sensitive-layers": (c.FILE.keywords,
            "a list for convert_nvfp4.py --full-precision-mm-layers, by the following"),
    },
    "what makes a layer sensitive (no defaults)": {
        "--cv-threshold": (THRESHOLD, "scale_cv of X or more: the scale's std / mean over calls"),
        "--kurtosis-threshold": (THRESHOLD, "scale_kurtosis of X or more (a normal one has 0)"),
        "--rel-rmse-threshold": (THRESHOLD,
            "rel_rmse of X or more: root of squared error / energy of inputs in NVFP4"),
        "--cross-attn": (c.SWITCH.keywords,
            "cross-attention q, k, v, o of every block that was measured"),
    },
}
# fmt: on
LOG_OPTIONS = ("format", "mode", "percentiles", "steps")  # that mean nothing to a summary
OUTPUTS = ("csv", "json", "sensitive_layers")

EPILOG = """\
choosing --cv-threshold:
  The owner of this project wrote that layers went on the list from a scale_cv of 0.01
  up. That would flag nine layers in ten and leave next to nothing in W4A4. The lists in use
  correspond to 0.16 (TI2V 5B), 0.11 (I2V 14B low noise) and 0.12 (high noise), plus --cross-attn.

"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="analyze_input_scale_log.py",
        usage="%(prog)s (--input LOG ... | --summary FILE) [options]",
        description=__doc__,
        epilog=EPILOG + render_trade(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, options in COMMAND_LINE.items():
        group = parser.add_argument_group(title)
        for option, (keywords, text) in options.items():
            group.add_argument(option, **keywords, help=text)
    return parser


def contradictions(given: dict[str, object]) -> Iterator[str]:
    """Options that exclude each other, or that do nothing without another."""
    if (given["input"] is None) == (given["summary"] is None):
        yield "give --input LOG or --summary FILE, and not both"
    for option in LOG_OPTIONS:
        if given[option] is not None and given["input"] is None:
            yield f"--{option} needs --input"
    if given["cfg_passes"] is not None and given["steps"] is None:
        yield "--cfg-passes needs --steps"
    if given["input"] and given["rel_rmse_threshold"] is not None and not given["recording"]:
        yield "--rel-rmse-threshold needs --recording"
    if given["sensitive_layers"] and not criteria_of(given):
        yield f"--sensitive-layers needs {c.examples(flag(x) for x in THRESHOLDS)} or --cross-attn"


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def criteria_of(given: dict[str, object]) -> Criteria:
    limits = {column: given[option] for option, column in THRESHOLDS.items()}
    limits = {column: limit for column, limit in limits.items() if limit is not None}
    return Criteria(thresholds=limits, cross_attention=given["cross_attn"])


def check_files(given: dict[str, object]) -> None:
    """What is known before the long reading to go wrong after it. Raises ConvertError."""
    inputs = [*(given["input"] or [given["summary"]]), *(given["recording"] or [])]
    targets, folder = [given[name] for name in OUTPUTS if given[name]], given["plots_dir"]
    known, problems = [path.resolve() for path in [*inputs, *targets]], []
    problems += [f"{path}: is given twice" for path, times in Counter(known).items() if times > 1]
    problems += [f"{path}: no such file" for path in inputs if not path.is_file()]
    for target in targets:
        with c.translated(target):
            problems += c.target_problems(target)
    if folder and not folder.is_dir() and (folder.exists() or not folder.parent.is_dir()):
        problems.append(f"{folder}: is no folder, and cannot be made one")
    if problems:
        raise c.ConvertError(*problems)
    if folder:
        need_matplotlib()


def summarise(given: dict[str, object]) -> Summary:
    """From logs or an earlier summary, with errors from recordings. Raises ConvertError."""
    errors = read_errors(given["recording"] or [])  # quickly read: first
    if given["summary"]:
        summary = read_summary(given["summary"])
    else:
        choice = Choice(
            format=given["format"],
            mode=given["mode"],
            steps=given["steps"] or 0,
            passes=given["cfg_passes"],
        )
        summary = analyse(given["input"], choice, given["percentiles"])
    if given["recording"]:
        with_errors(summary, errors)
    unknown = all(row.get("rel_rmse") is None for row in summary.rows)
    if given["rel_rmse_threshold"] is not None and unknown:
        problem = "--rel-rmse-threshold: no layer has a rel_rmse; give --recording FILE"
        raise c.ConvertError(problem)
    return summary


def run(given: dict[str, object]) -> str:
    """Everything from the options to what is printed. Raises ConvertError."""
    check_files(given)
    criteria, summary = criteria_of(given), summarise(given)
    texts = {
        "csv": lambda: render_csv(summary),
        "json": lambda: render_json(summary),
        "sensitive_layers": lambda: render_list(summary.rows, criteria),
    }
    written = []
    for name in OUTPUTS:
        if given[name]:
            write(given[name], texts[name]().encode())
            written.append(given[name])
    if given["plots_dir"]:
        written += write_plots(given["plots_dir"], summary, criteria)
    return render(summary, criteria, written)


def main(argv: list[str] | None = None) -> int:
    c.tolerate_consoles()
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    for problem in contradictions(given):
        parser.error(problem)
    given |= {name: value for name, value in DEFAULTS.items() if given[name] is None}
    try:
        text = run(given)
    except c.ConvertError as error:
        c.show_problems(error)
        return 1
    except KeyboardInterrupt:
        return 130
    c.show(c.printable(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
