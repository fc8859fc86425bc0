"""Prints what ComfyUI's own classes and its detection say of a model's weights, as JSON.

usage: COMFYUI_ROOT=<checkout> python tests/support/comfy_walk.py      (make_classes.py runs it)

Every diffusion model class and every text encoder is built on the meta device, with the operations
that ComfyUI loads quantised files by, and its tensors are given to ComfyUI's detection, which is
watched. A class that is not built here, and a line of detection that reads a shape and that no
model reaches, stop it.
"""

import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvfp4.model import bare
from nvfp4.modules import starred
from support import make_encoders
from support.make_families import (
    CONFIGURATIONS,
    MODELS,
    class_of,
    configuration,
    import_comfyui,
    place_of,
    published,
)

# [(path of a class, {tensor: shape})] of files that name tensors otherwise than the class: ComfyUI
# takes them apart when it loads them.
FILES = [
    ("pixeldit.model.PixDiT_T2I", {
        "core.pixel_embedder.proj.weight": (16, 3),
        "core.pixel_blocks.0.adaLN_modulation.0.weight": (24576, 1536),
        "core.pixel_blocks.1.adaLN_modulation.0.weight": (24576, 1536),
    }),
    # The published file has a buffer that the class leaves out.
    ("pixart.pixartms.PixArtMS", {"t_block.1.weight": (6912, 1152), "pos_embed": (1, 4096, 1152)}),
    ("pixeldit.pid.PidNet", {
        "lq_proj.latent_proj.0.weight": (512, 16, 3, 3), "pixel_embedder.proj.weight": (16, 3),
        "pixel_blocks.0.adaLN_modulation.0.weight": (24576, 1536),
        "pixel_blocks.1.adaLN_modulation.0.weight": (24576, 1536),
    }),
]  # fmt: skip


class Unet(Exception):
    """Carries the class that a model of comfy.model_base would build."""


def diffusion_classes() -> dict[str, type]:
    """{path in comfy.ldm: class} of all that the models of comfy.model_base build."""
    from comfy import model_base

    usual = inspect.signature(model_base.BaseModel.__init__).parameters["unet_model"].default

    def stop(*_, **given):
        raise Unet(given.get("unet_model", usual))

    made, found, todo = model_base.BaseModel.__init__, {}, [model_base.BaseModel]
    model_base.BaseModel.__init__ = stop
    for kind in todo:
        todo += kind.__subclasses__()
        needed = [
            MagicMock()
            for name, given in inspect.signature(kind.__init__).parameters.items()
            if given.default is given.empty and name != "self" and given.kind != given.VAR_KEYWORD
        ]
        try:
            kind(*needed)
        except Unet as unet:
            (unet,) = unet.args
            found[f"{unet.__module__}.{unet.__name__}".removeprefix("comfy.ldm.")] = unet
    model_base.BaseModel.__init__ = made
    return found


class Built(NamedTuple):
    """A class as it was built: [(name, rows, columns, bias, kind)] of 2-D weights, all shapes.

    kind is "" for a linear layer that takes quantised weights, else what there is instead.
    """

    weights: list[tuple]
    shapes: dict[str, tuple]


def build_watched(path: str, arguments: dict | str) -> Built:
    """Build a class of ComfyUI with the operations that it loads quantised files by."""
    import comfy.ops
    import torch

    operations = comfy.ops.mixed_precision_ops()
    # Linear layers have no weights yet, on the CPU neither.
    place = {"dtype": torch.bfloat16, "device": place_of(path), "operations": operations}
    return watched_model(class_of(path)(**place | configuration(arguments)), operations)


def watched_model(model: object, operations: object) -> Built:
    """Tell of a model that was built with these operations what each 2-D weight belongs to."""
    import torch

    shapes = {name: tuple(t.shape) for name, t in model.named_parameters()}
    shapes |= {name: tuple(t.shape) for name, t in model.named_buffers()}
    rows = []
    for name, module in model.named_modules():
        bias = getattr(module, "bias", None) is not None
        weight = getattr(module, "weight", None)
        if isinstance(module, operations.Linear):
            rows.append((name, *module._orig_shape, bias, ""))
            shapes[f"{name}.weight"] = module._orig_shape
        elif isinstance(weight, torch.Tensor) and weight.ndim == 2:
            kinds = (
                (operations.Embedding, "an Embedding"),
                (torch.nn.Embedding, "a plain Embedding"),
                (torch.nn.Linear, "a plain Linear"),
                (object, f"its own {type(module).__name__}"),
            )
            kind = next(text for kind, text in kinds if isinstance(module, kind))
            rows.append((name, *weight.shape, bias, kind))
    return Built(rows, shapes)


class Watched:
    """A tensor that notes which of its dimensions are looked at; all else is the tensor's."""

    def __init__(self, name, tensor, reads):
        self.name, self.tensor, self.reads = name, tensor, reads

    @property
    def shape(self):
        return Shape(self)

    def size(self, dim=None):
        return self.shape if dim is None else self.shape[dim]

    def note(self, dims):
        matrix = self.tensor.ndim == 2
        self.reads[self.name].update(("rows", "columns")[dim] if matrix else "" for dim in dims)

    def __getattr__(self, name):
        # What is taken apart on loading has to be whole.
        if name in ("view", "reshape", "chunk", "split", "narrow", "transpose", "permute"):
            self.note((0, 1))
        return getattr(self.tensor, name)

    def __getitem__(self, key):
        self.note((0, 1))
        return self.tensor[key]


class Shape(tuple):
    """A shape that tells its tensor which dimensions are read."""

    def __new__(cls, watched):
        shape = super().__new__(cls, watched.tensor.shape)
        shape.watched = watched
        return shape

    def __getitem__(self, key):
        count = len(self)
        self.watched.note(range(*key.indices(count)) if isinstance(key, slice) else [key % count])
        return super().__getitem__(key)

    def __iter__(self):
        self.watched.note(range(len(self)))
        return super().__iter__()

    def __eq__(self, other):
        self.watched.note(range(len(self)))
        return super().__eq__(other)

    __hash__ = tuple.__hash__


def watched_state(shapes: dict) -> tuple[dict, dict[str, set[str]]]:
    """A state dict of such tensors, and {tensor: dimensions of it that were looked at since}."""
    import torch

    reads = defaultdict(set)
    return {
        name: Watched(name, torch.empty(shape, dtype=torch.bfloat16, device="meta"), reads)
        for name, shape in shapes.items()
    }, reads


def detect(shapes: dict, metadata: dict | None = None) -> dict[str, set[str]]:
    """{tensor: dimensions that ComfyUI reads to recognise a model by, or to load it}."""
    from comfy import model_detection

    state, reads = watched_state(shapes)
    unet = model_detection.detect_unet_config(state, "", metadata=metadata)
    model = unet and model_detection.model_config_from_unet_config(unet, state, "")
    if model:
        model.process_unet_state_dict(state)
    return reads


def unreached(run: Callable, reads: set[tuple]) -> list[str]:
    """Lines of ComfyUI's detection that read a shape, and that `run` did not come by.

    A line may read a shape in one case only, so what it names has to be in `reads`, too.
    """
    from comfy import model_detection, sd

    functions = (
        model_detection.detect_unet_config,
        model_detection.calculate_transformer_depth,
        sd.detect_te_model,
    )
    files = {function.__code__.co_filename for function in functions}
    done = set()

    def trace(frame, *_):
        if frame.f_code.co_filename not in files:
            return None
        done.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    run()
    sys.settrace(None)
    seen = {starred(name) for _, name, _ in reads}
    missed = []
    for function in functions:
        lines, first = inspect.getsourcelines(function)
        for number, line in enumerate(lines, first):
            reads = re.search(r"\.shape\[|\.size\(", line)
            names = re.findall(r"\}([a-z][\w.]+\.weight)'[^=]*\.shape\[", line)
            passed = (function.__code__.co_filename, number) in done
            if reads and not (passed and seen >= set(map(starred, names))):
                missed.append(f"{number}: {line.strip()}")
    return missed


def built_classes() -> Iterator[tuple[str, Built]]:
    """Yield (path, what was built) for every configuration of every class."""
    configurations = defaultdict(list)
    for _, path, arguments, *_ in MODELS.values():
        configurations[path].append(arguments)
    for path, several in CONFIGURATIONS.items():
        configurations[path] += several
    for path in diffusion_classes():
        for arguments in configurations[path] or [{}]:
            yield path, build_watched(path, arguments)


def built_encoders() -> Iterator[tuple[str, Built]]:
    """Yield (path, what was built, in the published file's names) of the encoders it has."""
    import comfy.ops
    from comfy.sd import TEModel

    for encoder in make_encoders.ENCODER_MODELS.values():
        # An older ComfyUI lacks some.
        if encoder.published.detected not in TEModel.__members__:
            continue
        operations = comfy.ops.mixed_precision_ops()
        built = watched_model(make_encoders.build_encoder(encoder, operations), operations)
        weights = [
            (bare(make_encoders.published_name(encoder, name)), *rest)
            for name, *rest in built.weights
        ]
        yield encoder.published.path, Built(weights, make_encoders.encoder_shapes(encoder))


def detect_encoder(shapes: dict) -> dict[str, set[str]]:
    """{tensor: dimensions that ComfyUI reads to recognise a text encoder by}."""
    from comfy.sd import detect_te_model

    state, reads = watched_state(shapes)
    detect_te_model(state)
    return reads


def as_files(built: list[tuple[str, Built]]) -> list[tuple[str, dict]]:
    """[(path, {tensor: shape})] of the files of these classes, FILES among them."""
    states = [(path, published(found.shapes, path)) for path, found in built]
    return states + [row for row in FILES if row[0] in {path for path, _ in states}]


def built_states() -> list[tuple[str, dict]]:
    """[(path, {tensor: shape})] of all that is built, for those who want no more."""
    return as_files([*built_classes()])


def recognised(shapes: dict) -> list:
    """[the class of comfy.supported_models, its configuration] that ComfyUI finds, or Nones."""
    import torch
    from comfy.model_detection import model_config_from_unet

    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        model = model_config_from_unet(state, "")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        return [repr(error), None]
    return [type(model).__name__, repr(model.unet_config)] if model else [None, None]


def walk() -> dict[str, list]:
    """{"weights": [(path, name, rows, columns, bias, kind)], "reads": [(path, name, dim)]}.

    path: of the class, in comfy.ldm or in comfy.
    """
    import_comfyui()
    built, encoders = [*built_classes()], [*built_encoders()]
    weights = {(path, *row) for path, found in built + encoders for row in found.weights}
    states, reads = as_files(built), set()

    def recognise() -> None:
        for path, shapes in states:
            for name, dims in detect(shapes).items():
                reads.update((path, name, dim) for dim in dims)
        for path, found in encoders:
            for name, dims in detect_encoder(found.shapes).items():
                reads.update((path, bare(name), dim) for dim in dims)

    missed = unreached(recognise, reads)
    assert not missed, "\n".join(["no model reaches these lines of its detection:", *missed])
    return {"weights": sorted(weights), "reads": sorted(row for row in reads if row[2])}


if __name__ == "__main__":
    print("RESULT", json.dumps(walk()))
