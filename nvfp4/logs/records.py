"""Hold what a log has, which lines count, and the summary.

These records travel between the modules of this room: LineChoice and Criteria say what the user
asked for, Log says what became of a file's lines, and LogSummary holds the result, which all
outputs are made from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nvfp4.errors import in_number
from nvfp4.guides.columns import percentile_key

# The value of --format and --mode that leaves no line out; a format of this name could not be
# chosen.
ALL_LINES = "all"
# What these options are when they are not given. The parser leaves them None, so that options which
# mean nothing beside --summary can be told from defaults.
LOG_DEFAULTS = {
    "format": "nvfp4",
    "mode": "dynamic",
    "percentiles": (50.0, 90.0, 95.0, 99.0, 99.9),
    "cfg_passes": 1,
}
# Significant digits of every number that is written; a summary that is read again agrees with it.
DIGITS = 6


@dataclass(slots=True, kw_only=True)
class Log:
    """Hold what became of the lines of one file.

    path: as it was given. lines: complete ones; `used` are those that no other field counts.
    malformed: lines that could not be read; shown: the first of them, as they are printed.
    left_out: lines of a format or mode that was not chosen, counted by (format, mode).
    """

    path: Path
    lines: int = 0
    malformed: int = 0
    # Calls whose input was all zeros, such as an empty prompt's: there is no scale to learn.
    zeros: int = 0
    shown: list[str] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    # The last line has no end: ComfyUI may still be writing it.
    incomplete: bool = False

    @property
    def used(self) -> int:
        """Count the lines that were counted as calls: all but malformed, zero and left-out ones."""
        return self.lines - self.malformed - self.zeros - sum(self.left_out.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChoice:
    """Hold which lines count, and how the calls of a layer are dealt out to the steps of a run.

    format, mode: what lines must have, or ALL_LINES for any.
    steps: of a run; 0 gathers no statistics by step.
    passes: calls of a layer in one step, 2 with classifier-free guidance.
    step_percentile: of each step, from 0 to 100; None for the highest of all percentiles.
    """

    format: str
    mode: str
    steps: int
    passes: int
    step_percentile: float | None = None

    def takes(self, kind: str, mode: str) -> bool:
        """Tell whether lines of this format and mode count.

        kind: the first column, such as nvfp4; mode: the second one, such as dynamic. ALL_LINES as
        the choice takes every one.
        """
        return self.format in (ALL_LINES, kind) and self.mode in (ALL_LINES, mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What makes a layer sensitive: a column of at least its threshold, or cross-attention.

    thresholds: {column of the summary: least value that flags a layer}; one that is reached is
    enough. cross_attention: whether every block's cross-attention is listed, whatever its figures
    are.
    """

    thresholds: dict[str, float]
    cross_attention: bool

    def __bool__(self) -> bool:
        """Tell whether anything makes a layer sensitive; without criteria nothing is flagged."""
        return bool(self.thresholds) or self.cross_attention

    @property
    def texts(self) -> list[str]:
        """Say each threshold in words, as "scale_cv >= 0.16", and then cross-attention."""
        limits = [f"{column} >= {limit:g}" for column, limit in self.thresholds.items()]
        return limits + ["cross-attention"] * self.cross_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """Hold statistics of every layer, as they are written and read again.

    model: the name of what was recorded, for titles; "" if it is not known.
    format, mode: of the lines that counted. percentiles: ascending, from 0 to 100.
    rows: one dict a layer, in natural order: `layer`, `count`, and columns such as scale_p99_9.
    steps: one dict a layer and step, if they were asked for.
    notes: lines to print, which are not written.
    """

    format: str
    mode: str
    percentiles: tuple[float, ...]
    rows: list[dict]
    steps: list[dict]
    notes: list[str]
    model: str = ""

    @property
    def highest(self) -> str:
        """Name the column of the highest percentile, such as "scale_p99_9".

        It stands for the scale that a layer needs where nearly nothing may clip, in tables and
        plots.
        """
        return f"scale_{percentile_key(self.percentiles[-1])}"

    @property
    def measured(self) -> str:
        """Say how much was measured: "182 layers, 1,280 calls each"."""
        calls = [row["count"] for row in self.rows if row.get("count")]
        least, most = min(calls, default=0), max(calls, default=0)
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return in_number(len(self.rows), f"layers, {each} calls each")


def rounded(value: float | None) -> float | None:
    """Round a figure to the six significant digits that are written; None stays None.

    Everything that is computed from rounded figures, such as scale_cv, comes out the same from a
    log and from the summary that was written of it.
    """
    return None if value is None else float(f"{value:.{DIGITS}g}")
