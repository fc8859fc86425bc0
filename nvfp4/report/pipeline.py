"""Tell what the parts of a pipeline take on a card, one after another: as text and as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nvfp4.errors import gigabytes
from nvfp4.fit import Stage, StageKind, card_told, frames_told, stage_data
from nvfp4.fit.estimate import RULES

# The columns of the table, and the keys of `stage_data` that they show.
MEMORY_COLUMNS = ("weights", "activations", "reserve", "left")


class PipelinePart(NamedTuple):
    """Hold a part of a pipeline: its source, the file that ComfyUI loads, and its stage.

    file: the output; the source itself for a VAE, which goes over as it is. nbytes: of that file;
    weights: of what of it is on the card, in the dtype that ComfyUI has there.
    """

    source: Path
    file: Path
    nbytes: int
    weights: int
    stage: Stage

    @property
    def is_as_it_was(self) -> bool:
        """Tell whether nothing is converted."""
        return self.file == self.source

    @property
    def data(self) -> dict[str, object]:
        """Make it JSON-ready: files by their names, sizes in bytes."""
        named = {"source": self.source.name, "file": self.file.name, "file_bytes": self.nbytes}
        return named | stage_data(self.stage, self.weights + self.stage.beside)


def in_order(parts: Sequence[PipelinePart]) -> list[PipelinePart]:
    """Sort parts by the order of their stages, those of a stage as they were given."""
    kinds = [*StageKind]
    return sorted(parts, key=lambda part: kinds.index(part.stage.kind))


def pipeline_data(parts: Sequence[PipelinePart]) -> dict[str, object]:
    """Make a pipeline JSON-ready."""
    return {
        "task": "pipeline",
        "card": parts[0].stage.card,
        "parts": [part.data for part in in_order(parts)],
        "main_memory": sum(part.nbytes for part in parts),
    }


def render_pipeline(parts: Sequence[PipelinePart]) -> str:
    """Render a pipeline as a table, a line for each part, and what follows from it."""
    parts = in_order(parts)
    card = parts[0].stage.card
    rows = [("part", "file", *MEMORY_COLUMNS)]
    for part in parts:
        name = part.file.name + " (as it is)" * part.is_as_it_was
        told = (signed(part.data[column]) for column in MEMORY_COLUMNS)
        rows.append((part.stage.kind.value, name, *told))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"pipeline  on a card of {card_told(card)} ({gigabytes(card)}), each part at its turn: an "
        f"estimate by {RULES}"
    ]
    for row in rows:
        named = "  ".join(
            text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)
        )
        told = "  ".join(text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True))
        lines.append(f"  {named}  {told}")
    return "\n".join([*lines, *consequences(parts)])


def signed(nbytes: int) -> str:
    """Write a number of bytes, with a minus where it is below 0."""
    return gigabytes(nbytes) if nbytes >= 0 else f"-{gigabytes(-nbytes)}"


def consequences(parts: Sequence[PipelinePart]) -> list[str]:
    """Say what is sampled, what main memory it takes, and what does not fit as a whole."""
    sizes = {frames_told(part.stage.size): None for part in parts if part.stage.size}
    total = sum(part.nbytes for part in parts)
    lines = [
        f"  sampled: {', '.join(sizes)}",
        f"  main memory: {gigabytes(total)} for all parts, which ComfyUI keeps there as far as "
        "there is room; with less, it reads them from the disk again at their turn",
    ]
    for part in parts:
        if part.data["left"] < 0 and part.stage.kind is StageKind.DECODES:
            lines.append(
                f"  {part.file.name} cannot decode that as a whole: ComfyUI does it in tiles, at "
                "once with the node VAE Decode (Tiled)"
            )
    return lines
