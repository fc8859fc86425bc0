"""Write the output under temporary names, check it, then give it its name.

Encoded tensors come in any order and go to the offsets that the layout gives them. One thread
writes while the caller computes; now and then it syncs and notes finished tensors in the journal.
Only a complete output that reads back without a defect gets its final name, so that no program ever
sees half a model.
"""

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
from nvfp4.progress import phase
from nvfp4.ranks import Ranks
from nvfp4.read.checkpoint import merge_metadata, read_header
from nvfp4.stages import Observe, unobserved
from nvfp4.stored.defects import DEFECTS, grouped
from nvfp4.stored.layers import stored_layers
from nvfp4.stored.lint import lint
from nvfp4.write.journal import Journal

# Written bytes are synced every 128 MiB, while the rest is still computed. Without that, the end of
# a conversion would wait for the whole page cache, and a kill would lose the work since the start.
SYNC_BYTES = 128 << 20


class PartialFiles:
    """Hold the output's files as *.partial: written at known offsets, named once all is complete.

    One thread writes while the caller computes, up to `Options.ahead` bytes behind. Its first error
    is raised by the next `append` or by `flush`, as ConvertError. Used as a context manager: the
    first rank creates the files at their full size, the others open them, and on leaving they are
    deleted unless the journal is kept for --resume.
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
        self.lost: set[Path] = set()  # deleted by somebody while they were written
        self.given: Counter[str] = Counter()  # bytes of each output tensor so far
        self.pending: deque[tuple[Future, int]] = deque()  # writes under way, and their bytes
        self.finished: dict[str, Damage | None] = {}  # written, but not yet synced and noted
        self.waiting = self.unsynced = 0  # bytes submitted, and bytes written since the last sync
        self.failed = False  # a write or a sync did: what is finished since is not on the disk

    def __enter__(self) -> PartialFiles:
        # One worker: writes, notes and syncs happen in the order in which they were submitted.
        self.writer = ThreadPoolExecutor(1)
        try:
            if self.ranks.is_first:
                if not self.journal.done:
                    with translated(self.job.options.output):
                        # Deleted, not truncated: what an orphan still writes goes to the old file.
                        self.remove()
                self.open("r+b" if self.journal.done else "wb")
                for path, layout in self.job.layouts.items():
                    with translated(unfinished(path)):  # a full disk may show here already
                        self.put(path, 0, memoryview(layout.header))
                        # At its full size at once: --resume takes a file of another size for cut.
                        self.files[path].truncate(layout.nbytes)
            self.ranks.gather()  # the other ranks can only open files that exist
            if not self.ranks.is_first:
                self.open("r+b")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.save()
        finally:
            self.writer.shutdown(cancel_futures=True)
            self.close()
        if self.ranks.is_first and not self.journal.keep:
            with contextlib.suppress(OSError):  # Windows deletes no file that another rank has open
                self.remove()

    def save(self) -> None:
        """Write, sync and note what was encoded before an interruption, where --resume goes on.

        Else up to SYNC_BYTES of the output, which may be minutes of work, would be done again. What
        keeps it from being written is not told, as what ended the work is.
        """
        is_open = not any(file.closed for file in self.files.values())
        if self.journal.keep and is_open and self.given:
            with contextlib.suppress(ConvertError, OSError):
                self.writer.submit(self.sync).result()

    def close(self) -> None:
        """Close the files, and note in `lost` those whose path leads to another file by now.

        Such a path belongs to another run, which made the file anew after somebody deleted ours: it
        must be neither renamed nor deleted.
        """
        for path, file in self.files.items():
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                if not file.closed and not is_still(os.fstat(file.fileno()), unfinished(path)):
                    self.lost.add(path)
                file.close()

    def remove(self) -> None:
        """Delete the partial files, those in `lost` excepted. Raises OSError."""
        for path in self.job.files:
            if path not in self.lost:
                unfinished(path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Give these files up in all ranks, because the conversion is planned again.

        That happens where float16 could not hold a value; the next plan may have other shards, so
        that nothing of these files would be overwritten by it.
        """
        self.writer.shutdown(cancel_futures=True)
        self.close()
        # All ranks close first, as Windows deletes no file that another process has open.
        self.ranks.gather()
        if self.ranks.is_first:
            with translated(self.job.options.output):
                self.remove()

    def open(self, mode: str) -> None:
        """Open every partial file in binary `mode`, unbuffered. Raises ConvertError."""
        for path in self.job.layouts:
            with translated(unfinished(path)):
                self.files[path] = unfinished(path).open(mode, buffering=0)

    def append(self, key: str, tensor: torch.Tensor) -> None:
        """Append a tensor, or one of several pieces of it, to the output tensor `key`.

        `tensor` may be of any dtype and shape and on any device; its bytes are written in row-major
        order. Its memory must not change afterwards, since the thread writes it later. Waits while
        more than `ahead` bytes are still to be written; raises ConvertError where an earlier write
        failed.
        """
        # numpy knows neither bfloat16 nor FP8, so that bytes are handed over.
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        path, slot = self.slots[key]
        begin = slot.begin + self.given[key]
        self.given[key] += data.nbytes
        self.waiting += data.nbytes
        written = self.writer.submit(self.put, path, begin, memoryview(data))
        self.pending.append((written, data.nbytes))
        self.wait(self.ahead)

    def finish(self, name: str, damage: Damage | None) -> None:
        """Tell that all of a source tensor was given, with its error; None if it was not quantised.

        The note goes through the writing thread, so that it stands behind the tensor's bytes and
        reaches the journal only with the sync that covers them.
        """
        self.writer.submit(self.note, name, damage)

    def note(self, name: str, damage: Damage | None) -> None:
        """Keep a finished tensor for the next sync; runs in the writing thread, as syncs do."""
        self.finished[name] = damage

    def wait(self, ahead: int) -> None:
        """Wait until no more than `ahead` bytes are still to be written; raise what writing met."""
        with translated(unfinished(self.job.options.output)):
            while self.pending and (self.waiting > ahead or self.pending[0][0].done()):
                written, size = self.pending.popleft()
                written.result()
                self.waiting -= size

    def put(self, path: Path, begin: int, data: memoryview) -> None:
        """Write bytes at an offset of a file; runs in the writing thread, one call at a time.

        `data` is written whole, however little the system takes in one call. After SYNC_BYTES the
        files are synced, so that the disk works meanwhile and the end need not wait for all of it.
        """
        file = self.files[path]
        self.unsynced += data.nbytes
        try:
            with self.observe("write"):
                file.seek(begin)
                while data:
                    data = data[file.write(data) :]
            if self.unsynced > SYNC_BYTES:
                self.sync()
        except BaseException:
            self.failed = True
            raise

    def sync(self) -> None:
        """Bring what was written to the disk, then note the finished tensors in the journal.

        Before noting, the source's files are compared with what they were when their headers were
        read: raises ConvertError if one changed, since its tensors would be of two models. After a
        write that failed nothing is noted any more.
        """
        if self.failed:
            return
        finished, self.finished = self.finished, {}
        with self.observe("sync"):
            for file in self.files.values():
                os.fsync(file.fileno())
            # A source that changed meanwhile is found before anything of it is noted as done.
            self.job.refuse_changed()
            self.journal.add(finished)
        self.unsynced = 0

    def flush(self, keys: Iterable[str]) -> None:
        """End this rank's part of the work: wait for the thread, and sync.

        `keys` are the output tensors that this rank had to write. Raises AssertionError if one did
        not get all its bytes (an error of this program) and ConvertError if the disk refused.
        """
        self.wait(0)
        for key in keys:
            if self.given[key] != self.slots[key][1].nbytes:
                raise AssertionError(f"{key}: {self.given[key]} of {self.slots[key][1].nbytes}")
        with translated(unfinished(self.job.options.output)):
            self.writer.submit(self.sync).result()
        if not self.ranks.is_first:
            self.close()  # Windows renames no file that another process has open

    def refuse_lost(self) -> None:
        """Close the files, and raise ConvertError if one was deleted while it was written.

        Another run may have made the file anew since; what lies there now must not get our name.
        """
        self.close()
        for path in self.lost:
            raise ConvertError(f"{unfinished(path)}: was deleted meanwhile; run again")

    def publish(self) -> None:
        """Check the files, then give them their names; the index of shards comes last.

        Raises ConvertError where the check or a rename fails. Without the index no program takes
        shards for a model, and where one of several renames fails those before it are undone. A
        file that fails the check is not kept for --resume, as going on could not mend it.
        """
        try:
            kept = {plan.ref.layer for plan in self.job.plans if plan.ref.config}
            kept |= {name.rpartition(".")[0] for name in self.job.model.beside}
            phase("checking", quiet=self.job.options.quiet)
            with self.observe("verify"):
                read_back({unfinished(path): lay for path, lay in self.job.layouts.items()}, kept)
        except ConvertError:
            self.journal.keep = False  # going on could not mend it
            raise
        finally:
            self.refuse_lost()
        named = []
        phase("publishing", quiet=self.job.options.quiet)
        try:
            if self.job.index:
                with translated(self.job.index):
                    # The index is written first and renamed last: a loader that finds it finds all.
                    write_unfinished(render_index(self.job).encode(), self.job.index)
                    self.journal.name_shards(self.job.layouts)
            for path in self.job.files:
                rename(unfinished(path), path)
                named.append(path)
        except BaseException:
            # A part of the shards is no model: take their names back. A single file needs nothing.
            for path in named if self.job.index else ():
                rename(path, unfinished(path))
            raise
        # The output has its name, so that nothing is left to resume.
        self.journal.keep = False
        sync_folder(self.job.options.output.parent)


def read_back(written: dict[Path, Layout], kept: set[str]) -> None:
    """Read the written files back; raise ConvertError if they are not as planned.

    `written` is {path: its Layout}: names, dtypes, shapes and offsets must be exactly those. All
    files together then pass the lint that --verify uses, so that a defect of our own never gets a
    name. Defects of the layers in `kept` are the source's own and were noted when it was opened;
    these are the ones that it had packed already, and all beside the diffusion model.
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
