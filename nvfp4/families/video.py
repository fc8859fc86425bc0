"""Families of models that make videos: a row for each.

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
    MODULATION,
    Family,
    Keep,
)

# Keys and shapes are as ComfyUI reads them (comfy/model_detection.py, 0.29 where no comment says
# otherwise). What is outside the blocks stays 16-bit, as in every tool that these rows name.
VIDEO_FAMILIES = {
    "wan": Family(
        title="Wan",
        keys=(r"head\.modulation ", r"blocks\.0\.ffn\.0\.weight "),
        variants={
            "VACE": r"vace_patch_embedding\.weight ",
            "camera": r"control_adapter\.conv\.weight ",
            "S2V": r"casual_audio_encoder\.encoder\.final_linear\.weight ",
            "HuMo": r"audio_proj\.audio_proj_glob_1\.layer\.bias ",
            "Animate": r"face_adapter\.fuser_blocks\.0\.k_norm\.weight ",
            "I2V": r"(img_emb\.proj\.0\.bias |patch_embedding\.weight \[\d+, 36,)",
            "TI2V": r"patch_embedding\.weight \[\d+, 48,",
            "T2V": r"patch_embedding\.weight \[\d+, 16,",
        },
        blocks=(("blocks",),),
        beside=("vace_blocks",),
        outside=(
            "patch_embedding",
            "text_embedding.0",
            "time_embedding.0",
            "time_projection.1",
            "head.head",
        ),
        together=(
            ("vace_blocks", "vace_patch_embedding"),
            ("face_adapter", "face_encoder", "motion_encoder", "pose_patch_embedding"),
            ("audio_injector", "casual_audio_encoder", "cond_encoder", "trainable_cond_mask"),
            ("music_injector", "music_encoder", "music_projection", "patch_embedding_global"),
            ("audio_proj", "blocks.0.audio_cross_attn_wrapper"),
            ("img_emb", "blocks.0.cross_attn.k_img"),
        ),
        keeps=(
            Keep(r"^vace_blocks\.", EIGHT_BITS, "control blocks: 16-bit in jorismak/convert_nvfp4"),
            ATTENTION_V,
            DOWN_PROJECTION,
        ),
        full_precision=r"\bcross_attn\.",
    ),
    "ltx2": Family(
        title="LTX-2",
        keys=(
            r"adaln_single\.emb\.timestep_embedder\.linear_1\.bias ",
            r"audio_adaln_single\.linear\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("patchify_proj", "audio_patchify_proj", "adaln_single.linear", "proj_out"),
        keeps=(
            Keep(r"\.to_gate_logits$", "16-bit", "gates: 16-bit in convert-to-quant"),
            ATTENTION_V,
            DOWN_PROJECTION,
        ),
    ),
    "ltx-video": Family(
        title="LTX-Video",
        keys=(
            r"adaln_single\.emb\.timestep_embedder\.linear_1\.bias ",
            r"transformer_blocks\.0\.attn2\.to_k\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("patchify_proj", "adaln_single.linear", "proj_out"),
        keeps=(ATTENTION_V, DOWN_PROJECTION),
    ),
    "hunyuan-video": Family(
        title="Hunyuan Video",
        keys=(r"txt_in\.individual_token_refiner\.blocks\.0\.norm1\.weight ",),
        variants={"1.5": r"cond_type_embedding\.weight "},
        blocks=FLUX_BLOCKS,
        outside=("img_in.proj", "txt_in.input_embedder", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, ATTENTION_QKV),
    ),
    "cosmos-predict2": Family(
        title="Cosmos-Predict2",
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"x_embedder\.proj\.1\.weight "),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
    ),
}
