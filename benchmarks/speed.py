"""Speed of the numeric core on one device: weights a second, compared with copying them.

Usage: python benchmarks/speed.py [--device cpu|cuda]
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import torch

# The built file, as users run it.
import convert_nvfp4 as c


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time a run: the least of ten after one that warms up, as these machines are shared.

    run: called without arguments. Returns seconds. On a GPU the time ends when the device has
    finished.
    """
    times = []
    for _ in range(11):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    # The first run warms up, and does not count.
    return min(times[1:])


def main() -> None:
    """Print million weights a second of copying, of scale searches, of encoding in each format.

    Copying is the floor: nothing can be faster than reading and writing the weights once.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    device = c.pick_device(parser.parse_args().device)
    with c.single_threaded() as threads, c.Compute(device, threads=threads) as compute:
        # A GPU is busy only with more weights than a CPU needs.
        rows = 16384 if device.type == "cuda" else 8192
        weight = torch.randn(rows, 8192 if device.type == "cuda" else 3072).to(device)
        scale = c.nvfp4_global_scale(c.largest_magnitude(weight))
        search = c.mse_block_scales
        runs: dict[str, Callable] = {
            # The floor: every weight read and written once.
            "copy": torch.clone,
            "amax scales, encode": lambda w: c.encode_nvfp4(w, scale),
            "search": lambda w: search(w.abs(), scale),
            "search, encode": lambda w: c.encode_nvfp4(w, scale, search),
        }
        kernels = None
        if device.type == "cpu":
            # Compiled kernels are for CPUs alone.
            kernels = c.compile_kernels()
            for label, scales in (("amax scales", c.amax_block_scales), ("search", search)):
                encode = functools.partial(kernels.encode_nvfp4, block_scales=scales)
                runs[f"{label}, encode, measure, compiled"] = lambda w, e=encode: e(w, scale)
            runs["FP8, encode, measure, compiled"] = lambda w: kernels.encode_fp8(w, scale)
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
        print(f"{device} ({name}), torch {torch.__version__}, {weight.numel() / 1e6:.0f} M weights")
        for label, run in runs.items():
            taken = seconds(lambda run=run: compute.map(run, weight), device)
            print(f"  {label:38} {weight.numel() / taken / 1e6:10,.0f} million weights/s")
        compute.search, compute.kernels = search, kernels
        source = weight.bfloat16().cpu()
        for form in filter(lambda form: form.option and form.is_quantised, c.Format.rows):
            taken = seconds(functools.partial(convert, form, source, compute), device)
            label = f"{form.title}, as a conversion does it"
            print(f"  {label:38} {weight.numel() / taken / 1e6:10,.0f} million weights/s")


def convert(form: c.Format, weight: torch.Tensor, compute: c.Compute) -> None:
    """Encode a weight [N, K] that lies on the CPU in a format, and bring what is stored back."""
    weight = weight.to(compute.device)
    amax = torch.stack(compute.map(c.largest_magnitude, weight)).amax()
    encoded = form.encode(c.Given("layer", weight, amax), compute)
    for rows in form.pack(encoded, weight.shape).values():
        for piece in rows:
            piece.cpu()


if __name__ == "__main__":
    main()
