"""Quantised layers as a file holds them, and their parts for decoding.

`stored_layers` collects a file's tensors by layer, together with the configuration that ComfyUI
would read. A layer's format is told by its tensors: files may configure what they do not hold.
Sources, files to verify, files to compare and files that input scales are copied from are all read
through this module.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nvfp4.formats.base import Format, layer_parts, readable_formats
from nvfp4.formats.scaled_fp8 import MARKER
from nvfp4.model import Coding, Model, TensorRef, diffusion_prefix, own_name
from nvfp4.modules import EMBEDDING, not_linear
from nvfp4.read.checkpoint import header_layers
from nvfp4.read.json_files import parse_json
from nvfp4.read.tensors import coded_scales, fetching, load, load_part

# A comfy_quant tensor usually has some 60 bytes. A larger one than this is not read, and counts as
# unreadable.
MAX_CONFIG_BYTES = 1 << 16


# Parts of a bank of experts that all of them share.
SHARED_PARTS = ("comfy_quant", "weight_codebook")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """Hold a layer as a file has it: its tensors, and its configuration in both places.

    parts: {suffix: TensorRef}, suffixes as the file has them, such as "weight_scale_2".
    in_header: the layer's entry in `_quantization_metadata`.
    in_tensor: the JSON of its `comfy_quant` tensor.

    A configuration that cannot be read is {}, none at all is None.
    """

    name: str
    parts: dict[str, TensorRef]
    in_header: dict | None = None
    in_tensor: dict | None = None

    @property
    def weight(self) -> TensorRef | None:
        """Find the weight; a file may have a layer's scales or configuration alone."""
        return self.parts.get("weight")

    @property
    def config(self) -> dict | None:
        """Choose the configuration that ComfyUI goes by: the header overrides the tensor."""
        # ComfyUI writes the header's entries over the tensors before it loads (comfy/utils.py,
        # convert_old_quants).
        return self.in_tensor if self.in_header is None else self.in_header

    @property
    def full_precision(self) -> bool:
        """Tell whether the layer is configured for full-precision matmul (W4A16)."""
        return bool((self.config or {}).get("full_precision_matrix_mult"))

    @property
    def format(self) -> Format | None:
        """Find the format that the layer's tensors show, whatever its configuration says.

        Returns None where they fit no quantised format, as those of a 16-bit layer. Where they fit
        several formats, the one that is configured is preferred.
        """
        config = self.config or {}
        if self.weight is None:
            return None
        if self.experts:
            return self.expert(0).format
        fitting = [f for f in readable_formats() if f.holds(self.weight, self.parts, config)]
        # Those that need more tensors come first, so that FP8 with a scale is not plain FP8.
        first = fitting[0] if fitting else None
        return next((row for row in fitting if row.config == config.get("format")), first)

    @property
    def is_looked_up(self) -> bool:
        """Tell whether ComfyUI has an embedding of that name, and such take the layer's format."""
        place, form = not_linear(own_name(self.name)), self.format
        is_embedding = place is not None and place.kind == EMBEDDING
        return is_embedding and form is not None and bool(form.embedding_since)

    @property
    def experts(self) -> int:
        """Count the experts whose weights are in this one layer; 0 for what is no bank of experts.

        A bank's weight is [E, N, K] before it is packed, or [E * N, K], and its configuration tells
        `num_experts` (comfy/ops.py, MoEExperts).
        """
        count = (self.config or {}).get("num_experts")
        shape = self.weight.shape if self.weight else ()
        if type(count) is not int or count < 1 or len(shape) not in (2, 3):
            return 0
        return count if shape[0] == count or (len(shape) == 2 and shape[0] % count == 0) else 0

    def expert(self, index: int) -> StoredLayer:
        """Give the layer of one expert of a bank: the same configuration, and its part of tensors.

        What is one number, or one codebook, is shared by all experts.
        """
        parts = {
            suffix: ref if suffix in SHARED_PARTS else expert_part(ref, self.experts, index)
            for suffix, ref in self.parts.items()
        }
        config = {key: value for key, value in self.config.items() if key != "num_experts"}
        return StoredLayer(name=self.name, parts=parts, in_header=config)

    @property
    def configured(self) -> Format | None:
        """Find the format that ComfyUI takes the layer for, going by its configuration.

        Of several that a configuration may mean, as W4A8 and W6A8, its tensors tell which. Returns
        None for names that ComfyUI does not know, and for options that no row has.
        """
        config, own = self.config or {}, self.format
        if own and own.is_configured and own.is_meant_by(config):
            return own
        rows = (row for row in readable_formats() if row.is_configured and row.config)
        return next((row for row in rows if row.is_meant_by(config)), None)

    @property
    def scheme(self) -> str:
        """Name how the weight is stored: its format's title, the configured name, or its dtype."""
        if self.weight is None:
            return "no weight"
        named = (self.config or {}).get("format") or self.weight.dtype
        return self.format.title if self.format else named

    @property
    def shape(self) -> tuple[int, ...]:
        """Tell the weight's shape [N, K] before it was packed.

        Padded rows are told from real ones by the length of the bias, where there is one. A weight
        that is no matrix, or is in no known format, has its stored shape; a bank of experts has
        [E, N, K]. Only for a layer that has a weight.
        """
        shape, bias = self.weight.shape, self.parts.get("bias")
        if self.experts:
            return (self.experts, *self.expert(0).shape)
        if self.format is None or len(shape) != 2:
            return shape
        return self.format.logical_shape(
            shape, bias.shape[0] if bias and len(bias.shape) == 1 else None
        )


def expert_part(ref: TensorRef, count: int, index: int) -> TensorRef:
    """Give one expert's part of a tensor that is one after the other of `count` experts.

    Its first dimension is the experts, or the rows of all of them; what is neither is shared.
    """
    if not ref.shape or ref.shape[0] % count:
        return ref
    rows, size = ref.shape[0] // count, ref.nbytes // count
    # A bank of one expert may be [1, N, K]; a row of scales [E] has one number for each.
    shape = ref.shape[1:] if rows == 1 else (rows, *ref.shape[1:])
    return dataclasses.replace(ref, shape=shape, begin=ref.begin + index * size, nbytes=size)


def stored_layers(model: Model) -> dict[str, StoredLayer]:
    """Collect every layer that a file holds a part of or a configuration for: {name: layer}.

    Ordinary 16-bit layers are among them. Layers come in the order of their first tensors, then
    those that only the header names. The `comfy_quant` tensors are read from the disk, nothing
    else is.
    """
    parts, known = defaultdict(dict), layer_parts()
    for ref in model.tensors.values():
        layer, _, suffix = ref.name.rpartition(".")
        # Norms and embeddings have a weight, too, and count as layers that nothing is wrong with.
        if suffix in known:
            parts[layer][suffix] = ref
    listed = header_layers(model.metadata) or {}
    configs = {name: own.get("comfy_quant") for name, own in parts.items()}
    with fetching(ref for ref in configs.values() if ref and ref.nbytes <= MAX_CONFIG_BYTES):
        return {
            name: StoredLayer(
                name=name,
                parts=parts.get(name, {}),
                in_header=as_config(listed[name]) if name in listed else None,
                in_tensor=config_of(configs.get(name)),
            )
            for name in [*parts, *(name for name in listed if name not in parts)]
        }


def config_of(ref: TensorRef | None) -> dict | None:
    """Read a `comfy_quant` tensor: None without one, {} where it is too large or malformed."""
    if ref is None:
        return None
    if ref.nbytes > MAX_CONFIG_BYTES:
        return {}
    try:
        return as_config(parse_json(bytes(load(ref).tolist()).decode()))
    except (KeyError, TypeError, ValueError):
        # It has another dtype than U8, or is not JSON in UTF-8. ComfyUI stops at it while loading.
        return {}


def as_config(value: object) -> dict:
    """Take a JSON value for a configuration if it is an object with a `format`; else give {}."""
    return value if isinstance(value, dict) and isinstance(value.get("format"), str) else {}


class Marker(NamedTuple):
    """Hold one marker tensor of scaled FP8, which is for the layers of one prefix.

    prefix: of the layers, up to and with the last dot, "" for a whole file; elements: of the
    tensor, of which 2 ask for full-precision matmul; is_read: whether ComfyUI heeds it.
    """

    prefix: str
    elements: int
    is_read: bool


def find_markers(model: Model) -> list[Marker]:
    """Find all markers of scaled FP8: each part of an all-in-one file has its own.

    ComfyUI heeds the diffusion model's only where the header has no `_quantization_metadata`, and
    those of text encoders always (comfy/sd.py, load_state_dict_guess_config).
    """
    own, found = diffusion_prefix(model.tensors), []
    for name, ref in model.tensors.items():
        before, _, suffix = name.rpartition(".")
        if suffix == MARKER:
            prefix = before and f"{before}."
            is_read = prefix not in ("", own) or "_quantization_metadata" not in model.metadata
            found.append(Marker(prefix, math.prod(ref.shape), is_read))
    return found


def marker_for(name: str, markers: Iterable[Marker]) -> Marker | None:
    """Choose the marker that a layer goes by: of those with its prefix the longest, or None."""
    fitting = (marker for marker in markers if name.startswith(marker.prefix))
    return max(fitting, key=lambda marker: len(marker.prefix), default=None)


def undecodable(layer: StoredLayer) -> str:
    """Say why `stored_parts` cannot take a layer that has a format; or "".

    Going by dtypes and shapes alone: nothing is read. Of a bank, one expert stands for all.
    """
    one = layer.expert(0) if layer.experts else layer
    return one.format.undecodable(one.parts, one.shape)


def coding_of(layer: StoredLayer) -> tuple[Coding, str]:
    """Tell how a layer's weight is decoded, and what is wrong with its scales or "".

    All scales are read: each has to be a positive, finite number in float32. The layer has to be
    decodable.
    """
    parts = {suffix: ref for suffix, ref in own_parts(layer).items() if suffix != "weight"}
    several = Coding(title=layer.format.title, parts=parts)
    by_rows, scale = coded_scales(layer.weight, several)
    for values in (*by_rows, scale):
        bad = values[~((values > 0) & values.isfinite())]
        if bad.numel():
            what = "its scale is" if values is scale else "one of its scales is"
            return several, f"{what} {bad.flatten()[0].item()}"
    # What has a single scale needs no other part while it is decoded.
    return (several, "") if by_rows else (Coding(title=several.title, scale=scale.item()), "")


def own_parts(layer: StoredLayer) -> dict[str, TensorRef]:
    """List what a layer's weight is decoded from, as far as the file has it: {suffix: ref}."""
    # The names do not depend on the shape, so the smallest one will do.
    names = map(layer.format.name_in_file, layer.format.parts((1, 1)))
    return {suffix: layer.parts[suffix] for suffix in names if suffix in layer.parts}


def layer_tensors(layer: StoredLayer) -> dict[str, torch.Tensor]:
    """Read all that a layer's weight is decoded from: {suffix: tensor}, each one whole.

    Suffixes are those of the file. Bias and input scale are not among them; what the file lacks is
    left out.
    """
    return {suffix: load_part(ref) for suffix, ref in own_parts(layer).items()}


def stored_parts(layer: StoredLayer) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Read what the decoder of a layer's format takes.

    Returns the parts that go by rows, codes first, and the scale, a float32 scalar. Rows are those
    of the file, padding included. The layer has to have a format and be decodable.
    """
    return layer.format.unpack(layer_tensors(layer))
