"""NVFP4 Calibration Recorder, a ComfyUI node: copy this folder into ComfyUI/custom_nodes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .recorder import Recording

MODEL_SUFFIXES = (".safetensors", ".gguf", ".sft", ".ckpt", ".pt", ".pth")


def file_behind(prompt: dict, node: str) -> str:
    """The name of the model file that a node's MODEL comes from, going up the workflow; or ""."""
    seen = set()
    while node in prompt and node not in seen:
        seen.add(node)
        inputs = prompt[node].get("inputs", {})
        for value in inputs.values():
            if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
                return Path(value.replace("\\", "/")).stem
        link = inputs.get("model")
        node = str(link[0]) if isinstance(link, list) else ""
    return ""


class NVFP4CalibrationRecorder:
    """Between a model loader and a sampler: records what every linear layer is given."""

    CATEGORY = "advanced/model"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "record"
    DESCRIPTION = (
        "Records the inputs of all linear layers while the model is sampled: NAME.log and "
        "NAME.safetensors, for analyze_input_scale_log.py and convert_nvfp4.py."
    )
    recordings: ClassVar[
        dict[tuple, Recording]
    ] = {}  # one for each file, however often the node runs

    @classmethod
    def INPUT_TYPES(cls) -> dict:
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
        prompt=None,
        unique_id="",
    ) -> tuple:
        if not enabled:
            return (model,)
        import comfy.patcher_extension
        import folder_paths

        name = name or file_behind(prompt or {}, str(unique_id))
        if not name or Path(name).name != name:
            raise ValueError(f"name must be a plain file name, not {name!r}")
        base = Path(folder or Path(folder_paths.get_output_directory()) / "nvfp4_calibration")
        key = (base.resolve(), name)
        recording = self.recordings.get(key)
        if recording is None:
            recording = self.recordings[key] = Recording(base, name)
        recording.configure(layers, tokens)

        def outer_sample(executor, *arguments, **keywords):
            diffusion_model = executor.class_obj.model_patcher.model.diffusion_model
            with recording.watching(diffusion_model):
                return executor(*arguments, **keywords)

        model = model.clone()
        kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        model.add_wrapper_with_key(kind, "nvfp4_calibration_recorder", outer_sample)
        return (model,)


NODE_CLASS_MAPPINGS = {"NVFP4CalibrationRecorder": NVFP4CalibrationRecorder}
NODE_DISPLAY_NAME_MAPPINGS = {"NVFP4CalibrationRecorder": "NVFP4 Calibration Recorder"}
