"""Second moments of a layer's input, as the recorder writes them and the converter reads them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nvfp4.guides.recording import load_statistics, read_recording, read_recordings, strip_shapes
from support.recorder import recorder, second_moments

pytestmark = pytest.mark.slow


class Blocks(torch.nn.Module):
    """Six blocks; all are given one context beside what the block before returns."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.o = (torch.nn.Linear(144, 144) for _ in range(3))
            self.context = torch.nn.Linear(64, 144)

        def forward(self, x, context):
            return self.o(torch.tanh(self.q(x)) + self.k(x) * self.context(context))

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(self.Block() for _ in range(6))

    def forward(self, x, context):
        for block in self.blocks:
            x = block(x, context)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Blocks()


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(50, 144, generator=generator) + 0.5, torch.randn(50, 64, generator=generator))
        for _ in range(count)
    ]


def record(path, model, calls, **options):
    recording = recorder.Recording(path.parent, path.stem)
    with recording.watching(model, "", 4096, **options):
        for call in calls:
            with torch.inference_mode():
                model(*call)
    return read_recording(path)


def exact(model, calls, layer):
    """The rows that a layer was given."""
    rows = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, x: rows.append(x[0]))
    with torch.inference_mode():
        for call in calls:
            model(*call)
    hook.remove()
    return torch.cat(rows).double()


def test_moments_are_those_of_all_rows(tmp_path, model):
    calls = batches(60)  # more rows than are held
    found = record(tmp_path / "m.safetensors", model, calls, second_moments="all")
    for layer in ("blocks.0.q", "blocks.3.o", "blocks.5.context"):
        rows = exact(model, calls, layer)
        stats = load_statistics(found[layer].moments, torch.device("cpu"))
        assert torch.allclose(stats.mean.double(), rows.mean(0), atol=1e-6)
        expected = rows.t() @ rows / len(rows)
        assert torch.allclose(stats.second.double(), expected, rtol=2**-16, atol=1e-6)
        assert torch.equal(stats.second, stats.second.t())
        assert stats.rows.shape == (256, rows.shape[1])
        near = torch.cdist(stats.rows.double(), rows).amin(1)
        assert float(near.max()) < 2**-8 * float(rows.norm(dim=1).max())  # rows, as bfloat16
        assert abs(float(stats.rows.mean() - rows.mean())) < 0.1


def test_layers_that_are_given_the_same_share_one(tmp_path, model):
    path = tmp_path / "m.safetensors"
    record(path, model, batches(2), second_moments="all")
    with safe_open(path, "pt") as file:
        shared = json.loads(file.metadata()["inputs"])
    keys = load_file(path)
    stored = {key.rpartition(".")[0] for key in keys if key.endswith(".second_moment")}
    assert {shared[f"blocks.{i}.context"] for i in range(6)} == {"blocks.0.context"}
    assert all(shared[f"blocks.{i}.k"] == f"blocks.{i}.q" for i in range(6))
    assert stored == set(shared.values())
    assert len(stored) == 6 + 6 + 1


def test_a_layer_that_only_began_with_the_same_input_has_none(tmp_path, capsys):
    first, second = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    both = torch.nn.ModuleDict({"a": first, "b": second})
    recording = recorder.Recording(tmp_path, "m")
    with recording.watching(both, second_moments="all"):
        for scale in (1, 2):
            first(torch.ones(4, 32))
            second(torch.ones(4, 32) * scale)
    found = read_recording(tmp_path / "m.safetensors")
    assert (found["a"].moments is None, found["b"].moments is None) == (False, True)
    assert "b is not given what a is" in capsys.readouterr().out


def test_only_inner_blocks_and_narrow_layers_if_asked(tmp_path, model):
    found = record(
        tmp_path / "m.safetensors", model, batches(1), second_moments="inner blocks", widest=100
    )
    assert {layer for layer, row in found.items() if row.moments} == {
        "blocks.2.context",
        "blocks.3.context",
    }


def test_moments_of_prompts_and_files_add_up(tmp_path, model):
    calls = batches(6)
    whole = record(tmp_path / "whole.safetensors", model, calls, second_moments="all")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    record(one, model, calls[:2], second_moments="all")
    record(one, model, calls[2:3], second_moments="all")  # another prompt
    record(two, model, calls[3:], second_moments="all")  # another file
    added = read_recordings([one, two])
    for layer, row in whole.items():
        expected = load_statistics(row.moments, torch.device("cpu"))
        found = load_statistics(added[layer].moments, torch.device("cpu"))
        assert torch.allclose(found.second, expected.second, rtol=2**-15, atol=1e-6)
        assert torch.allclose(found.mean, expected.mean, atol=1e-6)
        assert added[layer].amax == row.amax
        assert added[layer].rel_rmse == pytest.approx(row.rel_rmse, rel=1e-4)


def test_what_was_recorded_stays_when_no_more_is_asked_for(tmp_path, model):
    path = tmp_path / "m.safetensors"
    before = record(path, model, batches(1), second_moments="all")["blocks.2.q"].moments
    expected = load_statistics(before, torch.device("cpu"))
    after = record(path, model, batches(2))["blocks.2.q"].moments
    assert torch.equal(load_statistics(after, torch.device("cpu")).second, expected.second)


def test_a_14b_recording_fits_24_gb_of_memory_and_8_gb_of_disk():
    """181 distinct inputs of 5,120 channels in the inner blocks of Wan 14B."""
    entries = sum(height * width for height, width in second_moments.strip_shapes(5120))
    assert entries == sum(height * width for height, width in strip_shapes(5120))
    rows = second_moments.ROWS_KEPT * 5120 * 2
    held = second_moments.ROWS_HELD * 5120 * 2
    assert 181 * (3 * entries + rows + 8 * 5120) < 8e9
    assert 181 * (4 * entries + rows + held) < 15e9


def test_kept_rows_are_of_all_prompts(tmp_path):
    layer = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 32)})
    for prompt in range(16):
        with recorder.Recording(tmp_path, "m").watching(layer, second_moments="all"):
            layer["a"](torch.full((300, 32), float(prompt + 1)))
    rows = load_file(tmp_path / "m.safetensors")["a.rows"][:, 0]
    counts = torch.stack([(rows == prompt + 1).sum() for prompt in range(16)])
    assert counts.sum() == 256
    assert int(counts.min()) >= 4
    assert int(counts.max()) <= 40  # 16 are expected
