"""Plans of text encoders: embeddings, marks, norms, and options that have no use there."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.cli.parse import parse_options
from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from support.small_t5 import LAST, t5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "umt5.safetensors"
    norm = torch.ones(256)
    save_file(t5(**{"encoder.final_layer_norm.weight": norm}), path)
    return path


def planned(source, *arguments):
    return convert(parse_options([str(source), "o.safetensors", "--dry-run", *arguments]))


def test_a_text_encoder_is_converted_and_read_back(source, tmp_path):
    output = tmp_path / "o.safetensors"
    report = convert(parse_options([str(source), str(output), "--quiet"]))
    found = load_file(output)
    block = "encoder.block.1.layer"
    dtypes = {
        "encoder.block.0.layer.0.SelfAttention.q.weight": torch.int8,
        f"{block}.0.SelfAttention.q.weight": torch.uint8,
        f"{block}.0.SelfAttention.v.weight": torch.int8,
        f"{LAST}.weight": torch.int8,
        "shared.weight": torch.int8,
        f"{block}.0.SelfAttention.relative_attention_bias.weight": torch.bfloat16,
        # ComfyUI computes in the dtype of this norm.
        "encoder.final_layer_norm.weight": torch.bfloat16,
        f"{block}.0.layer_norm.weight": torch.float16,
    }
    assert {name: found[name].dtype for name in dtypes} == dtypes
    # What ComfyUI recognises it by keeps its rows.
    assert len(found[f"{LAST}.weight"]) == 10240
    assert found["spiece_model"].tolist() == [*range(9)]
    with safe_open(output, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    marked = {"format": "nvfp4", "full_precision_matrix_mult": True}
    assert layers[f"{block}.0.SelfAttention.q"] == marked
    assert "full_precision_matrix_mult" not in layers["shared"]
    assert not any(name.endswith("input_scale") for name in found)
    assert report.work["shares"] == {"FP4": 0, "INT8 or FP8": 0, "16-bit": 1}
    assert set(report.damage) == set(layers)
    assert main(["--verify", str(output), "--source", str(source), "--quiet"]) == 0


def test_it_is_told_where_the_file_goes_and_that_it_saves_no_time(source, capsys):
    assert main([str(source), "o.safetensors", "--dry-run", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "recognised as T5 (umt5-xxl): --preset t5" in printed
    assert "into models/text_encoders; node Load CLIP, type wan\n" in printed
    assert "100 % in 16" in printed
    assert "W4A4" not in printed
    assert "the file saves memory, and no time" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "int8"], {"INT8"}),
        (["--recipe", "w4a8"], {"W4A8", "INT8"}),
        (["--formats", "nvfp4,fp8,16bit"], {"NVFP4", "FP8"}),
        (["--preset", "smart"], {"NVFP4", "INT8"}),
        (["--preset", "all"], {"NVFP4", "INT8"}),
    ],
)
def test_every_format_is_decoded(arguments, expected, source):
    plans = planned(source, *arguments).plans
    quantised = [plan for plan in plans if plan.is_quantised]
    assert {plan.precision.kind for plan in quantised} == expected
    assert all(plan.is_decoded or plan.is_looked_up for plan in quantised)
    multiplied = [plan for plan in quantised if not plan.is_looked_up]
    assert not any(plan.input_scale or plan.quantises_input for plan in multiplied)


def test_without_formats_of_8_bits_embeddings_stay(source):
    plans = {plan.ref.name: plan for plan in planned(source, "--formats", "nvfp4,16bit").plans}
    assert not plans["shared.weight"].is_quantised


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-input-scale"],
        ["--input-scale-value", "1"],
        ["--fp8-full-precision-mm"],
        ["--full-precision-mm-pattern", "wo"],
        ["--sensitive-as", "int8"],
        ["--target-ratio", "0.5", "--fp4-share", "0.5"],
    ],
)
def test_options_without_a_use_are_refused(arguments, source):
    with pytest.raises(ConvertError, match=r"is a text encoder, and --.* has no use there"):
        planned(source, *arguments)


def test_a_missing_tokenizer_is_told(tmp_path):
    tensors = t5()
    del tensors["spiece_model"]
    save_file(tensors, tmp_path / "t5.safetensors")
    notes = planned(tmp_path / "t5.safetensors").notes
    assert any("lacks spiece_model, the tokenizer" in note for note in notes)


def test_what_comfyui_loads_in_16_bits_alone_is_refused(tmp_path):
    path = tmp_path / "clip_l.safetensors"
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(8, 8)}, path)
    with pytest.raises(ConvertError, match=r"a text encoder \(CLIP L\): .* in 16 bits alone"):
        planned(path)
