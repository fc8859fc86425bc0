"""What is loaded, with a LoRA, converted in ComfyUI's queue: the bytes of the command line."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvfp4.conversion import convert
from nvfp4.options import Options
from support.comfyui_server import needs_server
from support.workflows import loader, node, sampling

pytestmark = [needs_server, pytest.mark.slow]

# The inputs of the node; the formats are such as ComfyUI 0.29 loads, too.
SETTINGS = {
    "goal": "balanced", "card": "any card", "target_size_gb": 0.0, "statistics": "none",
    "name": "", "overwrite": False, "recipe": "mixed", "recipe_file": "none", "gguf": "none",
    "formats": "nvfp4,int8,16bit", "device": "cpu", "more_options": "",
}  # fmt: skip


def as_stored(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def lora(server):
    """A LoRA of all layers of the blocks, alpha / rank a power of two, and of one bias."""
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name, weight in load_file(server.model("wan.safetensors")).items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            for part, shape in (("up", (len(weight), 8)), ("down", (8, weight.shape[1]))):
                values = torch.randn(shape, generator=generator) * 0.05
                parts[f"{layer}.lora_{part}.weight"] = values.bfloat16()
            parts[f"{layer}.alpha"] = torch.tensor(4.0)
    parts["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.full((768,), 0.01)
    path = server.base / "models" / "loras" / "style.safetensors"
    save_file(parts, path)
    return path


def workflow(strength=0.5, **settings):
    """The loader, the LoRA, the node that converts, and what samples from its file."""
    made = sampling(loader("wan.safetensors"), steps=2)
    made["10"] = made.pop("1")
    made["11"] = node(
        "LoraLoaderModelOnly", model=["10", 0], lora_name="style.safetensors",
        strength_model=strength,
    )  # fmt: skip
    made["12"] = node("NVFP4ConvertModel", model=["11", 0], **SETTINGS | settings)
    made["1"] = node("UNETLoader", unet_name=["12", 0], weight_dtype="default")
    return made


def test_a_loaded_model_and_its_lora_become_the_bytes_of_the_command_line(
    server, client, lora, tmp_path
):
    prompt = client.run(workflow())
    assert prompt.ended == "execution_success", prompt.error
    made = server.model("wan-style_nvfp4.safetensors")
    convert(
        Options(
            source=server.model("wan.safetensors"), output=tmp_path / "o.safetensors",
            merge_lora=[(lora, 0.5)], formats=SETTINGS["formats"], quiet=True,
        )
    )  # fmt: skip
    here, there = load_file(made), load_file(tmp_path / "o.safetensors")
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert tensor.dtype == there[name].dtype
        assert torch.equal(as_stored(tensor), as_stored(there[name]))
    with safe_open(made, "pt") as file, safe_open(tmp_path / "o.safetensors", "pt") as other:
        record, usual = (json.loads(f.metadata()["convert_nvfp4"]) for f in (file, other))
    assert record["options"]["merge_lora"] == [["style.safetensors", 0.5]]
    assert [*record["sources"]] == ["wan.safetensors"]
    assert record["options"] == usual["options"]
    assert record["plan"] == usual["plan"]


@pytest.mark.usefixtures("lora")
def test_a_file_with_other_patches_is_not_taken_for_this_one(client):
    assert client.run(workflow()).ended == "execution_success"
    prompt = client.run(workflow(strength=0.75))
    assert prompt.ended == "execution_error"
    assert "exists already, with other LoRAs merged" in prompt.error["exception_message"]
    assert client.run(workflow(strength=0.75, name="other")).ended == "execution_success"
    assert client.run(workflow(strength=0.5, goal="balanced")).ended == "execution_success"
