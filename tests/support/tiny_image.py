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
HIDREAM = {
    "num_attention_heads": 2, "num_layers": 4, "num_single_layers": 4, "llama_layers": [*range(8)],
}  # fmt: skip
IDEOGRAM = {
    "num_attention_heads": 1, "attention_head_dim": 256, "intermediate_size": 512,
    "adaln_dim": 512, "llm_features_dim": 512, "mrope_section": [24, 20, 20],
}  # fmt: skip
ERNIE = {
    "hidden_size": 256, "num_attention_heads": 2, "num_layers": 4, "ffn_hidden_size": 768,
}  # fmt: skip
OMNIGEN = {"hidden_size": 480, "num_attention_heads": 4, "num_kv_heads": 1, "num_layers": 4}


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
    "longcat_image": Tiny("longcat_image", FLUX, 4, (1, 16, *IMAGE), 3584),
    "ovis_image": Tiny("ovis_image", FLUX, 4, (1, 16, *IMAGE), 2048),
    # The last block has no layers for the text that leaves it, and blocks are as wide as many.
    "sd35_large": Tiny(
        "sd35_large", {2432: 256, 36864: 256}, 4, (1, 16, *IMAGE), 4096, {"y": (1, 2048)}, last=37
    ),
    # Eight tokens of its own are added to the text.
    "auraflow": Tiny(
        "auraflow",
        {8192: 768, 3072: 256},
        4,
        (1, 4, *IMAGE),
        2048,
        constants=("AuraFlow", {"dim": 256, "n_heads": 2, "global_conddim": 256}),
        counted=False,
    ),
    # Each block sees another layer of the text's, and a router picks experts for a token.
    "hidream": Tiny(
        "hidream_i1",
        {6912: 768, 3584: 512, 2560: 256},
        4,
        (1, 16, *IMAGE),
        4096,
        {"y": (1, 2048), "encoder_hidden_states_llama3": (1, 8, TEXT, 4096)},
        constants=("HiDream", HIDREAM),
        without=r"caption_projection\.(9|[1-4]\d)\.",
        counted=False,
    ),
    "krea2": Tiny(
        "krea2",
        {6144: 256, 1536: 128, 16384: 768, 2560: 256, 6912: 768},
        4,
        (1, 16, *IMAGE),
        12 * 256,
        counts={"layerwise": 12 * TEXT},
        constants=("Krea2", {"txtheads": 2, "txtkvheads": 2}),
        counted=False,
    ),
    # These have no patches.
    "ideogram4": Tiny(
        "ideogram4",
        {4608: 256, 12288: 512, 53248: 512},
        4,
        (1, 128, *IMAGE),
        512,
        counts={"image": 8 * 16},
        constants=("Ideogram4", IDEOGRAM),
    ),
    "ernie_image": Tiny(
        "ernie_image",
        {4096: 256},
        4,
        (1, 128, *IMAGE),
        3072,
        counts={"image": 8 * 16},
        constants=("ErnieImage", ERNIE),
    ),
    "lens": Tiny(
        "lens", {1536: 384, 4096: 1024}, 4, (1, 128, *IMAGE), 4 * 2880, counts={"image": 8 * 16}
    ),
    "mage_flow": Tiny(
        "mage_flow",
        FLUX,
        4,
        (1, 128, *IMAGE),
        2560,
        counts={"image": 8 * 16},
        constants=("MageFlow", QWEN[1]),
    ),
    # Of two time steps, the second is for reference images.
    "qwen_image_21": Tiny("qwen_image_21", {4096: 256}, 4, (1, 64, *IMAGE), 256, counted=False),
    "boogu_image": Tiny(
        "boogu_image",
        {13568: 2048, 4096: 4096, 3360: 480, 840: 120, 1024: 480},
        4,
        (1, 16, *IMAGE),
        4096,
        {"num_tokens": TEXT},
        constants=("Boogu", {"num_attention_heads": 4, "num_kv_heads": 1}),
        counted=False,
    ),
    "omnigen2": Tiny(
        "omnigen2",
        {10240: 2048, 2048: 2048, 2520: 480, 840: 120, 1024: 480},
        4,
        (1, 16, *IMAGE),
        2048,
        {"num_tokens": TEXT},
        constants=("Omnigen2", OMNIGEN),
        counted=False,
    ),
    "joyimage": Tiny("joyimage", FLUX, 4, (1, 16, 1, *IMAGE), 4096),
}
