"""Weights at the ends of what floats hold, through whole conversions."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.extremes import DTYPES, NORMAL, WEIGHTS


def convert(weight, tmp_path, *arguments):
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    tensors = {"x.weight": weight, "x.bias": torch.zeros(len(weight), dtype=weight.dtype)}
    save_file(tensors | {"other.weight": torch.ones(64, 64)}, source)
    command = [str(source), str(out), "--preset", "all", "--quiet", *arguments]
    return c.main(command), source, out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "dtype"), [("amax", torch.float32), *(("mse", dtype) for dtype in DTYPES)]
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_is_stored_as_well_as_its_format_can(name, search, dtype, tmp_path):
    weight = WEIGHTS[name].to(dtype)
    if not weight.isfinite().all():
        weight = WEIGHTS[name].clamp(-60000, 60000).to(dtype)
    status, source, out = convert(weight, tmp_path, "--scale-search", search)
    assert status == 0
    assert c.main(["--verify", str(out), "--quiet"]) == 0
    assert c.main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0
    layers, stored = c.stored_layers(c.open_model(out)), load_file(out)
    layer = layers["x"]
    if layer.configured is None:
        assert torch.equal(stored["x.weight"].view(torch.uint8), weight.view(torch.uint8)) or (
            stored["x.weight"].dtype == torch.bfloat16
        )
        return
    with c.Compute(torch.device("cpu")) as compute:
        damage = c.decoded_damage(
            weight.float(), c.stored_parts(layer), layer.format.decode, compute
        )
    # what is left of numbers that underflow any scale may be nothing, but never more than all
    assert damage.relative_rmse <= (1.0 if weight.abs().max() < 1e-37 else 0.12)


@pytest.mark.parametrize("recipe", ["mixed", "fp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_is_an_error(bad, dtype, recipe, tmp_path, capsys):
    weight = NORMAL.clone().to(dtype)
    weight[-1, -1] = bad
    status, _, out = convert(weight, tmp_path, "--recipe", recipe)
    assert status == 1
    assert "x.weight holds NaN or Inf" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("recipe", ["int8", "w4a8"])
def test_what_is_too_large_to_be_rotated_is_an_error(recipe, tmp_path, capsys):
    weight = NORMAL.clamp(-3, 3).repeat(1, 4) * 1e38
    status, _, out = convert(weight, tmp_path, "--recipe", recipe)
    assert status == 1
    assert "x.weight holds numbers too large to be rotated for" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("value", [65504.0, 65519.9, 65520.0, 1e30])
def test_float16_keeps_what_it_can_hold(value, tmp_path):
    """65519.9 still rounds to 65504; from 65520 on it would be infinite, and is float32."""
    weight = torch.full((32, 32), value)
    status, source, out = convert(weight, tmp_path, "--dtype", "float16", "--exclude", "^x")
    assert status == 0
    stored = load_file(out)["x.weight"]
    assert stored.dtype == (torch.float16 if value < 65520 else torch.float32)
    assert stored.isfinite().all()
    assert c.main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0


def test_float16_rounds_what_is_too_small_to_zero(tmp_path):
    status, _, out = convert(NORMAL * 1e-9, tmp_path, "--dtype", "float16", "--exclude", "^x")
    assert status == 0
    assert load_file(out)["x.weight"].abs().max() == 0


@pytest.mark.parametrize("recipe", ["mixed", "fp8"])
def test_what_no_scale_can_hold_is_lost_aloud(recipe, tmp_path, capsys):
    weight = torch.full((32, 32), 2.0**-149)
    status, source, out = convert(weight, tmp_path, "--recipe", recipe)
    assert status == 0
    assert "warning: 1 layer loses most of its weights" in capsys.readouterr().out
    assert c.main(["--verify", str(out), "--source", str(source), "--quiet"]) == 1
