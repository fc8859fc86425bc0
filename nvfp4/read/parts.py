"""Tell by its name, or by an index beside it, that a file is only a part of a model.

Large models are published in several files. Each of these opens like a whole model, so that what
was made of one alone would look right and be half a model. Shards of safetensors are refused here;
a GGUF's other parts are found by `sibling`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nvfp4.errors import ConvertError
from nvfp4.read.checkpoint import INDEX_NAME, numbered, read_index


def sibling(path: Path, number: int) -> Path:
    """Name the part of this number beside `path`, whose own name has to be `numbered`."""
    begin, end = numbered(path).span(1)
    return path.with_name(f"{path.name[:begin]}{number:0{end - begin}}{path.name[end:]}")


def index_of(path: Path) -> Path | None:
    """Find an index beside a file that lists it as one shard of several; None without any."""
    with contextlib.suppress(OSError):
        for other in sorted(path.parent.iterdir()):
            # An index that cannot be read lists nothing: the file is whole for all that it says.
            with contextlib.suppress(ConvertError):
                if INDEX_NAME.fullmatch(other.name) and path.name in (shards := read_index(other)):
                    return other if len(shards) > 1 else None
    return None


def lone_shard(path: Path) -> str:
    """Say what to give instead of one shard of several; "" for anything else.

    A shard is told by "N of M" in its name, or by an index beside it that lists it.
    """
    if path.is_dir() or path.suffix.lower() == ".json":
        return ""
    index = index_of(path)
    if not (index or numbered(path)):
        return ""
    named = f" ({index.name})" if index else ""
    return f"give the *.safetensors.index.json beside it{named}, or the folder"


def refuse_lone_shard(path: Path) -> None:
    """Raise ConvertError for one shard of several, which would pass for a whole model."""
    if instead := lone_shard(path):
        raise ConvertError(f"{path}: is one shard of several; {instead}")
