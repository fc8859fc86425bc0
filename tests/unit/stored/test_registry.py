"""Our formats are those of ComfyUI's own registry, QUANT_ALGOS, with its parts and dtypes."""

import torch

from nvfp4.formats.base import COMMON_PARTS, Format, is_known, layer_parts
from nvfp4.numeric.dtypes import TORCH_DTYPES
from support.comfyui import PREAMBLE, needs_comfyui, run_comfyui

LIST = (
    PREAMBLE
    + """
import inspect, json, re
import comfy.ops
from comfy.quant_ops import QUANT_ALGOS
found = {name: [str(algo["storage_t"]), sorted(algo["parameters"])]
         for name, algo in QUANT_ALGOS.items()}
read = inspect.getsource(comfy.ops._load_quantized_module)
popped = sorted(set(re.findall(r'pop_scale\\("(\\w+)"', read)))
print("RESULT", json.dumps({"algos": found, "popped": popped}))
"""
)

# What ComfyUI 0.38 has; older ones have fewer.
NEWEST = {
    "float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4",
    "asym_w4a8_int8", "awq_w4a16",
}  # fmt: skip


def test_every_format_that_comfyui_names_is_known():
    configured = {row.config for row in Format.rows if row.config and row.is_configured}
    assert configured >= NEWEST
    assert all(map(is_known, NEWEST))
    assert not is_known("svdquant_w4a4")


@needs_comfyui
def test_the_registry_of_comfyui_has_our_formats_and_parts():
    found, _ = run_comfyui(LIST)
    assert found["algos"].keys() <= NEWEST
    assert {*found["popped"]} <= {*layer_parts()}
    for name, (dtype, parameters) in found["algos"].items():
        rows = [row for row in Format.rows if row.config == name and row.is_configured]
        for row in rows:
            assert str(TORCH_DTYPES[row.weight_dtype]) == dtype
            assert {*parameters} - {*row.suffixes} <= {*COMMON_PARTS, "weight_scale"}
            # Only these formats have an input scale that ComfyUI reads.
            assert not row.activation_max or "input_scale" in parameters
            assert row.has_nvfp4_input == ("weight_scale_2" in parameters)
    assert torch.int8 == TORCH_DTYPES["I8"]
