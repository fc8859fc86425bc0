"""Read calibration logs, plain or compressed: a line for each call.

A line has format, mode, layer, scale, amax and shape, with tabs between them; older logs lack the
format. Each layer's numbers go to its `Series`. Logs of long recordings have millions of lines, so
that memory is bounded and a line costs little: what a line begins with is looked at once.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4.errors import EXAMPLES, ConvertError, one_line, printable
from nvfp4.files import translated
from nvfp4.logs.records import LOG_DEFAULTS, LineChoice, Log
from nvfp4.logs.series import LeftOut, Series, ZeroInputError
from nvfp4.model import bare, unwrapped
from nvfp4.names import is_layer_name
from nvfp4.progress import progress_bar
from nvfp4.read.beginnings import (
    TELLING_BYTES,
    UTF8_MARKED,
    encoding_of,
    refuse_foreign,
    refuse_models,
)

# What unpacks a log, by the suffix of its file; any other log is plain text.
OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# Bytes of a log that are read at once: some thousand lines.
LOG_CHUNK = 1 << 20
# Bytes of a line at most: a file without line ends would otherwise fill the memory.
LONGEST_LINE = 1 << 16
# Characters of a malformed line that are shown.
SHOWN_TEXT = 80
# Layers of a log at most, as each costs some kilobytes; the largest models have some thousand.
MOST_LAYERS = 20_000
# A file whose first lines are malformed, so many and without exception, is no log.
MOST_MALFORMED = 100_000


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading a log into a ConvertError of one line.

    path: the log, for the message. Besides OSError these are the errors of damaged archives: they
    have no error number, so that each kind is named here, and the message advises to unpack what is
    left.
    """
    try:
        with translated(path, "cannot read the log"):
            yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        problem = f"the compressed log is damaged or cut off: {error}; unpack what is left of it"
        raise ConvertError(f"{path}: {problem}") from error
    except ValueError as error:
        raise ConvertError(f"{path}: cannot read the log: {error}") from error


def utf8_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield a log's text in UTF-8, LOG_CHUNK bytes of the file at a time.

    A log that begins with a byte order mark of UTF-16, as PowerShell 5.1 writes, is brought to
    UTF-8. Raises ValueError for UTF-16 without a mark, or with damage; other bytes pass through.
    """
    chunk = file.read(LOG_CHUNK)
    encoding = encoding_of(chunk)
    decoder = codecs.getincrementaldecoder(encoding)()
    while chunk:
        yield chunk if encoding in ("utf-8", UTF8_MARKED) else decoder.decode(chunk).encode()
        chunk = file.read(LOG_CHUNK)


def line_feeds(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Bring all line ends of a text to line feeds: Windows', and lone carriage returns.

    These end the lines of old Macs, and of what a terminal wrote over. chunks: a text in UTF-8, cut
    anywhere.
    """
    held = b""
    for chunk in chunks:
        text = held + chunk
        # A carriage return at the end of a chunk may have its line feed in the next one.
        held = b"\r" if text.endswith(b"\r") else b""
        yield text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if held:
        yield b"\n"


def read_lines(log: Log) -> Iterator[list[bytes]]:
    """Yield the complete lines of a log, some thousand at a time, without their ends.

    log: what is read and where it is noted, in `log.incomplete`, that the last line has no end;
    that line is not yielded. Progress is shown, in bytes of the file as it lies on the disk. Raises
    ConvertError for what cannot be read, for a pointer or a web page in the log's place, and for a
    line longer than LONGEST_LINE.
    """
    rest = b""
    with readable(log.path), log.path.open("rb") as raw:
        refuse_foreign(log.path, raw.peek(TELLING_BYTES))
        refuse_models(log.path, raw.peek(TELLING_BYTES))
        opener: Callable = OPENERS.get(log.path.suffix.lower(), lambda file, _: file)
        file: BinaryIO = opener(raw, "rb")
        name, nbytes = printable(log.path.name), log.path.stat().st_size
        with progress_bar(name, nbytes) as bar:
            for chunk in line_feeds(utf8_chunks(file)):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    problem = f"is no log: line {log.lines + len(lines) + 1} does not end"
                    raise ConvertError(f"{log.path}: {problem}")
                yield lines
                # Bytes of the file, packed or not: how many are unpacked is not known before.
                bar.done = raw.tell()
    log.incomplete = bool(rest)


def read_log(path: Path, choice: LineChoice, found: dict[str, Series]) -> Log:
    """Add the calls of a log to what was found in others before it, and count its lines.

    choice: which lines count. found: {bare layer: its calls so far}, which grows.

    Returns the Log, with counts of lines that were left out, malformed or of zero inputs, and the
    first malformed ones as text. Raises ConvertError for a file that is no log, has too many
    layers, or has no line that counts.
    """
    log, known = Log(path=path), {}
    for lines in read_lines(log):
        for number, line in enumerate(lines, start=log.lines + 1):
            # From the right, as older logs lack the first column and shapes have no tab.
            columns = line.rsplit(b"\t", 3)
            try:
                # All lines of a layer begin with the same bytes: these are looked at once.
                target = known.get(columns[0])
                if target is None:
                    target = known[columns[0]] = open_target(columns, log, choice, found)
                target.add(columns[1], columns[2])
            except ZeroInputError:
                log.zeros += 1
            except ValueError as error:
                log.malformed += 1
                if log.malformed <= EXAMPLES:
                    log.shown.append(f"{path} line {number}: {error}: {excerpt(line)}")
                # Every line so far was malformed, and no layer was found: the file is something
                # else.
                elif log.malformed == number > MOST_MALFORMED:
                    problem = f"is no log: its first {number:,} lines are malformed"
                    raise ConvertError(f"{path}: {problem}") from error
        log.lines += len(lines)
    if not log.used:
        raise ConvertError(f"{path}: {nothing_usable(log, choice)}")
    return log


def excerpt(line: bytes) -> str:
    """Show the beginning of a malformed line as one printable line, tabs as \\t.

    line: its bytes without the end. What is no UTF-8 is shown by replacement characters; text
    beyond SHOWN_TEXT characters is cut off with "...".
    """
    text = line[: 4 * SHOWN_TEXT].decode("utf-8", "replace")
    cut = "..." if len(text) > SHOWN_TEXT else ""
    return one_line(text[:SHOWN_TEXT].replace("\t", "\\t")) + cut


def open_target(
    columns: list[bytes], log: Log, choice: LineChoice, found: dict[str, Series]
) -> Series | LeftOut:
    """Find where the lines of one format, mode and layer go; a new layer is added to `found`.

    columns: of the first such line, split from its end: format, mode and layer in one, then scale,
    amax and shape, all bytes. choice: which lines count.

    Returns the layer's Series, or a LeftOut that only counts. Raises ValueError for a malformed
    line, and ConvertError for a log of more than MOST_LAYERS layers.
    """
    if any(b"\0" in column for column in columns):
        raise ValueError("it has zero bytes, as UTF-16 has, which PowerShell 5.1 appends by >>")
    # Where logs were joined, marks stand at the beginning of lines.
    head = columns[0].removeprefix(codecs.BOM_UTF8)
    # A UnicodeDecodeError is a ValueError: a name that is no UTF-8 makes a malformed line.
    words = head.decode().split("\t")
    if len(columns) != 4 or len(words) not in (2, 3):
        raise ValueError(f"{len(words) + len(columns) - 1} columns instead of 6, or 5")
    if not columns[3].lstrip().startswith((b"(", b"[", b"torch.Size")):
        raise ValueError("its last column is no shape")
    kind, mode, layer = words if len(words) == 3 else (LOG_DEFAULTS["format"], *words)
    if not all(map(is_layer_name, (kind, mode, layer))):
        raise ValueError("a name is empty or has a space, a # or a control character")
    # The numbers are tried before the name is taken: a damaged line's would become a layer.
    float(columns[1]), float(columns[2])
    if not choice.takes(kind, mode):
        return LeftOut(counts=log.left_out, kind=(kind, mode))
    layer = bare(unwrapped(layer))
    series = found.get(layer) or found.setdefault(layer, Series(choice))
    if len(found) > MOST_LAYERS:
        raise ConvertError(f"{log.path}: is of no model: it has more than {MOST_LAYERS:,} layers")
    series.kinds.add((kind, mode))
    return series


def nothing_usable(log: Log, choice: LineChoice) -> str:
    """Tell why a log gave nothing: which lines were wanted, and what it has instead.

    It is the sentence after the file's name, with the advice to choose another format or mode where
    that is what was left out.
    """
    if log.malformed and log.malformed == log.lines:
        first = log.shown[0].removeprefix(f"{log.path} ")
        advice = "give the recorder's NAME.log"
        if "{" in first:
            advice += ", or --summary FILE for a summary in JSON"
        return f"is no log: no line of it has a layer's scale, as {first}; {advice}"
    wanted = f"no line of format {choice.format} and mode {choice.mode}"
    has = [
        f"{count:,} of {kind} {mode}" for (kind, mode), count in log.left_out.most_common(EXAMPLES)
    ]
    if log.malformed:
        has.append(f"{log.malformed:,} malformed, as {log.shown[0].removeprefix(f'{log.path} ')}")
    if log.incomplete:
        has.append("a last line without its end")
    advice = "; give --format and --mode" if log.left_out else ""
    return f"{wanted}; it has {', '.join(has) or 'no line at all'}{advice}"
