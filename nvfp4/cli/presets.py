"""The text of `--list-presets`: a table to search, and a preset in full where one is left."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from nvfp4.errors import did_you_mean
from nvfp4.families import EIGHT_BITS, ENCODERS, GENERAL_PRESETS, ROWS, Family
from nvfp4.report.lines import MAX_WIDTH, broken, stdout_width

# What models make, in the order of the table.
MADE = ("image", "video", "audio", "3D", "text")
# What stays 16-bit in a model of which ComfyUI loads nothing else.
ALL_OF_IT = "all of it"
# The least columns of the cells that give way where a terminal is narrow, and the headings.
LEAST_CELL = 12
HEADINGS = ("preset", "models", "makes", "8-bit", "also 16-bit")
# A name of a published file is found by the whole of it where so many characters begin it.
LEAST_BEGINNING = 5

ABOUT_TABLE = (
    "The other linear layers of the blocks are NVFP4; 16-bit are the edge blocks (8-bit in text "
    "encoders) and what is outside the blocks. --list-presets WORD finds a preset by anything "
    "that is known of it, and shows one in full."
)
# Which layers outside the blocks are not settled.
OPEN_TEXT = (
    "--target-size and --target-ratio may lower layers outside the blocks that the text alone goes "
    "through; errors of the others are in every token."
)
# How --formats, --card and --sensitive-as change what rows of families say.
BY_FORMATS = (
    "8-bit is INT8, or FP8 where --formats has no int8; NVFP4 is W4A8 or the next larger one where "
    "--formats or --card has no nvfp4.",
    "W4A8 is INT8 where --formats has no w4a8, else NVFP4 with 16-bit matmul (W4A16), as with "
    "--sensitive-as w4a16.",
)


def render_presets(words: Sequence[str] = ()) -> str:
    """Write what `--list-presets` prints: all presets, or those that every one of some words fits.

    Where one is left, or is called so, it is shown in full. Returns the text without a line break
    at its end; sentences are broken to the width of a terminal, and the table fits a page.
    """
    width = stdout_width()
    found = {name: row for name, row in ROWS.items() if fits(words, name, row)}
    called = "-".join(words).lower()
    names = [name for name in found if plain(name) == plain(called)] or [*found]
    chosen = names[0] if len(names) == 1 else ""
    if chosen:
        lines = in_full(chosen, ROWS[chosen])
        others = [name for name in found if name != chosen]
        lines += [f"See also: {', '.join(others)}"] if others else []
    elif found:
        lines = preset_table(found, width or MAX_WIDTH)
        general = [f"{name}: {text}" for name, text in GENERAL_PRESETS.items()]
        lines += ["", "for any model", *general] if not words else []
        lines += ["", ABOUT_TABLE]
    elif called in GENERAL_PRESETS:
        lines = [f"{called}: {GENERAL_PRESETS[called]}"]
    else:
        hint = did_you_mean(called, [*ROWS, *GENERAL_PRESETS])
        lines = [
            f"no preset is for {' '.join(words)}{hint}",
            "--preset smart takes any model by its structure; all presets: --list-presets",
        ]
    return "\n".join(itertools.chain(*(broken(line, width) or [""] for line in lines)))


def plain(text: str) -> str:
    """Reduce a text to what a search compares: letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def fits(words: Iterable[str], name: str, row: Family) -> bool:
    """Tell whether each word is in something that is known of a preset.

    A file's name is found by the beginnings of published names, too.
    """
    what = ("text encoder",) if name in ENCODERS else ()
    texts = (name, row.title, *kinds(name, row), *row.known_as, *row.makes, *what)
    known = [plain(text) for text in texts]

    def is_in(word: str) -> bool:
        return any(
            word in text or (len(text) >= LEAST_BEGINNING and word.startswith(text))
            for text in known
        )

    return all(is_in(plain(word)) for word in words)


def kinds(name: str, row: Family) -> list[str]:
    """List the variants of a family's models, or the sizes of a text encoder."""
    sizes = ENCODERS[name].sizes if name in ENCODERS else ()
    return [*row.variants, *dict.fromkeys(size.title for size in sizes)]


def is_half_only(name: str) -> bool:
    """Tell whether a row is no preset: a text encoder that ComfyUI loads in 16 bits alone."""
    return name in ENCODERS and ENCODERS[name].half_only


def preset_table(rows: dict[str, Family], width: int) -> list[str]:
    """Lay presets out, one on a line: by what they make, then by name."""

    def place(one: tuple[str, Family]) -> tuple[int, str]:
        return MADE.index(one[1].makes[0]), one[0]

    cells = [
        [
            [name],
            [row.title, *kinds(name, row)],
            [*row.makes],
            kept(row, EIGHT_BITS) or ["-"],
            [ALL_OF_IT] if is_half_only(name) else kept(row, "16-bit") or ["-"],
        ]
        for name, row in sorted(rows.items(), key=place)
    ]
    widths = column_widths(cells, width)
    lines = [HEADINGS, *([*map(as_many_as_fit, line, widths)] for line in cells)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def column_widths(cells: list[list[list[str]]], width: int) -> list[int]:
    """Give each column what it needs; where that is more than the line, the widest give way."""
    columns = zip(HEADINGS, zip(*cells, strict=True), strict=True)
    widths = [
        max(len(heading), *(len(", ".join(cell)) for cell in column)) for heading, column in columns
    ]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        # Names of presets are typed, and stay whole.
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        if widths[widest] <= LEAST_CELL:
            break
        widths[widest] -= 1
    return widths


def as_many_as_fit(items: list[str], width: int) -> str:
    """Join items by commas; of those that do not fit into `width` their number is told."""
    for count in range(len(items), 0, -1):
        rest = f" +{len(items) - count}" if count < len(items) else ""
        text = ", ".join(items[:count]) + rest
        if len(text) <= width:
            return text
    return f"{items[0][: width - 2]}.."


def kept(row: Family, precision: str) -> list[str]:
    """Name in a few words what a preset keeps in a precision."""
    return list(dict.fromkeys(keep.what for keep in row.keeps if keep.precision == precision))


def in_full(name: str, row: Family) -> list[str]:
    """Write all that a preset does, with a line for each choice and its reason in brackets."""
    # Blocks of several names run one after another, as double_blocks.N then single_blocks.N.
    runs = " then ".join(f"{block}.N" for block in itertools.chain(*row.blocks))
    several = f"{row.edge_blocks} blocks" if row.edge_blocks > 1 else "block"
    ends = f"the first and last {several}" if row.edge_blocks else ""
    lines = [f"{name}: {row.title}, in {runs}; makes {' and '.join(row.makes)}"]
    lines += [f"  variants: {', '.join(kinds(name, row))}"] if kinds(name, row) else []
    lines += [f"  known as: {', '.join(row.known_as)}"] if row.known_as else []
    if is_half_only(name):
        return [*lines, "  ComfyUI loads no quantised layer of it: it stays as it is"]
    lines += ["  16-bit  what is outside the blocks"]
    lines += [f"  {row.edges:7} {ends}"] if ends else []
    if name in ENCODERS:
        lines += [f"  {ENCODERS[name].embeddings:7} token embeddings"]
    lines += [f"  {keep.precision:7} {keep.layers}  ({keep.why})" for keep in row.keeps]
    lines += ["  NVFP4   the other linear layers of the blocks"]
    if row.full_precision:
        lines += [f"  W4A8    {row.full_precision}  (of what else is NVFP4)"]
    return [*lines, "", OPEN_TEXT, *BY_FORMATS]
