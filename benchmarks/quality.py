"""What choosing block scales well is worth: amax, four-over-six and this tool's search, compared.

Squared error of the decoded weight relative to amax's, SQNR and speed on four kinds of weights,
one of them really trained; then what reaches the end of that trained model, a sentence encoder.

Usage: python benchmarks/quality.py      (needs tests/requirements.txt; a minute on two cores)
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# The tokenizers library warns of forked processes otherwise.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED, "comfy_kitchen")

import torch
from encoder import Packed, checkpoint, cosines
from safetensors.torch import load_file

import convert_nvfp4 as c

# The shape of the made-up weights: whole blocks of 16 columns, whole tiles of 128 rows.
ROWS, COLUMNS = 4096, 3072
# The largest block scale of "4-over-6": a scale by 4 is 1.5 times one by 6 and must fit E4M3's 448.
FOUR_OVER_SIX_LARGEST = 256.0


def four_over_six(magnitude: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Choose each block's scale by its largest weight as 6 or as 4, whichever has less error.

    It tries two scales a block, where the search tries all that may help. `magnitude` is [N, K],
    the result [N, K / 16] in E4M3.
    """
    blocks = magnitude.view(-1, c.BLOCK_SIZE).t().contiguous()
    amax = blocks.amax(0) / global_scale
    # Row 0 has the scales by 6, row 1 those by 4.
    codes = torch.stack(
        [(amax / top).clamp(max=c.E4M3_MAX).to(torch.float8_e4m3fn) for top in (6.0, 4.0)]
    )
    codes = codes.view(torch.uint8).to(torch.int16)
    errors = c.scale_errors(blocks, codes, global_scale)
    best = torch.where(errors[1] < errors[0], codes[1], codes[0])
    return best.to(torch.uint8).view(torch.float8_e4m3fn).view(len(magnitude), -1)


# For each method: the function that chooses block scales, and the largest of these that it uses.
METHODS: dict[str, tuple[Callable, float]] = {
    "amax": (c.amax_block_scales, c.E4M3_MAX),
    "4-over-6": (four_over_six, FOUR_OVER_SIX_LARGEST),
    "search": (c.mse_block_scales, c.E4M3_MAX),
}


def encode(weight: torch.Tensor, method: str, compute: c.Compute) -> c.Encoded:
    """Encode a weight by one of METHODS, with its damage measured.

    weight: [N, K]; compute: the device and its threads. The global scale is set so that the largest
    weight gets the method's largest block scale; the search also tries other global scales, as the
    converter does. Returns c.Encoded.
    """
    block_scales, largest = METHODS[method]
    scale = c.largest_magnitude(weight) / (c.E2M1_MAX * largest)
    plain = functools.partial(c.encode_nvfp4, block_scales=block_scales)
    rows = c.with_damage(plain, c.decode_nvfp4, torch.float32)
    encoded = c.encode_rows(weight, scale, rows, compute)
    # The other two methods have no choice of global scales.
    if block_scales is c.mse_block_scales:
        return c.try_other_global_scales(weight, encoded, rows, compute)
    return encoded


def speed(weight: torch.Tensor, method: str, compute: c.Compute) -> float:
    """Measure million weights a second of encoding alone, the best of three.

    weight: [N, K]. Neither measuring the damage nor other global scales are in it.
    """
    block_scales, largest = METHODS[method]
    scale = c.largest_magnitude(weight) / (c.E2M1_MAX * largest)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        compute.map(lambda rows: c.encode_nvfp4(rows, scale, block_scales), weight)
        times.append(time.perf_counter() - begin)
    return weight.numel() / min(times) / 1e6


def synthetic() -> dict[str, torch.Tensor]:
    """Make weights [4096, 3072] of four kinds from a fixed seed.

    Normal ones; Student-t with 5 degrees of freedom, which has heavy tails; normal ones with every
    97th channel 20 times larger; and rows whose sizes go from e^-12 to e^12.
    """
    # The same weights in every run, so that runs can be compared.
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(ROWS, COLUMNS, generator=generator)
    # Student's t is a normal number over the root of a chi-squared one by its degrees of freedom.
    chi = torch.randn(5, ROWS, COLUMNS, generator=generator).square().sum(0)
    channels = torch.ones(COLUMNS).index_fill(0, torch.arange(0, COLUMNS, 97), 20.0)
    return {
        "normal": normal,
        "Student-t(5)": torch.randn(ROWS, COLUMNS, generator=generator) / (chi / 5).sqrt(),
        "outlier channels": normal * channels,
        "rows e^-12 to e^12": normal * torch.linspace(-12, 12, ROWS).exp().unsqueeze(1),
    }


def row(name: str, method: str, values: tuple[float, ...]) -> str:
    """Render a row of the table of weights as Markdown.

    values: the error over amax's of all layers, of the worst one, SQNR in dB, and million weights a
    second.
    """
    ratio, worst, sqnr, rate = values
    return f"| {name:18} | {method:8} | {ratio:7.3f} | {worst:7.3f} | {sqnr:6.2f} | {rate:6.0f} |"


def weight_table(real: dict[str, torch.Tensor], compute: c.Compute) -> list[str]:
    """Render a row per kind of weight and method.

    Columns are the error over amax's in all layers and in the worst one, SQNR in dB, and speed.
    """
    kinds = {"trained encoder": real} | {
        name: {name: weight} for name, weight in synthetic().items()
    }
    lines = [
        "| weights            | scales   | error / | worst   | SQNR,  | million |",
        "|                    |          | amax's  | layer   | dB     | / s     |",
        "|---|---|---|---|---|---|",
    ]
    for kind, weights in kinds.items():
        found = {
            method: [encode(weight, method, compute).damage for weight in weights.values()]
            for method in METHODS
        }
        for method, damages in found.items():
            pairs = list(zip(damages, found["amax"], strict=True))
            error, energy = sum(d.error for d in damages), sum(d.energy for d in damages)
            # Sums over layers, so that large layers weigh more than small ones.
            total = c.Damage(error=error, energy=energy)
            # Speed is measured on the largest weight; the encoder's are small, and are taken
            # together.
            largest = max(weights.values(), key=torch.numel)
            values = (
                error / sum(amax.error for _, amax in pairs),
                max(one.error / amax.error for one, amax in pairs),
                total.sqnr_db,
                speed(
                    largest
                    if kind != "trained encoder"
                    else torch.cat([w.view(-1, 384) for w in weights.values()]),
                    method,
                    compute,
                ),
            )
            lines.append(row(kind, method, values))
    return lines


def encoder_table(real: dict[str, torch.Tensor], compute: c.Compute) -> list[str]:
    """Render, per method, the mean and least cosine of embeddings with W4A16 and with W4A4."""
    lines = ["| scales   | W4A16 mean | least  | W4A4 mean | least  |", "|---|---|---|---|---|"]
    for method in METHODS:
        layers: dict[str, Packed] = {}
        for layer, weight in real.items():
            found = encode(weight, method, compute)
            # cuBLAS reads block scales in swizzled tiles, and comfy_kitchen stores them so.
            layers[layer] = (torch.cat(found.codes), found.scale, c.swizzle(found.by_rows[0]))
        results = [cosines(layers, activations) for activations in (False, True)]
        cells = [f"{value:.4f}" for r in results for value in (r.mean(), r.min())]
        lines.append(f"| {method:8} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table of weights, then that of the sentence encoder, as Markdown.

    All is done on the CPU with as many threads as `c.single_threaded` offers.
    """
    # Matrices of the transformer alone: embeddings are looked up, not multiplied.
    real = {
        name.removesuffix(".weight"): weight
        for name, weight in load_file(checkpoint()).items()
        if name.startswith("encoder.") and weight.ndim == 2
    }
    cpu = torch.device("cpu")
    with c.single_threaded() as threads, c.Compute(cpu, threads=threads) as compute:
        print("\n".join(weight_table(real, compute)))
        print("\ncosine of sentence embeddings to the float model's")
        print("\n".join(encoder_table(real, compute)))


if __name__ == "__main__":
    main()
