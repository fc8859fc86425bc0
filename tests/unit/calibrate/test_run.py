"""What is wrong is told in one line before ComfyUI is started."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.calibrate.run import OwnRecording, read_prompts, run_calibration
from nvfp4.errors import ConvertError
from nvfp4.options.tasks import CalibrationRun


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Options of a calibration whose files are there, with a folder that looks like ComfyUI."""
    monkeypatch.delenv("COMFYUI_ROOT", raising=False)
    comfyui = tmp_path / "ComfyUI"
    (comfyui / "comfy").mkdir(parents=True)
    (comfyui / "main.py").write_text("raise SystemExit('no such card')", encoding="utf-8")
    (tmp_path / "p.txt").write_bytes("\ufeffa fox\r\n\r\n two dogs \r\n".encode())
    model = tmp_path / "wan.safetensors"
    # All that a Wan for text is recognised by.
    shapes = {
        "head.modulation": (1, 2, 8), "blocks.0.ffn.0.weight": (16, 8),
        "patch_embedding.weight": (8, 16, 1, 2, 2),
    }  # fmt: skip
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, model)
    (tmp_path / "t.safetensors").touch()
    return {
        "calibrate": model, "comfyui": comfyui, "prompts": tmp_path / "p.txt",
        "text_encoder": tmp_path / "t.safetensors", "results": tmp_path / "results",
    }  # fmt: skip


def problem(capsys, given, **changed):
    """The line that a calibration ends with; nothing is printed as a result."""
    assert run_calibration(CalibrationRun(**given | changed)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1].removeprefix("error: ")


def test_prompts_are_lines(given):
    assert read_prompts(given["prompts"]) == ["a fox", "two dogs"]
    given["prompts"].write_text(" \n", encoding="utf-8")
    with pytest.raises(ConvertError, match="has no prompt; write one on each line"):
        read_prompts(given["prompts"])
    with pytest.raises(ConvertError, match="is a safetensors file, and no text"):
        read_prompts(given["calibrate"])


def test_what_is_missing_or_unfit_is_one_line(given, capsys, tmp_path):
    assert "--comfyui DIR, the folder of your ComfyUI" in problem(capsys, given, comfyui=None)
    assert "is no ComfyUI folder" in problem(capsys, given, comfyui=tmp_path)
    none = tmp_path / "none"
    assert problem(capsys, given, text_encoder=none) == f"{none}: no such file"
    assert "a model in shards" in problem(capsys, given, calibrate=tmp_path)
    assert "both halves have one name" in problem(capsys, given, low_noise=given["calibrate"])
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    assert "a GGUF needs your own workflow" in problem(capsys, given, calibrate=gguf)
    quote = problem(capsys, given, comfyui_args="--x '")
    assert quote == "--comfyui-args: No closing quotation"


def test_a_comfyui_that_does_not_start_says_why_and_its_output_is_kept(given, capsys):
    line = problem(capsys, given)
    kept = given["results"] / "wan.comfyui.txt"
    told = f"ComfyUI ended with status 1: no such card; all that ComfyUI printed is in {kept}"
    assert line == told
    assert kept.read_text(encoding="utf-8").strip() == "no such card"


def test_names_are_such_as_the_recorder_takes(tmp_path):
    for stem, name in (("a[1]", "a_1_"), (".b", "_b"), ("ä-2 (x)", "ä-2 (x)")):
        assert OwnRecording(model=tmp_path / f"{stem}.sft", folder=tmp_path).name == name
