#!/usr/bin/env python3
# Built from the package nvfp4/ by `python tools/single_file.py`. Change the package, not this file.
#
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "torch>=2.4",
#   "safetensors>=0.4.2",
#   "gguf>=0.11",
#   "numpy>=1.24",
#   "tqdm>=4.60",
# ]
# ///
"""Convert diffusion models to mixed-precision NVFP4 files for ComfyUI: `--help` tells how.

This is the whole program in one file. Each section is a module of the package nvfp4/, with
its name in the heading; what a section uses stands in the sections above it.
"""

from __future__ import annotations

import signal
import sys


if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C in the seconds that torch takes to load ends the program at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


import contextlib
import difflib
import os
import re
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import NoReturn, TextIO


# ── nvfp4/errors.py: The errors that a person is told, and how names and sizes are written ────────

# A damaged entry or name may be megabytes long: messages quote this many characters of it.
EXCERPT = 200
# A finding on thousands of tensors is told with this many of their names, and with their number.
EXAMPLES = 3
# What an option may begin with: web pages turn two dashes into a long one, or into a minus.
DASHES = "-\u2013\u2014\u2212"
# What sentences say of several layers, and of one.
SINGULAR = {
    "layers": "layer",
    "tensors": "tensor",
    "names": "name",
    "scales": "scale",
    "weights": "weight",
    "have": "has",
    "are": "is",
    "were": "was",
    "do": "does",
    "go": "goes",
    "get": "gets",
    "stay": "stays",
    "lose": "loses",
    "match": "matches",
    "clip": "clips",
    "they": "it",
    "their": "its",
}


class ConvertError(Exception):
    """Say what is wrong, where, and what to do about it, in one line for each problem.

    A step collects its problems and raises them together, so that one run names all that has to be
    mended; they stay apart as `problems`. The message is all of them, joined by line breaks.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class DamagedFileError(ConvertError):
    """Say that a safetensors header or data section is damaged.

    It is raised only where the safetensors library refuses the file, too; what merely exceeds a
    limit of this program is a plain ConvertError.
    """


class Float16OverflowError(Exception):
    """Stop writing: a tensor planned as float16 holds a value beyond 65504.

    It never reaches a user: `production` catches it, plans the tensors that do not fit as float32
    and writes again.
    """


def printable(text: str) -> str:
    """Escape control characters, line breaks excepted, as Python writes them in a string.

    Names in a file may hold terminal escape sequences; printed raw, they would colour, clear or
    rewrite the screen.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Escape control characters and line breaks, so that a name cannot forge a line of its own."""
    return printable(text).replace("\n", "\\n")


def examples(names: Iterable[str]) -> str:
    """Tell the first EXAMPLES of some names in sorted order, and how many more there are.

    Each name is cut to EXCERPT characters and put on one line. Returns "nothing" if there are none.
    """
    names = sorted(names) or ["nothing"]
    shown = ", ".join(one_line(name[:EXCERPT]) for name in names[:EXAMPLES])
    return f"{shown} and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else shown


def in_number(count: int, rest: str) -> str:
    """Write how many layers a sentence is about: "2 FP8 layers have no scale", "1 FP8 layer has …".

    rest: the sentence after the number, in the plural.
    """
    if count == 1:
        rest = re.sub(rf"\b({'|'.join(SINGULAR)})\b", lambda found: SINGULAR[found[0]], rest)
    return f"{count:,} {rest}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End a message on a word that is not known with those that may be meant; "" if none is alike.

    What differs in case, dashes or underscores alone is meant for sure. Else it is what the word is
    the beginning of, up to EXAMPLES, or the one that is most alike.
    """

    def plain(text: str) -> str:
        return text[:EXCERPT].lower().strip(f"{DASHES}_ ").replace("_", "-")

    names, given = {plain(name): name for name in known}, plain(word)
    if not given:
        return ""
    meant = [name for name in names if name.startswith(given)]
    meant = [given] if given in names else meant or difflib.get_close_matches(given, names, 1)
    shown = " or ".join(names[name] for name in meant[:EXAMPLES])
    return f"; did you mean {shown}?" if shown else ""


def of_another_model(
    named: object,
    what: str = "none of its layers is in the source",
    *,
    it_has: Iterable[str],
    other_has: Iterable[str],
    other: str = "the source",
) -> ConvertError:
    """Make the error for a file that does not go with a model, with examples of both sides.

    `named` is the file, or the option that gave it, and `it_has` the names in it; `other` is what
    it was compared with, and `other_has` are the names there. `what` says how the two differ. The
    error is returned, not raised.
    """
    sides = f"it has {examples(it_has)}; {other} has {examples(other_has)}"
    return ConvertError(f"{named}: is of another model: {what}; {sides}")


def gigabytes(size: int) -> str:
    """Write a number of bytes as GB or MB, decimal units with two decimals; few as they are."""
    if size < 1e4:
        return f"{size:,} bytes"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def exact_size(size: int) -> str:
    """Write a number of bytes as `gigabytes` does, with the bytes: where one more may matter."""
    rounded, exact = gigabytes(size), f"{size:,} bytes"
    return exact if rounded == exact else f"{rounded} ({exact})"


def percentage(part: float, whole: float) -> str:
    """Write `part / whole` as a whole per cent, or as "-" where the whole is 0."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


# ── nvfp4/progress.py: Show on stderr what a program is busy with: phases by name, and bars of work

# Seconds between two drawings of the line on a terminal.
DRAW_EVERY = 0.25
# In a log, what takes longer than SILENCE seconds is told, and again every LINE_EVERY seconds.
SILENCE, LINE_EVERY = 2.0, 10.0
# The rate is that of the last so many seconds: it changes when compiled kernels take over.
RATE_WINDOW = 30.0
# Columns of a terminal that does not tell its width, and of the drawn bar.
COLUMNS, BAR_COLUMNS = 80, 10
# The rank of the drawn bar among the parts of a line: it says nothing that others do not.
DRAWN_BAR = 6
# The name of a layer is shown where it has at least this many columns.
LEAST_NAME = 12
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


@dataclass(slots=True, kw_only=True, eq=False)
class Activity:
    """Hold what a program is busy with, and how far it is.

    what: words for people; total: bytes, or items where not `in_bytes`, None for what is not
    counted; began: seconds of `time.monotonic`; name: of the layer that is worked on, "" for none.
    `told` is whether a log has a line of it.
    """

    what: str
    total: int | None = None
    in_bytes: bool = True
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    name: str = ""
    told: bool = False
    past: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, amount: int = 1, name: str = "") -> None:
        """Count what was done since the last call."""
        self.done += amount
        self.name = name or self.name

    def rate(self, now: float) -> float:
        """Return bytes or items a second, over the last RATE_WINDOW seconds; 0 if none are done."""
        if not self.past:
            self.past.append((self.began, 0))
        if self.done > self.past[-1][1]:
            self.past.append((now, self.done))
        while len(self.past) > 2 and self.past[0][0] < now - RATE_WINDOW:
            self.past.popleft()
        then, before = self.past[0]
        # Until a piece is done, the time since the last one counts as well.
        return (self.done - before) / max(now - then, 1e-3)

    def parts(self, now: float, clock: float) -> list[tuple[int, str]]:
        """List what a line says, each with its rank: the highest goes first where it is narrow."""
        if not self.total:
            took = now - self.began
            return [(0, f"{self.what} ..." + f" {duration(took)}" * (took >= SILENCE))]
        share = min(self.done / self.total, 1)
        filled = int(BAR_COLUMNS * share)
        amount = f"{self.done:,}/{self.total:,}"
        made = [
            (0, self.what),
            (1, f"{int(100 * share)} %"),
            (DRAWN_BAR, f"[{'#' * filled}{'-' * (BAR_COLUMNS - filled)}]"),
            (3, sized(self.done, self.total) if self.in_bytes else amount),
        ]
        rate = self.rate(now)
        if rate:
            left = (self.total - self.done) / rate
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
            if self.activities:
                self.show()
            else:
                self.clear()

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

    quiet: say nothing, as --quiet asks; at_once: in a log, too, however short it is. The last phase
    ends with `SCREEN.clear`.
    """
    if not quiet:
        SCREEN.begin(Activity(what=what), is_phase=True, at_once=at_once)


@contextlib.contextmanager
def progress_bar(
    what: str, total: int, *, in_bytes: bool = True, quiet: bool = False
) -> Iterator[Activity]:
    """Open a bar that goes on to `total` by the `update` of what is yielded.

    `what` stands in front of it. All bars of all programs are made here, so that all go to stderr,
    and none is shown if `quiet`.
    """
    activity = Activity(what=what, total=total, in_bytes=in_bytes)
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


# ── nvfp4/cli/console.py: Print results on stdout and problems on stderr, on any console; no other 

# A damaged index may have as many problems as tensors, and a name may be 10,000 characters long:
# print at most 50 lines, and 2,000 characters of each.
MAX_PROBLEMS, MAX_PROBLEM = 50, 2_000
# The words that lines begin with, by rank, and what ANSI's sequences for their colours hold.
RANK_COLOURS = {"error": "1;31", "warning": "1;33", "note": "36", "hint": "32"}
RANKED_LINE = re.compile(rf"^({'|'.join(RANK_COLOURS)}):", re.MULTILINE)
# What Windows calls its consoles, by file number, and the mode in which one understands sequences.
WINDOWS_HANDLES, VIRTUAL_TERMINAL = {1: -11, 2: -12}, 4


def tolerate_consoles() -> None:
    """Have characters that the console lacks printed as question marks, instead of failing.

    Windows consoles lack most characters that a tensor's or a file's name may have. Streams that a
    test put in place of stdout are left alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def announce(*, quiet: bool = False) -> None:
    """Say that torch is being loaded, and end at once with one line when Ctrl-C comes meanwhile.

    A shell that had the signal ignored has it ignored further.
    """
    phase("starting: loading torch", quiet=quiet, at_once=True)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end_at_once)


def end_at_once(number: int, _: object) -> NoReturn:
    """Handle a signal: print one line, and let the signal end the process."""
    SCREEN.clear()
    print("interrupted", file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    sys.exit(128 + number)


def understands_colours(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colours, and the user wants them.

    NO_COLOR is what no-color.org says; a console of Windows is asked to understand sequences.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    if os.name != "nt":
        return True
    import ctypes

    kernel, mode = ctypes.windll.kernel32, ctypes.c_ulong()
    handle = kernel.GetStdHandle(WINDOWS_HANDLES.get(stream.fileno(), 0))
    known = kernel.GetConsoleMode(handle, ctypes.byref(mode))
    return bool(known and kernel.SetConsoleMode(handle, mode.value | VIRTUAL_TERMINAL))


def coloured(text: str, stream: TextIO) -> str:
    """Colour the ranks that lines of a text begin with, where the stream shows colours."""
    if not understands_colours(stream):
        return text
    return RANKED_LINE.sub(lambda found: f"\x1b[{RANK_COLOURS[found[1]]}m{found[0]}\x1b[0m", text)


def show(text: str) -> None:
    """Print a result; a reader that has seen enough, such as `head`, is no error.

    After a broken pipe, stdout leads nowhere, so that all further results vanish in silence.
    """
    SCREEN.clear()
    try:
        print(coloured(text, sys.stdout), flush=True)
    except BrokenPipeError:
        # Python flushes stdout when it exits, and would fail with a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_problems(error: ConvertError) -> None:
    """Print one line for each problem on stderr, whatever characters are in it.

    Long lines and long lists are cut, and it is told how much is missing.
    """
    SCREEN.clear()
    shown = [one_line(problem) for problem in error.problems[:MAX_PROBLEMS]]
    if more := error.problems[MAX_PROBLEMS:]:
        shown.append(f"... and {len(more):,} more")
    for line in shown:
        cut = f" ... ({len(line):,} characters)" if len(line) > MAX_PROBLEM else ""
        print(coloured(f"error: {line[:MAX_PROBLEM]}{cut}", sys.stderr), file=sys.stderr)


import argparse
import dataclasses
import errno
import functools
import importlib.util
import itertools
import math
import stat
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


# ── nvfp4/files.py: The file system: names, links, locks, times, writing whole files ──────────────

# The end of a message about a full disk.
MAKE_ROOM = "; make room, then run the same command again"
# The end of a message about a file larger than its file system takes. The shards of 5 GB that
# --output-sharded makes by itself would still be too large for FAT32.
LARGEST_FILE = (
    "; FAT32 takes no file of 4 GiB or more: write to another disk (exFAT, NTFS, ext4), or give "
    "--output-sharded --max-shard-size 4GB"
)
# What Linux and Windows call the file systems that have this limit, and the largest file there.
FAT_NAMES, FAT_LARGEST = ("vfat", "msdos", "FAT32", "FAT"), (4 << 30) - 1
# Windows has an error of its own for that, ERROR_FILE_TOO_LARGE, without a number of POSIX.
TOO_LARGE = 223
# The end of a message about an input that another program wrote to.
CHANGED_UNDER_WAY = "changed while it was read; convert again once nothing writes to it"
# A file's size in bytes, and when it was last written in nanoseconds: the two tell whether an input
# changed while it was read.
Stamp = tuple[int, int]


def unfinished(path: Path) -> Path:
    """Name the file that holds what is written until it is complete: NAME.partial, beside NAME."""
    return path.with_name(path.name + ".partial")


def size_of(path: Path) -> int:
    """Count a regular file's bytes, and refuse pipes and devices.

    Opening a pipe would wait for a writer, perhaps for ever, and a device may never end. Raises
    OSError for these, and where there is no file. A folder passes: opening it will fail.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")
    return status.st_size


def stamp(path: Path) -> Stamp:
    """Take a file's Stamp, to be compared with an earlier or a later one. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def os_problem(error: OSError, path: Path, what: str = "", to_do: str = "") -> str:
    """Tell in one line what an operating system refused: a locked or forbidden file, a full disk.

    `what` says what could not be done to `path`, such as "cannot read the index"; `to_do`, which
    begins with its own punctuation, what may help. Without both, the line names the file that the
    system's error is about, and asks for room where the disk or a quota is full. A file too large
    for its file system is told what to do in any case.
    """
    is_about_path = not what and not to_do
    if is_about_path:
        path = error.filename or path
    if not to_do and (error.errno == errno.EFBIG or getattr(error, "winerror", 0) == TOO_LARGE):
        to_do = LARGEST_FILE
    elif is_about_path and error.errno in (errno.ENOSPC, errno.EDQUOT):
        to_do = MAKE_ROOM
    return ": ".join(filter(None, [str(path), what, error.strerror or str(error)])) + to_do


@contextlib.contextmanager
def translated(path: Path, what: str = "", to_do: str = "") -> Iterator[None]:
    """Raise a ConvertError in place of any OSError of the `with` block.

    The message is the line that `os_problem` makes of `path`, `what` and `to_do`; the OSError is
    its cause.
    """
    try:
        yield
    except OSError as error:
        raise ConvertError(os_problem(error, path, what, to_do)) from error


def lock(file: BinaryIO) -> bool:
    """Lock an open file for this process alone, without waiting, until the file is closed.

    Returns False if another process has locked it. A file system that knows no locks, as some
    network drives, counts as locked: two runs at once are not noticed there.
    """
    try:
        if os.name == "nt":
            import msvcrt

            # Windows keeps others from reading what is locked: lock a byte far behind the end.
            file.seek(1 << 40)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def is_still(opened: os.stat_result, path: Path) -> bool:
    """Tell whether a path still leads to the file that was opened.

    `opened` is its `os.stat_result` from then. False if the file was deleted, or if another run
    has made a new one of that name.
    """
    return path.exists() and os.path.samestat(opened, path.stat())


def is_linked(path: Path) -> bool:
    """Tell whether a path is a link, symbolic or hard.

    Writing to it would change a file of another name, which may be anything.
    """
    return path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)


def is_of_size(path: Path, size: int) -> bool:
    """Tell whether a path is a regular file, no link, of exactly `size` bytes."""
    return path.is_file() and not is_linked(path) and path.stat().st_size == size


def rename(path: Path, name: Path) -> None:
    """Give a file another name on the same disk, replacing what had it; atomic on Linux.

    Raises ConvertError, which on Windows is mostly because another program has the file open.
    """
    with translated(name, to_do="; is it open in another program?"):
        path.replace(name)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: without it, a crash could lose a file just renamed.

    Windows offers no way to do so, and some file systems refuse; both are passed over in silence,
    as the files' contents are on the disk already.
    """
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def is_same(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file, be it through links or other spellings."""
    return exists(path) and exists(other) and path.samefile(other)


def allocated(path: Path) -> int:
    """Count the bytes of disk that a file takes, without its holes; 0 if there is no file.

    A partial file gets its full length at once but fills up over time: only what is allocated will
    be free again when it is overwritten.
    """
    if not path.exists():
        return 0
    status = path.stat()
    # Windows has no st_blocks; elsewhere they are of 512 bytes whatever the file system's blocks.
    return getattr(status, "st_blocks", status.st_size // 512) * 512


def target_problems(target: Path) -> Iterator[str]:
    """Find what would keep a file from being written, before hours of work: a line for each.

    Raises OSError if an existing file may not be written to, or if, on Windows, a program has
    locked it. Nothing is changed.
    """
    if not target.parent.is_dir():
        yield f"{target.parent}: no such folder; create it first"
    elif refused := refused_by(target.parent):
        yield refused
    elif target.is_dir():
        yield f"{target}: is a folder; name the file to write"
    elif target.exists():
        target.open("r+b").close()


def make_folders(targets: Iterable[Path]) -> None:
    """Create the folders of files where they are missing. Raises ConvertError."""
    for target in targets:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConvertError(os_problem(error, target.parent)) from error


def refused_by(folder: Path) -> str:
    """Say why no file can be made in a folder, or "": an empty file is made and deleted."""
    # What permissions say is not all: a disk may be read-only, or have no room for a name.
    probe = folder / f".convert_nvfp4-{os.getpid()}"
    try:
        probe.open("wb").close()
        probe.unlink()
    except OSError as error:
        return os_problem(error, folder, "cannot write into this folder")
    return ""


def largest_file(folder: Path) -> float:
    """Tell how many bytes a file in a folder may have at most; infinity where nothing says so.

    Asked are the file system, and on POSIX the limit of this process (ulimit -f).
    """
    largest = FAT_LARGEST if file_system(folder) in FAT_NAMES else math.inf
    if os.name == "posix":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        largest = largest if limit == resource.RLIM_INFINITY else min(largest, limit)
    return largest


def file_system(folder: Path) -> str:
    """Name the file system that a folder is on, as Linux or Windows calls it; "" elsewhere."""
    if os.name == "nt":
        import ctypes

        name = ctypes.create_unicode_buffer(64)
        root, ask = folder.resolve().anchor, ctypes.windll.kernel32.GetVolumeInformationW
        ask(root, None, 0, None, None, None, name, len(name))
        return name.value
    with contextlib.suppress(OSError):
        device = folder.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        # Fields: two numbers, the device's, ..., then after a dash the type.
        for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split(" ")[2:3] == [number]:
                return kind.split(" ")[0]
    return ""


def write_unfinished(data: bytes, path: Path) -> Path:
    """Write what is to become the file `path`, and return where it lies until it gets that name.

    The caller renames it. Raises OSError, and may then leave a part of the file behind.
    """
    temporary = unfinished(path)
    # A link that somebody laid there is removed, so that what it leads to is not overwritten.
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(data)
    return temporary


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all: an older one stays until the new one is complete.

    Raises ConvertError. Nothing is left behind then, nor after Ctrl-C.
    """
    # BaseException: after Ctrl-C, too, nothing of a half-written file is left.
    try:
        with translated(path, "cannot write"):
            write_unfinished(data, path).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished(path).unlink(missing_ok=True)
        raise


def write_text(text: str, path: Path) -> None:
    """Write a file of UTF-8 text, whole or not at all. Line breaks stay as they are.

    Raises ConvertError.
    """
    write_bytes(text.encode(), path)


def exists(path: Path) -> bool:
    """Tell whether there is a file or folder, without ever raising.

    A folder that may not be entered and a name that is too long count as nothing there: the path is
    opened later, and that tells what is wrong with it.
    """
    try:
        return path.exists()
    except OSError:
        return False


# ── nvfp4/dtypes.py: Facts about numbers: dtypes, ranges, block and tile sizes ────────────────────

# The magnitudes of the E2M1 codes 0 to 7. Bit 3 of a code is the sign.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = E2M1_VALUES[-1]
# The largest finite E4M3 number in the variant that torch calls float8_e4m3fn: no infinities.
E4M3_MAX = 448.0
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
# The largest multiple of the global scale that NVFP4 holds, 2688: the largest code times the
# largest block scale.
NVFP4_MAX = E2M1_MAX * E4M3_MAX
# Columns of a row that share one block scale in NVFP4.
BLOCK_SIZE = 16
# cuBLAS reads block scales in swizzled tiles of this size; comfy_kitchen stores them so.
TILE_ROWS, TILE_COLUMNS = 128, 4
# Blackwell's FP4 matmul needs K % 32 == 0, and N % 16 == 0 where there is a bias. ComfyUI decodes
# a weight of another shape on every call.
FP4_MATMUL_K = 32
FP4_MATMUL_N = 16
# Headers with more dimensions are refused. The patch embedding of a video model has 5, and numpy
# before version 2 cannot hold more than 32.
MAX_DIMENSIONS = 32
# Bits of one element by the dtype's name in a safetensors header. All that the library knows are
# here, so that a tensor which is copied may have any of them.
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
# Dtypes of weights that can be quantised; tensors of others are copied.
SOURCE_FLOATS = ("F32", "BF16", "F16")
# Dtypes that quantised weights are stored in.
ONE_BYTE = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
# Dtypes of scales that other programs store; they are read as float32.
SCALE_FLOATS = (*SOURCE_FLOATS, "F64")
# Columns of a row that share one scale in MXFP8; both sizes of a weight are padded to it.
MX_BLOCK = 32
# Rows and columns of the blocks that DeepSeek scales FP8 by, and others after it.
SCALE_BLOCK = 128
# The dtype options of the command line, in the names of safetensors headers.
DTYPE_OPTIONS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# ComfyUI views block scales of these dtypes as E4M3, without changing a bit.
VIEWED = ("U8", "I8")
# The byte of the positive E4M3 NaN. All larger bytes are negative numbers, or the negative NaN.
NAN_E4M3 = 0x7F
# The smallest normal E4M3 number. Smaller block scales are subnormal and have fewer bits.
LEAST_NORMAL_E4M3 = 2.0**-6


def round_up(size: int, multiple: int) -> int:
    """Round a size up to the next multiple; one that is a multiple already stays as it is."""
    return -(-size // multiple) * multiple


def bits_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Count the bits of a tensor's data; dtypes of 4 and 6 bits need not fill whole bytes.

    Raises KeyError for a dtype that is not in SAFETENSORS_BITS.
    """
    return math.prod(shape) * SAFETENSORS_BITS[dtype]


# ── nvfp4/comfy_classes.py: What ComfyUI's own classes say of weights, by name: tables of data ────

# {layer: (what it is instead of a linear layer, in which classes)}.
NOT_LINEAR = {
    "blocks.*.moe.gate": ("its own MoEGate", "HunYuanDiTPlain"),
    "cond_type_embedding": ("a plain Embedding", "HunyuanVideo"),
    "detector.geometry_encoder.cls_embed": ("an Embedding", "SAM3Model"),
    "detector.geometry_encoder.label_embed": ("an Embedding", "SAM3Model"),
    "detector.transformer.decoder.presence_token": ("an Embedding", "SAM3Model"),
    "detector.transformer.decoder.query_embed": ("an Embedding", "SAM3Model"),
    "detector.transformer.decoder.reference_points": ("an Embedding", "SAM3Model"),
    "diffusion_transformer.timestep_features": ("its own FourierFeatures", "MiniMaxMusic3DiT"),
    "double_stream_blocks.*.block.ff_i.gate": ("its own MoEGate", "HiDreamImageTransformer2DModel"),
    "embed_image_indicator": ("an Embedding", "Ideogram4Transformer2DModel"),
    "encoder.block.*.layer.*.SelfAttention.relative_attention_bias": ("an Embedding", "T5"),
    "label_emb": ("a plain Embedding", "UNetModel"),
    "language_model.embed_tokens": ("an Embedding", "HiDreamO1Transformer"),
    "language_model.model.embed_tokens": ("an Embedding", "SenseNovaU15"),
    "llm_adapter.embed": ("an Embedding", "Anima"),
    "lyric_embs": ("an Embedding", "ACEStepTransformer2DModel"),
    "model.embed_tokens": ("an Embedding", "Llama2"),
    "motion_encoder.dec.direction": ("its own Direction", "AnimateWanModel"),
    "motion_encoder.enc.fc.*": ("its own EqualLinear", "AnimateWanModel"),
    "shared": ("an Embedding", "T5"),
    "single_stream_blocks.*.block.ff_i.gate": ("its own MoEGate", "HiDreamImageTransformer2DModel"),
    "style_embedder": ("an Embedding", "HunYuanDiT"),
    "time_text_embed.addition_t_embedding": ("an Embedding", "QwenImageTransformer2DModel"),
    "timestep_features": ("its own FourierFeatures", "AudioDiffusionTransformer"),
    "tracker.sam_mask_decoder.iou_token": ("an Embedding", "SAM3Model"),
    "tracker.sam_mask_decoder.mask_tokens": ("an Embedding", "SAM3Model"),
    "tracker.sam_mask_decoder.obj_score_token": ("an Embedding", "SAM3Model"),
    "tracker.sam_prompt_encoder.no_mask_embed": ("an Embedding", "SAM3Model"),
    "tracker.sam_prompt_encoder.not_a_point_embed": ("an Embedding", "SAM3Model"),
    "tracker.sam_prompt_encoder.point_embeddings.*": ("an Embedding", "SAM3Model"),
    "trainable_cond_mask": ("an Embedding", "WanModel_S2V"),
    "visual.pos_embed": ("an Embedding", "HiDreamO1Transformer"),
    "visual_token_type_embeddings": ("an Embedding", "Kandinsky6"),
}
# {linear layer whose name or shape sounds like something else: rows for each column,
# or 0 where it has a bias in all classes}.
LINEAR_ALL_THE_SAME = {
    "blocks.*.attn.gate": 1.0,
    "blocks.*.mlp.all.proj_in_gate": 2.6667,
    "blocks.*.mlp.gate": 2.6667,
    "blocks.*.mlp.txt.proj_in_gate": 2.6667,
    "blocks.*.mlp.vid.proj_in_gate": 2.6667,
    "cond_embedder": 0,
    "context_embedder": 0,
    "dec_net.cond_embed": 0,
    "decoder.condition_embedder": 0,
    "decoder.decoder.layers.*.gateway.gate": 0,
    "detector.geometry_encoder.boxes_pos_enc_project": 0,
    "detector.geometry_encoder.points_pos_enc_project": 0,
    "detokenizer.embed_tokens": 0,
    "encoder.lyric_encoder.embed_tokens": 0,
    "encoder.timbre_encoder.embed_tokens": 0,
    "genre_embedder": 0,
    "lyric_encoder.encoders.*.self_attn.linear_pos": 1.0,
    "ref_image_patch_embedder": 0,
    "speaker_embedder": 0,
    "to_cond_embed.*": 1.0,
    "to_global_embed.*": 1.0,
    "tokenizer.attention_pooler.embed_tokens": 0,
    "txt_in.input_embedder": 0,
    "txtfusion.layerwise_blocks.*.attn.gate": 1.0,
    "txtfusion.layerwise_blocks.*.mlp.gate": 2.7,
    "txtfusion.projector": 0.0833,
    "txtfusion.refiner_blocks.*.attn.gate": 1.0,
    "txtfusion.refiner_blocks.*.mlp.gate": 2.7,
    "x_embedder": 0,
}
# {layer by whose shape ComfyUI recognises a model, or that it takes apart on loading:
# (whether it reads rows, whether columns, in which classes)}.
SHAPE_READ = {
    "audio_embeddings.in_layer": (True, True, "Kandinsky6"),
    "audio_outLayer.out_layer": (True, False, "Kandinsky6"),
    "audio_time_embeddings.out_layer": (True, False, "Kandinsky6"),
    "blocks.0.attn.qkv_proj": (True, False, "MiniMaxH3"),
    "blocks.0.attn.wk": (True, False, "SingleStreamDiT"),
    "blocks.0.attn.wq": (True, False, "SingleStreamDiT"),
    "blocks.0.ffn.0": (True, False, "Wan"),
    "blocks.0.mlp.fc1": (True, False, "MiniMaxH3"),
    "blocks.0.norm1.linear": (True, True, "CogVideoX"),
    "blocks.35.mlp.vid.proj_out": (True, False, "NaDiT"),
    "blocks.block0.blocks.0.block.attn.to_q.0": (True, False, "GeneralDIT"),
    "cam_dec.fc_t": (False, True, "DepthAnything3Net"),
    "cam_enc.pose_branch.fc2": (True, False, "DepthAnything3Net"),
    "cap_embedder.1": (True, True, "NextDiT"),
    "clip_txt_mapper": (True, False, "StageC"),
    "cond_in": (False, True, "Hunyuan3Dv2"),
    "cond_seq_linear": (False, True, "MMDiT"),
    "condition_proj": (False, True, "MiniMaxH3"),
    "context_embedder": (True, True, "OpenAISignatureMMDITWrapper"),
    "core.pixel_blocks.*.adaLN_modulation.0": (True, True, "PixDiT_T2I"),
    "core.pixel_embedder.proj": (True, False, "PixDiT_T2I"),
    "dec_net.cond_embed": (True, False, "NextDiTPixelSpace"),
    "dec_net.final_layer.linear": (True, False, "NextDiTPixelSpace"),
    "dec_net.input_embedder.embedder.0": (False, True, "NextDiTPixelSpace"),
    "decoder.layers.0.mlp.gate_proj": (True, False, "AceStepConditionGeneration"),
    "decoder.layers.0.self_attn.q_proj": (True, False, "AceStepConditionGeneration"),
    "down_blocks.1.0.channelwise.0": (False, True, "StageB"),
    "encoder.lyric_encoder.layers.0.mlp.gate_proj": (True, False, "AceStepConditionGeneration"),
    "encoder.lyric_encoder.layers.0.self_attn.q_proj": (True, False, "AceStepConditionGeneration"),
    "extra_embedder.0": (False, True, "HunYuanDiT"),
    "final_layer.audio_out": (True, False, "MiniMaxH3"),
    "final_layer.linear": (True, False, "HunyuanVideo, OpenAISignatureMMDITWrapper"),
    "final_layer.video_out": (True, False, "MiniMaxH3"),
    "first": (True, True, "SingleStreamDiT"),
    "head.head": (True, False, "Wan"),
    "img_in": (True, True, "Chroma, Flux and 3 more"),
    "input_blocks.*.1.transformer_blocks.0.attn2.to_k": (False, True, "UNet"),
    "input_proj": (False, True, "Ideogram4"),
    "label_emb.0.0": (False, True, "UNet"),
    "language_model.model.layers.0.self_attn.q_proj_mot_gen": (True, False, "SenseNovaU15"),
    "latent_in": (True, True, "Hunyuan3Dv2"),
    "lq_proj.gate_modules.0.content_proj": (True, False, "PidNet"),
    "ofs_embedding_linear_1": (False, True, "CogVideoX"),
    "out_layer.out_layer": (True, False, "Kandinsky6"),
    "output_blocks.*.1.transformer_blocks.0.attn2.to_k": (False, True, "UNet"),
    "patch_embed.proj": (False, True, "CogVideoX"),
    "patch_embed.text_proj": (False, True, "CogVideoX"),
    "pixel_blocks.*.adaLN_modulation.0": (True, True, "PidNet"),
    "pixel_embedder.proj": (True, False, "PidNet"),
    "proj_out": (True, False, "Lens, MageFlow and 1 more"),
    "time_embedder.proj_in": (True, True, "MiniMaxH3"),
    "time_embedder.proj_out": (True, False, "MiniMaxH3"),
    "to_cond_embed.0": (True, True, "AudioDiffusionTransformer"),
    "to_global_embed.0": (False, True, "AudioDiffusionTransformer"),
    "to_timestep_embed.0": (True, False, "AudioDiffusionTransformer"),
    "transformer.layers.0.self_attn.to_qkv": (True, True, "AudioDiffusionTransformer"),
    "transformer.layers.0.to_local_embed.0": (False, True, "AudioDiffusionTransformer"),
    "transformer.project_in": (False, True, "AudioDiffusionTransformer"),
    "transformer_blocks.0.attn2.to_k": (True, True, "LTXV"),
    "transformer_blocks.0.img_mlp.gate_up": (True, False, "QwenImage21"),
    "transformer_blocks.0.img_mlp.proj": (True, False, "QwenImage21"),
    "txt_in": (True, True, "Chroma, ChromaRadiance and 1 more"),
    "txt_in.input_embedder": (False, True, "HunyuanVideo"),
    "txtfusion.projector": (False, True, "SingleStreamDiT"),
    "vector_in.in_layer": (False, True, "Flux"),
    "video_patch_proj": (True, False, "MiniMaxH3"),
    "video_pooled_text_embeddings.in_layer": (False, True, "Kandinsky6"),
    "video_text_embeddings.in_layer": (False, True, "Kandinsky6"),
    "video_time_embeddings.out_layer": (True, False, "Kandinsky6"),
    "visual_blocks.0.audioT.feed_forward.in_layer": (True, False, "Kandinsky6"),
    "visual_blocks.0.va_modulation.out_layer": (True, False, "Kandinsky6"),
    "visual_blocks.0.videoT.feed_forward.in_layer": (True, False, "Kandinsky6"),
    "visual_embeddings.in_layer": (True, True, "Kandinsky5, Kandinsky6"),
    "visual_transformer_blocks.0.feed_forward.in_layer": (True, False, "Kandinsky5"),
    "x_embedder": (True, True, "Boogu, HunYuanDiTPlain and 1 more"),
    "x_embedder.proj.1": (True, True, "Anima, GeneralDIT"),
    "y_embedder.mlp.0": (False, True, "OpenAISignatureMMDITWrapper"),
}


# ── nvfp4/modules.py: Tell which module of ComfyUI the weight of a name belongs to, and what ComfyU

# What ComfyUI's operations for quantised files have for looking up rows: it takes FP8 and INT8.
EMBEDDING = "an Embedding"
# A part of a name that is a number: of a block, or of a place in a row of layers.
NUMBER_PART = re.compile(r"(?<![^.])\d+(?![^.])")
# Last parts of names of embeddings, learned tokens, routers of experts and the like: "emb",
# "label_embed", "trainable_cond_mask", "gate", "relative_attention_bias", "pos_enc", "positions".
CAREFUL_NAME = re.compile(
    r"(emb|embd|embed|embedding|embedder|mask|gate|gating|router|table|token|bias"
    r"|indicator|direction|codebook|vocab|lookup|latent)s?$|(^|_)(queries|wte|wpe)$"
    r"|(^|_)pos(?!t|e(_|$)|sib)",
    re.IGNORECASE,
)
CAREFUL_ANYWHERE = "motion_encoder."
# A weight of fewer rows or columns and without a bias holds learned vectors or the scores of
# experts, as a rule. Packing would have to pad it, and would save next to nothing.
FEW = 16


class NotLinear(NamedTuple):
    """Say what ComfyUI has instead of a linear layer, as "an Embedding", and in which classes."""

    kind: str
    classes: str

    def __str__(self) -> str:
        """Tell both as the end of a sentence."""
        return f"ComfyUI's {self.classes} has {self.kind} there"


class ShapeRead(NamedTuple):
    """Say which of a weight's dimensions ComfyUI reads to recognise a model, and in which classes.

    in_block: whether the layer is in a numbered block, and no input or output of the whole model.
    """

    rows: bool
    columns: bool
    classes: str
    in_block: bool


def starred(name: str) -> str:
    """Write a name with `*` for each part that is a number, as the tables have it."""
    return NUMBER_PART.sub("*", name)


def shape_patterns() -> dict[str, list[tuple[re.Pattern, ShapeRead]]]:
    """Make {starred name: its rows of SHAPE_READ}, as most names are ruled out by a look-up."""
    rows: dict[str, list] = {}
    for name, read in SHAPE_READ.items():
        pattern = re.compile(re.escape(name).replace(r"\*", r"\d+"))
        key = starred(name)
        rows.setdefault(key, []).append((pattern, ShapeRead(*read, in_block="*." in key)))
    return rows


SHAPE_PATTERNS = shape_patterns()


@lru_cache(maxsize=1 << 16)
def not_linear(layer: str) -> NotLinear | None:
    """Look up a layer, named without prefix, that is no linear layer in a class of ComfyUI."""
    found = NOT_LINEAR.get(starred(layer))
    return NotLinear(*found) if found else None


@lru_cache(maxsize=1 << 16)
def shape_read(layer: str) -> ShapeRead | None:
    """Look up what ComfyUI reads of the shape of a layer, which is named without prefix."""
    rows = SHAPE_PATTERNS.get(starred(layer), ())
    return next((read for pattern, read in rows if pattern.fullmatch(layer)), None)


def sounds_doubtful(layer: str, shape: tuple[int, ...], *, has_bias: bool) -> bool:
    """Tell whether a 2-D weight may be no linear layer's by its name, or by its shape [N, K].

    The layer is named without prefix. What ComfyUI's classes say of it is not looked up.
    """
    parts = layer.split(".")
    # "time_embed.0" is a linear layer in a row of modules, and has a bias; an embedding has none.
    numbered = len(parts) > 1 and parts[-1].isdigit() and not has_bias
    named = CAREFUL_NAME.search(parts[-2 if numbered else -1])
    few = min(shape) < FEW and not has_bias
    return bool(named) or few or CAREFUL_ANYWHERE in layer


def is_doubtful(layer: str, shape: tuple[int, ...], *, has_bias: bool) -> bool:
    """Tell whether a 2-D weight that sounds doubtful is not known as a linear layer's, either.

    It is known by its name in ComfyUI's classes, where it has a bias as there, or at least half as
    many rows for each column: a router of experts may have the name of a gate.
    """
    if not sounds_doubtful(layer, shape, has_bias=has_bias):
        return False
    # Rows for each column, or 0 where the layer has a bias in all classes.
    known = LINEAR_ALL_THE_SAME.get(starred(layer))
    if known is None:
        return True
    return shape[0] < known / 2 * shape[1] if known else not has_bias


# ── nvfp4/model.py: Records of a checkpoint: tensors, names, prefixes, LoRA patches ───────────────

# What checkpoints put before the names of a diffusion model's tensors. A longer prefix comes before
# one that it begins with.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.")
# Of these, what ComfyUI does not strip: it recognises no model in a file that has it.
UNREAD_PREFIXES = ("diffusion_model.",)
# Of these, what ComfyUI looks for first, and takes for the model's where more than so many names
# have it (comfy/model_detection.py, unet_prefix_from_state_dict).
COUNTED_PREFIXES, LEAST_COUNTED = ("model.diffusion_model.", "model.model.", "net."), 5
# What ComfyUI strips in a checkpoint that holds more than the diffusion model.
COMFYUI_PREFIX = "model.diffusion_model."
# A prefix counts only if at least 10 % of a file's tensor names have it; else a few stray names
# would make the whole diffusion model look like something beside it.
LEAST_PREFIXED = 0.1
# What programs put into a layer's name when they wrap a module: torch.compile, FSDP and activation
# checkpointing anywhere in it, DataParallel and DDP at its beginning, before or after a prefix.
WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module|_forward_module"
WRAPPED = re.compile(rf"(?<![^.])({WRAPPERS})\.|\.({WRAPPERS})$")
WRAPPED_WHOLE = re.compile(
    rf"(?:module\.)*({'|'.join(re.escape(prefix) for prefix in PREFIXES)}|)(?:module\.)*"
)
# What the names of other parts begin with, in files whose diffusion model has no prefix.
OTHER_PARTS = (
    "text_encoders.", "text_encoder.", "text_encoder_2.", "cond_stage_model.", "conditioner.",
    "first_stage_model.", "vae.", "pretransform.", "clip_l.", "clip_g.", "clip_h.", "t5xxl.",
    "clip_l_vision.", "embedder.model.", "audio_vae.", "vocoder.", "text_embedding_projection.",
)  # fmt: skip
# What a file is recognised by: names whose first number is one of these, of so many characters, and
# so many of them. Published models have up to 700 such names.
TOLD_NUMBERS, MAX_TOLD, MAX_LINES = ("0", "1", "2"), 200, 5000
# The end of names of tensors with JSON by which a file chooses a module's attention in ComfyUI;
# they are no part of a weight, and go over as they are.
ATTENTION_CONFIG = ".comfy_attention.config"
# Beginnings of the prefixes that ComfyUI looks for (comfy/model_detection.py). A layer configured
# in the header under such a name makes it look for the model there.
COMFYUI_PREFIXES = ("model.", "net.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """Tell where a tensor lies in a file, and what is done with it when it is read.

    name: as the file has it, prefix included.
    dtype: as safetensors names it, such as "BF16": a key of SAFETENSORS_BITS.
    path, begin, nbytes: the file, the absolute offset of the tensor's data in it, and its size.
    coding: how a quantised weight is decoded when it is read; None for what is no such weight.
    is_kept: whether it is part of a quantised layer of the source that is copied as it is.
    config: the JSON for `comfy_quant` of such a layer; it is kept with the layer's weight.
    kept_as: the title of its format, which the weight has, too; "" for one that no row describes.
    patches: the LoRAs' changes that are added, in this order, when it is read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    nbytes: int
    coding: Coding | None = None
    is_kept: bool = False
    config: str = ""
    kept_as: str = ""
    patches: tuple[Patch, ...] = ()

    @property
    def is_changed(self) -> bool:
        """Tell whether reading gives float32 values that differ from what is stored."""
        return self.coding is not None or bool(self.patches)

    @property
    def layer(self) -> str:
        """Name the module whose weight this is, prefix kept: ComfyUI's metadata calls it so."""
        return self.name.removesuffix(".weight")

    @property
    def is_float(self) -> bool:
        """Tell whether it holds numbers of 16 or 32 bits once it is read; an empty one does not."""
        return (self.dtype in SOURCE_FLOATS or self.coding is not None) and self.nbytes > 0

    @property
    def is_matrix(self) -> bool:
        """Tell whether it is a float matrix named `*.weight`: a linear layer's, or an embedding."""
        return self.is_float and len(self.shape) == 2 and self.name.endswith(".weight")

    @property
    def is_linear_weight(self) -> bool:
        """Tell whether it is taken for a linear layer's weight.

        That is a float matrix named `*.weight`, unless a class of ComfyUI has something else of
        that name, such as an embedding.
        """
        return self.is_matrix and not not_linear(bare(self.layer))

    @property
    def is_embedding(self) -> bool:
        """Tell whether a class of ComfyUI has an embedding of its own operations for it."""
        found = not_linear(bare(self.layer)) if self.is_matrix else None
        return found is not None and found.kind == EMBEDDING

    @property
    def is_expert_bank(self) -> bool:
        """Tell whether it looks like the weights of several experts in one tensor, [E, N, K].

        Such tensors are in numbered blocks, and large in both of the last dimensions, where a
        convolution has a small kernel.
        """
        named = self.name.endswith((".weight", "_proj")) or "expert" in self.name
        in_block = "*." in starred(self.name)
        is_large = len(self.shape) == 3 and min(self.shape[1:]) >= FP4_MATMUL_K
        return self.is_float and named and in_block and is_large and self.shape[0] > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """Tell how a stored weight is decoded.

    title: of its format; the rows of `formats` stand above this room.
    parts: {suffix: the tensor}, what it is decoded from besides its codes; {} where `scale` is all.
    scale: the one scale of the whole weight, a float32; None where it has several.
    """

    title: str
    parts: dict[str, TensorRef] = field(default_factory=dict)
    scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Describe what one layer of a LoRA file does to one tensor.

    kind: "lora", "loha", "lokr", "diff" or "set": a key of `numeric.lora.CHANGES`.
    parts: the tensors that the change is computed from, such as "up", "down" and "alpha".
    strength: what the change is multiplied by.
    rows: the rows of the tensor that are changed: a q, k or v of a fused layer, or all.
    swapped: whether the two halves of the change belong in the other order, as diffusers has scale
        and shift of the last modulation.
    scale: what the change is multiplied by besides, where `parts` have no "alpha": alpha over rank
        as the file's metadata tell it.
    """

    kind: str
    parts: dict[str, TensorRef]
    strength: float
    rows: slice
    swapped: bool = False
    scale: float = 1.0


class Lora(NamedTuple):
    """Name a LoRA file to merge, and the strength that its changes are multiplied by."""

    path: Path
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Hold what a checkpoint's headers say.

    tensors: by name, in the order of the file, and of the shards where there are several.
    metadata: the header's `__metadata__`, merged where there are several shards.
    files: the file, or the index followed by its shards.
    stamps: of the files that are read while converting; what changes meanwhile is refused.
    quantised: how many layers of a source's diffusion model are quantised already, by the title
        of their format.
    """

    tensors: dict[str, TensorRef]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    stamps: dict[Path, Stamp] = field(default_factory=dict)
    quantised: dict[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Count the bytes of all tensors as they are stored, headers left out."""
        return sum(ref.nbytes for ref in self.tensors.values())

    @property
    def beside(self) -> dict[str, TensorRef]:
        """Collect the tensors that are not of the diffusion model, such as a text encoder's."""
        prefix = diffusion_prefix(self.tensors)
        return {name: ref for name, ref in self.tensors.items() if is_beside(name, prefix)}

    @property
    def linear_weights(self) -> list[TensorRef]:
        """List what looks like a linear layer's weight of the diffusion model, in file order."""
        beside = self.beside
        refs = self.tensors.values()
        return [ref for ref in refs if ref.is_linear_weight and ref.name not in beside]


class Source(NamedTuple):
    """Hold a model to convert, and notes on what it is taken for, each a line of the report."""

    model: Model
    notes: tuple[str, ...] = ()


def bare(name: str) -> str:
    """Strip one of PREFIXES from a tensor's or layer's name, if it begins with one.

    Names of models, calibration files, LoRAs and lists are compared in this form.
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def unwrapped(name: str) -> str:
    """Strip from a layer's name what WRAPPED and WRAPPED_WHOLE tell; a prefix stays.

    "diffusion_model.blocks.0._orig_mod.q" -> "diffusion_model.blocks.0.q". Readers of files that
    name layers of a running model begin with it: the model's own file has no such names.
    """
    return WRAPPED_WHOLE.sub(r"\1", WRAPPED.sub("", name), count=1)


def diffusion_prefix(names: Iterable[str]) -> str:
    """Find the prefix of the diffusion model's tensors among all names of a file.

    Returns what ComfyUI takes for it, or else the first of PREFIXES that at least LEAST_PREFIXED of
    the names have, or "". What has not that prefix, such as a text encoder or a VAE in the same
    file, is not converted.
    """
    names = list(names)
    counts = {p: sum(name.startswith(p) for name in names) for p in COUNTED_PREFIXES}
    most = max(counts, key=counts.__getitem__)
    if counts[most] > LEAST_COUNTED:
        return most
    least = LEAST_PREFIXED * len(names)
    usual = (p for p in PREFIXES if sum(name.startswith(p) for name in names) >= least)
    return next(usual, "") if names else ""


def header_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Write the lines `name [shape]` by which models and other files are recognised.

    shapes: {name: shape}. Of a row of blocks the first ones stand for all, and what exceeds any
    published file is left out, so that a hostile one costs no time.
    """
    lines = []
    for name, shape in shapes.items():
        number = re.search(r"(?<![^.])\d+(?![^.])", name[:MAX_TOLD])
        if number is None or number[0] in TOLD_NUMBERS:
            lines.append(f"{name[:MAX_TOLD]} {[*shape]}")
        if len(lines) == MAX_LINES:
            break
    return "\n".join(lines)


def is_beside(name: str, prefix: str) -> bool:
    """Tell whether a name is of something beside the diffusion model, whose `prefix` is given."""
    return not name.startswith(prefix) or (not prefix and name.startswith(OTHER_PARTS))


def compiled(pattern: str) -> re.Pattern:
    """Compile a regular expression that a user gave, without Python's warnings on stderr.

    Raises ValueError, whose text ends a sentence, for all that is wrong with it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(pattern)
    # Some 500 nested brackets are enough for it.
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except (re.error, OverflowError) as error:
        raise ValueError(error) from error


# ── nvfp4/requirements.py: Look for the packages that have to be installed ────────────────────────

# The names under which the packages of requirements.txt are imported; those on PyPI are the same.
REQUIRED = ("torch", "safetensors", "gguf", "numpy", "tqdm")
# Where an installed package has calib/ and sensitive_layers/, as pyproject.toml lays it out.
INSTALLED_DATA = Path(__file__).resolve().with_name("data")
# The folder of calib/ and sensitive_layers/, and of requirements.txt unless it is installed: the
# checkout, or where the single file lies.
HERE = Path(__file__).resolve().parents[__name__.count(".")]
if "." in __name__ and INSTALLED_DATA.is_dir():
    HERE = INSTALLED_DATA


def require(*names: str) -> None:
    """End the program with one line on stderr, and status 1, where packages are not installed.

    names: top-level packages, as `import` calls them; those that are not among REQUIRED are looked
    for on PyPI by the same name. Nothing is imported, so this takes milliseconds. The line suggests
    `-r requirements.txt` where that file is in the checkout, or else the packages by name, for
    whoever copied the single file alone.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        listed, wanted = HERE / "requirements.txt", missing
        if listed.is_file() and not {*REQUIRED}.isdisjoint(missing):
            shown = os.path.relpath(listed) if listed.is_relative_to(Path.cwd()) else str(listed)
            shown = f'"{shown}"' if " " in shown else shown
            wanted = [f"-r {shown}", *(name for name in missing if name not in REQUIRED)]
        verb = "is" if len(missing) == 1 else "are"
        command = f"python -m pip install {' '.join(wanted)}"
        sys.exit(f"error: {', '.join(missing)} {verb} missing: {command}")


# ── nvfp4/options/kinds.py: Values of options: how texts are read, what Python may give ───────────

def input_path(given: str | Path) -> Path:
    """Make a path of a text; a leading ~ or ~user is the home folder.

    Windows separators work elsewhere too, so that batch lines can be shared: backslashes become
    slashes if there is no file of the name as given. In what is a path already, only the ~ is
    replaced. The file need not exist.
    """
    if not isinstance(given, str | os.PathLike):
        raise argparse.ArgumentTypeError(f"{given!r} is no path")
    # Path("") is the folder one is in, which would be taken for SOURCE.
    if given == "":
        raise argparse.ArgumentTypeError("the path is empty; is a variable not set?")
    path = Path(given)
    if exists(path):
        return path
    if os.name != "nt" and isinstance(given, str):
        path = Path(given.replace("\\", "/"))
    try:
        # Shells leave the ~ of "--gguf=~/x" and of quoted texts, and Python leaves all.
        return path.expanduser()
    except RuntimeError:
        # No such user, or no home: opening the path as it is will tell.
        return path


def shipped_path(given: str | Path, folder: str) -> Path:
    """Find a file as given or, if there is none, of that name in a folder beside this script.

    folder: "calib" or "sensitive_layers", whose files come with the program; it may be part of the
    name. Returns the path that exists; the error lists what the folder has. A Path that a program
    gives may name none: reading it will tell.
    """
    # As given comes first: a file of one's own may have the name of one that is shipped.
    path = input_path(given)
    for found in (path, HERE / folder / path, HERE / path):
        if exists(found):
            return found
    if not isinstance(given, str):
        return path
    # calib/ has other files, too: name only such as the option takes.
    kind = {"calib": "*.json", "sensitive_layers": "*.txt"}[folder]
    if not (HERE / folder).is_dir():
        alone = f"there is no {folder}/ beside this script to look in; give its path"
        raise argparse.ArgumentTypeError(f"no file {given}: {alone}")
    there = sorted(file.name for file in (HERE / folder).glob(kind))
    where = f"neither as given nor in {folder}/: {', '.join(there)}"
    hint = did_you_mean(path.name, there)
    raise argparse.ArgumentTypeError(f"no file {given}, {where}{hint}")


def pattern(text: str) -> str:
    """Check a regular expression, and return its text; it is searched for in layers' names."""
    if not isinstance(text, str):
        raise argparse.ArgumentTypeError(f"{text!r} is no text")
    try:
        compiled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a regular expression: {error}"
        ) from error
    return text


def device_name(text: str) -> str:
    """Check the name of a device: auto, cpu, cuda or cuda:N.

    Whether the machine has it, torch is asked later: the command line is read without torch.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def real_number(given: str | float) -> float:
    """Read a number, in any way in which Python writes one: NaN and infinity, too."""
    try:
        # float() would take True for 1.
        if not isinstance(given, bool):
            return float(given)
    except (TypeError, ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{given!r} is no number")


def percentile(given: str | float) -> float:
    """Read a percentile: a number from 0 to 100."""
    value = real_number(given)
    # NaN compares false, and is refused here, too.
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{given}: percentiles are from 0 to 100")
    return value


def positive_float(given: str | float) -> float:
    """Read a finite number above 0."""
    value = real_number(given)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{given} is not a positive number")
    return value


def fraction(given: str | float) -> float:
    """Read a share: above 0, and at most 1."""
    # 60 per cent is written 0.6: a percent sign is not read.
    value = positive_float(given)
    if value > 1:
        hint = f"; {value:g} % is {value / 100:g}" if value <= 100 else ""
        raise argparse.ArgumentTypeError(f"{given} is no share: 1 is all{hint}")
    return value


def margin(given: str | float) -> float:
    """Read a factor of 1 or more, by which an input scale is made larger."""
    value = real_number(given)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{given} is no margin: less than 1 would clip what was seen"
        )
    return value


def lora_file(given: str | Path | tuple[str | Path, float]) -> Lora:
    """Read FILE[:STRENGTH]; without a strength, it is 1.

    A colon that no number follows is the file's, as in C:\\x.safetensors. A path, or a pair of path
    and strength such as a Lora, is taken as it is. Strengths may be negative, but not 0, which
    would merge nothing, nor beyond float32.
    """
    file, strength = given, 1.0
    if isinstance(given, str):
        # Not all that float() reads: it takes nan and inf, and 1_0 for 10.
        digits = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
        found = re.fullmatch(rf"(.+?)(?::({digits}))?", given, re.DOTALL)
        file, strength = (found[1], float(found[2] or 1)) if found else ("", 0.0)
    elif isinstance(given, tuple) and len(given) == 2:
        file, strength = given[0], real_number(given[1])
    if not isinstance(file, str | os.PathLike) or not 0 < abs(strength) < FLOAT32_MAX:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not FILE or FILE:STRENGTH, a number other than 0"
        )
    path = input_path(file)
    comma = re.fullmatch(r"(.+):([+-]?\d*,\d+)", str(given), re.DOTALL)
    if comma and not exists(path) and exists(input_path(comma[1])):
        written = comma[2].replace(",", ".")
        raise argparse.ArgumentTypeError(f"{comma[2]} is no number; write {written}")
    return Lora(path, strength)


def natural(given: str | int) -> int:
    """Read a whole number: 0 or more, of up to six digits."""
    # int() would take signs, spaces and underscores, and True for 1.
    if not re.fullmatch(r"\d{1,6}", str(given)):
        raise argparse.ArgumentTypeError(f"{given!r} is no whole number of 0 or more")
    return int(given)


def size_in_bytes(given: str | int) -> int:
    """Read 5GB, 500 MB, 4GiB or a plain number of bytes, and return whole bytes, at least 1.

    GB is 1000 ** 3 and GiB is 1024 ** 3; the B may be left out, and case does not matter.
    """
    # Digits are counted, as a text of a million of them would take minutes to read.
    found = re.fullmatch(
        r"(\d{1,18}(?:\.\d{1,9})?) ?(?:([KMGT])(i?)B?|B)?", str(given), re.IGNORECASE
    )
    size = 0
    if found:
        number, unit, binary = found.groups()
        # A space stands for no unit: the power is 0.
        power = " KMGT".index((unit or " ").upper())
        size = int(float(number) * (1024 if binary else 1000) ** power)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no size like 5GB, 500MB or 4GiB")
    return size


def on_or_off(given: bool) -> bool:
    """Check a switch's value; the command line has no text for it."""
    if given not in (True, False):
        raise argparse.ArgumentTypeError(f"{given!r} is not True or False")
    return bool(given)


class Kind(NamedTuple):
    """Describe the values that an option takes, and how `--help` writes them.

    read: makes the value of a text, or of what a program gives.
    metavar: what stands for the value in `--help`; "" for a switch or for choices.
    choices: the only texts that are allowed, if there are any.
    repeatable: whether the option may be given several times; its value is a tuple then.
    told: what an error says of the choices; "" for their words alone.
    """

    read: Callable[..., object] = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    repeatable: bool = False
    told: str = ""

    @property
    def keywords(self) -> dict[str, object]:
        """Tell what argparse's add_argument() needs to know, beside flag and help."""
        # A switch has no value to read: it is True where it is named.
        if self.read is on_or_off:
            return {"action": "store_true"}
        # argparse keeps the last value of an option that is given twice, unless it appends. Its own
        # check of choices words what it finds otherwise in each version of Python.
        known = {"action": "append"} if self.repeatable else {}
        metavar = self.metavar or (f"{{{','.join(self.choices)}}}" if self.choices else "")
        known |= {"metavar": metavar} if metavar else {}
        return known | {"type": self._replace(repeatable=False).accept}

    @property
    def shown(self) -> str:
        """Tell what stands behind the option in a list of options: FILE, or mse|amax."""
        return self.metavar or "|".join(self.choices)

    def accept(self, given: object) -> object:
        """Check a value that a program gives, and return the option's value.

        Text is read as the command line's is. Of a repeatable option, one alone is welcome, too.
        Raises argparse.ArgumentTypeError in the words of argparse, so that both interfaces say the
        same.
        """
        if self.repeatable:
            # A Lora is a tuple, and a text is iterable: each of them is one value, not several.
            one = self._replace(repeatable=False)
            several = isinstance(given, Iterable) and not isinstance(given, str | Lora)
            return tuple(map(one.accept, given if several else [given]))
        if self.choices and given not in self.choices:
            known = self.told or ", ".join(map(repr, self.choices))
            hint = did_you_mean(str(given), self.choices)
            problem = f"invalid choice: {given!r} (choose from {known}){hint}"
            raise argparse.ArgumentTypeError(problem)
        try:
            value = self.read(given)
            # A file has no half bytes: 5.7 would be made 5 without a word.
            if isinstance(given, Real) and value != given:
                raise ValueError
        # Python's own errors, as of a path with a null character.
        except (TypeError, ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"invalid value: {given!r}") from error
        return value


# Kinds that several options share; others are made where the option is, in table.py.
SWITCH = Kind(on_or_off)
FILE = Kind(input_path, "FILE")
FOLDER = Kind(input_path, "DIR")
# Their files come with the program, in a folder beside it, and may be named without it.
SUMMARY = Kind(partial(shipped_path, folder="calib"), "FILE")
LAYER_LIST = Kind(partial(shipped_path, folder="sensitive_layers"), "FILE")
REGEXES = Kind(pattern, "REGEX", repeatable=True)
NATURAL = Kind(natural, "N")
SIZE = Kind(size_in_bytes, "SIZE")
SHARE = Kind(fraction, "SHARE")


# ── nvfp4/options/option.py: One row of the options table, and the checks that follow from it ─────

# What somebody asked for, by flag.
GivenOptions = Mapping[str, object]
# The key of a row in its field's metadata.
ROW = "option"


class Other(NamedTuple):
    """Name an option that another one excludes or needs.

    value: the one that is meant; "" for any. why: how the sentence ends that says so, with its own
    comma or space.
    """

    flag: str
    value: str = ""
    why: str = ""

    @property
    def text(self) -> str:
        """Write it as one would type it."""
        return f"{self.flag} {self.value}".strip()

    def is_in(self, given: GivenOptions) -> bool:
        """Tell whether it was asked for, with the value that is meant."""
        return self.flag in given and self.value in ("", given[self.flag])


class Alias(NamedTuple):
    """Give an option another name: a switch that means one value, or words that mean values.

    meaning: the value that the switch stands for, or {word: value}. The other facts are as in an
    Option: an alias has conflicts and needs of its own.
    """

    flag: str
    meaning: str | dict[str, str]
    help: str
    conflicts: tuple[Other, ...] = ()
    needs: tuple[Other, ...] = ()

    @property
    def kind(self) -> Kind:
        """Describe the values that it takes: its own words, not those of the option."""
        return SWITCH if isinstance(self.meaning, str) else Kind(choices=tuple(self.meaning))


class LayerSwitch(NamedTuple):
    """Describe a switch for the layers whose names a regular expression finds.

    Several such switches make up one option, whose value is the set of those that were given.
    `least` is the title of the format, or EIGHT_BITS, that the switch raises its layers to, or ""
    if it marks them for something else.
    """

    layers: str
    help: str
    least: str = ""


class Argument(NamedTuple):
    """Hold one thing that the command line takes for a row, with its kind of value and its help.

    Most are flags; SOURCE and OUTPUT, which have no dashes, are told by their places.
    """

    flag: str
    kind: Kind
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Hold all there is to know of an option.

    `option(...)` makes one as the default of a dataclass's field. `options_of` fills in name and
    default from that field.

    default: MISSING for an option that has to be given.
    shown: the default as it was written, for the help.
    group: the heading in `--help` and in the README; "" for SOURCE and OUTPUT.
    kind: what its values may be.
    help: its text; `{default}` stands for the default.
    flag: how the command line calls it; "" for the field's name with dashes.
    conflicts: what must not be given with it. One of the two rows names the other.
    needs: of these at least one must be given with it.
    check: what is wrong with a value that its kind accepts: gets the flag, the value and all that
        is given, returns a sentence or "".
    aliases: other names, listed after it.
    switches: {flag: layers} of an option that is a set of switches and has no flag of its own.
    trace: whether the header of OUTPUT tells it: whether the bytes can depend on it.
    reads: whether it names files that OUTPUT must not overwrite.
    writes: whether it names a text file that is written beside OUTPUT.
    everyday: what the short `-h` says of it, in up to 52 characters; "" for what only `--help`
        lists.
    """

    group: str
    kind: Kind
    help: str
    name: str = ""
    default: object = None
    shown: str = ""
    flag: str = ""
    conflicts: tuple[Other, ...] = ()
    needs: tuple[Other, ...] = ()
    check: Callable[[str, Any, GivenOptions], str] | None = None
    aliases: tuple[Alias, ...] = ()
    switches: Mapping[str, LayerSwitch] = field(default_factory=dict)
    trace: bool = True
    reads: bool = False
    writes: bool = False
    everyday: str = ""

    @property
    def arguments(self) -> list[Argument]:
        """List what the command line and the README list for this row, other names last."""
        own = [Argument(flag, SWITCH, switch.help) for flag, switch in self.switches.items()]
        # A set of switches has no flag of its own.
        own = own or [Argument(self.flag, self.kind, self.help.replace("{default}", self.shown))]
        return [*own, *(Argument(alias.flag, alias.kind, alias.help) for alias in self.aliases)]

    @property
    def flags(self) -> list[str]:
        """List all that the command line knows it by, other names too."""
        return [argument.flag for argument in self.arguments]

    def value_in(self, given: GivenOptions) -> object:
        """Find its value by what the command line named, or its default.

        The option's own flag and an alias exclude each other, so that their order decides nothing.
        """
        if self.switches:
            return frozenset(flag for flag in self.switches if flag in given)
        # An alias is another way to give this option's value: there is no field for it.
        for alias in self.aliases:
            if alias.flag in given:
                meaning = alias.meaning
                return meaning if isinstance(meaning, str) else meaning[given[alias.flag]]
        return given.get(self.flag, self.default)

    def named_by(self, value: object) -> dict[str, object]:
        """Tell what would have to be named for a value: {flag: value}; nothing for the default."""
        if value == self.default:
            return {}
        # A set of switches is named by its flags, each of which is True.
        return dict.fromkeys(value, True) if self.switches else {self.flag: value}

    def accept(self, value: object) -> object:
        """Make a value given in Python one of its kind.

        The default is taken as it is: None is no path, but stands for none. Raises
        argparse.ArgumentTypeError, as `Kind.accept` does.
        """
        if value == self.default:
            return self.default
        # A set of switches is given as their flags, of which each has to be one of the row's.
        if not self.switches:
            return self.kind.accept(value)
        return frozenset(Kind(choices=tuple(self.switches), repeatable=True).accept(value))


def with_others(facts: dict[str, Any]) -> dict[str, Any]:
    """Make Others of the flags that a row's facts name: the short form, for any value."""

    def other(one: Other | str) -> Other:
        return one if isinstance(one, Other) else Other(one)

    # Both relations have the same short form.
    relations = {"conflicts", "needs"} & facts.keys()
    return facts | {relation: tuple(map(other, facts[relation])) for relation in relations}


def option(default: object, group: str, kind: Kind, text: str = "", **facts: Any) -> Any:
    """Make the field of an option, of a task that is a dataclass.

    default: MISSING for an option that has to be given; a text is read as the command line's is.
    group, kind, text: its heading, the values it takes, and its help.
    facts: what else an Option knows; `conflicts` and `needs` may name others by their flags alone.

    The return type is Any, as a field's default stands where a value of the field's type should.
    """
    # The help shows the default as it is written here, 5GB and not 5000000000.
    shown = default if isinstance(default, str) else f"{default:g}" if is_number(default) else ""
    value = kind.read(default) if isinstance(default, str) else default
    row = Option(group=group, kind=kind, help=text, shown=shown, **with_others(facts))
    return field(default=value, metadata={ROW: row})


def is_number(value: object) -> bool:
    """Tell whether a value is a number; Python counts True and False among them."""
    return isinstance(value, Real) and not isinstance(value, bool)


def same_option(task: type, name: str, **facts: Any) -> Any:
    """Make the field of an option that another task has, too.

    task, name: where the option is. facts: what is different about it here, as in `option`.
    """
    # A name that the other task lacks fails here, when the table is imported.
    (entry,) = (entry for entry in dataclasses.fields(task) if entry.name == name)
    row = dataclasses.replace(entry.metadata[ROW], **with_others(facts))
    return field(default=entry.default, metadata={ROW: row})


def options_of(task: type) -> list[Option]:
    """List the rows of a task, with names, defaults and flags filled in from its fields.

    They are in the order of the fields, which is that of `--help`.
    """
    # Name and default are the field's, so that the table says neither twice.
    rows = []
    for entry in dataclasses.fields(task):
        row = entry.metadata[ROW]
        flag = row.flag or "--" + entry.name.replace("_", "-")
        rows.append(dataclasses.replace(row, name=entry.name, default=entry.default, flag=flag))
    return rows


def all_options(*tasks: type) -> list[Option]:
    """List the rows of several tasks; what they share is listed once, as the first one has it."""
    # The first row of a flag stays: a task's own conflicts and needs may differ.
    rows: dict[str, Option] = {}
    for row in (row for task in tasks for row in options_of(task)):
        rows.setdefault(row.flag, row)
    return [*rows.values()]


def contradictions(rows: Iterable[Option], given: GivenOptions) -> Iterator[str]:
    """Find options that exclude each other, do nothing without another, or have wrong values.

    `given` is {flag: value} of what was asked for. Yields a sentence for each problem: first the
    conflicts, then what is missing, then the values, each in the order of the rows.
    """
    rows = list(rows)
    # Rows and aliases have the same facts here: each of those that were named is asked.
    named = [one for row in rows for one in (row, *row.aliases) if one.flag in given]
    for one in named:
        for other in one.conflicts:
            # One of the two rows names the other, so that each contradiction is told once.
            if other.is_in(given):
                yield f"{one.flag} contradicts {other.text}{other.why}"
    for one in named:
        if one.needs and not any(other.is_in(given) for other in one.needs):
            # Any of them is enough.
            needed = " or ".join(other.text + other.why for other in one.needs)
            yield f"{one.flag} needs {needed}"
    # Checks of values see all that is given, as `--preset none` asks for --include.
    for row in rows:
        if row.check and row.flag in given:
            problem = row.check(row.flag, given[row.flag], given)
            if problem:
                yield problem


def check_task(task: Any) -> None:
    """Make a task's values of the right kinds, and raise ConvertError with all that is wrong.

    A task calls this in its `__post_init__`: nobody else has it yet, so a frozen one may still be
    changed. Contradictions are looked for only where every value is of its kind.
    """
    problems, given = [], {}
    rows = options_of(type(task))
    for row in rows:
        try:
            value = row.accept(getattr(task, row.name))
        except argparse.ArgumentTypeError as error:
            problems.append(f"argument {row.flag}: {error}")
            continue
        # The way to set a field of a frozen dataclass.
        object.__setattr__(task, row.name, value)
        given |= row.named_by(value)
    # Flags are told, not fields, so that both interfaces use the same words.
    problems = problems or [*contradictions(rows, given)]
    if problems:
        raise ConvertError(*problems)


def by_name(task: type) -> type:
    """Make a task's constructor raise ConvertError for names that it does not know, or lacks.

    A decorator, for a dataclass of options: Python itself would raise TypeError, and name none.
    """
    make = task.__init__

    @functools.wraps(make)
    def checked(self: Any, *unnamed: object, **given: object) -> None:
        called, rows = task.__name__, options_of(task)
        unknown = [name for name in given if name not in {row.name for row in rows}]
        problems = [f"{called} has no {name}{known_as(name, rows)}" for name in unknown]
        needed = [row.name for row in rows if row.default is dataclasses.MISSING]
        if unnamed:
            problems.append(f"{called} takes options by name: {called}({needed[0]}=...)")
        elif missing := [name for name in needed if name not in given]:
            problems.append(f"{called} needs {' and '.join(missing)}")
        if problems:
            raise ConvertError(*problems)
        make(self, **given)

    task.__init__ = checked
    return task


def known_as(name: str, rows: Iterable[Option]) -> str:
    """End a message on a field that no row has: how Python gives what is meant.

    That is the field of a flag which is another name, or one of a set; a name that is alike; or
    else all names.
    """
    flags = {flag.strip("-").replace("-", "_"): (flag, row) for row in rows for flag in row.flags}
    if name in flags:
        flag, row = flags[name]
        return f"; give {row.name}" + (f'={{"{flag}"}}' if row.switches else "")
    names = [row.name for row in rows]
    return did_you_mean(name, names) or f"; it has {', '.join(names)}"


def paths_of(value: object) -> Iterator[Path]:
    """Find the paths in an option's value, which may be None, a path, a LoRA or several of them."""
    # A Lora is a tuple, too, but its strength is no path.
    if isinstance(value, Lora):
        yield value.path
    elif isinstance(value, tuple):
        for one in value:
            yield from paths_of(one)
    elif value is not None:
        yield value


# ── nvfp4/options/checks.py: Check values that their kinds accept: an Option's `check`, which sees 

# Shards of fewer bytes are refused: their unit was forgotten.
LEAST_SHARD = 1_000_000


def must_end_in(*kinds: str, why: str = "") -> Callable[[str, Path, GivenOptions], str]:
    """Make the check of a file's suffix, for an Option's `check`.

    kinds: suffixes in lower case; the case of the path's own does not matter. why: goes on with the
    sentence.
    """

    def check(flag: str, path: Path, _: GivenOptions) -> str:
        wrong = path.suffix.lower() not in kinds
        return f"{flag} must end in {' or '.join(kinds)}{why}: {path}" if wrong else ""

    return check


def original_only(flag: str, path: Path, _: GivenOptions) -> str:
    """Refuse a GGUF as SOURCE: the model that it was made from has to be given."""
    wrong = path.suffix.lower() == ".gguf"
    return f"{flag} must be the original .safetensors; a GGUF goes with --gguf" if wrong else ""


def is_model_file(path: Path) -> bool:
    """Tell whether OUTPUT names the file to write, and no folder for it."""
    return path.suffix.lower() == ".safetensors"


def model_name(flag: str, path: Path, given: GivenOptions) -> str:
    """Refuse an OUTPUT that is neither a .safetensors nor a folder, and tell what may be meant."""
    if is_model_file(path):
        return ""
    source = given["SOURCE"]
    if path.is_dir():
        is_swapped = not exists(source) and any(path.glob("*.safetensors"))
        no_source = f"{source}: no such file; are SOURCE and {flag} swapped?"
        return no_source if is_swapped else ""
    problem = f"{flag} must end in .safetensors, as ComfyUI looks for it, or be a folder: {path}"
    if exists(path):
        return f"{problem}; are SOURCE and {flag} swapped?"
    if "--make-folder" in given:
        return ""
    # A suffix of letters is that of a file; the dot of wan2.2 belongs to a folder's name.
    looks_like_file = re.fullmatch(r"\.[a-zA-Z]\w*", path.suffix)
    return problem if looks_like_file else f"{problem}; --make-folder creates one"


def none_needs_include(flag: str, preset: str, given: GivenOptions) -> str:
    """Refuse `--preset none` without --include: it quantises nothing by itself."""
    wrong = preset == "none" and "--include" not in given
    return f"{flag} none quantises what --include REGEX names: give that" if wrong else ""


def grows_not(flag: str, form: str, given: GivenOptions) -> str:
    """Refuse to make INT8 of NVFP4 layers once --target-size has settled on sizes."""
    sized = {"--target-size", "--target-ratio"} & given.keys()
    if form != "int8" or not sized or "--w4a4-share" not in given:
        return ""
    return f"{flag} int8 contradicts --w4a4-share with {sized.pop()}: layers would become larger"


def large_enough(flag: str, size: int, _: GivenOptions) -> str:
    """Refuse shards of less than LEAST_SHARD bytes: whoever gives "5" means "5GB"."""
    wrong = size < LEAST_SHARD
    return f"{flag}: {size:,} bytes are too few; give 5GB or so" if wrong else ""


# ── nvfp4/cards.py: What each class of graphics cards multiplies fast, and how fast: a row for each

# What tensor cores multiply a layer of a format in, by the format's word on the command line: W4A8
# and W6A8 are decoded to INT8, MXFP8 is FP8 with scales of blocks.
UNITS = {
    "nvfp4": "FP4",
    "w4a8": "INT8",
    "w6a8": "INT8",
    "int8": "INT8",
    "fp8": "FP8",
    "mxfp8": "FP8",
    "16bit": "16-bit",
}
# Formats that only comfy_kitchen multiplies; the matmul of FP8 is torch's own.
KITCHEN_FORMATS = ("nvfp4", "w4a8", "w6a8", "int8", "mxfp8")
# ComfyUI switches comfy_kitchen's CUDA kernels off with an older torch (comfy/quant_ops.py).
NEEDS_CUDA_13 = "torch built for CUDA 13.0 or newer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Describe a class of cards.

    title: the class for people, with what tells that a card is one of it.
    fast: words of UNITS for what every card of the class multiplies without decoding it to 16 bits,
        and "16bit". `model` is faster by it; `why` names cards of the class that are not.
    why: where that is from.
    model: the card that `rates` are of.
    rates: {unit: TFLOPS, or TOPS of integers}; a unit that the class lacks is not in it.
    source, url: where the rates are from.
    needs: what ComfyUI needs there for KITCHEN_FORMATS.
    half: the --dtype that 16-bit tensors have where none is given.
    """

    title: str
    fast: tuple[str, ...]
    why: str
    model: str
    rates: dict[str, float]
    source: str
    url: str
    needs: str = NEEDS_CUDA_13
    half: str = "bfloat16"

    def unit(self, word: str) -> str:
        """Tell what a format is multiplied in: a value of UNITS, 16-bit's where it is not fast."""
        return UNITS[word if word in self.fast else "16bit"]

    @property
    def series(self) -> str:
        """Name the cards of the class: "GeForce RTX 40"."""
        return self.title.partition(": ")[2].partition(" (")[0]

    def rate(self, word: str) -> float:
        """Tell the throughput at which a format is multiplied."""
        return self.rates[self.unit(word)]


# By the words that --card takes, the newest class first. Compute capabilities are those that
# comfy_kitchen 0.2.40 asks for (MIN_SM_VERSION of its layouts: NVFP4 and MXFP8 10.0, FP8 8.9, W4A8
# 8.0, INT8 7.5), and comfy/model_management.py of ComfyUI 0.33 (supports_*_compute).
CARDS = {
    "blackwell": Card(
        title="Blackwell: GeForce RTX 50 (compute capability 10.0 or more)",
        fast=("nvfp4", "w4a8", "w6a8", "int8", "fp8", "mxfp8", "16bit"),
        why="NVFP4 and MXFP8 from compute capability 10.0; NVIDIA gives no figure for MXFP8, which "
        "counts as FP8 here",
        model="GeForce RTX 5090",
        rates={"FP4": 1676, "INT8": 838, "FP8": 419, "16-bit": 209.5},
        source="NVIDIA RTX Blackwell GPU Architecture whitepaper 1.1, appendix A",
        url="https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
        "nvidia-rtx-blackwell-gpu-architecture.pdf",
    ),
    "ada": Card(
        title="Ada: GeForce RTX 40 (compute capability 8.9)",
        fast=("w4a8", "w6a8", "int8", "fp8", "16bit"),
        why="FP8 from compute capability 8.9",
        model="GeForce RTX 4090",
        rates={"INT8": 660.6, "FP8": 330.3, "16-bit": 165.2},
        source="NVIDIA Ada GPU Architecture whitepaper 2.1, appendix A",
        url="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    "ampere": Card(
        title="Ampere: GeForce RTX 30 (compute capability 8.0 to 8.7)",
        fast=("w4a8", "w6a8", "int8", "16bit"),
        why="W4A8 and W6A8 from compute capability 8.0",
        model="GeForce RTX 3090",
        rates={"INT8": 284, "16-bit": 71},
        source="NVIDIA Ampere GA102 GPU Architecture whitepaper 2.0, appendix A",
        url="https://www.nvidia.com/content/PDF/"
        "nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
    "turing": Card(
        title="Turing: GeForce RTX 20 (compute capability 7.5)",
        fast=("int8", "16bit"),
        why="INT8 from compute capability 7.5; no bfloat16 there, so that 16-bit is float16",
        model="GeForce RTX 2080 Ti Founders Edition",
        rates={"INT8": 227.7, "16-bit": 56.9},
        source="NVIDIA Turing GPU Architecture whitepaper, table 1",
        url="https://images.nvidia.com/aem-dam/en-zz/Solutions/design-visualization/technologies/"
        "turing-architecture/NVIDIA-Turing-Architecture-Whitepaper.pdf",
        half="float16",
    ),
    "rdna": Card(
        title="RDNA 4 and 3: Radeon RX 9000 and 7000",
        fast=("w4a8", "w6a8", "int8", "16bit"),
        why="what comfy_kitchen's HIP kernels multiply on both. RDNA 3 multiplies INT8 no faster "
        "than 16-bit (512 operations per clock each). FP8 is fast on RDNA 4 alone, and AMD's page "
        "has no figure for it",
        model="Radeon RX 9070 XT",
        rates={"INT8": 389.3, "16-bit": 194.6},
        source="AMD's operations per clock and compute unit (2048 and 1024), times 64 compute "
        "units, times 2.97 GHz",
        url="https://gpuopen.com/learn/using_matrix_core_amd_rdna4",
        needs="torch for ROCm, and comfy-kitchen 0.2.31 or newer",
    ),
}
# What the words are, such as "ada = GeForce RTX 40".
CARD_NAMES = ", ".join(f"{word} = {card.series}" for word, card in CARDS.items())


# ── nvfp4/options/formats.py: Name formats by the words of the command line, and say which ones a c

# The word for tensors that are not quantised.
UNQUANTISED = "16bit"
# What has to be named: rotated INT8 loses less than MXFP8 at the same size, and runs on more cards;
# W6A8 needs comfy-kitchen 0.2.40, where ComfyUI 0.33 brings 0.2.31 and 0.38 brings 0.2.36.
NAMED_ALONE = {"w6a8", "mxfp8"}
DEFAULT_FORMATS = tuple(word for word in UNITS if word not in NAMED_ALONE)
# What full-precision marks turn a layer in NVFP4 into; the first one is the mark itself.
SENSITIVE_AS = ("w4a16", "w4a8", "int8")
# Formats whose activations may stay 16-bit, or have a scale in the file.
MARKED_FORMATS = {"nvfp4", "fp8"}
# Options that say how activations are quantised, which other formats leave to every call.
FOR_MARKED = re.compile(r"input-scale|full-precision-mm|w4a4-share|pre-quant-scale")
# Values of other options that mean full-precision matmul.
FOR_MARKED_VALUES = ("full_precision_mm", "w4a16")


class Recipe(NamedTuple):
    """Hold the --dtype of a recipe where none is given, and the formats that it may write.

    formats: words, first the one that takes the place of NVFP4; () where other options decide.
    """

    dtype: str
    formats: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Return the word of the least format, "" where other options decide."""
        return self.formats[0] if self.formats else ""


# Working scaled-FP8 models keep float32.
RECIPES = {
    "mixed": Recipe("bfloat16"),
    "fp8": Recipe("bfloat16", ("fp8", UNQUANTISED)),
    "scaled-fp8": Recipe("float32", ("fp8", UNQUANTISED)),
    "int8": Recipe("bfloat16", ("int8", UNQUANTISED)),
    "w4a8": Recipe("bfloat16", ("w4a8", "w6a8", "int8", UNQUANTISED)),
}
# What other options ask for, which --formats and --card have to leave.
ASKING = {
    Other("--fp4-share"): "nvfp4",
    Other("--use-fp8"): "fp8",
    Other("--use-int8"): "int8",
    **{Other("--sensitive-as", word): word for word in SENSITIVE_AS[1:]},
    Other("--sensitive-as", "w4a16"): "nvfp4",
    **{Other("--recipe", name): recipe.format for name, recipe in RECIPES.items() if recipe.format},
}


def format_words(given: str | Iterable[str]) -> tuple[str, ...]:
    """Read words of formats with commas between them, or several such texts.

    Returns each word once, in the order of UNITS: the smallest format first.
    """
    texts = [given] if isinstance(given, str) else given
    words = [word.strip().lower() for text in texts for word in str(text).split(",")]
    for word in words or [""]:
        if word not in UNITS:
            hint = did_you_mean(word, UNITS)
            raise argparse.ArgumentTypeError(f"{word!r} is none of {','.join(UNITS)}{hint}")
    return tuple(word for word in UNITS if word in words)


def formats_of_card(name: str) -> tuple[str, ...]:
    """List what --card stands for: what is fast there, without what has to be named."""
    return tuple(word for word in CARDS[name].fast if word not in NAMED_ALONE)


def leaves_enough(flag: str, value: str | tuple[str, ...], given: GivenOptions) -> str:
    """Refuse --formats or --card that leave nothing to quantise to, or lack what is asked for.

    value: a key of CARDS, or words. A card says nothing where --formats is given, too.
    """
    if flag == "--card":
        if "--formats" in given:
            return ""
        value, flag = formats_of_card(value), f"--card {value}"
    if {*value} <= {UNQUANTISED}:
        return f"{flag} leaves nothing to quantise to: name more than {UNQUANTISED}"
    for other, word in ASKING.items():
        if other.is_in(given) and word not in value:
            hint = "" if flag == "--formats" else "; give --formats to override it"
            return f"{flag} contradicts {other.text}: {word} is not in {','.join(value)}{hint}"
    return "" if MARKED_FORMATS & {*value} else without_marks(flag, given)


def recipe_takes(flag: str, recipe: str, given: GivenOptions) -> str:
    """Refuse marks and input scales beside a recipe whose format has no use for them."""
    has_marks = {RECIPES[recipe].format} <= {"", *MARKED_FORMATS}
    return "" if has_marks else without_marks(f"{flag} {recipe}", given)


def without_marks(flag: str, given: GivenOptions) -> str:
    """Refuse options about activations where all formats measure them on every call.

    flag: what left no other format, as one types it.
    """
    idle = [name for name in given if FOR_MARKED.search(name)]
    idle += [f"{name} {how}" for name, how in given.items() if how in FOR_MARKED_VALUES]
    if not idle:
        return ""
    why = "its layers take neither input scales nor full-precision matmul"
    return f"{flag} contradicts {', '.join(idle)}: {why}"


# ── nvfp4/options/header.py: Tell what the header of a converted file records of the options ──────

# The header of version 0.1.0 tells options in this order; the same command goes on giving the same
# bytes. What is not in here follows, in the table's order, so a new option needs nothing here.
HEADER_ORDER = (
    "gguf", "gguf_nvfp4_max_bitdepth", "gguf_keep_edge_blocks_fp16", "preset", "edge_blocks",
    "layer_config", "target_size", "target_ratio", "use_fp8", "merge_lora", "lora_partial",
    "include", "exclude", "minimums", "recipe", "dtype", "quant_dtype", "scale_search",
    "input_scale_summary_json", "input_scale_summary_percentile", "input_scale_summary_multiplier",
    "input_scale_summary_fp16_std", "input_scale_summary_std_threshold",
    "input_scale_summary_cv_threshold", "activation_stats", "w4a4_share", "pre_quant_scale",
    "input_scale_policy", "input_scale_headroom", "input_scale_from", "input_scale_value",
    "no_input_scale", "input_scale_layer_summary", "full_precision", "fp8_full_precision_mm",
    "full_precision_mm_layers", "full_precision_mm_pattern", "sensitivity_json",
    "sensitivity_threshold", "sensitivity_action", "clip_rate_threshold", "clip_rate_action",
    "plain_fp8", "formats", "card", "use_int8", "sensitive_as", "fp4_share",
)  # fmt: skip


def recorded_values(task: Any) -> dict[str, object]:
    """Tell what the header of OUTPUT records of a task's options: {field: value for JSON}.

    Defaults are left out; of files only the names are told, so equal runs give equal bytes.
    """
    values = {
        row.name: portable(getattr(task, row.name))
        for row in options_of(type(task))
        if row.trace and getattr(task, row.name) != row.default
    }
    # HEADER_ORDER comes first; rows that it lacks keep the table's order behind it.
    order = dict.fromkeys([*HEADER_ORDER, *values])
    return {name: values[name] for name in order if name in values}


def portable(value: object) -> object:
    """Make an option's value one for the header's JSON.

    Paths become file names, so that the header does not depend on the machine, sets become sorted
    lists, and tuples lists.
    """
    # The folder would tell about somebody's machine, and make equal files differ.
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return [*map(portable, value)]
    # A set has no order of its own: two runs could write different bytes.
    return sorted(value) if isinstance(value, frozenset) else value


# ── nvfp4/options/naming.py: Name the file to write where OUTPUT is a folder, or is left out ──────

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
# What a source's name says of its precision, at its end: "_bf16", "-fp8_e4m3fn_scaled".
PRECISION_WORDS = re.compile(
    r"[-_.](?:(?:fp|bf|f)(?:16|32)|b?float(?:16|32)|16bit|fp8(?:_e4m3fn|_e5m2)?(?:_scaled)?)$",
    re.IGNORECASE,
)
# Names of files that thousands of models have; the folder's tells which one it is.
NO_NAMES = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-\d{5})?", re.IGNORECASE)
# Folders inside a model's folder, and what of them tells two models of one folder apart.
INNER_FOLDERS = {
    "transformer": "",
    "unet": "",
    "transformer_2": "_2",
    "high_noise_model": "_high_noise",
    "low_noise_model": "_low_noise",
}


def format_word(options: Any) -> str:
    """Tell in one word what a conversion writes, by its options alone.

    options: an Options that is checked. "mixed" where a GGUF, a layer config or a size decides
    layer by layer; else the format that most layers get: the recipe's, or the smallest of --formats
    or --card.
    """
    if options.gguf or options.layer_config or options.target_size or options.target_ratio:
        return "mixed"
    return RECIPES[options.recipe].format or options.allowed[0]


def source_name(source: Path) -> str:
    """Name a source without its suffix and its precision, as "wan2.2_ti2v_5B".

    A folder, and a file whose name says nothing, are called by the folder's name; one inside a
    model's folder, such as `transformer`, by that of both.
    """
    name = source.name
    for suffix in (INDEX, SUFFIX):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    else:
        name = ""
    if not name or NO_NAMES.fullmatch(name):
        # The folder one is in has its name in its whole path alone.
        folder = (source.parent if name else source).absolute()
        inner = INNER_FOLDERS.get(folder.name)
        name = folder.name if inner is None else folder.parent.name
        return (PRECISION_WORDS.sub("", name) or "model") + (inner or "")
    return PRECISION_WORDS.sub("", name) or name


def is_folder(source: Path) -> bool:
    """Tell whether a source is a folder of shards, named as such or by its index."""
    return source.name.lower().endswith(INDEX) or source.is_dir()


def made_output(options: Any) -> Path:
    """Name the file that a conversion writes where OUTPUT names none.

    options: an Options that is checked, whose output is a folder, or None. Without a folder it is
    the one that a file lies in, or that a folder of shards lies in, so that these stay by
    themselves. Raises ConvertError for a name that is taken: nobody asked to replace that file.
    """
    source, folder = options.source, options.output
    if folder is None:
        folder = source.parent
        if is_folder(source):
            shards = source if source.is_dir() else source.parent
            # The parent of "." is found in its whole path alone.
            folder = shards.parent if shards.name else shards.absolute().parent
    output = folder / f"{source_name(source)}_{format_word(options)}{SUFFIX}"
    taken = options.written_as(output)
    if exists(taken) and not options.dry_run:
        raise ConvertError(f"{taken}: exists already; give OUTPUT as {output} to replace it")
    return output


# ── nvfp4/families.py: Known model families and their presets, as rows of a table ─────────────────

# What stands for the format of 8 bits that a conversion has: INT8, or FP8 where that is asked for.
EIGHT_BITS = "8-bit"
# Transformer blocks that stay 16-bit at each end, unless a family or an option says otherwise.
EDGE_BLOCKS = 2
# Models with a larger share of their linear weights in NVFP4 are known to give noise, Wan and image
# models alike.
MOST_NVFP4 = 0.9


class Keep(NamedTuple):
    """Name layers inside a family's blocks that get more than NVFP4.

    layers: a regular expression that is searched for in their names, without the model's prefix.
    precision: EIGHT_BITS, for which --formats and --card choose the format, or "16-bit".
    why: the reason that the report gives, with the tool or file that does the same.
    """

    layers: str
    precision: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Describe models of one architecture: how to recognise one, and what its preset does.

    title: the family's name for people.
    keys: regular expressions for the beginning of a header's lines, `name [shape]`, without the
        prefix of names. All of them have to be there.
    variants: {name: key}; the first one that is there names the variant in notes.
    blocks: names of the transformer blocks, in rows by the order they run in: edge blocks are at
        the ends of each row.
    beside: names of blocks that have no ends, such as control blocks.
    outside: layers that every whole model of the family has beside its blocks, or one of several
        between bars, as models without a VAE have others: a shard lacks some.
    together: modules that a model has all of or none, as its variants add them.
    edge_blocks: how many blocks stay 16-bit at each end.
    keeps: layers of the blocks that get more than NVFP4; the first that matches wins.
    full_precision: layers that the preset marks for full-precision matmul; "" for none.
    image: whether it makes images, not videos: a note warns where almost all of it is NVFP4.
    """

    title: str
    keys: tuple[str, ...]
    variants: dict[str, str] = field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    edge_blocks: int = EDGE_BLOCKS
    keeps: tuple[Keep, ...] = ()
    full_precision: str = ""
    image: bool = False

    @property
    def inside(self) -> re.Pattern:
        """Compile a pattern for names inside a block; its groups are the block's name and number.

        Block numbers of more than nine digits are hostile, and match nothing.
        """
        names = [*itertools.chain(*self.blocks), *self.beside]
        return re.compile(rf"({'|'.join(map(re.escape, names))})\.(\d{{1,9}})\.")


# What K-quants of llama.cpp give more bits in diffusion models, by names that families share
# (city96/ComfyUI-GGUF, tools/lcpp.patch).
ATTENTION_V = Keep(
    r"\.(v|v_img|to_v|add_v_proj|v_proj|wv|value)$", EIGHT_BITS, "attention V: Q6_K in a Q5_K_M"
)
ATTENTION_QKV = Keep(
    r"\.((img_|txt_)?attn[._](img_attn_|txt_attn_)?qkv|attention\.qkv|(img|txt)_attn_qkv)$",
    EIGHT_BITS,
    "fused attention QKV: Q6_K in a Q5_K_M",
)
DOWN_PROJECTION = Keep(
    r"\.(ffn\.2|net\.2|feed_forward\.w2|mlp\.layer2|mlp\.down_proj|mlp\.w2|fc2)$",
    EIGHT_BITS,
    "feed-forward down projection: Q6_K in a Q5_K_M",
)
# What --preset smart keeps, for models of unknown families.
ONE_STEP_HIGHER = (ATTENTION_V, ATTENTION_QKV, DOWN_PROJECTION)
# Linear layers that compute shift, scale and gate of a block from the time step.
MODULATION = Keep(
    r"(_mod\.(lin|linear)|\.modulation\.(lin|linear))$",
    EIGHT_BITS,
    "modulation reaches every token: 16-bit in sglang's NVFP4 Flux",
)
TEXT_ATTENTION = Keep(
    r"\.txt_attn[._]",
    EIGHT_BITS,
    "text attention: 16-bit in tritant/ComfyUI_Kitchen_nvfp4_Converter",
)
# For Cosmos-Predict2 and Anima, which is built like it.
ADALN_AND_MLP = (
    Keep(
        r"\.adaln_modulation_",
        "16-bit",
        "modulation reaches every token, and is small: 16-bit in bedovyy/comfy-dit-quantizer",
    ),
    Keep(
        r"\.mlp\.|\.v_proj$",
        EIGHT_BITS,
        "MLP and V: FP8 in bedovyy/comfy-dit-quantizer, noise in NVFP4 "
        "(silveroxides/convert_to_quant#41)",
    ),
)
# What the families that are built like Flux have in common.
FLUX_BLOCKS = (("double_blocks", "single_blocks"),)
FLUX_KEY = r"double_blocks\.0\.img_attn\.norm\.key_norm\.(weight|scale) "
# Families are looked for in this order: Flux's keys are in Flux 2 and Chroma as well, so these come
# first. Keys and shapes are as ComfyUI 0.29 reads them (comfy/model_detection.py). What is outside
# the blocks stays 16-bit, as in every tool that these rows name.
FAMILIES = {
    "wan": Family(
        title="Wan",
        keys=(r"head\.modulation ", r"blocks\.0\.ffn\.0\.weight "),
        variants={
            "VACE": r"vace_patch_embedding\.weight ",
            "camera": r"control_adapter\.conv\.weight ",
            "S2V": r"casual_audio_encoder\.encoder\.final_linear\.weight ",
            "HuMo": r"audio_proj\.audio_proj_glob_1\.layer\.bias ",
            "Animate": r"face_adapter\.fuser_blocks\.0\.k_norm\.weight ",
            "I2V": r"(img_emb\.proj\.0\.bias |patch_embedding\.weight \[\d+, 36,)",
            "TI2V": r"patch_embedding\.weight \[\d+, 48,",
            "T2V": r"patch_embedding\.weight \[\d+, 16,",
        },
        blocks=(("blocks",),),
        beside=("vace_blocks",),
        outside=(
            "patch_embedding",
            "text_embedding.0",
            "time_embedding.0",
            "time_projection.1",
            "head.head",
        ),
        together=(
            ("vace_blocks", "vace_patch_embedding"),
            ("face_adapter", "face_encoder", "motion_encoder", "pose_patch_embedding"),
            ("audio_injector", "casual_audio_encoder", "cond_encoder", "trainable_cond_mask"),
            ("music_injector", "music_encoder", "music_projection", "patch_embedding_global"),
            ("audio_proj", "blocks.0.audio_cross_attn_wrapper"),
            ("img_emb", "blocks.0.cross_attn.k_img"),
        ),
        keeps=(
            Keep(r"^vace_blocks\.", EIGHT_BITS, "control blocks: 16-bit in jorismak/convert_nvfp4"),
            ATTENTION_V,
            DOWN_PROJECTION,
        ),
        full_precision=r"\bcross_attn\.",
    ),
    "qwen-image": Family(
        title="Qwen-Image",
        keys=(r"txt_norm\.weight ", r"transformer_blocks\.0\.img_mod\.1\.weight "),
        variants={
            "Edit 2511": r"__index_timestep_zero__ ",
            "Layered": r"time_text_embed\.addition_t_embedding\.weight ",
        },
        blocks=(("transformer_blocks",),),
        outside=(
            "img_in",
            "txt_in",
            "time_text_embed.timestep_embedder.linear_1",
            "norm_out.linear",
            "proj_out",
        ),
        keeps=(
            Keep(
                r"\.(img|txt)_mod\.1$",
                EIGHT_BITS,
                "modulation reaches every token: FP8 in bedovyy/comfy-dit-quantizer",
            ),
            Keep(r"\.txt_mlp\.", EIGHT_BITS, "text MLP: FP8 in bedovyy/comfy-dit-quantizer"),
            ATTENTION_V,
        ),
        image=True,
    ),
    "flux2": Family(
        title="Flux 2",
        keys=(FLUX_KEY, r"double_stream_modulation_img\.lin\.weight "),
        blocks=FLUX_BLOCKS,
        outside=("img_in", "txt_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(
            Keep(TEXT_ATTENTION.layers, "16-bit", "text attention: 16-bit in BFL's own NVFP4 file"),
            ATTENTION_QKV,
        ),
        image=True,
    ),
    "chroma": Family(
        title="Chroma",
        keys=(FLUX_KEY, r"distilled_guidance_layer\.(norms\.0\.|0\.norms\.0\.)"),
        blocks=FLUX_BLOCKS,
        outside=(
            "img_in|img_in_patch",
            "txt_in",
            "final_layer.linear|nerf_final_layer.linear|nerf_final_layer_conv.conv",
        ),
        keeps=(TEXT_ATTENTION, ATTENTION_QKV),
        image=True,
    ),
    "flux": Family(
        title="Flux",
        keys=(FLUX_KEY, r"img_in\.weight "),
        variants={"dev": r"guidance_in\.", "schnell": r"vector_in\."},
        blocks=FLUX_BLOCKS,
        outside=("img_in", "txt_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, TEXT_ATTENTION, ATTENTION_QKV),
        image=True,
    ),
    "z-image": Family(
        title="Z-Image",
        keys=(
            r"(cap_pad_token |cap_embedder\.1\.weight \[3840, )",
            r"noise_refiner\.0\.attention\.k_norm\.weight ",
        ),
        blocks=(("layers",),),
        outside=(
            "x_embedder",
            "cap_embedder.1",
            "t_embedder.mlp.0",
            "final_layer.linear|dec_net.final_layer.linear",
        ),
        keeps=(
            Keep(
                r"\.adaLN_modulation\.",
                "16-bit",
                "modulation reaches every token, and is small: 16-bit in convert-to-quant",
            ),
            Keep(
                r"\.attention\.",
                EIGHT_BITS,
                "attention: pure noise in NVFP4 (silveroxides/convert_to_quant#14)",
            ),
            DOWN_PROJECTION,
        ),
        image=True,
    ),
    "lumina2": Family(
        title="Lumina 2",
        keys=(r"cap_embedder\.1\.weight ", r"noise_refiner\.0\.attention\.k_norm\.weight "),
        blocks=(("layers",),),
        outside=("x_embedder", "cap_embedder.1", "t_embedder.mlp.0", "final_layer.linear"),
        keeps=(ATTENTION_QKV, DOWN_PROJECTION),
        image=True,
    ),
    "ltx2": Family(
        title="LTX-2",
        keys=(
            r"adaln_single\.emb\.timestep_embedder\.linear_1\.bias ",
            r"audio_adaln_single\.linear\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("patchify_proj", "audio_patchify_proj", "adaln_single.linear", "proj_out"),
        keeps=(
            Keep(r"\.to_gate_logits$", "16-bit", "gates: 16-bit in convert-to-quant"),
            ATTENTION_V,
            DOWN_PROJECTION,
        ),
    ),
    "ltx-video": Family(
        title="LTX-Video",
        keys=(
            r"adaln_single\.emb\.timestep_embedder\.linear_1\.bias ",
            r"transformer_blocks\.0\.attn2\.to_k\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("patchify_proj", "adaln_single.linear", "proj_out"),
        keeps=(ATTENTION_V, DOWN_PROJECTION),
    ),
    "hunyuan-video": Family(
        title="Hunyuan Video",
        keys=(r"txt_in\.individual_token_refiner\.blocks\.0\.norm1\.weight ",),
        variants={"1.5": r"cond_type_embedding\.weight "},
        blocks=FLUX_BLOCKS,
        outside=("img_in.proj", "txt_in.input_embedder", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, ATTENTION_QKV),
    ),
    "anima": Family(
        title="Anima",
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"llm_adapter\.blocks\.0\.cross_attn\.q_proj\."),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
        image=True,
    ),
    "cosmos-predict2": Family(
        title="Cosmos-Predict2",
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"x_embedder\.proj\.1\.weight "),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
    ),
}
# For a model that is of no family: its blocks may have any of the usual names.
ANY_FAMILY = Family(
    title="unknown",
    keys=(),
    blocks=(("blocks", "transformer_blocks", "double_blocks", "single_blocks", "layers"),),
    edge_blocks=0,
)
# All names of blocks, each once, for reports that group layers by block.
TRANSFORMER_BLOCKS = tuple(
    dict.fromkeys(
        name
        for family in (ANY_FAMILY, *FAMILIES.values())
        for name in (*itertools.chain(*family.blocks), *family.beside)
    )
)


def model_prefixes(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Find the prefixes behind which the names of a file are those of a known family.

    shapes: {name: shape}. Returns them in sorted order, "" for names without prefix; [] where no
    family is recognised.
    """
    header, found = header_text(shapes), set()
    for family in FAMILIES.values():
        first, *others = family.keys
        # Prefixes of more than six parts are hostile.
        matches = re.finditer(rf"^((?:[\w-]+\.){{0,6}}?){first}", header, re.MULTILINE)
        for prefix in {match[1] for match in matches}:
            keys = (rf"^{re.escape(prefix)}{key}" for key in others)
            if all(re.search(key, header, re.MULTILINE) for key in keys):
                found.add(prefix)
    return sorted(found)


def recognise(model: Model) -> tuple[str, str]:
    """Find the model's row in FAMILIES: its name, and the variant's; each "" if there is none.

    Only names and shapes are looked at.
    """
    # One line for each tensor, so that a key may match name and shape together.
    header = header_text({bare(ref.name): ref.shape for ref in model.tensors.values()})

    def there(key: str) -> bool:
        return re.search(rf"^{key}", header, re.MULTILINE) is not None

    for name, family in FAMILIES.items():
        if all(map(there, family.keys)):
            return name, next((kind for kind, key in family.variants.items() if there(key)), "")
    return "", ""


# Presets for models of any family, with their lines in --list-presets.
GENERAL_PRESETS = {
    "auto": "the family that the source is recognised as (default)",
    "smart": "any model by its structure: 16-bit outside the repeated blocks, 8-bit for attention "
    "V and feed-forward down projections, NVFP4 for the rest of the blocks",
    "all": "NVFP4 for every linear layer that ComfyUI does not recognise a model by",
    "none": "nothing but what --include names",
}
# What --preset takes, "auto" first; `--help` lists them in this order.
PRESETS = ("auto", *FAMILIES, *list(GENERAL_PRESETS)[1:])


# ── nvfp4/options/switches.py: The switches for layers of one kind, which are sets in the options t

# Switches that mark layers of one kind for full-precision matmul (W4A16).
FULL_PRECISION_OPTIONS = {
    "--full-precision-mm": LayerSwitch(r"", "every quantised layer"),
    "--full-precision-mm-cross-attn-kv": LayerSwitch(
        r"\bcross_attn\.[kv](_img)?$", "cross-attention k and v"
    ),
    "--full-precision-mm-cross-attn-qkvo": LayerSwitch(
        r"\bcross_attn\.([qo]|[kv](_img)?)$", "cross-attention q, k, v and o"
    ),
    "--full-precision-mm-self-attn-qkvo": LayerSwitch(
        r"\bself_attn\.[qkvo]$", "self-attention q, k, v and o"
    ),
    "--full-precision-mm-ffn-up": LayerSwitch(r"\bffn\.0$", "feed-forward up projections"),
    "--full-precision-mm-ffn-down": LayerSwitch(r"\bffn\.2$", "feed-forward down projections"),
}
# Switches that raise layers of one kind to a least precision.
MINIMUM_OPTIONS = {
    "--min-ffn-fp8": LayerSwitch(
        r"\bffn\.[02]$", "feed-forward layers are at least FP8, or INT8", EIGHT_BITS
    ),
    "--min-ffn2-fp16": LayerSwitch(
        r"\bffn\.2$", "feed-forward down projections are at least 16-bit", "16-bit"
    ),
}


# ── nvfp4/options/table.py: The options table: one row for each option, in the order of `--help` ──

__version__ = "0.1.0"
# What notes and reasons call both --target-size and --target-ratio.
TARGET = "--target-size"
# Encoded bytes that may wait for the writer, unless --low-mem is given. Encoding goes on meanwhile
# when the disk is slow; the bytes count towards the peak of memory.
WRITE_AHEAD = 96 << 20
# The recipe whose layers have no configuration: one marker tensor tells of all.
LEGACY_RECIPE = "scaled-fp8"
# Files that have to cover the source, unless --partial-guide is given.
GUIDE_OPTIONS = (
    "--gguf", "--input-scale-from", "--input-scale-summary-json", "--activation-stats",
    "--sensitivity-json", "--full-precision-mm-layers",
)  # fmt: skip
# Suffixes that --report takes; report/texts.py has a renderer for each.
REPORT_KINDS = (".json", ".html")

# Headings of the groups in `--help` and in the README, in this order.
GENERAL = "general"
PRECISION = "precision"
INPUT_SCALES = "input scales (file before recording before summary before value)"
STATISTICS = "activation statistics"
SENSITIVITY = "sensitivity"
FULL_PRECISION = "full-precision matmul (W4A16 instead of W4A4)"

# Kinds of values that only rows of this table have.
DTYPE = Kind(choices=tuple(DTYPE_OPTIONS))
ACTION = Kind(choices=("fp16", "full_precision_mm"))
# What needs statistics of a layer's inputs excludes the search that looks at weights alone.
AMAX = Other("--scale-search", "amax", ", which uses no statistics")


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Describe one conversion: the options table, whose rows are fields named as their flags.

    Two fields collect switches, by their names: `minimums` ("--min-...") and `full_precision`
    ("--full-precision-mm..."). Text is welcome as the command line takes it: for paths, sizes,
    LoRAs. Raises ConvertError where a value is not allowed, where options contradict each other,
    or where one does nothing without another.
    """

    # A row for each option, formatted by hand, as a table that is read from top to bottom.
    # fmt: off
    # The header has the source's files instead: a folder's name changes with the machine.
    source: Path = option(MISSING, "", Kind(input_path),
        "*.safetensors.index.json, the folder it is in, or one .safetensors",
        flag="SOURCE", check=original_only, reads=True, trace=False,
        everyday="a 16-bit model: .safetensors, index, or folder of it")
    # None and a folder stand for a name that is made, until the task is checked.
    output: Path | None = option(None, "", Kind(input_path),
        "the .safetensors file to write; or a folder for it, or nothing for beside SOURCE (beside "
        "the folder of shards): then its name is SOURCE's with the format at its end, as in "
        "wan_nvfp4.safetensors, or _mixed where a GGUF, a layer config or a size decides",
        flag="OUTPUT", check=model_name, trace=False,
        everyday="file or folder to write to; left out: beside SOURCE")
    make_folder: bool = option(False, GENERAL, SWITCH,
        "create the folders of OUTPUT and of --report and --layer-config-out if they are missing",
        trace=False)

    recipe: str = option("mixed", GENERAL, Kind(choices=tuple(RECIPES)),
        "mixed; fp8, int8 or w4a8: that for all that would be NVFP4; scaled-fp8: FP8 as files of "
        "the older kind have it, with scale_weight and the rest in float32 (default: {default})",
        check=recipe_takes)
    # None stands for the recipe's own until the task is checked.
    dtype: str | None = option(None, GENERAL, DTYPE,
        "of tensors that are not quantised (default: bfloat16; scaled-fp8: float32; --card turing, "
        "which has no bfloat16: float16)")
    quant_dtype: str = option("float32", GENERAL, DTYPE,
        "what weights are cast to before they are quantised (default: {default})")
    scale_search: str = option("mse", GENERAL, Kind(choices=("mse", "amax")),
        "block scales by least squared error, or from each block's largest weight "
        "(default: {default})",
        aliases=(Alias("--use-ck-quant", "amax", "another name for --scale-search amax",
                       conflicts=(Other("--scale-search"),)),))
    # LoRAs are merged before layers are measured, so they change precisions by --target-size, too.
    merge_lora: tuple[Lora, ...] = option(
        (), GENERAL, Kind(lora_file, "FILE[:STRENGTH]", repeatable=True),
        "merge a LoRA, LoHa, LoKr or DoRA in float32 before quantising (repeatable)", reads=True,
        everyday="merge a LoRA before quantising")
    lora_partial: bool = option(False, GENERAL, SWITCH,
        "... and count what of it is of no tensor of the model", needs=["--merge-lora"])
    plain_fp8: bool = option(False, GENERAL, SWITCH,
        "convert a SOURCE whose FP8 has no scales, although the cast has lost some 3 %")
    report: Path | None = option(None, GENERAL, FILE,
        "the plan, its reasons and every layer's error as data (.json) or a page (.html)",
        check=must_end_in(*REPORT_KINDS), trace=False, writes=True,
        everyday="write what was done as a page (.html) or data (.json)")
    comfyui: Path | None = option(None, GENERAL, FOLDER,
        "your ComfyUI's folder: ask it first whether it takes the file (default: COMFYUI_ROOT)",
        trace=False,
        everyday="your ComfyUI's folder: ask it first what it takes")
    device: str = option("auto", GENERAL, Kind(device_name, "{auto,cpu,cuda,cuda:N}"),
        "where to compute (default: {default}, a GPU if there is one)", trace=False)
    # From here to --quiet it is told how a conversion runs, and into which files; no tensor depends
    # on that, so the header has none of it.
    low_mem: bool = option(False, GENERAL, SWITCH, "read one tensor at a time, none ahead",
        trace=False)
    resume: bool = option(False, GENERAL, SWITCH,
        "go on where a run of the same command was stopped; keep what this one does if it is",
        trace=False,
        everyday="go on where the same command was stopped")
    output_sharded: bool = option(False, GENERAL, SWITCH,
        "write OUTPUT's name-00001-of-0000N.safetensors, and OUTPUT.index.json", trace=False)
    max_shard_size: int = option("5GB", GENERAL, SIZE,
        "bytes of tensors in a shard at most: 5GB, 500MB, 4GiB ... (default: {default})",
        needs=["--output-sharded"], check=large_enough, trace=False)
    dry_run: bool = option(False, GENERAL, SWITCH,
        "print the plan, its reasons, the exact size, and all that a run would refuse but NaN in "
        "weights; write no model", trace=False,
        everyday="print the plan, the exact size; write no model")
    verbose: bool = option(False, GENERAL, SWITCH, "print the plan of every single tensor",
        trace=False)
    quiet: bool = option(False, GENERAL, SWITCH, "no progress on stderr",
        conflicts=["--verbose"], trace=False)

    gguf: Path | None = option(None, PRECISION, FILE,
        "a GGUF of the same model: its types choose the precisions",
        conflicts=["--preset", "--mode"], reads=True,
        everyday="take precisions from a GGUF of the same model")
    # None stands for auto until the task is checked, or for the GGUF, if there is one.
    preset: str | None = option(
        None, PRECISION, Kind(metavar="NAME", choices=PRESETS),
        "without a GGUF: auto, a family's name, smart (unknown models, by their structure), "
        "all (every linear layer), none (what --include names); --list-presets prints what "
        "each does (default: auto)",
        check=none_needs_include, conflicts=["--mode"],
        aliases=(Alias("--mode", {"safe": "auto", "all": "all"},
                       "another name for --preset: safe is auto, all is all"),))
    edge_blocks: int | None = option(None, PRECISION, NATURAL,
        "the first and last N transformer blocks stay 16-bit (default: the preset's own)")
    target_size: int | None = option(None, PRECISION, SIZE,
        "measure every layer, and raise or lower precisions by what they gain for their bytes "
        "until the file is just smaller: 8GB, 7500MB, 7GiB", conflicts=["--target-ratio"],
        everyday="choose precisions for a file of this size: 8GB")
    target_ratio: float | None = option(None, PRECISION, SHARE,
        "the same with a share of the source's size: 0.35")
    fp4_share: float | None = option(None, PRECISION, SHARE,
        "the share of the multiply work that --target-size leaves in W4A4, which is fastest on "
        "Blackwell: 0.5",
        needs=["--target-size", "--target-ratio"], conflicts=["--w4a4-share"])
    formats: tuple[str, ...] | None = option(None, PRECISION, Kind(format_words, "LIST"),
        "what presets and --target-size may choose from; the smallest of them takes the place of "
        f"NVFP4, with a GGUF, too: {','.join(DEFAULT_FORMATS)} (the default), w6a8 and mxfp8",
        check=leaves_enough)
    card: str | None = option(None, PRECISION, Kind(choices=tuple(CARDS), told=CARD_NAMES),
        f"the card it is for ({CARD_NAMES}): sets --formats to what multiplies fast there, "
        "unless that is given; the summary's shares and speed are for it", check=leaves_enough,
        everyday="blackwell, ada, ampere, turing or rdna")
    layer_config: Path | None = option(None, PRECISION, FILE,
        "a .json of layer names or patterns: format, full-precision matmul, input scale",
        reads=True)
    # A layer config has no place for scaled channels, so a plan that has them cannot be replayed.
    layer_config_out: Path | None = option(None, PRECISION, FILE,
        "write the plan as such a file, to edit and to replay",
        conflicts=["--pre-quant-scale"], check=must_end_in(".json"), trace=False, writes=True)
    gguf_nvfp4_max_bitdepth: int = option(4, PRECISION, Kind(natural, "BITS"),
        "GGUF types of up to this many bits become NVFP4 (default: {default})", needs=["--gguf"])
    gguf_keep_edge_blocks_fp16: bool = option(False, PRECISION, SWITCH,
        "the first and last two transformer blocks stay 16-bit",
        conflicts=["--edge-blocks"], needs=["--gguf"])
    use_fp8: bool = option(False, PRECISION, SWITCH,
        "GGUF types of more bits become FP8 instead of 16-bit", needs=["--gguf"],
        conflicts=[Other("--recipe", "int8"), Other("--recipe", "w4a8")])
    use_int8: bool = option(False, PRECISION, SWITCH,
        "GGUF types of more bits, and shapes without FP4 matmul, become INT8: half of FP8's error "
        "without any input scale", needs=["--gguf"],
        conflicts=["--use-fp8", Other("--recipe", "fp8"), Other("--recipe", "scaled-fp8")])
    partial_guide: bool = option(False, PRECISION, SWITCH,
        "go on with guides that cover only a part of the model, and note which",
        needs=GUIDE_OPTIONS, trace=False)
    exclude: tuple[str, ...] = option((), PRECISION, REGEXES,
        "layers to keep 16-bit (repeatable, case-insensitive)")
    include: tuple[str, ...] = option((), PRECISION, REGEXES,
        "layers to make NVFP4 (repeatable, case-insensitive)")
    minimums: frozenset[str] = option(frozenset(), PRECISION, SWITCH, switches=MINIMUM_OPTIONS)

    input_scale_summary_json: Path | None = option(None, INPUT_SCALES, SUMMARY,
        "calibration summary; also looked for in calib/ beside this script", reads=True)
    input_scale_summary_percentile: float = option(99.9, INPUT_SCALES, Kind(percentile, "P"),
        "percentile over calls of each call's largest activation (default: {default})",
        needs=["--input-scale-summary-json"])
    input_scale_summary_multiplier: float = option(1.0, INPUT_SCALES, Kind(positive_float, "X"),
        "margin on the summary's scales (default: {default})",
        needs=["--input-scale-summary-json"])
    input_scale_summary_fp16_std: bool = option(False, INPUT_SCALES, SWITCH,
        "layers whose scale varies from call to call stay 16-bit, by the next two thresholds",
        needs=["--input-scale-summary-json"])
    input_scale_summary_std_threshold: float | None = option(
        None, INPUT_SCALES, Kind(positive_float, "STD"),
        "... from this deviation up (default: that of nine tenths of the layers)",
        needs=["--input-scale-summary-fp16-std"])
    input_scale_summary_cv_threshold: float = option(0.4, INPUT_SCALES, Kind(positive_float, "CV"),
        "... or from this deviation over the mean up (default: {default})",
        needs=["--input-scale-summary-fp16-std"])
    input_scale_policy: str = option(
        "percentile", INPUT_SCALES, Kind(choices=("percentile", "headroom")),
        "from the summary, or the largest value in --activation-stats with a margin "
        "(default: {default})", needs=["--activation-stats"])
    input_scale_headroom: float = option(2.0, INPUT_SCALES, Kind(margin, "X"),
        "that margin, less where small blocks would become subnormal (default: {default})",
        needs=[Other("--input-scale-policy", "headroom")])
    input_scale_from: Path | None = option(None, INPUT_SCALES, FILE,
        "copy input scales from a quantised .safetensors", reads=True)
    input_scale_value: float | None = option(None, INPUT_SCALES, Kind(positive_float, "SCALE"),
        "NVFP4 input scale of every layer that has no other")
    # Contradicts all options that would bake input scales.
    no_input_scale: bool = option(False, INPUT_SCALES, SWITCH,
        "bake none: ComfyUI measures on every call (for calibration)",
        conflicts=["--input-scale-summary-json", "--input-scale-from", "--input-scale-value",
                   "--input-scale-layer-summary", "--input-scale-policy"])
    input_scale_layer_summary: bool = option(False, INPUT_SCALES, SWITCH,
        "print every quantised layer's input scale")

    activation_stats: tuple[Path, ...] = option(
        (), STATISTICS, FILE._replace(repeatable=True),
        "what the ComfyUI recorder in calib/ wrote (repeatable, adds up): counts what scales "
        "clip; with second moments in it, weights are rounded to the least output error",
        reads=True)
    w4a4_share: float | None = option(None, STATISTICS, SHARE,
        "mark layers for full-precision matmul, those first that it gains most, until this "
        "share of the multiply work is left in W4A4: 0.6",
        conflicts=[AMAX], needs=["--activation-stats"])
    pre_quant_scale: bool = option(False, STATISTICS, SWITCH,
        "scale the channels of W4A4 layers where it lowers their output error by 5 % or more; "
        "ComfyUI after 0.29 only, and not for LoRAs",
        conflicts=[AMAX], needs=["--activation-stats"])

    # The file alone does nothing: it needs a threshold, and each threshold needs the file.
    sensitivity_json: Path | None = option(None, SENSITIVITY, FILE,
        "layers' rel_rmse and clip_rate means (.json), or a recording (.safetensors)",
        needs=["--sensitivity-threshold", "--clip-rate-threshold"], reads=True)
    sensitivity_threshold: float | None = option(None, SENSITIVITY, Kind(positive_float, "X"),
        "for layers whose inputs lose more than this rel_rmse in NVFP4, ...",
        needs=["--sensitivity-json"])
    sensitivity_action: str = option("fp16", SENSITIVITY, ACTION,
        "... do this (default: {default})", needs=["--sensitivity-threshold"])
    clip_rate_threshold: float | None = option(None, SENSITIVITY, Kind(positive_float, "X"),
        "for layers that clip more than this share of their input, ...",
        needs=["--sensitivity-json"])
    clip_rate_action: str = option("fp16", SENSITIVITY, ACTION,
        "... do this (default: {default})", needs=["--clip-rate-threshold"])

    full_precision_mm_layers: Path | None = option(None, FULL_PRECISION, LAYER_LIST,
        "layer names, one a line; also looked for in sensitive_layers/ beside this script",
        reads=True)
    full_precision_mm_pattern: tuple[str, ...] = option((), FULL_PRECISION, REGEXES,
        "matching layers (repeatable, case-insensitive)")
    fp8_full_precision_mm: bool = option(False, FULL_PRECISION, SWITCH,
        "every FP8 layer; for --recipe scaled-fp8 this is the size of its marker tensor",
        conflicts=[Other("--use-int8", why=", which makes INT8 of these")])
    full_precision: frozenset[str] = option(frozenset(), FULL_PRECISION, SWITCH,
        switches=FULL_PRECISION_OPTIONS)
    # None stands for w4a16, and in what a preset marks for w4a8: see `plan.choosing`.
    sensitive_as: str | None = option(None, FULL_PRECISION, Kind(choices=SENSITIVE_AS),
        "what NVFP4 layers become that options, lists, sensitivities or --w4a4-share mark; a "
        "--layer-config's stay as written (default: w4a16; those that presets mark: w4a8)",
        check=grows_not)
    # fmt: on

    def __post_init__(self) -> None:
        check_task(self)
        # Two defaults depend on other options: None stands for them until here.
        if self.dtype is None:
            dtype = RECIPES[self.recipe].dtype
            if dtype == "bfloat16" and self.card:
                dtype = CARDS[self.card].half
            object.__setattr__(self, "dtype", dtype)
        if self.preset is None and self.gguf is None:
            object.__setattr__(self, "preset", "auto")
        if self.output is None or not is_model_file(self.output):
            object.__setattr__(self, "output", made_output(self))

    def target(self, model: Model) -> int:
        """Tell how many bytes OUTPUT may have by --target-size or --target-ratio; 0 without these.

        model: the source, of whose tensors the ratio is a share, headers left out.
        """
        return self.target_size or int((self.target_ratio or 0) * model.nbytes)

    @property
    def allowed(self) -> tuple[str, ...]:
        """List the words of the formats that may be chosen: by --formats, else by --card.

        A recipe leaves of them those that it writes.
        """
        words = self.formats or (formats_of_card(self.card) if self.card else DEFAULT_FORMATS)
        written = RECIPES[self.recipe].formats
        return tuple(word for word in words if word in written) if written else words

    @property
    def has_family(self) -> bool:
        """Tell whether a family's rows decide: not with a GGUF, nor with preset all or none."""
        return self.preset not in (None, "all", "none")

    @property
    def eight_bits(self) -> tuple[str, ...]:
        """List the 8-bit formats by their words, that first which layers get for 8 bits.

        That is FP8 beside a GGUF, unless --use-int8 asks for INT8. Not all of them may be allowed.
        """
        is_fp8 = self.gguf and not self.use_int8
        return ("fp8", "int8", "mxfp8") if is_fp8 else ("int8", "mxfp8", "fp8")

    @property
    def written(self) -> Path:
        """Name the file that a person loads: OUTPUT, or the index of its shards beside it."""
        return self.written_as(self.output)

    def written_as(self, output: Path) -> Path:
        """Name the file that a person would load if OUTPUT were this."""
        index = output.with_name(output.name + ".index.json")
        return index if self.output_sharded else output

    @property
    def buffers(self) -> int:
        """Count the read buffers: one that is worked on, and one that is filled meanwhile.

        With --low-mem there is one, and nothing is read ahead.
        """
        return 1 if self.low_mem else 2

    @property
    def ahead(self) -> int:
        """Tell how many encoded bytes may wait to be written; none with --low-mem."""
        return 0 if self.low_mem else WRITE_AHEAD

    @property
    def inputs(self) -> tuple[Path, ...]:
        """List the files that options name as inputs, which OUTPUT must not overwrite.

        They are in the order of the rows. Of SOURCE, this is the path as given: an index's shards
        are in the model's `files`.
        """
        rows = [row for row in options_of(type(self)) if row.reads]
        return tuple(path for row in rows for path in paths_of(getattr(self, row.name)))

    @property
    def texts(self) -> tuple[Path, ...]:
        """List the text files to write beside the model: the report, the layer config."""
        rows = [row for row in options_of(type(self)) if row.writes]
        return tuple(path for row in rows for path in paths_of(getattr(self, row.name)))

    @property
    def recorded(self) -> dict[str, object]:
        """Tell what the header of OUTPUT records of the options: {field: value for JSON}."""
        return recorded_values(self)


# ── nvfp4/options/tasks.py: The tasks beside a conversion, and the rows of all tasks ──────────────

# The heading of these options in `--help` and in the README.
VERIFY = "verify (instead of converting)"


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Describe one check of a file, `--verify FILE`, against its source or without.

    Its fields are the options that go with it, some of them rows of `Options`. Raises ConvertError
    as `Options` does.
    """

    # fmt: off
    file: Path = option(MISSING, VERIFY, FILE,
        "name every defect of a quantised file and what ComfyUI does about it", flag="--verify",
        everyday="check a quantised file: its defects, what to do")
    source: Path | None = option(None, VERIFY, FILE,
        "the model it was made from: decode everything and measure each layer's error")
    merge_lora: tuple[Lora, ...] = same_option(
        Options, "merge_lora", needs=[Other("--source", why=" to verify against")])
    lora_partial: bool = same_option(Options, "lora_partial")
    comfyui: Path | None = same_option(Options, "comfyui")
    quiet: bool = same_option(Options, "quiet")
    # fmt: on

    def __post_init__(self) -> None:
        check_task(self)


# What is done instead of a conversion where the first row of one of these is given.
OTHER_TASKS = (Verification,)
# All rows, in the order of `--help`.
OPTIONS = tuple(all_options(Options, *OTHER_TASKS))


# ── nvfp4/cli/arguments.py: Parse the command lines of all programs in one way ────────────────────

# The commands of an installed package, by the scripts that do the same in a checkout.
INSTALLED_COMMANDS = {
    "convert_nvfp4.py": "convert-nvfp4",
    "compare_models.py": "nvfp4-compare",
    "analyze_input_scale_log.py": "nvfp4-analyze",
}


def called_as(script: str) -> str:
    """Name a program as it was started: by its installed command, else by its script."""
    command = INSTALLED_COMMANDS[script]
    return command if Path(sys.argv[0]).stem == command else script


def called_beside(script: str) -> str:
    """Name another program of this package in the way in which this one was started."""
    installed = Path(sys.argv[0]).stem in INSTALLED_COMMANDS.values()
    return INSTALLED_COMMANDS[script] if installed else f"python {script}"


class ArgumentReader(argparse.ArgumentParser):
    """Read a command line: --version, no abbreviations, and what an unknown option may stand for.

    script: the program's script in a checkout, a key of INSTALLED_COMMANDS. The description is
    printed as it is. An option that is added later would change what a script's short form means.
    short_help: what `-h` prints; "" for all that `--help` does.
    """

    def __init__(self, script: str, description: str, short_help: str = "", **facts: object):
        super().__init__(
            prog=called_as(script),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=not short_help,
            **facts,
        )
        if short_help:
            # argparse's "version" action prints any text and exits.
            short = {"action": "version", "version": short_help}
            self.add_argument("-h", **short, help="the everyday options")
            self.add_argument("--help", action="help", help="all options")
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Read the words, or those of the process; unknown ones are told, and end it with 2."""
        found, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return found

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process; the message of an error begins as those of all errors do."""
        name, error, rest = (message or "").partition("error: ")
        super().exit(status, f"{name}{coloured(error + rest, sys.stderr)}" or None)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Print one line on the words that nothing takes, and exit with 2."""
        known = [flag for action in self._actions for flag in action.option_strings]
        words = [word.partition("=")[0] for word in unknown if word.startswith(tuple(DASHES))]
        hints = dict.fromkeys(did_you_mean(word, known) for word in words)
        self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")


# ── nvfp4/cli/description.py: The text of `--help` before the options, of `-h`, and of `--list-pres

# Lines are at most 100 characters, as argparse prints them unchanged.
DESCRIPTION = """\
Convert a large diffusion transformer to one mixed-precision NVFP4 file that ComfyUI loads.

NVFP4 stores a weight in 4 bits plus one 8-bit scale per 16 weights: a third of the memory of
16-bit, and twice the speed on Blackwell cards. Not every layer survives it. This tool follows
the choices of a good GGUF quantiser: what it spent few bits on becomes NVFP4, what it spent more
on becomes FP8 or INT8, or stays 16-bit; without a GGUF, the model's family decides. Other cards
multiply W4A8, W6A8 and INT8 fast, which --card, --formats and --recipe choose from. It reads
sharded safetensors tensor by tensor and writes one file, which gets its name only once it is
complete and checked.

How a tensor's precision is chosen (first that applies wins, floors last):
  1. --exclude keeps 16-bit; --include makes NVFP4; then --layer-config and --target-size
  2. edge blocks: the first and last transformer blocks stay 16-bit, --edge-blocks N of them
  3. the GGUF's type: F32 -> float32, F16/BF16 -> --dtype, up to --gguf-nvfp4-max-bitdepth bits
     -> NVFP4, more -> FP8 with --use-fp8, INT8 with --use-int8, else --dtype
  4. without a GGUF the model family's row: --preset, --list-presets. Most layers are NVFP4, those
     that need 8 bits INT8, those that 4-bit inputs harm W4A8, as far as --formats or --card allow
  5. floors: --recipe, the least of --formats, --min-ffn-fp8, --min-ffn2-fp16, marks with
     --sensitive-as w4a8 or int8, layers ComfyUI recognises a model by, shapes that Blackwell cannot
     multiply in FP4, anything that is not a linear layer's weight
  A weight whose columns are no multiple of 256 is INT8 without rotation instead of W4A8 or W6A8.

How a weight is rounded: to the least error of itself, or with --activation-stats, where the layer's
input was recorded with second moments, to the least error of the layer's output.

What is stored for a layer of each format, tensor by tensor: docs/file-format.md.

Wan 2.2, the documented command lines (one line each; high noise is the same with its own files):
  I2V 14B  convert_nvfp4.py SRC.safetensors.index.json OUT.safetensors
             --gguf Wan2.2-I2V-A14B-lowNoise-Q5_K_M.gguf --gguf-nvfp4-max-bitdepth 5 --use-fp8
             --low-mem --gguf-keep-edge-blocks-fp16 --quant-dtype float32 --dtype float16
             --input-scale-summary-json scales_summary_wan22_14b_lownoise.json
             --input-scale-summary-percentile 99.9 --input-scale-summary-multiplier 1.08
             --full-precision-mm-layers sensitive_layers_wan22_i2v_14b_low.txt
             --full-precision-mm-cross-attn-qkvo
  TI2V 5B  the same with its own files and without --use-fp8
  to calibrate  leave out all input-scale, full-precision and FP8 options; add --no-input-scale
"""


# What `-h` prints around the everyday options; with these, lines are at most 80 characters.
EVERYDAY_HEAD = """\
usage: %(prog)s SOURCE [OUTPUT] [options]

Convert a 16-bit diffusion model to 4- and 8-bit formats that ComfyUI multiplies
in: %(prog)s wan2.2_ti2v_5B_fp16.safetensors
"""
EVERYDAY_TAIL = """
All options: %(prog)s --help. One page for each question: docs/README.md"""
# Columns of an option and its value in `-h`.
EVERYDAY_WIDTH = 22

# Which layers outside the blocks are not settled.
OPEN_TEXT = (
    "--target-size and --target-ratio may lower layers outside the blocks that the text alone goes "
    "through; errors of the others are in every token."
)
# How --formats, --card and --sensitive-as change what rows of families say.
BY_FORMATS = (
    "8-bit is INT8, or FP8 where --formats has no int8; NVFP4 is W4A8 or the next larger one where "
    "--formats or --card has no nvfp4.",
    "W4A8 is INT8 where --formats has no w4a8, else NVFP4 with 16-bit matmul (W4A16), as with "
    "--sensitive-as w4a16.",
)


def render_everyday(rows: Iterable[Option]) -> str:
    """Write what `-h` prints: a line for each row that is everyday, and where the rest is."""
    lines = [EVERYDAY_HEAD]
    for row in rows:
        if row.everyday:
            # FILE[:STRENGTH] is FILE here, and choices have the option's own name.
            value = row.kind.metavar.partition("[")[0] or row.name.upper() * bool(row.kind.choices)
            shown = f"{row.flag} {value}" if row.group else row.flag
            lines.append(f"  {shown:{EVERYDAY_WIDTH}}  {row.everyday}")
    return "\n".join([*lines, EVERYDAY_TAIL])


def render_presets() -> str:
    """Write what `--list-presets` prints: each family's row, then the presets for any model.

    A family has a line for each choice its preset makes, with the reason in brackets. Returns the
    text without a line break at its end.
    """
    lines = []
    for name, family in FAMILIES.items():
        # Blocks of several names run one after another, as double_blocks.N then single_blocks.N.
        runs = " then ".join(f"{block}.N" for block in itertools.chain(*family.blocks))
        ends = f"the first and last {family.edge_blocks} blocks" if family.edge_blocks else ""
        lines += [f"{name}: {family.title}, in {runs}"]
        lines += [f"  16-bit  {ends}, and what is outside the blocks"]
        for keep in family.keeps:
            lines.append(f"  {keep.precision:7} {keep.layers}  ({keep.why})")
        lines += ["  NVFP4   the other linear layers of the blocks"]
        if family.full_precision:
            lines += [f"  W4A8    {family.full_precision}  (of what else is NVFP4)"]
    lines += [f"{name}: {text}" for name, text in GENERAL_PRESETS.items()]
    return "\n".join([*lines, OPEN_TEXT, *BY_FORMATS])


# ── nvfp4/cli/parse.py: Read the command line: a parser made of the options table ─────────────────

# How a conversion and a check are asked for.
USAGE = """%(prog)s SOURCE [OUTPUT] [options]
       %(prog)s SOURCE SOURCE ... FOLDER [options]
       %(prog)s --verify FILE [--source SOURCE]"""


def build_parser(rows: Iterable[Option] = OPTIONS) -> ArgumentReader:
    """Make a parser that gives {flag: value}, and None for what is not named.

    Defaults are not argparse's business: what was named has to be known, as some options exclude or
    need others. Rows come in groups by their headings. SOURCE may be missing here, as `--verify`
    goes without, and OUTPUT is a list: of several models, all but the first and the folder at its
    end.
    """
    rows = [*rows]
    parser = ArgumentReader(
        "convert_nvfp4.py", DESCRIPTION, usage=USAGE, short_help=render_everyday(rows)
    )
    # argparse's "version" action prints any text and exits.
    presets = {"action": "version", "version": render_presets()}
    parser.add_argument("--list-presets", **presets, help="what each preset does, and why")
    groups = {"": parser}
    for row in rows:
        if row.group not in groups:
            groups[row.group] = parser.add_argument_group(row.group)
        for flag, kind, text in row.arguments:
            # Values are kept by flag, not by argparse's own name for it, for messages use flags.
            how = {"dest": flag} if flag.startswith("-") else {"nargs": "*?"[flag == "SOURCE"]}
            # argparse formats help texts with %.
            text = text.replace("%", "%%")
            groups[row.group].add_argument(flag, default=None, help=text, **how, **kind.keywords)
    return parser


def parse_tasks(
    argv: list[str] | None = None, conversion: type[Options] = Options
) -> tuple[Options | Verification, ...]:
    """Make the tasks of the command line: one, or a conversion for each of several models.

    argv: the arguments without the program's name; those of the process if None.
    conversion: the class of a conversion's options, which a test may extend by rows.

    Returns instances of it, or one of OTHER_TASKS. A wrong value, a contradiction or a missing
    companion option prints one line and exits with 2.
    """
    parser = build_parser(all_options(conversion, *OTHER_TASKS))
    named = vars(parser.parse_args(argv)).items()
    given = {flag: value for flag, value in named if value not in (None, [])}
    # A long dash that a web page made of two is a place to argparse.
    places = [str(place) for place in given.get("OUTPUT", ())]
    if dashed := [place for place in places if place.startswith(tuple(DASHES))]:
        parser.refuse(dashed)
    task = next((one for one in OTHER_TASKS if options_of(one)[0].flag in given), conversion)
    rows = options_of(task)
    # Flags of the other tasks, or SOURCE and OUTPUT beside --verify.
    foreign = given.keys() - {flag for row in rows for flag in row.flags}
    if foreign and task is not conversion:
        parser.error(goes_with(rows))
    if foreign or any(row.default is MISSING and row.flag not in given for row in rows):
        parser.error("give SOURCE and OUTPUT, or --verify FILE [--source SOURCE]")
    try:
        models = [*each_model(given)] if task is conversion else [given]
        # Contradictions are looked for by what was named; the task itself can only see what
        # differs from the defaults.
        refuse(problem for model in models for problem in contradictions(rows, model))
        tasks = [task(**{row.name: row.value_in(model) for row in rows}) for model in models]
        refuse(clashes(tasks) if len(tasks) > 1 else ())
    except ConvertError as error:
        parser.error(error.problems[0])
    return tuple(tasks)


def parse_options(
    argv: list[str] | None = None, conversion: type[Options] = Options
) -> Options | Verification:
    """Make the task of a command line that has one; the rest is as in `parse_tasks`."""
    (task,) = parse_tasks(argv, conversion)
    return task


def refuse(problems: Iterable[str]) -> None:
    """Raise ConvertError with the first of some problems, if there are any."""
    if problem := next(iter(problems), ""):
        raise ConvertError(problem)


def goes_with(rows: list[Option]) -> str:
    """Say which options go with the one that asks for a task beside conversions."""
    first, *beside = rows
    asks = f"{first.flag} {first.kind.shown}".strip()
    *some, last = [row.flag for row in beside] or ["nothing else"]
    goes = f"{', '.join(some)} and {last}" if some else last
    return f"{asks} goes with {goes}, without OUTPUT"


def each_model(given: dict[str, object]) -> Iterator[dict[str, object]]:
    """Make {flag: value} for each model of a command line: its own SOURCE, and its OUTPUT.

    given: as the parser gives it, OUTPUT as a list. Of three or more places, the last is a folder
    that all are written to. Raises ConvertError where it is none.
    """
    source, places = given["SOURCE"], given.get("OUTPUT", [])
    *more, output = places or [None]
    if more and not output.is_dir() and (output.exists() or "--make-folder" not in given):
        hint = "" if output.exists() else "; --make-folder creates one"
        raise ConvertError(f"of several models, the last place is a folder: {output} is none{hint}")
    for model in (source, *more):
        yield given | {"SOURCE": model} | ({"OUTPUT": output} if output else {})


def clashes(tasks: list[Options]) -> Iterator[str]:
    """Find files that two of several conversions would write."""
    owners: dict[Path, Path] = {}
    for task in tasks:
        for path in (task.output, *task.texts):
            if path in owners:
                yield f"{path} would be written for {owners[path]} and for {task.source}"
            owners[path] = task.source


if __name__ == "__main__":
    # --help, --version and wrong options are answered here, before torch takes seconds to load.
    tolerate_consoles()
    tasks = parse_tasks()
    require(*REQUIRED)
    announce(quiet=any(task.quiet for task in tasks))


import base64
import codecs
import hashlib
import json
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from enum import Enum, IntEnum, auto
from html import escape
from statistics import median
from types import FunctionType
from typing import ClassVar, Protocol, TYPE_CHECKING

import numpy as np
import torch


# ── nvfp4/notes.py: Rank what a person is told beside a result: information, a hint, a note or a wa

class Rank(IntEnum):
    """Rank a note by how much it matters; the last one matters most."""

    # What follows from the command, or merely is so: there is nothing to do about it.
    INFORMATION = 0
    # Something better exists, or something is missing that would help.
    HINT = 1
    # Worth a look: what was done may not be what was meant.
    NOTE = 2
    # The result is probably not what was wanted.
    WARNING = 3


# The word that a line of a rank begins with; information stands without one.
RANK_WORDS = {Rank.INFORMATION: "", Rank.HINT: "hint", Rank.NOTE: "note", Rank.WARNING: "warning"}


class Note(str):
    """Be a note's text, with its rank beside it."""

    rank: Rank

    def __new__(cls, text: str, rank: Rank = Rank.NOTE) -> Note:
        """Make a note of a text; ranks of a torchrun send it to each other with its rank."""
        note = super().__new__(cls, text)
        note.rank = rank
        return note

    @classmethod
    def of(cls, note: str) -> Note:
        """Take a note as it is, and a plain string for one that is worth a look."""
        return note if isinstance(note, Note) else cls(note)

    @property
    def line(self) -> str:
        """Write the note with the word of its rank before it."""
        word = RANK_WORDS[self.rank]
        return f"{word}: {self}" if word else str(self)

    @property
    def data(self) -> dict[str, str]:
        """Make it ready for JSON: its rank in lower case, and its text."""
        return {"rank": self.rank.name.lower(), "text": str(self)}


def by_rank(notes: Iterable[str]) -> list[Note]:
    """Sort notes by rank, warnings last: that is nearest to a terminal's prompt.

    Notes of one rank stay in their order; a note that came twice is told once.
    """
    return sorted(map(Note.of, dict.fromkeys(notes)), key=lambda note: note.rank)


# ── nvfp4/numeric/codes.py: Quantise tensors to NVFP4 and FP8, and dequantise them again ──────────

# The decoders put a small float's bits where float16 has its exponent and mantissa. The value is
# then too small by the difference of the exponent biases, 15 - 1 for E2M1 and 15 - 7 for E4M3.
E2M1_TO_HALF_SCALE = 2.0**14
E4M3_TO_HALF_SCALE = 2.0**8
# A float32 masked with these bits is the power of two at or below its magnitude.
FLOAT32_EXPONENT = 0x7F800000
# The smallest subnormal float32: an amax that divides to less than half of it loses everything.
LEAST_FLOAT32 = 2.0**-149
# A float32 of this size has a unit in the last place of 0.5, so adding it rounds to halves.
ROUND_TO_HALVES = 2.0**22
# Positive E4M3 codes run from 1 (2**-9) to 126 (448), with 127 a NaN; those below 8 are subnormal.
LAST_E4M3_CODE = 126
FIRST_NORMAL_E4M3_CODE = 8
# Other global scales are tried where more than this share of the block scales is subnormal in E4M3.
MANY_SUBNORMALS = 0.01
# The E4M3 code of 1.0: the block scale of formats that have none, and of rows not yet rounded.
E4M3_ONE = 56

# Rounds a column: (what to round [m, n], where the levels go [m, n]) -> decoded values [m, n].
Nearest = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FloatGrid(NamedTuple):
    """Describe the values that a small float format can hold.

    mantissa_bits: those stored, without the implied leading one; least_normal: the smallest normal
    value, below which values are evenly spaced; largest: the magnitude where values saturate.
    Rounding by statistics (`feedback`) and its compiled kernels round to any such grid.
    """

    mantissa_bits: int
    least_normal: float
    largest: float

    @property
    def shift(self) -> float:
        """Return the float32 constant that rounds when it is added and subtracted.

        Scaled by the power of two at or below a value, it lifts a sum to where float32's unit in
        the last place is the grid's step. The factor 1.5 keeps sums with negative values in the
        same binade.
        """
        return 1.5 * 2.0 ** (23 - self.mantissa_bits)

    @property
    def kind(self) -> FloatGrid:
        """Return the grid itself, which is all that code for it depends on."""
        return self

    def under(self, steps: torch.Tensor) -> Nearest:
        """Make a function that rounds to the nearest multiples of these values by steps.

        steps: [m, n] float32. What it returns takes what to round [m, n] and where the values go
        that are multiplied, and returns them times the steps.
        """
        scaled, inverse = torch.empty_like(steps), 1 / steps

        def nearest(want: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            torch.mul(want, inverse, out=scaled)
            return round_to_grid(scaled, self, out) * steps

        return nearest


E2M1 = FloatGrid(1, 1.0, E2M1_MAX)
E4M3 = FloatGrid(3, 2.0**-6, E4M3_MAX)
# The integers of INT8: spaced by 1 from 64 to 127, and below. comfy_kitchen never stores -128.
INTEGERS = FloatGrid(6, 64.0, 127.0)


def round_to_grid(values: torch.Tensor, grid: FloatGrid, out: torch.Tensor) -> torch.Tensor:
    """Round to the nearest values of a float format, ties to even, saturating.

    values: float32 of any sign and shape, finite; grid: the format; out: float32 of the same shape,
    filled and returned. Adding and subtracting the grid's shift, scaled by each value's power of
    two, leaves the rounding to float32 itself.
    """
    power = values.abs().clamp_(grid.least_normal, grid.largest)
    power = power.view(torch.int32).bitwise_and_(FLOAT32_EXPONENT).view(torch.float32)
    torch.add(values, power, alpha=grid.shift, out=out)
    return out.sub_(power, alpha=grid.shift).clamp_(-grid.largest, grid.largest)


def largest_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Find max |w| of a tensor of any shape and float dtype, as a float32 scalar.

    The result is NaN where the tensor holds a NaN, and inf where it holds an infinity, so one look
    at the scalar tells whether a whole weight is finite. One pass of aminmax needs no copy of the
    absolute values.
    """
    low, high = weight.aminmax()
    return torch.maximum(-low, high).float()


def divide(values: torch.Tensor, number: float) -> torch.Tensor:
    """Divide a tensor by a Python number, in the tensor's dtype and rounded once.

    On CUDA, torch multiplies by the reciprocal of a plain number, which rounds twice and may differ
    in the last bit from what a CPU computes; a divisor that is a tensor on the device prevents it.
    """
    return values / torch.tensor(number, dtype=values.dtype, device=values.device)


def nvfp4_global_scale(amax: torch.Tensor) -> torch.Tensor:
    """Compute the global scale of a weight: amax / (448 * 6), a float32 scalar.

    amax: the largest magnitude, a float32 scalar. This is what comfy_kitchen's
    TensorCoreNVFP4Layout computes, except that a weight of zeros, or one so small that the quotient
    underflows to 0, gets scale 1: all its codes are zero either way, and nothing is divided by 0.
    """
    # Parity: comfy_kitchen divides by the product 2688, not by 448 and then by 6.
    scale = divide(amax, NVFP4_MAX)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fp8_scale(amax: torch.Tensor) -> torch.Tensor:
    """Compute the scale of an FP8 weight: amax / 448, a float32 scalar.

    amax: the largest magnitude, a float32 scalar. The scale is at least the smallest normal
    float32, because `encode_fp8` multiplies by its reciprocal, which would overflow; zeros get
    scale 1.
    """
    scale = divide(amax, E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def amax_block_scales(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Compute the block scale that makes each block's largest weight an E2M1 6.

    magnitude: [n, k] float32 >= 0, k a multiple of 16; global_scale: float32 scalar. Returns [n,
    k/16] float8_e4m3fn, saturated at 448. This is `--scale-search amax`. Both divisions, in this
    order, are needed to match comfy_kitchen.quantize_nvfp4 bit for bit.
    """
    # Pooling is three times faster than amax over an inner dimension of 16, and exact as well.
    block_amax = torch.nn.functional.max_pool1d(magnitude, BLOCK_SIZE)
    block_scale = divide(block_amax, E2M1_MAX) / global_scale
    return block_scale.clamp_(max=E4M3_MAX).to(torch.float8_e4m3fn)


def encode_nvfp4(
    weight: torch.Tensor, global_scale: torch.Tensor, block_scales: Callable = amax_block_scales
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows of a weight to NVFP4 at a given global scale.

    weight: [n, k] float32, bfloat16 or float16, finite; k is padded with zeros to K16, a multiple
    of 16. global_scale: float32 scalar. block_scales: one of SCALE_SEARCHES, which gets the
    magnitudes [n, K16] and the global scale. Returns packed codes [n, K16/2] uint8 (the even column
    in the high nibble) and block scales [n, K16/16] float8_e4m3fn, not swizzled. Rounds to nearest,
    ties to even; with `amax_block_scales` bit-identical to comfy_kitchen.quantize_nvfp4 at the same
    global scale.
    """
    rows, columns = weight.shape
    values = weight.float()
    if columns % BLOCK_SIZE:
        values = torch.nn.functional.pad(values, (0, -columns % BLOCK_SIZE))
    magnitude = values.abs()
    block_scale = block_scales(magnitude, global_scale)
    step = decode_e4m3(block_scale) * global_scale
    # A block scale that rounds to 0 loses its block: its codes become +0 even for negative values,
    # as comfy_kitchen has it.
    dead = step == 0
    if dead.any():
        values = values.unflatten(1, (-1, BLOCK_SIZE)).masked_fill(dead.unsqueeze(-1), 0.0)
        magnitude, values = values.abs().flatten(1), values.flatten(1)
        step = step.masked_fill(dead, 1.0)
    # Parity: comfy_kitchen divides by the step; a multiplied reciprocal would move ties.
    blocks = magnitude.view(rows, -1, BLOCK_SIZE)
    torch.div(blocks, step.unsqueeze(-1), out=blocks)
    return pack_e2m1(round_to_e2m1(magnitude), values), block_scale


def round_to_e2m1(scaled: torch.Tensor) -> torch.Tensor:
    """Round magnitudes in units of their block's step to E2M1 codes.

    scaled: float32 >= 0 of any shape, which is overwritten. Returns codes 0..7 (uint8) without a
    sign; beyond 6 they saturate, and ties go to the even code. E2M1 has steps of half of each
    value's power of two (of 0.5 below 1, as well). Adding 2**22 times that power makes float32's
    own rounding leave the number of steps in the lowest mantissa bits. The power's exponent field,
    shifted to count two codes for each power, supplies the rest of the code: power 1 has field 127,
    and 127 * 2 is 6 modulo 8, hence the 2 that is added.
    """
    # In place throughout: a chunk of rows is made to fit a core's cache.
    scaled.clamp_(max=E2M1_MAX)
    power = scaled.clamp(min=1.0).view(torch.int32).bitwise_and_(FLOAT32_EXPONENT)
    scaled.add_(power.view(torch.float32), alpha=ROUND_TO_HALVES)
    steps = scaled.view(torch.int32).add_(power.bitwise_right_shift_(22))
    return steps.to(torch.uint8).add_(2).bitwise_and_(7)


def swap_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Swap the upper and lower four bits of bytes, uint8 or int8 of any shape."""
    swapped = codes.view(torch.uint8)
    swapped = torch.bitwise_left_shift(swapped, 4) | torch.bitwise_right_shift(swapped, 4)
    return swapped.view(codes.dtype)


def pack_e2m1(codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Add signs to E2M1 codes and pack two columns into a byte.

    codes: [n, k] uint8 0..7, which are overwritten; values: [n, k] float32 whose sign bits count,
    so that a negative value rounded to zero stays -0. Returns [n, k/2] uint8 with the even column
    in the high nibble, as comfy_kitchen packs with hi_first=True. Little-endian bytes are assumed.
    """
    # Float32's sign bit, moved down by 28, is bit 3, where an E2M1 code has its own.
    signs = torch.bitwise_right_shift(values.view(torch.int32), 28).to(torch.uint8)
    # Two codes read as one int16 have the even column in the low byte.
    pairs = codes.bitwise_or_(signs.bitwise_and_(8)).view(torch.int16)
    high = torch.bitwise_left_shift(pairs, 4)
    return high.bitwise_or_(pairs.bitwise_right_shift_(8)).to(torch.uint8)


def decode_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Unpack E2M1 codes to the values they stand for, without any scale.

    packed: [n, k/2] uint8, the even column in the high nibble. Returns [n, k] float32. Sign,
    exponent and mantissa are moved to where float16 has them, and the difference of the exponents'
    biases is multiplied away. A table look-up is ten times slower, and float32 bits would make 0.5
    a subnormal, which CPUs handle slowly.
    """
    # Each byte becomes an int16 whose low byte, read first, is the high nibble.
    wide = packed.to(torch.int16)
    pairs = ((wide & 15) << 8).bitwise_or_(wide >> 4)
    codes = pairs.view(torch.uint8).to(torch.int16)
    # The sign goes to bit 15, the exponent's two bits and the mantissa's one to bits 9 to 11.
    half = ((codes & 8) << 12).bitwise_or_((codes & 7) << 9)
    return half.view(torch.float16).float().mul_(E2M1_TO_HALF_SCALE)


def decode_e4m3(codes: torch.Tensor) -> torch.Tensor:
    """Decode E4M3 numbers to float32, exactly.

    codes: float8_e4m3fn of any shape, or uint8 with the same bits; a NaN (0x7F) becomes 480 and is
    for the caller to refuse. The bits are moved to where float16 has them, as torch's own cast is
    many times slower.
    """
    wide = codes.view(torch.uint8).to(torch.int16)
    # The sign goes to bit 15, exponent and mantissa to bits 7 to 13.
    half = ((wide & 0x80) << 8).bitwise_or_((wide & 0x7F) << 7)
    return half.view(torch.float16).float().mul_(E4M3_TO_HALF_SCALE)


def e4m3_value(code: torch.Tensor) -> torch.Tensor:
    """Decode positive E4M3 codes that are held as int16, to float32.

    code: int16 of any shape, 0 to 127. Code 127, a NaN in E4M3, counts on to 480: the scale
    searches use it as the value after the last one.
    """
    return (code << 7).view(torch.float16).float().mul_(E4M3_TO_HALF_SCALE)


def e4m3_code_of_at_least(value: torch.Tensor) -> torch.Tensor:
    """Find the smallest E4M3 code whose value is not below a number.

    value: float32 of any shape; negative ones count as 0. Returns int16 of the same shape, 127
    where the number is above 448. Scale searches turn a bound for a block scale into codes with it.
    """
    # The cast rounds to nearest, so that the code found may be one too low, never two.
    nearest = value.clamp(0.0, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    return nearest + (e4m3_value(nearest) < value).to(torch.int16)


def decode_nvfp4(
    packed: torch.Tensor, block_scale: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """Dequantise what `encode_nvfp4` returns, to float32.

    packed: [n, K16/2] uint8; block_scale: [n, K16/16] float8_e4m3fn, not swizzled; global_scale:
    float32 scalar. Returns [n, K16], padded columns included. Block scale and global scale are
    multiplied first, as comfy_kitchen.dequantize_nvfp4 does it.
    """
    values = decode_e2m1(packed)
    blocks = values.view(len(values), -1, BLOCK_SIZE)
    blocks.mul_((decode_e4m3(block_scale) * global_scale).unsqueeze(-1))
    return values


def encode_fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantise a weight to FP8 (E4M3) at one scale.

    weight: floats of any shape; scale: float32 scalar. Returns float8_e4m3fn of the same shape,
    saturated at 448. Bit-identical to comfy_kitchen.quantize_per_tensor_fp8 of the weight in
    float32, which multiplies by the reciprocal of the scale rather than dividing by it.
    """
    # Parity: comfy_kitchen multiplies by the reciprocal, and saturates before it casts.
    scaled = weight.float() * (1.0 / scale)
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def decode_fp8(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Dequantise what `encode_fp8` returns, to float32 of the same shape.

    codes: float8_e4m3fn of any shape; scale: a float32 tensor that broadcasts against them. Each
    value is the code times the scale, rounded once.
    """
    return decode_e4m3(codes).mul_(scale)


def swizzle(block_scale: torch.Tensor) -> torch.Tensor:
    """Rearrange block scales into the 128x4 tiles that cuBLAS reads.

    block_scale: [n, b] of a one-byte dtype, a row's scales in the order of its blocks. Returns
    [roundup(n, 128), roundup(b, 4)] of the same dtype, the padding zero. Within a tile, row r and
    column c lie at byte (r % 32) * 16 + (r // 32) * 4 + c, as in NVIDIA's documentation of cuBLAS
    and comfy_kitchen's to_blocked.
    """
    rows, columns = block_scale.shape
    height, width = round_up(rows, TILE_ROWS), round_up(columns, TILE_COLUMNS)
    padding = (0, width - columns, 0, height - rows)
    scales = torch.nn.functional.pad(block_scale.view(torch.uint8), padding)
    # The 4 bytes of a tile's row move together, as one int32: [tile rows, 4, 32, tile columns].
    words = scales.view(torch.int32).view(-1, 4, 32, width // TILE_COLUMNS)
    tiles = words.permute(0, 3, 2, 1).contiguous()
    return tiles.view(torch.uint8).view(height, width).view(block_scale.dtype)


def unswizzle(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Bring tiles of block scales back into rows, the inverse of `swizzle`.

    tiles: [N128, B4] of a one-byte dtype, padded to whole tiles; rows, columns: how much of it is
    not padding. Returns [rows, columns] of the same dtype, in memory of its own.
    """
    height, width = tiles.shape
    words = tiles.view(torch.uint8).flatten().view(torch.int32)
    scales = words.view(-1, width // TILE_COLUMNS, 32, 4).permute(0, 3, 2, 1).contiguous()
    flat = scales.view(torch.uint8).view(height, width)[:rows, :columns]
    return flat.contiguous().view(tiles.dtype)


def quantised_rows(rows: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Quantise and dequantise input rows as a W4A4 matmul sees them.

    rows: [r, K] floats; scale: the layer's input scale, or None to take that of these rows, as
    ComfyUI does for a layer without one. Returns [r, K] float32. Block scales are those of amax:
    ComfyUI searches for nothing while it samples.
    """
    amax = largest_magnitude(rows)
    scale = nvfp4_global_scale(amax) if scale is None else torch.full_like(amax, scale)
    return decode_nvfp4(*encode_nvfp4(rows, scale), scale)[:, : rows.shape[1]]


def has_many_subnormals(block_scale: torch.Tensor) -> bool:
    """Tell whether over 1 % of the used block scales are E4M3 subnormals.

    block_scale: float8_e4m3fn of any shape. Scales of zero do not count. A subnormal (below 2**-6)
    has fewer than four significant bits, so another global scale may fit such blocks better.
    """
    codes = block_scale.view(torch.uint8)
    subnormal = (codes > 0) & (codes < FIRST_NORMAL_E4M3_CODE)
    return int(subnormal.sum()) > MANY_SUBNORMALS * int((codes > 0).sum())


# ── nvfp4/numeric/damage.py: Measure how far decoded weights are from their originals ─────────────

# --verify takes a layer for damaged or misread from this relative RMSE on: weights that are
# quantised to the nearest value have about 0.09 in NVFP4 and 0.03 in FP8.
WRONG_FROM = 0.3
# Rounding by statistics enlarges the error of the weight to lessen that of the output, so that
# layers of such a file have a higher limit; misread layers have 1 or more.
ROUNDED_WRONG_FROM = 0.7
# A tensor that was only cast may have this relative RMSE: rounding to bfloat16 gives 0.002.
ROUNDED_TO = 0.005
# The largest unit that damage is measured in; its reciprocal, the least one, is normal as well.
LARGEST_UNIT = 2.0**126


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Record the squared error of a decoded tensor and the squared size of its original.

    error: the sum of (decoded - original)**2; energy: the sum of original**2, in the same units.
    The three output figures are relative RMSEs, None where a layer was not rounded by statistics;
    `output_before` and `output_after` are given together or not at all.
    """

    error: float
    energy: float
    # Relative RMSE of a layer's output, if there are statistics of its input: by the plain search,
    # by what is stored, and by what is stored where activations are 4-bit, too.
    output_before: float | None = None
    output_after: float | None = None
    output_w4a4: float | None = None

    @property
    def relative_rmse(self) -> float:
        """Return sqrt(error / energy), 0 where nothing is lost.

        An original of zeros that does not decode to zeros gives infinity.
        """
        if not self.energy:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.energy)

    @classmethod
    def total(cls, damages: Iterable[Damage], scale: torch.Tensor) -> Damage:
        """Add up damages that were measured in units of a scale, and bring them to plain units.

        damages: those of chunks of rows; scale: a float32 scalar, the unit. Sums are float64, in
        the order given. Output figures are not added: they are of a whole layer.
        """
        # Python's floats are float64, which holds the square of any float32 scale.
        error, energy, unit = 0.0, 0.0, float(scale) ** 2
        for damage in damages:
            error, energy = error + damage.error, energy + damage.energy
        return cls(error=error * unit, energy=energy * unit)

    @classmethod
    def noted(cls, values: dict) -> Damage:
        """Read a damage back from a journal's line.

        values: the fields as `dataclasses.asdict` gave them, which a file may have damaged. Raises
        TypeError for unknown or missing fields and ValueError for what is no finite number >= 0, or
        for one of the two output errors without the other.
        """
        found = cls(**values)
        error, energy, *outputs = dataclasses.astuple(found)
        given = [error, energy, *(value for value in outputs if value is not None)]
        if not all(isinstance(value, float) and 0 <= value < math.inf for value in given):
            raise ValueError("no squared sums or errors")
        if (found.output_before is None) != (found.output_after is None):
            raise ValueError("one error of an output alone")
        return found

    @property
    def sqnr_db(self) -> float:
        """Return the signal-to-quantisation-noise ratio in dB, -20 * log10(relative RMSE).

        Infinite where nothing was lost, -infinite where an original of zeros decodes to something
        else.
        """
        ratio = self.relative_rmse
        return -20 * math.log10(ratio) if ratio else math.inf


def measure_damage(original: torch.Tensor, decoded: torch.Tensor) -> Damage:
    """Measure the damage of decoded rows against their original.

    original: [n, K] floats; decoded: [n, >= K] float32 in the same units, which is overwritten.
    Columns beyond K are padding and do not count. Sums are float32 dot products: callers hand in
    chunks of rows in units of a scale, so that squares stay in range.
    """
    original = original.float()
    difference = decoded[:, : original.shape[1]].sub_(original).flatten()
    original = original.flatten()
    return Damage(
        error=float(torch.dot(difference, difference)), energy=float(torch.dot(original, original))
    )


def damage_unit(amax: torch.Tensor) -> torch.Tensor:
    """Return the power of two to measure a tensor's damage in, a float32 scalar.

    amax: its largest magnitude, a float32 scalar >= 0. The unit is the largest power of two that is
    not above it, so that dividing by it is exact and squares stay in float32's range; 1 for zeros.
    """
    power = (amax.view(torch.int32) & FLOAT32_EXPONENT).view(torch.float32)
    return torch.where(amax > 0, power.clamp(1 / LARGEST_UNIT, LARGEST_UNIT), 1.0)


def squared(values: torch.Tensor) -> float:
    """Sum the squares of a tensor of any shape in float64.

    A float32 sum over millions of elements would lose the small ones.
    """
    return float(values.square().sum(dtype=torch.float64))


# ── nvfp4/numeric/float8.py: Decode codes of one byte, and scales that lie on a grid over a weight 

# The first byte, without its sign, that is no finite number: E5M2 has infinities there, too.
NO_NUMBER = {torch.float8_e4m3fn: NAN_E4M3, torch.float8_e5m2: 0x7C}
# The one NaN of the FNUZ dtypes is what would be a negative zero.
NAN_FNUZ = 0x80
# Blocks of fewer columns are not used by any program; a scale of such a shape is for something
# else, such as rows that were taken for columns.
LEAST_BLOCK = 16


def decode_byte(codes: torch.Tensor) -> torch.Tensor:
    """Decode 8-bit floats of any of torch's four dtypes for weights, or int8, to float32, exactly.

    codes: of any shape; what is no finite number is for the caller to refuse: see `has_no_number`.
    """
    if codes.dtype == torch.float8_e4m3fn:
        return decode_e4m3(codes)
    if codes.dtype == torch.float8_e5m2:
        # E5M2 is the upper byte of a float16.
        return (codes.view(torch.uint8).to(torch.int16) << 8).view(torch.float16).float()
    return codes.float()


def decode_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """Decode E8M0 numbers, powers of two from 2**-127 on, to float32; NaN (255) becomes infinity.

    codes: uint8 of any shape. They are the exponent's bits of a float32, but for the smallest one,
    a subnormal.
    """
    bits = codes.to(torch.int32) << 23
    return torch.where(codes == 0, 1 << 22, bits).view(torch.float32)


def has_no_number(codes: torch.Tensor) -> bool:
    """Tell whether stored codes of any dtype hold NaN or an infinity; integers never do."""
    bits = codes.view(torch.uint8)
    if codes.dtype in NO_NUMBER:
        # The sign bit is masked out, as there is a negative NaN, too.
        return bool(((bits & 0x7F) >= NO_NUMBER[codes.dtype]).any())
    return codes.dtype.is_floating_point and bool((bits == NAN_FNUZ).any())


def block_lengths(size: int, count: int) -> set[int]:
    """List how many rows or columns may share a scale, where `count` scales are for `size` of them.

    The last block may be shorter, as DeepSeek's blocks of 128 are. Blocks are powers of two, or
    divide the size; two lengths come back where both are possible, none where neither is.
    """
    if count in (1, size):
        return {size // count}
    if -(-size // SCALE_BLOCK) == count:
        return {SCALE_BLOCK}
    lengths = {2**power for power in range(1, size.bit_length())}
    lengths = {length for length in lengths if -(-size // length) == count}
    return lengths if size % count else {*lengths, size // count}


def block_shape(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Tell the rows and columns of a weight that share one scale, or None where none fits.

    weight: [N, K], or of more dimensions, whose rows have one scale each at most; scale: [], [1]
    and the like for one scale, [N] or [N, 1] for rows, [blocks of N, blocks of K] for blocks; more
    dimensions of 1 may follow, as in kohya's [N, blocks of K, 1].
    """
    rows, columns = weight[0] if weight else 1, math.prod(weight[1:])
    if math.prod(scale) == 1:
        return rows, columns
    high, wide, *more = (*scale, 1) if len(scale) == 1 else scale
    if math.prod(more) != 1 or not 0 < high <= rows or not 0 < wide <= columns:
        return None
    heights, widths = block_lengths(rows, high), block_lengths(columns, wide)
    # Where two lengths are possible, only a square block tells which one it is.
    if len(heights) != 1 or len(widths) != 1:
        heights = widths = heights & widths
    if len(heights) != 1:
        return None
    height, width = *heights, *widths
    # kohya's blocks divide the columns, and convolutions and vectors have no blocks.
    uneven = bool(more) and wide * width != columns
    nested = len(weight) != 2 and (height, wide) != (1, 1)
    # A row of as many scales as there are rows may be a column that was transposed.
    narrow = 1 < wide < columns and width < LEAST_BLOCK
    lying = high == 1 < rows == wide
    return None if uneven or nested or narrow or lying else (height, width)


def scales_by_rows(scale: torch.Tensor, weight: tuple[int, ...]) -> torch.Tensor:
    """Spread a grid of scales over the rows of a weight.

    scale: floats of a shape that `block_shape` takes, more than one; weight: [N, K]. Returns
    float32 [N, blocks of K], or [N, K] where the number of blocks does not tell their length.
    """
    height, width = block_shape(weight, tuple(scale.shape))
    grid, columns = scale.float().reshape(scale.shape[0], -1), math.prod(weight[1:])
    if len(block_lengths(columns, grid.shape[1])) > 1:
        grid = grid.repeat_interleave(width, 1)[:, :columns]
    return grid.repeat_interleave(height, 0)[: weight[0]]


def multiply_blocks(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply rows of values by the scales of their blocks of columns, in place.

    values: float32 [n, K]; scales: float32 [n, blocks of K], as `scales_by_rows` gives them. Each
    product is rounded once.
    """
    (width,) = block_lengths(values.shape[1], scales.shape[1])
    whole = values.shape[1] // width
    values[:, : whole * width].unflatten(1, (whole, width)).mul_(scales[:, :whole, None])
    values[:, whole * width :].mul_(scales[:, whole:])
    return values


# ── nvfp4/numeric/mxfp8.py: Quantise to MXFP8: E4M3 numbers, and a power of two for every 32 of a r

# The code of 1.0 in E8M0, and the largest one that is a number.
E8M0_ONE, LAST_E8M0_CODE = 127, 254
# The bits of a float32's mantissa.
MANTISSA_BITS = 0x7FFFFF


def first_rounded_up() -> torch.Tensor:
    """Find the least mantissa of each exponent whose float32 logarithm is above the exponent.

    Returns int32 [255] by the exponent's bits; those of 0 are for numbers from 2**-127 on, which
    are subnormal. A logarithm is rounded: that of a little more than a power of two is a whole one.
    """
    exponents = torch.arange(LAST_E8M0_CODE + 1, dtype=torch.int32)
    least = torch.where(exponents == 0, 1 << 22, 0).to(torch.int32)
    # The logarithms of 23 numbers at most are rounded down to a whole one.
    bits = (exponents << 23 | least).unsqueeze(1) + torch.arange(32, dtype=torch.int32)
    below = bits.view(torch.float32).log2().ceil() <= (exponents - E8M0_ONE).unsqueeze(1)
    return least + below.sum(1, dtype=torch.int32)


# Made on the CPU once: logarithms of other devices are rounded otherwise, and cost more.
FIRST_ROUNDED_UP = first_rounded_up()


def amax_power_scales(magnitude: torch.Tensor) -> torch.Tensor:
    """Compute the least powers of two that clip nothing: E8M0 codes uint8 [n, K/32].

    magnitude: [n, K] float32 >= 0, K a multiple of 32. A block of zeros has code 0. The codes are
    those of comfy_kitchen.quantize_mxfp8.
    """
    amax = magnitude.unflatten(1, (-1, MX_BLOCK)).amax(-1)
    bits = divide(amax, E4M3_MAX).clamp(min=2.0**-E8M0_ONE).view(torch.int32)
    exponent, mantissa = bits >> 23, bits & MANTISSA_BITS
    # Parity: comfy_kitchen rounds a logarithm up, which is itself rounded: see FIRST_ROUNDED_UP.
    codes = exponent + (mantissa >= FIRST_ROUNDED_UP.to(bits.device)[exponent])
    return torch.where(amax > 0, codes, 0).to(torch.uint8)


def encode_mxfp8(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Quantise rows [n, K] float32 at the E8M0 codes of their blocks: float8_e4m3fn [n, K].

    scales: uint8 [n, K/32]; code 0 is that of blocks of zeros. Saturates at 448. With the codes of
    `amax_power_scales` the bytes are those of comfy_kitchen.quantize_mxfp8, but where the whole
    block is below 2**-118: comfy_kitchen divides that by 0.
    """
    blocks = rows.unflatten(1, (-1, MX_BLOCK))
    # Readers take a scale of code 0 for 0 or for 2**-127: all that it scales becomes +0.
    scaled = (blocks / decode_e8m0(scales).unsqueeze(-1)).masked_fill_(
        (scales == 0).unsqueeze(-1), 0
    )
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).flatten(1).to(torch.float8_e4m3fn)


def quantise_mxfp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows [n, K] of floats: codes float8_e4m3fn [n, K32], powers float32 [n, K32/32].

    Columns are padded with zeros to K32, a multiple of 32; the powers of two are those of blocks.
    """
    padded = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % MX_BLOCK))
    scales = amax_power_scales(padded.abs())
    return encode_mxfp8(padded, scales), decode_e8m0(scales)


def quantised_mxfp8_rows(rows: torch.Tensor) -> torch.Tensor:
    """Quantise and dequantise input rows [r, K] as ComfyUI's MXFP8 matmul sees them: float32."""
    codes, scales = quantise_mxfp8(rows)
    values = codes.float().unflatten(1, (-1, MX_BLOCK)) * scales.unsqueeze(-1)
    return values.flatten(1)[:, : rows.shape[1]]


# ── nvfp4/numeric/grids.py: Say what rounding by statistics rounds to: the levels of a format, and 

@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Hold levels of a weight that is decoded to INT8: level * step, rounded to an integer.

    levels: [L] float32, ascending, on the device that rounds. A level decodes to
    clamp(rint(level * step), -127, 127), which the scale of its row multiplies (W4A8, W6A8).
    """

    levels: torch.Tensor

    @property
    def largest(self) -> torch.Tensor:
        """Return the largest level as a scalar tensor, for the least step that clips nothing."""
        return self.levels.abs().amax()

    @property
    def kind(self) -> int:
        """Return how many levels there are, which is all that code for a codebook depends on."""
        return len(self.levels)

    def under(self, steps: torch.Tensor) -> Nearest:
        """Make a function that rounds to the nearest decoded level under each step.

        steps: [m, n] float32. Of the two levels that enclose a value before they are rounded to
        integers, the upper one is taken where its integer is strictly nearer, as comfy_kitchen
        breaks ties.
        """
        inverse, last = 1 / steps, len(self.levels) - 1

        def nearest(want: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            upper = torch.bucketize(want * inverse, self.levels)
            levels = [self.levels[at.clamp(0, last)] for at in (upper - 1, upper)]
            limit = INTEGERS.largest
            low, high = ((level * steps).round_().clamp_(-limit, limit) for level in levels)
            is_upper = (high - want).abs_() < (want - low).abs_()
            torch.where(is_upper, levels[1], levels[0], out=out)
            return torch.where(is_upper, high, low)

        return nearest


class Steps(NamedTuple):
    """Say which steps a format has, by codes, and which of them are tried for a group.

    value: codes int16 -> float32; at_least: float32 numbers -> the codes of the smallest steps that
    are not below them; offsets: from the code of the smallest step that clips nothing to the first
    and last one that are tried; last: the largest code, the least being 1; mirrored: offsets of
    negative steps, as codes below 0, with which the largest value is on the lower side of the
    levels; none without it.
    """

    value: Callable[[torch.Tensor], torch.Tensor]
    at_least: Callable[[torch.Tensor], torch.Tensor]
    offsets: tuple[int, int]
    last: int
    mirrored: tuple[int, int] | None = None


def signed_e4m3_value(code: torch.Tensor) -> torch.Tensor:
    """Decode E4M3 codes held as int16, negative ones below 0, to float32 of the same shape."""
    return torch.copysign(e4m3_value(code.abs()), code.float())


def e8m0_code_of_at_least(value: torch.Tensor) -> torch.Tensor:
    """Find the smallest code of E8M0 whose power of two is not below a number; int16.

    value: float32 >= 0 of any shape. Code 0 is left out, as 2**-127 is subnormal in float32.
    """
    bits = value.view(torch.int32)
    # The exponent's field counts as E8M0 does; any bit of the mantissa makes it one more.
    above = (bits & ~FLOAT32_EXPONENT) != 0
    return ((bits >> 23) + above).clamp_(1, LAST_E8M0_CODE).to(torch.int16)


def e8m0_value(code: torch.Tensor) -> torch.Tensor:
    """Decode E8M0 codes from 1 to 254 that are held as int16, to float32 of the same shape."""
    return (code.to(torch.int32) << 23).view(torch.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """Describe what a format rounds to: levels, and the steps that multiply them.

    levels: in units of the step; group: columns of a row that share a step; steps: how it is
    chosen, None where it is 1 throughout, since rows are in units of their scale already.
    """

    levels: FloatGrid | Codebook
    group: int = 1
    steps: Steps | None = None

    @property
    def block(self) -> int:
        """Return how many columns are rounded as one block: whole groups, and 16 at least."""
        return max(self.group, BLOCK_SIZE)

    @property
    def kind(self) -> tuple:
        """Return what CUDA graphs of different grids differ in; the levels of a codebook do not."""
        return self.levels.kind, self.group, self.steps

    def candidates(self, wanted: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """List the codes of steps to try for a block of each row: int16 [m, n], ascending.

        wanted: [c, n] float32, what is to be rounded; codes: [1, n], which come back where steps
        are fixed.
        """
        if self.steps is None:
            return codes
        least = self.steps.at_least(wanted.abs().amax(0) / self.levels.largest)

        def around(first: int, last: int) -> torch.Tensor:
            offsets = torch.arange(first, last + 1, dtype=torch.int16, device=wanted.device)
            return (least + offsets.unsqueeze(1)).clamp_(1, self.steps.last)

        tried = around(*self.steps.offsets)
        if self.steps.mirrored is None:
            return tried
        # Levels reach further up: a positive step where the largest value is positive.
        tried = torch.cat([tried, -around(*self.steps.mirrored)])
        return torch.where(-wanted.amin(0) > wanted.amax(0), -tried, tried)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode codes of steps, int16 of any shape, to float32; fixed steps are 1."""
        if self.steps is None:
            return torch.ones_like(codes, dtype=torch.float32)
        return self.steps.value(codes)

    def with_codebook(self, *levels: torch.Tensor) -> Grid:
        """Return the grid with the levels [L] of a layer's own codebook; without one, as it is."""
        return replace(self, levels=Codebook(*levels)) if levels else self

    @property
    def codebook(self) -> tuple[torch.Tensor, ...]:
        """List the tensor of a codebook, or nothing: a CUDA graph has a copy of its own."""
        return (self.levels.levels,) if isinstance(self.levels, Codebook) else ()

    def copy(self) -> Grid:
        """Copy the grid, with a codebook in memory of its own."""
        return self.with_codebook(*(levels.clone() for levels in self.codebook))


# A codebook counts as not symmetric where its first and last level sum up to more than this: those
# of comfy_kitchen's sum up to 0.0001, those of ASYMMETRIC_CODEBOOK to 0.13. Steps of either sign
# only cost time where mirrored levels are nearly the same.
LEAST_ASYMMETRY = 0.05
# Offsets of E4M3 block scales around the smallest that clips nothing, as `scale_search` has them.
NVFP4_STEPS = Steps(e4m3_value, e4m3_code_of_at_least, (-3, 6), LAST_E4M3_CODE)
# The levels of these are so evenly spaced that larger steps than the next one only lose.
GROUP_STEPS = NVFP4_STEPS._replace(offsets=(-2, 1))
# Levels of which one side reaches further than the other have steps of either sign.
SIGNED_STEPS = GROUP_STEPS._replace(value=signed_e4m3_value, offsets=(-1, 2), mirrored=(1, 2))
# Powers of two: one more would lose a bit of small values only, one less clips the largest.
E8M0_STEPS = Steps(e8m0_value, e8m0_code_of_at_least, (-1, 0), LAST_E8M0_CODE)


def steps_for(levels: torch.Tensor) -> Steps:
    """Choose the steps for a codebook [L]: of either sign where it is not symmetric."""
    return SIGNED_STEPS if levels[0] + levels[-1] > LEAST_ASYMMETRY else GROUP_STEPS


# ── nvfp4/numeric/rotation.py: Rotate groups of columns by a regular Hadamard matrix, as ConvRot an

# Columns that are rotated together where weights are written: comfy_kitchen's own choice.
WRITTEN_GROUP = 256
# The largest magnitude that is rotated: sums on the way are up to 32 times as large, and to fit
# group scales, 16 weights times levels of up to 31 are added up.
LARGEST_ROTATED = FLOAT32_MAX / 2**14


def rotate(values: torch.Tensor, group: int) -> torch.Tensor:
    """Rotate weights or inputs, or rotate them back: it is its own inverse.

    values: float32 [n, K]; group: columns rotated together, a power of four that divides K. The
    matrix is the Kronecker power of a matrix [4, 4] of 1/2, with -1/2 from one corner at the bottom
    to the other at the top. One factor after the other is applied: the sums are the same whatever
    rows come together, where those of a matrix product depend on its size.
    """
    step, found = 1, values
    while step < group:
        fours = found.reshape(-1, 4, step)
        first, second, third, fourth = fours.unbind(1)
        half = (((first + second) + (third + fourth)) * 0.5).unsqueeze(1)
        # Row i adds up all four but for the one from the end, which it subtracts.
        found, step = half - fours.flip(1), step * 4
    return found.view(values.shape)


# ── nvfp4/numeric/feedback.py: Round weights to the least error of their layer's output ───────────

# Rounding that knows what a weight multiplies. With X a layer's recorded input and E = W - decoded
# W, its output is off by X E^T, in the mean square tr(E S E^T), S = X^T X / tokens. A weight may be
# rounded to the farther value where that makes up for the errors of other columns.
#
# Weights are transposed here, their columns in the order they are rounded in, and in units of the
# layer's scale: [K, n]. Residual: weight - decoded weight. Level: decoded weight / block scale.

# Dampings that are tried on some rows of a weight, in units of the mean of the second moment's
# diagonal. Without damping, directions that the recording hardly saw would get any error.
DAMPINGS = (0.002, 0.02)
# Larger dampings, for a second moment that none of the others leaves positive definite.
MORE_DAMPINGS = (0.1, 0.3, 1.0)
# Sweeps over all columns after they were rounded once: a second one gained a third of the first.
SWEEPS = 1
# Columns whose errors reach all other columns by one matrix product, instead of one at a time.
FEEDBACK_BATCH = 128
# The sign of an E4M3 step.
SIGN_BIT = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Hold what a recording tells of a layer's input of K channels.

    mean: [K] float32; second: the second moment X^T X / tokens, [K, K] float32; rows: some recorded
    rows [r, K]; independent: how many different rows the moments are of, at least 1, since a
    prompt's text is the same at every step. All tensors are on the device that rounds.
    """

    mean: torch.Tensor
    second: torch.Tensor
    rows: torch.Tensor
    independent: float

    @property
    def dampings(self) -> list[float]:
        """List the dampings worth trying, relative to the mean of the diagonal.

        n independent rows tell the energy of K directions to about K / n, at most 1. Dampings up to
        twice that only add noise and are left out; where all of DAMPINGS are, K / n itself or the
        largest of them, whichever is more, is the only one.
        """
        least = min(len(self.mean) / self.independent, 1.0)
        return [damping for damping in DAMPINGS if damping > 2 * least] or [
            max(least, DAMPINGS[-1])
        ]

    def rotated(self, group: int) -> Statistics:
        """Return the statistics of the input rotated in groups of columns; itself for group 0.

        With R the rotation of a column of inputs, mean and second moment become R mean and R S R^T.
        The output error of a rotated weight is the same by these as by the others.
        """
        if not group:
            return self
        half = rotate(self.second, group).t().contiguous()
        mean, rows = (rotate(some, group) for some in (self.mean.unsqueeze(0), self.rows))
        second = rotate(half, group)
        return dataclasses.replace(self, mean=mean.squeeze(0), second=second, rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Hold a damped second moment S [K, K], factored as lower.T * pivots @ lower.

    order: [K], the columns in the order of rounding, which all other fields are in; lower: [K, K],
    unit lower triangular; full: S, each row divided by its diagonal element; diagonal: [K], that of
    S; pivots: [K], the cost of an error of 1 in a column after those rounded later have made up for
    it; added: what damping added to the diagonal. Tensors are float32.
    """

    order: torch.Tensor
    lower: torch.Tensor
    full: torch.Tensor
    diagonal: torch.Tensor
    pivots: torch.Tensor
    added: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """Hold rows of a weight while they are rounded, [K, n] in the order of a Feedback.

    levels: those of the grid, before steps multiply them; residual: weight - decoded weight, in
    the units of the rows; both float32. codes: [blocks, n] int16, of each block's step; all zero
    where the grid's steps are fixed.
    """

    levels: torch.Tensor
    residual: torch.Tensor
    codes: torch.Tensor


def round_columns(
    wanted: torch.Tensor,
    free: torch.Tensor,
    coefficients: tuple[torch.Tensor, torch.Tensor],
    steps: torch.Tensor,
    grid: FloatGrid | Codebook,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round the columns of a block one after the other, each knowing the errors of those before.

    wanted: [c, n], what to round, with the feedback of all other blocks; free: [c, n], the decoded
    weights that would change no residual; coefficients: those of the feedback within the block [c,
    c], and the cost of an error of 1 in each column [c]; steps: [m, n], block scales to try; grid:
    levels to round to. All float32. Returns levels and changes of the residuals [c, m, n], and
    costs [m, n]; costs stay zero if there is only one scale to try.
    """
    within, pivots = coefficients
    levels, changes, costs = made = room_for(wanted, steps)
    nearest = grid.under(steps)
    for column in range(len(wanted)):
        want = wanted[column].expand_as(steps)
        if column:
            before = changes[:column].view(column, -1).t()
            want = want + torch.mv(before, within[column, :column]).view_as(steps)
        decoded = nearest(want, levels[column])
        torch.sub(free[column], decoded, out=changes[column])
        # Costs only choose among scales: with a single one nobody reads them.
        if len(steps) > 1:
            error = decoded.sub_(want)
            costs.addcmul_(error, error * pivots[column])
    return made


def room_for(wanted: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Allocate what `round_columns` returns, on the device of its arguments.

    wanted: [c, n]; steps: [m, n]. Returns levels and changes [c, m, n], not initialised, and costs
    [m, n] of zero.
    """
    levels, changes = wanted.new_empty(2, len(wanted), *steps.shape)
    return levels, changes, torch.zeros_like(steps)


def take_best(
    levels: torch.Tensor, changes: torch.Tensor, costs: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Take, for each row, the block scale with the least cost of those that were tried.

    levels, changes: [c, m, n]; costs: [m, n]; codes: [m, n] int16, the scales. Returns levels and
    changes [c, n] and codes [n] of the best; of equal costs the first, which is the smaller scale.
    """
    if len(codes) == 1:
        return levels[:, 0], changes[:, 0], codes[0]
    # Gathering keeps the choice on the device: a CUDA graph cannot wait for the CPU.
    best = costs.argmin(0, keepdim=True)
    index = best.expand(len(levels), 1, -1)
    return levels.gather(1, index)[:, 0], changes.gather(1, index)[:, 0], codes.gather(0, best)[0]


def make_feedback(
    given: Statistics, damping: float, group: int, *, centred: bool
) -> Feedback | None:
    """Factor a damped second moment for rounding, or return None if it is not positive definite.

    damping: how many times the mean of the diagonal is added to the diagonal; group: columns that
    share a scale (16, or 1); centred: round by the covariance instead, where a bias makes up for
    the mean error. Groups with the largest moments come first, because all later columns can make
    up for their errors. The factorisation is float64; what is returned is float32.
    """
    # The covariance of the input is its second moment less the square of its mean.
    second = given.second
    if centred:
        second = second - given.mean.unsqueeze(1) * given.mean
    # Columns that share a block scale stay together, so that whole groups are put in order.
    energy = second.diagonal().view(-1, group).sum(1)
    order = energy.argsort(descending=True, stable=True).unsqueeze(1) * group
    order = (order + torch.arange(group, device=order.device)).flatten()
    damped = second[order][:, order].double()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    # Flipped, Cholesky's lower factor becomes the upper triangular one: damped = root @ root.T.
    reverse, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    root = reverse.flip(0, 1)
    pivots = root.diagonal().clone()
    if failed or not torch.isfinite(pivots).all():
        return None
    return Feedback(
        order=order,
        lower=root.div_(pivots).t().float().contiguous(),
        full=(damped / damped.diagonal().unsqueeze(1)).float(),
        diagonal=damped.diagonal().float(),
        pivots=pivots.square().float(),
        added=float(damping * second.diagonal().double().mean()),
    )


def unrounded(weight: torch.Tensor, grid: Grid) -> Rounded:
    """Allocate a Rounded for rows that are not rounded yet.

    weight: [K, n] float32, transposed. Levels and residuals are zero, so that nothing is fed back
    from columns that are still to come.
    """
    codes = weight.new_zeros(-(-len(weight) // grid.block), weight.shape[1], dtype=torch.int16)
    return Rounded(levels=torch.zeros_like(weight), residual=torch.zeros_like(weight), codes=codes)


# A function with the arguments and results of `round_columns`, plain or compiled.
RoundColumns = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
# The fields of a Feedback that passes over columns read: a CUDA graph has copies of its own.
FEEDBACK_TENSORS = ("lower", "full", "pivots")


class Rounder:
    """Round rows of weights by feedback; one serves all layers of a conversion on one device.

    columns: what rounds the columns of a block, `round_columns` or compiled code that does the
    same. On a GPU a Rounder keeps a CUDA graph for each shape of rows, with tensors as large as
    those: they live as long as the Rounder does.
    """

    def __init__(self, columns: RoundColumns = round_columns):
        """Take the function that rounds columns; no graph is captured yet."""
        self.round_columns = columns
        self.graphs: dict[tuple, tuple] = {}

    def round_rows(
        self, rows: torch.Tensor, feedback: Feedback, grid: Grid, sweeps: int = SWEEPS
    ) -> Rounded:
        """Round rows of a weight to the least output error.

        rows: [n, K] float32, in units of the layer's scale or each in its own, rotated where the
        format is; feedback: of its input, rotated likewise; sweeps: passes after the first one.
        Returns levels, residuals and steps in the order of the feedback. Raises ConvertError where
        a GPU left its work undone.
        """
        weight = rows.t()[feedback.order].contiguous()
        if weight.is_cuda:
            # CUDA graphs and triton take the current device, not that of the tensors.
            with torch.cuda.device(weight.device):
                return self.replay(weight, feedback, grid, sweeps)
        rounded = unrounded(weight, grid)
        self.make_passes(weight, rounded, feedback, grid, sweeps)
        return rounded

    def make_passes(
        self, weight: torch.Tensor, rounded: Rounded, feedback: Feedback, grid: Grid, sweeps: int
    ) -> None:
        """Round all columns of a transposed weight [K, n] once, and improve on it `sweeps` times.

        `rounded` is filled in place, with no allocation that depends on values and no look at them
        from the CPU: a CUDA graph can capture it.
        """
        self.feed_back(weight, rounded, feedback, grid, first=True)
        for _ in range(sweeps):
            self.feed_back(weight, rounded, feedback, grid, first=False)

    def replay(self, weight: torch.Tensor, feedback: Feedback, grid: Grid, sweeps: int) -> Rounded:
        """Do `make_passes` as a CUDA graph, of its ten thousand kernels.

        Launching these one by one takes longer than they run. The graph of each device, shape, kind
        of grid and number of sweeps is captured once, on tensors of its own; arguments are copied
        into them and results out of them. Raises ConvertError where a replay did not write all
        levels.
        """
        key = (weight.device, weight.shape, grid.kind, sweeps)
        if key not in self.graphs:
            tensors = {name: getattr(feedback, name).clone() for name in FEEDBACK_TENSORS}
            feedback_copy = dataclasses.replace(feedback, **tensors)
            own = (weight.clone(), unrounded(weight, grid), feedback_copy, grid.copy())
            # A first run outside the graph: triton cannot compile while one is captured.
            self.make_passes(*own, sweeps)
            graph = torch.cuda.CUDAGraph()
            # The default capture stream may be of another GPU; a new one is of the current device.
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                self.make_passes(*own, sweeps)
            self.graphs[key] = graph, *own
        graph, own_weight, own_rounded, own_feedback, own_grid = self.graphs[key]
        own_weight.copy_(weight)
        for copied, given in zip(own_grid.codebook, grid.codebook, strict=True):
            copied.copy_(given)
        for name in FEEDBACK_TENSORS:
            getattr(own_feedback, name).copy_(getattr(feedback, name))
        own_rounded.residual.zero_()
        # A replay writes every level, so a NaN that is left tells of one that did not run.
        own_rounded.levels.fill_(math.nan)
        graph.replay()
        if not own_rounded.levels.isfinite().all():
            raise ConvertError(
                f"{weight.device}: a CUDA graph left its work undone; try --device cpu"
            )
        return Rounded(**{name: getattr(own_rounded, name).clone() for name in Rounded.__slots__})

    def feed_back(
        self, weight: torch.Tensor, rounded: Rounded, feedback: Feedback, grid: Grid, *, first: bool
    ) -> None:
        """Make one pass over all columns, the first or one that improves on it.

        In the first, errors of the columns before are fed back (GPTQ, in the form that needs no
        inverse: S = L^T D L), and each block takes the scale with the least cost. In a further one
        those of all columns are (coordinate descent), under the scales there are. weight: [K, n];
        rounded is updated.
        """
        coefficients = feedback.lower if first else feedback.full
        residual, columns = rounded.residual, len(weight)
        for begin in range(0, columns, FEEDBACK_BATCH):
            end = min(begin + FEEDBACK_BATCH, columns)
            reach = begin if first else columns
            fed = coefficients[begin:end, :reach] @ residual[:reach]
            for at in range(begin, end, grid.block):
                block = slice(at, min(at + grid.block, end))
                own, rest = slice(at - begin, block.stop - begin), slice(block.stop - begin, None)
                old = residual[block].clone()
                # A column's own coefficient is 1: `fed` holds its own residual, taken away here.
                wanted = (weight[block] - old).add_(fed[own])
                index = at // grid.block
                codes = rounded.codes[index : index + 1]
                if first:
                    codes = grid.candidates(wanted, codes)
                within = (coefficients[block, block], feedback.pivots[block])
                free, steps = weight[block] - old, grid.values(codes)
                tried = self.round_columns(wanted, free, within, steps, grid.levels)
                levels, changes, codes = take_best(*tried, codes)
                rounded.codes[index], rounded.levels[block] = codes, levels
                residual[block] += changes
                fed[rest] += coefficients[block.stop : end, block] @ changes


def output_error(residual: torch.Tensor, feedback: Feedback) -> float:
    """Compute the squared output error tr(E S E^T) of a residual, with S not damped.

    residual: [K, n] float32, in the feedback's order. Returns a float in units of the layer's scale
    squared, summed in float64 and never below 0, which rounding could take it to.
    """
    # `full` has rows of S divided by the diagonal, which the last product brings back.
    costs = torch.mul(feedback.full @ residual, residual).sum(1, dtype=torch.float64)
    damping = feedback.added * float(residual.square().sum(dtype=torch.float64))
    return max(float(costs @ feedback.diagonal.double()) - damping, 0.0)


def levels_in_order(rounded: Rounded, feedback: Feedback) -> torch.Tensor:
    """Bring the levels of rounded rows back into the weight's own order of columns.

    Returns [n, K] float32, contiguous: what a format packs (`Format.round_to_levels`).
    """
    levels = torch.empty_like(rounded.levels)
    levels[feedback.order] = rounded.levels
    return levels.t().contiguous()


def steps_in_order(rounded: Rounded, feedback: Feedback) -> torch.Tensor:
    """Bring the codes of steps back into the order of the weight's groups: uint8 [n, blocks].

    Codes below 0 get a sign bit.
    """
    # Groups of columns were kept together: the first column of each tells where a block was.
    group = len(feedback.order) // len(rounded.codes)
    codes = torch.empty_like(rounded.codes)
    codes[feedback.order[::group] // group] = rounded.codes
    codes = torch.where(codes < 0, SIGN_BIT - codes, codes)
    return codes.t().contiguous().to(torch.uint8)


# ── nvfp4/numeric/gpu_kernel.py: Round the columns of a block on a GPU, as triton compiles it ─────

if TYPE_CHECKING:
    # At run time nothing is imported: triton is optional, and `compile_rounder` puts `tl` among
    # the names that the kernel sees.
    import triton.language as tl


def round_lanes(  # noqa: PLR0913
    wanted, free, within, pivots, steps, book, levels, changes, costs, rows, lanes, stride, columns,
    least: tl.constexpr, largest: tl.constexpr, shift: tl.constexpr, count: tl.constexpr,
    width: tl.constexpr,
):  # fmt: skip
    """Do what `feedback.round_columns` does, in one kernel.

    A lane is one row under one block scale. wanted, free: [columns, rows]; within: [columns,
    columns], its rows `stride` elements apart; pivots: [columns]; steps: [m, rows], flat; levels,
    changes: [columns, m, rows], filled; costs: [m, rows], filled; all float32 pointers. lanes is m
    * rows; least, largest, shift are those of a float format; book: [count], the levels of a
    codebook, where count is not 0; width is the number of lanes a program. Sums are contracted, so
    that bits may differ from those of other devices.
    """
    lane = tl.program_id(0) * width + tl.arange(0, width)
    inside, row = lane < lanes, lane % rows
    step = tl.load(steps + lane, mask=inside, other=1.0)
    cost = tl.zeros((width,), dtype=tl.float32)
    for column in range(columns):
        want = tl.load(wanted + column * rows + row, mask=inside)
        for other in range(column):
            change = tl.load(changes + other * lanes + lane, mask=inside)
            want += tl.load(within + column * stride + other) * change
        if count:
            scaled = want * (1.0 / step)
            if count > 16:
                # More levels than 16 are whole numbers.
                first, last = tl.load(book), tl.load(book + count - 1)
                high = tl.ceil(scaled)
                low = tl.minimum(tl.maximum(high - 1.0, first), last)
                high = tl.minimum(tl.maximum(high, first), last)
            else:
                low = tl.zeros((width,), dtype=tl.float32) + tl.load(book)
                high = tl.zeros((width,), dtype=tl.float32) + tl.load(book + count - 1)
                for index in tl.static_range(count):
                    up, down = tl.load(book + index), tl.load(book + count - 1 - index)
                    low = tl.where(up < scaled, up, low)
                    high = tl.where(down >= scaled, down, high)
            # Adding 1.5 * 2**23 and taking it away again leaves the nearest integer, ties to even.
            below = (low * step + 12582912.0) - 12582912.0
            above = (high * step + 12582912.0) - 12582912.0
            below = tl.minimum(tl.maximum(below, -127.0), 127.0)
            above = tl.minimum(tl.maximum(above, -127.0), 127.0)
            is_upper = tl.abs(above - want) < tl.abs(want - below)
            level, decoded = tl.where(is_upper, high, low), tl.where(is_upper, above, below)
        else:
            scaled = want / step
            power = tl.minimum(tl.maximum(tl.abs(scaled), least), largest)
            power = (power.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
            level = (scaled + power * shift) - power * shift
            level = tl.minimum(tl.maximum(level, -largest), largest)
            decoded = level * step
        error = decoded - want
        cost += tl.load(pivots + column) * error * error
        tl.store(levels + column * lanes + lane, level, mask=inside)
        change = tl.load(free + column * rows + row, mask=inside) - decoded
        tl.store(changes + column * lanes + lane, change, mask=inside)
    tl.store(costs + lane, cost, mask=inside)


# ── nvfp4/numeric/int8.py: Quantise to 8-bit integers with a scale for every row: comfy_kitchen's, 

# The largest code of a row whose scale is its largest magnitude over it.
INT8_MAX = 127
# The least scale of a row: comfy_kitchen's, so that a row of zeros is not divided by 0.
LEAST_ROW_SCALE = 1e-30
# What a row's largest magnitude is tried as, in units of the scale: up to 7 % coarser than 127,
# which may suit the other weights better, down to where 13 units of that one weight are clipped.
LARGEST_TRIED = range(120, 141)
# Columns of a row whose squares are summed side by side. They are the lanes of a row's sum, too:
# all groups of as many columns are added one after the other, and then the lanes by halves.
LANE_COLUMNS = 256


def amax_row_scales(rows: torch.Tensor) -> torch.Tensor:
    """Compute the scales that make each row's largest magnitude 127: [n, 1] for rows [n, K].

    Rows and scales are float32.
    """
    # Parity: comfy_kitchen divides the largest magnitude, and bounds the quotient.
    return divide(rows.abs().amax(1, keepdim=True), INT8_MAX).clamp_(min=LEAST_ROW_SCALE)


def mse_row_scales(rows: torch.Tensor) -> torch.Tensor:
    """Choose row scales of least squared error among largest magnitude / 120 to / 140.

    rows: float32 [n, K]. Returns [n, 1] float32; of equal errors the larger scale wins. Rows of
    normal numbers gain 2.6 % of their error over `amax_row_scales` at K = 256, 1.7 % at 2,048 and
    3.5 % at 14,336. Every operation is rounded once and sums run as `sum_by_lanes` has them, so
    that compiled loops can give the same bits.
    """
    amax = rows.abs().amax(1, keepdim=True)
    # Of rows whose squares leave float32's range, no scale is better than that of amax.
    best, error = amax_row_scales(rows), torch.full_like(amax, FLOAT32_MAX)
    scaled, rounded = torch.empty_like(rows), torch.empty_like(rows)
    for largest in LARGEST_TRIED:
        scale = divide(amax, largest).clamp_(min=LEAST_ROW_SCALE)
        torch.round(torch.mul(rows, 1 / scale, out=scaled), out=rounded)
        # Passes over memory are what this takes: nothing is clipped up to 127.
        if largest > INT8_MAX:
            rounded.clamp_(-INT8_MAX - 1, INT8_MAX)
        # With reduction 0, mse_loss is the squared difference of each element in one call.
        torch.ops.aten.mse_loss.out(rounded, scaled, 0, out=scaled)
        found = sum_by_lanes(scaled) * scale * scale
        better = found < error
        best, error = torch.where(better, scale, best), torch.where(better, found, error)
    return best


def sum_by_lanes(values: torch.Tensor) -> torch.Tensor:
    """Sum rows [n, K] in an order that is the same on every device: [n, 1].

    Groups of 256 columns are added one after the other, then their 256 sums by halves.
    """
    if missing := -values.shape[1] % LANE_COLUMNS:
        values = torch.nn.functional.pad(values, (0, missing))
    first, *others = values.unflatten(1, (-1, LANE_COLUMNS)).unbind(1)
    lanes = first.clone()
    for other in others:
        lanes.add_(other)
    while lanes.shape[1] > 1:
        low, high = lanes.chunk(2, dim=1)
        lanes = low + high
    return lanes


def encode_int8(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantise rows [n, K] float32 at their scales [n, 1]: int8 [n, K], ties to even.

    With `amax_row_scales` the codes are those of comfy_kitchen.quantize_int8_rowwise.
    """
    return (rows / scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX).to(torch.int8)


def quantise_int8(
    rows: torch.Tensor, group: int, row_scales: Callable = amax_row_scales
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate rows [n, K] and quantise them: codes int8 [n, K], row scales float32 [n, 1].

    rows: floats; group: columns rotated together, or 0; row_scales: what chooses the scales. With
    those of amax the bytes are those of comfy_kitchen's layout, but for ties that the last bit of a
    rotation decides.
    """
    values = rotate(rows.float(), group) if group else rows.float()
    scale = row_scales(values)
    return encode_int8(values, scale), scale


def quantised_int8_rows(rows: torch.Tensor, group: int) -> torch.Tensor:
    """Quantise and dequantise input rows as ComfyUI's INT8 matmul sees them.

    rows: [r, K] floats; group: columns rotated together, or 0. Returns [r, K] float32. Every row
    has a scale of its own, measured on every call.
    """
    codes, scale = quantise_int8(rows, group)
    decoded = codes.float().mul_(scale)
    return rotate(decoded, group) if group else decoded


# ── nvfp4/numeric/scale_search.py: Choose the E4M3 block scales with the least squared error ──────

# Candidates are E4M3 codes counted from that of the smallest scale that clips nothing; the
# docstring of `mse_block_scales` proves that the best scale lies within these offsets, or below.
FIRST_OFFSET, LAST_OFFSET = -3, 6
# Only the candidates with negative offsets can clip a weight; the others are spared the clamp.
MAY_CLIP = 3
# Halves of E4M3 values above this code are E4M3 values; at or below it, those of odd codes are not.
UNHALVED_E4M3_CODE = 15
# At smaller global scales the reciprocals that the search multiplies by leave float32's range.
LEAST_SEARCHED_SCALE = 2.0**-100
# Bounds of the search are widened by this share, which is more than float32 rounding moves them.
DOUBT = 2.0**-20
# E4M3 values that the block scale of the largest weight gets under the other global scales tried:
# a weight of 6 times one of these stays exact. Smaller global scales would clip that weight, which
# cost more than they gave in every tensor tried.
OTHER_LARGEST_SCALES = (416, 384, 352, 320, 288, 256)
# Blocks whose errors a CPU sums at once, so that the scratch memory stays in a core's cache.
CPU_SLICE = 1 << 13


def mse_block_scales(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Choose each block's scale of least squared error among all 126 positive E4M3 values.

    magnitude: [n, k] float32 >= 0, global_scale: at least max / 2688 and 2**-100. Returns
    [n, k/16] float8_e4m3fn; equal errors go to the smaller scale; a block of zeros gets scale 0.

    Only some scales are tried, but the best is among them. Let a be the block's largest
    magnitude, u = block scale * global scale, c the code of the smallest scale with 6u >= a:
      - Too large: where u >= 2a/7, no magnitude exceeds 3.5u, so all of them round to
        {0, .5, 1, 1.5, 2, 3}u. The grid of u/2 contains these, so u/2 is no worse, and smaller.
        Codes above c + 6 have u >= 2a/7, as seven codes up from a normal one are a factor of
        at least 16/9 > 12/7. Half of a scale is an E4M3 value too, unless the scale's code is
        odd and at most 15: where c <= 8, all codes up to 15 are tried.
      - Too small: rounding a alone costs (a - 6u)**2. Codes below c - 3 are tried as far down
        as this is less than the best error found; few blocks have any.
    """
    # Transposed to [16, b], sums over a block have a fixed order on every device.
    blocks = magnitude.view(-1, BLOCK_SIZE).t().contiguous()
    block_amax = blocks.amax(0) / global_scale
    first = e4m3_code_of_at_least(block_amax / E2M1_MAX * (1 + DOUBT))
    codes = candidate_codes(first)
    errors = scale_errors(blocks, codes, global_scale)
    error = errors.amin(0)
    # Of codes with equal errors the smallest is taken.
    best = codes.masked_fill_(errors > error, LAST_E4M3_CODE).amin(0)

    # What is left below the candidates, or, for the few smallest scales, around them.
    lowest = (block_amax - error.sqrt()) / E2M1_MAX * (1 - DOUBT)
    few = first <= FIRST_NORMAL_E4M3_CODE
    low = e4m3_code_of_at_least(lowest).clamp_(min=1).masked_fill_(few, 1)
    high = (first + (FIRST_OFFSET - 1)).masked_fill_(few, UNHALVED_E4M3_CODE)
    rest = ((low <= high) & (block_amax > 0)).nonzero().squeeze(1)
    if len(rest):
        bounds, so_far = (low[rest], high[rest]), (best[rest], error[rest])
        best[rest] = search_codes(blocks.index_select(1, rest), bounds, so_far, global_scale)
    best.masked_fill_(block_amax == 0, 0)
    return best.to(torch.uint8).view(torch.float8_e4m3fn).view(len(magnitude), -1)


def search_codes(
    blocks: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
    so_far: tuple[torch.Tensor, torch.Tensor],
    global_scale: torch.Tensor,
) -> torch.Tensor:
    """Try the block scales that the candidates left out, from bound to bound.

    blocks: [16, b] float32 magnitudes; bounds: lowest and highest E4M3 code of each block [b],
    int16; so_far: each block's best code [b] int16 and its error [b] float32. Returns the best
    codes [b] int16; of equal errors the smaller code wins. The longest range decides how many
    rounds there are.
    """
    (low, high), (best, error) = bounds, so_far
    for step in range(int((high - low).max()) + 1):
        code = torch.minimum(low + step, high)
        found = scale_errors(blocks, code.unsqueeze(0), global_scale)[0]
        better = (found < error) | ((found == error) & (code < best))
        best, error = torch.where(better, code, best), torch.where(better, found, error)
    return best


def scale_errors(
    blocks: torch.Tensor, codes: torch.Tensor, global_scale: torch.Tensor
) -> torch.Tensor:
    """Compute the squared error of every block under each of its candidate scales.

    blocks: [16, b] float32 >= 0; codes: [m, b] int16, E4M3 codes 1..126, ascending, since those
    after the third are taken not to clip; global_scale: float32 scalar. Returns [m, b] float32 in
    units of global_scale**2.
    """
    scales = e4m3_value(codes)
    return sum_of_errors(blocks, 1.0 / (scales * global_scale)).mul_(scales).mul_(scales)


def sum_of_errors(blocks: torch.Tensor, reciprocals: torch.Tensor) -> torch.Tensor:
    """Sum the squared distances of scaled blocks to the nearest E2M1 values.

    blocks: [16, b] float32 >= 0; reciprocals: [m, b] float32, of block scale times global scale.
    Returns [m, b] float32. Every operation is exact or rounded once and the sum is a tree, so that
    `block_errors` in `kernels` gives the same bits.
    """
    # A GPU takes all blocks in one slice: there, launching many small kernels takes longer.
    sums = torch.empty_like(reciprocals)
    width = blocks.shape[1] if blocks.is_cuda else min(CPU_SLICE, blocks.shape[1])
    scratch = blocks.new_empty(3, BLOCK_SIZE, width)
    parts = (tensor.split(width, dim=1) for tensor in (blocks, reciprocals, sums))
    for part, some_reciprocals, some_sums in zip(*parts, strict=True):
        fill_sums(part, some_reciprocals, some_sums, scratch[:, :, : part.shape[1]])
    return sums


def fill_sums(
    blocks: torch.Tensor, reciprocals: torch.Tensor, sums: torch.Tensor, scratch: torch.Tensor
) -> None:
    """Compute one slice of `sum_of_errors` in place.

    blocks: [16, s]; reciprocals and sums: [m, s], sums being filled; scratch: [3, 16, s],
    overwritten; all float32. Calls of torch are few, because threads share Python's lock between
    them.
    """
    scaled, power, rounded = scratch
    bits, (low, high) = power.view(torch.int32), scaled.chunk(2)
    quarters, pairs, halves = low.chunk(2), low[:4].chunk(2), low[:2].unbind(0)
    for index, (reciprocal, total) in enumerate(zip(reciprocals, sums, strict=True)):
        torch.mul(blocks, reciprocal, out=scaled)
        # The power of two at or below a value decides its step; E2M1 has the powers 1, 2 and 4.
        torch.clamp(scaled, 1.0, 4.0, out=power)
        bits.bitwise_and_(FLOAT32_EXPONENT)
        torch.add(scaled, power, alpha=ROUND_TO_HALVES, out=rounded)
        rounded.sub_(power, alpha=ROUND_TO_HALVES)
        if index < MAY_CLIP:
            rounded.clamp_(max=E2M1_MAX)
        # With reduction 0, mse_loss is the squared difference of each element in one call.
        torch.ops.aten.mse_loss.out(scaled, rounded, 0, out=scaled)
        # Sixteen squares become one sum by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
        low.add_(high)
        quarters[0].add_(quarters[1])
        pairs[0].add_(pairs[1])
        torch.add(*halves, out=total)


# What --scale-search may choose.
SCALE_SEARCHES = {"mse": mse_block_scales, "amax": amax_block_scales}


def candidate_codes(first: torch.Tensor) -> torch.Tensor:
    """List the E4M3 codes of block scales to try around the smallest that clips nothing.

    first: [b] int16, the code of that smallest scale. Returns [10, b] int16 in ascending order,
    from 3 codes below it to 6 above, clamped to 1..126.
    """
    offsets = torch.arange(FIRST_OFFSET, LAST_OFFSET + 1, dtype=torch.int16, device=first.device)
    return (first + offsets.unsqueeze(1)).clamp_(1, LAST_E4M3_CODE)


# ── nvfp4/numeric/kernels.py: Write the hot loops over a few rows so that numba can compile them ──

# The float32 value of each positive E4M3 code; the last one, 127, is NaN.
E4M3_VALUES = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
# Blocks worked on side by side: the 16 magnitudes of each, 4 kB, stay in the first-level cache, and
# loops over them become vector instructions.
LANES = 64
# Plain Python numbers would make numba compute in float64, and round otherwise than torch does.
FLOAT32 = np.float32
# The least error so far before any scale was tried: no error that is finite is larger.
LARGEST_FLOAT32 = FLOAT32(3e38)


def e4m3_codes(values: np.ndarray, codes: np.ndarray) -> None:
    """Round float32 values from 0 to 448 to the nearest E4M3 codes, ties to even.

    values: [n] float32; codes: [n] int32, filled. The result is that of torch's cast to
    float8_e4m3fn.
    """
    bits = values.view(np.int32)
    for j in range(len(values)):
        # Half of the 20 bits that are dropped is added, less one where the last kept bit is even;
        # 960 is the difference of the exponents' biases, (127 - 7) * 8.
        normal = ((bits[j] + 0x7FFFF + ((bits[j] >> 20) & 1)) >> 20) - 960
        # Subnormals are multiples of 2**-9: adding 2**23 rounds to whole ones, ties to even.
        subnormal = np.int32((values[j] * FLOAT32(512) + FLOAT32(8388608)) - FLOAT32(8388608))
        codes[j] = normal if values[j] >= FLOAT32(2**-6) else subnormal


def e4m3_codes_of_at_least(values: np.ndarray, codes: np.ndarray) -> None:
    """Find the smallest E4M3 codes whose values are not below the numbers given.

    values: [n] float32, clamped in place to 0..448; codes: [n] int32, filled. Up to 448 the same as
    `codes.e4m3_code_of_at_least`; larger numbers get 126 here and 127 there.
    """
    for j in range(len(values)):
        values[j] = min(max(values[j], FLOAT32(0)), FLOAT32(E4M3_MAX))
    e4m3_codes(values, codes)
    for j in range(len(values)):
        codes[j] += E4M3_VALUES[codes[j]] < values[j]


def block_errors(
    magnitudes: np.ndarray, codes: np.ndarray, global_scale: np.float32, errors: np.ndarray
) -> None:
    """Compute the squared error of blocks side by side, each at one block scale.

    magnitudes: [16, b] float32; codes: [b] int32, E4M3 codes; global_scale: float32; errors: [b]
    float32, filled, in units of global_scale**2. Sums run in the order of
    `scale_search.scale_errors`, so that the bits are the same.
    """
    count = magnitudes.shape[1]
    sums, reciprocals = np.zeros((8, count), FLOAT32), np.empty(count, FLOAT32)
    for j in range(count):
        reciprocals[j] = FLOAT32(1) / (E4M3_VALUES[codes[j]] * global_scale)
    for i in range(BLOCK_SIZE):
        row, total = magnitudes[i], sums[i % 8]
        for j in range(count):
            # Values from 0, 2 and 4 on have steps of 0.5, 1 and 2, hence three shifts.
            scaled = row[j] * reciprocals[j]
            large = FLOAT32(ROUND_TO_HALVES)
            large = FLOAT32(2 * ROUND_TO_HALVES) if scaled >= FLOAT32(2) else large
            large = FLOAT32(4 * ROUND_TO_HALVES) if scaled >= FLOAT32(4) else large
            error = scaled - min((scaled + large) - large, FLOAT32(E2M1_MAX))
            total[j] += error * error
    # Parity: the same tree of additions as `fill_sums`, whose first step made 8 of 16 sums.
    for half in (4, 2, 1):
        for i in range(half):
            for j in range(count):
                sums[i, j] += sums[i + half, j]
    for j in range(count):
        scale = E4M3_VALUES[codes[j]]
        errors[j] = sums[0, j] * scale * scale


def keep_better(codes: np.ndarray, errors: np.ndarray, best: np.ndarray, least: np.ndarray) -> None:
    """Keep, for each block, the better of a new block scale and the best one so far.

    codes: [b] int32, and errors: [b] float32, of the new ones; best, least: those of the best ones,
    updated. A smaller error is better, and of equal errors the smaller code.
    """
    for j in range(len(codes)):
        better = (errors[j] < least[j]) | ((errors[j] == least[j]) & (codes[j] < best[j]))
        best[j] = codes[j] if better else best[j]
        least[j] = errors[j] if better else least[j]


def best_codes(
    magnitudes: np.ndarray, block_amax: np.ndarray, global_scale: np.float32, best: np.ndarray
) -> None:
    """Search the best block scales as `scale_search.mse_block_scales` does.

    magnitudes: [16, b] float32; block_amax: [b] float32, the largest of each block, overwritten;
    global_scale: float32; best: [b] int32, filled with E4M3 codes, 0 for a block of zeros.
    """
    count = len(block_amax)
    first, codes = np.empty(count, np.int32), np.empty(count, np.int32)
    values, errors, least = (
        np.empty(count, FLOAT32),
        np.empty(count, FLOAT32),
        np.empty(count, FLOAT32),
    )
    for j in range(count):
        block_amax[j] /= global_scale
        # Parity: every step is rounded to float32 in the order of `mse_block_scales`.
        values[j] = block_amax[j] / FLOAT32(E2M1_MAX) * FLOAT32(1 + DOUBT)
        best[j], least[j] = LAST_E4M3_CODE + 1, LARGEST_FLOAT32
    e4m3_codes_of_at_least(values, first)
    for offset in range(FIRST_OFFSET, LAST_OFFSET + 1):
        for j in range(count):
            codes[j] = min(max(first[j] + offset, 1), LAST_E4M3_CODE)
        block_errors(magnitudes, codes, global_scale, errors)
        keep_better(codes, errors, best, least)
    # A few blocks may have better scales below the candidates; a block of zeros gets scale 0.
    search_below(magnitudes, block_amax, global_scale, (first, best, least))
    for j in range(count):
        best[j] = best[j] if block_amax[j] > 0 else 0


def search_below(
    magnitudes: np.ndarray,
    block_amax: np.ndarray,
    global_scale: np.float32,
    so_far: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Search on below the candidates, for the few blocks whose bound leaves codes there.

    Does what `scale_search.search_codes` does. magnitudes: [16, b]; block_amax: [b], in units of
    the global scale; so_far: the code of each block's smallest scale that clips nothing, its best
    code and its least error, [b] each; the best codes are updated and the first ones overwritten.
    """
    first, best, least = so_far
    values, low = np.empty(len(first), FLOAT32), np.empty(len(first), np.int32)
    for j in range(len(first)):
        bound = (block_amax[j] - np.sqrt(least[j])) / FLOAT32(E2M1_MAX)
        values[j] = bound * FLOAT32(1 - DOUBT)
    e4m3_codes_of_at_least(values, low)
    count, steps, rest = 0, 0, np.empty(len(first), np.int32)
    for j in range(len(first)):
        few = first[j] <= FIRST_NORMAL_E4M3_CODE
        low[j] = 1 if few else max(low[j], 1)
        first[j] = UNHALVED_E4M3_CODE if few else first[j] + FIRST_OFFSET - 1
        if low[j] <= first[j] and block_amax[j] > 0:
            rest[count] = j
            count += 1
            steps = max(steps, first[j] - low[j] + 1)
    # The few blocks are copied side by side, as errors are computed for many lanes at a time.
    rest = rest[:count]
    some, codes, errors = magnitudes[:, rest], low[rest], np.empty(count, FLOAT32)
    some_best, some_least = best[rest], least[rest]
    for _ in range(steps):
        block_errors(some, codes, global_scale, errors)
        keep_better(codes, errors, some_best, some_least)
        for j in range(count):
            codes[j] = min(codes[j] + 1, first[rest[j]])
    for j in range(count):
        best[rest[j]] = some_best[j]


def round_blocks(
    magnitudes: np.ndarray, best: np.ndarray, global_scale: np.float32, codes: np.ndarray
) -> tuple[float, float]:
    """Round blocks side by side to E2M1 codes, and measure the error.

    magnitudes: [16, b] float32; best: [b] int32, E4M3 codes of the block scales; codes: [16, b]
    int32, filled with 0..7. Returns squared error and energy in units of the global scale, summed
    in float64 over the lanes.
    """
    count = len(best)
    steps, scales = np.empty(count, FLOAT32), np.empty(count, FLOAT32)
    errors, energies = np.zeros(count, FLOAT32), np.zeros(count, FLOAT32)
    unit = FLOAT32(1) / global_scale
    for j in range(count):
        scales[j] = E4M3_VALUES[best[j]]
        steps[j] = scales[j] * global_scale
    for i in range(BLOCK_SIZE):
        magnitude, code = magnitudes[i], codes[i]
        for j in range(count):
            scaled = magnitude[j] / (steps[j] if steps[j] > 0 else FLOAT32(1))
            scaled = min(scaled, FLOAT32(E2M1_MAX)) if steps[j] > 0 else FLOAT32(0)
            power = FLOAT32(4) if scaled >= 4 else FLOAT32(2) if scaled >= 2 else FLOAT32(1)
            large = power * FLOAT32(ROUND_TO_HALVES)
            rounded = scaled + large - large
            # A power's values are steps of half of it; each power begins two codes further up.
            start = 4 if scaled >= 4 else 2 if scaled >= 2 else 0
            code[j] = np.int32(rounded * (FLOAT32(2) / power)) + start
            original = magnitude[j] * unit
            error = rounded * scales[j] - original
            errors[j] += error * error
            energies[j] += original * original
    return total(errors), total(energies)


def encode_blocks(
    bits: np.ndarray, global_scale: np.float32, search: bool, packed: np.ndarray, scales: np.ndarray
) -> tuple[float, float]:
    """Quantise blocks to NVFP4 as `codes.encode_nvfp4` does.

    bits: [b, 16] int32, float32's bits; search: least error, else amax; packed: [b] uint64, filled,
    bytes in order; scales: [b] uint8, filled. Returns squared error and energy in units of the
    global scale.
    """
    shape = (BLOCK_SIZE, LANES)
    turned, codes = np.empty(shape, np.int32), np.empty(shape, np.int32)
    magnitudes = np.empty(shape, FLOAT32)
    block_amax, best = np.empty(LANES, FLOAT32), np.empty(LANES, np.int32)
    error, energy = 0.0, 0.0
    for begin in range(0, len(bits), LANES):
        count = min(LANES, len(bits) - begin)
        # Lanes beyond the last block hold zeros, which add nothing to error and energy.
        if count < LANES:
            turned[:] = 0
        some = bits[begin : begin + count]
        for j in range(count):
            for i in range(BLOCK_SIZE):
                turned[i, j] = some[j, i]
        values, block_amax[:] = turned.view(FLOAT32), 0
        for i in range(BLOCK_SIZE):
            row, magnitude = values[i], magnitudes[i]
            for j in range(LANES):
                magnitude[j] = abs(row[j])
                block_amax[j] = max(block_amax[j], magnitude[j])
        if search:
            best_codes(magnitudes, block_amax, global_scale, best)
        else:
            for j in range(LANES):
                scale = block_amax[j] / FLOAT32(E2M1_MAX) / global_scale
                block_amax[j] = min(scale, FLOAT32(E4M3_MAX))
            e4m3_codes(block_amax, best)
        more_error, more_energy = round_blocks(magnitudes, best, global_scale, codes)
        error, energy = error + more_error, energy + more_energy
        scales[begin : begin + count] = best[:count]
        for j in range(count):
            # What a scale of zero loses becomes +0, as in `codes.encode_nvfp4`: no sign bit (8).
            dead = E4M3_VALUES[best[j]] * global_scale == 0
            best[j] = 0 if dead else 8
        pack_blocks(codes, turned, best, packed[begin : begin + count])
    return error, energy


def pack_blocks(codes: np.ndarray, bits: np.ndarray, signs: np.ndarray, packed: np.ndarray) -> None:
    """Pack codes of blocks with their signs, as `codes.pack_e2m1` does.

    codes: [16, b] int32; bits: [16, b] int32, the float32 bits with the signs; signs: [b] int32, 8
    where they count and 0 where a block is all +0; packed: [b] uint64, filled, its lowest byte the
    first one in the file.
    """
    packed[:] = 0
    for i in range(BLOCK_SIZE // 2):
        even, odd = codes[2 * i], codes[2 * i + 1]
        even_bits, odd_bits = bits[2 * i], bits[2 * i + 1]
        for j in range(len(packed)):
            high = even[j] | ((even_bits[j] >> 28) & signs[j])
            low = odd[j] | ((odd_bits[j] >> 28) & signs[j])
            packed[j] |= np.uint64((high << 4) | low) << np.uint64(8 * i)


def e4m3_values(codes: np.ndarray, values: np.ndarray) -> None:
    """Decode E4M3 codes to float32 by their bits.

    codes: [n] int32, 0..126; values: [n] float32, filled. A look-up in E4M3_VALUES would take one
    code at a time, where this becomes vector instructions.
    """
    bits = values.view(np.int32)
    for j in range(len(codes)):
        # The inverse of what `e4m3_codes` does for normal numbers.
        bits[j] = (codes[j] + 960) << 20
    for j in range(len(codes)):
        subnormal = FLOAT32(codes[j]) * FLOAT32(2**-9)
        values[j] = values[j] if codes[j] >= FIRST_NORMAL_E4M3_CODE else subnormal


def encode_bytes(weights: np.ndarray, scale: np.float32, codes: np.ndarray) -> tuple[float, float]:
    """Quantise weights to FP8 as `codes.encode_fp8` does.

    weights: [n] float32; scale: float32; codes: [n] uint8, filled with E4M3 bits. Returns squared
    error and energy in units of the scale.
    """
    # As many weights at a time as `encode_blocks` takes, though FP8 has no blocks.
    width, bits = LANES * BLOCK_SIZE, weights.view(np.int32)
    reciprocal = FLOAT32(1) / scale
    magnitudes, values = np.empty(width, FLOAT32), np.empty(width, FLOAT32)
    errors, energies = np.zeros(width, FLOAT32), np.zeros(width, FLOAT32)
    found = np.empty(width, np.int32)
    for begin in range(0, len(weights), width):
        # Numba vectorises loops over slices, not over indices that it cannot prove positive.
        end = begin + width
        some, signs, out = weights[begin:end], bits[begin:end], codes[begin:end]
        for j in range(len(some)):
            magnitudes[j] = abs(some[j]) * reciprocal
            values[j] = min(magnitudes[j], FLOAT32(E4M3_MAX))
        e4m3_codes(values, found)
        for j in range(len(some)):
            out[j] = found[j] | ((signs[j] >> 24) & 0x80)
        e4m3_values(found, values)
        # One sum for each lane: a single one would wait for its last addition.
        for j in range(len(some)):
            difference = values[j] - magnitudes[j]
            errors[j] += difference * difference
            energies[j] += magnitudes[j] * magnitudes[j]
    return total(errors), total(energies)


def total(values: np.ndarray) -> float:
    """Sum values [n] one after the other in float64."""
    result = 0.0
    for value in values:
        result += value
    return result


# In the order in which `compile_kernels` compiles them: a loop comes after those that it calls.
KERNELS = (
    e4m3_codes,
    e4m3_codes_of_at_least,
    e4m3_values,
    total,
    block_errors,
    keep_better,
    search_below,
    best_codes,
    round_blocks,
    pack_blocks,
    encode_blocks,
    encode_bytes,
)


# ── nvfp4/numeric/kernels_int8.py: Write the loops of 8-bit formats with scales of rows or blocks, 

# The least mantissas that `mxfp8.amax_power_scales` rounds up, by exponent.
ROUNDED_UP = FIRST_ROUNDED_UP.numpy()
# Columns of a row that MXFP8 is made of at a time: 4 kB an array, of which there are four.
MX_COLUMNS = 1024
# Added to a float32 up to 2**22 and subtracted again, it leaves the nearest integer, ties to even.
ROUND_TO_INTEGERS = FLOAT32(1.5 * 2.0**23)
# The bits of a float32 without its sign; as integers they are in the order of the magnitudes.
MAGNITUDE_BITS = np.int32(0x7FFFFFFF)


def rotate_columns(values: np.ndarray) -> None:
    """Rotate a row [K] float32 in groups of 256 columns as `rotation.rotate` does, in place."""
    for j in range(len(values) // 4):
        a, b, c, d = values[4 * j], values[4 * j + 1], values[4 * j + 2], values[4 * j + 3]
        half = ((a + b) + (c + d)) * FLOAT32(0.5)
        values[4 * j], values[4 * j + 1] = half - d, half - c
        values[4 * j + 2], values[4 * j + 3] = half - b, half - a
    # Steps are written out, so that each loop has a length that the compiler knows.
    for step in (4, 16, 64):
        for begin in range(0, len(values), 4 * step):
            some = values[begin : begin + 4 * step]
            mix_fours(
                some[:step], some[step : 2 * step], some[2 * step : 3 * step], some[3 * step :]
            )


def mix_fours(first: np.ndarray, second: np.ndarray, third: np.ndarray, fourth: np.ndarray) -> None:
    """Apply one factor of the rotation to four parts of a group, [step] float32 each, in place."""
    for j in range(len(first)):
        a, b, c, d = first[j], second[j], third[j], fourth[j]
        half = ((a + b) + (c + d)) * FLOAT32(0.5)
        first[j], second[j], third[j], fourth[j] = half - d, half - c, half - b, half - a


def row_amax(values: np.ndarray) -> np.float32:
    """Find the largest magnitude of a row [K] float32 that is finite."""
    bits, largest = values.view(np.int32), np.zeros(1, np.int32)
    # Integers, as numba makes no vector instructions of the largest of many floats.
    most = np.int32(0)
    for j in range(len(bits)):
        most = max(most, bits[j] & MAGNITUDE_BITS)
    largest[0] = most
    return largest.view(FLOAT32)[0]


def add_lanes(lanes: np.ndarray) -> np.float32:
    """Sum lanes [a power of two] float32 by halves, in place: the last tree of a row's sum."""
    half = len(lanes) // 2
    while half:
        low, high = lanes[:half], lanes[half : 2 * half]
        for j in range(half):
            low[j] += high[j]
        half //= 2
    return lanes[0]


def round_row(
    values: np.ndarray, scale: np.float32, codes: np.ndarray, lanes: np.ndarray
) -> tuple[float, float]:
    """Round a row to integers as `int8.encode_int8` does, and measure the error.

    values: [K] float32; scale: that of the row; codes: [K] int8, filled; lanes: [2, LANE_COLUMNS]
    float32, overwritten. Returns squared error and energy in units of the scale.
    """
    lanes[:] = 0
    errors, energies = lanes[0], lanes[1]
    for begin in range(0, len(values), LANE_COLUMNS):
        some, out = values[begin : begin + LANE_COLUMNS], codes[begin : begin + LANE_COLUMNS]
        for j in range(len(some)):
            # Parity: comfy_kitchen divides, and saturates what is rounded.
            scaled = some[j] / scale
            level = (scaled + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            level = min(max(level, FLOAT32(-INT8_MAX - 1)), FLOAT32(INT8_MAX))
            out[j] = np.int32(level)
            error = scaled - level
            errors[j] += error * error
            energies[j] += scaled * scaled
    return np.float64(add_lanes(errors)), np.float64(add_lanes(energies))


def row_error(values: np.ndarray, scale: np.float32, lanes: np.ndarray) -> np.float32:
    """Compute the squared error of a row at a scale as `int8.mse_row_scales` does.

    values: [K] float32; lanes: [LANE_COLUMNS] float32, overwritten.
    """
    lanes[:], reciprocal = 0, FLOAT32(1) / scale
    for begin in range(0, len(values), LANE_COLUMNS):
        some = values[begin : begin + LANE_COLUMNS]
        for j in range(len(some)):
            scaled = some[j] * reciprocal
            level = (scaled + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            error = min(max(level, FLOAT32(-INT8_MAX - 1)), FLOAT32(INT8_MAX)) - scaled
            lanes[j] += error * error
    return add_lanes(lanes) * scale * scale


def best_row_scale(values: np.ndarray, tried: np.ndarray, lanes: np.ndarray) -> np.float32:
    """Choose the scale of a row as `int8.mse_row_scales` does.

    values: [K] float32; tried: [m] float32, what the largest magnitude may be in units of the
    scale, in the order of trying, or none for 127; lanes: [LANE_COLUMNS], overwritten.
    """
    amax, least = row_amax(values), FLOAT32(FLOAT32_MAX)
    best = max(amax / FLOAT32(INT8_MAX), FLOAT32(LEAST_ROW_SCALE))
    for index in range(len(tried)):
        scale = max(amax / tried[index], FLOAT32(LEAST_ROW_SCALE))
        error = row_error(values, scale, lanes)
        if error < least:
            best, least = scale, error
    return best


def encode_integers(
    rows: np.ndarray, rotated: bool, tried: np.ndarray, codes: np.ndarray, scales: np.ndarray
) -> tuple[float, float]:
    """Rotate rows and quantise them to INT8 as `int8.quantise_int8` does.

    rows: [n, K] float32; rotated: whether in groups of 256; tried: see `best_row_scale`; codes: [n,
    K] int8, filled; scales: [n] float32, filled. Returns squared error and energy, summed over rows
    in float64.
    """
    values, lanes = np.empty(rows.shape[1], FLOAT32), np.empty((2, LANE_COLUMNS), FLOAT32)
    error, energy = 0.0, 0.0
    for row in range(len(rows)):
        values[:] = rows[row]
        if rotated:
            rotate_columns(values)
        scale = best_row_scale(values, tried, lanes[0])
        scales[row], unit = scale, np.float64(scale) * np.float64(scale)
        more_error, more_energy = round_row(values, scale, codes[row], lanes)
        error, energy = error + more_error * unit, energy + more_energy * unit
    return error, energy


def power_codes(values: np.ndarray, codes: np.ndarray) -> int:
    """Find the E8M0 codes of a row's blocks as `mxfp8.amax_power_scales` does.

    values: [K] float32; codes: [K/32] uint8, filled. Returns the largest code.
    """
    largest = 0
    for block in range(len(codes)):
        amax = row_amax(values[block * MX_BLOCK : (block + 1) * MX_BLOCK])
        needed = np.empty(1, FLOAT32)
        needed[0] = max(amax / FLOAT32(E4M3_MAX), FLOAT32(2.0**-E8M0_ONE))
        bits = needed.view(np.int32)[0]
        exponent, mantissa = bits >> 23, bits & MANTISSA_BITS
        code = exponent + (mantissa >= ROUNDED_UP[exponent])
        codes[block] = code if amax > 0 else 0
        largest = max(largest, codes[block])
    return largest


def spread_powers(codes: np.ndarray, largest: int, powers: np.ndarray) -> None:
    """Give each column what its block is multiplied by, and its part of the row's unit.

    codes: [b] uint8, E8M0; largest: that of the row, whose power of two is the unit; powers: [2,
    32b] float32, filled.
    """
    bits = powers.view(np.int32)
    for block in range(len(codes)):
        some = slice(block * MX_BLOCK, (block + 1) * MX_BLOCK)
        code = np.int32(codes[block])
        # The exponent's bits of 2**(127 - code); 2**-127 is a subnormal. Code 0 makes zeros.
        inverse = ((2 * E8M0_ONE - code) << 23) if code else 0
        bits[0, some] = (1 << 22) if code == LAST_E8M0_CODE else inverse
        # Shares below float32's range are those of errors that nobody sees.
        bits[1, some] = max(E8M0_ONE + code - largest, 0) << 23


def encode_powers(rows: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> tuple[float, float]:
    """Quantise rows to MXFP8 as `mxfp8.encode_mxfp8` does at the scales of amax.

    rows: [n, K] float32, K a multiple of 32; codes: [n, K] uint8, filled with E4M3 bits; scales:
    [n, K/32] uint8, filled. Returns squared error and energy, summed over rows in float64.
    """
    shape = (MX_COLUMNS,)
    magnitudes, values, found = (
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
        np.empty(shape, np.int32),
    )
    powers, lanes = np.empty((2, MX_COLUMNS), FLOAT32), np.empty((2, MX_COLUMNS), FLOAT32)
    total_error, total_energy = 0.0, 0.0
    for row in range(len(rows)):
        largest = power_codes(rows[row], scales[row])
        lanes[:] = 0
        errors, energies = lanes[0], lanes[1]
        for begin in range(0, rows.shape[1], MX_COLUMNS):
            some, out = (
                rows[row, begin : begin + MX_COLUMNS],
                codes[row, begin : begin + MX_COLUMNS],
            )
            signs, count = some.view(np.int32), len(some)
            spread_powers(
                scales[row, begin // MX_BLOCK : (begin + count) // MX_BLOCK], largest, powers
            )
            inverses, shares = powers[0], powers[1]
            for j in range(count):
                magnitudes[j] = abs(some[j]) * inverses[j]
                values[j] = min(magnitudes[j], FLOAT32(E4M3_MAX))
            e4m3_codes(values[:count], found)
            for j in range(count):
                sign = (signs[j] >> 24) & 0x80
                out[j] = found[j] | (sign if inverses[j] > 0 else 0)
            e4m3_values(found[:count], values)
            for j in range(count):
                error, original = (values[j] - magnitudes[j]) * shares[j], magnitudes[j] * shares[j]
                errors[j] += error * error
                energies[j] += original * original
        unit = 4.0 ** (largest - E8M0_ONE)
        total_error += add_lanes(errors) * unit
        total_energy += add_lanes(energies) * unit
    return total_error, total_energy


# In the order in which `compile_kernels` compiles them.
INT8_KERNELS = (
    mix_fours,
    rotate_columns,
    row_amax,
    add_lanes,
    round_row,
    row_error,
    best_row_scale,
    encode_integers,
    power_codes,
    spread_powers,
    encode_powers,
)


# ── nvfp4/numeric/w4a8.py: Quantise rotated weights to 4 or 6 bits that decode to INT8: ComfyUI's a

# Columns that share a group scale.
W4A8_GROUP = 16
# The levels of comfy_kitchen's 4-bit codebook (tensor/w4a8_packed.py), fitted to normal numbers.
KITCHEN_CODEBOOK = (
    -0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720,
    0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671,
)  # fmt: skip
# 6-bit codes stand for the integers from -31 to 31, stored from 1 on.
LARGEST_SIX_BITS = 31
# Sums of squares and scales are at least this: comfy_kitchen's bound against division by 0.
LEAST_SUM = 1e-8
# Times that group scales are fitted to the levels chosen, and levels chosen anew.
FITS = 2


def codebook_of(bits: int, device: torch.device) -> torch.Tensor:
    """Return the levels that codes of 4 or 6 bits stand for, ascending: float32 [16] or [63]."""
    if bits == 4:
        return torch.tensor(KITCHEN_CODEBOOK, device=device)
    largest = LARGEST_SIX_BITS
    return torch.arange(-largest, largest + 1, device=device, dtype=torch.float32)


def code_bits(levels: Sized) -> int:
    """Tell how many bits a code has that stands for one of 16 levels of a codebook, or of 63."""
    return 4 if len(levels) == 1 << 4 else 6


def nearest_levels(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Find the nearest of ascending levels, the lower one of two that are as near.

    values: float32 [..., c]; levels: float32 [m], or [..., m] for each group of values. Returns
    int64 of the shape of the values.
    """
    above = torch.searchsorted(levels, values.contiguous())
    below = (above - 1).clamp_(min=0)
    above.clamp_(max=levels.shape[-1] - 1)
    low, high = (take_levels(levels, index) for index in (below, above))
    return torch.where((values - high).abs() < (values - low).abs(), above, below)


def take_levels(levels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Look levels up: [m] for all, or [..., m] for each group, by an index [..., c]."""
    return levels[index] if levels.dim() == 1 else levels.gather(-1, index)


def integer_levels(levels: torch.Tensor, group_scale: torch.Tensor) -> torch.Tensor:
    """Compute the INT8 weights that levels stand for in each group: float32 [n, g, m].

    levels: [m]; group_scale: float8_e4m3fn [n, g].
    """
    products = levels * decode_e4m3(group_scale).unsqueeze(-1)
    return products.round_().clamp_(-INT8_MAX, INT8_MAX)


def fit_group_scales(groups: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Fit group scales and levels to each other, without any rounding of scales.

    groups: float32 [n, g, 16]; levels: [m]. Returns the group scales [n, g, 1] and the weights
    that they make [n, g, 16].
    """
    scale = groups.abs().amax(-1, keepdim=True)
    # Parity: of 6 bits the largest level is 31, of the codebook it counts as 1.
    if code_bits(levels) == 6:
        scale = divide(scale, LARGEST_SIX_BITS)
    scale = scale.clamp(min=LEAST_SUM)
    chosen = take_levels(levels, nearest(groups / scale, levels))
    for _ in range(FITS):
        energy = (chosen * chosen).sum(-1, keepdim=True).clamp(min=LEAST_SUM)
        scale = ((groups * chosen).sum(-1, keepdim=True) / energy).clamp(min=LEAST_SUM)
        chosen = take_levels(levels, nearest(groups / scale, levels))
    return scale, chosen * scale


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Find the nearest levels; integers by rounding, ties to even, a codebook by its order."""
    if code_bits(levels) == 4:
        return nearest_levels(values, levels)
    largest = LARGEST_SIX_BITS
    return values.round().clamp_(-largest, largest).add_(largest).long()


def encode_w4a8(rows: torch.Tensor, bits: int) -> tuple[torch.Tensor, ...]:
    """Quantise rotated rows [n, K] float32 to 4 or 6 bits, K a multiple of 16.

    Returns codes int8 [n, K * bits / 8], group scales float8_e4m3fn [n, K/16] and row scales
    float32 [n]: those of comfy_kitchen.quantize_w4a8_int8_weight where it takes its own codebook.
    """
    levels = codebook_of(bits, rows.device)
    groups = rows.unflatten(1, (-1, W4A8_GROUP))
    scale, made = fit_group_scales(groups, levels)
    row_scale = divide(made.abs().amax((1, 2)), INT8_MAX).clamp(min=LEAST_SUM)
    group_scale = (scale.squeeze(-1) / row_scale.unsqueeze(1)).to(torch.float8_e4m3fn)
    target = groups / row_scale.view(-1, 1, 1)
    codes, _ = round_groups(target, levels, group_scale)
    if bits == 6:
        group_scale, codes = try_neighbours(target, levels, group_scale)
        codes = codes + 1
    return pack_w4a8(codes.flatten(1), bits), group_scale.contiguous(), row_scale


def round_groups(
    target: torch.Tensor, levels: torch.Tensor, group_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round groups to the nearest integer levels of their scales.

    target: weight / row scale, float32 [n, g, 16]; group_scale: float8_e4m3fn [n, g]. Returns
    indices of levels int64 [n, g, 16] and squared errors [n, g].
    """
    made = integer_levels(levels, group_scale)
    codes = nearest_levels(target, made)
    return codes, (made.gather(-1, codes) - target).square_().sum(-1)


def try_neighbours(
    target: torch.Tensor, levels: torch.Tensor, group_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the E4M3 neighbour of each group scale where that has less error.

    Arguments as for `round_groups`. Returns group scales and codes; of equal errors the scale that
    was there stays.
    """
    bits = group_scale.view(torch.uint8)
    others = [(bits - 1).clamp(min=1), (bits + 1).clamp(max=LAST_E4M3_CODE)]
    best, (codes, least) = group_scale, round_groups(target, levels, group_scale)
    for other in (code.view(torch.float8_e4m3fn) for code in others):
        found, error = round_groups(target, levels, other)
        better = error < least
        best = torch.where(better, other.view(torch.uint8), best.view(torch.uint8))
        best = best.view(torch.float8_e4m3fn)
        codes = torch.where(better.unsqueeze(-1), found, codes)
        least = torch.where(better, error, least)
    return best, codes


def pack_w4a8(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes [n, K] of 4 or 6 bits: int8 [n, K * bits / 8].

    Two columns share a byte, the even one in the low nibble; of 6 bits the upper two follow after
    all of the lower ones, four columns in a byte, the first in its lowest bits.
    """
    codes = codes.to(torch.uint8)
    packed = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)
    if bits == 6:
        upper = codes >> 4
        quarters = (upper[:, index::4] << (2 * index) for index in range(4))
        packed = torch.cat([packed, sum(quarters)], dim=1)
    return packed.view(torch.int8)


def unpack_w4a8(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Unpack what `pack_w4a8` packed: codes uint8 [n, columns]; the width tells the bits."""
    packed = packed.view(torch.uint8)
    low, upper = packed[:, : columns // 2], packed[:, columns // 2 :]
    codes = torch.stack([low & 15, low >> 4], dim=2).flatten(1)
    if upper.shape[1]:
        shifts = torch.arange(0, 8, 2, device=packed.device, dtype=torch.uint8)
        codes |= ((upper.unsqueeze(2) >> shifts) & 3).flatten(1) << 4
    return codes


def decode_w4a8(
    packed: torch.Tensor, group_scale: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """Decode to the INT8 weights that the matmul takes: float32 [n, K], integers.

    packed: int8, as `pack_w4a8` gives it; group_scale: float8_e4m3fn [n, K/16]; levels: by code,
    [16] or [64].
    """
    codes = unpack_w4a8(packed, group_scale.shape[1] * W4A8_GROUP)
    values = levels[codes.int()].unflatten(1, (-1, W4A8_GROUP))
    values = values * group_scale.float().unsqueeze(-1)
    return values.round_().clamp_(-INT8_MAX, INT8_MAX).flatten(1)


# ── nvfp4/numeric/level_search.py: Choose the group scales of W4A8 and W6A8 with the least squared 

# Levels fitted to normal numbers of unit rows by Lloyd's method and by single steps, for scales of
# either sign: mirrored, they fall between themselves, so a group chooses between two codebooks.
ASYMMETRIC_CODEBOOK = (
    -0.8718, -0.6279, -0.4841, -0.3694, -0.2636, -0.1644, -0.0715, 0.0228,
    0.1191, 0.2199, 0.3230, 0.4314, 0.5442, 0.6712, 0.8350, 1.0,
)  # fmt: skip
# Sums of two INT8 integers, from -254 to 254, are columns of the tables from this one on.
TABLE_MIDDLE, TABLE_COLUMNS = 256, 512
# Weights are rounded to these parts of an INT8 step before the search, so that squared errors are
# whole numbers of small units and their sums the same in any order, as in `kernels_levels`. That is
# far less than what codes of 4 bits leave, 2 steps, and those of 6 bits, half a step.
FOUR_BIT_UNITS, SIX_BIT_UNITS = 32, 256
# The sign bit of an E4M3 code.
E4M3_SIGN = 0x80
# Groups that a CPU searches at once, so that the scratch memory stays in a core's cache.
GROUPS_AT_ONCE = 1 << 12
# Rows, evenly spread over a weight, that its codebook is chosen by.
SAMPLE_ROWS = 64


class LevelGrid(NamedTuple):
    """Describe the levels of a codebook, and which group scales are tried.

    levels: ascending, of which the last has the largest magnitude; tried: first and last E4M3 code
    relative to the code of the smallest scale that clips nothing; mirrored: the same for scales
    that put the largest weight on the other side, None where scales are positive only.
    """

    levels: tuple[float, ...]
    tried: tuple[int, int]
    mirrored: tuple[int, int] | None = None

    def codebook(self, device: torch.device) -> torch.Tensor:
        """Return the levels as a tensor: float32 [m]."""
        return torch.tensor(self.levels, dtype=torch.float32, device=device)

    @property
    def units(self) -> int:
        """Tell into how many parts an INT8 step is divided for the search."""
        return FOUR_BIT_UNITS if code_bits(self.levels) == 4 else SIX_BIT_UNITS


KITCHEN_GRID = LevelGrid(KITCHEN_CODEBOOK, (-2, 3))
ASYMMETRIC_GRID = LevelGrid(ASYMMETRIC_CODEBOOK, (-1, 3), (0, 2))
SIX_BIT_GRID = LevelGrid(tuple(range(-LARGEST_SIX_BITS, LARGEST_SIX_BITS + 1)), (-1, 3))
# What a layer may take, by bits; of equal errors the first is taken.
GRIDS = {4: (ASYMMETRIC_GRID, KITCHEN_GRID), 6: (SIX_BIT_GRID,)}


class LevelTables(NamedTuple):
    """Hold what is nearest under each positive E4M3 scale, by twice a number rounded up.

    codes: int16 [127 * 512], indices of levels; integers: float32 [127 * 512], what these decode
    to. Row c is for E4M3 code c; column 256 + ceil(2 u) is for the numbers u: limits between
    integers are halves of integers, so nothing is lost.
    """

    codes: torch.Tensor
    integers: torch.Tensor


@lru_cache(maxsize=8)
def level_tables(grid: LevelGrid, device: torch.device) -> LevelTables:
    """Make the tables of a codebook on a device."""
    scales = e4m3_value(torch.arange(LAST_E4M3_CODE + 1, dtype=torch.int16))
    integers = (
        (grid.codebook(scales.device) * scales.unsqueeze(1)).round_().clamp_(-INT8_MAX, INT8_MAX)
    )
    # Twice the limit between two neighbours is their sum; a number on it takes the lower one.
    limits = (integers[:, 1:] + integers[:, :-1]).contiguous()
    doubled = torch.arange(TABLE_COLUMNS, dtype=torch.float32) - TABLE_MIDDLE
    codes = torch.searchsorted(limits, doubled.expand(len(limits), -1).contiguous())
    tables = codes.to(torch.int16), integers.gather(1, codes)
    return LevelTables(*(table.flatten().to(device) for table in tables))


def search_group_scales(
    target: torch.Tensor, grid: LevelGrid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose a group scale and codes for each group of weights.

    target: weights in units of their row's scale, float32 [b, 16] from -127 to 127. Returns codes
    int16 [b, 16], group scales as E4M3 bytes int16 [b], and squared errors float32 [b] in units of
    the row's scale. The scales tried are those of `grid`; of equal errors the first wins. Their
    squared error is less than 1.5 % above that of the best of all 252, as a test shows.
    """
    # A GPU takes all groups in one slice: there, launching many small kernels takes longer.
    width = len(target) if target.is_cuda else GROUPS_AT_ONCE
    parts = [search_slice(part, grid) for part in target.split(max(width, 1))]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def search_slice(
    target: torch.Tensor, grid: LevelGrid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Search one slice of `search_group_scales`."""
    tables = level_tables(grid, target.device)
    # Transposed to [16, b], sums over a group have a fixed order on every device.
    values = target.t().contiguous()
    high, low = values.amax(0), -values.amin(0)
    flipped = (low > high) if grid.mirrored else torch.zeros_like(high, dtype=torch.bool)
    values = torch.where(flipped, -values, values)
    # The magnitude makes +0 of -0, whose code has a sign.
    largest = torch.maximum(high, low).abs()
    first = e4m3_code_of_at_least(divide(largest, grid.levels[-1]))
    error, best = torch.full_like(high, torch.inf), torch.zeros_like(first)
    for side, tried in ((1, grid.tried), (-1, grid.mirrored)):
        if tried:
            sided = values * side
            columns = table_columns(sided)
            for code in first + torch.arange(tried[0], tried[1] + 1, device=first.device)[:, None]:
                code = code.clamp(0, LAST_E4M3_CODE)
                found = level_errors(sided, columns, code, tables)
                better = found < error
                error = torch.where(better, found, error)
                best = torch.where(better, code * side, best)
    # Negative codes stand for the mirrored side.
    sided = torch.where(best < 0, -values, values)
    codes = look_up(tables.codes, best.abs(), table_columns(sided))
    negative = flipped ^ (best < 0)
    return codes.t(), best.abs() + E4M3_SIGN * negative, error


def table_columns(values: torch.Tensor) -> torch.Tensor:
    """Compute which columns of `LevelTables` numbers belong to: int32 of the same shape."""
    return (values * 2).ceil_().int().add_(TABLE_MIDDLE)


def look_up(table: torch.Tensor, code: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Look up columns int32 [16, b] in the rows of E4M3 codes [b] of a flat table."""
    # index_select is four times faster than take.
    places = columns + code.int() * TABLE_COLUMNS
    return table.index_select(0, places.view(-1)).view(columns.shape)


def level_errors(
    values: torch.Tensor, columns: torch.Tensor, code: torch.Tensor, tables: LevelTables
) -> torch.Tensor:
    """Sum the squared errors of groups [16, b] under one scale each: float32 [b].

    columns: `table_columns` of the values; code: E4M3 codes int [b]. The sum is a tree, 8 + 8,
    4 + 4, 2 + 2, 1 + 1.
    """
    made = look_up(tables.integers, code, columns)
    squares = torch.nn.functional.mse_loss(made, values, reduction="none")
    while len(squares) > 1:
        low, high = squares.chunk(2)
        squares = low + high
    return squares[0]


def groups_of(rows: torch.Tensor, scale: torch.Tensor, grid: LevelGrid) -> torch.Tensor:
    """Bring rows [n, K] into groups [n * K/16, 16] in units of their scales [n, 1].

    They are rounded to the grid's parts of a unit.
    """
    parts = (rows / scale).mul_(grid.units).round_().div_(grid.units)
    return parts.view(-1, W4A8_GROUP)


def grid_error(rows: torch.Tensor, grid: LevelGrid) -> float:
    """Measure the squared error of rotated rows [n, K] float32 in a codebook."""
    scale = amax_row_scales(rows)
    found = search_group_scales(groups_of(rows, scale, grid), grid)[2].view(len(rows), -1)
    # Errors of groups are whole numbers of small units, of which float64 adds up as many exactly.
    return float(found.double().sum(1) @ scale.double().square().squeeze(1))


def choose_grid(
    rows: torch.Tensor, bits: int, error: Callable[[torch.Tensor, LevelGrid], float] = grid_error
) -> LevelGrid:
    """Choose the codebook of least error on sample rows [n, K] float32.

    error: measures it; `grid_error` is for rows that are rotated already.
    """
    grids = GRIDS[bits]
    return min(grids, key=lambda grid: error(rows, grid)) if len(grids) > 1 else grids[0]


def sample_rows(weight: torch.Tensor) -> torch.Tensor:
    """Take up to 64 rows, evenly spread over a weight [N, K]."""
    count = min(SAMPLE_ROWS, len(weight))
    return weight[torch.linspace(0, len(weight) - 1, count, device=weight.device).long()]


def encode_levels(rows: torch.Tensor, grid: LevelGrid, bits: int) -> tuple[torch.Tensor, ...]:
    """Quantise rotated rows [n, K] float32 to 4 or 6 bits, K a multiple of 16.

    Returns what `encode_w4a8` returns: codes int8 [n, K * bits / 8], group scales float8_e4m3fn
    [n, K/16], negative ones among them where the grid is mirrored, and row scales float32 [n].
    Other row scales than those of amax gain nothing: the best of thirteen for each row saves 0.5 %
    of the error, a smaller one clips the largest weight.
    """
    scale = amax_row_scales(rows)
    codes, group_scale, _ = search_group_scales(groups_of(rows, scale, grid), grid)
    # 6-bit codes are stored from 1 on.
    codes = codes.reshape(len(rows), -1) + (bits == 6)
    group_scale = group_scale.to(torch.uint8).view(torch.float8_e4m3fn).view(len(rows), -1)
    return pack_w4a8(codes, bits), group_scale, scale.squeeze(1)


# ── nvfp4/numeric/kernels_levels.py: Write the loops that search W4A8's and W6A8's group scales, so

# Groups worked on side by side: their 16 weights as int16 are 2 kB.
GROUP_LANES = 64
WHOLE_UNITS = np.int16(FOUR_BIT_UNITS)


class Room(NamedTuple):
    """Hold the arrays that groups side by side are searched in: [16, lanes], or [lanes].

    turned: weights in units, int16; levels, nearest: what they are compared with, int16; sums,
    first, sides, codes, best: int32; scales, inverses, errors, least: float32.
    """

    turned: np.ndarray
    levels: np.ndarray
    nearest: np.ndarray
    sums: np.ndarray
    first: np.ndarray
    sides: np.ndarray
    codes: np.ndarray
    best: np.ndarray
    scales: np.ndarray
    inverses: np.ndarray
    errors: np.ndarray
    least: np.ndarray


def snap_row(
    values: np.ndarray, scale: np.float32, units: np.float32, snapped: np.ndarray
) -> float:
    """Round a row to whole numbers of small units, and measure its energy.

    values: [K] float32; scale: that of the row; units: how many one of INT8's steps has, float32;
    snapped: [K] int16, filled. Returns the energy in units of the scale.
    """
    lanes = np.zeros(LANE_COLUMNS, FLOAT32)
    for begin in range(0, len(values), LANE_COLUMNS):
        some, out = values[begin : begin + LANE_COLUMNS], snapped[begin : begin + LANE_COLUMNS]
        for j in range(len(some)):
            scaled = some[j] / scale
            out[j] = np.int32((scaled * units + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS)
            lanes[j] += scaled * scaled
    return np.float64(add_lanes(lanes))


def first_scales(
    turned: np.ndarray, top: np.float32, units: np.float32, mirrored: bool, room: Room
) -> None:
    """Find the smallest scale that clips nothing of each group, and the side of its largest weight.

    turned: [16, GROUP_LANES] int16; top: the codebook's largest level; units: those of the weights;
    mirrored: whether scales may be negative; room: `first` gets E4M3 codes, `sides` 1 where the
    largest weight is a negative one.
    """
    high, low, largest = room.nearest, room.levels[0], room.errors
    high[:], low[:] = turned[0], turned[0]
    for i in range(1, W4A8_GROUP):
        row = turned[i]
        for j in range(GROUP_LANES):
            high[j], low[j] = max(high[j], row[j]), min(low[j], row[j])
    for j in range(GROUP_LANES):
        most, least = np.int32(high[j]), -np.int32(low[j])
        largest[j] = FLOAT32(max(most, least)) / units / top
        room.sides[j] = mirrored and least > most
    e4m3_codes_of_at_least(largest, room.first)


def codebook_errors(turned: np.ndarray, book: np.ndarray, room: Room) -> None:
    """Compute the squared errors of groups to the nearest of 16 levels, in units squared.

    turned: [16, GROUP_LANES] int16; book: [16] float32, the levels; room: `scales` of either sign
    are read, `errors` filled.
    """
    levels, nearest, sums, scales = room.levels, room.nearest, room.sums, room.scales
    for k in range(len(book)):
        made = levels[k]
        for j in range(GROUP_LANES):
            level = (book[k] * scales[j] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            level = min(max(level, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
            made[j] = np.int16(np.int32(level)) * WHOLE_UNITS
    sums[:] = 0
    for i in range(W4A8_GROUP):
        row = turned[i]
        for j in range(GROUP_LANES):
            least = np.int16(abs(np.int16(levels[0, j] - row[j])))
            # The length of the loop is known, so that it becomes 16 steps of vector instructions.
            for k in range(1, 16):
                least = min(least, np.int16(abs(np.int16(levels[k, j] - row[j]))))
            nearest[j] = least
        for j in range(GROUP_LANES):
            error = np.int32(nearest[j])
            sums[j] += error * error
    for j in range(GROUP_LANES):
        room.errors[j] = sums[j]


def uniform_errors(turned: np.ndarray, room: Room) -> None:
    """Compute the squared errors of groups to the nearest of W6A8's levels, in INT8's steps.

    turned: [16, GROUP_LANES] int16; room: `scales` >= 0 are read, `errors` filled. The nearest
    level is that of the nearest multiple of the scale, or a neighbour.
    """
    inverses, errors, scales = room.inverses, room.errors, room.scales
    largest = FLOAT32(LARGEST_SIX_BITS)
    errors[:] = 0
    for j in range(GROUP_LANES):
        inverses[j] = FLOAT32(1) / scales[j] if scales[j] > 0 else FLOAT32(0)
    for i in range(W4A8_GROUP):
        row = turned[i]
        for j in range(GROUP_LANES):
            value = FLOAT32(row[j]) * FLOAT32(1 / SIX_BIT_UNITS)
            middle = (value * inverses[j] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
            nearest = FLOAT32(2 * INT8_MAX)
            for step in range(3):
                code = min(max(middle + FLOAT32(step - 1), -largest), largest)
                level = (code * scales[j] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
                level = min(max(level, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
                nearest = min(nearest, abs(level - value))
            errors[j] += nearest * nearest


def best_scales(
    turned: np.ndarray, book: np.ndarray, tried: tuple[int, int, int, int], room: Room
) -> None:
    """Search the best group scales as `level_search.search_slice` does.

    turned: [16, GROUP_LANES] int16; book: the levels, [16] or [63]; tried: first and last offset of
    the scales that are tried, and the same for scales of the other sign, none where the last is
    before the first; room: `best` gets E4M3 bytes, `least` the errors.
    """
    first, sides, codes, scales = room.first, room.sides, room.codes, room.scales
    best, least, errors = room.best, room.least, room.errors
    uniform = len(book) > W4A8_GROUP
    units = FLOAT32(SIX_BIT_UNITS) if uniform else FLOAT32(FOUR_BIT_UNITS)
    first_scales(turned, book[-1], units, tried[2] <= tried[3], room)
    least[:] = LARGEST_FLOAT32
    for side in range(2):
        for offset in range(tried[2 * side], tried[2 * side + 1] + 1):
            for j in range(GROUP_LANES):
                codes[j] = min(max(first[j] + offset, 0), LAST_E4M3_CODE)
            e4m3_values(codes, scales)
            for j in range(GROUP_LANES):
                scales[j] = -scales[j] if sides[j] != side else scales[j]
                codes[j] |= E4M3_SIGN if sides[j] != side else 0
            if uniform:
                uniform_errors(turned, room)
            else:
                codebook_errors(turned, book, room)
            for j in range(GROUP_LANES):
                better = errors[j] < least[j]
                best[j] = codes[j] if better else best[j]
                least[j] = errors[j] if better else least[j]


def take_codes(
    snapped: np.ndarray, scales: np.ndarray, table: np.ndarray, shift: int, codes: np.ndarray
) -> None:
    """Look up the codes of a row's weights under the scales chosen.

    snapped: [K] int16; scales: [K/16] uint8, E4M3 bytes; table: the codes of a LevelTables; shift:
    which half of an INT8 step is two to the power of, in units; codes: [K] uint8, filled.
    """
    up, columns = np.int32((1 << shift) - 1), np.empty(W4A8_GROUP, np.int32)
    for group in range(len(scales)):
        begin = group * W4A8_GROUP
        some, out = snapped[begin : begin + W4A8_GROUP], codes[begin : begin + W4A8_GROUP]
        code = np.int32(scales[group])
        sign = np.int32(-1) if code & E4M3_SIGN else np.int32(1)
        line = table[(code & ~E4M3_SIGN) * TABLE_COLUMNS :]
        for i in range(W4A8_GROUP):
            columns[i] = ((sign * some[i] + up) >> shift) + TABLE_MIDDLE
        for i in range(W4A8_GROUP):
            # Numba looks whether a signed index is negative.
            out[i] = line[np.uint32(columns[i])]


def pack_row(codes: np.ndarray, packed: np.ndarray) -> None:
    """Pack a row's codes as `w4a8.pack_w4a8` does.

    codes: [K] uint8; packed: [K/2] uint8 for 4 bits, [3K/4] for 6, filled.
    """
    half = len(codes) // 2
    for j in range(half):
        packed[j] = (codes[2 * j] & 15) | (codes[2 * j + 1] << 4)
    upper = packed[half:]
    for j in range(len(upper)):
        low = (codes[4 * j] >> 4) | ((codes[4 * j + 1] >> 4) << 2)
        upper[j] = low | ((codes[4 * j + 2] >> 4) << 4) | ((codes[4 * j + 3] >> 4) << 6)


def encode_row(
    snapped: np.ndarray,
    book: np.ndarray,
    tried: tuple[int, int, int, int],
    scales: np.ndarray,
    room: Room,
) -> float:
    """Choose the group scales of a row.

    snapped: [K] int16; book, tried: as for `best_scales`; scales: [K/16] uint8, filled with E4M3
    bytes. Returns the row's squared error, in units squared of 4 bits, or in INT8's steps.
    """
    error, turned = 0.0, room.turned
    for begin in range(0, len(scales), GROUP_LANES):
        count = min(GROUP_LANES, len(scales) - begin)
        # Lanes beyond the last group keep what they held, and nobody reads what they give.
        some = snapped[begin * W4A8_GROUP : (begin + count) * W4A8_GROUP]
        groups = some.reshape(count, W4A8_GROUP)
        for i in range(W4A8_GROUP):
            row = turned[i]
            for j in range(count):
                row[j] = groups[j, i]
        best_scales(turned, book, tried, room)
        for j in range(count):
            scales[begin + j] = room.best[j]
            error += room.least[j]
    return error


def make_room() -> Room:
    """Allocate a Room, as allocating it for each group of lanes would take longer than the work."""
    shape = (GROUP_LANES,)
    return Room(
        np.zeros((W4A8_GROUP, GROUP_LANES), np.int16),
        np.empty((W4A8_GROUP, GROUP_LANES), np.int16),
        np.empty(shape, np.int16),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
        np.empty(shape, FLOAT32),
    )


def encode_groups(
    rows: np.ndarray,
    grid: tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]],
    packed: np.ndarray,
    scales: np.ndarray,
    row_scales: np.ndarray,
) -> tuple[float, float]:
    """Rotate rows and quantise them to 4 or 6 bits as `level_search.encode_levels` does.

    rows: [n, K] float32, K a multiple of 256; grid: levels, table of codes, and scales to try, see
    `best_scales`; packed: [n, K * bits / 8] uint8, scales: [n, K/16] uint8 and row_scales: [n]
    float32, filled. Returns squared error and energy, summed over rows in float64.
    """
    book, table, tried = grid
    columns, uniform = rows.shape[1], len(book) > W4A8_GROUP
    values, snapped = np.empty(columns, FLOAT32), np.empty(columns, np.int16)
    codes, error, energy = np.empty(columns, np.uint8), 0.0, 0.0
    room = make_room()
    units, shift = (SIX_BIT_UNITS, 7) if uniform else (FOUR_BIT_UNITS, 4)
    for row in range(len(rows)):
        values[:] = rows[row]
        rotate_columns(values)
        scale = max(row_amax(values) / FLOAT32(INT8_MAX), FLOAT32(LEAST_ROW_SCALE))
        row_scales[row], unit = scale, np.float64(scale) * np.float64(scale)
        energy += snap_row(values, scale, FLOAT32(units), snapped) * unit
        found = encode_row(snapped, book, tried, scales[row], room)
        error += (found if uniform else found / (FOUR_BIT_UNITS * FOUR_BIT_UNITS)) * unit
        take_codes(snapped, scales[row], table, shift, codes)
        if uniform:
            for j in range(columns):
                codes[j] += 1
        pack_row(codes, packed[row])
    return error, energy


# In the order in which `compile_kernels` compiles them.
LEVEL_KERNELS = (
    snap_row,
    first_scales,
    codebook_errors,
    uniform_errors,
    best_scales,
    take_codes,
    pack_row,
    encode_row,
    make_room,
    encode_groups,
)


# ── nvfp4/numeric/kernels_rounding.py: Write the loops that round by statistics, so that numba can 

# Rows that `round_in_turn` works on at once: 16 columns of 256 float32 are 16 kB, which stay in a
# core's first-level cache.
ROWS_IN_TURN = 256


def add_feedback(want: np.ndarray, factors: np.ndarray, changes: np.ndarray) -> None:
    """Add the feedback of columns that are rounded to one that is to be rounded.

    want: [n] float32, updated; factors: [c]; changes: [c, n]. The sum factors @ changes runs one
    column after the other, not in the order of torch's matrix product.
    """
    for column in range(len(factors)):
        factor, change = factors[column], changes[column]
        for row in range(len(want)):
            want[row] += factor * change[row]


def round_levels(
    want: np.ndarray, step: np.ndarray, grid: tuple[np.float32, ...], level: np.ndarray
) -> None:
    """Round one column to a float format's values, as `FloatGrid.under` does with want / step.

    want, step: [n] float32; grid: its least normal, its largest value and its shift, float32;
    level: [n] float32, filled.
    """
    least, largest, shift, _ = grid
    powers = np.empty(len(want), FLOAT32)
    bits = powers.view(np.int32)
    for row in range(len(want)):
        level[row] = want[row] / step[row]
        powers[row] = min(max(abs(level[row]), least), largest)
    # Without its mantissa, a value is the power of two at or below it, which scales the shift.
    for row in range(len(want)):
        bits[row] &= FLOAT32_EXPONENT
    for row in range(len(want)):
        large = powers[row] * shift
        level[row] = min(max(level[row] + large - large, -largest), largest)


def enclose(scaled: np.ndarray, book: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Find the levels that enclose numbers: the last one below, and the next.

    scaled: [n] float32; book: [L] float32, ascending: 16 levels, or more that are whole numbers;
    low, high: [n] float32, filled. Beyond the first and last level both are that one.
    """
    if len(book) > W4A8_GROUP:
        for row in range(len(scaled)):
            above = np.ceil(scaled[row])
            low[row] = min(max(above - FLOAT32(1), book[0]), book[-1])
            high[row] = min(max(above, book[0]), book[-1])
        return
    low[:], high[:] = book[0], book[-1]
    for index in range(len(book)):
        up, down = book[index], book[len(book) - 1 - index]
        for row in range(len(scaled)):
            low[row] = up if up < scaled[row] else low[row]
            high[row] = down if down >= scaled[row] else high[row]


def round_to_book(
    want: np.ndarray, step: np.ndarray, book: np.ndarray, level: np.ndarray, decoded: np.ndarray
) -> None:
    """Round one column to the levels of a codebook, as `Codebook.under` does.

    want, step: [n] float32; book: [L] float32; level, decoded: at least [n] float32, filled: the
    levels, and the integers that they are decoded to under the steps.
    """
    high, scaled = np.empty(len(want), FLOAT32), np.empty(len(want), FLOAT32)
    for row in range(len(want)):
        scaled[row] = want[row] * (FLOAT32(1) / step[row])
    enclose(scaled, book, level, high)
    for row in range(len(want)):
        below = (level[row] * step[row] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
        above = (high[row] * step[row] + ROUND_TO_INTEGERS) - ROUND_TO_INTEGERS
        below = min(max(below, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
        above = min(max(above, FLOAT32(-INT8_MAX)), FLOAT32(INT8_MAX))
        is_upper = abs(above - want[row]) < abs(want[row] - below)
        level[row] = high[row] if is_upper else level[row]
        decoded[row] = above if is_upper else below


def round_in_turn(
    inputs: tuple[np.ndarray, ...], grid: tuple[np.float32, ...], made: tuple[np.ndarray, ...]
) -> None:
    """Round the columns of a block as `feedback.round_columns` does.

    inputs: wanted [c, n], free [c, n], within [c, c], pivots [c] and steps [m, n]; grid: as in
    `round_levels`, and last the levels of a codebook, which count where there are any; made: levels
    [c, m, n], changes [c, m, n] and costs [m, n], filled. All float32. A few rows are taken at a
    time, so that what they need stays in the first-level cache.
    """
    (wanted, free, within, pivots, steps), (levels, changes, costs) = inputs, made
    columns, rows = wanted.shape
    decoded = np.empty(ROWS_IN_TURN, FLOAT32)
    for scale in range(len(steps)):
        for begin in range(0, rows, ROWS_IN_TURN):
            some = slice(begin, min(begin + ROWS_IN_TURN, rows))
            step, cost = steps[scale, some], costs[scale, some]
            for column in range(columns):
                want, spare = wanted[column, some].copy(), free[column, some]
                add_feedback(want, within[column, :column], changes[:column, scale, some])
                level, change = levels[column, scale, some], changes[column, scale, some]
                if len(grid[-1]):
                    round_to_book(want, step, grid[-1], level, decoded)
                else:
                    round_levels(want, step, grid, level)
                    for row in range(len(want)):
                        decoded[row] = level[row] * step[row]
                for row in range(len(want)):
                    change[row] = spare[row] - decoded[row]
                    error = decoded[row] - want[row]
                    cost[row] += error * error * pivots[column]


# In the order in which `compile_kernels` compiles them.
ROUNDING_KERNELS = (add_feedback, round_levels, enclose, round_to_book, round_in_turn)


# ── nvfp4/numeric/compiled.py: Compile the kernels: with numba for a CPU, with triton for a GPU ───

# Lanes (a row under one block scale each) that one program of the triton kernel works on.
LANES_AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Hold the loops of `kernels` as machine code, and call them with tensors on a CPU.

    The fields are the compiled loops that Python calls; those call the other loops directly.
    Methods have the arguments of the torch functions of the same name and return their results,
    which are bit-identical, with the damage measured on the way. They release Python's lock.
    """

    encode_blocks: Callable
    encode_bytes: Callable
    encode_integers: Callable
    encode_groups: Callable
    encode_powers: Callable
    round_in_turn: Callable

    def encode_nvfp4(
        self, weight: torch.Tensor, global_scale: torch.Tensor, block_scales: Callable
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """Quantise rows [n, k] to NVFP4 as `codes.encode_nvfp4` does, and measure the damage.

        weight: float32, bfloat16 or float16 on the CPU; global_scale: float32 scalar; block_scales:
        one of SCALE_SEARCHES, which the compiled search imitates. Returns packed codes [n, K16/2]
        uint8, block scales [n, K16/16] float8_e4m3fn, and the Damage in units of the global scale.
        """
        values = weight.float()
        if values.shape[1] % BLOCK_SIZE:
            values = torch.nn.functional.pad(values, (0, -values.shape[1] % BLOCK_SIZE))
        # A block is 16 float32 as bits; its 16 codes are 8 bytes, stored as one little-endian word.
        blocks = values.contiguous().view(-1, BLOCK_SIZE).view(torch.int32).numpy()
        packed, scales = np.empty(len(blocks), "<u8"), np.empty(len(blocks), np.uint8)
        search = block_scales is mse_block_scales
        error, energy = self.encode_blocks(blocks, FLOAT32(global_scale), search, packed, scales)
        block_scale = torch.from_numpy(scales).view(torch.float8_e4m3fn).view(len(weight), -1)
        damage = Damage(error=error, energy=energy)
        codes = torch.from_numpy(packed.view(np.uint8)).view(len(weight), -1)
        return codes, block_scale, damage

    def encode_fp8(self, weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, Damage]:
        """Quantise a weight to FP8 as `codes.encode_fp8` does, and measure the damage.

        weight: floats of any shape on the CPU; scale: float32 scalar. Returns float8_e4m3fn codes
        of the same shape and the Damage in units of the scale.
        """
        values = weight.float().contiguous().flatten().numpy()
        codes = np.empty(len(values), np.uint8)
        error, energy = self.encode_bytes(values, FLOAT32(scale), codes)
        stored = torch.from_numpy(codes).view(torch.float8_e4m3fn).view(weight.shape)
        return stored, Damage(error=error, energy=energy)

    def encode_int8(
        self, weight: torch.Tensor, _: torch.Tensor, *, rotated: bool, row_scales: Callable
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """Rotate rows and quantise them as `int8.quantise_int8` does, and measure the damage.

        weight: [n, K] floats on the CPU; rotated: whether by `rotation.rotate` in groups of 256;
        row_scales: mse_row_scales or amax_row_scales, which the compiled search imitates. Returns
        codes int8 [n, K], row scales float32 [n, 1], and the Damage in plain units.
        """
        rows = weight.float().contiguous()
        codes, scales = torch.empty_like(rows, dtype=torch.int8), rows.new_empty(len(rows), 1)
        tried = LARGEST_TRIED if row_scales is mse_row_scales else ()
        given = (
            rows.numpy(),
            rotated,
            np.array(tried, FLOAT32),
            codes.numpy(),
            scales.flatten().numpy(),
        )
        error, energy = self.encode_integers(*given)
        return codes, scales, Damage(error=error, energy=energy)

    def encode_levels(
        self, weight: torch.Tensor, grid: LevelGrid
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Damage]:
        """Rotate rows and quantise them as `level_search.encode_levels` does, with the damage.

        weight: [n, K] floats on the CPU, K a multiple of 256; grid: the codebook, which tells the
        bits. Returns codes int8 [n, K * bits / 8], group scales float8_e4m3fn [n, K/16], row scales
        float32 [n], and the Damage in plain units.
        """
        rows, bits = weight.float().contiguous(), code_bits(grid.levels)
        columns = rows.shape[1]
        packed = rows.new_empty(len(rows), columns * bits // 8, dtype=torch.uint8)
        scales, row_scales = packed.new_empty(len(rows), columns // 16), rows.new_empty(len(rows))
        # A range whose end is before its beginning has no scales of the other sign.
        tried = (*grid.tried, *(grid.mirrored or (1, 0)))
        table = level_tables(grid, rows.device).codes.numpy()
        given = (np.array(grid.levels, FLOAT32), table, tried)
        made = (packed, scales, row_scales)
        error, energy = self.encode_groups(rows.numpy(), given, *(part.numpy() for part in made))
        group_scales = scales.view(torch.float8_e4m3fn)
        return packed.view(torch.int8), group_scales, row_scales, Damage(error=error, energy=energy)

    def encode_mxfp8(
        self, weight: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """Quantise rows to MXFP8 as `mxfp8.quantise_mxfp8` does, and measure the damage.

        weight: [n, K] floats on the CPU. Returns codes float8_e4m3fn [n, K32], the powers of two of
        blocks, float32 [n, K32/32], and the Damage in plain units.
        """
        missing = -weight.shape[1] % MX_BLOCK
        rows = torch.nn.functional.pad(weight.float(), (0, missing)).contiguous()
        codes = torch.empty_like(rows, dtype=torch.uint8)
        powers = codes.new_empty(len(rows), rows.shape[1] // MX_BLOCK)
        error, energy = self.encode_powers(rows.numpy(), codes.numpy(), powers.numpy())
        stored = codes.view(torch.float8_e4m3fn)
        return stored, decode_e8m0(powers), Damage(error=error, energy=energy)

    def round_columns(
        self,
        wanted: torch.Tensor,
        free: torch.Tensor,
        coefficients: tuple[torch.Tensor, torch.Tensor],
        steps: torch.Tensor,
        grid: FloatGrid | Codebook,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Round the columns of a block as `feedback.round_columns` does, with the same arguments.

        Sums run in another order than torch's, so that the last bits of levels, changes and costs
        may differ, and with them what rounding by statistics stores.
        """
        made = room_for(wanted, steps)
        given = (wanted, free, coefficients[0].contiguous(), coefficients[1], steps)
        limits = (*map(FLOAT32, limits_of(grid)), book_of(grid).numpy())
        inputs, outputs = (tuple(tensor.numpy() for tensor in some) for some in (given, made))
        self.round_in_turn(inputs, limits, outputs)
        return made


def with_names(function: FunctionType, names: dict[str, object]) -> FunctionType:
    """Copy a function so that it looks up global names in a dictionary instead of its module.

    names: what the copy sees as its globals, kept and not copied, so that names added later are
    seen, too. Compilers get such copies: the module's own functions stay as they are.
    """
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    # Triton reads from the annotations which arguments are compile-time constants.
    copy.__annotations__ = function.__annotations__
    return copy


def compile_kernels() -> Kernels:
    """Compile all kernels with numba for this machine's CPU.

    The machine code is cached beside the kernels' file for the next run, where that folder can be
    written. Raises ImportError without numba, and RuntimeError where numba fails or `check_kernels`
    finds other bits than torch's.
    """
    # Numba is optional, and importing it takes half a second.
    import numba

    # Parity with torch: NaN and infinity do not occur, but contracting a * b + c, which rounds
    # once instead of twice, stays forbidden, or the bits would change.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "ninf"}}
    # Each kernel finds the compiled versions of those before it among these names.
    names = {}
    for one in (encode_groups, encode_integers, round_in_turn, encode_blocks):
        names |= one.__globals__
    for kernel in (*KERNELS, *INT8_KERNELS, *LEVEL_KERNELS, *ROUNDING_KERNELS):
        kernel = with_names(kernel, names)
        try:
            names[kernel.__name__] = numba.njit(kernel, cache=True, **options)
        except RuntimeError:
            # Numba found no folder that it may keep the machine code in: compile each time.
            names[kernel.__name__] = numba.njit(kernel, **options)
    kernels = Kernels(**{name: names[name] for name in Kernels.__slots__})
    try:
        check_kernels(kernels)
    except numba.core.errors.NumbaError as error:
        raise RuntimeError(str(error).partition("\n")[0]) from error
    return kernels


def check_kernels(kernels: Kernels) -> None:
    """Raise RuntimeError unless compiled kernels encode a sample as torch does.

    The sample is 64 rows of 512 random numbers, some so small that block scales are subnormal or
    zero. All encoders have to be equal byte for byte; of what `round_columns` returns, 99 % has to
    be close.
    """
    sample = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    # Small rows have block scales that are subnormal in E4M3, or zero.
    sample[:8] *= torch.logspace(-6, 0, 8).unsqueeze(1)
    scale = nvfp4_global_scale(largest_magnitude(sample))
    searches = SCALE_SEARCHES.values()
    made = [kernels.encode_nvfp4(sample, scale, search) for search in searches]
    plain = [encode_nvfp4(sample, scale, search) for search in searches]
    made += [kernels.encode_fp8(sample, scale), kernels.encode_mxfp8(sample, scale)]
    plain += [[encode_fp8(sample, scale)], quantise_mxfp8(sample)]
    for group, row_scales in ((0, amax_row_scales), (WRITTEN_GROUP, mse_row_scales)):
        given = {"rotated": group > 0, "row_scales": row_scales}
        made.append(kernels.encode_int8(sample, scale, **given))
        plain.append(quantise_int8(sample, group, row_scales))
    for bits, grids in GRIDS.items():
        made += [kernels.encode_levels(sample, grid) for grid in grids]
        plain += [encode_levels(rotate(sample, WRITTEN_GROUP), grid, bits) for grid in grids]
    for (*found, _), expected in zip(made, plain, strict=True):
        if not all(map(torch.equal, map(as_bytes, found), map(as_bytes, expected))):
            raise RuntimeError("the compiled code rounds differently")
    within = (sample[:BLOCK_SIZE, -BLOCK_SIZE:], torch.ones(BLOCK_SIZE))
    books = [grid.codebook(sample.device) for grids in GRIDS.values() for grid in grids]
    # The levels of a codebook decode to integers of up to 64 here, and weights are as large.
    cases = [(E2M1, 1.0, 0.25), *((Codebook(book), 20.0, 64 / float(book[-1])) for book in books)]
    for grid, unit, step in cases:
        wanted = sample[:BLOCK_SIZE] * unit
        given = (wanted, wanted, within, torch.full((2, 512), step), grid)
        # Sums over columns run in another order than torch's, so a few ties may fall otherwise.
        pairs = zip(kernels.round_columns(*given), round_columns(*given), strict=True)
        if not all(torch.isclose(one, other).float().mean() > 0.99 for one, other in pairs):
            raise RuntimeError("the compiled code rounds differently")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as uint8, since float8 tensors cannot be compared."""
    return tensor.view(torch.uint8)


def limits_of(grid: FloatGrid | Codebook) -> tuple[float, float, float]:
    """Return least normal, largest value and shift of a float format; zeros for a codebook."""
    if isinstance(grid, Codebook):
        return 0.0, 0.0, 0.0
    return grid.least_normal, grid.largest, grid.shift


def book_of(grid: FloatGrid | Codebook) -> torch.Tensor:
    """Return the levels of a codebook [L] float32, none for a float format."""
    return grid.levels if isinstance(grid, Codebook) else torch.empty(0)


def compile_rounder() -> RoundColumns:
    """Make a GPU's `round_columns`: one triton kernel, compiled at its first call.

    Returns a function with the arguments and results of `feedback.round_columns`, for tensors on a
    CUDA device. Raises ImportError without triton. Sums are contracted, so bits may differ from
    those of other devices.
    """
    # Triton is optional: there is none for some systems.
    import triton
    import triton.language

    names = {**round_lanes.__globals__, "tl": triton.language}
    kernel = triton.jit(with_names(round_lanes, names))

    def compiled(
        wanted: torch.Tensor,
        free: torch.Tensor,
        coefficients: tuple[torch.Tensor, torch.Tensor],
        steps: torch.Tensor,
        grid: FloatGrid | Codebook,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Launch the kernel: LANES_AT_ONCE rows under a block scale in each program."""
        (within, pivots), lanes, width = coefficients, steps.numel(), LANES_AT_ONCE
        made, book = room_for(wanted, steps), book_of(grid)
        # The kernel addresses tensors by plain arithmetic, and takes only `within` as strided.
        levels = book if len(book) else wanted
        inputs = (wanted, free, within, pivots, steps.contiguous(), levels)
        sizes = (wanted.shape[1], lanes, within.stride(0), len(wanted))
        # What a level decodes to is rounded twice, as the decoder does it.
        options = {"enable_fp_fusion": not len(book)}
        constants = (*limits_of(grid), len(book), width)
        kernel[(-(-lanes // width),)](*inputs, *made, *sizes, *constants, **options)
        return made

    return compiled


# ── nvfp4/formats/encoding.py: Hold what goes into an encoding and what comes out of it, and drive 

# Weights up to this are left to torch's operations, which store the same: where scales reach the
# least that a format has, compiled kernels do not measure what is lost.
LEAST_COMPILED = 2.0**-64


class Given(NamedTuple):
    """Hold a weight that is to be encoded.

    layer: its name, for notes; weight: [N, K] float32, bfloat16 or float16 on the device that
    computes, smoothing applied; amax: its largest magnitude, a finite float32 scalar; source_scale:
    the scale that the source stored this FP8 weight with, None if it was not FP8 or a LoRA changed
    it.
    """

    layer: str
    weight: torch.Tensor
    amax: torch.Tensor
    source_scale: float | None = None


class Encoder(Protocol):
    """State what a format may use to encode a weight; `encode.compute.Compute` has it all.

    dtype: what weights are cast to first (--quant-dtype); search: one of SCALE_SEARCHES; kernels:
    numba's, None where they are not compiled or do not serve this device and dtype; notes: what the
    user is to be told, to append to.
    """

    dtype: torch.dtype
    search: Callable
    kernels: Kernels | None
    notes: list[str]

    def map(self, function: Callable, weight: torch.Tensor, *more: torch.Tensor) -> list:
        """Call the function for every chunk of rows of a weight [N, K] and of what goes with it.

        Returns the results in the order of the rows; chunks may be worked on in several threads.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Hold a weight's codes, its scales, and what quantising cost.

    codes: the stored codes by chunks of rows; by_rows: block scales, whole, [N, ...] each and not
    swizzled; scale: float32 scalar, the global scale or the only one; damage: in plain units.
    """

    codes: tuple[torch.Tensor, ...]
    by_rows: tuple[torch.Tensor, ...] = ()
    scale: torch.Tensor
    damage: Damage


def encode_rows(
    weight: torch.Tensor, scale: torch.Tensor, encode: Callable, encoder: Encoder
) -> Encoded:
    """Encode all rows of a weight [N, K] at one scale, chunk by chunk.

    scale: float32 scalar; encode: (rows [n, K], scale) -> codes, further parts by rows, and Damage
    in units of the scale; encoder: maps it over the chunks. Returns the codes as chunks, the other
    parts whole, and the damage in plain units.
    """
    made = encoder.map(lambda rows: encode(rows, scale), weight)
    codes, *by_rows, damages = zip(*made, strict=True)
    return Encoded(
        codes=codes,
        by_rows=tuple(map(torch.cat, by_rows)),
        scale=scale,
        damage=Damage.total(damages, scale),
    )


def encode_by_rows(
    given: Given, encode: Callable, decode: Callable, encoder: Encoder, compiled: Callable | None
) -> Encoded:
    """Encode a weight whose scales are all those of rows or blocks: that of the layer is 1.

    encode: rows [n, K] -> parts by rows; decode: their inverse, with a scale after them; compiled:
    (rows, scale) -> the same parts and Damage in plain units, None where no kernel serves.
    """
    one = torch.ones_like(given.amax)
    if compiled and given.amax > LEAST_COMPILED:
        return encode_rows(given.weight, one, compiled, encoder)
    unit = damage_unit(given.amax)
    measured = with_damage(
        lambda rows, _: encode(rows),
        lambda *parts_and_one: decode(*parts_and_one[:-1], 1 / unit),
        encoder.dtype,
    )
    return replace(encode_rows(given.weight, unit, measured, encoder), scale=one)


def with_damage(encode: Callable, decode: Callable, dtype: torch.dtype) -> Callable:
    """Make a function for `encode_rows` that encodes and then measures.

    encode: (rows, scale) -> parts by rows; decode: its inverse; dtype: what rows are cast to before
    they are encoded, while the error counts against the rows as they were. Compiled kernels do both
    in one pass instead.
    """

    def encode_and_measure(rows: torch.Tensor, scale: torch.Tensor) -> tuple:
        """Encode rows [n, K] at a scale; return their parts, and the Damage in its units."""
        parts = encode(rows.to(dtype), scale)
        # Measured in units of the scale, as squares of huge or tiny weights leave float32's range.
        return *parts, measure_damage(rows.float() / scale, decode(*parts, torch.ones_like(scale)))

    return encode_and_measure


# ── nvfp4/formats/reading.py: What formats share that read stored layers: options of a configuratio

class Misreading(NamedTuple):
    """Hold parts by rows as they would be in another order, and what would decode them."""

    parts: list[torch.Tensor]
    decode: Callable[..., torch.Tensor]


def rotates(config: dict, columns: int) -> bool:
    """Tell whether comfy_kitchen has the rotation that a configuration asks for.

    Groups are powers of four, and divide the columns.
    """
    (group,) = configured_options(config, convrot_groupsize=WRITTEN_GROUP)
    sizes = [4**power for power in range(1, columns.bit_length() // 2 + 1)]
    return group in sizes and columns % group == 0


def configured_options(config: dict, **defaults: object) -> list:
    """Read options of a layer's configuration, in the order of the defaults that are given.

    ComfyUI takes entries of the configuration before those of its `params` (comfy/ops.py).
    """
    params = config.get("params")
    both = {**defaults, **(params if isinstance(params, dict) else {}), **config}
    return [both[name] for name in defaults]


# ── nvfp4/formats/base.py: Say what a format has to tell of itself; keep the table of formats ─────

# {suffix: (safetensors dtype, shape)} of a layer's tensors, in the order in which they are written.
# A suffix is the name after the layer's: "weight" in "blocks.0.ffn.0.weight".
Parts = dict[str, tuple[str, tuple[int, ...]]]

# Suffixes of tensors that a layer may have whatever its format is.
COMMON_PARTS = ("weight", "bias", "input_scale", "pre_quant_scale", "comfy_quant")

# What other programs call the code that stands for zero; formats of this room have none.
ZERO_POINTS = ("weight_zero_point", "weight_zeros", "zero_point")


class Format:
    """Describe one way to store a tensor; an instance is a row of the table `rows`.

    Subclasses set the attributes and override the methods that differ for their layers. N and K
    are rows and columns of a weight as a linear layer multiplies by it. Formats are ordered by
    rank, so that a floor is a comparison.
    """

    rows: ClassVar[list[Format]] = []

    # Plans, reports and the header use the name, which formats that are only read have not. The
    # title is unique among all formats.
    name: str = ""
    title: str = ""
    # The word for it on the command line (--formats); "" for what nobody asks for.
    option: str = ""
    # The first version of ComfyUI that loads it.
    since: str = "0.10"
    # The first comfy-kitchen that knows it; "" where that version of ComfyUI asks for it anyway.
    since_kitchen: str = ""
    # Bits of precision: a floor that asks for FP8 is met by every format with at least as many.
    rank: int = 0
    # The name in `comfy_quant` that ComfyUI knows the format by; "" for what is not quantised.
    config: str = ""

    # How it is stored. Whether `comfy_quant` and the header tell of its layers; else a marker does.
    is_configured: bool = True
    # Whether the source's bytes are copied as they are.
    is_copy: bool = False
    # The safetensors dtype of the weight, "" where there is no fixed one.
    weight_dtype: str = ""
    # The suffix of the tensor beside the weight by which the format is recognised.
    scale_suffix: str = ""
    # The shape that scales of one number are written with.
    scalar_shape: tuple[int, ...] = ()
    # The tensor, one in a file, that tells of layers without a configuration; "" for none.
    marker: str = ""
    # The title of the older form, told by a marker, which --recipe scaled-fp8 stores instead.
    older_form: str = ""
    # Whether ComfyUI takes other floats for scales of float32, rounded as they are; else it stops.
    casts_scales: bool = True
    # Rows of the weight are padded with zeros to a multiple of this.
    row_multiple: int = 1
    # Groups of this many columns are rotated before they are stored; 0 for weights as they are.
    rotated: int = 0
    # K has to be a multiple of this.
    column_multiple: int = 1
    # The title of the row that stands in for weights of shapes that do not fit; "" for none.
    stand_in: str = ""
    # The key of DEFECTS to report where such a weight has no configuration; "" if it needs none.
    unconfigured: str = "unconfigured"

    # How ComfyUI multiplies it, unless a layer is marked for full-precision matmul.
    weight_bits: int = 16
    activation_bits: int = 16
    # The word of `cards.UNITS` for what its layers are multiplied in.
    kernel: str = "16bit"
    # Whether the input is quantised to NVFP4, with block scales: recordings and sensitivities tell
    # what that costs, presets and --w4a4-share spare layers from it.
    has_nvfp4_input: bool = False
    # The first version of ComfyUI whose embeddings take it, as they look rows up before they decode
    # them; "" where none does.
    embedding_since: str = ""
    # Whether a mark for full-precision matmul or an input scale means anything.
    takes_mark: bool = True
    # Whether ComfyUI would clip the input at 448 where there is neither an input scale nor a mark
    # for full-precision matmul.
    needs_input_scale: bool = False
    # The largest activation over the input scale; 0 where the format takes no input scale.
    activation_max: float = 0.0
    # Column of a calibration summary that input scales are from, and what it is divided by.
    summary_column: tuple[str, float] | None = None
    # The field of Options that marks all layers of this format for full-precision matmul.
    full_precision_option: str = ""
    # What is multiplied, in words: with an input scale, without one, with full-precision matmul.
    runs_scaled: str = ""
    runs_unscaled: str = ""
    runs_full_precision: str = ""

    # What a conversion does with it.
    # Whether a source may have such layers. They are copied, or, if `is_decoded`, become 16-bit
    # weights again and are planned anew.
    is_adopted: bool = False
    is_decoded: bool = False
    # The time to encode one weight, as the number of bytes that could be read or written meanwhile.
    # Ranks divide the work by it.
    encoding_cost: int = 0
    # What rounding by statistics rounds to, None where it cannot.
    grid: Grid | None = None

    def __init__(self) -> None:
        """Enter the row into the table of all formats."""
        Format.rows.append(self)

    def __repr__(self) -> str:
        """Show the row by its title, which is unique."""
        return self.title

    def __reduce__(self) -> tuple:
        """Pickle the row by its title.

        Ranks send plans to each other, and formats are compared by `is`.
        """
        return format_titled, (self.title,)

    def __lt__(self, other: Format) -> bool:
        """Compare by bits of precision."""
        return self.rank < other.rank

    def __le__(self, other: Format) -> bool:
        """Compare by bits of precision; formats of equal rank meet each other's floors."""
        return self.rank <= other.rank

    @property
    def is_quantised(self) -> bool:
        """Tell whether ComfyUI has a name for the format in `comfy_quant`.

        Tensors of such formats are layers with scales and a configuration.
        """
        return bool(self.config)

    @property
    def kind(self) -> str:
        """Name its numbers for people, who need not know all forms: FP8, INT8, MXFP8, NVFP4."""
        return self.title

    def dtype_of(self, source: str, half: str) -> str:
        """Choose the safetensors dtype that a tensor gets in the output.

        source: its dtype in the source; half: the one that --dtype asks for ("BF16", "F16" or
        "F32"). Unquantised formats override this; the default keeps the source's dtype.
        """
        return source

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """Make the configuration of a layer that ComfyUI reads.

        It is the same in `comfy_quant` and in the header. Returns what is written as JSON: the
        format's name, and `full_precision_matrix_mult` where activations are to stay 16-bit.
        """
        flag = {"full_precision_matrix_mult": True} if full_precision else {}
        return {"format": self.config, **flag}

    def name_in_file(self, suffix: str) -> str:
        """Name the tensor that holds a part of a layer, given the part's usual suffix.

        Formats older than ComfyUI's present names override it.
        """
        return suffix

    # Shapes and dtypes: no tensor's values are needed.

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell dtypes and shapes of the tensors that a weight [N, K] becomes.

        Returns {suffix: (safetensors dtype, shape)}, without COMMON_PARTS other than the weight, in
        the order in which they are written; `pack` gives the values.
        """
        return {"weight": (self.weight_dtype, shape)}

    @property
    def has_one_scale(self) -> bool:
        """Tell whether a weight has a single number for a scale, and nothing else."""
        # Any shape will do to tell which parts are one number: 32 rows and columns, as an example.
        _, *others = (math.prod(shape) for _, shape in self.parts((32, 32)).values())
        return others == [1]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """List the suffixes of its own tensors in a file, by the names they have there.

        They include the input scale, and those that a layer of this format may lack.
        """
        names = (*self.parts((1, 1)), "input_scale") if self.is_quantised else ()
        return tuple(self.name_in_file(name) for name in names)

    def stores(self, weight: TensorRef) -> bool:
        """Tell whether a weight has the dtype in which this format stores codes."""
        return weight.dtype == self.weight_dtype

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration means this row, of those that share its format's name."""
        return config.get("format") == self.config

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell whether ComfyUI takes a part whose dtype or shape is not that of `parts`.

        suffix: of the part; ref: as it is stored; expected: the shape in `parts`.
        """
        return False

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell whether ComfyUI loads such a layer with options that no row has.

        config: its configuration, of this format's name; parts: its tensors by suffix.
        """
        return True

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is of this format, going by its tensors.

        weight: the stored weight; parts: the layer's tensors by suffix; config: its configuration,
        {} if it has none. The dtype of the weight has to be that of the format, and the scale that
        it is recognised by has to be there.
        """
        fits = bool(self.weight_dtype) and weight.dtype == self.weight_dtype
        return fits and (not self.scale_suffix or self.scale_suffix in parts)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K] of a weight from its stored shape.

        stored: shape of the stored weight, rows padded and codes packed; bias_rows: length of the
        layer's bias, None if there is none, which tells how many rows are not padding.
        """
        return stored

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a stored layer cannot be decoded, by dtypes and shapes, or return "".

        parts: its tensors by suffix; shape: [N, K] as `logical_shape` gave it. Here: the scale has
        to be one float, and the weight a matrix that is not empty.
        """
        scale, weight = parts.get(self.scale_suffix), parts["weight"]
        if scale is not None and (scale.dtype not in SOURCE_FLOATS or math.prod(scale.shape) != 1):
            return f"its scale is {scale.dtype} {list(scale.shape)}"
        if len(weight.shape) != 2 or 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        return ""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Tell whether a weight [N, K] can be stored so that ComfyUI multiplies by it."""
        return shape[1] % self.column_multiple == 0

    def for_shape(self, shape: tuple[int, ...]) -> Format:
        """Return the row that stores a weight of this shape: this one, or the one that stands in.

        Tensors that are no matrices are for the rules of planning to keep out.
        """
        if len(shape) != 2 or self.fits(shape) or not self.stand_in:
            return self
        return format_titled(self.stand_in).for_shape(shape)

    def runs_as(self, shape: tuple[int, ...], *, full_precision: bool) -> str:
        """Tell the word of `cards.UNITS` for what a weight [N, K] is multiplied in.

        full_precision: whether the layer is marked for full-precision matmul.
        """
        is_16_bit = (full_precision and self.takes_mark) or self.is_slow(shape)
        return "16bit" if is_16_bit else self.kernel

    def is_slow(self, shape: tuple[int, int]) -> bool:
        """Tell whether ComfyUI has no matmul in the format's activation bits for a weight [N, K].

        ComfyUI then decodes the weight for every call, which is right but slow.
        """
        return False

    # Values: what follows computes with tensors.

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Choose scales and codes with the least squared error of the weight.

        given: the weight and its largest magnitude; encoder: what to compute with. Returns what
        `pack` turns into tensors. Formats that are not quantised have none, and raise
        NotImplementedError.
        """
        raise NotImplementedError

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Turn an encoded weight into the tensors of the file.

        shape: [N, K]. Returns {suffix: its rows in pieces} in the order of `parts`; the pieces are
        written one after the other, so that large codes need not be joined in memory.
        """
        raise NotImplementedError

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring a layer's stored tensors into the form that `decode` takes.

        tensors: by suffix, as the file holds them. Returns parts by rows, the codes first, and the
        scale as a float32 scalar, 1 where the format has none.
        """
        scale = tensors.get(self.scale_suffix)
        return [tensors["weight"]], torch.ones(()) if scale is None else scale.float().reshape(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Dequantise rows to float32 [n, K], K padded as it is stored.

        Arguments are the parts by rows, as `unpack` or `round_to_levels` gives them, and last the
        scale, a float32 scalar; a scale of 1 gives weights in units of the scale.
        """
        raise NotImplementedError

    def grid_of(self, *by_rows: torch.Tensor) -> Grid:
        """Return `grid`, with the layer's own codebook where the format has one.

        by_rows: the parts of its encoding after the codes, [n, ...] each.
        """
        return self.grid

    def row_units(self, *by_rows: torch.Tensor) -> torch.Tensor:
        """Return the units that rows are rounded in: float32 [n, 1], or [] for 1 throughout.

        by_rows: the parts of their encoding after the codes. Units are of the rotated rows, over
        the layer's scale, and rounding by statistics leaves them as they are.
        """
        return torch.ones(())

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Pack rows that were rounded by statistics, as `decode` takes them.

        rounded: levels and codes of steps; feedback: tells the order of their columns; by_rows:
        the parts after the codes that the rows had before, [n, ...] each. Returns parts by rows,
        the codes first. Needed where `grid` is set.
        """
        raise NotImplementedError

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows as ComfyUI's matmul in this format sees them.

        rows: [r, K] floats; input_scale: the layer's, or None where it has none. Returns [r, K]
        float32 in the input's own basis. Here: 16-bit rows are taken as they are.
        """
        return rows.float()

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find defects that the values of scales show: keys of DEFECTS, each with a detail.

        scales: by suffix, those that are more than one number; weight: the stored shape of the
        weight.
        """
        return []

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """List other ways in which the same parts may have been stored.

        parts: by rows, as `unpack` gives them. Returns {what may have gone wrong: how they would be
        read then}, which --verify tries where a layer decodes to something else than its source.
        """
        return {}


def format_titled(title: str) -> Format:
    """Find the row of a title. Raises KeyError where there is none."""
    return {row.title: row for row in Format.rows}[title]


def written_formats() -> list[Format]:
    """List the formats that this program writes with a configuration, the fewest bits first."""
    return [row for row in sorted(Format.rows) if row.name and row.config and row.is_configured]


def readable_formats() -> list[Format]:
    """List the formats that a stored layer may have, in the order in which to try them.

    Of two that fit a layer the first one counts: fewer bits come first, then those that are told by
    a scale beside the weight, then those without a configuration.
    """
    rows = (row for row in Format.rows if row.weight_dtype)
    return sorted(rows, key=lambda row: (row.rank, not row.scale_suffix, row.is_configured))


def is_known(config: object) -> bool:
    """Tell whether ComfyUI knows a format by this name.

    config: what a configuration gives as its format, which may be anything JSON can hold.
    """
    return bool(config) and config in {row.config for row in Format.rows}


def layer_parts() -> tuple[str, ...]:
    """List the suffixes of all tensors that belong to a layer, in any format, each once."""
    own = (suffix for row in Format.rows for suffix in row.suffixes)
    return tuple(dict.fromkeys((*COMMON_PARTS, *own)))


def marker_names() -> set[str]:
    """List the names of tensors that tell of layers without a configuration."""
    return {row.marker for row in Format.rows if row.marker}


def is_quantised_part(name: str) -> bool:
    """Tell whether a tensor of this name shows that its layer is quantised already.

    name: as in the file. A weight, a bias and a smoothing vector show nothing.
    """
    own = {*layer_parts(), *marker_names(), *ZERO_POINTS}
    return name.rpartition(".")[2] in own - {"weight", "bias", "pre_quant_scale"}


def scalar_scales() -> dict[str, tuple[int, ...]]:
    """List the scales that are one number: {suffix: the shape with which it is written}.

    Those of formats with a configuration come first, each format's input scale after its own
    scales.
    """
    found: dict[str, tuple[int, ...]] = {}
    for configured in (True, False):
        # Any shape will do to tell which parts are one number: 32 rows and columns, as an example.
        rows = [r for r in readable_formats() if r.is_quantised and r.is_configured is configured]
        for row in rows:
            parts = {suffix: shape for suffix, (_, shape) in row.parts((32, 32)).items()}
            scalars = {k: shape for k, shape in parts.items() if math.prod(shape) == 1}
            found |= {row.name_in_file(suffix): shape for suffix, shape in scalars.items()}
        found |= {row.name_in_file("input_scale"): row.scalar_shape for row in rows}
    return found


# ── nvfp4/formats/scaled.py: Decode weights of one byte by the scale, or the scales of rows or bloc

def bad_scales(scales: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Find scales that are no positive, finite numbers: keys of DEFECTS with details.

    scales: {suffix: floats of any shape}.
    """
    wrong = {suffix: ~((found > 0) & found.isfinite()) for suffix, found in scales.items()}
    return [("bad scale", suffix) for suffix, bad in wrong.items() if bad.any()]


class Scaled(Format):
    """Decode weights of any shape whose codes take a byte each."""

    rank = 8
    is_configured = False
    unconfigured = "unread scale"
    weight_bits = activation_bits = 8
    is_adopted = is_decoded = True
    runs_full_precision = "FP8 weights, scaled and multiplied in 16-bit"

    @property
    def kind(self) -> str:
        """Name it FP8, or INT8, whatever its scales are."""
        return "INT8" if self.weight_dtype == "I8" else "FP8"

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a stored weight of any number of dimensions cannot be decoded, or return "".

        Its scale has to be one float, or a grid of them that `block_shape` takes.
        """
        scale, weight = parts.get(self.scale_suffix), parts["weight"]
        if 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        fits = scale is None or scale.dtype in SCALE_FLOATS
        if fits and (scale is None or block_shape(weight.shape, scale.shape)):
            return ""
        return f"its scale is {scale.dtype} {list(scale.shape)} for a weight {list(weight.shape)}"

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring codes and scales of a stored weight into the form that `decode` takes.

        Several scales become float32 [N, blocks of K] beside the codes, and the one scale is 1.
        """
        weight, scale = tensors["weight"], tensors.get(self.scale_suffix)
        if scale is None or math.prod(scale.shape) == 1:
            return super().unpack(tensors)
        return [weight, scales_by_rows(scale, tuple(weight.shape))], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply codes [n, ...] by their scales: float32 of the same shape.

        Between codes and scale may be scales of blocks, float32 [n, blocks of K]. With one scale,
        comfy_kitchen.dequantize_per_tensor_fp8 gives the same in float32.
        """
        codes, *blocks, scale = parts_and_scale
        values = decode_byte(codes)
        if not blocks:
            return values.mul_(scale)
        return multiply_blocks(values.view(len(values), -1), blocks[0] * scale).view(codes.shape)


# ── nvfp4/formats/fp8.py: Store weights as FP8: 8-bit floats, one scale for a whole weight ────────

class Fp8(Scaled):
    """Store a weight [N, K] as F8_E4M3 [N, K] and one float32 scale.

    The layout is that of comfy_kitchen's TensorCoreFP8Layout. ComfyUI multiplies in FP8 (W8A8)
    where there is an input scale, and decodes to 16 bits for full-precision matmul. Without either
    it casts activations with scale 1, clipped at 448.
    """

    name = title = "FP8"
    option = kernel = "fp8"
    config = "float8_e4m3fn"
    is_configured = True
    weight_dtype = "F8_E4M3"
    scale_suffix = "weight_scale"
    needs_input_scale = True
    embedding_since = Scaled.since
    older_form = "scaled FP8"
    # A summary's `amax` is the largest activation, which E4M3's largest number is to stand for.
    activation_max = E4M3_MAX
    summary_column = ("amax", E4M3_MAX)
    full_precision_option = "fp8_full_precision_mm"
    runs_scaled = "FP8 weights times FP8 activations at the baked scale"
    runs_unscaled = "FP8 weights times FP8 activations that are clamped at 448"
    # Half of NVFP4's, which searches the scale of every block.
    encoding_cost = 2
    grid = Grid(E4M3)

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the two tensors of a weight [N, K]: codes F8_E4M3 [N, K] and their scale F32.

        The scale has shape [], here and in comfy_kitchen; `ScaledFp8` stores shape [1]. Rows and
        columns are not padded.
        """
        return {"weight": (self.weight_dtype, shape), "weight_scale": ("F32", self.scalar_shape)}

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K] at amax / 448, or at the scale that the source stored it with.

        Codes are float8_e4m3fn [n, K] by chunks of rows. They are bit-identical to those of
        comfy_kitchen.quantize_per_tensor_fp8 for the weight in float32; with `encoder.dtype`
        bfloat16 or float16 the weight is cast first.
        """
        # Kernels are there only for float32; other dtypes are cast first, by `with_damage`.
        plain = with_damage(
            lambda rows, scale: (encode_fp8(rows, scale),), decode_fp8, encoder.dtype
        )
        encode = encoder.kernels.encode_fp8 if encoder.kernels else plain
        # With the source's own scale, its FP8 codes come back as they were; another would round
        # values a second time.
        known = given.source_scale
        scale = fp8_scale(given.amax) if known is None else torch.tensor(known)
        return encode_rows(given.weight, scale.to(given.amax), encode, encoder)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`.

        Codes are float8_e4m3fn [N, K] in chunks of rows, and the scale is float32 []. Nothing is
        padded.
        """
        return {"weight": [*encoded.codes], "weight_scale": [encoded.scale]}

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] to FP8; without a scale they clip at 448."""
        scale = torch.tensor(1.0 if input_scale is None else input_scale, device=rows.device)
        return decode_fp8(encode_fp8(rows, scale), scale)

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Cast rounded levels to codes float8_e4m3fn [n, K].

        Columns are in the weight's own order again. Levels are values of E4M3 already, so that
        nothing is rounded a second time.
        """
        return [levels_in_order(rounded, feedback).to(torch.float8_e4m3fn)]


FP8 = Fp8()


# ── nvfp4/formats/scaled_fp8.py: Store weights as scaled FP8, the older form of FP8 files ─────────

# The number of elements of this tensor decides for every layer of the file: 2 ask for
# full-precision matmul, 0 for FP8 matmul.
MARKER = "scaled_fp8"
# What such files call the scales that newer ones call otherwise.
LEGACY_NAMES = {"weight_scale": "scale_weight", "input_scale": "scale_input"}


class ScaledFp8(Fp8):
    """Store a weight as Fp8 does, with other names and no configuration.

    `scale_weight` F32 [1] and `scale_input` F32 [1] lie beside the weight F8_E4M3 [N, K]. Working
    Wan FP8 files have this form. ComfyUI reads it where MARKER is in the file and
    `_quantization_metadata` is not.
    """

    title = "scaled FP8"
    is_configured = False
    scale_suffix = "scale_weight"
    scalar_shape = (1,)
    marker = MARKER
    option = full_precision_option = ""
    older_form = ""

    def name_in_file(self, suffix: str) -> str:
        """Name a part as such files do.

        `weight_scale` is `scale_weight` there, and `input_scale` is `scale_input`; other names are
        the same.
        """
        return LEGACY_NAMES.get(suffix, suffix)


def marker_tensor(*, full_precision: bool) -> torch.Tensor:
    """Make the marker of a file whose layers all get full-precision matmul, or all FP8 matmul.

    Returns float8_e4m3fn zeros of shape [2] for full-precision matmul and [0] for FP8 matmul:
    ComfyUI looks at the number of elements alone.
    """
    return torch.zeros(2 if full_precision else 0).to(torch.float8_e4m3fn)


SCALED_FP8 = ScaledFp8()


# ── nvfp4/formats/floats.py: Store tensors without quantising: 16-bit, 32-bit, or as they are ─────

class Half(Format):
    """Store a tensor in 16-bit floats, or in whatever else --dtype says.

    One tensor of the source's shape, BF16 unless --dtype is float16 or float32. A tensor with a
    value beyond float16's 65504 is planned as Float32 instead.
    """

    name, title, rank = "HALF", "16-bit", 16
    option = "16bit"

    def dtype_of(self, source: str, half: str) -> str:
        """Return the safetensors dtype of --dtype: "BF16", "F16" or "F32", whatever the source has.

        Values are cast by `encode.float16.cast`.
        """
        return half


class Float32(Format):
    """Store a tensor in float32, for what loses too much in fewer bits.

    One tensor of the source's shape and dtype F32: what a GGUF keeps in F32, and what float16
    cannot hold.
    """

    name, title, rank = "FP32", "32-bit", 32

    def dtype_of(self, source: str, half: str) -> str:
        """Return "F32", whatever the source has and --dtype says."""
        return "F32"


class Kept(Format):
    """Store a tensor as the source does: the same bytes, dtype and shape, whatever they are.

    Its rank is above all others, so that no floor raises it. It is also the format of tensors of
    NVFP4 layers that the source has already.
    """

    # More than the bits of any other format, so that every floor is met.
    name, title, rank = "KEPT", "as in the source", 64
    is_copy = True


# The only instances: formats are compared by `is`, so that nobody makes a second one.
HALF, FP32, KEPT = Half(), Float32(), Kept()


# ── nvfp4/formats/foreign_fp8.py: Read FP8 of dtypes and with names of scales that other programs u

# The largest finite number of E5M2.
E5M2_MAX = 57344.0


class ForeignFp8(Scaled):
    """Describe FP8 of one dtype beside a scale of one name; despite some names all multiply."""

    runs_full_precision = "FP8 weights whose scale ComfyUI does not read"

    def __init__(self, dtype: str, scale_suffix: str, config: str = "") -> None:
        """Enter a row: dtype as safetensors has it, config where ComfyUI knows the format."""
        kind = dtype.replace("F8_", "FP8 ").removesuffix(" E4M3")
        self.title = kind if scale_suffix == "weight_scale" else f"{kind}, {scale_suffix}"
        self.weight_dtype, self.scale_suffix, self.config = dtype, scale_suffix, config
        self.is_configured = bool(config)
        if config:
            self.embedding_since = self.since
            self.activation_max = E5M2_MAX
            self.runs_scaled = self.runs_unscaled = "FP8 weights times FP8 activations, both E5M2"
            self.runs_full_precision = Scaled.runs_full_precision
        super().__init__()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """List the suffixes of weight and scale: such formats may have no name in ComfyUI."""
        return (*self.parts((1, 1)), "input_scale")

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scale of a weight [N, K], as it is with one scale."""
        return {"weight": (self.weight_dtype, shape), self.scale_suffix: ("F32", ())}


# DeepSeek calls it weight_scale_inv, though a weight is multiplied by it, as by all the others.
INVERSE = "weight_scale_inv"
FOREIGN_ROWS = (
    ForeignFp8("F8_E4M3", INVERSE),
    ForeignFp8("F8_E5M2", "weight_scale", config="float8_e5m2"),
    *(ForeignFp8("F8_E5M2", suffix) for suffix in ("scale_weight", INVERSE)),
    *(
        ForeignFp8(dtype, suffix)
        for dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ")
        for suffix in ("weight_scale", "scale_weight", INVERSE)
    ),
)


# ── nvfp4/formats/int8.py: Store weights as INT8: 8-bit integers with a scale for every row, rotate

# comfy_kitchen's CUDA kernels refuse other numbers of columns (seen on an H200); rows are any.
INT8_MATMUL_K = 4


class Int8(Scaled):
    """Store a weight [N, K] as I8 [N, K] and a `weight_scale` F32 [N, 1]; one may have [].

    A row of this class is for one size of the groups of columns that were rotated (ConvRot); 0 is
    for weights that were not. Groups of 256 are written, and 0 where K has no whole groups; others
    are only read. ComfyUI rotates the input, too, and measures a scale for each of its rows.
    """

    config = "int8_tensorwise"
    is_configured = True
    weight_dtype = "I8"
    scale_suffix = "weight_scale"
    unconfigured = "integers"
    since = "0.27"
    kernel = "int8"
    takes_mark = False
    grid = Grid(INTEGERS)
    # The first that is known to look up rows of INT8 (ComfyUI#15035).
    embedding_since = "0.29"
    runs_unscaled = "8-bit weights times 8-bit activations, whose scales are measured by rows"

    def __init__(self, group: int) -> None:
        """Enter the row of one group size."""
        self.rotated = group
        self.title = f"INT8 rotated by {group}" if group else "INT8 not rotated"
        self.name = "" if group else "INT8_PLAIN"
        self.column_multiple, self.stand_in = group or INT8_MATMUL_K, "16-bit"
        if group == WRITTEN_GROUP:
            self.name = self.title = "INT8"
            self.option, self.stand_in = "int8", "INT8 not rotated"
        super().__init__()

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """Make the configuration, which tells how many columns were rotated together."""
        rotation = {"convrot": True, "convrot_groupsize": self.rotated} if self.rotated else {}
        return {"format": self.config, **rotation}

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scales of a weight [N, K], as it is with scales of rows."""
        return {"weight": (self.weight_dtype, shape), "weight_scale": ("F32", (shape[0], 1))}

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is INT8 of this rotation, by its tensors and configuration.

        A layer without a configuration is taken as not rotated.
        """
        # ComfyUI takes the bits of U8 for those of I8; only a configuration tells that they are.
        dtypes = VIEWED if config else (self.weight_dtype,)
        has_parts = weight.dtype in dtypes and self.scale_suffix in parts
        return has_parts and self.is_meant_by({"format": self.config, **config})

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of INT8 with this rotation."""
        return super().is_meant_by(config) and rotated_group(config) == self.rotated

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell that no layer is loaded whose rotation there is not, as rows have all there are."""
        return False

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that ComfyUI takes one F32 scale for all rows as well."""
        return suffix == "weight_scale" and ref.dtype == "F32" and math.prod(ref.shape) == 1

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: as for all scaled ones, and rotated in whole groups.

        Only the columns of a matrix are rotated.
        """
        weight = parts["weight"].shape
        if self.rotated and (len(weight) != 2 or weight[1] % self.rotated):
            return f"its weight {list(weight)} has no whole groups of {self.rotated} columns"
        return super().undecodable(parts, shape)

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K]: codes int8 [n, K] in chunks, and row scales float32 [N, 1].

        Row scales are those of least squared error. With `--scale-search amax` and float32 the
        bytes are those of comfy_kitchen's layout, but for ties that the last bit of a rotation
        decides.
        """
        is_searched = encoder.search is not amax_block_scales
        row_scales = mse_row_scales if is_searched else amax_row_scales
        quantise = partial(quantise_int8, group=self.rotated, row_scales=row_scales)
        compiled = encoder.kernels and partial(
            encoder.kernels.encode_int8, rotated=self.rotated > 0, row_scales=row_scales
        )
        return encode_by_rows(given, quantise, self.decode, encoder, compiled)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`: codes int8 in chunks of rows, and the row scales."""
        return {"weight": [*encoded.codes], "weight_scale": [encoded.by_rows[0]]}

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply codes int8 [n, K] by their scales, and rotate them back: float32 [n, K].

        comfy_kitchen.dequantize_int8_convrot_weight gives the same but for float32's rounding.
        """
        codes, *scales = parts_and_scale
        values = super().decode(codes.view(torch.int8), *scales)
        return rotate(values, self.rotated) if self.rotated else values

    def row_units(self, *by_rows: torch.Tensor) -> torch.Tensor:
        """Return the scales of the rows, float32 [n, 1]."""
        return by_rows[0]

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Cast rounded levels to codes int8 [n, K]; the rows keep their scales."""
        return [levels_in_order(rounded, feedback).to(torch.int8), *by_rows]

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find row scales that are no positive numbers."""
        return bad_scales({"weight_scale": scales["weight_scale"]})

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """Give the same parts with the rotation undone, or applied where none is configured."""
        told = (
            "not rotated, but configured so" if self.rotated else "rotated, but not configured so"
        )
        group = self.rotated or WRITTEN_GROUP
        if len(parts[0].shape) != 2 or parts[0].shape[1] % group:
            return {}
        return {told: Misreading(parts, lambda *stored: rotate(self.decode(*stored), group))}

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K], each with a scale of its own."""
        return quantised_int8_rows(rows, self.rotated)


def rotated_group(config: dict) -> int:
    """Tell from a layer's configuration how many columns were rotated together; 0 for none.

    Returns -1 where the configuration names no such number; ComfyUI takes 256 without any.
    """
    is_rotated, group = configured_options(config, convrot=False, convrot_groupsize=WRITTEN_GROUP)
    if not is_rotated:
        return 0
    return group if isinstance(group, int) and group > 0 else -1


# The rotation is by Hadamard matrices whose sizes are powers of four; comfy_kitchen takes 256.
INT8_GROUPS = (WRITTEN_GROUP, 0, *(4**power for power in range(1, 7) if power != 4))
INT8_ROWS = tuple(map(Int8, INT8_GROUPS))
INT8 = INT8_ROWS[0]


# ── nvfp4/formats/int4.py: Read the formats of 4-bit integers that ComfyUI multiplies in and this p

# Columns that share a scale and a zero point in AWQ's layout.
AWQ_GROUP = 64


class Int4(Format):
    """Describe weights [N, K] of two codes a byte, I8 [N, K/2], the even column in the low bits."""

    rank = weight_bits = 4
    weight_dtype = "I8"
    scale_suffix = "weight_scale"
    unconfigured = "integers"
    takes_mark = False
    is_adopted = True

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is configured as this format, and has all of its tensors."""
        has_parts = weight.dtype in VIEWED and self.parts((1, 1)).keys() <= parts.keys()
        return has_parts and self.is_meant_by(config)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K] of codes [N, K/2]."""
        return stored[0], stored[1] * 2

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: each tensor has to have its shape."""
        weight = parts["weight"].shape
        if len(weight) != 2 or 0 in weight:
            return f"its weight is {list(weight)}"
        for suffix, (_, expected) in self.parts(shape).items():
            ref = parts[suffix]
            fits = ref.shape == expected or self.accepts(suffix, ref, expected)
            if not fits or (suffix != "weight" and ref.dtype not in SOURCE_FLOATS):
                return f"its {suffix} is {ref.dtype} {list(ref.shape)}"
        return ""


class ConvRotInt4(Int4):
    """Describe signed codes, -8 to 7, of weights whose columns were rotated in groups.

    A row of this class is for one size of the groups; `weight_scale` is F32 [N].
    """

    config = "convrot_w4a4"
    since = "0.28"
    activation_bits = 4
    runs_unscaled = (
        "4-bit integers times 4-bit activations, rotated, whose scales are measured by rows"
    )

    def __init__(self, group: int) -> None:
        """Enter the row of one group size."""
        self.rotated = group
        self.title = "ConvRot INT4" if group == 256 else f"ConvRot INT4 by {group}"
        super().__init__()

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scales of a weight [N, K]."""
        return {
            "weight": (self.weight_dtype, (shape[0], shape[1] // 2)),
            "weight_scale": ("F32", (shape[0],)),
        }

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of this format with this size of groups."""
        group = rotated_group({**config, "convrot": True})
        return super().is_meant_by(config) and group == self.rotated

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell whether comfy_kitchen has the rotation that a configuration asks for."""
        return rotates(config, parts["weight"].shape[-1] * 2)

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that comfy_kitchen takes scales [N, 1] for [N]."""
        return suffix == "weight_scale" and ref.dtype == "F32" and ref.shape == (*expected, 1)

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded; its columns have to be whole groups."""
        if len(shape) == 2 and shape[1] % self.rotated:
            return f"its {shape[1]} columns are no whole groups of {self.rotated}"
        return super().undecodable(parts, shape)

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give codes int8 [N, K/2] and scales float32 [N, 1], as `decode` takes them; a scale 1."""
        scales = tensors["weight_scale"].float().reshape(-1, 1)
        return [tensors["weight"].view(torch.int8), scales], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Multiply signed codes by their row's scale, and rotate them back: float32 [n, K]."""
        codes, rows, scale = parts_and_scale
        return rotate(nibbles(codes, signed=True).float() * (rows * scale), self.rotated)


class AwqInt4(Int4):
    """Describe codes 0 to 15 that stand for (code - 8) * scale + zero.

    `weight_scale` and `weight_zeros` are 16-bit floats [K/64, N]. They are never quantised here:
    AWQ chooses them by activations.
    """

    title, config, since = "AWQ INT4", "awq_w4a16", "0.37"
    runs_unscaled = "4-bit integers with zero points, multiplied in 16-bit"

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes, scales and zero points of a weight [N, K]."""
        groups = ("BF16", (shape[1] // AWQ_GROUP, shape[0]))
        weight = (self.weight_dtype, (shape[0], shape[1] // 2))
        return {"weight": weight, "weight_scale": groups, "weight_zeros": groups}

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of AWQ in groups of 64."""
        return super().is_meant_by(config) and config.get("group_size", AWQ_GROUP) == AWQ_GROUP

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that ComfyUI takes scales and zero points in any float that a model may have."""
        return suffix != "weight" and ref.dtype in SOURCE_FLOATS and ref.shape == expected

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Give codes int8 [N, K/2], scales and zero points float32 [N, K/64], and a scale of 1."""
        by_rows = (
            tensors[name].float().t().contiguous() for name in ("weight_scale", "weight_zeros")
        )
        return [tensors["weight"].view(torch.int8), *by_rows], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Decode codes by scales and zero points of their groups: float32 [n, K]."""
        codes, scales, zeros, scale = parts_and_scale
        grouped = nibbles(codes, signed=False).unflatten(1, (-1, AWQ_GROUP)).float() - 8
        return (grouped * scales[..., None] + zeros[..., None]).flatten(1) * scale


def nibbles(codes: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Unpack int8 [n, K/2] to int8 [n, K], the even column from the low four bits."""
    both = unpack_w4a8(codes, codes.shape[1] * 2).to(torch.int8)
    return both - ((both & 8) << 1) if signed else both


# The rotation is by Hadamard matrices whose sizes are powers of four; comfy_kitchen takes 256.
INT4_ROWS = (*(ConvRotInt4(4**power) for power in range(2, 7)), AwqInt4())


# ── nvfp4/formats/mxfp8.py: Store weights as MXFP8: E4M3 numbers, and a power of two for every 32 o

class Mxfp8(Scaled):
    """Store a weight as F8_E4M3 [N32, K32] and a `weight_scale` of E8M0 in swizzled tiles.

    N32 and K32 are N and K rounded up to 32. Other programs store such scales in other orders, so
    that only a configuration tells this one.
    """

    name = title = "MXFP8"
    option = kernel = "mxfp8"
    since = "0.29"
    config = "mxfp8"
    is_configured = True
    weight_dtype = "F8_E4M3"
    scale_suffix = "weight_scale"
    row_multiple = MX_BLOCK
    grid = Grid(E4M3, MX_BLOCK, E8M0_STEPS)
    runs_full_precision = "FP8 weights, decoded and multiplied in 16-bit"
    runs_unscaled = "FP8 weights times FP8 activations with scales of blocks, on Blackwell"

    @property
    def kind(self) -> str:
        """Name it MXFP8."""
        return self.title

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the two tensors of a weight [N, K]: codes, and scales that are bytes of E8M0."""
        height, width = (round_up(size, MX_BLOCK) for size in shape)
        tiles = (round_up(height, TILE_ROWS), round_up(width // MX_BLOCK, TILE_COLUMNS))
        return {"weight": (self.weight_dtype, (height, width)), "weight_scale": ("F8_E8M0", tiles)}

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is configured as MXFP8, and has its tensors."""
        return config.get("format") == self.config and super().holds(weight, parts, config)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K32] of codes [N32, K32] by the length of the bias; N32 where that does not."""
        rows = stored[0] if bias_rows is None else bias_rows
        return rows if round_up(rows, MX_BLOCK) == stored[0] else stored[0], stored[1]

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded: codes and whole tiles of scales have to fit."""
        weight, scale = parts["weight"], parts["weight_scale"]
        if len(weight.shape) != 2 or 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        expected = self.parts(weight.shape)
        fits = scale.shape == expected["weight_scale"][1] and weight.shape == expected["weight"][1]
        if fits and scale.dtype in ("F8_E8M0", *VIEWED):
            return ""
        return f"its scale is {scale.dtype} {list(scale.shape)} for a weight {list(weight.shape)}"

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K]: codes float8_e4m3fn [n, K32] in chunks, scales [N, K32/32].

        Scales are float32 here, powers of two. With `--scale-search amax` the bytes are those of
        comfy_kitchen.quantize_mxfp8.
        """
        compiled = encoder.kernels and encoder.kernels.encode_mxfp8
        return encode_by_rows(given, quantise_mxfp8, self.decode, encoder, compiled)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`: codes, padding rows last, and scales swizzled into tiles."""
        scales, missing = encoded.by_rows[0], -shape[0] % MX_BLOCK
        # torch 2.4 fills no tensors of FP8; all its bits are zero.
        padding = torch.zeros(missing, encoded.codes[0].shape[1], dtype=torch.uint8)
        # The exponent of a power of two is its E8M0 code; of 2**-127, which is subnormal, it is 0.
        codes = (scales.view(torch.int32) >> 23).to(torch.uint8)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
        return {
            "weight": [*encoded.codes, padding.view(torch.float8_e4m3fn)],
            "weight_scale": [swizzle(codes)],
        }

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Cast rounded levels to codes float8_e4m3fn [n, K], and decode the scales [n, K/32]."""
        codes = levels_in_order(rounded, feedback).to(torch.float8_e4m3fn)
        return [codes, decode_e8m0(steps_in_order(rounded, feedback))]

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find scales of blocks that are NaN; E8M0 has neither signs nor zeros."""
        return bad_scales({"weight_scale": decode_e8m0(scales["weight_scale"].view(torch.uint8))})

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] in blocks of 32."""
        return quantised_mxfp8_rows(rows)

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring stored codes and scales into rows, as `decode` takes them.

        Returns codes float8_e4m3fn [N32, K32], scales float32 [N32, K32/32], and a scale of 1.
        """
        codes = tensors["weight"]
        tiles = tensors["weight_scale"].view(torch.uint8)
        scales = unswizzle(tiles, codes.shape[0], codes.shape[1] // MX_BLOCK)
        return [codes, decode_e8m0(scales)], torch.ones(())


MXFP8 = Mxfp8()


# ── nvfp4/formats/nvfp4.py: Store weights as NVFP4: 4-bit floats and an 8-bit scale for every 16 ──

class Nvfp4(Format):
    """Store a weight [N, K] as codes, block scales in swizzled tiles, and a global scale.

    N16 and K16 are N and K rounded up to 16. Codes are U8 [N16, K16/2], two columns in a byte. The
    weight is multiplied in FP4 on Blackwell (W4A4), and decoded to 16 bits elsewhere and with
    full-precision matmul (W4A16). In ComfyUI since 0.10.
    """

    name = title = "NVFP4"
    rank = 4
    option = kernel = "nvfp4"
    config = "nvfp4"
    weight_dtype = "U8"
    scale_suffix = "weight_scale_2"
    # comfy_kitchen pads rows to 16 as it does columns, though blocks lie along columns alone.
    row_multiple = BLOCK_SIZE
    weight_bits = activation_bits = 4
    has_nvfp4_input = True
    activation_max = NVFP4_MAX
    # A summary's `scale` column holds input scales of NVFP4 as they are.
    summary_column = ("scale", 1.0)
    runs_scaled = (
        "4-bit weights times 4-bit activations at the baked scale, on Blackwell; "
        "decoded to 16-bit on other cards"
    )
    runs_unscaled = (
        "4-bit weights times 4-bit activations, whose scale is measured on every call, "
        "on Blackwell; decoded to 16-bit on other cards"
    )
    runs_full_precision = "4-bit weights, decoded and multiplied in 16-bit"
    is_adopted = True
    encoding_cost = 4
    grid = Grid(E2M1, BLOCK_SIZE, NVFP4_STEPS)

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the three tensors of a weight [N, K].

        `weight` U8 [N16, K16/2], `weight_scale` F8_E4M3 [roundup(N16, 128), roundup(K16/16, 4)],
        and `weight_scale_2`, the global scale, F32 []. Shapes and suffixes are those that
        comfy_kitchen's TensorCoreNVFP4Layout gives.
        """
        height, width = (round_up(size, BLOCK_SIZE) for size in shape)
        tiles = (round_up(height, TILE_ROWS), round_up(width // BLOCK_SIZE, TILE_COLUMNS))
        return {
            "weight": (self.weight_dtype, (height, width // 2)),
            "weight_scale": ("F8_E4M3", tiles),
            "weight_scale_2": ("F32", ()),
        }

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is NVFP4: a U8 weight with a global scale beside it.

        An I8 weight counts if the layer is configured as NVFP4, too.
        """
        # ComfyUI takes the bits of I8 for those of U8; only a configuration tells that they are.
        signed = weight.dtype == "I8" and config.get("format") == self.config
        return (weight.dtype == self.weight_dtype or signed) and self.scale_suffix in parts

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K16] of codes [N16, K16/2]: two columns in a byte.

        The bias's length is N where it rounds up to N16; otherwise N16 is all that is known, as the
        file does not say how much was padded.
        """
        # Columns may be padded, too, which nothing in the file shows.
        rows = stored[0] if bias_rows is None else bias_rows
        return rows if round_up(rows, BLOCK_SIZE) == stored[0] else stored[0], stored[1] * 2

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded, by dtypes and shapes.

        Its global scale has to be one float, codes [N16, K16/2], and block scales the whole tiles
        that belong to them, F8_E4M3 or bytes with those bits.
        """
        if reason := super().undecodable(parts, shape):
            return reason
        weight, tiles = parts["weight"], parts.get("weight_scale")
        expected = self.parts((weight.shape[0], shape[1]))
        if weight.shape != expected["weight"][1]:
            return f"its weight is {list(weight.shape)}"
        if tiles is None or tiles.shape != expected["weight_scale"][1]:
            return "its block scales have no or another shape"
        if tiles.dtype not in ("F8_E4M3", *VIEWED):
            return f"its block scales are {tiles.dtype}"
        return ""

    def is_slow(self, shape: tuple[int, int]) -> bool:
        """Tell whether Blackwell cannot multiply the weight in FP4.

        It needs K % 32 == 0, and N % 16 == 0 where there is a bias; a layer's bias is not looked at
        here, so that N counts for every layer.
        """
        return bool(shape[0] % FP4_MATMUL_N or shape[1] % FP4_MATMUL_K)

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K] by the scale search that was asked for.

        Codes are uint8 [n, K16/2] by chunks of rows, block scales float8_e4m3fn [N, K16/16] whole
        and not swizzled, the global scale amax / 2688 or one of the six others. Weights too small
        for the search get amax block scales, with a note. With `--scale-search amax` and float32
        the bytes are those of comfy_kitchen.quantize_nvfp4.
        """
        # Parity: with the amax search and float32, all bytes are those of comfy_kitchen.
        scale, search = nvfp4_global_scale(given.amax), encoder.search
        if search is not amax_block_scales and scale < LEAST_SEARCHED_SCALE:
            search = amax_block_scales
            what = f"{given.layer}: too small weights for the scale search"
            encoder.notes.append(Note(what, Rank.INFORMATION))
        # Kernels measure the error while they encode; torch's operations decode again for it.
        encode = with_damage(
            partial(encode_nvfp4, block_scales=search), decode_nvfp4, encoder.dtype
        )
        if encoder.kernels and given.amax > LEAST_COMPILED:
            encode = partial(encoder.kernels.encode_nvfp4, block_scales=search)
        best = encode_rows(given.weight, scale, encode, encoder)
        if search is not amax_block_scales:
            best = try_other_global_scales(given.weight, best, encode, encoder)
        if 0 < given.amax <= NVFP4_MAX * LEAST_FLOAT32 / 2:
            # All codes are zero, and the squares of such weights underflow to 0, which would look
            # like no damage at all: tell that everything is lost.
            best = dataclasses.replace(best, damage=Damage(error=1.0, energy=1.0))
        return best

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`, with padded rows.

        Codes uint8 [N16, K16/2] in chunks of rows, the padding last; block scales float8_e4m3fn
        swizzled into tiles, as comfy_kitchen's to_blocked has them; the global scale float32 [].
        """
        # Parity: comfy_kitchen pads rows to 16, and block scales to whole tiles, with zeros.
        columns, missing = encoded.codes[0].shape[1], -shape[0] % BLOCK_SIZE
        padding = torch.zeros(missing, columns, dtype=torch.uint8)
        return {
            "weight": [*encoded.codes, padding],
            "weight_scale": [swizzle(encoded.by_rows[0])],
            "weight_scale_2": [encoded.scale],
        }

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring stored codes and block scales into rows, as `decode` takes them.

        Returns codes uint8 [N16, K16/2], block scales float8_e4m3fn [N16, K16/16], unswizzled, and
        the global scale float32 []. I8 codes are read as uint8 with the same bits.
        """
        codes = tensors["weight"]
        blocks = codes.shape[1] * 2 // BLOCK_SIZE
        block_scale = unswizzle(tensors["weight_scale"], len(codes), blocks)
        scale = tensors["weight_scale_2"].float().reshape(())
        return [codes.view(torch.uint8), block_scale], scale

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Dequantise codes [n, K16/2] and block scales [n, K16/16] to float32 [n, K16].

        The value is what comfy_kitchen.dequantize_nvfp4 gives in float32.
        """
        return decode_nvfp4(*parts_and_scale)

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Pack rounded rows: codes uint8 [n, K16/2] and block scales float8_e4m3fn [n, K16/16].

        Levels are values of E2M1 already, so that nothing is rounded a second time; both are
        brought back into the weight's own order of columns.
        """
        # Levels are in units of the block scale, which is what E2M1 codes stand for.
        levels = levels_in_order(rounded, feedback)
        packed = pack_e2m1(round_to_e2m1(levels.abs()), levels)
        return [packed, steps_in_order(rounded, feedback).view(torch.float8_e4m3fn)]

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] to NVFP4, as Blackwell's matmul takes them."""
        return quantised_rows(rows, input_scale)

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find block scales that are not positive numbers, and padding that is not zero.

        scales: `weight_scale`, tiles of a one-byte dtype; weight: the stored shape [N16, K16/2]. A
        block scale is wrong if it is NaN or has a sign bit. ComfyUI's own decoding never reads the
        padding of tiles, but FP4 matmul does.
        """
        tiles, found = scales["weight_scale"].view(torch.uint8), []
        # As bytes, NaN and everything with a sign bit lie at or above 0x7F.
        if (tiles >= NAN_E4M3).any():
            found.append(("bad scale", "weight_scale"))
        rows, blocks = weight[0], weight[1] * 2 // BLOCK_SIZE
        if tiles.shape != (rows, blocks):
            plain = unswizzle(tiles, *tiles.shape)
            if plain[rows:].any() or plain[:, blocks:].any():
                found.append(("padding", ""))
        return found

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """Give the parts with nibbles swapped, block scales not swizzled, and both.

        parts: codes uint8 [n, K16/2] and block scales float8_e4m3fn [n, K16/16]. Shapes stay the
        same.
        """
        codes, block_scale = parts
        swapped = swap_nibbles(codes)
        rows, blocks = block_scale.shape
        # `unpack` unswizzled them; where that was wrong, swizzling gives the stored order back.
        plain = swizzle(block_scale)[:rows, :blocks]
        orders = {
            "packed with the even column in the low nibble": [swapped, block_scale],
            "block scales not swizzled": [codes, plain],
            "even column in the low nibble, block scales not swizzled": [swapped, plain],
        }
        return {what: Misreading(order, self.decode) for what, order in orders.items()}


def try_other_global_scales(
    weight: torch.Tensor, best: Encoded, encode: Callable, encoder: Encoder
) -> Encoded:
    """Encode a weight at larger global scales, if block scales run out of E4M3's precision.

    best: the encoding at amax / 2688; encode: as `encode_rows` takes it. Returns the encoding with
    the least squared error in all. The scales tried keep the largest weight exact.
    """
    # Few tensors need it: trying all six makes encoding seven times as long.
    if has_many_subnormals(best.by_rows[0]):
        plain = best.scale
        for largest in OTHER_LARGEST_SCALES:
            other = encode_rows(weight, plain * (E4M3_MAX / largest), encode, encoder)
            best = min(best, other, key=lambda encoded: encoded.damage.error)
    return best


NVFP4 = Nvfp4()


# ── nvfp4/formats/plain_fp8.py: Read plain FP8: weights cast to 8-bit floats without any scale ────

# Scales with these words in their names are of a layer's input, or of nothing that is stored.
NO_WEIGHT_SCALE = re.compile(r"input|(^|_)act|pre_quant|scale_shift")


class PlainFp8(Scaled):
    """Describe weights of 8-bit floats that stand for themselves; ComfyUI casts them to 16 bits.

    A layer is taken for it where its weight is of the row's dtype, and no other format finds a
    scale beside it.
    """

    # ComfyUI loads such weights without a configuration, so that nothing is missing.
    unconfigured = ""
    activation_bits = 16
    runs_full_precision = "FP8 weights without a scale, cast to 16-bit"

    def __init__(self, dtype: str) -> None:
        """Enter the row of one safetensors dtype."""
        self.title = "plain " + dtype.replace("F8_", "FP8 ").removesuffix(" E4M3")
        self.weight_dtype = dtype
        super().__init__()


PLAIN_FP8 = {
    dtype: PlainFp8(dtype) for dtype in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
}


def unread_scales(names: Iterable[str]) -> dict[str, str]:
    """Find what may be a weight's scale by its name, but is one of no format: {tensor: scale}.

    names: of a file's tensors. Scales of a layer's input, and smoothing, say nothing of its weight.
    """
    found, known = {}, {*layer_parts(), *marker_names()}
    for name in names:
        layer, _, suffix = name.rpartition(".")
        if "scale" in suffix and suffix not in known and not NO_WEIGHT_SCALE.search(suffix):
            # The scale of `experts.down_proj` is `experts.down_proj_scale`, or `.down_proj.scale`.
            stem = f"{layer}.{suffix}".rpartition("scale")[0].rstrip("._")
            found |= {f"{layer}.weight": name, layer: name, stem: name}
    return found


# ── nvfp4/formats/w4a8.py: Store weights as W4A8 and W6A8: 4 or 6 bits that decode to INT8, times 8

# Dtypes that parts are read in; ComfyUI views and casts them so.
READ_DTYPES = {"weight": VIEWED, "weight_s_rel": ("F8_E4M3", "U8", "F32")}
# comfy_kitchen has no smaller groups of columns that share a scale.
LEAST_GROUP = 4
# Group scales above this tell of a codebook that is missing: integers reach from -8 to 7, so that
# scales of up to 127 / 7, about 18, fill INT8, while a codebook, whose largest level is about 1,
# has scales of up to 127. The limit lies between, as other programs may clip.
LARGEST_PLAIN_SCALE = 32


class W4a8(Format):
    """Store a weight [N, K], rotated in groups of 256 columns, as codes, scales and a codebook.

    Codes are I8 [N, K/2], two columns in a byte. A level of the codebook times the scale of its 16
    columns is rounded to an integer, which the scale of its row multiplies. ComfyUI multiplies the
    integers with INT8 activations, rotated like the weight, on every card from Ampere on.
    """

    name = title = "W4A8"
    option = kernel = "w4a8"
    since = "0.31"
    rank, bits = 5, 4
    has_codebook = True
    casts_scales = False
    config = "asym_w4a8_int8"
    weight_dtype = "I8"
    scale_suffix = "weight_s_rel"
    rotated = WRITTEN_GROUP
    column_multiple = WRITTEN_GROUP
    stand_in = "INT8"
    weight_bits, activation_bits = 4, 8
    takes_mark = False
    is_adopted = True
    runs_unscaled = "4-bit weights times 8-bit activations, whose scales are measured by rows"
    encoding_cost = 4
    grid = Grid(Codebook(codebook_of(4, torch.device("cpu"))), W4A8_GROUP, GROUP_STEPS)

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the tensors of a weight [N, K]: codes, two kinds of scales, and the codebook."""
        rows, columns = shape
        codebook = {"weight_codebook": ("F32", (16,))} if self.has_codebook else {}
        return {
            "weight": (self.weight_dtype, (rows, columns * self.bits // 8)),
            "weight_s_rel": ("F8_E4M3", (rows, columns // W4A8_GROUP)),
            "weight_s_channel": ("F32", (rows,)),
            **codebook,
        }

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """Make the configuration, which tells the sizes of both kinds of groups."""
        return {
            "format": self.config, "group_size": W4A8_GROUP, "convrot_groupsize": self.rotated
        }  # fmt: skip

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is of this format and width, by its group scales."""
        scales = parts.get(self.scale_suffix)
        if weight.dtype not in VIEWED or scales is None or len(scales.shape) != 2:
            return False
        means = self.is_meant_by({"format": self.config, **config})
        means = means and (self.bits == 6 or ("weight_codebook" in parts) == self.has_codebook)
        width = scales.shape[1] * W4A8_GROUP * self.bits
        return means and len(weight.shape) == 2 and weight.shape[1] * 8 == width

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell whether other groups than those that are written fit the tensors."""
        (group,) = configured_options(config, group_size=W4A8_GROUP)
        weight, scales = parts["weight"].shape, parts.get(self.scale_suffix)
        if (
            scales is None
            or len(scales.shape) != 2
            or type(group) is not int
            or group < LEAST_GROUP
        ):
            return False
        columns = scales.shape[1] * group
        width = [columns * bits for bits in (4, 6)]
        return weight[-1] * 8 in width and rotates(config, columns)

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of this format, with the groups that are read here."""
        groups = configured_options(config, group_size=W4A8_GROUP, convrot_groupsize=WRITTEN_GROUP)
        return super().is_meant_by(config) and groups == [W4A8_GROUP, self.rotated]

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K] from the stored shape: a row has K * bits / 8 bytes."""
        return stored[0], stored[1] * 8 // self.bits

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded, by dtypes and shapes: all its parts have to fit."""
        if 0 in shape or shape[1] % self.rotated:
            return f"its weight {list(shape)} has no whole groups of {self.rotated} columns"
        for suffix, (dtype, expected) in self.parts(shape).items():
            ref = parts.get(suffix)
            dtypes = READ_DTYPES.get(suffix, (dtype,))
            if ref is None or ref.dtype not in dtypes or ref.shape != expected:
                found = f"{ref.dtype} {list(ref.shape)}" if ref else "missing"
                return f"its {suffix} is {found}, and should be {dtype} {list(expected)}"
        return ""

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K], K a multiple of 256.

        Codes are int8 [n, K * bits / 8] in chunks; by rows come group scales float8_e4m3fn
        [N, K/16], row scales float32 [N] and, of 4 bits, the codebook for each row [N, 16]. Group
        scales and codebook are those of least squared error. With `--scale-search amax` and
        float32 all are those of comfy_kitchen's own quantiser, but for what the last bit of a
        rotation decides.
        """
        device, kernels = given.weight.device, encoder.kernels
        levels, quantise = codebook_of(self.bits, device), encode_w4a8
        is_searched = encoder.search is not amax_block_scales
        if is_searched:
            grid = self.chosen_grid(sample_rows(given.weight).to(encoder.dtype).float(), kernels)
            levels, quantise = grid.codebook(device), partial(encode_levels, grid=grid)

        def encode(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made = quantise(rotate(rows.float(), self.rotated), bits=self.bits)
            return made + self.codebooks(levels, len(rows))

        def compiled(rows: torch.Tensor, _: torch.Tensor) -> tuple:
            *made, damage = kernels.encode_levels(rows, grid)
            return *made, *self.codebooks(levels, len(rows)), damage

        has_kernel = kernels is not None and is_searched
        return encode_by_rows(given, encode, self.decode, encoder, compiled if has_kernel else None)

    def chosen_grid(self, rows: torch.Tensor, kernels: Kernels | None) -> LevelGrid:
        """Choose the codebook for a weight by some of its rows [n, K] float32."""
        if kernels is None:
            return choose_grid(rotate(rows, self.rotated), self.bits)
        # These rotate the rows themselves; error comes last of what they return.
        return choose_grid(
            rows, self.bits, lambda rows, grid: kernels.encode_levels(rows, grid)[-1].error
        )

    def codebooks(self, levels: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
        """Repeat a codebook [16] for each row, as all parts go by rows; 6 bits have none."""
        return (levels.expand(rows, -1),) if self.has_codebook else ()

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`; the rows of a layer share one codebook."""
        group_scale, row_scale, *codebooks = encoded.by_rows
        made = [[*encoded.codes], [group_scale], [row_scale], *([book[0]] for book in codebooks)]
        return dict(zip(self.parts(shape), made, strict=True))

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring stored tensors into rows, as `decode` takes them, the codebook for each row."""
        codes, group_scale, row_scale, *more = (tensors[name] for name in self.parts((1, 16)))
        books = self.codebooks(more[0].float(), len(codes)) if more else ()
        stored = codes.view(torch.int8), as_group_scales(group_scale)
        return [*stored, row_scale.float(), *books], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Decode to integers, multiply by the scale of each row, and rotate back: float32 [n, K].

        comfy_kitchen.dequantize_w4a8_int8_weight gives the same but for float32's rounding.
        """
        codes, group_scale, row_scale, *books, scale = parts_and_scale
        # Without a codebook, codes stand for the integers from -8 or -32 on; -32 is never stored.
        levels = torch.arange(2**self.bits, device=codes.device) - 2 ** (self.bits - 1)
        levels = books[0][0] if books else levels.float()
        integers = decode_w4a8(codes, group_scale, levels)
        return rotate(integers.mul_((row_scale * scale).unsqueeze(1)), self.rotated)

    def grid_of(self, *by_rows: torch.Tensor) -> Grid:
        """Return the grid with the codebook of the layer, or with the levels of 6 bits."""
        _, row_scale, *books = by_rows
        levels = books[0][0] if books else codebook_of(self.bits, row_scale.device)
        return replace(self.grid, steps=steps_for(levels)).with_codebook(levels)

    def row_units(self, *by_rows: torch.Tensor) -> torch.Tensor:
        """Return the scales of the rows, float32 [n, 1]."""
        return by_rows[1].unsqueeze(1)

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Pack rounded levels as codes, with the new group scales; the rest stays as it is."""
        _, row_scale, *books = by_rows
        codes = torch.searchsorted(
            self.grid_of(*by_rows).levels.levels, levels_in_order(rounded, feedback)
        )
        group_scale = steps_in_order(rounded, feedback).view(torch.float8_e4m3fn)
        # 6-bit codes begin at 1.
        packed = pack_w4a8(codes if books else codes + 1, self.bits)
        return [packed, group_scale, row_scale, *books]

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that comfy_kitchen takes group scales in float32 as well."""
        return (suffix, ref.dtype, ref.shape) == (self.scale_suffix, "F32", expected)

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find scales that are no numbers, and integers where there should be a codebook.

        The scale of a group may be 0, and of either sign: comfy_kitchen multiplies by it as it is.
        """
        groups = as_group_scales(scales[self.scale_suffix]).float()
        found = bad_scales({"weight_s_channel": scales["weight_s_channel"].float()})
        if not groups.isfinite().all():
            found.append(("bad scale", self.scale_suffix))
        levels = scales.get("weight_codebook")
        if levels is not None and not levels.isfinite().all():
            found.append(("bad scale", "weight_codebook"))
        largest = groups.abs().max()
        if self.bits == 4 and levels is None and largest > LARGEST_PLAIN_SCALE:
            found.append(("no codebook", f"group scales up to {largest:.0f}"))
        return found

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """Give the parts with nibbles swapped, and with the rotation undone.

        parts: codes int8 [n, K * bits / 8], of which the first K / 2 bytes are nibbles, and so on.
        """
        codes, *others = parts
        # At 6 bits, two thirds of a row are nibbles.
        lower = codes.shape[1] * 4 // self.bits
        swapped = torch.cat([swap_nibbles(codes[:, :lower]), codes[:, lower:]], dim=1)
        return {
            "packed with the even column in the high nibble": Misreading(
                [swapped, *others], self.decode
            ),
            "not rotated, though this format is": Misreading(
                parts, lambda *stored: rotate(self.decode(*stored), self.rotated)
            ),
        }

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] to INT8, each with a scale of its own."""
        return quantised_int8_rows(rows, self.rotated)


class W6a8(W4a8):
    """Store a weight as W4A8 does, in 6 bits: evenly spaced levels, and no codebook.

    Codes are I8 [N, 3K/4]: the lower four bits of all columns, then the upper two.
    """

    name = title = "W6A8"
    option = kernel = "w6a8"
    since = "0.33"
    since_kitchen = "0.2.40"
    rank, bits = 6, 6
    has_codebook = False
    weight_bits = 6
    runs_unscaled = "6-bit weights times 8-bit activations, whose scales are measured by rows"


class PlainW4a8(W4a8):
    """Describe codes of 4 bits without a codebook: the integers from -8 to 7; only read."""

    name = option = ""
    title = "W4A8 without codebook"
    has_codebook = False


def as_group_scales(stored: torch.Tensor) -> torch.Tensor:
    """View bytes as the E4M3 that they are; group scales of other dtypes come back as they are."""
    return stored.view(torch.float8_e4m3fn) if stored.dtype == torch.uint8 else stored


W4A8, W6A8, PLAIN_W4A8 = W4a8(), W6a8(), PlainW4a8()


# ── nvfp4/stored/defects.py: Every known defect of a file, and what ComfyUI does about it ─────────

class Outcome(IntEnum):
    """Rank what a defect does in ComfyUI: the worst of a file's decides its verdict."""

    # ComfyUI is not disturbed; other programs may be.
    LOADS = 0
    # Every step takes longer; the picture is no worse.
    SLOWER = 1
    # The picture is visibly poorer.
    WORSE = 2
    # Noise, or black.
    WRONG = 3
    # An error when the model is loaded or first run.
    FAILS = 4


@dataclass(frozen=True, slots=True)
class Defect:
    """Describe a way in which a file breaks ComfyUI's contract: a row of DEFECTS.

    outcome: what it does in ComfyUI.
    what: what is wrong, about several layers or tensors, whose names follow it in a report.
    consequence: how ComfyUI takes it.
    remedy: what to do about it.
    """

    outcome: Outcome
    what: str
    consequence: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Report one defect of a file.

    defect: its key in DEFECTS.
    name: the layer or tensor that has it, prefix included, or the file.
    detail: what is there instead of what should be, for the report; "" if the name says enough.
    """

    defect: str
    name: str
    detail: str = ""

    @property
    def outcome(self) -> Outcome:
        """Look up what this defect does in ComfyUI."""
        return DEFECTS[self.defect].outcome


# The outcomes were seen in ComfyUI 0.29 and 0.33 with files that were broken in this way;
# tests/whole/test_consumer.py breaks and loads them again.
DEFECTS = {
    # The safetensors library pads its header, and sorts tensors by the size of their items.
    "unaligned": Defect(
        Outcome.LOADS,
        "tensors start at no multiple of their item size",
        "ComfyUI copies them; programs that map the file may refuse it",
        "write the file again with a current safetensors library",
    ),
    "one form": Defect(
        Outcome.LOADS,
        "layers have only one of comfy_quant and the header's entry",
        "ComfyUI is content with either; other loaders read the one or the other",
        "write both, identical",
    ),
    # The header's entries are written over the tensors before loading (comfy/utils.py).
    "two forms": Defect(
        Outcome.LOADS,
        "layers have a comfy_quant that differs from the header's entry",
        "ComfyUI follows the header; other loaders follow the tensor",
        "write both, identical",
    ),
    "stray": Defect(
        Outcome.LOADS,
        "scales or configurations belong to no quantised weight",
        "ComfyUI warns of unexpected keys and ignores them",
        "leave them out, or quantise the weight",
    ),
    # ComfyUI calls .view() on block scales and .to() on codes (comfy/ops.py).
    "same bits": Defect(
        Outcome.LOADS,
        "tensors have another dtype of the same size",
        "ComfyUI reads the same bits; other loaders take them for numbers",
        "store them in the dtypes of their format: for NVFP4, U8 and F8_E4M3",
    ),
    "padding": Defect(
        Outcome.LOADS,
        "block scales are not zero in the padding of their tiles",
        "ComfyUI's own decoding never reads it; FP4 matmul does",
        "fill the padding with zeros",
    ),
    "not scalar": Defect(
        Outcome.LOADS,
        "scales are float64, or of one element but no scalars",
        "ComfyUI takes them all the same; other loaders may not",
        "store them as F32 with shape []",
    ),
    # Decoding broadcasts such scales; the formats of this package have a single one.
    "per row": Defect(
        Outcome.LOADS,
        "FP8 scales are one for every row",
        "ComfyUI decodes such weights rightly; FP8 matmul takes a single scale",
        "mark these layers for full-precision matmul, or quantise them with one scale",
    ),
    "unknown options": Defect(
        Outcome.LOADS,
        "configurations have options of their format that are not read here",
        "ComfyUI may know them; nothing is told of the values of these layers",
        "nothing",
    ),
    # The kernel flattens scales, decoding for a LoRA broadcasts them (comfy_kitchen, int8.py).
    "flat scales": Defect(
        Outcome.LOADS,
        "INT8 scales of rows are [N] and not [N, 1]",
        "ComfyUI multiplies rightly; where a LoRA is applied, it takes them for scales of columns",
        "store them with the shape [N, 1]",
    ),
    # Newer versions decode INT8 that is marked on every call (comfy/ops.py, Linear).
    "idle": Defect(
        Outcome.LOADS,
        "layers have a mark or an input scale that their format does not take",
        "ComfyUI measures these activations on every call; 0.33 passes over a mark, 0.38 heeds it",
        "leave it out",
    ),
    "slow shape": Defect(
        Outcome.SLOWER,
        f"W4A4 layers have columns % {FP4_MATMUL_K} != 0, or rows % {FP4_MATMUL_N} != 0 and a bias",
        "every call decodes the weight instead of multiplying in FP4",
        "keep these layers FP8 or 16-bit",
    ),
    "output layer": Defect(
        Outcome.WORSE,
        "layers whose rows ComfyUI recognises the model by are packed",
        "ComfyUI loads them, as these need no padding; 4 bits in the output layer show",
        "keep these layers 16-bit",
    ),
    # 448 is the largest number of E4M3, which the input is cast to.
    "clamped": Defect(
        Outcome.WORSE,
        "FP8 layers have neither an input scale nor full-precision matmul",
        "ComfyUI casts their input to FP8 unscaled and clamps it at 448",
        "add input scales, or mark them for full-precision matmul",
    ),
    # A converter that casts all float32 tensors to the model's dtype casts scales, too.
    "float16 scale": Defect(
        Outcome.WORSE,
        "scales are not float32",
        "ComfyUI takes the rounded or overflowed values",
        "store scales as F32, whatever the model's own dtype",
    ),
    "bad scale": Defect(
        Outcome.WRONG,
        "scales are NaN, infinite, zero or negative",
        "ComfyUI multiplies by them: black frames or noise",
        "quantise these layers again",
    ),
    "smoothed": Defect(
        Outcome.WRONG,
        "layers of a format other than NVFP4 have a pre_quant_scale",
        "ComfyUI reads none there, and multiplies a weight that was divided by it: noise",
        "convert the original again",
    ),
    "no codebook": Defect(
        Outcome.WRONG,
        "4-bit codes of W4A8 have no codebook, and scales that belong to one",
        "ComfyUI takes the codes for the integers from -8 to 7: noise",
        "convert the original again",
    ),
    "values": Defect(
        Outcome.WRONG,
        "tensors do not decode to what the source holds",
        "ComfyUI computes with other weights: noise",
        "convert again from this source",
    ),
    # Of another model, as a LoRA that was merged makes it, or coarser: see NEAR in `verify`.
    "near": Defect(
        Outcome.WORSE,
        "tensors are a little off from what the source holds",
        "ComfyUI computes with what is stored, which is close to the source: no noise",
        "was a LoRA merged? give --merge-lora; a file stored coarser, as plain FP8, is off as well",
    ),
    "other source": Defect(
        Outcome.WRONG,
        "the file given as --source is of another model",
        "nothing is known of the values of this file",
        "give the source that this file was made from",
    ),
    "missing": Defect(
        Outcome.WRONG,
        "tensors of the source are not in the file",
        "ComfyUI warns of missing keys and starts with weights of no meaning",
        "convert again from this source",
    ),
    # No defect of ours: rounding by statistics changes biases on purpose.
    "moved bias": Defect(
        Outcome.LOADS,
        "biases are not the source's, in a file that was rounded by --activation-stats",
        "their change makes up for the mean error of the weights; ComfyUI adds them as any",
        "nothing",
    ),
    "extra": Defect(
        Outcome.LOADS,
        "tensors of the file are not in the source",
        "nothing says whether they are right",
        "give the source that this file was made from",
    ),
    # FP8 that was merely cast needs no scale: see LARGE_WEIGHT in `stored.lint`.
    "unscaled": Defect(
        Outcome.WRONG,
        "FP8 weights have no scale that is known, and are or may be codes of one",
        "ComfyUI takes them as they are: noise",
        "quantise these layers again",
    ),
    "integers": Defect(
        Outcome.WRONG,
        "integer weights have neither comfy_quant nor an entry in the header",
        "ComfyUI takes the integers for the weights: noise, or a stop at their shape",
        "configure them, or give the 16-bit weights",
    ),
    # The cast is to the format's storage dtype: values are rounded, not reinterpreted.
    "weight dtype": Defect(
        Outcome.WRONG,
        "weights have another dtype than their format stores",
        "ComfyUI casts them to it: other weights",
        "quantise these layers again",
    ),
    # The form with scale_weight is read only without current metadata (comfy/utils.py).
    "unread scale": Defect(
        Outcome.WRONG,
        "FP8 weights have a scale that nothing makes ComfyUI read: no configuration, or "
        f"scale_weight without the {MARKER} tensor or beside _quantization_metadata",
        "ComfyUI takes them unscaled: noise",
        f"configure weight_scale layers; for scale_weight add {MARKER} and drop that metadata",
    ),
    "scaled parameter": Defect(
        Outcome.WRONG,
        "FP8 weights with a scale are no linear layers' in ComfyUI",
        "ComfyUI takes the FP8 codes and leaves out their scale: noise",
        "keep these layers 16-bit",
    ),
    "no linear layer": Defect(
        Outcome.FAILS,
        "packed weights are no linear layers' in ComfyUI, but embeddings or parameters",
        "ComfyUI stops at their shape",
        "keep these layers 16-bit",
    ),
    "unconfigured": Defect(
        Outcome.FAILS,
        "packed weights have neither comfy_quant nor an entry in the header",
        "ComfyUI takes the packed bytes for numbers and stops at their shape",
        "write both for every layer, if it is packed in ComfyUI's order: ModelOpt has another",
    ),
    # The names by which they are told are in `nvfp4.quantisers`.
    "other program": Defect(
        Outcome.FAILS,
        "layers are packed by another program, in tensors of its own",
        "ComfyUI's loader finds no weights there; that program's own nodes may load them",
        "take the 16- or 32-bit model, or load this file with that program",
    ),
    "empty": Defect(
        Outcome.FAILS,
        "files hold no tensors",
        "ComfyUI does not recognise a model in them",
        "get the file again",
    ),
    # The prefixes it looks for are in comfy/model_detection.py.
    "prefix": Defect(
        Outcome.FAILS,
        "names have a prefix or a wrapper's part that ComfyUI does not strip",
        "ComfyUI recognises no model in such names",
        "convert the original model again, which takes it off, or rename the tensors",
    ),
    # For NVFP4, ComfyUI raises "Missing NVFP4 scales for layer ..." (comfy/ops.py).
    "no scale": Defect(
        Outcome.FAILS,
        "quantised weights lack a scale",
        "ComfyUI stops while loading",
        "quantise these layers again",
    ),
    "groups": Defect(
        Outcome.FAILS,
        "columns are no whole groups of those that are rotated together, or none can be so large",
        "ComfyUI stops when the layer is loaded or first runs",
        "keep these layers not rotated, or 16-bit",
    ),
    # comfy_kitchen takes none at 6 bits (backends/eager/w4a8_int8.py, validate_w4a8_operands).
    "extra codebook": Defect(
        Outcome.FAILS,
        "layers have a codebook and codes of 6 bits",
        "ComfyUI stops when the layer first runs",
        "leave the codebook out",
    ),
    "no weight": Defect(
        Outcome.FAILS,
        "configurations are for layers that have no weight",
        "ComfyUI stops, or does not recognise the model",
        "name layers as the file does, with its prefix",
    ),
    "dtype": Defect(
        Outcome.FAILS,
        "scales have another dtype than their format says",
        "ComfyUI stops when the layer first runs",
        "quantise these layers again",
    ),
    "shape": Defect(
        Outcome.FAILS,
        "tensors have another shape than their format says",
        "ComfyUI stops when the layer is loaded or first runs (unless just flattened)",
        "quantise these layers again",
    ),
    "unknown format": Defect(
        Outcome.FAILS,
        "configurations cannot be read or name a format that ComfyUI does not know",
        "ComfyUI stops while loading",
        "name a format of ComfyUI's, such as nvfp4 or int8_tensorwise",
    ),
    "header": Defect(
        Outcome.FAILS,
        "_quantization_metadata is not JSON with an object of layers",
        "ComfyUI stops while loading",
        "write it right, or leave it out",
    ),
    # Which layers these are, `modules.shape_read` says.
    "recognised by": Defect(
        Outcome.FAILS,
        "packed or padded layers are among those whose shape ComfyUI recognises the model by",
        "ComfyUI may take it for another model, and stop",
        "keep these layers 16-bit",
    ),
    # What a ComfyUI itself answered: `asking` asks it, and these rows tell of that version alone.
    "asked unrecognised": Defect(
        Outcome.FAILS,
        "this ComfyUI recognises no diffusion model",
        "it stops: could not detect the model's type",
        "take the file repackaged for ComfyUI, or update ComfyUI",
    ),
    "asked unknown": Defect(
        Outcome.FAILS,
        "this ComfyUI recognises neither the source nor the output made of it",
        "it stops: could not detect the model's type",
        "take the model repackaged for ComfyUI, or update ComfyUI; for a custom node's model leave "
        "out --comfyui and COMFYUI_ROOT",
    ),
    "asked changed": Defect(
        Outcome.FAILS,
        "this ComfyUI recognises another model than in the source",
        "it builds a model of other sizes, and stops or gives noise",
        "keep the layers whose shape it reads 16-bit, with --exclude",
    ),
    "asked stops": Defect(
        Outcome.FAILS,
        "tensors do not go into this ComfyUI's model",
        "it stops while loading",
        "keep these layers 16-bit, with --exclude",
    ),
    "asked error": Defect(
        Outcome.FAILS,
        "loading ends with an error in this ComfyUI",
        "it stops while loading",
        "add the scale, configuration or tensor that the error names, or update ComfyUI",
    ),
    "asked shape": Defect(
        Outcome.FAILS,
        "weights are of another shape than this ComfyUI's layers",
        "it loads them, and stops at the first step",
        "keep the layers whose shape it reads 16-bit, with --exclude",
    ),
    "asked unpacked": Defect(
        Outcome.WRONG,
        "packed weights are of modules that take none in this ComfyUI",
        "it takes the codes for weights, without their scales: noise",
        "configure them where they are in Linear; keep all others 16-bit",
    ),
    "asked unread": Defect(
        Outcome.WRONG,
        "parts of quantised layers are not read by this ComfyUI",
        "it computes without them: noise",
        "update ComfyUI, or convert without the option that adds them",
    ),
    "asked missing": Defect(
        Outcome.WRONG,
        "tensors of this ComfyUI's model are not in the file",
        "it warns of missing keys and starts with weights of no meaning",
        "take a file that is whole",
    ),
    "asked partly": Defect(
        Outcome.LOADS,
        "parts of the file could not be asked about",
        "this ComfyUI cannot build them without their values",
        "nothing",
    ),
    "asked unexpected": Defect(
        Outcome.LOADS,
        "tensors are of no module of this ComfyUI's model",
        "it warns of unexpected keys and leaves them out",
        "nothing",
    ),
}


def grouped(found: Iterable[Finding]) -> dict[str, list[str]]:
    """Group findings by their defect: {defect: names, each with its detail in brackets}.

    Defects with the worst outcome come first, then by name; the names of one defect stay in the
    order in which they were found.
    """
    groups = defaultdict(list)
    for finding in sorted(found, key=lambda finding: (-finding.outcome, finding.defect)):
        detail = f" ({finding.detail})" if finding.detail else ""
        groups[finding.defect].append(finding.name + detail)
    return groups


# ── nvfp4/asking/answers.py: Hold what a ComfyUI answered, and tell what follows from it ──────────

# What reports say where there was no ComfyUI to ask.
NOT_ASKED = "ComfyUI was not asked (--comfyui)"
# Of these the source may have its own, and the output has them from there.
INHERITED = ("missing", "unexpected", "stops")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyUI:
    """Name a ComfyUI to ask.

    folder: with main.py and comfy/ in it. named_by: the option or the environment variable that
    gave the folder. python: the interpreter that runs it. version: "" where it tells none. absent:
    why there is none to ask, where the environment names no ComfyUI's folder.
    """

    folder: Path
    named_by: str
    python: Path
    version: str
    absent: str = ""

    @property
    def title(self) -> str:
        """Name it as in "ComfyUI 0.33.0"."""
        return f"ComfyUI {self.version}".strip()


class Trouble(NamedTuple):
    """Tell one thing that is wrong with a file in ComfyUI.

    kind: the end of a key of DEFECTS that begins with "asked". name: the tensor, "" for the file.
    """

    kind: str
    name: str
    detail: str

    @property
    def is_shape(self) -> bool:
        """Tell whether a tensor has another shape than its module."""
        return bool(self.name) and self.kind in ("stops", "shape")

    @property
    def finding(self) -> Finding:
        """Make a finding of it; an error that tells no tensor's shape is one of its own kind."""
        kind = "error" if self.kind == "stops" and not self.name else self.kind
        return Finding(defect=f"asked {kind}", name=self.name or "the file", detail=self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Tell how ComfyUI took one file.

    recognised: the class of its configuration, or which text encoder it is; "" for anything else.
    configuration: its fields, as text. tensors: how many the file has. left: how many of them no
    module was given, such as those of a VAE, which is not loaded. troubles: all that is wrong.
    unsure: why ComfyUI could not say, "" where it could.
    """

    recognised: str
    configuration: dict[str, str]
    tensors: int
    left: int
    troubles: tuple[Trouble, ...]
    unsure: str

    @property
    def stopped(self) -> str:
        """Tell the error that ended loading, "" without one."""
        return next((trouble.detail for trouble in self.troubles if not trouble.name), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold the answer of a ComfyUI about a file, and about its source where that was asked, too.

    silence: why there is no answer, "" if there is one; `file` is None then.
    """

    comfyui: ComfyUI
    file: Taken | None = None
    source: Taken | None = None
    silence: str = ""

    @property
    def is_known(self) -> bool:
        """Tell whether ComfyUI could judge the file: it needs the values of nothing else."""
        return self.file is not None and not self.file.unsure

    @property
    def changed(self) -> str:
        """Tell what is read of the file's configuration otherwise than of the source's, or ""."""
        before, after = self.source, self.file
        if not (self.is_known and before and before.configuration and after.configuration):
            return ""
        old, new = (
            {"": one.recognised or "no class"} | one.configuration for one in (before, after)
        )
        different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(f"{key} {old.get(key)} -> {new.get(key)}".strip() for key in different)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """List the file's defects in this ComfyUI, apart from those that the source has, too."""
        if not self.is_known:
            return ()
        if not self.file.recognised:
            # Nothing was loaded then. Without a configuration, the error tells why.
            stopped = "" if self.file.configuration else self.file.stopped
            known = not self.source or self.source.recognised or self.source.unsure
            kind = "unrecognised" if known else "unknown"
            return (Trouble(kind, "", self.changed or stopped).finding,)
        inherited = self.inherited
        found = [trouble.finding for trouble in self.file.troubles if trouble not in inherited]
        return (*found, *([Trouble("changed", "", self.changed).finding] if self.changed else []))

    def findings_beside(self, linted: Iterable[Finding]) -> list[Finding]:
        """List the findings apart from those whose layer lint has found as bad a defect of.

        An error of the whole file is of the layers that it names.
        """
        worst: dict[str, Outcome] = {}
        for one in linted:
            worst[one.name] = max(one.outcome, worst.get(one.name, one.outcome))

        def is_told(asked: Finding) -> bool:
            own = {asked.name, asked.name.rpartition(".")[0]}
            if asked.defect == "asked error":
                own |= {name for name in worst if f"{asked.detail} ".endswith(f" {bare(name)} ")}
            return any(worst.get(name, Outcome.LOADS) >= asked.outcome for name in own)

        return [asked for asked in self.findings if not is_told(asked)]

    @property
    def inherited(self) -> list[Trouble]:
        """List the troubles that the file has from its source.

        A tensor of a wrong shape is refused in a 16-bit model, and taken in a quantised one.
        """
        source = self.source.troubles if self.source else ()
        unfit = {trouble.name for trouble in source if trouble.is_shape}
        return [
            one for one in self.file.troubles
            if (one in source and one.kind in INHERITED) or (one.is_shape and one.name in unfit)
        ]  # fmt: skip

    @property
    def problems(self) -> list[str]:
        """Say in a line for each kind why this ComfyUI would not run the file as it should."""
        return [
            f"{self.comfyui.title}: {DEFECTS[key].what}: {examples(names)}; "
            f"{DEFECTS[key].consequence}; to do: {DEFECTS[key].remedy}"
            for key, names in grouped(self.findings).items()
            if DEFECTS[key].outcome > Outcome.LOADS
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """List what is wrong in the source as well, for a report."""
        shared = self.inherited if self.is_known and self.file.recognised else []
        return tuple(
            Note(
                f"{self.comfyui.title}, of the source, too: {DEFECTS[key].what}: {examples(names)}",
                Rank.WARNING if DEFECTS[key].outcome > Outcome.LOADS else Rank.INFORMATION,
            )
            for key, names in grouped(trouble.finding for trouble in shared).items()
        )

    @property
    def sentence(self) -> str:
        """Say in one line what ComfyUI made of the file."""
        title = self.comfyui.title
        title += f" ({self.comfyui.named_by})" if self.comfyui.named_by.isupper() else ""
        if self.silence:
            return f"{title} was not asked: {self.silence}"
        if not self.is_known:
            return f"{title} cannot tell about this file: {self.file.unsure}"
        if self.problems:
            return f"{title} does not take this file as it should"
        if any(trouble.finding.outcome > Outcome.LOADS for trouble in self.inherited):
            return f"{title} takes neither the source nor this file as it should"
        if not self.file.configuration:
            # It is for another node, whose question nobody asks here.
            return f"{title} recognises {self.file.recognised}, and was not asked more of it"
        same = " as in the source" if self.source else ""
        count, left = self.file.tensors, self.file.left
        takes = f"{count - left:,} of {count:,}" if left else f"all {count:,}"
        return f"{title} recognises {self.file.recognised}{same}, and takes {takes} tensors"

    @property
    def data(self) -> dict[str, object]:
        """Make it ready for JSON, without folders."""
        taken = self.file
        return {
            "version": self.comfyui.version or None,
            "named_by": self.comfyui.named_by,
            "answer": self.sentence,
            "recognised": taken.recognised or None if taken else None,
            "configuration": taken.configuration if taken else {},
            "changed": self.changed or None,
            "tensors": taken.tensors if taken else None,
            "left": taken.left if taken else None,
            "problems": self.problems,
        }


# ── nvfp4/names.py: Tell what the names of layers say: their kind, their order, whether a list can 

def kind_of(name: str) -> str:
    """Name the kind of a layer: its name without prefix, and `*` for its block's number.

    "model.diffusion_model.blocks.3.ffn.0" -> "blocks.*.ffn.0". Only the first number that another
    part of the name follows is a block's; names without such a number are returned as they are.
    """
    return re.sub(r"(?<=\.)\d+(?=\.[^.])", "*", bare(name), count=1)


def natural_key(name: str) -> list[int | str]:
    """Make a key to sort names by that puts blocks.2 before blocks.10.

    Text and numbers take turns in it, text first, so that any two keys can be compared.
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def is_layer_name(word: object) -> bool:
    """Tell whether a list of layers could hold it: printable text without spaces and #.

    In such a list a # begins a comment, so a name with one would come back cut short.
    """
    return isinstance(word, str) and word.isprintable() and bool(re.fullmatch(r"[^\s#]+", word))


def block_of(name: str) -> str:
    """Name the block that a layer is in, "blocks.3" for "blocks.3.ffn.0"; "" without any.

    As for `kind_of`, only the first number that another part of the name follows is a block's.
    """
    found = re.search(r"(?<=\.)\d+(?=\.[^.])", bare(name))
    return bare(name)[: found.end()] if found else ""


def gaps(numbers: Collection[int]) -> list[int]:
    """List the numbers from 0 to the highest that are not among these, as many as these at most.

    Of a hostile number such as a billion no more gaps are told than there are numbers.
    """
    lacking = (number for number in itertools.count() if number not in numbers)
    highest = max(numbers, default=0)
    return [number for number in itertools.islice(lacking, len(numbers)) if number < highest]


# ── nvfp4/coverage.py: Compare what a guide covers with what the source has, and refuse one that le

# The share of the linear weights' bytes that may lack a counterpart in a guide of the same model:
# files of one model differ in a few layers, as a GGUF leaves out what its author did not know.
MOST_UNCOVERED = 0.1


class Cover(NamedTuple):
    """Name the files of a guide, and the layers that they tell of: bare names."""

    files: tuple[Path, ...]
    layers: frozenset[str]

    @property
    def title(self) -> str:
        """Name the files without their folders, for notes."""
        return " and ".join(path.name for path in self.files)


def linear_bytes(model: Model) -> dict[str, int]:
    """Return {bare layer: bytes} of the diffusion model's linear weights, in source order."""
    prefix = diffusion_prefix(model.tensors)
    return {
        bare(ref.layer): ref.nbytes for ref in model.linear_weights if ref.name.startswith(prefix)
    }


def blocks_of(layers: Iterable[str]) -> set[str]:
    """Name the blocks that layers are in, as "blocks.3"; layers outside of blocks have none."""
    return {*map(block_of, layers)} - {""}


def check_blocks(cover: Cover, model: Model, partial: bool) -> list[str]:
    """Look for whole blocks that a guide has and the source lacks: an error, or `partial` a note.

    Raises ConvertError, which names layers of both sides.
    """
    foreign = blocks_of(cover.layers) - blocks_of(bare(name) for name in model.tensors)
    if foreign and not partial:
        what = f"whole blocks of it are not in the source: {examples(foreign)}"
        raise partial_error(cover, what, linear_bytes(model))
    what = f"{cover.title} has whole blocks that the source lacks: {examples(foreign)}"
    return [Note(f"--partial-guide: {what}", Rank.INFORMATION)] if foreign else []


def check_cover(cover: Cover, wanted: dict[str, int], partial: bool) -> list[str]:
    """Compare a guide with the layers that should follow it: gaps are an error, or a note.

    wanted: {bare layer: bytes} of the source. Without `partial`, raises ConvertError where whole
    blocks have no counterpart in the guide, or more than MOST_UNCOVERED of the bytes have none.
    With it, a note tells the share that has.
    """
    lacking = {layer: size for layer, size in wanted.items() if layer not in cover.layers}
    total, missed = sum(wanted.values()), sum(lacking.values())
    if partial and missed:
        share = percentage(total - missed, total)
        what = f"{share} of the linear weights' bytes follow {cover.title}"
        return [Note(f"--partial-guide: {what}", Rank.INFORMATION)]
    if blocks := blocks_of(lacking) - blocks_of(wanted.keys() & cover.layers):
        raise partial_error(cover, f"it has nothing for whole blocks: {examples(blocks)}", lacking)
    if missed > MOST_UNCOVERED * total:
        share = percentage(missed, total)
        what = f"{share} of the linear weights' bytes have no counterpart in it"
        raise partial_error(cover, what, lacking)
    return []


def partial_error(cover: Cover, what: str, source: Iterable[str]) -> ConvertError:
    """Make the error for a guide that covers a part, with examples of both sides."""
    files = " and ".join(map(str, cover.files))
    return ConvertError(
        f"{files}: is of another model, or only a part: {what}; it has "
        f"{examples(cover.layers)}; the source has {examples(source)}; take the file of this "
        "model, or go on with --partial-guide"
    )


# ── nvfp4/reasons.py: Reasons for decisions: a kind for code, a text for people ───────────────────

class Why(Enum):
    """Name what decided about a tensor's precision, or about a layer's full-precision matmul."""

    # No rule names the tensor.
    NOTHING = auto()
    # What it is in the source: quantised already, not a linear layer's weight, a bias or a norm.
    SOURCE = auto()
    # It is not of the diffusion model: a text encoder's, a VAE's.
    BESIDE = auto()
    # An option that names layers or kinds of layers, or a recipe.
    OPTION = auto()
    # The files of --layer-config and --full-precision-mm-layers.
    LAYER_CONFIG = auto()
    LAYER_LIST = auto()
    # What was measured for --target-size or --target-ratio, and for --w4a4-share.
    TARGET_SIZE = auto()
    W4A4_SHARE = auto()
    # One of the first or last transformer blocks.
    EDGE_BLOCK = auto()
    # The tensor's type in the GGUF, or that it is not in there.
    GGUF = auto()
    # The rows of the preset.
    FAMILY = auto()
    # A figure of a sensitivity file or of a calibration summary.
    MEASURED = auto()
    # It may be no linear layer's weight, by its name or its shape.
    DOUBTFUL = auto()
    # ComfyUI tells what model it is by this tensor's shape.
    RECOGNITION = auto()
    # No card multiplies this shape in FP4, or the format does not store it.
    SHAPE = auto()
    # The format needs an input scale, and the layer has none.
    NO_INPUT_SCALE = auto()
    # Scaled FP8 has one switch for full-precision matmul, which holds for all its layers.
    SHARED_SWITCH = auto()
    # A value that float16 cannot hold.
    FLOAT16 = auto()


@dataclass(frozen=True, slots=True)
class Reason:
    """Give one decision's kind and text, and the decision that it overruled, if there was one.

    `str()` tells both, such as "--exclude ^head (else GGUF Q4_K <= 4 bits)".
    """

    kind: Why
    text: str
    overruled: Reason | None = None

    def __str__(self) -> str:
        return f"{self.text} (else {self.overruled})" if self.overruled else self.text

    def over(self, other: Reason) -> Reason:
        """Return this reason as one that overrules `other`; neither of the two is changed."""
        return dataclasses.replace(self, overruled=other)

    @property
    def overruled_kinds(self) -> Iterator[Why]:
        """Yield the kinds of all decisions that it overruled, the latest first, without its own."""
        reason = self.overruled
        while reason is not None:
            yield reason.kind
            reason = reason.overruled


# ── nvfp4/guides/records.py: Hold what guides say, as records: planning takes these and opens no fi

# Bits a weight costs in each GGML type, block scales left aside: the number in the type's name.
GGUF_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I8": 8, "I16": 16, "I32": 32, "I64": 64,
    "Q1_0": 1, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q8_1": 8,
    "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "Q8_K": 8,
    "IQ1_S": 1, "IQ1_M": 1, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 2, "IQ3_XXS": 3, "IQ3_S": 3,
    "IQ4_NL": 4, "IQ4_XS": 4, "TQ1_0": 1, "TQ2_0": 2, "MXFP4": 4, "NVFP4": 4,
}  # fmt: skip
# The recorder's histogram of block maxima: bin 0 is below 2**-24, bin i begins at
# 2**(-24 + (i - 1) / 8), the last one at 2**16.
BIN_EDGES = 2.0 ** np.concatenate([[-np.inf], np.arange(-24 * 8, 16 * 8 + 1) / 8])
# A mean is dominant if it has this share of the energy of all rows, which then differ little from
# step to step and token to token. Smaller ones are not those of the rows that count: biases that
# made up for all mean errors of the small Wan gave it 3 % (W4A8) to 9 % (INT8) more error.
DOMINANT = 0.5
# With headroom, up to 1 % of the recorded blocks may fall into E4M3's subnormals.
SMALL_BLOCKS = 0.01


class Setting(NamedTuple):
    """Hold what --layer-config says of the tensors that one of its keys names.

    `dtype` is a safetensors dtype, "" for a quantised format; `names` are tensors of the source.
    """

    key: str
    precision: Format
    dtype: str
    full_precision: bool
    input_scale: float | None
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Hold the input scales of one layer, by what its weight becomes, and their source.

    An input scale is a positive number: the largest activation over the format's largest value.
    `source` is the text that reports show.
    """

    scales: dict[Format, float]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Hold what a recording tells of one layer's input: figures, and where its statistics are.

    `error` and `energy` are sums over sampled rows, so that those of several recordings add up.
    """

    amax: float  # over all calls
    channels: int
    block_histogram: np.ndarray  # int64, one bin more than BIN_EDGES has steps
    error: float  # of quantising it to NVFP4, scaled anew on every call, squared and summed
    energy: float
    moments: Moments | None = None
    sums: Sums | None = None
    is_modelled: bool = False  # by calib/model_inputs.py, not recorded from prompts

    def __add__(self, other: Recorded) -> Recorded:
        """Add what another recording tells of the same layer."""
        moments = [*self.moments.recordings] if self.moments else []
        moments += other.moments.recordings if other.moments else ()
        sums = [recorded.sums for recorded in (self, other) if recorded.sums]
        return Recorded(
            amax=max(self.amax, other.amax),
            channels=self.channels,
            block_histogram=self.block_histogram + other.block_histogram,
            error=self.error + other.error,
            energy=self.energy + other.energy,
            moments=Moments(recordings=tuple(moments)) if moments else None,
            sums=Sums(*map(sum, zip(*sums, strict=True))) if sums else None,
            is_modelled=self.is_modelled or other.is_modelled,
        )

    @property
    def rel_rmse(self) -> float:
        """Return the relative RMSE of the input in NVFP4 with a dynamic scale.

        It is the root of `error` over `energy`; 0 for an input of zeros.
        """
        return math.sqrt(self.error / self.energy) if self.energy else 0.0

    @property
    def small_block(self) -> float:
        """Return the magnitude that all but SMALL_BLOCKS of the blocks exceed, zeros left out."""
        counts = self.block_histogram[1:].cumsum()
        # Bin 0 is left out: it has the blocks of zeros, which no scale can spoil.
        index = int(np.searchsorted(counts, SMALL_BLOCKS * counts[-1], side="right"))
        return float(BIN_EDGES[1:][index]) if counts[-1] else self.amax

    def headroom(self, margin: float) -> float:
        """Return the largest magnitude to scale for: `margin` times what was seen, or less.

        Less where that would bring more than SMALL_BLOCKS of the blocks into E4M3's subnormals, in
        which block scales lose precision; never less than what was seen.
        """
        ceiling = self.small_block * E4M3_MAX / LEAST_NORMAL_E4M3
        return max(self.amax, min(self.amax * margin, ceiling))

    def saturated(self, scale: float) -> float:
        """Return the share of recorded blocks that clip at an input scale.

        These are blocks whose block scale would exceed E4M3's 448. Bins that the limit cuts count
        in part, as if magnitudes were spread evenly in them.
        """
        limit, counts = scale * NVFP4_MAX, self.block_histogram
        if limit >= self.amax or not counts.sum():
            return 0.0
        widths = np.append(np.diff(BIN_EDGES), BIN_EDGES[-1])
        above = np.clip((BIN_EDGES + widths - limit) / widths, 0.0, 1.0)
        return float((counts * above).sum() / counts.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Tell where the statistics of a layer's input lie: MOMENT_PARTS of each recording."""

    recordings: tuple[tuple[TensorRef, ...], ...]


class Sums(NamedTuple):
    """Hold sums over the sampled rows of a layer's input, which give its mean.

    tokens: how many rows; total: [K] float64, their sum; squares: the sum of all squares.
    """

    tokens: int
    total: np.ndarray
    squares: float

    @property
    def mean(self) -> np.ndarray | None:
        """Return the mean [K], float32, if it is DOMINANT in the input; else None."""
        mean = self.total / self.tokens
        is_dominant = float(mean @ mean) * self.tokens >= DOMINANT * self.squares > 0
        return mean.astype(np.float32) if is_dominant else None


class LayerList(NamedTuple):
    """Hold what --full-precision-mm-layers names: weights, and names that match nothing."""

    weights: frozenset[str]
    unknown: frozenset[str]


class Measured(NamedTuple):
    """Hold weights for which a measured figure asks more than NVFP4 in W4A4.

    `is_half` tells whether it asks for 16 bits, or only for a full-precision matmul.
    """

    is_half: bool
    reason: Reason
    weights: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guides:
    """Hold all that steers a plan besides its options, matched to the source and read once.

    That is what files say, and the row of FAMILIES that the source goes by. Nothing in it is read
    again, however many plans are made; the second moments' data alone stay in their files.
    """

    family: Family
    kinds: dict[str, str] | None = None  # {tensor: GGML type}; None without a GGUF
    settings: tuple[Setting, ...] = ()
    calibration: dict[str, Calibration] = field(default_factory=dict)  # by layer
    recording: dict[str, Recorded] = field(default_factory=dict)  # by bare layer
    listed: LayerList | None = None
    measured: tuple[Measured, ...] = ()
    covers: tuple[Cover, ...] = ()  # what has to tell of all layers in NVFP4 of the kinds it knows
    notes: tuple[str, ...] = ()

    @property
    def configured(self) -> dict[str, Calibration]:
        """Return {layer: Calibration} of the input scales in a --layer-config."""
        return {
            name.removesuffix(".weight"): Calibration(
                scales={setting.precision: setting.input_scale}, source="--layer-config"
            )
            for setting in self.settings
            for name in setting.names
            if setting.input_scale is not None
        }

    @property
    def scales(self) -> dict[str, Calibration]:
        """Return {layer: Calibration} of all layers; those of a --layer-config go before others."""
        return self.calibration | self.configured


# ── nvfp4/plan/records.py: Define the records of planning: rules, and each tensor's plan ──────────

# The reason of tensors that stay float32: float16 would turn such values to infinity.
BEYOND_FLOAT16 = Reason(Why.FLOAT16, "a value beyond float16's 65504")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Give these tensors this precision, or as a floor at least this one, for this reason.

    `is_open` tells that --target-size may choose otherwise; `dtype`, where it is not "", goes
    before --dtype or the source's. A floor with `instead_of` takes the place of these formats, and
    of no other, however many bits they have.
    """

    names: frozenset[str]
    precision: Format
    reason: Reason
    is_open: bool = False
    dtype: str = ""  # a safetensors dtype; a --layer-config may set it
    instead_of: frozenset[Format] = frozenset()

    def replaces(self, precision: Format) -> bool:
        """Tell whether it takes the place of a precision, as a floor."""
        if self.instead_of:
            return precision in self.instead_of
        return precision < self.precision


# What applies where no rule names a tensor.
UNNAMED = Rule(names=frozenset(), precision=HALF, reason=Reason(Why.NOTHING, "no rule names it"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """Describe one tensor's fate and the reason, decided before any byte is written.

    Plans are never changed: phases that know more make new ones with `dataclasses.replace`. The
    fields from `full_precision` on are of quantised layers only.
    """

    ref: TensorRef
    precision: Format
    reason: Reason
    dtype: str  # safetensors dtype of the tensor itself in the output
    is_open: bool = False  # --target-size may choose otherwise
    full_precision: Reason | None = None  # why its matmul stays 16-bit; else activations are, too
    input_scale: float | None = None
    input_scale_source: str = ""
    saturated_blocks: float | None = None  # share of the recorded input that clips at that scale
    moments: Moments | None = None  # statistics of its input, which rounding goes by
    mean: np.ndarray | None = None  # of its input [K], where that alone is known: its bias moves
    smoothing: torch.Tensor | None = None  # [K] BF16: multiplies the input and divides the weight
    bias: TensorPlan | None = None  # the layer's bias, which makes up for the mean error

    @property
    def is_quantised(self) -> bool:
        """Tell whether this conversion quantises it; a layer packed in the source is not."""
        return self.precision.is_quantised

    @property
    def is_layer(self) -> bool:
        """Tell whether it is a linear layer's weight, packed in the source or not.

        Layers beside the diffusion model do not count.
        """
        is_own = self.reason.kind is not Why.BESIDE
        return is_own and (self.ref.is_linear_weight or bool(self.ref.config))

    @property
    def is_looked_up(self) -> bool:
        """Tell whether it becomes a quantised embedding, which nothing is multiplied by."""
        return self.is_quantised and self.ref.is_embedding

    @property
    def is_multiplied(self) -> bool:
        """Tell whether it counts among the linear weights: a layer's, or a bank of experts."""
        return self.is_layer or self.ref.is_expert_bank

    @property
    def weights(self) -> int:
        """Count the weights that the tensor stands for; a byte of a packed 4-bit layer has two."""
        if not self.ref.kept_as:
            return math.prod(self.ref.shape)
        # A bank of experts has one dimension more than their weights.
        *experts, rows, columns = self.ref.shape
        return math.prod(experts) * math.prod(self.format.logical_shape((rows, columns), None))

    @property
    def format(self) -> Format:
        """Return the format of the layer in the output, quantised now or already in the source.

        One that lies beside the diffusion model may have a format that no row describes.
        """
        return format_titled(self.ref.kept_as) if self.ref.kept_as else self.precision

    @property
    def has_nvfp4_input(self) -> bool:
        """Tell whether Blackwell can multiply the layer in 4 bits."""
        return self.format.has_nvfp4_input

    @property
    def is_w4a4(self) -> bool:
        """Tell whether ComfyUI also quantises the layer's activations to 4 bits."""
        return self.has_nvfp4_input and "full_precision_matrix_mult" not in self.config

    @property
    def quantises_input(self) -> bool:
        """Tell whether ComfyUI multiplies the layer with quantised activations where it can."""
        return self.is_quantised and "full_precision_matrix_mult" not in self.config

    @property
    def kept_scale(self) -> float | None:
        """Return the source's scale, with which its codes come back as they were; None without one.

        A LoRA that is merged changes the largest weight, and codes of another dtype have another
        scale.
        """
        same = self.ref.coding and not self.ref.patches and self.precision.stores(self.ref)
        return self.ref.coding.scale if same and self.precision.has_one_scale else None

    @property
    def keeps_codes(self) -> bool:
        """Tell whether the source's codes come back as they were, in the same format."""
        coding, form = self.ref.coding, self.precision
        if not coding or self.ref.patches or self.smoothing is not None:
            return False
        same = form.title == coding.title and not form.has_one_scale
        return same or self.kept_scale is not None

    @property
    def may_overflow(self) -> bool:
        """Tell whether it is to be float16 and may hold values that float16 cannot.

        A source that is float16 already and that no LoRA changes cannot.
        """
        is_made = self.ref.dtype != "F16" or bool(self.ref.patches)
        return self.dtype == "F16" and is_made and not self.is_quantised

    @property
    def config(self) -> dict[str, str | bool]:
        """Return what ComfyUI reads of this layer, in `comfy_quant` and in the header alike.

        Layers packed in the source keep their own configuration; {} for what is not quantised.
        """
        if self.ref.config or not self.is_quantised:
            return json.loads(self.ref.config or "{}")
        return self.precision.configuration(full_precision=bool(self.full_precision))

    @property
    def config_bytes(self) -> bytes:
        """Return that configuration as the bytes of the `comfy_quant` tensor, JSON in UTF-8."""
        return (self.ref.config or json.dumps(self.config)).encode()


class Plan(NamedTuple):
    """Hold every tensor's plan in source order, and notes on them."""

    plans: list[TensorPlan]
    notes: tuple[str, ...]


def plan_tensor(ref: TensorRef, rule: Rule, half: str) -> TensorPlan:
    """Make the plan of a tensor from its rule alone.

    `half` is the safetensors dtype of --dtype, which unquantised tensors get where neither the rule
    nor the precision says otherwise.
    """
    return TensorPlan(
        ref=ref,
        precision=rule.precision,
        reason=rule.reason,
        dtype=rule.dtype or rule.precision.dtype_of(ref.dtype, half),
        is_open=rule.is_open,
    )


def weights_of(plans: Iterable[TensorPlan]) -> int:
    """Count the weights of several plans."""
    return sum(plan.weights for plan in plans)


def widen(plans: Iterable[TensorPlan], names: frozenset[str]) -> list[TensorPlan]:
    """Plan those of the named tensors as float32 that were to be float16.

    `names` are tensors that hold a value beyond 65504. Biases that go along with a layer are
    widened, too. Plans of other tensors come back as they are.
    """

    def widened(plan: TensorPlan) -> TensorPlan:
        if plan.bias:
            (bias,) = widen([plan.bias], names)
            plan = dataclasses.replace(plan, bias=bias)
        if plan.ref.name not in names or not plan.may_overflow:
            return plan
        reason = BEYOND_FLOAT16.over(plan.reason)
        return dataclasses.replace(plan, precision=FP32, dtype="F32", reason=reason)

    return [*map(widened, plans)]


# ── nvfp4/read/beginnings.py: Recognise by its first bytes what a file is, and in which encoding it

# So many bytes at a file's begin tell what it is; a Git LFS pointer has about 130 in all.
TELLING_BYTES = 512
# What Python calls UTF-8 that may begin with a byte order mark, as Notepad writes it.
UTF8_MARKED = "utf-8-sig"
# The byte order marks that text may begin with, and its encoding then. The mark of UTF-32 begins
# with one of UTF-16, and so comes first.
ENCODINGS = {
    codecs.BOM_UTF8: UTF8_MARKED,
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What a file is that version control left in the place of a large one.
POINTER = "pointer, which only stands for the file; download the file itself"
# How files begin that are downloaded in place of others, and what to call them.
FOREIGN_STARTS = {
    rb"version https?://[^\s]+/spec/|version http://git-media": f"a Git LFS {POINTER}",
    rb"# xet version ": f"a Git Xet {POINTER}",
    rb"[./\w]*/annex/objects/": f"a git-annex {POINTER}",
    rb"\0\x05\x16\x07": "what macOS keeps beside a file, named ._ and so on; give the file itself",
    rb"<": "a web page; download the file again",
    rb"(Entry not found|Repository not found|Invalid (username|credentials)|Access to model )": (
        "a download site's error message; download the file again, logged in if need be"
    ),
    rb'\{"error": ?"': "a download site's error message; download the file again",
}
# How models begin that are given where a text is expected. A safetensors file has eight bytes of a
# length, of which the upper ones are zero, and then JSON.
MODEL_STARTS = {rb"(?s).{3}\0{5}\{": "a safetensors file", rb"GGUF": "a GGUF"}


def refuse_models(path: Path, start: bytes) -> None:
    """Raise ConvertError for a model that is given where a text belongs; `start` is its begin."""
    for begin, what in MODEL_STARTS.items():
        if re.match(begin, start):
            raise ConvertError(f"{path}: is {what}, and no text; give another file here")


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise ConvertError, saying what it is, where a file is a pointer or page in another's place.

    start: its first TELLING_BYTES, or all of it. Blanks and a byte order mark before are passed
    over; what PowerShell 5.1 downloads into a file is in UTF-16.
    """
    start = start[:TELLING_BYTES]
    encoding = marked_encoding(start)
    if encoding not in ("", UTF8_MARKED):
        start = start.decode(encoding, "ignore").encode("utf-8", "ignore")
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for begin, what in FOREIGN_STARTS.items():
        if re.match(begin, start, re.IGNORECASE):
            raise ConvertError(f"{path}: is {what}")


def marked_encoding(start: bytes) -> str:
    """Name the encoding that a text's byte order mark tells, in which Python skips it; or ""."""
    marked = (encoding for mark, encoding in ENCODINGS.items() if start.startswith(mark))
    return next(marked, "")


def encoding_of(start: bytes) -> str:
    """Name the encoding of a text by how it begins: by its byte order mark, or else UTF-8.

    Raises ValueError, whose text ends a sentence, for UTF-16 without a mark: every other byte is
    zero then, as far as the text is ASCII. It is not read, as its order could only be guessed.
    """
    sample = start[:TELLING_BYTES]
    for high, low in ((sample[::2], sample[1::2]), (sample[1::2], sample[::2])):
        if not marked_encoding(start) and high and 2 * high.count(0) > len(high) and 0 not in low:
            raise ValueError("it is UTF-16 without a byte order mark; save it as UTF-8")
    return marked_encoding(start) or "utf-8"


def decode_text(raw: bytes) -> str:
    """Decode a whole text by its byte order mark, which is left out, or as UTF-8.

    Raises ValueError for a text that is in no such encoding.
    """
    return raw.decode(encoding_of(raw))


# ── nvfp4/read/json_files.py: Read JSON files within limits that hostile ones cannot exceed ───────

# The safetensors library's own limit for a header. Files of JSON and lists may not be larger.
MAX_HEADER_BYTES = 100_000_000
# Two million values take some 150 MB as empty lists. Python itself refuses to read integers of more
# than 4,300 digits, with a message of its own.
MAX_JSON_VALUES, MAX_JSON_DEPTH, MAX_DIGITS = 2_000_000, 64, 4_300
# What to do with a file that is given in place of JSON, by its suffix: the end of a message.
JSON_HINTS = {
    ".log": "; analyze_input_scale_log.py makes a summary of a log",
    ".safetensors": "; a recording goes with --activation-stats",
}
# Columns that are 0 in the row of a layer which no call of the recording reached.
ZERO_IF_NEVER_CALLED = ("max_abs", "amax_max", "count")


def read_whole(path: Path) -> bytes:
    """Read all bytes of a small file.

    Raises ConvertError for a pointer or a web page in the file's place, and ValueError for a file
    of more than MAX_HEADER_BYTES, of which no more is read: an endless one would fill the memory.
    Raises OSError where it cannot be read.
    """
    # One byte more than is allowed tells a file that is too long from one that just fits.
    with path.open("rb") as file:
        refuse_models(path, file.peek(TELLING_BYTES))
        raw = file.read(MAX_HEADER_BYTES + 1)
    if len(raw) > MAX_HEADER_BYTES:
        raise ValueError(f"it has more than {MAX_HEADER_BYTES:,} bytes")
    refuse_foreign(path, raw)
    return raw


def parse_json(text: str, hook: Callable | None = None) -> object:
    """Parse JSON within the limits MAX_JSON_VALUES, MAX_JSON_DEPTH and MAX_DIGITS.

    An empty list takes two bytes here and 72 in memory; nesting ends in a RecursionError wherever
    the value is written again; a number of a million digits takes minutes. `hook` is called with
    each object's list of (key, value), and its result taken for the object. Raises ValueError.
    """
    # The text without its strings, whose characters are no structure; escapes are dropped first.
    outside = re.sub(r'"[^"]*"?', "", text.replace(r"\\", "").replace(r"\"", ""))
    # Each value but the outermost follows a comma or an opening bracket.
    if sum(map(outside.count, ",[{")) > MAX_JSON_VALUES:
        raise ValueError(f"it holds more than {MAX_JSON_VALUES:,} values")
    # Depth is counted without recursion: +1 for an opening bracket, -1 for a closing one.
    brackets = np.frombuffer(re.sub(r"[^][{}]+", "", outside).encode(), np.uint8)
    steps = np.where(np.isin(brackets, bytearray(b"[{")), 1, -1)
    if steps.cumsum().max(initial=0) > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
    if re.search(rf"(?<!\d)\d{{{MAX_DIGITS}}}", outside):
        raise ValueError(f"it has a number of {MAX_DIGITS:,} digits or more")
    return json.loads(text, object_pairs_hook=hook)


def load_json(path: Path, what: str) -> dict:
    """Read a JSON object from a file in UTF-8, UTF-16 or UTF-32.

    `what` is what the message calls the file: "index", "summary". Raises ConvertError where it
    cannot be read, is no JSON, has a key twice, or is not an object.
    """
    try:
        with translated(path, f"cannot read the {what}"):
            raw = read_whole(path)
        value = parse_json(raw.decode(json.detect_encoding(raw)), unique_keys)
    except ValueError as error:
        hint = JSON_HINTS.get(path.suffix.lower(), "")
        raise ConvertError(f"{path}: the {what} is not valid JSON: {error}{hint}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: the {what} must be a JSON object")
    return value


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Make a dict of an object's pairs, as a hook for `parse_json`; refuse a key that comes twice.

    json's default keeps the last of two equal keys: a tensor would vanish unnoticed. Raises
    ValueError, which `load_json` and the header's reader turn into a line on the file.
    """
    # Keys are counted only where one is missing: headers of 100,000 entries come through here.
    found = dict(pairs)
    if len(found) < len(pairs):
        [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {repeated[:EXCERPT]!r}")
    return found


def read_rows(path: Path, what: str) -> list[dict]:
    """Read the list `layers` of a JSON file, as `rows_in` does; messages call it `what`."""
    return rows_in(path, load_json(path, what))


def rows_in(path: Path, data: dict) -> list[dict]:
    """Take the list `layers` from a file's JSON: objects that each have a `layer` name.

    Calibration summaries and sensitivity files have this form. Layers are named without what
    torch.compile puts in. Raises ConvertError if the list is missing, malformed or empty, or if two
    rows name the same layer, prefixes stripped.
    """
    rows = data.get("layers")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("layer"), str) for row in rows
    ):
        raise ConvertError(f"{path}: has no list of `layers`, each with a `layer` name")
    if not rows:
        raise ConvertError(f"{path}: has no layers")
    rows = [row | {"layer": unwrapped(row["layer"])} for row in rows]
    # A layer's name with the model's prefix and the one without it are the same layer.
    counts = Counter(bare(row["layer"]) for row in rows)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConvertError(f"{path}: has two rows for layer {twice[0]}")
    return rows


def measured_rows(
    path: Path, rows: list[dict], columns: Iterable[str]
) -> tuple[list[dict], list[str]]:
    """Leave out the rows of layers that were not measured, as no call reached them.

    These have NaN or null in one of `columns`, or 0 in one of ZERO_IF_NEVER_CALLED; a column that a
    row lacks altogether is not minded here. Returns the other rows, and a note that counts what is
    left out. Raises ConvertError where no row is left.
    """
    columns = [*columns]
    left_out = [
        row["layer"]
        for row in rows
        if is_never_called(row) or any(is_nan(row[column]) for column in columns if column in row)
    ]
    if len(left_out) == len(rows):
        raise ConvertError(f"{path}: none of its {len(rows)} layers was measured")
    if not left_out:
        return rows, []
    what = in_number(len(left_out), "layers were not measured and are left out")
    note = Note(f"{path.name}: {what}: {examples(left_out)}", Rank.NOTE)
    left = {*left_out}
    return [row for row in rows if row["layer"] not in left], [note]


def is_never_called(row: dict) -> bool:
    """Tell whether a row says that its layer's input was never seen, by ZERO_IF_NEVER_CALLED."""
    # By its type, as False is 0, too.
    return any(type(row.get(k)) in (int, float) and row[k] == 0 for k in ZERO_IF_NEVER_CALLED)


def is_nan(value: object) -> bool:
    """Tell whether a figure of a row is missing, null or NaN: nothing was measured."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_figure(value: object) -> bool:
    """Tell whether a JSON value is a finite number from 0 up; True and False are none."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def positive(path: Path, row: dict, column: str) -> float:
    """Take the positive number of one column of a layer's row, as of `read_rows`.

    Raises ConvertError, naming file, layer and column, for anything that is not a number above 0
    and below float32's largest, and KeyError where the row has no such column.
    """
    value = row[column]
    # bool is a subclass of int, and true is no number in JSON.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < FLOAT32_MAX:
        raise ConvertError(
            f"{path}: layer {row['layer']}: {column} must be a positive number, "
            f"not {repr(value)[:EXCERPT]}"
        )
    return float(value)


# ── nvfp4/read/checkpoint.py: Open checkpoints: safetensors headers, indexes and shards ───────────

# What hostile files announce must not cost memory or time. Published diffusion models have up to
# 5,000 tensors, names of up to 100 characters, and JSON that is 5 deep. File systems allow names of
# 255 characters.
MAX_TENSORS, MAX_NAME, MAX_SHARDS, MAX_FILE_NAME = 100_000, 10_000, 10_000, 255
# Pickles are named as such, and not opened: they run code. The two bytes after \x80 are protocols
# 2 to 5; what torch.save() writes today is a zip archive.
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
GGUF_MAGIC = b"GGUF"
# What single files of safetensors end in, and how indexes are named: diffusers puts a variant's
# name, as fp16, before the last suffix.
MODEL_SUFFIXES = (".safetensors", ".sft")
INDEX_NAME = re.compile(r".+\.(safetensors|sft)\.index(\.[\w-]+)?\.json", re.IGNORECASE)
# "N of M" as Hugging Face's libraries, gguf-split and people write it, in any count of digits.
NUMBERED = re.compile(
    r"(?:^|(?<=[-_. (\[])|(?<=part)|(?<=shard)|(?<=split))(\d{1,5})[-_ ]?of[-_ ]?(\d{1,5})(?!\d)",
    re.IGNORECASE,
)
# A pipeline of diffusers is a folder with this file, and with a subfolder for each of its models.
PIPELINE_INDEX = "model_index.json"
DIFFUSION_FOLDER = re.compile(r"(transformer|unet|dit|diffusion_models?)(_\d+)?")


def refuse_other_formats(path: Path, start: bytes, sound: bool) -> None:
    """Raise ConvertError, saying what it is, for a file that is not safetensors but is known.

    `start` is how it begins, and `sound` whether the first 8 bytes may be a header's length. The
    length 640 begins as a pickle does, so such a beginning counts only where `sound` is false.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES or (not sound and start.startswith(PICKLE_MAGIC)):
        raise ConvertError(
            f"{path}: is a pickle file, which can run code when opened; "
            "give a .safetensors version of the model"
        )
    if start.startswith(GGUF_MAGIC):
        raise ConvertError(f"{path}: is a GGUF; give a .safetensors model here")
    if not sound:
        refuse_foreign(path, start)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read in the `with` block.

    Raises ConvertError where it cannot be opened, and for a pipe or a device, where opening would
    wait for a writer. Errors of the block itself pass through unchanged.
    """
    with translated(path, "cannot read"):
        size_of(path)
        file = path.open("rb")
    with file:
        yield file


def read_header(path: Path) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Open a safetensors file and parse its header, as `parse_header` does.

    Returns {name: TensorRef} in file order and the metadata. Raises ConvertError.
    """
    with opened(path) as file:
        return parse_header(path, file)


def parse_header(path: Path, file: BinaryIO) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Parse and check the header of an open safetensors file.

    The rules are those of the safetensors library: ranges within the file, each of its shape's
    size, together covering the data exactly. `file` is read from its start; `path` is for messages
    and for the TensorRefs. Returns {name: TensorRef} in file order, and `__metadata__`. Raises
    DamagedFileError for what the library refuses, ConvertError for other formats and too much.
    """
    with translated(path, "cannot read"):
        size = size_of(path)
        # Eight bytes, little endian, are the length of the JSON that follows them.
        start = file.read(8)
        length = int.from_bytes(start, "little")
        sound = len(start) == 8 and 2 <= length <= min(size - 8, MAX_HEADER_BYTES)
        refuse_other_formats(path, start if sound else start + file.read(TELLING_BYTES), sound)
        if not sound:
            cut = length <= MAX_HEADER_BYTES and len(start) == 8
            cut = f", or cut off: its header should have {length:,} bytes" if cut else ""
            problem = f"not a safetensors file{cut}; it has {size:,} bytes"
            raise DamagedFileError(f"{path}: {problem}")
        raw = file.read(length)
    try:
        header = parse_json(raw.decode(), unique_keys)
        # A list, or spaces before the object: the library refuses both.
        if not raw.startswith(b"{"):
            raise ValueError("it does not begin with {")
    except ValueError as error:
        raise DamagedFileError(f"{path}: the safetensors header is damaged: {error}") from error
    metadata = header.pop("__metadata__", None)
    # The library reads null as no metadata, and some writers put it where they have none.
    metadata = {} if metadata is None else metadata
    if len(header) > MAX_TENSORS:
        raise ConvertError(f"{path}: has {len(header):,} tensors; {MAX_TENSORS:,} are read")
    if not isinstance(metadata, dict) or not all(map(is_text, (*metadata, *metadata.values()))):
        raise DamagedFileError(f"{path}: the safetensors header's __metadata__ must map to strings")
    # Offsets count from the end of the header: 8 bytes of length, then the JSON.
    refs = [parse_entry(path, 8 + length, name, entry) for name, entry in header.items()]
    # An empty tensor begins where the next one does, and comes first.
    refs.sort(key=lambda ref: (ref.begin, ref.nbytes))
    check_coverage(path, refs, 8 + length, size)
    return {ref.name: ref for ref in refs}, metadata


def is_text(value: object) -> bool:
    """Tell whether a JSON value is a string that UTF-8 can hold: no half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def parse_entry(path: Path, data_begin: int, name: str, entry: object) -> TensorRef:
    """Check one tensor's entry of a safetensors header, and make a TensorRef of it.

    `data_begin` is where the data section starts in the file, which `data_offsets` count from.
    Types are checked strictly, as bool and float pass for int in Python, and the shape's bits have
    to be those of the range. Raises DamagedFileError, or a plain ConvertError for a name that the
    library takes.
    """
    # A lone surrogate, which JSON allows in a name, is not printable and cannot be written either.
    if len(name) > MAX_NAME or not name.isprintable():
        long = f"{len(name):,} characters" if len(name) > MAX_NAME else "a control character"
        # The library takes any text for a name, but a half of a surrogate pair is none.
        if is_text(name):
            raise ConvertError(f"{path}: tensor {name[:EXCERPT]}: its name has {long}")
        raise DamagedFileError(
            f"{path}: tensor {name[:EXCERPT]}: damaged or unknown entry: its name has {long}"
        )
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        # An empty text or object would pass for a scalar's [] below.
        if not isinstance(entry["shape"], list):
            raise ValueError("its shape is no list")
        numbers = (*shape, begin, end)
        sound = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        if not sound or len(shape) > MAX_DIMENSIONS:
            raise ValueError
        expected = bits_of(dtype, shape)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path}: tensor {name}: damaged or unknown entry {str(entry)[:EXCERPT]}"
        ) from error
    # Compared in bits, as dtypes of 4 and 6 bits may end inside a byte: such a shape is refused.
    if expected != (end - begin) * 8:
        needed = f"{expected // 8:,} bytes" if expected % 8 == 0 else f"{expected:,} bits"
        raise DamagedFileError(
            f"{path}: tensor {name}: {dtype} {list(shape)} needs {needed}, "
            f"the header gives it {end - begin:,} bytes"
        )
    return TensorRef(
        name=name, dtype=dtype, shape=shape, path=path, begin=data_begin + begin, nbytes=end - begin
    )


def check_coverage(path: Path, refs: list[TensorRef], data_begin: int, size: int) -> None:
    """Check that the tensors fill the data section from its begin to the file's end.

    `refs` are in the order of their offsets; `size` is the file's. Each has to begin where the one
    before ends. Raises DamagedFileError, which tells a file that is cut off from other damage.
    """
    position = data_begin
    for ref in refs:
        if ref.begin != position:
            what = "overlaps another" if ref.begin < position else "leaves a gap before it"
            raise DamagedFileError(f"{path}: tensor {ref.name} {what} at byte {ref.begin:,}")
        position += ref.nbytes
    if position != size:
        raise DamagedFileError(
            f"{path}: the tensors end at byte {position:,}, the file at {size:,}: "
            + ("it is cut off; download it again" if size < position else "trailing bytes")
        )


def open_model(source: Path) -> Model:
    """Read the headers of a single file, of an index, or of a folder that holds one of them.

    Raises ConvertError with all problems of all shards at once, and as `model_in` does.
    """
    if source.is_dir():
        source = model_in(source)
    if source.name == PIPELINE_INDEX:
        raise ConvertError(
            f"{source}: names the parts of a pipeline{where_models_are(source.parent)}"
        )
    if source.suffix.lower() == ".json":
        return open_shards(source)
    tensors, metadata = read_header(source)
    return Model(tensors=tensors, metadata=metadata, files=(source,))


def models_in(folder: Path) -> list[Path]:
    """List the indexes in a folder, or else its single files, by name.

    The companions that macOS lays beside files on foreign disks are passed over. Raises OSError.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("._"))
    indexes = [path for path in paths if INDEX_NAME.fullmatch(path.name)]
    return indexes or [path for path in paths if path.suffix.lower() in MODEL_SUFFIXES]


def numbered(path: Path) -> re.Match | None:
    """Match the "N of M" in a file's name, its groups N and M; None for the only one of one."""
    found = [found for found in NUMBERED.finditer(path.name) if int(found[2]) > 1]
    return found[-1] if found else None


def model_in(folder: Path) -> Path:
    """Find the one model in a folder: an index goes before single files, which are its shards.

    Raises ConvertError where there is not exactly one, and names subfolders that have one.
    """
    with translated(folder, "cannot read"):
        found = models_in(folder)
    if len(found) != 1:
        if any(map(numbered, found)):
            raise ConvertError(
                f"{folder}: holds shards ({examples(path.name for path in found)}) and no index; "
                "download the *.safetensors.index.json that lists them"
            )
        what = "*.safetensors.index.json or *.safetensors files"
        where = f"; it has {examples(path.name for path in found)}; give one by name"
        where = where if found else where_models_are(folder)
        raise ConvertError(f"{folder}: holds {len(found) or 'no'} {what}{where}")
    return found[0]


def where_models_are(folder: Path) -> str:
    """Tell which subfolders hold a model, the diffusion model's alone in a pipeline of diffusers.

    Returns the end of a message, which asks for a file by name where there are none.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(OSError):
                found += [path.name] if path.is_dir() and models_in(path) else []
    found = [name for name in found if DIFFUSION_FOLDER.fullmatch(name)] or found
    return f"; give its subfolder {examples(found)}" if found else "; give one by name"


def read_index(index: Path) -> dict[str, set[str]]:
    """Read an index's weight_map: {shard: the names of the tensors listed in it}.

    Shards are sorted by name. Raises ConvertError where the map is malformed or too large, or a
    shard's name leads out of the index's folder: a downloaded index must not make this program read
    other files of the machine.
    """
    weight_map = load_json(index, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise ConvertError(f"{index}: has no weight_map of tensor names to file names")
    # Sorted, so that the order of tensors does not depend on how the index was written.
    shards = {shard: set() for shard in sorted(set(weight_map.values()))}
    if len(shards) > MAX_SHARDS or len(weight_map) > MAX_TENSORS:
        sizes = f"{len(weight_map):,} tensors in {len(shards):,} shards"
        raise ConvertError(f"{index}: has {sizes}; {MAX_TENSORS:,} in {MAX_SHARDS:,} are read")
    for shard in shards:
        if reason := leads_outside(index, shard):
            raise ConvertError(f"{index}: shard {shard[:EXCERPT]!r} {reason}")
    for name, shard in weight_map.items():
        shards[shard].add(name)
    return shards


def open_shards(index: Path) -> Model:
    """Read every shard's header, and check it both ways against the index's weight_map.

    A tensor that is listed has to be in its shard, and one that is in a shard has to be listed.
    Raises ConvertError with the problems of all shards, so that all missing files are told at once.
    """
    shards = read_index(index)
    # A problem of one shard is collected, and the next one is read.
    headers, problems = {}, []
    for shard in shards:
        path = index.parent / shard
        try:
            if not exists(path):
                raise ConvertError(f"{path}: is missing, but {index.name} lists it; download it")
            headers[shard] = read_header(path)
        except ConvertError as error:
            problems += error.problems
    for shard, (tensors, _) in headers.items():
        if missing := shards[shard] - tensors.keys():
            problems.append(f"{index.parent / shard}: the index lists {examples(missing)} in it")
        if unlisted := tensors.keys() - shards[shard]:
            problems.append(f"{index}: has no entry for {examples(unlisted)} of {shard}")
    if problems:
        raise ConvertError(*problems)
    merged = {name: ref for tensors, _ in headers.values() for name, ref in tensors.items()}
    files = (index, *(index.parent / shard for shard in shards))
    metadata = merge_metadata([metadata for _, metadata in headers.values()])
    return Model(tensors=merged, metadata=metadata, files=files)


def leads_outside(index: Path, shard: str) -> str:
    """Say why a shard's name, or the link of that name, leads to a file elsewhere; or "".

    Hugging Face's cache has links for an index and its shards, all into one folder of blobs: the
    folder that the index's own link leads to is allowed, too.
    """
    # Separators of both systems, drive letters, NUL, surrogates, and the names "", "." and "..".
    if re.search(r"[/\\:\x00\ud800-\udfff]|^\.*$", shard):
        return "is not a file name in its own folder"
    if len(shard) > MAX_FILE_NAME:
        return f"has a name of {len(shard):,} characters"
    path = index.parent / shard
    try:
        if path.is_symlink():
            path = path.resolve(strict=True)
            if path.parent not in (index.parent.resolve(), index.resolve().parent):
                return f"is a link to {path}, which is not in its own folder; copy it there"
    except (OSError, RuntimeError):
        # The link leads nowhere or in a circle, or is too long: opening the shard will say so.
        pass
    return ""


def merge_metadata(shards: list[dict[str, str]]) -> dict[str, str]:
    """Merge the metadata of shards, given in order.

    Where shards have different values for one key, the first one's is kept. The quantised layers in
    `_quantization_metadata` are collected from all, as each shard lists only its own.
    """
    merged, layers = {}, {}
    for metadata in shards:
        # The right side of | wins: what is merged already stays.
        merged = metadata | merged
        layers |= header_layers(metadata) or {}
    if layers:
        merged["_quantization_metadata"] = json.dumps({"layers": layers})
    return merged


def header_layers(metadata: dict[str, str]) -> dict | None:
    """Read the layers that a header's metadata configures: {layer: configuration}.

    They are JSON in `_quantization_metadata`, where ComfyUI looks for them. Returns {} if the
    header has none, and None if they cannot be read; configurations themselves are not checked.
    """
    text = metadata.get("_quantization_metadata", '{"layers": {}}')
    try:
        layers = parse_json(text)["layers"]
    except (ValueError, KeyError, TypeError):
        return None
    return layers if isinstance(layers, dict) else None


def file_bytes(model: Model) -> int:
    """Add up the sizes of a model's safetensors files, headers included and the index left out."""
    return sum(path.stat().st_size for path in model.files if path.suffix.lower() != ".json")


# ── nvfp4/layout.py: Lay the output out to the byte: tensors, headers, shards ─────────────────────

@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Place one tensor of the output.

    name, dtype, shape: as in the header; begin: its absolute offset in the file, header included;
    nbytes: its size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Hold one output file, known before it is written.

    header: the whole header, its length field of 8 bytes included; slots: {name: Slot} in the order
    of their bytes.
    """

    header: bytes
    slots: dict[str, Slot]

    @property
    def nbytes(self) -> int:
        """Return the size of the file."""
        return len(self.header) + sum(slot.nbytes for slot in self.slots.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold a conversion planned to the byte: one output file, or shards and their index.

    model: the source, LoRAs and adopted layers included; plans: one for each tensor, in source
    order; origin: how the file is made, as its header tells; layouts: {path: Layout} of the files
    that hold tensors.
    """

    options: Options
    model: Model
    plans: list[TensorPlan]
    origin: dict[str, object]
    layouts: dict[Path, Layout]

    @property
    def nbytes(self) -> int:
        """Return the size of all files that hold tensors, headers included.

        The index of shards does not count.
        """
        return sum(layout.nbytes for layout in self.layouts.values())

    @property
    def index(self) -> Path | None:
        """Return the path of the index of shards, None for a single file."""
        return self.options.written if self.options.output_sharded else None

    @property
    def files(self) -> list[Path]:
        """List the paths of the output in the order in which they get their names, the index last.

        A set of shards without its index is not taken for a model, so that it is never half there.
        """
        return [*self.layouts, *filter(None, [self.index])]

    @property
    def fingerprint(self) -> dict[str, object]:
        """Summarise what the output's bytes depend on, to tell this conversion from another one.

        Returns a hash of headers and input scales ("plan"), and path, size and time of each file
        that is read ("files"), all of which JSON can hold. The journal begins with it, and --resume
        goes on only where it is the same.
        """
        plan = hashlib.sha256()
        for path, layout in self.layouts.items():
            plan.update(os.fsencode(path.name) + layout.header)
        # Headers do not show the values of input scales, which another option may have changed.
        plan.update(str([plan.input_scale for plan in self.plans]).encode())
        paths = [path for path in (*self.options.inputs, *self.model.files) if not path.is_dir()]
        stamps = {path: self.model.stamps.get(path) or stamp(path) for path in paths}
        # The folder of a file counts, too: models for high and low noise may have the same names,
        # sizes and times. Folders among the inputs were left out above, because their time changes
        # with each file in them, such as the output.
        files = [[str(path.resolve()), *stamp] for path, stamp in stamps.items()]
        return {"plan": plan.hexdigest(), "files": sorted(files)}

    def refuse_changed(self) -> None:
        """Raise ConvertError if source files are no longer those whose headers were read.

        Old and new weights would mix in the output. Size and time of each file are compared.
        """
        stamps = self.model.stamps
        if changed := [str(path) for path, before in stamps.items() if stamp(path) != before]:
            raise ConvertError(f"{examples(changed)}: {CHANGED_UNDER_WAY}")


def planned_tensors(plan: TensorPlan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """List what a planned tensor becomes in the output: {key: (safetensors dtype, shape)}.

    One tensor, unless it is quantised: then the format's parts come first, input scale, smoothing
    and configuration after them, each if the plan has it. `encode.layer.store` gives the values in
    this order.
    """
    # A weight of the source that is NVFP4 already brings its configuration along.
    if not plan.is_quantised:
        stored = {plan.ref.name: (plan.dtype, plan.ref.shape)}
        config = {f"{plan.ref.layer}.comfy_quant": ("U8", (len(plan.config_bytes),))}
        return stored | (config if plan.ref.config else {})
    form = plan.precision
    parts = form.parts(plan.ref.shape)
    # Names beyond the format's own parts are those that ComfyUI reads for every format.
    if plan.input_scale is not None:
        parts["input_scale"] = ("F32", form.scalar_shape)
    if plan.smoothing is not None:
        parts["pre_quant_scale"] = ("BF16", tuple(plan.smoothing.shape))
    if form.is_configured:
        parts["comfy_quant"] = ("U8", (len(plan.config_bytes),))
    return {f"{plan.ref.layer}.{form.name_in_file(suffix)}": part for suffix, part in parts.items()}


def marker_of(plans: Iterable[TensorPlan]) -> dict[str, torch.Tensor]:
    """Make the tensor by which ComfyUI knows the quantised layers of a file that configures none.

    Returns {name: tensor}, empty where no format of the plan has a marker. A marker decides for all
    layers of a file, so that it is made of the first one's full-precision flag.
    """
    plan = next((plan for plan in plans if plan.precision.marker), None)
    if plan is None:
        return {}
    # ComfyUI looks for the marker behind the prefix that the model's other keys have.
    prefix = plan.ref.layer.removesuffix(bare(plan.ref.layer))
    marker = marker_tensor(full_precision=bool(plan.full_precision))
    return {prefix + plan.precision.marker: marker}


def bytes_in_output(plan: TensorPlan) -> int:
    """Count the bytes that a planned tensor becomes, with its scales and configuration."""
    return sum(bits_of(*stored) // 8 for stored in planned_tensors(plan).values())


def make_job(options: Options, model: Model, plans: list[TensorPlan]) -> Job:
    """Make the record of a conversion that is planned: its files laid out to the byte.

    Raises ConvertError where two tensors of the output would have one name.
    """
    origin = origin_of(options, model, plans)
    layouts = make_layouts(options, model, plans, origin)
    return Job(options=options, model=model, plans=plans, origin=origin, layouts=layouts)


def output_size(options: Options, model: Model, plans: list[TensorPlan]) -> int:
    """Compute the output's size, headers included, without a Job to write it."""
    layouts = make_layouts(options, model, plans, origin_of(options, model, plans))
    return sum(layout.nbytes for layout in layouts.values())


def make_layouts(
    options: Options, model: Model, plans: list[TensorPlan], origin: dict[str, object]
) -> dict[Path, Layout]:
    """Lay out the one file, or the shards with --output-sharded: {path: Layout}.

    Shards are named NAME-00001-of-0000N.safetensors beside OUTPUT; each has the whole metadata, and
    in it the quantised layers that it holds.
    """
    marker = marker_of(plans)
    shards = split_shards(plans, options.max_shard_size) if options.output_sharded else [plans]
    layouts, output = {}, options.output
    for number, members in enumerate(shards, 1):
        name = f"{output.stem}-{number:05}-of-{len(shards):05}{output.suffix}"
        path = output.with_name(name) if options.output_sharded else output
        # One marker serves the whole checkpoint: it lies in the first shard.
        layouts[path] = make_layout(members, make_metadata(model, members, origin), marker)
        marker = {}
    return layouts


def split_shards(plans: list[TensorPlan], largest: int) -> list[list[TensorPlan]]:
    """Split plans, in source order, into shards of up to `largest` bytes of data.

    A layer is never split: one that is larger is a shard of its own, with all its scales.
    """
    # Headers are not counted: they are small, and known only once the shards are.
    shards, size = [[]], 0
    for plan in plans:
        size += bytes_in_output(plan)
        if size > largest and shards[-1]:
            shards.append([])
            size = bytes_in_output(plan)
        shards[-1].append(plan)
    return shards


def make_layout(
    plans: Iterable[TensorPlan], metadata: dict[str, str], marker: dict[str, torch.Tensor]
) -> Layout:
    """Make the header and the offsets of one output file.

    Tensors are ordered by item size, so that each starts at a multiple of its own; the odd-length
    comfy_quant tensors come last. Raises ConvertError where two would have one name.
    """
    stored = [(key, *value) for plan in plans for key, value in planned_tensors(plan).items()]
    # A marker is the only tensor that no plan stands for.
    stored += [(key, "F8_E4M3", tuple(tensor.shape)) for key, tensor in marker.items()]
    stored.sort(
        key=lambda row: (-SAFETENSORS_BITS[row[1]], row[0].endswith(".comfy_quant"), row[0])
    )
    # Offsets count from the end of the header, as the format asks; a Slot's count from the file's.
    entries, begin = {"__metadata__": metadata}, 0
    for key, dtype, shape in stored:
        if key in entries:
            raise ConvertError(f"two tensors of the output would be named {key}")
        end = begin + bits_of(dtype, shape) // 8
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    # Parity with the safetensors library: a header is padded with spaces to a multiple of 8 bytes.
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(round_up(len(text), 8))
    header = len(text).to_bytes(8, "little") + text
    slots = {}
    for key, dtype, shape in stored:
        begin, end = entries[key]["data_offsets"]
        at, size = len(header) + begin, end - begin
        slots[key] = Slot(name=key, dtype=dtype, shape=shape, begin=at, nbytes=size)
    return Layout(header=header, slots=slots)


def origin_of(options: Options, model: Model, plans: list[TensorPlan]) -> dict[str, object]:
    """Record how a file was made, for its header and the report.

    version: that of the converter; options: those that leave a trace; sources: size by file name;
    plan: how many tensors each format has. There are names only, no folders and no times, because
    equal runs are to give equal bytes.
    """
    # Tensors are counted in the order of names, whatever order they were planned in.
    return {
        "version": __version__,
        "options": options.recorded,
        "sources": {path.name: path.stat().st_size for path in model.files},
        "plan": dict(sorted(Counter(plan.precision.name for plan in plans).items())),
    }


def make_metadata(
    model: Model, plans: list[TensorPlan], origin: dict[str, object]
) -> dict[str, str]:
    """Make the strings of a file's header.

    The source's own metadata stays. `_quantization_metadata` tells ComfyUI of the layers among
    these plans, and is left out where a marker does; `convert_nvfp4` holds the origin as JSON. Of
    the source's list, layers beside the diffusion model stay.
    """
    metadata = model.metadata | {"convert_nvfp4": json.dumps(origin)}
    # That of the source lists layers as they were; this file's own list is made below.
    metadata.pop("_quantization_metadata", None)
    beside = {name.rpartition(".")[0] for name in model.beside}
    beside &= {plan.ref.name.rpartition(".")[0] for plan in plans}
    listed = header_layers(model.metadata) or {}
    layers = {name: config for name, config in listed.items() if name in beside}
    layers |= {
        plan.ref.layer: plan.config for plan in plans if plan.is_quantised or plan.ref.config
    }
    # ComfyUI does not look for a marker in files that have this entry.
    if layers and not any(plan.precision.marker for plan in plans):
        quantisation = {"format_version": "1.0", "layers": layers}
        metadata["_quantization_metadata"] = json.dumps(quantisation)
    return metadata


def render_index(job: Job) -> str:
    """Write the *.index.json of shards, as the transformers and diffusers libraries write it.

    Returns its text: `total_size` is the bytes of all tensors, without headers, and `weight_map`
    says which file each one is in.
    """
    slots = {
        key: (path.name, slot.nbytes)
        for path, layout in job.layouts.items()
        for key, slot in layout.slots.items()
    }
    # Parity: `total_size` counts tensors alone, in these libraries too.
    total = sum(size for _, size in slots.values())
    weight_map = {key: name for key, (name, _) in sorted(slots.items())}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)


# ── nvfp4/numeric/dtypes.py: Name the torch dtypes of tensors in safetensors files ────────────────

# Only dtypes that a conversion computes with; tensors of others are copied as bytes, untyped.
TORCH_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


# ── nvfp4/numeric/lora.py: Compute what a LoRA, LoHa, LoKr or DoRA adds to a weight ───────────────

def lora_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Multiply the factors of a LoRA, up x down.

    parts: `up` [N, r, ...] and `down` [r, K, ...], float32; a convolution may keep its kernel in a
    third factor `mid` (LoCon's CP decomposition). Returns the change as [N, K * kernel], and the
    rank r that `alpha` is divided by.
    """
    up, down = parts["up"], parts["down"]
    rank = down.shape[0]
    if "mid" in parts:
        down = torch.einsum("mn...,nj->mj...", parts["mid"], down.flatten(1))
    return up.flatten(1) @ down.flatten(1), rank


def product(parts: dict[str, torch.Tensor], which: int) -> tuple[torch.Tensor, int | None]:
    """Make one of the two matrices that LoHa and LoKr combine.

    parts: either `w1` (`w2`) whole, or its factors `w1_a` [m, r] and `w1_b` [r, n], with a core
    tensor `t1` for convolutions. which: 1 or 2. Returns the matrix, and its rank, None if it is
    stored whole.
    """
    if (whole := parts.get(f"w{which}")) is not None:
        return whole, None
    a, b, core = parts[f"w{which}_a"], parts[f"w{which}_b"], parts.get(f"t{which}")
    whole = a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)
    # torch.kron refuses the strides that einsum leaves.
    return whole.contiguous(), b.shape[0]


def loha_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Multiply the two low-rank products of a LoHa element by element.

    parts: float32 factors as `product` takes them, both products of the weight's shape. Returns the
    change and the rank of the first product, which `alpha` is divided by.
    """
    (first, rank), (second, _) = product(parts, 1), product(parts, 2)
    return first * second, rank


def lokr_change(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int | None]:
    """Form the Kronecker product of the two matrices of a LoKr.

    parts: float32 factors as `product` takes them; the second holds a convolution's kernel, if
    there is one. Returns the change and the second one's rank, else the first one's; it is None if
    both are stored whole, where ComfyUI leaves `alpha` out.
    """
    (first, first_rank), (second, rank) = product(parts, 1), product(parts, 2)
    # A plain matrix gets kernel dimensions of 1, as the Kronecker product needs equal dimensions.
    first = first.reshape(first.shape + (1,) * (second.ndim - first.ndim))
    return torch.kron(first, second), rank or first_rank


# A patch's kind, as the names in a LoRA file tell it, and what makes a change and a rank of its
# parts. "diff" and "set" hold a whole tensor, which is added, or takes the weight's place.
CHANGES = {
    "lora": lora_change,
    "loha": loha_change,
    "lokr": lokr_change,
    "diff": lambda parts: (parts["diff"], None),
    "set": lambda parts: (parts["set_weight"], None),
}


def dora(weight: torch.Tensor, merged: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scale each row or column of a merged weight to the length that was trained for it.

    weight: before merging; merged: after it, same shape [N, K, ...], float32; scale: `dora_scale`,
    a length for each of N rows, else for each of K columns. As in ComfyUI, the lengths divided by
    are those of the unmerged rows, but of the merged columns.
    """
    # ComfyUI tells rows from columns by this first dimension alone, square weights included.
    if scale.shape[0] == weight.shape[0]:
        length = weight.flatten(1).norm(dim=1)
        length = length.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        length = merged.transpose(0, 1).flatten(1).norm(dim=1)
        length = length.reshape(1, -1, *[1] * (weight.ndim - 2))
    # Float32's epsilon keeps rows of zeros from being divided by 0, as in ComfyUI.
    return merged * (scale.reshape(length.shape) / (length + torch.finfo(torch.float32).eps))


def merge(patch: Patch, parts: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
    """Add one patch to a weight in place: weight[rows] += strength * alpha / rank * change.

    patch: its kind, strength, rows, and whether the halves of the change are swapped; parts: its
    tensors in float32, `alpha` and `dora_scale` included; weight: float32, the whole tensor. A
    patch of kind "set" replaces the rows instead. Raises ValueError, or torch's RuntimeError, where
    the change does not fit the weight.
    """
    weight = weight[patch.rows]
    change, rank = CHANGES[patch.kind](parts)
    if change.shape[:1] != weight.shape[:1] or rank == 0:
        # Reshape alone would accept a transposed change of the same number of elements.
        raise ValueError(change.shape)
    change = change.reshape(weight.shape)
    if patch.swapped:
        change = torch.cat(change.chunk(2)[::-1])
    if patch.kind == "set":
        weight.copy_(change)
        return
    if "alpha" in parts and rank is not None:
        change = change * (parts["alpha"].reshape(()) / rank)
    elif patch.scale != 1:
        change = change * patch.scale
    if "dora_scale" in parts and patch.kind != "diff":
        # The strength applies to the rescaled weight's difference, not to the LoRA's own change.
        change = dora(weight, weight + change, parts["dora_scale"]) - weight
    weight.add_(change, alpha=patch.strength)


# ── nvfp4/read/tensors.py: Read tensors: quantised weights decoded, LoRAs merged ──────────────────

# Where layers are compared, this many rows stand for a weight, in 8 stripes spread over its height,
# so that fused layers show all of their parts.
STUDIED_ROWS, STRIPES = 256, 8


def fill(ref: TensorRef, begin: int, view: memoryview, file: BinaryIO | None = None) -> None:
    """Read bytes of a tensor from the disk into memory.

    Fills all of `view` from the tensor's byte `begin` on. `file` is the tensor's file, if it is
    open already; it is moved, but not closed. Raises ConvertError where the file cannot be read, or
    ends inside the tensor, which its header excludes: it was changed meanwhile.
    """
    with (
        translated(ref.path, f"cannot read {ref.name}"),
        contextlib.nullcontext(file) if file else ref.path.open("rb", buffering=0) as file,
    ):
        file.seek(ref.begin + begin)
        # readinto may give less than was asked for, and gives 0 only at the file's end.
        filled = 0
        while filled < len(view) and (count := file.readinto(view[filled:])):
            filled += count
    if filled < len(view):
        raise ConvertError(f"{ref.path}: ended inside {ref.name}; {CHANGED_UNDER_WAY}")


def load_bytes(ref: TensorRef, file: BinaryIO | None = None) -> torch.Tensor:
    """Load a whole tensor of any dtype as its stored bytes: uint8 [nbytes], on the CPU."""
    data = torch.empty(ref.nbytes, dtype=torch.uint8)
    fill(ref, 0, memoryview(data.numpy()), file)
    return data


def load(ref: TensorRef, file: BinaryIO | None = None) -> torch.Tensor:
    """Load a whole tensor as it is stored, in its own dtype and shape, on the CPU.

    `file` is the tensor's file, if it is open already. Raises KeyError for a dtype that is not in
    TORCH_DTYPES.
    """
    return load_bytes(ref, file).view(TORCH_DTYPES[ref.dtype]).view(ref.shape)


def load_part(ref: TensorRef) -> torch.Tensor:
    """Load a whole part of a quantised layer: uint8 where torch has no dtype for it, as E8M0."""
    return load(ref) if ref.dtype in TORCH_DTYPES else load_bytes(ref).view(ref.shape)


def load_weight(ref: TensorRef) -> torch.Tensor:
    """Read a whole tensor: codes decoded and LoRAs merged, the values that are quantised.

    Returns float32 where it was decoded or patched, else the stored dtype. Raises ConvertError as
    `changed` does.
    """
    return changed(ref, load(ref)) if ref.is_changed else load(ref)


def changed(ref: TensorRef, data: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Decode a stored tensor and merge LoRAs into it: float32 of the shape of `data`.

    data: the tensor `ref` as it is stored, in any shape. Rows of it from the row `first` on suffice
    if there are no patches, which are merged into the whole only. Raises ConvertError where codes
    are no finite numbers, or where merging makes NaN or Inf.
    """
    if ref.coding is not None:
        if has_no_number(data):
            raise ConvertError(f"{ref.path}: {ref.name} holds NaN: the file is damaged")
        data = decoded(ref, data, first)
    if not ref.patches:
        return data
    data = data.float().view(ref.shape)
    for patch in ref.patches:
        # The parts of one patch at a time are in memory.
        merge(patch, {part: load(other).float() for part, other in patch.parts.items()}, data)
        if not data.isfinite().all():
            lora = next(iter(patch.parts.values())).path
            raise ConvertError(
                f"{lora}: {ref.name} holds NaN or Inf after it is merged: the LoRA or the model "
                "is damaged, or its strength too large"
            )
    return data


def decoded(ref: TensorRef, codes: torch.Tensor, first: int) -> torch.Tensor:
    """Decode rows of a tensor by its format: float32 of the shape of `codes`.

    codes: as they are stored; first: the row of the tensor that they begin with. One scale takes
    any part of a tensor, several take whole rows; these are read from the disk once more.
    """
    form = format_titled(ref.coding.title)
    if ref.coding.scale is not None:
        return form.decode(codes, torch.tensor(ref.coding.scale))
    by_rows, scale = coded_scales(ref, ref.coding)
    rows = codes.view(-1, *ref.shape[1:])
    some = (part[first : first + len(rows)] for part in by_rows)
    return form.decode(rows, *some, scale).view(codes.shape)


def coded_scales(ref: TensorRef, coding: Coding) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Read the scales of a quantised weight as its format's decoder takes them.

    Returns those that go by rows, for all rows of the weight, and the one scale, a float32 scalar.
    """
    # The decoder's parts are made of the scales alone; of the codes, only their shape counts.
    codes = torch.empty(ref.shape, dtype=TORCH_DTYPES[ref.dtype], device="meta")
    scales = {suffix: load_part(part) for suffix, part in coding.parts.items()}
    (_, *by_rows), scale = format_titled(coding.title).unpack({"weight": codes} | scales)
    return by_rows, scale


def load_some_rows(ref: TensorRef) -> torch.Tensor:
    """Read a sample of a weight's rows: [min(N, STUDIED_ROWS), K] of [N, K].

    A weight of more rows gives as many from each of STRIPES places, evenly spread, the first and
    last rows among them. Only these are read from the disk, unless the weight is patched. The dtype
    is that of `load_weight`; the result is the same in every run.
    """
    height, (count, columns) = STUDIED_ROWS // STRIPES, ref.shape
    if count <= STUDIED_ROWS:
        return load_weight(ref)
    # DoRA scales rows and columns by their lengths, so that a patch needs the whole weight.
    if ref.patches:
        weight, steps = load_weight(ref), range(STRIPES)
        begins = (index * (count - height) // (STRIPES - 1) for index in steps)
        return torch.cat([weight[begin : begin + height] for begin in begins])
    row, stripes = ref.nbytes // count, []
    for index in range(STRIPES):
        # From 0 for the first stripe to count - height for the last, which ends with the weight.
        begin = index * (count - height) // (STRIPES - 1)
        data = torch.empty(height * row, dtype=torch.uint8)
        fill(ref, begin * row, memoryview(data.numpy()))
        stored = data.view(TORCH_DTYPES[ref.dtype]).view(-1, columns)
        stripes.append(changed(ref, stored, begin) if ref.is_changed else stored)
    return torch.cat(stripes)


# ── nvfp4/asking/question.py: Make the question about a file, which is not there yet or is: names, 

# Bytes of a tensor whose values go along: Stable Diffusion 2 is told by a bias of 320 numbers.
SMALL = 4096


def entry(dtype: str, shape: tuple[int, ...], values: bytes | None = None) -> list:
    """Make a tensor's entry: dtype, shape, and its bytes as base64, or None without values."""
    return [dtype, [*shape], None if values is None else base64.b64encode(values).decode()]


def stored_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's values as a file holds them."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def question_of_model(model: Model, *, is_source: bool = False) -> dict[str, object]:
    """Ask about a file that is there, or about a source as a conversion sees it.

    Of a source, weights that are decoded count as 16-bit, and layers that go over packed have their
    configuration; its header's list of layers would contradict that.
    """
    tensors, metadata = {}, dict(model.metadata)
    if is_source:
        metadata.pop("_quantization_metadata", None)
    with contextlib.ExitStack() as stack:
        files = {
            path: stack.enter_context(path.open("rb", buffering=0))
            for path in {ref.path for ref in model.tensors.values() if ref.nbytes <= SMALL}
        }
        for ref in model.tensors.values():
            small = ref.nbytes <= SMALL and ref.coding is None
            values = stored_bytes(load_bytes(ref, files[ref.path])) if small else None
            dtype = ref.dtype if ref.coding is None else "BF16"
            tensors[ref.name] = entry(dtype, ref.shape, values)
            if ref.config:
                config = ref.config.encode()
                tensors[f"{ref.layer}.comfy_quant"] = entry("U8", (len(config),), config)
    return {"metadata": metadata, "tensors": tensors}


def question_of_job(job: Job) -> dict[str, object]:
    """Ask about the output of a job, all its shards together, before anything is written."""
    values = {name: value for plan in job.plans for name, value in planned_values(plan)}
    tensors, metadata = {}, {}
    for layout in job.layouts.values():
        metadata |= json.loads(layout.header[8:])["__metadata__"]
        for slot in layout.slots.values():
            tensors[slot.name] = entry(slot.dtype, slot.shape, values.get(slot.name))
    return {"metadata": metadata, "tensors": tensors}


def planned_values(plan: TensorPlan) -> Iterator[tuple[str, bytes]]:
    """Find what is known already of the values of a planned tensor: (name in the output, bytes)."""
    layer, ref = plan.ref.layer, plan.ref
    if plan.config:
        yield f"{layer}.comfy_quant", plan.config_bytes
    if plan.input_scale is not None:
        suffix = plan.precision.name_in_file("input_scale")
        yield f"{layer}.{suffix}", stored_bytes(torch.tensor(plan.input_scale))
    if not plan.is_quantised and ref.nbytes <= SMALL:
        value = load_weight(ref)
        value = value.to(TORCH_DTYPES[plan.dtype]) if ref.is_float else value
        yield ref.name, stored_bytes(value)


# ── nvfp4/file_kinds.py: Tell what a file is that is no diffusion model, by the names of its tensor

# A name of a LoRA's tensor, in any of the spellings that ComfyUI and PEFT have.
LORA_PART = re.compile(
    r".+[._](lora(_linear_layer)?[._](up|down|mid|A|B)|hada_[wt][12]|lokr_[wt][12]|dora_scale"
    r"|lora_magnitude_vector|oft_(blocks|diag)|diff(_b)?$|set_weight$)"
)
# What an embedding's vectors are called, one tensor for each text encoder.
EMBEDDING_NAMES = {"emb_params", "*", "clip_l", "clip_g", "clip_h", "t5xxl", "string_to_param"}


class FileKind(NamedTuple):
    """Describe what a file may be instead of a diffusion model.

    title: to follow "is"; what_to_do: with such a file, as the end of a sentence.
    keys: regular expressions for the beginning of lines of `header_text`, behind up to four parts
        of a prefix; all of them have to be there, and `absent` must not.
    is_like_a_model: whether such files have the layers of a known family as well.
    instead: what such a file is not, for those that check it.
    """

    title: str
    what_to_do: str
    keys: tuple[str, ...] = ()
    absent: str = ""
    is_like_a_model: bool = False
    instead: str = "a diffusion model"


LORA = FileKind("a LoRA", "give the model, and this with --merge-lora")
# Parts of LoRAs that --merge-lora does not merge, by what a file of them alone is called.
OTHER_LORAS = {"OFT": r".+[._](oft_(blocks|diag)|rescale)$", "GLoRA": r".+\.[ab][12]\.weight$"}
UNMERGED = FileKind(
    "a model with a LoRA beside its layers, as PEFT trains it",
    "merge it first (merge_and_unload), or give the original model and the LoRA with --merge-lora",
)
EMBEDDING_FILE = FileKind("an embedding (textual inversion)", "it goes into models/embeddings")
PATCH = "a model patch", "it goes into models/model_patches, for Load Model Patch, as it is"
VAE = "a VAE", "ComfyUI loads it with Load VAE, as it is"
# What text encoders have, in several lines of models. Diffusion models that are built like one have
# a time step besides. A plain BERT is none that ComfyUI loads by itself, and is converted.
TEXT_ENCODERS = (
    (r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.",),
    (r"text_model\.encoder\.layers\.0\.",),
    (r"transformer\.resblocks\.0\.attn\.", r"token_embedding\.weight "),
    (r"layers\.0\.self_attn\.(q|qkv)_proj\.", r"embed_tokens\.weight "),
    # llama.cpp's names, in a GGUF.
    (r"(enc\.)?blk\.0\.attn_(q|qkv|k)\.", r"token_embd\.weight "),
)
TIME_STEP = r"\S*(time_?(step)?_?(embed|in\.|proj)|t_embedder|x_embedder)"
# ComfyUI maps the names of some of these, in 16 bits alone (comfy/model_detection.py,
# convert_diffusers_mmdit): a layer's scales and configuration would be lost.
OTHER_NAMES = "ComfyUI loads quantised layers by its own names; take the file repackaged for it"
# Models in the names of diffusers: {model: (keys, what native models have besides)}.
DIFFUSERS_KEYS = {
    "Wan": ((r"condition_embedder\.text_embedder\.linear_1\.weight ", r"blocks\.0\.attn1\."), ""),
    "Flux, Flux 2, Chroma or Hunyuan Video": (
        (r"single_transformer_blocks\.0\.", r"transformer_blocks\.0\.attn\."), ""),
    "Hunyuan Video 1.5": (
        (r"context_embedder\.token_refiner\.refiner_blocks\.0\.",
         r"transformer_blocks\.0\.attn\.add_q_proj\."), ""),
    "AuraFlow": ((r"joint_transformer_blocks\.0\.attn\.",), ""),
    "Stable Diffusion 3": (
        (r"transformer_blocks\.0\.attn\.add_q_proj\.weight ", r"pos_embed\.proj\.weight "), ""),
    "PixArt": (
        (r"adaln_single\.emb\.timestep_embedder\.linear_1\.", r"pos_embed\.proj\.weight "), ""),
    "Z-Image": ((r"layers\.0\.attention\.to_q\.", r"noise_refiner\.0\.attention\.to_q\."), ""),
    "Ideogram": ((r"layers\.0\.attention\.to_q\.", r"llm_cond_proj\."), ""),
    "Lumina 2": (
        (r"layers\.0\.attn\.to_q\.weight ", r"noise_refiner\.0\.attn\.to_q\."),
        r"(image_index_embedding|ref_image_patch_embedder\.)"),
    "LTX": ((r"time_embed\.emb\.timestep_embedder\.linear_1\.weight ", r"proj_in\.weight "), ""),
    "Cosmos": ((r"time_embed\.t_embedder\.linear_1\.weight ", r"transformer_blocks\.0\."), ""),
    "Mochi": ((r"time_embed\.pooler\.to_kv\.", r"transformer_blocks\.0\.attn1\."), ""),
    "Krea 2": ((r"text_fusion\.refiner_blocks\.0\.attn\.to_q\.",), ""),
    "MiniMax H3": ((r"audio_proj_in\.weight ", r"token_refiner\.refiner_blocks\.0\.attn\."), ""),
    "Stable Audio or MiniMax Music": (
        (r"preprocess_conv\.weight ", r"transformer_blocks\.0\.attn1?\.to_q\."), ""),
    "ACE-Step": ((r"layers\.0\.self_attn\.to_q\.", r"layers\.0\.cross_attn\.to_q\."), ""),
    "Hunyuan DiT": ((r"time_extra_emb\.", r"blocks\.0\.attn1\.to_q\."), ""),
    "Stable Diffusion": (
        (r"down_blocks\.\d\.resnets\.0\.(spatial_res_block\.)?conv1\.", r"time_embedding\."),
        ""),
    "Stable Cascade": ((r"down_blocks\.\d\.2\.attention\.to_q\.",), ""),
}  # fmt: skip
KINDS = (
    FileKind("a recording of the calibration node", "give it with --activation-stats",
             (r"\S+\.block_histogram ", r"\S+\.absmax ")),
    # What ModelPatchLoader takes and ControlNetLoader does not (comfy_extras/nodes_model_patch.py).
    FileKind(*PATCH, (r"(control_all_x_embedder\.|control_layers\.0\.|control_noise_refiner\.0\."
                      r"|controlnet_blocks\.0\.y_rms\.|controlnet_patch_embedding\."
                      r"|feature_embedder\.mid_layer_norm\.|lllite_conditioning1\.conv1\.)",),
             is_like_a_model=True),
    FileKind(*PATCH, (r"audio_proj\.proj1\.weight ", r"blocks\.0\.audio_cross_attn\.proj\.")),
    FileKind("a control net", "ComfyUI loads it with Load ControlNet Model, as it is",
             (r"(control_model\.|controlnet_|input_hint_block\.0\.|zero_convs\.0\.|lora_controlnet "
              r"|control_x_embedder\.|pos_embed_input\.|control_blocks\.0\.)",),
             is_like_a_model=True),
    FileKind("an IP-Adapter", "it goes into models/ipadapter",
             (r"(ip_adapter\.\d+\.|image_proj(_model)?\.(latents|layers\.0|proj)\b)",)),
    FileKind("a T2I adapter", "ComfyUI loads it with Load ControlNet Model, as it is",
             (r"(adapter\.)?body\.0\.(resnets\.0\.)?block1\.",)),
    FileKind("a motion module", "it is for AnimateDiff, as it is",
             (r"(down|up)_blocks\.0\.motion_modules\.0\.",)),
    *(
        FileKind(f"a model in the names of diffusers ({title})", OTHER_NAMES, keys, absent, True,
                 "in ComfyUI's")
        for title, (keys, absent) in DIFFUSERS_KEYS.items()
    ),
    *(
        FileKind("a text encoder", "ComfyUI loads it with Load CLIP, as it is", keys, TIME_STEP)
        for keys in TEXT_ENCODERS
    ),
    FileKind("a CLIP vision encoder", "ComfyUI loads it with Load CLIP Vision, as it is",
             (r"(vision_model\.encoder\.layers\.0\.|visual\.transformer\.resblocks\.0\.)",)),
    FileKind("an audio encoder", "ComfyUI loads it with its audio encoder loader, as it is",
             (r"feature_extractor\.conv_layers\.0\.",)),
    FileKind(*VAE, (r"(de|en)coder\.conv_in\.(\w+\.)?weight ",)),
    FileKind(*VAE, (r"(de|en)coder\.conv1\.weight ", r"(de|en)coder\.middle\.0\.")),
    FileKind(*VAE, (r"(de|en)coder\.(block|up_block|down_block|down|up)s?\.0\.",),
             absent=r"\S*(self_attn|cross_attn|attn_block|to_q)\."),
    FileKind(*VAE, (r"(de|en)coder\.(conv1|layers\.0)\.(weight(_[vg])? |parametrizations\.|conv\.)",
                    ),),
    FileKind(*VAE, (r"taesd_(de|en)coder\.",)),
    FileKind("a style model", "ComfyUI loads it with Load Style Model, as it is",
             (r"redux_up\.weight ", r"redux_down\.weight ")),
    FileKind("an upscaler", "ComfyUI loads it with Load Upscale Model, as it is",
             (r"((model\.)?1\.sub\.0\.(RDB1|conv)|body\.0\.rdb1\.conv1\.|RRDB_trunk\.0\."
              r"|layers\.0\.residual_group\.)",)),
)  # fmt: skip


def lora_kind(names: Iterable[str]) -> FileKind | None:
    """Tell a LoRA, and a model that has one beside its layers, by the names in a file."""
    names = list(names)
    count = sum(LORA_PART.match(name) is not None for name in names)
    if count and any(".base_layer." in name for name in names):
        return UNMERGED
    for title, part in OTHER_LORAS.items():
        others = sum(re.match(part, name) is not None for name in names)
        # Beside them each layer has an alpha.
        if 2 * others >= len(names) > 0 and count <= others:
            return FileKind(f"a LoRA of the kind {title}", f"--merge-lora does not merge {title}")
    return LORA if 2 * count >= len(names) > 0 else None


def kind_of_file(shapes: Mapping[str, tuple[int, ...]], *, is_model: bool) -> FileKind | None:
    """Tell what a file is that is no diffusion model; None for what may be one.

    shapes: {name: shape} of its tensors, those beside a diffusion model left out; is_model: whether
    they are recognised as a family's.
    """
    if shapes and shapes.keys() <= EMBEDDING_NAMES:
        return EMBEDDING_FILE
    if (lora := lora_kind(shapes)) is not None:
        return lora
    text = header_text(shapes)

    def there(key: str) -> bool:
        return re.search(rf"^(?:[\w-]+\.){{0,4}}?{key}", text, re.MULTILINE) is not None

    for kind in KINDS:
        if is_model and not kind.is_like_a_model:
            continue
        if all(map(there, kind.keys)) and not (kind.absent and there(kind.absent)):
            return kind
    return None


# ── nvfp4/asking/ask.py: Ask a ComfyUI about a file, in a process of its own ──────────────────────

# The environment variable that names a ComfyUI where --comfyui does not.
COMFYUI_ROOT = "COMFYUI_ROOT"
# What runs in the child. tools/single_file.py puts the text itself here.
ASKER = r'''"""Ask a ComfyUI what it makes of files: the program that runs in ComfyUI's own Python.

The package never imports this module: `ask` sends its text to the child, and the single file
carries it as text. It needs the standard library, torch and ComfyUI alone, and reads no file but
ComfyUI's own. A question has the names, dtypes and shapes of a file's tensors and the values of
small ones; all others are tensors on torch's meta device, which have no values and take no memory.
ComfyUI's own loading code runs unchanged over them, with its model on the meta device, too.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
import sys

# Events that Python tells its audit hooks before anything reaches the network.
NETWORK_EVENTS = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "socket.sendmsg",
)  # fmt: skip
# How torch names the dtypes of safetensors; an older torch may lack the last.
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
# How torch tells of a tensor that it refuses, and of the shape that the parameter has.
MISMATCH = re.compile(r"size mismatch for (.+?): .*current model is torch\.Size\((.*)\)")
# Parts of a layer that change no weight where ComfyUI does not read them.
HARMLESS_PARTS = ("bias", "input_scale", "scale_input", "comfy_quant", "comfy_attention")
# Tensors that say how others are stored: they are read before any module is loaded.
CONFIGURATIONS = ("comfy_quant", "scaled_fp8")
# Parameters of text encoders that ComfyUI itself does not miss (comfy/sd.py, class CLIP).
NOT_MISSED = (".logit_scale", ".transformer.text_projection.weight")


def refuse_network(event: str, _: object) -> None:
    """Stop whatever would use the network, as an audit hook."""
    if event in NETWORK_EVENTS:
        raise OSError("ComfyUI is asked without network")


def import_comfyui(folder: str) -> None:
    """Import what loads models in the ComfyUI of a folder, on the CPU and without custom nodes.

    Raises ModuleNotFoundError for what its Python lacks, and whatever else an import raises.
    """
    sys.argv = ["main.py"]
    sys.path.insert(0, folder)
    from comfy.cli_args import args

    # Read when comfy.model_management is imported: no GPU is looked for, and none gets a context.
    args.cpu = True
    # Without comfy_kitchen, ComfyUI goes on, and fails at the first quantised layer.
    import comfy.quant_ops
    import comfy.sd  # noqa: F401
    import comfy_kitchen  # noqa: F401


def tensor_of(dtype: str, shape: list, values: str | None) -> object:
    """Make a tensor of base64 values, or one on the meta device where these are None.

    Raises LookupError for a dtype that torch, or this program, does not know.
    """
    import torch

    kind = getattr(torch, TORCH_NAMES.get(dtype, ""), None)
    if kind is None:
        raise LookupError(f"torch here has no tensors of dtype {dtype}")
    if not values:
        return torch.empty(shape, dtype=kind, device="cpu" if values == "" else "meta")
    data = torch.frombuffer(bytearray(base64.b64decode(values)), dtype=torch.uint8)
    return data.view(kind).reshape(shape)


class Load:
    """Hold one call of load_state_dict: the module, what it was given, and what it said.

    part: "" for the diffusion model, else what the module is; given: {key: tensor}.
    """

    def __init__(self, part: str, module: object, given: dict):
        self.part, self.module, self.given = part, module, dict(given)
        self.missing, self.unexpected, self.errors = [], [], []

    def run(self, load: object, state: dict, *args: object, **kwargs: object) -> tuple:
        """Load onto the meta device; what torch refuses is kept as `errors`, one for each tensor.

        Returns missing and unexpected keys, as torch does.
        """
        # Parts that ComfyUI made on the CPU could not take tensors without values.
        self.module.to("meta")
        state = dict(state)
        try:
            self.missing, self.unexpected = map(list, load(self.module, state, *args, **kwargs))
        except RuntimeError as error:
            # torch collects all that it refuses under one heading.
            heading, *lines = str(error).splitlines()
            self.errors = [line.strip() for line in lines] or [heading]
            # What is missing it tells only of a load that it does not refuse.
            refused = [found[1] for found in map(MISMATCH.match, self.errors) if found]
            if len(refused) == len(self.errors):
                rest = {key: value for key, value in state.items() if key not in refused}
                missing, self.unexpected = map(list, load(self.module, rest, *args, **kwargs))
                self.missing = [key for key in missing if key not in refused]
        return self.missing, self.unexpected

    def troubles(self, names: dict) -> list:
        """List what is wrong with a load: [kind, name in the file, what is there instead].

        names: {id of a tensor: its name in the file}. Parameters that the file lacks go by the
        names that they have in ComfyUI's model.
        """
        found, told = {}, set()
        for error in self.errors:
            key = MISMATCH.match(error)
            if key:
                told.add(key[1])
                error = f"{shown(self.given[key[1]])}, ComfyUI's is {key[2]}"
            found[key[1] if key else ""] = ["stops", error]
        modules = dict(self.module.named_modules())
        for key in self.given.keys() - told:
            path, _, leaf = key.rpartition(".")
            kind, detail = self.judge(modules.get(path), path, leaf, self.given[key])
            if kind:
                found[key] = [kind, detail]
                told.add(key)
        # What lies beside a weight that is told already needs no line of its own.
        beside = [key for key in self.unexpected if key.rpartition(".")[0] + ".weight" not in told]
        found |= {key: kind for key in beside if (kind := self.judge_unexpected(modules, key))}
        found |= {key: ["missing", ""] for key in self.lacking(modules)}
        return [
            [kind, names.get(id(self.given.get(key)), key), detail]
            for key, (kind, detail) in sorted(found.items())
        ]

    def judge_unexpected(self, modules: dict, key: str) -> list:
        """Tell what it means that no module took a tensor: kind and detail, [] for nothing."""
        path, _, leaf = key.rpartition(".")
        if hasattr(getattr(modules.get(path), "weight", None), "_qdata"):
            return [] if leaf in HARMLESS_PARTS else ["unread", ""]
        # Files of text encoders have a tokenizer's data and heads besides.
        return [] if self.part else ["unexpected", ""]

    def lacking(self, modules: dict) -> list:
        """List the parameters that the file lacks."""
        # Layers of quantised models without a weight are no missing keys: ComfyUI only logs them.
        empty = [
            f"{path}.weight" for path, module in modules.items()
            if hasattr(module, "_orig_shape") and getattr(module, "weight", 0) is None
        ]  # fmt: skip
        keys = [*self.missing, *empty]
        if not self.part:
            return keys
        # Some checkpoints have but a projection of an encoder, which is loaded with another file.
        is_whole = len(keys) < len(self.given)
        return [key for key in keys if is_whole and not f".{key}".endswith(NOT_MISSED)]

    def judge(self, module: object, path: str, leaf: str, tensor: object) -> tuple:
        """Tell how a tensor does not go with the parameter that it became: kind and detail.

        Codes in a plain parameter are "unpacked", as nothing scales them; "shape" is a weight that
        fits its own format, but not ComfyUI's layer. ("", "") for what is as it should be.
        """
        import torch

        held = getattr(module, leaf, None)
        if not isinstance(held, torch.Tensor):
            return "", ""
        layout = getattr(held, "_qdata", None)
        if layout is None and held.is_floating_point() and self.holds_codes(path, tensor):
            return "unpacked", f"{shown(tensor)} in {type(module).__name__}"
        wanted = tuple(getattr(module, "_orig_shape", held.shape))
        if leaf != "weight" or len(wanted) != 2 or not hasattr(module, "_orig_shape"):
            return "", ""
        there, known = tuple(tensor.shape), getattr(held, "layout_cls", None)
        if layout is not None and hasattr(known, "get_storage_shape"):
            wanted = tuple(known.get_storage_shape(wanted))
        elif layout is not None and not layout.is_floating_point():
            # Packed integers of other layouts have fewer columns than their layer: compare rows.
            there, wanted = there[:1], wanted[:1]
        same = there == wanted
        return ("", "") if same else ("shape", f"{shown(tensor)}, ComfyUI's is {list(wanted)}")

    def holds_codes(self, path: str, tensor: object) -> bool:
        """Tell whether a tensor of this module is packed: numbers only with a scale of its own.

        Plain FP8 has no scale, and its numbers are the weights.
        """
        kind = str(tensor.dtype)
        if "float8" not in kind:
            return kind in ("torch.uint8", "torch.int8")
        scales = ("weight_scale", "scale_weight", "comfy_quant")
        return any(f"{path}.{part}" in self.given for part in scales)


def shown(tensor: object) -> str:
    """Write dtype and shape of a tensor, as in "uint8 [16, 128]"."""
    return f"{str(tensor.dtype).replace('torch.', '')} {list(tensor.shape)}"


class Watch:
    """Note what ComfyUI detects and loads, and have it build its models on the meta device.

    Functions of ComfyUI and torch are replaced for the rest of the process, which serves for this
    alone. loads: a Load for each state dict since `begin`; detected: the class, "" for
    none, and the fields of the last configuration that was read; untold: troubles with parts that
    could not be built.
    """

    def __init__(self):
        import comfy.model_base
        import comfy.model_detection
        import comfy.sd
        import torch

        self.begin()
        self.init, self.load = comfy.model_base.BaseModel.__init__, torch.nn.Module.load_state_dict
        self.detect = comfy.model_detection.model_config_from_unet_config
        watch, signature = self, inspect.signature(self.init)

        def init_on_meta(model: object, *args: object, **kwargs: object) -> None:
            bound = signature.bind(model, *args, **kwargs)
            bound.arguments["device"] = "meta"
            watch.init(*bound.args, **bound.kwargs)

        def load_watched(module: object, state: dict, *args: object, **kwargs: object) -> tuple:
            watch.loads.append(Load(watch.part, module, state))
            return watch.loads[-1].run(watch.load, state, *args, **kwargs)

        comfy.model_base.BaseModel.__init__ = init_on_meta
        torch.nn.Module.load_state_dict = load_watched
        comfy.model_detection.model_config_from_unet_config = self.detect_watched
        comfy.sd.CLIP = self.load_encoder

    def begin(self) -> None:
        """Forget what was noted of the file before."""
        self.part, self.loads, self.detected, self.untold = "", [], ("", {}), []

    def detect_watched(self, fields: dict, *args: object, **kwargs: object) -> object:
        """Find the class for a configuration as ComfyUI does, and note both."""
        # Noted first: the dtype to compute in, which the file does not decide, is added later.
        texts = {key: str(value) for key, value in fields.items()}
        config = self.detect(fields, *args, **kwargs)
        self.detected = ("" if config is None else type(config).__name__, texts)
        return config

    def load_encoder(
        self, target: object, state_dict: dict, model_options: dict, **_: object
    ) -> None:
        """Build and load a text encoder as comfy.sd.CLIP does, without its tokenizer."""
        import torch

        self.part = "text encoder"
        made = {"dtype": torch.float16, "device": "meta", "model_options": model_options}
        try:
            model = target.clip(**{**target.params, **made})
        except Exception as error:  # noqa: BLE001  (it need not be fit for the meta device)
            self.untold.append(["partly", self.part, f"{type(error).__name__}: {error}"])
        else:
            model.load_state_dict(state_dict, strict=False)


def load_file(state: dict, metadata: dict) -> None:
    """Load a file as the node does that people take for it, into a watched ComfyUI.

    That is Load Diffusion Model, or Load Checkpoint where other things lie beside the model's
    prefix; the VAE of a checkpoint is not loaded.
    """
    import comfy.model_detection
    import comfy.sd

    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    inside = sum(name.startswith(prefix) for name in state)
    if 0 < inside < len(state):
        comfy.sd.load_state_dict_guess_config(state, output_vae=False, metadata=metadata)
    else:
        comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata)


def other_kind(state: dict) -> str:
    """Name the text encoder that a file is, "" for all else that is no diffusion model."""
    import comfy.sd

    model = comfy.sd.detect_te_model(state)
    return f"a text encoder ({model.name})" if model else ""


def ask_about(watch: Watch, file: dict) -> dict:
    """Tell what ComfyUI makes of one file.

    file: "metadata", and "tensors" as {name: [dtype, shape, values]}. Returns the fields of a
    `Taken` (see `answers`). A file with a tensor that cannot be made here is left "unsure".
    """
    watch.begin()
    try:
        state = {name: tensor_of(*facts) for name, facts in file["tensors"].items()}
    except LookupError as error:
        nothing = {"recognised": "", "configuration": {}, "troubles": [], "unsure": error.args[0]}
        return nothing | {"tensors": len(file["tensors"]), "left": 0}
    # The tensors stay alive here, so that no other gets the identity of one of them.
    names, kept, stopped = (
        {id(tensor): name for name, tensor in state.items()},
        [*state.values()],
        "",
    )
    try:
        load_file(state, file["metadata"])
    except Exception as error:  # noqa: BLE001  (whatever ComfyUI raises is the answer)
        stopped = f"{type(error).__name__}: {error}"
    troubles = [trouble for load in watch.loads for trouble in load.troubles(names)] + watch.untold
    troubles += [["stops", "", stopped]] if stopped else []
    taken = {id(tensor) for load in watch.loads for tensor in load.given.values()}
    left = [
        name for key, name in names.items()
        if key not in taken and name.rpartition(".")[2] not in CONFIGURATIONS
    ]  # fmt: skip
    # Whatever needs values fails on the meta device alone, and tells nothing of the file.
    unsure = [detail for kind, _, detail in troubles if kind == "stops" and "meta tensor" in detail]
    recognised, fields = watch.detected
    if not (fields or stopped):
        recognised = other_kind(dict(zip(file["tensors"], kept, strict=True)))
    return {
        "recognised": recognised,
        "configuration": fields,
        "tensors": len(kept),
        "left": len(left),
        "troubles": troubles,
        "unsure": unsure[0] if unsure else "",
    }


def answer(asked: dict) -> dict:
    """Answer a question: {"files": {key: what ComfyUI makes of it}}, or why ComfyUI is no help.

    asked: "folder" of ComfyUI, and "files". "absent" names a module that its Python lacks,
    "broken" is another error of the import.
    """
    try:
        import_comfyui(asked["folder"])
    except ModuleNotFoundError as error:
        return {"absent": error.name or str(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001  (its modules may raise anything)
        return {"broken": f"{type(error).__name__}: {error}"}
    watch = Watch()
    return {"files": {key: ask_about(watch, file) for key, file in asked["files"].items()}}


def run_asker(asked: dict) -> None:
    """Answer a question on stdout, where nothing else is printed, and end the process.

    What ComfyUI prints goes to stderr instead.
    """
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.addaudithook(refuse_network)
    json.dump(answer(asked), private)
    private.close()
    sys.stderr.flush()
    # ComfyUI's threads and libraries are not waited for.
    os._exit(0)
'''
# The child's command: the program comes with the question, as command lines are short on Windows.
BOOT = (
    "import json, sys; asked = json.load(sys.stdin); "
    "exec(compile(asked.pop('program'), 'asker.py', 'exec')); run_asker(asked)"
)
# Where a ComfyUI has its own Python, beside its folder in the portable version for Windows.
INTERPRETERS = (
    "venv/Scripts/python.exe", ".venv/Scripts/python.exe", "../python_embeded/python.exe",
    "venv/bin/python", ".venv/bin/python",
)  # fmt: skip
# Nothing is fetched, and no GPU is seen: an empty value would be none at all on Windows.
QUIETLY = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1",
}  # fmt: skip
# Seconds. A first import from a slow disk takes a minute or two; after that an answer takes five.
LONGEST_ANSWER = 300


def find_comfyui(folder: Path | None) -> ComfyUI | None:
    """Find the ComfyUI to ask: that of --comfyui, else of COMFYUI_ROOT, else None.

    Raises ConvertError where --comfyui is no ComfyUI's folder; where the environment names none,
    the result tells so in `absent`. Only its version is read.
    """
    given = os.environ.get(COMFYUI_ROOT)
    named_by = COMFYUI_ROOT if folder is None else "--comfyui"
    if folder is None and not given:
        return None
    folder = input_path(given) if folder is None else folder
    if not is_comfyui(folder):
        inner = folder / "ComfyUI"
        instead = f"give {inner}" if is_comfyui(inner) else "give the folder that has main.py"
        told = f"{folder} is no ComfyUI folder, with main.py and comfy/ in it; {instead}"
        if named_by != COMFYUI_ROOT:
            raise ConvertError(f"{named_by}: {told}")
        return ComfyUI(folder=folder, named_by=named_by, python=Path(), version="", absent=told)
    folder = folder.resolve()
    places = (folder / place for place in INTERPRETERS)
    python = next((place for place in places if place.is_file()), Path(sys.executable))
    version = version_of(folder)
    return ComfyUI(folder=folder, named_by=named_by, python=python, version=version)


def is_comfyui(folder: Path) -> bool:
    """Tell whether a folder looks like ComfyUI's."""
    return (folder / "comfy").is_dir() and (folder / "main.py").is_file()


def version_of(folder: Path) -> str:
    """Read the version that a ComfyUI tells in comfyui_version.py, "" if there is none."""
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"""__version__ = ["']([\w.+-]{1,40})["']""", text)
    return found[1] if found else ""


def ask_about_job(comfyui: ComfyUI | None, job: Job) -> Answer | None:
    """Ask about the output of a job and about its source; None without a ComfyUI.

    Raises ConvertError where the output would not load, or another model is recognised than in the
    source. A --dry-run tells that as a note instead.
    """
    if comfyui is None:
        return None
    source = question_of_model(job.model, is_source=True)
    answer = answer_of(comfyui, {"file": question_of_job(job), "source": source})
    if answer.problems and not job.options.dry_run:
        raise ConvertError(*answer.problems)
    return answer


def ask_about_file(
    comfyui: ComfyUI | None, model: Model, source: Model | None, kind: FileKind | None = None
) -> Answer | None:
    """Ask about a file that is there, and about its source if that is given.

    kind: what it is instead of a diffusion model. Other nodes load most of these, and are not
    asked; a model in the names of diffusers may be recognised.
    """
    if comfyui is None:
        return None
    if kind and kind.what_to_do != OTHER_NAMES:
        return Answer(
            comfyui=comfyui, silence=f"it is asked about diffusion models, not {kind.title}"
        )
    files = {"file": question_of_model(model)}
    if source is not None:
        files["source"] = question_of_model(source, is_source=True)
    return answer_of(comfyui, files)


def answer_of(comfyui: ComfyUI, files: dict[str, dict]) -> Answer:
    """Ask, and make the Answer; raises ConvertError where --comfyui asked and none came."""
    if comfyui.absent:
        return Answer(comfyui=comfyui, silence=comfyui.absent)
    try:
        return Answer(comfyui=comfyui, **ask(comfyui, files))
    except ConvertError as error:
        if comfyui.named_by != COMFYUI_ROOT:
            raise ConvertError(*(f"{comfyui.title}: {text}" for text in error.problems)) from error
        return Answer(comfyui=comfyui, silence="; ".join(error.problems))


def ask(comfyui: ComfyUI, files: dict[str, dict]) -> dict[str, Taken]:
    """Run the child with a question, and return what it makes of each file.

    Raises ConvertError with one line for whatever keeps it from answering.
    """
    question = {"program": ASKER, "folder": str(comfyui.folder), "files": files}
    try:
        done = subprocess.run(
            [comfyui.python, "-B", "-c", BOOT],
            input=json.dumps(question).encode(),
            capture_output=True,
            check=False,
            cwd=comfyui.folder,
            env=os.environ | QUIETLY,
            timeout=LONGEST_ANSWER,
        )
    except subprocess.TimeoutExpired:
        raise ConvertError(f"gave no answer within {LONGEST_ANSWER} seconds") from None
    except OSError as error:
        raise ConvertError(f"{comfyui.python} cannot be started: {error}") from error
    try:
        answered = json.loads(done.stdout)
        if "files" in answered:
            return {key: taken_of(answered["files"][key]) for key in files}
        problem = import_problem(comfyui, answered)
    except (KeyError, TypeError, ValueError, RecursionError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        said = f": {one_line(last[0])[:EXCERPT]}" if last else ""
        problem = f"its process ended with status {done.returncode} and no answer{said}"
    raise ConvertError(problem)


def taken_of(found: dict) -> Taken:
    """Make a record of what the child tells of one file; raises TypeError for anything else."""
    troubles = tuple(Trouble(*map(one_line, trouble)) for trouble in found["troubles"])
    return dataclasses.replace(Taken(**found), troubles=troubles)


def import_problem(comfyui: ComfyUI, answered: dict) -> str:
    """Say why the child could not import ComfyUI."""
    if "absent" not in answered:
        return f"cannot be imported by {comfyui.python}: {one_line(answered['broken'])[:EXCERPT]}"
    absent = one_line(answered["absent"])
    if absent.split(".")[0] == "comfy":
        return f"has no {absent}: it is damaged, or too old for quantised files (0.10 or newer)"
    return (
        f"its Python ({comfyui.python}) has no module {absent}; install what {comfyui.folder}"
        f"{os.sep}requirements.txt lists, or run this with the Python that ComfyUI runs with"
    )


# ── nvfp4/ranks.py: Processes of a torchrun: which one this is, and how they meet ─────────────────

# One rank may wait for another for hours, where layers take unequal time. A rank that dies closes
# its connections, and is noticed at once without any timeout.
LONGEST_WAIT = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Tell which process this is among those that `torchrun` started.

    rank: its number among all processes, 0 for one that runs alone.
    size: how many processes there are, on all machines.
    local: its number on its own machine, by which it picks a GPU; None without torchrun.
    """

    rank: int = 0
    size: int = 1
    local: int | None = None

    @property
    def is_first(self) -> bool:
        """Tell whether this process is the one that prints, and that names the finished files."""
        return self.rank == 0

    def gather(self, value: object = None) -> list:
        """Exchange a value with all ranks, waiting until each has come here.

        value: anything that can be pickled; without one, the call just waits for the others.
        Returns every rank's value in the order of their numbers. Raises ConvertError where another
        rank has ended, or LONGEST_WAIT is over. All ranks have to call it equally often.
        """
        if self.size == 1:
            return [value]
        values = [None] * self.size
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ConvertError(f"rank {self.rank}: stopped, as another rank did") from error
        return values


# The one process of a conversion that was started without torchrun.
ALONE = Ranks()


def read_ranks() -> Ranks:
    """Tell which process this is by the environment variables that `torchrun` sets.

    Nothing else in the package reads them. Returns ALONE if TORCHELASTIC_RUN_ID is not set: other
    launchers set RANK, too, for purposes of their own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Ranks(*(int(os.environ[name]) for name in names))


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other processes of a `torchrun` for the length of the `with` block.

    Yields this process's Ranks. The process group is taken down at the end, after an error too, so
    that the others, which may be waiting in `gather`, learn of it. Without torchrun this does
    nothing.
    """
    ranks = read_ranks()
    if ranks.local is None:
        yield ranks
        return
    torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()


# ── nvfp4/encode/compute.py: Choose a device, and spread work over threads and row chunks ─────────

# From this effort on, in weights of the plain search, compiling for the CPU saves more than the
# seconds it takes.
COMPILE_FROM = 100_000_000
# Rounding a weight by statistics takes about as long as this many weights of the plain search.
FEEDBACK_COST = 100
# Cache entries kept: statistics and feedback matrices of the last 2 (CPU) or 4 (GPU) inputs; q, k
# and v share one.
RECALLED = {"cpu": 4, "cuda": 8}
# Weights that a thread works on at once: measured best on two cores.
CPU_CHUNK = 1 << 19
# More threads only wait for Python's lock: measured slower again on 16 cores.
CPU_THREADS = 4
# Weights that a GPU works on at once: 256 MB in float32, and as much for each intermediate result.
CUDA_CHUNK = 1 << 26


@contextlib.contextmanager
def single_threaded() -> Iterator[int]:
    """Keep torch's operations to the thread that calls them; yield how many threads there were.

    Whoever works on chunks of rows in own threads wants this: torch's threads would contend for the
    same cores. What is summed over a whole tensor comes out the same on any number of cores, too.
    Torch has one setting for a process, so other threads of the program are affected meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class Compute:
    """Map functions over row chunks: a CPU core each, or large ones on a GPU.

    A chunk's every operation stays in one core's cache, which beats torch's own threads four to
    one; results do not depend on how many threads there are. It is a context manager: leaving it
    stops the threads and drops chunks that have not begun.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        search: Callable = amax_block_scales,
        threads: int = 1,
    ):
        """Start a pool of threads.

        device: where weights are encoded; dtype: what they are cast to first (--quant-dtype);
        search: one of SCALE_SEARCHES; threads: those that `single_threaded` yields, of which a CPU
        uses up to CPU_THREADS; a GPU has one.
        """
        self.device, self.dtype, self.search, self.notes = device, dtype, search, []
        # What `recall` made last, the newest at the end: layers that share an input come in a row.
        self.recalled: dict[object, object] = {}
        # Set by `compile`, and only for float32 on a CPU.
        self.kernels: Kernels | None = None
        self.rounder = Rounder()
        on_cpu = device.type == "cpu"
        self.chunk = CPU_CHUNK if on_cpu else CUDA_CHUNK
        self.pool = ThreadPoolExecutor(min(CPU_THREADS, threads) if on_cpu else 1)

    def __enter__(self) -> Compute:
        """Return the Compute itself; its threads exist already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads; chunks that have not begun are dropped."""
        self.pool.shutdown(cancel_futures=True)

    def compile(self, plans: list[TensorPlan]) -> None:
        """Use compiled kernels where they pay; add a note where something keeps them away.

        plans: what will be encoded. Triton is used on a GPU if any layer is rounded by statistics;
        numba on a CPU for float32, if the effort is COMPILE_FROM or more. Missing or failing
        compilers are no error.
        """
        if self.device.type == "cuda" and any(plan.moments for plan in plans):
            try:
                self.rounder = Rounder(compile_rounder())
            except ImportError:
                faster = "pip install triton (on Windows triton-windows) makes rounding by"
                self.notes.append(Note(f"{faster} statistics several times faster", Rank.HINT))
        plain = self.device.type == "cpu" and self.dtype is torch.float32
        if not plain or sum(map(work, plans)) < COMPILE_FROM:
            return
        try:
            self.kernels = compile_kernels()
            self.rounder = Rounder(self.kernels.round_columns)
        except ImportError:
            what = "pip install numba makes this several times faster, same result"
            self.notes.append(Note(what, Rank.HINT))
        except RuntimeError as error:
            # A broken numba is no reason not to convert: torch's operations do the same.
            self.notes.append(Note(f"slower, same result: numba: {error}", Rank.NOTE))

    def recall(self, key: Moments | tuple, make: Callable) -> object:
        """Return what `make(key, device)` returns, from memory if it was made lately.

        Up to RECALLED results are kept, those used last. Keys are Moments, for the statistics of an
        input, or tuples, for the feedbacks made of them.
        """
        if key in self.recalled:
            # Inserted again, it counts as the newest.
            self.recalled[key] = self.recalled.pop(key)
            return self.recalled[key]
        while len(self.recalled) >= RECALLED[self.device.type]:
            del self.recalled[next(iter(self.recalled))]
        self.recalled[key] = make(key, self.device)
        return self.recalled[key]

    def map(
        self, function: Callable, weight: torch.Tensor, *more: torch.Tensor, rows: int = 0
    ) -> list:
        """Call a function for every chunk of rows of a matrix; return the results in order.

        weight: [N, K]; more: tensors of N rows that are split in the same places, each an argument
        of the function; rows: how many a chunk has on a CPU, while a GPU takes all at once; without
        it, chunks have as many rows as CPU_CHUNK or CUDA_CHUNK weights fill.
        """
        if rows:
            rows = rows if self.device.type == "cpu" else len(weight)
        # A row that is longer than a chunk is one of its own.
        rows = rows or max(1, self.chunk // weight.shape[1])
        return list(self.pool.map(function, *(tensor.split(rows) for tensor in (weight, *more))))


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Choose the device by its name in --device; "auto" is a GPU if there is one.

    The ranks of a machine take its GPUs in turn, unless one is asked for by number. Raises
    ConvertError for a CUDA device that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConvertError(f"--device {name}: torch sees {count} CUDA devices here")
    if name == "cuda" and ranks.local is not None:
        return torch.device("cuda", ranks.local % count)
    return device


def describe_device(device: torch.device) -> str:
    """Name a device for people: "cpu (2 cores)", or what the driver calls a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{device.type} ({cores} core{'s' * (cores > 1)})"


def work(plan: TensorPlan) -> int:
    """Estimate a layer's encoding effort in weights of the plain search.

    Each weight counts once, and FEEDBACK_COST times if the layer is rounded by statistics.
    """
    return math.prod(plan.ref.shape) * (FEEDBACK_COST if plan.moments else 1)


# ── nvfp4/stages.py: A hook for whoever wants to know what a conversion is busy with ──────────────

# Called with a stage's name, it returns a context that lasts while that stage works on one piece:
# "read", "encode", "write", "sync" (to bring what was written to the disk) or "verify". Reading and
# writing have a thread each, so that stages overlap; one stage is never in two contexts at once.
Observe = Callable[[str], AbstractContextManager]
NOTHING = nullcontext()


def unobserved(_: str) -> AbstractContextManager:
    """Let a stage go by: what a conversion does where nobody asks."""
    return NOTHING


# ── nvfp4/encode/pieces.py: Split tensors into pieces, and read them ahead of the work ────────────

# Pieces up to this many bytes take none of the reused buffers; at most this many pieces are read
# ahead.
SMALL_PIECE, MOST_AHEAD = 1 << 20, 32
# Tensors that are only cast or copied are read in pieces of this size, whatever their own is.
PIECE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Name what is read and worked on at once: bytes [begin, end) of a planned tensor."""

    plan: TensorPlan
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Return its size in the source, in bytes."""
        return self.end - self.begin


def tensors_of_rank(plans: list[TensorPlan], ranks: Ranks) -> list[TensorPlan]:
    """Choose a rank's tensors, in source order.

    The costliest are dealt first, each to the rank that has least so far; the cost is bytes read,
    bytes written and the format's encoding cost. Biases that go along with their layers are not
    among them. Every rank gets the same answer without a word between them.
    """
    along = {plan.bias.ref.name for plan in plans if plan.bias}
    plans = [plan for plan in plans if plan.ref.name not in along]
    loads, mine = [0] * ranks.size, set()
    costs = {
        plan.ref.name: plan.ref.nbytes
        + bytes_in_output(plan)
        + plan.precision.encoding_cost * math.prod(plan.ref.shape)
        for plan in plans
    }
    # Every rank deals out all tensors the same way, names deciding ties, and keeps its own.
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += costs[name]
        if rank == ranks.rank:
            mine.add(name)
    return [plan for plan in plans if plan.ref.name in mine]


def pieces_of(plan: TensorPlan) -> Iterator[Piece]:
    """Split a tensor into the pieces it is read in.

    A layer that is quantised is one piece, because its scale depends on all of it, and so is a
    tensor that LoRAs are merged into. Other tensors come in pieces of up to PIECE_BYTES, or of a
    whole row where one is larger and the tensor has scales by rows.
    """
    ref = plan.ref
    size = ref.nbytes if plan.is_quantised or ref.patches else PIECE_BYTES
    if ref.coding and ref.coding.parts:
        # Scales by rows or blocks belong to whole rows.
        row = max(1, ref.nbytes // ref.shape[0])
        size = max(1, size // row) * row
    # An empty tensor has no piece: there is nothing to read or to write.
    for begin in range(0, ref.nbytes, max(size, 1)):
        yield Piece(plan=plan, begin=begin, end=min(begin + size, ref.nbytes))


def read_piece(piece: Piece, buffer: torch.Tensor) -> torch.Tensor:
    """Fill a buffer with a piece's bytes and return them as the caller needs them.

    buffer: uint8, at least as large as the piece. Returns a view of it, or float32 where FP8 is
    decoded or LoRAs are merged: [N, K] for a quantised layer, flat floats for what is to be cast,
    flat bytes for what is copied. Raises ConvertError where the file cannot be read or has changed.
    """
    ref, size = piece.plan.ref, piece.nbytes
    fill(ref, piece.begin, memoryview(buffer.numpy())[:size])
    # Tensors that are copied as bytes may have dtypes that TORCH_DTYPES does not list.
    data = buffer[:size]
    if ref.is_changed:
        first = piece.begin * ref.shape[0] // ref.nbytes if ref.shape else 0
        data = changed(ref, data.view(TORCH_DTYPES[ref.dtype]), first)
    elif piece.plan.dtype != ref.dtype or piece.plan.is_quantised:
        data = data.view(TORCH_DTYPES[ref.dtype])
    return data.view(ref.shape) if piece.plan.is_quantised else data


def read_ahead(
    pieces: Iterable[Piece], buffers: int, *, pinned: bool = False, observe: Observe = unobserved
) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Read pieces in order into reused buffers, while the caller works on one.

    buffers: how many there are, one with the caller and the others being filled; pinned: in memory
    that a GPU copies from faster; observe: told of each "read". Small pieces take no buffer, or a
    bias between two weights would keep the second from being read while the first is worked on.
    Yields (piece, its data as `read_piece` returns it); the data is valid until the next is asked
    for.
    """

    def read(piece: Piece, buffer: torch.Tensor) -> torch.Tensor:
        """Read a piece in the reader's thread, and let an observer time it."""
        with observe("read"):
            return read_piece(piece, buffer)

    # All buffers are as large as the largest piece; pinned memory copies to a GPU faster.
    pieces = deque(pieces)
    size = max((piece.nbytes for piece in pieces), default=0)
    free = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(buffers)]
    waiting = deque()
    with ThreadPoolExecutor(1) as reader:
        while pieces or waiting:
            while pieces and len(waiting) < MOST_AHEAD:
                small = pieces[0].nbytes <= SMALL_PIECE
                if not small and not free:
                    break
                piece = pieces.popleft()
                buffer = torch.empty(SMALL_PIECE, dtype=torch.uint8) if small else free.pop()
                waiting.append((piece, buffer, reader.submit(read, piece, buffer)))
            # result() raises here what reading raised in the other thread.
            piece, buffer, data = waiting.popleft()
            yield piece, data.result()
            # The caller is done with this buffer now; those of small pieces are dropped.
            if buffer.numel() > SMALL_PIECE:
                free.append(buffer)


# ── nvfp4/encode/float16.py: Find out whether float16 holds what is to be float16 ─────────────────

# The least number that rounds to infinity: halfway between float16's largest, 65504, and 65536.
HALF_OVERFLOWS = 65520.0


def cast(piece: Piece, data: torch.Tensor) -> torch.Tensor:
    """Cast a piece of a tensor that is not quantised to its output dtype.

    data: what `read_ahead` gave for the piece: bytes where nothing has to be cast, which are
    returned as they are, else floats. Raises Float16OverflowError, with the tensor's name, where
    casting makes infinities of finite values; infinities of the source pass.
    """
    plan = piece.plan
    if plan.dtype == plan.ref.dtype and not plan.ref.is_changed:
        return data
    result = data.to(TORCH_DTYPES[plan.dtype])
    # One quick pass rules nearly all out; it gives NaN where it cannot tell, which is no less.
    suspect = plan.dtype == "F16" and not largest_magnitude(data) < HALF_OVERFLOWS
    if suspect and (result.isinf() & data.isfinite()).any():
        raise Float16OverflowError(plan.ref.name)
    return result


def float16_overflows(plans: Iterable[TensorPlan], options: Options) -> frozenset[str]:
    """Name the tensors that are to be float16 and do not fit.

    plans: all tensors; those that cannot overflow are not read. Reads the others once, piece by
    piece, and writes nothing. The names are those of the source; layers' biases are found among the
    plans like any tensor.
    """
    pieces = [piece for plan in plans if plan.may_overflow for piece in pieces_of(plan)]
    found = set()
    if not pieces:
        return frozenset()
    nbytes = sum(piece.nbytes for piece in pieces)
    with progress_bar("checking float16", nbytes, quiet=options.quiet) as bar:
        for piece, data in read_ahead(pieces, options.buffers):
            try:
                cast(piece, data)
            except Float16OverflowError:
                found.add(piece.plan.ref.name)
            bar.update(piece.nbytes, printable(piece.plan.ref.name))
    return frozenset(found)


# ── nvfp4/guides/columns.py: Name the columns of a calibration summary ────────────────────────────

def percentile_key(percentile: float) -> str:
    """Name a percentile as calibration summaries name their columns: 99.9 -> "p99_9".

    percentile: from 0 to 100; six significant digits of it count.
    """
    return f"p{percentile:g}".replace(".", "_")


# ── nvfp4/quantisers.py: Recognise models that other programs quantised, by the names of what they 

# What a layer's tensors end in, all of a row, where a program quantised it. The first row that
# fits counts: AWQ has what GPTQ has but for one.
QUANTISERS = (
    ("Nunchaku SVDQuant", ("qweight", "wscales")),
    ("GPTQ", ("qweight", "qzeros", "g_idx")),
    ("AWQ", ("qweight", "qzeros")),
    ("GPTQ or AWQ", ("qweight", "scales")),
    ("HQQ", ("W_q",)),
    ("optimum-quanto", ("weight._data", "weight._scale")),
    ("torchao", ("_weight_qdata",)),
    ("bitsandbytes NF4", ("weight.quant_state.bitsandbytes__nf4",)),
    ("bitsandbytes FP4", ("weight.quant_state.bitsandbytes__fp4",)),
    ("bitsandbytes 4-bit", ("weight.absmax", "weight.quant_map")),
    ("bitsandbytes INT8", ("SCB",)),
    ("compressed-tensors", ("weight_packed",)),
    ("LightX2V NVFP4", ("weight_global_scale",)),
    ("EXL2", ("q_weight", "q_scale")),
    ("EXL3", ("trellis",)),
    ("AQLM", ("codes", "codebooks")),
    ("SDNQ", ("scale", "zero_point")),
    ("SDNQ", ("svd_up", "svd_down")),
    ("DFloat11", ("encoded_exponent", "sign_mantissa")),
)


def quantiser_of(names: Iterable[str]) -> tuple[str, list[str]]:
    """Find which program quantised a model: its name, and the layers; or "" and no layers.

    names: of the diffusion model's tensors.
    """
    layers = defaultdict(set)
    suffixes = sorted({suffix for _, row in QUANTISERS for suffix in row}, key=len, reverse=True)
    for name in names:
        for suffix in suffixes:
            if name.endswith(f".{suffix}"):
                layers[name.removesuffix(f".{suffix}")].add(suffix)
                break
    for program, row in QUANTISERS:
        if found := [layer for layer, has in layers.items() if has.issuperset(row)]:
            return program, found
    return "", []


# ── nvfp4/guides/calibration.py: Take input scales from files: summaries, recordings, quantised mod

def read_summary(options: Options) -> tuple[list[dict], list[str]]:
    """Read the rows of a calibration summary whose layers were measured, and a note on others.

    Without --input-scale-summary-json, both are empty. Raises ConvertError for a file that is no
    summary, or has no measured layer.
    """
    if not (path := options.input_scale_summary_json):
        return [], []
    key = percentile_key(options.input_scale_summary_percentile)
    scaled = (form.summary_column for form in written_formats() if form.summary_column)
    columns = [f"{column}_{key}" for column, _ in scaled]
    if options.input_scale_summary_fp16_std:
        columns += ["scale_std", "scale_mean"]
    return measured_rows(path, read_rows(path, "calibration summary"), columns)


def summary_calibration(options: Options, rows: list[dict]) -> dict[str, Calibration]:
    """Return {bare layer: Calibration} of a calibration summary, at one percentile over calls.

    `rows` are the summary's. NVFP4 takes column `scale_pXX`, FP8 `amax_pXX` / 448 where there is
    one; both are multiplied with --input-scale-summary-multiplier. Raises ConvertError where rows
    lack the percentile or hold no positive number.
    """
    path = options.input_scale_summary_json
    key = percentile_key(options.input_scale_summary_percentile)
    # Summaries have a fixed set of percentiles; another one is not interpolated, but refused.
    lacking = [row["layer"] for row in rows if f"scale_{key}" not in row]
    if lacking:
        known = {name for row in rows for name in row if name.startswith("scale_p")}
        # The option takes 99.9 for the column scale_p99_9.
        percentiles = (name.removeprefix("scale_p").replace("_", ".") for name in known)
        hint = did_you_mean(f"{options.input_scale_summary_percentile:g}", percentiles)
        raise ConvertError(
            f"{path}: has no scale_{key} for {examples(lacking)}; it has {examples(known)}{hint}"
        )
    multiplier = options.input_scale_summary_multiplier
    # A summary's scale is that of NVFP4 already; FP8's is made from the activation itself.
    columns = {form: form.summary_column for form in written_formats() if form.summary_column}
    source = f"summary {key.replace('_', '.')} x {multiplier:g}"
    return {
        bare(row["layer"]): Calibration(
            scales={
                form: positive(path, row, f"{column}_{key}") * multiplier / divisor
                for form, (column, divisor) in columns.items()
                if f"{column}_{key}" in row
            },
            source=source,
        )
        for row in rows
    }


def recorded_calibration(
    options: Options, recording: dict[str, Recorded]
) -> dict[str, Calibration]:
    """Return {bare layer: Calibration} with headroom over the largest magnitude that was recorded.

    The margin is --input-scale-headroom; for NVFP4 it is smaller where it would push small blocks
    into E4M3's subnormals (see `Recorded.headroom`). Layers that only saw zeros get no scale.
    Raises ConvertError for inputs that are modelled, as their maxima are.
    """
    if any(recorded.is_modelled for recorded in recording.values()):
        raise ConvertError(
            "--input-scale-policy headroom: statistics of calib/model_inputs.py have no largest "
            "values of prompts; record some, or leave the policy out"
        )
    margin = options.input_scale_headroom
    found = {}
    for layer, recorded in recording.items():
        # An input of zeros would give the scale 0, by which nothing can be divided.
        if recorded.amax > 0:
            fp8 = recorded.amax * margin / E4M3_MAX
            scales = {NVFP4: recorded.headroom(margin) / NVFP4_MAX, FP8: fp8}
            # The margin may have been cut: the report names the one that was used.
            actual = recorded.headroom(margin) / recorded.amax
            found[layer] = Calibration(scales=scales, source=f"headroom x {actual:.3g}")
    return found


def read_reference_scales(path: Path) -> tuple[dict[str, Calibration], list[str]]:
    """Read the input scales of a quantised model: a safetensors file, an index, or a folder.

    Returns {bare layer: Calibration}, and a note that counts scales which cannot be used; their
    layers have no scale for any format. Raises ConvertError where the model cannot be read, has no
    input scales, or none that can be used.
    """
    if path.is_dir() or path.suffix.lower() == ".json":
        return parse_reference_scales(path, open_model(path).tensors)
    # A single file is opened once: its header and its scales are read through the same handle.
    with opened(path) as file:
        tensors, _ = parse_header(path, file)
        return parse_reference_scales(path, tensors, file)


def parse_reference_scales(
    path: Path, tensors: dict[str, TensorRef], file: BinaryIO | None = None
) -> tuple[dict[str, Calibration], list[str]]:
    """Take the input_scale tensors of a model's header; `file` is its file, if it is open.

    Each must be a single float32 beside an NVFP4 (U8) or FP8 (F8_E4M3) weight, and positive; others
    are left out. The scale is converted to both formats by the largest activation it stands for,
    since the layer may get the other one here. Returns as `read_reference_scales` does.
    """
    found, odd = {}, {}
    scaled = [form for form in written_formats() if form.activation_max]
    for ref in tensors.values():
        layer = ref.name.removesuffix(".input_scale")
        if layer == ref.name:
            continue
        # An input scale alone does not tell its format, and so not the activation it stands for.
        weight = tensors.get(f"{layer}.weight")
        largest = next((f.activation_max for f in scaled if weight and f.stores(weight)), None)
        if ref.dtype != "F32" or ref.nbytes != 4 or largest is None:
            problem = f"{ref.name} is not one float32 beside an NVFP4 or FP8 weight"
            odd[layer] = f"{path}: {problem}"
            continue
        row = {"layer": layer, "input_scale": load(ref, file).item()}
        try:
            amax = positive(path, row, "input_scale") * largest
        except ConvertError as error:
            odd[layer] = str(error)
            continue
        scales = {form: amax / form.activation_max for form in scaled}
        found[bare(unwrapped(layer))] = Calibration(scales=scales, source=path.name)
    if not found:
        program, layers = quantiser_of(tensors)
        if program:
            raise ConvertError(
                f"{path}: is quantised by another program ({program}: {examples(layers)}), whose "
                "activations are not scaled as ComfyUI scales those of NVFP4 and FP8"
            )
        raise ConvertError(*[*odd.values()][:1] or [f"{path}: has no input_scale tensors"])
    what = in_number(len(odd), "input scales are left out")
    what = f"{what}, as none is one positive float32 beside an NVFP4 or FP8 weight"
    # The file tells of these layers all the same: it is not of another model for their sake.
    unusable = {bare(unwrapped(layer)): Calibration(scales={}, source=path.name) for layer in odd}
    notes = [Note(f"{path.name}: {what}: {examples(odd)}", Rank.NOTE)] if odd else []
    return unusable | found, notes


def match_calibration(
    options: Options, model: Model, sources: list[tuple[Path, dict[str, Calibration]]]
) -> dict[str, Calibration]:
    """Return {layer: Calibration} of the model's linear layers.

    `sources` are (file, {bare layer: Calibration}); where several have a layer, the first one
    counts, and --input-scale-value only where none has it. Raises ConvertError for a source that
    has none of the model's layers.
    """
    layers = {bare(ref.layer): ref.layer for ref in model.linear_weights}
    found = {}
    if options.input_scale_value is not None:
        # The option is for NVFP4; FP8's scale follows from the same largest activation.
        value = options.input_scale_value
        scales = {NVFP4: value, FP8: value * NVFP4_MAX / E4M3_MAX}
        calibration = Calibration(scales=scales, source="--input-scale-value")
        found = dict.fromkeys(layers.values(), calibration)
    # In reverse, so that the first source is written last and stays.
    for path, rows in reversed(sources):
        if not rows.keys() & layers.keys():
            raise of_another_model(path, it_has=rows, other_has=layers)
        # Layers that the model lacks are passed over; only a source without any of its layers is
        # refused.
        known = {name: row for name, row in rows.items() if name in layers and row.scales}
        found |= {layers[name]: row for name, row in known.items()}
    return found


# ── nvfp4/guides/family.py: Find the family that a source goes by ─────────────────────────────────

# A name followed by numbers is taken for transformer blocks from 4 numbers and 5 % of the linear
# weights' bytes on. Embedders and refiners are numbered, too, but they are few or small.
LEAST_REPEATS, LEAST_REPEATED_SHARE = 4, 0.05


def repeated_blocks(model: Model) -> Family:
    """Make a family for a model that has none: blocks are what is numbered and repeats.

    A name counts as transformer blocks if at least LEAST_REPEATS numbers follow it and its layers
    have at least LEAST_REPEATED_SHARE of the linear weights' bytes. Attention V, fused QKV and down
    projections get one step more than NVFP4, as in known families. Raises ConvertError without any.
    """
    members, sizes = defaultdict(set), Counter()
    for ref in model.linear_weights:
        # The first number of a name is the block's: blocks.3.attn.0.weight is of block 3.
        if found := re.match(r"([^\d]+)\.(\d{1,9})\..*\.weight", bare(ref.name), re.DOTALL):
            members[found[1]].add(int(found[2]))
            sizes[found[1]] += ref.nbytes
    # Bytes stand for weights here, as a checkpoint's linear layers share a dtype.
    least = LEAST_REPEATED_SHARE * sum(ref.nbytes for ref in model.linear_weights)
    found = [
        name
        for name, numbers in members.items()
        if len(numbers) >= LEAST_REPEATS and sizes[name] >= least
    ]
    if not found:
        raise ConvertError(
            "--preset smart: the source has no repeated blocks, as blocks.0, blocks.1 ...; "
            "--preset all quantises every linear layer, or name some with --include"
        )
    for name in found:
        blocks = re.compile(rf"{re.escape(name)}\.(\d{{1,9}})\.")
        matches = map(blocks.match, map(bare, model.tensors))
        if lacking := gaps({int(match[1]) for match in matches if match}):
            named = examples(f"{name}.{number}" for number in lacking)
            raise ConvertError(
                f"--preset smart: the source lacks {named} before its last {name}.N; if it is one "
                "shard of several, give the *.safetensors.index.json beside it, or the folder"
            )
    return Family(
        title="unknown", keys=(), blocks=tuple((name,) for name in found), keeps=ONE_STEP_HIGHER
    )


def find_family(options: Options, model: Model) -> tuple[Family, list[str]]:
    """Return the row of FAMILIES to go by, or one made for the source, and a note on the choice.

    With --preset auto that is the recognised family; with a family's name the source must be of it.
    Raises ConvertError where it is not, and where auto recognises none and no option names layers.
    """
    name, variant = recognise(model)
    preset = options.preset
    known = FAMILIES.get(name, ANY_FAMILY)
    # With --preset all or none, or a GGUF alone, no row decides; notes may still need the family.
    if not options.has_family:
        return known, []
    if preset == "smart":
        family = repeated_blocks(model)
        where = ", ".join(f"{name}.N" for name in itertools.chain(*family.blocks))
        what = f"--preset smart: the repeated blocks are {where}"
        return family, [Note(what, Rank.INFORMATION)]
    if preset == "auto" and name:
        of_kind = f" ({variant})" if variant else ""
        what = f"recognised as {known.title}{of_kind}: --preset {name}"
        return known, [Note(what, Rank.INFORMATION)]
    if preset == "auto" and (options.include or options.layer_config):
        what = "no family recognised: only what options name is quantised"
        return known, [Note(what, Rank.NOTE)]
    if preset == "auto":
        raise ConvertError(
            f"{options.source}: is of no family that --list-presets has; give --gguf, "
            "--preset smart, --preset all, or --include REGEX"
        )
    if name != preset:
        is_known = f"is recognised as {known.title}" if name else "is of no known family"
        raise ConvertError(
            f"--preset {preset}: {options.source} {is_known}; give --preset {name or 'smart'}"
        )
    return known, []


# ── nvfp4/prefixes.py: Find the names that ComfyUI has for a file's tensors, where wrappers and pre

# Parts of names that are nothing but a prefix where all names of a file begin with them. No model
# of ComfyUI has all its tensors in a module of such a name.
MERE_PARTS = (
    "model", "diffusion_model", "net", "module", "transformer", "dit", "unet", "pipe", "denoiser",
    "model_ema", "ema_model", "ema", "state_dict", "base_model",
)  # fmt: skip
# The one part that all names of a model of ComfyUI begin with (PixelDiT).
OWN_PARTS = {"core"}
# Of MERE_PARTS, moving averages of the weights, which lie beside the weights themselves as a rule.
AVERAGES = ("model_ema.", "ema_model.", "ema.", "module.model_ema.", "module.ema.")


class Renaming(NamedTuple):
    """Hold the names that ComfyUI has for all tensors of a file, and what the file's had besides.

    names: {name in the file: name for ComfyUI}, in the order of the file.
    lost: prefixes and wrappers that are in the file's names and not in ComfyUI's.
    put: the prefix that the names of the model got instead, or "".
    """

    names: dict[str, str]
    lost: tuple[str, ...]
    put: str

    @property
    def note(self) -> str:
        """Make a line of it for people; "" where nothing was renamed."""
        if not self.lost:
            return ""
        instead = f"have {self.put} instead of" if self.put else "lose"
        return f"names {instead} their {' and '.join(self.lost)}, which ComfyUI does not know"


def comfyui_names(path: Path, tensors: Mapping[str, TensorRef]) -> Renaming:
    """Find the names for ComfyUI of all tensors of a file.

    path: of the file, for messages. The diffusion model's prefix goes if every tensor has it, and
    becomes the one that ComfyUI strips where a text encoder or the like lies beside it. Raises
    ConvertError where the file has two models, or two tensors would get one name.
    """
    names = {name: unwrapped(name) for name in tensors}
    lost = {f"{match[0].strip('.')}." for name in names if (match := WRAPPED.search(name))}
    lost |= {"module." for name in names if WRAPPED.sub("", name) != names[name]}
    refuse_equal_names(path, names)
    refuse_averages(path, names)
    prefix = only_prefix(path, {names[name]: ref.shape for name, ref in tensors.items()})
    put = ""
    if prefix:
        put = "" if all(name.startswith(prefix) for name in names.values()) else COMFYUI_PREFIX
        names = {
            old: put + name.removeprefix(prefix) if name.startswith(prefix) else name
            for old, name in names.items()
        }
        refuse_equal_names(path, names)
    return Renaming(names, tuple(sorted(lost | ({prefix} - {""}))), put)


def refuse_equal_names(path: Path, names: dict[str, str]) -> None:
    """Raise ConvertError where two of {name in the file: name for ComfyUI} become one."""
    olds: dict[str, str] = {}
    for old, name in names.items():
        if (other := olds.setdefault(name, old)) != old:
            raise ConvertError(
                f"{path}: {examples([other, old])} are both {examples([name])} for ComfyUI: give a "
                "file that has each tensor once"
            )


def refuse_averages(path: Path, names: dict[str, str]) -> None:
    """Raise ConvertError where moving averages lie beside the weights that they are averages of."""
    for prefix in AVERAGES:
        averages = {n.removeprefix(prefix) for n in names.values() if n.startswith(prefix)}
        others = {bare(name) for name in names.values() if not name.startswith(prefix)}
        if len(averages & others) > len(averages) / 2:
            twice = examples(sorted(averages & others)[:1])
            raise ConvertError(
                f"{path}: holds the model twice, as {prefix}* and without it ({twice}): give a "
                "file with one of the two"
            )


def only_prefix(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Find the prefix of the diffusion model's names that ComfyUI does not strip; "" without any.

    A family is recognised behind any prefix. For a model of no family a prefix is what all names
    have; see `mere_prefix`. Raises ConvertError where there are two models.
    """
    found = model_prefixes(shapes)
    if len(found) > 1:
        named = " and ".join(f"{prefix}*" for prefix in found)
        raise ConvertError(f"{path}: holds several models, named {named}: give a file with one")
    if found:
        prefix = found[0]
    elif (prefix := diffusion_prefix(shapes)) not in UNREAD_PREFIXES:
        prefix = mere_prefix(shapes)
    return "" if prefix in PREFIXES and prefix not in UNREAD_PREFIXES else prefix


def mere_prefix(names: Mapping[str, tuple[int, ...]]) -> str:
    """Find the longest prefix that all names have and no model of ComfyUI: "module.transformer.".

    names: {name: shape}. It is of any parts where it holds a whole model, else of MERE_PARTS.
    """
    # Each column has one part of all names; the shortest name ends it.
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda column: len({*column}) == 1, columns)
    parts = list(itertools.takewhile(lambda part: part not in OWN_PARTS, (c[0] for c in shared)))
    if not holds_a_model(names, parts):
        parts = itertools.takewhile(MERE_PARTS.__contains__, parts)
    return "".join(f"{part}." for part in parts)


def holds_a_model(names: Mapping[str, tuple[int, ...]], parts: list[str]) -> bool:
    """Tell whether the module of these parts, in which all names are, is a model of several.

    Trainers give it names of their own. What is numbered is a block, or a list of them, and another
    kind of file, such as a text encoder, keeps its names.
    """
    inside = [name.split(".")[len(parts) :] for name in names]
    modules = {name[0] for name in inside}
    return (
        (len(modules) > 1 or modules <= OWN_PARTS)
        and not any(part.isdigit() for part in (*parts, *modules))
        and any(part.isdigit() for name in inside for part in name)
        and kind_of_file(names, is_model=False) is None
    )


def comparable_names(path: Path, tensors: Mapping[str, TensorRef]) -> dict[str, str]:
    """Give all tensors of a file the names by which files are compared: {name: bare name}.

    Where the file has two models, their names stay apart.
    """
    try:
        names = comfyui_names(path, tensors).names
    except ConvertError:
        names = {name: name for name in tensors}
    return {name: bare(new) for name, new in names.items()}


def file_kind(path: Path, tensors: Mapping[str, TensorRef]) -> FileKind | None:
    """Tell what a file is that is no diffusion model; None for what may be one, or is empty.

    Of a file that has more than a diffusion model, that alone is looked at.
    """
    # Prefixes of a LoRA are none of the model's.
    if kind := lora_kind(tensors):
        return kind
    try:
        names = comfyui_names(path, tensors).names
    except ConvertError:
        return None
    prefix = diffusion_prefix(names.values())
    shapes = {names[name]: ref.shape for name, ref in tensors.items()}
    own = {name: shape for name, shape in shapes.items() if not is_beside(name, prefix)}
    return kind_of_file(own or shapes, is_model=bool(model_prefixes(own)))


def named_for_comfyui(path: Path, model: Model) -> tuple[Model, list[str]]:
    """Give a model's tensors the names that ComfyUI has for them, with a note on what changed.

    Layers that the header configures are renamed along. Raises ConvertError as `comfyui_names`.
    """
    renaming = comfyui_names(path, model.tensors)
    if not renaming.lost:
        return model, []
    tensors = {
        renaming.names[name]: dataclasses.replace(ref, name=renaming.names[name])
        for name, ref in model.tensors.items()
    }
    layers = {
        old.rpartition(".")[0]: name.rpartition(".")[0] for old, name in renaming.names.items()
    }
    metadata = renamed_layers(model.metadata, layers)
    renamed = dataclasses.replace(model, tensors=tensors, metadata=metadata)
    return renamed, [Note(renaming.note, Rank.INFORMATION)]


def renamed_layers(metadata: dict[str, str], layers: dict[str, str]) -> dict[str, str]:
    """Rename the layers that a header's metadata configures, by {old name: new name}.

    What cannot be read stays, for the checks to tell of.
    """
    key = "_quantization_metadata"
    try:
        listed = json.loads(metadata[key])
        listed["layers"] = {layers.get(old, old): found for old, found in listed["layers"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return metadata
    return metadata | {key: json.dumps(listed)}


# ── nvfp4/read/parts.py: Tell by its name, or by an index beside it, that a file is only a part of 

def sibling(path: Path, number: int) -> Path:
    """Name the part of this number beside `path`, whose own name has to be `numbered`."""
    begin, end = numbered(path).span(1)
    return path.with_name(f"{path.name[:begin]}{number:0{end - begin}}{path.name[end:]}")


def index_of(path: Path) -> Path | None:
    """Find an index beside a file that lists it as one shard of several; None without any."""
    with contextlib.suppress(OSError):
        for other in sorted(path.parent.iterdir()):
            # An index that cannot be read lists nothing: the file is whole for all that it says.
            with contextlib.suppress(ConvertError):
                if INDEX_NAME.fullmatch(other.name) and path.name in (shards := read_index(other)):
                    return other if len(shards) > 1 else None
    return None


def lone_shard(path: Path) -> str:
    """Say what to give instead of one shard of several; "" for anything else.

    A shard is told by "N of M" in its name, or by an index beside it that lists it.
    """
    if path.is_dir() or path.suffix.lower() == ".json":
        return ""
    index = index_of(path)
    if not (index or numbered(path)):
        return ""
    named = f" ({index.name})" if index else ""
    return f"give the *.safetensors.index.json beside it{named}, or the folder"


def refuse_lone_shard(path: Path) -> None:
    """Raise ConvertError for one shard of several, which would pass for a whole model."""
    if instead := lone_shard(path):
        raise ConvertError(f"{path}: is one shard of several; {instead}")


# ── nvfp4/guides/gguf.py: Read which GGML type a GGUF gives each tensor, and match that to the mode

# Tensors, entries and values in lists, together. The reader takes about 1 kB of memory for each, so
# that a small file could announce more than a machine has.
MAX_GGUF_PARTS = 50_000
# Bytes of a value by the number of its type in GGUF; strings and lists have lengths of their own.
GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_UINT32, GGUF_STRING, GGUF_LIST = 4, 8, 9


class Part(NamedTuple):
    """Hold one file of a GGUF: its header as a Model, and what it says of being split.

    Each number is None where the header does not tell it: number counts from 0, tensors are those
    of all parts together.
    """

    model: Model
    number: int | None
    count: int | None
    tensors: int | None


def open_gguf(path: Path) -> Model:
    """Read a GGUF's header as a Model, with GGML types as dtypes and shapes in torch's order.

    Of a GGUF that is split over several files, any part may be given: the others are looked for
    beside it, and the Model has the tensors of all. No tensor data are read. Raises ConvertError
    for a file that cannot be read, is cut off or damaged, or has a GGML type that GGUF_BITS does
    not know, and for a part whose others are missing or do not go with it.
    """
    part = read_part(path)
    found = numbered(path)
    named, count = int(found[2]) if found else 1, part.count or 1
    if max(named, count) == 1:
        return part.model
    if found is None:
        raise ConvertError(
            f"{path}: is part {part.number or 0:,} of {count:,} of a GGUF, counted from 0, and its "
            f"name does not tell the others; name each NAME-0000N-of-{count:05}.gguf, N from 1"
        )
    if part.count is not None and named != count:
        raise ConvertError(f"{path}: is one of {count:,} parts of a GGUF, and not of {named:,}")
    # Programs that split GGUFs count from 1 in names; the header, where it counts, goes before.
    first = int(found[1]) - part.number if part.number is not None else min(1, int(found[1]))
    paths = [sibling(path, first + index) for index in range(named)]
    if missing := [other.name for other in paths if not exists(other)]:
        raise ConvertError(
            f"{path}: is one of {named:,} parts of a GGUF; {examples(missing)} is missing beside it"
        )
    return joined(paths, [part if other == path else read_part(other) for other in paths])


def joined(paths: list[Path], parts: list[Part]) -> Model:
    """Join the parts of a split GGUF, given in order, into one Model.

    Raises ConvertError for a part of another GGUF, which is told by its numbers, by a tensor that
    an earlier part has, or by how many tensors there should be.
    """
    tensors = {}
    for index, (path, part) in enumerate(zip(paths, parts, strict=True)):
        known = (part.number, part.count) in ((None, None), (index, len(parts)))
        if not known or part.tensors != parts[0].tensors:
            raise ConvertError(f"{path}: is no part of the same GGUF as {paths[0].name}")
        if twice := tensors.keys() & part.model.tensors.keys():
            raise ConvertError(f"{path}: {examples(twice)}: is in an earlier part of the GGUF, too")
        tensors |= part.model.tensors
    if parts[0].tensors not in (None, len(tensors)):
        what = f"{len(parts):,} parts have {len(tensors):,} tensors"
        raise ConvertError(f"{paths[0]}: its {what}, and not {parts[0].tensors:,}")
    return Model(tensors=tensors, metadata=parts[0].model.metadata, files=tuple(paths))


def read_part(path: Path) -> Part:
    """Read the header of one file of a GGUF, as `open_gguf` does for all files of it."""
    if path.is_dir():
        raise ConvertError(f"{path}: is a folder; give the .gguf file in it")
    import gguf  # takes a third of a second, which conversions without a GGUF need not wait for

    try:
        with translated(path, "cannot read"):
            size = size_of(path)  # refuses a pipe, which opening would wait for
            with path.open("rb") as file:
                # Checked before the reader sees it, and from the same open file: none can take its
                # place.
                GGUFWalk(path, file, size)
                reader = gguf.GGUFReader(file)  # numpy's memmap, to which it goes, takes either
        refs = {tensor.name: gguf_tensor(path, tensor, reader) for tensor in reader.tensors}
        metadata = {
            name: bytes(entry.parts[entry.data[0]]).decode("utf-8", "replace")
            for name, entry in reader.fields.items()
            if entry.types == [gguf.GGUFValueType.STRING]
        }
        keys = map(reader.get_field, ("split.no", "split.count", "split.tensors.count"))
        split = [key and int(key.parts[key.data[0]][0]) for key in keys]
    except ConvertError:
        raise
    except Exception as error:  # a damaged file makes gguf's reader raise anything
        raise ConvertError(
            f"{path}: the GGUF is cut off, damaged or of an unknown kind: {error}"
        ) from error
    unknown = sorted({ref.dtype for ref in refs.values()} - GGUF_BITS.keys())
    if unknown:
        raise ConvertError(f"{path}: unknown GGML types {', '.join(unknown)}; update this tool")
    return Part(Model(tensors=refs, metadata=metadata, files=(path,)), *split)


class GGUFWalk:
    """Walk over a GGUF's header and check what the gguf package takes on trust.

    That reader believes every count: past the end of a file it goes on with nothing, for ever. Its
    older versions take the first of two equal keys, and any alignment. The walk keeps little in
    memory and raises ConvertError for what is no GGUF, ValueError for what is damaged. It is done
    once the object is made.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.file, self.size, self.parts = file, size, 0
        start = file.read(TELLING_BYTES)
        file.seek(len(GGUF_MAGIC))
        if not start.startswith(GGUF_MAGIC):
            refuse_foreign(path, start)
            raise ConvertError(f"{path}: is not a GGUF file")
        # The version is a small number: in a big-endian file its first two bytes are zero.
        self.order = "big" if file.read(4)[:2] == bytes(2) else "little"
        tensors, entries = self.number(8), self.number(8)
        self.announce(tensors + entries)
        seen = set()
        for _ in range(entries):
            key = self.entry()
            # Digests instead of keys, as each of up to 50,000 keys may be long.
            digest = hashlib.blake2b(key, digest_size=16).digest()
            if digest in seen:
                raise ValueError(f"it has the key {key.decode()!r} more than once")
            seen.add(digest)
        for _ in range(tensors):
            self.skip_tensor()

    def announce(self, count: int) -> None:
        """Count parts that the reader will build objects for.

        Raises ValueError if they come to more than MAX_GGUF_PARTS.
        """
        self.parts += count
        if self.parts > MAX_GGUF_PARTS:
            what = f"it has {self.parts:,} tensors, entries and values in lists, or more"
            raise ValueError(f"{what}; {MAX_GGUF_PARTS:,} are read (language models have more)")

    def number(self, width: int) -> int:
        """Read an unsigned integer of `width` bytes; raises ValueError at the end of the file."""
        if len(raw := self.file.read(width)) < width:
            raise ValueError("it ends inside its header")
        return int.from_bytes(raw, self.order)

    def skip(self, length: int) -> None:
        """Skip `length` bytes; raises ValueError where the file has fewer."""
        here = self.file.tell()
        if length > self.size - here:
            raise ValueError(f"it announces {length:,} bytes at byte {here:,}, beyond its end")
        self.file.seek(length, os.SEEK_CUR)

    def name(self) -> bytes:
        """Read a name, which follows its length; raises ValueError beyond MAX_NAME bytes."""
        if (length := self.number(8)) > MAX_NAME:
            raise ValueError(f"it has a name of {length:,} bytes")
        return self.file.read(length)

    def entry(self) -> bytes:
        """Walk over one key and its value, and return the key.

        `general.alignment` must be a power of two: the reader computes offsets of data from it.
        """
        key, kind = self.name(), self.number(4)
        if (key, kind) != (b"general.alignment", GGUF_UINT32):
            self.skip_value(kind)
        elif (alignment := self.number(4)).bit_count() != 1:
            raise ValueError(f"it has a general.alignment of {alignment}, no power of two")
        return key

    def skip_value(self, kind: int) -> None:
        """Skip a value of type `kind`; raises ValueError for a list in a list.

        An unknown type is skipped as if it had no bytes, since the reader refuses it by itself.
        """
        if kind == GGUF_STRING:
            self.skip(self.number(8))
        elif kind != GGUF_LIST:
            self.skip(GGUF_WIDTHS.get(kind, 0))  # the reader refuses what is unknown
        else:
            inner, count = self.number(4), self.number(8)
            if inner == GGUF_LIST:
                raise ValueError("it has a list in a list")
            self.announce(count)
            if inner == GGUF_STRING:
                for _ in range(count):
                    self.skip(self.number(8))
            else:
                self.skip(GGUF_WIDTHS.get(inner, 0) * count)

    def skip_tensor(self) -> None:
        """Skip a tensor's entry; raises ValueError for absurd dimensions, sizes or offsets."""
        self.name()
        if (dimensions := self.number(4)) > MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions:,} dimensions")
        elements = math.prod(self.number(8) for _ in range(dimensions))
        _, begin = self.number(4), self.number(8)
        # numpy counts elements in 64 bits, signed.
        if begin > self.size or elements >= 1 << 63:
            raise ValueError(f"it has no {elements:,} elements at byte {begin:,} of its data")


def gguf_tensor(path: Path, tensor: object, reader: object) -> TensorRef:
    """Make a TensorRef of the reader's `tensor`, with the shape that torch gives it.

    GGML lists dimensions in reverse. ComfyUI-GGUF notes the original shape of a tensor that it
    stored in another one under `comfy.gguf.orig_shape.NAME`, which then counts.
    """
    shape = tuple(map(int, reversed(tensor.shape)))
    original = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
    if original is not None:
        shape = tuple(int(original.parts[i][0]) for i in original.data)
    return TensorRef(
        name=tensor.name,
        dtype=tensor.tensor_type.name,
        shape=shape,
        path=path,
        begin=int(tensor.data_offset),
        nbytes=int(tensor.n_bytes),
    )


def shapes_agree(shape: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Tell whether a source tensor's shape and a GGUF's can be those of one tensor.

    A GGUF drops dimensions of 1 and may store a 5-D convolution in 4 dimensions or fewer.
    """
    if [size for size in shape if size != 1] == [size for size in stored if size != 1]:
        return True
    return len(shape) == 5 and len(stored) <= 4 and math.prod(shape) == math.prod(stored)


def refuse_other_shapes(path: Path, pairs: Iterable[tuple[TensorRef, TensorRef]]) -> None:
    """Raise ConvertError where tensors of the source and the GGUF's of equal names do not agree."""
    wrong = [(own, other) for own, other in pairs if not shapes_agree(own.shape, other.shape)]
    if wrong:
        raise of_another_model(
            path,
            f"{len(wrong)} tensors have other shapes",
            it_has=(f"{other.name} {list(other.shape)}" for _, other in wrong),
            other_has=(f"{own.name} {list(own.shape)}" for own, _ in wrong),
        )


def match_gguf(path: Path, model: Model, partial: bool = False) -> tuple[dict[str, str], list[str]]:
    """Return {source tensor: GGML type}, and notes on what only one of the two has.

    Names match exactly or without their prefix. Raises ConvertError for a GGUF of another model:
    none of the linear layers is in it, tensors of equal names have other shapes, or, unless
    `partial`, it covers a part of the model alone.
    """
    model_of_gguf = open_gguf(path)
    stored, beside = model_of_gguf.tensors, model_of_gguf.beside
    if kind := file_kind(path, stored):
        raise ConvertError(f"{path}: is {kind.title}: give the GGUF of the diffusion model")
    # A GGUF's names often lack the prefix that the source's have, or the other way round.
    by_bare = {name: old for old, name in comparable_names(path, stored).items()}
    matched = {name: name if name in stored else by_bare.get(bare(name)) for name in model.tensors}
    matched = {name: other for name, other in matched.items() if other is not None}
    if not any(ref.name in matched for ref in model.linear_weights):
        what = "no linear layer of the source is in it"
        raise of_another_model(path, what, it_has=stored, other_has=model.tensors)
    # What is packed in the source has a shape of its own.
    plain = {name: other for name, other in matched.items() if not model.tensors[name].is_kept}
    refuse_other_shapes(
        path, [(model.tensors[name], stored[other]) for name, other in plain.items()]
    )
    # A GGUF may hold text encoders, too, as stable-diffusion.cpp writes them.
    weights = (n for n, old in by_bare.items() if n.endswith(".weight") and old not in beside)
    layers = (name.removesuffix(".weight") for name in weights)
    cover = Cover((path,), frozenset(layers))
    notes = check_blocks(cover, model, partial) + check_cover(cover, linear_bytes(model), partial)
    known = matched.keys() | model.beside.keys()
    new = (ref for ref in model.tensors.values() if ref.is_float and not ref.is_kept)
    lacking = [ref.name for ref in new if ref.name not in known]
    if lacking:
        what = in_number(len(lacking), "tensors not in the GGUF stay 16-bit")
        notes.append(Note(f"{what}: {examples(lacking)}", Rank.NOTE))
    if extra := stored.keys() - set(matched.values()):
        what = in_number(len(extra), "tensors of the GGUF are not in the source")
        notes.append(Note(f"{what}: {examples(extra)}", Rank.NOTE))
    return {name: stored[other].dtype for name, other in matched.items()}, notes


# ── nvfp4/guides/layer_config.py: Read layer configs and layer lists, and match them to the model ─

# What an entry may have, and the Python types that its JSON values must be of. `bool` is a subclass
# of `int` in Python, so types are compared exactly.
SETTING_KEYS = {
    "format": (str,),
    "full_precision_matrix_mult": (bool,),
    "input_scale": (int, float),
    "convrot": (bool,),
    "convrot_groupsize": (int,),
    "group_size": (int,),
    "bits": (int,),
}
# Of these, what tells formats apart that ComfyUI calls by one name.
FORMAT_OPTIONS = ("convrot", "convrot_groupsize", "group_size", "bits")
# Formats of an entry that quantise nothing, as precision and safetensors dtype; "16bit" takes that
# of --dtype, "source" keeps the source's own.
UNQUANTISED_SETTINGS = {
    "16bit": (HALF, ""),
    "bfloat16": (HALF, "BF16"),
    "float16": (HALF, "F16"),
    "float32": (FP32, "F32"),
    "source": (KEPT, ""),
}


def setting_names() -> list[str]:
    """List what the "format" of an entry may be: names of `comfy_quant`, and words of --formats."""
    words = (word for row in written_formats() for word in (row.config, row.option) if word)
    return [*dict.fromkeys(words), *UNQUANTISED_SETTINGS]


def setting_of(row: Format) -> str:
    """Name a format that is written so that an entry with this "format" alone means it."""
    # Where ComfyUI needs options beside the name, the word says it all.
    return row.config if len(row.configuration(full_precision=False)) == 1 else row.option


def asked_format(entry: dict) -> Format | None:
    """Find the format that an entry asks for by its name and options; None where none fits.

    A name of `comfy_quant` means what it means to ComfyUI: int8_tensorwise without `convrot` is not
    rotated. A word of --formats stands for a name with all of its options.
    """
    for row in written_formats():
        own = row.configuration(full_precision=False)
        alike = (other for other in written_formats() if other.config == row.config)
        known = {key for one in alike for key in one.configuration(full_precision=False)}
        foreign = entry.keys() & {*FORMAT_OPTIONS} - known - {"bits"}
        whole = {**own, **entry, "format": row.config} if entry["format"] == row.option else entry
        fits = entry.get("bits", row.weight_bits) == row.weight_bits
        if row.is_meant_by(whole) and fits and not foreign:
            return row
    return None


def read_layer_list(path: Path) -> tuple[str, ...]:
    """Read the layer names of a list, one a line, without repeats and `.weight`.

    Text after # and blank lines are left out. Raises ConvertError for a file that cannot be read,
    is too large, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    try:
        with translated(path, "cannot read the layer list"):
            raw = read_whole(path)
        lines = decode_text(raw).splitlines()
    except ValueError as error:
        what = "is not UTF-8" if getattr(error, "encoding", "") == "utf-8" else "cannot be read"
        raise ConvertError(f"{path}: the layer list {what}: {error}") from error
    names = (line.partition("#")[0].strip().removesuffix(".weight") for line in lines)
    return tuple(dict.fromkeys(name for name in names if name))


def match_layer_list(path: Path, model: Model, partial: bool = False) -> LayerList:
    """Match a list to the model: the linear weights that it names, and names that match nothing.

    Prefixes are ignored on both sides. Raises ConvertError where it names no layer of the model
    or, unless `partial`, layers of whole blocks that the model lacks.
    """
    layers = {bare(ref.layer): ref.name for ref in model.linear_weights}
    listed = {bare(unwrapped(name)) for name in read_layer_list(path)}
    weights = frozenset(layers[name] for name in listed & layers.keys())
    if not listed:
        raise ConvertError(f"{path}: names no layer: it is empty, or all of it is comments")
    if not weights:
        raise of_another_model(path, it_has=listed, other_has=layers)
    check_blocks(Cover((path,), frozenset(listed)), model, partial)
    return LayerList(weights=weights, unknown=frozenset(listed - layers.keys()))


def read_layer_config(path: Path, model: Model) -> list[Setting]:
    """Read the settings of a --layer-config, each with the tensors that it is for.

    A key is a tensor's name or a regular expression for whole names. A tensor goes by its own name
    if that is there, else by the first pattern in the file. Patterns for a quantised format apply
    to linear weights alone. Raises ConvertError with all mistakes together.
    """
    names, beside = {config_key(ref): ref for ref in model.tensors.values()}, model.beside
    settings, problems, left = [], [], {*names}
    found = load_json(path, "layer config")
    if not found:
        raise ConvertError(f"{path}: the layer config is empty")
    # Exact names come first and take their tensors out of `left`, whatever the order in the file.
    for key in sorted(found, key=lambda key: key not in names):
        try:
            setting = as_setting(key, found[key])
            matched = {key} if key in names else {*filter(compiled(key).fullmatch, names)}
            # A pattern may match biases, norms and text encoders besides: these are passed over,
            # and no error.
            if key not in names and setting.precision.is_quantised:
                matched = {name for name in matched if names[name].is_linear_weight}
            if key not in names:
                matched = {name for name in matched if names[name].name not in beside}
            refuse_setting(setting, [names[name] for name in matched], beside)
        except ValueError as error:
            problems.append(f"{path}: {key[:EXCERPT]}: {error}")
            continue
        # What an earlier key has taken is not this one's, but a pattern may match it all the same.
        refs = frozenset(names[name].name for name in matched & left)
        settings.append(setting._replace(names=refs))
        left -= matched
    if problems:
        raise ConvertError(*problems)
    return settings


def refuse_setting(setting: Setting, refs: list[TensorRef], beside: Container[str]) -> None:
    """Raise ValueError where a setting cannot be for the tensors that it names.

    It names none, quantises what is no linear layer and no embedding, changes what goes over as it
    is, or copies what is decoded when it is read. `beside` are names that are not of the diffusion
    model.
    """
    if not refs:
        raise ValueError(
            "matches nothing of the source: keys are linear layers without .weight, other tensors "
            "by their whole names, both without prefix, or regular expressions for all of these"
        )
    for ref in refs:
        name = config_key(ref)
        if ref.name in beside and not setting.precision.is_copy:
            raise ValueError(f"{name} is not of the diffusion model and goes over as it is: source")
        if setting.precision.is_quantised and not (ref.is_linear_weight or ref.config):
            refuse_nonlinear(setting, ref)
        if ref.is_kept and not setting.precision.is_copy:
            raise ValueError(f"{name} is quantised in the source and goes over as it is: source")
        if ref.coding and setting.precision.is_copy:
            row = format_titled(ref.coding.title)
            row = FP8 if row.weight_dtype == FP8.weight_dtype and ref.coding.scale else row
            kept = f": {setting_of(row)} keeps it" if row in written_formats() else ", and decoded"
            raise ValueError(f"{name} is {ref.coding.title} in the source{kept}")


def refuse_nonlinear(setting: Setting, ref: TensorRef) -> None:
    """Raise ValueError for a setting that quantises what is no linear layer.

    An embedding of ComfyUI's operations may be quantised to formats whose rows it looks up. It
    multiplies nothing, so that marks and input scales are refused.
    """
    name = config_key(ref)
    found = f": {not_linear(name)}" if not_linear(name) else ""
    if not ref.is_embedding:
        raise ValueError(f"{name} is no linear layer{found}")
    if not setting.precision.embedding_since:
        takes = {row.option for row in written_formats() if row.option and row.embedding_since}
        raise ValueError(f"{name} is no linear layer{found}, which takes {examples(takes)} alone")
    if setting.full_precision or setting.input_scale is not None:
        raise ValueError(
            f"{name} takes no mark and no input_scale{found}, which multiplies nothing"
        )


def config_key(ref: TensorRef) -> str:
    """Return the name of a tensor in a layer config, without prefix.

    A matrix named `*.weight` goes by its layer, without that; other tensors by their whole names.
    """
    return bare(ref.layer if ref.is_matrix or ref.config else ref.name)


def as_setting(key: str, value: object) -> Setting:
    """Check one entry of a layer config and make a Setting of it, for no tensors yet.

    Raises ValueError for unknown keys or formats, values of a wrong type, an input scale that is
    not a positive float32, and full-precision matmul or an input scale of what is not quantised.
    """
    if not isinstance(value, dict):
        raise ValueError('needs an object like {"format": "nvfp4"}')
    if unknown := value.keys() - SETTING_KEYS.keys():
        raise ValueError(f"has {examples(unknown)}; known are {', '.join(SETTING_KEYS)}")
    known = setting_names()
    if not isinstance(value.get("format"), str) or value["format"] not in known:
        given = value.get("format")
        hint = did_you_mean(str(given), known)
        raise ValueError(f"format {given!r} is none of {', '.join(known)}{hint}")
    for name, kinds in SETTING_KEYS.items():
        if name in value and type(value[name]) not in kinds:
            raise ValueError(f"{name} {repr(value[name])[:EXCERPT]} is no {kinds[-1].__name__}")
    scale = value.get("input_scale")
    if scale is not None and not 0 < scale < FLOAT32_MAX:
        raise ValueError(f"input_scale {str(scale)[:EXCERPT]} is not a positive number")
    precision, dtype = UNQUANTISED_SETTINGS.get(value["format"], (asked_format(value), ""))
    flag = value.get("full_precision_matrix_mult", False)
    refuse_extras(value, precision)
    return Setting(key, precision, dtype, flag, scale, frozenset())


def refuse_extras(entry: dict, precision: Format | None) -> None:
    """Raise ValueError where the format that an entry asks for does not take the rest of it.

    precision: what its format and options mean, None where they mean nothing.
    """
    options = {key: entry[key] for key in FORMAT_OPTIONS if key in entry}
    if precision is None or (options and not precision.is_quantised):
        raise ValueError(f"{entry['format']} is not written with {json.dumps(options)}")
    flag, scale = entry.get("full_precision_matrix_mult"), entry.get("input_scale")
    if not precision.is_quantised and (flag or scale is not None):
        raise ValueError(f"{entry['format']} takes nothing else")
    if flag and not precision.takes_mark:
        raise ValueError(f"{precision.title} takes no full_precision_matrix_mult")
    if scale is not None and not precision.activation_max:
        raise ValueError(f"{precision.title} takes no input_scale: ComfyUI measures its input")


# ── nvfp4/guides/recording.py: Read what the ComfyUI recorder wrote: figures and statistics of laye

# Largest channels and sampled rows of a layer. A file may be a hole of any size, which takes no
# disk and would take all memory when it is read.
MAX_CHANNELS, MAX_ROWS = 1 << 20, 1 << 16
# Largest count in a bin of a histogram: sums over bins and recordings then fit 64 bits.
MAX_CALLS = 1 << 50
# The `format` in the header of a recording, beside a version.
RECORDING_FORMAT = "nvfp4_recording"
# What a recording has of every layer, with safetensors dtypes.
RECORDING_PARTS = {
    "tokens": "I64",
    "absmax": "F32",
    "block_histogram": "I64",
    "quantisation": "F64",
}
# What it has besides of each distinct input, if second moments were recorded; the order is that of
# the TensorRefs in a Moments.
MOMENT_PARTS = {
    "moment_tokens": "I64",
    "first_moment": "F64",
    "rows": "BF16",
    "second_moment": "BF16",
    "second_moment_low": "U8",
    "absmax": "F32",
}
# Rows in a strip of a second moment, as the recorder writes them.
STRIP_ROWS = 128


def read_recording(path: Path) -> dict[str, Recorded]:
    """Read {bare layer: Recorded} from a file that the ComfyUI node in calib/ wrote.

    Raises ConvertError where it is damaged, is no recording, or has layers that saw NaN or
    infinities, whose figures mean nothing.
    """
    with opened(path) as file:
        return parse_recording(path, file)


def parse_recording(path: Path, file: BinaryIO) -> dict[str, Recorded]:
    """Check an open recording, and take every layer's figures from it; raises ConvertError."""
    tensors, metadata = parse_header(path, file)
    if (metadata.get("format"), metadata.get("version")) != (RECORDING_FORMAT, "1"):
        raise ConvertError(f"{path}: is no recording (version 1) of the NVFP4 Calibration Recorder")
    layers = defaultdict(dict)
    for ref in tensors.values():
        layer, _, part = ref.name.rpartition(".")
        layers[layer][part] = ref
    moments = read_moments(path, file, metadata, layers)
    found = []
    for layer, parts in layers.items():
        wrong = [part for part, dtype in RECORDING_PARTS.items() if not is_part(parts, part, dtype)]
        if wrong:
            raise ConvertError(f"{path}: layer {layer}: {', '.join(wrong)} missing or malformed")
        # Loaded only now, as a damaged tensor may announce any size.
        error, energy = load(parts["quantisation"], file).tolist()
        amax = float(load(parts["absmax"], file).max())
        counts = load(parts["block_histogram"], file).numpy()
        sums = read_sums(parts, file)
        means = (sums.squares, float(np.abs(sums.total).max())) if sums else ()
        if not all(map(is_figure, (amax, error, energy, *means))):
            raise ConvertError(f"{path}: layer {layer} saw NaN or Inf; record it again")
        if not ((counts >= 0) & (counts < MAX_CALLS)).all():
            raise ConvertError(f"{path}: layer {layer}: block_histogram is damaged")
        recorded = Recorded(
            amax=amax,
            channels=math.prod(parts["absmax"].shape),
            block_histogram=counts,
            error=error,
            energy=energy,
            moments=moments.get(layer),
            sums=sums,
            is_modelled=metadata.get("inputs_are") == "modelled",
        )
        found.append((path, {bare(unwrapped(layer)): recorded}))
    # A layer that was recorded compiled and then not has two names in the file: they add up.
    return add_recordings(found)


def read_sums(parts: dict[str, TensorRef], file: BinaryIO) -> Sums | None:
    """Read the sums over a layer's rows, by the layer's parts; None where there are none.

    The recorder writes them with second moments or without.
    """
    shape = parts["absmax"].shape
    refs = [parts[name] for name in ("sum", "sum_of_squares") if is_part(parts, name, "F64")]
    tokens = int(load(parts["tokens"], file))
    if len(refs) < 2 or any(ref.shape != shape for ref in refs) or tokens <= 0:
        return None
    total, squares = (load(ref, file).numpy().ravel() for ref in refs)
    return Sums(tokens, total, float(squares.sum()))


def read_moments(
    path: Path, file: BinaryIO, metadata: dict[str, str], layers: dict[str, dict[str, TensorRef]]
) -> dict[str, Moments]:
    """Return {layer: Moments}, where the statistics of each layer's input lie in the file.

    Layers with the same input share one entry, by the list `inputs` in the file's metadata. Raises
    ConvertError where that list is damaged, or a tensor is not as the recorder writes it.
    """
    try:
        shared = json.loads(metadata.get("inputs", "{}")).items()
    except (ValueError, RecursionError, AttributeError):
        raise ConvertError(f"{path}: its list of inputs is damaged") from None
    found = {}
    # The recorder stores the moments of one input with the first layer that has it.
    for layer, first in shared:
        # The list is untrusted: `first` may be of any type, or name a layer that is not there.
        parts = layers.get(first, {}) if isinstance(first, str) else {}
        refs = tuple(parts[part] for part in MOMENT_PARTS if part in parts)
        channels = parts["absmax"].shape if "absmax" in parts else ()
        own = layers.get(layer, {})
        if not (are_moments(refs, channels, own) and are_finite(refs, file)):
            raise ConvertError(f"{path}: the second moments of layer {layer} are damaged")
        found[layer] = Moments(recordings=(refs,))
    return found


def are_moments(
    refs: tuple[TensorRef, ...], channels: tuple[int, ...], layer: dict[str, TensorRef]
) -> bool:
    """Tell whether `refs` are MOMENT_PARTS of an input, with the shapes that `channels` ask for.

    `layer` are the parts of the layer that uses them, whose `absmax` must have the same channels.
    """
    if len(refs) < len(MOMENT_PARTS) or len(channels) != 1:
        return False
    if "absmax" not in layer or layer["absmax"].shape != channels or math.prod(refs[0].shape) != 1:
        return False
    _, first, rows, upper, lower, _ = (ref.shape for ref in refs)
    packed = (sum(height * width for height, width in strip_shapes(*channels)),)
    return (
        [ref.dtype for ref in refs] == [*MOMENT_PARTS.values()]
        and (first, rows[1:], upper, lower) == (channels, channels, packed, packed)
        and 0 < rows[0] <= MAX_ROWS
    )


def are_finite(refs: tuple[TensorRef, ...], file: BinaryIO) -> bool:
    """Tell whether moments are of at least one token, and their rows are finite.

    The large sums are not read here; `load_statistics` checks them when it does.
    """
    return int(load(refs[0], file)) > 0 and bool(load(refs[2], file).isfinite().all())


def strip_shapes(channels: int) -> list[tuple[int, int]]:
    """List (rows, columns) of the strips of a recorded second moment [K, K].

    Only its upper half is stored, as it is symmetric: strip i has STRIP_ROWS rows, from the
    diagonal's column on.
    """
    starts = range(0, channels, STRIP_ROWS)
    return [(min(STRIP_ROWS, channels - start), channels - start) for start in starts]


def load_statistics(moments: Moments, device: torch.device) -> Statistics:
    """Sum up what the recordings have of an input: mean, second moment and rows of a token.

    Sums are joined from their upper 16 and next 8 bits (see the recorder) and added over
    recordings, then divided by the tokens. All tensors of the result are on `device`. Raises
    ConvertError where they hold NaN or infinities.
    """
    tokens, first, packed, rows = 0, 0.0, 0.0, []
    for refs in moments.recordings:
        # In the order of MOMENT_PARTS, of which absmax, the last one, is not needed here.
        count, total, some, *packing, _ = map(load, refs)
        tokens, first = tokens + int(count), first + total
        upper, lower = (part.to(device) for part in packing)
        # float32 from its upper 16 bits and the 8 below; the last 8 are zero.
        bits = upper.view(torch.int16).to(torch.int32) << 16
        packed = packed + bits.bitwise_or_(lower.to(torch.int32) << 8).view(torch.float32)
        rows.append(some.float())
    channels = len(first)
    second, shapes = packed.new_empty(channels, channels), strip_shapes(channels)
    # Divided while packed, which is half of the work; then both halves are filled from it.
    packed = packed.div_(tokens).split([height * width for height, width in shapes])
    for strip, (height, width) in zip(packed, shapes, strict=True):
        begin = channels - width
        second[begin : begin + height, begin:] = strip.view(height, width)
        second[begin:, begin : begin + height] = strip.view(height, width).t()
    mean, rows = (first / tokens).float(), torch.cat(rows)
    if not (mean.isfinite().all() and second.isfinite().all()):
        ref = moments.recordings[0][0]
        raise ConvertError(f"{ref.path}: {ref.name} and what goes with it hold NaN or Inf")
    return Statistics(
        mean=mean.to(device),
        second=second,
        rows=rows.to(device),
        independent=count_different(rows, tokens),
    )


def count_different(rows: torch.Tensor, tokens: int) -> float:
    """Estimate how many different rows, zero ones left out, the moments are of.

    `rows` [r, K] are a sample of `tokens` rows. The estimate is from how often rows of the sample
    are equal: a prompt's text is the same at every step, and padded with zeros. At least 1.
    """
    filled = rows[rows.any(1)]
    count = len(filled)
    same = filled.unique(dim=0, return_counts=True)[1].double() if count else torch.zeros(1)
    # Of n different rows that are equally likely, a pair is equal with a chance of 1 / n.
    pairs = float((same * (same - 1)).sum())
    # No more than the rows that are not zero, by their share of the sample.
    return max(
        min(tokens * count / len(rows), count * (count - 1) / pairs if pairs else math.inf), 1.0
    )


def read_recordings(paths: Iterable[Path]) -> dict[str, Recorded]:
    """Read {bare layer: Recorded} of all recordings together. Raises ConvertError."""
    return add_recordings((path, read_recording(path)) for path in paths)


def add_recordings(recordings: Iterable[tuple[Path, dict[str, Recorded]]]) -> dict[str, Recorded]:
    """Add up what was read from several files: {bare layer: Recorded}.

    Raises ConvertError where a layer has other columns in one file than in another.
    """
    found: dict[str, Recorded] = {}
    for path, layers in recordings:
        for layer, recorded in layers.items():
            # A layer of equal name and other columns is of another model.
            if layer in found and found[layer].channels != recorded.channels:
                raise ConvertError(f"{path}: layer {layer} has other columns than in the others")
            found[layer] = found[layer] + recorded if layer in found else recorded
    return found


def is_part(parts: dict[str, TensorRef], part: str, dtype: str) -> bool:
    """Tell whether a recording has a tensor of a layer as it must be.

    `parts` is {part: TensorRef} of the layer; the tensor must be there, of `dtype`, of the size
    that its part has where that is fixed, and of no more than MAX_CHANNELS elements.
    """
    sizes = {"tokens": 1, "block_histogram": len(BIN_EDGES), "quantisation": 2}
    ref = parts.get(part)
    size = math.prod(ref.shape) if ref and len(ref.shape) < 2 else 0
    return 0 < size <= MAX_CHANNELS and ref.dtype == dtype and size == sizes.get(part, size)


def check_recording(recording: dict[str, Recorded], model: Model) -> None:
    """Raise ConvertError if a recording is not of this model.

    None of its layers is in the model, or layers of the same name have other numbers of columns.
    """
    columns = {bare(ref.layer): ref.shape[1] for ref in model.linear_weights}
    known = recording.keys() & columns.keys()
    wrong = [layer for layer in known if recording[layer].channels != columns[layer]]
    if not known:
        raise of_another_model("--activation-stats", it_has=recording, other_has=columns)
    if wrong:
        raise of_another_model(
            "--activation-stats",
            "layers have other columns",
            it_has=(f"{layer} with {recording[layer].channels:,}" for layer in wrong),
            other_has=(f"{layer} with {columns[layer]:,}" for layer in wrong),
        )


# ── nvfp4/guides/sensitivity.py: Turn measured figures of layers into what they ask for ───────────

# For each threshold on a measured figure: its option, the figure, and the option that says what
# happens to layers above it.
MEASURED_THRESHOLDS = (
    ("sensitivity_threshold", "rel_rmse", "sensitivity_action"),
    ("clip_rate_threshold", "clip_rate", "clip_rate_action"),
)


def recorded_sensitivity(
    recording: dict[str, Recorded], calibration: dict[str, Calibration]
) -> dict[str, dict[str, float]]:
    """Return {bare layer: {"rel_rmse": ..., "clip_rate": ...}} from a recording.

    The clip rate is the share of blocks that saturate at the layer's NVFP4 input scale in
    `calibration`; 0 for a layer without one, whose scale is dynamic.
    """
    # An infinite scale clips nothing: that of a layer that is not calibrated.
    scales = {bare(layer): row.scales.get(NVFP4, math.inf) for layer, row in calibration.items()}
    return {
        layer: {
            "rel_rmse": recorded.rel_rmse,
            "clip_rate": recorded.saturated(scales.get(layer, math.inf)),
        }
        for layer, recorded in recording.items()
    }


def listed_sensitivity(
    options: Options, rows: list[dict]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Take the wanted figures from the rows of a sensitivity JSON, or of a summary that has them.

    Returns {bare layer: {figure: ...}} of the layers that were measured, and notes. Wanted are the
    figures that have a threshold. A layer that no call of its recording reached has NaN, null or
    nothing as a figure, or a `max_abs` of 0: it was not measured, and a note counts such. Infinity
    is above every threshold. Raises ConvertError for what is no number, and where no layer is left.
    """
    path, figures = options.sensitivity_json, {}
    wanted = [row[1] for row in MEASURED_THRESHOLDS if getattr(options, row[0]) is not None]
    unmeasured, infinite = [], []
    for row in rows:
        # Files name the mean over calls either way; the longer name is preferred.
        found = {figure: row.get(f"{figure}_mean", row.get(figure)) for figure in wanted}
        measured = {} if is_never_called(row) else {k: v for k, v in found.items() if not is_nan(v)}
        if wrong := [k for k, v in measured.items() if not (is_figure(v) or v == math.inf)]:
            raise ConvertError(f"{path}: layer {row['layer']}: needs a number as {wrong[0]}_mean")
        if len(measured) < len(wanted):
            unmeasured.append(row["layer"])
        if math.inf in measured.values():
            infinite.append(row["layer"])
        # A row without any figure adds no layer, so that it does not make the file one of this
        # model.
        figures |= {bare(row["layer"]): measured} if measured else {}
    for figure in wanted:
        if not any(figure in row for row in figures.values()):
            raise ConvertError(
                f"{path}: needs a number as {figure}_mean; none of its {len(rows)} layers has one"
            )
    notes = []
    if unmeasured:
        what = in_number(len(unmeasured), "layers were not measured")
        told = f"{path.name}: {what}, so no threshold applies: {examples(unmeasured)}"
        notes.append(Note(told, Rank.NOTE))
    if infinite:
        what = in_number(len(infinite), "layers have an infinite figure")
        told = f"{path.name}: {what}, which is above the threshold: {examples(infinite)}"
        notes.append(Note(told, Rank.NOTE))
    return figures, notes


def varying_layers(options: Options, summary: list[dict]) -> set[str]:
    """Return bare layers whose input scale varies from call to call.

    By standard deviation, or by the coefficient of variation (deviation / mean), from the options'
    thresholds up. Without a threshold on the deviation, that below which nine tenths of the layers
    lie is one. Raises ConvertError for rows without `scale_std` and `scale_mean`.
    """
    path = options.input_scale_summary_json
    rows = {bare(row["layer"]): row for row in summary}
    wrong = [
        name
        for name, row in rows.items()
        if not all(is_figure(row.get(column)) for column in ("scale_std", "scale_mean"))
    ]
    if wrong:
        raise ConvertError(f"{path}: has no scale_std and scale_mean for {examples(wrong)}")
    limit = options.input_scale_summary_std_threshold
    if limit is None:
        limit = sorted(row["scale_std"] for row in rows.values())[int((len(rows) - 1) * 0.9)]
    return {
        name
        for name, row in rows.items()
        # A layer that never varies is not listed, even where nine tenths of the layers do not.
        if row["scale_std"] > 0
        and (
            row["scale_std"] >= limit
            or row["scale_std"] >= options.input_scale_summary_cv_threshold * row["scale_mean"]
        )
    }


def measured_layers(
    options: Options, model: Model, figures: dict[str, dict[str, float]], summary: list[dict]
) -> tuple[Measured, ...]:
    """List what measured figures ask for, one record for each threshold.

    `figures` is {bare layer: {figure: value}} of --sensitivity-json, `summary` the rows of a
    calibration summary; without these files they are empty, and nothing is asked for on their
    account. Raises ConvertError where the figures are of another model.
    """
    asked, path = [], options.sensitivity_json
    for option, figure, action in MEASURED_THRESHOLDS:
        limit = getattr(options, option)
        if path is not None and limit is not None:
            # A layer without this figure was not measured, and is above no threshold.
            above = {layer for layer, row in figures.items() if row.get(figure, 0) > limit}
            asked.append((getattr(options, action), f"{figure} > {limit:g}", above))
    # A file whose layers are all unknown is of another model; a few unknown ones are not minded.
    known = {bare(ref.layer) for ref in model.linear_weights}
    if path is not None and not figures.keys() & known:
        raise of_another_model(path, it_has=figures, other_has=known)
    if options.input_scale_summary_fp16_std:
        # No fixed input scale suits such layers on every call, so that they are always 16-bit.
        varying = varying_layers(options, summary)
        asked.append(("fp16", "input scale varies from call to call", varying))
    return tuple(
        Measured(
            is_half=action == "fp16",
            reason=Reason(Why.MEASURED, text),
            weights=frozenset(
                ref.name for ref in model.linear_weights if bare(ref.layer) in layers
            ),
        )
        for action, text, layers in asked
    )


# ── nvfp4/guides/read.py: Read all guides of a conversion, each file once ─────────────────────────

def read_guides(options: Options, model: Model) -> Guides:
    """Read what options name beside the source, and match it to the source's layers.

    Every file is read once, also where two options name the same one. Raises ConvertError for a
    file that cannot be read, is damaged, or is of another model.
    """
    partial = options.partial_guide
    family, notes = find_family(options, model)
    kinds, lacking = match_gguf(options.gguf, model, partial) if options.gguf else (None, [])
    # An option that was not given has no file to match.
    settings = read_layer_config(options.layer_config, model) if options.layer_config else []
    path = options.input_scale_from
    reference, odd = read_reference_scales(path) if path else ({}, [])
    # By path, so that a file that is named twice, or as --sensitivity-json too, is read once.
    recordings = {path: read_recording(path) for path in dict.fromkeys(options.activation_stats)}
    # A file that is named twice counts twice, as two equal recordings would.
    recording = add_recordings((path, recordings[path]) for path in options.activation_stats)
    summary, left_out = read_summary(options)
    sources = calibration_sources(options, reference, recording, summary)
    listed = options.full_precision_mm_layers
    guides = Guides(
        family=family,
        kinds=kinds,
        settings=tuple(settings),
        calibration=match_calibration(options, model, sources),
        recording=recording,
        listed=match_layer_list(listed, model, partial) if listed else None,
        notes=(*notes, *lacking, *odd, *left_out),
    )
    # Measured figures come after the rest, as what clips depends on the input scales.
    figures, unmeasured = read_sensitivity(options, recordings, summary, guides.scales)
    measured = measured_layers(options, model, figures, summary)
    # A recording of --sensitivity-json alone is matched to the model by `measured_layers`.
    if options.activation_stats:
        check_recording(recording, model)
    covers = covers_of(options, sources, recording)
    # Figures may be of a few layers, as people write such files by hand: no layer has to be there.
    measures = [Cover((options.sensitivity_json,), frozenset(figures))] if figures else []
    parts = [n for cover in (*covers, *measures) for n in check_blocks(cover, model, partial)]
    notes = (*guides.notes, *unmeasured, *parts)
    return dataclasses.replace(guides, measured=measured, covers=tuple(covers), notes=notes)


def calibration_sources(
    options: Options,
    reference: dict[str, Calibration],
    recording: dict[str, Recorded],
    summary: list[dict],
) -> list[tuple[Path, dict[str, Calibration]]]:
    """List the files that options take input scales from, each with {bare layer: Calibration}.

    In order of precedence: `reference`, of --input-scale-from; `recording`, with
    --input-scale-policy headroom; `summary`, a calibration summary's rows.
    """
    sources = []
    if options.input_scale_from:
        sources.append((options.input_scale_from, reference))
    if options.input_scale_policy == "headroom":
        sources.append((options.activation_stats[0], recorded_calibration(options, recording)))
    if options.input_scale_summary_json:
        rows = summary_calibration(options, summary)
        sources.append((options.input_scale_summary_json, rows))
    return sources


def covers_of(
    options: Options,
    sources: list[tuple[Path, dict[str, Calibration]]],
    recording: dict[str, Recorded],
) -> list[Cover]:
    """List the guides that have to cover the source, with the layers that each one tells of.

    Sources of input scales cover it together. With --input-scale-value no layer lacks one.
    """
    covers = []
    if sources and options.input_scale_value is None:
        files = tuple(path for path, _ in sources)
        covers.append(Cover(files, frozenset().union(*(rows for _, rows in sources))))
    if recording:
        covers.append(Cover(options.activation_stats, frozenset(recording)))
    return covers


def read_sensitivity(
    options: Options,
    recordings: dict[Path, dict[str, Recorded]],
    summary: list[dict],
    scales: dict[str, Calibration],
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return {bare layer: {figure: value}} of --sensitivity-json, {} without it, and notes.

    The file may be a recording (.safetensors) or JSON, and it may be the same as another guide,
    whose content is then used again: `recordings` are by path, `summary` has the summary's rows.
    `scales` are the layers' input scales, by which a recording tells what clips.
    """
    path = options.sensitivity_json
    if path is None:
        return {}, []
    # The two kinds are told by the suffix alone: a recording is never JSON.
    if path.suffix.lower() == ".safetensors":
        read_already = path in recordings
        recording = recordings[path] if read_already else read_recording(path)
        return recorded_sensitivity(recording, scales), []
    is_summary = path == options.input_scale_summary_json
    rows = summary if is_summary else read_rows(path, "sensitivity file")
    return listed_sensitivity(options, rows)


# ── nvfp4/plan/choosing.py: Choose formats by options: the least one, that of 8 bits, and what sens

def format_called(word: str) -> Format:
    """Find the row of a word of the command line. Raises KeyError where there is none."""
    return {row.option: row for row in Format.rows if row.option}[word]


def first_allowed(options: Options, words: tuple[str, ...]) -> Format:
    """Return the format of the first word that may be chosen; 16-bit where none may."""
    word = next((word for word in words if word in options.allowed), UNQUANTISED)
    return format_called(word)


def recipe_format(options: Options) -> Format | None:
    """Return the format that the recipe makes of all that would be NVFP4; None for a mix."""
    word = RECIPES[options.recipe].format
    return format_called(word) if word else None


def least_format(options: Options) -> tuple[Format, str]:
    """Return the format of layers that need no more bits, and the option that says so.

    That is the recipe's, or the smallest one that --formats or --card allow.
    """
    if recipe := recipe_format(options):
        return recipe, f"--recipe {options.recipe}"
    return first_allowed(options, options.allowed), allowed_by(options)


def allowed_by(options: Options) -> str:
    """Name the option that says which formats may be chosen."""
    if options.formats or not options.card:
        return f"--formats {','.join(options.allowed)}"
    return f"--card {options.card}"


def eight_bit(options: Options) -> Format:
    """Return the format of layers that are to have 8 bits; 16-bit where none may be chosen."""
    return first_allowed(options, options.eight_bits)


def format_for(options: Options, title: str) -> Format:
    """Return what a table means by a format's title, or by EIGHT_BITS."""
    return eight_bit(options) if title == EIGHT_BITS else format_titled(title)


def held_formats(options: Options, model: Model) -> dict[Format, frozenset[str]]:
    """Find weights that the source has in 8 bits already: {format that may be chosen: weights}.

    Their codes come back as they were in that format, and would be rounded again in another one.
    """
    words = (word for word in options.eight_bits if word in options.allowed)
    rules = [dataclasses.replace(UNNAMED, precision=format_called(word)) for word in words]
    return {
        rule.precision: frozenset(
            ref.name for ref in model.linear_weights if plan_tensor(ref, rule, "").keeps_codes
        )
        for rule in rules
    }


def preset_sensitive(options: Options) -> Format:
    """Return what a layer in NVFP4 becomes that a preset marks; NVFP4 for the mark itself.

    Without --sensitive-as it is multiplied with 8-bit activations, where that may be chosen.
    """
    if options.sensitive_as or not {"w4a8", "int8"} & {*options.allowed}:
        return marked_format(options)
    return first_allowed(options, ("w4a8", "int8"))


def can_be(options: Options, form: Format, shape: tuple[int, ...]) -> bool:
    """Tell whether a weight of this shape can be of a format, or of an allowed one for it."""
    stand_in = form.for_shape(shape)
    return stand_in is form or stand_in.kernel in options.allowed


def fitting(options: Options, form: Format, shape: tuple[int, ...]) -> Format:
    """Return the format, or what weights of this shape become instead, of what may be chosen.

    That is the row that stands in for it, else any other of 8 bits, else 16-bit.
    """
    stand_in = form.for_shape(shape)
    return stand_in if can_be(options, form, shape) else eight_bit(options)


def marked_format(options: Options) -> Format:
    """Return what a marked layer in NVFP4 becomes by --sensitive-as; NVFP4 for the mark itself."""
    word = options.sensitive_as or "w4a16"
    return NVFP4 if word == "w4a16" else format_called(word)


def sensitive_format(options: Options, plan: TensorPlan) -> Format:
    """Return the format of a planned NVFP4 layer that turns out sensitive.

    NVFP4 means that it stays as it is, and is marked for full-precision matmul; so do layers whose
    shape leaves them no other format.
    """
    form, shape = marked_format(options), plan.ref.shape
    return form.for_shape(shape) if can_be(options, form, shape) else NVFP4


def unfit_reason(asked: Format, form: Format) -> Reason:
    """Say that a format does not store a weight's shape, and `form` stands in for it."""
    what = "not rotated" if form.kind == asked.kind else f"no {asked}"
    return Reason(Why.SHAPE, f"{what}: columns % {asked.column_multiple} != 0")


def spared(options: Options, plan: TensorPlan, reason: Reason) -> TensorPlan:
    """Plan a layer in NVFP4 without 4-bit activations, as --sensitive-as says, for this reason."""
    form = sensitive_format(options, plan)
    if form is plan.precision:
        return dataclasses.replace(plan, full_precision=reason)
    asked, reason = marked_format(options), reason.over(plan.reason)
    return dataclasses.replace(
        plan,
        precision=form,
        reason=reason if form is asked else unfit_reason(asked, form).over(reason),
        input_scale=None,
        input_scale_source="",
        saturated_blocks=None,
    )


# ── nvfp4/plan/contract.py: Make the rules that follow from ComfyUI's own classes: what may be quan

def is_exact(pattern: str, ref: TensorRef) -> bool:
    """Tell whether a pattern is the full name of a layer, and so no sweep over many.

    The name may have its prefix and `.weight`, dots may be escaped, and ^ and $ stand around it.
    """
    name = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^").removesuffix("$")).lower()
    return name in {known.lower() for known in (bare(ref.layer), ref.layer, ref.name)}


def doubtful_layers(model: Model, included: tuple[str, ...]) -> frozenset[str]:
    """Name the weights that may be no linear layers' and that none of `included` names exactly."""
    return frozenset(
        ref.name
        for ref in model.linear_weights
        if is_doubtful(bare(ref.layer), ref.shape, has_bias=f"{ref.layer}.bias" in model.tensors)
        and not any(is_exact(pattern, ref) for pattern in included)
    )


def embedding_rules(model: Model, asked: Set[str] = frozenset()) -> list[Rule]:
    """Make a rule for each kind of weights that are no linear layers' in ComfyUI's classes.

    asked: weights that have none, as a --layer-config quantises them by their names.
    """
    groups = defaultdict(set)
    for ref in model.tensors.values():
        if ref.is_matrix and ref.name not in asked and (found := not_linear(bare(ref.layer))):
            groups[found].add(ref.name)
    return [
        Rule(names=frozenset(names), precision=HALF, reason=Reason(Why.SOURCE, str(found)))
        for found, names in groups.items()
    ]


def recognition_rules(model: Model, unpadded: Format) -> list[Rule]:
    """Make the rules for layers whose shape ComfyUI reads.

    Where it reads columns, which packing halves, the layer stays 16-bit; so do layers outside the
    numbered blocks whose rows it reads, as these are inputs and outputs of the whole model. Rows of
    layers in blocks are only not padded: they are `unpadded` instead of formats that pad rows. Such
    a format would keep any shape, but the others are few, and a file whose first layers are plain
    numbers can still be told by any program.
    """
    padding = frozenset(row for row in Format.rows if row.row_multiple > 1)
    groups = defaultdict(set)
    for ref in model.linear_weights:
        read = shape_read(bare(ref.layer))
        if read and (read.columns or not read.in_block):
            groups[read.classes, HALF, frozenset()].add(ref.name)
        elif read and ref.shape[0] % FP4_MATMUL_N:
            groups[read.classes, unpadded, padding].add(ref.name)
    return [
        Rule(
            names=frozenset(names),
            precision=precision,
            reason=Reason(Why.RECOGNITION, f"ComfyUI recognises {classes} by its shape"),
            instead_of=instead_of,
        )
        for (classes, precision, instead_of), names in groups.items()
    ]


def contract_rules(
    model: Model, included: tuple[str, ...], unpadded: Format, embeddings: Set[str]
) -> list[Rule]:
    """List the least precisions that ComfyUI's classes ask for.

    included: the patterns of --include, and the keys of --layer-config that quantise; unpadded: the
    format for layers whose rows must not be padded; embeddings: those that it quantises.
    """
    doubt = Reason(Why.DOUBTFUL, "maybe no linear layer, by its name or shape")
    doubtful = doubtful_layers(model, included)
    return [
        *embedding_rules(model, embeddings),
        *recognition_rules(model, unpadded),
        Rule(names=doubtful, precision=HALF, reason=doubt),
    ]


def contract_notes(model: Model, plans: list[TensorPlan]) -> list[str]:
    """Note layers that stay 16-bit because they may be no linear layers, and banks of experts.

    Only layers that would have been quantised otherwise are noted.
    """
    notes = []
    doubtful = [plan.ref.layer for plan in plans if plan.reason.kind is Why.DOUBTFUL]
    if doubtful:
        what = in_number(len(doubtful), "layers stay 16-bit")
        why = "as names or shapes may be those of embeddings or routers"
        how = "--include with a layer's full name packs it"
        notes.append(Note(f"{what}, {why}: {examples(doubtful)}; {how}", Rank.HINT))
    beside = model.beside
    banks = [plan.ref for plan in plans if plan.ref.is_expert_bank and plan.ref.name not in beside]
    if banks:
        share = percentage(sum(ref.nbytes for ref in banks), model.nbytes)
        names = examples(ref.name for ref in banks)
        what = in_number(len(banks), "tensors are not quantised")
        why = f"as they have several experts' weights each, {share} of the source's bytes"
        notes.append(Note(f"{what}, {why}: {names}", Rank.NOTE))
    return notes


# ── nvfp4/tokens.py: How many tokens of a typical run each linear layer multiplies by: a row for ea

# Tokens of a prompt where ComfyUI does not pad: an assumption, which weighs little in any family.
PROMPT = 128


class Runs(NamedTuple):
    """Say which tokens the layers of some names multiply by.

    layers: a regular expression that is searched for in their names, without the model's prefix.
    tokens: names of counts, with "+" between them; "once" is a single vector.
    """

    layers: str
    tokens: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalRun:
    """Hold what a family is run with as a rule, and what goes through its layers.

    title: the run for people. counts: {name: tokens}; "image" is the picture or the video.
    rules: looked at before BY_NAME; the first that matches counts, and "image" where none does.
    """

    title: str
    counts: dict[str, int]
    rules: tuple[Runs, ...] = ()


# What families share, and a fair guess for models of none.
BY_NAME = (
    # Embeddings of the time step and of pooled vectors, and what modulates whole blocks by them.
    Runs(
        r"(?i)(^|\.)(time|timestep|guidance|vector)_|timestep_embed(der)?\.|(^|\.)[tcp]_embedder\."
        r"|(^|\.)(y_embedder\.mlp|label_emb|emb_layers|t_block|tmlp|tproj)\."
        r"|(^|[._])mod(?!el|ule)\w{0,40}\.(lin\w*|\d+)$|adaln|norm_out\.linear$",
        "once",
    ),
    # Keys and values of cross-attention, and the text's own layers of models with two streams.
    Runs(r"(cross_attn|attn2)\.(to_|linear_)?(k|v|kv)(_proj|_linear)?$", "text"),
    Runs(r"\.(add_[qkv]_proj|to_add_out)$|\.attn1\.to_(q|k|v|out)_t$|\.ff_t\.", "text"),
    Runs(r"(^|[._])(txt|text|caption|cap|context|cond_seq|byt5|y_embedder)", "text"),
    # Blocks that text and image go through as one sequence.
    Runs(r"^single(_stream|_transformer)?_(blocks|layers)\.", "image+text"),
)
# The refiners of Lumina 2 and Z-Image see text or image, the blocks after them see both.
LUMINA_BLOCKS = Runs(r"^(layers\.\d+\.(attention|feed_forward)|final_layer\.linear)", "image+text")
# Names of counts and rules are those of ComfyUI's classes; a comment says how a count comes about.
RUNS = {
    # 21 x 60 x 104 latents in patches of 1 x 2 x 2. CLIP sees 257 tokens of the first frame. Audio
    # and faces come as some tokens for each of the 21 latent frames, 16 at most (HuMo).
    "wan": TypicalRun(
        title="81 frames of 832 x 480, 512 tokens of text",
        counts={"image": 32760, "text": 512, "clip": 257, "guides": 21 * 16},
        rules=(
            Runs(r"^img_emb\.|\.[kv]_img$", "clip"),
            Runs(r"linear1_kv$|(audio_cross_attn|audio_injector\.injector\.\d+)\.[kv]$", "guides"),
            Runs(r"^(face_encoder|motion_encoder|casual_audio_encoder|audio_proj)\.", "guides"),
            Runs(r"injector_adain_layers\.", "guides"),
        ),
    ),
    "qwen-image": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text", counts={"image": 4096, "text": PROMPT}
    ),
    "flux2": TypicalRun(
        title="1024 x 1024, 512 tokens of text", counts={"image": 4096, "text": 512}
    ),
    # The guidance layer makes a vector for each of the 344 modulations.
    "chroma": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text",
        counts={"image": 4096, "text": PROMPT, "modulations": 344},
        rules=(Runs(r"^distilled_guidance_layer\.", "modulations"),),
    ),
    "flux": TypicalRun(
        title="1024 x 1024, 256 tokens of text", counts={"image": 4096, "text": 256}
    ),
    "z-image": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text",
        counts={"image": 4096, "text": PROMPT},
        rules=(Runs(r"^dec_net\.", "image"), LUMINA_BLOCKS),
    ),
    "lumina2": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text",
        counts={"image": 4096, "text": PROMPT},
        rules=(LUMINA_BLOCKS,),
    ),
    # 13 x 16 x 24 latents, each a token, and 25 tokens of sound for each second.
    "ltx2": TypicalRun(
        title="97 frames of 768 x 512 with sound, 1024 tokens of text",
        counts={"image": 4992, "text": 1024, "audio": 97},
        rules=(
            Runs(r"embeddings_connector\.", "text"),
            Runs(r"^audio_(patchify_proj|proj_out)$|\.audio_(attn1|ff)\.", "audio"),
            Runs(r"\.(audio_attn2|video_to_audio_attn)\.to_(q|out|gate)", "audio"),
            Runs(r"\.audio_to_video_attn\.to_[kv]$", "audio"),
        ),
    ),
    "ltx-video": TypicalRun(
        title="97 frames of 768 x 512, 128 tokens of text", counts={"image": 4992, "text": 128}
    ),
    # 7 x 60 x 106 latents in patches of 1 x 2 x 2; version 1.5 sees an image as 729 tokens.
    "hunyuan-video": TypicalRun(
        title=f"25 frames of 848 x 480, {PROMPT} tokens of text",
        counts={"image": 11130, "text": PROMPT, "vision": 729},
        rules=(Runs(r"^vision_in\.", "vision"),),
    ),
    # The adapter makes text of the prompt once, which is padded to 512 tokens then.
    "anima": TypicalRun(
        title="1024 x 1024, 512 tokens of text",
        counts={"image": 4096, "text": 512, "prompt": PROMPT},
        rules=(Runs(r"^llm_adapter\.", "prompt"),),
    ),
    # 24 x 60 x 106 latents in patches of 1 x 2 x 2.
    "cosmos-predict2": TypicalRun(
        title="93 frames of 848 x 480, 512 tokens of text", counts={"image": 38160, "text": 512}
    ),
}
# For a model that is of no family.
ANY_RUN = TypicalRun(
    title=f"4096 tokens of an image, {PROMPT} of text, by the names of the layers",
    counts={"image": 4096, "text": PROMPT},
)


def typical_run(family: str) -> TypicalRun:
    """Find the run of a family, a key of RUNS; of "" the one for models of no family."""
    return RUNS.get(family, ANY_RUN)


@lru_cache(maxsize=1 << 16)
def group_of(layer: str, family: str) -> str:
    """Tell which tokens a layer multiplies by, as a Runs has them: "image+text".

    layer: its name without prefix; family: a key of RUNS, or "" for none.
    """
    rules = (*typical_run(family).rules, *BY_NAME)
    return next((rule.tokens for rule in rules if re.search(rule.layers, layer)), "image")


def tokens_of(layer: str, family: str) -> int:
    """Count the tokens that go through a layer in one step of a family's typical run."""
    counts = {"once": 1, **typical_run(family).counts}
    return sum(counts[name] for name in group_of(layer, family).split("+"))


# ── nvfp4/plan/presets.py: Turn a family's row into rules: its edge blocks, and what its preset kee

def edge_count(options: Options, family: Family) -> int:
    """Return how many transformer blocks stay 16-bit at each end.

    --edge-blocks decides; else --gguf-keep-edge-blocks-fp16 means EDGE_BLOCKS, and a preset its
    family's own number. With a GGUF alone it is 0.
    """
    # 0 is a number, too: it asks for no edge blocks.
    if options.edge_blocks is not None:
        return options.edge_blocks
    if options.gguf_keep_edge_blocks_fp16:
        return EDGE_BLOCKS
    return family.edge_blocks if options.has_family else 0


def edge_block_rules(model: Model, family: Family, count: int) -> list[Rule]:
    """Make a rule for each of the first and last `count` transformer blocks of every run of blocks.

    Families such as Flux run two kinds of blocks one after the other; their edges are the ends of
    the whole run. Raises ConvertError where the source has no block of the names that the family
    gives.
    """
    if not count:
        return []
    # {(name of a run's part, block number): its linear weights}; a block without any counts too.
    members = defaultdict(set)
    for ref in model.tensors.values():
        if found := family.inside.match(bare(ref.name)):
            members[found[1], int(found[2])] |= {ref.name} if ref.is_linear_weight else set()
    rows = [
        sorted((run.index(name), number, name) for name, number in members if name in run)
        for run in family.blocks
    ]
    if not any(rows):
        raise ConvertError(
            "edge blocks: the source has no transformer blocks named "
            + ", ".join(f"{name}.N" for name in itertools.chain(*family.blocks))
        )
    return [
        Rule(
            names=frozenset(members[name, number]),
            precision=HALF,
            reason=Reason(Why.EDGE_BLOCK, "edge block"),
        )
        for row in rows
        # A run of few blocks has the same block at both of its ends.
        for _, number, name in dict.fromkeys(row[:count] + row[-count:])
    ]


def preset_reason(options: Options, family: Family) -> Reason:
    """Name the preset as the reason; for --preset auto the family that was recognised."""
    name = next((name for name, row in FAMILIES.items() if row is family), "")
    shown = name if options.preset == "auto" and name else options.preset
    return Reason(Why.FAMILY, f"--preset {shown}")


def preset_rules(options: Options, model: Model, family: Family) -> list[Rule]:
    """Make the rules of a preset for linear layers, its edge blocks aside.

    Layers outside the transformer blocks stay 16-bit; layers that the family keeps get their
    precision, or stay in the 8-bit format that the source has them in; those that it marks become
    what --sensitive-as makes of them, and all others NVFP4. "all" has the last rule alone, "none"
    has none.
    """
    every = {ref.name: bare(ref.layer) for ref in model.linear_weights}
    reason = preset_reason(options, family)
    # It names every linear layer and comes last: what no other rule took is NVFP4.
    rest = Rule(names=frozenset(every), precision=NVFP4, reason=reason, is_open=True)
    if options.preset == "all":
        return [rest]
    if options.preset == "none" or family is ANY_FAMILY:
        return []
    # Embedders and output layers have few weights, and all blocks depend on them.
    outside = frozenset(name for name, layer in every.items() if not family.inside.match(layer))
    reason = Reason(Why.FAMILY, "outside the transformer blocks")
    key = next((name for name, row in FAMILIES.items() if row is family), "")
    text = frozenset(name for name in outside if group_of(every[name], key) == "text")
    # --target-size may choose for what only the text goes through: errors of the others are in
    # every token, or in what modulates them.
    rules = [
        Rule(names=names, precision=HALF, reason=reason, is_open=names is text)
        for names in (text, outside - text)
    ]
    rules += keep_rules(options, model, family)
    form = preset_sensitive(options)
    if not form.takes_mark:
        names = frozenset(
            name
            for name in sensitive_names(family, every)
            if can_be(options, form, model.tensors[name].shape)
        )
        text = f"{rest.reason}: sensitive to 4-bit inputs"
        reason = Reason(Why.FAMILY, text)
        rules.append(dataclasses.replace(rest, names=names, precision=form, reason=reason))
    return [*rules, rest]


def keep_rules(options: Options, model: Model, family: Family) -> list[Rule]:
    """Make the rules for layers of the blocks that the family gives more than NVFP4.

    Of those that are to have 8 bits, what the source has in 8 bits already keeps its format.
    """
    every = {ref.name: bare(ref.layer) for ref in model.linear_weights}
    rules, held = [], held_formats(options, model)
    for keep in family.keeps:
        names = frozenset(name for name, layer in every.items() if re.search(keep.layers, layer))
        # --target-size may choose anew for what is quantised, and leaves 16-bit alone.
        is_open = keep.precision == EIGHT_BITS
        kept, reason = format_for(options, keep.precision), Reason(Why.FAMILY, keep.why)
        if is_open and not kept.is_quantised:
            lacking = f"no 8-bit format in {allowed_by(options)}"
            reason = Reason(Why.FAMILY, lacking).over(reason)
        rule = Rule(names=names, precision=kept, reason=reason, is_open=is_open)
        if is_open:
            rules += [
                dataclasses.replace(rule, names=names & weights, precision=form)
                for form, weights in held.items()
            ]
        rules.append(rule)
    return rules


def sensitive_names(family: Family, layers: dict[str, str]) -> frozenset[str]:
    """Name the weights whose layers the family spares from 4-bit activations.

    `layers` is {weight: its layer without prefix}.
    """
    pattern = family.full_precision
    return frozenset(
        name for name, layer in layers.items() if pattern and re.search(pattern, layer)
    )


# ── nvfp4/plan/rules.py: Decide which precision a tensor gets: the rules in order, then the floors 

# A file may hold a text encoder or a VAE beside the diffusion model: these are only copied.
NOT_DIFFUSION = Reason(Why.BESIDE, "not of the diffusion model")
BY_LAYER_CONFIG = Reason(Why.LAYER_CONFIG, "--layer-config")
# Small tensors that keep the source's dtype without a GGUF: they cost few bytes, and rounding them
# to --dtype would reach every token.
KEEPS_SOURCE_PRECISION = r"bias$|norm|modulation|scale_shift_table"


def select(model: Model, pattern: str, option: str) -> frozenset[str]:
    """Return the linear weights that a pattern matches, by bare layer name or by full tensor name.

    `pattern` is searched without regard to case; `option` is what messages name. Raises
    ConvertError if nothing matches, as a typo would otherwise go unnoticed.
    """
    # Full names match as well as bare ones, so that a name can be copied from any report.
    found = re.compile(pattern, re.IGNORECASE)
    beside = model.beside
    matched = [
        ref
        for name, ref in model.tensors.items()
        if ref.is_matrix and name not in beside
        if found.search(bare(ref.layer)) or found.search(name)
    ]
    names = frozenset(ref.name for ref in matched if ref.is_linear_weight)
    if not names:
        layers = examples(ref.layer for ref in model.linear_weights) or "no linear layers at all"
        why = f"; {matched[0].layer}: {not_linear(bare(matched[0].layer))}" if matched else ""
        raise ConvertError(
            f"{option}: matches no linear layer of the source, which has {layers}{why}"
        )
    return names


def gguf_precision(kind: str, options: Options) -> tuple[Format, str]:
    """Return the format that a GGML type asks for, and the reason's text.

    F32 and F64 stay 32-bit; F16, BF16 and more than 8 bits become 16-bit. Of the others, those of
    up to --gguf-nvfp4-max-bitdepth bits become NVFP4, and the rest FP8 with --use-fp8, INT8 with
    --use-int8, what a recipe for 8 bits says, else 16-bit.
    """
    bits, limit = GGUF_BITS[kind], options.gguf_nvfp4_max_bitdepth
    if kind in ("F32", "F64"):
        return FP32, f"GGUF {kind}"
    # I16 to I64 are no quantised weights: treat them as the 16-bit types.
    if kind in ("F16", "BF16") or bits > 8:
        return HALF, f"GGUF {kind}"
    if bits <= limit:
        return NVFP4, f"GGUF {kind} <= {limit} bits"
    eight = eight_bit(options)
    if options.use_fp8 or options.use_int8 or recipe_format(options) is eight:
        return eight, f"GGUF {kind} > {limit} bits"
    flag = "--use-fp8" if "fp8" in options.allowed else "--use-int8"
    return HALF, f"GGUF {kind} > {limit} bits, no {flag}"


def gguf_rules(kinds: dict[str, str], options: Options) -> list[Rule]:
    """Make one rule for each GGML type among {tensor: GGML type}, so that reasons name the type."""
    by_kind = defaultdict(set)
    for name, kind in kinds.items():
        by_kind[kind].add(name)
    rules = []
    for kind, names in sorted(by_kind.items()):
        precision, text = gguf_precision(kind, options)
        names, reason = frozenset(names), Reason(Why.GGUF, text)
        is_open = precision.is_quantised
        rules.append(Rule(names=names, precision=precision, reason=reason, is_open=is_open))
    return rules


def untouched_rules(model: Model) -> list[Rule]:
    """Make the rules for tensors that go over as they are, whatever else names them.

    These are tensors beside the diffusion model, parts of layers that are packed in the source, and
    tensors that are empty or no floats of 16 or 32 bits.
    """
    refs = model.tensors.values()
    beside = Rule(names=frozenset(model.beside), precision=KEPT, reason=NOT_DIFFUSION)
    rows = {
        "quantised in the source: as it is": (ref.name for ref in refs if ref.is_kept),
        "empty, or not a 16/32-bit float": (ref.name for ref in refs if not ref.is_float),
    }
    return [beside] + [
        Rule(names=frozenset(names), precision=KEPT, reason=Reason(Why.SOURCE, text))
        for text, names in rows.items()
    ]


def option_rules(options: Options, model: Model) -> list[Rule]:
    """Make the rules of --exclude (16-bit), then of --include (NVFP4), one for each pattern.

    Raises ConvertError for a pattern that matches no linear layer.
    """
    rows = [("--exclude", pattern, HALF) for pattern in options.exclude]
    rows += [("--include", pattern, NVFP4) for pattern in options.include]
    return [
        Rule(
            names=select(model, pattern, f"{option} {pattern}"),
            precision=precision,
            reason=Reason(Why.OPTION, f"{option} {pattern}"),
        )
        for option, pattern, precision in rows
    ]


def choice_rules(
    options: Options, model: Model, guides: Guides, chosen: dict[str, Format]
) -> list[Rule]:
    """List what decides a tensor's precision, in order: the first rule that names it wins.

    That is: untouched tensors, --exclude and --include, the layer config and chosen sizes, edge
    blocks, and then either the GGUF's types or the preset with the source's precision for small
    tensors. `chosen` is {tensor: format} of --target-size.
    """
    rules = [
        *untouched_rules(model),
        *option_rules(options, model),
        *setting_rules(guides.settings, chosen),
    ]
    rules += edge_block_rules(model, guides.family, edge_count(options, guides.family))
    if guides.kinds is not None:
        # A tensor that the GGUF does not have gives no hint: 16-bit is safe.
        lacking = Rule(
            names=frozenset(model.tensors.keys() - guides.kinds.keys()),
            precision=HALF,
            reason=Reason(Why.GGUF, "not in the GGUF"),
        )
        return [*rules, *gguf_rules(guides.kinds, options), lacking]
    rules += [*preset_rules(options, model, guides.family), *embedding_rules(model)]
    small = frozenset(
        ref.name
        for ref in model.tensors.values()
        if not (ref.is_linear_weight or ref.coding)
        and (len(ref.shape) <= 1 or re.search(KEEPS_SOURCE_PRECISION, bare(ref.name)))
    )
    if options.recipe == LEGACY_RECIPE:  # files of the older kind have one dtype for the rest
        return rules
    reason = Reason(Why.SOURCE, "bias, norm or modulation: as in the source")
    return [*rules, Rule(names=small, precision=KEPT, reason=reason)]


def floor_rules(options: Options, model: Model, settings: Iterable[Setting]) -> list[Rule]:
    """List least precisions: each rule that names a tensor can only raise it.

    settings: of --layer-config, whose full names of layers count as those of --include do; what it
    says goes before --formats and --card.
    """
    linear, eight = model.linear_weights, eight_bit(options)
    rows = [
        (
            select(model, switch.layers, option),
            format_for(options, switch.least),
            Reason(Why.OPTION, option),
        )
        for option, switch in MINIMUM_OPTIONS.items()
        if option in options.minimums
    ]
    settings = [*settings]
    least, option = least_format(options)
    chosen = {ref.name for ref in linear}
    if not recipe_format(options):
        chosen = chosen.difference(*(setting.names for setting in settings))
    rows.append((chosen, least, Reason(Why.OPTION, option)))
    packed = [setting for setting in settings if setting.precision.is_quantised]
    named = frozenset().union(*(setting.names for setting in packed))
    embeddings = {name for name in named if model.tensors[name].is_embedding}
    nonlinear = model.tensors.keys() - {ref.name for ref in linear} - embeddings
    rows.append((nonlinear, HALF, Reason(Why.SOURCE, "not a linear layer's weight")))
    included = (*options.include, *(setting.key for setting in packed))
    return [
        *(
            Rule(names=frozenset(names), precision=precision, reason=reason)
            for names, precision, reason in rows
        ),
        *contract_rules(model, included, eight, embeddings),
        *shape_rules(model, eight),
    ]


def shape_rules(model: Model, eight: Format) -> list[Rule]:
    """Make rules that give NVFP4 layers without an FP4 matmul the format `eight`.

    Layers of such shapes would load, but be decoded on every call.
    """
    linear = model.linear_weights
    columns = f"no FP4 matmul: columns % {FP4_MATMUL_K} != 0"
    with_bias = f"no FP4 matmul with a bias: rows % {FP4_MATMUL_N} != 0"
    rows = {
        columns: (ref.name for ref in linear if ref.shape[1] % FP4_MATMUL_K),
        with_bias: (
            ref.name
            for ref in linear
            if ref.shape[0] % FP4_MATMUL_N and f"{ref.layer}.bias" in model.tensors
        ),
    }
    return [
        Rule(
            names=frozenset(names),
            precision=eight,
            reason=Reason(Why.SHAPE, text),
            instead_of=frozenset({NVFP4}),
        )
        for text, names in rows.items()
    ]


def decide(name: str, choices: list[Rule], floors: list[Rule]) -> Rule:
    """Return the rule that a tensor goes by; precisions are decided here and nowhere else.

    The first of `choices` that names it, UNNAMED without any; then every floor that is higher takes
    its place, and its reason keeps the one that it overruled.
    """
    # A floor replaces the rule but not `is_open`: --target-size may raise a layer above its floor.
    named = (rule for rule in choices if name in rule.names)
    decided = next(named, UNNAMED)
    if decided.reason.kind is Why.TARGET_SIZE:
        # What would have kept more bits is worth telling, as of layers outside the blocks.
        other = next(named, UNNAMED)
        if decided.precision < other.precision:
            decided = dataclasses.replace(decided, reason=decided.reason.over(other.reason))
    # Floors come in any order: the highest one that applies is what remains. Those that are for
    # single formats see what the others have left.
    for rule in sorted(floors, key=lambda rule: bool(rule.instead_of)):
        if name in rule.names and rule.replaces(decided.precision):
            reason = rule.reason.over(decided.reason)
            decided = dataclasses.replace(rule, reason=reason, is_open=decided.is_open)
    return decided


def fitted(options: Options, rule: Rule, ref: TensorRef) -> Rule:
    """Return a tensor's rule with a format that stores its shape, and why if it is another.

    What a --layer-config says goes before --formats and --card here, too.
    """
    asked = rule.precision
    form = fitting(options, asked, ref.shape)
    if rule.reason.kind is Why.LAYER_CONFIG:
        form = asked.for_shape(ref.shape)
    if form is asked:
        return rule
    reason = unfit_reason(asked, form)
    return dataclasses.replace(rule, precision=form, reason=reason.over(rule.reason))


def refuse_for_kept(options: Options, model: Model) -> None:
    """Raise ConvertError for options that ask to change layers which are packed in the source.

    Such layers go over as they are: neither a recipe for another format nor --exclude can apply.
    """
    # Only a packed layer's weight has a configuration: one entry for each layer.
    beside = model.beside
    refs = [ref for ref in model.tensors.values() if ref.name not in beside]
    packed = {bare(ref.layer): json.loads(ref.config)["format"] for ref in refs if ref.config}
    recipe = recipe_format(options)
    if others := [layer for layer, config in packed.items() if recipe and config != recipe.config]:
        raise ConvertError(
            f"--recipe {options.recipe}: {examples(others)}: quantised otherwise in the source "
            "already, and goes over as it is"
        )
    for pattern in options.exclude:
        found = re.compile(pattern, re.IGNORECASE)
        if named := [layer for layer in packed if found.search(layer)]:
            raise ConvertError(
                f"--exclude {pattern}: {examples(named)}: quantised in the source already, and "
                "goes over as it is"
            )


def setting_rules(settings: Iterable[Setting], chosen: dict[str, Format]) -> list[Rule]:
    """Make rules of what a --layer-config says and of what --target-size chose.

    `settings` come in the order in which they count; `chosen` is {tensor: format}.
    """
    rules = [
        Rule(
            names=setting.names,
            precision=setting.precision,
            reason=BY_LAYER_CONFIG,
            dtype=setting.dtype,
        )
        for setting in settings
    ]
    # What was chosen may be planned already: an older form is planned as the newer one again.
    newer = {format_titled(row.older_form): row for row in Format.rows if row.older_form}
    chosen = {name: newer.get(form, form) for name, form in chosen.items()}
    reason = Reason(Why.TARGET_SIZE, TARGET)
    # One rule for each precision; sorted, so that equal choices give equal lists of rules.
    for precision in sorted({*chosen.values()}):
        names = frozenset(name for name, other in chosen.items() if other is precision)
        rules.append(Rule(names=names, precision=precision, reason=reason, is_open=True))
    return rules


# ── nvfp4/plan/inputs.py: Plan how a layer takes its input: input scale, full-precision matmul, sta

# A note names layers in which more than 0.1 % of the recorded blocks clip at their input scale.
MANY_SATURATED = 0.001


class Mark(NamedTuple):
    """Name weights whose matmul is to stay 16-bit if they are quantised, with the reason."""

    reason: Reason
    names: Set[str]


def full_precision_marks(
    options: Options, model: Model, guides: Guides
) -> tuple[list[Mark], list[str]]:
    """List what options and files mark for full-precision matmul, with notes.

    The order is that in which reasons count: switches by kind of layer, patterns, the
    --layer-config, the list of --full-precision-mm-layers. A note tells of names in that list that
    match nothing. Raises ConvertError for a switch or pattern that matches no linear layer.
    """
    wanted = {
        option: switch.layers
        for option, switch in FULL_PRECISION_OPTIONS.items()
        if option in options.full_precision
    }
    wanted |= {f"--full-precision-mm-pattern {p}": p for p in options.full_precision_mm_pattern}
    marks = [
        Mark(Reason(Why.OPTION, option), select(model, pattern, option))
        for option, pattern in wanted.items()
    ]
    configured = (setting.names for setting in guides.settings if setting.full_precision)
    marks.append(Mark(BY_LAYER_CONFIG, frozenset().union(*configured)))
    if guides.listed is None:
        return marks, []
    name, (weights, unknown) = options.full_precision_mm_layers.name, guides.listed
    marks.append(Mark(Reason(Why.LAYER_LIST, name), weights))
    what = in_number(len(unknown), "names match nothing")
    note = Note(f"{name}: {what}: {examples(unknown)}", Rank.NOTE)
    # Names that match nothing are no error, as long as some do: `match_layer_list` sees to that.
    return marks, [note] if unknown else []


def sensitive_marks(options: Options, model: Model, guides: Guides) -> Iterator[Mark]:
    """Yield marks that are meant for 4-bit layers: the preset's, then those of measured figures.

    A preset marks no layer that a --layer-config names, and none that can have another format for
    what is sensitive. Measured figures count here only where their action is a full-precision
    matmul; those that ask for 16 bits are floors of the precision.
    """
    family, form = guides.family, preset_sensitive(options)
    if options.has_family and family.full_precision:
        marked = [
            ref
            for ref in model.linear_weights
            if form.takes_mark or not can_be(options, form, ref.shape)
        ]
        names = sensitive_names(family, {ref.name: bare(ref.layer) for ref in marked})
        # A --layer-config decides on full-precision matmul for all its layers, also where it is
        # silent.
        configured = frozenset().union(*(setting.names for setting in guides.settings))
        yield Mark(preset_reason(options, family), names - configured)
    for measured in guides.measured:
        if not measured.is_half:
            yield Mark(measured.reason, measured.weights)


def marks_by_precision(
    options: Options, model: Model, guides: Guides
) -> tuple[dict[Format, list[Mark]], list[str]]:
    """List each format's marks, and notes: {format: its marks, of which the first one counts}.

    A switch for all layers of a format, such as --fp8-full-precision-mm, takes the place of all
    others.
    """
    marks, notes = full_precision_marks(options, model, guides)
    # Sensitive layers were measured in 4 bits, and presets mean these alone.
    sensitive = [*marks, *sensitive_marks(options, model, guides)]
    found = {}
    for form in written_formats():
        found[form] = sensitive if form.has_nvfp4_input else marks if form.takes_mark else []
        option = form.full_precision_option
        if option and getattr(options, option):
            why = Reason(Why.OPTION, "--" + option.replace("_", "-"))
            found[form] = [Mark(why, model.tensors.keys())]
    return found, notes


def sensitive_floors(options: Options, model: Model, marks: list[Mark]) -> list[Rule]:
    """Make floors of the marks of NVFP4 layers, where --sensitive-as makes other formats of them.

    What a --layer-config marks stays as it is written there, and layers are marked whose shape has
    no such format.
    """
    form = marked_format(options)
    if form.takes_mark:
        return []
    kept = frozenset(r.name for r in model.linear_weights if not can_be(options, form, r.shape))
    kept = kept.union(*(mark.names for mark in marks if mark.reason is BY_LAYER_CONFIG))
    return [
        Rule(names=mark.names - kept, precision=form, reason=mark.reason)
        for mark in marks
        if mark.reason is not BY_LAYER_CONFIG
    ]


def kept_marks(options: Options, marks: list[Mark], chosen: set[str]) -> list[Rule]:
    """Make rules that keep layers which somebody named for full-precision matmul to that.

    marks: of NVFP4 layers; chosen: tensors that --target-size chose formats for. Of these, it gives
    the named ones no format that cannot be marked: they stay 16-bit instead. --sensitive-as says
    what else they may become.
    """
    if not marked_format(options).takes_mark:
        return []
    unmarked = frozenset(form for form in written_formats() if not form.takes_mark)
    return [
        Rule(
            names=frozenset(mark.names & chosen),
            precision=HALF,
            reason=mark.reason,
            instead_of=unmarked,
        )
        for mark in marks
        if mark.reason.kind in (Why.OPTION, Why.LAYER_LIST)
    ]


def attach_scale(plan: TensorPlan, row: Calibration | None) -> TensorPlan:
    """Give a quantised layer its input scale, or full-precision matmul where it must have one.

    `row` are the layer's calibrated scales, None without any. ComfyUI casts the input of an FP8
    layer without input_scale unscaled and clamps it at 448, so that such a layer gets
    full-precision matmul. An NVFP4 layer without one stays dynamic. Raises ConvertError for a scale
    that float32 cannot hold as a positive number.
    """
    if row is not None and plan.precision in row.scales:
        scale = row.scales[plan.precision]
        # Stored as float32: a tiny Python float would become 0, a huge one infinite.
        if not 0 < torch.tensor(scale, dtype=torch.float32) < math.inf:
            raise ConvertError(
                f"{plan.ref.layer}: input scale {scale:g} ({row.source}) is no positive float32"
            )
        return dataclasses.replace(plan, input_scale=scale, input_scale_source=row.source)
    if plan.precision.needs_input_scale and not plan.full_precision:
        why = Reason(Why.NO_INPUT_SCALE, f"{plan.precision} without an input scale")
        return dataclasses.replace(plan, full_precision=why)
    return plan


def as_scaled_fp8(plans: list[TensorPlan]) -> tuple[list[TensorPlan], list[str]]:
    """Turn FP8 layers into scaled FP8, which has one switch for full-precision matmul in the file.

    Returns the plans and a note. If any layer needs full-precision matmul, all of them get it; the
    note says so where the others would not have needed it. Raises ConvertError for layers whose
    format has no older form.
    """
    layers = [plan for plan in plans if plan.is_quantised]
    if others := [plan.ref.layer for plan in layers if not plan.precision.older_form]:
        raise ConvertError(f"--recipe scaled-fp8: has no form for {examples(others)}")
    needing = sum(
        # ComfyUI drops an input scale of exactly 1, and would take the layer for one without.
        bool(plan.full_precision) or np.float32(plan.input_scale) == 1
        for plan in layers
    )
    # One marker tensor tells ComfyUI of all layers: what one layer needs, all get.
    reason = Reason(Why.SHARED_SWITCH, f"{MARKER} holds for every layer") if needing else None
    shared = [
        dataclasses.replace(
            plan,
            precision=format_titled(plan.precision.older_form),
            full_precision=plan.full_precision or reason,
        )
        if plan.is_quantised
        else plan
        for plan in plans
    ]
    what = f"scaled FP8 has one switch for all its {len(layers)} layers"
    note = Note(f"{what}: full-precision matmul for all, as {needing} need it", Rank.NOTE)
    return shared, [note] if 0 < needing < len(layers) else []


def attach_recording(
    options: Options, plans: list[TensorPlan], recording: dict[str, Recorded]
) -> tuple[list[TensorPlan], list[str]]:
    """Add to plans what --activation-stats tells of their layers' inputs; return them with notes.

    `recording` is {bare layer: Recorded}: from it come the share of blocks that clip, and the
    statistics for rounding.
    """
    plans, clipped = count_saturated(plans, recording)
    plans, aware = attach_moments(options, plans, recording)
    return plans, [*clipped, *aware]


def count_saturated(
    plans: list[TensorPlan], recording: dict[str, Recorded]
) -> tuple[list[TensorPlan], list[str]]:
    """Add the share of recorded blocks that clip at each NVFP4 layer's input scale, with notes.

    A block of 16 channels clips where its scale would exceed E4M3's 448. A note names the layers in
    which that is more than MANY_SATURATED of the blocks.
    """
    counted = []
    for plan in plans:
        recorded = recording.get(bare(plan.ref.layer))
        # A dynamic scale follows its input and clips nothing; FP8 layers have no blocks.
        if recorded and plan.has_nvfp4_input and plan.input_scale is not None:
            clipped = recorded.saturated(plan.input_scale)
            counted.append(dataclasses.replace(plan, saturated_blocks=clipped))
        else:
            counted.append(plan)
    notes = []
    many = [plan.ref.layer for plan in counted if (plan.saturated_blocks or 0) > MANY_SATURATED]
    if many:
        what = f"clip more than {MANY_SATURATED:.1%} of the blocks recorded"
        told = f"input scales of {in_number(len(many), 'layers')} {what}: {examples(many)}"
        notes.append(Note(told, Rank.WARNING))
    return counted, notes


def attach_moments(
    options: Options, plans: list[TensorPlan], recording: dict[str, Recorded]
) -> tuple[list[TensorPlan], list[str]]:
    """Give quantised layers the statistics to round them by, and the bias that goes along.

    Rounding may move a layer's mean output, which its bias makes up for, so that the bias is
    planned with the weight; where only the mean of an input is known, the bias alone moves. Returns
    the plans with notes on layers without statistics, and on recordings or options by which nothing
    is done.
    """
    # By name, as a layer's bias is a tensor of its own with a plan of its own.
    biases = {plan.ref.name: plan for plan in plans if plan.ref.is_float}
    given = [
        with_statistics(plan, recording, biases.get(f"{plan.ref.layer}.bias"))
        if plan.is_quantised
        else plan
        for plan in plans
    ]
    if not any(plan.moments or plan.mean is not None for plan in given):
        # A recording without second moments still gives scales and the counts of what clips.
        if not recording or any(plan.input_scale for plan in plans):
            return plans, []
        none = "has no second moments, and gives no input scales without --input-scale-policy"
        what = f"--activation-stats {none} headroom: nothing is done with it"
        return plans, [Note(what, Rank.WARNING)]
    # That search looks at weights alone, and who asks for it gets no rounding by statistics.
    if options.scale_search == "amax":
        what = "--scale-search amax: second moments and means are not used"
        return plans, [Note(what, Rank.NOTE)]
    return given, notes_on_statistics(given)


def with_statistics(
    plan: TensorPlan, recording: dict[str, Recorded], bias: TensorPlan | None
) -> TensorPlan:
    """Give one quantised layer what a recording has of it, second moments before means.

    bias: the plan of its bias, None without one, which means alone can do nothing for.
    """
    recorded = recording.get(bare(plan.ref.layer))
    if recorded is None:
        return plan
    if recorded.moments:
        return dataclasses.replace(plan, moments=recorded.moments, bias=bias)
    mean = recorded.sums.mean if recorded.sums and bias else None
    return plan if mean is None else dataclasses.replace(plan, mean=mean, bias=bias)


def notes_on_statistics(plans: list[TensorPlan]) -> list[str]:
    """Tell of quantised layers that are not rounded by statistics, and what is done instead."""
    multiplied = (plan for plan in plans if plan.is_quantised and not plan.is_looked_up)
    lacking = [plan for plan in multiplied if not plan.moments]
    moved = [plan.ref.layer for plan in lacking if plan.mean is not None]
    notes = []
    if lacking:
        what = in_number(len(lacking), "layers have no second moments, and the plain search")
        names = examples([plan.ref.layer for plan in lacking])
        notes.append(Note(f"{what}: {names}", Rank.NOTE))
    if moved:
        what = "make up for the mean error, as the mean is most of their input"
        told = f"biases of {len(moved)} of these {what}: {examples(moved)}"
        notes.append(Note(told, Rank.INFORMATION))
    return notes


# ── nvfp4/plan/make.py: Plan every tensor of a model, and warn of plans that people regret ────────

def make_plans(
    options: Options, model: Model, guides: Guides, chosen: dict[str, Format] | None = None
) -> Plan:
    """Plan every tensor of a model, in source order, with notes for the report.

    No file is opened: the same arguments give the same plans. `chosen` is {tensor: precision} that
    --target-size settled on. Raises ConvertError if options name what the model lacks, if an input
    scale is no positive float32, and if nothing would be quantised.
    """
    refuse_for_kept(options, model)
    choices = choice_rules(options, model, guides, chosen or {})
    marks, unknown = marks_by_precision(options, model, guides)
    floors = [*floor_rules(options, model, guides.settings), *measured_floors(guides)]
    floors += sensitive_floors(options, model, marks[NVFP4])
    floors += kept_marks(options, marks[NVFP4], {*(chosen or {})})
    plans, scales = [], guides.scales
    for ref in model.tensors.values():
        rule = fitted(options, decide(ref.name, choices, floors), ref)
        plan = plan_tensor(ref, rule, DTYPE_OPTIONS[options.dtype])
        if plan.is_quantised and not plan.is_looked_up:
            # The first mark that names the layer is the reason that the report gives.
            asked = (mark.reason for mark in marks[plan.precision] if ref.name in mark.names)
            marked = dataclasses.replace(plan, full_precision=next(asked, None))
            plan = attach_scale(marked, scales.get(ref.layer))
        plans.append(plan)
    refuse_unquantised(options, plans, guides.kinds or {})
    plans, recorded = attach_recording(options, plans, guides.recording)
    # Without other calibration than the --layer-config's, dynamic layers are what was asked for.
    calibrated = not guides.calibration.keys() <= guides.configured.keys()
    notes = [*guides.notes, *cover_notes(plans, guides, options.partial_guide)]
    notes += list_notes(plans, guides, options.full_precision_mm_layers)
    notes += [*recorded, *unknown, *scale_notes(plans, calibrated)]
    notes += gguf_notes(options, plans, guides.kinds or {})
    notes += [*plan_notes(plans, guides.family), *contract_notes(model, plans)]
    # Last, as the shared switch depends on every layer's input scale.
    if options.recipe == LEGACY_RECIPE:
        plans, more = as_scaled_fp8(plans)
        notes += more
    return Plan(plans, tuple(notes))


def measured_floors(guides: Guides) -> list[Rule]:
    """Make a floor for each measured figure that asks for 16 bits, whatever chose a precision."""
    return [
        Rule(names=measured.weights, precision=HALF, reason=measured.reason)
        for measured in guides.measured
        if measured.is_half
    ]


def refuse_unquantised(options: Options, plans: list[TensorPlan], kinds: dict[str, str]) -> None:
    """Raise ConvertError for a plan that quantises nothing, with the most likely remedy.

    `kinds` is {tensor: GGML type}, empty without a GGUF. The message names the reason that most
    linear layers have for staying as they are.
    """
    if any(plan.is_quantised for plan in plans):
        return
    include = ", or name layers with --include"
    # Later cases are more certain than earlier ones, and replace their advice.
    bits = [GGUF_BITS[kind] for kind in kinds.values() if GGUF_BITS[kind] <= 8]
    depth = f"give --gguf-nvfp4-max-bitdepth {min(bits)}" if bits else "take another GGUF"
    if not kinds:
        depth = "give fewer --edge-blocks"
    if bits and min(bits) <= options.gguf_nvfp4_max_bitdepth:
        depth = "relax what keeps them"
    kept = Counter(plan.reason for plan in plans if plan.is_layer)
    if not bits and any(plan.ref.config and plan.is_layer for plan in plans):
        depth = "nothing is left to quantise: give the original 16- or 32-bit model"
        include = ""
    if any(reason.kind is Why.TARGET_SIZE for reason in kept):
        depth = f"give a smaller {TARGET}"
    usual = f" (mostly: {kept.most_common(1)[0][0]})" if kept else ""
    raise ConvertError(f"{options.source}: no layer would be quantised{usual}; {depth}{include}")


def cover_notes(plans: list[TensorPlan], guides: Guides, partial: bool) -> list[str]:
    """Note what share of the NVFP4 layers each guide covers, if it is `partial`.

    Asked are layers of the kinds that the guide tells of, as a calibration knows only kinds that
    were quantised while it was recorded. Raises ConvertError for gaps without `partial`.
    """
    notes = []
    configured = {bare(layer) for layer in guides.configured}
    for cover in guides.covers:
        kinds = {*map(kind_of, cover.layers)}
        wanted = {
            bare(plan.ref.layer): plan.ref.nbytes
            for plan in plans
            if plan.is_quantised and plan.has_nvfp4_input and kind_of(plan.ref.layer) in kinds
        }
        for layer in configured:
            wanted.pop(layer, None)
        notes += check_cover(cover, wanted, partial)
    return notes


def list_notes(plans: list[TensorPlan], guides: Guides, path: Path | None) -> list[str]:
    """Note NVFP4 blocks behind the last one that a list for full-precision matmul names.

    A list of a smaller relative ends early; one of a few layers, as people write them, tells
    nothing: it has to name layers of half of the blocks.
    """
    if guides.listed is None:
        return []
    packed = blocks_of(bare(plan.ref.layer) for plan in plans if plan.is_w4a4)
    named = blocks_of(bare(name) for name in guides.listed.weights)
    behind = sorted(packed - named, key=natural_key)
    last = max(map(natural_key, named), default=[])
    behind = [block for block in behind if natural_key(block) > last]
    if 2 * len(named) < len(packed | named) or not behind:
        return []
    what = f"{path.name} names no layer of the last NVFP4 blocks: {examples(behind)}"
    return [Note(what, Rank.NOTE)]


def scale_notes(plans: list[TensorPlan], calibrated: bool) -> list[str]:
    """Note W4A4 layers that lack a calibration row, and FP8 layers without an input scale.

    `calibrated` tells whether any calibration was given besides the --layer-config; without one all
    layers are dynamic, and that needs no note.
    """
    dynamic = [plan.ref.layer for plan in plans if plan.is_w4a4 and plan.input_scale is None]
    forced = [
        plan.ref.layer
        for plan in plans
        if plan.full_precision and plan.full_precision.kind is Why.NO_INPUT_SCALE
    ]
    notes = []
    if calibrated and dynamic:
        what = in_number(len(dynamic), "W4A4 layers have no calibration row and stay dynamic")
        notes.append(Note(f"{what}: {examples(dynamic)}", Rank.NOTE))
    if forced:
        what = in_number(
            len(forced), "FP8 layers have no input scale and get full-precision matmul"
        )
        notes.append(Note(f"{what}: {examples(forced)}", Rank.HINT))
    return notes


def gguf_notes(options: Options, plans: list[TensorPlan], kinds: dict[str, str]) -> list[str]:
    """Note layers that the GGUF has in few bits and that stay 16-bit, with --card or --formats.

    Whoever asks for these wants layers to be fast, and --use-int8 would make them so. `kinds` is
    {tensor: GGML type}.
    """
    left = [
        plan.ref.layer
        for plan in plans
        if plan.is_layer and plan.reason.kind is Why.GGUF and not plan.is_quantised
        if GGUF_BITS[kinds.get(plan.ref.name, "F32")] <= 8
    ]
    asked = (options.card or options.formats) and "int8" in options.allowed
    if not left or not asked:
        return []
    what = in_number(len(left), "layers stay 16-bit that --use-int8 would make INT8")
    return [Note(f"{what}: {examples(left)}", Rank.HINT)]


def plan_notes(plans: list[TensorPlan], family: Family) -> list[str]:
    """Warn about choices in the plan that usually turn out badly.

    Those are: layers that are quantised twice, layers that keep their packed form, a --layer-config
    that floors overrule, too much NVFP4 in an image model, and a file that is no faster than
    16-bit.
    """
    notes, layers = [], [plan for plan in plans if plan.is_layer]
    # A layer that keeps its codes is quantised once.
    twice = defaultdict(list)
    for plan in layers:
        if plan.ref.coding and plan.is_quantised and not plan.keeps_codes:
            twice[format_titled(plan.ref.coding.title).kind].append(plan.ref.layer)
    for kind, named in sorted(twice.items()):
        what = in_number(len(named), f"layers are {kind} in the source and quantised twice")
        why = f"which is worse than from the 16-bit model; errors are against the {kind} weights"
        notes.append(Note(f"{what}, {why}: {examples(named)}", Rank.HINT))
    if passed := sum(bool(plan.ref.config) for plan in layers):
        what = in_number(passed, "layers are quantised in the source and go over as they are")
        notes.append(Note(what, Rank.INFORMATION))
    # Floors overrule a --layer-config; its author may expect otherwise.
    raised = [plan.ref.layer for plan in layers if Why.LAYER_CONFIG in plan.reason.overruled_kinds]
    if raised:
        what = in_number(len(raised), "layers get more than --layer-config says")
        notes.append(Note(f"{what}: {examples(raised)}", Rank.NOTE))
    packed = [plan for plan in layers if plan.has_nvfp4_input]
    part = weights_of(packed) / (weights_of(plan for plan in plans if plan.is_multiplied) or 1)
    if family.image and part > MOST_NVFP4:
        what = f"{100 * part:.0f} % of the linear weights are NVFP4: image models are known to give"
        how = "noise then; keep more layers with --exclude, --edge-blocks or --target-size"
        notes.append(Note(f"{what} {how}", Rank.WARNING))
    marked = ("full_precision_matrix_mult" in plan.config for plan in layers if plan.config)
    if packed and all(marked):
        what = "no layer is W4A4: the file saves memory, and no time over 16-bit"
        notes.append(Note(what, Rank.NOTE))
    return notes


def shape_notes(options: Options, plans: list[TensorPlan]) -> list[str]:
    """Note layers whose shape decides on their format, of plans that nothing changes any more.

    Those are: layers that another format suits, and those that --target-size or a mark would give a
    format which does not store them, and for which none that may be chosen stands in.
    """
    shaped, limited = defaultdict(list), defaultdict(list)
    is_sized = options.target_size or options.target_ratio
    for plan in plans:
        if plan.is_layer and plan.reason.kind is Why.SHAPE:
            shaped[plan.precision].append(plan.ref.layer)
        elif plan.is_layer and plan.is_quantised and (is_sized or plan.full_precision):
            forms = map(format_called, options.allowed)
            lacking = [str(form) for form in forms if not can_be(options, form, plan.ref.shape)]
            limited[" or ".join(lacking)].append(plan.ref.layer)
    limited.pop("", None)
    notes = []
    for form, named in shaped.items():
        what = in_number(len(named), f"layers are {form} for their shape")
        notes.append(Note(f"{what}: {examples(named)}", Rank.INFORMATION))
    for form, named in limited.items():
        what = in_number(len(named), f"layers cannot be {form} for their shape")
        why = "and --formats leaves nothing to stand in"
        notes.append(Note(f"{what}, {why}: {examples(named)}", Rank.NOTE))
    return notes


# ── nvfp4/encode/rounding.py: Round a layer to the least error of its output ──────────────────────

# About this many rows of a weight, evenly spaced, decide which damping it gets.
DAMPING_ROWS = 256
# Rows of a weight that a thread rounds at once; a GPU takes all of them.
FEEDBACK_ROWS = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Hold how a layer is rounded by its statistics.

    feedback: the second moment of its input, damped and factored; mean: that of its input [K],
    zeros where no bias makes up for it; both are in the basis of the stored weight, rotated where
    the format is. format, scale: of the layer, whose block scales alone are
    chosen anew; grid: what is rounded to; largest: the largest unit of a row, or one near the
    largest weight where rows have none, in units of the scale; dtype: what weights are cast to
    first (--quant-dtype).
    """

    rounder: Rounder
    feedback: Feedback
    mean: torch.Tensor
    format: Format
    grid: Grid
    scale: torch.Tensor
    largest: torch.Tensor
    dtype: torch.dtype

    def in_units(
        self, rows: torch.Tensor, *by_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring rows of a weight into the basis and the units that they are rounded in.

        rows: [n, K]; by_rows: block scales and the like of their encoding. Returns the values
        [n, K], rotated where the format is, each row in units of its own; and these units over the
        largest one, [1, n] or [].
        """
        # In units of the scale, one feedback and one set of codes serve weights of any size.
        values = rotate(rows.to(self.dtype).float() / self.scale, self.format.rotated)
        units = self.format.row_units(*by_rows)
        return values / units, (units / self.largest).t()


def round_by_moments(
    plan: TensorPlan,
    weight: torch.Tensor,
    plain: Encoded,
    compute: Compute,
    rows: slice = slice(None),
) -> tuple[Encoded, torch.Tensor | None]:
    """Round a layer to the least output error, and move its bias along, if that gains.

    weight: [N, K] on the device that computes, smoothing applied; plain: what the scale search
    gave; rows: which rows of the layer's weight these are. Returns the encoding, with output errors
    in its damage, and the new bias [N] or None.
    `plain` comes back with no bias where no second moment is positive definite, and where rounding
    does not lower the output error.
    """
    grid = plan.precision.grid
    # Groups that padding fills up have no statistics.
    can = grid is not None and weight.shape[1] % grid.group == 0
    rounding = choose_rounding(plan, weight, plain, compute) if can else None
    if rounding is None:
        return plain, None
    # The plain result goes along, by the same chunks of rows, so that both errors are measured.
    parts = [torch.cat(plain.codes), *plain.by_rows]
    made = compute.map(partial(round_piece, rounding), weight, *parts, rows=FEEDBACK_ROWS)
    # Everything was measured in units of the scale; squared errors take its square.
    codes, *by_rows, errors, means, damages = zip(*made, strict=True)
    unit = float(plain.scale * rounding.largest)
    energy, before, after = (sum(column) * unit**2 for column in zip(*errors, strict=True))
    # The feedback is that of the covariance where a bias makes up for the mean; what the mean
    # contributes to output and errors is added here.
    # In float64, which holds the squares of any weights.
    output, drift, new_drift = torch.cat(means, dim=1).double() * unit
    energy, before = energy + squared(output), before + squared(drift)
    bias, moved, left = moved_bias(plan, new_drift.float(), rows)
    # Written so that NaN keeps the plain result, too.
    if not after + left < before:
        best, after, bias, moved = plain, before, None, 0.0
    else:
        after += left
        damage = Damage.total(damages, plain.scale * rounding.largest)
        whole = tuple(map(torch.cat, by_rows))
        best = Encoded(codes=codes, by_rows=whole, scale=plain.scale, damage=damage)
    measured = {
        "output_before": math.sqrt(before / energy) if energy else 0.0,
        "output_after": math.sqrt(after / energy) if energy else 0.0,
    }
    if plan.precision.has_nvfp4_input:
        measured["output_w4a4"] = w4a4_error(plan, weight, best, moved, compute)
    return dataclasses.replace(best, damage=dataclasses.replace(best.damage, **measured)), bias


def choose_rounding(
    plan: TensorPlan, weight: torch.Tensor, plain: Encoded, compute: Compute
) -> Rounding | None:
    """Choose the damping that has the least output error on some rows of a weight.

    Returns None where no damping leaves the second moment positive definite, and where the scale is
    so small that block scales cannot be searched.
    """
    form, given = plan.precision, recall_statistics(plan, compute)
    feedbacks = recall_feedbacks(plan, given, compute)
    if not feedbacks or plain.scale < LEAST_SEARCHED_SCALE:
        return None
    mean = given.mean if plan.bias is not None else torch.zeros_like(given.mean)
    units = form.row_units(*plain.by_rows)
    # Rows without units of their own are measured near the largest weight: see `damage_unit`.
    largest = units.amax() if units.dim() else damage_unit(largest_magnitude(weight) / plain.scale)
    rounding = Rounding(
        rounder=compute.rounder,
        feedback=feedbacks[0],
        mean=rotate(mean.unsqueeze(0), form.rotated).squeeze(0),
        format=form,
        grid=form.grid_of(*plain.by_rows),
        scale=plain.scale,
        largest=largest,
        dtype=compute.dtype,
    )
    # A single feedback needs no trial; of several, each rounds some rows without a sweep.
    if len(feedbacks) == 1:
        return rounding
    each = slice(None, None, max(1, len(weight) // DAMPING_ROWS))
    rows, *by_rows = (tensor[each] for tensor in (weight, *plain.by_rows))
    some, weights = rounding.in_units(rows, *by_rows)

    def error(feedback: Feedback) -> float:
        found = compute.rounder.round_rows(some, feedback, rounding.grid, 0)
        return output_error(found.residual * weights, feedback)

    errors = [*compute.pool.map(error, feedbacks)]
    return dataclasses.replace(rounding, feedback=feedbacks[errors.index(min(errors))])


def recall_feedbacks(plan: TensorPlan, given: Statistics, compute: Compute) -> list[Feedback]:
    """Make the feedbacks of the dampings worth trying, or recall them.

    They are remembered for the layers that share the input, the basis and the size of groups. An
    empty list tells that no damping leaves the second moment positive definite.
    """
    form, centred = plan.precision, plan.bias is not None

    def make(_: object, __: torch.device) -> list[Feedback | None]:
        turned = given.rotated(form.rotated)
        maker = partial(make_feedback, turned, group=form.grid.group, centred=centred)
        found = [*compute.pool.map(maker, given.dampings)]
        # Means far larger than deviations leave the covariance few of its bits: damp it more.
        more = (damping for damping in MORE_DAMPINGS if damping > given.dampings[-1])
        return found if any(found) else [next(filter(None, map(maker, more)), None)]

    # Smoothing makes the input a layer's own.
    own = plan.ref.name if plan.smoothing is not None else ""
    key = (plan.moments, form.grid.group, form.rotated, centred, own)
    return [*filter(None, compute.recall(key, make))]


def recall_statistics(plan: TensorPlan, compute: Compute) -> Statistics:
    """Load the statistics of what a layer's weight multiplies, or recall them.

    Smoothing multiplies the input, so that mean, second moment and rows are scaled by it.
    """
    given = compute.recall(plan.moments, load_statistics)
    if plan.smoothing is None:
        return given
    # With D the diagonal of smoothing factors, X becomes X D, and X^T X becomes D X^T X D.
    scale = plan.smoothing.to(compute.device).float()
    second = given.second * scale * scale.unsqueeze(1)
    mean, rows = given.mean * scale, given.rows * scale
    return dataclasses.replace(given, mean=mean, second=second, rows=rows)


def round_piece(rounding: Rounding, rows: torch.Tensor, *plain: torch.Tensor) -> tuple:
    """Round some rows of a weight, and measure them against what the plain search stores.

    rows: [n, K]; plain: their codes and block scales. Returns, in units of the layer's scale times
    the largest row's unit:
      - the new codes and block scales, one result each;
      - squared output, error before, and error after, without what the mean adds;
      - the means of output, error before and error after, [3, n];
      - the damage of the weight.
    """
    form, feedback, by_rows = rounding.format, rounding.feedback, plain[1:]
    values, weights = rounding.in_units(rows, *by_rows)
    rounded = rounding.rounder.round_rows(values, feedback, rounding.grid)
    decoded = form.decode(*plain, torch.ones_like(rounding.scale))
    decoded = rotate(decoded, form.rotated) / form.row_units(*by_rows)
    before = (values - decoded).t()[feedback.order]
    # Rows count by their units: all is in units of the largest row's from here on.
    parts = (values.t()[feedback.order], before, rounded.residual)
    parts = [part * weights for part in parts]
    errors = [output_error(part, feedback) for part in parts]
    # By the mean input, each part gives the mean of an output, or of its error.
    means = torch.stack([rounding.mean[feedback.order] @ part for part in parts])
    damage = Damage(error=squared(parts[2]), energy=squared(parts[0]))
    return *form.round_to_levels(rounded, feedback, by_rows), errors, means, damage


def bias_by_mean(
    plan: TensorPlan, weight: torch.Tensor, plain: Encoded, compute: Compute, which: slice
) -> torch.Tensor:
    """Move a layer's bias by the mean of its input alone, and leave the weight as it is.

    weight: [N, K], the rows `which` of the layer; plain: its encoding. What the decoded weight
    makes of the mean input is off by as much as the new bias [N] adds, in its output dtype.
    """
    mean = torch.from_numpy(plan.mean).to(compute.device)

    def error(rows: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        decoded = plan.precision.decode(*parts, plain.scale)
        return (rows.float() - decoded[:, : len(mean)]) @ mean

    parts = (torch.cat(plain.codes), *plain.by_rows)
    drift = torch.cat(compute.map(error, weight, *parts, rows=FEEDBACK_ROWS))
    return moved_bias(plan, drift, which)[0]


def moved_bias(
    plan: TensorPlan, drift: torch.Tensor, rows: slice
) -> tuple[torch.Tensor | None, torch.Tensor | float, float]:
    """Move a layer's bias so that it makes up for the mean error of the rounded weight.

    drift: [N] float32, the mean error of each output; rows: which rows of the layer these are.
    Returns the new bias [N] in its output dtype, its change [N] float32, and the squared error that
    casting leaves; None, 0 and 0 without a bias.
    """
    if plan.bias is None:
        return None, 0.0, 0.0
    bias = load(plan.bias.ref)[rows].to(drift.device).float()
    # Casting the bias to the dtype that it is stored in leaves some of the drift.
    moved = (bias + drift).to(TORCH_DTYPES[plan.bias.dtype])
    return moved, moved.float() - bias, squared((bias + drift - moved.float()).double())


def w4a4_error(
    plan: TensorPlan,
    weight: torch.Tensor,
    stored: Encoded,
    moved: torch.Tensor | float,
    compute: Compute,
) -> float:
    """Measure the relative RMSE of a layer's output where activations are 4-bit, too.

    weight: [N, K], smoothing applied; stored: its encoding; moved: the change of its bias, or 0.
    The recorded rows are quantised as ComfyUI does it on Blackwell, by the layer's input scale if
    it has one, and multiplied by the decoded weight; matmul is float32.
    """
    rows = recall_statistics(plan, compute).rows
    quantised = quantised_rows(rows, plan.input_scale)
    # The error is relative: in units near the largest weight, squares stay in float32's range.
    unit = damage_unit(largest_magnitude(weight))

    def outputs(some: torch.Tensor, *parts: torch.Tensor) -> tuple:
        exact = rows @ (some.float() / unit).t()
        decoded = plan.precision.decode(*parts, stored.scale / unit)
        return exact, quantised @ decoded.t() - exact

    parts = (torch.cat(stored.codes), *stored.by_rows)
    made = compute.map(outputs, weight, *parts, rows=FEEDBACK_ROWS)
    exact, error = (torch.cat(parts, dim=1) for parts in zip(*made, strict=True))
    energy = squared(exact)
    return math.sqrt(squared(error + moved / unit) / energy) if energy else 0.0


# ── nvfp4/encode/layer.py: Encode one planned layer into the tensors that are stored of it ────────

def quantise(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute
) -> tuple[dict[str, list[torch.Tensor]], Damage]:
    """Encode a weight as planned, with its bias where that goes along.

    plan: of a quantised layer; weight: [N, K], as read, on the CPU. Returns the layer's tensors,
    {key: rows in pieces} on the device of `compute`, and the damage of the weight, with output
    errors if it was rounded by statistics. Raises ConvertError where the weight holds NaN or Inf.
    """
    best, bias = encode_weight(plan, weight, compute)
    stored = store(plan, best)
    if plan.bias:
        whole = Piece(plan=plan.bias, begin=0, end=plan.bias.ref.nbytes)
        # The bias goes along with its layer, as rounding by statistics may have moved it.
        stored[plan.bias.ref.name] = [
            cast(whole, load_weight(plan.bias.ref)) if bias is None else bias
        ]
    return stored, best.damage


def measure_rows(plan: TensorPlan, weight: torch.Tensor, compute: Compute, rows: slice) -> Damage:
    """Measure what `quantise` would lose, on some rows of a weight at the scale of all of it.

    The other arguments and what is raised are those of `quantise`, rows: the rows to take.
    """
    return encode_weight(plan, weight, compute, rows)[0].damage


def encode_weight(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute, rows: slice = slice(None)
) -> tuple[Encoded, torch.Tensor | None]:
    """Encode a weight, or some rows of it: smoothing, scale search, rounding by statistics.

    weight: [N, K], as read. Returns the encoding, and the bias of these rows where statistics moved
    it. Raises ConvertError where the weight holds NaN or Inf, in whatever rows.
    """
    # On a CPU this is no copy, and --target-size quantises the same weight in several ways: nothing
    # below may change it.
    weight = weight.to(compute.device)
    # ComfyUI multiplies the input by the smoothing, which the weight is divided by.
    if plan.smoothing is not None:
        weight = weight.to(compute.dtype).float() / plan.smoothing.to(compute.device).float()
    kept = as_stored(plan, weight, rows)
    best = kept or search_scales(plan, weight, compute, rows)
    if plan.moments and not kept:
        return round_by_moments(plan, weight[rows], best, compute, rows)
    if plan.mean is None or kept:
        return best, None
    return best, bias_by_mean(plan, weight[rows], best, compute, rows)


def as_stored(plan: TensorPlan, weight: torch.Tensor, rows: slice) -> Encoded | None:
    """Take codes and scales as the source has them, where nothing changed their layer.

    weight: what they decode to; rows: those to take. Returns None where the layer is encoded anew:
    it had another format, or one scale, which the format's own encoder goes by.
    """
    ref, form = plan.ref, plan.precision
    if not plan.keeps_codes or form.has_one_scale:
        return None
    if ref.coding.scale is None:
        by_rows, scale = coded_scales(ref, ref.coding)
    else:
        # One scale for all rows is written once for each.
        by_rows, scale = [torch.full((ref.shape[0], 1), ref.coding.scale)], torch.ones(())
    # Squares of weights of any size are in float64's range.
    norm = torch.linalg.vector_norm(weight[rows], dtype=torch.float64)
    damage = Damage(error=0.0, energy=float(norm) ** 2)
    some = tuple(part[rows] for part in by_rows)
    kept = Encoded(codes=(load(ref)[rows],), by_rows=some, scale=scale, damage=damage)
    made, expected = form.pack(kept, ref.shape).values(), form.parts(ref.shape).values()
    # Other programs have scales of blocks where the format itself has them of rows.
    same = (part[0].shape[1:] == shape[1:] for part, (_, shape) in zip(made, expected, strict=True))
    return kept if all(same) else None


def search_scales(
    plan: TensorPlan, weight: torch.Tensor, compute: Compute, rows: slice = slice(None)
) -> Encoded:
    """Encode rows of a weight with the least squared error, by its format's scale search.

    weight: [N, K] on the device of `compute`, smoothing applied. Raises ConvertError where it is
    not finite, in whatever rows, also where only the cast to --quant-dtype makes it so, or too
    large to be rotated; the message names the option that leaves the layer out.
    """
    dtype = compute.dtype
    amax = torch.stack(compute.map(lambda some: largest_magnitude(some.to(dtype)), weight)).amax()
    if not amax.isfinite() or (plan.precision.rotated and amax > LARGEST_ROTATED):
        as_cast = "" if dtype is torch.float32 else f" (as {dtype}, the --quant-dtype)"
        held = f"NaN or Inf{as_cast}"
        if amax.isfinite():
            held = f"numbers too large to be rotated for {plan.precision} ({float(amax):.1e})"
        raise ConvertError(
            f"{plan.ref.path}: {plan.ref.name} holds {held}: the file is damaged, or leave the "
            f"layer 16-bit with --exclude '^{re.escape(bare(plan.ref.layer))}$'"
        )
    given = Given(plan.ref.layer, weight[rows].contiguous(), amax, plan.kept_scale)
    best = plan.precision.encode(given, compute)
    if best.damage.energy or not given.weight.any():
        return best
    # The cast to --quant-dtype made zeros of weights whose squares are too small for the units.
    return dataclasses.replace(best, damage=Damage(error=1.0, energy=1.0))


def store(plan: TensorPlan, encoded: Encoded) -> dict[str, list[torch.Tensor]]:
    """List the tensors of a quantised layer: {key: its rows in pieces}.

    They come in the order of `planned_tensors`: the format's own parts, input scale F32, smoothing
    BF16, and the configuration as U8, each where the plan has it.
    """
    # `planned_tensors` has the same parts in the same order; strict zip holds the two together.
    parts = [*plan.precision.pack(encoded, plan.ref.shape).values()]
    if plan.input_scale is not None:
        parts.append([torch.tensor(plan.input_scale, dtype=torch.float32)])
    if plan.smoothing is not None:
        parts.append([plan.smoothing])
    if plan.precision.is_configured:
        parts.append([torch.frombuffer(bytearray(plan.config_bytes), dtype=torch.uint8)])
    return dict(zip(planned_tensors(plan), parts, strict=True))


# ── nvfp4/read/origin.py: Read what a file's header records of the conversion that made it ────────

# The options that tell most about a conversion, as its header calls them.
TELLING_OPTIONS = ("gguf", "preset", "recipe")


def origin_text(metadata: dict[str, str]) -> str:
    """Tell which version of this tool made a file, of what and how; "" if no record says so.

    metadata: of its header. The record may be damaged: what is not as this tool writes it is left
    out. The text ends a sentence: "made by convert_nvfp4 0.1.0 of wan.safetensors (--preset wan)".
    """
    try:
        record = parse_json(metadata["convert_nvfp4"])
        version, sources, options = (record[key] for key in ("version", "sources", "options"))
        # Of an index and its shards, the index comes first.
        names = [str(name) for name in [*sources][:1]]
        how = [f"--{name} {options[name]}" for name in TELLING_OPTIONS if name in options]
    except (KeyError, TypeError, ValueError):
        return ""
    of = f" of {names[0]}" if names else ""
    with_options = f" ({', '.join(how)})" if how else ""
    return one_line(f"made by convert_nvfp4 {version}{of}{with_options}"[:EXCERPT])


# ── nvfp4/write/journal.py: Note which tensors are safely on the disk, so that --resume can go on ─

# How the first line of a journal can begin. A file that begins otherwise is somebody else's and is
# left alone, since a journal is truncated and deleted without asking.
JOURNAL_STARTS = (b'{"fingerprint"', b'{"tensor"', b'{"shards"')


def open_journal(path: Path, mode: str) -> BinaryIO | None:
    """Open a journal and lock it for this process; return None if another process holds it.

    `mode` is that of `open`, binary. Raises ConvertError for a link and for a file that does not
    begin as a journal does, since a journal is truncated and deleted later: a user's file of that
    name must survive. Raises OSError where the path cannot be opened.
    """
    if is_linked(path):
        raise ConvertError(f"{path}: is a link; delete it")
    # Unbuffered, so that a line is with the system as soon as it is written, whatever kills us.
    file = path.open(mode, buffering=0)
    try:
        if not lock(file):
            file.close()
            return None
        file.seek(0)
        # A new or cut journal may be shorter than any start: a prefix of one is enough.
        start = file.read(max(map(len, JOURNAL_STARTS)) + 1).lstrip(b"\n")
        if not any(start.startswith(known) or known.startswith(start) for known in JOURNAL_STARTS):
            raise ConvertError(f"{path}: is no journal of this tool; move it away")
    except BaseException:
        file.close()
        raise
    return file


def strings(value: object) -> list[str]:
    """Return the strings of a list that was read from a file; anything but a list gives none.

    A journal may be damaged, so that no value in it is trusted to have its type.
    """
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


class Journal:
    """Keep OUTPUT.partial.journal: which tensors of the partial files are on the disk.

    The first line has the conversion's fingerprint; each further line names a tensor that was
    synced, with its error. Ranks beyond the first keep a file of their own, `.journal.1` and so on.
    All of them are locked while open, which keeps out a second run to the same output. They are
    deleted together with the partial files on leaving, unless `keep` is set: that is so with
    --resume until the output has its name.

    As a context manager it raises ConvertError where another run holds the output.
    """

    def __init__(self, options: Options, ranks: Ranks):
        self.output, suffix = options.output, "" if ranks.is_first else f".{ranks.rank}"
        partial = unfinished(options.output)
        self.path = partial.with_name(partial.name + ".journal")
        self.own = self.path.with_name(self.path.name + suffix)
        # Without --resume nothing is left behind; with it, a failed run can be gone on with.
        self.ranks, self.keep, self.resume = ranks, options.resume, options.resume
        self.file: BinaryIO | None = None
        self.widened: frozenset[str] = frozenset()
        self.done: dict[str, Damage | None] = {}

    def __enter__(self) -> Journal:
        if self.ranks.is_first:
            self.take()
            try:
                self.refuse_orphans()
            except BaseException:
                # An empty journal is of this run; one with lines may still be resumed.
                is_new = not os.fstat(self.file.fileno()).st_size
                self.file.close()
                if is_new:
                    self.own.unlink(missing_ok=True)
                raise
        # A rank that took its journal earlier would look like an orphan to the first one.
        self.ranks.gather()
        if not self.ranks.is_first:
            self.take()
        self.read_head()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            # If the file was deleted meanwhile, the path may lead to another run's journal.
            self.keep |= not is_still(os.fstat(self.file.fileno()), self.own)
        if self.ranks.is_first and not self.keep:
            with contextlib.suppress(OSError):  # Windows deletes no file that another rank has open
                for path in self.files():
                    if path != self.own:
                        path.unlink(missing_ok=True)
        self.file.close()
        if not self.keep:
            with contextlib.suppress(OSError):
                self.own.unlink(missing_ok=True)

    def read_head(self) -> None:
        """Set `head` and `widened` to what an earlier run noted, if this one goes on with it."""
        # Only the first rank reads the head: the others might see it half written or truncated.
        head = next(self.lines(), {}) if self.resume and self.ranks.is_first else {}
        self.head = self.ranks.gather(head if "fingerprint" in head else {})[0]
        self.widened = frozenset(strings(self.head.get("widened")))

    def rehearse(self) -> None:
        """Raise what entering would raise, and set what it would set; no file is made or kept."""
        with translated(self.path), contextlib.suppress(FileNotFoundError):
            self.opened("r+b").close()
        self.refuse_orphans()
        self.read_head()

    def opened(self, mode: str) -> BinaryIO:
        """Open and lock this rank's journal; raises ConvertError if another run holds it."""
        if (file := open_journal(self.own, mode)) is None:
            raise ConvertError(f"{self.output}: another run is writing this output; wait for it")
        return file

    def take(self) -> None:
        """Open and lock this rank's journal, and set `file`.

        Raises ConvertError if another run holds it. The run that held it may delete the file
        between our opening and our locking it; then the path leads to a new file or to none, and
        opening starts over.
        """
        with translated(self.path):
            while True:
                self.file = self.opened("a+b")
                if is_still(os.fstat(self.file.fileno()), self.own):
                    return
                self.file.close()

    def refuse_orphans(self) -> None:
        """Raise ConvertError if a rank of an earlier run is still alive.

        Where the first rank died, the others may go on for a while and would write into the files
        of this run. A journal of another rank that can be locked has no owner any more.
        """
        with translated(self.path):
            for path in self.files():
                if path != self.own:
                    if (file := open_journal(path, "r+b")) is None:
                        raise ConvertError(f"{path}: a rank of another run still writes; end it")
                    file.close()

    def files(self) -> list[Path]:
        """List the journals on the disk, of all ranks and earlier runs, the first rank's first."""
        name = re.compile(re.escape(self.path.name) + r"(\.\d{1,6})?")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))

    def lines(self) -> Iterator[dict]:
        """Yield all JSON objects that the journals on the disk hold.

        Lines that cannot be parsed are skipped: a kill may have cut the last one short, and then
        its tensor is simply converted again.
        """
        for path in self.files():
            for text in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    line = json.loads(text)
                    if isinstance(line, dict):
                        yield line

    def begin(self, job: Job) -> list[str]:
        """Go on with the conversion that the journal notes, or start a new one.

        With --resume the noted conversion must be this one, else ConvertError is raised (see
        `check`). Shards that a killed run had named already become partial files again, so that all
        of them lie in one state. Tensors are taken over only if every partial file has its planned
        size; otherwise the work starts over. Afterwards `done` is the same in all ranks. Returns
        the first rank's notes on what earlier runs left.
        """
        notes = []
        if self.ranks.is_first:
            with translated(self.path):
                if self.head:
                    self.check(job)
                    for path in self.named(job.layouts):
                        rename(path, unfinished(path))
                whole = {unfinished(path): layout.nbytes for path, layout in job.layouts.items()}
                if self.head and all(is_of_size(*file) for file in whole.items()):
                    self.done = dict(self.entries(job))
                else:
                    notes = self.start(job, list(whole))
        self.head, self.done = {}, self.ranks.gather(self.done)[0]
        self.file.write(b"\n")  # a line that a kill cut short must not swallow the next one
        return notes

    def entries(self, job: Job) -> Iterator[tuple[str, Damage | None]]:
        """Yield (tensor name, Damage or None) for noted tensors that this job plans alike.

        A quantised tensor must have been noted with its error and any other one without, in the
        form that `Damage.noted` accepts. Lines that differ are skipped, and their tensors converted
        again.
        """
        plans = {plan.ref.name: plan for plan in job.plans}
        for line in self.lines():
            name, damage = line.get("tensor"), line.get("damage")
            plan = plans.get(name) if isinstance(name, str) else None
            if plan and "damage" in line and plan.is_quantised == (damage is not None):
                with contextlib.suppress(TypeError, ValueError):
                    yield name, None if damage is None else Damage.noted(damage)

    def check(self, job: Job) -> None:
        """Raise ConvertError if the noted conversion had other options or other input files.

        Both the plan's hash and the list of files with sizes and times are compared. Mixing tensors
        of two plans or of two models would give a file that loads and makes noise.
        """
        noted, now = self.head["fingerprint"], job.fingerprint
        over = "without --resume it starts over"
        if not isinstance(noted, dict) or noted.get("plan") != now["plan"]:
            raise ConvertError(f"--resume: other options than before; give those again; {over}")
        before = noted["files"] if isinstance(noted.get("files"), list) else []
        if before != now["files"]:
            other = [file[0] for file in now["files"] if file not in before] or ["fewer files"]
            raise ConvertError(f"--resume: {examples(other)} changed since, or was another; {over}")

    def start(self, job: Job, partial: list[Path]) -> list[str]:
        """Write and sync the journal's first line, before any file is overwritten.

        `partial` are the files that this run will write. Returns notes: one where some of them are
        there already and get overwritten, another on leftovers with other names, which stay for the
        user to delete. The other ranks' journals become empty, and `done` too.
        """
        left, notes = self.others(job), []  # read before the journal is truncated below
        stale = [path.name for path in partial if path.exists()]
        if stale:
            why, rank = "--resume goes on with such files", Rank.HINT
            if self.resume:
                why, rank = "nothing in it to go on with", Rank.INFORMATION
            notes = [Note(f"overwrote {examples(stale)} of an earlier run; {why}", rank)]
        if left:
            what = f"{examples(left)} of an earlier run are still there; delete them"
            notes.append(Note(what, Rank.NOTE))
        # Old lines must go before the new head: they would be read as this conversion's.
        self.file.truncate(0)
        for path in self.files():
            if path != self.own:  # truncated, not deleted: its rank holds it open and locked
                os.truncate(path, 0)
        # "widened" names the tensors beyond float16, so that a resumed run plans float32 at once;
        # "partial" the files, so that a later run with other shards can tell of leftovers.
        head = {"fingerprint": job.fingerprint, "widened": sorted(self.widened)}
        head["partial"] = [unfinished(path).name for path in job.files]
        self.file.write(json.dumps(head).encode())
        os.fsync(self.file.fileno())
        self.done = {}
        return notes

    def others(self, job: Job) -> list[str]:
        """Name files that an earlier run of other shards left and this run will not write.

        Only plain file names that the journal noted are believed, and only beside the journal
        itself, so that a damaged line cannot point elsewhere. A complete OUTPUT is never among
        them.
        """
        names = [name for line in self.lines() for name in strings(line.get("partial"))]
        partial = [self.path.parent / name for name in names if Path(name).name == name]
        shards = self.named(path.with_name(path.name.removesuffix(".partial")) for path in partial)
        kept = {path for file in job.files for path in (file, unfinished(file))}
        left = [*shards, *(path for path in partial if path.exists())]
        return [path.name for path in left if path not in kept]

    def add(self, finished: dict[str, Damage | None]) -> None:
        """Note tensors whose bytes have been synced.

        `finished` is {tensor name: its Damage, or None where it was not quantised}. The lines
        themselves are not synced: a lost line costs a tensor's work, never a wrong file.
        """
        for name, damage in finished.items():
            line = {"tensor": name, "damage": damage and dataclasses.asdict(damage)}
            self.file.write(json.dumps(line).encode() + b"\n")

    def name_shards(self, paths: Iterable[Path]) -> None:
        """Note, and sync, that complete shards are about to get their names one after another.

        The line holds name, size and time of each shard. A run killed half-way leaves some shards
        named; by this line the next run knows them for its own.
        """
        line = {"shards": [[path.name, *stamp(unfinished(path))] for path in paths]}
        self.file.write(json.dumps(line).encode() + b"\n")
        os.fsync(self.file.fileno())

    def named(self, paths: Iterable[Path]) -> list[Path]:
        """Return those of `paths` that a run named before it was killed while naming shards.

        A file counts only if its name, size and time of change are those that `name_shards` noted.
        """
        there = {path: [path.name, *stamp(path)] for path in paths if path.is_file()}
        noted = [line.get("shards") for line in self.lines()] if there else []
        noted = [shard for shards in noted if isinstance(shards, list) for shard in shards]
        return [path for path, shard in there.items() if shard in noted]


# ── nvfp4/write/checks.py: Find what keeps the output from being written, before hours of work ────

# A quantised source that gets no layer encoded anew has to become smaller by this share at least.
LEAST_GAIN = 0.01


def shard_problems(job: Job, named: list[Path]) -> Iterator[str]:
    """Yield a line if shards of an earlier run lie where this run's shards are to go.

    `named` are the shards that the journal knows: a run that was killed while naming had given them
    their final names. Those alone ask for --resume, unless it is given; any other shard has to be
    deleted by the user, since old and new ones together would make a model of mixed weights.
    """
    # With every shard named, an index that is there belongs to the same run.
    known = [*named, job.index] if len(named) == len(job.layouts) else named
    older = [path for path in job.files if path.exists() and path not in known]
    there = examples([path.name for path in older or named])
    if older:
        yield f"{there}: exists; delete it, or old and new shards could mix"
    elif named and not job.options.resume:
        yield f"{there}: its run was killed while naming shards; --resume names the rest"


def nearest_folder(target: Path) -> Path:
    """Find the folder of a file, or of those that it would lie in the first that is there."""
    return next(folder for folder in target.absolute().parents if folder.is_dir())


def place_problems(options: Options, target: Path) -> Iterator[str]:
    """Find what would keep a file from being written, as `target_problems` does: a line for each.

    A folder that is missing is a problem only without --make-folder.
    """
    folder = target.parent
    if exists(folder):
        yield from target_problems(target)
    elif not options.make_folder:
        yield f"{folder}: no such folder; create it first, or give --make-folder"
    elif refused := refused_by(nearest_folder(target)):
        yield refused


def output_problems(job: Job) -> list[str]:
    """List what is known to keep the output from being written, one line a problem.

    Checked are: more bytes than --target-size allows, a target that is also an input, a missing
    folder, a forbidden or locked file,
    leftover shards, the largest file that the file system takes, and the disk's free space against
    the whole output. Partial files that will be
    overwritten count as free space. An OSError becomes a line, too; nothing is raised.
    """
    options, output, problems = job.options, job.options.output, []
    wanted = options.target(job.model)
    if 0 < wanted < job.nbytes:
        more = f"{job.nbytes - wanted:,} bytes"
        problems.append(f"{TARGET}: the file would be larger, by {more}; give that much more")
    partial = [unfinished(path) for path in job.files]
    targets = [*job.files, *partial]
    try:
        for path in (*options.inputs, *job.model.files):
            for target in targets:
                if is_same(target, path):
                    problems.append(f"{target}: is an input of this conversion ({path})")
        for target in targets:
            problems += place_problems(options, target)
        # This journal is not entered, only read: nothing is locked or changed by a check.
        named = Journal(options, ALONE).named(job.layouts) if job.index else []
        if job.index:
            problems += shard_problems(job, named)
        if output.parent.is_dir() or options.make_folder:
            folder = nearest_folder(output)
            # Partial files and shards of an earlier run are overwritten: their space is free.
            free = shutil.disk_usage(folder).free + sum(map(allocated, [*partial, *named]))
            if free < job.nbytes:
                need = f"{exact_size(free)} are free, the output needs {exact_size(job.nbytes)}"
                problems.append(f"{output.parent}: {need}")
            largest = largest_file(folder)
            # In the words of the system, which would say so when the file is made.
            too_large = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            problems += [
                os_problem(too_large, unfinished(path))
                for path, layout in job.layouts.items()
                if layout.nbytes > largest
            ]
    except OSError as error:
        problems.append(os_problem(error, output))
    return list(dict.fromkeys(problems))  # several targets may lie in the same missing folder


def refuse_text_targets(options: Options, model: Model) -> None:
    """Raise ConvertError if a text output, such as that of --report, would overwrite another file.

    Compared are the text files and their `.partial` names with every input, with the model's files,
    with OUTPUT and its partial file, and with each other. Links to the same file count as the same.
    All problems are in the one error.
    """
    problems, partial = [], unfinished(options.output)
    others = [*options.inputs, *model.files, options.output, options.written, partial]
    for target in [path for name in options.texts for path in (name, unfinished(name))]:
        if any(path == target or is_same(path, target) for path in others):
            problems.append(f"{target}: is another input or output of this conversion")
        try:
            problems += place_problems(options, target)
        except OSError as error:
            problems.append(os_problem(error, target))
        others.append(target)  # two text outputs must not be the same file either
    if problems:
        raise ConvertError(*problems)


def refuse_no_gain(options: Options, model: Model, plans: list[TensorPlan]) -> None:
    """Raise ConvertError for a quantised source in which nothing would get smaller.

    That is so where the same recipe is applied again. To encode any layer anew, because a LoRA is
    merged into it or it gets another form, is a reason of its own.
    """
    layers = (plan for plan in plans if plan.is_quantised)
    if any(not x.keeps_codes or x.precision.title != x.ref.coding.title for x in layers):
        return
    saved = sum(max(0, plan.ref.nbytes - bytes_in_output(plan)) for plan in plans)
    # A few vectors that are cast to 16 bits are no reason to convert a file again.
    if saved > LEAST_GAIN * model.nbytes:
        return
    layers = " and ".join(f"{count} {name}" for name, count in model.quantised.items())
    origin, almost = origin_text(model.metadata), "almost " if saved else ""
    what = f"{almost}nothing in it would get smaller"
    others = {plan.format for plan in plans if plan.is_layer and plan.ref.config}
    words = [form.kind for form in sorted(others) if form.option not in options.allowed]
    if words and (options.card or options.formats):
        what = f"its {' and '.join(words)} layers cannot be encoded again for {allowed_by(options)}"
    raise ConvertError(
        f"{options.source}: is converted already ({', '.join(filter(None, [origin, layers]))} "
        f"layers), and {what}; give the original 16- or 32-bit model, or options that lower its "
        "layers"
    )


# ── nvfp4/stored/layers.py: Quantised layers as a file holds them, and their parts for decoding ───

# A comfy_quant tensor usually has some 60 bytes. A larger one than this is not read, and counts as
# unreadable.
MAX_CONFIG_BYTES = 1 << 16


# Parts of a bank of experts that all of them share.
SHARED_PARTS = ("comfy_quant", "weight_codebook")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """Hold a layer as a file has it: its tensors, and its configuration in both places.

    parts: {suffix: TensorRef}, suffixes as the file has them, such as "weight_scale_2".
    in_header: the layer's entry in `_quantization_metadata`.
    in_tensor: the JSON of its `comfy_quant` tensor.

    A configuration that cannot be read is {}, none at all is None.
    """

    name: str
    parts: dict[str, TensorRef]
    in_header: dict | None = None
    in_tensor: dict | None = None

    @property
    def weight(self) -> TensorRef | None:
        """Find the weight; a file may have a layer's scales or configuration alone."""
        return self.parts.get("weight")

    @property
    def config(self) -> dict | None:
        """Choose the configuration that ComfyUI goes by: the header overrides the tensor."""
        # ComfyUI writes the header's entries over the tensors before it loads (comfy/utils.py,
        # convert_old_quants).
        return self.in_tensor if self.in_header is None else self.in_header

    @property
    def full_precision(self) -> bool:
        """Tell whether the layer is configured for full-precision matmul (W4A16)."""
        return bool((self.config or {}).get("full_precision_matrix_mult"))

    @property
    def format(self) -> Format | None:
        """Find the format that the layer's tensors show, whatever its configuration says.

        Returns None where they fit no quantised format, as those of a 16-bit layer. Where they fit
        several formats, the one that is configured is preferred.
        """
        config = self.config or {}
        if self.weight is None:
            return None
        if self.experts:
            return self.expert(0).format
        fitting = [f for f in readable_formats() if f.holds(self.weight, self.parts, config)]
        # Those that need more tensors come first, so that FP8 with a scale is not plain FP8.
        first = fitting[0] if fitting else None
        return next((row for row in fitting if row.config == config.get("format")), first)

    @property
    def is_looked_up(self) -> bool:
        """Tell whether ComfyUI has an embedding of that name, and such take the layer's format."""
        place, form = not_linear(bare(self.name)), self.format
        is_embedding = place is not None and place.kind == EMBEDDING
        return is_embedding and form is not None and bool(form.embedding_since)

    @property
    def experts(self) -> int:
        """Count the experts whose weights are in this one layer; 0 for what is no bank of experts.

        A bank's weight is [E, N, K] before it is packed, or [E * N, K], and its configuration tells
        `num_experts` (comfy/ops.py, MoEExperts).
        """
        count = (self.config or {}).get("num_experts")
        shape = self.weight.shape if self.weight else ()
        if type(count) is not int or count < 1 or len(shape) not in (2, 3):
            return 0
        return count if shape[0] == count or (len(shape) == 2 and shape[0] % count == 0) else 0

    def expert(self, index: int) -> StoredLayer:
        """Give the layer of one expert of a bank: the same configuration, and its part of tensors.

        What is one number, or one codebook, is shared by all experts.
        """
        parts = {
            suffix: ref if suffix in SHARED_PARTS else expert_part(ref, self.experts, index)
            for suffix, ref in self.parts.items()
        }
        config = {key: value for key, value in self.config.items() if key != "num_experts"}
        return StoredLayer(name=self.name, parts=parts, in_header=config)

    @property
    def configured(self) -> Format | None:
        """Find the format that ComfyUI takes the layer for, going by its configuration.

        Of several that a configuration may mean, as W4A8 and W6A8, its tensors tell which. Returns
        None for names that ComfyUI does not know, and for options that no row has.
        """
        config, own = self.config or {}, self.format
        if own and own.is_configured and own.is_meant_by(config):
            return own
        rows = (row for row in readable_formats() if row.is_configured and row.config)
        return next((row for row in rows if row.is_meant_by(config)), None)

    @property
    def scheme(self) -> str:
        """Name how the weight is stored: its format's title, the configured name, or its dtype."""
        if self.weight is None:
            return "no weight"
        named = (self.config or {}).get("format") or self.weight.dtype
        return self.format.title if self.format else named

    @property
    def shape(self) -> tuple[int, ...]:
        """Tell the weight's shape [N, K] before it was packed.

        Padded rows are told from real ones by the length of the bias, where there is one. A weight
        that is no matrix, or is in no known format, has its stored shape; a bank of experts has
        [E, N, K]. Only for a layer that has a weight.
        """
        shape, bias = self.weight.shape, self.parts.get("bias")
        if self.experts:
            return (self.experts, *self.expert(0).shape)
        if self.format is None or len(shape) != 2:
            return shape
        return self.format.logical_shape(
            shape, bias.shape[0] if bias and len(bias.shape) == 1 else None
        )


def expert_part(ref: TensorRef, count: int, index: int) -> TensorRef:
    """Give one expert's part of a tensor that is one after the other of `count` experts.

    Its first dimension is the experts, or the rows of all of them; what is neither is shared.
    """
    if not ref.shape or ref.shape[0] % count:
        return ref
    rows, size = ref.shape[0] // count, ref.nbytes // count
    # A bank of one expert may be [1, N, K]; a row of scales [E] has one number for each.
    shape = ref.shape[1:] if rows == 1 else (rows, *ref.shape[1:])
    return dataclasses.replace(ref, shape=shape, begin=ref.begin + index * size, nbytes=size)


def stored_layers(model: Model) -> dict[str, StoredLayer]:
    """Collect every layer that a file holds a part of or a configuration for: {name: layer}.

    Ordinary 16-bit layers are among them. Layers come in the order of their first tensors, then
    those that only the header names. The `comfy_quant` tensors are read from the disk, nothing
    else is.
    """
    parts, known = defaultdict(dict), layer_parts()
    for ref in model.tensors.values():
        layer, _, suffix = ref.name.rpartition(".")
        # Norms and embeddings have a weight, too, and count as layers that nothing is wrong with.
        if suffix in known:
            parts[layer][suffix] = ref
    listed = header_layers(model.metadata) or {}
    return {
        name: StoredLayer(
            name=name,
            parts=parts.get(name, {}),
            in_header=as_config(listed[name]) if name in listed else None,
            in_tensor=config_of(parts.get(name, {}).get("comfy_quant")),
        )
        for name in [*parts, *(name for name in listed if name not in parts)]
    }


def config_of(ref: TensorRef | None) -> dict | None:
    """Read a `comfy_quant` tensor: None without one, {} where it is too large or malformed."""
    if ref is None:
        return None
    if ref.nbytes > MAX_CONFIG_BYTES:
        return {}
    try:
        return as_config(parse_json(bytes(load(ref).tolist()).decode()))
    except (KeyError, TypeError, ValueError):
        # It has another dtype than U8, or is not JSON in UTF-8. ComfyUI stops at it while loading.
        return {}


def as_config(value: object) -> dict:
    """Take a JSON value for a configuration if it is an object with a `format`; else give {}."""
    return value if isinstance(value, dict) and isinstance(value.get("format"), str) else {}


class Marker(NamedTuple):
    """Hold one marker tensor of scaled FP8, which is for the layers of one prefix.

    prefix: of the layers, up to and with the last dot, "" for a whole file; elements: of the
    tensor, of which 2 ask for full-precision matmul; is_read: whether ComfyUI heeds it.
    """

    prefix: str
    elements: int
    is_read: bool


def find_markers(model: Model) -> list[Marker]:
    """Find all markers of scaled FP8: each part of an all-in-one file has its own.

    ComfyUI heeds the diffusion model's only where the header has no `_quantization_metadata`, and
    those of text encoders always (comfy/sd.py, load_state_dict_guess_config).
    """
    own, found = diffusion_prefix(model.tensors), []
    for name, ref in model.tensors.items():
        before, _, suffix = name.rpartition(".")
        if suffix == MARKER:
            prefix = before and f"{before}."
            is_read = prefix not in ("", own) or "_quantization_metadata" not in model.metadata
            found.append(Marker(prefix, math.prod(ref.shape), is_read))
    return found


def marker_for(name: str, markers: Iterable[Marker]) -> Marker | None:
    """Choose the marker that a layer goes by: of those with its prefix the longest, or None."""
    fitting = (marker for marker in markers if name.startswith(marker.prefix))
    return max(fitting, key=lambda marker: len(marker.prefix), default=None)


def undecodable(layer: StoredLayer) -> str:
    """Say why `stored_parts` cannot take a layer that has a format; or "".

    Going by dtypes and shapes alone: nothing is read. Of a bank, one expert stands for all.
    """
    one = layer.expert(0) if layer.experts else layer
    return one.format.undecodable(one.parts, one.shape)


def coding_of(layer: StoredLayer) -> tuple[Coding, str]:
    """Tell how a layer's weight is decoded, and what is wrong with its scales or "".

    All scales are read: each has to be a positive, finite number in float32. The layer has to be
    decodable.
    """
    parts = {suffix: ref for suffix, ref in own_parts(layer).items() if suffix != "weight"}
    several = Coding(title=layer.format.title, parts=parts)
    by_rows, scale = coded_scales(layer.weight, several)
    for values in (*by_rows, scale):
        bad = values[~((values > 0) & values.isfinite())]
        if bad.numel():
            what = "its scale is" if values is scale else "one of its scales is"
            return several, f"{what} {bad.flatten()[0].item()}"
    # What has a single scale needs no other part while it is decoded.
    return (several, "") if by_rows else (Coding(title=several.title, scale=scale.item()), "")


def own_parts(layer: StoredLayer) -> dict[str, TensorRef]:
    """List what a layer's weight is decoded from, as far as the file has it: {suffix: ref}."""
    # The names do not depend on the shape, so the smallest one will do.
    names = map(layer.format.name_in_file, layer.format.parts((1, 1)))
    return {suffix: layer.parts[suffix] for suffix in names if suffix in layer.parts}


def layer_tensors(layer: StoredLayer) -> dict[str, torch.Tensor]:
    """Read all that a layer's weight is decoded from: {suffix: tensor}, each one whole.

    Suffixes are those of the file. Bias and input scale are not among them; what the file lacks is
    left out.
    """
    return {suffix: load_part(ref) for suffix, ref in own_parts(layer).items()}


def stored_parts(layer: StoredLayer) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Read what the decoder of a layer's format takes.

    Returns the parts that go by rows, codes first, and the scale, a float32 scalar. Rows are those
    of the file, padding included. The layer has to have a format and be decodable.
    """
    return layer.format.unpack(layer_tensors(layer))


# ── nvfp4/stored/lint.py: Hold a quantised file against ComfyUI's contract ────────────────────────

# No trained model has a weight as large as this; FP8 codes without their scale reach 448.
LARGE_WEIGHT = 100.0
# The share of large numbers up to which they may be outliers of a weight that was merely cast. A
# scale for each row of 4096 leaves at least one code of 448 in each.
LARGE_SHARE = 1 / 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """Hold what the checks of a layer depend on besides the layer itself.

    values: whether scales may be read from the disk, and not only headers and configurations.
    prefix: of the diffusion model's names.
    is_other: whether the file is no diffusion model, as a text encoder.
    markers: of scaled FP8; a layer goes by that of its own part of the file.
    unread: see `unread_scales`.
    scalars: see `scalar_scales`, which goes over all formats and so is asked once for a file.
    """

    values: bool
    prefix: str = ""
    is_other: bool = False
    markers: tuple[Marker, ...] = ()
    unread: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, tuple[int, ...]] = field(default_factory=scalar_scales)

    def beside(self, layer: StoredLayer) -> bool:
        """Tell whether a layer is of no diffusion model: ComfyUI multiplies it in 16 bits."""
        return self.is_other or is_beside(layer.name, self.prefix)


def lint(model: Model, layers: dict[str, StoredLayer], *, values: bool = True) -> list[Finding]:
    """Find every defect of a quantised file that its headers, configurations and scales show.

    model: the file's headers; layers: `stored_layers` of it, or those that are asked about.
    values: whether to read scales, too; without, nothing but headers and configurations is looked
        at.

    Raises ConvertError where a scale cannot be read.
    """
    kind = file_kind(Path(), model.tensors)
    facts = FileFacts(
        values=values,
        prefix=diffusion_prefix(model.tensors),
        is_other=kind is not None and not kind.is_like_a_model,
        markers=tuple(find_markers(model)),
        unread=unread_scales(model.tensors),
    )
    # Dtypes of less than 8 bits start at any byte.
    found = [
        Finding(defect="unaligned", name=ref.name, detail=f"byte {ref.begin:,}")
        for ref in model.tensors.values()
        if ref.nbytes and ref.begin % max(1, SAFETENSORS_BITS[ref.dtype] // 8)
    ]
    if header_layers(model.metadata) is None:
        found.append(Finding(defect="header", name="the header"))
    for layer in layers.values():
        found += [*lint_place(layer), *lint_layer(layer, facts)]
    return found


def lint_place(layer: StoredLayer) -> Iterator[Finding]:
    """Check that a quantised weight is a linear layer's in ComfyUI's classes, by its name.

    ComfyUI's own embeddings take FP8 and its scale; whatever else is no linear layer takes a weight
    as it is stored.
    """
    place, form = not_linear(bare(layer.name)), layer.format
    if place is None or form is None or len(layer.weight.shape) != 2:
        return
    finding = partial(Finding, name=layer.name, detail=f"{place.kind} of {place.classes}")
    if form.logical_shape(layer.weight.shape, None) != layer.weight.shape:
        yield finding(defect="no linear layer")
    elif form.scale_suffix in layer.parts and not layer.is_looked_up:
        yield finding(defect="scaled parameter")


def lint_layer(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a layer's configuration, and then its tensors by what the configuration makes of them.

    A layer without a configuration goes to `lint_unconfigured`, and a bank of experts to
    `lint_bank`.
    """
    config, finding = layer.config, partial(Finding, name=layer.name)
    if layer.weight is None:
        # Configured under a prefix that nothing else has, it makes ComfyUI look for the model
        # there.
        misleading = not layer.parts and layer.name.startswith(COMFYUI_PREFIXES)
        if config is not None and (misleading or layer.parts.keys() - {"comfy_quant"}):
            yield finding(defect="no weight")
        elif not layer.parts.keys() <= {"bias"} or config is not None:
            yield finding(defect="stray", detail=", ".join(layer.parts))
    elif config is None:
        yield from lint_unconfigured(layer, facts)
    elif not is_known(config.get("format")):
        yield finding(defect="unknown format", detail=str(config.get("format", "unreadable")))
    else:
        # ComfyUI needs one of the two; this program writes both, so that other loaders find theirs.
        if layer.in_header is None or layer.in_tensor is None:
            only = "comfy_quant" if layer.in_header is None else "header"
            yield finding(defect="one form", detail=only)
        elif layer.in_header != layer.in_tensor:
            yield finding(defect="two forms")
        if layer.experts:
            yield from lint_bank(layer, facts)
        elif layer.configured is not None:
            yield from lint_quantised(layer, facts)
        else:
            yield lint_options(layer)


def lint_options(layer: StoredLayer) -> Finding:
    """Tell of a configuration whose options no row has, for a format that ComfyUI knows."""
    options = {key: value for key, value in layer.config.items() if key != "format"}
    told = f"{layer.config['format']} {json.dumps(options)}"
    named = (row for row in readable_formats() if row.config == layer.config["format"])
    is_matrix = len(layer.weight.shape) == 2
    is_loaded = is_matrix and all(row.allows(layer.config, layer.parts) for row in named)
    return Finding(
        defect="unknown options" if is_loaded else "groups", name=layer.name, detail=told
    )


def lint_bank(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a bank of experts: each expert is checked as a layer, each defect is told once.

    All of them have the same dtypes and shapes, so that one stands for all where values are not
    read.
    """
    if layer.expert(0).configured is None:
        yield lint_options(layer)
        return
    count = layer.experts if facts.values else 1
    experts = map(layer.expert, range(count))
    yield from dict.fromkeys(one for expert in experts for one in lint_quantised(expert, facts))


def lint_unconfigured(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a weight without configuration: 16-bit, legacy scaled FP8, or a mistake.

    ComfyUI takes what has no configuration for the numbers that it stores: packed codes have
    another shape then, and FP8 codes without their scale are another weight.
    """
    finding, weight = partial(Finding, name=layer.name), layer.weight
    form, marker = layer.format, marker_for(layer.name, facts.markers)
    # The order matters: packed codes first, as the marker of scaled FP8 does not make them FP8.
    if form and weight.dtype in VIEWED:
        yield finding(defect=form.unconfigured)
    elif weight.dtype in ("U8", "I8") and len(weight.shape) == 2:
        yield finding(defect="integers", detail=weight.dtype)
    elif marker and marker.is_read and "scale_weight" in layer.parts:
        yield from lint_legacy(layer, facts, needs_input_scale=marker.elements != 2)
    elif form and form.unconfigured:
        yield finding(defect=form.unconfigured)
    elif form and (scale := facts.unread.get(weight.name)):
        yield finding(defect="unscaled", detail=f"beside {scale}")
    elif form and len(weight.shape) == 2:
        # FP8 without any scale is sound if it was merely cast: its values are the weights then.
        values = decode_byte(load(weight)) if facts.values and weight.nbytes else torch.zeros(1)
        if is_too_large(values):
            yield finding(defect="unscaled")
    elif strays := layer.parts.keys() - {"weight", "bias"}:
        yield finding(defect="stray", detail=", ".join(sorted(strays)))


def is_too_large(values: torch.Tensor) -> bool:
    """Tell whether more than LARGE_SHARE of some numbers are larger than trained weights."""
    return int((values.abs() > LARGE_WEIGHT).sum()) > LARGE_SHARE * values.numel()


def lint_legacy(
    layer: StoredLayer, facts: FileFacts, *, needs_input_scale: bool
) -> Iterator[Finding]:
    """Check a layer of scaled FP8, the older form, which the marker configures.

    ComfyUI casts whatever has a `scale_weight` to F8_E4M3, so a weight of another dtype becomes
    another weight. `needs_input_scale` tells whether the marker asks for FP8 activations.
    """
    finding, scale = partial(Finding, name=layer.name), layer.parts.get("scale_input")
    yield from lint_scalars(layer, facts)
    if layer.weight.dtype != SCALED_FP8.weight_dtype:
        yield finding(defect="weight dtype", detail=layer.weight.dtype)
    readable = scale is not None and scale.dtype in SOURCE_FLOATS and facts.values
    # ComfyUI drops an input scale of exactly 1 (comfy/utils.py, convert_old_quants).
    needs_input_scale &= not (facts.beside(layer) or layer.is_looked_up)
    if needs_input_scale and (scale is None or (readable and (load(scale) == 1).all())):
        yield finding(defect="clamped")


def lint_quantised(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a layer that is configured for a format described here: tensors, and its matmul.

    Shapes follow from the weight's, which is checked first: where it is no matrix, nothing else is
    looked at. Values are checked where the tensors are those of the format.
    """
    finding, weight = partial(Finding, name=layer.name), layer.weight
    form = layer.configured
    if len(weight.shape) != 2 or 0 in weight.shape:
        yield finding(defect="shape", detail=f"weight {list(weight.shape)}")
        return
    yield from lint_idle(layer, form)
    rows, columns = form.logical_shape(weight.shape, None)
    expected = form.parts((rows, columns))
    for suffix, part in expected.items():
        yield from lint_part(layer, suffix, part)
    if "weight_codebook" in layer.parts.keys() - expected.keys():
        yield finding(defect="extra codebook")
    yield from lint_scalars(layer, facts)
    for suffix, size in (("bias", rows), ("pre_quant_scale", columns)):
        ref = layer.parts.get(suffix)
        # A bias may have the real rows where the weight has padded ones.
        if ref and tuple(round_up(length, form.row_multiple) for length in ref.shape) != (size,):
            yield finding(defect="shape", detail=f"{suffix} {list(ref.shape)} for {size}")
    # ComfyUI recognises no model by what lies beside it, and multiplies text encoders in 16 bits.
    beside = facts.beside(layer)
    # Where the stored shape is another one, several codes share a byte.
    if expected["weight"][1] != (rows, columns) and not beside:
        yield from lint_packed(layer)
    if facts.values and layer.format is form and not undecodable(layer):
        yield from lint_values(layer)
    is_scaled = layer.full_precision or beside or "input_scale" in layer.parts
    is_scaled |= layer.is_looked_up
    if form.needs_input_scale and not is_scaled:
        yield finding(defect="clamped")
    if not form.fits((rows, columns)):
        yield finding(defect="groups", detail=f"{columns} columns in groups of {form.rotated}")


def lint_idle(layer: StoredLayer, form: Format) -> Iterator[Finding]:
    """Find parts and marks of a layer that ComfyUI does not read where it has this format."""
    idle = ["full_precision_matrix_mult"] if layer.full_precision and not form.takes_mark else []
    idle += ["input_scale"] if "input_scale" in layer.parts and not form.activation_max else []
    if idle:
        yield Finding(defect="idle", name=layer.name, detail=" and ".join(idle))
    if "pre_quant_scale" in layer.parts and not form.has_nvfp4_input:
        yield Finding(defect="smoothed", name=layer.name)


def lint_part(layer: StoredLayer, suffix: str, expected: tuple) -> Iterator[Finding]:
    """Check one tensor's dtype and shape against what its format stores.

    suffix: of the tensor, of which only the absence is reported for single float32 numbers, as
    `lint_scalars` checks these.
    expected: (dtype, shape), as `Format.parts` gives it.
    """
    ref, (dtype, shape) = layer.parts.get(suffix), expected
    if ref is None:
        yield Finding(defect="no scale", name=layer.name, detail=suffix)
        return
    if layer.configured.accepts(suffix, ref, shape):
        return
    finding = partial(Finding, name=layer.name, detail=f"{suffix} {ref.dtype} {list(ref.shape)}")
    # ComfyUI takes scalars of several dtypes and shapes, which `lint_scalars` knows.
    if dtype == "F32" and math.prod(shape) == 1:
        return
    if ref.dtype != dtype:
        yield finding(defect=other_dtype(suffix, ref.dtype, dtype, layer.configured))
    if ref.shape != shape:
        flat = shape == (*ref.shape, 1) and len(ref.shape) == 1
        yield finding(defect="flat scales" if flat else "shape")


def other_dtype(suffix: str, found: str, expected: str, form: Format) -> str:
    """Choose the key of DEFECTS for a part in another dtype than its format says."""
    # What ComfyUI views as the dtype it wants, without changing a bit, or casts from I8 to U8 or
    # back, which wraps around to the same bits (comfy/ops.py, _load_quantized_module).
    viewed = {"weight": VIEWED, "weight_scale": VIEWED, "weight_s_rel": ("U8",)}.get(suffix, ())
    if found in viewed and expected in (*VIEWED, "F8_E4M3", "F8_E8M0"):
        return "same bits" if suffix != "weight" or expected in VIEWED else "weight dtype"
    if suffix == "weight":
        return "weight dtype"
    rounded = form.casts_scales and expected == "F32" and found in ("F16", "BF16")
    return "float16 scale" if rounded else "dtype"


def lint_scalars(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check global, FP8 and input scales: each one positive, finite float32.

    A row of scales, which a format may store, is none of these. A value is read only with
    `facts.values`.
    """
    # The shape of any matrix will do, as scalars have theirs whatever it is.
    form = layer.format or layer.configured
    own = form.parts((32, 32)) if form else {}
    for suffix, written in facts.scalars.items():
        ref = layer.parts.get(suffix)
        if ref is None or math.prod(own.get(suffix, ("", ()))[1]) != 1:
            continue
        finding = partial(
            Finding, name=layer.name, detail=f"{suffix} {ref.dtype} {list(ref.shape)}"
        )
        rows = math.prod(layer.weight.shape[:1])
        # An FP8 scale for each row is decoded rightly by ComfyUI, which broadcasts it; flat ones
        # would be scales of columns.
        per_row = ref.shape == (rows, 1) and rows > 1 and suffix == "weight_scale"
        if ref.dtype not in (*SOURCE_FLOATS, "F64"):
            yield finding(defect="dtype")
        elif math.prod(ref.shape) != 1:
            yield finding(defect="per row" if per_row else "shape")
        else:
            if ref.dtype in ("F16", "BF16"):
                yield finding(defect="float16 scale")
            if ref.dtype == "F64" or (ref.shape and not written):
                yield finding(defect="not scalar")
            # The values of a float64 scale are not read: it is reported as it is.
            value = load(ref).item() if facts.values and ref.dtype in SOURCE_FLOATS else 1.0
            if not 0 < value < math.inf:
                yield finding(defect="bad scale", detail=f"{suffix} {value}")


def lint_packed(layer: StoredLayer) -> Iterator[Finding]:
    """Check what packing a layer, and the padding of its rows, breaks or slows down.

    ComfyUI recognises some models by the shapes of certain layers, which packing changes, and cards
    cannot multiply every shape in FP4.
    """
    rows, columns = layer.shape
    # Packing keeps rows unless it pads them, and halves columns.
    read = shape_read(bare(layer.name))
    if read and (read.columns or rows % layer.configured.row_multiple):
        yield Finding(defect="recognised by", name=layer.name)
    elif read and not read.in_block:
        yield Finding(defect="output layer", name=layer.name)
    if not layer.full_precision and layer.configured.is_slow((rows, columns)):
        yield Finding(defect="slow shape", name=layer.name, detail=f"[{rows}, {columns}]")


def lint_values(layer: StoredLayer) -> Iterator[Finding]:
    """Find the defects that the values of a decodable layer's block or row scales show.

    All scales but scalars are read whole. What is wrong with them, the format's `faults` says.
    """
    form = layer.format
    parts = form.parts(layer.shape)
    # The scales of a weight of one row are a single number, too, but no scalar of the format.
    names = [k for k, (_, shape) in parts.items() if shape not in ((), form.scalar_shape)]
    scales = {suffix: load_part(layer.parts[suffix]) for suffix in names if suffix != "weight"}
    for defect, detail in layer.format.faults(scales, layer.weight.shape):
        yield Finding(defect=defect, name=layer.name, detail=detail)


def lint_file(
    model: Model, layers: dict[str, StoredLayer], *, values: bool = True
) -> list[Finding]:
    """Find all defects of a file: those of its layers, and those of the file as a whole.

    Arguments as for `lint`, which runs on every output, too: no conversion makes the others of a
    source that has none. They are: no tensors, names that ComfyUI does not know, and layers that
    another program packed, of which nothing else is said.
    """
    program, packed = quantiser_of(model.tensors)
    found = [one for one in lint(model, layers, values=values) if one.name not in packed]
    found += [Finding(defect="other program", name=name, detail=program) for name in packed]
    return [*found, *lint_names(model)]


def lint_names(model: Model) -> list[Finding]:
    """Find out whether a file has tensors, and names that ComfyUI knows."""
    if not model.tensors:
        return [Finding(defect="empty", name=str(model.files[0]))]
    # Other files have names of their own.
    if file_kind(Path(), model.tensors):
        return []
    try:
        renaming = comfyui_names(model.files[0], model.tensors)
    except ConvertError:
        # It has a model twice, of which ComfyUI takes one.
        return []
    changed = next((old for old, name in renaming.names.items() if old != name), "")
    return [Finding(defect="prefix", name=changed)] if changed else []


# ── nvfp4/write/partial_files.py: Write the output under temporary names, check it, then give it it

# Written bytes are synced every 128 MiB, while the rest is still computed. Without that, the end of
# a conversion would wait for the whole page cache, and a kill would lose the work since the start.
SYNC_BYTES = 128 << 20


class PartialFiles:
    """Hold the output's files as *.partial: written at known offsets, named once all is complete.

    One thread writes while the caller computes, up to `Options.ahead` bytes behind. Its first error
    is raised by the next `append` or by `flush`, as ConvertError. Used as a context manager: the
    first rank creates the files at their full size, the others open them, and on leaving they are
    deleted unless the journal is kept for --resume.
    """

    def __init__(self, job: Job, journal: Journal, ranks: Ranks, observe: Observe = unobserved):
        self.job, self.journal, self.ranks, self.observe = job, journal, ranks, observe
        self.ahead = job.options.ahead
        self.slots = {
            key: (path, slot)
            for path, layout in job.layouts.items()
            for key, slot in layout.slots.items()
        }
        self.files: dict[Path, BinaryIO] = {}
        self.lost: set[Path] = set()  # deleted by somebody while they were written
        self.given: Counter[str] = Counter()  # bytes of each output tensor so far
        self.pending: deque[tuple[Future, int]] = deque()  # writes under way, and their bytes
        self.finished: dict[str, Damage | None] = {}  # written, but not yet synced and noted
        self.waiting = self.unsynced = 0  # bytes submitted, and bytes written since the last sync

    def __enter__(self) -> PartialFiles:
        # One worker: writes, notes and syncs happen in the order in which they were submitted.
        self.writer = ThreadPoolExecutor(1)
        try:
            if self.ranks.is_first:
                if not self.journal.done:
                    with translated(self.job.options.output):
                        # Deleted, not truncated: what an orphan still writes goes to the old file.
                        self.remove()
                self.open("r+b" if self.journal.done else "wb")
                for path, layout in self.job.layouts.items():
                    with translated(unfinished(path)):  # a full disk may show here already
                        self.put(path, 0, memoryview(layout.header))
                        # At its full size at once: --resume takes a file of another size for cut.
                        self.files[path].truncate(layout.nbytes)
            self.ranks.gather()  # the other ranks can only open files that exist
            if not self.ranks.is_first:
                self.open("r+b")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.shutdown(cancel_futures=True)
        self.close()
        if self.ranks.is_first and not self.journal.keep:
            with contextlib.suppress(OSError):  # Windows deletes no file that another rank has open
                self.remove()

    def close(self) -> None:
        """Close the files, and note in `lost` those whose path leads to another file by now.

        Such a path belongs to another run, which made the file anew after somebody deleted ours: it
        must be neither renamed nor deleted.
        """
        for path, file in self.files.items():
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                if not file.closed and not is_still(os.fstat(file.fileno()), unfinished(path)):
                    self.lost.add(path)
                file.close()

    def remove(self) -> None:
        """Delete the partial files, those in `lost` excepted. Raises OSError."""
        for path in self.job.files:
            if path not in self.lost:
                unfinished(path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Give these files up in all ranks, because the conversion is planned again.

        That happens where float16 could not hold a value; the next plan may have other shards, so
        that nothing of these files would be overwritten by it.
        """
        self.writer.shutdown(cancel_futures=True)
        self.close()
        # All ranks close first, as Windows deletes no file that another process has open.
        self.ranks.gather()
        if self.ranks.is_first:
            with translated(self.job.options.output):
                self.remove()

    def open(self, mode: str) -> None:
        """Open every partial file in binary `mode`, unbuffered. Raises ConvertError."""
        for path in self.job.layouts:
            with translated(unfinished(path)):
                self.files[path] = unfinished(path).open(mode, buffering=0)

    def append(self, key: str, tensor: torch.Tensor) -> None:
        """Append a tensor, or one of several pieces of it, to the output tensor `key`.

        `tensor` may be of any dtype and shape and on any device; its bytes are written in row-major
        order. Its memory must not change afterwards, since the thread writes it later. Waits while
        more than `ahead` bytes are still to be written; raises ConvertError where an earlier write
        failed.
        """
        # numpy knows neither bfloat16 nor FP8, so that bytes are handed over.
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        path, slot = self.slots[key]
        begin = slot.begin + self.given[key]
        self.given[key] += data.nbytes
        self.waiting += data.nbytes
        written = self.writer.submit(self.put, path, begin, memoryview(data))
        self.pending.append((written, data.nbytes))
        self.wait(self.ahead)

    def finish(self, name: str, damage: Damage | None) -> None:
        """Tell that all of a source tensor was given, with its error; None if it was not quantised.

        The note goes through the writing thread, so that it stands behind the tensor's bytes and
        reaches the journal only with the sync that covers them.
        """
        self.writer.submit(self.finished.__setitem__, name, damage)

    def wait(self, ahead: int) -> None:
        """Wait until no more than `ahead` bytes are still to be written; raise what writing met."""
        with translated(unfinished(self.job.options.output)):
            while self.pending and (self.waiting > ahead or self.pending[0][0].done()):
                written, size = self.pending.popleft()
                written.result()
                self.waiting -= size

    def put(self, path: Path, begin: int, data: memoryview) -> None:
        """Write bytes at an offset of a file; runs in the writing thread, one call at a time.

        `data` is written whole, however little the system takes in one call. After SYNC_BYTES the
        files are synced, so that the disk works meanwhile and the end need not wait for all of it.
        """
        file = self.files[path]
        self.unsynced += data.nbytes
        with self.observe("write"):
            file.seek(begin)
            while data:
                data = data[file.write(data) :]
        if self.unsynced > SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Bring what was written to the disk, then note the finished tensors in the journal.

        Before noting, the source's files are compared with what they were when their headers were
        read: raises ConvertError if one changed, since its tensors would be of two models.
        """
        finished, self.finished = self.finished, {}
        with self.observe("sync"):
            for file in self.files.values():
                os.fsync(file.fileno())
            # A source that changed meanwhile is found before anything of it is noted as done.
            self.job.refuse_changed()
            self.journal.add(finished)
        self.unsynced = 0

    def flush(self, keys: Iterable[str]) -> None:
        """End this rank's part of the work: wait for the thread, and sync.

        `keys` are the output tensors that this rank had to write. Raises AssertionError if one did
        not get all its bytes (an error of this program) and ConvertError if the disk refused.
        """
        self.wait(0)
        for key in keys:
            if self.given[key] != self.slots[key][1].nbytes:
                raise AssertionError(f"{key}: {self.given[key]} of {self.slots[key][1].nbytes}")
        with translated(unfinished(self.job.options.output)):
            self.writer.submit(self.sync).result()
        if not self.ranks.is_first:
            self.close()  # Windows renames no file that another process has open

    def refuse_lost(self) -> None:
        """Close the files, and raise ConvertError if one was deleted while it was written.

        Another run may have made the file anew since; what lies there now must not get our name.
        """
        self.close()
        for path in self.lost:
            raise ConvertError(f"{unfinished(path)}: was deleted meanwhile; run again")

    def publish(self) -> None:
        """Check the files, then give them their names; the index of shards comes last.

        Raises ConvertError where the check or a rename fails. Without the index no program takes
        shards for a model, and where one of several renames fails those before it are undone. A
        file that fails the check is not kept for --resume, as going on could not mend it.
        """
        try:
            kept = {plan.ref.layer for plan in self.job.plans if plan.ref.config}
            kept |= {name.rpartition(".")[0] for name in self.job.model.beside}
            phase("checking", quiet=self.job.options.quiet)
            with self.observe("verify"):
                read_back({unfinished(path): lay for path, lay in self.job.layouts.items()}, kept)
        except ConvertError:
            self.journal.keep = False  # going on could not mend it
            raise
        finally:
            self.refuse_lost()
        named = []
        phase("publishing", quiet=self.job.options.quiet)
        try:
            if self.job.index:
                with translated(self.job.index):
                    # The index is written first and renamed last: a loader that finds it finds all.
                    write_unfinished(render_index(self.job).encode(), self.job.index)
                    self.journal.name_shards(self.job.layouts)
            for path in self.job.files:
                rename(unfinished(path), path)
                named.append(path)
        except BaseException:
            # A part of the shards is no model: take their names back. A single file needs nothing.
            for path in named if self.job.index else ():
                rename(path, unfinished(path))
            raise
        # The output has its name, so that nothing is left to resume.
        self.journal.keep = False
        sync_folder(self.job.options.output.parent)


def read_back(written: dict[Path, Layout], kept: set[str]) -> None:
    """Read the written files back; raise ConvertError if they are not as planned.

    `written` is {path: its Layout}: names, dtypes, shapes and offsets must be exactly those. All
    files together then pass the lint that --verify uses, so that a defect of our own never gets a
    name. Defects of the layers in `kept` are the source's own and were noted when it was opened;
    these are the ones that it had packed already, and all beside the diffusion model.
    """
    tensors, metadata = {}, []
    for path, layout in written.items():
        refs, strings = read_header(path)
        found = {
            name: Slot(name=name, dtype=t.dtype, shape=t.shape, begin=t.begin, nbytes=t.nbytes)
            for name, t in refs.items()
        }
        if found != layout.slots:
            raise ConvertError(
                f"{path}: does not read back as it was written; is the disk failing?"
            )
        tensors |= refs
        metadata.append(strings)
    model = Model(tensors=tensors, metadata=merge_metadata(metadata), files=tuple(written))
    found = lint(model, stored_layers(model))
    defects = grouped(finding for finding in found if finding.name not in kept)
    if defects:
        where = examples(map(str, written))
        raise ConvertError(
            *(f"{where}: {DEFECTS[key].what}: {examples(names)}" for key, names in defects.items())
        )


# ── nvfp4/production.py: Carry a job out, or rehearse it: encode its tensors, write and publish the

class Produced(NamedTuple):
    """Hold what became of a job: as it was carried out at last, its layers' errors, and notes.

    `damage` is {layer: Damage}, empty after a rehearsal; `problems` is what a rehearsal found that
    would keep the job from being done.
    """

    job: Job
    damage: dict[str, Damage]
    notes: tuple[str, ...]
    problems: tuple[str, ...] = ()


def rehearse(job: Job, plans: list[TensorPlan], ranks: Ranks) -> Produced:
    """Find the problems that would keep the job from being done; nothing is written.

    plans: as `produce` would get them, before tensors that float16 cannot hold were widened.
    """
    problems = output_problems(job)
    # The others would find the journal locked by the first one, which looks. A folder that is still
    # to be made has none.
    if not problems and ranks.is_first and job.options.output.parent.is_dir():
        problems = journal_problems(job, plans)
    return Produced(job, {}, tuple(outcome_notes(job, {})), tuple(problems))


def journal_problems(job: Job, plans: list[TensorPlan]) -> Sequence[str]:
    """List what `produce` would raise for the journal: another run, or one that is not this."""
    journal = Journal(job.options, ALONE)
    try:
        journal.rehearse()
        if journal.head:
            # The run to go on with knew of these tensors alone.
            journal.check(make_job(job.options, job.model, widen(plans, journal.widened)))
    except ConvertError as error:
        return error.problems
    return ()


def produce(job: Job, ranks: Ranks, observe: Observe = unobserved) -> Produced:
    """Carry the job out; a tensor that does not fit float16 makes it start again with float32.

    Raises ConvertError for what keeps it from being done, before the long work where it is known.
    All ranks of a torchrun come here, and all return the same.
    """
    refuse_problems(job)
    options, plans, notes = job.options, job.plans, []
    if options.make_folder:
        make_folders(job.files)
    with Journal(options, ranks) as journal:
        while True:
            # Known from an earlier attempt, or from the run that --resume goes on with.
            if journal.widened:
                # Every attempt starts from the plans as they came: `widened` has all that was found
                # so far.
                job = make_job(options, job.model, widen(plans, journal.widened))
                refuse_problems(job)  # wider tensors may lie in other shards
            notes += journal.begin(job)
            if journal.done and not options.quiet:
                SCREEN.tell(went_on(job, journal))
            try:
                damage, more = write_model(job, journal, ranks, observe)
                break
            except Float16OverflowError:
                journal.widened = float16_overflows(plans, options)
    return Produced(job, damage, (*outcome_notes(job, damage), *dict.fromkeys([*notes, *more])))


def went_on(job: Job, journal: Journal) -> str:
    """Say where a resumed run goes on."""
    every, done = (
        sum(plan.ref.nbytes for plan in plans)
        for plans in (job.plans, [plan for plan in job.plans if plan.ref.name in journal.done])
    )
    tensors = f"{len(journal.done):,} of {len(job.plans):,} tensors"
    return f"going on: {tensors} ({sized(done, every)}) are written already"


def refuse_problems(job: Job) -> None:
    """Raise ConvertError with all that is known to keep the output from being written."""
    if problems := output_problems(job):
        raise ConvertError(*problems)


def outcome_notes(job: Job, damage: dict[str, Damage]) -> list[str]:
    """List notes on what came otherwise than it was asked for.

    These are layers that lost most of their weights, and tensors that are float32 because float16
    cannot hold them. `damage` is {layer: Damage}.
    """
    notes = []
    lost = [layer for layer, found in damage.items() if found.relative_rmse > ROUNDED_WRONG_FROM]
    if lost:
        what = in_number(len(lost), "layers lose most of what they hold")
        why = "too small for any scale; keep these 16-bit with --exclude"
        notes.append(Note(f"{what}, {why}: {examples(lost)}", Rank.WARNING))
    widened = [plan.ref.name for plan in job.plans if plan.reason.kind is Why.FLOAT16]
    if widened:
        what = in_number(len(widened), "tensors do not fit float16 and are float32")
        notes.append(Note(f"{what}: {examples(widened)}", Rank.INFORMATION))
    return notes


def write_model(
    job: Job, journal: Journal, ranks: Ranks, observe: Observe = unobserved
) -> tuple[dict[str, Damage], list[str]]:
    """Encode every tensor into partial files and publish them; return layers' errors and notes.

    Raises Float16OverflowError in all ranks, and leaves no file, if a tensor of any does not fit.
    """
    options = job.options
    plans = [
        plan for plan in tensors_of_rank(job.plans, ranks) if plan.ref.name not in journal.done
    ]
    marker = marker_of(job.plans) if ranks.is_first else {}
    dtype = TORCH_DTYPES[DTYPE_OPTIONS[options.quant_dtype]]
    search = SCALE_SEARCHES[options.scale_search]
    device = pick_device(options.device, ranks)
    with (
        single_threaded() as threads,
        Compute(device, dtype, search, threads) as compute,
        PartialFiles(job, journal, ranks, observe) as output,
    ):
        # An overflow is not raised at once: the other ranks wait for this one at `gather`.
        overflows = False
        try:
            found = encode_tensors(plans, output, compute, options, observe)
        except Float16OverflowError:
            overflows, found = True, {}
        else:
            phase("syncing", quiet=options.quiet)
            for key, tensor in marker.items():
                output.append(key, tensor)
            own = [*plans, *(plan.bias for plan in plans if plan.bias)]
            output.flush([*marker, *(key for plan in own for key in planned_tensors(plan))])
        shares = ranks.gather((found, compute.notes, overflows))
        if any(overflows for *_, overflows in shares):
            output.discard()
            raise Float16OverflowError
        if ranks.is_first:
            output.publish()
        ranks.gather()  # a rank succeeds only if the whole output was published
    found = journal.done | {name: damage for found, *_ in shares for name, damage in found.items()}
    notes = [note for _, notes, _ in shares for note in notes]
    if journal.done:
        what = f"{len(journal.done)} of {len(job.plans)} tensors were there already"
        notes.insert(0, Note(what, Rank.INFORMATION))
    damage = {plan.ref.layer: found[plan.ref.name] for plan in job.plans if plan.is_quantised}
    return damage, notes


def encode_tensors(
    plans: list[TensorPlan],
    output: PartialFiles,
    compute: Compute,
    options: Options,
    observe: Observe = unobserved,
) -> dict[str, Damage]:
    """Read, encode and write these tensors; return {tensor: Damage} of those that are quantised."""
    todo = [piece for plan in plans for piece in pieces_of(plan)]
    compute.compile([plan for plan in plans if plan.is_quantised])
    pinned, found = compute.device.type == "cuda", {}
    nbytes = sum(piece.nbytes for piece in todo)
    with progress_bar("converting", nbytes, quiet=options.quiet) as bar:
        for piece, data in read_ahead(todo, options.buffers, pinned=pinned, observe=observe):
            plan, name = piece.plan, piece.plan.ref.name
            bar.name = printable(name)
            if plan.is_quantised:
                with observe("encode"):
                    stored, found[name] = quantise(plan, data, compute)
            else:
                with observe("encode"):
                    kept = cast(piece, data)
                # A clone, as the reader fills its buffer again while this is written.
                stored = {name: [kept.clone() if kept is data else kept]}
                if plan.ref.config:
                    text = bytearray(plan.config_bytes)
                    stored[f"{plan.ref.layer}.comfy_quant"] = [
                        torch.frombuffer(text, dtype=torch.uint8)
                    ]
            for key, pieces in stored.items():
                for tensor in pieces:
                    output.append(key, tensor)
            if piece.end == plan.ref.nbytes:
                if plan.bias:  # noted first, as --resume takes a noted weight for a whole layer
                    output.finish(plan.bias.ref.name, None)
                output.finish(name, found.get(name))
            bar.update(piece.nbytes)
    return found


# ── nvfp4/work.py: Tell how much of a model's multiply work is done in which format, and how fast t

# The first version of ComfyUI that reads a layer's pre_quant_scale.
SMOOTHING_SINCE = "0.30"
# Tensor cores by how reports put them together, and the share's name.
SHARES = {"FP4": "FP4", "INT8": "INT8 or FP8", "FP8": "INT8 or FP8", "16-bit": "16-bit"}


class Multiplied(NamedTuple):
    """Hold a linear layer as ComfyUI multiplies by it.

    layer: its name without prefix; weights: how many a token meets, of one expert where there are
    several, as no file tells how many a token goes through; word: a key of `cards.UNITS`; since and
    kitchen: the first versions of ComfyUI and comfy-kitchen that load it, "" for any.
    """

    layer: str
    weights: int
    word: str = "16bit"
    since: str = ""
    kitchen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Hold a step's multiply work by format, and what the file needs.

    family: a key of `tokens.RUNS`, or "". operations: {key of `cards.UNITS`: multiplications of
    the linear layers}. since, kitchen: the first versions of ComfyUI and comfy-kitchen that load
    the file; "" for any, and where nothing is quantised.
    """

    family: str
    operations: Counter[str]
    since: str
    kitchen: str

    def shares(self, card: str | None = None) -> dict[str, float]:
        """Share the work between the values of SHARES; all are 0 where there is no work.

        card: a key of CARDS; None for a card that multiplies all formats.
        """
        found = dict.fromkeys(SHARES.values(), 0.0)
        for word, count in self.operations.items():
            unit = CARDS[card].unit(word) if card else UNITS[word]
            found[SHARES[unit]] += count / (self.operations.total() or 1)
        return found

    def speed(self, card: str) -> float:
        """Estimate how many times as fast as in 16 bits all linear layers are on a class of cards.

        card: a key of CARDS. Throughputs are published peaks, and a format that the class lacks
        runs at 16-bit speed: the result is what the matmuls alone can gain at most.
        """
        row = CARDS[card]
        times = {word: count / row.rate(word) for word, count in self.operations.items()}
        slowest = self.operations.total() / row.rate("16bit")
        return slowest / sum(times.values()) if slowest else 1.0

    def needs(self, card: str | None) -> str:
        """Say what ComfyUI needs for that speed on a class of cards, or on any; "" for nothing."""
        words = {*KITCHEN_FORMATS} & self.operations.keys()
        if card:
            return CARDS[card].needs if words & {*CARDS[card].fast} else ""
        return f"{NEEDS_CUDA_13} (Radeons: torch for ROCm)" if words else ""


def version_key(version: str) -> tuple[int, ...]:
    """Make a key to compare versions such as "0.10" and "0.9" by; "" comes first."""
    return tuple(map(int, version.split("."))) if version else ()


def work_of(layers: Iterable[Multiplied], family: str) -> Work:
    """Add up the multiply work of a model's linear layers, by format.

    family: a key of `tokens.RUNS`, or "" for a model of none.
    """
    layers, counts = [*layers], Counter()
    for layer in layers:
        counts[layer.word] += layer.weights * tokens_of(layer.layer, family)
    since = max((layer.since for layer in layers), key=version_key, default="")
    kitchen = max((layer.kitchen for layer in layers), key=version_key, default="")
    # In one order, so that files whose layers come in another give the same floats.
    operations = Counter({word: counts[word] for word in UNITS if word in counts})
    return Work(family=family, operations=operations, since=since, kitchen=kitchen)


def work_data(work: Work, card: str | None = None) -> dict:
    """Describe the work as data that JSON can have.

    card: the class of cards that the file is for, None for any: then "shares" are those of a card
    that multiplies all formats. "speed" is {class: how many times 16-bit's speed, estimated};
    "comfyui", "comfy_kitchen" and "needs" are None where there is nothing to say.
    """
    return {
        "run": typical_run(work.family).title,
        "card": card,
        "shares": work.shares(card),
        "speed": {name: work.speed(name) for name in ([card] if card else CARDS)},
        "comfyui": work.since or None,
        "comfy_kitchen": work.kitchen or None,
        "needs": work.needs(card) or None,
    }


def render_work(data: dict | None) -> list[str]:
    """Render the data of `work_data` as lines; none where nothing is quantised."""
    if not data or not data["comfyui"]:
        return []
    shares = {name: f"{100 * share:.0f} %" for name, share in data["shares"].items()}
    speeds = (f"{name} {speed:.1f}x" for name, speed in data["speed"].items())
    kitchen = f" with comfy-kitchen {data['comfy_kitchen']}" if data["comfy_kitchen"] else ""
    also = f", and for that speed {data['needs']}" if data["needs"] else ""
    where = data["card"] or "a card that multiplies all formats"
    return [
        f"multiply work of the linear layers on {where}: {shares['FP4']} in FP4, "
        f"{shares['INT8 or FP8']} in INT8 or FP8, {shares['16-bit']} at 16-bit speed "
        f"({data['run']})",
        f"estimated speed of these over 16-bit, by peak throughputs: {', '.join(speeds)}",
        f"needs ComfyUI {data['comfyui']}{kitchen} or newer{also}",
    ]


# ── nvfp4/plan/multiply_work.py: Tell the multiply work of planned layers: how each is multiplied, 

def multiplied(plan: TensorPlan) -> Multiplied:
    """Tell how ComfyUI multiplies by a layer, or by one of a bank of experts.

    A quantised embedding has no weights to multiply by, but needs its version of ComfyUI.
    """
    ref, layer = plan.ref, bare(plan.ref.layer)
    if plan.is_looked_up:
        form = plan.format
        return Multiplied(layer, 0, since=form.embedding_since, kitchen=form.since_kitchen)
    weights = plan.weights // experts_in(plan)
    if not (plan.is_quantised or ref.config):
        return Multiplied(layer, weights)
    shape = plan.format.logical_shape(ref.shape[-2:], None) if ref.config else ref.shape
    is_marked = bool(plan.config.get("full_precision_matrix_mult"))
    word = plan.format.runs_as(shape, full_precision=is_marked)
    since = plan.format.since if plan.smoothing is None else SMOOTHING_SINCE
    return Multiplied(layer, weights, word, since, plan.format.since_kitchen)


def is_in_fp4(plan: TensorPlan) -> bool:
    """Tell whether Blackwell multiplies by a tensor in FP4: a W4A4 layer, of a shape that fits."""
    return plan.is_multiplied and UNITS[multiplied(plan).word] == "FP4"


def experts_in(plan: TensorPlan) -> int:
    """Count the experts whose weights are in a tensor [E, N, K], or configured for [E * N, K]."""
    shape, count = plan.ref.shape, plan.config.get("num_experts")
    if len(shape) == 3:
        return max(shape[0], 1)
    return count if isinstance(count, int) and count > 0 and shape[0] % count == 0 else 1


def family_of(plans: Iterable[TensorPlan]) -> str:
    """Find the family of a model by the plans of all its tensors; "" where it is of none."""
    refs = {plan.ref.name: plan.ref for plan in plans}
    return recognise(Model(tensors=refs, metadata={}, files=()))[0]


def planned_work(plans: Iterable[TensorPlan]) -> Work:
    """Add up the multiply work of a model's linear layers, by format."""
    plans = [*plans]
    told = (plan for plan in plans if plan.is_multiplied or plan.is_looked_up)
    return work_of(map(multiplied, told), family_of(plans))


def work_by_weight(plans: Iterable[TensorPlan]) -> dict[str, float]:
    """Share the multiply work between the linear layers: {weight's name: share}, 1 in all.

    plans: of all tensors of the model. How a layer is multiplied makes no difference.
    """
    plans = [*plans]
    family = family_of(plans)
    counts = {}
    for plan in plans:
        if plan.is_multiplied:
            found = multiplied(plan)
            counts[plan.ref.name] = found.weights * tokens_of(found.layer, family)
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items()}


# ── nvfp4/tune/choice.py: Choose an alternative for each layer within a number of bytes, and a shar

# Halvings of the price of FP4 work: after these, float64 cannot tell the two ends apart.
PRICE_TRIALS = 60


class Alternative(NamedTuple):
    """Describe a precision that a layer could have: the bytes it would take, and its error.

    Errors are squared, so that they add up over layers. `fp4` is the layer's share of the model's
    multiply work where it would be multiplied in FP4, else 0.
    """

    precision: Format
    nbytes: int
    error: float  # squared, relative to the layer's output
    fp4: float = 0.0


Choices = dict[str, list[Alternative]]


class SizePoint(NamedTuple):
    """Describe a file that --target-size could have made: its bytes, and its mean error."""

    nbytes: int
    error: float  # relative RMSE, in the mean over the layers that could be chosen


def lower_hull(alternatives: Iterable[Alternative]) -> list[Alternative]:
    """Keep the alternatives that are best at some price of a byte, smallest first.

    These are the corners of the lower convex hull of error over size. Between two of them the gain
    per byte falls from step to step, so that greedy steps are the best ones.
    """
    kept: list[Alternative] = []
    for more in sorted(alternatives, key=lambda row: (row.nbytes, row.error)):
        if kept and more.error >= kept[-1].error:
            continue
        while len(kept) > 1 and gain(kept[-2], more) >= gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(more)
    return kept


def gain(less: Alternative, more: Alternative) -> float:
    """Return the squared error that one byte more takes away between two alternatives."""
    return (less.error - more.error) / (more.nbytes - less.nbytes)


def upgrades(layers: Choices) -> list[tuple[str, Alternative, Alternative]]:
    """List every step (layer, from, to) along the layers' hulls, the best gain per byte first."""
    steps = [
        (name, less, more)
        for name, hull in layers.items()
        for less, more in itertools.pairwise(hull)
    ]
    return sorted(steps, key=lambda step: -gain(*step[1:]))


def choose_for_size(layers: Choices, budget: int) -> dict[str, Alternative]:
    """Choose the layers' precisions with the least total error in `budget` bytes.

    `layers` is {layer: its alternatives}. It is the optimum but for one step: room that is left
    where the next step does not fit is filled with any alternatives that do. Where even the
    smallest ones do not fit they come back all the same; the caller checks.
    """
    hulls = {name: lower_hull(rows) for name, rows in layers.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(row.nbytes for row in chosen.values())
    steps = [(name, more) for name, _, more in upgrades(hulls)]
    # All alternatives, the least error first: what fills the room that the last step left.
    every = sorted((row.error, name, row) for name, rows in layers.items() for row in rows)
    for name, more in [*steps, *((name, row) for _, name, row in every)]:
        cost = more.nbytes - chosen[name].nbytes
        if more.error < chosen[name].error and cost <= left:
            chosen[name], left = more, left - cost
    return chosen


def fp4_work(rows: Iterable[Alternative]) -> float:
    """Sum up the share of the multiply work that alternatives do in FP4."""
    return sum(row.fp4 for row in rows)


def keep_fp4(layers: Choices, budget: int, least: float) -> Choices:
    """Settle which layers stay in FP4, so that they do at least `least` of the multiply work.

    Work in FP4 earns a price that is taken off the errors: the lowest one at which the choice for
    `budget` bytes has enough of it. Of the layers that are in FP4 then, those that lose most by it
    are set free as far as the share allows. Returns the alternatives, for the layers that stay the
    one in FP4 alone, which should be its smallest. All that can be in FP4 has to be
    enough.
    """

    def choose_at(price: float) -> dict[str, Alternative]:
        priced = {
            name: [row._replace(error=row.error - price * row.fp4) for row in rows]
            for name, rows in layers.items()
        }
        return choose_for_size(priced, budget)

    # Sums of shares may miss what they stand for by float64's rounding.
    least -= 1e-9
    free = choose_for_size(layers, budget)
    if fp4_work(free.values()) >= least:
        return layers
    rows = [row for rows in layers.values() for row in rows]
    # At the upper end FP4 pays in every layer that can have it, whatever error it brings.
    low, high = 0.0, 2 * max(row.error for row in rows) / min(row.fp4 for row in rows if row.fp4)
    for _ in range(PRICE_TRIALS):
        price = (low + high) / 2
        enough = fp4_work(choose_at(price).values()) >= least
        low, high = (low, price) if enough else (price, high)
    held = {name: row for name, row in choose_at(high).items() if row.fp4}
    # Choices alike have one price and come in together: what is more than enough goes out again.
    left = fp4_work(held.values()) - least
    # A priced error is lower than the true one by what the price earns.
    loss = {n: row.error / row.fp4 + high - free[n].error / row.fp4 for n, row in held.items()}
    for name in sorted(held, key=loss.__getitem__, reverse=True):
        if held[name].fp4 <= left:
            left -= held.pop(name).fp4
    return layers | {name: [row for row in layers[name] if row.fp4] for name in held}


def size_curve(layers: Choices, fixed: int, count: float) -> list[SizePoint]:
    """Compute size and error after each step, from the smallest file to the largest.

    `fixed` are the bytes of all that is not chosen, headers included; `count` is how many layers
    the errors are of, each as often as it counts.
    """
    hulls = {name: lower_hull(rows) for name, rows in layers.items()}
    size = fixed + sum(hull[0].nbytes for hull in hulls.values())
    error = sum(hull[0].error for hull in hulls.values())
    points = [SizePoint(size, mean_error(error, count))]
    for _, less, more in upgrades(hulls):
        size, error = size + more.nbytes - less.nbytes, error + more.error - less.error
        points.append(SizePoint(size, mean_error(error, count)))
    return points


def mean_error(total: float, count: float) -> float:
    """Return the relative RMSE in the mean over layers, from the sum of their squared errors."""
    return math.sqrt(max(total, 0.0) / count)


# ── nvfp4/tune/importance.py: Tell how much the error of a layer's output counts in the sum that --

# The layer that ends a branch of a block, whose output is added to the residual stream; the group
# is the name of the branch. Names are those of the families in `families`.
BRANCH_END = re.compile(
    r"(.*attn\w*|.*attention)\.(?:o|out|proj|to_out\.0|to_add_out|out_proj|o_proj|output_proj)$"
    r"|(.*(?:ffn|net|mlp))\.2$|(.*(?:feed_forward|mlp))\.(?:w2|layer2|down_proj|fc2)$"
)


def branch_ended(layer: str) -> str:
    """Name the branch that a layer is the end of: "blocks.3.ffn" for "blocks.3.ffn.2"; else ""."""
    found = BRANCH_END.match(layer)
    return next(filter(None, found.groups())) if found else ""


def importance(layers: Iterable[str], energies: dict[str, float], blocks: int) -> dict[str, float]:
    """Tell what the squared errors of layers are multiplied by: {layer: factor}.

    energies: {layer that ends a branch: mean square of its output}; blocks: how many the model has.
    A layer counts by the root of its branch's energy over their mean: half-way, in logarithms,
    between all alike and a residual stream that takes branches as they are, as gates behind them
    are not known. Where the energy is not known, or 0, it counts as 1.
    """
    branches: dict[str, float] = {}
    for layer, energy in energies.items():
        name = branch_ended(layer)
        branches[name] = branches.get(name, 0.0) + energy
    roots = {name: math.sqrt(energy) for name, energy in branches.items() if energy}
    mean = sum(roots.values()) / (len(roots) or 1) or 1.0
    factors = {}
    for layer in layers:
        parts = layer.split(".")
        above = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        branch = next((name for name in above if name in roots), "")
        factors[layer] = roots[branch] / mean if branch else 1.0
        if not block_of(layer):
            factors[layer] *= max(blocks, 1)
    return factors


# ── nvfp4/tune/measuring.py: Measure what each alternative of a layer costs: bytes, and the squared

# A weight of more than twice as many rows is measured on about this many, evenly spaced: errors of
# rows differ so little that the error is within 1 or 2 % of the whole weight's.
MEASURED_ROWS = 512
# Rows of a weight that recorded inputs are multiplied by.
STUDIED_OUTPUTS = 256
# Inputs are made up as this many rows of normal numbers, each channel times exp(SPREAD * normal).
# The spread is the standard deviation of log(RMS) over channels in a recording of
# a small trained Wan, 0.45 in the mean over its layers. Measurements there / made up: NVFP4
# 0.0934 / 0.0930, INT8 rotated 0.0067 / 0.0070 (0.0077 / 0.0077 of 768 channels), not rotated
# 0.0123 / 0.0103, FP8 0.0264 / 0.0265.
MADE_ROWS, SPREAD = 64, 0.45


class Measurements(NamedTuple):
    """Hold what was measured of layers, by the names of their weights.

    choices: {weight: its alternatives}; energies: {weight: mean square of the layer's output}, of
    layers that end a branch of a block and have recorded inputs.
    """

    choices: Choices
    energies: dict[str, float]


def measure_alternatives(
    options: Options,
    candidates: dict[str, list[TensorPlan]],
    ranks: Ranks,
    work: dict[str, float] | None = None,
) -> Measurements:
    """Measure every candidate's size and error, and what branches add to the residual stream.

    `candidates` is {weight: its plans}, `work` {weight: its share of the multiply work}. Some rows
    of each weight are quantised in each way; the ranks of a torchrun share the weights, and all of
    them get all results, in the order of the candidates.
    """
    work = work or {}
    # The first candidate has the lowest precision: it is quantised, and so is read whole.
    plans = tensors_of_rank([rows[0] for rows in candidates.values()], ranks)
    pieces = [piece for plan in plans for piece in pieces_of(plan)]
    dtype, search = TORCH_DTYPES[DTYPE_OPTIONS[options.quant_dtype]], options.scale_search
    found, energies = {}, {}
    device, nbytes = pick_device(options.device, ranks), sum(piece.nbytes for piece in pieces)
    with (
        single_threaded() as threads,
        Compute(device, dtype, SCALE_SEARCHES[search], threads) as compute,
        progress_bar("measuring", nbytes, quiet=options.quiet) as bar,
    ):
        compute.compile(plans)
        pinned = compute.device.type == "cuda"
        for piece, weight in read_ahead(pieces, options.buffers, pinned=pinned):
            name = piece.plan.ref.name
            bar.name = printable(name)
            # All alternatives of a layer are measured while its weight is in memory.
            found[name] = [
                Alternative(
                    precision=plan.precision,
                    nbytes=bytes_in_output(plan),
                    error=weight_error(plan, weight, compute) + input_error(plan, weight),
                    fp4=work.get(name, 0.0) if is_in_fp4(plan) else 0.0,
                )
                for plan in candidates[name]
            ]
            if piece.plan.moments and branch_ended(bare(piece.plan.ref.layer)):
                outputs = recorded_rows(piece.plan) @ some_outputs(weight).t()
                energies[name] = float(outputs.double().square().mean())
            bar.update(piece.nbytes)
    made = [*ranks.gather((found, energies))]
    every = {name: rows for share, _ in made for name, rows in share.items()}
    # In source order again, which the ranks' results are not: ties go by it.
    choices = {name: every[name] for name in candidates}
    return Measurements(
        choices, {name: value for _, share in made for name, value in share.items()}
    )


def some_outputs(weight: torch.Tensor) -> torch.Tensor:
    """Take some rows of a weight [N, K], evenly spaced, for recorded inputs: float32 [n, K]."""
    return weight[:: max(1, len(weight) // STUDIED_OUTPUTS)].float()


def weight_error(plan: TensorPlan, weight: torch.Tensor, compute: Compute) -> float:
    """Return the squared relative error of a weight as planned: of its output, if that is known.

    `weight` [N, K] is the layer's weight as it was read, of which some rows are measured. Without
    statistics it is the error of the decoded weight.
    """
    rows = slice(None, None, max(1, len(weight) // MEASURED_ROWS))
    if plan.is_quantised:
        damage = measure_rows(plan, weight, compute, rows)
    else:
        dtype = TORCH_DTYPES[plan.dtype]
        unit = damage_unit(largest_magnitude(weight[rows]))

        def measure(some: torch.Tensor) -> Damage:
            return measure_damage(some.float() / unit, some.to(dtype).float() / unit)

        damage = Damage.total(compute.map(measure, weight[rows]), unit)
    # Rounding by statistics trades the weight's error for the output's, which then counts.
    known = damage.relative_rmse if damage.output_after is None else damage.output_after
    return known**2


def input_error(plan: TensorPlan, weight: torch.Tensor) -> float:
    """Return the squared relative error of a layer's output that quantised activations add.

    `weight` is [N, K]. Without recorded rows it is that of made-up activations by themselves: a
    weight of random signs passes it on as it is.
    """
    if not plan.quantises_input:
        return 0.0
    if plan.moments is None:
        return made_up_error(plan.precision, plan.ref.shape[1])
    outputs = some_outputs(weight)
    # A relative error is the same in any units, but squares have to stay in float32's range.
    return added_error(plan, recorded_rows(plan), outputs / damage_unit(largest_magnitude(outputs)))


def recorded_rows(plan: TensorPlan) -> torch.Tensor:
    """Load the rows of a layer's input that recordings kept: float32 [r, K]."""
    return torch.cat([load(refs[2]).float() for refs in plan.moments.recordings])


def added_error(plan: TensorPlan, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Measure the squared error of an output that quantising the input adds, over its energy.

    rows: recorded inputs [r, K]; weight: some exact rows [n, K]; both float32. 0 where the output
    is.
    """
    energy = squared(rows @ weight.t())
    error = plan.precision.quantised_input(rows, plan.input_scale) - rows
    return squared(error @ weight.t()) / energy if energy else 0.0


@functools.cache
def made_up_error(form: Format, columns: int) -> float:
    """Return the squared relative error of quantising activations that nobody recorded.

    They are made up as the constants above say, always the same ones for a number of columns. An
    input scale, where the format needs one, is that of the largest of them.
    """
    made = torch.Generator().manual_seed(columns)
    channels = (SPREAD * torch.randn(columns, generator=made)).exp()
    rows = torch.randn(MADE_ROWS, columns, generator=made) * channels
    scale = float(rows.abs().max()) / form.activation_max if form.needs_input_scale else None
    return squared(form.quantised_input(rows, scale) - rows) / squared(rows)


# ── nvfp4/tune/activations.py: Tune by recorded inputs: which layers stay W4A4, and per-channel smo

# How much of an input's range goes over to the weight: shares that are tried for each layer.
SMOOTHING = (0.25, 0.5, 0.75)
# A pre_quant_scale has to lower the W4A4 output error by 5 %: older versions of ComfyUI ignore it
# and give noise, so that it must be worth that.
LEAST_SMOOTHING_GAIN = 0.05
# Rounding by statistics comes later and leaves about a tenth of the plain search's squared output
# error: what the search measures here counts by that much.
FEEDBACK_LEAVES = 0.1


class CurvePoint(NamedTuple):
    """Describe the trade-off once one more layer has full-precision matmul.

    `layer` is that layer, "" at the beginning of the curve.
    """

    layer: str
    share: float  # of the multiply work, in W4A4
    error: float  # of the squared output error that 4-bit activations add


class Tuned(NamedTuple):
    """Hold plans changed by what was measured, and notes.

    `curve` is --w4a4-share's whole trade-off, empty where it was not asked for.
    """

    plans: list[TensorPlan]
    notes: tuple[str, ...]
    curve: tuple[CurvePoint, ...]


def tune_activations(options: Options, plans: list[TensorPlan]) -> Tuned:
    """Do what --w4a4-share and --pre-quant-scale ask for, the second for what the first leaves.

    Without either, the plans come back as they are. Raises ConvertError where a share is asked for
    and no layer has statistics.
    """
    plans, shared, curve = limit_w4a4(options, plans)
    plans, smoothing = smooth(options, plans)
    return Tuned(plans, (*shared, *smoothing), curve)


def study(plan: TensorPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a layer's recorded input rows [r, K] and some rows of its weight [n, K], float32."""
    return recorded_rows(plan), load_some_rows(plan.ref).float()


def limit_w4a4(
    options: Options, plans: list[TensorPlan]
) -> tuple[list[TensorPlan], list[str], tuple[CurvePoint, ...]]:
    """Spare layers 4-bit activations, those first that gain most for their work.

    They are marked for full-precision matmul, or become what --sensitive-as says. Returns plans,
    notes and the whole curve, whatever other options marked.
    """
    wanted = options.w4a4_share
    if wanted is None:
        return plans, [], ()
    studied = [plan for plan in plans if plan.has_nvfp4_input and plan.moments]
    if not studied:
        raise ConvertError(f"--w4a4-share: {nothing_studied(plans)}")
    work = work_by_weight(plans)
    bar = each_with_bar("comparing", studied, quiet=options.quiet)
    added = {plan.ref.name: added_error(plan, *study(plan)) for plan in bar}
    # By error for their work; names break ties, so that equal inputs give equal plans.
    order = sorted(added, key=lambda name: (-added[name] / work[name], name))
    left = sum(work[plan.ref.name] for plan in plans if plan.is_w4a4 and plan.is_multiplied)
    marked = {plan.ref.name for plan in studied if plan.full_precision}
    curve = trade_off(order, added, work, left + sum(work[name] for name in marked))
    notes = []
    if marked:
        error = 1 - sum(added[name] for name in marked) / (sum(added.values()) or 1)
        best = next(point for point in curve if point.share <= left + 1e-9)
        what = f"other options mark {in_number(len(marked), 'layers')}: W4A4 {100 * left:.0f} %"
        notes.append(
            Note(
                f"{what}, which leave {100 * error:.0f} % of the error that 4-bit activations add; "
                "the layers that gain most for their work would leave "
                f"{100 * best.error:.0f} %",
                Rank.HINT,
            )
        )
    chosen = set()
    for name in order:
        if left > wanted and name not in marked:
            chosen.add(name)
            left -= work[name]
    if left > wanted:
        what = f"--w4a4-share: {100 * left:.0f} % is W4A4 without second moments"
        notes.append(Note(what, Rank.NOTE))
    reason = Reason(Why.W4A4_SHARE, f"--w4a4-share {wanted:g}")
    plans = [spared(options, plan, reason) if plan.ref.name in chosen else plan for plan in plans]
    return plans, notes, curve


def nothing_studied(plans: list[TensorPlan]) -> str:
    """Say why no layer can be compared: none is NVFP4, or none of these has statistics."""
    if any(plan.has_nvfp4_input for plan in plans):
        return "no NVFP4 layer has second moments in --activation-stats"
    if not any(plan.reason.kind is Why.TARGET_SIZE for plan in plans):
        return "no layer is NVFP4"
    return (
        f"{TARGET} chose other formats than NVFP4 for all layers; give --fp4-share instead for the "
        "share of the work that it leaves in W4A4, or --formats for what it chooses from"
    )


def trade_off(
    order: list[str], added: dict[str, float], work: dict[str, float], share: float
) -> tuple[CurvePoint, ...]:
    """Compute what is left in W4A4, and of the error it adds, after each layer in turn.

    `order` are the layers' weights; `added` and `work` are {weight: squared error it adds} and
    {weight: its share of the multiply work}; `share` is the W4A4 share with none marked. The first
    point has all of the error, the last none.
    """
    names, points = [*order], [CurvePoint("", share, 1.0)]
    whole = sum(added.values()) or 1.0  # layers without any error: a curve all the same
    while names:
        name = names.pop(0)
        share, error = max(share - work[name], 0.0), sum(added[name] for name in names) / whole
        points.append(CurvePoint(name.removesuffix(".weight"), share, error))
    return tuple(points)


def smooth(options: Options, plans: list[TensorPlan]) -> tuple[list[TensorPlan], list[str]]:
    """Give W4A4 layers a pre_quant_scale where that lowers their output error.

    Returns the plans and a note on how many gained, and on what such a file asks of ComfyUI.
    """
    if not options.pre_quant_scale:
        return plans, []
    candidates = [plan for plan in plans if plan.is_w4a4 and plan.moments]
    bar = each_with_bar("smoothing", candidates, quiet=options.quiet)
    found = {plan.ref.name: plan for plan in map(smoothed, bar) if plan.smoothing is not None}
    note = (
        f"{len(found)} of {len(candidates)} layers have a pre_quant_scale: ComfyUI 0.29 and older "
        "ignore it and give noise, and LoRAs on these layers come out wrong"
    )
    if not found:
        note = f"--pre-quant-scale: none of {len(candidates)} W4A4 layers gains by it"
    return [found.get(plan.ref.name, plan) for plan in plans], [Note(note, Rank.NOTE)]


def smoothed(plan: TensorPlan) -> TensorPlan:
    """Return the plan with the per-channel scales that leave the least W4A4 output error.

    Scales are [K], bfloat16; the input is multiplied by them and the weight divided. Candidates are
    w ** (1 - s) / x ** s for the shares s in SMOOTHING, with x and w the largest magnitudes of a
    channel's input and weight. The same plan comes back where none gains.
    """
    rows, weight = study(plan)
    exact = rows @ weight.t()
    absmax = torch.stack([load(refs[-1]) for refs in plan.moments.recordings]).amax(0)
    # A channel that was never used has magnitude 0, and would get an infinite scale.
    ranges = absmax.clamp(min=float(absmax.max()) * 2.0**-10 or 1.0)
    weights = weight.abs().amax(0)
    weights = weights.clamp(min=float(weights.max()) * 2.0**-10 or 1.0)

    def error(scale: torch.Tensor, input_scale: float | None) -> float:
        folded = weight / scale
        amax = nvfp4_global_scale(largest_magnitude(folded))
        decoded = decode_nvfp4(*encode_nvfp4(folded, amax, mse_block_scales), amax)
        given = rows * scale
        activations = (plan.precision.quantised_input(given, input_scale) - given) @ folded.t()
        return squared(activations) + FEEDBACK_LEAVES * squared(given @ decoded.t() - exact)

    def input_scale(scale: torch.Tensor) -> float | None:
        if plan.input_scale is None:
            return None
        return plan.input_scale * float((absmax * scale).max() / absmax.max())

    best, least = plan, error(torch.ones_like(absmax), plan.input_scale)
    least *= (1 - LEAST_SMOOTHING_GAIN) ** 2  # errors here are squared
    for share in SMOOTHING:
        scale = weights ** (1 - share) / ranges**share
        scale = (scale / scale.log().mean().exp()).bfloat16()  # any matmul's dtype can hold it
        found = error(scale.float(), input_scale(scale.float()))
        if found < least:
            least = found
            best = dataclasses.replace(
                plan, smoothing=scale, input_scale=input_scale(scale.float())
            )
    return best


# ── nvfp4/tune/target_size.py: Choose precisions for --target-size by what each byte gains ────────

# The header's size depends on the precisions chosen, and these on the bytes that it leaves: the
# choice is repeated up to 8 times until both agree.
SIZE_TRIALS = 8
# The most bytes that a mark for full-precision matmul takes, in comfy_quant and in the header, and
# about what W4A8's configuration, codebook and entries take more.
MARK_BYTES, W4A8_BYTES = 96, 400
# A float32 for each row.
ROW_SCALE_BYTES = 4
# The most bytes of a pre_quant_scale besides its values: its entry in the header, and alignment.
SCALE_BYTES = 200


class SizedPlan(NamedTuple):
    """Hold the plan of --target-size, its error, and the files that it could have made instead.

    error: relative RMSE, in the mean over the layers that could be chosen, as in `sizes`.
    """

    plan: Plan
    error: float
    sizes: tuple[SizePoint, ...]


def plan_for_size(
    options: Options, model: Model, planner: Callable[..., Plan], ranks: Ranks
) -> SizedPlan | None:
    """Choose precisions for --target-size by error, from those that `planner` begins with.

    `planner` makes a plan for {layer: precision}. What float16 cannot hold is float32 in the plan
    that comes back. None without a target; raises ConvertError for one that cannot be reached.
    """
    if not options.target(model):
        return None
    plans, _ = planner()
    alone = slow_work(options, plans)
    # What other options will add once the precisions are settled is left free now.
    target = options.target(model) - reserved(options, plans)
    # A target that is out of reach is told from the headers alone, as reading may take an hour.
    candidates, fixed = reachable(options, model, planner, target)
    # Asked once, for all tensors that could be 16-bit, whatever is chosen later.
    widened = wide_halves(options, plans)
    if widened:
        candidates, fixed = reachable(options, model, planner, target, widened)
    work = work_by_weight(plans)
    least = least_fp4(options, plans, candidates, work)
    measured = measure_alternatives(options, candidates, ranks, work)
    counts = importance_of(plans, measured)
    layers = {
        name: [row._replace(error=row.error * counts[name]) for row in rows]
        for name, rows in measured.choices.items()
    }
    layers = keep_fp4(layers, target - fixed, least)
    # `fixed` is what the last plan had besides the chosen layers, its header included. Should it
    # never agree with the choice that was made by it, the last plan that fits is as good.
    for _ in range(SIZE_TRIALS):
        chosen = choose_for_size(layers, target - fixed)
        precisions = {name: row.precision for name, row in chosen.items()}
        plans, notes = planner(chosen=precisions)
        plans = widen(plans, widened)
        size = output_size(options, model, plans)
        left = size - sum(row.nbytes for row in chosen.values())
        if size <= target and left == fixed:
            break
        fixed = left if size <= target else max(left, fixed)
    refuse_too_small(options, target, size)
    count = sum(counts.values())
    error = mean_error(sum(row.error for row in chosen.values()), count)
    notes = (*notes, *slow_notes(options, alone, slow_work(options, plans)))
    return SizedPlan(Plan(plans, notes), error, tuple(size_curve(layers, fixed, count)))


def importance_of(plans: Iterable[TensorPlan], measured: Measurements) -> dict[str, float]:
    """Tell how much the errors of the open layers count: {weight: factor}, by `importance`."""
    layers = {plan.ref.name: bare(plan.ref.layer) for plan in plans if plan.is_multiplied}
    energies = {layers[name]: energy for name, energy in measured.energies.items()}
    blocks = len({*map(block_of, layers.values())} - {""})
    factors = importance((layers[name] for name in measured.choices), energies, blocks)
    return {name: factors[layers[name]] for name in measured.choices}


def slow_work(options: Options, plans: list[TensorPlan]) -> float:
    """Return the share of the multiply work at 16-bit speed on --card, without it on every card."""
    return planned_work(plans).shares(options.card)[UNITS[HALF.option]]


def slow_notes(options: Options, alone: float, now: float) -> list[str]:
    """Note that a size made layers 16-bit which the preset `alone` would multiply faster.

    alone, now: shares of the multiply work at 16-bit speed.
    """
    # Less than half a per cent would show as equal numbers.
    if not (options.card or options.formats) or now < alone + 0.005:
        return []
    fast = ",".join(word for word in options.allowed if word != HALF.option)
    on = f" on {options.card}" if options.card else ""
    what = f"{100 * now:.0f} % of the multiply work is at 16-bit speed{on}, where the preset alone"
    how = f"--formats {fast} keeps what is chosen fast"
    return [Note(f"{what} has {100 * alone:.0f} %: {how}", Rank.HINT)]


def reserved(options: Options, plans: Iterable[TensorPlan]) -> int:
    """Return the bytes that options may add at most once the precisions are settled.

    --w4a4-share marks layers, or makes W4A8 of them, and --pre-quant-scale adds a tensor [K] to
    them, but both measure the plan that comes out here. What stands in for W4A8 is larger: layers
    that are open to a choice are not NVFP4 then, see `list_candidates`.
    """
    layers = [plan for plan in plans if plan.is_layer]
    added = 0
    if options.w4a4_share:
        added = len(layers) * MARK_BYTES
        if options.sensitive_as == "w4a8":
            added = sum(W4A8_BYTES + ROW_SCALE_BYTES * plan.ref.shape[0] for plan in layers)
            settled = (plan for plan in layers if not plan.is_open and plan.is_quantised)
            added += sum(larger_if_spared(options, plan) for plan in settled)
    if options.pre_quant_scale:
        added += sum(2 * plan.ref.shape[-1] + SCALE_BYTES for plan in layers if plan.moments)
    return added


def larger_if_spared(options: Options, plan: TensorPlan) -> int:
    """Return the bytes by which a layer in NVFP4 grows if --w4a4-share makes INT8 of it, else 0."""
    form = sensitive_format(options, plan)
    if not plan.is_w4a4 or not plan.moments or form in (NVFP4, marked_format(options)):
        return 0
    larger = dataclasses.replace(plan, precision=form, input_scale=None)
    return bytes_in_output(larger) - bytes_in_output(plan)


def wide_halves(options: Options, plans: Iterable[TensorPlan]) -> frozenset[str]:
    """Name the tensors that would be float32, for a value beyond float16's, if not quantised."""
    half = DTYPE_OPTIONS[options.dtype]
    halves = [plan_tensor(plan.ref, UNNAMED, half) if plan.is_quantised else plan for plan in plans]
    return float16_overflows(halves, options)


def reachable(
    options: Options,
    model: Model,
    planner: Callable[..., Plan],
    target: int,
    widened: frozenset[str] = frozenset(),
) -> tuple[dict[str, list[TensorPlan]], int]:
    """List what each open layer could be, as `list_candidates` does, and what all else takes.

    target: the bytes that open layers and all else may take together. The second result is the
    bytes of the file without its open layers. Raises ConvertError where the smallest file is
    larger than the target, where the largest is not, and where no layer is open to a choice.
    """
    plans, _ = planner()
    start = {plan.ref.name: plan for plan in widen(plans, widened)}
    size = output_size(options, model, [*start.values()])
    candidates = list_candidates(options, planner, start, widened)
    if not candidates and size <= target:
        raise ConvertError(f"{TARGET}: no layer is left: other options decide for all")
    fixed = size - sum(bytes_in_output(start[name]) for name in candidates)
    sizes = [[bytes_in_output(plan) for plan in plans] for plans in candidates.values()]
    refuse_too_small(options, target, fixed + sum(map(min, sizes)))
    most, wanted = fixed + sum(map(max, sizes)), options.target(model)
    if most <= wanted:
        given = f"--target-ratio {options.target_ratio}" if options.target_ratio else TARGET
        largest = max(rows[-1].precision for rows in candidates.values())
        form = f"in {largest}" if largest.is_quantised else "unquantised"
        raise ConvertError(
            f"{given}: {exact_size(wanted)} leaves nothing to choose: with every open layer "
            f"{form}, {options.source.name} ({gigabytes(file_bytes(model))}) becomes "
            f"{exact_size(most)}; give less"
        )
    return candidates, fixed


def refuse_too_small(options: Options, target: int, least: int) -> None:
    """Raise ConvertError if the smallest file of this plan, `least` bytes, exceeds the target."""
    if least > target:
        settling = "fewer layers in --layer-config, " if options.layer_config else ""
        raise ConvertError(
            f"{TARGET}: {exact_size(target)} is too little: the smallest that this plan allows is "
            f"about {exact_size(least)}; {settling}fewer --edge-blocks and --exclude, or "
            "--preset all, leave more to choose"
        )


def list_candidates(
    options: Options,
    planner: Callable[..., Plan],
    start: dict[str, TensorPlan],
    widened: frozenset[str] = frozenset(),
) -> dict[str, list[TensorPlan]]:
    """List what each open layer could be, of the formats that --formats and --card allow.

    Returns {weight: its plans, from the lowest precision}. Plans come from `planner`, so that
    floors and input scales apply to them. What could be nothing else than it is is left out.
    """
    names = [name for name, plan in start.items() if plan.is_open and plan.ref.is_linear_weight]
    # One plan of the whole model for each format, as floors and scales depend on all of it.
    ways = [
        {
            plan.ref.name: plan
            for plan in planner(
                chosen={n: fitting(options, form, start[n].ref.shape) for n in names}
            )[0]
        }
        for form in written_formats()
        if form.option in options.allowed
    ]
    candidates = {}
    for name in names:
        plans = {way[name].precision: way[name] for way in ways}
        if HALF.option in options.allowed:
            # It is always possible, whatever the rules make of the layer.
            half = plan_tensor(start[name].ref, UNNAMED, DTYPE_OPTIONS[options.dtype])
            plans[HALF] = half
        kept = (plan for _, plan in sorted(plans.items()) if not is_idle(plan, plans, options))
        if options.w4a4_share:
            kept = (plan for plan in kept if not larger_if_spared(options, plan))
        candidates[name] = widen(kept, widened)
    return {
        name: plans
        for name, plans in candidates.items()
        if len(plans) > 1 or (plans and plans[0].precision is not start[name].precision)
    }


def is_idle(plan: TensorPlan, plans: dict[Format, TensorPlan], options: Options) -> bool:
    """Tell whether a quantised layer is multiplied at 16-bit speed, and need not be.

    That is FP8 without an input scale where INT8 may be chosen. `plans` are the layer's by format.
    --sensitive-as w4a16 asks for such layers.
    """

    def is_fast(other: TensorPlan) -> bool:
        return other.is_quantised and multiplied(other).word != HALF.kernel

    if not plan.is_quantised or is_fast(plan) or options.sensitive_as == "w4a16":
        return False
    return any(is_fast(other) and plan.precision <= other.precision for other in plans.values())


def least_fp4(
    options: Options,
    plans: Iterable[TensorPlan],
    candidates: dict[str, list[TensorPlan]],
    work: dict[str, float],
) -> float:
    """Return the share of the work that the open layers have to do in W4A4, for --fp4-share.

    Choices that other options settle count, too. Raises ConvertError where not enough can be W4A4.
    """
    if options.fp4_share is None:
        return 0.0
    settled = [p.ref.name for p in plans if is_in_fp4(p) and p.ref.name not in candidates]
    able = [name for name, rows in candidates.items() if any(map(is_in_fp4, rows))]
    done, most = (sum(work[name] for name in names) for names in (settled, settled + able))
    if most < options.fp4_share - 1e-9:
        raise ConvertError(
            f"--fp4-share {options.fp4_share:g}: at most {math.floor(1000 * most) / 10:g} % of the "
            "multiply work can be W4A4; other options, or the layers' shapes, keep the rest from it"
        )
    return options.fp4_share - done


# ── nvfp4/report/data.py: Describe a finished or planned conversion as data ───────────────────────

# How reports call layers that were quantised in the source already and go over untouched: they are
# kept apart from those that this conversion quantised, whose error is known.
AS_IT_WAS = "as it was"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Hold what a conversion did, or what it would do after --dry-run.

    `plans` has every tensor's fate in the source's order, `origin` is what the header tells of how
    the file was made, and sizes are those of files in bytes, headers included. `damage` is
    {layer: its error}, empty after a dry run; `curve` and `sizes` are the trade-offs that
    --w4a4-share and --target-size found, empty without them, and `size_error` the mean error of
    what --target-size chose. `asked` is what a ComfyUI answered, None where none was asked.
    `notes` have ranks (see `notes`), and `problems` are what a run would refuse, found by a dry
    run. `seconds` is how long all of it took, and `device` what encoded: "cpu (2 cores)", or the
    name of a GPU.
    """

    options: Options
    plans: tuple[TensorPlan, ...]
    origin: dict[str, object]  # how the file was made, as its header tells
    source_bytes: int
    output_bytes: int
    notes: tuple[str, ...]
    damage: dict[str, Damage] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    sizes: tuple[SizePoint, ...] = ()
    size_error: float = 0.0
    asked: Answer | None = None
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    device: str = ""

    @property
    def work(self) -> dict:
        """Describe the multiply work of the output, for the card that it is for."""
        return work_data(planned_work(self.plans), self.options.card)


def label_of(plan: TensorPlan) -> str:
    """Name how a tensor lies in the output: "NVFP4", "FP8", AS_IT_WAS, or its safetensors dtype."""
    if plan.ref.is_kept:
        return AS_IT_WAS
    return plan.precision.kind if plan.is_quantised else plan.dtype


def totals(plans: Iterable[TensorPlan]) -> dict[str, dict[str, int]]:
    """Add up {how it is stored: {"layers", "tensors", "bytes"}}, quantised ones first.

    "layers" counts linear layers, "tensors" those of the output file, scales and configurations
    included, and "bytes" is their size without the header.
    """
    groups = defaultdict(list)
    for plan in plans:
        # Sorted by precision first; all unquantised formats count as one and go by their dtype.
        groups[min(plan.precision.rank, HALF.rank), label_of(plan)].append(plan)
    return {
        label: {
            "layers": sum(plan.is_layer for plan in members),
            "tensors": sum(len(planned_tensors(plan)) for plan in members),
            "bytes": sum(map(bytes_in_output, members)),
        }
        for (_, label), members in sorted(groups.items())
    }


def matmul(plan: TensorPlan) -> str:
    """Name a layer's matmul by bits: W4A4, W4A16, W8A8 or W8A16.

    The first number is the bits of a stored weight, the second those of the activations that it is
    multiplied by. With full-precision matmul the activations stay 16-bit.
    """
    # The mark is read from the configuration, as layers that were quantised in the source have it
    # only there.
    form = plan.format
    activations = 16 if plan.config.get("full_precision_matrix_mult") else form.activation_bits
    return f"W{form.weight_bits}A{activations}"


def matmuls(plans: Iterable[TensorPlan]) -> dict[str, dict[str, float]]:
    """Add up {matmul: {"layers", "share"}} over the quantised layers.

    "share" is the part of all linear weights, those of unquantised layers and banks of experts
    included, so that the shares sum up to less than 1 where some stay 16-bit.
    """
    # Packed layers of the source count, too: their configuration tells how they are multiplied.
    multiplied = [plan for plan in plans if plan.is_multiplied]
    every, kinds = weights_of(multiplied), defaultdict(list)
    for plan in multiplied:
        if plan.is_quantised or plan.ref.config:
            kinds[matmul(plan)].append(plan)
    return {
        kind: {"layers": len(found), "share": weights_of(found) / every}
        for kind, found in sorted(kinds.items())
    }


def report_data(report: Report) -> dict:
    """Make the whole report JSON-ready: every tensor's plan and reason, errors, totals, trade-offs.

    The keys are what --report's .json has, and a user's scripts may read them; the page is made of
    the same data. Files appear by name only, without folders.
    """
    return {
        "version": __version__,
        "dry_run": report.options.dry_run,
        "source": report.options.source.name,
        "output": report.options.written.name,
        "source_bytes": report.source_bytes,
        "output_bytes": report.output_bytes,
        "origin": report.origin,
        "totals": totals(report.plans),
        "matmuls": matmuls(report.plans),
        "work": report.work,
        "comfyui": report.asked.data if report.asked else None,
        "notes": [note.data for note in by_rank(report.notes)],
        "problems": list(report.problems),
        "w4a4_curve": [point._asdict() for point in report.curve],
        "size_curve": [point._asdict() for point in report.sizes],
        "size_error": report.size_error if report.sizes else None,
        "tensors": [tensor_data(plan, report.damage.get(plan.ref.layer)) for plan in report.plans],
    }


def tensor_data(plan: TensorPlan, damage: Damage | None) -> dict:
    """Describe one tensor of the plan, with its layer's error where one was measured.

    A quantised layer has its matmul and input scale besides; after a conversion also
    `relative_rmse` and `sqnr_db` of the decoded weight, and the output errors if it was rounded by
    statistics. Figures that there are none of are None.
    """
    data = {
        "name": plan.ref.name,
        "shape": plan.ref.shape,
        "source_dtype": plan.ref.dtype,
        "precision": plan.precision.name,
        "reason": str(plan.reason),
        "stored_as": label_of(plan),
        "stored": {key: dtype for key, (dtype, _) in planned_tensors(plan).items()},
        "bytes": bytes_in_output(plan),
    }
    if plan.is_quantised and not plan.is_looked_up:
        data |= {
            "matmul": matmul(plan),
            "full_precision_mm": str(plan.full_precision) if plan.full_precision else None,
            "input_scale": plan.input_scale,
            "input_scale_source": plan.input_scale_source or None,
            "saturated_blocks": plan.saturated_blocks,
        }
    if damage is not None and plan.is_quantised:
        lossless = math.isinf(damage.sqnr_db)  # stored as null, as JSON has no infinity
        data |= {
            "relative_rmse": damage.relative_rmse,
            "sqnr_db": None if lossless else damage.sqnr_db,
            "output_before": damage.output_before,
            "output_after": damage.output_after,
            "output_w4a4": damage.output_w4a4,
        }
    return data


def render_json(data: dict) -> str:
    """Render the data as the text of a .json file; raises ValueError for NaN and infinity."""
    # Python would write NaN as a bare word that other JSON parsers refuse.
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


# ── nvfp4/report/layer_config.py: Write the plan as a file that --layer-config reads ──────────────

def layer_config(plans: Iterable[TensorPlan]) -> str:
    """Render the plan as JSON text: an object with one line for each tensor, in the source's order.

    Keys are bare names (a linear layer without `.weight`). An entry has "format" and, for quantised
    layers, "full_precision_matrix_mult" and "input_scale" where they are set. Tensors that are
    copied get "source"; a dtype that --layer-config has no name for becomes "float32".
    """
    # The table of the reader, the other way round: (format, dtype) -> the entry's name.
    formats = {setting: name for name, setting in UNQUANTISED_SETTINGS.items()}
    formats |= {(row, ""): setting_of(row) for row in written_formats()}
    entries = {}
    for plan in plans:
        dtype = "" if plan.is_quantised or plan.precision.is_copy else plan.dtype
        entry = {"format": formats.get((plan.precision, dtype), "float32")}
        if plan.full_precision:
            entry["full_precision_matrix_mult"] = True
        if plan.input_scale is not None:
            entry["input_scale"] = plan.input_scale
        entries[config_key(plan.ref)] = entry
    # One line for each tensor, so that the file can be edited and compared line by line.
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
    return "{\n " + ",\n ".join(lines) + "\n}\n"


# ── nvfp4/report/looks.py: Say how layers are shown that are multiplied in different ways: a colour

# Shades of a colour, from no error to the largest one of the model.
SHADES = 5


class Colours(NamedTuple):
    """Hold one look's colours on a light or on a dark page, as "#rrggbb".

    weak: the fill without an error; strong: that of the largest error, and of legends and bars;
    line: outlines and patterns, on any of the fills.
    """

    weak: str
    strong: str
    line: str

    def shade(self, step: int) -> str:
        """Mix the fill of an error, step 0 to SHADES - 1."""
        part = step / (SHADES - 1)
        pairs = zip(channels(self.weak), channels(self.strong), strict=True)
        return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)


class Tint(NamedTuple):
    """Hold a colour on a light page and on a dark one."""

    light: Colours
    dark: Colours


class Look(NamedTuple):
    """Show layers that are stored and multiplied in one way.

    label: its name in legends and cells. stored, matmul: what the report's data say of such layers;
    `matmul` is "" where it does not matter. tint: its colours. pattern: one or two keys of
    TEXTURES. says: what it is, for people.
    """

    label: str
    stored: tuple[str, ...]
    matmul: str
    tint: Tint
    pattern: str
    says: str

    @property
    def css(self) -> str:
        """Name its class on the page: a letter first, as CSS wants it."""
        return f"look-{self.label.replace(' ', '-')}"


def channels(colour: str) -> tuple[int, ...]:
    """Split "#rrggbb" into red, green and blue of 0 to 255."""
    return tuple(bytes.fromhex(colour[1:]))


# Found by a search for the largest distance (in OKLab) between the nearest two strong colours, for
# people with and without a colour deficiency.
BLUE = Tint(Colours("#e6f1fe", "#87bffe", "#1a4c7e"), Colours("#1d2f44", "#0265b6", "#abd2fe"))
VIOLET = Tint(Colours("#fbeafc", "#ca84ce", "#653568"), Colours("#39263a", "#87428b", "#ecbaef"))
GREEN = Tint(Colours("#e4f6e5", "#7cb181", "#1c5828"), Colours("#1e3420", "#345a39", "#a7deac"))
YELLOW = Tint(Colours("#f6f0da", "#e4c64f", "#594900"), Colours("#352e11", "#7d6915", "#e0ce89"))
ORANGE = Tint(Colours("#feece2", "#fb8435", "#74370c"), Colours("#402719", "#854419", "#ffbd99"))
# What is not quantised has no fill of its own, the page's cards behind it instead.
HOLLOW = Tint(Colours("#ffffff", "#ffffff", "#7d858e"), Colours("#181e26", "#181e26", "#7c858f"))
GREY = Tint(Colours("#edf0f4", "#afb6bc", "#464b51"), Colours("#2b2e32", "#565c62", "#c8ced5"))

# Formats that one look shows: what the report's data say that a layer is stored as.
W4A8_FORMS = ("W4A8", "W4A8 without codebook")
# The first row that fits a layer is its own, so that those of full-precision matmul come first.
LOOK_ROWS = (
    Look("W4A16", ("NVFP4",), "W4A16", GREEN, "corner", "4-bit weights, 16-bit inputs"),
    Look("W4A4", ("NVFP4",), "", BLUE, "plain", "4-bit weights, 4-bit inputs"),
    Look("W4A8", W4A8_FORMS, "", VIOLET, "rising", "4-bit weights, 8-bit inputs"),
    Look("W6A8", ("W6A8",), "", VIOLET, "crossed", "6-bit weights, 8-bit inputs"),
    Look("INT8 W8A16", ("INT8",), "W8A16", YELLOW, "dots corner", "8-bit weights, 16-bit inputs"),
    Look("INT8", ("INT8",), "", YELLOW, "dots", "8-bit integers"),
    Look("FP8 W8A16", ("FP8",), "W8A16", ORANGE, "level corner", "8-bit weights, 16-bit inputs"),
    Look("FP8", ("FP8",), "", ORANGE, "level", "8-bit floats"),
    Look("MXFP8", ("MXFP8",), "", ORANGE, "upright", "8-bit floats with block scales"),
    Look("16-bit", ("BF16", "F16"), "", HOLLOW, "plain", "not quantised"),
    Look("32-bit", ("F32",), "", GREY, "falling", "not quantised"),
    Look("copied", ("as it was",), "", GREY, "dash", "quantised in the source, and copied"),
)
# All looks by label.
LOOKS = {look.label: look for look in LOOK_ROWS}
# A layer that no row fits is shown by this one; its tip tells what it is.
OTHER_LOOK = Look("other", (), "", GREY, "sparse", "another format")


def look_of(stored_as: str, matmul: str = "") -> Look:
    """Find how a layer is shown: `stored_as` and `matmul` are those of the report's data."""
    fitting = (
        row for row in LOOKS.values() if stored_as in row.stored and row.matmul in ("", matmul)
    )
    return next(fitting, OTHER_LOOK)


def shade_step(error: float | None, largest: float) -> int:
    """Tell the shade of a relative error, where `largest` has the strongest.

    Without an error, as after a dry run, it is the shade in the middle.
    """
    if error is None:
        return SHADES // 2
    return round((SHADES - 1) * min(error / largest, 1)) if largest else 0


def every_look() -> Iterable[Look]:
    """List all rows, OTHER_LOOK last."""
    return (*LOOKS.values(), OTHER_LOOK)


# ── nvfp4/report/page_parts.py: Make the small parts that the report's page is put together from: c

def escaped(value: object) -> str:
    """Make any value safe for HTML text and attributes, control characters included."""
    return escape(printable(str(value)))


def layers_of(data: dict) -> list[dict]:
    """List the linear layers among the report's tensors: the 2-D ones that end in `.weight`.

    The data have no mark for them: they are told by shape and name, as in the plan. Quantised or
    not, they are in the map and in the table of layers; the rest counts in the totals only.
    """
    return [
        tensor
        for tensor in data["tensors"]
        if len(tensor["shape"]) == 2 and tensor["name"].endswith(".weight")
    ]


def layer_look(layer: dict) -> Look:
    """Find how a tensor of the report's data is shown."""
    return look_of(layer["stored_as"], layer.get("matmul", ""))


def chip(look: Look, label: str = "") -> str:
    """Render a label in a look's colour and pattern; the look's own label if none is given."""
    return f'<span class="chip {look.css}"><span>{escaped(label or look.label)}</span></span>'


def decibels(sqnr_db: float | None) -> str:
    """Render an SQNR in dB; None, as the data have it where nothing was lost, is "lossless"."""
    return "lossless" if sqnr_db is None else f"{sqnr_db:.1f} dB"


def html_name(layer: dict) -> str:
    """Render a layer's name so that a browser may break it after its dots."""
    return escaped(layer["name"].removesuffix(".weight")).replace(".", ".<wbr>")


def html_head(*columns: str) -> str:
    """Render a table's head row of ready column titles; those that begin with "#" hold numbers."""
    cells = (
        f'<th scope="col"{" class=n" * title.startswith("#")}>{title.removeprefix("#")}</th>'
        for title in columns
    )
    return f"<tr>{''.join(cells)}</tr>"


def html_table(caption: str, columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """Render a table of ready HTML cells; the first cell of each row becomes the row's heading.

    Columns whose titles begin with "#" are set to the right, as numbers are.
    """
    marks = [" class=n" * title.startswith("#") for title in columns[1:]]
    lines = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, cells, strict=True))
        + "</tr>\n"
        for name, *cells in rows
    )
    head = f"<caption>{caption}</caption><thead>{html_head(*columns)}</thead>"
    return f'<div class="scroll"><table>{head}<tbody>\n{lines}</tbody></table></div>\n'


def html_fold(summary: str, body: str, css: str = "") -> str:
    """Fold a body away behind a line; <details> does it without a script."""
    return f'<details class="{css}"><summary>{summary}</summary>{body}</details>\n'


def html_section(title: str, body: str) -> str:
    """Render a section under a heading."""
    return f"<section><h2>{title}</h2>\n{body}</section>\n"


def html_stack(parts: Iterable[tuple[Look, str, float]]) -> str:
    """Render a stacked bar of (look, label, share from 0 to 1).

    It is hidden from screen readers: a list or a table beside it has to say the same.
    """
    # Three digits of a per cent, as parts that were rounded more would not fill the bar.
    cells = "".join(
        f'<div class="fit {look.css}" style="width:{100 * part:.3f}%">'
        f"<span>{escaped(label)}</span></div>"
        for look, label, part in parts
        if part
    )
    return f'<div class="stack" aria-hidden="true">{cells}</div>'


# ── nvfp4/report/page_curve.py: Render the trade-offs that --target-size and --w4a4-share found, as

# The drawing's size and the margins of its axes, in units of its viewBox. It is as narrow as a
# phone, so that its text is legible there.
CURVE_WIDTH, CURVE_HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 18, 40


class CurveLabels(NamedTuple):
    """Label a curve's axes: the smallest and the largest x, the largest y, and what it shows."""

    left: str
    right: str
    top: str
    says: str


def html_curve(
    points: list[tuple[float, float]], labels: CurveLabels, here: tuple[float, float] | None = None
) -> str:
    """Draw points (x, y), y from 0 up, and a dot where this file is, if that is known.

    The drawing is one image for people who cannot see it: a table beside it has to tell the
    figures.
    """
    xs, ys = zip(*points, *([here] if here else []), strict=True)
    left, right, top = min(xs), max(xs), max(ys)
    floor, end = CURVE_HEIGHT - BOTTOM, CURVE_WIDTH - RIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1) * (end - LEFT)
        return round(LEFT + across, 1), round(floor - y / (top or 1) * (floor - TOP), 1)

    line = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
    dot = ""
    if here:
        x, y = at(*here)
        anchor = "end" if x > CURVE_WIDTH / 2 else "start"
        dot = f'<circle class="here" cx="{x}" cy="{y}" r="5"/>'
        dot += f'<text x="{x}" y="{y - 10}" text-anchor="{anchor}">this file</text>'
    return (
        f'<svg class="curve" viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" '
        f'aria-label="{escaped(labels.says)}">'
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{end}"/>'
        f'<polyline class="line" points="{line}"/>{dot}'
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{labels.top}</text>'
        f'<text x="{LEFT - 5}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{floor + 16}">{labels.left}</text>'
        f'<text x="{end}" y="{floor + 16}" text-anchor="end">{labels.right}</text></svg>\n'
    )


def html_sizes(data: dict) -> str:
    """Render --target-size's trade-off between size and error; "" without it."""
    if not data["size_curve"]:
        return ""
    points = [(point["nbytes"], point["error"]) for point in data["size_curve"]]
    here = (data["output_bytes"], data["size_error"])
    marked = sorted([*((*point, "") for point in points), (*here, "this file")])
    labels = CurveLabels(
        left=gigabytes(marked[0][0]),
        right=gigabytes(marked[-1][0]),
        top=f"{max(error for _, error, _ in marked):.4f}",
        says="File size, and mean relative RMSE of the outputs, by weights and activations, of the "
        "layers that could be chosen",
    )
    rows = ((f"{size:,}", f"{error:.4f}", mark) for size, error, mark in marked)
    table = html_table("Sizes and their mean errors", ("Bytes", "#Mean error", ""), rows)
    return (
        f"<h3>Size and error</h3><p class=soft>{labels.says}. The file need not lie on the line: "
        f"leftover bytes were filled with other layers.</p>\n"
        f"{html_curve(points, labels, here)}{html_fold(f'{len(marked)} sizes', table, 'long')}"
    )


def html_w4a4(data: dict) -> str:
    """Render --w4a4-share's trade-off between 4-bit inputs and their error; "" without it."""
    if not data["w4a4_curve"]:
        return ""
    points = [(point["share"], point["error"]) for point in data["w4a4_curve"]]
    low, high, top = min(points)[0], max(points)[0], max(error for _, error in points)
    labels = CurveLabels(
        left=percentage(low, 1),
        right=percentage(high, 1),
        top=percentage(top, 1),
        says="W4A4 share of the multiply work, and what is left of the squared error it adds",
    )
    rows = (
        (percentage(share, 1), percentage(error, 1), escaped(point["layer"] or "-"))
        for point, (share, error) in zip(data["w4a4_curve"], points, strict=True)
    )
    columns = ("W4A4 share", "#Error left", "Next layer with full-precision matmul")
    table = html_table("Shares and what is left of the error", columns, rows)
    return (
        f"<h3>W4A4 share and error</h3><p class=soft>{labels.says}.</p>\n"
        f"{html_curve(points, labels)}{html_fold(f'{len(points)} shares', table, 'long')}"
    )


def html_curves(data: dict) -> str:
    """Render the section of all trade-offs; "" where none was asked for."""
    body = html_sizes(data) + html_w4a4(data)
    return html_section("Trade-offs", body) if body else ""


# ── nvfp4/stored/needs.py: Tell which ComfyUI a file needs, by the formats of its layers and what e

# What every file of this program needs.
OLDEST = Format.since


class Need(NamedTuple):
    """Name the first version of ComfyUI that loads all of a file, and what asks for it.

    version: as "0.31"; "" where any version with quantised layers does. formats: what needs it.
    kitchen: the first version of comfy-kitchen, "" where any does that ComfyUI asks for.
    """

    version: str
    formats: tuple[str, ...] = ()
    kitchen: str = ""

    def __str__(self) -> str:
        """Tell it in a sentence's end, or "" where nothing is needed."""
        if not self.version:
            return ""
        kitchen = f" with comfy-kitchen {self.kitchen}" if self.kitchen else ""
        return f"needs ComfyUI {self.version}{kitchen} or newer ({', '.join(self.formats)})"


def needed_comfyui(layers: Iterable[StoredLayer]) -> Need:
    """Find the newest of the versions that a file's configured layers ask for.

    Formats that every version has are not named.
    """
    found, kitchen = defaultdict(dict), ""
    for layer in layers:
        form = layer.configured
        if layer.weight is None or form is None:
            continue
        asks = {form.title: form.since}
        if "pre_quant_scale" in layer.parts:
            asks["pre_quant_scale"] = SMOOTHING_SINCE
        if layer.is_looked_up:
            asks[f"embeddings in {form.kind}"] = form.embedding_since
        for what, version in asks.items():
            found[version_key(version)][what] = version
        kitchen = max(kitchen, form.since_kitchen, key=version_key)
    newest = max(found, default=())
    if newest <= version_key(OLDEST):
        return Need("")
    return Need(next(iter(found[newest].values())), tuple(sorted(found[newest])), kitchen)


# ── nvfp4/source/lora_names.py: Know the names that LoRA files have for layers, and for the parts o

# A key may consist of prefixes alone, and each one costs a search: strip at most so many.
MAX_PREFIXES = 10
# Whole keys that some programs write differently: (regular expression, replacement). Wan's
# modulation as LightX2V has it, the processors of XLabs and USO for Flux, and those of old UNets.
KEY_SPELLINGS = (
    (r"\.diff_m$", ".modulation.diff"),
    (r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora1\.", r"\1.img_attn.\2.lora."),
    (r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora2\.", r"\1.txt_attn.\2.lora."),
    (r"(single_blocks\.\d+)\.processor\.qkv_lora\.", r"\1.linear1_qkv.lora."),
    (r"(single_blocks\.\d+)\.processor\.proj_lora\.", r"\1.linear2.lora."),
    (r"\.processor\.", "."),
)
# A LoRA's key is a layer and a part of it; the name of the group that matches is the kind of patch.
# The spellings are those that ComfyUI loads (comfy/weight_adapter, comfy/lora.py); PEFT names the
# adapter, "default" if nobody did, and has a bias beside B.
LORA_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<lora>up|down|mid|A|B)"
    r"(?:(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?\.weight|\.default)?"
    r"|[._]lora_(?P<lora_bias>B)(?:\.(?P<adapter_of_bias>[^.]+))?\.bias"
    r"|\.hada_(?P<loha>w[12]_[ab]|t[12])"
    r"|\.lokr_(?P<lokr>w[12](?:_[ab])?|t2)"
    r"|\.(?:(?P<diff>diff|w_norm)|(?P<bias>diff_b|b_norm)|(?P<set>set_weight))"
    r"|\.(?P<scaling>alpha|dora_scale))"
)
# The groups of LORA_KEY that tell the kind of a patch, of which "scaling" goes with any other one.
LORA_KINDS = ("lora", "loha", "lokr", "diff", "bias", "lora_bias", "set", "scaling")
# What PEFT calls an adapter that nobody named.
UNNAMED_ADAPTER = "default"
# Parts that have several names, by the one that `numeric.lora` knows.
LORA_PARTS = {"A": "down", "B": "up", "w_norm": "diff"}
# What trainers put before a layer's name. In the second line: DiffSynth's and those of wrappers. In
# the third: kohya's, of which Wan Fun has two underscores, OneTrainer's and SimpleTuner's.
LORA_PREFIX = re.compile(
    r"(model\.)?diffusion_model\.|net\.|unet\.|transformer(_[12])?\.|base_model\.model\.|model\."
    r"|pipe\.|dit2?\.|module\."
    r"|lora_unet_+|lora_prior_unet_|lora_transformer_|lycoris_"
)
# What wrappers put anywhere in a name, also where dots became underscores.
LORA_WRAPPED = re.compile(rf"(?<![^._])({WRAPPERS})[._]")
# How pipelines of two models name the second one: Wan 2.2's for low noise.
SECOND_MODEL = re.compile(r"(.+\.)?(transformer_2|dit2)\.")
# Keys of known kinds that are not merged, by what a note calls them.
NOT_MERGED = {
    "of a text encoder": r"lora_te|text_encoder|clip_|t5xxl",
    "of OFT": r".+\.(oft_|rescale$)",
    "of GLoRA": r".+\.[ab][12]\.weight$",
    "of PEFT's DoRA": r".+\.lora_magnitude_vector",
    "a scalar of LyCORIS": r".+\.scalar$",
    "a new shape of a layer": r".+\.reshape_weight$",
}
# Some layers have one name in the published file and another one in ComfyUI. Rows bring both to
# one: (regular expression, replacement), on names with _ for every dot, as kohya's trainers write.
SPELLINGS = (
    (r"(_mod|modulation)_linear", r"\1_lin"),
    (r"mlp_fc1", "mlp_0"),
    (r"mlp_fc2", "mlp_2"),
    (r"_norm_(q|k)(uery|ey)_norm", r"_\1_norm"),
    (r"(_in|_embedder)_(mlp_0|linear_1)", r"\1_in_layer"),
    (r"(_in|_embedder)_(mlp_2|linear_2)", r"\1_out_layer"),
)
# The blocks of UNets (Stable Diffusion 1 to XL) as diffusers numbers them: by level, then by kind.
UNET_BLOCK = re.compile(r"(down|up)_blocks_(\d)_(resnet|attention|downsampler|upsampler)s_(\d)_")
# Where a block of each kind stands: its place in the native block, and in its level of three blocks
# if that is not its own number.
UNET_PLACES = {"resnet": (0, None), "attention": (1, None), "downsampler": (0, 2),
               "upsampler": (2, 2)}  # fmt: skip
# The layers of all three kinds of Krea 2's blocks, as the last part of a row of DIFFUSERS.
KREA2_BLOCK = {
    r"attn_to_([qkv])": r"attn_w\2",
    "attn_to_gate": "attn_gate",
    "attn_to_out(_0)?": "attn_wo",
    r"ff_(gate|up|down)": r"mlp_\2",
}
# The layers of a UNet's blocks; old LoRAs have an attention's last layer without its number.
UNET_LAYERS = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
    "conv": "op",
    r"(?P<same>.+_to_out)": r"\g<same>_0",
    r"(?P<same>.+)": r"\g<same>",
}
# How diffusers names the layers of a model, in the same form: diffusers' block, the native block,
# {diffusers' layer: native layer}. A group named `rows` is a part of a fused layer, see FUSED_ROWS,
# and one named `kv` a part of one that has no q. One named `swapped` has scale and shift in the
# other order, one named `swapped_alone` only where there is nothing but these two.
DIFFUSERS = (
    # Flux and Hunyuan Video.
    (r"transformer_blocks_(\d+)_", r"double_blocks_\1_", {
        r"attn_to_(?P<rows>[qkv])": "img_attn_qkv",
        r"attn_add_(?P<rows>[qkv])_proj": "txt_attn_qkv",
        "attn_to_out_0": "img_attn_proj",
        "attn_to_add_out": "txt_attn_proj",
        "norm1_linear": "img_mod_lin",
        "norm1_context_linear": "txt_mod_lin",
        "ff_(net_0_proj|linear_in)": "img_mlp_0",
        "ff_(net_2|linear_out)": "img_mlp_2",
        "ff_context_(net_0_proj|linear_in)": "txt_mlp_0",
        "ff_context_(net_2|linear_out)": "txt_mlp_2",
        r"attn_norm_([qk])": r"img_attn_\2_norm",
        r"attn_norm_added_([qk])": r"txt_attn_\2_norm",
    }),
    (r"single_transformer_blocks_(\d+)_", r"single_blocks_\1_", {
        r"attn_to_(?P<rows>[qkv])": "linear1",
        r"(?P<rows>proj_mlp)": "linear1",
        # Flux 2, which has the layer fused already.
        "attn_to_qkv_mlp_proj": "linear1",
        "proj_out|attn_to_out": "linear2",
        "norm_linear": "modulation_lin",
        r"attn_norm_([qk])": r"\2_norm",
    }),
    (r"single_blocks_(\d+)_", r"single_blocks_\1_", {r"linear1_(?P<rows>qkv)": "linear1"}),
    ("", "", {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        r"time_text_embed_timestep_embedder_(\w+)": r"time_in_\1",
        r"time_text_embed_text_embedder_(\w+)": r"vector_in_\1",
        r"time_text_embed_guidance_embedder_(\w+)": r"guidance_in_\1",
        "proj_out": "final_layer_linear",
        "norm_out_(?P<swapped>linear)": "final_layer_adaLN_modulation_1",
        # Z-Image.
        "all_x_embedder_2-1": "x_embedder",
        "all_final_layer_2-1_(.+)": r"final_layer_\1",
    }),
    (r"((?:layers|context_refiner|noise_refiner)_\d+)_attention_", r"\1_attention_", {
        r"to_(?P<rows>[qkv])": "qkv",
        "to_out_0": "out",
        r"norm_([qk])": r"\2_norm",
    }),
    # Wan, in names that ComfyUI does not load LoRAs by.
    (r"(blocks_\d+)_", r"\1_", {
        r"attn1_(?:to_(?=[qkv])|(?=norm_))(\w+)": r"self_attn_\2",
        r"attn2_(?:to_(?=[qkv])|(?=norm_[qk]$))(\w+)": r"cross_attn_\2",
        r"attn2_add_([kv])_proj": r"cross_attn_\2_img",
        "attn1_to_out_0": "self_attn_o",
        "attn2_to_out_0": "cross_attn_o",
        "ffn_net_0_proj": "ffn_0",
        "ffn_net_2": "ffn_2",
    }),
    # Krea 2.
    (r"transformer_blocks_(\d+)_", r"blocks_\1_", KREA2_BLOCK),
    (r"text_fusion_((?:layerwise|refiner)_blocks_\d+)_", r"txtfusion_\1_", KREA2_BLOCK),
    ("", "", {
        "img_in": "first",
        "time_embed_linear_1": "tmlp_0",
        "time_embed_linear_2": "tmlp_2",
        "time_mod_proj": "tproj_1",
        "txt_in_in_layer": "txtmlp_1",
        "txt_in_out_layer": "txtmlp_3",
        "text_fusion_projector": "txtfusion_projector",
        "final_layer_linear": "last_linear",
    }),
    # Stable Diffusion 3.
    (r"transformer_blocks_(\d+)_", r"joint_blocks_\1_", {
        r"attn(2?)_to_(?P<rows>[qkv])": r"x_block_attn\2_qkv",
        r"attn_add_(?P<rows>[qkv])_proj": "context_block_attn_qkv",
        r"attn(2?)_to_out_0": r"x_block_attn\2_proj",
        "attn_to_add_out": "context_block_attn_proj",
        r"attn(2?)_norm_([qk])": r"x_block_attn\2_ln_\3",
        r"attn_norm_added_([qk])": r"context_block_attn_ln_\2",
        "norm1_linear": "x_block_adaLN_modulation_1",
        "norm1_context_(?P<swapped_alone>linear)": "context_block_adaLN_modulation_1",
        "ff_net_0_proj": "x_block_mlp_0",
        "ff_net_2": "x_block_mlp_2",
        "ff_context_net_0_proj": "context_block_mlp_0",
        "ff_context_net_2": "context_block_mlp_2",
    }),
    ("", "", {
        "pos_embed_proj": "x_embedder_proj",
        r"time_text_embed_timestep_embedder_(\w+)": r"t_embedder_\1",
        r"time_text_embed_text_embedder_(\w+)": r"y_embedder_\1",
    }),
    # AuraFlow.
    (r"joint_transformer_blocks_(\d+)_", r"double_layers_\1_", {
        r"attn_to_([qkv])": r"attn_w2\2",
        r"attn_add_([qkv])_proj": r"attn_w1\2",
        "attn_to_out_0": "attn_w2o",
        "attn_to_add_out": "attn_w1o",
        r"ff_linear_([12])": r"mlpX_c_fc\2",
        "ff_out_projection": "mlpX_c_proj",
        r"ff_context_linear_([12])": r"mlpC_c_fc\2",
        "ff_context_out_projection": "mlpC_c_proj",
        "norm1_linear": "modX_1",
        "norm1_context_linear": "modC_1",
    }),
    (r"single_transformer_blocks_(\d+)_", r"single_layers_\1_", {
        r"attn_to_([qkv])": r"attn_w1\2",
        "attn_to_out_0": "attn_w1o",
        r"ff_linear_([12])": r"mlp_c_fc\2",
        "ff_out_projection": "mlp_c_proj",
        "norm1_linear": "modCX_1",
    }),
    ("", "", {
        "context_embedder": "cond_seq_linear",
        "pos_embed_proj": "init_x_linear",
        "time_step_proj_linear_1": "t_embedder_in_layer",
        "time_step_proj_linear_2": "t_embedder_out_layer",
        "proj_out": "final_linear",
        "norm_out_(?P<swapped>linear)": "modF_1",
    }),
    # PixArt.
    (r"transformer_blocks_(\d+)_", r"blocks_\1_", {
        r"attn1_to_(?P<rows>[qkv])": "attn_qkv",
        "attn1_to_out_0": "attn_proj",
        "attn2_to_q": "cross_attn_q_linear",
        r"attn2_to_(?P<kv>[kv])": "cross_attn_kv_linear",
        "attn2_to_out_0": "cross_attn_proj",
        "ff_net_0_proj": "mlp_0",
        "ff_net_2": "mlp_2",
    }),
    ("", "", {
        "adaln_single_linear": "t_block_1",
        r"adaln_single_emb_timestep_embedder_(\w+)": r"t_embedder_\1",
        r"adaln_single_emb_resolution_embedder_(\w+)": r"csize_embedder_\1",
        r"adaln_single_emb_aspect_ratio_embedder_(\w+)": r"ar_embedder_\1",
        r"caption_projection_linear_([12])": r"y_embedder_y_proj_fc\1",
    }),
    # ACE-Step 1.5, whose LoRAs are trained on the decoder alone.
    ("", "decoder_", {
        r"(?P<same>(?:layers|proj_in|proj_out|time_embed|condition_embedder).*)": r"\g<same>",
    }),
    # UNets, with blocks that `canonical` has renumbered.
    (r"((?:in|out)put_blocks_\d+_\d)_", r"\1_", UNET_LAYERS),
    ("mid_block_resnets_0_", "middle_block_0_", UNET_LAYERS),
    ("mid_block_resnets_1_", "middle_block_2_", UNET_LAYERS),
    ("mid_block_attentions_0_", "middle_block_1_", UNET_LAYERS),
    # Without attention, the upsampler is one place further to the front.
    (r"(output_blocks_\d+)_2_", r"\1_1_", {"conv": "conv"}),
    ("", "", {
        "conv_in": "input_blocks_0_0",
        "conv_norm_out": "out_0",
        "conv_out": "out_2",
        "time_embedding_linear_1": "time_embed_0",
        "time_embedding_linear_2": "time_embed_2",
        "(?:add|class)_embedding_linear_1": "label_emb_0_0",
        "(?:add|class)_embedding_linear_2": "label_emb_0_2",
    }),
)  # fmt: skip
# The rows of DIFFUSERS, compiled: (a whole name's regular expression, its native name).
NATIVE_NAMES = [
    (re.compile(block + f"(?:{layer})"), native_block + native)
    for block, native_block, layers in DIFFUSERS
    for layer, native in layers.items()
]
# Where a part begins and ends among a fused layer's rows, in multiples of its columns. Flux's
# `linear1` has q, k, v and an MLP of four times the width.
FUSED_ROWS = {"q": (0, 1), "k": (1, 2), "v": (2, 3), "qkv": (0, 3), "proj_mlp": (3, 7)}


def parse_key(key: str) -> re.Match | None:
    """Match a key of a LoRA file with LORA_KEY, spelt as most programs do; None if it is none."""
    for spelling, other in KEY_SPELLINGS:
        key = re.sub(spelling, other, key)
    return LORA_KEY.fullmatch(key)


def canonical(name: str) -> str:
    """Bring a layer's name to the one spelling in which models and LoRA files are compared.

    Dots become underscores, as kohya's names cannot be brought back to dots, and then the rows of
    SPELLINGS are applied in turn.
    """
    name = UNET_BLOCK.sub(unet_block, name.replace(".", "_"))
    for spelling, other in SPELLINGS:
        name = re.sub(f"{spelling}(?=(_bias)?$)", other, name)
    return name


def unet_block(match: re.Match) -> str:
    """Number a UNet's block as the model's file does: input and output blocks, three to a level.

    match: of UNET_BLOCK. The first input block, 0, is a convolution of its own.
    """
    way, level, kind, index = match.groups()
    place, last = UNET_PLACES[kind]
    number = 3 * int(level) + (int(index) if last is None else last)
    return (
        f"input_blocks_{number + 1}_{place}_"
        if way == "down"
        else f"output_blocks_{number}_{place}_"
    )


def layer_names(tensors: Collection[str]) -> dict[str, str]:
    """Return {canonical name: tensor} of a model, for `locate`: layers and other tensors.

    Norms of Flux are named `scale` where others are named `weight`; both go by the norm's own name,
    and the first also by its whole one.
    """
    whole = {canonical(bare(name)): name for name in tensors if not name.endswith(".weight")}
    return whole | {canonical(re.sub(r"\.(weight|scale)$", "", bare(n))): n for n in tensors}


def plain_layer(layer: str) -> str:
    """Strip all prefixes and wrappers from a layer's name in a LoRA file, as PEFT names modules."""
    layer = LORA_WRAPPED.sub("", layer)
    for _ in range(MAX_PREFIXES):
        layer = layer[match.end() :] if (match := LORA_PREFIX.match(layer)) else layer
    return layer


def locate(layer: str, names: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """Find the model's tensor that a LoRA's layer is, and which part of it.

    layer: as the LoRA's key has it. names: {canonical name: tensor} of the model. The name is tried
    as it is and as one of diffusers, then again without its first prefix, and so on. Returns the
    tensor's name and the groups of the row of DIFFUSERS that matched, or None.
    """
    layer = LORA_WRAPPED.sub("", layer)
    for _ in range(MAX_PREFIXES):
        name = canonical(layer)
        if name in names:
            return names[name], {}
        for pattern, native in NATIVE_NAMES:
            match = pattern.fullmatch(name)
            if match and (native := match.expand(native)) in names:
                return names[native], match.groupdict()
        # Some trainers put several prefixes one before another.
        if not (prefix := LORA_PREFIX.match(layer)):
            break
        layer = layer[prefix.end() :]
    return None


def rows_of(found: dict[str, str], target: TensorRef) -> slice:
    """Find the rows of a fused layer that are its q, k, v or MLP.

    found: the groups of a row of DIFFUSERS, which tell the part; without one, all rows are meant.
    target: the fused tensor [N, K], whose columns tell the width that its parts are multiples of.
    """
    # Without q, k and v lie where q and k do otherwise.
    part = found.get("rows") or {"k": "q", "v": "k"}.get(found.get("kv"))
    if part is None:
        return slice(None)
    begin, end = FUSED_ROWS[part]
    return slice(begin * target.shape[-1], end * target.shape[-1])


def is_swapped(found: dict[str, str], target: TensorRef) -> bool:
    """Tell whether diffusers has scale and shift of a tensor in the other order, see DIFFUSERS."""
    return "swapped" in found or (
        "swapped_alone" in found and target.shape[0] == 2 * target.shape[-1]
    )


def describe_unmatched(keys: list[str]) -> str:
    """Tell how many keys match nothing, what they are where that is known, and the first few."""
    # Known kinds are counted from the beginning of a key, prefixes not stripped.
    kinds = {what: sum(bool(re.match(row, k)) for k in keys) for what, row in NOT_MERGED.items()}
    told = "".join(f", {count} {what}" for what, count in kinds.items() if count)
    return f"{len(keys)} keys match no tensor of the model{told}: {examples(keys)}"


# ── nvfp4/source/lora_alpha.py: Find out what the changes of a LoRA are scaled by: its alpha, over 

# The file that PEFT writes beside a LoRA, and the name that it gives the LoRA itself.
CONFIG_FILE, PEFT_MODEL = "adapter_config.json", "adapter_model"
# Under this name of a header's metadata, diffusers has PEFT's configuration as JSON.
CONFIG_KEY = "lora_adapter_metadata"
# The factor whose first dimension is the rank, by the kind of patch: the first that is there.
RANKED_PARTS = {"lora": ("down",), "loha": ("w1_b",), "lokr": ("w2_b", "w1_b")}
# What programs call the alpha of a whole file, and its rank; the first one that is there counts.
ALPHA_FIELDS = ("lora_alpha", "network_alpha", "alpha", "ss_network_alpha")
RANK_FIELDS = ("r", "lora_rank", "rank", "network_dim", "ss_network_dim")
# What PEFT has besides: values for single modules, rank stabilisation (alpha over the root of the
# rank), and DoRA, whose magnitudes would have to be in the file.
PATTERNS = ("alpha_pattern", "rank_pattern")
OTHER_FIELDS = (*PATTERNS, "use_rslora", "use_dora")
# How programs write that they have no value.
NO_VALUE = (None, "", "None", "null")
# Metadata of a model's parts that are not converted.
TEXT_ENCODER = re.compile(r"text_encoder|te\d?$|clip")
# kohya's trainers write this beside ss_network_alpha, and always a tensor of each layer, under
# names with underscores. Converters to other names multiply alpha into the weights, drop the
# tensors, and leave the metadata as it was (musubi-tuner's convert_lora.py).
KOHYA_TRAINED, KOHYA_NAME = "ss_network_module", re.compile(r"lora_\w+$")
# Patterns for modules come from the file, and must not take long to match: a repeated group could
# take exponential time, and many quantifiers nearly so.
MAX_PATTERNS, MAX_PATTERN = 10_000, 200
COSTLY, SIMPLE_NAME = re.compile(r"\)[*+{]|([*+?{].*){3}"), re.compile(r"[\w.]+")


class Trained(NamedTuple):
    """Hold one statement of how a LoRA was trained.

    source: where it stands, as messages call it. component: the part of a pipeline that it is for,
    "" for all. fields: what it says, by the names in ALPHA_FIELDS, RANK_FIELDS and OTHER_FIELDS;
    metadata have text for every value.
    """

    source: str
    component: str
    fields: dict[str, object]

    @property
    def label(self) -> str:
        """Name the statement in a message: its source, and the component if it is for one."""
        return f"{self.source} for {self.component}" if self.component else self.source


class Alpha(NamedTuple):
    """Hold a layer's alpha from a statement, and whether it is over the root of the rank."""

    value: float
    is_rank_stabilised: bool

    def scale(self, rank: int) -> float:
        """Return what the layer's change is multiplied by."""
        return self.value / (math.sqrt(rank) if self.is_rank_stabilised else rank)


class Scales(NamedTuple):
    """Hold what the parts of a LoRA are multiplied by besides its strength.

    by_part: by layer and kind, where that is not an alpha tensor's business or 1. idle: layers
    whose alpha is 0, so that they change nothing.
    """

    by_part: dict[tuple[str, str], float]
    idle: set[str]
    notes: list[str]
    problems: list[str]


class Alphas(NamedTuple):
    """Hold the alphas of layers that have no tensor for it, and what is to be told about them."""

    by_layer: dict[str, Alpha]
    notes: list[str]
    problems: list[str]


def lora_scales(
    path: Path, metadata: dict[str, str], layers: dict[str, dict[str, dict[str, TensorRef]]]
) -> Scales:
    """Find the scales of a LoRA's layers: of their alpha tensors, else of what is stated elsewhere.

    layers: {layer: {kind: {part: TensorRef}}}, of those that are merged. Raises ConvertError for an
    alpha tensor that is no number, and a configuration that cannot be read.
    """
    ranks = {layer: rank for layer, kinds in layers.items() if (rank := rank_of(kinds))}
    weights = {layer: {k: v for parts in kinds.values() for k, v in parts.items()}
               for layer, kinds in layers.items()}  # fmt: skip
    tensors = {layer: parts["alpha"] for layer, parts in weights.items() if "alpha" in parts}
    stored = stored_alphas(path, tensors)
    stated = trained_alphas(path, metadata, {k: v for k, v in ranks.items() if k not in tensors})
    scales = {layer: alpha.scale(ranks[layer]) for layer, alpha in stated.by_layer.items()}
    # An alpha tensor is among the parts of its layer's weight, and scales that when it is merged.
    by_part = {(layer, kind): scale for layer, scale in scales.items()
               for kind in layers[layer].keys() & RANKED_PARTS.keys()}  # fmt: skip
    scales |= {layer: stored[layer] / ranks[layer] for layer in stored.keys() & ranks.keys()}
    by_part |= {(layer, "lora_bias"): scale for layer, scale in scales.items()
                if "lora_bias" in layers[layer]}  # fmt: skip
    # DoRA scales a weight whose change is 0, too.
    idle = {layer for layer in stored if not stored[layer] and "dora_scale" not in weights[layer]}
    what = f"alpha is 0 in {in_number(len(idle), 'layers')}, which changes nothing"
    what = Note(f"{what}: {examples(idle)}", Rank.NOTE)
    return Scales(by_part, idle, stated.notes + ([what] if idle else []), stated.problems)


def rank_of(kinds: dict[str, dict[str, TensorRef]]) -> int:
    """Tell the rank that a layer's alpha is divided by, or 0: as `numeric.lora` does."""
    shapes = (
        kinds[kind][name].shape
        for kind, names in RANKED_PARTS.items()
        for name in names
        if name in kinds.get(kind, ())
    )
    return next((shape[0] for shape in shapes if shape), 0)


def stored_alphas(path: Path, alphas: dict[str, TensorRef]) -> dict[str, float]:
    """Read alpha tensors: {layer: value}.

    alphas: {layer: its tensor}, of one element each; others are passed over, as they do not fit.
    Raises ConvertError for one that is NaN or infinite.
    """
    found = {}
    with opened(path) as file:
        for layer, ref in alphas.items():
            if math.prod(ref.shape) == 1:
                found[layer] = float(load(ref, file).float())
                if not math.isfinite(found[layer]):
                    raise ConvertError(f"{path}: {ref.name} is {found[layer]}: the LoRA is damaged")
    return found


def trained_alphas(path: Path, metadata: dict[str, str], ranks: dict[str, int]) -> Alphas:
    """Find the alphas that layers without a tensor were trained with.

    path: the LoRA. metadata: its header's. ranks: {layer as the file names it: rank}, of the layers
    that are merged and have no alpha tensor. Layers for which nothing is stated, or alpha is the
    rank, are not in the result. Problems are statements that contradict each other or the file, or
    are no positive numbers: their layers are not in the result either. Raises ConvertError for a
    configuration that cannot be read.
    """
    if not ranks:
        return Alphas({}, [], [])
    stated, notes = [*statements(path, metadata)], []
    folded = [one for one in stated if is_folded(one, metadata, ranks)]
    stated = [one for one in stated if one not in folded]
    if folded:
        what = "the file was converted from kohya's names, which multiplies it into the weights"
        told_of = f"ss_network_alpha of its metadata is not applied: {what}"
        notes.append(Note(told_of, Rank.INFORMATION))
    if not stated and exists(path.parent / CONFIG_FILE) and not is_of_peft(path):
        what = "is not read, as it may be of another LoRA there"
        notes.append(Note(f"{CONFIG_FILE} in its folder {what}", Rank.NOTE))
    found, problems = {}, defaultdict(list)
    for layer, rank in ranks.items():
        try:
            alpha = agreed([(one, alpha_of(one, layer, rank)) for one in applying(stated, layer)])
        except ValueError as error:
            problems[one_line(str(error))].append(layer)
            continue
        if alpha is not None and alpha.scale(rank) != 1:
            found[layer] = alpha
    notes += told(stated, found, ranks)
    lines = [
        f"{problem}; so the scale of {in_number(len(layers), 'layers')} is not certain, and "
        f"ComfyUI takes 1: {examples(layers)}"
        for problem, layers in problems.items()
    ]
    return Alphas(found, notes, lines)


def told(stated: list[Trained], found: dict[str, Alpha], ranks: dict[str, int]) -> Iterator[str]:
    """Yield a note on the alphas that are applied, and where ComfyUI does otherwise."""
    if not found:
        return
    scales = sorted({found[layer].scale(ranks[layer]) for layer in found})
    scales = [f"{scale:.6g}" for scale in dict.fromkeys((scales[0], scales[-1]))]
    sources = ", ".join(dict.fromkeys(one.source for one in stated))
    root = (
        ", over the root of the rank" if any(a.is_rank_stabilised for a in found.values()) else ""
    )
    what = in_number(len(found), "layers are merged at the scale they were trained with")
    yield Note(
        f"{what}, {' to '.join(scales)} (alpha from {sources}{root}); ComfyUI, which reads alpha "
        "tensors only, takes 1",
        Rank.INFORMATION,
    )


def statements(path: Path, metadata: dict[str, str]) -> Iterator[Trained]:
    """Yield what a file's metadata, and the configuration beside it, say of its alpha.

    Raises ConvertError for a configuration that is no JSON object.
    """
    if CONFIG_KEY in metadata:
        try:
            config = parse_json(metadata[CONFIG_KEY], unique_keys)
            if not isinstance(config, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise ConvertError(
                f"{path}: {CONFIG_KEY} in its metadata is damaged: {error}"
            ) from error
        yield from by_component(CONFIG_KEY, config)
    yield from by_component("its metadata", metadata)
    if is_of_peft(path):
        yield from by_component(CONFIG_FILE, load_json(path.parent / CONFIG_FILE, "configuration"))


def is_of_peft(path: Path) -> bool:
    """Tell whether the configuration beside a LoRA, if there is one, is of this LoRA.

    It is where the file has the name that PEFT gives it, or is the only one in its folder.
    """
    if not exists(path.parent / CONFIG_FILE):
        return False
    with translated(path.parent, "cannot read"):
        files = [other for other in path.parent.iterdir() if other.suffix.lower() in MODEL_SUFFIXES]
    return path.name.startswith(PEFT_MODEL) or len(files) == 1


def by_component(source: str, fields: dict[str, object]) -> Iterator[Trained]:
    """Sort {"transformer.lora_alpha": 32} by component, and yield those that have an alpha.

    Names without a dot are of the component "". Text encoders are left out.
    """
    known = {*ALPHA_FIELDS, *RANK_FIELDS, *OTHER_FIELDS}
    found = defaultdict(dict)
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        if field in known and value not in NO_VALUE and not TEXT_ENCODER.match(component):
            found[component][field] = dictionary(value) if field in PATTERNS else value
    # The library writes metadata in any order.
    for component, stated in sorted(found.items()):
        if "alpha" in stated and not is_trained_alpha(stated):
            del stated["alpha"]
        if stated.keys() & {*ALPHA_FIELDS, "alpha_pattern"}:
            yield Trained(source, component, stated)


def is_trained_alpha(fields: dict[str, object]) -> bool:
    """Tell whether a bare `alpha` is a LoRA's, as beside a rank or the pattern of one.

    Programs that merge LoRAs write their ratio, up to 1, under the same name; MiniMax's trainer
    writes alpha alone. What is no number is a remark.
    """
    try:
        value = float(fields["alpha"])
    except (TypeError, ValueError, OverflowError):
        return False
    return value > 1 or bool(fields.keys() & {*RANK_FIELDS, *PATTERNS})


def dictionary(value: object) -> object:
    """Parse what metadata have as JSON text, if it is any; the value itself otherwise."""
    try:
        return parse_json(value, unique_keys) if isinstance(value, str) else value
    except ValueError:
        return value


def is_folded(stated: Trained, metadata: dict[str, str], ranks: Iterable[str]) -> bool:
    """Tell whether a statement is kohya's, in a file that was converted to other names."""
    theirs = {*ALPHA_FIELDS} & stated.fields.keys() == {"ss_network_alpha"}
    return theirs and KOHYA_TRAINED in metadata and not all(map(KOHYA_NAME.match, ranks))


def agreed(alphas: list[tuple[Trained, Alpha]]) -> Alpha | None:
    """Return the alpha that all statements on a layer agree about, or None without any.

    Not every one tells of rank stabilisation: one that does is enough. Raises ValueError where they
    do not agree.
    """
    if len({alpha.value for _, alpha in alphas}) > 1:
        said = (f"{alpha.value:g} in {one.label}" for one, alpha in alphas)
        raise ValueError(f"alpha is {' and '.join(said)}")
    if not alphas:
        return None
    return Alpha(alphas[0][1].value, any(alpha.is_rank_stabilised for _, alpha in alphas))


def applying(stated: list[Trained], layer: str) -> list[Trained]:
    """Choose the statements that are for a layer, by the component that its name begins with.

    Of each source these are the ones of that component, else the general one, else all.
    """
    chosen = []
    for _, group in itertools.groupby(stated, key=lambda one: one.source):
        group = [*group]
        own = [one for one in group if one.component and f".{one.component}." in f".{layer}"]
        chosen += own or [one for one in group if not one.component] or group
    return chosen


def alpha_of(stated: Trained, layer: str, rank: int) -> Alpha:
    """Take a layer's alpha from a statement.

    Raises ValueError for what is no positive number, a rank that the layer does not have, and DoRA,
    as no layer here has magnitudes of PEFT.
    """
    fields, module = stated.fields, plain_layer(layer)
    alpha = by_pattern(stated, "alpha_pattern", module, ALPHA_FIELDS)
    said = by_pattern(stated, "rank_pattern", module, RANK_FIELDS)
    if said is not None and stated_number(stated.source, said, "rank") != rank:
        raise ValueError(f"the rank is {said} in {stated.source} and {rank} in the file")
    if is_true(fields.get("use_dora")):
        raise ValueError(f"{stated.source} tells of DoRA, whose magnitudes the file does not have")
    # A pattern alone leaves the other layers as they are: PEFT's own default would be a guess.
    value = rank if alpha is None else stated_number(stated.source, alpha, "alpha")
    return Alpha(float(value), alpha is not None and is_true(fields.get("use_rslora")))


def by_pattern(stated: Trained, patterns: str, module: str, names: Iterable[str]) -> object:
    """Look a value up for a module: in a dictionary of patterns, or else under its general names.

    As in PEFT, the first pattern counts that is the module's name or the end of it. Returns None
    where nothing is said. Raises ValueError for a dictionary that is none, or too large, and for a
    pattern that is no simple regular expression.
    """
    given = stated.fields.get(patterns, {})
    if not isinstance(given, dict) or len(given) > MAX_PATTERNS:
        raise ValueError(f"{patterns} in {stated.source} is no dictionary of modules")
    for pattern, value in given.items():
        # Most are plain names, which take no regular expression.
        if SIMPLE_NAME.fullmatch(pattern):
            if f".{module}".endswith(f".{pattern}"):
                return value
        elif max(len(pattern), len(module)) > MAX_PATTERN or COSTLY.search(pattern):
            short = pattern[:EXCERPT]
            raise ValueError(f"{patterns} in {stated.source} has {short!r}, too intricate")
        elif compiled(rf"(.*\.)?({pattern})").fullmatch(module):
            return value
    return next((stated.fields[name] for name in names if name in stated.fields), None)


def stated_number(source: str, value: object, what: str) -> float:
    """Read a positive number, which metadata have as text; raises ValueError for all else."""
    try:
        # True is an int for Python, and no number here.
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 < found < math.inf:
        raise ValueError(
            f"{what} is {repr(value)[:EXCERPT]} in {source}, which is no positive number"
        )
    return found


def is_true(value: object) -> bool:
    """Tell whether a switch is on; metadata have text for it."""
    return value is True or (isinstance(value, str) and value.lower() in ("true", "1"))


# ── nvfp4/source/loras.py: Find the tensors that LoRA files change, and what fits them ────────────

# The kinds of patches that a layer may have beside one of its weight.
OF_BIAS = {"bias", "lora_bias"}
# What a folder has its LoRA under: PEFT's name, and that of diffusers.
LORA_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
# What is merged although ComfyUI leaves it out, by the end of its key.
MORE_THAN_COMFYUI = {
    "modulations (diff_m)": r".+\.diff_m",
    "biases beside lora_B": r".+[._]lora_B(\.[^.]+)?\.bias",
}

# {layer: {kind: {part: TensorRef}}}, with layers named as in the file.
Layers = dict[str, dict[str, dict[str, TensorRef]]]


class LoraMatch(NamedTuple):
    """Hold what of a LoRA goes into which tensors of a model.

    patches: by tensor. problems: a line for each kind of thing that cannot be merged, or not with
    certainty. notes: of what is merged. is_idle: whether it has layers whose alpha is 0, which
    change nothing.
    """

    patches: dict[str, list[Patch]]
    problems: list[str]
    notes: list[str]
    is_idle: bool


def lora_in(path: Path) -> Path:
    """Find the LoRA in a folder, as PEFT and diffusers write one; a file is itself.

    Raises ConvertError where a folder has none, or several and none of the usual name.
    """
    if not path.is_dir():
        return path
    named = (path / name for name in LORA_FILES if (path / name).is_file())
    return next(named, None) or model_in(path)


def group_keys(path: Path) -> tuple[Layers, list[str], dict[str, str]]:
    """Read a LoRA file's header, and group its keys by layer and kind.

    Returns the layers, the keys that are no part of a layer, and the metadata. A layer has one kind
    of patch and, beside it, perhaps one for its bias; alpha and dora_scale are put among the parts
    of that kind. Raises ConvertError where a layer has two kinds or a part twice, or a dtype that
    cannot be computed with, and for a file of several adapters.
    """
    layers, unknown, adapters = defaultdict(lambda: defaultdict(dict)), [], set()
    header, metadata = read_header(path)
    for key, ref in header.items():
        if not (match := parse_key(key)):
            unknown.append(key)
            continue
        # Integers of 8 bits are codes without their scale; others no conversion computes with.
        if ref.dtype not in TORCH_DTYPES or ref.dtype in VIEWED:
            raise ConvertError(f"{path}: {key} is {ref.dtype}; give the LoRA in a 16-bit type")
        kind = next(kind for kind in LORA_KINDS if match[kind])
        part = "diff" if kind in OF_BIAS else LORA_PARTS.get(match[kind], match[kind])
        # Only A and B of PEFT have an adapter's name. A text encoder's may have another one.
        if kind in ("lora", "lora_bias") and not re.match(NOT_MERGED["of a text encoder"], key):
            adapters.add(match["adapter"] or match["adapter_of_bias"] or UNNAMED_ADAPTER)
        if len(adapters) > 1:
            raise ConvertError(f"{path}: has several adapters, {examples(adapters)}; keep one")
        parts = layers[match["layer"]][kind]
        if part in parts:
            raise ConvertError(f"{path}: {key} and {parts[part].name} are the same thing twice")
        parts[part] = ref
    unknown += join_scaling(path, layers)
    return layers, unknown, metadata


def join_scaling(path: Path, layers: Layers) -> list[str]:
    """Put each layer's alpha and dora_scale among the parts of its patch, in place.

    They say nothing of the kind, and may come before the parts that do. Returns the keys of those
    that have no patch. Raises ConvertError where a layer has two kinds of patches.
    """
    alone = []
    for layer, kinds in layers.items():
        scaling = kinds.pop("scaling", {})
        if len(kinds.keys() - OF_BIAS) > 1:
            raise ConvertError(f"{path}: {layer} is {' and '.join(kinds)} at once; keep one kind")
        for kind in kinds.keys() - OF_BIAS:
            kinds[kind] |= scaling
        if not kinds:
            alone += [ref.name for ref in scaling.values()]
    return alone


def read_lora(lora: Lora, model: Model) -> LoraMatch:
    """Match a LoRA file with a model, by its header and alphas alone.

    In the result q, k and v of a fused layer are patches of their own. Raises ConvertError for a
    file that `group_keys` refuses, where two of its layers are the same rows of a tensor, and where
    it is of two models at once.
    """
    layers, unknown, metadata = group_keys(lora.path)
    # What lies beside the diffusion model goes over to the byte.
    beside = model.beside
    names = layer_names([name for name in model.tensors if name not in beside])
    found = {layer: locate(layer, names) for layer in layers}
    places = {layer: place for layer, place in found.items() if place}
    known = {layer: layers[layer] for layer in places}
    second, scales = second_model(lora.path, known), lora_scales(lora.path, metadata, known)
    patches, misfits, packed = defaultdict(list), [], []
    for layer, kinds in layers.items():
        for kind, parts in kinds.items():
            patch, target = place_patch(kind, parts, places.get(layer), model)
            if patch is None:
                unknown += [ref.name for ref in parts.values()]
                continue
            if layer in scales.idle and kind != "bias":
                continue
            scale = scales.by_part.get((layer, kind), 1.0)
            patch = dataclasses.replace(patch, strength=lora.strength, scale=scale)
            # Two spellings of one layer in a file: merging both would count its change twice.
            if any(other.rows == patch.rows for other in patches[target]):
                raise ConvertError(f"{lora.path}: {layer} and another name are both {target}")
            misfit = find_misfit(patch, model.tensors[target])
            if model.tensors[target].is_kept:
                packed.append(target)
            elif misfit:
                misfits.append(misfit)
            else:
                patches[target].append(patch)
    problems = lora_problems(misfits, packed, unknown) + scales.problems
    notes = [*second, *scales.notes, *more_than_comfyui(known)]
    return LoraMatch(patches, problems, notes, is_idle=bool(scales.idle))


def place_patch(
    kind: str, parts: dict[str, TensorRef], place: tuple[str, dict] | None, model: Model
) -> tuple[Patch | None, str]:
    """Make the patch of one kind for the tensor that it changes, and name that.

    place: what `locate` found for the layer. The patch is None where the model has no such tensor.
    """
    name, found = place or ("", {})
    target = f"{name.removesuffix('.weight')}.bias" if kind in OF_BIAS else name
    if target not in model.tensors:
        return None, target
    patch = Patch(
        kind="diff" if kind in OF_BIAS else kind,
        parts=parts,
        strength=1.0,
        rows=rows_of(found, model.tensors[name]),
        swapped=is_swapped(found, model.tensors[name]),
    )
    return patch, target


def second_model(path: Path, layers: Layers) -> list[str]:
    """Return a note where a LoRA is for the second one of a pipeline's two models.

    layers: those that the model has. Raises ConvertError for a file that is for both: only one of
    them is given, and which one it is its tensors do not tell.
    """
    second = [layer for layer in layers if SECOND_MODEL.match(layer)]
    first = layers.keys() - {*second}
    if second and first:
        raise ConvertError(
            f"{path}: is for two models: {examples(second)}; and {examples(first)}; keep the keys "
            "of the one that SOURCE is"
        )
    what = "which in Wan 2.2 is the one for low noise; SOURCE has to be that one"
    prefix = SECOND_MODEL.match(second[0])[2] if second else ""
    return [Note(f"is for the model {prefix}, {what}", Rank.NOTE)] if second else []


def more_than_comfyui(layers: Layers) -> list[str]:
    """Return a note for each kind of change that is merged although ComfyUI leaves it out."""
    keys = [
        ref.name for kinds in layers.values() for parts in kinds.values() for ref in parts.values()
    ]
    counts = {what: sum(bool(re.fullmatch(row, key)) for key in keys)
              for what, row in MORE_THAN_COMFYUI.items()}  # fmt: skip
    return [
        Note(f"{count} {what} are merged, which ComfyUI leaves out", Rank.INFORMATION)
        for what, count in counts.items()
        if count
    ]


def lora_problems(misfits: list[str], packed: list[str], unmatched: list[str]) -> list[str]:
    """Tell what of a LoRA cannot be merged, counted: a line for each kind of problem.

    misfits: sentences of `find_misfit`; packed: tensors that the source has quantised already;
    unmatched: keys that are of no tensor of the model.
    """
    problems = []
    if misfits:
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        problems.append(f"does not fit the model: {misfits[0]}{more}")
    if packed:
        what = in_number(len(packed), "layers are quantised in the source already")
        problems.append(f"{what}, so nothing can be merged there: {examples(packed)}")
    if unmatched:
        problems.append(describe_unmatched(unmatched))
    return problems


def find_misfit(patch: Patch, target: TensorRef) -> str:
    """Say why a patch does not fit a tensor, or "".

    The merge itself is tried on torch's meta device, which computes shapes without any data, so
    that this check and the merge can never disagree.
    """
    shown = ", ".join(f"{ref.name} {list(ref.shape)}" for ref in patch.parts.values())
    try:
        # A missing part is a KeyError of the merge; shapes that do not fit are its other errors.
        parts = {part: torch.empty(ref.shape, device="meta") for part, ref in patch.parts.items()}
        merge(patch, parts, torch.empty(target.shape, device="meta"))
    except KeyError as error:
        return f"{shown}: {error.args[0]} is missing"
    except (IndexError, RuntimeError, ValueError):
        rows = "" if patch.rows == slice(None) else f"rows {patch.rows.start} on of "
        return f"{shown} do not fit {rows}{target.name} {list(target.shape)}"
    return ""


def merge_loras(loras: Iterable[Lora], model: Model, *, partial: bool) -> Source:
    """Have LoRAs merged into a model when its tensors are read; notes tell of each LoRA.

    partial: whether to go on where some of a LoRA cannot be merged; that is noted then. Several
    LoRAs are merged in the order given. Raises ConvertError where a LoRA has nothing for the model
    or, without `partial`, not all of it fits.
    """
    loras = [*loras]
    tensors, notes = dict(model.tensors), repeated(loras)
    for given in loras:
        lora = given._replace(path=lora_in(given.path))
        patches, problems, more, is_idle = read_lora(lora, model)
        merged = sum(map(bool, patches.values()))
        what = f"merged into {in_number(merged, 'tensors')} at strength {lora.strength:g}"
        told = [Note(what, Rank.INFORMATION), *map(Note.of, [*problems, *more])]
        notes += [Note(f"{given.path.name}: {note}", note.rank) for note in told]
        if not (merged or is_idle) or (problems and not partial):
            if not merged:
                refuse_no_lora(lora.path)
            end = "--lora-partial goes on" if merged else "nothing of it can be merged"
            problems = [f"{lora.path}: {problem}" for problem in problems[-EXAMPLES:]]
            last = problems.pop() if problems else f"{lora.path}: holds no LoRA"
            raise ConvertError(*problems, f"{last}; {end}")
        for name, found in patches.items():
            old = tensors[name]
            tensors[name] = dataclasses.replace(old, patches=(*old.patches, *found))
    return Source(dataclasses.replace(model, tensors=tensors), tuple(notes))


def repeated(loras: Iterable[Lora]) -> list[str]:
    """Note each LoRA file that is given more than once: all of its changes are added."""
    counts = Counter(lora_in(lora.path).resolve() for lora in loras)
    return [
        Note(f"{path.name}: is given {count} times, and counts as often", Rank.WARNING)
        for path, count in counts.items()
        if count > 1
    ]


def refuse_no_lora(path: Path) -> None:
    """Raise ConvertError for what is no LoRA but another file that is known: say which."""
    header, _ = read_header(path)
    kind = file_kind(path, header)
    is_model = kind is None and model_prefixes({name: ref.shape for name, ref in header.items()})
    title = kind.title if kind else "a whole model" if is_model else ""
    if title and kind is not LORA:
        raise ConvertError(f"{path}: is {title}, not a LoRA that can be merged")


# ── nvfp4/source/beside.py: Carry over what lies beside the diffusion model: text encoders, a VAE, 

def kept_part(ref: TensorRef, layer: StoredLayer) -> TensorRef | None:
    """Mark a part of a layer that is copied as it is; the weight carries the configuration.

    Returns None for `comfy_quant`, which is written anew, as the source may have the configuration
    in the header alone. Its text stays to the byte where ComfyUI reads the same of both.
    """
    suffix = ref.name.rpartition(".")[2]
    if suffix == "comfy_quant":
        return None
    text = json.dumps(layer.config)
    if layer.in_tensor == layer.config:
        text = bytes(load(layer.parts["comfy_quant"]).tolist()).decode()
    if suffix != "weight":
        return dataclasses.replace(ref, is_kept=True)
    title = layer.format.title if layer.format else ""
    return dataclasses.replace(ref, config=text, kept_as=title, is_kept=True)


def carried(model: Model, layers: dict[str, StoredLayer]) -> dict[str, TensorRef | None]:
    """List the tensors beside the diffusion model as they go over: {name: TensorRef}.

    layers: all of the file. None stands for `comfy_quant`, as `kept_part` says. What has no
    configuration, such as scaled FP8, stays untouched with its scales and its marker.
    """
    found = dict(model.beside)
    for name in {*found}:
        layer, _, suffix = name.rpartition(".")
        stored = layers.get(layer)
        if stored and stored.weight and stored.config and suffix in stored.parts:
            found[name] = kept_part(found[name], stored)
    return found


def flaws_beside(model: Model, layers: dict[str, StoredLayer]) -> list[Finding]:
    """Find what headers show to be wrong with layers beside the diffusion model.

    They go over with all their flaws; only a configuration in one form alone is mended.
    """
    names = {name.rpartition(".")[0] for name in model.beside}
    found = lint(model, {name: layers[name] for name in layers if name in names}, values=False)
    return [finding for finding in found if finding.defect not in ("one form", "two forms")]


def note_beside(model: Model) -> list[str]:
    """Make the note on what lies beside the diffusion model, if anything does."""
    refs = model.beside
    if not refs:
        return []
    size = gigabytes(sum(ref.nbytes for ref in refs.values()))
    what = f"tensors ({size}) are not of the diffusion model and go over as they are"
    return [Note(f"{in_number(len(refs), what)}: {examples(refs)}", Rank.INFORMATION)]


# ── nvfp4/source/plain.py: Take FP8 without scales for what it is: numbers that were cast, or codes

# Bytes of a weight in which codes without their scale show: one in five is larger than 100 then.
TELLING_CODES = 1 << 16


def taken_as_is(ref: TensorRef) -> TensorRef:
    """Mark an FP8 tensor without a scale for decoding, such as a bias; any other stays."""
    if ref.dtype not in PLAIN_FP8 or not ref.nbytes or is_quantised_part(ref.name):
        return ref
    return dataclasses.replace(ref, coding=Coding(title=PLAIN_FP8[ref.dtype].title, scale=1.0))


def plain_notes(path: Path, refs: Iterable[TensorRef], allowed: bool) -> list[str]:
    """Note which tensors have no scale, and refuse a model of them.

    path: the model, for messages; refs: of the diffusion model, marked; allowed: whether
    --plain-fp8 is given. Raises ConvertError where more weights lack a scale than have one and that
    option is not given, where numbers are too large to be weights, and where what may be a scale
    lies beside one.
    """
    refs = [*refs]
    plain, scaled, unread = [], 0, unread_scales(ref.name for ref in refs)
    for ref in refs:
        if ref.coding and not format_titled(ref.coding.title).scale_suffix:
            plain.append(ref)
        # Of a kept layer, the weight alone has a configuration.
        scaled += bool(ref.coding or ref.config)
    if lost := [ref.name for ref in plain if ref.name in unread]:
        raise ConvertError(
            f"{path}: {examples(lost)}: FP8 beside a scale that is not known here, "
            f"{unread[lost[0]]}; give the original 16- or 32-bit model"
        )
    weights = [ref for ref in plain if len(ref.shape) > 1]
    # Other tensors of several dimensions, such as modulations, may well be large.
    told = (ref for ref in weights if ref.name.endswith(".weight") or ref.is_expert_bank)
    if large := [ref.name for ref in told if has_large_codes(ref)]:
        raise ConvertError(
            f"{path}: {examples(large)}: FP8 without a scale, and too large to be weights: the "
            "scales are lost or in another file; give the original 16- or 32-bit model"
        )
    scaled -= len(plain)
    if len(weights) > scaled and not allowed:
        raise ConvertError(
            f"{path}: {len(weights)} weights are FP8 without scales, cast from 16 bits "
            f"({examples(ref.name for ref in weights)}); give the original model, or --plain-fp8 "
            "to convert this one: what the cast lost, some 3 % of a weight (E5M2: 5 %) and more "
            "of small ones, stays lost"
        )
    if not plain:
        return []
    what = in_number(len(plain), "FP8 tensors have no scale and are taken as they are")
    rank = Rank.INFORMATION if allowed else Rank.NOTE
    return [Note(f"{what}: {examples(ref.name for ref in plain)}", rank)]


def has_large_codes(ref: TensorRef) -> bool:
    """Tell whether many of the first numbers of an FP8 tensor are larger than trained weights."""
    data = torch.empty(min(ref.nbytes, TELLING_CODES), dtype=torch.uint8)
    fill(ref, 0, memoryview(data.numpy()))
    codes = data.view(TORCH_DTYPES[ref.dtype])
    # NaN is told where the tensor is read as a whole.
    return not has_no_number(codes) and is_too_large(decode_byte(codes))


# ── nvfp4/source/open.py: Open a model to convert: its quantised layers decoded, kept or refused ──

# Tensors of a decoded layer that are no part of its weight.
BESIDE_WEIGHT = {"bias", "comfy_quant", "input_scale", "scale_input"}


def open_source(path: Path, *, plain_fp8: bool = False) -> Source:
    """Read a model's headers, and settle what becomes of layers that are quantised in it.

    FP8 layers with their scales are decoded as they are read, NVFP4 layers go over as they are, and
    any others are refused. All that is not of the diffusion model goes over as it is, quantised or
    not. plain_fp8: whether a model whose FP8 has no scales is taken. The notes tell of defects in
    kept layers, of what has no scale, of input scales left out and of names that were changed.
    Raises ConvertError for what is no diffusion model, or cannot be decoded.
    """
    model = open_model(path)
    refuse_kind(path, lora_kind(model.tensors))
    model, notes = named_for_comfyui(path, model)
    prefix, beside = diffusion_prefix(model.tensors), model.beside
    program, packed = quantiser_of(name for name in model.tensors if name not in beside)
    if program:
        raise ConvertError(
            f"{path}: is already quantised ({program}: {examples(packed)}); give the original "
            "16- or 32-bit model"
        )
    refuse_kind(path, file_kind(path, model.tensors))
    layers = stored_layers(model)
    tensors, scales = adopted_tensors(path, model, layers)
    inner = [ref for name, ref in tensors.items() if name not in beside]
    notes += plain_notes(path, inner, plain_fp8)
    # Defects of layers that are kept would be the output's, too. They are noted, not refused.
    kept = {ref.layer: layers[ref.layer] for ref in tensors.values() if ref.config}
    kept = {name: layer for name, layer in kept.items() if not is_beside(name, prefix)}
    flaws = dict.fromkeys([*lint(model, kept), *flaws_beside(model, layers)])
    for defect, names in grouped(flaws).items():
        rank = Rank.WARNING if DEFECTS[defect].outcome > Outcome.LOADS else Rank.INFORMATION
        notes.append(Note(f"in the source, {DEFECTS[defect].what}: {examples(names)}", rank))
    notes += note_beside(model)
    if scales:
        what = in_number(scales, "input scales of FP8 layers are left out")
        how = "--input-scale-from FILE takes those that are named input_scale"
        notes.append(Note(f"{what}; {how}", Rank.HINT))
    if origin := origin_text(model.metadata):
        what = f"SOURCE is a conversion itself ({origin})"
        notes.append(Note(f"{what}; its original gives a better file", Rank.HINT))
    quantised = count_quantised(layers, beside)
    return Source(dataclasses.replace(model, tensors=tensors, quantised=quantised), tuple(notes))


def refuse_kind(path: Path, kind: FileKind | None) -> None:
    """Raise ConvertError for a file that is of a known kind other than a model to convert."""
    if kind:
        raise ConvertError(f"{path}: is {kind.title}: {kind.what_to_do}")


def count_quantised(layers: dict[str, StoredLayer], beside: Container[str]) -> dict[str, int]:
    """Count the diffusion model's quantised layers: {format's title: layers}, sorted by title.

    layers: all of the file; beside: names of tensors that are not of the diffusion model.
    """
    titles = Counter(
        layer.format.title
        for layer in layers.values()
        if layer.format and layer.weight.name not in beside
    )
    return dict(sorted(titles.items()))


def adopted_tensors(
    path: Path, model: Model, layers: dict[str, StoredLayer]
) -> tuple[dict[str, TensorRef], int]:
    """Settle what becomes of each tensor: {name: TensorRef}, and how many input scales are dropped.

    layers: all of the file. Raises ConvertError where quantised layers of the diffusion model can
    be neither decoded nor kept.
    """
    beside = carried(model, layers)
    found = {
        name: layer
        for name, layer in layers.items()
        if layer.format and layer.format.is_adopted and layer.weight.name not in beside
    }
    codings, problems = {}, unknown_formats(layers, beside)
    for name, layer in found.items():
        codings[name], problems[name] = decoding(layer)
    tensors, scales, known, markers = {}, 0, layer_parts(), marker_names()
    for ref in model.tensors.values():
        name, _, suffix = ref.name.rpartition(".")
        part = beside.get(ref.name, ref)
        if ref.name in beside:
            pass
        elif suffix in markers:
            part = None
        # A bias is no part of the packing: it is cast and planned like any other tensor.
        elif name in found and not problems[name] and suffix in known and suffix != "bias":
            part = adopted(ref, found[name], codings[name])
            scales += part is None and suffix in ("input_scale", "scale_input")
        elif not problems.get(name):
            part = taken_as_is(ref)
        if part is not None:
            tensors[ref.name] = part
    refuse_quantised(path, (ref for ref in tensors.values() if ref.name not in beside), problems)
    return tensors, scales


def unknown_formats(layers: dict[str, StoredLayer], beside: dict) -> dict[str, str]:
    """Name the layers of the diffusion model in formats that are known by name alone.

    beside: all that is not of it. Returns {layer: what is to be said}.
    """
    return {
        name: f"is stored as {layer.scheme}, which is not decoded here"
        for name, layer in layers.items()
        if layer.weight and layer.weight.name not in beside and layer.config and not layer.format
    }


def decoding(layer: StoredLayer) -> tuple[Coding | None, str]:
    """Tell how a quantised layer of the diffusion model is decoded, None for one that is kept.

    Returns as well why it can be neither, or "".
    """
    if layer.experts or not layer.format.is_decoded:
        return None, foreign(layer)
    # Another scale, a zero point or a smoothing would change what the weight decodes to.
    more = layer.parts.keys() - {*layer.format.suffixes, "weight"} - BESIDE_WEIGHT
    if more:
        return None, f"beside {layer.format} it has {', '.join(sorted(more))}"
    reason = undecodable(layer)
    if not reason and layer.shape != layer.weight.shape:
        reason = f"its weight {list(layer.weight.shape)} is padded from {list(layer.shape)}"
    return (None, reason) if reason else coding_of(layer)


def foreign(layer: StoredLayer) -> str:
    """Say why a quantised layer of the diffusion model cannot be kept; or "".

    It has to be configured, and its scales have to be sound, as nothing computes them anew.
    """
    if (layer.config or {}).get("format") != layer.format.config:
        return "has no configuration of its format; other programs pack NVFP4 in another order"
    reason = undecodable(layer)
    if not reason:
        facts = FileFacts(values=True)
        experts = map(layer.expert, range(layer.experts)) if layer.experts else (layer,)
        found = [
            one for each in experts for one in (*lint_scalars(each, facts), *lint_values(each))
        ]
        bad = [finding.detail for finding in found if finding.defect == "bad scale"]
        reason = f"it has a scale that is none, {bad[0]}" if bad else ""
    return reason


def adopted(ref: TensorRef, layer: StoredLayer, coding: Coding | None) -> TensorRef | None:
    """Mark a part of a quantised layer for decoding or keeping; None if it is left out.

    coding: how the layer is decoded, None for one that is kept. A decoded layer keeps its weight
    alone, with what it is decoded by. A kept one keeps all of its parts.
    """
    if coding is None:
        return kept_part(ref, layer)
    return dataclasses.replace(ref, coding=coding) if ref.name.endswith(".weight") else None


def refuse_quantised(source: Path, refs: Iterable[TensorRef], problems: dict[str, str]) -> None:
    """Raise ConvertError if quantised tensors are left that can be neither decoded nor kept.

    refs: the tensors that are to be converted, those of the diffusion model. problems: {layer: why
    it could not be used}, of which the first one is told.
    """
    # FP8 without any scale, and bytes in a matrix named as a weight, are packed by some other tool.
    quantised = [
        ref.name
        for ref in refs
        if not ref.is_kept
        and ref.coding is None
        and (
            is_quantised_part(ref.name)
            or ref.dtype.startswith("F8_")
            or (ref.dtype in ONE_BYTE and len(ref.shape) == 2 and ref.name.endswith(".weight"))
        )
    ]
    if quantised:
        named = (f"; {name}: {problem}" for name, problem in problems.items() if problem)
        raise ConvertError(
            f"{source}: is already quantised ({examples(quantised)}), and not in a way that is "
            f"read here{next(named, '')}; give the original 16- or 32-bit model"
        )


# ── nvfp4/verify.py: Verify a quantised file, with its source or without: --verify ────────────────

# Relative RMSE of a tensor that is not packed: below, it is still much of its original.
NEAR = 0.2
# The share of tensors that differ in a source of another model, and the fewest that tell it.
OTHER_MODEL, FEWEST = 0.9, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Hold what a verification found; `render_check` makes text of it.

    model: the file; kind: what it is instead of a diffusion model, None for one; layers: its layers
    by name; findings: all defects; damage: {layer: error} of the layers that were measured, empty
    without a source; asked: what a ComfyUI answered.
    """

    model: Model
    kind: FileKind | None
    layers: dict[str, StoredLayer]
    findings: tuple[Finding, ...]
    damage: dict[str, Damage]
    asked: Answer | None = None

    @property
    def outcome(self) -> Outcome:
        """Return the worst outcome of all findings, LOADS without any; it is the verdict."""
        return max((finding.outcome for finding in self.findings), default=Outcome.LOADS)


def decoded_damage(
    original: torch.Tensor,
    stored: tuple[list[torch.Tensor], torch.Tensor],
    decode: Callable[..., torch.Tensor],
    compute: Compute,
) -> Damage:
    """Measure a stored layer against its original weight, padding left out.

    original: [N, K] floats; stored: parts by rows and scale, as `Format.unpack` gives them; decode:
    its format's. Returns the damage in plain units, whatever the sizes of scales are.
    """
    parts, scale = stored
    # Measured in units near the original's largest weight: a stored scale may be wrong by any size,
    # and squares in its units would leave float32's range.
    unit = damage_unit(torch.stack(compute.map(largest_magnitude, original)).amax())

    def measure_rows(rows: torch.Tensor, *some: torch.Tensor) -> Damage:
        """Measure some rows in these units."""
        return measure_damage(rows.float() / unit, decode(*some, scale / unit))

    # Rows that pad the stored weight have no original; `measure_damage` drops padded columns.
    trimmed = (part[: len(original)] for part in parts)
    return Damage.total(compute.map(measure_rows, original, *trimmed), unit)


def misread(
    original: torch.Tensor,
    stored: tuple[list[torch.Tensor], torch.Tensor],
    form: Format,
    compute: Compute,
) -> str:
    """Say how a layer that decodes to something else was packed, if another order explains it.

    Arguments as for `decoded_damage`, with the format. An order explains it if the error is one
    that quantising has (below WRONG_FROM). Returns a text for people in any case.
    """
    parts, scale = stored
    others = form.misreadings(parts)
    if not others:
        return "its scale or codes are of another weight"
    for what, other in others.items():
        damage = decoded_damage(original, (other.parts, scale), other.decode, compute)
        if damage.relative_rmse < WRONG_FROM:
            return what
    return "no other order of its codes and scales explains it"


class Compared(NamedTuple):
    """Tell how a stored tensor goes with its original.

    damage: of a quantised layer that was measured. defect: a key of DEFECTS, "" for none; detail:
    how it differs.
    """

    damage: Damage | None = None
    defect: str = ""
    detail: str = ""


def compare_kept(ref: TensorRef, other: TensorRef) -> Compared:
    """Compare a tensor that is not quantised with its original.

    ref: of the source, FP8 decoded and LoRAs merged; other: of the file. Floats may differ by
    rounding (ROUNDED_TO); anything else has to have the same dtype and bytes.
    """
    if not (ref.is_float and other.is_float):
        same = ref.dtype == other.dtype and torch.equal(load_bytes(ref), load_bytes(other))
        told = f"{other.dtype}, the source's is {ref.dtype}"
        return Compared() if same else Compared(defect="values", detail=told)
    chunks = (load_weight(one).flatten().split(CPU_CHUNK) for one in (ref, other))
    size = difference = 0.0
    # Chunks are small because sums are of float64 copies.
    for original, stored in zip(*chunks, strict=True):
        size += float(original.double().square().sum())
        difference += float((stored.double() - original.double()).square().sum())
    if difference <= ROUNDED_TO**2 * size:
        return Compared()
    # NaN, of an original that is all zeros as well, is far.
    error = math.sqrt(difference / (size or math.nan))
    return Compared(None, "near" if error < NEAR else "values", f"relative RMSE {error:.2g}")


def compare_layer(
    ref: TensorRef, layer: StoredLayer, compute: Compute, limit: float = WRONG_FROM
) -> Compared:
    """Measure a quantised layer against its original.

    limit: relative RMSE from which it is wrong. The original is divided by the layer's smoothing,
    as the stored weight is.
    """
    if layer.experts:
        return compare_bank(ref, layer, compute, limit)
    original, stored = load_weight(ref), stored_parts(layer)
    smoothing = layer.parts.get("pre_quant_scale")
    if smoothing and smoothing.dtype in SOURCE_FLOATS and smoothing.shape == ref.shape[1:]:
        # A smoothing of another dtype or shape was found by lint already.
        original = original.float() / load(smoothing).float()
    damage = decoded_damage(original, stored, layer.format.decode, compute)
    # Asked so that NaN is wrong, too.
    if damage.relative_rmse < limit:
        return Compared(damage)
    return Compared(damage, "values", misread(original, stored, layer.format, compute))


def compare_bank(ref: TensorRef, bank: StoredLayer, compute: Compute, limit: float) -> Compared:
    """Measure a bank of experts against its original [E, N, K], one expert after the other."""
    told = [
        compare_layer(expert_part(ref, bank.experts, i), bank.expert(i), compute, limit)
        for i in range(bank.experts)
    ]
    damage = Damage.total((one.damage for one in told), torch.ones(()))
    return next((one._replace(damage=damage) for one in told if one.defect), Compared(damage))


def compare_tensor(
    ref: TensorRef,
    other: TensorRef,
    layer: StoredLayer | None,
    compute: Compute,
    limit: float = WRONG_FROM,
) -> Compared:
    """Compare a stored tensor with its original.

    ref, other: of the source and of the file; layer: what `other` belongs to, None if there is no
    layer of that name.
    """
    # Only a linear weight or embedding whose stored form is known is decoded; all else is compared
    # as it is.
    is_layer = layer is not None and layer.format is not None
    is_bank = is_layer and bool(layer.experts) and ref.is_float and ref.shape == layer.shape
    is_table = ref.is_embedding and is_layer and layer.is_looked_up
    packed = is_bank or is_table or (is_layer and ref.is_linear_weight)
    expected = layer.format.parts(ref.shape)["weight"][1] if packed and not is_bank else ref.shape
    expected = other.shape if is_bank else expected
    if other.shape != expected:
        told = f"{list(other.shape)} for the source's {list(ref.shape)}"
        return Compared(defect="values", detail=told)
    if not packed:
        return compare_kept(ref, other)
    reason = undecodable(layer)
    if reason:
        return Compared(defect="values", detail=f"not measured: {reason}")
    return compare_layer(ref, layer, compute, limit)


def was_rounded_by_statistics(metadata: dict[str, str]) -> bool:
    """Tell whether a file's header says that it was rounded by activation statistics.

    A header that is damaged, or of another program, says nothing of it.
    """
    try:
        return bool(json.loads(metadata["convert_nvfp4"])["options"]["activation_stats"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def check_against(
    source: Model, model: Model, layers: dict[str, StoredLayer], quiet: bool
) -> tuple[list[Finding], dict[str, Damage]]:
    """Compare every tensor of the source with what the file decodes to.

    Names are compared without the prefixes of checkpoints. Returns findings (missing, extra and
    wrong tensors) and {layer: damage}; raises ConvertError where a file cannot be read.
    """
    # Tensors are taken out of `stored` as they are found in the source.
    names = comparable_names(model.files[0], model.tensors)
    stored = {names[name]: ref for name, ref in model.tensors.items()}
    found, damage, aware, kept = [], {}, was_rounded_by_statistics(model.metadata), 0
    limit = ROUNDED_WRONG_FROM if aware else WRONG_FROM
    # Verifying has no --device: it runs on the CPU.
    cpu = torch.device("cpu")
    with single_threaded() as threads, Compute(cpu, threads=threads) as compute:
        for ref in each_tensor(source, quiet):
            other = stored.pop(bare(ref.name), None)
            if other is None:
                found.append(Finding(defect="missing", name=ref.name))
                continue
            told = compare_tensor(ref, other, layers.get(other.layer), compute, limit)
            if told.damage is not None:
                damage[other.layer] = told.damage
            if told.defect:
                # Rounding by statistics moves the bias of a quantised layer on purpose.
                layer = other.name.removesuffix(".bias")
                quantised = layer in layers and layers[layer].format
                moved = aware and quantised and layer != other.name
                moved = moved and load(other).isfinite().all()
                defect = "moved bias" if moved else told.defect
                found.append(Finding(defect=defect, name=other.layer, detail=told.detail))
                kept += defect == "values" and told.damage is None
    # What is left has no original; scales and configurations are what quantising adds.
    parts = {*layer_parts(), *marker_names()} - {"weight", "bias"}
    extra = (
        ref.name
        for name, ref in stored.items()
        if name.rpartition(".")[2] not in parts and not name.endswith(ATTENTION_CONFIG)
    )
    found += [Finding(defect="extra", name=name) for name in extra]
    other = other_source(found, len(source.tensors), kept)
    return ([other], {}) if other else (found, damage)


def each_tensor(source: Model, quiet: bool) -> Iterator[TensorRef]:
    """Yield the tensors of the source; a bar counts their bytes."""
    nbytes = sum(ref.nbytes for ref in source.tensors.values())
    with progress_bar("comparing", nbytes, quiet=quiet) as bar:
        for ref in source.tensors.values():
            bar.name = printable(ref.name)
            yield ref
            bar.update(ref.nbytes)


def other_source(found: list[Finding], count: int, kept: int) -> Finding | None:
    """Tell a source of another model by nearly all of its tensors; None for what may be the one.

    found: how the file differs; count: tensors of the source; kept: how many that are not packed,
    or of another shape, differ. Where only packed layers are off, the packing is wrong.
    """
    counts = Counter(one.defect for one in found)
    lost = min(counts["missing"], counts["extra"])
    differ = counts["values"] + lost
    if differ < OTHER_MODEL * count or count < FEWEST or not (kept or lost):
        return None
    named = f"; {lost:,} of these are not in the file, which has others" if lost else ""
    return Finding(defect="other source", name=f"{differ:,} of {count:,} tensors differ{named}")


@SCREEN
def verify_file(task: Verification) -> Check:
    """Lint a file and, with a source, decode every tensor and measure it against that.

    LoRAs that the task names are merged into the source first. Raises ConvertError where either
    cannot be read or they are of different models. What a ComfyUI finds is among the findings.
    """
    if not isinstance(task, Verification):
        raise ConvertError(f"verify_file takes Verification(file=...), not {task!r}")
    comfyui, source = find_comfyui(task.comfyui), None
    phase("reading headers", quiet=task.quiet)
    refuse_lone_shard(task.file)
    try:
        model = open_model(task.file)
    except DamagedFileError as error:
        problems = (f"{problem}; ComfyUI stops while loading it" for problem in error.problems)
        raise ConvertError(*problems) from error
    # Lint looks at headers and scales alone; no weight is decoded yet.
    layers = stored_layers(model)
    phase("checking", quiet=task.quiet)
    linted, damage = lint_file(model, layers), {}
    found = [*linted]
    # What another program packed cannot be measured, and would only be missed.
    measurable = all(finding.defect != "other program" for finding in found)
    if task.source is not None and measurable:
        # Its weights are what the file was made from, scaled or not.
        source, _ = open_source(task.source, plain_fp8=True)
        if source.quantised and not any(layer.format for layer in layers.values()):
            told = "nothing in it is quantised, but --source is: are the two swapped?"
            raise ConvertError(f"{task.file}: {told} ({task.source})")
        source, _ = merge_loras(task.merge_lora, source, partial=task.lora_partial)
        # One name in common makes it worth comparing: all others are then named as missing.
        names = comparable_names(task.file, model.tensors)
        if not {*names.values()} & {*map(bare, source.tensors)}:
            what, file = f"no tensor is in {task.file}", task.file.name
            raise of_another_model(
                task.source, what, it_has=source.tensors, other_has=model.tensors, other=file
            )
        more, damage = check_against(source, model, layers, task.quiet)
        found += more
    kind = file_kind(task.file, model.tensors)
    if comfyui:
        phase("asking ComfyUI", quiet=task.quiet)
    asked = ask_about_file(comfyui, model, source, kind)
    found += asked.findings_beside(linted) if asked else ()
    return Check(
        model=model, kind=kind, layers=layers, findings=tuple(found), damage=damage, asked=asked
    )


# ── nvfp4/report/summary.py: Render the report as text for the terminal ───────────────────────────

# A trade-off may have hundreds of steps, one for each layer. About 10 of them show its bend and
# fit into a terminal of usual width.
CURVE_POINTS = 10


def render_findings(found: Iterable[Finding]) -> list[str]:
    """Render defects, three lines for each kind, the worst outcome first.

    The lines tell outcome, count and what is wrong; what ComfyUI does with it and what to do; and
    examples of the layers or tensors concerned.
    """
    lines = []
    for key, where in grouped(found).items():
        defect = DEFECTS[key]
        lines += [
            f"  {defect.outcome.name:6} {len(where)} x {defect.what}",
            f"         {defect.consequence}; to do: {defect.remedy}",
            f"         {examples(where)}",
        ]
    return lines


def render_check(check: Check) -> str:
    """Render what --verify found: the file's formats, its defects, and measured layers' errors.

    The first line counts tensors and quantised layers by format, in the order of the format table.
    Defects that are worse than harmless get the advice to convert the original again, since this
    tool mends no quantised file.
    """
    # Formats that no row describes are among the defects; of these, other programs' are counted.
    schemes = Counter(layer.scheme for layer in check.layers.values())
    schemes.update(one.detail for one in check.findings if one.defect == "other program")
    programs = [program for program, _ in QUANTISERS]
    titles = [*(row.title for row in readable_formats()), *dict.fromkeys(programs)]
    titles = [title for title in titles if schemes[title]]
    quantised = ", ".join(f"{schemes[title]} {title}" for title in titles)
    quantised = f"{quantised} layers" if quantised else "nothing is quantised"
    path, size = check.model.files[0], gigabytes(file_bytes(check.model))
    title = f"{path.name}: {len(check.model.tensors):,} tensors, {size}, {quantised}"
    defects = render_findings(check.findings) or ["  no defect found"]
    if kind := check.kind:
        defects = [
            f"  is {kind.title}, not {kind.instead}: {kind.what_to_do}",
            *(render_findings(check.findings) or ["  no defect found in its quantised layers"]),
        ]
    # A file that loads as it should needs no advice, whatever other programs think of it; what was
    # never converted cannot be converted again, and with another source nothing is known.
    parts = {suffix for layer in check.layers.values() for suffix in layer.parts}
    converted = titles or parts - {"weight", "bias"} or "convert_nvfp4" in check.model.metadata
    own = [one.outcome for one in check.findings if one.defect != "other source"]
    if converted and max(own, default=Outcome.LOADS) > Outcome.LOADS:
        defects.append("  to have none of these, convert the original model again")
    needs = filter(None, [str(needed_comfyui(check.layers.values()))])
    lines = [title, *(f"  {need}" for need in needs), *defects, render_asked(check.asked)]
    return "\n".join([*lines, *render_worst(check.damage)])


def render_asked(asked: Answer | None) -> str:
    """Render one line of what a ComfyUI made of the file, or that none was asked."""
    return f"  {asked.sentence if asked else NOT_ASKED}"


def render_totals(report: Report) -> list[str]:
    """Render a table with one line per precision: layers, tensors of the output, and bytes."""
    lines = [f"  {'':10} {'layers':>7} {'tensors':>8} {'size':>11}"]
    for label, total in totals(report.plans).items():
        size = gigabytes(total["bytes"])
        lines.append(f"  {label:10} {total['layers']:7} {total['tensors']:8} {size:>11}")
    return lines


def render_matmuls(report: Report) -> str:
    """Render one line of how the linear layers are multiplied, each kind with its share."""
    parts = [
        f"{kind} {in_number(found['layers'], 'layers')} ({100 * found['share']:.0f} %)"
        for kind, found in matmuls(report.plans).items()
    ]
    return f"  matmuls: {', '.join(parts)} of the linear weights, the rest unquantised"


def least_first(number: float) -> float:
    """Make a sort key that puts NaN before every number, as NaN compares false with everything."""
    return -math.inf if math.isnan(number) else number


def render_worst(damage: dict[str, Damage], count: int = 5) -> list[str]:
    """Render the `count` layers with the largest relative RMSE of the decoded weight, worst first.

    `damage` is {layer: Damage}; SQNR in dB stands beside each figure. Layers without a number (NaN)
    are the worst of all, those without an error are left out. No lines where none is left.
    """
    # Negated, so that the largest comes first, and NaN before it.
    damaged = [(layer, found) for layer, found in damage.items() if found.relative_rmse != 0]
    worst = sorted(damaged, key=lambda item: least_first(-item[1].relative_rmse))[:count]
    lines = [f"    {d.relative_rmse:.4f}  {d.sqnr_db:5.1f} dB  {layer}" for layer, d in worst]
    title = "  worst layers by relative RMSE and SQNR of the decoded weight:"
    return [title, *lines] if lines else []


def render_output_errors(report: Report, count: int = 5) -> list[str]:
    """Render what rounding by statistics gained over the plain search.

    One line has the geometric means, over all such layers, of the output's relative RMSE before and
    after, and how many layers did not gain; then follow the `count` layers with the largest error
    left. Layers whose second moments could not be used are named first: they got the plain search.
    """
    found = {
        layer: damage for layer, damage in report.damage.items() if damage.output_before is not None
    }
    # Planned with moments, measured without an output error: its rounding fell back.
    asked = [plan.ref.layer for plan in report.plans if plan.moments]
    failed = [layer for layer in asked if layer in report.damage.keys() - found.keys()]
    lines = []
    if failed:
        what = "second moments are not positive definite: the plain search"
        lines.append(f"  {len(failed)} layers' {what}: {examples(failed)}")
    if not found:
        return lines
    # The mean is geometric: a gain is a ratio, and each layer's counts alike.
    pairs = [(damage.output_before, damage.output_after) for damage in found.values()]
    kept = sum(before == after for before, after in pairs)
    before, after = (geometric_mean(errors) for errors in zip(*pairs, strict=True))
    lines += [
        f"  output errors of the {len(found)} layers rounded by their input's statistics: "
        f"{before:.4f} -> {after:.4f} (geometric mean; {kept} did not gain), the largest:"
    ]
    worst = sorted(found.items(), key=lambda item: -item[1].output_after)[:count]
    for layer, damage in worst:
        lines.append(f"    {output_errors(dataclasses.asdict(damage))}  {layer}")
    return lines


def render_curve(curve: tuple[CurvePoint, ...]) -> list[str]:
    """Render --w4a4-share's trade-off at about CURVE_POINTS points, as three lines.

    For a share of the multiply work left in W4A4 they show the part that remains of the squared
    output error that 4-bit activations add.
    """
    if not curve:
        return []
    step = max(1, (len(curve) - 1) // (CURVE_POINTS - 1))
    points = [*curve[:-1:step], curve[-1]]  # both ends of the curve are always there
    return [
        "  W4A4 share of the multiply work, and what is left of the squared error it adds:",
        "    " + "  ".join(f"{100 * point.share:3.0f} %" for point in points),
        "    " + "  ".join(f"{100 * point.error:3.0f} %" for point in points),
    ]


def render_sizes(report: Report) -> list[str]:
    """Render --target-size's trade-off: sizes, their mean errors, and which of them is this file.

    Errors are relative RMSE of outputs, in the mean over the layers that could be chosen. The last
    line says what one more gigabyte (1e9 bytes) would leave of the squared error, if there is such
    a size.
    """
    points, size = report.sizes, report.output_bytes
    if not points:
        return []
    # The file need not lie on the curve: leftover bytes were filled with other layers.
    here = SizePoint(size, report.size_error)
    some = {round(i * (len(points) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}
    lines = [
        "  size, and mean relative RMSE of the outputs, by weights and activations, of the layers "
        "that could be chosen:"
    ]
    for point in sorted({here, *(points[index] for index in some)}):
        mark = "  <- this file" if point is here else ""
        lines.append(f"    {gigabytes(point.nbytes):>10}  {point.error:.4f}{mark}")
    more = max((point for point in points if point.nbytes <= size + 10**9), default=here)
    if more.nbytes > here.nbytes and here.error:
        left = (more.error / here.error) ** 2  # errors are RMSE; what adds up is their square
        added = gigabytes(more.nbytes - here.nbytes)
        lines.append(f"    {added} more would leave {100 * left:.0f} % of the squared error")
    return lines


def output_errors(data: dict) -> str:
    """Render a layer's output error before and after rounding, and with 4-bit activations if known.

    `data` has `output_before`, `output_after` and `output_w4a4` (or None), relative RMSE each; a
    Damage as a dictionary and a tensor of the report's data both have them.
    """
    w4a4 = "" if data["output_w4a4"] is None else f", W4A4 {data['output_w4a4']:.4f}"
    return f"{data['output_before']:.4f} -> {data['output_after']:.4f}{w4a4}"


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of the values above zero; 0 if there are none."""
    logarithms = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else 0.0


def render_plan(report: Report) -> list[str]:
    """Render every tensor's precision, shape, name and reason, alike blocks together on one line.

    Tensors of the transformer blocks that differ in nothing but the block's number share a line,
    such as `blocks.{0-3,7}.ffn.0.weight`, unless --verbose asks for each on its own.
    """
    groups = defaultdict(list)
    for plan in report.plans:
        fate = label_of(plan)
        mark = f"; full-precision matmul: {plan.full_precision}" if plan.full_precision else ""
        row = (fate, list(plan.ref.shape), f"{plan.reason}{mark}")
        # The first number in a name is the block's; only known families' blocks share a line, as
        # other numbers may count anything.
        number = (
            None if report.options.verbose else re.search(r"(?<=\.)\d{1,9}(?=\.)", plan.ref.name)
        )
        name = plan.ref.name
        if number and bare(name).startswith(TRANSFORMER_BLOCKS):
            key = f"{name[: number.start()]}*{name[number.end() :]}"
            groups[key, str(row)].append((int(number[0]), row))
        else:
            groups[name, str(row)].append((0, row))
    lines = []
    # Only the first "*" is ours: it stands for the block numbers.
    for (key, _), members in groups.items():
        name = key.replace("*", f"{{{ranges([number for number, _ in members])}}}", 1)
        fate, shape, reason = members[0][1]
        lines.append(f"  {fate:8} {len(members):4} x {shape!s:20} {name}  [{reason}]")
    return lines


def ranges(numbers: list[int]) -> str:
    """Render numbers as runs: [2, 3, 4, 7] becomes "2-4,7". They may come in any order."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def render_scales(report: Report) -> list[str]:
    """Render every quantised layer's input scale, where it is from, and what it clips.

    That is --input-scale-layer-summary. A layer without one is "dynamic" where ComfyUI measures its
    input on every call, or "not used" with full-precision matmul. The share of blocks that clip is
    known only with a recording.
    """

    def clipped(plan: TensorPlan) -> str:
        share = plan.saturated_blocks
        return "" if share is None else f"  clips {100 * share:.3g} % of the blocks"

    return ["  input scales:"] + [
        f"    {plan.ref.layer}  {plan.input_scale:.9g}  {plan.input_scale_source}{clipped(plan)}"
        if plan.input_scale is not None
        else f"    {plan.ref.layer}  none ({'not used' if plan.full_precision else 'dynamic'})"
        for plan in report.plans
        if plan.is_quantised and not plan.is_looked_up
    ]


def render_report(report: Report) -> str:
    """Render the summary that a person reads at the end of a conversion.

    With --dry-run or --verbose the plan stands before it. Size in bytes is exact in both cases,
    since the layout is known before anything is written. Notes come last, nearest to the prompt.
    """
    options = report.options
    verb = "would become" if options.dry_run else "->"
    lines = render_plan(report) if options.dry_run or options.verbose else []
    lines += [
        f"{options.source.name}: {gigabytes(report.source_bytes)} {verb} {options.written.name}: "
        f"{gigabytes(report.output_bytes)}, exactly {report.output_bytes:,} bytes "
        f"({percentage(report.output_bytes, report.source_bytes)})",
        *render_totals(report),
        render_matmuls(report),
        *(f"  {line}" for line in render_work(report.work)),
        *render_worst(report.damage),
        *render_output_errors(report),
        *render_curve(report.curve),
        *render_sizes(report),
        *(render_scales(report) if options.input_scale_layer_summary else []),
        render_asked(report.asked),
        *(note.line for note in by_rank(report.notes)),
    ]
    return "\n".join(lines)


# ── nvfp4/report/page_layers.py: Render the table of all layers for the report's page: worst first,

def filter_rules() -> str:
    """Write the CSS rules that hide the rows of a look while its box is not checked.

    They take the place of a script, which the page's policy would forbid.
    """
    return "\n".join(
        f".layers:has(#show-{look.css}:not(:checked)) tr:has(.{look.css}) {{ display: none; }}"
        for look in every_look()
    )


def html_filter(layers: list[dict]) -> str:
    """Render a box to check for each look that there is."""
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{look.css}" checked> {chip(look)} {count}</label>'
        for look, count in Counter(map(layer_look, layers)).most_common()
    )
    return f"<fieldset><legend>Show</legend>{boxes}</fieldset>"


def html_error(layer: dict, largest: float) -> str:
    """Render a layer's error as a bar, relative to the largest error; "-" where there is none."""
    if "relative_rmse" not in layer:
        return "-"
    error = layer["relative_rmse"]
    part = f"--part:{100 * error / (largest or 1):.1f}%"
    return f'<div class="bar {layer_look(layer).css}" style="{part}">{error:.4f}</div>'


def html_layers(layers: list[dict]) -> str:
    """Render every linear layer as a row, the largest error first, then those without an error.

    The columns of errors are left out after a dry run, that of output errors where no layer was
    rounded by statistics. The table is folded: a model has hundreds of layers.
    """
    damaged = [layer for layer in layers if "relative_rmse" in layer]
    rounded = any(layer["output_before"] is not None for layer in damaged)
    largest = max((layer["relative_rmse"] for layer in damaged), default=0)

    def row(layer: dict) -> list[str]:
        errors = []
        if damaged:
            errors = [html_error(layer, largest), "-"]
            if "relative_rmse" in layer:
                errors[1] = decibels(layer["sqnr_db"])
        if rounded:
            known = layer.get("output_before") is not None
            errors.append(escaped(output_errors(layer)) if known else "-")
        shape = " x ".join(map(str, layer["shape"]))
        size = [gigabytes(layer["bytes"]), shape, escaped(layer["reason"])]
        return [html_name(layer), chip(layer_look(layer)), *errors, *size]

    columns = ["Layer", "Precision"]
    columns += ["Relative RMSE", "#SQNR"] if damaged else []
    columns += ["Output error"] if rounded else []
    columns += ["#Size", "#Shape", "Reason"]
    rows = map(row, sorted(layers, key=lambda layer: -layer.get("relative_rmse", -1)))
    caption = "All linear layers, the largest error first" if damaged else "All linear layers"
    table = html_table(caption, tuple(columns), rows)
    fold = html_fold(f"{len(layers)} layers", html_filter(layers) + table, "long")
    return html_section("All layers", f'<div class="layers">{fold}</div>')


# ── nvfp4/report/outliers.py: Tell which layers' errors stand out from what is usual for their form

# Of fewer layers of one format nobody can say what is usual.
FEWEST_ALIKE = 5
# How far over the median an error has to be: by this factor, and by this many median deviations. On
# trained models, layers of one format that nothing is wrong with differ by some per cent.
FAR_FACTOR, FAR_DEVIATIONS = 1.25, 5


def standing_out(errors: Iterable[tuple[str, str, float]]) -> set[str]:
    """Name the layers whose error is far over what is usual for their format.

    errors: (layer, how it is stored, relative RMSE). Layers that lost nothing do not count for what
    is usual.
    """
    formats = defaultdict(dict)
    for layer, stored_as, error in errors:
        if error:
            formats[stored_as][layer] = error
    found = set()
    for alike in formats.values():
        usual = median(alike.values())
        deviation = median(abs(error - usual) for error in alike.values())
        least = max(FAR_FACTOR * usual, usual + FAR_DEVIATIONS * deviation)
        if len(alike) >= FEWEST_ALIKE:
            found |= {layer for layer, error in alike.items() if error > least}
    return found


# ── nvfp4/report/page_map.py: Lay the layers out as the precision map, and render it for the page ─

# What the reason of a layer in an edge block has in it.
EDGE = "edge block"
# A longer list of layers outside the blocks is folded.
OUTSIDE_SHOWN = 12


class BlockMap(NamedTuple):
    """Hold one family's blocks: rows by kind of layer, columns by block.

    family: the name before the blocks' numbers, such as "blocks". kinds: in the order in which the
    model has them, those of one module side by side. blocks: their numbers in order, as in names.
    cells: {(block, kind): tensor of the report's data}; blocks may lack kinds. edges: blocks that
    were kept as edge blocks.
    """

    family: str
    kinds: list[str]
    blocks: list[str]
    cells: dict[tuple[str, str], dict]
    edges: set[str]

    def runs(self) -> list[tuple[str, int]]:
        """Tell which columns are edge blocks: ("edge" or "", number of columns) from the left."""
        marks = ("edge" if block in self.edges else "" for block in self.blocks)
        return [(mark, len([*run])) for mark, run in itertools.groupby(marks)]


class ErrorScale(NamedTuple):
    """Hold what shades and numbers of cells go by.

    largest: the largest relative RMSE of the model; None after a dry run. unusual: names of layers
    whose error stands out.
    """

    largest: float | None
    unusual: set[str]

    def step(self, layer: dict) -> int:
        """Tell the shade of a layer; one without an error, in a model with errors, lost nothing."""
        if self.largest is None:
            return shade_step(None, 0)
        return shade_step(layer.get("relative_rmse", 0), self.largest)


def error_scale(layers: list[dict]) -> ErrorScale:
    """Find the largest error of some tensors of the report's data, and those that stand out."""
    damaged = [layer for layer in layers if "relative_rmse" in layer]
    errors = [(one["name"], one["stored_as"], one["relative_rmse"]) for one in damaged]
    return ErrorScale(max((e for *_, e in errors), default=None), standing_out(errors))


def block_maps(layers: Iterable[dict]) -> tuple[list[BlockMap], list[dict]]:
    """Sort layers into the blocks of their families, and those outside of any."""
    families, outside = defaultdict(dict), []
    # Matched on bare names; a prefix is put before the family's name again.
    inside = re.compile(rf"({'|'.join(TRANSFORMER_BLOCKS)})\.(\d{{1,9}})\.(.+)\.weight", re.DOTALL)
    for layer in layers:
        name = bare(layer["name"])
        if found := inside.fullmatch(name):
            families[layer["name"].removesuffix(name) + found[1]][found[2], found[3]] = layer
        else:
            outside.append(layer)
    return [block_map(family, cells) for family, cells in families.items()], outside


def block_map(family: str, cells: dict[tuple[str, str], dict]) -> BlockMap:
    """Put one family's layers, {(block, kind): tensor of the data}, into rows and columns."""
    modules = defaultdict(list)
    for kind in dict.fromkeys(kind for _, kind in cells):
        modules[kind.partition(".")[0]].append(kind)
    return BlockMap(
        family=family,
        kinds=[kind for kinds in modules.values() for kind in kinds],
        blocks=sorted({block for block, _ in cells}, key=int),  # "10" comes after "9"
        cells=cells,
        edges={block for (block, _), layer in cells.items() if EDGE in layer["reason"]},
    )


def html_tip(layer: dict) -> str:
    """Render the facts about a layer that show while its cell is pointed at or tapped.

    `layer` is a tensor of the report's data. Errors and matmul are left out where it has none.
    """
    facts = {
        "stored as": f"{layer['stored_as']}, {gigabytes(layer['bytes'])}",
        "shape": " x ".join(map(str, layer["shape"])),
        "reason": layer["reason"],
    }
    if "matmul" in layer:
        full, scale = layer["full_precision_mm"], layer["input_scale"]
        facts["matmul"] = layer["matmul"] + (f", {full}" if full else "")
        facts["input scale"] = f"none, {'not used' if full else 'dynamic'}"
        if scale is not None:
            facts["input scale"] = f"{scale:.9g}, {layer['input_scale_source']}"
    if "relative_rmse" in layer:
        facts["relative RMSE"] = f"{layer['relative_rmse']:.6f}"
        facts["SQNR"] = decibels(layer["sqnr_db"])
        if layer["output_before"] is not None:
            facts["output error"] = output_errors(layer)
    lines = "".join(f"<dt>{name}</dt><dd>{escaped(fact)}</dd>" for name, fact in facts.items())
    return f'<div class="tip"><b>{html_name(layer)}</b><dl>{lines}</dl></div>'


def html_cell(layer: dict, scale: ErrorScale) -> str:
    """Render a layer as a cell in its look and shade, with the tip inside it.

    Its error is printed if it stands out, else the look's label where there is room; a narrow cell
    drops a number's leading zero. Name, format and error also stand in data attributes, for scripts
    of a user and for the tests. A cell can be tapped, but the Tab key passes it by: a model has
    hundreds, and the table of all layers tells the same.
    """
    look = layer_look(layer)
    data = {"name": layer["name"], "stored": layer["stored_as"]}
    label = f'<span class="name">{look.label}</span>'
    if "relative_rmse" in layer:
        # The error has all its digits here, so that scripts need not read the rounded label.
        data["rmse"] = repr(layer["relative_rmse"])
        if layer["name"] in scale.unusual:
            # The leading zero is an element of its own, which the style sheet hides.
            number = f"{layer['relative_rmse']:.3f}".replace("0.", "<i>0</i>.", 1)
            label = f"<span>{number}</span>"
    attributes = "".join(f' data-{name}="{escaped(value)}"' for name, value in data.items())
    return (
        f'<div class="cell {look.css} e{scale.step(layer)}" tabindex="-1"{attributes}>'
        f'<div class="fit">{label}</div>{html_tip(layer)}</div>'
    )


def html_blocks(blocks: BlockMap, scale: ErrorScale) -> str:
    """Render one family's blocks as a table; a block that lacks a kind has an empty cell there."""
    family = escaped(blocks.family)
    edges = "".join(
        f'<th scope="colgroup" colspan="{count}">{mark}</th>'
        if mark
        else f"<td colspan={count}></td>"
        for mark, count in blocks.runs()
    )
    edges = f'<tr><td class="corner"></td>{edges}</tr>' if blocks.edges else ""
    numbers = "".join(f'<th scope="col">{block}</th>' for block in blocks.blocks)
    rows, module = "", ""
    for kind in blocks.kinds:
        # A gap stands before the first kind of a module, such as self_attn.q after ffn.2.
        above, module = module, kind.partition(".")[0]
        gap = " class=first" if above not in ("", module) else ""
        heading = escaped(kind).replace(".", ".<wbr>")
        cells = (blocks.cells.get((block, kind)) for block in blocks.blocks)
        cells = "".join(f"<td>{html_cell(cell, scale) if cell else ''}</td>" for cell in cells)
        rows += f'<tr><th scope="row"{gap}>{heading}</th>{cells}</tr>\n'
    head = f'{edges}<tr><th class="corner" scope="col">{family}.N</th>{numbers}</tr>'
    return (
        f'<div class="scroll map" tabindex="0" role="region" aria-label="Map of {family}">'
        f'<table style="--columns:{len(blocks.blocks)}">'
        f"<caption>{family}: {len(blocks.blocks)} blocks</caption>"
        f"<thead>{head}</thead><tbody>\n{rows}</tbody></table></div>\n"
    )


def html_legend(layers: list[dict], scale: ErrorScale) -> str:
    """Render what colours and patterns mean, how many layers have each, and the scale of errors."""
    items = [
        f"<li>{chip(look)} {look.says}, {count} layers</li>"
        for look, count in Counter(map(layer_look, layers)).most_common()
    ]
    if scale.largest is not None:
        worst = max(layers, key=lambda layer: layer.get("relative_rmse", -1))
        css = layer_look(worst).css
        steps = "".join(f'<span class="{css} e{step}"></span>' for step in range(SHADES))
        items.append(
            f'<li>error 0 <span class="scale" aria-hidden="true">{steps}</span> '
            f"{scale.largest:.4f}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def html_map(layers: list[dict]) -> str:
    """Render the section of the precision map: legend, blocks, and layers outside of them."""
    scale = error_scale(layers)
    maps, outside = block_maps(layers)
    says = (
        "Point at a cell or tap it for all about its layer; all layers are also in the table below."
    )
    if scale.largest is not None:
        says = (
            "The stronger the colour, the larger the error (relative RMSE of the stored weight); "
            f"numbers stand where it is far over what is usual for the format. {says}"
        )
    columns = max((len(blocks.blocks) for blocks in maps), default=1)
    body = f'<p class="soft">{says}</p>\n{html_legend(layers, scale)}'
    # All tables have columns of one width, which the style sheet finds from the largest number.
    body += f'<div style="--blocks:{columns}">'
    body += "".join(html_blocks(blocks, scale) for blocks in maps) + "</div>"
    if outside:
        rows = (
            (html_name(layer), html_cell(layer, scale), escaped(layer["reason"]))
            for layer in outside
        )
        table = html_table("Outside the blocks", ("Layer", "Precision", "Reason"), rows)
        fold = f"{len(outside)} layers outside the blocks"
        body += table if len(outside) <= OUTSIDE_SHOWN else html_fold(fold, table)
    return html_section("Precision map", body)


# ── nvfp4/report/page_style.py: Hold the style sheet of the report's page ─────────────────────────

# Patterns are drawn in a look's line colour, as layers of CSS backgrounds. Where a cell has a
# number, it stands on a plate of the fill.
TEXTURES = {
    "plain": "",
    "dash": "linear-gradient(var(--line) 0 0) center / .6rem 2px no-repeat",
    "corner": "linear-gradient(225deg, var(--line) .35rem, transparent .4rem)",
    "rising": "repeating-linear-gradient(135deg, var(--line) 0 1px, transparent 1px .35rem)",
    "falling": "repeating-linear-gradient(45deg, var(--line) 0 1px, transparent 1px .35rem)",
    "crossed": "repeating-linear-gradient(135deg, var(--line) 0 1px, transparent 1px .4rem), "
    "repeating-linear-gradient(45deg, var(--line) 0 1px, transparent 1px .4rem)",
    "dots": "radial-gradient(var(--line) 1px, transparent 1.5px) 0 0 / .4rem .4rem",
    "sparse": "radial-gradient(var(--line) 1px, transparent 1.5px) 0 0 / .8rem .8rem",
    "level": "repeating-linear-gradient(0deg, transparent 0 .25rem, var(--line) .25rem "
    "calc(.25rem + 1px))",
    "upright": "repeating-linear-gradient(90deg, transparent 0 .25rem, var(--line) .25rem "
    "calc(.25rem + 1px))",
}
# Layout and colours of the page itself: (on a light page, on a dark one).
PAGE_COLOURS = {
    "page": ("#f4f6f8", "#10141a"),
    "card": ("#ffffff", "#181e26"),
    "ink": ("#17202b", "#e8edf3"),
    "soft": ("#4f5a68", "#a8b3c0"),
    "rule": ("#dde2e8", "#303a46"),
    "link": ("#0b57a4", "#8ec1ff"),
    "good": ("#116329", "#7fd892"),
    "warn": ("#9a3412", "#ffb38a"),
}


def look_rules(look: Look, scheme: str) -> Iterator[str]:
    """Yield the CSS rules of a look's colours for "light" or "dark", a fill for each shade."""
    colours = getattr(look.tint, scheme)
    yield f".{look.css} {{ --fill: {colours.strong}; --line: {colours.line}; }}"
    for step in range(SHADES):
        yield f".{look.css}.e{step} {{ --fill: {colours.shade(step)}; }}"


def scheme_rules(scheme: str) -> str:
    """Write the CSS rules of all colours for "light" or "dark"."""
    index = ("light", "dark").index(scheme)
    page = " ".join(f"--{name}: {pair[index]};" for name, pair in PAGE_COLOURS.items())
    looks = (rule for look in every_look() for rule in look_rules(look, scheme))
    return "\n".join([f":root {{ {page} }}", *looks])


def pattern_rules() -> str:
    """Write the CSS rules of all patterns."""
    rules = []
    for look in every_look():
        layers = ", ".join(filter(None, (TEXTURES[word] for word in look.pattern.split())))
        if layers:
            rules.append(f".{look.css} {{ --pattern: {layers}; }}")
    return "\n".join(rules)


# A cell's classes are its look and its shade. Its details float beside it where the browser can do
# that (anchor-scope), and lie at the screen's lower edge where it cannot, and on phones.
LAYOUT = """
* { box-sizing: border-box; --pattern: linear-gradient(transparent, transparent); }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 76rem; margin: auto; padding: 1.5rem 1rem 4rem; }
section, header { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem;
  padding: 1.25rem 1.5rem 1.5rem; margin-top: 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; } h2 { font-size: 1.2rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.25rem 0 0; }
p { margin: .25rem 0; } .soft { font-size: .9rem; }
.soft, caption, dt, thead, small { color: var(--soft); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.verdict { font-weight: 600; margin-bottom: .5rem; } .good { color: var(--good); }
.warn { color: var(--warn); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem;
  margin: 1rem 0; }
dd { margin: 0; } .facts dd { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
small { display: block; font-size: .85rem; font-weight: 400; } i { font-style: normal; }
.notes { padding: 0; margin: 1rem 0 0; list-style: none; } .notes b { font-weight: 600; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; padding: 0;
  margin: .75rem 0 0; font-size: .875rem; }
table { width: 100%; border-collapse: collapse; margin-top: .75rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
thead { font-size: .8rem; vertical-align: bottom; } th { font-weight: 500; text-align: left; }
td, th { padding: .25rem .5rem; border-bottom: 1px solid var(--rule); }
:is(td, th):first-child { padding-left: 0; } :is(td, th):last-child { padding-right: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
.chip, .cell, .bar, .stack > * { color: var(--ink); print-color-adjust: exact;
  forced-color-adjust: none; }
.chip, .cell, .stack > * { background: var(--pattern), var(--fill); border-radius: .2rem;
  border: 1px solid var(--line); }
.chip, .stack > * { padding: .1rem .35rem; font-size: .8rem; white-space: nowrap; }
:is(.chip, .stack > *, .cell) span { background: var(--fill); padding: 0 .2rem;
  border-radius: .15rem; }
.bar { background: linear-gradient(var(--fill) 0 0) no-repeat 0 / var(--part); padding: 0 .4rem; }
.stack { display: flex; gap: 2px; margin-top: .75rem; height: 2rem; line-height: 1.6rem;
  text-align: center; }
.stack > * { min-width: 4px; overflow: hidden; padding: .1rem 0; }
summary { cursor: pointer; margin-top: 1rem; color: var(--link); }
.scroll { overflow-x: auto; }
.map { --head: 7.5rem; }
.map table { table-layout: fixed; border-collapse: separate; border-spacing: 2px;
  --cell: clamp(1.5rem, (min(100vw, 76rem) - var(--head) - 5.5rem) / var(--blocks), 6rem);
  width: calc(var(--head) + var(--columns) * var(--cell)); overflow-wrap: normal; }
.map :is(td, th) { padding: 0; border: 0; text-align: center; }
.map thead { font-size: .75rem; }
.map [scope=colgroup] { border-bottom: 1px solid var(--soft); }
.map :is([scope=row], .corner) { position: sticky; left: 0; z-index: 1; width: var(--head);
  background: var(--card); box-shadow: 0 0 0 2px var(--card); text-align: left; font-size: .75rem;
  line-height: 1.15; color: var(--soft); vertical-align: middle; }
.map tr:has(.first) > * { padding-top: .5rem; }
.cell { line-height: 1.4rem; height: 1.5rem; font-size: .75rem; text-align: center;
  cursor: default; overflow: clip; } td > .cell { min-width: 4rem; }
.map td > .cell { min-width: 0; }
.cell:is(:hover, :focus) { outline: 2px solid var(--ink); overflow: visible; }
.cell:is(:hover, :focus) > .tip { display: block; }
.cell:focus > .tip { pointer-events: auto; } .cell:hover > .tip { z-index: 4; }
.tip { display: none; position: fixed; z-index: 3; inset: auto 0 0; max-height: 90vh;
  margin: .3rem; padding: .75rem 1rem; line-height: 1.5; text-align: left; overflow: auto;
  pointer-events: none; background: var(--card); border: 1px solid var(--soft);
  border-radius: .5rem; box-shadow: 0 .4rem 1.5rem #0006; font-size: .8rem; }
.tip dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .75rem; margin: .4rem 0 0; }
.fit { container-type: inline-size; position: relative; }
@container (max-width: 3.4rem) { .cell .name { position: absolute; opacity: 0; }
  .stack span { display: none; } }
@container (max-width: 2.2rem) { .cell i { display: none; }
  .cell .fit span { font-size: .6rem; padding: 0; } }
.scale { display: inline-flex; gap: 1px; vertical-align: middle; }
.scale > * { width: 1rem; height: 1rem; background: var(--fill); border: 1px solid var(--line); }
fieldset { border: 1px solid var(--rule); border-radius: .5rem; margin: .75rem 0 0;
  padding: .5rem .75rem; display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; }
label { display: inline-flex; gap: .4rem; align-items: center; min-height: 1.5rem; }
.layers table { min-width: 48rem; overflow-wrap: normal; } td:has(> .bar) { width: 9rem; }
.curve { max-width: 30rem; width: 100%; height: auto; font-size: 11px; }
.curve text { fill: var(--soft); } .curve .axis { stroke: var(--soft); fill: none; }
.curve .line { stroke: var(--link); fill: none; stroke-width: 2; }
.curve .here { fill: var(--link); stroke: var(--card); stroke-width: 2; }
@media (min-width: 60em) {
  .pair { display: grid; grid-template-columns: 3fr 2fr; gap: 0 2.5rem; align-items: start; }
  .tip { width: max-content; max-width: 28rem; margin: .3rem auto; }
  @supports (anchor-scope: all) {
    .cell { anchor-name: --cell; anchor-scope: --cell; }
    .tip { position-anchor: --cell; position-area: bottom; position-try-fallbacks: flip-block;
      inset: auto; margin: .3rem; } } }
@media (max-width: 40em) {
  main { padding: .5rem .5rem 3rem; } section, header { padding: 1rem .75rem; }
  h1 { font-size: 1.35rem; } table { font-size: .8rem; } td, th { padding: .25rem; }
  .facts { grid-template-columns: 1fr 1fr; } .facts dd { font-size: 1.25rem; }
  .map { --head: 6rem; } }
@media print {
  body { background: none; } main { max-width: none; padding: 0; }
  section, header { border: 0; padding: .5rem 0; break-inside: avoid-page; }
  .scroll { overflow: visible; }
  tr { break-inside: avoid; } fieldset { display: none; }
  details:not(.long)::details-content { content-visibility: visible; block-size: auto; } }
@media (forced-colors: active) { .cell, .chip { border-color: CanvasText; } }
"""


def page_style() -> str:
    """Write the whole style sheet."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {scheme_rules('dark')} }}"
    scheme = ":root { color-scheme: light dark; }"
    return "\n".join([scheme, scheme_rules("light"), dark, pattern_rules(), LAYOUT])


# ── nvfp4/report/page.py: Render the report as one HTML page ──────────────────────────────────────

# The policy lets no script and no foreign file in, should a name ever get past `escaped`.
PAGE_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""
# How the kinds of multiply work are shown: {share of the work's data: (label of a look, words)}.
WORK_LOOKS = {
    "FP4": ("W4A4", "in FP4"),
    "INT8 or FP8": ("INT8", "in INT8 or FP8"),
    "16-bit": ("16-bit", "at 16-bit speed"),
}


def html_facts(data: dict, layers: list[dict]) -> str:
    """Render size, speed, layers and what ComfyUI is needed, as large figures."""
    output, source, work = data["output_bytes"], data["source_bytes"], data["work"]
    quantised = sum("matmul" in one or one["stored_as"] == AS_IT_WAS for one in layers)
    facts = [
        (
            "Size",
            gigabytes(output),
            f"{percentage(output, source)} of the source's {gigabytes(source)}",
        ),
        ("Quantised", f"{quantised} of {len(layers)}", "linear layers"),
    ]
    if work["comfyui"]:
        card = max(work["speed"], key=work["speed"].get)
        where = f"over 16-bit, the linear layers on {CARDS[card].series} cards, estimated"
        facts.append(("Speed", f"{work['speed'][card]:.1f}x", where))
        kitchen = f"with comfy-kitchen {work['comfy_kitchen']}" if work["comfy_kitchen"] else ""
        also = " and ".join(filter(None, (kitchen, work["needs"])))
        facts.append(("Needs", f"ComfyUI {work['comfyui']}", f"or newer{also and f', {also}'}"))
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{escaped(value)}<small>{escaped(more)}</small></dd></div>"
        for name, value, more in facts
    )
    return f'<dl class="facts">{tiles}</dl>\n'


def html_work(work: dict) -> str:
    """Render the share of the multiply work by bits, and estimated speeds on classes of cards."""
    if not work["comfyui"]:
        return "<p>Nothing is quantised.</p>\n"
    parts = [
        (LOOKS[label], percentage(work["shares"][name], 1), work["shares"][name])
        for name, (label, _) in WORK_LOOKS.items()
    ]
    items = "".join(
        f"<li>{chip(look, share)} {words}</li>"
        for (look, share, _), (_, words) in zip(parts, WORK_LOOKS.values(), strict=True)
    )
    speeds = (
        f"{CARDS[card].series} {speed:.1f}x ({card})" for card, speed in work["speed"].items()
    )
    where = work["card"] or "a card that multiplies all formats"
    return (
        f"<h2>Multiply work of the linear layers on {where}</h2>{html_stack(parts)}"
        f'<ul class="legend">{items}</ul>\n'
        f'<p class="soft">Of a typical run: {escaped(work["run"])}. Estimated speed of these over '
        f"16-bit, by peak throughputs: {', '.join(speeds)}.</p>\n"
    )


def html_verdict(data: dict) -> str:
    """Render what came of it: a file, a plan, or that a run would fail."""
    if data["problems"]:
        return '<p class="verdict warn">&#10007; A dry run: a run would fail</p>\n'
    if data["dry_run"]:
        return '<p class="verdict warn">&#9675; A dry run: planned, nothing was written</p>\n'
    return '<p class="verdict good">&#10003; Written, read back, no defect found</p>\n'


def html_notes(data: dict) -> str:
    """Render what a run would refuse and the notes behind their ranks, those that matter first."""
    told = [{"rank": "error", "text": text} for text in data["problems"]]
    # Notes come sorted for a terminal, where the last line is the nearest one.
    told += sorted(data["notes"], key=lambda note: -Rank[note["rank"].upper()])
    items = ""
    for note in told:
        word = RANK_WORDS.get(Rank.__members__.get(note["rank"].upper()), note["rank"])
        bad = ' class="warn"' if note["rank"] in ("error", "warning") else ""
        items += f"<li>{word and f'<b{bad}>{word}:</b> '}{escaped(note['text'])}</li>"
    return f'<ul class="notes" aria-label="Notes">{items}</ul>\n' if items else ""


def html_answer(data: dict, layers: list[dict]) -> str:
    """Render what a person wants to know first: what came of it, and what to do with it."""
    name, source = escaped(data["output"]), escaped(data["source"])
    if data["dry_run"]:
        name = f"Dry run: {name}"
    asked = data["comfyui"]["answer"] if data["comfyui"] else NOT_ASKED
    return (
        f"<header>{html_verdict(data)}<h1>{name}</h1>\n"
        f'<p class="soft">from {source}, by convert_nvfp4.py {escaped(data["version"])}</p>\n'
        f"{html_facts(data, layers)}{html_work(data['work'])}"
        f'<p class="soft">{escaped(asked)}</p>\n{html_notes(data)}</header>\n'
    )


def html_totals(data: dict) -> str:
    """Render two bars with their tables: bytes by precision, and linear weights by matmul.

    Unquantised layers, which `matmuls` leaves out, are shown as W16A16, so that the second bar is
    whole.
    """
    totals, matmuls = data["totals"], data["matmuls"]
    size = sum(total["bytes"] for total in totals.values()) or 1  # a file may hold no bytes
    # Several formats may share a kind such as W8A8: the bar shows the one that most layers have.
    kinds = Counter((one.get("matmul", "W16A16"), layer_look(one)) for one in layers_of(data))
    looks = {kind: look for (kind, look), _ in reversed(kinds.most_common())}
    work = [(kind, found["layers"], found["share"]) for kind, found in matmuls.items()]
    layers = sum(total["layers"] for total in totals.values())
    if rest := layers - sum(found["layers"] for found in matmuls.values()):
        work.append(("W16A16", rest, 1 - sum(found["share"] for found in matmuls.values())))
    stored_table = html_table(
        "Bytes per precision",
        ("Stored as", "#Layers", "#Tensors", "#Bytes", "#Share"),
        (
            (
                chip(look_of(name), name),
                *(f"{total[key]:,}" for key in ("layers", "tensors", "bytes")),
                percentage(total["bytes"], size),
            )
            for name, total in totals.items()
        ),
    )
    work_table = html_table(
        "Matmuls, by share of the linear weights",
        ("Matmul", "#Layers", "#Share"),
        (
            (chip(looks.get(kind, OTHER_LOOK), kind), f"{count:,}", percentage(part, 1))
            for kind, count, part in work
        ),
    )
    stored_bar = html_stack(
        (look_of(name), name, total["bytes"] / size) for name, total in totals.items()
    )
    work_bar = html_stack((looks.get(kind, OTHER_LOOK), kind, part) for kind, _, part in work)
    body = (
        f'<div class="pair"><div>{stored_bar}{html_fold("Bytes per precision", stored_table)}</div>'
        f"<div>{work_bar}{html_fold('Matmuls by bits', work_table)}</div></div>\n"
    )
    return html_section("Size and matmuls", body)


def command_line(options: dict) -> Iterator[tuple[str, str]]:
    """Yield (option, value) as the command line has them, both escaped.

    `options` are those that the header records, by field name. A repeatable option yields a pair
    for each value, a switch "on".
    """
    rows = {row.name: row for row in options_of(Options)}
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            # A set of switches is recorded as the flags that were given; they have no value.
            pair = (one, True) if rows[name].switches else (rows[name].flag, one)
            yield escaped(pair[0]), "on" if pair[1] is True else escaped(pair[1])


def html_origin(origin: dict) -> str:
    """Render how the file was made: version, options, and the source's files with their sizes."""
    files = [(escaped(name), gigabytes(size)) for name, size in origin["sources"].items()]
    options = html_table("Options", ("Option", "Value"), command_line(origin["options"]))
    sources = html_table("Source files", ("File", "#Size"), files) if files else ""
    body = f'<div class="pair"><div>{options}</div><div>{sources}</div></div>'
    return html_section("How it was made", html_fold("Options and source files", body))


def render_html(data: dict) -> str:
    """Render the report's data (see `data.report_data`) as a self-contained HTML page.

    Layers are the 2-D tensors whose names end in `.weight`, quantised or not; biases and norms
    count in the totals only.
    """
    layers = layers_of(data)
    title = f"{escaped(data['output'])}: conversion report"
    if data["dry_run"]:
        title = f"Dry run: {escaped(data['output'])}, planned but not written"
    return (
        f"{PAGE_HEAD}<title>{title}</title>\n"
        f"<style>{page_style()}{filter_rules()}</style></head>\n<body><main>\n"
        f"{html_answer(data, layers)}{html_map(layers)}{html_totals(data)}{html_curves(data)}"
        f"{html_layers(layers)}{html_origin(data['origin'])}</main></body></html>\n"
    )


# ── nvfp4/report/texts.py: Write the text files that a conversion is asked for: --report, --layer-c

# What writes --report, by the suffix of its file: a row for each of REPORT_KINDS.
REPORTS = {".json": render_json, ".html": render_html}


def write_texts(report: Report) -> None:
    """Write the report and the layer config, where the options name a file for them.

    Each is written whole or not at all. Raises ConvertError where one cannot be written.
    """
    options = report.options
    if options.make_folder:
        make_folders(options.texts)
    if options.report:
        render = REPORTS[options.report.suffix.lower()]
        write_text(render(report_data(report)), options.report)
    if options.layer_config_out:
        write_text(layer_config(report.plans), options.layer_config_out)


# ── nvfp4/source/whole.py: Make sure that a source is a whole model, and not one of its shards unde

# Parts that every block of a run has; scales and other parts of quantised layers may differ.
EVERY_BLOCK = (".weight", ".bias")
# What is numbered is a layer, and no block, if it has these itself.
LAYER = {"weight", "bias"}
# {block's number: the parts that it has}, as "attn.q.weight".
Run = dict[int, set[str]]


def refuse_part(path: Path, model: Model) -> list[str]:
    """Raise ConvertError for a model of a known family that is not all there, naming what it lacks.

    ComfyUI would load such a file, leave what is missing at random values, and make noise. Of a
    model of no known family, whose blocks may differ by design, a note tells what they lack.
    """
    family = FAMILIES.get(recognise(model)[0])
    missing = missing_parts(model, family)
    shard = f"one shard of several: it lacks {examples(missing)}"
    if family and missing:
        raise ConvertError(
            f"{path}: is not a whole {family.title} model, but maybe {shard}; give the "
            "*.safetensors.index.json beside it, or the folder"
        )
    what = f"{path.name} may be {shard}, which its other blocks have"
    return [Note(what, Rank.WARNING)] if missing else []


def missing_parts(model: Model, family: Family | None) -> list[str]:
    """List what a model of this family, or of none, has to have and lacks: layers, blocks, tensors.

    Layers beside the blocks are those in the family's row. Blocks are counted from 0 to the highest
    number there is; a block has to have what most blocks of its name have. In a model of no family
    the first blocks or the last may have less than most, as in Mochi, SeedVR and Hunyuan3D.
    """
    names = {bare(name) for name in model.tensors}
    missing = missing_beside(names, family) if family else []
    for run, blocks in sorted(runs_of(names, family).items()):
        missing += [f"{run}.{number}" for number in gaps(blocks)]
        counts = Counter(part for parts in blocks.values() for part in parts)
        usual = {part for part, count in counts.items() if 2 * count > len(blocks)}
        if not family:
            usual = {part for part in usual if not lacks_at_an_end(blocks, part)}
        for number, parts in sorted(blocks.items()):
            missing += [f"{run}.{number}.{part}" for part in usual - parts]
    return missing


def missing_beside(names: Iterable[str], family: Family) -> list[str]:
    """List the layers and modules beside its blocks that a model of this family lacks."""
    choices = [choice.split("|") for choice in family.outside]
    missing = [
        layers[0] for layers in choices if not any(f"{layer}.weight" in names for layer in layers)
    ]
    for modules in family.together:
        lacking = [one for one in modules if not any(name.startswith(f"{one}.") for name in names)]
        missing += lacking if len(lacking) < len(modules) else []
    return missing


def runs_of(names: Iterable[str], family: Family | None) -> dict[str, Run]:
    """Find the blocks of a model by their names: {"blocks": {number: parts}}.

    In a model of no family those are what is numbered, and not single layers, as in a Sequential.
    Numbers inside a block tell layers of different kinds, as in a UNet: these need not be alike.
    """
    runs: dict[str, Run] = defaultdict(lambda: defaultdict(set))
    for name in filter(lambda name: name.endswith(EVERY_BLOCK), names):
        if family and (found := family.inside.match(name)):
            runs[found[1]][int(found[2])].add(name[found.end() :])
        elif not family and (block := block_of(name)):
            run, _, number = block.rpartition(".")
            # Block numbers of more than nine digits are hostile.
            if len(number) < 10:
                runs[run][int(number)].add(name[len(block) + 1 :])
    if family:
        return runs
    return {
        run: {n: {part for part in parts if not part[0].isdigit()} for n, parts in blocks.items()}
        for run, blocks in runs.items()
        if len(blocks) >= LEAST_REPEATS and not any(parts & LAYER for parts in blocks.values())
    }


def lacks_at_an_end(blocks: Run, part: str) -> bool:
    """Tell whether the blocks that lack a part are the first or the last ones, and no others."""
    has = [part in blocks[number] for number in sorted(blocks)]
    return has in (sorted(has), sorted(has, reverse=True))


# ── nvfp4/source/read.py: Read the source of a conversion: a model, and its LoRAs ─────────────────

def read_source(options: Options) -> Source:
    """Open the model and the LoRAs to merge, and note the state of all files that are read later.

    Returns the model, with LoRAs as patches of its tensors, and the notes of both. Raises
    ConvertError for what is damaged, or quantised in a way that cannot be decoded, and for LoRAs
    that do not go with the model.
    """
    refuse_missing(options)
    model, notes = open_source(options.source, plain_fp8=options.plain_fp8)
    refuse_swapped(options.output, model)
    doubts = refuse_part(options.source, model)
    model = dataclasses.replace(model, stamps=stamps_of(options, model))
    merged = merge_loras(options.merge_lora, model, partial=options.lora_partial)
    return Source(merged.model, (*notes, *doubts, *merged.notes))


def refuse_missing(options: Options) -> None:
    """Raise ConvertError if there is no SOURCE but an original model is where OUTPUT is to go."""
    if exists(options.source) or not exists(options.output):
        return
    try:
        original = not open_source(options.output).model.quantised
    except ConvertError:
        return
    if original:
        raise ConvertError(
            f"{options.source}: no such file, but OUTPUT is there and a 16- or 32-bit model: are "
            f"SOURCE and OUTPUT swapped? ({options.output})"
        )


def refuse_swapped(output: Path, model: Model) -> None:
    """Raise ConvertError if SOURCE is quantised, and OUTPUT is there and not made by this tool.

    A conversion of the small file would overwrite the original.
    """
    if exists(output) and model.quantised and not is_ours(output):
        raise ConvertError(
            f"{output}: exists, and this tool did not make it, but SOURCE is quantised: are they "
            "swapped? If not, delete it first"
        )


def is_ours(path: Path) -> bool:
    """Tell whether this tool made a file: its header has a `convert_nvfp4` entry.

    A file that cannot be read as safetensors counts as foreign.
    """
    try:
        return "convert_nvfp4" in read_header(path)[1]
    except ConvertError:
        return False


def stamps_of(options: Options, model: Model) -> dict[Path, Stamp]:
    """Tell size and time of the files that are read while converting, too, and not only before.

    These are the model's, the LoRAs' and the recordings': a change of them would mix old and new
    values in one output. Raises ConvertError where one is missing.
    """
    loras = (lora_in(lora.path) for lora in options.merge_lora)
    paths = [*model.files, *loras, *options.activation_stats]
    with translated(options.source):
        return {path: stamp(path) for path in paths}


# ── nvfp4/conversion.py: Run one conversion from end to end, as the list of its phases ────────────

def convert(options: Options, observe: Observe = unobserved) -> Report:
    """Run a conversion, or with `dry_run` plan it, and write the reports that it asks for.

    The Python interface; all else is as `run_phases` does it. Raises ConvertError, also for a
    report that cannot be written once the model is.
    """
    if not isinstance(options, Options):
        raise ConvertError(f"convert takes Options(source=..., output=...), not {options!r}")
    report = run_phases(options, observe)
    if read_ranks().is_first:
        write_texts(report)
    return report


@SCREEN
def run_phases(options: Options, observe: Observe = unobserved) -> Report:
    """Run a conversion, or with `dry_run` plan it. Raises ConvertError.

    What fails leaves nothing behind, unless `resume` keeps partial files to go on with. Each phase
    returns a record with its notes; they come together in the report, and only there. `observe` is
    called with the name of each stage of writing the output (see `stages`). Under `torchrun` all
    processes come here with the same options; each gets the report.
    """
    began = time.monotonic()
    refuse_lone_shard(options.source)
    # Ranks meet before anything can fail on one of them alone: the others would wait for it.
    with join_ranks() as ranks:
        if not ranks.is_first:
            options = dataclasses.replace(options, quiet=True)
        comfyui = find_comfyui(options.comfyui) if ranks.is_first else None
        say = partial(phase, quiet=options.quiet)
        say("reading headers")
        # Only headers are read here; weights are read while they are measured or encoded.
        source = read_source(options)
        source_bytes = file_bytes(source.model)
        device = pick_device(options.device, ranks)
        refuse_text_targets(options, source.model)
        say("reading guides")
        guides = read_guides(options, source.model)
        say("planning")
        planner = partial(make_plans, options, source.model, guides)
        sized = plan_for_size(options, source.model, planner, ranks)
        plan = sized.plan if sized else planner()
        refuse_no_gain(options, source.model, plan.plans)
        tuned = tune_activations(options, plan.plans)
        plans = tuned.plans
        # --target-size has looked already, and a real run looks while it writes.
        if options.dry_run and not sized:
            plans = widen(plans, float16_overflows(plans, options))
        job = make_job(options, source.model, plans)
        if comfyui:
            say("asking ComfyUI")
        asked = ask_about_job(comfyui, job)
        say("preparing the output")
        if options.dry_run:
            outcome = rehearse(job, tuned.plans, ranks)
        else:
            outcome = produce(job, ranks, observe)
    heard, unfit = (asked.notes, asked.problems) if asked else ((), ())
    return Report(
        options=options,
        plans=tuple(outcome.job.plans),
        origin=outcome.job.origin,
        source_bytes=source_bytes,
        output_bytes=outcome.job.nbytes,
        notes=(
            *plan.notes,
            *shape_notes(options, plans),
            *source.notes,
            *tuned.notes,
            *outcome.notes,
            *heard,
        ),
        problems=(*outcome.problems, *unfit),
        damage=outcome.damage,
        curve=tuned.curve,
        sizes=sized.sizes if sized else (),
        size_error=sized.error if sized else 0.0,
        asked=asked,
        seconds=time.monotonic() - began,
        device=describe_device(device),
    )


# ── nvfp4/cli/entry.py: Carry out what the command line asks for, and end with its status ─────────

def run(task: Options | Verification) -> tuple[str, int]:
    """Carry out a task: convert and write the reports asked for, or check a file.

    Returns the text to print on stdout, "" in all ranks but the first, and the exit status. A check
    ends with 1 for any defect that is worse than LOADS. Raises ConvertError; where only a report
    could not be written, or a dry run found what a run would refuse, the summary is printed before
    that.
    """
    if isinstance(task, Verification):
        check = verify_file(task)
        return render_check(check), int(check.outcome > Outcome.LOADS)
    report = run_phases(task)
    # All ranks have the same report; one prints it.
    if not read_ranks().is_first:
        return "", 0
    text = render_report(report)
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


def carry_out(task: Options | Verification) -> int:
    """Run a task, print its result or its problems, and return the exit status.

    After Ctrl-C one line says what is left: nothing, a run to go on with, or a file that was
    complete already.
    """
    path = task.written if isinstance(task, Options) else task.file
    # An output of an earlier run may be there: only one that was replaced counts as written.
    older = path.stat() if exists(path) else None
    try:
        text, status = run(task)
        if text:
            show(printable(text))
    except ConvertError as error:
        show_problems(error)
        return 1
    except KeyboardInterrupt:
        left = left_after(task)
        if exists(path) and not (older and is_still(older, path)):
            left = f"{path} was complete already"
        SCREEN.clear()
        print(f"interrupted: {left}", file=sys.stderr)
        return 130
    return status


def carry_out_all(tasks: Sequence[Options | Verification]) -> int:
    """Carry out tasks one after another, and return the exit status: that of the one that failed.

    The first that fails is the last: what ends one conversion, a full disk or Ctrl-C, would end the
    others, too. A line on stderr tells then which models were converted, and which were not.
    """
    for number, task in enumerate(tasks):
        if status := carry_out(task):
            if len(tasks) > 1:
                done, left = (
                    ", ".join(str(one.source) for one in some) or "none"
                    for some in (tasks[:number], tasks[number + 1 :])
                )
                which = f"converted: {done}; failed: {task.source}; not begun: {left}"
                print(printable(f"note: {which}"), file=sys.stderr)
            return status
    return 0


def left_after(task: Options | Verification) -> str:
    """Say what an interrupted task leaves, and what would have left more."""
    if not isinstance(task, Options) or task.dry_run:
        return "nothing was written"
    # The journal stays only with --resume; else the partial files were deleted.
    if task.resume:
        return "the same command goes on from here"
    later = "with --resume the next run could go on from where it stopped"
    return f"nothing was written; {later}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    argv: the arguments, without the program's name; those of the process if None. Wrong options and
    `--help` raise SystemExit, as argparse does.
    """
    tolerate_consoles()
    try:
        return carry_out_all(parse_tasks(argv))
    except KeyboardInterrupt:
        # It came before or after the work, so there is nothing to tell of a file.
        SCREEN.clear()
        print("interrupted", file=sys.stderr)
        return 130


def interrupt(*_: object) -> None:
    """Handle a signal as Python handles Ctrl-C: raise KeyboardInterrupt in the main thread."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    # SIGINT is Ctrl-C; SIGTERM is what torchrun and a shutdown send. Both raise KeyboardInterrupt,
    # so that partial files are deleted, or kept for --resume, before the program ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts a script's background job (`&`) with the signal ignored: leave it so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.exit(main())
