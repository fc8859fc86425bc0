#!/usr/bin/env python3
"""Keep the README's tables of options what the options table says.

usage: python tools/readme_flags.py (--check | --write)

The tables stand between the README's two flag marks, in the order and with the words of `--help`.
`--check` writes nothing and exits with 1 if they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nvfp4.options import OPTIONS  # noqa: E402 - the package stands beside tools/

README = ROOT / "README.md"
BEGIN, END = "<!-- flags -->\n", "<!-- /flags -->"


def flag_tables() -> str:
    """Render a table for each group of options; SOURCE and OUTPUT are in no group."""
    groups = defaultdict(list)
    for row in OPTIONS:
        groups[row.group] += row.arguments
    lines = []
    for title, arguments in groups.items():
        if title:
            lines += [f"**{title[0].upper()}{title[1:]}**", "", "| option | |", "|---|---|"]
            for flag, kind, text in arguments:
                shown = f"{flag} {kind.shown}".strip().replace("|", "\\|")
                lines.append(f"| `{shown}` | {text} |")
            lines.append("")
    return "\n".join(lines)


def with_tables(readme: str) -> str:
    """Put the tables between the two marks of a README's text."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"error: {README.name} has no {BEGIN.strip()} ... {END}")
    return before + begin + flag_tables() + end + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="write nothing, exit 1 if they differ")
    what.add_argument("--write", action="store_true", help="write them into README.md")
    only_check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    wanted = with_tables(text)
    if only_check and wanted != text:
        command = "python tools/readme_flags.py --write"
        print(f"{README.name}: its options are not the package's; run `{command}`", file=sys.stderr)
        return 1
    if wanted != text:
        README.write_text(wanted, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
