"""Inputs of layers whose channels are correlated, and their statistics."""

import math

import torch

from nvfp4.numeric.feedback import Statistics


def statistics(rows):
    return Statistics(
        mean=rows.mean(0),
        second=rows.t() @ rows / len(rows),
        rows=rows[:256].clone(),
        independent=float(len(rows)),
    )


def correlated(columns, rows=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / math.sqrt(columns)
    channels = torch.rand(columns, generator=generator) * 2
    return torch.randn(rows, columns, generator=generator) @ mixing * channels + 0.3
