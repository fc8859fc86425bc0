"""Published models that make videos, sound and 3D, as ComfyUI's classes build them."""

from support.published import Published

WAN = "wan.model.WanModel"
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
WAN_I2V = {"model_type": "i2v", "in_dim": 36}
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
COSMOS_1 = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 4096,
    "block_config": "FA-CA-MLP", "num_blocks": 28, "num_heads": 32, "concat_padding_mask": True,
    "pos_emb_cls": "rope3d", "block_x_format": "THWBD", "affline_emb_norm": True,
    "use_adaln_lora": True, "adaln_lora_dim": 256, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
HUNYUAN_3D = {"guidance_cond_proj_dim": None}

VIDEO_MODELS = {
    "wan21_t2v_14b": Published("Wan 2.1 T2V 14B", WAN, WAN_14B, "WAN21_T2V", "Wan (T2V)"),
    "wan21_t2v_1.3b": Published(
        "Wan 2.1 T2V 1.3B",
        WAN,
        {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
        "WAN21_T2V",
        "Wan (T2V)",
    ),
    "wan21_i2v_14b": Published("Wan 2.1 I2V 14B", WAN, WAN_14B | WAN_I2V, "WAN21_I2V", "Wan (I2V)"),
    "wan22_t2v_14b": Published("Wan 2.2 T2V 14B", WAN, WAN_14B, "WAN21_T2V", "Wan (T2V)"),
    "wan22_i2v_14b": Published(
        "Wan 2.2 I2V 14B", WAN, WAN_14B | {"in_dim": 36}, "WAN21_T2V", "Wan (I2V)"
    ),
    "wan22_ti2v_5b": Published(
        "Wan 2.2 TI2V 5B",
        WAN,
        {
            "dim": 3072,
            "ffn_dim": 14336,
            "num_heads": 24,
            "num_layers": 30,
            "in_dim": 48,
            "out_dim": 48,
        },
        "WAN22_T2V",
        "Wan (TI2V)",
    ),
    "wan21_vace_14b": Published(
        "Wan 2.1 VACE 14B",
        "wan.model.VaceWanModel",
        WAN_14B | {"vace_layers": 8, "vace_in_dim": 96},
        "WAN21_Vace",
        "Wan (VACE)",
    ),
    "ltx2": Published("LTX-2", "lightricks.av_model.LTXAVModel", {}, "LTXAV", "LTX-2"),
    "ltxv_2b": Published("LTX-Video 2B", "lightricks.model.LTXVModel", {}, "LTXV", "LTX-Video"),
    "ltxv_13b": Published(
        "LTX-Video 13B", "lightricks.model.LTXVModel", LTXV_13B, "LTXV", "LTX-Video"
    ),
    "hunyuan_video": Published(
        "Hunyuan Video",
        "hunyuan_video.model.HunyuanVideo",
        HUNYUAN,
        "HunyuanVideo",
        "Hunyuan Video",
    ),
    "hunyuan_video_15": Published(
        "Hunyuan Video 1.5",
        "hunyuan_video.model.HunyuanVideo",
        HUNYUAN_15,
        "HunyuanVideo15",
        "Hunyuan Video (1.5)",
    ),
    "cosmos_predict2_2b": Published(
        "Cosmos-Predict2 2B", COSMOS, COSMOS_2B, "CosmosT2IPredict2", "Cosmos-Predict2"
    ),
    "cosmos_predict2_14b": Published(
        "Cosmos-Predict2 14B", COSMOS, COSMOS_14B, "CosmosT2IPredict2", "Cosmos-Predict2"
    ),
    "wan22_s2v_14b": Published(
        "Wan 2.2 S2V 14B", "wan.model.WanModel_S2V", WAN_14B, "WAN22_S2V", "Wan (S2V)"
    ),
    "wan22_animate_14b": Published(
        "Wan 2.2 Animate 14B",
        "wan.model_animate.AnimateWanModel",
        WAN_14B | WAN_I2V,
        "WAN22_Animate",
        "Wan (Animate)",
    ),
    "hunyuan3d_21": Published(
        "Hunyuan3D 2.1", "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain", HUNYUAN_3D, "Hunyuan3Dv2_1"
    ),
    "ace_step": Published(
        "ACE-Step", "ace.model.ACEStepTransformer2DModel", "genre_embedder.weight", "ACEStep"
    ),
    "stable_audio": Published(
        "Stable Audio", "audio.dit.AudioDiffusionTransformer", {}, "StableAudio"
    ),
}
# {class: more configurations of it}, which make_classes.py looks at, too.
VIDEO_CONFIGURATIONS: dict[str, list[dict | str]] = {
    "cosmos.model.GeneralDIT": [COSMOS_1],
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": ["t5_yproj.weight"],
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
    "minimax.model.MiniMaxH3Model": [{}, {"adaln_curve_grid": 1000}],
    "cogvideo.model.CogVideoXTransformer3DModel": [
        {}, {"patch_size_t": 2, "ofs_embed_dim": 512, "use_learned_positional_embeddings": True}
    ],
    WAN: [
        WAN_14B | WAN_I2V | {"flf_pos_embed_token_number": 514}, WAN_14B | {"in_dim_ref_conv": 16}
    ],
    "wan.model.CameraWanModel": [WAN_14B | WAN_I2V | {"in_dim": 32, "model_type": "camera"}],
    "wan.model_wandancer.WanDancerModel": [{"in_dim": 36}],
}  # fmt: skip
