"""Open one side of a comparison: headers, layers, defects.

A side is read once and handed to everything else in this room. Weights stay on the disk; `values`
reads them where --values asks for it. The defects are those that `stored.lint` knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvfp4.file_kinds import FileKind
from nvfp4.guides.gguf import open_gguf
from nvfp4.model import Model
from nvfp4.prefixes import comparable_names, file_kind
from nvfp4.read.checkpoint import GGUF_MAGIC, open_model
from nvfp4.stored.defects import Finding
from nvfp4.stored.layers import Marker, StoredLayer, find_markers, stored_layers
from nvfp4.stored.lint import lint_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Hold one checkpoint as it lies there, and what is wrong with it.

    path: as it was given; model: its headers and metadata.
    kind: what it is instead of a diffusion model, None for one.
    is_gguf: whether it is a GGUF, which ComfyUI's own loader does not take.
    names: {name of a tensor: its name without prefix and wrappers}.
    layers: all that have a weight, by such names.
    linear: those of them whose weight is a matrix before it was packed, and banks of experts.
    markers: of scaled FP8, one for each part of the file that has one.
    findings: defects that headers and configurations show; a GGUF is not looked through.
    """

    path: Path
    model: Model
    kind: FileKind | None
    is_gguf: bool
    names: dict[str, str]
    layers: dict[str, StoredLayer]
    linear: dict[str, StoredLayer]
    markers: tuple[Marker, ...]
    findings: tuple[Finding, ...]


def open_side(path: Path) -> Side:
    """Read a checkpoint's headers and configurations, and no weights.

    path: a .safetensors file, an index, a folder with one of these, or a GGUF, which is recognised
    by its first four bytes whatever its name is. Returns the Side. Raises ConvertError for what is
    none of these, is damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == GGUF_MAGIC
    except OSError:
        # A folder, or nothing at all: open_model tells which.
        is_gguf = False
    model = open_gguf(path) if is_gguf else open_model(path)
    stored = stored_layers(model)
    # A file may have a layer's scales or configuration without its weight: a defect, and nothing to
    # compare.
    names = comparable_names(path, model.tensors)
    weights = {names[x.weight.name]: x for x in stored.values() if x.weight is not None}
    layers = {name.removesuffix(".weight"): layer for name, layer in weights.items()}
    # The rules are those of ComfyUI's own loader, which does not load a GGUF.
    found = () if is_gguf else tuple(lint_file(model, stored, values=False))
    return Side(
        path=path,
        model=model,
        kind=file_kind(path, model.tensors),
        is_gguf=is_gguf,
        names=names,
        layers=layers,
        linear={name: x for name, x in layers.items() if len(x.shape) == 2 or x.experts},
        markers=tuple(find_markers(model)),
        findings=found,
    )
