"""Block scales by least error, against all 126 that there are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4.dtypes import E2M1_VALUES
from nvfp4.numeric.codes import largest_magnitude, nvfp4_global_scale
from nvfp4.numeric.scale_search import mse_block_scales
from support.weights import KINDS


def brute_force(magnitude, global_scale):
    """All 126 positive codes: the first of the least errors, and the errors, in float32."""
    blocks = magnitude.view(-1, 16).t().contiguous()
    codes = torch.arange(1, 127, dtype=torch.int16).unsqueeze(1).expand(126, blocks.shape[1])
    scales = codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
    scaled = blocks * (1.0 / (scales * global_scale)).unsqueeze(1)
    grid = torch.tensor(E2M1_VALUES)
    distance = torch.stack([(scaled - value).abs() for value in grid]).amin(0)
    error = distance * distance
    for half in (8, 4, 2, 1):  # the order in which the search adds
        error = error[:, :half] + error[:, half:]
    error = error.squeeze(1) * scales * scales
    return error.argmin(0) + 1, error


def assert_search_is_brute_force(weight):
    global_scale = nvfp4_global_scale(largest_magnitude(weight))
    magnitude = weight.abs()
    found = mse_block_scales(magnitude, global_scale).view(torch.uint8).flatten().long()
    expected, _ = brute_force(magnitude, global_scale)
    zero = magnitude.view(-1, 16).amax(1) == 0
    assert torch.equal(found, expected.masked_fill(zero, 0))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 24), exponent=st.integers(-20, 20))
def test_the_search_finds_what_brute_force_finds(kind, seed, rows, exponent):
    weight = torch.randn(rows, 96, generator=torch.Generator().manual_seed(seed))
    assert_search_is_brute_force(KINDS[kind](weight) * 2.0**exponent)


def test_every_position_between_two_e4m3_values_is_searched_right():
    """Largest weights of all sizes from the subnormals up, against a fixed global scale."""
    weight = torch.rand(4096, 16, generator=torch.Generator().manual_seed(9))
    weight *= torch.logspace(-6, 0, 4096).unsqueeze(1) / weight.amax(1, keepdim=True)
    assert_search_is_brute_force(weight)


def test_the_search_is_best_in_exact_arithmetic_too():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(10))
    scale = nvfp4_global_scale(largest_magnitude(weight))
    found = mse_block_scales(weight.abs(), scale)
    blocks = weight.double().view(-1, 16)
    grid = torch.tensor(E2M1_VALUES, dtype=torch.float64)
    steps = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double() * scale

    def error(step):
        distance = (blocks.abs().unsqueeze(-1) - grid * step.view(-1, 1, 1)).abs().amin(-1)
        return distance.square().sum(1)

    least = torch.stack([error(step.expand(len(blocks))) for step in steps]).amin(0)
    chosen = error(found.flatten().double() * scale.double())
    assert torch.all(chosen <= least * (1 + 1e-6))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_search_on_a_gpu_gives_the_same_bytes():
    weight = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(12))
    scale = nvfp4_global_scale(largest_magnitude(weight))
    expected = mse_block_scales(weight.abs(), scale).view(torch.uint8)
    found = mse_block_scales(weight.abs().cuda(), scale.cuda())
    assert torch.equal(found.view(torch.uint8).cpu(), expected)
