"""What ComfyUI's classes ask for holds for every preset, GGUF, layer config and pattern."""

import json
import re

import gguf
import numpy as np
import pytest
import torch

from nvfp4.errors import ConvertError
from nvfp4.formats.floats import FP32, HALF
from nvfp4.formats.nvfp4 import NVFP4
from support.plans import plan_of, weight

# A linear layer in four blocks, which --preset smart takes for the model's.
BLOCKS = {f"blocks.{number}.attn.q.weight": weight(64, 64) for number in range(4)}
SMART = ("--preset", "smart", "--edge-blocks", "0")
# {tensor: shape} of weights that are no linear layers', as the models have them that name.
PARAMETERS = {
    "trainable_cond_mask.weight": (3, 256),
    "motion_encoder.enc.fc.0.weight": (512, 512),
    "motion_encoder.enc.fc.4.weight": (20, 512),
    "motion_encoder.dec.direction.weight": (512, 20),
    "double_stream_blocks.3.block.ff_i.gate.weight": (4, 128),
    "blocks.1.moe.gate.weight": (8, 128),
    "lyric_embs.weight": (64, 128),
    "cond_type_embedding.weight": (3, 128),
    "encoder.block.5.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64),
}
# The same of models that ComfyUI does not have, or not yet.
DOUBTFUL = {
    "blocks.1.router.weight": (64, 128),
    "blocks.1.mlp.gate.weight": (32, 128),
    "blocks.2.relative_bias.weight": (32, 64),
    "token_embeddings.weight": (256, 128),
    "pos_embed.weight": (256, 128),
    "blocks.1.scores.weight": (8, 128),
    "motion_encoder.new.fc.weight": (64, 64),
}


def made(shapes):
    return BLOCKS | {name: torch.ones(shape) for name, shape in shapes.items()}


def write_gguf(path, tensors, kinds):
    """A GGUF of these GGML types; Q5_0 without an entry."""
    writer = gguf.GGUFWriter(str(path), "wan")
    for name, tensor in tensors.items():
        kind = kinds.get(name, gguf.GGMLQuantizationType.Q5_0)
        block = gguf.GGML_QUANT_SIZES[kind][0]
        kind = gguf.GGMLQuantizationType.F16 if tensor.shape[-1] % block else kind
        data = gguf.quants.quantize(tensor.float().numpy().astype(np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ways(tmp_path, tensors):
    """Options that ask for 4 bits everywhere, each in another way."""
    write_gguf(tmp_path / "m.gguf", tensors, {})
    config = {re.escape(name.removesuffix(".weight")): {"format": "nvfp4"} for name in BLOCKS}
    (tmp_path / "c.json").write_text(json.dumps(config | {".*": {"format": "nvfp4"}}))
    return {
        "smart": SMART,
        "all": ("--preset", "all"),
        "gguf": ("--gguf", str(tmp_path / "m.gguf"), "--gguf-nvfp4-max-bitdepth", "8"),
        "include": ("--preset", "none", "--include", "."),
        "layer config": (*SMART, "--layer-config", str(tmp_path / "c.json")),
        "fp8": ("--preset", "all", "--recipe", "fp8"),
    }


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("way", ["smart", "all", "gguf", "include", "layer config", "fp8"])
@pytest.mark.parametrize("shapes", [PARAMETERS, DOUBTFUL], ids=["known", "doubtful"])
def test_what_is_no_linear_layer_stays_16_bit(tmp_path, shapes, way, prefix):
    tensors = {prefix + name: tensor for name, tensor in made(shapes).items()}
    plans, _ = plan_of(tmp_path, tensors, *ways(tmp_path, tensors)[way])
    assert {name for name in shapes if plans[prefix + name].precision is not HALF} == set()
    assert all(plans[prefix + name].is_quantised for name in BLOCKS)


def test_the_plan_says_what_it_is_instead(tmp_path):
    plans, notes = plan_of(tmp_path, made(PARAMETERS), "--preset", "all")
    reason = str(plans["trainable_cond_mask.weight"].reason)
    assert reason == "ComfyUI's WanModel_S2V has an Embedding there"
    assert not plans["trainable_cond_mask.weight"].is_layer
    assert notes == ()


def test_a_gguf_may_keep_a_router_in_32_bits(tmp_path):
    tensors, name = made(PARAMETERS), "double_stream_blocks.3.block.ff_i.gate.weight"
    write_gguf(tmp_path / "m.gguf", tensors, {name: gguf.GGMLQuantizationType.F32})
    arguments = ("--gguf", str(tmp_path / "m.gguf"), "--gguf-nvfp4-max-bitdepth", "5")
    plans, _ = plan_of(tmp_path, tensors, *arguments)
    assert plans[name].precision is FP32


def test_doubtful_layers_are_one_counted_note(tmp_path):
    _, notes = plan_of(tmp_path, made(DOUBTFUL), "--preset", "all")
    (note,) = notes
    assert note.startswith(
        "7 layers stay 16-bit, as names or shapes may be those of embeddings or routers"
    )
    assert "blocks.1.mlp.gate" in note
    assert "--include" in note


def test_doubtful_layers_that_stay_anyway_are_not_noted(tmp_path):
    _, notes = plan_of(tmp_path, BLOCKS | {"pos_embed.weight": weight(256, 128)}, *SMART)
    assert not any("embeddings or routers" in note for note in notes)


@pytest.mark.parametrize(
    "pattern",
    [
        "blocks.1.mlp.gate",
        r"^blocks\.1\.mlp\.gate$",
        r"blocks\.1\.mlp\.gate.weight",
        "^BLOCKS.1.mlp.gate",
    ],
)
def test_include_by_the_full_name_packs_a_doubtful_layer(tmp_path, pattern):
    plans, notes = plan_of(tmp_path, made(DOUBTFUL), *SMART, "--include", pattern)
    assert plans["blocks.1.mlp.gate.weight"].precision is NVFP4
    assert plans["blocks.1.router.weight"].precision is HALF
    assert any(note.startswith("3 layers stay 16-bit") for note in notes)


@pytest.mark.parametrize("pattern", ["gate", r"blocks\.\d\.mlp\.gate", r"blocks\.1\.mlp\."])
def test_include_by_a_pattern_does_not(tmp_path, pattern):
    plans, _ = plan_of(tmp_path, made(DOUBTFUL), *SMART, "--include", pattern)
    assert plans["blocks.1.mlp.gate.weight"].precision is HALF


def test_include_of_what_is_no_linear_layer_says_what_it_is(tmp_path):
    with pytest.raises(ConvertError, match="ComfyUI's WanModel_S2V has an Embedding there"):
        plan_of(tmp_path, made(PARAMETERS), *SMART, "--include", "^trainable_cond_mask$")


def test_a_layer_config_that_quantises_it_is_refused_with_the_class(tmp_path):
    (tmp_path / "c.json").write_text('{"lyric_embs": {"format": "nvfp4"}}')
    arguments = (*SMART, "--layer-config", str(tmp_path / "c.json"))
    with pytest.raises(ConvertError, match="ACEStepTransformer2DModel has an Embedding there"):
        plan_of(tmp_path, made(PARAMETERS), *arguments)


@pytest.mark.parametrize("way", ["smart", "all", "gguf", "include", "layer config"])
def test_what_comfyui_recognises_a_model_by_keeps_its_shape(tmp_path, way):
    """SDXL's and others' columns; rows of a block are only not padded."""
    tensors = BLOCKS | {
        "label_emb.0.0.weight": weight(64, 352),
        "label_emb.0.0.bias": torch.ones(64),
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": weight(64, 256),
        "output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight": weight(64, 256),
        "blocks.0.ffn.0.weight": weight(40, 64),
        "blocks.0.attn.wq.weight": weight(64, 64),
        "head.head.weight": weight(64, 64),
    }
    plans, _ = plan_of(tmp_path, tensors, *ways(tmp_path, tensors)[way])
    for name in tensors:
        if name.endswith(("0.0.weight", "attn2.to_k.weight", "head.head.weight")):
            assert plans[name].precision is HALF, name
    eight = "FP8" if way == "gguf" else "INT8 not rotated"
    assert plans["blocks.0.ffn.0.weight"].precision.title == eight
    assert plans["blocks.0.attn.wq.weight"].precision is NVFP4


EXPERTS = {
    f"blocks.{number}.moe.experts.{name}": torch.ones(shape)
    for number in range(4)
    for name, shape in {"gate_up_proj": (8, 256, 64), "down.weight": (8, 64, 256)}.items()
}


def test_banks_of_experts_are_counted_and_said(tmp_path):
    router = {"blocks.0.moe.gate.weight": weight(8, 64)}
    plans, notes = plan_of(tmp_path, BLOCKS | EXPERTS | router, *SMART)
    (note,) = (note for note in notes if "experts" in note)
    assert note.startswith("8 tensors are not quantised, as they have several experts' weights")
    assert "98 % of the source's bytes" in note
    assert "blocks.0.moe.experts.down.weight" in note
    assert plans["blocks.0.moe.gate.weight"].precision is HALF


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.conv.weight", (64, 64, 3)),
        ("blocks.0.modulation", (1, 6, 64)),
        ("blocks.0.pos_proj", (1, 64, 64)),
        ("memory.weight", (8, 64, 64)),
    ],
)
def test_other_tensors_of_three_dimensions_are_no_experts(tmp_path, name, shape):
    _, notes = plan_of(tmp_path, BLOCKS | {name: torch.ones(shape)}, *SMART)
    assert not any("experts" in note for note in notes)


@pytest.mark.parametrize(
    ("key", "precision"), [("blocks.1.mlp.gate", NVFP4), (r"blocks\.1\.mlp\.g.*", HALF)]
)
def test_a_layer_config_packs_a_doubtful_layer_by_its_full_name(tmp_path, key, precision):
    (tmp_path / "l.json").write_text(json.dumps({key: {"format": "nvfp4"}}))
    plans, _ = plan_of(tmp_path, made(DOUBTFUL), *SMART, "--layer-config", str(tmp_path / "l.json"))
    assert plans["blocks.1.mlp.gate.weight"].precision is precision
    assert plans["blocks.1.router.weight"].precision is HALF
