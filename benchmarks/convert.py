"""Whole conversions against the disk: time, peak memory, and how both grow with the model.

Makes Wan-shaped models of one width and a growing number of blocks, and for each measures, in this
order and in this run: the floor (the same bytes read and written with fsync), then a conversion,
each in a process of its own, with the source out of the page cache (where it can be dropped: Linux,
root) and in it. Then comes what each stage does while it is busy (they overlap, so that the slowest
one decides), and the line through the rows: seconds per GB.

Usage: python benchmarks/convert.py FOLDER [--size 5b] [--blocks 5 10 20] [--dtype float32]
       [--ranks 1 2] [-- OPTIONS...]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import numpy as np
import torch
from make_wan import wan_shapes, write_gguf, write_model

# The floor reads and writes in pieces of this size, a buffer for all of them.
PIECE = 32 << 20
# The options of the README's measurements; those after -- are added to them.
DEFAULT_OPTIONS = ["--gguf-nvfp4-max-bitdepth", "5", "--use-fp8", "--dtype", "float16"]
ONE = ROOT / "benchmarks" / "one_conversion.py"


def drop_cache(files: list[Path]) -> bool:
    """Drop the files' pages from the system's cache, so that reading them takes the disk.

    Returns False where the system offers no way to do that.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        # Only clean pages can be dropped: dirty ones are written out first.
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def floor(files: list[Path], written: int, out: Path) -> float:
    """Measure seconds to read the files and write `written` bytes with fsync, one after another.

    No conversion that does not overlap the two can be faster on this disk at this moment.
    """
    # One buffer for all reads, as allocating would be measured, too.
    buffer = memoryview(bytearray(PIECE))
    begin = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    # Random bytes, which no disk or file system can compress.
    noise = np.random.default_rng(0).bytes(PIECE)
    with out.open("wb", buffering=0) as file:
        for start in range(0, written, PIECE):
            file.write(noise[: written - start])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    out.unlink()
    return seconds


def convert(source: Path, out: Path, options: list[str], ranks: int = 1) -> dict:
    """Convert in a process of its own, or in several, and return what it printed of itself.

    `ranks` above 1 starts that many by torchrun. Exits with the conversion's messages where it
    fails.
    """
    command = [sys.executable, str(ONE), str(source), str(out), "--quiet", *options]
    if ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node"]
        command = [sys.executable, *launch, str(ranks), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # A failed conversion has no time: its messages are all that is worth printing.
    if done.returncode:
        sys.exit(done.stderr)
    # The figures are the last line; torchrun may print before it.
    return json.loads(done.stdout.splitlines()[-1])


def measure(source: Path, blocks: int, ranks: int, options: list[str]) -> list[dict]:
    """Measure a conversion of the model in a folder with a cold and with a warm cache: two rows.

    Where the cache cannot be dropped there is no cold row. A first conversion compiles the kernels
    and is not measured.
    """
    index = source / "diffusion_pytorch_model.safetensors.index.json"
    files, out = sorted(source.glob("diffusion*.safetensors")), source / "out.safetensors"
    command = ["--gguf", str(source / "model.gguf"), *options]
    convert(index, out, command, ranks)  # compiles, and warms up
    written, rows = out.stat().st_size, []
    for cache in ("cold", "warm"):
        seconds = []
        # First the floor, then the conversion, each on the same state of the cache.
        for run in (lambda: floor(files, written, source / "floor"), None):
            if cache == "cold" and not drop_cache(files):
                break
            seconds.append(run() if run else convert(index, out, command, ranks))
        # Without a cache that can be dropped, the loop above ended early.
        if len(seconds) == 2:
            facts = {"blocks": blocks, "ranks": ranks, "cache": cache, "floor": seconds[0]}
            rows.append(facts | seconds[1])
    return rows


def make(source: Path, size: str, blocks: int, dtype: torch.dtype) -> Path:
    """Make a model of this number of blocks and its GGUF, unless they are there.

    Returns the folder, `source`.
    """
    shapes = wan_shapes(size, blocks)
    if not (source / "model.gguf").exists():
        write_model(source, shapes, dtype)
        write_gguf(source / "model.gguf", shapes)
    return source


def render(rows: list[dict]) -> str:
    """Render the rows as a Markdown table, then the line through them: seconds per GB and once.

    Stages are those of the first rank, scaled by the number of ranks.
    """
    lines = [
        "| blocks | ranks | source, GB | output, GB | cache | floor, s | taken, s | ratio "
        "| peak, GiB | read, GB/s | encode, M/s | write, GB/s | sync, s | verify, s |",
        "|" + "---|" * 14,
    ]
    for row in rows:
        busy, share = row["busy"], 1e9 * row["ranks"]  # the first rank's stages
        lines.append(
            f"| {row['blocks']} | {row['ranks']} | {row['read'] / 1e9:.2f} "
            f"| {row['written'] / 1e9:.2f} | {row['cache']} | {row['floor']:.1f} "
            f"| {row['seconds']:.1f} | {row['seconds'] / row['floor']:.2f} "
            f"| {row['peak'] / 2**30:.2f} | {row['read'] / share / busy['read']:.2f} "
            f"| {1e3 * row['weights'] / share / busy['encode']:.0f} "
            f"| {row['written'] / share / busy['write']:.2f} | {busy['sync']:.1f} "
            f"| {busy['verify']:.1f} |"
        )
    # Start-up does not depend on the model: the median over all rows is told once.
    starts = sorted(row["start"] for row in rows)
    lines.append(f"\nnot in it: {starts[len(starts) // 2]:.1f} s to start Python and torch")
    for cache in ("cold", "warm"):
        # Rows of several ranks are on a line of their own, so only the first number of ranks is
        # fitted.
        some = [row for row in rows if row["cache"] == cache and row["ranks"] == rows[0]["ranks"]]
        if len(some) > 1:
            sizes = np.array([row["read"] / 1e9 for row in some])
            seconds = np.array([row["seconds"] for row in some])
            # A straight line through size and time: the slope is what one more GB costs.
            slope, start = np.polyfit(sizes, seconds, 1)
            off = np.abs(slope * sizes + start - seconds).max()
            lines.append(
                f"\n{cache}: {slope:.2f} s per GB of source and {start:.1f} s once, "
                f"at most {off:.1f} s off that line"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure all the models that the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="on the disk to measure; models stay there")
    parser.add_argument("--size", default="5b", choices=("tiny", "5b", "14b"))
    parser.add_argument("--blocks", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="torchrun's processes")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:split])
    options = [*DEFAULT_OPTIONS, *sys.argv[split + 1 :]]
    print(f"convert_nvfp4.py SOURCE OUTPUT --gguf GGUF {' '.join(options)}", flush=True)
    rows = []
    for blocks in given.blocks:
        folder = given.folder / f"{given.size}-{blocks}"
        source = make(folder, given.size, blocks, getattr(torch, given.dtype))
        for ranks in given.ranks:
            rows += measure(source, blocks, ranks, options)
    print(render(rows))


if __name__ == "__main__":
    main()
