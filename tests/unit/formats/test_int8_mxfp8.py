"""INT8 and MXFP8 of a source decode to what comfy_kitchen makes of the same tensors."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.errors import ConvertError
from nvfp4.numeric.rotation import rotate
from nvfp4.read.tensors import load_some_rows, load_weight
from nvfp4.source.open import open_source
from support.kitchen import kitchen_layout
from support.scaled import as_bytes, by_rows, configuration, whole

G = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(384, 512, generator=G) * torch.rand(384, 1, generator=G)
LAYER = "blocks.0.a"


def source(path, tensors, **config):
    """A model with one layer that has these parts and this configuration."""
    found = {f"{LAYER}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
    if config:
        found[f"{LAYER}.comfy_quant"] = configuration(**config)
    save_file(found, path)
    return path


def opened(path):
    return open_source(path).model.tensors[f"{LAYER}.weight"]


def kitchen(layout, **keywords):
    """The stored tensors of WEIGHT in one of its layouts, and what they decode to."""
    layout = kitchen_layout(layout, *keywords)
    codes, params = layout.quantize(WEIGHT, **keywords)
    return {"weight": codes, "weight_scale": params.scale}, layout.dequantize(codes, params)


def test_mxfp8_is_decoded_as_comfy_kitchen_does(tmp_path):
    tensors, expected = kitchen("TensorCoreMXFP8Layout")
    for dtype in (torch.uint8, getattr(torch, "float8_e8m0fnu", torch.uint8)):
        stored = tensors | {"weight_scale": tensors["weight_scale"].view(dtype)}
        ref = opened(source(tmp_path / "m.safetensors", stored, format="mxfp8"))
        assert torch.equal(load_weight(ref), expected)
        rows = [i * (384 - 32) // 7 + j for i in range(8) for j in range(32)]
        assert torch.equal(load_some_rows(ref), expected[rows])
        assert ref.coding.title == "MXFP8"


@pytest.mark.parametrize("group", [0, 16, 64, 256])
def test_int8_is_decoded_as_comfy_kitchen_does(tmp_path, group):
    more = {"convrot": True, "convrot_groupsize": group} if group else {}
    tensors, expected = kitchen("TensorWiseINT8Layout", per_channel=True, **more)
    inside = {"params": more} if group == 64 else more
    path = source(tmp_path / "m.safetensors", tensors, format="int8_tensorwise", **inside)
    found = load_weight(opened(path))
    if group:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(WEIGHT.abs().max()))
    else:
        assert torch.equal(found, expected)
    assert (found - WEIGHT).norm() < 0.01 * WEIGHT.norm()
    rows = [i * (384 - 32) // 7 + j for i in range(8) for j in range(32)]
    assert torch.equal(load_some_rows(opened(path)), found[rows])


def test_groups_of_256_are_what_a_configuration_means_without_a_number(tmp_path):
    tensors, expected = kitchen("TensorWiseINT8Layout", per_channel=True, convrot=True)
    path = source(tmp_path / "m.safetensors", tensors, format="int8_tensorwise", convrot=True)
    torch.testing.assert_close(load_weight(opened(path)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [whole(), whole((1,)), by_rows(), by_rows((-1,))])
@pytest.mark.parametrize("config", [{}, {"format": "int8_tensorwise"}])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_int8_of_other_programs_is_code_times_scale(tmp_path, make, config, scale_dtype):
    codes, scale, _ = make(WEIGHT)
    codes, scale = (codes.float() / 4).to(torch.int8), scale.to(scale_dtype)
    path = source(tmp_path / "m.safetensors", {"weight": codes, "weight_scale": scale}, **config)
    by_row = scale.float().reshape(-1, 1)
    assert torch.equal(load_weight(opened(path)), codes.float() * by_row)


@pytest.mark.parametrize("group", [4, 16, 256, 1024])
def test_a_rotation_is_its_own_inverse_whatever_rows_come_together(group):
    values = torch.randn(70, 1024, generator=G)
    rotated = rotate(values, group)
    assert torch.equal(rotated[30:40], rotate(values[30:40], group))
    torch.testing.assert_close(rotate(rotated, group), values, rtol=0, atol=1e-5)
    assert not torch.allclose(rotated, values, atol=0.1)


INT8 = {"weight": torch.ones(320, 200, dtype=torch.int8), "weight_scale": torch.ones(320, 1)}
MX = {"weight": torch.ones(320, 224).to(torch.float8_e4m3fn)}
ROTATED = {"format": "int8_tensorwise", "convrot": True}
TILES = torch.full((384, 8), 127, dtype=torch.uint8)
WRONG = {
    r"its weight \[320, 200\] has no whole groups of 256 columns": (INT8, ROTATED),
    r"is stored as int8_tensorwise, which is not decoded": (
        INT8, ROTATED | {"convrot_groupsize": "many"}),
    r"is stored as int8_tensorwise, which is not decoded here": (
        INT8, ROTATED | {"convrot_groupsize": 100}),
    r"its scale is F32 \[319\] for a weight \[320, 200\]": (
        INT8 | {"weight_scale": torch.ones(319)}, {}),
    r"one of its scales is 0.0": (INT8 | {"weight_scale": torch.zeros(320, 1)}, {}),
    r"weight_zero_point": (INT8 | {"weight_zero_point": torch.ones(320, 1)}, {}),
    r"its scale is U8 \[320, 8\] for a weight \[320, 224\]": (
        MX | {"weight_scale": TILES[:320]}, {"format": "mxfp8"}),
    r"its scale is F32 \[\] for a weight": (
        MX | {"weight_scale": torch.ones(())}, {"format": "mxfp8"}),
    r"its scale is U8 \[384, 8\] for a weight": (MX | {"weight_scale": TILES}, {}),
    r"one of its scales is inf": (
        MX | {"weight_scale": torch.full((384, 8), 255, dtype=torch.uint8)}, {"format": "mxfp8"}),
    r"its weight \[320, 224\] is padded from \[300, 224\]": (
        MX | {"weight_scale": TILES, "bias": torch.ones(300)}, {"format": "mxfp8"}),
}  # fmt: skip


@pytest.mark.parametrize("problem", WRONG)
def test_what_cannot_be_decoded_is_told_with_its_layer(tmp_path, problem):
    tensors, config = WRONG[problem]
    with pytest.raises(ConvertError, match=f"is already quantised.*{problem}"):
        open_source(source(tmp_path / "m.safetensors", tensors, **config))


READ = {
    "MXFP8": ("TensorCoreMXFP8Layout", {}, {"format": "mxfp8"}),
    "INT8": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True}, ROTATED),
}


@pytest.mark.parametrize("label", READ)
def test_outputs_are_those_of_the_decoded_weight(tmp_path, capsys, label):
    layout, keywords, config = READ[label]
    tensors, _ = kitchen(layout, **keywords)
    path, out = source(tmp_path / "m.safetensors", tensors, **config), tmp_path / "o.safetensors"
    command = ["--preset", "all", "--quiet"]
    assert main([str(path), str(out), *command]) == 0
    assert f"1 layer is {label} in the source and quantised twice" in capsys.readouterr().out
    assert main(["--verify", str(out), "--source", str(path), "--quiet"]) == 0
    plain, other = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    source(plain, {"weight": load_weight(opened(path))})
    assert main([str(plain), str(other), *command]) == 0
    assert as_bytes(out) == as_bytes(other)
