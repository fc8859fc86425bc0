"""NVFP4 and FP8 against comfy_kitchen, their consumer, and against the format's tables."""

import comfy_kitchen
import pytest
import torch
from comfy_kitchen.float_utils import from_blocked, to_blocked
from comfy_kitchen.tensor import TensorCoreNVFP4Layout
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4.dtypes import E2M1_VALUES, round_up
from nvfp4.numeric.codes import (
    decode_e2m1,
    decode_e4m3,
    decode_fp8,
    decode_nvfp4,
    encode_fp8,
    encode_nvfp4,
    fp8_scale,
    largest_magnitude,
    nvfp4_global_scale,
    swizzle,
    unswizzle,
)
from support.extremes import DTYPES

TIES = {0.25: 0, 0.75: 2, 1.25: 2, 1.75: 4, 2.5: 4, 3.5: 6, 5.0: 6}


def pad_to_16(packed, rows):
    return torch.nn.functional.pad(packed, (0, 0, 0, -rows % 16))


def assert_same_as_comfy_kitchen(weight):
    """Same global scale, same bytes, same swizzled block scales, same decoded weight."""
    scale = nvfp4_global_scale(largest_magnitude(weight))
    packed, block_scale = encode_nvfp4(weight, scale)
    expected, expected_scales = comfy_kitchen.quantize_nvfp4(weight, scale, pad_16x=True)
    assert torch.equal(pad_to_16(packed, len(weight)), expected)
    rows16 = round_up(len(weight), 16)
    padded = torch.zeros(rows16, block_scale.shape[1], dtype=torch.uint8)
    padded[: len(weight)] = block_scale.view(torch.uint8)
    swizzled = swizzle(padded.view(torch.float8_e4m3fn))
    assert torch.equal(swizzled.view(torch.uint8), expected_scales.view(torch.uint8))
    decoded = comfy_kitchen.dequantize_nvfp4(expected, scale, expected_scales, torch.float32)
    assert torch.equal(decode_nvfp4(packed, block_scale, scale), decoded[: len(weight)])


@pytest.mark.parametrize("sign", [1, -1])
def test_every_code_decodes_and_encodes_to_itself(sign):
    values = sign * torch.tensor([E2M1_VALUES + E2M1_VALUES])
    packed, block_scale = encode_nvfp4(values, torch.tensor(1.0))
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten().tolist()
    expected = [code | (8 if sign < 0 else 0) for code in range(8)] * 2
    assert codes == expected
    assert block_scale.float().tolist() == [[1.0]]
    assert torch.equal(decode_e2m1(packed), values)


@pytest.mark.parametrize(("value", "code"), TIES.items())
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_the_even_code(value, code, sign):
    weight = torch.tensor([[sign * value, 6.0] * 8])
    packed, _ = encode_nvfp4(weight, torch.tensor(1.0))
    assert (packed >> 4).unique().tolist() == [code | (8 if sign < 0 else 0)]
    assert (packed & 15).unique().tolist() == [7]


def test_the_even_column_is_in_the_high_nibble():
    weight = torch.zeros(1, 16)
    weight[0, 0], weight[0, 1] = 6.0, -3.0
    packed, _ = encode_nvfp4(weight, torch.tensor(1.0))
    assert packed[0, 0] == 0x7D


def test_every_e4m3_code_decodes_as_torch_decodes_it():
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F].view(torch.float8_e4m3fn)  # 0x7F is NaN
    assert torch.equal(decode_e4m3(codes), codes.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 16), (128, 64), (130, 48), (1, 16), (33, 7), (256, 1040)])
def test_amax_encoding_equals_comfy_kitchen(dtype, shape):
    generator = torch.Generator().manual_seed(sum(shape))
    assert_same_as_comfy_kitchen(torch.randn(shape, generator=generator).to(dtype))


WEIGHTS = {
    "zero blocks": lambda w: w.index_fill(0, torch.arange(0, 32, 2), 0.0),
    "negative zeros": lambda w: w * torch.tensor([0.0, 1.0]).repeat(32),
    "one outlier": lambda w: torch.where(torch.arange(w.numel()).view(w.shape) == 77, 1e4, w),
    "scales lost to zero": lambda w: w * torch.logspace(-6, 0, 32).unsqueeze(1),
    "denormal": lambda w: w * 1e-39,
    "huge": lambda w: w * 5e37,
    "constant": torch.ones_like,
    "ties": lambda w: (w * 4).round() / 4,
}


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_unusual_weights_equal_comfy_kitchen(make):
    assert_same_as_comfy_kitchen(make(torch.randn(32, 64, generator=torch.Generator())))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_any_weight_equals_comfy_kitchen(rows, columns, exponent, dtype, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    assert_same_as_comfy_kitchen((weight.pow(3) * 2.0**exponent).to(dtype))


def test_global_scale_is_that_of_comfy_kitchens_layout():
    weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(1))
    _, parameters = TensorCoreNVFP4Layout.quantize(weight)
    assert nvfp4_global_scale(largest_magnitude(weight)) == parameters.scale


def test_a_weight_of_zeros_becomes_zeros():
    weight = torch.zeros(16, 32)
    scale = nvfp4_global_scale(largest_magnitude(weight))
    packed, block_scale = encode_nvfp4(weight, scale)
    assert not packed.any()
    assert not decode_nvfp4(packed, block_scale, scale).any()
    assert not encode_fp8(weight, fp8_scale(largest_magnitude(weight))).float().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_equals_comfy_kitchen(dtype):
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
    scale = fp8_scale(largest_magnitude(weight))
    codes = encode_fp8(weight, scale)
    expected = comfy_kitchen.quantize_per_tensor_fp8(weight.float(), scale)
    assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(decode_fp8(codes, scale), codes.float() * scale)


def test_fp8_of_denormal_weights_stays_finite():
    weight = torch.full((16, 16), 1e-44)
    scale = fp8_scale(largest_magnitude(weight))
    assert decode_fp8(encode_fp8(weight, scale), scale).isfinite().all()


@given(rows=st.integers(1, 300), columns=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_swizzle_is_comfy_kitchens_and_invertible(rows, columns):
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    scales = torch.randint(0, 127, (rows, columns), generator=generator).to(torch.uint8)
    tiles = swizzle(scales)
    assert torch.equal(tiles, to_blocked(scales, flatten=False))
    assert torch.equal(unswizzle(tiles, rows, columns), scales)
    assert torch.equal(from_blocked(tiles, rows, columns), scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_largest_magnitude_shows_what_is_not_finite(bad):
    weight = torch.randn(8, 16)
    weight[3, 4] = bad
    assert not largest_magnitude(weight).isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_same_bytes(dtype):
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(4)).to(dtype)
    scale = nvfp4_global_scale(largest_magnitude(weight))
    on_cpu = encode_nvfp4(weight, scale)
    on_gpu = encode_nvfp4(weight.cuda(), scale.cuda())
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(one.view(torch.uint8), other.cpu().view(torch.uint8))
