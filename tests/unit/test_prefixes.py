"""What is only a prefix goes, what ComfyUI strips stays, and where a file has two models none is
guessed."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.errors import ConvertError
from nvfp4.guides.gguf import match_gguf
from nvfp4.model import bare, diffusion_prefix
from nvfp4.prefixes import comfyui_names, named_for_comfyui
from nvfp4.read.checkpoint import open_model
from nvfp4.source.open import open_source
from support.all_in_one import VAE, scaled_fp8, wan
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from support.files import header_only, model_with
from support.make_families import of_no_family, read_headers
from support.paths import FAMILIES
from support.tiny_models import tiny_model

OTHERS = [
    FAMILIES / f"{name}.txt"
    for name in ("ace_step", "auraflow", "hidream_i1", "hunyuan_dit", "krea2", "stable_audio")
]
# What ComfyUI strips itself.
STAY = ("", "model.diffusion_model.", "model.model.", "net.", "model.")
# {prefix in the file: prefix in the output}, for models of known families.
GO = {
    prefix: ""
    for prefix in (
        "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "diffusion_model.",
        "transformer.", "dit.", "unet.", "model_ema.", "ema.", "pipe.dit.", "module.transformer.",
        "_fsdp_wrapped_module.", "_forward_module.module.", "base_model.model.", "state_dict.",
        "student.net.", "generator.", "a.b.c.",
    )
} | {
    "model.diffusion_model._orig_mod.": "model.diffusion_model.",
    "model.diffusion_model.module.": "model.diffusion_model.",
    "module.model.diffusion_model.": "model.diffusion_model.",
    "net._orig_mod.": "net.",
}  # fmt: skip
UNKNOWN = ("student.net.", "generator.", "a.b.c.")


def names_of(names):
    return comfyui_names("m.safetensors", model_with(names).tensors).names


@pytest.mark.parametrize("path", sorted(FAMILIES.glob("*.txt")), ids=lambda path: path.stem)
def test_names_of_comfyui_stay_and_no_module_of_them_is_a_prefix(path, tmp_path):
    shapes = read_headers(path)
    model = open_model(header_only(tmp_path / "m.safetensors", {
        name: ("BF16", shape) for name, shape in shapes.items()
    }, {}))  # fmt: skip
    for prefix in STAY:
        tensors = {prefix + name: ref for name, ref in model.tensors.items()}
        assert {*comfyui_names(path, tensors).names.values()} == tensors.keys()
        assert not comfyui_names(path, tensors).lost


@pytest.mark.parametrize("prefix", [*STAY, *GO])
def test_a_prefix_of_a_whole_file(prefix):
    names, new = [*wan()], GO.get(prefix, prefix)
    tensors = {prefix + name: ref for name, ref in shaped(wan()).items()}
    found = comfyui_names("m.safetensors", tensors)
    assert [*found.names.values()] == [new + name for name in names]
    assert bool(found.note) is (prefix in GO)
    # A model of no family needs a name that is known to be a prefix.
    plain = [f"{prefix}trunk.{i}.x.weight" for i in range(6)]
    expected = plain if prefix in UNKNOWN else [f"{new}trunk.{i}.x.weight" for i in range(6)]
    assert [*names_of(plain).values()] == expected


def shaped(tensors):
    """{name: TensorRef} of tensors, with their shapes."""
    return {
        name: dataclasses.replace(ref, shape=tuple(tensors[name].shape))
        for name, ref in model_with(tensors).tensors.items()
    }


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_what_a_trainer_calls_a_model_of_no_family_goes(path):
    shapes = of_no_family(read_headers(path))
    for prefix in ("", "student.", "generator_ema.", "denoiser_model.", "module.student.net."):
        found = names_of(prefix + name for name in shapes)
        assert [*found.values()] == [*shapes]


def test_a_module_of_all_names_stays_where_it_may_be_the_models_own():
    for names in (
        ["core.pixel_embedder.proj.weight", "core.pixel_blocks.0.attn.q.weight"],
        ["text_model.encoder.layers.0.mlp.fc1.weight", "text_model.embeddings.x.weight"],
        ["encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.final_layer_norm.weight"],
        ["blocks.0.a.weight", "blocks.1.a.weight"],
        ["vae_part.conv.weight", "vae_part.norm.weight"],
    ):
        assert [*names_of(names).values()] == names
    names = ["core.embed.x.weight", "core.blocks.0.q.weight"]
    assert [*names_of(f"student.{name}" for name in names).values()] == names


def test_wrappers_go_from_the_middle_of_names():
    names = [
        "blocks.3._orig_mod.attn.q.weight",
        "blocks.3.attn._fsdp_wrapped_module._checkpoint_wrapped_module.k.weight",
        "_fsdp_wrapped_module._fpw_module.blocks.0.x.weight",
        "transformer_blocks.0.module.weight",
    ]
    assert [*names_of(names).values()] == [
        "blocks.3.attn.q.weight",
        "blocks.3.attn.k.weight",
        "blocks.0.x.weight",
        "transformer_blocks.0.module.weight",
    ]


@pytest.mark.parametrize("prefix", ["transformer.", "dit.", "model_ema.", "generator."])
def test_beside_other_parts_the_model_gets_comfyuis_prefix(prefix):
    tensors = {prefix + name: tensor for name, tensor in wan().items()} | VAE | scaled_fp8()
    found = comfyui_names("m.safetensors", shaped(tensors))
    renamed = {"model.diffusion_model." + name for name in wan()}
    assert {*found.names.values()} == renamed | VAE.keys() | scaled_fp8().keys()
    assert "have model.diffusion_model. instead of their" in found.note


@pytest.mark.parametrize(
    ("prefixes", "problem"),
    [
        (("model.", "model_ema."), "model_ema"),
        (("", "model_ema."), "model_ema"),
        (("model.diffusion_model.", "model_ema.diffusion_model."), "model_ema"),
        (("transformer.", "transformer_2."), r"named transformer\.\* and transformer_2"),
        (("student.", "teacher."), r"named student\.\* and teacher"),
        (("", "_orig_mod."), "are both"),
        (("module.", ""), "are both"),
    ],
)
def test_a_model_that_is_there_twice_is_refused(prefixes, problem, tmp_path):
    tensors = {prefix + name: tensor for prefix in prefixes for name, tensor in wan().items()}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(ConvertError, match=problem):
        open_source(tmp_path / "m.safetensors")


def test_averages_of_a_model_of_no_family_are_refused_too():
    names = [f"{prefix}trunk.{i}.x.weight" for prefix in ("model.", "model_ema.") for i in range(9)]
    with pytest.raises(ConvertError, match=r"holds the model twice, as model_ema\.\*"):
        names_of(names)
    # As Stable Diffusion 1.5 has them: ComfyUI reads the weights and passes these over.
    averages = [f"model_ema.diffusion_modeltrunk{i}xweight" for i in range(9)]
    names = [f"model.diffusion_model.trunk.{i}.x.weight" for i in range(9)] + averages
    assert [*names_of(names).values()] == names


def test_comfyuis_rule_finds_the_prefix():
    """More than five names, however many others there are."""
    others = [f"text_encoders.x.{i}.weight" for i in range(100)]
    assert diffusion_prefix([*others, *(f"net.{i}.weight" for i in range(6))]) == "net."
    assert diffusion_prefix([*others, *(f"net.{i}.weight" for i in range(5))]) == ""
    six = [f"net.{i}.weight" for i in range(6)]
    assert (
        diffusion_prefix([*six, *(f"model.model.{i}.weight" for i in range(7))]) == "model.model."
    )


def test_layers_in_the_header_are_renamed_along(tmp_path):
    layers = {"dit.blocks.0._orig_mod.q": {"format": "nvfp4"}, "dit.other": {"format": "nvfp4"}}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    tensors = {"dit.blocks.0._orig_mod.q.weight": torch.ones(4, 4), "dit.b.weight": torch.ones(4)}
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    model, notes = named_for_comfyui(tmp_path, open_model(tmp_path / "m.safetensors"))
    assert {*model.tensors} == {"blocks.0.q.weight", "b.weight"}
    listed = json.loads(model.metadata["_quantization_metadata"])
    assert [*listed["layers"]] == ["blocks.0.q", "dit.other"]
    assert listed["format_version"] == "1.0"
    assert notes == ["names lose their _orig_mod. and dit., which ComfyUI does not know"]
    save_file(tensors, tmp_path / "m.safetensors", {"_quantization_metadata": "[1"})
    model, _ = named_for_comfyui(tmp_path, open_model(tmp_path / "m.safetensors"))
    assert model.metadata == {"_quantization_metadata": "[1"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The small Wan without prefix, and what --preset auto makes of it."""
    folder = tmp_path_factory.mktemp("plain")
    path = tiny_model("wan_t2v", folder / "m.safetensors")
    assert main([str(path), str(folder / "o.safetensors"), "--quiet"]) == 0
    return load_file(path), load_file(folder / "o.safetensors")


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "transformer.", "dit.module."])
def test_the_output_is_that_of_the_file_without_prefix(plain, prefix, tmp_path, capsys):
    tensors, expected = plain
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, source)
    options = (
        ["--exclude", r"blocks\.2\.ffn", "--quiet"] if prefix == "dit.module." else ["--quiet"]
    )
    assert main([str(source), str(out), *options]) == 0
    stored = {bare(name): tensor for name, tensor in load_file(out).items()}
    if prefix == "dit.module.":
        assert stored["blocks.2.ffn.0.weight"].dtype == torch.bfloat16
        return
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(
            stored[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)
        )
    # Both are of the same names to --verify, and the source's prefix is what it tells of.
    assert main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["--verify", str(source), "--quiet"]) == (prefix != "model.")
    assert ("ComfyUI does not strip" in capsys.readouterr().out) is (prefix != "model.")


@pytest.mark.parametrize("theirs", ["", "dit.", "_orig_mod.", "model."])
@pytest.mark.parametrize("ours", ["", "module.", "model."])
def test_a_gguf_matches_whatever_prefix_either_has(ours, theirs, tmp_path):
    from make_wan import wan_shapes, write_gguf

    shapes = wan_shapes("tiny")
    named = {theirs + name: shape for name, shape in shapes.items()}
    write_gguf(tmp_path / "m.gguf", named)
    path = header_only(tmp_path / "m.safetensors", {
        ours + name: ("BF16", shape) for name, shape in shapes.items()
    }, {})  # fmt: skip
    model, _ = named_for_comfyui(path, open_model(path))
    kinds, notes = match_gguf(tmp_path / "m.gguf", model)
    assert kinds.keys() == model.tensors.keys()
    assert notes == []


DETECT = (
    PREAMBLE
    + """
from comfy import model_detection
found = {}
for prefix, names in json.load(open(os.environ["NAMES"])).items():
    state = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
    own = model_detection.unet_prefix_from_state_dict(state)
    state = comfy.utils.state_dict_prefix_replace(state, {own: ""}, filter_keys=True) or state
    found[prefix] = model_detection.detect_unet_config(state, "")
print("RESULT", json.dumps(found))
"""
)


@needs_comfyui
def test_comfyui_recognises_the_names_that_come_out(plain, tmp_path):
    tensors, _ = plain
    given = {}
    for prefix in [*STAY, *GO]:
        refs = {prefix + name: ref for name, ref in shaped(tensors).items()}
        new = comfyui_names("m.safetensors", refs).names
        given[prefix] = {new[name]: [*ref.shape] for name, ref in refs.items()}
    path = tmp_path / "names.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    found, _ = run_comfyui(DETECT, NAMES=str(path))
    assert found[""]["image_model"] == "wan2.1"
    assert {json.dumps(config) for config in found.values()} == {json.dumps(found[""])}
