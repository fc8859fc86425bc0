"""What a family makes of a model: its edge blocks and rows."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict

from nvfp4.errors import ConvertError
from nvfp4.families import ANY_FAMILY, EDGE_BLOCKS, FAMILIES, Family
from nvfp4.formats.base import format_titled
from nvfp4.formats.floats import HALF
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.model import Model, bare
from nvfp4.options import Options
from nvfp4.plan.records import Rule
from nvfp4.reasons import Reason, Why


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
        Rule(
            names=frozenset(members[name, number]),
            precision=HALF,
            reason=Reason(Why.EDGE_BLOCK, "edge block"),
        )
        for row in rows
        for _, number, name in dict.fromkeys(row[:count] + row[-count:])
    ]


def preset_reason(options: Options, family: Family) -> Reason:
    name = next((name for name, row in FAMILIES.items() if row is family), "")
    shown = name if options.preset == "auto" and name else options.preset
    return Reason(Why.FAMILY, f"--preset {shown}")


def preset_rules(options: Options, model: Model, family: Family) -> list[Rule]:
    """What a preset makes of linear layers, but for its edge blocks."""
    every = {ref.name: bare(ref.layer) for ref in model.linear_weights}
    reason = preset_reason(options, family)
    rest = Rule(names=frozenset(every), precision=NVFP4, reason=reason, is_open=True)
    if options.preset == "all":
        return [rest]
    if options.preset == "none" or family is ANY_FAMILY:
        return []
    outside = frozenset(name for name, layer in every.items() if not family.inside.match(layer))
    reason = Reason(Why.FAMILY, "outside the transformer blocks")
    rules = [Rule(names=outside, precision=HALF, reason=reason)]
    for keep in family.keeps:
        names = frozenset(name for name, layer in every.items() if re.search(keep.layers, layer))
        kept = format_titled(keep.precision)
        is_open = kept.is_quantised
        reason = Reason(Why.FAMILY, keep.why)
        rule = Rule(names=names, precision=kept, reason=reason, is_open=is_open)
        rules.append(rule)
    return [*rules, rest]
