"""Why something is planned as it is: a kind that code asks for, and a text that people read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto


class Why(Enum):
    """What decided."""

    NOTHING = auto()  # no rule names the tensor
    SOURCE = auto()  # what it is in the source: packed already, no linear layer's weight, a norm
    OPTION = auto()  # one that names layers, or kinds of layers, or a recipe
    LAYER_CONFIG = auto()
    LAYER_LIST = auto()
    TARGET_SIZE = auto()
    W4A4_SHARE = auto()
    EDGE_BLOCK = auto()
    GGUF = auto()
    FAMILY = auto()  # the preset's rows
    MEASURED = auto()  # a figure of a sensitivity file or a summary
    RECOGNITION = auto()  # ComfyUI tells what model it is by this tensor's shape
    FP4_MATMUL = auto()  # no card multiplies this shape in FP4
    NO_INPUT_SCALE = auto()
    SHARED_SWITCH = auto()  # scaled FP8 has one for all its layers
    FLOAT16 = auto()  # a value that float16 cannot hold


@dataclass(frozen=True, slots=True)
class Reason:
    """One decision's kind and text; and the decision that stood before it, if it overruled one."""

    kind: Why
    text: str
    overruled: Reason | None = None

    def __str__(self) -> str:
        return f"{self.text} (else {self.overruled})" if self.overruled else self.text

    def over(self, other: Reason) -> Reason:
        """This reason as one that overrules another."""
        return dataclasses.replace(self, overruled=other)

    @property
    def overruled_kinds(self) -> Iterator[Why]:
        """The kinds of all decisions that it overruled, the latest first."""
        reason = self.overruled
        while reason is not None:
            yield reason.kind
            reason = reason.overruled
