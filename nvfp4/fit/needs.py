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
    frames_told,
)
from nvfp4.model import Model, bare, header_text
from nvfp4.notes import Note, Rank
from nvfp4.options import Options
from nvfp4.read.checkpoint import open_model
from nvfp4.tokens import RUNS

# What is sampled where --size says nothing and no run of `tokens` tells it.
IMAGE_SIZE: FrameSize = (1024, 1024, 1)
# Variants that are used otherwise than their family, whose size `tokens` has: as ComfyUI's workflow
# templates set them.
OTHER_SIZES: dict[tuple[str, str], FrameSize] = {
    ("wan", "TI2V"): (1280, 704, 121),
    ("hunyuan-video", "Image 2.1"): (2048, 2048, 1),
    ("kandinsky5", "Image"): IMAGE_SIZE,
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


def usual_size(family: str, variant: str = "") -> FrameSize:
    """Tell what a family's models sample where nobody says it: the size of its typical run."""
    if (family, variant) in OTHER_SIZES:
        return OTHER_SIZES[family, variant]
    title = RUNS[family].title if family in RUNS else ""
    found = re.match(r"(?:(\d+) frames of )?(\d+) x (\d+)", title)
    return (int(found[2]), int(found[3]), int(found[1] or 1)) if found else IMAGE_SIZE


def size_notes(options: Options, model: Model) -> tuple[Note, ...]:
    """Say which size --fit takes where --size does not give all of it."""
    family, variant = recognise(model)
    usual = usual_size(family, variant)
    if family in ENCODERS:
        return ()
    if options.size is None:
        what = f"--fit counts on {frames_told(usual)}, as no --size is given"
        return (Note(what, Rank.NOTE),)
    if options.size[2] == 1 < usual[2]:
        whole = frames_told((*options.size[:2], usual[2]))
        what = f"--fit counts on one frame; for {usual[2]} of them give --size {whole}"
        return (Note(what, Rank.NOTE),)
    return ()


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
            f"{options.source}: --fit has no estimate of this model's activations, which it has of "
            "known models of images and videos; give --target-size"
        )
    size = options.size or usual_size(family, variant)
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
    size = size or (usual_size("wan") if row.is_video else IMAGE_SIZE)
    has = ("float16",) if options.card and CARDS[options.card].half == "float16" else row.halves
    item = HALF_BYTES if {*has} & {*row.halves} else 2 * HALF_BYTES
    count = sum(prod(ref.shape) for ref in model.tensors.values())
    stage = Stage(
        kind=StageKind.DECODES, card=options.fit, activations=row.needs(size, item), size=size,
        why=f"{row.title}'s memory_used_decode in {8 * item} bits, by {RULES}",
    )  # fmt: skip
    return stage, item * count
