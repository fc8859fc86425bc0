"""Tell which module of ComfyUI the weight of a name belongs to, and what ComfyUI reads of it.

The tables stand in `comfy_classes`, which `tests/support/make_classes.py` makes of ComfyUI's own
classes. A name that no table has goes by a careful rule: what looks like an embedding or a router
may be no linear layer, and ComfyUI loads packed weights into linear layers alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from nvfp4.comfy_classes import LINEAR_ALL_THE_SAME, NOT_LINEAR, SHAPE_READ

# What ComfyUI's operations for quantised files have for looking up rows: it takes FP8 and INT8.
EMBEDDING = "an Embedding"
# A part of a name that is a number: of a block, or of a place in a row of layers.
NUMBER_PART = re.compile(r"(?<![^.])\d+(?![^.])")
# Last parts of names of embeddings, learned tokens, routers of experts and the like: "emb",
# "label_embed", "trainable_cond_mask", "gate", "relative_attention_bias", "pos_enc", "positions".
CAREFUL_NAME = re.compile(
    r"(emb|embd|embed|embedding|embedder|mask|gate|gating|router|table|token|bias"
    r"|indicator|direction|codebook|vocab|lookup|latent)s?$|(^|_)(queries|wte|wpe)$"
    r"|(^|_)pos(?!t|e(_|$)|sib)",
    re.IGNORECASE,
)
CAREFUL_ANYWHERE = "motion_encoder."
# A weight of fewer rows or columns and without a bias holds learned vectors or the scores of
# experts, as a rule. Packing would have to pad it, and would save next to nothing.
FEW = 16


class NotLinear(NamedTuple):
    """Say what ComfyUI has instead of a linear layer, as "an Embedding", and in which classes."""

    kind: str
    classes: str

    def __str__(self) -> str:
        """Tell both as the end of a sentence."""
        return f"ComfyUI's {self.classes} has {self.kind} there"


class ShapeRead(NamedTuple):
    """Say which of a weight's dimensions ComfyUI reads to recognise a model, and in which classes.

    in_block: whether the layer is in a numbered block, and no input or output of the whole model.
    """

    rows: bool
    columns: bool
    classes: str
    in_block: bool


def starred(name: str) -> str:
    """Write a name with `*` for each part that is a number, as the tables have it."""
    return NUMBER_PART.sub("*", name)


def shape_patterns() -> dict[str, list[tuple[re.Pattern, ShapeRead]]]:
    """Make {starred name: its rows of SHAPE_READ}, as most names are ruled out by a look-up."""
    rows: dict[str, list] = {}
    for name, read in SHAPE_READ.items():
        pattern = re.compile(re.escape(name).replace(r"\*", r"\d+"))
        key = starred(name)
        rows.setdefault(key, []).append((pattern, ShapeRead(*read, in_block="*." in key)))
    return rows


SHAPE_PATTERNS = shape_patterns()


@lru_cache(maxsize=1 << 16)
def not_linear(layer: str) -> NotLinear | None:
    """Look up a layer, named without prefix, that is no linear layer in a class of ComfyUI.

    In language models "model." is no prefix for ComfyUI, and gone here all the same.
    """
    name = starred(layer)
    found = NOT_LINEAR.get(name) or NOT_LINEAR.get(f"model.{name}")
    return NotLinear(*found) if found else None


@lru_cache(maxsize=1 << 16)
def shape_read(layer: str) -> ShapeRead | None:
    """Look up what ComfyUI reads of the shape of a layer, which is named without prefix."""
    rows = SHAPE_PATTERNS.get(starred(layer), ())
    return next((read for pattern, read in rows if pattern.fullmatch(layer)), None)


def sounds_doubtful(layer: str, shape: tuple[int, ...], *, has_bias: bool) -> bool:
    """Tell whether a 2-D weight may be no linear layer's by its name, or by its shape [N, K].

    The layer is named without prefix. What ComfyUI's classes say of it is not looked up.
    """
    parts = layer.split(".")
    # "time_embed.0" is a linear layer in a row of modules, and has a bias; an embedding has none.
    numbered = len(parts) > 1 and parts[-1].isdigit() and not has_bias
    named = CAREFUL_NAME.search(parts[-2 if numbered else -1])
    few = min(shape) < FEW and not has_bias
    return bool(named) or few or CAREFUL_ANYWHERE in layer


def is_doubtful(layer: str, shape: tuple[int, ...], *, has_bias: bool) -> bool:
    """Tell whether a 2-D weight that sounds doubtful is not known as a linear layer's, either.

    It is known by its name in ComfyUI's classes, where it has a bias as there, or at least half as
    many rows for each column: a router of experts may have the name of a gate.
    """
    if not sounds_doubtful(layer, shape, has_bias=has_bias):
        return False
    # Rows for each column, or 0 where the layer has a bias in all classes.
    known = LINEAR_ALL_THE_SAME.get(starred(layer))
    if known is None:
        return True
    return shape[0] < known / 2 * shape[1] if known else not has_bias
