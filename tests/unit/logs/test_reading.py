"""Lines of logs of any kind: read, left out and counted, or malformed."""

import bz2
import gzip
import lzma

import pytest

from nvfp4.errors import EXAMPLES
from nvfp4.logs import reading
from nvfp4.logs.reading import LONGEST_LINE
from support.logs import error_of, line, log_of, rows_of


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nvfp4\tdynamic\tx\t0.1\t2688\n", "its last column is no shape"),
        ("nvfp4\tdynamic\n", "2 columns instead of 6, or 5"),
        ("\n", "1 columns instead of 6, or 5"),
        (line().replace("\t(", "\t7\t("), "7 columns instead of 6, or 5"),
        (line(layer=""), "a name is empty or has a space, a # or a control character"),
        (line(layer="a\x1b[31m"), "a name is empty or has a space, a # or a control character"),
        (line(layer="a#b"), "a name is empty or has a space, a # or a control character"),
        (line(amax=-1), "scale and amax must be positive and finite"),
        (line(amax=float("nan")), "scale and amax must be positive and finite"),
        (line(amax=float("inf")), "scale and amax must be positive and finite"),
        (line().replace("2.688", "2,688"), "could not convert string to float"),
        (line("new").replace("2.688", "2,688"), "could not convert string to float"),
    ],
)
def test_malformed_lines_are_counted_and_shown(tmp_path, capsys, bad, reason):
    log = log_of(tmp_path, line(), bad, line(), bad, bad, bad)
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert f"{log}: 6 lines, 2 used" in text
    assert "warning: " in text
    assert "left out: 4 malformed" in text
    assert f"{log} line 2: {reason}" in text
    assert text.count(reason) == EXAMPLES
    assert "\x1b" not in text
    assert {name: row["count"] for name, row in rows.items()} == {"blocks.2.ffn.0": 2}


def test_names_that_are_no_utf_8_are_malformed(tmp_path, capsys):
    log = log_of(tmp_path, line())
    log.write_bytes(log.read_bytes() + line(layer="?").encode().replace(b"?", b"\xff"))
    assert "left out: 1 malformed" in rows_of(tmp_path, "--input", log, capsys=capsys)[2]


def test_an_incomplete_last_line_is_not_used_and_said_so(tmp_path, capsys):
    log = log_of(tmp_path, line(), line()[:-6])
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert "the last line, which has no end: is the log still being written?" in text
    assert rows["blocks.2.ffn.0"]["count"] == 1


def test_old_logs_windows_line_ends_marks_and_prefixes(tmp_path, capsys):
    prefixed = line(layer="model.diffusion_model.blocks.2.ffn.0")
    one = log_of(tmp_path, "\ufeff", prefixed.replace("\n", "\r\n"))
    two = log_of(tmp_path, line().removeprefix("nvfp4\t"), name="old.tsv")
    _, rows, text = rows_of(tmp_path, "--input", one, two, capsys=capsys)
    assert {name: row["count"] for name, row in rows.items()} == {"blocks.2.ffn.0": 2}
    assert "left out" not in text


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_lines_may_end_in_any_way_wherever_the_file_is_cut(
    tmp_path, capsys, monkeypatch, end, chunk
):
    monkeypatch.setattr(reading, "LOG_CHUNK", chunk)
    lines = [line(amax=1 + number) for number in range(9)]
    log = log_of(tmp_path, *(text.replace("\n", end) for text in lines))
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert rows["blocks.2.ffn.0"]["count"] == 9
    assert rows["blocks.2.ffn.0"]["amax_max"] == 9
    assert "9 lines, 9 used" in text
    assert "left out" not in text


def test_carriage_returns_of_utf_16_and_of_a_terminal(tmp_path, capsys):
    log = tmp_path / "calls.tsv"
    log.write_bytes(("\ufeff" + line().replace("\n", "\r") * 3).encode("utf-16-le"))
    assert rows_of(tmp_path, "--input", log, capsys=capsys)[1]["blocks.2.ffn.0"]["count"] == 3
    log.write_bytes(f"sampling 50 %\r{line()}".encode())
    assert rows_of(tmp_path, "--input", log, capsys=capsys)[1]["blocks.2.ffn.0"]["count"] == 1


def test_an_incomplete_last_line_after_a_carriage_return(tmp_path, capsys):
    log = log_of(tmp_path, line().replace("\n", "\r"), line()[:-6])
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert "the last line, which has no end" in text
    assert rows["blocks.2.ffn.0"]["count"] == 1


def test_other_formats_and_modes_are_left_out_and_counted(tmp_path, capsys):
    log = log_of(tmp_path, line(), line(kind="fp8"), line(mode="static"), line(kind="fp8"))
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert rows["blocks.2.ffn.0"]["count"] == 1
    assert "left out: 2 of format fp8, mode dynamic" in text
    assert "left out: 1 of format nvfp4, mode static" in text
    every = ("--format", "all", "--mode", "all")
    data, rows, text = rows_of(tmp_path, "--input", log, *every, capsys=capsys)
    assert (data["format"], data["mode"]) == ("all", "all")
    assert rows["blocks.2.ffn.0"]["count"] == 4
    assert "warning: 1 layer has lines of several formats or modes, taken together" in text


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((), "it has no line at all"),
        ((line(kind="fp8"), line(mode="x")), "1 of fp8 dynamic, 1 of nvfp4 x; give --format and"),
        (
            ("hello\n", line(kind="fp8")),
            "1 of fp8 dynamic, 1 malformed, as line 1: 1 columns instead of 6, or 5: hello",
        ),
        ((line()[:-1],), "a last line without its end"),
    ],
)
def test_a_log_without_a_usable_line_says_what_it_has(tmp_path, capsys, lines, found):
    error = error_of("--input", log_of(tmp_path, *lines), capsys=capsys)
    assert "no line of format nvfp4 and mode dynamic; it has" in error
    assert found in error


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, capsys):
    log = log_of(tmp_path, line(), "x" * (LONGEST_LINE + 1))
    assert "is no log: line 2 does not end" in error_of("--input", log, capsys=capsys)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".XZ", lzma.compress), (".bz2", bz2.compress)]
)
def test_compressed_logs_and_damaged_ones(tmp_path, capsys, suffix, compress):
    text = "".join(line(amax=1 + index / 7) for index in range(5000)).encode()
    log = tmp_path / f"calls.tsv{suffix}"
    log.write_bytes(compress(text))
    assert rows_of(tmp_path, "--input", log, capsys=capsys)[1]["blocks.2.ffn.0"]["count"] == 5000
    for damaged in (compress(text)[:-20], compress(text)[:200] + b"??" * 900, b"no archive"):
        log.write_bytes(damaged)
        assert f"error: {log}: " in error_of("--input", log, capsys=capsys)


def test_calls_with_nothing_but_zeros_are_no_malformed_lines(tmp_path, capsys):
    log = log_of(tmp_path, line(), line(amax=0), line())
    _, rows, text = rows_of(tmp_path, "--input", log, capsys=capsys)
    assert "left out: 1 calls whose input was all zeros" in text
    assert "malformed" not in text
    assert len(rows) == 1


@pytest.mark.parametrize(("text", "end"), [("hello\n", ".log\n"), ("{\n", "in JSON\n")])
def test_a_file_of_nothing_but_malformed_lines_is_no_log(tmp_path, capsys, text, end):
    error = error_of("--input", log_of(tmp_path, text), capsys=capsys)
    assert "is no log: no line of it has a layer's scale, as line 1: 1 columns" in error
    assert error.endswith(end)
