"""Sum up X^T X of what linear layers are given, for rounding by statistics.

Layers that are given the same tensor (q, k and v of an attention) share one entry. A file has, for
an input of K channels, L being the first of the layers that are given it:

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

# Rows of X^T X in a strip. The converter reads strips of this height: it is part of the format.
STRIP = 128
# Rows of an input are gathered up to this number before they are multiplied, as each time the sums
# have to be fetched from the device.
ROWS_HELD = 2048
# Rows of an input that go into the file; the converter measures a layer's output error by them.
ROWS_KEPT = 256
# So many rows tell whether two layers are given the same input.
ROWS_COMPARED = 64
# Blocks at each end that "inner blocks" leaves out: the converter's presets keep those 16-bit.
EDGE_BLOCKS = 2
BLOCK = re.compile(r"(.*?(?:blocks|layers))\.(\d+)\.")
LAYERS = ("none", "inner blocks", "all")
PARTS = ("moment_tokens", "first_moment", "second_moment", "second_moment_low", "rows")

Part = tuple[torch.dtype, tuple[int, ...], Callable[[], torch.Tensor]]


def part(tensor: torch.Tensor) -> Part:
    """Wrap a tensor that exists as a Part: dtype, shape, and a function that returns it.

    Other parts are made when they are written, as all of them together would not fit into memory.
    """
    return tensor.dtype, tensor.shape, lambda: tensor


def chosen(names: list[str], layers: str) -> set[str]:
    """Choose layers to record: all, none, or those between the edge blocks.

    `names` are in the model's order; `layers` is one of LAYERS. "inner blocks" leaves out the first
    and last EDGE_BLOCKS blocks, which a conversion usually keeps 16-bit, and all that is in no
    block.
    """
    if layers != "inner blocks":
        return set(names) if layers == "all" else set()
    block_of = {name: found.groups() for name in names if (found := BLOCK.match(name))}
    inner = list(dict.fromkeys(block_of.values()))[EDGE_BLOCKS:-EDGE_BLOCKS]
    return {name for name, block in block_of.items() if block in inner}


def strip_shapes(channels: int) -> list[tuple[int, int]]:
    """List (rows, columns) of the strips of the upper half of a [channels, channels] matrix.

    The lower half is the same by symmetry. A strip is one matrix product; only in its first STRIP
    columns does it have some of the lower half, too.
    """
    return [(min(STRIP, channels - i), channels - i) for i in range(0, channels, STRIP)]


def upper_bits(values: torch.Tensor) -> torch.Tensor:
    """Cut float32 values, rounded to their upper 24 bits, to the first 16 of these, as bfloat16."""
    return ((values.view(torch.int32) + 0x80) >> 16).to(torch.int16).view(torch.bfloat16)


def lower_bits(values: torch.Tensor) -> torch.Tensor:
    """Return the 8 bits that follow those of `upper_bits`, as uint8."""
    return ((values.view(torch.int32) + 0x80) >> 8).to(torch.uint8)


def join_bits(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Make float32 values of `upper_bits` and `lower_bits`; their last 8 bits are zero."""
    bits = upper.view(torch.int16).to(torch.int32) << 16
    return bits.bitwise_or_(lower.to(torch.int32) << 8).view(torch.float32)


class Input:
    """Hold one distinct input: sums, rows that wait to be added, and rows that stay.

    `sums` is float32 [S], the strips of X^T X one after another; `first_moment` float64 [K]; `rows`
    bfloat16 [up to ROWS_KEPT, K]; `held` has sampled rows [t, K] on the CPU.
    """

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
        """Return {name: Part} of all tensors that the file gets for this input."""
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

    @torch.inference_mode()  # tensors made in it, as the sums may be, can be updated only in it
    def flush(self, where: Scratch, generator: torch.Generator) -> None:
        """Add the rows that wait to the sums: X^T X in float32, on the device they came from.

        Does nothing where none wait. Products of a strip are made in `where`, and then fetched and
        added in memory.
        """
        if not self.held:
            return
        held, self.held = torch.cat(self.held), []
        rows = held.to(where.device).float()
        shapes = strip_shapes(rows.shape[1])
        made, fetched = where.tensors(len(self.sums))
        strips = made.split([height * width for height, width in shapes])
        for strip, (height, width) in zip(strips, shapes, strict=True):
            # From the strip's first column on: what is left of the diagonal is another strip's.
            rest = rows[:, -width:]
            torch.mm(rest[:, :height].t(), rest, out=strip.view(height, width))
        if where.device.type == "cuda":
            fetched.copy_(made)
        self.sums += fetched
        self.first_moment += rows.double().sum(0).cpu()
        self.keep(held.bfloat16(), generator)
        self.tokens += len(held)

    def keep(self, rows: torch.Tensor, generator: torch.Generator) -> None:
        """Let new rows take places of kept ones; all rows so far had the same chance to stay.

        `rows` is [t, K]; `generator` makes the choice the same for equal recordings. That is
        reservoir sampling by batches: a kept row is replaced with the new rows' share of all.
        """
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        missing = ROWS_KEPT - len(self.rows)
        self.rows = torch.cat([self.rows, shuffled[:missing]])
        shuffled = shuffled[missing:]
        # `tokens` counts the rows before these, so that the sum is of all rows so far.
        chance = len(shuffled) / (self.tokens + len(rows))
        places = (torch.rand(ROWS_KEPT, generator=generator) < chance).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)][: len(shuffled)]
        self.rows[places] = shuffled[: len(places)]


class Scratch:
    """Hold the memory where products are made before they are added: on the GPU, and pinned in RAM.

    It is used for all inputs in turn and grows to the largest.
    """

    def __init__(self, device: torch.device):
        self.device, self.size = device, 0

    def tensors(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two tensors [size], on the device and pinned in RAM; one and the same on a CPU."""
        if size > self.size:
            self.made = self.fetched = torch.empty(size, device=self.device)
            if self.device.type == "cuda":
                self.fetched = torch.empty(size, pin_memory=True)
            self.size = size
        return self.made[:size], self.fetched[:size]


class SecondMoments:
    """Gather the inputs of layers, each under the name of the first layer that is given it."""

    def __init__(self, widths: dict[str, int]):
        self.widths = widths  # {layer: channels} of those to record
        self.inputs: dict[str, Input] = {}
        self.first_of: dict[str, str] = {}  # {layer: the first one that is given the same}
        self.known: dict[bytes, str] = {}
        self.where = Scratch(torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(0)

    def go_on(self, first_of: dict[str, str], read: Callable[[str], torch.Tensor]) -> None:
        """Take over what a file has, one input after another.

        `first_of` is {layer: first layer with the same input}, as the file's metadata has it;
        `read` returns a tensor of the file by name. Read one by one, no input is in memory in both
        its forms for long.
        """
        self.first_of = first_of
        for first in dict.fromkeys(first_of.values()):
            self.inputs[first] = Input.of_file(lambda name, first=first: read(f"{first}.{name}"))
        seen = sum(given.tokens for given in self.inputs.values())
        self.generator.manual_seed(seen)  # with one seed each prompt would replace the same rows

    def observe(self, name: str, rows: torch.Tensor, picked: torch.Tensor) -> None:
        """Take in one call: all rows [T, K] of a layer's input, and the sampled ones [t, K].

        Rows of an input that was seen under another layer's name are not added again.
        """
        if name not in self.widths:
            return
        first = self.first_of.get(name)
        if first is None:
            first = self.first_of[name] = self.find(name, rows)
        if first != name:  # the first layer's rows stand for this one
            return
        given = self.inputs[name]
        given.held.append(picked.cpu())
        if self.where.device != picked.device:
            self.where = Scratch(picked.device)
        if sum(map(len, given.held)) >= ROWS_HELD:
            given.flush(self.where, self.generator)

    def find(self, name: str, rows: torch.Tensor) -> str:
        """Return the layer that was given the same before, or this one, by the content's hash.

        Identity of objects would not do: a tensor's memory is used again for another input. Up to
        ROWS_COMPARED rows of each are compared.
        """
        some = rows[:: max(1, len(rows) // ROWS_COMPARED)][:ROWS_COMPARED].contiguous().cpu()
        content = some.view(torch.uint8).numpy().tobytes()
        first = self.known.setdefault(hashlib.sha256(content).digest(), name)
        if first == name:
            self.inputs[name] = Input(self.widths[name])
        return first

    def settle(self, absmax: dict[str, torch.Tensor]) -> None:
        """Add all rows that wait, and drop layers that did not always share an input.

        `absmax` is {layer: largest magnitude of each channel [K]}. Where it differs from that of
        the first layer with the same input, the inputs differed on some call: such a layer gets no
        statistics.
        """
        for given in self.inputs.values():
            given.flush(self.where, self.generator)
        for name, first in list(self.first_of.items()):
            if not torch.equal(absmax[name], absmax[first]):
                print(f"NVFP4 recorder: {name} is not given what {first} is; no second moments")
                del self.first_of[name]
                self.widths.pop(name, None)
