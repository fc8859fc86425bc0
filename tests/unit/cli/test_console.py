"""Colours: of ranks, on terminals alone; and a stdout that takes no result."""

import errno
import io
import os
import sys

import pytest

from nvfp4.cli.arguments import ArgumentReader
from nvfp4.cli.console import coloured, show, show_problems, tolerate_consoles
from nvfp4.errors import ConvertError
from nvfp4.report.lines import stdout_width

TEXT = "written\nwarning: a\nnote: b, error: c\nhint: d\n  note: e"
SHOWN = (
    "written\n\x1b[1;33mwarning:\x1b[0m a\n\x1b[36mnote:\x1b[0m b, error: c\n"
    "\x1b[32mhint:\x1b[0m d\n  note: e"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def _understood(monkeypatch):
    monkeypatch.setattr("nvfp4.cli.console.os.name", "posix")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("_understood")
def test_ranks_at_the_beginning_of_lines_are_coloured(monkeypatch):
    assert coloured(TEXT, Terminal()) == SHOWN
    monkeypatch.setattr("sys.stdout", out := Terminal())
    show(TEXT)
    assert out.getvalue() == f"{SHOWN}\n"
    monkeypatch.setattr("sys.stderr", problems := Terminal())
    show_problems(ConvertError("a", "note: b"))
    assert problems.getvalue() == "\x1b[1;31merror:\x1b[0m a\n\x1b[1;31merror:\x1b[0m note: b\n"


@pytest.mark.usefixtures("_understood")
def test_wrong_options_are_coloured_as_well(monkeypatch):
    monkeypatch.setattr("sys.stderr", problems := Terminal())
    with pytest.raises(SystemExit):
        ArgumentReader("convert_nvfp4.py", "").parse_args(["--what"])
    assert "\x1b" in problems.getvalue()
    assert "convert_nvfp4.py: \x1b[1;31merror:\x1b[0m unrecognized" in problems.getvalue()


@pytest.mark.usefixtures("_understood")
@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    assert coloured(TEXT, Terminal()) == TEXT


def test_closed_streams_lead_nowhere(monkeypatch):
    """As of a service, or `>&-`: Python has None in their place."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert stdout_width() is None
    tolerate_consoles()
    assert stdout_width() is None
    show("a result")
    show_problems(ConvertError("a problem"))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


@pytest.mark.usefixtures("_understood")
def test_pipes_have_no_colours():
    assert coloured(TEXT, io.StringIO()) == TEXT


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        show(TEXT)
        show(TEXT)


def test_a_result_that_cannot_be_written_is_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "log").touch()
    with os.fdopen(os.open(tmp_path / "log", os.O_RDONLY), "w") as out:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            with pytest.raises(SystemExit) as stop:
                show(TEXT)
        assert stop.value.code == 1
    told = f"error: stdout: cannot write the result: {os.strerror(errno.EBADF)}\n"
    assert capsys.readouterr().err == told
