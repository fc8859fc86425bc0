"""Judge what ComfyUI will do with a file, and what to change in it.

Two things decide: the defects that `stored.lint` found when the side was opened, and advice, which
is about files that break no rule. Both have an Outcome, and the worst one is the file's.
"""

from __future__ import annotations

import math
from collections import Counter

from nvfp4.compare.contents import base_precision
from nvfp4.compare.schemes import has_nvfp4_activations, scheme_of
from nvfp4.compare.sides import Side
from nvfp4.errors import examples, in_number
from nvfp4.families import MOST_NVFP4
from nvfp4.notes import Note, Rank
from nvfp4.read.parts import lone_shard
from nvfp4.stored.defects import DEFECTS, Outcome, grouped

# What the worst outcome of a file means, in words that follow its name. Headers tell no more than
# that a file loads: values are the business of --verify.
ENDINGS = {
    Outcome.LOADS: "loads as it should",
    Outcome.SLOWER: "loads and runs, slower than it could",
    Outcome.WORSE: "loads and runs, with a poorer picture",
    Outcome.WRONG: "loads; expect noise or black frames",
    Outcome.FAILS: "does not load, or stops at its first step",
}
# How much a defect or an advice matters to whoever reads it.
RANKS = {
    Outcome.LOADS: Rank.HINT,
    Outcome.SLOWER: Rank.NOTE,
    Outcome.WORSE: Rank.WARNING,
    Outcome.WRONG: Rank.WARNING,
    Outcome.FAILS: Rank.WARNING,
}
GGUF_ENDING = "is not for ComfyUI's own loader; ComfyUI-GGUF's loads it, and multiplies in 16-bit"
# Kinds of tensors that working files keep in float32.
NARROWED = ("biases", "norms", "modulation")


def advice(side: Side) -> list[tuple[Outcome, str]]:
    """Find what no rule forbids and yet costs quality or speed.

    side: the opened file, whose headers decide alone. Returns a list of (Outcome, text): how bad it
    is, and what is there and what to do about it, with the converter's options. The list is empty
    for a file that has nothing of the kind.
    """
    found = []
    share = packed_share(side)
    if share > MOST_NVFP4:
        text = (
            f"{100 * share:.0f} % of the linear weights are NVFP4, which gave noise on Wan and on "
            "image models: keep the first and last blocks, the embeddings and the head 16-bit "
            "(--gguf FILE --gguf-keep-edge-blocks-fp16), or take --recipe scaled-fp8"
        )
        found.append((Outcome.WRONG, text))
    # Only W4A4 without an input scale: FP8 layers are not measured on every call.
    dynamic = sum(scheme_of(layer, side).is_measured for layer in side.linear.values())
    if dynamic:
        what = in_number(dynamic, "W4A4 layers have no input scale")
        text = f"{what}: ComfyUI measures it on every call, unless a conversion with "
        found.append((Outcome.LOADS, f"{text}--input-scale-summary-json stores one"))
    base = base_precision(side)
    # Weights may be float16: they are the bulk of a file, and the small tensors are not.
    narrow = [role for role in NARROWED if "F16" in base[role]]
    if narrow:
        text = (
            f"{', '.join(narrow)} are float16, where working files keep float32: "
            "convert with a GGUF that keeps them F32, or with --dtype float32"
        )
        found.append((Outcome.LOADS, text))
    if not side.is_gguf and side.model.shards:
        text = "ComfyUI's diffusion-model loader takes one file, not shards: convert it to one"
        found.append((Outcome.FAILS, text))
    return found


def packed_share(side: Side) -> float:
    """Compute which share of the weights of all linear layers is NVFP4, from 0 to 1.

    Weights are counted, not layers or bytes, as they are the multiplications of a step. Layers
    marked for full-precision matmul count, too, and so do banks of experts, which are not packed.
    Returns 0 for a file without linear layers.
    """
    banks = (ref for ref in side.model.tensors.values() if ref.is_expert_bank)
    work = sum(math.prod(layer.shape) for layer in side.linear.values())
    work += sum(math.prod(ref.shape) for ref in banks)
    packed = sum(
        math.prod(layer.shape) for layer in side.linear.values() if has_nvfp4_activations(layer)
    )
    return packed / work if work else 0


def defects_found(side: Side) -> list[dict]:
    """List the defects of a file as data, the worst outcome first.

    Returns a dict for each kind of defect: outcome (the name of an Outcome), count (how often it is
    there), what, consequence and remedy (its row in DEFECTS), and examples, the first names in one
    text.
    """
    return [
        {
            "outcome": DEFECTS[key].outcome.name,
            "count": len(where),
            "what": DEFECTS[key].what,
            "consequence": DEFECTS[key].consequence,
            "remedy": DEFECTS[key].remedy,
            "examples": examples(where),
        }
        for key, where in grouped(side.findings).items()
    ]


def verdict(side: Side) -> dict:
    """Judge a file: what ComfyUI does with it, how it runs its layers, and what to change.

    Returns a dict of five. outcome: a name of Outcome, the worst of defects and advice; None for a
    GGUF.
    ending: the same in words, to follow the file's name.
    runs: {label: how many layers, and how they run}, without what is multiplied as floats.
    defects: see `defects_found`. advice: a Note for each, which is text in JSON.
    """
    # No rule is about GGUFs, as ComfyUI's own loader takes none of them.
    if side.is_gguf:
        return {"outcome": None, "ending": GGUF_ENDING, "runs": {}, "defects": [], "advice": []}
    advised = advice(side)
    if side.kind:
        advised = [(Outcome.LOADS, side.kind.what_to_do)]
    ending = f"is {side.kind.title}, not {side.kind.instead}" if side.kind else ""
    if side.model.shards and not side.findings and not side.kind:
        ending = f"is whole, but in {side.model.shards} shards, which ComfyUI does not load"
    if instead := lone_shard(side.path):
        ending, advised = "is one shard of several, not a whole model", [(Outcome.FAILS, instead)]
    outcomes = [finding.outcome for finding in side.findings] + [level for level, _ in advised]
    outcome = max(outcomes, default=Outcome.LOADS)
    counts = Counter(scheme_of(layer, side) for layer in side.linear.values())
    return {
        "outcome": outcome.name,
        "ending": ending or ENDINGS[outcome],
        "runs": {
            scheme.label: {"layers": count, "how": scheme.how}
            for scheme, count in counts.items()
            if scheme.how
        },
        "defects": defects_found(side),
        "advice": [Note(text, RANKS[level]) for level, text in advised],
    }
