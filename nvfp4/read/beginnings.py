"""Recognise by its first bytes what a file is, and in which encoding its text is.

Downloads often leave something else under the right name: a pointer, a web page, one line of an
error. Models, GGUFs, JSON, lists and logs are all looked at here, so that each reader tells of it
in the same words. Text that PowerShell 5.1 writes is UTF-16, which its byte order mark tells.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from nvfp4.errors import ConvertError

# So many bytes at a file's begin tell what it is; a Git LFS pointer has about 130 in all.
TELLING_BYTES = 512
# What Python calls UTF-8 that may begin with a byte order mark, as Notepad writes it.
UTF8_MARKED = "utf-8-sig"
# The byte order marks that text may begin with, and its encoding then. The mark of UTF-32 begins
# with one of UTF-16, and so comes first.
ENCODINGS = {
    codecs.BOM_UTF8: UTF8_MARKED,
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What a file is that version control left in the place of a large one.
POINTER = "pointer, which only stands for the file; download the file itself"
# How files begin that are downloaded or given in place of others, and what to call them.
FOREIGN_STARTS = {
    rb"version https?://[^\s]+/spec/|version http://git-media": f"a Git LFS {POINTER}",
    rb"# xet version ": f"a Git Xet {POINTER}",
    rb"[./\w]*/annex/objects/": f"a git-annex {POINTER}",
    rb"\0\x05\x16\x07": "what macOS keeps beside a file, named ._ and so on; give the file itself",
    rb"<": "a web page; download the file again",
    rb"(Entry not found|Repository not found|Invalid (username|credentials)|Access to model )": (
        "a download site's error message; download the file again, logged in if need be"
    ),
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP": "a picture; give another file here",
    rb"(?s).{4}ftyp|\x1a\x45\xdf\xa3": "a video; give another file here",
    rb"%PDF-": "a PDF; give another file here",
    rb'\{"error": ?"': "a download site's error message; download the file again",
}
# How models begin that are given where a text is expected. A safetensors file has eight bytes of a
# length, of which the upper ones are zero, and then JSON.
MODEL_STARTS = {rb"(?s).{3}\0{5}\{": "a safetensors file", rb"GGUF": "a GGUF"}


def refuse_models(path: Path, start: bytes) -> None:
    """Raise ConvertError for a model that is given where a text belongs; `start` is its begin."""
    for begin, what in MODEL_STARTS.items():
        if re.match(begin, start):
            raise ConvertError(f"{path}: is {what}, and no text; give another file here")


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise ConvertError, saying what it is, for a pointer, page or picture in another's place.

    start: its first TELLING_BYTES, or all of it. Blanks and a byte order mark before are passed
    over; what PowerShell 5.1 downloads into a file is in UTF-16.
    """
    start = start[:TELLING_BYTES]
    encoding = marked_encoding(start)
    if encoding not in ("", UTF8_MARKED):
        start = start.decode(encoding, "ignore").encode("utf-8", "ignore")
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for begin, what in FOREIGN_STARTS.items():
        if re.match(begin, start, re.IGNORECASE):
            raise ConvertError(f"{path}: is {what}")


def marked_encoding(start: bytes) -> str:
    """Name the encoding that a text's byte order mark tells, in which Python skips it; or ""."""
    marked = (encoding for mark, encoding in ENCODINGS.items() if start.startswith(mark))
    return next(marked, "")


def encoding_of(start: bytes) -> str:
    """Name the encoding of a text by how it begins: by its byte order mark, or else UTF-8.

    Raises ValueError, whose text ends a sentence, for UTF-16 without a mark: every other byte is
    zero then, as far as the text is ASCII. It is not read, as its order could only be guessed.
    """
    sample = start[:TELLING_BYTES]
    for high, low in ((sample[::2], sample[1::2]), (sample[1::2], sample[::2])):
        if not marked_encoding(start) and high and 2 * high.count(0) > len(high) and 0 not in low:
            raise ValueError("it is UTF-16 without a byte order mark; save it as UTF-8")
    return marked_encoding(start) or "utf-8"


def decode_text(raw: bytes) -> str:
    """Decode a whole text by its byte order mark, which is left out, or as UTF-8.

    Raises ValueError for a text that is in no such encoding.
    """
    return raw.decode(encoding_of(raw))
