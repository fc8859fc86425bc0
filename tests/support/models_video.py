"""Published models that make videos, sound and 3D, as ComfyUI's classes build them."""

from support.published import Published

WAN = "wan.model.WanModel"
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
WAN_1B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
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
COSMOS_1_14B = COSMOS_1 | {"model_channels": 5120, "num_blocks": 36, "num_heads": 40}
COSMOS_FIRST = "cosmos.model.GeneralDIT"
LTXAV = "lightricks.av_model.LTXAVModel"
# As the headers of the published files say.
LTX_23 = {
    "apply_gated_attention": True, "cross_attention_adaln": True,
    "caption_proj_before_connector": True, "caption_projection_first_linear": False,
    "connector_apply_gated_attention": True, "connector_num_layers": 8,
    "connector_num_attention_heads": 32, "connector_attention_head_dim": 128,
    "audio_connector_attention_head_dim": 64,
}  # fmt: skip
LTX_25 = LTX_23 | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
H3 = "minimax.model.MiniMaxH3Model"
HUNYUAN_VIDEO = "hunyuan_video.model.HunyuanVideo"
HUNYUAN_IMAGE = HUNYUAN | {
    "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": 3584,
    "hidden_size": 3584, "num_heads": 28, "patch_size": [1, 1], "axes_dim": [64, 64],
    "guidance_embed": False, "byt5": True,
}  # fmt: skip
SEEDVR = "seedvr.model.NaDiT"
SEEDVR_7B = {
    "vid_dim": 3072, "heads": 24, "num_layers": 36, "mm_layers": 36, "norm_eps": 1e-5,
    "rope_type": "rope3d", "rope_dim": 64, "mlp_type": "normal",
}  # fmt: skip
KANDINSKY5, KANDINSKY6 = "kandinsky5.model.Kandinsky5", "kandinsky6.model.Kandinsky6"
KANDINSKY_PRO = {
    "model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "num_text_blocks": 4,
    "num_visual_blocks": 60, "axes_dims": (32, 48, 48),
}  # fmt: skip
KANDINSKY_IMAGE = {
    "model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50, "visual_embed_dim": 64,
    "axes_dims": (32, 48, 48),
}  # fmt: skip
KANDINSKY6_LITE = {
    "time_dim": 512, "model_dim": 1792, "ff_dim": 7168, "num_text_blocks": 2,
    "num_visual_blocks": 32, "axes_dims": (16, 24, 24), "model_dim_a": 896, "time_dim_a": 512,
    "ff_dim_a": 3584, "head_dim_a": 64,
}  # fmt: skip
MOCHI = "genmo.joint_model.asymm_models_joint.AsymmDiTJoint"
COG = "cogvideo.model.CogVideoXTransformer3DModel"
COG_5B = {
    "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True
}  # fmt: skip
COG_15 = COG_5B | {"patch_size_t": 2}
SOUND = "audio.dit.AudioDiffusionTransformer"
STABLE_AUDIO_3 = {
    "io_channels": 256, "num_memory_tokens": 64, "norm_type": "rms_norm",
    "attn_kwargs": {"qk_norm": "rms", "differential": True}, "local_add_cond_dim": 257,
    "global_cond_dim": 768, "global_cond_shared_embed": True, "global_cond_type": "adaLN",
    "timestep_features_type": "expo",
}  # fmt: skip
HUNYUAN_3D = {"guidance_cond_proj_dim": None}

VIDEO_MODELS = {
    "wan21_t2v_14b": Published("Wan 2.1 T2V 14B", WAN, WAN_14B, "WAN21_T2V", "Wan (T2V)"),
    "wan21_t2v_1.3b": Published("Wan 2.1 T2V 1.3B", WAN, WAN_1B, "WAN21_T2V", "Wan (T2V)"),
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
    "wan21_vace_1.3b": Published(
        "Wan 2.1 VACE 1.3B",
        "wan.model.VaceWanModel",
        WAN_1B | {"vace_layers": 15, "vace_in_dim": 96},
        "WAN21_Vace",
        "Wan (VACE)",
    ),
    "wan21_camera_14b": Published(
        "Wan 2.1 Fun Camera 14B",
        "wan.model.CameraWanModel",
        WAN_14B | {"in_dim": 32},
        "WAN21_Camera",
        "Wan (camera)",
    ),
    "wan22_camera_14b": Published(
        "Wan 2.2 Fun Camera 14B",
        "wan.model.CameraWanModel",
        WAN_14B | {"in_dim": 36, "model_type": "camera_2.2"},
        "WAN22_Camera",
        "Wan (camera)",
    ),
    "wan21_fun_control_14b": Published(
        "Wan 2.1 Fun Control 14B",
        WAN,
        WAN_14B | {"model_type": "i2v", "in_dim": 48},
        "WAN21_FunControl2V",
        "Wan (I2V)",
    ),
    "wan22_fun_control_14b": Published(
        "Wan 2.2 Fun Control 14B",
        WAN,
        WAN_14B | {"in_dim": 52, "in_dim_ref_conv": 16},
        "WAN21_T2V",
        "Wan (Fun Control)",
    ),
    "wan21_humo_17b": Published(
        "Wan 2.1 HuMo 17B", "wan.model.HumoWanModel", WAN_14B, "WAN21_HuMo", "Wan (HuMo)"
    ),
    "wan21_scail_14b": Published(
        "Wan 2.1 SCAIL 14B", "wan.model.SCAILWanModel", WAN_14B, "WAN21_SCAIL", "Wan (SCAIL)"
    ),
    "wan21_scail2_14b": Published(
        "Wan 2.1 SCAIL-2 14B", "wan.model.SCAIL2WanModel", WAN_14B, "WAN21_SCAIL2", "Wan (SCAIL-2)"
    ),
    "wan22_dancer_14b": Published(
        "Wan 2.2 Dancer 14B",
        "wan.model_wandancer.WanDancerModel",
        WAN_14B | {"in_dim": 36},
        "WAN22_WanDancer",
        "Wan (Dancer)",
    ),
    # Its names are those of an I2V model: the header alone tells the two apart.
    "wan_animate2_14b": Published(
        "Wan Animate 2 14B",
        "wan.model_animate2.WanAnimate2Model",
        WAN_14B,
        "WAN_Animate2",
        "Wan (I2V)",
        "0.33",
        header={"model_type": "animate2"},
    ),
    "ltx23": Published("LTX-2.3 22B", LTXAV, LTX_23, "LTXAV", "LTX-2 (2.3)", header=LTX_23),
    "ltx25": Published("LTX-2.5 22B", LTXAV, LTX_25, "LTXAV", "LTX-2 (2.5)", header=LTX_25),
    "minimax_h3": Published("MiniMax H3", H3, {}, "MiniMaxH3", "MiniMax H3", "0.33"),
    "minimax_h3_pruned": Published(
        "MiniMax H3 pruned",
        H3,
        {"adaln_curve_grid": 1025, "time_embed_dim": 8},
        "MiniMaxH3",
        "MiniMax H3 (pruned)",
        "0.33",
    ),
    "hunyuan_video_i2v": Published(
        "Hunyuan Video I2V",
        HUNYUAN_VIDEO,
        HUNYUAN | {"in_channels": 33, "guidance_embed": False},
        "HunyuanVideoI2V",
        "Hunyuan Video (I2V)",
    ),
    "hunyuan_video_skyreels": Published(
        "SkyReels V1 I2V",
        HUNYUAN_VIDEO,
        HUNYUAN | {"in_channels": 32},
        "HunyuanVideoSkyreelsI2V",
        "Hunyuan Video (Skyreels I2V)",
        source="ComfyUI's class, with Hunyuan Video's guidance",
    ),
    "hunyuan_video_15_sr": Published(
        "Hunyuan Video 1.5 SR",
        HUNYUAN_VIDEO,
        HUNYUAN_15 | {"in_channels": 98},
        "HunyuanVideo15_SR_Distilled",
        "Hunyuan Video (1.5)",
    ),
    "hunyuan_image_21": Published(
        "Hunyuan Image 2.1",
        HUNYUAN_VIDEO,
        HUNYUAN_IMAGE,
        "HunyuanImage21",
        "Hunyuan Video (Image 2.1)",
    ),
    "cosmos_predict2_i2v_2b": Published(
        "Cosmos-Predict2 I2V 2B",
        COSMOS,
        COSMOS_2B | {"in_channels": 17},
        "CosmosI2VPredict2",
        "Cosmos-Predict2 (I2V)",
    ),
    "cosmos_predict2_i2v_14b": Published(
        "Cosmos-Predict2 I2V 14B",
        COSMOS,
        COSMOS_14B | {"in_channels": 17},
        "CosmosI2VPredict2",
        "Cosmos-Predict2 (I2V)",
    ),
    "cosmos_t2v_7b": Published("Cosmos 1 T2V 7B", COSMOS_FIRST, COSMOS_1, "CosmosT2V", "Cosmos 1"),
    "cosmos_t2v_14b": Published(
        "Cosmos 1 T2V 14B", COSMOS_FIRST, COSMOS_1_14B, "CosmosT2V", "Cosmos 1"
    ),
    "cosmos_i2v_7b": Published(
        "Cosmos 1 V2V 7B",
        COSMOS_FIRST,
        COSMOS_1 | {"in_channels": 17},
        "CosmosI2V",
        "Cosmos 1 (I2V)",
    ),
    "seedvr2_3b": Published(
        "SeedVR2 3B", SEEDVR, "blocks.31.mlp.all.proj_in_gate.weight", "SeedVR2", "SeedVR2"
    ),
    "seedvr2_7b": Published("SeedVR2 7B", SEEDVR, SEEDVR_7B, "SeedVR2", "SeedVR2"),
    "kandinsky5_lite": Published(
        "Kandinsky 5 Video Lite", KANDINSKY5, {}, "Kandinsky5", "Kandinsky 5 (Video Lite)"
    ),
    "kandinsky5_pro": Published(
        "Kandinsky 5 Video Pro", KANDINSKY5, KANDINSKY_PRO, "Kandinsky5", "Kandinsky 5 (Video Pro)"
    ),
    "kandinsky5_image": Published(
        "Kandinsky 5 Image Lite",
        KANDINSKY5,
        KANDINSKY_IMAGE,
        "Kandinsky5Image",
        "Kandinsky 5 (Image)",
    ),
    "kandinsky6_pro": Published(
        "Kandinsky 6 Pro", KANDINSKY6, {}, "Kandinsky6", "Kandinsky 6 (Pro)", "0.38"
    ),
    "kandinsky6_lite": Published(
        "Kandinsky 6 Lite", KANDINSKY6, KANDINSKY6_LITE, "Kandinsky6", "Kandinsky 6 (Lite)", "0.38"
    ),
    "mochi": Published("Mochi", MOCHI, "t5_yproj.weight", "GenmoMochi", "Mochi"),
    "cogvideox_2b": Published("CogVideoX 2B", COG, {}, "CogVideoX_T2V", "CogVideoX (T2V)"),
    "cogvideox_5b": Published("CogVideoX 5B", COG, COG_5B, "CogVideoX_T2V", "CogVideoX (T2V)"),
    "cogvideox_5b_i2v": Published(
        "CogVideoX 5B I2V",
        COG,
        COG_5B | {"in_channels": 32, "use_learned_positional_embeddings": True},
        "CogVideoX_I2V",
        "CogVideoX (I2V)",
    ),
    "cogvideox15_5b": Published(
        "CogVideoX 1.5 5B", COG, COG_15, "CogVideoX_T2V", "CogVideoX (T2V)"
    ),
    "cogvideox15_5b_i2v": Published(
        "CogVideoX 1.5 5B I2V",
        COG,
        COG_15 | {"in_channels": 32, "ofs_embed_dim": 512},
        "CogVideoX_I2V",
        "CogVideoX (I2V)",
    ),
    "cogvideox15_5b_inpaint": Published(
        "CogVideoX Fun 1.5 5B inpaint",
        COG,
        COG_15 | {"in_channels": 48},
        "CogVideoX_Inpaint",
        "CogVideoX (inpaint)",
    ),
    "ace_step": Published(
        "ACE-Step",
        "ace.model.ACEStepTransformer2DModel",
        "genre_embedder.weight",
        "ACEStep",
        "ACE-Step",
    ),
    "ace_step_15": Published(
        "ACE-Step 1.5",
        "ace.ace_step15.AceStepConditionGenerationModel",
        {},
        "ACEStep15",
        "ACE-Step 1.5",
    ),
    "stable_audio": Published("Stable Audio Open", SOUND, {}, "StableAudio", "Stable Audio"),
    "stable_audio_3": Published(
        "Stable Audio 3 medium",
        SOUND,
        STABLE_AUDIO_3,
        "StableAudio3",
        "Stable Audio (3)",
        source="ComfyUI's class, with the sizes of diffusers' documentation",
    ),
    "minimax_music": Published(
        "MiniMax Music 3",
        "minimax_music.dit.MiniMaxMusic3DiT",
        {},
        "MiniMaxMusic3",
        "MiniMax Music 3",
        "0.33",
    ),
    "yue2": Published("YuE 2", "yue2.model.YuE2", {}, "YuE2", "YuE 2", "0.38"),
    "hunyuan3d_2": Published(
        "Hunyuan3D 2", "hunyuan3d.model.Hunyuan3Dv2", {}, "Hunyuan3Dv2", "Hunyuan3D 2"
    ),
    "hunyuan3d_2_mini": Published(
        "Hunyuan3D 2 mini",
        "hunyuan3d.model.Hunyuan3Dv2",
        {"depth": 8, "depth_single_blocks": 16},
        "Hunyuan3Dv2mini",
        "Hunyuan3D 2",
    ),
    "hunyuan3d_21": Published(
        "Hunyuan3D 2.1",
        "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain",
        HUNYUAN_3D,
        "Hunyuan3Dv2_1",
        "Hunyuan3D 2.1",
    ),
    "trellis2": Published(
        "Trellis 2",
        "trellis2.model.Trellis2",
        {"resolution": 64, "init_txt_model": True},
        "Trellis2",
        "Trellis 2",
        "0.33",
    ),
    "triposplat": Published(
        "TripoSplat", "triposplat.model.LatentSeqMMFlowModel", {}, "TripoSplat", "TripoSplat"
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
