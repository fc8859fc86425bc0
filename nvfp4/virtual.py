"""Virtual paths: files that are read as others are, and lie on no disk of this machine.

A kind of them is a subclass of VirtualPath with a scheme, as `hf` of `hf://owner/repo`. It answers
what the rooms that read ask of a `pathlib.Path`, so that these need not know of it. Nothing is
written to one.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import PurePath, PurePosixPath
from typing import BinaryIO, ClassVar, NamedTuple

# A scheme has two letters or more, as one is a drive of Windows; a Path makes "hf:/" of "hf://".
SCHEMED = re.compile(r"([a-z][a-z0-9]+):[/\\]+(.*)", re.DOTALL)
# The classes of virtual paths by their schemes; a class puts itself in where it is defined.
SCHEMES: dict[str, type[VirtualPath]] = {}
# How much of a file a buffered reader asks for at once.
READ_AT_ONCE = 1 << 18


class VirtualEntry(NamedTuple):
    """Tell what is at a virtual path.

    size: of a file in bytes; 0 for a folder.
    version: a number that is another one once the file has changed, as a file's time is.
    is_folder: whether it is a folder.
    """

    size: int = 0
    version: int = 0
    is_folder: bool = False


class Read(NamedTuple):
    """Name bytes that are about to be read: `size` of the file `path`, from `begin` on."""

    path: PurePath
    begin: int
    size: int


class VirtualFile(io.RawIOBase):
    """Read a virtual file: what `open("rb", buffering=0)` gives. A kind defines `read_at`."""

    def __init__(self, path: VirtualPath, size: int):
        self.path, self.size, self.position = path, size, 0

    def read_at(self, begin: int, view: memoryview) -> int:
        """Fill `view` from the byte `begin` on, as far as it goes, and return how far that is.

        The file has bytes there, and at least one is to be read. Raises OSError or ConvertError.
        """
        raise NotImplementedError

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer from the position on; 0 stands for the file's end."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self.size - self.position))]
        count = self.read_at(self.position, view) if len(view) else 0
        self.position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, also beyond the end, and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that the position can be moved."""
        return True


class VirtualPath(PurePosixPath):
    """Name a virtual file or folder: the reading half of a `pathlib.Path`.

    A kind sets `scheme`, and defines `entry`, `opened` and, where it has folders, `names`. A path
    has no state but its text: `.parent`, `/` and the like make new ones of it. So whatever a kind
    keeps for a file, it keeps by the path.
    """

    __slots__ = ()
    scheme: ClassVar[str] = ""
    # Whom a person is told to be asked for the version; "" where nobody is.
    asked: ClassVar[str] = ""

    def __init_subclass__(cls, **facts: object) -> None:
        super().__init_subclass__(**facts)
        SCHEMES[cls.scheme] = cls

    @classmethod
    def made(cls, text: str) -> VirtualPath:
        """Make a path of what somebody typed. Raises ValueError, which tells what is wrong."""
        return cls(text)

    @property
    def own_name(self) -> str:
        """Return the name that a file made of it is called by, suffix included."""
        return self.name

    @property
    def is_remote(self) -> bool:
        """Tell whether reading it takes a network, so that no more is read than is asked for."""
        return False

    def pin(self, noted: dict[str, str]) -> dict[str, str]:  # noqa: ARG002
        """Stay from now on with one version of what may change: the one noted, or today's.

        noted and returned: {what has versions: its version}, as `revisions` gives it.
        """
        return {}

    def revisions(self) -> dict[str, str]:
        """Tell which version is read: {what has versions: its version}, of texts."""
        return {}

    def at_version(self) -> str:
        """Write the path so that it names the version that is read, where its kind has any."""
        return str(self)

    def entry(self) -> VirtualEntry:
        """Tell what is at the path. Raises FileNotFoundError where nothing is."""
        raise NotImplementedError

    def opened(self, size: int) -> VirtualFile:
        """Open the file, whose entry gave this size, to read it."""
        raise NotImplementedError

    def names(self) -> Iterable[str]:
        """List the names of what is in the folder."""
        raise NotADirectoryError(f"{self} is no folder")

    def will_read(self, reads: list[Read]) -> None:
        """Learn which bytes of paths of this kind are read next, in order; [] where none are."""

    def __str__(self) -> str:
        # A PurePath makes one slash of two.
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme.removesuffix(':')}://{rest}"

    def __fspath__(self) -> str:
        return str(self)

    def stat(self) -> os.stat_result:
        """Tell size, kind and time as of a file; the version stands for the time."""
        size, version, is_folder = self.entry()
        mode = (stat.S_IFDIR | 0o555) if is_folder else (stat.S_IFREG | 0o444)
        # Inode and device are those of no file on a disk, one link, and no user or group.
        numbers = (mode, version, -1, 1, 0, 0, size, 0, version // 10**9, 0)
        return os.stat_result(numbers, {"st_mtime": version / 1e9, "st_mtime_ns": version})

    def found(self) -> VirtualEntry | None:
        """Tell what is at the path, None where nothing is."""
        try:
            return self.entry()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self) -> bool:
        """Tell whether there is a file or a folder."""
        return self.found() is not None

    def is_file(self) -> bool:
        """Tell whether there is a file."""
        return (entry := self.found()) is not None and not entry.is_folder

    def is_dir(self) -> bool:
        """Tell whether there is a folder."""
        return (entry := self.found()) is not None and entry.is_folder

    def is_symlink(self) -> bool:
        """Say that it is no link."""
        return False

    def is_absolute(self) -> bool:
        """Say that it is whole: there is no current folder among virtual paths."""
        return True

    def absolute(self) -> VirtualPath:
        """Return the path, which is whole already."""
        return self

    def resolve(self) -> VirtualPath:
        """Return the path, which has no links to follow."""
        return self

    def expanduser(self) -> VirtualPath:
        """Return the path, in which no ~ stands for a home."""
        return self

    def samefile(self, other: PurePath) -> bool:
        """Tell whether another path is this one."""
        return self == other

    def iterdir(self) -> Iterator[VirtualPath]:
        """List the folder. Raises OSError where it is none."""
        return (self / name for name in self.names())

    def glob(self, pattern: str) -> Iterator[VirtualPath]:
        """List what in the folder has a name of the pattern, which has no slash."""
        if self.is_dir():
            yield from (path for path in self.iterdir() if fnmatch.fnmatch(path.name, pattern))

    def open(self, mode: str = "rb", buffering: int = -1) -> BinaryIO:
        """Open the file to read its bytes; any other mode raises io.UnsupportedOperation."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} can only be read, as bytes")
        size, _, is_folder = self.entry()
        if is_folder:
            raise IsADirectoryError(f"{self} is a folder")
        raw = self.opened(size)
        return raw if buffering == 0 else io.BufferedReader(raw, max(buffering, READ_AT_ONCE))

    def read_bytes(self) -> bytes:
        """Read the whole file."""
        with self.open() as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Read the whole file as text."""
        return self.read_bytes().decode(encoding, errors)


def virtual_path(given: str | os.PathLike) -> VirtualPath | None:
    """Make a virtual path of a text, or of a Path that was made of one; None for any other.

    Raises ValueError, as a kind's `made` does.
    """
    if isinstance(given, VirtualPath):
        return given
    found = SCHEMED.fullmatch(os.fspath(given))
    if not found or found[1] not in SCHEMES:
        return None
    rest = found[2].replace("\\", "/")
    return SCHEMES[found[1]].made(f"{found[1]}://{rest}")


def virtual_of(paths: Iterable[PurePath]) -> list[VirtualPath]:
    """List those of some paths that are virtual."""
    return [path for path in paths if isinstance(path, VirtualPath)]


def pinned(paths: Iterable[PurePath], noted: dict[str, str]) -> dict[str, str]:
    """Stay from now on with one version of each virtual path, as `VirtualPath.pin` does."""
    found = {}
    for path in virtual_of(paths):
        # Two paths of one repository have one version, asked for once.
        found |= path.pin({**noted, **found})
    return found


def revisions_of(paths: Iterable[PurePath]) -> dict[str, str]:
    """Tell which versions of virtual paths are read, sorted by what has versions."""
    found = [entry for path in virtual_of(paths) for entry in path.revisions().items()]
    return dict(sorted(found))


@contextlib.contextmanager
def reading_ahead(reads: Iterable[Read]) -> Iterator[None]:
    """Tell kinds of virtual paths what the `with` block reads, so that it can be fetched ahead.

    reads: in the order in which they will come; those of other paths are passed over.
    """
    kinds: dict[type[VirtualPath], list[Read]] = {}
    for read in reads:
        if isinstance(read.path, VirtualPath):
            kinds.setdefault(type(read.path), []).append(read)
    try:
        for some in kinds.values():
            some[0].path.will_read(some)
        yield
    finally:
        for some in kinds.values():
            some[0].path.will_read([])
