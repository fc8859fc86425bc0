"""What faults do to a conversion: kills, full disks, changing sources, forbidden files, clocks.

Usage: python tests/faults/faults.py [--kills 100] [--seed 0] [--folder /tmp] [--blocks 20]
       [--only WORD]

Every run is a process forked after the imports, so that all moments lie within the run itself; it
syncs after each MB, so that there is something to go on with. After each fault OUT has to be what
it was (absent, or the older file) or the complete new one; then the same command has to give the
reference, byte for byte, and leave nothing else. A Markdown table tells how often that failed:
`wrong` (OUT is neither), `lost` (what was there is gone, or nothing came), `unclear` (another exit
status than expected, not one line of error, or something left behind); details go to stderr.
Needs Linux; some rows need root.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import convert_nvfp4 as c  # noqa: E402

RECIPE = ["--gguf-nvfp4-max-bitdepth", "5", "--use-fp8", "--quiet"]
SYNC_BYTES = 1 << 20
NOBODY = 65534
RUN_AS_RANK = """
import signal, sys
import convert_nvfp4 as c
c.SYNC_BYTES = 1 << 20
signal.signal(signal.SIGTERM, c.interrupt)
sys.exit(c.main(sys.argv[1:]))
"""


@dataclasses.dataclass(kw_only=True)
class Row:
    """A line of the table."""

    fault: str
    times: int = 0
    wrong: int = 0
    lost: int = 0
    unclear: int = 0
    seen: Counter = dataclasses.field(default_factory=Counter)

    def complain(self, what: str) -> None:
        self.unclear += 1
        print(f"{self.fault}: {what}", file=sys.stderr, flush=True)


class Run:
    """A conversion in a forked process, which tells when it begins to write and to publish."""

    def __init__(self, argv: list, prepare: Callable = int):
        self.log = Path(tempfile.mkdtemp(prefix="faults-log-"))
        self.started = time.monotonic()
        self.stages, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self.child([str(argument) for argument in argv], write, prepare)
        os.close(write)

    def child(self, argv: list[str], write: int, prepare: Callable) -> None:
        status = 70
        try:
            os.nice(5)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.log / name, os.O_WRONLY | os.O_CREAT), number)
            signal.signal(signal.SIGTERM, c.interrupt)
            c.SYNC_BYTES = SYNC_BYTES
            for owner, name, mark in (
                (c.Journal, "begin", b"b"),
                (c.PartialFiles, "publish", b"p"),
            ):
                setattr(owner, name, telling(getattr(owner, name), write, mark))
            prepare()
            status = c.main(argv)
        except BaseException:  # noqa: BLE001 what is not a ConvertError is a finding
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait_for(self, stage: str) -> float:
        """Seconds from the start to the stage, or to the end if it never comes."""
        while (mark := os.read(self.stages, 1)) and mark.decode() != stage:
            pass
        return time.monotonic() - self.started

    def kill(self, number: int = signal.SIGKILL) -> "Run":
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self

    def end(self) -> tuple[int, str, str]:
        """Exit status (negative: the signal), stdout, stderr."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.stages)
        out, err = ((self.log / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.log)
        return status, out, err


def telling(function: Callable, write: int, mark: bytes) -> Callable:
    def told(*arguments: object) -> object:
        os.write(write, mark)
        return function(*arguments)

    return told


@dataclasses.dataclass(kw_only=True)
class World:
    """The source, what it has to become, and how long that takes."""

    root: Path
    source: Path
    random: random.Random
    kills: int
    reference: bytes = b""
    older: bytes = b""
    begins: float = 0.0
    publishes: float = 0.0
    ends: float = 0.0

    def command(self, out: Path, *more: object, source: Path | None = None) -> list:
        source = source or self.source
        return [source, out, "--gguf", source.parent / "model-Q5_K_M.gguf", *RECIPE, *more]

    @contextlib.contextmanager
    def folder(self, older: bool = True) -> Iterator[Path]:
        """An output's path in a new folder, with an older file there or not."""
        folder = Path(tempfile.mkdtemp(prefix="out-", dir=self.root))
        out = folder / "o.safetensors"
        if older:
            out.write_bytes(self.older)
        try:
            yield out
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def own_source(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="source-", dir=self.root))
        for path in self.source.parent.iterdir():
            shutil.copy2(path, folder)
        yield folder / self.source.name
        shutil.rmtree(folder)

    def moment(self) -> float:
        """Seconds from the start of writing to some moment before the end."""
        return self.random.uniform(0, self.ends - self.begins)

    def judge(self, row: Row, out: Path, *, older: bool = True) -> str:
        """What OUT is after a fault; anything but the old one or the new one is counted."""
        found = out.read_bytes() if out.exists() else None
        if found == self.reference:
            return "published"
        if found == (self.older if older else None):
            return "as before"
        if found is None:
            row.lost += 1
        else:
            row.wrong += 1
        print(f"{row.fault}: OUT is {'gone' if found is None else 'neither'}", file=sys.stderr)
        return "LOST" if found is None else "WRONG"

    def finish(self, row: Row, out: Path, *more: object, argv: list | None = None) -> str:
        """The same command again, which has to come to the reference; returns what it said."""
        status, text, errors = Run(argv or self.command(out, *more)).end()
        if status or errors:
            row.complain(f"the same command again ended with {status}: {text}{errors}")
        if self.judge(row, out, older=False) == "as before":  # still absent
            row.lost += 1
        if left := sorted(path.name for path in out.parent.iterdir() if path != out):
            row.complain(f"left: {left}")
        return text

    def refused(self, row: Row, run: Run, *texts: str) -> str:
        """The run has to end with one line of error, with one of these texts."""
        status, text, errors = run.end()
        one = errors.startswith("error: ") and errors.count("\n") == 1 and not text
        if status != 1 or not one or not any(text in errors for text in texts):
            row.complain(f"ended with {status}, not with {texts}: {text}{errors}")
        return errors


def state(world: World, out: Path) -> str:
    if out.exists() and out.read_bytes() == world.reference:
        return "published"
    return "partial" if c.unfinished(out).exists() else "nothing"


# Kills


def kill_once(world: World, row: Row, number: int, aim: str) -> None:
    """A run is killed, and its state counted; then the same command, in turn with --resume."""
    older, resume = number % 4 < 2, ["--resume"] * (number % 2)
    first = ["--resume"] * world.random.randrange(2)
    with world.folder(older) as out:
        run = Run(world.command(out, *first))
        if aim == "publish":
            run.wait_for("p")
            time.sleep(world.random.uniform(0, world.ends - world.publishes))
        else:
            time.sleep(world.random.uniform(0, world.ends))
        status, _, errors = run.kill().end()
        if status not in (0, -signal.SIGKILL) or errors:
            row.complain(f"ended with {status}: {errors}")
        there = state(world, out)
        row.times += 1
        row.seen[there if status else "over already"] += 1
        world.judge(row, out, older=older)
        text = world.finish(row, out, *resume)
        row.seen["went on"] += "were there already" in text
        named = "overwrote o.safetensors.partial of an earlier run; --resume" in text
        row.seen["stale partial named"] += named
        if named != (there == "partial" and not resume):
            row.complain(f"{there}, then {resume}: {text}")


def kills(world: World) -> Iterator[Row]:
    row = Row(fault="SIGKILL, moments spread over the run")
    for number in range(world.kills - world.kills // 5):
        kill_once(world, row, number, "any")
    yield row
    row = Row(fault="SIGKILL while publishing")
    for number in range(world.kills // 5):
        kill_once(world, row, number, "publish")
    yield row


def terminations(world: World) -> Iterator[Row]:
    """SIGTERM and SIGINT clean up, or leave what --resume goes on with."""
    row = Row(fault="SIGTERM or Ctrl-C, then the same command")
    for number in range(world.kills // 8):
        resume = ["--resume"] * (number % 2)
        with world.folder() as out:
            run = Run(world.command(out, *resume))
            run.wait_for("p" if number % 4 > 1 else "b")
            last = world.ends - (world.publishes if number % 4 > 1 else world.begins)
            time.sleep(world.random.uniform(0, last))
            status, _, errors = run.kill((signal.SIGTERM, signal.SIGINT)[number % 3 == 0]).end()
            row.times += 1
            there = world.judge(row, out)
            row.seen[there] += 1
            expected = (0, 130) if there == "published" else (130,)
            fooled = there == "published" and "nothing was written" in errors
            if status not in expected or errors.count("\n") > 1 or fooled:
                row.complain(f"{there}, ended with {status}: {errors}")
            left = len(list(out.parent.iterdir())) > 1
            if left and not resume:
                row.complain(f"left: {sorted(out.parent.iterdir())}")
            world.finish(row, out, *resume)
    yield row


def die_after(names: int) -> None:
    """SIGKILL once so many shards have their names, and the next one has not."""
    rename, given = c.rename, []

    def counted(path: Path, name: Path) -> None:
        if len(given) == names:
            os.kill(os.getpid(), signal.SIGKILL)
        given.append(name)
        rename(path, name)

    c.rename = counted


def sharded_kills(world: World) -> Iterator[Row]:
    """Shards without their index are no model: the same command names the rest."""
    row = Row(fault="SIGKILL while publishing shards, then --resume")
    more = ["--output-sharded", "--max-shard-size", "1MB", "--resume"]
    with world.folder(older=False) as out:
        Run(world.command(out, *more)).end()
        reference = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    for number in range(world.kills // 10):
        with world.folder(older=False) as out:
            last = number * len(reference) // (world.kills // 10)
            Run(world.command(out, *more), lambda last=last: die_after(last)).end()
            row.times += 1
            named = len(list(out.parent.glob("o-*.safetensors")))
            index = out.with_name("o.safetensors.index.json").exists()
            row.seen["whole" if index else "no name" if not named else "some names"] += 1
            if index:
                continue
            status, _, errors = Run(world.command(out, *more)).end()
            if status or {p.name: p.read_bytes() for p in out.parent.iterdir()} != reference:
                row.lost += 1
                row.complain(f"{named} of {len(reference) - 1} named: {status} {errors}")
    yield row


# Disks and sources


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(world: World) -> Iterator[Row]:
    """Space is enough at the start, and then another file takes it; freed, the command works."""
    row, size = Row(fault="disk fills (tmpfs)"), len(world.reference)
    try:
        with mounted(world.root / "small", 2 * size + (8 << 20)) as folder:
            for number in range(12):
                fill_once(world, row, folder, number)
    except subprocess.CalledProcessError:
        row.fault = "file size limit (no mount here)"
        for number in range(10):
            limit_once(world, row, number)
    yield row


def fill_once(world: World, row: Row, folder: Path, number: int) -> None:
    resume, out, ballast = ["--resume"] * (number % 2), folder / "o.safetensors", folder / "ballast"
    out.write_bytes(world.older)
    left = int(world.random.uniform(0, len(world.reference)))
    run = Run(world.command(out, *resume))
    run.wait_for("b")
    free = shutil.disk_usage(folder).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
    errors = world.refused(row, run, "No space left on device", "are free, the output needs")
    row.times += 1
    row.seen["refused"] += bool(errors)
    world.judge(row, out)
    ballast.unlink()
    if not resume and len(list(folder.iterdir())) > 1:
        row.complain(f"left: {list(folder.iterdir())}")
    text = world.finish(row, out, *resume)
    row.seen["went on"] += "were there already" in text
    out.unlink()


def limit_once(world: World, row: Row, number: int) -> None:
    limit = int(world.random.uniform(1, len(world.reference)))
    resume = ["--resume"] * (number % 2)
    with world.folder() as out:
        lower = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        world.refused(row, Run(world.command(out, *resume), lower), "File too large")
        row.times += 1
        world.judge(row, out)
        world.finish(row, out, *resume)


def rewrite(shard: Path) -> None:
    """Other weights, in place: the size stays."""
    with shard.open("r+b") as file:
        size = shard.stat().st_size // 8 * 4
        file.seek(size)
        data = file.read(size // 2)
        file.seek(size - len(data) // 8 * 4)
        file.write(data)


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 3)


def replace(shard: Path) -> None:
    """As a download puts a finished file in place."""
    other = shard.with_suffix(".other")
    shutil.copy(shard, other)
    rewrite(other)
    other.replace(shard)


def changing_source(world: World) -> Iterator[Row]:
    for change in (rewrite, cut, replace, Path.unlink):
        row = Row(fault=f"a shard under way: {change.__name__}")
        for number in range(6):
            resume = ["--resume"] * (number % 2)
            with world.own_source() as source, world.folder() as out:
                command = world.command(out, *resume, source=source)
                run = Run(command)
                run.wait_for("b")
                time.sleep(world.random.uniform(0, (world.publishes - world.begins) * 0.8))
                change(sorted(source.parent.glob("*.safetensors"))[number % 2])
                texts = ("changed", "No such file", "ended inside", "NaN or Inf")
                row.times += 1
                status, _, errors = run.end()
                there = world.judge(row, out)
                row.seen["refused" if status else "written from the old bytes"] += 1
                told = errors.count("\n") == 1 and any(text in errors for text in texts)
                if told == (there == "published"):
                    row.complain(f"{there}, ended with {status}: {errors}")
        yield row


def replaced_source(world: World) -> Iterator[Row]:
    """Between a kill and --resume the source becomes another one."""
    row = Row(fault="source replaced between a kill and --resume")
    for number in range(6):
        with world.own_source() as source, world.folder() as out:
            command = world.command(out, "--resume", source=source)
            run = Run(command)
            run.wait_for("b")
            time.sleep((world.publishes - world.begins) * world.random.uniform(0.2, 0.9))
            run.kill().end()
            (rewrite, replace)[number % 2](next(source.parent.glob("*.safetensors")))
            row.times += 1
            errors = world.refused(row, Run(command), "changed since, or was another; without")
            row.seen["refused"] += bool(errors)
            world.judge(row, out)
            c.unfinished(out).with_name("o.safetensors.partial.journal").unlink()
            status, _, errors = Run(command).end()
            checked, *_ = Run(["--verify", out, "--source", source, "--quiet"]).end()
            if status or checked or len(list(out.parent.iterdir())) > 1:
                row.complain(f"not made anew: {status} {checked} {errors}")
    yield row


# Forbidden, elsewhere, gone, shared


def as_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def permissions(world: World) -> Iterator[Row]:
    row = Row(fault="forbidden (as uid 65534)")
    if os.geteuid():
        row.seen["skipped: needs root"] = 1
        yield row
        return
    for name, arrange in FORBIDDEN.items():
        with world.own_source() as source, world.folder() as out:
            for path in (source.parent, *source.parent.iterdir(), out.parent, out):
                os.chown(path, NOBODY, NOBODY)
            arrange(source, out)
            row.times += 1
            run = Run(world.command(out, source=source), as_nobody)
            errors = world.refused(row, run, "Permission denied", "Operation not permitted")
            row.seen[name] += bool(errors)
            world.judge(row, out)
            out.parent.chmod(0o755)
            for path in (*source.parent.iterdir(), out.parent, *out.parent.iterdir()):
                path.chmod(0o755)
                os.chown(path, NOBODY, NOBODY)
            status, _, errors = Run(world.command(out, source=source), as_nobody).end()
            if status or world.judge(row, out) != "published":
                row.complain(f"{name}: allowed again, ended with {status}: {errors}")
    yield row


def foreign_partial(_: Path, out: Path) -> None:
    """Another user's unfinished file in a folder like /tmp: writable, and not to be removed."""
    c.unfinished(out).write_bytes(b"")
    c.unfinished(out).chmod(0o666)
    os.chown(out.parent, 0, 0)
    out.parent.chmod(0o1777)


FORBIDDEN = {
    "folder": lambda _, out: out.parent.chmod(0o555),
    "folder not listable": lambda _, out: out.parent.chmod(0o333),
    "older output": lambda _, out: (os.chown(out, 0, 0), out.chmod(0o444)),
    "source": lambda source, _: next(source.parent.glob("*2.safetensors")).chmod(0o200),
    "other user's partial": foreign_partial,
}


def read_only(world: World) -> Iterator[Row]:
    row = Row(fault="read-only file system, immutable files")
    try:
        with mounted(world.root / "fixed", 4 * len(world.reference)) as folder:
            out = folder / "o.safetensors"
            out.write_bytes(world.older)
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            row.times += 1
            errors = world.refused(row, Run(world.command(out)), "Read-only file system")
            row.seen["read-only"] += bool(errors)
            world.judge(row, out)
    except subprocess.CalledProcessError:
        row.seen["skipped: no mount"] += 1
    for name in ("o.safetensors", "o.safetensors.partial", "."):
        with world.folder() as out:
            path = out.parent / name
            if name.endswith("partial"):
                path.write_bytes(b"")
            if subprocess.run(["chattr", "+i", str(path)], capture_output=True).returncode:
                row.seen["skipped: chattr"] += 1
                continue
            try:
                row.times += 1
                world.refused(row, Run(world.command(out)), "not permitted", "Permission denied")
                row.seen[f"immutable {name}"] += 1
                world.judge(row, out)
            finally:
                subprocess.run(["chattr", "-i", str(path)], check=True)
            world.finish(row, out)
    yield row


def elsewhere(world: World) -> Iterator[Row]:
    """Everything that is unfinished lies beside OUT, so that naming it is one step."""
    row = Row(fault="OUT on another file system than TMPDIR and SOURCE")
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == world.root.stat().st_dev:
        row.seen["skipped: no other one"] += 1
    else:
        folder = Path(tempfile.mkdtemp(dir=shared))
        for number in range(4):
            out = folder / "o.safetensors"
            out.write_bytes(world.older)
            run = Run(world.command(out))
            run.wait_for("b")
            time.sleep(world.moment())
            run.kill().end()
            row.times += 1
            row.seen[world.judge(row, out)] += 1
            world.finish(row, out, *["--resume"] * (number % 2))
        shutil.rmtree(folder)
    yield row


def gone_folder(world: World) -> Iterator[Row]:
    row = Row(fault="OUT's folder deleted under way")
    for number in range(6):
        with world.folder(older=False) as out:
            run = Run(world.command(out, *["--resume"] * (number % 2)))
            run.wait_for("b")
            time.sleep(world.random.uniform(0, world.publishes - world.begins) * 0.8)
            shutil.rmtree(out.parent)
            row.times += 1
            row.seen["refused"] += bool(
                world.refused(row, run, "was deleted meanwhile", "No such file")
            )
            out.parent.mkdir()
            world.finish(row, out)
    yield row


def usurped(world: World) -> Iterator[Row]:
    """Someone deletes the unfinished files of a living run, and starts another one."""
    row = Row(fault="unfinished files deleted under way, and a second run started")
    for number in range(6):
        with world.folder() as out:
            first = Run(world.command(out))
            first.wait_for("b")
            time.sleep((world.publishes - world.begins) * (0.3 + 0.1 * number))
            for path in out.parent.glob("*.partial*"):
                path.unlink()
            second = Run(world.command(out))
            status, _, errors = first.end()
            row.times += 1
            row.seen["first refused"] += status == 1
            if status not in (0, 1) or errors.count("\n") != status:
                row.complain(f"the first ended with {status}: {errors}")
            world.judge(row, out)
            status, _, errors = second.end()
            if status:
                row.complain(f"the second ended with {status}: {errors}")
            world.finish(row, out)
    yield row


def open_output(world: World) -> Iterator[Row]:
    """POSIX: who reads the older output goes on reading it. (Windows refuses, with a message.)"""
    row = Row(fault="older output open and mapped by a reader")
    for _ in range(3):
        with world.folder() as out, out.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            world.finish(row, out)
            row.times += 1
            same = file.read() == world.older and mapped[:] == world.older
            row.seen["reader kept the older bytes"] += same
            row.wrong += not same
            mapped.close()
    yield row


def two_runs(world: World) -> Iterator[Row]:
    row = Row(fault="a second run to the same output")
    for number in range(10):
        with world.folder() as out:
            first = Run(world.command(out))
            first.wait_for("b")
            time.sleep((world.publishes - world.begins) * number / 20)
            second = Run(world.command(out, *["--resume"] * (number % 2)))
            row.times += 1
            errors = world.refused(row, second, "another run is writing this output; wait for it")
            row.seen["second refused"] += bool(errors)
            status, _, errors = first.end()
            if status or world.judge(row, out) != "published":
                row.complain(f"the first ended with {status}: {errors}")
    yield row


# Clocks


def fake_clock() -> str:
    """libfaketime, if this Python has it (pip install libfaketime)."""
    spec = importlib.util.find_spec("libfaketime")
    found = spec and [*Path(spec.origin).parent.rglob("libfaketime.so*")]
    return str(found[0]) if found else ""


def clocks(world: World) -> Iterator[Row]:
    row = Row(fault="clock set back or forward between a kill and --resume")
    for number, when in enumerate((0, 1e9, 4e9, None) * 2):
        with world.folder() as out:
            run = Run(world.command(out))
            run.wait_for("b")
            time.sleep((world.publishes - world.begins) * world.random.uniform(0.3, 0.95))
            run.kill().end()
            for path in out.parent.iterdir() if when is not None else ():
                os.utime(path, (when, when))
            row.times += 1
            if when is not None:
                text = world.finish(row, out, "--resume")
            elif not (library := fake_clock()):
                row.times -= 1
                row.seen["skipped: no libfaketime"] += 1
                continue
            else:
                environment = {"LD_PRELOAD": library, "FAKETIME": ("-20y", "+20y")[number // 4]}
                text = in_other_time(world, row, out, environment)
            row.seen["went on"] += "were there already" in text
    yield row


def in_other_time(world: World, row: Row, out: Path, environment: dict[str, str]) -> str:
    command = map(str, world.command(out, "--resume"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "convert_nvfp4.py"), *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    row.seen["with libfaketime"] += 1
    if done.returncode or world.judge(row, out) != "published":
        row.complain(f"{environment}: ended with {done.returncode}: {done.stderr}")
    return done.stdout


# Several processes


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for_end(pids: list[int], seconds: float = 60) -> bool:
    limit = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def launch(world: World, out: Path, *more: str) -> subprocess.Popen:
    script = world.root / "rank.py"
    script.write_text(RUN_AS_RANK)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*start, str(script), *map(str, world.command(out, *more))],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_ranks(world: World, row: Row, who: str, number: int) -> None:
    with world.folder() as out:
        agent = launch(world, out, *["--resume"] * (number // 2 % 2))
        while not c.unfinished(out).exists() and agent.poll() is None:
            time.sleep(0.02)
        ranks = children(agent.pid)
        time.sleep(world.moment() * 0.6)  # two ranks are through sooner
        targets = {"rank 0": ranks[:1], "rank 1": ranks[1:], "launcher": [agent.pid]}
        for pid in targets.get(who, [agent.pid, *ranks]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not wait_for_end(ranks):
            row.complain(f"{who}: ranks live on")
            for pid in ranks:
                os.kill(pid, signal.SIGKILL)
        agent.communicate()
        row.times += 1
        there = state(world, out)
        row.seen[there] += 1
        world.judge(row, out)
        if number % 2:
            text = world.finish(row, out, "--resume")
            row.seen["went on"] += "were there already" in text
        else:
            again = launch(world, out, "--resume")
            _, errors = again.communicate()
            if again.returncode or world.judge(row, out) != "published":
                row.complain(f"torchrun again ended with {again.returncode}: {errors[-3000:]}")


def ranks(world: World) -> Iterator[Row]:
    for who in ("rank 0", "rank 1", "launcher", "all"):
        row = Row(fault=f"torchrun, 2 ranks: SIGKILL of {who}")
        for number in range(max(2, world.kills // 50)):
            kill_ranks(world, row, who, number)
        yield row


# The table

FAULTS = (
    two_runs,
    clocks,
    ranks,
    kills,
    terminations,
    sharded_kills,
    full_disk,
    changing_source,
    replaced_source,
    permissions,
    read_only,
    elsewhere,
    gone_folder,
    usurped,
    open_output,
)


def make_world(root: Path, given: argparse.Namespace) -> World:
    """A Wan-shaped source, its conversion, and an older output that differs."""
    make = [sys.executable, str(ROOT / "examples" / "make_wan.py"), str(root / "wan"), "tiny"]
    subprocess.run([*make, "--blocks", str(given.blocks)], check=True, stdout=subprocess.DEVNULL)
    source = next((root / "wan").glob("*.index.json"))
    world = World(root=root, source=source, random=random.Random(given.seed), kills=given.kills)
    with world.folder(older=False) as out:
        for more, name in ((["--use-ck-quant"], "older"), ([], "reference"), ([], "reference")):
            run = Run(world.command(out, *more))
            world.begins, world.publishes = run.wait_for("b"), run.wait_for("p")
            status, text, errors = run.end()
            world.ends = time.monotonic() - run.started
            if status:
                sys.exit(text + errors)
            setattr(world, name, out.read_bytes())
        status, text, errors = Run(["--verify", out, "--source", source, "--quiet"]).end()
        if status or "no defect found" not in text:
            sys.exit(text + errors)
    return world


def render(rows: list[Row]) -> str:
    lines = ["| fault | times | seen | wrong | lost | unclear |", "|---|---|---|---|---|---|"]
    total = Row(fault="all")
    for row in rows:
        total.times, total.wrong = total.times + row.times, total.wrong + row.wrong
        total.lost, total.unclear = total.lost + row.lost, total.unclear + row.unclear
    for row in [*rows, total]:
        seen = ", ".join(f"{name} {count}" for name, count in row.seen.items() if count)
        counts = f"{row.wrong} | {row.lost} | {row.unclear}"
        lines.append(f"| {row.fault} | {row.times} | {seen} | {counts} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--only", default="", help="faults with this in their function's name")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=given.folder))
    root.chmod(0o755)
    begin, rows = time.monotonic(), []
    try:
        world = make_world(root, given)
        print(
            f"a run: begins to write after {world.begins:.2f} s, publishes at "
            f"{world.publishes:.2f} s, ends at {world.ends:.2f} s; {len(world.reference):,} bytes",
            flush=True,
        )
        for fault in FAULTS:
            if given.only in fault.__name__:
                for row in fault(world):
                    rows.append(row)
                    print(render([row]).splitlines()[2], file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(render(rows))
    print(f"\n{time.monotonic() - begin:.0f} s, seed {given.seed}")
    return int(any(row.wrong or row.lost or row.unclear for row in rows))


if __name__ == "__main__":
    sys.exit(main())
