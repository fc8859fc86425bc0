"""What is stored: dtypes, precisions, the parts of a quantised layer."""

from __future__ import annotations

import math
from enum import IntEnum

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
ALREADY_QUANTISED = (
    r"(^|\.)(comfy_quant|weight_scale(_2|_inv)?|scale_weight|scale_input|input_scale|scaled_fp8)$"
)
# How a stored weight is quantised: name, its dtype, and the scale beside it that tells.
SCHEMES = (
    ("NVFP4", "U8", "weight_scale_2"),
    ("scaled FP8", "F8_E4M3", "scale_weight"),
    ("FP8", "F8_E4M3", "weight_scale"),
    ("plain FP8", "F8_E4M3", None),
)
LAYER_PARTS = (
    "weight", "bias", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale",
    "comfy_quant", "scale_weight", "scale_input",
)  # fmt: skip
LEGACY_NAMES = {"weight_scale": "scale_weight", "input_scale": "scale_input"}
LEGACY_SCALES = tuple(LEGACY_NAMES.values())
SCALAR_SCALES = ("weight_scale_2", "weight_scale", "input_scale", *LEGACY_SCALES)
OTHER_FORMATS = ("float8_e5m2", "mxfp8", "int8_tensorwise", "convrot_w4a4")  # known to ComfyUI
MARKER = "scaled_fp8"  # legacy scaled FP8: 2 elements ask for full-precision matmul, 0 do not
DECODED = tuple(scheme for scheme, *_ in SCHEMES)
ADOPTED = ("NVFP4", "scaled FP8", "FP8")  # schemes of layers that a source may have
VIEWED = ("U8", "I8")  # dtypes whose bits ComfyUI takes for block scales
NAN_E4M3 = 0x7F  # from here on, bytes are NaN or negative
LEAST_NORMAL_E4M3 = 2.0**-6  # ... which begin below this


class Precision(IntEnum):
    """How a tensor is stored, ordered: "at least FP8" is max(precision, Precision.FP8)."""

    NVFP4 = 0
    FP8 = 1
    HALF = 2  # --dtype
    FP32 = 3
    KEPT = 4  # the source's bytes, untouched


QUANTISED = {Precision.NVFP4: "nvfp4", Precision.FP8: "float8_e4m3fn"}  # comfy_quant "format"
FORMATS = {name: precision for precision, name in QUANTISED.items()}


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def bits_of(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * SAFETENSORS_BITS[dtype]


def format_parts(precision: Precision, shape: tuple[int, int]) -> dict[str, tuple]:
    """{suffix: (dtype, shape)} that a weight becomes: the module docstring's table."""
    rows, columns = shape
    if precision is Precision.FP8:
        return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("F32", ())}
    height, width = round_up(rows, BLOCK_SIZE), round_up(columns, BLOCK_SIZE)
    tiles = (round_up(height, TILE_ROWS), round_up(width // BLOCK_SIZE, TILE_COLUMNS))
    return {
        "weight": ("U8", (height, width // 2)),
        "weight_scale": ("F8_E4M3", tiles),
        "weight_scale_2": ("F32", ()),
    }
