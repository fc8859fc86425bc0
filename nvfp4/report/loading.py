"""Say what comes next in ComfyUI: where a file goes, and which node loads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nvfp4.model import OTHER_PARTS


class Place(NamedTuple):
    """Name a folder of ComfyUI's models/, the node that loads from it, and that node's setting."""

    folder: str
    node: str
    weight_dtype: str | None


DIFFUSION_MODEL = Place("diffusion_models", "Load Diffusion Model", "default")
# What has text encoders or a VAE beside the model.
CHECKPOINT = Place("checkpoints", "Load Checkpoint", None)


def place_of(names: Iterable[str]) -> Place:
    """Find where a file with tensors of these names goes, prefixes included."""
    whole = any(name.startswith(OTHER_PARTS) for name in names)
    return CHECKPOINT if whole else DIFFUSION_MODEL


def loading_data(names: Iterable[str], *, sharded: bool, known: bool) -> dict[str, str | None]:
    """Describe the next step, for JSON: folder, node, weight_dtype, and a sentence of these.

    sharded: whether the file is several; known: whether it is of a family that ComfyUI is known to
    have, or a ComfyUI took it.
    """
    place = place_of(names)
    if sharded:
        what = "ComfyUI's loaders take one file, not shards, which are for other programs"
        return {"folder": None, "node": None, "weight_dtype": None, "text": what}
    setting = f", weight_dtype {place.weight_dtype}" if place.weight_dtype else ""
    ask = "" if known else "; whether it knows this model, --comfyui DIR tells"
    what = f"into models/{place.folder}; node {place.node}{setting}{ask}"
    return {**place._asdict(), "text": what}
