#!/usr/bin/env python3
"""Keep the generated parts of the documents what the code says.

usage: python tools/docs.py (--check | --write)

A part stands between two marks, `<!-- NAME -->` and `<!-- /NAME -->`: tables of docs/options.md,
docs/cards.md and docs/defects.md, the floors and files of docs/architecture.md, the list of models
of docs/models.md. `--check` writes
nothing and exits with 1 if one of them differs.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nvfp4.cards import CARDS  # noqa: E402 - the package stands beside tools/
from nvfp4.options import OPTIONS  # noqa: E402 - the package stands beside tools/
from nvfp4.tokens import RUNS  # noqa: E402
from tools.models_list import model_list  # noqa: E402
from tools.rooms import FLOORS  # noqa: E402

# What to run where the documents are stale, for the message that says so.
COMMAND = "python tools/docs.py --write"
# The units of `cards` that the table of cards shows, each in a column.
RATE_COLUMNS = ("FP4", "INT8", "FP8", "16-bit")


def flag_tables() -> str:
    """Render a table for each group of options, in the order and with the words of `--help`.

    SOURCE and OUTPUT are in no group, and in no table.
    """
    groups = defaultdict(list)
    for row in OPTIONS:
        groups[row.group] += row.arguments
    lines = []
    for title, arguments in groups.items():
        if title:
            lines += [f"**{title[0].upper()}{title[1:]}**", "", "| option | |", "|---|---|"]
            for flag, kind, text in arguments:
                # A bar between choices would end the cell.
                shown = f"{flag} {kind.shown}".strip().replace("|", "\\|")
                lines.append(f"| `{shown}` | {text} |")
            lines.append("")
    return "\n".join(lines)


def floor_table() -> str:
    """Render a row of a table for each room, the ground floor first, by `tools.rooms`.

    The number of a floor stands beside its first room.
    """
    lines = ["| floor | room | what lives there |", "|---|---|---|"]
    for number, rooms in enumerate(FLOORS, 1):
        for index, (room, what) in enumerate(rooms.items()):
            lines.append(f"| {'' if index else number} | `{room}` | {what} |")
    return "\n".join(lines) + "\n"


def file_map() -> str:
    """Render a line for each module of the package, by the first line of its docstring.

    Files are parsed, not imported, so that torch is not needed. A module without a docstring is
    left out.
    """
    lines = []
    for path in sorted((ROOT / "nvfp4").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if text:
            name = path.relative_to(ROOT).as_posix()
            lines.append(f"- `{name}`: {text.splitlines()[0]}")
    return "\n".join(lines) + "\n"


def card_table() -> str:
    """Render a row of a table for each class of cards, and below it a line with its source."""
    lines = ["| `--card` | multiplies fast | FP4 | INT8 | FP8 | 16-bit | figures of |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, card in CARDS.items():
        rates = [f"{card.rates[unit]:g}" if unit in card.rates else "-" for unit in RATE_COLUMNS]
        cells = [f"`{name}`", ", ".join(card.fast), *rates, card.model]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, card in CARDS.items():
        lines.append(f"- `{name}`: {card.title}; {card.why}. Source: [{card.source}]({card.url}).")
    return "\n".join(lines) + "\n"


def run_table() -> str:
    """Render a row of a table for each family: what it is run with, and the tokens of that."""
    lines = ["| family | typical run | tokens |", "|---|---|---|"]
    for name, run in RUNS.items():
        counts = ", ".join(f"{tokens:,} {what}" for what, tokens in run.counts.items())
        lines.append(f"| `{name}` | {run.title} | {counts} |")
    return "\n".join(lines) + "\n"


def defect_table() -> str:
    """Render a row of a table for each defect, what breaks a file most first."""
    # It imports torch, which the other parts can do without.
    from nvfp4.stored.defects import DEFECTS

    lines = ["| word | the message | what ComfyUI does | what to do |", "|---|---|---|---|"]
    for row in sorted(DEFECTS.values(), key=lambda row: -row.outcome):
        cells = (row.outcome.name, row.what, row.consequence, row.remedy)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


# What is generated: {document: {name of a part, as in its marks: what renders it}}.
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/options.md": {"flags": flag_tables},
    "docs/cards.md": {"cards": card_table, "runs": run_table},
    "docs/defects.md": {"defects": defect_table},
    "docs/models.md": {"models": model_list},
    "docs/architecture.md": {"floors": floor_table, "files": file_map},
}


def filled(name: str, text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Put each part between its marks in a document's text, and return the text.

    name: of the document, for the message. Raises SystemExit where marks are missing.
    """
    for part, render in parts.items():
        begin, end = f"<!-- {part} -->\n", f"<!-- /{part} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"error: {name} has no {begin.strip()} ... {end}")
        text = before + begin + render() + end + after
    return text


def main() -> int:
    """Check or write all documents; return 1 if a check finds one of them stale, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="write nothing, exit 1 if they differ")
    what.add_argument("--write", action="store_true", help="write the parts that differ")
    only_check = parser.parse_args().check
    stale = []
    for name, parts in PARTS.items():
        document = ROOT / name
        text = document.read_text(encoding="utf-8")
        wanted = filled(name, text, parts)
        if wanted != text:
            stale.append(name)
            if not only_check:
                # The same line breaks on Windows, so that --check does not differ by system.
                document.write_text(wanted, encoding="utf-8", newline="\n")
    if only_check and stale:
        print(f"{', '.join(stale)}: not what the code says; run `{COMMAND}`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
