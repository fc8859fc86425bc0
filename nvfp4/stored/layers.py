"""Layers as a file holds them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from nvfp4.formats.base import Format, configured_formats, is_known, layer_parts, stored_formats
from nvfp4.formats.scaled_fp8 import MARKER
from nvfp4.model import Model, TensorRef, bare
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
    def format(self) -> Format | None:
        """The format that the layer's tensors show; None where no row of ours describes it."""
        configured = (self.config or {}).get("format")
        if self.weight is None or (is_known(configured) and not self.is_described):
            return None
        fitting = [f for f in stored_formats() if f.holds(self.weight, self.parts, configured)]
        first = fitting[0] if fitting else None
        return next((row for row in fitting if row.config == configured), first)

    @property
    def is_described(self) -> bool:
        return self.configured is not None

    @property
    def configured(self) -> Format | None:
        """The format that ComfyUI takes the layer for, going by its configuration."""
        return configured_formats().get((self.config or {}).get("format"))

    @property
    def scheme(self) -> str:
        """What to call the way in which the weight is stored."""
        if self.weight is None:
            return "no weight"
        named = (self.config or {}).get("format") or self.weight.dtype
        return self.format.title if self.format else named

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight before it was packed; the padding of rows is told from the bias."""
        shape, bias = self.weight.shape, self.parts.get("bias")
        if self.format is None or len(shape) != 2:
            return shape
        return self.format.logical_shape(
            shape, bias.shape[0] if bias and len(bias.shape) == 1 else None
        )


def stored_layers(model: Model) -> dict[str, StoredLayer]:
    """{name: layer} of every layer that a file holds a part of or a configuration for."""
    parts, known = defaultdict(dict), layer_parts()
    for ref in model.tensors.values():
        layer, _, suffix = ref.name.rpartition(".")
        if suffix in known:
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
    """Why `stored_parts` cannot take a layer that has a format; or ""."""
    return layer.format.undecodable(layer.parts, layer.shape)


def stored_scale(layer: StoredLayer) -> torch.Tensor:
    """The scale of a layer that has a single one, float32; 1 where it has none."""
    ref = layer.parts.get(layer.format.scale_suffix)
    return load(ref).float().reshape(()) if ref else torch.ones(())


def stored_tensors_of(layer: StoredLayer) -> dict[str, torch.Tensor]:
    """{suffix: tensor} of all that the layer's weight is decoded from, read whole."""
    names = map(layer.format.stored_name, layer.format.parts((1, 1)))
    return {suffix: load(layer.parts[suffix]) for suffix in names if suffix in layer.parts}


def stored_parts(layer: StoredLayer) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the decoder of a layer's format takes: parts by rows, codes first, and the scale."""
    return layer.format.unpack(stored_tensors_of(layer))
