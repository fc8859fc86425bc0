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

# No published file says which layers of Kandinsky are sensitive.
KANDINSKY_KEEPS = (
    Keep(r"_modulation\.out_layer$", EIGHT_BITS, "modulation reaches every token: by structure"),
    Keep(r"\.to_value$", EIGHT_BITS, "attention V: by structure"),
    Keep(r"\.feed_forward\.out_layer$", EIGHT_BITS, "feed-forward down projection: by structure"),
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
            "SCAIL-2": r"patch_embedding_mask\.weight ",
            "SCAIL": r"patch_embedding_pose\.weight ",
            "Dancer": r"patch_embedding_global\.weight ",
            "Fun Control": r"(ref_conv\.weight |patch_embedding\.weight \[\d+, 52,)",
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
        # Animate 2, FlowRVS, Bernini and the self-forcing models have the names of I2V or T2V.
        known_as=(
            "wan2.1",
            "wan2.2",
            "wan animate 2",
            "wan dancer",
            "bernini",
            "self forcing",
            "flowrvs",
            "skyreels v2",
            "fastwan",
            "lightx2v",
        ),
    ),
    "ltx2": Family(
        title="LTX-2",
        # 2.3 and 2.5 differ from each other by biases and one embedding, and from 2 by gates.
        variants={
            "2.5": r"keyframes_abs_pos_embedding ",
            "2.3": r"prompt_adaln_single\.linear\.weight ",
        },
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
        makes=("video", "audio"),
        known_as=("ltx-2.3", "ltx-2.5", "ltx 2.3", "ltx 2.5", "ltxav"),
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
        variants={
            "1.5": r"cond_type_embedding\.weight ",
            "Image 2.1": r"img_in\.proj\.weight \[\d+, 64, 1, 1\]",
            "I2V": r"img_in\.proj\.weight \[\d+, 33,",
            "Skyreels I2V": r"img_in\.proj\.weight \[\d+, 32, 1, 2,",
        },
        blocks=FLUX_BLOCKS,
        outside=("img_in.proj", "txt_in.input_embedder", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, ATTENTION_QKV),
        makes=("video", "image"),
        known_as=("hunyuanvideo", "hunyuan image 2.1", "hunyuanimage", "skyreels v1"),
    ),
    "cosmos-predict2": Family(
        title="Cosmos-Predict2",
        variants={"I2V": r"x_embedder\.proj\.1\.weight \[\d+, 72\]"},
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"x_embedder\.proj\.1\.weight "),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
        makes=("video", "image"),
    ),
    # ComfyUI 0.33. 13 of its 33 billion weights are the modulation, which files for ComfyUI have
    # as a curve of 8 columns instead ("pruned").
    "minimax-h3": Family(
        title="MiniMax H3",
        keys=(r"video_patch_proj\.weight ", r"audio_patch_proj\.weight "),
        variants={"pruned": r"adaln_t_table "},
        blocks=(("blocks",),),
        beside=("token_refiner.blocks",),
        outside=("video_patch_proj", "audio_patch_proj", "condition_proj", "final_layer.video_out"),
        keeps=(
            Keep(
                r"^token_refiner\.",
                EIGHT_BITS,
                "text refiner: 16-bit in the NVFP4 files of MATLOWAI and DmitryDB",
            ),
            Keep(
                r"\.adaln_proj\.linear$",
                EIGHT_BITS,
                "modulation reaches every token: 16-bit in intel-ai's MXFP8 file",
            ),
            Keep(
                r"\.attn\.qkv_proj$",
                EIGHT_BITS,
                "QKV: INT8 in rockerBOO/minimax-h3-nvfp4-convrot, whose outputs have half to 0.7 "
                "of the error of all NVFP4 (nynxz/MiniMax-H3-Experiments)",
            ),
            DOWN_PROJECTION,
        ),
        makes=("video", "audio"),
        known_as=("minimax_h3", "minimaxh3", "fl2va", "ref2va", "10eros"),
    ),
    # ComfyUI 0.33. No file that says which layers are sensitive was found: by structure.
    "seedvr2": Family(
        title="SeedVR2",
        keys=(r"positive_conditioning ", r"vid_in\.proj\.weight "),
        blocks=(("blocks",),),
        outside=("vid_in.proj", "txt_in", "emb_in.proj_in", "vid_out.proj"),
        uneven=True,
        keeps=(
            Keep(r"\.attn\.proj_qkv\.", EIGHT_BITS, "fused attention QKV: by structure"),
            Keep(
                r"\.mlp\.\w+\.proj_out$",
                EIGHT_BITS,
                "feed-forward down projection: by structure; plain FP8 of the 7B model is known "
                "for artefacts (numz/SeedVR2_comfyUI)",
            ),
        ),
        makes=("video", "image"),
        known_as=("seedvr2_ema", "upscaler"),
    ),
    "kandinsky5": Family(
        title="Kandinsky 5",
        keys=(
            r"visual_transformer_blocks\.0\.cross_attention\.key_norm\.weight ",
            r"visual_embeddings\.in_layer\.weight ",
        ),
        variants={
            "Image": r"visual_embeddings\.in_layer\.weight \[2560, 64\]",
            "Video Pro": r"visual_embeddings\.in_layer\.weight \[4096, ",
            "Video Lite": r"visual_embeddings\.in_layer\.weight \[1792, ",
        },
        blocks=(("visual_transformer_blocks",),),
        beside=("text_transformer_blocks",),
        outside=("visual_embeddings.in_layer", "text_embeddings.in_layer", "out_layer.out_layer"),
        keeps=KANDINSKY_KEEPS,
        makes=("video", "image"),
        known_as=("kandinsky5lite", "kandinsky5pro"),
    ),
    # ComfyUI after 0.38 (comfy/ldm/kandinsky6), which computes the modulation in float32.
    "kandinsky6": Family(
        title="Kandinsky 6",
        keys=(
            r"visual_blocks\.0\.videoT\.self_attention\.query_norm\.weight ",
            r"audio_embeddings\.in_layer\.weight ",
        ),
        variants={
            "Pro": r"visual_embeddings\.in_layer\.weight \[4096, ",
            "Lite": r"visual_embeddings\.in_layer\.weight \[1792, ",
        },
        blocks=(("visual_blocks",),),
        beside=("video_text_transformer_blocks", "audio_text_transformer_blocks"),
        outside=(
            "visual_embeddings.in_layer",
            "audio_embeddings.in_layer",
            "out_layer.out_layer",
            "audio_outLayer.out_layer",
            "audio_pooled_text_embeddings.in_layer",
            "video_text_embeddings.in_layer",
            "video_time_embeddings.in_layer",
        ),
        keeps=(
            Keep(
                r"_modulation\.out_layer$", "16-bit", "modulation: ComfyUI computes it in float32"
            ),
            *KANDINSKY_KEEPS[1:],
        ),
        makes=("video", "audio"),
        known_as=("kandinsky-6.0",),
    ),
    # ComfyUI 0.33. No published NVFP4 or K-quant of it was found: by structure.
    "cogvideox": Family(
        title="CogVideoX",
        keys=(r"blocks\.0\.norm1\.linear\.weight ", r"patch_embed\.text_proj\.weight "),
        variants={
            "inpaint": r"patch_embed\.proj\.weight \[\d+, (48, |384\])",
            "I2V": r"patch_embed\.proj\.weight \[\d+, (32, |256\])",
            "T2V": r"patch_embed\.proj\.weight \[\d+, (16, |128\])",
        },
        blocks=(("blocks",),),
        outside=("patch_embed.proj", "patch_embed.text_proj", "norm_out.linear", "proj_out"),
        keeps=(
            Keep(
                r"\.norm[12]\.linear$", EIGHT_BITS, "modulation reaches every token: by structure"
            ),
            ATTENTION_V,
            Keep(r"\.ff_out$", EIGHT_BITS, "feed-forward down projection: by structure"),
        ),
        known_as=("cogvideo",),
    ),
    "mochi": Family(
        title="Mochi",
        keys=(r"t5_yproj\.weight ", r"blocks\.0\.mod_x\.weight "),
        blocks=(("blocks",),),
        outside=("x_embedder.proj", "t5_yproj", "t_embedder.mlp.0", "final_layer.linear"),
        uneven=True,
        keeps=(
            Keep(r"\.mod_[xy]$", EIGHT_BITS, "modulation reaches every token: by structure"),
            Keep(r"\.attn\.qkv_[xy]$", EIGHT_BITS, "fused attention QKV: by structure"),
            Keep(r"\.mlp_[xy]\.w2$", EIGHT_BITS, "feed-forward down projection: by structure"),
        ),
        known_as=("genmo",),
    ),
    # The first Cosmos: each block is three, self-attention, cross-attention and feed-forward.
    "cosmos": Family(
        title="Cosmos 1",
        keys=(
            r"blocks\.block0\.blocks\.0\.block\.attn\.to_q\.0\.weight ",
            r"x_embedder\.proj\.1\.weight ",
        ),
        variants={"I2V": r"x_embedder\.proj\.1\.weight \[\d+, 72\]"},
        blocks=(("blocks.block",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=(
            Keep(
                r"\.adaLN_modulation\.",
                "16-bit",
                "modulation reaches every token, and is small: as in Cosmos-Predict2",
            ),
            Keep(r"\.attn\.to_v\.0$", EIGHT_BITS, "attention V: by structure"),
            Keep(r"\.block\.layer2$", EIGHT_BITS, "feed-forward down projection: by structure"),
        ),
        known_as=("cosmos-1.0", "cosmos 1.0 diffusion"),
    ),
}
