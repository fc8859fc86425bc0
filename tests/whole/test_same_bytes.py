"""One file, however it is made: its bytes depend on the input and the options alone."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c
from nvfp4.numeric.rotation import LARGEST_ROTATED
from support.conversions import RECIPE, convert_in_ranks
from support.extremes import DTYPES, WEIGHTS
from support.files import OLDER

pytestmark = pytest.mark.slow

BY_GGUF = ["--gguf", "SOURCE/model.gguf"]
OPTIONS = {  # of the tiny Wan, and of weights at the ends of what floats hold
    "wan: recipe": [*BY_GGUF, *RECIPE],
    "wan: recipe of FP8 alone": [*BY_GGUF, "--recipe", "scaled-fp8"],
    "wan: preset for a size": ["--preset", "auto", "--edge-blocks", "1", "--target-ratio", "0.4"],
    "extremes: search": ["--preset", "all"],
    "extremes: amax": ["--preset", "all", "--scale-search", "amax"],
    "extremes: FP8": ["--preset", "all", "--recipe", "fp8"],
    "extremes: INT8": ["--preset", "all", "--recipe", "int8"],
    "extremes: W4A8": ["--preset", "all", "--recipe", "w4a8"],
}


def convert(source: Path, out: Path, arguments: list[str]) -> None:
    assert c.main([str(source), str(out), *arguments]) == 0


def by_small_chunks(source: Path, out: Path, arguments: list[str]) -> None:
    """As many threads, no reading ahead, and pieces that end anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "CPU_CHUNK", 61 * 256)
        patch.setattr(c, "PIECE_BYTES", 20_480)
        patch.setattr(torch, "get_num_threads", lambda: 5)
        convert(source, out, [*arguments, "--low-mem"])


def by_numba(source: Path, out: Path, arguments: list[str]) -> None:
    pytest.importorskip("numba")
    c.compile_kernels()  # else the conversion would be over before another process has them
    used, leave = [], c.Compute.__exit__

    def left(compute, *facts):
        used.append(compute.kernels is not None)
        leave(compute, *facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "COMPILE_FROM", 0)
        patch.setattr(c.Compute, "__exit__", left)
        convert(source, out, arguments)
    assert any(used)


def elsewhere(source: Path, out: Path, arguments: list[str]) -> None:
    """In another folder, at another time, under another name, over an older file."""
    shutil.copytree(source, moved := out.parent / "déjà vu")
    for path in moved.iterdir():
        os.utime(path, (1e9, 1e9))
    other = moved.parent / "another name.safetensors"
    other.write_bytes(OLDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(moved)
        convert(Path(), other, [word.replace(str(source), str(moved)) for word in arguments])
    other.replace(out)


def resumed(source: Path, out: Path, arguments: list[str]) -> None:
    """By a run that finds half of the tensors written."""
    given, finish = [], c.PartialFiles.finish

    def fail(files: c.PartialFiles, *finished: object) -> None:
        given.append(finish(files, *finished))
        if len(given) == 60:
            files.writer.submit(files.sync).result()
            raise c.ConvertError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c.PartialFiles, "finish", fail)
        assert c.main([str(source), str(out), *arguments, "--resume"]) == 1
    journal = c.unfinished(out).with_name(f"{out.name}.partial.journal")
    assert journal.read_bytes().count(b'"damage": {') > 1
    convert(source, out, [*arguments, "--resume"])


def on_cuda(source: Path, out: Path, arguments: list[str]) -> None:
    convert(source, out, [*arguments, "--device", "cuda"])


def two_ranks(source: Path, out: Path, arguments: list[str]) -> None:
    convert_in_ranks(source, out, *arguments)


def two_ranks_on_cuda(source: Path, out: Path, arguments: list[str]) -> None:
    two_ranks(source, out, [*arguments, "--device", "cuda"])


WAYS = [by_small_chunks, by_numba, elsewhere, resumed, two_ranks]
GPU = pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WAYS += [pytest.param(way, marks=GPU) for way in (on_cuda, two_ranks_on_cuda)]


@pytest.fixture(scope="module")
def extremes(tmp_path_factory):
    folder, tensors = tmp_path_factory.mktemp("extremes"), {}
    for name, weight in WEIGHTS.items():
        for dtype in DTYPES:
            layer, largest = f"{name}.{dtype}", torch.finfo(dtype).max
            values = weight.clamp(-largest, largest).to(dtype)
            # Columns four times over are as many as are rotated together.
            for kind, stored in (("narrow", values), ("wide", values.repeat(1, 4))):
                if kind == "narrow" or not (values.abs() > LARGEST_ROTATED).any():
                    tensors[f"{layer}.{kind}.weight"] = stored
                    tensors[f"{layer}.{kind}.bias"] = torch.zeros(len(weight))
    save_file(tensors, folder / "m.safetensors")
    return folder


@pytest.fixture(scope="module", params=OPTIONS)
def reference(tiny, extremes, tmp_path_factory, request):
    source = tiny if request.param.startswith("wan: ") else extremes
    arguments = [word.replace("SOURCE", str(source)) for word in OPTIONS[request.param]]
    out = tmp_path_factory.mktemp("reference") / "o.safetensors"
    convert(source, out, [*arguments, "--quiet", "--device", "cpu"])
    return source, [*arguments, "--quiet"], out.read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_are_the_same(way, reference, tmp_path):
    source, arguments, expected = reference
    out = tmp_path / "o.safetensors"
    way(source, out, arguments)
    assert out.read_bytes() == expected
