"""Known model families and their presets, as rows of a table.

A row says how a model of the family is recognised, where its transformer blocks are, and which of
their layers get more than NVFP4, each with the source of that choice. `plan.presets` applies the
rows. To add a family, add a row here, before those whose keys it has as well, and its names and
shapes under tests/families with `tests/support/make_families.py`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from nvfp4.model import Model, bare, header_text

# What stands for the format of 8 bits that a conversion has: INT8, or FP8 where that is asked for.
EIGHT_BITS = "8-bit"
# Transformer blocks that stay 16-bit at each end, unless a family or an option says otherwise.
EDGE_BLOCKS = 2
# Models with a larger share of their linear weights in NVFP4 are known to give noise, Wan and image
# models alike.
MOST_NVFP4 = 0.9


class Keep(NamedTuple):
    """Name layers inside a family's blocks that get more than NVFP4.

    layers: a regular expression that is searched for in their names, without the model's prefix.
    precision: EIGHT_BITS, for which --formats and --card choose the format, or "16-bit".
    why: the reason that the report gives, with the tool or file that does the same.
    """

    layers: str
    precision: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Describe models of one architecture: how to recognise one, and what its preset does.

    title: the family's name for people.
    keys: regular expressions for the beginning of a header's lines, `name [shape]`, without the
        prefix of names. All of them have to be there.
    variants: {name: key}; the first one that is there names the variant in notes.
    blocks: names of the transformer blocks, in rows by the order they run in: edge blocks are at
        the ends of each row.
    beside: names of blocks that have no ends, such as control blocks.
    outside: layers that every whole model of the family has beside its blocks, or one of several
        between bars, as models without a VAE have others: a shard lacks some.
    together: modules that a model has all of or none, as its variants add them.
    edge_blocks: how many blocks stay 16-bit at each end.
    keeps: layers of the blocks that get more than NVFP4; the first that matches wins.
    full_precision: layers that the preset marks for full-precision matmul; "" for none.
    image: whether it makes images, not videos: a note warns where almost all of it is NVFP4.
    """

    title: str
    keys: tuple[str, ...]
    variants: dict[str, str] = field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    edge_blocks: int = EDGE_BLOCKS
    keeps: tuple[Keep, ...] = ()
    full_precision: str = ""
    image: bool = False

    @property
    def inside(self) -> re.Pattern:
        """Compile a pattern for names inside a block; its groups are the block's name and number.

        Block numbers of more than nine digits are hostile, and match nothing.
        """
        names = [*itertools.chain(*self.blocks), *self.beside]
        return re.compile(rf"({'|'.join(map(re.escape, names))})\.(\d{{1,9}})\.")


# What K-quants of llama.cpp give more bits in diffusion models, by names that families share
# (city96/ComfyUI-GGUF, tools/lcpp.patch).
ATTENTION_V = Keep(
    r"\.(v|v_img|to_v|add_v_proj|v_proj|wv|value)$", EIGHT_BITS, "attention V: Q6_K in a Q5_K_M"
)
ATTENTION_QKV = Keep(
    r"\.((img_|txt_)?attn[._](img_attn_|txt_attn_)?qkv|attention\.qkv|(img|txt)_attn_qkv)$",
    EIGHT_BITS,
    "fused attention QKV: Q6_K in a Q5_K_M",
)
DOWN_PROJECTION = Keep(
    r"\.(ffn\.2|net\.2|feed_forward\.w2|mlp\.layer2|mlp\.down_proj|mlp\.w2|fc2)$",
    EIGHT_BITS,
    "feed-forward down projection: Q6_K in a Q5_K_M",
)
# What --preset smart keeps, for models of unknown families.
ONE_STEP_HIGHER = (ATTENTION_V, ATTENTION_QKV, DOWN_PROJECTION)
# Linear layers that compute shift, scale and gate of a block from the time step.
MODULATION = Keep(
    r"(_mod\.(lin|linear)|\.modulation\.(lin|linear))$",
    EIGHT_BITS,
    "modulation reaches every token: 16-bit in sglang's NVFP4 Flux",
)
TEXT_ATTENTION = Keep(
    r"\.txt_attn[._]",
    EIGHT_BITS,
    "text attention: 16-bit in tritant/ComfyUI_Kitchen_nvfp4_Converter",
)
# For Cosmos-Predict2 and Anima, which is built like it.
ADALN_AND_MLP = (
    Keep(
        r"\.adaln_modulation_",
        "16-bit",
        "modulation reaches every token, and is small: 16-bit in bedovyy/comfy-dit-quantizer",
    ),
    Keep(
        r"\.mlp\.|\.v_proj$",
        EIGHT_BITS,
        "MLP and V: FP8 in bedovyy/comfy-dit-quantizer, noise in NVFP4 "
        "(silveroxides/convert_to_quant#41)",
    ),
)
# What the families that are built like Flux have in common.
FLUX_BLOCKS = (("double_blocks", "single_blocks"),)
FLUX_KEY = r"double_blocks\.0\.img_attn\.norm\.key_norm\.(weight|scale) "
# Families are looked for in this order: Flux's keys are in Flux 2 and Chroma as well, so these come
# first. Keys and shapes are as ComfyUI 0.29 reads them (comfy/model_detection.py). What is outside
# the blocks stays 16-bit, as in every tool that these rows name.
FAMILIES = {
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
            ),
            Keep(r"\.txt_mlp\.", EIGHT_BITS, "text MLP: FP8 in bedovyy/comfy-dit-quantizer"),
            ATTENTION_V,
        ),
        image=True,
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
        image=True,
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
        image=True,
    ),
    "flux": Family(
        title="Flux",
        keys=(FLUX_KEY, r"img_in\.weight "),
        variants={"dev": r"guidance_in\.", "schnell": r"vector_in\."},
        blocks=FLUX_BLOCKS,
        outside=("img_in", "txt_in", "time_in.in_layer", "final_layer.linear"),
        keeps=(MODULATION, TEXT_ATTENTION, ATTENTION_QKV),
        image=True,
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
            ),
            Keep(
                r"\.attention\.",
                EIGHT_BITS,
                "attention: pure noise in NVFP4 (silveroxides/convert_to_quant#14)",
            ),
            DOWN_PROJECTION,
        ),
        image=True,
    ),
    "lumina2": Family(
        title="Lumina 2",
        keys=(r"cap_embedder\.1\.weight ", r"noise_refiner\.0\.attention\.k_norm\.weight "),
        blocks=(("layers",),),
        outside=("x_embedder", "cap_embedder.1", "t_embedder.mlp.0", "final_layer.linear"),
        keeps=(ATTENTION_QKV, DOWN_PROJECTION),
        image=True,
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
    "anima": Family(
        title="Anima",
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"llm_adapter\.blocks\.0\.cross_attn\.q_proj\."),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
        image=True,
    ),
    "cosmos-predict2": Family(
        title="Cosmos-Predict2",
        keys=(r"blocks\.0\.mlp\.layer1\.weight ", r"x_embedder\.proj\.1\.weight "),
        blocks=(("blocks",),),
        outside=("x_embedder.proj.1", "t_embedder.1.linear_1", "final_layer.linear"),
        keeps=ADALN_AND_MLP,
    ),
}
# For a model that is of no family: its blocks may have any of the usual names.
ANY_FAMILY = Family(
    title="unknown",
    keys=(),
    blocks=(("blocks", "transformer_blocks", "double_blocks", "single_blocks", "layers"),),
    edge_blocks=0,
)
# All names of blocks, each once, for reports that group layers by block.
TRANSFORMER_BLOCKS = tuple(
    dict.fromkeys(
        name
        for family in (ANY_FAMILY, *FAMILIES.values())
        for name in (*itertools.chain(*family.blocks), *family.beside)
    )
)


def model_prefixes(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Find the prefixes behind which the names of a file are those of a known family.

    shapes: {name: shape}. Returns them in sorted order, "" for names without prefix; [] where no
    family is recognised.
    """
    header, found = header_text(shapes), set()
    for family in FAMILIES.values():
        first, *others = family.keys
        # Prefixes of more than six parts are hostile.
        matches = re.finditer(rf"^((?:[\w-]+\.){{0,6}}?){first}", header, re.MULTILINE)
        for prefix in {match[1] for match in matches}:
            keys = (rf"^{re.escape(prefix)}{key}" for key in others)
            if all(re.search(key, header, re.MULTILINE) for key in keys):
                found.add(prefix)
    return sorted(found)


def recognise(model: Model) -> tuple[str, str]:
    """Find the model's row in FAMILIES: its name, and the variant's; each "" if there is none.

    Only names and shapes are looked at.
    """
    # One line for each tensor, so that a key may match name and shape together.
    header = header_text({bare(ref.name): ref.shape for ref in model.tensors.values()})

    def there(key: str) -> bool:
        return re.search(rf"^{key}", header, re.MULTILINE) is not None

    for name, family in FAMILIES.items():
        if all(map(there, family.keys)):
            return name, next((kind for kind, key in family.variants.items() if there(key)), "")
    return "", ""


# Presets for models of any family, with their lines in --list-presets.
GENERAL_PRESETS = {
    "auto": "the family that the source is recognised as (default)",
    "smart": "any model by its structure: 16-bit outside the repeated blocks, 8-bit for attention "
    "V and feed-forward down projections, NVFP4 for the rest of the blocks",
    "all": "NVFP4 for every linear layer that ComfyUI does not recognise a model by",
    "none": "nothing but what --include names",
}
# What --preset takes, "auto" first; `--help` lists them in this order.
PRESETS = ("auto", *FAMILIES, *list(GENERAL_PRESETS)[1:])
