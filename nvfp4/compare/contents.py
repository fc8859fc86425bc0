"""Count what is in a file: tensors by role and dtype, names of scales, bytes of layers."""

from __future__ import annotations

import re
from collections import Counter

from nvfp4.compare.schemes import SCALE_PARTS, has_quantised_weight, is_of_scheme, marker_label
from nvfp4.compare.sides import Side
from nvfp4.names import kind_of
from nvfp4.read.checkpoint import header_layers
from nvfp4.stored.layers import StoredLayer

# What a tensor that is neither a quantised weight nor its scale is for: the first that matches.
ROLES = {
    "modulation": r"modulation|scale_shift_table",
    "norms": r"norm",
    "biases": r"\.bias$",
    "weights": r"",
}


def kind_of_tensor(name: str) -> str:
    """Name the kind of a tensor: scales by their suffix, others by the kind of their layer.

    blocks.3.ffn.0.weight_scale -> *.weight_scale, blocks.3.ffn.0.bias -> blocks.*.ffn.0.bias
    """
    layer, _, part = name.rpartition(".")
    if part in SCALE_PARTS:
        return f"*.{part}"
    return f"{kind_of(layer)}.{part}" if part in ("weight", "bias") else kind_of(name)


def layer_bytes(layer: StoredLayer) -> int:
    """Sum the bytes of a layer's weight, scales and configuration; its bias is not among them."""
    return sum(ref.nbytes for part, ref in layer.parts.items() if part != "bias")


def base_precision(side: Side) -> dict[str, dict[str, int]]:
    """Count {role: {dtype: tensors}} of what is not quantised, the most frequent dtype first."""
    quantised = {x.weight.name for x in side.layers.values() if has_quantised_weight(x)}
    found = {role: Counter() for role in ROLES}
    for name, ref in side.model.tensors.items():
        if name in quantised or is_of_scheme(name):
            continue
        role = next(role for role, pattern in ROLES.items() if re.search(pattern, name))
        found[role][ref.dtype] += 1
    return {role: dict(counts.most_common()) for role, counts in found.items()}


def scale_names(side: Side) -> dict[str, int]:
    """Count {what names a scale or configuration: how often}, sorted by the names."""
    counts = Counter(
        f".{part}" for layer in side.layers.values() for part in layer.parts if part in SCALE_PARTS
    )
    if marker := marker_label(side):
        counts[marker] = 1
    if listed := header_layers(side.model.metadata):
        counts["layers in _quantization_metadata"] = len(listed)
    return dict(sorted(counts.items()))
