"""Plans of the documented commands and of published models, by their real names and shapes."""

import json

import pytest

from nvfp4.errors import ConvertError
from nvfp4.families import TRANSFORMER_BLOCKS
from nvfp4.formats.floats import HALF, KEPT
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.model import PREFIXES, bare
from nvfp4.plan.records import weights_of
from support.make_encoders import ENCODER_MODELS
from support.make_families import MODELS as PUBLISHED
from support.make_families import read_facts, read_headers
from support.make_golden import (
    COMMANDS,
    CONVERTED_ENCODERS,
    encoder_text,
    family_text,
    golden_texts,
    planned,
    planned_for,
)
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


# Each that a preset is for has a row in the tables of published models.
MODELS = sorted(path.stem for path in FAMILIES.glob("*.txt"))
# A model of each family, the variants of which differ in few layers.
ONE_OF_EACH = sorted(
    {PUBLISHED[name].recognised.partition(" (")[0]: name for name in MODELS}.values()
)


def test_each_published_model_has_a_file_that_says_where_it_comes_from():
    for name, model in PUBLISHED.items():
        path = FAMILIES / ("" if model.recognised else "others") / f"{name}.txt"
        assert path.read_text(encoding="utf-8").startswith(model.facts(name) + "\n")
        assert [*read_facts(path)] == ["title", "class", "detected as", "ComfyUI", "source"]


@pytest.mark.parametrize("name", MODELS)
def test_plans_of_published_models(name):
    """After a change that is meant, run tests/support/make_golden.py and read the difference."""
    text = family_text(name)
    assert text == (GOLDEN / f"auto_{name}.txt").read_text(encoding="utf-8")
    assert f"recognised as {PUBLISHED[name].recognised}: --preset" in text


@pytest.mark.parametrize("name", CONVERTED_ENCODERS)
def test_plans_of_published_text_encoders(name):
    text = encoder_text(name)
    assert text == (GOLDEN / f"encoder_{name}.txt").read_text(encoding="utf-8")
    assert f"recognised as {ENCODER_MODELS[name].published.recognised}: --preset" in text


@pytest.mark.parametrize("name", sorted(ENCODER_MODELS.keys() - set(CONVERTED_ENCODERS)))
def test_text_encoders_that_comfyui_loads_in_16_bits_alone_are_refused(name):
    with pytest.raises(ConvertError, match="ComfyUI loads it in 16 bits alone"):
        encoder_text(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, PREFIXES[0]) for name in ONE_OF_EACH), *(("anima", prefix) for prefix in PREFIXES)],
)
def test_prefixes_change_no_plan(name, prefix):
    shapes = read_headers(FAMILIES / f"{name}.txt")
    plain = {plan.ref.name: plan.precision for plan in planned_for(shapes, []).plans}
    named = planned_for({prefix + name: shape for name, shape in shapes.items()}, [])
    named = {bare(plan.ref.name): plan.precision for plan in named.plans}
    if name == "yue2":  # Its own names begin with "model." as a rule: the others pass for beside.
        named = {n: plain[n] if plain[n] is KEPT else precision for n, precision in named.items()}
    assert named == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("preset", ["smart", "all"])
def test_general_presets_suit_every_family(name, preset):
    plans = planned_for(read_headers(FAMILIES / f"{name}.txt"), ["--preset", preset]).plans
    linear = [plan for plan in plans if plan.ref.is_linear_weight]
    packed = [plan for plan in linear if plan.precision is NVFP4]
    # In SDXL, what smart takes for edge blocks has most of the weights.
    assert weights_of(packed) > 0.1 * weights_of(linear)
    # Wan S2V has twelve attention layers for sound, which repeat like blocks.
    blocks = (*TRANSFORMER_BLOCKS, "audio_injector.injector")
    for plan in linear:
        outside = not any(f"{block}." in plan.ref.name for block in blocks)
        assert preset == "all" or not outside or plan.precision in (HALF, KEPT)
