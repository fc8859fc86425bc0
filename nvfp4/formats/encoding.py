"""Hold what goes into an encoding and what comes out of it, and drive it by rows.

`Given` is the weight, `Encoder` what a format may compute with, `Encoded` the result that
`Format.pack` turns into tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from nvfp4.numeric.compiled import Kernels
from nvfp4.numeric.damage import Damage, damage_unit, measure_damage

# Weights up to this are left to torch's operations, which store the same: where scales reach the
# least that a format has, compiled kernels do not measure what is lost.
LEAST_COMPILED = 2.0**-64


class Given(NamedTuple):
    """Hold a weight that is to be encoded.

    layer: its name, for notes; weight: [N, K] float32, bfloat16 or float16 on the device that
    computes, smoothing applied; amax: its largest magnitude, a finite float32 scalar; source_scale:
    the scale that the source stored this FP8 weight with, None if it was not FP8 or a LoRA changed
    it.
    """

    layer: str
    weight: torch.Tensor
    amax: torch.Tensor
    source_scale: float | None = None


class Encoder(Protocol):
    """State what a format may use to encode a weight; `encode.compute.Compute` has it all.

    dtype: what weights are cast to first (--quant-dtype); search: one of SCALE_SEARCHES; kernels:
    numba's, None where they are not compiled or do not serve this device and dtype; notes: what the
    user is to be told, to append to.
    """

    dtype: torch.dtype
    search: Callable
    kernels: Kernels | None
    notes: list[str]

    def map(self, function: Callable, weight: torch.Tensor, *more: torch.Tensor) -> list:
        """Call the function for every chunk of rows of a weight [N, K] and of what goes with it.

        Returns the results in the order of the rows; chunks may be worked on in several threads.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Hold a weight's codes, its scales, and what quantising cost.

    codes: the stored codes by chunks of rows; by_rows: block scales, whole, [N, ...] each and not
    swizzled; scale: float32 scalar, the global scale or the only one; damage: in plain units.
    """

    codes: tuple[torch.Tensor, ...]
    by_rows: tuple[torch.Tensor, ...] = ()
    scale: torch.Tensor
    damage: Damage


def encode_rows(
    weight: torch.Tensor, scale: torch.Tensor, encode: Callable, encoder: Encoder
) -> Encoded:
    """Encode all rows of a weight [N, K] at one scale, chunk by chunk.

    scale: float32 scalar; encode: (rows [n, K], scale) -> codes, further parts by rows, and Damage
    in units of the scale; encoder: maps it over the chunks. Returns the codes as chunks, the other
    parts whole, and the damage in plain units.
    """
    made = encoder.map(lambda rows: encode(rows, scale), weight)
    codes, *by_rows, damages = zip(*made, strict=True)
    return Encoded(
        codes=codes,
        by_rows=tuple(map(torch.cat, by_rows)),
        scale=scale,
        damage=Damage.total(damages, scale),
    )


def encode_by_rows(
    given: Given, encode: Callable, decode: Callable, encoder: Encoder, compiled: Callable | None
) -> Encoded:
    """Encode a weight whose scales are all those of rows or blocks: that of the layer is 1.

    encode: rows [n, K] -> parts by rows; decode: their inverse, with a scale after them; compiled:
    (rows, scale) -> the same parts and Damage in plain units, None where no kernel serves.
    """
    one = torch.ones_like(given.amax)
    if compiled and given.amax > LEAST_COMPILED:
        return encode_rows(given.weight, one, compiled, encoder)
    unit = damage_unit(given.amax)
    measured = with_damage(
        lambda rows, _: encode(rows),
        lambda *parts_and_one: decode(*parts_and_one[:-1], 1 / unit),
        encoder.dtype,
    )
    return replace(encode_rows(given.weight, unit, measured, encoder), scale=one)


def with_damage(encode: Callable, decode: Callable, dtype: torch.dtype) -> Callable:
    """Make a function for `encode_rows` that encodes and then measures.

    encode: (rows, scale) -> parts by rows; decode: its inverse; dtype: what rows are cast to before
    they are encoded, while the error counts against the rows as they were. Compiled kernels do both
    in one pass instead.
    """

    def encode_and_measure(rows: torch.Tensor, scale: torch.Tensor) -> tuple:
        """Encode rows [n, K] at a scale; return their parts, and the Damage in its units."""
        parts = encode(rows.to(dtype), scale)
        # Measured in units of the scale, as squares of huge or tiny weights leave float32's range.
        return *parts, measure_damage(rows.float() / scale, decode(*parts, torch.ones_like(scale)))

    return encode_and_measure
