"""Formats by options: recipes, --use-int8, --formats and --card, --sensitive-as."""

import json
from functools import cache

import pytest
import torch

from nvfp4.cards import CARDS
from nvfp4.cli.parse import parse_options
from nvfp4.errors import ConvertError
from nvfp4.formats.base import format_titled
from nvfp4.formats.floats import HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.int8 import INT8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.formats.w4a8 import W4A8, W6A8
from nvfp4.options import Options
from nvfp4.plan.choosing import format_called, sensitive_format, spared
from nvfp4.plan.make import shape_notes
from nvfp4.reasons import Reason, Why
from support.make_families import read_headers
from support.make_golden import LOW_14B, planned, planned_for
from support.paths import FAMILIES
from support.plans import plan_of, weight

PLAIN_INT8 = format_titled("INT8 not rotated")
MXFP8 = format_titled("MXFP8")
# One of each kind: videos, with cross-attention; images; with and without biases.
MODELS = ("wan21_i2v_14b", "flux_dev", "anima", "lumina2")


@cache
def plans_of_family(name, *arguments):
    """{tensor: plan} of a published model's names and shapes."""
    report = planned_for(read_headers(FAMILIES / f"{name}.txt"), [*arguments])
    return {plan.ref.name: plan for plan in report.plans}


def quantised(plans):
    """{tensor: format} of what is quantised."""
    return {name: plan.precision for name, plan in plans.items() if plan.is_quantised}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A model's name, and what its preset chose from NVFP4 and FP8."""
    return request.param, quantised(plans_of_family(request.param, "--formats", "nvfp4,fp8,16bit"))


def test_every_word_names_a_written_format():
    words = ("nvfp4", "w4a8", "w6a8", "int8", "fp8", "mxfp8", "16bit")
    assert [*map(format_called, words)] == [NVFP4, W4A8, W6A8, INT8, FP8, MXFP8, HALF]


def test_presets_choose_int8_and_w4a8_where_nothing_is_said(model):
    name, older = model
    plans = plans_of_family(name)
    found = quantised(plans)
    assert found.keys() == older.keys()
    for tensor, precision in older.items():
        shape = plans[tensor].ref.shape
        is_sensitive = name.startswith("wan") and ".cross_attn." in tensor
        expected = INT8 if precision is FP8 else W4A8 if is_sensitive else NVFP4
        assert found[tensor] is expected.for_shape(shape), tensor
    assert not any(plan.full_precision for plan in plans.values())
    reasons = {str(plan.reason) for plan in plans.values() if plan.precision is W4A8}
    assert reasons <= {"--preset wan: sensitive to 4-bit inputs"}


@pytest.mark.parametrize("recipe", ["int8", "w4a8", "fp8"])
def test_recipes_make_one_format_of_all_that_would_be_nvfp4(model, recipe):
    name, older = model
    plans = plans_of_family(name, "--recipe", recipe)
    found = quantised(plans)
    assert found.keys() == older.keys()
    row = format_called(recipe)
    for tensor, precision in older.items():
        # What a preset gives more bits has them beside W4A8, too.
        expected = INT8 if recipe == "w4a8" and precision is FP8 else row
        assert found[tensor] is expected.for_shape(plans[tensor].ref.shape), tensor
        # Sensitive layers are not NVFP4 to begin with, where 8-bit activations may be chosen.
        is_sensitive = name.startswith("wan") and ".cross_attn." in tensor and recipe != "fp8"
        if precision is NVFP4 and not is_sensitive:
            assert f"--recipe {recipe} (else --preset " in str(plans[tensor].reason)


@pytest.mark.parametrize(
    ("formats", "packed", "eight", "sensitive"),
    [
        ("w4a8,int8,16bit", W4A8, INT8, W4A8), ("int8", INT8, INT8, INT8),
        ("w6a8,fp8,16bit", W6A8, FP8, W6A8), ("nvfp4,int8", NVFP4, INT8, INT8),
        ("nvfp4,16bit", NVFP4, HALF, NVFP4), ("nvfp4,mxfp8", NVFP4, MXFP8, NVFP4),
        ("fp8,16bit", FP8, FP8, FP8), ("nvfp4,w4a8,fp8", NVFP4, FP8, W4A8),
    ],
)  # fmt: skip
def test_presets_choose_from_what_is_allowed(formats, packed, eight, sensitive):
    older = plans_of_family("wan22_t2v_14b", "--formats", "nvfp4,fp8,16bit")
    plans = plans_of_family("wan22_t2v_14b", "--formats", formats)
    for tensor, precision in quantised(older).items():
        is_sensitive = ".cross_attn." in tensor
        expected = eight if precision is FP8 else sensitive if is_sensitive else packed
        assert plans[tensor].precision is expected, tensor
    assert {plans[name].precision for name, plan in older.items() if not plan.is_quantised} == {
        *(plan.precision for plan in older.values() if not plan.is_quantised)
    }
    # Without 8-bit activations to choose, a preset marks what is sensitive.
    marks = {str(plan.full_precision) for plan in plans.values() if plan.precision is NVFP4}
    assert ("--preset wan" in marks) is (sensitive is NVFP4)


@pytest.mark.parametrize("card", CARDS)
def test_a_card_gets_what_it_multiplies_fast(card):
    found = {*quantised(plans_of_family("wan22_t2v_14b", "--card", card)).values()}
    assert found <= {format_called(word) for word in CARDS[card].fast}
    assert NVFP4 in found or card != "blackwell"
    plans = plans_of_family("wan22_t2v_14b", "--card", card, "--formats", "nvfp4,fp8")
    assert {*quantised(plans).values()} == {NVFP4, FP8}


def test_a_reason_names_what_left_no_smaller_format():
    plans = plans_of_family("wan22_t2v_14b", "--card", "turing")
    reason = plans["blocks.5.ffn.0.weight"].reason
    assert str(reason) == "--card turing (else --preset wan)"
    plans = plans_of_family("wan22_t2v_14b", "--formats", "16bit, int8")
    reason = plans["blocks.5.ffn.0.weight"].reason
    assert str(reason) == "--formats int8,16bit (else --preset wan)"


@pytest.mark.parametrize("word", ["w4a8", "int8"])
def test_a_layer_config_goes_before_formats_and_not_before_recipes(tmp_path, word):
    (tmp_path / "c.json").write_text(json.dumps({r"blocks\.0\.x": {"format": "nvfp4"}}))
    tensors = {f"blocks.{i}.x.weight": weight(32, 256) for i in range(2)}
    given = ("--preset", "all", "--layer-config", str(tmp_path / "c.json"))
    plans, _ = plan_of(tmp_path, tensors, *given, "--formats", f"{word},16bit")
    assert plans["blocks.0.x.weight"].precision is NVFP4
    assert plans["blocks.1.x.weight"].precision is format_called(word)
    plans, notes = plan_of(tmp_path, tensors, *given, "--recipe", word)
    assert plans["blocks.0.x.weight"].precision is format_called(word)
    assert "1 layer gets more than --layer-config says: blocks.0.x" in notes


# A GGUF's types


@pytest.mark.parametrize(
    ("arguments", "few", "more"),
    [
        ([], NVFP4, HALF), (["--use-fp8"], NVFP4, FP8), (["--use-int8"], NVFP4, INT8),
        (["--recipe", "fp8"], FP8, FP8), (["--recipe", "int8"], INT8, INT8),
        (["--recipe", "w4a8"], W4A8, HALF), (["--recipe", "w4a8", "--use-int8"], W4A8, INT8),
        (["--card", "ada", "--use-fp8"], W4A8, FP8), (["--card", "ampere"], W4A8, HALF),
        (["--formats", "int8", "--use-int8"], INT8, INT8),
    ],
)  # fmt: skip
def test_a_ggufs_types_become_what_options_say(tmp_path, arguments, few, more):
    plans = planned(
        "14b", ["--gguf-nvfp4-max-bitdepth", "5", *arguments], tmp_path / "m.gguf"
    ).plans
    by_name = {plan.ref.layer: plan for plan in plans}
    assert by_name["blocks.5.ffn.0"].precision is few
    assert by_name["blocks.5.ffn.2"].precision is more


def test_the_documented_line_with_int8_instead_of_fp8(tmp_path):
    before = planned("14b", LOW_14B, tmp_path / "a.gguf").plans
    arguments = [option.replace("--use-fp8", "--use-int8") for option in LOW_14B]
    after = planned("14b", arguments, tmp_path / "b.gguf").plans
    for old, new in zip(before, after, strict=True):
        assert new.precision is (INT8 if old.precision is FP8 else old.precision)
        if new.precision is INT8:
            assert (new.full_precision, new.input_scale) == (None, None)
        else:
            assert (new.full_precision, new.input_scale) == (old.full_precision, old.input_scale)


# --sensitive-as

TENSORS = {f"blocks.{i}.cross_attn.q.weight": weight(32, 256) for i in range(4)}
TENSORS["blocks.3.cross_attn.q.weight"] = weight(32, 64)
NAMES = [*TENSORS]


def sources_of_marks(tmp_path):
    """{what marks blocks.1 and blocks.3: its arguments}."""
    (tmp_path / "l.txt").write_text("blocks.1.cross_attn.q\nblocks.3.cross_attn.q\n")
    rows = [
        {
            "layer": name.removesuffix(".weight"),
            "rel_rmse_mean": float(i % 2),
            "clip_rate_mean": i % 2,
        }
        for i, name in enumerate(NAMES)
    ]
    (tmp_path / "s.json").write_text(json.dumps({"layers": rows}))
    file = ("--sensitivity-json", str(tmp_path / "s.json"))
    return {
        "pattern": ("--full-precision-mm-pattern", r"blocks\.[13]\."),
        "list": ("--full-precision-mm-layers", str(tmp_path / "l.txt")),
        "rel_rmse": (*file, "--sensitivity-threshold", "0.5", "--sensitivity-action",
                     "full_precision_mm"),
        "clip_rate": (*file, "--clip-rate-threshold", "0.5", "--clip-rate-action",
                      "full_precision_mm"),
    }  # fmt: skip


@pytest.mark.parametrize("source", ["pattern", "list", "rel_rmse", "clip_rate"])
@pytest.mark.parametrize(
    ("word", "formats"),
    [("w4a16", (NVFP4, NVFP4)), ("w4a8", (W4A8, PLAIN_INT8)), ("int8", (INT8, PLAIN_INT8))],
)
def test_marked_layers_become_what_sensitive_as_says(tmp_path, source, word, formats):
    marks = sources_of_marks(tmp_path)[source]
    plain, _ = plan_of(tmp_path, TENSORS, "--preset", "all", *marks)
    plans, _ = plan_of(tmp_path, TENSORS, "--preset", "all", *marks, "--sensitive-as", word)
    assert [plans[name].precision for name in NAMES] == [NVFP4, formats[0], NVFP4, formats[1]]
    marked = [bool(plans[name].full_precision) for name in NAMES]
    assert marked == [False, word == "w4a16", False, word == "w4a16"]
    if word == "w4a16":
        assert plans == plain
    else:
        mark = str(plain[NAMES[1]].full_precision)
        assert str(plans[NAMES[1]].reason) == f"{mark} (else --preset all)"
        what = "not rotated" if word == "int8" else f"no {word.upper()}"
        shape = f"{what}: columns % 256 != 0 (else {mark} (else --preset all))"
        assert str(plans[NAMES[3]].reason) == shape


def test_a_switch_for_a_kind_of_layers_is_a_mark_too():
    given = ("--full-precision-mm-self-attn-qkvo", "--sensitive-as", "int8")
    plans = plans_of_family("wan22_t2v_14b", *given)
    for name, plan in plans.items():
        if plan.is_quantised and "_attn." in name:
            assert plan.precision is INT8
        assert plan.precision is not W4A8


def test_a_preset_marks_where_it_is_told_to():
    plans = plans_of_family("wan22_t2v_14b", "--sensitive-as", "w4a16")
    plan = plans["blocks.5.cross_attn.q.weight"]
    assert (plan.precision, str(plan.full_precision)) == (NVFP4, "--preset wan")


def test_what_include_names_is_not_spared_by_a_preset():
    plans = plans_of_family("wan22_t2v_14b", "--include", r"blocks\.5\.cross_attn\.q")
    plan = plans["blocks.5.cross_attn.q.weight"]
    assert (plan.precision, plan.full_precision) == (NVFP4, None)


def test_marks_of_a_layer_config_stay_as_written(tmp_path):
    settings = {
        r"blocks\.1\..*": {"format": "nvfp4", "full_precision_matrix_mult": True},
        r"blocks\.2\..*": {"format": "nvfp4"},
    }
    (tmp_path / "c.json").write_text(json.dumps(settings))
    given = ("--layer-config", str(tmp_path / "c.json"), "--full-precision-mm", "--preset", "all")
    plans, _ = plan_of(tmp_path, TENSORS, *given, "--sensitive-as", "w4a8")
    assert [plans[name].precision for name in NAMES] == [W4A8, NVFP4, W4A8, PLAIN_INT8]
    assert [bool(plans[name].full_precision) for name in NAMES] == [False, True, False, False]


@pytest.mark.parametrize("word", [None, "w4a16", "w4a8", "int8"])
def test_a_planned_layer_is_spared_as_options_say(tmp_path, word):
    plans, _ = plan_of(tmp_path, TENSORS, "--preset", "all", "--input-scale-value", "0.5")
    options = Options(source="s.safetensors", output="o.safetensors", sensitive_as=word)
    reason = Reason(Why.W4A4_SHARE, "--w4a4-share 0.5")
    for name in NAMES:
        plan = spared(options, plans[name], reason)
        assert plan.precision is sensitive_format(options, plans[name])
        if word in (None, "w4a16"):
            assert plan.precision is NVFP4
            assert (plan.full_precision, plan.input_scale) == (reason, 0.5)
            continue
        expected = format_called(word).for_shape(plan.ref.shape)
        assert (plan.precision, plan.full_precision, plan.input_scale) == (expected, None, None)
        why = "--w4a4-share 0.5 (else --preset all)"
        what = "not rotated" if word == "int8" else "no W4A8"
        shape = f"{what}: columns % 256 != 0 (else {why})"
        assert str(plan.reason) == (why if plan.precision is format_called(word) else shape)


# What contradicts

MARKING = {"clip_rate_action": "full_precision_mm"}


@pytest.mark.parametrize(
    "idle",
    [
        {"input_scale_value": 0.5}, {"no_input_scale": True}, {"fp8_full_precision_mm": True},
        {"full_precision": {"--full-precision-mm"}}, {"full_precision_mm_pattern": "x"},
        {"sensitive_as": "w4a16"}, {"activation_stats": "a", "w4a4_share": 0.5},
        {"activation_stats": "a", "pre_quant_scale": True},
        {"sensitivity_json": "s", "clip_rate_threshold": 1, **MARKING},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "only",
    [{"recipe": "int8"}, {"recipe": "w4a8"}, {"formats": "w4a8,16bit"}, {"card": "turing"}],
    ids=str,
)
def test_what_does_nothing_for_int8_and_w4a8_is_refused(only, idle):
    with pytest.raises(ConvertError, match=r"contradicts --") as found:
        Options(source="s.safetensors", output="o.safetensors", **only, **idle)
    (problem,) = found.value.problems
    assert problem.endswith("its layers take neither input scales nor full-precision matmul") or (
        "sensitive_as" in idle and "nvfp4 is not in " in problem
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"recipe": "int8", "formats": "nvfp4,fp8"},
         "--formats contradicts --recipe int8: int8 is not in nvfp4,fp8"),
        ({"recipe": "fp8", "card": "ampere"},
         "--card ampere contradicts --recipe fp8: fp8 is not in w4a8,int8,16bit; give --formats "
         "to override it"),
        ({"sensitive_as": "w4a8", "formats": "nvfp4,int8"},
         "--formats contradicts --sensitive-as w4a8: w4a8 is not in nvfp4,int8"),
        ({"gguf": "g", "use_int8": True, "recipe": "fp8"}, "--use-int8 contradicts --recipe fp8"),
        ({"gguf": "g", "use_fp8": True, "recipe": "w4a8"}, "--use-fp8 contradicts --recipe w4a8"),
        ({"gguf": "g", "use_int8": True, "use_fp8": True}, "--use-int8 contradicts --use-fp8"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_ask_for_different_formats_are_refused(values, problem):
    with pytest.raises(ConvertError) as found:
        Options(source="s.safetensors", output="o.safetensors", **values)
    assert found.value.problems == (problem,)


def test_a_shape_that_no_format_of_the_recipe_stores_is_told(tmp_path):
    tensors = {"blocks.0.x.weight": weight(32, 256), "blocks.1.x.weight": weight(24, 40)}
    tensors["blocks.1.x.bias"] = torch.ones(24)
    for recipe, formats in (("w4a8", [W4A8, PLAIN_INT8]), ("int8", [INT8, PLAIN_INT8])):
        plans, notes = plan_of(tmp_path, tensors, "--preset", "all", "--recipe", recipe)
        assert [plans[f"blocks.{i}.x.weight"].precision for i in range(2)] == formats
        assert [*notes] == ["1 layer is INT8 not rotated for its shape: blocks.1.x"]


def test_formats_without_8_bits_are_the_reason_for_16():
    plans = plans_of_family("wan21_i2v_14b", "--formats", "w6a8")
    reason = str(plans["blocks.5.ffn.2.weight"].reason)
    assert reason.startswith("no 8-bit format in --formats w6a8 (else feed-forward down")


def problems_of(**values):
    """What both interfaces say against these options, [] where they take them."""
    words = []
    for name, value in values.items():
        words += ["--" + name.replace("_", "-"), *([] if value is True else [value])]
    found = []
    for make in (
        lambda: Options(source="s.safetensors", output="o.safetensors", **values),
        lambda: parse_options(["s.safetensors", "o.safetensors", *words]),
    ):
        try:
            make()
            found.append(())
        except ConvertError as error:
            found.append(error.problems)
        except SystemExit:
            found.append(None)
    return found


@pytest.mark.parametrize("only", [{"card": "turing"}, {"formats": "int8"}, {"recipe": "int8"}])
def test_what_sensitive_layers_become_may_be_what_all_become(only):
    assert problems_of(**only, sensitive_as="int8") == [(), ()]


def test_fp8_is_not_marked_where_its_layers_become_int8(capsys):
    given = {"gguf": "g", "use_int8": True, "fp8_full_precision_mm": True}
    told = "--fp8-full-precision-mm contradicts --use-int8, which makes INT8 of these"
    assert problems_of(**given) == [(told,), None]
    assert told in capsys.readouterr().err


NARROW = {f"blocks.{i}.x.weight": weight(64, 320) for i in range(2)}


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        ("w4a8,int8", (PLAIN_INT8, None)),
        ("w4a8,16bit", (HALF, None)),
        ("w4a8,fp8", (FP8, "FP8 without an input scale")),
    ],
)
def test_only_a_format_that_may_be_chosen_stands_in(tmp_path, formats, expected):
    plans, notes = plan_of(tmp_path, {**NARROW, "wide.weight": weight(64, 256)},
                           "--preset", "all", "--formats", formats)  # fmt: skip
    for name in NARROW:
        plan = plans[name]
        mark = plan.full_precision and plan.full_precision.text
        assert (plan.precision, mark) == expected
        assert str(plan.reason).startswith("no W4A8: columns % 256 != 0 (else --formats")
    assert plans["wide.weight"].precision is W4A8
    told = f"2 layers are {expected[0]} for their shape: blocks.0.x, blocks.1.x"
    assert told in notes


def test_a_marked_layer_is_marked_where_nothing_stands_in(tmp_path):
    given = ("--preset", "all", "--full-precision-mm-pattern", ".", "--sensitive-as", "w4a8")
    plans, notes = plan_of(tmp_path, NARROW, *given, "--formats", "nvfp4,w4a8")
    assert {plan.precision for plan in plans.values()} == {NVFP4}
    assert all(plan.full_precision for plan in plans.values())
    told = "2 layers cannot be W4A8 for their shape, and --formats leaves nothing to stand in: "
    assert f"{told}blocks.0.x, blocks.1.x" in notes
    for plan in plans.values():
        options = Options(
            source="s.safetensors",
            output="o.safetensors",
            sensitive_as="w4a8",
            formats="nvfp4,w4a8",
        )
        assert sensitive_format(options, plan) is NVFP4


def test_layers_that_are_spared_count_among_those_of_their_shape(tmp_path):
    plans, _ = plan_of(tmp_path, NARROW, "--preset", "all")
    options = Options(source="s.safetensors", output="o.safetensors", sensitive_as="w4a8")
    reason = Reason(Why.W4A4_SHARE, "--w4a4-share 0.5")
    made = [spared(options, plan, reason) for plan in plans.values()]
    told = "2 layers are INT8 not rotated for their shape: blocks.0.x, blocks.1.x"
    assert shape_notes(options, made) == [told]
