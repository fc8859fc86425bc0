"""Threads, devices, compiled kernels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from nvfp4.errors import ConvertError
from nvfp4.guides.records import Moments
from nvfp4.numeric.codes import amax_block_scales
from nvfp4.numeric.compiled import Kernels, compile_kernels, compile_rounder
from nvfp4.numeric.feedback import Rounder
from nvfp4.plan.records import TensorPlan
from nvfp4.ranks import ALONE, Ranks

COMPILE_FROM = 100_000_000  # weights to quantise from which compiling for the CPU pays
FEEDBACK_COST = 100  # times that of the plain search
RECALLED = {"cpu": 4, "cuda": 8}  # statistics and their feedbacks: of two inputs, of four
CPU_CHUNK = 1 << 19  # weights a thread works on at once: measured best on two cores
CPU_THREADS = 4  # more only wait for Python's lock: slower again on 16 cores
CUDA_CHUNK = 1 << 26


@contextlib.contextmanager
def single_threaded() -> Iterator[int]:
    """Keep torch's operations to the thread that calls them; yield how many threads there were.

    Whoever works on chunks of rows in threads of his own wants this: torch's threads would contend
    for the same cores. What is summed over a whole tensor comes out the same on any number of
    cores, too. Torch has one setting for a process: its other threads work so meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class Compute:
    """Maps a function over row chunks: a CPU core each, or large ones on a GPU.

    A chunk's every operation stays in one core's cache, which beats torch's own threads four to
    one; results do not depend on how many threads there are. `threads` are those that
    `single_threaded` yields; a CPU may take that many chunks at once.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        search: Callable = amax_block_scales,
        threads: int = 1,
    ):
        self.device, self.dtype, self.search, self.notes = device, dtype, search, []
        self.recalled: dict[object, object] = {}  # the last statistics, as siblings share them
        self.kernels: Kernels | None = None  # once they are compiled for this device and dtype
        self.rounder = Rounder()
        on_cpu = device.type == "cpu"
        self.chunk = CPU_CHUNK if on_cpu else CUDA_CHUNK
        self.pool = ThreadPoolExecutor(min(CPU_THREADS, threads) if on_cpu else 1)

    def __enter__(self) -> Compute:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def compile(self, plans: list[TensorPlan]) -> None:
        """Use compiled kernels where they pay; what keeps them away is a note."""
        if self.device.type == "cuda" and any(plan.moments for plan in plans):
            try:
                self.rounder = Rounder(compile_rounder())
            except ImportError:
                faster = "pip install triton (on Windows triton-windows) makes rounding by"
                self.notes.append(f"{faster} statistics several times faster")
        plain = self.device.type == "cpu" and self.dtype is torch.float32
        if not plain or sum(map(work, plans)) < COMPILE_FROM:
            return
        try:
            self.kernels = compile_kernels()
            self.rounder = Rounder(self.kernels.round_columns)
        except ImportError:
            self.notes.append("pip install numba makes this several times faster, same result")
        except RuntimeError as error:
            self.notes.append(f"slower, same result: numba: {error}")

    def recall(self, key: Moments | tuple, make: Callable) -> object:
        """What `make(key, device)` or its last call with this key returned."""
        if key in self.recalled:
            self.recalled[key] = self.recalled.pop(key)  # the newest comes last
            return self.recalled[key]
        while len(self.recalled) >= RECALLED[self.device.type]:
            del self.recalled[next(iter(self.recalled))]
        self.recalled[key] = make(key, self.device)
        return self.recalled[key]

    def map(
        self, function: Callable, weight: torch.Tensor, *more: torch.Tensor, rows: int = 0
    ) -> list:
        """The function's results for every chunk of rows of a matrix and of what goes with it.

        With `rows`, chunks have so many of them on a CPU; a GPU takes all at once.
        """
        if rows:
            rows = rows if self.device.type == "cpu" else len(weight)
        rows = rows or max(1, self.chunk // weight.shape[1])
        return list(self.pool.map(function, *(tensor.split(rows) for tensor in (weight, *more))))


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """auto: a GPU if there is one. A device asked for by name that is not there is an error.

    The ranks of a machine take its GPUs in turn, unless one is asked for by number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConvertError(f"--device {name}: torch sees {count} CUDA devices here")
    if name == "cuda" and ranks.local is not None:
        return torch.device("cuda", ranks.local % count)
    return device


def work(plan: TensorPlan) -> int:
    """Weights to encode, or as many as take as long as rounding by statistics does."""
    return math.prod(plan.ref.shape) * (FEEDBACK_COST if plan.moments else 1)
