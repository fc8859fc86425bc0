"""Tell how much of a model's multiply work is done in which format, and how fast that may be.

The work of a layer is its weights times the tokens of a typical run (`tokens`), so that a layer
which sees every token counts more than one that sees the text. Convolutions count as well, as most
of the work of a UNet may be theirs. Attention's own matmul, of queries,
keys and values, stays apart: no format of a file changes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from nvfp4.cards import CARDS, KITCHEN_FORMATS, NEEDS_CUDA_13, UNITS
from nvfp4.tokens import tokens_of, typical_run

# The first version of ComfyUI that reads a layer's pre_quant_scale.
SMOOTHING_SINCE = "0.30"
# Tensor cores by how reports put them together, and the share's name.
SHARES = {"FP4": "FP4", "INT8": "INT8 or FP8", "FP8": "INT8 or FP8", "16-bit": "16-bit"}


class Multiplied(NamedTuple):
    """Hold a linear layer, or a convolution, as ComfyUI multiplies by it.

    layer: its name without prefix; weights: how many a token meets, of one expert where there are
    several, as no file tells how many a token goes through; word: a key of `cards.UNITS`; since and
    kitchen: the first versions of ComfyUI and comfy-kitchen that load it, "" for any.
    """

    layer: str
    weights: int
    word: str = "16bit"
    since: str = ""
    kitchen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Hold a step's multiply work by format, and what the file needs.

    family: a key of `tokens.RUNS`, or "". operations: {key of `cards.UNITS`: multiplications of
    all layers}. since, kitchen: the first versions of ComfyUI and comfy-kitchen that load
    the file; "" for any, and where nothing is quantised.
    """

    family: str
    operations: Counter[str]
    since: str
    kitchen: str

    def shares(self, card: str | None = None) -> dict[str, float]:
        """Share the work between the values of SHARES; all are 0 where there is no work.

        card: a key of CARDS; None for a card that multiplies all formats.
        """
        found = dict.fromkeys(SHARES.values(), 0.0)
        for word, count in self.operations.items():
            unit = CARDS[card].unit(word) if card else UNITS[word]
            found[SHARES[unit]] += count / (self.operations.total() or 1)
        return found

    def speed(self, card: str) -> float:
        """Estimate how many times as fast as in 16 bits all layers are on a class of cards.

        card: a key of CARDS. Throughputs are published peaks, and a format that the class lacks
        runs at 16-bit speed: the result is what the matmuls alone can gain at most.
        """
        row = CARDS[card]
        times = {word: count / row.rate(word) for word, count in self.operations.items()}
        slowest = self.operations.total() / row.rate("16bit")
        return slowest / sum(times.values()) if slowest else 1.0

    def needs(self, card: str | None) -> str:
        """Say what ComfyUI needs for that speed on a class of cards, or on any; "" for nothing."""
        words = {*KITCHEN_FORMATS} & self.operations.keys()
        if card:
            return CARDS[card].needs if words & {*CARDS[card].fast} else ""
        return f"{NEEDS_CUDA_13}, or for ROCm" if words else ""


def version_key(version: str) -> tuple[int, ...]:
    """Make a key to compare versions such as "0.10" and "0.9" by; "" comes first."""
    return tuple(map(int, version.split("."))) if version else ()


def work_of(layers: Iterable[Multiplied], family: str) -> Work:
    """Add up the multiply work of a model's layers, by format.

    family: a key of `tokens.RUNS`, or "" for a model of none.
    """
    layers, counts = [*layers], Counter()
    for layer in layers:
        counts[layer.word] += layer.weights * tokens_of(layer.layer, family)
    since = max((layer.since for layer in layers), key=version_key, default="")
    kitchen = max((layer.kitchen for layer in layers), key=version_key, default="")
    # In one order, so that files whose layers come in another give the same floats.
    operations = Counter({word: counts[word] for word in UNITS if word in counts})
    return Work(family=family, operations=operations, since=since, kitchen=kitchen)


def work_data(work: Work, card: str | None = None) -> dict:
    """Describe the work as data that JSON can have.

    card: the class of cards that the file is for, None for any: then "shares" are those of a card
    that multiplies all formats. "speed" is {class: how many times 16-bit's speed, estimated};
    "comfyui", "comfy_kitchen" and "needs" are None where there is nothing to say.
    """
    return {
        "run": typical_run(work.family).title,
        "card": card,
        "shares": work.shares(card),
        "speed": {name: work.speed(name) for name in ([card] if card else CARDS)},
        "comfyui": work.since or None,
        "comfy_kitchen": work.kitchen or None,
        "needs": work.needs(card) or None,
    }


def render_work(data: dict | None) -> list[str]:
    """Render the data of `work_data` as three lines: shares, speed, and what the file needs.

    No lines where nothing is quantised.
    """
    if not data or not data["comfyui"]:
        return []
    shares = {name: f"{100 * share:.0f} %" for name, share in data["shares"].items()}
    # Without a card, all formats count as multiplied: the newest class alone does that.
    alone = f" ({next(iter(CARDS.values())).series} alone)"
    only = alone if data["shares"]["FP4"] and not data["card"] else ""
    on = f" on {CARDS[data['card']].series} ({data['card']})" if data["card"] else ""
    speeds = ", ".join(f"{name} {speed:.1f}x" for name, speed in data["speed"].items())
    kitchen = f" with comfy-kitchen {data['comfy_kitchen']}" if data["comfy_kitchen"] else ""
    also = f"; for speed {data['needs']}" if data["needs"] else ""
    return [
        f"{shares['FP4']} of the multiply work in 4 bits{only}, {shares['INT8 or FP8']} in 8, "
        f"{shares['16-bit']} in 16{on}",
        f"speed over 16-bit at most: {speeds} (estimate)",
        f"needs ComfyUI {data['comfyui']}{kitchen} or newer{also}",
    ]
