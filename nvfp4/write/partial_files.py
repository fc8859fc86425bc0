"""The output until it has its name."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch

from nvfp4.errors import ConvertError, examples
from nvfp4.files import is_still, rename, sync_folder, translated, unfinished, write_unfinished
from nvfp4.layout import Job, Layout, Slot, render_index
from nvfp4.model import Model
from nvfp4.numeric.damage import Damage
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import merge_metadata, read_header
from nvfp4.stages import Observe, unobserved
from nvfp4.stored.defects import DEFECTS, grouped
from nvfp4.stored.layers import stored_layers
from nvfp4.stored.lint import lint
from nvfp4.write.journal import Journal

SYNC_BYTES = 128 << 20  # after so many, they are brought to the disk while the rest is computed


class PartialFiles:
    """The output's files as *.partial: written at known offsets, and named once all is complete.

    A thread writes while the caller computes on, up to WRITE_AHEAD bytes behind; its first error
    comes up at the next `write` or at `flush`.
    """

    def __init__(self, job: Job, journal: Journal, ranks: Ranks, observe: Observe = unobserved):
        self.job, self.journal, self.ranks, self.observe = job, journal, ranks, observe
        self.ahead = job.options.ahead
        self.slots = {
            key: (path, slot)
            for path, layout in job.layouts.items()
            for key, slot in layout.slots.items()
        }
        self.files: dict[Path, BinaryIO] = {}
        self.lost: set[Path] = set()
        self.given: Counter[str] = Counter()
        self.pending: deque[tuple[Future, int]] = deque()
        self.finished: dict[str, Damage | None] = {}
        self.waiting = self.unsynced = 0

    def __enter__(self) -> PartialFiles:
        self.writer = ThreadPoolExecutor(1)
        try:
            if self.ranks.rank == 0:
                if not self.journal.done:
                    with translated(self.job.options.output):
                        self.remove()  # what an orphan still writes must not get into the new one
                self.open("r+b" if self.journal.done else "wb")
                for path, layout in self.job.layouts.items():
                    with translated(unfinished(path)):  # a full disk may show here already
                        self.put(path, 0, memoryview(layout.header))
                        self.files[path].truncate(layout.nbytes)
            self.ranks.gather()  # from here on the files exist
            if self.ranks.rank:
                self.open("r+b")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.shutdown(cancel_futures=True)
        self.close()
        if self.ranks.rank == 0 and not self.journal.keep:
            with contextlib.suppress(OSError):  # open in another rank, on Windows
                self.remove()

    def close(self) -> None:
        """Let go of the files, but know which were deleted: those of their names are others'."""
        for path, file in self.files.items():
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                if not file.closed and not is_still(os.fstat(file.fileno()), unfinished(path)):
                    self.lost.add(path)
                file.close()

    def remove(self) -> None:
        for path in self.job.files:
            if path not in self.lost:
                unfinished(path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Give these files up, in all ranks: the next plan may have other shards."""
        self.writer.shutdown(cancel_futures=True)
        self.close()
        self.ranks.gather()  # on Windows, the first one could not delete what another has open
        if self.ranks.rank == 0:
            with translated(self.job.options.output):
                self.remove()

    def open(self, mode: str) -> None:
        for path in self.job.layouts:
            with translated(unfinished(path)):
                self.files[path] = unfinished(path).open(mode, buffering=0)

    def write(self, key: str, tensor: torch.Tensor) -> None:
        """Append to the tensor `key`, which may come in several pieces, and keep the memory."""
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        path, slot = self.slots[key]
        begin = slot.begin + self.given[key]
        self.given[key] += data.nbytes
        self.waiting += data.nbytes
        written = self.writer.submit(self.put, path, begin, memoryview(data))
        self.pending.append((written, data.nbytes))
        self.wait(self.ahead)

    def finish(self, name: str, damage: Damage | None) -> None:
        """All of a source tensor was given: the journal may have it after the next sync."""
        self.writer.submit(self.finished.__setitem__, name, damage)

    def wait(self, ahead: int) -> None:
        """Until no more than `ahead` bytes are still to be written."""
        with translated(unfinished(self.job.options.output)):
            while self.pending and (self.waiting > ahead or self.pending[0][0].done()):
                written, size = self.pending.popleft()
                written.result()
                self.waiting -= size

    def put(self, path: Path, begin: int, data: memoryview) -> None:
        """Write at an offset; now and then to the disk itself, so that the end need not wait."""
        file = self.files[path]
        self.unsynced += data.nbytes
        with self.observe("write"):
            file.seek(begin)
            while data:
                data = data[file.write(data) :]
        if self.unsynced > SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Bring what was written to the disk, and only then into the journal."""
        finished, self.finished = self.finished, {}
        with self.observe("sync"):
            for file in self.files.values():
                os.fsync(file.fileno())
            self.job.refuse_changed()
            self.journal.add(finished)
        self.unsynced = 0

    def flush(self, keys: Iterable[str]) -> None:
        """End this rank's part, which was to write these tensors."""
        self.wait(0)
        for key in keys:
            if self.given[key] != self.slots[key][1].nbytes:
                raise AssertionError(f"{key}: {self.given[key]} of {self.slots[key][1].nbytes}")
        with translated(unfinished(self.job.options.output)):
            self.writer.submit(self.sync).result()
        if self.ranks.rank:
            self.close()  # on Windows, the first one could not name them

    def refuse_lost(self) -> None:
        """Another run may have made files anew that someone deleted: they are not to be named."""
        self.close()
        for path in self.lost:
            raise ConvertError(f"{unfinished(path)}: was deleted meanwhile; run again")

    def publish(self) -> None:
        """Check the files and give them their names: the index of shards comes last."""
        try:
            kept = {plan.ref.layer for plan in self.job.plans if plan.ref.config}
            with self.observe("verify"):
                verify({unfinished(path): lay for path, lay in self.job.layouts.items()}, kept)
        except ConvertError:
            self.journal.keep = False  # going on could not mend it
            raise
        finally:
            self.refuse_lost()
        named = []
        try:
            if self.job.index:
                with translated(self.job.index):
                    write_unfinished(render_index(self.job).encode(), self.job.index)
                    self.journal.name_shards(self.job.layouts)
            for path in self.job.files:
                rename(unfinished(path), path)
                named.append(path)
        except BaseException:
            for path in named if self.job.index else ():  # some shards alone are no model
                rename(path, unfinished(path))
            raise
        self.journal.keep = False
        sync_folder(self.job.options.output.parent)


def verify(written: dict[Path, Layout], kept: set[str]) -> None:
    """Read what was written back: exactly the planned tensors, and no defect among them.

    Defects of `kept` layers are the source's own, and noted when that is opened.
    """
    tensors, metadata = {}, []
    for path, layout in written.items():
        refs, strings = read_header(path)
        found = {
            name: Slot(name=name, dtype=t.dtype, shape=t.shape, begin=t.begin, nbytes=t.nbytes)
            for name, t in refs.items()
        }
        if found != layout.slots:
            raise ConvertError(
                f"{path}: does not read back as it was written; is the disk failing?"
            )
        tensors |= refs
        metadata.append(strings)
    model = Model(tensors=tensors, metadata=merge_metadata(metadata), files=tuple(written))
    found = lint(model, stored_layers(model))
    defects = grouped(finding for finding in found if finding.name not in kept)
    if defects:
        where = examples(map(str, written))
        raise ConvertError(
            *(f"{where}: {DEFECTS[key].what}: {examples(names)}" for key, names in defects.items())
        )
