"""Hold what a stand-in of the Hugging Face Hub serves: repositories, commits, files, who may read.

Standard library only, Python 3.10.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

# Files with these endings lie in the Hub's large storage, behind an address of another host.
LARGE = (".safetensors", ".gguf", ".bin", ".pt", ".sft")


@dataclasses.dataclass(frozen=True)
class Blob:
    """The content of one file: bytes in memory, or a file on the disk, with its hashes."""

    content: bytes | Path
    size: int
    sha256: str
    large: bool

    @property
    def oid(self) -> str:
        """What git calls the file: of a large one, the name of its pointer."""
        return hashlib.sha1(f"blob {self.size}\0{self.sha256}".encode()).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def described(self, path: str) -> dict:
        """Describe the file as the Hub's listings do."""
        found = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.large:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return found


def blob_of(path: str, content: bytes | Path) -> Blob:
    """Make the blob of a file called `path` in its repository."""
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
        size = len(content)
    else:
        size = content.stat().st_size
        with content.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return Blob(content, size, digest.hexdigest(), path.endswith(LARGE))


@dataclasses.dataclass
class Repo:
    """A repository: its commits, the branches and tags that point to them, and who may read it."""

    name: str
    # Each commit's whole tree: path → blob.
    commits: dict[str, dict[str, Blob]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)
    gated: bool = False
    private: bool = False
    disabled: bool = False

    def commit(self, files: dict[str, Blob], branch: str = "main") -> str:
        """Put files on top of a branch, or make the branch; return the new commit."""
        parent = self.refs.get(branch, "")
        tree = dict(sorted({**self.commits.get(parent, {}), **files}.items()))
        listed = json.dumps([parent, [(path, blob.sha256) for path, blob in tree.items()]])
        name = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[name], self.refs[branch] = tree, name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a whole commit's name stands for."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclasses.dataclass
class Store:
    """All repositories, the tokens that are known, and old names of repositories."""

    repos: dict[str, Repo] = dataclasses.field(default_factory=dict)
    # Each token with the gated and private repositories that it opens.
    tokens: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    large: dict[str, Blob] = dataclasses.field(default_factory=dict)

    def put(self, repo: str, files: dict | Path, branch: str = "main") -> str:
        """Commit files to a repository, which is made if need be; return the commit.

        `files` maps paths to bytes or to files on the disk, or is a folder whose files are taken.
        """
        if isinstance(files, Path):
            inside = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path for path in inside}
        blobs = {path: blob_of(path, content) for path, content in files.items()}
        self.large |= {blob.sha256: blob for blob in blobs.values() if blob.large}
        return self.repos.setdefault(repo, Repo(repo)).commit(blobs, branch)

    def swap(self, repo: str, path: str, content: bytes) -> None:
        """Change a file without a new commit, as a careless mirror of the Hub may do."""
        blob = blob_of(path, content)
        self.large[blob.sha256] = blob
        for tree in self.repos[repo].commits.values():
            tree[path] = blob

    def opens(self, token: str | None, repo: Repo) -> bool:
        return token is not None and repo.name in self.tokens.get(token, ())


def tree_of(files: dict[str, Blob], folder: str, recursive: bool) -> list[dict] | None:
    """List a folder of a commit as the Hub does; None where nothing is of that name."""
    start, entries = f"{folder}/" if folder else "", {}
    for path, blob in files.items():
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts)):
            name = start + "/".join(parts[:depth])
            if recursive or depth == 1:
                oid = hashlib.sha1(name.encode()).hexdigest()
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": oid}
        if recursive or len(parts) == 1:
            entries[path] = blob.described(path)
    return list(entries.values()) or None
