"""What a file is that is no diffusion model: told by its names, and of no model of ComfyUI's."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main
from nvfp4.compare.entry import compare_models
from nvfp4.errors import ConvertError
from nvfp4.families import model_prefixes, recognise
from nvfp4.file_kinds import kind_of_file
from nvfp4.guides.gguf import match_gguf
from nvfp4.prefixes import mere_prefix
from nvfp4.read.checkpoint import open_model
from nvfp4.source.open import open_source
from support.all_in_one import BESIDE, T5, VAE, scaled_fp8, wan
from support.comfyui import needs_comfyui, run_comfyui
from support.files import header_only, model_with
from support.make_diffusers import read_classes
from support.make_families import read_headers
from support.paths import FAMILIES, ROOT

CLASSES = read_classes()
# Classes of diffusers, by what ComfyUI has under other names. Of the others it has the same names,
# as of Qwen-Image, JoyImage, Kandinsky 5 and Ernie, or does not know the model at all.
IN_NAMES_OF_DIFFUSERS = {
    "Wan": "Wan WanAnimate WanVACE SkyReelsV2 ChronoEdit AnyFlow AnyFlowFAR Helios",
    "Flux, Flux 2, Chroma or Hunyuan Video": "Flux Flux2 Chroma HunyuanVideo HunyuanImage "
    "HunyuanVideoFramepack LongCatImage OvisImage Bria BriaFibo MotifVideo",
    "Hunyuan Video 1.5": "HunyuanVideo15",
    "AuraFlow": "AuraFlow",
    "Stable Diffusion 3": "SD3",
    # Allegro is built like it.
    "PixArt": "PixArt Allegro",
    "Z-Image": "ZImage BriaFibo2",
    "Ideogram": "Ideogram4",
    "Lumina 2": "Lumina2",
    "LTX": "LTXVideo LTX2Video SanaWMLTX2Refiner",
    "Cosmos": "Cosmos",
    "Mochi": "Mochi",
    "Krea 2": "Krea2",
    "MiniMax H3": "MiniMaxH3",
    "Stable Audio or MiniMax Music": "StableAudioDiT MiniMaxMusic3",
    "ACE-Step": "AceStep",
    "Hunyuan DiT": "HunyuanDiT2D",
    "Stable Diffusion": "UNet2D UNet2DCondition UNet3DCondition UNetSpatioTemporalCondition "
    "DreamLiteUNet I2VGenXLUNet",
    "Stable Cascade": "StableCascadeUNet",
}
# Autoencoders that look like nothing in particular.
NO_VAE = {"AutoencoderRAE", "ConsistencyDecoderVAE", "MMAudioVocoder", "MiniMaxMusic3Vocoder"}


def kind(names, shape=()):
    shapes = dict.fromkeys(names, shape)
    found = kind_of_file(shapes, is_model=bool(model_prefixes(shapes)))
    return found.title if found else ""


def stem(name):
    for end in ("Transformer1DModel", "Transformer2DModel", "Transformer3DModel", "Model"):
        if name.endswith(end):
            return name.removesuffix(end)
    return name.removesuffix("Transformer")


@pytest.mark.parametrize("room", ["transformers", "unets"])
def test_models_in_the_names_of_diffusers(room):
    known = {
        name: f"a model in the names of diffusers ({title})"
        for title, names in IN_NAMES_OF_DIFFUSERS.items()
        for name in names.split()
    }
    found = {stem(name): kind(names) for name, names in CLASSES[room].items()}
    assert known.keys() <= {stem(name) for some in CLASSES.values() for name in some}
    motion = {"MotionAdapter": "a motion module", "UNetMotion": "a motion module"}
    assert found == {name: (known | motion).get(name, "") for name in found}


@pytest.mark.parametrize("prefix", ["transformer.", "model.diffusion_model.", "unet.", "x.y."])
def test_a_prefix_hides_no_kind(prefix):
    for title, names in IN_NAMES_OF_DIFFUSERS.items():
        classes = CLASSES["transformers"] | CLASSES["unets"]
        name = next(name for name in classes if stem(name) == names.split()[0])
        assert title in kind(prefix + name for name in classes[name])
    assert kind(f"{prefix}decoder.conv_in.weight" for _ in "a") == "a VAE"


def test_control_nets_and_autoencoders():
    assert {kind(names) for names in CLASSES["controlnets"].values()} == {"a control net"}
    vaes = {name: kind(names) for name, names in CLASSES["autoencoders"].items()}
    assert {name for name, found in vaes.items() if found != "a VAE"} <= NO_VAE


# Names as published files have them, one file each.
FILES = {
    "a LoRA": [
        ["diffusion_model.blocks.2.self_attn.q.lora_A.weight", "diffusion_model.x.lora_B.weight"],
        ["lora_unet_blocks_0_q.lora_down.weight", "lora_unet_blocks_0_q.lora_up.weight",
         "lora_unet_blocks_0_q.alpha"],
        ["x.hada_w1_a", "x.hada_w1_b", "x.hada_w2_a", "x.hada_w2_b"],
        ["x.lokr_w1", "x.lokr_w2_a", "x.lokr_w2_b"],
        ["transformer.x.lora_A.default.weight", "transformer.x.lora_B.default.weight"],
        ["x.diff", "x.diff_b", "y.oft_blocks"],
    ],
    "a model with a LoRA beside its layers, as PEFT trains it": [
        ["base_model.model.q.base_layer.weight", "base_model.model.q.lora_A.default.weight",
         "base_model.model.q.lora_B.default.weight", "base_model.model.norm.weight"],
    ],
    "an embedding (textual inversion)": [["emb_params"], ["clip_l", "clip_g"], ["t5xxl"]],
    "a text encoder": [
        ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
        ["text_model.encoder.layers.0.self_attn.q_proj.weight"],
        ["text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"],
        ["transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"],
        ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"],
        ["model.language_model.layers.0.self_attn.q_proj.weight", "visual.patch_embed.proj.weight",
         "model.language_model.embed_tokens.weight"],
        ["token_embd.weight", "blk.0.attn_q.weight"],
        ["token_embd.weight", "enc.blk.0.attn_q.weight"],
    ],
    "a CLIP vision encoder": [["vision_model.encoder.layers.0.self_attn.q_proj.weight"]],
    "an audio encoder": [["wav2vec2.feature_extractor.conv_layers.0.conv.weight"]],
    "a VAE": [
        ["decoder.conv_in.weight", "decoder.mid.q.weight"],
        ["first_stage_model.decoder.conv_in.weight"],
        ["vae.encoder.conv_in.weight", "vae.decoder.conv_in.conv.weight"],
        ["decoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight"],
        ["taesd_decoder.1.weight"],
        ["decoder.layers.0.weight_v", "encoder.layers.0.weight_v"],
        ["decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"],
    ],
    "a model patch": [
        ["control_layers.0.adaLN_modulation.0.weight", "control_all_x_embedder.2-1.weight"],
        ["control_noise_refiner.0.after_proj.weight", "control_layers.0.attention.qkv.weight"],
        ["controlnet_blocks.0.y_rms.weight", "controlnet_blocks.0.x_rms.weight", "img_in.weight"],
        ["controlnet_patch_embedding.weight", "controlnet_blocks.0.ffn.0.weight"],
        ["audio_proj.proj1.weight", "blocks.0.audio_cross_attn.proj.weight"],
    ],
    "a control net": [
        ["control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"],
        ["controlnet_blocks.0.weight", "double_blocks.0.img_attn.norm.key_norm.scale",
         "img_in.weight"],
        ["lora_controlnet", "input_hint_block.0.weight"],
    ],
    "a T2I adapter": [["body.0.block1.weight"], ["adapter.body.0.resnets.0.block1.weight"]],
    "an IP-Adapter": [["ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"]],
    "a motion module": [["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"]],
    "a style model": [["redux_up.weight", "redux_down.weight"]],
    "an upscaler": [
        ["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"],
        ["conv_first.weight", "body.0.rdb1.conv1.weight"],
    ],
    "a model in the names of diffusers (Wan)": [
        ["condition_embedder.text_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight"],
    ],
    "a recording of the calibration node": [["blocks.0.q.absmax", "blocks.0.q.block_histogram"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("title", "names"), [(title, names) for title, some in FILES.items() for names in some]
)
def test_every_kind_is_told_as_source_by_verify_and_by_the_comparison(
    title, names, tmp_path, capsys
):
    path = tmp_path / "file.safetensors"
    save_file({name: torch.ones(32, 32) for name in names}, path)
    for preset in (["--preset", "smart"], ["--preset", "none", "--include", "."], ["--dry-run"]):
        assert main([str(path), str(tmp_path / "o.safetensors"), *preset]) == 1
        assert f"{path}: is {title}: " in capsys.readouterr().err
    assert main(["--verify", str(path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    instead = "in ComfyUI's" if "names of diffusers" in title else "a diffusion model"
    assert printed.startswith(f"verdict   is {title}, not {instead}: ")
    assert "no defect found in its quantised layers" in printed
    assert compare_models([str(path)]) == 0
    assert f") is {title}, not {instead}" in capsys.readouterr().out
    assert compare_models([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == title


def test_a_quantised_text_encoder_is_checked_as_such(tmp_path, capsys):
    tensors = {name.removeprefix(T5): tensor for name, tensor in scaled_fp8().items()}
    save_file(tensors, tmp_path / "te.safetensors")
    assert main(["--verify", str(tmp_path / "te.safetensors"), "--quiet"]) == 0
    assert "layers    8 scaled FP8\n" in capsys.readouterr().out
    # It is always multiplied in 16 bits, so that nothing is clamped without an input scale.
    current = {name.removeprefix(T5): tensor for name, tensor in BESIDE["FP8"].items()}
    save_file(current, tmp_path / "fp8.safetensors")
    assert main(["--verify", str(tmp_path / "fp8.safetensors"), "--quiet"]) == 0
    assert "WORSE" not in capsys.readouterr().out
    del tensors["scaled_fp8"]
    save_file(tensors, tmp_path / "te.safetensors")
    assert main(["--verify", str(tmp_path / "te.safetensors"), "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert "is a text encoder (T5 base), not a diffusion model" in printed
    assert "WRONG" in printed


@pytest.mark.parametrize("kind_beside", BESIDE)
def test_what_lies_beside_a_model_makes_it_no_other_kind(kind_beside, tmp_path):
    for prefix in ("", "model.diffusion_model.", "dit."):
        tensors = {prefix + name: tensor for name, tensor in wan().items()}
        save_file(tensors | BESIDE[kind_beside] | VAE, tmp_path / "m.safetensors")
        # Configurations are written anew.
        beside = open_source(tmp_path / "m.safetensors").model.beside.keys()
        assert {name for name in BESIDE[kind_beside] | VAE if "comfy_quant" not in name} == beside


def test_the_gguf_of_a_text_encoder_is_told(tmp_path):
    from make_wan import write_gguf

    write_gguf(tmp_path / "t5.gguf", {
        "token_embd.weight": (64, 64), "enc.blk.0.attn_q.weight": (64, 64)
    }, arch="t5encoder")  # fmt: skip
    with pytest.raises(ConvertError, match="is a text encoder: give the GGUF of the model that is"):
        match_gguf(tmp_path / "t5.gguf", model_with(wan()))


# Diffusers' names are refused, not converted, and text encoders have no prefix.
OTHERS = {"diffusers", "encoders"}
OF_COMFYUI = sorted(path for path in FAMILIES.rglob("*.txt") if path.parent.name not in OTHERS)


@pytest.mark.parametrize("path", OF_COMFYUI, ids=lambda path: path.stem)
def test_no_model_of_comfyui_is_of_another_kind(path, tmp_path):
    shapes = read_headers(path)
    file = header_only(tmp_path / "m.safetensors", {
        name: ("BF16", shape) for name, shape in shapes.items()
    }, {})  # fmt: skip
    for prefix in ("", "model.diffusion_model."):
        named = {prefix + name: shape for name, shape in shapes.items()}
        assert kind_of_file(named, is_model=bool(model_prefixes(named))) is None
    model = open_source(file).model
    assert model.tensors.keys() == shapes.keys()
    assert recognise(open_model(file)) == recognise(model)


CLASSES_OF_COMFYUI = """
import json, os, sys
sys.path[:0] = [os.environ["TESTS"], os.environ["TESTS"] + "/.."]
from support.comfy_walk import TEXT_ENCODERS, built_states, import_comfyui
import_comfyui()
states = [[path, shapes] for path, shapes in built_states() if path not in TEXT_ENCODERS]
json.dump(states, open(os.environ["OUT"], "w"))
print("RESULT", json.dumps(len(states)))
"""


@needs_comfyui
def test_no_class_of_comfyui_is_of_another_kind(tmp_path):
    out = tmp_path / "states.json"
    count, _ = run_comfyui(CLASSES_OF_COMFYUI, TESTS=str(ROOT / "tests"), OUT=str(out))
    assert count > 60
    wrong = {}
    for path, shapes in json.loads(out.read_text(encoding="utf-8")):
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        found = model_prefixes(shapes)
        if told := kind_of_file(shapes, is_model=bool(found)):
            wrong[path] = told.title
        assert found in ([], [""]), path
        assert mere_prefix(shapes) == "", path
    assert wrong == {}
