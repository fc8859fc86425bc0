"""X^T X of what linear layers are given, of each distinct input once: what rounding needs to know.

For an input of K channels, L being the first of the layers that are given it:

  L.moment_tokens      I64  []      rows of X: the sampled ones of all calls
  L.first_moment       F64  [K]     their sum
  L.second_moment      BF16 [S]     the upper half of X^T X, float32 cut to its upper 16 bits ...
  L.second_moment_low  U8   [S]     ... and the 8 bits below
  L.rows               BF16 [r, K]  some of the rows, each with the same chance

The upper half lies in strips: strip i holds rows [i, i + STRIP) of X^T X from column i on, and
S = sum(min(STRIP, K - i) * (K - i)). All but the rows add up over calls, prompts and files. In
memory a strip is float32: 4 * S bytes for an input, where the file has 3 * S.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial

import torch

STRIP = 128
ROWS_HELD = 2048  # of an input, until they are multiplied: sums are fetched from the device then
ROWS_KEPT = 256
ROWS_COMPARED = 64  # that tell whether two layers are given the same
EDGE_BLOCKS = 2
BLOCK = re.compile(r"(.*?(?:blocks|layers))\.(\d+)\.")
LAYERS = ("none", "inner blocks", "all")
PARTS = ("moment_tokens", "first_moment", "second_moment", "second_moment_low", "rows")

Part = tuple[torch.dtype, tuple[int, ...], Callable[[], torch.Tensor]]


def part(tensor: torch.Tensor) -> Part:
    """A tensor that is there, beside those that are made when they are written."""
    return tensor.dtype, tensor.shape, lambda: tensor


def chosen(names: list[str], layers: str) -> set[str]:
    """Of these layers, in the model's order: all, none, or those between the edge blocks."""
    if layers != "inner blocks":
        return set(names) if layers == "all" else set()
    block_of = {name: found.groups() for name in names if (found := BLOCK.match(name))}
    inner = list(dict.fromkeys(block_of.values()))[EDGE_BLOCKS:-EDGE_BLOCKS]
    return {name for name, block in block_of.items() if block in inner}


def strip_shapes(channels: int) -> list[tuple[int, int]]:
    return [(min(STRIP, channels - i), channels - i) for i in range(0, channels, STRIP)]


def upper_bits(values: torch.Tensor) -> torch.Tensor:
    """The first 16 bits of float32 values, rounded to 24, as bfloat16."""
    return ((values.view(torch.int32) + 0x80) >> 16).to(torch.int16).view(torch.bfloat16)


def lower_bits(values: torch.Tensor) -> torch.Tensor:
    """The 8 bits after those."""
    return ((values.view(torch.int32) + 0x80) >> 8).to(torch.uint8)


def join_bits(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    bits = upper.view(torch.int16).to(torch.int32) << 16
    return bits.bitwise_or_(lower.to(torch.int32) << 8).view(torch.float32)


class Input:
    """One distinct input: its sums, rows that wait to be added, and some that stay."""

    def __init__(self, channels: int):
        self.sums = torch.zeros(sum(rows * columns for rows, columns in strip_shapes(channels)))
        self.first_moment = torch.zeros(channels, dtype=torch.float64)
        self.rows = torch.empty(0, channels, dtype=torch.bfloat16)
        self.held: list[torch.Tensor] = []
        self.tokens = 0

    @classmethod
    def of_file(cls, read: Callable[[str], torch.Tensor]) -> Input:
        """Go on from a file's tensors, which `read` returns by the names above without the L."""
        given = cls.__new__(cls)
        given.sums = join_bits(read("second_moment"), read("second_moment_low"))
        given.first_moment, given.rows = read("first_moment"), read("rows")
        given.tokens, given.held = int(read("moment_tokens")), []
        return given

    def parts(self) -> dict[str, Part]:
        ready = {
            "moment_tokens": torch.tensor(self.tokens),
            "first_moment": self.first_moment,
            "rows": self.rows,
        }
        bits = {
            "second_moment": (torch.bfloat16, self.sums.shape, partial(upper_bits, self.sums)),
            "second_moment_low": (torch.uint8, self.sums.shape, partial(lower_bits, self.sums)),
        }
        return {name: part(tensor) for name, tensor in ready.items()} | bits

    @torch.inference_mode()  # where what is updated may have been made
    def flush(self, where: Scratch, generator: torch.Generator) -> None:
        """Add the rows that wait: X^T X in float32, on the device where they came from."""
        if not self.held:
            return
        held, self.held = torch.cat(self.held), []
        rows = held.to(where.device).float()
        shapes = strip_shapes(rows.shape[1])
        made, fetched = where.tensors(len(self.sums))
        strips = made.split([height * width for height, width in shapes])
        for strip, (height, width) in zip(strips, shapes, strict=True):
            rest = rows[:, -width:]
            torch.mm(rest[:, :height].t(), rest, out=strip.view(height, width))
        if where.device.type == "cuda":
            fetched.copy_(made)
        self.sums += fetched
        self.first_moment += rows.double().sum(0).cpu()
        self.keep(held.bfloat16(), generator)
        self.tokens += len(held)

    def keep(self, rows: torch.Tensor, generator: torch.Generator) -> None:
        """Let new rows take the places of kept ones, so that all have had the same chance."""
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        missing = ROWS_KEPT - len(self.rows)
        self.rows = torch.cat([self.rows, shuffled[:missing]])
        shuffled = shuffled[missing:]
        chance = len(shuffled) / (self.tokens + len(rows))
        places = (torch.rand(ROWS_KEPT, generator=generator) < chance).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)][: len(shuffled)]
        self.rows[places] = shuffled[: len(places)]


class Scratch:
    """Where products are made before they are added up: on a GPU and, pinned, in memory."""

    def __init__(self, device: torch.device):
        self.device, self.size = device, 0

    def tensors(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [size]; one and the same on a CPU."""
        if size > self.size:
            self.made = self.fetched = torch.empty(size, device=self.device)
            if self.device.type == "cuda":
                self.fetched = torch.empty(size, pin_memory=True)
            self.size = size
        return self.made[:size], self.fetched[:size]


class SecondMoments:
    """The inputs of layers, each under the first layer that is given it."""

    def __init__(self, widths: dict[str, int]):
        self.widths = widths  # {layer: channels} of those to record
        self.inputs: dict[str, Input] = {}
        self.first_of: dict[str, str] = {}  # {layer: the first one that is given the same}
        self.known: dict[bytes, str] = {}
        self.where = Scratch(torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(0)

    def go_on(self, first_of: dict[str, str], read: Callable[[str], torch.Tensor]) -> None:
        """Take over what a file has, one input after the other; `read` returns a tensor of it."""
        self.first_of = first_of
        for first in dict.fromkeys(first_of.values()):
            self.inputs[first] = Input.of_file(lambda name, first=first: read(f"{first}.{name}"))
        seen = sum(given.tokens for given in self.inputs.values())
        self.generator.manual_seed(seen)  # or each prompt would replace the same rows

    def observe(self, name: str, rows: torch.Tensor, picked: torch.Tensor) -> None:
        """One call: all rows [T, K] of a layer's input, and the sampled ones [t, K]."""
        if name not in self.widths:
            return
        first = self.first_of.get(name)
        if first is None:
            first = self.first_of[name] = self.find(name, rows)
        if first != name:
            return
        given = self.inputs[name]
        given.held.append(picked.cpu())
        if self.where.device != picked.device:
            self.where = Scratch(picked.device)
        if sum(map(len, given.held)) >= ROWS_HELD:
            given.flush(self.where, self.generator)

    def find(self, name: str, rows: torch.Tensor) -> str:
        """The layer that was given the same before, by content: objects are used again."""
        some = rows[:: max(1, len(rows) // ROWS_COMPARED)][:ROWS_COMPARED].contiguous().cpu()
        content = some.view(torch.uint8).numpy().tobytes()
        first = self.known.setdefault(hashlib.sha256(content).digest(), name)
        if first == name:
            self.inputs[name] = Input(self.widths[name])
        return first

    def settle(self, absmax: dict[str, torch.Tensor]) -> None:
        """Add all that waits. A layer that was not always given the same has no statistics."""
        for given in self.inputs.values():
            given.flush(self.where, self.generator)
        for name, first in list(self.first_of.items()):
            if not torch.equal(absmax[name], absmax[first]):
                print(f"NVFP4 recorder: {name} is not given what {first} is; no second moments")
                del self.first_of[name]
                self.widths.pop(name, None)
