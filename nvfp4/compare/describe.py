"""Describe one file as data: its layers, the rest, the verdict.

The dict made here is what --json prints, and all that `render` gets to see: text and data cannot
tell different things. Two files are described one by one, then `pairs` adds what differs.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

from nvfp4.compare.contents import base_precision, layer_bytes, scale_names
from nvfp4.compare.schemes import scheme_label, scheme_of
from nvfp4.compare.sides import Side
from nvfp4.compare.verdict import verdict
from nvfp4.errors import in_number, one_line
from nvfp4.families import ENCODERS, recognise
from nvfp4.model import Model, bare
from nvfp4.modules import not_linear
from nvfp4.names import kind_of
from nvfp4.read.checkpoint import file_bytes, header_layers
from nvfp4.tokens import ENCODER_FAMILY
from nvfp4.work import SMOOTHING_SINCE, Multiplied, work_data, work_of

# Characters of a metadata value that are shown: a longer one would break the table's lines in a
# terminal.
SHOWN_METADATA = 50


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name has a match of a regular expression.

    pattern: searched anywhere in the name, letters of any case; "" matches every name.

    Layers are listed without the model's prefix, so the pattern is compared with bare names.
    """
    return re.search(pattern, name, re.IGNORECASE) is not None


def metadata_value(key: str, model: Model) -> str:
    """Show a value of the header's metadata in one line of at most SHOWN_METADATA characters.

    `_quantization_metadata` holds the configuration of every layer, and only the number of layers
    is shown, or "unreadable". Control characters are escaped, and a longer value is cut and ends in
    three dots.
    """
    if key == "_quantization_metadata":
        listed = header_layers(model.metadata)
        return "unreadable" if listed is None else in_number(len(listed), "layers")
    value = one_line(model.metadata[key])
    return value if len(value) <= SHOWN_METADATA else f"{value[: SHOWN_METADATA - 3]}..."


def work_of_side(side: Side) -> dict | None:
    """Describe the multiply work of a file's diffusion model; None for a GGUF, or another kind.

    An unknown format of ComfyUI's counts as 16-bit.
    """
    if side.is_gguf or side.kind:
        return None
    model, beside, found = side.model, side.model.beside, []
    family, _ = recognise(model)
    for name, layer in side.layers.items():
        one = layer.expert(0) if layer.experts else layer
        if len(one.shape) != 2 or layer.weight.name in beside:
            continue
        if layer.is_looked_up and layer.config:
            found.append(Multiplied(name, 0, since=layer.format.embedding_since))
        if not_linear(name):
            continue
        scheme, weights = scheme_of(layer, side), math.prod(one.shape)
        if one.format is None or not scheme.how or family in ENCODERS:
            found.append(Multiplied(name, weights))
            continue
        since = SMOOTHING_SINCE if "pre_quant_scale" in layer.parts else one.format.since
        found.append(Multiplied(name, weights, scheme.word, since, one.format.since_kitchen))
    own = [ref for name, ref in model.tensors.items() if name not in beside]
    banks = (ref for ref in own if ref.is_expert_bank)
    found += [Multiplied(bare(ref.layer), math.prod(ref.shape[1:])) for ref in banks]
    convolutions = (ref for ref in own if ref.is_convolution)
    found += [Multiplied(bare(ref.layer), math.prod(ref.shape)) for ref in convolutions]
    return work_data(work_of(found, ENCODER_FAMILY if family in ENCODERS else family))


def describe(side: Side, pattern: str = "") -> dict:
    """Describe what a file holds and what ComfyUI does with it, as data that JSON can have.

    pattern: a regular expression that chooses the layers which are listed and counted by scheme and
    kind; "" chooses all. Only layers whose weight is a matrix are among them.

    Returns a dict. Sizes are in bytes. schemes is {label: layers and bytes}, kinds is {kind:
    {label: layers and bytes}}, and layers has a dict per layer: its name, its shape before packing,
    its scheme, dtype and shape as stored, and its bytes. tensors, bytes, not_quantised, naming,
    metadata, verdict and work are of the whole file, whatever the pattern is.
    """
    chosen = {name: x for name, x in side.linear.items() if matches(pattern, name)}
    # Counter.update adds, so that layers and bytes are summed in one go.
    schemes, kinds = defaultdict(Counter), defaultdict(lambda: defaultdict(Counter))
    for name, layer in chosen.items():
        label, size = scheme_label(layer, side), {"layers": 1, "bytes": layer_bytes(layer)}
        schemes[label].update(size)
        kinds[kind_of(name)][label].update(size)
    return {
        "file": side.path.name,
        "kind": side.kind.title if side.kind else None,
        "tensors": len(side.model.tensors),
        "bytes": file_bytes(side.model),
        "schemes": {label: dict(sizes) for label, sizes in schemes.items()},
        # Plain dicts, as defaultdicts would grow when somebody looks a key up.
        "kinds": {kind: {k: dict(v) for k, v in found.items()} for kind, found in kinds.items()},
        "not_quantised": base_precision(side),
        "naming": scale_names(side),
        "metadata": {key: metadata_value(key, side.model) for key in side.model.metadata},
        "verdict": verdict(side),
        "work": work_of_side(side),
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
