"""A format's error hardly depends on the layer, and what is far above it is named."""

import math

import pytest
import torch

from nvfp4.encode.compute import Compute, single_threaded
from nvfp4.formats.base import Format, format_titled
from nvfp4.formats.encoding import Given
from nvfp4.numeric.damage import Damage
from nvfp4.numeric.scale_search import SCALE_SEARCHES
from nvfp4.report.usual import STANDS_OUT, errors_data, outliers_data, render_errors

WEIGHTS = {
    "normal": lambda normal: normal,
    "Laplace": lambda normal: normal.sign() * normal.abs() ** 2,
    "rows of many sizes": lambda normal: normal * normal[:, :1].exp(),
    "columns of many sizes": lambda normal: normal * normal[:1].exp(),
}
WRITTEN = [form.title for form in Format.rows if form.is_quantised and form.name]


def test_every_format_that_is_written_has_a_usual_error():
    assert all(format_titled(title).usual_error for title in WRITTEN)


@pytest.mark.parametrize("search", SCALE_SEARCHES)
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("title", [title for title in WRITTEN if title != "INT8 not rotated"])
def test_no_usual_layer_stands_out(title, kind, search):
    normal = torch.randn(32, 512, generator=torch.Generator().manual_seed(1))
    weight, form = WEIGHTS[kind](normal), format_titled(title)
    with (
        single_threaded() as threads,
        Compute(torch.device("cpu"), torch.float32, SCALE_SEARCHES[search], threads) as compute,
    ):
        found = form.encode(Given("x", weight, weight.abs().amax()), compute).damage
    assert 0.7 * form.usual_error < found.relative_rmse < 1.25 * form.usual_error
    assert outliers_data({"x": found}, {"x": form}) == []


def damages(**errors):
    return {layer: Damage(error=error**2, energy=1.0) for layer, error in errors.items()}


def test_what_stands_out_is_named_the_worst_first():
    forms = {"a": format_titled("NVFP4"), "b": format_titled("INT8"), "c": format_titled("NVFP4")}
    found = damages(a=0.2, b=0.1, c=0.08)
    found["d"] = Damage(error=math.nan, energy=1.0)
    forms["d"] = forms["a"]
    outliers = outliers_data(found, forms)
    assert [one["layer"] for one in outliers] == ["d", "b", "a"]
    assert outliers[0]["error"] is None
    lines = render_errors(errors_data(found, forms), outliers)
    assert lines[0] == "3 of 4 layers stand out from what is usual for their format:"
    assert lines[1:3] == ["  no number  d (NVFP4, usual 0.082)", "  0.1  b (INT8, usual 0.009)"]


def test_layers_rounded_by_statistics_are_judged_by_their_output():
    form, energy = format_titled("NVFP4"), 1.0
    found = Damage(error=0.04, energy=energy, output_before=0.05, output_after=0.02)
    assert outliers_data({"a": found}, {"a": form}) == []
    lost = Damage(error=0.0, energy=energy, output_before=0.5, output_after=0.2)
    assert STANDS_OUT * form.usual_error < 0.2
    assert [one["error"] for one in outliers_data({"a": lost}, {"a": form})] == [0.2]


def test_no_measured_layer_says_nothing():
    assert render_errors({}, []) == []
    data = errors_data(damages(a=0.08), {"a": format_titled("NVFP4")})
    assert render_errors(data, []) == [
        "all as usual for their format: NVFP4 0.08 (median relative RMSE)"
    ]
