"""Small UNets: a row for each.

They keep all of their input and output blocks, and fewer of the transformer's blocks in these.
"""

import torch

from support.tiny import Tiny

# Places of 16 x 16 latents, by level.
PLACES = {"image": 256, "half": 64, "quarter": 16}
FOUR = PLACES | {"eighth": 4}
WIDTHS = {320: 64}


def sizes(name: str, **given: int | list[int]):
    """ComfyUI tells a UNet by its widths and depths: make it take the small ones."""

    def prepare() -> None:
        from comfy import supported_models

        getattr(supported_models, name).unet_config |= {"model_channels": 64} | given

    return prepare


TINY_UNET = {
    "sd15": Tiny("sd15", WIDTHS, 1, (1, 4, 16, 16), 768, counts=FOUR, prepare=sizes("SD15")),
    "sd_x4_upscaler": Tiny(
        "sd_x4_upscaler",
        {1024: 256, 256: 64},
        1,
        (1, 7, 16, 16),
        256,
        {"y": torch.tensor([20])},
        counts=FOUR,
        prepare=sizes("SD_X4Upscaler", context_dim=256),
    ),
    "sdxl": Tiny(
        "sdxl",
        WIDTHS | {2048: 256},
        2,
        (1, 4, 16, 16),
        256,
        {"y": (1, 2816)},
        counts=PLACES,
        prepare=sizes("SDXL", context_dim=256, transformer_depth=[0, 0, 2, 2, 2, 2]),
    ),
    "sdxl_refiner": Tiny(
        "sdxl_refiner",
        {2560: 2560, 384: 64, 1280: 128},
        1,
        (1, 4, 16, 16),
        128,
        {"y": (1, 2560)},
        counts=FOUR,
        prepare=sizes("SDXLRefiner", context_dim=128, transformer_depth=[0, 0, 1, 1, 1, 1, 0, 0]),
    ),
    # One frame, which sees the picture as a token.
    "svd": Tiny(
        "svd",
        WIDTHS | {1024: 128},
        1,
        (1, 8, 16, 16),
        None,
        {
            "context": (1, 1, 128),
            "y": (1, 768),
            "num_video_frames": 1,
            "image_only_indicator": torch.zeros(1, 1),
        },
        counts=FOUR | {f"{name} of a frame": count for name, count in FOUR.items()} | {"text": 1},
        prepare=sizes("SVD_img2vid", context_dim=128),
    ),
}
