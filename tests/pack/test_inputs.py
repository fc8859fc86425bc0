"""Names of files that every system takes as they are, and values as errors tell them."""

import pytest

from comfyui_nvfp4.inputs import LONGEST_VALUE, fit_for_file, is_plain, told

WINDOWS = ["con", "NUL", "Aux.safetensors", "com1", "LPT9.x", "com¹", "prn .x", "conout$"]
ELSEWHERE = [
    "",
    ".",
    "..",
    ".x",
    "x.",
    "x ",
    " x",
    "a/b",
    "a\\b",
    "D:x",
    "x:y",
    "a\0",
    "a\nb",
    "a?",
]


@pytest.mark.parametrize("name", WINDOWS + ELSEWHERE)
def test_a_name_that_some_system_takes_otherwise_is_refused(name):
    assert not is_plain(name)


@pytest.mark.parametrize("name", ["wan", "wan2.2_5B", "console", "com", "com10", "ünï (1)", "a..b"])
def test_other_names_are_taken(name):
    assert is_plain(name)


def test_a_name_of_a_workflow_becomes_part_of_a_file_name():
    assert is_plain(fit_for_file('../st:y"le\\x\n'))
    assert fit_for_file("wan-style") == "wan-style"


def test_values_are_told_in_a_short_line():
    assert told("wan.safetensors") == "wan.safetensors"
    assert told("a\nb") == repr("a\nb")
    assert len(told("x" * 1000)) == LONGEST_VALUE + 3
    assert "\n" not in told(["a", {"b": "\n"}])
