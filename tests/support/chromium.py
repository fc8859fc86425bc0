"""Headless Chromium, driven by its DevTools protocol over a websocket."""

import base64
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What keeps it from asking anything of the network, and from asking for a sandbox as root.
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-allow-origins=*",
    "--remote-debugging-port=0",
)


def why_no_browser() -> str:
    """Say what is missing for a browser, or ""."""
    if program() is None:
        return "no Chromium here (CHROMIUM names one)"
    if importlib.util.find_spec("websocket") is None:
        return "Chromium's tests need the Python package websocket-client"
    return ""


def program() -> str | None:
    return shutil.which(os.environ.get("CHROMIUM", "")) or next(
        filter(None, map(shutil.which, NAMES)), None
    )


class Browser:
    """A browser with one page of `size`, and its profile in an empty folder."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1600, 1000)):
        import websocket  # a test dependency that is not everywhere

        command = [
            program(),
            *SWITCHES,
            f"--user-data-dir={folder}",
            f"--window-size={size[0]},{size[1]}",
        ]
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=nothing, stderr=nothing)
        self.ids, self.events = itertools.count(1), []
        port = waited(lambda: port_in(folder / "DevToolsActivePort"), 60, "Chromium's port")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=120)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def call(self, method: str, **parameters) -> dict:
        """Send a command and return its result; what comes in between goes to `events`."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def js(self, expression: str):
        """Return what a JavaScript expression gives, or resolves to."""
        done = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = 120):
        """Return the first true value of an expression. Raises AssertionError after `seconds`."""
        return waited(lambda: self.js(expression), seconds, expression)

    def click(self, x: float, y: float, times: int = 1) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count
                )

    def click_on(self, find: str) -> None:
        """Click the middle of the element that an expression gives, once it lies still."""
        box = f"(() => {{ const r = ({find})?.getBoundingClientRect();"
        middle, before = box + " return r && [r.x + r.width / 2, r.y + r.height / 2]; })()", None
        while (found := self.wait(middle)) != before:
            before = found
            time.sleep(0.2)
        self.click(*found)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def key(self, name: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code
            )

    def screenshot(self, path: Path, quality: int | None = None, clip: dict | None = None) -> Path:
        """Write what is seen, as PNG, or as JPEG of a quality."""
        options = {"format": "png"} if quality is None else {"format": "jpeg", "quality": quality}
        if clip:
            options["clip"] = {"scale": 1, **clip}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))
        return path

    @property
    def complaints(self) -> list[str]:
        """Exceptions that the page threw, and errors on its console."""
        self.js("1")
        thrown = [
            event["params"]["exceptionDetails"].get("exception", {}).get("description", "?")
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
        ]
        logged = [
            " ".join(
                str(part.get("value", part.get("description"))) for part in event["params"]["args"]
            )
            for event in self.events
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error"
        ]
        return thrown + logged

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


def port_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").split("\n")[0]
    except FileNotFoundError:
        return ""


def waited(condition, seconds: float, what: str):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return value
