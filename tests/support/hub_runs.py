"""A small model on the stand-in of the Hub, converted there, and what came of it."""

import json

import torch
from safetensors.torch import save

from nvfp4.cli.entry import main

TOKEN = "hf_ThisIsASecret"
REPOSITORY = "owner/model"
FILE = "wan.safetensors"
LAYERS = [f"blocks.{block}.{part}" for block in range(4) for part in ("ffn.0", "attn.q", "attn.o")]
BLOCK = 1 << 15


def model(seed):
    """The bytes of a model of 12 layers, 1.6 MB: four blocks of three 256 x 256 layers."""
    made = torch.Generator().manual_seed(seed)
    weights = {f"{name}.weight": torch.randn(256, 256, generator=made) for name in LAYERS}
    return save({name: weight.to(torch.bfloat16) for name, weight in weights.items()})


FIRST, SECOND = model(1), model(2)
# Requests for a file's bytes, as faults name them.
CDN = {"of": "cdn", "method": "GET"}


def forget_the_hub(monkeypatch):
    """Make this process one that has asked for nothing yet."""
    from nvfp4.hub import path

    monkeypatch.setattr(path, "HUB", path.Hub())


def convert(source, output, *more):
    """Convert every layer to NVFP4; return the exit status."""
    return main([str(source), str(output), "--preset", "all", "--quiet", *more])


def parts(path):
    """The header of a file without the revisions of its sources, and its data."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    record = json.loads(header["__metadata__"]["convert_nvfp4"])
    record.pop("revisions", None)
    header["__metadata__"]["convert_nvfp4"] = record
    return header, content[end:]


def told(capsys):
    """What was printed: the error's one line, or "" where there is none."""
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert TOKEN not in out + err
    assert "Signature" not in out + err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    return lines[0] if lines else ""
