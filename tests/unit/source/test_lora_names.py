"""Names of layers and of keys, as trainers and tools write them: what is merged, and where."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.model import Lora
from nvfp4.read.tensors import load_weight
from nvfp4.source.loras import merge_loras
from support.loras import lora, opened, ours, rand

LAYER = "blocks.2.self_attn.q"
SHAPE = (32, 16)
WAN = {
    f"{LAYER}.weight": rand(*SHAPE),
    f"{LAYER}.bias": rand(32),
    "blocks.2.self_attn.k.weight": rand(*SHAPE),
    "blocks.2.modulation": rand(1, 6, 16),
    "blocks.2.norm3.weight": rand(16),
    "blocks.2.norm3.bias": rand(16),
    "head.modulation": rand(1, 2, 16),
}


def merge(tmp_path, state, keys, *, partial=False):
    keys = {key: value.contiguous() for key, value in keys.items()}
    save_file(keys, tmp_path / "l.safetensors")
    model = opened(tmp_path, state)
    return merge_loras([Lora(tmp_path / "l.safetensors", 1.0)], model, partial=partial)


PREFIXES = (
    "", "diffusion_model.", "model.diffusion_model.", "net.", "model.", "unet.", "transformer.",
    "dit.", "pipe.dit.", "pipe.transformer.", "base_model.model.", "base_model.model.transformer.",
    "unet.base_model.model.", "transformer._orig_mod.", "_orig_mod.", "diffusion_model.module.",
    "module.", "module._orig_mod.", "_fsdp_wrapped_module.", "transformer_1.",
    "diffusion_model.transformer_1.", "base_model.model.diffusion_model.",
)  # fmt: skip
FLAT_PREFIXES = (
    "lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_", "lora_unet__orig_mod_",
    "lora_prior_unet_",
)  # fmt: skip


def same_as_plain(tmp_path, keys):
    """Whether a LoRA changes the layer by its up x down, and nothing else."""
    (up,), (down,) = (
        [value for key, value in keys.items() if any(word in key for word in words)]
        for words in (("up", "lora_B"), ("down", "lora_A"))
    )
    merged = ours(tmp_path, WAN, (keys, 1.0))
    assert [*merged] == [f"{LAYER}.weight"]
    expected = WAN[f"{LAYER}.weight"] + up @ down
    assert torch.allclose(merged[f"{LAYER}.weight"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [".lora_{up,down}.weight", ".lora_{B,A}.weight"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_with_dots(tmp_path, prefix, names):
    same_as_plain(tmp_path, lora(prefix + LAYER, SHAPE, names=names))


@pytest.mark.parametrize("prefix", FLAT_PREFIXES)
def test_prefixes_with_underscores(tmp_path, prefix):
    same_as_plain(tmp_path, lora(prefix + LAYER.replace(".", "_"), SHAPE))


@pytest.mark.parametrize(
    "layer",
    [
        "diffusion_model.blocks.2._orig_mod.self_attn.q",
        "blocks.2._checkpoint_wrapped_module.self_attn.q",
        "lora_unet_blocks_2__orig_mod_self_attn_q",
        "transformer.blocks.2._fsdp_wrapped_module._orig_mod.self_attn.q",
    ],
)
def test_wrappers_anywhere_in_a_name(tmp_path, layer):
    same_as_plain(tmp_path, lora(layer, SHAPE))


@pytest.mark.parametrize(
    "adapter", ["default", "default_0", "style", "my-style_v2", "0", "weights"]
)
def test_a_named_adapter(tmp_path, adapter):
    names = f".lora_{{B,A}}.{adapter}.weight"
    same_as_plain(tmp_path, lora(f"transformer.{LAYER}", SHAPE, names=names))


def test_two_adapters_in_a_file_are_refused_by_name(tmp_path):
    """They are alternatives or to be added up, with weights that are not in the file."""
    keys = lora(LAYER, SHAPE, names=".lora_{B,A}.style.weight")
    others = (
        lora(LAYER, SHAPE, names=".lora_{B,A}.face.weight"),
        lora("blocks.2.self_attn.k", SHAPE, names=".lora_{B,A}.face.weight"),
    )
    for other in others:
        with pytest.raises(ConvertError, match="has several adapters, face, style; keep one"):
            merge(tmp_path, WAN, keys | other, partial=True)
    unnamed = lora("blocks.2.self_attn.k", SHAPE, names=".lora_{B,A}.weight")
    with pytest.raises(ConvertError, match="has several adapters, default, style; keep one"):
        merge(tmp_path, WAN, keys | unnamed)
    named = lora("blocks.2.self_attn.k", SHAPE, names=".lora_{B,A}.default.weight")
    assert merge(tmp_path, WAN, lora(LAYER, SHAPE) | named).notes[0].count("2 tensors")


def test_a_text_encoders_adapter_may_have_another_name(tmp_path):
    keys = lora(f"transformer.{LAYER}", SHAPE, names=".lora_{B,A}.style.weight")
    keys |= lora("text_encoder.q", SHAPE, names=".lora_{B,A}.weight")
    assert "1 tensor " in merge(tmp_path, WAN, keys, partial=True).notes[0]


SECOND = ("transformer_2.", "base_model.model.transformer_2.", "pipe.dit2.",
          "diffusion_model.transformer_2.")  # fmt: skip


@pytest.mark.parametrize("prefix", SECOND)
def test_the_second_model_of_a_pipeline_is_merged_with_a_note(tmp_path, prefix):
    source = merge(tmp_path, WAN, lora(prefix + LAYER, SHAPE))
    assert source.model.tensors[f"{LAYER}.weight"].patches
    assert "l.safetensors: is for the model" in source.notes[1]
    assert "SOURCE has to be that one" in source.notes[1]


@pytest.mark.parametrize("first", ["transformer.", "", "transformer_1."])
@pytest.mark.parametrize("layer", [LAYER, "blocks.2.self_attn.k"])
def test_a_file_for_both_models_is_refused(tmp_path, first, layer):
    keys = lora(first + LAYER, SHAPE) | lora(f"transformer_2.{layer}", SHAPE)
    with pytest.raises(ConvertError) as caught:
        merge(tmp_path, WAN, keys, partial=True)
    (line,) = caught.value.problems
    assert f"is for two models: transformer_2.{layer}; and {first}{LAYER}; keep the keys" in line


def test_text_encoders_beside_the_second_model_do_not_make_it_two(tmp_path):
    keys = lora(f"transformer_2.{LAYER}", SHAPE) | lora("text_encoder.q", SHAPE)
    assert "1 tensor " in merge(tmp_path, WAN, keys, partial=True).notes[0]


def test_modulations_of_lightx2v(tmp_path):
    """ComfyUI loads `modulation.diff`, but not this name of it."""
    keys = lora(f"diffusion_model.{LAYER}", SHAPE)
    keys |= {
        "diffusion_model.blocks.2.diff_m": rand(1, 6, 16),
        "diffusion_model.head.diff_m": rand(1, 2, 16),
        "diffusion_model.blocks.2.norm3.diff": rand(16),
        "diffusion_model.blocks.2.norm3.diff_b": rand(16),
        f"diffusion_model.{LAYER}.diff_b": rand(32),
    }
    source = merge(tmp_path, WAN, keys)
    for name, key in (
        ("blocks.2.modulation", "blocks.2.diff_m"),
        ("head.modulation", "head.diff_m"),
        ("blocks.2.norm3.weight", "blocks.2.norm3.diff"),
        ("blocks.2.norm3.bias", "blocks.2.norm3.diff_b"),
        (f"{LAYER}.bias", f"{LAYER}.diff_b"),
    ):
        expected = WAN[name] + keys[f"diffusion_model.{key}"]
        assert torch.equal(load_weight(source.model.tensors[name]), expected), name
    assert source.notes == (
        "l.safetensors: merged into 6 tensors at strength 1",
        "l.safetensors: 2 modulations (diff_m) are merged, which ComfyUI leaves out",
    )


def test_a_modulation_that_the_model_lacks_or_of_another_shape_is_told(tmp_path):
    keys = lora(LAYER, SHAPE) | {"blocks.9.diff_m": rand(1, 6, 16)}
    with pytest.raises(
        ConvertError, match=r"1 keys match no tensor of the model: blocks\.9\.diff_m"
    ):
        merge(tmp_path, WAN, keys)
    keys = lora(LAYER, SHAPE) | {"blocks.2.diff_m": rand(1, 6, 8)}
    with pytest.raises(ConvertError, match=r"blocks\.2\.diff_m \[1, 6, 8\] do not fit"):
        merge(tmp_path, WAN, keys)


def test_the_processors_of_xlabs_and_uso(tmp_path):
    flux = {
        "double_blocks.0.img_attn.qkv.weight": rand(96, 32),
        "double_blocks.0.txt_attn.proj.weight": rand(32, 32),
        "single_blocks.0.linear1.weight": rand(224, 32),
        "single_blocks.0.linear2.weight": rand(32, 160),
    }
    parts = {
        "double_blocks.0.processor.qkv_lora1": ("double_blocks.0.img_attn.qkv", (96, 32)),
        "double_blocks.0.processor.proj_lora2": ("double_blocks.0.txt_attn.proj", (32, 32)),
        "single_blocks.0.processor.qkv_lora": ("single_blocks.0.linear1", (96, 32)),
        "single_blocks.0.processor.proj_lora": ("single_blocks.0.linear2", (32, 160)),
    }
    keys = {}
    for name, (_, (rows, columns)) in parts.items():
        keys |= {f"{name}.up.weight": rand(rows, 4), f"{name}.down.weight": rand(4, columns)}
    merged = ours(tmp_path, flux, (keys, 1.0))
    for name, (layer, (rows, _)) in parts.items():
        expected = flux[f"{layer}.weight"].clone()
        expected[:rows] += keys[f"{name}.up.weight"] @ keys[f"{name}.down.weight"]
        assert torch.allclose(merged[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("prefix", ["base_model.model.", "lycoris_", ""])
def test_layers_of_the_decoder_alone(tmp_path, prefix):
    """Of ACE-Step 1.5, as ComfyUI maps them."""
    state = {"decoder.layers.0.self_attn.q_proj.weight": rand(*SHAPE)}
    layer = "layers.0.self_attn.q_proj"
    layer = layer.replace(".", "_") if prefix.endswith("_") else layer
    assert [*ours(tmp_path, state, (lora(prefix + layer, SHAPE), 1.0))] == [*state]


NOT_CERTAIN = {
    "1 a scalar of LyCORIS": {f"{LAYER}.scalar": torch.tensor(0.5)},
    "1 of PEFT's DoRA": {f"{LAYER}.lora_magnitude_vector.weight": rand(32)},
    "2 keys match no tensor": lora("t5.blocks.0.q", SHAPE),
    "of the model: blocks.2.self_attn.q.lora_A.weight_scale": {
        f"{LAYER}.lora_A.weight_scale": rand(1)
    },
    "of the model: blocks.2.self_attn.q.lora_A.bias": {f"{LAYER}.lora_A.bias": rand(4)},
}


@pytest.mark.parametrize("told", NOT_CERTAIN)
def test_what_has_no_certain_meaning_is_refused_by_name(tmp_path, told):
    keys = lora(LAYER, SHAPE, names=".lora_{B,A}.weight") | NOT_CERTAIN[told]
    with pytest.raises(ConvertError) as caught:
        merge(tmp_path, WAN, keys)
    assert told in str(caught.value)


def test_what_lies_beside_the_diffusion_model_is_not_patched(tmp_path):
    state = {f"model.diffusion_model.{name}": value for name, value in WAN.items()}
    state |= {"text_encoders.t5.blocks.0.q.weight": rand(*SHAPE)}
    keys = lora(LAYER, SHAPE) | lora("text_encoders.t5.blocks.0.q", SHAPE)
    with pytest.raises(ConvertError, match="2 keys match no tensor of the model, 2 of a text enc"):
        merge(tmp_path, state, keys)
    patched = merge(tmp_path, state, keys, partial=True).model.tensors.values()
    assert [ref.name for ref in patched if ref.patches] == [f"model.diffusion_model.{LAYER}.weight"]


def test_a_rank_of_zero_is_refused(tmp_path):
    with pytest.raises(ConvertError, match=r"lora_down\.weight \[0, 16\].* do not fit"):
        merge(tmp_path, WAN, lora(LAYER, SHAPE, rank=0))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.float64])
def test_other_dtypes_are_merged_as_the_numbers_they_are(tmp_path, dtype):
    keys = {key: value.to(dtype) for key, value in lora(LAYER, SHAPE).items()}
    merged = ours(tmp_path, WAN, (keys, 1.0))
    up, down = (keys[f"{LAYER}.lora_{part}.weight"].float() for part in ("up", "down"))
    expected = WAN[f"{LAYER}.weight"] + up @ down
    assert torch.allclose(merged[f"{LAYER}.weight"], expected, rtol=1e-5, atol=1e-5)
