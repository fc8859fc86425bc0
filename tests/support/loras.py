"""LoRAs of every kind, made in a test, and their merge into a model."""

import numpy as np
import torch
from safetensors.torch import save_file

from nvfp4.model import Lora
from nvfp4.read.checkpoint import open_model
from nvfp4.read.tensors import load_weight
from nvfp4.source.loras import merge_loras

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def opened(tmp_path, state, name="model"):
    state = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(state, tmp_path / f"{name}.safetensors")
    return open_model(tmp_path / f"{name}.safetensors")


def ours(tmp_path, state, *loras):
    """{tensor: merged weight} of the tensors that the LoRAs change."""
    files = []
    for number, (lora, strength) in enumerate(loras):
        (path,) = opened(tmp_path, lora, f"lora{number}").files
        files.append(Lora(path, strength))
    model, notes = merge_loras(files, opened(tmp_path, state), partial=False)
    assert len(notes) == len(loras)
    return {ref.name: load_weight(ref) for ref in model.tensors.values() if ref.patches}


LORA_NAMES = (
    ".lora_{up,down}.weight",
    "_lora.{up,down}.weight",
    ".lora_{B,A}.weight",
    ".lora.{up,down}.weight",
    ".lora_{B,A}",
    ".lora_linear_layer.{up,down}.weight",
    ".lora_{B,A}.default.weight",
)


def lora(layer, shape, rank=4, names=LORA_NAMES[0], **more):
    before, middle = names.split("{")
    middle, after = middle.split("}")
    up, down = (f"{layer}{before}{side}{after}" for side in middle.split(","))
    columns = shape[1:] if len(shape) > 1 else (1,)
    found = {up: rand(shape[0], rank, *[1] * (len(columns) - 1)), down: rand(rank, *columns)}
    return found | {f"{layer}.{key}": value for key, value in more.items()}


def loha(layer, shape, rank=3, **more):
    columns = int(np.prod(shape[1:]))
    parts = {f"w{n}_a": rand(shape[0], rank) for n in (1, 2)}
    parts |= {f"w{n}_b": rand(rank, columns) for n in (1, 2)}
    found = {f"{layer}.hada_{key}": value for key, value in parts.items()}
    return found | {f"{layer}.{key}": value for key, value in more.items()}


def tucker_loha(layer, shape, rank=3, **more):
    found = {}
    for n in (1, 2):
        found[f"{layer}.hada_t{n}"] = rand(rank, rank, *shape[2:])
        found[f"{layer}.hada_w{n}_a"] = rand(rank, shape[0])
        found[f"{layer}.hada_w{n}_b"] = rand(rank, shape[1])
    return found | {f"{layer}.{key}": value for key, value in more.items()}


def lokr(layer, shape, split=(False, True), **more):
    sizes = ((4, 2), (shape[0] // 4, shape[1] // 2))
    found = {}
    for n, size in enumerate(sizes, 1):
        kernel = shape[2:] if n == 2 else ()
        if split[n - 1]:
            found[f"{layer}.lokr_w{n}_a"] = rand(size[0], n + 1)
            found[f"{layer}.lokr_w{n}_b"] = rand(n + 1, int(np.prod((size[1], *kernel))))
        else:
            found[f"{layer}.lokr_w{n}"] = rand(*size, *kernel)
    return found | {f"{layer}.{key}": value for key, value in more.items()}


ALPHA = {"alpha": torch.tensor(2.5)}


LINEAR = {"model.diffusion_model.x.weight": rand(32, 16), "model.diffusion_model.x.bias": rand(32)}
