"""Hostile and broken input: a corpus over every reader, each case with its command line.

A row is a name and what is in a file; its table says which file that is and which command reads
it. Each command ends with 1 and the lines that golden/hostile.txt has.

Usage: python tests/support/hostile.py [FOLDER]  writes the golden text, or the corpus to a folder
"""

import bz2
import contextlib
import gzip
import io
import json
import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import convert_nvfp4 as c
from nvfp4.logs.entry import analyze_log
from nvfp4.logs.reading import MOST_LAYERS
from support.files import header_only, raw_safetensors
from support.paths import GOLDEN

HOSTILE = GOLDEN / "hostile.txt"
PROGRAMS = {"convert": c.main, "analyze": analyze_log}
LAYER = "blocks.0.ffn.0"
Make = Callable[[Path], object]


class Case(NamedTuple):
    """What makes a folder's files, and the command that reads them; FOLDER is the folder."""

    make: Make
    arguments: tuple[str, ...]
    program: str = "convert"


CONVERT = ("FOLDER/m.safetensors", "FOLDER/out/o.safetensors", "--preset", "all", "--quiet")
FROM_INDEX = ("FOLDER/m.safetensors.index.json", *CONVERT[1:])
VERIFY = ("--verify", "FOLDER/m.safetensors")


def sound(folder: Path, **more: torch.Tensor) -> Path:
    """A model of one layer, m.safetensors, for readers that need a model beside their own file."""
    tensors = {f"{LAYER}.weight": torch.ones(32, 32), f"{LAYER}.bias": torch.zeros(32)}
    save_file(tensors | more, folder / "m.safetensors")
    return folder


def with_file(name: str, content: bytes | str | object) -> Make:
    """The sound model and beside it one file of this content."""

    def make(folder: Path) -> None:
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        (sound(folder) / name).write_bytes(data)

    return make


def sparse(folder: Path, name: str, start: bytes, size: int) -> None:
    """A file that begins so, and goes on with a hole: no bytes on the disk."""
    (folder / name).write_bytes(start)
    os.truncate(folder / name, size)


# ── Safetensors headers ──────────────────────────────────────────────────────────────────────────


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def in_json(value: str, data: int = 8) -> tuple[bytes, int]:
    """A header with this text as the shape of its one tensor."""
    return b'{"a":{"dtype":"F32","data_offsets":[0,8],"shape":%s}}' % value.encode(), data


PAIR = entry()
HEADERS: dict[str, tuple[object, int]] = {  # header, bytes of data behind it
    "no tensors but data": ({}, 8),
    "begins with a space": (b' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8),
    "UTF-16": (json.dumps({"a": PAIR}).encode("utf-16-le"), 8),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps({"a": PAIR}).encode(), 8),
    "not UTF-8": (b'{"\xff": 1}', 0),
    "a string": (b'"a"', 0),
    "a list of pairs": (b'[["a", 1]]', 0),
    "cut JSON": (b'{"a": {"dtype": "F32", "shape": [2', 8),
    "nested lists": (b'{"a":' + b"[" * 65 + b"]" * 65 + b"}", 0),
    "nested a million deep": (b'{"a":' + b"[" * 1_000_000, 0),
    "objects a million deep": (b'{"a":' * 1_000_000, 0),
    "quotes hide no depth": (b'{"a\\\\":' + b"[" * 5_000 + b'"]]]]', 0),
    "a number of a million digits": in_json("[" + "9" * 1_000_000 + "]"),
    "NaN for a size": in_json("[NaN]"),
    "infinity for a size": in_json("[1e999]"),
    "a float for a size": in_json("[2.0]"),
    "text for a shape": in_json('""'),
    "an object for a shape": in_json("{}"),
    "null for a shape": in_json("null"),
    "a size of 2 to the 63rd": in_json("[9223372036854775808]"),
    "sizes whose product wraps to 8 bytes": (
        {"a": entry([2**62, 2**62, 2], (0, 8))}, 8),
    "33 dimensions": ({"a": entry([1] * 33, (0, 4))}, 4),
    "a thousand dimensions of zero": ({"a": entry([0] * 1000, (0, 0))}, 0),
    "offsets as text": ({"a": entry(offsets="08")}, 8),
    "offsets as an object": ({"a": entry(offsets={"0": 0, "8": 8})}, 8),
    "negative offsets": ({"a": entry(offsets=(-8, 0))}, 8),
    "offsets beyond the file": ({"a": entry(offsets=(2**62, 2**62 + 8))}, 8),
    "one offset": ({"a": entry(offsets=(0,))}, 8),
    "dtype of the future": ({"a": entry(dtype="F2")}, 8),
    "dtype is a list": ({"a": entry(dtype=["F32"])}, 8),
    "dtype is null": ({"a": entry(dtype=None)}, 8),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "half a byte": ({"a": entry([3], (0, 1), "F4")}, 1),
    "equal ranges": ({"a": PAIR, "b": PAIR}, 8),
    "ranges that overlap by a byte": ({"a": PAIR, "b": entry(offsets=(7, 15))}, 15),
    "gap of a byte": ({"a": PAIR, "b": entry(offsets=(9, 17))}, 17),
    "gap before the first": ({"a": entry(offsets=(8, 16))}, 16),
    "one byte too few": ({"a": PAIR}, 7),
    "one byte too many": ({"a": PAIR}, 9),
    "the same name escaped": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\\u0061":1}', 8),
    "an escape sequence as a name": ({"\x1b[2J\x1b[31mall is well": PAIR}, 8),
    "a line feed as a name": ({"a\nerror: none": PAIR}, 8),
    "a right-to-left override as a name": ({"a\u202egnp": PAIR}, 8),
    "a lone surrogate as a name": (b'{"\\ud800":{"dtype":"F32"}}', 0),
    "a name of a million characters": ({"a" * 1_000_000: PAIR}, 8),
    "a name of NUL": ({"\0": PAIR}, 8),
    "nested metadata": ({"__metadata__": {"a": {"b": "c"}}, "a": PAIR}, 8),
    "metadata is a list": ({"__metadata__": ["a"], "a": PAIR}, 8),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', 0),
    "metadata of numbers": ({"__metadata__": {"a": 1e308}, "a": PAIR}, 8),
    "an entry that is a long text": ({"a": "\x1b[31m" + "x" * 100_000}, 0),
}  # fmt: skip


def header_case(header: object, data: int) -> Case:
    return Case(
        lambda folder: raw_safetensors(folder / "m.safetensors", header, bytes(data)), VERIFY
    )


def bytes_case(content: bytes, size: int = 0) -> Case:
    """m.safetensors of these bytes, and a hole up to that size."""
    return Case(
        lambda folder: sparse(folder, "m.safetensors", content, size or len(content)), CONVERT
    )


def length(number: int) -> bytes:
    return number.to_bytes(8, "little")


def many_tensors(folder: Path) -> None:
    empty = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ",".join(f'"{number}":{empty}' for number in range(c.MAX_TENSORS + 1))
    raw_safetensors(folder / "m.safetensors", b"{%s}" % header.encode(), b"")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "m.safetensors")


FILES = {
    "empty": bytes_case(b""),
    "seven bytes": bytes_case(bytes(7)),
    "a length alone": bytes_case(length(2)),
    "a length of zero": bytes_case(length(0), 100),
    "a length beyond the file": bytes_case(length(5_000) + b"{}"),
    "a length of 2 to the 64th": bytes_case(b"\xff" * 8, 100),
    "a length beyond the limit": bytes_case(length(c.MAX_HEADER_BYTES + 1), 1 << 30),
    "zeros for a download": bytes_case(b"", 1 << 30),
    "a header of zeros": bytes_case(length(10_000_000), 10_000_008),
    "a web page": bytes_case(b"<!DOCTYPE html><html>Not found"),
    "a pickle": bytes_case(b"\x80\x02}q\x00."),
    "a Git LFS pointer": bytes_case(b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
    "a GGUF": bytes_case(b"GGUF\3\0\0\0" + bytes(16)),
    "too many tensors": Case(many_tensors, CONVERT),
    "millions of values": Case(
        lambda folder: raw_safetensors(
            folder / "m.safetensors", b'{"a":[%s[]]}' % (b"[]," * c.MAX_JSON_VALUES), b""
        ),
        CONVERT,
    ),
    "a pipe": Case(pipe, CONVERT),
    "a folder with nothing": Case(lambda folder: (folder / "m.safetensors").mkdir(), CONVERT),
    "a link to itself": Case(
        lambda folder: (folder / "m.safetensors").symlink_to("m.safetensors"), CONVERT
    ),
}


# ── Shards and index ─────────────────────────────────────────────────────────────────────────────


def shard(path: Path, *names: str) -> None:
    save_file({name: torch.ones(32, 32) for name in names}, path)


def index_of(shard_name: object, *, beside: Make = lambda _: None) -> Case:
    """An index of one tensor in that shard, and what is made beside it."""

    def make(folder: Path) -> None:
        beside(folder)
        text = json.dumps({"weight_map": {f"{LAYER}.weight": shard_name}})
        (folder / "m.safetensors.index.json").write_text(text)

    return Case(make, FROM_INDEX)


def index_text(text: str) -> Case:
    return Case(with_file("m.safetensors.index.json", text), FROM_INDEX)


def outside(folder: Path) -> Path:
    """A good shard in another folder than the model's."""
    (folder / "elsewhere").mkdir()
    shard(folder / "elsewhere" / "s.safetensors", f"{LAYER}.weight")
    return folder


def linked(target: str) -> Make:
    return lambda folder: (outside(folder) / "s.safetensors").symlink_to(target)


def two_shards(first: list[str], second: list[str], weight_map: dict) -> Case:
    def make(folder: Path) -> None:
        shard(folder / "1.safetensors", *first)
        shard(folder / "2.safetensors", *second)
        (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return Case(make, FROM_INDEX)


ONE, TWO = "1.safetensors", "2.safetensors"
INDEXES = {
    "up a folder": index_of("../elsewhere.safetensors"),
    "down a folder": index_of("elsewhere/s.safetensors", beside=outside),
    "down with a backslash": index_of("elsewhere\\s.safetensors", beside=outside),
    "absolute": index_of("/etc/passwd"),
    "a drive letter": index_of("C:s.safetensors"),
    "a drive and a folder": index_of("C:\\s.safetensors"),
    "a network share": index_of("\\\\server\\s.safetensors"),
    "a stream of a file": index_of("s.safetensors:stream"),
    "the folder itself": index_of("."),
    "no name": index_of(""),
    "a NUL in the name": index_of("s\0.safetensors"),
    "an escape sequence in the name": index_of("\x1b[2J"),
    "a lone surrogate in the name": index_of("\ud800"),
    "a name of 5,000 characters": index_of("s" * 5_000),
    "a number for a name": index_of(1),
    "a list for a name": index_of(["s.safetensors"]),
    "a link out of the folder": index_of("s.safetensors", beside=linked("elsewhere/s.safetensors")),
    "a link to an absolute path": index_of("s.safetensors", beside=linked("/etc/passwd")),
    "a link to a device": index_of("s.safetensors", beside=linked("/dev/zero")),
    "a link over two links": index_of(
        "t.safetensors",
        beside=lambda folder: (
            linked("elsewhere/s.safetensors")(folder),
            (folder / "t.safetensors").symlink_to("s.safetensors"),
        ),
    ),
    "links in a circle": index_of("s.safetensors", beside=linked("s.safetensors")),
    "a link to nothing": index_of("s.safetensors", beside=linked("t.safetensors")),
    "a pipe as a shard": index_of(
        "s.safetensors", beside=lambda folder: os.mkfifo(folder / "s.safetensors")
    ),
    "the index as its shard": index_of("m.safetensors.index.json"),
    "a missing shard": index_of("s.safetensors"),
    "a tensor in two shards": two_shards(["a", "b"], ["b"], {"a": ONE, "b": TWO}),
    "a tensor in the other shard": two_shards(["a"], ["b"], {"a": TWO, "b": ONE}),
    "a tensor that no shard has": two_shards(["a"], ["b"], {"a": ONE, "b": TWO, "c": TWO}),
    "a name listed twice": index_text('{"weight_map": {"a": "1", "a": "2"}}'),
    "a name that forges a line": two_shards(
        ["a"], ["b"], {"a": ONE, "b": TWO, "c\nerror: \x1b[2J": TWO}
    ),
    "too many shards": index_text(
        json.dumps({"weight_map": {str(n): str(n) for n in range(c.MAX_SHARDS + 1)}})
    ),
    "a thousand missing shards": index_text(
        json.dumps({"weight_map": {str(n): f"{n:04}" for n in range(1_000)}})
    ),
    "no weight_map": index_text("{}"),
    "an empty index": index_text(""),
    "an index of depth": index_text('{"weight_map":' * 100_000),
    "an endless index": Case(
        lambda folder: sparse(folder, "m.safetensors.index.json", b"{", 1 << 30), FROM_INDEX
    ),
}


# ── GGUF ─────────────────────────────────────────────────────────────────────────────────────────

U8, U32, F32, TEXT, LIST = 0, 4, 6, 8, 9
HUGE = 1 << 60


def text(value: bytes | str, announced: int | None = None) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data) if announced is None else announced) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str = f"{LAYER}.weight", dims: tuple = (32, 32), kind: int = 0, at: int = 0):
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sizes + struct.pack("<IQ", kind, at)


def gguf(*parts: bytes, tensors: int = 1, pairs: int = 0, data: int = 4096) -> bytes:
    """A GGUF of version 3 whose header ends in these parts."""
    start = b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)
    header = start + b"".join(parts)
    return header + bytes(-len(header) % 32 + data)


def listed(kind: int, count: int, values: bytes = b"") -> bytes:
    return pair("a", LIST, struct.pack("<IQ", kind, count) + values)


GOOD = gguf(pair("general.architecture", TEXT, text("wan")), tensor(), pairs=1)
GGUFS = {
    "empty": b"",
    "another magic": b"GGML" + GOOD[4:],
    "magic alone": b"GGUF",
    "cut in the version": GOOD[:6],
    "version 1": GOOD[:4] + struct.pack("<I", 1) + GOOD[8:],
    "version 4": GOOD[:4] + struct.pack("<I", 4) + GOOD[8:],
    "big-endian by its version alone": GOOD[:4] + struct.pack(">I", 3) + GOOD[8:],
    "cut in the counts": GOOD[:20],
    "cut after the counts": GOOD[:24],
    "cut in a key's length": GOOD[:28],
    "cut in a key": GOOD[:40],
    "cut in a value's type": GOOD[:54],
    "cut in a value": GOOD[:66],
    "cut in a tensor's name": GOOD[:80],
    "cut in a tensor's dimensions": GOOD[:105],
    "cut in a tensor's offset": GOOD[:118],
    "cut before the data": GOOD[:126],
    "cut in the data": GOOD[:-1],
    "absurdly many tensors": gguf(tensor(), tensors=HUGE),
    "many tensors": gguf(tensor(), tensors=c.MAX_GGUF_PARTS),
    "absurdly many entries": gguf(pairs=HUGE),
    "many entries": gguf(pairs=c.MAX_GGUF_PARTS - 1),
    "an absurd key": gguf(text("a", HUGE), pairs=1),
    "a key of 2 to the 64th": gguf(text("a", 2**64 - 1), pairs=1),
    "an absurd text": gguf(pair("a", TEXT, text("a", HUGE)), pairs=1),
    "an absurd list": gguf(listed(U8, HUGE), pairs=1),
    "a list longer than the file": gguf(listed(U8, 20_000), pairs=1),
    "a list of absurd texts": gguf(listed(TEXT, 2, text("a", HUGE)), pairs=1),
    "a list of lists": gguf(listed(LIST, 1, struct.pack("<IQ", LIST, HUGE)), pairs=1),
    "a list of an unknown type": gguf(listed(77, HUGE), pairs=1),
    "lists that add up": gguf(*[listed(U8, 26_000, bytes(26_000))] * 2, pairs=2),
    "an unknown type of value": gguf(pair("a", 13, bytes(8)), pairs=1),
    "a key twice": gguf(pair("a", U8, b"1"), pair("a", U8, b"1"), tensor(), pairs=2),
    "a key that is no UTF-8": gguf(text(b"\xff") + struct.pack("<IB", U8, 1), pairs=1),
    "an absurd name": gguf(text("a", HUGE)),
    "a long name": gguf(tensor("a" * (c.MAX_NAME + 1))),
    "a name that is no UTF-8": gguf(text(b"\xff") + tensor()[len(text(f"{LAYER}.weight")):]),
    "a tensor twice": gguf(tensor(), tensor(), tensors=2),
    "absurdly many dimensions": gguf(text("a") + struct.pack("<I", 2**32 - 1)),
    "33 dimensions": gguf(tensor(dims=(1,) * 33)),
    "absurd dimensions": gguf(tensor(dims=(HUGE, HUGE))),
    "dimensions whose product wraps to zero": gguf(tensor(dims=(1 << 32, 1 << 32))),
    "more elements than data": gguf(tensor(dims=(32, 64))),
    "an unknown GGML type": gguf(tensor(kind=999)),
    "a GGML type that was removed": gguf(tensor(kind=4)),
    "columns that are no whole block": gguf(tensor(dims=(33, 32), kind=13)),
    "an offset beyond the file": gguf(tensor(at=1 << 20)),
    "an offset of 2 to the 64th": gguf(tensor(at=2**64 - 32)),
    "alignment of zero": gguf(pair("general.alignment", U32, bytes(4)), tensor(), pairs=1),
    "alignment of 3": gguf(pair("general.alignment", U32, b"\3\0\0\0"), tensor(), pairs=1),
    "alignment of 2 GiB": gguf(pair("general.alignment", U32, b"\0\0\0\x80"), tensor(), pairs=1),
    "alignment as text": gguf(pair("general.alignment", TEXT, text("32")), tensor(), pairs=1),
    "an original shape of text": gguf(
        pair(f"comfy.gguf.orig_shape.{LAYER}.weight", TEXT, text("")), tensor(), pairs=1),
    "a negative original shape": gguf(
        pair(f"comfy.gguf.orig_shape.{LAYER}.weight", LIST, struct.pack("<IQii", 5, 2, -1, -1024)),
        tensor(), pairs=1),
    "a name that forges a line": gguf(tensor("a\nerror: \x1b[2J")),
    "of another model": gguf(tensor("double_blocks.0.x.weight")),
    "of another shape": gguf(tensor(dims=(16, 64))),
}  # fmt: skip


def gguf_cases() -> Iterator[tuple[str, Case]]:
    command = (*CONVERT[:2], "--gguf", "FOLDER/m.gguf", "--quiet")
    for name, content in GGUFS.items():
        yield f"gguf: {name}", Case(with_file("m.gguf", content), command)


# ── Calibration, lists and configs ───────────────────────────────────────────────────────────────


def row(**columns: object) -> dict:
    return {"layers": [{"layer": LAYER, "scale_p99_9": 0.01} | columns]}


DIGITS = 10**4000
SUMMARIES: dict[str, object] = {
    "a list": "[]",
    "layers is an object": {"layers": {}},
    "a row that is text": {"layers": ["a"]},
    "a layer that is a number": {"layers": [{"layer": 1}]},
    "no layers": {"layers": []},
    "no column": {"layers": [{"layer": LAYER}]},
    "a negative scale": row(scale_p99_9=-1),
    "a true scale": row(scale_p99_9=True),
    "an infinite scale": '{"layers": [{"layer": "a", "scale_p99_9": 1e999}]}',
    "a scale of 4,000 digits": row(scale_p99_9=DIGITS),
    "an amax of 4,000 digits": row(amax_p99_9=DIGITS),
    "a scale that is zero as a float32": row(scale_p99_9=1e-60),
    "a scale that is a list": row(scale_p99_9=[1]),
    "a scale that forges a line": row(scale_p99_9="\nerror: \x1b[2J"),
    "a scale of a million characters": row(scale_p99_9="x" * 1_000_000),
    "a layer that forges a line": {"layers": [{"layer": "a\nerror: \x1b[2J", "scale_p99_9": 0}]},
    "a layer twice by its prefix": {
        "layers": [{"layer": f"{prefix}{LAYER}", "scale_p99_9": 1} for prefix in ("", "net.")]
    },
    "a surrogate": b'{"layers": [{"layer": "\\ud800", "scale_p99_9": 1}]}',
    "UTF-32 of nothing": b"\0\0\xfe\xff",
    "half a UTF-16 character": "{}".encode("utf-16") + b"{",
    "a log": "nvfp4\tdynamic\tx\t1\t1\t(1,)\n",
    "binary": bytes(range(256)),
    "of another model": {"layers": [{"layer": "x.y", "scale_p99_9": 1}]},
    "deep": '{"layers":' + "[" * 100_000,
}
STANDARD_DEVIATIONS = {
    "of 4,000 digits": row(scale_std=1, scale_mean=DIGITS),
    "of no layer": row(),
    "no layers": {"layers": []},
    "not a number": '{"layers": [{"layer": "a", "scale_std": NaN, "scale_mean": 1}]}',
}
SENSITIVITY = {
    "no figures": row(),
    "a figure of 4,000 digits": row(rel_rmse=DIGITS),
    "a negative figure": row(rel_rmse=-1),
    "a figure of text": row(rel_rmse="high"),
    "an infinite figure": '{"layers": [{"layer": "a", "rel_rmse": 1e999}]}',
    "nested layers": {"layers": {"layers": []}},
    "not JSON": "{",
}
CONFIGS: dict[str, object] = {
    "no format": {LAYER: {}},
    "a list for a format": {LAYER: {"format": ["nvfp4"]}},
    "an object for a format": {LAYER: {"format": {}}},
    "a number for a format": {LAYER: {"format": 1}},
    "an unknown format": {LAYER: {"format": "nvfp5"}},
    "an unknown key": {LAYER: {"format": "nvfp4", "\x1b[2J": 1}},
    "a number for a flag": {LAYER: {"format": "nvfp4", "full_precision_matrix_mult": 1}},
    "a scale of 4,000 digits": {LAYER: {"format": "nvfp4", "input_scale": DIGITS}},
    "a scale beyond float32": {LAYER: {"format": "nvfp4", "input_scale": 1e300}},
    "a scale that is zero as a float32": {LAYER: {"format": "nvfp4", "input_scale": 1e-300}},
    "a scale that is NaN": '{"x": {"format": "nvfp4", "input_scale": NaN}}',
    "a flag on 16 bits": {LAYER: {"format": "float16", "full_precision_matrix_mult": True}},
    "a pattern that is none": {"(": {"format": "nvfp4"}},
    "an absurd repetition": {"a{99999999999999}": {"format": "nvfp4"}},
    "brackets 5,000 deep": {"(" * 5_000 + ")" * 5_000: {"format": "nvfp4"}},
    "a pattern Python warns of": {"[[a]": {"format": "nvfp4"}},
    "a pattern that forges a line": {"a\nerror: \x1b[2J": {"format": "nvfp4"}},
    "a thousand patterns": {f"x{number}": {"format": "nvfp4"} for number in range(1_000)},
    "a value that is a list": {LAYER: []},
    "a key twice": '{"a": {"format": "nvfp4"}, "a": {"format": "nvfp4"}}',
    "deep": '{"a":' * 100_000,
    "a list": "[]",
}  # fmt: skip
LISTS: dict[str, object] = {
    "not UTF-8": b"\xff\xfe\xfa",
    "a name that is not there": "blocks.99.ffn.0\n",
    "a name that forges a line": "a\x1b[2Jb\n",
    "many names": "\n".join(map(str, range(200_000))),
    "a long name": "x" * 1_000_000,
    "nothing but comments": "# none\n\n",
    "binary": bytes(range(256)),
}
SUMMARY = ("--input-scale-summary-json", "FOLDER/f.json")
COMMANDS = {  # table, file, options that read it
    "summary": (SUMMARIES, "f.json", SUMMARY),
    "deviations": (STANDARD_DEVIATIONS, "f.json", (*SUMMARY, "--input-scale-summary-fp16-std")),
    "sensitivity": (
        SENSITIVITY, "f.json",
        ("--sensitivity-json", "FOLDER/f.json", "--sensitivity-threshold", "0.1")),
    "config": (CONFIGS, "f.json", ("--layer-config", "FOLDER/f.json")),
    "list": (LISTS, "f.txt", ("--full-precision-mm-layers", "FOLDER/f.txt")),
}  # fmt: skip


def text_cases() -> Iterator[tuple[str, Case]]:
    for table, (rows, file, options) in COMMANDS.items():
        command = (*CONVERT[:2], "--quiet", *options)
        command += () if table == "config" else ("--preset", "all")
        for name, content in rows.items():
            yield f"{table}: {name}", Case(with_file(file, content), command)
        if table in ("summary", "config", "list"):
            yield f"{table}: endless", Case(endless, command)


def endless(folder: Path) -> None:
    for name in ("f.json", "f.txt"):
        sparse(sound(folder), name, b"", 1 << 40)


# ── LoRA, recordings, scales, quantised sources ──────────────────────────────────────────────────


def parts(**shapes: tuple) -> dict[str, torch.Tensor]:
    """Tensors of ones by the end of their names, for the one layer there is."""
    return {f"{LAYER}.{name.replace('__', '.')}": torch.ones(s) for name, s in shapes.items()}


FORGED = "\nerror: \x1b[2J"
DOWN_UP = {"lora_down__weight": (4, 32), "lora_up__weight": (32, 4)}
LORAS: dict[str, dict] = {
    "nothing": {},
    "no up": parts(lora_down__weight=(4, 32)),
    "a rank of zero": parts(lora_down__weight=(0, 32), lora_up__weight=(32, 0), alpha=()),
    "ranks that differ": parts(lora_down__weight=(4, 32), lora_up__weight=(32, 8)),
    "scalars": parts(lora_down__weight=(), lora_up__weight=()),
    "an alpha of two": parts(**DOWN_UP, alpha=(2,)),
    "an alpha of none": parts(**DOWN_UP, alpha=(0,)),
    "a dora_scale of another size": parts(**DOWN_UP, dora_scale=(7,)),
    "a dora_scale of no dimension": parts(**DOWN_UP, dora_scale=()),
    "of another layer": {"x.lora_down.weight": torch.ones(4, 32)},
    "of another size": parts(lora_down__weight=(4, 64), lora_up__weight=(32, 4)),
    "two kinds": parts(**DOWN_UP, diff=(32, 32)),
    "a part twice": parts(**DOWN_UP, lora_A__weight=(4, 32)),
    "a text encoder's": {"lora_te_x.lora_down.weight": torch.ones(4, 32)},
    "in 8 bits without a scale": {f"{LAYER}.diff": torch.ones(32, 32, dtype=torch.int8)},
    "empty LoKr": parts(lokr_w1=(0, 0), lokr_w2=(32, 32)),
    "LoHa in halves": parts(hada_w1_a=(32, 4), hada_w1_b=(4, 32)),
    "LoKr with a core of another size": parts(
        lokr_w1=(2, 2), lokr_w2_a=(4, 16), lokr_w2_b=(4, 16), lokr_t2=(3, 4, 1)),
    "a bias of another size": parts(diff_b=(33,)),
}  # fmt: skip
LORA_METADATA = {  # of a sound LoRA without an alpha tensor
    "a word": {"lora_adapter_metadata": "word"},
    "a list": {"lora_adapter_metadata": "[8]"},
    "deep": {"lora_adapter_metadata": '{"a":' * 10_000},
    "a key twice": {"lora_adapter_metadata": '{"lora_alpha": 1, "lora_alpha": "x"}'},
    "an alpha that forges a line": {"transformer.lora_alpha": f"8{FORGED}"},
    "an alpha of 4,000 digits": {"alpha": "9" * 4_000},
    "an alpha of 5,000 digits": {"lora_adapter_metadata": '{"alpha": %s}' % ("9" * 5_000)},
    "an alpha of zero": {"ss_network_alpha": "0"},
    "an alpha of a megabyte": {"lora_alpha": "x" * 1_000_000},
    "a rank of another layer": {"lora_alpha": "8", "r": "77"},
    "two alphas": {"lora_alpha": "8", "lora_adapter_metadata": '{"lora_alpha": 4}'},
    "a pattern of exponential time": {
        "lora_adapter_metadata": '{"lora_alpha": 8, "alpha_pattern": {"(\\\\w+)+,": 2}}'},
    "a pattern of many quantifiers": {
        "lora_adapter_metadata": '{"alpha": 8, "alpha_pattern": {"%s,": 2}}' % (".*" * 90)},
    "a pattern that forges a line": {"alpha": "8", "alpha_pattern": json.dumps({FORGED * 99: 2})},
    "patterns without end": {
        "alpha": "8", "alpha_pattern": json.dumps(dict.fromkeys(map(str, range(20_000)), 1))},
}  # fmt: skip
LORA_CONFIGS = {  # adapter_config.json beside a sound LoRA
    "no JSON": b"{",
    "a list": b"[]",
    "no object of alphas": b'{"lora_alpha": {"a": 1}}',
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
    "UTF-16 of nonsense": b"\xff\xfe" + bytes(9),
}
STRANGE_LORAS = {  # shapes that no library writes: (dtype, shape), all without a byte
    "sizes that overflow": ("F32", (1 << 40, 1 << 40, 0)),
    "33 dimensions": ("F32", (0,) * 33),
    "64 dimensions of one": ("F32", (1,) * 31 + (0,)),
}
KIND = {"format": c.RECORDING_FORMAT, "version": "1"}


def recorded(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A recording's tensors of the one layer, some of them changed or, with None, left out."""
    found = {
        "tokens": torch.tensor([8]),
        "absmax": torch.ones(32),
        "block_histogram": torch.ones(len(c.BIN_EDGES), dtype=torch.int64),
        "quantisation": torch.ones(2, dtype=torch.float64),
    } | changed
    return {f"{LAYER}.{name}": tensor for name, tensor in found.items() if tensor is not None}


def with_moments(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same with second moments."""
    packed = sum(rows * columns for rows, columns in c.strip_shapes(32))
    return recorded(
        **{
            "moment_tokens": torch.tensor([8]),
            "first_moment": torch.ones(32, dtype=torch.float64),
            "rows": torch.ones(8, 32, dtype=torch.bfloat16),
            "second_moment": torch.ones(packed, dtype=torch.bfloat16),
            "second_moment_low": torch.zeros(packed, dtype=torch.uint8),
        }
        | changed
    )


def recorded_hole(folder: Path) -> None:
    """A recording that says its layer has a tebibyte of channels."""
    sizes = {"absmax": 1 << 38, "tokens": 1, "quantisation": 2, "block_histogram": len(c.BIN_EDGES)}
    whole = {f"{LAYER}.{x}": (dtype, (sizes[x],)) for x, dtype in c.RECORDING_PARTS.items()}
    header_only(sound(folder) / "r.safetensors", whole, KIND)


MOMENTS = KIND | {"inputs": json.dumps({LAYER: LAYER})}
NAN = float("nan")
RECORDINGS: dict[str, tuple[dict, dict]] = {  # tensors, metadata
    "no recording": (recorded(), {}),
    "a version of the future": (recorded(), KIND | {"version": "2"}),
    "no histogram": (recorded(block_histogram=None), KIND),
    "a histogram of two dimensions": (
        recorded(block_histogram=torch.ones(1, len(c.BIN_EDGES), dtype=torch.int64)), KIND),
    "a negative histogram": (
        recorded(block_histogram=-torch.ones(len(c.BIN_EDGES), dtype=torch.int64)), KIND),
    "a histogram that overflows": (
        recorded(block_histogram=torch.full((len(c.BIN_EDGES),), 2**62)), KIND),
    "figures of two dimensions": (
        recorded(quantisation=torch.ones(2, 1, dtype=torch.float64)), KIND),
    "one figure": (recorded(quantisation=torch.ones(1, dtype=torch.float64)), KIND),
    "an infinite figure": (
        recorded(quantisation=torch.full((2,), float("inf"), dtype=torch.float64)), KIND),
    "an absmax of another type": (recorded(absmax=torch.ones(32).half()), KIND),
    "an absmax of nothing": (recorded(absmax=torch.ones(0)), KIND),
    "an absmax that is not a number": (recorded(absmax=torch.full((32,), NAN)), KIND),
    "other columns": (recorded(absmax=torch.ones(64)), KIND),
    "inputs that are no JSON": (with_moments(), KIND | {"inputs": "{"}),
    "inputs that are a list": (with_moments(), KIND | {"inputs": "[]"}),
    "inputs that are deep": (with_moments(), KIND | {"inputs": "[" * 100_000}),
    "an input of another layer": (with_moments(), KIND | {"inputs": '{"x": "y"}'}),
    "an input that is a list": (with_moments(), KIND | {"inputs": json.dumps({LAYER: [LAYER]})}),
    "moments that are missing": (recorded(), MOMENTS),
    "moments of no token": (with_moments(moment_tokens=torch.tensor([0])), MOMENTS),
    "moments of another size": (with_moments(first_moment=torch.ones(31)), MOMENTS),
    "rows that are not numbers": (
        with_moments(rows=torch.full((8, 32), NAN, dtype=torch.bfloat16)), MOMENTS),
    "no rows": (with_moments(rows=torch.ones(0, 32, dtype=torch.bfloat16)), MOMENTS),
    "a mean that is not a number": (
        with_moments(first_moment=torch.full((32,), NAN, dtype=torch.float64)), MOMENTS),
    "a moment that is not a number": (
        with_moments(second_moment=torch.full((1024,), NAN, dtype=torch.bfloat16)), MOMENTS),
}  # fmt: skip
SCALES = {
    "none": {},
    "of a 16-bit layer": {"a.weight": torch.ones(4, 4), "a.input_scale": torch.ones(())},
    "in 16 bits": {
        "a.weight": torch.ones(4, 4, dtype=torch.uint8), "a.input_scale": torch.ones(()).half()},
    "of zero": {
        "a.weight": torch.ones(4, 4, dtype=torch.uint8), "a.input_scale": torch.zeros(())},
    "not a number": {
        "a.weight": torch.ones(4, 4, dtype=torch.uint8), "a.input_scale": torch.tensor(NAN)},
    "without a weight": {"a.input_scale": torch.ones(())},
}  # fmt: skip


def saved(name: str, tensors: dict, metadata: dict | None = None) -> Make:
    return lambda folder: save_file(tensors, sound(folder) / name, metadata)


def with_config(content: bytes) -> Make:
    """A LoRA in a folder of its own, as PEFT writes it, and its configuration."""

    def make(folder: Path) -> None:
        sound(folder)
        (folder / "peft").mkdir()
        save_file(parts(**DOWN_UP), folder / "peft" / "adapter_model.safetensors")
        (folder / "peft" / "adapter_config.json").write_bytes(content)

    return make


def tensor_cases() -> Iterator[tuple[str, Case]]:
    command = (*CONVERT, "--merge-lora", "FOLDER/l.safetensors")
    for name, tensors in LORAS.items():
        yield f"lora: {name}", Case(saved("l.safetensors", tensors), command)
    sound_lora = parts(**DOWN_UP)
    for name, metadata in LORA_METADATA.items():
        yield f"lora metadata: {name}", Case(saved("l.safetensors", sound_lora, metadata), command)
    for name, content in LORA_CONFIGS.items():
        yield (
            f"lora configuration: {name}",
            Case(with_config(content), (*CONVERT, "--merge-lora", "FOLDER/peft")),
        )
    for name, shape in STRANGE_LORAS.items():
        whole = {f"{LAYER}.diff": shape}
        make = lambda folder, whole=whole: header_only(sound(folder) / "l.safetensors", whole, {})  # noqa: E731
        yield f"lora: {name}", Case(make, command)
    options = ("--activation-stats", "FOLDER/r.safetensors", "--input-scale-policy", "headroom")
    yield "recording: a hole", Case(recorded_hole, (*CONVERT, *options))
    for name, (tensors, metadata) in RECORDINGS.items():
        make = saved("r.safetensors", tensors, metadata)
        yield f"recording: {name}", Case(make, (*CONVERT, *options))
    for name, tensors in SCALES.items():
        make = saved("s.safetensors", tensors)
        command = (*CONVERT, "--input-scale-from", "FOLDER/s.safetensors")
        yield f"input scales: {name}", Case(make, command)


def fp8_source(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    found = {"weight": torch.ones(32, 32).to(torch.float8_e4m3fn), "weight_scale": torch.ones(())}
    found |= changed
    return {f"{LAYER}.{name}": tensor for name, tensor in found.items() if tensor is not None}


def nvfp4_source(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    weight = torch.ones(128, 64)
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    codes, blocks = c.encode_nvfp4(weight, scale)
    config = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    found = {"weight": codes, "weight_scale": c.swizzle(blocks), "weight_scale_2": scale}
    found |= {"comfy_quant": config} | changed
    return {f"{LAYER}.{name}": tensor for name, tensor in found.items() if tensor is not None}


def byte_text(value: bytes) -> torch.Tensor:
    return torch.tensor(list(value), dtype=torch.uint8)


SOURCES = {
    "FP8 without its scale": fp8_source(weight_scale=None),
    "FP8 with a scale of zero": fp8_source(weight_scale=torch.zeros(())),
    "FP8 with a negative scale": fp8_source(weight_scale=torch.tensor(-1.0)),
    "FP8 with an infinite scale": fp8_source(weight_scale=torch.tensor(float("inf"))),
    "FP8 with a scale for most rows": fp8_source(weight_scale=torch.ones(31, 1)),
    "FP8 with rows of scales that are NaN": fp8_source(weight_scale=torch.full((32, 1), NAN)),
    "FP8 with a block scale of zero": fp8_source(weight_scale_inv=torch.eye(2), weight_scale=None),
    "FP8 with two scales": fp8_source(weight_scale_inv=torch.ones(())),
    "FP8 with a scale of many dimensions": fp8_source(weight_scale=torch.ones(*[1] * 30, 2)),
    "FP8 with more scales than weights": fp8_source(weight_scale=torch.ones(64, 64)),
    "FP8 whose scale is lost": fp8_source(
        weight=torch.full((32, 32), 448.0).to(torch.float8_e4m3fn), weight_scale=None),
    "FP8 with an integer scale": fp8_source(weight_scale=torch.ones((), dtype=torch.int64)),
    "FP8 with an empty scale": fp8_source(weight_scale=torch.ones(0)),
    "FP8 of one dimension with two scales": fp8_source(
        weight=torch.ones(32).to(torch.float8_e4m3fn), weight_scale=torch.ones(2)),
    "FP8 of no dimension with two scales": fp8_source(
        weight=torch.ones(()).to(torch.float8_e4m3fn), weight_scale=torch.ones(2)),
    "NVFP4 without its block scales": nvfp4_source(weight_scale=None),
    "NVFP4 with half its block scales": nvfp4_source(
        weight_scale=torch.ones(64, 4).to(torch.float8_e4m3fn)),
    "NVFP4 with a global scale that is no number": nvfp4_source(weight_scale_2=torch.tensor(NAN)),
    "NVFP4 with a global scale of zero": nvfp4_source(weight_scale_2=torch.zeros(())),
    "NVFP4 with block scales that are not numbers": nvfp4_source(
        weight_scale=torch.full((128, 4), NAN).to(torch.float8_e4m3fn)),
    "NVFP4 with an input scale that is not a number": nvfp4_source(input_scale=torch.tensor(NAN)),
    "NVFP4 with a configuration of FP8": nvfp4_source(
        comfy_quant=byte_text(b'{"format": "float8_e4m3fn"}')),
    "NVFP4 with a configuration that is no JSON": nvfp4_source(comfy_quant=byte_text(b"{")),
    "NVFP4 with a deep configuration": nvfp4_source(
        comfy_quant=byte_text(b'{"format": "nvfp4", "a":' + b"[" * 900 + b"]" * 900 + b"}")),
    "NVFP4 with a configuration of 70,000 bytes": nvfp4_source(
        comfy_quant=byte_text(b'{"format": "nvfp4"}' + b" " * 70_000)),
    "integers": {f"{LAYER}.weight": torch.ones(32, 32, dtype=torch.int8)},
}  # fmt: skip
E4M3_ZEROS = torch.zeros(0, 3).to(torch.float8_e4m3fn)
TO_VERIFY = {  # what only --verify reads
    "legacy scale of a scalar": fp8_source(
        weight=torch.ones(()).to(torch.float8_e4m3fn), weight_scale=None,
        scale_weight=torch.ones(1)) | {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)},
    "legacy scale of float32": fp8_source(
        weight=torch.ones(()), weight_scale=None, scale_weight=torch.ones(3)
        ) | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)},
    "an empty packed weight": nvfp4_source(weight=torch.ones(0, 32, dtype=torch.uint8)),
    "an input scale of nothing": nvfp4_source(input_scale=torch.ones(0)),
    "no scale": nvfp4_source(weight_scale=None, weight_scale_2=None),
    "a block scale of nothing alone": nvfp4_source(weight_scale=E4M3_ZEROS, weight_scale_2=None),
}  # fmt: skip


# ── Logs ─────────────────────────────────────────────────────────────────────────────────────────

LINE = "nvfp4\tdynamic\tblocks.0.ffn.0\t0.01\t26.88\t(1, 32)\n"
LOGS: dict[str, tuple[str, object]] = {  # the file's name, what is in it
    "empty": ("f.log", ""),
    "no line end": ("f.log", LINE.strip()),
    "one endless line": ("f.log", "x" * (3 << 20)),
    "binary": ("f.log", bytes(range(256)) * 100),
    "spaces for tabs": ("f.log", LINE.replace("\t", " ")),
    "numbers that are none": ("f.log", LINE.replace("0.01", "NaN")),
    "a scale of a million digits": ("f.log", LINE.replace("0.01", "9" * 60_000)),
    "a scale of underscores": ("f.log", LINE.replace("0.01", "0_0")),
    "a name that forges a line": ("f.log", LINE.replace("blocks.0", "\x1b[2J\rerror:")),
    "another format": ("f.log", LINE.replace("nvfp4", "fp8")),
    "thousands of formats": (
        "f.log", "".join(LINE.replace("nvfp4", f"f{number}") for number in range(5_000))),
    "too many layers": (
        "f.log",
        "".join(LINE.replace("blocks.0", f"b{n}") for n in range(MOST_LAYERS + 1))),
    "nothing but line ends": ("f.log", "\n" * 2_000_000),
    "a bomb of line ends": ("f.log.bz2", bz2.compress(b"\n" * 200_000_000)),
    "a bomb of zeros": ("f.log.gz", gzip.compress(bytes(200_000_000), 1)),
    "a gzip that is none": ("f.log.gz", LINE),
    "a gzip that is cut": ("f.log.gz", gzip.compress(LINE.encode() * 1_000)[:-20]),
    "an xz that is none": ("f.log.xz", b"\xfd7zXZ\0" + bytes(100)),
}  # fmt: skip


def figures(**columns: object) -> dict:
    least = {"layer": LAYER, "scale_mean": 1, "scale_std": 0, "scale_p50": 1}
    return {"layers": [least | columns]}


ANALYSED: dict[str, object] = {
    "a mean of 4,000 digits": figures(scale_mean=DIGITS),
    "a deviation of 4,000 digits": figures(scale_std=DIGITS),
    "a figure of text": figures(scale_p50="1"),
    "a figure that is a list": figures(scale_p50=[]),
    "a name with a line feed": figures(layer="a\nb"),
    "steps that are text": figures() | {"steps": "abc"},
    "no percentile": figures(scale_p50=None),
    "a percentile of a thousand digits": {
        "layers": [{"layer": LAYER, "scale_mean": 1, "scale_std": 0, "scale_p" + "9" * 1000: 1}]},
    "deep": '{"layers":' * 100_000,
    "not JSON": "{",
}  # fmt: skip


def analysis_cases() -> Iterator[tuple[str, Case]]:
    for name, (file, content) in LOGS.items():
        command = ("--input", f"FOLDER/{file}", "--json", "FOLDER/out/o.json")
        yield f"log: {name}", Case(with_file(file, content), command, "analyze")
    for name, content in ANALYSED.items():
        command = ("--summary", "FOLDER/f.json", "--csv", "FOLDER/out/o.csv")
        yield f"log's summary: {name}", Case(with_file("f.json", content), command, "analyze")


# ── The corpus ───────────────────────────────────────────────────────────────────────────────────


def all_cases() -> Iterator[tuple[str, Case]]:
    yield from ((f"header: {name}", header_case(*row)) for name, row in HEADERS.items())
    yield from ((f"file: {name}", case) for name, case in FILES.items())
    yield from ((f"index: {name}", case) for name, case in INDEXES.items())
    yield from gguf_cases()
    yield from text_cases()
    yield from tensor_cases()
    for name, tensors in SOURCES.items():
        tensors = tensors | {"blocks.1.ffn.0.weight": torch.ones(32, 32)}
        yield f"source: {name}", Case(saved("m.safetensors", tensors), CONVERT)
    for name, tensors in TO_VERIFY.items():
        yield f"verify: {name}", Case(saved("m.safetensors", tensors), VERIFY)
    yield from analysis_cases()


CASES = dict(all_cases())
WORDS_OF_GGUF = r"(?<=of an unknown kind: )(?!it ).*"  # they change from version to version


def prepare(case: Case, folder: Path) -> list[str]:
    """Make a case's files, and an empty folder for its output; returns the command line."""
    (folder / "out").mkdir(parents=True)
    case.make(folder)
    return [argument.replace("FOLDER", str(folder)) for argument in case.arguments]


def shown(problems: str, folder: Path) -> str:
    """What was printed without what depends on the machine."""
    return re.sub(WORDS_OF_GGUF, "...", problems.replace(str(folder), "FOLDER"))


def outcome(case: Case, folder: Path) -> tuple[int, str, float]:
    """Status, what was printed, and the processor's seconds, whatever else the machine does."""
    command, out, problems = prepare(case, folder), io.StringIO(), io.StringIO()
    begin = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(problems):
        status = PROGRAMS[case.program](command)
    seconds = time.process_time() - begin
    return status, shown(out.getvalue() + problems.getvalue(), folder), seconds


def render() -> str:
    """The golden text: each case and what it prints."""
    lines = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            lines += [f"# {name}", outcome(case, Path(folder) / "f")[1].rstrip("\n")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for number, case in enumerate(CASES.values()):
            prepare(case, Path(sys.argv[1]) / f"{number:03}")
        print(f"{len(CASES)} cases in {sys.argv[1]}")
    else:
        HOSTILE.write_text(render(), encoding="utf-8", newline="\n")
