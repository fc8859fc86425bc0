"""Make sure that a source is a whole model, and not one of its shards under another name.

A shard opens like a model and may even be recognised as one. What is missing is told by the
family's row, by gaps in the numbers of blocks, and by blocks that lack what all others have.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from pathlib import Path

from nvfp4.errors import ConvertError, examples
from nvfp4.families import ANY_FAMILY, FAMILIES, Family, recognise
from nvfp4.model import Model, bare
from nvfp4.names import gaps

# Parts that every block of a run has; scales and other parts of quantised layers may differ.
EVERY_BLOCK = (".weight", ".bias")


def refuse_part(path: Path, model: Model) -> list[str]:
    """Raise ConvertError for a model of a known family that is not all there, naming what it lacks.

    ComfyUI would load such a file, leave what is missing at random values, and make noise. Of a
    model of no known family, whose blocks may differ by design, a note tells what they lack.
    """
    family = FAMILIES.get(recognise(model)[0])
    missing = missing_parts(model, family or ANY_FAMILY)
    shard = f"one shard of several: it lacks {examples(missing)}"
    if family and missing:
        raise ConvertError(
            f"{path}: is not a whole {family.title} model, but maybe {shard}; give the "
            "*.safetensors.index.json beside it, or the folder"
        )
    return [f"{path.name} may be {shard}, which its other blocks have"] if missing else []


def missing_parts(model: Model, family: Family) -> list[str]:
    """List what a model of this family has to have and lacks: layers, blocks or their tensors.

    Layers beside the blocks are those in the family's row. Blocks are counted from 0 to the highest
    number there is; a block has to have what most blocks of its name have.
    """
    names = {bare(name) for name in model.tensors}
    missing = [
        layers[0]
        for layers in (choice.split("|") for choice in family.outside)
        if not any(f"{layer}.weight" in names for layer in layers)
    ]
    runs = {name: defaultdict(set) for name in (*itertools.chain(*family.blocks), *family.beside)}
    for name in names:
        found = family.inside.match(name)
        if found and name.endswith(EVERY_BLOCK):
            runs[found[1]][int(found[2])].add(name[found.end() :])
    for run, blocks in runs.items():
        counts = Counter(itertools.chain(*blocks.values()))
        usual = {part for part, count in counts.items() if 2 * count > len(blocks)}
        missing += [f"{run}.{number}" for number in gaps(blocks)]
        for number, parts in sorted(blocks.items()):
            missing += [f"{run}.{number}.{part}" for part in usual - parts]
    return missing
