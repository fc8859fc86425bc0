"""The options table: one row for each option, in the order of `--help`.

To add an option, say `--crop N`:
  1. Add a row to `Options`, in its group: `crop: int = option(0, GENERAL, NATURAL, "...")`.
  2. Say there what it `conflicts` with or `needs`, whether it `reads` or `writes` files, and
     `trace=False` if the bytes of OUTPUT cannot depend on it. A new kind of value goes to kinds.py.
  3. Use it, `options.crop`, in the phase it belongs to; a note goes into that phase's record.
  4. Run `python tools/docs.py --write` and `python tools/single_file.py`.
  5. Test what it does; that both interfaces check it alike, test_options.py tests for every row.
Parser, help, docs/options.md, checks of the command line and of Python, and the header follow from
the row.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from nvfp4.cards import CARD_NAMES, CARDS, card_called
from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.families import PRESETS
from nvfp4.model import Lora
from nvfp4.options.checks import (
    grows_not,
    is_model_file,
    large_enough,
    model_name,
    must_end_in,
    none_needs_include,
    original_only,
)
from nvfp4.options.derived import DerivedOptions
from nvfp4.options.formats import (
    DEFAULT_FORMATS,
    RECIPES,
    SENSITIVE_AS,
    format_words,
    leaves_enough,
    recipe_takes,
)
from nvfp4.options.goals import GOALS, GOALS_TOLD, flags_text, goal_does_something, goal_values
from nvfp4.options.kinds import (
    CARD_MEMORY,
    FILE,
    FOLDER,
    LAYER_LIST,
    LOCAL_FILE,
    NATURAL,
    REGEXES,
    SHARE,
    SIZE,
    SUMMARY,
    SWITCH,
    Kind,
    device_name,
    frame_size,
    input_path,
    lora_file,
    margin,
    natural,
    percentile,
    positive_float,
)
from nvfp4.options.naming import made_output
from nvfp4.options.option import Alias, Other, by_name, check_task, option
from nvfp4.options.switches import FULL_PRECISION_OPTIONS, MINIMUM_OPTIONS

__version__ = "0.1.0"
# What notes and reasons call both --target-size and --target-ratio.
TARGET = "--target-size"
# The recipe whose layers have no configuration: one marker tensor tells of all.
LEGACY_RECIPE = "scaled-fp8"
# Files that have to cover the source, unless --partial-guide is given.
GUIDE_OPTIONS = (
    "--gguf", "--input-scale-from", "--input-scale-summary-json", "--activation-stats",
    "--sensitivity-json", "--full-precision-mm-layers",
)  # fmt: skip
# Suffixes that --report takes; report/texts.py has a renderer for each.
REPORT_KINDS = (".json", ".html", ".svg")

# Headings of the groups in `--help` and in docs/options.md, in this order.
GENERAL = "general"
PRECISION = "precision"
INPUT_SCALES = "input scales (file before recording before summary before value)"
STATISTICS = "activation statistics"
SENSITIVITY = "sensitivity"
FULL_PRECISION = "full-precision matmul (W4A16 instead of W4A4)"
# Of these, groups that tell how activations are multiplied, which is of no use in text encoders.
ACTIVATION_GROUPS = (INPUT_SCALES, SENSITIVITY, FULL_PRECISION)

# Kinds of values that only rows of this table have.
DTYPE = Kind(choices=tuple(DTYPE_OPTIONS))
ACTION = Kind(choices=("fp16", "full_precision_mm"))
# What needs statistics of a layer's inputs excludes the search that looks at weights alone.
AMAX = Other("--scale-search", "amax", ", which uses no statistics")


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Options(DerivedOptions):
    """Describe one conversion: the options table, whose rows are fields named as their flags.

    Two fields collect switches, by their names: `minimums` ("--min-...") and `full_precision`
    ("--full-precision-mm..."). Text is welcome as the command line takes it: for paths, sizes,
    LoRAs. Raises ConvertError where a value is not allowed, where options contradict each other,
    or where one does nothing without another.
    """

    # A row for each option, formatted by hand, as a table that is read from top to bottom.
    # fmt: off
    # The header has the source's files instead: a folder's name changes with the machine.
    source: Path = option(MISSING, "", Kind(input_path),
        "*.safetensors.index.json, the folder it is in, or one .safetensors; or one of these on "
        "Hugging Face: hf://owner/repo[@revision][/path]",
        flag="SOURCE", check=original_only, reads=True, trace=False,
        everyday="a 16-bit model: .safetensors, its folder, hf://o/repo")
    # None and a folder stand for a name that is made, until the task is checked.
    output: Path | None = option(None, "", Kind(input_path),
        "the .safetensors file to write; or a folder for it, or nothing for beside SOURCE (beside "
        "the folder of shards): then its name is SOURCE's with the format at its end, as in "
        "wan_nvfp4.safetensors, or _mixed where a GGUF, a layer config or a size decides",
        flag="OUTPUT", check=model_name, trace=False,
        everyday="file or folder to write to; left out: beside SOURCE")
    make_folder: bool = option(False, GENERAL, SWITCH,
        "create the folders of OUTPUT, --report, --model-card and --layer-config-out if they are "
        "missing",
        trace=False)

    goal: str | None = option(None, GENERAL, Kind(choices=tuple(GOALS)),
        f"one word for other options, which win if they are given: {GOALS_TOLD}",
        check=goal_does_something, trace=False,
        conflicts=[Other("--gguf", why=", whose types choose: see --use-int8 and "
                         "--gguf-nvfp4-max-bitdepth"),
                   "--recipe", "--target-size", "--target-ratio", "--fit"],
        everyday="speed, balanced or quality, in one word")
    recipe: str = option("mixed", GENERAL, Kind(choices=tuple(RECIPES)),
        "one format for every layer that would be NVFP4: fp8, int8 or w4a8; scaled-fp8 is FP8 in "
        "the older layout, with scale_weight and all else in float32 (default: {default})",
        check=recipe_takes)
    # None stands for the recipe's own until the task is checked.
    dtype: str | None = option(None, GENERAL, DTYPE,
        "dtype of the tensors that are not quantised (default: bfloat16; float32 for scaled-fp8; "
        "float16 for --card turing, which has no bfloat16)")
    quant_dtype: str = option("float32", GENERAL, DTYPE,
        "dtype that weights are cast to before they are quantised (default: {default})")
    scale_search: str = option("mse", GENERAL, Kind(choices=("mse", "amax")),
        "choose block scales by least squared error, or from each block's largest weight "
        "(default: {default})",
        aliases=(Alias("--use-ck-quant", "amax", "another name for --scale-search amax",
                       conflicts=(Other("--scale-search"),)),))
    # LoRAs are merged before layers are measured, so they change precisions by --target-size, too.
    merge_lora: tuple[Lora, ...] = option(
        (), GENERAL, Kind(lora_file, "FILE[:STRENGTH]", repeatable=True),
        "merge a LoRA, LoHa, LoKr or DoRA in float32 before quantising (repeatable)", reads=True,
        everyday="merge a LoRA before quantising")
    lora_partial: bool = option(False, GENERAL, SWITCH,
        "go on where keys of a LoRA match no tensor of the model, and count them",
        needs=["--merge-lora"])
    plain_fp8: bool = option(False, GENERAL, SWITCH,
        "convert a SOURCE that was merely cast to FP8, without scales: what the cast lost, some "
        "3 % of a weight, stays lost")
    report: Path | None = option(None, GENERAL, LOCAL_FILE,
        "write the plan, its reasons and every layer's error as data (.json) or as a page (.html), "
        "or its precision map as a picture (.svg)",
        check=must_end_in(*REPORT_KINDS), trace=False, writes=True,
        everyday="write what was done as a page (.html) or data (.json)")
    model_card: Path | None = option(None, GENERAL, LOCAL_FILE,
        "write a card to publish the file with on Hugging Face, its README.md: what it is made "
        "from, formats, errors, what it needs, the command; what is to be filled in is marked",
        check=must_end_in(".md"), trace=False, writes=True)
    comfyui: Path | None = option(None, GENERAL, FOLDER,
        "your ComfyUI's folder: ask it first whether it takes the file (default: COMFYUI_ROOT)",
        trace=False,
        everyday="your ComfyUI's folder: ask it first what it takes")
    device: str = option("auto", GENERAL, Kind(device_name, "{auto,cpu,cuda,cuda:N}"),
        "where to compute (default: {default}, a GPU if there is one)", trace=False)
    # From here to --quiet it is told how a conversion runs, and into which files; no tensor depends
    # on that, so the header has none of it.
    low_mem: bool = option(False, GENERAL, SWITCH, "read one tensor at a time, none ahead",
        trace=False)
    resume: bool = option(False, GENERAL, SWITCH,
        "go on where a run of the same command was stopped, and keep what this run wrote if it is "
        "stopped, too",
        trace=False,
        everyday="go on where the same command was stopped")
    output_sharded: bool = option(False, GENERAL, SWITCH,
        "write OUTPUT's name-00001-of-0000N.safetensors, and OUTPUT.index.json", trace=False)
    max_shard_size: int = option("5GB", GENERAL, SIZE,
        "bytes of tensors in a shard at most: 5GB, 500MB, 4GiB ... (default: {default})",
        needs=["--output-sharded"], check=large_enough, trace=False)
    dry_run: bool = option(False, GENERAL, SWITCH,
        "print the plan with its reasons, the exact size, and everything that a run would refuse "
        "except NaN in weights; write no model", trace=False,
        everyday="print the plan, the exact size; write no model")
    verbose: bool = option(False, GENERAL, SWITCH, "print the plan of every single tensor",
        trace=False)
    quiet: bool = option(False, GENERAL, SWITCH, "no progress on stderr",
        conflicts=["--verbose"], trace=False)
    json: bool = option(False, GENERAL, SWITCH,
        "print the summary as a line of JSON, and nothing else on stdout",
        conflicts=["--verbose", "--input-scale-layer-summary"], trace=False)

    gguf: Path | None = option(None, PRECISION, FILE,
        "a GGUF of the same model: its types choose the precisions",
        conflicts=["--preset", "--mode"], reads=True,
        everyday="take precisions from a GGUF of the same model")
    # None stands for auto until the task is checked, or for the GGUF, if there is one.
    preset: str | None = option(
        None, PRECISION, Kind(metavar="NAME", choices=PRESETS),
        "without a GGUF: auto, a family's name, smart (unknown models, by their structure), "
        "all (every linear layer), none (what --include names); --list-presets prints what "
        "each does (default: auto)",
        check=none_needs_include, conflicts=["--mode"],
        aliases=(Alias("--mode", {"safe": "auto", "all": "all"},
                       "another name for --preset: safe is auto, all is all"),))
    text_encoder_preset: str | None = option(
        None, PRECISION, Kind(choices=("auto", "smart", "all")),
        "convert the text encoders of a checkpoint as well: by their own rows (auto), their "
        "structure (smart), or every linear layer (all); by default they go over as they are",
        conflicts=[Other("--recipe", "scaled-fp8")])
    edge_blocks: int | None = option(None, PRECISION, NATURAL,
        "the first and last N transformer blocks stay 16-bit (default: the preset's own)")
    target_size: int | None = option(None, PRECISION, SIZE,
        "measure every layer, and choose the formats with the least error so that the file is just "
        "smaller: 8GB, 7500MB, 7GiB", conflicts=["--target-ratio"],
        everyday="choose precisions for a file of this size: 8GB")
    target_ratio: float | None = option(None, PRECISION, SHARE,
        "the same, as a share of the source's size: 0.35")
    # It stands for a size, which is settled once the source is read, and which the header tells.
    fit: int | None = option(None, PRECISION, CARD_MEMORY,
        "choose precisions, as --target-size does, so that ComfyUI holds the whole file on a card "
        "of this memory beside what it reserves for --size: 16GB; several models, text encoders "
        "and VAEs in one call are a pipeline, each with the card to itself",
        conflicts=["--target-size", "--target-ratio", "--output-sharded"], trace=False,
        everyday="choose precisions for a card's memory: 16GB")
    size: tuple[int, int, int] | None = option(None, PRECISION, Kind(frame_size, "WxHxF"),
        "width, height and frames that you sample, for --fit and --calibrate (default: what the "
        "model is usually used with)",
        needs=["--fit"], trace=False)
    fp4_share: float | None = option(None, PRECISION, SHARE,
        "the share of the multiply work that --target-size and --fit keep in W4A4, which is "
        "fastest on Blackwell: 0.5",
        needs=["--target-size", "--target-ratio", "--fit"], conflicts=["--w4a4-share"])
    formats: tuple[str, ...] | None = option(None, PRECISION, Kind(format_words, "LIST"),
        "the formats that presets and --target-size may choose from; without nvfp4 the smallest "
        "of them takes its place, also beside a GGUF: "
        f"{','.join(DEFAULT_FORMATS)} (the default), w6a8 and mxfp8",
        check=leaves_enough)
    card: str | None = option(
        None, PRECISION, Kind(choices=tuple(CARDS), told=CARD_NAMES, meant=card_called),
        f"the card it is for ({CARD_NAMES}): sets --formats to what multiplies fast there, "
        "unless that is given; the summary's shares and speed are for it", check=leaves_enough,
        everyday="RTX 50: blackwell, 40: ada, 30: ampere, 20: turing")
    layer_config: Path | None = option(None, PRECISION, FILE,
        "a .json of layer names or patterns: format, full-precision matmul, input scale",
        reads=True)
    # A layer config has no place for scaled channels, so a plan that has them cannot be replayed.
    layer_config_out: Path | None = option(None, PRECISION, LOCAL_FILE,
        "write the plan as such a file, to edit and to replay",
        conflicts=["--pre-quant-scale"], check=must_end_in(".json"), trace=False, writes=True)
    gguf_nvfp4_max_bitdepth: int = option(4, PRECISION, Kind(natural, "BITS"),
        "GGUF types of up to this many bits become NVFP4 (default: {default})", needs=["--gguf"])
    gguf_keep_edge_blocks_fp16: bool = option(False, PRECISION, SWITCH,
        "the first and last two transformer blocks stay 16-bit",
        conflicts=["--edge-blocks"], needs=["--gguf"])
    use_fp8: bool = option(False, PRECISION, SWITCH,
        "GGUF types of more bits become FP8 instead of 16-bit", needs=["--gguf"],
        conflicts=[Other("--recipe", "int8"), Other("--recipe", "w4a8")])
    use_int8: bool = option(False, PRECISION, SWITCH,
        "GGUF types of more bits, and layers whose shape FP4 matmul does not take, become INT8: "
        "half of FP8's error, and no input scales needed", needs=["--gguf"],
        conflicts=["--use-fp8", Other("--recipe", "fp8"), Other("--recipe", "scaled-fp8")])
    partial_guide: bool = option(False, PRECISION, SWITCH,
        "go on with a GGUF, calibration or list that covers only a part of the model, and note "
        "what it lacks",
        needs=GUIDE_OPTIONS, trace=False)
    exclude: tuple[str, ...] = option((), PRECISION, REGEXES,
        "layers to keep 16-bit (repeatable, case-insensitive)")
    include: tuple[str, ...] = option((), PRECISION, REGEXES,
        "layers to make NVFP4 (repeatable, case-insensitive)")
    minimums: frozenset[str] = option(frozenset(), PRECISION, SWITCH, switches=MINIMUM_OPTIONS)

    input_scale_summary_json: Path | None = option(None, INPUT_SCALES, SUMMARY,
        "calibration summary; also looked for in calib/ beside this script", reads=True)
    input_scale_summary_percentile: float = option(99.9, INPUT_SCALES, Kind(percentile, "P"),
        "percentile over calls of each call's largest activation (default: {default})",
        needs=["--input-scale-summary-json"])
    input_scale_summary_multiplier: float = option(1.0, INPUT_SCALES, Kind(positive_float, "X"),
        "margin on the summary's scales (default: {default})",
        needs=["--input-scale-summary-json"])
    input_scale_summary_fp16_std: bool = option(False, INPUT_SCALES, SWITCH,
        "keep layers 16-bit whose scale varies much from call to call, by the next two thresholds",
        needs=["--input-scale-summary-json"])
    input_scale_summary_std_threshold: float | None = option(
        None, INPUT_SCALES, Kind(positive_float, "STD"),
        "... its standard deviation over calls is at least this (default: the value that nine "
        "layers in ten stay below)",
        needs=["--input-scale-summary-fp16-std"])
    input_scale_summary_cv_threshold: float = option(0.4, INPUT_SCALES, Kind(positive_float, "CV"),
        "... or its standard deviation over its mean is at least this (default: {default})",
        needs=["--input-scale-summary-fp16-std"])
    input_scale_policy: str = option(
        "percentile", INPUT_SCALES, Kind(choices=("percentile", "headroom")),
        "from the summary, or the largest value in --activation-stats with a margin "
        "(default: {default})", needs=["--activation-stats"])
    input_scale_headroom: float = option(2.0, INPUT_SCALES, Kind(margin, "X"),
        "the margin of --input-scale-policy headroom, made smaller where small blocks would become "
        "subnormal (default: {default})",
        needs=[Other("--input-scale-policy", "headroom")])
    input_scale_from: Path | None = option(None, INPUT_SCALES, FILE,
        "copy input scales from a quantised .safetensors", reads=True)
    input_scale_value: float | None = option(None, INPUT_SCALES, Kind(positive_float, "SCALE"),
        "NVFP4 input scale of every layer that has no other")
    # Contradicts all options that would bake input scales.
    no_input_scale: bool = option(False, INPUT_SCALES, SWITCH,
        "bake none: ComfyUI measures on every call (for calibration)",
        conflicts=["--input-scale-summary-json", "--input-scale-from", "--input-scale-value",
                   "--input-scale-layer-summary", "--input-scale-policy"])
    input_scale_layer_summary: bool = option(False, INPUT_SCALES, SWITCH,
        "print every quantised layer's input scale")

    activation_stats: tuple[Path, ...] = option(
        (), STATISTICS, FILE._replace(repeatable=True),
        "a recording of the ComfyUI recorder in calib/ (repeatable; they add up): tells what "
        "scales clip, and with second moments weights are rounded to the least error of the "
        "layer's output",
        reads=True)
    w4a4_share: float | None = option(None, STATISTICS, SHARE,
        "mark layers for full-precision matmul, first those that gain most by it, until this "
        "share of the multiply work is left in W4A4: 0.6",
        conflicts=[AMAX], needs=["--activation-stats"])
    pre_quant_scale: bool = option(False, STATISTICS, SWITCH,
        "scale the channels of W4A4 layers where it lowers their output error by 5 % or more; "
        "ComfyUI after 0.29 only, and not for LoRAs",
        conflicts=[AMAX], needs=["--activation-stats"])

    # The file alone does nothing: it needs a threshold, and each threshold needs the file.
    sensitivity_json: Path | None = option(None, SENSITIVITY, FILE,
        "layers' rel_rmse and clip_rate means (.json), or a recording (.safetensors)",
        needs=["--sensitivity-threshold", "--clip-rate-threshold"], reads=True)
    sensitivity_threshold: float | None = option(None, SENSITIVITY, Kind(positive_float, "X"),
        "layers whose inputs have a larger rel_rmse in NVFP4 get --sensitivity-action",
        needs=["--sensitivity-json"])
    sensitivity_action: str = option("fp16", SENSITIVITY, ACTION,
        "16-bit, or a mark for full-precision matmul (default: {default})",
        needs=["--sensitivity-threshold"])
    clip_rate_threshold: float | None = option(None, SENSITIVITY, Kind(positive_float, "X"),
        "layers that clip a larger share of their input get --clip-rate-action",
        needs=["--sensitivity-json"])
    clip_rate_action: str = option("fp16", SENSITIVITY, ACTION,
        "16-bit, or a mark for full-precision matmul (default: {default})",
        needs=["--clip-rate-threshold"])

    full_precision_mm_layers: Path | None = option(None, FULL_PRECISION, LAYER_LIST,
        "layer names, one a line; also looked for in sensitive_layers/ beside this script",
        reads=True)
    full_precision_mm_pattern: tuple[str, ...] = option((), FULL_PRECISION, REGEXES,
        "matching layers (repeatable, case-insensitive)")
    fp8_full_precision_mm: bool = option(False, FULL_PRECISION, SWITCH,
        "every FP8 layer; for --recipe scaled-fp8 this is the size of its marker tensor",
        conflicts=[Other("--use-int8", why=", which makes INT8 of these")])
    full_precision: frozenset[str] = option(frozenset(), FULL_PRECISION, SWITCH,
        switches=FULL_PRECISION_OPTIONS)
    # None stands for w4a16, and in what a preset marks for w4a8: see `plan.choosing`.
    sensitive_as: str | None = option(None, FULL_PRECISION, Kind(choices=SENSITIVE_AS),
        "what a layer in NVFP4 becomes that an option, a list, a sensitivity or --w4a4-share "
        "marks; marks in a --layer-config stay as written (default: w4a16; for marks of presets: "
        "w4a8)",
        check=grows_not)
    # fmt: on

    def __post_init__(self) -> None:
        check_task(self)
        # Two defaults depend on other options: None stands for them until here.
        if self.dtype is None:
            dtype = RECIPES[self.recipe].dtype
            if dtype == "bfloat16" and self.card:
                dtype = CARDS[self.card].half
            object.__setattr__(self, "dtype", dtype)
        if self.preset is None and self.gguf is None:
            object.__setattr__(self, "preset", "auto")
        if values := goal_values(self):
            for name, value in values.items():
                object.__setattr__(self, name, value)
            # What was given may have no use for what the goal stands for.
            check_task(self, f"--goal {self.goal} stands for {flags_text(self.expanded)}, and ")
        if self.output is None or not is_model_file(self.output):
            object.__setattr__(self, "output", made_output(self))
