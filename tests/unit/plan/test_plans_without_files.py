"""Plans come from records alone: no file is there, and none is opened."""

import ast
import dataclasses
import sys
from pathlib import Path

import pytest

from nvfp4 import plan as room
from nvfp4.errors import ConvertError
from nvfp4.families import ANY_FAMILY
from nvfp4.formats.floats import FP32, HALF
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.records import Calibration, Guides, LayerList, Measured, Setting
from nvfp4.model import Model, TensorRef
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.plan.records import widen
from nvfp4.reasons import Reason, Why

NAMES = [f"blocks.{block}.{layer}.weight" for block in range(3) for layer in ("q", "k", "ffn")]
READING = ("open", "os.listdir", "os.scandir", "glob.glob")  # what Python tells audit hooks


def refs(*names: str, shape: tuple[int, ...] = (32, 64)) -> Model:
    """A model of float32 tensors that are in no file."""
    found = {
        name: TensorRef(
            name=name, dtype="F32", shape=shape, path=Path("nowhere"), begin=0, nbytes=4096
        )
        for name in names
    }
    return Model(tensors=found, metadata={}, files=())


MODEL = refs(*NAMES)


def planned(guides: dict, chosen: dict | None = None, **options):
    """{tensor: plan} and notes of MODEL by these guides and options."""
    task = Options(source=Path("in.safetensors"), output=Path("out.safetensors"), **options)
    plans, notes = make_plans(task, MODEL, Guides(family=ANY_FAMILY, **guides), chosen)
    return {plan.ref.name: plan for plan in plans}, notes


def test_planning_opens_nothing():
    events = []
    sys.addaudithook(lambda event, _: events.append(event) if event in READING else None)
    guides = {"kinds": dict.fromkeys(NAMES, "Q4_K")}
    asked = {"gguf": "a.gguf", "exclude": ("ffn",), "include": ("q",)}
    assert planned(guides, **asked) == planned(guides, **asked)
    assert not events


def test_a_plan_imports_no_reader():
    """What opens files is not within reach: of `guides` only the records, of `read` nothing."""
    for path in Path(room.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            assert not module.startswith(("nvfp4.read", "nvfp4.files")), path
            assert module.startswith("nvfp4.guides") <= (module == "nvfp4.guides.records"), path


def test_kinds_decide_by_their_bits():
    kinds = {NAMES[0]: "Q4_K", NAMES[1]: "Q8_0", NAMES[2]: "F32", NAMES[3]: "BF16"}
    plans, _ = planned({"kinds": kinds}, gguf="a.gguf", use_fp8=True)
    expected = (NVFP4, FP8, FP32, HALF, HALF)
    assert tuple(plans[name].precision for name in NAMES[:5]) == expected
    assert str(plans[NAMES[4]].reason) == "not in the GGUF"


def test_settings_go_before_a_preset_and_give_scales():
    setting = Setting(
        key="q",
        precision=NVFP4,
        dtype="",
        full_precision=True,
        input_scale=0.5,
        names=frozenset({NAMES[0]}),
    )
    calibration = {
        name.removesuffix(".weight"): Calibration(scales={NVFP4: 0.25}, source="file")
        for name in NAMES[:2]
    }
    plans, _ = planned({"settings": (setting,), "calibration": calibration}, preset="all")
    assert str(plans[NAMES[0]].reason) == "--layer-config"
    assert str(plans[NAMES[0]].full_precision) == "--layer-config"
    assert [plans[name].input_scale for name in NAMES[:3]] == [0.5, 0.25, None]


def test_measured_layers_are_raised_or_marked():
    measured = (
        Measured(True, Reason(Why.MEASURED, "rel_rmse > 0.1"), frozenset(NAMES[:1])),
        Measured(False, Reason(Why.MEASURED, "clip_rate > 0.2"), frozenset(NAMES[1:2])),
    )
    plans, _ = planned({"measured": measured}, preset="all")
    assert plans[NAMES[0]].precision is HALF
    assert [*plans[NAMES[0]].reason.overruled_kinds] == [Why.FAMILY]
    assert str(plans[NAMES[0]].reason) == "rel_rmse > 0.1 (else --preset all)"
    assert str(plans[NAMES[1]].full_precision) == "clip_rate > 0.2"
    assert not plans[NAMES[2]].full_precision


def test_a_list_marks_its_layers_and_tells_the_others():
    listed = LayerList(weights=frozenset(NAMES[:1]), unknown=frozenset({"blocks.9.q"}))
    plans, notes = planned({"listed": listed}, preset="all", full_precision_mm_layers=Path("l.txt"))
    assert str(plans[NAMES[0]].full_precision) == "l.txt"
    assert "l.txt: 1 name matches nothing: blocks.9.q" in notes


def test_what_was_chosen_for_a_size_replaces_what_is_open():
    plans, _ = planned({}, {NAMES[0]: FP8}, preset="all", target_size=10**9)
    assert plans[NAMES[0]].precision is FP8
    assert str(plans[NAMES[0]].reason) == "--target-size"
    assert plans[NAMES[1]].precision is NVFP4


def test_guides_cannot_be_changed():
    guides = Guides(family=ANY_FAMILY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        guides.kinds = {}


def test_nothing_to_quantise_is_an_error():
    kinds = dict.fromkeys(NAMES, "BF16")
    with pytest.raises(ConvertError, match=r"no layer would be quantised \(mostly: GGUF"):
        planned({"kinds": kinds}, gguf="a.gguf")


def test_only_what_is_to_be_float16_is_widened():
    """A quantised layer holds values beyond 65504, too: it has a scale."""
    plans, _ = planned({}, preset="all", exclude=("ffn",), dtype="float16")
    for before, after in zip(plans.values(), widen(plans.values(), frozenset(NAMES)), strict=True):
        if "ffn" in before.ref.name:
            assert (before.dtype, after.dtype) == ("F16", "F32")
            assert after.reason.kind is Why.FLOAT16
        else:
            assert after == before
