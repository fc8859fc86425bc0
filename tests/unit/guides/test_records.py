"""What a recording says of a layer: headroom, and the blocks that a scale saturates."""

import numpy as np
import pytest
import torch

from nvfp4.dtypes import NVFP4_MAX
from nvfp4.guides.recording import RECORDING_FORMAT
from nvfp4.guides.records import BIN_EDGES, Recorded
from support.recorder import recorder


def histogram_of(blocks):
    return np.histogram(blocks, np.append(BIN_EDGES, np.inf))[0]


def recorded(blocks):
    counts = histogram_of(blocks)
    amax = float(max(blocks))
    return Recorded(amax=amax, channels=16, block_histogram=counts, error=1.0, energy=100.0)


def test_headroom_is_the_margin_unless_small_blocks_would_suffer():
    near = recorded([*np.full(1000, 1.5), 8.0])
    assert near.headroom(2.0) == 16.0
    far = recorded([*np.full(1000, 1e-4), 2.0])
    assert 2.0 < far.headroom(4.0) < 1e-4 * 448 * 64
    beyond = recorded([*np.full(1000, 1e-6), 2.0])
    assert beyond.headroom(4.0) == 2.0  # never less than what was seen


def test_saturated_blocks_are_counted():
    blocks = np.geomspace(1e-3, 10, 50_000)
    row = recorded(blocks.tolist())
    for limit in (0.01, 0.5, 3.0, 9.9):
        expected = float((blocks > limit).mean())
        assert row.saturated(limit / 2688) == pytest.approx(expected, abs=2e-3)
    assert row.saturated(10.001 / 2688) == 0.0


def test_both_sides_mean_the_same_bins():
    assert len(BIN_EDGES) == recorder.BINS
    values = torch.tensor([0.0, 2.0**-24, 1.0, 1.5, 2.0**16, 1e6, 2.0**-25, 448.0])
    assert recorder.histogram(values).tolist() == histogram_of(values.numpy()).tolist()
    assert (recorder.FORMAT, recorder.NVFP4_MAX) == (RECORDING_FORMAT, NVFP4_MAX)
