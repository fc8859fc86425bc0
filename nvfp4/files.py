"""The file system: names, links, locks, times, writing whole files.

Whatever is written gets its name only when it is complete: it lies beside its place as
`NAME.partial` until then. Errors of the operating system become one line through `os_problem`, or a
ConvertError through `translated`. The model itself is written by `write.partial_files`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4.errors import ConvertError

# The end of a message about a full disk.
MAKE_ROOM = "; make room, then run the same command again"
# The end of a message about a file larger than its file system takes. The shards of 5 GB that
# --output-sharded makes by itself would still be too large for FAT32.
LARGEST_FILE = (
    "; FAT32 takes no file of 4 GiB or more: write to another disk (exFAT, NTFS, ext4), or give "
    "--output-sharded --max-shard-size 4GB"
)
# What Linux and Windows call the file systems that have this limit, and the largest file there.
FAT_NAMES, FAT_LARGEST = ("vfat", "msdos", "FAT32", "FAT"), (4 << 30) - 1
# Windows has an error of its own for that, ERROR_FILE_TOO_LARGE, without a number of POSIX.
TOO_LARGE = 223
# The end of a message about an input that another program wrote to.
CHANGED_UNDER_WAY = "changed while it was read; convert again once nothing writes to it"
# A file's size in bytes, and when it was last written in nanoseconds: the two tell whether an input
# changed while it was read.
Stamp = tuple[int, int]


def unfinished(path: Path) -> Path:
    """Name the file that holds what is written until it is complete: NAME.partial, beside NAME."""
    return path.with_name(path.name + ".partial")


def size_of(path: Path) -> int:
    """Count a regular file's bytes, and refuse pipes and devices.

    Opening a pipe would wait for a writer, perhaps for ever, and a device may never end. Raises
    OSError for these, and where there is no file. A folder passes: opening it will fail.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")
    return status.st_size


def stamp(path: Path) -> Stamp:
    """Take a file's Stamp, to be compared with an earlier or a later one. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def os_problem(error: OSError, path: Path, what: str = "", to_do: str = "") -> str:
    """Tell in one line what an operating system refused: a locked or forbidden file, a full disk.

    `what` says what could not be done to `path`, such as "cannot read the index"; `to_do`, which
    begins with its own punctuation, what may help. Without both, the line names the file that the
    system's error is about, and asks for room where the disk or a quota is full. A file too large
    for its file system is told what to do in any case.
    """
    is_about_path = not what and not to_do
    if is_about_path:
        path = error.filename or path
    if not to_do and (error.errno == errno.EFBIG or getattr(error, "winerror", 0) == TOO_LARGE):
        to_do = LARGEST_FILE
    elif is_about_path and error.errno in (errno.ENOSPC, errno.EDQUOT):
        to_do = MAKE_ROOM
    return ": ".join(filter(None, [str(path), what, error.strerror or str(error)])) + to_do


@contextlib.contextmanager
def translated(path: Path, what: str = "", to_do: str = "") -> Iterator[None]:
    """Raise a ConvertError in place of any OSError of the `with` block.

    The message is the line that `os_problem` makes of `path`, `what` and `to_do`; the OSError is
    its cause.
    """
    try:
        yield
    except OSError as error:
        raise ConvertError(os_problem(error, path, what, to_do)) from error


def lock(file: BinaryIO) -> bool:
    """Lock an open file for this process alone, without waiting, until the file is closed.

    Returns False if another process has locked it. A file system that knows no locks, as some
    network drives, counts as locked: two runs at once are not noticed there.
    """
    try:
        if os.name == "nt":
            import msvcrt

            # Windows keeps others from reading what is locked: lock a byte far behind the end.
            file.seek(1 << 40)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def full_path(path: Path) -> Path:
    """Make a path whole, as a person is shown it: without `..`; a link is not followed."""
    # Without the file system, `link/..` would be the folder of the link.
    return path.parent.resolve() / path.name if ".." in path.parts else path.absolute()


def is_still(opened: os.stat_result, path: Path) -> bool:
    """Tell whether a path still leads to the file that was opened.

    `opened` is its `os.stat_result` from then. False if the file was deleted, or if another run
    has made a new one of that name.
    """
    return path.exists() and os.path.samestat(opened, path.stat())


def is_linked(path: Path) -> bool:
    """Tell whether a path is a link, symbolic or hard.

    Writing to it would change a file of another name, which may be anything.
    """
    return path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)


def is_of_size(path: Path, size: int) -> bool:
    """Tell whether a path is a regular file, no link, of exactly `size` bytes."""
    return path.is_file() and not is_linked(path) and path.stat().st_size == size


def rename(path: Path, name: Path) -> None:
    """Give a file another name on the same disk, replacing what had it; atomic on Linux.

    Raises ConvertError, which on Windows is mostly because another program has the file open.
    """
    with translated(name, to_do="; is it open in another program?"):
        path.replace(name)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: without it, a crash could lose a file just renamed.

    Windows offers no way to do so, and some file systems refuse; both are passed over in silence,
    as the files' contents are on the disk already.
    """
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def is_same(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file, be it through links or other spellings."""
    return exists(path) and exists(other) and path.samefile(other)


def allocated(path: Path) -> int:
    """Count the bytes of disk that a file takes, without its holes; 0 if there is no file.

    A partial file gets its full length at once but fills up over time: only what is allocated will
    be free again when it is overwritten.
    """
    if not path.exists():
        return 0
    status = path.stat()
    # Windows has no st_blocks; elsewhere they are of 512 bytes whatever the file system's blocks.
    return getattr(status, "st_blocks", status.st_size // 512) * 512


def target_problems(target: Path) -> Iterator[str]:
    """Find what would keep a file from being written, before hours of work: a line for each.

    Raises OSError if an existing file may not be written to, or if, on Windows, a program has
    locked it. Nothing is changed.
    """
    if not target.parent.is_dir():
        yield f"{target.parent}: no such folder; create it first"
    elif refused := refused_by(target.parent):
        yield refused
    elif target.is_dir():
        yield f"{target}: is a folder; name the file to write"
    elif target.exists():
        target.open("r+b").close()


def make_folders(targets: Iterable[Path]) -> None:
    """Create the folders of files where they are missing. Raises ConvertError."""
    for target in targets:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConvertError(os_problem(error, target.parent)) from error


def refused_by(folder: Path) -> str:
    """Say why no file can be made in a folder, or "": an empty file is made and deleted."""
    # What permissions say is not all: a disk may be read-only, or have no room for a name.
    probe = folder / f".convert_nvfp4-{os.getpid()}"
    try:
        probe.open("wb").close()
        probe.unlink()
    except OSError as error:
        return os_problem(error, folder, "cannot write into this folder")
    return ""


def largest_file(folder: Path) -> float:
    """Tell how many bytes a file in a folder may have at most; infinity where nothing says so.

    Asked are the file system, and on POSIX the limit of this process (ulimit -f).
    """
    largest = FAT_LARGEST if file_system(folder) in FAT_NAMES else math.inf
    if os.name == "posix":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        largest = largest if limit == resource.RLIM_INFINITY else min(largest, limit)
    return largest


def file_system(folder: Path) -> str:
    """Name the file system that a folder is on, as Linux or Windows calls it; "" elsewhere."""
    if os.name == "nt":
        import ctypes

        name = ctypes.create_unicode_buffer(64)
        root, ask = folder.resolve().anchor, ctypes.windll.kernel32.GetVolumeInformationW
        ask(root, None, 0, None, None, None, name, len(name))
        return name.value
    with contextlib.suppress(OSError):
        device = folder.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        # Fields: two numbers, the device's, ..., then after a dash the type.
        for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split(" ")[2:3] == [number]:
                return kind.split(" ")[0]
    return ""


def make_sparse(file: BinaryIO) -> None:
    """Let an open file have holes that take no disk: NTFS has to be told, others do it anyway."""
    if os.name == "nt":
        import ctypes
        import msvcrt

        # FSCTL_SET_SPARSE, without input and output; where it is refused, holes take disk.
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(file.fileno()))
        done = ctypes.byref(ctypes.c_ulong())
        ctypes.windll.kernel32.DeviceIoControl(handle, 0x900C4, None, 0, None, 0, done, None)


def write_unfinished(data: bytes, path: Path) -> Path:
    """Write what is to become the file `path`, and return where it lies until it gets that name.

    The caller renames it. Raises OSError, and may then leave a part of the file behind.
    """
    temporary = unfinished(path)
    # A link that somebody laid there is removed, so that what it leads to is not overwritten.
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(data)
    return temporary


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all: an older one stays until the new one is complete.

    Raises ConvertError. Nothing is left behind then, nor after Ctrl-C.
    """
    # BaseException: after Ctrl-C, too, nothing of a half-written file is left.
    try:
        with translated(path, "cannot write"):
            write_unfinished(data, path).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished(path).unlink(missing_ok=True)
        raise


def write_text(text: str, path: Path) -> None:
    """Write a file of UTF-8 text, whole or not at all. Line breaks stay as they are.

    Raises ConvertError.
    """
    write_bytes(text.encode(), path)


def exists(path: Path) -> bool:
    """Tell whether there is a file or folder, without ever raising.

    A folder that may not be entered and a name that is too long count as nothing there: the path is
    opened later, and that tells what is wrong with it.
    """
    try:
        return path.exists()
    except OSError:
        return False
