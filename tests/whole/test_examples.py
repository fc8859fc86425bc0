"""The batch scripts for Wan 2.2: run with a tiny model in the places where they look."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import convert_nvfp4 as c
from support.paths import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
NAMES = {  # script: the models it converts, as (folder, GGUF, output)
    "convert_wan22_i2v_14b": [
        (
            f"wan2.2-i2v-a14b-{noise}-noise",
            f"Wan2.2-I2V-A14B-{noise}Noise-Q5_K_M.gguf",
            f"wan2.2-i2v-{noise}noise-nvfp4mixed.safetensors",
        )
        for noise in ("high", "low")
    ],
    "convert_wan22_ti2v_5b": [
        ("wan2.2-ti2v-5b", "Wan2.2-TI2V-5B-Q5_K_M.gguf", "wan2.2-ti2v-5b-nvp4mixed.safetensors")
    ],
}
needs_bash = pytest.mark.skipif(
    os.name == "nt" or not shutil.which("bash"), reason="bash scripts; .ps1 is for Windows"
)


@pytest.fixture
def places(tiny, tmp_path):
    """Folders for SOURCES, GGUFS and OUTPUTS: the tiny Wan under the names of the real models."""
    found = {name: tmp_path / name.lower() for name in ("SOURCES", "GGUFS", "OUTPUTS")}
    for folder in found.values():
        folder.mkdir()
    for folder, gguf, _ in (model for models in NAMES.values() for model in models):
        (found["SOURCES"] / folder).mkdir()
        for path in tiny.glob("diffusion*"):
            (found["SOURCES"] / folder / path.name).symlink_to(path)
        (found["GGUFS"] / gguf).symlink_to(tiny / "model.gguf")
    return found


def run(script, places, *arguments, python=sys.executable, **more):
    return subprocess.run(
        ["bash", str(EXAMPLES / f"{script}.sh"), *arguments],
        env=os.environ | {"PYTHON": str(python)} | {k: str(v) for k, v in places.items()} | more,
        check=False,
        capture_output=True,
        text=True,
    )


def calls_of(script, places, *arguments):
    """List the words of each call of Python, of which a stand-in takes note."""
    folder = places["OUTPUTS"].parent
    python, noted = folder / "python", folder / "calls"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "" >>"$CALLS"\n')
    python.chmod(0o755)
    done = run(script, places, *arguments, python=python, CALLS=str(noted))
    assert (done.returncode, done.stderr) == (0, "")
    return [call.split("\n") for call in noted.read_text(encoding="utf-8").split("\n\n")[:-1]]


@needs_bash
@pytest.mark.parametrize("script", NAMES)
def test_the_script_converts_its_models(script, places):
    # The shipped lists tell of 30 and 40 blocks, the tiny model has 8.
    for program, *words in calls_of(script, places, "--quiet", "--partial-guide"):
        assert Path(program) == ROOT / "convert_nvfp4.py"
        assert words[-2:] == ["--quiet", "--partial-guide"]
        assert c.main(words) == 0
    made = {path.name for path in places["OUTPUTS"].iterdir()}
    assert made == {output for _, _, output in NAMES[script]}
    for name in made:
        assert c.main(["--verify", str(places["OUTPUTS"] / name), "--quiet"]) == 0


@needs_bash
def test_a_dry_run_passes_through(places):
    done = run("convert_wan22_ti2v_5b", places, "--dry-run", "--quiet", "--partial-guide")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", exactly ") == 1
    assert not list(places["OUTPUTS"].iterdir())


@needs_bash
def test_the_first_failure_ends_it(places):
    (places["GGUFS"] / NAMES["convert_wan22_i2v_14b"][0][1]).unlink()
    done = run("convert_wan22_i2v_14b", places, "--quiet")
    assert done.returncode == 1
    assert "highNoise-Q5_K_M.gguf" in done.stderr
    assert not list(places["OUTPUTS"].iterdir())


@pytest.mark.parametrize("script", NAMES)
def test_both_shells_give_the_same_options(script):
    """PowerShell is not run here: its script has the same options and values as the other."""
    texts = [(EXAMPLES / f"{script}{suffix}").read_text("utf-8") for suffix in (".sh", ".ps1")]
    texts = [re.sub(r"^#.*$", "", text, flags=re.MULTILINE) for text in texts]
    options = [re.findall(r"--[a-z0-9-]+(?: [0-9a-z._]+)?(?=[ \n`\\])", text) for text in texts]
    kinds = r"[\w.${},-]+\.(?:json|gguf|safetensors)|\bwan22-[\w$-]+"
    names = [{*re.findall(kinds, text)} for text in texts]
    plain = [{re.sub(r"\$\{?\w+\}?", "*", name) for name in found} for found in names]
    # GGUF, recipe, source and output.
    assert len(options[0]) == 2
    assert len(plain[0]) == 4
    assert sorted(options[0]) == sorted(options[1])
    assert plain[0] == plain[1]
