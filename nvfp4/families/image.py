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
)

# Keys and shapes are as ComfyUI reads them (comfy/model_detection.py, 0.29 where no comment says
# otherwise). What is outside the blocks stays 16-bit, as in every tool that these rows name.
IMAGE_FAMILIES = {
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
    ),
    "flux": Family(
        title="Flux",
        keys=(FLUX_KEY, r"img_in\.weight "),
        variants={"dev": r"guidance_in\.", "schnell": r"vector_in\."},
        blocks=FLUX_BLOCKS,
        outside=("img_in", "txt_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, TEXT_ATTENTION, ATTENTION_QKV),
        makes=("image",),
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
    ),
    "lumina2": Family(
        title="Lumina 2",
        keys=(r"cap_embedder\.1\.weight ", r"noise_refiner\.0\.attention\.k_norm\.weight "),
        blocks=(("layers",),),
        outside=("x_embedder", "cap_embedder.1", "t_embedder.mlp.0", "final_layer.linear"),
        keeps=(ATTENTION_QKV, DOWN_PROJECTION),
        makes=("image",),
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
