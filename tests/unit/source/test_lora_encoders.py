"""LoRAs of text encoders: merged where an encoder is converted, and nowhere else."""

import pytest

from nvfp4.families import ENCODERS, recognise
from nvfp4.model import Lora
from nvfp4.source.lora_names import layer_names, locate
from nvfp4.source.loras import read_lora
from support.files import model_with
from support.loras import lora, opened
from support.make_families import read_headers
from support.paths import FAMILIES

T5 = "encoder.block.2.layer.0.SelfAttention.q"
QWEN = "layers.2.self_attn.q_proj"


def encoder(name):
    """A text encoder of which names and shapes alone are there."""
    shapes = read_headers(FAMILIES / "encoders" / f"{name}.txt")
    model = model_with([*shapes])
    for tensor, shape in shapes.items():
        object.__setattr__(model.tensors[tensor], "shape", shape)
    assert recognise(model)[0] in ENCODERS
    return model


@pytest.mark.parametrize(("name", "layer"), [("umt5_xxl", T5), ("qwen3_4b", QWEN)])
@pytest.mark.parametrize(
    "spelling",
    [
        "{}", "text_encoders.x.transformer.{}", "text_encoders.transformer.{}", "text_encoder.{}",
        "text_encoder_2.{}", "lora_te_{flat}", "lora_te3_{flat}",
        "text_encoder.base_model.model.{}",
    ],
)  # fmt: skip
def test_spellings_of_an_encoders_layer(tmp_path, name, layer, spelling):
    model = encoder(name)
    key = spelling.format(layer, flat=layer.replace(".", "_"))
    (target,) = (tensor for tensor in model.tensors if tensor.endswith(f"{layer}.weight"))
    shape = model.tensors[target].shape
    (path,) = opened(tmp_path, lora(key, shape, rank=1), "lora").files
    found = read_lora(Lora(path, 1.0), model)
    assert [*found.patches] == [target]
    assert not found.problems


def test_what_is_of_the_diffusion_model_is_not_merged_into_the_encoder(tmp_path):
    model = encoder("qwen3_4b")
    (target,) = (tensor for tensor in model.tensors if tensor.endswith(f"{QWEN}.weight"))
    shape = model.tensors[target].shape
    keys = lora(f"text_encoder.{QWEN}", shape, rank=1)
    keys |= lora(f"transformer.{QWEN.replace('2', '3')}", shape, rank=1)
    (path,) = opened(tmp_path, keys, "lora").files
    found = read_lora(Lora(path, 1.0), model)
    assert [*found.patches] == [target]
    assert "2 keys match no tensor" in found.problems[0]


def test_an_encoders_lora_is_not_merged_into_a_diffusion_model():
    names = layer_names({"decoder.layers.2.self_attn.q_proj.weight": None})
    assert locate(f"text_encoder.{QWEN}", names) is None
    assert locate(f"lora_te_{QWEN.replace('.', '_')}", names) is None
