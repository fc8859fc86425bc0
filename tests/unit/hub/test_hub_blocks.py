"""Blocks: reads put together and split, fetched ahead within bounded memory, in any order."""

import contextlib
import threading

import pytest

from nvfp4.errors import ConvertError
from nvfp4.hub import blocks
from nvfp4.hub.blocks import NEAR_BYTES, RemoteFile, RemotePlan, remote_blocks
from nvfp4.hub.client import Passing, RangeAnswer, RemoteAddress, asked_wait, reason_of
from nvfp4.hub.listing import HubPlace, ListedFile

SIZE = 1000


class ToyRemote:
    """A file whose byte n is n % 251; notes what is fetched, and how much is held meanwhile."""

    shown = "hf://o/r/toy"

    def __init__(self, fails_at=None):
        self.fetched, self.fails_at, self.lock = [], fails_at, threading.Lock()

    def fetch(self, begin, view, _):
        with self.lock:
            self.fetched.append((begin, len(view)))
        if self.fails_at is not None and begin <= self.fails_at < begin + len(view):
            raise ConvertError("no")
        view[:] = bytes((begin + index) % 251 for index in range(len(view)))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    monkeypatch.setattr(blocks, "MOST_HELD", 300)
    monkeypatch.setattr(blocks, "NEAR_BYTES", 20)


def read(plan, file, begin, size):
    view, got = bytearray(size), 0
    while got < size:
        got += plan.read(file, begin + got, memoryview(view)[got:])
    assert view == bytes((begin + index) % 251 for index in range(size))


def spans(made):
    return [(block.begin, block.end, block.left) for block in made]


def test_near_reads_are_one_request_and_long_ones_several():
    a, b = ToyRemote(), ToyRemote()
    reads = [(a, 0, 10), (a, 10, 5), (a, 30, 10), (a, 70, 250), (b, 0, 5), (a, 320, 5)]
    assert spans(remote_blocks(reads)) == [
        (0, 40, 25), (70, 170, 100), (170, 270, 100), (270, 320, 50), (0, 5, 5), (320, 325, 5)
    ]  # fmt: skip
    assert NEAR_BYTES < 1 << 20


def test_what_is_planned_is_fetched_once_by_blocks():
    file = ToyRemote()
    plan = RemotePlan([(file, begin, 10) for begin in range(0, SIZE, 10)])
    for begin in range(0, SIZE, 10):
        read(plan, file, begin, 10)
    assert sorted(file.fetched) == [(begin, 100) for begin in range(0, SIZE, 100)]
    assert plan.held == 0


def test_no_more_is_held_than_is_allowed():
    file = ToyRemote()
    plan = RemotePlan([(file, 0, SIZE)])
    read(plan, file, 0, 10)
    while len(file.fetched) < 3:
        pass
    assert plan.held <= 300
    read(plan, file, 10, SIZE - 10)
    assert plan.held == 0


def test_reads_in_another_order_and_unplanned_ones_come_too():
    file = ToyRemote()
    plan = RemotePlan([(file, 0, SIZE)])
    read(plan, file, 800, 150)
    read(plan, file, 0, 300)
    read(plan, file, 0, 50)
    read(plan, file, 5000, 70)
    assert (5000, 70) in file.fetched


def test_an_error_comes_to_whoever_reads():
    file = ToyRemote(fails_at=150)
    plan = RemotePlan([(file, 0, SIZE)])
    read(plan, file, 0, 100)
    with pytest.raises(ConvertError, match="no"):
        read(plan, file, 100, 10)


def test_what_could_not_be_fetched_takes_no_room():
    file = ToyRemote(fails_at=50)
    plan = RemotePlan([(file, 0, 100)])
    with pytest.raises(ConvertError, match="no"):
        read(plan, file, 0, 10)
    assert plan.held == 0


def test_a_plan_that_ended_leaves_nobody_waiting():
    class Silent(ToyRemote):
        def fetch(self, *args):
            args[-1].wait(30)
            raise ConvertError("no longer read")

    file = Silent()
    plan = RemotePlan([(file, 0, 100)])
    threading.Timer(0.1, plan.end).start()
    with pytest.raises(ConvertError, match="no longer read"):
        plan.read(file, 0, memoryview(bytearray(10)))


TAKEN = {"content-range": f"bytes 10-19/{SIZE}"}
# What is not taken for the bytes from 10 on, and why; None for what is.
ANSWERS = {
    "a part": (RangeAnswer(206, TAKEN, ()), None),
    "a part of another size": (RangeAnswer(206, {"content-range": "bytes 10-19/9"}, ()), "changed"),
    "another part": (RangeAnswer(206, {"content-range": "bytes 0-9/*"}, ()), "other bytes came"),
    "a part without a range": (RangeAnswer(206, {}, ()), "other bytes came"),
    "the whole file": (RangeAnswer(200, {"content-length": str(SIZE)}, ()), "the whole file came"),
    "another whole file": (RangeAnswer(200, {"content-length": "9"}, ()), "changed on the Hub"),
    "no such part": (RangeAnswer(416, {}, ()), "changed on the Hub"),
    "an encoded part": (RangeAnswer(206, TAKEN | {"content-encoding": "br"}, ()), "came encoded"),
    "a part without TLS": (RangeAnswer(206, TAKEN, (), is_open=True), "from https to http"),
    "too many requests": (RangeAnswer(429, {}, ()), "HTTP 429"),
    "an address that expired": (RangeAnswer(403, {}, ()), "HTTP 403"),
    "no file": (RangeAnswer(451, {}, ()), "HTTP 451"),
}


@pytest.mark.parametrize(("answer", "why"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_not_the_bytes_that_were_asked_for_is_not_taken(answer, why):
    place = HubPlace("model", "o/r", "0" * 40, "toy")
    file = RemoteFile("hf://o/r/toy", place, ListedFile(SIZE))
    with (
        contextlib.nullcontext()
        if why is None
        else pytest.raises((ConvertError, Passing), match=why)
    ):
        file.check(answer, 10, RemoteAddress("https://cdn/toy", {}, "", SIZE))


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({}, None),
    ],
)
def test_a_server_may_say_how_long_to_wait(headers, wait):
    assert asked_wait(headers) == wait


def test_a_reason_has_no_address():
    inner = OSError(111, "Connection refused")
    outer = RuntimeError("GET https://x.y/?Signature=secret")
    outer.__cause__ = inner
    assert reason_of(outer) == "Connection refused"
    assert reason_of(RuntimeError("https://x.y/?Signature=secret")) == "RuntimeError"
    assert reason_of(TimeoutError()) == "no answer came in time"
