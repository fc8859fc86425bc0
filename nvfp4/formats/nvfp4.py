"""Store weights as NVFP4: 4-bit floats and an 8-bit scale for every 16.

`codes` does the arithmetic and the swizzle, `scale_search` chooses block scales, and numba's
kernels do both faster. The layout is that of comfy_kitchen's TensorCoreNVFP4Layout, which ComfyUI
loads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch

from nvfp4.dtypes import (
    BLOCK_SIZE,
    E4M3_MAX,
    FP4_MATMUL_K,
    FP4_MATMUL_N,
    NAN_E4M3,
    NVFP4_MAX,
    TILE_COLUMNS,
    TILE_ROWS,
    VIEWED,
    round_up,
)
from nvfp4.formats.base import Format, Parts
from nvfp4.formats.encoding import LEAST_COMPILED, Encoded, Encoder, Given, encode_rows, with_damage
from nvfp4.formats.reading import Misreading
from nvfp4.model import TensorRef
from nvfp4.notes import Note, Rank
from nvfp4.numeric.codes import (
    E2M1,
    LEAST_FLOAT32,
    amax_block_scales,
    decode_nvfp4,
    encode_nvfp4,
    has_many_subnormals,
    nvfp4_global_scale,
    pack_e2m1,
    quantised_rows,
    round_to_e2m1,
    swap_nibbles,
    swizzle,
    unswizzle,
)
from nvfp4.numeric.damage import Damage
from nvfp4.numeric.feedback import Feedback, Rounded, levels_in_order, steps_in_order
from nvfp4.numeric.grids import NVFP4_STEPS, Grid
from nvfp4.numeric.scale_search import LEAST_SEARCHED_SCALE, OTHER_LARGEST_SCALES


class Nvfp4(Format):
    """Store a weight [N, K] as codes, block scales in swizzled tiles, and a global scale.

    N16 and K16 are N and K rounded up to 16. Codes are U8 [N16, K16/2], two columns in a byte. The
    weight is multiplied in FP4 on Blackwell (W4A4), and decoded to 16 bits elsewhere and with
    full-precision matmul (W4A16). In ComfyUI since 0.10.
    """

    name = title = "NVFP4"
    usual_error = 0.082
    rank = 4
    option = kernel = "nvfp4"
    config = "nvfp4"
    weight_dtype = "U8"
    scale_suffix = "weight_scale_2"
    # comfy_kitchen pads rows to 16 as it does columns, though blocks lie along columns alone.
    row_multiple = BLOCK_SIZE
    weight_bits = activation_bits = 4
    has_nvfp4_input = True
    activation_max = NVFP4_MAX
    # A summary's `scale` column holds input scales of NVFP4 as they are.
    summary_column = ("scale", 1.0)
    runs_scaled = (
        "4-bit weights times 4-bit activations at the baked scale, on Blackwell; "
        "decoded to 16-bit on other cards"
    )
    runs_unscaled = (
        "4-bit weights times 4-bit activations, whose scale is measured on every call, "
        "on Blackwell; decoded to 16-bit on other cards"
    )
    runs_full_precision = "4-bit weights, decoded and multiplied in 16-bit"
    is_adopted = True
    encoding_cost = 4
    grid = Grid(E2M1, BLOCK_SIZE, NVFP4_STEPS)

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell the three tensors of a weight [N, K].

        `weight` U8 [N16, K16/2], `weight_scale` F8_E4M3 [roundup(N16, 128), roundup(K16/16, 4)],
        and `weight_scale_2`, the global scale, F32 []. Shapes and suffixes are those that
        comfy_kitchen's TensorCoreNVFP4Layout gives.
        """
        height, width = (round_up(size, BLOCK_SIZE) for size in shape)
        tiles = (round_up(height, TILE_ROWS), round_up(width // BLOCK_SIZE, TILE_COLUMNS))
        return {
            "weight": (self.weight_dtype, (height, width // 2)),
            "weight_scale": ("F8_E4M3", tiles),
            "weight_scale_2": ("F32", ()),
        }

    def holds(self, weight: TensorRef, parts: dict[str, TensorRef], config: dict) -> bool:
        """Tell whether a stored layer is NVFP4: a U8 weight with a global scale beside it.

        An I8 weight counts if the layer is configured as NVFP4, too.
        """
        # ComfyUI takes the bits of I8 for those of U8; only a configuration tells that they are.
        signed = weight.dtype == "I8" and config.get("format") == self.config
        return (weight.dtype == self.weight_dtype or signed) and self.scale_suffix in parts

    def logical_shape(self, stored: tuple[int, int], bias_rows: int | None) -> tuple[int, int]:
        """Tell [N, K16] of codes [N16, K16/2]: two columns in a byte.

        The bias's length is N where it rounds up to N16; otherwise N16 is all that is known, as the
        file does not say how much was padded.
        """
        # Columns may be padded, too, which nothing in the file shows.
        rows = stored[0] if bias_rows is None else bias_rows
        return rows if round_up(rows, BLOCK_SIZE) == stored[0] else stored[0], stored[1] * 2

    def undecodable(self, parts: dict[str, TensorRef], shape: tuple[int, ...]) -> str:
        """Say why a layer cannot be decoded, by dtypes and shapes.

        Its global scale has to be one float, codes [N16, K16/2], and block scales the whole tiles
        that belong to them, F8_E4M3 or bytes with those bits.
        """
        if reason := super().undecodable(parts, shape):
            return reason
        weight, tiles = parts["weight"], parts.get("weight_scale")
        expected = self.parts((weight.shape[0], shape[1]))
        if weight.shape != expected["weight"][1]:
            return f"its weight is {list(weight.shape)}"
        if tiles is None or tiles.shape != expected["weight_scale"][1]:
            return "its block scales have no or another shape"
        if tiles.dtype not in ("F8_E4M3", *VIEWED):
            return f"its block scales are {tiles.dtype}"
        return ""

    def is_slow(self, shape: tuple[int, int]) -> bool:
        """Tell whether Blackwell cannot multiply the weight in FP4.

        It needs K % 32 == 0, and N % 16 == 0 where there is a bias; a layer's bias is not looked at
        here, so that N counts for every layer.
        """
        return bool(shape[0] % FP4_MATMUL_N or shape[1] % FP4_MATMUL_K)

    def encode(self, given: Given, encoder: Encoder) -> Encoded:
        """Encode a weight [N, K] by the scale search that was asked for.

        Codes are uint8 [n, K16/2] by chunks of rows, block scales float8_e4m3fn [N, K16/16] whole
        and not swizzled, the global scale amax / 2688 or one of the six others. Weights too small
        for the search get amax block scales, with a note. With `--scale-search amax` and float32
        the bytes are those of comfy_kitchen.quantize_nvfp4.
        """
        # Parity: with the amax search and float32, all bytes are those of comfy_kitchen.
        scale, search = nvfp4_global_scale(given.amax), encoder.search
        if search is not amax_block_scales and scale < LEAST_SEARCHED_SCALE:
            search = amax_block_scales
            what = f"{given.layer}: too small weights for the scale search"
            encoder.notes.append(Note(what, Rank.INFORMATION))
        # Kernels measure the error while they encode; torch's operations decode again for it.
        encode = with_damage(
            partial(encode_nvfp4, block_scales=search), decode_nvfp4, encoder.dtype
        )
        if encoder.kernels and given.amax > LEAST_COMPILED:
            encode = partial(encoder.kernels.encode_nvfp4, block_scales=search)
        best = encode_rows(given.weight, scale, encode, encoder)
        if search is not amax_block_scales:
            best = try_other_global_scales(given.weight, best, encode, encoder)
        if 0 < given.amax <= NVFP4_MAX * LEAST_FLOAT32 / 2:
            # All codes are zero, and the squares of such weights underflow to 0, which would look
            # like no damage at all: tell that everything is lost.
            best = dataclasses.replace(best, damage=Damage(error=1.0, energy=1.0))
        return best

    def pack(self, encoded: Encoded, shape: tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """Give the values of `parts`, with padded rows.

        Codes uint8 [N16, K16/2] in chunks of rows, the padding last; block scales float8_e4m3fn
        swizzled into tiles, as comfy_kitchen's to_blocked has them; the global scale float32 [].
        """
        # Parity: comfy_kitchen pads rows to 16, and block scales to whole tiles, with zeros.
        columns, missing = encoded.codes[0].shape[1], -shape[0] % BLOCK_SIZE
        padding = torch.zeros(missing, columns, dtype=torch.uint8)
        return {
            "weight": [*encoded.codes, padding],
            "weight_scale": [swizzle(encoded.by_rows[0])],
            "weight_scale_2": [encoded.scale],
        }

    def unpack(self, tensors: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bring stored codes and block scales into rows, as `decode` takes them.

        Returns codes uint8 [N16, K16/2], block scales float8_e4m3fn [N16, K16/16], unswizzled, and
        the global scale float32 []. I8 codes are read as uint8 with the same bits.
        """
        codes = tensors["weight"]
        blocks = codes.shape[1] * 2 // BLOCK_SIZE
        block_scale = unswizzle(tensors["weight_scale"], len(codes), blocks)
        scale = tensors["weight_scale_2"].float().reshape(())
        return [codes.view(torch.uint8), block_scale], scale

    def decode(self, *parts_and_scale: torch.Tensor) -> torch.Tensor:
        """Dequantise codes [n, K16/2] and block scales [n, K16/16] to float32 [n, K16].

        The value is what comfy_kitchen.dequantize_nvfp4 gives in float32.
        """
        return decode_nvfp4(*parts_and_scale)

    def round_to_levels(
        self, rounded: Rounded, feedback: Feedback, by_rows: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Pack rounded rows: codes uint8 [n, K16/2] and block scales float8_e4m3fn [n, K16/16].

        Levels are values of E2M1 already, so that nothing is rounded a second time; both are
        brought back into the weight's own order of columns.
        """
        # Levels are in units of the block scale, which is what E2M1 codes stand for.
        levels = levels_in_order(rounded, feedback)
        packed = pack_e2m1(round_to_e2m1(levels.abs()), levels)
        return [packed, steps_in_order(rounded, feedback).view(torch.float8_e4m3fn)]

    def quantised_input(self, rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
        """Quantise and dequantise input rows [r, K] to NVFP4, as Blackwell's matmul takes them."""
        return quantised_rows(rows, input_scale)

    def faults(
        self, scales: dict[str, torch.Tensor], weight: tuple[int, ...]
    ) -> list[tuple[str, str]]:
        """Find block scales that are not positive numbers, and padding that is not zero.

        scales: `weight_scale`, tiles of a one-byte dtype; weight: the stored shape [N16, K16/2]. A
        block scale is wrong if it is NaN or has a sign bit. ComfyUI's own decoding never reads the
        padding of tiles, but FP4 matmul does.
        """
        tiles, found = scales["weight_scale"].view(torch.uint8), []
        # As bytes, NaN and everything with a sign bit lie at or above 0x7F.
        if (tiles >= NAN_E4M3).any():
            found.append(("bad scale", "weight_scale"))
        rows, blocks = weight[0], weight[1] * 2 // BLOCK_SIZE
        if tiles.shape != (rows, blocks):
            plain = unswizzle(tiles, *tiles.shape)
            if plain[rows:].any() or plain[:, blocks:].any():
                found.append(("padding", ""))
        return found

    def misreadings(self, parts: list[torch.Tensor]) -> dict[str, Misreading]:
        """Give the parts with nibbles swapped, block scales not swizzled, and both.

        parts: codes uint8 [n, K16/2] and block scales float8_e4m3fn [n, K16/16]. Shapes stay the
        same.
        """
        codes, block_scale = parts
        swapped = swap_nibbles(codes)
        rows, blocks = block_scale.shape
        # `unpack` unswizzled them; where that was wrong, swizzling gives the stored order back.
        plain = swizzle(block_scale)[:rows, :blocks]
        orders = {
            "packed with the even column in the low nibble": [swapped, block_scale],
            "block scales not swizzled": [codes, plain],
            "even column in the low nibble, block scales not swizzled": [swapped, plain],
        }
        return {what: Misreading(order, self.decode) for what, order in orders.items()}


def try_other_global_scales(
    weight: torch.Tensor, best: Encoded, encode: Callable, encoder: Encoder
) -> Encoded:
    """Encode a weight at larger global scales, if block scales run out of E4M3's precision.

    best: the encoding at amax / 2688; encode: as `encode_rows` takes it. Returns the encoding with
    the least squared error in all. The scales tried keep the largest weight exact.
    """
    # Few tensors need it: trying all six makes encoding seven times as long.
    if has_many_subnormals(best.by_rows[0]):
        plain = best.scale
        for largest in OTHER_LARGEST_SCALES:
            other = encode_rows(weight, plain * (E4M3_MAX / largest), encode, encoder)
            best = min(best, other, key=lambda encoded: encoded.damage.error)
    return best


NVFP4 = Nvfp4()
