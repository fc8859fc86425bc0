"""Writes nvfp4/comfy_memory.py: what ComfyUI reserves on a card while it samples and decodes.

usage: python tests/support/make_memory.py CHECKOUT [CHECKOUT ...]     (of ComfyUI, any versions)

Each file of tests/families is given to the detection of each checkout, the factor of its memory
estimate is taken from the class that it finds, and the newest checkout that knows a model decides.
VAEs are built as ComfyUI's loader builds them, and their own estimates are evaluated. `ruff format`
lays the table out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvfp4.asking.find import version_of
from nvfp4.families import FAMILIES as FAMILY_ROWS
from nvfp4.families import recognise
from nvfp4.fit.needs import width_of
from nvfp4.model import Model, TensorRef
from support.make_families import import_comfyui, read_headers
from support.paths import FAMILIES, ROOT

TABLE = ROOT / "nvfp4" / "comfy_memory.py"
# VAEs in the order of ComfyUI's loader (comfy/sd.py, VAE.__init__): lines of `header_text` that
# tell a file, and the tensors that the loader looks for.
UP = {"decoder.up.3.upsample.conv.weight": (512, 512, 3, 3)}
VAES = {
    "LTX-Video": (
        (r"decoder\.up_blocks\.0\.res_blocks\.0\.conv1\.conv\.weight ",),
        {"decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": (1024, 1024, 3, 3, 3)},
    ),
    "HunyuanImage 2.1": (
        (r"decoder\.conv_in\.weight \[\d+, 64, ",), {"decoder.conv_in.weight": (1024, 64, 3, 3)},
    ),
    "Flux 2": (
        (r"decoder\.conv_in\.weight \[\d+, 32, ", r"bn\.running_mean "),
        {"decoder.conv_in.weight": (512, 32, 3, 3), "bn.running_mean": (128,),
         "post_quant_conv.weight": (32, 32, 1, 1), **UP},
    ),
    "Flux": (
        (r"decoder\.conv_in\.weight \[\d+, 16, \d+, \d+\]",),
        {"decoder.conv_in.weight": (512, 16, 3, 3), **UP},
    ),
    "Stable Diffusion": (
        (r"decoder\.conv_in\.weight \[\d+, 4, \d+, \d+\]",),
        {"decoder.conv_in.weight": (512, 4, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1), **UP},
    ),
    "Hunyuan Video 1.5": (
        (r"decoder\.conv_in\.conv\.weight \[\d+, 32, ",),
        {"decoder.conv_in.conv.weight": (1024, 32, 3, 3, 3)},
    ),
    "Hunyuan Video": (
        (r"decoder\.conv_in\.conv\.weight \[\d+, 16, ", r"post_quant_conv\.weight "),
        {"decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
         "post_quant_conv.weight": (16, 16, 1, 1, 1)},
    ),
    "Wan 2.2 TI2V": (
        (r"decoder\.middle\.0\.residual\.0\.gamma ",
         r"decoder\.upsamples\.0\.upsamples\.0\.residual\.2\.weight "),
        {"decoder.middle.0.residual.0.gamma": (1024, 1, 1, 1),
         "decoder.upsamples.0.upsamples.0.residual.2.weight": (1024, 1024, 3, 3, 3)},
    ),
    "Wan 2.1 and Qwen-Image": (
        (r"decoder\.middle\.0\.residual\.0\.gamma ", r"encoder\.conv1\.weight "),
        {"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
         "decoder.head.0.gamma": (96, 1, 1, 1), "encoder.conv1.weight": (96, 3, 3, 3, 3),
         "decoder.head.2.weight": (3, 96, 3, 3, 3)},
    ),
}  # fmt: skip
# Frames for each place of the latent of models whose latent format does not say it, by their VAE
# (comfy/sd.py, upscale_ratio).
TIME_OF_VAE = {"SeedVR2": 4}
# Further than the frames at which any VAE's estimate changes its slope.
FRAMES = 40


def sampled(path: Path) -> list | None:
    """[ComfyUI's class, factor, scale in space and in time, is a video] of a file's model."""
    import torch
    from comfy.model_detection import model_config_from_unet

    shapes = read_headers(path)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        config = model_config_from_unet(state, "")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    if config is None:
        return None
    # Some classes settle their factor there.
    config.set_inference_dtype(torch.bfloat16, None)
    latent = config.latent_format
    space, time = latent.spacial_downscale_ratio, latent.temporal_downscale_ratio
    kind = type(config).__name__
    time = TIME_OF_VAE.get(kind, time)
    return [kind, config.memory_usage_factor, space, time, latent.latent_dimensions == 3]


def decoded(tensors: dict[str, tuple[int, ...]]) -> list:
    """[scale in space and in time, is a video, 16-bit dtypes, steps] of a VAE."""
    import comfy.sd
    import torch

    # Only what builds the decoder is there: the rest is missing, and none of it is used.
    vae = comfy.sd.VAE(sd={name: torch.zeros(shape) for name, shape in tensors.items()})
    is_video = vae.latent_dim == 3
    ratio = vae.upscale_ratio
    space = ratio if isinstance(ratio, int) else ratio[1]
    time = 1 if isinstance(ratio, int) else round((ratio[0](101) - ratio[0](1)) / 100)

    def places(frames: int) -> float:
        frame = (frames,) if is_video else ()
        shape = (1, vae.latent_channels, *frame, 10, 10)
        return vae.memory_used_decode(shape, torch.float16) / 200

    values = [places(frames) for frames in range(1, (FRAMES if is_video else 1) + 1)]
    halves = [str(dtype)[6:] for dtype in vae.working_dtypes if dtype.itemsize == 2]
    return [space, time, is_video, halves, steps_of(values)]


def steps_of(values: list[float]) -> list[list[float]]:
    """[[frames, value, more for each frame after it]] of values for 1, 2, ... frames."""
    steps = [[1, values[0], 0.0]]
    for frames, value in enumerate(values[1:], 2):
        first, begin, slope = steps[-1]
        more = value - begin
        is_steady = frames == len(values) or values[frames] - value == more
        if frames == first + 1 and is_steady:
            steps[-1][2] = more
        elif value != begin + slope * (frames - first):
            steps.append([frames, value, 0.0])
    return steps


def walk() -> None:
    """Print what one checkout says, as JSON behind RESULT."""
    import_comfyui()
    rows = {path.stem: sampled(path) for path in sorted(FAMILIES.glob("*.txt"))}
    vaes = {title: decoded(tensors) for title, (_, tensors) in VAES.items()}
    print("RESULT", json.dumps({"rows": rows, "vaes": vaes}))


def walked(checkout: str) -> dict:
    """What `walk` finds in one checkout of ComfyUI."""
    command = [sys.executable, str(Path(__file__).resolve()), "--walk"]
    environment = os.environ | {"COMFYUI_ROOT": checkout}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def model_of(path: Path) -> Model:
    """The model of a file of tests/families, without values."""
    refs = {
        name: TensorRef(name=name, dtype="BF16", shape=shape, path=path, begin=0, nbytes=1)
        for name, shape in read_headers(path).items()
    }
    return Model(tensors=refs, metadata={}, files=())


def told_by(models: dict[str, Model], stem: str, others: list[str]) -> str:
    """The first tensor that a model has and the others of its family lack; "" where all agree."""
    if not others:
        return ""
    there = set.union(*(set(models[other].tensors) for other in others))
    return next(iter(sorted(models[stem].tensors.keys() - there, key=len)), "")


def render(versions: list[str], rows: list[tuple], vaes: list[tuple]) -> str:
    """The module's source."""
    lines = [
        '"""What ComfyUI reserves on a card while it samples and decodes: tables of data.',
        "",
        "Made by `tests/support/make_memory.py` of ComfyUI's own classes: run that instead of",
        "editing. `fit.estimate` says what the figures mean and looks them up.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "# The ComfyUI that the figures are of; where they differ, those of the last one.",
        f"MEMORY_VERSIONS = {tuple(versions)!r}",
        "# (family, variant, width of its layers, a tensor that others of the same lack, ComfyUI's",
        "# class, memory_usage_factor, pixels and frames for each place of the latent, whether it",
        "# is a video): comfy/supported_models.py and comfy/latent_formats.py.",
        "SAMPLING_ROWS = (",
        *(f"    {row!r}," for row in rows),
        ")",
        "# (VAE, lines of a header that tell it, pixels and frames for each place, whether it is a",
        "# video, its 16-bit dtypes, ((latent frames, bytes for a place and a byte of the dtype,",
        "# more for each further frame), ...)): comfy/sd.py, memory_used_decode.",
        "DECODING_ROWS = (",
        *(f"    {row!r}," for row in vaes),
        ")",
    ]
    return "\n".join(lines) + "\n"


def main(checkouts: list[str]) -> None:
    """Put together what the checkouts say, the newest last, and write the table."""
    versions = {version_of(Path(checkout)): walked(checkout) for checkout in checkouts}
    ordered = sorted(versions, key=lambda text: tuple(map(int, text.split("."))))
    found, vaes = {}, {}
    for version in ordered:
        for stem, row in versions[version]["rows"].items():
            if row is not None:
                found[stem] = row
        vaes |= versions[version]["vaes"]
    rows, models = {}, {stem: model_of(FAMILIES / f"{stem}.txt") for stem in found}
    for stem, (kind, factor, *scales) in found.items():
        family, variant = recognise(models[stem])
        key, figures = (family, variant, width_of(models[stem])), (round(factor, 6), *scales)
        # Width and height say nothing of a sound's or a shape's latent.
        if family in FAMILY_ROWS and {"image", "video"} & {*FAMILY_ROWS[family].makes}:
            rows.setdefault(key, {}).setdefault(figures, []).append((kind, stem))
    listed = []
    for key, alike in sorted(rows.items()):
        for figures, named in alike.items():
            others = [stem for group in alike.values() if group is not named for _, stem in group]
            kind = min((kind for kind, _ in named), key=lambda name: (len(name), name))
            listed.append((*key, told_by(models, named[0][1], others), kind, *figures))
    told = [
        (title, VAES[title][0], space, time, is_video, tuple(halves), tuple(map(tuple, steps)))
        for title, (space, time, is_video, halves, steps) in vaes.items()
    ]
    TABLE.write_text(render(ordered, listed, told), encoding="utf-8", newline="\n")
    print(len(listed), "models,", len(told), "VAEs")


if __name__ == "__main__":
    walk() if sys.argv[1:] == ["--walk"] else main(sys.argv[1:])
