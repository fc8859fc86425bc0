"""Weights far larger or smaller than trained ones: what is told of them is what the file holds."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import convert_nvfp4 as c

SIZES = (1e-36, 1e-22, 1e-10, 1.0, 1e21)
# Words of --layer-config, and the largest relative error of normal numbers.
FORMATS = {"nvfp4": 0.1, "w4a8": 0.08, "w6a8": 0.025, "int8": 0.012, "mxfp8": 0.03, "fp8": 0.03}
NORMAL = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
# Least weights that a format stores as well as any: rows of integers have scales from 1e-30 on.
LEAST = dict.fromkeys(FORMATS, 1e-22) | {"nvfp4": 1e-36, "fp8": 1e-36}
# That of comfy_kitchen's own quantiser, whose row scales begin at 1e-8.
KITCHENS_LEAST = LEAST | {"w4a8": 1e-5, "w6a8": 1e-5}


def convert(tmp_path, sizes, form, *arguments):
    """Convert a layer of each size; return {layer: relative RMSE} of the report, and the files."""
    source, out, config, report = (
        tmp_path / name for name in ("m.safetensors", "o.safetensors", "l.json", "r.json")
    )
    weights = {f"layer{i}.weight": NORMAL * size for i, size in enumerate(sizes)}
    save_file(weights | {"other.weight": torch.ones(64, 64)}, source)
    layers = {f"layer{i}": {"format": form} for i in range(len(sizes))}
    config.write_text(json.dumps(layers), encoding="utf-8")
    command = [source, out, "--layer-config", config, "--report", report, "--quiet", *arguments]
    status = c.main([*map(str, command)])
    if status:
        return status, source, out
    rows = json.loads(report.read_text(encoding="utf-8"))["tensors"]
    told = {
        row["name"].removesuffix(".weight"): row["relative_rmse"]
        for row in rows
        if row["name"].startswith("layer")
    }
    return told, source, out


@pytest.mark.parametrize(("search", "is_compiled"), [("amax", False), ("mse", True)])
@pytest.mark.parametrize("form", FORMATS)
def test_reported_errors_are_those_that_verify_measures(
    form, is_compiled, search, tmp_path, monkeypatch
):
    if is_compiled:
        pytest.importorskip("numba")
        monkeypatch.setattr(c, "COMPILE_FROM", 0)
        c.compile_kernels()
    told, source, out = convert(tmp_path, SIZES, form, "--scale-search", search)
    measured = c.verify_file(c.Verification(file=out, source=source, quiet=True)).damage
    least = (KITCHENS_LEAST if search == "amax" else LEAST)[form]
    for i, size in enumerate(SIZES):
        error = measured[f"layer{i}"].relative_rmse
        assert told[f"layer{i}"] == pytest.approx(error, rel=0.01), size
        # All of a lost weight is its error, which is told as 1.
        assert error < FORMATS[form] if size >= least else 0.5 < error <= 1, size


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_cast_loses_is_told(form, tmp_path):
    """Weights of 1e-10 and below are zeros in float16."""
    told, source, out = convert(tmp_path, SIZES[:4], form, "--quant-dtype", "float16")
    measured = c.verify_file(c.Verification(file=out, source=source, quiet=True)).damage
    for layer, error in told.items():
        assert error == pytest.approx(measured[layer].relative_rmse, rel=0.01), layer


@pytest.mark.parametrize(
    ("search", "dtype"), [("amax", "float32"), ("mse", "bfloat16"), ("mse", "float16")]
)
@pytest.mark.parametrize("form", FORMATS)
def test_weights_near_the_largest_number_are_stored_or_refused(
    form, dtype, search, tmp_path, capsys
):
    told, source, out = convert(
        tmp_path, (1e38,), form, "--quant-dtype", dtype, "--scale-search", search
    )
    if told == 1:
        # The status: nothing was written.
        refused = "NaN or Inf (as torch.float16" if dtype == "float16" else "too large to be rot"
        assert refused in capsys.readouterr().err
        assert not [*tmp_path.glob("o.*")]
        return
    if form == "mxfp8" and not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("safetensors of the age of this torch cannot read scales of MXFP8")
    with safe_open(out, "pt") as file:
        scales = [file.get_tensor(key).float() for key in [*file.keys()] if "scale" in key]
    assert all(scale.isfinite().all() for scale in scales if scale.dtype.is_floating_point)
    measured = c.verify_file(c.Verification(file=out, source=source, quiet=True)).damage
    assert told["layer0"] == pytest.approx(measured["layer0"].relative_rmse, rel=0.01)
    assert told["layer0"] < FORMATS[form]


@pytest.mark.parametrize("search", ["amax", "mse"])
@pytest.mark.parametrize("form", ["int8", "w4a8", "w6a8"])
def test_the_largest_weights_that_are_rotated_are_stored_well(form, search, tmp_path):
    size = c.LARGEST_ROTATED / 3 * (1 - 1e-6)
    told, *_ = convert(tmp_path, (size,), form, "--scale-search", search)
    assert told["layer0"] < FORMATS[form]


def test_a_size_is_reached_with_weights_of_any_size(tmp_path):
    """What is measured of small weights decides as that of others does."""
    source, report = tmp_path / "m.safetensors", tmp_path / "r.json"
    weights = {f"layer{i}.weight": NORMAL * size for i, size in enumerate((1e-22, 1.0, 1e21))}
    save_file(weights, source)
    command = [source, tmp_path / "o.safetensors", "--preset", "all", "--target-ratio", "0.4"]
    assert c.main([*map(str, command), "--report", str(report), "--quiet"]) == 0
    rows = json.loads(report.read_text(encoding="utf-8"))["tensors"]
    errors = [row["relative_rmse"] for row in rows if "relative_rmse" in row]
    assert errors
    assert all(0 < error < 0.1 and math.isfinite(error) for error in errors)
