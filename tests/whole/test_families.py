"""Small models of published families, converted by their presets, in ComfyUI."""

import pytest
from safetensors.torch import load_file

import convert_nvfp4 as c
from support.comfyui import loaded_formats, needs_comfyui, run_comfyui
from support.tiny_models import KINDS, LOAD_AND_RUN, skip_unknown, tiny_model


@needs_comfyui
@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_loads_and_runs_what_the_preset_makes(kind, tmp_path):
    skip_unknown(kind)
    source, out = tiny_model(kind, tmp_path / "m.safetensors"), tmp_path / "o.safetensors"
    command = [str(source), str(out), "--edge-blocks", "1", "--quiet"]
    command += ["--formats", loaded_formats()]
    assert c.main(command) == 0
    exact, _ = run_comfyui(LOAD_AND_RUN, MODEL=str(source), KIND=kind)
    found, log = run_comfyui(LOAD_AND_RUN, MODEL=str(out), KIND=kind)
    assert not any(word in log.lower() for word in ("missing", "unexpected", "left over"))
    assert found["finite"]
    assert found["model"] == exact["model"]
    assert found["config"] == exact["config"]
    stored = load_file(out)
    configs = [bytes(t.tolist()) for n, t in stored.items() if n.endswith(".comfy_quant")]
    assert sum(found["formats"].values()) == len(configs)
    assert found["formats"]["nvfp4"] == sum(b"nvfp4" in config for config in configs) > 0
    assert found["size"] == pytest.approx(exact["size"], rel=0.3)
