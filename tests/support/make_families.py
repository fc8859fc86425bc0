"""Writes the tensor names and shapes of published diffusion transformers, as ComfyUI has them.

usage: COMFYUI_ROOT=<checkout> python tests/support/make_families.py [NAME ...]

Each model is built on the meta device, so nothing is downloaded and no weight takes memory. A file
tests/families/NAME.txt results, which read_headers() expands again, and ComfyUI must recognise it.
"""

import importlib
import itertools
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.comfyui import PREAMBLE
from support.paths import FAMILIES

Shapes = dict[str, tuple[int, ...]]
NUMBER = re.compile(r"(?<![^.])(\d+)(?![^.])")  # a whole part of a dotted name
RANGE = re.compile(r"\{(\d+)-(\d+)\}")


def collapse(shapes: Shapes, numbers: int = 1) -> list[str]:
    """One line per run of equal tensors whose names differ only in their first number.

    With more `numbers`, runs are made of the last of these first, and of the others in turn.
    """
    for place in reversed(range(numbers)):
        groups: dict[tuple, list[int]] = {}
        for name, shape in shapes.items():
            # NUMBER's group is a part, too: names and numbers take turns.
            parts = NUMBER.split(name, maxsplit=place + 1)
            *heads, number, tail = parts if len(parts) == 2 * place + 3 else (name, "0", None)
            members = groups.setdefault(("".join(heads), tail, shape), [])
            members.append(int(number))
        shapes = {}
        for (head, tail, shape), members in groups.items():
            for run in runs(members):
                span = f"{{{run[0]}-{run[-1]}}}" if len(run) > 1 else str(run[0])
                shapes[head if tail is None else head + span + tail] = shape
    return [f"[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items()]


def runs(numbers: list[int]) -> list[list[int]]:
    """[0, 1, 2, 5] -> [[0, 1, 2], [5]]"""
    steps = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    return [[number for _, number in step] for _, step in steps]


def expand(name: str) -> list[str]:
    """blocks.{0-1}.ffn.{0-1} -> blocks.0.ffn.0, blocks.0.ffn.1, blocks.1.ffn.0 ..."""
    span = RANGE.search(name)
    numbers = range(int(span[1]), int(span[2]) + 1) if span else ()
    names = [f"{name[: span.start()]}{number}{name[span.end() :]}" for number in numbers]
    return [found for each in names for found in expand(each)] if span else [name]


def read_headers(path: Path) -> Shapes:
    """{tensor name: shape} of a file in families/."""
    shapes = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        size, name = line[1:].split("] ")
        shape = tuple(int(number) for number in size.split(",") if number)
        shapes |= dict.fromkeys(expand(name), shape)
    return shapes


WAN = "wan.model.WanModel"
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
WAN_I2V = {"model_type": "i2v", "in_dim": 36}
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = FLUX | {
    "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 15360,
    "hidden_size": 6144, "mlp_ratio": 3.0, "num_heads": 48, "depth": 8,
    "depth_single_blocks": 48, "axes_dim": [32] * 4, "theta": 2000, "patch_size": 1,
    "qkv_bias": False, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True,
    "ops_bias": False,
}  # fmt: skip
KLEIN_4B = FLUX2 | {
    "context_in_dim": 7680, "hidden_size": 3072, "num_heads": 24, "depth": 5,
    "depth_single_blocks": 20, "guidance_embed": False,
}  # fmt: skip
KLEIN_9B = KLEIN_4B | {
    "context_in_dim": 12288, "hidden_size": 4096, "num_heads": 32, "depth": 8,
    "depth_single_blocks": 24,
}  # fmt: skip
CHROMA = {name: value for name, value in FLUX.items() if name != "guidance_embed"} | {
    "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "in_dim": 64, "out_dim": 3072,
    "hidden_dim": 5120, "n_layers": 5,
}  # fmt: skip
LUMINA2 = {
    "in_channels": 16, "dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8,
    "qk_norm": True, "cap_feat_dim": 2304, "axes_dims": [32] * 3,
}  # fmt: skip
Z_IMAGE = LUMINA2 | {
    "dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48], "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "pad_tokens_multiple": 32,
}  # fmt: skip
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 20,
    "depth_single_blocks": 40, "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2],
    "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_15 = HUNYUAN | {
    "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "context_in_dim": 3584,
    "hidden_size": 2048, "num_heads": 16, "depth": 54, "depth_single_blocks": 0,
    "patch_size": [1, 1, 1], "guidance_embed": False, "byt5": True,
    "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True,
}  # fmt: skip
COSMOS_2B = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048,
    "num_blocks": 28, "num_heads": 16, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
}  # fmt: skip
COSMOS_14B = COSMOS_2B | {"model_channels": 5120, "num_blocks": 36, "num_heads": 40}
COSMOS = "cosmos.predict2.MiniTrainDIT"
LTXV_13B = {"cross_attention_dim": 4096, "attention_head_dim": 128, "num_layers": 48}
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "use_spatial_transformer": True,
    "legacy": False, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
    "num_heads": 8, "adm_in_channels": None,
}  # fmt: skip
SDXL = UNET | {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "num_classes": "sequential",
    "adm_in_channels": 2816, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048, "use_linear_in_transformer": True, "num_heads": -1,
    "num_head_channels": 64,
}  # fmt: skip
SVD = UNET | {
    "in_channels": 8, "use_linear_in_transformer": True, "context_dim": 1024, "num_heads": -1,
    "num_classes": "sequential", "adm_in_channels": 768, "num_head_channels": 64,
    "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_factor": 0.0,
    "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1],
    "use_temporal_resblock": True, "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}  # fmt: skip
X4_UPSCALER = UNET | {
    "in_channels": 7, "model_channels": 256, "channel_mult": [1, 2, 2, 4], "context_dim": 1024,
    "transformer_depth": [0, 0, 1, 1, 1, 1, 1, 1], "num_classes": 1000,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": True, "disable_self_attentions": [True, True, True, False],
}  # fmt: skip
SD35_LARGE = {
    "in_channels": 16, "out_channels": 16, "depth": 38, "input_size": None, "adm_in_channels": 2048,
    "pos_embed_max_size": 192, "num_patches": 36864, "qk_norm": "rms",
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}
    },
}  # fmt: skip
CHROMA_RADIANCE = CHROMA | {
    "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 64,
    "nerf_mlp_ratio": 4, "nerf_depth": 4, "nerf_max_freqs": 8, "nerf_tile_size": 512,
    "nerf_final_head_type": "conv", "nerf_embedder_dtype": None, "use_x0": False,
    "use_sequential_txt_ids": False,
}  # fmt: skip
COSMOS_1 = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 4096,
    "block_config": "FA-CA-MLP", "num_blocks": 28, "num_heads": 32, "concat_padding_mask": True,
    "pos_emb_cls": "rope3d", "block_x_format": "THWBD", "affline_emb_norm": True,
    "use_adaln_lora": True, "adaln_lora_dim": 256, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
UNETS = "modules.diffusionmodules.openaimodel.UNetModel"
MMDIT = "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper"
HIDREAM = "hidream.model.HiDreamImageTransformer2DModel"
HUNYUAN_DIT = {
    "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637, "size_cond": True,
    "use_style_cond": True,
}  # fmt: skip
HUNYUAN_3D = {"guidance_cond_proj_dim": None}
PIXART = {"micro_condition": False, "model_max_length": 300}
QWEN = "qwen_image.model.QwenImageTransformer2DModel"
EDIT_2511 = {"default_ref_method": "index_timestep_zero"}

# {file: (class in comfy.ldm, its arguments where they differ from its defaults, class in
# comfy.supported_models that ComfyUI must find)}
MODELS = {
    "wan21_t2v_14b": (WAN, WAN_14B, "WAN21_T2V"),
    "wan21_t2v_1.3b": (
        WAN, {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, "WAN21_T2V"
    ),
    "wan21_i2v_14b": (WAN, WAN_14B | WAN_I2V, "WAN21_I2V"),
    "wan22_t2v_14b": (WAN, WAN_14B, "WAN21_T2V"),
    "wan22_i2v_14b": (WAN, WAN_14B | {"in_dim": 36}, "WAN21_T2V"),  # without CLIP's embedding
    "wan22_ti2v_5b": (
        WAN,
        {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48,
         "out_dim": 48},
        "WAN22_T2V",
    ),
    "wan21_vace_14b": (
        "wan.model.VaceWanModel", WAN_14B | {"vace_layers": 8, "vace_in_dim": 96}, "WAN21_Vace"
    ),
    "qwen_image": (QWEN, {}, "QwenImage"),
    "qwen_image_edit_2511": (QWEN, EDIT_2511, "QwenImage"),
    "flux_dev": ("flux.model.Flux", FLUX, "Flux"),
    "flux_schnell": ("flux.model.Flux", FLUX | {"guidance_embed": False}, "FluxSchnell"),
    "flux2_dev": ("flux.model.Flux", FLUX2, "Flux2"),
    "flux2_klein_4b": ("flux.model.Flux", KLEIN_4B, "Flux2"),
    "flux2_klein_9b": ("flux.model.Flux", KLEIN_9B, "Flux2"),
    "chroma": ("chroma.model.Chroma", CHROMA, "Chroma"),
    "z_image": ("lumina.model.NextDiT", Z_IMAGE, "ZImage"),
    "lumina2": ("lumina.model.NextDiT", LUMINA2, "Lumina2"),
    "ltx2": ("lightricks.av_model.LTXAVModel", {}, "LTXAV"),
    "ltxv_2b": ("lightricks.model.LTXVModel", {}, "LTXV"),
    "ltxv_13b": ("lightricks.model.LTXVModel", LTXV_13B, "LTXV"),
    "hunyuan_video": ("hunyuan_video.model.HunyuanVideo", HUNYUAN, "HunyuanVideo"),
    "hunyuan_video_15": ("hunyuan_video.model.HunyuanVideo", HUNYUAN_15, "HunyuanVideo15"),
    "anima": ("anima.model.Anima", COSMOS_2B, "Anima"),
    "cosmos_predict2_2b": (COSMOS, COSMOS_2B, "CosmosT2IPredict2"),
    "cosmos_predict2_14b": (COSMOS, COSMOS_14B, "CosmosT2IPredict2"),
    "wan22_s2v_14b": ("wan.model.WanModel_S2V", WAN_14B, "WAN22_S2V"),
    "wan22_animate_14b": (
        "wan.model_animate.AnimateWanModel", WAN_14B | WAN_I2V, "WAN22_Animate"
    ),
    "qwen_image_layered": (QWEN, {"use_additional_t_cond": True}, "QwenImage"),
    "chroma_radiance": (
        "chroma_radiance.model.ChromaRadiance", CHROMA_RADIANCE, "ChromaRadiance"
    ),
    "z_image_pixel_space": (
        "lumina.model.NextDiTPixelSpace", Z_IMAGE | {"in_channels": 3, "patch_size": 32},
        "ZImagePixelSpace",
    ),
}  # fmt: skip
# The same of models that no preset here is for, in the folder `others`. Where ComfyUI's detection
# has the arguments itself, there is the name of a tensor that it tells such a model by.
OTHERS: dict[str, tuple[str, dict | str, str]] = {
    "sdxl": (UNETS, SDXL, "SDXL"),
    "sd35_large": (MMDIT, SD35_LARGE, "SD3"),
    "hidream_i1": (HIDREAM, "caption_projection.0.linear.weight", "HiDream"),
    "hunyuan3d_21": ("hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain", HUNYUAN_3D, "Hunyuan3Dv2_1"),
    "hunyuan_dit": ("hydit.models.HunYuanDiT", HUNYUAN_DIT, "HunyuanDiT1"),
    "ace_step": ("ace.model.ACEStepTransformer2DModel", "genre_embedder.weight", "ACEStep"),
    "stable_audio": ("audio.dit.AudioDiffusionTransformer", {}, "StableAudio"),
    "auraflow": ("aura.mmdit.MMDiT", {}, "AuraFlow"),
    "pixart_sigma": ("pixart.pixartms.PixArtMS", PIXART, "PixArtSigma"),
    "krea2": ("krea2.model.SingleStreamDiT", {}, "Krea2"),
}  # fmt: skip

# {class: more configurations of it}, which make_classes.py looks at, too: where ComfyUI's detection
# has the values, the name of a tensor that it tells such a model by.
CONFIGURATIONS: dict[str, list[dict | str]] = {
    UNETS: [SDXL, UNET, SVD, X4_UPSCALER, SVD | {"disable_temporal_crossattention": True}],
    MMDIT: [SD35_LARGE, SD35_LARGE | {"depth": 24, "x_block_self_attn_layers": [*range(13)]},
            SD35_LARGE | {"context_processor_layers": 2}],
    "chroma_radiance.model.ChromaRadiance": [
        CHROMA_RADIANCE, CHROMA_RADIANCE | {"nerf_final_head_type": "linear"}
    ],
    "cosmos.model.GeneralDIT": [COSMOS_1],
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": ["t5_yproj.weight"],
    HIDREAM: ["caption_projection.0.linear.weight"],
    "omnigen.omnigen2.OmniGen2Transformer2DModel": [
        "time_caption_embed.timestep_embedder.linear_1.bias"
    ],
    "ace.model.ACEStepTransformer2DModel": ["genre_embedder.weight"],
    "seedvr.model.NaDiT": [
        {"vid_dim": 3072, "heads": 24, "num_layers": 36, "mm_layers": 36, "norm_eps": 1e-5,
         "rope_type": "rope3d", "rope_dim": 64, "mlp_type": "normal"},
        "blocks.35.mlp.all.proj_in_gate.weight", "blocks.31.mlp.all.proj_in_gate.weight"
    ],
    "trellis2.model.Trellis2": [{"resolution": 64, "init_txt_model": True}],
    "audio.dit.AudioDiffusionTransformer": [{}, {
        "num_memory_tokens": 64, "attn_kwargs": {"qk_norm": "rms", "differential": True},
        "local_add_cond_dim": 64, "global_cond_shared_embed": True, "global_cond_type": "adaLN",
        "timestep_features_type": "expo", "project_cond_tokens": True,
    }],
    "cascade.stage_b.StageB": [{}, {
        "c_hidden": [320, 576, 1152, 1152], "nhead": [-1, 9, 18, 18],
        "blocks": [[2, 4, 14, 4], [4, 14, 4, 2]], "block_repeat": [[1] * 4, [2] * 4],
    }],
    "minimax.model.MiniMaxH3Model": [{}, {"adaln_curve_grid": 1000}],
    "pixeldit.pid.PidNet": [{}, {"pit_lq_inject": True}],
    "lumina.model.NextDiT": [
        LUMINA2 | {"clip_text_dim": 1024}, Z_IMAGE | {"siglip_feat_dim": 1152}
    ],
    "lumina.model.NextDiTPixelSpace": [Z_IMAGE | {"in_channels": 3, "patch_size": 32}],
    "lens.model.LensTransformer2DModel": [{}, {"multi_layer_encoder_feature": False}],
    "cogvideo.model.CogVideoXTransformer3DModel": [
        {}, {"patch_size_t": 2, "ofs_embed_dim": 512, "use_learned_positional_embeddings": True}
    ],
    "depth_anything_3.model.DepthAnything3Net": [{}, {"has_cam_enc": True, "has_cam_dec": True}],
    WAN: [
        WAN_14B | WAN_I2V | {"flf_pos_embed_token_number": 514}, WAN_14B | {"in_dim_ref_conv": 16}
    ],
    "wan.model.CameraWanModel": [WAN_14B | WAN_I2V | {"in_dim": 32, "model_type": "camera"}],
    "wan.model_wandancer.WanDancerModel": [{"in_dim": 36}],
    "qwen_image.model.QwenImageTransformer2DModel": [{"use_additional_t_cond": True}],
    "hydit.models.HunYuanDiT": [
        {"depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637}, HUNYUAN_DIT
    ],
}  # fmt: skip


def import_comfyui() -> None:
    """Make comfy importable, on the CPU."""
    exec(PREAMBLE, {})


def class_of(path: str) -> type:
    """A class of ComfyUI, by its path in comfy.ldm or in comfy."""
    module, _, name = path.rpartition(".")
    room = "comfy" if module.startswith(("text_encoders.", "clip_model")) else "comfy.ldm"
    return getattr(importlib.import_module(f"{room}.{module}"), name)


def configuration(given: dict | str) -> dict:
    """The arguments of a class: as given, or those that ComfyUI has for a model with a tensor."""
    import torch
    from comfy.model_detection import detect_unet_config

    if isinstance(given, dict):
        return given
    # These are the same in every model of the class.
    return detect_unet_config({given: torch.empty(1, 1, device="meta")}, "")


def build(path: str, arguments: dict | str) -> Shapes:
    """The state dict of a class in comfy.ldm, {name: shape}."""
    import comfy.ops
    import torch

    arguments = {"dtype": torch.bfloat16} | configuration(arguments)
    operations = comfy.ops.disable_weight_init
    model = class_of(path)(**arguments, device="meta", operations=operations)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def published(shapes: Shapes, path: str) -> Shapes:
    """The names in the published file, where ComfyUI renames on loading: a norm's `scale`."""
    if not path.startswith(("flux.", "chroma.")):
        return shapes
    norm = re.compile(r"(_norm|\.norms\.\d+)\.weight$")
    return {norm.sub(r"\1.scale", name): shape for name, shape in shapes.items()}


def check(shapes: Shapes, path: str, expected: str) -> None:
    """ComfyUI recognises these tensors, and the model that it would build has just these."""
    import torch
    from comfy.model_detection import detect_unet_config, model_config_from_unet

    meta = {"dtype": torch.bfloat16, "device": "meta"}
    state = {name: torch.empty(shape, **meta) for name, shape in shapes.items()}
    assert detect_unet_config(state, "") is not None
    config = model_config_from_unet(state, "")
    assert type(config).__name__ == expected, (type(config), expected)
    renamed = config.process_unet_state_dict(state)
    renamed = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    assert build(path, config.unet_config) == renamed


def main(names: list[str]) -> None:
    import_comfyui()
    (FAMILIES / "others").mkdir(parents=True, exist_ok=True)
    for name in names or MODELS | OTHERS:
        path, arguments, expected = (MODELS | OTHERS)[name]
        shapes = published(build(path, arguments), path)
        check(shapes, path, expected)
        title = f"# {name}: BF16; ComfyUI's {path}, which it recognises as {expected}"
        out = FAMILIES / ("others" if name in OTHERS else "") / f"{name}.txt"
        lines = [title, *collapse(shapes, 3 if name in OTHERS else 1)]
        out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        assert read_headers(out) == shapes
        print(name, expected, len(shapes), "tensors", out.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
