"""A tensor's bytes, decoded and with LoRAs merged."""

from __future__ import annotations

import contextlib
from typing import BinaryIO

import torch

from nvfp4.dtypes import NAN_E4M3
from nvfp4.errors import ConvertError
from nvfp4.files import CHANGED_UNDER_WAY, translated
from nvfp4.model import TensorRef
from nvfp4.numeric.codes import decode_e4m3
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.lora import merge

STUDIED_ROWS, STRIPES = 256, 8  # of a weight, when layers are compared: in so many places


def fill(ref: TensorRef, begin: int, view: memoryview, file: BinaryIO | None = None) -> None:
    """Read a tensor's bytes from offset `begin` into all of `view`; `file` is its own, if open."""
    with (
        translated(ref.path, f"cannot read {ref.name}"),
        contextlib.nullcontext(file) if file else ref.path.open("rb", buffering=0) as file,
    ):
        file.seek(ref.begin + begin)
        filled = 0
        while filled < len(view) and (count := file.readinto(view[filled:])):
            filled += count
    if filled < len(view):
        raise ConvertError(f"{ref.path}: ended inside {ref.name}; {CHANGED_UNDER_WAY}")


def load_bytes(ref: TensorRef, file: BinaryIO | None = None) -> torch.Tensor:
    data = torch.empty(ref.nbytes, dtype=torch.uint8)
    fill(ref, 0, memoryview(data.numpy()), file)
    return data


def load(ref: TensorRef, file: BinaryIO | None = None) -> torch.Tensor:
    """Load a whole tensor, of one of TORCH_DTYPES; `file` is its own, if it is open already."""
    return load_bytes(ref, file).view(TORCH_DTYPES[ref.dtype]).view(ref.shape)


def load_weight(ref: TensorRef) -> torch.Tensor:
    """A whole tensor as it is to be converted."""
    return changed(ref, load(ref)) if ref.is_changed else load(ref)


def changed(ref: TensorRef, data: torch.Tensor) -> torch.Tensor:
    """A stored tensor as what it stands for, float32; some of it will do if it has no patches."""
    if ref.scale is not None:
        if (data.view(torch.uint8) & NAN_E4M3 == NAN_E4M3).any():
            raise ConvertError(f"{ref.path}: {ref.name} holds NaN: the file is damaged")
        data = decode_e4m3(data).mul_(ref.scale)
    if not ref.patches:
        return data
    data = data.float().view(ref.shape)
    for patch in ref.patches:
        merge(patch, {part: load(other).float() for part, other in patch.parts.items()}, data)
        if not data.isfinite().all():
            lora = next(iter(patch.parts.values())).path
            raise ConvertError(
                f"{lora}: {ref.name} holds NaN or Inf after it is merged: the LoRA or the model "
                "is damaged, or its strength too large"
            )
    return data


def load_some_rows(ref: TensorRef) -> torch.Tensor:
    """STUDIED_ROWS rows of a weight [N, K], or all if there are no more, from STRIPES places."""
    height, (count, columns) = STUDIED_ROWS // STRIPES, ref.shape
    if count <= STUDIED_ROWS:
        return load_weight(ref)
    if ref.patches:
        weight, steps = load_weight(ref), range(STRIPES)
        begins = (index * (count - height) // (STRIPES - 1) for index in steps)
        return torch.cat([weight[begin : begin + height] for begin in begins])
    row = ref.nbytes // count
    data = torch.empty(STRIPES, height * row, dtype=torch.uint8)
    for index, stripe in enumerate(data):
        begin = index * (count - height) // (STRIPES - 1)
        fill(ref, begin * row, memoryview(stripe.numpy()))
    stored = data.view(-1).view(TORCH_DTYPES[ref.dtype]).view(-1, columns)
    return changed(ref, stored) if ref.is_changed else stored
