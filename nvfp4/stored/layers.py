"""Layers as a file holds them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch

from nvfp4.formats import (
    BLOCK_SIZE,
    FORMATS,
    LAYER_PARTS,
    MARKER,
    OTHER_FORMATS,
    SCHEMES,
    SOURCE_FLOATS,
    VIEWED,
    Precision,
    format_parts,
    round_up,
)
from nvfp4.model import Model, TensorRef, bare
from nvfp4.numeric.codes import unswizzle
from nvfp4.read.checkpoint import header_layers
from nvfp4.read.json_files import parse_json
from nvfp4.read.tensors import load

MAX_CONFIG_BYTES = 1 << 16  # of a comfy_quant tensor: some 60 are usual


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer as a file holds it: its tensors by suffix, and its configuration in both places.

    An unreadable configuration is {}, none at all is None.
    """

    name: str
    parts: dict[str, TensorRef]
    in_header: dict | None = None
    in_tensor: dict | None = None

    @property
    def weight(self) -> TensorRef | None:
        return self.parts.get("weight")

    @property
    def config(self) -> dict | None:
        """What ComfyUI goes by: the header overrides the tensor."""
        return self.in_tensor if self.in_header is None else self.in_header

    @property
    def full_precision(self) -> bool:
        return bool((self.config or {}).get("full_precision_matrix_mult"))

    @property
    def scheme(self) -> str:
        """How the weight is quantised as its tensors show it, or its dtype."""
        if self.weight is None:
            return "no weight"
        configured = (self.config or {}).get("format")
        for scheme, dtype, scale in SCHEMES:
            signed = (self.weight.dtype, dtype, configured) == ("I8", "U8", "nvfp4")
            suits = self.weight.dtype == dtype or signed
            suits = suits and (scale is None or scale in self.parts)
            if suits and configured not in OTHER_FORMATS:
                return scheme
        return configured or self.weight.dtype

    @property
    def precision(self) -> Precision | None:
        """NVFP4 or FP8 where ComfyUI's current formats hold it, going by its configuration."""
        return FORMATS.get((self.config or {}).get("format"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight before it was packed; the padding of rows is told from the bias."""
        shape = self.weight.shape
        if self.scheme != "NVFP4" or len(shape) != 2:
            return shape
        bias = self.parts.get("bias")
        rows = bias.shape[0] if bias and len(bias.shape) == 1 else shape[0]
        return rows if round_up(rows, BLOCK_SIZE) == shape[0] else shape[0], shape[1] * 2


def stored_layers(model: Model) -> dict[str, StoredLayer]:
    """{name: layer} of every layer that a file holds a part of or a configuration for."""
    parts = defaultdict(dict)
    for ref in model.tensors.values():
        layer, _, suffix = ref.name.rpartition(".")
        if suffix in LAYER_PARTS:
            parts[layer][suffix] = ref
    listed = header_layers(model.metadata) or {}
    return {
        name: StoredLayer(
            name=name,
            parts=parts.get(name, {}),
            in_header=as_config(listed[name]) if name in listed else None,
            in_tensor=config_of(parts.get(name, {}).get("comfy_quant")),
        )
        for name in [*parts, *(name for name in listed if name not in parts)]
    }


def config_of(ref: TensorRef | None) -> dict | None:
    if ref is None:
        return None
    if ref.nbytes > MAX_CONFIG_BYTES:
        return {}
    try:
        return as_config(parse_json(bytes(load(ref).tolist()).decode()))
    except (KeyError, TypeError, ValueError):  # of another dtype, or not JSON
        return {}


def as_config(value: object) -> dict:
    return value if isinstance(value, dict) and isinstance(value.get("format"), str) else {}


def find_marker(model: Model) -> TensorRef | None:
    """Scaled FP8's marker tensor, whether it is in force or not."""
    return next((ref for name, ref in model.tensors.items() if bare(name) == MARKER), None)


def undecodable(layer: StoredLayer) -> str:
    """Why `stored_parts` cannot take a layer of one of SCHEMES; or ""."""
    scale = "scale_weight" if layer.scheme == "scaled FP8" else "weight_scale"
    ref = layer.parts.get("weight_scale_2" if layer.scheme == "NVFP4" else scale)
    if ref is not None and (ref.dtype not in SOURCE_FLOATS or math.prod(ref.shape) != 1):
        return f"its scale is {ref.dtype} {list(ref.shape)}"
    if len(layer.weight.shape) != 2 or 0 in layer.weight.shape:
        return f"its weight is {list(layer.weight.shape)}"
    if layer.scheme == "NVFP4":
        expected = format_parts(Precision.NVFP4, (layer.weight.shape[0], layer.shape[1]))
        tiles = layer.parts.get("weight_scale")
        if layer.weight.shape != expected["weight"][1]:
            return f"its weight is {list(layer.weight.shape)}"
        if tiles is None or tiles.shape != expected["weight_scale"][1]:
            return "its block scales have no or another shape"
        if tiles.dtype not in ("F8_E4M3", *VIEWED):
            return f"its block scales are {tiles.dtype}"
    return ""


def stored_scale(layer: StoredLayer) -> torch.Tensor:
    """The scale of an FP8 layer, float32; 1 where it has none."""
    ref = layer.parts.get("weight_scale") or layer.parts.get("scale_weight")
    return load(ref).float().reshape(()) if ref else torch.ones(())


def stored_parts(layer: StoredLayer) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a quantised layer's decoder takes: codes (and block scales) by rows, and the scale."""
    codes = load(layer.weight)
    if layer.scheme != "NVFP4":
        return [codes], stored_scale(layer)
    blocks = codes.shape[1] * 2 // BLOCK_SIZE
    block_scale = unswizzle(load(layer.parts["weight_scale"]), len(codes), blocks)
    scale = load(layer.parts["weight_scale_2"]).float().reshape(())
    return [codes.view(torch.uint8), block_scale], scale
