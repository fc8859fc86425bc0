"""What goes wrong, and how names and sizes are told."""

from __future__ import annotations

from collections.abc import Iterable

EXCERPT = 200  # characters of what is damaged
EXAMPLES = 3  # names shown for a counted finding


class ConvertError(Exception):
    """What is wrong, where, and what to do: one line per problem, all problems of a step."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class DamagedFileError(ConvertError):
    """A safetensors header or data section that the safetensors library refuses, too."""


class Float16OverflowError(Exception):
    """A tensor planned as float16 holds a value beyond 65504; the plan has to change."""


def printable(text: str) -> str:
    """Control characters from a file's names must not reach the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """What is printable, and cannot forge a line of its own."""
    return printable(text).replace("\n", "\\n")


def examples(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    names = sorted(names) or ["nothing"]
    shown = ", ".join(one_line(name[:EXCERPT]) for name in names[:EXAMPLES])
    return f"{shown} and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else shown


def of_another_model(
    named: object,
    what: str = "none of its layers is in the source",
    *,
    it_has: Iterable[str],
    other_has: Iterable[str],
    other: str = "the source",
) -> ConvertError:
    """Make the error for a file that does not go with a model, with examples of both sides.

    `named` is the file, or the option that gave it; `other` is what it was compared with.
    """
    sides = f"it has {examples(it_has)}; {other} has {examples(other_has)}"
    return ConvertError(f"{named}: is of another model: {what}; {sides}")


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
