"""Carry out a comparison: open files, print, return the exit status.

The command line was read by `command`; the files are opened by `sides`. What is found is data
first, which is printed as JSON, or as the text that `render` makes of it.
"""

from __future__ import annotations

import argparse
import json

from nvfp4.cli.console import show, show_problems, tolerate_consoles
from nvfp4.compare.command import parse_comparison
from nvfp4.compare.describe import describe
from nvfp4.compare.pairs import compare_sides
from nvfp4.compare.render import render_one, render_two
from nvfp4.compare.sides import open_side
from nvfp4.compare.tables import terminal_width
from nvfp4.errors import ConvertError, printable
from nvfp4.stored.defects import Outcome


def carry_out_comparison(options: argparse.Namespace) -> tuple[str, int]:
    """List A, or compare it with B.

    options: as `parse_comparison` returns them.

    Returns what is to be printed, and the exit status: 0, or with --exit-code 1 where the two files
    are not of one structure, and where A alone has a defect. Raises ConvertError for a file that
    cannot be read, and where --pattern chooses no layer of either file.
    """
    side = open_side(options.a)
    if options.b is None:
        data = describe(side, options.pattern)
        is_good = data["verdict"]["outcome"] in (None, Outcome.LOADS.name)
    else:
        data = compare_sides(side, open_side(options.b), options.pattern, options.values)
        is_good = data["same_structure"]
    status = int(options.exit_code and not is_good)
    # The data of one file has no sides: then it stands for both.
    described = [data.get("a", data), data.get("b", data)]
    if options.pattern and not any(found["layers"] for found in described):
        raise ConvertError(f"--pattern {options.pattern}: matches no linear layer")
    # json.dumps escapes control characters itself. In text they are escaped here, as names from a
    # file could otherwise clear or rewrite the terminal.
    if options.json:
        return json.dumps(data, indent=1), status
    if options.b is None:
        every_layer = bool(options.layers or options.pattern)
        return printable(render_one(data, terminal_width(), every_layer=every_layer)), status
    return printable(render_two(data, terminal_width())), status


def compare_models(argv: list[str] | None = None) -> int:
    """Run compare_models.py with these words, or with those of this process.

    Problems are printed on stderr, a line each, without a traceback. Returns the exit status: 0
    where all went well, 1 for what cannot be read and with --exit-code for what differs, and 130
    after Ctrl-C. Wrong usage does not return: it exits with 2.
    """
    tolerate_consoles()
    options = parse_comparison(argv)
    try:
        text, status = carry_out_comparison(options)
    except ConvertError as error:
        show_problems(error)
        return 1
    # 128 + SIGINT, as shells report it.
    except KeyboardInterrupt:
        return 130
    show(text)
    return status
