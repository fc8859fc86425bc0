"""Remember which files nodes have read and made, so that what changed since is noticed.

ComfyUI keeps what a node gave as long as its inputs are called the same: a file that was replaced
under its name, or deleted, is the same to it. And it asks for a node's fingerprint before any node
runs, when nothing is known of what links bring. So a node notes here which files it went by, and
its fingerprint counts how often these were found changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

# Part of all fingerprints: what was noted is gone with the process, and packs may keep ComfyUI's
# results for longer.
SESSION = time.time_ns()
# {node: its id and its own inputs, as its fingerprint was asked for last}
ASKED: dict[str, tuple] = {}
# {id and inputs: {(file, what is looked at): what that was}} since the node ran with these inputs.
FILES: dict[tuple, dict[tuple[Path, Callable], object]] = {}
# {id and inputs: how often a file was found changed}; ComfyUI may keep results of any of them.
CHANGES: dict[tuple, int] = {}


def status(path: Path) -> tuple[int, int]:
    """Tell a file by its size and its time; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def changes(node_id: str, values: dict[str, object]) -> tuple[int, str, int]:
    """Make a node's fingerprint: session, id, and how often files of it were found changed.

    values: its inputs; those that are linked are None. ComfyUI gives what one node made to another
    one of the same inputs, whose files are not known here; with the id it does not.
    """
    own = sorted((name, str(value)) for name, value in values.items() if value is not None)
    key = ASKED[node_id] = (node_id, *own)
    if any(look(path) != was for (path, look), was in FILES.get(key, {}).items()):
        del FILES[key]
        CHANGES[key] = CHANGES.get(key, 0) + 1
    return SESSION, node_id, CHANGES.get(key, 0)


def note_files(node_id: str, paths: Iterable[PurePath], look: Callable = status) -> None:
    """Note files that a node went by in this run: a change of what `look` tells makes it run again.

    What is no file on a disk is passed over.
    """
    files = FILES.setdefault(ASKED.get(node_id, (node_id,)), {})
    files |= {(path, look): look(path) for path in paths if isinstance(path, Path)}


def digest_of(task: object, facts: str) -> str:
    """Make a digest of what a conversion reads: paths, sizes and times of files, and other facts.

    It is kept in place of the paths, as who may see ComfyUI's output need not know its folders.
    """
    paths = [path for path in task.inputs if isinstance(path, Path)]
    told = [[str(path.resolve()), *status(path)] for path in paths]
    return hashlib.sha256(json.dumps([told, facts]).encode()).hexdigest()


def is_made_of(output: Path, digest: str, record: Path) -> bool:
    """Tell whether a file is as it was when it was made of what has this digest."""
    try:
        noted = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return noted == {"output": [*status(output)], "made_of": digest}


def note_made(output: Path, digest: str, record: Path) -> None:
    """Note beside the report of a new file what it was made of."""
    noted = {"output": [*status(output)], "made_of": digest}
    record.write_text(json.dumps(noted), "utf-8")
