"""Recognise by its first bytes what a file is that lies in the place of another one.

Downloads often leave something else under the right name: a pointer, a web page, one line of an
error. Models, GGUFs, JSON, lists and logs are all looked at here, so that each reader tells of it
in the same words.
"""

from __future__ import annotations

import re
from pathlib import Path

from nvfp4.errors import ConvertError

# So many bytes at a file's begin tell what it is; a Git LFS pointer has about 130 in all.
TELLING_BYTES = 512
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What a file is that version control left in the place of a large one.
POINTER = "pointer, which only stands for the file; download the file itself"
# How files begin that are downloaded in place of others, and what to call them.
FOREIGN_STARTS = {
    rb"version https?://[^\s]+/spec/|version http://git-media": f"a Git LFS {POINTER}",
    rb"# xet version ": f"a Git Xet {POINTER}",
    rb"[./\w]*/annex/objects/": f"a git-annex {POINTER}",
    rb"<": "a web page; download the file again",
    rb"(Entry not found|Repository not found|Invalid (username|credentials)|Access to model )": (
        "a download site's error message; download the file again, logged in if need be"
    ),
    rb'\{"error": ?"': "a download site's error message; download the file again",
}


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise ConvertError, saying what it is, where a file is a pointer or page in another's place.

    start: its first TELLING_BYTES, or all of it. A mark of UTF-8 and blanks before are passed over.
    """
    start = start[:TELLING_BYTES].removeprefix(BYTE_ORDER_MARK).lstrip()
    for begin, what in FOREIGN_STARTS.items():
        if re.match(begin, start, re.IGNORECASE):
            raise ConvertError(f"{path}: is {what}")
