"""The command line: paths, streams and exit codes."""

import re
import subprocess
import sys

import pytest

import convert_nvfp4 as c
from support.conversions import RECIPE
from support.paths import ROOT

INCLUDE = ("--include", "x")


def test_windows_paths_work_on_posix(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    index = f"{tiny.name}\\diffusion_pytorch_model.safetensors.index.json"
    out = f"{tmp_path}\\out.safetensors"
    command = [index, out, "--gguf", f"{tiny.name}\\model.gguf", *RECIPE, "--quiet"]
    assert c.main(command) == 0
    assert (tmp_path / "out.safetensors").is_file()


def test_results_go_to_stdout_and_progress_to_stderr(tiny, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    assert c.main([*command, *RECIPE, "--input-scale-layer-summary", "--verbose"]) == 0
    out, err = capsys.readouterr()
    # A log gets a line of what takes longer than two seconds.
    assert "error" not in err
    assert "converting" not in out
    assert "matmuls: W4A16 19 layers (18 %), W4A4 9 layers (8 %), W8A16 12 layers (13 %)" in out
    assert "worst layers by relative RMSE" in out
    assert "\nlayers    28 NVFP4 (19 W4A16, 9 W4A4), 12 FP8 (W8A16), " in out
    assert re.search(r"blocks\.2\.ffn\.0  0\.00\d+  summary p99\.9 x 1\.08", out)
    assert "blocks.2.ffn.2  none (not used)" in out
    assert c.main([*command, *RECIPE, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_verbose_prints_every_tensor(tiny, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    assert c.main([*command, *RECIPE, "--dry-run", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^  (?:NVFP4|FP8|F16|F32) +1 x ", out, re.MULTILINE)) == 231


def test_errors_are_lines_on_stderr_and_exit_1(tmp_path, capsys):
    arguments = [str(tmp_path / "no\x1b[31m.safetensors"), str(tmp_path / "o.safetensors")]
    assert c.main([*arguments, *INCLUDE]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    path = tmp_path / "no\\x1b[31m.safetensors"
    assert err == f"error: {path}: cannot read: No such file or directory\n"


def test_the_python_interface_takes_strings(tiny, tmp_path):
    out = tmp_path / "o.safetensors"
    gguf = str(tiny / "model.gguf")
    options = c.Options(
        source=str(tiny), output=str(out), gguf=gguf, gguf_nvfp4_max_bitdepth=5, quiet=True
    )
    report = c.convert(options)
    assert report.output_bytes == out.stat().st_size
    assert len(report.damage) == 56


def test_a_missing_gpu_is_an_error_not_the_cpu(tiny, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    assert c.main([*command, *RECIPE, "--device", "cuda:99"]) == 1
    assert "error: --device cuda:99: torch sees" in capsys.readouterr().err


def test_help_is_the_module_docstring_and_names_every_option():
    command = [sys.executable, str(ROOT / "convert_nvfp4.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert c.DESCRIPTION in text
    for row in c.OPTIONS:
        for flag in row.flags:
            assert flag in text


def test_list_presets_shows_every_row(capsys):
    with pytest.raises(SystemExit) as stop:
        c.main(["--list-presets"])
    assert stop.value.code == 0
    first = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {*c.FAMILIES} <= {*first}
    assert {f"{name}:" for name in c.GENERAL_PRESETS} <= {*first}
