"""ComfyUI's own server in a process of its own, with the node pack copied in as a user copies it.

The interpreter that runs the tests runs the server too: it needs what ComfyUI's requirements.txt
asks, and websocket-client. The page comes from comfyui-frontend-package, or from the folder
`static` that COMFYUI_FRONTEND names.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.comfyui import ABSENT, COMFYUI
from support.paths import ROOT

PACK = ROOT / "comfyui_nvfp4"
HELPERS = ROOT / "tests" / "comfyui" / "helper_nodes"
# What ComfyUI is started with: COMFYUI_ARGUMENTS="" where a card is to be used.
ARGUMENTS = os.environ.get("COMFYUI_ARGUMENTS", "--cpu").split()
# What starting ComfyUI imports before it looks at any node, and what reads its websocket.
SERVER_NEEDS = ("aiohttp", "alembic", "av", "einops", "scipy", "sqlalchemy", "transformers", "yaml")
CLIENT_NEEDS = ("websocket",)
# The server has imported torch and its nodes after 13 seconds on a quiet machine of two cores.
SECONDS_TO_START = 180


def why_no_server() -> str:
    """Say what is missing for a server, or ""."""
    if not COMFYUI:
        return "COMFYUI_ROOT names no ComfyUI checkout"
    for name in SERVER_NEEDS + CLIENT_NEEDS:
        if importlib.util.find_spec(name) is None:
            return f"ComfyUI's server needs the Python package {name} here"
    return ""


def why_no_page() -> str:
    """Say what is missing for ComfyUI's page, or ""."""
    if frontend() is None and importlib.util.find_spec("comfyui_frontend_package") is None:
        return "neither comfyui-frontend-package is installed nor COMFYUI_FRONTEND set"
    return ""


needs_server = pytest.mark.skipif(bool(why_no_server()), reason=why_no_server() or "-")


def frontend() -> Path | None:
    """Return the folder of the page's files that COMFYUI_FRONTEND names."""
    named = os.environ.get("COMFYUI_FRONTEND")
    return Path(named) if named else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running ComfyUI; `base` is the folder with its models, input and output."""

    def __init__(self, base: Path):
        self.base, self.port = base, free_port()
        self.kinds: dict[str, dict] = {}
        for folder in ("diffusion_models", "text_encoders", "loras", "vae"):
            (base / "models" / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("input", "output", "custom_nodes", "site"):
            (base / folder).mkdir(exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for pack in (PACK, HELPERS):
            shutil.copytree(pack, base / "custom_nodes" / pack.name, ignore=ignored)
        (base / "site" / "sitecustomize.py").write_text(ABSENT, encoding="utf-8")
        self.log_file = base / "server.log"
        self.process = self.start()

    def start(self) -> subprocess.Popen:
        command = [sys.executable, Path(COMFYUI) / "main.py", *ARGUMENTS, "--disable-auto-launch"]
        command += ["--base-directory", self.base, "--listen", "127.0.0.1", "--port", self.port]
        command += ["--database-url", "sqlite:///:memory:"]
        if frontend():
            command += ["--front-end-root", frontend()]
        # The product asks the ComfyUI that COMFYUI_ROOT names; the nodes are inside of one.
        environment = {k: v for k, v in os.environ.items() if k != "COMFYUI_ROOT"}
        environment |= {"PYTHONPATH": str(self.base / "site"), "PYTHONUTF8": "1"}
        with self.log_file.open("wb") as log:
            return subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.base,
            )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> "Server":
        """Return when it answers. Raises RuntimeError, with its log, where it does not."""
        until = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.get("system_stats")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
            else:
                return self
        self.stop()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}/{path}", timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self.get_bytes(path))

    def post(self, path: str, value: dict):
        """Post JSON and return the answer's; an HTTP error's body too, as ComfyUI tells there."""
        request = urllib.request.Request(
            f"http://{self.address}/{path}",
            json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as refused:
            body = refused.read()
        return json.loads(body) if body else None

    def node(self, kind: str, **inputs) -> dict:
        """Make a node in API form; its other inputs are as a new node's on the page."""
        if kind not in self.kinds:
            self.kinds |= self.get(f"object_info/{kind}")
        values = {}
        for name, (type_, *options) in self.kinds[kind]["input"].get("required", {}).items():
            facts = options[0] if options else {}
            choices = type_ if isinstance(type_, list) else facts.get("options")
            if "default" in facts or choices:
                values[name] = facts.get("default", choices and choices[0])
        return {"class_type": kind, "inputs": values | inputs}

    def convert(self, model: str, name: str, **more) -> dict:
        return self.node("NVFP4Convert", model_file=model, name=name, **more)

    def model(self, name: str) -> Path:
        return self.base / "models" / "diffusion_models" / name

    def memory(self) -> int:
        """Return the bytes of memory that the process holds now, from /proc (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        [resident] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(resident.split()[1]) * 1024


@dataclass
class Prompt:
    """A queued workflow and what the websocket told of it, in order."""

    id: str
    client: "Client"
    refused: dict = field(default_factory=dict)

    def events(self, kind: str) -> list[dict]:
        return [
            event["data"]
            for event in list(self.client.events)
            if event["type"] == kind and event["data"].get("prompt_id") == self.id
        ]

    @property
    def error(self) -> dict:
        """What ComfyUI told of a node that failed: node_id, node_type, exception_message."""
        return (self.events("execution_error") or [{}])[-1]

    @property
    def ended(self) -> str:
        """The kind of the last event, or ""."""
        kinds = ("execution_success", "execution_error", "execution_interrupted")
        return next((kind for kind in kinds if self.events(kind)), "")

    @property
    def outputs(self) -> dict:
        """What nodes show, {node id: {"text": [...], ...}}."""
        return {event["node"]: event["output"] for event in self.events("executed")}

    def wait(self, seconds: float = 240) -> "Prompt":
        self.client.wait_until(lambda: self.ended, seconds, f"the end of prompt {self.id}")
        return self

    def progress(self, node: str) -> list[float]:
        """The parts of a node's work done, as the page's bar got them."""
        states = [event["nodes"].get(node) for event in self.events("progress_state")]
        return [state["value"] / state["max"] for state in states if state and state["max"]]


class Client:
    """What the page is to the server: a websocket that listens, and workflows that are queued."""

    def __init__(self, server: Server):
        import websocket  # a test dependency that is not everywhere

        self.server, self.id = server, uuid.uuid4().hex
        self.events: list[dict] = []
        # (node id, text) of what ComfyUI shows under a node while it works.
        self.texts: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        address = f"ws://{server.address}/ws?clientId={self.id}"
        self.socket = websocket.create_connection(address, timeout=600)
        # As the page does, say at once what is understood.
        features = {"supports_preview_metadata": False, "supports_progress_text_metadata": False}
        self.socket.send(json.dumps({"type": "feature_flags", "data": features}))
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            try:
                message = self.socket.recv()
            except Exception:  # noqa: BLE001 (the socket was closed by close() or the server)
                return
            if not message:
                return
            with self.changed:
                self.hear(message)
                self.changed.notify_all()

    def hear(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.events.append(json.loads(message))
        elif struct.unpack(">I", message[:4])[0] == 3:  # progress text: length, node id, text
            length = struct.unpack(">I", message[4:8])[0]
            node, text = message[8 : 8 + length], message[8 + length :]
            self.texts.append((node.decode(), text.decode()))

    def wait_until(self, condition, seconds: float, what: str):
        """Return the first true value of `condition`, asked at every message and every second."""
        until = time.monotonic() + seconds
        with self.changed:
            while not (value := condition()):
                if time.monotonic() > until or self.server.process.poll() is not None:
                    raise AssertionError(f"no sign of {what}\n{self.server.log[-3000:]}")
                self.changed.wait(1)
        return value

    def queue(self, workflow: dict) -> Prompt:
        """Queue a workflow in API form. What ComfyUI refused to queue is in `refused`."""
        answer = self.server.post("prompt", {"prompt": workflow, "client_id": self.id})
        return Prompt(answer.get("prompt_id", ""), self, answer if "error" in answer else {})

    def run(self, workflow: dict, seconds: float = 240) -> Prompt:
        prompt = self.queue(workflow)
        assert not prompt.refused, json.dumps(prompt.refused, indent=1)
        return prompt.wait(seconds)

    def shown(self, node: str) -> list[str]:
        return [text for of, text in list(self.texts) if of == node]

    def close(self) -> None:
        self.socket.close()
