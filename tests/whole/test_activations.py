"""What a recording decides: scales, W4A4 by gain, and channels that are scaled."""

import functools
import json
from itertools import pairwise

import comfy_kitchen
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import convert_nvfp4 as c
from support.activations import correlated
from support.conversions import decoded
from support.recorder import recorder

pytestmark = pytest.mark.slow


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


def test_a_model_is_no_recording(tiny, converted, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    command += ["--gguf-nvfp4-max-bitdepth", "5", "--activation-stats", str(converted)]
    assert c.main(command) == 1
    assert "is no recording (version 1) of the NVFP4 Calib" in capsys.readouterr().err


def matmuls_of(path):
    """{layer: whether it is W4A4} of a file's NVFP4 layers, from its header."""
    with safe_open(path, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    return {
        name: not config.get("full_precision_matrix_mult")
        for name, config in layers.items()
        if config["format"] == "nvfp4"
    }


def added_error(tiny, moments, layer):
    """Squared output error of 4-bit activations, by comfy_kitchen's own quantiser."""
    rows = load_file(moments)
    with safe_open(moments, "pt") as file:
        rows = rows[json.loads(file.metadata()["inputs"])[layer] + ".rows"].float()
    weight = c.load(c.open_model(tiny).tensors[f"{layer}.weight"]).float()
    scale = rows.abs().max() / 2688
    packed, block_scale = comfy_kitchen.quantize_nvfp4(rows, scale)
    decoded = comfy_kitchen.dequantize_nvfp4(packed, scale, block_scale, torch.float32)
    return float(
        ((decoded - rows) @ weight.t()).square().sum() / (rows @ weight.t()).square().sum()
    )


def test_layers_that_gain_most_get_full_precision_matmul(tiny, moments, tmp_path, capsys):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    base = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), "--quiet"]
    base += ["--gguf-nvfp4-max-bitdepth", "5", "--gguf-keep-edge-blocks-fp16"]
    base += ["--activation-stats", str(moments), "--report", str(report)]
    assert c.main([*base, "--w4a4-share", "0.12"]) == 0
    w4a4, data = matmuls_of(out), json.loads(report.read_text(encoding="utf-8"))
    share = data["work"]["shares"]["FP4"]
    assert share <= 0.12
    plans = c.convert(c.parse_options([*base, "--dry-run"])).plans
    work = {name[:-7]: part for name, part in c.work_by_weight(plans).items()}
    gains = {layer: added_error(tiny, moments, layer) / work[layer] for layer in w4a4}
    worst_kept = max(gains[layer] for layer, is_w4a4 in w4a4.items() if is_w4a4)
    marked = [gains[layer] for layer, is_w4a4 in w4a4.items() if not is_w4a4]
    assert min(marked) >= 0.9 * worst_kept  # from some of the weights' rows
    assert share + max(work[layer] for layer in w4a4) > 0.12  # and not one more
    curve = data["w4a4_curve"]
    assert curve[0]["layer"] == ""
    shares = {point["layer"]: point["share"] for point in curve}
    assert shares[""] == pytest.approx(sum(work[layer] for layer in w4a4))
    assert any(part == pytest.approx(share) for part in shares.values())
    assert sorted(point["layer"] for point in curve[1:]) == sorted(w4a4)
    for before, after in pairwise(curve):
        assert after["share"] < before["share"]
        assert after["error"] <= before["error"]
    assert (curve[0]["error"], curve[-1]["error"]) == (1, 0)
    text = capsys.readouterr().out
    assert "W4A4 share of the multiply work, and what is left of the squared error" in text
    assert c.main([*base, "--w4a4-share", "0.12", "--full-precision-mm-pattern", "blocks.2"]) == 0
    left = sum(work[layer] for layer in w4a4 if "blocks.2" not in layer)
    told = f"other options mark 7 layers: W4A4 {100 * left:.0f} %, which leave "
    assert told in capsys.readouterr().out
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


def test_a_share_of_no_layer_at_all_tells_so(tiny, moments, tmp_path, capsys):
    base = [str(tiny), str(tmp_path / "o.safetensors"), "--partial-guide", "--quiet", "--dry-run"]
    base += ["--activation-stats", str(moments), "--w4a4-share", "0.5"]
    assert c.main([*base, "--formats", "nvfp4,int8", "--min-ffn-fp8", "--exclude", "attn"]) == 1
    assert "--w4a4-share: no layer is NVFP4\n" in capsys.readouterr().err
    assert c.main([*base, "--target-ratio", "0.5"]) == 1
    told = "--w4a4-share: --target-size chose other formats than NVFP4 for all layers; give --fp4-"
    assert told in capsys.readouterr().err


@pytest.fixture(scope="module")
def outliers(tiny, tmp_path_factory):
    """A recording where a few channels of every input are far larger than the others."""
    folder = tmp_path_factory.mktemp("outliers")
    made = recorder.Recording(folder, "m")
    weights = [ref for ref in c.open_model(tiny).linear_weights if "blocks." in ref.layer]
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


def test_what_branches_add_to_the_residual_stream_is_measured(tiny, moments, tmp_path):
    base = [str(tiny), str(tmp_path / "o.safetensors"), "--activation-stats", str(moments)]
    options = c.parse_options([*base, "--formats", "nvfp4,int8", "--partial-guide", "--quiet"])
    model, _ = c.open_source(options.source)
    planner = functools.partial(c.make_plans, model=model, guides=c.read_guides(options, model))
    start = {plan.ref.name: plan for plan in planner(options)[0]}
    candidates = c.list_candidates(options, planner, start)
    candidates = {name: rows for name, rows in candidates.items() if name.startswith("blocks.2.")}
    found = c.measure_alternatives(options, candidates, c.Ranks())
    assert [*found.choices] == [*candidates]
    ends = {f"blocks.2.{end}.weight" for end in ("self_attn.o", "cross_attn.o", "ffn.2")}
    assert {*found.energies} == ends
    for name, energy in found.energies.items():
        plan = candidates[name][0]
        weight = c.load(plan.ref).float()
        expected = float((c.recorded_rows(plan) @ weight.t()).square().mean())
        assert energy == pytest.approx(expected, rel=0.1)  # from some of the weight's rows
