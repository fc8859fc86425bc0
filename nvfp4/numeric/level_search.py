"""Choose the group scales of W4A8 and W6A8 with the least squared error, through every rounding.

A weight decodes to an integer, round(level * group scale) clipped at 127, times the scale of its
row. There are 127 positive E4M3 numbers, so all integers that a codebook can make are one small
table, and the nearest of them is looked up. Numba's loops and a GPU's kernel give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from nvfp4.numeric.codes import LAST_E4M3_CODE, divide, e4m3_code_of_at_least, e4m3_value
from nvfp4.numeric.int8 import INT8_MAX, amax_row_scales
from nvfp4.numeric.w4a8 import KITCHEN_CODEBOOK, LARGEST_SIX_BITS, W4A8_GROUP, code_bits, pack_w4a8

# Levels fitted to normal numbers of unit rows by Lloyd's method and by single steps, for scales of
# either sign: mirrored, they fall between themselves, so a group chooses between two codebooks.
ASYMMETRIC_CODEBOOK = (
    -0.8718, -0.6279, -0.4841, -0.3694, -0.2636, -0.1644, -0.0715, 0.0228,
    0.1191, 0.2199, 0.3230, 0.4314, 0.5442, 0.6712, 0.8350, 1.0,
)  # fmt: skip
# Sums of two INT8 integers, from -254 to 254, are columns of the tables from this one on.
TABLE_MIDDLE, TABLE_COLUMNS = 256, 512
# Weights are rounded to these parts of an INT8 step before the search, so that squared errors are
# whole numbers of small units and their sums the same in any order, as in `kernels_levels`. That is
# far less than what codes of 4 bits leave, 2 steps, and those of 6 bits, half a step.
FOUR_BIT_UNITS, SIX_BIT_UNITS = 32, 256
# The sign bit of an E4M3 code.
E4M3_SIGN = 0x80
# Groups that a CPU searches at once, so that the scratch memory stays in a core's cache.
GROUPS_AT_ONCE = 1 << 12
# Rows, evenly spread over a weight, that its codebook is chosen by.
SAMPLE_ROWS = 64


class LevelGrid(NamedTuple):
    """Describe the levels of a codebook, and which group scales are tried.

    levels: ascending, of which the last has the largest magnitude; tried: first and last E4M3 code
    relative to the code of the smallest scale that clips nothing; mirrored: the same for scales
    that put the largest weight on the other side, None where scales are positive only.
    """

    levels: tuple[float, ...]
    tried: tuple[int, int]
    mirrored: tuple[int, int] | None = None

    def codebook(self, device: torch.device) -> torch.Tensor:
        """Return the levels as a tensor: float32 [m]."""
        return torch.tensor(self.levels, dtype=torch.float32, device=device)

    @property
    def units(self) -> int:
        """Tell into how many parts an INT8 step is divided for the search."""
        return FOUR_BIT_UNITS if code_bits(self.levels) == 4 else SIX_BIT_UNITS


KITCHEN_GRID = LevelGrid(KITCHEN_CODEBOOK, (-2, 3))
ASYMMETRIC_GRID = LevelGrid(ASYMMETRIC_CODEBOOK, (-1, 3), (0, 2))
SIX_BIT_GRID = LevelGrid(tuple(range(-LARGEST_SIX_BITS, LARGEST_SIX_BITS + 1)), (-1, 3))
# What a layer may take, by bits; of equal errors the first is taken.
GRIDS = {4: (ASYMMETRIC_GRID, KITCHEN_GRID), 6: (SIX_BIT_GRID,)}


class LevelTables(NamedTuple):
    """Hold what is nearest under each positive E4M3 scale, by twice a number rounded up.

    codes: int16 [127 * 512], indices of levels; integers: float32 [127 * 512], what these decode
    to. Row c is for E4M3 code c; column 256 + ceil(2 u) is for the numbers u: limits between
    integers are halves of integers, so nothing is lost.
    """

    codes: torch.Tensor
    integers: torch.Tensor


@lru_cache(maxsize=8)
def level_tables(grid: LevelGrid, device: torch.device) -> LevelTables:
    """Make the tables of a codebook on a device."""
    scales = e4m3_value(torch.arange(LAST_E4M3_CODE + 1, dtype=torch.int16))
    integers = (
        (grid.codebook(scales.device) * scales.unsqueeze(1)).round_().clamp_(-INT8_MAX, INT8_MAX)
    )
    # Twice the limit between two neighbours is their sum; a number on it takes the lower one.
    limits = (integers[:, 1:] + integers[:, :-1]).contiguous()
    doubled = torch.arange(TABLE_COLUMNS, dtype=torch.float32) - TABLE_MIDDLE
    codes = torch.searchsorted(limits, doubled.expand(len(limits), -1).contiguous())
    tables = codes.to(torch.int16), integers.gather(1, codes)
    return LevelTables(*(table.flatten().to(device) for table in tables))


def search_group_scales(
    target: torch.Tensor, grid: LevelGrid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose a group scale and codes for each group of weights.

    target: weights in units of their row's scale, float32 [b, 16] from -127 to 127. Returns codes
    int16 [b, 16], group scales as E4M3 bytes int16 [b], and squared errors float32 [b] in units of
    the row's scale. The scales tried are those of `grid`; of equal errors the first wins. Their
    squared error is less than 1.5 % above that of the best of all 252, as a test shows.
    """
    # A GPU takes all groups in one slice: there, launching many small kernels takes longer.
    width = len(target) if target.is_cuda else GROUPS_AT_ONCE
    parts = [search_slice(part, grid) for part in target.split(max(width, 1))]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def search_slice(
    target: torch.Tensor, grid: LevelGrid
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Search one slice of `search_group_scales`."""
    tables = level_tables(grid, target.device)
    # Transposed to [16, b], sums over a group have a fixed order on every device.
    values = target.t().contiguous()
    high, low = values.amax(0), -values.amin(0)
    flipped = (low > high) if grid.mirrored else torch.zeros_like(high, dtype=torch.bool)
    values = torch.where(flipped, -values, values)
    # The magnitude makes +0 of -0, whose code has a sign.
    largest = torch.maximum(high, low).abs()
    first = e4m3_code_of_at_least(divide(largest, grid.levels[-1]))
    error, best = torch.full_like(high, torch.inf), torch.zeros_like(first)
    for side, tried in ((1, grid.tried), (-1, grid.mirrored)):
        if tried:
            sided = values * side
            columns = table_columns(sided)
            for code in first + torch.arange(tried[0], tried[1] + 1, device=first.device)[:, None]:
                code = code.clamp(0, LAST_E4M3_CODE)
                found = level_errors(sided, columns, code, tables)
                better = found < error
                error = torch.where(better, found, error)
                best = torch.where(better, code * side, best)
    # Negative codes stand for the mirrored side.
    sided = torch.where(best < 0, -values, values)
    codes = look_up(tables.codes, best.abs(), table_columns(sided))
    negative = flipped ^ (best < 0)
    return codes.t(), best.abs() + E4M3_SIGN * negative, error


def table_columns(values: torch.Tensor) -> torch.Tensor:
    """Compute which columns of `LevelTables` numbers belong to: int32 of the same shape."""
    return (values * 2).ceil_().int().add_(TABLE_MIDDLE)


def look_up(table: torch.Tensor, code: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Look up columns int32 [16, b] in the rows of E4M3 codes [b] of a flat table."""
    # index_select is four times faster than take.
    places = columns + code.int() * TABLE_COLUMNS
    return table.index_select(0, places.view(-1)).view(columns.shape)


def level_errors(
    values: torch.Tensor, columns: torch.Tensor, code: torch.Tensor, tables: LevelTables
) -> torch.Tensor:
    """Sum the squared errors of groups [16, b] under one scale each: float32 [b].

    columns: `table_columns` of the values; code: E4M3 codes int [b]. The sum is a tree, 8 + 8,
    4 + 4, 2 + 2, 1 + 1.
    """
    made = look_up(tables.integers, code, columns)
    squares = torch.nn.functional.mse_loss(made, values, reduction="none")
    while len(squares) > 1:
        low, high = squares.chunk(2)
        squares = low + high
    return squares[0]


def groups_of(rows: torch.Tensor, scale: torch.Tensor, grid: LevelGrid) -> torch.Tensor:
    """Bring rows [n, K] into groups [n * K/16, 16] in units of their scales [n, 1].

    They are rounded to the grid's parts of a unit.
    """
    parts = (rows / scale).mul_(grid.units).round_().div_(grid.units)
    return parts.view(-1, W4A8_GROUP)


def grid_error(rows: torch.Tensor, grid: LevelGrid) -> float:
    """Measure the squared error of rotated rows [n, K] float32 in a codebook."""
    scale = amax_row_scales(rows)
    found = search_group_scales(groups_of(rows, scale, grid), grid)[2].view(len(rows), -1)
    # Errors of groups are whole numbers of small units, of which float64 adds up as many exactly.
    return float(found.double().sum(1) @ scale.double().square().squeeze(1))


def choose_grid(
    rows: torch.Tensor, bits: int, error: Callable[[torch.Tensor, LevelGrid], float] = grid_error
) -> LevelGrid:
    """Choose the codebook of least error on sample rows [n, K] float32.

    error: measures it; `grid_error` is for rows that are rotated already.
    """
    grids = GRIDS[bits]
    return min(grids, key=lambda grid: error(rows, grid)) if len(grids) > 1 else grids[0]


def sample_rows(weight: torch.Tensor) -> torch.Tensor:
    """Take up to 64 rows, evenly spread over a weight [N, K]."""
    count = min(SAMPLE_ROWS, len(weight))
    return weight[torch.linspace(0, len(weight) - 1, count, device=weight.device).long()]


def encode_levels(rows: torch.Tensor, grid: LevelGrid, bits: int) -> tuple[torch.Tensor, ...]:
    """Quantise rotated rows [n, K] float32 to 4 or 6 bits, K a multiple of 16.

    Returns what `encode_w4a8` returns: codes int8 [n, K * bits / 8], group scales float8_e4m3fn
    [n, K/16], negative ones among them where the grid is mirrored, and row scales float32 [n].
    Other row scales than those of amax gain nothing: the best of thirteen for each row saves 0.5 %
    of the error, a smaller one clips the largest weight.
    """
    scale = amax_row_scales(rows)
    codes, group_scale, _ = search_group_scales(groups_of(rows, scale, grid), grid)
    # 6-bit codes are stored from 1 on.
    codes = codes.reshape(len(rows), -1) + (bits == 6)
    group_scale = group_scale.to(torch.uint8).view(torch.float8_e4m3fn).view(len(rows), -1)
    return pack_w4a8(codes, bits), group_scale, scale.squeeze(1)
