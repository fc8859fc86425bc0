"""Paths on the Hub: `hf://[datasets/]owner/repo[@revision][/path]`, each at a pinned commit."""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
from collections.abc import Iterable
from pathlib import Path

from nvfp4.errors import ConvertError, did_you_mean
from nvfp4.hub.blocks import RemoteFile, RemotePlan
from nvfp4.hub.client import (
    NO_REVISION,
    cached_file,
    cached_listing,
    is_offline,
    list_repository,
    offline_problem,
)
from nvfp4.hub.listing import HUB_NAME, REFS, HubPlace, RemoteListing
from nvfp4.virtual import Read, VirtualEntry, VirtualFile, VirtualPath

# How a path begins that is of no model's repository, and what the library calls its kind.
KINDS_OF_REPOSITORIES = {"datasets": "dataset", "spaces": "space", "models": "model"}
# A name that is not there is compared with so many of its folder: that takes 0.1 ms for each.
MOST_COMPARED = 1000
# How a path on the Hub is written, for messages.
HUB_FORM = "hf://owner/repo[@revision][/path]"


def hub_place(text: str) -> HubPlace:
    """Take a path on the Hub apart. Raises ValueError for one that is not of HUB_FORM."""
    places = text.removeprefix("hf://").split("/")
    kind = KINDS_OF_REPOSITORIES.get(places[0])
    if kind:
        places = places[1:]
    owner, name, *rest = [*places, "", ""][:2] + places[2:]
    name, at, revision = name.partition("@")
    path = "/".join(rest)
    if at and (found := REFS.fullmatch(f"{revision}/{path}".rstrip("/"))):
        revision, path = found[1], found[2] or ""
    revision = revision.replace("%2F", "/").replace("%2f", "/")
    names = (owner, name, revision.replace("/", "_")) if at else (owner, name)
    if not all(map(HUB_NAME.fullmatch, names)) or {"..", "."} & {*revision.split("/"), *rest}:
        raise ValueError(f"{text}: is not {HUB_FORM}")
    return HubPlace(kind or "model", f"{owner}/{name}", revision or None, path)


class Hub:
    """Keep what was learnt of repositories, so that each is asked for once, and files at hand."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.listings: dict[str, RemoteListing] = {}
        # By repository and path: a path may be typed in several ways.
        self.files: dict[tuple[str, str], RemoteFile | Path] = {}
        self.plan = RemotePlan()

    def listing(self, place: HubPlace) -> RemoteListing:
        """Tell what a repository holds, at the commit that its revision had when first asked."""
        with self.lock:
            if place.repository not in self.listings:
                self.pin(place, place.revision)
            return self.listings[place.repository]

    def pin(self, place: HubPlace, revision: str | None) -> str:
        """Ask for a repository anew, at the commit of a revision now, and return the commit."""
        ask = cached_listing if is_offline() else list_repository
        listing = ask(place, revision)
        with self.lock:
            # What was another commit's, or has come to the cache since, or is no longer there.
            self.files = {
                key: file for key, file in self.files.items() if key[0] != place.repository
            }
            self.listings[place.repository] = listing
        return listing.commit

    def read_next(self, reads: list[Read]) -> None:
        """Fetch ahead what is read next, except from the library's cache, and nothing else."""
        found = [(self.file(read.path), read) for read in reads if read.size]
        ended = self.plan
        self.plan = RemotePlan(
            (file, read.begin, read.size) for file, read in found if isinstance(file, RemoteFile)
        )
        ended.end()

    def file(self, path: HubPath) -> RemoteFile | Path:
        """Return what reads a file: a RemoteFile, or the file's path in the library's cache."""
        place = path.place
        key = (place.repository, place.path)
        with self.lock:
            if key not in self.files:
                listing = self.listing(place)
                found = cached_file(place, listing)
                if found is None and is_offline():
                    raise ConvertError(f"{path}: {offline_problem()}")
                pinned = place._replace(name=listing.name, revision=listing.commit)
                self.files[key] = found or RemoteFile(str(path), pinned, listing.files[place.path])
            return self.files[key]


# What this process knows of the Hub.
HUB = Hub()


def pinned_commit(place: HubPlace, noted: str | None) -> str:
    """Ask for a repository at the commit that a journal notes, or at its revision's one now."""
    try:
        return HUB.pin(place, noted or place.revision)
    except ConvertError as error:
        if not noted or NO_REVISION not in str(error):
            raise
        raise ConvertError(
            f"{place.repository}: its commit {noted}, which the stopped run read, is gone from "
            "the Hub: without --resume the conversion begins anew, with what is there now"
        ) from None


class HubFile(VirtualFile):
    """Read a file that is on the Hub alone, by ranges."""

    def __init__(self, path: HubPath, size: int, remote: RemoteFile):
        super().__init__(path, size)
        self.remote = remote

    def read_at(self, begin: int, view: memoryview) -> int:
        """Fill `view` from the byte `begin` on, as far as a block goes."""
        return HUB.plan.read(self.remote, begin, view)


class HubPath(VirtualPath):
    """Name a file or a folder of a repository on the Hub.

    `place` tells repository and revision, `commit` the commit that is read.
    """

    __slots__ = ()
    scheme = "hf"
    asked = "the Hub"

    @classmethod
    def made(cls, text: str) -> HubPath:
        """Make a path of what somebody typed. Raises ValueError where it is not of HUB_FORM."""
        path = cls(text)
        hub_place(str(path))
        return path

    @property
    def own_name(self) -> str:
        """Return the last part of the path, or the repository's name without its revision."""
        place = self.place
        return self.name if place.path else place.name.rpartition("/")[2]

    @property
    def place(self) -> HubPlace:
        """Take the path apart. Raises ConvertError where it leads out of a repository."""
        try:
            return hub_place(str(self))
        except ValueError as error:
            raise ConvertError(str(error)) from None

    @property
    def commit(self) -> str:
        """Return the commit that is read, as 40 hexadecimal digits; asks for it the first time."""
        return HUB.listing(self.place).commit

    @property
    def name_today(self) -> str:
        """Name the repository as the Hub does now; a renamed one may be typed by its old name."""
        return HUB.listing(self.place).name

    @property
    def is_remote(self) -> bool:
        """Tell whether reading it fetches bytes: whether it is not in the library's cache."""
        return self.is_file() and isinstance(HUB.file(self), RemoteFile)

    def pin(self, noted: dict[str, str]) -> dict[str, str]:
        """Take the commit that is noted for the path's repository, or its revision's one now."""
        place = self.place
        commit = noted.get(place.repository)
        known = HUB.listings.get(place.repository)
        if not commit or known is None or known.commit != commit:
            commit = pinned_commit(place, commit)
        return {place.repository: commit}

    def revisions(self) -> dict[str, str]:
        """Tell the commit that is read: {path of the repository: commit}."""
        return {self.place.repository: self.commit}

    def at_version(self) -> str:
        """Write the path at the commit that is read, by the repository's name today."""
        at = self.place._replace(name=self.name_today, revision=self.commit)
        return f"{at.repository}/{at.path}".rstrip("/")

    def found(self) -> VirtualEntry | None:
        """Tell size and version of a file of the repository, or that there is a folder."""
        place = self.place
        listing = HUB.listing(place)
        if found := listing.files.get(place.path):
            told = hashlib.sha256(f"{listing.commit}/{place.path}".encode()).digest()
            # As a time it is some day in 1970, and so no file is older.
            return VirtualEntry(found.size, int.from_bytes(told[:6], "big"))
        return VirtualEntry(is_folder=True) if place.path in listing.folders else None

    def entry(self) -> VirtualEntry:
        """Tell what is at the path, as `found` does. Raises FileNotFoundError."""
        if found := self.found():
            return found
        path, listing = self.place.path, HUB.listing(self.place)
        begin = path[: path.rfind("/") + 1]
        beside = itertools.islice(listing.folders.get(begin[:-1], ()), MOST_COMPARED)
        hint = did_you_mean(path, (begin + name for name in beside))
        raise FileNotFoundError(2, f"no such file at commit {listing.commit[:7]}{hint}", str(self))

    def opened(self, size: int) -> io.RawIOBase:
        """Open the file, in the library's cache where it is there."""
        found = HUB.file(self)
        return (
            found.open("rb", buffering=0) if isinstance(found, Path) else HubFile(self, size, found)
        )

    def names(self) -> Iterable[str]:
        """List the names of files and folders in a folder of the repository."""
        place = self.place
        return HUB.listing(place).folders.get(place.path, [])

    def will_read(self, reads: list[Read]) -> None:
        """Have what is read next fetched ahead, except from the library's cache."""
        HUB.read_next(reads)
