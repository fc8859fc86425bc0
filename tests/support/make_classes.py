"""Writes nvfp4/comfy_classes.py: what ComfyUI's own classes say of the weights of a file.

usage: python tests/support/make_classes.py CHECKOUT [CHECKOUT ...]     (of ComfyUI, any versions)

What the checkouts say is put together. A name that is a linear layer in one class and none in
another stops the script, as names alone could not tell the two apart.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvfp4.modules import sounds_doubtful, starred
from support.paths import ROOT

TABLE = ROOT / "nvfp4" / "comfy_classes.py"
WALK = ROOT / "tests" / "support" / "comfy_walk.py"
# What classes that are newer than the checkouts have and read, as their source in Comfy-Org/ComfyUI
# after 0.33 says (comfy/model_detection.py, comfy/ldm/*/model.py): leave them out once a checkout
# has them. Prism and Ming-Image add nothing to either.
KANDINSKY6, QWEN21 = "kandinsky6.model.Kandinsky6", "qwen_image21.model.QwenImage21"
SENSENOVA = "sensenova.model.SenseNovaU15"
NEWER_WEIGHTS = [
    (KANDINSKY6, "visual_token_type_embeddings", 2, 4096, False, "an Embedding"),
    (SENSENOVA, "language_model.model.embed_tokens", 151936, 4096, False, "an Embedding"),
]
NEWER_READS = [
    (path, f"{name}.weight", dim)
    for path, dim, names in (
        (KANDINSKY6, "rows", (
            "visual_embeddings.in_layer", "audio_embeddings.in_layer", "out_layer.out_layer",
            "audio_outLayer.out_layer", "video_time_embeddings.out_layer",
            "audio_time_embeddings.out_layer", "visual_blocks.0.videoT.feed_forward.in_layer",
            "visual_blocks.0.audioT.feed_forward.in_layer",
            "visual_blocks.0.va_modulation.out_layer",
        )),
        (KANDINSKY6, "columns", (
            "visual_embeddings.in_layer", "audio_embeddings.in_layer",
            "video_text_embeddings.in_layer", "video_pooled_text_embeddings.in_layer",
        )),
        (QWEN21, "rows", (
            "img_in", "proj_out", "transformer_blocks.0.img_mlp.gate_up",
            "transformer_blocks.0.img_mlp.proj",
        )),
        (QWEN21, "columns", ("img_in",)),
        (SENSENOVA, "rows", ("language_model.model.layers.0.self_attn.q_proj_mot_gen",)),
    )
    for name in names
]  # fmt: skip


def walked(checkout: str) -> dict[str, list]:
    """What comfy_walk.py finds in one checkout of ComfyUI."""
    environment = os.environ | {"COMFYUI_ROOT": checkout}
    command = [sys.executable, str(WALK)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def shown(paths: set[str]) -> str:
    """A class for each architecture, the one with the shortest name, as `Chroma, Flux`."""
    rooms = defaultdict(list)
    for path in paths:
        rooms[path.removeprefix("text_encoders.").partition(".")[0]].append(path.split(".")[-1])
    names = sorted({min(several, key=lambda name: (len(name), name)) for several in rooms.values()})
    more = len(names) - 2
    return ", ".join(names[:2]) + (f" and {more} more" if more > 0 else "")


def linear_tables(weights: list[list]) -> tuple[dict, dict]:
    """NOT_LINEAR and LINEAR_ALL_THE_SAME of (path, name, rows, columns, has a bias, kind)."""
    linear, other, owners = defaultdict(list), defaultdict(set), defaultdict(set)
    for path, name, rows, columns, bias, what in weights:
        if what:
            other[starred(name)].add(what)
            owners[starred(name)].add(path)
        else:
            linear[starred(name)].append((name, (rows, columns), bias))
    both = other.keys() & linear.keys()
    assert not both, f"linear layers in one class, and none in another: {sorted(both)}"
    twofold = {name: kinds for name, kinds in other.items() if len(kinds) > 1}
    assert not twofold, f"several kinds of modules: {twofold}"
    not_linear = {name: (*kinds, shown(owners[name])) for name, kinds in other.items()}
    known = {
        name: 0 if all(bias for *_, bias in rows) else min(r / c for _, (r, c), _ in rows)
        for name, rows in linear.items()
        if any(sounds_doubtful(layer, shape, has_bias=bias) for layer, shape, bias in rows)
    }
    return not_linear, {name: round(ratio, 4) for name, ratio in known.items()}


def shape_table(reads: list[list]) -> dict:
    """SHAPE_READ of (path, tensor, dimension); numbers of which several are read become stars."""
    alike = defaultdict(list)
    for path, name, dim in reads:
        if name.endswith(".weight"):
            alike[starred(name)].append((path, name.removesuffix(".weight"), dim))
    table = {}
    for rows in alike.values():
        places = zip(*(name.split(".") for _, name, _ in rows), strict=True)
        name = ".".join(part if len({part, *more}) == 1 else "*" for part, *more in places)
        dims = {dim for _, _, dim in rows}
        classes = re.sub(r"(Transformer[23]D)?Model\b", "", shown({path for path, _, _ in rows}))
        table[name] = ("rows" in dims, "columns" in dims, classes)
    return table


def render(tables: dict[str, tuple[str, dict]]) -> str:
    """The module's source: each table with a comment before it."""
    lines = [
        '"""What ComfyUI\'s own classes say of weights, by name: tables of data.',
        "",
        "Made by `tests/support/make_classes.py` of ComfyUI's diffusion model classes and of its",
        "detection: run that instead of editing. Names have no prefix, and `*` for numbers;",
        "`modules` looks them up.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
    ]
    for name, (comment, table) in tables.items():
        lines += [f"# {line}" for line in comment.splitlines()]
        lines += [f"{name} = {{", *(f"    {key!r}: {table[key]!r}," for key in sorted(table)), "}"]
    return "\n".join(lines) + "\n"


def main(checkouts: list[str]) -> None:
    found = [walked(checkout) for checkout in checkouts]
    weights = [row for part in found for row in part["weights"]] + NEWER_WEIGHTS
    not_linear, known = linear_tables(weights)
    tables = {
        "NOT_LINEAR": (
            "{layer: (what it is instead of a linear layer, in which classes)}.", not_linear
        ),
        "LINEAR_ALL_THE_SAME": (
            "{linear layer whose name or shape sounds like something else: rows for each column,\n"
            "or 0 where it has a bias in all classes}.",
            known,
        ),
        "SHAPE_READ": (
            "{layer by whose shape ComfyUI recognises a model, or that it takes apart on loading:\n"
            "(whether it reads rows, whether columns, in which classes)}.",
            shape_table([row for part in found for row in part["reads"]] + NEWER_READS),
        ),
    }  # fmt: skip
    TABLE.write_text(render(tables), encoding="utf-8", newline="\n")
    subprocess.run(["ruff", "format", "--quiet", str(TABLE)], check=True, cwd=ROOT)
    print({name: len(table) for name, (_, table) in tables.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
