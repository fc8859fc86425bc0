"""Second moments of a layer's input, and weights rounded by them."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from itertools import pairwise

import comfy_kitchen
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import RECIPE
from support.kills import KILL, needs_sigkill
from support.paths import ROOT
from support.recorder import recorder, second_moments


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
    return c.read_recording(path)


def exact(model, calls, layer):
    """The rows that a layer was given."""
    rows = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, x: rows.append(x[0]))
    with torch.inference_mode():
        for call in calls:
            model(*call)
    hook.remove()
    return torch.cat(rows).double()


# The recorder


def test_moments_are_those_of_all_rows(tmp_path, model):
    calls = batches(60)  # more rows than are held
    found = record(tmp_path / "m.safetensors", model, calls, second_moments="all")
    for layer in ("blocks.0.q", "blocks.3.o", "blocks.5.context"):
        rows = exact(model, calls, layer)
        stats = c.load_statistics(found[layer].moments, torch.device("cpu"))
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
    found = c.read_recording(tmp_path / "m.safetensors")
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
    added = c.read_recordings([one, two])
    for layer, row in whole.items():
        expected = c.load_statistics(row.moments, torch.device("cpu"))
        found = c.load_statistics(added[layer].moments, torch.device("cpu"))
        assert torch.allclose(found.second, expected.second, rtol=2**-15, atol=1e-6)
        assert torch.allclose(found.mean, expected.mean, atol=1e-6)
        assert added[layer].amax == row.amax
        assert added[layer].rel_rmse == pytest.approx(row.rel_rmse, rel=1e-4)


def test_what_was_recorded_stays_when_no_more_is_asked_for(tmp_path, model):
    path = tmp_path / "m.safetensors"
    before = record(path, model, batches(1), second_moments="all")["blocks.2.q"].moments
    expected = c.load_statistics(before, torch.device("cpu"))
    after = record(path, model, batches(2))["blocks.2.q"].moments
    assert torch.equal(c.load_statistics(after, torch.device("cpu")).second, expected.second)


def test_a_14b_recording_fits_24_gb_of_memory_and_8_gb_of_disk():
    """181 distinct inputs of 5,120 channels in the inner blocks of Wan 14B."""
    entries = sum(height * width for height, width in second_moments.strip_shapes(5120))
    assert entries == sum(height * width for height, width in c.strip_shapes(5120))
    rows = second_moments.ROWS_KEPT * 5120 * 2
    held = second_moments.ROWS_HELD * 5120 * 2
    assert 181 * (3 * entries + rows + 8 * 5120) < 8e9
    assert 181 * (4 * entries + rows + held) < 15e9


# The converter


def test_rounding_to_a_grid_is_that_of_the_encoders():
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 3
    values[:6] = torch.tensor([0.25, 0.75, 2.5, 5.0, -5.0, 9.0])  # ties, and one beyond
    levels = c.round_to_grid(values, c.E2M1, torch.empty_like(values))
    codes = c.round_to_e2m1(values.abs())
    assert torch.equal(levels.abs(), torch.tensor(c.E2M1_VALUES)[codes.long()])
    wide = values * torch.logspace(-8, 4, len(values))
    levels = c.round_to_grid(wide, c.E4M3, torch.empty_like(wide))
    assert torch.equal(levels, wide.clamp(-448, 448).to(torch.float8_e4m3fn).float())


def statistics(rows):
    return c.Statistics(
        mean=rows.mean(0),
        second=rows.t() @ rows / len(rows),
        rows=rows[:256].clone(),
        independent=float(len(rows)),
    )


def correlated(columns, rows=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / math.sqrt(columns)
    channels = torch.rand(columns, generator=generator) * 2
    return torch.randn(rows, columns, generator=generator) @ mixing * channels + 0.3


@pytest.mark.parametrize("centred", [True, False])
def test_a_feedback_is_a_factor_of_the_second_moment(centred):
    rows = correlated(96)
    feedback = c.make_feedback(statistics(rows), 0.01, 16, centred=centred)
    second = (rows - rows.mean(0) * centred).double()
    second = second.t() @ second / len(rows)
    second.diagonal().add_(0.01 * second.diagonal().mean())
    expected = second[feedback.order][:, feedback.order]
    lower = feedback.lower.double()
    assert torch.allclose(lower.t() * feedback.pivots.double() @ lower, expected, atol=1e-5)
    assert torch.allclose(
        feedback.full * feedback.diagonal.unsqueeze(1), expected.float(), atol=1e-5
    )
    assert torch.equal(torch.tril(feedback.lower), feedback.lower)
    energy = expected.diagonal().view(-1, 16).sum(1)
    assert (energy.diff() <= 0).all()  # the largest blocks first


def test_the_output_error_is_that_of_the_rows():
    rows, residual = correlated(64), torch.randn(24, 64)
    feedback = c.make_feedback(statistics(rows), 0.1, 16, centred=False)
    found = c.output_error(residual.t()[feedback.order], feedback)
    assert found == pytest.approx(float((rows @ residual.t()).square().sum()) / len(rows), rel=1e-4)


@pytest.mark.parametrize("grid", [c.E2M1, c.E4M3])
def test_rounding_by_statistics_lowers_the_output_error(grid):
    rows, weight = correlated(256), torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    amax = weight.abs().max()
    unit = c.nvfp4_global_scale(amax) if grid is c.E2M1 else c.fp8_scale(amax)
    group = 16 if grid is c.E2M1 else 1
    feedback = c.make_feedback(statistics(rows), 0.01, group, centred=False)
    rounded = c.Rounder().round_rows(weight / unit, feedback, grid)
    form = c.NVFP4 if grid is c.E2M1 else c.FP8
    stored = form.round_to_levels(rounded, feedback)
    decode, plain = c.decode_nvfp4, c.encode_nvfp4(weight, unit, c.mse_block_scales)
    if grid is c.E4M3:
        decode, plain = c.decode_fp8, [c.encode_fp8(weight, unit)]
    before, after = (
        float((rows @ (weight - decode(*parts, unit)).t()).square().sum())
        for parts in (plain, stored)
    )
    assert after < 0.4 * before
    residual = (weight - decode(*stored, unit)) / unit
    expected = rounded.residual.t()
    assert torch.allclose(residual[:, feedback.order], expected, rtol=1e-4, atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([16, 48, 160]))
def test_further_passes_never_raise_the_error(seed, passes, columns):
    rows = correlated(columns, 300, seed % 1000)
    feedback = c.make_feedback(statistics(rows), 0.01, 16, centred=False)
    weight = torch.randn(columns, 8, generator=torch.Generator().manual_seed(seed)) * 200
    rounded = c.unrounded(weight)
    c.Rounder().feed_back(weight, rounded, feedback, c.E2M1, first=True)
    errors = []
    for _ in range(passes + 1):
        squares = float(rounded.residual.square().sum())
        errors.append(c.output_error(rounded.residual, feedback) + feedback.added * squares)
        c.Rounder().feed_back(weight, rounded, feedback, c.E2M1, first=False)
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors))


def test_inputs_that_are_linearly_dependent_are_damped():
    rows = correlated(64)[:10]  # fewer rows than channels
    assert c.make_feedback(statistics(rows), 0.001, 16, centred=False)


def test_an_input_of_zeros_has_no_feedback():
    assert c.make_feedback(statistics(torch.zeros(10, 64)), 0.1, 16, centred=False) is None


def test_few_different_rows_are_damped_more():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(300, 64, generator=generator)
    picked = words[torch.randint(300, (256,), generator=generator)]
    assert c.count_different(picked, 10**6) == pytest.approx(300, rel=0.4)
    padded = torch.cat([picked[:128], torch.zeros(128, 64)])
    assert c.count_different(padded, 10**6) == pytest.approx(300, rel=0.6)
    assert c.count_different(torch.randn(256, 64, generator=generator), 10**6) == 10**6
    assert c.count_different(torch.zeros(256, 64), 10**6) == 1
    given = statistics(correlated(64))
    for independent, expected in ((1e6, [0.002, 0.02]), (6400, [0.02]), (640, [0.1]), (32, [1.0])):
        assert dataclasses.replace(given, independent=independent).dampings == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_rounds_as_a_cpu_does(compiled):
    on_gpu = c.Rounder(c.compile_rounder()) if compiled else c.Rounder()
    here, weight = statistics(correlated(256)), torch.randn(64, 256) * 300
    moved = {name: getattr(here, name).cuda() for name in ("mean", "second", "rows")}
    there = dataclasses.replace(here, **moved)
    errors = []
    for stats, rows in ((here, weight), (there, weight.cuda()), (there, weight.cuda())):
        feedback = c.make_feedback(stats, 0.01, 16, centred=True)
        rounder = on_gpu if rows.is_cuda else c.Rounder()
        rounded = rounder.round_rows(rows, feedback, c.E2M1)
        errors.append(c.output_error(rounded.residual, feedback))
    assert errors[1:] == [pytest.approx(errors[0], rel=1e-3)] * 2
    assert errors[1] == errors[2]  # the graph that is replayed


def test_compiled_rounding_is_that_of_torch():
    pytest.importorskip("numba")
    feedback = c.make_feedback(statistics(correlated(256)), 0.01, 16, centred=True)
    weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(2)) * 300
    plain = c.Rounder().round_rows(weight, feedback, c.E2M1)
    rounder = c.Rounder(c.compile_kernels().round_columns)
    compiled = rounder.round_rows(weight, feedback, c.E2M1)
    assert (plain.levels != compiled.levels).float().mean() < 0.01
    errors = [c.output_error(one.residual, feedback) for one in (plain, compiled)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


# A whole conversion


@pytest.fixture(scope="module")
def recording(tiny, tmp_path_factory):
    """Second moments of some layers of the tiny Wan, by the recorder itself."""
    folder = tmp_path_factory.mktemp("recording")
    made, weights = recorder.Recording(folder, "m"), c.open_model(tiny).linear_weights
    squared = {ref.layer: ref.shape[1] for ref in weights if "blocks.7" not in ref.layer}
    made.begin({}, 4096, squared)
    for index, ref in enumerate(weights):
        dead = ref.layer == "blocks.3.self_attn.o"
        made.observe(ref.layer, correlated(ref.shape[1], 512, index) * (not dead))
    made.save()
    return folder / "m.safetensors"


def command(tiny, out, recording, *more):
    source = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE]
    return [*source, "--quiet", "--activation-stats", str(recording), *more]


@pytest.fixture(scope="module")
def aware(tiny, recording, tmp_path_factory):
    """The tiny Wan rounded by them: the file and its report."""
    out = tmp_path_factory.mktemp("aware") / "o.safetensors"
    report = out.with_suffix(".json")
    assert c.main(command(tiny, out, recording, "--report", str(report))) == 0
    return out, json.loads(report.read_text(encoding="utf-8"))


def decoded(path):
    """{layer: float32 weight} of a file's quantised layers."""
    model = c.open_model(path)
    weights = {}
    for name, layer in c.stored_layers(model).items():
        if layer.format is not None:
            parts, scale = c.stored_parts(layer)
            weights[name] = layer.format.decode(*parts, scale)
    return weights


def test_the_report_gives_each_layers_output_error(tiny, recording, aware):
    out, report = aware
    originals = {ref.layer: c.load(ref).float() for ref in c.open_model(tiny).linear_weights}
    biases, stored = c.open_model(tiny).tensors, load_file(out)
    weights, found = decoded(out), c.read_recording(recording)
    rows = {row["name"].removesuffix(".weight"): row for row in report["tensors"]}
    measured = [layer for layer in weights if rows[layer]["output_before"] is not None]
    assert {rows[layer]["stored_as"] for layer in measured} == {"NVFP4", "FP8"}
    for layer in measured:
        given = c.load_statistics(found[layer].moments, torch.device("cpu"))
        weight = originals[layer]
        residual = (weight - weights[layer][:, : weight.shape[1]]).double()
        moved = stored[f"{layer}.bias"].double() - c.load(biases[f"{layer}.bias"]).double()
        second, mean = given.second.double(), given.mean.double()
        covariance = second - mean.outer(mean)
        left = residual @ mean - moved
        error = float((residual @ covariance * residual).sum() + left.square().sum())
        energy = float((weight.double() @ second * weight.double()).sum())
        assert rows[layer]["output_after"] == pytest.approx(math.sqrt(error / energy), rel=1e-3)
        assert rows[layer]["output_after"] < 0.75 * rows[layer]["output_before"]
        assert (rows[layer]["output_w4a4"] is None) == (rows[layer]["stored_as"] == "FP8")


def test_layers_without_usable_statistics_are_as_without(converted, aware):
    out, report = aware
    plain, stored = load_file(converted), load_file(out)
    without = {
        row["name"]: row["output_before"] is None for row in report["tensors"] if "matmul" in row
    }
    assert without["blocks.3.self_attn.o.weight"]  # zeros only
    for name, value in stored.items():
        layer = name.rpartition(".")[0]
        if without.get(f"{layer}.weight", True):
            same = torch.equal(*(one.reshape(-1).view(torch.uint8) for one in (value, plain[name])))
            assert same, name


def test_what_was_done_is_told(tiny, recording, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    assert c.main(command(tiny, out, recording, "--report", str(tmp_path / "r.html"))) == 0
    text = capsys.readouterr().out
    assert "1 layers' second moments are not positive definite: the plain search: blocks.3" in text
    assert "layers rounded by their input's statistics: 0." in text
    assert "Output error" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert c.main(["--verify", str(out), "--source", str(tiny), "--quiet"]) == 0
    assert "biases are not the source's" in capsys.readouterr().out
    assert c.main(command(tiny, out, recording, "--scale-search", "amax")) == 0
    assert "--scale-search amax: second moments are not used" in capsys.readouterr().out


@needs_sigkill
@pytest.mark.parametrize("at", ["blocks.4.ffn.0.weight", "blocks.4.ffn.0.bias"])
def test_a_killed_run_goes_on_with_the_biases(tiny, recording, aware, tmp_path, at):
    out = tmp_path / "o.safetensors"
    run = [sys.executable, "-c", KILL, at, *command(tiny, out, recording)]
    done = subprocess.run(run, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert c.main(command(tiny, out, recording, "--resume")) == 0
    assert out.read_bytes() == aware[0].read_bytes()


def test_ranks_write_what_one_process_writes(tiny, recording, aware, tmp_path):
    out = tmp_path / "o.safetensors"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run += [str(ROOT / "convert_nvfp4.py"), *command(tiny, out, recording)]
    done = subprocess.run(run, check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == aware[0].read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": "["}, "its list of inputs is damaged"),
        ({"inputs": "[1]"}, "its list of inputs is damaged"),
        ({"inputs": '{"a": "b"}'}, "the second moments of layer a are damaged"),
        ({"inputs": '{"blocks.2.ffn.0": []}'}, "layer blocks.2.ffn.0 are damaged"),
        ({"rows": torch.zeros(0, 128).bfloat16()}, "layer blocks.2.ffn.0 are damaged"),
        ({"second_moment_low": torch.zeros(3).byte()}, "layer blocks.2.ffn.0 are damaged"),
        ({"second_moment": None}, "layer blocks.2.ffn.0 are damaged"),
        ({"moment_tokens": torch.tensor(0)}, "layer blocks.2.ffn.0 are damaged"),
        ({"moment_tokens": torch.ones(2).long()}, "layer blocks.2.ffn.0 are damaged"),
        ({"absmax": None}, "layer blocks.2.ffn.0 are damaged"),
        ({"rows": torch.full((4, 256), math.nan).bfloat16()}, "layer blocks.2.ffn.0 are dam"),
    ],
)
def test_damaged_moments_are_refused(recording, tmp_path, change, message):
    with safe_open(recording, "pt") as file:
        metadata = file.metadata()
    tensors, path = load_file(recording), tmp_path / "m.safetensors"
    for name, value in change.items():
        if name == "inputs":
            metadata[name] = value
        elif value is None:
            del tensors[f"blocks.2.ffn.0.{name}"]
        else:
            tensors[f"blocks.2.ffn.0.{name}"] = value
    save_file(tensors, path, metadata)
    with pytest.raises(c.ConvertError, match=message):
        c.read_recording(path)


def test_inputs_whose_means_are_far_larger_than_their_deviations(tiny, tmp_path):
    made = recorder.Recording(tmp_path, "m")
    made.begin({}, 4096, {"blocks.2.ffn.0": 256})
    rows = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    made.observe("blocks.2.ffn.0", rows + 20 * correlated(256, 1))
    made.save()
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    base = [str(tiny), str(out), "--preset", "none", "--include", r"blocks\.2\.ffn\.0", "--quiet"]
    base += ["--activation-stats", str(tmp_path / "m.safetensors"), "--report", str(report)]
    assert c.main(base) == 0
    rows = json.loads(report.read_text(encoding="utf-8"))["tensors"]
    (row,) = (row for row in rows if "matmul" in row)
    assert row["output_after"] < 0.5 * row["output_before"]


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


# Which layers run W4A4


def matmuls_of(path):
    """{layer: whether it is W4A4} of a file's NVFP4 layers, from its header."""
    with safe_open(path, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    return {
        name: not config.get("full_precision_matrix_mult")
        for name, config in layers.items()
        if config["format"] == "nvfp4"
    }


def added_error(tiny, recording, layer):
    """Squared output error of 4-bit activations, by comfy_kitchen's own quantiser."""
    rows = load_file(recording)
    with safe_open(recording, "pt") as file:
        rows = rows[json.loads(file.metadata()["inputs"])[layer] + ".rows"].float()
    weight = c.load(c.open_model(tiny).tensors[f"{layer}.weight"]).float()
    scale = rows.abs().max() / 2688
    packed, block_scale = comfy_kitchen.quantize_nvfp4(rows, scale)
    decoded = comfy_kitchen.dequantize_nvfp4(packed, scale, block_scale, torch.float32)
    return float(
        ((decoded - rows) @ weight.t()).square().sum() / (rows @ weight.t()).square().sum()
    )


def test_layers_that_gain_most_get_full_precision_matmul(tiny, recording, tmp_path, capsys):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    base = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), "--quiet"]
    base += ["--gguf-nvfp4-max-bitdepth", "5", "--gguf-keep-edge-blocks-fp16"]
    base += ["--activation-stats", str(recording), "--report", str(report)]
    assert c.main([*base, "--w4a4-share", "0.12"]) == 0
    w4a4, data = matmuls_of(out), json.loads(report.read_text(encoding="utf-8"))
    assert data["matmuls"]["W4A4"]["share"] <= 0.12
    sizes = {row["name"][:-7]: math.prod(row["shape"]) for row in data["tensors"]}
    gains = {layer: added_error(tiny, recording, layer) / sizes[layer] for layer in w4a4}
    worst_kept = max(gains[layer] for layer, is_w4a4 in w4a4.items() if is_w4a4)
    marked = [gains[layer] for layer, is_w4a4 in w4a4.items() if not is_w4a4]
    assert min(marked) >= 0.9 * worst_kept  # from some of the weights' rows
    last = data["matmuls"]["W4A4"]["share"] + max(sizes.values()) / sum(sizes.values())
    assert last > 0.12  # and not one more
    curve = data["w4a4_curve"]
    assert curve[0]["layer"] == ""
    assert sorted(point["layer"] for point in curve[1:]) == sorted(w4a4)
    for before, after in pairwise(curve):
        assert after["share"] < before["share"]
        assert after["error"] <= before["error"]
    assert (curve[0]["error"], curve[-1]["error"]) == (1, 0)
    text = capsys.readouterr().out
    assert "W4A4 share of the linear weights, and what is left of the squared error" in text
    assert c.main([*base, "--w4a4-share", "0.12", "--full-precision-mm-pattern", "blocks.2"]) == 0
    assert "other options mark 7 layers: W4A4 20 %, which leave " in capsys.readouterr().out
    assert all(not is_w4a4 for layer, is_w4a4 in matmuls_of(out).items() if "blocks.2" in layer)


def test_layers_without_statistics_cannot_be_compared(tiny, tmp_path, capsys):
    base = [
        str(tiny),
        str(tmp_path / "o.safetensors"),
        "--preset",
        "none",
        "--include",
        r"blocks\.7\.ffn",
        "--quiet",
    ]
    path = tmp_path / "m.safetensors"
    made = recorder.Recording(tmp_path, "m")
    made.begin({}, 64, {})
    made.observe("blocks.7.ffn.0", torch.ones(4, 256))
    made.save()
    assert c.main([*base, "--activation-stats", str(path), "--w4a4-share", "0.5"]) == 1
    assert "no NVFP4 layer has second moments in --activation-stats" in capsys.readouterr().err
    for option in ("--w4a4-share=0.5", "--pre-quant-scale"):
        with pytest.raises(SystemExit):
            c.parse_options([*base, option])
        assert "needs --activation-stats" in capsys.readouterr().err
    stats = ["--activation-stats", str(path)]
    with pytest.raises(SystemExit):
        c.parse_options([*base, *stats, "--pre-quant-scale", "--use-ck-quant"])
    assert "--pre-quant-scale contradicts --scale-search amax" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        c.parse_options([*base, "--w4a4-share", "60"])
    assert "60 is no share: 1 is all" in capsys.readouterr().err


@pytest.fixture(scope="module")
def outliers(tiny, tmp_path_factory):
    """A recording where a few channels of every input are far larger than the others."""
    folder = tmp_path_factory.mktemp("outliers")
    made, weights = recorder.Recording(folder, "m"), c.open_model(tiny).linear_weights
    made.begin({}, 4096, {ref.layer: ref.shape[1] for ref in weights})
    for index, ref in enumerate(weights):
        rows = correlated(ref.shape[1], 512, index)
        rows[:, ::16] *= 30
        made.observe(ref.layer, rows)
    made.save()
    return folder / "m.safetensors"


def test_channels_are_scaled_where_it_gains(tiny, outliers, tmp_path, capsys):
    found = {}
    for name, more in (("plain", []), ("smooth", ["--pre-quant-scale"])):
        out, report = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json"
        base = [
            str(tiny),
            str(out),
            "--preset",
            "none",
            "--include",
            r"blocks\.[23]\.(self_attn|ffn)",
            "--quiet",
        ]
        base += ["--activation-stats", str(outliers), "--input-scale-policy", "headroom"]
        assert c.main([*base, *more, "--report", str(report)]) == 0
        rows = json.loads(report.read_text(encoding="utf-8"))["tensors"]
        found[name] = {row["name"][:-7]: row for row in rows if "matmul" in row}
    text = capsys.readouterr().out
    assert "layers have a pre_quant_scale: ComfyUI 0.29 and older ignore it and give noise" in text
    stored, weights = load_file(out), decoded(out)
    scaled = [layer for layer in found["smooth"] if f"{layer}.pre_quant_scale" in stored]
    assert len(scaled) >= 6
    originals = {ref.layer: c.load(ref).float() for ref in c.open_model(tiny).linear_weights}
    for layer in scaled:
        scale = stored[f"{layer}.pre_quant_scale"]
        assert scale.dtype == torch.bfloat16
        restored = weights[layer] * scale.float()
        error = (restored - originals[layer]).norm() / originals[layer].norm()
        assert error < 0.5
        before, after = found["plain"][layer], found["smooth"][layer]
        assert after["output_w4a4"] < 0.97 * before["output_w4a4"]
        assert after["input_scale"] != before["input_scale"]
    assert c.main(["--verify", str(out), "--source", str(tiny), "--quiet"]) == 0
