"""One conversion of benchmarks/convert.py, in a process of its own: what it took, as a JSON line.

Usage: python benchmarks/one_conversion.py SOURCE OUTPUT [OPTIONS of convert_nvfp4.py...]
"""

import time

# Taken before torch is imported, so that the time to start is known apart from the conversion's.
BEGIN = time.perf_counter()

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The built file, as users run it.
import convert_nvfp4 as c


class Stopwatch:
    """Add up the seconds in which each stage of a conversion is busy.

    Stages overlap, as reading and writing have threads of their own: the sum may exceed the whole.
    """

    def __init__(self):
        """Begin with no seconds in any of the five stages that `convert` tells of."""
        self.busy = dict.fromkeys(("read", "encode", "write", "sync", "verify"), 0.0)

    @contextlib.contextmanager
    def observe(self, stage: str) -> Iterator[None]:
        """Time one piece of work of a stage; this is the hook that `convert` calls."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.busy[stage] += time.perf_counter() - start


def peak_memory() -> int:
    """Return the most bytes of RAM that this process held, or 0 where the system does not tell.

    Linux has it as VmHWM in /proc/self/status.
    """
    if sys.platform != "linux":
        return 0
    # The line reads `VmHWM: 123456 kB`; these are KiB.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Convert as the arguments say, and print what it took as a line of JSON.

    Times are in seconds, sizes in bytes; "busy" is {stage: seconds}. Of several ranks only the
    first one prints, and its figures are its own.
    """
    options, watch = c.parse_options(sys.argv[1:]), Stopwatch()
    # Python, torch and the options are ready: what comes now is the conversion.
    ready = time.perf_counter()
    report = c.convert(options, watch.observe)
    done = time.perf_counter()
    facts = {
        "start": ready - BEGIN,
        "seconds": done - ready,
        "peak": peak_memory(),
        "busy": watch.busy,
        "read": report.source_bytes,
        "written": report.output_bytes,
        "weights": sum(math.prod(plan.ref.shape) for plan in report.plans if plan.is_quantised),
    }
    # One line for all ranks, as `convert.py` reads the last one.
    if c.read_ranks().is_first:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
