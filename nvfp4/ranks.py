"""The processes of a torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch

from nvfp4.errors import ConvertError

LONGEST_WAIT = timedelta(hours=12)  # of one rank for another; one that dies is noticed at once


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that `torchrun` started; one alone without it."""

    rank: int = 0
    size: int = 1
    local: int | None = None  # torchrun's number of it on its machine

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks."""
        return self.rank == 0

    def gather(self, value: object = None) -> list:
        """Every rank's value, in order; returns once all ranks have come here."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ConvertError(f"rank {self.rank}: stopped, as another rank did") from error
        return values


# What is asked of a process before it meets others, or where it need not.
ALONE = Ranks()


def read_ranks() -> Ranks:
    """Tell which process this is by the variables that `torchrun` sets; nothing else reads them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Ranks(*(int(os.environ[name]) for name in names))


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other processes of a `torchrun`, if there is one."""
    ranks = read_ranks()
    if ranks.local is None:
        yield ranks
        return
    torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()
