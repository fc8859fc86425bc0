"""What rounding by statistics rounds to: levels and steps, against trying all of them."""

import pytest
import torch

from nvfp4.numeric.codes import INTEGERS, e4m3_value
from nvfp4.numeric.grids import (
    E8M0_STEPS,
    GROUP_STEPS,
    NVFP4_STEPS,
    SIGNED_STEPS,
    Codebook,
    Grid,
    steps_for,
)
from nvfp4.numeric.level_search import ASYMMETRIC_GRID
from nvfp4.numeric.scale_search import candidate_codes
from nvfp4.numeric.w4a8 import codebook_of

G = torch.Generator().manual_seed(3)


def test_integers_are_rounded_and_saturate():
    want = torch.randn(4096, generator=G) * 60
    want[:6] = torch.tensor([0.5, 1.5, -2.5, 126.5, 127.4, -900.0])  # ties, and beyond
    out = torch.empty_like(want)
    decoded = INTEGERS.under(torch.ones_like(want))(want, out)
    assert torch.equal(out, want.round().clamp(-127, 127))
    assert torch.equal(decoded, out)


@pytest.mark.parametrize("bits", [4, 6])
def test_of_a_codebook_the_nearest_decoded_level_is_taken(bits):
    levels = codebook_of(bits, torch.device("cpu"))
    steps = e4m3_value(torch.randint(1, 127, (3, 500), generator=G).short()) / (
        1 if bits < 6 else 8
    )
    want, out = torch.randn(3, 500, generator=G) * 50, torch.empty(3, 500)
    decoded = Codebook(levels).under(steps)(want, out)
    every = (levels.view(-1, 1, 1) * steps).round().clamp(-127, 127)
    assert torch.equal((want - decoded).abs(), (want - every).abs().amin(0))
    assert torch.equal((out * steps).round().clamp(-127, 127), decoded)
    assert torch.isin(out, levels).all()


def test_powers_of_two_are_the_least_that_clip_nothing():
    values = torch.randn(2000, generator=G).abs() * torch.logspace(-30, 30, 2000)
    values[:3] = torch.tensor([1.0, 2.0**-126, 0.0])
    codes = E8M0_STEPS.at_least(values)
    assert (E8M0_STEPS.value(codes) >= values).all()
    above = codes > 1
    assert (E8M0_STEPS.value(codes - 1) < values)[above].all()
    assert float(E8M0_STEPS.value(codes[:1])) == 1.0


def test_steps_are_tried_around_the_least_that_clips_nothing():
    wanted, codes = torch.randn(16, 50, generator=G), torch.zeros(1, 50, dtype=torch.int16)
    assert Grid(INTEGERS).candidates(wanted, codes) is codes
    levels = Codebook(codebook_of(6, torch.device("cpu")))
    tried = Grid(levels, 16, GROUP_STEPS).candidates(wanted, codes)
    first, last = GROUP_STEPS.offsets
    least = e4m3_value(tried[-first])
    assert tried.shape == (last - first + 1, 50)
    assert (least * 31 >= wanted.abs().amax(0)).all()
    assert (e4m3_value(tried[-first - 1]) * 31 < wanted.abs().amax(0)).all()
    of_nvfp4 = Grid(INTEGERS._replace(largest=6.0), 16, NVFP4_STEPS).candidates(wanted, codes)
    assert torch.equal(of_nvfp4, candidate_codes(NVFP4_STEPS.at_least(wanted.abs().amax(0) / 6.0)))


def test_a_codebook_that_reaches_further_up_has_steps_of_either_sign():
    levels = Codebook(ASYMMETRIC_GRID.codebook("cpu"))
    assert steps_for(codebook_of(4, torch.device("cpu"))) is GROUP_STEPS
    assert steps_for(levels.levels) is SIGNED_STEPS
    wanted, codes = torch.randn(16, 50, generator=G) * 40, torch.zeros(1, 50, dtype=torch.int16)
    grid = Grid(levels, 16, SIGNED_STEPS)
    tried = grid.candidates(wanted, codes)
    values = grid.values(tried)
    assert torch.equal(values.sign(), tried.sign().float())
    # The first ones put the largest value where the levels reach further.
    largest = wanted.gather(0, wanted.abs().argmax(0, keepdim=True))
    first, last = SIGNED_STEPS.offsets
    same = last - first + 1
    assert (values[:same].sign() == largest.sign()).all()
    assert (values[same:].sign() == -largest.sign()).all()
    assert (values[-first].abs() >= largest.abs()).all()
    out = torch.empty_like(values)
    decoded = levels.under(values)(wanted[:1].expand_as(values), out)
    every = (levels.levels.view(-1, 1, 1) * values).round().clamp(-127, 127)
    assert torch.equal((wanted[:1] - decoded).abs(), (wanted[:1] - every).abs().amin(0))
