#!/usr/bin/env python3
"""Build convert_nvfp4.py, the script that works alone, from the package nvfp4/.

usage: python tools/single_file.py [--check]

`nvfp4/__main__.py` is the template: its statements are copied, and where it imports from the
package, the modules that this import needs follow as sections, those they depend on first. The
same package gives the same bytes. ComfyUI's node pack carries the script as well, with the data
that goes with it. `--check` writes nothing and exits with 1 if a file is not what is built.

It can be this simple because modules import each other by name, at their top, and no two modules
give the same name to different things; tests/unit/test_rooms.py holds the package to that.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "nvfp4"
TEMPLATE = f"{PACKAGE}.__main__"
BUILT = "convert_nvfp4.py"
COMMAND = "python tools/single_file.py"
# ComfyUI's node pack: one folder is all that a user copies, so that it carries what the script
# finds by file name alone, and the licence.
PACK = "comfyui_nvfp4"
CARRIED = ("LICENSE", "calib/*.json", "recipes/*", "sensitive_layers/*.txt")
# Imports of the standard library go before those of other packages, as ruff sorts them.
STANDARD = (*sys.stdlib_module_names, "__future__")
# Columns of a line, for headings and long imports.
WIDTH = 100

# From `# /// script` to `# ///` it is a PEP 723 block, by which `uv run` installs what is needed.
HEAD = '''\
#!/usr/bin/env python3
# Built from the package {package}/ by `{command}`. Change the package, not this file.
#
# /// script
# requires-python = ">=3.10"
# dependencies = [
{requirements}
# ]
# ///
"""Convert diffusion models to mixed-precision NVFP4 files for ComfyUI: `--help` tells how.

This is the whole program in one file. Each section is a module of the package {package}/, with
its name in the heading; what a section uses stands in the sections above it.
"""

from __future__ import annotations
'''

# A module's text, read by another module beside it, which hands it to another process.
READS_TEXT = re.compile(
    r'Path\(__file__\)\.with_name\("(\w+\.py)"\)\.read_text\(encoding="utf-8"\)'
)


class BuildError(Exception):
    """Say where a module of the package cannot become a section of one file, and why."""


def requirements(root: Path = ROOT) -> list[str]:
    """List the lines of requirements.txt that are needed, without those commented out.

    They become the dependencies of the PEP 723 block in the built file.
    """
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_ours(node: ast.stmt) -> bool:
    """Tell whether a statement imports names from the package."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE


def given_names(node: ast.stmt) -> list[str]:
    """List the names that a top-level statement defines: a function, a class, targets of `=`.

    Imports and other statements give none.
    """
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [
        part.id for target in targets if target for part in ast.walk(target)
        if isinstance(part, ast.Name)
    ]  # fmt: skip


def loads_all(room: Path) -> bool:
    """Tell whether importing a room imports all of its modules, as its __init__.py does.

    Formats are such a room: each module enters its rows in a table by being imported, though
    nothing else may name it.
    """
    return "iter_modules" in (room / "__init__.py").read_text(encoding="utf-8")


class Module:
    """Hold one module: its text, its imports, and what is left of it in a single file.

    name: dotted, as in an import. root: the folder that the package is in.
    """

    def __init__(self, name: str, root: Path):
        self.name = name
        self.path = root / Path(*name.split(".")).with_suffix(".py")
        self.lines = self.path.read_text(encoding="utf-8").splitlines()
        self.tree = ast.parse("\n".join(self.lines), str(self.path))

    def fail(self, node: ast.stmt, problem: str) -> None:
        """Raise BuildError with the file and line of a statement."""
        raise BuildError(f"{self.path}:{node.lineno}: {problem}")

    @property
    def imports(self) -> list[ast.stmt]:
        """List the imports at the module's top level, of the package and of others."""
        return [n for n in self.tree.body if isinstance(n, ast.Import | ast.ImportFrom)]

    @property
    def needed(self) -> list[str]:
        """List the package's modules that this one imports from, in the order of its imports."""
        return [node.module for node in self.imports if is_ours(node)]

    def check(self, owners: dict[str, str]) -> None:
        """Raise BuildError for what one file for all modules could not hold.

        owners: {name: module} of all names so far, to which this module's are added. Not allowed
        are relative imports, imports of the package inside functions or of whole modules, imports
        under another name, and names that another module has.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                self.fail(node, "relative import; name the module")
            if is_ours(node):
                if node not in self.tree.body and self.name != TEMPLATE:
                    self.fail(node, "imports from the package stand at the top of a module")
                if renamed := [alias.name for alias in node.names if alias.asname]:
                    self.fail(node, f"{renamed[0]} gets another name")
            if isinstance(node, ast.Import) and any(
                alias.name.split(".")[0] == PACKAGE for alias in node.names
            ):
                self.fail(node, f"import names with `from {PACKAGE}... import`")
        for node in self.tree.body:
            for name in given_names(node):
                if owners.setdefault(name, self.name) != self.name:
                    self.fail(node, f"{name} is a name of {owners[name]}, too")

    @property
    def statements(self) -> str:
        """Return the module's text without its docstring and its imports.

        What is left keeps its comments and its form, line by line.
        """
        first = self.tree.body[0]
        cut = set()
        for node in self.tree.body:
            is_docstring = node is first and ast.get_docstring(self.tree) is not None
            if is_docstring or node in self.imports:
                cut |= {*range(node.lineno, node.end_lineno + 1)}
        kept = [line for number, line in enumerate(self.lines, 1) if number not in cut]
        return READS_TEXT.sub(self.quoted, "\n".join(kept).strip("\n"))

    def quoted(self, found: re.Match) -> str:
        """Quote the text of a file beside the module, as the single file has nothing beside it."""
        text = self.path.with_name(found[1]).read_text(encoding="utf-8")
        if "'''" in text:
            self.fail(
                self.tree.body[0], f"{found[1]} has three quotes ''' in it, which end its text"
            )
        return f"r'''{text}'''"

    @property
    def heading(self) -> str:
        """Write the section's heading: path, and first line of the docstring, filled to WIDTH."""
        what = (ast.get_docstring(self.tree) or "").splitlines()[0].rstrip(".")
        path = self.path.relative_to(self.path.parents[self.name.count(".")])
        return f"# ── {path.as_posix()}: {what} ".ljust(WIDTH, "─")[:WIDTH]


class Builder:
    """Collect sections in the order in which the template asks for them.

    root: the folder that the package is in. Each module comes once, after all that it imports from;
    imports of other packages stand above the first section that needs them, so that the light path
    of the command line comes before torch.
    """

    def __init__(self, root: Path):
        self.root, self.owners = root, {}
        # Lines of imports that are written already, and `module:name` of their names.
        self.imported: set[str] = set()
        self.done: set[str] = {TEMPLATE}
        self.parts: list[str] = []

    def closure(self, name: str, found: list[Module], path: tuple[str, ...] = ()) -> None:
        """Append a module to `found`, after those it imports from, unless it is done already.

        name: a module, or a room, which stands for all its modules. path: the modules on the way
        here. Raises BuildError for a cycle.
        """
        folder = self.root / Path(*name.split("."))
        if folder.is_dir():
            modules = (f"{name}.{file.stem}" for file in sorted(folder.glob("[!_]*.py")))
            for module in modules:
                # One that needs another of its room is on the way, and comes right after that.
                if module not in path:
                    self.closure(module, found, path)
            return
        if name in self.done:
            return
        if name in path:
            raise BuildError(f"import cycle: {' -> '.join((*path, name))}")
        module = Module(name, self.root)
        for needed in module.needed:
            self.closure(needed, found, (*path, name))
        self.done.add(name)
        module.check(self.owners)
        found.append(module)
        # The rest of such a room comes right after the first of it that is needed, and after what
        # that one needs of the room itself.
        room = name.rpartition(".")[0]
        if loads_all(module.path.parent) and not any(step.startswith(room + ".") for step in path):
            self.closure(room, found, path)

    def add_imports(self, nodes: list[ast.stmt]) -> None:
        """Write imports of other packages that are not there yet: standard library first.

        nodes: import statements of several modules, whose names from one module become one line.
        Those of the package itself and of __future__ are left out.
        """
        plain, named = set(), defaultdict(set)
        for node in nodes:
            if isinstance(node, ast.Import):
                plain |= {ast.unparse(ast.Import([alias])) for alias in node.names}
            elif not is_ours(node) and node.module != "__future__":
                named[node.module] |= {ast.unparse(ast.alias(a.name, a.asname)) for a in node.names}
        lines = {line: line.split()[1] for line in plain - self.imported}
        for module, names in named.items():
            fresh = sorted(names - {n for n in names if f"{module}:{n}" in self.imported})
            self.imported |= {f"{module}:{name}" for name in fresh}
            if fresh:
                lines[f"from {module} import {', '.join(fresh)}"] = module
        self.imported |= plain
        is_standard = {line: name.split(".")[0] in STANDARD for line, name in lines.items()}
        groups = [
            sorted((line for line in lines if is_standard[line] is wanted),
                   key=lambda line: (line.startswith("from"), line))
            for wanted in (True, False)
        ]  # fmt: skip
        self.parts += ["\n\n".join("\n".join(group) for group in groups if group)] if lines else []

    def add_sections(self, name: str) -> None:
        """Write a module and all it needs as sections, with the imports they need above them."""
        modules: list[Module] = []
        self.closure(name, modules)
        self.add_imports([node for module in modules for node in module.imports])
        self.parts += [f"{module.heading}\n\n{module.statements}" for module in modules]

    def build(self) -> str:
        """Follow the template statement by statement, and return the single file's text.

        Where the template imports from the package, sections are written; everything else is
        copied. Long import lines are left to `formatted`.
        """
        template = Module(TEMPLATE, self.root)
        # The built file has a docstring of its own.
        body = template.tree.body[1:]
        self.add_imports([node for node in template.imports if not is_ours(node)])
        position = body[0].lineno - 1
        for node in body:
            if is_ours(node):
                self.add_sections(node.module)
            elif node not in template.imports:
                text = template.lines[position : node.end_lineno]
                self.parts.append("\n".join(text).strip("\n"))
            position = node.end_lineno
        # A loop at the template's top level would otherwise overwrite a module's function.
        for node in body:
            for part in ast.walk(node):
                stores = isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                if stores and part.id in self.owners:
                    template.fail(node, f"{part.id} is a name of {self.owners[part.id]}, too")
        listed = "\n".join(f'#   "{line}",' for line in requirements(self.root))
        head = HEAD.format(package=PACKAGE, command=COMMAND, requirements=listed)
        return head + "\n" + "\n\n\n".join(self.parts) + "\n"


def formatted(text: str) -> str:
    """Break long import lines as ruff would: one name a line, in brackets."""
    lines = []
    for line in text.splitlines():
        if line.startswith("from ") and len(line) > WIDTH:
            start, names = line.split(" import ")
            lines += [f"{start} import (", *(f"    {name}," for name in names.split(", ")), ")"]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def with_newlines(path: Path) -> bytes:
    """Read a text file; a checkout on Windows may have line ends of its own."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def carried(root: Path = ROOT) -> dict[Path, bytes]:
    """Read what the node pack carries beside the script: {path in the root: the file's bytes}."""
    files = (file for pattern in CARRIED for file in sorted(root.glob(pattern)))
    return {Path(PACK) / file.relative_to(root): with_newlines(file) for file in files}


def left_over(made: dict[Path, bytes], root: Path = ROOT) -> list[Path]:
    """List files of the pack that were carried once, and are in the root no more."""
    there = (file for pattern in CARRIED for file in sorted((root / PACK).glob(pattern)))
    return [file for file in there if file.relative_to(root) not in made]


def main() -> int:
    """Build or check the single file; return 1 if it cannot be built or a check finds it stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if it differs")
    only_check = parser.parse_args().check
    try:
        script = formatted(Builder(ROOT).build()).encode()
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    made = {Path(BUILT): script, Path(PACK) / BUILT: script, **carried()}
    stale = [
        path
        for path, data in made.items()
        if not (ROOT / path).is_file() or with_newlines(ROOT / path) != data
    ]
    extra = left_over(made)
    if only_check and (stale or extra):
        path = [*stale, *(path.relative_to(ROOT) for path in extra)][0].as_posix()
        print(f"{path} is stale: run `{COMMAND}`", file=sys.stderr)
        return 1
    if not only_check:
        for path in stale:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes(made[path])
        for path in extra:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
