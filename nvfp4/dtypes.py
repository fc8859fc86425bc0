"""Facts about the numbers that tensors hold: dtypes, ranges, block and tile sizes."""

from __future__ import annotations

import math

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # code 0..7; bit 3 is the sign
E2M1_MAX = E2M1_VALUES[-1]
E4M3_MAX = 448.0
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
NVFP4_MAX = E2M1_MAX * E4M3_MAX  # largest multiple of the global scale: 2688
BLOCK_SIZE = 16  # columns that share one block scale
TILE_ROWS, TILE_COLUMNS = 128, 4  # cuBLAS block-scale tile
FP4_MATMUL_K = 32  # Blackwell's FP4 matmul needs K % 32 == 0 ...
FP4_MATMUL_N = 16  # ... and N % 16 == 0 where there is a bias
MAX_DIMENSIONS = 32
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
SOURCE_FLOATS = ("F32", "BF16", "F16")
ONE_BYTE = ("U8", "I8", "F8_E4M3", "F8_E5M2")  # what quantised weights are stored in
DTYPE_OPTIONS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
VIEWED = ("U8", "I8")  # dtypes whose bits ComfyUI takes for block scales
NAN_E4M3 = 0x7F  # from here on, bytes are NaN or negative
LEAST_NORMAL_E4M3 = 2.0**-6  # ... which begin below this


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def bits_of(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * SAFETENSORS_BITS[dtype]
