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


def encoding(text: str, **inputs) -> dict:
    """Encode a text by the small encoder, recorded, behind a node that clones the CLIP."""
    return {
        "1": node("CLIPLoader", clip_name="umt5.safetensors", type="wan", device="default"),
        "2": node(
            "NVFP4EncoderRecorder", clip=["1", 0], **{
                "enabled": True, "name": "", "folder": "", "layers": "", "tokens": 64,
                "second_moments": "none", "widest": 8192, **inputs,
            },
        ),
        "3": node("CLIPSetLastLayer", clip=["2", 0], stop_at_clip_layer=-1),
        "4": node("CLIPTextEncode", text=text, clip=["3", 0]),
        "5": node("ConditioningSetTimestepRange", conditioning=["4", 0], start=0.0, end=1.0),
        "6": node("PreviewAny", source=["5", 0]),
    }  # fmt: skip


def test_an_encoder_is_recorded_under_its_files_name_without_its_padding(server, client):
    for text in ("a red square", "a blue sky"):
        prompt = client.run(encoding(text))
        assert prompt.ended == "execution_success", prompt.error
    folder = server.base / "output" / "nvfp4_calibration"
    lines = (folder / "umt5.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 7
    # Wan's encoder is given 512 tokens, nearly all of them padding.
    assert all(int(line.split("(")[1].split(",")[0]) < 64 for line in lines)
    with safe_open(server.base / "models/text_encoders/umt5.safetensors", "pt") as encoder:
        names = {*encoder.keys()}
    with safe_open(folder / "umt5.safetensors", "pt") as recording:
        layers = {key.rpartition(".")[0] for key in recording.keys()}  # noqa: SIM118
        assert recording.metadata()["encoder"] == "umt5xxl"
    assert len(layers) == 7
    assert {f"{layer}.weight" for layer in layers} <= names


def test_what_cannot_be_recorded_of_an_encoder_is_one_line(client):
    for inputs, line in (
        ({"layers": "["}, "layers: '[' is no regular expression: "),
        ({"layers": "no such layer"}, "layers: no linear layer of the encoders matches "),
        ({"name": "a/b"}, "name must be a plain file name, not a/b"),
    ):
        told = client.run(encoding("one", **inputs)).error["exception_message"].strip()
        assert told.startswith(line)
        assert len(told.splitlines()) == 1
