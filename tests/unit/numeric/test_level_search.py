"""Group scales of W4A8 and W6A8, and row scales of INT8, against trying all of them."""

import pytest
import torch

from nvfp4.numeric.codes import e4m3_value
from nvfp4.numeric.int8 import (
    amax_row_scales,
    encode_int8,
    mse_row_scales,
    quantise_int8,
    sum_by_lanes,
)
from nvfp4.numeric.level_search import (
    ASYMMETRIC_GRID,
    KITCHEN_GRID,
    SIX_BIT_GRID,
    choose_grid,
    encode_levels,
    sample_rows,
    search_group_scales,
)
from nvfp4.numeric.w4a8 import codebook_of, decode_w4a8, encode_w4a8

G = torch.Generator().manual_seed(11)
ROWS = torch.randn(32, 1024, generator=G)
GRIDS = {"asymmetric": ASYMMETRIC_GRID, "kitchen": KITCHEN_GRID, "six bits": SIX_BIT_GRID}


def relative(rows, decoded):
    return float((rows - decoded).norm() / rows.norm())


def every_error(target, grid):
    """Squared errors of groups [b, 16] under all positive scales, and all negative ones: [s, b]."""
    scales = e4m3_value(torch.arange(127, dtype=torch.int16))
    scales = torch.cat([scales, -scales]) if grid.mirrored else scales
    levels = (grid.codebook("cpu") * scales.unsqueeze(1)).round().clamp(-127, 127)
    apart = (target.unsqueeze(-1) - levels[:, None, None]).abs().amin(-1)
    return apart.square().sum(-1)


@pytest.mark.parametrize("name", GRIDS)
def test_few_scales_are_as_good_as_all(name):
    grid = GRIDS[name]
    target = torch.randn(400, 16, generator=G)
    # From the largest groups of a row down to some that few integers are left for.
    target *= torch.logspace(0, 2.1, 400).unsqueeze(1) / target.abs().amax(1, keepdim=True)
    codes, scales, error = search_group_scales(target, grid)
    value = e4m3_value((scales & 127).short()) * torch.where(scales > 127, -1.0, 1.0)
    decoded = grid.codebook("cpu")[codes.long()] * value.unsqueeze(1)
    decoded = decoded.round().clamp(-127, 127)
    torch.testing.assert_close((decoded - target).square().sum(1), error, rtol=1e-5, atol=1e-4)
    least = every_error(target, grid).amin(0)
    assert (error > least * 0.9999 - 1e-4).all()
    assert float(error.sum()) < 1.015 * float(least.sum())
    assert ((scales > 127).any()) == (name == "asymmetric")


def test_groups_of_zeros_and_rows_of_zeros_decode_to_zeros():
    rows = ROWS[:3].clone()
    rows[0], rows[1, :32] = 0, 0
    for bits, grid in ((4, ASYMMETRIC_GRID), (6, SIX_BIT_GRID)):
        packed, scales, row_scales = encode_levels(rows, grid, bits)
        levels = grid.codebook("cpu") if bits == 4 else torch.arange(64.0) - 32
        decoded = decode_w4a8(packed, scales, levels) * row_scales.unsqueeze(1)
        assert (decoded[0] == 0).all()
        assert (decoded[1, :32] == 0).all()
        assert (row_scales > 0).all()
        assert relative(rows, decoded) < 0.07


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.915), (6, 0.98)])
def test_errors_are_less_than_those_of_comfy_kitchen(bits, gain):
    grid = choose_grid(ROWS, bits)
    assert grid is (ASYMMETRIC_GRID if bits == 4 else SIX_BIT_GRID)

    def error(parts, levels):
        packed, scales, row_scales = parts
        return relative(ROWS, decode_w4a8(packed, scales, levels) * row_scales.unsqueeze(1))

    six = torch.arange(64.0) - 32
    theirs = error(encode_w4a8(ROWS, bits), codebook_of(4, "cpu") if bits == 4 else six)
    ours = error(encode_levels(ROWS, grid, bits), grid.codebook("cpu") if bits == 4 else six)
    assert ours < gain * theirs


def test_the_codebook_follows_the_weights():
    """Weights that are comfy_kitchen's levels themselves are best in its codebook."""
    levels = codebook_of(4, "cpu")
    rows = levels[torch.randint(0, 16, (8, 256), generator=G)] * 128
    rows = rows.round().clamp(-127, 127)
    rows[:, ::16] = 126.0
    assert choose_grid(rows, 4) is KITCHEN_GRID
    assert len(sample_rows(torch.zeros(1000, 16))) == 64
    assert torch.equal(sample_rows(ROWS), ROWS)


def test_comfy_kitchen_decodes_negative_group_scales():
    layout = pytest.importorskip("comfy_kitchen.tensor.w4a8_int8")
    packed, scales, row_scales = encode_levels(ROWS, ASYMMETRIC_GRID, 4)
    assert (scales.float() < 0).any()
    levels = ASYMMETRIC_GRID.codebook("cpu")
    decoded = layout.dequantize_w4a8_int8_weight(
        packed, scales, row_scales, codebook=levels, output_dtype=torch.float32
    )
    ours = decode_w4a8(packed, scales, levels) * row_scales.unsqueeze(1)
    torch.testing.assert_close(decoded.norm(), ours.norm())
    products = decoded @ decoded.t()
    torch.testing.assert_close(products, ours @ ours.t(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("columns", [100, 256, 2048])
def test_row_scales_of_int8_are_the_best_of_those_tried(columns):
    rows = torch.randn(64, columns, generator=G)
    rows[0] = 0
    scale = mse_row_scales(rows)

    def errors(scale):
        return (encode_int8(rows, scale).float() * scale - rows).square().sum(1)

    amax = rows.abs().amax(1, keepdim=True)
    tried = torch.stack([errors((amax / largest).clamp(min=1e-30)) for largest in range(120, 141)])
    torch.testing.assert_close(errors(scale), tried.amin(0), rtol=1e-4, atol=0)
    assert errors(scale).sum() < 0.98 * errors(amax_row_scales(rows)).sum()
    codes, given = quantise_int8(rows, 0, mse_row_scales)
    assert torch.equal(given, scale)
    assert (codes[0] == 0).all()
    assert codes.min() < -120
    torch.testing.assert_close(sum_by_lanes(rows), rows.sum(1, keepdim=True), rtol=1e-4, atol=1e-3)
