"""What is started takes nothing from the current folder, and ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from nvfp4.programs import GRACE, installed_program, python_command


@pytest.mark.parametrize("flags", [(), ("-I", "-B")])
def test_nothing_is_imported_from_the_current_folder(flags, tmp_path):
    """-I is how the Python of a portable ComfyUI runs: its path begins with the library's."""
    for module in ("json", "importlib", "faulthandler", "random"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit(3)", encoding="utf-8")
    program = "import importlib, json, random; print(json.dumps(sys.argv[1:]))"
    command = python_command(Path(sys.executable), program, "a b", 7, seconds=60, flags=flags)
    done = subprocess.run(
        [*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '["a b", "7"]\n', "")


def test_a_process_ends_by_itself():
    command = python_command(
        Path(sys.executable), "import time; time.sleep(60)", seconds=0.1 - GRACE
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout ")


def test_programs_are_those_of_path_alone(tmp_path, monkeypatch):
    file = tmp_path / ("card.exe" if sys.platform == "win32" else "card")
    file.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert installed_program("card") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_program("card") == file
