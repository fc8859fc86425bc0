"""Small random models of published families, which ComfyUI recognises, loads and runs on the CPU.

usage: python tests/support/tiny_models.py KIND OUT.safetensors     (KIND: one of KINDS)

The names come from tests/families, shrunk: fewer blocks, narrower layers. LOAD_AND_RUN, run as
`python -c` in the repository with MODEL, KIND and COMFYUI_ROOT in the environment, loads such a
file, or one converted from it, and prints "RESULT {json}". What ComfyUI does not read from a file,
but has as constants, a row says, and it is changed before loading.
"""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvfp4.asking.find import version_of
from support.comfyui import COMFYUI, PREAMBLE, numbers
from support.make_families import MODELS, Shapes, read_headers
from support.paths import FAMILIES
from support.tiny import Tiny
from support.tiny_image import TINY_IMAGE
from support.tiny_unet import TINY_UNET
from support.tiny_video import TINY_VIDEO

# {kind: small model}
KINDS: dict[str, Tiny] = TINY_IMAGE | TINY_VIDEO | TINY_UNET


def shrink(shapes: Shapes, tiny: Tiny) -> Shapes:
    """The first blocks of each list of them, made narrower."""

    def narrow(size: int) -> int:
        for width, small in tiny.widths.items():
            if size and size % width == 0:
                return size // width * small
        return size

    kept = {}
    for name, shape in shapes.items():
        block = re.search(rf"((?:{tiny.lists})\.?)(\d+)\.", name)
        number = int(block[2]) if block else 0
        if block and tiny.last and number == tiny.last:
            number = tiny.blocks - 1
            name = f"{name[: block.start(2)]}{number}.{name[block.end() :]}"
        elif block and tiny.last and number == tiny.blocks - 1:
            continue
        if number < tiny.blocks and not re.match(tiny.without, name):
            ends = (given for end, given in tiny.shapes.items() if name.endswith(end))
            kept[name] = next(ends, tuple(narrow(size) for size in shape))
    return kept


def values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random values with which a layer's outputs are about as large as its inputs."""
    tensor = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return (tensor * math.prod(shape[1:]) ** -0.5).bfloat16()
    return (tensor * 0.02 + name.endswith((".weight", ".scale"))).bfloat16()


def tiny_model(kind: str, path: Path, seed: int = 0) -> Path:
    """A small model of that kind in bfloat16, the same one for the same seed."""
    tiny = KINDS[kind]
    shapes = shrink(read_headers(FAMILIES / f"{tiny.model}.txt"), tiny)
    generator = torch.Generator().manual_seed(seed)
    state = {name: values(name, shape, generator) for name, shape in shapes.items()}
    save_file(state, path, tiny.metadata)
    return Path(path)


def skip_unknown(kind: str) -> None:
    """Skip a test of a small model that the checkout's version does not know."""
    since = MODELS[KINDS[kind].model].comfyui
    if numbers(version_of(Path(COMFYUI))) < numbers(since):
        pytest.skip(f"ComfyUI {since} is the first that knows this model, of those looked at")


LOAD_AND_RUN = (
    PREAMBLE
    + """
from collections import Counter
from functools import partial
from comfy import supported_models

sys.path.insert(1, os.getcwd())
sys.path.insert(1, os.path.join(os.getcwd(), "tests"))
from support.tiny import TEXT
from support.tiny_models import KINDS

path, tiny = os.environ["MODEL"], KINDS[os.environ["KIND"]]
if tiny.constants:
    name, sizes = tiny.constants
    getattr(supported_models, name).unet_extra_config = sizes
if tiny.prepare:
    tiny.prepare()

state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={}, metadata=metadata)
model = patcher.model.diffusion_model
dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
formats = [getattr(module, "quant_format", None) for module in model.modules()]
generator = torch.Generator().manual_seed(0)

def made(value):
    "A shape's random tensor, also within a list; a floating tensor in the model's dtype."
    if isinstance(value, list):
        return [made(item) for item in value]
    if isinstance(value, tuple):
        value = torch.randn(value, generator=generator)
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value

def run():
    generator.manual_seed(0)
    latent, inputs = made(tiny.latent), {}
    if tiny.text is not None:
        inputs["context"] = made((1, TEXT, tiny.text))
    inputs |= {name: made(value) for name, value in tiny.further.items()}
    with torch.no_grad():
        out = model(latent, torch.tensor([tiny.time]).to(dtype), **inputs)
    out = out if isinstance(out, (list, tuple)) else [out]
    return torch.cat([tensor.double().flatten() for tensor in out])

rows = Counter()

def count(name, module, given, _):
    "How many rows a linear layer multiplied by."
    rows[name] += given[0].numel() // given[0].shape[-1]

for name, module in model.named_modules():
    if isinstance(module, torch.nn.Linear):
        module.register_forward_hook(partial(count, name))
out = run()
if "OUTPUT" in os.environ:
    torch.save(out, os.environ["OUTPUT"])
print("RESULT", json.dumps({
    "model": type(patcher.model).__name__, "config": type(patcher.model.model_config).__name__,
    "formats": Counter(filter(None, formats)), "rows": rows, "finite": bool(out.isfinite().all()),
    "size": float(out.square().mean().sqrt()), "dtype": str(dtype),
}))
"""
)

if __name__ == "__main__":
    tiny_model(sys.argv[1], Path(sys.argv[2]))
