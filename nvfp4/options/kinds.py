"""Values of options: how texts are read, what Python may give.

Each reader takes the text of the command line, or a value that a program gives to `Options`, and
returns the option's value. It raises argparse.ArgumentTypeError with what is wrong.
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
from nvfp4.errors import did_you_mean
from nvfp4.files import exists
from nvfp4.hub.address import hub_path_of
from nvfp4.hub.path import HubPath
from nvfp4.model import Lora, compiled
from nvfp4.requirements import HERE
from nvfp4.virtual import VirtualPath, virtual_path

# What is fetched over a network: nothing is unless such a path is given.
REMOTE = HubPath.scheme
# What people copy from a browser.
WEB_ADDRESS = re.compile(r"https?:/+", re.IGNORECASE)


def input_path(given: str | Path) -> Path:
    """Make a path of a text; a leading ~ or ~user is the home folder.

    Windows separators work elsewhere too, so that batch lines can be shared: backslashes become
    slashes if there is no file of the name as given. In what is a path already, only the ~ is
    replaced. The file need not exist, and nothing of a virtual one is looked up.
    """
    if not isinstance(given, str | os.PathLike):
        raise argparse.ArgumentTypeError(f"{given!r} is no path")
    try:
        if virtual := virtual_path(given):
            return virtual
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None
    if isinstance(given, str) and WEB_ADDRESS.match(given):
        hint = hub_path_of(given)
        hint = f"give {hint}" if hint else "a file on the Hugging Face Hub is hf://owner/repo/path"
        raise argparse.ArgumentTypeError(f"{given} is an address of the web; {hint}")
    # Path("") is the folder one is in, which would be taken for SOURCE.
    if given == "":
        raise argparse.ArgumentTypeError("the path is empty; is a variable not set?")
    if "\0" in str(given):
        raise ValueError("no file has a null character in its name")
    path = Path(given)
    if exists(path):
        return path
    if os.name != "nt" and isinstance(given, str):
        path = Path(given.replace("\\", "/"))
    try:
        # Shells leave the ~ of "--gguf=~/x" and of quoted texts, and Python leaves all.
        return path.expanduser()
    except RuntimeError:
        # No such user, or no home: opening the path as it is will tell.
        return path


def local_path(given: str | Path) -> Path:
    """Make a path of a text as `input_path` does, and refuse a virtual one."""
    path = input_path(given)
    if isinstance(path, VirtualPath):
        raise argparse.ArgumentTypeError(f"{path}: has to be on a disk of this machine")
    return path


def shipped_path(given: str | Path, folder: str) -> Path:
    """Find a file as given or, if there is none, of that name in a folder beside this script.

    folder: "calib", "sensitive_layers" or "recipes", whose files come with the program; it may be
    part of the name. Returns the path that exists; the error lists what the folder has. A Path that
    a program gives may name none: reading it will tell.
    """
    # As given comes first: a file of one's own may have the name of one that is shipped.
    path = input_path(given)
    if isinstance(path, VirtualPath):
        return path
    for found in (path, HERE / folder / path, HERE / path):
        if exists(found):
            return found
    if not isinstance(given, str):
        return path
    # calib/ has other files, too: name only such as the option takes.
    kind = {"calib": "*.json", "sensitive_layers": "*.txt", "recipes": "*.toml"}[folder]
    if not (HERE / folder).is_dir():
        alone = f"there is no {folder}/ beside this script to look in; give its path"
        raise argparse.ArgumentTypeError(f"no file {given}: {alone}")
    there = sorted(file.name for file in (HERE / folder).glob(kind))
    where = f"neither as given nor in {folder}/: {', '.join(there)}"
    hint = did_you_mean(path.name, there)
    raise argparse.ArgumentTypeError(f"no file {given}, {where}{hint}")


def pattern(text: str) -> str:
    """Check a regular expression, and return its text; it is searched for in layers' names."""
    if not isinstance(text, str):
        raise argparse.ArgumentTypeError(f"{text!r} is no text")
    try:
        compiled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a regular expression: {error}"
        ) from error
    return text


def device_name(text: str) -> str:
    """Check the name of a device: auto, cpu, cuda or cuda:N.

    Whether the machine has it, torch is asked later: the command line is read without torch.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def real_number(given: str | float) -> float:
    """Read a number, in any way in which Python writes one: NaN and infinity, too."""
    try:
        # float() would take True for 1.
        if not isinstance(given, bool):
            return float(given)
    except (TypeError, ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{given!r} is no number")


def percentile(given: str | float) -> float:
    """Read a percentile: a number from 0 to 100."""
    value = real_number(given)
    # NaN compares false, and is refused here, too.
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{given}: percentiles are from 0 to 100")
    return value


def positive_float(given: str | float) -> float:
    """Read a finite number above 0."""
    value = real_number(given)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{given} is not a positive number")
    return value


def fraction(given: str | float) -> float:
    """Read a share: above 0, and at most 1."""
    # 60 per cent is written 0.6: a percent sign is not read.
    value = positive_float(given)
    if value > 1:
        hint = f"; {value:g} % is {value / 100:g}" if value <= 100 else ""
        raise argparse.ArgumentTypeError(f"{given} is no share: 1 is all{hint}")
    return value


def margin(given: str | float) -> float:
    """Read a factor of 1 or more, by which an input scale is made larger."""
    value = real_number(given)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{given} is no margin: less than 1 would clip what was seen"
        )
    return value


def lora_file(given: str | Path | tuple[str | Path, float]) -> Lora:
    """Read FILE[:STRENGTH]; without a strength, it is 1.

    A colon that no number follows is the file's, as in C:\\x.safetensors. A path, or a pair of path
    and strength such as a Lora, is taken as it is. Strengths may be negative, but not 0, which
    would merge nothing, nor beyond float32.
    """
    file, strength = given, 1.0
    if isinstance(given, str):
        # Not all that float() reads: it takes nan and inf, and 1_0 for 10.
        digits = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
        found = re.fullmatch(rf"(.+?)(?::({digits}))?", given, re.DOTALL)
        file, strength = (found[1], float(found[2] or 1)) if found else ("", 0.0)
    elif isinstance(given, tuple) and len(given) == 2:
        file, strength = given[0], real_number(given[1])
    if not isinstance(file, str | os.PathLike) or not 0 < abs(strength) < FLOAT32_MAX:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not FILE or FILE:STRENGTH, a number other than 0"
        )
    path = input_path(file)
    if isinstance(path, VirtualPath):
        return Lora(path, strength)
    comma = re.fullmatch(r"(.+):([+-]?\d*,\d+)", str(given), re.DOTALL)
    if comma and not exists(path) and exists(input_path(comma[1])):
        written = comma[2].replace(",", ".")
        raise argparse.ArgumentTypeError(f"{comma[2]} is no number; write {written}")
    file, colon, word = str(given).rpartition(":")
    if colon and not exists(path) and exists(input_path(file or ".")):
        raise argparse.ArgumentTypeError(f"{given}: the strength {word!r} is no number")
    return Lora(path, strength)


def natural(given: str | int) -> int:
    """Read a whole number: 0 or more, of up to six digits."""
    # int() would take signs, spaces and underscores, and True for 1.
    if not re.fullmatch(r"\d{1,6}", str(given)):
        raise argparse.ArgumentTypeError(f"{given!r} is no whole number of 0 or more")
    return int(given)


def frame_size(given: str | tuple[int, ...]) -> tuple[int, int, int]:
    """Read WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES in pixels and frames; an image has one frame."""
    text = given if isinstance(given, str) else "x".join(map(str, given))
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})(?:x(\d{1,5}))?", text.lower())
    size = tuple(int(number or 1) for number in found.groups()) if found else (0,)
    if min(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 832x480x81 or 1024x1024")
    return size


def size_in_bytes(given: str | int) -> int:
    """Read 5GB, 500 MB, 4GiB or a plain number of bytes, and return whole bytes, at least 1.

    GB is 1000 ** 3 and GiB is 1024 ** 3; the B may be left out, and case does not matter.
    """
    # Digits are counted, as a text of a million of them would take minutes to read.
    found = re.fullmatch(
        r"(\d{1,18}(?:\.\d{1,9})?) ?(?:([KMGT])(i?)B?|B)?", str(given), re.IGNORECASE
    )
    size = 0
    if found:
        number, unit, binary = found.groups()
        # A space stands for no unit: the power is 0.
        power = " KMGT".index((unit or " ").upper())
        size = int(float(number) * (1024 if binary else 1000) ** power)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no size like 5GB, 500MB or 4GiB")
    return size


def card_memory(given: str | int) -> int:
    """Read the memory of a card, 16GB or 16, and return bytes; a number of Python is bytes.

    Cards are sold by GiB and say GB, so that both mean 1024 ** 3.
    """
    found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?) ?(?:G(?:i?B)?)?", str(given), re.IGNORECASE)
    size = round(float(found[1]) * 1024**3) if found else 0
    if not isinstance(given, str):
        size = int(real_number(given))
    if not 1024**3 <= size <= 1024**4:
        raise argparse.ArgumentTypeError(f"{given!r} is no card's memory like 16GB")
    return size


def on_or_off(given: bool) -> bool:
    """Check a switch's value; the command line has no text for it."""
    if given not in (True, False):
        raise argparse.ArgumentTypeError(f"{given!r} is not True or False")
    return bool(given)


class Kind(NamedTuple):
    """Describe the values that an option takes, and how `--help` writes them.

    read: makes the value of a text, or of what a program gives.
    metavar: what stands for the value in `--help`; "" for a switch or for choices.
    choices: the only texts that are allowed, if there are any.
    repeatable: whether the option may be given several times; its value is a tuple then.
    told: what an error says of the choices; "" for their words alone.
    meant: makes the choice that is meant of a text that is none, for the error.
    """

    read: Callable[..., object] = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    repeatable: bool = False
    told: str = ""
    meant: Callable[[str], str] = str

    @property
    def keywords(self) -> dict[str, object]:
        """Tell what argparse's add_argument() needs to know, beside flag and help."""
        # A switch has no value to read: it is True where it is named.
        if self.read is on_or_off:
            return {"action": "store_true"}
        # argparse keeps the last value of an option that is given twice, unless it appends. Its own
        # check of choices words what it finds otherwise in each version of Python.
        known = {"action": "append"} if self.repeatable else {}
        metavar = self.metavar or (f"{{{','.join(self.choices)}}}" if self.choices else "")
        known |= {"metavar": metavar} if metavar else {}
        return known | {"type": self._replace(repeatable=False).accept}

    @property
    def shown(self) -> str:
        """Tell what stands behind the option in a list of options: FILE, or mse|amax."""
        return self.metavar or "|".join(self.choices)

    def accept(self, given: object) -> object:
        """Check a value that a program gives, and return the option's value.

        Text is read as the command line's is. Of a repeatable option, one alone is welcome, too.
        Raises argparse.ArgumentTypeError in the words of argparse, so that both interfaces say the
        same.
        """
        if self.repeatable:
            # A Lora is a tuple, and a text is iterable: each of them is one value, not several.
            one = self._replace(repeatable=False)
            several = isinstance(given, Iterable) and not isinstance(given, str | Lora)
            return tuple(map(one.accept, given if several else [given]))
        if self.choices and given not in self.choices:
            known = self.told or ", ".join(map(repr, self.choices))
            hint = did_you_mean(self.meant(str(given)), self.choices)
            problem = f"invalid choice: {given!r} (choose from {known}){hint}"
            raise argparse.ArgumentTypeError(problem)
        try:
            value = self.read(given)
            # A file has no half bytes: 5.7 would be made 5 without a word.
            if isinstance(given, Real) and value != given:
                raise ValueError
        # Python's own errors, as of a path with a null character.
        except (TypeError, ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"invalid value: {given!r}") from error
        return value


# Kinds that several options share; others are made where the option is, in table.py.
SWITCH = Kind(on_or_off)
FILE = Kind(input_path, "FILE")
LOCAL_FILE = Kind(local_path, "FILE")
FOLDER = Kind(local_path, "DIR")
# Their files come with the program, in a folder beside it, and may be named without it.
SUMMARY = Kind(partial(shipped_path, folder="calib"), "FILE")
LAYER_LIST = Kind(partial(shipped_path, folder="sensitive_layers"), "FILE")
REGEXES = Kind(pattern, "REGEX", repeatable=True)
NATURAL = Kind(natural, "N")
CARD_MEMORY = Kind(card_memory, "MEMORY")
SIZE = Kind(size_in_bytes, "SIZE")
SHARE = Kind(fraction, "SHARE")
