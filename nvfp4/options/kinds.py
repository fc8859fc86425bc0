"""What values an option takes: how a text is read, what a value given in Python must be.

Each reader takes the text of the command line, or a value that a program gives to `Options`, and
returns the option's value. It raises argparse.ArgumentTypeError with what is wrong; a ValueError or
TypeError of Python itself becomes "invalid ... value", as argparse says it.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from nvfp4.dtypes import FLOAT32_MAX
from nvfp4.files import exists
from nvfp4.model import Lora, compiled

# The folder of calib/ and sensitive_layers/: the checkout, or where the single file lies.
HERE = Path(__file__).resolve().parents[__name__.count(".")]


def input_path(given: str | Path) -> Path:
    """Make a path of a text; Windows separators work elsewhere too, so batch lines can be shared.

    What is a path already is taken as it is.
    """
    path = Path(given)
    if exists(path) or os.name == "nt" or not isinstance(given, str):
        return path
    return Path(given.replace("\\", "/"))


def shipped_path(given: str | Path, folder: str) -> Path:
    """Find a file as given or, if there is none, of that name in a folder beside this script."""
    path = input_path(given)
    shipped = HERE / folder / path
    if exists(path) or not isinstance(given, str):
        return path
    if exists(shipped):
        return shipped
    kind = {"calib": "*.json", "sensitive_layers": "*.txt"}[folder]
    there = ", ".join(sorted(file.name for file in (HERE / folder).glob(kind)))
    raise argparse.ArgumentTypeError(f"no file {given}, neither as given nor in {folder}/: {there}")


def pattern(text: str) -> str:
    """Check a regular expression."""
    if not isinstance(text, str):
        raise TypeError
    try:
        compiled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a regular expression: {error}"
        ) from error
    return text


def device_name(text: str) -> str:
    """Check the name of a device; whether there is one, torch is asked later."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def positive_float(given: str | float) -> float:
    """Read a finite number above 0."""
    value = float(given)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{given} is not a positive number")
    return value


def fraction(given: str | float) -> float:
    """Read a share: above 0, and at most 1."""
    number = positive_float(given)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{given} is no share: 1 is all")
    return number


def margin(given: str | float) -> float:
    """Read a factor that only makes larger."""
    value = float(given)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{given} is no margin: less than 1 would clip what was seen"
        )
    return value


def lora_file(given: str | Path | tuple[str | Path, float]) -> Lora:
    """Read FILE[:STRENGTH]; without a strength, it is 1.

    A colon that no number follows is the file's, as in C:\\x.safetensors. A path, or a pair of path
    and strength such as a Lora, is taken as it is.
    """
    if isinstance(given, str):
        number = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
        found = re.fullmatch(rf"(.+?)(?::({number}))?", given, re.DOTALL)
        file, strength = (found[1], float(found[2] or 1)) if found else ("", 0.0)
    else:
        file, strength = (given, 1.0) if isinstance(given, Path) else given
    if not 0 < abs(strength) < FLOAT32_MAX:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not FILE or FILE:STRENGTH, a number other than 0"
        )
    return Lora(input_path(file), strength)


def natural(given: str | int) -> int:
    """Read a number of blocks: 0 or more, of up to six digits."""
    if not re.fullmatch(r"\d{1,6}", str(given)):
        raise argparse.ArgumentTypeError(f"{given!r} is no number of blocks")
    return int(given)


def size_in_bytes(given: str | int) -> int:
    """Read 5GB, 500 MB, 4GiB or a plain number of bytes."""
    found = re.fullmatch(
        r"(\d{1,18}(?:\.\d{1,9})?) ?(?:([KMGT])(i?)B?|B)?", str(given), re.IGNORECASE
    )
    size = 0
    if found:
        number, unit, binary = found.groups()
        power = " KMGT".index((unit or " ").upper())
        size = int(float(number) * (1024 if binary else 1000) ** power)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no size like 5GB, 500MB or 4GiB")
    return size


def on_or_off(given: bool) -> bool:
    """Check a switch's value; the command line has no text for it."""
    if given not in (True, False):
        raise argparse.ArgumentTypeError(f"{given!r} is not True or False")
    return bool(given)


class Kind(NamedTuple):
    """The values that an option takes, and how `--help` writes them."""

    read: Callable[..., object] = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    repeatable: bool = False

    @property
    def keywords(self) -> dict[str, object]:
        """What argparse's add_argument() is told."""
        if self.read is on_or_off:
            return {"action": "store_true"}
        known = {"action": "append"} if self.repeatable else {}
        known |= {"choices": self.choices} if self.choices else {"type": self.read}
        return known | ({"metavar": self.metavar} if self.metavar else {})

    @property
    def shown(self) -> str:
        """What stands behind the option in a list of options."""
        return self.metavar or "|".join(self.choices)

    def accept(self, given: object) -> object:
        """Check a value that a program gives; raises argparse.ArgumentTypeError.

        Text is read as the command line's is. Of a repeatable option, one alone is welcome, too.
        """
        if self.repeatable:
            one = Kind(self.read, self.metavar, self.choices)
            several = isinstance(given, Iterable) and not isinstance(given, str | Lora)
            return tuple(map(one.accept, given if several else [given]))
        if self.choices and given not in self.choices:
            known = ", ".join(map(repr, self.choices))
            raise argparse.ArgumentTypeError(f"invalid choice: {given!r} (choose from {known})")
        try:
            value = self.read(given)
            if isinstance(given, Real) and value != given:  # as int() of 4.5
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            name = getattr(self.read, "__name__", repr(self.read))
            raise argparse.ArgumentTypeError(f"invalid {name} value: {given!r}") from error
        return value


SWITCH = Kind(on_or_off)
FILE = Kind(input_path, "FILE")
SUMMARY = Kind(partial(shipped_path, folder="calib"), "FILE")
LAYER_LIST = Kind(partial(shipped_path, folder="sensitive_layers"), "FILE")
REGEXES = Kind(pattern, "REGEX", repeatable=True)
NATURAL = Kind(natural, "N")
SIZE = Kind(size_in_bytes, "SIZE")
SHARE = Kind(fraction, "SHARE")
