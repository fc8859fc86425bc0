"""Processes of a torchrun: which one this is, and how they meet.

Several processes, called ranks, may share one conversion: each encodes a part of the layers and
writes them into the same files. They exchange plans, errors and figures as pickled Python objects
over gloo, which needs no GPU. Without torchrun there is one rank, ALONE, and nothing is exchanged.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch

from nvfp4.errors import ConvertError

# One rank may wait for another for hours, where layers take unequal time. A rank that dies closes
# its connections, and is noticed at once without any timeout.
LONGEST_WAIT = timedelta(hours=12)
# Numbers for the meetings of the ranks: one for each conversion.
MEETINGS = itertools.count()


@dataclass(frozen=True, slots=True)
class Ranks:
    """Tell which process this is among those that `torchrun` started.

    rank: its number among all processes, 0 for one that runs alone.
    size: how many processes there are, on all machines.
    local: its number on its own machine, by which it picks a GPU; None without torchrun.
    """

    rank: int = 0
    size: int = 1
    local: int | None = None

    @property
    def is_first(self) -> bool:
        """Tell whether this process is the one that prints, and that names the finished files."""
        return self.rank == 0

    def gather(self, value: object = None) -> list:
        """Exchange a value with all ranks, waiting until each has come here.

        value: anything that can be pickled; without one, the call just waits for the others.
        Returns every rank's value in the order of their numbers. Raises ConvertError where another
        rank has ended, or LONGEST_WAIT is over. All ranks have to call it equally often.
        """
        if self.size == 1:
            return [value]
        values = [None] * self.size
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ConvertError(f"rank {self.rank}: stopped, as another rank did") from error
        return values


# The one process of a conversion that was started without torchrun.
ALONE = Ranks()


def read_ranks() -> Ranks:
    """Tell which process this is by the environment variables that `torchrun` sets.

    Nothing else in the package reads them. Returns ALONE if TORCHELASTIC_RUN_ID is not set: other
    launchers set RANK, too, for purposes of their own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Ranks(*(int(os.environ[name]) for name in names))


@cache
def meeting_place() -> torch.distributed.Store:
    """Connect to what all processes of a torchrun write their addresses into."""
    store, _, _ = next(torch.distributed.rendezvous("env://", timeout=LONGEST_WAIT))
    return store


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other processes of a `torchrun` for the length of the `with` block.

    Yields this process's Ranks. The process group is taken down at the end, after an error too, so
    that the others, which may be waiting in `gather`, learn of it. All ranks have to join equally
    often. Without torchrun this does nothing.
    """
    ranks = read_ranks()
    if ranks.local is None:
        yield ranks
        return
    # At the same place they would find the addresses of a meeting that is over, and wait for ever.
    place = torch.distributed.PrefixStore(f"meeting {next(MEETINGS)}", meeting_place())
    found = {"rank": ranks.rank, "world_size": ranks.size, "timeout": LONGEST_WAIT}
    torch.distributed.init_process_group("gloo", store=place, **found)
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()
