"""Write a conversion as the command that a person would type for it.

The command names files without their folders, and leaves out what tells of one machine alone, so
that it may be published. Typed beside the same files, it gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

from nvfp4.errors import ConvertError, one_line
from nvfp4.model import Lora
from nvfp4.options.kinds import SIZE, SWITCH
from nvfp4.options.option import Option, options_of
from nvfp4.options.table import Options
from nvfp4.virtual import VirtualPath

# What tells how and where one run was made, and nothing of the file that came of it.
OF_ONE_RUN = frozenset((
    "comfyui", "device", "dry_run", "json", "layer_config_out", "make_folder", "model_card",
    "quiet", "report", "resume", "verbose",
))  # fmt: skip


def typed_command(options: Options, program: str = "python convert_nvfp4.py") -> str:
    """Write the whole command, in one line: the program, SOURCE, OUTPUT, and the options.

    An option that follows from the others, as the dtype of a recipe does, is left out.
    """
    rows = [row for row in options_of(type(options)) if row.name not in OF_ONE_RUN]
    given = [row for row in rows if is_typed(options, row)]
    words = (word for row in given for word in typed_row(row, getattr(options, row.name)))
    return " ".join([program, *map(quoted, words)])


def is_typed(options: Options, row: Option) -> bool:
    """Tell whether an option has to be typed: it is not what it would be without."""
    value = getattr(options, row.name)
    if value == row.default:
        return False
    # SOURCE has no default, and a made OUTPUT may have been given another name since.
    if row.name in ("source", "output"):
        return True
    try:
        without = dataclasses.replace(options, **{row.name: row.default})
    except ConvertError:
        # Another option needs this one.
        return True
    return getattr(without, row.name) != value


def typed_row(row: Option, value: object) -> Iterator[str]:
    """Yield the words of one option: its flag and its value, once for each value it has."""
    if row.switches:
        yield from sorted(value)
    elif row.kind == SWITCH:
        yield row.flag
    else:
        for one in value if row.kind.repeatable else [value]:
            text = typed_size(one) if row.kind == SIZE else typed_value(one)
            # What begins with a dash would be taken for an option.
            if not row.flag.startswith("-"):
                yield f"./{text}" if text.startswith("-") else text
            elif text.startswith("-"):
                yield f"{row.flag}={text}"
            else:
                yield from (row.flag, text)


def typed_value(value: object) -> str:
    """Write a value as the command line takes it; of a file on a disk only the name."""
    if isinstance(value, Lora):
        strength = "" if value.strength == 1 else f":{value.strength!r}"
        return typed_value(value.path) + strength
    if isinstance(value, VirtualPath):
        return value.at_version()
    if isinstance(value, Path):
        # "." and ".." have no names that would tell others anything.
        return value.name if value.name.strip(".") else "FOLDER"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def typed_size(size: int) -> str:
    """Write a number of bytes with the largest unit that leaves it whole: "8GB", "7500MB"."""
    for unit, count in (("GB", 10**9), ("MB", 10**6)):
        if size % count == 0:
            return f"{size // count}{unit}"
    return str(size)


def quoted(word: str) -> str:
    """Quote a word for a shell where it needs it, without control characters."""
    return shlex.quote(one_line(word))
