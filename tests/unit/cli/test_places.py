"""Where a conversion goes: OUTPUT, a folder, several models, and the short help."""

import json
import os
import re

import pytest

from nvfp4.cli.parse import parse_options, parse_tasks
from nvfp4.options import OPTIONS


def told(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        parse_tasks([*map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("convert_nvfp4.py: error: ")


def test_options_may_stand_between_the_places(tmp_path):
    task = parse_options(["a.safetensors", "--preset", "wan", f"{tmp_path}/b.safetensors"])
    assert (task.preset, task.output) == ("wan", tmp_path / "b.safetensors")


def test_output_may_be_left_out_or_a_folder(tmp_path):
    source = str(tmp_path / "x_fp16.safetensors")
    beside = tmp_path / "x_nvfp4.safetensors"
    assert parse_options([source]).output == beside
    assert parse_options([source, f"{tmp_path}/"]).output == beside
    assert parse_options([source, f"{tmp_path}/n/", "--make-folder"]).output.parent.name == "n"


def test_several_models_go_into_a_folder(tmp_path, capsys):
    tasks = parse_tasks(["a.safetensors", "b_bf16.safetensors", "c", str(tmp_path), "--quiet"])
    assert [task.source.name for task in tasks] == ["a.safetensors", "b_bf16.safetensors", "c"]
    names = [tmp_path / f"{name}_nvfp4.safetensors" for name in "abc"]
    assert [task.output for task in tasks] == names
    assert all(task.quiet for task in tasks)
    sentence = "of several models, the last place is a folder: x is none; --make-folder creates one"
    assert told(capsys, "a", "b", "x") == sentence
    assert len(parse_tasks(["a", "b", str(tmp_path / "x"), "--make-folder"])) == 2


def test_two_models_must_not_become_one_file(tmp_path, capsys):
    path = tmp_path / "x_nvfp4.safetensors"
    sentence = f"{path} would be written for x.safetensors and for x_bf16.safetensors"
    assert told(capsys, "x.safetensors", "x_bf16.safetensors", tmp_path) == sentence
    sentence = "r.json would be written for a and for b"
    assert told(capsys, "a", "b", tmp_path, "--report", "r.json") == sentence


def test_all_names_that_are_taken_are_told(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}_nvfp4.safetensors").touch()
    with pytest.raises(SystemExit):
        parse_tasks(["a.safetensors", "b.safetensors", "c.safetensors", str(tmp_path)])
    *_, first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(", or leave out a.safetensors")
    assert second.endswith(", or leave out b.safetensors")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [("y/../x.safetensors", " would be written for a and for b"),
     ("X.safetensors", " would be written for a and for b")],
)  # fmt: skip
def test_two_spellings_are_one_file(output, sentence, tmp_path, capsys):
    (tmp_path / "y").mkdir()
    models = {"a": "x.safetensors", "b": output}
    recipe = tmp_path / "two.json"
    data = [{"source": f"{name}.safetensors", "output": place} for name, place in models.items()]
    recipe.write_text(json.dumps({"model": data}), encoding="utf-8")
    told_once = told(capsys, "--recipe-file", recipe).partition(" (with")[0]
    assert (
        told_once.replace(f"{tmp_path}{os.sep}", "").replace(".safetensors", "").endswith(sentence)
    )


def test_the_short_help_is_short_and_the_long_one_whole(capsys):
    texts = {}
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as stop:
            parse_tasks([word])
        assert stop.value.code == 0
        texts[word] = capsys.readouterr().out
    short = texts["-h"].splitlines()
    assert len(short) <= 24
    assert max(map(len, short)) <= 80
    shown = re.findall(r"^  (--[\w-]+|SOURCE|OUTPUT)", texts["-h"], re.MULTILINE)
    assert shown == [row.flag for row in OPTIONS if row.everyday]
    assert "--help" in short[-1]
    assert all(flag in texts["--help"] for row in OPTIONS for flag in row.flags)


def test_places_are_no_options(capsys):
    for words in (("-o", "x.safetensors"), ("--output=x.safetensors",)):
        assert told(capsys, "a.safetensors", *words).endswith(
            "; OUTPUT is no option: SOURCE OUTPUT"
        )
    assert told(capsys, "--input", "a.safetensors").endswith("; SOURCE is no option: SOURCE OUTPUT")
    assert told(capsys, "a", "--quite").endswith("; did you mean --quiet?")


def test_a_mistake_is_one_line_without_the_usage(capsys):
    with pytest.raises(SystemExit):
        parse_tasks(["a.safetensors", "--dtype", "x"])
    assert len(capsys.readouterr().err.splitlines()) == 1
