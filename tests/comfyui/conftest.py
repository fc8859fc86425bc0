"""One ComfyUI server for all of these tests, with the small trained Wan in its models folder."""

import os
from pathlib import Path

import pytest
import torch
from make_wan import wan_shapes, weights
from safetensors.torch import load_file, save_file

from support.chromium import why_no_browser
from support.comfyui_page import Page
from support.comfyui_server import Client, Server, why_no_page, why_no_server
from support.paths import ROOT
from support.tiny_encoder import write_tiny_encoder

# A small Wan that was trained, in shards; no part of the repository.
TRAINED = Path(os.environ.get("TRAINED_WAN", ROOT.parent / "shared" / "data" / "tiny_wan_trained"))


@pytest.fixture(scope="session")
def trained() -> Path:
    if not any(TRAINED.glob("*.safetensors")):
        pytest.skip(f"no small trained Wan in {TRAINED} (TRAINED_WAN names its folder)")
    return TRAINED


@pytest.fixture(scope="session")
def server(trained, tmp_path_factory):
    """A server with wan.safetensors, umt5.safetensors and the pack; ended after the last test."""
    if why_no_server():
        pytest.skip(why_no_server())
    made = Server(tmp_path_factory.mktemp("comfy ui"))
    try:
        shards = [load_file(shard) for shard in sorted(trained.glob("*.safetensors"))]
        save_file(
            {k: v for shard in shards for k, v in shard.items()}, made.model("wan.safetensors")
        )
        write_tiny_encoder(made.base / "models" / "text_encoders" / "umt5.safetensors")
        yield made.wait()
    finally:
        made.stop()


@pytest.fixture
def client(server):
    made = Client(server)
    yield made
    made.close()


@pytest.fixture(scope="session")
def long_model(server) -> str:
    """A model of 32 M weights in 400 layers: its conversion takes seconds, enough to stop it."""
    made = dict(weights(wan_shapes("tiny", blocks=40), torch.bfloat16))
    save_file(made, server.model("long.safetensors"))
    return "long.safetensors"


@pytest.fixture(scope="session")
def page(server, tmp_path_factory):
    """ComfyUI's page in a browser, for all tests of it."""
    if why := why_no_page() or why_no_browser():
        pytest.skip(why)
    made = Page(server, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()
