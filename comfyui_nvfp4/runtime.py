"""Run the converter inside ComfyUI: one at a time, with ComfyUI's progress and cancel button."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType

import comfy.model_management
import comfy.utils
import torch
from server import PromptServer

from .converter import converter
from .inputs import NodeError
from .settings import input_names
from .wording import error_on_node

# Held by who converts. A thread may take it again, as a node may be made of others.
TURN = threading.RLock()
# Seconds between two looks at ComfyUI's cancel button while another conversion runs, and between
# two texts on the node; the bar has a rhythm of its own.
LISTEN_EVERY, TEXT_EVERY = 0.25, 0.25
# The rank of the clock time among the parts of an Activity's line; the drawn bar's is above it.
CLOCK_TIME = 5
# Steps of ComfyUI's progress bar.
STEPS = 1000
# What the converter calls a MODEL, which nobody knows by that: memory://1/NAME.safetensors.
IN_MEMORY = re.compile(r"memory://\d+/")


class Progress:
    """Show on a node what the converter is busy with; called with its Activity, again and again.

    Raises ComfyUI's InterruptProcessingException once its cancel button was pressed: the converter
    deletes what it began and leaves an older file as it is, as it does for Ctrl-C.
    """

    def __init__(self, node_id: str | None):
        self.node_id, self.text, self.next_text = node_id, "", 0.0
        self.bar = comfy.utils.ProgressBar(STEPS, node_id=node_id)

    def __call__(self, activity) -> None:
        """Look at the cancel button; draw the bar, and write phase, rate and layer below it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if activity.total:
            self.bar.update_absolute(int(STEPS * activity.share), STEPS)
        now = time.monotonic()
        if now >= self.next_text:
            self.next_text = now + TEXT_EVERY
            self.say(told(activity, now))

    def say(self, text: str) -> None:
        """Write a line on the node."""
        server = getattr(PromptServer, "instance", None)
        if text != self.text and self.node_id is not None and server is not None:
            self.text = text
            server.send_progress_text(text, self.node_id)


def told(activity, now: float) -> str:
    """Write what goes on in a line for a node, and the layer in a line below."""
    # The highest ranks are the drawn bar, which ComfyUI has, and the time of day.
    parts = [text for rank, text in activity.parts(now, time.time()) if rank < CLOCK_TIME]
    return "\n".join(filter(None, ["  ".join(parts), activity.name]))


def for_node(program: ModuleType, text: str) -> str:
    """Make a summary fit to be shown on a node, where nothing was typed on a command line."""
    lines = IN_MEMORY.sub("", program.printable(text)).splitlines()
    return "\n".join(line for line in lines if not line.endswith(program.NOT_ASKED))


@contextlib.contextmanager
def its_turn(progress: Progress) -> Iterator[None]:
    """Wait until no other conversion runs in this process; the cancel button works meanwhile."""
    while not TURN.acquire(timeout=LISTEN_EVERY):
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.say("waiting for another conversion")
    try:
        yield
    finally:
        TURN.release()


@contextlib.contextmanager
def telling_end(progress: Progress) -> Iterator[None]:
    """Say on the node how its work ended, which else would seem to go on; errors pass."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        progress.say("cancelled")
        raise
    except Exception:
        progress.say("failed")
        raise
    progress.say("done")


@contextlib.contextmanager
def converting(node_id: str | None) -> Iterator[ModuleType]:
    """Lend the converter to a node, for the length of the `with` block.

    Yields its module, with the names of docs/python.md: `program.convert(program.Options(...))`.
    All that it does in this thread is shown on the node `node_id`. Raises NodeError with the line
    of what a person can mend, and InterruptProcessingException where it was cancelled.
    """
    progress = Progress(node_id)
    # ComfyUI runs nodes in inference mode, whose tensors other threads may not change; the program
    # makes some when it is loaded.
    with telling_end(progress), its_turn(progress), torch.inference_mode(False):
        program = converter()
        try:
            with program.watched_by(progress):
                yield program
        except program.ConvertError as error:
            line = IN_MEMORY.sub("", program.printable(str(error)))
            raise NodeError(error_on_node(program, line, input_names())) from None
        except ModuleNotFoundError as error:
            # ComfyUI has neither gguf nor huggingface_hub for certain.
            install = f"{sys.executable} -m pip install {error.name}"
            raise NodeError(f"this needs the Python package {error.name}: {install}") from None
        except torch.cuda.OutOfMemoryError:
            raise NodeError(
                "the card has too little memory for this: choose the device cpu"
            ) from None
