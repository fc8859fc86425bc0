"""Ask a ComfyUI about a file, in a process of its own.

The process runs `asker` in ComfyUI's own Python, without network, GPU and weights; ComfyUI's code
is trusted as the user trusts it. Its environment may lack a module, or it may hang: that is an
error where --comfyui asked for it, and one line of the report where only the environment variable
did, whose folder may be gone as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

from nvfp4.asking.answers import Answer, Taken, Trouble
from nvfp4.asking.find import ComfyUI
from nvfp4.asking.question import question_of_job, question_of_model
from nvfp4.errors import EXCERPT, ConvertError, one_line
from nvfp4.file_kinds import OTHER_NAMES, FileKind
from nvfp4.layout import Job
from nvfp4.model import Model
from nvfp4.options.checks import COMFYUI_ROOT
from nvfp4.prefixes import HALF_ENCODER
from nvfp4.programs import python_command

# What runs in the child. tools/single_file.py puts the text itself here.
ASKER = Path(__file__).with_name("asker.py").read_text(encoding="utf-8")
# The child's command: the program comes with the question, as command lines are short on Windows.
BOOT = (
    "import json; asked = json.load(sys.stdin); "
    "exec(compile(asked.pop('program'), 'asker.py', 'exec')); run_asker(asked)"
)
# Nothing is fetched, and no GPU is seen: an empty value would be none at all on Windows.
QUIETLY = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1",
}  # fmt: skip
# Seconds. A first import from a slow disk takes a minute or two; after that an answer takes five.
LONGEST_ANSWER = 300


def ask_about_job(comfyui: ComfyUI | None, job: Job) -> Answer | None:
    """Ask about the output of a job and about its source; None without a ComfyUI.

    Raises ConvertError where the output would not load, or another model is recognised than in the
    source. A --dry-run tells that as a note instead.
    """
    if comfyui is None:
        return None
    source = question_of_model(job.model, is_source=True)
    answer = answer_of(comfyui, {"file": question_of_job(job), "source": source})
    if answer.problems and not job.options.dry_run:
        raise ConvertError(*answer.problems)
    return answer


def ask_about_file(
    comfyui: ComfyUI | None, model: Model, source: Model | None, kind: FileKind | None = None
) -> Answer | None:
    """Ask about a file that is there, and about its source if that is given.

    kind: what it is instead of a model to convert. Other nodes load most of these, and are not
    asked; a model in the names of diffusers may be recognised, and any text encoder is.
    """
    if comfyui is None:
        return None
    if kind and kind.what_to_do not in (OTHER_NAMES, HALF_ENCODER):
        told = f"it is asked about diffusion models and text encoders, not {kind.title}"
        return Answer(comfyui=comfyui, silence=told)
    files = {"file": question_of_model(model)}
    if source is not None:
        files["source"] = question_of_model(source, is_source=True)
    return answer_of(comfyui, files)


def answer_of(comfyui: ComfyUI, files: dict[str, dict]) -> Answer:
    """Ask, and make the Answer; raises ConvertError where --comfyui asked and none came."""
    if comfyui.absent:
        return Answer(comfyui=comfyui, silence=comfyui.absent)
    try:
        return Answer(comfyui=comfyui, **ask(comfyui, files))
    except ConvertError as error:
        if comfyui.named_by != COMFYUI_ROOT:
            raise ConvertError(*(f"{comfyui.title}: {text}" for text in error.problems)) from error
        return Answer(comfyui=comfyui, silence="; ".join(error.problems))


def ask(comfyui: ComfyUI, files: dict[str, dict]) -> dict[str, Taken]:
    """Run the child with a question, and return what it makes of each file.

    Raises ConvertError with one line for whatever keeps it from answering.
    """
    question = {"program": ASKER, "folder": str(comfyui.folder), "files": files}
    try:
        done = subprocess.run(
            python_command(comfyui.python, BOOT, seconds=LONGEST_ANSWER),
            input=json.dumps(question).encode(),
            capture_output=True,
            check=False,
            cwd=comfyui.folder,
            env=os.environ | QUIETLY,
            timeout=LONGEST_ANSWER,
        )
    except subprocess.TimeoutExpired:
        raise ConvertError(f"gave no answer within {LONGEST_ANSWER} seconds") from None
    except OSError as error:
        raise ConvertError(f"{comfyui.python} cannot be started: {error}") from error
    try:
        answered = json.loads(done.stdout)
        if "files" in answered:
            return {key: taken_of(answered["files"][key]) for key in files}
        problem = import_problem(comfyui, answered)
    except (KeyError, TypeError, ValueError, RecursionError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        said = f": {one_line(last[0])[:EXCERPT]}" if last else ""
        problem = f"its process ended with status {done.returncode} and no answer{said}"
    raise ConvertError(problem)


def taken_of(found: dict) -> Taken:
    """Make a record of what the child tells of one file; raises TypeError for anything else."""
    troubles = tuple(Trouble(*map(one_line, trouble)) for trouble in found["troubles"])
    return dataclasses.replace(Taken(**found), troubles=troubles)


def import_problem(comfyui: ComfyUI, answered: dict) -> str:
    """Say why the child could not import ComfyUI."""
    if "absent" not in answered:
        return f"cannot be imported by {comfyui.python}: {one_line(answered['broken'])[:EXCERPT]}"
    absent = one_line(answered["absent"])
    if absent.split(".")[0] == "comfy":
        return f"has no {absent}: it is damaged, or too old for quantised files (0.10 or newer)"
    return (
        f"its Python ({comfyui.python}) has no module {absent}; install what {comfyui.folder}"
        f"{os.sep}requirements.txt lists, or run this with the Python that ComfyUI runs with"
    )
