"""Judge the facts: what they mean for conversions and for ComfyUI, and what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nvfp4.asking.find import ComfyUI
from nvfp4.cards import CARDS, COMFYUI_SINCE, KITCHEN_FORMATS, KITCHEN_SINCE, card_of
from nvfp4.doctor.facts import as_word, pip_command, program_words, python_words
from nvfp4.doctor.records import Advice, Examined, Gpu, PythonFacts
from nvfp4.errors import gigabytes
from nvfp4.options.formats import formats_of_card
from nvfp4.work import version_key

# Where torch comes from with a CUDA in it: PyPI's torch for Windows has none. CUDA 13 left out
# cards before Turing, which go on with CUDA 12.6.
TORCH_INDEX = "--index-url https://download.pytorch.org/whl/"
TURING = (7, 5)
# The first driver that runs programs built for a CUDA of this number: NVIDIA's release notes.
LEAST_DRIVERS = {"12": "525", "13": "580"}
# ComfyUI takes comfy_kitchen's CUDA kernels from this CUDA on (comfy/quant_ops.py).
KITCHEN_CUDA = "13"
# Room for a converted model of 14 billion weights, and memory for its largest tensor, in bytes.
LEAST_DISK, LEAST_MEMORY = 15_000_000_000, 2_000_000_000
OLDEST_PYTHON = (3, 10)


def judge_python(missing: list[str], python: Path) -> Examined:
    """Judge this Python: its version, and which of the required packages it lacks, by name."""
    advice = []
    if sys.version_info < OLDEST_PYTHON:
        advice.append(Advice("error", "Python 3.10 or newer is needed"))
    # torch has a line of its own, as it comes from somewhere else.
    rest = [name for name in missing if name != "torch"]
    if rest:
        verb = "is" if len(rest) == 1 else "are"
        install = f"{pip_command(python)} {' '.join(rest)}"
        advice.append(Advice("error", f"{', '.join(rest)} {verb} missing", install))
    version = ".".join(map(str, sys.version_info[:3]))
    return Examined(topic="Python", state=f"{version} ({python})", advice=advice)


def judge_memory(sizes: tuple[int, int] | None) -> Examined:
    """Judge the memory that is free."""
    if sizes is None:
        return Examined(topic="memory", state="not told by the system")
    total, free = sizes
    advice = []
    if free < LEAST_MEMORY:
        line = (
            "large models take 1.2 GB, and 0.4 GB while kernels are compiled: --low-mem takes less"
        )
        advice.append(Advice("hint", line))
    rest = f", {gigabytes(free)} free" if free != total else ""
    return Examined(topic="memory", state=gigabytes(total) + rest, advice=advice)


def judge_disk(folder: Path, free: int) -> Examined:
    """Judge the room for a converted model."""
    advice = []
    if free < LEAST_DISK:
        line = "a model of 14 billion weights takes 8 to 13 GB: name an OUTPUT on another disk"
        advice.append(Advice("hint", line))
    return Examined(topic="disk", state=f"{gigabytes(free)} free in {folder}", advice=advice)


def torch_install(facts: PythonFacts, cards: list[Gpu]) -> str:
    """Write the command that installs a torch for these cards into a Python."""
    again = "--force-reinstall " if facts.torch else ""
    command = f"{pip_command(facts.path)} {again}torch"
    if "torchvision" in facts.versions:
        command += " torchvision torchaudio"
    if not cards:
        return command
    old = any(card.capability and card.capability < TURING for card in cards)
    return f"{command} {TORCH_INDEX}{'cu126' if old else 'cu130'}"


def judge_torch(
    facts: PythonFacts, cards: list[Gpu], *, is_ours: bool, is_comfyui: bool
) -> Examined:
    """Judge the torch of a Python, with the cards that nvidia-smi knows.

    is_ours: conversions run with this torch, without a card as well. is_comfyui: ComfyUI does, and
    what makes it slow is a warning then.
    """
    install, look = torch_install(facts, cards), partial(Examined, topic="torch")
    # A ComfyUI that cannot start is no reason why conversions cannot.
    rank = "error" if is_ours else "warning"
    if facts.silence:
        shown = f'{python_words(facts.path)} -c "import torch"'
        see = Advice(rank, "see whether this loads torch, and what it says", shown)
        return look(state=f"unknown: {facts.path} {facts.silence}", advice=[see])
    if not facts.torch:
        return look(state="not installed", advice=[Advice(rank, "torch is missing", install)])
    if problem := facts.torch.get("problem"):
        again = Advice(rank, "torch cannot be imported; install it again", install)
        return look(state=f"broken: {problem}", advice=[again])
    hip = facts.torch.get("hip")
    built = f"CUDA {facts.cuda}" if facts.cuda else f"ROCm {hip}" if hip else "the CPU alone"
    troubles = torch_troubles(facts, cards, install, is_comfyui=is_comfyui)
    rank = "warning" if is_comfyui else "hint"
    advice = [Advice(rank, *trouble) for trouble in troubles]
    return look(state=f"{facts.torch['version']}, built for {built}", advice=advice)


def torch_troubles(
    facts: PythonFacts, cards: list[Gpu], install: str, *, is_comfyui: bool
) -> Iterator[tuple[str, str]]:
    """Find out why a torch does not use the cards that are there, or not as fast as it could.

    Yields what is wrong, and the command that mends it or "".
    """
    major = facts.cuda.partition(".")[0]
    if cards and not facts.cards:
        driver, least = cards[0].driver, LEAST_DRIVERS.get(major, "0")
        if not facts.cuda:
            yield "the card is not used, as this torch is built for the CPU", install
        elif version_key(driver) < version_key(least):
            needs = f"CUDA {facts.cuda} needs {least}: https://www.nvidia.com/drivers"
            yield f"driver {driver} is too old, {needs}", ""
        elif hidden := os.environ.get("CUDA_VISIBLE_DEVICES"):
            yield f"torch cannot use the card: CUDA_VISIBLE_DEVICES is {hidden}", ""
        else:
            yield "torch cannot use the card; does nvidia-smi show it without errors?", ""
    is_modern = any(card.capability and card.capability >= TURING for card in facts.cards)
    if is_comfyui and major and is_modern and int(major) < int(KITCHEN_CUDA):
        needs = f"CUDA {KITCHEN_CUDA} (driver {LEAST_DRIVERS[KITCHEN_CUDA]} or newer)"
        yield f"ComfyUI multiplies quantised layers fast only with {needs}", install


def judge_card(card: Gpu) -> Examined:
    """Judge a card: its class, by what conversions for it are called on the command line."""
    word = class_of(card)
    facts = [card.name]
    if card.memory:
        facts.append(gigabytes(card.memory))
    if card.capability:
        facts.append("compute capability {}.{}".format(*card.capability))
    if word:
        facts.append(f"class {CARDS[word].title.partition(':')[0]}")
    if card.driver:
        facts.append(f"driver {card.driver}")
    advice = []
    if not word:
        old = "quantised files load on this card, and are multiplied in 16 bits: smaller, no faster"
        advice.append(Advice("note", old))
    return Examined(topic="card", state=", ".join(facts), advice=advice)


def class_of(card: Gpu) -> str:
    """Name a card's class by the word of --card, "" for one that has none."""
    if card.capability:
        return card_of(card.capability)
    return "rdna" if card.chip.startswith(("gfx11", "gfx12")) else ""


def judge_compilers(facts: PythonFacts) -> Iterator[Examined]:
    """Judge what compiles kernels here: numba for a CPU, triton for a GPU.

    Nothing is said of a Python that gave no answer.
    """
    if facts.silence:
        return
    pip, versions = pip_command(facts.path), facts.versions
    if facts.cards:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        found = versions.get("triton") or versions.get("triton-windows")
        faster = "rounding by statistics is several times faster with it"
        advice = [] if found else [Advice("hint", faster, f"{pip} {package}")]
        yield Examined(topic="triton", state=found or "not installed", advice=advice)
    else:
        faster = "large conversions are two to four times faster with it"
        found = versions.get("numba")
        advice = [] if found else [Advice("hint", faster, f"{pip} numba")]
        yield Examined(topic="numba", state=found or "not installed", advice=advice)


def judge_comfyui(comfyui: ComfyUI | None, *, is_asked: bool) -> Examined:
    """Judge whether there is a ComfyUI, and whether it loads quantised files.

    is_asked: its Python tells more after this.
    """
    if comfyui is None:
        ask = "name its folder to have it looked at: --comfyui FOLDER"
        return Examined(topic="ComfyUI", state="not found nearby", advice=[Advice("hint", ask)])
    if comfyui.absent:
        return Examined(topic="ComfyUI", state=comfyui.absent)
    advice, version = [], comfyui.version or "of unknown version"
    if comfyui.version and version_key(comfyui.version) < version_key(COMFYUI_SINCE["nvfp4"]):
        advice.append(Advice("warning", "it loads no quantised files; update it to 0.10 or newer"))
    if not is_asked:
        ask = "its Python is not run unless you name the folder; if it is yours"
        again = f"{program_words()} --doctor --comfyui {as_word(comfyui.folder)}"
        advice.append(Advice("hint", ask, again))
    where = f"{version} in {comfyui.folder} ({comfyui.named_by})"
    return Examined(topic="ComfyUI", state=where, advice=advice)


def judge_kitchen(facts: PythonFacts, comfyui: ComfyUI) -> Examined:
    """Judge the comfy-kitchen that ComfyUI multiplies with: its version, and its kernels here."""
    version = facts.versions.get("comfy-kitchen")
    if not version:
        listed = as_word(comfyui.folder / "requirements.txt")
        install = f"{pip_command(facts.path)} -r {listed}"
        missing = Advice("warning", "ComfyUI cannot load quantised layers without it", install)
        return Examined(topic="comfy-kitchen", state="not installed", advice=[missing])
    if problem := facts.kitchen.get("problem"):
        return Examined(topic="comfy-kitchen", state=f"{version}, broken: {problem}")
    backends = facts.kitchen["backends"]
    there = [name for name, why in backends.items() if not why]
    return Examined(topic="comfy-kitchen", state=f"{version}, kernels: {', '.join(there)}")


def loaded_formats(comfyui: ComfyUI, kitchen: str) -> list[str]:
    """List the words of formats that a ComfyUI loads, by its version and comfy-kitchen's."""
    version = version_key(comfyui.version)
    return [
        word
        for word, since in COMFYUI_SINCE.items()
        if version >= version_key(since)
        and version_key(kitchen) >= version_key(KITCHEN_SINCE.get(word, "0"))
    ]


def fast_formats(facts: PythonFacts, card: Gpu) -> list[str]:
    """List the words of formats that ComfyUI multiplies on a card without decoding them.

    comfy_kitchen is asked where it answered; W6A8 is multiplied as W4A8 is. With an older CUDA than
    13, only FP8 is left, which torch multiplies.
    """
    word = class_of(card)
    told = facts.kitchen.get("multiplies")
    fast = [one for one in (CARDS[word].fast if word else ()) if one in COMFYUI_SINCE]
    if told and card.capability:
        fast = [one for one in COMFYUI_SINCE if told.get("w4a8" if one == "w6a8" else one)]
    slow = facts.cuda and version_key(facts.cuda) < version_key(KITCHEN_CUDA)
    return [one for one in fast if not (slow and one in KITCHEN_FORMATS)]


def judge_formats(comfyui: ComfyUI, facts: PythonFacts, card: Gpu | None) -> Iterator[Examined]:
    """Judge which formats suit this ComfyUI on this card, and name the option that chooses them.

    A ComfyUI that does not tell its version is not judged.
    """
    if not comfyui.version:
        return
    loaded = loaded_formats(comfyui, facts.versions.get("comfy-kitchen", ""))
    yield Examined(topic="it loads", state=titles(loaded))
    if card is None:
        return
    fast = [word for word in fast_formats(facts, card) if word in loaded]
    rest = "; the rest is decoded to 16 bits: as small, no faster"
    advice = []
    if word := class_of(card):
        wanted = [one for one in formats_of_card(word) if one in COMFYUI_SINCE]
        fits = [one for one in wanted if one in loaded]
        option = f"--card {word}"
        if fits != wanted:
            option += f" --formats {','.join([*fits, '16bit'])}"
        advice.append(Advice("hint", f"convert for this card with {option}"))
    yield Examined(topic="multiplies", state=titles(fast) + rest, advice=advice)


def titles(words: list[str]) -> str:
    """Write words of formats as people do: NVFP4, INT8."""
    return ", ".join(word.upper() for word in words) or "none"
