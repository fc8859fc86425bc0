"""Real ComfyUI in a process of its own, on the CPU. COMFYUI_ROOT names the checkout.

conftest.py renames that variable, as the product asks the ComfyUI that it names, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvfp4.asking.find import version_of
from nvfp4.options.formats import DEFAULT_FORMATS
from nvfp4.plan.choosing import format_called
from support.paths import ROOT

# The checkout, "" for none.
COMFYUI = os.environ.get("TESTED_COMFYUI", os.environ.get("COMFYUI_ROOT", ""))

needs_comfyui = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_ROOT names no ComfyUI checkout")

ABSENT = """
import importlib.abc, importlib.machinery, sys, types
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
"""

PREAMBLE = (
    ABSENT
    + """
import json, logging, os, sys
sys.argv = ["x"]
sys.path.insert(0, os.environ.get("TESTED_COMFYUI") or os.environ["COMFYUI_ROOT"])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
import torch
from comfy.cli_args import args
args.cpu = True
import comfy.sd, comfy.utils
"""
)


def loaded_formats() -> str:
    """What --formats may be for the checkout: what presets choose from, if its version loads it."""
    version = numbers(version_of(Path(COMFYUI)))
    words = (word for word in DEFAULT_FORMATS if numbers(format_called(word).since) <= version)
    return ",".join(words)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def run_comfyui(script: str, **environment: str) -> tuple[dict, str]:
    """What a script prints after RESULT, and what ComfyUI logged before."""
    command, given = [sys.executable, "-c", script], os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    log, _, result = done.stdout.partition("RESULT ")
    return json.loads(result), log


@pytest.fixture(scope="session")
def stubbed(tmp_path_factory):
    """PYTHONPATH of a process that goes without torchaudio and torchvision."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(ABSENT, encoding="utf-8")
    return str(folder)
