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


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is the one that speaks, among those of a `torchrun`."""
    return not under_torchrun() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other processes of a `torchrun`, if there is one."""
    if not under_torchrun():
        yield Ranks()
        return
    torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
