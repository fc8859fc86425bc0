"""What an option's text may be."""

import argparse
from dataclasses import MISSING
from pathlib import Path

import pytest

from nvfp4.cli.parse import parse_options
from nvfp4.compare.command import parse_comparison
from nvfp4.logs.command import parse_analysis
from nvfp4.options import Options, options_of
from nvfp4.options.kinds import LAYER_LIST, SUMMARY, fraction, input_path, lora_file, size_in_bytes
from nvfp4.options.option import paths_of
from support.paths import ROOT


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with model.safetensors in it."""
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("4GiB", 4 << 30), ("1.5 mb", 1500000), ("7", 7), ("2T", 2 * 10**12)],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.8", "x.safetensors", 0.8),
        ("x.safetensors:-1", "x.safetensors", -1.0),
        ("x.safetensors:+.5", "x.safetensors", 0.5),
        ("x:1e-2", "x", 0.01),
        (r"C:\x\y.safetensors:0.8", r"C:\x\y.safetensors", 0.8),
        (r"C:\x\y.safetensors", r"C:\x\y.safetensors", 1.0),
        ("C:/1:2", "C:/1", 2.0),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("x.safetensors:strong", "x.safetensors:strong", 1.0),
    ],
)
def test_file_and_strength(text, file, strength):
    assert lora_file(text) == (input_path(file), strength)


@pytest.mark.parametrize("text", ["", "x:0", "x:-0.0", "x:1e999", "x:1e39", "x:-1e308"])
def test_no_file_or_no_strength(text):
    with pytest.raises(argparse.ArgumentTypeError):
        lora_file(text)


def test_a_decimal_comma_is_told(tmp_path):
    file = tmp_path / "x.safetensors"
    assert lora_file(f"{file}:0,8") == (Path(f"{file}:0,8"), 1.0)
    file.touch()
    with pytest.raises(argparse.ArgumentTypeError, match=r"0,8 is no number; write 0\.8"):
        lora_file(f"{file}:0,8")
    with pytest.raises(argparse.ArgumentTypeError, match="the strength 'abc' is no number"):
        lora_file(f"{file}:abc")


@pytest.mark.parametrize("given", ["~/model.safetensors", "~\\model.safetensors"])
def test_a_tilde_is_the_home_folder(home, given):
    assert input_path(given) == home / "model.safetensors"
    assert lora_file(f"{given}:0.5") == (home / "model.safetensors", 0.5)
    assert lora_file((Path("~/new.safetensors"), 2)) == (home / "new.safetensors", 2.0)
    assert input_path(Path("~/new.safetensors")) == home / "new.safetensors"
    assert SUMMARY.accept(given) == home / "model.safetensors"


@pytest.mark.parametrize("row", options_of(Options), ids=lambda row: row.flag)
def test_every_path_of_a_conversion_may_begin_with_a_tilde(home, row):
    if not row.kind.metavar.startswith(("FILE", "DIR")) and row.default is not MISSING:
        return
    values = {"source": "s", "output": "o.safetensors", row.name: "~/model.safetensors"}
    if row.writes:
        values[row.name] = "~/r.md" if row.name == "model_card" else "~/r.json"
    needs = {"sensitivity_json": {"sensitivity_threshold": 1}}
    options = Options(**values | needs.get(row.name, {}))
    assert all(path.parent == home for path in paths_of(getattr(options, row.name)))


def test_every_path_of_every_program_may_begin_with_a_tilde(home):
    model = home / "model.safetensors"
    options = parse_options(["~/a", "~/b.safetensors", "--gguf=~/g", "--merge-lora=~/l:0.5"])
    assert (options.source, options.output) == (home / "a", home / "b.safetensors")
    assert (options.gguf, options.merge_lora) == (home / "g", ((home / "l", 0.5),))
    check = parse_options(["--verify=~/a", "--source=~/b"])
    assert (check.file, check.source) == (home / "a", home / "b")
    compared = parse_comparison(["~/model.safetensors", "~/b"])
    assert (compared.a, compared.b) == (model, home / "b")
    files = {"recording": "~/r", "csv": "~/c", "json": "~/j", "plots_dir": "~/p"}
    words = [word for name, path in files.items()
             for word in (f"--{name.replace('_', '-')}", path)]  # fmt: skip
    given = parse_analysis(["--input", "~/l.log", "~/m.log", *words])
    assert given["input"] == [home / "l.log", home / "m.log"]
    assert given["recording"] == [home / "r"]
    assert [given[name] for name in ("csv", "json", "plots_dir")] == [
        home / "c", home / "j", home / "p"
    ]  # fmt: skip
    assert parse_analysis(["--summary=~/model.safetensors"])["summary"] == model


@pytest.mark.parametrize(
    ("parse", "words", "told"),
    [
        (parse_comparison, ["a", "--Values"], "--Values; did you mean --values?"),
        (parse_comparison, ["a", ""], "argument B: the path is empty; is a variable not set?"),
        (parse_analysis, ["--input", "a", "--percentile=5"], "; did you mean --percentiles?"),
        (parse_analysis, ["--input", "a", "--cv-treshold", "5"], "; did you mean --cv-threshold?"),
        (parse_analysis, ["--input", "a", "--cv-threshold", "x"], "'x' is no number"),
        (
            parse_analysis,
            ["--input", "a", "--percentiles", "9,x"],
            "--percentiles: 'x' is no number",
        ),
        (parse_analysis, ["--input", "a", "--steps", "x"], "'x' is no whole number"),
    ],
)
def test_the_other_programs_tell_what_is_meant(parse, words, told, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(words)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_a_tilde_of_a_user_and_one_that_is_a_name(home, monkeypatch):
    monkeypatch.chdir(home)
    for name in ("~no such user/x.safetensors", "x~", "a/~/x"):
        assert input_path(name) == Path(name)
    pwd = pytest.importorskip("pwd", reason="users' folders are looked up on POSIX")
    assert input_path("~root/x") == Path(pwd.getpwnam("root").pw_dir) / "x"
    Path("~").mkdir()
    Path("~/here").touch()
    assert input_path("~/here") == Path("~/here")
    assert input_path("~/model.safetensors") == home / "model.safetensors"


@pytest.mark.parametrize("given", ["", None, 5, b"x", ["x"]])
def test_what_is_no_path(given):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no path$|path is empty"):
        input_path(given)


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("folder", ["", "sensitive_layers/"])
def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch, kind, folder):
    monkeypatch.chdir(tmp_path)
    name = "sensitive_layers_wan22_5b.txt"
    assert LAYER_LIST.accept(kind(folder + name)) == ROOT / "sensitive_layers" / name


def test_a_misspelt_shipped_file_is_told():
    with pytest.raises(argparse.ArgumentTypeError) as found:
        SUMMARY.accept("scales_sumary_wan22_5B.json")
    assert str(found.value).endswith("; did you mean scales_summary_wan22_5b.json?")


def test_a_share_is_told_from_a_percentage():
    with pytest.raises(argparse.ArgumentTypeError, match=r"^60 is no share: 1 is all; 60 % is 0.6"):
        fraction("60")
    with pytest.raises(argparse.ArgumentTypeError, match=r"^1e6 is no share: 1 is all$"):
        fraction("1e6")
