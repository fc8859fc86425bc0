"""The ComfyUI recorder's statistics, and what the converter makes of them."""

import json
import math
import re
import shutil

import comfy_kitchen
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.paths import ROOT
from support.recorder import node, recorder


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
    edges = np.append(c.BIN_EDGES, np.inf)
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
    assert node.file_behind(prompt, "3") == "wan2.2_high"
    assert node.file_behind({"3": {"inputs": {"model": ["3", 0]}}}, "3") == ""


# The converter's side


def histogram_of(blocks):
    return np.histogram(blocks, np.append(c.BIN_EDGES, np.inf))[0]


def recorded(blocks):
    counts = histogram_of(blocks)
    amax = float(max(blocks))
    return c.Recorded(amax=amax, channels=16, block_histogram=counts, error=1.0, energy=100.0)


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


@pytest.fixture(scope="module")
def recording(tiny, tmp_path_factory):
    """A recording with a row for every linear layer of the tiny Wan, by the recorder itself."""
    folder = tmp_path_factory.mktemp("recording")
    made, generator = recorder.Recording(folder, "m"), torch.Generator().manual_seed(5)
    made.begin({}, 256, {})
    for index, ref in enumerate(c.open_model(tiny).linear_weights):
        x = torch.randn(64, ref.shape[1], generator=generator)
        x[:, 3] *= 1 + index % 20
        made.observe(ref.layer, x)
    made.save()
    return folder / "m.safetensors"


def plans_of(tiny, *arguments):
    """{layer: plan} of the documented 5-bit mix with these options."""
    base = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8"]
    options = c.parse_options([str(tiny), "o.safetensors", *base, *arguments])
    model = c.open_model(tiny)
    plans, notes = c.make_plans(options, model, c.read_guides(options, model))
    return {plan.ref.layer: plan for plan in plans}, notes


def test_headroom_scales_every_quantised_layer(tiny, recording):
    plans, _ = plans_of(
        tiny, "--activation-stats", str(recording), "--input-scale-policy", "headroom"
    )
    figures = c.read_recording(recording)
    quantised = [plan for plan in plans.values() if plan.is_quantised]
    assert {plan.precision.name for plan in quantised} == {"NVFP4", "FP8"}
    for plan in quantised:
        row, fp8 = figures[plan.ref.layer], plan.precision is c.FP8
        assert plan.input_scale >= row.amax / (448 if fp8 else 2688)
        assert not plan.full_precision
        assert plan.saturated_blocks == (None if fp8 else 0.0)


def test_scales_that_clip_are_reported(tiny, recording, tmp_path, capsys):
    report = tmp_path / "r.json"
    more = ["--activation-stats", str(recording), "--input-scale-value", "1e-4", "--quiet"]
    source = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "5"]
    out = tmp_path / "o.safetensors"
    more += ["--input-scale-layer-summary", "--report", str(report)]
    assert c.main([str(tiny), str(out), *source, *more]) == 0
    text = capsys.readouterr().out
    assert "layers clip more than 0.1% of the blocks recorded: blocks.0." in text
    assert "--input-scale-value  clips " in text
    rows = [row for row in json.loads(report.read_text())["tensors"] if "matmul" in row]
    assert all(0 < row["saturated_blocks"] <= 1 for row in rows)


def test_sensitive_layers_by_a_recording(tiny, recording):
    figures = c.read_recording(recording)
    limit = float(np.median([row.rel_rmse for row in figures.values()]))
    above = {layer for layer, row in figures.items() if row.rel_rmse > limit}
    more = ["--sensitivity-json", str(recording), "--sensitivity-threshold", str(limit)]
    plain, _ = plans_of(tiny)
    kept, _ = plans_of(tiny, *more)
    marked, _ = plans_of(tiny, *more, "--sensitivity-action", "full_precision_mm")
    assert any(plain[layer].is_quantised for layer in above)
    for layer, plan in plain.items():
        if layer in above and plan.is_quantised:
            assert kept[layer].precision is c.HALF
            assert kept[layer].reason.text.startswith("rel_rmse > ")
            assert marked[layer].precision is plan.precision
            by_error = marked[layer].full_precision.text.startswith("rel_rmse > ")
            assert by_error == (plan.precision is c.NVFP4)  # it is NVFP4's error
        else:
            assert kept[layer] == plan


def test_sensitive_layers_by_a_published_file(tiny, tmp_path):
    rows = [
        {"layer": "blocks.2.self_attn.q", "rel_rmse_mean": 0.2, "clip_rate_mean": 0.0},
        {"layer": "blocks.3.self_attn.q", "rel_rmse_mean": 0.1, "clip_rate_mean": 0.3},
    ]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": rows}))
    more = ["--sensitivity-json", str(path), "--sensitivity-threshold", "0.15"]
    more += ["--clip-rate-threshold", "0.2", "--clip-rate-action", "full_precision_mm"]
    plans, _ = plans_of(tiny, *more)
    assert plans["blocks.2.self_attn.q"].reason.text == "rel_rmse > 0.15"
    assert plans["blocks.3.self_attn.q"].full_precision.text == "clip_rate > 0.2"


def test_clip_rates_of_a_recording_depend_on_the_scale(tiny, recording):
    more = ["--sensitivity-json", str(recording), "--clip-rate-threshold", "0.01"]
    for value, clips in (("0.003", True), ("1", False)):
        plans, _ = plans_of(tiny, *more, "--input-scale-value", value)
        reasons = [str(plan.reason) for plan in plans.values()]
        assert any(reason.startswith("clip_rate > 0.01") for reason in reasons) == clips


def test_layers_whose_scale_varies_stay_16_bit(tiny):
    summary = ["--input-scale-summary-json", "scales_summary_wan22_5b.json"]
    more = [*summary, "--input-scale-summary-fp16-std"]
    rows = json.loads((ROOT / "calib" / summary[1]).read_text())["layers"]
    plans, _ = plans_of(tiny, *more, "--input-scale-summary-cv-threshold", "0.3")
    limit = sorted(row["scale_std"] for row in rows)[int((len(rows) - 1) * 0.9)]
    for row in rows:
        plan = plans.get(row["layer"])
        if plan and "GGUF" in str(plan.reason):
            varies = row["scale_std"] >= limit or row["scale_std"] / row["scale_mean"] >= 0.3
            assert plan.reason.text.startswith("input scale varies") == varies
    assert any(plan.reason.text.startswith("input scale varies") for plan in plans.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input-scale-policy", "headroom"], "--input-scale-policy needs --activation-stats"),
        (["--sensitivity-threshold", "0.1"], "--sensitivity-threshold needs --sensitivity-json"),
        (["--input-scale-summary-fp16-std"], "needs --input-scale-summary-json"),
        (["--sensitivity-json", __file__], "needs --sensitivity-threshold or --clip-rate-thre"),
        (["--input-scale-headroom", "2"], "needs --input-scale-policy headroom"),
        (["--input-scale-headroom", "0.5"], "0.5 is no margin: less than 1 would clip"),
    ],
)
def test_options_that_need_another(arguments, message, capsys):
    with pytest.raises(SystemExit):
        c.parse_options(["m", "o.safetensors", "--include", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.0.ffn.0.quantisation"), "quantisation missing or malformed"),
        (lambda t: t["blocks.0.ffn.0.absmax"].fill_(math.nan), "saw NaN or Inf; record it again"),
        (lambda t: t.update({"blocks.0.ffn.0.tokens": torch.ones(2)}), "tokens missing or malf"),
        (lambda t: t["blocks.0.ffn.0.quantisation"].fill_(-1), "saw NaN or Inf; record it again"),
        (lambda t: t["blocks.0.ffn.0.block_histogram"].fill_(-1), "block_histogram is damaged"),
    ],
)
def test_a_damaged_recording_is_refused(recording, tmp_path, change, message):
    tensors = load_file(recording)
    change(tensors)
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata={"format": c.RECORDING_FORMAT, "version": "1"})
    with pytest.raises(c.ConvertError) as error:
        c.read_recording(path)
    assert str(error.value).startswith(f"{path}: layer blocks.0.ffn.0")
    assert message in str(error.value)


def test_a_model_is_no_recording(tiny, converted, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    command += ["--gguf-nvfp4-max-bitdepth", "5", "--activation-stats", str(converted)]
    assert c.main(command) == 1
    assert "is no recording (version 1) of the NVFP4 Calib" in capsys.readouterr().err


def test_a_recording_of_another_model_is_refused(tiny, recording, tmp_path):
    tensors = load_file(recording)
    tensors["blocks.2.ffn.0.absmax"] = torch.ones(128)
    wrong, other = tmp_path / "wrong.safetensors", tmp_path / "other.safetensors"
    metadata = {"format": c.RECORDING_FORMAT, "version": "1"}
    save_file(tensors, wrong, metadata=metadata)
    save_file({f"other.{name}": t for name, t in tensors.items()}, other, metadata=metadata)
    columns = r"layers have other columns; it has blocks\.2\.ffn\.0 with 128; the source"
    for path, what in ((wrong, columns), (other, "none of its layers is in the source; it has")):
        with pytest.raises(c.ConvertError, match=f"is of another model: {what}"):
            plans_of(tiny, "--activation-stats", str(path))


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "1", True, -1])
@pytest.mark.parametrize("key", ["rel_rmse_mean", "scale_std"])
def test_figures_that_are_no_numbers_are_refused(tiny, tmp_path, bad, key):
    row = {"layer": "blocks.2.ffn.0", "scale_p99_9": 1.0, "scale_mean": 1.0, "scale_std": 0.1}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [row | {"rel_rmse_mean": 0.1} | {key: bad}]}))
    more = {
        "rel_rmse_mean": ["--sensitivity-json", str(path), "--sensitivity-threshold", "0.1"],
        "scale_std": ["--input-scale-summary-json", str(path), "--input-scale-summary-fp16-std"],
    }
    with pytest.raises(c.ConvertError, match=re.escape(str(path))):
        plans_of(tiny, *more[key])


def test_the_analysis_own_summary_is_a_sensitivity_file(tiny, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [{"layer": "blocks.2.self_attn.q", "rel_rmse": 0.2}]}))
    plans, _ = plans_of(tiny, "--sensitivity-json", str(path), "--sensitivity-threshold", "0.1")
    assert plans["blocks.2.self_attn.q"].reason.text.startswith("rel_rmse > 0.1")


def test_both_sides_mean_the_same_bins():
    assert len(c.BIN_EDGES) == recorder.BINS
    values = torch.tensor([0.0, 2.0**-24, 1.0, 1.5, 2.0**16, 1e6, 2.0**-25, 448.0])
    assert recorder.histogram(values).tolist() == histogram_of(values.numpy()).tolist()
    assert (recorder.FORMAT, recorder.NVFP4_MAX) == (c.RECORDING_FORMAT, c.NVFP4_MAX)
