"""A format of the tests: 8-bit integers with a scale for every row. The file is all it takes."""

from __future__ import annotations

import torch

from nvfp4.formats.base import Format, Parts
from nvfp4.formats.encoding import Encoded, Encoder, Given, encode_rows, with_damage
from nvfp4.model import TensorRef


def encode_toy(rows: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [n, K] int8 and row scales [n, 1] float32, in units of `scale`."""
    values = rows.float() / scale
    row_scale = (values.abs().amax(1, keepdim=True) / 127).clamp(min=2.0**-100)
    return (values / row_scale).round().to(torch.int8), row_scale


def decode_toy(codes: torch.Tensor, row_scale: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return codes.float() * row_scale * scale


class ToyInt8(Format):
    """Weights [N, K] as I8 [N, K], scales F32 [N, 1]."""

    name = title = "TOY8"
    rank = 8
    config = "toy_int8"
    weight_dtype = "I8"
    scale_suffix = "toy_scale"
    weight_bits = activation_bits = 8
    is_adopted = True

    def parts(self, shape: tuple[int, int]) -> Parts:
        return {"weight": (self.weight_dtype, shape), "toy_scale": ("F32", (shape[0], 1))}

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        fits = parts["toy_scale"].shape == (shape[0], 1)
        return "" if fits else f"its scales are {list(parts['toy_scale'].shape)}"

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        encode = with_damage(encode_toy, decode_toy, encoder.dtype)
        return encode_rows(given.weight, torch.ones_like(given.amax), encode, encoder)

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        return {"weight": [*encoded.codes], "toy_scale": [encoded.by_rows[0]]}

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        return [tensors["weight"], tensors["toy_scale"]], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        return decode_toy(*parts_and_scale)

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        return [] if scales["toy_scale"].isfinite().all() else [("bad scale", "toy_scale")]


TOY_INT8 = ToyInt8()
