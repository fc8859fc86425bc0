"""Small models that make videos, sound or 3D: a row for each."""

import json

import torch

from support.tiny import VIDEO, VIDEO_TOKENS, Tiny

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
        metadata={"config": json.dumps({"transformer": LTX2_CONFIG})},
    ),
}
