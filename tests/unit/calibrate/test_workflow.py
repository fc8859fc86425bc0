"""Workflows edited: recorders put in, prompts and seeds, cut to the samplers, read from files."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from nvfp4.calibrate.workflow import (
    cut_to_samplers,
    loaders_of,
    prompt_places,
    put_recorders,
    read_workflow,
    samplers_behind,
    with_prompt,
)
from nvfp4.errors import ConvertError
from support.workflows import loader, node, sampling

# What the nodes of these workflows give, as ComfyUI's /object_info tells it.
INFO = {
    kind: {"output": outputs}
    for kind, outputs in {
        "UNETLoader": ["MODEL"], "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
        "CLIPLoader": ["CLIP"], "CLIPTextEncode": ["CONDITIONING"], "KSampler": ["LATENT"],
        "EmptyHunyuanLatentVideo": ["LATENT"], "SaveLatent": [], "VAEDecode": ["IMAGE"],
        "SaveImage": [], "ModelSamplingSD3": ["MODEL"], "BasicGuider": ["GUIDER"],
        "SamplerCustomAdvanced": ["LATENT", "LATENT"], "RandomNoise": ["NOISE"],
        "LatentUpscale": ["LATENT"], "PrimitiveStringMultiline": ["STRING"],
        "WanImageToVideo": ["CONDITIONING", "CONDITIONING", "LATENT"],
        "NVFP4CalibrationRecorder": ["MODEL"],
    }.items()
}  # fmt: skip


def decoded():
    """A workflow that decodes what it samples, upscales it, and samples again."""
    made = sampling(loader("sub/Wan.safetensors"))
    made["9"] = node("LatentUpscale", samples=["6", 0])
    made["10"] = {
        **made["6"],
        "inputs": made["6"]["inputs"] | {"latent_image": ["9", 0], "seed": 9},
    }
    made["11"] = node("VAEDecode", samples=["10", 0])
    made["12"] = node("SaveImage", images=["11", 0])
    return made


def prepared(workflow, model="wan.safetensors"):
    """(the workflow with recorders, cut; its samplers; where its prompt goes)"""
    places = loaders_of(workflow, Path("elsewhere", model))
    recorders = put_recorders(workflow, {one: {"name": "x"} for one in places}, INFO)
    samplers = samplers_behind(workflow, recorders, INFO)
    cut = cut_to_samplers(workflow, samplers, INFO)
    return cut, samplers, prompt_places(cut, samplers)


def test_the_recorder_stands_between_loader_and_all_that_it_leads_to():
    cut, samplers, places = prepared(decoded())
    assert cut["recorder of 1"]["inputs"] == {"model": ["1", 0], "name": "x"}
    assert {cut[sampler]["inputs"]["model"][0] for sampler in samplers} == {"recorder of 1"}
    assert samplers == ["6", "10"]
    assert places == [("3", "text")]


def test_older_nodes_with_lists_for_types_and_links_to_no_output_are_no_models():
    """A list of choices as a type, and a place beyond a node's outputs, are passed over."""
    info = INFO | {"Old": {"output": [["a", "b"], "LATENT"]}}
    workflow = decoded()
    workflow["13"] = node("Old", model=["1", 0])
    workflow["6"]["inputs"] = {
        "sampler_name": ["13", 0], "steps": ["13", 9], "cfg": ["13", -1], **workflow["6"]["inputs"],
    }  # fmt: skip
    recorders = put_recorders(workflow, {"1": {"name": "x"}}, info)
    assert samplers_behind(workflow, recorders, info) == ["6", "10", "13"]


def test_what_follows_the_last_sampler_is_left_out_and_its_latents_are_the_end():
    cut, *_ = prepared(decoded())
    assert not {"7", "11", "12"} & cut.keys()
    assert cut["end of 10"]["inputs"]["samples"] == ["10", 0]
    assert "end of 6" not in cut
    assert "9" in cut


def test_a_prompt_has_its_text_and_its_seed_and_changes_nothing_else():
    cut, _, places = prepared(decoded())
    made = with_prompt(cut, places, "a fox", 40)
    assert made["3"]["inputs"]["text"] == "a fox"
    assert made["4"]["inputs"]["text"] == cut["4"]["inputs"]["text"] == ""
    assert made["6"]["inputs"]["seed"] == made["10"]["inputs"]["seed"] == 40
    made["3"]["inputs"]["text"] = cut["3"]["inputs"]["text"]
    made["6"]["inputs"]["seed"], made["10"]["inputs"]["seed"] = 7, 9
    assert made == cut


def test_guiders_texts_of_other_nodes_and_checkpoints_are_followed():
    workflow = {
        "a": node("CheckpointLoaderSimple", ckpt_name="wan.safetensors"),
        "shift": node("ModelSamplingSD3", model=["a", 0], shift=3.0),
        "words": node("PrimitiveStringMultiline", value="old"),
        "yes": node("CLIPTextEncode", text=["words", 0], clip=["a", 1]),
        "no": node("CLIPTextEncode", text="bad", clip=["a", 1]),
        "i2v": node("WanImageToVideo", positive=["yes", 0], negative=["no", 0], vae=["a", 2]),
        "guide": node("BasicGuider", model=["shift", 0], conditioning=["i2v", 0]),
        "noise": node("RandomNoise", noise_seed=5),
        "s": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guide", 0]),
        "d": node("VAEDecode", samples=["s", 1], vae=["a", 2]),
    }
    cut, samplers, places = prepared(workflow)
    assert samplers == ["s"]
    assert places == [("words", "value")]
    assert cut["shift"]["inputs"]["model"] == ["recorder of a", 0]
    assert cut["yes"]["inputs"]["clip"] == ["a", 1]
    assert with_prompt(cut, places, "x", 8)["noise"]["inputs"]["noise_seed"] == 8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"1": loader("other.safetensors")}, "no node loads wan.safetensors; it loads other."),
        ({"6": node("VAEDecode", model=["1", 0])}, "found no sampler that is given the model"),
        ({"3": node("LatentUpscale")}, "found no text that the sampler's positive"),
        ({"3": node("Unheard", text="x", model=["1", 0])}, "this ComfyUI has no node Unheard"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(change, problem):
    workflow = sampling(loader("wan.safetensors")) | change
    if "6" in change:
        workflow["7"] = node("SaveImage")
    with pytest.raises(ConvertError, match=problem):
        prepared(workflow)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + b"".join(chunks)


def test_workflows_come_from_json_and_from_pictures(tmp_path):
    workflow, file = sampling(loader("wan.safetensors")), tmp_path / "w.json"
    text = json.dumps(workflow)
    file.write_text("\ufeff" + text, encoding="utf-8")
    assert read_workflow(file) == workflow
    file.write_text(json.dumps({"prompt": workflow, "client_id": "x"}), encoding="utf-8")
    assert read_workflow(file) == workflow
    file.write_bytes(png(chunk(b"tEXt", b"prompt\0" + text.encode()), chunk(b"IDAT", b"")))
    assert read_workflow(file) == workflow


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"nodes": [], "links": []}', "as the page saves it; open it in ComfyUI and export"),
        (b"{}", "is no workflow as ComfyUI's menu exports it"),
        (b'{"1": {"inputs": {}}}', "is no workflow as ComfyUI's menu exports it"),
        (b"words", "is no workflow: "),
        (b"\xff\xfe\xff", "is no workflow: "),
        (png(chunk(b"IDAT", b"")), "is no workflow: it keeps none"),
        (png() + b"\xff" * 9, "is no workflow: it keeps none"),
    ],
)
def test_what_is_no_workflow_is_one_line(content, problem, tmp_path):
    file = tmp_path / "w.json"
    file.write_bytes(content)
    with pytest.raises(ConvertError, match=problem):
        read_workflow(file)
    with pytest.raises(ConvertError, match="cannot read the workflow"):
        read_workflow(tmp_path / "none.json")
