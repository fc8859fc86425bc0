"""The package as it is installed: what it declares, its commands, and the files that go with it."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nvfp4 import commands
from nvfp4.cli.arguments import INSTALLED_COMMANDS
from nvfp4.options import __version__
from nvfp4.requirements import REQUIRED
from support.paths import ROOT
from tools.single_file import requirements

# Python 3.10 has no reader of TOML.
tomllib = pytest.importorskip("tomllib")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
WHEEL = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
# One file of each folder that options look into.
DATA = {"SUMMARY": "scales_summary_wan22_5b.json", "LAYER_LIST": "sensitive_layers_wan22_5b.txt"}


def data_files() -> dict[str, Path]:
    """List what the wheel takes beside the package: {path in the wheel: file}, by its own rows."""
    files = {}
    for pattern in WHEEL["include"]:
        folder, _, rest = pattern.strip("/").partition("/")
        if folder != "nvfp4":
            placed = WHEEL["sources"][folder]
            files |= {f"{placed}/{file.name}": file for file in (ROOT / folder).glob(rest or "*")}
    left_out = {ROOT / path.strip("/") for path in WHEEL["exclude"]}
    return {place: file for place, file in files.items() if file not in left_out}


def test_requirements_are_the_same_everywhere():
    assert PROJECT["dependencies"] == requirements()
    # What old versions of Python lack alone, the option that needs it asks for.
    needed = [line for line in requirements() if ";" not in line]
    assert tuple(re.match(r"\w+", line)[0] for line in needed) == REQUIRED


def test_extras_are_what_requirements_txt_calls_optional():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    told = re.findall(r"^# optional: (\S+),", text, re.MULTILINE)
    assert {*EXTRAS["numba"], *EXTRAS["plots"]} == {*told}
    assert EXTRAS["all"] == [f"convert-nvfp4[{','.join(name for name in EXTRAS if name != 'all')}]"]


def test_a_command_stands_for_every_script():
    assert {*PROJECT["scripts"]} == {*INSTALLED_COMMANDS.values()}
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        assert module == commands.__name__
        assert callable(getattr(commands, function))


@pytest.mark.parametrize("command", PROJECT["scripts"])
@pytest.mark.parametrize("word", ["--version", "--help"])
def test_a_command_answers_by_its_own_name_and_without_requirements(command, word):
    """Started as pip's launcher does; `-S` leaves out what is installed."""
    function = PROJECT["scripts"][command].partition(":")[2]
    code = f"import sys; sys.argv[0] = 'bin/{command}'; import nvfp4.commands as c; c.{function}()"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, word],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = {"--version": f"{command} {__version__}\n", "--help": f"usage: {command} "}[word]
    assert done.stdout.startswith(answer)
    assert done.stderr == ""


def test_version_and_licence_are_where_the_build_looks():
    text = (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert f'\n__version__ = "{__version__}"\n' in text
    (name,) = PROJECT["license-files"]
    assert "the convert_nvfp4 contributors" in (ROOT / name).read_text(encoding="utf-8")


def test_an_installed_package_finds_its_data(tmp_path):
    """A copy laid out as the wheel is, with nothing else around it."""
    shutil.copytree(
        ROOT / "nvfp4", tmp_path / "nvfp4", ignore=shutil.ignore_patterns("__pycache__")
    )
    for placed, file in data_files().items():
        (tmp_path / placed).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / placed)
    found = f"*(getattr(kinds, name).accept(file) for name, file in {DATA}.items())"
    code = f"from nvfp4.options import kinds; print({found})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = [Path(path).relative_to(tmp_path.resolve()) for path in done.stdout.split()]
    assert [path.name for path in found] == [*DATA.values()]
    assert {path.parts[:2] for path in found} == {("nvfp4", "data")}


@pytest.mark.slow
def test_a_wheel_has_the_package_and_its_data(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {file.relative_to(ROOT).as_posix() for file in (ROOT / "nvfp4").rglob("*.py")}
    assert names == package | {*data_files()}
