"""Input scales from summaries and from files that have them."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.calibration import read_reference_scales, read_summary, summary_calibration
from nvfp4.options import Options
from support.plans import BLOCK, plan_of


def options_with(path, percentile=99.9, multiplier=1.0):
    return Options(
        source=path,
        output="o.safetensors",
        input_scale_summary_json=path,
        input_scale_summary_percentile=percentile,
        input_scale_summary_multiplier=multiplier,
    )


def test_a_summary_gives_both_scales_with_its_multiplier(tmp_path):
    row = {"layer": "diffusion_model.a", "scale_p99_9": 0.001, "amax_p99_9": 2.0}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [row]}))
    rows, notes = read_summary(options_with(path))
    assert notes == []
    found = summary_calibration(options_with(path, multiplier=1.5), rows)
    assert found["a"].scales[NVFP4] == pytest.approx(0.0015)
    assert found["a"].scales[FP8] == pytest.approx(3.0 / 448)
    assert found["a"].source == "summary p99.9 x 1.5"


SUMMARIES = {
    "not JSON": ("{", "the calibration summary is not valid JSON"),
    "no layers": ("{}", "has no list of `layers`"),
    "a row without a name": ('{"layers": [{}]}', "has no list of `layers`"),
    "lacks the percentile": (
        '{"layers": [{"layer": "a", "scale_p50": 1}]}',
        "has no scale_p99_9 for a; it has scale_p50",
    ),
    "text for a number": (
        '{"layers": [{"layer": "a", "scale_p99_9": "1"}]}',
        "layer a: scale_p99_9 must be a positive number, not '1'",
    ),
    "zero": ('{"layers": [{"layer": "a", "scale_p99_9": 0}]}', "must be a positive number, not 0"),
    "beyond float32": (
        '{"layers": [{"layer": "a", "scale_p99_9": 1%s}]}' % ("0" * 400),
        "positive",
    ),
    "two rows": (
        '{"layers": [{"layer": "a", "scale_p99_9": 1}, {"layer": "a", "scale_p99_9": 2}]}',
        "has two rows for layer a",
    ),
    "nothing but NaN": (
        '{"layers": [{"layer": "a", "scale_p99_9": NaN}]}',
        "none of its 1 layers was measured",
    ),
}


@pytest.mark.parametrize(("text", "message"), SUMMARIES.values(), ids=SUMMARIES.keys())
def test_a_wrong_summary_is_one_error(tmp_path, text, message):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ConvertError) as caught:
        summary_calibration(options_with(path), read_summary(options_with(path))[0])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


NEVER_CALLED = {
    "NaN": {"scale_p99_9": math.nan, "amax_p99_9": math.nan},
    "null": {"scale_p99_9": None},
    "NaN for FP8 alone": {"scale_p99_9": 0.5, "amax_p99_9": math.nan},
    "an amax of 0": {"scale_p99_9": 0.0, "amax_max": 0.0},
    "a max_abs of 0": {"scale_p99_9": 0.0, "max_abs": 0},
    "no calls": {"count": 0},
}


@pytest.mark.parametrize("figures", NEVER_CALLED.values(), ids=NEVER_CALLED)
def test_a_layer_that_was_never_called_has_no_scale(tmp_path, figures):
    """The predecessor's files have such rows; they do not make the file a damaged one."""
    names = [name for name in BLOCK if name.endswith("ffn.0.weight")]
    layer = names[0].removesuffix(".weight")
    path = tmp_path / "s.json"
    measured = {"layer": layer, "scale_p99_9": 0.25, "amax_p99_9": 672.0}
    path.write_text(json.dumps({"layers": [measured, {"layer": "x", **figures}]}))
    plans, notes = plan_of(
        tmp_path, BLOCK, "--preset", "all", "--input-scale-summary-json", str(path)
    )
    assert plans[f"{layer}.weight"].input_scale == pytest.approx(0.25)
    assert "s.json: 1 layer was not measured and is left out: x" in notes


def test_rows_without_a_deviation_are_left_out_where_it_counts(tmp_path):
    path = tmp_path / "s.json"
    rows = [{"layer": name, "scale_p99_9": 1.0, "scale_mean": 1.0} for name in "ab"]
    rows[0]["scale_std"], rows[1]["scale_std"] = 0.5, math.nan
    path.write_text(json.dumps({"layers": rows}))
    options = options_with(path)
    assert len(read_summary(options)[0]) == 2
    options = dataclasses.replace(options, input_scale_summary_fp16_std=True)
    assert [row["layer"] for row in read_summary(options)[0]] == ["a"]


def test_reference_scales_are_read_by_the_format_of_their_layer(tmp_path):
    save_file(
        {
            "a.weight": torch.zeros(16, 8, dtype=torch.uint8),
            "a.input_scale": torch.tensor(0.01),
            "b.weight": torch.zeros(16, 16).to(torch.float8_e4m3fn),
            "b.input_scale": torch.tensor(0.5),
        },
        tmp_path / "r.safetensors",
    )
    found, notes = read_reference_scales(tmp_path / "r.safetensors")
    assert notes == []
    assert found["a"].scales[NVFP4] == pytest.approx(0.01)
    assert found["a"].scales[FP8] == pytest.approx(0.06)
    assert found["b"].scales[NVFP4] == pytest.approx(0.5 / 6)


def test_a_reference_scale_of_a_layer_that_is_not_quantised_is_an_error(tmp_path):
    tensors = {"a.weight": torch.zeros(16, 8), "a.input_scale": torch.tensor(0.01)}
    save_file(tensors, tmp_path / "r.safetensors")
    with pytest.raises(ConvertError, match="beside an NVFP4 or FP8 weight"):
        read_reference_scales(tmp_path / "r.safetensors")


def test_a_reference_without_scales_is_an_error(tiny):
    with pytest.raises(ConvertError, match="has no input_scale tensors"):
        read_reference_scales(sorted(tiny.glob("*.safetensors"))[0])


def test_lists_and_summaries_of_another_model_are_errors(tmp_path):
    (tmp_path / "l.txt").write_text("double_blocks.0.img_mlp.0\n")
    with pytest.raises(ConvertError, match=r"l\.txt: is of another model"):
        plan_of(
            tmp_path, BLOCK, "--include", ".", "--full-precision-mm-layers", str(tmp_path / "l.txt")
        )
    (tmp_path / "s.json").write_text('{"layers": [{"layer": "x", "scale_p99_9": 1}]}')
    with pytest.raises(ConvertError, match=r"s\.json: is of another model"):
        plan_of(
            tmp_path,
            BLOCK,
            "--include",
            ".",
            "--input-scale-summary-json",
            str(tmp_path / "s.json"),
        )


GOOD = {"a.weight": torch.zeros(16, 8, dtype=torch.uint8), "a.input_scale": torch.tensor(0.01)}
FP8_WEIGHT = torch.zeros(16, 16).to(torch.float8_e4m3fn)
ODD = {
    "beside a 16-bit layer": (torch.zeros(16, 16), torch.tensor(0.01)),
    "without a weight": (None, torch.tensor(0.01)),
    "of each channel": (FP8_WEIGHT, torch.full((16,), 0.01)),
    "of zero": (FP8_WEIGHT, torch.tensor(0.0)),
    "negative": (FP8_WEIGHT, torch.tensor(-1.0)),
    "infinite": (FP8_WEIGHT, torch.tensor(torch.inf)),
    "NaN": (FP8_WEIGHT, torch.tensor(torch.nan)),
    "of 8-bit integers": (torch.zeros(16, 16, dtype=torch.int8), torch.tensor(0.01)),
    "of E5M2": (torch.zeros(16, 16).to(torch.float8_e5m2), torch.tensor(0.01)),
    "empty": (FP8_WEIGHT, torch.ones(0)),
}


@pytest.mark.parametrize(("weight", "scale"), ODD.values(), ids=ODD)
def test_an_odd_reference_scale_is_left_out_with_a_note(tmp_path, weight, scale):
    path = tmp_path / "r.safetensors"
    odd = {"b.input_scale": scale} | ({} if weight is None else {"b.weight": weight})
    save_file(GOOD | odd, path)
    found, (note,) = read_reference_scales(path)
    assert [name for name, row in found.items() if row.scales] == ["a"]
    assert note.startswith("r.safetensors: 1 input scale is left out")
    assert note.endswith(": b")


def test_reference_scales_are_read_from_an_index_and_a_folder(tmp_path):
    save_file({"a.weight": GOOD["a.weight"]}, tmp_path / "r-1.safetensors")
    save_file({"a.input_scale": GOOD["a.input_scale"]}, tmp_path / "r-2.safetensors")
    index = tmp_path / "r.safetensors.index.json"
    weight_map = {"a.weight": "r-1.safetensors", "a.input_scale": "r-2.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    for path in (index, tmp_path):
        found, notes = read_reference_scales(path)
        assert found["a"].scales[NVFP4] == pytest.approx(0.01)
        assert notes == []


def test_reference_scales_are_read_from_a_folder_of_one_file(tmp_path):
    save_file(GOOD, tmp_path / "r.safetensors")
    assert [*read_reference_scales(tmp_path)[0]] == ["a"]


def test_a_reference_folder_steers_a_plan_and_its_note_is_told(tmp_path):
    folder = tmp_path / "ref"
    folder.mkdir()
    layer = "blocks.0.ffn.0"
    tensors = {f"{layer}.weight": GOOD["a.weight"], f"{layer}.input_scale": torch.tensor(0.02)}
    save_file(tensors | {"old.input_scale": torch.tensor(1.0)}, folder / "r.safetensors")
    plans, notes = plan_of(tmp_path, BLOCK, "--preset", "all", "--input-scale-from", str(folder))
    assert plans[f"{layer}.weight"].input_scale == pytest.approx(0.02)
    assert sum("1 input scale is left out" in note for note in notes) == 1
