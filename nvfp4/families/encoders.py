"""Text encoders that ComfyUI knows, as rows of a table, and how one is recognised.

Rows and sizes stand in the order in which ComfyUI looks for them, and ask what it asks
(comfy/sd.py, detect_te_model of 0.33), so that a file is here what it is there. ComfyUI multiplies
text encoders in 16 bits or more whatever their format: a row decides on memory and error alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nvfp4.families.records import EIGHT_BITS, Family, Keep
from nvfp4.model import ENCODER_PREFIX


class Size(NamedTuple):
    """Tell one size of a text encoder from others, and how ComfyUI loads it.

    title: for people, as "7B".
    has: names of tensors that have to be there, as "NAME", or "NAME [ROWS" for a first dimension.
    lacks: names of tensors that must not be there.
    types: what `type` of the node that loads it may be, the usual one first; () for any.
    tokenizer: the tensor that ComfyUI makes its tokenizer of; "" where it brings its own.
    """

    title: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    tokenizer: str = ""

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Tell whether a file with tensors of these names and shapes is of this size."""
        return all(is_there(asked, shapes) for asked in self.has) and not any(
            name in shapes for name in self.lacks
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder(Family):
    """Describe text encoders of one architecture, as a family does diffusion models.

    keys: unused, as `sizes` tell one.
    sizes: in the order in which they are looked for.
    half_only: whether ComfyUI loads no quantised layers of it; such a row is no preset.
    embeddings: the precision of its token embeddings, EIGHT_BITS or "16-bit".
    uneven: whether blocks differ by design, so that one may lack what most have.
    """

    keys: tuple[str, ...] = ()
    sizes: tuple[Size, ...]
    half_only: bool = False
    embeddings: str = EIGHT_BITS
    edge_blocks: int = 1
    edges: str = EIGHT_BITS
    makes: tuple[str, ...] = ("text",)
    uneven: bool = False


# By byte, these lower the error of the hidden states most: measured on trained encoders
# (benchmarks/encoders.py, docs/encoders.md). Of V and down, llama.cpp's K-quants keep more as well.
V_PROJECTION = Keep(
    r"\.(v_proj|SelfAttention\.v)$", EIGHT_BITS, "attention V: most error by byte, as measured"
)
OUT_PROJECTION = Keep(
    r"\.(o_proj|linear_attn\.out_proj|SelfAttention\.o)$",
    EIGHT_BITS,
    "attention output: much error by byte, as measured",
)
FFN_DOWN = Keep(
    r"\.(down_proj|DenseReluDense\.wo)$",
    EIGHT_BITS,
    "feed-forward down projection: large activations, and Q6_K in a Q5_K_M",
)
LINEAR_QKV = Keep(
    r"\.in_proj_qkv$", EIGHT_BITS, "fused attention QKV: more bits in llama.cpp's K-quants"
)
VISION = Keep(
    r"^(model\.)?(visual|vision_model)\.",
    "16-bit",
    "vision tower: 16-bit in published NVFP4 encoders (6block/MiniMax-H3-Qwen3-VL-NVFP4)",
)
# Gates of a few rows, of linear attention, and what Gemma 4 adds in each block for single tokens.
SMALL_GATES = Keep(
    r"\.(in_proj_[ab]|per_layer_\w+)$", "16-bit", "gates of a few rows: F32 or F16 in GGUFs"
)
LLAMA_KEEPS = (VISION, SMALL_GATES, V_PROJECTION, OUT_PROJECTION, LINEAR_QKV, FFN_DOWN)
# The head makes text of hidden states, and no picture; ComfyUI knows it as a linear layer.
HEAD = Keep(r"(^|\.)lm_head$", EIGHT_BITS, "output layer: Q6_K or more in llama.cpp's K-quants")
# Blocks of language models, in ComfyUI's names without prefix and in those of transformers.
LLAMA_BLOCKS = (("layers",), ("language_model.layers",))
VISION_BLOCKS = ("visual.blocks", "vision_model.encoder.layers")
T5_23 = "encoder.block.23.layer.1.DenseReluDense"
UMT5 = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
# Gemma 4's global attention has keys for values.
LAYER_5_V = "model.layers.5.self_attn.v_proj.weight"
LAYER_0, LAYER_47 = "model.layers.0", "model.layers.47"
QWEN35 = "model.language_model.layers.0.linear_attn.A_log"
QWEN35_NORM = "model.language_model.layers.0.input_layernorm.weight"
QWEN3VL = "model.visual.deepstack_merger_list.0.norm.weight"
QWEN3 = f"{LAYER_0}.self_attn.q_norm.weight"
NORM_0 = f"{LAYER_0}.post_attention_layernorm.weight"
# ComfyUI reads no quantised layers of a language model without this one.
K_0 = f"{LAYER_0}.self_attn.k_proj.weight"
GEMMA = f"{LAYER_0}.post_feedforward_layernorm.weight"
ENCODERS = {
    "clip": TextEncoder(
        title="CLIP",
        known_as=("clip_l", "clip_g"),
        half_only=True,
        blocks=(("text_model.encoder.layers",),),
        sizes=(
            Size("G", ("text_model.encoder.layers.30.mlp.fc1.weight",)),
            Size("H", ("text_model.encoder.layers.22.mlp.fc1.weight",)),
            Size("L", ("text_model.encoder.layers.0.mlp.fc1.weight",)),
            # OpenCLIP's names, whose attention ComfyUI takes apart on loading.
            Size("OpenCLIP", ("transformer.resblocks.0.ln_1.weight",)),
        ),
    ),
    "jina-clip": TextEncoder(
        title="Jina CLIP",
        half_only=True,
        blocks=(("encoder.layers",),),
        sizes=(Size("v2", ("model.encoder.layers.0.mixer.Wqkv.weight",)),),
    ),
    "t5": TextEncoder(
        title="T5",
        known_as=("umt5_xxl_fp16", "t5xxl_fp16", "t5-v1_1-xxl", "Wan", "Flux.1", "Chroma"),
        blocks=(("encoder.block",),),
        keeps=(V_PROJECTION, OUT_PROJECTION, FFN_DOWN),
        sizes=(
            Size("umt5-xxl", (f"{T5_23}.wi_1.weight [10240", UMT5), (), ("wan",), "spiece_model"),
            Size(
                "xxl",
                (f"{T5_23}.wi_1.weight [10240",),
                types=("flux", "sd3", "chroma", "ltxv", "mochi", "pixart", "cogvideox", "hidream"),
            ),
            Size("xxl 1.0", (f"{T5_23}.wi.weight",), (f"{T5_23}.wi_1.weight",), ("cosmos",)),
        ),
    ),
    "t5-small": TextEncoder(
        title="T5",
        half_only=True,
        blocks=(("encoder.block",),),
        sizes=(
            Size("XL", (f"{T5_23}.wi_1.weight [5120",)),
            Size("byT5 small", ("encoder.block.0.layer.0.SelfAttention.k.weight [384",)),
            Size("base", ("encoder.block.0.layer.0.SelfAttention.k.weight",)),
        ),
    ),
    "t5-gemma": TextEncoder(
        title="T5-Gemma",
        half_only=True,
        blocks=(("encoder.layers",),),
        sizes=(Size("B", ("model.encoder.layers.0.pre_self_attn_layernorm.weight",)),),
    ),
    "gemma4": TextEncoder(
        title="Gemma 4",
        known_as=("gemma4",),
        blocks=LLAMA_BLOCKS,
        beside=VISION_BLOCKS,
        keeps=LLAMA_KEEPS,
        uneven=True,
        sizes=tuple(
            Size(title, (GEMMA, has), lacks, ("ltxv",), "tokenizer_json")
            for title, has, lacks in (
                ("31B", "model.layers.59.self_attn.q_norm.weight", ()),
                ("12B", f"{LAYER_47}.self_attn.q_norm.weight",
                 (LAYER_5_V,)),
                ("E4B", "model.layers.41.self_attn.q_norm.weight",
                 (f"{LAYER_47}.self_attn.q_norm.weight",)),
                ("E2B", "model.layers.34.self_attn.q_norm.weight",
                 ("model.layers.41.self_attn.q_norm.weight",)),
            )
        ),
    ),
    "gemma3": TextEncoder(
        title="Gemma 3",
        known_as=("gemma_3_12B", "gemma_3_4b", "LTX-2", "NewBie"),
        blocks=LLAMA_BLOCKS,
        beside=VISION_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(
            Size("12B", (GEMMA, f"{LAYER_47}.self_attn.q_norm.weight", LAYER_5_V), (), ("ltxv",),
                 "spiece_model"),
            Size("4B", (GEMMA, QWEN3), (), ("lumina2",), "spiece_model"),
        ),
    ),
    "gemma2": TextEncoder(
        title="Gemma 2",
        known_as=("gemma_2_2b", "Lumina 2", "PixelDiT"),
        blocks=LLAMA_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(Size("2B", (GEMMA,), (), ("lumina2", "pixeldit"), "spiece_model"),),
    ),
    "gpt-oss": TextEncoder(
        title="GPT-OSS",
        known_as=("gpt_oss_20b", "Lens"),
        blocks=(("layers",),),
        keeps=LLAMA_KEEPS,
        sizes=(
            Size("20B", ("layers.0.self_attn.sinks", "layers.0.mlp.experts.gate_up_proj.weight"),
                 (), ("lens",), "tokenizer_json"),
        ),
    ),
    "qwen2.5-vl": TextEncoder(
        title="Qwen2.5-VL",
        known_as=("qwen_2.5_vl_7b", "Qwen-Image", "Hunyuan Image", "Kandinsky 5", "OmniGen2"),
        blocks=LLAMA_BLOCKS,
        beside=VISION_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(
            Size("3B", (f"{LAYER_0}.self_attn.k_proj.bias [256",), types=("omnigen2",)),
            Size("7B", (f"{LAYER_0}.self_attn.k_proj.bias [512",),
                 types=("qwen_image", "hunyuan_image", "longcat_image")),
        ),
    ),
    "qwen3.5": TextEncoder(
        title="Qwen3.5",
        known_as=("qwen3.5",),
        blocks=LLAMA_BLOCKS,
        beside=VISION_BLOCKS,
        keeps=LLAMA_KEEPS,
        uneven=True,
        sizes=tuple(
            Size(title, (QWEN35, f"{QWEN35_NORM}{rows}"))
            for title, rows in (("0.8B", " [1024"), ("4B", " [2560"), ("9B", " [4096"),
                                ("27B", " [5120"), ("2B", ""))
        ),
    ),
    "qwen3-vl": TextEncoder(
        title="Qwen3-VL",
        known_as=("qwen3vl", "Ideogram 4", "Krea 2", "MiniMax H3"),
        blocks=LLAMA_BLOCKS,
        beside=VISION_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(
            Size("4B", (QWEN3VL, "model.visual.merger.linear_fc2.weight [2560"),
                 types=("krea2", "mage", "flux2")),
            Size("8B", (QWEN3VL,), types=("ideogram4", "boogu", "joyimage", "flux2")),
            Size("32B", (QWEN3VL.removeprefix("model."), "model.layers.49.self_attn.q_proj.weight"),
                 types=("minimax",)),
        ),
    ),
    "qwen3": TextEncoder(
        title="Qwen3",
        known_as=("qwen_3_4b", "qwen_3_8b", "Z-Image", "Flux.2 klein", "Anima", "Ovis-Image"),
        blocks=LLAMA_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(
            Size("4B", (QWEN3, K_0, f"{NORM_0} [2560"), types=("lumina2", "flux2")),
            Size("2B", (QWEN3, K_0, f"{NORM_0} [2048"), types=("ovis",)),
            Size("8B", (QWEN3, K_0, f"{NORM_0} [4096"), types=("flux2", "ideogram4")),
            Size("0.6B", (QWEN3, K_0, f"{NORM_0} [1024")),
        ),
    ),
    "mistral-small": TextEncoder(
        title="Mistral Small 3",
        known_as=("mistral_3_small_flux2", "Flux.2 dev"),
        blocks=LLAMA_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(
            Size("24B", (K_0, f"{NORM_0} [5120", NORM_0.replace(".0.", ".39.")), (QWEN3,),
                 ("flux2",), "tekken_model"),
            Size("24B, 30 of its 40 blocks", (K_0, f"{NORM_0} [5120",), (QWEN3,), ("flux2",),
                 "tekken_model"),
        ),
    ),
    "ministral": TextEncoder(
        title="Ministral 3",
        known_as=("ministral_3_3b", "ERNIE-Image"),
        blocks=LLAMA_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(Size("3B", (K_0, f"{NORM_0} [3072",), (QWEN3,), (), "tekken_model"),),
    ),
    "llama3": TextEncoder(
        title="Llama 3",
        known_as=("llama_3.1_8b_instruct", "llava_llama3", "Hunyuan Video", "HiDream"),
        blocks=LLAMA_BLOCKS,
        keeps=LLAMA_KEEPS,
        sizes=(Size("8B", (K_0, f"{NORM_0} [4096",), (QWEN3,), ("hidream", "hunyuan_video")),),
    ),
}  # fmt: skip
# Names of transformers' files that ComfyUI has otherwise: {prefix: ComfyUI's}. Nothing but prefixes
# differs. A file's names as they are go first, as ComfyUI renames those of some encoders itself.
RENAMED_PREFIXES = (
    # Qwen2.5-VL and others as transformers 4.52 and newer save them.
    {"model.language_model.": "model.", "model.visual.": "visual.",
     "model.vision_tower.vision_model.": "vision_model.",
     "model.multi_modal_projector.": "multi_modal_projector."},
    # Gemma 3 and Mistral Small 3.1 as older ones do.
    {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.",
     "vision_tower.vision_model.": "vision_model."},
    # A language model that was saved without its head.
    {"layers.": "model.layers.", "embed_tokens.": "model.embed_tokens.", "norm.": "model.norm."},
)  # fmt: skip
# ComfyUI gives `lm_head.weight` this name when it loads a file, and leaves its scales behind.
HEAD_PREFIX, COMFYUI_HEAD = "lm_head.", "model.lm_head."
# Text encoders of which ComfyUI reads quantised layers in a checkpoint, by their part of the prefix
# (comfy/supported_models.py, clip_target), and families whose checkpoints are an exception.
CHECKPOINT_ENCODERS = {
    "t5xxl", "umt5xxl", "llama", "gemma2_2b", "qwen25_3b", "qwen25_7b", "qwen3_06b", "qwen3_2b",
    "qwen3_4b", "qwen3_8b", "qwen3vl", "qwen3vl_4b", "qwen3vl_8b", "qwen3vl_32b", "ministral3_3b",
}  # fmt: skip
UNREAD_ENCODERS = {
    "pixart": {"t5xxl"}, "cogvideox": {"t5xxl"}, "ace-step": {"t5xxl"},
    "ace-step-1.5": {"qwen3_06b"},
}  # fmt: skip


def is_there(asked: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether a tensor is there that a Size asks for, of so many rows if it says."""
    name, _, rows = asked.partition(" [")
    return name in shapes and (not rows or (shapes[name] or (0,))[0] == int(rows))


def encoder_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """Find the text encoder that ComfyUI takes a file for: a key of ENCODERS, and a size's title.

    shapes: {name: shape} of its tensors. Each is "" for a file that is none.
    """
    for name, row in ENCODERS.items():
        for size in row.sizes:
            if size.fits(shapes):
                return name, size.title
    return "", ""


def encoder_size(name: str, title: str) -> Size:
    """Find the size that `encoder_of` told. Raises KeyError where there is none."""
    return {size.title: size for size in ENCODERS[name].sizes}[title]


def renamed_prefixes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Find which prefixes of a text encoder's names ComfyUI has otherwise: {prefix: ComfyUI's}.

    Returns {} for a file that is none, in any of the known names.
    """
    for prefixes in ({}, *RENAMED_PREFIXES):
        renamed = {with_prefixes(name, prefixes): shape for name, shape in shapes.items()}
        name, _ = encoder_of(renamed)
        if name and not ENCODERS[name].half_only:
            there = any(name.startswith(HEAD_PREFIX) for name in renamed)
            head = {HEAD_PREFIX: COMFYUI_HEAD} if there else {}
            heads = {old: COMFYUI_HEAD for old, new in prefixes.items() if new == HEAD_PREFIX}
            return {**prefixes, **head, **heads}
        if name:
            return {}
    return {}


def with_prefixes(name: str, prefixes: Mapping[str, str]) -> str:
    """Give a name the prefix that stands for its own in {prefix: other}; others stay."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def checkpoint_encoders(
    shapes: Mapping[str, tuple[int, ...]], family: str
) -> tuple[dict[str, str], list[str]]:
    """Find the text encoders of a checkpoint: {prefix: row} of those that ComfyUI reads quantised.

    shapes: {name: shape} of all its tensors; family: of its diffusion model. Returns as well the
    prefixes of those that stay 16-bit, as ComfyUI reads no quantised layers of them.
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if found := ENCODER_PREFIX.match(name):
            parts.setdefault(found[0], {})[name[found.end() :]] = shape
    read = CHECKPOINT_ENCODERS - UNREAD_ENCODERS.get(family, set())
    rows = {prefix: encoder_of(part)[0] for prefix, part in parts.items()}
    rows = {
        prefix: name
        for prefix, name in rows.items()
        if name and not ENCODERS[name].half_only and prefix.split(".")[1] in read
    }
    return rows, sorted(parts.keys() - rows.keys())
