"""The errors that a person is told, and how names and sizes are written.

Every problem that a user can mend is raised as a ConvertError, anywhere in the package, and printed
once, by `cli.console`. Names come from files that may be hostile, so whatever is printed of them
goes through `printable` or `one_line`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# A damaged entry or name may be megabytes long: messages quote this many characters of it.
EXCERPT = 200
# A finding on thousands of tensors is told with this many of their names, and with their number.
EXAMPLES = 3
# What an option may begin with: web pages turn two dashes into a long one, or into a minus.
DASHES = "-\u2013\u2014\u2212"
# What sentences say of several layers, and of one.
SINGULAR = {
    "layers": "layer",
    "prompts": "prompt",
    "tensors": "tensor",
    "names": "name",
    "scales": "scale",
    "defects": "defect",
    "have": "has",
    "are": "is",
    "were": "was",
    "do": "does",
    "go": "goes",
    "get": "gets",
    "stay": "stays",
    "lose": "loses",
    "match": "matches",
    "clip": "clips",
    "they": "it",
    "their": "its",
}


class ConvertError(Exception):
    """Say what is wrong, where, and what to do about it, in one line for each problem.

    A step collects its problems and raises them together, so that one run names all that has to be
    mended; they stay apart as `problems`. The message is all of them, joined by line breaks.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class Listed(str):
    """Mark a line of the list that the problem before it announces: it is no problem of its own."""

    __slots__ = ()


class DamagedFileError(ConvertError):
    """Say that a safetensors header or data section is damaged.

    It is raised only where the safetensors library refuses the file, too; what merely exceeds a
    limit of this program is a plain ConvertError.
    """


class Float16OverflowError(Exception):
    """Stop writing: a tensor planned as float16 holds a value beyond 65504.

    It never reaches a user: `production` catches it, plans the tensors that do not fit as float32
    and writes again.
    """


def printable(text: str) -> str:
    """Escape control characters, line breaks excepted, as Python writes them in a string.

    Names in a file may hold terminal escape sequences; printed raw, they would colour, clear or
    rewrite the screen.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Escape control characters and line breaks, so that a name cannot forge a line of its own."""
    return printable(text).replace("\n", "\\n")


def examples(names: Iterable[str]) -> str:
    """Tell the first EXAMPLES of some names in sorted order, and how many more there are.

    Each name is cut to EXCERPT characters and put on one line. Returns "nothing" if there are none.
    """
    names = sorted(names) or ["nothing"]
    shown = ", ".join(one_line(name[:EXCERPT]) for name in names[:EXAMPLES])
    return f"{shown} and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else shown


def in_number(count: int, rest: str) -> str:
    """Write how many layers a sentence is about: "2 FP8 layers have no scale", "1 FP8 layer has …".

    rest: the sentence after the number, in the plural.
    """
    if count == 1:
        rest = re.sub(rf"\b({'|'.join(SINGULAR)})\b", lambda found: SINGULAR[found[0]], rest)
    return f"{count:,} {rest}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End a message on a word that is not known with those that may be meant; "" if none is alike.

    What differs in case, dashes or underscores alone is meant for sure. Else it is what the word is
    the beginning of, up to EXAMPLES, or the one that is most alike.
    """

    def plain(text: str) -> str:
        return text[:EXCERPT].lower().strip(f"{DASHES}_ ").replace("_", "-")

    names, given = {plain(name): name for name in known}, plain(word)
    if not given:
        return ""
    meant = [name for name in names if name.startswith(given)]
    meant = [given] if given in names else meant or difflib.get_close_matches(given, names, 1)
    shown = " or ".join(names[name] for name in meant[:EXAMPLES])
    return f"; did you mean {shown}?" if shown else ""


def of_another_model(
    named: object,
    what: str = "none of its layers is in the source",
    *,
    it_has: Iterable[str],
    other_has: Iterable[str],
    other: str = "the source",
) -> ConvertError:
    """Make the error for a file that does not go with a model, with examples of both sides.

    `named` is the file, or the option that gave it, and `it_has` the names in it; `other` is what
    it was compared with, and `other_has` are the names there. `what` says how the two differ. The
    error is returned, not raised.
    """
    sides = f"it has {examples(it_has)}; {other} has {examples(other_has)}"
    return ConvertError(f"{named}: is of another model: {what}; {sides}")


def gigabytes(size: int) -> str:
    """Write a number of bytes as GB or MB, decimal units with two decimals; few as they are."""
    if size < 1e4:
        return f"{size:,} bytes"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def exact_size(size: int) -> str:
    """Write a number of bytes as `gigabytes` does, with the bytes: where one more may matter."""
    rounded, exact = gigabytes(size), f"{size:,} bytes"
    return exact if rounded == exact else f"{rounded} ({exact})"


def percentage(part: float, whole: float) -> str:
    """Write `part / whole` as a whole per cent, or as "-" where the whole is 0."""
    return f"{100 * part / whole:.0f} %" if whole else "-"
