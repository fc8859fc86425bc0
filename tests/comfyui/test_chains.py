"""Nodes linked to one another in one queue: check, LoRAs, what is loaded, calibration."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.comfyui_server import needs_server
from support.workflows import loader, node, sampling

pytestmark = [needs_server, pytest.mark.slow]


@pytest.fixture(scope="module")
def lora(server) -> str:
    """A LoRA of rank 4 on every attention q of the small Wan."""
    made, generator = {}, torch.Generator().manual_seed(1)
    for name, weight in load_file(server.model("wan.safetensors")).items():
        if name.endswith("self_attn.q.weight"):
            layer = "diffusion_model." + name.removesuffix(".weight")
            rows, columns = weight.shape
            made[f"{layer}.lora_up.weight"] = torch.randn(rows, 4, generator=generator) * 0.05
            made[f"{layer}.lora_down.weight"] = torch.randn(4, columns, generator=generator) * 0.05
    save_file(made, server.base / "models" / "loras" / "lora.safetensors")
    return "lora.safetensors"


def test_convert_and_check_in_one_queue(server, client):
    workflow = {
        "1": server.convert("wan.safetensors", "checked"),
        "2": server.node("NVFP4CheckFile", model_file=["1", 0], source="wan.safetensors"),
    }
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    [text], [name] = prompt.outputs["2"]["text"], prompt.outputs["2"]["nvfp4_page"]
    assert "checked.safetensors" in text
    assert "no defect" in text
    page = server.get_bytes(f"nvfp4/page/{name}").decode()
    assert "blocks.3.ffn.0" in page


def test_a_loaded_model_with_its_lora_is_what_the_merging_conversion_makes(server, client, lora):
    kinds = server.get("object_info")
    if "NVFP4ConvertModel" not in kinds:
        pytest.skip("this pack converts no loaded model")
    patched = node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0)
    workflow = {
        "1": loader("wan.safetensors"),
        "2": patched,
        "3": server.node("NVFP4ConvertModel", model=["2", 0], name="from_memory"),
        "4": server.node("NVFP4MergeLora", lora_name=lora, strength=1.0),
        "5": server.convert("wan.safetensors", "from_file", loras=["4", 0]),
        "6": server.convert("wan.safetensors", "without"),
    }
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    memory, file, without = (
        load_file(server.model(f"{name}.safetensors"))
        for name in ("from_memory", "from_file", "without")
    )
    assert memory.keys() == file.keys()
    changed = [
        name for name in file if not torch.equal(bytes_of(memory[name]), bytes_of(file[name]))
    ]
    moved = [
        name for name in file if not torch.equal(bytes_of(without[name]), bytes_of(file[name]))
    ]
    assert changed == []
    assert any("self_attn.q" in name for name in moved)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_calibrate_then_convert_in_one_queue(server, client):
    parts = sampling(loader("wan.safetensors"))
    workflow = {key: parts[key] for key in ("1", "2", "5")}
    workflow["8"] = server.node(
        "NVFP4Calibrate", model=["1", 0], clip=["2", 0], latent=["5", 0], steps=2, cfg=1.0,
        prompts="a red square\ntwo green discs", name="chained",
    )  # fmt: skip
    workflow["9"] = server.convert("wan.safetensors", "calibrated", statistics=["8", 0])
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    made = load_file(server.model("calibrated.safetensors"))
    assert any(name.endswith("input_scale") for name in made)
