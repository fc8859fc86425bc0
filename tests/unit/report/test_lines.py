"""Long lines are broken between words, and only where a terminal needs it."""

import pytest

from nvfp4.notes import Note
from nvfp4.report.lines import broken, labelled, spent


def test_a_line_is_broken_between_words_and_indented():
    line = str(Note("hint: give --input-scale-summary-json calib/scales.json for that, or nothing"))
    parts = broken(line, 40)
    assert all(len(part) <= 40 for part in parts)
    assert all(part.startswith("  ") for part in parts[1:])
    assert " ".join(part.strip() for part in parts) == line
    assert broken(line, None) == [line]


def test_a_name_is_never_cut():
    assert broken("a " + "x" * 60, 40) == ["a", "  " + "x" * 60]


def test_labels_have_a_column():
    lines = labelled("size", ["one two three four five six", "seven"], 24)
    assert lines == ["size      one two three", "          four five six", "          seven"]
    assert labelled("size", [], 24) == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(4.06, "4.1 s"), (59.9, "59.9 s"), (192, "3 min 12 s"), (7500, "2 h 5 min")],
)
def test_times_are_told_in_words(seconds, told):
    assert spent(seconds) == told
