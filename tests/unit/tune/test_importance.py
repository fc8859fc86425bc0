"""How much the errors of layers count: alike, but for branches and what is outside the blocks."""

import pytest

from nvfp4.tune.importance import branch_ended, importance

WAN = ("self_attn.q", "self_attn.o", "cross_attn.k", "cross_attn.o", "ffn.0", "ffn.2")


@pytest.mark.parametrize(
    ("layer", "branch"),
    [
        ("blocks.3.self_attn.o", "blocks.3.self_attn"),
        ("blocks.3.self_attn.q", ""),
        ("blocks.3.ffn.2", "blocks.3.ffn"),
        ("blocks.3.ffn.0", ""),
        ("transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn"),
        ("transformer_blocks.0.attn.to_add_out", "transformer_blocks.0.attn"),
        ("transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff.net"),
        ("transformer_blocks.0.ff.net.0.proj", ""),
        ("transformer_blocks.0.img_mlp.net.2", "transformer_blocks.0.img_mlp.net"),
        ("double_blocks.1.img_attn.proj", "double_blocks.1.img_attn"),
        ("double_blocks.1.txt_mlp.2", "double_blocks.1.txt_mlp"),
        ("layers.2.attention.out", "layers.2.attention"),
        ("layers.2.feed_forward.w2", "layers.2.feed_forward"),
        ("head.head", ""),
        ("text_embedding.2", ""),
    ],
)
def test_the_end_of_a_branch_is_told_by_its_name(layer, branch):
    assert branch_ended(layer) == branch


def test_layers_count_alike_without_a_recording():
    layers = [f"blocks.{number}.{name}" for number in range(3) for name in WAN]
    assert {*importance(layers, {}, 3).values()} == {1.0}


def test_what_is_outside_the_blocks_counts_once_for_each_of_them():
    assert importance(["text_in.0", "blocks.0.ffn.0"], {}, 30) == {
        "text_in.0": 30.0,
        "blocks.0.ffn.0": 1.0,
    }


def test_branches_count_by_the_root_of_their_energy():
    layers = [f"blocks.0.{name}" for name in (*WAN, "other")]
    energies = {"blocks.0.self_attn.o": 0.16, "blocks.0.cross_attn.o": 0.01, "blocks.0.ffn.2": 0.04}
    found = importance(layers, energies, 1)
    mean = (0.4 + 0.1 + 0.2) / 3
    expected = {"self_attn": 0.4 / mean, "cross_attn": 0.1 / mean, "ffn": 0.2 / mean, "other": 1.0}
    for layer, factor in found.items():
        assert factor == pytest.approx(expected[layer.split(".")[2]])


def test_a_branch_that_added_nothing_counts_as_one_that_was_not_recorded():
    found = importance(["blocks.0.ffn.0", "blocks.0.ffn.2"], {"blocks.0.ffn.2": 0.0}, 1)
    assert found == {"blocks.0.ffn.0": 1.0, "blocks.0.ffn.2": 1.0}
