"""analyze_input_scale_log.py: logs of any kind, exact figures, lists and plots from them."""

import bz2
import csv
import gzip
import json
import lzma
import subprocess
import sys

import make_shipped
import numpy as np
import pytest
import torch
from make_wan import wan_shapes
from safetensors.torch import save_file

import convert_nvfp4 as c
from nvfp4.errors import ConvertError
from nvfp4.files import write_bytes
from nvfp4.logs.command import LOGS_COMMAND_LINE, LOGS_DESCRIPTION
from nvfp4.logs.entry import analyze_log
from nvfp4.logs.plots import ELSEWHERE, by_kind
from nvfp4.logs.reading import LONGEST_LINE
from nvfp4.logs.records import LOG_DEFAULTS
from nvfp4.logs.series import LEAST, MOST
from nvfp4.logs.statistics import PENDING, Tally, folded, tally_figures
from nvfp4.logs.text import TRADE, render_trade
from support.conversions import RECIPE
from support.paths import ROOT

SHIPPED = ROOT / "calib/scales_summary_wan22_5b.json"


def line(layer="blocks.2.ffn.0", amax=2.688, kind="nvfp4", mode="dynamic", shape="(33440, 3072)"):
    return f"{kind}\t{mode}\t{layer}\t{amax / 2688:.6f}\t{amax:.6f}\t{shape}\n"


def log_of(tmp_path, *lines, name="calls.tsv"):
    path = tmp_path / name
    path.write_bytes("".join(lines).encode())
    return path


def run(*arguments, capsys):
    status = analyze_log([*map(str, arguments)])
    return status, *capsys.readouterr()


def rows_of(tmp_path, *arguments, capsys):
    out = tmp_path / "summary.json"
    status, text, err = run(*arguments, "--json", out, capsys=capsys)
    assert (status, err) == (0, "")
    data = json.loads(out.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return data, {row["layer"]: row for row in data["layers"]}, text


def error_of(*arguments, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────


def expected(values, percentiles):
    """What a row says of its values, from numpy alone."""
    deviation = values - values.mean()
    found = {
        "min": values.min(),
        "max": values.max(),
        "mean": values.mean(),
        "std": values.std(),
        "kurtosis": (deviation**4).mean() / values.var() ** 2 - 3,
        "outlier_frac_3std": (abs(deviation) > 3 * values.std()).mean(),
    }
    quantiles = np.percentile(values, percentiles)
    return found | dict(zip(map(c.percentile_key, percentiles), quantiles, strict=True))


@pytest.mark.parametrize("calls", [2, 7, 1280, 5000])
def test_figures_are_numpys(tmp_path, capsys, calls):
    amax = np.random.default_rng(calls).standard_t(3, calls) ** 2 + 0.5
    log = log_of(tmp_path, *(line(amax=x) for x in amax))
    data, rows, _ = rows_of(tmp_path, "--input", log, capsys=capsys)
    row = rows["blocks.2.ffn.0"]
    written = [text.split("\t") for text in log.read_text().splitlines()]
    for index, prefix in ((3, "scale"), (4, "amax")):
        values = np.array([float(columns[index]) for columns in written])
        for key, value in expected(values, data["percentiles"]).items():
            assert row[f"{prefix}_{key}"] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    assert row["count"] == calls
    assert row["scale_cv"] == pytest.approx(row["scale_std"] / row["scale_mean"], rel=1e-5)


def test_the_same_value_always_has_no_kurtosis_and_no_variation(tmp_path, capsys):
    log = log_of(tmp_path, *[line(amax=0.7)] * 2049)
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    row = rows["blocks.2.ffn.0"]
    assert (row["scale_std"], row["scale_cv"], row["scale_kurtosis"]) == (0, 0, None)
    assert (row["amax_p50"], row["amax_p99_9"], row["amax_outlier_frac_3std"]) == (0.7, 0.7, 0)
    assert "2,049" in text


def test_16_bit_values_are_exact_however_many_come():
    values = torch.rand(200_000).mul(30).add(1).bfloat16().double().numpy()
    tally = Tally()
    for part in np.split(values, 100):
        tally.add(part)
    found = tally_figures(tally, LOG_DEFAULTS["percentiles"])
    for key, value in expected(values, LOG_DEFAULTS["percentiles"]).items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    assert len(tally.values) < 1000


def test_folding_keeps_memory_bounded_and_percentiles_within_3_in_10_000():
    values = np.random.default_rng(0).lognormal(0, 0.5, 400_000)
    percentiles = (1.0, *LOG_DEFAULTS["percentiles"], 100.0)
    tally, most = Tally(), 0
    for part in np.split(values, 200):
        tally.add(part)
        most = max(most, len(tally.values) + tally.waiting)
    octaves = np.log2(values.max() / values.min())
    assert most <= 2**12 * (octaves + 1) + PENDING // 2
    assert len(tally.values) < 20_000
    assert (tally.number, int(tally.counts.sum())) == (400_000, 400_000)
    found = tally_figures(tally, percentiles)
    for key, value in expected(values, percentiles).items():
        exact = key in ("min", "max", "p100")
        tolerance = 1e-5 if exact else 3e-3 if key == "kurtosis" else 3e-4
        assert found[key] == pytest.approx(value, rel=tolerance), key


def test_folded_values_do_not_move_again():
    values = np.array([LEAST, 1e-30, 0.1, 1.0, 1.9999, 448.0, MOST])
    once = folded(values)
    assert (folded(once) == once).all()
    assert np.isfinite(once).all()
    assert (abs(once / values - 1) <= 2.0**-13).all()


# ── Lines ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nvfp4\tdynamic\tx\t0.1\t2688\n", "its last column is no shape"),
        ("nvfp4\tdynamic\n", "2 columns instead of 6, or 5"),
        ("\n", "1 columns instead of 6, or 5"),
        (line().replace("\t(", "\t7\t("), "7 columns instead of 6, or 5"),
        (line(layer=""), "a name is empty or has a space, a # or a control character"),
        (line(layer="a\x1b[31m"), "a name is empty or has a space, a # or a control character"),
        (line(layer="a#b"), "a name is empty or has a space, a # or a control character"),
        (line(amax=-1), "scale and amax must be positive and finite"),
        (line(amax=float("nan")), "scale and amax must be positive and finite"),
        (line(amax=float("inf")), "scale and amax must be positive and finite"),
        (line().replace("2.688", "2,688"), "could not convert string to float"),
        (line("new").replace("2.688", "2,688"), "could not convert string to float"),
    ],
)
def test_malformed_lines_are_counted_and_shown(tmp_path, capsys, bad, reason):
    log = log_of(tmp_path, line(), bad, line(), bad, bad, bad)
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert f"{log}: 6 lines, 2 used" in text
    assert "left out: 4 malformed" in text
    assert f"{log} line 2: {reason}" in text
    assert text.count(reason) == c.EXAMPLES
    assert "\x1b" not in text
    assert {name: row["count"] for name, row in rows.items()} == {"blocks.2.ffn.0": 2}


def test_names_that_are_no_utf_8_are_malformed(tmp_path, capsys):
    log = log_of(tmp_path, line())
    log.write_bytes(log.read_bytes() + line(layer="?").encode().replace(b"?", b"\xff"))
    assert "left out: 1 malformed" in rows_of(tmp_path, "--input", log, capsys=capsys)[2]


def test_an_incomplete_last_line_is_not_used_and_said_so(tmp_path, capsys):
    log = log_of(tmp_path, line(), line()[:-6])
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert "the last line, which has no end: is the log still being written?" in text
    assert rows["blocks.2.ffn.0"]["count"] == 1


def test_old_logs_windows_line_ends_marks_and_prefixes(tmp_path, capsys):
    prefixed = line(layer="model.diffusion_model.blocks.2.ffn.0")
    one = log_of(tmp_path, "\ufeff", prefixed.replace("\n", "\r\n"))
    two = log_of(tmp_path, line().removeprefix("nvfp4\t"), name="old.tsv")
    _, rows, text = rows_of(tmp_path, "--input", one, two, capsys=capsys)
    assert {name: row["count"] for name, row in rows.items()} == {"blocks.2.ffn.0": 2}
    assert "left out" not in text


def test_other_formats_and_modes_are_left_out_and_counted(tmp_path, capsys):
    log = log_of(tmp_path, line(), line(kind="fp8"), line(mode="static"), line(kind="fp8"))
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert rows["blocks.2.ffn.0"]["count"] == 1
    assert "left out: 2 of format fp8, mode dynamic" in text
    assert "left out: 1 of format nvfp4, mode static" in text
    every = ("--format", "all", "--mode", "all")
    data, rows, text = rows_of(tmp_path, "--input", log, *every, capsys=capsys)
    assert (data["format"], data["mode"]) == ("all", "all")
    assert rows["blocks.2.ffn.0"]["count"] == 4
    assert "1 layers have lines of several formats or modes, taken together" in text


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((), "it has no line at all"),
        ((line(kind="fp8"), line(mode="x")), "1 of fp8 dynamic, 1 of nvfp4 x; give --format and"),
        (("hello\n",), "1 malformed, as line 1: 1 columns instead of 6, or 5: hello"),
        ((line()[:-1],), "a last line without its end"),
    ],
)
def test_a_log_without_a_usable_line_says_what_it_has(tmp_path, capsys, lines, found):
    error = error_of("--input", log_of(tmp_path, *lines), capsys=capsys)
    assert "no line of format nvfp4 and mode dynamic; it has" in error
    assert found in error


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, capsys):
    log = log_of(tmp_path, line(), "x" * (LONGEST_LINE + 1))
    assert "is no log: line 2 does not end" in error_of("--input", log, capsys=capsys)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".XZ", lzma.compress), (".bz2", bz2.compress)]
)
def test_compressed_logs_and_damaged_ones(tmp_path, capsys, suffix, compress):
    text = "".join(line(amax=1 + index / 7) for index in range(5000)).encode()
    log = tmp_path / f"calls.tsv{suffix}"
    log.write_bytes(compress(text))
    assert rows_of(tmp_path, "--input", log, capsys=capsys)[1]["blocks.2.ffn.0"]["count"] == 5000
    for damaged in (compress(text)[:-20], compress(text)[:200] + b"??" * 900, b"no archive"):
        log.write_bytes(damaged)
        assert f"error: {log}: " in error_of("--input", log, capsys=capsys)


# ── Outputs ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def wan_log(tmp_path):
    """Calls of every linear layer in the tiny Wan's blocks, two prompts of four steps."""
    names = [name.removesuffix(".weight") for name, shape in wan_shapes("tiny").items()
             if len(shape) == 2 and name.startswith("blocks.")]  # fmt: skip
    return log_of(
        tmp_path,
        *(line(name, 3 + step + index % 5)
          for _ in range(2) for step in range(4) for index, name in enumerate(names)),
    )  # fmt: skip


def test_the_converter_takes_the_summary_and_the_list(tiny, tmp_path, capsys, wan_log):
    out, listed = tmp_path / "summary.json", tmp_path / "layers.txt"
    chosen = ("--cv-threshold", "0.2", "--cross-attn", "--sensitive-layers", listed)
    assert run("--input", wan_log, "--json", out, *chosen, capsys=capsys)[0] == 0
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    mine = ["--input-scale-summary-json", str(out), "--full-precision-mm-layers", str(listed)]
    assert c.main([*command, *RECIPE, *mine, "--input-scale-layer-summary", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "blocks.2.self_attn.q  0.00" in text
    assert "summary p99.9 x 1.08" in text
    assert "layers.txt" in text
    assert "names match nothing" not in text


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
            f"{name}.block_histogram": torch.zeros(len(c.BIN_EDGES), dtype=torch.int64),
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
    assert c.read_layer_list(listed) == ("blocks.2.ffn.0",)
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


# ── Sensitive layers ─────────────────────────────────────────────────────────────────────────────


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
    assert c.read_layer_list(out) == tuple(name.partition(" ")[0] for name in lines)
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


def test_the_trade_in_help_is_what_the_shipped_summaries_give():
    titles = {title: name for name, (title, _, _) in make_shipped.MODELS.items()}
    for title, threshold, *shares in TRADE:
        found = {row[0]: row[1:] for row in make_shipped.trade(titles[title])}
        assert [f"{100 * share:.0f}" for share in found[threshold]] == [*map(str, shares)]
    used = {(titles[title], threshold) for title, threshold, *_ in TRADE}
    assert used >= {(name, threshold) for _, name, _, threshold in make_shipped.SHIPPED}


def test_the_trade_table_is_ordered():
    """A higher threshold never flags more; all of the work stays where nothing is flagged."""
    for name in make_shipped.MODELS:
        rows = [shares for _, *shares in make_shipped.trade(name)]
        assert rows == sorted(rows, key=lambda shares: shares[1])
        assert rows[-1][:2] == [0, 1]
        assert all(both <= alone for _, alone, both in rows)
    assert make_shipped.render_trade().count("\n") == len(make_shipped.THRESHOLDS) + 3


# ── Plots ────────────────────────────────────────────────────────────────────────────────────────


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


# ── Command line ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --input LOG or --summary FILE, and not both"),
        (("--input", "x", "--summary", SHIPPED), "give --input LOG or --summary FILE"),
        (("--summary", SHIPPED, "--mode", "all"), "--mode needs --input"),
        (("--summary", SHIPPED, "--steps", "3"), "--steps needs --input"),
        (("--input", "x", "--cfg-passes", "2"), "--cfg-passes needs --steps"),
        (("--input", "x", "--rel-rmse-threshold", "1"), "-threshold needs --recording"),
        (("--input", "x", "--sensitive-layers", "l"), "--sensitive-layers needs --cv-threshold"),
        (("--input", "x", "--steps", "0"), "0 is not a positive whole number"),
        (("--input", "x", "--cv-threshold", "nan"), "nan is not a number to compare with"),
        (("--input", "x", "--percentiles", "101"), "percentiles are from 0 to 100"),
        (("--input", "x", "--percentiles", "nan"), "percentiles are from 0 to 100"),
        (("--input", "x", "--percentiles", "99,99.000001"), "equal in six digits"),
        (("--input", "x", "--percent", "9"), "unrecognized arguments: --percent 9"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        analyze_log([*map(str, arguments)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_files_are_checked_before_the_reading(tmp_path, capsys):
    log = log_of(tmp_path, line())
    assert "no such file" in error_of("--input", log, tmp_path / "x", capsys=capsys)
    assert "given twice" in error_of("--input", log, log, capsys=capsys)
    assert "given twice" in error_of("--input", log, "--csv", log, capsys=capsys)
    assert "no such folder" in error_of("--input", log, "--csv", tmp_path / "n/o", capsys=capsys)
    assert "is a folder" in error_of("--input", log, "--json", tmp_path, capsys=capsys)
    assert "is no folder" in error_of("--input", log, "--plots-dir", log, capsys=capsys)
    assert [*tmp_path.iterdir()] == [log]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ConvertError, match="cannot write: No space left"):
        write_bytes(b"x", tmp_path / "out.csv")
    assert not [*tmp_path.iterdir()]


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


def test_a_threshold_on_what_no_summary_has_is_an_error(capsys):
    error = error_of("--summary", SHIPPED, "--rel-rmse-threshold", 0.1, capsys=capsys)
    assert "no layer has a rel_rmse; give --recording FILE" in error


def test_help_has_the_docstring_every_option_and_the_trade():
    command = [sys.executable, str(ROOT / "analyze_input_scale_log.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert LOGS_DESCRIPTION in text
    assert render_trade() in text
    assert "TI2V 5B                 0.16            43 %        64 %               54 %" in text
    for options in LOGS_COMMAND_LINE.values():
        for option in options:
            assert option in text


def test_calls_with_nothing_but_zeros_are_no_malformed_lines(tmp_path, capsys):
    log = log_of(tmp_path, line(), line(amax=0), line())
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert "left out: 1 calls whose input was all zeros" in text
    assert "malformed" not in text
    assert len(rows) == 1
