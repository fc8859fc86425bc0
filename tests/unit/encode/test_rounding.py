"""Layers of every format rounded by the statistics of their inputs."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from nvfp4.encode.compute import Compute
from nvfp4.encode.layer import quantise, search_scales
from nvfp4.encode.rounding import choose_rounding, round_by_moments
from nvfp4.formats.base import format_titled
from nvfp4.guides.records import Moments
from nvfp4.model import TensorRef
from nvfp4.numeric.rotation import rotate
from nvfp4.plan.records import TensorPlan
from support.activations import correlated, statistics
from support.plans import ALL, plan_of
from support.recorder import recorder

FORMATS = ("NVFP4", "FP8", "INT8", "INT8 not rotated", "W4A8", "W6A8", "MXFP8")


def rounded(title, weight, given):
    """(plain encoding, rounded encoding, the Rounding) of a weight without a bias."""
    ref = TensorRef(
        name="l.weight", dtype="F32", shape=tuple(weight.shape), path=Path(), begin=0, nbytes=1
    )
    plan = TensorPlan(
        ref=ref, precision=format_titled(title), reason="", dtype="F32",
        moments=Moments(recordings=()),
    )  # fmt: skip
    with Compute(torch.device("cpu")) as compute:
        compute.recalled = {plan.moments: given}
        plain = search_scales(plan, weight, compute)
        rounding = choose_rounding(plan, weight, plain, compute)
        best, bias = round_by_moments(plan, weight, plain, compute)
    assert bias is None
    return plain, best, rounding


def decoded(title, encoded):
    return format_titled(title).decode(torch.cat(encoded.codes), *encoded.by_rows, encoded.scale)


@pytest.mark.parametrize("columns", [256, 512])
@pytest.mark.parametrize("title", FORMATS)
def test_output_errors_fall_and_are_measured(title, columns):
    rows = correlated(columns)
    weight = torch.randn(48, columns, generator=torch.Generator().manual_seed(1))
    weight *= torch.logspace(-2, 1, 48).unsqueeze(1)  # rows of sizes that differ
    plain, best, _ = rounded(title, weight, statistics(rows))
    before, after = (
        float(((weight - decoded(title, one)) @ rows.t()).norm() / (weight @ rows.t()).norm())
        for one in (plain, best)
    )
    assert best.damage.output_before == pytest.approx(before, rel=1e-3)
    assert best.damage.output_after == pytest.approx(after, rel=1e-3)
    assert after < 0.7 * before
    own = float((weight - decoded(title, best)).norm() / weight.norm())
    assert best.damage.relative_rmse == pytest.approx(own, rel=1e-4)
    shapes = [part.shape for part in best.by_rows]
    assert shapes == [part.shape for part in plain.by_rows]


@pytest.mark.parametrize("size", [1e-22, 1e21])
@pytest.mark.parametrize("title", FORMATS)
def test_errors_of_weights_of_any_size_are_measured(title, size):
    rows = correlated(256).double()
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(1)) * size
    plain, best, _ = rounded(title, weight, statistics(rows.float()))
    exact = weight.double()
    before, after = (
        float(((exact - decoded(title, one)) @ rows.t()).norm() / (exact @ rows.t()).norm())
        for one in (plain, best)
    )
    assert best.damage.output_before == pytest.approx(before, rel=1e-2)
    assert best.damage.output_after == pytest.approx(after, rel=1e-2)


def test_what_gains_nothing_stays_as_the_plain_search_left_it():
    # Of channels that do not correlate, no error can make up for another.
    given = statistics(torch.eye(256) * math.sqrt(256))
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(2))
    plain, best, _ = rounded("INT8 not rotated", weight, given)
    assert best.codes is plain.codes
    assert best.damage.output_after == best.damage.output_before


def candidates(grid, wanted):
    """Levels and decoded values of each step that a block of one row may have."""
    for code in grid.candidates(wanted.unsqueeze(1), torch.zeros(1, 1, dtype=torch.int16))[:, 0]:
        step = grid.values(code.view(1, 1))[0, 0]
        if hasattr(grid.levels, "levels"):
            yield (grid.levels.levels * step).round().clamp(-127, 127)
        else:
            limit = int(grid.levels.largest)
            yield torch.arange(-limit, limit + 1.0) * step


def by_loops(values, feedback, grid):
    """The first pass over one row: column after column, all levels and all steps tried."""
    residual = torch.zeros(len(values), dtype=torch.float64)
    lower, pivots = feedback.lower.double(), feedback.pivots.double()
    for begin in range(0, len(values), 16):
        block, best = range(begin, begin + 16), (math.inf, None)
        fed = [lower[at, :begin] @ residual[:begin] for at in block]
        wanted = torch.stack([values[at] + more for at, more in zip(block, fed, strict=True)])
        for levels in candidates(grid, wanted.float()):
            cost, made = 0.0, residual.clone()
            for at in block:
                want = values[at] + lower[at, :at] @ made[:at]
                nearest = levels[(levels - want).abs().argmin()]
                made[at] = values[at] - nearest
                cost += float(pivots[at] * (nearest - want) ** 2)
            best = min(best, (cost, made), key=lambda one: one[0])
        residual = best[1]
    return residual


@pytest.mark.parametrize("title", ["INT8", "W4A8", "W6A8"])
def test_the_first_pass_is_that_of_plain_loops(title):
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(4))
    plain, _, rounding = rounded(title, weight, statistics(correlated(256)))
    values, _ = rounding.in_units(weight, *plain.by_rows)
    form, feedback = format_titled(title), rounding.feedback
    expected = rotate(weight, form.rotated) / form.row_units(*plain.by_rows)
    assert torch.equal(values, expected)
    found = rounding.rounder.round_rows(values, feedback, rounding.grid, 0).residual
    for row in range(3):
        slow = by_loops(values[row][feedback.order].double(), feedback, rounding.grid)
        same = torch.isclose(found[:, row].double(), slow, atol=1e-3)
        assert same.float().mean() > 0.99  # ties may fall otherwise, and what follows them


@pytest.fixture
def by_means(tmp_path):
    """Plans of three layers by a recording without second moments, and the layers' inputs."""
    generator = torch.Generator().manual_seed(6)
    inputs = {
        "blocks.0.steady": correlated(256) / 2 + 1.5 * torch.randn(256, generator=generator),
        "blocks.0.centred": correlated(256) - 0.3,
        "blocks.0.unbiased": correlated(256) / 2 + 3,
    }
    made = recorder.Recording(tmp_path, "stats")
    made.begin({}, 4096, {})
    tensors = {}
    for layer, rows in inputs.items():
        made.observe(layer, rows)
        tensors[f"{layer}.weight"] = torch.randn(32, 256, generator=generator)
        tensors[f"{layer}.bias"] = torch.randn(32, generator=generator)
    made.save()
    del tensors["blocks.0.unbiased.bias"]
    options = ("--activation-stats", str(tmp_path / "stats.safetensors"), *ALL)
    plans, notes = plan_of(tmp_path, tensors, *options)
    return tensors, inputs, plans, notes


@pytest.mark.parametrize("title", FORMATS)
def test_where_means_alone_are_known_and_dominant_the_bias_makes_up(by_means, title):
    tensors, inputs, plans, _ = by_means
    layer, form = "blocks.0.steady", format_titled(title)
    plan = dataclasses.replace(plans[f"{layer}.weight"], precision=form)
    weight, bias, rows = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"], inputs[layer]
    with Compute(torch.device("cpu")) as compute:
        stored, damage = quantise(plan, weight, compute)
        plain = search_scales(dataclasses.replace(plan, mean=None, bias=None), weight, compute)
    assert damage.output_before is None
    residual = weight - decoded(title, plain)
    (moved,) = stored[f"{layer}.bias"]
    expected = bias + residual.double() @ rows.double().mean(0)
    torch.testing.assert_close(moved, expected.float(), rtol=1e-5, atol=1e-5)
    before = rows @ residual.t()
    assert float((before + bias - moved).norm()) < 0.75 * float(before.norm())


def test_means_that_are_a_small_part_of_the_input_move_no_bias(by_means):
    _, _, plans, notes = by_means
    assert {name: plan.mean is not None for name, plan in plans.items()} == {
        "blocks.0.steady.weight": True,
        "blocks.0.centred.weight": False,
        "blocks.0.unbiased.weight": False,  # without a bias there is nothing to move
        "blocks.0.centred.bias": False,
        "blocks.0.steady.bias": False,
    }
    assert any("biases of 1 of these make up for the mean error" in note for note in notes)
