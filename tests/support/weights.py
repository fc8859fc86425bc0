"""Kinds of weights that a search over scales has to be right for."""

import torch

KINDS = {
    "normal": lambda w: w,
    "heavy tails": lambda w: w.pow(5),
    "tiny blocks": lambda w: w * torch.logspace(-7, 0, len(w)).unsqueeze(1),
    "one outlier a block": lambda w: torch.where(torch.arange(w.shape[1]) % 16 == 3, 40 * w, w),
    "one huge outlier": lambda w: torch.where(torch.arange(w.numel()).view(w.shape) == 5, 3e5, w),
    "constant blocks": lambda w: w[:, :1].expand_as(w).contiguous(),
    "few values": lambda w: (w * 2).round() / 2,
    "bfloat16": lambda w: w.bfloat16().float(),
    "uniform": lambda w: torch.special.ndtr(w),
    "zeros between": lambda w: w.where(w.abs() > 1, 0.0),
}


def as_bytes(tensors):
    return [tensor.view(torch.uint8) for tensor in tensors]
