"""Recognise models that other programs quantised, by the names of what they store.

Their weights are packed in tensors that are no `.weight`, so that the rest would look like a small
model of 16 bits, and be converted to a file that nothing loads. To add a program, add a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

# What a layer's tensors end in, all of a row, where a program quantised it. The first row that
# fits counts: AWQ has what GPTQ has but for one.
QUANTISERS = (
    ("Nunchaku SVDQuant", ("qweight", "wscales")),
    ("GPTQ", ("qweight", "qzeros", "g_idx")),
    ("AWQ", ("qweight", "qzeros")),
    ("GPTQ or AWQ", ("qweight", "scales")),
    ("HQQ", ("W_q",)),
    ("optimum-quanto", ("weight._data", "weight._scale")),
    ("torchao", ("_weight_qdata",)),
    ("bitsandbytes NF4", ("weight.quant_state.bitsandbytes__nf4",)),
    ("bitsandbytes FP4", ("weight.quant_state.bitsandbytes__fp4",)),
    ("bitsandbytes 4-bit", ("weight.absmax", "weight.quant_map")),
    ("bitsandbytes INT8", ("SCB",)),
    ("compressed-tensors", ("weight_packed",)),
    ("LightX2V NVFP4", ("weight_global_scale",)),
    ("EXL2", ("q_weight", "q_scale")),
    ("EXL3", ("trellis",)),
    ("AQLM", ("codes", "codebooks")),
    ("SDNQ", ("scale", "zero_point")),
    ("SDNQ", ("svd_up", "svd_down")),
    ("DFloat11", ("encoded_exponent", "sign_mantissa")),
)


def quantiser_of(names: Iterable[str]) -> tuple[str, list[str]]:
    """Find which program quantised a model: its name, and the layers; or "" and no layers.

    names: of the diffusion model's tensors.
    """
    layers = defaultdict(set)
    suffixes = sorted({suffix for _, row in QUANTISERS for suffix in row}, key=len, reverse=True)
    for name in names:
        for suffix in suffixes:
            if name.endswith(f".{suffix}"):
                layers[name.removesuffix(f".{suffix}")].add(suffix)
                break
    for program, row in QUANTISERS:
        if found := [layer for layer, has in layers.items() if has.issuperset(row)]:
            return program, found
    return "", []
