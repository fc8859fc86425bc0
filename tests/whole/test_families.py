"""Published models of every family, by their real names and shapes, and small ones in ComfyUI."""

import pytest
from safetensors.torch import load_file

import convert_nvfp4 as c
from support.comfyui import needs_comfyui, run_comfyui
from support.make_families import read_headers
from support.make_golden import family_text, planned_for
from support.paths import FAMILIES, GOLDEN
from support.tiny_models import KINDS, LOAD_AND_RUN, tiny_model

MODELS = sorted(path.stem for path in FAMILIES.glob("*.txt"))
RECOGNISED = {
    "anima": "Anima",
    "chroma": "Chroma",
    "cosmos_predict2_14b": "Cosmos-Predict2",
    "cosmos_predict2_2b": "Cosmos-Predict2",
    "flux2_dev": "Flux 2",
    "flux2_klein_4b": "Flux 2",
    "flux2_klein_9b": "Flux 2",
    "flux_dev": "Flux (dev)",
    "flux_schnell": "Flux (schnell)",
    "hunyuan_video": "Hunyuan Video",
    "hunyuan_video_15": "Hunyuan Video (1.5)",
    "ltx2": "LTX-2",
    "ltxv_13b": "LTX-Video",
    "ltxv_2b": "LTX-Video",
    "lumina2": "Lumina 2",
    "qwen_image": "Qwen-Image",
    "qwen_image_edit_2511": "Qwen-Image (Edit 2511)",
    "wan21_i2v_14b": "Wan (I2V)",
    "wan21_t2v_1.3b": "Wan (T2V)",
    "wan21_t2v_14b": "Wan (T2V)",
    "wan21_vace_14b": "Wan (VACE)",
    "wan22_i2v_14b": "Wan (I2V)",
    "wan22_t2v_14b": "Wan (T2V)",
    "wan22_ti2v_5b": "Wan (TI2V)",
    "z_image": "Z-Image",
}


@pytest.mark.parametrize("name", MODELS)
def test_plans_of_published_models(name):
    """After a change that is meant, run tests/support/make_golden.py and read the difference."""
    text = family_text(name)
    assert text == (GOLDEN / f"auto_{name}.txt").read_text(encoding="utf-8")
    assert f"recognised as {RECOGNISED[name]}: --preset" in text


@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, c.PREFIXES[0]) for name in MODELS), *(("anima", prefix) for prefix in c.PREFIXES)],
)
def test_prefixes_change_no_plan(name, prefix):
    shapes = read_headers(FAMILIES / f"{name}.txt")
    plain = {plan.ref.name: plan.precision for plan in planned_for(shapes, []).plans}
    named = planned_for({prefix + name: shape for name, shape in shapes.items()}, [])
    assert {c.bare(plan.ref.name): plan.precision for plan in named.plans} == plain


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", ["smart", "all"])
def test_general_presets_suit_every_family(name, preset):
    plans = planned_for(read_headers(FAMILIES / f"{name}.txt"), ["--preset", preset]).plans
    linear = [plan for plan in plans if plan.ref.is_linear_weight]
    packed = [plan for plan in linear if plan.precision is c.Precision.NVFP4]
    assert c.weights_of(packed) > 0.2 * c.weights_of(linear)
    for plan in linear:
        outside = not any(f"{block}." in plan.ref.name for block in c.TRANSFORMER_BLOCKS)
        assert preset == "all" or not outside or plan.precision is c.Precision.HALF


@needs_comfyui
@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_loads_and_runs_what_the_preset_makes(kind, tmp_path):
    source, out = tiny_model(kind, tmp_path / "m.safetensors"), tmp_path / "o.safetensors"
    command = [str(source), str(out), "--edge-blocks", "1", "--quiet"]
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
