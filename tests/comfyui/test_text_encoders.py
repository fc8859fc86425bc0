"""A text encoder converted and checked in ComfyUI's queue."""

import pytest
from safetensors.torch import load_file, save_file

from support.comfyui_server import needs_server
from support.small_t5 import t5

pytestmark = [needs_server, pytest.mark.slow]
SOURCE = "text_encoders/t5.safetensors"


def text_of(prompt, number: str) -> str:
    """What a node shows on itself at its end."""
    return "\n".join(map(str, prompt.outputs[number]["text"]))


def test_an_encoder_is_converted_into_its_folder_and_checked(server, client):
    folder = server.base / "models" / "text_encoders"
    save_file(t5(), folder / "t5.safetensors")
    check = server.node("NVFP4CheckFile", model_file=["1", 0], source=SOURCE)
    prompt = client.run({"1": server.convert(SOURCE, "t5_small"), "2": check})
    assert prompt.ended == "execution_success", prompt.error
    made = load_file(folder / "t5_small.safetensors")
    assert made["shared.weight"].shape == (96, 256)
    assert made["encoder.block.5.layer.0.SelfAttention.q.weight"].shape == (256, 128)
    assert not server.model("t5_small.safetensors").exists()
    assert "node Load CLIP, type wan" in text_of(prompt, "1")
    checked = text_of(prompt, "2")
    assert checked.startswith("verdict   no defect found")
    assert "compared with the source: 169 layers" in checked


def test_an_encoder_is_checked_alone(server, client):
    folder = server.base / "models" / "text_encoders"
    save_file(t5(), folder / "t5_alone.safetensors")
    name = "text_encoders/t5_alone.safetensors"
    prompt = client.run({"1": server.node("NVFP4CheckFile", model_file=name, source="none")})
    assert prompt.ended == "execution_success", prompt.error
    assert "nothing is quantised" in text_of(prompt, "1")
    assert "node Load CLIP, type wan" in text_of(prompt, "1")
