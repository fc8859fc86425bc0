"""Convert in ComfyUI's queue: sampled from, cancelled, queued twice, refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.comfyui import COMFYUI
from support.comfyui_server import needs_server
from support.paths import ROOT
from support.workflows import loader, sampling

pytestmark = [needs_server, pytest.mark.slow]
# Samples videos from a float and a converted file in a real ComfyUI, and compares them; no part of
# the repository.
VIDEO_CHECK = Path(
    os.environ.get("VIDEO_CHECK", ROOT.parent / "shared" / "tools" / "video_check.py")
)


def latents(server, prefix: str) -> torch.Tensor:
    """What SaveLatent wrote last under a prefix, float32."""
    files = sorted((server.base / "output").glob(f"{prefix}_*.latent"))
    return load_file(files[-1])["latent_tensor"].float()


def sampled(server, client, workflow: dict, prefix: str) -> torch.Tensor:
    workflow["7"]["inputs"]["filename_prefix"] = prefix
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    return latents(server, prefix)


def test_the_result_is_loaded_and_sampled_in_the_same_queue(server, client):
    expected = sampled(server, client, sampling(loader("wan.safetensors")), "latents/float")
    workflow = sampling(loader(["10", 0])) | {"10": server.convert("wan.safetensors", "sampled")}
    found = sampled(server, client, workflow, "latents/nvfp4")
    error = float((found - expected).norm() / expected.norm())
    assert 0.001 < error < 0.1  # quantised, and the same picture
    metadata_layers = load_file(server.model("sampled.safetensors"))
    assert any(name.endswith("weight_scale_2") for name in metadata_layers)


def test_the_velocity_is_that_of_the_documents(server, client, trained):
    """docs/accuracy.md: 0.0175 and 40.5 dB with 28 NVFP4 layers, PSNR to about 2 dB."""
    if not VIDEO_CHECK.exists():
        pytest.skip("VIDEO_CHECK names no script that compares sampled videos")
    assert (
        client.run({"1": server.convert("wan.safetensors", "measured")}).ended
        == "execution_success"
    )
    command = [sys.executable, VIDEO_CHECK, trained, server.model("measured.safetensors")]
    command += ["--prompts", "2", "--steps", "6"]
    environment = os.environ | {"COMFYUI_ROOT": COMFYUI}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    [velocity] = re.findall(r"mean (\d+\.\d+)", done.stdout)
    [psnr] = re.findall(r"PSNR (\d+\.\d+) dB", done.stdout)
    assert float(velocity) < 0.025
    assert float(psnr) > 36


def test_the_bar_and_the_text_tell_how_far_it_is(server, client, long_model):
    prompt = client.run({"1": server.convert(long_model, "told")})
    assert prompt.ended == "execution_success", prompt.error
    shares = prompt.progress("1")
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1
    texts = client.shown("1")
    assert any(re.search(r"blocks\.\d+\.\S+", text) and "/s" in text for text in texts), texts


def cancelled_halfway(server, client, workflow: dict):
    """Press cancel when the node's bar first moves; return the prompt after its end."""
    prompt = client.queue(workflow)
    moved = lambda: prompt.ended or max(prompt.progress("1"), default=0) > 0.05  # noqa: E731
    client.wait_until(moved, 120, "the bar")
    assert not prompt.ended, prompt.error
    server.post("interrupt", {})
    return prompt.wait(60)


def test_cancel_leaves_nothing_and_the_older_file(server, client, long_model):
    folder = server.model("")
    before = sorted(folder.iterdir())
    prompt = cancelled_halfway(server, client, {"1": server.convert(long_model, "stopped")})
    assert prompt.ended == "execution_interrupted"
    assert sorted(folder.iterdir()) == before

    older = server.model("older.safetensors")
    assert client.run({"1": server.convert("wan.safetensors", "older")}).ended
    before = older.read_bytes()
    workflow = {"1": server.convert(long_model, "older", overwrite=True)}
    assert cancelled_halfway(server, client, workflow).ended == "execution_interrupted"
    assert older.read_bytes() == before
    # The server goes on.
    assert (
        client.run({"1": server.convert("wan.safetensors", "after")}).ended == "execution_success"
    )


def test_two_conversions_queued_run_one_after_the_other(server, client):
    first = client.queue({"1": server.convert("wan.safetensors", "first")})
    second = client.queue({"1": server.convert("wan.safetensors", "second")})
    assert second.wait().ended == first.ended == "execution_success"
    one, two = (server.model(f"{name}.safetensors").read_bytes() for name in ("first", "second"))
    assert len(one) == len(two)


def test_a_broken_file_is_one_line_on_its_node(server, client):
    whole = server.model("wan.safetensors").read_bytes()
    server.model("broken.safetensors").write_bytes(whole[: len(whole) // 2])
    prompt = client.run({"1": server.convert("broken.safetensors", "never")})
    assert prompt.ended == "execution_error"
    assert (prompt.error["node_id"], prompt.error["node_type"]) == ("1", "NVFP4Convert")
    message = prompt.error["exception_message"].strip()
    assert "\n" not in message
    assert "broken.safetensors" in message
    assert not server.model("never.safetensors").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_flat(server, client, long_model):
    """Three conversions of 64 MB after a first one keep less than half of one."""
    run = lambda n: client.run({"1": server.convert(long_model, f"flat{n}")})  # noqa: E731
    assert run(0).ended == "execution_success"
    before = server.memory()
    for number in range(1, 4):
        assert run(number).ended == "execution_success"
    assert server.memory() - before < 32e6


def test_text_encoders_are_listed_with_their_folder_and_taken_for_what_they_are(server, client):
    """The small one of these tests is no whole T5, which the line on the node says."""
    listed = server.get("object_info/NVFP4Convert")["NVFP4Convert"]["input"]["required"]
    facts = listed["model_file"]
    names = facts[1]["options"] if len(facts) > 1 and "options" in facts[1] else facts[0]
    assert "text_encoders/umt5.safetensors" in names
    prompt = client.run({"1": server.convert("text_encoders/umt5.safetensors", "small")})
    assert prompt.ended == "execution_error"
    assert "is not a whole T5 model" in prompt.error["exception_message"]
