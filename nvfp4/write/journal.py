"""Which tensors are on the disk: --resume."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4.errors import ConvertError, examples
from nvfp4.files import is_linked, is_of_size, is_still, lock, rename, stamp, translated, unfinished
from nvfp4.layout import Job
from nvfp4.numeric.damage import Damage
from nvfp4.options import Options
from nvfp4.ranks import Ranks

JOURNAL_STARTS = (b'{"fingerprint"', b'{"tensor"', b'{"shards"')


def open_journal(path: Path, mode: str) -> BinaryIO | None:
    """A journal, locked; or None if another process has it. Nothing else is taken for one."""
    if is_linked(path):
        raise ConvertError(f"{path}: is a link; delete it")
    file = path.open(mode, buffering=0)
    try:
        if not lock(file):
            file.close()
            return None
        file.seek(0)
        start = file.read(max(map(len, JOURNAL_STARTS)) + 1).lstrip(b"\n")
        if not any(start.startswith(known) or known.startswith(start) for known in JOURNAL_STARTS):
            raise ConvertError(f"{path}: is no journal of this tool; move it away")
    except BaseException:
        file.close()
        raise
    return file


def strings(value: object) -> list[str]:
    """Those in a list that a file has."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


class Journal:
    """OUTPUT.partial.journal: which tensors of the partial files are on the disk.

    Its first line tells what conversion it is of; each further one names a tensor that was synced,
    with its error. A rank beyond the first keeps one of its own. All are locked, which keeps out a
    second run to the same output. They go with the partial files unless `keep` is set.
    """

    def __init__(self, options: Options, ranks: Ranks):
        self.output, suffix = options.output, f".{ranks.rank}" if ranks.rank else ""
        partial = unfinished(options.output)
        self.path = partial.with_name(partial.name + ".journal")
        self.own = self.path.with_name(self.path.name + suffix)
        self.ranks, self.keep, self.resume = ranks, options.resume, options.resume
        self.file: BinaryIO | None = None
        self.widened: frozenset[str] = frozenset()
        self.done: dict[str, Damage | None] = {}
        self.notes: list[str] = []

    def __enter__(self) -> Journal:
        if self.ranks.rank == 0:
            self.take()
            try:
                self.refuse_orphans()
            except BaseException:
                is_new = not os.fstat(self.file.fileno()).st_size
                self.file.close()
                if is_new:
                    self.own.unlink(missing_ok=True)
                raise
        self.ranks.gather()  # no rank takes its own before the first one has looked for orphans
        if self.ranks.rank:
            self.take()
        head = next(self.lines(), {}) if self.resume and self.ranks.rank == 0 else {}
        self.head = self.ranks.gather(head if "fingerprint" in head else {})[0]
        self.widened = frozenset(strings(self.head.get("widened")))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.keep |= not is_still(os.fstat(self.file.fileno()), self.own)  # another run's
        if self.ranks.rank == 0 and not self.keep:
            with contextlib.suppress(OSError):  # open in another rank, on Windows
                for path in self.files():
                    if path != self.own:
                        path.unlink(missing_ok=True)
        self.file.close()
        if not self.keep:
            with contextlib.suppress(OSError):
                self.own.unlink(missing_ok=True)

    def take(self) -> None:
        """Open and lock this rank's file; another run may remove it while it is waited for."""
        with translated(self.path):
            while True:
                self.file = open_journal(self.own, "a+b")
                if self.file is None:
                    busy = f"{self.output}: another run is writing this output; wait for it"
                    raise ConvertError(busy)
                if is_still(os.fstat(self.file.fileno()), self.own):
                    return
                self.file.close()

    def refuse_orphans(self) -> None:
        """A rank whose first one died would go on writing into the same files."""
        with translated(self.path):
            for path in self.files():
                if path != self.own:
                    if (file := open_journal(path, "r+b")) is None:
                        raise ConvertError(f"{path}: a rank of another run still writes; end it")
                    file.close()

    def files(self) -> list[Path]:
        """The first rank's, and those of the others."""
        name = re.compile(re.escape(self.path.name) + r"(\.\d{1,6})?")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))

    def lines(self) -> Iterator[dict]:
        """What was noted; a line that a kill cut short is as good as none."""
        for path in self.files():
            for text in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    line = json.loads(text)
                    if isinstance(line, dict):
                        yield line

    def begin(self, job: Job) -> None:
        """Take up the conversion that was noted, which has to be this one, or start a new one."""
        if self.ranks.rank == 0:
            with translated(self.path):
                if self.head:
                    self.check(job)
                    for path in self.named(job.layouts):
                        rename(path, unfinished(path))
                whole = {unfinished(path): layout.nbytes for path, layout in job.layouts.items()}
                if self.head and all(is_of_size(*file) for file in whole.items()):
                    self.done = dict(self.entries(job))
                else:
                    self.start(job, list(whole))
        self.head, self.done = {}, self.ranks.gather(self.done)[0]
        self.file.write(b"\n")  # ends a line that was cut short

    def entries(self, job: Job) -> Iterator[tuple[str, Damage | None]]:
        """Tensors that were noted as this job has them; any other line is as good as none."""
        plans = {plan.ref.name: plan for plan in job.plans}
        for line in self.lines():
            name, damage = line.get("tensor"), line.get("damage")
            plan = plans.get(name) if isinstance(name, str) else None
            if plan and "damage" in line and plan.is_quantised == (damage is not None):
                with contextlib.suppress(TypeError, ValueError):
                    yield name, None if damage is None else Damage.noted(damage)

    def check(self, job: Job) -> None:
        """Refuse to go on with what was made by other options or from other files."""
        noted, now = self.head["fingerprint"], job.fingerprint
        over = "without --resume it starts over"
        if not isinstance(noted, dict) or noted.get("plan") != now["plan"]:
            raise ConvertError(f"--resume: other options than before; give those again; {over}")
        before = noted["files"] if isinstance(noted.get("files"), list) else []
        if before != now["files"]:
            other = [file[0] for file in now["files"] if file not in before] or ["fewer files"]
            raise ConvertError(f"--resume: {examples(other)} changed since, or was another; {over}")

    def start(self, job: Job, partial: list[Path]) -> None:
        """Note what this conversion is, durably, before anything of an older one is overwritten."""
        left = self.others(job)
        stale = [path.name for path in partial if path.exists()]
        if stale:
            why = (
                "nothing in it to go on with" if self.resume else "--resume goes on with such files"
            )
            self.notes = [f"overwrote {examples(stale)} of an earlier run; {why}"]
        if left:
            self.notes.append(f"{examples(left)} of an earlier run are still there; delete them")
        self.file.truncate(0)
        for path in self.files():
            if path != self.own:  # held open by its rank
                os.truncate(path, 0)
        head = {"fingerprint": job.fingerprint, "widened": sorted(self.widened)}
        head["partial"] = [unfinished(path).name for path in job.files]
        self.file.write(json.dumps(head).encode())
        os.fsync(self.file.fileno())
        self.done = {}

    def others(self, job: Job) -> list[str]:
        """Files that an earlier run, of other shards, left; a complete OUTPUT is none of them."""
        names = [name for line in self.lines() for name in strings(line.get("partial"))]
        partial = [self.path.parent / name for name in names if Path(name).name == name]
        shards = self.named(path.with_name(path.name.removesuffix(".partial")) for path in partial)
        kept = {path for file in job.files for path in (file, unfinished(file))}
        left = [*shards, *(path for path in partial if path.exists())]
        return [path.name for path in left if path not in kept]

    def add(self, finished: dict[str, Damage | None]) -> None:
        """Note tensors whose bytes have been synced."""
        for name, damage in finished.items():
            line = {"tensor": name, "damage": damage and dataclasses.asdict(damage)}
            self.file.write(json.dumps(line).encode() + b"\n")

    def name_shards(self, paths: Iterable[Path]) -> None:
        """Note, durably, complete shards that are to get their names one after another."""
        line = {"shards": [[path.name, *stamp(unfinished(path))] for path in paths]}
        self.file.write(json.dumps(line).encode() + b"\n")
        os.fsync(self.file.fileno())

    def named(self, paths: Iterable[Path]) -> list[Path]:
        """Those that are shards of a run that was killed before all of them had their names."""
        there = {path: [path.name, *stamp(path)] for path in paths if path.is_file()}
        noted = [line.get("shards") for line in self.lines()] if there else []
        noted = [shard for shards in noted if isinstance(shards, list) for shard in shards]
        return [path for path, shard in there.items() if shard in noted]
