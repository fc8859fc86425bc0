"""--comfyui: a real ComfyUI asked by conversions and by --verify."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from nvfp4.asking.ask import ask_about_job
from nvfp4.asking.find import find_comfyui
from nvfp4.asking.linear import modules_told
from nvfp4.errors import ConvertError
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.read import read_guides
from nvfp4.layout import make_job
from nvfp4.options import Options
from nvfp4.plan.make import make_plans
from nvfp4.read.checkpoint import open_model
from nvfp4.source.read import read_source
from support.comfyui import COMFYUI, needs_comfyui, stubbed  # noqa: F401
from support.tiny_models import tiny_model

needed = pytest.mark.usefixtures("stubs")
pytestmark = [needs_comfyui, pytest.mark.slow]


@pytest.fixture
def stubs(stubbed, monkeypatch):  # noqa: F811
    """ComfyUI's process goes without torchaudio and torchvision."""
    monkeypatch.setenv("PYTHONPATH", stubbed)


def run(capsys, *arguments):
    status = c.main([*map(str, arguments), "--quiet"])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@needed
def test_a_conversion_asks_before_it_writes(tiny, tmp_path, capsys):
    out, report = tmp_path / "o.safetensors", tmp_path / "r.json"
    status, text, _ = run(capsys, tiny, out, "--comfyui", COMFYUI, "--report", report)
    assert status == 0
    data = json.loads(report.read_text(encoding="utf-8"))
    tensors, asked = len(load_file(out)), data["comfyui"]
    told = f"recognises WAN21_T2V as in the source, and takes all {tensors:,} tensors"
    assert asked["answer"] == f"ComfyUI {asked['version']} {told}"
    assert f"  {asked['answer']}\n" in text
    assert (asked["recognised"], asked["tensors"], asked["changed"]) == ("WAN21_T2V", tensors, None)
    assert asked["configuration"]["num_layers"] == "8"
    assert (asked["named_by"], asked["problems"]) == ("--comfyui", [])


@needed
def test_the_environment_names_a_comfyui_too(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMFYUI_ROOT", COMFYUI)
    page = tmp_path / "r.html"
    arguments = ("--recipe", "scaled-fp8", "--dry-run", "--report", page)
    status, text, _ = run(capsys, tiny, tmp_path / "o.safetensors", *arguments)
    assert status == 0
    assert " (COMFYUI_ROOT) recognises WAN21_T2V as in the source, and takes" in text
    assert " (COMFYUI_ROOT) recognises WAN21_T2V" in page.read_text(encoding="utf-8")


@needed
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_output_that_comfyui_would_not_take_is_refused(dry_run, tmp_path):
    """No plan of ours is such a one: a layer whose shape it reads is packed by hand."""
    source = tiny_model("flux", tmp_path / "flux.safetensors")
    options = Options(source=source, output=tmp_path / "o.safetensors", dry_run=dry_run)
    model = read_source(options).model
    plans = [
        dataclasses.replace(plan, precision=NVFP4) if plan.ref.layer == "txt_in" else plan
        for plan in make_plans(options, model, read_guides(options, model)).plans
    ]
    comfyui, job = find_comfyui(Path(COMFYUI)), make_job(options, model, plans)
    told = "this ComfyUI recognises another model than in the source: the file (context_in_dim"
    if dry_run:
        assert any(told in problem for problem in ask_about_job(comfyui, job).problems)
    else:
        with pytest.raises(ConvertError) as found:
            ask_about_job(comfyui, job)
        assert any(told in problem for problem in found.value.problems)


@needed
def test_verify_asks_about_the_file(converted, tiny, tmp_path, capsys):
    asks = ("--comfyui", COMFYUI)
    status, text, _ = run(capsys, "--verify", converted, "--source", tiny, *asks)
    assert status == 0
    assert "recognises WAN21_T2V as in the source, and takes" in text
    tensors = load_file(converted)
    del tensors["blocks.3.norm3.weight"]
    lost = tmp_path / "lost.safetensors"
    save_file(tensors, lost)
    status, text, _ = run(capsys, "--verify", lost, *asks)
    assert status == 1
    assert "WRONG  1 x tensors of this ComfyUI's model are not in the file" in text
    assert "         blocks.3.norm3.weight\n" in text
    assert "does not take this file as it should" in text


@needed
def test_what_comfyui_does_not_know_is_told(tmp_path, capsys):
    save_file({"a.weight": torch.ones(64, 64)}, tmp_path / "s.safetensors")
    asks = ("--comfyui", COMFYUI)
    source, out = tmp_path / "s.safetensors", tmp_path / "o.safetensors"
    status, _, error = run(capsys, source, out, "--preset", "all", *asks)
    assert status == 1
    assert "recognises neither the source nor the output" in error
    assert not out.exists()
    assert run(capsys, source, out, "--preset", "all")[0] == 0
    status, text, _ = run(capsys, "--verify", out, "--source", source, *asks)
    assert (status, "FAILS  1 x this ComfyUI recognises neither" in text) == (1, True)
    status, text, _ = run(capsys, "--verify", out, *asks)
    assert (status, "FAILS  1 x this ComfyUI recognises no diffusion model" in text) == (1, True)


def test_a_folder_that_is_no_comfyui_is_refused_first(tmp_path, capsys, monkeypatch):
    nowhere = tmp_path / "nowhere"
    arguments = ("no.safetensors", "o.safetensors")
    status, _, text = run(capsys, *arguments, "--comfyui", nowhere)
    assert (status, text.startswith(f"error: --comfyui: {nowhere} is no ComfyUI")) == (1, True)
    monkeypatch.setenv("COMFYUI_ROOT", str(nowhere))
    save_file({"a.weight": torch.ones(64, 64)}, tmp_path / "s.safetensors")
    status, text, _ = run(capsys, "--verify", tmp_path / "s.safetensors")
    told = f"  ComfyUI (COMFYUI_ROOT) was not asked: {nowhere} is no ComfyUI folder"
    assert (status, told in text) == (0, True)


@needed
def test_comfyui_decides_what_is_linear_in_an_unknown_model(tiny, monkeypatch):
    """A Wan that no row is for: every linear layer of ComfyUI's own is one, and no other."""
    monkeypatch.setattr("nvfp4.asking.linear.recognise", lambda _: ("", ""))
    model = open_model(tiny)
    modules, (note,) = modules_told(find_comfyui(Path(COMFYUI)), model)
    assert {name for name, kind in modules.items() if not kind} == {
        ref.name for ref in model.linear_weights
    }
    assert " recognises WAN21_T2V, and has " in note
