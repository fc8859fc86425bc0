"""The plan as a file that --layer-config reads."""

from __future__ import annotations

import json
from collections.abc import Iterable

from nvfp4.guides.layer_config import config_key, setting_formats
from nvfp4.plan.records import TensorPlan


def layer_config(plans: Iterable[TensorPlan]) -> str:
    """The plan as --layer-config reads it, one line for each tensor."""
    formats = {setting: name for name, setting in setting_formats().items()}
    entries = {}
    for plan in plans:
        dtype = "" if plan.is_quantised or plan.precision.is_copy else plan.dtype
        entry = {"format": formats.get((plan.precision, dtype), "float32")}
        if plan.full_precision:
            entry["full_precision_matrix_mult"] = True
        if plan.input_scale is not None:
            entry["input_scale"] = plan.input_scale
        entries[config_key(plan.ref)] = entry
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
    return "{\n " + ",\n ".join(lines) + "\n}\n"
