"""The house stands: rooms on floors, no import cycle, names that are unique, modules of a size."""

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from support.paths import ROOT
from tools.rooms import FLOORS

PACKAGE = ROOT / "nvfp4"
LONGEST = 450
# Modules that are tables of data, and as long as these.
TABLES: tuple[str, ...] = ()
# What --help, --version and wrong options have to do without: it takes seconds to load.
HEAVY = ("torch", "numpy", "gguf", "safetensors")


def module_of(path: Path) -> str:
    """nvfp4/read/__init__.py is nvfp4.read."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[: len(parts) - (parts[-1] == "__init__")])


# Without nvfp4/__init__.py, which imports nothing.
MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
del MODULES["nvfp4"]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imported(module: str) -> set[str]:
    """Our modules that one imports: anywhere in it, for annotations too."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            parts = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {part if part in MODULES else node.module for part in parts}
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


IMPORTS = {module: imported(module) for module in MODULES}


def names_in(node: ast.stmt) -> set[str]:
    """What a top-level statement defines, imports aside."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.If | ast.Try | ast.With | ast.For):
        return {name for part in node.body for name in names_in(part)}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    found = {n.id for target in targets if target for n in ast.walk(target) if hasattr(n, "id")}
    return found - {"__all__"}


def test_every_room_has_a_floor():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    assert {room_of(module) for module in MODULES} <= set(rooms)


def test_a_room_imports_from_lower_floors_alone():
    floors = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if room_of(module) != room_of(other) and floors[room_of(module)] <= floors[room_of(other)]
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*path, module))
        if module not in state:
            state[module] = "open"
            for other in sorted(IMPORTS[module]):
                visit(other, (*path, module))
            state[module] = "done"

    for module in MODULES:
        visit(module, ())


def test_names_are_unique():
    """The single file has them all in one room."""
    owners = defaultdict(list)
    for module in MODULES:
        for name in {name for node in tree_of(module).body for name in names_in(node)}:
            owners[name].append(module)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}


def test_modules_have_a_size_that_one_reads():
    sizes = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
        if module not in TABLES
    }
    assert {module: size for module, size in sizes.items() if size > LONGEST} == {}


@pytest.mark.parametrize("module", ["cli.parse", "logs.command", "compare.command"])
def test_a_command_line_is_read_without_what_takes_seconds_to_load(module):
    code = f"import sys, nvfp4.{module}; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
