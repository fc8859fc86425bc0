"""Rows of layers and steps, written, read again, and with the errors of recordings."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nvfp4.guides.layer_config import read_layer_list
from nvfp4.guides.records import BIN_EDGES
from support.logs import error_of, line, log_of, rows_of


def test_json_csv_and_a_summary_read_again_agree(tmp_path, capsys, wan_log):
    table = tmp_path / "summary.csv"
    data, rows, _ = rows_of(
        tmp_path, "--input", wan_log, "--csv", table, "--percentiles", "5,99.99", capsys=capsys
    )
    assert data["percentiles"] == [5, 50, 99.99]
    with table.open(encoding="utf-8", newline="") as file:
        found = {row["layer"]: row for row in csv.DictReader(file)}
    assert [*found] == [*rows]
    assert b"\r" not in table.read_bytes()
    for name, row in rows.items():
        assert {key: value for key, value in found[name].items() if key != "layer"} == {
            key: str(value) for key, value in row.items() if key != "layer"
        }
        assert {"scale_p5", "scale_p50", "scale_p99_99", "amax_p99_99"} <= row.keys()
    earlier = tmp_path / "earlier.json"
    (tmp_path / "summary.json").replace(earlier)
    assert rows_of(tmp_path, "--summary", earlier, capsys=capsys)[0] == data


def test_layers_come_in_natural_order(tmp_path, capsys):
    names = ["blocks.2.ffn.0", "blocks.10.ffn.0", "blocks.10.ffn.2", "head.head"]
    log = log_of(tmp_path, *map(line, reversed(names)))
    assert [*rows_of(tmp_path, "--input", log, capsys=capsys)[1]] == names


def test_steps_deal_out_calls_in_turn(tmp_path, capsys):
    """Two prompts of three steps of two passes, and one call too many."""
    amax = [1, 1.5, 2, 2.5, 3, 3.5] * 2
    log = log_of(tmp_path, *(line(amax=x * 2688) for x in [*amax, 1]), line("head.head"))
    steps = ("--steps", 3, "--cfg-passes", 2)
    data, _, text = rows_of(tmp_path, "--input", log, *steps, capsys=capsys)
    mine = [row for row in data["steps"] if row["layer"] == "blocks.2.ffn.0"]
    assert [(row["step"], row["count"]) for row in mine] == [(0, 5), (1, 4), (2, 4)]
    assert [row["scale_max"] for row in mine] == [1.5, 2.5, 3.5]
    assert [row["scale_mean"] for row in mine] == [1.2, 2.25, 3.25]
    assert all(1.4 < row["scale_p99_9"] <= row["scale_max"] for row in mine)
    assert "2 layers' calls are no multiple of 3 steps x 2" in text


def test_steps_go_on_over_pending_calls_and_files(tmp_path, capsys):
    lines = [line(amax=(1 + index % 7) * 2688) for index in range(7 * 500)]
    logs = log_of(tmp_path, *lines), log_of(tmp_path, *lines, name="more.tsv")
    data, _, _ = rows_of(tmp_path, "--input", *logs, "--steps", 7, capsys=capsys)
    assert [row["scale_mean"] for row in data["steps"]] == [1, 2, 3, 4, 5, 6, 7]
    assert {row["count"] for row in data["steps"]} == {1000}


def test_a_percentile_of_each_step_and_its_spread_over_the_steps(tmp_path, capsys):
    """Ten prompts of three steps; the figures are numpy's over the calls of each step."""
    scales = 1 + np.random.default_rng(0).random((10, 3)).round(6)
    log = log_of(tmp_path, *(line(amax=x * 2688) for x in scales.ravel()))
    steps = ("--steps", 3, "--step-percentile", 97.5)
    data, rows, _ = rows_of(tmp_path, "--input", log, *steps, capsys=capsys)
    expected = np.percentile(scales, 97.5, axis=0)
    assert [row["scale_p97_5"] for row in data["steps"]] == pytest.approx(expected, rel=1e-5)
    assert not any("scale_p99_9" in row for row in data["steps"])
    (row,) = rows.values()
    found = [row[f"scale_step_p97_5_{name}"] for name in ("mean", "min", "max")]
    spread = [expected.mean(), expected.min(), expected.max()]
    assert found == pytest.approx(spread, rel=1e-5)
    assert row["scale_step_p97_5_steps"] == 3
    earlier, table = tmp_path / "earlier.json", tmp_path / "summary.csv"
    (tmp_path / "summary.json").replace(earlier)
    assert rows_of(tmp_path, "--summary", earlier, "--csv", table, capsys=capsys)[0] == data
    assert "scale_step_p97_5_max" in table.read_text()


def test_steps_that_no_call_reached_count_for_nothing(tmp_path, capsys):
    log = log_of(tmp_path, line(amax=2688), line(amax=2 * 2688))
    steps = ("--steps", 5, "--step-percentile", 50)
    _, rows, _ = rows_of(tmp_path, "--input", log, *steps, capsys=capsys)
    (row,) = rows.values()
    assert (row["scale_step_p50_mean"], row["scale_step_p50_steps"]) == (1.5, 2)


def test_a_summary_of_the_predecessor_with_nan_is_read(tmp_path, capsys):
    """NaN stands for a kurtosis that is not defined, and for layers that were never called."""
    row = {"count": 2, "scale_mean": 1.0, "scale_std": 0.0, "scale_p50": 1.0}
    rows = [
        row | {"layer": "a", "scale_kurtosis": float("nan")},
        row | {"layer": "b", "scale_mean": float("nan"), "scale_std": float("nan")},
        row | {"layer": "c", "scale_mean": 0.0, "amax_max": 0.0},
    ]
    path, out = tmp_path / "s.json", tmp_path / "summary.json"
    path.write_text(json.dumps({"layers": rows}))
    _, found, text = rows_of(tmp_path, "--summary", path, capsys=capsys)
    assert [*found] == ["a"]
    assert found["a"]["scale_kurtosis"] is None
    assert "s.json: 2 layers were not measured and are left out: b, c" in text
    path.write_text(json.dumps({"layers": rows[1:]}))
    out.unlink()
    message = "none of its 2 layers was measured"
    assert message in error_of("--summary", path, "--json", out, capsys=capsys)
    assert not out.exists()


def recording(path, layers, metadata=None):
    tensors = {}
    for name, pair in layers.items():
        tensors |= {
            f"{name}.quantisation": torch.tensor(pair, dtype=torch.float64),
            f"{name}.absmax": torch.ones(16),
            f"{name}.block_histogram": torch.zeros(len(BIN_EDGES), dtype=torch.int64),
            f"{name}.tokens": torch.tensor(3),
        }
    save_file(tensors, path, metadata or {"format": "nvfp4_recording", "version": "1"})
    return path


def test_recordings_add_up_to_a_relative_error(tmp_path, capsys):
    log = log_of(tmp_path, *map(line, ("blocks.2.ffn.0", "blocks.3.ffn.0", "blocks.4.ffn.0")))
    one = recording(tmp_path / "1.safetensors", {"blocks.2.ffn.0": [3.0, 100.0], "other": [1, 1]})
    two = recording(
        tmp_path / "2.safetensors", {"blocks.2.ffn.0": [1.0, 300.0], "blocks.3.ffn.0": [0.0, 0.0]}
    )
    listed = tmp_path / "list.txt"
    _, rows, text = rows_of(
        tmp_path, "--input", log, "--recording", one, two, "--rel-rmse-threshold", 0.1,
        "--sensitive-layers", listed, capsys=capsys,
    )  # fmt: skip
    assert [row["rel_rmse"] for row in rows.values()] == [0.1, None, None]
    assert read_layer_list(listed) == ("blocks.2.ffn.0",)
    assert "blocks.2.ffn.0  # rel_rmse 0.1 >= 0.1\n" in listed.read_text()
    assert "2 layers have no error in the recording: blocks.3.ffn.0, blocks.4.ffn.0" in text
    assert "note: 1 recorded layer is not in the log or summary: other" in text
    assert "rel_rmse" in text


@pytest.mark.parametrize(
    ("layers", "metadata", "message"),
    [
        ({"x": [1, 2]}, {"format": "pt"}, "is no recording (version 1)"),
        ({"x": [1, 2, 3]}, None, "layer x: quantisation missing or malformed"),
        ({"x": [float("nan"), 1]}, None, "layer x saw NaN or Inf"),
    ],
)
def test_what_is_no_recording_is_an_error(tmp_path, capsys, layers, metadata, message):
    path = recording(tmp_path / "r.safetensors", layers, metadata)
    log = log_of(tmp_path, line())
    assert message in error_of("--input", log, "--recording", path, capsys=capsys)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "has no list of `layers`, each with a `layer` name"),
        ({"layers": []}, "has no layers"),
        ({"layers": [{"layer": "x", "scale_mean": 0, "scale_std": 1}]}, "a positive scale_mean"),
        ({"layers": [{"layer": "x", "scale_mean": 1}]}, "scale_std"),
        ({"layers": [{"layer": "x", "scale_mean": 1, "scale_std": 1}]}, "no percentile in common"),
        ({"layers": [{"layer": "x\ny", "scale_mean": 1, "scale_std": 1}]}, "a layer's name"),
        ({"layers": [{"layer": "x", "scale_mean": float("nan"), "scale_std": 1}]}, "was measured"),
        ({"layers": [{"layer": "x", "scale_mean": 1, "scale_std": float("inf")}]}, "numbers"),
        ({"layers": [{"layer": "x", "scale_mean": 1, "scale_std": 1}] * 2}, "two rows for layer x"),
    ],
)
def test_what_is_no_summary_is_an_error(tmp_path, capsys, data, message):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(data))
    assert message in error_of("--summary", path, capsys=capsys)
