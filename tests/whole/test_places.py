"""Where the files of a conversion go: folders, made names, several models in one call."""

import dataclasses
import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.conversions import RECIPE

PLAIN = ["--preset", "all", "--quiet", "--scale-search", "amax"]


def test_a_missing_folder_is_created_on_request_and_the_file_named(tiny, tmp_path, capsys):
    new = tmp_path / "a" / "models"
    given = [str(tiny), f"{new}/", "--report", f"{tmp_path}/r/r.json", *PLAIN]
    assert c.main([str(tiny), f"{new}/x.safetensors", *PLAIN]) == 1
    assert "no such folder; create it first, or give --make-folder" in capsys.readouterr().err
    assert c.main([*given, "--make-folder", "--dry-run"]) == 0
    assert "would fail" not in capsys.readouterr().out
    assert not new.exists()
    assert (tmp_path / "r/r.json").is_file()
    assert c.main([*given, "--make-folder"]) == 0
    assert [path.name for path in new.iterdir()] == [f"{tiny.name}_nvfp4.safetensors"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 needs tomli")
def test_a_named_recipe_gives_the_bytes_of_the_documented_line(tiny, tmp_path):
    gguf = ["--gguf", str(tiny / "model.gguf"), "--partial-guide", "--quiet"]
    named, typed = tmp_path / "a/o.safetensors", tmp_path / "b/o.safetensors"
    given = ["--recipe-file", "wan22-ti2v-5b", "--make-folder"]
    assert c.main([str(tiny), str(named), *gguf, *given]) == 0
    line = [word for word in RECIPE if word not in ("--use-fp8", "--partial-guide")]
    assert c.main([str(tiny), str(typed), *gguf, *line, "--make-folder"]) == 0
    assert named.read_bytes() == typed.read_bytes()


@pytest.fixture
def models(tiny, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        shutil.copytree(tiny, folder)
    return folders


def test_several_models_are_converted_into_a_folder(models, tmp_path):
    given = [*map(str, models), str(tmp_path / "out"), *PLAIN, "--make-folder"]
    assert c.main(given) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{name}_nvfp4.safetensors" for name in "abc"]


@pytest.fixture
def twins(tmp_path):
    """Two models alike in names, shapes and time, as those for high and low noise are."""
    paths = [tmp_path / name / "m.safetensors" for name in ("high", "low")]
    for path in paths:
        path.parent.mkdir()
        tensors = {"x.weight": torch.randn(128, 256), "x.norm.weight": torch.randn(256)}
        save_file(tensors, path)
        os.utime(path, ns=(10**18, 10**18))
    return paths


def test_several_models_go_on_with_those_that_are_left(models, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    given = [*map(str, models), str(tmp_path / "out"), *PLAIN[:2], "--resume"]
    quantise, calls = c.quantise, []

    def interrupt(plan, *rest):
        calls.append(plan)
        if len(calls) == 100:
            raise KeyboardInterrupt
        return quantise(plan, *rest)

    monkeypatch.setattr(c, "quantise", interrupt)
    assert c.main(given) == 130
    told = capsys.readouterr().err.splitlines()
    assert told[-2] == "interrupted: the same command goes on from here"
    assert told[-1].endswith(
        f"; stopped at: {models[1]}; not begun: {models[2]}; the same command goes on"
    )
    first = (tmp_path / "out/a_nvfp4.safetensors").stat().st_mtime_ns
    assert c.main(given) == 0
    told = capsys.readouterr().err
    assert f"a_nvfp4.safetensors: is complete already, made of {models[0]}\n" in told
    assert "going on: " in told
    assert (tmp_path / "out/a_nvfp4.safetensors").stat().st_mtime_ns == first
    made = [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert c.main(given) == 0
    assert made == [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]


def test_what_was_made_otherwise_is_not_taken_for_complete(models, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    given = [*map(str, models), str(tmp_path / "out"), *PLAIN, "--resume"]
    assert c.main(given) == 0
    capsys.readouterr()
    assert c.main([*given, "--exclude", "blocks.0."]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("; ")[0] for line in told] == [
        f"error: {tmp_path}/out/{model.name}_nvfp4.safetensors: exists already" for model in models
    ]
    # Without --resume, and for one model, it is a wrong command line as before.
    for words in (given[:-1], [given[0], *given[-7:]]):
        with pytest.raises(SystemExit):
            c.main(words)


def test_only_the_same_source_counts_as_converted(twins, tmp_path):
    out = tmp_path / "o.safetensors"
    high, low = (
        c.Options(source=path, output=out, preset="all", dtype="float32") for path in twins
    )
    assert not c.is_converted(high)
    c.convert(high)
    assert c.is_converted(high)
    assert not c.is_converted(low)
    assert not c.is_converted(dataclasses.replace(high, scale_search="amax"))
    os.utime(twins[0])
    os.utime(out, ns=(10**18, 10**18))
    assert not c.is_converted(high)
    out.write_bytes(out.read_bytes()[:-1])
    assert not c.is_converted(high)


def test_all_models_are_looked_at_before_the_first_is_converted(models, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for model in models[1:]:
        next(model.glob("*.safetensors")).write_bytes(b"")
    assert c.main([*map(str, models), str(tmp_path / "out"), *PLAIN]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(
        line.startswith(f"error: {model}") for line, model in zip(errors, models[1:], strict=True)
    )
    assert [*(tmp_path / "out").iterdir()] == []


def test_the_first_that_fails_is_the_last(models, tmp_path, capsys):
    shard = max(models[1].glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    # Weights that are not numbers are found while they are encoded.
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin:] = b"\xff" * (len(data) - begin)
    shard.write_bytes(data)
    given = [*map(str, models), str(tmp_path / "out"), *PLAIN, "--make-folder"]
    assert c.main(given) == 1
    *_, told = capsys.readouterr().err.splitlines()
    which = f"converted: {models[0]}; stopped at: {models[1]}; not begun: {models[2]}"
    assert told == f"note: {which}; to go on, leave out {models[0]}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_nvfp4.safetensors"]


def of_recipe(folder, *tables):
    """Convert the models of a recipe: {option: value} of each."""
    recipe = folder / "r.json"
    recipe.write_text(json.dumps({"model": tables, "preset": "all", "quiet": True}))
    return c.main(["--recipe-file", str(recipe)])


@pytest.fixture
def files(tmp_path):
    """Two models in a file each, the second one an output of ours."""
    first, second = (tmp_path / f"{name}.safetensors" for name in "xy")
    save_file({"x.weight": torch.ones(64, 64)}, first)
    save_file({"x.weight": torch.ones(64, 64)}, second, {"convert_nvfp4": "{}"})
    return first, second


@pytest.mark.parametrize("is_folder", [False, True])
def test_no_model_is_written_over_one_that_is_yet_to_be_read(files, tmp_path, capsys, is_folder):
    """Nor over what it is read from under another name."""
    first, second = files
    target = tmp_path / "new.safetensors"
    if is_folder:
        (tmp_path / "b").mkdir()
        second, target = tmp_path / "b", files[1].replace(tmp_path / "b/y.safetensors")
    else:
        target.hardlink_to(second)
    before = target.read_bytes()
    models = [
        {"source": str(first), "output": str(target)},
        {"source": str(second), "output": "z.safetensors"},
    ]
    assert of_recipe(tmp_path, *models) == 1
    what = f"{target}: would be written for {first}, and is read for {second}"
    assert capsys.readouterr().err == f"error: {what}\n"
    assert target.read_bytes() == before


def test_the_second_of_two_models_is_not_taken_for_the_output(models, tmp_path, capsys):
    second = max(models[1].glob("*.safetensors"))
    before = second.read_bytes()
    source = tmp_path / "m.safetensors"
    save_file({"x.weight": torch.ones(64, 64)}, source)
    assert c.main([str(source), str(second), *PLAIN]) == 1
    assert f"{second}: is no output of this program" in capsys.readouterr().err
    assert second.read_bytes() == before
