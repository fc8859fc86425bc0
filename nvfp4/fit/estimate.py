"""Estimate what ComfyUI needs on a card in each stage, by its own rules: plain arithmetic.

ComfyUI holds the parts of a pipeline one after another: the text encoder while it encodes, one
model while it samples, the VAE while it decodes. It loads a part whole where the card's free memory
holds the part, what the class of the model estimates for its activations, and a reserve
(comfy/model_management.py, load_models_gpu); what is beyond that stays in main memory, and comes
to the card in every step. Where DynamicVRAM is on, weights stay as far as there is room, and these
estimates are of what activations leave to them.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import NamedTuple

from nvfp4.comfy_memory import DECODING_ROWS, MEMORY_VERSIONS, SAMPLING_ROWS
from nvfp4.errors import gigabytes

MIB, GIB = 1 << 20, 1 << 30
# What ComfyUI leaves free for other programs, on Windows, where it is more than elsewhere, and on
# cards of more memory (comfy/model_management.py, EXTRA_RESERVED_VRAM); --reserve-vram changes it.
RESERVE, RESERVE_MORE, LARGE_CARD = 600 * MIB, 100 * MIB, 15 * GIB
# What it keeps free at least for activations (comfy/model_management.py, minimum_inference_memory).
LEAST_ACTIVATIONS = round(0.8 * GIB)
# What CUDA and torch held by themselves, beside all tensors, on an H200 (docs/pipelines.md).
CONTEXT = 700 * MIB
# Bytes of activations for each place of the latent, each byte of the dtype and each unit of
# memory_usage_factor (comfy/model_base.py, memory_required, where attention is memory-efficient).
PLACE_BYTES = 0.01 * MIB
# Activations are 16-bit.
HALF_BYTES = 2
# Bytes that a second moves to the card over PCIe 4.0 x16, the most that the standard allows.
PCIE_RATE = 31.5e9
# Frames are made smaller before width and height, as long as this many are left.
LEAST_FRAMES = 25
# Frames are told as one more than a multiple of this many, which models of 4, 6 and 8 frames for a
# place of the latent take.
FRAME_STEP = 24
# Width and height are told in multiples of so many pixels, which every model takes.
SIDE_STEP = 32
# Where the figures come from, for reports.
RULES = f"ComfyUI {MEMORY_VERSIONS[-1]}'s own rules"

# Width, height and frames.
FrameSize = tuple[int, int, int]


class StageKind(enum.Enum):
    """Say what ComfyUI does while a part is on the card."""

    ENCODES = "text encoder"
    SAMPLES = "model"
    DECODES = "VAE"


class SamplingNeed(NamedTuple):
    """Hold a row of SAMPLING_ROWS: what a model's class says of its activations.

    told_by: a tensor that others of the same family, variant and width lack; "" where there are
    none. factor: memory_usage_factor. space, time: pixels and frames for each place of the latent.
    """

    family: str
    variant: str
    width: int
    told_by: str
    comfy_class: str
    factor: float
    space: int
    time: int
    is_video: bool

    def places(self, size: FrameSize) -> int:
        """Count the places of the latent of a picture or a video."""
        width, height, frames = size
        return (width // self.space) * (height // self.space) * (-(-(frames - 1) // self.time) + 1)


class DecodingNeed(NamedTuple):
    """Hold a row of DECODING_ROWS: what a VAE needs to decode a latent.

    keys: lines of a header that tell the VAE. halves: its 16-bit dtypes, the first that a card has
    is taken. steps: (latent frames, bytes for a place and a byte of the dtype, more for each frame
    beyond these), by frames.
    """

    title: str
    keys: tuple[str, ...]
    space: int
    time: int
    is_video: bool
    halves: tuple[str, ...]
    steps: tuple[tuple[int, float, float], ...]

    def needs(self, size: FrameSize, item: int) -> int:
        """Estimate the bytes of decoding; item: bytes of a number, 2 or 4."""
        width, height, frames = size
        latent = -(-(frames - 1) // self.time) + 1 if self.is_video else 1
        first, value, slope = next(step for step in reversed(self.steps) if step[0] <= latent)
        places = (width // self.space) * (height // self.space)
        return round(places * (value + slope * (latent - first)) * item)


SAMPLING = tuple(SamplingNeed(*row) for row in SAMPLING_ROWS)
DECODING = tuple(DecodingNeed(*row) for row in DECODING_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Hold what one part of a pipeline needs on a card besides its weights, in bytes.

    card: the card's memory. activations: what ComfyUI estimates; why: where that is from. size: of
    what is sampled or decoded; None for text. beside: bytes of the file that are not on the card in
    this stage, such as the VAE of a checkpoint.
    """

    kind: StageKind
    card: int
    activations: int
    size: FrameSize | None
    beside: int = 0
    why: str = ""

    @property
    def reserve(self) -> int:
        """Count the bytes that ComfyUI leaves free, and those of CUDA and torch."""
        return RESERVE + RESERVE_MORE * (self.card > LARGE_CARD) + CONTEXT

    @property
    def budget(self) -> int:
        """Count the bytes that are left for the weights of the part; below 0 where none are."""
        return self.card - self.activations - self.reserve

    @property
    def told(self) -> str:
        """Say what the card's memory goes to besides weights, to follow "where"."""
        return (
            f"a card of {card_told(self.card)} with {gigabytes(self.activations)} of activations "
            f"({frames_told(self.size)}) and {gigabytes(self.reserve)} of reserve"
        )

    def left(self, nbytes: int) -> int:
        """Count the bytes of the card that a file of so many bytes leaves free."""
        return self.budget - (nbytes - self.beside)


def activations_of(row: SamplingNeed, width: int, size: FrameSize) -> int:
    """Estimate what sampling takes besides weights, in bytes, by ComfyUI's formula.

    A width that no row has is taken in proportion, as ComfyUI's own factors are.
    """
    factor = row.factor * (width / row.width if row.width else 1)
    needs = row.places(size) * HALF_BYTES * PLACE_BYTES * factor
    return max(LEAST_ACTIVATIONS, math.ceil(needs))


def card_told(card: int) -> str:
    """Write a card's memory as cards are sold: "16 GB" for 16 GiB."""
    return f"{round(card / GIB, 2):g} GB"


def frames_told(size: FrameSize | None) -> str:
    """Write a size as it is typed: "832x480x81", of one frame "1024x1024"."""
    if size is None:
        return "text"
    return "x".join(map(str, size[: 2 if size[2] == 1 else 3]))


def memory_told(stage: Stage, nbytes: int) -> str:
    """Say in one line what a card's memory goes to, by estimate.

    nbytes: of the file that is written.
    """
    weights, left = gigabytes(nbytes - stage.beside), stage.left(nbytes)
    of_what = f"activations ({frames_told(stage.size)})"
    room = f"{gigabytes(left)} left" if left >= 0 else f"{gigabytes(-left)} too much"
    return (
        f"of {gigabytes(stage.card)} (a card of {card_told(stage.card)}): {weights} weights, "
        f"{gigabytes(stage.activations)} {of_what}, {gigabytes(stage.reserve)} reserve, {room} "
        f"(estimate by {RULES})"
    )


def offloaded(nbytes: int) -> str:
    """Say what it costs where so many bytes of a part do not fit on the card."""
    seconds = nbytes / PCIE_RATE
    return (
        f"ComfyUI moves {gigabytes(nbytes)} to the card in every step (at least {seconds:.1f} s "
        "over PCIe 4.0 x16)"
    )


def smaller_size(stage: Stage, weights: int) -> str:
    """Name a size whose activations leave room for so many bytes of weights; "" where none does.

    Frames are given up first, as far as LEAST_FRAMES, then width and height.
    """
    room = stage.card - stage.reserve - weights
    if stage.size is None or room < LEAST_ACTIVATIONS:
        return ""
    width, height, frames = stage.size
    share = room / stage.activations
    share = min(share, 1.0)
    fewer = int(frames * share * 0.97 - 1) // FRAME_STEP * FRAME_STEP + 1
    if fewer >= LEAST_FRAMES:
        return frames_told((width, height, fewer))
    side = math.sqrt(share * 0.97)
    smaller = (int(one * side) // SIDE_STEP * SIDE_STEP for one in (width, height))
    return frames_told((*smaller, frames))


def stage_data(stage: Stage, nbytes: int) -> dict[str, object]:
    """Make a stage JSON-ready, in bytes; nbytes: of the file that is on the card in it."""
    return {
        "part": stage.kind.value,
        "card": stage.card,
        "weights": nbytes - stage.beside,
        "activations": stage.activations,
        "reserve": stage.reserve,
        "left": stage.left(nbytes),
        "size": frames_told(stage.size),
        "why": stage.why,
    }
