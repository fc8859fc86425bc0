"""Small text encoders of every kind, converted, loaded and encoded with by a real ComfyUI."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.all_in_one import MODEL, T5
from support.comfyui import loaded_formats, needs_comfyui, run_comfyui
from support.tiny_encoders import CLIP, ENCODE, MAKE, TINY_ENCODERS
from support.tiny_models import tiny_model

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


def test_comfyui_encodes_with_a_converted_encoder_beside_clip(tmp_path):
    """As DualCLIPLoader does for Flux.1: T5 converted, CLIP-L as it is."""
    run_comfyui(MAKE, FOLDER=str(tmp_path), KINDS="t5,clip_l")
    given, made, clip = (f"{tmp_path}/{name}.safetensors" for name in ("t5", "small", "clip_l"))
    assert c.main([given, made, "--formats", loaded_formats(), "--quiet"]) == 0
    files = [["flux", f"{path}|{clip}"] for path in (given, made)]
    found, _ = run_comfyui(ENCODE, FILES=json.dumps(files))
    (told, whole, exact), (also, packed, out) = found
    exact, out = torch.load(exact), torch.load(out)
    assert (told, whole) == (also, {})
    assert packed.keys() == {"nvfp4", "int8_tensorwise"}
    assert out.isfinite().all()
    assert 0 < float((out - exact).norm() / exact.norm()) < PLANS["auto"][1]
    # The last numbers are CLIP's, which nothing changed.
    assert torch.equal(out[-CLIP["hidden_size"] :], exact[-CLIP["hidden_size"] :])


def test_comfyui_encodes_with_the_encoder_of_a_converted_checkpoint(tmp_path):
    """Untouched by default, with the same numbers; converted where that is asked for."""
    run_comfyui(MAKE, FOLDER=str(tmp_path), KINDS="umt5")
    model = load_file(tiny_model("wan_t2v", tmp_path / "wan.safetensors"))
    encoder = load_file(tmp_path / "umt5.safetensors")
    spiece = {"text_encoders.spiece_model": encoder.pop("spiece_model")}
    whole = {MODEL + name: t for name, t in model.items()} | spiece
    save_file(whole | {T5 + name: t for name, t in encoder.items()}, tmp_path / "in.safetensors")
    plans = {"out": [], "encoder": ["--text-encoder-preset", "auto"]}
    for name, options in plans.items():
        command = [tmp_path / "in.safetensors", tmp_path / f"{name}.safetensors", *options]
        assert c.main([*map(str, command), "--formats", loaded_formats(), "--quiet"]) == 0
    files = [["umt5", f"{tmp_path}/{name}.safetensors"] for name in ("in", *plans)]
    found, _ = run_comfyui(ENCODE, FILES=json.dumps(files))
    exact, same, packed = (torch.load(out) for _, _, out in found)
    formats = [Counter(kinds) for _, kinds, _ in found]
    assert formats[:2] == [Counter(), Counter()]
    assert torch.equal(exact, same)
    assert formats[2].keys() == {"nvfp4", "int8_tensorwise"}
    assert 0 < float((packed - exact).norm() / exact.norm()) < PLANS["auto"][1]
    # What ComfyUI says of names is what it says of the source.
    assert found[0][0] == found[1][0] == found[2][0]
