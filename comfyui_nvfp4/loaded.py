"""Show what ComfyUI has loaded, a MODEL, as files that the converter reads: weights and patches.

A MODEL is a ModelPatcher: a model's weights, and patches of them, such as LoRAs. Two files are made
of it, in memory alone. The first one has the weights as they were loaded, by the names that
ComfyUI's loader takes. The second one has what the patches make of some of them, in float32 and in
the form of a LoRA that sets weights; it is computed tensor by tensor when the converter reads it,
by ComfyUI's own arithmetic. So each value is rounded once, by the converter, and a layer that is
not quantised keeps its dtype. Nothing of the MODEL is changed, moved or loaded once more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import WeightAdapterBase

from .converter import converter
from .made import status

# What ComfyUI has before the names of the diffusion model's weights, and files need not have.
PREFIX = "diffusion_model."
# torch.compile puts this into the names of what it wraps.
COMPILED = "_orig_mod."
# Classes of tensors that are what they show; QuantizedTensor is the one other that is known.
PLAIN = (torch.Tensor, torch.nn.Parameter)
# Dtypes that weights are cast between when they are loaded.
CAST = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
# Parts beside a quantised weight that go where the weight is decoded: its configuration, and the
# scale of an input that is not quantised in that format any more.
WITH_CODES = ("comfy_quant", "input_scale")
# The entry of a header that tells which patches were merged.
DIGEST = "comfyui_patches"
# How many values of a tensor such digests are made of, and in how many places they are: weights may
# still be on the disk, where each place is a read.
SAMPLED, PLACES = 256, 8


class Origin(NamedTuple):
    """Tell of the file that a MODEL was loaded from; all is empty where it is not known.

    dtypes: {name of a tensor, without prefixes: its safetensors dtype}; metadata: of its header.
    """

    path: Path | None
    dtypes: dict[str, str]
    metadata: dict[str, str]


class Loaded(NamedTuple):
    """Hold a MODEL as the tensors of two files.

    path: the file that it was loaded from; where that is not known, its class makes a name.
    weights: {name in the file: MemoryTensor}, as they were loaded.
    merged: {LAYER.set_weight: MemoryTensor} of what patches change, float32.
    metadata: for the header, as the file had it: some models are configured there.
    notes: what loading has lost, and what no file holds, a line each.
    lost: what says that 16-bit weights were loaded as FP8, or "".
    unmerged: what ComfyUI said of patches that it could not merge; complete once all is read.
    identity: what tells it from any other MODEL.
    """

    path: Path
    weights: dict[str, Any]
    merged: dict[str, Any]
    metadata: dict[str, str]
    notes: list[str]
    lost: str
    unmerged: dict[str, None]
    identity: str


class Weights:
    """Find a MODEL's weights, as they were loaded or with its patches, when they are asked for.

    No tensor is held here: ComfyUI may move or free them meanwhile.
    """

    def __init__(self, patcher: Any):
        self.patcher = patcher
        # The lines that ComfyUI logged while patches were merged, each once.
        self.unmerged: dict[str, None] = {}

    def find(self, key: str) -> torch.Tensor | None:
        """Find a weight as it was loaded: a model in use may hold the patched one in its place.

        key: as ComfyUI has it, prefix included. None for what is no attribute of a module but made
        for a state dict, as configurations and scales of quantised weights are.
        """
        if key in self.patcher.backup:
            return self.patcher.backup[key].weight
        if key in self.patcher.hook_backup:
            return self.patcher.hook_backup[key][0]
        if key in self.patcher.backup_buffers:
            return self.patcher.backup_buffers[key]
        with contextlib.suppress(AttributeError):
            found = comfy.utils.get_attr(self.patcher.model, key)
            return found if isinstance(found, torch.Tensor) else None
        return None

    def stored(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """Find a weight, where it lies, in the dtype that it had when it was described."""
        return self.find(key).detach().to(dtype)

    def part(self, key: str, suffix: str) -> torch.Tensor:
        """Find a part of a quantised weight by what its name has behind the weight's."""
        return self.find(key).state_dict("")[suffix]

    def cast(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Copy a weight to the CPU, decoded and cast; rows and columns it lacks are zeros."""
        weight = self.find(key)
        if isinstance(weight, QuantizedTensor):
            # ComfyUI decodes to the 16 bits that it computes in: one rounding more.
            params = dataclasses.replace(weight.params, orig_dtype=torch.float32)
            weight = QuantizedTensor(weight._qdata, weight._layout_cls, params).dequantize()
        elif weight.is_meta:
            # A weight on no device was not in the file, and ComfyUI makes it zeros.
            weight = torch.zeros(weight.shape)
        weight = weight.detach().to("cpu", dtype, copy=True)
        return weight if weight.shape == shape else comfy.lora.pad_tensor_to_shape(weight, shape)

    def merged(self, key: str) -> torch.Tensor:
        """Merge a weight's patches into a copy, in float32, by ComfyUI's own arithmetic."""
        weight = self.cast(key, torch.float32, self.find(key).shape)
        with torch.no_grad(), heard(self.unmerged):
            return comfy.lora.calculate_weight(self.patcher.patches[key], weight, key)


@contextlib.contextmanager
def heard(lines: dict[str, None]) -> Iterator[None]:
    """Note what this thread logs as a warning or an error in the `with` block."""
    handler, here = logging.Handler(logging.WARNING), threading.get_ident()

    def emit(record: logging.LogRecord) -> None:
        if record.thread == here:
            lines[record.getMessage()] = None

    handler.emit = emit
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def show_model(patcher: Any) -> Loaded:
    """Make the tensors of a MODEL's two files.

    Raises the converter's ConvertError for what no file can hold: weights of classes that are not
    known, adapters that run beside the layers.
    """
    refuse_unmergeable(patcher)
    weights, origin = Weights(patcher), origin_of_model(patcher)
    # As ComfyUI's own nodes that save a model: what others inject is taken out meanwhile.
    with patcher.use_ejected():
        state = diffusion_model(patcher).state_dict()
    state = {name.replace(COMPILED, ""): value for name, value in state.items()}
    shown = {}
    for name, value in state.items():
        if name not in shown:
            shown |= show_weight(weights, name, value, origin.dtypes.get(name))
    merged = merge_patches(weights, shown)
    shown |= {n: converter().MemoryTensor.of(t) for n, t in beside_model(patcher).items()}
    lost, rounded = losses(weights, origin.dtypes)
    return Loaded(
        path=origin.path or Path(f"{type(patcher.model).__name__}.safetensors"),
        weights=shown,
        merged=merged,
        metadata=origin.metadata | configurations(shown) | patches_digest(patcher),
        notes=[*rounded, *unshown(patcher)],
        lost=lost,
        unmerged=weights.unmerged,
        identity=identity_of(weights, state, origin.path),
    )


def identity_of(weights: Weights, state: dict[str, Any], path: Path | None) -> str:
    """Tell a MODEL from others, by its file, SAMPLED values of each weight, and its patches.

    The file alone would not do: it may have been replaced since it was loaded. state: the tensors
    of the diffusion model, by name.
    """
    file = [str(path.resolve()), *status(path)] if path else []
    told = hashlib.sha256(f"{file} {patches_digest(weights.patcher)}".encode())
    for name in sorted(state):
        weight = weights.find(PREFIX + name)
        told.update(f"{name} {facts_of(state[name] if weight is None else weight)}".encode())
    return told.hexdigest()


def merge_patches(weights: Weights, shown: dict[str, Any]) -> dict[str, Any]:
    """Describe what patches make of weights: {LAYER.set_weight: MemoryTensor}, float32.

    shown: the tensors as they were loaded. What quantised weights that are shown decoded have
    beside them is taken out of it: their numbers would pass for codes.
    """
    merged, patched = {}, weights.patcher.patches
    for name in [name for name in shown if PREFIX + name in patched]:
        values = partial(weights.merged, PREFIX + name)
        key = f"{name.removesuffix('.weight')}.set_weight"
        merged[key] = converter().MemoryTensor("F32", shown[name].shape, values)
        if isinstance(weights.find(PREFIX + name), QuantizedTensor):
            for part in beside_codes(name, weights):
                shown.pop(part, None)
    return merged


def configurations(shown: dict[str, Any]) -> dict[str, str]:
    """Make the header's entry that lists quantised layers, of the tensors that configure each."""
    end = ".comfy_quant"
    layers = {
        name.removesuffix(end): json.loads(bytes(tensor.values().tolist()))
        for name, tensor in shown.items()
        if name.endswith(end)
    }
    text = json.dumps({"format_version": "1.0", "layers": layers})
    return {"_quantization_metadata": text} if layers else {}


def patches_digest(patcher: Any) -> dict[str, str]:
    """Tell patches from others by a digest of them, for the header; {} where there are none."""
    if not patcher.patches:
        return {}
    told = hashlib.sha256()
    for key in sorted(patcher.patches):
        told.update(f"{key} {facts_of(patcher.patches[key])}".encode())
    return {DIGEST: told.hexdigest()[:16]}


def facts_of(value: Any) -> Any:
    """Tell what makes up a patch, as Python writes it: of large tensors, SAMPLED values."""
    if isinstance(value, QuantizedTensor):
        value = value.state_dict("")
    if isinstance(value, torch.Tensor):
        return str(value.dtype), [*value.shape], [] if value.is_meta else sampled(value)
    if isinstance(value, list | tuple):
        return [*map(facts_of, value)]
    if isinstance(value, dict):
        return {key: facts_of(value[key]) for key in sorted(value)}
    if isinstance(value, WeightAdapterBase):
        return type(value).__name__, facts_of(value.weights)
    # A function has an address, which says nothing.
    known = value is None or isinstance(value, str | int | float)
    return value if known else getattr(value, "__qualname__", type(value).__name__)


def sampled(tensor: torch.Tensor) -> list:
    """List SAMPLED values of a tensor from PLACES, evenly spread; all of a small one."""
    flat = tensor.detach().reshape(-1)
    if len(flat) > SAMPLED:
        whole = len(flat) // PLACES * PLACES
        flat = flat[:whole].reshape(PLACES, -1)[:, : SAMPLED // PLACES]
    return flat.float().tolist()


def diffusion_model(patcher: Any) -> torch.nn.Module:
    """Find the diffusion model itself, also where torch.compile's takes its place for now."""
    return patcher.object_patches_backup.get("diffusion_model", patcher.model.diffusion_model)


def show_weight(
    weights: Weights, name: str, value: torch.Tensor, in_file: str | None
) -> dict[str, Any]:
    """Describe one tensor of a state dict, or all parts of a quantised weight as they are stored.

    value: what the state dict has; in_file: the dtype in the file that it was loaded from. Returns
    {name: MemoryTensor}, empty for a weight that the file did not have. A quantised weight that is
    patched is described decoded. Raises ConvertError for a class of tensors that is not known.
    """
    module, key = converter(), PREFIX + name
    weight, patched = weights.find(key), weights.patcher.patches.get(key)
    refuse_foreign(name, value if weight is None else weight)
    if weight is None:
        return {name: module.MemoryTensor.of(value)}
    if weight.is_meta and not patched:
        return {}
    if isinstance(weight, QuantizedTensor) and not patched:
        return {
            name + suffix: module.MemoryTensor(
                module.dtype_name(part.dtype), tuple(part.shape), partial(weights.part, key, suffix)
            )
            for suffix, part in weight.state_dict("").items()
        }
    dtype, shape = dtype_shown(weight, in_file), weight.shape
    if patched:
        shape = comfy.lora.calculate_shape(patched, weight, key)
    elif dtype == weight.dtype:
        values = partial(weights.stored, key, dtype)
        return {name: module.MemoryTensor(module.dtype_name(dtype), tuple(shape), values)}
    values = partial(weights.cast, key, dtype, shape)
    return {name: module.MemoryTensor(module.dtype_name(dtype), tuple(shape), values)}


def dtype_shown(weight: torch.Tensor, in_file: str | None) -> torch.dtype:
    """Choose the dtype that a weight is shown in: that of its file, where it holds all values.

    ComfyUI loads bfloat16 as float32 on a CPU and as float16 on most cards, and FP8 as 16 bits
    where the card has none; shown so, layers that are kept would grow or change, and FP8 that was
    cast would pass for 16 bits.
    """
    dtype = converter().TORCH_DTYPES[in_file] if in_file in CAST else weight.dtype
    if dtype == weight.dtype or weight.is_meta or isinstance(weight, QuantizedTensor):
        return weight.dtype
    given = weight.detach()
    fits = dtype.itemsize <= given.dtype.itemsize and torch.equal(
        given.to(dtype).to(given.dtype), given
    )
    return dtype if fits else weight.dtype


def beside_codes(name: str, weights: Weights) -> set[str]:
    """Name the parts of a quantised weight that is shown decoded: they are left out.

    Raises ConvertError where the input is smoothed for the codes: decoded numbers would be wrong.
    """
    layer = name.removesuffix("weight")
    if weights.find(f"{PREFIX}{layer}pre_quant_scale") is not None:
        raise converter().ConvertError(
            f"{name}: is quantised with smoothing (pre_quant_scale), so that patches cannot be "
            "merged; load the 16-bit model"
        )
    parts = weights.find(PREFIX + name).state_dict(name)
    return (parts.keys() | {layer + part for part in WITH_CODES}) - {name}


def beside_model(patcher: Any) -> dict[str, torch.Tensor]:
    """Collect what ComfyUI saves with a diffusion model: a mark of its prediction, conditioners."""
    return dict(patcher.model.state_dict_for_saving({}))


def refuse_foreign(name: str, weight: torch.Tensor) -> None:
    """Raise ConvertError for a tensor of a class that is not known, as nodes of others have."""
    if type(weight) in PLAIN or isinstance(weight, QuantizedTensor):
        return
    kind = type(weight)
    raise converter().ConvertError(
        f"the MODEL's weights are {kind.__name__} ({kind.__module__.rpartition('.')[2]}; {name}), "
        "which is not read here; load the .safetensors model by ComfyUI's own loader"
    )


def refuse_unmergeable(patcher: Any) -> None:
    """Raise ConvertError for changes that are not of weights, so that no file can hold them."""
    if patcher.injections:
        raise converter().ConvertError(
            f"the MODEL has {', '.join(sorted(patcher.injections))} beside its layers, which no "
            "file holds; load LoRAs by a node that patches the weights (LoraLoaderModelOnly)"
        )
    if patcher.weight_wrapper_patches:
        raise converter().ConvertError(
            "the MODEL is being trained: save the LoRA, and load it by a LoRA loader"
        )


def origin_of_model(patcher: Any) -> Origin:
    """Find the file that a MODEL was loaded from, as ComfyUI's own loaders note it."""
    module, unknown = converter(), Origin(None, {}, {})
    _, arguments, *_ = patcher.cached_patcher_init or (None, (None,))
    if not arguments or not isinstance(arguments[0], str):
        return unknown
    path = Path(arguments[0])
    try:
        refs, metadata = module.read_header(path)
    except module.ConvertError:
        # A pickle, say: what is loaded counts, and the file has a name.
        return unknown._replace(path=path)
    # Quantised layers are configured by tensors beside them.
    metadata = {key: text for key, text in metadata.items() if key != "_quantization_metadata"}
    return Origin(path, {module.bare(name): r.dtype for name, r in refs.items()}, metadata)


def losses(weights: Weights, dtypes: dict[str, str]) -> tuple[str, list[str]]:
    """Tell what loading has lost: what says that weights became FP8, or "", and lines of the rest.

    dtypes: {name: dtype in the file}.
    """
    casts = {}
    for name, before in dtypes.items():
        weight = weights.find(PREFIX + name)
        if weight is not None and weight.ndim > 1 and not isinstance(weight, QuantizedTensor):
            after = converter().dtype_name(weight.dtype)
            casts |= {(before, after): name} if is_loss(before, after) else {}
    lost, lines = "", []
    for (before, after), name in casts.items():
        line = f"weights of {before} were loaded as {after} ({name})"
        if after.startswith("F8_"):
            lost = f"{line}; set weight_dtype of the loader to default to convert all there is"
        elif (before, after) == ("BF16", "F16"):
            lines.append(f"{line}, in which numbers below 0.00006 lose bits")
        else:
            lines.append(f"{line}: one rounding more")
    return lost, lines


def is_loss(before: str, after: str) -> bool:
    """Tell whether a cast from one safetensors dtype to another one loses something."""
    bits = converter().SAFETENSORS_BITS
    return {before, after} <= {*CAST} and before != after and bits[before] >= bits[after]


def unshown(patcher: Any) -> Iterator[str]:
    """Yield lines of what a MODEL has beside its weights: it is set in the workflow, not a file."""
    if patcher.object_patches:
        names = ", ".join(sorted(patcher.object_patches)[:3])
        yield f"not of a file, and to be set behind its loader again: {names}"
    if patcher.hook_patches:
        yield "LoRAs of hooks, which are scheduled, are not merged"
