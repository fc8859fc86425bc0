"""The recorder in ComfyUI's queue: a few steps leave a log and a recording."""

from safetensors import safe_open

from support.comfyui_server import needs_server
from support.workflows import loader, node, sampling

pytestmark = needs_server


def test_the_recorder_records_while_the_queue_samples(server, client):
    workflow = sampling(loader("wan.safetensors"), steps=2)
    workflow["8"] = node(
        "NVFP4CalibrationRecorder", model=["1", 0], enabled=True, name="", folder="", layers="",
        tokens=64, second_moments="none", widest=8192,
    )  # fmt: skip
    workflow["6"]["inputs"]["model"] = ["8", 0]
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    folder = server.base / "output" / "nvfp4_calibration"
    assert (folder / "wan.log").read_text(encoding="utf-8").count("\n") == 2 * 86
    with safe_open(folder / "wan.safetensors", "pt") as recording:
        assert len(recording.keys()) >= 86
