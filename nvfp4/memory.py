"""Show tensors in memory as a safetensors file, whose bytes are made when they are read.

What a program holds already is converted without a copy of it on the disk: the header is made of
names, dtypes and shapes, and a tensor's values are asked for when they are read. The file has a
path as any other, a virtual one, for as long as a `with` block runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from nvfp4.dtypes import SAFETENSORS_BITS, bits_of, round_up
from nvfp4.errors import ConvertError
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.virtual import VirtualEntry, VirtualFile, VirtualPath

# What safetensors calls torch's dtypes: those that are computed with, and those that are copied.
DTYPE_NAMES = {str(dtype).removeprefix("torch."): name for name, dtype in TORCH_DTYPES.items()} | {
    "float8_e8m0fnu": "F8_E8M0", "bool": "BOOL", "int16": "I16", "uint16": "U16", "int32": "I32",
    "uint32": "U32", "uint64": "U64", "complex64": "C64",
}  # fmt: skip
# Numbers in the paths of files in memory, so that two of one name are two files.
FILE_NUMBERS = itertools.count(1)


class MemoryTensor(NamedTuple):
    """Describe a tensor of a file in memory.

    dtype: as safetensors names it.
    values: gives the tensor, of that dtype and shape and on any device. It is called for each read
        of a part of it, in any thread; nothing keeps what it gave.
    """

    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> MemoryTensor:
        """Describe a tensor that is there. Raises ConvertError where no file can hold its dtype."""
        return cls(dtype_name(tensor.dtype), tuple(tensor.shape), lambda: tensor)


class MemoryContent(NamedTuple):
    """Hold what is at a path: the header's bytes, and tensors with the offsets they begin at.

    begins: of each tensor that has bytes, and the file's end as the last one.
    """

    header: bytes
    begins: list[int]
    tensors: list[MemoryTensor]


# What is at each path, for as long as its `with` block runs.
CONTENTS: dict[str, MemoryContent] = {}


class MemoryFile(VirtualFile):
    """Read a file in memory."""

    def read_at(self, begin: int, view: memoryview) -> int:
        """Fill `view` from the header, or from the one tensor that has the byte `begin`."""
        header, begins, tensors = CONTENTS[str(self.path)]
        if begin < len(header):
            part = header[begin : begin + len(view)]
            view[: len(part)] = part
            return len(part)
        index = bisect_right(begins, begin) - 1
        count = min(len(view), begins[index + 1] - begin)
        with torch.no_grad():
            data = tensors[index].values().detach().reshape(-1).view(torch.uint8)
            first = begin - begins[index]
            # Cut before it is copied from a GPU; a tensor on the CPU is not copied here.
            view[:count] = memoryview(data[first : first + count].cpu().numpy())
        return count


class MemoryPath(VirtualPath):
    """Name a file in memory: memory://1/NAME."""

    __slots__ = ()
    scheme = "memory"

    def entry(self) -> VirtualEntry:
        """Tell the file's size. Raises FileNotFoundError once its `with` block has ended."""
        if str(self) not in CONTENTS:
            raise FileNotFoundError(f"{self} is no file in memory")
        return VirtualEntry(size=CONTENTS[str(self)].begins[-1])

    def opened(self, size: int) -> MemoryFile:
        """Open the file to read it."""
        return MemoryFile(self, size)


def dtype_name(dtype: torch.dtype) -> str:
    """Name a torch dtype as safetensors does. Raises ConvertError where it has no name."""
    text = str(dtype).removeprefix("torch.")
    if text not in DTYPE_NAMES:
        raise ConvertError(f"a tensor is {text}, which safetensors files cannot hold")
    return DTYPE_NAMES[text]


def make_content(tensors: Mapping[str, MemoryTensor], metadata: Mapping[str, str]) -> MemoryContent:
    """Lay a file out: the header, then the tensors, each at a multiple of its item size."""
    bits = {name: SAFETENSORS_BITS[tensor.dtype] for name, tensor in tensors.items()}
    tensors = {name: tensors[name] for name in sorted(tensors, key=bits.get, reverse=True)}
    entries, position = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name, tensor in tensors.items():
        end = position + bits_of(tensor.dtype, tensor.shape) // 8
        place = {"shape": [*tensor.shape], "data_offsets": [position, end]}
        entries[name] = {"dtype": tensor.dtype} | place
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(round_up(len(text), 8))
    header = len(text).to_bytes(8, "little") + text
    # An empty tensor has no byte that could be asked for.
    filled = {name: one for name, one in tensors.items() if bits_of(one.dtype, one.shape)}
    begins = [len(header) + entries[name]["data_offsets"][0] for name in filled]
    return MemoryContent(header, [*begins, len(header) + position], [*filled.values()])


@contextlib.contextmanager
def memory_file(
    name: str, tensors: Mapping[str, MemoryTensor], metadata: Mapping[str, str] | None = None
) -> Iterator[MemoryPath]:
    """Give tensors a path in the `with` block, by which they are read as a safetensors file.

    name: the file's, which the header of a conversion records as its source; metadata: strings for
    the header. Raises KeyError for a dtype that safetensors does not know.
    """
    path = MemoryPath(f"memory://{next(FILE_NUMBERS)}/{name}")
    CONTENTS[str(path)] = make_content(tensors, metadata or {})
    try:
        yield path
    finally:
        del CONTENTS[str(path)]
