"""The node that samples prompts from a list, in ComfyUI's queue."""

import shutil

from safetensors import safe_open

from support.comfyui_server import needs_server
from support.workflows import loader, node, sampling

pytestmark = needs_server
PROMPTS = "a red square moves to the left\n\ntwo green discs\n"


def calibrating(**inputs) -> dict:
    """A workflow that calibrates on the small Wan; `inputs` are those of the node."""
    parts = sampling(loader("wan.safetensors"))
    usual = {
        "model": ["1", 0], "clip": ["2", 0], "latent": ["5", 0], "prompts": PROMPTS,
        "negative": "", "seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler",
        "scheduler": "simple", "start_at_step": 0, "end_at_step": 10_000,
    }  # fmt: skip
    workflow = {key: parts[key] for key in ("1", "2", "5")}
    workflow["5"]["inputs"] |= {"width": 64, "height": 64, "length": 5}
    return workflow | {"8": node("NVFP4Calibrate", **usual | inputs)}


def recorded(server, name):
    """The calls of a layer in a recording."""
    path = server.base / "output" / "nvfp4_calibration" / f"{name}.safetensors"
    with safe_open(path, "pt") as recording:
        return int(recording.get_tensor("blocks.0.self_attn.q.calls"))


def test_each_prompt_is_sampled_and_the_recording_given_on(server, client):
    workflow = calibrating(name="listed")
    workflow["9"] = node("PreviewAny", source=["8", 0])
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    assert recorded(server, "listed") == 4
    assert prompt.outputs["9"]["text"] == ["listed.safetensors"]
    assert client.shown("8")[:2] == ["prompt 1 of 2", "prompt 2 of 2"]
    assert prompt.outputs["8"]["text"][0].startswith("listed: 86 layers, 4 calls each\n")
    assert prompt.progress("8")[-1] == 1


def test_the_encoder_is_recorded_in_the_same_run_where_asked(server, client):
    prompt = client.run(calibrating(name="both", record_clip=True))
    assert prompt.ended == "execution_success", prompt.error
    path = server.base / "output" / "nvfp4_calibration" / "both_text.safetensors"
    with safe_open(path, "pt") as recording:
        # Two prompts and the negative one.
        assert recording.get_tensor("encoder.block.0.layer.0.SelfAttention.q.calls") == 3


def test_the_halves_of_a_model_share_the_steps(server, client):
    """The low-noise node takes each prompt's latents from the other, and as many steps are done."""
    workflow = calibrating(name="high", steps=4, end_at_step=1)
    low = calibrating(name="low", steps=4, start_at_step=1, latent=["8", 1])["8"]
    prompt = client.run(workflow | {"10": low})
    assert prompt.ended == "execution_success", prompt.error
    assert (recorded(server, "high"), recorded(server, "low")) == (2, 6)


def test_what_a_ready_conditioning_has_goes_with_each_prompt(server, client):
    workflow = calibrating(name="guided", conditioning=["12", 0])
    workflow["11"] = node("CLIPTextEncode", text="not this", clip=["2", 0])
    workflow["12"] = node("FluxGuidance", conditioning=["11", 0], guidance=3.0)
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    assert recorded(server, "guided") == 4


def test_prompts_come_from_a_file_and_none_is_one_line(server, client):
    (server.base / "input" / "prompts.txt").write_text("\ufeffa blue triangle\n", "utf-8")
    prompt = client.run(calibrating(name="file", prompts="", prompts_file="prompts.txt"))
    assert prompt.ended == "execution_success", prompt.error
    assert recorded(server, "file") == 2
    prompt = client.run(calibrating(name="none", prompts=" \n"))
    assert prompt.ended == "execution_error"
    expected = "write prompts, one on each line, or name a file of them"
    assert prompt.error["exception_message"].strip() == expected
    prompt = client.run(calibrating(name="none", prompts_file="../server.log"))
    expected = "prompts_file: only a file in ComfyUI's input folder"
    assert prompt.error["exception_message"].strip() == expected


def test_a_cancel_keeps_what_was_recorded(server, client):
    prompt = client.queue(calibrating(name="stopped", steps=200))
    client.wait_until(lambda: prompt.progress("8")[-1:] > [0.05], 120, "some steps")
    server.post("interrupt", {})
    assert prompt.wait().ended == "execution_interrupted"
    assert 20 <= recorded(server, "stopped") < 400
    shutil.rmtree(server.base / "output" / "nvfp4_calibration")


def test_a_file_of_prompts_that_cannot_be_read_is_one_line_that_names_the_input(client):
    for file in ("no\0file", "x" * 300, "../x", "/etc/passwd"):
        told = client.run(calibrating(prompts_file=file)).error["exception_message"].strip()
        assert told.startswith("prompts_file: ")
        assert len(told.splitlines()) == 1
