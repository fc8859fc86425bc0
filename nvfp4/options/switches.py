"""The switches for layers of one kind, which are sets in the options table."""

from __future__ import annotations

from nvfp4.families import EIGHT_BITS
from nvfp4.options.option import LayerSwitch

# Switches that mark layers of one kind for full-precision matmul (W4A16).
FULL_PRECISION_OPTIONS = {
    "--full-precision-mm": LayerSwitch(r"", "every quantised layer"),
    "--full-precision-mm-cross-attn-kv": LayerSwitch(
        r"\bcross_attn\.[kv](_img)?$", "cross-attention k and v"
    ),
    "--full-precision-mm-cross-attn-qkvo": LayerSwitch(
        r"\bcross_attn\.([qo]|[kv](_img)?)$", "cross-attention q, k, v and o"
    ),
    "--full-precision-mm-self-attn-qkvo": LayerSwitch(
        r"\bself_attn\.[qkvo]$", "self-attention q, k, v and o"
    ),
    "--full-precision-mm-ffn-up": LayerSwitch(r"\bffn\.0$", "feed-forward up projections"),
    "--full-precision-mm-ffn-down": LayerSwitch(r"\bffn\.2$", "feed-forward down projections"),
}
# Switches that raise layers of one kind to a least precision.
MINIMUM_OPTIONS = {
    "--min-ffn-fp8": LayerSwitch(
        r"\bffn\.[02]$", "feed-forward layers are at least FP8, or INT8", EIGHT_BITS
    ),
    "--min-ffn2-fp16": LayerSwitch(
        r"\bffn\.2$", "feed-forward down projections are at least 16-bit", "16-bit"
    ),
}
