"""Reasons for decisions: a kind for code, a text for people.

Every precision and every full-precision mark in a plan has a Reason. The report prints its text;
code that wants to know what decided looks at its kind, and never reads the text back. A decision
that overrules another keeps it, so that the report can say what would have been without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto


class Why(Enum):
    """Name what decided about a tensor's precision, or about a layer's full-precision matmul."""

    # No rule names the tensor.
    NOTHING = auto()
    # What it is in the source: quantised already, not a linear layer's weight, a bias or a norm.
    SOURCE = auto()
    # It is not of the diffusion model: a text encoder's, a VAE's.
    BESIDE = auto()
    # An option that names layers or kinds of layers, or a recipe.
    OPTION = auto()
    # The files of --layer-config and --full-precision-mm-layers.
    LAYER_CONFIG = auto()
    LAYER_LIST = auto()
    # What was measured for --target-size or --target-ratio, and for --w4a4-share.
    TARGET_SIZE = auto()
    W4A4_SHARE = auto()
    # One of the first or last transformer blocks.
    EDGE_BLOCK = auto()
    # The tensor's type in the GGUF, or that it is not in there.
    GGUF = auto()
    # The rows of the preset.
    FAMILY = auto()
    # A figure of a sensitivity file or of a calibration summary.
    MEASURED = auto()
    # It may be no linear layer's weight, by its name or its shape.
    DOUBTFUL = auto()
    # ComfyUI tells what model it is by this tensor's shape.
    RECOGNITION = auto()
    # No card multiplies this shape in FP4, or the format does not store it.
    SHAPE = auto()
    # The format needs an input scale, and the layer has none.
    NO_INPUT_SCALE = auto()
    # Scaled FP8 has one switch for full-precision matmul, which holds for all its layers.
    SHARED_SWITCH = auto()
    # ComfyUI multiplies text encoders in 16 bits or more, whatever their format.
    ENCODER = auto()
    # A value that float16 cannot hold.
    FLOAT16 = auto()


@dataclass(frozen=True, slots=True)
class Reason:
    """Give one decision's kind and text, and the decision that it overruled, if there was one.

    `str()` tells both, such as "--exclude ^head (else GGUF Q4_K <= 4 bits)".
    """

    kind: Why
    text: str
    overruled: Reason | None = None

    def __str__(self) -> str:
        return f"{self.text} (else {self.overruled})" if self.overruled else self.text

    def over(self, other: Reason) -> Reason:
        """Return this reason as one that overrules `other`; neither of the two is changed."""
        return dataclasses.replace(self, overruled=other)

    @property
    def overruled_kinds(self) -> Iterator[Why]:
        """Yield the kinds of all decisions that it overruled, the latest first, without its own."""
        reason = self.overruled
        while reason is not None:
            yield reason.kind
            reason = reason.overruled
