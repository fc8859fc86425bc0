"""Parse the command lines of all programs in one way."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, TextIO

from nvfp4.cli.console import coloured, show
from nvfp4.errors import DASHES, did_you_mean
from nvfp4.options import __version__

# The commands of an installed package, by the scripts that do the same in a checkout.
INSTALLED_COMMANDS = {
    "convert_nvfp4.py": "convert-nvfp4",
    "compare_models.py": "nvfp4-compare",
    "analyze_input_scale_log.py": "nvfp4-analyze",
}


# Where parsers of this thread write; None for the process's own streams.
TELLING: ContextVar[TextIO | None] = ContextVar("TELLING", default=None)


@contextlib.contextmanager
def telling(stream: TextIO) -> Iterator[None]:
    """Have parsers write into a stream in the `with` block, for programs that parse in a thread.

    They still end with SystemExit. Other threads go on printing, which contextlib's redirection of
    the whole process would take from them.
    """
    token = TELLING.set(stream)
    try:
        yield
    finally:
        TELLING.reset(token)


def called_as(script: str) -> str:
    """Name a program as it was started: by its installed command, else by its script."""
    command = INSTALLED_COMMANDS[script]
    return command if Path(sys.argv[0]).stem == command else script


def called_beside(script: str) -> str:
    """Name another program of this package in the way in which this one was started."""
    installed = Path(sys.argv[0]).stem in INSTALLED_COMMANDS.values()
    return INSTALLED_COMMANDS[script] if installed else f"python {script}"


class PrintAndExit(argparse.Action):
    """Print a text, which is made only where it is asked for, and end the process with 0.

    render: makes it of the words behind the option, which it takes where it has a metavar.
    """

    def __init__(self, render: Callable[[Sequence[str]], str], metavar: str = "", **facts: object):
        nargs = "*" if metavar else 0
        super().__init__(nargs=nargs, metavar=metavar, default=argparse.SUPPRESS, **facts)
        self.render = render

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, words: Sequence[str], *_: object
    ) -> NoReturn:
        """Do so: argparse calls this where the option stands."""
        parser.tell(self.render(words))
        parser.exit()


class ArgumentReader(argparse.ArgumentParser):
    """Read a command line: --version, no abbreviations, and what an unknown option may stand for.

    script: the program's script in a checkout, a key of INSTALLED_COMMANDS. The description is
    printed as it is. An option that is added later would change what a script's short form means.
    short_help: what `-h` prints; "" for all that `--help` does. hints: {an option that people try:
    what to do instead}.
    """

    def __init__(
        self,
        script: str,
        description: str,
        short_help: str = "",
        hints: Mapping[str, str] = MappingProxyType({}),
        **facts: object,
    ):
        super().__init__(
            prog=called_as(script),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=not short_help,
            **facts,
        )
        self.hints = hints
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

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, behind the usage only where nothing was given, and exit with 2."""
        if len(sys.argv) == 1:
            self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process; the message of an error begins as those of all errors do."""
        name, error, rest = (message or "").partition("error: ")
        stream = TELLING.get() or sys.stderr
        super().exit(status, f"{name}{coloured(error + rest, stream)}" or None)

    def tell(self, text: str) -> None:
        """Print a text that was asked for."""
        if stream := TELLING.get():
            stream.write(text)
        else:
            show(text)

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        """Print what argparse has to say: all of it comes through here."""
        super()._print_message(message, TELLING.get() or file)

    def refuse_all(self, problems: Sequence[str], end: str = "") -> NoReturn:
        """Print the usage and a line for each problem, and exit with 2. end: of every line."""
        self.error("\nerror: ".join(problem + end for problem in problems))

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Print one line on the words that nothing takes, and exit with 2."""
        known = [flag for action in self._actions for flag in action.option_strings]
        words = [word.partition("=")[0] for word in unknown if word.startswith(tuple(DASHES))]
        hints = dict.fromkeys(self.hints.get(word) or did_you_mean(word, known) for word in words)
        if not words:
            # A path with a space that was not quoted comes as several words.
            hints = [f"; see {self.prog} -h; a path with spaces needs quotes"]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
