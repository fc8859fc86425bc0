"""Fuzz every reader: mutated files, and nothing may come of them but an error in one line.

Sound samples are changed at random (bytes flipped, cut, repeated, swapped; JSON values replaced by
awkward ones, with the lengths around them made right again) and read in this process. A reader
may refuse a file with ConvertError or read it. Anything else is a find: it is saved as a file and
counted, as is growth of memory. The same seed gives the same inputs.

Usage: python tests/fuzz/fuzz.py --seconds 60 [--reader NAME ...] [--seed 0] [--finds FOLDER]
"""

import argparse
import contextlib
import copy
import gc
import io
import json
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safetensors.torch import save as to_bytes

import convert_nvfp4 as c
from nvfp4.compare.entry import compare_models
from nvfp4.logs.entry import analyze_log
from support import hostile
from support.paths import ROOT

Change = Callable[[random.Random, bytes], bytes]
WARM_UP = 200  # inputs before memory is watched
SLOW = 2.0  # seconds for one input, which are a few kilobytes
WORDS = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, -(2**63),
    10**400, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), "", "a", "\0",
    "a\nerror: b", "\x1b[2J", "\u202e", "\ud800", "x" * 300, "F32", "U8", "F8_E4M3", "nvfp4",
    "float8_e4m3fn", "weight", "(", "a{99999999999}", "../x", [], {}, [0], [[]], [1, 2], {"a": 1},
    [2**62, 2**62], [0, 2**62], {"format": "nvfp4"}, {"layers": {}}, "{}", "[]", '{"layers": {}}',
)  # fmt: skip


# ── Changes ──────────────────────────────────────────────────────────────────────────────────────


def change_bytes(draw: random.Random, data: bytes) -> bytes:
    """One change of a kind that a disk, a network or an editor makes."""
    raw, at = bytearray(data), draw.randrange(len(data) + 1)
    end = min(len(raw), at + draw.choice((1, 1, 2, 4, 8, 64)))
    kind = draw.randrange(8)
    if kind == 0 and raw:
        raw[min(at, len(raw) - 1)] ^= 1 << draw.randrange(8)
    elif kind == 1:
        raw[at:end] = draw.randbytes(end - at)
    elif kind == 2:
        del raw[at:end]
    elif kind == 3:
        del raw[at:]
    elif kind == 4:
        raw[at:at] = raw[at:end] * draw.choice((1, 2, 100))
    elif kind == 5:
        number = draw.choice((0, 1, 2**7, 2**15, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1))
        raw[at : at + 8] = struct.pack("<Q", number)
    elif kind == 6:
        raw[at : at + 4] = struct.pack("<I", draw.randrange(16))
    else:
        raw[at:at] = draw.choice((b"\n", b"\0", b'"', b"{", b"]", b"\xff", b"\t", b"\x1b[2J"))
    return bytes(raw)


def places(value: object) -> list[tuple[object, object]]:
    """(container, key) of everything in a JSON value."""
    found = []
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value)
        if isinstance(value, list) else ()
    ):  # fmt: skip
        found += [(value, key), *places(inner)]
    return found


def change_value(draw: random.Random, value: object) -> None:
    """Replace, remove, rename or copy something in a JSON value."""
    found = places(value)
    if not found:
        return
    (container, key), (source, other) = draw.choice(found), draw.choice(found)
    kind = draw.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        name = draw.choice([word for word in WORDS if isinstance(word, str)])
        container[draw.choice((name, f"{key}{name}", f"{name}{key}"))] = container.pop(key)
    elif kind == 2:
        container[key] = copy.deepcopy(source[other])
    elif kind == 3 and type(container[key]) in (int, float):
        container[key] += draw.choice((-1, 1, 8, -8, 256))
    else:
        container[key] = copy.deepcopy(draw.choice(WORDS))


def change_json(draw: random.Random, data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return change_bytes(draw, data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change_value(draw, value)
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def change_header(draw: random.Random, data: bytes) -> bytes:
    """Change a safetensors header's JSON or data, with a length that is right."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if draw.random() < 0.7:
        header = change_json(draw, header)
    elif body:
        at = draw.randrange(len(body))
        noise = draw.choice((b"\xff", b"\x7f\x80", b"\0" * 8, b"\xff" * 8, draw.randbytes(4)))
        body = body[:at] + noise[: len(body) - at] + body[at + len(noise) :]
    return len(header).to_bytes(8, "little") + header + body


def change_lines(draw: random.Random, data: bytes) -> bytes:
    """Change a column of a line, or the order of lines."""
    lines = data.split(b"\n")
    row = draw.randrange(len(lines))
    columns = lines[row].split(b"\t")
    words = (b"", b"0", b"-1", b"nan", b"1e999", b"1e-300", b"\xff", b"fp8", b"all", b"# x", b"()")
    columns[draw.randrange(len(columns))] = draw.choice(words)
    lines[row] = b"\t".join(columns)
    if draw.random() < 0.3:
        draw.shuffle(lines)
    return b"\n".join(lines)


def change_json_line(draw: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    row = draw.randrange(len(lines))
    lines[row] = change_json(draw, lines[row])
    return b"\n".join(lines)


BINARY = (change_header, change_header, change_bytes)
TEXT = (change_json, change_json, change_json, change_bytes)
LINES = (change_lines, change_bytes)
JSON_LINES = (change_json_line, change_json_line, change_json_line, change_bytes)


# ── Readers ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Reader:
    """What is read, the changes made to its samples, and how it is read from a folder."""

    file: str
    samples: list[bytes]
    changes: tuple[Change, ...]
    read: Callable[[Path], object]
    counts: Counter = field(default_factory=Counter)

    def make(self, draw: random.Random) -> bytes:
        data = draw.choice(self.samples)
        for _ in range(draw.choice((1, 1, 2, 3))):
            data = draw.choice(self.changes)(draw, data)
        return data


def command(*arguments: str, program: Callable = c.main) -> Callable[[Path], object]:
    """Runs a program on a folder, and checks that its problems are lines of their own."""

    def read(path: Path) -> object:
        out, problems = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(problems):
            status = program([word.replace("FOLDER", str(path.parent)) for word in arguments])
        for line in problems.getvalue().splitlines():
            assert line.startswith(("error: ", "  ")), f"stderr has {line!r}"
            assert line.isprintable(), f"stderr has {line!r}"
        assert all(map(str.isprintable, out.getvalue().split("\n"))), "stdout is not printable"
        finds = "--verify" in arguments or program is compare_models  # are told on stdout
        assert status == bool(problems.getvalue()) or finds, f"ended with {status}"
        if problems.getvalue():
            raise c.ConvertError(problems.getvalue())
        return status

    return read


def sound_model() -> c.Model:
    with tempfile.TemporaryDirectory() as folder:
        return c.open_model(hostile.sound(Path(folder)) / "m.safetensors")


def read_statistics(path: Path) -> None:
    for recorded in c.read_recording(path).values():
        recorded.headroom(2.0), recorded.saturated(0.1), recorded.rel_rmse
        if recorded.moments:
            c.load_statistics(recorded.moments, c.torch.device("cpu"))


def read_scales(path: Path) -> None:
    found = c.Options(source=path, output="o.safetensors", input_scale_summary_json=path)
    rows = c.read_rows(path, "calibration summary")
    c.summary_calibration(found, rows)
    c.varying_layers(found, rows)


def read_figures(path: Path) -> None:
    found = c.Options(
        source=path, output="o.safetensors", sensitivity_json=path, sensitivity_threshold=0.1
    )
    c.read_sensitivity(found, {}, [], {})


def read_converted(path: Path) -> object:
    """Convert, and lint what was written: a wrong file is a find, too."""
    out = path.parent / "o.safetensors"
    status = CONVERT_SOURCE(path)
    written = c.open_model(out)
    found = c.lint(written, c.stored_layers(written))
    wrong = [finding for finding in found if finding.outcome >= c.Outcome.WRONG]
    assert not wrong, f"wrote a file with {wrong[0]}"
    return status


def lay_model(folder: Path) -> None:
    os.utime(hostile.sound(folder) / "m.safetensors", (0, 0))  # a journal knows its source by that


def left_behind() -> tuple[bytes, bytes]:
    """The partial file and the journal of a run that failed once all tensors were written."""

    def fail(_: c.PartialFiles) -> None:
        raise c.ConvertError("no more")

    with tempfile.TemporaryDirectory() as folder:
        lay_model(Path(folder))
        publish, c.PartialFiles.publish = c.PartialFiles.publish, fail
        try:
            GO_ON(Path(folder) / "any")
        except c.ConvertError:
            pass
        finally:
            c.PartialFiles.publish = publish
        names = ("o.safetensors.partial", "o.safetensors.partial.journal")
        partial, journal = (Path(folder, name).read_bytes() for name in names)
    return partial, journal.replace(folder.encode(), b"FOLDER")


def read_journal(path: Path) -> object:
    lay_model(path.parent)
    path.with_name("o.safetensors.partial").write_bytes(PARTIAL)
    path.write_bytes(path.read_bytes().replace(b"FOLDER", os.fsencode(path.parent)))
    return GO_ON(path)


def as_json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def lora_samples() -> list[bytes]:
    loha = {f"hada_w{n}_{x}": (32, 4) if x == "a" else (4, 32) for n in (1, 2) for x in "ab"}
    kinds = (
        {**hostile.DOWN_UP, "alpha": (), "dora_scale": (32, 1)},
        {"lokr_w1": (2, 2), "lokr_w2": (16, 16)},
        {"diff": (32, 32), "diff_b": (32,)},
        loha,
    )
    stated = {
        "lora_adapter_metadata": json.dumps(
            {"transformer.lora_alpha": 8, "transformer.r": 4, "alpha_pattern": {".*0": 2}}
        ),
        "transformer.lora_alpha": "8",
        "ss_network_alpha": "8.0",
    }
    renamed = {f"transformer_2.{key}": value for key, value in hostile.parts(diff=(32, 32)).items()}
    return [
        *(to_bytes(hostile.parts(**shapes)) for shapes in kinds),
        to_bytes(hostile.parts(**hostile.DOWN_UP), stated),
        to_bytes(renamed),
    ]


PEFT = {"r": 4, "lora_alpha": 8, "use_rslora": False, "alpha_pattern": {"ffn.0": 2, ".*1": 3},
        "rank_pattern": {"blocks.0.ffn.0": 4}, "transformer.lora_alpha": 8}  # fmt: skip


def read_lora_config(path: Path) -> object:
    """The configuration beside a LoRA."""
    lora = path.with_name("adapter_model.safetensors")
    lora.write_bytes(to_bytes(hostile.parts(**hostile.DOWN_UP)))
    return c.merge_loras([c.Lora(lora, 1.0)], KNOWN, partial=True)


def safetensors_samples() -> list[bytes]:
    ones = c.torch.ones
    return [
        to_bytes({"a": ones(2), "b.weight": ones(2, 2).half()}, {"k": "v"}),
        to_bytes({"a.x": ones(3, dtype=c.torch.uint8), "b": ones(0), "c": ones(())}),
        to_bytes({}),
    ]


def source_samples() -> list[bytes]:
    layers = json.dumps({"layers": {hostile.LAYER: {"format": "nvfp4"}}})
    packed = hostile.nvfp4_source(bias=c.torch.zeros(128))
    return [
        to_bytes(packed, {"_quantization_metadata": layers}),
        to_bytes(hostile.fp8_source()),
        to_bytes(hostile.TO_VERIFY["legacy scale of float32"]),
        to_bytes({f"blocks.{n}.x.weight": c.torch.ones(32, 32) for n in (0, 1)}),
        *scaled_samples(),
    ]


def scaled_samples() -> list[bytes]:
    """Layers scaled by rows, by blocks and by tensor, in every dtype that a source may have."""
    ones, codes = c.torch.ones, c.torch.ones(32, 64).to(c.torch.float8_e4m3fn)
    rotated = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    kinds = (
        {"weight": codes, "weight_scale": ones(32, 1)},
        {"weight": codes, "weight_scale_inv": ones(1, 1)},
        {"weight": codes, "scale_weight": ones(32, 2, 1)},
        {"weight": codes.to(c.torch.float8_e5m2), "weight_scale": ones(()).bfloat16()},
        {"weight": codes, "weight_scale": c.torch.full((128, 4), 127, dtype=c.torch.uint8),
         "comfy_quant": hostile.byte_text(b'{"format": "mxfp8"}')},
        {"weight": ones(32, 64, dtype=c.torch.int8), "weight_scale": ones(32, 1),
         "comfy_quant": hostile.byte_text(json.dumps(rotated).encode())},
    )  # fmt: skip
    found = [to_bytes({f"{hostile.LAYER}.{n}": part for n, part in kind.items()}) for kind in kinds]
    inside = {f"model.diffusion_model.blocks.{n}.x.weight": ones(32, 32) for n in (0, 1)}
    beside = {f"text_encoders.t5.{name}": ones(4, 4) for name in ("weight", "scale_weight")}
    marker = {"text_encoders.t5.scaled_fp8": c.torch.zeros(2).to(c.torch.float8_e4m3fn)}
    return [*found, to_bytes(inside | beside | marker)]


def read_split(path: Path) -> object:
    """The first part of two, beside a sound second one."""
    path.with_name("f-00002-of-00002.gguf").write_bytes(split_part(1))
    return c.open_gguf(path)


def split_part(number: int) -> bytes:
    """One of two parts of a GGUF, counted from 0."""
    keys = ("split.no", number), ("split.count", 2), ("split.tensors.count", 2)
    pairs = (hostile.pair(key, hostile.U32, struct.pack("<I", value)) for key, value in keys)
    return hostile.gguf(*pairs, hostile.tensor(f"blocks.{number}.x.weight"), pairs=3)


def gguf_samples() -> list[bytes]:
    words = struct.pack("<IQ", hostile.TEXT, 2) + hostile.text("x") * 2
    entries = hostile.pair("a", hostile.LIST, words), hostile.pair("b", hostile.U32, bytes(4))
    return [hostile.GOOD, hostile.gguf(*entries, hostile.tensor(), pairs=2)]


def summary_samples() -> list[bytes]:
    row = {"layer": hostile.LAYER, "scale_p99_9": 0.01, "amax_p99_9": 2.0, "scale_std": 0.1,
           "scale_mean": 0.2, "scale_p50": 0.1, "rel_rmse": 0.1}  # fmt: skip
    other = row | {"layer": "net.blocks.1.x", "rel_rmse_mean": 0.2}
    steps = [{"layer": hostile.LAYER, "step": 0, "scale_mean": 0.1}]
    return as_json({"layers": [row]}, {"layers": [row, other], "steps": steps})


OUT = ("FOLDER/o.safetensors", "--quiet")
GO_ON = command(hostile.CONVERT[0], *OUT, "--preset", "all", "--resume")
PARTIAL, JOURNAL = left_behind()
NAMED = JOURNAL + json.dumps({"shards": [["o.safetensors", 0, 0]]}).encode() + b"\n"
LAYERS = [f"{hostile.LAYER}.weight", f"{hostile.LAYER}.bias"]
INDEX = {"metadata": {}, "weight_map": dict.fromkeys(LAYERS, "m.safetensors")}
CONFIG = {
    hostile.LAYER: {"format": "nvfp4", "input_scale": 0.5},
    r"blocks\..*": {"format": "float16"},
}
SCALES = {"a.weight": c.torch.ones(4, 4, dtype=c.torch.uint8), "a.input_scale": c.torch.ones(())}
LOG = hostile.LINE * 3 + hostile.LINE.replace("vfp4", "x") + hostile.LINE.replace(".0.", ".1.")
SAMPLES: dict[str, tuple[str, list[bytes], tuple[Change, ...]]] = {  # file, contents, changes
    "header": ("f.safetensors", safetensors_samples(), BINARY),
    "source": ("s.safetensors", source_samples(), BINARY),
    "lora": ("f.safetensors", lora_samples(), BINARY),
    "lora config": ("adapter_config.json", as_json(PEFT), TEXT),
    "scales": ("f.safetensors", [to_bytes(SCALES)], BINARY),
    "recording": ("f.safetensors", [to_bytes(hostile.recorded(), hostile.KIND),
                                    to_bytes(hostile.with_moments(), hostile.MOMENTS)], BINARY),
    "gguf": ("f.gguf", gguf_samples(), (change_bytes,)),
    "split gguf": ("f-00001-of-00002.gguf", [split_part(0)], (change_bytes,)),
    "index": ("f.json", as_json(INDEX), TEXT),
    "config": ("f.json", as_json(CONFIG), TEXT),
    "summary": ("f.json", summary_samples(), TEXT),
    "list": ("f.txt", [b"# x\nblocks.0.ffn.0\nblocks.1.ffn.2.weight # 1\n"], LINES),
    "journal": ("o.safetensors.partial.journal", [JOURNAL, NAMED], JSON_LINES),
    "log": ("f.log", [LOG.encode()], LINES),
}  # fmt: skip

ALL = (hostile.CONVERT[0], *OUT, "--preset", "all")
CONVERT_SOURCE = command("FOLDER/s.safetensors", *OUT, "--preset", "all", "--include", r"\.x$")
KNOWN = sound_model()
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {  # samples, and what reads them
    "header": ("header", c.read_header),
    "index": ("index", c.open_model),
    "gguf": ("gguf", c.open_gguf),
    "split gguf": ("split gguf", read_split),
    "source": ("source", c.open_source),
    "summary": ("summary", read_scales),
    "sensitivity": ("summary", read_figures),
    "config": ("config", lambda path: c.read_layer_config(path, KNOWN)),
    "list": ("list", c.read_layer_list),
    "lora": ("lora", lambda path: c.merge_loras([c.Lora(path, 1.0)], KNOWN, partial=True)),
    "lora config": ("lora config", read_lora_config),
    "recording": ("recording", read_statistics),
    "scales": ("scales", c.read_reference_scales),
    "log": ("log", command(
        "--input", "FOLDER/f.log", "--csv", "FOLDER/o.csv", program=analyze_log)),
    "log summary": ("summary", command(
        "--summary", "FOLDER/f.json", "--json", "FOLDER/o.json", program=analyze_log)),
    "verify": ("source", command("--verify", "FOLDER/s.safetensors")),
    "verify against": ("source", command(
        "--verify", "FOLDER/m.safetensors", "--source", "FOLDER/s.safetensors", "--quiet")),
    "compare": ("source", command(
        "FOLDER/s.safetensors", "FOLDER/m.safetensors", program=compare_models)),
    "compare with gguf": ("gguf", command("FOLDER/f.gguf", program=compare_models)),
    "convert": ("source", read_converted),
    "convert with lora": ("lora", command(*ALL, "--merge-lora", "FOLDER/f.safetensors")),
    "convert with recording": ("recording", command(
        *ALL, "--activation-stats", "FOLDER/f.safetensors", "--input-scale-policy", "headroom")),
    "convert with config": ("config", command(
        hostile.CONVERT[0], *OUT, "--dry-run", "--layer-config", "FOLDER/f.json")),
    "journal": ("journal", read_journal),
    "convert with summary": ("summary", command(*ALL, "--dry-run", *hostile.SUMMARY)),
}  # fmt: skip


# ── The run ──────────────────────────────────────────────────────────────────────────────────────


def resident() -> int:
    """Bytes of memory in use now."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def read_one(reader: Reader, data: bytes, folder: Path, finds: Path) -> None:
    """Read an input; what is neither read nor refused is saved, once for each place."""
    path = folder / reader.file
    path.write_bytes(data)
    begin, what = time.process_time(), "read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(path)
    except c.ConvertError as error:
        what = "refused" if str(error) else "refused without a word"
    except (Exception, SystemExit, RecursionError) as error:  # noqa: BLE001
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if f.filename.startswith(str(ROOT)) and "fuzz" not in f.filename]
        where = f"{ours[-1].name}:{ours[-1].lineno}" if ours else "check"
        what = f"{type(error).__name__} in {where}"
        first = str(error).partition("\n")[0]
        save(finds / path.name, data, what, first[:200])
    if time.process_time() - begin > SLOW:
        save(finds / path.name, data, "slow", f"{time.process_time() - begin:.1f} s")
        what = "slow"
    reader.counts[what] += 1


def save(like: Path, data: bytes, what: str, why: str) -> None:
    name = "".join(x if x.isalnum() else "_" for x in what)
    if not (path := like.with_stem(name)).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"  find: {what}: {why}\n        {path}", flush=True)


def fuzz(name: str, reader: Reader, seconds: float, seed: int, finds: Path) -> int:
    """Read mutated inputs for so long; prints a line of figures and returns the finds."""
    draw = random.Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as tmp:
        folder = hostile.sound(Path(tmp))
        for data in reader.samples:  # what is imported at the first use takes seconds
            (folder / reader.file).write_bytes(data)
            with contextlib.suppress(c.ConvertError):
                reader.read(folder / reader.file)
        for _ in range(WARM_UP):  # caches fill
            read_one(reader, reader.make(draw), folder, finds / name)
        before, end = resident(), time.monotonic() + seconds
        while time.monotonic() < end:
            read_one(reader, reader.make(draw), folder, finds / name)
    grown, counts = (resident() - before) / 2**20, reader.counts
    good = counts["read"] + counts["refused"]
    print(
        f"{name:24} {counts.total():9,} inputs  {counts['refused']:9,} refused  "
        f"{counts['read']:8,} read  {counts.total() - good:5,} finds  {grown:+6.1f} MB",
        flush=True,
    )
    return counts.total() - good


def main() -> int:
    known = {name: Reader(*SAMPLES[sample], read) for name, (sample, read) in READERS.items()}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all readers together")
    parser.add_argument("--reader", choices=known, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finds", type=Path, default=Path("fuzz-finds"), help="folder for finds")
    given = parser.parse_args()
    names = given.reader or [*known]
    c.torch.set_num_threads(1)
    found = sum(
        fuzz(name, known[name], given.seconds / len(names), given.seed, given.finds)
        for name in names
    )
    total = sum(known[name].counts.total() for name in names)
    print(f"{total:,} inputs, {found:,} finds, seed {given.seed}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
