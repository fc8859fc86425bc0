"""Plans of the documented commands and of published models, by their real names and shapes."""

import json

import pytest

from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.formats.floats import HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.model import PREFIXES, bare
from nvfp4.plan.records import weights_of
from support.make_families import read_headers
from support.make_golden import COMMANDS, family_text, golden_texts, planned, planned_for
from support.paths import FAMILIES, GOLDEN, ROOT


@pytest.fixture(scope="module")
def texts():
    return golden_texts()


@pytest.mark.parametrize("name", COMMANDS)
def test_plans_of_the_documented_commands(texts, name):
    """After a change that is meant, run tests/support/make_golden.py and read the difference."""
    assert texts[name] == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "nvfp4", "fp8"), [("wan22_i2v_14b_low", 252, 108), ("wan22_ti2v_5b", 182, 0)]
)
def test_counts_of_the_documented_commands(tmp_path, name, nvfp4, fp8):
    size, arguments = COMMANDS[name]
    plans = planned(size, arguments, tmp_path / "m.gguf").plans
    found = [plan for plan in plans if plan.precision is NVFP4]
    assert len(found) == nvfp4
    assert sum(plan.precision is FP8 for plan in plans) == fp8
    assert all(plan.input_scale is not None for plan in found)
    assert all(plan.full_precision for plan in plans if plan.precision is FP8)


def test_a_baked_scale_is_percentile_times_multiplier(tmp_path):
    size, arguments = COMMANDS["wan22_ti2v_5b"]
    plans = planned(size, arguments, tmp_path / "m.gguf").plans
    rows = json.loads((ROOT / "calib/scales_summary_wan22_5b.json").read_text())["layers"]
    expected = {row["layer"]: row["scale_p99_9"] * 1.08 for row in rows}
    found = {plan.ref.layer: plan.input_scale for plan in plans if plan.is_quantised}
    assert found == pytest.approx(expected, rel=1e-12)


MODELS = sorted(path.stem for path in FAMILIES.glob("*.txt"))


RECOGNISED = {
    "anima": "Anima",
    "chroma": "Chroma",
    "chroma_radiance": "Chroma",
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
    "qwen_image_layered": "Qwen-Image (Layered)",
    "wan21_i2v_14b": "Wan (I2V)",
    "wan21_t2v_1.3b": "Wan (T2V)",
    "wan21_t2v_14b": "Wan (T2V)",
    "wan21_vace_14b": "Wan (VACE)",
    "wan22_animate_14b": "Wan (Animate)",
    "wan22_i2v_14b": "Wan (I2V)",
    "wan22_s2v_14b": "Wan (S2V)",
    "wan22_t2v_14b": "Wan (T2V)",
    "wan22_ti2v_5b": "Wan (TI2V)",
    "z_image": "Z-Image",
    "z_image_pixel_space": "Z-Image",
}


@pytest.mark.parametrize("name", MODELS)
def test_plans_of_published_models(name):
    """After a change that is meant, run tests/support/make_golden.py and read the difference."""
    text = family_text(name)
    assert text == (GOLDEN / f"auto_{name}.txt").read_text(encoding="utf-8")
    assert f"recognised as {RECOGNISED[name]}: --preset" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, PREFIXES[0]) for name in MODELS), *(("anima", prefix) for prefix in PREFIXES)],
)
def test_prefixes_change_no_plan(name, prefix):
    shapes = read_headers(FAMILIES / f"{name}.txt")
    plain = {plan.ref.name: plan.precision for plan in planned_for(shapes, []).plans}
    named = planned_for({prefix + name: shape for name, shape in shapes.items()}, [])
    assert {bare(plan.ref.name): plan.precision for plan in named.plans} == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", ["smart", "all"])
def test_general_presets_suit_every_family(name, preset):
    plans = planned_for(read_headers(FAMILIES / f"{name}.txt"), ["--preset", preset]).plans
    linear = [plan for plan in plans if plan.ref.is_linear_weight]
    packed = [plan for plan in linear if plan.precision is NVFP4]
    assert weights_of(packed) > 0.2 * weights_of(linear)
    # Wan S2V has twelve attention layers for sound, which repeat like blocks.
    blocks = (*TRANSFORMER_BLOCKS, "audio_injector.injector")
    for plan in linear:
        outside = not any(f"{block}." in plan.ref.name for block in blocks)
        assert preset == "all" or not outside or plan.precision is HALF
