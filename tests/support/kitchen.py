"""Layouts of comfy_kitchen, of which older versions lack some."""

import inspect

import pytest
from comfy_kitchen.backends.eager import quantization
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
    # Version 0.2.20 has the class, and nothing on a CPU that quantises for it.
    if name == "TensorCoreMXFP8Layout" and not hasattr(quantization, "quantize_mxfp8"):
        pytest.skip("this comfy_kitchen quantises no MXFP8")
    return layout
