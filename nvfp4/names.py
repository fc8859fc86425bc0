"""Tell what the names of layers say: their kind, their order, whether a list can hold them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection

from nvfp4.model import bare

# A block's number, where another part of the name follows; Cosmos has "blocks.block12.".
BLOCK_NUMBER = re.compile(r"(?:(?<=\.)|(?<=\.block))\d+(?=\.[^.])")


def kind_of(name: str) -> str:
    """Name the kind of a layer: its name without prefix, and `*` for its block's number.

    "model.diffusion_model.blocks.3.ffn.0" -> "blocks.*.ffn.0". Only the first number that another
    part of the name follows is a block's; names without such a number are returned as they are.
    """
    return BLOCK_NUMBER.sub("*", bare(name), count=1)


def natural_key(name: str) -> list[int | str]:
    """Make a key to sort names by that puts blocks.2 before blocks.10.

    Text and numbers take turns in it, text first, so that any two keys can be compared.
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def is_layer_name(word: object) -> bool:
    """Tell whether a list of layers could hold it: printable text without spaces and #.

    In such a list a # begins a comment, so a name with one would come back cut short.
    """
    return isinstance(word, str) and word.isprintable() and bool(re.fullmatch(r"[^\s#]+", word))


def block_of(name: str) -> str:
    """Name the block that a layer is in, "blocks.3" for "blocks.3.ffn.0"; "" without any.

    As for `kind_of`, only the first number that another part of the name follows is a block's.
    """
    found = BLOCK_NUMBER.search(bare(name))
    return bare(name)[: found.end()] if found else ""


def gaps(numbers: Collection[int]) -> list[int]:
    """List the numbers from 0 to the highest that are not among these, as many as these at most.

    Of a hostile number such as a billion no more gaps are told than there are numbers.
    """
    lacking = (number for number in itertools.count() if number not in numbers)
    highest = max(numbers, default=0)
    return [number for number in itertools.islice(lacking, len(numbers)) if number < highest]
