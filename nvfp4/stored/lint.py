"""Hold a quantised file against ComfyUI's contract.

`lint` looks at headers, configurations and scales of a whole file, layer by layer, and yields
Findings. It asks each format for what it should store, so that a new format needs nothing here. A
weight's values are compared with a source elsewhere, in `verify`. Sources are linted as they are
opened, and every output is before it gets its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from nvfp4.dtypes import SAFETENSORS_BITS, SOURCE_FLOATS, VIEWED, round_up
from nvfp4.errors import ConvertError
from nvfp4.formats.base import Format, is_known, readable_formats, scalar_scales
from nvfp4.formats.plain_fp8 import unread_scales
from nvfp4.formats.scaled_fp8 import SCALED_FP8
from nvfp4.model import COMFYUI_PREFIXES, Model, bare, diffusion_prefix, is_beside, own_name
from nvfp4.modules import not_linear, shape_read
from nvfp4.numeric.float8 import decode_byte
from nvfp4.prefixes import comfyui_names, file_kind, text_encoder
from nvfp4.quantisers import quantiser_of
from nvfp4.read.checkpoint import header_layers
from nvfp4.read.tensors import load, load_part
from nvfp4.stored.defects import Finding
from nvfp4.stored.layers import Marker, StoredLayer, find_markers, marker_for, undecodable

# The output layer of a text encoder, where it has no prefix.
LONE_HEAD = "lm_head.weight"
# No trained model has a weight as large as this; FP8 codes without their scale reach 448.
LARGE_WEIGHT = 100.0
# The share of large numbers up to which they may be outliers of a weight that was merely cast. A
# scale for each row of 4096 leaves at least one code of 448 in each.
LARGE_SHARE = 1 / 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """Hold what the checks of a layer depend on besides the layer itself.

    values: whether scales may be read from the disk, and not only headers and configurations.
    prefix: of the diffusion model's names.
    is_other: whether the file is no diffusion model, as a text encoder.
    markers: of scaled FP8; a layer goes by that of its own part of the file.
    unread: see `unread_scales`.
    scalars: see `scalar_scales`, which goes over all formats and so is asked once for a file.
    """

    values: bool
    prefix: str = ""
    is_other: bool = False
    markers: tuple[Marker, ...] = ()
    unread: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, tuple[int, ...]] = field(default_factory=scalar_scales)

    def beside(self, layer: StoredLayer) -> bool:
        """Tell whether a layer is of no diffusion model: ComfyUI multiplies it in 16 bits."""
        return self.is_other or is_beside(layer.name, self.prefix)


def lint(model: Model, layers: dict[str, StoredLayer], *, values: bool = True) -> list[Finding]:
    """Find every defect of a quantised file that its headers, configurations and scales show.

    model: the file's headers; layers: `stored_layers` of it, or those that are asked about.
    values: whether to read scales, too; without, nothing but headers and configurations is looked
        at.

    Raises ConvertError where a scale cannot be read.
    """
    kind, (encoder, _) = file_kind(Path(), model.tensors), text_encoder(Path(), model.tensors)
    facts = FileFacts(
        values=values,
        prefix=diffusion_prefix(model.tensors),
        is_other=bool(encoder) or (kind is not None and not kind.is_like_a_model),
        markers=tuple(find_markers(model)),
        unread=unread_scales(model.tensors),
    )
    # Dtypes of less than 8 bits start at any byte.
    found = [
        Finding(defect="unaligned", name=ref.name, detail=f"byte {ref.begin:,}")
        for ref in model.tensors.values()
        if ref.nbytes and ref.begin % max(1, SAFETENSORS_BITS[ref.dtype] // 8)
    ]
    if header_layers(model.metadata) is None:
        found.append(Finding(defect="header", name="the header"))
    for layer in layers.values():
        found += [*lint_place(layer), *lint_layer(layer, facts)]
    return found


def lint_place(layer: StoredLayer) -> Iterator[Finding]:
    """Check that a quantised weight is a linear layer's in ComfyUI's classes, by its name.

    ComfyUI's own embeddings take FP8 and its scale; whatever else is no linear layer takes a weight
    as it is stored.
    """
    place, form = not_linear(own_name(layer.name)), layer.format
    if place is None or form is None or len(layer.weight.shape) != 2:
        return
    finding = partial(Finding, name=layer.name, detail=f"{place.kind} of {place.classes}")
    if form.logical_shape(layer.weight.shape, None) != layer.weight.shape:
        yield finding(defect="no linear layer")
    elif form.scale_suffix in layer.parts and not layer.is_looked_up:
        yield finding(defect="scaled parameter")


def lint_layer(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a layer's configuration, and then its tensors by what the configuration makes of them.

    A layer without a configuration goes to `lint_unconfigured`, and a bank of experts to
    `lint_bank`.
    """
    config, finding = layer.config, partial(Finding, name=layer.name)
    if layer.weight is None:
        # Configured under a prefix that nothing else has, it makes ComfyUI look for the model
        # there.
        misleading = not layer.parts and layer.name.startswith(COMFYUI_PREFIXES)
        if config is not None and (misleading or layer.parts.keys() - {"comfy_quant"}):
            yield finding(defect="no weight")
        elif not layer.parts.keys() <= {"bias"} or config is not None:
            yield finding(defect="stray", detail=", ".join(layer.parts))
    elif config is None:
        yield from lint_unconfigured(layer, facts)
    elif not is_known(config.get("format")):
        yield finding(defect="unknown format", detail=str(config.get("format", "unreadable")))
    else:
        # ComfyUI needs one of the two; this program writes both, so that other loaders find theirs.
        if layer.in_header is None or layer.in_tensor is None:
            only = "comfy_quant" if layer.in_header is None else "header"
            yield finding(defect="one form", detail=only)
        elif layer.in_header != layer.in_tensor:
            yield finding(defect="two forms")
        if layer.experts:
            yield from lint_bank(layer, facts)
        elif layer.configured is not None:
            yield from lint_quantised(layer, facts)
        else:
            yield lint_options(layer)


def lint_options(layer: StoredLayer) -> Finding:
    """Tell of a configuration whose options no row has, for a format that ComfyUI knows."""
    options = {key: value for key, value in layer.config.items() if key != "format"}
    told = f"{layer.config['format']} {json.dumps(options)}"
    named = (row for row in readable_formats() if row.config == layer.config["format"])
    is_matrix = len(layer.weight.shape) == 2
    is_loaded = is_matrix and all(row.allows(layer.config, layer.parts) for row in named)
    return Finding(
        defect="unknown options" if is_loaded else "groups", name=layer.name, detail=told
    )


def lint_bank(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a bank of experts: each expert is checked as a layer, each defect is told once.

    All of them have the same dtypes and shapes, so that one stands for all where values are not
    read.
    """
    if layer.expert(0).configured is None:
        yield lint_options(layer)
        return
    count = layer.experts if facts.values else 1
    experts = map(layer.expert, range(count))
    yield from dict.fromkeys(one for expert in experts for one in lint_quantised(expert, facts))


def lint_unconfigured(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a weight without configuration: 16-bit, legacy scaled FP8, or a mistake.

    ComfyUI takes what has no configuration for the numbers that it stores: packed codes have
    another shape then, and FP8 codes without their scale are another weight.
    """
    finding, weight = partial(Finding, name=layer.name), layer.weight
    form, marker = layer.format, marker_for(layer.name, facts.markers)
    # The order matters: packed codes first, as the marker of scaled FP8 does not make them FP8.
    if form and weight.dtype in VIEWED:
        yield finding(defect=form.unconfigured)
    elif weight.dtype in ("U8", "I8") and len(weight.shape) == 2:
        yield finding(defect="integers", detail=weight.dtype)
    elif marker and marker.is_read and "scale_weight" in layer.parts:
        yield from lint_legacy(layer, facts, needs_input_scale=marker.elements != 2)
    elif form and form.unconfigured:
        yield finding(defect=form.unconfigured)
    elif form and (scale := facts.unread.get(weight.name)):
        yield finding(defect="unscaled", detail=f"beside {scale}")
    elif form and len(weight.shape) == 2:
        # FP8 without any scale is sound if it was merely cast: its values are the weights then.
        values = decode_byte(load(weight)) if facts.values and weight.nbytes else torch.zeros(1)
        if is_too_large(values):
            yield finding(defect="unscaled")
    elif strays := layer.parts.keys() - {"weight", "bias"}:
        yield finding(defect="stray", detail=", ".join(sorted(strays)))


def is_too_large(values: torch.Tensor) -> bool:
    """Tell whether more than LARGE_SHARE of some numbers are larger than trained weights."""
    return int((values.abs() > LARGE_WEIGHT).sum()) > LARGE_SHARE * values.numel()


def lint_legacy(
    layer: StoredLayer, facts: FileFacts, *, needs_input_scale: bool
) -> Iterator[Finding]:
    """Check a layer of scaled FP8, the older form, which the marker configures.

    ComfyUI casts whatever has a `scale_weight` to F8_E4M3, so a weight of another dtype becomes
    another weight. `needs_input_scale` tells whether the marker asks for FP8 activations.
    """
    finding, scale = partial(Finding, name=layer.name), layer.parts.get("scale_input")
    yield from lint_scalars(layer, facts)
    if layer.weight.dtype != SCALED_FP8.weight_dtype:
        yield finding(defect="weight dtype", detail=layer.weight.dtype)
    readable = scale is not None and scale.dtype in SOURCE_FLOATS and facts.values
    # ComfyUI drops an input scale of exactly 1 (comfy/utils.py, convert_old_quants).
    needs_input_scale &= not (facts.beside(layer) or layer.is_looked_up)
    if needs_input_scale and (scale is None or (readable and (load(scale) == 1).all())):
        yield finding(defect="clamped")


def lint_quantised(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check a layer that is configured for a format described here: tensors, and its matmul.

    Shapes follow from the weight's, which is checked first: where it is no matrix, nothing else is
    looked at. Values are checked where the tensors are those of the format.
    """
    finding, weight = partial(Finding, name=layer.name), layer.weight
    form = layer.configured
    if len(weight.shape) != 2 or 0 in weight.shape:
        yield finding(defect="shape", detail=f"weight {list(weight.shape)}")
        return
    yield from lint_idle(layer, form)
    rows, columns = form.logical_shape(weight.shape, None)
    expected = form.parts((rows, columns))
    for suffix, part in expected.items():
        yield from lint_part(layer, suffix, part)
    if "weight_codebook" in layer.parts.keys() - expected.keys():
        yield finding(defect="extra codebook")
    yield from lint_scalars(layer, facts)
    for suffix, size in (("bias", rows), ("pre_quant_scale", columns)):
        ref = layer.parts.get(suffix)
        # A bias may have the real rows where the weight has padded ones.
        if ref and tuple(round_up(length, form.row_multiple) for length in ref.shape) != (size,):
            yield finding(defect="shape", detail=f"{suffix} {list(ref.shape)} for {size}")
    # ComfyUI recognises no model by what lies beside it, and multiplies text encoders in 16 bits.
    beside = facts.beside(layer)
    # Where the stored shape is another one, several codes share a byte.
    if expected["weight"][1] != (rows, columns) and not beside:
        yield from lint_packed(layer)
    if facts.values and layer.format is form and not undecodable(layer):
        yield from lint_values(layer)
    is_scaled = layer.full_precision or beside or "input_scale" in layer.parts
    is_scaled |= layer.is_looked_up
    if form.needs_input_scale and not is_scaled:
        yield finding(defect="clamped")
    if not form.fits((rows, columns)):
        yield finding(defect="groups", detail=f"{columns} columns in groups of {form.rotated}")


def lint_idle(layer: StoredLayer, form: Format) -> Iterator[Finding]:
    """Find parts and marks of a layer that ComfyUI does not read where it has this format."""
    idle = ["full_precision_matrix_mult"] if layer.full_precision and not form.takes_mark else []
    idle += ["input_scale"] if "input_scale" in layer.parts and not form.activation_max else []
    if idle:
        yield Finding(defect="idle", name=layer.name, detail=" and ".join(idle))
    if "pre_quant_scale" in layer.parts and not form.has_nvfp4_input:
        yield Finding(defect="smoothed", name=layer.name)


def lint_part(layer: StoredLayer, suffix: str, expected: tuple) -> Iterator[Finding]:
    """Check one tensor's dtype and shape against what its format stores.

    suffix: of the tensor, of which only the absence is reported for single float32 numbers, as
    `lint_scalars` checks these.
    expected: (dtype, shape), as `Format.parts` gives it.
    """
    ref, (dtype, shape) = layer.parts.get(suffix), expected
    if ref is None:
        yield Finding(defect="no scale", name=layer.name, detail=suffix)
        return
    if layer.configured.accepts(suffix, ref, shape):
        return
    finding = partial(Finding, name=layer.name, detail=f"{suffix} {ref.dtype} {list(ref.shape)}")
    # ComfyUI takes scalars of several dtypes and shapes, which `lint_scalars` knows.
    if dtype == "F32" and math.prod(shape) == 1:
        return
    if ref.dtype != dtype:
        yield finding(defect=other_dtype(suffix, ref.dtype, dtype, layer.configured))
    if ref.shape != shape:
        flat = shape == (*ref.shape, 1) and len(ref.shape) == 1
        yield finding(defect="flat scales" if flat else "shape")


def other_dtype(suffix: str, found: str, expected: str, form: Format) -> str:
    """Choose the key of DEFECTS for a part in another dtype than its format says."""
    # What ComfyUI views as the dtype it wants, without changing a bit, or casts from I8 to U8 or
    # back, which wraps around to the same bits (comfy/ops.py, _load_quantized_module).
    viewed = {"weight": VIEWED, "weight_scale": VIEWED, "weight_s_rel": ("U8",)}.get(suffix, ())
    if found in viewed and expected in (*VIEWED, "F8_E4M3", "F8_E8M0"):
        return "same bits" if suffix != "weight" or expected in VIEWED else "weight dtype"
    if suffix == "weight":
        return "weight dtype"
    rounded = form.casts_scales and expected == "F32" and found in ("F16", "BF16")
    return "float16 scale" if rounded else "dtype"


def lint_scalars(layer: StoredLayer, facts: FileFacts) -> Iterator[Finding]:
    """Check global, FP8 and input scales: each one positive, finite float32.

    A row of scales, which a format may store, is none of these. A value is read only with
    `facts.values`.
    """
    # The shape of any matrix will do, as scalars have theirs whatever it is.
    form = layer.format or layer.configured
    own = form.parts((32, 32)) if form else {}
    for suffix, written in facts.scalars.items():
        ref = layer.parts.get(suffix)
        if ref is None or math.prod(own.get(suffix, ("", ()))[1]) != 1:
            continue
        finding = partial(
            Finding, name=layer.name, detail=f"{suffix} {ref.dtype} {list(ref.shape)}"
        )
        rows = math.prod(layer.weight.shape[:1])
        # An FP8 scale for each row is decoded rightly by ComfyUI, which broadcasts it; flat ones
        # would be scales of columns.
        per_row = ref.shape == (rows, 1) and rows > 1 and suffix == "weight_scale"
        if ref.dtype not in (*SOURCE_FLOATS, "F64"):
            yield finding(defect="dtype")
        elif math.prod(ref.shape) != 1:
            yield finding(defect="per row" if per_row else "shape")
        else:
            if ref.dtype in ("F16", "BF16"):
                yield finding(defect="float16 scale")
            if ref.dtype == "F64" or (ref.shape and not written):
                yield finding(defect="not scalar")
            # The values of a float64 scale are not read: it is reported as it is.
            value = load(ref).item() if facts.values and ref.dtype in SOURCE_FLOATS else 1.0
            if not 0 < value < math.inf:
                yield finding(defect="bad scale", detail=f"{suffix} {value}")


def lint_packed(layer: StoredLayer) -> Iterator[Finding]:
    """Check what packing a layer, and the padding of its rows, breaks or slows down.

    ComfyUI recognises some models by the shapes of certain layers, which packing changes, and cards
    cannot multiply every shape in FP4.
    """
    rows, columns = layer.shape
    # Packing keeps rows unless it pads them, and halves columns.
    read = shape_read(bare(layer.name))
    if read and (read.columns or rows % layer.configured.row_multiple):
        yield Finding(defect="recognised by", name=layer.name)
    elif read and not read.in_block:
        yield Finding(defect="output layer", name=layer.name)
    if not layer.full_precision and layer.configured.is_slow((rows, columns)):
        yield Finding(defect="slow shape", name=layer.name, detail=f"[{rows}, {columns}]")


def lint_values(layer: StoredLayer) -> Iterator[Finding]:
    """Find the defects that the values of a decodable layer's block or row scales show.

    All scales but scalars are read whole. What is wrong with them, the format's `faults` says.
    """
    form = layer.format
    parts = form.parts(layer.shape)
    # The scales of a weight of one row are a single number, too, but no scalar of the format.
    names = [k for k, (_, shape) in parts.items() if shape not in ((), form.scalar_shape)]
    scales = {suffix: load_part(layer.parts[suffix]) for suffix in names if suffix != "weight"}
    for defect, detail in layer.format.faults(scales, layer.weight.shape):
        yield Finding(defect=defect, name=layer.name, detail=detail)


def lint_file(
    model: Model, layers: dict[str, StoredLayer], *, values: bool = True
) -> list[Finding]:
    """Find all defects of a file: those of its layers, and those of the file as a whole.

    Arguments as for `lint`, which runs on every output, too: no conversion makes the others of a
    source that has none. They are: no tensors, names that ComfyUI does not know, and layers that
    another program packed, of which nothing else is said.
    """
    program, packed = quantiser_of(model.tensors)
    found = [one for one in lint(model, layers, values=values) if one.name not in packed]
    found += [Finding(defect="other program", name=name, detail=program) for name in packed]
    return [*found, *lint_names(model)]


def lint_names(model: Model) -> list[Finding]:
    """Find out whether a file has tensors, and names that ComfyUI knows."""
    if not model.tensors:
        return [Finding(defect="empty", name=str(model.files[0]))]
    # Other files have names of their own.
    if file_kind(Path(), model.tensors):
        return []
    try:
        renaming = comfyui_names(model.files[0], model.tensors)
    except ConvertError:
        # It has a model twice, of which ComfyUI takes one.
        return []
    # ComfyUI renames the weight of this one itself, without its scales.
    renamed = {**renaming.names, LONE_HEAD: LONE_HEAD}
    changed = next((old for old, name in renamed.items() if old != name), "")
    return [Finding(defect="prefix", name=changed)] if changed else []
