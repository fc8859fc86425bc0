"""Small models that make videos, sound or 3D: a row for each."""

import json

import torch
from torch.nn.functional import interpolate

from support.models_video import LTX_23, LTX_25
from support.tiny import TEXT, VIDEO, VIDEO_TOKENS, Tiny

WAN_14B = {5120: 256, 13824: 512}
WAN_5B = {3072: 256, 14336: 512}
LTX2_CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 128, "cross_attention_dim": 256,
    "audio_num_attention_heads": 2, "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 128, "caption_channels": 256, "connector_num_attention_heads": 2,
}  # fmt: skip
WAN_I2V = {"clip_fea": (1, 257, 1280)}
WAN_VACE = {"vace_context": (1, 1, 96, *VIDEO), "vace_strength": [1.0]}
# Wan's time steps, and the tokens that it sees.
WAN_RUN = {"time": 500.0, "counts": {"image": VIDEO_TOKENS, "clip": 257}}

LTX_WIDTHS = {4096: 256, 2048: 128, 3840: 256}
LTX_LATENTS = [(1, 128, *VIDEO), (1, 8, 4, 16)]
LTX_INPUTS, LTX_TOKENS = {"attention_mask": None}, {"image": 3 * 8 * 8, "audio": 4}
# Gates have a row for each head: there are as many as in the published model.
LTX_SMALL = {
    "num_attention_heads": 32, "attention_head_dim": 8, "cross_attention_dim": 256,
    "audio_num_attention_heads": 32, "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 128, "caption_channels": 256,
    "connector_num_attention_heads": 32, "connector_attention_head_dim": 8,
    "audio_connector_attention_head_dim": 4,
}  # fmt: skip
H3_LATENTS = [(1, 24, *VIDEO), (1, 32, 2, 4)]
H3_TOKENS = {"image": VIDEO_TOKENS, "audio": 2 * 4, "times": 2}
ONE_BRANCH = {"transformer_options": {"cond_or_uncond": [0]}}
LYRICS = {
    "speaker_embeds": (1, 512),
    "lyric_token_idx": torch.arange(16)[None],
    "lyric_mask": torch.ones(1, 16, dtype=torch.long),
}


def header(transformer: dict) -> dict[str, str]:
    """Metadata that tell ComfyUI of the transformer."""
    return {"config": json.dumps({"transformer": transformer})}


def small_kandinsky() -> None:
    """Let ComfyUI's detection know the small model's sizes: it takes released ones alone."""
    from comfy.ldm.kandinsky6 import detection

    lite = detection._RELEASE_DIT_CONFIGS[1792]
    sizes = {"model_dim": 256, "model_dim_a": 128, "ff_dim": 1024, "ff_dim_a": 512}
    text = {"in_text_dim": 512, "num_visual_blocks": 4}
    detection._RELEASE_DIT_CONFIGS[256] = lite | sizes | text


def plain_resize() -> None:
    """Resize masks by torch: where torchvision is not installed, a stub stands for it."""
    from comfy.ldm.cosmos import model

    model.transforms.functional.resize = lambda mask, size, **_: interpolate(mask, size)


TINY_VIDEO = {
    "wan_t2v": Tiny("wan21_t2v_14b", WAN_14B, 6, (1, 16, *VIDEO), 4096, **WAN_RUN),
    "wan_i2v": Tiny("wan21_i2v_14b", WAN_14B, 6, (1, 36, *VIDEO), 4096, WAN_I2V, **WAN_RUN),
    "wan_ti2v": Tiny("wan22_ti2v_5b", WAN_5B, 6, (1, 48, *VIDEO), 4096, **WAN_RUN),
    "wan_vace": Tiny("wan21_vace_14b", WAN_14B, 6, (1, 16, *VIDEO), 4096, WAN_VACE, **WAN_RUN),
    "hunyuan_video": Tiny(
        "hunyuan_video",
        {3072: 256},
        4,
        (1, 16, *VIDEO),
        4096,
        {"y": (1, 768), "guidance": torch.tensor([3.5])},
        counts={"image": VIDEO_TOKENS},
    ),
    # It has no patches; the second input is sound.
    "ltx2": Tiny(
        "ltx2",
        {4096: 256, 2048: 128, 3840: 256},
        4,
        [(1, 128, *VIDEO), (1, 8, 4, 16)],
        512,
        {"attention_mask": None},
        counts={"image": 3 * 8 * 8, "audio": 4},
        metadata=header(LTX2_CONFIG),
    ),
    "ltx23": Tiny(
        "ltx23", LTX_WIDTHS, 4, LTX_LATENTS, 384, LTX_INPUTS, counts=LTX_TOKENS,
        metadata=header(LTX_23 | LTX_SMALL),
    ),
    "ltx25": Tiny(
        "ltx25", LTX_WIDTHS, 4, LTX_LATENTS, 384, LTX_INPUTS, counts=LTX_TOKENS,
        metadata=header(LTX_25 | LTX_SMALL),
    ),
    "wan_camera": Tiny("wan21_camera_14b", WAN_14B, 6, (1, 32, *VIDEO), 4096, WAN_I2V, **WAN_RUN),
    "wan_scail2": Tiny("wan21_scail2_14b", WAN_14B, 6, (1, 20, *VIDEO), 4096, WAN_I2V, **WAN_RUN),
    "wan_humo": Tiny(
        "wan21_humo_17b", WAN_14B, 6, (1, 16, *VIDEO), 4096, **WAN_RUN,
        shapes={"audio_proj_glob_1.layer.weight": (512, 51200)},
    ),
    "wan_dancer": Tiny("wan22_dancer_14b", WAN_14B, 6, (1, 36, *VIDEO), 4096, WAN_I2V, **WAN_RUN),
    "wan_animate2": Tiny(
        "wan_animate2_14b", WAN_14B, 6, (1, 36, *VIDEO), 4096, WAN_I2V, **WAN_RUN,
        metadata=header({"model_type": "animate2"}),
    ),
    "hunyuan_image": Tiny(
        "hunyuan_image_21", {3584: 256}, 4, (1, 64, 8, 16), 256, counts={"image": 8 * 16}
    ),
    "cosmos_predict2": Tiny(
        "cosmos_predict2_2b", {2048: 256}, 4, (1, 16, *VIDEO), 1024,
        counts={"image": VIDEO_TOKENS}, constants=("CosmosT2IPredict2", {"num_heads": 2}),
    ),
    # Text, video and sound are one sequence; sound has two channels.
    "minimax_h3": Tiny(
        "minimax_h3", {7168: 256, 5376: 256, 2688: 128}, 4, H3_LATENTS, 5120, time=500.0,
        counts=H3_TOKENS,
    ),
    "minimax_h3_pruned": Tiny(
        "minimax_h3_pruned", {7168: 256, 5376: 256}, 4, H3_LATENTS, 5120, time=500.0,
        counts=H3_TOKENS,
    ),
    # ComfyUI tells its size by the last block.
    "seedvr2": Tiny(
        "seedvr2_3b", {6912: 768, 2560: 256}, 32, (1, 16, *VIDEO), None,
        {"context": None, "condition": (1, 17, *VIDEO), **ONE_BRANCH}, time=500.0,
        counts={"image": VIDEO_TOKENS, "text": 58},
        constants=("SeedVR2", {"vid_dim": 256, "heads": 2}),
        shapes={
            "positive_conditioning": (58, 5120), "negative_conditioning": (64, 5120),
            "txt_in.weight": (256, 5120),
        },
    ),
    "kandinsky5": Tiny(
        "kandinsky5_lite", {1792: 256}, 4, (1, 33, *VIDEO), 512, {"y": (1, 768)},
        counts={"image": VIDEO_TOKENS}, constants=("Kandinsky5", {"in_text_dim": 512}),
    ),
    "kandinsky6": Tiny(
        "kandinsky6_lite", {1792: 256, 896: 128}, 4, [(1, 16, *VIDEO), (1, 4, 40)], 512,
        {"y": (1, 768)}, counts={"image": VIDEO_TOKENS, "audio": 4}, prepare=small_kandinsky,
    ),
    "cogvideox": Tiny(
        "cogvideox_2b", {1920: 128}, 4, (1, 16, *VIDEO), 4096, counts={"image": VIDEO_TOKENS}
    ),
    "cogvideox15_i2v": Tiny(
        "cogvideox15_5b_i2v", {3072: 128}, 4, (1, 32, 4, 8, 8), 4096, {"ofs": torch.tensor([2.0])},
        counts={"image": 2 * 4 * 4},
    ),
    "cosmos": Tiny(
        "cosmos_t2v_7b", {4096: 256}, 4, (1, 16, *VIDEO), 1024, {"padding_mask": (1, 1, 8, 8)},
        counts={"image": VIDEO_TOKENS}, lists=r"^blocks\.block", prepare=plain_resize,
        constants=("CosmosT2V", {"num_blocks": 4, "num_heads": 2}),
    ),
    "ace_step": Tiny(
        "ace_step", {6400: 640, 2560: 256}, 4, (1, 8, 16, 12), 768, LYRICS,
        counts={"image": 12, "prompt": TEXT, "lyrics": 16, "positions": 31, "text": 1 + TEXT + 16},
        constants=("ACEStep", {"inner_dim": 256, "num_attention_heads": 2, "num_layers": 4}),
    ),
    "ace_step_15": Tiny(
        "ace_step_15", {2048: 256, 1024: 128}, 8, (1, 64, 20), 128,
        {"lyric_embed": (1, 16, 128), "refer_audio": (1, 64, 20)},
        counts={
            "image": 10, "prompt": TEXT, "lyrics": 16, "text": 1 + TEXT + 16, "latents": 20,
            "codes": 4, "pooled": 24,
        },
        lists=r"^decoder\.layers",
        constants=("ACEStep15", {"text_hidden_dim": 128, "fsq_dim": 256}),
        shapes={
            "q_proj.weight": (2048, 256), "k_proj.weight": (1024, 256),
            "v_proj.weight": (1024, 256), "o_proj.weight": (256, 2048),
        },
    ),
    "hunyuan3d_2": Tiny(
        "hunyuan3d_2", {1024: 256}, 4, (1, 64, 12), 1536, counts={"image": 12},
        constants=("Hunyuan3Dv2", {"num_heads": 4}),
    ),
    # Its last blocks have experts.
    "hunyuan3d_21": Tiny(
        "hunyuan3d_21", {2048: 256}, 21, (1, 64, 12), 1024, counts={"image": 12, "routed": None},
        constants=("Hunyuan3Dv2_1", {"num_heads": 2}),
    ),
    "trellis2": Tiny(
        "trellis2", {8192: 1024, 1536: 256, 12: 2}, 3, (1, 32, 16, 16, 16), 1024,
        {"embeds": (1, TEXT, 1024)}, counts={"image": 16**3}, lists=r"^\w+\.blocks",
        constants=("Trellis2", {
            "num_heads": 2, "model_channels": 256, "num_blocks": 3, "mlp_ratio": 4.0
        }),
    ),
    "triposplat": Tiny(
        "triposplat", {}, 3, [(1, 64, 16), (1, 1, 5)], 1280, counts={"image": 64},
        lists=r"^(?:blocks|repo_layers)",
        constants=("TripoSplat", {"num_blocks": 3, "q_token_length": 64}),
    ),
}  # fmt: skip
