"""The command line of the analysis: usage, files, help."""

import re
import subprocess
import sys

import pytest

from nvfp4.logs.command import LOGS_COMMAND_LINE, LOGS_DESCRIPTION
from nvfp4.logs.entry import analyze_log
from nvfp4.logs.text import render_trade
from support.logs import SHIPPED, error_of, line, log_of, run
from support.paths import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --input LOG or --summary FILE, and not both"),
        (("--input", "x", "--summary", SHIPPED), "give --input LOG or --summary FILE"),
        (("--summary", SHIPPED, "--mode", "all"), "--mode needs --input"),
        (("--summary", SHIPPED, "--steps", "3"), "--steps needs --input"),
        (("--input", "x", "--cfg-passes", "2"), "--cfg-passes needs --steps"),
        (("--input", "x", "--step-percentile", "99"), "--step-percentile needs --steps"),
        (("--summary", SHIPPED, "--step-percentile", "99"), "--step-percentile needs --steps"),
        (("--input", "x", "--steps", "2", "--step-percentile", "nan"), "are from 0 to 100"),
        (("--input", "x", "--steps", "2", "--step-percentile", "9,9"), "is no number"),
        (("--input", "x", "--rel-rmse-threshold", "1"), "-threshold needs --recording"),
        (("--input", "x", "--sensitive-layers", "l"), "--sensitive-layers needs --cv-threshold"),
        (("--input", "x", "--steps", "0"), "0 is not a positive whole number"),
        (("--input", "x", "--cv-threshold", "nan"), "nan is not a number to compare with"),
        (("--input", "x", "--percentiles", "101"), "percentiles are from 0 to 100"),
        (("--input", "x", "--percentiles", "nan"), "percentiles are from 0 to 100"),
        (("--input", "x", "--percentiles", "99,99.000001"), "equal in six digits"),
        (("--input", "x", "--percent", "9"), "unrecognized arguments: --percent 9"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        analyze_log([*map(str, arguments)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_files_are_checked_before_the_reading(tmp_path, capsys):
    log = log_of(tmp_path, line())
    assert "no such file" in error_of("--input", log, tmp_path / "x", capsys=capsys)
    assert "given twice" in error_of("--input", log, log, capsys=capsys)
    assert "given twice" in error_of("--input", log, "--csv", log, capsys=capsys)
    assert "no such folder" in error_of("--input", log, "--csv", tmp_path / "n/o", capsys=capsys)
    assert "is a folder" in error_of("--input", log, "--json", tmp_path, capsys=capsys)
    assert "is no folder" in error_of("--input", log, "--plots-dir", log, capsys=capsys)
    assert [*tmp_path.iterdir()] == [log]


def test_a_threshold_on_what_no_summary_has_is_an_error(capsys):
    error = error_of("--summary", SHIPPED, "--rel-rmse-threshold", 0.1, capsys=capsys)
    assert "no layer has a rel_rmse; give --recording FILE" in error


def test_short_help_fits_a_terminal_and_names_options_that_are_there(capsys):
    with pytest.raises(SystemExit) as stop:
        analyze_log(["-h"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert max(map(len, text.splitlines())) <= 80
    known = {option for options in LOGS_COMMAND_LINE.values() for option in options}
    assert {*re.findall(r"--[a-z-]+", text)} <= known | {"--help"}


def test_the_last_line_is_what_to_type_next(tmp_path, capsys):
    folder = tmp_path / "my files"
    folder.mkdir()
    files = ("--json", folder / "s.json", "--sensitive-layers", folder / "l.txt", "--cross-attn")
    status, text, _ = run("--summary", SHIPPED, *files, capsys=capsys)
    *_, first, second, last = text.splitlines()
    assert (status, first, second) == (0, f"written: {files[1]}", f"written: {files[3]}")
    options = f'--input-scale-summary-json "{files[1]}" --full-precision-mm-layers "{files[3]}"'
    assert last == f"next: python convert_nvfp4.py SOURCE {options}"
    assert run("--summary", SHIPPED, capsys=capsys)[1].endswith(
        "hint: --json FILE writes the summary that convert_nvfp4.py takes input scales from\n"
    )


def test_help_has_the_docstring_every_option_and_the_trade():
    command = [sys.executable, str(ROOT / "analyze_input_scale_log.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert LOGS_DESCRIPTION in text
    assert render_trade() in text
    assert "TI2V 5B                 0.16            43 %        64 %               54 %" in text
    for options in LOGS_COMMAND_LINE.values():
        for option in options:
            assert option in text
