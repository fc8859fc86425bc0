"""Where the files of a conversion go: folders, made names, several models in one call."""

import shutil
import sys

import pytest

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


def test_several_models_are_converted_and_the_first_that_fails_is_the_last(tiny, tmp_path, capsys):
    models = [tmp_path / name for name in "abc"]
    for model in models:
        shutil.copytree(tiny, model)
    (tmp_path / "out").mkdir()
    given = [*map(str, models), str(tmp_path / "out"), *PLAIN]
    shards = sorted(models[1].glob("*.safetensors"))
    shards[0].write_bytes(b"")
    assert c.main(given) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("note: ")
    shutil.copytree(tiny, models[1], dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "out")
    assert c.main([*given, "--make-folder"]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{name}_nvfp4.safetensors" for name in "abc"]
