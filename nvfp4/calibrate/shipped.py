"""Make the workflow that comes with the program for a model: the API form, as ComfyUI runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvfp4.calibrate.recipes import IMAGE_LATENTS, Sampling
from nvfp4.errors import ConvertError
from nvfp4.options.tasks import CalibrationRun

# {node id: {"class_type": ..., "inputs": {name: value, or [node id, output's place]}}}
Workflow = dict[str, dict]
# What an input is linked to: [node id, output's place].
Link = list

# What stands for each prompt's own text and seed until it is queued.
NO_TEXT, NO_SEED = "", 0
# What the nodes that make noise schedules are given beside the steps: their own defaults, and the
# size, or the latents, that they count tokens of.
SCHEDULE_INPUTS = {
    "LTXVScheduler": {"max_shift": 2.05, "base_shift": 0.95, "stretch": True, "terminal": 0.1},
    "Flux2Scheduler": {"width": 0, "height": 0},
}
# The last step of KSamplerAdvanced, beyond all.
LAST_STEP = 10_000


def with_options(usual: Sampling, task: CalibrationRun) -> Sampling:
    """Return how a model is sampled, with the values that options gave.

    Raises ConvertError for files that its workflow needs, and for those that it has no use for.
    """
    given = len(task.text_encoder)
    if given != usual.encoders:
        raise ConvertError(f"--text-encoder: the model takes {usual.encoders}, not {given}")
    if usual.needs_image and not task.image:
        raise ConvertError("the model makes videos of an image: give --vae FILE and --image FILE")
    if task.image and not usual.image_latent:
        raise ConvertError("--image: the model's workflow takes none; --workflow takes your own")
    if task.low_noise and usual.sigmas:
        raise ConvertError("--low-noise: only Wan 2.2 14B comes in two halves")
    chosen = {"size": task.size, "steps": task.steps, "cfg": task.cfg}
    return dataclasses.replace(usual, **{key: value for key, value in chosen.items() if value})


class Builder:
    """Put the nodes of a workflow together; `nodes` is what was made so far."""

    def __init__(self, sampling: Sampling, task: CalibrationRun):
        """Take how the model is sampled, with the values of options, and the files."""
        self.sampling, self.task = sampling, task
        self.nodes: Workflow = {}

    def add(self, node: str, kind: str, **inputs: object) -> Link:
        """Add a node, and return its first output."""
        self.nodes[node] = {"class_type": kind, "inputs": inputs}
        return [node, 0]

    def model(self, node: str, path: Path) -> Link:
        """Load a model, and shift its noise schedule where its kind wants that."""
        loaded = self.add(node, "UNETLoader", unet_name=path.name, weight_dtype="default")
        if self.sampling.shift is None:
            return loaded
        kind, shift = self.sampling.shift
        return self.add(f"{node} shifted", kind, model=loaded, shift=shift)

    def conditioning(self) -> tuple[Link, Link]:
        """Encode the prompt and the negative prompt, with what goes beside them."""
        names, kind = [path.name for path in self.task.text_encoder], self.sampling.clip
        if len(names) == 1:
            clip = self.add("text encoder", "CLIPLoader", clip_name=names[0], type=kind)
        else:
            files = {f"clip_name{number}": name for number, name in enumerate(names, 1)}
            clip = self.add("text encoder", "DualCLIPLoader", **files, type=kind)
        positive = self.add("positive", "CLIPTextEncode", clip=clip, text=NO_TEXT)
        negative = self.add("negative", "CLIPTextEncode", clip=clip, text=self.task.negative)
        if self.sampling.guidance is not None:
            told = {"conditioning": positive, "guidance": self.sampling.guidance}
            positive = self.add("guidance", "FluxGuidance", **told)
        if self.sampling.frame_rate:
            told = {"positive": positive, "negative": negative}
            rate = self.sampling.frame_rate
            positive = self.add("frame rate", "LTXVConditioning", **told, frame_rate=rate)
            negative = ["frame rate", 1]
        return positive, negative

    def ends(self) -> dict[str, Link]:
        """Make conditioning and latents: what a sampler is given beside the model."""
        positive, negative = self.conditioning()
        width, height, frames = self.sampling.size
        size = {"width": width, "height": height, "batch_size": 1}
        if self.sampling.latent not in IMAGE_LATENTS:
            size["length"] = frames
        if not self.task.image:
            latent = self.add("latent", self.sampling.latent, **size)
            return {"positive": positive, "negative": negative, "latent_image": latent}
        size["vae"] = self.add("vae", "VAELoader", vae_name=self.task.vae.name)
        size["start_image"] = self.add("image", "LoadImage", image=NO_TEXT)
        if not self.sampling.needs_image:
            latent = self.add("latent", self.sampling.image_latent, **size)
            return {"positive": positive, "negative": negative, "latent_image": latent}
        size |= {"positive": positive, "negative": negative}
        outputs = ("positive", "negative", "latent_image")
        self.add("latent", self.sampling.image_latent, **size)
        return {name: ["latent", place] for place, name in enumerate(outputs)}

    def sampled_by_schedule(self, model: Link, ends: dict[str, Link]) -> Link:
        """Sample with a noise schedule that a node of the model's kind makes."""
        kind, steps = self.sampling.sigmas, self.sampling.steps
        inputs = {"steps": steps, **SCHEDULE_INPUTS[kind]}
        if "width" in inputs:
            inputs |= dict(zip(("width", "height"), self.sampling.size, strict=False))
        else:
            inputs["latent"] = ends["latent_image"]
        return self.add(
            "sampler",
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=NO_SEED,
            cfg=self.sampling.cfg,
            sampler=self.add("method", "KSamplerSelect", sampler_name=self.sampling.sampler),
            sigmas=self.add("sigmas", kind, **inputs),
            **ends,
        )

    def sampled_in_steps(self, node: str, model: Link, ends: dict[str, Link], **steps) -> Link:
        """Sample some of the steps: those of a half, or all."""
        sampling = self.sampling
        return self.add(
            node,
            "KSamplerAdvanced",
            model=model,
            noise_seed=NO_SEED,
            steps=sampling.steps,
            cfg=sampling.cfg,
            sampler_name=sampling.sampler,
            scheduler=sampling.scheduler,
            **ends,
            **steps,
        )

    def build(self) -> Workflow:
        """Make the workflow: it ends at the sampler, as nobody looks at what is sampled."""
        model, ends, half = self.model("model", self.task.calibrate), self.ends(), LAST_STEP
        if self.task.low_noise:
            half = self.sampling.steps // 2
        if self.sampling.sigmas:
            sampled = self.sampled_by_schedule(model, ends)
        else:
            sampled = self.sampled_in_steps("sampler", model, ends, **steps_of(0, half))
        if self.task.low_noise:
            model = self.model("low noise", self.task.low_noise)
            ends = ends | {"latent_image": sampled}
            rest = steps_of(half, LAST_STEP)
            sampled = self.sampled_in_steps("low-noise sampler", model, ends, **rest)
        self.add("end", "SaveLatent", samples=sampled, filename_prefix="calibration")
        return self.nodes


def steps_of(first: int, last: int) -> dict[str, object]:
    """Make the inputs of a sampler that does the steps from one to another."""
    return {
        "add_noise": "disable" if first else "enable",
        "start_at_step": first,
        "end_at_step": last,
        "return_with_leftover_noise": "disable" if last == LAST_STEP else "enable",
    }
