"""Compile the kernels: with numba for a CPU, with triton for a GPU.

Both compilers are optional; without them a conversion is slower. The bytes of a plain conversion
are the same with numba, which is checked on a sample each time it is loaded.
`compile_kernels` turns the loops of `kernels` into a Kernels, which encoders call with tensors;
`compile_rounder` turns `gpu_kernel` into a function that a `feedback.Rounder` takes.
`encode.compute` decides whether compiling pays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType

import numpy as np
import torch

from nvfp4.dtypes import BLOCK_SIZE, MX_BLOCK
from nvfp4.numeric.codes import (
    E2M1,
    FloatGrid,
    encode_fp8,
    encode_nvfp4,
    largest_magnitude,
    nvfp4_global_scale,
)
from nvfp4.numeric.damage import Damage
from nvfp4.numeric.feedback import RoundColumns, room_for, round_columns
from nvfp4.numeric.float8 import decode_e8m0
from nvfp4.numeric.gpu_kernel import round_lanes
from nvfp4.numeric.grids import Codebook
from nvfp4.numeric.int8 import LARGEST_TRIED, amax_row_scales, mse_row_scales, quantise_int8
from nvfp4.numeric.kernels import FLOAT32, KERNELS, encode_blocks
from nvfp4.numeric.kernels_int8 import INT8_KERNELS, encode_integers
from nvfp4.numeric.kernels_levels import LEVEL_KERNELS, encode_groups
from nvfp4.numeric.kernels_rounding import ROUNDING_KERNELS, round_in_turn
from nvfp4.numeric.level_search import GRIDS, LevelGrid, encode_levels, level_tables
from nvfp4.numeric.mxfp8 import quantise_mxfp8
from nvfp4.numeric.rotation import WRITTEN_GROUP, rotate
from nvfp4.numeric.scale_search import SCALE_SEARCHES, mse_block_scales
from nvfp4.numeric.w4a8 import code_bits

# Lanes (a row under one block scale each) that one program of the triton kernel works on.
LANES_AT_ONCE = 128
# In the order in which they are compiled: a loop comes after those that it calls.
ALL_KERNELS = (*KERNELS, *INT8_KERNELS, *LEVEL_KERNELS, *ROUNDING_KERNELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Hold the loops of `kernels` as machine code, and call them with tensors on a CPU.

    The fields are the compiled loops that Python calls; those call the other loops directly.
    Methods have the arguments of the torch functions of the same name and return their results,
    which are bit-identical, with the damage measured on the way. They release Python's lock.
    """

    encode_blocks: Callable
    encode_bytes: Callable
    encode_integers: Callable
    encode_groups: Callable
    encode_powers: Callable
    round_in_turn: Callable

    def encode_nvfp4(
        self, weight: torch.Tensor, global_scale: torch.Tensor, block_scales: Callable
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """Quantise rows [n, k] to NVFP4 as `codes.encode_nvfp4` does, and measure the damage.

        weight: float32, bfloat16 or float16 on the CPU; global_scale: float32 scalar; block_scales:
        one of SCALE_SEARCHES, which the compiled search imitates. Returns packed codes [n, K16/2]
        uint8, block scales [n, K16/16] float8_e4m3fn, and the Damage in units of the global scale.
        """
        values = weight.float()
        if values.shape[1] % BLOCK_SIZE:
            values = torch.nn.functional.pad(values, (0, -values.shape[1] % BLOCK_SIZE))
        # A block is 16 float32 as bits; its 16 codes are 8 bytes, stored as one little-endian word.
        blocks = values.contiguous().view(-1, BLOCK_SIZE).view(torch.int32).numpy()
        packed, scales = np.empty(len(blocks), "<u8"), np.empty(len(blocks), np.uint8)
        search = block_scales is mse_block_scales
        error, energy = self.encode_blocks(blocks, FLOAT32(global_scale), search, packed, scales)
        block_scale = torch.from_numpy(scales).view(torch.float8_e4m3fn).view(len(weight), -1)
        damage = Damage(error=error, energy=energy)
        codes = torch.from_numpy(packed.view(np.uint8)).view(len(weight), -1)
        return codes, block_scale, damage

    def encode_fp8(self, weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, Damage]:
        """Quantise a weight to FP8 as `codes.encode_fp8` does, and measure the damage.

        weight: floats of any shape on the CPU; scale: float32 scalar. Returns float8_e4m3fn codes
        of the same shape and the Damage in units of the scale.
        """
        values = weight.float().contiguous().flatten().numpy()
        codes = np.empty(len(values), np.uint8)
        error, energy = self.encode_bytes(values, FLOAT32(scale), codes)
        stored = torch.from_numpy(codes).view(torch.float8_e4m3fn).view(weight.shape)
        return stored, Damage(error=error, energy=energy)

    def encode_int8(
        self, weight: torch.Tensor, _: torch.Tensor, *, rotated: bool, row_scales: Callable
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """Rotate rows and quantise them as `int8.quantise_int8` does, and measure the damage.

        weight: [n, K] floats on the CPU; rotated: whether by `rotation.rotate` in groups of 256;
        row_scales: mse_row_scales or amax_row_scales, which the compiled search imitates. Returns
        codes int8 [n, K], row scales float32 [n, 1], and the Damage in plain units.
        """
        rows = weight.float().contiguous()
        codes, scales = torch.empty_like(rows, dtype=torch.int8), rows.new_empty(len(rows), 1)
        tried = LARGEST_TRIED if row_scales is mse_row_scales else ()
        given = (
            rows.numpy(),
            rotated,
            np.array(tried, FLOAT32),
            codes.numpy(),
            scales.flatten().numpy(),
        )
        error, energy = self.encode_integers(*given)
        return codes, scales, Damage(error=error, energy=energy)

    def encode_levels(
        self, weight: torch.Tensor, grid: LevelGrid
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Damage]:
        """Rotate rows and quantise them as `level_search.encode_levels` does, with the damage.

        weight: [n, K] floats on the CPU, K a multiple of 256; grid: the codebook, which tells the
        bits. Returns codes int8 [n, K * bits / 8], group scales float8_e4m3fn [n, K/16], row scales
        float32 [n], and the Damage in plain units.
        """
        rows, bits = weight.float().contiguous(), code_bits(grid.levels)
        columns = rows.shape[1]
        packed = rows.new_empty(len(rows), columns * bits // 8, dtype=torch.uint8)
        scales, row_scales = packed.new_empty(len(rows), columns // 16), rows.new_empty(len(rows))
        # A range whose end is before its beginning has no scales of the other sign.
        tried = (*grid.tried, *(grid.mirrored or (1, 0)))
        table = level_tables(grid, rows.device).codes.numpy()
        given = (np.array(grid.levels, FLOAT32), table, tried)
        made = (packed, scales, row_scales)
        error, energy = self.encode_groups(rows.numpy(), given, *(part.numpy() for part in made))
        group_scales = scales.view(torch.float8_e4m3fn)
        return packed.view(torch.int8), group_scales, row_scales, Damage(error=error, energy=energy)

    def encode_mxfp8(
        self, weight: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """Quantise rows to MXFP8 as `mxfp8.quantise_mxfp8` does, and measure the damage.

        weight: [n, K] floats on the CPU. Returns codes float8_e4m3fn [n, K32], the powers of two of
        blocks, float32 [n, K32/32], and the Damage in plain units.
        """
        missing = -weight.shape[1] % MX_BLOCK
        rows = torch.nn.functional.pad(weight.float(), (0, missing)).contiguous()
        codes = torch.empty_like(rows, dtype=torch.uint8)
        powers = codes.new_empty(len(rows), rows.shape[1] // MX_BLOCK)
        error, energy = self.encode_powers(rows.numpy(), codes.numpy(), powers.numpy())
        stored = codes.view(torch.float8_e4m3fn)
        return stored, decode_e8m0(powers), Damage(error=error, energy=energy)

    def round_columns(
        self,
        wanted: torch.Tensor,
        free: torch.Tensor,
        coefficients: tuple[torch.Tensor, torch.Tensor],
        steps: torch.Tensor,
        grid: FloatGrid | Codebook,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Round the columns of a block as `feedback.round_columns` does, with the same arguments.

        Sums run in another order than torch's, so that the last bits of levels, changes and costs
        may differ, and with them what rounding by statistics stores.
        """
        made = room_for(wanted, steps)
        given = (wanted, free, coefficients[0].contiguous(), coefficients[1], steps)
        limits = (*map(FLOAT32, limits_of(grid)), book_of(grid).numpy())
        inputs, outputs = (tuple(tensor.numpy() for tensor in some) for some in (given, made))
        self.round_in_turn(inputs, limits, outputs)
        return made


def with_names(function: FunctionType, names: dict[str, object]) -> FunctionType:
    """Copy a function so that it looks up global names in a dictionary instead of its module.

    names: what the copy sees as its globals, kept and not copied, so that names added later are
    seen, too. Compilers get such copies: the module's own functions stay as they are.
    """
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    # Triton reads from the annotations which arguments are compile-time constants.
    copy.__annotations__ = function.__annotations__
    return copy


@cache
def prepared_kernels(*, kept: bool) -> dict[str, Callable]:
    """Hand all kernels to numba, which compiles each at its first call; {name: kernel} of them.

    kept: whether machine code comes from numba's cache, and goes there. Other names are those that
    kernels refer to. They are remembered with what is compiled of them. Raises ImportError without
    numba.
    """
    # Numba is optional, and importing it takes half a second.
    import numba

    # Parity with torch: NaN and infinity do not occur, but contracting a * b + c, which rounds
    # once instead of twice, stays forbidden, or the bits would change.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "ninf"}}
    # Each kernel finds the compiled versions of those before it among these names.
    names = {}
    for one in (encode_groups, encode_integers, round_in_turn, encode_blocks):
        names |= one.__globals__
    for kernel in ALL_KERNELS:
        kernel = with_names(kernel, names)
        try:
            names[kernel.__name__] = numba.njit(kernel, cache=kept, **options)
        except RuntimeError:
            # Numba found no folder that it may keep the machine code in: compile each time.
            names[kernel.__name__] = numba.njit(kernel, **options)
    return names


def is_nothing_to_compile() -> bool:
    """Tell whether `compile_kernels` finds all machine code in numba's cache, or can use none.

    Raises ImportError without numba.
    """
    caches = kernel_caches()
    # The machine code of a loop has that of all loops that it calls.
    caches = [caches[name] for name in Kernels.__slots__ if name in caches]
    try:
        # An index that is older than the kernels' file, or of another numba, is read as empty.
        return all(cache._load_index() for cache in caches)
    except Exception:  # noqa: BLE001  (pickle raises anything of a damaged index)
        return False


def kernel_caches() -> dict[str, object]:
    """Return numba's caches, {kernel: its cache}; none where it found no folder for them.

    Nor where a later numba keeps them under other names. Raises ImportError without numba.
    """
    names, found = prepared_kernels(kept=True), {}
    for name in (kernel.__name__ for kernel in ALL_KERNELS):
        if cache := getattr(getattr(names[name], "_cache", None), "_cache_file", None):
            found[name] = cache
    return found


def compile_kernels() -> Kernels:
    """Compile all kernels with numba for this machine's CPU.

    The machine code is cached beside the kernels' file for the next run, where that folder can be
    written; what is damaged there is emptied and compiled anew. Raises ImportError without numba,
    and RuntimeError where numba fails or `check_kernels` finds other bits than torch's.
    """
    # Imported again, as what is remembered does not tell that it is gone.
    import numba

    # With the cache, with an empty one, and without: its folder may be full, or read-only.
    for kept in (True, True, False):
        try:
            names = prepared_kernels(kept=kept)
            kernels = Kernels(**{name: names[name] for name in Kernels.__slots__})
            check_kernels(kernels)
            return kernels
        except (numba.core.errors.NumbaError, RuntimeError) as error:
            raise RuntimeError(str(error).partition("\n")[0]) from error
        except Exception as error:  # noqa: BLE001  (pickle raises anything, as does a full disk)
            problem = error
            for cache in kernel_caches().values():
                with contextlib.suppress(Exception):
                    cache.flush()
            # Numba keeps none of what it remembers to have compiled already.
            prepared_kernels.cache_clear()
    raise RuntimeError(str(problem).partition("\n")[0]) from problem


def check_kernels(kernels: Kernels) -> None:
    """Raise RuntimeError unless compiled kernels encode a sample as torch does.

    The sample is 64 rows of 512 random numbers, some so small that block scales are subnormal or
    zero. All encoders have to be equal byte for byte; of what `round_columns` returns, 99 % has to
    be close.
    """
    sample = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    # Small rows have block scales that are subnormal in E4M3, or zero.
    sample[:8] *= torch.logspace(-6, 0, 8).unsqueeze(1)
    scale = nvfp4_global_scale(largest_magnitude(sample))
    searches = SCALE_SEARCHES.values()
    made = [kernels.encode_nvfp4(sample, scale, search) for search in searches]
    plain = [encode_nvfp4(sample, scale, search) for search in searches]
    made += [kernels.encode_fp8(sample, scale), kernels.encode_mxfp8(sample, scale)]
    plain += [[encode_fp8(sample, scale)], quantise_mxfp8(sample)]
    for group, row_scales in ((0, amax_row_scales), (WRITTEN_GROUP, mse_row_scales)):
        given = {"rotated": group > 0, "row_scales": row_scales}
        made.append(kernels.encode_int8(sample, scale, **given))
        plain.append(quantise_int8(sample, group, row_scales))
    for bits, grids in GRIDS.items():
        made += [kernels.encode_levels(sample, grid) for grid in grids]
        plain += [encode_levels(rotate(sample, WRITTEN_GROUP), grid, bits) for grid in grids]
    for (*found, _), expected in zip(made, plain, strict=True):
        if not all(map(torch.equal, map(as_bytes, found), map(as_bytes, expected))):
            raise RuntimeError("the compiled code rounds differently")
    within = (sample[:BLOCK_SIZE, -BLOCK_SIZE:], torch.ones(BLOCK_SIZE))
    books = [grid.codebook(sample.device) for grids in GRIDS.values() for grid in grids]
    # The levels of a codebook decode to integers of up to 64 here, and weights are as large.
    cases = [(E2M1, 1.0, 0.25), *((Codebook(book), 20.0, 64 / float(book[-1])) for book in books)]
    for grid, unit, step in cases:
        wanted = sample[:BLOCK_SIZE] * unit
        given = (wanted, wanted, within, torch.full((2, 512), step), grid)
        # Sums over columns run in another order than torch's, so a few ties may fall otherwise.
        pairs = zip(kernels.round_columns(*given), round_columns(*given), strict=True)
        if not all(torch.isclose(one, other).float().mean() > 0.99 for one, other in pairs):
            raise RuntimeError("the compiled code rounds differently")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as uint8, since float8 tensors cannot be compared."""
    return tensor.view(torch.uint8)


def limits_of(grid: FloatGrid | Codebook) -> tuple[float, float, float]:
    """Return least normal, largest value and shift of a float format; zeros for a codebook."""
    if isinstance(grid, Codebook):
        return 0.0, 0.0, 0.0
    return grid.least_normal, grid.largest, grid.shift


def book_of(grid: FloatGrid | Codebook) -> torch.Tensor:
    """Return the levels of a codebook [L] float32, none for a float format."""
    return grid.levels if isinstance(grid, Codebook) else torch.empty(0)


def compile_rounder() -> RoundColumns:
    """Make a GPU's `round_columns`: one triton kernel, compiled at its first call.

    Returns a function with the arguments and results of `feedback.round_columns`, for tensors on a
    CUDA device. Raises ImportError without triton. Sums are contracted, so bits may differ from
    those of other devices.
    """
    # Triton is optional: there is none for some systems.
    import triton
    import triton.language

    names = {**round_lanes.__globals__, "tl": triton.language}
    kernel = triton.jit(with_names(round_lanes, names))

    def compiled(
        wanted: torch.Tensor,
        free: torch.Tensor,
        coefficients: tuple[torch.Tensor, torch.Tensor],
        steps: torch.Tensor,
        grid: FloatGrid | Codebook,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Launch the kernel: LANES_AT_ONCE rows under a block scale in each program."""
        (within, pivots), lanes, width = coefficients, steps.numel(), LANES_AT_ONCE
        made, book = room_for(wanted, steps), book_of(grid)
        # The kernel addresses tensors by plain arithmetic, and takes only `within` as strided.
        levels = book if len(book) else wanted
        inputs = (wanted, free, within, pivots, steps.contiguous(), levels)
        sizes = (wanted.shape[1], lanes, within.stride(0), len(wanted))
        # What a level decodes to is rounded twice, as the decoder does it.
        options = {"enable_fp_fusion": not len(book)}
        constants = (*limits_of(grid), len(book), width)
        kernel[(-(-lanes // width),)](*inputs, *made, *sizes, *constants, **options)
        return made

    return compiled
