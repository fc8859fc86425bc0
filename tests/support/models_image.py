"""Published models that make images, as ComfyUI's classes build them: a row for each."""

from support.models_video import COSMOS_2B
from support.published import Published

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
MMDIT = "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper"
HIDREAM = "hidream.model.HiDreamImageTransformer2DModel"
HUNYUAN_DIT = {
    "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637, "size_cond": True,
    "use_style_cond": True,
}  # fmt: skip
PIXART = {"micro_condition": False, "model_max_length": 300}
QWEN = "qwen_image.model.QwenImageTransformer2DModel"
EDIT_2511 = {"default_ref_method": "index_timestep_zero"}
SD3 = SD35_LARGE | {
    "depth": 24,
    "qk_norm": None,
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}
    },
}  # fmt: skip
SD35_MEDIUM = SD3 | {
    "qk_norm": "rms", "x_block_self_attn_layers": [*range(13)], "pos_embed_max_size": 384,
    "num_patches": 147456,
}  # fmt: skip
LONGCAT = FLUX | {
    "vec_in_dim": None, "context_in_dim": 3584, "guidance_embed": False, "depth": 10,
    "depth_single_blocks": 20, "txt_ids_dims": [1, 2],
}  # fmt: skip
OVIS = LONGCAT | {
    "context_in_dim": 2048, "depth": 6, "depth_single_blocks": 27, "yak_mlp": True,
    "txt_norm": True,
}  # fmt: skip
NEWBIE = LUMINA2 | {"n_layers": 36, "cap_feat_dim": 2560, "clip_text_dim": 1024}
MING = {name: value for name, value in Z_IMAGE.items() if name != "pad_tokens_multiple"}
PIXART_ALPHA = {"micro_condition": True, "model_max_length": 120}
QWEN21 = "qwen_image21.model.QwenImage21Transformer2DModel"
PIXART_CLASS = "pixart.pixartms.PixArtMS"
HYDIT = "hydit.models.HunYuanDiT"
HYDIT_10 = {"depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637}

IMAGE_MODELS = {
    "qwen_image": Published("Qwen-Image", QWEN, {}, "QwenImage", "Qwen-Image"),
    "qwen_image_edit_2511": Published(
        "Qwen-Image-Edit 2511", QWEN, EDIT_2511, "QwenImage", "Qwen-Image (Edit 2511)"
    ),
    "flux_dev": Published("Flux.1 dev", "flux.model.Flux", FLUX, "Flux", "Flux (dev)"),
    "flux_schnell": Published(
        "Flux.1 schnell",
        "flux.model.Flux",
        FLUX | {"guidance_embed": False},
        "FluxSchnell",
        "Flux (schnell)",
    ),
    "flux2_dev": Published("Flux.2 dev", "flux.model.Flux", FLUX2, "Flux2", "Flux 2"),
    "flux2_klein_4b": Published("Flux.2 klein 4B", "flux.model.Flux", KLEIN_4B, "Flux2", "Flux 2"),
    "flux2_klein_9b": Published("Flux.2 klein 9B", "flux.model.Flux", KLEIN_9B, "Flux2", "Flux 2"),
    "chroma": Published("Chroma", "chroma.model.Chroma", CHROMA, "Chroma", "Chroma"),
    "z_image": Published("Z-Image", "lumina.model.NextDiT", Z_IMAGE, "ZImage", "Z-Image"),
    "lumina2": Published("Lumina 2", "lumina.model.NextDiT", LUMINA2, "Lumina2", "Lumina 2"),
    "anima": Published("Anima", "anima.model.Anima", COSMOS_2B, "Anima", "Anima"),
    "qwen_image_layered": Published(
        "Qwen-Image-Layered",
        QWEN,
        {"use_additional_t_cond": True},
        "QwenImage",
        "Qwen-Image (Layered)",
    ),
    "chroma_radiance": Published(
        "Chroma Radiance",
        "chroma_radiance.model.ChromaRadiance",
        CHROMA_RADIANCE,
        "ChromaRadiance",
        "Chroma",
    ),
    "z_image_pixel_space": Published(
        "Z-Image in pixel space",
        "lumina.model.NextDiTPixelSpace",
        Z_IMAGE | {"in_channels": 3, "patch_size": 32},
        "ZImagePixelSpace",
        "Z-Image",
    ),
    "flux_fill": Published(
        "Flux.1 Fill dev",
        "flux.model.Flux",
        FLUX | {"in_channels": 96},
        "FluxInpaint",
        "Flux (Fill)",
    ),
    "longcat_image": Published(
        "LongCat-Image", "flux.model.Flux", LONGCAT, "LongCatImage", "Flux (LongCat)"
    ),
    "ovis_image": Published("Ovis-Image", "flux.model.Flux", OVIS, "FluxSchnell", "Flux (Ovis)"),
    "newbie": Published(
        "NewBie-Image Exp0.1", "lumina.model.NextDiT", NEWBIE, "Lumina2", "Lumina 2 (NewBie)"
    ),
    "ming_image": Published(
        "Ming-Image Design", "lumina.model.NextDiT", MING, "MingImage", "Z-Image", "0.38"
    ),
    "sd3_medium": Published("SD 3 Medium", MMDIT, SD3, "SD3", "Stable Diffusion 3"),
    "sd35_medium": Published(
        "SD 3.5 Medium", MMDIT, SD35_MEDIUM, "SD3", "Stable Diffusion 3 (3.5 Medium)"
    ),
    "sd35_large": Published(
        "SD 3.5 Large", MMDIT, SD35_LARGE, "SD3", "Stable Diffusion 3 (3.5 Large)"
    ),
    "auraflow": Published("AuraFlow", "aura.mmdit.MMDiT", {}, "AuraFlow", "AuraFlow"),
    "hidream_i1": Published(
        "HiDream I1", HIDREAM, "caption_projection.0.linear.weight", "HiDream", "HiDream I1"
    ),
    "hidream_o1": Published(
        "HiDream O1", "hidream_o1.model.HiDreamO1Transformer", {}, "HiDreamO1", "HiDream O1"
    ),
    "hunyuan_dit": Published("Hunyuan DiT 1.2", HYDIT, HUNYUAN_DIT, "HunyuanDiT1", "Hunyuan DiT"),
    "hunyuan_dit_10": Published("Hunyuan DiT 1.0", HYDIT, HYDIT_10, "HunyuanDiT", "Hunyuan DiT"),
    "pixart_sigma": Published(
        "PixArt Sigma", PIXART_CLASS, PIXART, "PixArtSigma", "PixArt (Sigma)"
    ),
    "pixart_alpha": Published(
        "PixArt Alpha", PIXART_CLASS, PIXART_ALPHA, "PixArtAlpha", "PixArt (Alpha)"
    ),
    "krea2": Published("Krea 2", "krea2.model.SingleStreamDiT", {}, "Krea2", "Krea 2"),
    "qwen_image_21": Published(
        "Qwen-Image 2.1", QWEN21, {"fused_mlp": False}, "QwenImage21", "Qwen-Image 2.1", "0.38"
    ),
    "qwen_image_21_fused": Published(
        "Qwen-Image 2.1, fused MLP", QWEN21, {}, "QwenImage21", "Qwen-Image 2.1", "0.38"
    ),
    "ideogram4": Published(
        "Ideogram 4", "ideogram4.model.Ideogram4Transformer2DModel", {}, "Ideogram4", "Ideogram 4"
    ),
    "ernie_image": Published(
        "ERNIE-Image", "ernie.model.ErnieImageModel", {}, "ErnieImage", "ERNIE-Image"
    ),
    "boogu_image": Published(
        "Boogu-Image", "boogu.model.BooguTransformer2DModel", {}, "Boogu", "Boogu-Image"
    ),
    "omnigen2": Published(
        "OmniGen2",
        "omnigen.omnigen2.OmniGen2Transformer2DModel",
        "time_caption_embed.timestep_embedder.linear_1.bias",
        "Omnigen2",
        "OmniGen2",
    ),
    "joyimage": Published(
        "JoyImage", "joyimage.model.JoyImageTransformer3DModel", {}, "JoyImage", "JoyImage"
    ),
    "lens": Published("Lens", "lens.model.LensTransformer2DModel", {}, "Lens", "Lens"),
    "mage_flow": Published(
        "Mage-Flow", "mage_flow.model.MageFlowTransformer2DModel", {}, "MageFlow", "Mage-Flow"
    ),
    "pixeldit": Published(
        "PixelDiT T2I", "pixeldit.model.PixDiT_T2I", {}, "PixelDiTT2I", "PixelDiT"
    ),
    "pid": Published("PiD", "pixeldit.pid.PidNet", {}, "PiD", "PixelDiT (PiD)"),
    "sensenova_u15": Published(
        "SenseNova U1.5",
        "sensenova.model.SenseNovaU15",
        {},
        "SenseNovaU15",
        "SenseNova U1.5",
        "0.38",
    ),
}
# {class: more configurations of it}, which make_classes.py looks at, too.
IMAGE_CONFIGURATIONS: dict[str, list[dict | str]] = {
    MMDIT: [SD35_LARGE, SD35_LARGE | {"depth": 24, "x_block_self_attn_layers": [*range(13)]},
            SD35_LARGE | {"context_processor_layers": 2}],
    "chroma_radiance.model.ChromaRadiance": [
        CHROMA_RADIANCE, CHROMA_RADIANCE | {"nerf_final_head_type": "linear"}
    ],
    HIDREAM: ["caption_projection.0.linear.weight"],
    "omnigen.omnigen2.OmniGen2Transformer2DModel": [
        "time_caption_embed.timestep_embedder.linear_1.bias"
    ],
    "cascade.stage_b.StageB": [{}, {
        "c_hidden": [320, 576, 1152, 1152], "nhead": [-1, 9, 18, 18],
        "blocks": [[2, 4, 14, 4], [4, 14, 4, 2]], "block_repeat": [[1] * 4, [2] * 4],
    }],
    "pixeldit.pid.PidNet": [{}, {"pit_lq_inject": True}],
    "lumina.model.NextDiT": [
        LUMINA2 | {"clip_text_dim": 1024}, Z_IMAGE | {"siglip_feat_dim": 1152}
    ],
    "lumina.model.NextDiTPixelSpace": [Z_IMAGE | {"in_channels": 3, "patch_size": 32}],
    "lens.model.LensTransformer2DModel": [{}, {"multi_layer_encoder_feature": False}],
    "depth_anything_3.model.DepthAnything3Net": [{}, {"has_cam_enc": True, "has_cam_dec": True}],
    "qwen_image.model.QwenImageTransformer2DModel": [{"use_additional_t_cond": True}],
    "hydit.models.HunYuanDiT": [
        {"depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637}, HUNYUAN_DIT
    ],
}  # fmt: skip
