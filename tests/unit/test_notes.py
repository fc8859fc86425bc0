"""Notes are strings with a rank, and stay so on their way to a report."""

import pickle

import pytest

from nvfp4.errors import in_number
from nvfp4.notes import Note, Rank, by_rank


def test_a_note_is_a_string_with_a_rank():
    note = Note("2 layers are so", Rank.HINT)
    assert note == "2 layers are so"
    assert (note.line, note.data) == (
        "hint: 2 layers are so",
        {"rank": "hint", "text": "2 layers are so"},
    )
    # Ranks of a torchrun send their notes to the first one.
    assert pickle.loads(pickle.dumps(note)).rank is Rank.HINT


def test_information_has_no_word_and_a_plain_string_is_a_note():
    assert Note("so it is", Rank.INFORMATION).line == "so it is"
    assert [note.line for note in by_rank(["plain"])] == ["note: plain"]


def test_notes_are_sorted_by_rank_and_told_once():
    notes = [Note("w", Rank.WARNING), "n", Note("i", Rank.INFORMATION), "m", "n"]
    assert by_rank(notes) == ["i", "n", "m", "w"]


@pytest.mark.parametrize(
    ("count", "rest", "told"),
    [
        (
            1,
            "layers have no input scale and get their own",
            "1 layer has no input scale and gets its own",
        ),
        (1, "names match nothing", "1 name matches nothing"),
        (1234, "tensors go over as they are", "1,234 tensors go over as they are"),
        (1, "tensors go over as they are", "1 tensor goes over as it is"),
    ],
)
def test_sentences_agree_with_their_number(count, rest, told):
    assert in_number(count, rest) == told
