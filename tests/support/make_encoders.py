"""Writes the tensor names and shapes of published text encoders, as ComfyUI has them.

usage: COMFYUI_ROOT=<checkout> python tests/support/make_encoders.py [NAME ...]

Each is built on the meta device by ComfyUI's own class, and renamed as its published file names it.
A file tests/families/encoders/NAME.txt results, and ComfyUI's detect_te_model must find it.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.make_families import Shapes, class_of, collapse, import_comfyui, read_headers
from support.paths import FAMILIES
from support.published import CLASS, Published

ENCODERS = FAMILIES / "encoders"
# Names of Hugging Face's files that ComfyUI replaces on loading: {in ComfyUI's class: in the file}.
LM_HEAD = {"model.lm_head.": "lm_head."}
VISUAL = {**LM_HEAD, "model.": "model.language_model.", "visual.": "model.visual."}
# What lies in a published file besides. Tokenizers are bytes: Flux 2's size is the published one,
# others are about as large as such files are. `lm_head` gives logits, which encoding never uses.
SPIECE = {"spiece_model": (4_500_000,)}
TEKKEN = {"tekken_model": (19_399_895,)}
TOKENIZER = {"tokenizer_json": (32_000_000,)}
TOKENIZERS = SPIECE.keys() | TEKKEN.keys() | TOKENIZER.keys()
EMBED_TOKENS = {"encoder.embed_tokens.weight": (32128, 4096)}
NOTHING: Mapping = MappingProxyType({})


class Encoder(NamedTuple):
    """A published text encoder.

    published: what is said of diffusion models, too; its path is in comfy, its arguments may be a
    JSON file of ComfyUI's, and `detected` is a member of TEModel. names: what the published file
    calls otherwise. besides: what it has that the class has not. sets: attributes of the class that
    tell sizes apart.
    """

    published: Published
    names: Mapping[str, str] = NOTHING
    besides: Mapping[str, tuple[int, ...]] = NOTHING
    sets: Mapping[str, str] = NOTHING


def t5(title: str, config: str, detected: str, recognised: str, **more: object) -> Encoder:
    """A T5 of one of ComfyUI's JSON files."""
    path = f"text_encoders/{config}.json"
    return encoder(title, "text_encoders.t5.T5", path, detected, recognised, **more)


def llama(title: str, name: str, detected: str, recognised: str, **more: object) -> Encoder:
    """An encoder of a class in comfy.text_encoders.llama."""
    path = f"text_encoders.llama.{name}"
    return encoder(title, path, {}, detected, recognised, names=LM_HEAD, **more)


def qwen(title: str, path: str, kind: str, detected: str, **more: object) -> Encoder:
    """A Qwen3-VL or Qwen3.5, whose class has its size as an attribute."""
    name, _, size = title.partition(" ")
    more = {"names": VISUAL, "besides_from": HF_NAMES, "sets": {"model_type": kind}} | more
    return encoder(title, path, {}, detected, f"{name} ({size})", **more)


def encoder(
    *facts: object, besides_from: str = "", comfyui: str = "0.29", **more: Mapping
) -> Encoder:
    """An encoder of any class. facts: the first of Published.

    besides_from: where `names` and `besides` are from; more: fields of Encoder.
    """
    source = f"{CLASS} ({besides_from})" if besides_from else CLASS
    return Encoder(Published(*facts, comfyui=comfyui, source=source), **more)


T5_HEADER = "and the header of t5xxl_fp16.safetensors, as InvokeAI's tests record it"
MISTRAL_HEADER = (
    "and the header of mistral_3_small_flux2_fp8.safetensors, as InvokeAI's tests record it"
)
HF_NAMES = "names as transformers writes them, which ComfyUI renames"
# Of a tensor with a tokenizer ComfyUI's loader tells, which takes it from the file.
IN_FILE = "and its loader"
WITH_SPIECE = {"besides": SPIECE, "besides_from": IN_FILE}
WITH_TEKKEN = {"besides": TEKKEN, "besides_from": IN_FILE}
WITH_TOKENIZER = {"besides": TOKENIZER, "besides_from": IN_FILE}
QWEN3_VL, QWEN35 = "text_encoders.qwen3vl.Qwen3VL", "text_encoders.qwen35.Qwen35"
CLIP = "clip_model.CLIPTextModel"

ENCODER_MODELS = {
    "t5_xxl": t5(
        "T5-v1.1 XXL", "t5_config_xxl", "T5_XXL", "T5 (xxl)", besides=EMBED_TOKENS,
        besides_from=T5_HEADER,
    ),
    "umt5_xxl": t5("UMT5 XXL", "umt5_config_xxl", "T5_XXL", "T5 (umt5-xxl)", **WITH_SPIECE),
    "t5_xxl_old": t5("T5 11B", "t5_old_config_xxl", "T5_XXL_OLD", "T5 (xxl 1.0)"),
    "t5_xl_pile": t5("Pile-T5 XL", "t5_pile_config_xl", "T5_XL", "T5 (XL)"),
    "mt5_xl": t5("mT5 XL", "mt5_config_xl", "T5_XL", "T5 (XL)"),
    "t5_base": t5("T5 base", "t5_config_base", "T5_BASE", "T5 (base)"),
    "umt5_base": t5("UMT5 base", "umt5_config_base", "T5_BASE", "T5 (base)", **WITH_SPIECE),
    "byt5_small_glyph": t5(
        "ByT5 small, Glyph", "byt5_config_small_glyph", "BYT5_SMALL_GLYPH", "T5 (byT5 small)"
    ),
    "t5gemma": encoder(
        "T5-Gemma B", "text_encoders.sa3.T5GemmaModel", {}, "T5_GEMMA", "T5-Gemma (B)",
        **WITH_SPIECE,
    ),
    "clip_l": encoder("CLIP-L", CLIP, "sd1_clip_config.json", "CLIP_L", "CLIP (L)"),
    "clip_h": encoder("CLIP-H", CLIP, "text_encoders/sd2_clip_config.json", "CLIP_H", "CLIP (H)"),
    "clip_g": encoder("CLIP-G", CLIP, "clip_config_bigg.json", "CLIP_G", "CLIP (G)"),
    "jina_clip_2": encoder(
        "Jina CLIP v2", "text_encoders.jina_clip_2.XLMRobertaModel", {}, "JINA_CLIP_2",
        "Jina CLIP (v2)", **WITH_SPIECE,
    ),
    "llama3_8b": llama(
        "Llama 3 8B", "Llama2", "LLAMA3_8", "Llama 3 (8B)",
        besides={"lm_head.weight": (128320, 4096)}, besides_from=HF_NAMES,
    ),
    "llama31_8b": encoder(
        "Llama 3.1 8B", "text_encoders.llama.Llama2", {"vocab_size": 128256}, "LLAMA3_8",
        "Llama 3 (8B)", names=LM_HEAD, besides={"lm_head.weight": (128256, 4096)},
        besides_from=HF_NAMES,
    ),
    "mistral_small_24b": llama(
        "Mistral Small 3 24B", "Mistral3Small24B", "MISTRAL3_24B", "Mistral Small 3 (24B)",
        **WITH_TEKKEN,
    ),
    "mistral_small_24b_flux2": encoder(
        "Mistral Small 3 24B of Flux 2, 30 layers", "text_encoders.llama.Mistral3Small24B",
        {"num_hidden_layers": 30, "final_norm": False}, "MISTRAL3_24B_PRUNED_FLUX2",
        "Mistral Small 3 (24B, 30 of its 40 blocks)", besides=TEKKEN, besides_from=MISTRAL_HEADER,
    ),
    "ministral_3b": llama(
        "Ministral 3 3B", "Ministral3_3B", "MINISTRAL_3_3B", "Ministral 3 (3B)", **WITH_TEKKEN
    ),
    "qwen25_3b": llama("Qwen2.5-VL 3B", "Qwen25_3B", "QWEN25_3B", "Qwen2.5-VL (3B)"),
    "qwen25_vl_7b": llama(
        "Qwen2.5-VL 7B", "Qwen25_7BVLI", "QWEN25_7B", "Qwen2.5-VL (7B)",
        besides={"lm_head.weight": (152064, 3584)}, besides_from=HF_NAMES,
    ),
    "qwen3_06b": llama("Qwen3 0.6B", "Qwen3_06B", "QWEN3_06B", "Qwen3 (0.6B)"),
    "qwen3_06b_ace15": llama(
        "Qwen3 0.6B of ACE-Step 1.5", "Qwen3_06B_ACE15", "QWEN3_06B", "Qwen3 (0.6B)"
    ),
    "qwen3_17b_ace15": llama(
        "Qwen3 1.7B of ACE-Step 1.5", "Qwen3_2B_ACE15_lm", "QWEN3_2B", "Qwen3 (2B)"
    ),
    "qwen3_4b_ace15": llama(
        "Qwen3 4B of ACE-Step 1.5", "Qwen3_4B_ACE15_lm", "QWEN3_4B", "Qwen3 (4B)"
    ),
    "qwen3_17b_ovis": llama("Qwen3 1.7B of Ovis", "Ovis25_2B", "QWEN3_2B", "Qwen3 (2B)"),
    "qwen3_4b": llama("Qwen3 4B", "Qwen3_4B", "QWEN3_4B", "Qwen3 (4B)"),
    "qwen3_8b": llama("Qwen3 8B", "Qwen3_8B", "QWEN3_8B", "Qwen3 (8B)", besides_from=HF_NAMES),
    "qwen3_vl_4b": qwen("Qwen3-VL 4B", QWEN3_VL, "qwen3vl_4b", "QWEN3VL_4B"),
    "qwen3_vl_8b": qwen("Qwen3-VL 8B", QWEN3_VL, "qwen3vl_8b", "QWEN3VL_8B"),
    "qwen3_vl_32b_minimax": qwen(
        "Qwen3-VL 32B", QWEN3_VL, "qwen3vl_32b", "QWEN3VL_32B", names=NOTHING, comfyui="0.33",
        besides_from="names as its detection asks for them, 50 layers for MiniMax H3",
    ),
    **{
        f"qwen35_{name}": qwen(
            f"Qwen3.5 {size}", QWEN35, f"qwen35_{name}", f"QWEN35_{name.upper()}"
        )
        for name, size in (
            ("08b", "0.8B"), ("2b", "2B"), ("4b", "4B"), ("9b", "9B"), ("27b", "27B")
        )
    },
    "gemma2_2b": llama("Gemma 2 2B", "Gemma2_2B", "GEMMA_2_2B", "Gemma 2 (2B)", **WITH_SPIECE),
    "gemma3_4b": llama("Gemma 3 4B", "Gemma3_4B", "GEMMA_3_4B", "Gemma 3 (4B)", **WITH_SPIECE),
    "gemma3_4b_vision": llama(
        "Gemma 3 4B with vision", "Gemma3_4B_Vision", "GEMMA_3_4B_VISION", "Gemma 3 (4B)",
        **WITH_SPIECE,
    ),
    "gemma3_12b": llama(
        "Gemma 3 12B", "Gemma3_12B", "GEMMA_3_12B", "Gemma 3 (12B)", **WITH_SPIECE
    ),
    **{
        f"gemma4_{size.lower()}": encoder(
            f"Gemma 4 {size}", f"text_encoders.gemma4.Gemma4_{size}", {}, f"GEMMA_4_{size}",
            f"Gemma 4 ({size})", **WITH_TOKENIZER,
        )
        for size in ("E2B", "E4B", "12B", "31B")
    },
    "gpt_oss_20b": encoder(
        "GPT-OSS 20B", "text_encoders.gpt_oss.GptOssModel", {}, "GPT_OSS_20B", "GPT-OSS (20B)",
        **WITH_TOKENIZER,
    ),
}  # fmt: skip


def arguments_of(row: Encoder) -> dict:
    """The configuration of an encoder's class, of ComfyUI's own file where it has one."""
    import comfy

    arguments = row.published.arguments
    if isinstance(arguments, dict):
        return arguments
    return json.loads((Path(comfy.__path__[0]) / arguments).read_text(encoding="utf-8"))


def build_encoder(row: Encoder, operations: object, **changed: object) -> object:
    """The module that ComfyUI makes of an encoder, on the meta device; `changed` are arguments."""
    import torch
    from comfy.text_encoders.gpt_oss import GptOss20BConfig

    kind, arguments = class_of(row.published.path), arguments_of(row) | changed
    if row.sets:
        kind = type(kind.__name__, (kind,), dict(row.sets))
    place = {"dtype": torch.bfloat16, "device": "meta"}
    if kind.__name__ == "GptOssModel":
        return kind(GptOss20BConfig(**arguments), ops=operations, **place)
    return kind(arguments, operations=operations, **place)


def published_name(row: Encoder, name: str) -> str:
    """The name in the published file of a tensor of ComfyUI's class."""
    start = next((start for start in row.names if name.startswith(start)), "")
    return row.names[start] + name.removeprefix(start) if start else name


def shapes_of(model: object) -> Shapes:
    """{name: shape} of all that a model loads; quantised linear layers have no weight before."""
    found = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        lasting = module._buffers.keys() - module._non_persistent_buffers_set
        found |= {dot + name: tuple(module._buffers[name].shape) for name in sorted(lasting)}
        if hasattr(module, "_orig_shape"):
            found[f"{dot}weight"] = tuple(module._orig_shape)
    return found


def encoder_shapes(row: Encoder) -> Shapes:
    """{name in the published file: shape}."""
    import comfy.ops

    shapes = shapes_of(build_encoder(row, comfy.ops.mixed_precision_ops()))
    renamed = {published_name(row, name): shape for name, shape in sorted(shapes.items())}
    return renamed | row.besides


def detected(shapes: Shapes) -> str:
    """The member of TEModel that ComfyUI finds in such a file, "" for none."""
    import torch
    from comfy.sd import detect_te_model

    found = detect_te_model({name: torch.empty(s, device="meta") for name, s in shapes.items()})
    return found.name if found else ""


def main(names: list[str]) -> None:
    import_comfyui()
    ENCODERS.mkdir(parents=True, exist_ok=True)
    for name in names or ENCODER_MODELS:
        row = ENCODER_MODELS[name]
        shapes = encoder_shapes(row)
        assert detected(shapes) == row.published.detected, (name, detected(shapes))
        out = ENCODERS / f"{name}.txt"
        lines = [row.published.facts(name), *collapse(shapes, 2)]
        out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        assert read_headers(out) == shapes
        print(
            name, detected(shapes), len(shapes), "tensors", out.stat().st_size, "bytes", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
