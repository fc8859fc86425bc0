"""Safetensors files made by hand, valid or not, and models of which only names exist."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

from nvfp4.dtypes import bits_of
from nvfp4.model import Model, TensorRef

# An earlier output, as small as one can be: without its record, no conversion would replace it.
OLDER = save({"x": torch.zeros(1)}, {"convert_nvfp4": "{}"})


def raw_safetensors(path: Path, entries: object, data: bytes) -> Path:
    """A safetensors file with exactly this header, valid or not."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def header_only(path: Path, tensors: dict[str, tuple], metadata: dict[str, str]) -> Path:
    """A safetensors file of {name: (dtype, shape)} over a hole: sound, and no bytes on the disk."""
    entries, begin = {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        end = begin + bits_of(dtype, shape) // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries).encode()
    raw_safetensors(path, header.ljust(-(-len(header) // 8) * 8), b"")
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) + begin)
    return path


def model_with(names, shape=(4, 256)):
    """A model of which only names and one shape exist, as float32."""
    refs = {
        name: TensorRef(name=name, dtype="F32", shape=shape, path=None, begin=0, nbytes=4096)
        for name in names
    }
    return Model(tensors=refs, metadata={}, files=())
