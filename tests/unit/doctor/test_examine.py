"""The doctor at work: on this machine, on a ComfyUI's folder, and where torch is missing."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvfp4.asking.find import INTERPRETERS, nearby_comfyui
from nvfp4.cli.doctor import render_examined, run_doctor
from nvfp4.doctor import examine as examining
from nvfp4.doctor.facts import Probe, as_word, card_of_row, memory_sizes, pip_command
from nvfp4.doctor.records import Advice, Examined
from nvfp4.options import Doctor
from support.paths import ROOT
from support.schema import misfits


@pytest.fixture
def comfyui(tmp_path):
    """A folder that looks like ComfyUI's, of a version that loads W4A8."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.31.2"\n', encoding="utf-8")
    return folder


def test_this_machine_is_examined(comfyui, capsys):
    assert run_doctor(Doctor(comfyui=comfyui, json=True, quiet=True)) == 0
    printed = capsys.readouterr()
    assert (printed.out.count("\n"), printed.err) == (1, "")
    data = json.loads(printed.out)
    assert misfits(data) == []
    assert data["conversions_run"]
    found = {one["topic"]: one["state"] for one in data["examined"]}
    assert [*found][:4] == ["Python", "memory", "disk", "torch"]
    assert {"card", "ComfyUI", "comfy-kitchen", "it loads", "result"} <= {*found}
    assert found["ComfyUI"].startswith(f"0.31.2 in {comfyui.resolve()}")
    assert found["result"].startswith("conversions run here, on ")


def test_without_torch_it_tells_so_and_ends_with_1(tmp_path):
    """`-S` leaves out what is installed."""
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "convert_nvfp4.py", "--doctor"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: safetensors, gguf, numpy are missing:\n    " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("result         no conversion can run yet: Py")


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path, capsys):
    assert run_doctor(Doctor(comfyui=tmp_path)) == 1
    assert capsys.readouterr().err.startswith(f"error: --comfyui: {tmp_path} is no ComfyUI folder")


def test_a_comfyui_is_found_above_this_folder(comfyui, monkeypatch):
    monkeypatch.chdir(comfyui / "comfy")
    assert nearby_comfyui().folder == comfyui.resolve()
    monkeypatch.chdir(comfyui.parent)
    assert nearby_comfyui().named_by == "found nearby"


def test_nothing_of_the_current_folder_is_run(comfyui, monkeypatch):
    """Neither modules with the names of the standard library's, nor a Python that lies about."""
    monkeypatch.delenv("COMFYUI_ROOT", raising=False)
    monkeypatch.chdir(comfyui)
    for module in ("json.py", "random.py", "torch.py", "numpy.py"):
        Path(module).write_text("raise SystemExit('run')", encoding="utf-8")
    python = comfyui / INTERPRETERS[-1]
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ntouch {as_word(comfyui / 'run')}\n", encoding="utf-8")
    python.chmod(0o755)
    found = {one.topic: one for one in examining.examine(Doctor())}
    assert not (comfyui / "run").exists()
    assert found["torch"].state.partition(",")[0] == torch.__version__
    (hint,) = found["ComfyUI"].advice
    assert hint.command.endswith(f" --doctor --comfyui {as_word(comfyui.resolve())}")
    assert "comfy-kitchen" not in found


def test_a_python_that_is_none_is_told(tmp_path):
    silent = Probe(tmp_path / "python", kitchen=False)
    assert silent.facts.silence.startswith("cannot be started: ")
    assert examining.conclusion(["torch"], silent).state.startswith("not known whether")


@pytest.mark.skipif(os.name == "nt", reason="a program of two lines for a shell of Unix")
@pytest.mark.parametrize(
    "said", ["", "echo 1", "echo [1]", "echo '{\"python\": 1}'", "echo why >&2"]
)
def test_a_program_that_is_no_python_is_told(said, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{said}\n", encoding="utf-8")
    python.chmod(0o755)
    told = Probe(python, kitchen=True).facts.silence
    assert told == ("gave no answer: why" if "why" in said else "gave no answer")


def test_a_portable_comfyui_has_its_own_pip():
    embedded = Path("portable folder") / "python_embeded" / "python.exe"
    assert pip_command(embedded) == f'"{embedded}" -s -m pip install'
    assert as_word(Path("a")) == "a"


@pytest.mark.skipif(os.name == "nt", reason="as a shell of Unix reads it")
@pytest.mark.parametrize("name", ["a b", "$(touch x)", "it's", "a;b", "`x`"])
def test_a_path_is_one_word(name):
    assert shlex.split(as_word(Path(name))) == [name]
    assert name == "a b" or as_word(Path(name))[0] == "'"


def test_rows_of_nvidia_smi():
    card = card_of_row("NVIDIA H200", "9.0", "143771", "580.159.04")
    assert (card.capability, card.memory, card.driver) == ((9, 0), 143771 << 20, "580.159.04")
    unknown = card_of_row("NVIDIA GB10", "[N/A]", "[N/A]", "580.95")
    assert (unknown.capability, unknown.memory) == (None, 0)


def test_memory_is_told():
    total, free = memory_sizes()
    assert 0 < free <= total


def test_a_command_stands_alone_and_whole():
    command = "python -m pip install " + "x" * 60
    one = Examined(
        topic="torch", state="built for the CPU alone, of all things",
        advice=[Advice("hint", "what is slow, told in more than one line", command)],
    )  # fmt: skip
    assert render_examined(one, 40).splitlines() == [
        "torch          built for the CPU alone,",
        "               of all things",
        "hint: what is slow, told in more than",
        "    one line:",
        f"    {command}",
    ]
