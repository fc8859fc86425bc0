"""Real ComfyUI in a process of its own, on the CPU. COMFYUI_ROOT names the checkout."""

import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT

needs_comfyui = pytest.mark.skipif(
    "COMFYUI_ROOT" not in os.environ, reason="COMFYUI_ROOT names no ComfyUI checkout"
)

PREAMBLE = """
import importlib.abc, importlib.machinery, json, logging, os, sys, types
from unittest.mock import MagicMock
sys.argv = ["x"]
sys.path.insert(0, os.environ["COMFYUI_ROOT"])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")

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
"""


def run_comfyui(script: str, **environment: str) -> tuple[dict, str]:
    """What a script prints after RESULT, and what ComfyUI logged before."""
    command, given = [sys.executable, "-c", script], os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    log, _, result = done.stdout.partition("RESULT ")
    return json.loads(result), log
