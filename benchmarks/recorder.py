"""What recording costs: Wan-shaped transformer blocks, with and without the recorder's hooks.

The blocks have the linear layers, the attention and the norms of Wan at full width, and random
weights. Runs with and without take turns, and the medians are compared.

With --second-moments a run has eight steps: after so many they are brought to memory.

Usage: python benchmarks/recorder.py [--size 14b] [--blocks 4] [--tokens 32760] [--sampled 256]
       [--second-moments]
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import torch
from make_wan import SIZES
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from comfyui_nvfp4.recorder import Recording

# Channels of an attention head of Wan, and tokens of its text.
HEAD, TEXT_TOKENS = 128, 512


class Attention(torch.nn.Module):
    """Build the linear layers and the attention of a Wan block, without its norms of q and k.

    dim: channels, a multiple of HEAD. The recorder hooks linear layers, so that the norms between
    them only add time to both sides of the comparison.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Attend from x [1, T, dim] to context [1, t, dim]; returns [1, T, dim].

        For self-attention, context is x itself.
        """
        parts = (self.q(x), self.k(context), self.v(context))
        heads = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in parts)
        return self.o(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    """Build a transformer block with Wan's linear layers, self- and cross-attention.

    dim: channels of the model; ffn: channels inside the feed-forward layers. There are ten linear
    layers in it, all with random weights.
    """

    def __init__(self, dim: int, ffn: int):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(dim), Attention(dim)
        self.ffn = torch.nn.ModuleList([torch.nn.Linear(dim, ffn), torch.nn.Linear(ffn, dim)])

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Run the block on x [1, T, dim] with the text [1, TEXT_TOKENS, dim].

        Returns [1, T, dim]. Nothing is modulated by the noise level here, as that takes no linear
        layer.
        """
        normed = layer_norm(x, x.shape[-1:])
        x = x + self.self_attn(normed, normed)
        x = x + self.cross_attn(layer_norm(x, x.shape[-1:]), text)
        normed = layer_norm(x, x.shape[-1:])
        return x + self.ffn[1](gelu(self.ffn[0](normed), approximate="tanh"))


def seconds(run, device: torch.device) -> float:
    """Time one run in seconds; on a GPU until the device has finished.

    run: called without arguments. Nothing is warmed up here: `main` leaves out the first of its
    runs.
    """
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    """Print the medians of plain and recorded steps, what recording adds, and the time to save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="14b", choices=SIZES)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32760)
    parser.add_argument("--sampled", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--second-moments", action="store_true")
    given = parser.parse_args()
    # Eight steps hold one transfer of the second moments to memory, which a single step would not.
    steps, moments = (8, "all") if given.second_moments else (1, "none")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dim, ffn, *_ = SIZES[given.size]
    with torch.device(device):
        blocks = torch.nn.ModuleList(Block(dim, ffn) for _ in range(given.blocks)).to(dtype)
        x = torch.randn(1, given.tokens, dim, dtype=dtype)
        text = torch.randn(1, TEXT_TOKENS, dim, dtype=dtype)

    def step() -> None:
        for _ in range(steps):
            state = x
            for block in blocks:
                state = block(state, text)

    # ComfyUI samples in inference mode, too.
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        recording = Recording(Path(folder), "m")

        times = {"plain": [], "recorded": [], "saving": []}
        # The two take turns, so that a slow moment of the machine meets both.
        for repeat in range(given.repeats + 1):
            plain = seconds(step, device)
            begin = time.perf_counter()
            with recording.watching(blocks, "", given.sampled, moments):
                recorded = seconds(step, device)
            whole = time.perf_counter() - begin
            if repeat:  # the first one warms up
                for name, taken in zip(times, (plain, recorded, whole - recorded), strict=True):
                    times[name].append(taken)
        plain, recorded, saving = map(statistics.median, times.values())
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    # Saving is told apart: it is once a prompt, and not in the step.
    share = 100 * (recorded / plain - 1)
    print(
        f"{name}, {given.size}, {given.blocks} blocks, {given.tokens:,} tokens, {given.sampled} "
        f"sampled: {plain:.4f} s, recorded {recorded:.4f} s (+{share:.1f} %), "
        f"writing the file {saving:.3f} s a prompt"
    )


if __name__ == "__main__":
    main()
