"""Records of a checkpoint: tensors, their names and prefixes, LoRAs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nvfp4.dtypes import SOURCE_FLOATS
from nvfp4.files import Stamp

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")
UNREAD_PREFIXES = ("diffusion_model.",)
COMFYUI_PREFIX = "model.diffusion_model."
LEAST_PREFIXED = 0.1  # of a file's names, or a prefix is none
COMFYUI_PREFIXES = ("model.", "net.")  # what ComfyUI strips, and takes any such name for


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """Where a tensor lies: `begin` is the absolute byte offset in `path`; what it stands for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    nbytes: int
    scale: float | None = None  # of an FP8 weight, which is decoded when it is read
    is_kept: bool = False  # a part of an NVFP4 layer of the source, which goes over as it is
    config: str = ""  # of such a layer, with its weight: JSON
    patches: tuple[Patch, ...] = ()  # LoRAs that are merged into it when it is read

    @property
    def is_changed(self) -> bool:
        """Whether what is read is float32, and not what is stored."""
        return self.scale is not None or bool(self.patches)

    @property
    def layer(self) -> str:
        """Name of the module, prefix kept: what ComfyUI's metadata calls a layer."""
        return self.name.removesuffix(".weight")

    @property
    def is_float(self) -> bool:
        return (self.dtype in SOURCE_FLOATS or self.scale is not None) and self.nbytes > 0

    @property
    def is_linear_weight(self) -> bool:
        return self.is_float and len(self.shape) == 2 and self.name.endswith(".weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """What a LoRA file does to `rows` of a tensor: its kind's parts, alpha and dora_scale too."""

    kind: str
    parts: dict[str, TensorRef]
    strength: float
    rows: slice
    swapped: bool = False  # the change's halves belong in the other order


class Lora(NamedTuple):
    """A LoRA file to merge, and how strongly."""

    path: Path
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint's headers: tensors in file order, merged metadata, the files they are in."""

    tensors: dict[str, TensorRef]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    stamps: dict[Path, Stamp] = field(default_factory=dict)  # of what is read while converting

    @property
    def nbytes(self) -> int:
        return sum(ref.nbytes for ref in self.tensors.values())

    @property
    def linear_weights(self) -> list[TensorRef]:
        return [ref for ref in self.tensors.values() if ref.is_linear_weight]


def bare(name: str) -> str:
    """The name without the prefix that some checkpoints put before a diffusion model's keys."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def diffusion_prefix(names: Iterable[str]) -> str:
    """What the names of the diffusion model begin with, if some other things are in the file."""
    names = list(names)
    least = LEAST_PREFIXED * len(names)
    usual = (p for p in PREFIXES if sum(name.startswith(p) for name in names) >= least)
    return next(usual, "") if names else ""


def renamed(ref: TensorRef, prefix: str, new: str) -> str:
    return new + ref.name.removeprefix(prefix) if ref.name.startswith(prefix) else ref.name


def is_converted(model: Model) -> bool:
    return any(ref.is_kept or ref.scale is not None for ref in model.tensors.values())


def compiled(pattern: str) -> re.Pattern:
    """A regular expression, without Python's own warnings on stderr; raises ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(pattern)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except (re.error, OverflowError) as error:
        raise ValueError(error) from error
