"""Model the inputs of a Wan's linear layers without a prompt, a sampler or ComfyUI.

Usage: python calib/model_inputs.py MODEL -o STATISTICS.safetensors [--device cuda] [--rows 4096]
Then:  python convert_nvfp4.py MODEL ... --activation-stats STATISTICS.safetensors

Random rows go through the model's own layers, block by block: noisy latents through the patch
embedding, random text through the text embedding, every timestep through the time embedding; norms,
modulation, residuals and GELU are as they are in the model. Only attention is not computed: it is
taken as the mean of two rows. What each layer is given is written as the recorder does it, so that
weights are rounded to the least error of a likely output. A recording of real prompts is better.
Its maxima are modelled, too: take no input scales from it.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import torch
from torch.nn import functional as F

from comfyui_nvfp4.recorder import Recording
from comfyui_nvfp4.second_moments import LAYERS
from nvfp4.errors import ConvertError, examples
from nvfp4.model import TensorRef, bare
from nvfp4.progress import each_with_bar
from nvfp4.read.tensors import load_weight
from nvfp4.source.open import open_source

# Different timesteps among the rows, evenly spaced.
TIMESTEPS = 20
# Standard deviation of the text encoder's outputs; results hardly depend on it.
TEXT_DEVIATION = 0.3
# Rows of the padding after a prompt, which is zeros, among the rows of the text.
PADDING = 0.25
# What every Wan has, and no other model by the same names.
LEAST_NAMES = ("patch_embedding.weight", "text_embedding.0.weight", "time_projection.1.weight")


class Layer(torch.nn.Module):
    """A linear layer whose weight is read when it is called, and dropped again.

    `in_features` is what the recorder knows linear layers by.
    """

    def __init__(self, weight: TensorRef, bias: TensorRef | None, device: torch.device):
        super().__init__()
        self.weight_ref, self.bias_ref, self.device = weight, bias, device
        self.in_features = weight.shape[1]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply rows [T, K] float32."""
        weight = load_weight(self.weight_ref).to(self.device).float()
        bias = None if self.bias_ref is None else load_weight(self.bias_ref).to(rows).float()
        return F.linear(rows, weight, bias)


class Wan:
    """A Wan's layers, and rows that pass through them, all float32 on one device."""

    def __init__(self, path: Path, device: torch.device, seed: int, noise: tuple[float, float]):
        """Open a checkpoint; raises ConvertError where it is no Wan.

        seed: of the random numbers; noise: least and largest share of noise in latents, 0 to 1.
        """
        tensors = open_source(path).model.tensors
        self.refs = {bare(name): ref for name, ref in tensors.items()}
        if not all(name in self.refs for name in LEAST_NAMES):
            raise ConvertError(f"{path}: is no Wan; only Wan's inputs can be modelled")
        if packed := [ref.layer for ref in self.refs.values() if ref.config or ref.coding]:
            raise ConvertError(
                f"{path}: is quantised ({examples(packed)}); give the 16- or 32-bit model"
            )
        self.device, self.noise = device, noise
        self.generator = torch.Generator(device).manual_seed(seed)
        self.layers, self.root = {}, torch.nn.Module()
        for name, ref in self.refs.items():
            if name.startswith("blocks.") and name.endswith(".weight") and len(ref.shape) == 2:
                self.plant(name.removesuffix(".weight"), ref)
        names = {name.split(".")[1] for name in self.layers}
        self.blocks = [f"blocks.{number}" for number in sorted(map(int, names))]

    def plant(self, name: str, weight: TensorRef) -> None:
        """Put a layer into a tree of modules, so that it is found by its name."""
        module, *rest = self.root, *name.split(".")
        for part in rest[:-1]:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        self.layers[name] = Layer(weight, self.refs.get(f"{name}.bias"), self.device)
        module.add_module(rest[-1], self.layers[name])

    def value(self, name: str) -> torch.Tensor:
        """Read a tensor as float32 on the device."""
        return load_weight(self.refs[name]).to(self.device).float()

    def dense(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Multiply rows by a layer outside of the blocks, which is not recorded."""
        return F.linear(rows, self.value(f"{name}.weight").flatten(1), self.value(f"{name}.bias"))

    def random(self, rows: int, columns: int) -> torch.Tensor:
        """Make normal numbers [rows, columns]."""
        return torch.randn(rows, columns, generator=self.generator, device=self.device)

    def steps(self) -> torch.Tensor:
        """List the timesteps that take turns among the rows, as shares of noise: [TIMESTEPS]."""
        least, largest = self.noise
        share = torch.arange(1, TIMESTEPS + 1, device=self.device) / TIMESTEPS
        return least + (largest - least) * share

    def latents(self, rows: int) -> torch.Tensor:
        """Make patches of noisy latents [rows, columns of the patch embedding].

        A clean patch is taken to be of one colour, as most of a video hardly changes within one.
        """
        _, channels, *patch = self.refs["patch_embedding.weight"].shape
        pixels = math.prod(patch)
        noise = self.steps()[torch.arange(rows, device=self.device) % TIMESTEPS].unsqueeze(1)
        clean = self.random(rows, channels).repeat_interleave(pixels, dim=1)
        return (1 - noise) * clean + noise * self.random(rows, channels * pixels)

    def times(self, rows: int) -> torch.Tensor:
        """Compute the time projection of each row, [rows, 6, dim]; timesteps take turns."""
        half = self.refs["time_embedding.0.weight"].shape[1] // 2
        angle = (
            1000 * self.steps()[:, None] * 10000 ** (-torch.arange(half, device=self.device) / half)
        )
        made = self.dense("time_embedding.0", torch.cat([angle.cos(), angle.sin()], 1))
        made = self.dense("time_embedding.2", F.silu(made))
        made = self.dense("time_projection.1", F.silu(made)).unflatten(1, (6, -1))
        return made[torch.arange(rows, device=self.device) % TIMESTEPS]

    def text(self, rows: int) -> torch.Tensor:
        """Make rows of text as the blocks get them, some of them padding: [rows, dim]."""
        given = self.random(rows, self.refs["text_embedding.0.weight"].shape[1]) * TEXT_DEVIATION
        given[: int(rows * PADDING)] = 0
        hidden = F.gelu(self.dense("text_embedding.0", given), approximate="tanh")
        return self.dense("text_embedding.2", hidden)

    def image(self, rows: int) -> torch.Tensor | None:
        """Make rows of an image as the blocks get them, if the model takes one: normalised ones."""
        if "img_emb.proj.4.weight" not in self.refs:
            return None
        scale, shift = (self.value(f"img_emb.proj.4.{part}") for part in ("weight", "bias"))
        return self.random(rows, len(scale)) * scale + shift

    @torch.no_grad()
    def run(self, rows: int) -> None:
        """Pass rows through all blocks, for hooks of their layers to see."""
        found = self.dense("patch_embedding", self.latents(rows))
        times, text, image = self.times(rows), self.text(rows), self.image(rows)
        for block in each_with_bar("blocks", self.blocks):
            found = self.block(block, found, times, text, image)

    def block(
        self,
        name: str,
        rows: torch.Tensor,
        times: torch.Tensor,
        text: torch.Tensor,
        image: torch.Tensor | None,
    ) -> torch.Tensor:
        """Pass rows [T, dim] through one block.

        times: `times` of the rows [T, 6, dim]; text, image: what cross-attention takes, [T, dim].
        """

        def layer(part: str, given: torch.Tensor) -> torch.Tensor:
            return self.layers[f"{name}.{part}"](given)

        shift = (self.value(f"{name}.modulation") + times).unbind(1)
        norm = partial(F.layer_norm, normalized_shape=rows.shape[-1:], eps=1e-6)
        given = norm(rows) * (1 + shift[1]) + shift[0]
        for part in ("q", "k"):
            layer(f"self_attn.{part}", given)
        mixed = mix(layer("self_attn.v", given))
        rows = rows + layer("self_attn.o", mixed) * shift[2]
        given = rows
        if f"{name}.norm3.weight" in self.refs:
            scale, bias = (self.value(f"{name}.norm3.{part}") for part in ("weight", "bias"))
            given = norm(rows) * scale + bias
        layer("cross_attn.q", given)
        layer("cross_attn.k", text)
        mixed = mix(layer("cross_attn.v", text))
        if image is not None:
            layer("cross_attn.k_img", image)
            mixed = mixed + mix(layer("cross_attn.v_img", image))
        rows = rows + layer("cross_attn.o", mixed)
        given = norm(rows) * (1 + shift[4]) + shift[3]
        hidden = F.gelu(layer("ffn.0", given), approximate="tanh")
        return rows + layer("ffn.2", hidden) * shift[5]


def mix(values: torch.Tensor) -> torch.Tensor:
    """Stand in for attention: the mean of two rows of the same timestep."""
    return (values + values.roll(TIMESTEPS, 0)) / 2


def main() -> None:
    """Read the command line, pass the rows, and write the statistics."""
    what, _, how = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=how, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a .safetensors file, an index or a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="NAME.safetensors")
    parser.add_argument("--rows", type=int, default=4096, help="rows for each input: 4096")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--noise",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LEAST", "LARGEST"),
        help="shares of noise that the model is sampled at: 0 1; Wan 2.2 high noise 0.875 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers: 0")
    parser.add_argument(
        "--layers", choices=LAYERS[1:], default=LAYERS[1], help="layers with second moments"
    )
    chosen = parser.parse_args()
    if chosen.output.suffix != ".safetensors" or chosen.output.exists():
        parser.error(f"{chosen.output}: give a new name that ends in .safetensors")
    if chosen.rows < TIMESTEPS:
        parser.error(f"--rows: give {TIMESTEPS} or more, one for each timestep")
    if not 0 <= chosen.noise[0] < chosen.noise[1] <= 1:
        parser.error("--noise: give two shares from 0 to 1, the smaller one first")
    try:
        wan = Wan(chosen.model, torch.device(chosen.device), chosen.seed, tuple(chosen.noise))
    except ConvertError as error:
        sys.exit(f"error: {error}")
    recording = Recording(chosen.output.parent, chosen.output.stem, is_modelled=True)
    with recording.watching(wan.root, "", chosen.rows, chosen.layers, widest=1 << 20):
        wan.run(chosen.rows)
    recording.log.unlink()
    print(f"Wrote {chosen.output}: {len(wan.layers)} layers, {chosen.rows} rows each")


if __name__ == "__main__":
    main()
