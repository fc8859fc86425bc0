"""ComfyUI's own kernels on a GPU: outputs beside the CPU's, and times beside bfloat16.

Layers are quantised by this program and multiplied by comfy_kitchen as ComfyUI does it, with its
CUDA kernels where they load. The first table says how far outputs are from those of the decoded
weight and the quantised input in float64, and from those of the plain layer: for few and many
rows, as kernels differ. The second one adds up the linear layers of one block of Wan 2.2 14B at a
number of tokens, in each format and in mixes of them.

Usage: python benchmarks/matmul.py [--tokens 32760] [--size 5120] [--repeats 5] [--signed]
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from comfy_kitchen.exceptions import NoCapableBackendError
from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

from nvfp4.dtypes import round_up
from nvfp4.encode.compute import Compute
from nvfp4.formats.base import format_titled
from nvfp4.formats.encoding import Given
from nvfp4.numeric.codes import largest_magnitude
from nvfp4.numeric.scale_search import mse_block_scales
from nvfp4.numeric.w4a8 import KITCHEN_CODEBOOK

LAYOUTS = {
    "INT8": "TensorWiseINT8Layout",
    "INT8 not rotated": "TensorWiseINT8Layout",
    "W4A8": "AsymW4A8Int8Layout",
    "W6A8": "AsymW4A8Int8Layout",
    "FP8": "TensorCoreFP8Layout",
    "NVFP4": "TensorCoreNVFP4Layout",
}
# Formats whose input is quantised before the matmul is called, as ComfyUI does it (comfy/ops.py).
# NVFP4 has that on Blackwell alone, and is decoded elsewhere.
WITH_INPUT = ("FP8",)
TEXT_TOKENS = 512
# What kernels raise on a card without the format: it is told, and the others go on.
REFUSALS = (RuntimeError, ValueError, NotImplementedError, NoCapableBackendError)


def params(title: str, parts: dict, shape: tuple, dtype: torch.dtype) -> dict:
    """What ComfyUI hands to a layout's Params for these tensors (comfy/ops.py)."""
    given = {"scale": parts.get("weight_scale"), "orig_dtype": dtype, "orig_shape": shape}
    if title in ("W4A8", "W6A8"):
        given |= {"scale": parts["weight_s_rel"], "s_channel": parts["weight_s_channel"]}
        given |= {"codebook": parts.get("weight_codebook"), "group_size": 16}
        given |= {"convrot_groupsize": 256}
    if title == "INT8":
        given |= {"convrot": True, "convrot_groupsize": 256}
    if title == "NVFP4":
        given |= {"scale": parts["weight_scale_2"], "block_scale": parts["weight_scale"]}
    return given


def quantised(title: str, weight: torch.Tensor, compute: Compute, dtype: torch.dtype) -> tuple:
    """Quantise a weight as a conversion does: kitchen's tensor, and the decoded weight."""
    form = format_titled(title)
    encoded = form.encode(Given("layer", weight, largest_magnitude(weight)), compute)
    parts = {k: joined(v, weight.device) for k, v in form.pack(encoded, weight.shape).items()}
    rows, scale = form.unpack({k: v.cpu() for k, v in parts.items()})
    decoded = form.decode(*rows, scale)[: len(weight), : weight.shape[1]].to(weight.device)
    made = get_layout_class(LAYOUTS[title]).Params(**params(title, parts, weight.shape, dtype))
    return QuantizedTensor(parts["weight"], LAYOUTS[title], made), decoded


def joined(pieces: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Put a tensor's rows together; a scale of one number is one piece."""
    pieces = [piece.to(device) for piece in pieces]
    return torch.cat(pieces) if pieces[0].dim() else pieces[0]


def multiply(title: str, rows: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
    """Multiply as ComfyUI's linear layer does."""
    if title in WITH_INPUT:
        rows = QuantizedTensor.from_float(rows, LAYOUTS[title], scale=None)
    return torch.nn.functional.linear(rows, weight)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def show_outputs(options: argparse.Namespace, device: torch.device, compute: Compute) -> None:
    """Print, by format and number of rows, how far outputs are from what they should be."""
    torch.manual_seed(0)
    weight = torch.randn(options.size, options.size, device=device) * 0.02
    spread = torch.randn(options.size, device=device).mul(0.5).exp()
    print(f"{'format':<18}{'rows':>6}{'from the decoded':>18}{'from the plain':>16}")
    for title in options.formats:
        try:
            stored, decoded = quantised(title, weight, compute, torch.bfloat16)
            for count in (1, 7, 64, 4096):
                rows = (torch.randn(count, options.size, device=device) * spread).bfloat16()
                made = multiply(title, rows, stored)
                seen = rows.float()
                if title != "NVFP4":  # which is decoded here, its input as it is
                    seen = format_titled(title).quantised_input(seen, float(seen.abs().max()) / 448)
                own = relative(made, seen.double() @ decoded.double().t())
                plain = relative(made, rows.double() @ weight.double().t())
                print(f"{title:<18}{count:>6}{own:>18.5f}{plain:>16.5f}", flush=True)
        except REFUSALS as error:
            print(f"{title:<18} {type(error).__name__}: {str(error)[:120]}")


def timed(repeats: int, function: Callable, *given: object) -> float:
    """The least seconds of some calls, after two to warm up."""
    for _ in range(2):
        function(*given)
    least = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        function(*given)
        torch.cuda.synchronize()
        least = min(least, time.perf_counter() - begin)
    return least


def show_signed(options: argparse.Namespace, device: torch.device) -> None:
    """Print whether kernels read the sign of group scales, and another codebook than kitchen's."""
    torch.manual_seed(1)
    form, size = format_titled("W4A8"), options.size
    for name, book in {
        "kitchen's codebook": torch.tensor(KITCHEN_CODEBOOK),
        "another codebook": torch.linspace(-0.8, 1.0, 16),
    }.items():
        scales = torch.rand(size, size // 16) * 60 + 60
        signs = torch.where(torch.rand_like(scales) < 0.5, -1.0, 1.0)
        parts = {
            "weight": torch.randint(-128, 128, (size, size // 2), dtype=torch.int8),
            "weight_s_rel": (scales * signs).to(torch.float8_e4m3fn),
            "weight_s_channel": torch.rand(size) * 1e-3 + 1e-3,
            "weight_codebook": book,
        }
        rows, scale = form.unpack(parts)
        decoded = form.decode(*rows, scale).to(device)
        parts = {key: part.to(device) for key, part in parts.items()}
        made = params("W4A8", parts, (size, size), torch.bfloat16)
        made = get_layout_class(LAYOUTS["W4A8"]).Params(**made)
        stored = QuantizedTensor(parts["weight"], LAYOUTS["W4A8"], made)
        for count in (1, 7, 64, 4096):
            given = torch.randn(count, size, device=device).bfloat16()
            seen = form.quantised_input(given.float(), None)
            error = relative(multiply("W4A8", given, stored), seen.double() @ decoded.double().t())
            print(f"signed scales, {name:<20}{count:>6}{error:>12.5f}", flush=True)


def show_times(options: argparse.Namespace, device: torch.device, compute: Compute) -> None:
    """Print the times of one 14B block's linear layers, in each format and in mixes."""
    width, tokens = options.size, options.tokens
    # Of 5120 columns, these are the 13824 of Wan 2.2 14B.
    hidden = round_up(options.size * 27 // 10, 256)
    shapes = {
        "self q, k, o": (width, width, tokens, 3), "self v": (width, width, tokens, 1),
        "cross q, o": (width, width, tokens, 2), "cross k, v": (width, width, TEXT_TOKENS, 2),
        "ffn.0": (hidden, width, tokens, 1), "ffn.2": (width, hidden, tokens, 1),
    }  # fmt: skip
    times: dict[str, dict[str, float]] = {}
    for kind, (height, columns, count, several) in shapes.items():
        weight = torch.randn(height, columns, device=device) * 0.02
        rows = torch.randn(count, columns, device=device, dtype=torch.bfloat16)
        half = weight.bfloat16()
        row = times.setdefault("16-bit", {})
        row[kind] = several * timed(options.repeats, torch.nn.functional.linear, rows, half)
        for title in options.formats:
            try:
                stored, _ = quantised(title, weight, compute, torch.bfloat16)
                took = timed(options.repeats, multiply, title, rows, stored)
                times.setdefault(title, {})[kind] = several * took
            except REFUSALS as error:
                print(f"{title}: {kind}: {type(error).__name__}: {str(error)[:120]}")
    plain = sum(times["16-bit"].values())
    print(f"\none block, {tokens} tokens: ms by kind, in all, and times as fast as 16-bit")
    for title, row in times.items():
        if len(row) == len(shapes):
            cells = "".join(f"{1000 * value:>8.2f}" for value in row.values())
            whole = sum(row.values())
            print(f"{title:<18}{cells}{1000 * whole:>9.2f}{plain / whole:>7.2f}")
    for name, mix in MIXES.items():
        if all(len(times.get(title, {})) == len(shapes) for title in mix):
            whole = sum(times[title][kind] for title, kind in zip(mix, shapes, strict=True))
            print(f"{name:<58}{1000 * whole:>17.2f}{plain / whole:>7.2f}")


# Formats of the kinds of layers of a block, in the order of `show_times`.
MIXES = {
    "W4A8, INT8 for v and ffn.2": ("W4A8", "INT8", "W4A8", "W4A8", "W4A8", "INT8"),
    "documented, W4A16 and W8A16": ("NVFP4", "16-bit", "16-bit", "16-bit", "NVFP4", "16-bit"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32760)
    parser.add_argument("--size", type=int, default=5120)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--signed", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    kitchen = version("comfy-kitchen")
    print(f"{card}, torch {torch.__version__}, comfy-kitchen {kitchen}", flush=True)
    with torch.inference_mode(), Compute(device, search=mse_block_scales) as compute:
        show_outputs(options, device, compute)
        if options.signed:
            show_signed(options, device)
        if device.type == "cuda":
            show_times(options, device, compute)


if __name__ == "__main__":
    main()
