"""Tell what the header of a converted file records of the options."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from nvfp4.options.option import options_of

# The header of version 0.1.0 tells options in this order; the same command goes on giving the same
# bytes. What is not in here follows, in the table's order, so a new option needs nothing here.
HEADER_ORDER = (
    "gguf", "gguf_nvfp4_max_bitdepth", "gguf_keep_edge_blocks_fp16", "preset", "edge_blocks",
    "layer_config", "target_size", "target_ratio", "use_fp8", "merge_lora", "lora_partial",
    "include", "exclude", "minimums", "recipe", "dtype", "quant_dtype", "scale_search",
    "input_scale_summary_json", "input_scale_summary_percentile", "input_scale_summary_multiplier",
    "input_scale_summary_fp16_std", "input_scale_summary_std_threshold",
    "input_scale_summary_cv_threshold", "activation_stats", "w4a4_share", "pre_quant_scale",
    "input_scale_policy", "input_scale_headroom", "input_scale_from", "input_scale_value",
    "no_input_scale", "input_scale_layer_summary", "full_precision", "fp8_full_precision_mm",
    "full_precision_mm_layers", "full_precision_mm_pattern", "sensitivity_json",
    "sensitivity_threshold", "sensitivity_action", "clip_rate_threshold", "clip_rate_action",
    "plain_fp8", "formats", "card", "use_int8", "sensitive_as", "fp4_share",
    "text_encoder_preset",
)  # fmt: skip


def recorded_values(task: Any) -> dict[str, object]:
    """Tell what the header of OUTPUT records of a task's options: {field: value for JSON}.

    Defaults are left out; of files only the names are told, so equal runs give equal bytes.
    """
    values = {
        row.name: portable(getattr(task, row.name))
        for row in options_of(type(task))
        if row.trace and getattr(task, row.name) != row.default
    }
    # HEADER_ORDER comes first; rows that it lacks keep the table's order behind it.
    order = dict.fromkeys([*HEADER_ORDER, *values])
    return {name: values[name] for name in order if name in values}


def portable(value: object) -> object:
    """Make an option's value one for the header's JSON.

    Paths become file names, so that the header does not depend on the machine, sets become sorted
    lists, and tuples lists.
    """
    # The folder would tell about somebody's machine, and make equal files differ.
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, tuple):
        return [*map(portable, value)]
    # A set has no order of its own: two runs could write different bytes.
    return sorted(value) if isinstance(value, frozenset) else value
