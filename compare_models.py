#!/usr/bin/env python3
"""Compare two checkpoints, or list one, and say what ComfyUI will do with each.

A and B are .safetensors files, *.safetensors.index.json, folders with one of these, or GGUFs.
Nothing but headers and configurations is read, so that 57 GB take a few seconds; --values decodes
both sides and measures every layer. With A alone: every layer's shape, precision and size.

Exit status: 0 the same structure (or A alone), 1 different, 2 unreadable or wrong usage.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

import torch
from tqdm import tqdm

import convert_nvfp4 as c

# ── 1. Tables and records ────────────────────────────────────────────────────────────────────────

# What a tensor that is neither a quantised weight nor its scale is for: the first that matches.
ROLES = {
    "modulation": r"modulation|scale_shift_table",
    "norms": r"norm",
    "biases": r"\.bias$",
    "weights": r"",
}
BASE_ROLES = ("biases", "norms", "modulation")
NOT_BASE = {*c.layer_parts()} - {"weight", "bias"}

# How ComfyUI runs a layer, by the label `how` gives it.
RUNS = {
    "NVFP4 W4A4, input scale": "4-bit weights times 4-bit activations at the baked scale, on "
    "Blackwell; decoded to 16-bit on other cards",
    "NVFP4 W4A4, no input scale": "4-bit weights times 4-bit activations, whose scale is measured "
    "on every call, on Blackwell; decoded to 16-bit on other cards",
    "NVFP4 W4A16": "4-bit weights, decoded and multiplied in 16-bit",
    "FP8 W8A8, input scale": "FP8 weights times FP8 activations at the baked scale",
    "FP8 W8A8, no input scale": "FP8 weights times FP8 activations that are clamped at 448",
    "FP8 W8A16": "FP8 weights, scaled and multiplied in 16-bit",
    "plain FP8": "FP8 weights without a scale, cast to 16-bit",
}
ENDINGS = {
    c.Outcome.LOADS: "loads and runs, as far as its headers tell",
    c.Outcome.SLOWER: "loads and runs, slower than it could",
    c.Outcome.WORSE: "loads and runs, with a poorer picture",
    c.Outcome.WRONG: "loads; expect noise or black frames",
    c.Outcome.FAILS: "does not load, or stops at its first step",
}
TOO_MUCH_NVFP4 = 0.9  # of the linear weights: known to give noise
WORST_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One checkpoint as it lies there, and what is wrong with it."""

    path: Path
    model: c.Model
    is_gguf: bool
    layers: dict[str, c.StoredLayer]  # by bare name; all that has a weight
    linear: dict[str, c.StoredLayer]  # those whose weight is a matrix
    marker: int | None  # elements of scaled FP8's marker tensor, if there is one
    findings: tuple[c.Finding, ...]


def open_side(path: Path) -> Side:
    """A checkpoint's headers and configurations. Raises ConvertError."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == c.GGUF_MAGIC
    except OSError:
        is_gguf = False  # a folder, or nothing: open_model tells
    model = c.open_gguf(path) if is_gguf else c.open_model(path)
    stored, marker = c.stored_layers(model), c.find_marker(model)
    layers = {c.bare(name): x for name, x in stored.items() if x.weight is not None}
    found = () if is_gguf else (*c.lint(model, stored, values=False), *c.lint_file(model))
    return Side(
        path=path,
        model=model,
        is_gguf=is_gguf,
        layers=layers,
        linear={name: layer for name, layer in layers.items() if len(layer.shape) == 2},
        marker=None if marker is None else math.prod(marker.shape),
        findings=found,
    )


# ── 2. One side ──────────────────────────────────────────────────────────────────────────────────


def how(layer: c.StoredLayer, side: Side) -> str:
    """A layer's scheme and how it multiplies: "NVFP4 W4A4, no input scale", or its dtype."""
    scheme, legacy = layer.scheme, bool(layer.format and layer.format.marker)
    if layer.format is None or not layer.format.is_quantised:
        return scheme
    read = side.marker is not None and "_quantization_metadata" not in side.model.metadata
    if layer.config is None and not (legacy and read):
        return f"{scheme}, {'which is not read' if legacy else 'no configuration'}"
    bits = f"W{layer.format.weight_bits}A{layer.format.activation_bits}"
    if layer.full_precision or (legacy and side.marker == 2):
        return f"{scheme} {bits[:2]}A16"
    scale = {"input_scale", "scale_input"} & layer.parts.keys()
    return f"{scheme} {bits}, {'input scale' if scale else 'no input scale'}"


def kind_of(name: str) -> str:
    """A tensor's name with its block's number left out: "blocks.*.ffn.0"."""
    return re.sub(r"(?<=\.)\d+(?=\.[^.])", "*", c.bare(name), count=1)


def kind_of_tensor(name: str) -> str:
    """Scales and configurations by their suffix, other tensors by the kind of their layer."""
    layer, _, part = name.rpartition(".")
    if part in NOT_BASE:
        return f"*.{part}"
    return f"{kind_of(layer)}.{part}" if part in ("weight", "bias") else kind_of(name)


def layer_bytes(layer: c.StoredLayer) -> int:
    return sum(ref.nbytes for part, ref in layer.parts.items() if part != "bias")


def base_precision(side: Side) -> dict[str, dict[str, int]]:
    """{role: {dtype: tensors}} of what is not quantised."""
    floats = (*c.SOURCE_FLOATS, "F64")
    quantised = {x.weight.name for x in side.layers.values() if x.weight.dtype not in floats}
    found = {role: Counter() for role in ROLES}
    for name, ref in side.model.tensors.items():
        if name in quantised or name.rpartition(".")[2] in NOT_BASE or c.bare(name) == c.MARKER:
            continue
        role = next(role for role, pattern in ROLES.items() if re.search(pattern, name))
        found[role][ref.dtype] += 1
    return {role: dict(counts.most_common()) for role, counts in found.items()}


def naming(side: Side) -> dict[str, int]:
    """{what names a scale or configuration: how many}."""
    counts = Counter(
        f".{part}" for layer in side.layers.values() for part in layer.parts if part in NOT_BASE
    )
    if side.marker is not None:
        counts[f"{c.MARKER}, {side.marker} elements"] = 1
    if listed := c.header_layers(side.model.metadata):
        counts["layers in _quantization_metadata"] = len(listed)
    return dict(sorted(counts.items()))


def advice(side: Side) -> list[tuple[c.Outcome, str]]:
    """What no rule forbids and yet costs quality: how much, and what to change."""
    found, linear = [], side.linear.values()
    work = sum(math.prod(layer.shape) for layer in linear)
    packed = [layer for layer in linear if layer.format and layer.format.activation_bits == 4]
    share = sum(math.prod(layer.shape) for layer in packed) / work if work else 0
    if share > TOO_MUCH_NVFP4:
        text = (
            f"{100 * share:.0f} % of the linear weights are NVFP4, which gave noise on Wan and on "
            "image models: keep the first and last blocks, the embeddings and the head 16-bit "
            "(--gguf FILE --gguf-keep-edge-blocks-fp16), or take --recipe scaled-fp8"
        )
        found.append((c.Outcome.WRONG, text))
    dynamic = sum(how(layer, side) == "NVFP4 W4A4, no input scale" for layer in linear)
    if dynamic:
        text = (
            f"{dynamic} W4A4 layers have no input scale, which is measured on every call instead: "
            "bake them with --input-scale-summary-json"
        )
        found.append((c.Outcome.LOADS, text))
    base = base_precision(side)
    narrow = [role for role in BASE_ROLES if "F16" in base[role]]
    if narrow:
        text = (
            f"{', '.join(narrow)} are float16, where working files keep float32: "
            "convert with a GGUF that keeps them F32, or with --dtype float32"
        )
        found.append((c.Outcome.LOADS, text))
    if not side.is_gguf and len(side.model.files) > 1:
        text = "ComfyUI's diffusion-model loader takes one file, not shards: convert it to one"
        found.append((c.Outcome.FAILS, text))
    return found


def verdict(side: Side) -> dict:
    """What ComfyUI does with a file, how it runs its layers, and what to change."""
    counts = Counter(how(layer, side) for layer in side.linear.values())
    foreign = {name: "a format of ComfyUI's own, not checked here" for name in c.NAMED_ONLY}
    known = RUNS | foreign
    if side.is_gguf:
        ending = (
            "is not for ComfyUI's own loader; ComfyUI-GGUF's loads it, and multiplies in 16-bit"
        )
        return {"outcome": None, "ending": ending, "runs": {}, "defects": [], "advice": []}
    advised = advice(side)
    outcomes = [finding.outcome for finding in side.findings] + [level for level, _ in advised]
    outcome = max(outcomes, default=c.Outcome.LOADS)
    defects = [
        {
            "outcome": c.DEFECTS[key].outcome.name,
            "count": len(where),
            "what": c.DEFECTS[key].what,
            "consequence": c.DEFECTS[key].consequence,
            "remedy": c.DEFECTS[key].remedy,
            "examples": c.examples(where),
        }
        for key, where in c.grouped(side.findings).items()
    ]
    runs = {
        label: {"layers": count, "how": known[label.removeprefix("scaled ")]}
        for label, count in counts.items()
        if label.removeprefix("scaled ") in known
    }
    return {
        "outcome": outcome.name,
        "ending": ENDINGS[outcome],
        "runs": runs,
        "defects": defects,
        "advice": [text for _, text in advised],
    }


def describe(side: Side, pattern: str = "") -> dict:
    """Everything about one side, as data; `pattern` chooses the layers that are listed."""
    chosen = {name: x for name, x in side.linear.items() if matches(pattern, name)}
    schemes, kinds = defaultdict(Counter), defaultdict(lambda: defaultdict(Counter))
    for name, layer in chosen.items():
        label, size = how(layer, side), {"layers": 1, "bytes": layer_bytes(layer)}
        schemes[label].update(size)
        kinds[kind_of(name)][label].update(size)
    return {
        "file": side.path.name,
        "tensors": len(side.model.tensors),
        "bytes": c.file_bytes(side.model),
        "schemes": {label: dict(sizes) for label, sizes in schemes.items()},
        "kinds": {kind: {k: dict(v) for k, v in found.items()} for kind, found in kinds.items()},
        "not_quantised": base_precision(side),
        "naming": naming(side),
        "metadata": {key: summary(key, side.model) for key in side.model.metadata},
        "verdict": verdict(side),
        "layers": [
            {
                "name": name,
                "shape": list(layer.shape),
                "scheme": how(layer, side),
                "stored": f"{layer.weight.dtype} {list(layer.weight.shape)}",
                "bytes": layer_bytes(layer),
            }
            for name, layer in chosen.items()
        ],
    }


def matches(pattern: str, name: str) -> bool:
    return re.search(pattern, name, re.IGNORECASE) is not None


def summary(key: str, model: c.Model) -> str:
    """A metadata value in a few words."""
    if key == "_quantization_metadata":
        listed = c.header_layers(model.metadata)
        return "unreadable" if listed is None else f"{len(listed)} layers"
    value = c.one_line(model.metadata[key])
    return value if len(value) <= 60 else f"{value[:57]}..."


# ── 3. Two sides ─────────────────────────────────────────────────────────────────────────────────


def structure(side: Side) -> dict[str, tuple]:
    """What has to be equal for two files to be of one structure."""
    tensors = {c.bare(name): (ref.dtype, ref.shape) for name, ref in side.model.tensors.items()}
    return tensors | {name: (how(layer, side), layer.shape) for name, layer in side.linear.items()}


def differences(a: Side, b: Side, pattern: str) -> list[dict]:
    """Layers of both sides that are stored otherwise: from which scheme to which, by kind."""
    groups = defaultdict(lambda: defaultdict(int))
    for name in sorted(a.linear.keys() & b.linear.keys()):
        layers = a.linear[name], b.linear[name]
        labels = tuple(map(how, layers, (a, b)))
        stored = tuple((layer.weight.dtype, layer.weight.shape) for layer in layers)
        if (labels[0] != labels[1] or stored[0] != stored[1]) and matches(pattern, name):
            texts = (f"{dtype} {list(shape)}" for dtype, shape in stored)
            groups[labels][kind_of(name), " -> ".join(texts)] += 1
    return [
        {
            "a": one,
            "b": other,
            "layers": sum(kinds.values()),
            "kinds": [
                {"kind": kind, "layers": count, "stored": stored}
                for (kind, stored), count in kinds.items()
            ],
        }
        for (one, other), kinds in sorted(groups.items())
    ]


def only_in(side: Side, other: Side) -> dict[str, int]:
    """{kind: tensors} that the other side lacks."""
    known = {c.bare(name) for name in other.model.tensors}
    names = (name for name in side.model.tensors if c.bare(name) not in known)
    return dict(Counter(map(kind_of_tensor, names)).most_common())


def not_decoded(layer: c.StoredLayer) -> str:
    """Why `decode` cannot take a layer; or ""."""
    if layer.format is not None:
        return c.undecodable(layer)
    floats = (*c.SOURCE_FLOATS, *(c.GGUF_BITS.keys() - c.SAFETENSORS_BITS.keys()))
    known = layer.weight.dtype in floats and layer.config is None
    return "" if known and layer.weight.nbytes else f"{layer.scheme} is not decoded here"


def decode(layer: c.StoredLayer) -> torch.Tensor:
    """A layer's weight as float32 [N, K], from whatever it is stored as."""
    if layer.format is not None:
        parts, scale = c.stored_parts(layer)
        decoded = layer.format.decode(*parts, scale)
        decoded = decoded[: layer.shape[0], : layer.shape[1]]
        smoothing = layer.parts.get("pre_quant_scale")
        return decoded * c.load(smoothing).float() if smoothing else decoded
    if layer.weight.dtype in c.SOURCE_FLOATS:
        return c.load(layer.weight).float()
    import gguf

    data = c.load_bytes(layer.weight).numpy().reshape(layer.shape[0], -1)
    kind = gguf.GGMLQuantizationType[layer.weight.dtype]
    return torch.from_numpy(gguf.quants.dequantize(data, kind)).view(layer.shape)


def relative_rmse(one: c.StoredLayer, other: c.StoredLayer) -> float:
    """Of the other's weight against the one's, where both have rows; NaN where either has one."""
    rows, columns = map(min, one.shape, other.shape)
    left, right = (decode(layer)[:rows, :columns].contiguous() for layer in (one, other))
    unit = c.largest_magnitude(left)  # squares of huge and tiny weights leave float32's range
    unit = torch.where(unit > 0, unit, torch.ones(()))
    return c.measure(left / unit, right / unit).relative_rmse


def compare_values(a: Side, b: Side, pattern: str) -> dict:
    """Relative RMSE of B's decoded weight against A's, and why layers have none."""
    found, left_out = {}, {}
    shared = [name for name in a.linear if name in b.linear and matches(pattern, name)]
    for name in tqdm(shared, "decoding", file=sys.stderr):
        layers = a.linear[name], b.linear[name]
        # Rows and columns may be padded on one side.
        sizes = [tuple(c.round_up(size, c.BLOCK_SIZE) for size in x.shape) for x in layers]
        reasons = [reason for layer in layers if (reason := not_decoded(layer))]
        if sizes[0] != sizes[1]:
            reasons.append(f"{list(layers[0].shape)} against {list(layers[1].shape)}")
        if reasons:
            left_out[name] = reasons[0]
        else:
            found[name] = relative_rmse(*layers)
    finite = {name: error if math.isfinite(error) else None for name, error in found.items()}
    return {"relative_rmse": finite, "not_compared": left_out}


def compare(a: Side, b: Side, pattern: str, values: bool) -> dict:
    """Both sides and what is different, as data."""
    data = {
        "same_structure": structure(a) == structure(b),
        "a": describe(a, pattern),
        "b": describe(b, pattern),
        "layers_that_differ": differences(a, b, pattern),
        "only_in_a": only_in(a, b),
        "only_in_b": only_in(b, a),
    }
    return data | (compare_values(a, b, pattern) if values else {})


# ── 4. Text ──────────────────────────────────────────────────────────────────────────────────────


NUMBER = r"[\d,.]+( [GM]B)?|-|A|B|"  # headings and gaps of a column of numbers count as such


def column(cells: tuple[str, ...]) -> list[str]:
    """Cells of one width: numbers to the right, words to the left."""
    width = max(map(len, cells))
    numbers = all(re.fullmatch(NUMBER, cell) for cell in cells)
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in cells]


def table(title: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Columns under a title; nothing without rows."""
    rows = [tuple(map(c.one_line, row)) for row in rows]
    lines = zip(*map(column, zip(*rows, strict=True)), strict=True)
    lines = [f"  {'  '.join(cells)}".rstrip() for cells in lines]
    return ["", title, *lines] if lines else []


def side_by_side(title: str, a: dict, b: dict, show: object = str) -> list[str]:
    keys = dict.fromkeys([*a, *b])
    rows = [(key, *(show(side[key]) if side.get(key) else "-" for side in (a, b))) for key in keys]
    return table(title, [("", "A", "B"), *rows]) if rows else []


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def render_verdict(letter: str, side: dict) -> list[str]:
    """What ComfyUI will do, in words."""
    found = side["verdict"]
    lines = ["", f"{letter}: {side['file']} {found['ending']}"]
    lines += [
        f"  {run['layers']} layers {label}: {run['how']}" for label, run in found["runs"].items()
    ]
    for defect in found["defects"]:
        lines += [
            f"  {defect['outcome']}: {defect['count']} x {defect['what']}",
            f"    {defect['consequence']}; to do: {defect['remedy']}",
            f"    {defect['examples']}",
        ]
    if not found["runs"] and not side["schemes"].keys() - c.SAFETENSORS_BITS.keys():
        lines.append("  no layer is quantised")
    return lines + [f"  {text}" for text in found["advice"]]


def render_one(data: dict) -> str:
    """The inventory of one file: every layer, totals per kind, the rest, the verdict."""
    layers = ((x["name"], str(x["shape"]), x["scheme"], f"{x['bytes']:,}") for x in data["layers"])
    kinds = (
        (kind, str(sizes["layers"]), label, c.gigabytes(sizes["bytes"]))
        for kind, found in data["kinds"].items()
        for label, sizes in found.items()
    )
    schemes = (
        (label, str(sizes["layers"]), c.gigabytes(sizes["bytes"]))
        for label, sizes in data["schemes"].items()
    )
    rest = ((role, counted(found)) for role, found in data["not_quantised"].items() if found)
    lines = [
        f"{data['file']}: {data['tensors']:,} tensors, {c.gigabytes(data['bytes'])}",
        *table("linear layers", layers),
        *table("by kind", kinds),
        *table("in all", schemes),
        *table("not quantised", rest),
        *table("scales and configurations", ((k, str(v)) for k, v in data["naming"].items())),
        *table("metadata", data["metadata"].items()),
        *render_verdict("verdict", data),
    ]
    return "\n".join(lines)


def render_two(data: dict) -> str:
    """What is different between two files, and the verdict on each."""
    a, b = data["a"], data["b"]
    more = f" ({b['tensors'] - a['tensors']:+,})"
    lines = [
        f"A  {a['file']}: {a['tensors']:,} tensors, {c.gigabytes(a['bytes'])}",
        f"B  {b['file']}: {b['tensors']:,} tensors{more}, {c.gigabytes(b['bytes'])}",
        *side_by_side(
            "linear layers", a["schemes"], b["schemes"], lambda found: str(found["layers"])
        ),
    ]
    for row in data["layers_that_differ"]:
        kinds = ((x["kind"], str(x["layers"]), x["stored"]) for x in row["kinds"])
        lines += table(f"{row['layers']} x {row['a']} -> {row['b']}", kinds)
    lines += side_by_side("not quantised", a["not_quantised"], b["not_quantised"], counted)
    lines += side_by_side("scales and configurations", a["naming"], b["naming"])
    for letter in "ab":
        only = data[f"only_in_{letter}"].items()
        title = f"only in {letter.upper()}"
        lines += table(title, ((kind, str(count)) for kind, count in only))
    lines += side_by_side("metadata", a["metadata"], b["metadata"])
    lines += render_values(data)
    same = "the same structure" if data["same_structure"] else "different structures"
    return "\n".join([*lines, *render_verdict("A", a), *render_verdict("B", b), "", same])


def render_values(data: dict) -> list[str]:
    """Relative RMSE of B's weights against A's: the worst layers, the mean of each kind."""
    found = {name: math.nan if error is None else error  # JSON has no NaN
             for name, error in data.get("relative_rmse", {}).items()}  # fmt: skip
    labels = {layer["name"]: layer["scheme"] for layer in data["b"]["layers"]}
    worst = sorted(found.items(), key=lambda item: c.least_first(-item[1]))[:WORST_SHOWN]
    kinds = defaultdict(list)
    for name, error in found.items():
        kinds[kind_of(name), labels[name]].append(error)
    means = (
        (kind, label, str(len(errors)), f"{sum(errors) / len(errors):.4f}")
        for (kind, label), errors in sorted(kinds.items())
    )
    return [
        *table("relative RMSE, worst layers", ((name, f"{error:.4f}") for name, error in worst)),
        *table("relative RMSE, mean by kind and scheme in B", means),
        *table("not compared", data.get("not_compared", {}).items()),
    ]


# ── 5. Command line ──────────────────────────────────────────────────────────────────────────────


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare_models.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "a", metavar="A", type=c.input_path, help="the file to list or compare with"
    )
    parser.add_argument("b", metavar="B", type=c.input_path, nargs="?", help="the other file")
    parser.add_argument("--values", action="store_true", help="decode both and measure B against A")
    parser.add_argument("--pattern", metavar="REGEX", default="", type=c.pattern,
                        help="list and compare only the layers whose names match")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    return parser


def main(argv: list[str] | None = None) -> int:
    c.tolerate_consoles()
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.values and options.b is None:
        parser.error("--values needs B, or see convert_nvfp4.py --verify A --source SOURCE")
    try:
        a = open_side(options.a)
        if options.b is None:
            data, render, status = describe(a, options.pattern), render_one, 0
        else:
            data = compare(a, open_side(options.b), options.pattern, options.values)
            render, status = render_two, int(not data["same_structure"])
        if options.pattern and not any(
            side["layers"] for side in [data.get("a", data), data.get("b", data)]
        ):
            raise c.ConvertError(f"--pattern {options.pattern}: matches no linear layer")
    except c.ConvertError as error:
        c.show_problems(error)
        return 2
    except KeyboardInterrupt:
        return 130
    c.show(json.dumps(data, indent=1) if options.json else c.printable(render(data)))
    return status


if __name__ == "__main__":
    sys.exit(main())
