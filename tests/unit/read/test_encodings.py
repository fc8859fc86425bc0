"""Text as Windows leaves it: read by its byte order mark, or named where it has none."""

import bz2
import gzip
import json

import pytest

from nvfp4.errors import ConvertError
from nvfp4.guides.layer_config import read_layer_list
from nvfp4.logs.reading import read_log
from nvfp4.logs.records import LineChoice
from nvfp4.read.json_files import load_json

CHOICE = LineChoice(format="nvfp4", mode="dynamic", steps=0, passes=1)
LINE = "nvfp4\tdynamic\tblocks.{}.größe\t0.01\t26.88\t(1, 32)\n"
LOG = "".join(LINE.format(number % 7) for number in range(70))
LIST = "blocks.2.ffn.0.weight  # größer\n\nblocks.3.ffn.2\n"
MARKED = {
    "utf-8-sig": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-32": "utf-32",
    "big-endian": "utf-16-be",
    "utf-8": "utf-8",
}


def encoded(text: str, encoding: str) -> bytes:
    mark = "\ufeff" if encoding == "big-endian" else ""
    return (mark + text.replace("\n", "\r\n")).encode(MARKED.get(encoding, encoding))


@pytest.mark.parametrize("encoding", MARKED)
def test_a_log_is_read_by_its_mark(tmp_path, encoding):
    for name, packed in {"f.log": bytes, "f.log.gz": gzip.compress, "f.bz2": bz2.compress}.items():
        path, found = tmp_path / name, {}
        path.write_bytes(packed(encoded(LOG, encoding)))
        log = read_log(path, CHOICE, found)
        assert (log.used, log.malformed) == (70, 0)
        assert set(found) == {f"blocks.{number}.größe" for number in range(7)}


def test_a_long_log_of_utf_16_is_read_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("nvfp4.logs.reading.LOG_CHUNK", 1001)
    (tmp_path / "f.log").write_bytes(LOG.encode("utf-16"))
    assert read_log(tmp_path / "f.log", CHOICE, {}).used == 70


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_log_or_list_without_its_mark_is_named(tmp_path, encoding):
    path = tmp_path / "f.log"
    path.write_bytes(LOG.encode(encoding))
    with pytest.raises(ConvertError, match="is UTF-16 without a byte order mark; save it as UTF-8"):
        read_log(path, CHOICE, {})
    path.write_bytes(LIST.encode(encoding))
    with pytest.raises(ConvertError, match="is UTF-16 without a byte order mark; save it as UTF-8"):
        read_layer_list(path)


def test_joined_logs_have_marks_between(tmp_path):
    path = tmp_path / "f.log"
    for text in (LOG.encode() + LOG.encode("utf-8-sig") * 2, LOG.encode("utf-16") * 3):
        path.write_bytes(text)
        found = {}
        log = read_log(path, CHOICE, found)
        assert (log.used, log.malformed, len(found)) == (210, 0, 7)


def test_what_powershell_appended_is_counted_and_named(tmp_path):
    path = tmp_path / "f.log"
    path.write_bytes(LOG.encode() + LOG.encode("utf-16-le"))
    log = read_log(path, CHOICE, {})
    assert log.used == 70
    assert log.malformed > 0
    assert "it has zero bytes, as UTF-16 has, which PowerShell 5.1 appends by >>" in log.shown[0]


def test_utf_16_that_is_damaged_is_one_error(tmp_path):
    path = tmp_path / "f.log"
    path.write_bytes(LOG.encode("utf-16") + b"\x00\xd8\x00\xd8" + LOG.encode("utf-16-le"))
    with pytest.raises(ConvertError, match="cannot read the log: 'utf-16"):
        read_log(path, CHOICE, {})


@pytest.mark.parametrize("encoding", MARKED)
def test_a_list_and_json_are_read_by_their_mark(tmp_path, encoding):
    path = tmp_path / "f"
    path.write_bytes(encoded(LIST, encoding))
    assert read_layer_list(path) == ("blocks.2.ffn.0", "blocks.3.ffn.2")
    text = json.dumps({"größe": 1}, ensure_ascii=False, indent=1)
    path.write_bytes(encoded(text, encoding))
    assert load_json(path, "summary") == {"größe": 1}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_json_is_read_without_a_mark_as_well(tmp_path, encoding):
    path = tmp_path / "f.json"
    path.write_bytes('{"a": 1}'.encode(encoding))
    assert load_json(path, "summary") == {"a": 1}
