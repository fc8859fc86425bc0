"""Paths on the Hub: how they are written, what is at them, which commit they stay with."""

import dataclasses
import sys

import pytest

from nvfp4.errors import ConvertError
from nvfp4.hub.listing import ListedFile, RemoteListing
from nvfp4.hub.path import Hub, HubPath, hub_place
from nvfp4.options.kinds import input_path
from nvfp4.options.naming import source_name

COMMIT = "0123456789" * 4
FILES = ("a.safetensors", "deep/er/b.gguf", "deep/c.json")


@pytest.fixture
def hub(monkeypatch):
    """A Hub that knows one repository and asks for none."""
    hub = Hub()
    listing = RemoteListing("o/r", COMMIT, {name: ListedFile(7) for name in FILES})
    hub.listings["hf://o/r"] = hub.listings["hf://o/r@v1"] = listing
    monkeypatch.setattr("nvfp4.hub.path.HUB", hub)
    return hub


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://o/r", ("model", "o/r", None, "")),
        ("hf://models/o/r/x", ("model", "o/r", None, "x")),
        ("hf://o/r@main/x/y.z", ("model", "o/r", "main", "x/y.z")),
        ("hf://o/r.v-1_2/x@y", ("model", "o/r.v-1_2", None, "x@y")),
        ("hf://datasets/o/r@v1.0", ("dataset", "o/r", "v1.0", "")),
        ("hf://o/r@refs/pr/12/x/y", ("model", "o/r", "refs/pr/12", "x/y")),
        ("hf://o/r@refs/pr/12", ("model", "o/r", "refs/pr/12", "")),
        ("hf://o/r@feature%2Fx/y", ("model", "o/r", "feature/x", "y")),
    ],
)
def test_a_path_is_taken_apart(text, place):
    assert hub_place(text) == place
    # What is told of its repository may be typed.
    assert hub_place(hub_place(text).repository) == (*place[:3], "")
    assert HubPath.made(text).place == place


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://o", "hf://o/", "hf://o/r@", "hf://o/../x", "hf://o/r@main/../../x", "hf://o/r@../x",
     "hf://o /r", "hf://datasets/o", "hf://o/r?x"],
)  # fmt: skip
def test_what_is_no_path_of_a_repository_is_refused(text):
    with pytest.raises(ValueError, match="hf://owner/repo"):
        HubPath.made(text)


def test_a_text_with_the_scheme_is_one_and_an_address_of_the_web_is_refused():
    assert isinstance(input_path("hf://o/r"), HubPath)
    with pytest.raises(Exception, match="is an address of the web; give hf://o/r"):
        input_path("https://huggingface.co/o/r")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://o/wan-bf16", "wan"),
        ("hf://o/wan@main", "wan"),
        ("hf://o/wan@refs/pr/3", "wan"),
        ("hf://o/wan/transformer", "wan"),
        ("hf://o/wan@v1/transformer_2/diffusion_pytorch_model.safetensors", "wan_2"),
        ("hf://o/wan/x_fp16.safetensors", "x"),
    ],
)
def test_outputs_are_named_by_the_repository_without_its_revision(text, name):
    assert source_name(HubPath.made(text)) == name


def test_files_and_folders_are_as_the_listing_says(hub):
    root = HubPath.made("hf://o/r")
    assert [path.name for path in root.iterdir()] == ["a.safetensors", "deep"]
    assert [path.name for path in (root / "deep").iterdir()] == ["c.json", "er"]
    assert (root.is_dir(), (root / "deep").is_dir(), (root / "a.safetensors").is_file()) == (
        1,
        1,
        1,
    )
    assert (root / "a.safetensors").stat().st_size == 7
    assert not (root / "b.safetensors").exists()
    with pytest.raises(FileNotFoundError, match=r"at commit 0123456; did you mean deep/c\.json"):
        (root / "deep/c").entry()
    with pytest.raises(ConvertError, match="is not hf://owner/repo"):
        root.parent.exists()
    assert hub.files == {}


def test_two_revisions_have_versions_of_their_own_commit(hub):
    one, other = HubPath.made("hf://o/r/a.safetensors"), HubPath.made("hf://o/r@v1/a.safetensors")
    assert one.entry() == other.entry()
    hub.listings["hf://o/r@v1"] = dataclasses.replace(hub.listings["hf://o/r"], commit="f" * 40)
    assert one.entry().version != other.entry().version
    assert one.entry().version < 1 << 48
    assert other.revisions() == {"hf://o/r@v1": "f" * 40}


@pytest.mark.usefixtures("hub")
def test_a_commit_that_is_known_is_not_asked_for_again():
    path = HubPath.made("hf://o/r/a.safetensors")
    assert path.pin({"hf://o/r": COMMIT}) == {"hf://o/r": COMMIT}
    assert path.commit == COMMIT


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("nvfp4.hub.path.HUB", Hub())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConvertError, match=r"0\.34 or newer: python -m pip install hugg"):
        HubPath.made("hf://o/r").exists()
