"""Recordings that are damaged or of another model."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvfp4.errors import ConvertError
from nvfp4.guides.recording import RECORDING_FORMAT, named_as_in, read_recording
from support.files import model_with
from support.plans import plans_of


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.0.ffn.0.quantisation"), "quantisation missing or malformed"),
        (lambda t: t["blocks.0.ffn.0.absmax"].fill_(math.nan), "saw NaN or Inf; record it again"),
        (lambda t: t.update({"blocks.0.ffn.0.tokens": torch.ones(2)}), "tokens missing or malf"),
        (lambda t: t["blocks.0.ffn.0.quantisation"].fill_(-1), "saw NaN or Inf; record it again"),
        (lambda t: t["blocks.0.ffn.0.block_histogram"].fill_(-1), "block_histogram is damaged"),
    ],
)
def test_a_damaged_recording_is_refused(recording, tmp_path, change, message):
    tensors = load_file(recording)
    change(tensors)
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata={"format": RECORDING_FORMAT, "version": "1"})
    with pytest.raises(ConvertError) as error:
        read_recording(path)
    assert str(error.value).startswith(f"{path}: layer blocks.0.ffn.0")
    assert message in str(error.value)


def test_a_recording_of_another_model_is_refused(tiny, recording, tmp_path):
    tensors = load_file(recording)
    tensors["blocks.2.ffn.0.absmax"] = torch.ones(128)
    wrong, other = tmp_path / "wrong.safetensors", tmp_path / "other.safetensors"
    metadata = {"format": RECORDING_FORMAT, "version": "1"}
    save_file(tensors, wrong, metadata=metadata)
    save_file({f"other.{name}": t for name, t in tensors.items()}, other, metadata=metadata)
    columns = r"layers have other columns; it has blocks\.2\.ffn\.0 with 128; the source"
    for path, what in ((wrong, columns), (other, "none of its layers is in the source; it has")):
        with pytest.raises(ConvertError, match=f"is of another model: {what}"):
            plans_of(tiny, "--activation-stats", str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": "["}, "its list of inputs is damaged"),
        ({"inputs": "[1]"}, "its list of inputs is damaged"),
        ({"inputs": '{"a": "b"}'}, "the second moments of layer a are damaged"),
        ({"inputs": '{"blocks.2.ffn.0": []}'}, "layer blocks.2.ffn.0 are damaged"),
        ({"rows": torch.zeros(0, 128).bfloat16()}, "layer blocks.2.ffn.0 are damaged"),
        ({"second_moment_low": torch.zeros(3).byte()}, "layer blocks.2.ffn.0 are damaged"),
        ({"second_moment": None}, "layer blocks.2.ffn.0 are damaged"),
        ({"moment_tokens": torch.tensor(0)}, "layer blocks.2.ffn.0 are damaged"),
        ({"moment_tokens": torch.ones(2).long()}, "layer blocks.2.ffn.0 are damaged"),
        ({"absmax": None}, "layer blocks.2.ffn.0 are damaged"),
        ({"rows": torch.full((4, 256), math.nan).bfloat16()}, "layer blocks.2.ffn.0 are dam"),
    ],
)
def test_damaged_moments_are_refused(moments, tmp_path, change, message):
    with safe_open(moments, "pt") as file:
        metadata = file.metadata()
    tensors, path = load_file(moments), tmp_path / "m.safetensors"
    for name, value in change.items():
        if name == "inputs":
            metadata[name] = value
        elif value is None:
            del tensors[f"blocks.2.ffn.0.{name}"]
        else:
            tensors[f"blocks.2.ffn.0.{name}"] = value
    save_file(tensors, path, metadata)
    with pytest.raises(ConvertError, match=message):
        read_recording(path)


def test_a_recording_has_the_names_that_an_encoders_file_has():
    """ComfyUI's modules have no `language_model` in their names, which files of Qwen3-VL have."""
    names = ["language_model.layers.0.mlp.up_proj", "visual.blocks.0.mlp.up_proj"]
    model = model_with([f"model.{name}.weight" for name in names])
    recorded = {"layers.0.mlp.up_proj": "text", "visual.blocks.0.mlp.up_proj": "picture", "x": "y"}
    found = named_as_in(model, recorded)
    assert found == {names[0]: "text", names[1]: "picture", "x": "y"}
