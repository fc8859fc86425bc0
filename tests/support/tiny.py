"""What the tables of small models say of each: tiny_image.py, tiny_video.py, tiny_unet.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tiny:
    """A small model, made of a published one, and what it is run with.

    model: a row of the published models; its names and shapes are shrunk.
    widths: {its width: the small one}. A multiple of a width shrinks with it; the first width that
        divides a size counts, and a size that none divides stays.
    blocks: how many are left of each list of blocks.
    latent: the shape of its input, or several of them.
    text: the width of its text; None for a model that is given none.
    further: more inputs: a shape, or the value itself.
    time: the time step that it is given.
    counts: {tokens: how many}, as `tokens` names them, where they differ from TOKENS; None where
        that depends on values, as of experts.
    constants: what ComfyUI does not read from a file: (class, {argument: value}).
    prepare: changes more of ComfyUI before it loads the model.
    metadata: the header's.
    last: the published block that becomes the last one, where that differs from the others.
    without: names that a model with fewer blocks lacks: a regular expression for their beginning.
    counted: whether every layer multiplies a number of tokens that `tokens` has a name for.
    lists: a regular expression for the names of its lists of blocks. In a UNet, blocks of its
        transformers: the numbers of its own tell where the resolution changes.
    shapes: {name, or its end: shape} where widths do not tell how one shrinks.
    """

    model: str
    widths: dict[int, int]
    blocks: int
    latent: tuple | list
    text: int | None
    further: dict[str, Any] = field(default_factory=dict)
    time: float = 0.5
    counts: dict[str, int | None] = field(default_factory=dict)
    constants: tuple[str, dict] | None = None
    prepare: Callable[[], None] | None = None
    metadata: dict[str, str] | None = None
    last: int = 0
    without: str = "$"
    counted: bool = True
    lists: str = r"^(?!(?:in|out)put_)\w*(?:blocks|layers)|\.\d+\.transformer_blocks"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


# Latents of images and videos, and the tokens of text that all are given.
VIDEO, IMAGE, TEXT = (3, 8, 8), (8, 16), 64
# Tokens of an image in patches of 2 x 2, of a video in patches of 1 x 2 x 2, and of the text.
TOKENS = {"once": 1, "image": 4 * 8, "text": TEXT}
VIDEO_TOKENS = 3 * 4 * 4
