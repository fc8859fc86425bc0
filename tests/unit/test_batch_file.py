"""The batch file for Windows, which is not run here: what can be told of it by reading."""

import re
import subprocess

from nvfp4.options import OPTIONS
from support.paths import ROOT

BATCH = ROOT / "examples" / "convert_dropped.bat"


def test_labels_are_found():
    """cmd.exe reads OEM code pages, and misses labels of files without carriage returns."""
    data = BATCH.read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == data.count(b"\r\n")
    text = data.decode()
    asked = re.findall(r"(?:goto |call :)(\w+)", text)
    assert {*asked} == {*re.findall(r"^:(\w+)", text, re.MULTILINE)}


def test_git_keeps_the_line_ends():
    command = ["git", "check-attr", "eol", "examples/convert_dropped.bat"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode or done.stdout.endswith("eol: crlf\n")


def test_its_options_are_known():
    named = {*re.findall(r"--[a-z-]+", BATCH.read_text("ascii"))}
    assert named <= {row.flag for row in OPTIONS}


def test_no_python_is_looked_for_beside_models():
    text = BATCH.read_text("ascii")
    (places,) = re.findall(r"^for %%F in \((.*)\) do call :look", text, re.MULTILINE)
    assert all(place.startswith('"%~dp0') for place in places.split())
    assert 'set "NoDefaultCurrentDirectoryInExePath=1"' in text
