"""Say what may go wrong with requests to the stand-in of the Hub, and note what was asked of it.

Standard library only, Python 3.10.
"""

import dataclasses
import re
import threading
import time
from collections.abc import Callable


@dataclasses.dataclass
class Asked:
    """A request as it came, and what was answered."""

    of: str
    host: str
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def token(self) -> str | None:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None


@dataclasses.dataclass(kw_only=True)
class Fault:
    """What goes wrong with requests that match; one record says one way, or several at once.

    `of`: "hub" or "cdn", the port that is asked. `path`: a pattern that the path has to hold.
    `method`: the method. `skip`: requests that go well first. `times`: how many go wrong then.
    """

    of: str | None = None
    path: str = ""
    method: str | None = None
    skip: int = 0
    times: float = float("inf")
    # What is done first: a function of the server, as one that moves a branch.
    first: Callable | None = None
    # Seconds before anything is answered.
    wait: float = 0
    # Another status than the one due, with these headers.
    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    # The connection ends after so many bytes of the body, by a reset or in order.
    cut: int | None = None
    reset: bool = False
    # Seconds without a byte after `stall_at` bytes of the body.
    stall: float = 0
    stall_at: int = 0
    # 200 and the whole file, whatever range was asked for.
    ignore_range: bool = False
    # Bytes that a 206 has more, or fewer, than were asked for: an honest answer of another length.
    lengthen: int = 0
    # Bytes by which the range that is answered lies elsewhere.
    shift: int = 0
    # What X-Linked-Size is wrong by, and an ETag of the storage instead of the file's.
    size_error: int = 0
    etag: str | None = None

    def meets(self, request: Asked) -> bool:
        """Say whether this request goes wrong, and count it."""
        if self.of not in (None, request.of) or self.method not in (None, request.method):
            return False
        if not re.search(self.path, request.path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0


class Pace:
    """Let bytes pass at a rate, whoever sends them."""

    def __init__(self, rate: float | None):
        self.rate, self.free, self.lock = rate, 0.0, threading.Lock()

    def take(self, amount: int) -> None:
        if not self.rate:
            return
        with self.lock:
            now = time.monotonic()
            # Up to 20 ms that nobody used may be made up for, so that sleeping too long costs none.
            self.free = max(self.free, now - 0.02) + amount / self.rate
            wait = self.free - now
        if wait > 0:
            time.sleep(wait)
