"""Describe one file as data: layers by scheme and kind, the rest by role, the verdict."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from nvfp4.compare.contents import base_precision, layer_bytes, scale_names
from nvfp4.compare.schemes import scheme_label
from nvfp4.compare.sides import Side
from nvfp4.compare.verdict import verdict
from nvfp4.errors import one_line
from nvfp4.model import Model
from nvfp4.names import kind_of
from nvfp4.read.checkpoint import file_bytes, header_layers

# Characters of a metadata value that are shown.
SHOWN_METADATA = 60


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name has a match of a regular expression, in letters of any case."""
    return re.search(pattern, name, re.IGNORECASE) is not None


def metadata_value(key: str, model: Model) -> str:
    """Show a value of the header's metadata in one short line."""
    if key == "_quantization_metadata":
        listed = header_layers(model.metadata)
        return "unreadable" if listed is None else f"{len(listed)} layers"
    value = one_line(model.metadata[key])
    return value if len(value) <= SHOWN_METADATA else f"{value[: SHOWN_METADATA - 3]}..."


def describe(side: Side, pattern: str = "") -> dict:
    """Describe what a file holds and what ComfyUI does with it, as data that JSON can have.

    pattern: chooses the layers that are listed and counted by scheme and kind. Sizes are in bytes;
    not_quantised, naming, metadata and verdict are of the whole file.
    """
    chosen = {name: x for name, x in side.linear.items() if matches(pattern, name)}
    schemes, kinds = defaultdict(Counter), defaultdict(lambda: defaultdict(Counter))
    for name, layer in chosen.items():
        label, size = scheme_label(layer, side), {"layers": 1, "bytes": layer_bytes(layer)}
        schemes[label].update(size)
        kinds[kind_of(name)][label].update(size)
    return {
        "file": side.path.name,
        "tensors": len(side.model.tensors),
        "bytes": file_bytes(side.model),
        "schemes": {label: dict(sizes) for label, sizes in schemes.items()},
        "kinds": {kind: {k: dict(v) for k, v in found.items()} for kind, found in kinds.items()},
        "not_quantised": base_precision(side),
        "naming": scale_names(side),
        "metadata": {key: metadata_value(key, side.model) for key in side.model.metadata},
        "verdict": verdict(side),
        "layers": [
            {
                "name": name,
                "shape": list(layer.shape),
                "scheme": scheme_label(layer, side),
                "stored": f"{layer.weight.dtype} {list(layer.weight.shape)}",
                "bytes": layer_bytes(layer),
            }
            for name, layer in chosen.items()
        ],
    }
