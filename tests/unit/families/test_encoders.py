"""Text encoders: which one a file is, by the names and rows that ComfyUI asks for."""

import re

import pytest

from nvfp4.families import (
    ENCODERS,
    FAMILIES,
    PRESETS,
    encoder_of,
    encoder_size,
    renamed_prefixes,
    with_prefixes,
)
from support.make_families import read_headers
from support.paths import FAMILIES as FILES

SIZES = [(name, size) for name, row in ENCODERS.items() for size in row.sizes]


def asked(size):
    """The tensors that a size asks for: {name: shape}."""
    parts = (one.partition(" [") for one in size.has)
    return {name: (int(rows or 7),) for name, _, rows in parts}


@pytest.mark.parametrize(("name", "size"), SIZES, ids=lambda one: getattr(one, "title", one))
def test_what_a_size_asks_for_is_that_size_and_no_earlier_one(name, size):
    assert encoder_of(asked(size)) == (name, size.title)
    assert encoder_size(name, size.title) is size
    assert encoder_of({one: () for one in size.lacks}) != (name, size.title)


def test_titles_tell_the_sizes_of_a_row_apart():
    for row in ENCODERS.values():
        assert len({size.title for size in row.sizes}) == len(row.sizes)


def test_presets_are_the_rows_that_comfyui_loads_quantised():
    presets = {name for name, row in ENCODERS.items() if not row.half_only}
    assert presets <= {*PRESETS}
    assert not (ENCODERS.keys() - presets) & {*PRESETS}
    assert not ENCODERS.keys() & FAMILIES.keys()


def test_published_shapes_are_what_comfyui_detects():
    detected = {
        "CLIP_L": ("clip", "L"), "CLIP_G": ("clip", "G"), "CLIP_H": ("clip", "H"),
        "JINA_CLIP_2": ("jina-clip", "v2"), "T5_XXL_OLD": ("t5", "xxl 1.0"),
        "T5_XL": ("t5-small", "XL"), "T5_BASE": ("t5-small", "base"),
        "BYT5_SMALL_GLYPH": ("t5-small", "byT5 small"), "T5_GEMMA": ("t5-gemma", "B"),
        "GEMMA_2_2B": ("gemma2", "2B"), "GEMMA_3_4B": ("gemma3", "4B"),
        "GEMMA_3_4B_VISION": ("gemma3", "4B"), "GEMMA_3_12B": ("gemma3", "12B"),
        "GEMMA_4_E2B": ("gemma4", "E2B"), "GEMMA_4_E4B": ("gemma4", "E4B"),
        "GEMMA_4_12B": ("gemma4", "12B"), "GEMMA_4_31B": ("gemma4", "31B"),
        "GPT_OSS_20B": ("gpt-oss", "20B"), "QWEN25_3B": ("qwen2.5-vl", "3B"),
        "QWEN25_7B": ("qwen2.5-vl", "7B"), "QWEN35_08B": ("qwen3.5", "0.8B"),
        "QWEN35_2B": ("qwen3.5", "2B"), "QWEN35_4B": ("qwen3.5", "4B"),
        "QWEN35_9B": ("qwen3.5", "9B"), "QWEN35_27B": ("qwen3.5", "27B"),
        "QWEN3VL_4B": ("qwen3-vl", "4B"), "QWEN3VL_8B": ("qwen3-vl", "8B"),
        "QWEN3VL_32B": ("qwen3-vl", "32B"), "QWEN3_06B": ("qwen3", "0.6B"),
        "QWEN3_2B": ("qwen3", "2B"), "QWEN3_4B": ("qwen3", "4B"), "QWEN3_8B": ("qwen3", "8B"),
        "MISTRAL3_24B": ("mistral-small", "24B"), "MINISTRAL_3_3B": ("ministral", "3B"),
        "MISTRAL3_24B_PRUNED_FLUX2": ("mistral-small", "24B, 30 of its 40 blocks"),
        "LLAMA3_8": ("llama3", "8B"),
    }  # fmt: skip
    seen = set()
    for path in sorted((FILES / "encoders").glob("*.txt")):
        head = path.read_text(encoding="utf-8").partition("\n")[0]
        name = re.search(r"detected as: (\w+);", head)[1]
        umt5 = "umt5-xxl" if path.stem == "umt5_xxl" else "xxl"
        expected = ("t5", umt5) if name == "T5_XXL" else detected[name]
        assert encoder_of(read_headers(path)) == expected, path
        seen.add(expected)
    assert {("t5", "xxl"), ("t5", "umt5-xxl"), *detected.values()} == seen


def test_no_diffusion_model_is_taken_for_a_text_encoder():
    for path in [*FILES.glob("*.txt"), *FILES.glob("others/*.txt")]:
        assert encoder_of(read_headers(path)) == ("", ""), path


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", ""])
def test_prefixes_of_transformers_become_comfyui_s(prefix):
    bias = f"{prefix}layers.0.self_attn.k_proj.bias"
    found = renamed_prefixes({bias: (512,), "lm_head.weight": (9, 9)})
    assert with_prefixes(bias, found) == "model.layers.0.self_attn.k_proj.bias"
    assert with_prefixes("lm_head.weight", found) == "model.lm_head.weight"


def test_names_that_comfyui_renames_itself_stay():
    names = {"model.visual.deepstack_merger_list.0.norm.weight": (9,)}
    assert renamed_prefixes(names) == {}
    assert renamed_prefixes({"text_model.encoder.layers.0.mlp.fc1.weight": (9, 9)}) == {}
