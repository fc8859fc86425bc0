"""Parse the command lines of all programs in one way."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from nvfp4.errors import DASHES, did_you_mean
from nvfp4.options import __version__


class ArgumentReader(argparse.ArgumentParser):
    """Read a command line: --version, no abbreviations, and what an unknown option may stand for.

    An option that is added later would change what a script's short form means. The description is
    printed as it is.
    """

    def __init__(self, prog: str, description: str, **facts: object):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **facts,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Read the words, or those of the process; unknown ones are told, and end it with 2."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return found

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Print one line on the words that nothing takes, and exit with 2."""
        known = [flag for action in self._actions for flag in action.option_strings]
        words = [word.partition("=")[0] for word in unknown if word.startswith(tuple(DASHES))]
        hints = dict.fromkeys(did_you_mean(word, known) for word in words)
        self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
