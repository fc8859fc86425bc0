"""Small models that make images: a row for each."""

from functools import partial

import torch

from support.tiny import IMAGE, TEXT, Tiny

FLUX = {3072: 256}
GUIDANCE = {"guidance": torch.tensor([3.5])}
QWEN = ("QwenImage", {"num_attention_heads": 2, "attention_head_dim": 128})
Z_IMAGE = {
    "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip


def narrow_z_image() -> None:
    """By its width alone it differs from Lumina 2."""
    from comfy import supported_models

    supported_models.ZImage.unet_config["dim"] = 256


def narrow_adapter() -> None:
    """Anima's adapter of text has its sizes in its class."""
    import comfy.ldm.anima.model as anima

    small = {"source_dim": 128, "target_dim": 128, "model_dim": 128, "num_heads": 2}
    anima.LLMAdapter = partial(anima.LLMAdapter, **small)


TINY_IMAGE = {
    "qwen_image": Tiny("qwen_image", FLUX, 4, (1, 16, 1, *IMAGE), 3584, constants=QWEN),
    # The reference image is a second one.
    "qwen_image_edit_2511": Tiny(
        "qwen_image_edit_2511",
        FLUX,
        4,
        (1, 16, 1, *IMAGE),
        3584,
        {"ref_latents": [(1, 16, 1, *IMAGE)]},
        counts={"image": 2 * 32},
        constants=QWEN,
    ),
    "flux": Tiny("flux_dev", FLUX, 4, (1, 16, *IMAGE), 4096, GUIDANCE | {"y": (1, 768)}),
    # It has no patches.
    "flux2": Tiny(
        "flux2_dev", {6144: 256}, 4, (1, 128, *IMAGE), 15360, GUIDANCE, counts={"image": 8 * 16}
    ),
    "z_image": Tiny(
        "z_image",
        {3840: 256, 10240: 768, 1024: 256},
        6,
        (1, 16, *IMAGE),
        2560,
        {"num_tokens": TEXT},
        constants=("ZImage", Z_IMAGE),
        prepare=narrow_z_image,
    ),
    "chroma": Tiny(
        "chroma",
        {3072: 256, 5120: 256},
        4,
        (1, 16, *IMAGE),
        4096,
        {"guidance": torch.tensor([0.0])},
        counts={"modulations": 344},
        constants=("Chroma", {"hidden_dim": 256, "out_dim": 256}),
    ),
    "anima": Tiny(
        "anima",
        {1024: 128},
        6,
        (1, 16, 1, *IMAGE),
        128,
        {"t5xxl_ids": torch.arange(TEXT)[None]},
        counts={"text": 512, "prompt": TEXT},
        constants=("Anima", {"num_heads": 2, "num_blocks": 6, "crossattn_emb_channels": 128}),
        prepare=narrow_adapter,
    ),
}
