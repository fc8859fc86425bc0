"""The websocket and the requests, against a server that says what real ones do."""

import json
import socket
import threading
import time

import pytest

from nvfp4.calibrate.client import Events, ask_server, refusal
from nvfp4.errors import ConvertError


def frame(kind, content):
    size = len(content)
    length = bytes([size]) if size < 126 else bytes([126]) + size.to_bytes(2, "big")
    return bytes([0x80 | kind]) + length + content


@pytest.fixture
def answering():
    """Start a server that reads one request, and answers with bytes; its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    heard = []

    def start(*parts):
        def serve():
            connection, _ = listening.accept()
            with connection:
                heard.append(connection.recv(1 << 16))
                for part in parts:
                    connection.sendall(part)
                # Whoever asked has to close, or what was not read yet may be lost.
                while more := connection.recv(1 << 16):
                    heard.append(more)

        threading.Thread(target=serve, daemon=True).start()
        return listening.getsockname()[1], heard

    yield start
    listening.close()


OPENED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def test_events_come_whole_however_they_are_cut(answering):
    long = json.dumps({"type": "status", "data": "x" * 300}).encode()
    sent = frame(1, b'{"type": "a"}') + frame(2, b"\0\0\0\1") + frame(9, b"hi") + frame(1, long)
    port, heard = answering(OPENED + sent[:9], sent[9:40], sent[40:])
    events, found = Events(port, "me"), []
    while len(found) < 2:
        found += events.take()
    assert [event["type"] for event in found] == ["a", "status"]
    events.close()
    assert b"GET /ws?clientId=me HTTP/1.1" in heard[0]
    # What a client sends is masked.
    until = time.monotonic() + 30
    while len(heard) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert heard[1:] == [b"\x8a\x82\0\0\0\0hi"]


def test_a_broken_connection_is_an_error_of_the_system(answering):
    port, _ = answering(OPENED + frame(8, b""))
    events = Events(port, "me")
    with pytest.raises(ConnectionError, match="ComfyUI closed its websocket"):
        [*events.take()]
    events.close()
    port, _ = answering(b"HTTP/1.1 404 Not Found\r\n\r\n")
    with pytest.raises(ConnectionError, match="did not open its websocket"):
        Events(port, "me")


def test_what_is_no_answer_is_told(answering):
    port, _ = answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 6\r\n\r\n<html>")
    with pytest.raises(ConvertError, match="refused the workflow: Bad Request"):
        ask_server(port, "/prompt", {})
    port, _ = answering(b"nonsense\r\n\r\n")
    with pytest.raises(OSError, match="nonsense"):
        ask_server(port, "/prompt")


def test_a_refusal_names_the_nodes():
    error = {"message": "Value not in list", "details": "unet_name: 'x' not in []"}
    answer = {"node_errors": {"1": {"class_type": "UNETLoader", "errors": [error]}}}
    assert refusal(answer) == "UNETLoader: Value not in list: unet_name: 'x' not in []"
    assert refusal({"error": {"message": "Prompt has no outputs"}}) == "Prompt has no outputs"
