"""The plan as a file that --layer-config reads."""

from __future__ import annotations

import json
from collections.abc import Iterable

from nvfp4.formats import Precision
from nvfp4.guides.layer_config import SETTING_FORMATS, config_key
from nvfp4.plan.records import TensorPlan


def layer_config(plans: Iterable[TensorPlan]) -> str:
    """The plan as --layer-config reads it, one line for each tensor."""
    formats = {setting: name for name, setting in SETTING_FORMATS.items()}
    entries = {}
    for plan in plans:
        dtype = plan.dtype if plan.precision in (Precision.HALF, Precision.FP32) else ""
        entry = {"format": formats.get((plan.precision, dtype), "float32")}
        if plan.full_precision:
            entry["full_precision_matrix_mult"] = True
        if plan.input_scale is not None:
            entry["input_scale"] = plan.input_scale
        entries[config_key(plan.ref)] = entry
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
    return "{\n " + ",\n ".join(lines) + "\n}\n"
