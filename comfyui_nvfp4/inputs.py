"""Hold what a node is given to what its inputs say, whichever way it came.

ComfyUI does so for what is typed or chosen on the node. What comes by a link it takes as it is: a
text that is on no list, a number beyond the bounds, or, through nodes that pass on any value,
something else altogether.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What values of ComfyUI's types are; a list's choices are texts.
TYPES = {"STRING": str, "BOOLEAN": bool, "INT": int, "FLOAT": (int, float)}
# So many choices are told where a value is none of them, and of a value so many characters.
TOLD, LONGEST_VALUE = 8, 80
# What no system takes in the name of a file or folder, and names that Windows takes for devices,
# whatever their suffix.
NOT_IN_NAMES = re.compile(r"[<>:\"/\\|?*\x00-\x1f]")
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.I)


class NodeError(Exception):
    """Say in one line what is wrong, as ComfyUI shows it on the node."""


def hold(inputs: Iterable, values: dict[str, object]) -> None:
    """Raise NodeError for the first value that its input would not let anybody choose or type.

    inputs: rows of a node's schema; values: {id: value}. Of optional inputs the value may be None;
    inputs of other types, as MODEL, are left to ComfyUI.
    """
    for one in inputs:
        if one.id not in values or (one.optional and values[one.id] is None):
            continue
        if problem := what_is_wrong(one, values[one.id]):
            raise NodeError(f"{one.id}: {told(values[one.id])} {problem}")


def what_is_wrong(one: object, value: object) -> str:
    """End the sentence on a value that an input does not take; "" for one that it takes."""
    choices = getattr(one, "options", None)
    if choices is not None:
        few = f": {', '.join(choices)}" if len(choices) <= TOLD else ""
        is_one = isinstance(value, str) and value in choices
        return "" if is_one else f"is none of its choices{few}"
    kind = one.get_io_type()
    if kind not in TYPES:
        return ""
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        return f"is no {kind}"
    if kind in ("INT", "FLOAT") and not one.min <= value <= one.max:
        return f"is not from {one.min} to {one.max}"
    return ""


def told(value: object) -> str:
    """Write a value for an error: in one line, and not all of a long one."""
    is_readable = isinstance(value, str) and value.isprintable() and value.strip()
    text = value if is_readable else " ".join(repr(value).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def is_plain(name: str) -> bool:
    """Tell whether every system makes a file or folder of just this name, and shows it."""
    is_whole = name.strip(" ") == name and not name.startswith(".") and not name.endswith(".")
    return bool(name) and is_whole and not NOT_IN_NAMES.search(name) and not DEVICES.fullmatch(name)


def fit_for_file(text: str) -> str:
    """Make a text that others wrote, as a workflow's names of LoRAs, fit to be part of a name."""
    return NOT_IN_NAMES.sub("_", text).lstrip(". ")
