"""Show on stderr what a program is busy with: phases by name, and bars of work that is counted.

On a terminal one line is drawn over and over. Elsewhere, in a log, lines follow one another: one
for what takes longer than SILENCE, and another every LINE_EVERY seconds. Results go to stdout, so
that they can be redirected while progress stays on the terminal. A program that runs a conversion
in its own process watches it by `watched_by`, with or without the line.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TextIO

# Seconds between two drawings of the line on a terminal.
DRAW_EVERY = 0.25
# In a log, what takes longer than SILENCE seconds is told, and again every LINE_EVERY seconds.
SILENCE, LINE_EVERY = 2.0, 10.0
# Seconds after which whoever waits for another thread or a network lets a person interrupt it.
GLANCE = 1.0
# Seconds that are waited for without a word, as for a network that stumbles.
SHORT_WAIT = 2.0
# The rate is that of the last so many seconds: it changes when compiled kernels take over.
RATE_WINDOW = 30.0
# Columns of a terminal that does not tell its width, and of the drawn bar.
COLUMNS, BAR_COLUMNS = 80, 10
# The rank of the drawn bar among the parts of a line: it says nothing that others do not.
DRAWN_BAR = 6
# The name of a layer is shown where it has at least this many columns.
LEAST_NAME = 12
# Rate and end are told once this share is done: the small tensors at the beginning tell nothing.
LEAST_SHARE = 0.01
# Units that sizes are told in: the first that the whole is not smaller than.
SIZES = ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1), (1, "bytes", 0))


def display_width(text: str) -> int:
    """Count the columns that a terminal shows a text in: two for a wide character."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def last_columns(text: str, columns: int) -> str:
    """Cut a text at its beginning, where three dots stand then, to at most so many columns."""
    if display_width(text) <= columns:
        return text
    kept = text
    while kept and display_width(kept) > columns - 3:
        kept = kept[1:]
    return f"...{kept}"[:columns]


def first_columns(text: str, columns: int) -> str:
    """Cut a text at its end, so that it takes at most so many columns."""
    while display_width(text) > columns:
        text = text[:-1]
    return text


def duration(seconds: float) -> str:
    """Write seconds as m:ss, from an hour on as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def clock_time(then: float, now: float) -> str:
    """Write a time of day in seconds since the epoch, with its date where that is not today's."""
    today, day = (time.localtime(moment)[:3] for moment in (now, then))
    return time.strftime("%H:%M" if day == today else "%Y-%m-%d %H:%M", time.localtime(then))


def sized(done: float, total: float | None = None) -> str:
    """Write bytes, or "done/total", in the unit of the total."""
    whole = done if total is None else total
    size, unit, digits = next((row for row in SIZES if whole >= row[0]), SIZES[-1])
    shown = "/".join(f"{n / size:.{digits}f}" for n in (done, total) if n is not None)
    return f"{shown} {unit}"


# What threads wait for, and until when, in seconds of `time.monotonic`; by the thread.
HOLDS: dict[int, tuple[str, float]] = {}


@contextlib.contextmanager
def holding_up(what: str, seconds: float) -> Iterator[None]:
    """Show in place of what goes on, during the `with` block, what this thread waits for."""
    HOLDS[threading.get_ident()] = (what, time.monotonic() + seconds)
    try:
        yield
    finally:
        del HOLDS[threading.get_ident()]


def held_up(now: float) -> str:
    """Tell what is waited for, and how long the shortest wait goes on yet; "" for short ones."""
    waits = min(((end, what) for what, end in [*HOLDS.values()]), default=(now, ""))
    left = waits[0] - now
    return f"{waits[1]}, {math.ceil(left)} s" if left > SHORT_WAIT else ""


@dataclass(slots=True, kw_only=True, eq=False)
class Activity:
    """Hold what a program is busy with, and how far it is.

    what: words for people; total: bytes, or items where not `in_bytes`, None for what is not
    counted; efforts: what all of it takes, in any unit, where some bytes take longer than others;
    began: seconds of `time.monotonic`; name: of the layer that is worked on, "" for none. `told` is
    whether a log has a line of it.
    """

    what: str
    total: int | None = None
    in_bytes: bool = True
    efforts: int = 0
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    spent: int = 0
    name: str = ""
    told: bool = False
    past: deque[tuple[float, int, int]] = field(default_factory=deque)

    @property
    def share(self) -> float:
        """Tell which share of what is counted is done, by effort: from 0 to 1."""
        return min(self.spent / (self.efforts or self.total), 1) if self.total else 0.0

    def at(self, name: str) -> None:
        """Name the layer that is worked on from now on."""
        self.name = name
        tell_watcher(self)

    def update(self, amount: int = 1, effort: int = 0) -> None:
        """Count what was done since the last call, and what it took of `efforts`."""
        self.done += amount
        self.spent += effort if self.efforts else amount
        tell_watcher(self)

    def rates(self, now: float) -> tuple[float, float]:
        """Return bytes or items a second, and efforts, over the last RATE_WINDOW seconds.

        Both are 0 if none are done.
        """
        if not self.past:
            self.past.append((self.began, 0, 0))
        if self.done > self.past[-1][1]:
            self.past.append((now, self.done, self.spent))
        while len(self.past) > 2 and self.past[0][0] < now - RATE_WINDOW:
            self.past.popleft()
        then, done, spent = self.past[0]
        # Until a piece is done, the time since the last one counts as well.
        took = max(now - then, 1e-3)
        return (self.done - done) / took, (self.spent - spent) / took

    def parts(self, now: float, clock: float) -> list[tuple[int, str]]:
        """List what a line says, each with its rank: the highest goes first where it is narrow."""
        what = held_up(now) or self.what
        if not self.total:
            took = now - self.began
            return [(0, f"{what} ..." + f" {duration(took)}" * (took >= SILENCE))]
        efforts = self.efforts or self.total
        share = self.share
        filled = int(BAR_COLUMNS * share)
        amount = f"{self.done:,}/{self.total:,}"
        made = [
            (0, what),
            (1, f"{int(100 * share)} %"),
            (DRAWN_BAR, f"[{'#' * filled}{'-' * (BAR_COLUMNS - filled)}]"),
            (3, sized(self.done, self.total) if self.in_bytes else amount),
        ]
        rate, effort_rate = self.rates(now)
        if rate and share >= LEAST_SHARE:
            left = (efforts - self.spent) / effort_rate
            made += [
                (4, f"{sized(rate)}/s" if self.in_bytes else ""),
                (2, f"{duration(left)} left"),
                (5, f"ends {clock_time(clock + left, clock)}"),
            ]
        return [part for part in made if part[1]]

    def line(self, columns: int | None, now: float, clock: float) -> str:
        """Write one line of at most so many columns; the layer's name is the first to go.

        columns: None for a log, which takes any line, and needs no drawn bar.
        """
        parts = self.parts(now, clock)
        if columns is None:
            parts = [part for part in parts if part[0] != DRAWN_BAR]
            return f"{spaced(parts)}  {self.name}".rstrip()
        while len(parts) > 1 and display_width(spaced(parts)) > columns:
            parts.remove(max(parts))
        text = first_columns(spaced(parts), columns)
        room = columns - display_width(text) - 2
        if self.name and self.total and room >= LEAST_NAME:
            text += f"  {last_columns(self.name, room)}"
        return text


class Watched:
    """Hold who watches a conversion, and the activity that was told last."""

    def __init__(self, watcher: Callable[[Activity], None]):
        self.watcher, self.activity = watcher, Activity(what="waiting")

    def tell(self, activity: Activity) -> None:
        """Call the watcher; what it raises ends what is watched."""
        self.activity = activity
        self.watcher(activity)


# Of the thread that converts: another thread may convert without being watched, or by another one.
WATCH: ContextVar[Watched | None] = ContextVar("WATCH", default=None)


@contextlib.contextmanager
def watched_by(watcher: Callable[[Activity], None]) -> Iterator[None]:
    """Let a function watch what this thread does in the `with` block, and cancel it.

    watcher: called with the Activity in this thread, where a phase or a bar begins or goes on, and
    inside a layer, as often as several hundred times a second; `quiet` makes no difference to it.
    What it raises goes through the conversion as Ctrl-C does: partial files are deleted, an older
    output stays.
    """
    token = WATCH.set(Watched(watcher))
    try:
        yield
    finally:
        WATCH.reset(token)


def tell_watcher(activity: Activity | None = None) -> None:
    """Tell whoever watches of an activity; of the last one if None, so that they may cancel it."""
    if (watch := WATCH.get()) is not None:
        watch.tell(activity or watch.activity)


def spaced(parts: list[tuple[int, str]]) -> str:
    """Join the parts of a line: two blanks keep them apart."""
    return "  ".join(text for _, text in parts)


class Screen(contextlib.ContextDecorator):
    """Own the line on stderr: one for the process, as it has one stderr.

    The lowest activity is the phase, bars lie above it; the uppermost is shown. A thread draws
    while there is any, so that time goes on where nothing is counted. `@SCREEN` on a function takes
    the line away when it ends, however it ends.
    """

    def __init__(self) -> None:
        """Show nothing yet."""
        self.activities: list[Activity] = []
        # Drawing may be interrupted by a signal whose handler clears the line.
        self.lock = threading.RLock()
        self.drawn, self.last_line = 0, 0.0
        self.wake: threading.Event | None = None

    def __enter__(self) -> None:
        """Let phases and bars come."""

    def __exit__(self, *_: object) -> None:
        """Take away whatever phase or bar is still shown."""
        self.clear()

    def begin(self, activity: Activity, *, is_phase: bool = False, at_once: bool = False) -> None:
        """Show an activity from now on; a phase takes the place of the last one.

        at_once: in a log, too, instead of after SILENCE.
        """
        with self.lock:
            if is_phase:
                # A phase is not counted; a bar may lie at the bottom where nobody named one.
                last = bool(self.activities) and self.activities[0].total is None
                self.activities[:last] = [activity]
            else:
                self.activities.append(activity)
            self.show(at_once=at_once)
            if self.wake is None:
                self.wake = threading.Event()
                threading.Thread(target=self.draw, args=(self.wake,), daemon=True).start()

    def end(self, activity: Activity) -> None:
        """Show this one no more; a log that told of it is told the end."""
        with self.lock:
            if activity in self.activities:
                self.activities.remove(activity)
            if activity.told and activity.total and activity.done >= activity.total:
                took = duration(time.monotonic() - activity.began)
                self.write(f"{activity.what}: done in {took}\n")
            if not self.activities:
                self.clear()
                return
            # What lies below goes on only now.
            self.activities[-1].began, self.activities[-1].told = time.monotonic(), False
            self.show()

    def clear(self) -> None:
        """Take the line away, and end all activities: somebody else is about to print."""
        with self.lock:
            self.activities.clear()
            self.erase()
            if self.wake is not None:
                self.wake.set()
                self.wake = None

    def tell(self, text: str) -> None:
        """Print a line that stays, and go on below it."""
        with self.lock:
            self.erase()
            self.write(f"{text}\n")
            self.last_line = time.monotonic()
            if self.activities:
                self.show()

    def draw(self, ended: threading.Event) -> None:
        """Draw again and again until it ended: the thread's work."""
        while not ended.wait(DRAW_EVERY):
            with self.lock:
                if self.activities and not ended.is_set():
                    self.show()

    def show(self, *, at_once: bool = False) -> None:
        """Draw the uppermost activity, or write a line of it where one is due."""
        activity, now = self.activities[-1], time.monotonic()
        if (columns := terminal_columns(sys.stderr)) is not None:
            # The last column is left free: some consoles go to the next line after it.
            text = activity.line(columns - 1, now, time.time())
            self.write(f"\r{text}{' ' * (self.drawn - display_width(text))}")
            self.drawn = display_width(text)
        elif at_once or now - max(self.last_line, activity.began) >= (
            LINE_EVERY if activity.told else SILENCE
        ):
            self.write(f"{activity.line(None, now, time.time())}\n")
            activity.told, self.last_line = True, now

    def erase(self) -> None:
        """Take a drawn line away."""
        if self.drawn:
            self.write(f"\r{' ' * self.drawn}\r")
            self.drawn = 0

    @staticmethod
    def write(text: str) -> None:
        """Write to stderr whatever it can show; one that is closed is no reason to fail."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            encoding = sys.stderr.encoding or "ascii"
            sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
            sys.stderr.flush()


def terminal_columns(stream: TextIO | None) -> int | None:
    """Return how many columns a terminal has, None for what is none, or cannot redraw a line."""
    try:
        if not stream.isatty() or os.environ.get("TERM") == "dumb":
            return None
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS
    except (AttributeError, OSError, ValueError):
        return None


SCREEN = Screen()


def phase(what: str, *, quiet: bool = False, at_once: bool = False) -> None:
    """Say what begins now, in place of the phase before: "reading headers".

    quiet: say nothing, as --quiet asks, and no more of what began before it was known; at_once: in
    a log, too, however short it is. The last phase ends with `SCREEN.clear`.
    """
    activity = Activity(what=what)
    tell_watcher(activity)
    if quiet:
        SCREEN.clear()
    else:
        SCREEN.begin(activity, is_phase=True, at_once=at_once)


@contextlib.contextmanager
def progress_bar(
    what: str, total: int, *, in_bytes: bool = True, efforts: int = 0, quiet: bool = False
) -> Iterator[Activity]:
    """Open a bar that goes on to `total` by the `update` of what is yielded.

    `what` stands in front of it. All bars of all programs are made here, so that all go to stderr,
    and none is shown if `quiet`.
    """
    activity = Activity(what=what, total=total, in_bytes=in_bytes, efforts=efforts)
    tell_watcher(activity)
    if not quiet:
        SCREEN.begin(activity)
    try:
        yield activity
    finally:
        if not quiet:
            SCREEN.end(activity)


def each_with_bar(what: str, items: Iterable, *, quiet: bool = False) -> Iterator:
    """Yield items, of which a bar tells how many are done."""
    items = items if isinstance(items, Sized) else [*items]
    with progress_bar(what, len(items), in_bytes=False, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.update()
