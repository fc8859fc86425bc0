"""Find the family that a source goes by.

The rows and how they are recognised stand in `families`. Here --preset decides which row counts,
and a model of no known family gets a row made for it with --preset smart.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

from nvfp4.errors import ConvertError, examples
from nvfp4.families import ANY_FAMILY, ONE_STEP_HIGHER, ROWS, Family, recognise
from nvfp4.model import Model, bare
from nvfp4.names import gaps
from nvfp4.notes import Note, Rank
from nvfp4.options import Options

# A name followed by numbers is taken for transformer blocks from 4 numbers and 5 % of the linear
# weights' bytes on. Embedders and refiners are numbered, too, but they are few or small.
LEAST_REPEATS, LEAST_REPEATED_SHARE = 4, 0.05


def repeated_blocks(model: Model, why: str = "--preset smart:") -> Family:
    """Make a family for a model that has none: blocks are what is numbered and repeats.

    A name counts as transformer blocks if at least LEAST_REPEATS numbers follow it and its layers
    have at least LEAST_REPEATED_SHARE of the linear weights' bytes. Attention V, fused QKV and down
    projections get one step more than NVFP4, as in known families. Raises ConvertError without any;
    why: how its line begins.
    """
    members, sizes = defaultdict(set), Counter()
    for ref in model.linear_weights:
        # The first number of a name is the block's: blocks.3.attn.0.weight is of block 3.
        if found := re.match(r"([^\d]+?)\.?(\d{1,9})\..*\.weight", bare(ref.name), re.DOTALL):
            members[found[1]].add(int(found[2]))
            sizes[found[1]] += ref.nbytes
    # Bytes stand for weights here, as a checkpoint's linear layers share a dtype.
    least = LEAST_REPEATED_SHARE * sum(ref.nbytes for ref in model.linear_weights)
    found = [
        name
        for name, numbers in members.items()
        if len(numbers) >= LEAST_REPEATS and sizes[name] >= least
    ]
    if not found:
        raise ConvertError(
            f"{why} the source has no repeated blocks, as blocks.0, blocks.1 ...; "
            "--preset all quantises every linear layer, or name some with --include"
        )
    for name in found:
        blocks = re.compile(rf"{re.escape(name)}\.?(\d{{1,9}})\.")
        matches = map(blocks.match, map(bare, model.tensors))
        if lacking := gaps({int(match[1]) for match in matches if match}):
            named = examples(f"{name}.{number}" for number in lacking)
            raise ConvertError(
                f"{why} the source lacks {named} before its last {name}.N; if it is one "
                "shard of several, give the *.safetensors.index.json beside it, or the folder"
            )
    return Family(
        title="unknown", keys=(), blocks=tuple((name,) for name in found), keeps=ONE_STEP_HIGHER
    )


def about_unknown(options: Options, family: Family) -> str:
    """Say what --preset smart, which stands in for a family, makes of an unknown model."""
    where = ", ".join(f"{name}.N" for name in itertools.chain(*family.blocks))
    kept = ", ".join(keep.what for keep in family.keeps)
    asks = "" if options.comfyui else "; --comfyui DIR asks your ComfyUI which layers are linear"
    return (
        f"no family recognised: --preset smart goes by structure, and nobody measured this model: "
        f"16-bit outside {where} and in their first and last {family.edge_blocks}, 8-bit for "
        f"{kept}{asks}"
    )


def find_family(options: Options, model: Model) -> tuple[Family, list[str]]:
    """Return the row of ROWS to go by, or one made for the source, and a note on the choice.

    With --preset auto that is the recognised family, and without one what `smart` makes, unless
    options name the layers; with a family's name the source must be of it. Raises ConvertError
    where it is not.
    """
    name, variant = recognise(model)
    preset = options.preset
    known = ROWS.get(name, ANY_FAMILY)
    # With --preset all or none, or a GGUF alone, no row decides; notes may still need the family.
    if not options.has_family:
        return known, []
    if preset == "smart":
        family = repeated_blocks(model)
        where = ", ".join(f"{name}.N" for name in itertools.chain(*family.blocks))
        what = f"--preset smart: the repeated blocks are {where}"
        return family, [Note(what, Rank.INFORMATION)]
    if preset == "auto" and name:
        of_kind = f" ({variant})" if variant else ""
        what = f"recognised as {known.title}{of_kind}: --preset {name}"
        return known, [Note(what, Rank.INFORMATION)]
    if preset == "auto" and (options.include or options.layer_config):
        what = "no family recognised: only what options name is quantised"
        return known, [Note(what, Rank.NOTE)]
    if preset == "auto":
        family = repeated_blocks(model, f"{options.source}: no family recognised:")
        return family, [Note(about_unknown(options, family), Rank.NOTE)]
    if name != preset:
        is_known = f"is recognised as {known.title}" if name else "is of no known family"
        raise ConvertError(
            f"--preset {preset}: {options.source} {is_known}; give --preset {name or 'smart'}"
        )
    return known, []
