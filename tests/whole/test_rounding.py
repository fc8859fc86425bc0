"""Conversions rounded by a recording, and what they gain."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import convert_nvfp4 as c
from support.activations import correlated
from support.conversions import RECIPE, convert_in_ranks, decoded
from support.kills import KILL, needs_sigkill, run_killed
from support.recorder import recorder

pytestmark = pytest.mark.slow


def command(tiny, out, moments, *more):
    source = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE]
    return [*source, "--quiet", "--activation-stats", str(moments), *more]


@pytest.fixture(scope="module")
def aware(tiny, moments, tmp_path_factory):
    """The tiny Wan rounded by them: the file and its report."""
    out = tmp_path_factory.mktemp("aware") / "o.safetensors"
    report = out.with_suffix(".json")
    assert c.main(command(tiny, out, moments, "--report", str(report))) == 0
    return out, json.loads(report.read_text(encoding="utf-8"))


def test_the_report_gives_each_layers_output_error(tiny, moments, aware):
    out, report = aware
    originals = {ref.layer: c.load(ref).float() for ref in c.open_model(tiny).linear_weights}
    biases, stored = c.open_model(tiny).tensors, load_file(out)
    weights, found = decoded(out), c.read_recording(moments)
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


def test_what_was_done_is_told(tiny, moments, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    assert c.main(command(tiny, out, moments, "--report", str(tmp_path / "r.html"))) == 0
    text = capsys.readouterr().out
    assert "second moments of 1 layer are not positive definite, which got the plain search" in text
    assert "layers rounded by their input's statistics: 0." in text
    assert "Output error" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert c.main(["--verify", str(out), "--source", str(tiny), "--quiet"]) == 0
    assert "biases are not the source's" in capsys.readouterr().out
    assert c.main(command(tiny, out, moments, "--scale-search", "amax")) == 0
    assert "--scale-search amax: second moments and means are not used" in capsys.readouterr().out


@needs_sigkill
@pytest.mark.parametrize("at", ["blocks.4.ffn.0.weight", "blocks.4.ffn.0.bias"])
def test_a_killed_run_goes_on_with_the_biases(tiny, moments, aware, tmp_path, at):
    out = tmp_path / "o.safetensors"
    run_killed(KILL, at, *command(tiny, out, moments))
    assert c.main(command(tiny, out, moments, "--resume")) == 0
    assert out.read_bytes() == aware[0].read_bytes()


def test_ranks_write_what_one_process_writes(tiny, moments, aware, tmp_path):
    out = tmp_path / "o.safetensors"
    convert_in_ranks(*command(tiny, out, moments))
    assert out.read_bytes() == aware[0].read_bytes()


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
