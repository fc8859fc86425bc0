"""NVFP4 Calibration Recorder, a ComfyUI node: copy this folder into ComfyUI/custom_nodes.

Here is what ComfyUI sees: the node, its inputs, and the wrapper around sampling. The measuring
stands in `recorder`, what rounding needs besides in `second_moments`. The folder imports nothing of
the converter, so that it works where only it was copied.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from .recorder import Recording
from .second_moments import LAYERS

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


class NVFP4CalibrationRecorder:
    """Stand between a model loader and a sampler, and record what every linear layer is given.

    The model passes through unchanged. Each file has one Recording for as long as ComfyUI runs,
    however often the node is executed, so that prompts add up. Raises ValueError for a name that is
    no plain file name, or that the workflow does not tell.
    """

    CATEGORY = "advanced/model"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "record"
    DESCRIPTION = (
        "Records the inputs of all linear layers while the model is sampled: NAME.log and "
        "NAME.safetensors, for analyze_input_scale_log.py and convert_nvfp4.py."
    )
    # {(folder, name): its recording}, one for each file, however often the node is executed.
    recordings: ClassVar[dict[tuple, Recording]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """Describe the node's inputs as ComfyUI wants them."""
        return {
            "required": {
                "model": ("MODEL",),
                "enabled": ("BOOLEAN", {"default": True}),
                "name": (
                    "STRING",
                    {"default": "", "tooltip": "of the files; empty: that of the model's file"},
                ),
                "folder": ("STRING", {"default": "", "tooltip": "empty: output/nvfp4_calibration"}),
                "layers": (
                    "STRING",
                    {"default": "", "tooltip": "regular expression; empty: every linear layer"},
                ),
                "tokens": (
                    "INT",
                    {
                        "default": 256,
                        "min": 16,
                        "max": 1 << 20,
                        "tooltip": "input rows sampled at every call for all but the maxima",
                    },
                ),
                "second_moments": (
                    list(LAYERS),
                    {"tooltip": "also record what activation-aware rounding needs (gigabytes)"},
                ),
                "widest": (
                    "INT",
                    {
                        "default": 8192,
                        "min": 16,
                        "max": 1 << 20,
                        "tooltip": "layers of more input channels have no second moments",
                    },
                ),
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    def record(  # noqa: PLR0913 (the node's inputs)
        self,
        model,
        enabled=True,
        name="",
        folder="",
        layers="",
        tokens=256,
        second_moments="none",
        widest=8192,
        prompt=None,
        unique_id="",
    ) -> tuple:
        """Return a clone of the model that records while it is sampled."""
        if not enabled:
            return (model,)
        # Imported here, as tests and benchmarks use this folder without ComfyUI.
        import comfy.patcher_extension
        import folder_paths

        name = name or file_behind(prompt or {}, str(unique_id))
        if not name:
            raise ValueError(
                "the workflow does not tell the model's file: give the recorder a name"
            )
        if not re.fullmatch(r"\w[\w .()+-]*", name):
            raise ValueError(f"name must be a plain file name, not {name!r}")
        re.compile(layers)  # raises for a mistake now, and not after the model was loaded
        base = Path(folder or Path(folder_paths.get_output_directory()) / "nvfp4_calibration")
        key = (base.resolve(), name)
        recording = self.recordings.get(key)
        if recording is None:
            recording = self.recordings[key] = Recording(base, name)

        def outer_sample(executor, *arguments, **keywords):
            diffusion_model = executor.class_obj.model_patcher.model.diffusion_model
            with recording.watching(diffusion_model, layers, tokens, second_moments, widest):
                return executor(*arguments, **keywords)

        model = model.clone()
        kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        model.add_wrapper_with_key(kind, "nvfp4_calibration_recorder", outer_sample)
        return (model,)


NODE_CLASS_MAPPINGS = {"NVFP4CalibrationRecorder": NVFP4CalibrationRecorder}
NODE_DISPLAY_NAME_MAPPINGS = {"NVFP4CalibrationRecorder": "NVFP4 Calibration Recorder"}
