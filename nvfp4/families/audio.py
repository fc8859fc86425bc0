"""Families of models that make music and other sound: a row for each.

What a row says is told in `records`, and in which order rows are looked at in `table`.
"""

from __future__ import annotations

from nvfp4.families.records import ATTENTION_V, DOWN_PROJECTION, EIGHT_BITS, Family, Keep

# The two that are built of stable-audio-tools' transformer.
SOUND_KEEPS = (
    Keep(r"\.to_(qkv|kv)$", EIGHT_BITS, "fused attention QKV: by structure"),
    Keep(r"\.ff\.ff\.2$", EIGHT_BITS, "feed-forward down projection: by structure"),
)
# Keys and shapes are as ComfyUI reads them (comfy/model_detection.py, 0.33 where no comment says
# otherwise). No published file says which layers of these are sensitive.
AUDIO_FAMILIES = {
    # Its feed-forward layers are convolutions.
    "ace-step": Family(
        title="ACE-Step",
        keys=(
            r"genre_embedder\.weight ",
            r"transformer_blocks\.0\.cross_attn\.add_k_proj\.weight ",
        ),
        blocks=(("transformer_blocks",),),
        outside=("genre_embedder", "speaker_embedder", "lyric_proj", "final_layer.linear"),
        together=(("transformer_blocks.0.attn", "transformer_blocks.0.cross_attn"),),
        keeps=(ATTENTION_V,),
        makes=("audio",),
        known_as=("ace_step",),
    ),
    "ace-step-1.5": Family(
        title="ACE-Step 1.5",
        keys=(
            r"encoder\.lyric_encoder\.layers\.0\.input_layernorm\.weight ",
            r"decoder\.layers\.0\.self_attn\.q_proj\.weight ",
        ),
        blocks=(("decoder.layers",),),
        outside=(
            "decoder.condition_embedder",
            "encoder.text_projector",
            "tokenizer.audio_acoustic_proj",
            "detokenizer.proj_out",
        ),
        keeps=(ATTENTION_V, DOWN_PROJECTION),
        makes=("audio",),
        known_as=("acestep_v1.5", "acestep-v15", "ace step 1.5 xl"),
    ),
    "stable-audio": Family(
        title="Stable Audio",
        keys=(r"transformer\.rotary_pos_emb\.inv_freq ", r"to_cond_embed\.0\.weight "),
        variants={"3": r"transformer\.global_cond_embedder\.0\.weight "},
        blocks=(("transformer.layers",),),
        outside=("transformer.project_in", "transformer.project_out", "to_cond_embed.0"),
        keeps=SOUND_KEEPS,
        makes=("audio",),
        known_as=("stable-audio-open", "stable-audio-3"),
    ),
    "minimax-music": Family(
        title="MiniMax Music 3",
        keys=(r"cond_layer_logits ", r"latent_conditioners\.0\.weight "),
        blocks=(("diffusion_transformer.transformer.layers",),),
        outside=(
            "diffusion_transformer.transformer.project_in",
            "diffusion_transformer.transformer.project_out",
        ),
        together=(
            (
                "diffusion_transformer.transformer.layers.0.self_attn",
                "diffusion_transformer.transformer.layers.0.ff",
            ),
        ),
        keeps=SOUND_KEEPS,
        makes=("audio",),
        known_as=("minimax_music",),
    ),
    # ComfyUI 0.38. The blocks' full names begin with `model.`, which is taken for a prefix where no
    # other one is before it.
    "yue2": Family(
        title="YuE 2",
        keys=(r"vae2llm\.weight ", r"llm2vae\.weight ", r"latent_pos_embed\.pe "),
        blocks=(("model.layers",), ("layers",)),
        outside=("vae2llm", "llm2vae", "time_embedder.mlp.0"),
        keeps=(
            Keep(r"\.self_attn\.qkv_proj$", EIGHT_BITS, "fused attention QKV: by structure"),
            DOWN_PROJECTION,
        ),
        makes=("audio",),
        known_as=("yue",),
    ),
}
