"""Estimate what fits into a card's memory beside what ComfyUI reserves there: --fit.

Import from here what other rooms need; `estimate` has the arithmetic, and `needs` finds a file's
part in a pipeline.
"""

from nvfp4.fit.estimate import (
    Stage,
    StageKind,
    card_told,
    frames_told,
    memory_told,
    offloaded,
    smaller_size,
    stage_data,
)
from nvfp4.fit.needs import size_notes, stage_of, stage_of_vae, vae_in

__all__ = [
    "Stage",
    "StageKind",
    "card_told",
    "frames_told",
    "memory_told",
    "offloaded",
    "size_notes",
    "smaller_size",
    "stage_data",
    "stage_of",
    "stage_of_vae",
    "vae_in",
]
