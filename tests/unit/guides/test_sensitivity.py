"""Layers that a file of measured figures keeps from 4 bits."""

import json
import math
import re

import numpy as np
import pytest

from nvfp4.errors import ConvertError
from nvfp4.formats.floats import HALF
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.recording import read_recording
from support.paths import ROOT
from support.plans import plans_of


def test_sensitive_layers_by_a_recording(tiny, recording):
    figures = read_recording(recording)
    limit = float(np.median([row.rel_rmse for row in figures.values()]))
    above = {layer for layer, row in figures.items() if row.rel_rmse > limit}
    more = ["--sensitivity-json", str(recording), "--sensitivity-threshold", str(limit)]
    plain, _ = plans_of(tiny)
    kept, _ = plans_of(tiny, *more)
    marked, _ = plans_of(tiny, *more, "--sensitivity-action", "full_precision_mm")
    assert any(plain[layer].is_quantised for layer in above)
    for layer, plan in plain.items():
        if layer in above and plan.is_quantised:
            assert kept[layer].precision is HALF
            assert kept[layer].reason.text.startswith("rel_rmse > ")
            assert marked[layer].precision is plan.precision
            by_error = marked[layer].full_precision.text.startswith("rel_rmse > ")
            assert by_error == (plan.precision is NVFP4)  # it is NVFP4's error
        else:
            assert kept[layer] == plan


def test_sensitive_layers_by_a_published_file(tiny, tmp_path):
    rows = [
        {"layer": "blocks.2.self_attn.q", "rel_rmse_mean": 0.2, "clip_rate_mean": 0.0},
        {"layer": "blocks.3.self_attn.q", "rel_rmse_mean": 0.1, "clip_rate_mean": 0.3},
    ]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": rows}))
    more = ["--sensitivity-json", str(path), "--sensitivity-threshold", "0.15"]
    more += ["--clip-rate-threshold", "0.2", "--clip-rate-action", "full_precision_mm"]
    plans, _ = plans_of(tiny, *more)
    assert plans["blocks.2.self_attn.q"].reason.text == "rel_rmse > 0.15"
    assert plans["blocks.3.self_attn.q"].full_precision.text == "clip_rate > 0.2"


def test_clip_rates_of_a_recording_depend_on_the_scale(tiny, recording):
    more = ["--sensitivity-json", str(recording), "--clip-rate-threshold", "0.01"]
    for value, clips in (("0.003", True), ("1", False)):
        plans, _ = plans_of(tiny, *more, "--input-scale-value", value)
        reasons = [str(plan.reason) for plan in plans.values()]
        assert any(reason.startswith("clip_rate > 0.01") for reason in reasons) == clips


def test_layers_whose_scale_varies_stay_16_bit(tiny):
    summary = ["--input-scale-summary-json", "scales_summary_wan22_5b.json"]
    more = [*summary, "--input-scale-summary-fp16-std", "--partial-guide"]
    rows = json.loads((ROOT / "calib" / summary[1]).read_text())["layers"]
    plans, _ = plans_of(tiny, *more, "--input-scale-summary-cv-threshold", "0.3")
    limit = sorted(row["scale_std"] for row in rows)[int((len(rows) - 1) * 0.9)]
    for row in rows:
        plan = plans.get(row["layer"])
        if plan and "GGUF" in str(plan.reason):
            varies = row["scale_std"] >= limit or row["scale_std"] / row["scale_mean"] >= 0.3
            assert plan.reason.text.startswith("input scale varies") == varies
    assert any(plan.reason.text.startswith("input scale varies") for plan in plans.values())


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        *(("rel_rmse_mean", bad) for bad in (None, math.nan, -math.inf, "1", True, -1)),
        *(("scale_std", bad) for bad in (None, math.nan, math.inf, "1", True, -1)),
    ],
)
def test_figures_that_are_no_numbers_are_refused(tiny, tmp_path, bad, key):
    row = {"layer": "blocks.2.ffn.0", "scale_p99_9": 1.0, "scale_mean": 1.0, "scale_std": 0.1}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [row | {"rel_rmse_mean": 0.1} | {key: bad}]}))
    more = {
        "rel_rmse_mean": ["--sensitivity-json", str(path), "--sensitivity-threshold", "0.1"],
        "scale_std": ["--input-scale-summary-json", str(path), "--input-scale-summary-fp16-std"],
    }
    with pytest.raises(ConvertError, match=re.escape(str(path))):
        plans_of(tiny, *more[key])


def test_the_analysis_own_summary_is_a_sensitivity_file(tiny, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [{"layer": "blocks.2.self_attn.q", "rel_rmse": 0.2}]}))
    plans, _ = plans_of(tiny, "--sensitivity-json", str(path), "--sensitivity-threshold", "0.1")
    assert plans["blocks.2.self_attn.q"].reason.text.startswith("rel_rmse > 0.1")


MEASURED_ROW = {"layer": "blocks.3.self_attn.q", "rel_rmse_mean": 0.2, "max_abs": 3.0}


@pytest.mark.parametrize(
    "figures",
    [
        {"rel_rmse_mean": math.nan, "clip_rate_mean": math.nan, "max_abs": 0.0},
        {"rel_rmse_mean": 0.9, "max_abs": 0},
        {"rel_rmse_mean": None, "max_abs": 0.0},
        {"rel_rmse_mean": None},
        {"rel_rmse_mean": math.nan, "max_abs": 2.0},
        {"max_abs": 1.0},
        {},
    ],
)
def test_a_layer_that_was_never_called_is_not_measured(tiny, tmp_path, figures):
    rows = [{"layer": "model.diffusion_model.blocks.2.self_attn.q"} | figures, MEASURED_ROW]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": rows}))
    plain, _ = plans_of(tiny)
    plans, notes = plans_of(
        tiny, "--sensitivity-json", str(path), "--sensitivity-threshold", "0.15"
    )
    assert plans["blocks.2.self_attn.q"] == plain["blocks.2.self_attn.q"]
    assert plans["blocks.3.self_attn.q"].reason.text == "rel_rmse > 0.15"
    [note] = [note for note in notes if "not measured" in note]
    assert note.startswith("s.json: 1 layer was not measured")


def test_a_row_may_have_one_of_two_figures(tiny, tmp_path):
    rows = [MEASURED_ROW | {"clip_rate_mean": math.nan}]
    rows.append({"layer": "blocks.2.self_attn.q", "clip_rate_mean": 0.3})
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": rows}))
    more = ["--sensitivity-json", str(path), "--sensitivity-threshold", "0.15"]
    plans, notes = plans_of(tiny, *more, "--clip-rate-threshold", "0.2")
    assert plans["blocks.3.self_attn.q"].reason.text == "rel_rmse > 0.15"
    assert plans["blocks.2.self_attn.q"].reason.text == "clip_rate > 0.2"
    assert sum("2 layers were not measured" in note for note in notes) == 1


def test_an_infinite_figure_is_above_every_threshold(tiny, tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [MEASURED_ROW | {"rel_rmse_mean": math.inf}]}))
    more = ["--sensitivity-json", str(path), "--sensitivity-threshold", "0.15"]
    plans, notes = plans_of(tiny, *more)
    assert plans["blocks.3.self_attn.q"].precision is HALF
    assert sum("1 layer has an infinite figure" in note for note in notes) == 1


def test_a_file_of_which_no_layer_was_measured_is_refused(tiny, tmp_path):
    path = tmp_path / "s.json"
    rows = [MEASURED_ROW | {"max_abs": 0.0}, MEASURED_ROW | {"layer": "a", "rel_rmse_mean": None}]
    path.write_text(json.dumps({"layers": rows}))
    with pytest.raises(ConvertError, match="none of its 2 layers has one"):
        plans_of(tiny, "--sensitivity-json", str(path), "--sensitivity-threshold", "0.15")
