"""Files written whole or not at all, and what an operating system refuses, told in one line."""

import errno
from pathlib import Path

import pytest

from nvfp4.errors import ConvertError
from nvfp4.files import (
    full_path,
    rename,
    translated,
    unfinished,
    write_bytes,
    write_text,
    write_unfinished,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(error: BaseException):
    def refuse(*_: object) -> None:
        raise error

    return refuse


def line_of(error: OSError, *told: str) -> str:
    with pytest.raises(ConvertError) as caught, translated(Path("o"), *told):
        raise error
    (line,) = caught.value.problems
    return line


def test_an_error_is_told_of_the_file_that_it_names():
    assert line_of(OSError(errno.EACCES, "Permission denied", "x")) == "x: Permission denied"
    assert line_of(OSError(errno.EACCES, "Permission denied")) == "o: Permission denied"
    assert line_of(FULL).startswith("o: No space left on device; make room")


def test_an_error_is_told_of_what_could_not_be_done():
    denied = OSError(errno.EACCES, "Permission denied", "x")
    assert line_of(denied, "cannot read the index") == "o: cannot read the index: Permission denied"
    assert line_of(FULL, "cannot write") == "o: cannot write: No space left on device"
    assert line_of(denied, "", "; close it") == "o: Permission denied; close it"


@pytest.mark.parametrize("told", [(), ("cannot write",)])
@pytest.mark.parametrize("of_windows", [False, True])
def test_a_file_too_large_for_fat32_is_told_what_to_do(told, of_windows):
    error = OSError(errno.EINVAL if of_windows else errno.EFBIG, "File too large", "o")
    error.winerror = 223 if of_windows else None
    line = line_of(error, *told)
    assert "File too large; FAT32 takes no file of 4 GiB" in line
    assert line.endswith("--output-sharded --max-shard-size 4GB")


def test_a_full_quota_asks_for_room_as_a_full_disk_does():
    line = line_of(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert line.startswith("o: Disk quota exceeded; make room")


def test_an_error_without_a_number_is_told_by_its_text():
    assert line_of(OSError("seek of closed file"), "cannot read") == (
        "o: cannot read: seek of closed file"
    )


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), translated(Path("o"), "cannot read"):
        _ = 1 / 0


def test_text_is_written_alike_on_every_system(tmp_path):
    write_text("é\n", tmp_path / "o")
    assert (tmp_path / "o").read_bytes() == "é\n".encode()
    assert [*tmp_path.iterdir()] == [tmp_path / "o"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_leaves_the_older_one(error, tmp_path, monkeypatch):
    out = tmp_path / "o"
    out.write_text("older")
    monkeypatch.setattr(Path, "replace", fail(error))
    with pytest.raises((ConvertError, KeyboardInterrupt)):
        write_bytes(b"newer", out)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]
    assert out.read_text() == "older"


def test_what_a_link_leads_to_stays(tmp_path):
    (tmp_path / "other").write_text("kept")
    unfinished(tmp_path / "o").symlink_to(tmp_path / "other")
    assert write_unfinished(b"new", tmp_path / "o").read_bytes() == b"new"
    assert (tmp_path / "other").read_text() == "kept"
    assert not (tmp_path / "o").exists()


def test_a_name_that_cannot_be_given_is_told_with_advice(tmp_path):
    with pytest.raises(ConvertError, match=r"o: No such file .*; is it open in another program\?"):
        rename(tmp_path / "missing", tmp_path / "o")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ConvertError, match="cannot write: No space left"):
        write_bytes(b"x", tmp_path / "out.csv")
    assert not [*tmp_path.iterdir()]


def test_a_path_is_shown_without_dots(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "c")
    assert full_path(tmp_path / "a" / ".." / "x") == tmp_path.resolve() / "x"
    assert full_path(tmp_path / "a" / "link" / ".." / "x") == tmp_path.resolve() / "b" / "x"
    assert full_path(tmp_path / "a" / "link") == tmp_path / "a" / "link"
    monkeypatch.chdir(tmp_path / "a")
    assert full_path(Path("../x")) == tmp_path.resolve() / "x"
