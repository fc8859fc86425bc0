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

ENCODERS = FAMILIES / "encoders"
T5, LLAMA, GEMMA4 = "text_encoders.t5.T5", "text_encoders.llama", "text_encoders.gemma4"
# Names of Hugging Face's files that ComfyUI replaces on loading: {in ComfyUI's class: in the file}.
LM_HEAD = {"model.lm_head.": "lm_head."}
VISUAL = {**LM_HEAD, "model.": "model.language_model.", "visual.": "model.visual."}
# What lies in a published file besides. Tokenizers are bytes: Flux 2's size is the published one,
# others are about as large as such files are. `lm_head` gives logits, which encoding never uses.
SPIECE = {"spiece_model": (4_500_000,)}
TEKKEN = {"tekken_model": (19_399_895,)}
TOKENIZER = {"tokenizer_json": (32_000_000,)}
EMBED_TOKENS = {"encoder.embed_tokens.weight": (32128, 4096)}
NOTHING: Mapping = MappingProxyType({})


class Encoder(NamedTuple):
    """One published encoder.

    title: as people call it. path: the class, in comfy. arguments: a dictionary, or ComfyUI's JSON
    file with them. found: the member of TEModel that ComfyUI must find. names: what the published
    file calls otherwise. besides: what it has that the class has not. sets: attributes of the class
    that tell sizes apart. source: where `names` and `besides` are from.
    """

    title: str
    path: str
    arguments: dict | str
    found: str
    names: Mapping[str, str] = NOTHING
    besides: Mapping[str, tuple[int, ...]] = NOTHING
    sets: Mapping[str, str] = NOTHING
    source: str = ""


def t5(
    title: str, config: str, found: str, besides: Mapping = NOTHING, source: str = ""
) -> Encoder:
    """A T5 of one of ComfyUI's JSON files."""
    return Encoder(
        title, T5, f"text_encoders/{config}.json", found, NOTHING, besides, NOTHING, source
    )


def llama(
    title: str, name: str, found: str, besides: Mapping = NOTHING, source: str = ""
) -> Encoder:
    """An encoder of a class in comfy.text_encoders.llama."""
    return Encoder(title, f"{LLAMA}.{name}", {}, found, LM_HEAD, besides, {}, source)


def qwen_vl(title: str, module: str, kind: str, found: str, names: dict = VISUAL) -> Encoder:
    """A Qwen3-VL or Qwen3.5, whose class has its size as an attribute."""
    path = {"qwen3vl": "text_encoders.qwen3vl.Qwen3VL", "qwen35": "text_encoders.qwen35.Qwen35"}
    return Encoder(title, path[module], {}, found, names, {}, {"model_type": kind}, HF_NAMES)


HF_NAMES = "names as in the shards on Hugging Face, which ComfyUI's loader renames"
T5_HEADER = (
    "header of comfyanonymous/flux_text_encoders t5xxl_fp8_e4m3fn.safetensors, as InvokeAI's tests "
    "record it"
)
MISTRAL_HEADER = (
    "header of Comfy-Org/flux2-dev mistral_3_small_flux2_fp8.safetensors, as InvokeAI's tests "
    "record it"
)
IN_FILE = "ComfyUI's loader takes the tokenizer from the file"

MODELS = {
    "t5_xxl": t5("T5-v1.1 XXL", "t5_config_xxl", "T5_XXL", EMBED_TOKENS, T5_HEADER),
    "umt5_xxl": t5("UMT5 XXL", "umt5_config_xxl", "T5_XXL", SPIECE, IN_FILE),
    "t5_xxl_old": t5("T5 XXL of 2019 (11B)", "t5_old_config_xxl", "T5_XXL_OLD"),
    "t5_xl_pile": t5("Pile-T5 XL", "t5_pile_config_xl", "T5_XL"),
    "mt5_xl": t5("mT5 XL", "mt5_config_xl", "T5_XL"),
    "t5_base": t5("T5 base", "t5_config_base", "T5_BASE"),
    "umt5_base": t5("UMT5 base", "umt5_config_base", "T5_BASE", SPIECE, IN_FILE),
    "byt5_small_glyph": t5("ByT5 small, Glyph", "byt5_config_small_glyph", "BYT5_SMALL_GLYPH"),
    "t5gemma": Encoder(
        "T5Gemma", "text_encoders.sa3.T5GemmaModel", {}, "T5_GEMMA", {}, SPIECE, {}, IN_FILE
    ),
    "clip_l": Encoder("CLIP-L", "clip_model.CLIPTextModel", "sd1_clip_config.json", "CLIP_L"),
    "clip_h": Encoder(
        "CLIP-H", "clip_model.CLIPTextModel", "text_encoders/sd2_clip_config.json", "CLIP_H"
    ),
    "clip_g": Encoder("CLIP-G", "clip_model.CLIPTextModel", "clip_config_bigg.json", "CLIP_G"),
    "jina_clip_2": Encoder(
        "Jina CLIP v2", "text_encoders.jina_clip_2.XLMRobertaModel", {}, "JINA_CLIP_2", {}, SPIECE,
        {}, IN_FILE,
    ),
    "llama3_8b": llama(
        "Llama 3 8B", "Llama2", "LLAMA3_8", {"lm_head.weight": (128320, 4096)}, HF_NAMES
    ),
    "mistral_small_24b": llama(
        "Mistral Small 3 24B", "Mistral3Small24B", "MISTRAL3_24B", TEKKEN, IN_FILE
    ),
    "mistral_small_24b_flux2": Encoder(
        "Mistral Small 3 24B, 30 layers for Flux 2", f"{LLAMA}.Mistral3Small24B",
        {"num_hidden_layers": 30, "final_norm": False}, "MISTRAL3_24B_PRUNED_FLUX2", {}, TEKKEN, {},
        MISTRAL_HEADER,
    ),
    "ministral_3b": llama("Ministral 3 3B", "Ministral3_3B", "MINISTRAL_3_3B", TEKKEN, IN_FILE),
    "qwen25_3b": llama("Qwen2.5-VL 3B", "Qwen25_3B", "QWEN25_3B"),
    "qwen25_vl_7b": llama(
        "Qwen2.5-VL 7B", "Qwen25_7BVLI", "QWEN25_7B", {"lm_head.weight": (152064, 3584)}, HF_NAMES
    ),
    "qwen3_06b": llama("Qwen3 0.6B", "Qwen3_06B", "QWEN3_06B"),
    "qwen3_06b_ace15": llama("Qwen3 0.6B of ACE-Step 1.5", "Qwen3_06B_ACE15", "QWEN3_06B"),
    "qwen3_17b_ace15": llama("Qwen3 1.7B of ACE-Step 1.5", "Qwen3_2B_ACE15_lm", "QWEN3_2B"),
    "qwen3_4b_ace15": llama("Qwen3 4B of ACE-Step 1.5", "Qwen3_4B_ACE15_lm", "QWEN3_4B"),
    "qwen3_17b_ovis": llama("Qwen3 1.7B of Ovis", "Ovis25_2B", "QWEN3_2B"),
    "qwen3_4b": llama("Qwen3 4B", "Qwen3_4B", "QWEN3_4B"),
    "qwen3_8b": llama("Qwen3 8B", "Qwen3_8B", "QWEN3_8B", {}, HF_NAMES),
    "qwen3_vl_4b": qwen_vl("Qwen3-VL 4B", "qwen3vl", "qwen3vl_4b", "QWEN3VL_4B"),
    "qwen3_vl_8b": qwen_vl("Qwen3-VL 8B", "qwen3vl", "qwen3vl_8b", "QWEN3VL_8B"),
    "qwen3_vl_32b_minimax": qwen_vl(
        "Qwen3-VL 32B, 50 layers for MiniMax H3", "qwen3vl", "qwen3vl_32b", "QWEN3VL_32B", {}
    )._replace(source="names as ComfyUI's detection asks for them"),
    "qwen35_08b": qwen_vl("Qwen3.5 0.8B", "qwen35", "qwen35_08b", "QWEN35_08B"),
    "qwen35_2b": qwen_vl("Qwen3.5 2B", "qwen35", "qwen35_2b", "QWEN35_2B"),
    "qwen35_4b": qwen_vl("Qwen3.5 4B", "qwen35", "qwen35_4b", "QWEN35_4B"),
    "qwen35_9b": qwen_vl("Qwen3.5 9B", "qwen35", "qwen35_9b", "QWEN35_9B"),
    "qwen35_27b": qwen_vl("Qwen3.5 27B", "qwen35", "qwen35_27b", "QWEN35_27B"),
    "gemma2_2b": llama("Gemma 2 2B", "Gemma2_2B", "GEMMA_2_2B", SPIECE, IN_FILE),
    "gemma3_4b": llama("Gemma 3 4B", "Gemma3_4B", "GEMMA_3_4B", SPIECE, IN_FILE),
    "gemma3_4b_vision": llama(
        "Gemma 3 4B with vision", "Gemma3_4B_Vision", "GEMMA_3_4B_VISION", SPIECE, IN_FILE
    ),
    "gemma3_12b": llama("Gemma 3 12B", "Gemma3_12B", "GEMMA_3_12B", SPIECE, IN_FILE),
    **{
        f"gemma4_{size.lower()}": Encoder(
            f"Gemma 4 {size}", f"{GEMMA4}.Gemma4_{size}", {}, f"GEMMA_4_{size}", {}, TOKENIZER, {},
            IN_FILE,
        )
        for size in ("E2B", "E4B", "12B", "31B")
    },
    "gpt_oss_20b": Encoder(
        "GPT-OSS 20B", "text_encoders.gpt_oss.GptOssModel", {}, "GPT_OSS_20B", {}, TOKENIZER, {},
        IN_FILE,
    ),
}  # fmt: skip


def arguments_of(encoder: Encoder) -> dict:
    """The configuration of an encoder's class, of ComfyUI's own file where it has one."""
    import comfy

    if isinstance(encoder.arguments, dict):
        return encoder.arguments
    return json.loads((Path(comfy.__path__[0]) / encoder.arguments).read_text(encoding="utf-8"))


def build_encoder(encoder: Encoder, operations: object, **changed: object) -> object:
    """The module that ComfyUI makes of an encoder, on the meta device; `changed` are arguments."""
    import torch
    from comfy.text_encoders.gpt_oss import GptOss20BConfig

    kind, arguments = class_of(encoder.path), arguments_of(encoder) | changed
    if encoder.sets:
        kind = type(kind.__name__, (kind,), dict(encoder.sets))
    place = {"dtype": torch.bfloat16, "device": "meta"}
    if kind.__name__ == "GptOssModel":
        return kind(GptOss20BConfig(**arguments), ops=operations, **place)
    return kind(arguments, operations=operations, **place)


def published_name(encoder: Encoder, name: str) -> str:
    """The name in the published file of a tensor of ComfyUI's class."""
    start = next((start for start in encoder.names if name.startswith(start)), "")
    return encoder.names[start] + name.removeprefix(start) if start else name


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


def encoder_shapes(encoder: Encoder) -> Shapes:
    """{name in the published file: shape}."""
    import comfy.ops

    shapes = shapes_of(build_encoder(encoder, comfy.ops.mixed_precision_ops()))
    renamed = {published_name(encoder, name): shape for name, shape in sorted(shapes.items())}
    return renamed | encoder.besides


def detected(shapes: Shapes) -> str:
    """The member of TEModel that ComfyUI finds in such a file, "" for none."""
    import torch
    from comfy.sd import detect_te_model

    found = detect_te_model({name: torch.empty(s, device="meta") for name, s in shapes.items()})
    return found.name if found else ""


def title_line(name: str, encoder: Encoder, version: str) -> str:
    """The first line of the file, which the list in the docs is made of."""
    besides = f" ({encoder.source})" if encoder.source else ""
    return (
        f"# {name}: BF16; title: {encoder.title}; class: {encoder.path}; detected as: "
        f"{encoder.found}; ComfyUI: {version}; source: ComfyUI's class{besides}"
    )


def main(names: list[str]) -> None:
    import_comfyui()
    from comfyui_version import __version__

    ENCODERS.mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        encoder = MODELS[name]
        shapes = encoder_shapes(encoder)
        assert detected(shapes) == encoder.found, (name, detected(shapes))
        out = ENCODERS / f"{name}.txt"
        lines = [title_line(name, encoder, __version__), *collapse(shapes, 2)]
        out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        assert read_headers(out) == shapes
        print(name, encoder.found, len(shapes), "tensors", out.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
