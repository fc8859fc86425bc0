"""Write the plan as a file that --layer-config reads.

That is --layer-config-out: a plan can be edited by hand and replayed, on this model or on another
one of the same family. The file's keys and formats are those that `guides.layer_config` accepts,
taken from its own tables, so that reading and writing cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from nvfp4.formats.base import written_formats
from nvfp4.guides.layer_config import UNQUANTISED_SETTINGS, config_key, setting_of
from nvfp4.plan.records import TensorPlan
from nvfp4.reasons import Why


def layer_config(plans: Iterable[TensorPlan]) -> str:
    """Render the plan as JSON text: an object with one line for each tensor, in the source's order.

    Keys are bare names (a linear layer without `.weight`). An entry has "format" and, for quantised
    layers, "full_precision_matrix_mult" and "input_scale" where they are set. Tensors that are
    copied get "source"; a dtype that --layer-config has no name for becomes "float32".
    """
    # The table of the reader, the other way round: (format, dtype) -> the entry's name.
    formats = {setting: name for name, setting in UNQUANTISED_SETTINGS.items()}
    formats |= {(row, ""): setting_of(row) for row in written_formats()}
    entries = {}
    for plan in plans:
        dtype = "" if plan.is_quantised or plan.precision.is_copy else plan.dtype
        entry = {"format": formats.get((plan.precision, dtype), "float32")}
        # Text encoders are decoded without a mark, and some formats take none.
        if plan.full_precision and plan.full_precision.kind is not Why.ENCODER:
            entry["full_precision_matrix_mult"] = True
        if plan.input_scale is not None:
            entry["input_scale"] = plan.input_scale
        entries[config_key(plan.ref)] = entry
    # One line for each tensor, so that the file can be edited and compared line by line.
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
    return "{\n " + ",\n ".join(lines) + "\n}\n"
