"""Lists of sensitive layers, with the reason for each."""

import make_shipped
import pytest

from nvfp4.guides.layer_config import read_layer_list
from support.logs import SHIPPED, line, log_of, run
from support.paths import ROOT


def test_shipped_lists_follow_from_the_shipped_summaries():
    for _, summary, layers, threshold in make_shipped.SHIPPED:
        listed = ROOT / f"sensitive_layers/sensitive_layers_{layers}.txt"
        assert listed.read_bytes() == make_shipped.shipped_list(summary, threshold).encode()


@pytest.mark.parametrize("shipped", make_shipped.SHIPPED)
def test_the_command_line_makes_the_shipped_lists(tmp_path, capsys, shipped):
    _, summary, layers, threshold = shipped
    out = tmp_path / "out.txt"
    chosen = ("--cv-threshold", threshold, "--cross-attn", "--sensitive-layers", out)
    assert run("--summary", f"scales_summary_{summary}.json", *chosen, capsys=capsys)[0] == 0
    listed = ROOT / f"sensitive_layers/sensitive_layers_{layers}.txt"
    assert out.read_bytes() == listed.read_bytes()


def test_a_list_gives_every_reason(tmp_path, capsys):
    log = log_of(tmp_path, line("blocks.3.cross_attn.q", 1), line("blocks.3.cross_attn.q", 2),
                 line("blocks.12.cross_attn.k_img"), line("head.head"))  # fmt: skip
    out = tmp_path / "out.txt"
    chosen = ("--cv-threshold", 0.3, "--cross-attn", "--sensitive-layers", out)
    text = run("--input", log, *chosen, capsys=capsys)[1]
    lines = out.read_text(encoding="utf-8").splitlines()[1:]
    assert lines == [
        "blocks.3.cross_attn.k  # cross-attention",
        "blocks.3.cross_attn.o  # cross-attention",
        "blocks.3.cross_attn.q  # cross-attention, scale_cv 0.333 >= 0.3",
        "blocks.3.cross_attn.v  # cross-attention",
        "blocks.12.cross_attn.k  # cross-attention",
        "blocks.12.cross_attn.k_img  # cross-attention",
        "blocks.12.cross_attn.o  # cross-attention",
        "blocks.12.cross_attn.q  # cross-attention",
        "blocks.12.cross_attn.v  # cross-attention",
    ]
    assert read_layer_list(out) == tuple(name.partition(" ")[0] for name in lines)
    assert [text.split()[-2:] for text in text.splitlines() if "sensitive   " in text] == [
        ["9", "2"]
    ]


def test_thresholds_alone_only_count(capsys):
    status, text, _ = run("--summary", SHIPPED, "--kurtosis-threshold", 5, capsys=capsys)
    assert status == 0
    assert "scale_kurtosis >= 5" in text
    assert "written" not in text
    worst = text.splitlines()[4].split()
    assert worst[:2] == ["blocks.2.cross_attn.o", "1,280"]
