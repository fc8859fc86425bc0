"""What an option's text may be."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path

from nvfp4.files import exists
from nvfp4.formats import FLOAT32_MAX
from nvfp4.model import Lora, compiled

# The folder of calib/ and sensitive_layers/: the checkout, or where the single file lies.
HERE = Path(__file__).resolve().parents[__name__.count(".")]


def input_path(text: str) -> Path:
    """A path as given; Windows separators work elsewhere too, so that batch lines can be shared."""
    path = Path(text)
    return path if exists(path) or os.name == "nt" else Path(text.replace("\\", "/"))


def shipped_path(text: str, folder: str) -> Path:
    """A file as given or, if there is none, of that name in a folder beside this script."""
    path = input_path(text)
    shipped = HERE / folder / path
    if exists(path) or exists(shipped):
        return path if exists(path) else shipped
    kind = {"calib": "*.json", "sensitive_layers": "*.txt"}[folder]
    there = ", ".join(sorted(file.name for file in (HERE / folder).glob(kind)))
    raise argparse.ArgumentTypeError(f"no file {text}, neither as given nor in {folder}/: {there}")


def pattern(text: str) -> str:
    try:
        compiled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a regular expression: {error}"
        ) from error
    return text


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def fraction(text: str) -> float:
    number = positive_float(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: 1 is all")
    return number


def margin(text: str) -> float:
    value = float(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text} is no margin: less than 1 would clip what was seen"
        )
    return value


def lora_file(text: str) -> Lora:
    """FILE[:STRENGTH]; a colon that no number follows is the file's, as in C:\\x.safetensors."""
    number = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    found = re.fullmatch(rf"(.+?)(?::({number}))?", text, re.DOTALL)
    strength = float(found[2] or 1) if found else 0.0
    if not 0 < abs(strength) < FLOAT32_MAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FILE or FILE:STRENGTH, a number other than 0"
        )
    return Lora(input_path(found[1]), strength)


def natural(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of blocks")
    return int(text)


def size_in_bytes(text: str) -> int:
    """5GB, 500 MB, 4GiB or a plain number of bytes."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?(?:([KMGT])(i?)B?|B)?", text, re.IGNORECASE)
    size = 0
    if found:
        number, unit, binary = found.groups()
        power = " KMGT".index((unit or " ").upper())
        size = int(float(number) * (1024 if binary else 1000) ** power)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 5GB, 500MB or 4GiB")
    return size
