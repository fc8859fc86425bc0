"""Name formats by the words of the command line, and say which ones a conversion may choose from.

Rows of formats need torch, words do not: `Format.option` is a row's word, and `plan.choosing` finds
the row by it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import NamedTuple

from nvfp4.cards import CARDS, UNITS
from nvfp4.errors import did_you_mean
from nvfp4.options.option import GivenOptions, Other

# The word for tensors that are not quantised.
UNQUANTISED = "16bit"
# What has to be named: rotated INT8 loses less than MXFP8 at the same size, and runs on more cards;
# W6A8 needs comfy-kitchen 0.2.40, where ComfyUI 0.33 brings 0.2.31 and 0.38 brings 0.2.36.
NAMED_ALONE = {"w6a8", "mxfp8"}
DEFAULT_FORMATS = tuple(word for word in UNITS if word not in NAMED_ALONE)
# What full-precision marks turn a layer in NVFP4 into; the first one is the mark itself.
SENSITIVE_AS = ("w4a16", "w4a8", "int8")
# Formats whose activations may stay 16-bit, or have a scale in the file.
MARKED_FORMATS = {"nvfp4", "fp8"}
# Options that say how activations are quantised, which other formats leave to every call.
FOR_MARKED = re.compile(r"input-scale|full-precision-mm|w4a4-share|pre-quant-scale")
# Values of other options that mean full-precision matmul.
FOR_MARKED_VALUES = ("full_precision_mm", "w4a16")


class Recipe(NamedTuple):
    """Hold the --dtype of a recipe where none is given, and the formats that it may write.

    formats: words, first the one that takes the place of NVFP4; () where other options decide.
    """

    dtype: str
    formats: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Return the word of the least format, "" where other options decide."""
        return self.formats[0] if self.formats else ""


# Working scaled-FP8 models keep float32.
RECIPES = {
    "mixed": Recipe("bfloat16"),
    "fp8": Recipe("bfloat16", ("fp8", UNQUANTISED)),
    "scaled-fp8": Recipe("float32", ("fp8", UNQUANTISED)),
    "int8": Recipe("bfloat16", ("int8", UNQUANTISED)),
    "w4a8": Recipe("bfloat16", ("w4a8", "w6a8", "int8", UNQUANTISED)),
}
# What other options ask for, which --formats and --card have to leave.
ASKING = {
    Other("--fp4-share"): "nvfp4",
    Other("--use-fp8"): "fp8",
    Other("--use-int8"): "int8",
    **{Other("--sensitive-as", word): word for word in SENSITIVE_AS[1:]},
    Other("--sensitive-as", "w4a16"): "nvfp4",
    **{Other("--recipe", name): recipe.format for name, recipe in RECIPES.items() if recipe.format},
}


def format_words(given: str | Iterable[str]) -> tuple[str, ...]:
    """Read words of formats with commas between them, or several such texts.

    Returns each word once, in the order of UNITS: the smallest format first.
    """
    texts = [given] if isinstance(given, str) else given
    words = [word.strip().lower() for text in texts for word in str(text).split(",")]
    for word in words or [""]:
        if word not in UNITS:
            hint = did_you_mean(word, UNITS)
            raise argparse.ArgumentTypeError(f"{word!r} is none of {','.join(UNITS)}{hint}")
    return tuple(word for word in UNITS if word in words)


def formats_of_card(name: str) -> tuple[str, ...]:
    """List what --card stands for: what is fast there, without what has to be named."""
    return tuple(word for word in CARDS[name].fast if word not in NAMED_ALONE)


def leaves_enough(flag: str, value: str | tuple[str, ...], given: GivenOptions) -> str:
    """Refuse --formats or --card that leave nothing to quantise to, or lack what is asked for.

    value: a key of CARDS, or words. A card says nothing where --formats is given, too.
    """
    if flag == "--card":
        if "--formats" in given:
            return ""
        value, flag = formats_of_card(value), f"--card {value}"
    if {*value} <= {UNQUANTISED}:
        return f"{flag} leaves nothing to quantise to: name more than {UNQUANTISED}"
    for other, word in ASKING.items():
        if other.is_in(given) and word not in value:
            hint = "" if flag == "--formats" else "; give --formats to override it"
            return f"{flag} contradicts {other.text}: {word} is not in {','.join(value)}{hint}"
    return "" if MARKED_FORMATS & {*value} else without_marks(flag, given)


def recipe_takes(flag: str, recipe: str, given: GivenOptions) -> str:
    """Refuse marks and input scales beside a recipe whose format has no use for them."""
    has_marks = {RECIPES[recipe].format} <= {"", *MARKED_FORMATS}
    return "" if has_marks else without_marks(f"{flag} {recipe}", given)


def without_marks(flag: str, given: GivenOptions) -> str:
    """Refuse options about activations where all formats measure them on every call.

    flag: what left no other format, as one types it.
    """
    idle = [name for name in given if FOR_MARKED.search(name)]
    idle += [f"{name} {how}" for name, how in given.items() if how in FOR_MARKED_VALUES]
    if not idle:
        return ""
    why = "its layers take neither input scales nor full-precision matmul"
    return f"{flag} contradicts {', '.join(idle)}: {why}"
