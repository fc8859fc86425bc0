"""Settle --fit: the size, the formats and the edge blocks that a card's memory leaves.

A fit is a --target-size of what the card holds beside ComfyUI's own estimate of the activations.
What is chosen from has up to 8 bits: more would be slower, and the error of INT8 is hardly seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from nvfp4.errors import ConvertError, gigabytes
from nvfp4.fit import Stage, offloaded, size_notes, smaller_size, stage_of
from nvfp4.formats.floats import HALF
from nvfp4.model import Model
from nvfp4.notes import Note, Rank
from nvfp4.options import Options
from nvfp4.plan.records import Plan
from nvfp4.tune.target_size import Reach, as_typed, reach_of


class Fitted(NamedTuple):
    """Hold the options that --fit stands for, with a --target-size where one is to be met.

    stage: what the card's memory goes to; None without --fit. is_capped: whether a size may be
    larger than any file that may come of it.
    """

    options: Options
    stage: Stage | None = None
    notes: tuple[str, ...] = ()
    is_capped: bool = False


def settle_fit(options: Options, model: Model, planner: Callable[..., Plan]) -> Fitted:
    """Settle what --fit stands for: options without it. Raises ConvertError where nothing fits.

    planner: makes a plan of options, as for `plan_for_size`. Only headers are looked at.
    """
    if not options.fit:
        return Fitted(options)
    stage = stage_of(options, model)
    target = stage.budget + stage.beside
    free = open_to_fit(options)
    reach, notes = reach_of(free, model, planner), size_notes(options, model)
    if reach.least > target and may_open_edges(free):
        opened = dataclasses.replace(free, edge_blocks=0)
        freer = reach_of(opened, model, planner)
        if freer.least <= target:
            what = "--fit opens the first and last blocks to the choice, which are 16-bit else"
            free, reach = opened, freer
            notes += (Note(f"{what} (--edge-blocks 0)", Rank.NOTE),)
        elif freer.least < reach.least:
            free, reach = opened, freer
    if reach.least > target:
        raise too_large(options, free, model, stage, reach)
    if not reach.candidates:
        return Fitted(free, stage, notes)
    # What the size takes is the card's, but never more than the best of all formats.
    sized = dataclasses.replace(free, target_size=min(target, reach.most))
    return Fitted(sized, stage, notes, is_capped=target >= reach.most)


def open_to_fit(options: Options) -> Options:
    """Take --fit and --size out of options, and 16 bits out of what may be chosen unless named."""
    words = tuple(word for word in options.allowed if word != HALF.option)
    formats = options.formats or words or None
    return dataclasses.replace(options, fit=None, size=None, formats=formats)


def may_open_edges(options: Options) -> bool:
    """Tell whether nothing that was given keeps edge blocks in 16 bits."""
    return options.edge_blocks is None and not options.gguf_keep_edge_blocks_fp16


def too_large(
    options: Options, free: Options, model: Model, stage: Stage, reach: Reach
) -> ConvertError:
    """Make the error where nothing fits: what would, and what it costs to do without.

    free: options without --fit, those that the least of `reach` is of. The error is returned, not
    raised.
    """
    least = reach.least - stage.beside
    told = f"--fit: {options.source}: {memory_of(stage, least)}"
    ways = []
    if size := smaller_size(stage, least):
        ways.append(f"--size {size} fits")
    edges = " --edge-blocks 0" if free.edge_blocks == 0 and options.edge_blocks is None else ""
    sized = f"{as_typed(free, model, reach.least)}{edges}"
    if stage.budget > 0:
        ways.append(f"{sized} makes the smallest, of which {offloaded(least - stage.budget)}")
    elif not ways:
        ways.append("activations and reserve alone are more than the card has")
    return ConvertError(f"{told}; {'; or '.join(ways)}")


def memory_of(stage: Stage, least: int) -> str:
    """Say what is lacking: the smallest file beside what else is to be on the card."""
    return (
        f"the smallest that its plan allows is {gigabytes(least)}, where {stage.told} leaves "
        f"{gigabytes(max(stage.budget, 0))}"
    )
