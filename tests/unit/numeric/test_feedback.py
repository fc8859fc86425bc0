"""Rounding by the statistics of a layer's input."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4.dtypes import E2M1_VALUES
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.int8 import INT8
from nvfp4.formats.mxfp8 import MXFP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.recording import count_different
from nvfp4.numeric.codes import (
    E2M1,
    E4M3,
    decode_fp8,
    decode_nvfp4,
    encode_fp8,
    encode_nvfp4,
    fp8_scale,
    nvfp4_global_scale,
    round_to_e2m1,
    round_to_grid,
)
from nvfp4.numeric.compiled import compile_kernels, compile_rounder
from nvfp4.numeric.feedback import Rounder, make_feedback, output_error, unrounded
from nvfp4.numeric.grids import Codebook, Grid, steps_for
from nvfp4.numeric.level_search import ASYMMETRIC_GRID
from nvfp4.numeric.scale_search import mse_block_scales
from support.activations import correlated, statistics


def test_rounding_to_a_grid_is_that_of_the_encoders():
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 3
    values[:6] = torch.tensor([0.25, 0.75, 2.5, 5.0, -5.0, 9.0])  # ties, and one beyond
    levels = round_to_grid(values, E2M1, torch.empty_like(values))
    codes = round_to_e2m1(values.abs())
    assert torch.equal(levels.abs(), torch.tensor(E2M1_VALUES)[codes.long()])
    wide = values * torch.logspace(-8, 4, len(values))
    levels = round_to_grid(wide, E4M3, torch.empty_like(wide))
    assert torch.equal(levels, wide.clamp(-448, 448).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("centred", [True, False])
def test_a_feedback_is_a_factor_of_the_second_moment(centred):
    rows = correlated(96)
    feedback = make_feedback(statistics(rows), 0.01, 16, centred=centred)
    second = (rows - rows.mean(0) * centred).double()
    second = second.t() @ second / len(rows)
    second.diagonal().add_(0.01 * second.diagonal().mean())
    expected = second[feedback.order][:, feedback.order]
    lower = feedback.lower.double()
    assert torch.allclose(lower.t() * feedback.pivots.double() @ lower, expected, atol=1e-5)
    assert torch.allclose(
        feedback.full * feedback.diagonal.unsqueeze(1), expected.float(), atol=1e-5
    )
    assert torch.equal(torch.tril(feedback.lower), feedback.lower)
    energy = expected.diagonal().view(-1, 16).sum(1)
    assert (energy.diff() <= 0).all()  # the largest blocks first


def test_the_output_error_is_that_of_the_rows():
    rows, residual = correlated(64), torch.randn(24, 64)
    feedback = make_feedback(statistics(rows), 0.1, 16, centred=False)
    found = output_error(residual.t()[feedback.order], feedback)
    assert found == pytest.approx(float((rows @ residual.t()).square().sum()) / len(rows), rel=1e-4)


@pytest.mark.parametrize("form", [NVFP4, FP8])
def test_rounding_by_statistics_lowers_the_output_error(form):
    rows, weight = correlated(256), torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    amax = weight.abs().max()
    unit = nvfp4_global_scale(amax) if form is NVFP4 else fp8_scale(amax)
    feedback = make_feedback(statistics(rows), 0.01, form.grid.group, centred=False)
    rounded = Rounder().round_rows(weight / unit, feedback, form.grid)
    stored = form.round_to_levels(rounded, feedback, ())
    decode, plain = decode_nvfp4, encode_nvfp4(weight, unit, mse_block_scales)
    if form is FP8:
        decode, plain = decode_fp8, [encode_fp8(weight, unit)]
    before, after = (
        float((rows @ (weight - decode(*parts, unit)).t()).square().sum())
        for parts in (plain, stored)
    )
    assert after < 0.4 * before
    residual = (weight - decode(*stored, unit)) / unit
    expected = rounded.residual.t()
    assert torch.allclose(residual[:, feedback.order], expected, rtol=1e-4, atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([16, 48, 160]))
def test_further_passes_never_raise_the_error(seed, passes, columns):
    rows = correlated(columns, 300, seed % 1000)
    feedback = make_feedback(statistics(rows), 0.01, 16, centred=False)
    weight = torch.randn(columns, 8, generator=torch.Generator().manual_seed(seed)) * 200
    rounded = unrounded(weight, NVFP4.grid)
    Rounder().feed_back(weight, rounded, feedback, NVFP4.grid, first=True)
    errors = []
    for _ in range(passes + 1):
        squares = float(rounded.residual.square().sum())
        errors.append(output_error(rounded.residual, feedback) + feedback.added * squares)
        Rounder().feed_back(weight, rounded, feedback, NVFP4.grid, first=False)
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors))


def test_inputs_that_are_linearly_dependent_are_damped():
    rows = correlated(64)[:10]  # fewer rows than channels
    assert make_feedback(statistics(rows), 0.001, 16, centred=False)


def test_an_input_of_zeros_has_no_feedback():
    assert make_feedback(statistics(torch.zeros(10, 64)), 0.1, 16, centred=False) is None


def test_few_different_rows_are_damped_more():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(300, 64, generator=generator)
    picked = words[torch.randint(300, (256,), generator=generator)]
    assert count_different(picked, 10**6) == pytest.approx(300, rel=0.4)
    padded = torch.cat([picked[:128], torch.zeros(128, 64)])
    assert count_different(padded, 10**6) == pytest.approx(300, rel=0.6)
    assert count_different(torch.randn(256, 64, generator=generator), 10**6) == 10**6
    assert count_different(torch.zeros(256, 64), 10**6) == 1
    given = statistics(correlated(64))
    for independent, expected in ((1e6, [0.002, 0.02]), (6400, [0.02]), (640, [0.1]), (32, [1.0])):
        assert dataclasses.replace(given, independent=independent).dampings == expected


def with_levels(*levels):
    """A grid of a codebook with the steps that suit it."""
    book = torch.tensor(levels, dtype=torch.float32)
    return Grid(Codebook(book), 16, steps_for(book))


GRIDS = {
    "NVFP4": NVFP4.grid,
    "INT8": INT8.grid,
    "MXFP8": MXFP8.grid,
    "W4A8": with_levels(*ASYMMETRIC_GRID.levels),
    "W6A8": with_levels(*range(-31, 32)),
}


def in_units(name):
    """Rows to round: up to 300 * 4, or in units of INT8's steps."""
    rows = torch.randn(300, 256, generator=torch.Generator().manual_seed(2)) * 300
    return rows if name in ("NVFP4", "MXFP8") else rows / rows.abs().amax(1, keepdim=True) * 127


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_rounds_as_a_cpu_does(compiled, name):
    on_gpu, grid = Rounder(compile_rounder()) if compiled else Rounder(), GRIDS[name]
    here, weight = statistics(correlated(256)), in_units(name)
    moved = {name: getattr(here, name).cuda() for name in ("mean", "second", "rows")}
    there = dataclasses.replace(here, **moved)
    errors = []
    for stats, rows in ((here, weight), (there, weight.cuda()), (there, weight.cuda())):
        feedback = make_feedback(stats, 0.01, grid.group, centred=True)
        rounder = on_gpu if rows.is_cuda else Rounder()
        moved = grid.with_codebook(*(levels.to(rows.device) for levels in grid.codebook))
        rounded = rounder.round_rows(rows, feedback, moved)
        errors.append(output_error(rounded.residual, feedback))
    assert errors[1:] == [pytest.approx(errors[0], rel=1e-3)] * 2
    assert errors[1] == errors[2]  # the graph that is replayed


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_compiled_rounding_is_that_of_torch(name):
    pytest.importorskip("numba")
    weight, grid = in_units(name), GRIDS[name]
    feedback = make_feedback(statistics(correlated(256)), 0.01, grid.group, centred=True)
    plain = Rounder().round_rows(weight, feedback, grid)
    rounder = Rounder(compile_kernels().round_columns)
    compiled = rounder.round_rows(weight, feedback, grid)
    assert (plain.levels != compiled.levels).float().mean() < 0.01
    errors = [output_error(one.residual, feedback) for one in (plain, compiled)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
