"""Conversions of the tiny Wan by the documented options, in this process and by several."""

import json
import socket
import subprocess
import sys

from nvfp4.read.checkpoint import open_model
from nvfp4.stored.layers import stored_layers, stored_parts
from support.forks import run_together
from support.paths import ROOT

# fmt: off
RECIPE = [
    "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8", "--low-mem", "--gguf-keep-edge-blocks-fp16",
    "--quant-dtype", "float32", "--dtype", "float16",
    "--input-scale-summary-json", "scales_summary_wan22_5b.json",
    "--input-scale-summary-percentile", "99.9", "--input-scale-summary-multiplier", "1.08",
    "--full-precision-mm-layers", "sensitive_layers_wan22_5b.txt",
    "--full-precision-mm-cross-attn-qkvo", "--partial-guide",
]
# fmt: on
"""The documented Wan 2.2 options, source, output and GGUF aside."""


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


def convert_in_ranks(*arguments, ranks=2):
    """Convert by processes with what torchrun tells them, each of which has to end well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told |= {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    places = [told | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    program = "import sys, convert_nvfp4; sys.exit(convert_nvfp4.main(sys.argv[1:]))"
    done = run_together(program, arguments, places)
    assert [process.returncode for process in done] == [0] * ranks, done
    return done


def decoded(path):
    """{layer: float32 weight} of a file's quantised layers."""
    model = open_model(path)
    weights = {}
    for name, layer in stored_layers(model).items():
        if layer.format is not None:
            parts, scale = stored_parts(layer)
            weights[name] = layer.format.decode(*parts, scale)
    return weights
