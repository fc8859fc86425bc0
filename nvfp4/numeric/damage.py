"""Error of decoded weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

WRONG_FROM = 0.3  # relative RMSE no honest NVFP4 or FP8 weight has: normal ones have 0.09, 0.03
ROUNDED_WRONG_FROM = 0.7  # ... nor one that was rounded by statistics; misread ones have 1 or more
ROUNDED_TO = 0.005  # ... nor a rounded one: bfloat16 has 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Squared error of a decoded tensor and squared size of the original, summed."""

    error: float
    energy: float
    # Relative RMSE of a layer's output by its input's statistics, if there are any: after the plain
    # search, as it is stored, and with 4-bit activations.
    output_before: float | None = None
    output_after: float | None = None
    output_w4a4: float | None = None

    @property
    def relative_rmse(self) -> float:
        if not self.energy:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.energy)

    @classmethod
    def total(cls, damages: Iterable[Damage], scale: torch.Tensor) -> Damage:
        """The sum of what was measured in units of `scale`."""
        error, energy, unit = 0.0, 0.0, float(scale) ** 2
        for damage in damages:
            error, energy = error + damage.error, energy + damage.energy
        return cls(error=error * unit, energy=energy * unit)

    @classmethod
    def noted(cls, values: dict) -> Damage:
        """From a journal; raises TypeError or ValueError for what no `asdict` gave."""
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
        """Signal to quantisation noise; infinite where nothing was lost, or nothing is right."""
        ratio = self.relative_rmse
        return -20 * math.log10(ratio) if ratio else math.inf


def measure(original: torch.Tensor, decoded: torch.Tensor) -> Damage:
    """What quantising cost; `decoded` may carry padding columns and is overwritten."""
    original = original.float()
    difference = decoded[:, : original.shape[1]].sub_(original).flatten()
    original = original.flatten()
    return Damage(
        error=float(torch.dot(difference, difference)), energy=float(torch.dot(original, original))
    )


def squared(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
