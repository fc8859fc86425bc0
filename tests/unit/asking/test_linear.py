"""What a ComfyUI tells of the modules of an unknown model decides what is linear."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.asking.linear import modules_told, with_modules
from nvfp4.guides.read import read_guides
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.source.read import read_source


@pytest.fixture
def options(tmp_path):
    """An unknown model of six blocks, one layer of each called as a router of experts would be."""
    layers = {"q": (64, 64), "gate": (64, 64), "positions": (32, 64), "switch": (64, 64)}
    weights = {
        f"blocks.{n}.{name}.weight": torch.randn(shape)
        for n in range(6)
        for name, shape in layers.items()
    }
    save_file(weights, tmp_path / "m.safetensors")
    return Options(source=tmp_path / "m.safetensors", output=tmp_path / "o.safetensors")


def planned(options, told=None):
    source = read_source(options)
    modules = {
        f"blocks.{n}.{name}.weight": module
        for n in range(6)
        for name, module in (told or {}).items()
    }
    model = with_modules(source, modules, ("a note",)).model
    plans = make_plans(options, model, read_guides(options, model)).plans
    return {plan.ref.layer: plan for plan in plans}


def test_names_decide_where_nobody_was_asked(options):
    plans = planned(options)
    titles = {name: plans[f"blocks.3.{name}"].precision.title for name in ("q", "gate", "switch")}
    assert titles == {"q": "NVFP4", "gate": "16-bit", "switch": "NVFP4"}
    assert modules_told(None, read_source(options).model) == ({}, ())


def test_an_answer_decides_both_ways(options):
    told = {"q": "", "gate": "", "positions": "Embedding", "switch": "Router"}
    plans = planned(options, told)
    titles = {name: plans[f"blocks.3.{name}"].precision.title for name in told}
    assert titles == {"q": "NVFP4", "gate": "NVFP4", "positions": "16-bit", "switch": "16-bit"}
    reason = str(plans["blocks.3.switch"].reason)
    assert reason == "your ComfyUI has a Router there, and no linear layer"
