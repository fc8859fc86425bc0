"""Plots."""

import sys

import pytest

from nvfp4.logs.plots import ELSEWHERE, by_kind
from support.logs import error_of, line, log_of, run


@pytest.mark.slow
def test_plots_are_made(tmp_path, capsys, wan_log):
    pytest.importorskip("matplotlib")
    log = log_of(tmp_path, wan_log.read_text(), line("head.head"), line("head.head", 9), name="2")
    folder = tmp_path / "plots"
    chosen = ("--steps", 4, "--cv-threshold", 0.3, "--plots-dir", folder)
    status, text, _ = run("--input", log, *chosen, capsys=capsys)
    assert status == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["histograms.png", "layers.png", "steps.png"]
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"written: {path}" in text


def test_kinds_of_layers_and_those_outside_the_blocks():
    names = ("blocks.2.ffn.0", "blocks.10.ffn.0", "text.0", "head.x", "text.0")
    kinds = by_kind({"layer": name} for name in names)
    assert [place for place, _ in kinds["blocks.*.ffn.0"]] == [2, 10]
    found = [(place, row["layer"]) for place, row in kinds[ELSEWHERE]]
    assert found == [(0, "text.0"), (1, "head.x"), (0, "text.0")]


def test_without_matplotlib_an_error_before_reading(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    log = log_of(tmp_path, "no log\n")
    error = error_of("--input", log, "--plots-dir", tmp_path / "plots", capsys=capsys)
    assert "pip install matplotlib" in error
