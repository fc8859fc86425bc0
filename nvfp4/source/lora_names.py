"""Know the names that LoRA files have for layers, and for the parts of a change.

Trainers name layers in many ways: as ComfyUI does, as diffusers does, with dots or underscores,
with prefixes. Every name is brought to one spelling, in which the model's names are looked up. To
add a spelling, add a row to SPELLINGS or DIFFUSERS.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from nvfp4.errors import examples
from nvfp4.model import WRAPPERS, TensorRef, bare

# A key may consist of prefixes alone, and each one costs a search: strip at most so many.
MAX_PREFIXES = 10
# Whole keys that some programs write differently: (regular expression, replacement). Wan's
# modulation as LightX2V has it, the processors of XLabs and USO for Flux, and those of old UNets.
KEY_SPELLINGS = (
    (r"\.diff_m$", ".modulation.diff"),
    (r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora1\.", r"\1.img_attn.\2.lora."),
    (r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora2\.", r"\1.txt_attn.\2.lora."),
    (r"(single_blocks\.\d+)\.processor\.qkv_lora\.", r"\1.linear1_qkv.lora."),
    (r"(single_blocks\.\d+)\.processor\.proj_lora\.", r"\1.linear2.lora."),
    (r"\.processor\.", "."),
)
# A LoRA's key is a layer and a part of it; the name of the group that matches is the kind of patch.
# The spellings are those that ComfyUI loads (comfy/weight_adapter, comfy/lora.py); PEFT names the
# adapter, "default" if nobody did, and has a bias beside B.
LORA_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<lora>up|down|mid|A|B)"
    r"(?:(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?\.weight|\.default)?"
    r"|[._]lora_(?P<lora_bias>B)(?:\.(?P<adapter_of_bias>[^.]+))?\.bias"
    r"|\.hada_(?P<loha>w[12]_[ab]|t[12])"
    r"|\.lokr_(?P<lokr>w[12](?:_[ab])?|t2)"
    r"|\.(?:(?P<diff>diff|w_norm)|(?P<bias>diff_b|b_norm)|(?P<set>set_weight))"
    r"|\.(?P<scaling>alpha|dora_scale))"
)
# The groups of LORA_KEY that tell the kind of a patch, of which "scaling" goes with any other one.
LORA_KINDS = ("lora", "loha", "lokr", "diff", "bias", "lora_bias", "set", "scaling")
# What PEFT calls an adapter that nobody named.
UNNAMED_ADAPTER = "default"
# Parts that have several names, by the one that `numeric.lora` knows.
LORA_PARTS = {"A": "down", "B": "up", "w_norm": "diff"}
# What trainers put before a layer's name. In the second line: DiffSynth's and those of wrappers. In
# the third: kohya's, of which Wan Fun has two underscores, OneTrainer's and SimpleTuner's.
LORA_PREFIX = re.compile(
    r"(model\.)?diffusion_model\.|net\.|unet\.|transformer(_[12])?\.|base_model\.model\.|model\."
    r"|pipe\.|dit2?\.|module\."
    r"|lora_unet_+|lora_prior_unet_|lora_transformer_|lycoris_"
)
# What stands before the names of a text encoder's layers: ComfyUI's own, of which OneTrainer and
# others leave out the encoder's name, that of diffusers, and kohya's.
ENCODER_IN_LORA = re.compile(
    r"text_encoders\.([\w-]+\.)??transformer\.|text_encoder(_\d)?\.|lora_te\d?_"
)
# What wrappers put anywhere in a name, also where dots became underscores.
LORA_WRAPPED = re.compile(rf"(?<![^._])({WRAPPERS})[._]")
# How pipelines of two models name the second one: Wan 2.2's for low noise.
SECOND_MODEL = re.compile(r"(.+\.)?(transformer_2|dit2)\.")
# Keys of known kinds that are not merged, by what a note calls them.
NOT_MERGED = {
    "of a text encoder": r"lora_te|text_encoder|clip_|t5xxl",
    "of OFT": r".+\.(oft_|rescale$)",
    "of GLoRA": r".+\.[ab][12]\.weight$",
    "of PEFT's DoRA": r".+\.lora_magnitude_vector",
    "a scalar of LyCORIS": r".+\.scalar$",
    "a new shape of a layer": r".+\.reshape_weight$",
}
# Some layers have one name in the published file and another one in ComfyUI. Rows bring both to
# one: (regular expression, replacement), on names with _ for every dot, as kohya's trainers write.
SPELLINGS = (
    (r"(_mod|modulation)_linear", r"\1_lin"),
    (r"mlp_fc1", "mlp_0"),
    (r"mlp_fc2", "mlp_2"),
    (r"_norm_(q|k)(uery|ey)_norm", r"_\1_norm"),
    (r"(_in|_embedder)_(mlp_0|linear_1)", r"\1_in_layer"),
    (r"(_in|_embedder)_(mlp_2|linear_2)", r"\1_out_layer"),
)
# The blocks of UNets (Stable Diffusion 1 to XL) as diffusers numbers them: by level, then by kind.
UNET_BLOCK = re.compile(r"(down|up)_blocks_(\d)_(resnet|attention|downsampler|upsampler)s_(\d)_")
# Where a block of each kind stands: its place in the native block, and in its level of three blocks
# if that is not its own number.
UNET_PLACES = {"resnet": (0, None), "attention": (1, None), "downsampler": (0, 2),
               "upsampler": (2, 2)}  # fmt: skip
# The layers of all three kinds of Krea 2's blocks, as the last part of a row of DIFFUSERS.
KREA2_BLOCK = {
    r"attn_to_([qkv])": r"attn_w\2",
    "attn_to_gate": "attn_gate",
    "attn_to_out(_0)?": "attn_wo",
    r"ff_(gate|up|down)": r"mlp_\2",
}
# The layers of a UNet's blocks; old LoRAs have an attention's last layer without its number.
UNET_LAYERS = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
    "conv": "op",
    r"(?P<same>.+_to_out)": r"\g<same>_0",
    r"(?P<same>.+)": r"\g<same>",
}
# How diffusers names the layers of a model, in the same form: diffusers' block, the native block,
# {diffusers' layer: native layer}. A group named `rows` is a part of a fused layer, see FUSED_ROWS,
# and one named `kv` a part of one that has no q. One named `swapped` has scale and shift in the
# other order, one named `swapped_alone` only where there is nothing but these two.
DIFFUSERS = (
    # Flux and Hunyuan Video.
    (r"transformer_blocks_(\d+)_", r"double_blocks_\1_", {
        r"attn_to_(?P<rows>[qkv])": "img_attn_qkv",
        r"attn_add_(?P<rows>[qkv])_proj": "txt_attn_qkv",
        "attn_to_out_0": "img_attn_proj",
        "attn_to_add_out": "txt_attn_proj",
        "norm1_linear": "img_mod_lin",
        "norm1_context_linear": "txt_mod_lin",
        "ff_(net_0_proj|linear_in)": "img_mlp_0",
        "ff_(net_2|linear_out)": "img_mlp_2",
        "ff_context_(net_0_proj|linear_in)": "txt_mlp_0",
        "ff_context_(net_2|linear_out)": "txt_mlp_2",
        r"attn_norm_([qk])": r"img_attn_\2_norm",
        r"attn_norm_added_([qk])": r"txt_attn_\2_norm",
    }),
    (r"single_transformer_blocks_(\d+)_", r"single_blocks_\1_", {
        r"attn_to_(?P<rows>[qkv])": "linear1",
        r"(?P<rows>proj_mlp)": "linear1",
        # Flux 2, which has the layer fused already.
        "attn_to_qkv_mlp_proj": "linear1",
        "proj_out|attn_to_out": "linear2",
        "norm_linear": "modulation_lin",
        r"attn_norm_([qk])": r"\2_norm",
    }),
    (r"single_blocks_(\d+)_", r"single_blocks_\1_", {r"linear1_(?P<rows>qkv)": "linear1"}),
    ("", "", {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        r"time_text_embed_timestep_embedder_(\w+)": r"time_in_\1",
        r"time_text_embed_text_embedder_(\w+)": r"vector_in_\1",
        r"time_text_embed_guidance_embedder_(\w+)": r"guidance_in_\1",
        "proj_out": "final_layer_linear",
        "norm_out_(?P<swapped>linear)": "final_layer_adaLN_modulation_1",
        # Z-Image.
        "all_x_embedder_2-1": "x_embedder",
        "all_final_layer_2-1_(.+)": r"final_layer_\1",
    }),
    (r"((?:layers|context_refiner|noise_refiner)_\d+)_attention_", r"\1_attention_", {
        r"to_(?P<rows>[qkv])": "qkv",
        "to_out_0": "out",
        r"norm_([qk])": r"\2_norm",
    }),
    # Wan, in names that ComfyUI does not load LoRAs by.
    (r"(blocks_\d+)_", r"\1_", {
        r"attn1_(?:to_(?=[qkv])|(?=norm_))(\w+)": r"self_attn_\2",
        r"attn2_(?:to_(?=[qkv])|(?=norm_[qk]$))(\w+)": r"cross_attn_\2",
        r"attn2_add_([kv])_proj": r"cross_attn_\2_img",
        "attn1_to_out_0": "self_attn_o",
        "attn2_to_out_0": "cross_attn_o",
        "ffn_net_0_proj": "ffn_0",
        "ffn_net_2": "ffn_2",
    }),
    # Krea 2.
    (r"transformer_blocks_(\d+)_", r"blocks_\1_", KREA2_BLOCK),
    (r"text_fusion_((?:layerwise|refiner)_blocks_\d+)_", r"txtfusion_\1_", KREA2_BLOCK),
    ("", "", {
        "img_in": "first",
        "time_embed_linear_1": "tmlp_0",
        "time_embed_linear_2": "tmlp_2",
        "time_mod_proj": "tproj_1",
        "txt_in_in_layer": "txtmlp_1",
        "txt_in_out_layer": "txtmlp_3",
        "text_fusion_projector": "txtfusion_projector",
        "final_layer_linear": "last_linear",
    }),
    # Stable Diffusion 3.
    (r"transformer_blocks_(\d+)_", r"joint_blocks_\1_", {
        r"attn(2?)_to_(?P<rows>[qkv])": r"x_block_attn\2_qkv",
        r"attn_add_(?P<rows>[qkv])_proj": "context_block_attn_qkv",
        r"attn(2?)_to_out_0": r"x_block_attn\2_proj",
        "attn_to_add_out": "context_block_attn_proj",
        r"attn(2?)_norm_([qk])": r"x_block_attn\2_ln_\3",
        r"attn_norm_added_([qk])": r"context_block_attn_ln_\2",
        "norm1_linear": "x_block_adaLN_modulation_1",
        "norm1_context_(?P<swapped_alone>linear)": "context_block_adaLN_modulation_1",
        "ff_net_0_proj": "x_block_mlp_0",
        "ff_net_2": "x_block_mlp_2",
        "ff_context_net_0_proj": "context_block_mlp_0",
        "ff_context_net_2": "context_block_mlp_2",
    }),
    ("", "", {
        "pos_embed_proj": "x_embedder_proj",
        r"time_text_embed_timestep_embedder_(\w+)": r"t_embedder_\1",
        r"time_text_embed_text_embedder_(\w+)": r"y_embedder_\1",
    }),
    # AuraFlow.
    (r"joint_transformer_blocks_(\d+)_", r"double_layers_\1_", {
        r"attn_to_([qkv])": r"attn_w2\2",
        r"attn_add_([qkv])_proj": r"attn_w1\2",
        "attn_to_out_0": "attn_w2o",
        "attn_to_add_out": "attn_w1o",
        r"ff_linear_([12])": r"mlpX_c_fc\2",
        "ff_out_projection": "mlpX_c_proj",
        r"ff_context_linear_([12])": r"mlpC_c_fc\2",
        "ff_context_out_projection": "mlpC_c_proj",
        "norm1_linear": "modX_1",
        "norm1_context_linear": "modC_1",
    }),
    (r"single_transformer_blocks_(\d+)_", r"single_layers_\1_", {
        r"attn_to_([qkv])": r"attn_w1\2",
        "attn_to_out_0": "attn_w1o",
        r"ff_linear_([12])": r"mlp_c_fc\2",
        "ff_out_projection": "mlp_c_proj",
        "norm1_linear": "modCX_1",
    }),
    ("", "", {
        "context_embedder": "cond_seq_linear",
        "pos_embed_proj": "init_x_linear",
        "time_step_proj_linear_1": "t_embedder_in_layer",
        "time_step_proj_linear_2": "t_embedder_out_layer",
        "proj_out": "final_linear",
        "norm_out_(?P<swapped>linear)": "modF_1",
    }),
    # PixArt.
    (r"transformer_blocks_(\d+)_", r"blocks_\1_", {
        r"attn1_to_(?P<rows>[qkv])": "attn_qkv",
        "attn1_to_out_0": "attn_proj",
        "attn2_to_q": "cross_attn_q_linear",
        r"attn2_to_(?P<kv>[kv])": "cross_attn_kv_linear",
        "attn2_to_out_0": "cross_attn_proj",
        "ff_net_0_proj": "mlp_0",
        "ff_net_2": "mlp_2",
    }),
    ("", "", {
        "adaln_single_linear": "t_block_1",
        r"adaln_single_emb_timestep_embedder_(\w+)": r"t_embedder_\1",
        r"adaln_single_emb_resolution_embedder_(\w+)": r"csize_embedder_\1",
        r"adaln_single_emb_aspect_ratio_embedder_(\w+)": r"ar_embedder_\1",
        r"caption_projection_linear_([12])": r"y_embedder_y_proj_fc\1",
    }),
    # ACE-Step 1.5, whose LoRAs are trained on the decoder alone.
    ("", "decoder_", {
        r"(?P<same>(?:layers|proj_in|(?:proj|norm)_out|time_embed|condition_embedder).*)":
            r"\g<same>",
    }),
    # UNets, with blocks that `canonical` has renumbered.
    (r"((?:in|out)put_blocks_\d+_\d)_", r"\1_", UNET_LAYERS),
    ("mid_block_resnets_0_", "middle_block_0_", UNET_LAYERS),
    ("mid_block_resnets_1_", "middle_block_2_", UNET_LAYERS),
    ("mid_block_attentions_0_", "middle_block_1_", UNET_LAYERS),
    # Without attention, the upsampler is one place further to the front.
    (r"(output_blocks_\d+)_2_", r"\1_1_", {"conv": "conv"}),
    ("", "", {
        "conv_in": "input_blocks_0_0",
        "conv_norm_out": "out_0",
        "conv_out": "out_2",
        "time_embedding_linear_1": "time_embed_0",
        "time_embedding_linear_2": "time_embed_2",
        "(?:add|class)_embedding_linear_1": "label_emb_0_0",
        "(?:add|class)_embedding_linear_2": "label_emb_0_2",
    }),
)  # fmt: skip
# The rows of DIFFUSERS, compiled: (a whole name's regular expression, its native name).
NATIVE_NAMES = [
    (re.compile(block + f"(?:{layer})"), native_block + native)
    for block, native_block, layers in DIFFUSERS
    for layer, native in layers.items()
]
# Where a part begins and ends among a fused layer's rows, in multiples of its columns. Flux's
# `linear1` has q, k, v and an MLP of four times the width.
FUSED_ROWS = {"q": (0, 1), "k": (1, 2), "v": (2, 3), "qkv": (0, 3), "proj_mlp": (3, 7)}


def parse_key(key: str) -> re.Match | None:
    """Match a key of a LoRA file with LORA_KEY, spelt as most programs do; None if it is none."""
    for spelling, other in KEY_SPELLINGS:
        key = re.sub(spelling, other, key)
    return LORA_KEY.fullmatch(key)


def canonical(name: str) -> str:
    """Bring a layer's name to the one spelling in which models and LoRA files are compared.

    Dots become underscores, as kohya's names cannot be brought back to dots, and then the rows of
    SPELLINGS are applied in turn.
    """
    name = UNET_BLOCK.sub(unet_block, name.replace(".", "_"))
    for spelling, other in SPELLINGS:
        name = re.sub(f"{spelling}(?=(_bias)?$)", other, name)
    return name


def unet_block(match: re.Match) -> str:
    """Number a UNet's block as the model's file does: input and output blocks, three to a level.

    match: of UNET_BLOCK. The first input block, 0, is a convolution of its own.
    """
    way, level, kind, index = match.groups()
    place, last = UNET_PLACES[kind]
    number = 3 * int(level) + (int(index) if last is None else last)
    return (
        f"input_blocks_{number + 1}_{place}_"
        if way == "down"
        else f"output_blocks_{number}_{place}_"
    )


def layer_names(tensors: Collection[str]) -> dict[str, str]:
    """Return {canonical name: tensor} of a model, for `locate`: layers and other tensors.

    Norms of Flux are named `scale` where others are named `weight`; both go by the norm's own name,
    and the first also by its whole one.
    """
    whole = {canonical(bare(name)): name for name in tensors if not name.endswith(".weight")}
    return whole | {canonical(re.sub(r"\.(weight|scale)$", "", bare(n))): n for n in tensors}


def plain_layer(layer: str) -> str:
    """Strip all prefixes and wrappers from a layer's name in a LoRA file, as PEFT names modules."""
    layer = LORA_WRAPPED.sub("", layer)
    for _ in range(MAX_PREFIXES):
        layer = layer[match.end() :] if (match := LORA_PREFIX.match(layer)) else layer
    return layer


def encoder_layers(layers: Collection[str]) -> dict[str, str]:
    """Find what of a LoRA is for a text encoder that is converted: {layer: name without prefix}.

    layers: as the LoRA's keys have them. A LoRA that names no encoder is all for the encoder.
    """
    found = {layer: match for layer in layers if (match := ENCODER_IN_LORA.match(layer))}
    return {layer: layer[match.end() :] for layer, match in found.items()} or {
        layer: layer for layer in layers
    }


def locate(layer: str, names: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """Find the model's tensor that a LoRA's layer is, and which part of it.

    layer: as the LoRA's key has it. names: {canonical name: tensor} of the model. The name is tried
    as it is and as one of diffusers, then again without its first prefix, and so on. Returns the
    tensor's name and the groups of the row of DIFFUSERS that matched, or None.
    """
    layer = LORA_WRAPPED.sub("", layer)
    for _ in range(MAX_PREFIXES):
        name = canonical(layer)
        if name in names:
            return names[name], {}
        for pattern, native in NATIVE_NAMES:
            match = pattern.fullmatch(name)
            if match and (native := match.expand(native)) in names:
                return names[native], match.groupdict()
        # Some trainers put several prefixes one before another.
        if not (prefix := LORA_PREFIX.match(layer)):
            break
        layer = layer[prefix.end() :]
    return None


def rows_of(found: dict[str, str], target: TensorRef) -> slice:
    """Find the rows of a fused layer that are its q, k, v or MLP.

    found: the groups of a row of DIFFUSERS, which tell the part; without one, all rows are meant.
    target: the fused tensor [N, K], whose columns tell the width that its parts are multiples of.
    """
    # Without q, k and v lie where q and k do otherwise.
    part = found.get("rows") or {"k": "q", "v": "k"}.get(found.get("kv"))
    if part is None:
        return slice(None)
    begin, end = FUSED_ROWS[part]
    return slice(begin * target.shape[-1], end * target.shape[-1])


def is_swapped(found: dict[str, str], target: TensorRef) -> bool:
    """Tell whether diffusers has scale and shift of a tensor in the other order, see DIFFUSERS."""
    return "swapped" in found or (
        "swapped_alone" in found and target.shape[0] == 2 * target.shape[-1]
    )


def describe_unmatched(keys: list[str]) -> str:
    """Tell how many keys match nothing, what they are where that is known, and the first few."""
    # Known kinds are counted from the beginning of a key, prefixes not stripped.
    kinds = {what: sum(bool(re.match(row, k)) for k in keys) for what, row in NOT_MERGED.items()}
    told = "".join(f", {count} {what}" for what, count in kinds.items() if count)
    return f"{len(keys)} keys match no tensor of the model{told}: {examples(keys)}"
