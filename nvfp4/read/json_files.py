"""Read JSON files within limits that hostile ones cannot exceed.

Headers, indexes, calibration summaries, sensitivity files and layer configs are all parsed here.
Every limit is checked on the text, before Python builds values of it, so that a small file cannot
take much memory or time.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from nvfp4.dtypes import FLOAT32_MAX
from nvfp4.errors import EXCERPT, ConvertError, examples, in_number
from nvfp4.files import translated
from nvfp4.model import bare, unwrapped
from nvfp4.notes import Note, Rank
from nvfp4.read.beginnings import TELLING_BYTES, refuse_foreign, refuse_models

# The safetensors library's own limit for a header. Files of JSON and lists may not be larger.
MAX_HEADER_BYTES = 100_000_000
# Two million values take some 150 MB as empty lists. Python itself refuses to read integers of more
# than 4,300 digits, with a message of its own.
MAX_JSON_VALUES, MAX_JSON_DEPTH, MAX_DIGITS = 2_000_000, 64, 4_300
# What to do with a file that is given in place of JSON, by its suffix: the end of a message.
JSON_HINTS = {
    ".log": "; analyze_input_scale_log.py makes a summary of a log",
    ".safetensors": "; a recording goes with --activation-stats",
}
# Columns that are 0 in the row of a layer which no call of the recording reached.
ZERO_IF_NEVER_CALLED = ("max_abs", "amax_max", "count")


def read_whole(path: Path) -> bytes:
    """Read all bytes of a small file.

    Raises ConvertError for a pointer or a web page in the file's place, and ValueError for a file
    of more than MAX_HEADER_BYTES, of which no more is read: an endless one would fill the memory.
    Raises OSError where it cannot be read.
    """
    # One byte more than is allowed tells a file that is too long from one that just fits.
    with path.open("rb") as file:
        refuse_models(path, file.peek(TELLING_BYTES))
        raw = file.read(MAX_HEADER_BYTES + 1)
    if len(raw) > MAX_HEADER_BYTES:
        raise ValueError(f"it has more than {MAX_HEADER_BYTES:,} bytes")
    refuse_foreign(path, raw)
    return raw


def parse_json(text: str, hook: Callable | None = None) -> object:
    """Parse JSON within the limits MAX_JSON_VALUES, MAX_JSON_DEPTH and MAX_DIGITS.

    An empty list takes two bytes here and 72 in memory; nesting ends in a RecursionError wherever
    the value is written again; a number of a million digits takes minutes. `hook` is called with
    each object's list of (key, value), and its result taken for the object. Raises ValueError.
    """
    # The text without its strings, whose characters are no structure; escapes are dropped first.
    outside = re.sub(r'"[^"]*"?', "", text.replace(r"\\", "").replace(r"\"", ""))
    # Each value but the outermost follows a comma or an opening bracket.
    if sum(map(outside.count, ",[{")) > MAX_JSON_VALUES:
        raise ValueError(f"it holds more than {MAX_JSON_VALUES:,} values")
    # Depth is counted without recursion: +1 for an opening bracket, -1 for a closing one.
    brackets = np.frombuffer(re.sub(r"[^][{}]+", "", outside).encode(), np.uint8)
    steps = np.where(np.isin(brackets, bytearray(b"[{")), 1, -1)
    if steps.cumsum().max(initial=0) > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
    if re.search(rf"(?<!\d)\d{{{MAX_DIGITS}}}", outside):
        raise ValueError(f"it has a number of {MAX_DIGITS:,} digits or more")
    return json.loads(text, object_pairs_hook=hook)


def load_json(path: Path, what: str) -> dict:
    """Read a JSON object from a file in UTF-8, UTF-16 or UTF-32.

    `what` is what the message calls the file: "index", "summary". Raises ConvertError where it
    cannot be read, is no JSON, has a key twice, or is not an object.
    """
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
    """Make a dict of an object's pairs, as a hook for `parse_json`; refuse a key that comes twice.

    json's default keeps the last of two equal keys: a tensor would vanish unnoticed. Raises
    ValueError, which `load_json` and the header's reader turn into a line on the file.
    """
    # Keys are counted only where one is missing: headers of 100,000 entries come through here.
    found = dict(pairs)
    if len(found) < len(pairs):
        [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {repeated[:EXCERPT]!r}")
    return found


def read_rows(path: Path, what: str) -> list[dict]:
    """Read the list `layers` of a JSON file, as `rows_in` does; messages call it `what`."""
    return rows_in(path, load_json(path, what))


def rows_in(path: Path, data: dict) -> list[dict]:
    """Take the list `layers` from a file's JSON: objects that each have a `layer` name.

    Calibration summaries and sensitivity files have this form. Layers are named without what
    torch.compile puts in. Raises ConvertError if the list is missing, malformed or empty, or if two
    rows name the same layer, prefixes stripped.
    """
    rows = data.get("layers")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("layer"), str) for row in rows
    ):
        raise ConvertError(f"{path}: has no list of `layers`, each with a `layer` name")
    if not rows:
        raise ConvertError(f"{path}: has no layers")
    rows = [row | {"layer": unwrapped(row["layer"])} for row in rows]
    # A layer's name with the model's prefix and the one without it are the same layer.
    counts = Counter(bare(row["layer"]) for row in rows)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConvertError(f"{path}: has two rows for layer {twice[0]}")
    return rows


def measured_rows(
    path: Path, rows: list[dict], columns: Iterable[str]
) -> tuple[list[dict], list[str]]:
    """Leave out the rows of layers that were not measured, as no call reached them.

    These have NaN or null in one of `columns`, or 0 in one of ZERO_IF_NEVER_CALLED; a column that a
    row lacks altogether is not minded here. Returns the other rows, and a note that counts what is
    left out. Raises ConvertError where no row is left.
    """
    columns = [*columns]
    left_out = [
        row["layer"]
        for row in rows
        if is_never_called(row) or any(is_nan(row[column]) for column in columns if column in row)
    ]
    if len(left_out) == len(rows):
        raise ConvertError(f"{path}: none of its {len(rows)} layers was measured")
    if not left_out:
        return rows, []
    what = in_number(len(left_out), "layers were not measured and are left out")
    note = Note(f"{path.name}: {what}: {examples(left_out)}", Rank.NOTE)
    left = {*left_out}
    return [row for row in rows if row["layer"] not in left], [note]


def is_never_called(row: dict) -> bool:
    """Tell whether a row says that its layer's input was never seen, by ZERO_IF_NEVER_CALLED."""
    # By its type, as False is 0, too.
    return any(type(row.get(k)) in (int, float) and row[k] == 0 for k in ZERO_IF_NEVER_CALLED)


def is_nan(value: object) -> bool:
    """Tell whether a figure of a row is missing, null or NaN: nothing was measured."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_figure(value: object) -> bool:
    """Tell whether a JSON value is a finite number from 0 up; True and False are none."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def positive(path: Path, row: dict, column: str) -> float:
    """Take the positive number of one column of a layer's row, as of `read_rows`.

    Raises ConvertError, naming file, layer and column, for anything that is not a number above 0
    and below float32's largest, and KeyError where the row has no such column.
    """
    value = row[column]
    # bool is a subclass of int, and true is no number in JSON.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < FLOAT32_MAX:
        raise ConvertError(
            f"{path}: layer {row['layer']}: {column} must be a positive number, "
            f"not {repr(value)[:EXCERPT]}"
        )
    return float(value)
