"""Which of a torchrun's processes this is."""

import pytest
import torch

from nvfp4.encode.compute import pick_device
from nvfp4.ranks import ALONE, Ranks, join_ranks, read_ranks


@pytest.fixture
def torchrun(monkeypatch):
    """The variables that torchrun gives the second of two processes on a second machine."""
    given = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
def test_torchrun_names_a_process_by_variables():
    assert read_ranks() == Ranks(rank=3, size=4, local=1)
    assert not read_ranks().is_first


def test_variables_of_others_make_no_rank(monkeypatch):
    """RANK alone is set by cluster schedulers, too."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert read_ranks() == ALONE
    assert read_ranks().is_first
    with join_ranks() as ranks:
        assert ranks.gather("value") == ["value"]


def test_the_ranks_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [pick_device("cuda", Ranks(rank, 8, rank % 4)).index for rank in range(8)]
    assert devices == [0, 1, 0, 1, 0, 1, 0, 1]
    assert pick_device("cuda:1", Ranks(0, 8, 0)).index == 1
    assert pick_device("cuda").index is None
