"""Machine code of the kernels: numba's for a CPU, triton's for a GPU. Both are optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

import numpy as np
import torch

from nvfp4.dtypes import BLOCK_SIZE
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
from nvfp4.numeric.gpu_kernel import round_lanes
from nvfp4.numeric.kernels import FLOAT32, KERNELS, encode_blocks
from nvfp4.numeric.scale_search import SCALE_SEARCHES, mse_block_scales

LANES_AT_ONCE = 128  # that a program of triton's works on


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The loops of kernels.py as machine code, and what they do to tensors on a CPU.

    The fields are those loops that Python calls; they call the others without it.
    """

    encode_blocks: Callable
    encode_bytes: Callable
    round_in_turn: Callable

    def encode_nvfp4(
        self, weight: torch.Tensor, global_scale: torch.Tensor, block_scales: Callable
    ) -> tuple[torch.Tensor, torch.Tensor, Damage]:
        """`encode_nvfp4` of float32, bfloat16 or float16, and its damage."""
        values = weight.float()
        if values.shape[1] % BLOCK_SIZE:
            values = torch.nn.functional.pad(values, (0, -values.shape[1] % BLOCK_SIZE))
        blocks = values.contiguous().view(-1, BLOCK_SIZE).view(torch.int32).numpy()
        packed, scales = np.empty(len(blocks), "<u8"), np.empty(len(blocks), np.uint8)
        search = block_scales is mse_block_scales
        error, energy = self.encode_blocks(blocks, FLOAT32(global_scale), search, packed, scales)
        block_scale = torch.from_numpy(scales).view(torch.float8_e4m3fn).view(len(weight), -1)
        damage = Damage(error=error, energy=energy)
        codes = torch.from_numpy(packed.view(np.uint8)).view(len(weight), -1)
        return codes, block_scale, damage

    def encode_fp8(self, weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, Damage]:
        """`encode_fp8`, and its damage."""
        values = weight.float().contiguous().flatten().numpy()
        codes = np.empty(len(values), np.uint8)
        error, energy = self.encode_bytes(values, FLOAT32(scale), codes)
        stored = torch.from_numpy(codes).view(torch.float8_e4m3fn).view(weight.shape)
        return stored, Damage(error=error, energy=energy)

    def round_columns(
        self,
        wanted: torch.Tensor,
        free: torch.Tensor,
        coefficients: tuple[torch.Tensor, torch.Tensor],
        steps: torch.Tensor,
        grid: FloatGrid,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`round_columns`; sums in another order may move the last bits."""
        made = room_for(wanted, steps)
        given = (wanted, free, coefficients[0].contiguous(), coefficients[1], steps)
        limits = (FLOAT32(grid.least_normal), FLOAT32(grid.largest), FLOAT32(grid.shift))
        inputs, outputs = (tuple(tensor.numpy() for tensor in some) for some in (given, made))
        self.round_in_turn(inputs, limits, outputs)
        return made


def with_names(function: FunctionType, names: dict[str, object]) -> FunctionType:
    """Copy a function so that it looks up global names in `names`, and not in its module."""
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__annotations__ = function.__annotations__  # triton finds there what is constant
    return copy


def compile_kernels() -> Kernels:
    """Make machine code of KERNELS, which is kept beside their file for the next run.

    Raises ImportError without numba, and RuntimeError where it fails or its code, checked on a
    sample, does not keep the bits. No value there is NaN or infinite; contracting a * b + c,
    which rounds once, stays forbidden.
    """
    import numba  # optional, and takes half a second

    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "ninf"}}
    names = dict(encode_blocks.__globals__)  # in them each kernel finds those compiled before it
    for kernel in KERNELS:
        kernel = with_names(kernel, names)
        try:
            names[kernel.__name__] = numba.njit(kernel, cache=True, **options)
        except RuntimeError:  # no folder to keep it in
            names[kernel.__name__] = numba.njit(kernel, **options)
    kernels = Kernels(**{name: names[name] for name in Kernels.__slots__})
    try:
        check_kernels(kernels)
    except numba.core.errors.NumbaError as error:
        raise RuntimeError(str(error).partition("\n")[0]) from error
    return kernels


def check_kernels(kernels: Kernels) -> None:
    """Raise RuntimeError unless these kernels encode a sample to the bytes of torch's encoders."""
    sample = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    sample[:8] *= torch.logspace(-6, 0, 8).unsqueeze(1)  # subnormal scales, and none
    scale = nvfp4_global_scale(largest_magnitude(sample))
    searches = SCALE_SEARCHES.values()
    made = [kernels.encode_nvfp4(sample, scale, search) for search in searches]
    made.append(kernels.encode_fp8(sample, scale))
    plain = [encode_nvfp4(sample, scale, search) for search in searches]
    for (*found, _), expected in zip(made, [*plain, [encode_fp8(sample, scale)]], strict=True):
        if not all(map(torch.equal, map(as_bytes, found), map(as_bytes, expected))):
            raise RuntimeError("the compiled code rounds differently")
    wanted, within = sample[:BLOCK_SIZE], (sample[:BLOCK_SIZE, -BLOCK_SIZE:], torch.ones(16))
    given = (wanted, wanted, within, torch.full((2, 512), 0.25), E2M1)
    pairs = zip(kernels.round_columns(*given), round_columns(*given), strict=True)
    if not all(torch.isclose(one, other).float().mean() > 0.99 for one, other in pairs):
        raise RuntimeError("the compiled code rounds differently")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def compile_rounder() -> RoundColumns:
    """Make a GPU's `round_columns`, one kernel that triton compiles at its first call.

    Raises ImportError without triton. Bits may differ from those of other devices.
    """
    import triton  # optional, and there is none for some systems
    import triton.language

    names = {**round_lanes.__globals__, "tl": triton.language}
    kernel = triton.jit(with_names(round_lanes, names))

    def compiled(
        wanted: torch.Tensor,
        free: torch.Tensor,
        coefficients: tuple[torch.Tensor, torch.Tensor],
        steps: torch.Tensor,
        grid: FloatGrid,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (within, pivots), lanes, width = coefficients, steps.numel(), LANES_AT_ONCE
        made, limits = room_for(wanted, steps), (grid.least_normal, grid.largest, grid.shift)
        inputs = (wanted, free, within, pivots, steps.contiguous())
        sizes = (wanted.shape[1], lanes, within.stride(0), len(wanted))
        kernel[(-(-lanes // width),)](*inputs, *made, *sizes, *limits, width)
        return made

    return compiled
