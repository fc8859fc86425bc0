"""Count a file's tensors by role and dtype, its scales, its bytes.

Everything comes from the headers that a side was opened with; no weight is read. `describe` puts
the counts into the data of a file, and `verdict` looks at the dtypes of what is not quantised.
"""

from __future__ import annotations

import re
from collections import Counter

from nvfp4.compare.schemes import SCALE_PARTS, has_quantised_weight, is_of_scheme, marker_labels
from nvfp4.compare.sides import Side
from nvfp4.model import ATTENTION_CONFIG
from nvfp4.names import kind_of
from nvfp4.read.checkpoint import header_layers
from nvfp4.stored.layers import StoredLayer

# The first pattern found in the name of a tensor decides its role. Modulation comes before norms
# and biases, as it keeps its role when its name has .bias at its end; the empty pattern of weights
# takes all that is left.
ROLES = {
    "modulation": r"modulation|scale_shift_table",
    "norms": r"norm",
    "biases": r"\.bias$",
    "weights": r"",
}


def kind_of_tensor(name: str) -> str:
    """Name the kind of a tensor, so that equal tensors of all blocks are counted together.

    A scale or configuration is named by its suffix alone, a weight or bias by the kind of its
    layer, and any other tensor by its own name with `*` for the block's number:
    blocks.3.ffn.0.weight_scale -> *.weight_scale, blocks.3.ffn.0.bias -> blocks.*.ffn.0.bias. A
    model's prefix is left out.
    """
    layer, _, part = name.rpartition(".")
    if part in SCALE_PARTS:
        return f"*.{part}"
    return f"{kind_of(layer)}.{part}" if part in ("weight", "bias") else kind_of(name)


def layer_bytes(layer: StoredLayer) -> int:
    """Sum the bytes of a layer's weight, scales and configuration, as they are stored.

    The bias is left out, as no format quantises it: the sum is what the choice of a precision for
    this layer costs in the file.
    """
    return sum(ref.nbytes for part, ref in layer.parts.items() if part != "bias")


def base_precision(side: Side) -> dict[str, dict[str, int]]:
    """Count the tensors that are not quantised: {role: {dtype: how many}}.

    side: the opened file. Quantised weights, scales, configurations and markers are left out. Every
    one of ROLES is a key, with an empty dict where the file has no tensor of that role; dtypes are
    named as in the header, the most frequent one first.
    """
    quantised = {x.weight.name for x in side.layers.values() if has_quantised_weight(x)}
    found = {role: Counter() for role in ROLES}
    for name, ref in side.model.tensors.items():
        # Neither has a precision to choose: it follows from the layer's format.
        if name in quantised or is_of_scheme(name):
            continue
        role = next(role for role, pattern in ROLES.items() if re.search(pattern, name))
        found[role][ref.dtype] += 1
    return {role: dict(counts.most_common()) for role, counts in found.items()}


def scale_names(side: Side) -> dict[str, int]:
    """Count the file's scales and configurations by the names that it has for them.

    Returns {name: how often}, sorted by the names. Suffixes such as ".weight_scale_2" count layers,
    a marker tensor counts once, and "layers in _quantization_metadata" counts the layers that the
    header configures. Scaled FP8 and current FP8 show their difference here.
    """
    counts = Counter(
        f".{part}" for layer in side.layers.values() for part in layer.parts if part in SCALE_PARTS
    )
    counts.update(marker_labels(side))
    counts.update(ATTENTION_CONFIG for name in side.names if name.endswith(ATTENTION_CONFIG))
    # An unreadable header gives None and is no row here; the verdict tells about it.
    if listed := header_layers(side.model.metadata):
        counts["layers in _quantization_metadata"] = len(listed)
    return dict(sorted(counts.items()))
