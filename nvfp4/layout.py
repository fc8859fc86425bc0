"""Lay the output out to the byte: tensors, headers, shards.

Everything about a file but its values is known from the plan: names, dtypes, shapes, offsets and
the header's text. A Job holds it; writing then fills slots in any order, --resume compares
fingerprints, and --target-size asks for sizes without writing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from nvfp4.dtypes import SAFETENSORS_BITS, bits_of, round_up
from nvfp4.errors import ConvertError, examples
from nvfp4.files import CHANGED_UNDER_WAY, stamp
from nvfp4.formats.scaled_fp8 import marker_tensor
from nvfp4.model import Model, bare
from nvfp4.options import Options, __version__
from nvfp4.plan.records import TensorPlan
from nvfp4.read.checkpoint import header_layers
from nvfp4.virtual import revisions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Place one tensor of the output.

    name, dtype, shape: as in the header; begin: its absolute offset in the file, header included;
    nbytes: its size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Hold one output file, known before it is written.

    header: the whole header, its length field of 8 bytes included; slots: {name: Slot} in the order
    of their bytes.
    """

    header: bytes
    slots: dict[str, Slot]

    @property
    def nbytes(self) -> int:
        """Return the size of the file."""
        return len(self.header) + sum(slot.nbytes for slot in self.slots.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold a conversion planned to the byte: one output file, or shards and their index.

    model: the source, LoRAs and adopted layers included; plans: one for each tensor, in source
    order; origin: how the file is made, as its header tells; layouts: {path: Layout} of the files
    that hold tensors.
    """

    options: Options
    model: Model
    plans: list[TensorPlan]
    origin: dict[str, object]
    layouts: dict[Path, Layout]

    @property
    def nbytes(self) -> int:
        """Return the size of all files that hold tensors, headers included.

        The index of shards does not count.
        """
        return sum(layout.nbytes for layout in self.layouts.values())

    @property
    def index(self) -> Path | None:
        """Return the path of the index of shards, None for a single file."""
        return self.options.written if self.options.output_sharded else None

    @property
    def files(self) -> list[Path]:
        """List the paths of the output in the order in which they get their names, the index last.

        A set of shards without its index is not taken for a model, so that it is never half there.
        """
        return [*self.layouts, *filter(None, [self.index])]

    @property
    def fingerprint(self) -> dict[str, object]:
        """Summarise what the output's bytes depend on, to tell this conversion from another one.

        Returns a hash of headers and input scales ("plan"), and path, size and time of each file
        that is read ("files"), all of which JSON can hold. The journal begins with it, and --resume
        goes on only where it is the same.
        """
        plan = hashlib.sha256()
        for path, layout in self.layouts.items():
            plan.update(os.fsencode(path.name) + layout.header)
        # Headers do not show the values of input scales, which another option may have changed.
        plan.update(str([plan.input_scale for plan in self.plans]).encode())
        paths = [path for path in (*self.options.inputs, *self.model.files) if not path.is_dir()]
        stamps = {path: self.model.stamps.get(path) or stamp(path) for path in paths}
        # The folder of a file counts, too: models for high and low noise may have the same names,
        # sizes and times. Folders among the inputs were left out above, because their time changes
        # with each file in them, such as the output.
        files = [[str(path.resolve()), *stamp] for path, stamp in stamps.items()]
        return {"plan": plan.hexdigest(), "files": sorted(files)}

    def refuse_changed(self) -> None:
        """Raise ConvertError if source files are no longer those whose headers were read.

        Old and new weights would mix in the output. Size and time of each file are compared.
        """
        stamps = self.model.stamps
        if changed := [str(path) for path, before in stamps.items() if stamp(path) != before]:
            raise ConvertError(f"{examples(changed)}: {CHANGED_UNDER_WAY}")


def planned_tensors(plan: TensorPlan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """List what a planned tensor becomes in the output: {key: (safetensors dtype, shape)}.

    One tensor, unless it is quantised: then the format's parts come first, input scale, smoothing
    and configuration after them, each if the plan has it. `encode.layer.store` gives the values in
    this order.
    """
    # A weight of the source that is NVFP4 already brings its configuration along.
    if not plan.is_quantised:
        stored = {plan.ref.name: (plan.dtype, plan.ref.shape)}
        config = {f"{plan.ref.layer}.comfy_quant": ("U8", (len(plan.config_bytes),))}
        return stored | (config if plan.ref.config else {})
    form = plan.precision
    parts = form.parts(plan.ref.shape)
    # Names beyond the format's own parts are those that ComfyUI reads for every format.
    if plan.input_scale is not None:
        parts["input_scale"] = ("F32", form.scalar_shape)
    if plan.smoothing is not None:
        parts["pre_quant_scale"] = ("BF16", tuple(plan.smoothing.shape))
    if form.is_configured:
        parts["comfy_quant"] = ("U8", (len(plan.config_bytes),))
    return {f"{plan.ref.layer}.{form.name_in_file(suffix)}": part for suffix, part in parts.items()}


def marker_of(plans: Iterable[TensorPlan]) -> dict[str, torch.Tensor]:
    """Make the tensor by which ComfyUI knows the quantised layers of a file that configures none.

    Returns {name: tensor}, empty where no format of the plan has a marker. A marker decides for all
    layers of a file, so that it is made of the first one's full-precision flag.
    """
    plan = next((plan for plan in plans if plan.precision.marker), None)
    if plan is None:
        return {}
    # ComfyUI looks for the marker behind the prefix that the model's other keys have.
    prefix = plan.ref.layer.removesuffix(bare(plan.ref.layer))
    marker = marker_tensor(full_precision=bool(plan.full_precision))
    return {prefix + plan.precision.marker: marker}


def bytes_in_output(plan: TensorPlan) -> int:
    """Count the bytes that a planned tensor becomes, with its scales and configuration."""
    return sum(bits_of(*stored) // 8 for stored in planned_tensors(plan).values())


def make_job(options: Options, model: Model, plans: list[TensorPlan]) -> Job:
    """Make the record of a conversion that is planned: its files laid out to the byte.

    Raises ConvertError where two tensors of the output would have one name.
    """
    origin = origin_of(options, model, plans)
    layouts = make_layouts(options, model, plans, origin)
    return Job(options=options, model=model, plans=plans, origin=origin, layouts=layouts)


def output_size(options: Options, model: Model, plans: list[TensorPlan]) -> int:
    """Compute the output's size, headers included, without a Job to write it."""
    layouts = make_layouts(options, model, plans, origin_of(options, model, plans))
    return sum(layout.nbytes for layout in layouts.values())


def make_layouts(
    options: Options, model: Model, plans: list[TensorPlan], origin: dict[str, object]
) -> dict[Path, Layout]:
    """Lay out the one file, or the shards with --output-sharded: {path: Layout}.

    Shards are named NAME-00001-of-0000N.safetensors beside OUTPUT; each has the whole metadata, and
    in it the quantised layers that it holds.
    """
    marker = marker_of(plans)
    shards = split_shards(plans, options.max_shard_size) if options.output_sharded else [plans]
    layouts, output = {}, options.output
    for number, members in enumerate(shards, 1):
        name = f"{output.stem}-{number:05}-of-{len(shards):05}{output.suffix}"
        path = output.with_name(name) if options.output_sharded else output
        # One marker serves the whole checkpoint: it lies in the first shard.
        layouts[path] = make_layout(members, make_metadata(model, members, origin), marker)
        marker = {}
    return layouts


def split_shards(plans: list[TensorPlan], largest: int) -> list[list[TensorPlan]]:
    """Split plans, in source order, into shards of up to `largest` bytes of data.

    A layer is never split: one that is larger is a shard of its own, with all its scales.
    """
    # Headers are not counted: they are small, and known only once the shards are.
    shards, size = [[]], 0
    for plan in plans:
        size += bytes_in_output(plan)
        if size > largest and shards[-1]:
            shards.append([])
            size = bytes_in_output(plan)
        shards[-1].append(plan)
    return shards


def make_layout(
    plans: Iterable[TensorPlan], metadata: dict[str, str], marker: dict[str, torch.Tensor]
) -> Layout:
    """Make the header and the offsets of one output file.

    Tensors are ordered by item size, so that each starts at a multiple of its own; the odd-length
    comfy_quant tensors come last. Raises ConvertError where two would have one name.
    """
    stored = [(key, *value) for plan in plans for key, value in planned_tensors(plan).items()]
    # A marker is the only tensor that no plan stands for.
    stored += [(key, "F8_E4M3", tuple(tensor.shape)) for key, tensor in marker.items()]
    stored.sort(
        key=lambda row: (-SAFETENSORS_BITS[row[1]], row[0].endswith(".comfy_quant"), row[0])
    )
    # Offsets count from the end of the header, as the format asks; a Slot's count from the file's.
    entries, begin = {"__metadata__": metadata}, 0
    for key, dtype, shape in stored:
        if key in entries:
            raise ConvertError(f"two tensors of the output would be named {key}")
        end = begin + bits_of(dtype, shape) // 8
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    # Parity with the safetensors library: a header is padded with spaces to a multiple of 8 bytes.
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(round_up(len(text), 8))
    header = len(text).to_bytes(8, "little") + text
    slots = {}
    for key, dtype, shape in stored:
        begin, end = entries[key]["data_offsets"]
        at, size = len(header) + begin, end - begin
        slots[key] = Slot(name=key, dtype=dtype, shape=shape, begin=at, nbytes=size)
    return Layout(header=header, slots=slots)


def origin_of(options: Options, model: Model, plans: list[TensorPlan]) -> dict[str, object]:
    """Record how a file was made, for its header and the report.

    version: that of the converter; options: those that leave a trace; sources: size by file name;
    plan: how many tensors each format has; revisions: the commits of what was read from the Hub,
    where anything was. There are names only, no folders and no times, because
    equal runs are to give equal bytes.
    """
    revisions = revisions_of(options.inputs)
    # Tensors are counted in the order of names, whatever order they were planned in.
    return {
        "version": __version__,
        "options": options.recorded,
        "sources": {path.name: path.stat().st_size for path in model.files},
        "plan": dict(sorted(Counter(plan.precision.name for plan in plans).items())),
    } | ({"revisions": revisions} if revisions else {})


def make_metadata(
    model: Model, plans: list[TensorPlan], origin: dict[str, object]
) -> dict[str, str]:
    """Make the strings of a file's header.

    The source's own metadata stays. `_quantization_metadata` tells ComfyUI of the layers among
    these plans, and is left out where a marker does; `convert_nvfp4` holds the origin as JSON. Of
    the source's list, layers beside the diffusion model stay.
    """
    metadata = model.metadata | {"convert_nvfp4": json.dumps(origin)}
    # That of the source lists layers as they were; this file's own list is made below.
    metadata.pop("_quantization_metadata", None)
    beside = {name.rpartition(".")[0] for name in model.beside}
    beside &= {plan.ref.name.rpartition(".")[0] for plan in plans}
    listed = header_layers(model.metadata) or {}
    layers = {name: config for name, config in listed.items() if name in beside}
    layers |= {
        plan.ref.layer: plan.config for plan in plans if plan.is_quantised or plan.ref.config
    }
    # ComfyUI does not look for a marker in files that have this entry.
    if layers and not any(plan.precision.marker for plan in plans):
        quantisation = {"format_version": "1.0", "layers": layers}
        metadata["_quantization_metadata"] = json.dumps(quantisation)
    return metadata


def render_index(job: Job) -> str:
    """Write the *.index.json of shards, as the transformers and diffusers libraries write it.

    Returns its text: `total_size` is the bytes of all tensors, without headers, and `weight_map`
    says which file each one is in.
    """
    slots = {
        key: (path.name, slot.nbytes)
        for path, layout in job.layouts.items()
        for key, slot in layout.slots.items()
    }
    # Parity: `total_size` counts tensors alone, in these libraries too.
    total = sum(size for _, size in slots.values())
    weight_map = {key: name for key, (name, _) in sorted(slots.items())}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
