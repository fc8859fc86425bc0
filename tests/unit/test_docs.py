"""The documents: links and anchors resolve, options exist, command lines parse, fences close."""

import re
import shlex
from pathlib import Path

import pytest

from nvfp4.cli.parse import parse_tasks
from nvfp4.options import OPTIONS
from support.paths import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("calib/**/*.md")],
    key=lambda path: (path.parent != ROOT, path),
)
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")
# Pages and options that come with other parts of issue 19.
PLANNED_PAGES: set[str] = set()
PLANNED = PLANNED_PAGES
# Pages that name options of other projects, or options that were.
FOREIGN_PAGES = {"comparison.md", "CHANGELOG.md"}
# Options of pip, torchrun, uv and ComfyUI that pages name.
FOREIGN_OPTIONS = {
    "--nproc-per-node", "--index-url", "--from", "--extra-index-url", "--upgrade",
    "--force-reinstall", "--local-dir", "--cpu",
}  # fmt: skip
# Programs of this repository whose options are found as text: `"--name"`.
PROGRAMS = ("benchmarks", "calib", "examples", "nvfp4", "tests/fuzz", "tests/faults", "tools")
# Arguments that stand for any file or value, for parsing.
PLACEHOLDERS = {"OUTPUT": "OUT.safetensors", "OUT": "OUT.safetensors", "CARD": "ada"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def every_document() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def split_fences(text: str) -> tuple[str, list[str]]:
    """Return a document's prose without its fenced blocks, and the blocks."""
    parts = re.split(r"^[ ]*```.*$", text, flags=re.MULTILINE)
    return "\n".join(parts[::2]), parts[1::2]


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    prose, _ = split_fences(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", prose, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(anchor if anchor not in found else f"{anchor}-1")
    return found


@every_document()
def test_fences_close(path):
    assert len(re.findall(r"^[ ]*```", path.read_text(encoding="utf-8"), re.MULTILINE)) % 2 == 0


@every_document()
def test_links_and_anchors_resolve(path):
    prose, _ = split_fences(path.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(prose):
        if re.match(r"(https?|mailto):", link) or link.partition("#")[0] in PLANNED:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_lists_every_page_once():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert sorted(re.findall(r"^- \[([\w-]+\.md)\]", index, re.MULTILINE)) == sorted(
        pages | PLANNED_PAGES
    )


def known_flags() -> set[str]:
    """Collect the options of all programs of this repository."""
    flags = {flag for row in OPTIONS for flag, _, _ in row.arguments} | FOREIGN_OPTIONS
    for folder in PROGRAMS:
        for path in (ROOT / folder).rglob("*.py"):
            flags |= set(re.findall(r"[\"'](--[a-z][a-z0-9-]*)", path.read_text(encoding="utf-8")))
    return flags | {"--help", "--version"}


KNOWN_FLAGS = known_flags()


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.name not in FOREIGN_PAGES], ids=name_of
)
def test_options_exist(path):
    code = "\n".join(re.findall(r"`([^`\n]*)`", path.read_text(encoding="utf-8")))
    found = re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)(\.\.\.)?", code)
    # `--full-precision-mm...` stands for several.
    named = {flag for flag, several in found if not several}
    assert named - KNOWN_FLAGS - PLANNED == set()


def command_lines() -> list[tuple[str, str]]:
    """List the converter's command lines in all documents, with the document of each."""
    found = {}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        prose, blocks = split_fences(text)
        lines = [line for block in blocks for line in block.splitlines()]
        for line in [*lines, *re.findall(r"`([^`\n]*)`", prose)]:
            match = re.search(r"(?:^|&& |\d )python3? convert_nvfp4\.py (.*)$", line.strip())
            if match and not re.search(r"…| \.\.\. ", line) and path.name != "CHANGELOG.md":
                found[name_of(path), match[1].split(" | ")[0].strip()] = None
    return list(found)


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_parse(page, line, tmp_path, monkeypatch):  # noqa: ARG001 - names the test
    # What stands in brackets may be left out.
    words = shlex.split(re.sub(r"\[[^\]]*\]", "", line))
    if {"--list-presets", "--list-recipes", "--help", "-h", "--version"} & set(words):
        pytest.skip("answers at once")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    parse_tasks([PLACEHOLDERS.get(word, word) for word in words])
