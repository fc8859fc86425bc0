"""Tell how a layer is stored and multiplied.

All of the comparison that asks which format a layer has is here, and it asks the format's row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from nvfp4.compare.sides import Side
from nvfp4.dtypes import BLOCK_SIZE, SAFETENSORS_BITS, SOURCE_FLOATS, round_up
from nvfp4.formats.base import NAMED_ONLY, layer_parts, marker_names
from nvfp4.formats.scaled_fp8 import MARKER
from nvfp4.guides.records import GGUF_BITS
from nvfp4.model import TensorRef, bare
from nvfp4.read.tensors import load, load_bytes
from nvfp4.stored.layers import StoredLayer, stored_parts, undecodable

# Parts of a layer that exist because it is quantised: scales and configurations.
SCALE_PARTS = {*layer_parts()} - {"weight", "bias"}
# Dtypes of weights that are not quantised.
UNQUANTISED_DTYPES = (*SOURCE_FLOATS, "F64")
# How layers run whose format is known to ComfyUI, and not described in formats/.
FOREIGN = "a format of ComfyUI's own, not checked here"


class Scheme(NamedTuple):
    """How a layer is stored and multiplied.

    label: "NVFP4 W4A4, no input scale". how: the same in words, "" for what ComfyUI multiplies as
    floats. is_measured: whether ComfyUI measures the scale of its 4-bit activations on every call.
    """

    label: str
    how: str = ""
    is_measured: bool = False


def scheme_of(layer: StoredLayer, side: Side) -> Scheme:
    """Tell how a layer is stored and how it multiplies.

    side: the file it is in, whose marker and metadata decide what older layers do. A layer that is
    not quantised, or not in a way known here, has its dtype or its configured format as label.
    """
    row, title = layer.format, layer.scheme
    if row is None:
        return Scheme(title, FOREIGN if title in NAMED_ONLY else "")
    if not row.is_quantised:
        return Scheme(title, row.runs_full_precision)
    is_older = bool(row.marker)
    is_read = side.marker is not None and "_quantization_metadata" not in side.model.metadata
    if layer.config is None and not (is_older and is_read):
        return Scheme(f"{title}, {'which is not read' if is_older else 'no configuration'}")
    if layer.full_precision or (is_older and side.marker == 2):
        return Scheme(f"{title} W{row.weight_bits}A16", row.runs_full_precision)
    matmul = f"{title} W{row.weight_bits}A{row.activation_bits}"
    if {"input_scale", "scale_input"} & layer.parts.keys():
        return Scheme(f"{matmul}, input scale", row.runs_scaled)
    return Scheme(f"{matmul}, no input scale", row.runs_unscaled, is_packed(layer))


def scheme_label(layer: StoredLayer, side: Side) -> str:
    """Name how a layer of this file is stored and multiplied: see `scheme_of`."""
    return scheme_of(layer, side).label


def is_unquantised(labels: Iterable[str]) -> bool:
    """Tell whether all labels are dtypes, so that no layer of theirs is quantised."""
    return SAFETENSORS_BITS.keys() >= {*labels}


def is_packed(layer: StoredLayer) -> bool:
    """Tell whether a layer's format multiplies 4-bit activations, where it is not forbidden to."""
    return layer.format is not None and layer.format.activation_bits == 4


def has_quantised_weight(layer: StoredLayer) -> bool:
    """Tell whether a layer's weight is no float: quantised here, by a GGUF, or as integers."""
    return layer.weight.dtype not in UNQUANTISED_DTYPES


def is_of_scheme(name: str) -> bool:
    """Tell from its name whether a tensor is a scale, a configuration or the marker of a format."""
    return name.rpartition(".")[2] in SCALE_PARTS or bare(name) in marker_names()


def marker_label(side: Side) -> str:
    """Name the marker of older files, whose elements decide how they run; "" without one."""
    return "" if side.marker is None else f"{MARKER}, {side.marker} elements"


def padded_shape(layer: StoredLayer) -> tuple[int, ...]:
    """Round a weight's shape up to whole blocks, as one side may be padded and the other not."""
    return tuple(round_up(size, BLOCK_SIZE) for size in layer.shape)


def not_decoded(layer: StoredLayer) -> str:
    """Tell why `decode_weight` cannot take a layer; "" if it can."""
    if layer.format is not None:
        return undecodable(layer)
    floats = (*SOURCE_FLOATS, *(GGUF_BITS.keys() - SAFETENSORS_BITS.keys()))
    known = layer.weight.dtype in floats and layer.config is None
    return "" if known and layer.weight.nbytes else f"{layer.scheme} is not decoded here"


def decode_weight(layer: StoredLayer) -> torch.Tensor:
    """Decode a layer's weight to float32 [N, K], from whatever it is stored as.

    The layer must be one that `not_decoded` has nothing against. Padding is cut off, and a
    pre_quant_scale multiplied into the columns.
    """
    if layer.format is not None:
        parts, scale = stored_parts(layer)
        decoded = layer.format.decode(*parts, scale)
        decoded = decoded[: layer.shape[0], : layer.shape[1]]
        smoothing = layer.parts.get("pre_quant_scale")
        return decoded * load(smoothing).float() if smoothing else decoded
    if layer.weight.dtype in SOURCE_FLOATS:
        return load(layer.weight).float()
    return decode_ggml(layer.weight, layer.shape)


def decode_ggml(ref: TensorRef, shape: tuple[int, ...]) -> torch.Tensor:
    """Decode a quantised weight of a GGUF to float32 [N, K]."""
    # It takes a third of a second to import, and only comparisons with a GGUF need it.
    import gguf

    data = load_bytes(ref).numpy().reshape(shape[0], -1)
    kind = gguf.GGMLQuantizationType[ref.dtype]
    return torch.from_numpy(gguf.quants.dequantize(data, kind)).view(shape)
