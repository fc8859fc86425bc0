"""Small random text encoders of published ones, which ComfyUI recognises, loads and encodes with.

MAKE, run as `python -c` in the repository with FOLDER and COMFYUI_ROOT in the environment, writes
KIND.safetensors of every kind (or those of KINDS) that the checkout knows into FOLDER, and prints
their names. ENCODE
loads the files of FILES, [[kind, path], ...] as JSON, as Load CLIP does, or as Load Checkpoint
where a model lies beside, and encodes PROMPT with each; its result is [what was logged, formats of
the layers, path of the output], one for each file.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from support.comfyui import PREAMBLE
from support.make_encoders import ENCODER_MODELS, build_encoder, published_name, shapes_of
from support.tiny_encoder import tokenizer
from support.tiny_models import values

PROMPT = "a red square moves to the left over a blue sky"
# Sizes that ComfyUI recognises no encoder by, and that every format can pack.
T5 = {"num_layers": 24, "d_model": 256, "d_ff": 256, "d_kv": 64, "num_heads": 4, "vocab_size": 512}
LLAMA = {
    "num_hidden_layers": 3, "intermediate_size": 512, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
CLIP = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4
}  # fmt: skip
NARROW = LLAMA | {"hidden_size": 512}
# ComfyUI knows some sizes by their 48 blocks.
DEEP = {
    "num_hidden_layers": 48, "hidden_size": 256, "intermediate_size": 256, "vocab_size": 512,
    "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TinyEncoder:
    """A small encoder.

    model: a row of ENCODER_MODELS. sizes: arguments of its class, instead of the published ones.
    type: of Load CLIP. key: what ComfyUI's `model_options` calls its configuration by.
    tokenizer: "" where ComfyUI has it; "spiece_model" where the file has it, or the path of
    a class that a stand-in replaces, as its data is no part of every checkout. prepare: changes
    more of ComfyUI.
    """

    model: str
    sizes: dict[str, Any]
    type: str
    key: str
    tokenizer: str = ""
    prepare: Callable[[], None] | None = None


class StandIn:
    """A tokenizer of bytes, which begins with a token of its own, as some of ComfyUI's do."""

    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()

    def __call__(self, text):
        return {"input_ids": [1, *(3 + byte for byte in text.encode())]}

    def get_vocab(self):
        return {}


def wide_last_block():
    """Give the last of a T5's 24 blocks the width that ComfyUI knows an XXL by."""
    from comfy.text_encoders import t5

    if t5.T5Block.__name__ == "wide_block":
        return
    numbers, block = itertools.count(1), t5.T5Block

    def wide_block(model_dim, inner_dim, ff_dim, *rest, **more):
        last = next(numbers) % 24 == 0
        return block(model_dim, inner_dim, 10240 if last else ff_dim, *rest, **more)

    t5.T5Block = wide_block


def beside_small_clip():
    """Keep the sizes of a small CLIP-L, which ComfyUI replaces by how long its prompts may be."""
    from comfy.text_encoders import long_clipl

    wide_last_block()
    long_clipl.model_options_long_clip = lambda _, tokenizer, options: (tokenizer, options)


def small_vision():
    """Make vision towers small, whose sizes no configuration has."""
    from functools import partial

    from comfy.text_encoders import llama, qwen3vl, qwen35, qwen_vl

    small = {"hidden_size": 256, "num_heads": 4, "intermediate_size": 512}
    qwen35.QWEN35_VISION_DEFAULTS |= small | {"depth": 1}
    qwen3vl.QWEN3VL_VISION_COMMON["num_heads"] = 4
    qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] |= {
        "depth": 1, "hidden_size": 256, "intermediate_size": 512, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    llama.GEMMA3_VISION_CONFIG |= {
        "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
        "num_hidden_layers": 1,
    }  # fmt: skip
    tower = qwen_vl.Qwen2VLVisionTransformer
    if not isinstance(tower, partial):
        qwen_vl.Qwen2VLVisionTransformer = partial(made_small, tower, small | {"num_layers": 1})


def made_small(kind, small, **given):
    return kind(**given | small)


def first_layers():
    """Take what Flux 2 takes of layers 10, 20 and 30 from the first ones, without a tokenizer."""
    from comfy.text_encoders import flux

    made = flux.Mistral3_24BModel.__init__
    made.__defaults__ = tuple([0, 1, 2] if x == [10, 20, 30] else x for x in made.__defaults__)
    flux.load_mistral_tokenizer = lambda _: {}


def all_three_layers():
    """Take what Lens takes of four of GPT-OSS's layers from the first ones."""
    from comfy.text_encoders import gpt_oss

    gpt_oss.LENS_SELECTED_LAYERS = (0, 1, 2)


TINY_ENCODERS = {
    "t5": TinyEncoder("t5_xxl", T5, "MOCHI", "t5xxl", prepare=wide_last_block),
    "umt5": TinyEncoder("umt5_xxl", T5, "WAN", "umt5xxl", "spiece_model", prepare=wide_last_block),
    "qwen3_06b": TinyEncoder("qwen3_06b", LLAMA, "STABLE_DIFFUSION", "qwen3_06b"),
    "qwen3_4b": TinyEncoder("qwen3_4b", LLAMA, "LUMINA2", "qwen3_4b"),
    "qwen25_vl": TinyEncoder(
        "qwen25_vl_7b", NARROW | {"num_key_value_heads": 4}, "QWEN_IMAGE", "qwen25_7b",
        prepare=small_vision,
    ),
    "qwen3_vl": TinyEncoder(
        "qwen3_vl_8b", NARROW, "STABLE_DIFFUSION", "qwen3vl_8b", prepare=small_vision
    ),
    "gemma2": TinyEncoder("gemma2_2b", NARROW, "LUMINA2", "gemma2_2b", "spiece_model"),
    "gemma3": TinyEncoder("gemma3_4b", NARROW, "LUMINA2", "gemma3_4b", "spiece_model"),
    "gemma3_12b": TinyEncoder(
        "gemma3_12b", DEEP, "LTXV", "", "spiece_model", prepare=small_vision
    ),
    "ministral": TinyEncoder(
        "ministral_3b", LLAMA | {"intermediate_size": 256}, "STABLE_DIFFUSION", "ministral3_3b",
        "comfy.text_encoders.flux.MistralTokenizerClass", prepare=first_layers,
    ),
    "gpt_oss": TinyEncoder(
        "gpt_oss_20b",
        {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4},
        "LENS", "gpt_oss", "comfy.text_encoders.gpt_oss._GptOssRawTokenizer",
        prepare=all_three_layers,
    ),
    "gemma4_12b": TinyEncoder(
        "gemma4_12b", DEEP, "STABLE_DIFFUSION", "gemma4",
        "comfy.text_encoders.gemma4._Gemma4Tokenizer",
    ),
    "mistral": TinyEncoder(
        "mistral_small_24b_flux2",
        LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256},
        "FLUX2", "mistral3_24b", "comfy.text_encoders.flux.MistralTokenizerClass",
        prepare=first_layers,
    ),
    "llama3": TinyEncoder(
        "llama31_8b", LLAMA | {"num_hidden_layers": 2}, "HIDREAM", "llama",
        "comfy.text_encoders.hunyuan_video.LlamaTokenizerFast",
    ),
    "qwen35": TinyEncoder(
        "qwen35_2b",
        NARROW | {"num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3
                  + ["full_attention"]},
        "STABLE_DIFFUSION", "qwen35_2b", "transformers.Qwen2Tokenizer",
        prepare=small_vision,
    ),
}  # fmt: skip


# What dual loaders take beside another encoder, in 16 bits alone: never converted here.
BESIDE = {"clip_l": TinyEncoder("clip_l", CLIP, "STABLE_DIFFUSION", "clip_l")}
# Loaded with one of BESIDE, whose path follows behind a "|".
DUAL = {"flux": TinyEncoder("t5_xxl", T5, "FLUX", "t5xxl", prepare=beside_small_clip)}
EVERY = TINY_ENCODERS | BESIDE | DUAL


def make_tiny_encoder(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a small encoder in bfloat16, with its tokenizer; ComfyUI is imported."""
    import comfy.ops

    tiny = EVERY[kind]
    if tiny.prepare:
        tiny.prepare()
    row, generator = ENCODER_MODELS[tiny.model], torch.Generator().manual_seed(seed)
    made = build_encoder(row, comfy.ops.mixed_precision_ops(), **tiny.sizes)
    shapes = {published_name(row, name): shape for name, shape in shapes_of(made).items()}
    state = {name: values(name, shape, generator) for name, shape in shapes.items()}
    # T5 and Gemma 4 scale no logits: queries are small instead, or attention would jump between
    # tokens. Gemma 4 multiplies what a block gives by a number.
    small, by = ("q_norm.weight", 16) if "gemma4" in kind else ("SelfAttention.q.weight", 8)
    state |= {name: t / by for name, t in state.items() if name.endswith(small)}
    state |= {name: torch.ones_like(t) for name, t in state.items() if "layer_scalar" in name}
    if tiny.tokenizer == "spiece_model":
        state["spiece_model"] = tokenizer(64, bos=-1 if tiny.type == "WAN" else 3)
    return state


COMMON = (
    PREAMBLE
    + """
sys.path.insert(1, os.getcwd())
sys.path.insert(1, os.path.join(os.getcwd(), "tests"))
from support.tiny_encoders import BESIDE, EVERY, TINY_ENCODERS
"""
)
MAKE = (
    COMMON
    + """
from pathlib import Path
from safetensors.torch import save_file
from support.make_encoders import ENCODER_MODELS
from support.tiny_encoders import make_tiny_encoder

made = []
for kind, tiny in (TINY_ENCODERS | BESIDE).items():
    # ComfyUI 0.29 cannot encode with a Gemma 4 12B of this size, unconverted, too.
    if kind == "gemma4_12b" and not hasattr(comfy.text_encoders.gemma4, "RingKV"):
        continue
    if kind not in os.environ.get("KINDS", kind).split(","):
        continue
    if ENCODER_MODELS[tiny.model].published.detected in comfy.sd.TEModel.__members__:
        save_file(make_tiny_encoder(kind), Path(os.environ["FOLDER"]) / f"{kind}.safetensors")
        made += [kind] if kind in TINY_ENCODERS else []
print("RESULT", json.dumps(made))
"""
)
ENCODE = (
    COMMON
    + """
import importlib, io
from collections import Counter
import nodes
from safetensors import safe_open
from support.all_in_one import MODEL
from support.tiny_encoders import PROMPT, StandIn

def folded(module, given, named):
    "The small vocabulary has not all tokens of the tokenizer."
    return (given[0] % module.num_embeddings, *given[1:]), named

def load(kind, path):
    tiny = EVERY[kind]
    if tiny.prepare:
        tiny.prepare()
    if "." in tiny.tokenizer:
        module, _, name = tiny.tokenizer.rpartition(".")
        setattr(importlib.import_module(module), name, StandIn)
    # GPT-OSS has a name of its own for it.
    options = {f"{tiny.key}{end}": dict(tiny.sizes) for end in ("_model_config", "_config")}
    options |= {"clip_l_model_config": dict(BESIDE["clip_l"].sizes)}
    path, *more = path.split("|")
    if any(name.startswith(MODEL) for name in safe_open(path, "pt").keys()):
        clip = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=False, te_model_options=options
        )[1]
    else:
        type = getattr(comfy.sd.CLIPType, tiny.type)
        clip = comfy.sd.load_clip([path, *more], clip_type=type, model_options=options)
    for module in clip.cond_stage_model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 512:
            module.register_forward_pre_hook(folded, with_kwargs=True)
    return clip

def encoded(clip):
    "All numbers of a prompt's conditioning."
    ((main, more),) = nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
    parts = [main, *(value for _, value in sorted(more.items()) if torch.is_tensor(value))]
    return torch.cat([part.double().flatten() for part in parts if part.is_floating_point()])

found, log = [], io.StringIO()
logging.getLogger().addHandler(logging.StreamHandler(log))
logging.getLogger().setLevel(logging.DEBUG)
for kind, path in json.loads(os.environ["FILES"]):
    log.truncate(log.seek(0))
    clip = load(kind, path)
    modules = clip.cond_stage_model.modules()
    formats = Counter(filter(None, (getattr(m, "quant_format", None) for m in modules)))
    told = [line for line in log.getvalue().splitlines() if line.startswith("clip ")]
    with torch.no_grad():
        out = encoded(clip)
    saved = f"{path.partition('|')[0]}.{kind}.pt"
    torch.save(out, saved)
    found.append([told, formats, saved])
print("RESULT", json.dumps(found))
"""
)
