"""Small random models of published families, which ComfyUI recognises, loads and runs on the CPU.

usage: python tests/support/tiny_models.py KIND OUT.safetensors     (KIND: one of KINDS)

The names come from tests/families, shrunk: fewer blocks, narrower layers. LOAD_AND_RUN, run as
`python -c` with MODEL, KIND and COMFYUI_ROOT in the environment, loads such a file, or one
converted from it, and prints "RESULT {json}". Families whose widths ComfyUI does not read from the
file, but has as constants, are listed in its CONSTANTS, which it changes before loading.
"""

import json
import math
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.comfyui import PREAMBLE
from support.make_families import Shapes, read_headers
from support.paths import FAMILIES

BLOCK = re.compile(r"(?:\w*blocks|layers)\.(\d+)\.")
WAN_14B = {5120: 256, 13824: 512}
FLUX = {3072: 256}
QWEN = {3072: 256}
LTX2_CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 128, "cross_attention_dim": 256,
    "audio_num_attention_heads": 2, "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 128, "caption_channels": 256, "connector_num_attention_heads": 2,
}  # fmt: skip

# {kind: (published model, {its width: the small one}, blocks, metadata)}. A multiple of a width
# shrinks with it; the first width that divides a size counts, and a size that none divides stays.
KINDS: dict[str, tuple[str, dict[int, int], int, dict[str, str] | None]] = {
    "wan_t2v": ("wan21_t2v_14b", WAN_14B, 6, None),
    "wan_i2v": ("wan21_i2v_14b", WAN_14B, 6, None),
    "wan_ti2v": ("wan22_ti2v_5b", {3072: 256, 14336: 512}, 6, None),
    "wan_vace": ("wan21_vace_14b", WAN_14B, 6, None),
    "qwen_image": ("qwen_image", QWEN, 4, None),
    "qwen_image_edit_2511": ("qwen_image_edit_2511", QWEN, 4, None),
    "flux": ("flux_dev", FLUX, 4, None),
    "flux2": ("flux2_dev", {6144: 256}, 4, None),
    "z_image": ("z_image", {3840: 256, 10240: 768, 1024: 256}, 6, None),
    "chroma": ("chroma", {3072: 256, 5120: 256}, 4, None),
    "hunyuan_video": ("hunyuan_video", FLUX, 4, None),
    "anima": ("anima", {1024: 128}, 6, None),
    "ltx2": (
        "ltx2",
        {4096: 256, 2048: 128, 3840: 256},
        4,
        {"config": json.dumps({"transformer": LTX2_CONFIG})},
    ),
}


def shrink(shapes: Shapes, widths: dict[int, int], blocks: int) -> Shapes:
    """The first blocks of each list of them, made narrower."""

    def narrow(size: int) -> int:
        for width, small in widths.items():
            if size and size % width == 0:
                return size // width * small
        return size

    kept = {}
    for name, shape in shapes.items():
        block = BLOCK.match(name)
        if block is None or int(block[1]) < blocks:
            kept[name] = tuple(narrow(size) for size in shape)
    return kept


def values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random values with which a layer's outputs are about as large as its inputs."""
    tensor = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return (tensor * math.prod(shape[1:]) ** -0.5).bfloat16()
    return (tensor * 0.02 + name.endswith((".weight", ".scale"))).bfloat16()


def tiny_model(kind: str, path: Path, seed: int = 0) -> Path:
    """A small model of that kind in bfloat16, the same one for the same seed."""
    family, widths, blocks, metadata = KINDS[kind]
    shapes = shrink(read_headers(FAMILIES / f"{family}.txt"), widths, blocks)
    generator = torch.Generator().manual_seed(seed)
    state = {name: values(name, shape, generator) for name, shape in shapes.items()}
    save_file(state, path, metadata)
    return Path(path)


LOAD_AND_RUN = (
    PREAMBLE
    + """
from collections import Counter
from functools import partial
import comfy.ldm.anima.model as anima
from comfy import supported_models

path, kind = os.environ["MODEL"], os.environ["KIND"]

# What ComfyUI does not read from a file: {kind: (class, sizes added to what it detects)}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 128}
CONSTANTS = {
    "qwen_image": ("QwenImage", HEADS),
    "qwen_image_edit_2511": ("QwenImage", HEADS),
    "z_image": ("ZImage", {
        "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
        "time_scale": 1000.0, "pad_tokens_multiple": 32}),
    "chroma": ("Chroma", {"hidden_dim": 256, "out_dim": 256}),
    "anima": ("Anima", {"num_heads": 2, "num_blocks": 6, "crossattn_emb_channels": 128}),
}
if kind in CONSTANTS:
    name, sizes = CONSTANTS[kind]
    getattr(supported_models, name).unet_extra_config = sizes
supported_models.ZImage.unet_config["dim"] = 256  # by its width alone it differs from Lumina 2
small = {"source_dim": 128, "target_dim": 128, "model_dim": 128, "num_heads": 2}
anima.LLMAdapter = partial(anima.LLMAdapter, **small)

# {kind: (latent's shape, its text's width, further inputs: a shape, or the value itself)}
VIDEO, IMAGE, TEXT = (3, 8, 8), (8, 16), 64
FLUX = {"y": (1, 768), "guidance": torch.tensor([3.5])}
INPUTS = {
    "wan_t2v": ((1, 16, *VIDEO), 4096, {}),
    "wan_i2v": ((1, 36, *VIDEO), 4096, {"clip_fea": (1, 257, 1280)}),
    "wan_ti2v": ((1, 48, *VIDEO), 4096, {}),
    "wan_vace": ((1, 16, *VIDEO), 4096,
                 {"vace_context": (1, 1, 96, *VIDEO), "vace_strength": [1.0]}),
    "qwen_image": ((1, 16, 1, *IMAGE), 3584, {}),
    "qwen_image_edit_2511": ((1, 16, 1, *IMAGE), 3584, {"ref_latents": [(1, 16, 1, *IMAGE)]}),
    "flux": ((1, 16, *IMAGE), 4096, FLUX),
    "flux2": ((1, 128, *IMAGE), 15360, {"guidance": FLUX["guidance"]}),
    "z_image": ((1, 16, *IMAGE), 2560, {"num_tokens": TEXT}),
    "chroma": ((1, 16, *IMAGE), 4096, {"guidance": torch.tensor([0.0])}),
    "hunyuan_video": ((1, 16, *VIDEO), 4096, FLUX),
    "anima": ((1, 16, 1, *IMAGE), 128, {"t5xxl_ids": torch.arange(TEXT)[None]}),
    "ltx2": ([(1, 128, *VIDEO), (1, 8, 4, 16)], 512, {"attention_mask": None}),
}

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
    latent, width, further = INPUTS[kind]
    latent, context = made(latent), made((1, TEXT, width))
    further = {name: made(value) for name, value in further.items()}
    time = torch.tensor([500.0 if kind.startswith("wan") else 0.5]).to(dtype)
    with torch.no_grad():
        out = model(latent, time, context=context, **further)
    out = out if isinstance(out, list) else [out]
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
