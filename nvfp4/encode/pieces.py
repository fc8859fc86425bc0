"""What is read at once, and read ahead."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from nvfp4.layout import stored_bytes
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.plan.records import TensorPlan
from nvfp4.ranks import Ranks
from nvfp4.read.tensors import changed, fill
from nvfp4.stages import Observe, unobserved

SMALL_PIECE, MOST_AHEAD = 1 << 20, 32  # pieces read into no buffer of their own, and how many
PIECE_BYTES = 32 << 20  # tensors that are only cast or copied are read in pieces of this size


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is read and worked on at once: bytes [begin, end) of a planned tensor."""

    plan: TensorPlan
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def share_of(plans: list[TensorPlan], ranks: Ranks) -> list[TensorPlan]:
    """A rank's tensors, in source order: the costliest are dealt first, to whom has least.

    Biases that go along with their layers are not among them.
    """
    along = {plan.bias.ref.name for plan in plans if plan.bias}
    plans = [plan for plan in plans if plan.ref.name not in along]
    loads, mine = [0] * ranks.size, set()
    costs = {
        plan.ref.name: plan.ref.nbytes
        + stored_bytes(plan)
        + plan.precision.encoding_cost * math.prod(plan.ref.shape)
        for plan in plans
    }
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += costs[name]
        if rank == ranks.rank:
            mine.add(name)
    return [plan for plan in plans if plan.ref.name in mine]


def pieces_of(plan: TensorPlan) -> Iterator[Piece]:
    """A layer to be quantised whole, as its scale depends on all of it; others bit by bit.

    What a LoRA is merged into is read whole, too.
    """
    whole = plan.is_quantised or plan.ref.patches
    size = plan.ref.nbytes if whole else PIECE_BYTES
    for begin in range(0, plan.ref.nbytes, max(size, 1)):
        yield Piece(plan=plan, begin=begin, end=min(begin + size, plan.ref.nbytes))


def read_piece(piece: Piece, buffer: torch.Tensor) -> torch.Tensor:
    """Fill the buffer with a piece's bytes and return them, typed where torch has to know."""
    ref, size = piece.plan.ref, piece.nbytes
    fill(ref, piece.begin, memoryview(buffer.numpy())[:size])
    data = buffer[:size]
    if ref.is_changed:
        data = changed(ref, data.view(TORCH_DTYPES[ref.dtype]))
    elif piece.plan.dtype != ref.dtype or piece.plan.is_quantised:
        data = data.view(TORCH_DTYPES[ref.dtype])
    return data.view(ref.shape) if piece.plan.is_quantised else data


def read_ahead(
    pieces: Iterable[Piece], buffers: int, *, pinned: bool = False, observe: Observe = unobserved
) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Read pieces in order into reused buffers; all but one are filled while the caller works.

    Small pieces take none, or a bias between two weights would keep the second from being read
    while the first is worked on. A yielded tensor is valid until the next one is asked for.
    """

    def read(piece: Piece, buffer: torch.Tensor) -> torch.Tensor:
        with observe("read"):
            return read_piece(piece, buffer)

    pieces = deque(pieces)
    size = max((piece.nbytes for piece in pieces), default=0)
    free = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(buffers)]
    waiting = deque()
    with ThreadPoolExecutor(1) as reader:
        while pieces or waiting:
            while pieces and len(waiting) < MOST_AHEAD:
                small = pieces[0].nbytes <= SMALL_PIECE
                if not small and not free:
                    break
                piece = pieces.popleft()
                buffer = torch.empty(SMALL_PIECE, dtype=torch.uint8) if small else free.pop()
                waiting.append((piece, buffer, reader.submit(read, piece, buffer)))
            piece, buffer, data = waiting.popleft()
            yield piece, data.result()
            if buffer.numel() > SMALL_PIECE:
                free.append(buffer)
