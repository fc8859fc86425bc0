"""Read the command line: a parser made of the options table.

The result is a task: an Options to convert by, or a Verification. This module and all that it
imports do without torch and numpy, so that `--help`, `--version` and mistakes are answered at once;
a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING

from nvfp4.cli.arguments import ArgumentReader
from nvfp4.cli.description import DESCRIPTION, render_presets
from nvfp4.errors import ConvertError
from nvfp4.options import (
    OPTIONS,
    Option,
    Options,
    Verification,
    all_options,
    contradictions,
    options_of,
)


def build_parser(rows: Iterable[Option] = OPTIONS) -> ArgumentReader:
    """Make a parser that gives {flag: value}, and None for what is not named.

    Defaults are not argparse's business: what was named has to be known, as some options exclude or
    need others. Rows come in groups by their headings; SOURCE and OUTPUT may be missing here, as
    `--verify` goes without.
    """
    parser = ArgumentReader(
        "convert_nvfp4.py",
        DESCRIPTION,
        usage="%(prog)s SOURCE OUTPUT [options]\n       %(prog)s --verify FILE [--source SOURCE]",
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
            how = {"dest": flag} if flag.startswith("-") else {"nargs": "?"}
            # argparse formats help texts with %.
            text = text.replace("%", "%%")
            groups[row.group].add_argument(flag, default=None, help=text, **how, **kind.keywords)
    return parser


def parse_options(
    argv: list[str] | None = None, conversion: type[Options] = Options
) -> Options | Verification:
    """Make a task of the command line.

    argv: the arguments without the program's name; those of the process if None.
    conversion: the class of a conversion's options, which a test may extend by rows.

    Returns an instance of it, or a Verification. A wrong value, a contradiction or a missing
    companion option prints one line and exits with 2.
    """
    parser = build_parser(all_options(conversion, Verification))
    named = vars(parser.parse_args(argv)).items()
    given = {flag: value for flag, value in named if value is not None}
    # The first row of a Verification is --verify itself; the others go with it.
    verify, *beside = options_of(Verification)
    task = Verification if verify.flag in given else conversion
    rows = options_of(task)
    # Flags of the other task, or SOURCE and OUTPUT beside --verify.
    foreign = given.keys() - {flag for row in rows for flag in row.flags}
    if foreign and task is Verification:
        *some, last = (row.flag for row in beside)
        goes = f"{', '.join(some)} and {last}"
        parser.error(f"{verify.flag} FILE goes with {goes}, without OUTPUT")
    if foreign or any(row.default is MISSING and row.flag not in given for row in rows):
        parser.error(f"give SOURCE and OUTPUT, or {verify.flag} FILE [--source SOURCE]")
    # Contradictions are looked for by what was named; the task itself can only see what differs
    # from the defaults.
    for problem in contradictions(rows, given):
        parser.error(problem)
    try:
        return task(**{row.name: row.value_in(given) for row in rows})
    except ConvertError as error:
        parser.error(error.problems[0])
