"""Kernels compiled by numba: the bytes of the plain ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4.encode.compute import Compute
from nvfp4.formats.base import format_titled
from nvfp4.formats.encoding import Given
from nvfp4.numeric.codes import (
    decode_fp8,
    decode_nvfp4,
    encode_fp8,
    encode_nvfp4,
    fp8_scale,
    largest_magnitude,
    nvfp4_global_scale,
)
from nvfp4.numeric.compiled import compile_kernels
from nvfp4.numeric.damage import measure_damage
from nvfp4.numeric.int8 import amax_row_scales, mse_row_scales, quantise_int8
from nvfp4.numeric.level_search import GRIDS, encode_levels
from nvfp4.numeric.mxfp8 import quantise_mxfp8
from nvfp4.numeric.rotation import WRITTEN_GROUP, rotate
from nvfp4.numeric.scale_search import SCALE_SEARCHES, mse_block_scales
from support.weights import KINDS, as_bytes

pytestmark = pytest.mark.slow

WITH_KERNELS = ["NVFP4", "FP8", "INT8", "INT8 not rotated", "W4A8", "W6A8", "MXFP8"]


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("numba")
    return compile_kernels()


@pytest.mark.parametrize("search", SCALE_SEARCHES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 24), exponent=st.integers(-40, 40))
def test_compiled_kernels_keep_every_bit(kernels, kind, search, seed, rows, exponent):  # noqa: PLR0913
    noise = torch.randn(rows, 100, generator=torch.Generator().manual_seed(seed))
    weight = (KINDS[kind](noise) * 2.0**exponent).float()
    scale, block_scales = (nvfp4_global_scale(largest_magnitude(weight)), SCALE_SEARCHES[search])
    *found, damage = kernels.encode_nvfp4(weight, scale, block_scales)
    expected = encode_nvfp4(weight, scale, block_scales)
    assert all(map(torch.equal, as_bytes(found), as_bytes(expected)))
    decoded = decode_nvfp4(*expected, torch.ones(()))
    plain = measure_damage(weight / scale, decoded)
    assert damage.relative_rmse == pytest.approx(plain.relative_rmse, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_fp8_keeps_every_bit(kernels, kind):
    weight = KINDS[kind](torch.randn(33, 100, generator=torch.Generator().manual_seed(4)))
    for exponent in (-60, 0, 60):
        scaled = (weight * 2.0**exponent).float()
        scale = fp8_scale(largest_magnitude(scaled))
        found, damage = kernels.encode_fp8(scaled, scale)
        expected = encode_fp8(scaled, scale)
        assert all(map(torch.equal, as_bytes([found]), as_bytes([expected])))
        plain = measure_damage(scaled / scale, decode_fp8(expected, torch.ones(())))
        assert damage.relative_rmse == pytest.approx(plain.relative_rmse, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    exponent=st.integers(-100, 100),
    columns=st.sampled_from([256, 2304, 100, 5]),
)
def test_compiled_8_bit_formats_keep_every_bit(kernels, kind, seed, exponent, columns):
    noise = torch.randn(9, columns, generator=torch.Generator().manual_seed(seed))
    weight = (KINDS[kind](noise) * 2.0**exponent).float().clamp(-3e38, 3e38)
    weight[-1] *= 0.0
    cases = [(weight, quantise_mxfp8(weight), kernels.encode_mxfp8(weight, None))]
    for group in (0, WRITTEN_GROUP)[: 1 + (columns % WRITTEN_GROUP == 0)]:
        values = rotate(weight, group) if group else weight
        for search in (amax_row_scales, mse_row_scales):
            made = kernels.encode_int8(weight, None, rotated=group > 0, row_scales=search)
            cases.append((values, quantise_int8(weight, group, search), made))
    for values, expected, (*found, damage) in cases:
        assert all(map(torch.equal, as_bytes(found), as_bytes(expected)))
        codes, scale = (part.double() for part in expected)
        decoded = codes.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)
        plain = relative_error(values, decoded.flatten(1)[:, :columns])
        assert damage.relative_rmse == pytest.approx(plain, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 100))
def test_compiled_level_searches_keep_every_bit(kernels, kind, seed, exponent):
    noise = torch.randn(9, 768, generator=torch.Generator().manual_seed(seed))
    weight = (KINDS[kind](noise) * 2.0**exponent).float().clamp(-1e35, 1e35)
    weight[-1] *= 0.0
    weight[-2, 256:] = 0.0
    for bits, grids in GRIDS.items():
        for grid in grids:
            *found, damage = kernels.encode_levels(weight, grid)
            expected = encode_levels(rotate(weight, WRITTEN_GROUP), grid, bits)
            assert all(map(torch.equal, as_bytes(found), as_bytes(expected)))
            energy = float(weight.double().square().sum())
            assert damage.energy == pytest.approx(energy, rel=1e-4)


@pytest.mark.parametrize("title", WITH_KERNELS)
def test_formats_store_the_same_with_kernels(kernels, title):
    weight = torch.randn(300, 512, generator=torch.Generator().manual_seed(7)).bfloat16()
    form, stored = format_titled(title), []
    for used in (None, kernels):
        with Compute(torch.device("cpu"), search=mse_block_scales) as compute:
            compute.kernels = used
            encoded = form.encode(Given("layer", weight, largest_magnitude(weight)), compute)
        packed = form.pack(encoded, tuple(weight.shape))
        parts = [torch.cat([*map(torch.atleast_1d, rows)]) for rows in packed.values()]
        stored.append((as_bytes(parts), encoded.damage.relative_rmse))
    (plain, error), (found, other) = stored
    assert all(map(torch.equal, plain, found))
    assert other == pytest.approx(error, rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("title", WITH_KERNELS)
def test_a_gpu_stores_what_a_cpu_stores(title):
    weight = torch.randn(600, 2048, generator=torch.Generator().manual_seed(8)).bfloat16()
    weight[:8] *= torch.logspace(-20, 0, 8).unsqueeze(1)
    weight[9], weight[10, :512] = 0.0, -0.0
    form, stored = format_titled(title), []
    for device in ("cpu", "cuda"):
        moved = weight.to(device)
        with Compute(moved.device, search=mse_block_scales) as compute:
            encoded = form.encode(Given("layer", moved, largest_magnitude(moved)), compute)
        parts = (torch.cat(encoded.codes), *encoded.by_rows, encoded.scale.reshape(1))
        stored.append(as_bytes([part.cpu().contiguous() for part in parts]))
    assert all(map(torch.equal, *stored))


def relative_error(values, decoded):
    return float((decoded - values.double()).norm() / values.double().norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_kernels_take_16_bit_weights(kernels, dtype):
    weight = torch.randn(40, 70, generator=torch.Generator().manual_seed(6)).to(dtype)
    scale = nvfp4_global_scale(largest_magnitude(weight))
    *found, _ = kernels.encode_nvfp4(weight, scale, mse_block_scales)
    expected = encode_nvfp4(weight, scale, mse_block_scales)
    assert all(map(torch.equal, as_bytes(found), as_bytes(expected)))
