"""The line that tells what is going on: its width, what goes first, what a log gets."""

import io
import os

import pytest

from nvfp4 import progress
from nvfp4.progress import (
    Activity,
    Screen,
    clock_time,
    display_width,
    each_with_bar,
    holding_up,
    progress_bar,
)


@pytest.fixture(autouse=True)
def two_seconds_of_silence(monkeypatch):
    """The other tests have no line of anything in a log: see conftest.py."""
    monkeypatch.setattr(progress, "SILENCE", 2.0)


NAMES = ("", "blocks.12.ffn.0.weight", "块.十二.注意力.重量.很长的名字", "e\u0301" * 30, "x" * 300)
WIDTHS = range(1, 201)


def activity(name: str = "", done: int = 800_000_000) -> Activity:
    """2.32 GB, begun 12 seconds ago."""
    one = Activity(what="converting", total=2_320_000_000, began=0.0, name=name)
    one.update(done)
    return one


def line(columns: int, name: str = "", done: int = 800_000_000) -> str:
    return activity(name, done).line(columns, 12.0, 1e9)


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_never_wider_than_asked(name):
    for columns in WIDTHS:
        for done in (0, 1, 800_000_000, 2_320_000_000):
            assert display_width(line(columns, name, done)) <= columns


def test_a_wide_line_says_all():
    ends = clock_time(1e9 + 22.8, 1e9)
    assert line(120, "blocks.12.ffn.0.weight") == (
        f"converting  34 %  [###-------]  0.80/2.32 GB  66.7 MB/s  0:23 left  ends {ends}"
        "  blocks.12.ffn.0.weight"
    )


def test_the_name_goes_first_and_percent_last():
    every = ("converting", "34 %", "0:23 left", "0.80/2.32 GB", "MB/s", "ends ", "[###", "ffn.0")
    shown = [
        [part in line(columns, "blocks.12.ffn.0.weight") for part in every] for columns in WIDTHS
    ]
    # What is cut itself counts for nothing.
    for one in shown[len(every[0]) :]:
        # Whatever is shown, all that counts more is shown as well.
        assert one == sorted(one, reverse=True)
    assert shown[79 - 1] == [True] * 7 + [False]
    assert shown[119 - 1] == [True] * 8


def test_long_names_keep_their_end():
    text = line(100, f"{'blocks.' * 20}weight")
    assert display_width(text) == 100
    assert text.endswith("blocks.weight")
    assert "  ..." in text


def test_nothing_done_has_no_rate_and_no_end():
    assert line(120, done=0) == "converting  0 %  [----------]  0.00/2.32 GB"
    assert Activity(what="planning", began=0.0).line(80, 1.0, 0.0) == "planning ..."
    assert Activity(what="planning", began=0.0).line(80, 65.0, 0.0) == "planning ... 1:05"


def test_what_takes_longer_counts_more():
    """Half of the bytes were copied, which takes a tenth of the time that the rest does."""
    one = Activity(what="converting", total=2_000_000_000, efforts=1_100, began=0.0)
    one.update(1_000_000_000, 100)
    ends = clock_time(1e9 + 100, 1e9)
    assert one.line(120, 10.0, 1e9) == (
        f"converting  9 %  [----------]  1.00/2.00 GB  100.0 MB/s  1:40 left  ends {ends}"
    )


def test_the_rate_is_that_of_the_last_seconds():
    one = Activity(what="converting", total=10_000, began=0.0)
    for second in range(1, 101):
        one.update(10 if second < 60 else 100)
        found, _ = one.rates(float(second))
    assert found == pytest.approx(100, rel=0.01)


def test_another_day_is_named():
    assert clock_time(1e9, 1e9) == clock_time(1e9, 1e9)[-5:]
    assert clock_time(1e9 + 86_400 * 3, 1e9).startswith("2001-09-1")


def test_a_long_wait_takes_the_place_of_what_goes_on(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    bar, phase = activity(), Activity(what="reading headers", began=100.0)
    with holding_up("waiting for the Hub (answered 429)", 40.0):
        assert bar.line(200, 100.0, 0.0).startswith("waiting for the Hub (answered 429), 40 s  ")
        assert phase.line(200, 100.5, 0.0) == "waiting for the Hub (answered 429), 40 s ..."
        # The end of a wait, as a short one, is not worth a word.
        assert phase.line(200, 139.0, 0.0).startswith("reading headers ...")
    assert phase.line(200, 100.0, 0.0) == "reading headers ..."


class Console(io.StringIO):
    """A terminal of some columns, in an encoding."""

    encoding = "cp437"

    def isatty(self) -> bool:
        return True


def on_console(monkeypatch) -> tuple[Screen, Console]:
    """A screen on a terminal of 40 columns, and the terminal."""
    monkeypatch.setattr(progress.sys, "stderr", console := Console())
    monkeypatch.setattr(progress, "terminal_columns", lambda _: 40)
    return Screen(), console


def test_a_terminal_has_one_line_which_is_taken_away(monkeypatch):
    screen, console = on_console(monkeypatch)
    screen.begin(Activity(what="reading headers"), is_phase=True)
    screen.begin(activity("块.weight"))
    screen.tell("going on")
    screen.clear()
    rows = console.getvalue().split("\n")
    assert len(rows) == 2
    assert rows[0].endswith(f"\r{' ' * display_width(rows[0].split(chr(13))[-2])}\rgoing on")
    assert rows[1].endswith("\r")
    assert all(display_width(drawn) < 40 for row in rows for drawn in row.split("\r"))


def test_a_phase_takes_the_place_of_the_last_and_a_bar_lies_above(monkeypatch):
    screen, _ = on_console(monkeypatch)
    first, bar, second = Activity(what="a"), activity(), Activity(what="b")
    screen.begin(first, is_phase=True)
    screen.begin(bar)
    screen.begin(second, is_phase=True)
    assert screen.activities == [second, bar]
    screen.end(bar)
    assert screen.activities == [second]
    screen.end(second)
    assert screen.wake is None


def test_logs_have_lines_every_ten_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    screen, bar = Screen(), Activity(what="converting", total=10, in_bytes=False, began=100.0)
    screen.activities.append(bar)
    for _ in range(300):
        screen.show()
        now[0] += 0.1
    bar.update(10)
    screen.end(bar)
    # After two seconds, and ten and twenty later.
    assert capsys.readouterr().err == "converting  0 %  0/10\n" * 3 + "converting: done in 0:30\n"


def test_quick_things_leave_no_line_in_a_log_and_quiet_none_at_all(capsys):
    with progress_bar("converting", 100) as bar:
        bar.update(100)
    assert [*each_with_bar("comparing", iter("abc"), quiet=True)] == ["a", "b", "c"]
    progress.phase("starting", quiet=True, at_once=True)
    assert capsys.readouterr().err == ""
    progress.phase("starting: loading torch", at_once=True)
    progress.phase("converting", quiet=True)
    assert progress.SCREEN.activities == []
    assert capsys.readouterr().err == "starting: loading torch ...\n"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_what_is_no_terminal_is_none(stream):
    assert progress.terminal_columns(stream) is None


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_a_dumb_terminal_gets_lines(monkeypatch):
    host, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert progress.terminal_columns(stream) == 80
        monkeypatch.setenv("TERM", "dumb")
        assert progress.terminal_columns(stream) is None
    os.close(host)
