"""Say what comes next in ComfyUI: where a file goes, and which node loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nvfp4.families import Size, encoder_of, encoder_size
from nvfp4.model import OTHER_PARTS


class Place(NamedTuple):
    """Name a folder of ComfyUI's models/, the node that loads from it, and that node's settings."""

    folder: str
    node: str
    weight_dtype: str | None
    type: str | None = None


DIFFUSION_MODEL = Place("diffusion_models", "Load Diffusion Model", "default")
# What has text encoders or a VAE beside the model.
CHECKPOINT = Place("checkpoints", "Load Checkpoint", None)
ENCODER = Place("text_encoders", "Load CLIP", None)
# Of the types that a text encoder may be loaded as, so many are told.
TOLD_TYPES = 3


def encoder_in(shapes: Mapping[str, tuple[int, ...]]) -> Size | None:
    """Find which text encoder a file is, by {name: shape}; None for what is none."""
    name, size = encoder_of(shapes)
    return encoder_size(name, size) if name else None


def place_of(shapes: Mapping[str, tuple[int, ...]]) -> Place:
    """Find where a file with tensors of these names and shapes goes, prefixes included."""
    if size := encoder_in(shapes):
        return ENCODER._replace(type=next(iter(size.types), None))
    whole = any(name.startswith(OTHER_PARTS) for name in shapes)
    return CHECKPOINT if whole else DIFFUSION_MODEL


def type_text(types: tuple[str, ...]) -> str:
    """Tell what the type of the node may be: ", type a, b or c by the model"; "" for any."""
    *others, last = types[:TOLD_TYPES] or ("",)
    several = f", type {', '.join(others)} or {last} by the model it is for"
    return several if others else f", type {last}" if last else ""


def loading_data(
    shapes: Mapping[str, tuple[int, ...]], *, sharded: bool, known: bool
) -> dict[str, str | None]:
    """Describe the next step, for JSON: folder, node, its settings, and a sentence of these.

    shapes: {name: shape} of all tensors; sharded: whether the file is several; known: whether it is
    of a family that ComfyUI is known to have, or a ComfyUI took it.
    """
    place = place_of(shapes)
    if sharded:
        what = "ComfyUI's loaders take one file, not shards, which are for other programs"
        return {**dict.fromkeys(Place._fields), "text": what}
    setting = f", weight_dtype {place.weight_dtype}" if place.weight_dtype else ""
    if size := encoder_in(shapes):
        setting += type_text(size.types)
    ask = "" if known else "; whether it knows this model, --comfyui DIR tells"
    what = f"into models/{place.folder}; node {place.node}{setting}{ask}"
    return {**place._asdict(), "text": what}
