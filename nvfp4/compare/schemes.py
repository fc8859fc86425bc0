"""Tell how a layer is stored and multiplied.

All of the comparison that asks which format a layer has is here, and it asks the format's row.
`scheme_of` goes by headers and configurations; `decode_weight` is what --values reads weights with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from nvfp4.compare.sides import Side
from nvfp4.dtypes import BLOCK_SIZE, SAFETENSORS_BITS, SOURCE_FLOATS, round_up
from nvfp4.formats.base import is_known, layer_parts, marker_names
from nvfp4.formats.scaled_fp8 import MARKER
from nvfp4.guides.records import GGUF_BITS
from nvfp4.model import ATTENTION_CONFIG, TensorRef
from nvfp4.read.tensors import load, load_bytes
from nvfp4.stored.layers import StoredLayer, marker_for, stored_parts, undecodable

# Parts of a layer that exist because it is quantised: scales and configurations. They come from the
# rows of formats/, so that a new format is counted without a change here.
SCALE_PARTS = {*layer_parts()} - {"weight", "bias"}
# Dtypes of weights that are not quantised. F64 is among them, though `decode_weight` takes none but
# SOURCE_FLOATS.
UNQUANTISED_DTYPES = (*SOURCE_FLOATS, "F64")
# How layers run that are configured as a format in a way that no row of formats/ describes.
FOREIGN = "a form of this format that is not known here"


class Scheme(NamedTuple):
    """Hold how a layer is stored and multiplied.

    label: both in short, such as "NVFP4 W4A4, no input scale"; layers are grouped by it.
    how: the same in words for the verdict, "" for what ComfyUI multiplies as floats.
    is_measured: whether ComfyUI measures the scale of its 4-bit activations on every call, as the
    file has none.
    word: the key of `cards.UNITS` for what it is multiplied in.
    """

    label: str
    how: str = ""
    is_measured: bool = False
    word: str = "16bit"


def scheme_of(layer: StoredLayer, side: Side) -> Scheme:
    """Tell how a layer is stored and how it multiplies: see `scheme_of_matrix`.

    The label of a bank of experts tells how many it has.
    """
    if not layer.experts:
        return scheme_of_matrix(layer, side)
    found = scheme_of_matrix(layer.expert(0), side)
    return found._replace(label=f"{found.label}, {layer.experts} experts")


def scheme_of_matrix(layer: StoredLayer, side: Side) -> Scheme:
    """Tell how a layer is stored and how it multiplies.

    side: the file it is in, whose markers decide what older layers do. Scaled FP8 is read where the
    marker of its part of the file is; one of two elements asks for full-precision matmul in every
    layer.

    Returns a Scheme. A layer that is not quantised, or not in a way known here, has its dtype or
    its configured format as label.
    """
    row, title = layer.format, layer.scheme
    if row is None:
        return Scheme(title, FOREIGN if is_known(title) else "")
    if not row.is_quantised:
        return Scheme(title, row.runs_full_precision)
    is_older = bool(row.marker)
    marker = marker_for(layer.name, side.markers)
    is_read = marker is not None and marker.is_read
    # Codes alone do nothing: ComfyUI needs a configuration or the marker to take them for
    # quantised.
    if layer.config is None and not (is_older and is_read):
        return Scheme(f"{title}, {'which is not read' if is_older else 'no configuration'}")
    if layer.is_looked_up:
        return Scheme(f"{title} embedding", "rows are looked up, and only these are decoded")
    marked = layer.full_precision and row.takes_mark
    if marked or (is_older and marker and marker.elements == 2):
        return Scheme(f"{title} W{row.weight_bits}A16", row.runs_full_precision)
    matmul = f"W{row.weight_bits}A{row.activation_bits}"
    matmul = title if title == matmul else f"{title} {matmul}"
    word = row.runs_as(layer.shape, full_precision=False)
    if not row.takes_mark:
        return Scheme(matmul, row.runs_unscaled, word=word)
    # Scaled FP8 has the older name of the two.
    if {"input_scale", "scale_input"} & layer.parts.keys():
        return Scheme(f"{matmul}, input scale", row.runs_scaled, word=word)
    is_measured = has_nvfp4_activations(layer)
    return Scheme(f"{matmul}, no input scale", row.runs_unscaled, is_measured, word)


def scheme_label(layer: StoredLayer, side: Side) -> str:
    """Name how a layer of this file is stored and multiplied: see `scheme_of`."""
    return scheme_of(layer, side).label


def is_unquantised(labels: Iterable[str]) -> bool:
    """Tell whether all labels are dtypes of safetensors, so that no layer of theirs is quantised.

    labels: of schemes. True without any label. Types of a GGUF such as Q5_K are no such dtypes.
    """
    return SAFETENSORS_BITS.keys() >= {*labels}


def has_nvfp4_activations(layer: StoredLayer) -> bool:
    """Tell whether a layer's format multiplies 4-bit activations, which is NVFP4's.

    A layer that is marked for full-precision matmul counts, too: the format decides alone. False
    where the layer is in no known format.
    """
    return layer.format is not None and layer.format.has_nvfp4_input


def has_quantised_weight(layer: StoredLayer) -> bool:
    """Tell whether a layer's weight is no float: quantised here, by a GGUF, or as integers.

    The dtype of the stored weight decides alone, so that a layer without any configuration counts,
    too. The layer must have a weight.
    """
    return layer.weight.dtype not in UNQUANTISED_DTYPES


def is_of_scheme(name: str) -> bool:
    """Tell from its name whether a tensor is a scale, a configuration or the marker of a format.

    name: as in the file, with or without the model's prefix. Such tensors exist only because a
    layer is quantised, and are left out where precisions are counted; so are those that choose a
    module's attention.
    """
    is_part = name.rpartition(".")[2] in {*SCALE_PARTS, *marker_names()}
    return is_part or name.endswith(ATTENTION_CONFIG)


def marker_labels(side: Side) -> list[str]:
    """Name each marker of older layers and its number of elements.

    That number decides how all layers run: 2 ask for full-precision matmul, 0 for FP8 matmul.
    """
    return [f"{MARKER}, {marker.elements} elements" for marker in side.markers]


def padded_shape(layer: StoredLayer) -> tuple[int, ...]:
    """Round a weight's shape up to whole blocks, as one side may be padded and the other not."""
    return tuple(round_up(size, BLOCK_SIZE) for size in layer.shape)


def not_decoded(layer: StoredLayer) -> str:
    """Tell why `decode_weight` cannot take a layer; "" if it can.

    Nothing is read: dtypes, shapes and the configuration decide. Floats and types of a GGUF can be
    taken, unless the layer is configured for a format that is not described in formats/, or is
    empty.
    """
    if layer.experts:
        return "several experts' weights are not compared: --verify measures them"
    if layer.format is not None:
        return undecodable(layer)
    floats = (*SOURCE_FLOATS, *(GGUF_BITS.keys() - SAFETENSORS_BITS.keys()))
    known = layer.weight.dtype in floats and layer.config is None
    return "" if known and layer.weight.nbytes else f"{layer.scheme} is not decoded here"


def decode_weight(layer: StoredLayer) -> torch.Tensor:
    """Decode a layer's weight to float32 [N, K], from whatever it is stored as.

    layer: one that `not_decoded` has nothing against. Its weight and scales are read from the disk.
    Rows and columns of padding are cut off, and a pre_quant_scale is multiplied into the columns,
    so that what is compared is the weight that the unscaled input would meet.
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
    """Decode a quantised weight of a GGUF to float32 [N, K].

    ref: the tensor, its dtype one of ggml's types such as Q5_K. shape: N and K, which the packed
    bytes do not show. The gguf package decodes, as it defines these types.
    """
    # It takes a third of a second to import, and only comparisons with a GGUF need it.
    import gguf

    data = load_bytes(ref).numpy().reshape(shape[0], -1)
    kind = gguf.GGMLQuantizationType[ref.dtype]
    return torch.from_numpy(gguf.quants.dequantize(data, kind)).view(shape)
