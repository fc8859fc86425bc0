"""The family a model goes by, its edge blocks and rows."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

from nvfp4.errors import ConvertError
from nvfp4.families import ANY_FAMILY, EDGE_BLOCKS, FAMILIES, ONE_STEP_HIGHER, Family, recognise
from nvfp4.formats import Precision
from nvfp4.model import Model, bare
from nvfp4.options import Options
from nvfp4.plan.records import Rule

# What a model of no family is taken to have transformer blocks by: numbers, and share of weights.
LEAST_REPEATS, LEAST_REPEATED_SHARE = 4, 0.05


def repeated_blocks(model: Model) -> Family:
    """A family for a model that has none: blocks are what is numbered, has layers, and repeats."""
    members, sizes = defaultdict(set), Counter()
    for ref in model.linear_weights:
        if found := re.match(r"([^\d]+)\.(\d{1,9})\..*\.weight", bare(ref.name), re.DOTALL):
            members[found[1]].add(int(found[2]))
            sizes[found[1]] += ref.nbytes
    least = LEAST_REPEATED_SHARE * sum(ref.nbytes for ref in model.linear_weights)
    found = [
        name
        for name, numbers in members.items()
        if len(numbers) >= LEAST_REPEATS and sizes[name] >= least
    ]
    if not found:
        raise ConvertError(
            "--preset smart: the source has no repeated blocks, as blocks.0, blocks.1 ...; "
            "--preset all quantises every linear layer, or name some with --include"
        )
    return Family(
        title="unknown", keys=(), blocks=tuple((name,) for name in found), keeps=ONE_STEP_HIGHER
    )


def find_family(options: Options, model: Model) -> tuple[Family, list[str]]:
    """The row of FAMILIES to go by, or one made for the source, and a note on why."""
    name, variant = recognise(model)
    preset = options.preset
    known = FAMILIES.get(name, ANY_FAMILY)
    if not options.has_family:
        return known, []
    if preset == "smart":
        family = repeated_blocks(model)
        where = ", ".join(f"{name}.N" for name in itertools.chain(*family.blocks))
        return family, [f"--preset smart: the repeated blocks are {where}"]
    if preset == "auto" and name:
        of_kind = f" ({variant})" if variant else ""
        return known, [f"recognised as {known.title}{of_kind}: --preset {name}"]
    if preset == "auto" and (options.include or options.layer_config):
        return known, ["no family recognised: only what options name is quantised"]
    if preset == "auto":
        raise ConvertError(
            f"{options.source}: is of no family that --list-presets has; give --gguf, "
            "--preset smart, --preset all, or --include REGEX"
        )
    if name != preset:
        is_known = f"is recognised as {known.title}" if name else "is of no known family"
        raise ConvertError(
            f"--preset {preset}: {options.source} {is_known}; give --preset {name or 'smart'}"
        )
    return known, []


def edge_count(options: Options, family: Family) -> int:
    """How many transformer blocks stay 16-bit at each end."""
    if options.edge_blocks is not None:
        return options.edge_blocks
    if options.gguf_keep_edge_blocks_fp16:
        return EDGE_BLOCKS
    return family.edge_blocks if options.has_family else 0


def edge_block_rules(model: Model, family: Family, count: int) -> list[Rule]:
    """The first and last `count` transformer blocks of a family, in the order they run in."""
    if not count:
        return []
    members = defaultdict(set)
    for ref in model.tensors.values():
        if found := family.inside.match(bare(ref.name)):
            members[found[1], int(found[2])] |= {ref.name} if ref.is_linear_weight else set()
    rows = [
        sorted((run.index(name), number, name) for name, number in members if name in run)
        for run in family.blocks
    ]
    if not any(rows):
        raise ConvertError(
            "edge blocks: the source has no transformer blocks named "
            + ", ".join(f"{name}.N" for name in itertools.chain(*family.blocks))
        )
    return [
        Rule(names=frozenset(members[name, number]), precision=Precision.HALF, reason="edge block")
        for row in rows
        for _, number, name in dict.fromkeys(row[:count] + row[-count:])
    ]


def preset_reason(options: Options, family: Family) -> str:
    name = next((name for name, row in FAMILIES.items() if row is family), "")
    return f"--preset {name if options.preset == 'auto' and name else options.preset}"


def preset_rules(options: Options, model: Model, family: Family) -> list[Rule]:
    """What a preset makes of linear layers, but for its edge blocks."""
    every = {ref.name: bare(ref.layer) for ref in model.linear_weights}
    reason = preset_reason(options, family)
    rest = Rule(names=frozenset(every), precision=Precision.NVFP4, reason=reason, is_open=True)
    if options.preset == "all":
        return [rest]
    if options.preset == "none" or family is ANY_FAMILY:
        return []
    outside = frozenset(name for name, layer in every.items() if not family.inside.match(layer))
    rules = [Rule(names=outside, precision=Precision.HALF, reason="outside the transformer blocks")]
    for keep in family.keeps:
        names = frozenset(name for name, layer in every.items() if re.search(keep.layers, layer))
        is_open = keep.precision is Precision.FP8
        rule = Rule(names=names, precision=keep.precision, reason=keep.why, is_open=is_open)
        rules.append(rule)
    return [*rules, rest]
