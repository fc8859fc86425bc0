"""Say how each documented model is sampled: what its shipped workflow is made of, a row each."""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4.errors import ConvertError
from nvfp4.families import ROWS, recognise
from nvfp4.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Describe how a model is usually sampled, as ComfyUI's own templates do it.

    clip: the type that its text encoders are loaded as; encoders: how many files they are.
    latent: the node that makes its empty latents; size: usual width, height and frames.
    shift: the node that shifts its noise schedule and the shift; None for the model's own.
    sigmas: the node that makes its noise schedule, with inputs of its own; "" for `scheduler`.
    guidance: for models that take a guidance scale as an input; None for others.
    frame_rate: for models that are told it; 0 for others.
    image_latent: the node that makes its latents of an image by a VAE; "" for models without.
    needs_image: whether it makes videos of images alone; that node changes the conditioning, too.
    """

    clip: str
    latent: str
    size: tuple[int, int, int]
    steps: int = 20
    cfg: float = 1.0
    encoders: int = 1
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: tuple[str, float] | None = None
    sigmas: str = ""
    guidance: float | None = None
    frame_rate: float = 0.0
    image_latent: str = ""
    needs_image: bool = False


WAN_SHIFT = ("ModelSamplingSD3", 8.0)
VIDEO_LATENT, IMAGE_LATENT = "EmptyHunyuanLatentVideo", "EmptySD3LatentImage"
# Nodes that make latents of one frame, and take no length.
IMAGE_LATENTS = (IMAGE_LATENT, "EmptyFlux2LatentImage")
# {(family, variant): how it is sampled}. Variants that are given more than a text, such as those
# that edit images, have none: without that, their inputs would not be what they see later.
SAMPLINGS = {
    ("wan", "T2V"): Sampling(
        clip="wan", latent=VIDEO_LATENT, size=(832, 480, 81), cfg=3.5, shift=WAN_SHIFT
    ),
    ("wan", "I2V"): Sampling(
        clip="wan",
        latent=VIDEO_LATENT,
        size=(832, 480, 81),
        cfg=3.5,
        shift=WAN_SHIFT,
        image_latent="WanImageToVideo",
        needs_image=True,
    ),
    ("wan", "TI2V"): Sampling(
        clip="wan",
        latent=VIDEO_LATENT,
        size=(1280, 704, 121),
        cfg=5.0,
        sampler="uni_pc",
        shift=WAN_SHIFT,
        image_latent="Wan22ImageToVideoLatent",
    ),
    ("qwen-image", ""): Sampling(
        clip="qwen_image",
        latent=IMAGE_LATENT,
        size=(1328, 1328, 1),
        cfg=2.5,
        shift=("ModelSamplingAuraFlow", 3.1),
    ),
    ("flux2", ""): Sampling(
        clip="flux2",
        latent="EmptyFlux2LatentImage",
        size=(1024, 1024, 1),
        sigmas="Flux2Scheduler",
        guidance=4.0,
    ),
    ("flux", "dev"): Sampling(
        clip="flux", encoders=2, latent=IMAGE_LATENT, size=(1024, 1024, 1), guidance=3.5
    ),
    ("flux", "schnell"): Sampling(
        clip="flux", encoders=2, latent=IMAGE_LATENT, size=(1024, 1024, 1), steps=4
    ),
    ("z-image", ""): Sampling(
        clip="lumina2",
        latent=IMAGE_LATENT,
        size=(1024, 1024, 1),
        steps=9,
        sampler="res_multistep",
        shift=("ModelSamplingAuraFlow", 3.0),
    ),
    ("ltx-video", ""): Sampling(
        clip="ltxv",
        latent="EmptyLTXVLatentVideo",
        size=(768, 512, 97),
        steps=30,
        cfg=3.0,
        sigmas="LTXVScheduler",
        frame_rate=25.0,
    ),
}


def sampling_of(model: Model) -> Sampling:
    """Find how a model is sampled. Raises ConvertError for one that no row is for."""
    family, variant = recognise(model)
    found = SAMPLINGS.get((family, variant))
    if found is None:
        title = f"{ROWS[family].title} {variant}".strip() if family else "of no known family"
        raise ConvertError(
            f"{model.files[0]}: is {title}, for which no workflow comes with the program; give "
            "your own by --workflow"
        )
    return found
