"""Exact figures, and percentiles of more values than are kept."""

import numpy as np
import pytest
import torch

from nvfp4.guides.columns import percentile_key
from nvfp4.logs.records import LOG_DEFAULTS
from nvfp4.logs.series import LEAST, MOST
from nvfp4.logs.statistics import PENDING, Tally, folded, tally_figures
from support.logs import line, log_of, rows_of


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
    return found | dict(zip(map(percentile_key, percentiles), quantiles, strict=True))


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
