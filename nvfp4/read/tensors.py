"""Read tensors: quantised weights decoded, LoRAs merged.

`fill` is the only place where a tensor's bytes come from the disk. A tensor is read through its
TensorRef, which says whether it has to be decoded or patched; what comes out then is float32, and
the rest of the program sees 16- or 32-bit weights whatever the source is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import BinaryIO

import torch

from nvfp4.errors import ConvertError
from nvfp4.files import CHANGED_UNDER_WAY, translated
from nvfp4.formats.base import format_titled
from nvfp4.model import Coding, TensorRef
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.float8 import has_no_number
from nvfp4.numeric.lora import merge
from nvfp4.virtual import Read, reading_ahead

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


def fetching(refs: Iterable[TensorRef]) -> contextlib.AbstractContextManager:
    """Let whole tensors of virtual files be fetched ahead, which the `with` block reads in order.

    Without it, each of a thousand small ones would be waited for.
    """
    return reading_ahead([Read(ref.path, ref.begin, ref.nbytes) for ref in refs])


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


def load_part(ref: TensorRef) -> torch.Tensor:
    """Load a whole part of a quantised layer: uint8 where torch has no dtype for it, as E8M0."""
    return load(ref) if ref.dtype in TORCH_DTYPES else load_bytes(ref).view(ref.shape)


def load_weight(ref: TensorRef) -> torch.Tensor:
    """Read a whole tensor: codes decoded and LoRAs merged, the values that are quantised.

    Returns float32 where it was decoded or patched, else the stored dtype. Raises ConvertError as
    `changed` does.
    """
    return changed(ref, load(ref)) if ref.is_changed else load(ref)


def changed(ref: TensorRef, data: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Decode a stored tensor and merge LoRAs into it: float32 of the shape of `data`.

    data: the tensor `ref` as it is stored, in any shape. Rows of it from the row `first` on suffice
    if there are no patches, which are merged into the whole only. Raises ConvertError where codes
    are no finite numbers, or where merging makes NaN or Inf.
    """
    if ref.coding is not None:
        if has_no_number(data):
            raise ConvertError(f"{ref.path}: {ref.name} holds NaN: the file is damaged")
        data = decoded(ref, data, first)
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


def decoded(ref: TensorRef, codes: torch.Tensor, first: int) -> torch.Tensor:
    """Decode rows of a tensor by its format: float32 of the shape of `codes`.

    codes: as they are stored; first: the row of the tensor that they begin with. One scale takes
    any part of a tensor, several take whole rows; these are read from the disk once more.
    """
    form = format_titled(ref.coding.title)
    if ref.coding.scale is not None:
        return form.decode(codes, torch.tensor(ref.coding.scale))
    by_rows, scale = coded_scales(ref, ref.coding)
    rows = codes.view(-1, *ref.shape[1:])
    some = (part[first : first + len(rows)] for part in by_rows)
    return form.decode(rows, *some, scale).view(codes.shape)


def coded_scales(ref: TensorRef, coding: Coding) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Read the scales of a quantised weight as its format's decoder takes them.

    Returns those that go by rows, for all rows of the weight, and the one scale, a float32 scalar.
    """
    # The decoder's parts are made of the scales alone; of the codes, only their shape counts.
    codes = torch.empty(ref.shape, dtype=TORCH_DTYPES[ref.dtype], device="meta")
    scales = {suffix: load_part(part) for suffix, part in coding.parts.items()}
    (_, *by_rows), scale = format_titled(coding.title).unpack({"weight": codes} | scales)
    return by_rows, scale


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
    row, stripes = ref.nbytes // count, []
    for index in range(STRIPES):
        # From 0 for the first stripe to count - height for the last, which ends with the weight.
        begin = index * (count - height) // (STRIPES - 1)
        data = torch.empty(height * row, dtype=torch.uint8)
        fill(ref, begin * row, memoryview(data.numpy()))
        stored = data.view(TORCH_DTYPES[ref.dtype]).view(-1, columns)
        stripes.append(changed(ref, stored, begin) if ref.is_changed else stored)
    return torch.cat(stripes)
