"""What follows from the facts of a machine, of machines that are not at hand."""

from pathlib import Path

import pytest

from nvfp4.asking.find import ComfyUI
from nvfp4.cards import CARDS, COMFYUI_SINCE, KITCHEN_SINCE, UNITS, card_of
from nvfp4.doctor import judge
from nvfp4.doctor.records import Gpu, PythonFacts
from nvfp4.formats.base import written_formats

RTX_4090 = Gpu(name="NVIDIA GeForce RTX 4090", capability=(8, 9), memory=24 << 30, driver="580.65")
GTX_1080 = Gpu(name="NVIDIA GeForce GTX 1080", capability=(6, 1), memory=8 << 30, driver="560.35")
KITCHEN = {"backends": {"cuda": "", "eager": "", "triton": "No module named 'triton'"}}


def python(cuda="13.0", cards=(RTX_4090,), kitchen="0.2.40", **torch):
    """Make the facts of a Python whose torch sees some cards."""
    seen = [{"name": one.name, "capability": list(one.capability or (12, 0)),
             "memory": one.memory, "chip": one.chip} for one in cards]  # fmt: skip
    return PythonFacts(
        path=Path("/venv/bin/python"),
        python="3.12.3",
        versions={"torch": "2.9.1", "comfy-kitchen": kitchen} if kitchen else {"torch": "2.9.1"},
        torch={"version": "2.9.1", "cuda": cuda, "hip": None, "cards": seen} | torch,
        kitchen=KITCHEN,
    )


def comfyui(version="0.33.0"):
    return ComfyUI(folder=Path("/ComfyUI"), named_by="--comfyui", python=Path("p"), version=version)


def torch_of(facts, cards=(RTX_4090,), is_ours=True, is_comfyui=True):
    return judge.judge_torch(facts, [*cards], is_ours=is_ours, is_comfyui=is_comfyui)


def formats_of(facts, card=RTX_4090, version="0.33.0"):
    """Tell the formats that are loaded, those that are multiplied, and the option for the card."""
    loads, *multiplies = judge.judge_formats(comfyui(version), facts, card)
    return loads.state, *((one.state, *(hint.text for hint in one.advice)) for one in multiplies)


def test_versions_that_load_a_format_are_those_of_its_row():
    rows = {form.option: form for form in written_formats() if form.option in COMFYUI_SINCE}
    assert {word: form.since for word, form in rows.items()} == COMFYUI_SINCE
    assert {word: f.since_kitchen for word, f in rows.items() if f.since_kitchen} == KITCHEN_SINCE
    assert {*COMFYUI_SINCE} == {*UNITS} - {"16bit"}


@pytest.mark.parametrize(
    ("capability", "word"),
    [((12, 0), "blackwell"), ((10, 0), "blackwell"), ((9, 0), "ada"), ((8, 9), "ada"),
     ((8, 6), "ampere"), ((7, 5), "turing"), ((7, 0), ""), ((6, 1), "")],
)  # fmt: skip
def test_a_class_is_told_by_compute_capability(capability, word):
    assert card_of(capability) == word
    assert {fast for card in CARDS.values() for fast in card.fast} == {*UNITS}


def test_a_sound_torch_needs_nothing():
    one = torch_of(python())
    assert one.state == "2.9.1, built for CUDA 13.0"
    assert not one.advice
    assert not one.fails


def test_a_torch_for_the_cpu_leaves_the_card_alone():
    """PyPI's torch for Windows is such a one; conversions run all the same."""
    (advice,) = torch_of(python(cuda=None, cards=())).advice
    assert advice.rank == "warning"
    assert advice.text == "the card is not used, as this torch is built for the CPU"
    assert advice.command.endswith("--force-reinstall torch " + judge.TORCH_INDEX + "cu130")
    one = torch_of(python(cuda=None, cards=()), is_comfyui=False)
    assert [advice.rank for advice in one.advice] == ["hint"]
    assert not one.fails


def test_an_older_cuda_is_a_warning_where_comfyui_runs_with_it():
    (advice,) = torch_of(python(cuda="12.8")).advice
    assert "only with CUDA 13 (driver 580 or newer)" in advice.text
    assert not torch_of(python(cuda="12.8"), is_comfyui=False).advice
    old = python(cuda="12.6", cards=(GTX_1080,))
    assert not torch_of(old, cards=(GTX_1080,)).advice


def test_an_old_driver_is_named():
    (advice,) = torch_of(python(cards=()), cards=(GTX_1080,)).advice
    assert advice.text.startswith("driver 560.35 is too old, CUDA 13.0 needs 580")


@pytest.mark.parametrize(("is_ours", "rank"), [(True, "error"), (False, "warning")])
def test_a_torch_that_is_missing_or_broken(is_ours, rank):
    missing = PythonFacts(path=Path("p"), python="3.12.3", versions={}, torch={}, kitchen={})
    broken = python(problem="ImportError: libcudnn.so.9: cannot open")
    for facts in (missing, broken):
        one = torch_of(facts, cards=(), is_ours=is_ours)
        assert [advice.rank for advice in one.advice] == [rank]
        assert one.fails is is_ours
    assert one.state == "broken: ImportError: libcudnn.so.9: cannot open"


@pytest.mark.parametrize(("is_ours", "rank"), [(True, "error"), (False, "warning")])
def test_nothing_is_claimed_of_a_python_that_does_not_answer(is_ours, rank):
    facts = PythonFacts(
        path=Path("p"), python="", versions={}, torch={}, kitchen={}, silence="gave no answer"
    )
    one = torch_of(facts, is_ours=is_ours)
    assert one.state == "unknown: p gave no answer"
    assert one.fails is is_ours
    (advice,) = one.advice
    assert (advice.rank, advice.command) == (rank, 'p -c "import torch"')
    assert not [*judge.judge_compilers(facts)]


def test_cards_are_told_with_their_class():
    assert judge.judge_card(RTX_4090).state == (
        "NVIDIA GeForce RTX 4090, 25.77 GB, compute capability 8.9, class Ada, driver 580.65"
    )
    (advice,) = judge.judge_card(GTX_1080).advice
    assert advice.rank == "note"
    radeon = Gpu(name="Radeon RX 9070 XT", capability=None, memory=16 << 30, chip="gfx1201")
    assert judge.class_of(radeon) == "rdna"
    seen = python(cuda=None, cards=(radeon,), hip="7.2").cards
    assert [judge.class_of(card) for card in seen] == ["rdna"]


def test_formats_follow_from_comfyui_kitchen_and_card():
    fast = "W4A8, W6A8, INT8, FP8; the rest is decoded to 16 bits: as small, no faster"
    assert formats_of(python()) == (
        "NVFP4, W4A8, W6A8, INT8, FP8, MXFP8", (fast, "convert for this card with --card ada")
    )  # fmt: skip
    loads, (fast, hint) = formats_of(python(kitchen="0.2.31"), version="0.29.1")
    assert loads == "NVFP4, INT8, FP8, MXFP8"
    assert fast.startswith("INT8, FP8;")
    assert hint.endswith("--card ada --formats int8,fp8,16bit")
    assert formats_of(python(cuda="12.8"))[1][0].startswith("FP8;")
    assert formats_of(python(), card=None) == ("NVFP4, W4A8, W6A8, INT8, FP8, MXFP8",)
    assert len(formats_of(python(), card=GTX_1080)[1]) == 1
    assert not [*judge.judge_formats(comfyui(""), python(), RTX_4090)]


def test_comfy_kitchen_is_believed_about_the_card():
    facts = python()
    told = dict.fromkeys(COMFYUI_SINCE, False) | {"int8": True}
    facts = PythonFacts(
        path=facts.path, python=facts.python, versions=facts.versions, torch=facts.torch,
        kitchen=KITCHEN | {"multiplies": told},
    )  # fmt: skip
    assert judge.fast_formats(facts, RTX_4090) == ["int8"]
    assert judge.judge_kitchen(facts, comfyui()).state == "0.2.40, kernels: cuda, eager"
    (advice,) = judge.judge_kitchen(python(kitchen=""), comfyui()).advice
    assert advice.command.endswith(f"-m pip install -r {Path('/ComfyUI/requirements.txt')}")


def test_comfyui_is_there_or_not():
    assert judge.judge_comfyui(None, is_asked=False).advice[0].rank == "hint"
    (advice,) = judge.judge_comfyui(comfyui("0.9.2"), is_asked=True).advice
    assert advice.rank == "warning"
    (advice,) = judge.judge_comfyui(comfyui(), is_asked=False).advice
    assert advice.command.endswith(f" --doctor --comfyui {Path('/ComfyUI')}")


def test_what_is_missing_here():
    one = judge.judge_python(["torch", "gguf", "numpy"], Path("p"))
    assert one.fails
    assert one.advice[0].text == "gguf, numpy are missing"
    assert not judge.judge_python(["torch"], Path("p")).advice
    assert judge.judge_memory(None).state == "not told by the system"
    assert judge.judge_memory((8 << 30, 1 << 30)).advice[0].rank == "hint"
    assert judge.judge_disk(Path("/x"), 10**9).advice[0].rank == "hint"


def test_what_compiles_kernels():
    (numba,) = judge.judge_compilers(python(cards=()))
    assert (numba.topic, numba.state) == ("numba", "not installed")
    (triton,) = judge.judge_compilers(python())
    assert triton.topic == "triton"
    assert triton.advice[0].command.endswith(("triton", "triton-windows"))
