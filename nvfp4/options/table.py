"""The options table: one row for each option, in the order of `--help`.

To add an option, say `--crop N`:
  1. Add a row to `Options`, in its group: `crop: int = option(0, GENERAL, NATURAL, "...")`.
  2. Say there what it `conflicts` with or `needs`, whether it `reads` or `writes` files, and
     `trace=False` if the bytes of OUTPUT cannot depend on it. A new kind of value goes to kinds.py.
  3. Use it, `options.crop`, in the phase it belongs to; a note goes into that phase's record.
  4. Run `python tools/docs.py --write` and `python tools/single_file.py`.
  5. Test what it does; that both interfaces check it alike, test_options.py tests for every row.
Parser, help, README, checks of the command line and of Python, and the header follow from the row.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from nvfp4.cards import CARD_NAMES, CARDS
from nvfp4.dtypes import DTYPE_OPTIONS
from nvfp4.families import PRESETS
from nvfp4.model import Lora, Model
from nvfp4.options.checks import (
    grows_not,
    is_model_file,
    large_enough,
    model_name,
    must_end_in,
    none_needs_include,
    original_only,
)
from nvfp4.options.formats import (
    DEFAULT_FORMATS,
    RECIPES,
    SENSITIVE_AS,
    format_words,
    formats_of_card,
    leaves_enough,
    recipe_takes,
)
from nvfp4.options.header import recorded_values
from nvfp4.options.kinds import (
    FILE,
    FOLDER,
    LAYER_LIST,
    NATURAL,
    REGEXES,
    SHARE,
    SIZE,
    SUMMARY,
    SWITCH,
    Kind,
    device_name,
    input_path,
    lora_file,
    margin,
    natural,
    percentile,
    positive_float,
)
from nvfp4.options.naming import made_output
from nvfp4.options.option import Alias, Other, by_name, check_task, option, options_of, paths_of
from nvfp4.options.switches import FULL_PRECISION_OPTIONS, MINIMUM_OPTIONS

__version__ = "0.1.0"
# What notes and reasons call both --target-size and --target-ratio.
TARGET = "--target-size"
# Encoded bytes that may wait for the writer, unless --low-mem is given. Encoding goes on meanwhile
# when the disk is slow; the bytes count towards the peak of memory.
WRITE_AHEAD = 96 << 20
# The recipe whose layers have no configuration: one marker tensor tells of all.
LEGACY_RECIPE = "scaled-fp8"
# Files that have to cover the source, unless --partial-guide is given.
GUIDE_OPTIONS = (
    "--gguf", "--input-scale-from", "--input-scale-summary-json", "--activation-stats",
    "--sensitivity-json", "--full-precision-mm-layers",
)  # fmt: skip
# Suffixes that --report takes; report/texts.py has a renderer for each.
REPORT_KINDS = (".json", ".html")

# Headings of the groups in `--help` and in the README, in this order.
GENERAL = "general"
PRECISION = "precision"
INPUT_SCALES = "input scales (file before recording before summary before value)"
STATISTICS = "activation statistics"
SENSITIVITY = "sensitivity"
FULL_PRECISION = "full-precision matmul (W4A16 instead of W4A4)"

# Kinds of values that only rows of this table have.
DTYPE = Kind(choices=tuple(DTYPE_OPTIONS))
ACTION = Kind(choices=("fp16", "full_precision_mm"))
# What needs statistics of a layer's inputs excludes the search that looks at weights alone.
AMAX = Other("--scale-search", "amax", ", which uses no statistics")


@by_name
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
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
        "*.safetensors.index.json, the folder it is in, or one .safetensors",
        flag="SOURCE", check=original_only, reads=True, trace=False,
        everyday="a 16-bit model: .safetensors, index, or folder of it")
    # None and a folder stand for a name that is made, until the task is checked.
    output: Path | None = option(None, "", Kind(input_path),
        "the .safetensors file to write; or a folder for it, or nothing for beside SOURCE (beside "
        "the folder of shards): then its name is SOURCE's with the format at its end, as in "
        "wan_nvfp4.safetensors, or _mixed where a GGUF, a layer config or a size decides",
        flag="OUTPUT", check=model_name, trace=False,
        everyday="file or folder to write to; left out: beside SOURCE")
    make_folder: bool = option(False, GENERAL, SWITCH,
        "create the folders of OUTPUT and of --report and --layer-config-out if they are missing",
        trace=False)

    recipe: str = option("mixed", GENERAL, Kind(choices=tuple(RECIPES)),
        "mixed; fp8, int8 or w4a8: that for all that would be NVFP4; scaled-fp8: FP8 as files of "
        "the older kind have it, with scale_weight and the rest in float32 (default: {default})",
        check=recipe_takes)
    # None stands for the recipe's own until the task is checked.
    dtype: str | None = option(None, GENERAL, DTYPE,
        "of tensors that are not quantised (default: bfloat16; scaled-fp8: float32; --card turing, "
        "which has no bfloat16: float16)")
    quant_dtype: str = option("float32", GENERAL, DTYPE,
        "what weights are cast to before they are quantised (default: {default})")
    scale_search: str = option("mse", GENERAL, Kind(choices=("mse", "amax")),
        "block scales by least squared error, or from each block's largest weight "
        "(default: {default})",
        aliases=(Alias("--use-ck-quant", "amax", "another name for --scale-search amax",
                       conflicts=(Other("--scale-search"),)),))
    # LoRAs are merged before layers are measured, so they change precisions by --target-size, too.
    merge_lora: tuple[Lora, ...] = option(
        (), GENERAL, Kind(lora_file, "FILE[:STRENGTH]", repeatable=True),
        "merge a LoRA, LoHa, LoKr or DoRA in float32 before quantising (repeatable)", reads=True,
        everyday="merge a LoRA before quantising")
    lora_partial: bool = option(False, GENERAL, SWITCH,
        "... and count what of it is of no tensor of the model", needs=["--merge-lora"])
    plain_fp8: bool = option(False, GENERAL, SWITCH,
        "convert a SOURCE whose FP8 has no scales, although the cast has lost some 3 %")
    report: Path | None = option(None, GENERAL, FILE,
        "the plan, its reasons and every layer's error as data (.json) or a page (.html)",
        check=must_end_in(*REPORT_KINDS), trace=False, writes=True,
        everyday="write what was done as a page (.html) or data (.json)")
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
        "go on where a run of the same command was stopped; keep what this one does if it is",
        trace=False,
        everyday="go on where the same command was stopped")
    output_sharded: bool = option(False, GENERAL, SWITCH,
        "write OUTPUT's name-00001-of-0000N.safetensors, and OUTPUT.index.json", trace=False)
    max_shard_size: int = option("5GB", GENERAL, SIZE,
        "bytes of tensors in a shard at most: 5GB, 500MB, 4GiB ... (default: {default})",
        needs=["--output-sharded"], check=large_enough, trace=False)
    dry_run: bool = option(False, GENERAL, SWITCH,
        "print the plan, its reasons, the exact size, and all that a run would refuse but NaN in "
        "weights; write no model", trace=False,
        everyday="print the plan, the exact size; write no model")
    verbose: bool = option(False, GENERAL, SWITCH, "print the plan of every single tensor",
        trace=False)
    quiet: bool = option(False, GENERAL, SWITCH, "no progress on stderr",
        conflicts=["--verbose"], trace=False)

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
    edge_blocks: int | None = option(None, PRECISION, NATURAL,
        "the first and last N transformer blocks stay 16-bit (default: the preset's own)")
    target_size: int | None = option(None, PRECISION, SIZE,
        "measure every layer, and raise or lower precisions by what they gain for their bytes "
        "until the file is just smaller: 8GB, 7500MB, 7GiB", conflicts=["--target-ratio"],
        everyday="choose precisions for a file of this size: 8GB")
    target_ratio: float | None = option(None, PRECISION, SHARE,
        "the same with a share of the source's size: 0.35")
    fp4_share: float | None = option(None, PRECISION, SHARE,
        "the share of the multiply work that --target-size leaves in W4A4, which is fastest on "
        "Blackwell: 0.5",
        needs=["--target-size", "--target-ratio"], conflicts=["--w4a4-share"])
    formats: tuple[str, ...] | None = option(None, PRECISION, Kind(format_words, "LIST"),
        "what presets and --target-size may choose from; the smallest of them takes the place of "
        f"NVFP4, with a GGUF, too: {','.join(DEFAULT_FORMATS)} (the default), w6a8 and mxfp8",
        check=leaves_enough)
    card: str | None = option(None, PRECISION, Kind(choices=tuple(CARDS), told=CARD_NAMES),
        f"the card it is for ({CARD_NAMES}): sets --formats to what multiplies fast there, "
        "unless that is given; the summary's shares and speed are for it", check=leaves_enough,
        everyday="blackwell, ada, ampere, turing or rdna")
    layer_config: Path | None = option(None, PRECISION, FILE,
        "a .json of layer names or patterns: format, full-precision matmul, input scale",
        reads=True)
    # A layer config has no place for scaled channels, so a plan that has them cannot be replayed.
    layer_config_out: Path | None = option(None, PRECISION, FILE,
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
        "GGUF types of more bits, and shapes without FP4 matmul, become INT8: half of FP8's error "
        "without any input scale", needs=["--gguf"],
        conflicts=["--use-fp8", Other("--recipe", "fp8"), Other("--recipe", "scaled-fp8")])
    partial_guide: bool = option(False, PRECISION, SWITCH,
        "go on with guides that cover only a part of the model, and note which",
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
        "layers whose scale varies from call to call stay 16-bit, by the next two thresholds",
        needs=["--input-scale-summary-json"])
    input_scale_summary_std_threshold: float | None = option(
        None, INPUT_SCALES, Kind(positive_float, "STD"),
        "... from this deviation up (default: that of nine tenths of the layers)",
        needs=["--input-scale-summary-fp16-std"])
    input_scale_summary_cv_threshold: float = option(0.4, INPUT_SCALES, Kind(positive_float, "CV"),
        "... or from this deviation over the mean up (default: {default})",
        needs=["--input-scale-summary-fp16-std"])
    input_scale_policy: str = option(
        "percentile", INPUT_SCALES, Kind(choices=("percentile", "headroom")),
        "from the summary, or the largest value in --activation-stats with a margin "
        "(default: {default})", needs=["--activation-stats"])
    input_scale_headroom: float = option(2.0, INPUT_SCALES, Kind(margin, "X"),
        "that margin, less where small blocks would become subnormal (default: {default})",
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
        "what the ComfyUI recorder in calib/ wrote (repeatable, adds up): counts what scales "
        "clip; with second moments in it, weights are rounded to the least output error",
        reads=True)
    w4a4_share: float | None = option(None, STATISTICS, SHARE,
        "mark layers for full-precision matmul, those first that it gains most, until this "
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
        "for layers whose inputs lose more than this rel_rmse in NVFP4, ...",
        needs=["--sensitivity-json"])
    sensitivity_action: str = option("fp16", SENSITIVITY, ACTION,
        "... do this (default: {default})", needs=["--sensitivity-threshold"])
    clip_rate_threshold: float | None = option(None, SENSITIVITY, Kind(positive_float, "X"),
        "for layers that clip more than this share of their input, ...",
        needs=["--sensitivity-json"])
    clip_rate_action: str = option("fp16", SENSITIVITY, ACTION,
        "... do this (default: {default})", needs=["--clip-rate-threshold"])

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
        "what NVFP4 layers become that options, lists, sensitivities or --w4a4-share mark; a "
        "--layer-config's stay as written (default: w4a16; those that presets mark: w4a8)",
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
        if self.output is None or not is_model_file(self.output):
            object.__setattr__(self, "output", made_output(self))

    def target(self, model: Model) -> int:
        """Tell how many bytes OUTPUT may have by --target-size or --target-ratio; 0 without these.

        model: the source, of whose tensors the ratio is a share, headers left out.
        """
        return self.target_size or int((self.target_ratio or 0) * model.nbytes)

    @property
    def allowed(self) -> tuple[str, ...]:
        """List the words of the formats that may be chosen: by --formats, else by --card.

        A recipe leaves of them those that it writes.
        """
        words = self.formats or (formats_of_card(self.card) if self.card else DEFAULT_FORMATS)
        written = RECIPES[self.recipe].formats
        return tuple(word for word in words if word in written) if written else words

    @property
    def has_family(self) -> bool:
        """Tell whether a family's rows decide: not with a GGUF, nor with preset all or none."""
        return self.preset not in (None, "all", "none")

    @property
    def eight_bits(self) -> tuple[str, ...]:
        """List the 8-bit formats by their words, that first which layers get for 8 bits.

        That is FP8 beside a GGUF, unless --use-int8 asks for INT8. Not all of them may be allowed.
        """
        is_fp8 = self.gguf and not self.use_int8
        return ("fp8", "int8", "mxfp8") if is_fp8 else ("int8", "mxfp8", "fp8")

    @property
    def written(self) -> Path:
        """Name the file that a person loads: OUTPUT, or the index of its shards beside it."""
        return self.written_as(self.output)

    def written_as(self, output: Path) -> Path:
        """Name the file that a person would load if OUTPUT were this."""
        index = output.with_name(output.name + ".index.json")
        return index if self.output_sharded else output

    @property
    def buffers(self) -> int:
        """Count the read buffers: one that is worked on, and one that is filled meanwhile.

        With --low-mem there is one, and nothing is read ahead.
        """
        return 1 if self.low_mem else 2

    @property
    def ahead(self) -> int:
        """Tell how many encoded bytes may wait to be written; none with --low-mem."""
        return 0 if self.low_mem else WRITE_AHEAD

    @property
    def inputs(self) -> tuple[Path, ...]:
        """List the files that options name as inputs, which OUTPUT must not overwrite.

        They are in the order of the rows. Of SOURCE, this is the path as given: an index's shards
        are in the model's `files`.
        """
        rows = [row for row in options_of(type(self)) if row.reads]
        return tuple(path for row in rows for path in paths_of(getattr(self, row.name)))

    @property
    def texts(self) -> tuple[Path, ...]:
        """List the text files to write beside the model: the report, the layer config."""
        rows = [row for row in options_of(type(self)) if row.writes]
        return tuple(path for row in rows for path in paths_of(getattr(self, row.name)))

    @property
    def recorded(self) -> dict[str, object]:
        """Tell what the header of OUTPUT records of the options: {field: value for JSON}."""
        return recorded_values(self)
