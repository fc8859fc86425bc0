"""Talk to a ComfyUI on this machine: requests over HTTP, and the events of its websocket."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator

from nvfp4.errors import ConvertError, one_line

# The server is asked on this address alone.
LOOPBACK = "127.0.0.1"
# Seconds for an answer: the server answers between two steps, which may take long.
LONGEST_REPLY = 120
# Seconds after which events are given up waiting for, so that a dead server and Ctrl-C are noticed.
PATIENCE = 0.5
# Frames of the websocket: kinds, and the bit that says a frame is the message's last.
TEXT, CLOSE, PING, PONG, LAST = 1, 8, 9, 10, 0x80
# Bytes of a message; previews are left out, and events are small.
MOST_BYTES = 64_000_000


def free_port() -> int:
    """Find a port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return found.getsockname()[1]


def ask_server(port: int, path: str, data: object = None) -> dict:
    """Send a request, and return its JSON: a POST where there is data, else a GET.

    Raises OSError where nobody answers, and ConvertError where the answer is no success, with what
    the server says.
    """
    server = http.client.HTTPConnection(LOOPBACK, port, timeout=LONGEST_REPLY)
    try:
        body = None if data is None else json.dumps(data).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        server.request("GET" if data is None else "POST", path, body, headers)
        reply = server.getresponse()
        text = reply.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        server.close()
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = {}
    if reply.status != http.client.OK:
        raise ConvertError(f"ComfyUI refused the workflow: {refusal(answer) or reply.reason}")
    return answer


def refusal(answer: dict) -> str:
    """Write in one line why ComfyUI did not take a workflow: what is wrong at which nodes."""
    told = [
        f"{found.get('class_type', node)}: {error.get('message')}: {error.get('details')}"
        for node, found in (answer.get("node_errors") or {}).items()
        for error in found.get("errors", ())
    ]
    told = told or [str((answer.get("error") or {}).get("message", ""))]
    return one_line("; ".join(told))


class Events:
    """Read the events that ComfyUI sends to one of its clients: its websocket, RFC 6455."""

    def __init__(self, port: int, client: str):
        """Connect. Raises OSError where the server does not speak it."""
        self.connection = socket.create_connection((LOOPBACK, port), LONGEST_REPLY)
        self.held = b""
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.connection.sendall(request.encode())
        while b"\r\n\r\n" not in self.held:
            self.receive()
        head, self.held = self.held.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError("ComfyUI did not open its websocket")
        self.connection.settimeout(PATIENCE)

    def receive(self) -> None:
        """Take in what came. Raises TimeoutError if nothing did, OSError if nothing will."""
        more = self.connection.recv(1 << 16)
        if not more or len(self.held) > MOST_BYTES:
            raise ConnectionError("ComfyUI closed its websocket")
        self.held += more

    def take(self) -> Iterator[dict]:
        """Yield the events that are there, or that come within PATIENCE: none may have come."""
        frame = self.next_frame()
        if frame is None:
            with contextlib.suppress(TimeoutError):
                self.receive()
            frame = self.next_frame()
        while frame is not None:
            kind, content = frame
            if kind == TEXT:
                yield json.loads(content)
            elif kind == PING:
                # What a client sends is masked; a mask of zeros changes nothing.
                content = content[:125]
                self.connection.sendall(
                    bytes([LAST | PONG, LAST | len(content)]) + bytes(4) + content
                )
            elif kind == CLOSE:
                raise ConnectionError("ComfyUI closed its websocket")
            frame = self.next_frame()

    def next_frame(self) -> tuple[int, bytes] | None:
        """Cut a whole frame off what was received: its kind and content; None until it is there.

        ComfyUI sends each message in one frame.
        """
        if len(self.held) < 2:
            return None
        size, begin = self.held[1] & 0x7F, 2
        if size >= 126:
            begin = 4 if size == 126 else 10
            size = int.from_bytes(self.held[2:begin], "big")
        if len(self.held) < begin or len(self.held) < begin + size:
            return None
        kind, content = self.held[0] & 0x0F, self.held[begin : begin + size]
        self.held = self.held[begin + size :]
        return kind, content

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
