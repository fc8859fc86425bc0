"""Fetch bytes of files on the Hub: in blocks, by several connections, ahead of the reader.

A RemoteFile fetches a range, and gets over connections that end, limits of rates, and addresses
that expire. A RemotePlan knows what is read next, and has blocks of it fetched within a bounded
memory.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nvfp4.errors import ConvertError
from nvfp4.hub.client import (
    NOT_ENCRYPTED,
    PASSING_STATUSES,
    Passing,
    RangeAnswer,
    RemoteAddress,
    asked_wait,
    is_encrypted,
    locate_file,
    passing_problem,
    reason_of,
    requested,
    server_of,
    wait_for,
)
from nvfp4.hub.listing import HubPlace, ListedFile
from nvfp4.progress import GLANCE, tell_watcher

# A request asks for up to so many bytes: some tenth of a second of a fast line.
BLOCK_BYTES = 8 << 20
# Blocks are fetched by so many connections at once; the Hub's storage gives each a part of a line.
CONNECTIONS = 8
# Bytes of blocks that are fetched, or wait for the reader: they add to the peak of memory.
MOST_HELD = 96 << 20
# Reads with up to so many bytes between them are one request, as it costs more than the bytes do.
NEAR_BYTES = 1 << 18
# Answers that an address gives once it has expired: signed ones hold for minutes.
EXPIRED_STATUSES = (401, 403, 404, 410)


class RemoteFile:
    """Fetch ranges of one file at one commit; threads may share it.

    shown: what messages call it. place: where it is, with today's name of its repository, and the
    commit as revision. listed: its size in bytes, and the hash of its content.
    """

    def __init__(self, shown: str, place: HubPlace, listed: ListedFile):
        self.shown, self.place, self.size = shown, place, listed.size
        # The hash of a small file is told in several spellings: only that of a large one counts.
        self.etag = listed.etag if len(listed.etag) == 64 else ""
        self.lock, self.address, self.stored = threading.Lock(), None, {}

    def changed(self) -> ConvertError:
        """Make the error for a file that is not what it was."""
        return ConvertError(f"{self.shown}: changed on the Hub while it was read; convert again")

    def where(self) -> RemoteAddress:
        """Return the address to ask, and ask the Hub for one where there is none."""
        while not self.lock.acquire(timeout=GLANCE):
            # Another thread asks, and may wait for minutes.
            tell_watcher()
        try:
            if self.address is None:
                found = locate_file(self.shown, self.place)
                self.etag = self.etag or found.etag
                if found.size not in (None, self.size) or found.etag != self.etag:
                    raise self.changed()
                self.address = found
            return self.address
        finally:
            self.lock.release()

    def fetch(self, begin: int, view: memoryview, stop: threading.Event) -> None:
        """Fill `view` with the bytes from `begin` on.

        What came before a connection ended is kept. Raises ConvertError, also once `stop` is set.
        """
        got = tries = 0
        while got < len(view):
            before, problem = got, Passing(self.shown, "the connection ended too early")
            try:
                with contextlib.closing(self.received(begin + got, begin + len(view))) as chunks:
                    for chunk in chunks:
                        count = min(len(chunk), len(view) - got)
                        view[got : got + count] = chunk[:count]
                        got += count
                        if got == len(view):
                            return
                        if stop.is_set():
                            break
            except Passing as passing:
                problem = passing
            if stop.is_set():
                raise ConvertError(f"{self.shown}: is no longer read")
            tries = 1 if got > before else tries + 1
            wait_for(tries, problem, stop)

    def received(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [begin, end) as they come in, and perhaps more; raises Passing."""
        address = self.where()
        headers = address.headers | {"Range": f"bytes={begin}-{end - 1}"}
        try:
            with requested(address.url, headers) as answer:
                self.check(answer, begin, address)
                yield from answer.chunks
        except (ConvertError, Passing):
            raise
        except Exception as error:  # noqa: BLE001, each version has another client's
            raise passing_problem(self.shown, error) from None

    def check(self, answer: RangeAnswer, begin: int, address: RemoteAddress) -> None:
        """Raise Passing or ConvertError for an answer whose body is not the bytes from `begin`."""
        status, headers = answer.status, answer.headers
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range") or "")
        if status in EXPIRED_STATUSES:
            with self.lock:
                self.address = None if self.address is address else self.address
        if status in (*EXPIRED_STATUSES, *PASSING_STATUSES):
            raise Passing(self.shown, f"HTTP {status}", asked_wait(headers))
        if status not in (200, 206, 416):
            raise ConvertError(f"{self.shown}: HTTP {status}")
        if answer.is_open and is_encrypted(address.url):
            raise ConvertError(f"{self.shown}: {NOT_ENCRYPTED}")
        if (headers.get("content-encoding") or "identity").lower() != "identity":
            raise Passing(self.shown, "bytes came encoded that were asked for as they are")
        whole = headers.get("content-length") if status == 200 else None
        total = told[2] if told else whole
        if status == 416 or total not in (None, "*", str(self.size)):
            raise self.changed()
        if (int(told[1]) if told else 0 if status == 200 else None) != begin:
            what = "the whole file came where a part was asked for"
            other = "other bytes came than were asked for"
            raise Passing(self.shown, what if status == 200 else other)
        # Those who store a file name its content in a way of their own, each always the same.
        host, etag = server_of(address.url)[1], headers.get("etag") or ""
        if etag and self.stored.setdefault(host, etag) != etag:
            raise self.changed()


@dataclass(slots=True, eq=False)
class RemoteBlock:
    """Hold bytes [begin, end) of a file, which are fetched at once.

    left: how many of them are still to be read. is_taken: whether somebody fetches it, or has done
    so. is_read: whether it was read, or given up. data: once they are there. error: why they are
    not.
    """

    file: RemoteFile
    begin: int
    end: int
    left: int = 0
    is_taken: bool = False
    is_read: bool = False
    data: bytearray | bytes | None = None
    error: ConvertError | None = None

    @property
    def is_waiting(self) -> bool:
        """Tell whether it is still fetched, or about to be."""
        return self.data is None and self.error is None


# Bytes that are about to be read: the file, the first of them, how many.
RemoteRead = tuple[RemoteFile, int, int]


def remote_blocks(reads: Iterable[RemoteRead]) -> list[RemoteBlock]:
    """Cut reads into blocks, in their order: near ones are put together, long ones split."""
    spans: list[list] = []
    for file, begin, size in reads:
        last = spans[-1] if spans else None
        if last and last[0] is file and last[1] <= begin <= last[2] + NEAR_BYTES:
            last[2] = max(last[2], begin + size)
            last[3].append((begin, size))
        else:
            spans.append([file, begin, begin + size, [(begin, size)]])
    blocks = []
    for file, begin, end, some in spans:
        first = len(blocks)
        for start in range(begin, end, BLOCK_BYTES):
            blocks.append(RemoteBlock(file, start, min(start + BLOCK_BYTES, end)))
        for start, size in some:
            low = first + (start - begin) // BLOCK_BYTES
            for block in blocks[low : first + -(-(start + size - begin) // BLOCK_BYTES)]:
                block.left += min(block.end, start + size) - max(block.begin, start)
    return blocks


class RemotePlan:
    """Fetch blocks in the order in which they are going to be read, ahead of the readers.

    reads: what is going to be read. Fetching begins at once, and ends with the last block or once
    `stop` is set. The condition `changed` guards all else.
    """

    def __init__(self, reads: Iterable[RemoteRead] = ()):
        self.blocks, self.changed = remote_blocks(reads), threading.Condition()
        # All blocks before `first` are taken, and those before `low` were read.
        self.first = self.low = self.held = 0
        self.stop = threading.Event()
        # Whole blocks are used again, as allocating them in threads takes twice the memory.
        self.spare: list[bytearray] = []
        for _ in range(min(CONNECTIONS, len(self.blocks))):
            threading.Thread(target=self.work, daemon=True).start()

    def end(self) -> None:
        """Fetch nothing more."""
        self.stop.set()
        with self.changed:
            self.changed.notify_all()

    def work(self) -> None:
        """Fetch one block after another."""
        while block := self.taken():
            self.fetch(block)

    def taken(self) -> RemoteBlock | None:
        """Take the next block, once there is room for it; None where nothing is left to fetch."""
        with self.changed:
            while not self.stop.is_set():
                while self.first < len(self.blocks) and self.blocks[self.first].is_taken:
                    self.first += 1
                if self.first == len(self.blocks):
                    return None
                block = self.blocks[self.first]
                if not self.held or self.held + block.end - block.begin <= MOST_HELD:
                    return self.take(block)
                self.changed.wait()
        return None

    def take(self, block: RemoteBlock) -> RemoteBlock:
        """Mark a block as one that is fetched by whoever calls this, who holds the lock."""
        block.is_taken = True
        self.held += block.end - block.begin
        return block

    def fetch(self, block: RemoteBlock) -> None:
        """Fetch a block that was taken, and tell those who wait for it."""
        size, error = block.end - block.begin, None
        with self.changed:
            data = self.spare.pop() if self.spare and size == BLOCK_BYTES else bytearray(size)
        try:
            block.file.fetch(block.begin, memoryview(data), self.stop)
        except ConvertError as problem:
            error = problem
        except BaseException as problem:
            # Nobody may wait for it for ever: Ctrl-C comes to a reader that fetches by itself.
            error = ConvertError(f"{block.file.shown}: {reason_of(problem)}")
            raise
        finally:
            with self.changed:
                block.data, block.error = (None, error) if error else (data, None)
                self.held -= size if error else 0
                self.changed.notify_all()

    def covering(self, file: RemoteFile, begin: int) -> RemoteBlock | None:
        """Find the first block that has a byte, and was not read yet; the caller has the lock."""
        while self.low < len(self.blocks) and self.blocks[self.low].is_read:
            self.low += 1
        blocks = (self.blocks[index] for index in range(self.low, len(self.blocks)))
        fits = (one for one in blocks if one.file is file and one.begin <= begin < one.end)
        return next((one for one in fits if not one.is_read), None)

    def read(self, file: RemoteFile, begin: int, view: memoryview) -> int:
        """Fill `view`, or a part of it, from the byte `begin` on; return how many bytes came.

        What was planned comes from its block, anything else by a request of its own.
        """
        while block := self.claimed(file, begin):
            # Another reader may have been the last one meanwhile.
            if count := self.copy(block, begin, view):
                return count
        file.fetch(begin, view, threading.Event())
        return len(view)

    def claimed(self, file: RemoteFile, begin: int) -> RemoteBlock | None:
        """Find the block of a byte, and fetch it where nobody does; None where none is planned."""
        with self.changed:
            block = self.covering(file, begin)
            if block is None or block.is_taken:
                return block
            # It is read out of order: what was fetched before it may be read never.
            before = self.blocks[self.low : self.blocks.index(block)]
            self.let_go([one for one in before if one.data is not None])
            self.take(block)
        self.fetch(block)
        return block

    def copy(self, block: RemoteBlock, begin: int, view: memoryview) -> int:
        """Wait for a block, and copy what it has from `begin` on; return how many bytes that is."""
        with self.changed:
            while block.is_waiting:
                # A connection that is silent must not keep a conversion from being interrupted.
                if self.stop.is_set():
                    raise ConvertError(f"{block.file.shown}: is no longer read")
                self.changed.wait(GLANCE)
                tell_watcher()
            if block.error:
                raise block.error
            part = memoryview(block.data or b"")[begin - block.begin :][: len(view)]
            view[: len(part)] = part
            block.left -= len(part)
            self.let_go([block] if block.left <= 0 else [])
            return len(part)

    def let_go(self, blocks: list[RemoteBlock]) -> None:
        """Drop blocks, so that there is room for others; the caller holds the lock."""
        for block in blocks:
            self.held -= len(block.data or b"")
            self.spare += [block.data] if len(block.data or b"") == BLOCK_BYTES else []
            block.data, block.is_read = b"", True
        self.changed.notify_all()
