"""Turn a family's row into rules: its edge blocks, and what its preset keeps.

The rows stand in `families`, and which of them a source goes by is found by `guides.family`. The
rules made here have the last word in `rules.choice_rules`: options and files go before them.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import defaultdict

from nvfp4.errors import ConvertError
from nvfp4.families import ANY_FAMILY, EDGE_BLOCKS, EIGHT_BITS, HEAD, ROWS, Family, TextEncoder
from nvfp4.formats.base import Format
from nvfp4.formats.floats import HALF
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.model import Model, bare
from nvfp4.options import Options
from nvfp4.plan.choosing import allowed_by, can_be, format_for, held_formats, preset_sensitive
from nvfp4.plan.records import Rule
from nvfp4.reasons import Reason, Why
from nvfp4.tokens import group_of


def edge_count(options: Options, family: Family) -> int:
    """Return how many transformer blocks stay 16-bit at each end.

    --edge-blocks decides; else --gguf-keep-edge-blocks-fp16 means EDGE_BLOCKS, and a preset its
    family's own number. With a GGUF alone it is 0.
    """
    # 0 is a number, too: it asks for no edge blocks.
    if options.edge_blocks is not None:
        return options.edge_blocks
    if options.gguf_keep_edge_blocks_fp16:
        return EDGE_BLOCKS
    return family.edge_blocks if options.has_family else 0


def edge_format(options: Options, family: Family) -> Format:
    """Return the format of edge blocks: 16-bit, or what the family has 8 bits for."""
    return HALF if options.gguf_keep_edge_blocks_fp16 else format_for(options, family.edges)


def edge_block_rules(model: Model, family: Family, count: int, form: Format = HALF) -> list[Rule]:
    """Make a rule for each of the first and last `count` transformer blocks of every run of blocks.

    form: what they become; 16-bit stays, also with --target-size.

    Families such as Flux run two kinds of blocks one after the other; their edges are the ends of
    the whole run. Raises ConvertError where the source has no block of the names that the family
    gives.
    """
    if not count:
        return []
    # {(name of a run's part, block number): its linear weights}; a block without any counts too.
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
            precision=form,
            reason=Reason(Why.EDGE_BLOCK, "edge block"),
            is_open=form.is_quantised,
        )
        for row in rows
        # A run of few blocks has the same block at both of its ends.
        for _, number, name in dict.fromkeys(row[:count] + row[-count:])
    ]


def preset_reason(options: Options, family: Family) -> Reason:
    """Name the preset as the reason; for --preset auto the family that was recognised, or smart."""
    name = next((name for name, row in ROWS.items() if row is family), "smart")
    shown = name if options.preset == "auto" else options.preset
    return Reason(Why.FAMILY, f"--preset {shown}")


def preset_rules(options: Options, model: Model, family: Family) -> list[Rule]:
    """Make the rules of a preset for linear layers, its edge blocks aside.

    Layers outside the transformer blocks stay 16-bit; layers that the family keeps get their
    precision, or stay in the 8-bit format that the source has them in; those that it marks become
    what --sensitive-as makes of them, and all others NVFP4. "all" has the last rule alone, "none"
    has none.
    """
    every = {ref.name: bare(ref.layer) for ref in model.linear_weights}
    reason = preset_reason(options, family)
    # It names every linear layer and comes last: what no other rule took is NVFP4.
    rest = Rule(names=frozenset(every), precision=NVFP4, reason=reason, is_open=True)
    if options.preset == "all":
        return [rest]
    if options.preset == "none" or family is ANY_FAMILY:
        return []
    # Embedders and output layers have few weights, and all blocks depend on them.
    outside = frozenset(name for name, layer in every.items() if not family.inside.match(layer))
    reason = Reason(Why.FAMILY, "outside the transformer blocks")
    key = next((name for name, row in ROWS.items() if row is family), "")
    text = frozenset(name for name in outside if group_of(every[name], key) == "text")
    # --target-size may choose for what only the text goes through: errors of the others are in
    # every token, or in what modulates them.
    rules = [
        Rule(names=names, precision=HALF, reason=reason, is_open=names is text)
        for names in (text, outside - text)
    ]
    if isinstance(family, TextEncoder):
        rules = [*keep_rules(options, model, dataclasses.replace(family, keeps=(HEAD,))), *rules]
    rules += keep_rules(options, model, family)
    form = preset_sensitive(options)
    if not form.takes_mark:
        names = frozenset(
            name
            for name in sensitive_names(family, every)
            if can_be(options, form, model.tensors[name].shape)
        )
        text = f"{rest.reason}: sensitive to 4-bit inputs"
        reason = Reason(Why.FAMILY, text)
        rules.append(dataclasses.replace(rest, names=names, precision=form, reason=reason))
    return [*rules, rest]


def keep_rules(options: Options, model: Model, family: Family) -> list[Rule]:
    """Make the rules for layers of the blocks that the family gives more than NVFP4.

    Of those that are to have 8 bits, what the source has in 8 bits already keeps its format.
    """
    every = {ref.name: bare(ref.layer) for ref in model.linear_weights}
    rules, held = [], held_formats(options, model)
    for keep in family.keeps:
        names = frozenset(name for name, layer in every.items() if re.search(keep.layers, layer))
        # --target-size may choose anew for what is quantised, and leaves 16-bit alone.
        is_open = keep.precision == EIGHT_BITS
        kept, reason = format_for(options, keep.precision), Reason(Why.FAMILY, keep.why)
        if is_open and not kept.is_quantised:
            lacking = f"no 8-bit format in {allowed_by(options)}"
            reason = Reason(Why.FAMILY, lacking).over(reason)
        rule = Rule(names=names, precision=kept, reason=reason, is_open=is_open)
        if is_open:
            rules += [
                dataclasses.replace(rule, names=names & weights, precision=form)
                for form, weights in held.items()
            ]
        rules.append(rule)
    return rules


def sensitive_names(family: Family, layers: dict[str, str]) -> frozenset[str]:
    """Name the weights whose layers the family spares from 4-bit activations.

    `layers` is {weight: its layer without prefix}.
    """
    pattern = family.full_precision
    return frozenset(
        name for name, layer in layers.items() if pattern and re.search(pattern, layer)
    )
