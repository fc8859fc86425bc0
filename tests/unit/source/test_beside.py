"""What lies beside the diffusion model goes over to the byte, marked and configured as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.errors import ConvertError
from nvfp4.guides.layer_config import read_layer_config
from nvfp4.read.checkpoint import header_layers, open_model
from nvfp4.source.open import open_source
from nvfp4.stored.layers import find_markers, stored_layers
from nvfp4.stored.lint import lint
from support.all_in_one import BESIDE, MODEL, T5, VAE, all_in_one, names, scaled_fp8, wan
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.tiny_models import tiny_model

RECIPES = {"mixed": (), "scaled FP8": ("--recipe", "scaled-fp8")}


def convert(tensors, tmp_path, *options, metadata=None):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source, metadata)
    status = main([str(source), str(out), "--quiet", *options])
    return out if status == 0 else None


def same(one, other):
    bits = [tensor.flatten().view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*bits)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", BESIDE)
def test_all_tensors_beside_the_model_keep_their_bytes(kind, recipe, tmp_path, capsys):
    out = convert(all_in_one(kind), tmp_path, *RECIPES[recipe])
    stored = load_file(out)
    assert all(same(stored[name], tensor) for name, tensor in (BESIDE[kind] | VAE).items())
    # Nothing is added but what the diffusion model has.
    beside = {name for name in stored if not name.startswith(MODEL)}
    assert beside == {*BESIDE[kind], *VAE}
    listed = header_layers(open_model(out).metadata)
    has_header = recipe != "scaled FP8"
    layers = {name.rpartition(".")[0] for name in BESIDE[kind] if name.endswith("comfy_quant")}
    assert {name for name in listed if not name.startswith(MODEL)} == (
        layers if has_header else set()
    )
    assert any(name.startswith(MODEL) for name in listed) is has_header
    source = tmp_path / "source.safetensors"
    assert main(["--verify", str(source), "--quiet"]) == 0
    assert main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert not any(word in printed for word in ("WRONG", "WORSE", "FAILS", "SLOWER"))


def test_a_configuration_in_the_header_alone_comes_into_both_forms(tmp_path):
    tensors = all_in_one("INT8")
    layers = {name: {"format": "int8_tensorwise", "convrot": True} for name in names(T5)}
    for name in layers:
        del tensors[f"{name}.comfy_quant"]
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    for options in ((), ("--recipe", "scaled-fp8")):
        out = convert(tensors, tmp_path, *options, metadata=metadata)
        found = stored_layers(open_model(out))
        assert [found[name].config for name in layers] == [*layers.values()]
        assert all((found[name].in_header is None) == bool(options) for name in layers)
        assert all(found[name].in_tensor == layers[name] for name in layers)


def test_a_configuration_of_a_bank_without_a_weight_stays_in_the_header(tmp_path):
    bank = f"{T5}experts"
    more = {f"{bank}.gate_up_proj": torch.ones(2, 32, 32, dtype=torch.uint8)}
    metadata = {"_quantization_metadata": json.dumps({"layers": {bank: {"format": "mxfp8"}}})}
    out = convert(all_in_one("FP8") | more, tmp_path, metadata=metadata)
    assert header_layers(open_model(out).metadata)[bank] == {"format": "mxfp8"}


def test_a_marker_holds_for_its_own_part_alone(tmp_path):
    """The model's marker is not read beside the header, the text encoder's is."""
    tensors = {MODEL + name: tensor for name, tensor in wan().items()} | scaled_fp8()
    tensors |= scaled_fp8(MODEL, marker=0)
    metadata = {"_quantization_metadata": json.dumps({"layers": {}})}
    path = tmp_path / "m.safetensors"
    for strings, wrong in ((None, set()), (metadata, {*names(MODEL)})):
        save_file(tensors, path, strings)
        model = open_model(path)
        found = lint(model, stored_layers(model))
        assert {finding.name for finding in found if finding.defect == "unread scale"} == wrong
        markers = {(marker.prefix, marker.elements) for marker in find_markers(model)}
        assert markers == {(MODEL, 0), (T5, 2)}
    del tensors[f"{T5}scaled_fp8"]
    save_file(tensors, path)
    model = open_model(path)
    found = lint(model, stored_layers(model))
    unread = {finding.name for finding in found if finding.defect == "unread scale"}
    assert unread == {*names(T5)}


def test_what_is_wrong_beside_the_model_is_said_before_and_does_not_stop_the_run(tmp_path, capsys):
    tensors = all_in_one("scaled FP8")
    del tensors[f"{T5}scaled_fp8"]
    assert convert(tensors, tmp_path, "--dry-run") is not None
    assert "in the source, FP8 weights have a scale that nothing" in capsys.readouterr().out
    assert convert(tensors, tmp_path) is not None
    assert f"{T5}scaled_fp8" not in load_file(tmp_path / "out.safetensors")


def test_options_reach_the_diffusion_model_alone(tmp_path, capsys):
    tensors = all_in_one("NVFP4")
    assert convert(tensors, tmp_path, "--preset", "none", "--include", ".") is not None
    assert f"{T5}shared.weight_scale_2" not in load_file(tmp_path / "out.safetensors")
    # A pattern for the text encoder's layers names nothing that is converted.
    assert convert(tensors, tmp_path, "--include", "SelfAttention") is None
    assert "matches no linear layer" in capsys.readouterr().err
    config = tmp_path / "config.json"
    config.write_text(json.dumps({f"{T5}shared": {"format": "float32"}}), encoding="utf-8")
    save_file(tensors | {f"{T5}shared.weight": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    with pytest.raises(ConvertError, match="not of the diffusion model and goes over as it is"):
        read_layer_config(config, open_source(tmp_path / "m.safetensors").model)


@pytest.mark.parametrize(
    "part",
    [
        *("vae.", "text_encoders.t5.", "conditioner.embedders.0.", "audio_vae.", "vocoder."),
        *("text_embedding_projection.", "clip_l_vision.", "embedder.model.visual."),
    ],
)
def test_other_parts_are_known_beside_a_model_without_prefix(part, tmp_path):
    more = {f"{part}blocks.{i}.q.weight": torch.ones(32, 32) for i in range(4)}
    out = convert(wan() | more, tmp_path, "--preset", "all")
    assert all(same(load_file(out)[name], tensor) for name, tensor in more.items())


def test_each_part_survives_shards_and_a_second_conversion(tmp_path):
    tensors = all_in_one("scaled FP8 and INT8") | {"vae.large": torch.ones(1 << 18)}
    folder = tmp_path / "shards"
    folder.mkdir()
    first = convert(tensors, tmp_path, "--recipe", "fp8")
    out = folder / "o.safetensors"
    options = ["--output-sharded", "--max-shard-size", "1MB", "--quiet"]
    assert main([str(first), str(out), *options]) == 0
    beside = {name: tensor for name, tensor in tensors.items() if not name.startswith(MODEL)}
    found = open_model(folder)
    assert beside.keys() <= found.tensors.keys()
    stored, shards = {}, [*folder.glob("*.safetensors")]
    assert len(shards) > 1
    for path in shards:
        stored |= load_file(path)
    assert all(same(stored[name], tensor) for name, tensor in beside.items())
    listed = header_layers(found.metadata)
    assert {*names("text_encoders.clip_l.transformer.")} <= listed.keys()


SPLIT = (
    PREAMBLE
    + """
taken = {}
class Clip:
    def __init__(self, target, *args, state_dict=None, **kwargs):
        taken.update(state_dict)
        self.patcher = None
comfy.sd.CLIP = Clip
state, metadata = comfy.utils.load_torch_file(os.environ["MODEL"], return_metadata=True)
comfy.sd.load_state_dict_guess_config(state, output_vae=False, metadata=metadata)
ops = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.float32, full_precision_mm=True)
eye, decoded = torch.eye(64), {}
for name in [name for name in taken if "SelfAttention" in name and name.endswith(".weight")]:
    layer = name.removesuffix(".weight")
    module = ops.Linear(64, 64, bias=False)
    parts = {k.removeprefix(layer + "."): v for k, v in taken.items() if k.startswith(layer + ".")}
    module.load_state_dict(parts)
    decoded[layer] = module(eye).T.contiguous()
torch.save(decoded, os.environ["OUTPUT"])
print("RESULT", json.dumps({"layers": len(decoded)}))
"""
)


@needs_comfyui
@pytest.mark.parametrize("recipe", ["mixed", "scaled FP8"])
@pytest.mark.parametrize("kind", ["scaled FP8", "FP8", "two scaled FP8"])
def test_comfyui_takes_the_same_text_encoder_from_source_and_output(kind, recipe, tmp_path):
    """Its own checkpoint loader splits the file, its own layers decode the weights."""
    model = load_file(tiny_model("wan_t2v", tmp_path / "wan.safetensors"))
    tensors = {MODEL + name: tensor for name, tensor in model.items()} | BESIDE[kind]
    out = convert(tensors, tmp_path, *RECIPES[recipe])
    found = []
    for path in (tmp_path / "source.safetensors", out):
        given = {"MODEL": str(path), "OUTPUT": str(tmp_path / f"{path.stem}.pt")}
        assert run_comfyui(SPLIT, **given)[0]["layers"] >= len(names(T5))
        found.append(torch.load(given["OUTPUT"]))
    assert found[0].keys() == found[1].keys()
    for layer, weight in found[1].items():
        assert torch.equal(weight, found[0][layer])
        name = f"text_encoders.{layer.replace('umt5xxl.', 'umt5xxl.', 1)}"
        scale = tensors.get(f"{name}.scale_weight", tensors.get(f"{name}.weight_scale"))
        exact = tensors[f"{name}.weight"].float() * scale.float()
        assert torch.allclose(weight, exact, rtol=1e-6)
