"""MXFP8's powers of two and codes: comfy_kitchen's, also where a logarithm rounds down."""

import pytest
import torch

from nvfp4.dtypes import MX_BLOCK
from nvfp4.numeric.mxfp8 import quantise_mxfp8

quantization = pytest.importorskip("comfy_kitchen.backends.eager.quantization")


def kitchen(weight):
    """Its codes, and its powers of two in rows."""
    if not hasattr(quantization, "quantize_mxfp8") or not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("this comfy_kitchen or torch has no MXFP8")
    codes, tiles = quantization.quantize_mxfp8(weight)
    columns = weight.shape[1] // MX_BLOCK
    rows = quantization.from_blocked(tiles.view(torch.uint8), len(weight), columns)
    return codes.view(torch.uint8), rows.int()


def agrees(weight):
    codes, powers = quantise_mxfp8(weight)
    expected, rows = kitchen(weight)
    exponents = torch.where(rows > 0, rows - 127.0, -127.0)
    return torch.equal(codes.view(torch.uint8), expected) and torch.equal(
        powers.double(), 2.0 ** exponents.double()
    )


def test_a_little_more_than_a_power_of_two_is_rounded_as_comfy_kitchen_does():
    # 448 * 2**e and the numbers after it, which have the largest logarithms that round to e.
    bits = torch.tensor(448.0).view(torch.int32) + torch.arange(-32, 64, dtype=torch.int32)
    largest = bits.view(torch.float32).unsqueeze(1) * 2.0 ** torch.arange(-126, 119)
    weight = torch.zeros(largest.numel(), MX_BLOCK)
    weight[:, 3] = largest.flatten()
    weight[:, 7] = -largest.flatten() / 3
    assert agrees(weight)


def test_zeros_of_any_sign_become_positive_zeros():
    weight = torch.randn(4, 2 * MX_BLOCK, generator=torch.Generator().manual_seed(0))
    weight[1, :MX_BLOCK] = -0.0
    weight[2] = 0.0
    assert agrees(weight)
