"""Layouts of comfy_kitchen, of which older versions lack some."""

import inspect

import pytest
import torch
from comfy_kitchen.tensor import get_layout_class


def kitchen_layout(name: str, *keywords: str) -> type:
    """A layout class; the test is skipped where this comfy_kitchen is older than what it needs.

    keywords: what `quantize` has to know. Anything else that fails is a defect and fails the test.
    """
    try:
        layout = get_layout_class(name)
    except KeyError:
        pytest.skip(f"this comfy_kitchen has no {name}")
    # It takes any keyword and drops those that it does not know.
    if missing := {*keywords} - {*inspect.signature(layout.quantize).parameters}:
        pytest.skip(f"{name} of this comfy_kitchen has no {missing}")
    # It enters what quantises to MXFP8 only where torch has the dtype of its scales.
    if name == "TensorCoreMXFP8Layout" and not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("this torch has no dtype for the scales of MXFP8")
    return layout
