"""Write a GGUF with the types that a Q5_K_M quantiser gives a Wan model; its data are zeros.

The converter reads a GGUF's names, types and shapes only, so the data need not mean anything.
Usage: python examples/make_gguf.py MODEL.safetensors.index.json OUT.gguf
"""

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from convert_nvfp4 import open_model  # noqa: E402

Q5_K, Q6_K = gguf.GGMLQuantizationType.Q5_K, gguf.GGMLQuantizationType.Q6_K
F16, F32 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32


def wan_q5_k_m(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """Attention v and ffn.2 Q6_K, other block weights Q5_K, embeddings F16, the rest F32."""
    if len(shape) != 2:
        return F32
    if not name.startswith("blocks."):
        return F16
    return Q6_K if name.endswith((".v.weight", ".ffn.2.weight")) else Q5_K


def write_gguf(
    out: Path,
    shapes: dict[str, tuple[int, ...]],
    kind_of: Callable[[str, tuple[int, ...]], gguf.GGMLQuantizationType] = wan_q5_k_m,
) -> None:
    """Store every name with its type; a 5-D convolution is stored 4-D, as GGML has no more."""
    writer = gguf.GGUFWriter(out, arch="wan")
    for name, shape in shapes.items():
        kind = kind_of(name, shape)
        stored = (shape[0] * shape[1], *shape[2:]) if len(shape) == 5 else shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind in (F16, F32):
            dtype = np.float16 if kind is F16 else np.float32
            writer.add_tensor(name, np.zeros(stored, dtype))
        else:
            rows = (*stored[:-1], stored[-1] // block * size)
            writer.add_tensor(name, np.zeros(rows, np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    source, out = sys.argv[1:]
    model = open_model(Path(source))
    write_gguf(Path(out), {name: ref.shape for name, ref in model.tensors.items()})
