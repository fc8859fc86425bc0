"""JSON and lists of a size that can be borne."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nvfp4.dtypes import FLOAT32_MAX
from nvfp4.errors import EXCERPT, ConvertError
from nvfp4.files import translated
from nvfp4.model import bare

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit; of JSON and lists, too
MAX_JSON_VALUES, MAX_JSON_DEPTH, MAX_DIGITS = 2_000_000, 64, 4_300
JSON_HINTS = {  # what is given instead, by its suffix
    ".log": "; analyze_input_scale_log.py makes a summary of a log",
    ".safetensors": "; a recording goes with --activation-stats",
}


def read_whole(path: Path) -> bytes:
    """All bytes of a small file; an endless one would fill the memory. Raises ValueError."""
    with path.open("rb") as file:
        raw = file.read(MAX_HEADER_BYTES + 1)
    if len(raw) > MAX_HEADER_BYTES:
        raise ValueError(f"it has more than {MAX_HEADER_BYTES:,} bytes")
    return raw


def parse_json(text: str, hook: Callable | None = None) -> object:
    """JSON of a size and depth that parsing, and what is done with it, can bear.

    An empty list takes two bytes here and 72 in memory; nesting ends in a RecursionError wherever
    the value is written again; a number of a million digits takes minutes. Raises ValueError.
    """
    outside = re.sub(r'"[^"]*"?', "", text.replace(r"\\", "").replace(r"\"", ""))
    if sum(map(outside.count, ",[{")) > MAX_JSON_VALUES:
        raise ValueError(f"it holds more than {MAX_JSON_VALUES:,} values")
    brackets = np.frombuffer(re.sub(r"[^][{}]+", "", outside).encode(), np.uint8)
    steps = np.where(np.isin(brackets, bytearray(b"[{")), 1, -1)
    if steps.cumsum().max(initial=0) > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
    if re.search(rf"(?<!\d)\d{{{MAX_DIGITS}}}", outside):
        raise ValueError(f"it has a number of {MAX_DIGITS:,} digits or more")
    return json.loads(text, object_pairs_hook=hook)


def load_json(path: Path, what: str) -> dict:
    """A JSON object from a Unicode file; anything else is an error that names the file."""
    try:
        with translated(path, f"cannot read the {what}"):
            raw = read_whole(path)
        value = parse_json(raw.decode(json.detect_encoding(raw)), unique_keys)
    except ValueError as error:
        hint = JSON_HINTS.get(path.suffix.lower(), "")
        raise ConvertError(f"{path}: the {what} is not valid JSON: {error}{hint}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: the {what} must be a JSON object")
    return value


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """json's default keeps the last of two equal keys: a tensor would vanish unnoticed."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {repeated[:EXCERPT]!r}")
    return found


def read_rows(path: Path, what: str) -> list[dict]:
    """The `layers` of a JSON file, each an object with a `layer` name, no name twice."""
    rows = load_json(path, what).get("layers")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("layer"), str) for row in rows
    ):
        raise ConvertError(f"{path}: has no list of `layers`, each with a `layer` name")
    if not rows:
        raise ConvertError(f"{path}: has no layers")
    counts = Counter(bare(row["layer"]) for row in rows)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConvertError(f"{path}: has two rows for layer {twice[0]}")
    return rows


def is_figure(value: object) -> bool:
    """A number that can be compared: no truth value, NaN, infinity or negative."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def positive(path: Path, row: dict, column: str) -> float:
    value = row[column]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < FLOAT32_MAX:
        raise ConvertError(
            f"{path}: layer {row['layer']}: {column} must be a positive number, "
            f"not {repr(value)[:EXCERPT]}"
        )
    return float(value)
