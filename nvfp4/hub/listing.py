"""What a repository on the Hub holds, read from an answer that is as untrusted as any file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from nvfp4.errors import EXCERPT, ConvertError

# The names that the Hub has for owners, repositories and, less strictly, revisions.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
# Revisions with slashes in them, which the library knows as well.
REFS = re.compile(r"(refs/(?:pr/\d+|convert/[\w.-]+))(?:/(.*))?", re.DOTALL)
# The commits of Git, and the hashes of contents: of Git for small files, of Git LFS for large ones.
COMMIT = re.compile("[0-9a-f]{40}")
CONTENT_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
# What no part of a path in a repository may be or hold: it could lead to another file on a disk.
NO_PART = re.compile(r"\.{0,2}|.*[\\\x00-\x1f\x7f-\x9f\ud800-\udfff].*", re.DOTALL)
# Sizes are told to the system in signed integers of so many bits.
SIZE_BITS = 63


class HubPlace(NamedTuple):
    """Hold the parts of a path on the Hub.

    kind: "model", "dataset" or "space"; name: "owner/repo"; revision: as given, None for the
    default branch; path: in the repository, "" for its root.
    """

    kind: str
    name: str
    revision: str | None
    path: str

    @property
    def repository(self) -> str:
        """Write the path of the repository, revision included, as it may be typed."""
        kind = "" if self.kind == "model" else f"{self.kind}s/"
        revision = self.revision or ""
        if not REFS.fullmatch(revision):
            revision = revision.replace("/", "%2F")
        return f"hf://{kind}{self.name}{'@' if revision else ''}{revision}"


class ListedFile(NamedTuple):
    """Tell a file's size in bytes, and the name of its content: a hash, "" where none is known."""

    size: int
    etag: str = ""


@dataclass(frozen=True)
class RemoteListing:
    """Hold what a repository is: its name today, its commit, {path: its file}."""

    name: str
    commit: str
    files: Mapping[str, ListedFile]

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """List what is in each folder, sorted by name: {path of the folder, "" the root: names}."""
        found: dict[str, set[str]] = {"": set()}
        for path in self.files:
            while path:
                folder, _, name = path.rpartition("/")
                is_known = folder in found
                found.setdefault(folder, set()).add(name)
                path = "" if is_known else folder
        return {folder: sorted(names) for folder, names in found.items()}


def checked_listing(shown: str, name: Any, commit: Any, siblings: Iterable) -> RemoteListing:
    """Make a listing of the parts of the Hub's answer, none of which need be what it should be.

    shown: what messages begin with; siblings: objects with rfilename, size, blob_id and lfs.
    Raises ConvertError for the first part that is something else.
    """
    broken = f"{shown}: the Hub's answer is broken"
    owner, _, last = name.partition("/") if isinstance(name, str) else ("", "", "")
    if not HUB_NAME.fullmatch(owner) or not HUB_NAME.fullmatch(last):
        raise ConvertError(f"{broken}: the repository's name is {told_value(name)}")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ConvertError(f"{broken}: the commit is {told_value(commit)}")
    files = {}
    for one in siblings:
        path = one.rfilename
        if not isinstance(path, str) or any(map(NO_PART.fullmatch, path.split("/"))):
            raise ConvertError(f"{broken}: it lists a file by the name {told_value(path)}")
        files[path] = listed_file(f"{broken}: {path}", one)
    return RemoteListing(name, commit, files)


def listed_file(broken: str, sibling: Any) -> ListedFile:
    """Read a file's size and hash from a listing; of Git LFS they are not those of the pointer.

    broken: how a message on what they cannot be begins, a ConvertError.
    """
    lfs = sibling.lfs or {}
    # A dict, or an object of its own in some versions.
    lfs = lfs if isinstance(lfs, Mapping) else vars(lfs)
    size, etag = lfs.get("size", sibling.size), lfs.get("sha256") or sibling.blob_id or ""
    if type(size) is not int or size < 0 or size.bit_length() > SIZE_BITS:
        raise ConvertError(f"{broken} has the size {told_value(size)}")
    if etag and not (isinstance(etag, str) and CONTENT_HASH.fullmatch(etag)):
        raise ConvertError(f"{broken} has the hash {told_value(etag)}")
    return ListedFile(size, etag)


def told_value(value: Any) -> str:
    """Write the beginning of what is something else than it should be, without control bytes."""
    return ascii(value)[:EXCERPT]
