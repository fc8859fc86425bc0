"""Note which tensors are safely on the disk, so that --resume can go on.

The journal lies beside the partial files as JSON lines: first the fingerprint of the conversion,
then one line for each tensor whose bytes were synced. It is also the lock that keeps a second run
from writing the same output. Tensors come from `PartialFiles`; what a fingerprint covers stands in
`layout.Job`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4.errors import EXCERPT, ConvertError, examples, one_line
from nvfp4.files import is_linked, is_of_size, is_still, lock, rename, stamp, translated, unfinished
from nvfp4.layout import Job
from nvfp4.notes import Note, Rank
from nvfp4.numeric.damage import Damage
from nvfp4.options import Options, options_of
from nvfp4.ranks import Ranks

# How the first line of a journal can begin. A file that begins otherwise is somebody else's and is
# left alone, since a journal is truncated and deleted without asking.
JOURNAL_STARTS = (b'{"fingerprint"', b'{"tensor"', b'{"shards"')

# Options by field, as they are typed; a set of switches by all of these.
FLAGS = {row.name: "/".join(row.switches) or row.flag for row in options_of(Options)}


def open_journal(path: Path, mode: str) -> BinaryIO | None:
    """Open a journal and lock it for this process; return None if another process holds it.

    `mode` is that of `open`, binary. Raises ConvertError for a link and for a file that does not
    begin as a journal does, since a journal is truncated and deleted later: a user's file of that
    name must survive. Raises OSError where the path cannot be opened.
    """
    if is_linked(path):
        raise ConvertError(f"{path}: is a link; delete it")
    # Unbuffered, so that a line is with the system as soon as it is written, whatever kills us.
    file = path.open(mode, buffering=0)
    try:
        if not lock(file):
            file.close()
            return None
        file.seek(0)
        # A new or cut journal may be shorter than any start: a prefix of one is enough.
        start = file.read(max(map(len, JOURNAL_STARTS)) + 1).lstrip(b"\n")
        if not any(start.startswith(known) or known.startswith(start) for known in JOURNAL_STARTS):
            raise ConvertError(f"{path}: is no journal of this tool; move it away")
    except BaseException:
        file.close()
        raise
    return file


def strings(value: object) -> list[str]:
    """Return the strings of a list that was read from a file; anything but a list gives none.

    A journal may be damaged, so that no value in it is trusted to have its type.
    """
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def noted_value(value: object) -> str:
    """Write an option's value for a message, of what a file may hold, in one line."""
    return "not given" if value is None else one_line(str(value)[:EXCERPT])


def noted_revisions(options: Options) -> dict[str, str]:
    """Tell which commits the run read that --resume goes on with, by its journal; {} without one.

    A journal that cannot be read is told of later, by whoever takes it.
    """
    if not options.resume:
        return {}
    try:
        with journal_path(options.output).open("rb") as file:
            noted = json.loads(file.readline()).get("revisions")
    except (OSError, ValueError, AttributeError):
        return {}
    pairs = noted.items() if isinstance(noted, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def journal_path(output: Path) -> Path:
    """Name the journal of an output: that of its only rank, or of its first."""
    partial = unfinished(output)
    return partial.with_name(partial.name + ".journal")


def made_by(job: Job) -> dict[str, object]:
    """Tell the version, and the options by field, that decide which bytes go where."""
    options = job.options
    shards = {"max_shard_size": options.max_shard_size} if options.output_sharded else {}
    return {"version": job.origin["version"], **options.recorded, **shards}


class Journal:
    """Keep OUTPUT.partial.journal: which tensors of the partial files are on the disk.

    The first line has the conversion's fingerprint; each further line names a tensor that was
    synced, with its error. Ranks beyond the first keep a file of their own, `.journal.1` and so on.
    All of them are locked while open, which keeps out a second run to the same output. They are
    deleted together with the partial files on leaving, unless `keep` is set: that is so with
    --resume until the output has its name.

    As a context manager it raises ConvertError where another run holds the output.
    """

    def __init__(self, options: Options, ranks: Ranks):
        self.output, suffix = options.output, "" if ranks.is_first else f".{ranks.rank}"
        self.path = journal_path(options.output)
        self.own = self.path.with_name(self.path.name + suffix)
        # Without --resume nothing is left behind; with it, a failed run can be gone on with.
        self.ranks, self.keep, self.resume = ranks, options.resume, options.resume
        self.file: BinaryIO | None = None
        self.widened: frozenset[str] = frozenset()
        self.done: dict[str, Damage | None] = {}

    def __enter__(self) -> Journal:
        if self.ranks.is_first:
            self.take()
            try:
                self.refuse_orphans()
            except BaseException:
                # An empty journal is of this run; one with lines may still be resumed.
                is_new = not os.fstat(self.file.fileno()).st_size
                self.file.close()
                if is_new:
                    self.own.unlink(missing_ok=True)
                raise
        # A rank that took its journal earlier would look like an orphan to the first one.
        self.ranks.gather()
        if not self.ranks.is_first:
            self.take()
        self.read_head()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            # If the file was deleted meanwhile, the path may lead to another run's journal.
            self.keep |= not is_still(os.fstat(self.file.fileno()), self.own)
        if self.ranks.is_first and not self.keep:
            with contextlib.suppress(OSError):  # Windows deletes no file that another rank has open
                for path in self.files():
                    if path != self.own:
                        path.unlink(missing_ok=True)
        self.file.close()
        if not self.keep:
            with contextlib.suppress(OSError):
                self.own.unlink(missing_ok=True)

    def read_head(self) -> None:
        """Set `head` and `widened` to what an earlier run noted, if this one goes on with it."""
        # Only the first rank reads the head: the others might see it half written or truncated.
        head = next(self.lines(), {}) if self.resume and self.ranks.is_first else {}
        self.head = self.ranks.gather(head if "fingerprint" in head else {})[0]
        self.widened = frozenset(strings(self.head.get("widened")))

    def rehearse(self) -> None:
        """Raise what entering would raise, and set what it would set; no file is made or kept."""
        with translated(self.path), contextlib.suppress(FileNotFoundError):
            self.opened("r+b").close()
        self.refuse_orphans()
        self.read_head()

    def opened(self, mode: str) -> BinaryIO:
        """Open and lock this rank's journal; raises ConvertError if another run holds it."""
        if (file := open_journal(self.own, mode)) is None:
            raise ConvertError(f"{self.output}: another run is writing this output; wait for it")
        return file

    def take(self) -> None:
        """Open and lock this rank's journal, and set `file`.

        Raises ConvertError if another run holds it. The run that held it may delete the file
        between our opening and our locking it; then the path leads to a new file or to none, and
        opening starts over.
        """
        with translated(self.path):
            while True:
                self.file = self.opened("a+b")
                if is_still(os.fstat(self.file.fileno()), self.own):
                    return
                self.file.close()

    def refuse_orphans(self) -> None:
        """Raise ConvertError if a rank of an earlier run is still alive.

        Where the first rank died, the others may go on for a while and would write into the files
        of this run. A journal of another rank that can be locked has no owner any more.
        """
        with translated(self.path):
            for path in self.files():
                if path != self.own:
                    if (file := open_journal(path, "r+b")) is None:
                        raise ConvertError(f"{path}: a rank of another run still writes; end it")
                    file.close()

    def files(self) -> list[Path]:
        """List the journals on the disk, of all ranks and earlier runs, the first rank's first."""
        name = re.compile(re.escape(self.path.name) + r"(\.\d{1,6})?")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))

    def lines(self) -> Iterator[dict]:
        """Yield all JSON objects that the journals on the disk hold.

        Lines that cannot be parsed are skipped: a kill may have cut the last one short, and then
        its tensor is simply converted again.
        """
        for path in self.files():
            for text in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    line = json.loads(text)
                    if isinstance(line, dict):
                        yield line

    def begin(self, job: Job) -> list[str]:
        """Go on with the conversion that the journal notes, or start a new one.

        With --resume the noted conversion must be this one, else ConvertError is raised (see
        `check`). Shards that a killed run had named already become partial files again, so that all
        of them lie in one state. Tensors are taken over only if every partial file has its planned
        size; otherwise the work starts over. Afterwards `done` is the same in all ranks. Returns
        the first rank's notes on what earlier runs left.
        """
        notes = []
        if self.ranks.is_first:
            with translated(self.path):
                if self.head:
                    self.check(job)
                    for path in self.named(job.layouts):
                        rename(path, unfinished(path))
                whole = {unfinished(path): layout.nbytes for path, layout in job.layouts.items()}
                if self.head and all(is_of_size(*file) for file in whole.items()):
                    self.done = dict(self.entries(job))
                else:
                    notes = self.start(job, list(whole))
        self.head, self.done = {}, self.ranks.gather(self.done)[0]
        self.file.write(b"\n")  # a line that a kill cut short must not swallow the next one
        return notes

    def entries(self, job: Job) -> Iterator[tuple[str, Damage | None]]:
        """Yield (tensor name, Damage or None) for noted tensors that this job plans alike.

        A quantised tensor must have been noted with its error and any other one without, in the
        form that `Damage.noted` accepts. Lines that differ are skipped, and their tensors converted
        again.
        """
        plans = {plan.ref.name: plan for plan in job.plans}
        for line in self.lines():
            name, damage = line.get("tensor"), line.get("damage")
            plan = plans.get(name) if isinstance(name, str) else None
            if plan and "damage" in line and plan.is_quantised == (damage is not None):
                with contextlib.suppress(TypeError, ValueError):
                    yield name, None if damage is None else Damage.noted(damage)

    def check(self, job: Job) -> None:
        """Raise ConvertError if the noted conversion had other options or other input files.

        Both the plan's hash and the list of files with sizes and times are compared. Mixing tensors
        of two plans or of two models would give a file that loads and makes noise.
        """
        noted, now = self.head["fingerprint"], job.fingerprint
        over = "without --resume it starts over"
        if not isinstance(noted, dict) or noted.get("plan") != now["plan"]:
            changed = self.changed(job)
            told = f"other options than before{changed}; give those again"
            raise ConvertError(f"--resume: {told}; {over}")
        before = noted["files"] if isinstance(noted.get("files"), list) else []
        if before != now["files"]:
            other = [file[0] for file in now["files"] if file not in before] or ["fewer files"]
            raise ConvertError(f"--resume: {examples(other)} changed since, or was another; {over}")

    def changed(self, job: Job) -> str:
        """Tell which options differ from those that the journal notes: " (--card: ada, now rdna)".

        "" where none does, as in journals of older versions.
        """
        before, now = self.head.get("options"), json.loads(json.dumps(made_by(job)))
        if not isinstance(before, dict):
            return ""
        pairs = {name: (before.get(name), now.get(name)) for name in [*before, *now]}
        told = [
            f"{FLAGS.get(name, name)}: {noted_value(then)}, now {noted_value(given)}"
            for name, (then, given) in pairs.items()
            if then != given
        ]
        return f" ({examples(told)})" if told else ""

    def start(self, job: Job, partial: list[Path]) -> list[str]:
        """Write and sync the journal's first line, before any file is overwritten.

        `partial` are the files that this run will write. Returns notes: one where some of them are
        there already and get overwritten, another on leftovers with other names, which stay for the
        user to delete. The other ranks' journals become empty, and `done` too.
        """
        left, notes = self.others(job), []  # read before the journal is truncated below
        stale = [path.name for path in partial if path.exists()]
        if stale:
            why, rank = "--resume goes on with such files", Rank.HINT
            if self.resume:
                why, rank = "nothing in it to go on with", Rank.INFORMATION
            notes = [Note(f"overwrote {examples(stale)} of an earlier run; {why}", rank)]
        if left:
            what = f"{examples(left)} of an earlier run are still there; delete them"
            notes.append(Note(what, Rank.NOTE))
        # Old lines must go before the new head: they would be read as this conversion's.
        self.file.truncate(0)
        for path in self.files():
            if path != self.own:  # truncated, not deleted: its rank holds it open and locked
                os.truncate(path, 0)
        # "widened" names the tensors beyond float16, so that a resumed run plans float32 at once;
        # "partial" the files, so that a later run with other shards can tell of leftovers.
        head = {"fingerprint": job.fingerprint, "widened": sorted(self.widened)}
        head["options"] = made_by(job)
        head["revisions"] = job.origin.get("revisions", {})
        head["partial"] = [unfinished(path).name for path in job.files]
        self.file.write(json.dumps(head).encode())
        os.fsync(self.file.fileno())
        self.done = {}
        return notes

    def others(self, job: Job) -> list[str]:
        """Name files that an earlier run of other shards left and this run will not write.

        Only plain file names that the journal noted are believed, and only beside the journal
        itself, so that a damaged line cannot point elsewhere. A complete OUTPUT is never among
        them.
        """
        names = [name for line in self.lines() for name in strings(line.get("partial"))]
        partial = [self.path.parent / name for name in names if Path(name).name == name]
        shards = self.named(path.with_name(path.name.removesuffix(".partial")) for path in partial)
        kept = {path for file in job.files for path in (file, unfinished(file))}
        left = [*shards, *(path for path in partial if path.exists())]
        return [path.name for path in left if path not in kept]

    def add(self, finished: dict[str, Damage | None]) -> None:
        """Note tensors whose bytes have been synced.

        `finished` is {tensor name: its Damage, or None where it was not quantised}. The lines
        themselves are not synced: a lost line costs a tensor's work, never a wrong file.
        """
        for name, damage in finished.items():
            line = {"tensor": name, "damage": damage and dataclasses.asdict(damage)}
            self.file.write(json.dumps(line).encode() + b"\n")

    def name_shards(self, paths: Iterable[Path]) -> None:
        """Note, and sync, that complete shards are about to get their names one after another.

        The line holds name, size and time of each shard. A run killed half-way leaves some shards
        named; by this line the next run knows them for its own.
        """
        line = {"shards": [[path.name, *stamp(unfinished(path))] for path in paths]}
        self.file.write(json.dumps(line).encode() + b"\n")
        os.fsync(self.file.fileno())

    def named(self, paths: Iterable[Path]) -> list[Path]:
        """Return those of `paths` that a run named before it was killed while naming shards.

        A file counts only if its name, size and time of change are those that `name_shards` noted.
        """
        there = {path: [path.name, *stamp(path)] for path in paths if path.is_file()}
        noted = [line.get("shards") for line in self.lines()] if there else []
        noted = [shard for shards in noted if isinstance(shards, list) for shard in shards]
        return [path for path, shard in there.items() if shard in noted]
