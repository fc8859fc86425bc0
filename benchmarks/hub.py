"""Conversions from a Hub, beside a plain ranged download of the same bytes from it.

Starts the stand-in of the Hub (tests/support/hub_server.py) in a process of its own, at each rate
that is asked for, and measures in turn: a download of the source's files, in ranges and by several
connections, whose bytes are thrown away; and a conversion by `hf://`. Both are processes of their
own, and leave nothing in a cache. The ratio is the conversion's time over the download's.

Usage: python benchmarks/hub.py FOLDER [--size 5b] [--blocks 5] [--dtype bfloat16]
       [--rates 60 125 0] [--times 2] [-- OPTIONS...]
"""

import argparse
import contextlib
import http.client
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "examples")]

# What the download does at once, as the converter does: see nvfp4/hub/blocks.py.
CONNECTIONS, RANGE_BYTES = 8, 8 << 20
REPOSITORY = "owner/model"
ONE = ROOT / "benchmarks" / "one_conversion.py"


@contextlib.contextmanager
def served(folder: Path, rate: float) -> Iterator[str]:
    """Serve a folder as a repository, at so many MB per second (0: as fast as it goes)."""
    script = ROOT / "tests" / "support" / "hub_server.py"
    command = [sys.executable, str(script), str(folder), "--repo", REPOSITORY]
    command += ["--rate", str(rate)] if rate else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip().partition("=")[2]
        finally:
            server.terminate()


def connected(url: str) -> http.client.HTTPConnection:
    """Connect to the host of an address."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)


def address_of(endpoint: str, name: str) -> str:
    """Ask the Hub where a file's bytes are."""
    connection = connected(endpoint)
    connection.request("GET", f"/{REPOSITORY}/resolve/main/{name}")
    return connection.getresponse().headers["Location"]


def take_ranges(ranges: queue.SimpleQueue) -> None:
    """Fetch one range after another into a buffer, over one connection."""
    buffer, connection = memoryview(bytearray(RANGE_BYTES)), None
    while True:
        try:
            url, begin, end = ranges.get_nowait()
        except queue.Empty:
            return
        connection = connection or connected(url)
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        connection.request("GET", url.partition(urlsplit(url).netloc)[2], headers=headers)
        answer, got = connection.getresponse(), 0
        while count := answer.readinto(buffer[got:]):
            got += count
        if got != end - begin:
            sys.exit(f"{got} bytes came instead of {end - begin}")


def download(endpoint: str, files: list[Path]) -> float:
    """Measure seconds to fetch all bytes of the files in ranges, thrown away as they come."""
    begin, ranges = time.perf_counter(), queue.SimpleQueue()
    for path in files:
        url, size = address_of(endpoint, path.name), path.stat().st_size
        for start in range(0, size, RANGE_BYTES):
            ranges.put((url, start, min(start + RANGE_BYTES, size)))
    threads = [threading.Thread(target=take_ranges, args=(ranges,)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def downloaded(endpoint: str, files: list[Path]) -> float:
    """Do that in a process of its own."""
    command = [sys.executable, __file__, "--download", endpoint, *map(str, files)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def convert(endpoint: str, out: Path, options: list[str]) -> dict:
    """Convert from the Hub in a process of its own, and return what it printed of itself."""
    with tempfile.TemporaryDirectory() as home:
        there = {"HF_ENDPOINT": endpoint, "HF_HOME": home, "NO_PROXY": "127.0.0.1,localhost"}
        command = [sys.executable, str(ONE), f"hf://{REPOSITORY}", str(out), "--quiet", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | there
        )
    # A failed conversion has no time: its messages are all that is worth printing.
    if done.returncode:
        sys.exit(done.stderr)
    out.unlink()
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, rate: float, times: int, options: list[str]) -> dict:
    """Measure downloads and conversions in turn at one rate, and return the medians."""
    files, out = sorted(folder.glob("*.safetensors")), folder.parent / "hub-out.safetensors"
    rows = []
    with served(folder, rate) as endpoint:
        for _ in range(times):
            row = {"download": downloaded(endpoint, files)}
            rows.append(row | convert(endpoint, out, options))
    rows.sort(key=lambda row: row["seconds"] / row["download"])
    return {"rate": rate} | rows[len(rows) // 2]


def render(row: dict) -> str:
    """Render a row of the table."""
    rate = f"{row['rate']:g} MB/s" if row["rate"] else "as it comes"
    return (
        f"| {rate} | {row['read'] / 1e9:.2f} | {row['written'] / 1e9:.2f} "
        f"| {row['download']:.1f} | {row['seconds']:.1f} | {row['seconds'] / row['download']:.2f} "
        f"| {row['peak'] / 2**30:.2f} |"
    )


def main() -> None:
    """Measure at all the rates that the command line asks for, and print the table."""
    if sys.argv[1:2] == ["--download"]:
        print(download(sys.argv[2], [*map(Path, sys.argv[3:])]))
        return
    import torch
    from make_wan import wan_shapes, write_model

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="on the disk to write to; the model stays there")
    parser.add_argument("--size", default="5b", choices=("tiny", "5b", "14b"))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rates", type=float, nargs="+", default=[60, 125, 0], help="MB/s")
    parser.add_argument("--times", type=int, default=2, help="the median of so many is told")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:split])
    options = sys.argv[split + 1 :]
    folder = given.folder / f"{given.size}-{given.blocks}-{given.dtype}"
    if not list(folder.glob("*.index.json")):
        write_model(folder, wan_shapes(given.size, given.blocks), getattr(torch, given.dtype))
    print(f"convert_nvfp4.py hf://{REPOSITORY} OUTPUT {' '.join(options)}", flush=True)
    print("| server | source, GB | output, GB | download, s | conversion, s | ratio | peak, GiB |")
    print("|---|---|---|---|---|---|---|")
    for rate in given.rates:
        print(render(measure(folder, rate, given.times, options)), flush=True)


if __name__ == "__main__":
    main()
