"""The ComfyUI recorder's statistics."""

import shutil

import comfy_kitchen
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.guides.records import BIN_EDGES
from support.recorder import recorder, workflow


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = (torch.nn.Linear(64, 32) for _ in range(2))
        self.out = torch.nn.Linear(32, 24, bias=False)

    def forward(self, x):
        return self.out(self.q(x) + self.k(x))


def inputs(count, rows=40):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, rows // 2, 64, generator=generator) * 3 for _ in range(count)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Attention()


def record(folder, model, batches, tokens=4096, name="m"):
    recording = recorder.Recording(folder, name)
    with torch.inference_mode(), recording.watching(model, "", tokens):
        for batch in batches:
            model(batch)
    return load_file(folder / f"{name}.safetensors")


def test_every_figure_is_what_it_says(tmp_path, model):
    batches = inputs(3)
    found = record(tmp_path, model, batches)
    rows = torch.cat([batch.flatten(0, 1) for batch in batches])
    assert {key.rpartition(".")[0] for key in found} == {"q", "k", "out"}
    for layer in "qk":
        assert found[f"{layer}.calls"] == 3
        assert found[f"{layer}.tokens"] == 120
        assert torch.equal(found[f"{layer}.absmax"], rows.abs().amax(0))
        assert torch.allclose(found[f"{layer}.sum"], rows.double().sum(0), atol=1e-3)
        expected = rows.double().square().sum(0)
        assert torch.allclose(found[f"{layer}.sum_of_squares"], expected, rtol=1e-5)
    blocks = rows.view(-1, 16).abs().amax(-1).numpy()
    edges = np.append(BIN_EDGES, np.inf)
    assert found["q.block_histogram"].tolist() == np.histogram(blocks, edges)[0].tolist()
    log = [line.split("\t") for line in (tmp_path / "m.log").read_text().splitlines()]
    assert [fields[2] for fields in log] == ["q", "k", "out"] * 3
    for fields, batch in zip(log[::3], batches, strict=True):
        assert fields[:2] == ["nvfp4", "dynamic"]
        assert float(fields[4]) == pytest.approx(float(batch.abs().max()), rel=1e-5)
        assert float(fields[3]) == pytest.approx(float(batch.abs().max()) / 2688, rel=1e-5)
        assert fields[5] == "(40, 64)"


def test_the_error_is_that_of_comfy_kitchens_activations(tmp_path, model):
    (batch,) = inputs(1, rows=64)
    error, energy = record(tmp_path, model, [batch])["q.quantisation"].tolist()
    rows = batch.flatten(0, 1)
    scale = rows.abs().max() / 2688
    packed, block_scale = comfy_kitchen.quantize_nvfp4(rows, scale)
    decoded = comfy_kitchen.dequantize_nvfp4(packed, scale, block_scale, torch.float32)
    assert error == pytest.approx(float((decoded - rows).square().sum()), rel=1e-3)
    assert energy == pytest.approx(float(rows.square().sum()), rel=1e-5)


def test_a_recording_goes_on_and_adds_up(tmp_path, model):
    batches = inputs(4)
    whole = record(tmp_path / "whole", model, batches)
    record(tmp_path / "parts", model, batches[:1])
    parts = record(tmp_path / "parts", model, batches[1:])
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert torch.allclose(value.double(), parts[key].double(), rtol=1e-5, atol=1e-4), key
    logs = [(tmp_path / name / "m.log").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_few_rows_are_sampled_but_the_maxima_are_of_all(tmp_path, model):
    batches = inputs(2, rows=400)
    found = record(tmp_path, model, batches, tokens=16)
    rows = torch.cat([batch.flatten(0, 1) for batch in batches])
    assert found["q.tokens"] == 32
    assert found["q.block_histogram"].sum() == 32 * 4
    assert torch.equal(found["q.absmax"], rows.abs().amax(0))


def test_recording_changes_nothing_and_leaves_no_hook(tmp_path, model):
    batches = inputs(2)
    with torch.inference_mode():
        expected = [model(batch) for batch in batches]
        recording = recorder.Recording(tmp_path, "m")
        with recording.watching(model):
            assert all(map(torch.equal, expected, map(model, batches)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_was_seen_before_an_interruption_is_kept(tmp_path, model):
    def interrupt(*_):
        raise KeyboardInterrupt

    model.out.forward = interrupt
    recording = recorder.Recording(tmp_path, "m")
    with pytest.raises(KeyboardInterrupt), recording.watching(model):
        model(inputs(1)[0])
    assert load_file(tmp_path / "m.safetensors")["q.calls"] == 1


def test_two_recorders_cannot_write_one_file(tmp_path, model):
    recording = recorder.Recording(tmp_path, "m")
    with recording.watching(model):
        inner = recording.watching(model)
        with pytest.raises(RuntimeError, match="two recorders write"):
            inner.__enter__()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_recording_of_other_widths_is_refused_before_sampling(tmp_path, model):
    record(tmp_path, model, inputs(1))
    model.q = torch.nn.Linear(32, 32)
    with pytest.raises(RuntimeError, match="is of another model"):
        record(tmp_path, model, [])


def test_a_model_that_was_loaded_again_goes_on(tmp_path, model):
    record(tmp_path, model, inputs(1))
    assert record(tmp_path, Attention(), inputs(1))["q.calls"] == 2


def test_deleting_the_files_starts_again(tmp_path, model):
    folder, batches = tmp_path / "f", inputs(1)
    recording = recorder.Recording(folder, "m")
    for _ in range(2):
        with recording.watching(model):
            model(batches[0])
        assert load_file(folder / "m.safetensors")["q.calls"] == 1
        shutil.rmtree(folder)


def test_another_safetensors_file_is_not_overwritten(tmp_path, model):
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(RuntimeError, match=r"m\.safetensors is no recording"):
        record(tmp_path, model, inputs(1))


def test_only_matching_layers_are_recorded(tmp_path, model):
    recording = recorder.Recording(tmp_path, "m")
    with recording.watching(model, "^q$"):
        model(inputs(1)[0])
    with recording.watching(model, "out"):
        model(inputs(1)[0])
    found = load_file(tmp_path / "m.safetensors")
    assert {key.partition(".")[0] for key in found} == {"q", "out"}


def test_a_tensor_changed_in_place_is_measured_again(tmp_path, model):
    recording, x = recorder.Recording(tmp_path, "m"), torch.ones(4, 64)
    with torch.inference_mode(), recording.watching(model):
        model.q(x)
        x.mul_(100)
        model.q(x)
    assert load_file(tmp_path / "m.safetensors")["q.absmax"].max() == 100


def test_the_name_comes_from_the_workflows_loader():
    prompt = {
        "1": {"inputs": {"unet_name": "wan\\wan2.2_high.safetensors", "weight_dtype": "default"}},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "lightx2v.safetensors"}},
        "3": {"inputs": {"model": ["2", 0], "name": ""}},
    }
    assert workflow.file_behind(prompt, "3") == "wan2.2_high"
    assert workflow.file_behind({"3": {"inputs": {"model": ["3", 0]}}}, "3") == ""


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.ffn = Attention(), torch.nn.Sequential(torch.nn.Linear(24, 64))

    def forward(self, x):
        return x + self.ffn(self.attn(x)).view_as(x)


class Wrapper(torch.nn.Module):
    """A module in another one, under the name that a library gives it."""

    def __init__(self, name, inside):
        super().__init__()
        self.add_module(name, inside)

    def forward(self, x):
        (inside,) = self.children()
        return inside(x)


def transformer():
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.blocks = torch.nn.Sequential(Block(), Block())
    model.forward = lambda x: model.blocks(x)
    return model


def compile_eagerly(module):
    return torch.compile(module, backend="eager")


def change_blocks(model, change):
    for index in range(2):
        model.blocks[index] = change(model.blocks[index])
    return model


def change_layers(model, change):
    for block in model.blocks:
        block.attn.q = change(block.attn.q)
    return model


def compile_in_place(model):
    for block in model.blocks:
        block.compile(backend="eager")
    return model


WRAPS = {
    "each block compiled": lambda m: change_blocks(m, compile_eagerly),
    "each block compiled in place": compile_in_place,
    "a linear layer compiled": lambda m: change_layers(m, compile_eagerly),
    "the whole compiled": compile_eagerly,
    "checkpointed blocks": lambda m: change_blocks(
        m, lambda block: Wrapper("_checkpoint_wrapped_module", block)
    ),
    "FSDP around each block": lambda m: change_blocks(
        m, lambda block: Wrapper("_fsdp_wrapped_module", block)
    ),
    "DDP around the whole": lambda m: Wrapper("module", m),
    "all at once": lambda m: Wrapper(
        "module",
        compile_eagerly(
            change_blocks(
                m, lambda block: compile_eagerly(Wrapper("_checkpoint_wrapped_module", block))
            )
        ),
    ),
}


@pytest.mark.parametrize("how", WRAPS)
@pytest.mark.parametrize("has_run_before", [False, True])
def test_a_wrapped_model_is_recorded_as_if_it_were_not(tmp_path, how, has_run_before):
    """A compiled model that ran before the recording is no exception: its hooks are called."""
    batches = inputs(2)
    expected = record(tmp_path / "plain", transformer(), batches)
    wrapped = WRAPS[how](transformer())
    if has_run_before:
        with torch.inference_mode():
            wrapped(batches[0])
    found = record(tmp_path / "wrapped", wrapped, batches)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    logs = [(tmp_path / name / "m.log").read_text() for name in ("plain", "wrapped")]
    assert logs[0] == logs[1]
    # What was compiled still works afterwards, without recording.
    with torch.inference_mode():
        assert torch.equal(wrapped(batches[0]), transformer()(batches[0]))
    assert logs[1] == (tmp_path / "wrapped" / "m.log").read_text()


def test_a_recording_without_a_single_call_says_so(tmp_path, model, capsys):
    record(tmp_path, model, [])
    assert "none of 3 layers was called" in capsys.readouterr().out
