"""Read what people give for a path on the Hub by mistake: an address of its pages, a bare name."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from nvfp4.hub.path import HUB_NAME, hub_place

# What the name of a file that is looked for ends in, and no repository's.
FILE_SUFFIXES = (".safetensors", ".sft", ".gguf", ".json")
# An address of the Hub's own pages: [kind/]owner/repo, and the page's kind, revision and path.
HUB_ADDRESS = re.compile(
    r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/(?:(datasets|spaces)/)?([^/]+/[^/]+)"
    r"(?:/(?:blob|resolve|tree|raw)/([^/]+)(/.+?)?)?/?",
    re.IGNORECASE,
)


def hub_path_of(address: str) -> str:
    """Write an address of the Hub's pages as a path on it; "" for any other address.

    A slash in a revision is `%2F` in both; the default branch is not named.
    """
    found = HUB_ADDRESS.fullmatch(re.split(r"[?#]", address)[0])
    if not found:
        return ""
    kind, name, revision, path = found.groups("")
    at = f"@{revision}" if revision not in ("", "main") else ""
    text = f"hf://{kind}/" if kind else "hf://"
    text += f"{name}{at}{unquote(path)}"
    try:
        hub_place(text)
    except ValueError:
        return ""
    return text


def may_be_repository(path: Path) -> bool:
    """Tell whether a path that names no file here is written as OWNER/REPO on the Hub is.

    A folder of OWNER's name makes it a misspelt path.
    """
    parts = path.as_posix().split("/")
    names = len(parts) == 2 and all(map(HUB_NAME.fullmatch, parts))
    is_file = path.suffix.lower() in FILE_SUFFIXES
    return names and not is_file and not path.exists() and not path.parent.exists()
