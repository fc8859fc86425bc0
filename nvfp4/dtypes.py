"""Facts about numbers: dtypes, ranges, block and tile sizes.

These are the figures that all rooms share: what the E2M1 and E4M3 formats can hold, what the FP4
matmul of Blackwell cards asks of shapes, and how safetensors names dtypes. torch's own dtypes are
in `numeric.dtypes`, as the light path of the command line imports this module without torch.
"""

from __future__ import annotations

import math

# The magnitudes of the E2M1 codes 0 to 7. Bit 3 of a code is the sign.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = E2M1_VALUES[-1]
# The largest finite E4M3 number in the variant that torch calls float8_e4m3fn: no infinities.
E4M3_MAX = 448.0
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
# The largest multiple of the global scale that NVFP4 holds, 2688: the largest code times the
# largest block scale.
NVFP4_MAX = E2M1_MAX * E4M3_MAX
# Columns of a row that share one block scale in NVFP4.
BLOCK_SIZE = 16
# cuBLAS reads block scales in swizzled tiles of this size; comfy_kitchen stores them so.
TILE_ROWS, TILE_COLUMNS = 128, 4
# Blackwell's FP4 matmul needs K % 32 == 0, and N % 16 == 0 where there is a bias. ComfyUI decodes
# a weight of another shape on every call.
FP4_MATMUL_K = 32
FP4_MATMUL_N = 16
# Headers with more dimensions are refused. The patch embedding of a video model has 5, and numpy
# before version 2 cannot hold more than 32.
MAX_DIMENSIONS = 32
# Bits of one element by the dtype's name in a safetensors header. All that the library knows are
# here, so that a tensor which is copied may have any of them.
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
# Dtypes of weights that can be quantised; tensors of others are copied.
SOURCE_FLOATS = ("F32", "BF16", "F16")
# Dtypes that quantised weights are stored in.
ONE_BYTE = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
# Dtypes of scales that other programs store; they are read as float32.
SCALE_FLOATS = (*SOURCE_FLOATS, "F64")
# Columns of a row that share one scale in MXFP8; both sizes of a weight are padded to it.
MX_BLOCK = 32
# Rows and columns of the blocks that DeepSeek scales FP8 by, and others after it.
SCALE_BLOCK = 128
# The dtype options of the command line, in the names of safetensors headers.
DTYPE_OPTIONS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# ComfyUI views block scales of these dtypes as E4M3, without changing a bit.
VIEWED = ("U8", "I8")
# The byte of the positive E4M3 NaN. All larger bytes are negative numbers, or the negative NaN.
NAN_E4M3 = 0x7F
# The smallest normal E4M3 number. Smaller block scales are subnormal and have fewer bits.
LEAST_NORMAL_E4M3 = 2.0**-6


def round_up(size: int, multiple: int) -> int:
    """Round a size up to the next multiple; one that is a multiple already stays as it is."""
    return -(-size // multiple) * multiple


def bits_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Count the bits of a tensor's data; dtypes of 4 and 6 bits need not fill whole bytes.

    Raises KeyError for a dtype that is not in SAFETENSORS_BITS.
    """
    return math.prod(shape) * SAFETENSORS_BITS[dtype]
