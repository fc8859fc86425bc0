"""Tell what a file is that is no diffusion model, by the names of its tensors.

A LoRA, a text encoder or a VAE looks like a small 16-bit model, and would be converted, checked and
compared as one. Models in the names of diffusers are told here, too: where ComfyUI has other names
for a model, it does not load quantised layers of it. To add a kind, add a row to KINDS; no row may
fit a model of ComfyUI's own, which tests/unit/test_file_kinds.py holds against all its classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nvfp4.model import header_text

# A name of a LoRA's tensor, in any of the spellings that ComfyUI and PEFT have.
LORA_PART = re.compile(
    r".+[._](lora(_linear_layer)?[._](up|down|mid|A|B)|hada_[wt][12]|lokr_[wt][12]|dora_scale"
    r"|lora_magnitude_vector|oft_(blocks|diag)|diff(_b)?$|set_weight$)"
)
# What an embedding's vectors are called, one tensor for each text encoder.
EMBEDDING_NAMES = {"emb_params", "*", "clip_l", "clip_g", "clip_h", "t5xxl", "string_to_param"}


class FileKind(NamedTuple):
    """Describe what a file may be instead of a diffusion model.

    title: to follow "is"; what_to_do: with such a file, as the end of a sentence.
    keys: regular expressions for the beginning of lines of `header_text`, behind up to four parts
        of a prefix; all of them have to be there, and `absent` must not.
    is_like_a_model: whether such files have the layers of a known family as well.
    instead: what such a file is not, for those that check it.
    """

    title: str
    what_to_do: str
    keys: tuple[str, ...] = ()
    absent: str = ""
    is_like_a_model: bool = False
    instead: str = "a diffusion model"


LORA = FileKind("a LoRA", "give the model, and this with --merge-lora")
# Parts of LoRAs that --merge-lora does not merge, by what a file of them alone is called.
OTHER_LORAS = {"OFT": r".+[._](oft_(blocks|diag)|rescale)$", "GLoRA": r".+\.[ab][12]\.weight$"}
UNMERGED = FileKind(
    "a model with a LoRA beside its layers, as PEFT trains it",
    "merge it first (merge_and_unload), or give the original model and the LoRA with --merge-lora",
)
EMBEDDING_FILE = FileKind("an embedding (textual inversion)", "it goes into models/embeddings")
PATCH = "a model patch", "it goes into models/model_patches, for Load Model Patch, as it is"
VAE = "a VAE", "ComfyUI loads it with Load VAE, as it is"
# What text encoders have, in several lines of models. Diffusion models that are built like one have
# a time step besides. A plain BERT is none that ComfyUI loads by itself, and is converted.
TEXT_ENCODERS = (
    (r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.",),
    (r"text_model\.encoder\.layers\.0\.",),
    (r"transformer\.resblocks\.0\.attn\.", r"token_embedding\.weight "),
    (r"layers\.0\.self_attn\.(q|qkv)_proj\.", r"embed_tokens\.weight "),
    # llama.cpp's names, in a GGUF.
    (r"(enc\.)?blk\.0\.attn_(q|qkv|k)\.", r"token_embd\.weight "),
)
UNKNOWN_ENCODER = (
    "and none that is converted (--list-presets has those); ComfyUI loads what it knows as it is"
)
TIME_STEP = r"\S*(time_?(step)?_?(embed|in\.|proj)|t_embedder|x_embedder)"
# ComfyUI maps the names of some of these, in 16 bits alone (comfy/model_detection.py,
# convert_diffusers_mmdit): a layer's scales and configuration would be lost.
OTHER_NAMES = "ComfyUI loads quantised layers by its own names; take the file repackaged for it"
# Models in the names of diffusers: {model: (keys, what native models have besides)}.
DIFFUSERS_KEYS = {
    "Wan": ((r"condition_embedder\.text_embedder\.linear_1\.weight ", r"blocks\.0\.attn1\."), ""),
    "Flux, Flux 2, Chroma or Hunyuan Video": (
        (r"single_transformer_blocks\.0\.", r"transformer_blocks\.0\.attn\."), ""),
    "Hunyuan Video 1.5": (
        (r"context_embedder\.token_refiner\.refiner_blocks\.0\.",
         r"transformer_blocks\.0\.attn\.add_q_proj\."), ""),
    "AuraFlow": ((r"joint_transformer_blocks\.0\.attn\.",), ""),
    "Stable Diffusion 3": (
        (r"transformer_blocks\.0\.attn\.add_q_proj\.weight ", r"pos_embed\.proj\.weight "), ""),
    "PixArt": (
        (r"adaln_single\.emb\.timestep_embedder\.linear_1\.", r"pos_embed\.proj\.weight "), ""),
    "Z-Image": ((r"layers\.0\.attention\.to_q\.", r"noise_refiner\.0\.attention\.to_q\."), ""),
    "Ideogram": ((r"layers\.0\.attention\.to_q\.", r"llm_cond_proj\."), ""),
    "Lumina 2": (
        (r"layers\.0\.attn\.to_q\.weight ", r"noise_refiner\.0\.attn\.to_q\."),
        r"(image_index_embedding|ref_image_patch_embedder\.)"),
    "LTX": ((r"time_embed\.emb\.timestep_embedder\.linear_1\.weight ", r"proj_in\.weight "), ""),
    "Cosmos": ((r"time_embed\.t_embedder\.linear_1\.weight ", r"transformer_blocks\.0\."), ""),
    "Mochi": ((r"time_embed\.pooler\.to_kv\.", r"transformer_blocks\.0\.attn1\."), ""),
    "Krea 2": ((r"text_fusion\.refiner_blocks\.0\.attn\.to_q\.",), ""),
    "MiniMax H3": ((r"audio_proj_in\.weight ", r"token_refiner\.refiner_blocks\.0\.attn\."), ""),
    "Stable Audio or MiniMax Music": (
        (r"preprocess_conv\.weight ", r"transformer_blocks\.0\.attn1?\.to_q\."), ""),
    "ACE-Step": ((r"layers\.0\.self_attn\.to_q\.", r"layers\.0\.cross_attn\.to_q\."), ""),
    "Hunyuan DiT": ((r"time_extra_emb\.", r"blocks\.0\.attn1\.to_q\."), ""),
    "Stable Diffusion": (
        (r"down_blocks\.\d\.resnets\.0\.(spatial_res_block\.)?conv1\.", r"time_embedding\."),
        ""),
    "Stable Cascade": ((r"down_blocks\.\d\.2\.attention\.to_q\.",), ""),
}  # fmt: skip
KINDS = (
    FileKind("a recording of the calibration node", "give it with --activation-stats",
             (r"\S+\.block_histogram ", r"\S+\.absmax ")),
    # What ModelPatchLoader takes and ControlNetLoader does not (comfy_extras/nodes_model_patch.py).
    FileKind(*PATCH, (r"(control_all_x_embedder\.|control_layers\.0\.|control_noise_refiner\.0\."
                      r"|controlnet_blocks\.0\.y_rms\.|controlnet_patch_embedding\."
                      r"|feature_embedder\.mid_layer_norm\.|lllite_conditioning1\.conv1\.)",),
             is_like_a_model=True),
    FileKind(*PATCH, (r"audio_proj\.proj1\.weight ", r"blocks\.0\.audio_cross_attn\.proj\.")),
    FileKind("a control net", "ComfyUI loads it with Load ControlNet Model, as it is",
             (r"(control_model\.|controlnet_|input_hint_block\.0\.|zero_convs\.0\.|lora_controlnet "
              r"|control_x_embedder\.|pos_embed_input\.|control_blocks\.0\.)",),
             is_like_a_model=True),
    FileKind("an IP-Adapter", "it goes into models/ipadapter",
             (r"(ip_adapter\.\d+\.|image_proj(_model)?\.(latents|layers\.0|proj)\b)",)),
    FileKind("a T2I adapter", "ComfyUI loads it with Load ControlNet Model, as it is",
             (r"(adapter\.)?body\.0\.(resnets\.0\.)?block1\.",)),
    FileKind("a motion module", "it is for AnimateDiff, as it is",
             (r"(down|up)_blocks\.0\.motion_modules\.0\.",)),
    *(
        FileKind(f"a model in the names of diffusers ({title})", OTHER_NAMES, keys, absent, True,
                 "in ComfyUI's")
        for title, (keys, absent) in DIFFUSERS_KEYS.items()
    ),
    *(
        FileKind("a text encoder", UNKNOWN_ENCODER, keys, TIME_STEP)
        for keys in TEXT_ENCODERS
    ),
    FileKind("a CLIP vision encoder", "ComfyUI loads it with Load CLIP Vision, as it is",
             (r"(vision_model\.encoder\.layers\.0\.|visual\.transformer\.resblocks\.0\.)",)),
    FileKind("an audio encoder", "ComfyUI loads it with its audio encoder loader, as it is",
             (r"feature_extractor\.conv_layers\.0\.",)),
    FileKind(*VAE, (r"(de|en)coder\.conv_in\.(\w+\.)?weight ",)),
    FileKind(*VAE, (r"(de|en)coder\.conv1\.weight ", r"(de|en)coder\.middle\.0\.")),
    FileKind(*VAE, (r"(de|en)coder\.(block|up_block|down_block|down|up)s?\.0\.",),
             absent=r"\S*(self_attn|cross_attn|attn_block|to_q)\."),
    FileKind(*VAE, (r"(de|en)coder\.(conv1|layers\.0)\.(weight(_[vg])? |parametrizations\.|conv\.)",
                    ),),
    FileKind(*VAE, (r"taesd_(de|en)coder\.",)),
    FileKind("a style model", "ComfyUI loads it with Load Style Model, as it is",
             (r"redux_up\.weight ", r"redux_down\.weight ")),
    FileKind("an upscaler", "ComfyUI loads it with Load Upscale Model, as it is",
             (r"((model\.)?1\.sub\.0\.(RDB1|conv)|body\.0\.rdb1\.conv1\.|RRDB_trunk\.0\."
              r"|layers\.0\.residual_group\.)",)),
)  # fmt: skip


def lora_kind(names: Iterable[str]) -> FileKind | None:
    """Tell a LoRA, and a model that has one beside its layers, by the names in a file."""
    names = list(names)
    count = sum(LORA_PART.match(name) is not None for name in names)
    if count and any(".base_layer." in name for name in names):
        return UNMERGED
    for title, part in OTHER_LORAS.items():
        others = sum(re.match(part, name) is not None for name in names)
        # Beside them each layer has an alpha.
        if 2 * others >= len(names) > 0 and count <= others:
            return FileKind(f"a LoRA of the kind {title}", f"--merge-lora does not merge {title}")
    return LORA if 2 * count >= len(names) > 0 else None


def kind_of_file(shapes: Mapping[str, tuple[int, ...]], *, is_model: bool) -> FileKind | None:
    """Tell what a file is that is no diffusion model; None for what may be one.

    shapes: {name: shape} of its tensors, those beside a diffusion model left out; is_model: whether
    they are recognised as a family's.
    """
    if shapes and shapes.keys() <= EMBEDDING_NAMES:
        return EMBEDDING_FILE
    if (lora := lora_kind(shapes)) is not None:
        return lora
    text = header_text(shapes)

    def there(key: str) -> bool:
        return re.search(rf"^(?:[\w-]+\.){{0,4}}?{key}", text, re.MULTILINE) is not None

    for kind in KINDS:
        if is_model and not kind.is_like_a_model:
            continue
        if all(map(there, kind.keys)) and not (kind.absent and there(kind.absent)):
            return kind
    return None
