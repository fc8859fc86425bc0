"""Rows of layers and steps, written, read again, and with the errors of recordings."""

import csv
import json

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
    assert "1 recorded layers are not in the log or summary: other" in text
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
        ({}, "`layers` must be a list of rows"),
        ({"layers": []}, "has no layers"),
        ({"layers": [{"layer": "x", "scale_mean": 0, "scale_std": 1}]}, "a positive scale_mean"),
        ({"layers": [{"layer": "x", "scale_mean": 1}]}, "scale_std"),
        ({"layers": [{"layer": "x", "scale_mean": 1, "scale_std": 1}]}, "no percentile in common"),
        ({"layers": [{"layer": "x\ny", "scale_mean": 1, "scale_std": 1}]}, "a layer's name"),
        ({"layers": [{"layer": "x", "scale_mean": float("nan"), "scale_std": 1}]}, "numbers"),
        ({"layers": [{"layer": "x", "scale_mean": 1, "scale_std": 1}] * 2}, "two rows for layer x"),
    ],
)
def test_what_is_no_summary_is_an_error(tmp_path, capsys, data, message):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(data))
    assert message in error_of("--summary", path, capsys=capsys)
