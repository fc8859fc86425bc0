"""Say what a format has to tell of itself; keep the table of formats.

`Format` is the contract: attributes for facts, methods for shapes and values. Each file of this
room subclasses it and creates its rows; the rest of the package asks the row and never compares
names; the functions below look rows up. `encoding` has what encoders take and give.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from nvfp4.cards import COMFYUI_SINCE
from nvfp4.dtypes import SOURCE_FLOATS
from nvfp4.formats.encoding import Encoded, Encoder, Given
from nvfp4.formats.reading import Misreading
from nvfp4.model import TensorRef
from nvfp4.numeric.feedback import Feedback, Rounded
from nvfp4.numeric.grids import Grid

# {suffix: (safetensors dtype, shape)} of a layer's tensors, in the order in which they are written.
# A suffix is the name after the layer's: "weight" in "blocks.0.ffn.0.weight".
Parts = dict[str, tuple[str, tuple[int, ...]]]

# Suffixes of tensors that a layer may have whatever its format is.
COMMON_PARTS = ("weight", "bias", "input_scale", "pre_quant_scale", "comfy_quant")

# What other programs call the code that stands for zero; formats of this room have none.
ZERO_POINTS = ("weight_zero_point", "weight_zeros", "zero_point")


class Format:
    """Describe one way to store a tensor; an instance is a row of the table `rows`.

    Subclasses set the attributes and override the methods that differ for their layers. N and K
    are rows and columns of a weight as a linear layer multiplies by it. Formats are ordered by
    rank, so that a floor is a comparison.
    """

    rows: ClassVar[list[Format]] = []

    # Plans, reports and the header use the name, which formats that are only read have not. The
    # title is unique among all formats.
    name: str = ""
    title: str = ""
    # The word for it on the command line (--formats); "" for what nobody asks for.
    option: str = ""
    # The first version of ComfyUI that loads it.
    since: str = COMFYUI_SINCE["nvfp4"]
    # The first comfy-kitchen that knows it; "" where that version of ComfyUI asks for it anyway.
    since_kitchen: str = ""
    # Bits of precision: a floor that asks for FP8 is met by every format with at least as many.
    rank: int = 0
    # The name in `comfy_quant` that ComfyUI knows the format by; "" for what is not quantised.
    config: str = ""

    # How it is stored. Whether `comfy_quant` and the header tell of its layers; else a marker does.
    is_configured: bool = True
    # Whether the source's bytes are copied as they are.
    is_copy: bool = False
    # The safetensors dtype of the weight, "" where there is no fixed one.
    weight_dtype: str = ""
    # The suffix of the tensor beside the weight by which the format is recognised.
    scale_suffix: str = ""
    # The shape that scales of one number are written with.
    scalar_shape: tuple[int, ...] = ()
    # The tensor, one in a file, that tells of layers without a configuration; "" for none.
    marker: str = ""
    # The title of the older form, told by a marker, which --recipe scaled-fp8 stores instead.
    older_form: str = ""
    # Whether ComfyUI takes other floats for scales of float32, rounded as they are; else it stops.
    casts_scales: bool = True
    # Rows of the weight are padded with zeros to a multiple of this.
    row_multiple: int = 1
    # Groups of this many columns are rotated before they are stored; 0 for weights as they are.
    rotated: int = 0
    # K has to be a multiple of this.
    column_multiple: int = 1
    # The title of the row that stands in for weights of shapes that do not fit; "" for none.
    stand_in: str = ""
    # The key of DEFECTS to report where such a weight has no configuration; "" if it needs none.
    unconfigured: str = "unconfigured"

    # How ComfyUI multiplies it, unless a layer is marked for full-precision matmul.
    weight_bits: int = 16
    activation_bits: int = 16
    # The word of `cards.UNITS` for what its layers are multiplied in.
    kernel: str = "16bit"
    # Whether the input is quantised to NVFP4, with block scales: recordings and sensitivities tell
    # what that costs, presets and --w4a4-share spare layers from it.
    has_nvfp4_input: bool = False
    # The first version of ComfyUI whose embeddings take it, as they look rows up before they decode
    # them; "" where none does.
    embedding_since: str = ""
    # Whether every row of a weight is encoded by itself, and stored as one row of each part.
    encodes_rows: bool = False
    # Whether a mark for full-precision matmul or an input scale means anything.
    takes_mark: bool = True
    # Whether ComfyUI would clip the input at 448 where there is neither an input scale nor a mark
    # for full-precision matmul.
    needs_input_scale: bool = False
    # The largest activation over the input scale; 0 where the format takes no input scale.
    activation_max: float = 0.0
    # Column of a calibration summary that input scales are from, and what it is divided by.
    summary_column: tuple[str, float] | None = None
    # The field of Options that marks all layers of this format for full-precision matmul.
    full_precision_option: str = ""
    # What is multiplied, in words: with an input scale, without one, with full-precision matmul.
    runs_scaled: str = ""
    runs_unscaled: str = ""
    runs_full_precision: str = ""

    # The relative RMSE of weights by the search for the least squared error, 0 where none was
    # measured. Layers hardly differ in it: see `report.usual`.
    usual_error: float = 0.0

    # What a conversion does with it.
    # Whether a source may have such layers. They are copied, or, if `is_decoded`, become 16-bit
    # weights again and are planned anew.
    is_adopted: bool = False
    is_decoded: bool = False
    # The time to encode one weight, as the number of bytes that could be read or written meanwhile.
    # Ranks divide the work by it.
    encoding_cost: int = 0
    # What rounding by statistics rounds to, None where it cannot.
    grid: Grid | None = None

    def __init__(self) -> None:
        """Enter the row into the table of all formats."""
        Format.rows.append(self)

    def __repr__(self) -> str:
        """Show the row by its title, which is unique."""
        return self.title

    def __reduce__(self) -> tuple:
        """Pickle the row by its title.

        Ranks send plans to each other, and formats are compared by `is`.
        """
        return format_titled, (self.title,)

    def __lt__(self, other: Format) -> bool:
        """Compare by bits of precision."""
        return self.rank < other.rank

    def __le__(self, other: Format) -> bool:
        """Compare by bits of precision; formats of equal rank meet each other's floors."""
        return self.rank <= other.rank

    @property
    def is_quantised(self) -> bool:
        """Tell whether ComfyUI has a name for the format in `comfy_quant`.

        Tensors of such formats are layers with scales and a configuration.
        """
        return bool(self.config)

    @property
    def kind(self) -> str:
        """Name its numbers for people, who need not know all forms: FP8, INT8, MXFP8, NVFP4."""
        return self.title

    def dtype_of(self, source: str, half: str) -> str:
        """Choose the safetensors dtype that a tensor gets in the output.

        source: its dtype in the source; half: the one that --dtype asks for ("BF16", "F16" or
        "F32"). Unquantised formats override this; the default keeps the source's dtype.
        """
        return source

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """Make the configuration of a layer that ComfyUI reads.

        It is the same in `comfy_quant` and in the header. Returns what is written as JSON: the
        format's name, and `full_precision_matrix_mult` where activations are to stay 16-bit.
        """
        flag = {"full_precision_matrix_mult": True} if full_precision else {}
        return {"format": self.config, **flag}

    def name_in_file(self, suffix: str) -> str:
        """Name the tensor that holds a part of a layer, given the part's usual suffix.

        Formats older than ComfyUI's present names override it.
        """
        return suffix

    # Shapes and dtypes: no tensor's values are needed.

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell dtypes and shapes of the tensors that a weight [N, K] becomes.

        Returns {suffix: (safetensors dtype, shape)}, without COMMON_PARTS other than the weight, in
        the order in which they are written; `pack` gives the values.
        """
        return {"weight": (self.weight_dtype, shape)}

    @property
    def has_one_scale(self) -> bool:
        """Tell whether a weight has a single number for a scale, and nothing else."""
        # Any shape will do to tell which parts are one number: 32 rows and columns, as an example.
        _, *others = (math.prod(shape) for _, shape in self.parts((32, 32)).values())
        return others == [1]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """List the suffixes of its own tensors in a file, by the names they have there.

        They include the input scale, and those that a layer of this format may lack.
        """
        names = (*self.parts((1, 1)), "input_scale") if self.is_quantised else ()
        return tuple(self.name_in_file(name) for name in names)

    def stores(self, weight: TensorRef) -> bool:
        """Tell whether a weight has the dtype in which this format stores codes."""
        return weight.dtype == self.weight_dtype

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration means this row, of those that share its format's name."""
        return config.get("format") == self.config

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell whether ComfyUI takes a part whose dtype or shape is not that of `parts`.

        suffix: of the part; ref: as it is stored; expected: the shape in `parts`.
        """
        return False

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell whether ComfyUI loads such a layer with options that no row has.

        config: its configuration, of this format's name; parts: its tensors by suffix.
        """
        return True

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is of this format, going by its tensors.

        weight: the stored weight; parts: the layer's tensors by suffix; config: its configuration,
        {} if it has none. The dtype of the weight has to be that of the format, and the scale that
        it is recognised by has to be there.
        """
        fits = bool(self.weight_dtype) and weight.dtype == self.weight_dtype
        return fits and (not self.scale_suffix or self.scale_suffix in parts)

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K] of a weight from its stored shape.

        stored: shape of the stored weight, rows padded and codes packed; bias_rows: length of the
        layer's bias, None if there is none, which tells how many rows are not padding.
        """
        return stored

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a stored layer cannot be decoded, by dtypes and shapes, or return "".

        parts: its tensors by suffix; shape: [N, K] as `logical_shape` gave it. Here: the scale has
        to be one float, and the weight a matrix that is not empty.
        """
        scale, weight = parts.get(self.scale_suffix), parts["weight"]
        if scale is not None and (scale.dtype not in SOURCE_FLOATS or math.prod(scale.shape) != 1):
            return f"its scale is {scale.dtype} {list(scale.shape)}"
        if len(weight.shape) != 2 or 0 in weight.shape:
            return f"its weight is {list(weight.shape)}"
        return ""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Tell whether a weight [N, K] can be stored so that ComfyUI multiplies by it."""
        return shape[1] % self.column_multiple == 0

    def for_shape(self, shape: tuple[int, ...]) -> Format:
        """Return the row that stores a weight of this shape: this one, or the one that stands in.

        Tensors that are no matrices are for the rules of planning to keep out.
        """
        if len(shape) != 2 or self.fits(shape) or not self.stand_in:
            return self
        return format_titled(self.stand_in).for_shape(shape)

    def runs_as(self, shape: tuple[int, ...], *, full_precision: bool) -> str:
        """Tell the word of `cards.UNITS` for what a weight [N, K] is multiplied in.

        full_precision: whether the layer is marked for full-precision matmul.
        """
        is_16_bit = (full_precision and self.takes_mark) or self.is_slow(shape)
        return "16bit" if is_16_bit else self.kernel

    def is_slow(self, shape: tuple[int, int]) -> bool:
        """Tell whether ComfyUI has no matmul in the format's activation bits for a weight [N, K].

        ComfyUI then decodes the weight for every call, which is right but slow.
        """
        return False

    # Values: what follows computes with tensors.

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Choose scales and codes with the least squared error of the weight.

        given: the weight and its largest magnitude; encoder: what to compute with. Returns what
        `pack` turns into tensors. Formats that are not quantised have none, and raise
        NotImplementedError.
        """
        raise NotImplementedError

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Turn an encoded weight into the tensors of the file.

        shape: [N, K]. Returns {suffix: its rows in pieces} in the order of `parts`; the pieces are
        written one after the other, so that large codes need not be joined in memory.
        """
        raise NotImplementedError

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring a layer's stored tensors into the form that `decode` takes.

        tensors: by suffix, as the file holds them. Returns parts by rows, the codes first, and the
        scale as a float32 scalar, 1 where the format has none.
        """
        scale = tensors.get(self.scale_suffix)
        return [tensors["weight"]], torch.ones(()) if scale is None else scale.float().reshape(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Dequantise rows to float32 [n, K], K padded as it is stored.

        Arguments are the parts by rows, as `unpack` or `round_to_levels` gives them, and last the
        scale, a float32 scalar; a scale of 1 gives weights in units of the scale.
        """
        raise NotImplementedError

    def grid_of(self, *by_rows: torch.Tensor) -> Grid:
        """Return `grid`, with the layer's own codebook where the format has one.

        by_rows: the parts of its encoding after the codes, [n, ...] each.
        """
        return self.grid

    def row_units(self, *by_rows: torch.Tensor) -> torch.Tensor:
        """Return the units that rows are rounded in: float32 [n, 1], or [] for 1 throughout.

        by_rows: the parts of their encoding after the codes. Units are of the rotated rows, over
        the layer's scale, and rounding by statistics leaves them as they are.
        """
        return torch.ones(())

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Pack rows that were rounded by statistics, as `decode` takes them.

        rounded: levels and codes of steps; feedback: tells the order of their columns; by_rows:
        the parts after the codes that the rows had before, [n, ...] each. Returns parts by rows,
        the codes first. Needed where `grid` is set.
        """
        raise NotImplementedError

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows as ComfyUI's matmul in this format sees them.

        rows: [r, K] floats; input_scale: the layer's, or None where it has none. Returns [r, K]
        float32 in the input's own basis. Here: 16-bit rows are taken as they are.
        """
        return rows.float()

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find defects that the values of scales show: keys of DEFECTS, each with a detail.

        scales: by suffix, those that are more than one number; weight: the stored shape of the
        weight.
        """
        return []

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """List other ways in which the same parts may have been stored.

        parts: by rows, as `unpack` gives them. Returns {what may have gone wrong: how they would be
        read then}, which --verify tries where a layer decodes to something else than its source.
        """
        return {}


def format_titled(title: str) -> Format:
    """Find the row of a title. Raises KeyError where there is none."""
    return {row.title: row for row in Format.rows}[title]


def written_formats() -> list[Format]:
    """List the formats that this program writes with a configuration, the fewest bits first."""
    return [row for row in sorted(Format.rows) if row.name and row.config and row.is_configured]


def readable_formats() -> list[Format]:
    """List the formats that a stored layer may have, in the order in which to try them.

    Of two that fit a layer the first one counts: fewer bits come first, then those that are told by
    a scale beside the weight, then those without a configuration.
    """
    rows = (row for row in Format.rows if row.weight_dtype)
    return sorted(rows, key=lambda row: (row.rank, not row.scale_suffix, row.is_configured))


def is_known(config: object) -> bool:
    """Tell whether ComfyUI knows a format by this name.

    config: what a configuration gives as its format, which may be anything JSON can hold.
    """
    return bool(config) and config in {row.config for row in Format.rows}


def layer_parts() -> tuple[str, ...]:
    """List the suffixes of all tensors that belong to a layer, in any format, each once."""
    own = (suffix for row in Format.rows for suffix in row.suffixes)
    return tuple(dict.fromkeys((*COMMON_PARTS, *own)))


def marker_names() -> set[str]:
    """List the names of tensors that tell of layers without a configuration."""
    return {row.marker for row in Format.rows if row.marker}


def is_quantised_part(name: str) -> bool:
    """Tell whether a tensor of this name shows that its layer is quantised already.

    name: as in the file. A weight, a bias and a smoothing vector show nothing.
    """
    own = {*layer_parts(), *marker_names(), *ZERO_POINTS}
    return name.rpartition(".")[2] in own - {"weight", "bias", "pre_quant_scale"}


def scalar_scales() -> dict[str, tuple[int, ...]]:
    """List the scales that are one number: {suffix: the shape with which it is written}.

    Those of formats with a configuration come first, each format's input scale after its own
    scales.
    """
    found: dict[str, tuple[int, ...]] = {}
    for configured in (True, False):
        # Any shape will do to tell which parts are one number: 32 rows and columns, as an example.
        rows = [r for r in readable_formats() if r.is_quantised and r.is_configured is configured]
        for row in rows:
            parts = {suffix: shape for suffix, (_, shape) in row.parts((32, 32)).items()}
            scalars = {k: shape for k, shape in parts.items() if math.prod(shape) == 1}
            found |= {row.name_in_file(suffix): shape for suffix, shape in scalars.items()}
        found |= {row.name_in_file("input_scale"): row.scalar_shape for row in rows}
    return found
