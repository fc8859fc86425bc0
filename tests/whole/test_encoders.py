"""Small text encoders of every kind, converted, loaded and encoded with by a real ComfyUI."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

import convert_nvfp4 as c
from support.comfyui import loaded_formats, needs_comfyui, run_comfyui
from support.tiny_encoders import ENCODE, MAKE, TINY_ENCODERS

pytestmark = [needs_comfyui, pytest.mark.slow]

# {plan: (options, the largest error that its formats explain, kinds that are converted so)}.
PLANS = {
    "auto": ([], 0.3, TINY_ENCODERS),
    "int8": (["--recipe", "int8"], 0.1, ("umt5", "qwen3_vl")),
    "w4a8": (["--recipe", "w4a8"], 0.3, ("umt5", "qwen3_vl")),
    "fp8": (["--formats", "nvfp4,fp8,16bit"], 0.4, ("umt5", "qwen3_vl")),
    "all": (["--preset", "all", "--formats", "nvfp4,fp8,16bit"], 0.5, ("umt5", "qwen3_vl")),
}
CASES = [(kind, plan) for plan, (_, _, kinds) in PLANS.items() for kind in kinds]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """{(kind, plan): (stored tensors, what ComfyUI said, formats, output, the 16-bit one's)}."""
    folder = tmp_path_factory.mktemp("encoders")
    known, _ = run_comfyui(MAKE, FOLDER=str(folder))
    formats, files = (
        loaded_formats(),
        {(kind, ""): f"{folder}/{kind}.safetensors" for kind in known},
    )
    for kind, plan in CASES:
        if kind in known and not (plan == "w4a8" and "w4a8" not in formats):
            options, *_ = PLANS[plan]
            named = [] if options else ["--formats", formats]
            files[kind, plan] = f"{folder}/{kind}_{plan}.safetensors"
            command = [files[kind, ""], files[kind, plan], "--quiet", *options, *named]
            assert c.main(command) == 0
    found, _ = run_comfyui(ENCODE, FILES=json.dumps([[k, path] for (k, _), path in files.items()]))
    result = {
        key: (load_file(path), told, Counter(kinds), torch.load(out))
        for (key, path), (told, kinds, out) in zip(files.items(), found, strict=True)
    }
    return {key: (*row, result[key[0], ""][3]) for key, row in result.items()}


@pytest.mark.parametrize(("kind", "plan"), CASES)
def test_comfyui_encodes_with_what_was_converted(kind, plan, encoded):
    if (kind, plan) not in encoded:
        pytest.skip("this ComfyUI does not know the encoder, or the format")
    stored, told, formats, out, exact = encoded[kind, plan]
    assert [line for line in told if line != "clip unexpected: ['spiece_model']"] == []
    configs = [bytes(t.tolist()) for n, t in stored.items() if n.endswith(".comfy_quant")]
    assert sum(formats.values()) == len(configs) > 0
    assert formats["nvfp4"] == sum(b"nvfp4" in config for config in configs)
    assert out.isfinite().all()
    error = float((out - exact).norm() / exact.norm())
    assert 0 < error < PLANS[plan][1]
