"""Shared builders: a tiny Wan-shaped model with its GGUF, and safetensors files made by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "benchmarks")]

from make_wan import wan_shapes, write_gguf, write_model  # noqa: E402

# fmt: off
RECIPE = [
    "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8", "--low-mem", "--gguf-keep-edge-blocks-fp16",
    "--quant-dtype", "float32", "--dtype", "float16",
    "--input-scale-summary-json", "scales_summary_wan22_5b.json",
    "--input-scale-summary-percentile", "99.9", "--input-scale-summary-multiplier", "1.08",
    "--full-precision-mm-layers", "sensitive_layers_wan22_5b.txt",
    "--full-precision-mm-cross-attn-qkvo",
]
# fmt: on
"""The documented Wan 2.2 options, source, output and GGUF aside."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a sharded tiny Wan (float32, 8 blocks) and model.gguf; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    shapes = wan_shapes("tiny")
    write_model(folder, shapes, torch.float32)
    write_gguf(folder / "model.gguf", shapes)
    return folder


def convert_tiny(tiny, out, *arguments):
    from convert_nvfp4 import main

    command = [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE, *arguments]
    assert main(command) == 0
    return out


def convert_and_measure(tiny, out):
    """The tiny Wan converted, and each quantised layer's relative RMSE as its report has it."""
    report = out.with_suffix(".json")
    convert_tiny(tiny, out, "--report", str(report), "--quiet")
    rows = json.loads(report.read_text(encoding="utf-8"))["tensors"]
    return out, {
        row["name"].removesuffix(".weight"): row["relative_rmse"]
        for row in rows
        if "relative_rmse" in row
    }


def torchrun(*arguments, script="convert_nvfp4.py", ranks=2, **keywords):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return subprocess.Popen(
        [*launch, str(ranks), script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


@pytest.fixture(scope="session")
def converted(tiny, tmp_path_factory):
    """The tiny Wan converted with the documented options."""
    return convert_tiny(tiny, tmp_path_factory.mktemp("out") / "tiny-nvfp4.safetensors")


@pytest.fixture(scope="session")
def converted_amax(tiny, tmp_path_factory):
    """The same, with the block scales that comfy_kitchen chooses."""
    out = tmp_path_factory.mktemp("out") / "tiny-nvfp4-amax.safetensors"
    return convert_tiny(tiny, out, "--use-ck-quant")


def raw_safetensors(path: Path, entries: object, data: bytes) -> Path:
    """A safetensors file with exactly this header, valid or not."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def header_only(path: Path, tensors: dict[str, tuple], metadata: dict[str, str]) -> Path:
    """A safetensors file of {name: (dtype, shape)} over a hole: sound, and no bytes on the disk."""
    import convert_nvfp4 as c

    entries, begin = {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        end = begin + c.bits_of(dtype, shape) // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries).encode()
    raw_safetensors(path, header.ljust(-(-len(header) // 8) * 8), b"")
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) + begin)
    return path


def model_with(names, shape=(4, 256)):
    """A model of which only names and one shape exist, as float32."""
    import convert_nvfp4 as c

    refs = {
        name: c.TensorRef(name=name, dtype="F32", shape=shape, path=None, begin=0, nbytes=4096)
        for name in names
    }
    return c.Model(tensors=refs, metadata={}, files=())
