"""Store weights as W4A8 and W6A8: 4 or 6 bits that decode to INT8, times 8-bit activations.

The layout is that of comfy_kitchen's AsymW4A8Int8Layout, which ComfyUI calls asym_w4a8_int8. The
width of a row tells how many bits a code has.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from nvfp4.cards import COMFYUI_SINCE, KITCHEN_SINCE
from nvfp4.dtypes import VIEWED
from nvfp4.formats.base import Format, Parts
from nvfp4.formats.encoding import Encoded, Encoder, Given, encode_by_rows
from nvfp4.formats.reading import Misreading, configured_options, rotates
from nvfp4.formats.scaled import bad_scales
from nvfp4.model import TensorRef
from nvfp4.numeric.codes import amax_block_scales, swap_nibbles
from nvfp4.numeric.compiled import Kernels
from nvfp4.numeric.feedback import Feedback, Rounded, levels_in_order, steps_in_order
from nvfp4.numeric.grids import GROUP_STEPS, Codebook, Grid, steps_for
from nvfp4.numeric.int8 import quantised_int8_rows
from nvfp4.numeric.level_search import LevelGrid, choose_grid, encode_levels, sample_rows
from nvfp4.numeric.rotation import WRITTEN_GROUP, rotate
from nvfp4.numeric.w4a8 import W4A8_GROUP, codebook_of, decode_w4a8, encode_w4a8, pack_w4a8

# Dtypes that parts are read in; ComfyUI views and casts them so.
READ_DTYPES = {"weight": VIEWED, "weight_s_rel": ("F8_E4M3", "U8", "F32")}
# comfy_kitchen has no smaller groups of columns that share a scale.
LEAST_GROUP = 4
# Group scales above this tell of a codebook that is missing: integers reach from -8 to 7, so that
# scales of up to 127 / 7, about 18, fill INT8, while a codebook, whose largest level is about 1,
# has scales of up to 127. The limit lies between, as other programs may clip.
LARGEST_PLAIN_SCALE = 32


class W4a8(Format):
    """Store a weight [N, K], rotated in groups of 256 columns, as codes, scales and a codebook.

    Codes are I8 [N, K/2], two columns in a byte. A level of the codebook times the scale of its 16
    columns is rounded to an integer, which the scale of its row multiplies. ComfyUI multiplies the
    integers with INT8 activations, rotated like the weight, on every card from Ampere on.
    """

    name = title = "W4A8"
    usual_error = 0.067
    option = kernel = "w4a8"
    since = COMFYUI_SINCE["w4a8"]
    rank, bits = 5, 4
    has_codebook = True
    casts_scales = False
    config = "asym_w4a8_int8"
    weight_dtype = "I8"
    scale_suffix = "weight_s_rel"
    rotated = WRITTEN_GROUP
    column_multiple = WRITTEN_GROUP
    stand_in = "INT8"
    weight_bits, activation_bits = 4, 8
    takes_mark = False
    is_adopted = True
    runs_unscaled = "4-bit weights times 8-bit activations, whose scales are measured by rows"
    encoding_cost = 4
    grid = Grid(Codebook(codebook_of(4, torch.device("cpu"))), W4A8_GROUP, GROUP_STEPS)

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the tensors of a weight [N, K]: codes, two kinds of scales, and the codebook."""
        rows, columns = shape
        codebook = {"weight_codebook": ("F32", (16,))} if self.has_codebook else {}
        return {
            "weight": (self.weight_dtype, (rows, columns * self.bits // 8)),
            "weight_s_rel": ("F8_E4M3", (rows, columns // W4A8_GROUP)),
            "weight_s_channel": ("F32", (rows,)),
            **codebook,
        }

    def configuration(self, *, full_precision: bool) -> dict[str, object]:
        """Make the configuration, which tells the sizes of both kinds of groups."""
        return {
            "format": self.config, "group_size": W4A8_GROUP, "convrot_groupsize": self.rotated
        }  # fmt: skip

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is of this format and width, by its group scales."""
        scales = parts.get(self.scale_suffix)
        if weight.dtype not in VIEWED or scales is None or len(scales.shape) != 2:
            return False
        means = self.is_meant_by({"format": self.config, **config})
        means = means and (self.bits == 6 or ("weight_codebook" in parts) == self.has_codebook)
        width = scales.shape[1] * W4A8_GROUP * self.bits
        return means and len(weight.shape) == 2 and weight.shape[1] * 8 == width

    def allows(self, config: dict, parts: dict[str, TensorRef]) -> bool:
        """Tell whether other groups than those that are written fit the tensors."""
        (group,) = configured_options(config, group_size=W4A8_GROUP)
        weight, scales = parts["weight"].shape, parts.get(self.scale_suffix)
        if (
            scales is None
            or len(scales.shape) != 2
            or type(group) is not int
            or group < LEAST_GROUP
        ):
            return False
        columns = scales.shape[1] * group
        width = [columns * bits for bits in (4, 6)]
        return weight[-1] * 8 in width and rotates(config, columns)

    def is_meant_by(self, config: dict) -> bool:
        """Tell whether a configuration is of this format, with the groups that are read here."""
        groups = configured_options(config, group_size=W4A8_GROUP, convrot_groupsize=WRITTEN_GROUP)
        return super().is_meant_by(config) and groups == [W4A8_GROUP, self.rotated]

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K] from the stored shape: a row has K * bits / 8 bytes."""
        return stored[0], stored[1] * 8 // self.bits

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded, by dtypes and shapes: all its parts have to fit."""
        if 0 in shape or shape[1] % self.rotated:
            return f"its weight {list(shape)} has no whole groups of {self.rotated} columns"
        for suffix, (dtype, expected) in self.parts(shape).items():
            ref = parts.get(suffix)
            dtypes = READ_DTYPES.get(suffix, (dtype,))
            if ref is None or ref.dtype not in dtypes or ref.shape != expected:
                found = f"{ref.dtype} {list(ref.shape)}" if ref else "missing"
                return f"its {suffix} is {found}, and should be {dtype} {list(expected)}"
        return ""

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K], K a multiple of 256.

        Codes are int8 [n, K * bits / 8] in chunks; by rows come group scales float8_e4m3fn
        [N, K/16], row scales float32 [N] and, of 4 bits, the codebook for each row [N, 16]. Group
        scales and codebook are those of least squared error. With `--scale-search amax` and
        float32 all are those of comfy_kitchen's own quantiser, but for what the last bit of a
        rotation decides.
        """
        device, kernels = given.weight.device, encoder.kernels
        levels, quantise = codebook_of(self.bits, device), encode_w4a8
        is_searched = encoder.search is not amax_block_scales
        if is_searched:
            grid = self.chosen_grid(sample_rows(given.weight).to(encoder.dtype).float(), kernels)
            levels, quantise = grid.codebook(device), partial(encode_levels, grid=grid)

        def encode(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made = quantise(rotate(rows.float(), self.rotated), bits=self.bits)
            return made + self.codebooks(levels, len(rows))

        def compiled(rows: torch.Tensor, _: torch.Tensor) -> tuple:
            *made, damage = kernels.encode_levels(rows, grid)
            return *made, *self.codebooks(levels, len(rows)), damage

        has_kernel = kernels is not None and is_searched
        return encode_by_rows(given, encode, self.decode, encoder, compiled if has_kernel else None)

    def chosen_grid(self, rows: torch.Tensor, kernels: Kernels | None) -> LevelGrid:
        """Choose the codebook for a weight by some of its rows [n, K] float32."""
        if kernels is None:
            return choose_grid(rotate(rows, self.rotated), self.bits)
        # These rotate the rows themselves; error comes last of what they return.
        return choose_grid(
            rows, self.bits, lambda rows, grid: kernels.encode_levels(rows, grid)[-1].error
        )

    def codebooks(self, levels: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
        """Repeat a codebook [16] for each row, as all parts go by rows; 6 bits have none."""
        return (levels.expand(rows, -1),) if self.has_codebook else ()

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`; the rows of a layer share one codebook."""
        group_scale, row_scale, *codebooks = encoded.by_rows
        made = [[*encoded.codes], [group_scale], [row_scale], *([book[0]] for book in codebooks)]
        return dict(zip(self.parts(shape), made, strict=True))

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring stored tensors into rows, as `decode` takes them, the codebook for each row."""
        codes, group_scale, row_scale, *more = (tensors[name] for name in self.parts((1, 16)))
        books = self.codebooks(more[0].float(), len(codes)) if more else ()
        stored = codes.view(torch.int8), as_group_scales(group_scale)
        return [*stored, row_scale.float(), *books], torch.ones(())

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Decode to integers, multiply by the scale of each row, and rotate back: float32 [n, K].

        comfy_kitchen.dequantize_w4a8_int8_weight gives the same but for float32's rounding.
        """
        codes, group_scale, row_scale, *books, scale = parts_and_scale
        # Without a codebook, codes stand for the integers from -8 or -32 on; -32 is never stored.
        levels = torch.arange(2**self.bits, device=codes.device) - 2 ** (self.bits - 1)
        levels = books[0][0] if books else levels.float()
        integers = decode_w4a8(codes, group_scale, levels)
        return rotate(integers.mul_((row_scale * scale).unsqueeze(1)), self.rotated)

    def grid_of(self, *by_rows: torch.Tensor) -> Grid:
        """Return the grid with the codebook of the layer, or with the levels of 6 bits."""
        _, row_scale, *books = by_rows
        levels = books[0][0] if books else codebook_of(self.bits, row_scale.device)
        return replace(self.grid, steps=steps_for(levels)).with_codebook(levels)

    def row_units(self, *by_rows: torch.Tensor) -> torch.Tensor:
        """Return the scales of the rows, float32 [n, 1]."""
        return by_rows[1].unsqueeze(1)

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Pack rounded levels as codes, with the new group scales; the rest stays as it is."""
        _, row_scale, *books = by_rows
        codes = torch.searchsorted(
            self.grid_of(*by_rows).levels.levels, levels_in_order(rounded, feedback)
        )
        group_scale = steps_in_order(rounded, feedback).view(torch.float8_e4m3fn)
        # 6-bit codes begin at 1.
        packed = pack_w4a8(codes if books else codes + 1, self.bits)
        return [packed, group_scale, row_scale, *books]

    def accepts(self, suffix: str, ref: TensorRef, expected: tuple[int, ...]) -> bool:
        """Tell that comfy_kitchen takes group scales in float32 as well."""
        return (suffix, ref.dtype, ref.shape) == (self.scale_suffix, "F32", expected)

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find scales that are no numbers, and integers where there should be a codebook.

        The scale of a group may be 0, and of either sign: comfy_kitchen multiplies by it as it is.
        """
        groups = as_group_scales(scales[self.scale_suffix]).float()
        found = bad_scales({"weight_s_channel": scales["weight_s_channel"].float()})
        if not groups.isfinite().all():
            found.append(("bad scale", self.scale_suffix))
        levels = scales.get("weight_codebook")
        if levels is not None and not levels.isfinite().all():
            found.append(("bad scale", "weight_codebook"))
        largest = groups.abs().max()
        if self.bits == 4 and levels is None and largest > LARGEST_PLAIN_SCALE:
            found.append(("no codebook", f"group scales up to {largest:.0f}"))
        return found

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """Give the parts with nibbles swapped, and with the rotation undone.

        parts: codes int8 [n, K * bits / 8], of which the first K / 2 bytes are nibbles, and so on.
        """
        codes, *others = parts
        # At 6 bits, two thirds of a row are nibbles.
        lower = codes.shape[1] * 4 // self.bits
        swapped = torch.cat([swap_nibbles(codes[:, :lower]), codes[:, lower:]], dim=1)
        return {
            "packed with the even column in the high nibble": Misreading(
                [swapped, *others], self.decode
            ),
            "not rotated, though this format is": Misreading(
                parts, lambda *stored: rotate(self.decode(*stored), self.rotated)
            ),
        }

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] to INT8, each with a scale of its own."""
        return quantised_int8_rows(rows, self.rotated)


class W6a8(W4a8):
    """Store a weight as W4A8 does, in 6 bits: evenly spaced levels, and no codebook.

    Codes are I8 [N, 3K/4]: the lower four bits of all columns, then the upper two.
    """

    name = title = "W6A8"
    usual_error = 0.020
    option = kernel = "w6a8"
    since = COMFYUI_SINCE["w6a8"]
    since_kitchen = KITCHEN_SINCE["w6a8"]
    rank, bits = 6, 6
    has_codebook = False
    weight_bits = 6
    runs_unscaled = "6-bit weights times 8-bit activations, whose scales are measured by rows"


class PlainW4a8(W4a8):
    """Describe codes of 4 bits without a codebook: the integers from -8 to 7; only read."""

    name = option = ""
    title = "W4A8 without codebook"
    usual_error = 0.0
    has_codebook = False


def as_group_scales(stored: torch.Tensor) -> torch.Tensor:
    """View bytes as the E4M3 that they are; group scales of other dtypes come back as they are."""
    return stored.view(torch.float8_e4m3fn) if stored.dtype == torch.uint8 else stored


W4A8, W6A8, PLAIN_W4A8 = W4a8(), W6a8(), PlainW4a8()
