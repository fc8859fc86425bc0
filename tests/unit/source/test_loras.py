"""LoRA files merged as ComfyUI merges them: every name it knows, every kind, the formulas."""

import argparse
import itertools
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.comfyui import PREAMBLE, needs_comfyui

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def opened(tmp_path, state, name="model"):
    state = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(state, tmp_path / f"{name}.safetensors")
    return c.open_model(tmp_path / f"{name}.safetensors")


def ours(tmp_path, state, *loras):
    """{tensor: merged weight} of the tensors that the LoRAs change."""
    files = []
    for number, (lora, strength) in enumerate(loras):
        (path,) = opened(tmp_path, lora, f"lora{number}").files
        files.append(c.Lora(path, strength))
    model, notes = c.merge_loras(files, opened(tmp_path, state), partial=False)
    assert len(notes) == len(loras)
    return {ref.name: c.load_weight(ref) for ref in model.tensors.values() if ref.patches}


# ── ComfyUI ──────────────────────────────────────────────────────────────────────────────────────


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
    for lora, strength in loras:
        loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), key_map)
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
    names = {c.canonical(re.sub(r"\.(weight|scale)$", "", key)): key for key in state}
    assert len(names) == len(state)  # no two tensors share a name
    assert len(key_map) > 40
    for alias, target in key_map.items():
        target, offset, function = (
            *((target,) if isinstance(target, str) else target),
            None,
            None,
        )[:3]
        target = target.removeprefix("diffusion_model.")
        found = c.locate(alias, names)
        if target not in state:
            assert found is None, alias
            continue
        assert found is not None, alias
        name, part = found
        assert name == target, alias
        assert (function is not None) == ("swapped" in part), alias
        begin, end = c.FUSED_ROWS.get(part.get("rows"), (0, None))
        columns, rows = (
            (*state[target].shape, 0)[1],
            len(state[target]) if state[target].ndim else 0,
        )
        begin, stop = begin and begin * columns, rows if end is None else end * columns
        if offset:
            assert (0, begin, stop - begin) == tuple(offset), alias
        else:
            assert (begin, stop) == (0, rows), alias
    assert model.tensors.keys() == state.keys()


LORA_NAMES = (
    ".lora_{up,down}.weight",
    "_lora.{up,down}.weight",
    ".lora_{B,A}.weight",
    ".lora.{up,down}.weight",
    ".lora_{B,A}",
    ".lora_linear_layer.{up,down}.weight",
    ".lora_{B,A}.default.weight",
)


def lora(layer, shape, rank=4, names=LORA_NAMES[0], **more):
    before, middle = names.split("{")
    middle, after = middle.split("}")
    up, down = (f"{layer}{before}{side}{after}" for side in middle.split(","))
    columns = shape[1:] if len(shape) > 1 else (1,)
    found = {up: rand(shape[0], rank, *[1] * (len(columns) - 1)), down: rand(rank, *columns)}
    return found | {f"{layer}.{key}": value for key, value in more.items()}


def loha(layer, shape, rank=3, **more):
    columns = int(np.prod(shape[1:]))
    parts = {f"w{n}_a": rand(shape[0], rank) for n in (1, 2)}
    parts |= {f"w{n}_b": rand(rank, columns) for n in (1, 2)}
    found = {f"{layer}.hada_{key}": value for key, value in parts.items()}
    return found | {f"{layer}.{key}": value for key, value in more.items()}


def tucker_loha(layer, shape, rank=3, **more):
    found = {}
    for n in (1, 2):
        found[f"{layer}.hada_t{n}"] = rand(rank, rank, *shape[2:])
        found[f"{layer}.hada_w{n}_a"] = rand(rank, shape[0])
        found[f"{layer}.hada_w{n}_b"] = rand(rank, shape[1])
    return found | {f"{layer}.{key}": value for key, value in more.items()}


def lokr(layer, shape, split=(False, True), **more):
    sizes = ((4, 2), (shape[0] // 4, shape[1] // 2))
    found = {}
    for n, size in enumerate(sizes, 1):
        kernel = shape[2:] if n == 2 else ()
        if split[n - 1]:
            found[f"{layer}.lokr_w{n}_a"] = rand(size[0], n + 1)
            found[f"{layer}.lokr_w{n}_b"] = rand(n + 1, int(np.prod((size[1], *kernel))))
        else:
            found[f"{layer}.lokr_w{n}"] = rand(*size, *kernel)
    return found | {f"{layer}.{key}": value for key, value in more.items()}


ALPHA = {"alpha": torch.tensor(2.5)}
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
    names = {
        c.canonical(re.sub(r"\.(weight|scale)$", "", c.bare(prefix + name))): name
        for name in published
    }
    for alias, target in key_map.items():
        found, _ = c.locate(alias, names) or (None, None)
        assert found, alias
        assert published[found] == target.removeprefix("diffusion_model."), alias


@needs_comfyui
def test_flux_as_published_has_scale_where_comfyui_has_weight(comfy, flux, tmp_path):
    state, key_map = flux
    published = {key.replace("_norm.weight", "_norm.scale"): value for key, value in state.items()}
    merged = ours(tmp_path, published, (IN_FLUX["norm"], 1.0))
    same(
        {key.replace(".scale", ".weight"): value for key, value in merged.items()},
        theirs(comfy, state, key_map, (IN_FLUX["norm"], 1.0)),
    )


# ── without ComfyUI ──────────────────────────────────────────────────────────────────────────────

LINEAR = {"model.diffusion_model.x.weight": rand(32, 16), "model.diffusion_model.x.bias": rand(32)}


def exact(tensors):
    return {key.removeprefix("x."): value.double().numpy() for key, value in tensors.items()}


def test_lora_formula(tmp_path):
    given = lora("x", (32, 16), **ALPHA)
    merged = ours(tmp_path, LINEAR, (given, -0.5))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    expected = w - 0.5 * 2.5 / 4 * p["lora_up.weight"] @ p["lora_down.weight"]
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_loha_formula(tmp_path):
    given = loha("x", (32, 16), **ALPHA)
    merged = ours(tmp_path, LINEAR, (given, 2.0))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    expected = w + 2 * 2.5 / 3 * (p["hada_w1_a"] @ p["hada_w1_b"]) * (
        p["hada_w2_a"] @ p["hada_w2_b"]
    )
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_lokr_formula(tmp_path):
    given = lokr("x", (32, 16), **ALPHA)
    merged = ours(tmp_path, LINEAR, (given, 2.0))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    expected = w + 2 * 2.5 / 3 * np.kron(p["lokr_w1"], p["lokr_w2_a"] @ p["lokr_w2_b"])
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_tucker_lokr_formula(tmp_path):
    """ComfyUI logs an error and merges nothing: torch.kron refuses what einsum returns."""
    parts = {"w1": rand(4, 2), "w2_a": rand(3, 8), "w2_b": rand(3, 4), "t2": rand(3, 3, 3, 3)}
    given = {f"x.lokr_{part}": value for part, value in parts.items()} | {
        "x.alpha": torch.tensor(2.0)
    }
    state = {"x.weight": rand(32, 8, 3, 3)}
    merged = ours(tmp_path, state, (given, 0.5))
    p = {part: value.double().numpy() for part, value in parts.items()}
    second = np.einsum("ijkl,jr,ip->prkl", p["t2"], p["w2_b"], p["w2_a"])
    change = np.stack([[np.kron(p["w1"], second[..., i, j]) for j in range(3)] for i in range(3)])
    expected = state["x.weight"].double().numpy() + 0.5 * 2 / 3 * change.transpose(2, 3, 0, 1)
    np.testing.assert_allclose(merged["x.weight"], expected, rtol=1e-5, atol=1e-5)


def test_dora_formula(tmp_path):
    given = lora("x", (32, 16), dora_scale=rand(32).abs(), **ALPHA)  # one dimension: PEFT's habit
    merged = ours(tmp_path, LINEAR, (given, 0.5))
    p, w = exact(given), LINEAR["model.diffusion_model.x.weight"].double().numpy()
    whole = w + 2.5 / 4 * p["lora_up.weight"] @ p["lora_down.weight"]
    whole *= (p["dora_scale"] / np.linalg.norm(w, axis=1))[:, None]
    np.testing.assert_allclose(
        merged["model.diffusion_model.x.weight"], w + (whole - w) / 2, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("diffusers", "native"),
    [
        ("blocks.0.attn1.to_q", "blocks.0.self_attn.q"),
        ("blocks.0.attn1.to_out.0", "blocks.0.self_attn.o"),
        ("blocks.0.attn1.norm_q", "blocks.0.self_attn.norm_q"),
        ("blocks.0.attn2.to_v", "blocks.0.cross_attn.v"),
        ("blocks.0.attn2.to_out.0", "blocks.0.cross_attn.o"),
        ("blocks.0.attn2.norm_k", "blocks.0.cross_attn.norm_k"),
        ("blocks.0.attn2.add_k_proj", "blocks.0.cross_attn.k_img"),
        ("blocks.0.ffn.net.0.proj", "blocks.0.ffn.0"),
        ("blocks.0.ffn.net.2", "blocks.0.ffn.2"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.", "diffusion_model."])
def test_wan_in_the_names_of_diffusers(tmp_path, prefix, diffusers, native):
    state = {f"{native}.weight": rand(8, 8), "blocks.0.cross_attn.out.weight": rand(8, 8)}
    merged = ours(tmp_path, state, (lora(prefix + diffusers, (8, 8)), 1.0))
    assert list(merged) == [f"{native}.weight"]


def test_bias_of_a_fused_part(tmp_path):
    """ComfyUI leaves these out; the rows are the weight's."""
    state = {
        "double_blocks.0.img_attn.qkv.weight": rand(96, 32),
        "double_blocks.0.img_attn.qkv.bias": rand(96),
    }
    added = rand(32)
    merged = ours(
        tmp_path, state, ({"transformer.transformer_blocks.0.attn.to_k.diff_b": added}, 1.0)
    )
    bias = state["double_blocks.0.img_attn.qkv.bias"].clone()
    bias[32:64] += added
    assert torch.equal(merged["double_blocks.0.img_attn.qkv.bias"], bias)


def test_unmatched_keys_are_an_error_or_counted(tmp_path):
    given = lora("lora_unet_x", (32, 16)) | lora("lora_te_y", (8, 8))
    given |= lora("text_encoder.z", (8, 8)) | lora("other", (8, 8), **ALPHA)
    given |= {"x.oft_blocks": rand(2), "strange": rand(1), "lost.alpha": rand(1)}
    given |= {"only.diff_b": rand(2), "x.diff_b": rand(3)}
    told = (
        "11 keys match no tensor of the model, 4 of a text encoder, 1 of OFT: "
        "lora_te_y.lora_down.weight, lora_te_y.lora_up.weight, lost.alpha and 8 more"
    )
    misfit = "does not fit the model: x.diff_b [3] do not fit model.diffusion_model.x.bias [32]"
    (path,) = opened(tmp_path, given, "lora").files
    files, model = [c.Lora(path, 1.0)], opened(tmp_path, LINEAR)
    with pytest.raises(c.ConvertError) as error:
        c.merge_loras(files, model, partial=False)
    assert error.value.problems == (f"{path}: {misfit}", f"{path}: {told}; --lora-partial goes on")
    model, notes = c.merge_loras(files, model, partial=True)
    assert notes == ["lora.safetensors: merged into 1 tensors at strength 1", misfit, told]
    assert sum(bool(ref.patches) for ref in model.tensors.values()) == 1


def test_a_lora_that_matches_nothing_is_an_error_even_partially(tmp_path):
    (path,) = opened(tmp_path, lora("other", (8, 8)), "lora").files
    with pytest.raises(c.ConvertError, match="nothing of it can be merged"):
        c.merge_loras([c.Lora(path, 1.0)], opened(tmp_path, LINEAR), partial=True)


WRONG = {
    "not fit the model: x.lora_down.weight [4, 32], x.lora_up.weight [16, 4] do not fit "
    "model.diffusion_model.x.weight [32, 16]": lora("x", (16, 32)),
    "not fit the model: x.lora_down.weight [5, 16], x.lora_up.weight [32, 4] do not fit "
    "model.diffusion_model.x.weight [32, 16]": {
        "x.lora_up.weight": rand(32, 4),
        "x.lora_down.weight": rand(5, 16),
    },
    "x.lora_up.weight [32, 4]: down is missing": {"x.lora_up.weight": rand(32, 4)},
    "x is diff and lora at once; keep one kind": {"x.diff": rand(32, 16)} | lora("x", (32, 16)),
    "x.lora_down.weight and x.lora_A.weight are the same thing twice": lora("x", (32, 16))
    | lora("x", (32, 16), names=".lora_{B,A}.weight"),
    "and another name are both model.diffusion_model.x.weight": lora("x", (32, 16))
    | lora("lora_unet_x", (32, 16)),
    "x.diff_b [16] do not fit model.diffusion_model.x.bias [32]": {"x.diff_b": rand(16)},
    "x.dora_scale [3, 1] do not fit": lora("x", (32, 16), dora_scale=rand(3, 1)),
    "x.alpha [2] do not fit": lora("x", (32, 16), alpha=rand(2)),
    "x.lora_down.weight is F8_E5M2; give the LoRA in a 16-bit type": {
        k: v.to(torch.float8_e5m2) for k, v in lora("x", (32, 16)).items()
    },
}


@pytest.mark.parametrize("problem", WRONG)
def test_errors_before_anything_is_merged(tmp_path, problem):
    with pytest.raises(c.ConvertError) as error:
        ours(tmp_path, LINEAR, (WRONG[problem], 1.0))
    assert problem in str(error.value)
    assert str(tmp_path / "lora0.safetensors") in str(error.value)
    assert len(error.value.problems) == 1


def test_rows_are_named_in_an_error(tmp_path):
    state = {"double_blocks.0.img_attn.qkv.weight": rand(96, 32)}
    with pytest.raises(c.ConvertError, match=r"do not fit rows 32 on of double_blocks.*\[96, 32\]"):
        ours(tmp_path, state, (lora("transformer_blocks.0.attn.to_k", (48, 32)), 1.0))


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.8", "x.safetensors", 0.8),
        ("x.safetensors:-1", "x.safetensors", -1.0),
        ("x.safetensors:+.5", "x.safetensors", 0.5),
        ("x:1e-2", "x", 0.01),
        (r"C:\x\y.safetensors:0.8", r"C:\x\y.safetensors", 0.8),
        (r"C:\x\y.safetensors", r"C:\x\y.safetensors", 1.0),
        ("C:/1:2", "C:/1", 2.0),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("x.safetensors:strong", "x.safetensors:strong", 1.0),
    ],
)
def test_file_and_strength(text, file, strength):
    assert c.lora_file(text) == (c.input_path(file), strength)


@pytest.mark.parametrize("text", ["", "x:0", "x:-0.0", "x:1e999", "x:1e39", "x:-1e308"])
def test_no_file_or_no_strength(text):
    with pytest.raises(argparse.ArgumentTypeError):
        c.lora_file(text)


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


def test_a_merged_file_is_that_of_the_merged_model(tiny, tmp_path, capsys):
    """Bytes of the tensors; biases and what stays 16-bit, too. And --verify knows of the LoRA."""
    state = {}
    for shard in tiny.glob("*.safetensors"):
        state |= load_file(shard)
    given = lora("lora_unet_blocks_3_ffn_0", state["blocks.3.ffn.0.weight"].shape)
    given |= {"diffusion_model.blocks.3.ffn.0.diff_b": rand(len(state["blocks.3.ffn.0.bias"]))}
    given |= lora("diffusion_model.head.head", state["head.head.weight"].shape)
    given |= {"diffusion_model.patch_embedding.diff": rand(*state["patch_embedding.weight"].shape)}
    merged = state | ours(tmp_path, state, (given, 0.25))
    assert sum(not torch.equal(merged[name], state[name]) for name in state) == 4
    opened(tmp_path, merged, "merged")
    arguments = ["--preset", "none", "--include", r"blocks\.3\.ffn", "--quiet"]
    model, whole = str(tmp_path / "model.safetensors"), str(tmp_path / "merged.safetensors")
    out, other = str(tmp_path / "o.safetensors"), str(tmp_path / "other.safetensors")
    file = f"{tmp_path / 'lora0.safetensors'}:0.25"
    assert c.main([model, out, *arguments, "--merge-lora", file]) == 0
    assert "lora0.safetensors: merged into 4 tensors at strength 0.25" in capsys.readouterr().out
    assert c.main([whole, other, *arguments]) == 0
    ((found, _), (expected, _)) = (c.read_header(Path(path)) for path in (out, other))
    assert found.keys() == expected.keys()
    for name, ref in found.items():
        assert torch.equal(c.load_bytes(ref), c.load_bytes(expected[name])), name
    assert c.main(["--verify", out, "--source", model, "--quiet"]) == 1
    assert c.main(["--verify", out, "--source", model, "--merge-lora", file, "--quiet"]) == 0


def test_a_lora_that_leaves_no_numbers_is_an_error(tmp_path):
    given = lora("x", (32, 16), alpha=torch.tensor(float("inf")))
    with pytest.raises(
        c.ConvertError, match=r"lora0\.safetensors: .*x\.weight holds NaN or Inf aft"
    ):
        ours(tmp_path, LINEAR, (given, 1.0))


def test_layers_that_are_quantised_already_are_counted_apart(converted, tmp_path):
    shape = (256, 256)
    given = lora("blocks.3.self_attn.q", shape) | lora("blocks.0.self_attn.q", shape)
    (path,) = opened(tmp_path, given, "lora").files
    model, _ = c.open_source(converted)
    with pytest.raises(c.ConvertError, match=r"1 layers are quantised in the source already, so"):
        c.merge_loras([c.Lora(path, 1.0)], model, partial=False)
    _, notes = c.merge_loras([c.Lora(path, 1.0)], model, partial=True)
    assert notes[0].startswith("lora.safetensors: merged into 1 tensors")
    assert len(notes) == 2


def test_a_lora_as_the_source_is_named(tmp_path):
    (path,) = opened(tmp_path, lora("blocks.0.x", (32, 32)), "lora").files
    with pytest.raises(c.ConvertError, match="is a LoRA: give the model, and this with --merge-l"):
        c.open_source(path)
