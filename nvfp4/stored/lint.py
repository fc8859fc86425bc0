"""A file held against ComfyUI's contract."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from nvfp4.families import NEVER_PACKED, RECOGNISED_BY_ROWS
from nvfp4.formats import (
    BLOCK_SIZE,
    FORMATS,
    FP4_MATMUL_K,
    FP4_MATMUL_N,
    LEGACY_SCALES,
    NAN_E4M3,
    OTHER_FORMATS,
    SAFETENSORS_BITS,
    SCALAR_SCALES,
    SOURCE_FLOATS,
    VIEWED,
    Precision,
    format_parts,
    round_up,
)
from nvfp4.model import COMFYUI_PREFIXES, UNREAD_PREFIXES, Model, bare
from nvfp4.numeric.codes import decode_e4m3, unswizzle
from nvfp4.read.checkpoint import header_layers
from nvfp4.read.tensors import load
from nvfp4.stored.defects import Finding
from nvfp4.stored.layers import StoredLayer, find_marker, undecodable

LARGE_WEIGHT = 100.0  # no trained model has one; FP8 codes without their scale reach 448


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What a layer's reading depends on besides the layer itself."""

    legacy: bool  # scaled FP8's marker is there and in force
    fp8_matmul: bool  # ... and asks for FP8 activations
    values: bool  # scales may be read, too


def lint(model: Model, layers: dict[str, StoredLayer], *, values: bool = True) -> list[Finding]:
    """Every defect of a quantised file that its headers, configurations and scales show.

    Without `values`, scales are not read: nothing but headers and configurations is.
    """
    marker = find_marker(model)
    # ComfyUI reads the legacy form only where there is a marker and no current metadata.
    legacy = marker is not None and "_quantization_metadata" not in model.metadata
    facts = FileFacts(
        legacy=legacy, fp8_matmul=legacy and math.prod(marker.shape) != 2, values=values
    )
    found = [
        Finding(defect="unaligned", name=ref.name, detail=f"byte {ref.begin:,}")
        for ref in model.tensors.values()
        if ref.nbytes and ref.begin % max(1, SAFETENSORS_BITS[ref.dtype] // 8)
    ]
    if header_layers(model.metadata) is None:
        found.append(Finding(defect="header", name="the header"))
    for layer in layers.values():
        found += lint_layer(layer, facts)
    return found


def lint_layer(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """A layer's configuration, then its tensors by what it makes of them."""
    config, finding = layer.config, partial(Finding, name=layer.name)
    if layer.weight is None:
        # A name with a prefix that nothing else has makes ComfyUI look for the model there.
        misleading = not layer.parts and layer.name.startswith(COMFYUI_PREFIXES)
        if config is not None and (misleading or layer.parts.keys() - {"comfy_quant"}):
            yield finding(defect="no weight")
        elif not layer.parts.keys() <= {"bias"} or config is not None:
            yield finding(defect="stray", detail=", ".join(layer.parts))
    elif config is None:
        yield from lint_unconfigured(layer, facts)
    elif config.get("format") not in {*FORMATS, *OTHER_FORMATS}:
        yield finding(defect="unknown format", detail=str(config.get("format", "unreadable")))
    else:
        if layer.in_header is None or layer.in_tensor is None:
            only = "comfy_quant" if layer.in_header is None else "header"
            yield finding(defect="one form", detail=only)
        elif layer.in_header != layer.in_tensor:
            yield finding(defect="two forms")
        if layer.precision is not None:
            yield from lint_quantised(layer, facts)


def lint_unconfigured(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """A weight without configuration: 16-bit, legacy scaled FP8, or a mistake."""
    finding, weight = partial(Finding, name=layer.name), layer.weight
    if layer.scheme == "NVFP4":
        yield finding(defect="unconfigured")
    elif weight.dtype in ("U8", "I8") and len(weight.shape) == 2:
        yield finding(defect="integers", detail=weight.dtype)
    elif facts.legacy and "scale_weight" in layer.parts:
        yield from lint_legacy(layer, facts)
    elif layer.scheme in ("FP8", "scaled FP8"):
        yield finding(defect="unread scale")
    elif layer.scheme == "plain FP8" and len(weight.shape) == 2:
        if facts.values and weight.nbytes and decode_e4m3(load(weight)).abs().max() > LARGE_WEIGHT:
            yield finding(defect="unscaled")
    elif strays := layer.parts.keys() - {"weight", "bias"}:
        yield finding(defect="stray", detail=", ".join(sorted(strays)))


def lint_legacy(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """A layer of scaled FP8: ComfyUI casts whatever has a scale_weight to F8_E4M3."""
    finding, scale = partial(Finding, name=layer.name), layer.parts.get("scale_input")
    yield from lint_scalars(layer, facts)
    if layer.weight.dtype != "F8_E4M3":
        yield finding(defect="weight dtype", detail=layer.weight.dtype)
    readable = scale is not None and scale.dtype in SOURCE_FLOATS and facts.values
    # ComfyUI drops an input scale of exactly 1.
    if facts.fp8_matmul and (scale is None or (readable and (load(scale) == 1).all())):
        yield finding(defect="clamped")


def lint_quantised(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """An NVFP4 or FP8 layer with a configuration: every tensor, and how it will multiply."""
    finding, weight = partial(Finding, name=layer.name), layer.weight
    is_nvfp4 = layer.precision is Precision.NVFP4
    if len(weight.shape) != 2 or 0 in weight.shape:
        yield finding(defect="shape", detail=f"weight {list(weight.shape)}")
        return
    rows, columns = weight.shape[0], weight.shape[1] * (2 if is_nvfp4 else 1)
    expected = format_parts(layer.precision, (rows, columns))
    for suffix, part in expected.items():
        yield from lint_part(layer, suffix, part)
    yield from lint_scalars(layer, facts)
    multiple = BLOCK_SIZE if is_nvfp4 else 1
    for suffix, size in (("bias", rows), ("pre_quant_scale", columns)):
        ref = layer.parts.get(suffix)
        if ref and tuple(round_up(length, multiple) for length in ref.shape) != (size,):
            yield finding(defect="shape", detail=f"{suffix} {list(ref.shape)} for {size}")
    if is_nvfp4:
        yield from lint_packed(layer)
        if facts.values and layer.scheme == "NVFP4" and not undecodable(layer):
            yield from lint_block_scales(layer)
    elif not layer.full_precision and "input_scale" not in layer.parts:
        yield finding(defect="clamped")


def lint_part(layer: StoredLayer, suffix: str, expected: tuple) -> Iterator[Finding]:
    """One tensor's dtype and shape against what its format stores; `lint_scalars` has scalars."""
    ref, (dtype, shape) = layer.parts.get(suffix), expected
    if ref is None:
        yield Finding(defect="no scale", name=layer.name, detail=suffix)
        return
    finding = partial(Finding, name=layer.name, detail=f"{suffix} {ref.dtype} {list(ref.shape)}")
    if dtype == "F32":
        return
    if ref.dtype != dtype:
        # What ComfyUI views or wraps into the dtype it wants, without changing a bit.
        same = (
            ref.dtype in VIEWED if suffix == "weight_scale" else (ref.dtype, dtype) == ("I8", "U8")
        )
        other = "weight dtype" if suffix == "weight" else "dtype"
        yield finding(defect="same bits" if same else other)
    if ref.shape != shape:
        yield finding(defect="shape")


def lint_scalars(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Global, FP8 and input scales: one positive, finite float32 each."""
    for suffix in SCALAR_SCALES:
        ref = layer.parts.get(suffix)
        if ref is None or (suffix == "weight_scale" and layer.scheme == "NVFP4"):
            continue
        finding = partial(
            Finding, name=layer.name, detail=f"{suffix} {ref.dtype} {list(ref.shape)}"
        )
        rows = math.prod(layer.weight.shape[:1])
        per_row = math.prod(ref.shape) == rows > 1 and suffix == "weight_scale"
        if ref.dtype not in (*SOURCE_FLOATS, "F64"):
            yield finding(defect="dtype")
        elif math.prod(ref.shape) != 1:
            yield finding(defect="per row" if per_row else "shape")
        else:
            if ref.dtype in ("F16", "BF16"):
                yield finding(defect="float16 scale")
            if ref.dtype == "F64" or (ref.shape and suffix not in LEGACY_SCALES):
                yield finding(defect="not scalar")  # working legacy files have [1]
            value = load(ref).item() if facts.values and ref.dtype in SOURCE_FLOATS else 1.0
            if not 0 < value < math.inf:
                yield finding(defect="bad scale", detail=f"{suffix} {value}")


def lint_packed(layer: StoredLayer) -> Iterator[Finding]:
    """What packing an NVFP4 layer, and the padding of its rows, cost."""
    (rows, columns), name = layer.shape, bare(layer.name)
    odd_rows = rows % FP4_MATMUL_N
    by_rows = re.search(RECOGNISED_BY_ROWS, name)
    never_packed = any(re.search(pattern, name) for pattern in NEVER_PACKED.values())
    if odd_rows if by_rows else never_packed:
        yield Finding(defect="recognised by", name=layer.name)
    elif never_packed:
        yield Finding(defect="output layer", name=layer.name)
    if not layer.full_precision and (odd_rows or columns % FP4_MATMUL_K):
        yield Finding(defect="slow shape", name=layer.name, detail=f"[{rows}, {columns}]")


def lint_block_scales(layer: StoredLayer) -> Iterator[Finding]:
    """Block scales are E4M3 numbers without a sign, and zero in the padding of their tiles."""
    tiles = load(layer.parts["weight_scale"]).view(torch.uint8)
    if (tiles >= NAN_E4M3).any():  # NaN, or the sign bit
        yield Finding(defect="bad scale", name=layer.name, detail="weight_scale")
    rows, blocks = layer.weight.shape[0], layer.weight.shape[1] * 2 // BLOCK_SIZE
    if tiles.shape != (rows, blocks):
        scales = unswizzle(tiles, *tiles.shape)
        if scales[rows:].any() or scales[:, blocks:].any():
            yield Finding(defect="padding", name=layer.name)


def lint_file(model: Model) -> list[Finding]:
    """Defects of a file as a whole, which no conversion makes of a source that has none."""
    if not model.tensors:
        return [Finding(defect="empty", name=str(model.files[0]))]
    if all(name.startswith(UNREAD_PREFIXES) for name in model.tensors):
        return [Finding(defect="prefix", name=next(iter(model.tensors)))]
    return []
