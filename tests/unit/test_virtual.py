"""Virtual paths: what the rooms that read ask of a path, on every version of Python."""

import argparse
import io
import os
from pathlib import Path

import pytest

from nvfp4.errors import ConvertError
from nvfp4.files import exists, is_same, size_of, stamp
from nvfp4.options import Options
from nvfp4.options.kinds import input_path, local_path, lora_file, shipped_path
from nvfp4.virtual import (
    SCHEMES,
    Read,
    VirtualEntry,
    VirtualFile,
    VirtualPath,
    reading_ahead,
    virtual_path,
)

FILES = {"toy://box/a.safetensors": bytes(range(100)), "toy://box/deep/b.json": b"{}"}
ANNOUNCED = []


class ToyFile(VirtualFile):
    """A file of FILES, of which a read gives 7 bytes at most."""

    def read_at(self, begin, view):
        data = FILES[str(self.path)][begin : begin + min(7, len(view))]
        view[: len(data)] = data
        return len(data)


class ToyPath(VirtualPath):
    """Paths among FILES."""

    __slots__ = ()
    scheme = "toy"

    def entry(self):
        if str(self) in FILES:
            return VirtualEntry(len(FILES[str(self)]), 12_345_678_901)
        if self.names():
            return VirtualEntry(is_folder=True)
        raise FileNotFoundError(2, "No such file or directory", str(self))

    def opened(self, size):
        return ToyFile(self, size)

    def names(self):
        below = [name.removeprefix(f"{self}/") for name in FILES if name.startswith(f"{self}/")]
        return sorted({name.partition("/")[0] for name in below})

    def will_read(self, reads):
        ANNOUNCED.append(reads)


FILE = ToyPath("toy://box/a.safetensors")


@pytest.fixture(autouse=True, scope="module")
def _only_here():
    yield
    del SCHEMES["toy"]


def test_paths_made_of_a_path_are_of_its_kind_and_write_both_slashes():
    made = [
        FILE.parent,
        FILE.parent / "b",
        FILE.with_name("c"),
        FILE.parents[0],
        FILE.parent.parent,
    ]
    texts = ["toy://box", "toy://box/b", "toy://box/c", "toy://box", "toy://"]
    assert [*map(str, made)] == texts == [os.fspath(path) for path in made]
    assert {type(path) for path in made} == {ToyPath}
    assert (FILE.name, FILE.suffix, FILE.stem) == ("a.safetensors", ".safetensors", "a")
    assert FILE.parent / FILE.name == FILE
    assert hash(FILE.parent / FILE.name) == hash(FILE)
    assert FILE.absolute() == FILE.resolve() == FILE.expanduser() == FILE


@pytest.mark.parametrize("text", ["toy://box/x", "toy:/box/x", "toy:\\\\box\\x", "toy:///box/x"])
def test_a_text_with_a_known_scheme_is_a_virtual_path(text):
    assert str(virtual_path(text)) == "toy://box/x"
    assert str(virtual_path(Path(text))) == "toy://box/x"


@pytest.mark.parametrize(
    "text", ["box/x", "C:\\box", "c:/x", "other://box", "x/toy://box", "toy:x"]
)
def test_other_texts_are_none(text):
    assert virtual_path(text) is None


def test_it_answers_what_a_path_answers(tmp_path):
    folder = FILE.parent
    assert (FILE.is_file(), FILE.is_dir(), FILE.exists(), FILE.is_symlink()) == (1, 0, 1, 0)
    assert (folder.is_file(), folder.is_dir(), folder.exists()) == (0, 1, 1)
    assert [path.name for path in folder.iterdir()] == ["a.safetensors", "deep"]
    assert [*folder.glob("*.safetensors")] == [FILE]
    missing = folder / "none"
    assert (missing.exists(), missing.is_file(), missing.is_dir()) == (0, 0, 0)
    assert (size_of(FILE), stamp(FILE)) == (100, (100, 12_345_678_901))
    with pytest.raises(FileNotFoundError):
        missing.open("rb")
    with pytest.raises(IsADirectoryError):
        folder.open("rb")
    with pytest.raises(io.UnsupportedOperation):
        FILE.open("wb")
    assert exists(FILE)
    assert is_same(FILE, folder / "a.safetensors")
    assert not is_same(FILE, tmp_path)
    assert not is_same(tmp_path, FILE)


def test_it_is_read_buffered_and_unbuffered():
    with FILE.open("rb") as file:
        assert file.peek(1)
        assert file.read(30) == bytes(range(30))
        file.seek(-5, os.SEEK_END)
        assert file.read() == bytes(range(95, 100))
    view = bytearray(20)
    with FILE.open("rb", buffering=0) as file:
        file.seek(90)
        counts = [file.readinto(view), file.readinto(view), file.readinto(view)]
        assert counts == [7, 3, 0]
        file.seek(500)
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
    assert (FILE.parent / "deep" / "b.json").read_text() == "{}"


def test_readers_of_options_take_it_where_it_is_read():
    assert isinstance(input_path("toy://box/x"), ToyPath)
    assert isinstance(shipped_path("toy://box/x", folder="calib"), ToyPath)
    assert lora_file("toy://box/x.safetensors:-0.5") == (ToyPath("toy://box/x.safetensors"), -0.5)
    assert lora_file("toy://box/x.safetensors").strength == 1.0
    with pytest.raises(argparse.ArgumentTypeError, match="on a disk of this machine"):
        local_path("toy://box/x")


def test_outputs_refuse_it_and_made_names_are_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = Options(source="toy://box/wan_bf16.safetensors")
    assert options.output == Path("wan_nvfp4.safetensors")
    assert str(Options(source="toy://box/deep/transformer").output) == "deep_nvfp4.safetensors"
    for wrong in ({"output": "toy://box/b.safetensors"}, {"report": "toy://box/b.html"}):
        with pytest.raises(ConvertError, match=r"toy://box/b.* has to be on a disk"):
            Options(source="toy://box/a.safetensors", **wrong)


def test_reads_are_announced_to_their_kind_in_order(tmp_path):
    reads = [Read(FILE, 0, 5), Read(tmp_path, 0, 5), Read(FILE, 50, 5)]
    with reading_ahead(reads):
        assert [[reads[0], reads[2]]] == ANNOUNCED
    assert ANNOUNCED[1:] == [[]]
