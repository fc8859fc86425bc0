"""Edit workflows in the form that ComfyUI runs: recorders put in, texts and seeds, cut to samplers.

A workflow is {node id: {"class_type": ..., "inputs": {name: value, or [node id, place]}}}. What the
outputs of a node are, ComfyUI tells: {class: {"output": [types], ...}}, its /object_info.
"""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nvfp4.calibrate.shipped import Workflow
from nvfp4.errors import ConvertError, examples
from nvfp4.files import translated
from nvfp4.read.json_files import parse_json, read_whole

# How a PNG begins, and the chunk in which ComfyUI keeps the workflow that made it.
PNG, PROMPT_CHUNK = b"\x89PNG\r\n\x1a\n", b"tEXtprompt\0"
# Of a picture so much is read; the chunk stands before the pixels.
PNG_BYTES = 64_000_000
# The types of what a sampler is given, a model or what guides one, and of what it gives.
SAMPLED_BY, SAMPLED = ("MODEL", "GUIDER"), "LATENT"
# Inputs through which a text reaches a sampler's positive conditioning.
TEXT_WAY = re.compile(
    r"(positive|conditioning|cond|guider|text|prompt|string|value|clip_[lg]|t5xxl)\w*"
)
# Inputs whose value is the text itself.
TEXTS = ("text", "prompt", "string", "value", "clip_l", "clip_g", "t5xxl", "text_g", "text_l")
SEEDS = ("seed", "noise_seed")
RECORDER = "NVFP4CalibrationRecorder"
# {what a loader gives: the node that records it, and that node's input for it}.
RECORDERS = {"MODEL": (RECORDER, "model"), "CLIP": ("NVFP4EncoderRecorder", "clip")}


def read_workflow(path: Path) -> Workflow:
    """Read a workflow in API form, of JSON or of a PNG that ComfyUI wrote.

    Raises ConvertError for anything else; what the page saves has another form, and the line says
    how to get this one.
    """
    with translated(path, "cannot read the workflow"):
        with path.open("rb") as file:
            is_png = file.read(len(PNG)) == PNG
        try:
            text = prompt_of_png(path) if is_png else read_whole(path).decode("utf-8-sig")
            found = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise ConvertError(f"{path}: is no workflow: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("prompt"), dict):
        found = found["prompt"]
    if isinstance(found, dict) and isinstance(found.get("nodes"), list):
        raise ConvertError(
            f"{path}: is a workflow as the page saves it; open it in ComfyUI and export it from "
            "the menu by Export (API)"
        )
    if not found or not isinstance(found, dict) or not all(map(is_node, found.values())):
        raise ConvertError(f"{path}: is no workflow as ComfyUI's menu exports it by Export (API)")
    return found


def is_node(node: object) -> bool:
    """Tell whether a value is a node of a workflow."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def prompt_of_png(path: Path) -> str:
    """Read the workflow that a PNG keeps; raises ValueError where it has none."""
    with path.open("rb") as file:
        raw = file.read(PNG_BYTES)
    place = len(PNG)
    while place + 8 <= len(raw):
        size, kind = struct.unpack(">I4s", raw[place : place + 8])
        content = raw[place + 4 : place + 8 + size]
        if content.startswith(PROMPT_CHUNK):
            return content[len(PROMPT_CHUNK) :].decode("latin-1")
        if kind == b"IDAT":
            break
        place += size + 12
    raise ValueError("it keeps none; ComfyUI may have saved it without metadata")


def links(node: dict) -> Iterator[tuple[str, str, int]]:
    """Yield (input, node id, output's place) of the links that lead to a node."""
    for name, value in node["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
            yield name, str(value[0]), value[1]


def loaders_of(workflow: Workflow, path: Path) -> dict[str, str]:
    """Find the nodes that load a file, and the inputs that name it: {node id: input}.

    Folders and case do not count, as the file may lie elsewhere here. Raises ConvertError with what
    the workflow loads where no node does.
    """
    found, others = {}, []
    for node, told in workflow.items():
        for name, value in told["inputs"].items():
            if isinstance(value, str) and re.search(r"\.(safetensors|gguf|sft)$", value, re.I):
                file = PurePosixPath(value.replace("\\", "/")).name
                if file.lower() == path.name.lower():
                    found[node] = name
                others.append(file)
    if not found:
        loads = examples(dict.fromkeys(others)) if others else "no model file"
        raise ConvertError(f"--workflow: no node loads {path.name}; it loads {loads}")
    return found


def put_recorders(
    workflow: Workflow,
    places: dict[str, dict[str, object]],
    info: dict[str, dict],
    kind: str = "MODEL",
) -> list[str]:
    """Put a recorder behind each loader, in place, and return their ids.

    places: {loader's id: inputs of its recorder}; kind: a key of RECORDERS. Raises ConvertError for
    a node that gives nothing of that kind.
    """
    made, (recorder_class, link) = [], RECORDERS[kind]
    for loader, inputs in places.items():
        outputs = outputs_of(workflow[loader], info)
        if kind not in outputs:
            raise ConvertError(f"--workflow: {workflow[loader]['class_type']} loads no model")
        source = [loader, outputs.index(kind)]
        recorder = f"recorder of {loader}" + f", {kind}" * (kind != "MODEL")
        for node in workflow.values():
            for name, from_node, place in links(node):
                if [from_node, place] == source:
                    node["inputs"][name] = [recorder, 0]
        workflow[recorder] = {"class_type": recorder_class, "inputs": {link: source, **inputs}}
        made.append(recorder)
    return made


def outputs_of(node: dict, info: dict[str, dict]) -> list[str]:
    """List the types of a node's outputs. Raises ConvertError for a class that is not there."""
    kind = node["class_type"]
    if kind not in info:
        raise ConvertError(f"this ComfyUI has no node {kind}; are its custom nodes installed?")
    return list(info[kind]["output"])


def type_of(node: dict, place: int, info: dict[str, dict]) -> object:
    """Return the type of a node's output, "" for one that it lacks.

    Older nodes have a list of choices for a type.
    """
    outputs = outputs_of(node, info)
    return outputs[place] if 0 <= place < len(outputs) else ""


def samplers_behind(workflow: Workflow, recorders: list[str], info: dict[str, dict]) -> list[str]:
    """Find the nodes that sample a recorded model: given a model, or a guider, they give latents.

    Raises ConvertError where there is none.
    """
    reached, grown = set(recorders), True
    while grown:
        more = {
            node
            for node, told in workflow.items()
            if node not in reached and any(origin in reached for _, origin, _ in links(told))
        }
        reached |= more
        grown = bool(more)
    found = [
        node
        for node in workflow
        if node in reached
        and SAMPLED in outputs_of(workflow[node], info)
        and any(
            origin in reached and type_of(workflow[origin], place, info) in SAMPLED_BY
            for _, origin, place in links(workflow[node])
        )
    ]
    if not found:
        raise ConvertError("--workflow: found no sampler that is given the model")
    return found


def behind(workflow: Workflow, nodes: list[str]) -> set[str]:
    """Collect nodes, and all that they depend on."""
    found, left = set(), [*nodes]
    while left:
        node = left.pop()
        if node not in found and node in workflow:
            found.add(node)
            left += [origin for _, origin, _ in links(workflow[node])]
    return found


def cut_to_samplers(workflow: Workflow, samplers: list[str], info: dict[str, dict]) -> Workflow:
    """Leave out what comes after the samplers: decoding and saving takes time, and nobody looks."""
    needed = behind(workflow, samplers)
    earlier = {
        origin for node in needed for _, origin, _ in links(workflow[node]) if origin in samplers
    }
    kept = {node: told for node, told in workflow.items() if node in needed}
    for node in samplers:
        if node not in earlier:
            sampled = [node, outputs_of(workflow[node], info).index(SAMPLED)]
            inputs = {"samples": sampled, "filename_prefix": "calibration"}
            kept[f"end of {node}"] = {"class_type": "SaveLatent", "inputs": inputs}
    return kept


def prompt_places(workflow: Workflow, samplers: list[str]) -> list[tuple[str, str]]:
    """Find the texts that the samplers' positive conditioning is made of: [(node id, input)].

    Raises ConvertError where there is none.
    """
    found, seen, left = {}, set(), [*samplers]
    while left:
        node = left.pop()
        if node in seen or node not in workflow:
            continue
        seen.add(node)
        told = workflow[node]
        way = {name: origin for name, origin, _ in links(told) if TEXT_WAY.fullmatch(name)}
        # What has a positive has a negative, too, which is not followed.
        left += [way["positive"]] if "positive" in way else way.values()
        if node not in samplers:
            found |= {
                (node, name): None for name in TEXTS if isinstance(told["inputs"].get(name), str)
            }
    if not found:
        raise ConvertError(
            "--workflow: found no text that the sampler's positive conditioning is made of"
        )
    return [*found]


def with_prompt(
    workflow: Workflow, places: list[tuple[str, str]], prompt: str, seed: int, image: str = ""
) -> Workflow:
    """Return the workflow of one prompt: its text, its seed wherever one is, and its image."""
    made = copy.deepcopy(workflow)
    for node, name in places:
        made[node]["inputs"][name] = prompt
    for told in made.values():
        inputs = told["inputs"]
        inputs |= {name: seed for name in SEEDS if isinstance(inputs.get(name), int)}
        if image and told["class_type"] == "LoadImage":
            inputs["image"] = image
    return made
