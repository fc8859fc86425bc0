"""Every option, its kind and help."""

from __future__ import annotations

from functools import partial

from nvfp4.cli.types import (
    device_name,
    fraction,
    input_path,
    lora_file,
    margin,
    natural,
    pattern,
    positive_float,
    shipped_path,
    size_in_bytes,
)
from nvfp4.families import PRESETS
from nvfp4.formats import DTYPE_OPTIONS
from nvfp4.options import FULL_PRECISION_OPTIONS, RECIPES

LEAST_SHARD = 1_000_000  # bytes: less is a forgotten unit
# Options that contradict each other: given both, nobody can say which one was meant.
CONFLICTS = (
    ("no_input_scale", "input_scale_summary_json"),
    ("no_input_scale", "input_scale_from"),
    ("no_input_scale", "input_scale_value"),
    ("no_input_scale", "input_scale_layer_summary"),
    ("quiet", "verbose"),
    ("use_ck_quant", "scale_search"),
    ("resume", "dry_run"),
    ("no_input_scale", "input_scale_policy"),
    ("gguf", "preset"),
    ("gguf", "mode"),
    ("preset", "mode"),
    ("target_size", "target_ratio"),
    ("gguf_keep_edge_blocks_fp16", "edge_blocks"),
    ("layer_config_out", "pre_quant_scale"),
)
REQUIRES = (
    ("input_scale_summary_percentile", "input_scale_summary_json"),
    ("input_scale_summary_multiplier", "input_scale_summary_json"),
    ("gguf_nvfp4_max_bitdepth", "gguf"),
    ("gguf_keep_edge_blocks_fp16", "gguf"),
    ("use_fp8", "gguf"),
    ("max_shard_size", "output_sharded"),
    ("lora_partial", "merge_lora"),
    ("input_scale_policy", "activation_stats"),
    ("w4a4_share", "activation_stats"),
    ("pre_quant_scale", "activation_stats"),
    ("sensitivity_json", "sensitivity_threshold", "clip_rate_threshold"),
    ("sensitivity_threshold", "sensitivity_json"),
    ("clip_rate_threshold", "sensitivity_json"),
    ("sensitivity_action", "sensitivity_threshold"),
    ("clip_rate_action", "clip_rate_threshold"),
    ("input_scale_summary_fp16_std", "input_scale_summary_json"),
    ("input_scale_summary_std_threshold", "input_scale_summary_fp16_std"),
    ("input_scale_summary_cv_threshold", "input_scale_summary_fp16_std"),
)
MODES = {"safe": "auto", "all": "all"}
REPORT_KINDS = (".json", ".html")
SWITCH = {"action": "store_true"}
FILE = {"metavar": "FILE", "type": input_path}
REGEXES = {"action": "append", "default": [], "metavar": "REGEX", "type": pattern}
DTYPE = {"choices": DTYPE_OPTIONS}
RECIPE = {"choices": RECIPES}
SUMMARY = {"metavar": "FILE", "type": partial(shipped_path, folder="calib")}
LAYERS = {"metavar": "FILE", "type": partial(shipped_path, folder="sensitive_layers")}
ACTION = {"choices": ("fp16", "full_precision_mm")}
DEVICE = {"metavar": "{auto,cpu,cuda,cuda:N}", "default": "auto", "type": device_name}
# fmt: off
COMMAND_LINE = {
    "general": {
        "--recipe": (RECIPE,
            "mixed; fp8: FP8 for all that would be NVFP4; scaled-fp8: the same as files of the "
            "older kind have it, with scale_weight and the rest in float32 (default: mixed)"),
        "--dtype": (DTYPE,
            "of tensors that are not quantised (default: bfloat16; float32 with scaled-fp8)"),
        "--quant-dtype": (DTYPE | {"default": "float32"},
            "what weights are cast to before they are quantised (default: %(default)s)"),
        "--scale-search": ({"choices": ("mse", "amax")},
            "block scales by least squared error, or from each block's largest weight "
            "(default: mse)"),
        "--use-ck-quant": (SWITCH, "another name for --scale-search amax"),
        "--merge-lora": ({"action": "append", "default": [], "metavar": "FILE[:STRENGTH]",
                          "type": lora_file},
            "merge a LoRA, LoHa, LoKr or DoRA in float32 before quantising (repeatable)"),
        "--lora-partial": (SWITCH, "... and count what of it is of no tensor of the model"),
        "--report": (FILE,
            "the plan, its reasons and every layer's error as data (.json) or a page (.html)"),
        "--device": (DEVICE, "where to compute (default: auto, a GPU if there is one)"),
        "--low-mem": (SWITCH, "read one tensor at a time, none ahead"),
        "--resume": (SWITCH,
            "go on where a run of the same command was stopped; keep what this one does if it is"),
        "--output-sharded": (SWITCH,
            "write OUTPUT's name-00001-of-0000N.safetensors, and OUTPUT.index.json"),
        "--max-shard-size": ({"metavar": "SIZE", "type": size_in_bytes},
            "bytes of tensors in a shard at most: 5GB, 500MB, 4GiB ... (default: 5GB)"),
        "--dry-run": (SWITCH, "print the plan, its reasons and the exact size; write no model"),
        "--verbose": (SWITCH, "print the plan of every single tensor"),
        "--quiet": (SWITCH, "no progress on stderr"),
    },
    "precision": {
        "--gguf": (FILE, "a GGUF of the same model: its types choose the precisions"),
        "--preset": ({"choices": PRESETS, "metavar": "NAME"},
            "without a GGUF: auto, a family's name, smart (unknown models, by their structure), "
            "all (every linear layer), none (what --include names); --list-presets prints what "
            "each does (default: auto)"),
        "--mode": ({"choices": MODES}, "another name for --preset: safe is auto, all is all"),
        "--edge-blocks": ({"metavar": "N", "type": natural},
            "the first and last N transformer blocks stay 16-bit (default: the preset's own)"),
        "--target-size": ({"metavar": "SIZE", "type": size_in_bytes},
            "measure every layer, and raise or lower precisions by what they gain for their bytes "
            "until the file is just smaller: 8GB, 7500MB, 7GiB"),
        "--target-ratio": ({"metavar": "SHARE", "type": fraction},
            "the same with a share of the source's size: 0.35"),
        "--layer-config": (FILE,
            "a .json of layer names or patterns: format, full-precision matmul, input scale"),
        "--layer-config-out": (FILE, "write the plan as such a file, to edit and to replay"),
        "--gguf-nvfp4-max-bitdepth": ({"metavar": "BITS", "type": int},
            "GGUF types of up to this many bits become NVFP4 (default: 4)"),
        "--gguf-keep-edge-blocks-fp16": (SWITCH,
            "the first and last two transformer blocks stay 16-bit"),
        "--use-fp8": (SWITCH, "GGUF types of more bits become FP8 instead of 16-bit"),
        "--exclude": (REGEXES, "layers to keep 16-bit (repeatable, case-insensitive)"),
        "--include": (REGEXES, "layers to make NVFP4 (repeatable, case-insensitive)"),
        "--min-ffn-fp8": (SWITCH, "feed-forward layers are at least FP8"),
        "--min-ffn2-fp16": (SWITCH, "feed-forward down projections are at least 16-bit"),
    },
    "input scales (file before recording before summary before value)": {
        "--input-scale-summary-json": (SUMMARY,
            "calibration summary; also looked for in calib/ beside this script"),
        "--input-scale-summary-percentile": ({"metavar": "P", "type": float},
            "percentile over calls of each call's largest activation (default: 99.9)"),
        "--input-scale-summary-multiplier": ({"metavar": "X", "type": positive_float},
            "margin on the summary's scales (default: 1)"),
        "--input-scale-summary-fp16-std": (SWITCH,
            "layers whose scale varies from call to call stay 16-bit, by the next two thresholds"),
        "--input-scale-summary-std-threshold": ({"metavar": "STD", "type": positive_float},
            "... from this deviation up (default: that of nine tenths of the layers)"),
        "--input-scale-summary-cv-threshold": ({"metavar": "CV", "type": positive_float},
            "... or from this deviation over the mean up (default: 0.4)"),
        "--input-scale-policy": ({"choices": ("percentile", "headroom")},
            "from the summary, or the largest value in --activation-stats with a margin "
            "(default: percentile)"),
        "--input-scale-headroom": ({"metavar": "X", "type": margin},
            "that margin, less where small blocks would become subnormal (default: 2)"),
        "--input-scale-from": (FILE, "copy input scales from a quantised .safetensors"),
        "--input-scale-value": ({"metavar": "SCALE", "type": positive_float},
            "NVFP4 input scale of every layer that has no other"),
        "--no-input-scale": (SWITCH, "bake none: ComfyUI measures on every call (for calibration)"),
        "--input-scale-layer-summary": (SWITCH, "print every quantised layer's input scale"),
    },
    "activation statistics": {
        "--activation-stats": ({"action": "append", "default": [], **FILE},
            "what the ComfyUI recorder in calib/ wrote (repeatable, adds up): counts what scales "
            "clip; with second moments in it, weights are rounded to the least output error"),
        "--w4a4-share": ({"metavar": "SHARE", "type": fraction},
            "mark layers for full-precision matmul, those first that it gains most, until this "
            "share of the linear weights is left in W4A4: 0.6"),
        "--pre-quant-scale": (SWITCH,
            "scale the channels of W4A4 layers where it lowers their output error by 5 %% or more; "
            "ComfyUI after 0.29 only, and not for LoRAs"),
    },
    "sensitivity": {
        "--sensitivity-json": (FILE,
            "layers' rel_rmse and clip_rate means (.json), or a recording (.safetensors)"),
        "--sensitivity-threshold": ({"metavar": "X", "type": positive_float},
            "for layers whose inputs lose more than this rel_rmse in NVFP4, ..."),
        "--sensitivity-action": (ACTION, "... do this (default: fp16)"),
        "--clip-rate-threshold": ({"metavar": "X", "type": positive_float},
            "for layers that clip more than this share of their input, ..."),
        "--clip-rate-action": (ACTION, "... do this (default: fp16)"),
    },
    "full-precision matmul (W4A16 instead of W4A4)": {
        "--full-precision-mm-layers": (LAYERS,
            "layer names, one a line; also looked for in sensitive_layers/ beside this script"),
        "--full-precision-mm-pattern": (REGEXES, "matching layers (repeatable, case-insensitive)"),
        "--fp8-full-precision-mm": (SWITCH,
            "every FP8 layer; for --recipe scaled-fp8 this is the size of its marker tensor"),
    } | {
        option: ({"action": "append_const", "dest": "full_precision", "const": option}, layers)
        for option, (_, layers) in FULL_PRECISION_OPTIONS.items()
    },
    "verify (instead of converting)": {
        "--verify": (FILE, "name every defect of a quantised file and what ComfyUI does about it"),
        "--source": (FILE | {"dest": "original"},
            "the model it was made from: decode everything and measure each layer's error"),
    },
}
# fmt: on
