"""Ctrl-C, SIGTERM, and a terminal that is closed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from support.kills import needs_sigkill
from support.paths import ROOT

pytestmark = pytest.mark.slow

EARLY = {  # what makes each script import torch or numpy
    "convert_nvfp4": ("m.safetensors", "o.safetensors"),
    "compare_models": ("a.safetensors", "b.safetensors"),
    "analyze_input_scale_log": ("--input", "calls.tsv"),
}


@needs_sigkill
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
@pytest.mark.parametrize("program", EARLY)
def test_an_impatient_ctrl_c_leaves_no_traceback(tmp_path, program, before):
    """While torch is imported; it counts for nothing where the shell had it ignored."""
    early = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)"
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text(early)
    done = subprocess.run(
        [sys.executable, f"{program}.py", *EARLY[program]],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
    )
    ignored = before is signal.SIG_IGN
    assert done.stdout == b""
    assert done.stderr.splitlines() == [
        b"starting: loading torch ...",
        *([] if ignored else [b"interrupted"]),
    ]
    assert done.returncode == (7 if ignored else -signal.SIGINT)


@needs_sigkill
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_signal_cleans_up(tmp_path, number):
    weight = torch.randn(8192, 4096, dtype=torch.bfloat16)
    save_file({"x.weight": weight}, tmp_path / "m.safetensors")
    arguments = [str(tmp_path / name) for name in ("m.safetensors", "o.safetensors")]
    process = subprocess.Popen(
        [sys.executable, "convert_nvfp4.py", *arguments, "--include", "x", "--quiet"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "o.safetensors.partial").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: nothing was kept; with --resume from the start it would be\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
