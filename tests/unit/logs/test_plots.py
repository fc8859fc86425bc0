"""Plots."""

import sys

import pytest

from nvfp4.logs.panels import DPI, ELSEWHERE, SCALE_LABEL, by_kind, panels_of, plain_number
from nvfp4.logs.plots import plot_histograms, plot_layers, plot_steps
from nvfp4.logs.records import Criteria, LogSummary
from nvfp4.logs.summary import read_log_summary
from support.logs import SHIPPED, error_of, line, log_of, run

NO_CRITERIA = Criteria(thresholds={}, cross_attention=False)


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
        assert str(path) in text


def test_kinds_of_layers_and_those_outside_the_blocks():
    names = ("blocks.2.ffn.0", "blocks.10.ffn.0", "text.0", "head.x", "text.0")
    kinds = by_kind({"layer": name} for name in names)
    assert [place for place, _ in kinds["blocks.*.ffn.0"]] == [2, 10]
    found = [(place, row["layer"]) for place, row in kinds[ELSEWHERE]]
    assert found == [(0, "text.0"), (1, "head.x"), (0, "text.0")]


def test_kinds_of_the_same_figures_share_a_panel():
    rows = [{"layer": f"blocks.{block}.attn.{part}", "x": block + (part == "o")}
            for part in "qko" for block in (0, 1)]  # fmt: skip
    rows.append({"layer": "head.head", "x": 0})
    panels = panels_of(rows, lambda row: row["x"])
    assert [panel.title for panel in panels] == [
        "blocks.*.attn.q = k", "blocks.*.attn.o", ELSEWHERE,
    ]  # fmt: skip
    assert [panel.is_elsewhere for panel in panels] == [False, False, True]


def test_panels_that_are_compared_have_one_labelled_scale():
    pytest.importorskip("matplotlib")
    summary = read_log_summary(SHIPPED)
    criteria = Criteria(thresholds={"scale_cv": 0.16}, cross_attention=True)
    figure = plot_layers(summary, criteria)
    used = [axes for axes in figure.axes if axes.axison]
    assert len({axes.get_ylim() for axes in used}) == 1
    assert {axes.get_yscale() for axes in used} == {"log"}
    assert used[0].get_ylabel() == used[3].get_ylabel() == SCALE_LABEL
    assert {axes.get_xlabel() for axes in used} == {"block"}
    titles = [axes.get_title() for axes in used]
    assert "blocks.*.self_attn.k = q" in titles
    assert len(titles) == 6
    # Cross-attention k is given the text in every block: one band, which says so.
    (text,) = [text.get_text() for axes in used for text in axes.texts]
    assert text == "the same in 26 layers"
    assert figure._suptitle.get_text().startswith("Wan 2.2 TI2V 5B: 182 layers, 1,280 calls each")
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[1] == "sensitive: scale_cv >= 0.16 or cross-attention (105 of 182 layers)"
    # 830 CSS pixels at twice the resolution.
    assert (figure.dpi, figure.get_figwidth() * figure.dpi) == (DPI, pytest.approx(1650))


def test_a_threshold_is_labelled_and_equal_layers_count_once():
    pytest.importorskip("matplotlib")
    summary = read_log_summary(SHIPPED)
    limits = Criteria(thresholds={"scale_cv": 0.16}, cross_attention=False)
    figure = plot_histograms(summary, limits)
    assert figure.axes[0].get_title() == "sensitive from 0.16:\n79 of 182 layers"
    assert figure.axes[1].get_title() == ""
    bars = sum(bar.get_height() for bar in figure.axes[0].patches)
    assert bars == 131
    assert "131 inputs" in figure._suptitle.get_text()
    assert {axes.get_ylabel() for axes in figure.axes} == {"inputs"}


def test_steps_of_equal_layers_are_one_line():
    pytest.importorskip("matplotlib")
    names = [f"blocks.{block}.{part}" for part in ("k", "q") for block in range(3)]
    steps = [
        {"layer": name, "step": step, "scale_mean": 1 + step + index * name.endswith("q")}
        for index, name in enumerate(names) for step in range(4)
    ]  # fmt: skip
    summary = LogSummary(format="nvfp4", mode="dynamic", percentiles=(50.0,), rows=[], steps=steps,
                         notes=[])  # fmt: skip
    figure = plot_steps(summary)
    k, q = figure.axes[:2]
    assert (len(k.lines), len(q.lines)) == (1, 3)
    assert [text.get_text() for text in k.texts] == ["the same in 3 layers"]
    assert k.get_ylim() == q.get_ylim()
    assert k.get_xlabel() == "step (0 is the first)"


def test_layers_without_thresholds_or_blocks_are_plotted_too():
    pytest.importorskip("matplotlib")
    rows = [{"layer": f"x.y{i}", "scale_p50": 1.0, "scale_mean": 1.0} for i in range(2)]
    summary = LogSummary(format="nvfp4", mode="dynamic", percentiles=(50.0,), rows=rows, steps=[],
                         notes=[])  # fmt: skip
    figure = plot_layers(summary, NO_CRITERIA)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x.y0", "x.y1"]
    assert len(figure.legends[0].get_texts()) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.003, "0.003"), (0.00003, "0.00003"), (2e-7, "2e-07"), (1.5, "1.5"), (0.0125, "0.0125")],
)
def test_ticks_have_no_exponent_within_what_scales_are(value, text):
    assert plain_number(value) == text


def test_without_matplotlib_an_error_before_reading(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    log = log_of(tmp_path, "no log\n")
    error = error_of("--input", log, "--plots-dir", tmp_path / "plots", capsys=capsys)
    assert "pip install matplotlib" in error
