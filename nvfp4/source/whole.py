"""Make sure that a source is a whole model, and not one of its shards under another name.

A shard opens like a model and may even be recognised as one. What is missing is told by the
family's row, by gaps in the numbers of blocks, and by blocks that lack what all others have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from nvfp4.errors import ConvertError, examples
from nvfp4.families import ROWS, Family, TextEncoder, recognise
from nvfp4.guides.family import LEAST_REPEATS
from nvfp4.model import Model, bare
from nvfp4.names import block_of, gaps
from nvfp4.notes import Note, Rank

# Parts that every block of a run has; scales and other parts of quantised layers may differ.
EVERY_BLOCK = (".weight", ".bias")
# What is numbered is a layer, and no block, if it has these itself.
LAYER = {"weight", "bias"}
# {block's number: the parts that it has}, as "attn.q.weight".
Run = dict[int, set[str]]


def refuse_part(path: Path, model: Model) -> list[str]:
    """Raise ConvertError for a model of a known family that is not all there, naming what it lacks.

    ComfyUI would load such a file, leave what is missing at random values, and make noise. Of a
    model of no known family, whose blocks may differ by design, a note tells what they lack.
    """
    family = ROWS.get(recognise(model)[0])
    missing = missing_parts(model, family)
    shard = f"one shard of several: it lacks {examples(missing)}"
    if family and missing:
        raise ConvertError(
            f"{path}: is not a whole {family.title} model, but maybe {shard}; give the "
            "*.safetensors.index.json beside it, or the folder"
        )
    what = f"{path.name} may be {shard}, which its other blocks have"
    return [Note(what, Rank.WARNING)] if missing else []


def missing_parts(model: Model, family: Family | None) -> list[str]:
    """List what a model of this family, or of none, has to have and lacks: layers, blocks, tensors.

    Layers beside the blocks are those in the family's row. Blocks are counted from 0 to the highest
    number there is; a block has to have what half the blocks of its name have. In a model of no
    family, or of an uneven one such as Mochi, the first blocks or the last may have less; so few
    as a UNet has in its middle need not be alike.
    """
    names = {bare(name) for name in model.tensors}
    missing = missing_beside(names, family) if family else []
    for run, blocks in sorted(runs_of(names, family).items()):
        missing += [f"{run}.{number}" for number in gaps(blocks)]
        if isinstance(family, TextEncoder) and family.uneven:
            continue
        counts = Counter(part for parts in blocks.values() for part in parts)
        usual = {part for part, count in counts.items() if 2 * count >= len(blocks)}
        if not family or family.uneven:
            alike = usual if len(blocks) >= LEAST_REPEATS else set()
            usual = {part for part in alike if not lacks_at_an_end(blocks, part)}
        for number, parts in sorted(blocks.items()):
            missing += [f"{run}.{number}.{part}" for part in usual - parts]
    return missing


def missing_beside(names: Iterable[str], family: Family) -> list[str]:
    """List the layers and modules beside its blocks that a model of this family lacks."""
    choices = [choice.split("|") for choice in family.outside]
    missing = [
        layers[0] for layers in choices if not any(f"{layer}.weight" in names for layer in layers)
    ]
    for modules in family.together:
        lacking = [one for one in modules if not any(name.startswith(f"{one}.") for name in names)]
        missing += lacking if len(lacking) < len(modules) else []
    return missing


def runs_of(names: Iterable[str], family: Family | None) -> dict[str, Run]:
    """Find the blocks of a model by their names: {"blocks": {number: parts}}.

    In a model of no family those are what is numbered, and not single layers, as in a Sequential.
    Numbers inside a block tell layers of different kinds, as in a UNet: these need not be alike.
    """
    runs: dict[str, Run] = defaultdict(lambda: defaultdict(set))
    for name in filter(lambda name: name.endswith(EVERY_BLOCK), names):
        if family and (found := family.inside.match(name)):
            runs[found[1]][int(found[2])].add(name[found.end() :])
        elif not family and (block := block_of(name)):
            run, _, number = block.rpartition(".")
            # Block numbers of more than nine digits are hostile.
            if len(number) < 10:
                runs[run][int(number)].add(name[len(block) + 1 :])
    return {
        run: {n: {part for part in parts if not part[0].isdigit()} for n, parts in blocks.items()}
        for run, blocks in runs.items()
        if family
        or (len(blocks) >= LEAST_REPEATS and not any(parts & LAYER for parts in blocks.values()))
    }


def lacks_at_an_end(blocks: Run, part: str) -> bool:
    """Tell whether the blocks that lack a part are the first or the last ones, and no others."""
    has = [part in blocks[number] for number in sorted(blocks)]
    return has in (sorted(has), sorted(has, reverse=True))
