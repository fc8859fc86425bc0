"""Which tokens a layer multiplies by: rules that match names of published models."""

import re

import pytest

from nvfp4.families import FAMILIES
from nvfp4.model import header_text
from nvfp4.tokens import ANY_RUN, BY_NAME, RUNS, group_of, tokens_of
from support.make_families import read_headers
from support.paths import FAMILIES as FILES


def layers_of(files) -> set[str]:
    return {
        name.removesuffix(".weight")
        for path in files
        for name, shape in read_headers(path).items()
        if len(shape) > 1 and name.endswith(".weight")
    }


def family_of(path) -> str:
    header = header_text(read_headers(path))
    return next(
        name
        for name, family in FAMILIES.items()
        if all(re.search(rf"^{key}", header, re.MULTILINE) for key in family.keys)
    )


FILES_OF = {family: [] for family in FAMILIES}
for path in FILES.glob("*.txt"):
    FILES_OF[family_of(path)].append(path)
LAYERS = {family: layers_of(files) for family, files in FILES_OF.items()}


def test_each_family_has_a_run():
    assert RUNS.keys() == FAMILIES.keys()
    assert all(LAYERS.values())


@pytest.mark.parametrize("family", RUNS)
def test_a_familys_rules_name_layers_that_exist(family):
    run = RUNS[family]
    for rule in run.rules:
        for alternative in re.split(r"\|(?![^(]*\))", rule.layers):
            assert any(re.search(alternative, layer) for layer in LAYERS[family]), alternative
    named = {name for rule in run.rules for name in rule.tokens.split("+")}
    assert named - {"image", "text", "once"} == run.counts.keys() - {"image", "text", "once"}
    assert {"image", "text"} <= run.counts.keys()


def test_general_rules_name_layers_that_exist():
    every = set().union(*LAYERS.values())
    for rule in BY_NAME:
        assert any(re.search(rule.layers, layer) for layer in every), rule.layers
        assert {*rule.tokens.split("+")} <= {"once", *ANY_RUN.counts}


@pytest.mark.parametrize(
    ("layer", "family", "group"),
    [
        ("blocks.7.self_attn.q", "wan", "image"),
        ("blocks.7.cross_attn.q", "wan", "image"),
        ("blocks.7.cross_attn.k", "wan", "text"),
        ("blocks.7.cross_attn.v_img", "wan", "clip"),
        ("text_embedding.2", "wan", "text"),
        ("time_projection.1", "wan", "once"),
        ("transformer_blocks.3.txt_mod.1", "qwen-image", "once"),
        ("transformer_blocks.3.txt_mlp.net.2", "qwen-image", "text"),
        ("transformer_blocks.3.attn.to_add_out", "qwen-image", "text"),
        ("double_blocks.3.txt_attn.qkv", "flux", "text"),
        ("single_blocks.3.linear1", "flux", "image+text"),
        ("layers.3.attention.qkv", "z-image", "image+text"),
        ("layers.3.adaLN_modulation.0", "z-image", "once"),
        ("dec_net.res_blocks.0.adaLN_modulation.1", "z-image", "image"),
        ("context_refiner.1.feed_forward.w2", "lumina2", "text"),
        ("transformer_blocks.3.audio_attn2.to_k", "ltx2", "text"),
        ("transformer_blocks.3.audio_attn2.to_q", "ltx2", "audio"),
        ("input_blocks.3.0.op", "sdxl", "half"),
        ("output_blocks.2.2.conv", "sdxl", "half"),
        ("output_blocks.5.2.conv", "sdxl", "image"),
        ("output_blocks.5.0.out_layers.3", "sdxl", "half"),
        ("middle_block.0.in_layers.2", "sdxl", "quarter"),
        ("middle_block.0.in_layers.2", "stable-diffusion", "eighth"),
        ("output_blocks.8.2.conv", "stable-diffusion", "image"),
        ("output_blocks.2.1.conv", "sdxl-refiner", "quarter"),
        ("input_blocks.4.0.emb_layers.1", "sdxl", "once"),
        ("input_blocks.4.1.time_stack.0.attn2.to_k", "svd", "half of a frame"),
        ("blocks.3.ffn.0", "", "image"),
        ("model.3", "", "image"),
        ("blocks.3.attn2.kv_proj", "", "text"),
    ],
)
def test_groups(layer, family, group):
    assert group_of(layer, family) == group


def test_counts_of_a_run():
    assert tokens_of("blocks.7.ffn.0", "wan") == 21 * 30 * 52 == 32760
    assert tokens_of("blocks.7.cross_attn.k", "wan") == 512
    assert tokens_of("time_embedding.0", "wan") == 1
    assert tokens_of("single_blocks.0.linear2", "flux") == 64 * 64 + 256
    assert tokens_of("anything", "") == 4096
