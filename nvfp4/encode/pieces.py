"""Split tensors into pieces, and read them ahead of the work.

A piece is a whole layer where it is quantised, or rows of it where each is encoded by itself, and
PIECE_BYTES of a tensor that is only cast or copied. One thread reads into a few reused buffers
while others encode and write, so that memory is bounded by the largest piece. `tensors_of_rank`
deals tensors out to the ranks of a torchrun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from nvfp4.layout import bytes_in_output
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.plan.records import TensorPlan
from nvfp4.progress import GLANCE, tell_watcher
from nvfp4.ranks import Ranks
from nvfp4.read.tensors import changed, fill
from nvfp4.stages import Observe, unobserved
from nvfp4.virtual import Read, reading_ahead

# Pieces up to this many bytes take none of the reused buffers; at most this many pieces are read
# ahead.
SMALL_PIECE, MOST_AHEAD = 1 << 20, 32
# Tensors that are only cast or copied are read in pieces of this size, whatever their own is.
PIECE_BYTES = 32 << 20
# Layers whose rows are encoded one by one are read in pieces of up to this many weights, 128 MiB in
# 16 bits: more than most layers have, and a tenth of the embeddings of text encoders.
PIECE_WEIGHTS = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Name what is read and worked on at once: bytes [begin, end) of a planned tensor."""

    plan: TensorPlan
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Return its size in the source, in bytes."""
        return self.end - self.begin

    @property
    def part(self) -> TensorPlan:
        """Return the plan of a piece of whole rows, as if they were all of the tensor."""
        ref = self.plan.ref
        if self.nbytes == ref.nbytes:
            return self.plan
        shape = (self.nbytes * ref.shape[0] // ref.nbytes, *ref.shape[1:])
        begin = ref.begin + self.begin
        rows = dataclasses.replace(ref, shape=shape, begin=begin, nbytes=self.nbytes)
        return dataclasses.replace(self.plan, ref=rows)


def tensors_of_rank(plans: list[TensorPlan], ranks: Ranks) -> list[TensorPlan]:
    """Choose a rank's tensors, in source order.

    The costliest are dealt first, each to the rank that has least so far; the cost is bytes read,
    bytes written and the format's encoding cost. Biases that go along with their layers are not
    among them. Every rank gets the same answer without a word between them.
    """
    along = {plan.bias.ref.name for plan in plans if plan.bias}
    plans = [plan for plan in plans if plan.ref.name not in along]
    loads, mine = [0] * ranks.size, set()
    costs = {
        plan.ref.name: plan.ref.nbytes
        + bytes_in_output(plan)
        + plan.precision.encoding_cost * math.prod(plan.ref.shape)
        for plan in plans
    }
    # Every rank deals out all tensors the same way, names deciding ties, and keeps its own.
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += costs[name]
        if rank == ranks.rank:
            mine.add(name)
    return [plan for plan in plans if plan.ref.name in mine]


def pieces_of(plan: TensorPlan) -> Iterator[Piece]:
    """Split a tensor into the pieces it is read in.

    A layer that is quantised is one piece, because its scale depends on all of it, or pieces of up
    to PIECE_WEIGHTS where `goes_by_rows`; a tensor that LoRAs are merged into is one. Other tensors
    come in pieces of up to PIECE_BYTES. Where rows belong together, a piece has one at least.
    """
    ref, by_rows = plan.ref, goes_by_rows(plan)
    size = ref.nbytes if plan.is_quantised or ref.patches else PIECE_BYTES
    if by_rows:
        size = ref.nbytes * PIECE_WEIGHTS // math.prod(ref.shape)
    if by_rows or (ref.coding and ref.coding.parts):
        # Scales by rows or blocks belong to whole rows.
        row = max(1, ref.nbytes // ref.shape[0])
        size = max(1, size // row) * row
    # An empty tensor has no piece: there is nothing to read or to write.
    for begin in range(0, ref.nbytes, max(size, 1)):
        yield Piece(plan=plan, begin=begin, end=min(begin + size, ref.nbytes))


def goes_by_rows(plan: TensorPlan) -> bool:
    """Tell whether rows of a layer are quantised without regard to the others.

    That is by the format's scales, and where nothing else is of the whole layer: statistics of its
    input, a bias that goes along, LoRAs, or scales of the source by rows.
    """
    ref, given = plan.ref, (plan.moments, plan.mean, plan.bias)
    if not plan.precision.encodes_rows or ref.patches or any(x is not None for x in given):
        return False
    return ref.coding is None or (ref.coding.scale is not None and not plan.keeps_codes)


def read_piece(piece: Piece, buffer: torch.Tensor) -> torch.Tensor:
    """Fill a buffer with a piece's bytes and return them as the caller needs them.

    buffer: uint8, at least as large as the piece. Returns a view of it, or float32 where FP8 is
    decoded or LoRAs are merged: [n, K] for rows of a quantised layer, flat floats for what is to be
    cast, flat bytes for what is copied. Raises ConvertError where the file cannot be read, or has
    changed.
    """
    ref, size = piece.plan.ref, piece.nbytes
    fill(ref, piece.begin, memoryview(buffer.numpy())[:size])
    # Tensors that are copied as bytes may have dtypes that TORCH_DTYPES does not list.
    data = buffer[:size]
    if ref.is_changed:
        first = piece.begin * ref.shape[0] // ref.nbytes if ref.shape else 0
        data = changed(ref, data.view(TORCH_DTYPES[ref.dtype]), first)
    elif piece.plan.dtype != ref.dtype or piece.plan.is_quantised:
        data = data.view(TORCH_DTYPES[ref.dtype])
    return data.view(-1, *ref.shape[1:]) if piece.plan.is_quantised else data


def reads_of(piece: Piece) -> list[Read]:
    """List what is read for a piece, in the order of files: its bytes, scales, LoRAs, its bias."""
    ref, bias = piece.plan.ref, piece.plan.bias
    beside = [*ref.coding.parts.values()] if ref.coding and not piece.begin else []
    beside += [part for patch in ref.patches for part in patch.parts.values()]
    beside += [bias.ref] if bias and not bias.ref.is_changed else []
    reads = [Read(other.path, other.begin, other.nbytes) for other in beside]
    reads.append(Read(ref.path, ref.begin + piece.begin, piece.nbytes))
    return sorted(reads, key=lambda read: (read.path != ref.path, str(read.path), read.begin))


@contextlib.contextmanager
def ended(reader: ThreadPoolExecutor) -> Iterator[None]:
    """Let a reader begin nothing more once the `with` block has ended, also by an error."""
    try:
        yield
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def awaited(data: Future) -> torch.Tensor:
    """Wait for what another thread reads, and let a person interrupt or cancel it meanwhile.

    Raises what reading raised there.
    """
    while not data.done():
        wait([data], timeout=GLANCE)
        tell_watcher()
    return data.result()


def read_ahead(
    pieces: Iterable[Piece], buffers: int, *, pinned: bool = False, observe: Observe = unobserved
) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Read pieces in order into reused buffers, while the caller works on one.

    buffers: how many there are, one with the caller and the others being filled; pinned: in memory
    that a GPU copies from faster; observe: told of each "read". Small pieces take no buffer, or a
    bias between two weights would keep the second from being read while the first is worked on.
    Yields (piece, its data as `read_piece` returns it); the data is valid until the next is asked
    for.
    """

    def read(piece: Piece, buffer: torch.Tensor) -> torch.Tensor:
        """Read a piece in the reader's thread, and let an observer time it."""
        with observe("read"):
            return read_piece(piece, buffer)

    # All buffers are as large as the largest piece; pinned memory copies to a GPU faster.
    pieces = deque(pieces)
    reads = [read for piece in pieces for read in reads_of(piece)]
    size = max((piece.nbytes for piece in pieces), default=0)
    free = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(buffers)]
    waiting = deque()
    with ThreadPoolExecutor(1) as reader, ended(reader), reading_ahead(reads):
        while pieces or waiting:
            while pieces and len(waiting) < MOST_AHEAD:
                small = pieces[0].nbytes <= SMALL_PIECE
                if not small and not free:
                    break
                piece = pieces.popleft()
                buffer = torch.empty(SMALL_PIECE, dtype=torch.uint8) if small else free.pop()
                waiting.append((piece, buffer, reader.submit(read, piece, buffer)))
            piece, buffer, data = waiting.popleft()
            yield piece, awaited(data)
            # The caller is done with this buffer now; those of small pieces are dropped.
            if buffer.numel() > SMALL_PIECE:
                free.append(buffer)
