"""Threads: torch's, which are put aside, and those that work on chunks of rows instead."""

import pytest
import torch

from nvfp4.encode.compute import CPU_THREADS, Compute, single_threaded


def test_torchs_threads_are_put_aside_for_a_while():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with single_threaded() as threads:
            assert (threads, torch.get_num_threads()) == (3, 1)
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyboardInterrupt), single_threaded():
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_compute_leaves_torchs_threads_alone():
    before = torch.get_num_threads()
    with Compute(torch.device("cpu"), threads=99) as compute:
        assert len(compute.map(torch.clone, torch.zeros(4, 8), rows=1)) == 4
        assert torch.get_num_threads() == before
    assert compute.pool._max_workers == CPU_THREADS


def test_chunks_of_rows_are_worked_on_by_threads_without_threads():
    with single_threaded() as threads, Compute(torch.device("cpu"), threads=threads) as compute:
        found = compute.map(lambda _: torch.get_num_threads(), torch.zeros(8, 8), rows=1)
    assert found == [1] * 8
