"""Read workflows as ComfyUI runs them: {node id: {"class_type": ..., "inputs": {...}}}."""

from __future__ import annotations

from pathlib import Path

# A loader's input that ends in one of these is taken for the file of the model.
MODEL_SUFFIXES = (".safetensors", ".gguf", ".sft", ".ckpt", ".pt", ".pth")


def file_behind(prompt: dict, node: str) -> str:
    """Find the name of the model file that a node's MODEL comes from, or "".

    The name is without folder and suffix. `prompt` is the workflow as ComfyUI runs it, {node id:
    {"inputs": ...}}; `node` is the id to begin at.
    """
    return next(iter(files_behind(prompt, node, "model").values()), "")


def files_behind(prompt: dict, node: str, link: str) -> dict[str, str]:
    """Find the files that the loader behind a node names: {its input: name}.

    The way goes up by inputs whose names begin with `link`, "model" or "clip". Only a node without
    such a link is a loader; the nodes on the way may name a LoRA, which must not be taken for the
    model.
    """
    seen = set()
    while node in prompt and node not in seen:
        seen.add(node)
        inputs = prompt[node].get("inputs", {})
        links = [
            value[0]
            for key, value in inputs.items()
            if isinstance(value, list) and key.lower().startswith(link)
        ]
        if links:
            node = str(links[0])
            continue
        # No link to a model: this is a loader, and its files are the inputs that look like some.
        return {
            key: Path(value.replace("\\", "/")).stem
            for key, value in inputs.items()
            if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES)
        }
    return {}


def loras_behind(prompt: dict, node: str) -> list[tuple[str, float]]:
    """Find the LoRAs that a node's MODEL went through: (name of the file, strength), first to last.

    The way goes up as in `file_behind`, and where models are merged up all of their ways; a node
    that merges is told by its class, at strength 1. What is switched off, or of strength 0, is
    left out. Names are without folders.
    """
    found, seen, ahead = [], set(), [node]
    while ahead:
        node = ahead.pop(0)
        if node not in prompt or node in seen:
            continue
        seen.add(node)
        inputs = prompt[node].get("inputs", {})
        links = [
            str(value[0])
            for key, value in inputs.items()
            if isinstance(value, list) and key.lower().startswith("model")
        ]
        found += loras_of(inputs)
        found += [(prompt[node].get("class_type", "merge"), 1.0)] if len(links) > 1 else []
        ahead += links
    return found[::-1]


def loras_of(inputs: dict) -> list[tuple[str, float]]:
    """List the LoRAs that one node loads, last to first: of ComfyUI's loaders, and of stacks.

    A stack has a record {"on": ..., "lora": name, "strength": ...} for each of its LoRAs.
    """
    strength = inputs.get("strength_model", inputs.get("strength", 1.0))
    given = [{"lora": inputs.get("lora_name"), "strength": strength}]
    given += [value for value in inputs.values() if isinstance(value, dict)]
    return [
        (Path(one["lora"].replace("\\", "/")).name, one["strength"])
        for one in given[::-1]
        if isinstance(one.get("lora"), str)
        and isinstance(one.get("strength"), int | float)
        and one.get("on", True)
        and one["strength"]
    ]
