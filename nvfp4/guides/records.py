"""Hold what guides say, as records: planning takes these and opens no file.

`Guides` is all of it, made once by `read.read_guides`. Layers are named bare (without prefix) where
a record comes from a file, and as in the source once it is matched to the model; each field says
which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nvfp4.coverage import Cover
from nvfp4.dtypes import E4M3_MAX, LEAST_NORMAL_E4M3, NVFP4_MAX
from nvfp4.families import Family
from nvfp4.formats.base import Format
from nvfp4.model import TensorRef
from nvfp4.reasons import Reason

# Bits a weight costs in each GGML type, block scales left aside: the number in the type's name.
GGUF_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I8": 8, "I16": 16, "I32": 32, "I64": 64,
    "Q1_0": 1, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q8_1": 8,
    "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "Q8_K": 8,
    "IQ1_S": 1, "IQ1_M": 1, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 2, "IQ3_XXS": 3, "IQ3_S": 3,
    "IQ4_NL": 4, "IQ4_XS": 4, "TQ1_0": 1, "TQ2_0": 2, "MXFP4": 4, "NVFP4": 4,
}  # fmt: skip
# The recorder's histogram of block maxima: bin 0 is below 2**-24, bin i begins at
# 2**(-24 + (i - 1) / 8), the last one at 2**16.
BIN_EDGES = 2.0 ** np.concatenate([[-np.inf], np.arange(-24 * 8, 16 * 8 + 1) / 8])
# A mean is dominant if it has this share of the energy of all rows, which then differ little from
# step to step and token to token. Smaller ones are not those of the rows that count: biases that
# made up for all mean errors of the small Wan gave it 3 % (W4A8) to 9 % (INT8) more error.
DOMINANT = 0.5
# With headroom, up to 1 % of the recorded blocks may fall into E4M3's subnormals.
SMALL_BLOCKS = 0.01


class Setting(NamedTuple):
    """Hold what --layer-config says of the tensors that one of its keys names.

    `dtype` is a safetensors dtype, "" for a quantised format; `names` are tensors of the source.
    """

    key: str
    precision: Format
    dtype: str
    full_precision: bool
    input_scale: float | None
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Hold the input scales of one layer, by what its weight becomes, and their source.

    An input scale is a positive number: the largest activation over the format's largest value.
    `source` is the text that reports show.
    """

    scales: dict[Format, float]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Hold what a recording tells of one layer's input: figures, and where its statistics are.

    `error` and `energy` are sums over sampled rows, so that those of several recordings add up.
    """

    amax: float  # over all calls
    channels: int
    block_histogram: np.ndarray  # int64, one bin more than BIN_EDGES has steps
    error: float  # of quantising it to NVFP4, scaled anew on every call, squared and summed
    energy: float
    moments: Moments | None = None
    sums: Sums | None = None
    is_modelled: bool = False  # by calib/model_inputs.py, not recorded from prompts

    def __add__(self, other: Recorded) -> Recorded:
        """Add what another recording tells of the same layer."""
        moments = [*self.moments.recordings] if self.moments else []
        moments += other.moments.recordings if other.moments else ()
        sums = [recorded.sums for recorded in (self, other) if recorded.sums]
        return Recorded(
            amax=max(self.amax, other.amax),
            channels=self.channels,
            block_histogram=self.block_histogram + other.block_histogram,
            error=self.error + other.error,
            energy=self.energy + other.energy,
            moments=Moments(recordings=tuple(moments)) if moments else None,
            sums=Sums(*map(sum, zip(*sums, strict=True))) if sums else None,
            is_modelled=self.is_modelled or other.is_modelled,
        )

    @property
    def rel_rmse(self) -> float:
        """Return the relative RMSE of the input in NVFP4 with a dynamic scale.

        It is the root of `error` over `energy`; 0 for an input of zeros.
        """
        return math.sqrt(self.error / self.energy) if self.energy else 0.0

    @property
    def small_block(self) -> float:
        """Return the magnitude that all but SMALL_BLOCKS of the blocks exceed, zeros left out."""
        counts = self.block_histogram[1:].cumsum()
        # Bin 0 is left out: it has the blocks of zeros, which no scale can spoil.
        index = int(np.searchsorted(counts, SMALL_BLOCKS * counts[-1], side="right"))
        return float(BIN_EDGES[1:][index]) if counts[-1] else self.amax

    def headroom(self, margin: float) -> float:
        """Return the largest magnitude to scale for: `margin` times what was seen, or less.

        Less where that would bring more than SMALL_BLOCKS of the blocks into E4M3's subnormals, in
        which block scales lose precision; never less than what was seen.
        """
        ceiling = self.small_block * E4M3_MAX / LEAST_NORMAL_E4M3
        return max(self.amax, min(self.amax * margin, ceiling))

    def saturated(self, scale: float) -> float:
        """Return the share of recorded blocks that clip at an input scale.

        These are blocks whose block scale would exceed E4M3's 448. Bins that the limit cuts count
        in part, as if magnitudes were spread evenly in them.
        """
        limit, counts = scale * NVFP4_MAX, self.block_histogram
        if limit >= self.amax or not counts.sum():
            return 0.0
        widths = np.append(np.diff(BIN_EDGES), BIN_EDGES[-1])
        above = np.clip((BIN_EDGES + widths - limit) / widths, 0.0, 1.0)
        return float((counts * above).sum() / counts.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Tell where the statistics of a layer's input lie: MOMENT_PARTS of each recording."""

    recordings: tuple[tuple[TensorRef, ...], ...]


class Sums(NamedTuple):
    """Hold sums over the sampled rows of a layer's input, which give its mean.

    tokens: how many rows; total: [K] float64, their sum; squares: the sum of all squares.
    """

    tokens: int
    total: np.ndarray
    squares: float

    @property
    def mean(self) -> np.ndarray | None:
        """Return the mean [K], float32, if it is DOMINANT in the input; else None."""
        mean = self.total / self.tokens
        is_dominant = float(mean @ mean) * self.tokens >= DOMINANT * self.squares > 0
        return mean.astype(np.float32) if is_dominant else None


class LayerList(NamedTuple):
    """Hold what --full-precision-mm-layers names: weights, and names that match nothing."""

    weights: frozenset[str]
    unknown: frozenset[str]


class Measured(NamedTuple):
    """Hold weights for which a measured figure asks more than NVFP4 in W4A4.

    `is_half` tells whether it asks for 16 bits, or only for a full-precision matmul.
    """

    is_half: bool
    reason: Reason
    weights: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guides:
    """Hold all that steers a plan besides its options, matched to the source and read once.

    That is what files say, and the row of FAMILIES that the source goes by. Nothing in it is read
    again, however many plans are made; the second moments' data alone stay in their files.
    """

    family: Family
    kinds: dict[str, str] | None = None  # {tensor: GGML type}; None without a GGUF
    settings: tuple[Setting, ...] = ()
    calibration: dict[str, Calibration] = field(default_factory=dict)  # by layer
    recording: dict[str, Recorded] = field(default_factory=dict)  # by bare layer
    listed: LayerList | None = None
    measured: tuple[Measured, ...] = ()
    covers: tuple[Cover, ...] = ()  # what has to tell of all layers in NVFP4 of the kinds it knows
    notes: tuple[str, ...] = ()
    parts: dict[str, Guides] = field(default_factory=dict)  # of text encoders beside, by prefix

    @property
    def configured(self) -> dict[str, Calibration]:
        """Return {layer: Calibration} of the input scales in a --layer-config."""
        return {
            name.removesuffix(".weight"): Calibration(
                scales={setting.precision: setting.input_scale}, source="--layer-config"
            )
            for setting in self.settings
            for name in setting.names
            if setting.input_scale is not None
        }

    @property
    def scales(self) -> dict[str, Calibration]:
        """Return {layer: Calibration} of all layers; those of a --layer-config go before others."""
        return self.calibration | self.configured
