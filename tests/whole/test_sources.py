"""Sources that are quantised already, or more than a diffusion model."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import convert_tiny

pytestmark = pytest.mark.slow

NONE = ("--preset", "none", "--include", r"blocks\.", "--quiet")


def stored_parts(path, layer):
    """{part: bytes} of a layer."""
    tensors, _ = c.read_header(path)
    return {
        name.removeprefix(f"{layer}."): bytes(c.load_bytes(ref).tolist())
        for name, ref in tensors.items()
        if name.startswith(f"{layer}.")
    }


def decoded(path):
    """{layer: its weight} of the FP8 layers of a file."""
    model, _ = c.open_source(path)
    return {
        ref.layer: c.load_weight(ref) for ref in model.tensors.values() if ref.coding is not None
    }


@pytest.fixture(scope="module", params=["fp8", "scaled-fp8"])
def fp8(request, tiny, tmp_path_factory):
    """The tiny Wan as an FP8 checkpoint of either kind."""
    out = tmp_path_factory.mktemp(request.param) / f"{request.param}.safetensors"
    return convert_tiny(tiny, out, "--recipe", request.param, "--quiet")


def test_fp8_sources_are_decoded_first(fp8, tmp_path, capsys):
    out, plain = tmp_path / "o.safetensors", tmp_path / "plain.safetensors"
    weights = decoded(fp8)
    assert len(weights) == 40
    stored = load_file(fp8)
    for layer, weight in weights.items():
        scale = stored.get(f"{layer}.weight_scale", stored.get(f"{layer}.scale_weight"))
        assert torch.equal(weight, stored[f"{layer}.weight"].float() * scale)
    kept = {
        name: tensor
        for name, tensor in stored.items()
        if name.rpartition(".")[0] not in weights or name.endswith(".bias")
    }
    kept.pop("scaled_fp8", None)
    save_file(kept | {f"{layer}.weight": weight for layer, weight in weights.items()}, plain)
    assert c.main([str(fp8), str(out), *NONE]) == 0
    text = capsys.readouterr().out
    assert "40 layers are FP8 in the source and quantised twice" in text
    assert c.main(["--verify", str(out), "--source", str(fp8), "--quiet"]) == 0
    other = tmp_path / "other.safetensors"
    assert c.main([str(plain), str(other), *NONE]) == 0
    assert load_file(out).keys() == load_file(other).keys()
    for layer in weights:
        assert stored_parts(out, layer) == stored_parts(other, layer)


def test_fp8_layers_that_stay_fp8_keep_their_codes(fp8, tmp_path):
    out = tmp_path / "o.safetensors"
    assert c.main([str(fp8), str(out), *NONE, "--recipe", "fp8"]) == 0
    for layer in decoded(fp8):
        before, after = stored_parts(fp8, layer), stored_parts(out, layer)
        assert after["weight"] == before["weight"]
        assert after["weight_scale"] == before.get("weight_scale", before.get("scale_weight"))


def test_nvfp4_layers_go_over_untouched(tiny, converted, tmp_path, capsys):
    """Its FP8 layers become NVFP4; its NVFP4 layers, scales and flags stay as they are."""
    out = tmp_path / "o.safetensors"
    assert c.main([str(converted), str(out), *NONE]) == 0
    text = capsys.readouterr().out
    before, after = (c.stored_layers(c.open_model(path)) for path in (converted, out))
    packed = [name for name, layer in before.items() if layer.configured is c.NVFP4]
    assert f"{len(packed)} layers are quantised in the source and go over as they are" in text
    for layer in packed:
        assert stored_parts(out, layer) == stored_parts(converted, layer)
        assert after[layer].in_header == after[layer].in_tensor == before[layer].in_header
    again = [name for name, layer in before.items() if layer.configured is c.FP8]
    assert again
    assert {after[name].configured for name in again} == {c.NVFP4}
    assert c.main(["--verify", str(out), "--quiet"]) == 0
    assert c.main(["--verify", str(out), "--source", str(tiny), "--quiet"]) == 0


@pytest.mark.parametrize("lacks", ["header", "tensor"])
def test_a_configuration_in_one_place_is_written_to_both(converted, tmp_path, lacks):
    tensors, metadata = load_file(converted), dict(c.open_model(converted).metadata)
    if lacks == "header":
        del metadata["_quantization_metadata"]
    else:
        tensors = {name: t for name, t in tensors.items() if not name.endswith("comfy_quant")}
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file(tensors, source, metadata)
    assert c.main([str(source), str(out), *NONE]) == 0
    assert c.main(["--verify", str(out), "--quiet"]) == 0
    for layer in c.stored_layers(c.open_model(out)).values():
        assert layer.in_header == layer.in_tensor


def test_a_scaled_fp8_file_cannot_hold_nvfp4_layers(converted, tmp_path, capsys):
    command = [str(converted), str(tmp_path / "o.safetensors"), *NONE, "--recipe", "scaled-fp8"]
    assert c.main(command) == 1
    assert "quantised otherwise in the source already" in capsys.readouterr().err


def test_a_prefix_that_comfyui_does_not_know_is_taken_off(tmp_path, capsys):
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({"diffusion_model.blocks.0.x.weight": torch.ones(32, 32)}, source)
    assert c.main([str(source), str(out), *NONE]) == 0
    assert "names lose their diffusion_model., which" in capsys.readouterr().out
    assert "blocks.0.x.weight" in load_file(out)
    assert c.main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0


def test_what_is_not_the_diffusion_model_stays_as_it_is(tmp_path):
    tensors = {
        "model.diffusion_model.blocks.0.x.weight": torch.ones(32, 32),
        "first_stage_model.decoder.weight": torch.full((32, 32), 1 + 2.0**-20),
        "text_encoders.blocks.0.x.weight": torch.full((32, 32), 1 + 2.0**-20),
    }
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file(tensors, source)
    assert c.main([str(source), str(out), "--preset", "all", "--quiet"]) == 0
    stored = load_file(out)
    assert "model.diffusion_model.blocks.0.x.weight_scale_2" in stored
    for name in ("first_stage_model.decoder.weight", "text_encoders.blocks.0.x.weight"):
        assert torch.equal(stored[name], tensors[name])


@pytest.fixture(scope="module")
def all_in_one(tmp_path_factory):
    """A 16-bit diffusion model beside a text encoder that is FP8."""
    path = tmp_path_factory.mktemp("all") / "all.safetensors"
    config = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    tensors = {f"model.diffusion_model.blocks.{i}.x.weight": torch.ones(32, 32) for i in range(4)}
    tensors |= {
        "text_encoders.blocks.0.x.weight": torch.ones(32, 32).to(torch.float8_e4m3fn),
        "text_encoders.blocks.0.x.weight_scale": torch.tensor(1e-3),
        "text_encoders.blocks.0.x.comfy_quant": config,
        "text_encoders.blocks.1.x.weight": torch.ones(32, 32).to(torch.float8_e4m3fn),
    }
    save_file(tensors, path)
    return path


def test_what_is_quantised_beside_the_diffusion_model_stays_whole(all_in_one, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    assert c.main([str(all_in_one), str(out), "--preset", "all", "--quiet"]) == 0
    # Text encoders are always multiplied in 16 bits: that no input scale is there is no defect.
    printed = capsys.readouterr().out
    assert re.search(r"4 tensors \([\d,]+ bytes\) are not of the diffusion model", printed)
    assert "in the source" not in printed
    for layer in ("text_encoders.blocks.0.x", "text_encoders.blocks.1.x"):
        assert stored_parts(out, layer) == stored_parts(all_in_one, layer)
    again = tmp_path / "again.safetensors"
    assert c.main([str(out), str(again), "--preset", "all", "--quiet"]) == 1  # nothing is left


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--exclude", r"blocks\.3\.self_attn\.q"],
            "self_attn.q: quantised in the source already, ",
        ),
        (["--recipe", "fp8"], "quantised otherwise in the source already, and"),
    ],
)
def test_options_against_nvfp4_layers_of_the_source_are_errors(
    converted, tmp_path, capsys, arguments, problem
):
    assert c.main([str(converted), str(tmp_path / "o.safetensors"), *NONE, *arguments]) == 1
    assert problem in capsys.readouterr().err


def test_edge_blocks_count_blocks_that_are_packed_already(tiny, tmp_path):
    """All but the feed-forward layers of blocks 2 to 5 are packed: the edges are 0, 1, 6 and 7."""
    out, other = tmp_path / "o.safetensors", tmp_path / "other.safetensors"
    include = ["--preset", "none", "--include", r"blocks\.\d\.(self|cross)", "--quiet"]
    include += ["--include", r"blocks\.[0167]\.ffn"]
    assert c.main([str(tiny), str(out), *include]) == 0
    options, model = with_model(c.parse_options([str(out), str(other)]))
    plans, _ = c.make_plans(options, model, c.read_guides(options, model))
    quantised = {plan.ref.layer for plan in plans if plan.is_quantised}
    assert quantised == {f"blocks.{block}.ffn.{i}" for block in (2, 3, 4, 5) for i in (0, 2)}


def with_model(options):
    return options, c.open_source(options.source)[0]


def test_swapped_arguments_do_not_cost_the_original(converted, tmp_path, capsys):
    out = tmp_path / "original.safetensors"
    save_file({"blocks.0.x.weight": torch.ones(32, 32)}, out)
    before = out.read_bytes()
    assert c.main([str(converted), str(out), *NONE]) == 1
    assert "did not make it, but SOURCE is quantised: are they swapped?" in capsys.readouterr().err
    assert out.read_bytes() == before
    save_file({"blocks.0.x.weight": torch.ones(32, 32)}, out, {"convert_nvfp4": "{}"})
    assert c.main([str(converted), str(out), *NONE]) == 0


def test_nan_in_an_fp8_source_is_an_error(tiny, tmp_path, capsys):
    source = convert_tiny(tiny, tmp_path / "m.safetensors", "--recipe", "fp8", "--quiet")
    tensors, metadata = load_file(source), c.open_model(source).metadata
    tensors["blocks.3.ffn.0.weight"].view(torch.uint8)[0, 0] = 0xFF
    save_file(tensors, source, metadata)
    capsys.readouterr()
    assert c.main([str(source), str(tmp_path / "o.safetensors"), *NONE]) == 1
    assert "blocks.3.ffn.0.weight holds NaN: the file is damaged" in capsys.readouterr().err


def test_the_documented_output_is_not_converted_again(tiny, tmp_path, capsys):
    """A few vectors that would be cast to 16 bits are no reason: no layer gets any smaller."""
    out = convert_tiny(tiny, tmp_path / "o.safetensors", "--quiet")
    capsys.readouterr()
    assert c.main([str(out), str(tmp_path / "again.safetensors"), "--quiet"]) == 1
    assert (
        "layers), and almost nothing in it would get smaller; give the" in capsys.readouterr().err
    )
    assert not (tmp_path / "again.safetensors").exists()
