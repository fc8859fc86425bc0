"""Read the command line of the comparison.

Nothing here imports torch or numpy, so that --help and --version answer at once. Wrong usage is
refused here, too, before torch takes seconds to load. `entry` carries out what was read.
"""

from __future__ import annotations

import argparse

from nvfp4.cli.arguments import ArgumentReader
from nvfp4.options.kinds import FILE, pattern

# The exit statuses are promised here to scripts; `compare_models` returns them.
COMPARE_DESCRIPTION = """\
Compare two checkpoints, or list one, and say what ComfyUI will do with each.

A and B are .safetensors files, *.safetensors.index.json, folders with one of these, or GGUFs.
Nothing but headers and configurations is read, so that 57 GB take a few seconds; --values decodes
both sides and measures every layer. The verdict comes first, then what differs, then tables.

Exit status: 0 done, 1 a file that cannot be read, 2 wrong usage. With --exit-code, also 1 where A
and B are not of one structure, or where A alone has a defect that ComfyUI shows.
"""


def compare_parser() -> ArgumentReader:
    """Make the parser of compare_models.py.

    A is the only argument that must be given. Without the options it has b None, pattern "" and
    all switches False. A pattern that is no regular expression is wrong usage, and so is an option
    that is abbreviated.
    """
    parser = ArgumentReader(
        "compare_models.py", COMPARE_DESCRIPTION, usage="%(prog)s A [B] [options]"
    )
    parser.add_argument("a", metavar="A", type=FILE.accept, help="the file to list or compare with")
    parser.add_argument("b", metavar="B", type=FILE.accept, nargs="?", help="the other file")
    parser.add_argument("--values", action="store_true", help="decode both and measure B against A")
    parser.add_argument("--pattern", metavar="REGEX", default="", type=pattern,
                        help="list and compare only the layers whose names match")  # fmt: skip
    parser.add_argument("--layers", action="store_true",
                        help="with A alone: list all linear layers, as --pattern does")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    parser.add_argument("--exit-code", action="store_true",
                        help="end with 1 for differences, or for defects of A alone")  # fmt: skip
    return parser


def parse_comparison(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line into a namespace.

    argv: the words, or those of this process where it is None.

    Returns a (Path), b (Path or None), pattern (str, "" where every layer counts), and values,
    layers, json and exit_code (bool). Exits with 0 after --help and --version, and with 2 for wrong
    usage, of which --values without B is a case: there is nothing to measure A against.
    """
    parser = compare_parser()
    options = parser.parse_args(argv)
    # The converter has a command for one file against its source, so the message leads there.
    if options.values and options.b is None:
        parser.error("--values needs B, or see convert_nvfp4.py --verify A --source SOURCE")
    return options
