"""The stand-in of the Hub with a small model, and what a local conversion makes of that."""

import pytest

from support.hub_client import use_hub
from support.hub_runs import BLOCK, FILE, FIRST, REPOSITORY, SECOND, TOKEN, convert, parts
from support.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one model, and a client that asks for small ranges and waits for 10 ms."""
    from nvfp4.hub import blocks, client, path

    with HubServer() as server:
        server.store.tokens = {TOKEN: {REPOSITORY}, "hf_Another": set()}
        server.put(REPOSITORY, {FILE: FIRST, "README.md": b"# model", "config.json": b"{}"})
        use_hub(monkeypatch, server, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(client, "WAITS", (0.01,) * 4)
        monkeypatch.setattr(client, "LONGEST_SILENCE", 1.0)
        monkeypatch.setattr(client, "LONGEST_ASKED", 0.05)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
        monkeypatch.setattr(blocks, "MOST_HELD", 4 * BLOCK)
        monkeypatch.setattr(path, "HUB", path.Hub())
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The local conversion: {seed's content: the bytes behind the output's header}."""
    folder = tmp_path_factory.mktemp("local")
    found = {}
    for content in (FIRST, SECOND):
        (folder / FILE).write_bytes(content)
        output = folder / "out.safetensors"
        assert convert(folder / FILE, output) == 0
        found[content] = parts(output)
    return found
