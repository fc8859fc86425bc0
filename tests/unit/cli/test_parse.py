"""Command lines: what contradicts, what needs another, what is no value."""

import io
from pathlib import Path

import pytest

from nvfp4.cli.arguments import telling
from nvfp4.cli.parse import parse_options, parse_tasks
from nvfp4.options.table import Options, __version__
from support.conversions import RECIPE
from support.paths import ROOT

INCLUDE = ("--include", "x")


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        parse_options(["in.safetensors", "out.safetensors", *arguments])
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
        ((*INCLUDE, "--report", "r.txt"), "--report must end in .json, .html or .svg: r.txt"),
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
        ((*INCLUDE, "--inc", "x"), "unrecognized arguments: --inc x; did you mean --include?"),
        (("--Preset", "wan"), "unrecognized arguments: --Preset wan; did you mean --preset?"),
        (("--use_fp8", "--gguff=x"), "; did you mean --use-fp8?; did you mean --gguf?"),
        (("-preset", "wan"), "; did you mean --preset?"),
        (("\u2014gguf", "x"), "; did you mean --gguf?"),
        (("--target",), "; did you mean --target-size or --target-ratio?"),
        (("--xyzzy",), "unrecognized arguments: --xyzzy\n"),
        (("--preset", "Wan"), "'all', 'none'); did you mean wan?"),
        (("--preset=WAN",), "'all', 'none'); did you mean wan?"),
        (
            ("--mode", "Safe"),
            "invalid choice: 'Safe' (choose from 'safe', 'all'); did you mean safe?",
        ),
        (("--dtype", "float-16"), "; did you mean float16?"),
    ],
)
def test_contradictions_are_usage_errors(capsys, arguments, message):
    assert message in usage_error(capsys, *arguments)


def test_the_output_must_be_a_safetensors_file(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(["in.safetensors", "out.gguf", *INCLUDE])
    assert stop.value.code == 2
    assert "OUTPUT must end in .safetensors" in capsys.readouterr().err


def test_summaries_and_lists_are_found_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["a", "o.safetensors", "--gguf", "g", *RECIPE]
    options = parse_options(arguments)
    assert options.input_scale_summary_json == ROOT / "calib/scales_summary_wan22_5b.json"
    lists = ROOT / "sensitive_layers"
    assert options.full_precision_mm_layers == lists / "sensitive_layers_wan22_5b.txt"
    (tmp_path / "scales_summary_wan22_5b.json").write_text("{}")
    found = parse_options(arguments).input_scale_summary_json
    assert found == Path("scales_summary_wan22_5b.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input-scale-policy", "headroom"], "--input-scale-policy needs --activation-stats"),
        (["--sensitivity-threshold", "0.1"], "--sensitivity-threshold needs --sensitivity-json"),
        (["--input-scale-summary-fp16-std"], "needs --input-scale-summary-json"),
        (["--sensitivity-json", __file__], "needs --sensitivity-threshold or --clip-rate-thre"),
        (["--input-scale-headroom", "2"], "needs --input-scale-policy headroom"),
        (["--input-scale-headroom", "0.5"], "0.5 is no margin: less than 1 would clip"),
    ],
)
def test_options_that_need_another(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_options(["m", "o.safetensors", "--include", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "GB", "5 XB", "0", "1e9", "5iB"])
def test_what_is_no_size(text, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(["a", "o.safetensors", "--output-sharded", "--max-shard-size", text])
    assert stop.value.code == 2
    assert "is no size like 5GB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "dtype", "expected"),
    [
        ("mixed", None, "bfloat16"),
        ("scaled-fp8", None, "float32"),
        ("scaled-fp8", "float16", "float16"),
    ],
)
def test_a_recipe_brings_its_dtype_unless_one_is_given(recipe, dtype, expected):
    options = Options(source="a", output="b.safetensors", recipe=recipe, dtype=dtype)
    assert options.dtype == expected
    given = ["--dtype", dtype] if dtype else []
    command = ["a", "b.safetensors", "--include", "x", "--recipe", recipe, *given]
    assert parse_options(command).dtype == expected


def test_mode_is_another_name():
    given = {("--mode", "safe"): "auto", ("--mode", "all"): "all", (): "auto"}
    for arguments, preset in given.items():
        assert parse_options(["m", "o.safetensors", *arguments]).preset == preset
    assert parse_options(["m", "o.safetensors", "--gguf", "x.gguf"]).preset is None


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--edge-blocks", "x"], "argument --edge-blocks: 'x' is no whole"), (["-h"], "usage: "),
     (["--list-presets"], "wan"), (["--version"], __version__)],
)  # fmt: skip
def test_a_program_that_parses_is_told_apart_from_the_process_it_is_in(words, told, capsys):
    stream = io.StringIO()
    with telling(stream), pytest.raises(SystemExit):
        parse_tasks(words)
    assert told in stream.getvalue()
    assert capsys.readouterr() == ("", "")
