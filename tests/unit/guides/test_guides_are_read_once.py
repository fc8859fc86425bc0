"""Every file that steers a plan is opened once, however many plans are made."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.guides.records import BIN_EDGES
from nvfp4.read.checkpoint import open_model
from support.forks import run_forked

pytestmark = pytest.mark.slow

# Converts, counting what is opened to read, by file name.
COUNT = """
import collections, json, os, sys
opened = collections.Counter()
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        opened[os.path.basename(os.fspath(arguments[0]))] += 1
sys.addaudithook(hook)
from nvfp4.cli.entry import main
status = main(sys.argv[1:])
print("opened", json.dumps(opened))
sys.exit(status)
"""
LAYER = "blocks.3.self_attn.q"


def opened(*command) -> dict[str, int]:
    """{file name: how often it was opened} by a conversion, which has to end well."""
    done = run_forked(COUNT, *command, "--quiet")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("opened ")[2])


def figures(columns: int) -> dict[str, torch.Tensor]:
    """What a recording has of a layer, without second moments."""
    histogram = torch.zeros(len(BIN_EDGES), dtype=torch.int64)
    histogram[190] = 100
    return {
        "tokens": torch.tensor([64]),
        "absmax": torch.ones(columns),
        "block_histogram": histogram,
        "quantisation": torch.tensor([1.0, 100.0], dtype=torch.float64),
    }


@pytest.fixture(scope="module")
def guides(tiny, tmp_path_factory):
    """A folder with one guide of each kind for the tiny Wan."""
    folder = tmp_path_factory.mktemp("guides")
    layers = {ref.layer: ref.shape[1] for ref in open_model(tiny).linear_weights}
    (folder / "wan.gguf").write_bytes((tiny / "model.gguf").read_bytes())
    (folder / "config.json").write_text(json.dumps({LAYER: {"format": "float8_e4m3fn"}}))
    rows = [
        {"layer": name, "scale_p99_9": 0.01, "scale_std": 0.0, "scale_mean": 0.01, "rel_rmse": 0.1}
        for name in layers
    ]
    for name in ("summary.json", "sensitivity.json"):
        (folder / name).write_text(json.dumps({"layers": rows}))
    (folder / "layers.txt").write_text(f"{LAYER}\n")
    recording = {
        f"{name}.{part}": tensor
        for name, columns in layers.items()
        for part, tensor in figures(columns).items()
    }
    metadata = {"format": "nvfp4_recording", "version": "1"}
    save_file(recording, folder / "recording.safetensors", metadata)
    scaled = {
        f"{LAYER}.weight": torch.zeros(16, 16, dtype=torch.uint8),
        f"{LAYER}.input_scale": torch.tensor(0.02),
    }
    save_file(scaled, folder / "reference.safetensors")
    return folder


def options(folder: Path) -> list[object]:
    """All options that name a guide."""
    return [
        "--gguf", folder / "wan.gguf", "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8",
        "--layer-config", folder / "config.json",
        "--input-scale-summary-json", folder / "summary.json", "--input-scale-summary-fp16-std",
        "--sensitivity-json", folder / "sensitivity.json", "--sensitivity-threshold", "0.5",
        "--activation-stats", folder / "recording.safetensors", "--input-scale-policy", "headroom",
        "--full-precision-mm-layers", folder / "layers.txt",
        "--input-scale-from", folder / "reference.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(), ("--target-ratio", "0.45")], ids=["plain", "target size"])
def test_each_guide_is_opened_once(tiny, guides, tmp_path, size):
    found = opened(tiny, tmp_path / "o.safetensors", *options(guides), *size)
    assert {path.name: found.get(path.name, 0) for path in guides.iterdir()} == {
        path.name: 1 for path in guides.iterdir()
    }


def test_a_file_that_two_options_name_is_opened_once(tiny, guides, tmp_path):
    """A summary may hold the sensitivities, and a recording is a sensitivity file, too."""
    common = [tiny, tmp_path / "o.safetensors", "--preset", "all", "--dry-run"]
    summary, recording = guides / "summary.json", guides / "recording.safetensors"
    limit = ["--sensitivity-threshold", "0.5"]
    found = opened(
        *common, "--input-scale-summary-json", summary, "--sensitivity-json", summary, *limit
    )
    assert found[summary.name] == 1
    twice = ["--activation-stats", recording, "--activation-stats", recording]
    found = opened(*common, *twice, "--sensitivity-json", recording, *limit)
    assert found[recording.name] == 1
