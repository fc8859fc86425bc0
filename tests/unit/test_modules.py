"""What ComfyUI's classes say of weights by name, and the careful rule for names that none has."""

import pytest

from nvfp4.comfy_classes import LINEAR_ALL_THE_SAME, NOT_LINEAR, SHAPE_READ
from nvfp4.modules import is_doubtful, not_linear, shape_read, sounds_doubtful, starred
from support.make_families import read_headers
from support.paths import FAMILIES

# {layer: what there is, in which class} of published models, as their classes were read by hand.
ELSEWHERE = {
    "trainable_cond_mask": "ComfyUI's WanModel_S2V has an Embedding there",
    "motion_encoder.enc.fc.3": "ComfyUI's AnimateWanModel has its own EqualLinear there",
    "motion_encoder.dec.direction": "ComfyUI's AnimateWanModel has its own Direction there",
    "double_stream_blocks.7.block.ff_i.gate": "ComfyUI's HiDreamImageTransformer2DModel has its "
    "own MoEGate there",
    "blocks.15.moe.gate": "ComfyUI's HunYuanDiTPlain has its own MoEGate there",
    "cond_type_embedding": "ComfyUI's HunyuanVideo has a plain Embedding there",
    "llm_adapter.embed": "ComfyUI's Anima has an Embedding there",
    "lyric_embs": "ComfyUI's ACEStepTransformer2DModel has an Embedding there",
    "style_embedder": "ComfyUI's HunYuanDiT has an Embedding there",
    "time_text_embed.addition_t_embedding": "ComfyUI's QwenImageTransformer2DModel has an "
    "Embedding there",
    "label_emb": "ComfyUI's UNetModel has a plain Embedding there",
    "timestep_features": "ComfyUI's AudioDiffusionTransformer has its own FourierFeatures there",
    "visual_token_type_embeddings": "ComfyUI's Kandinsky6 has an Embedding there",
    "shared": "ComfyUI's T5 has an Embedding there",
    "encoder.block.5.layer.0.SelfAttention.relative_attention_bias": "ComfyUI's T5 has an "
    "Embedding there",
}


@pytest.mark.parametrize("layer", ELSEWHERE)
def test_what_is_no_linear_layer_is_told_with_its_class(layer):
    assert str(not_linear(layer)) == ELSEWHERE[layer]


@pytest.mark.parametrize(
    "layer", ["label_emb.0.0", "blocks.3.mlp.gate", "x_embedder", "time_embed.0", "blocks.0.ffn.0"]
)
def test_linear_layers_with_such_names_are_none_of_these(layer):
    assert not_linear(layer) is None


def test_the_careful_rule_alone_would_find_all_that_the_table_has():
    """So that what no table knows yet is found, too; the shapes are those of such weights."""
    missed = [layer for layer in NOT_LINEAR if not sounds_doubtful(layer, (8, 8), has_bias=False)]
    assert missed == []


@pytest.mark.parametrize(
    ("layer", "shape", "has_bias"),
    [
        ("token_embed", (4096, 512), False),
        ("blocks.3.type_embedding", (64, 512), False),
        ("embedders.0", (1000, 512), False),
        ("pos_enc", (256, 512), False),
        ("blocks.0.attn.relative_position_bias_table", (225, 64), False),
        ("blocks.0.moe.router", (128, 2048), False),
        # A router of experts that has the name of Krea 2's gated layers.
        ("blocks.0.mlp.gate", (128, 2048), False),
        ("new_mask", (32, 512), True),
        ("motion_encoder.new.fc", (512, 512), True),
        ("pipe.motion_encoder.new.fc", (512, 512), True),
        ("blocks.0.scores", (8, 2048), False),
        ("anchors", (200, 4), False),
        ("Vocab_Embeddings", (4096, 512), False),
        ("transformer.wte", (50257, 768), False),
        ("learned_queries", (64, 512), False),
        ("encoder.embed_positions", (1500, 512), False),
    ],
)
def test_unknown_names_that_sound_like_embeddings_or_routers_are_doubtful(layer, shape, has_bias):
    assert is_doubtful(layer, shape, has_bias=has_bias)


@pytest.mark.parametrize(
    ("layer", "shape", "has_bias"),
    [
        ("blocks.0.mlp.gate", (6912, 2560), False),
        ("blocks.0.mlp.gate_proj", (6912, 2560), False),
        ("x_embedder", (256, 64), True),
        ("txt_in.input_embedder", (3072, 4096), True),
        ("time_embed.0", (1280, 320), True),
        ("blocks.0.post_proj", (512, 512), False),
        ("blocks.0.attention.query", (512, 512), False),
        ("blocks.0.pose_proj", (512, 512), False),
        ("blocks.0.head", (8, 512), True),
        ("final_linear", (16, 3072), True),
        ("transformer_blocks.0.attn1.to_gate_logits", (32, 4096), True),
    ],
)
def test_linear_layers_are_not_doubtful(layer, shape, has_bias):
    assert not is_doubtful(layer, shape, has_bias=has_bias)


@pytest.mark.parametrize("model", sorted(path.stem for path in FAMILIES.glob("*.txt")))
def test_published_models_lose_no_linear_layer_to_the_careful_rule(model):
    shapes = read_headers(FAMILIES / f"{model}.txt")
    doubtful = [
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not not_linear(name[:-7])
        if is_doubtful(name[:-7], shape, has_bias=f"{name[:-7]}.bias" in shapes)
    ]
    assert doubtful == []


@pytest.mark.parametrize(
    ("layer", "rows", "columns"),
    [
        ("head.head", True, False),
        ("blocks.0.ffn.0", True, False),
        ("img_in", True, True),
        ("input_blocks.11.1.transformer_blocks.0.attn2.to_k", False, True),
        ("label_emb.0.0", False, True),
        ("y_embedder.mlp.0", False, True),
        ("pixel_blocks.5.adaLN_modulation.0", True, True),
        ("transformer_blocks.0.img_mlp.gate_up", True, False),
        ("video_text_embeddings.in_layer", False, True),
    ],
)
def test_what_comfyui_reads_of_a_shape(layer, rows, columns):
    read = shape_read(layer)
    assert (read.rows, read.columns) == (rows, columns)


@pytest.mark.parametrize(
    "layer",
    [
        "blocks.1.ffn.0",
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k",
        "middle_block.1.transformer_blocks.0.attn2.to_k",
        "a.img_in",
    ],
)
def test_other_layers_are_free(layer):
    assert shape_read(layer) is None


def test_tables_have_the_form_that_names_are_looked_up_in():
    for table in (NOT_LINEAR, LINEAR_ALL_THE_SAME):
        assert all(starred(name) == name for name in table)
    assert not NOT_LINEAR.keys() & LINEAR_ALL_THE_SAME.keys()
    assert all(rows or columns for rows, columns, _ in SHAPE_READ.values())
