"""Recipe files: options of one conversion or of several, as on the command line."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from nvfp4.cli.parse import parse_options, parse_tasks
from nvfp4.errors import ConvertError
from nvfp4.options import Options, options_of
from nvfp4.options.recipe_files import read_recipe, recipe_path, render_recipes, shipped_recipes
from support.paths import ROOT

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

ROWS = options_of(Options)
COMMON = (
    "--gguf-nvfp4-max-bitdepth 5 --low-mem --gguf-keep-edge-blocks-fp16 --quant-dtype float32 "
    "--dtype float16 "
)
MARKED = (
    "--input-scale-summary-percentile 99.9 --input-scale-summary-multiplier 1.08 "
    "--full-precision-mm-cross-attn-qkvo "
)
# The documented command lines, without their own files.
LINES = {
    **{
        f"wan22-i2v-14b-{noise}": f"{COMMON}{MARKED}--use-fp8 --input-scale-summary-json "
        f"scales_summary_wan22_14b_{noise}noise.json --full-precision-mm-layers "
        f"sensitive_layers_wan22_i2v_14b_{noise}.txt"
        for noise in ("high", "low")
    },
    "wan22-ti2v-5b": f"{COMMON}{MARKED}--input-scale-summary-json scales_summary_wan22_5b.json "
    "--full-precision-mm-layers sensitive_layers_wan22_5b.txt",
    "wan22-calibrate": f"{COMMON}--no-input-scale",
}
PLACES = ["in.safetensors", "out.safetensors", "--gguf", "g.gguf"]


def write(folder, text, name="r.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder, text, name="r.toml"):
    path = write(folder, text, name)
    with pytest.raises(ConvertError) as found:
        read_recipe(path, ROWS)
    return [problem.removeprefix(f"{path}: ") for problem in found.value.problems]


def told(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        parse_tasks([*map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("convert_nvfp4.py: error: ")


def test_every_shipped_recipe_is_a_documented_line():
    lines = [path.stem for path in shipped_recipes() if not path.stem.startswith("pipeline-")]
    assert lines == sorted(LINES)
    for name, line in LINES.items():
        options = parse_options([*PLACES, "--recipe-file", name])
        assert options == parse_options([*PLACES, *shlex.split(line)])


def test_the_recipes_are_listed_with_what_they_need(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        parse_tasks(["--list-recipes"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for path in shipped_recipes():
        assert f"{path.stem}:\n  " in text
        if path.stem.startswith("pipeline-"):
            place = "FOLDER OUTPUT_FOLDER --recipe-file"
            assert f"  python convert_nvfp4.py {place} {path.stem} --fit " in text
            continue
        # A line to paste: whole, and with the program before it.
        command = f"  python convert_nvfp4.py SOURCE OUTPUT --recipe-file {path.stem} --gguf "
        assert command in text
    monkeypatch.setattr("sys.argv", ["/venv/bin/convert-nvfp4", "--list-recipes"])
    with pytest.raises(SystemExit):
        parse_tasks(["--list-recipes"])
    assert "  convert-nvfp4 SOURCE OUTPUT --recipe-file " in capsys.readouterr().out


def test_a_script_without_its_recipes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("nvfp4.options.recipe_files.HERE", tmp_path)
    assert render_recipes("x").startswith("There is no recipes/ beside this script: copy it from")


def test_what_is_named_wins_over_the_file(tmp_path):
    text = 'dtype = "float16"\nuse-ck-quant = true\nquiet = true\nexclude = ["a", "b"]\n'
    recipe = write(tmp_path, text)
    given = [*PLACES[:2], "--recipe-file", str(recipe)]
    options = parse_options(given)
    assert (options.dtype, options.scale_search, options.exclude) == ("float16", "amax", ("a", "b"))
    options = parse_options([*given, "--dtype", "float32", "--scale-search", "mse"])
    assert (options.dtype, options.scale_search, options.quiet) == ("float32", "mse", True)


def test_false_is_not_given(tmp_path):
    recipe = write(tmp_path, "quiet = false\nmin-ffn-fp8 = true\n")
    assert read_recipe(recipe, ROWS) == [{"--min-ffn-fp8": True}]


def test_a_table_with_an_underscore_is_told_its_name(tmp_path):
    (told,) = mistakes(tmp_path, "[[text_encoder]]\nsource = 'a.safetensors'\n")
    assert told == "text_encoder is no table of a recipe; it is [[text-encoder]]"


def test_every_mistake_is_a_line_with_the_file_and_the_key(tmp_path, capsys):
    text = """
        quiett = true
        input_scale_value = 1
        quiet = "yes"
        edge-blocks = true
        dtype = "float8"
        dry-run = [true]
        preset = ["wan"]
        report = 5
        verify = "x"
    """
    assert mistakes(tmp_path, text) == [
        "quiett: is no option of a conversion; did you mean quiet?",
        "input_scale_value: is no option of a conversion; did you mean input-scale-value?",
        "quiet: 'yes' is not true or false",
        "edge-blocks: True is no whole number of 0 or more",
        "dtype: invalid choice: 'float8' (choose from 'bfloat16', 'float16', 'float32'); did you "
        "mean float32?",
        "dry-run: [True] is not true or false",
        "preset: ['wan'] is no single value",
        "report: 5 is no path",
        "verify: is no option of a conversion",
    ]
    path = write(tmp_path, "quiet = 1\nlow-mem = 2\n")
    with pytest.raises(SystemExit):
        parse_tasks(["--recipe-file", str(path)])
    *_, first, second = capsys.readouterr().err.splitlines()
    assert first == f"convert_nvfp4.py: error: {path}: quiet: 1 is not true or false"
    assert second == f"error: {path}: low-mem: 2 is not true or false"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.toml", "quiet = ", "is not TOML: "),
        ("r.toml", "quiet = true\nquiet = true", "is not TOML: "),
        ("r.json", '{"quiet": true', "is not JSON: "),
        ("r.json", '{"quiet": true, "quiet": false}', "is not JSON: a key comes twice"),
        ("r.json", '{"model": []}', "model is not [[model]], a table for each"),
        ("r.json", '{"source": "a\\u0000b"}', "source: invalid value: 'a\\x00b'"),
        ("r.json", "[" * 100_000, "is not JSON: "),
        ("r.json", "[1]", "is no table of options"),
        ("r.json", " " * 1_000_001, "is larger than any recipe"),
        ("r.toml", "[model]\nquiet = true", "model is not [[model]], a table for each"),
        ("r.toml", "[gguf]\nx = 1", "gguf: {'x': 1} is no single value"),
    ],
    ids=str,
)
def test_what_is_no_recipe_is_told(name, text, message, tmp_path):
    (problem,) = mistakes(tmp_path, text, name)
    assert problem.startswith(message)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "r.json"
    os.mkfifo(path)
    with pytest.raises(ConvertError, match="is a pipe or a device"):
        read_recipe(path, [])


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "scales_summary_wan22_5b.json").write_text("{}")
    text = (
        'source = "m"\ngguf = "g.gguf"\ninput-scale-summary-json = "scales_summary_wan22_5b.json"\n'
    )
    text += 'full-precision-mm-layers = "sensitive_layers_wan22_5b.txt"\nmerge-lora = ["l:0.5"]\n'
    options = parse_options(["--recipe-file", str(write(tmp_path, text))])
    assert (options.source, options.gguf) == (tmp_path / "m", tmp_path / "g.gguf")
    assert options.input_scale_summary_json == tmp_path / "scales_summary_wan22_5b.json"
    shipped = ROOT / "sensitive_layers/sensitive_layers_wan22_5b.txt"
    assert options.full_precision_mm_layers == shipped
    assert options.merge_lora == ((tmp_path / "l", 0.5),)
    assert options.output == tmp_path / "m_mixed.safetensors"


def test_json_says_the_same(tmp_path):
    values = {"source": "m", "edge-blocks": 3, "quiet": True, "target-size": "8GB"}
    recipe = write(tmp_path, json.dumps(values), "r.json")
    options = parse_options(["--recipe-file", str(recipe)])
    assert (options.edge_blocks, options.target_size) == (3, 8_000_000_000)


def test_several_models_have_a_table_each(tmp_path, capsys):
    text = 'quiet = true\ndtype = "float16"\noutput = "."\n'
    text += '[[model]]\nsource = "high"\n[[model]]\nsource = "low"\ndtype = "float32"\n'
    recipe = write(tmp_path, text)
    high, low = parse_tasks(["--recipe-file", str(recipe), "--edge-blocks", "1"])
    assert (high.source, low.source) == (tmp_path / "high", tmp_path / "low")
    assert (high.dtype, low.dtype, low.edge_blocks, low.quiet) == ("float16", "float32", 1, True)
    assert [task.output.name for task in (high, low)] == [
        "high_nvfp4.safetensors", "low_nvfp4.safetensors",
    ]  # fmt: skip
    sentence = "the recipe names its models itself; leave SOURCE and OUTPUT out"
    assert told(capsys, "x", "--recipe-file", recipe).startswith(sentence)
    recipe = write(tmp_path, text.replace("low", "high"))
    assert re.search(r"high_nvfp4\.safetensors would be", told(capsys, "--recipe-file", recipe))


def test_a_problem_with_options_of_a_recipe_names_it(capsys):
    sentence = "it follows a GGUF: add --gguf FILE, see --list-recipes"
    sentence += " (with the options of wan22-ti2v-5b.toml)"
    assert told(capsys, "a", "--recipe-file", "wan22-ti2v-5b") == sentence
    assert told(capsys, "a", "--recipe-file", "wan22").startswith(
        "argument --recipe-file: no file wan22.toml, neither as given nor in recipes/: pipeline-"
    )


def test_a_recipe_is_found_by_name_or_path(tmp_path, monkeypatch):
    assert recipe_path("wan22-ti2v-5b") == ROOT / "recipes/wan22-ti2v-5b.toml"
    assert recipe_path("wan22-ti2v-5b.toml") == ROOT / "recipes/wan22-ti2v-5b.toml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wan22-ti2v-5b.toml").touch()
    assert recipe_path("wan22-ti2v-5b") == Path("wan22-ti2v-5b.toml")
