"""Read workflows as ComfyUI runs them: {node id: {"class_type": ..., "inputs": {...}}}."""

from __future__ import annotations

from pathlib import Path

# A loader's input that ends in one of these is taken for the file of the model.
MODEL_SUFFIXES = (".safetensors", ".gguf", ".sft", ".ckpt", ".pt", ".pth")


def file_behind(prompt: dict, node: str) -> str:
    """Find the name of the model file that a node's MODEL comes from, or "".

    The name is without folder and suffix. `prompt` is the workflow as ComfyUI runs it, {node id:
    {"inputs": ...}}; `node` is the id to begin at. The way goes up by inputs whose names begin with
    "model". Only a node without such a link is a loader; the nodes on the way may name a LoRA,
    which must not be taken for the model.
    """
    seen = set()
    while node in prompt and node not in seen:
        seen.add(node)
        inputs = prompt[node].get("inputs", {})
        links = [
            value[0]
            for key, value in inputs.items()
            if isinstance(value, list) and key.lower().startswith("model")
        ]
        if links:
            node = str(links[0])
            continue
        # No link to a model: this is a loader, and its file is the input that looks like one.
        for value in inputs.values():
            if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
                return Path(value.replace("\\", "/")).stem
    return ""
