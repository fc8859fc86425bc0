"""Families of UNets: a row for each.

What a row says is told in `records`, and in which order rows are looked at in `table`. A UNet is
convolutions with transformers between them. ComfyUI has packed weights in linear layers alone, so
that convolutions stay 16-bit, and with them what a UNet has at its two edges: no published file
spares whole blocks there.
"""

from __future__ import annotations

from nvfp4.families.records import ATTENTION_V, DOWN_PROJECTION, EIGHT_BITS, Family, Keep

# Where a UNet's convolutions and transformers are, in the order they run in.
UNET_BLOCKS = (("input_blocks", "middle_block", "output_blocks"),)
UNET_KEYS = (
    r"input_blocks\.0\.0\.weight \[\d+, \d+, 3, 3\]",
    r"time_embed\.0\.weight ",
    r"output_blocks\.0\.0\.in_layers\.2\.weight ",
)
# UNets may lack the middle block, as KOALA 700M does.
UNET_OUTSIDE = ("time_embed.0", "input_blocks.0.0", "output_blocks.0.0.in_layers.2", "out.2")
# Published 4-bit UNets are SDXL's alone; the others are built like it.
UNET_KEEPS = (
    Keep(
        r"\.(emb_layers\.1|time_pos_embed\.[02])$",
        "16-bit",
        "time step: it reaches every pixel, and is small; 16-bit in NVIDIA's Model-Optimizer",
    ),
    Keep(
        r"\.proj_(in|out)$",
        "16-bit",
        "in and out of transformers: small; 16-bit in nunchaku's SDXL",
    ),
    Keep(
        r"\.attn2\.to_[kv]$",
        EIGHT_BITS,
        "cross-attention K and V: the first token is an outlier (MixDQ, arXiv 2405.17873); 16-bit "
        "in nunchaku's SDXL",
    ),
    ATTENTION_V,
    DOWN_PROJECTION,
)
SDXL_LABEL = r"label_emb\.0\.0\.weight \[\d+, 2816\]"
REFINER_LABEL = r"label_emb\.0\.0\.weight \[\d+, 2560\]"
# The last row has the keys of all others.
UNET_FAMILIES = {
    "sdxl": Family(
        title="Stable Diffusion XL",
        known_as=(
            "SDXL",
            "Turbo",
            "Lightning",
            "Pony",
            "Illustrious",
            "NoobAI",
            "Animagine",
            "Playground 2.5",
            "SSD-1B",
            "Segmind Vega",
            "KOALA",
            "sd_xl_base_1.0",
        ),
        keys=(SDXL_LABEL, *UNET_KEYS),
        variants={
            "inpainting": r"input_blocks\.0\.0\.weight \[\d+, 9,",
            "instruct-pix2pix": r"input_blocks\.0\.0\.weight \[\d+, 8,",
            "base": r"output_blocks\.0\.1\.transformer_blocks\.9\.attn1\.to_q\.weight ",
            "distilled": r"output_blocks\.0\.1\.transformer_blocks\.0\.attn1\.to_q\.weight ",
        },
        blocks=UNET_BLOCKS,
        outside=UNET_OUTSIDE,
        edge_blocks=0,
        uneven=True,
        keeps=UNET_KEEPS,
        makes=("image",),
    ),
    "sdxl-refiner": Family(
        title="Stable Diffusion XL refiner",
        known_as=("SDXL refiner", "sd_xl_refiner_1.0"),
        keys=(REFINER_LABEL, *UNET_KEYS),
        blocks=UNET_BLOCKS,
        outside=UNET_OUTSIDE,
        edge_blocks=0,
        uneven=True,
        keeps=UNET_KEEPS,
        makes=("image",),
    ),
    "svd": Family(
        title="Stable Video Diffusion",
        known_as=("SVD", "SVD XT", "SV3D"),
        keys=(r"input_blocks\.1\.1\.time_stack\.0\.attn1\.to_q\.weight ", *UNET_KEYS),
        variants={
            "SV3D": r"label_emb\.0\.0\.weight \[\d+, (256|1280)\]",
            "img2vid": r"label_emb\.0\.0\.weight \[\d+, 768\]",
        },
        blocks=UNET_BLOCKS,
        outside=UNET_OUTSIDE,
        edge_blocks=0,
        uneven=True,
        keeps=UNET_KEEPS,
    ),
    "stable-diffusion": Family(
        title="Stable Diffusion",
        known_as=("SD 1.4", "SD 1.5", "SD 2.0", "SD 2.1", "v1-5-pruned", "v2-1_768", "UNet"),
        keys=UNET_KEYS,
        variants={
            "x4 upscaler": r"label_emb\.weight ",
            "2.x unCLIP": r"label_emb\.0\.0\.weight \[\d+, (1536|2048)\]",
            "inpainting": r"input_blocks\.0\.0\.weight \[\d+, 9,",
            "instruct-pix2pix or Zero123": r"input_blocks\.0\.0\.weight \[\d+, 8,",
            "1.x": r"input_blocks\.1\.1\.transformer_blocks\.0\.attn2\.to_k\.weight \[\d+, 768\]",
            "2.x": r"input_blocks\.1\.1\.transformer_blocks\.0\.attn2\.to_k\.weight \[\d+, 1024\]",
        },
        blocks=UNET_BLOCKS,
        outside=UNET_OUTSIDE,
        edge_blocks=0,
        uneven=True,
        keeps=UNET_KEEPS,
        makes=("image",),
    ),
}
