"""Kernels that are compiled in another process, and taken over between two layers."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nvfp4.encode.compiling import COMPILING, wait_for_compiling
from nvfp4.encode.compute import Compute
from nvfp4.formats.encoding import Given
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.int8 import INT8
from nvfp4.formats.mxfp8 import MXFP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.formats.w4a8 import W4A8
from nvfp4.numeric import compiled
from nvfp4.numeric.compiled import (
    as_bytes,
    compile_kernels,
    is_nothing_to_compile,
    kernel_caches,
    prepared_kernels,
)
from nvfp4.numeric.scale_search import mse_block_scales
from nvfp4.programs import python_command
from support.paths import ROOT

FORMATS = (NVFP4, INT8, W4A8, FP8, MXFP8)
PLAIN, ROUNDED = SimpleNamespace(moments=None), SimpleNamespace(moments=object())


class Compiler:
    """A process that ends after so many layers, or when somebody waits for it."""

    def __init__(self, layers: int):
        self.layers, self.killed = layers, False

    def poll(self) -> int | None:
        self.layers -= 1
        return None if self.layers >= 0 else 0

    def wait(self, **_: object) -> int:
        self.layers = 0
        return 0

    def kill(self) -> None:
        self.killed = True

    def communicate(self) -> None:
        pass


def compute() -> Compute:
    return Compute(torch.device("cpu"), torch.float32, mse_block_scales, threads=2)


def encoded(compiler: Compiler | None) -> tuple[list[torch.Tensor], bool]:
    """Every format's layer, encoded one after the other; and whether kernels were used at last."""
    weight = torch.randn(96, 512, generator=torch.Generator().manual_seed(1))
    made = []
    with compute() as one:
        one.compiler, one.chunk = compiler, 512 * 16
        for form in FORMATS:
            one.prepare(PLAIN)
            best = form.encode(Given("x", weight, weight.abs().amax()), one)
            made += [torch.cat(best.codes), *best.by_rows, best.scale.view(1)]
        return made, one.kernels is not None


@pytest.mark.slow
def test_bytes_do_not_depend_on_when_kernels_are_taken_over():
    pytest.importorskip("numba")
    expected, compiled = encoded(None)
    assert not compiled
    for layers in range(len(FORMATS) + 1):
        found, compiled = encoded(Compiler(layers))
        assert compiled == (layers < len(FORMATS))
        assert all(map(torch.equal, map(as_bytes, found), map(as_bytes, expected)))


def test_layers_that_are_rounded_wait_and_come_last():
    pytest.importorskip("numba")
    with compute() as one:
        assert not one.waits_for_kernels(ROUNDED)
        one.compiler = Compiler(99)
        assert sorted([ROUNDED, PLAIN], key=one.waits_for_kernels) == [PLAIN, ROUNDED]
        one.prepare(PLAIN)
        assert one.kernels is None
        one.prepare(ROUNDED)
        assert (one.compiler, one.rounder.round_columns) == (None, one.kernels.round_columns)


def test_nobody_waits_for_the_compiler_at_the_end():
    with compute() as one:
        one.compiler = compiler = Compiler(99)
    assert compiler.killed


def test_a_compiler_that_hangs_is_not_waited_for():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        wait_for_compiling(process, 0.1)
        assert process.poll() is not None


def test_the_compiler_ends_with_who_began_it():
    program = COMPILING.replace("import importlib;", "import time; time.sleep(60);")
    command = python_command(Path(sys.executable), program, "folder", seconds=50)
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.close()
        assert process.wait(timeout=40) == 1


def test_what_is_compiled_is_not_compiled_again():
    pytest.importorskip("numba")
    compile_kernels()
    assert is_nothing_to_compile()


def cut(path):
    path.write_bytes(path.read_bytes()[:20])


def bar(path):
    path.unlink()
    path.mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "damage", "mended"), [("nbi", cut, True), ("nbc", cut, True), ("nbi", bar, False)]
)
def test_a_damaged_cache_keeps_nobody_from_converting(
    tmp_path, monkeypatch, suffix, damage, mended
):
    """As of a full disk: it is compiled anew, and kept where that is possible."""
    numba = pytest.importorskip("numba")

    def check_one(kernels):
        assert kernels.encode_fp8(torch.ones(4, 4), torch.tensor(1.0))[0].float().sum() == 16

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "check_kernels", check_one)
    try:
        prepared_kernels.cache_clear()
        compile_kernels()
        (path,) = tmp_path.rglob(f"*encode_bytes*.{suffix}")
        damage(path)
        assert not is_nothing_to_compile()
        prepared_kernels.cache_clear()
        compile_kernels()
        index = kernel_caches()["encode_bytes"]
        assert mended == (Path(index._index_path).is_file() and bool(index._load_index()))
    finally:
        prepared_kernels.cache_clear()


# Appended to the single file: one kernel is as good as all of them, and takes a tenth of the time.
ONE_KERNEL = """
def check_kernels(kernels):
    kernels.encode_fp8(torch.ones(4, 4), torch.tensor(1.0))
"""


@pytest.mark.slow
def test_another_process_compiles(tmp_path):
    """With the single file, in a folder with modules of the same names as the library's."""
    pytest.importorskip("numba")
    for name in ("torch", "importlib", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    script = tmp_path / "script" / "convert_nvfp4.py"
    script.parent.mkdir()
    text = (ROOT / script.name).read_text(encoding="utf-8")
    script.write_text(text + ONE_KERNEL, encoding="utf-8")
    program = f"""
import os, sys
sys.path[0] = {str(script.parent)!r}
os.environ["NUMBA_CACHE_DIR"] = {str(tmp_path / "cache")!r}
import convert_nvfp4 as m
status = m.start_compiling().wait()
print(status, [name for name, cache in m.kernel_caches().items() if cache._load_index()])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 [")
    assert "'encode_bytes'" in done.stdout
