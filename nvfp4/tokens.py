"""How many tokens of a typical run each linear layer multiplies by: a row for each family.

A layer's multiply work is its weights times the tokens that go through it in a step, which for a
convolution are the places of its output. Most layers
see every token of the picture or video, some only the text, and modulation and time embeddings a
single vector, so that shares of the weights mislead. The rules were read in ComfyUI 0.33
(comfy/ldm), and tests/whole/test_tokens.py counts there what they say. Sizes are the defaults of
ComfyUI's nodes for empty latents; text has the length that ComfyUI pads it to, or PROMPT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Tokens of a prompt where ComfyUI does not pad: an assumption, which weighs little in any family.
PROMPT = 128


class Runs(NamedTuple):
    """Say which tokens the layers of some names multiply by.

    layers: a regular expression that is searched for in their names, without the model's prefix.
    tokens: names of counts, with "+" between them; "once" is a single vector.
    """

    layers: str
    tokens: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalRun:
    """Hold what a family is run with as a rule, and what goes through its layers.

    title: the run for people. counts: {name: tokens}; "image" is the picture or the video.
    rules: looked at before BY_NAME; the first that matches counts, and "image" where none does.
    """

    title: str
    counts: dict[str, int]
    rules: tuple[Runs, ...] = ()


# What families share, and a fair guess for models of none.
BY_NAME = (
    # Embeddings of the time step and of pooled vectors, and what modulates whole blocks by them.
    Runs(
        r"(?i)(^|\.)(time|timestep|guidance|vector)_|timestep_embed(der)?\.|(^|\.)[tcp]_embedder\."
        r"|(^|\.)(y_embedder\.mlp|label_emb|emb_layers|t_block|tmlp|tproj)\."
        r"|(^|[._])mod(?!el|ule)\w{0,40}\.(lin\w*|\d+)$|adaln|norm_out\.linear$",
        "once",
    ),
    # Keys and values of cross-attention, and the text's own layers of models with two streams.
    Runs(r"(cross_attn|attn2)\.(to_|linear_)?(k|v|kv)(_proj|_linear)?$", "text"),
    Runs(r"\.(add_[qkv]_proj|to_add_out)$|\.attn1\.to_(q|k|v|out)_t$|\.ff_t\.", "text"),
    Runs(r"(^|[._])(txt|text|caption|cap|context|cond_seq|byt5|y_embedder)", "text"),
    # Blocks that text and image go through as one sequence.
    Runs(r"^single(_stream|_transformer)?_(blocks|layers)\.", "image+text"),
)
# The refiners of Lumina 2 and Z-Image see text or image, the blocks after them see both.
LUMINA_BLOCKS = Runs(r"^(layers\.\d+\.(attention|feed_forward)|final_layer\.linear)", "image+text")
KANDINSKY = (
    Runs(r"modulation\.out_layer$|pooled_text_embeddings\.|time_embeddings\.", "once"),
    Runs(r"\.cross_attention\.to_(key|value)$", "text"),
)
# Image models of a token for every 16 pixels, and rules for what BY_NAME does not tell of them.
IMAGE_RULES = {
    "qwen-image-2.1": (Runs(r"^transformer_blocks\.", "image+text"),),
    "mage-flow": (),
    "lens": (),
    "krea2": (Runs(r"^blocks\.", "image+text"),),
    "ideogram4": (
        Runs(r"\.adaln_modulation$|^t_embedding\.", "once"),
        Runs(r"^llm_cond_proj$", "text"),
        Runs(r"^(layers\.|input_proj$|final_layer\.linear$)", "image+text"),
    ),
    "ernie-image": (
        Runs(r"^final_norm\.linear$", "once"),
        Runs(r"^(layers\.|final_linear$)", "image+text"),
    ),
    "boogu": (
        Runs(r"norm\d\.linear$|^norm_out\.linear_1$", "once"),
        Runs(r"\.caption_embedder\.|\.instruct_feed_forward\.|\.instruct_(to_|out)", "text"),
    ),
    "omnigen2": (
        Runs(r"norm1\.linear$|^norm_out\.linear_1$", "once"),
        Runs(r"\.caption_embedder\.", "text"),
        Runs(r"^(layers\.|norm_out\.linear_2$)", "image+text"),
    ),
    "joyimage": (),
    "hidream": (),
    "auraflow": (Runs(r"^double_layers\.\d+\.(attn\.w1|mlpC\.)", "text"),),
    "pixeldit": (),
}
# UNets halve the resolution between levels of three blocks each. A block's last layer may resample
# it, and has the resolution of the next block then.
UNET_SMALL = (
    Runs(r"\.(emb_layers|time_pos_embed)\.", "once"),
    Runs(r"\.transformer_blocks\.\d+\.attn2\.to_[kv]$", "text"),
)
THREE_LEVELS = (
    *UNET_SMALL,
    Runs(r"^output_blocks\.2\.2\.conv$", "half"),
    Runs(r"^input_blocks\.[678]\.|^middle_block\.|^output_blocks\.[012]\.", "quarter"),
    Runs(r"^output_blocks\.5\.2\.conv$", "image"),
    Runs(r"^(in|out)put_blocks\.[345]\.", "half"),
)
FOUR_LEVELS = (
    *UNET_SMALL,
    Runs(r"^output_blocks\.2\.1\.conv$", "quarter"),
    Runs(r"^input_blocks\.(9|10|11)\.|^middle_block\.|^output_blocks\.[012]\.", "eighth"),
    Runs(r"^output_blocks\.5\.2\.conv$", "half"),
    Runs(r"^input_blocks\.[678]\.|^output_blocks\.[345]\.", "quarter"),
    Runs(r"^output_blocks\.8\.2\.conv$", "image"),
    Runs(r"^input_blocks\.[345]\.|^output_blocks\.[678]\.", "half"),
)
# Attention along time sees the picture from each place, once for all frames.
IN_TIME = r"\.1\.time_stack\.\d+\.attn2\.to_[kv]$"
LEVELS_OF_A_FRAME = (
    Runs(rf"^(in|out)put_blocks\.([129]|10|11){IN_TIME}", "image of a frame"),
    Runs(rf"^input_blocks\.[45]{IN_TIME}|^output_blocks\.[678]{IN_TIME}", "half of a frame"),
    Runs(rf"^input_blocks\.[78]{IN_TIME}|^output_blocks\.[345]{IN_TIME}", "quarter of a frame"),
    Runs(rf"^middle_block{IN_TIME}", "eighth of a frame"),
)


def levels(image: int, *names: str) -> dict[str, int]:
    """Count the places of each level of a UNet, which has a quarter of those of the one before.

    image: of the first level. names: of the levels, the first one included.
    """
    return {name: image // 4**level for level, name in enumerate(names)}


# Names of counts and rules are those of ComfyUI's classes; a comment says how a count comes about.
RUNS = {
    # 21 x 60 x 104 latents in patches of 1 x 2 x 2. CLIP sees 257 tokens of the first frame. Audio
    # and faces come as some tokens for each of the 21 latent frames, 16 at most (HuMo).
    "wan": TypicalRun(
        title="81 frames of 832 x 480, 512 tokens of text",
        counts={"image": 32760, "text": 512, "clip": 257, "guides": 21 * 16},
        rules=(
            Runs(r"^img_emb\.|\.[kv]_img$", "clip"),
            Runs(r"linear1_kv$|(audio_cross_attn|audio_injector\.injector\.\d+)\.[kv]$", "guides"),
            Runs(r"^(face_encoder|motion_encoder|casual_audio_encoder|audio_proj)\.", "guides"),
            Runs(r"injector_adain_layers\.", "guides"),
        ),
    ),
    "qwen-image": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text", counts={"image": 4096, "text": PROMPT}
    ),
    "flux2": TypicalRun(
        title="1024 x 1024, 512 tokens of text", counts={"image": 4096, "text": 512}
    ),
    # The guidance layer makes a vector for each of the 344 modulations.
    "chroma": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text",
        counts={"image": 4096, "text": PROMPT, "modulations": 344},
        rules=(Runs(r"^distilled_guidance_layer\.", "modulations"),),
    ),
    "flux": TypicalRun(
        title="1024 x 1024, 256 tokens of text", counts={"image": 4096, "text": 256}
    ),
    "z-image": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text",
        counts={"image": 4096, "text": PROMPT},
        rules=(Runs(r"^dec_net\.", "image"), LUMINA_BLOCKS),
    ),
    "lumina2": TypicalRun(
        title=f"1024 x 1024, {PROMPT} tokens of text",
        counts={"image": 4096, "text": PROMPT},
        rules=(LUMINA_BLOCKS,),
    ),
    # 13 x 16 x 24 latents, each a token, and 25 tokens of sound for each second.
    "ltx2": TypicalRun(
        title="97 frames of 768 x 512 with sound, 1024 tokens of text",
        counts={"image": 4992, "text": 1024, "audio": 97},
        rules=(
            Runs(r"embeddings_connector\.", "text"),
            Runs(r"^audio_(patchify_proj|proj_out)$|\.audio_(attn1|ff)\.", "audio"),
            Runs(r"\.(audio_attn2|video_to_audio_attn)\.to_(q|out|gate)", "audio"),
            Runs(r"\.audio_to_video_attn\.to_[kv]$", "audio"),
        ),
    ),
    "ltx-video": TypicalRun(
        title="97 frames of 768 x 512, 128 tokens of text", counts={"image": 4992, "text": 128}
    ),
    # 7 x 60 x 106 latents in patches of 1 x 2 x 2; version 1.5 sees an image as 729 tokens.
    "hunyuan-video": TypicalRun(
        title=f"25 frames of 848 x 480, {PROMPT} tokens of text",
        counts={"image": 11130, "text": PROMPT, "vision": 729},
        rules=(Runs(r"^vision_in\.", "vision"),),
    ),
    **{
        name: TypicalRun(
            title=f"1024 x 1024, {PROMPT} tokens of text",
            counts={"image": 4096, "text": PROMPT},
            rules=rules,
        )
        for name, rules in IMAGE_RULES.items()
    },
    # It sees a prompt by CLIP and by T5.
    "sd3": TypicalRun(title="1024 x 1024, 231 tokens of text", counts={"image": 4096, "text": 231}),
    "hunyuan-dit": TypicalRun(
        title="1024 x 1024, 333 tokens of text", counts={"image": 4096, "text": 333}
    ),
    "pixart": TypicalRun(
        title="1024 x 1024, 300 tokens of text", counts={"image": 4096, "text": 300}
    ),
    # Patches of 32 pixels.
    "hidream-o1": TypicalRun(
        title=f"2048 x 2048, {PROMPT} tokens of text", counts={"image": 4096, "text": PROMPT}
    ),
    "sensenova-u1.5": TypicalRun(
        title=f"2048 x 2048, {PROMPT} tokens of text", counts={"image": 4096, "text": PROMPT}
    ),
    # The adapter makes text of the prompt once, which is padded to 512 tokens then.
    "anima": TypicalRun(
        title="1024 x 1024, 512 tokens of text",
        counts={"image": 4096, "text": 512, "prompt": PROMPT},
        rules=(Runs(r"^llm_adapter\.", "prompt"),),
    ),
    # 24 x 60 x 106 latents in patches of 1 x 2 x 2.
    "cosmos-predict2": TypicalRun(
        title="93 frames of 848 x 480, 512 tokens of text", counts={"image": 38160, "text": 512}
    ),
    # 37 x 48 x 84 latents in patches of 1 x 2 x 2, and 40 of sound in two channels for each second,
    # all in one sequence with the text. Sound has a time step of its own.
    "minimax-h3": TypicalRun(
        title=f"124 frames of 1344 x 768 with sound, {PROMPT} tokens of text",
        counts={"image": 37296, "text": PROMPT, "audio": 414, "times": 2},
        rules=(
            Runs(r"adaln_proj\.linear$|^time_embedder\.", "times"),
            Runs(r"^(condition_proj$|token_refiner\.)", "text"),
            Runs(r"^(audio_patch_proj|final_layer\.audio_out)$", "audio"),
            Runs(r"^blocks\.", "image+text+audio"),
        ),
    ),
    # 6 x 90 x 160 latents in patches of 1 x 2 x 2; the text is always the same. Later blocks have
    # one weight for both.
    "seedvr2": TypicalRun(
        title="21 frames of 1280 x 720",
        counts={"image": 21600, "text": 58},
        rules=(
            Runs(r"^emb_in\.", "once"),
            # The 3B model's last block makes nothing of the text.
            Runs(r"^blocks\.31\.mlp\.all\.", "image"),
            Runs(r"\.all(\.|$)", "image+text"),
        ),
    ),
    # 31 x 64 x 96 latents in patches of 1 x 2 x 2.
    "kandinsky5": TypicalRun(
        title=f"121 frames of 768 x 512, {PROMPT} tokens of text",
        counts={"image": 47616, "text": PROMPT},
        rules=KANDINSKY,
    ),
    # 31 x 60 x 108 latents in patches of 1 x 2 x 2, and 43 of sound for each second.
    "kandinsky6": TypicalRun(
        title=f"121 frames of 864 x 480 with sound, {PROMPT} tokens of text",
        counts={"image": 50220, "text": PROMPT, "audio": 217},
        rules=(
            *KANDINSKY,
            Runs(r"\.va_cross_attention\.to_(key|value)$", "audio"),
            Runs(r"\.av_cross_attention\.(to_query|out_layer)$", "audio"),
            Runs(r"^audio_text_", "text"),
            Runs(r"\.audioT\.|^audio_(embeddings|outLayer)\.", "audio"),
        ),
    ),
    # 13 x 60 x 90 latents in patches of 1 x 2 x 2.
    "cogvideox": TypicalRun(
        title="49 frames of 720 x 480, 226 tokens of text",
        counts={"image": 17550, "text": 226},
        rules=(
            Runs(r"\.norm[12]\.linear$|^ofs_embedding_", "once"),
            Runs(r"^blocks\.", "image+text"),
        ),
    ),
    # 5 x 60 x 106 latents in patches of 1 x 2 x 2.
    "mochi": TypicalRun(
        title="25 frames of 848 x 480, 256 tokens of text",
        counts={"image": 7950, "text": 256},
        rules=(
            Runs(r"\.mod_[xy]$|^final_layer\.mod$|^t5_y_embedder\.to_(q|out)$", "once"),
            Runs(r"^t5_y|\.(qkv|proj)_y$|\.mlp_y\.", "text"),
        ),
    ),
    # 16 x 88 x 160 latents in patches of 1 x 2 x 2.
    "cosmos": TypicalRun(
        title="121 frames of 1280 x 704, 512 tokens of text",
        counts={"image": 56320, "text": 512},
        rules=(Runs(r"\.blocks\.1\.block\.attn\.to_[kv]\.0$", "text"),),
    ),
    # Of models that make sound, "image" is that. Lyrics are as long as the text is here, and what
    # sound is like is told by as many latents, five for each of its codes.
    "ace-step": TypicalRun(
        title=f"120 seconds, {PROMPT} tokens of text and as many of lyrics",
        counts={
            "image": 1291,
            "text": 1 + 2 * PROMPT,
            "prompt": PROMPT,
            "lyrics": PROMPT,
            "positions": 2 * PROMPT - 1,
        },
        rules=(
            Runs(r"^speaker_embedder$", "once"),
            Runs(r"^genre_embedder$", "prompt"),
            Runs(r"^lyric_encoder\..*\.linear_pos$", "positions"),
            Runs(r"^lyric_", "lyrics"),
        ),
    ),
    "ace-step-1.5": TypicalRun(
        title=f"120 seconds, {PROMPT} tokens of text and as many of lyrics",
        counts={
            "image": 1500,
            "text": 1 + 2 * PROMPT,
            "prompt": PROMPT,
            "lyrics": PROMPT,
            "latents": 3000,
            "codes": 600,
            "pooled": 3600,
        },
        rules=(
            Runs(r"^encoder\.text_projector$", "prompt"),
            Runs(r"^encoder\.lyric_encoder\.", "lyrics"),
            Runs(r"^decoder\.(condition_embedder|layers\.\d+\.cross_attn\.[kv]_proj)$", "text"),
            Runs(r"^tokenizer\.attention_pooler\.layers\.", "pooled"),
            Runs(r"^tokenizer\.quantizer\.|^detokenizer\.embed_tokens$", "codes"),
            Runs(r"^(encoder\.timbre_encoder|tokenizer|detokenizer)\.", "latents"),
        ),
    ),
    "stable-audio": TypicalRun(
        title="47.6 seconds, 130 tokens of text",
        counts={"image": 1024, "text": 130},
        rules=(Runs(r"^to_global_embed\.", "once"), Runs(r"^to_cond_embed\.", "text")),
    ),
    "minimax-music": TypicalRun(title="120 seconds", counts={"image": 3000, "text": 0}),
    "yue2": TypicalRun(title="3000 latents", counts={"image": 3002, "text": 0}),
    # Of models that make objects, "image" is the object and "text" the picture that it is made of.
    "hunyuan3d-2": TypicalRun(
        title="3072 latents, a picture of 518 x 518",
        counts={"image": 3072, "text": 1370},
        rules=(Runs(r"^cond_in$", "text"),),
    ),
    # The time step is a token of its own. Two of eight experts see each.
    "hunyuan3d-2.1": TypicalRun(
        title="4096 latents, a picture of 518 x 518",
        counts={"image": 4096, "text": 1370, "routed": 1024},
        rules=(
            Runs(r"\.moe\.experts\.", "routed"),
            Runs(r"^blocks\.\d+\.attn2\.to_[kv]$", "text"),
            Runs(r"^blocks\.", "image+once"),
        ),
    ),
    "trellis2": TypicalRun(
        title="the structure, of a picture of 512 x 512", counts={"image": 4096, "text": 1029}
    ),
    "triposplat": TypicalRun(
        title="8192 latents, a picture of 1024 x 1024",
        counts={"image": 8192, "text": 4101},
        rules=(
            Runs(r"^cond_embedder2?$", "text"),
            Runs(r"^cam_", "once"),
            Runs(r"^(blocks|repo_layers)\.", "image+text+once"),
        ),
    ),
    # 128 x 128 latents, and the 77 tokens of CLIP.
    "sdxl": TypicalRun(
        title="1024 x 1024, 77 tokens of text",
        counts=levels(128 * 128, "image", "half", "quarter") | {"text": 77},
        rules=THREE_LEVELS,
    ),
    "sdxl-refiner": TypicalRun(
        title="1024 x 1024, 77 tokens of text",
        counts=levels(128 * 128, "image", "half", "quarter", "eighth") | {"text": 77},
        rules=FOUR_LEVELS,
    ),
    # 14 frames of 72 x 128 latents, each of which sees the picture as one token.
    "svd": TypicalRun(
        title="14 frames of 1024 x 576",
        counts=levels(14 * 72 * 128, "image", "half", "quarter", "eighth")
        | levels(
            72 * 128,
            "image of a frame",
            "half of a frame",
            "quarter of a frame",
            "eighth of a frame",
        )
        | {"text": 14},
        rules=(*LEVELS_OF_A_FRAME, *FOUR_LEVELS, Runs(r"\.time_stack\.", "image")),
    ),
    "stable-diffusion": TypicalRun(
        title="512 x 512, 77 tokens of text",
        counts=levels(64 * 64, "image", "half", "quarter", "eighth") | {"text": 77},
        rules=FOUR_LEVELS,
    ),
}
# For text encoders, which all are run once with a prompt.
ENCODER_FAMILY = "text-encoder"
ENCODER_RUN = TypicalRun(
    title=f"a prompt of {PROMPT} tokens", counts={"image": PROMPT, "text": PROMPT}
)
# For a model that is of no family.
ANY_RUN = TypicalRun(
    title=f"4096 tokens of an image, {PROMPT} of text, by the names of the layers",
    counts={"image": 4096, "text": PROMPT},
)


def typical_run(family: str) -> TypicalRun:
    """Find the run of a family, a key of RUNS or ENCODER_FAMILY; of "" that for models of none."""
    return ENCODER_RUN if family == ENCODER_FAMILY else RUNS.get(family, ANY_RUN)


@lru_cache(maxsize=1 << 16)
def group_of(layer: str, family: str) -> str:
    """Tell which tokens a layer multiplies by, as a Runs has them: "image+text".

    layer: its name without prefix; family: a key of RUNS, or "" for none.
    """
    rules = (*typical_run(family).rules, *BY_NAME)
    return next((rule.tokens for rule in rules if re.search(rule.layers, layer)), "image")


def tokens_of(layer: str, family: str) -> int:
    """Count the tokens that go through a layer in one step of a family's typical run."""
    counts = {"once": 1, **typical_run(family).counts}
    return sum(counts[name] for name in group_of(layer, family).split("+"))
