"""Measure how far decoded weights are from their originals.

A Damage holds squared sums, so those of rows or of layers can be added up; relative RMSE and SQNR
derive from them. Encoders return one, the journal keeps one for each tensor, and the report and
--verify print them. The limits from which --verify calls a layer wrong stand here, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nvfp4.numeric.codes import FLOAT32_EXPONENT

# --verify takes a layer for damaged or misread from this relative RMSE on: weights that are
# quantised to the nearest value have about 0.09 in NVFP4 and 0.03 in FP8.
WRONG_FROM = 0.3
# Rounding by statistics enlarges the error of the weight to lessen that of the output, so that
# layers of such a file have a higher limit; misread layers have 1 or more.
ROUNDED_WRONG_FROM = 0.7
# A tensor that was only cast may have this relative RMSE: rounding to bfloat16 gives 0.002.
ROUNDED_TO = 0.005
# The largest unit that damage is measured in; its reciprocal, the least one, is normal as well.
LARGEST_UNIT = 2.0**126


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Record the squared error of a decoded tensor and the squared size of its original.

    error: the sum of (decoded - original)**2; energy: the sum of original**2, in the same units.
    The three output figures are relative RMSEs, None where a layer was not rounded by statistics;
    `output_before` and `output_after` are given together or not at all.
    """

    error: float
    energy: float
    # Relative RMSE of a layer's output, if there are statistics of its input: by the plain search,
    # by what is stored, and by what is stored where activations are 4-bit, too.
    output_before: float | None = None
    output_after: float | None = None
    output_w4a4: float | None = None

    @property
    def relative_rmse(self) -> float:
        """Return sqrt(error / energy), 0 where nothing is lost.

        An original of zeros that does not decode to zeros gives infinity.
        """
        if not self.energy:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.energy)

    @classmethod
    def total(cls, damages: Iterable[Damage], scale: torch.Tensor) -> Damage:
        """Add up damages that were measured in units of a scale, and bring them to plain units.

        damages: those of chunks of rows; scale: a float32 scalar, the unit. Sums are float64, in
        the order given. Output figures are not added: they are of a whole layer.
        """
        # Python's floats are float64, which holds the square of any float32 scale.
        error, energy, unit = 0.0, 0.0, float(scale) ** 2
        for damage in damages:
            error, energy = error + damage.error, energy + damage.energy
        return cls(error=error * unit, energy=energy * unit)

    @classmethod
    def noted(cls, values: dict) -> Damage:
        """Read a damage back from a journal's line.

        values: the fields as `dataclasses.asdict` gave them, which a file may have damaged. Raises
        TypeError for unknown or missing fields and ValueError for what is no finite number >= 0, or
        for one of the two output errors without the other.
        """
        found = cls(**values)
        error, energy, *outputs = dataclasses.astuple(found)
        given = [error, energy, *(value for value in outputs if value is not None)]
        if not all(isinstance(value, float) and 0 <= value < math.inf for value in given):
            raise ValueError("no squared sums or errors")
        if (found.output_before is None) != (found.output_after is None):
            raise ValueError("one error of an output alone")
        return found

    @property
    def sqnr_db(self) -> float:
        """Return the signal-to-quantisation-noise ratio in dB, -20 * log10(relative RMSE).

        Infinite where nothing was lost, -infinite where an original of zeros decodes to something
        else.
        """
        ratio = self.relative_rmse
        return -20 * math.log10(ratio) if ratio else math.inf


def measure_damage(original: torch.Tensor, decoded: torch.Tensor) -> Damage:
    """Measure the damage of decoded rows against their original.

    original: [n, K] floats; decoded: [n, >= K] float32 in the same units, which is overwritten.
    Columns beyond K are padding and do not count. Sums are float32 dot products: callers hand in
    chunks of rows in units of a scale, so that squares stay in range.
    """
    original = original.float()
    difference = decoded[:, : original.shape[1]].sub_(original).flatten()
    original = original.flatten()
    return Damage(
        error=float(torch.dot(difference, difference)), energy=float(torch.dot(original, original))
    )


def damage_unit(amax: torch.Tensor) -> torch.Tensor:
    """Return the power of two to measure a tensor's damage in, a float32 scalar.

    amax: its largest magnitude, a float32 scalar >= 0. The unit is the largest power of two that is
    not above it, so that dividing by it is exact and squares stay in float32's range; 1 for zeros.
    """
    power = (amax.view(torch.int32) & FLOAT32_EXPONENT).view(torch.float32)
    return torch.where(amax > 0, power.clamp(1 / LARGEST_UNIT, LARGEST_UNIT), 1.0)


def squared(values: torch.Tensor) -> float:
    """Sum the squares of a tensor of any shape in float64.

    A float32 sum over millions of elements would lose the small ones.
    """
    return float(values.square().sum(dtype=torch.float64))
