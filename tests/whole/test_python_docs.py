"""docs/python.md: its examples run, with what it shows, from the package and from the one file."""

import ast
import contextlib
import io
import re
import shutil

import pytest

import convert_nvfp4
import nvfp4
from nvfp4.options import Options, options_of
from nvfp4.report.data import Report
from nvfp4.verify import Check
from support.paths import ROOT

TEXT = (ROOT / "docs/python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def wan(tiny, tmp_path, monkeypatch):
    """A folder with the model and the GGUF that the document names."""
    shutil.copytree(tiny, tmp_path / "wan", ignore=shutil.ignore_patterns("*.gguf"))
    shutil.copy(tiny / "model.gguf", tmp_path / "wan-Q5_K_M.gguf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", ["nvfp4", "convert_nvfp4"])
def test_the_examples_print_what_the_document_shows(wan, module):
    names = {}
    assert len(BLOCKS) == TEXT.count("```python") == 6
    for code, shown in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code.replace("from nvfp4 import", f"from {module} import"), names)
        assert printed.getvalue() == shown
    assert sorted(path.name for path in wan.iterdir()) == [
        "made-nvfp4.safetensors", "wan", "wan-10MB.html", "wan-Q5_K_M.gguf", "wan-nvfp4.safetensors"
    ]  # fmt: skip


def test_the_names_are_the_same_in_both_and_those_that_the_document_has():
    assert {*nvfp4.EXPORTS} <= {*dir(nvfp4)}
    for name in nvfp4.EXPORTS:
        assert getattr(nvfp4, name).__doc__ == getattr(convert_nvfp4, name).__doc__
        assert f"{name}" in TEXT or name == "__version__"
    with pytest.raises(AttributeError, match="module 'nvfp4' has no attribute 'xyz'"):
        nvfp4.xyz  # noqa: B018


@pytest.mark.parametrize("record", [Report, Check])
def test_the_document_tells_of_every_field(record):
    for field in record.__dataclass_fields__:
        assert f"`{field}`" in TEXT


def test_the_document_tells_of_all_that_python_gives_otherwise():
    values = {}
    table = "".join(re.findall(r"^\| (?:`--|options).* \| (.*) \|$", TEXT, re.M))
    for code in re.findall(r"`(\w+=[^`]*)`", table):
        (call,) = (node for node in ast.walk(ast.parse(f"f({code})")) if isinstance(node, ast.Call))
        values |= {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    Options(source="a", output="b.safetensors", **values)
    other = {row.name for row in options_of(Options) if row.switches or row.aliases}
    other |= {"include"}
    assert other == {*values}


def test_what_is_no_task_is_told():
    with pytest.raises(nvfp4.ConvertError, match=r"^convert takes Options\(source=\.\.\., output="):
        nvfp4.convert({"source": "a"})
    with pytest.raises(nvfp4.ConvertError, match=r"^verify_file takes Verification\(file=\.\.\.\)"):
        nvfp4.verify_file("a")
