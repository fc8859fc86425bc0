"""Weights as other programs quantise them, and what they decode to, computed one by one."""

import itertools
import json

import torch
from safetensors.torch import load_file

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FNUZ = {E4M3: torch.float8_e4m3fnuz, E5M2: torch.float8_e5m2fnuz}


def blocks_of(weight, height, width):
    """The blocks of a weight, row by row, as slices; the last ones may be smaller."""
    rows, columns = weight.shape
    tops, lefts = range(0, rows, height), range(0, columns, width)
    for (i, top), (j, left) in itertools.product(enumerate(tops), enumerate(lefts)):
        yield (i, j), (slice(top, top + height), slice(left, left + width))


def quantise_blocks(weight, height, width, dtype=E4M3, scale_dtype=torch.float32):
    """Codes [N, K], scales [blocks of N, blocks of K], and float32 code times scale."""
    grid = (-(-weight.shape[0] // height), -(-weight.shape[1] // width))
    codes, scales = torch.empty(weight.shape, dtype=dtype), torch.empty(grid, dtype=scale_dtype)
    decoded = torch.empty(weight.shape)
    largest = torch.finfo(dtype).max if dtype.is_floating_point else 127.0
    for index, where in blocks_of(weight, height, width):
        scale = (weight[where].abs().amax().float() / largest).to(scale_dtype)
        # The cast of a scale may have rounded it down.
        values = (weight[where].float() / scale.float()).clamp(-largest, largest)
        codes[where] = (values if dtype.is_floating_point else values.round()).to(dtype)
        scales[index] = scale
        decoded[where] = codes[where].float() * scale.float()
    return codes, scales, decoded


def whole(shape=(), **keywords):
    """One scale of this shape for the whole weight."""

    def make(weight):
        flat = weight.flatten(1) if weight.ndim > 1 else weight[:, None]
        codes, scales, decoded = quantise_blocks(flat, *flat.shape, **keywords)
        scale = scales.reshape(shape)
        return codes.view(weight.shape), scale, decoded.view(weight.shape)

    return make


def by_rows(shape=(-1, 1), **keywords):
    """A scale for every row, in this shape."""

    def make(weight):
        flat = weight.flatten(1)
        codes, scales, decoded = quantise_blocks(flat, 1, flat.shape[1], **keywords)
        return codes.view(weight.shape), scales.view(shape), decoded.view(weight.shape)

    return make


def by_blocks(height, width, *more, **keywords):
    """A scale for every block of `height` x `width`; 0 stands for all rows."""

    def make(weight):
        codes, scales, decoded = quantise_blocks(weight, height or len(weight), width, **keywords)
        return codes, scales.view(*scales.shape, *more), decoded

    return make


# {what a program stores: (how, name of the scale)}
FORMS = {
    "scalar": (whole(), "weight_scale"),
    "scalar [1]": (whole((1,)), "scale_weight"),
    "scalar [1, 1]": (whole((1, 1)), "weight_scale"),
    "scalar BF16": (whole(scale_dtype=torch.bfloat16), "weight_scale"),
    "scalar F16": (whole(scale_dtype=torch.float16), "scale_weight"),
    "scalar F64": (whole(scale_dtype=torch.float64), "weight_scale"),
    "scalar inverse": (whole(), "weight_scale_inv"),
    "rows": (by_rows(), "weight_scale"),
    "rows [N]": (by_rows((-1,)), "weight_scale"),
    "rows BF16": (by_rows(scale_dtype=torch.bfloat16), "scale_weight"),
    "rows [N, 1, 1]": (by_rows((-1, 1, 1)), "weight_scale_inv"),
    "rows F64": (by_rows(scale_dtype=torch.float64), "weight_scale"),
    "columns": (by_blocks(0, 1), "weight_scale"),
    "128 x 128": (by_blocks(128, 128), "weight_scale_inv"),
    "128 x 128 BF16": (by_blocks(128, 128, scale_dtype=torch.bfloat16), "weight_scale"),
    "64 x 64": (by_blocks(64, 64), "weight_scale"),
    "1 x 128": (by_blocks(1, 128), "weight_scale_inv"),
    "32 x 64": (by_blocks(32, 64), "scale_weight"),
    "kohya": (by_blocks(1, 64, 1), "scale_weight"),
    "E5M2 scalar": (whole(dtype=E5M2), "weight_scale"),
    "E5M2 rows": (by_rows(dtype=E5M2), "scale_weight"),
    "E5M2 128 x 128": (by_blocks(128, 128, dtype=E5M2), "weight_scale_inv"),
    "FNUZ scalar": (whole(dtype=FNUZ[E4M3]), "weight_scale"),
    "FNUZ rows": (by_rows(dtype=FNUZ[E4M3]), "weight_scale"),
    "FNUZ 128 x 128": (by_blocks(128, 128, dtype=FNUZ[E5M2]), "weight_scale_inv"),
}


def stored_as(form, weights):
    """A model's tensors in one of FORMS, and {layer: what it decodes to}."""
    make, name = FORMS[form]
    tensors, decoded = {}, {}
    for layer, weight in weights.items():
        codes, scale, decoded[layer] = make(weight)
        tensors |= {f"{layer}.weight": codes, f"{layer}.{name}": scale.clone()}
    return tensors, decoded


def configuration(**entries):
    """The bytes of a comfy_quant tensor."""
    return torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)


def as_bytes(path):
    """{name: the bytes} of all tensors of a file, to compare files by."""
    tensors = load_file(path)
    return {name: t.reshape(-1).view(torch.uint8).tolist() for name, t in tensors.items()}
