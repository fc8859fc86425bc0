"""The numeric core against its consumer, comfy_kitchen, and against the format's tables."""

import comfy_kitchen
import pytest
import torch
from comfy_kitchen.float_utils import from_blocked, to_blocked
from comfy_kitchen.tensor import TensorCoreNVFP4Layout
from hypothesis import given, settings
from hypothesis import strategies as st

import convert_nvfp4 as c

TIES = {0.25: 0, 0.75: 2, 1.25: 2, 1.75: 4, 2.5: 4, 3.5: 6, 5.0: 6}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pad_to_16(packed, rows):
    return torch.nn.functional.pad(packed, (0, 0, 0, -rows % 16))


def assert_same_as_comfy_kitchen(weight):
    """Same global scale, same bytes, same swizzled block scales, same decoded weight."""
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    packed, block_scale = c.encode_nvfp4(weight, scale)
    expected, expected_scales = comfy_kitchen.quantize_nvfp4(weight, scale, pad_16x=True)
    assert torch.equal(pad_to_16(packed, len(weight)), expected)
    rows16 = c.round_up(len(weight), 16)
    padded = torch.zeros(rows16, block_scale.shape[1], dtype=torch.uint8)
    padded[: len(weight)] = block_scale.view(torch.uint8)
    swizzled = c.swizzle(padded.view(torch.float8_e4m3fn))
    assert torch.equal(swizzled.view(torch.uint8), expected_scales.view(torch.uint8))
    decoded = comfy_kitchen.dequantize_nvfp4(expected, scale, expected_scales, torch.float32)
    assert torch.equal(c.decode_nvfp4(packed, block_scale, scale), decoded[: len(weight)])


@pytest.mark.parametrize("sign", [1, -1])
def test_every_code_decodes_and_encodes_to_itself(sign):
    values = sign * torch.tensor([c.E2M1_VALUES + c.E2M1_VALUES])
    packed, block_scale = c.encode_nvfp4(values, torch.tensor(1.0))
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten().tolist()
    expected = [code | (8 if sign < 0 else 0) for code in range(8)] * 2
    assert codes == expected
    assert block_scale.float().tolist() == [[1.0]]
    assert torch.equal(c.decode_e2m1(packed), values)


@pytest.mark.parametrize(("value", "code"), TIES.items())
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_the_even_code(value, code, sign):
    weight = torch.tensor([[sign * value, 6.0] * 8])
    packed, _ = c.encode_nvfp4(weight, torch.tensor(1.0))
    assert (packed >> 4).unique().tolist() == [code | (8 if sign < 0 else 0)]
    assert (packed & 15).unique().tolist() == [7]


def test_the_even_column_is_in_the_high_nibble():
    weight = torch.zeros(1, 16)
    weight[0, 0], weight[0, 1] = 6.0, -3.0
    packed, _ = c.encode_nvfp4(weight, torch.tensor(1.0))
    assert packed[0, 0] == 0x7D


def test_every_e4m3_code_decodes_as_torch_decodes_it():
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F].view(torch.float8_e4m3fn)  # 0x7F is NaN
    assert torch.equal(c.decode_e4m3(codes), codes.float())


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
    assert c.nvfp4_global_scale(c.largest_magnitude(weight)) == parameters.scale


def test_a_weight_of_zeros_becomes_zeros():
    weight = torch.zeros(16, 32)
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    packed, block_scale = c.encode_nvfp4(weight, scale)
    assert not packed.any()
    assert not c.decode_nvfp4(packed, block_scale, scale).any()
    assert not c.encode_fp8(weight, c.fp8_scale(c.largest_magnitude(weight))).float().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_equals_comfy_kitchen(dtype):
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
    scale = c.fp8_scale(c.largest_magnitude(weight))
    codes = c.encode_fp8(weight, scale)
    expected = comfy_kitchen.quantize_per_tensor_fp8(weight.float(), scale)
    assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(c.decode_fp8(codes, scale), codes.float() * scale)


def test_fp8_of_denormal_weights_stays_finite():
    weight = torch.full((16, 16), 1e-44)
    scale = c.fp8_scale(c.largest_magnitude(weight))
    assert c.decode_fp8(c.encode_fp8(weight, scale), scale).isfinite().all()


@given(rows=st.integers(1, 300), columns=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_swizzle_is_comfy_kitchens_and_invertible(rows, columns):
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    scales = torch.randint(0, 127, (rows, columns), generator=generator).to(torch.uint8)
    tiles = c.swizzle(scales)
    assert torch.equal(tiles, to_blocked(scales, flatten=False))
    assert torch.equal(c.unswizzle(tiles, rows, columns), scales)
    assert torch.equal(from_blocked(tiles, rows, columns), scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_largest_magnitude_shows_what_is_not_finite(bad):
    weight = torch.randn(8, 16)
    weight[3, 4] = bad
    assert not c.largest_magnitude(weight).isfinite()


def test_damage_is_the_error_of_the_decoded_weight():
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(3))
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    decoded = c.decode_nvfp4(*c.encode_nvfp4(weight, scale), scale)
    expected = (decoded[:, :40] - weight).norm() / weight.norm()
    assert c.measure(weight, decoded).relative_rmse == pytest.approx(float(expected), rel=1e-5)


# The scale search


def brute_force(magnitude, global_scale):
    """All 126 positive codes: the first of the least errors, and the errors, in float32."""
    blocks = magnitude.view(-1, 16).t().contiguous()
    codes = torch.arange(1, 127, dtype=torch.int16).unsqueeze(1).expand(126, blocks.shape[1])
    scales = codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
    scaled = blocks * (1.0 / (scales * global_scale)).unsqueeze(1)
    grid = torch.tensor(c.E2M1_VALUES)
    distance = torch.stack([(scaled - value).abs() for value in grid]).amin(0)
    error = distance * distance
    for half in (8, 4, 2, 1):  # the order in which the search adds
        error = error[:, :half] + error[:, half:]
    error = error.squeeze(1) * scales * scales
    return error.argmin(0) + 1, error


def assert_search_is_brute_force(weight):
    global_scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    magnitude = weight.abs()
    found = c.mse_block_scales(magnitude, global_scale).view(torch.uint8).flatten().long()
    expected, _ = brute_force(magnitude, global_scale)
    zero = magnitude.view(-1, 16).amax(1) == 0
    assert torch.equal(found, expected.masked_fill(zero, 0))


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


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 24), exponent=st.integers(-20, 20))
def test_the_search_finds_what_brute_force_finds(kind, seed, rows, exponent):
    weight = torch.randn(rows, 96, generator=torch.Generator().manual_seed(seed))
    assert_search_is_brute_force(KINDS[kind](weight) * 2.0**exponent)


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("numba")
    return c.compile_kernels()


def as_bytes(tensors):
    return [tensor.view(torch.uint8) for tensor in tensors]


@pytest.mark.parametrize("search", c.SCALE_SEARCHES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 24), exponent=st.integers(-40, 40))
def test_compiled_kernels_keep_every_bit(kernels, kind, search, seed, rows, exponent):  # noqa: PLR0913
    noise = torch.randn(rows, 100, generator=torch.Generator().manual_seed(seed))
    weight = (KINDS[kind](noise) * 2.0**exponent).float()
    scale, block_scales = (
        c.nvfp4_global_scale(c.largest_magnitude(weight)),
        c.SCALE_SEARCHES[search],
    )
    *found, damage = kernels.encode_nvfp4(weight, scale, block_scales)
    expected = c.encode_nvfp4(weight, scale, block_scales)
    assert all(map(torch.equal, as_bytes(found), as_bytes(expected)))
    decoded = c.decode_nvfp4(*expected, torch.ones(()))
    plain = c.measure(weight / scale, decoded)
    assert damage.relative_rmse == pytest.approx(plain.relative_rmse, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_fp8_keeps_every_bit(kernels, kind):
    weight = KINDS[kind](torch.randn(33, 100, generator=torch.Generator().manual_seed(4)))
    for exponent in (-60, 0, 60):
        scaled = (weight * 2.0**exponent).float()
        scale = c.fp8_scale(c.largest_magnitude(scaled))
        found, damage = kernels.encode_fp8(scaled, scale)
        expected = c.encode_fp8(scaled, scale)
        assert all(map(torch.equal, as_bytes([found]), as_bytes([expected])))
        plain = c.measure(scaled / scale, c.decode_fp8(expected, torch.ones(())))
        assert damage.relative_rmse == pytest.approx(plain.relative_rmse, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_kernels_take_16_bit_weights(kernels, dtype):
    weight = torch.randn(40, 70, generator=torch.Generator().manual_seed(6)).to(dtype)
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    *found, _ = kernels.encode_nvfp4(weight, scale, c.mse_block_scales)
    expected = c.encode_nvfp4(weight, scale, c.mse_block_scales)
    assert all(map(torch.equal, as_bytes(found), as_bytes(expected)))


def test_every_position_between_two_e4m3_values_is_searched_right():
    """Largest weights of all sizes from the subnormals up, against a fixed global scale."""
    weight = torch.rand(4096, 16, generator=torch.Generator().manual_seed(9))
    weight *= torch.logspace(-6, 0, 4096).unsqueeze(1) / weight.amax(1, keepdim=True)
    assert_search_is_brute_force(weight)


def test_the_search_is_best_in_exact_arithmetic_too():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(10))
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    found = c.mse_block_scales(weight.abs(), scale)
    blocks = weight.double().view(-1, 16)
    grid = torch.tensor(c.E2M1_VALUES, dtype=torch.float64)
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
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    expected = c.mse_block_scales(weight.abs(), scale).view(torch.uint8)
    found = c.mse_block_scales(weight.abs().cuda(), scale.cuda())
    assert torch.equal(found.view(torch.uint8).cpu(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_same_bytes(dtype):
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(4)).to(dtype)
    scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
    on_cpu = c.encode_nvfp4(weight, scale)
    on_gpu = c.encode_nvfp4(weight.cuda(), scale.cuda())
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(one.view(torch.uint8), other.cpu().view(torch.uint8))
