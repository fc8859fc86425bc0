"""Examine this machine: the quick things first, while torch is being asked.

Each thing is told as soon as it is known. Conversions need a Python with the required packages;
all else makes them, or ComfyUI, faster.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from nvfp4.asking.find import NEARBY, ComfyUI, find_comfyui, nearby_comfyui
from nvfp4.doctor.facts import Probe, memory_sizes, system_cards
from nvfp4.doctor.judge import (
    judge_card,
    judge_comfyui,
    judge_compilers,
    judge_disk,
    judge_formats,
    judge_kitchen,
    judge_memory,
    judge_python,
    judge_torch,
)
from nvfp4.doctor.records import Examined, Gpu, PythonFacts
from nvfp4.options.tasks import Doctor
from nvfp4.requirements import REQUIRED


def examine(task: Doctor) -> Iterator[Examined]:
    """Look at everything, in the order in which it is told; the last one is the conclusion.

    Of a ComfyUI that is merely found, files are read and nothing is run: anybody may have put it
    there.
    Raises ConvertError where --comfyui is no ComfyUI's folder.
    """
    comfyui, python = find_comfyui(task.comfyui) or nearby_comfyui(), Path(sys.executable)
    is_there = bool(comfyui and not comfyui.absent)
    is_shared = is_there and comfyui.runs_this
    ours, theirs = Probe(python, kitchen=is_shared), None
    if is_there and not is_shared and comfyui.named_by != NEARBY:
        theirs = Probe(comfyui.python, kitchen=True)
    failed = []
    for one in examine_conversions(ours, python, is_comfyui=is_shared):
        failed += [one.topic] if one.fails else []
        yield one
    yield judge_comfyui(comfyui, is_asked=is_shared or bool(theirs))
    if is_there and comfyui.folder.stat().st_dev != Path.cwd().stat().st_dev:
        yield judge_disk(comfyui.folder, shutil.disk_usage(comfyui.folder).free)
    if theirs:
        yield from examine_python(theirs)
    if is_shared or theirs:
        yield from examine_formats(comfyui, theirs or ours)
    yield conclusion(failed, ours)


def examine_conversions(ours: Probe, python: Path, *, is_comfyui: bool) -> Iterator[Examined]:
    """Look at what conversions run with; is_comfyui: ComfyUI runs with the same Python."""
    missing = [name for name in REQUIRED if find_spec(name) is None]
    yield judge_python(missing, python)
    yield judge_memory(memory_sizes())
    yield judge_disk(Path.cwd(), shutil.disk_usage(Path.cwd()).free)
    yield judge_torch(ours.facts, system_cards(), is_ours=True, is_comfyui=is_comfyui)
    cards = known_cards(ours.facts)
    yield from map(judge_card, cards)
    if not cards:
        yield Examined(topic="card", state="none found by torch or nvidia-smi")
    yield from judge_compilers(ours.facts)


def examine_python(theirs: Probe) -> Iterator[Examined]:
    """Look at ComfyUI's own Python, which is not the one that runs this."""
    facts = theirs.facts
    yield Examined(topic="its Python", state=f"{facts.python or 'unknown'} ({facts.path})")
    yield judge_torch(facts, system_cards(), is_ours=False, is_comfyui=True)


def examine_formats(comfyui: ComfyUI, probe: Probe) -> Iterator[Examined]:
    """Look at the formats that a ComfyUI loads and multiplies on its first card.

    A Python that gave no answer is not judged.
    """
    facts = probe.facts
    if facts.silence:
        return
    yield judge_kitchen(facts, comfyui)
    yield from judge_formats(comfyui, facts, next(iter(known_cards(facts)), None))


def known_cards(facts: PythonFacts) -> list[Gpu]:
    """List the cards that nvidia-smi knows, which tells their driver, or else those of torch."""
    return system_cards() or facts.cards


def conclusion(failed: list[str], ours: Probe) -> Examined:
    """Say whether conversions run here, and on what; nothing is promised for a silent Python."""
    if ours.facts.silence:
        state = "not known whether conversions run here, as torch was not seen to load"
        return Examined(topic="result", state=state)
    if failed:
        return Examined(topic="result", state=f"no conversion can run yet: {', '.join(failed)}")
    cards = ours.facts.cards
    where = cards[0].name if cards else "the CPU, which is enough for converting"
    return Examined(topic="result", state=f"conversions run here, on {where}")
