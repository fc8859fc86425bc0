"""One ComfyUI server for all of these tests, with the small trained Wan in its models folder."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.comfyui_server import Client, Server, why_no_server
from support.tiny_encoder import write_tiny_encoder

# A small Wan that was trained, in shards; no part of the repository.
TRAINED = Path(os.environ.get("TRAINED_WAN", "/work/shared/data/tiny_wan_trained"))


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
    made = Server(tmp_path_factory.mktemp("comfyui"))
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
