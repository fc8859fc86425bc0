"""Find sensitive layers by given criteria, and list them.

A layer is sensitive if a column of its row reaches a threshold, or if it belongs to a
cross-attention and --cross-attn is given. The list is for --full-precision-mm-layers of the
converter, and its reasons are comments there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.logs.records import Criteria
from nvfp4.names import natural_key
from nvfp4.options import FULL_PRECISION_OPTIONS

# Layers of a cross-attention, as --full-precision-mm-cross-attn-qkvo of the converter has them.
CROSS_ATTENTION = FULL_PRECISION_OPTIONS["--full-precision-mm-cross-attn-qkvo"][0]
# The layers that --cross-attn lists for each block that was measured, with a row or without.
CROSS_ATTENTION_PARTS = "qkvo"
# The block that a layer is in: "blocks.12", with a prefix if there is one.
BLOCK = re.compile(rf"(?:.*\.)?(?:{'|'.join(TRANSFORMER_BLOCKS)})\.\d+(?=\.)")


def reasons(row: dict, criteria: Criteria) -> list[str]:
    """List every threshold that a layer reaches, as "scale_cv 0.172 >= 0.16".

    row: of a summary. A column that it lacks, or that is None, reaches none.
    """
    return [
        f"{column} {row[column]:.3g} >= {threshold:g}"
        for column, threshold in criteria.thresholds.items()
        if row.get(column) is not None and row[column] >= threshold
    ]


def sensitive_layers(rows: Iterable[dict], criteria: Criteria) -> dict[str, list[str]]:
    """Find the sensitive layers: {layer: why}, in natural order of their names.

    rows: of a summary, which names the layers. With criteria.cross_attention, q, k, v and o of
    every block that has a row are among them, whether they have rows or not: the shipped summaries
    have none for v, which was FP8 in those models. "cross-attention" stands before the thresholds
    that a layer reaches.
    """
    found = defaultdict(list)
    for row in rows:
        found[row["layer"]] += reasons(row, criteria)
        block = BLOCK.match(row["layer"])
        if criteria.cross_attention and block:
            # By the names that the converter matches, whether the layer was called or not; parts
            # of other names, such as k_img, are there if they have a row.
            names = [f"{block[0]}.cross_attn.{part}" for part in CROSS_ATTENTION_PARTS]
            names += [row["layer"]] if re.search(CROSS_ATTENTION, row["layer"]) else []
            for name in names:
                # Each row of a block names the same four layers again.
                if "cross-attention" not in found[name]:
                    found[name].insert(0, "cross-attention")
    return {name: found[name] for name in sorted(found, key=natural_key) if found[name]}


def render_list(rows: Iterable[dict], criteria: Criteria) -> str:
    """Render the list for --full-precision-mm-layers of the converter.

    rows: of a summary. A first line, a comment, tells how many layers there are and what chose
    them; then comes a name on each line, with its reasons as a comment. Ends with a line feed.
    """
    found = sensitive_layers(rows, criteria)
    by = ", ".join(criteria.texts).replace("cross-attention", "all cross-attention of these blocks")
    lines = [
        f"# {len(found)} layers for convert_nvfp4.py --full-precision-mm-layers: {by}",
        *(f"{name}  # {', '.join(why)}" for name, why in found.items()),
    ]
    return "\n".join(lines) + "\n"
