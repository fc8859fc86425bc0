"""What --target-size gains over choices of the same size that measure nothing.

Usage: python benchmarks/target_size.py SOURCE [SOURCE ...] [--share 0.25 0.5 0.75] [-- OPTIONS]

Between the file whose open layers are all NVFP4 and the one where they are all FP8, shares of the
way: total squared error (relative to each layer, summed) of three choices, over the measured one's.
`even`: as many layers as fit are FP8, evenly spread over the model; `first`: the first ones;
`largest`: the largest ones. Nothing is written.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

# The built file, as users run it.
import convert_nvfp4 as c

# The alternatives of a layer are NVFP4, FP8 and 16-bit, in this order.
Layers = dict[str, list[c.Alternative]]


def measure(source: str, *options: str) -> Layers:
    """Measure {weight: its alternatives as NVFP4, FP8 and 16-bit} of the layers that are open.

    `source` and `options` are those of the command line. Layers with fewer alternatives, for their
    shape, are left out.
    """
    formats = ["--formats", "nvfp4,fp8,16bit"]
    asked = c.parse_options([source, "o.safetensors", "--edge-blocks", "0", *formats, *options])
    model, _ = c.open_source(asked.source)
    planner = functools.partial(c.make_plans, model=model, guides=c.read_guides(asked, model))
    start = {plan.ref.name: plan for plan in planner(asked)[0]}
    candidates = c.list_candidates(asked, planner, start)
    # Fewer than three: the shape does not allow all of the formats.
    candidates = {name: rows for name, rows in candidates.items() if len(rows) == 3}
    return c.measure_alternatives(asked, candidates, c.Ranks()).choices


def raised(layers: Layers, names: set[str]) -> list[c.Alternative]:
    """Choose FP8 for the named layers and NVFP4 for all others."""
    return [rows[1] if name in names else rows[0] for name, rows in layers.items()]


def uniform(layers: Layers, budget: int, order: str = "even") -> list[c.Alternative]:
    """Choose FP8 for as many layers as fit into `budget` bytes, NVFP4 for the rest, unmeasured.

    `order` tells which layers come first: "even" spreads them over the model, "first" takes it from
    its beginning, "largest" by bytes. Raises ValueError where even all-NVFP4 does not fit.
    """
    names = list(layers)
    if order == "largest":
        names.sort(key=lambda name: -layers[name][1].nbytes)
    # From all layers downwards, until the choice fits.
    for count in range(len(names), -1, -1):
        picked = names[:count]
        if order == "even" and count:
            # Every n-th layer, whatever n is: count layers over the whole model.
            picked = [names[index * len(names) // count] for index in range(count)]
        chosen = raised(layers, set(picked))
        if sum(row.nbytes for row in chosen) <= budget:
            return chosen
    raise ValueError(f"{budget} bytes do not hold the smallest choice")


def main() -> None:
    """Print a row for each source and share: the others' error over that of the measured choice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--share", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:here]), sys.argv[here + 1 :]
    print("| source | share | layers | bytes | measured | even | first | largest |")
    print("|---|---|---|---|---|---|---|---|")
    for source in given.source:
        layers = measure(source, *options)
        least, most = (sum(rows[end].nbytes for rows in layers.values()) for end in (0, 1))
        for share in given.share:
            budget = int(least + share * (most - least))
            # What --target-size chooses with these bytes; it may also use 16-bit.
            ours = list(c.choose_for_size(layers, budget).values())
            error = sum(row.error for row in ours)
            others = (uniform(layers, budget, order) for order in ("even", "first", "largest"))
            ratios = " | ".join(f"{sum(r.error for r in rows) / error:.2f}" for rows in others)
            size = sum(row.nbytes for row in ours)
            print(f"| {Path(source).name} | {share:g} | {len(layers)} | {size:,} | 1 | {ratios} |")


if __name__ == "__main__":
    main()
