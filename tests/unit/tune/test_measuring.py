"""The measured error of a layer's output, against an explicit computation."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.encode.compute import Compute
from nvfp4.errors import ConvertError
from nvfp4.formats.base import written_formats
from nvfp4.formats.encoding import Given
from nvfp4.formats.floats import HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.int8 import INT8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.formats.w4a8 import W4A8
from nvfp4.guides.records import Moments
from nvfp4.numeric.scale_search import SCALE_SEARCHES
from nvfp4.plan.records import UNNAMED, plan_tensor
from nvfp4.read.checkpoint import read_header
from nvfp4.reasons import Reason, Why
from nvfp4.tune.measuring import input_error, made_up_error, weight_error


def relative(error: torch.Tensor, exact: torch.Tensor) -> float:
    return float(error.double().square().sum() / exact.double().square().sum())


@pytest.fixture
def planned(tmp_path):
    """Make a plan of a weight [N, K] in a format, and the weight."""

    def make(form, rows=1600, columns=256, change=None):
        made = torch.Generator().manual_seed(rows)
        weight = torch.randn(rows, columns, generator=made)
        # Rows of different sizes and shapes, as trained weights have them.
        weight *= torch.rand(rows, 1, generator=made) + 0.5
        weight = weight + 0.1 * weight**3
        if change:
            change(weight)
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.safetensors"
        save_file({"a.weight": weight}, path)
        ref = read_header(path)[0]["a.weight"]
        plan = plan_tensor(ref, dataclasses.replace(UNNAMED, precision=form), "BF16")
        return plan, weight

    return make


@pytest.fixture
def compute():
    with Compute(torch.device("cpu"), torch.float32, SCALE_SEARCHES["mse"]) as made:
        yield made


def error_of_all(form, weight, compute) -> float:
    encoded = form.encode(Given("a", weight, weight.abs().amax()), compute)
    return encoded.damage.relative_rmse


@pytest.mark.parametrize("form", written_formats(), ids=str)
def test_some_rows_tell_the_error_of_all(planned, compute, form):
    plan, weight = planned(form)
    expected = error_of_all(form, weight, compute)
    assert weight_error(plan, weight, compute) ** 0.5 == pytest.approx(expected, rel=0.02)
    few, weight = planned(form, rows=1000)
    assert weight_error(few, weight, compute) == error_of_all(form, weight, compute) ** 2


def test_16_bits_lose_what_the_cast_does(planned, compute):
    plan, weight = planned(HALF, rows=1000)
    expected = relative(weight.bfloat16().float() - weight, weight)
    assert weight_error(plan, weight, compute) == pytest.approx(expected, rel=1e-4)
    assert input_error(plan, weight) == 0


def test_scales_are_those_of_the_whole_weight(planned, compute):
    """An outlier in a row that is not measured takes precision from all block scales."""

    def outlier(weight):
        weight[1, 0] = 1e6

    plan, weight = planned(NVFP4, change=outlier)
    assert weight_error(plan, weight, compute) ** 0.5 > 0.11
    plan, weight = planned(NVFP4)
    assert weight_error(plan, weight, compute) ** 0.5 < 0.1


def test_nan_is_refused_in_whatever_row(planned, compute):
    plan, weight = planned(NVFP4)
    weight[1, 0] = torch.nan
    with pytest.raises(ConvertError, match="holds NaN"):
        weight_error(plan, weight, compute)


@pytest.mark.parametrize(
    ("form", "input_scale"), [(NVFP4, None), (NVFP4, 2e-3), (FP8, 0.02), (INT8, None), (W4A8, None)]
)
def test_recorded_activations_count_with_the_weight(planned, tmp_path, form, input_scale):
    plan, weight = planned(form, rows=128)
    recordings, given = [], []
    for index in range(2):
        made = torch.Generator().manual_seed(index)
        rows = torch.randn(32, 256, generator=made) * torch.randn(256, generator=made).exp()
        save_file({"rows": rows.bfloat16()}, tmp_path / f"r{index}.safetensors")
        refs, _ = read_header(tmp_path / f"r{index}.safetensors")
        recordings.append((None, None, refs["rows"]))
        given.append(rows.bfloat16().float())
    rows = torch.cat(given)
    moments = Moments(recordings=tuple(recordings))
    plan = dataclasses.replace(plan, moments=moments, input_scale=input_scale)
    error = form.quantised_input(rows, input_scale) - rows
    expected = relative(error @ weight.t(), rows @ weight.t())
    assert 0 < expected == pytest.approx(input_error(plan, weight), rel=1e-5)
    marked = dataclasses.replace(plan, full_precision=Reason(Why.OPTION, "a mark"))
    if form.takes_mark:
        assert input_error(marked, weight) == 0


def test_made_up_activations_err_as_recorded_ones_do(planned):
    """The figures are those of a recording of the small Wan (see SPREAD)."""
    for form, columns, recorded in (
        (NVFP4, 256, 0.0934), (NVFP4, 768, 0.0927), (INT8, 256, 0.0067), (INT8, 768, 0.0077),
        (W4A8, 256, 0.0067), (FP8, 256, 0.0264),
    ):  # fmt: skip
        assert made_up_error(form, columns) ** 0.5 == pytest.approx(recorded, rel=0.06)
    plan, weight = planned(NVFP4, rows=32)
    assert input_error(plan, weight) == made_up_error(NVFP4, 256)
