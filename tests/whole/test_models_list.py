"""The list of docs/models.md, held against ComfyUI's own list of models."""

from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui
from tools.models_list import CLASSES_NOT_COVERED, classes_of_models

LISTED = (
    PREAMBLE
    + """
import json
from comfy import supported_models
print("RESULT", json.dumps([one.__name__ for one in supported_models.models]))
"""
)


@needs_comfyui
def test_each_model_of_comfyui_is_listed_or_has_a_reason():
    listed, _ = run_comfyui(LISTED)
    without = {name for _, names in CLASSES_NOT_COVERED for name in names.split(", ")}
    assert {*listed} <= classes_of_models() | without


def test_no_model_is_both_listed_and_given_a_reason():
    without = {name for _, names in CLASSES_NOT_COVERED for name in names.split(", ")}
    assert not classes_of_models() & without
