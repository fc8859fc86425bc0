"""Start a user's ComfyUI without a window, beside what it has and changing none of it; end it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nvfp4.asking.find import ComfyUI
from nvfp4.calibrate.client import LOOPBACK, PATIENCE, Events, ask_server, free_port
from nvfp4.errors import EXCERPT, ConvertError, one_line
from nvfp4.files import full_path, translated
from nvfp4.programs import end_tree, server_command, start_server
from nvfp4.requirements import HERE

# The node pack, beside the script or around it, and the folder that brings its recorder alone: the
# user's ComfyUI may have the pack as well, whose other nodes cannot be loaded twice.
PACK, RECORDER_ALONE = "comfyui_nvfp4", "nvfp4_recorder"
RECORDER_MODULE = f"""\
from .{PACK} import node_classes

NODE_CLASS_MAPPINGS = {{node.GET_SCHEMA().node_id: node for node in node_classes("record")}}
"""
# Seconds until a ComfyUI answers: with many custom nodes, from a slow disk, it takes minutes.
LONGEST_START = 900
# Seconds that it has after Ctrl-C to end the step it is in, and to write what was recorded, and
# those in which a process ends whose connections broke.
LONGEST_STEP, LONGEST_END = 120, 5
# Bytes at the end of what ComfyUI prints that are searched for its reason to end.
LOG_END = 20_000
# What a traceback of Python begins with; its first line that is not indented is the exception's.
TRACEBACK = "Traceback (most recent call last):"
# What to do about some reasons, by what is in their lines; {python} is ComfyUI's.
NO_CARD = "on a computer without a card that torch can use, give --comfyui-args=--cpu"
REMEDIES = {
    "No module named": " for {python}; run this with the Python that ComfyUI runs with",
    "Torch not compiled with CUDA enabled": f"; {NO_CARD}",
    "Found no NVIDIA driver": f"; {NO_CARD}",
    "No CUDA GPUs are available": f"; {NO_CARD}",
}


def find_pack() -> Path | None:
    """Find the folder of the node pack beside this program, or around it; None without one."""
    places = (HERE / PACK, HERE)
    return next((one for one in places if (one / "second_moments.py").is_file()), None)


class RunningComfyUI:
    """Run a ComfyUI on a free port of the loopback, as a context; `events` is its websocket.

    Its output, temporary and user folders are in a folder that is deleted at the end; the models'
    own folders are added to those that it looks in.
    """

    def __init__(self, comfyui: ComfyUI, models: dict[str, Sequence[Path]], arguments: str):
        """Say what to run.

        models: {kind of folder, as ComfyUI calls it: files that are to be found}. arguments: of the
        user, as a shell would take them.
        """
        self.comfyui, self.models = comfyui, models
        # A backslash is part of a path on Windows, and escapes nothing.
        text = arguments.replace("\\", "\\\\") if os.name == "nt" else arguments
        try:
            self.arguments = shlex.split(text)
        except ValueError as error:
            raise ConvertError(f"--comfyui-args: {error}") from error
        self.port, self.client = free_port(), uuid.uuid4().hex
        self.events = None

    def __enter__(self) -> RunningComfyUI:
        """Start it; `wait_until_ready` follows."""
        self.folder = Path(tempfile.mkdtemp(prefix="nvfp4_calibration_"))
        self.log = self.folder / "comfyui.txt"
        self.process = None
        return self

    def start(self, *, own_nodes_only: bool, images: Iterable[Path] | None = None) -> None:
        """Start the process. Raises ConvertError where that fails.

        own_nodes_only: load no custom nodes of the user's, which start slowly and are not needed.
        images: files that LoadImage finds, by their `input_name`; None for ComfyUI's own folder.
        """
        pack = find_pack()
        words = [
            "--listen", LOOPBACK, "--port", self.port, "--disable-auto-launch",
            "--user-directory", self.folder / "user", "--output-directory", self.folder / "output",
            "--temp-directory", self.folder, "--database-url", "sqlite:///:memory:",
            "--extra-model-paths-config", self.folder / "paths.yaml",
        ]  # fmt: skip
        if images is not None:
            words += ["--input-directory", self.folder / "input"]
        if own_nodes_only and pack:
            words += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", RECORDER_ALONE]
        script = self.comfyui.folder / "main.py"
        command = server_command(self.comfyui.python, script, *map(str, words), *self.arguments)
        with translated(self.folder, "cannot prepare a folder for ComfyUI"):
            self.fill_folder(pack, images or ())
        try:
            with self.log.open("wb") as log:
                self.process = start_server(command, log, self.comfyui.folder)
        except OSError as error:
            raise ConvertError(f"{self.comfyui.python} cannot be started: {error}") from error

    def fill_folder(self, pack: Path | None, images: Iterable[Path]) -> None:
        """Put into its folder what ComfyUI is to find: the pack, images, and where models are."""
        for name in ("user", "output", "input"):
            (self.folder / name).mkdir()
        for number, image in enumerate(images):
            shutil.copyfile(image, self.folder / "input" / input_name(number, image))
        # A linked file is looked for beside the link, under the link's name.
        places = {
            kind: "\n".join(dict.fromkeys(str(full_path(path).parent) for path in files))
            for kind, files in self.models.items()
            if files
        }
        if pack:
            nodes = self.folder / "custom_nodes"
            copy = nodes / RECORDER_ALONE / PACK
            copy.mkdir(parents=True)
            for file in pack.glob("*.py"):
                shutil.copy(file, copy)
            (copy.parent / "__init__.py").write_text(RECORDER_MODULE, encoding="utf-8")
            places["custom_nodes"] = str(nodes)
        # JSON is YAML, too. These folders come before ComfyUI's own.
        text = json.dumps({"nvfp4_calibration": places | {"is_default": True}})
        (self.folder / "paths.yaml").write_text(text, encoding="utf-8")

    def wait_until_ready(self) -> dict[str, dict]:
        """Wait until it answers, and return what nodes it has: its /object_info.

        Raises ConvertError where it ends, or takes more than LONGEST_START.
        """
        until = time.monotonic() + LONGEST_START
        while time.monotonic() < until:
            self.check()
            try:
                info = ask_server(self.port, "/object_info")
                self.events = Events(self.port, self.client)
            except OSError:
                time.sleep(PATIENCE)
            else:
                return info
        raise ConvertError(f"ComfyUI did not answer within {LONGEST_START} seconds")

    def check(self) -> None:
        """Raise ConvertError if the process has ended."""
        status = self.process.poll()
        if status is not None:
            said = reason_in(self.log.read_bytes()[-LOG_END:].decode(errors="replace"))
            remedy = next((text for words, text in REMEDIES.items() if words in said), "")
            said = f": {one_line(said)[:EXCERPT]}" if said else ""
            remedy = remedy.format(python=self.comfyui.python)
            raise ConvertError(f"ComfyUI ended with status {status}{said}{remedy}")

    def queue(self, workflow: dict[str, dict]) -> Iterator[dict]:
        """Run a workflow, and yield its events until it is done; {} where none came for a while.

        Raises ConvertError with ComfyUI's own words where it is refused, or fails.
        """
        given = {"prompt": workflow, "client_id": self.client}
        prompt = ask_server(self.port, "/prompt", given)["prompt_id"]
        while True:
            self.check()
            for event in (*self.heard(), {}):
                data = event.get("data") or {}
                if data.get("prompt_id") not in (None, prompt):
                    continue
                kind = event.get("type")
                if kind == "execution_error":
                    raise ConvertError(failure(data))
                if kind == "execution_interrupted":
                    raise ConvertError("ComfyUI was told by somebody else to stop")
                yield event
                if kind == "execution_success":
                    return

    def heard(self) -> list[dict]:
        """Return the events that came. Raises ConvertError where the connection is broken."""
        try:
            return [*self.events.take()]
        except OSError as error:
            # The process may take a moment to be gone, and then tells more.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LONGEST_END)
            self.check()
            raise ConvertError(f"the connection to ComfyUI broke: {error}") from error

    def interrupt(self) -> None:
        """Have it stop sampling, and wait until it has, so that recordings are written.

        It may have ended already, or not have begun to answer: then there is nothing to wait for.
        """
        until = time.monotonic() + LONGEST_STEP
        with contextlib.suppress(OSError, ConvertError):
            ask_server(self.port, "/interrupt", {})
            while time.monotonic() < until and self.process.poll() is None:
                if not ask_server(self.port, "/queue")["queue_running"]:
                    return
                time.sleep(PATIENCE)

    def __exit__(self, *_: object) -> None:
        """End it and all that it started, and delete its folder."""
        if self.events:
            self.events.close()
        if self.process:
            end_tree(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


def reason_in(log: str) -> str:
    """Return the line of a log that tells why its program ended; "" of an empty one.

    That is the exception of the last traceback, whatever is printed behind it, else the last line.
    """
    _, _, behind = log.rpartition(TRACEBACK)
    lines = behind.strip("\n").splitlines()
    raised = (line for line in lines if line.strip() and not line.startswith(" "))
    last = lines[-1:] if behind == log else []
    return next(iter([*last, *raised]), "").strip()


def input_name(number: int, image: Path) -> str:
    """Name the copy of an image; two of them may have one name in two folders."""
    return f"{number}{image.suffix}"


def failure(data: dict) -> str:
    """Write in one line what went wrong in a node, as ComfyUI tells it."""
    lines = str(data.get("exception_message", "")).strip().splitlines() or ["no reason given"]
    kind = str(data.get("exception_type", "")).rpartition(".")[2]
    # A line that announces others says nothing without the first of them.
    told = " ".join(map(str.strip, lines[: 1 + lines[0].endswith(":")]))
    return one_line(f"ComfyUI: {data.get('node_type')}: {kind}: {told}")[:EXCERPT]
