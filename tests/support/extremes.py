"""Weights at the ends of what floats hold."""

import torch

GENERATOR = torch.Generator().manual_seed(0)
NORMAL = torch.randn(64, 64, generator=GENERATOR)
OUTLIER = NORMAL.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(3e38))
SCALED = {"1e38": 5e37, "1e-38": 1e-38, "denormal": 1e-42, "below float16": 1e-9, "beyond it": 1e6}
WEIGHTS = {
    "zeros": torch.zeros(64, 64),
    "minus zero": -torch.zeros(64, 64),
    "ones": torch.ones(64, 64),
    "one outlier": OUTLIER,
    "one by one": torch.full((1, 1), 0.3),
    "one column": NORMAL[:, :1].contiguous(),
    "one row": NORMAL[:1].contiguous(),
    "odd": NORMAL[:37, :41].contiguous(),
    "empty rows": torch.zeros(0, 64),
    "empty columns": torch.zeros(64, 0),
    "largest": torch.full((32, 32), torch.finfo(torch.float32).max),
} | {name: NORMAL * scale for name, scale in SCALED.items()}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
