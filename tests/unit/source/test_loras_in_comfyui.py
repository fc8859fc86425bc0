"""Merged weights against ComfyUI's own patching of the float model."""

import itertools
import sys
import types

import pytest
import torch

from nvfp4.source.lora_names import is_swapped, layer_names, locate, parse_key, rows_of
from support.comfyui import PREAMBLE, needs_comfyui
from support.loras import ALPHA, LORA_NAMES, loha, lokr, lora, opened, ours, rand, tucker_loha


@pytest.fixture(scope="module")
def comfy():
    argv = sys.argv
    exec(PREAMBLE, {})
    sys.argv = argv
    import comfy.ldm.flux.model
    import comfy.ldm.hunyuan_video.model
    import comfy.ldm.lightricks.model
    import comfy.ldm.lumina.model
    import comfy.ldm.qwen_image.model
    import comfy.ldm.wan.model
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_base
    import comfy.ops
    import comfy.sd
    import comfy.supported_models

    return comfy


FLUX = dict(
    in_channels=4,
    out_channels=4,
    vec_in_dim=8,
    context_in_dim=12,
    hidden_size=32,
    mlp_ratio=4.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[4, 6, 6],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
)


FLUX2 = FLUX | dict(
    vec_in_dim=None,
    global_modulation=True,
    mlp_silu_act=True,
    qkv_bias=False,
    ops_bias=False,
    guidance_embed=True,
    txt_ids_dims=[3],
    mlp_ratio=3.0,
)


FAMILIES = {
    "flux": ("Flux", "flux.model.Flux", FLUX | dict(txt_ids_dims=[])),
    "flux2": ("Flux2", "flux.model.Flux", FLUX2),
    "z_image": (
        "Lumina2",
        "lumina.model.NextDiT",
        dict(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            axes_dims=[4, 6, 6],
            axes_lens=[8, 8, 8],
            cap_feat_dim=12,
            qk_norm=True,
            z_image_modulation=True,
            pad_tokens_multiple=32,
        ),
    ),
    "qwen": (
        "QwenImage",
        "qwen_image.model.QwenImageTransformer2DModel",
        dict(
            in_channels=8,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(4, 6, 6),
        ),
    ),
    "wan": (
        "WAN21",
        "wan.model.WanModel",
        dict(
            model_type="i2v",
            in_dim=4,
            dim=32,
            ffn_dim=48,
            freq_dim=8,
            text_dim=12,
            out_dim=4,
            num_heads=2,
            num_layers=2,
        ),
    ),
    "hunyuan": (
        "HunyuanVideo",
        "hunyuan_video.model.HunyuanVideo",
        FLUX
        | dict(
            patch_size=[1, 2, 2],
            byt5=False,
            meanflow=False,
            use_cond_type_embedding=False,
            vision_in_dim=None,
            meanflow_sum=False,
        ),
    ),
    "krea2": (
        "Krea2",
        "krea2.model.SingleStreamDiT",
        dict(
            features=32,
            tdim=16,
            txtdim=32,
            heads=2,
            kvheads=1,
            layers=2,
            channels=4,
            txtlayers=2,
            txtheads=2,
            txtkvheads=2,
        ),
    ),
    "sd3": (
        "SD3",
        "modules.diffusionmodules.mmdit.MMDiT",
        dict(
            depth=2,
            num_blocks=2,
            adm_in_channels=16,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": 12, "out_features": 128},
            },
            pos_embed_max_size=4,
            num_patches=16,
            input_size=None,
            qk_norm="rms",
        ),
    ),
    "auraflow": (
        "AuraFlow",
        "aura.mmdit.MMDiT",
        dict(
            dim=32,
            n_layers=4,
            n_double_layers=2,
            n_heads=2,
            global_conddim=32,
            cond_seq_dim=12,
            max_seq=16,
        ),
    ),
    "pixart": (
        "PixArt",
        "pixart.pixartms.PixArtMS",
        dict(input_size=8, hidden_size=32, depth=2, num_heads=2, caption_channels=12),
    ),
    "sdxl": (
        "SDXL",
        "modules.diffusionmodules.openaimodel.UNetModel",
        dict(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=[2, 2, 2],
            channel_mult=[1, 2, 4],
            transformer_depth=[0, 0, 1, 1, 2, 2],
            transformer_depth_middle=2,
            transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2],
            num_head_channels=16,
            use_spatial_transformer=True,
            use_linear_in_transformer=True,
            context_dim=12,
            adm_in_channels=16,
            num_classes="sequential",
        ),
    ),
    "sd15": (
        "BaseModel",
        "modules.diffusionmodules.openaimodel.UNetModel",
        dict(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=[2, 2, 2, 2],
            channel_mult=[1, 2, 4, 4],
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
            transformer_depth_middle=1,
            transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            num_heads=4,
            use_spatial_transformer=True,
            context_dim=12,
        ),
    ),
    "ltx": (
        "LTXV",
        "lightricks.model.LTXVModel",
        dict(
            in_channels=8,
            cross_attention_dim=32,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=12,
            num_layers=2,
        ),
    ),
}


def family(comfy, name):
    """A small random model of a family: its native state dict, and what ComfyUI makes of names."""
    base, module, config = FAMILIES[name]
    cls = comfy.ldm
    for part in module.split("."):
        cls = getattr(cls, part)
    model = cls(
        **config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    state = {key: rand(*value.shape) for key, value in model.state_dict().items()}

    class Small(getattr(comfy.model_base, base)):
        def __init__(self):
            self.__dict__["model_config"] = types.SimpleNamespace(unet_config=config)

        def state_dict(self):
            return {f"diffusion_model.{key}": value for key, value in state.items()}

    return state, comfy.lora.model_lora_keys_unet(Small(), {})


def theirs(comfy, state, key_map, *loras):
    patches = {}
    for given, strength in loras:
        loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(given)), key_map)
        for key, value in loaded.items():  # as ModelPatcher.add_patches
            key, offset, function = (*((key,) if isinstance(key, str) else key), None, None)[:3]
            key = key.removeprefix("diffusion_model.")
            patches.setdefault(key, []).append((strength, value, 1.0, offset, function))
    weights = {key: state[key].clone().float() for key in patches if key in state}
    return {key: comfy.lora.calculate_weight(patches[key], w, key) for key, w in weights.items()}


def same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        scale = second[key].abs().max()
        assert (first[key] - second[key]).abs().max() <= 1e-5 * scale, key


@needs_comfyui
@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_that_comfyui_knows(comfy, tmp_path, name):
    state, key_map = family(comfy, name)
    model = opened(tmp_path, state)
    names = layer_names(state)
    assert {*names.values()} == {*state}  # no two tensors share a name
    assert len(key_map) > 40
    for alias, target in key_map.items():
        target, offset, function = (
            *((target,) if isinstance(target, str) else target),
            None,
            None,
        )[:3]
        target = target.removeprefix("diffusion_model.")
        found = locate(parse_key(f"{alias}.lora_up.weight")["layer"], names)
        if target not in state:
            assert found is None, alias
            continue
        assert found is not None, alias
        name, part = found
        assert name == target, alias
        ref = model.tensors[name]
        assert (function is not None) == is_swapped(part, ref), alias
        rows = rows_of(part, ref)
        if offset:
            assert (0, rows.start, rows.stop - rows.start) == tuple(offset), alias
        else:
            assert rows == slice(None), alias
    assert model.tensors.keys() == state.keys()


Q = (32, 32)


IN_FLUX = {  # what: LoRA
    "plain": lora("diffusion_model.double_blocks.0.img_mlp.0", (128, 32), **ALPHA),
    "no alpha": lora("diffusion_model.double_blocks.0.img_mlp.0", (128, 32)),
    "kohya": lora("lora_unet_double_blocks_1_txt_attn_qkv", (96, 32), **ALPHA),
    "all of linear1": lora("lora_unet_single_blocks_1_linear1", (224, 32), **ALPHA),
    "q, k, v": lora("transformer.transformer_blocks.0.attn.to_q", Q)
    | lora("transformer.transformer_blocks.0.attn.to_k", Q, names=LORA_NAMES[2])
    | lora("transformer.transformer_blocks.0.attn.add_v_proj", Q, **ALPHA),
    "single block": lora("transformer.single_transformer_blocks.0.attn.to_v", Q, **ALPHA)
    | lora("transformer.single_transformer_blocks.0.proj_mlp", (128, 32))
    | lora("transformer.single_transformer_blocks.0.proj_out", (32, 160)),
    "linear1_qkv": lora("diffusion_model.single_blocks.0.linear1_qkv", (96, 32)),
    "swapped": lora("transformer.norm_out.linear", (64, 32), **ALPHA),
    "swapped LoHa": loha("lycoris_norm_out_linear", (64, 32), **ALPHA),
    "onetrainer": lora("lora_transformer_transformer_blocks_0_ff_net_0_proj", (128, 32), **ALPHA),
    "diffsynth": lora("transformer_blocks.0.attn.to_out.0", Q, names=LORA_NAMES[6]),
    "LoHa": loha("lycoris_transformer_blocks_0_attn_to_k", Q, **ALPHA),
    "LoHa no alpha": loha("lora_unet_img_in", (32, 16)),
    "LoKr": lokr("lycoris_single_transformer_blocks_1_proj_out", (32, 160), **ALPHA),
    "LoKr first": lokr("lora_unet_img_in", (32, 16), split=(True, False), **ALPHA),
    "LoKr both": lokr("lora_unet_img_in", (32, 16), split=(True, True), **ALPHA),
    "LoKr whole": lokr("lora_unet_img_in", (32, 16), split=(False, False), **ALPHA),
    "LoKr of q": lokr("lycoris_transformer_blocks_0_attn_to_q", Q, **ALPHA),
    "DoRA": lora("lora_unet_img_in", (32, 16), dora_scale=rand(32, 1).abs(), **ALPHA),
    "DoRA columns": lora("lora_unet_img_in", (32, 16), dora_scale=rand(1, 16).abs(), **ALPHA),
    "DoRA of k": lora(
        "transformer.transformer_blocks.0.attn.to_k", Q, dora_scale=rand(32, 1).abs()
    ),
    "DoRA swapped": lora("transformer.norm_out.linear", (64, 32), dora_scale=rand(64, 1).abs()),
    "DoRA LoHa": loha("lora_unet_img_in", (32, 16), dora_scale=rand(32, 1).abs(), **ALPHA),
    "DoRA LoKr": lokr("lora_unet_img_in", (32, 16), dora_scale=rand(32, 1).abs(), **ALPHA),
    "diff": {"diffusion_model.img_in.diff": rand(32, 16)},
    "diff with alpha": {
        "diffusion_model.img_in.diff": rand(32, 16),
        "diffusion_model.img_in.alpha": torch.tensor(3.0),
    },
    "diff of k": {"transformer.transformer_blocks.0.attn.to_k.diff": rand(32, 32)},
    "diff_b": lora("diffusion_model.img_in", (32, 16))
    | {"diffusion_model.img_in.diff_b": rand(32)},
    "norm": {"diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": rand(16)},
    "w_norm": {
        "diffusion_model.img_in.w_norm": rand(32, 16),
        "diffusion_model.img_in.b_norm": rand(32),
    },
    "bias by name": {"diffusion_model.img_in.bias.diff": rand(32)},
    "set_weight": {"diffusion_model.img_in.set_weight": rand(32, 16)},
    "set of k": {"transformer.transformer_blocks.0.attn.to_k.set_weight": rand(32, 32)},
} | {
    f"spelt {names}": lora("diffusion_model.img_in", (32, 16), names=names, **ALPHA)
    for names in LORA_NAMES
}


DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def flux(comfy):
    return family(comfy, "flux")


@needs_comfyui
@pytest.mark.parametrize("given_as", [*itertools.product(DTYPES, [1.0, -0.7])])
@pytest.mark.parametrize("what", IN_FLUX)
def test_every_kind_is_merged_as_by_comfyui(comfy, flux, tmp_path, what, given_as):
    (state, key_map), (dtype, strength) = flux, given_as
    given = {key: value.to(dtype) for key, value in IN_FLUX[what].items()}
    merged = ours(tmp_path, state, (given, strength))
    assert merged
    same(merged, theirs(comfy, state, key_map, (given, strength)))


@needs_comfyui
def test_several_files_and_parts_add_up(comfy, flux, tmp_path):
    state, key_map = flux
    loras = [
        (IN_FLUX[what], strength)
        for what, strength in (
            ("plain", 0.5),
            ("diff", 1.0),
            ("q, k, v", 2.0),
            ("LoHa", 1.0),
            ("no alpha", -1.0),
            ("DoRA", 0.8),
            ("LoKr", 1.0),
        )
    ]
    merged = ours(tmp_path, state, *loras)
    same(merged, theirs(comfy, state, key_map, *loras))


CONV = "diffusion_model.patch_embedding"


IN_WAN = {
    "wan fun": lora("lora_unet__blocks_0_cross_attn_k", Q, **ALPHA),
    "kohya": lora("lora_unet_blocks_1_ffn_0", (48, 32), **ALPHA),
    "generic": lora("diffusion_model.blocks.1.self_attn.q", Q, names=LORA_NAMES[2]),
    "lightx2v": lora("diffusion_model.blocks.1.self_attn.q", Q)
    | {
        "diffusion_model.blocks.1.self_attn.q.diff_b": rand(32),
        "diffusion_model.blocks.1.norm3.diff": rand(32),
        "diffusion_model.blocks.1.norm3.diff_b": rand(32),
        "diffusion_model.blocks.1.self_attn.norm_q.diff": rand(32),
        "diffusion_model.blocks.1.modulation.diff": rand(1, 6, 32),
    },
    "conv": lora(CONV, (32, 4, 1, 2, 2), **ALPHA),
    "conv diff": {f"{CONV}.diff": rand(32, 4, 1, 2, 2), f"{CONV}.diff_b": rand(32)},
    "conv LoHa": loha(CONV, (32, 4, 1, 2, 2), **ALPHA),
    "conv DoRA": lora(CONV, (32, 4, 1, 2, 2), dora_scale=rand(32, 1, 1, 1, 1).abs(), **ALPHA),
    "conv DoRA columns": lora(
        CONV, (32, 4, 1, 2, 2), dora_scale=rand(1, 4, 1, 1, 1).abs(), **ALPHA
    ),
}


@needs_comfyui
@pytest.mark.parametrize("what", IN_WAN)
def test_wan(comfy, tmp_path, what):
    state, key_map = family(comfy, "wan")
    merged = ours(tmp_path, state, (IN_WAN[what], 0.7))
    assert merged
    same(merged, theirs(comfy, state, key_map, (IN_WAN[what], 0.7)))


IN_CONV2D = {
    "conv": lora("diffusion_model.c", (32, 8, 3, 3), **ALPHA),
    "tucker": lora("diffusion_model.c", (32, 8, 1, 1), **ALPHA)
    | {"diffusion_model.c.lora_mid.weight": rand(4, 4, 3, 3)},
    "LoHa tucker": tucker_loha("diffusion_model.c", (32, 8, 3, 3), **ALPHA),
    "LoKr": lokr("diffusion_model.c", (32, 8, 3, 3), split=(True, False), **ALPHA),
    "LoKr split": lokr("diffusion_model.c", (32, 8, 3, 3), **ALPHA),
}


@needs_comfyui
@pytest.mark.parametrize("what", IN_CONV2D)
def test_convolutions(comfy, tmp_path, what):
    state = {"c.weight": rand(32, 8, 3, 3)}
    merged = ours(tmp_path, state, (IN_CONV2D[what], 0.7))
    same(
        merged,
        theirs(
            comfy, state, {"diffusion_model.c": "diffusion_model.c.weight"}, (IN_CONV2D[what], 0.7)
        ),
    )


OTHERS = {
    "z_image": lora("diffusion_model.layers.0.attention.to_q", Q)
    | lora("diffusion_model.layers.0.attention.to_v", Q, **ALPHA)
    | lora("diffusion_model.layers.1.attention.to_out.0", Q)
    | lora("diffusion_model.all_final_layer.2-1.linear", (16, 32))
    | lora("diffusion_model.layers.1.attention.qkv", (96, 32)),
    "qwen": lora("transformer_blocks.0.attn.to_q", Q, names=LORA_NAMES[6])
    | lora("transformer.transformer_blocks.1.attn.to_add_out", Q)
    | lokr("lycoris_transformer_blocks_1_img_mlp_net_0_proj", (128, 32))
    | lora("lora_unet_transformer_blocks_0_img_mod_1", (192, 32), **ALPHA),
    "hunyuan": lora("transformer.double_blocks.0.img_attn_qkv", (96, 32))
    | lora("transformer.double_blocks.0.img_mod.linear", (192, 32))
    | lora("diffusion_model.double_blocks.0.img_mlp.fc1", (128, 32), **ALPHA)
    | lora("lora_unet_single_blocks_0_linear2", (32, 160), **ALPHA),
    "krea2": lora("transformer.transformer_blocks.0.attn.to_q", Q)
    | lora("diffusion_model.text_fusion.refiner_blocks.1.attn.to_out.0", Q, **ALPHA)
    | lora("lycoris_img_in", (32, 16)),
    "sd3": lora("transformer.transformer_blocks.0.attn.to_k", (128, 128))
    | lora("transformer.transformer_blocks.0.norm1_context.linear", (768, 128), **ALPHA)
    | lora("lora_transformer_transformer_blocks_1_norm1_context_linear", (256, 128))
    | lora("base_model.model.norm_out.linear", (256, 128)),
    "auraflow": lora("transformer.joint_transformer_blocks.0.attn.to_q", Q)
    | lora("transformer.single_transformer_blocks.1.attn.to_v", Q, **ALPHA)
    | lora("transformer.norm_out.linear", (64, 32)),
    "pixart": lora("transformer.transformer_blocks.0.attn2.to_v", Q)
    | lora("base_model.model.transformer_blocks.1.attn2.to_k", Q, **ALPHA)
    | lora("unet.base_model.model.transformer_blocks.0.attn1.to_k", Q),
    "sdxl": lora("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", (64, 64))
    | lora("lora_unet_up_blocks_0_resnets_2_conv_shortcut", (128, 192, 1, 1), **ALPHA)
    | lora(
        "unet.mid_block.attentions.0.transformer_blocks.1.attn2.processor.to_k",
        (128, 12),
        names=LORA_NAMES[1],
    )
    | lora("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out", (128, 128)),
    "ltx": lora("diffusion_model.transformer_blocks.0.attn1.to_q", Q)
    | lora("transformer_blocks.1.ff.net.2", (32, 128)),
}


@needs_comfyui
@pytest.mark.parametrize("name", OTHERS)
def test_other_families(comfy, tmp_path, name):
    state, key_map = family(comfy, name)
    merged = ours(tmp_path, state, (OTHERS[name], 1.3))
    assert len(merged) > 1
    same(merged, theirs(comfy, state, key_map, (OTHERS[name], 1.3)))


@needs_comfyui
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_hunyuan_video_as_published(comfy, prefix):
    """The file's own layer names differ from those in ComfyUI, which LoRA files use."""
    state, key_map = family(comfy, "hunyuan")
    respell = (
        ("_mod.lin.", "_mod.linear."),
        ("modulation.lin.", "modulation.linear."),
        ("mlp.0.", "mlp.fc1."),
        ("mlp.2.", "mlp.fc2."),
        ("_attn.qkv.", "_attn_qkv."),
        ("_attn.proj.", "_attn_proj."),
        ("_attn.norm.query_norm.weight", "_attn_q_norm.weight"),
        ("_attn.norm.key_norm.weight", "_attn_k_norm.weight"),
        (".norm.query_norm.weight", ".q_norm.weight"),
        (".norm.key_norm.weight", ".k_norm.weight"),
        ("txt_in.t_embedder.in_layer", "txt_in.t_embedder.mlp.0"),
        ("txt_in.t_embedder.out_layer", "txt_in.t_embedder.mlp.2"),
        ("txt_in.c_embedder.in_layer", "txt_in.c_embedder.linear_1"),
        ("txt_in.c_embedder.out_layer", "txt_in.c_embedder.linear_2"),
        ("_in.in_layer", "_in.mlp.0"),
        ("_in.out_layer", "_in.mlp.2"),
    )
    published = {}
    for key in state:
        name = key
        for old, new in respell:
            name = name.replace(old, new)
        published[name] = key
    processed = comfy.supported_models.HunyuanVideo.process_unet_state_dict(None, published)
    assert all(native == key for native, key in processed.items())
    assert sum(name != key for name, key in published.items()) > 40
    names = layer_names([prefix + name for name in published])
    for alias, target in key_map.items():
        found, _ = locate(alias, names) or (None, None)
        assert found, alias
        assert published[found.removeprefix(prefix)] == target.removeprefix("diffusion_model."), (
            alias
        )


@needs_comfyui
def test_flux_as_published_has_scale_where_comfyui_has_weight(comfy, flux, tmp_path):
    state, key_map = flux
    published = {key.replace("_norm.weight", "_norm.scale"): value for key, value in state.items()}
    merged = ours(tmp_path, published, (IN_FLUX["norm"], 1.0))
    same(
        {key.replace(".scale", ".weight"): value for key, value in merged.items()},
        theirs(comfy, state, key_map, (IN_FLUX["norm"], 1.0)),
    )


@needs_comfyui
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model(comfy, tmp_path, dtype):
    """The whole way: ComfyUI recognises the file, maps the LoRA, and patches the weight."""
    config = dict(
        FAMILIES["wan"][2],
        dim=256,
        num_heads=2,
        ffn_dim=384,
        in_dim=36,
        out_dim=16,
        text_dim=4096,
        freq_dim=256,
    )
    wan = comfy.ldm.wan.model.WanModel(
        **config, dtype=dtype, device="cpu", operations=comfy.ops.disable_weight_init
    )
    state = {key: rand(*value.shape).to(dtype) for key, value in wan.state_dict().items()}
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={})
    given = (
        lora("lora_unet__blocks_0_cross_attn_k", (256, 256), **ALPHA)
        | {"diffusion_model.blocks.1.self_attn.q.diff_b": rand(256)}
        | lokr("diffusion_model.blocks.1.ffn.0", (384, 256))
    )
    given = {
        key.replace("diffusion_model.blocks.1.ffn.0", "lora_unet__blocks_1_ffn_0"): value
        for key, value in given.items()
    }
    merged = ours(tmp_path, state, (given, 0.8))
    assert len(merged) == 3
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, dict(given), 0.8, 0)
    assert {f"diffusion_model.{key}" for key in merged} == patched.patches.keys()
    for key, weight in merged.items():
        found = patched.patch_weight_to_device(
            f"diffusion_model.{key}", torch.device("cpu"), return_weight=True
        )
        bound = (
            1e-5 if dtype == torch.float32 else 2**-7
        )  # ComfyUI rounds to bfloat16, stochastically
        assert ((found.float() - weight).abs() <= bound * weight.abs() + 1e-5).all(), key
