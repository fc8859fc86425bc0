"""Choose a device, and spread work over threads and row chunks.

A Compute lasts for a whole conversion. It is the `formats.base.Encoder` that formats encode with,
holds compiled kernels where they pay, and remembers statistics that several layers share.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import Popen

import torch

from nvfp4.encode.compiling import start_compiling, wait_for_compiling
from nvfp4.encode.pieces import Piece
from nvfp4.errors import ConvertError
from nvfp4.guides.records import Moments
from nvfp4.notes import Note, Rank
from nvfp4.numeric.codes import amax_block_scales
from nvfp4.numeric.compiled import Kernels, compile_kernels, compile_rounder
from nvfp4.numeric.feedback import Rounder
from nvfp4.plan.records import TensorPlan
from nvfp4.progress import tell_watcher
from nvfp4.ranks import ALONE, Ranks

# From this effort on, in weights of the plain search, compiling for the CPU saves more than the
# seconds it takes.
COMPILE_FROM = 100_000_000
# From this effort on a run without numba takes a minute or so, and the hint comes at its beginning,
# too.
LONG_EFFORT = 200_000_000
NUMBA_HINT = Note(
    "pip install numba makes this two to four times faster, with the same bytes", Rank.HINT
)
# Encoding one weight takes about as long as reading and writing so many bytes that are copied: on
# two cores without numba, and on a GPU by the rates of docs/benchmarks.md (0.7 ns a weight, 0.45 ns
# a byte). Only the bar depends on it.
BYTES_A_WEIGHT = {"cpu": 50, "cuda": 2}
# Rounding a weight by statistics takes about as long as this many weights of the plain search.
FEEDBACK_COST = 100
# Cache entries kept: statistics and feedback matrices of the last 2 (CPU) or 4 (GPU) inputs; q, k
# and v share one.
RECALLED = {"cpu": 4, "cuda": 8}
# Weights that a thread works on at once: measured best on two cores.
CPU_CHUNK = 1 << 19
# More threads only wait for Python's lock: measured slower again on 16 cores.
CPU_THREADS = 4
# Weights that a GPU works on at once: 256 MB in float32, and as much for each intermediate result.
CUDA_CHUNK = 1 << 26


@contextlib.contextmanager
def single_threaded() -> Iterator[int]:
    """Keep torch's operations to the thread that calls them; yield how many threads there were.

    Whoever works on chunks of rows in own threads wants this: torch's threads would contend for the
    same cores. What is summed over a whole tensor comes out the same on any number of cores, too.
    Torch has one setting for a process, so other threads of the program are affected meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class Compute:
    """Map functions over row chunks: a CPU core each, or large ones on a GPU.

    A chunk's every operation stays in one core's cache, which beats torch's own threads four to
    one; results do not depend on how many threads there are. It is a context manager: leaving it
    stops the threads and drops chunks that have not begun.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        search: Callable = amax_block_scales,
        threads: int = 1,
    ):
        """Start a pool of threads.

        device: where weights are encoded; dtype: what they are cast to first (--quant-dtype);
        search: one of SCALE_SEARCHES; threads: those that `single_threaded` yields, of which a CPU
        uses up to CPU_THREADS; a GPU has one.
        """
        self.device, self.dtype, self.search, self.notes = device, dtype, search, []
        # What `recall` made last, the newest at the end: layers that share an input come in a row.
        self.recalled: dict[object, object] = {}
        # Set by `compile`, and only for float32 on a CPU.
        self.kernels: Kernels | None = None
        # The process that compiles them meanwhile.
        self.compiler: Popen | None = None
        self.rounder = Rounder()
        on_cpu = device.type == "cpu"
        self.chunk = CPU_CHUNK if on_cpu else CUDA_CHUNK
        self.pool = ThreadPoolExecutor(min(CPU_THREADS, threads) if on_cpu else 1)

    def __enter__(self) -> Compute:
        """Return the Compute itself; its threads exist already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads, and a compiler that nobody waits for; chunks not begun are dropped."""
        if self.compiler is not None:
            self.leave_compiler()
        self.pool.shutdown(cancel_futures=True)

    def compile(self, plans: list[TensorPlan], *, at_once: bool = True) -> None:
        """Use compiled kernels where they pay; add a note where something keeps them away.

        plans: what will be encoded. Triton is used on a GPU if any layer is rounded by statistics;
        numba on a CPU for float32, if the effort is COMPILE_FROM or more. Missing or failing
        compilers are no error. Unless `at_once`, what is not in numba's cache is compiled in
        another process meanwhile, and `prepare` takes it over.
        """
        if self.device.type == "cuda" and any(plan.moments for plan in plans):
            try:
                self.rounder = Rounder(compile_rounder())
            except ImportError:
                faster = "pip install triton (on Windows triton-windows) makes rounding by"
                self.notes.append(Note(f"{faster} statistics several times faster", Rank.HINT))
        plain = self.device.type == "cpu" and self.dtype is torch.float32
        if not plain or sum(map(work, plans)) < COMPILE_FROM:
            return
        with contextlib.suppress(ImportError):
            self.compiler = None if at_once else start_compiling()
        if self.compiler is None:
            self.load_kernels()

    def prepare(self, plan: TensorPlan) -> None:
        """Get ready to encode a layer: take compiled kernels over once they are there.

        They give the same bytes as torch's operations, so that it does not matter when. Rounding by
        statistics does not: a layer that has some waits for them.
        """
        if self.waits_for_kernels(plan):
            wait_for_compiling(self.compiler)
        if self.compiler is not None and self.compiler.poll() is not None:
            self.leave_compiler()
            self.load_kernels()

    def leave_compiler(self) -> None:
        """End the process that compiles, if it has not ended, and let go of it."""
        self.compiler.kill()
        # Waits, and closes the pipe that the process watches.
        self.compiler.communicate()
        self.compiler = None

    def waits_for_kernels(self, plan: TensorPlan) -> bool:
        """Tell whether a layer has to wait until kernels are compiled."""
        return self.compiler is not None and plan.moments is not None

    def effort(self, piece: Piece) -> int:
        """Estimate what a piece takes, in bytes that are copied."""
        is_quantised = piece.plan.is_quantised
        encoding = BYTES_A_WEIGHT[self.device.type] * work(piece.part) if is_quantised else 0
        return piece.nbytes + encoding

    def load_kernels(self) -> None:
        """Use compiled kernels from now on, or add a note on what keeps them away."""
        try:
            self.kernels = compile_kernels()
            self.rounder = Rounder(self.kernels.round_columns)
        except ImportError:
            self.notes.append(NUMBA_HINT)
        except RuntimeError as error:
            # A broken numba is no reason not to convert: torch's operations do the same.
            self.notes.append(Note(f"slower, same result: numba: {error}", Rank.NOTE))

    def recall(self, key: Moments | tuple, make: Callable) -> object:
        """Return what `make(key, device)` returns, from memory if it was made lately.

        Up to RECALLED results are kept, those used last. Keys are Moments, for the statistics of an
        input, or tuples, for the feedbacks made of them.
        """
        if key in self.recalled:
            # Inserted again, it counts as the newest.
            self.recalled[key] = self.recalled.pop(key)
            return self.recalled[key]
        while len(self.recalled) >= RECALLED[self.device.type]:
            del self.recalled[next(iter(self.recalled))]
        self.recalled[key] = make(key, self.device)
        return self.recalled[key]

    def map(
        self, function: Callable, weight: torch.Tensor, *more: torch.Tensor, rows: int = 0
    ) -> list:
        """Call a function for every chunk of rows of a matrix; return the results in order.

        weight: [N, K]; more: tensors of N rows that are split in the same places, each an argument
        of the function; rows: how many a chunk has on a CPU, while a GPU takes all at once; without
        it, chunks have as many rows as CPU_CHUNK or CUDA_CHUNK weights fill.
        """
        if rows:
            rows = rows if self.device.type == "cpu" else len(weight)
        # A row that is longer than a chunk is one of its own.
        rows = rows or max(1, self.chunk // weight.shape[1])
        results = []
        for result in self.pool.map(function, *(tensor.split(rows) for tensor in (weight, *more))):
            # A layer may take minutes: whoever watches may cancel it before it is done.
            tell_watcher()
            results.append(result)
        return results


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Choose the device by its name in --device; "auto" is a GPU if there is one.

    The ranks of a machine take its GPUs in turn, unless one is asked for by number. Raises
    ConvertError for a CUDA device that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConvertError(f"--device {name}: torch sees {count} CUDA devices here")
    if name == "cuda" and ranks.local is not None:
        return torch.device("cuda", ranks.local % count)
    return device


def describe_device(device: torch.device) -> str:
    """Name a device for people: "cpu (2 cores)", or what the driver calls a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{device.type} ({cores} core{'s' * (cores > 1)})"


def capability_here() -> tuple[int, int] | None:
    """Tell the compute capability of NVIDIA's first card here; None where torch sees none."""
    if torch.version.hip or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability()


def work(plan: TensorPlan) -> int:
    """Estimate a layer's encoding effort in weights of the plain search.

    Each weight counts once, and FEEDBACK_COST times if the layer is rounded by statistics.
    """
    return math.prod(plan.ref.shape) * (FEEDBACK_COST if plan.moments else 1)


def takes_long(plans: Iterable[TensorPlan]) -> bool:
    """Tell whether encoding these without compiled kernels takes a minute or so."""
    return sum(map(work, plans)) >= LONG_EFFORT
