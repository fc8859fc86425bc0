"""The script at the root: it is what the package builds, works alone, and says what it lacks."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
from single_file import BUILT, requirements

from support.paths import ROOT

TOOL = "tools/single_file.py"
SCRIPT = ROOT / BUILT
# Run by `python -c` with packages, a script and its command line: the packages are not installed.
WITHOUT = """
import importlib.machinery, runpy, sys
hidden, script, *arguments = sys.argv[1:]
find = importlib.machinery.PathFinder.find_spec
def find_others(name, *more):
    return None if name.partition(".")[0] in hidden.split(",") else find(name, *more)
importlib.machinery.PathFinder.find_spec = find_others
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def python(*arguments, **keywords):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, **keywords)


def without(packages, *arguments):
    return python("-c", WITHOUT, packages, BUILT, *arguments, cwd=ROOT)


def test_it_is_what_the_package_builds():
    done = python(TOOL, "--check", cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def copy(tmp_path):
    """What the script is built from, and nothing else."""
    shutil.copytree(ROOT / "nvfp4", tmp_path / "nvfp4", ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / "tools").mkdir()
    for name in (TOOL, "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_same_package_builds_the_same_bytes(copy):
    """Elsewhere, and with sets in another order."""
    done = python(TOOL, cwd=copy, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (copy / BUILT).read_bytes() == SCRIPT.read_bytes()


def test_a_stale_one_is_one_line(copy):
    shutil.copy(SCRIPT, copy)
    with (copy / "nvfp4/errors.py").open("a") as file:
        file.write("\n\nANOTHER = 1\n")
    done = python(TOOL, "--check", cwd=copy)
    told = f"{BUILT} is stale: run `python {TOOL}`\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    assert (copy / BUILT).read_bytes() == SCRIPT.read_bytes()


def test_a_name_that_the_template_would_overwrite_is_told(copy):
    with (copy / "nvfp4/errors.py").open("a") as file:
        file.write("\n\ndef number():\n    pass\n")
    done = python(TOOL, cwd=copy)
    assert done.returncode == 1
    assert done.stderr.endswith(": number is a name of nvfp4.errors, too\n")


def test_a_text_for_another_process_is_carried_whole(copy):
    """The single file has no file beside it to read."""
    asker = copy / "nvfp4" / "asking" / "asker.py"
    assert asker.read_text(encoding="utf-8") in SCRIPT.read_text(encoding="utf-8")
    asker.write_text("x = '''y'''", encoding="utf-8")
    done = python(TOOL, cwd=copy)
    assert done.returncode == 1
    assert "asker.py has three quotes ''' in it" in done.stderr


def test_it_names_the_requirements_for_uv():
    """Its PEP 723 block has the lines of requirements.txt."""
    (block,) = re.findall(r"^# /// script\n((?:#.*\n)+?)# ///$", SCRIPT.read_text("utf-8"), re.M)
    text = re.sub(r"^# ?", "", block, flags=re.M)
    (listed,) = re.findall(r"^dependencies = (\[.*?\])$", text, re.M | re.S)
    assert ast.literal_eval(listed) == requirements()
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert requirements() == [line for line in lines if line and not line.startswith("#")]


@pytest.mark.slow
def test_it_works_alone(tiny, tmp_path):
    script = shutil.copy(SCRIPT, tmp_path)
    done = python("-I", script, "--version", cwd=tmp_path)
    assert re.fullmatch(r"\S*nvfp4\S* \d+\.\d+\.\d+\n", done.stdout), done
    done = python("-I", script, tiny, "o.safetensors", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = python("-I", script, "--verify", "o.safetensors", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [BUILT, "o.safetensors"]


@pytest.mark.parametrize(
    ("packages", "told"),
    [("torch", "torch is missing"), ("gguf", "gguf is missing"), ("gguf,numpy", "gguf, numpy are")],
)
def test_a_missing_requirement_is_one_line(packages, told):
    done = without(packages, "m.safetensors", "o.safetensors")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.endswith(": python -m pip install -r requirements.txt\n")
    assert done.stderr.count("\n") == 1
