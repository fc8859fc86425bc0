"""Layer lists."""

from nvfp4.guides.layer_config import read_layer_list


def test_layer_lists_have_comments_and_blank_lines(tmp_path):
    path = tmp_path / "layers.txt"
    path.write_text("# all\n\nblocks.2.ffn.0  # 0.31\nblocks.3.ffn.0.weight\nblocks.2.ffn.0\n")
    assert read_layer_list(path) == ("blocks.2.ffn.0", "blocks.3.ffn.0")


def test_a_byte_order_mark_does_not_hide_the_first_layer(tmp_path):
    (tmp_path / "layers.txt").write_text("x\ny\n", encoding="utf-8-sig")
    assert read_layer_list(tmp_path / "layers.txt") == ("x", "y")
