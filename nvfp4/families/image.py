"""Families of models that make images: a row for each.

What a row says is told in `records`, and in which order rows are looked at in `table`.
"""

from __future__ import annotations

from nvfp4.families.records import (
    ADALN_AND_MLP,
    ATTENTION_QKV,
    ATTENTION_V,
    DOWN_PROJECTION,
    EIGHT_BITS,
    FLUX_BLOCKS,
    FLUX_KEY,
    MODULATION,
    TEXT_ATTENTION,
    Family,
    Keep,
    by_structure,
)

# Keys and shapes are as ComfyUI reads them (comfy/model_detection.py, 0.29 where no comment says
# otherwise). What is outside the blocks stays 16-bit, as in every tool that these rows name.
IMAGE_FAMILIES = {
    # Built like Qwen-Image, whose keys these have as well. What Comfy-Org's int8_convrot file of
    # Qwen-Image 2.1 has in 16 bits is outside the blocks, as here.
    "qwen-image-2.1": Family(
        title="Qwen-Image 2.1",
        keys=(
            r"txt_in\.text_norm\.weight ",
            r"transformer_blocks\.0\.img_mlp\.(gate_up|proj)\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("img_in", "txt_in.in_layer", "modulation.1", "norm_out.linear", "proj_out"),
        keeps=(ATTENTION_V, by_structure(r"\.img_mlp\.out$", "feed-forward down projection")),
        makes=("image",),
        known_as=("qwen_image_2.1",),
    ),
    "mage-flow": Family(
        title="Mage-Flow",
        keys=(r"txt_norm\.weight \[2560\]", r"proj_out\.weight \[128, "),
        blocks=(("transformer_blocks",),),
        outside=("img_in", "txt_in", "norm_out.linear", "proj_out"),
        keeps=(by_structure(r"\.(img|txt)_mod\.1$", "modulation reaches every token"), ATTENTION_V),
        makes=("image",),
        known_as=("mage_flow",),
    ),
    "lens": Family(
        title="Lens",
        keys=(
            r"transformer_blocks\.0\.img_mlp\.w1\.weight ",
            r"transformer_blocks\.0\.attn\.norm_added_q\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("img_in", "txt_in", "norm_out.linear", "proj_out"),
        keeps=(
            by_structure(r"\.(img|txt)_mod\.1$", "modulation reaches every token"),
            by_structure(r"\.attn\.(img|txt)_qkv$", "fused attention QKV"),
        ),
        makes=("image",),
        known_as=("Microsoft Lens",),
    ),
    "qwen-image": Family(
        title="Qwen-Image",
        keys=(r"txt_norm\.weight ", r"transformer_blocks\.0\.img_mod\.1\.weight "),
        variants={
            "Edit 2511": r"__index_timestep_zero__ ",
            "Layered": r"time_text_embed\.addition_t_embedding\.weight ",
        },
        blocks=(("transformer_blocks",),),
        outside=(
            "img_in",
            "txt_in",
            "time_text_embed.timestep_embedder.linear_1",
            "norm_out.linear",
            "proj_out",
        ),
        keeps=(
            Keep(
                r"\.(img|txt)_mod\.1$",
                EIGHT_BITS,
                "modulation reaches every token: FP8 in bedovyy/comfy-dit-quantizer",
                "modulation",
            ),
            Keep(r"\.txt_mlp\.", EIGHT_BITS, "text MLP: FP8 in bedovyy/comfy-dit-quantizer"),
            ATTENTION_V,
        ),
        makes=("image",),
        known_as=("Qwen-Image 2512", "Qwen-Image-Edit 2509", "qwen_image_edit"),
    ),
    "flux2": Family(
        title="Flux 2",
        keys=(FLUX_KEY, r"double_stream_modulation_img\.lin\.weight "),
        blocks=FLUX_BLOCKS,
        outside=("img_in", "txt_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(
            Keep(TEXT_ATTENTION.layers, "16-bit", "text attention: 16-bit in BFL's own NVFP4 file"),
            ATTENTION_QKV,
        ),
        makes=("image",),
        known_as=("FLUX.2", "klein"),
    ),
    "chroma": Family(
        title="Chroma",
        keys=(FLUX_KEY, r"distilled_guidance_layer\.(norms\.0\.|0\.norms\.0\.)"),
        blocks=FLUX_BLOCKS,
        outside=(
            "img_in|img_in_patch",
            "txt_in",
            "final_layer.linear|nerf_final_layer.linear|nerf_final_layer_conv.conv",
        ),
        keeps=(TEXT_ATTENTION, ATTENTION_QKV),
        makes=("image",),
        known_as=("Chroma1-HD", "Chroma1-Radiance", "Zeta-Chroma"),
    ),
    "flux": Family(
        title="Flux",
        keys=(FLUX_KEY, r"img_in\.weight "),
        variants={
            "Fill": r"img_in\.weight \[\d+, 384\]",
            "Canny or Depth": r"img_in\.weight \[\d+, 128\]",
            "Ovis": r"double_blocks\.0\.img_mlp\.gate_proj\.weight ",
            "LongCat": r"txt_in\.weight \[\d+, 3584\]",
            "dev": r"guidance_in\.",
            "schnell": r"vector_in\.",
        },
        blocks=FLUX_BLOCKS,
        outside=("img_in", "txt_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, TEXT_ATTENTION, ATTENTION_QKV),
        makes=("image",),
        # Kontext and Krea have the names and shapes of dev.
        known_as=("FLUX.1", "Kontext", "Flux Krea", "LongCat-Image", "Ovis-Image", "flux1-dev"),
    ),
    "z-image": Family(
        title="Z-Image",
        keys=(
            r"(cap_pad_token |cap_embedder\.1\.weight \[3840, )",
            r"noise_refiner\.0\.attention\.k_norm\.weight ",
        ),
        blocks=(("layers",),),
        outside=(
            "x_embedder",
            "cap_embedder.1",
            "t_embedder.mlp.0",
            "final_layer.linear|dec_net.final_layer.linear",
        ),
        keeps=(
            Keep(
                r"\.adaLN_modulation\.",
                "16-bit",
                "modulation reaches every token, and is small: 16-bit in convert-to-quant",
                "modulation",
            ),
            Keep(
                r"\.attention\.",
                EIGHT_BITS,
                "attention: pure noise in NVFP4 (silveroxides/convert_to_quant#14)",
            ),
            DOWN_PROJECTION,
        ),
        makes=("image",),
        known_as=("Z-Image Turbo", "Z-Image Omni", "Ming-Image Design", "z_image_turbo"),
    ),
    "lumina2": Family(
        title="Lumina 2",
        keys=(r"cap_embedder\.1\.weight ", r"noise_refiner\.0\.attention\.k_norm\.weight "),
        variants={"NewBie": r"clip_text_pooled_proj\.0\.weight "},
        blocks=(("layers",),),
        outside=("x_embedder", "cap_embedder.1", "t_embedder.mlp.0", "final_layer.linear"),
        keeps=(ATTENTION_QKV, DOWN_PROJECTION),
        makes=("image",),
        known_as=("Lumina Image 2.0", "Neta Lumina", "NewBie-Image"),
    ),
    "anima": Family(
        title="Anima",
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"llm_adapter\.blocks\.0\.cross_attn\.q_proj\."),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
        makes=("image",),
    ),
}
