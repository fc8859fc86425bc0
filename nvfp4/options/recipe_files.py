"""Read recipe files, --recipe-file: options of one conversion or of several, in TOML or JSON.

Keys are options as on the command line, without their dashes, beside `source` and `output`. A
table of `[[model]]`, `[[text-encoder]]` or `[[vae]]` has the options of one model, before those
above it. Values are checked by the rows of the options table.
"""

from __future__ import annotations

import argparse
import glob
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nvfp4.errors import ConvertError, did_you_mean
from nvfp4.files import exists, size_of
from nvfp4.options.kinds import SWITCH, Kind, input_path, local_path, lora_file, shipped_path
from nvfp4.options.option import Argument, GivenOptions, Option
from nvfp4.requirements import HERE
from nvfp4.virtual import virtual_path

# The folder beside this script whose files may be given by their names alone.
RECIPE_FOLDER = "recipes"
# The tables that a recipe of several models repeats, in the order in which ComfyUI uses what they
# name. All have the same keys: what a file is, the file itself tells.
MODEL_TABLES = ("text-encoder", "model", "vae")
# A recipe is a page of text: larger files are none.
LARGEST_RECIPE = 1_000_000


def recipe_path(given: str | Path) -> Path:
    """Find a recipe: a file as given, or one in recipes/ by its name, with or without ".toml"."""
    path = local_path(given)
    if exists(path) or path.suffix.lower() in (".toml", ".json") or not isinstance(given, str):
        return shipped_path(given, RECIPE_FOLDER)
    return shipped_path(f"{given}.toml", RECIPE_FOLDER)


def shipped_recipes() -> list[Path]:
    """List the recipes that come with the program, by their names."""
    return sorted((HERE / RECIPE_FOLDER).glob("*.toml"))


def render_recipes(program: str) -> str:
    """Write what --list-recipes prints: the beginning of each shipped recipe, which is comments.

    program: how the converter is started here, to stand in the lines that they show.
    """
    folder, lines = HERE / RECIPE_FOLDER, []
    if not folder.is_dir():
        return f"There is no {RECIPE_FOLDER}/ beside this script: copy it from the repository."
    for path in shipped_recipes():
        lines.append(f"{path.stem}:")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("#"):
                break
            lines.append(f"  {line[2:]}".replace("python convert_nvfp4.py", program))
    return "\n".join([*lines, f"Files to copy and to edit: {folder}"])


def read_recipe(path: Path, rows: Iterable[Option]) -> list[dict[str, object]]:
    """Read a recipe file, and return {flag: value} for each of its models; one without tables.

    rows: of the options that it may give. Paths in it are relative to it. Raises ConvertError with
    a line for each mistake.
    """
    whole = parse_recipe(path)
    for name in MODEL_TABLES:
        if (other := name.replace("-", "_")) != name and other in whole:
            raise ConvertError(f"{path}: {other} is no table of a recipe; it is [[{name}]]")
    tables = {name: whole.pop(name) for name in MODEL_TABLES if name in whole}
    for name, models in tables.items():
        is_list = isinstance(models, list) and models
        if not is_list or not all(isinstance(one, dict) for one in models):
            raise ConvertError(f"{path}: {name} is not [[{name}]], a table for each")
    models = [one for several in tables.values() for one in several] or [{}]
    reader = RecipeReader(path, rows)
    common = reader.options_in(whole)
    found = [overridden(rows, common, reader.options_in(model)) for model in models]
    if reader.problems:
        raise ConvertError(*dict.fromkeys(reader.problems))
    return found


def parse_recipe(path: Path) -> dict[str, object]:
    """Parse a file's TOML or JSON, by its suffix. Raises ConvertError."""
    is_json = path.suffix.lower() == ".json"
    # Python 3.10 has no reader of TOML; requirements.txt names the package that became it.
    reader = json if is_json else toml_reader(path)
    try:
        # It refuses a pipe, which would be waited for.
        size_of(path)
        with path.open("rb") as file:
            text = file.read(LARGEST_RECIPE + 1)
        if len(text) > LARGEST_RECIPE:
            raise ConvertError(f"{path}: is larger than any recipe")
        once = {"object_pairs_hook": each_key_once} if is_json else {}
        found = reader.loads(text.decode("utf-8-sig"), **once)
    except OSError as error:
        raise ConvertError(f"{path}: cannot read: {error.strerror}") from error
    # Both readers raise subclasses of it, and so does a text in another encoding.
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise ConvertError(f"{path}: is not {kind}: {error}") from error
    if not isinstance(found, dict):
        raise ConvertError(f"{path}: is no table of options")
    return found


def each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a dict of a JSON object; raises ValueError for a key that comes twice, as TOML does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def toml_reader(path: Path) -> object:
    """Load the module that reads TOML. Raises ConvertError where there is none."""
    try:
        return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise ConvertError(
            f"{path}: Python 3.10 reads TOML with tomli: python -m pip install tomli"
        ) from None


def located(
    recipe: Path, models: Iterable[dict[str, object]], folder: Path | None
) -> list[dict[str, object]]:
    """Find the sources of a recipe's models by their names: {flag: value} of each, with its source.

    folder: where they are, in it or up to two folders deeper, as in ComfyUI's models/; None for
    beside the recipe as they are given, or for a recipe that comes with the program in the current
    folder. Raises ConvertError with a line for each that is not there.
    """
    found, problems = [], []
    is_shipped = recipe.parent == HERE / RECIPE_FOLDER
    for model in models:
        source = model.get("SOURCE")
        if source is None or virtual_path(source) or (folder is None and not is_shipped):
            found.append(model)
            continue
        place = folder or Path()
        ways = (f"{deeper}{glob.escape(source.name)}" for deeper in ("", "*/", "*/*/"))
        there = next(filter(None, (sorted(place.glob(way)) for way in ways)), [])
        if len(there) != 1:
            several = f"; which of {', '.join(map(str, there))}?" if there else ""
            problems.append(f"{recipe}: no {source.name} in {place.resolve()}{several}")
        found.append(model | {"SOURCE": there[0]} if there else model)
    if problems:
        raise ConvertError(*problems)
    return found


def overridden(
    rows: Iterable[Option], given: GivenOptions, winning: GivenOptions
) -> dict[str, object]:
    """Put options over others: {flag: value}, without what another name of an option gave."""
    names = [{*row.flags} for row in rows if not row.switches]
    lost = set().union(*(flags for flags in names if flags & winning.keys()))
    return {flag: value for flag, value in given.items() if flag not in lost} | {**winning}


class RecipeReader:
    """Read the tables of one recipe file, and collect its mistakes in `problems`."""

    def __init__(self, path: Path, rows: Iterable[Option]):
        self.path, self.problems = path, []
        self.arguments = {key_of(one.flag): one for row in rows for one in row.arguments}

    def options_in(self, table: Mapping[str, object]) -> dict[str, object]:
        """Make {flag: value} of a table; a switch that is false counts as not given."""
        return {flag: value for flag, value in self.values_in(table) if value is not False}

    def values_in(self, table: Mapping[str, object]) -> Iterator[tuple[str, object]]:
        """Yield each option of a table with its value; what is wrong goes to `problems`."""
        for key, given in table.items():
            argument = self.arguments.get(key)
            try:
                if not argument:
                    hint = did_you_mean(key.replace("_", "-").strip("-"), self.arguments)
                    raise argparse.ArgumentTypeError(f"is no option of a conversion{hint}")
                yield argument.flag, self.value_of(argument, given)
            except argparse.ArgumentTypeError as error:
                self.problems.append(f"{self.path}: {key}: {error}")
            # A path with a null character.
            except ValueError:
                self.problems.append(f"{self.path}: {key}: invalid value: {given!r}")

    def value_of(self, argument: Argument, given: object) -> object:
        """Read one value as the command line would."""
        kind = argument.kind
        if kind == SWITCH and not isinstance(given, bool):
            raise argparse.ArgumentTypeError(f"{given!r} is not true or false")
        if isinstance(given, dict) or (isinstance(given, list) and not kind.repeatable):
            raise argparse.ArgumentTypeError(f"{given!r} is no single value")
        if isinstance(given, list):
            return kind.accept([self.placed(kind, one) for one in given])
        return kind.accept(self.placed(kind, given))

    def placed(self, kind: Kind, given: object) -> object:
        """Make the path that a text names one that is relative to the recipe file."""
        reader = getattr(kind.read, "func", kind.read)
        placed = (input_path, local_path, shipped_path, lora_file)
        if reader not in placed or not isinstance(given, str) or virtual_path(given):
            return given
        beside = self.path.parent / input_path(given)
        # What comes with the program is found by its name, as on the command line.
        return given if reader is shipped_path and not exists(beside) else str(beside)


def key_of(flag: str) -> str:
    """Tell what a recipe calls an option: "--use-fp8" is use-fp8, and SOURCE is source."""
    return flag.lstrip("-").lower()
