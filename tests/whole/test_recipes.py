"""--recipe fp8 and scaled-fp8: the layouts of working FP8 files, from the same options as mixed."""

import json

import comfy_kitchen
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import RECIPE, convert_tiny

FULL = "--fp8-full-precision-mm"


def convert(tiny, tmp_path, recipe, *arguments):
    """Tensors and metadata of the tiny Wan, converted with a GGUF and nothing else."""
    out = tmp_path / "o.safetensors"
    command = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), "--recipe", recipe]
    assert c.main([*command, "--quiet", *arguments]) == 0
    with safe_open(out, "pt") as file:
        return load_file(out), file.metadata()


def quantised(tensors):
    return [name for name, t in tensors.items() if t.dtype == torch.float8_e4m3fn and t.ndim == 2]


def test_scaled_fp8_has_the_working_files_layout(tiny, tmp_path):
    tensors, metadata = convert(tiny, tmp_path, "scaled-fp8")
    weights = quantised(tensors)
    assert len(weights) == 80
    assert {name.rpartition(".")[2] for name in tensors} == {
        "weight", "bias", "modulation", "scale_weight", "scaled_fp8",
    }  # fmt: skip
    assert "_quantization_metadata" not in metadata
    for name in weights:
        scale = tensors[name.replace(".weight", ".scale_weight")]
        assert (scale.dtype, scale.shape) == (torch.float32, (1,))
    rest = {
        tensor.dtype for name, tensor in tensors.items()
        if name not in weights and name != "scaled_fp8"
    }  # fmt: skip
    assert rest == {torch.float32}


@pytest.mark.parametrize(
    ("recipe", "scale_name"), [("fp8", "weight_scale"), ("scaled-fp8", "scale_weight")]
)
def test_fp8_weights_are_what_comfy_kitchen_makes_of_them(recipe, scale_name, tiny, tmp_path):
    tensors, _ = convert(tiny, tmp_path, recipe)
    source = {}
    for shard in tiny.glob("*.safetensors"):
        source |= load_file(shard)
    for name in quantised(tensors):
        scale = tensors[name.replace(".weight", f".{scale_name}")].reshape(())
        assert scale == source[name].abs().max() / 448
        expected = comfy_kitchen.quantize_per_tensor_fp8(source[name], scale)
        assert torch.equal(expected.view(torch.uint8), tensors[name].view(torch.uint8))


def test_fp8_has_the_current_names_and_both_configurations(tiny, tmp_path):
    tensors, metadata = convert(tiny, tmp_path, "fp8")
    layers = json.loads(metadata["_quantization_metadata"])["layers"]
    assert {name.removesuffix(".weight") for name in quantised(tensors)} == layers.keys()
    config = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    assert list(layers.values()) == [config] * 80
    assert all(tensors[f"{layer}.weight_scale"].shape == () for layer in layers)
    assert not any("scale_2" in name or "scaled_fp8" in name for name in tensors)


@pytest.mark.parametrize(
    ("arguments", "elements"),
    [
        ([], 2),  # no input scales: FP8 matmul would clamp at 448
        (["--input-scale-value", "1e-3"], 0),
        (["--input-scale-value", "1e-3", FULL], 2),
        (["--input-scale-value", "1e-3", "--full-precision-mm-pattern", r"blocks\.3\.ffn\.0"], 2),
    ],
)
def test_the_marker_asks_for_what_every_layer_can_do(arguments, elements, tiny, tmp_path):
    tensors, _ = convert(tiny, tmp_path, "scaled-fp8", *arguments)
    assert tensors["scaled_fp8"].shape == (elements,)
    assert tensors["scaled_fp8"].dtype == torch.float8_e4m3fn
    scales = [tensor for name, tensor in tensors.items() if name.endswith("scale_input")]
    assert len(scales) == (80 if arguments else 0)
    assert all(scale == torch.tensor(1e-3 * 2688 / 448) for scale in scales)


def test_an_input_scale_of_one_is_none_to_comfyui(tiny, tmp_path):
    """It drops a scale_input of exactly 1 and would clamp: so the marker asks for 16-bit."""
    value = str(448 / 2688)
    tensors, _ = convert(tiny, tmp_path, "scaled-fp8", "--input-scale-value", value)
    assert tensors["scaled_fp8"].shape == (2,)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "F32"), ("float16", "F16")])
def test_without_a_gguf_everything_else_is_dtype_too(dtype, expected, tmp_path):
    weights = {"x.weight": torch.ones(32, 32), "x.bias": torch.ones(32), "norm": torch.ones(32)}
    save_file({name: t.bfloat16() for name, t in weights.items()}, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--quiet"]
    assert c.main([*command, "--recipe", "scaled-fp8", "--dtype", dtype]) == 0
    tensors, _ = c.read_header(out)
    assert {tensors["x.bias"].dtype, tensors["norm"].dtype} == {expected}


def test_one_layer_that_needs_full_precision_decides_for_all_and_is_reported(
    tiny, tmp_path, capsys
):
    mark = ["--input-scale-value", "1e-3", "--full-precision-mm-pattern", r"blocks\.3\.ffn\.0"]
    convert(tiny, tmp_path, "scaled-fp8", *mark)
    note = "has one switch for all its 80 layers: full-precision matmul for all, as 1 need it"
    assert note in capsys.readouterr().out


def test_the_marker_carries_the_models_prefix(tmp_path):
    prefix = "model.diffusion_model."
    save_file({f"{prefix}blocks.0.x.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--quiet"]
    assert c.main([*command, "--recipe", "scaled-fp8"]) == 0
    assert f"{prefix}scaled_fp8" in load_file(out)


def test_metadata_that_would_switch_the_reading_off_is_left_behind(tmp_path):
    metadata = {"_quantization_metadata": '{"layers": {}}', "modelspec.title": "x"}
    save_file({"x.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors", metadata)
    out = tmp_path / "o.safetensors"
    command = [str(tmp_path / "m.safetensors"), str(out), "--include", "x", "--quiet"]
    assert c.main([*command, "--recipe", "scaled-fp8"]) == 0
    with safe_open(out, "pt") as file:
        assert file.metadata().keys() == {"modelspec.title", "convert_nvfp4"}


def test_the_documented_options_work_with_every_recipe(tiny, tmp_path):
    sizes = {}
    for recipe in ("mixed", "fp8", "scaled-fp8"):
        out = tmp_path / f"{recipe}.safetensors"
        convert_tiny(tiny, out, "--recipe", recipe, "--quiet")
        sizes[recipe] = sum(t.nbytes for t in load_file(out).values())
    assert sizes["mixed"] < sizes["fp8"]
    assert "float16" in RECIPE  # so scaled-fp8 is as small here
    assert abs(sizes["scaled-fp8"] - sizes["fp8"]) < 10_000


def test_plans_say_that_the_recipe_raised_them(tiny, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    assert c.main([*command, "--recipe", "fp8", "--dry-run", "--gguf-nvfp4-max-bitdepth", "5"]) == 0
    assert "[--recipe fp8 (else GGUF Q5_K <= 5 bits)" in capsys.readouterr().out


def test_fp8_full_precision_mm_marks_fp8_layers_only(tiny, tmp_path):
    out = convert_tiny(tiny, tmp_path / "o.safetensors", FULL, "--quiet")
    _, metadata = c.read_header(out)
    marked = {
        (config["format"], "full_precision_matrix_mult" in config)
        for config in json.loads(metadata["_quantization_metadata"])["layers"].values()
    }
    assert marked == {("float8_e4m3fn", True), ("nvfp4", True), ("nvfp4", False)}


@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        (torch.uint8, "is already quantised (y.weight)"),
        (torch.int8, "is already quantised (y.weight)"),
        (torch.float8_e4m3fn, "1 weights are FP8 without scales, cast from 16 bits (y.weight)"),
    ],
)
def test_weights_in_one_byte_are_refused_as_quantised(dtype, told, tmp_path, capsys):
    weights = {"x.weight": torch.ones(32, 32), "y.weight": torch.ones(32, 32).to(dtype)}
    save_file(weights, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--include", "x"]
    assert c.main(command) == 1
    assert told in capsys.readouterr().err
