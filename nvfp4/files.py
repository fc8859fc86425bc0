"""The file system: names, links, locks, times, disk space."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4.errors import ConvertError

MAKE_ROOM = "; make room, then run the same command again"
CHANGED_UNDER_WAY = "changed while it was read; convert again once nothing writes to it"
Stamp = tuple[int, int]  # a file's size, and when it changed


def unfinished(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def size_of(path: Path) -> int:
    """A regular file's bytes; opening a pipe would wait for a writer. Raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")
    return status.st_size


def stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def os_problem(error: OSError, path: Path, what: str = "", to_do: str = "") -> str:
    """Tell in one line what an operating system refused: a locked or forbidden file, a full disk.

    `what` says what could not be done to `path`, such as "cannot read the index"; `to_do` what may
    help. Without both, the line names the file that the system's error is about.
    """
    if not what and not to_do:
        path = error.filename or path
        to_do = MAKE_ROOM if error.errno == errno.ENOSPC else ""
    return ": ".join(filter(None, [str(path), what, error.strerror or str(error)])) + to_do


@contextlib.contextmanager
def translated(path: Path, what: str = "", to_do: str = "") -> Iterator[None]:
    """Raise a ConvertError of the line that `os_problem` makes, in place of any OSError."""
    try:
        yield
    except OSError as error:
        raise ConvertError(os_problem(error, path, what, to_do)) from error


def lock(file: BinaryIO) -> bool:
    """Hold an open file for this process alone; False if another one does.

    A file system without locks lets everyone pass.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 40)  # what is locked there cannot be read either
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def is_still(opened: os.stat_result, path: Path) -> bool:
    """Whether a path leads to the file that was opened, and not to a later one."""
    return path.exists() and os.path.samestat(opened, path.stat())


def is_linked(path: Path) -> bool:
    """Whether writing to a path would write into a file of another name."""
    return path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)


def is_of_size(path: Path, size: int) -> bool:
    return path.is_file() and not is_linked(path) and path.stat().st_size == size


def rename(path: Path, name: Path) -> None:
    with translated(name, to_do="; is it open in another program?"):
        path.replace(name)


def sync_folder(folder: Path) -> None:
    """A crash could still lose new names; Windows and some file systems refuse."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def is_same(path: Path, other: Path) -> bool:
    return exists(path) and exists(other) and path.samefile(other)


def allocated(path: Path) -> int:
    """Bytes of disk a file takes, holes aside; 0 if there is none."""
    if not path.exists():
        return 0
    status = path.stat()
    return getattr(status, "st_blocks", status.st_size // 512) * 512


def target_problems(target: Path) -> Iterator[str]:
    if not target.parent.is_dir():
        yield f"{target.parent}: no such folder; create it first"
    elif target.is_dir():
        yield f"{target}: is a folder; name the file to write"
    elif target.exists():
        target.open("r+b").close()  # raises if forbidden or, on Windows, locked by a program


def write_unfinished(data: bytes, path: Path) -> Path:
    """Write what is to become the file `path`, and return where it lies until it gets that name.

    Raises OSError.
    """
    temporary = unfinished(path)
    temporary.unlink(missing_ok=True)  # if it is a link, what it leads to stays
    temporary.write_bytes(data)
    return temporary


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all. Raises ConvertError."""
    try:
        with translated(path, "cannot write"):
            write_unfinished(data, path).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished(path).unlink(missing_ok=True)
        raise


def write_text(text: str, path: Path) -> None:
    """Write a file of UTF-8 text, whole or not at all. Raises ConvertError."""
    write_bytes(text.encode(), path)


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a forbidden folder or too long a name: opening it will say so
        return False
