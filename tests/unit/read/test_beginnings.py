"""Pointers, pages and error messages in the place of any file are told as what they are."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.guides.gguf import open_gguf
from nvfp4.guides.read import read_guides
from nvfp4.logs.reading import read_log
from nvfp4.logs.records import LineChoice
from nvfp4.options import Options
from nvfp4.read.beginnings import refuse_foreign
from nvfp4.read.checkpoint import open_model
from nvfp4.source.loras import group_keys
from support.files import model_with

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n"
FOREIGN = {
    POINTER: "is a Git LFS pointer",
    b"\xef\xbb\xbf" + POINTER: "is a Git LFS pointer",
    b"# xet version 0\nfilesize = 1000\n": "is a Git Xet pointer",
    b"/annex/objects/SHA256E-s1000--00.gguf\n": "is a git-annex pointer",
    b"../.git/annex/objects/ab/cd/SHA256E-s1000--00": "is a git-annex pointer",
    b"<!DOCTYPE html><html>": "is a web page",
    b"\n  <html lang=en>": "is a web page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "is a web page",
    ("\ufeff" + POINTER.decode()).encode("utf-16-le"): "is a Git LFS pointer",
    "\ufeff<html>".encode("utf-16-be"): "is a web page",
    b"Entry not found": "is a download site's error message",
    b"Invalid username or password.": "is a download site's error message",
    b'{"error":"Repository not found"}': "is a download site's error message",
}
GUIDES = {
    "gguf": {},
    "layer_config": {},
    "input_scale_from": {},
    "input_scale_summary_json": {},
    "sensitivity_json": {"sensitivity_threshold": 0.1},
    "full_precision_mm_layers": {},
    "activation_stats": {},
}
READERS = {
    "model": open_model,
    "gguf": open_gguf,
    "lora": group_keys,
    "log": lambda path: read_log(path, CHOICE, {}),
}
CHOICE = LineChoice(format="nvfp4", mode="dynamic", steps=0, passes=1)


@pytest.mark.parametrize("start", FOREIGN)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_tells_what_lies_there_instead(tmp_path, start, reader):
    path = tmp_path / "f"
    path.write_bytes(start)
    with pytest.raises(ConvertError, match=FOREIGN[start]):
        READERS[reader](path)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a picture"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "a picture"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"\x1a\x45\xdf\xa3", "a video"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_what_people_keep_beside_models_is_told(tmp_path, start, what, reader):
    path = tmp_path / "f"
    path.write_bytes(start + bytes(600))
    with pytest.raises(ConvertError, match=f"f: is {what}; give another file here"):
        READERS[reader](path)


@pytest.mark.parametrize("start", FOREIGN)
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_tells_what_lies_there_instead(tmp_path, start, name):
    path = tmp_path / "guide"
    path.write_bytes(start)
    preset = None if name == "gguf" else "all"
    named = (path,) if name == "activation_stats" else path
    options = Options(
        source="in", output="o.safetensors", preset=preset, **{name: named}, **GUIDES[name]
    )
    with pytest.raises(ConvertError) as caught:
        read_guides(options, model_with(["a.weight"]))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: {FOREIGN[start]}")
    assert "download the file" in problem


def test_an_index_and_a_shard_tell_it(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.write_bytes(POINTER)
    with pytest.raises(ConvertError, match=r"index\.json: is a Git LFS pointer"):
        open_model(tmp_path)
    index.write_text('{"weight_map": {"a": "1.safetensors"}}')
    (tmp_path / "1.safetensors").write_bytes(POINTER)
    with pytest.raises(ConvertError, match=r"1\.safetensors: is a Git LFS pointer"):
        open_model(tmp_path)


def test_a_header_whose_length_begins_like_a_page_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    for count in range(30):
        save_file({"a" * (1 + count): torch.ones(2)}, path)
        assert open_model(path).tensors
    # The length 0x3c begins with "<".
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(0x3C)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert [*open_model(path).tensors] == ["a"]


@pytest.mark.parametrize(
    "start", [b"", b"version\n", b"versions.0.ffn\n", b"blocks.0.ffn.0\n", b"{}", b"errors.0\n"]
)
def test_what_is_no_pointer_passes(tmp_path, start):
    refuse_foreign(tmp_path, start)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_a_compressed_log_that_is_a_pointer_is_not_called_damaged(tmp_path, suffix):
    path = tmp_path / f"f.log{suffix}"
    path.write_bytes(POINTER)
    with pytest.raises(ConvertError, match="is a Git LFS pointer"):
        read_log(path, CHOICE, {})
