"""Read the command line: a parser made of the options table, and the task that is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import MISSING

from nvfp4.cli.description import DESCRIPTION, render_presets
from nvfp4.errors import ConvertError
from nvfp4.options import (
    OPTIONS,
    Option,
    Options,
    Verification,
    __version__,
    all_options,
    contradictions,
    options_of,
)


def build_parser(rows: Iterable[Option] = OPTIONS) -> argparse.ArgumentParser:
    """Make a parser that gives {flag: value}, and None for what is not named."""
    parser = argparse.ArgumentParser(
        prog="convert_nvfp4.py",
        usage="%(prog)s SOURCE OUTPUT [options]\n       %(prog)s --verify FILE [--source SOURCE]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # else an option added later changes what a script's short form means
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    presets = {"action": "version", "version": render_presets()}
    parser.add_argument("--list-presets", **presets, help="what each preset does, and why")
    groups = {"": parser}
    for row in rows:
        if row.group not in groups:
            groups[row.group] = parser.add_argument_group(row.group)
        for flag, kind, text in row.arguments:
            how = {"dest": flag} if flag.startswith("-") else {"nargs": "?"}
            text = text.replace("%", "%%")
            groups[row.group].add_argument(flag, default=None, help=text, **how, **kind.keywords)
    return parser


def parse_options(
    argv: list[str] | None = None, conversion: type[Options] = Options
) -> Options | Verification:
    """Command line to a task; a contradiction or a missing companion option exits with 2."""
    parser = build_parser(all_options(conversion, Verification))
    named = vars(parser.parse_args(argv)).items()
    given = {flag: value for flag, value in named if value is not None}
    verify, *beside = options_of(Verification)
    task = Verification if verify.flag in given else conversion
    rows = options_of(task)
    foreign = given.keys() - {flag for row in rows for flag in row.flags}
    if foreign and task is Verification:
        *some, last = (row.flag for row in beside)
        goes = f"{', '.join(some)} and {last}"
        parser.error(f"{verify.flag} FILE goes with {goes}, without OUTPUT")
    if foreign or any(row.default is MISSING and row.flag not in given for row in rows):
        parser.error(f"give SOURCE and OUTPUT, or {verify.flag} FILE [--source SOURCE]")
    for problem in contradictions(rows, given):
        parser.error(problem)
    try:
        return task(**{row.name: row.value_in(given) for row in rows})
    except ConvertError as error:
        parser.error(error.problems[0])
