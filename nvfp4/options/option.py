"""One row of the options table, and the checks that follow from it.

An option is a field of a frozen dataclass, the task: `option(...)` gives the field its default and
keeps everything else about the option, an `Option`, with it. `given` is, here and in the parser,
what somebody asked for: {flag: value}. On the command line that is what was named; for a task made
in Python, what differs from the default. The rows themselves are in `options.table` and
`options.tasks`, and the kinds of values in `options.kinds`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from nvfp4.errors import ConvertError, did_you_mean
from nvfp4.model import Lora
from nvfp4.options.kinds import SWITCH, Kind

# What somebody asked for, by flag.
GivenOptions = Mapping[str, object]
# The key of a row in its field's metadata.
ROW = "option"


class Other(NamedTuple):
    """Name an option that another one excludes or needs.

    value: the one that is meant; "" for any. why: how the sentence ends that says so, with its own
    comma or space.
    """

    flag: str
    value: str = ""
    why: str = ""

    @property
    def text(self) -> str:
        """Write it as one would type it."""
        return f"{self.flag} {self.value}".strip()

    def is_in(self, given: GivenOptions) -> bool:
        """Tell whether it was asked for, with the value that is meant."""
        return self.flag in given and self.value in ("", given[self.flag])


class Alias(NamedTuple):
    """Give an option another name: a switch that means one value, or words that mean values.

    meaning: the value that the switch stands for, or {word: value}. The other facts are as in an
    Option: an alias has conflicts and needs of its own.
    """

    flag: str
    meaning: str | dict[str, str]
    help: str
    conflicts: tuple[Other, ...] = ()
    needs: tuple[Other, ...] = ()

    @property
    def kind(self) -> Kind:
        """Describe the values that it takes: its own words, not those of the option."""
        return SWITCH if isinstance(self.meaning, str) else Kind(choices=tuple(self.meaning))


class LayerSwitch(NamedTuple):
    """Describe a switch for the layers whose names a regular expression finds.

    Several such switches make up one option, whose value is the set of those that were given.
    `least` is the title of the format, or EIGHT_BITS, that the switch raises its layers to, or ""
    if it marks them for something else.
    """

    layers: str
    help: str
    least: str = ""


class Argument(NamedTuple):
    """Hold one thing that the command line takes for a row, with its kind of value and its help.

    Most are flags; SOURCE and OUTPUT, which have no dashes, are told by their places.
    """

    flag: str
    kind: Kind
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Hold all there is to know of an option.

    `option(...)` makes one as the default of a dataclass's field. `options_of` fills in name and
    default from that field.

    default: MISSING for an option that has to be given.
    shown: the default as it was written, for the help.
    group: the heading in `--help` and in docs/options.md; "" for SOURCE and OUTPUT.
    kind: what its values may be.
    help: its text; `{default}` stands for the default.
    flag: how the command line calls it; "" for the field's name with dashes.
    conflicts: what must not be given with it. One of the two rows names the other.
    needs: of these at least one must be given with it.
    check: what is wrong with a value that its kind accepts: gets the flag, the value and all that
        is given, returns a sentence or "".
    aliases: other names, listed after it.
    switches: {flag: layers} of an option that is a set of switches and has no flag of its own.
    trace: whether the header of OUTPUT tells it: whether the bytes can depend on it.
    reads: whether it names files that OUTPUT must not overwrite.
    writes: whether it names a text file that is written beside OUTPUT.
    everyday: what the short `-h` says of it, in up to 52 characters; "" for what only `--help`
        lists.
    """

    group: str
    kind: Kind
    help: str
    name: str = ""
    default: object = None
    shown: str = ""
    flag: str = ""
    conflicts: tuple[Other, ...] = ()
    needs: tuple[Other, ...] = ()
    check: Callable[[str, Any, GivenOptions], str] | None = None
    aliases: tuple[Alias, ...] = ()
    switches: Mapping[str, LayerSwitch] = field(default_factory=dict)
    trace: bool = True
    reads: bool = False
    writes: bool = False
    everyday: str = ""

    @property
    def arguments(self) -> list[Argument]:
        """List what the command line and docs/options.md list for this row, other names last."""
        own = [Argument(flag, SWITCH, switch.help) for flag, switch in self.switches.items()]
        # A set of switches has no flag of its own.
        own = own or [Argument(self.flag, self.kind, self.help.replace("{default}", self.shown))]
        return [*own, *(Argument(alias.flag, alias.kind, alias.help) for alias in self.aliases)]

    @property
    def flags(self) -> list[str]:
        """List all that the command line knows it by, other names too."""
        return [argument.flag for argument in self.arguments]

    def value_in(self, given: GivenOptions) -> object:
        """Find its value by what the command line named, or its default.

        The option's own flag and an alias exclude each other, so that their order decides nothing.
        """
        if self.switches:
            return frozenset(flag for flag in self.switches if flag in given)
        # An alias is another way to give this option's value: there is no field for it.
        for alias in self.aliases:
            if alias.flag in given:
                meaning = alias.meaning
                return meaning if isinstance(meaning, str) else meaning[given[alias.flag]]
        return given.get(self.flag, self.default)

    def named_by(self, value: object) -> dict[str, object]:
        """Tell what would have to be named for a value: {flag: value}; nothing for the default."""
        if value == self.default:
            return {}
        # A set of switches is named by its flags, each of which is True.
        return dict.fromkeys(value, True) if self.switches else {self.flag: value}

    def accept(self, value: object) -> object:
        """Make a value given in Python one of its kind.

        The default is taken as it is: None is no path, but stands for none. Raises
        argparse.ArgumentTypeError, as `Kind.accept` does.
        """
        if value == self.default:
            return self.default
        # A set of switches is given as their flags, of which each has to be one of the row's.
        if not self.switches:
            return self.kind.accept(value)
        return frozenset(Kind(choices=tuple(self.switches), repeatable=True).accept(value))


def with_others(facts: dict[str, Any]) -> dict[str, Any]:
    """Make Others of the flags that a row's facts name: the short form, for any value."""

    def other(one: Other | str) -> Other:
        return one if isinstance(one, Other) else Other(one)

    # Both relations have the same short form.
    relations = {"conflicts", "needs"} & facts.keys()
    return facts | {relation: tuple(map(other, facts[relation])) for relation in relations}


def option(default: object, group: str, kind: Kind, text: str = "", **facts: Any) -> Any:
    """Make the field of an option, of a task that is a dataclass.

    default: MISSING for an option that has to be given; a text is read as the command line's is.
    group, kind, text: its heading, the values it takes, and its help.
    facts: what else an Option knows; `conflicts` and `needs` may name others by their flags alone.

    The return type is Any, as a field's default stands where a value of the field's type should.
    """
    # The help shows the default as it is written here, 5GB and not 5000000000.
    shown = default if isinstance(default, str) else f"{default:g}" if is_number(default) else ""
    value = kind.read(default) if isinstance(default, str) else default
    row = Option(group=group, kind=kind, help=text, shown=shown, **with_others(facts))
    return field(default=value, metadata={ROW: row})


def is_number(value: object) -> bool:
    """Tell whether a value is a number; Python counts True and False among them."""
    return isinstance(value, Real) and not isinstance(value, bool)


def same_option(task: type, name: str, **facts: Any) -> Any:
    """Make the field of an option that another task has, too.

    task, name: where the option is. facts: what is different about it here, as in `option`.
    """
    # A name that the other task lacks fails here, when the table is imported.
    (entry,) = (entry for entry in dataclasses.fields(task) if entry.name == name)
    row = dataclasses.replace(entry.metadata[ROW], **with_others(facts))
    return field(default=entry.default, metadata={ROW: row})


def options_of(task: type) -> list[Option]:
    """List the rows of a task, with names, defaults and flags filled in from its fields.

    They are in the order of the fields, which is that of `--help`.
    """
    # Name and default are the field's, so that the table says neither twice.
    rows = []
    for entry in dataclasses.fields(task):
        row = entry.metadata[ROW]
        flag = row.flag or "--" + entry.name.replace("_", "-")
        rows.append(dataclasses.replace(row, name=entry.name, default=entry.default, flag=flag))
    return rows


def all_options(*tasks: type) -> list[Option]:
    """List the rows of several tasks; what they share is listed once, as the first one has it."""
    # The first row of a flag stays: a task's own conflicts and needs may differ.
    rows: dict[str, Option] = {}
    for row in (row for task in tasks for row in options_of(task)):
        rows.setdefault(row.flag, row)
    return [*rows.values()]


def contradictions(rows: Iterable[Option], given: GivenOptions) -> Iterator[str]:
    """Find options that exclude each other, do nothing without another, or have wrong values.

    `given` is {flag: value} of what was asked for. Yields a sentence for each problem: first the
    conflicts, then what is missing, then the values, each in the order of the rows.
    """
    rows = list(rows)
    # Rows and aliases have the same facts here: each of those that were named is asked.
    named = [one for row in rows for one in (row, *row.aliases) if one.flag in given]
    for one in named:
        for other in one.conflicts:
            # One of the two rows names the other, so that each contradiction is told once.
            if other.is_in(given):
                yield f"{one.flag} contradicts {other.text}{other.why}"
    for one in named:
        if one.needs and not any(other.is_in(given) for other in one.needs):
            # Any of them is enough.
            needed = " or ".join(other.text + other.why for other in one.needs)
            yield f"{one.flag} needs {needed}"
    # Checks of values see all that is given, as `--preset none` asks for --include.
    for row in rows:
        if row.check and row.flag in given:
            problem = row.check(row.flag, given[row.flag], given)
            if problem:
                yield problem


def check_task(task: Any, before: str = "") -> None:
    """Make a task's values of the right kinds, and raise ConvertError with all that is wrong.

    before: what each problem begins with.

    A task calls this in its `__post_init__`: nobody else has it yet, so a frozen one may still be
    changed. Contradictions are looked for only where every value is of its kind.
    """
    problems, given = [], {}
    rows = options_of(type(task))
    for row in rows:
        try:
            value = row.accept(getattr(task, row.name))
        except argparse.ArgumentTypeError as error:
            problems.append(f"argument {row.flag}: {error}")
            continue
        # The way to set a field of a frozen dataclass.
        object.__setattr__(task, row.name, value)
        given |= row.named_by(value)
    # Flags are told, not fields, so that both interfaces use the same words.
    problems = problems or [*contradictions(rows, given)]
    if problems:
        raise ConvertError(*(before + problem for problem in problems))


def by_name(task: type) -> type:
    """Make a task's constructor raise ConvertError for names that it does not know, or lacks.

    A decorator, for a dataclass of options: Python itself would raise TypeError, and name none.
    """
    make = task.__init__

    @functools.wraps(make)
    def checked(self: Any, *unnamed: object, **given: object) -> None:
        called, rows = task.__name__, options_of(task)
        unknown = [name for name in given if name not in {row.name for row in rows}]
        problems = [f"{called} has no {name}{known_as(name, rows)}" for name in unknown]
        needed = [row.name for row in rows if row.default is dataclasses.MISSING]
        if unnamed:
            problems.append(f"{called} takes options by name: {called}({needed[0]}=...)")
        elif missing := [name for name in needed if name not in given]:
            problems.append(f"{called} needs {' and '.join(missing)}")
        if problems:
            raise ConvertError(*problems)
        make(self, **given)

    task.__init__ = checked
    return task


def known_as(name: str, rows: Iterable[Option]) -> str:
    """End a message on a field that no row has: how Python gives what is meant.

    That is the field of a flag which is another name, or one of a set; a name that is alike; or
    else all names.
    """
    flags = {flag.strip("-").replace("-", "_"): (flag, row) for row in rows for flag in row.flags}
    if name in flags:
        flag, row = flags[name]
        return f"; give {row.name}" + (f'={{"{flag}"}}' if row.switches else "")
    names = [row.name for row in rows]
    return did_you_mean(name, names) or f"; it has {', '.join(names)}"


def paths_of(value: object) -> Iterator[Path]:
    """Find the paths in an option's value, which may be None, a path, a LoRA or several of them."""
    # A Lora is a tuple, too, but its strength is no path.
    if isinstance(value, Lora):
        yield value.path
    elif isinstance(value, tuple):
        for one in value:
            yield from paths_of(one)
    elif value is not None:
        yield value
