"""What is in the output: header, codes, scales, and the error that the report has of them."""

import json
import math
import sys

import comfy_kitchen
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import RECIPE, convert_tiny

CONFIGS = (
    {"format": "nvfp4"},
    {"format": "nvfp4", "full_precision_matrix_mult": True},
    {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
)


@pytest.fixture(scope="module")
def stored(converted):
    return load_file(converted)


@pytest.fixture(scope="module")
def source(tiny):
    tensors = {}
    for shard in tiny.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors


def config(stored, layer):
    return json.loads(bytes(stored[f"{layer}.comfy_quant"].tolist()))


def quantised(stored):
    names = (name for name in stored if name.endswith(".comfy_quant"))
    return [name.removesuffix(".comfy_quant") for name in names]


def test_both_metadata_forms_say_the_same(converted, stored):
    with safe_open(converted, "pt") as file:
        metadata = file.metadata()
    found = json.loads(metadata["_quantization_metadata"])
    assert found["format_version"] == "1.0"
    assert found["layers"] == {layer: config(stored, layer) for layer in quantised(stored)}
    assert {json.dumps(value) for value in found["layers"].values()} == {
        json.dumps(value) for value in CONFIGS
    }


def test_the_header_tells_how_the_file_was_made(converted, tiny):
    with safe_open(converted, "pt") as file:
        recipe = json.loads(file.metadata()["convert_nvfp4"])
    assert recipe["version"] == c.__version__
    assert recipe["options"]["gguf"] == "model.gguf"
    assert recipe["options"]["input_scale_summary_multiplier"] == 1.08
    shards = {path.name: path.stat().st_size for path in tiny.glob("*.safetensors*")}
    assert recipe["sources"] == shards
    assert recipe["plan"] == {"FP32": 145, "FP8": 12, "HALF": 46, "NVFP4": 28}
    assert str(tiny.parent) not in json.dumps(recipe)


def test_nvfp4_layers_are_what_comfy_kitchen_makes_of_them(converted_amax, source):
    stored = load_file(converted_amax)
    layers = [name for name in quantised(stored) if config(stored, name)["format"] == "nvfp4"]
    assert len(layers) == 28
    for layer in layers:
        weight, scale = source[f"{layer}.weight"], stored[f"{layer}.weight_scale_2"]
        assert scale.dtype == torch.float32
        assert scale.shape == ()
        assert scale == weight.abs().max() / (448 * 6)
        packed, block_scale = comfy_kitchen.quantize_nvfp4(weight, scale)
        assert torch.equal(packed, stored[f"{layer}.weight"])
        found = stored[f"{layer}.weight_scale"]
        assert torch.equal(block_scale.view(torch.uint8), found.view(torch.uint8))


def test_the_search_is_nearer_in_every_layer_and_as_big(converted, converted_amax, source):
    """Both files decoded by comfy_kitchen, which knows nothing of how scales were chosen."""
    files = [load_file(path).items() for path in (converted, converted_amax)]
    shapes, amax_shapes = ({name: (t.dtype, t.shape) for name, t in file} for file in files)
    assert shapes == amax_shapes
    errors = []
    for path in (converted, converted_amax):
        stored = load_file(path)
        layers = [name for name in quantised(stored) if config(stored, name)["format"] == "nvfp4"]
        errors.append({layer: squared_error(stored, source, layer) for layer in layers})
    ratios = [errors[0][layer] / errors[1][layer] for layer in errors[0]]
    assert len(ratios) == 28
    assert max(ratios) < 0.92  # its outlier channels are exact under amax, too


def squared_error(stored, source, layer):
    parts = (f"{layer}.weight", f"{layer}.weight_scale_2", f"{layer}.weight_scale")
    decoded = comfy_kitchen.dequantize_nvfp4(*(stored[part] for part in parts), torch.float32)
    return float((decoded - source[f"{layer}.weight"]).square().sum())


def test_the_reports_error_is_that_of_the_decoded_file(tiny, source, tmp_path):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    convert_tiny(tiny, out, "--report", str(report))
    stored, data = load_file(out), json.loads(report.read_text())
    assert data["output_bytes"] == out.stat().st_size
    assert [row["name"] for row in data["tensors"]] == list(c.open_model(tiny).tensors)
    rows = [row for row in data["tensors"] if row["precision"] == "NVFP4"]
    assert len(rows) == 28
    for row in rows:
        layer = row["name"].removesuffix(".weight")
        energy = float(source[row["name"]].square().sum())
        expected = (squared_error(stored, source, layer) / energy) ** 0.5
        assert row["relative_rmse"] == pytest.approx(expected, rel=1e-4)
        assert row["sqnr_db"] == pytest.approx(-20 * math.log10(expected), abs=1e-3)
        assert row["input_scale"] == pytest.approx(float(stored[f"{layer}.input_scale"]))
    fp8 = next(row for row in data["tensors"] if row["precision"] == "FP8")
    assert 0 < fp8["relative_rmse"] < 0.04


def test_a_better_global_scale_is_found_for_blocks_in_e4m3s_subnormals(tmp_path):
    """Rows of very different size leave many blocks few block-scale values to choose from."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(512, 512, generator=generator)
    weight *= torch.exp(4 * torch.randn(512, 1, generator=generator))
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    assert c.main([str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--quiet"]) == 0
    found, plain = load_file(out)["x.weight_scale_2"], weight.abs().max() / 2688
    assert found in [plain * (448 / largest) for largest in c.OTHER_LARGEST_SCALES]
    plain_error, error = (
        c.measure_damage(
            weight, c.decode_nvfp4(*c.encode_nvfp4(weight, s, c.mse_block_scales), s)
        ).error
        for s in (plain, found)
    )
    assert error < plain_error


def test_fp8_layers_are_what_comfy_kitchen_makes_of_them(stored, source):
    layers = [name for name in quantised(stored) if "float8" in config(stored, name)["format"]]
    assert len(layers) == 12
    for layer in layers:
        weight, scale = source[f"{layer}.weight"], stored[f"{layer}.weight_scale"]
        expected = comfy_kitchen.quantize_per_tensor_fp8(weight, scale)
        found = stored[f"{layer}.weight"]
        assert torch.equal(expected.view(torch.uint8), found.view(torch.uint8))


def test_all_other_tensors_are_cast_or_kept(stored, source):
    others = [name for name in source if name.removesuffix(".weight") not in quantised(stored)]
    assert {stored[name].dtype for name in others} == {torch.float16, torch.float32}
    for name in others:
        assert torch.equal(stored[name], source[name].to(stored[name].dtype))
        assert stored[name].dtype == torch.float32 or name.endswith(".weight")


def test_no_tensor_is_lost_or_invented(stored, source):
    scales = (".weight_scale", ".weight_scale_2", ".input_scale", ".comfy_quant")
    assert {name for name in stored if not name.endswith(scales)} == set(source)


def test_every_tensor_starts_at_a_multiple_of_its_item_size(converted):
    tensors, _ = c.read_header(converted)
    ends = [name for name in tensors if name.endswith(".comfy_quant")]
    assert list(tensors)[-len(ends) :] == sorted(ends)
    for ref in tensors.values():
        assert ref.begin % (c.SAFETENSORS_BITS[ref.dtype] // 8) == 0


def test_padding_of_rows_and_columns(tmp_path):
    """24 rows without a bias are padded to 32; the block scales to a 128x4 tile."""
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(5))
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    assert c.main([*command, "--include", "x", "--quiet", "--scale-search", "amax"]) == 0
    found = load_file(tmp_path / "o.safetensors")
    packed, block_scale = comfy_kitchen.quantize_nvfp4(
        weight, found["x.weight_scale_2"], pad_16x=True
    )
    assert found["x.weight"].shape == (32, 48)
    assert found["x.weight_scale"].shape == (128, 8)
    assert torch.equal(found["x.weight"], packed)
    assert torch.equal(found["x.weight_scale"].view(torch.uint8), block_scale.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quant_dtype", ["float32", "bfloat16", "float16"])
def test_quant_dtype_is_what_is_quantised(tmp_path, dtype, quant_dtype):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(6)).to(dtype)
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    command += ["--include", "x", "--quiet", "--use-ck-quant", "--quant-dtype", quant_dtype]
    assert c.main(command) == 0
    found = load_file(tmp_path / "o.safetensors")
    cast = weight.to(getattr(torch, quant_dtype))
    packed, _ = comfy_kitchen.quantize_nvfp4(cast, found["x.weight_scale_2"])
    assert torch.equal(found["x.weight"], packed)


def test_a_dry_run_knows_the_exact_size_and_writes_nothing(tiny, converted, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    command = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE, "--dry-run"]
    assert c.main(command) == 0
    assert f"exactly {converted.stat().st_size:,} bytes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_float16_cannot_hold_stays_float32(tmp_path, capsys, dry_run):
    tensors = {
        "x.weight": torch.ones(16, 32),
        "big": torch.tensor([[[1e5]]]),
        "fits": torch.tensor([[[65504.0]]]),
        "endless": torch.tensor([[[float("inf")]]]),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--dtype", "float16"]
    assert c.main([*command, "--quiet", *dry_run]) == 0
    text = capsys.readouterr().out
    assert "\n1 tensor does not fit float16 and is float32: big" in text
    if not dry_run:
        found = load_file(out)
        assert found["big"] == tensors["big"]
        assert found["fits"].dtype == found["endless"].dtype == torch.float16
        assert f"exactly {out.stat().st_size:,} bytes" in text


@pytest.mark.parametrize("factor", [1e-42, 1e-38, 1e-30, 1.0, 1e30, 5e37])
@pytest.mark.parametrize("search", ["mse", "amax"])
def test_the_reported_error_holds_for_huge_and_tiny_weights(tmp_path, factor, search):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(7)) * factor
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--include", "x"]
    report = tmp_path / "r.json"
    command += ["--quiet", "--scale-search", search, "--report", str(report)]
    assert c.main(command) == 0
    reported = json.loads(report.read_text())["tensors"][0]["relative_rmse"]
    stored = load_file(tmp_path / "o.safetensors")
    parts = ("x.weight", "x.weight_scale_2", "x.weight_scale")
    decoded = comfy_kitchen.dequantize_nvfp4(*(stored[part] for part in parts), torch.float32)
    exact = weight.double()
    expected = float((decoded.double() - exact).norm() / exact.norm())
    # What 1e-42 leaves of a weight are a few denormals: there decoding itself rounds.
    assert reported == pytest.approx(expected, rel=1e-3 if factor > 1e-40 else 0.5)
    assert expected < (0.11 if factor > 1e-40 else 1.01)


def test_metadata_of_the_source_survives(tmp_path):
    metadata = {"config": '{"a": 1}', "format": "pt"}
    save_file({"x.weight": torch.ones(16, 32)}, tmp_path / "m.safetensors", metadata=metadata)
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    assert c.main([*command, "--include", "x", "--quiet"]) == 0
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert metadata.items() <= file.metadata().items()


@pytest.mark.slow
def test_compiled_and_plain_runs_write_the_same_file(tiny, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    plain = convert_tiny(tiny, tmp_path / "plain.safetensors", "--quiet")
    monkeypatch.setattr(c, "COMPILE_FROM", 0)
    c.compile_kernels()  # else the conversion would be over before another process has them
    compiled = convert_tiny(tiny, tmp_path / "compiled.safetensors", "--quiet")
    assert plain.read_bytes() == compiled.read_bytes()


def test_without_numba_a_large_run_says_so(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(c, "COMPILE_FROM", 0)
    monkeypatch.setitem(sys.modules, "numba", None)
    # What earlier tests compiled.
    c.prepared_kernels.cache_clear()
    monkeypatch.setattr(c, "LONG_EFFORT", 0)
    hint = "hint: pip install numba makes this two to four times faster, with the same bytes\n"
    convert_tiny(tiny, tmp_path / "o.safetensors", "--quiet")
    told = capsys.readouterr()
    assert hint in told.out
    assert hint not in told.err
    # Before the work, too, where it is of use.
    convert_tiny(tiny, tmp_path / "o.safetensors")
    assert hint in capsys.readouterr().err
