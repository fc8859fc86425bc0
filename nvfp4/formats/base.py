"""What a format has to say of itself, and the table of all formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch

from nvfp4.dtypes import SOURCE_FLOATS
from nvfp4.model import TensorRef
from nvfp4.numeric.codes import FloatGrid
from nvfp4.numeric.compiled import Kernels
from nvfp4.numeric.damage import Damage, measure
from nvfp4.numeric.feedback import Feedback, Rounded

# {suffix: (safetensors dtype, shape)} of a layer's tensors, in the order in which they are written.
Parts = dict[str, tuple[str, tuple[int, ...]]]

# What may lie beside a quantised weight whatever its format is.
COMMON_PARTS = ("weight", "bias", "input_scale", "pre_quant_scale", "comfy_quant")

# Formats whose names ComfyUI knows in `comfy_quant` but that no file of this room describes: layers
# of them are named, not decoded.
NAMED_ONLY = ("float8_e5m2", "mxfp8", "int8_tensorwise", "convrot_w4a4")


class Given(NamedTuple):
    """A weight that is to be encoded."""

    layer: str
    weight: torch.Tensor  # [N, K], float32, bfloat16 or float16, on the device that computes
    amax: torch.Tensor  # its largest magnitude, a finite float32 scalar
    # The scale that the source stored this FP8 weight with; None if it was none, or was changed.
    source_scale: float | None = None


class Encoder(Protocol):
    """What a format may use to encode a weight: `encode.compute.Compute`."""

    dtype: torch.dtype  # weights are cast to it first: --quant-dtype
    search: Callable  # one of SCALE_SEARCHES
    kernels: Kernels | None  # numba's, where they serve this device and dtype
    notes: list[str]

    def map(self, function: Callable, weight: torch.Tensor, *more: torch.Tensor) -> list:
        """Call the function for every chunk of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A weight's codes by chunks of rows, what else goes by rows, the scale, and the damage."""

    codes: tuple[torch.Tensor, ...]
    by_rows: tuple[torch.Tensor, ...] = ()  # block or row scales, whole
    scale: torch.Tensor  # float32 scalar
    damage: Damage


class Format:
    """One way to store a tensor; creating one enters it into the table.

    Subclasses set the attributes that differ and override what their layers do otherwise. N and K
    are the rows and columns of the weight as a linear layer multiplies by it.
    """

    rows: ClassVar[list[Format]] = []

    name: str = ""  # in plans, reports and the header
    title: str = ""  # among the formats that a file may hold; no two have the same one
    # Bits of precision: a floor that asks for FP8 is met by everything with at least as many.
    rank: int = 0
    config: str = ""  # its name in `comfy_quant`; "" for what is not quantised

    # How it is stored.
    is_configured: bool = True  # `comfy_quant` and the header tell of it; else a marker does
    is_copy: bool = False  # the source's bytes, untouched
    weight_dtype: str = ""
    scale_suffix: str = ""  # of the tensor beside the weight by which the format is recognised
    scalar_shape: tuple[int, ...] = ()  # of scales that are one number
    marker: str = ""  # the tensor that tells of layers without a configuration
    row_multiple: int = 1  # rows of the weight are padded to it
    # What is missing when such a weight lies in a file without a configuration: a key of DEFECTS.
    unconfigured: str = "unconfigured"

    # How ComfyUI multiplies it.
    weight_bits: int = 16
    activation_bits: int = 16  # without full-precision matmul
    needs_input_scale: bool = False  # or full-precision matmul: ComfyUI would clip the input at 448
    # The largest activation over the input scale; 0 where the format takes no input scale.
    activation_max: float = 0.0
    # Column of a calibration summary that input scales are from, and what it is divided by.
    summary_column: tuple[str, float] | None = None
    full_precision_option: str = ""  # the field of Options that marks all layers of this format

    # What a conversion does with it.
    is_candidate: bool = False  # --target-size may choose it
    is_adopted: bool = False  # layers of a source that have it are taken over or decoded
    is_decoded: bool = False  # ... decoded: they are 16-bit weights again while converting
    encoding_cost: int = 0  # of a weight, in bytes that are read or written meanwhile
    grid: FloatGrid | None = None  # rounding by statistics rounds to it; None: it cannot
    group: int = 1  # columns that share a scale

    def __init__(self) -> None:
        Format.rows.append(self)

    def __repr__(self) -> str:
        return self.title

    def __reduce__(self) -> tuple:
        """Pickle the row by its title: ranks send each other plans, and compare formats by `is`."""
        return format_titled, (self.title,)

    def __lt__(self, other: Format) -> bool:
        return self.rank < other.rank

    def __le__(self, other: Format) -> bool:
        return self.rank <= other.rank

    @property
    def is_quantised(self) -> bool:
        return bool(self.config)

    def dtype_of(self, source: str, half: str) -> str:
        """The dtype in the output of a tensor that the source has in another one."""
        return source

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """What ComfyUI reads of a layer, in `comfy_quant` and in the header alike."""
        flag = {"full_precision_matrix_mult": True} if full_precision else {}
        return {"format": self.config, **flag}

    def stored_name(self, suffix: str) -> str:
        """What this format calls a part of a layer in the file."""
        return suffix

    # Shapes and dtypes

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tensors that a weight [N, K] becomes, without those in COMMON_PARTS but the weight."""
        return {"weight": (self.weight_dtype, shape)}

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of all tensors that such a layer may have in a file, by the names they have there."""
        names = (*self.parts((1, 1)), "input_scale") if self.is_quantised else ()
        return tuple(self.stored_name(name) for name in names)

    def holds(self, weight: TensorRef, parts: Iterable[str], configured: str | None) -> bool:
        """Whether a stored layer is of this format, as its tensors show it.

        configured: the format's name in its `comfy_quant`, if it has one.
        """
        fits = bool(self.weight_dtype) and weight.dtype == self.weight_dtype
        return fits and (not self.scale_suffix or self.scale_suffix in parts)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """[N, K] of a stored weight's shape; `bias_rows` tells padded rows from others."""
        return stored

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Why a stored layer cannot be decoded, by its dtypes and shapes; or ""."""
        scale, weight = parts.get(self.scale_suffix), parts["weight"]
        if scale is not None and (scale.dtype not in SOURCE_FLOATS or math.prod(scale.shape) != 1):
            return f"its scale is {scale.dtype} {list(scale.shape)}"
        if len(weight.shape) != 2 or 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        return ""

    def is_slow(self, shape: tuple[int, int]) -> bool:
        """Whether quantised activations cannot be multiplied by a weight [N, K] of this shape."""
        return False

    # Values

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Choose scales and codes with the least squared error of the weight."""
        raise NotImplementedError

    def stored(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """{suffix: its rows in pieces} of an encoded weight [N, K], in the order of `parts`."""
        raise NotImplementedError

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What `decode` takes, of a layer's stored tensors: parts by rows, and the scale.

        tensors: by suffix, as the file holds them.
        """
        scale = tensors.get(self.scale_suffix)
        return [tensors["weight"]], torch.ones(()) if scale is None else scale.float().reshape(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Rows [n, K] float32 (K padded) of parts by rows, the scale coming last."""
        raise NotImplementedError

    def round_to_levels(self, rounded: Rounded, feedback: Feedback) -> list[torch.Tensor]:
        """Parts by rows, codes first, of rows that were rounded by statistics."""
        raise NotImplementedError

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Defects (keys of DEFECTS, with a detail) that the values of scales show.

        scales: by suffix, those that are more than one number; weight: its stored shape.
        """
        return []

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """{what may have gone wrong: parts by rows as they would be then}."""
        return {}


def encode_rows(
    weight: torch.Tensor, scale: torch.Tensor, encode: Callable, encoder: Encoder
) -> Encoded:
    """Encode all rows of a weight [N, K] at one scale.

    encode: (rows [n, K], scale) -> codes, further parts by rows, Damage in units of the scale.
    """
    made = encoder.map(lambda rows: encode(rows, scale), weight)
    codes, *by_rows, damages = zip(*made, strict=True)
    return Encoded(
        codes=codes,
        by_rows=tuple(map(torch.cat, by_rows)),
        scale=scale,
        damage=Damage.total(damages, scale),
    )


def measured(encode: Callable, decode: Callable, dtype: torch.dtype) -> Callable:
    """(rows, scale) -> their parts, encoded from `dtype`, and the error of what those decode to."""

    def encode_and_measure(rows: torch.Tensor, scale: torch.Tensor) -> tuple:
        parts = encode(rows.to(dtype), scale)
        # In units of the scale, as the squares of huge and tiny weights leave float32's range.
        return *parts, measure(rows.float() / scale, decode(*parts, torch.ones_like(scale)))

    return encode_and_measure


def format_titled(title: str) -> Format:
    """The row of that title. Raises KeyError where there is none."""
    return {row.title: row for row in Format.rows}[title]


def configured_formats() -> dict[str, Format]:
    """{name in comfy_quant: format} of all that a conversion can write by that name."""
    return {row.config: row for row in sorted(Format.rows) if row.config and row.is_configured}


def candidate_formats() -> list[Format]:
    """What --target-size may choose from, the smallest first."""
    return sorted((row for row in Format.rows if row.is_candidate), key=lambda row: row.rank)


def stored_formats() -> list[Format]:
    """What a stored layer may be, those first that have more tensors to be told by."""
    rows = (row for row in Format.rows if row.weight_dtype)
    return sorted(rows, key=lambda row: (row.rank, not row.scale_suffix, row.is_configured))


def is_known(config: object) -> bool:
    """Whether ComfyUI knows a format by this name, described here or only named."""
    return config in NAMED_ONLY or config in configured_formats()


def layer_parts() -> tuple[str, ...]:
    """Suffixes of all tensors that belong to a layer, in any format."""
    own = (suffix for row in Format.rows for suffix in row.suffixes)
    return tuple(dict.fromkeys((*COMMON_PARTS, *own)))


def marker_names() -> set[str]:
    """Names of the tensors that tell of layers without a configuration."""
    return {row.marker for row in Format.rows if row.marker}


def is_quantised_part(name: str) -> bool:
    """Whether a tensor of this name shows that its layer is quantised already.

    `weight_scale_inv` is what other tools call the scale of FP8 weights.
    """
    own = {*layer_parts(), "weight_scale_inv", *marker_names()}
    return name.rpartition(".")[2] in own - {"weight", "bias", "pre_quant_scale"}


def scalar_scales() -> dict[str, tuple[int, ...]]:
    """{suffix: its shape where it is written} of the scales that are one number.

    Those of formats with a configuration come first, the input scale after their own.
    """
    found: dict[str, tuple[int, ...]] = {}
    for configured in (True, False):
        rows = [r for r in stored_formats() if r.is_quantised and r.is_configured is configured]
        for row in rows:
            parts = {suffix: shape for suffix, (_, shape) in row.parts((32, 32)).items()}
            scalars = {k: shape for k, shape in parts.items() if math.prod(shape) == 1}
            found |= {row.stored_name(suffix): shape for suffix, shape in scalars.items()}
        found |= {row.stored_name("input_scale"): row.scalar_shape for row in rows}
    return found
