"""Say what the words of --goal stand for: values of other options, which win where they are given.

docs/goals.md has what each word costs and gains, as it was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nvfp4.options.option import GivenOptions


class Goal(NamedTuple):
    """Describe one word of --goal.

    values: {field of Options: value}, only of fields whose default is None, so that it can be told
        whether somebody named them.
    told: what the help says of it.
    """

    values: dict[str, object]
    told: str


# There is no column for the card: every class multiplies INT8 fast (`cards`), so that quality is
# the same on each, and which format is fastest, --card says for the other two. In the small trained
# Wan, edge blocks lose no more than other blocks when they are quantised.
GOALS = {
    "speed": Goal({"edge_blocks": 0}, "quantises the edge blocks, too"),
    "balanced": Goal({}, "is what happens without it"),
    "quality": Goal({"formats": ("int8", "16bit")}, "has INT8 in place of all 4-bit formats"),
}


def typed(value: object) -> str:
    """Write a value as the command line takes it."""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def flags_text(values: dict[str, str]) -> str:
    """Write options as the command line takes them: {flag: value}."""
    return " ".join(f"{flag} {value}" for flag, value in values.items())


def in_flags(values: dict[str, object]) -> dict[str, str]:
    """Write fields as the command line does: {flag: value}."""
    return {f"--{name.replace('_', '-')}": typed(value) for name, value in values.items()}


# What the help says of each word, with the options that it stands for.
GOALS_TOLD = "; ".join(
    f"{name} {goal.told}" + f" ({flags_text(in_flags(goal.values))})" * bool(goal.values)
    for name, goal in GOALS.items()
)


def goal_values(options: Any) -> dict[str, object]:
    """Find what --goal sets: {field: value} of those that nobody named. options: an Options."""
    values = GOALS[options.goal].values if options.goal else {}
    return {name: value for name, value in values.items() if getattr(options, name) is None}


def goal_does_something(flag: str, goal: str, given: GivenOptions) -> str:
    """Refuse a goal all of whose options are given otherwise: an Option's `check`."""
    values = in_flags(GOALS[goal].values)
    if values and all(typed(given.get(one, value)) != value for one, value in values.items()):
        return f"{flag} {goal} does nothing beside {' and '.join(values)}"
    return ""
