"""Say how layers are shown that are multiplied in different ways: a colour, a pattern, a label.

A row of LOOK_ROWS for each way. The colour alone never tells: the pattern does it too, for people
who see few colours and for black-and-white prints. Shades of a colour tell the error. The page and
the SVG of the precision map are made of these rows; tests compute contrasts and distances from
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Shades of a colour, from no error to the largest one of the model.
SHADES = 5


class Colours(NamedTuple):
    """Hold one look's colours on a light or on a dark page, as "#rrggbb".

    weak: the fill without an error; strong: that of the largest error, and of legends and bars;
    line: outlines and patterns, on any of the fills.
    """

    weak: str
    strong: str
    line: str

    def shade(self, step: int) -> str:
        """Mix the fill of an error, step 0 to SHADES - 1."""
        part = step / (SHADES - 1)
        pairs = zip(channels(self.weak), channels(self.strong), strict=True)
        return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)


class Tint(NamedTuple):
    """Hold a colour on a light page and on a dark one."""

    light: Colours
    dark: Colours


class Look(NamedTuple):
    """Show layers that are stored and multiplied in one way.

    label: its name in legends and cells. stored, matmul: what the report's data say of such layers;
    `matmul` is "" where it does not matter. tint: its colours. pattern: one or two keys of
    TEXTURES. says: what it is, for people.
    """

    label: str
    stored: tuple[str, ...]
    matmul: str
    tint: Tint
    pattern: str
    says: str

    @property
    def css(self) -> str:
        """Name its class on the page: a letter first, as CSS wants it."""
        return f"look-{self.label.replace(' ', '-')}"


def channels(colour: str) -> tuple[int, ...]:
    """Split "#rrggbb" into red, green and blue of 0 to 255."""
    return tuple(bytes.fromhex(colour[1:]))


# Found by a search for the largest distance (in OKLab) between the nearest two strong colours, for
# people with and without a colour deficiency.
BLUE = Tint(Colours("#e6f1fe", "#87bffe", "#1a4c7e"), Colours("#1d2f44", "#0265b6", "#abd2fe"))
VIOLET = Tint(Colours("#fbeafc", "#ca84ce", "#653568"), Colours("#39263a", "#87428b", "#ecbaef"))
GREEN = Tint(Colours("#e4f6e5", "#7cb181", "#1c5828"), Colours("#1e3420", "#345a39", "#a7deac"))
YELLOW = Tint(Colours("#f6f0da", "#e4c64f", "#594900"), Colours("#352e11", "#7d6915", "#e0ce89"))
ORANGE = Tint(Colours("#feece2", "#fb8435", "#74370c"), Colours("#402719", "#854419", "#ffbd99"))
# What is not quantised has no fill of its own, the page's cards behind it instead.
HOLLOW = Tint(Colours("#ffffff", "#ffffff", "#7d858e"), Colours("#181e26", "#181e26", "#7c858f"))
GREY = Tint(Colours("#edf0f4", "#afb6bc", "#464b51"), Colours("#2b2e32", "#565c62", "#c8ced5"))

# Formats that one look shows: what the report's data say that a layer is stored as.
W4A8_FORMS = ("W4A8", "W4A8 without codebook")
# The first row that fits a layer is its own, so that those of full-precision matmul come first.
LOOK_ROWS = (
    Look("W4A16", ("NVFP4",), "W4A16", GREEN, "corner", "4-bit weights, 16-bit inputs"),
    Look("W4A4", ("NVFP4",), "", BLUE, "plain", "4-bit weights, 4-bit inputs"),
    Look("W4A8", W4A8_FORMS, "", VIOLET, "rising", "4-bit weights, 8-bit inputs"),
    Look("W6A8", ("W6A8",), "", VIOLET, "crossed", "6-bit weights, 8-bit inputs"),
    Look("INT8 W8A16", ("INT8",), "W8A16", YELLOW, "dots corner", "8-bit weights, 16-bit inputs"),
    Look("INT8", ("INT8",), "", YELLOW, "dots", "8-bit integers"),
    Look("FP8 W8A16", ("FP8",), "W8A16", ORANGE, "level corner", "8-bit weights, 16-bit inputs"),
    Look("FP8", ("FP8",), "", ORANGE, "level", "8-bit floats"),
    Look("MXFP8", ("MXFP8",), "", ORANGE, "upright", "8-bit floats with block scales"),
    Look("16-bit", ("BF16", "F16"), "", HOLLOW, "plain", "not quantised"),
    Look("32-bit", ("F32",), "", GREY, "falling", "not quantised"),
    Look("copied", ("as it was",), "", GREY, "dash", "quantised in the source, and copied"),
)
# All looks by label.
LOOKS = {look.label: look for look in LOOK_ROWS}
# A layer that no row fits is shown by this one; its tip tells what it is.
OTHER_LOOK = Look("other", (), "", GREY, "sparse", "another format")


def look_of(stored_as: str, matmul: str = "") -> Look:
    """Find how a layer is shown: `stored_as` and `matmul` are those of the report's data."""
    fitting = (
        row for row in LOOKS.values() if stored_as in row.stored and row.matmul in ("", matmul)
    )
    return next(fitting, OTHER_LOOK)


def shade_step(error: float | None, largest: float) -> int:
    """Tell the shade of a relative error, where `largest` has the strongest.

    Without an error, as after a dry run, it is the shade in the middle.
    """
    if error is None:
        return SHADES // 2
    return round((SHADES - 1) * min(error / largest, 1)) if largest else 0


def every_look() -> Iterable[Look]:
    """List all rows, OTHER_LOOK last."""
    return (*LOOKS.values(), OTHER_LOOK)
