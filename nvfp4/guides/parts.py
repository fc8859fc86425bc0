"""Find what text encoders beside a diffusion model go by: each its own row."""

from __future__ import annotations

from nvfp4.guides.family import find_family
from nvfp4.guides.records import Guides
from nvfp4.model import Model
from nvfp4.options import Options, part_options


def part_guides(options: Options, model: Model) -> dict[str, Guides]:
    """Make the guides of each text encoder beside the diffusion model: {prefix: Guides}."""
    found = {}
    for part in model.encoders:
        if part.prefix:
            family, notes = find_family(part_options(options), model.alone(part))
            found[part.prefix] = Guides(family=family, notes=tuple(notes))
    return found
