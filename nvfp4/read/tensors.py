"""Read tensors: FP8 decoded, LoRAs merged.

`fill` is the only place where a tensor's bytes come from the disk. A tensor is read through its
TensorRef, which says whether it has to be decoded or patched; what comes out then is float32, and
the rest of the program sees 16- or 32-bit weights whatever the source is.
"""

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

# Where layers are compared, this many rows stand for a weight, in 8 stripes spread over its height,
# so that fused layers show all of their parts.
STUDIED_ROWS, STRIPES = 256, 8


def fill(ref: TensorRef, begin: int, view: memoryview, file: BinaryIO | None = None) -> None:
    """Read bytes of a tensor from the disk into memory.

    Fills all of `view` from the tensor's byte `begin` on. `file` is the tensor's file, if it is
    open already; it is moved, but not closed. Raises ConvertError where the file cannot be read, or
    ends inside the tensor, which its header excludes: it was changed meanwhile.
    """
    with (
        translated(ref.path, f"cannot read {ref.name}"),
        contextlib.nullcontext(file) if file else ref.path.open("rb", buffering=0) as file,
    ):
        file.seek(ref.begin + begin)
        # readinto may give less than was asked for, and gives 0 only at the file's end.
        filled = 0
        while filled < len(view) and (count := file.readinto(view[filled:])):
            filled += count
    if filled < len(view):
        raise ConvertError(f"{ref.path}: ended inside {ref.name}; {CHANGED_UNDER_WAY}")


def load_bytes(ref: TensorRef, file: BinaryIO | None = None) -> torch.Tensor:
    """Load a whole tensor of any dtype as its stored bytes: uint8 [nbytes], on the CPU."""
    data = torch.empty(ref.nbytes, dtype=torch.uint8)
    fill(ref, 0, memoryview(data.numpy()), file)
    return data


def load(ref: TensorRef, file: BinaryIO | None = None) -> torch.Tensor:
    """Load a whole tensor as it is stored, in its own dtype and shape, on the CPU.

    `file` is the tensor's file, if it is open already. Raises KeyError for a dtype that is not in
    TORCH_DTYPES.
    """
    return load_bytes(ref, file).view(TORCH_DTYPES[ref.dtype]).view(ref.shape)


def load_weight(ref: TensorRef) -> torch.Tensor:
    """Read a whole tensor: FP8 decoded and LoRAs merged, the values that are quantised.

    Returns float32 where it was decoded or patched, else the stored dtype. Raises ConvertError as
    `changed` does.
    """
    return changed(ref, load(ref)) if ref.is_changed else load(ref)


def changed(ref: TensorRef, data: torch.Tensor) -> torch.Tensor:
    """Decode FP8 and merge LoRAs into a stored tensor: float32.

    data: the tensor `ref` as it is stored. Rows of it suffice if there are no patches, which are
    merged into the whole only. Raises ConvertError where FP8 codes are NaN, or where merging makes
    NaN or Inf.
    """
    if ref.scale is not None:
        # The sign bit is masked out, as there is a negative NaN, too.
        if (data.view(torch.uint8) & NAN_E4M3 == NAN_E4M3).any():
            raise ConvertError(f"{ref.path}: {ref.name} holds NaN: the file is damaged")
        data = decode_e4m3(data).mul_(ref.scale)
    if not ref.patches:
        return data
    data = data.float().view(ref.shape)
    for patch in ref.patches:
        # The parts of one patch at a time are in memory.
        merge(patch, {part: load(other).float() for part, other in patch.parts.items()}, data)
        if not data.isfinite().all():
            lora = next(iter(patch.parts.values())).path
            raise ConvertError(
                f"{lora}: {ref.name} holds NaN or Inf after it is merged: the LoRA or the model "
                "is damaged, or its strength too large"
            )
    return data


def load_some_rows(ref: TensorRef) -> torch.Tensor:
    """Read a sample of a weight's rows: [min(N, STUDIED_ROWS), K] of [N, K].

    A weight of more rows gives as many from each of STRIPES places, evenly spread, the first and
    last rows among them. Only these are read from the disk, unless the weight is patched. The dtype
    is that of `load_weight`; the result is the same in every run.
    """
    height, (count, columns) = STUDIED_ROWS // STRIPES, ref.shape
    if count <= STUDIED_ROWS:
        return load_weight(ref)
    # DoRA scales rows and columns by their lengths, so that a patch needs the whole weight.
    if ref.patches:
        weight, steps = load_weight(ref), range(STRIPES)
        begins = (index * (count - height) // (STRIPES - 1) for index in steps)
        return torch.cat([weight[begin : begin + height] for begin in begins])
    row = ref.nbytes // count
    data = torch.empty(STRIPES, height * row, dtype=torch.uint8)
    for index, stripe in enumerate(data):
        # From 0 for the first stripe to count - height for the last, which ends with the weight.
        begin = index * (count - height) // (STRIPES - 1)
        fill(ref, begin * row, memoryview(stripe.numpy()))
    stored = data.view(-1).view(TORCH_DTYPES[ref.dtype]).view(-1, columns)
    return changed(ref, stored) if ref.is_changed else stored
