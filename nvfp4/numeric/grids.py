"""Say what rounding by statistics rounds to: the levels of a format, and the steps they multiply.

`feedback` rounds the columns of a weight to a Grid, whatever the format; each format has one as a
row. Levels are a FloatGrid, or a Codebook whose
multiples are rounded to integers. Compiled kernels (`kernels`, `gpu_kernel`) do the same as their
methods `under`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from nvfp4.dtypes import BLOCK_SIZE
from nvfp4.numeric.codes import (
    FLOAT32_EXPONENT,
    INTEGERS,
    LAST_E4M3_CODE,
    FloatGrid,
    Nearest,
    e4m3_code_of_at_least,
    e4m3_value,
)
from nvfp4.numeric.mxfp8 import LAST_E8M0_CODE


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Hold levels of a weight that is decoded to INT8: level * step, rounded to an integer.

    levels: [L] float32, ascending, on the device that rounds. A level decodes to
    clamp(rint(level * step), -127, 127), which the scale of its row multiplies (W4A8, W6A8).
    """

    levels: torch.Tensor

    @property
    def largest(self) -> torch.Tensor:
        """Return the largest level as a scalar tensor, for the least step that clips nothing."""
        return self.levels.abs().amax()

    @property
    def kind(self) -> int:
        """Return how many levels there are, which is all that code for a codebook depends on."""
        return len(self.levels)

    def under(self, steps: torch.Tensor) -> Nearest:
        """Make a function that rounds to the nearest decoded level under each step.

        steps: [m, n] float32. Of the two levels that enclose a value before they are rounded to
        integers, the upper one is taken where its integer is strictly nearer, as comfy_kitchen
        breaks ties.
        """
        inverse, last = 1 / steps, len(self.levels) - 1

        def nearest(want: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            upper = torch.bucketize(want * inverse, self.levels)
            levels = [self.levels[at.clamp(0, last)] for at in (upper - 1, upper)]
            limit = INTEGERS.largest
            low, high = ((level * steps).round_().clamp_(-limit, limit) for level in levels)
            is_upper = (high - want).abs_() < (want - low).abs_()
            torch.where(is_upper, levels[1], levels[0], out=out)
            return torch.where(is_upper, high, low)

        return nearest


class Steps(NamedTuple):
    """Say which steps a format has, by codes, and which of them are tried for a group.

    value: codes int16 -> float32; at_least: float32 numbers -> the codes of the smallest steps that
    are not below them; offsets: from the code of the smallest step that clips nothing to the first
    and last one that are tried; last: the largest code, the least being 1; mirrored: offsets of
    negative steps, as codes below 0, with which the largest value is on the lower side of the
    levels; none without it.
    """

    value: Callable[[torch.Tensor], torch.Tensor]
    at_least: Callable[[torch.Tensor], torch.Tensor]
    offsets: tuple[int, int]
    last: int
    mirrored: tuple[int, int] | None = None


def signed_e4m3_value(code: torch.Tensor) -> torch.Tensor:
    """Decode E4M3 codes held as int16, negative ones below 0, to float32 of the same shape."""
    return torch.copysign(e4m3_value(code.abs()), code.float())


def e8m0_code_of_at_least(value: torch.Tensor) -> torch.Tensor:
    """Find the smallest code of E8M0 whose power of two is not below a number; int16.

    value: float32 >= 0 of any shape. Code 0 is left out, as 2**-127 is subnormal in float32.
    """
    bits = value.view(torch.int32)
    # The exponent's field counts as E8M0 does; any bit of the mantissa makes it one more.
    above = (bits & ~FLOAT32_EXPONENT) != 0
    return ((bits >> 23) + above).clamp_(1, LAST_E8M0_CODE).to(torch.int16)


def e8m0_value(code: torch.Tensor) -> torch.Tensor:
    """Decode E8M0 codes from 1 to 254 that are held as int16, to float32 of the same shape."""
    return (code.to(torch.int32) << 23).view(torch.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """Describe what a format rounds to: levels, and the steps that multiply them.

    levels: in units of the step; group: columns of a row that share a step; steps: how it is
    chosen, None where it is 1 throughout, since rows are in units of their scale already.
    """

    levels: FloatGrid | Codebook
    group: int = 1
    steps: Steps | None = None

    @property
    def block(self) -> int:
        """Return how many columns are rounded as one block: whole groups, and 16 at least."""
        return max(self.group, BLOCK_SIZE)

    @property
    def kind(self) -> tuple:
        """Return what CUDA graphs of different grids differ in; the levels of a codebook do not."""
        return self.levels.kind, self.group, self.steps

    def candidates(self, wanted: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """List the codes of steps to try for a block of each row: int16 [m, n], ascending.

        wanted: [c, n] float32, what is to be rounded; codes: [1, n], which come back where steps
        are fixed.
        """
        if self.steps is None:
            return codes
        least = self.steps.at_least(wanted.abs().amax(0) / self.levels.largest)

        def around(first: int, last: int) -> torch.Tensor:
            offsets = torch.arange(first, last + 1, dtype=torch.int16, device=wanted.device)
            return (least + offsets.unsqueeze(1)).clamp_(1, self.steps.last)

        tried = around(*self.steps.offsets)
        if self.steps.mirrored is None:
            return tried
        # Levels reach further up: a positive step where the largest value is positive.
        tried = torch.cat([tried, -around(*self.steps.mirrored)])
        return torch.where(-wanted.amin(0) > wanted.amax(0), -tried, tried)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode codes of steps, int16 of any shape, to float32; fixed steps are 1."""
        if self.steps is None:
            return torch.ones_like(codes, dtype=torch.float32)
        return self.steps.value(codes)

    def with_codebook(self, *levels: torch.Tensor) -> Grid:
        """Return the grid with the levels [L] of a layer's own codebook; without one, as it is."""
        return replace(self, levels=Codebook(*levels)) if levels else self

    @property
    def codebook(self) -> tuple[torch.Tensor, ...]:
        """List the tensor of a codebook, or nothing: a CUDA graph has a copy of its own."""
        return (self.levels.levels,) if isinstance(self.levels, Codebook) else ()

    def copy(self) -> Grid:
        """Copy the grid, with a codebook in memory of its own."""
        return self.with_codebook(*(levels.clone() for levels in self.codebook))


# A codebook counts as not symmetric where its first and last level sum up to more than this: those
# of comfy_kitchen's sum up to 0.0001, those of ASYMMETRIC_CODEBOOK to 0.13. Steps of either sign
# only cost time where mirrored levels are nearly the same.
LEAST_ASYMMETRY = 0.05
# Offsets of E4M3 block scales around the smallest that clips nothing, as `scale_search` has them.
NVFP4_STEPS = Steps(e4m3_value, e4m3_code_of_at_least, (-3, 6), LAST_E4M3_CODE)
# The levels of these are so evenly spaced that larger steps than the next one only lose.
GROUP_STEPS = NVFP4_STEPS._replace(offsets=(-2, 1))
# Levels of which one side reaches further than the other have steps of either sign.
SIGNED_STEPS = GROUP_STEPS._replace(value=signed_e4m3_value, offsets=(-1, 2), mirrored=(1, 2))
# Powers of two: one more would lose a bit of small values only, one less clips the largest.
E8M0_STEPS = Steps(e8m0_value, e8m0_code_of_at_least, (-1, 0), LAST_E8M0_CODE)


def steps_for(levels: torch.Tensor) -> Steps:
    """Choose the steps for a codebook [L]: of either sign where it is not symmetric."""
    return SIGNED_STEPS if levels[0] + levels[-1] > LEAST_ASYMMETRY else GROUP_STEPS
