"""Find what a file is in a pipeline, and estimate its stage on a card."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from pathlib import Path

from nvfp4.cards import CARDS
from nvfp4.errors import ConvertError
from nvfp4.families import ENCODERS, recognise
from nvfp4.fit.estimate import (
    DECODING,
    HALF_BYTES,
    LEAST_ACTIVATIONS,
    MIB,
    RULES,
    SAMPLING,
    DecodingNeed,
    FrameSize,
    SamplingNeed,
    Stage,
    StageKind,
    activations_of,
)
from nvfp4.model import Model, bare, header_text
from nvfp4.options import Options
from nvfp4.read.checkpoint import open_model

# What is sampled where --size says nothing: as documented workflows do, see `calibrate.recipes`.
IMAGE_SIZE: FrameSize = (1024, 1024, 1)
USUAL_SIZES: dict[tuple[str, str], FrameSize] = {
    ("wan", ""): (832, 480, 81),
    ("wan", "TI2V"): (1280, 704, 121),
    ("ltx2", ""): (768, 512, 97),
    ("ltx-video", ""): (768, 512, 97),
    ("hunyuan-video", ""): (848, 480, 25),
    ("cosmos-predict2", ""): (848, 480, 93),
}
# Encoders whose class estimates activations: at least 642 tokens of 3 MiB for LTX-2's
# (comfy/text_encoders/lt.py, memory_estimation_function).
ENCODING: dict[tuple[str, str], int] = {("gemma3", "12B"): 642 * 3 * MIB}


def width_of(model: Model) -> int:
    """Return how wide a model's layers are: the columns that most of its linear layers have."""
    counts = Counter(ref.shape[1] for ref in model.linear_weights)
    return max(counts, key=lambda columns: (counts[columns], columns), default=0)


def need_of(model: Model) -> SamplingNeed | None:
    """Find the row of a model's class, that of the nearest width; None for an unknown model."""
    family, variant = recognise(model)
    names = {bare(name) for name in model.tensors}
    width = width_of(model)
    fitting = [
        row
        for row in SAMPLING
        if row.family == family and (not row.told_by or row.told_by in names)
    ]
    return min(
        fitting,
        key=lambda row: (row.variant != variant, not row.told_by, abs(row.width - width)),
        default=None,
    )


def usual_size(model: Model) -> FrameSize:
    """Tell what a model samples where nobody says it."""
    family, variant = recognise(model)
    usual = USUAL_SIZES.get((family, ""), IMAGE_SIZE)
    return USUAL_SIZES.get((family, variant), usual)


def stage_of(options: Options, model: Model) -> Stage:
    """Estimate what a model or a text encoder needs on the card of --fit besides its weights.

    Raises ConvertError for a model of which ComfyUI's estimate is not known here.
    """
    beside = sum(ref.nbytes for ref in model.beside.values())
    family, variant = recognise(model)
    if family in ENCODERS:
        why = f"the least that {RULES} keep free, or what LTX-2's encoder estimates"
        return Stage(
            kind=StageKind.ENCODES, card=options.fit,
            activations=ENCODING.get((family, variant), LEAST_ACTIVATIONS),
            size=None, beside=beside, why=why,
        )  # fmt: skip
    row = need_of(model)
    if row is None:
        raise ConvertError(
            f"{options.source}: --fit knows no estimate of ComfyUI's for this model; give "
            "--target-size, about the card's memory less a third"
        )
    size = options.size or usual_size(model)
    why = f"{row.comfy_class}: memory_usage_factor {row.factor:g} x {row.places(size)} places"
    return Stage(
        kind=StageKind.SAMPLES, card=options.fit,
        activations=activations_of(row, width_of(model), size),
        size=size, beside=beside, why=f"{why} of the latent, by {RULES}",
    )  # fmt: skip


def decoding_of(model: Model) -> DecodingNeed | None:
    """Find the row of a VAE, by its tensors; None for what is no VAE that a row knows."""
    header = header_text({name: ref.shape for name, ref in model.tensors.items()})
    for row in DECODING:
        if all(re.search(rf"^{key}", header, re.MULTILINE) for key in row.keys):
            return row
    return None


def vae_in(path: Path) -> Model | None:
    """Read the headers of a file that is a VAE; None for any other, and for what cannot be read."""
    try:
        model = open_model(path)
    except (ConvertError, OSError):
        return None
    is_whole = not recognise(model)[0] and not model.quantised
    return model if is_whole and decoding_of(model) else None


def stage_of_vae(options: Options, model: Model, size: FrameSize | None) -> tuple[Stage, int]:
    """Estimate what a VAE needs to decode on the card, and the bytes of its weights there.

    size: what is decoded; None for what is usual.

    ComfyUI casts a VAE when it loads it, whatever its file has: to the first 16-bit dtype of its
    class that the card has, else to float32.
    """
    row = decoding_of(model)
    size = size or (USUAL_SIZES["wan", ""] if row.is_video else IMAGE_SIZE)
    has = ("float16",) if options.card and CARDS[options.card].half == "float16" else row.halves
    item = HALF_BYTES if {*has} & {*row.halves} else 2 * HALF_BYTES
    count = sum(prod(ref.shape) for ref in model.tensors.values())
    stage = Stage(
        kind=StageKind.DECODES, card=options.fit, activations=row.needs(size, item), size=size,
        why=f"{row.title}'s memory_used_decode in {8 * item} bits, by {RULES}",
    )  # fmt: skip
    return stage, item * count
