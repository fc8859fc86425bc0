"""Published UNets, as ComfyUI's class builds them: a row for each."""

from support.published import Published

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
UNETS = "modules.diffusionmodules.openaimodel.UNetModel"

UNET_MODELS = {"sdxl": Published("SDXL", UNETS, SDXL, "SDXL")}
# {class: more configurations of it}, which make_classes.py looks at, too.
UNET_CONFIGURATIONS: dict[str, list[dict | str]] = {
    UNETS: [SDXL, UNET, SVD, X4_UPSCALER, SVD | {"disable_temporal_crossattention": True}],
}  # fmt: skip
