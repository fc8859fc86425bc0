"""Workflows queued again: what changed or went is noticed, and no other model's file is taken."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.comfyui_server import needs_server
from support.workflows import loader, node, sampling

pytestmark = [needs_server, pytest.mark.slow]
EXISTS = "exists already, and nothing tells that it was made of these inputs"


@pytest.fixture(scope="module")
def lora(server) -> str:
    """A LoRA of one layer."""
    save_lora(server, 0.05)
    return "again.safetensors"


def save_lora(server, size: float) -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    weight = load_file(server.model("wan.safetensors"))["blocks.0.self_attn.q.weight"]
    parts = zip(("up", "down"), ((len(weight), 4), (4, weight.shape[1])), strict=True)
    made = {f"{layer}.lora_{part}.weight": torch.full(shape, size) for part, shape in parts}
    save_file(made, server.base / "models" / "loras" / "again.safetensors")


@pytest.fixture(scope="module")
def twin(server) -> str:
    """A model of the same name and shapes, of which the weights of the blocks alone differ."""
    weights = load_file(server.model("wan.safetensors"))
    path = server.model("twin/wan.safetensors")
    path.parent.mkdir()
    is_changed = lambda name, value: name.startswith("blocks.") and value.ndim == 2  # noqa: E731
    save_file({k: v * (1.5 if is_changed(k, v) else 1) for k, v in weights.items()}, path)
    return "twin/wan.safetensors"


def done(client, workflow: dict):
    prompt = client.run(workflow)
    assert prompt.ended == "execution_success", prompt.error
    return prompt


def ran(prompt) -> set[str]:
    return {event["node"] for event in prompt.events("executing") if event["node"]}


def test_another_model_of_the_same_name_is_not_taken_for_this_one(server, client, twin):
    made = server.model("mine.safetensors")
    done(client, {"1": server.convert("wan.safetensors", "mine")})
    before = made.read_bytes()
    prompt = client.run({"1": server.convert(twin, "mine")})
    assert EXISTS in prompt.error["exception_message"]
    assert made.read_bytes() == before
    [text] = done(client, {"9": server.convert("wan.safetensors", "mine")}).outputs["9"]["text"]
    assert "used as it is" in text

    loaded = lambda name: {  # noqa: E731
        "1": loader(name),
        "2": server.node("NVFP4ConvertModel", model=["1", 0], name="mine_loaded"),
    }
    done(client, loaded("wan.safetensors"))
    prompt = client.run(loaded(twin))
    assert EXISTS in prompt.error["exception_message"]
    prompt = done(client, loaded("wan.safetensors") | {"3": node("PreviewAny", source=["2", 1])})
    assert "used as it is" in prompt.outputs["3"]["text"][0]


def test_a_model_of_which_nothing_tells_what_it_was_made_of_is_not_used(server, client):
    done(client, {"1": server.convert("wan.safetensors", "untold")})
    made = server.model("untold.safetensors")
    made.with_name("untold_too.safetensors").write_bytes(made.read_bytes())
    prompt = client.run({"1": server.convert("wan.safetensors", "untold_too")})
    assert EXISTS in prompt.error["exception_message"]


def test_a_loaded_model_does_not_replace_its_own_files(server, client, lora):
    done(client, {"1": server.convert("wan.safetensors", "own")})
    # ComfyUI merges no quantised models.
    weights = load_file(server.model("wan.safetensors"))
    save_file(weights, server.model("own_too.safetensors"), {"convert_nvfp4": "{}"})
    files = [server.model(f"{name}.safetensors") for name in ("own", "own_too")]
    before = [file.read_bytes() for file in files]
    patched = node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=0.5)
    merged = node("ModelMergeSimple", model1=["1", 0], model2=["4", 0], ratio=0.5)
    cases = (("own", "own", patched), ("own_too", "wan", merged))
    for name, first, what in cases:
        convert = server.node("NVFP4ConvertModel", model=["2", 0], name=name, overwrite=True)
        loaders = {"1": loader(f"{first}.safetensors"), "4": loader("own_too.safetensors")}
        prompt = client.run(loaders | {"2": what, "3": convert})
        assert prompt.ended == "execution_error"
        assert "the MODEL was loaded from this file" in prompt.error["exception_message"]
    assert [file.read_bytes() for file in files] == before


def test_a_deleted_file_is_made_again_whatever_is_linked(server, client, lora):
    workflow = {
        "1": server.node("NVFP4MergeLora", lora_name=lora, strength=0.5),
        "2": server.convert("wan.safetensors", "linked", loras=["1", 0]),
    }
    loaded = {
        "1": loader("wan.safetensors"),
        "2": server.node("NVFP4ConvertModel", model=["1", 0], name="linked_loaded"),
    }
    for name, nodes in (("linked", workflow), ("linked_loaded", loaded)):
        done(client, nodes)
        assert "2" not in ran(done(client, nodes))
        server.model(f"{name}.safetensors").unlink()
        assert "2" in ran(done(client, nodes))
        assert server.model(f"{name}.safetensors").exists()
        assert "2" not in ran(done(client, nodes))


def test_a_lora_that_was_replaced_under_its_name_is_merged_anew(server, client, lora):
    workflow = {
        "1": server.node("NVFP4MergeLora", lora_name=lora, strength=0.5),
        "2": server.convert("wan.safetensors", "anew", loras=["1", 0], overwrite=True),
        "3": server.node("NVFP4CheckFile", model_file=["2", 0], source="none"),
    }
    workflow["3"]["inputs"] |= {"source": "wan.safetensors", "loras": ["1", 0]}
    done(client, workflow)
    before = server.model("anew.safetensors").read_bytes()
    save_lora(server, 0.5)
    assert {"2", "3"} <= ran(done(client, workflow))
    assert server.model("anew.safetensors").read_bytes() != before


def test_a_deleted_recording_is_recorded_again_and_converted_with(server, client):
    parts = sampling(loader("wan.safetensors"))
    workflow = {key: parts[key] for key in ("1", "2", "5")}
    workflow["5"]["inputs"] |= {"width": 64, "height": 64, "length": 5}
    workflow["7"] = node("PrimitiveStringMultiline", value="a red square")
    workflow["8"] = server.node(
        "NVFP4Calibrate", model=["1", 0], clip=["2", 0], latent=["5", 0], steps=1, cfg=1.0,
        prompts=["7", 0], name="relinked",
    )  # fmt: skip
    workflow["9"] = server.convert(
        "wan.safetensors", "relinked", statistics=["8", 0], overwrite=True
    )
    done(client, workflow)
    assert not {"8", "9"} & ran(done(client, workflow))
    recording = server.base / "output" / "nvfp4_calibration" / "relinked.safetensors"
    recording.unlink()
    assert {"8", "9"} <= ran(done(client, workflow))
    assert recording.exists()
    server.model("relinked.safetensors").unlink()
    assert ran(done(client, workflow)) == {"9"}
    assert server.model("relinked.safetensors").exists()


def test_files_of_one_name_have_reports_of_their_own(server, client):
    names = ("p/same", "q/same", "same", "same_check")
    pages = {}
    for name in names:
        prompt = done(client, {"1": server.convert("wan.safetensors", name)})
        [pages[name]] = prompt.outputs["1"]["nvfp4_page"]
    checking = server.node("NVFP4CheckFile", model_file="same.safetensors", source="none")
    [pages["check"]] = done(client, {"2": checking}).outputs["2"]["nvfp4_page"]
    assert len(set(pages.values())) == len(pages)
    for name in names:
        [again] = done(client, {"5": server.convert("wan.safetensors", name)}).outputs["5"][
            "nvfp4_page"
        ]
        assert again == pages[name]
        assert server.get_bytes(f"nvfp4/page/{again}")


def test_a_check_behind_the_conversion_of_a_checkpoint_checks_its_file(server, client):
    folder = server.base / "models" / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "all.safetensors").write_bytes(server.model("wan.safetensors").read_bytes())
    server.model("both.safetensors").write_bytes(server.model("wan.safetensors").read_bytes())
    server.get("object_info/NVFP4Convert")
    checking = server.node("NVFP4CheckFile", model_file=["1", 0], source="none")
    convert = server.convert("checkpoints/all.safetensors", "both")
    prompt = done(client, {"1": convert, "2": checking})
    assert "nothing is quantised" not in prompt.outputs["2"]["text"][0]


def test_a_text_names_a_file_as_lists_do(server, client):
    """The folder of these tests has a space, at which lines of a text are broken."""
    convert = server.convert("wan.safetensors", "folder/named")
    checking = server.node("NVFP4CheckFile", model_file=["1", 0], source="none")
    outputs = done(client, {"1": convert, "2": checking}).outputs
    assert outputs["1"]["text"][0].startswith("written   folder/named.safetensors\n")
    assert "\nfile      folder/named.safetensors, " in outputs["2"]["text"][0]
