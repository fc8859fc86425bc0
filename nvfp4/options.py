"""One task: every option, its default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from nvfp4.model import Lora, Model

__version__ = "0.1.0"
TARGET = "--target-size"
WRITE_AHEAD = 96 << 20  # bytes that may wait for the writer
# Full-precision matmul (W4A16) by kind of layer: option, layers, what the help says.
FULL_PRECISION_OPTIONS = {
    "--full-precision-mm": (r"", "every quantised layer"),
    "--full-precision-mm-cross-attn-kv": (r"\bcross_attn\.[kv](_img)?$", "cross-attention k and v"),
    "--full-precision-mm-cross-attn-qkvo": (
        r"\bcross_attn\.([qo]|[kv](_img)?)$",
        "cross-attention q, k, v and o",
    ),
    "--full-precision-mm-self-attn-qkvo": (r"\bself_attn\.[qkvo]$", "self-attention q, k, v and o"),
    "--full-precision-mm-ffn-up": (r"\bffn\.0$", "feed-forward up projections"),
    "--full-precision-mm-ffn-down": (r"\bffn\.2$", "feed-forward down projections"),
}
MINIMUM_OPTIONS = {"--min-ffn-fp8": r"\bffn\.[02]$", "--min-ffn2-fp16": r"\bffn\.2$"}
# Each recipe's --dtype, unless one is given: working scaled-FP8 models keep float32.
RECIPES = {"mixed": "bfloat16", "fp8": "bfloat16", "scaled-fp8": "float32"}
LEGACY_RECIPE = "scaled-fp8"
DEFAULTS = {
    "recipe": "mixed",
    "input_scale_summary_percentile": 99.9,
    "input_scale_summary_multiplier": 1.0,
    "gguf_nvfp4_max_bitdepth": 4,
    "scale_search": "mse",
    "max_shard_size": 5 * 10**9,
    "input_scale_policy": "percentile",
    "input_scale_headroom": 2.0,
    "input_scale_summary_cv_threshold": 0.4,
    "sensitivity_action": "fp16",
    "clip_rate_action": "fp16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One conversion. Fields are the command line's long options, see `--help`; two collect
    switches: `minimums` ("--min-...") and `full_precision` ("--full-precision-mm...").
    """

    source: Path
    output: Path
    gguf: Path | None = None
    gguf_nvfp4_max_bitdepth: int = DEFAULTS["gguf_nvfp4_max_bitdepth"]
    gguf_keep_edge_blocks_fp16: bool = False
    preset: str | None = None  # None: the GGUF decides
    edge_blocks: int | None = None  # None: the preset's
    layer_config: Path | None = None
    layer_config_out: Path | None = None
    target_size: int | None = None
    target_ratio: float | None = None
    use_fp8: bool = False
    merge_lora: tuple[Lora, ...] = ()
    lora_partial: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    minimums: frozenset[str] = frozenset()
    recipe: str = DEFAULTS["recipe"]
    dtype: str | None = None  # None: the recipe's own
    quant_dtype: str = "float32"
    scale_search: str = DEFAULTS["scale_search"]
    input_scale_summary_json: Path | None = None
    input_scale_summary_percentile: float = DEFAULTS["input_scale_summary_percentile"]
    input_scale_summary_multiplier: float = DEFAULTS["input_scale_summary_multiplier"]
    input_scale_summary_fp16_std: bool = False
    input_scale_summary_std_threshold: float | None = None
    input_scale_summary_cv_threshold: float = DEFAULTS["input_scale_summary_cv_threshold"]
    activation_stats: tuple[Path, ...] = ()
    w4a4_share: float | None = None
    pre_quant_scale: bool = False
    input_scale_policy: str = DEFAULTS["input_scale_policy"]
    input_scale_headroom: float = DEFAULTS["input_scale_headroom"]
    input_scale_from: Path | None = None
    input_scale_value: float | None = None
    no_input_scale: bool = False
    input_scale_layer_summary: bool = False
    full_precision: frozenset[str] = frozenset()
    fp8_full_precision_mm: bool = False
    full_precision_mm_layers: Path | None = None
    full_precision_mm_pattern: tuple[str, ...] = ()
    sensitivity_json: Path | None = None
    sensitivity_threshold: float | None = None
    sensitivity_action: str = DEFAULTS["sensitivity_action"]
    clip_rate_threshold: float | None = None
    clip_rate_action: str = DEFAULTS["clip_rate_action"]
    report: Path | None = None
    device: str = "auto"
    low_mem: bool = False
    resume: bool = False
    output_sharded: bool = False
    max_shard_size: int = DEFAULTS["max_shard_size"]
    dry_run: bool = False
    verbose: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):  # plain strings are welcome as paths
            value = getattr(self, entry.name)
            if "tuple[Path" in entry.type:
                object.__setattr__(self, entry.name, tuple(map(Path, value)))
            elif "Path" in entry.type and value is not None:
                object.__setattr__(self, entry.name, Path(value))
        if self.dtype is None:
            object.__setattr__(self, "dtype", RECIPES[self.recipe])
        if self.preset is None and self.gguf is None:
            object.__setattr__(self, "preset", "auto")

    def target(self, model: Model) -> int:
        """Bytes of --target-size, or 0."""
        return self.target_size or int((self.target_ratio or 0) * model.nbytes)

    @property
    def has_family(self) -> bool:
        """Whether rows of a family decide."""
        return self.preset not in (None, "all", "none")

    @property
    def only_fp8(self) -> bool:
        return self.recipe != "mixed"

    @property
    def written(self) -> Path:
        """The file that a person names to load what was written."""
        index = self.output.with_name(self.output.name + ".index.json")
        return index if self.output_sharded else self.output

    @property
    def buffers(self) -> int:
        """Read buffers: one that is worked on, and one that is filled meanwhile."""
        return 1 if self.low_mem else 2

    @property
    def ahead(self) -> int:
        """Encoded bytes that may wait to be written."""
        return 0 if self.low_mem else WRITE_AHEAD

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files named on the command line that the output must not overwrite."""
        named = (
            self.source,
            self.gguf,
            self.input_scale_summary_json,
            *self.activation_stats,
            *(lora.path for lora in self.merge_lora),
            self.sensitivity_json,
            self.input_scale_from,
            self.full_precision_mm_layers,
            self.layer_config,
        )
        return tuple(path for path in named if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """`--verify FILE`, with a source to measure it against or without."""

    file: Path
    source: Path | None = None
    merge_lora: tuple[Lora, ...] = ()
    lora_partial: bool = False
    quiet: bool = False
