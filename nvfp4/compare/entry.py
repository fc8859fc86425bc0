"""Carry out a comparison: open the files, print text or data, end with the status."""

from __future__ import annotations

import argparse
import json

from nvfp4.cli.console import show, show_problems, tolerate_consoles
from nvfp4.compare.command import parse_comparison
from nvfp4.compare.describe import describe
from nvfp4.compare.pairs import compare_sides
from nvfp4.compare.render import render_one, render_two
from nvfp4.compare.sides import open_side
from nvfp4.errors import ConvertError, printable


def carry_out_comparison(options: argparse.Namespace) -> tuple[str, int]:
    """List A, or compare it with B; returns what is printed, and the exit status.

    The status is 1 where the two are not of one structure. Raises ConvertError for a file that
    cannot be read, and where --pattern chooses no layer.
    """
    side = open_side(options.a)
    if options.b is None:
        data, render, status = describe(side, options.pattern), render_one, 0
    else:
        data = compare_sides(side, open_side(options.b), options.pattern, options.values)
        render, status = render_two, int(not data["same_structure"])
    described = [data.get("a", data), data.get("b", data)]
    if options.pattern and not any(found["layers"] for found in described):
        raise ConvertError(f"--pattern {options.pattern}: matches no linear layer")
    return json.dumps(data, indent=1) if options.json else printable(render(data)), status


def compare_models(argv: list[str] | None = None) -> int:
    """Run compare_models.py with these words, or those of this process.

    Returns the exit status: 0 one structure (or A alone), 1 different, 2 unreadable, 130
    interrupted. Wrong usage exits with 2.
    """
    tolerate_consoles()
    options = parse_comparison(argv)
    try:
        text, status = carry_out_comparison(options)
    except ConvertError as error:
        show_problems(error)
        return 2
    except KeyboardInterrupt:
        return 130
    show(text)
    return status
