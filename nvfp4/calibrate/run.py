"""Carry out a calibration: everything checked, ComfyUI started, prompts sampled, results told."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvfp4.asking.find import ComfyUI, find_comfyui
from nvfp4.calibrate.encoders import (
    encoder_recordings_in,
    file_of_recording,
    put_encoder_recorders,
    stays_16_bit,
)
from nvfp4.calibrate.recipes import sampling_of
from nvfp4.calibrate.running import RunningComfyUI, find_pack, input_name
from nvfp4.calibrate.shipped import Builder, Workflow, with_options
from nvfp4.calibrate.workflow import (
    RECORDER,
    cut_to_samplers,
    loaders_of,
    prompt_places,
    put_recorders,
    read_workflow,
    samplers_behind,
    with_prompt,
)
from nvfp4.cli.arguments import called_beside
from nvfp4.cli.console import show, show_problems
from nvfp4.doctor.facts import as_word
from nvfp4.errors import ConvertError, in_number, printable
from nvfp4.files import exists, translated
from nvfp4.logs.records import LOG_DEFAULTS, LineChoice
from nvfp4.logs.summary import read_errors, summarise_logs, with_errors
from nvfp4.logs.text import render_variable
from nvfp4.options.tasks import CalibrationRun
from nvfp4.progress import SCREEN, Activity, duration, phase, progress_bar
from nvfp4.read.beginnings import decode_text
from nvfp4.read.checkpoint import open_model
from nvfp4.read.json_files import read_whole

# Characters of a file's name that the recorder takes; others become "_".
NOT_IN_NAMES = re.compile(r"[^\w .()+-]|^\W")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRecording:
    """Name what is recorded of a model: `log` and `statistics` in the folder of the results."""

    model: Path
    folder: Path

    @property
    def name(self) -> str:
        """Make a name that the recorder takes of the model's."""
        return NOT_IN_NAMES.sub("_", self.model.stem)

    @property
    def log(self) -> Path:
        """The log of calls."""
        return self.folder / f"{self.name}.log"

    @property
    def statistics(self) -> Path:
        """The statistics of channels, for --activation-stats."""
        return self.folder / f"{self.name}.safetensors"

    def inputs(self, second_moments: str) -> dict[str, object]:
        """Make the inputs of the recorder's node, beside the model."""
        return recorder_inputs(self.name, self.folder, second_moments)


def recorder_inputs(name: str, folder: Path, second_moments: str) -> dict[str, object]:
    """Make the inputs of a recorder's node, beside what it records."""
    return {
        "enabled": True,
        "name": name,
        "folder": str(folder.resolve()),
        "layers": "",
        "tokens": 256,
        "second_moments": second_moments,
        "widest": 8192,
    }


def run_calibration(task: CalibrationRun) -> int:
    """Carry out a task, print what came of it, and return the exit status: 0, 1, or 130."""
    recorded = [OwnRecording(model=model, folder=task.results) for model in models_of(task)]
    try:
        show(printable("\n".join(calibrate(task, recorded))))
    except ConvertError as error:
        show_problems(error)
        return 1
    except KeyboardInterrupt:
        SCREEN.clear()
        kept = [str(one.statistics) for one in recorded if exists(one.statistics)]
        left = (
            f"what was recorded so far is in {', '.join(kept)}" if kept else "nothing was recorded"
        )
        SCREEN.tell(f"interrupted: ComfyUI was ended; {left}")
        return 130
    return 0


def models_of(task: CalibrationRun) -> list[Path]:
    """List the models that are recorded: one, or two halves."""
    return [task.calibrate, *([task.low_noise] if task.low_noise else [])]


def calibrate(task: CalibrationRun, recorded: list[OwnRecording]) -> Iterator[str]:
    """Do it all, and yield the lines of the result.

    Raises ConvertError for whatever is wrong, as far as possible before ComfyUI is started.
    """
    phase("reading headers and prompts", quiet=task.quiet)
    comfyui, prompts = comfyui_of(task), read_prompts(task.prompts)
    refuse_files(task, recorded)
    workflow = read_workflow(task.workflow) if task.workflow else own_workflow(task)
    places = places_of(workflow, recorded, task)
    with translated(task.results, "cannot make the folder"):
        task.results.mkdir(parents=True, exist_ok=True)
    older = [one.statistics for one in recorded if exists(one.statistics)]
    before = encoder_recordings_in(task.results) if task.record_encoder else {}
    began = time.monotonic()
    with RunningComfyUI(comfyui, folders_of(task), task.comfyui_args) as running:
        try:
            info = started(running, task)
            sample_all(running, prepared(workflow, places, info, task), prompts, task)
            phase(f"ending {comfyui.title}", quiet=task.quiet)
        except ConvertError as error:
            kept = keep_log(running, recorded[0])
            raise ConvertError(*(f"{problem}{kept}" for problem in error.problems)) from error
        except KeyboardInterrupt:
            phase("stopping ComfyUI: it writes what was recorded", quiet=task.quiet)
            running.interrupt()
            raise
    SCREEN.clear()
    yield f"{in_number(len(prompts), 'prompts')} sampled in {duration(time.monotonic() - began)}"
    for one in recorded:
        yield from result_lines(one)
    if task.record_encoder:
        after = encoder_recordings_in(task.results)
        made = [path for path, when in after.items() if when != before.get(path)]
        for path in made:
            yield from encoder_lines(path, task)
        older += [path for path in made if path in before]
    yield from (f"note: {one} was there already, and was added to" for one in older)


def comfyui_of(task: CalibrationRun) -> ComfyUI:
    """Find the ComfyUI that is named: the task's check saw to that. Raises ConvertError."""
    comfyui = find_comfyui(task.comfyui)
    if comfyui.absent:
        raise ConvertError(comfyui.absent)
    return comfyui


def read_prompts(path: Path) -> list[str]:
    """Read prompts, one on each line; empty lines are left out. Raises ConvertError for none."""
    with translated(path, "cannot read the prompts"):
        try:
            text = decode_text(read_whole(path))
        except ValueError as error:
            raise ConvertError(f"{path}: is no text of prompts: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConvertError(f"{path}: has no prompt; write one on each line")
    return prompts


def refuse_files(task: CalibrationRun, recorded: list[OwnRecording]) -> None:
    """Raise ConvertError for files that are missing, and for models that ComfyUI does not load."""
    problems = []
    for path in models_of(task):
        if path.is_dir() or path.suffix.lower() == ".json":
            problems.append(
                f"{path}: is a model in shards, which ComfyUI does not load; calibrate with one "
                "file of it, such as a conversion with --no-input-scale"
            )
    others = [*task.text_encoder, *task.image, *([task.vae] if task.vae else [])]
    for path in [*models_of(task), *others]:
        if not path.exists():
            problems.append(f"{path}: no such file")
    if len({one.name for one in recorded}) < len(recorded):
        problems.append("--low-noise: both halves have one name; rename one of them")
    is_alone = task.record_encoder and len(task.text_encoder) == 1
    if is_alone and encoder_name(task) == recorded[0].name:
        problems.append("--record-encoder: model and encoder have one name; rename one of them")
    if task.calibrate.suffix.lower() == ".gguf" and not task.workflow:
        problems.append("a GGUF needs your own workflow: give --workflow FILE")
    if problems:
        raise ConvertError(*problems)


def own_workflow(task: CalibrationRun) -> Workflow:
    """Make the workflow that comes with the program. Raises ConvertError where none does."""
    sampling = sampling_of(open_model(task.calibrate))
    return Builder(with_options(sampling, task), task).build()


def folders_of(task: CalibrationRun) -> dict[str, Sequence[Path]]:
    """Tell in which kinds of folders ComfyUI is to find which files."""
    models = models_of(task)
    return {
        "diffusion_models": models,
        "checkpoints": models if task.workflow else [],
        "text_encoders": task.text_encoder,
        "vae": [task.vae] if task.vae else [],
    }


def started(running: RunningComfyUI, task: CalibrationRun) -> dict[str, dict]:
    """Start ComfyUI, and return what nodes it has. Raises ConvertError without a recorder."""
    phase(f"starting {running.comfyui.title}", quiet=task.quiet, at_once=True)
    images = None if task.workflow else task.image
    running.start(own_nodes_only=not task.workflow, images=images)
    info = running.wait_until_ready()
    if RECORDER not in info:
        lacking = "; copy comfyui_nvfp4/ into its custom_nodes" * (find_pack() is None)
        raise ConvertError(f"ComfyUI has not loaded the recorder{lacking}")
    return info


def places_of(
    workflow: Workflow, recorded: list[OwnRecording], task: CalibrationRun
) -> dict[str, dict[str, object]]:
    """Tell behind which nodes recorders go: {loader: inputs of its recorder}.

    In a user's workflow the model's file is named anew, as ComfyUI finds it in its own folder.
    Raises ConvertError where the workflow does not load it.
    """
    if not task.workflow:
        made = zip(("model", "low noise"), recorded, strict=False)
        return {loader: one.inputs(task.second_moments) for loader, one in made}
    found = loaders_of(workflow, task.calibrate)
    for node, name in found.items():
        workflow[node]["inputs"][name] = task.calibrate.name
    return dict.fromkeys(found, recorded[0].inputs(task.second_moments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Hold a workflow to queue: its samplers, and where its prompt goes."""

    workflow: Workflow
    samplers: list[str]
    places: list[tuple[str, str]]


def prepared(
    workflow: Workflow,
    places: dict[str, dict[str, object]],
    info: dict[str, dict],
    task: CalibrationRun,
) -> Prepared:
    """Put recorders in, and cut the workflow to its samplers. Raises ConvertError."""
    recorders = put_recorders(workflow, places, info)
    samplers = samplers_behind(workflow, recorders, info)
    if task.record_encoder:
        inputs = recorder_inputs(encoder_name(task), task.results, task.second_moments)
        put_encoder_recorders(workflow, samplers, inputs, info)
    workflow = cut_to_samplers(workflow, samplers, info)
    return Prepared(workflow=workflow, samplers=samplers, places=prompt_places(workflow, samplers))


def sample_all(
    running: RunningComfyUI, made: Prepared, prompts: list[str], task: CalibrationRun
) -> None:
    """Sample each prompt, one after another, with a bar that counts steps."""
    images = itertools.cycle([*itertools.starmap(input_name, enumerate(task.image))] or [""])
    with progress_bar("prompts", len(prompts), in_bytes=False, quiet=task.quiet) as bar:
        for number, prompt in enumerate(prompts):
            bar.what = f"prompt {number + 1} of {len(prompts)}"
            image = next(images)
            workflow = with_prompt(made.workflow, made.places, prompt, task.seed + number, image)
            follow(bar, running.queue(workflow), made, len(prompts))


def follow(bar: Activity, events: Iterable[dict], made: Prepared, prompts: int) -> None:
    """Let a bar follow one prompt's events: its steps, what one takes, and the node that is busy.

    How many steps a sampler does it tells when it begins; others are taken to do as many.
    """
    done, steps, last = {}, {}, 0.0
    for event in events:
        data = event.get("data") or {}
        node = data.get("node")
        if event.get("type") == "executing" and node in made.workflow:
            bar.at(made.workflow[node]["class_type"])
        if event.get("type") == "progress" and node in made.samplers:
            steps[node], now = data["max"], time.monotonic()
            bar.total = prompts * round(sum(steps.values()) / len(steps) * len(made.samplers))
            more = data["value"] - done.get(node, 0)
            # The first step of a sampler loads the model, too.
            if node in done and more > 0:
                bar.at(f"{made.workflow[node]['class_type']}, {(now - last) / more:.1f} s a step")
            bar.update(more)
            done[node], last = data["value"], now


def keep_log(running: RunningComfyUI, recorded: OwnRecording) -> str:
    """Keep what ComfyUI printed, and end a message with where it is; "" if it printed nothing."""
    kept = recorded.folder / f"{recorded.name}.comfyui.txt"
    if not running.log.exists():
        return ""
    with translated(kept, "cannot keep ComfyUI's output"):
        shutil.copyfile(running.log, kept)
    return f"; all that ComfyUI printed is in {kept}"


def most_variable(statistics: Path) -> Iterator[str]:
    """Tell how much a recording holds, and which layers' inputs differ most from call to call.

    statistics: its file, with the log beside it. Raises ConvertError for what is none.
    """
    choice = LineChoice(format=LOG_DEFAULTS["format"], mode=LOG_DEFAULTS["mode"], steps=0, passes=1)
    log = statistics.with_suffix(".log")
    summary = summarise_logs([log], choice, LOG_DEFAULTS["percentiles"])
    summary = with_errors(summary, read_errors([statistics]))
    yield f"{statistics.stem}: {summary.measured}"
    yield from render_variable(summary)


def result_lines(recorded: OwnRecording) -> Iterator[str]:
    """Tell what was recorded of a model: its most variable layers, files, and what to type next."""
    yield from most_variable(recorded.statistics)
    yield ""
    yield from written_lines(recorded.statistics, recorded.model, " --input-scale-policy headroom")


def written_lines(statistics: Path, model: Path | str, further: str = "") -> Iterator[str]:
    """Name the files of a recording, and what to type to convert its model; further: options."""
    yield f"written: {statistics.with_suffix('.log')}"
    yield f"written: {statistics}"
    words = f"{called_beside('convert_nvfp4.py')} {as_word(model)}"
    yield f"next: {words} --activation-stats {as_word(statistics)}{further}"


def encoder_name(task: CalibrationRun) -> str:
    """Name what is recorded of encoders: by the one's file, or by the model before each's own.

    A workflow tells its files itself: "".
    """
    if task.workflow:
        return ""
    one = [*task.text_encoder, task.calibrate][0 if len(task.text_encoder) == 1 else -1]
    return NOT_IN_NAMES.sub("_", one.stem)


def encoder_lines(statistics: Path, task: CalibrationRun) -> Iterator[str]:
    """Tell what was recorded of an encoder: its size, files, and what to type next.

    Encoders take no input scales, of which a table would tell.
    """
    yield ""
    yield next(most_variable(statistics))
    encoder = file_of_recording(statistics, task.text_encoder)
    *written, further = written_lines(statistics, encoder or "TEXT_ENCODER")
    yield from written
    is_used = not (encoder and stays_16_bit(encoder))
    yield further if is_used else f"{encoder.name} is not converted: ComfyUI loads it in 16 bits"
