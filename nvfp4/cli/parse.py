"""Read the command line: a parser made of the options table.

The result are tasks: an Options for each model to convert, or a Verification. This module and all
that it imports do without torch and numpy, so that `--help`, `--version` and mistakes are answered
at once; a test holds them to it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING
from pathlib import Path

from nvfp4.cli.arguments import ArgumentReader, PrintAndExit, called_beside
from nvfp4.cli.description import DESCRIPTION, render_everyday
from nvfp4.cli.presets import render_presets
from nvfp4.errors import DASHES, ConvertError
from nvfp4.options import (
    OPTIONS,
    OTHER_TASKS,
    CommandLine,
    Doctor,
    Option,
    Options,
    Verification,
    all_options,
    contradictions,
    options_of,
)
from nvfp4.options.naming import NameTakenError
from nvfp4.options.recipe_files import located, overridden, read_recipe, render_recipes
from nvfp4.virtual import VirtualPath

# How a conversion and a check are asked for.
USAGE = """%(prog)s SOURCE [OUTPUT] [options]
       %(prog)s SOURCE SOURCE ... FOLDER [options]
       %(prog)s --verify FILE [--source SOURCE]
       %(prog)s --calibrate MODEL --comfyui DIR --text-encoder FILE --prompts FILE
       %(prog)s --doctor"""
# Options of other programs for what is a place here.
NO_OPTIONS = {
    **dict.fromkeys(("-o", "-out", "--out", "--output"), "; OUTPUT is no option: SOURCE OUTPUT"),
    **dict.fromkeys(("-i", "-in", "--in", "--input"), "; SOURCE is no option: SOURCE OUTPUT"),
}
# What to do where neither a model nor another task is named.
NOTHING_ASKED = "give SOURCE, or --verify FILE [--source SOURCE]; -h lists the everyday options"


def build_parser(rows: Iterable[Option] = OPTIONS) -> ArgumentReader:
    """Make a parser that gives {flag: value}, and None for what is not named.

    Defaults are not argparse's business: what was named has to be known, as some options exclude or
    need others. Rows come in groups by their headings. SOURCE may be missing here, as `--verify`
    goes without, and OUTPUT is a list: of several models, all but the first and the folder at its
    end.
    """
    rows = [*rows]
    parser = ArgumentReader(
        "convert_nvfp4.py", DESCRIPTION, render_everyday(rows), NO_OPTIONS, usage=USAGE
    )

    def recipes(_: Sequence[str]) -> str:
        return render_recipes(called_beside("convert_nvfp4.py"))

    answers = {
        "--list-presets": (
            render_presets,
            "the presets, or those that WORD finds; one alone is shown in full, with its reasons",
            "WORD",
        ),
        "--list-recipes": (recipes, "the recipes that --recipe-file knows by name", ""),
    }
    for flag, (render, text, words) in answers.items():
        parser.add_argument(flag, action=PrintAndExit, render=render, help=text, metavar=words)
    groups = {"": parser}
    for row in rows:
        if row.group not in groups:
            groups[row.group] = parser.add_argument_group(row.group)
        for flag, kind, text in row.arguments:
            # Values are kept by flag, not by argparse's own name for it, for messages use flags.
            how = {"dest": flag} if flag.startswith("-") else {"nargs": "*?"[flag == "SOURCE"]}
            # argparse formats help texts with %.
            text = text.replace("%", "%%")
            groups[row.group].add_argument(flag, default=None, help=text, **how, **kind.keywords)
    return parser


def parse_tasks(
    argv: list[str] | None = None, conversion: type[Options] = Options
) -> tuple[Options | Verification | Doctor, ...]:
    """Make the tasks of the command line: one, or a conversion for each of several models.

    argv: the arguments without the program's name; those of the process if None.
    conversion: the class of a conversion's options, which a test may extend by rows.

    Returns instances of it, or one of OTHER_TASKS. A wrong value, a contradiction or a missing
    companion option prints one line and exits with 2.
    """
    parser = build_parser(all_options(conversion, CommandLine, *OTHER_TASKS))
    named = vars(parser.parse_args(argv)).items()
    given = {flag: value for flag, value in named if value not in (None, [])}
    # A long dash that a web page made of two is a place to argparse.
    places = [str(place) for place in given.get("OUTPUT", ())]
    if dashed := [place for place in places if place.startswith(tuple(DASHES))]:
        parser.refuse(dashed)
    task = next((one for one in OTHER_TASKS if options_of(one)[0].flag in given), conversion)
    rows = options_of(task)
    recipe = given.pop("--recipe-file", None) if task is conversion else None
    # Flags of the other tasks, or SOURCE and OUTPUT beside --verify.
    foreign = given.keys() - {flag for row in rows for flag in row.flags}
    if foreign and task is not conversion:
        parser.error(goes_with(rows))
    try:
        known = read_recipe(recipe, rows) if recipe else [{}]
        if recipe:
            folder = given.pop("SOURCE") if names_folder(given, known) else None
            known = located(recipe, known, folder)
    except ConvertError as error:
        parser.refuse_all(error.problems)
    try:
        models = [*each_model(rows, given, known)] if task is conversion else [given]
        if recipe:
            refuse(filter(None, (lacking_gguf(rows, model) for model in models)))
        if foreign or any(is_missing(row, model) for row in rows for model in models):
            raise ConvertError(NOTHING_ASKED)
        return make_tasks(task, rows, models)
    except ConvertError as error:
        parser.refuse_all(error.problems, f" (with the options of {recipe.name})" if recipe else "")


def parse_options(
    argv: list[str] | None = None, conversion: type[Options] = Options
) -> Options | Verification:
    """Make the task of a command line that has one; the rest is as in `parse_tasks`."""
    (task,) = parse_tasks(argv, conversion)
    return task


def make_tasks(
    task: type, rows: list[Option], models: list[dict[str, object]]
) -> tuple[Options | Verification | Doctor, ...]:
    """Make a task of each {flag: value}. Raises ConvertError for all that are wrong."""
    tasks, problems = [], {}
    for model in models:
        try:
            # Contradictions are looked for by what was named; the task itself can only see what
            # differs from the defaults.
            refuse(contradictions(rows, model))
            values = {row.name: row.value_in(model) for row in rows}
            tasks.append(make_one(task, values) if len(models) > 1 else task(**values))
        except NameTakenError as error:
            is_one = len(models) == 1
            problems[str(error) if is_one else error.beside_others(model["SOURCE"])] = None
        except ConvertError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConvertError(*problems)
    if len(tasks) > 1:
        refuse(clashes(tasks))
    return tuple(tasks)


def make_one(task: type[Options], values: dict[str, object]) -> Options:
    """Make one of several conversions; with --resume its output may be there, and complete.

    A name that is made must not be taken, except by a dry run. Whether the file that has it is what
    this conversion would write is seen by whoever carries it out.
    """
    if not values["resume"]:
        return task(**values)
    return dataclasses.replace(task(**values | {"dry_run": True}), dry_run=values["dry_run"])


def is_missing(row: Option, given: dict[str, object]) -> bool:
    """Tell whether a row that has to be given was not."""
    return row.default is MISSING and row.flag not in given


def refuse(problems: Iterable[str]) -> None:
    """Raise ConvertError with the first of some problems, if there are any."""
    if problem := next(iter(problems), ""):
        raise ConvertError(problem)


def names_folder(given: dict[str, object], recipe: list[dict[str, object]]) -> bool:
    """Tell whether SOURCE is the folder that the models of a recipe are looked for in."""
    source = given.get("SOURCE")
    has_names = len(recipe) > 1 and all("SOURCE" in model for model in recipe)
    return has_names and source is not None and source.is_dir()


def lacking_gguf(rows: list[Option], given: dict[str, object]) -> str:
    """Say that a recipe's options follow a GGUF which is not given; "" where none does."""
    follows = any(
        row.flag in given and [other.flag for other in row.needs] == ["--gguf"] for row in rows
    )
    is_lacking = follows and "--gguf" not in given
    return "it follows a GGUF: add --gguf FILE, see --list-recipes" if is_lacking else ""


def goes_with(rows: list[Option]) -> str:
    """Say which options go with the one that asks for a task beside conversions."""
    first, *beside = rows
    asks = f"{first.flag} {first.kind.shown}".strip()
    *some, last = [row.flag for row in beside] or ["nothing else"]
    goes = f"{', '.join(some)} and {last}" if some else last
    return f"{asks} goes with {goes}, without OUTPUT"


def each_model(
    rows: list[Option], given: dict[str, object], recipe: list[dict[str, object]]
) -> Iterator[dict[str, object]]:
    """Make {flag: value} for each model: its own SOURCE and OUTPUT, options before the recipe's.

    given: as the parser gives it, OUTPUT as a list: of three or more places, the last is a folder
    that all are written to. recipe: {flag: value} for each of its models, {} without one. Raises
    ConvertError where the last of several places is no folder, or a recipe has models of its own.
    """
    *more, output = given.get("OUTPUT") or [None]
    if len(recipe) > 1 and "SOURCE" in given:
        raise ConvertError(
            "the recipe names its models itself; leave SOURCE and OUTPUT out, or give the folder "
            "that they are in as SOURCE"
        )
    if more and isinstance(output, VirtualPath):
        raise ConvertError(f"of several models, the last place is a folder on a disk: {output}")
    if more and not output.is_dir() and (output.exists() or "--make-folder" not in given):
        hint = "" if output.exists() else "; --make-folder creates one"
        raise ConvertError(f"of several models, the last place is a folder: {output} is none{hint}")
    named = {flag: value for flag, value in given.items() if flag not in ("SOURCE", "OUTPUT")}
    named |= {"OUTPUT": output} if output else {}
    sources = [given["SOURCE"], *more] if "SOURCE" in given else [None]
    for model in recipe:
        for source in sources:
            yield overridden(rows, model, named | ({"SOURCE": source} if source else {}))


def clashes(tasks: list[Options]) -> Iterator[str]:
    """Find files that two of several conversions would write, in whatever spelling."""
    owners: dict[str, Path] = {}
    for task in tasks:
        for path in (task.output, *task.texts):
            place = real_place(path)
            if place in owners:
                yield f"{path} would be written for {owners[place]} and for {task.source}"
            owners[place] = task.source


def real_place(path: Path) -> str:
    """Name the file that a path leads to, through links and in any spelling.

    Windows and macOS take names that differ in case alone for one, and so does this everywhere.
    """
    return os.path.realpath(path).casefold()
