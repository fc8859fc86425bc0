"""The command line: paths, contradictions, streams and exit codes."""

import re
import subprocess
import sys
from pathlib import Path

import make_shipped
import pytest

import convert_nvfp4 as c
from support.conversions import RECIPE
from support.paths import ROOT

INCLUDE = ("--include", "x")


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        c.parse_options(["in.safetensors", "out.safetensors", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "none"), "--preset none quantises what --include REGEX names: give that"),
        (
            (
                *INCLUDE,
                "--no-input-scale",
                "--input-scale-summary-json",
                "scales_summary_wan22_5b.json",
            ),
            "--no-input-scale contradicts --input-scale-summary-json",
        ),
        (
            (*INCLUDE, "--no-input-scale", "--input-scale-from", "s"),
            "--no-input-scale contradicts --input-scale-from",
        ),
        (
            (*INCLUDE, "--no-input-scale", "--input-scale-value", "1"),
            "--no-input-scale contradicts --input-scale-value",
        ),
        ((*INCLUDE, "--quiet", "--verbose"), "--quiet contradicts --verbose"),
        (
            (*INCLUDE, "--use-ck-quant", "--scale-search", "mse"),
            "--use-ck-quant contradicts --scale-search",
        ),
        ((*INCLUDE, "--report", "r.txt"), "--report must end in .json or .html: r.txt"),
        (
            (*INCLUDE, "--input-scale-summary-percentile", "99"),
            "--input-scale-summary-percentile needs --input-scale-summary-json",
        ),
        (
            (*INCLUDE, "--input-scale-summary-multiplier", "1"),
            "--input-scale-summary-multiplier needs --input-scale-summary-json",
        ),
        ((*INCLUDE, "--use-fp8"), "--use-fp8 needs --gguf"),
        ((*INCLUDE, "--gguf-nvfp4-max-bitdepth", "5"), "-max-bitdepth needs --gguf"),
        ((*INCLUDE, "--gguf-keep-edge-blocks-fp16"), "-edge-blocks-fp16 needs --gguf"),
        (("--include", "("), "'(' is not a regular expression"),
        ((*INCLUDE, "--input-scale-value", "-1"), "-1 is not a positive number"),
        ((*INCLUDE, "--input-scale-value", "nan"), "nan is not a positive number"),
        ((*INCLUDE, "--device", "tpu"), "'tpu' is not auto, cpu, cuda or cuda:N"),
        ((*INCLUDE, "--inc", "x"), "unrecognized arguments: --inc"),
    ],
)
def test_contradictions_are_usage_errors(capsys, arguments, message):
    assert message in usage_error(capsys, *arguments)


def test_the_output_must_be_a_safetensors_file(capsys):
    with pytest.raises(SystemExit) as stop:
        c.parse_options(["in.safetensors", "out.gguf", *INCLUDE])
    assert stop.value.code == 2
    assert "OUTPUT must end in .safetensors" in capsys.readouterr().err


def test_windows_paths_work_on_posix(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    index = f"{tiny.name}\\diffusion_pytorch_model.safetensors.index.json"
    out = f"{tmp_path}\\out.safetensors"
    command = [index, out, "--gguf", f"{tiny.name}\\model.gguf", *RECIPE, "--quiet"]
    assert c.main(command) == 0
    assert (tmp_path / "out.safetensors").is_file()


def test_summaries_and_lists_are_found_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["a", "o.safetensors", "--gguf", "g", *RECIPE]
    options = c.parse_options(arguments)
    assert options.input_scale_summary_json == ROOT / "calib/scales_summary_wan22_5b.json"
    lists = ROOT / "sensitive_layers"
    assert options.full_precision_mm_layers == lists / "sensitive_layers_wan22_5b.txt"
    (tmp_path / "scales_summary_wan22_5b.json").write_text("{}")
    found = c.parse_options(arguments).input_scale_summary_json
    assert found == Path("scales_summary_wan22_5b.json")


def test_results_go_to_stdout_and_progress_to_stderr(tiny, tmp_path, capsys):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    assert c.main([*command, *RECIPE, "--input-scale-layer-summary"]) == 0
    out, err = capsys.readouterr()
    assert "converting: 100%" in err
    assert "matmuls: W4A16 19 layers (18 %), W4A4 9 layers (8 %), W8A16 12 layers (13 %)" in out
    assert "worst layers by relative RMSE" in out
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


def test_readme_shows_the_flags_that_help_shows():
    command = [sys.executable, str(ROOT / "tools/readme_flags.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shipped_lists_follow_from_the_shipped_summaries():

    for _, summary, layers, threshold in make_shipped.SHIPPED:
        listed = ROOT / f"sensitive_layers/sensitive_layers_{layers}.txt"
        assert listed.read_bytes() == make_shipped.shipped_list(summary, threshold).encode()
