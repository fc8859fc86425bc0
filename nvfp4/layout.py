"""The output to the byte: tensors, header, shards."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One tensor of the output: `begin` is its absolute offset in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The whole output file, known before it is written."""

    header: bytes
    slots: dict[str, Slot]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(slot.nbytes for slot in self.slots.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A conversion planned to the byte: one output file, or shards and their index."""

    options: Options
    model: Model
    plans: list[TensorPlan]
    origin: dict[str, object]  # how the file is made, as its header tells
    layouts: dict[Path, Layout]

    @property
    def nbytes(self) -> int:
        return sum(layout.nbytes for layout in self.layouts.values())

    @property
    def index(self) -> Path | None:
        return self.options.written if self.options.output_sharded else None

    @property
    def files(self) -> list[Path]:
        """In the order in which they get their names."""
        return [*self.layouts, *filter(None, [self.index])]

    @property
    def fingerprint(self) -> dict[str, object]:
        """What the output's bytes depend on, so that another conversion is told from this one."""
        plan = hashlib.sha256()
        for path, layout in self.layouts.items():
            plan.update(os.fsencode(path.name) + layout.header)
        plan.update(str([plan.input_scale for plan in self.plans]).encode())
        paths = [path for path in (*self.options.inputs, *self.model.files) if not path.is_dir()]
        stamps = {path: self.model.stamps.get(path) or stamp(path) for path in paths}
        # By folder, too: high and low noise may have the same names, sizes and times. Of a folder
        # itself, not the time: it changes with each file in it, such as the output.
        files = [[str(path.resolve()), *stamp] for path, stamp in stamps.items()]
        return {"plan": plan.hexdigest(), "files": sorted(files)}

    def refuse_changed(self) -> None:
        """Files that are no longer those whose headers were read: old and new weights would mix."""
        stamps = self.model.stamps
        if changed := [str(path) for path, before in stamps.items() if stamp(path) != before]:
            raise ConvertError(f"{examples(changed)}: {CHANGED_UNDER_WAY}")


def stored_tensors(plan: TensorPlan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{key: (dtype, shape)} of what a planned tensor becomes."""
    if not plan.is_quantised:
        stored = {plan.ref.name: (plan.dtype, plan.ref.shape)}
        config = {f"{plan.ref.layer}.comfy_quant": ("U8", (len(plan.ref.config),))}
        return stored | (config if plan.ref.config else {})
    form = plan.precision
    parts = form.parts(plan.ref.shape)
    if plan.input_scale is not None:
        parts["input_scale"] = ("F32", form.scalar_shape)
    if plan.smoothing is not None:
        parts["pre_quant_scale"] = ("BF16", tuple(plan.smoothing.shape))
    if form.is_configured:
        parts["comfy_quant"] = ("U8", (len(plan.config_bytes),))
    return {f"{plan.ref.layer}.{form.stored_name(suffix)}": part for suffix, part in parts.items()}


def marker_of(plans: Iterable[TensorPlan]) -> dict[str, torch.Tensor]:
    """The tensor by which ComfyUI knows the quantised layers of a file that configures none."""
    plan = next((plan for plan in plans if plan.precision.marker), None)
    if plan is None:
        return {}
    prefix = plan.ref.layer.removesuffix(bare(plan.ref.layer))
    marker = marker_tensor(full_precision=bool(plan.full_precision))
    return {prefix + plan.precision.marker: marker}


def stored_bytes(plan: TensorPlan) -> int:
    return sum(bits_of(*stored) // 8 for stored in stored_tensors(plan).values())


def make_job(options: Options, model: Model, plans: list[TensorPlan]) -> Job:
    """Lay the output's files out to the byte, as planned."""
    origin = origin_of(options, model, plans)
    layouts = make_layouts(options, model, plans, origin)
    return Job(options=options, model=model, plans=plans, origin=origin, layouts=layouts)


def planned_bytes(options: Options, model: Model, plans: list[TensorPlan]) -> int:
    """Tell the output's size, headers included, without a job to write it."""
    layouts = make_layouts(options, model, plans, origin_of(options, model, plans))
    return sum(layout.nbytes for layout in layouts.values())


def make_layouts(
    options: Options, model: Model, plans: list[TensorPlan], origin: dict[str, object]
) -> dict[Path, Layout]:
    """Lay out the one file, or the shards with --output-sharded: {path: Layout}."""
    marker = marker_of(plans)
    shards = split_shards(plans, options.max_shard_size) if options.output_sharded else [plans]
    layouts, output = {}, options.output
    for number, members in enumerate(shards, 1):
        name = f"{output.stem}-{number:05}-of-{len(shards):05}{output.suffix}"
        path = output.with_name(name) if options.output_sharded else output
        layouts[path] = make_layout(members, make_metadata(model, members, origin), marker)
        marker = {}
    return layouts


def split_shards(plans: list[TensorPlan], largest: int) -> list[list[TensorPlan]]:
    """Plans in source order, by shards of up to `largest` bytes, or of one larger layer."""
    shards, size = [[]], 0
    for plan in plans:
        size += stored_bytes(plan)
        if size > largest and shards[-1]:
            shards.append([])
            size = stored_bytes(plan)
        shards[-1].append(plan)
    return shards


def make_layout(
    plans: Iterable[TensorPlan], metadata: dict[str, str], marker: dict[str, torch.Tensor]
) -> Layout:
    """Header and offsets of an output file.

    Ordered by item size, so that every tensor starts at a multiple of its own; the odd-length
    comfy_quant tensors come last.
    """
    stored = [(key, *value) for plan in plans for key, value in stored_tensors(plan).items()]
    stored += [(key, "F8_E4M3", tuple(tensor.shape)) for key, tensor in marker.items()]
    stored.sort(
        key=lambda row: (-SAFETENSORS_BITS[row[1]], row[0].endswith(".comfy_quant"), row[0])
    )
    entries, begin = {"__metadata__": metadata}, 0
    for key, dtype, shape in stored:
        if key in entries:
            raise ConvertError(f"two tensors of the output would be named {key}")
        end = begin + bits_of(dtype, shape) // 8
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
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
    """How a file was made. Names only, no folders and no times: equal runs give equal bytes."""
    return {
        "version": __version__,
        "options": options.recorded,
        "sources": {path.name: path.stat().st_size for path in model.files},
        "plan": dict(sorted(Counter(plan.precision.name for plan in plans).items())),
    }


def make_metadata(
    model: Model, plans: list[TensorPlan], origin: dict[str, object]
) -> dict[str, str]:
    """Header strings: the quantised layers as ComfyUI reads them, and how the file was made."""
    metadata = model.metadata | {"convert_nvfp4": json.dumps(origin)}
    metadata.pop("_quantization_metadata", None)
    layers = {plan.ref.layer: plan.config for plan in plans if plan.is_quantised or plan.ref.config}
    if layers and not any(plan.precision.marker for plan in plans):  # with it, a marker is not read
        quantisation = {"format_version": "1.0", "layers": layers}
        metadata["_quantization_metadata"] = json.dumps(quantisation)
    return metadata


def render_index(job: Job) -> str:
    """The *.index.json of shards, as the transformers and diffusers libraries write it."""
    slots = {
        key: (path.name, slot.nbytes)
        for path, layout in job.layouts.items()
        for key, slot in layout.slots.items()
    }
    total = sum(size for _, size in slots.values())
    weight_map = {key: name for key, (name, _) in sorted(slots.items())}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
