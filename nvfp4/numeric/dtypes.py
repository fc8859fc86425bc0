"""Name the torch dtypes of tensors in safetensors files.

`nvfp4.dtypes` has the facts that need no torch, sizes in bits above all, so that option parsing
stays quick; this table is apart because it does.
"""

from __future__ import annotations

import torch

# Only dtypes that a conversion computes with; tensors of others are copied as bytes, untyped.
TORCH_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
