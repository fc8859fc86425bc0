"""A trained sentence encoder in every format, run on comfy_kitchen's own layouts on the CPU.

Prints, for each choice of formats, the bytes of the linear layers and the cosine of 12 sentences'
embeddings with those of the float model. The encoder has 384 channels, which are no whole groups of
256: its INT8 layers are not rotated but for those of 1536 columns, which alone can be W4A8.

Usage: python benchmarks/encoder_formats.py      (needs tests/requirements.txt; a minute)
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from encoder import checkpoint, embed
from matmul import multiply, quantised
from safetensors.torch import load_file

from nvfp4.encode.compute import Compute
from nvfp4.formats.base import format_titled
from nvfp4.numeric.scale_search import SCALE_SEARCHES

DOWN = "output.dense"
# For each choice: the format of the layers with 1536 columns, and of all others; "" is float32.
CHOICES = {
    "NVFP4, W4A4": ("NVFP4", "NVFP4"),
    "FP8": ("FP8", "FP8"),
    "INT8": ("INT8", "INT8"),
    "1536 columns NVFP4, W4A4": ("NVFP4", ""),
    "1536 columns W4A8": ("W4A8", ""),
    "1536 columns W6A8": ("W6A8", ""),
    "1536 columns FP8": ("FP8", ""),
    "1536 columns INT8": ("INT8", ""),
}


class StoredLinear(torch.nn.Module):
    """Multiply by a layer as comfy_kitchen stores it; NVFP4's input is quantised, too."""

    def __init__(self, title: str, compute: Compute, linear: torch.nn.Linear):
        super().__init__()
        self.title, self.bias = title, linear.bias
        self.weight, _ = quantised(title, linear.weight.detach(), compute, torch.float32)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.flatten(0, -2)
        if self.title == "NVFP4":  # a CPU has no FP4 matmul: multiply what both sides decode to
            rows = format_titled("NVFP4").quantised_input(rows, None)
        return multiply(self.title, rows, self.weight).view(*values.shape[:-1], -1) + self.bias


def main() -> None:
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in load_file(checkpoint()).items()
        if name.startswith("encoder.layer") and tensor.dim() == 2
    }
    print(f"{'linear layers':<26}{'scales':>8}{'bytes':>12}{'least':>9}{'mean cosine':>13}")
    for search in ("amax", "mse"):
        with Compute(torch.device("cpu"), search=SCALE_SEARCHES[search]) as compute:
            for name, pair in CHOICES.items():
                chosen = {layer: pair[shape[1] != 1536] for layer, shape in shapes.items()}
                forms = {k: format_titled(v).for_shape(shapes[k]) for k, v in chosen.items() if v}
                nbytes = sum(stored_bytes(forms.get(k), shape) for k, shape in shapes.items())
                cosine = embed(
                    {k: partial(StoredLinear, f.title, compute) for k, f in forms.items()}
                )
                print(
                    f"{name:<26}{search:>8}{nbytes:>12,}{float(cosine.min()):>9.4f}"
                    f"{float(cosine.mean()):>13.5f}",
                    flush=True,
                )


def stored_bytes(form, shape) -> int:
    """Bytes of a weight and its scales; two a weight where it stays 16-bit."""
    sizes = {"F32": 4}
    if form is None:
        return 2 * shape[0] * shape[1]
    parts = form.parts(tuple(shape)).values()
    return sum(torch.Size(size).numel() * sizes.get(dtype, 1) for dtype, size in parts)


if __name__ == "__main__":
    main()
