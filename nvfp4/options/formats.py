"""Name formats by the words of the command line, and say which ones a conversion may choose from.

Rows of formats need torch, words do not: `Format.option` is a row's word, and `plan.choosing` finds
the row by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from nvfp4.cards import CARDS, UNITS
from nvfp4.errors import did_you_mean
from nvfp4.options.option import GivenOptions, Other

# The word for tensors that are not quantised.
UNQUANTISED = "16bit"
# MXFP8 has to be named: rotated INT8 loses less at the same size, and runs on more cards.
DEFAULT_FORMATS = tuple(word for word in UNITS if word != "mxfp8")
# Options that ask for a format, which --formats and --card have to leave.
ASKING = {Other("--use-fp8"): "fp8"}


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


def leaves_enough(flag: str, value: str | tuple[str, ...], given: GivenOptions) -> str:
    """Refuse --formats or --card that leave nothing to quantise to, or lack what is asked for.

    value: a key of CARDS, or words. A card says nothing where --formats is given, too.
    """
    if flag == "--card":
        if "--formats" in given:
            return ""
        value, flag = CARDS[value].fast, f"--card {value}"
    if {*value} <= {UNQUANTISED}:
        return f"{flag} leaves nothing to quantise to: name more than {UNQUANTISED}"
    for other, word in ASKING.items():
        if other.is_in(given) and word not in value:
            hint = "" if flag == "--formats" else "; --formats goes before the card's"
            return f"{flag} contradicts {other.text}: {word} is not in {','.join(value)}{hint}"
    return ""
