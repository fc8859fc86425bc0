"""Rank what a person is told beside a result: information, a hint, a note or a warning.

Whatever makes a note says its rank there: `Note("...", Rank.HINT)`. A Note is a str, so that notes
are compared, searched and joined as the plain strings that they were; such a string is a NOTE.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Rank(IntEnum):
    """Rank a note by how much it matters; the last one matters most."""

    # What follows from the command, or merely is so: there is nothing to do about it.
    INFORMATION = 0
    # Something better exists, or something is missing that would help.
    HINT = 1
    # Worth a look: what was done may not be what was meant.
    NOTE = 2
    # The result is probably not what was wanted.
    WARNING = 3


# The word that a line of a rank begins with; information stands without one.
RANK_WORDS = {Rank.INFORMATION: "", Rank.HINT: "hint", Rank.NOTE: "note", Rank.WARNING: "warning"}


class Note(str):
    """Be a note's text, with its rank beside it."""

    rank: Rank

    def __new__(cls, text: str, rank: Rank = Rank.NOTE) -> Note:
        """Make a note of a text; ranks of a torchrun send it to each other with its rank."""
        note = super().__new__(cls, text)
        note.rank = rank
        return note

    @classmethod
    def of(cls, note: str) -> Note:
        """Take a note as it is, and a plain string for one that is worth a look."""
        return note if isinstance(note, Note) else cls(note)

    @property
    def line(self) -> str:
        """Write the note with the word of its rank before it."""
        word = RANK_WORDS[self.rank]
        return f"{word}: {self}" if word else str(self)

    @property
    def data(self) -> dict[str, str]:
        """Make it ready for JSON: its rank in lower case, and its text."""
        return {"rank": self.rank.name.lower(), "text": str(self)}


def by_rank(notes: Iterable[str]) -> list[Note]:
    """Sort notes by rank, warnings last: that is nearest to a terminal's prompt.

    Notes of one rank stay in their order; a note that came twice is told once.
    """
    return sorted(map(Note.of, dict.fromkeys(notes)), key=lambda note: note.rank)
