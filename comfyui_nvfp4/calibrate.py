"""The node that samples prompts from a list while a recorder watches: calibrating in one queue.

ComfyUI's own lists would run a workflow for each prompt, too, but keep all that they sample, and
nothing tells a converting node behind them that the last prompt is done. This node gives its
recording on when it is whole.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from server import PromptServer

from .encoders import watched_clip
from .files import recordings_folder
from .inputs import NodeError, hold, told
from .made import changes, note_files
from .record import encoder_recordings, recording_of, watched
from .runtime import converting
from .second_moments import LAYERS
from .workflow import file_behind, files_behind

# The step after all.
LAST_STEP = 10_000
# Of ComfyUI's samplers, whose seeds may come by a link; behind it comes 0.
LAST_SEED = 0xFFFFFFFFFFFFFFFF
# Bytes of a file of prompts: a book has less.
LONGEST_FILE = 10_000_000


def prompts_of(text: str, file: str) -> list[str]:
    """List the prompts of a text and of a file, one on each line; empty lines are left out.

    file: its name in ComfyUI's input folder; "" for none. Raises NodeError where there is no
    prompt, or no such file.
    """
    lines = text.splitlines()
    if path := prompts_path(file):
        lines += read_prompts(path, file).splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise NodeError("write prompts, one on each line, or name a file of them")
    return prompts


def read_prompts(path: Path, file: str) -> str:
    """Read a file of prompts, called `file` by who named it. Raises NodeError."""
    try:
        if not path.is_file():
            raise NodeError(f"prompts_file: there is no {file} in ComfyUI's input folder")
        if path.stat().st_size > LONGEST_FILE:
            raise NodeError(f"prompts_file: {file} is too long for a list of prompts")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise NodeError(f"prompts_file: cannot read {file}: {error.strerror}") from None


def prompts_path(file: str) -> Path | None:
    """Return the path of a file in ComfyUI's input folder, None for "".

    Who may queue workflows need not be who may read any file: raises NodeError for one elsewhere.
    """
    folder = Path(folder_paths.get_input_directory()).resolve()
    try:
        path = (folder / file.strip()).resolve()
    # A null character, a name that is too long, or links in a circle.
    except (OSError, ValueError, RuntimeError) as error:
        raise NodeError(f"prompts_file: {told(file)} is no file name: {error}") from None
    if path == folder:
        return None
    if folder not in path.parents:
        raise NodeError("prompts_file: only a file in ComfyUI's input folder")
    return path


def with_extras(encoded: list, ready: list | None) -> list:
    """Put what a ready conditioning has beside its text into that of another text.

    That is a start image, a reference or a guidance scale; what the text encoder made stays.
    """
    extras = dict(ready[0][1]) if ready else {}
    return [[tokens, extras | facts] for tokens, facts in encoded]


def share_of(latent: dict, number: int, count: int) -> dict:
    """Return a prompt's own part of latents that are as many as the prompts, else all of them."""
    samples = latent["samples"]
    if samples.is_nested or count == 1 or len(samples) != count:
        return latent
    mine = {key: latent[key] for key in latent if key not in ("noise_mask", "batch_index")}
    return mine | {"samples": samples[number : number + 1]}


class Steps:
    """Show on a node which prompt is sampled and how many steps are done; listen to the cancel."""

    def __init__(self, node_id: str | None, prompts: int, steps: int):
        self.node_id, self.prompts, self.steps, self.before = node_id, prompts, steps, 0
        self.bar = comfy.utils.ProgressBar(prompts * steps, node_id=node_id)

    def begin(self, number: int) -> None:
        """Say which prompt is next, counted from 0."""
        self.before = number * self.steps
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.node_id is not None and PromptServer.instance is not None:
            text = f"prompt {number + 1} of {self.prompts}"
            PromptServer.instance.send_progress_text(text, self.node_id)

    def __call__(self, step: int, *_: object) -> None:
        """Count a step, as a sampler tells it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(self.before + min(step + 1, self.steps))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Hold what is the same for all prompts.

    how: steps, cfg, sampler and schedule. first, last: the steps that are done; from step 0 on,
    latents are given noise. against: the negative conditioning. shown: what counts steps.
    """

    model: object
    how: tuple[int, float, str, str]
    first: int
    last: int
    against: list
    shown: Steps

    def sample(self, number: int, positive: list, start: dict, seed: int) -> torch.Tensor:
        """Sample one prompt from its latents, and return what becomes of them."""
        self.shown.begin(number)
        given = comfy.sample.fix_empty_latent_channels(
            self.model, start["samples"], start.get("downscale_ratio_spacial")
        )
        # Latents of a high-noise half have their noise already; they may be nested ones.
        noise = comfy.sample.prepare_noise(given, seed) * (0.0 if self.first else 1.0)
        return comfy.sample.sample(
            self.model,
            noise,
            *self.how,
            positive,
            self.against,
            given,
            disable_noise=bool(self.first),
            start_step=self.first,
            last_step=self.last,
            force_full_denoise=self.last == self.how[0],
            noise_mask=start.get("noise_mask"),
            callback=self.shown,
            disable_pbar=True,
            seed=seed,
        )


class NVFP4Calibrate(io.ComfyNode):
    """Sample each prompt of a list from a model, and record what its linear layers are given.

    The text encoder is asked for all prompts first, so that neither model is loaded twice. A cancel
    ends the list; what was recorded until then is written, and stays. Raises NodeError for a list
    without prompts, and as the recorder does.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="NVFP4Calibrate",
            display_name="Calibrate Model (NVFP4)",
            category="advanced/quantization",
            description=(
                "Samples prompts from a list and records the inputs of all linear layers, for the "
                "statistics of a conversion. Wan 2.2 14B takes two: one for each half."
            ),
            search_aliases=["calibration", "activation statistics", "nvfp4", "quantize", "prompts"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="what is sampled and recorded, with its LoRAs and shift"
                ),
                io.Clip.Input("clip", tooltip="encodes the prompts"),
                io.Latent.Input(
                    "latent",
                    tooltip="empty latents of your usual size; for a low-noise half those that the "
                    "high-noise half's node gives",
                ),
                io.String.Input(
                    "prompts", multiline=True, tooltip="one on each line; a few dozen are enough"
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="of all prompts; cfg 1 needs none",
                ),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=LAST_SEED,
                    control_after_generate=False,
                    tooltip="of the first prompt; each further one takes the next",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=LAST_STEP, tooltip="of a run, as you sample"
                ),
                io.Float.Input(
                    "cfg", default=3.5, min=0.0, max=100.0, step=0.1, tooltip="as you sample"
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="as you sample",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="as you sample",
                ),
                io.Int.Input(
                    "start_at_step",
                    default=0,
                    min=0,
                    max=LAST_STEP,
                    tooltip="above 0 for a low-noise half, which is given latents with their noise",
                ),
                io.Int.Input(
                    "end_at_step",
                    default=LAST_STEP,
                    min=1,
                    max=LAST_STEP,
                    tooltip="where a high-noise half stops; its latents go to the other's node",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="of your workflow: its start image, reference or guidance go with each "
                    "prompt, its text does not",
                ),
                io.String.Input(
                    "prompts_file",
                    default="",
                    optional=True,
                    tooltip="more prompts: the name of a text file in ComfyUI's input folder",
                    advanced=True,
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip="of the recording; empty: that of the model's file",
                    advanced=True,
                ),
                io.Combo.Input(
                    "second_moments",
                    options=[*LAYERS],
                    default=LAYERS[0],
                    optional=True,
                    tooltip="also record what activation-aware rounding needs (gigabytes)",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "record_clip",
                    default=False,
                    optional=True,
                    tooltip="record the text encoders, too: each under its own name, for the "
                    "statistics of a conversion of its file",
                    advanced=True,
                ),
            ],
            outputs=[
                io.AnyType.Output(
                    "recording",
                    display_name="recording",
                    tooltip="its name: link it to the input statistics of a converting node",
                ),
                io.Latent.Output(
                    "latents",
                    display_name="latents",
                    tooltip="of all prompts, for the low-noise half",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: object) -> tuple:
        """Have the node run again where its file of prompts changed, or its recording was deleted.

        People delete a recording to start again; ComfyUI would give on the name of what is gone.
        """
        return changes(cls.hidden.unique_id, values)

    @classmethod
    def execute(  # noqa: PLR0913 (the node's inputs)
        cls,
        model,
        clip,
        latent,
        prompts,
        negative,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        start_at_step=0,
        end_at_step=LAST_STEP,
        conditioning=None,
        prompts_file="",
        name="",
        second_moments=LAYERS[0],
        record_clip=False,
    ) -> io.NodeOutput:
        """Encode all prompts, sample one after another; return the file, and all latents."""
        hold(cls.define_schema().inputs, locals())
        texts = prompts_of(prompts, prompts_file)
        first, last = start_at_step, min(end_at_step, steps)
        if first >= last:
            raise NodeError(f"start_at_step {first} is not before the last step, {last}")
        node_id = cls.hidden.unique_id
        prompt = cls.hidden.prompt or {}
        recording = recording_of(name or file_behind(prompt, str(node_id)))
        told_texts = contextlib.nullcontext()
        if record_clip:
            named = f"{name}_text" if name else files_behind(prompt, str(node_id), "clip")
            recordings = encoder_recordings(clip, named)
            clip = watched_clip(clip, recordings, second_moments=second_moments)
            told_texts = clip.recording()
        # Their files are written once, when all texts are encoded.
        with told_texts:
            against, *encoded = (
                with_extras(clip.encode_from_tokens_scheduled(clip.tokenize(text)), conditioning)
                for text in (negative, *texts)
            )
        run = Run(
            model=watched(model, recording, second_moments=second_moments),
            how=(steps, cfg, sampler_name, scheduler),
            first=first,
            last=last,
            against=against,
            shown=Steps(node_id, len(texts), last - first),
        )
        sampled = [
            run.sample(
                number, positive, share_of(latent, number, len(texts)), (seed + number) & LAST_SEED
            )
            for number, positive in enumerate(encoded)
        ]
        note_files(node_id, filter(None, [prompts_path(prompts_file)]))
        # Further runs add to a recording.
        note_files(node_id, [recording.path], Path.exists)
        # Nested latents, of video with sound, are of models that come in one part.
        joined = sampled[-1] if sampled[-1].is_nested else torch.cat(sampled)
        # A converting node lists recordings by these names.
        shown = recording.path.relative_to(recordings_folder()).as_posix()
        with converting(node_id) as program:
            text = program.printable("\n".join(program.most_variable(recording.path)))
        return io.NodeOutput(shown, {"samples": joined}, ui={"text": (text,)})
