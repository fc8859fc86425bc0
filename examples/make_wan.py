"""Make a Wan-shaped checkpoint of any size, and a GGUF with the types Q5_K_M gives it.

The weights are normal, a few input channels ten times larger, from a fixed seed. The GGUF holds
names, shapes and types over an empty data section: the converter reads nothing else of it.

Usage: python examples/make_wan.py FOLDER {tiny,5b,14b} [--blocks N] [--dtype float32]
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

Q5_K, Q6_K = gguf.GGMLQuantizationType.Q5_K, gguf.GGMLQuantizationType.Q6_K
F16, F32 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32
Shape = tuple[int, ...]

# Width, width of the feed-forward layers, input and output channels, and number of blocks, as Wan's
# model definitions have them; "tiny" is for tests.
SIZES = {
    "tiny": (256, 512, 16, 16, 8),
    "5b": (3072, 14336, 48, 48, 30),
    "14b": (5120, 13824, 36, 16, 40),
}
# Columns of the text and time embeddings, and the patch of the first convolution.
TEXT, FREQUENCIES, PATCH = 4096, 256, (1, 2, 2)
# A shard is held in memory while it is written.
SHARD_BYTES = 2 << 30
OUTLIER_CHANNELS, OUTLIER_FACTOR = 4, 10.0


def linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    """Name the tensors of a linear layer: weight [rows, columns] and bias [rows]."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def wan_shapes(size: str, blocks: int | None = None) -> dict[str, Shape]:
    """List {tensor name: shape} of a Wan model with ComfyUI's names, block by block.

    `size` is a key of SIZES; `blocks` overrides the number of transformer blocks.
    """
    dim, ffn, channels, out_channels, depth = SIZES[size]
    shapes = {"patch_embedding.weight": (dim, channels, *PATCH), "patch_embedding.bias": (dim,)}
    shapes |= linear("text_embedding.0", dim, TEXT) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", dim, FREQUENCIES) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", 6 * dim, dim)
    for block in (f"blocks.{index}" for index in range(blocks or depth)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for part in "qkvo":
                shapes |= linear(f"{attention}.{part}", dim, dim)
            shapes |= {f"{attention}.norm_q.weight": (dim,), f"{attention}.norm_k.weight": (dim,)}
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        shapes |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
        shapes[f"{block}.modulation"] = (1, 6, dim)
    shapes |= linear("head.head", out_channels * 4, dim)
    return shapes | {"head.modulation": (1, 2, dim)}


def weights(shapes: dict[str, Shape], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) in the order of `shapes`, from a fixed seed.

    Weights are normal with the standard deviation columns ** -0.5, so that outputs keep their
    inputs' size. In matrices a few input channels are OUTLIER_FACTOR times larger, as trained
    models have them: they are what makes quantising hard.
    """
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5)
        if len(shape) == 2:
            # Evenly spread, and the same channels in all layers of one width.
            weight[:, :: shape[1] // OUTLIER_CHANNELS].mul_(OUTLIER_FACTOR)
        yield name, weight.to(dtype)


def shard_names(shapes: dict[str, Shape], itemsize: int) -> list[list[str]]:
    """Split the names over shards of SHARD_BYTES, two at least, as published models are sharded.

    `itemsize` is the bytes of a value. A tensor is never split.
    """
    sizes = {name: int(np.prod(shape)) * itemsize for name, shape in shapes.items()}
    # Half of the model at most, so that even a tiny one has two shards.
    limit = min(SHARD_BYTES, sum(sizes.values()) // 2)
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if filled >= limit:
            shards, filled = [*shards, []], 0
        shards[-1].append(name)
        filled += size
    return shards


def write_model(folder: Path, shapes: dict[str, Shape], dtype: torch.dtype) -> Path:
    """Write an index and its shards, with one shard in memory at a time; return the index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, weight_map = shard_names(shapes, dtype.itemsize), {}
    made = weights(shapes, dtype)
    for number, names in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: next(made)[1] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return index


def wan_q5_k_m(name: str, shape: Shape) -> gguf.GGMLQuantizationType:
    """Choose the GGML type that Q5_K_M gives a tensor of Wan.

    Attention v and ffn.2 are Q6_K, other weights of the blocks Q5_K, embeddings F16, and all that
    is no matrix F32.
    """
    if len(shape) != 2:
        return F32
    if not name.startswith("blocks."):
        return F16
    return Q6_K if name.endswith((".v.weight", ".ffn.2.weight")) else Q5_K


def write_gguf(
    out: Path,
    shapes: dict[str, Shape],
    kind_of: Callable[[str, Shape], gguf.GGMLQuantizationType] = wan_q5_k_m,
    arch: str = "wan",
) -> None:
    """Write a GGUF of these names and shapes over an empty data section.

    `kind_of(name, shape)` chooses the GGML type; `arch` is the architecture that the header names.
    A 5-D convolution is stored in four dimensions, as GGML has no more. The data are a hole in the
    file: the converter reads only the header.
    """
    writer, total = gguf.GGUFWriter(out, arch), 0
    for name, shape in shapes.items():
        kind = kind_of(name, shape)
        stored = (shape[0] * shape[1], *shape[2:]) if len(shape) == 5 else shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # GGML stores whole blocks of elements, each with its scales.
        nbytes = int(np.prod(stored)) // block * size
        writer.add_tensor_info(name, stored, np.dtype(np.float32), nbytes, raw_dtype=kind)
        total += writer.ggml_pad(nbytes, writer.data_alignment)
    # Header, keys and tensor entries; the data section follows as a hole.
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with out.open("r+b") as file:
        begin = file.seek(0, 2)
        # The file gets its true size without its data: readers check offsets against the size.
        file.truncate(writer.ggml_pad(begin, writer.data_alignment) + total)


def main() -> None:
    """Make the model and the GGUF that the command line asks for, and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--blocks", type=int, help="fewer blocks than the model has")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    shapes = wan_shapes(options.size, options.blocks)
    print(write_model(options.folder, shapes, getattr(torch, options.dtype)))
    write_gguf(options.folder / "model-Q5_K_M.gguf", shapes)
    print(options.folder / "model-Q5_K_M.gguf")


if __name__ == "__main__":
    main()
