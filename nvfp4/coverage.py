"""Compare what a guide covers with what the source has, and refuse one that leaves gaps.

A guide of a smaller or larger relative, or one half of a guide, fits by its names and would leave
blocks as they are. What counts are the bytes of linear weights, and whole transformer blocks.
`--partial-guide` goes on all the same, and notes the share that follows the guide.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nvfp4.errors import ConvertError, examples, percentage
from nvfp4.model import Model, bare, diffusion_prefix
from nvfp4.names import block_of
from nvfp4.notes import Note, Rank

# The share of the linear weights' bytes that may lack a counterpart in a guide of the same model:
# files of one model differ in a few layers, as a GGUF leaves out what its author did not know.
MOST_UNCOVERED = 0.1


class Cover(NamedTuple):
    """Name the files of a guide, and the layers that they tell of: bare names."""

    files: tuple[Path, ...]
    layers: frozenset[str]

    @property
    def title(self) -> str:
        """Name the files without their folders, for notes."""
        return " and ".join(path.name for path in self.files)


def linear_bytes(model: Model) -> dict[str, int]:
    """Return {bare layer: bytes} of the diffusion model's linear weights, in source order."""
    prefix = diffusion_prefix(model.tensors)
    return {
        bare(ref.layer): ref.nbytes for ref in model.linear_weights if ref.name.startswith(prefix)
    }


def blocks_of(layers: Iterable[str]) -> set[str]:
    """Name the blocks that layers are in, as "blocks.3"; layers outside of blocks have none."""
    return {*map(block_of, layers)} - {""}


def check_blocks(cover: Cover, model: Model, partial: bool) -> list[str]:
    """Look for whole blocks that a guide has and the source lacks: an error, or `partial` a note.

    Raises ConvertError, which names layers of both sides.
    """
    foreign = blocks_of(cover.layers) - blocks_of(bare(name) for name in model.tensors)
    if foreign and not partial:
        what = f"whole blocks of it are not in the source: {examples(foreign)}"
        raise partial_error(cover, what, linear_bytes(model))
    what = f"{cover.title} has whole blocks that the source lacks: {examples(foreign)}"
    return [Note(f"--partial-guide: {what}", Rank.INFORMATION)] if foreign else []


def check_cover(cover: Cover, wanted: dict[str, int], partial: bool) -> list[str]:
    """Compare a guide with the layers that should follow it: gaps are an error, or a note.

    wanted: {bare layer: bytes} of the source. Without `partial`, raises ConvertError where whole
    blocks have no counterpart in the guide, or more than MOST_UNCOVERED of the bytes have none.
    With it, a note tells the share that has.
    """
    lacking = {layer: size for layer, size in wanted.items() if layer not in cover.layers}
    total, missed = sum(wanted.values()), sum(lacking.values())
    if partial and missed:
        share = percentage(total - missed, total)
        what = f"{share} of the linear weights' bytes follow {cover.title}"
        return [Note(f"--partial-guide: {what}", Rank.INFORMATION)]
    if blocks := blocks_of(lacking) - blocks_of(wanted.keys() & cover.layers):
        raise partial_error(cover, f"it has nothing for whole blocks: {examples(blocks)}", lacking)
    if missed > MOST_UNCOVERED * total:
        share = percentage(missed, total)
        what = f"{share} of the linear weights' bytes have no counterpart in it"
        raise partial_error(cover, what, lacking)
    return []


def partial_error(cover: Cover, what: str, source: Iterable[str]) -> ConvertError:
    """Make the error for a guide that covers a part, with examples of both sides."""
    files = " and ".join(map(str, cover.files))
    return ConvertError(
        f"{files}: is of another model, or only a part: {what}; it has "
        f"{examples(cover.layers)}; the source has {examples(source)}; take the file of this "
        "model, or go on with --partial-guide"
    )
