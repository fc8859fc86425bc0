"""Tell how much the error of a layer's output counts in the sum that --target-size makes small.

Layers count alike, but for what is known: an error outside the blocks reaches every block, and one
within a branch of a block (attention, feed-forward) counts by what the branch adds to the residual
stream, if a recording tells how much that is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from nvfp4.names import block_of

# The layer that ends a branch of a block, whose output is added to the residual stream; the group
# is the name of the branch. Names are those of the families in `families`.
BRANCH_END = re.compile(
    r"(.*attn\w*|.*attention)\.(?:o|out|proj|to_out\.0|to_add_out|out_proj|o_proj|output_proj)$"
    r"|(.*(?:ffn|net|mlp))\.2$|(.*(?:feed_forward|mlp))\.(?:w2|layer2|down_proj|fc2)$"
)


def branch_ended(layer: str) -> str:
    """Name the branch that a layer is the end of: "blocks.3.ffn" for "blocks.3.ffn.2"; else ""."""
    found = BRANCH_END.match(layer)
    return next(filter(None, found.groups())) if found else ""


def importance(layers: Iterable[str], energies: dict[str, float], blocks: int) -> dict[str, float]:
    """Tell what the squared errors of layers are multiplied by: {layer: factor}.

    energies: {layer that ends a branch: mean square of its output}; blocks: how many the model has.
    A layer counts by the root of its branch's energy over their mean: half-way, in logarithms,
    between all alike and a residual stream that takes branches as they are, as gates behind them
    are not known. Where the energy is not known, or 0, it counts as 1.
    """
    branches: dict[str, float] = {}
    for layer, energy in energies.items():
        name = branch_ended(layer)
        branches[name] = branches.get(name, 0.0) + energy
    roots = {name: math.sqrt(energy) for name, energy in branches.items() if energy}
    mean = sum(roots.values()) / (len(roots) or 1) or 1.0
    factors = {}
    for layer in layers:
        parts = layer.split(".")
        above = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        branch = next((name for name in above if name in roots), "")
        factors[layer] = roots[branch] / mean if branch else 1.0
        if not block_of(layer):
            factors[layer] *= max(blocks, 1)
    return factors
