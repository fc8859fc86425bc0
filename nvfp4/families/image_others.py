"""More families of models that make images: a row for each.

What a row says is told in `records`, and in which order rows are looked at in `table`. Keys and
shapes are as ComfyUI reads them (comfy/model_detection.py, 0.33). Where a row names no source, it
goes by structure: what modulates every token, attention V or QKV, and what writes to the residual
stream, as K-quants of llama.cpp do for older models.
"""

from __future__ import annotations

from nvfp4.families.records import (
    ATTENTION_QKV,
    ATTENTION_V,
    DOWN_PROJECTION,
    EIGHT_BITS,
    Family,
    Keep,
    by_structure,
)

IMAGE_MAKES = ("image",)
OTHER_IMAGE_FAMILIES = {
    # Comfy-Org's NVFP4 file has all layers of the blocks in NVFP4 and marks three of them for
    # full-precision matmul, as blue-pen5805/krea2-quantizer records; text fusion is 16-bit there.
    "krea2": Family(
        title="Krea 2",
        keys=(r"txtfusion\.projector\.weight ", r"blocks\.0\.attn\.wq\.weight "),
        blocks=(("blocks",),),
        outside=("first", "last.linear", "tmlp.0", "tproj.1", "txtmlp.1"),
        keeps=(by_structure(r"^blocks\.\d+\.attn\.wv$", "attention V, which is small"),),
        full_precision=r"\.(attn\.(gate|wo)|mlp\.down)$",
        makes=IMAGE_MAKES,
        known_as=("K2", "krea2_turbo", "krea2_raw"),
    ),
    # Comfy-Org/comfy-quants quantises every linear layer of the blocks, and nothing outside.
    "ideogram4": Family(
        title="Ideogram 4",
        keys=(r"embed_image_indicator\.weight ", r"llm_cond_proj\.weight "),
        blocks=(("layers",),),
        outside=("input_proj", "llm_cond_proj", "adaln_proj", "final_layer.linear"),
        keeps=(
            by_structure(r"\.adaln_modulation$", "modulation reaches every token"),
            ATTENTION_QKV,
            DOWN_PROJECTION,
        ),
        makes=IMAGE_MAKES,
        known_as=("Ideogram 4 unconditional",),
    ),
    # bedovyy/comfy-dit-quantizer (ernie-image-nvfp4.json) has the blocks in NVFP4, and modulation,
    # which all blocks share, in 16 bits.
    "ernie-image": Family(
        title="ERNIE-Image",
        keys=(r"layers\.0\.mlp\.linear_fc2\.weight ", r"layers\.0\.adaLN_sa_ln\.weight "),
        blocks=(("layers",),),
        outside=("text_proj", "time_embedding.linear_1", "adaLN_modulation.1", "final_linear"),
        keeps=(ATTENTION_V, by_structure(r"\.mlp\.linear_fc2$", "feed-forward down projection")),
        makes=IMAGE_MAKES,
        known_as=("ERNIE-Image-Turbo",),
    ),
    "boogu": Family(
        title="Boogu-Image",
        keys=(r"double_stream_layers\.0\.img_instruct_attn\.processor\.img_to_q\.weight ",),
        blocks=(("double_stream_layers", "single_stream_layers"),),
        outside=("x_embedder", "time_caption_embed.caption_embedder.1", "norm_out.linear_2"),
        keeps=(
            by_structure(r"norm\d\.linear$", "modulation reaches every token"),
            by_structure(r"(\.|_)to_v$", "attention V, which is small"),
            by_structure(r"feed_forward\.linear_2$", "feed-forward down projection"),
        ),
        makes=IMAGE_MAKES,
    ),
    "omnigen2": Family(
        title="OmniGen2",
        keys=(
            r"time_caption_embed\.timestep_embedder\.linear_1\.bias ",
            r"layers\.0\.attn\.to_q\.weight ",
        ),
        blocks=(("layers",),),
        outside=("x_embedder", "time_caption_embed.caption_embedder.1", "norm_out.linear_2"),
        keeps=(
            by_structure(r"norm1\.linear$", "modulation reaches every token"),
            ATTENTION_V,
            by_structure(r"feed_forward\.linear_2$", "feed-forward down projection"),
        ),
        makes=IMAGE_MAKES,
    ),
    "joyimage": Family(
        title="JoyImage",
        keys=(
            r"double_blocks\.0\.attn\.img_attn_q_norm\.weight ",
            r"condition_embedder\.time_proj\.weight ",
        ),
        blocks=(("double_blocks",),),
        outside=(
            "condition_embedder.time_proj",
            "condition_embedder.text_embedder.linear_1",
            "proj_out",
        ),
        keeps=(ATTENTION_QKV, DOWN_PROJECTION),
        makes=IMAGE_MAKES,
        known_as=("JoyImage-Edit", "JoyAI-Image"),
    ),
    "hidream": Family(
        title="HiDream I1",
        keys=(
            r"caption_projection\.0\.linear\.weight ",
            r"double_stream_blocks\.0\.block\.attn1\.to_q\.weight ",
        ),
        blocks=(("double_stream_blocks", "single_stream_blocks"),),
        outside=(
            "x_embedder.proj",
            "t_embedder.timestep_embedder.linear_1",
            "p_embedder.pooled_embedder.linear_1",
            "final_layer.linear",
        ),
        keeps=(
            by_structure(r"\.adaLN_modulation\.1$", "modulation reaches every token"),
            ATTENTION_V,
            Keep(
                r"experts(\.\d+)?\.w2$",
                EIGHT_BITS,
                "down projection of the experts: Q6_K in a Q5_K_M",
            ),
        ),
        makes=IMAGE_MAKES,
        known_as=("hidream_i1_full", "hidream_i1_dev", "hidream_i1_fast", "HiDream E1"),
    ),
    # The vision tower, outside the blocks, sees reference images alone.
    "hidream-o1": Family(
        title="HiDream O1",
        keys=(r"t_embedder1\.mlp\.0\.weight ", r"x_embedder\.proj1\.weight "),
        blocks=(("language_model.layers",),),
        outside=("visual.patch_embed.proj", "x_embedder.proj1", "final_layer2.linear"),
        keeps=(
            Keep(
                r"^language_model\..*\.mlp\.down_proj$",
                EIGHT_BITS,
                "feed-forward down projection: its inputs overflow float16 (ComfyUI's "
                "supported_models.py)",
            ),
            by_structure(r"\.self_attn\.v_proj$", "attention V, which is small"),
        ),
        makes=IMAGE_MAKES,
        known_as=("HiDream-O1-Image",),
    ),
    "sd3": Family(
        title="Stable Diffusion 3",
        keys=(r"joint_blocks\.0\.context_block\.attn\.qkv\.weight ",),
        variants={
            "3.5 Medium": r"joint_blocks\.0\.x_block\.attn2\.qkv\.weight ",
            "3.5 Large": r"joint_blocks\.0\.x_block\.attn\.qkv\.weight \[7296, ",
        },
        blocks=(("joint_blocks",),),
        uneven=True,
        outside=("context_embedder", "t_embedder.mlp.0", "final_layer.linear"),
        keeps=(
            by_structure(r"\.adaLN_modulation\.1$", "modulation reaches every token"),
            Keep(r"\.attn2?\.qkv$", EIGHT_BITS, ATTENTION_QKV.why),
        ),
        makes=IMAGE_MAKES,
        known_as=("SD3", "SD 3.5", "sd3.5_large", "sd3.5_medium"),
    ),
    "auraflow": Family(
        title="AuraFlow",
        keys=(r"double_layers\.0\.attn\.w1q\.weight ", r"cond_seq_linear\.weight "),
        blocks=(("double_layers", "single_layers"),),
        outside=("init_x_linear", "cond_seq_linear", "t_embedder.mlp.0", "final_linear"),
        keeps=(
            by_structure(r"\.mod(C|X|CX)\.1$", "modulation reaches every token"),
            Keep(r"\.attn\.w[12]v$", EIGHT_BITS, ATTENTION_V.why),
        ),
        makes=IMAGE_MAKES,
        known_as=("Pony V7", "aura_flow"),
    ),
    "hunyuan-dit": Family(
        title="Hunyuan DiT",
        keys=(r"mlp_t5\.0\.weight ", r"blocks\.0\.attn1\.Wqkv\.weight "),
        blocks=(("blocks",),),
        outside=("mlp_t5.0", "pooler.q_proj", "extra_embedder.0", "final_layer.linear"),
        keeps=(
            by_structure(r"\.default_modulation\.1$", "modulation reaches every token"),
            by_structure(r"\.(attn1\.Wqkv|attn2\.kv_proj)$", "fused attention QKV"),
            DOWN_PROJECTION,
        ),
        makes=IMAGE_MAKES,
    ),
    "pixart": Family(
        title="PixArt",
        keys=(r"t_block\.1\.weight ", r"blocks\.0\.cross_attn\.kv_linear\.weight "),
        variants={"Alpha": r"ar_embedder\.mlp\.0\.weight ", "Sigma": r"t_block\.1\.weight "},
        blocks=(("blocks",),),
        outside=("t_block.1", "t_embedder.mlp.0", "y_embedder.y_proj.fc1", "final_layer.linear"),
        keeps=(
            ATTENTION_QKV,
            by_structure(r"\.cross_attn\.kv_linear$", "keys and values of the text"),
            DOWN_PROJECTION,
        ),
        makes=IMAGE_MAKES,
    ),
    "pixeldit": Family(
        title="PixelDiT",
        keys=(
            r"(core\.)?pixel_embedder\.proj\.weight ",
            r"(core\.)?patch_blocks\.0\.attn\.qkv_x\.weight ",
        ),
        variants={"PiD": r"lq_proj\.latent_proj\.0\.weight "},
        blocks=(("patch_blocks", "core.patch_blocks"),),
        outside=(
            "s_embedder.proj|core.s_embedder.proj",
            "y_embedder.proj|core.y_embedder.proj",
            "final_layer.linear|core.final_layer.linear",
        ),
        together=(("lq_proj.latent_proj", "lq_proj.output_heads", "lq_proj.gate_modules"),),
        keeps=(
            by_structure(r"\.adaLN_modulation_(img|txt)\.0$", "modulation reaches every token"),
            by_structure(r"\.attn\.qkv_[xy]$", "fused attention QKV"),
        ),
        makes=IMAGE_MAKES,
        known_as=("PiD decoder", "pixel diffusion decoder"),
    ),
    "sensenova-u1.5": Family(
        title="SenseNova U1.5",
        keys=(
            r"fm_modules\.vision_model_mot_gen\.embeddings\.patch_embedding\.weight ",
            r"language_model\.model\.layers\.0\.self_attn\.q_proj_mot_gen\.weight ",
        ),
        blocks=(("language_model.model.layers",),),
        outside=("fm_modules.timestep_embedder.mlp.0", "fm_modules.timestep_embedder.mlp.2"),
        keeps=(
            by_structure(r"\.self_attn\.v_proj(_mot_gen)?$", "attention V, which is small"),
            by_structure(r"\.mlp(_mot_gen)?\.down_proj$", "feed-forward down projection"),
        ),
        makes=IMAGE_MAKES,
    ),
}
