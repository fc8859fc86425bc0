"""Files by recipes, --use-int8, --sensitive-as and cards: sound, and decoded by comfy_kitchen."""

import json
from collections import Counter

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.kitchen import kitchen_layout

GGUF = ("--gguf", "GGUF", "--gguf-nvfp4-max-bitdepth", "5")
# Arguments, and how many layers of which format the tiny Wan has then.
FILES = {
    "int8": (["--recipe", "int8"], {"int8_tensorwise": 40}),
    "w4a8": (["--recipe", "w4a8"], {"asym_w4a8_int8": 28, "int8_tensorwise": 12}),
    "gguf int8": ([*GGUF, "--recipe", "int8"], {"int8_tensorwise": 80}),
    "gguf w4a8": ([*GGUF, "--recipe", "w4a8"], {"asym_w4a8_int8": 56}),
    "use int8": ([*GGUF, "--use-int8"], {"nvfp4": 56, "int8_tensorwise": 24}),
    "sensitive": (
        [*GGUF, "--use-int8", "--full-precision-mm-cross-attn-qkvo", "--sensitive-as", "w4a8"],
        {"nvfp4": 32, "asym_w4a8_int8": 24, "int8_tensorwise": 24},
    ),
    "turing": (["--card", "turing"], {"int8_tensorwise": 40}),
    "preset": ([], {"nvfp4": 16, "asym_w4a8_int8": 12, "int8_tensorwise": 12}),
}  # fmt: skip
# The largest relative error of a layer of normally distributed weights that is right.
LARGEST = {"nvfp4": 0.1, "asym_w4a8_int8": 0.075, "int8_tensorwise": 0.012}


def kitchen_value(config, parts, shape):
    """What comfy_kitchen decodes a layer's tensors to."""
    facts = {"orig_dtype": torch.float32, "orig_shape": tuple(shape)}
    if config["format"] == "asym_w4a8_int8":
        layout = kitchen_layout("AsymW4A8Int8Layout")
        names = {"scale": "s_rel", "s_channel": "s_channel", "codebook": "codebook"}
        facts |= {field: parts[f"weight_{name}"] for field, name in names.items()}
        facts["group_size"] = config["group_size"]
    else:
        layout = kitchen_layout("TensorWiseINT8Layout")
        facts |= {"scale": parts["weight_scale"], "convrot": config.get("convrot", False)}
    return layout.dequantize(parts["weight"], layout.Params(**facts))


def check_layers(out, source):
    """Verify a file, and hold what comfy_kitchen decodes against its source; return its formats."""
    tensors = load_file(out)
    with safe_open(out, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    for layer, config in layers.items():
        assert "full_precision_matrix_mult" not in config
        if config["format"] == "nvfp4":
            continue
        assert f"{layer}.input_scale" not in tensors
        own = {key.removeprefix(f"{layer}."): t for key, t in tensors.items()}
        weight = source[f"{layer}.weight"]
        error = (kitchen_value(config, own, weight.shape) - weight).norm() / weight.norm()
        assert error < LARGEST[config["format"]], layer
    return Counter(config["format"] for config in layers.values())


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_sound_and_decoded_by_comfy_kitchen(name, tiny, tmp_path, capsys):
    given, counts = FILES[name]
    given = [str(tiny / "model.gguf") if word == "GGUF" else word for word in given]
    out = tmp_path / "o.safetensors"
    assert c.main([str(tiny), str(out), *given, "--quiet"]) == 0
    assert c.main(["--verify", str(out), "--source", str(tiny)]) == 0
    assert "no defect found" in capsys.readouterr().out
    source = {}
    for shard in tiny.glob("*.safetensors"):
        source |= load_file(shard)
    assert check_layers(out, source) == counts


@pytest.mark.parametrize("recipe", ["int8", "w4a8"])
def test_columns_that_are_not_rotated_are_int8(recipe, tmp_path, capsys):
    source = {f"blocks.0.x.{i}.weight": torch.randn(48, 64 * 4**i) for i in range(2)}
    save_file(source, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--preset", "none", "--include", "."]
    assert c.main([*command, "--recipe", recipe, "--quiet"]) == 0
    assert "\n1 layer is INT8 not rotated for its shape: blocks.0.x.0" in (capsys.readouterr().out)
    assert c.main(["--verify", str(out), "--source", command[0]]) == 0
    assert "no defect found" in capsys.readouterr().out
    wide = {"int8": "int8_tensorwise", "w4a8": "asym_w4a8_int8"}[recipe]
    assert check_layers(out, source) == Counter([wide, "int8_tensorwise"])


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        ("fp8", {"float8_e4m3fn"}), ("scaled-fp8", set()), ("int8", {"int8_tensorwise"}),
        ("w4a8", {"asym_w4a8_int8", "int8_tensorwise"}),
    ],
)  # fmt: skip
def test_a_size_is_reached_with_what_a_recipe_writes(recipe, formats, tiny, tmp_path):
    out, wanted = tmp_path / "o.safetensors", 14_000_000
    given = ["--recipe", recipe, "--dtype", "bfloat16", "--target-size", str(wanted), "--quiet"]
    assert c.main([str(tiny), str(out), *given]) == 0
    assert 0.95 * wanted < out.stat().st_size <= wanted
    with safe_open(out, "pt") as file:
        stored = json.loads(file.metadata().get("_quantization_metadata", '{"layers": {}}'))
    assert {config["format"] for config in stored["layers"].values()} <= formats


def test_a_source_that_is_of_the_recipe_already_goes_over(tmp_path, capsys):
    """Half of it was packed before; what is left becomes the same format."""
    source = tmp_path / "m.safetensors"
    save_file({f"blocks.{i}.x.weight": torch.randn(32, 256) for i in range(4)}, source)
    half, out = tmp_path / "half.safetensors", tmp_path / "o.safetensors"
    some = ["--preset", "none", "--include", r"blocks\.[01]", "--recipe", "w4a8", "--quiet"]
    assert c.main([str(source), str(half), *some]) == 0
    every = ["--preset", "all", "--quiet"]
    assert c.main([str(half), str(out), *every, "--recipe", "w4a8"]) == 0
    before, after = load_file(half), load_file(out)
    assert torch.equal(before["blocks.0.x.weight"], after["blocks.0.x.weight"])
    assert after["blocks.3.x.weight"].shape == (32, 128)
    capsys.readouterr()
    assert c.main([str(half), str(tmp_path / "p.safetensors"), *every, "--recipe", "int8"]) == 1
    problem = "--recipe int8: blocks.0.x, blocks.1.x: quantised otherwise in the source already"
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("name", ["preset", "w4a8", "turing"])
def test_a_chosen_plan_is_replayed_exactly(name, tiny, tmp_path):
    config, first, again = (tmp_path / n for n in ("p.json", "a.safetensors", "b.safetensors"))
    given = [*FILES[name][0], "--quiet"]
    assert c.main([str(tiny), str(first), *given, "--layer-config-out", str(config)]) == 0
    assert c.main([str(tiny), str(again), "--layer-config", str(config), "--quiet"]) == 0
    expected, found = load_file(first), load_file(again)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        both = (t.reshape(-1).view(torch.uint8) for t in (tensor, found[key]))
        assert torch.equal(*both), key


@pytest.mark.parametrize(
    ("formats", "config"),
    [("nvfp4,w4a8,int8,fp8,16bit", "float8_e4m3fn"), ("nvfp4,int8,16bit", "int8_tensorwise")],
)
def test_a_preset_keeps_the_codes_that_the_source_has(formats, config, tiny, tmp_path):
    """They are rounded a second time only where FP8 may not be chosen."""
    source, out = tmp_path / "s.safetensors", tmp_path / "o.safetensors"
    assert c.main([str(tiny), str(source), "--recipe", "fp8", "--preset", "all", "--quiet"]) == 0
    assert c.main([str(source), str(out), "--formats", formats, "--quiet"]) == 0
    with safe_open(out, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    before, after = load_file(source), load_file(out)
    assert layers["blocks.3.self_attn.v"]["format"] == config
    name = "blocks.3.self_attn.v.weight"
    same = torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
    assert same is (config == "float8_e4m3fn")
