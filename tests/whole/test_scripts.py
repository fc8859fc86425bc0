"""The scripts beside the converter: they answer at once, and name in one line what is missing."""

import subprocess
import sys

import pytest

from nvfp4.options import __version__
from support.paths import ROOT

# Each script, and words that its command line accepts.
SCRIPTS = {
    "convert_nvfp4.py": ("m.safetensors", "o.safetensors"),
    "analyze_input_scale_log.py": ("--input", "x.log"),
    "compare_models.py": ("m.safetensors",),
}
OVER_THE_PACKAGE = ("analyze_input_scale_log.py", "compare_models.py")
# `-S` leaves out what is installed: no requirement is found then.
BARE = (sys.executable, "-S")


def outcome(*command, cwd=ROOT):
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("python", [(sys.executable,), BARE])
def test_help_version_and_wrong_usage_need_no_requirement(script, python):
    assert outcome(*python, script, "--version") == (0, f"{script} {__version__}\n", "")
    status, text, problems = outcome(*python, script, "--help")
    assert (status, problems) == (0, "")
    assert text.startswith(f"usage: {script} ")
    status, text, problems = outcome(*python, script, "--no-such-option")
    assert (status, text) == (2, "")
    assert "error: " in problems


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_that_ignores_the_scripts_folder_runs_it(script, tmp_path):
    """As python_embeded of a portable ComfyUI does, which is isolated by its ._pth file."""
    command = (sys.executable, "-I", ROOT / script, "--version")
    assert outcome(*command, cwd=tmp_path) == (0, f"{script} {__version__}\n", "")


@pytest.mark.slow
def test_such_a_python_runs_the_first_example(tmp_path):
    command = (sys.executable, "-I", ROOT / "examples" / "tiny_wan.py", tmp_path)
    assert outcome(*command, cwd=tmp_path)[0] == 0
    assert list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_neither_torch_nor_numpy(script):
    lines = outcome(sys.executable, "-X", "importtime", script, "--help")[2].splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "argparse" in imported
    assert not imported & {"torch", "numpy", "gguf", "safetensors", "matplotlib"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_requirements_are_one_line(script):
    status, text, problems = outcome(*BARE, script, *SCRIPTS[script])
    assert (status, text) == (1, "")
    missing = "torch, safetensors, gguf, numpy are missing"
    assert problems == f"error: {missing}: python -m pip install -r requirements.txt\n"


def test_the_requirements_file_is_found_from_another_folder(tmp_path):
    script = ROOT / "compare_models.py"
    problems = outcome(*BARE, script, "x", cwd=tmp_path)[2]
    assert problems.endswith(f"python -m pip install -r {ROOT / 'requirements.txt'}\n")


@pytest.mark.parametrize("script", OVER_THE_PACKAGE)
def test_a_script_without_its_package_says_so(script, tmp_path):
    (tmp_path / script).write_bytes((ROOT / script).read_bytes())
    problem = "nvfp4/ is missing: this script needs the package folder beside it; copy both"
    assert outcome(sys.executable, script, "--help", cwd=tmp_path) == (1, "", f"error: {problem}\n")


@pytest.mark.parametrize("script", OVER_THE_PACKAGE)
def test_a_script_over_the_package_is_thin(script):
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.parametrize("script", [*SCRIPTS])
@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_broken_torch_is_one_line(script, error, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(f"raise {error}('libcudnn.so.9: no such file\\nand more')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, text, problems = outcome(sys.executable, script, *SCRIPTS[script])
    assert (status, text) == (1, "")
    told = "error: torch cannot be imported: libcudnn.so.9: no such file; convert_nvfp4.py --doctor"
    assert problems.splitlines()[-1] == f"{told} says what to do"
