"""Rotate groups of columns by a regular Hadamard matrix, as ConvRot and comfy_kitchen do."""

from __future__ import annotations

import torch

from nvfp4.dtypes import FLOAT32_MAX

# Columns that are rotated together where weights are written: comfy_kitchen's own choice.
WRITTEN_GROUP = 256
# The largest magnitude that is rotated: sums on the way are up to 32 times as large, and to fit
# group scales, 16 weights times levels of up to 31 are added up.
LARGEST_ROTATED = FLOAT32_MAX / 2**14


def rotate(values: torch.Tensor, group: int) -> torch.Tensor:
    """Rotate weights or inputs, or rotate them back: it is its own inverse.

    values: float32 [n, K]; group: columns rotated together, a power of four that divides K. The
    matrix is the Kronecker power of a matrix [4, 4] of 1/2, with -1/2 from one corner at the bottom
    to the other at the top. One factor after the other is applied: the sums are the same whatever
    rows come together, where those of a matrix product depend on its size.
    """
    step, found = 1, values
    while step < group:
        fours = found.reshape(-1, 4, step)
        first, second, third, fourth = fours.unbind(1)
        half = (((first + second) + (third + fourth)) * 0.5).unsqueeze(1)
        # Row i adds up all four but for the one from the end, which it subtracts.
        found, step = half - fours.flip(1), step * 4
    return found.view(values.shape)
