"""INT8, W4A8, W6A8, MXFP8 and ComfyUI's own 4-bit integers: verified, compared, and adopted."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.compare.entry import compare_models
from nvfp4.formats.base import format_titled
from nvfp4.numeric.rotation import rotate
from nvfp4.options import Verification
from nvfp4.report.check import render_check
from nvfp4.stored.defects import DEFECTS
from nvfp4.verify import verify_file
from support.broken_integers import CASES, TITLES, Integers, encoded, sound_integers, write_integers
from support.kitchen import kitchen_layout
from support.scaled import configuration


def findings(path, source=None):
    check = verify_file(Verification(file=path, source=source, quiet=True))
    return check, {(one.defect, one.name, one.detail) for one in check.findings}


@pytest.fixture(scope="module")
def sound(converted, tmp_path_factory):
    return sound_integers(converted, tmp_path_factory.mktemp("sound") / "sound.safetensors")


def test_a_sound_file_is_measured_and_says_what_it_needs(sound, tiny):
    check, found = findings(sound, tiny)
    assert found == set()
    assert {check.layers[name].scheme for name in check.damage} >= {*TITLES}
    errors = {check.layers[name].scheme: d.relative_rmse for name, d in check.damage.items()}
    assert errors["INT8"] < errors["W6A8"] < errors["W4A8"] < errors["ConvRot INT4"] < 0.13
    text = render_check(check)
    assert "1 W4A8, 1 W6A8, 6 FP8, 1 INT8, 1 INT8 not rotated, 1 MXFP8\n" in text
    assert "  needs ComfyUI 0.33 with comfy-kitchen 0.2.40 or newer (W6A8)\n" in text


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_is_named_for_what_it_is(name, sound, tmp_path):
    path = write_integers(name, sound, tmp_path / "broken.safetensors")
    _, found = findings(path)
    assert [defect for defect, _, _ in found] == [CASES[name][0]]
    assert DEFECTS[CASES[name][0]].outcome.name in render_check(findings(path)[0])


def swap(codes):
    codes = codes.view(torch.uint8)
    return ((codes << 4) | (codes >> 4)).view(torch.int8)


def nibbles_of_w4a8(file):
    file.put("weight", swap(file.get("weight", file.w4a8)), file.w4a8)


def nibbles_of_w6a8(file):
    codes = file.get("weight", file.w6a8)
    lower = codes.shape[1] * 2 // 3
    file.put("weight", torch.cat([swap(codes[:, :lower]), codes[:, lower:]], 1), file.w6a8)


def rotation_not_configured(file):
    file.configure(file.int8, {"format": "int8_tensorwise"})


def rotation_configured_in_vain(file):
    file.set(file.plain, convrot=True)


def rotation_left_out(file):
    form = format_titled("W4A8")
    stored = {part: file.get(part, file.w4a8) for part in form.parts((256, 256))}
    parts, scale = form.unpack(stored)
    # A weight that is rotated twice is the weight.
    tensors, _ = encoded(rotate(form.decode(*parts, scale), 256), "W4A8")
    for suffix, tensor in tensors.items():
        file.put(suffix, tensor, file.w4a8)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (nibbles_of_w4a8, "packed with the even column in the high nibble"),
        (nibbles_of_w6a8, "packed with the even column in the high nibble"),
        (rotation_left_out, "not rotated, though this format is"),
        (rotation_not_configured, "rotated, but not configured so"),
        (rotation_configured_in_vain, "not rotated, but configured so"),
    ],
)
def test_wrong_values_are_explained_by_their_source(change, detail, sound, tiny, tmp_path):
    file = Integers(sound)
    change(file)
    path = file.save(tmp_path / "m.safetensors")
    assert findings(path)[1] == set()
    assert [(defect, told) for defect, _, told in findings(path, tiny)[1]] == [("values", detail)]


def test_options_that_no_row_has_are_named(sound, tmp_path):
    file = Integers(sound)
    file.set(file.w4a8, convrot_groupsize=64)
    _, found = findings(file.save(tmp_path / "m.safetensors"))
    options = '{"group_size": 16, "convrot_groupsize": 64}'
    assert found == {("unknown options", file.w4a8, f"asym_w4a8_int8 {options}")}


@pytest.mark.parametrize(("title", "defect"), [("INT8", None), ("W4A8", "no linear layer")])
def test_embeddings_take_int8_alone(title, defect, sound, tmp_path):
    file, layer = Integers(sound), "trainable_cond_mask"
    tensors, config = encoded(torch.randn(32, 256), title)
    for suffix, tensor in tensors.items():
        file.put(suffix, tensor, layer)
    file.configure(layer, config)
    _, found = findings(file.save(tmp_path / "m.safetensors"))
    assert [one for one, _, _ in found] == ([defect] if defect else [])


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"a": ("FP8", {})}, ""),
        ({"a": ("NVFP4", {"pre_quant_scale": torch.ones(256)})}, "0.30 or newer (pre_quant_scale)"),
        ({"a": ("INT8", {}), "b": ("FP8", {})}, "0.27 or newer (INT8)"),
        ({"trainable_cond_mask": ("INT8", {})}, "0.29 or newer (embeddings in INT8)"),
        ({"a": ("INT8", {}), "b": ("W4A8", {})}, "0.31 or newer (W4A8)"),
    ],
)
def test_the_newest_of_all_needs_counts(layers, told, tmp_path):
    found = {}
    for layer, (title, more) in layers.items():
        tensors, config = encoded(torch.randn(32, 256), title)
        found |= {f"{layer}.{suffix}": tensor for suffix, tensor in (tensors | more).items()}
        found[f"{layer}.comfy_quant"] = configuration(**config)
    save_file(found, tmp_path / "m.safetensors")
    text = render_check(findings(tmp_path / "m.safetensors")[0])
    needs = [line for line in text.splitlines() if "needs ComfyUI" in line]
    assert [line.strip() for line in needs] == ([f"needs ComfyUI {told}"] if told else [])


def test_flat_scales_of_int8_are_scales_of_columns_when_comfy_kitchen_decodes():
    int8 = kitchen_layout("TensorWiseINT8Layout")
    codes, params = int8.quantize(torch.randn(64, 64), per_channel=True)
    flat = dataclasses.replace(params, scale=params.scale.flatten())
    assert torch.equal(int8.dequantize(codes, flat), codes.float() * params.scale.flatten())


def test_the_comparison_names_schemes_and_needs(sound, converted, capsys):
    assert compare_models([str(sound), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    labels = {"ConvRot INT4 W4A4", "W4A8", "W6A8", "INT8 W8A8", "INT8 not rotated W8A8"}
    assert labels <= data["schemes"].keys()
    assert "8-bit activations" in data["verdict"]["runs"]["W4A8"]["how"]
    assert compare_models([str(converted), str(sound), "--values"]) == 0
    text = capsys.readouterr().out
    assert "  needs ComfyUI 0.33" in text
    assert "not compared" not in text


@pytest.mark.parametrize("title", TITLES[:4])
def test_a_weight_of_one_row(title, tmp_path):
    tensors, config = encoded(torch.randn(1, 256), title)
    found = {f"a.{suffix}": tensor for suffix, tensor in tensors.items()}
    path = tmp_path / "m.safetensors"
    save_file(found | {"a.comfy_quant": configuration(**config)}, path)
    assert {defect for defect, _, _ in findings(path)[1]} == {"one form"}


def test_the_choice_of_an_attention_is_no_stray(sound, tiny, tmp_path, capsys):
    file, key = Integers(sound), "blocks.3.self_attn.comfy_attention.config"
    file.tensors[key] = configuration(attention="comfy_kitchen_int8")
    path = file.save(tmp_path / "m.safetensors")
    assert findings(path, tiny)[1] == set()
    assert compare_models([str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["naming"][".comfy_attention.config"] == 1
    assert "U8" not in data["not_quantised"]["weights"]


def bank(title, count=3):
    """A bank of experts as ComfyUI's MoEExperts stores it, and its weights [E, N, K]."""
    weight = torch.randn(count, 128, 256, generator=torch.Generator().manual_seed(4))
    made, config = zip(*(encoded(one, title) for one in weight), strict=True)
    shared = {"weight_codebook": made[0]["weight_codebook"]} if title == "W4A8" else {}
    tensors = {suffix: torch.stack([one[suffix] for one in made]) for suffix in made[0]} | shared
    return tensors, config[0] | {"num_experts": count}, weight


def model_with_bank(path, tensors, config):
    found = {f"blocks.{i}.q.weight": torch.ones(64, 64) for i in range(6)}
    layer = "blocks.0.mlp.experts.down_proj"
    found |= {f"{layer}.{suffix}": tensor for suffix, tensor in tensors.items()}
    if config:
        found[f"{layer}.comfy_quant"] = configuration(**config)
    save_file(found, path)
    return path


@pytest.mark.parametrize("title", ["NVFP4", "INT8", "W4A8", "FP8"])
def test_a_bank_of_experts_is_named_and_measured(title, tmp_path, capsys):
    tensors, config, weight = bank(title)
    path = model_with_bank(tmp_path / "m.safetensors", tensors, config)
    source = model_with_bank(tmp_path / "s.safetensors", {"weight": weight}, None)
    check, found = findings(path, source)
    told = {defect for defect, _, _ in found}
    assert told == ({"one form", "clamped"} if title == "FP8" else {"one form"})
    assert 0 < check.damage["blocks.0.mlp.experts.down_proj"].relative_rmse < 0.12
    assert f"layers    1 {title}\n" in render_check(check)
    assert compare_models([str(path)]) == 0
    assert ", 3 experts" in capsys.readouterr().out
    # One expert's codes of another weight are found.
    tensors["weight"][1] = tensors["weight"][1].flip(0)
    model_with_bank(path, tensors, config)
    assert "values" in {defect for defect, _, _ in findings(path, source)[1]}


def test_a_flat_bank_of_experts(tmp_path):
    tensors, config, _ = bank("W4A8")
    flat = {k: t.flatten(0, 1) if t.ndim > 1 else t for k, t in tensors.items()}
    path = model_with_bank(tmp_path / "m.safetensors", flat, config)
    check, found = findings(path)
    assert {defect for defect, _, _ in found} == {"one form"}
    assert check.layers["blocks.0.mlp.experts.down_proj"].shape == (3, 128, 256)
