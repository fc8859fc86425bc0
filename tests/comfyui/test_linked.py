"""Values that come by links, which ComfyUI holds to no list: nothing but the node's own work."""

import urllib.request
import uuid

import pytest

from support.comfyui_server import needs_server
from support.workflows import node

pytestmark = needs_server
RAN = "from pathlib import Path\nPath({!r}).write_text('ran')\n"


def upload(server, name: str, content: str, folder: str = "") -> None:
    """Put a file into ComfyUI's input folder in the way in which everybody may."""
    mark = uuid.uuid4().hex
    parts = {"image": f'; filename="{name}"', "subfolder": "", "overwrite": ""}
    values = {"image": content, "subfolder": folder, "overwrite": "true"}
    body = "".join(
        f'--{mark}\r\nContent-Disposition: form-data; name="{part}"{more}\r\n\r\n{values[part]}\r\n'
        for part, more in parts.items()
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    request = urllib.request.Request(
        f"http://{server.address}/upload/image", f"{body}--{mark}--\r\n".encode(), kind
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def linked(server, value: str, **inputs) -> dict:
    """A workflow that gives a converting node a text by a link that any input takes."""
    return {
        "1": node("PrimitiveString", value=value),
        "2": node("ComfySwitchNode", switch=True, on_false=["1", 0], on_true=["1", 0]),
        "3": server.convert("wan.safetensors", "by_link", **inputs),
    }


def test_an_uploaded_recipe_is_neither_read_nor_its_code_run(server, client, tmp_path):
    for name, folder in (("main.py", "fake"), ("__init__.py", "fake/comfy")):
        upload(server, name, RAN.format(str(tmp_path / "ran")), folder)
    upload(server, "sd.py", RAN.format(str(tmp_path / "ran")), "fake/comfy")
    card, config = tmp_path / "card.md", tmp_path / "config.json"
    upload(server, "runs.toml", 'comfyui = "fake"\n')
    upload(server, "writes.toml", f'layer-config-out = "{config}"\nmodel-card = "{card}"\n')
    for name in ("runs", "writes"):
        assert (server.base / "input" / f"{name}.toml").is_file()
        value = f"../../../input/{name}"
        prompt = client.run(linked(server, value, recipe_file=["2", 0]))
        told = prompt.error["exception_message"]
        assert told.startswith(f"recipe_file: {value} is none of its choices: none, wan22-"), told
        assert len(told.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
    assert not server.model("by_link.safetensors").exists()


@pytest.mark.parametrize("name", ["card", "goal", "recipe", "statistics", "gguf", "device"])
def test_what_is_on_no_list_is_one_line(server, client, name):
    prompt = client.run(linked(server, "nonsense", **{name: ["2", 0]}))
    told = prompt.error["exception_message"]
    assert told.startswith(f"{name}: nonsense is none of its choices")
    assert len(told.splitlines()) == 1
    assert not server.model("by_link.safetensors").exists()


def test_a_linked_name_of_the_list_is_taken(server, client):
    workflow = linked(server, "cpu", device=["2", 0])
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    assert server.model("by_link.safetensors").is_file()


RECORDER = {
    "enabled": True, "name": "r", "folder": "", "layers": "", "tokens": 64,
    "second_moments": "none", "widest": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"folder": "/proc/x"}, "folder: cannot make /proc/x, name another: "),
        ({"folder": "a\0b"}, "folder: cannot make 'a\\x00b', name another: "),
        ({"layers": "("}, "layers: '(' is no regular expression: "),
        ({"name": "a/../b"}, "name must be a plain file name, not a/../b"),
        ({"name": "con"}, "name must be a plain file name, not con"),
        ({"name": "a."}, "name must be a plain file name, not a."),
    ],
)
def test_the_recorder_names_the_input_that_is_wrong(client, inputs, told):
    workflow = {
        "1": node("UNETLoader", unet_name="wan.safetensors", weight_dtype="default"),
        "2": node("NVFP4CalibrationRecorder", model=["1", 0], **RECORDER | inputs),
        "3": node("ModelSave", model=["2", 0], filename_prefix="never"),
    }
    assert client.run(workflow).error["exception_message"].strip().startswith(told)


def test_an_error_of_a_model_in_memory_names_it_as_people_do(server, client):
    assert client.run({"1": server.convert("wan.safetensors", "twice")}).ended.endswith("success")
    server.kinds.clear()
    workflow = {
        "1": node("UNETLoader", unet_name="twice.safetensors", weight_dtype="default"),
        "2": server.node("NVFP4ConvertModel", model=["1", 0], name="again"),
    }
    told = client.run(workflow).error["exception_message"]
    assert told.startswith("twice.safetensors: is converted already")
