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
# The depths of these are those that ComfyUI tells them by (comfy/model_detection.py,
# unet_config_from_diffusers_unet, and comfy/supported_models.py).
SD2 = UNET | {
    "context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1,
    "num_head_channels": 64,
}  # fmt: skip
UNCLIP = SD2 | {"num_classes": "sequential", "adm_in_channels": 2048}
SDXL_REFINER = SDXL | {
    "adm_in_channels": 2560, "model_channels": 384, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
    "transformer_depth_middle": 4, "context_dim": 1280,
    "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
}  # fmt: skip
SSD_1B = SDXL | {
    "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_middle": -1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
}  # fmt: skip
VEGA = SDXL | {
    "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": -1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
}  # fmt: skip
X4_UPSCALER = UNET | {
    "in_channels": 7, "model_channels": 256, "channel_mult": [1, 2, 2, 4], "context_dim": 1024,
    "transformer_depth": [0, 0, 1, 1, 1, 1, 1, 1], "num_classes": 1000,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": True, "disable_self_attentions": [True, True, True, False],
}  # fmt: skip
UNETS = "modules.diffusionmodules.openaimodel.UNetModel"


def unet(title: str, arguments: dict, detected: str, recognised: str) -> Published:
    """A UNet, all of which are of one class."""
    return Published(title, UNETS, arguments, detected, recognised)


SD, XL = "Stable Diffusion", "Stable Diffusion XL"
UNET_MODELS = {
    "sd15": unet("Stable Diffusion 1.5", UNET, "SD15", f"{SD} (1.x)"),
    "sd15_inpainting": unet(
        "Stable Diffusion 1.5 inpainting", UNET | {"in_channels": 9}, "SD15", f"{SD} (inpainting)"
    ),
    "sd15_instructpix2pix": unet(
        "InstructPix2Pix (SD 1.5)",
        UNET | {"in_channels": 8},
        "SD15_instructpix2pix",
        f"{SD} (instruct-pix2pix or Zero123)",
    ),
    "sd21": unet("Stable Diffusion 2.1", SD2, "SD20", f"{SD} (2.x)"),
    "sd21_unclip_h": unet("Stable Diffusion 2.1 unCLIP H", UNCLIP, "SD21UnclipH",
                          f"{SD} (2.x unCLIP)"),
    "sd_x4_upscaler": unet("Stable Diffusion x4 upscaler", X4_UPSCALER, "SD_X4Upscaler",
                           f"{SD} (x4 upscaler)"),
    "sdxl": unet("Stable Diffusion XL", SDXL, "SDXL", f"{XL} (base)"),
    "sdxl_inpainting": unet("Stable Diffusion XL inpainting", SDXL | {"in_channels": 9}, "SDXL",
                            f"{XL} (inpainting)"),
    "sdxl_instructpix2pix": unet(
        "InstructPix2Pix (SDXL)",
        SDXL | {"in_channels": 8},
        "SDXL_instructpix2pix",
        f"{XL} (instruct-pix2pix)",
    ),
    "sdxl_refiner": unet("Stable Diffusion XL refiner", SDXL_REFINER, "SDXLRefiner",
                         f"{XL} refiner"),
    "ssd_1b": unet("SSD-1B", SSD_1B, "SSD1B", f"{XL} (distilled)"),
    "segmind_vega": unet("Segmind Vega", VEGA, "Segmind_Vega", f"{XL} (distilled)"),
    "svd": unet("Stable Video Diffusion", SVD, "SVD_img2vid",
                "Stable Video Diffusion (img2vid)"),
    "sv3d_p": unet("SV3D p", SVD | {"adm_in_channels": 1280}, "SV3D_p",
                   "Stable Video Diffusion (SV3D)"),
}  # fmt: skip
# {class: more configurations of it}, which make_classes.py looks at, too.
UNET_CONFIGURATIONS: dict[str, list[dict | str]] = {
    UNETS: [SDXL, UNET, SVD, X4_UPSCALER, SVD | {"disable_temporal_crossattention": True}],
}  # fmt: skip
