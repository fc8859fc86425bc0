"""Make the question about a file, which is not there yet or is: names, dtypes, shapes, metadata.

ComfyUI reads the values of few tensors when it recognises and loads a model, all of them small:
configurations, markers, scales of inputs, a norm by which versions of a model differ. The values of
small tensors go along; no others are read.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator

import torch

from nvfp4.layout import Job
from nvfp4.model import Model
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.plan.records import TensorPlan
from nvfp4.read.tensors import load_bytes, load_weight

# Bytes of a tensor whose values go along: Stable Diffusion 2 is told by a bias of 320 numbers.
SMALL = 4096


def entry(dtype: str, shape: tuple[int, ...], values: bytes | None = None) -> list:
    """Make a tensor's entry: dtype, shape, and its bytes as base64, or None without values."""
    return [dtype, [*shape], None if values is None else base64.b64encode(values).decode()]


def stored_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's values as a file holds them."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def question_of_model(model: Model, *, is_source: bool = False) -> dict[str, object]:
    """Ask about a file that is there, or about a source as a conversion sees it.

    Of a source, weights that are decoded count as 16-bit, and layers that go over packed have their
    configuration; its header's list of layers would contradict that.
    """
    tensors, metadata = {}, dict(model.metadata)
    if is_source:
        metadata.pop("_quantization_metadata", None)
    with contextlib.ExitStack() as stack:
        files = {
            path: stack.enter_context(path.open("rb", buffering=0))
            for path in {ref.path for ref in model.tensors.values() if ref.nbytes <= SMALL}
        }
        for ref in model.tensors.values():
            small = ref.nbytes <= SMALL and ref.coding is None
            values = stored_bytes(load_bytes(ref, files[ref.path])) if small else None
            dtype = ref.dtype if ref.coding is None else "BF16"
            tensors[ref.name] = entry(dtype, ref.shape, values)
            if ref.config:
                config = ref.config.encode()
                tensors[f"{ref.layer}.comfy_quant"] = entry("U8", (len(config),), config)
    return {"metadata": metadata, "tensors": tensors}


def question_of_job(job: Job) -> dict[str, object]:
    """Ask about the output of a job, all its shards together, before anything is written."""
    values = {name: value for plan in job.plans for name, value in planned_values(plan)}
    tensors, metadata = {}, {}
    for layout in job.layouts.values():
        metadata |= json.loads(layout.header[8:])["__metadata__"]
        for slot in layout.slots.values():
            tensors[slot.name] = entry(slot.dtype, slot.shape, values.get(slot.name))
    return {"metadata": metadata, "tensors": tensors}


def planned_values(plan: TensorPlan) -> Iterator[tuple[str, bytes]]:
    """Find what is known already of the values of a planned tensor: (name in the output, bytes)."""
    layer, ref = plan.ref.layer, plan.ref
    if plan.config:
        yield f"{layer}.comfy_quant", plan.config_bytes
    if plan.input_scale is not None:
        suffix = plan.precision.name_in_file("input_scale")
        yield f"{layer}.{suffix}", stored_bytes(torch.tensor(plan.input_scale))
    if not plan.is_quantised and ref.nbytes <= SMALL:
        value = load_weight(ref)
        value = value.to(TORCH_DTYPES[plan.dtype]) if ref.is_float else value
        yield ref.name, stored_bytes(value)
