"""How torch calls the dtypes that safetensors names."""

from __future__ import annotations

import torch

TORCH_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
}
