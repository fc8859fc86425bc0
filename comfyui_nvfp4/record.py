"""The nodes that record what linear layers are given: of a model that is sampled, of text encoders.

The measuring stands in `recorder`, what rounding by statistics needs besides in `second_moments`.
"""

from __future__ import annotations

import re
from pathlib import Path

import comfy.patcher_extension
from comfy_api.latest import io

from .encoders import encoders_of, watched_clip
from .files import recordings_folder
from .inputs import NodeError, hold, is_plain, told
from .recorder import Recording
from .second_moments import LAYERS
from .workflow import file_behind, files_behind

# {(folder, name): its recording}, one for each file for as long as ComfyUI runs, however often the
# node is executed, so that prompts add up.
RECORDINGS: dict[tuple[Path, str], Recording] = {}


class NVFP4CalibrationRecorder(io.ComfyNode):
    """Stand between a model loader and a sampler; the model passes through unchanged.

    Raises NodeError for a name that is no plain file name or that the workflow does not tell, for a
    folder that cannot be made, and for layers that are no regular expression.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node; its id and the order of its inputs are in saved workflows."""
        return io.Schema(
            node_id="NVFP4CalibrationRecorder",
            display_name="NVFP4 Calibration Recorder",
            category="advanced/quantization",
            description=(
                "Records the inputs of all linear layers while the model is sampled: NAME.log and "
                "NAME.safetensors, which conversions to NVFP4, INT8 and FP8 take as statistics."
            ),
            search_aliases=["calibrate", "activation statistics", "nvfp4", "quantize", "int8"],
            inputs=[
                io.Model.Input("model", tooltip="passes through unchanged"),
                *recorder_inputs("of the files; empty: that of the model's file"),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(  # noqa: PLR0913 (the node's inputs)
        cls,
        model,
        enabled=True,
        name="",
        folder="",
        layers="",
        tokens=256,
        second_moments="none",
        widest=8192,
    ) -> io.NodeOutput:
        """Return a clone of the model that records while it is sampled."""
        hold(cls.define_schema().inputs, locals())
        if not enabled:
            return io.NodeOutput(model)
        name = name or file_behind(cls.hidden.prompt or {}, str(cls.hidden.unique_id))
        refuse_pattern(layers)
        recording = recording_of(name, folder)
        how = {"pattern": layers, "tokens": tokens, "widest": widest}
        return io.NodeOutput(watched(model, recording, second_moments=second_moments, **how))


class NVFP4EncoderRecorder(io.ComfyNode):
    """Stand between a text encoder's loader and the nodes that encode; the CLIP passes through.

    Raises NodeError as the recorder of models does, and for a CLIP without an encoder.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node; its id and the order of its inputs are in saved workflows."""
        return io.Schema(
            node_id="NVFP4EncoderRecorder",
            display_name="NVFP4 Text Encoder Recorder",
            category="advanced/quantization",
            description=(
                "Records the inputs of all linear layers of text encoders while prompts are "
                "encoded: NAME.log and NAME.safetensors for each encoder, which conversions of its "
                "file take as statistics."
            ),
            search_aliases=["calibrate clip", "activation statistics", "nvfp4", "quantize", "t5"],
            inputs=[
                io.Clip.Input("clip", tooltip="passes through unchanged"),
                *recorder_inputs(
                    "of the files; empty: that of the encoder's file. Of several encoders each has "
                    "its own behind it, as NAME_clip_l and NAME_t5xxl; empty: that alone"
                ),
            ],
            outputs=[io.Clip.Output()],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(  # noqa: PLR0913 (the node's inputs)
        cls,
        clip,
        enabled=True,
        name="",
        folder="",
        layers="",
        tokens=256,
        second_moments="none",
        widest=8192,
    ) -> io.NodeOutput:
        """Return a clone of the CLIP that records while it encodes."""
        hold(cls.define_schema().inputs, locals())
        if not enabled:
            return io.NodeOutput(clip)
        refuse_pattern(layers)
        prompt, node = cls.hidden.prompt or {}, str(cls.hidden.unique_id)
        recordings = encoder_recordings(clip, name or files_behind(prompt, node, "clip"), folder)
        how = {"pattern": layers, "tokens": tokens, "widest": widest}
        return io.NodeOutput(watched_clip(clip, recordings, second_moments=second_moments, **how))


def recorder_inputs(name: str) -> list[io.Input]:
    """List the inputs of a recorder beside what it records; name: the tooltip of that input."""
    return [
        io.Boolean.Input("enabled", default=True, tooltip="off: nothing is recorded"),
        io.String.Input("name", default="", tooltip=name),
        io.String.Input(
            "folder", default="", tooltip="empty: output/nvfp4_calibration", advanced=True
        ),
        io.String.Input(
            "layers",
            default="",
            tooltip="regular expression; empty: every linear layer",
            advanced=True,
        ),
        io.Int.Input(
            "tokens",
            default=256,
            min=16,
            max=1 << 20,
            tooltip="input rows sampled at every call for all but the maxima",
            advanced=True,
        ),
        io.Combo.Input(
            "second_moments",
            options=[*LAYERS],
            tooltip="also record what activation-aware rounding needs (gigabytes)",
        ),
        io.Int.Input(
            "widest",
            default=8192,
            min=16,
            max=1 << 20,
            tooltip="layers of more input channels have no second moments",
            advanced=True,
        ),
    ]


def refuse_pattern(layers: str) -> None:
    """Raise NodeError for what is no regular expression: now, not after a model was loaded."""
    try:
        re.compile(layers)
    except re.error as error:
        raise NodeError(f"layers: {layers!r} is no regular expression: {error}") from None


def encoder_recordings(clip, named: str | dict[str, str], folder: str = "") -> dict[str, Recording]:
    """Return {encoder: its recording} of a CLIP.

    named: what the recordings are to be called, or the files that the CLIP's loader names, as
    `files_behind` finds them: the one encoder of a file is called by that file, one of several
    files by itself, and those of a checkpoint by both. Raises NodeError as `encoders_of` and
    `recording_of`.
    """
    encoders = encoders_of(clip)
    if isinstance(named, str):
        is_own, stem = len(encoders) == 1, named
    else:
        is_own = len(encoders) == len(named) == 1 and next(iter(named)).startswith("clip")
        stem = next(iter(named.values())) if len(named) == 1 else ""
    return {
        name: recording_of(stem if is_own else f"{stem}_{name}".lstrip("_"), folder, encoder=name)
        for name in encoders
    }


def recording_of(name: str, folder: str = "", encoder: str = "") -> Recording:
    """Return the recording of a name, which goes on with what is there.

    folder: "" for nvfp4_calibration in ComfyUI's output folder; it is made. encoder: what ComfyUI
    calls the text encoder that is recorded, "" for a diffusion model. Raises NodeError for a
    name that is no plain file name, or "", as where a workflow does not tell its model, and for a
    folder that cannot be made.
    """
    if not name:
        raise NodeError("the workflow does not tell the model's file: give the recorder a name")
    if not re.fullmatch(r"\w[\w .()+-]*", name) or not is_plain(name):
        raise NodeError(f"name must be a plain file name, not {told(name)}")
    base = Path(folder) if folder else recordings_folder()
    try:
        base.mkdir(parents=True, exist_ok=True)
    # A null character is a ValueError.
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise NodeError(f"folder: cannot make {told(str(base))}, name another: {why}") from None
    key, made = (base.resolve(), name), Recording(base, name, encoder=encoder)
    if RECORDINGS.setdefault(key, made).encoder != encoder:
        raise NodeError(f"name: {name} is the recording of another model; give another name")
    return RECORDINGS[key]


def watched(model, recording: Recording, **how):
    """Return a clone of a model that records while it is sampled; `how` is as in `watching`."""

    def outer_sample(executor, *arguments, **keywords):
        diffusion_model = executor.class_obj.model_patcher.model.diffusion_model
        with recording.watching(diffusion_model, **how):
            return executor(*arguments, **keywords)

    model = model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model.add_wrapper_with_key(kind, "nvfp4_calibration_recorder", outer_sample)
    return model
