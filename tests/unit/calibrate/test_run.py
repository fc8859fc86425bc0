"""What is wrong is told in one line before ComfyUI is started."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.calibrate.encoders import stays_16_bit
from nvfp4.calibrate.run import OwnRecording, read_prompts, run_calibration
from nvfp4.calibrate.running import failure, reason_in
from nvfp4.errors import ConvertError
from nvfp4.options.tasks import CalibrationRun
from support.small_t5 import t5


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


def test_all_that_a_calibration_lacks_is_named_at_once(given, monkeypatch):
    def told(**changed):
        with pytest.raises(ConvertError) as found:
            CalibrationRun(**given | changed)
        return str(found.value)

    every = {"comfyui": None, "text_encoder": (), "prompts": None}
    needed = "--calibrate needs --comfyui DIR, --text-encoder FILE and --prompts FILE"
    assert told(**every) == needed
    assert told(prompts=None) == "--calibrate needs --prompts FILE"
    CalibrationRun(**given | {"text_encoder": (), "workflow": "w.json"})
    monkeypatch.setenv("COMFYUI_ROOT", "c")
    CalibrationRun(**given | {"comfyui": None})


BANNER = "***----***\nAdvice of a custom node\n***----***\n"
RAISED = 'Traceback (most recent call last):\n  File "a.py", line 1\n    a()\nx.NoCard: none\n'


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        (RAISED + BANNER, "x.NoCard: none"),
        (f"{RAISED}\nDuring handling of it:\n\n{RAISED.replace('x.', 'y.')}", "y.NoCard: none"),
    ],
)
def test_why_a_comfyui_ended_is_its_exception_whatever_follows(log, reason):
    assert reason_in(log) == reason


def test_a_failure_tells_the_first_of_the_lines_that_it_announces():
    data = {"node_type": "CLIPLoader", "exception_type": "RuntimeError"}
    told = failure(data | {"exception_message": "Error(s) in loading T5:\n\tsize mismatch\n\tb\n"})
    assert told == "ComfyUI: CLIPLoader: RuntimeError: Error(s) in loading T5: size mismatch"
    assert failure(data | {"exception_message": "a\nb"}).endswith("RuntimeError: a")


def test_a_comfyui_without_a_card_is_answered_with_its_argument(given, capsys):
    script = "raise AssertionError('Torch not compiled with CUDA enabled')"
    (given["comfyui"] / "main.py").write_text(script, encoding="utf-8")
    assert "give --comfyui-args=--cpu; all that ComfyUI printed" in problem(capsys, given)


def test_a_comfyui_that_does_not_start_says_why_and_its_output_is_kept(given, capsys):
    line = problem(capsys, given)
    kept = given["results"] / "wan.comfyui.txt"
    told = f"ComfyUI ended with status 1: no such card; all that ComfyUI printed is in {kept}"
    assert line == told
    assert kept.read_text(encoding="utf-8").strip() == "no such card"


def test_names_are_such_as_the_recorder_takes(tmp_path):
    for stem, name in (("a[1]", "a_1_"), (".b", "_b"), ("ä-2 (x)", "ä-2 (x)")):
        assert OwnRecording(model=tmp_path / f"{stem}.sft", folder=tmp_path).name == name


def test_encoders_are_told_that_no_conversion_is_next_for(tmp_path):
    clip = {f"text_model.encoder.layers.0.mlp.fc{i}.weight": torch.zeros(8, 8) for i in (1, 2)}
    for name, tensors, expected in (("clip_l", clip, True), ("t5", t5(), False)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        assert stays_16_bit(tmp_path / f"{name}.safetensors") is expected
