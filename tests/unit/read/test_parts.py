"""A shard is told by its name, or by an index beside it."""

import json

import pytest

from nvfp4.errors import ConvertError
from nvfp4.read.checkpoint import open_model
from nvfp4.read.parts import refuse_lone_shard, sibling

SHARDS = [
    "m-00002-of-00002.safetensors", "m-00002-of-00002.fp16.safetensors",
    "m.fp16-00001-of-00002.safetensors", "M-00001-OF-00002.SAFETENSORS", "m-00001-of-00002.sft",
    "m-1-of-2.safetensors", "m_00001_of_00002.safetensors", "m-00001-of-00002-bf16.safetensors",
    "m.part1of2.safetensors", "m (1 of 2).safetensors", "shard1-of-12.safetensors",
    "1of2.safetensors", "m-00000-of-00002.safetensors", "m-1-of-1-00001-of-00002.safetensors",
]  # fmt: skip
WHOLE = [
    "m.safetensors", "m-00001-of-00001.safetensors", "m-00001-of-00001.fp16.safetensors",
    "best-of-2.safetensors", "proof2.safetensors", "wan2.2-14b-of-2025.safetensors",
    "m-1-of.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_one_shard_is_no_model(tmp_path, name):
    with pytest.raises(ConvertError, match=r"is one shard of several; give the .* or the folder"):
        refuse_lone_shard(tmp_path / name)


@pytest.mark.parametrize("name", WHOLE)
def test_other_names_are_those_of_whole_models(tmp_path, name):
    refuse_lone_shard(tmp_path / name)


@pytest.mark.parametrize("index", ["m.safetensors.index.json", "m.safetensors.index.fp16.json"])
def test_a_shard_of_any_name_is_told_by_the_index_beside_it(tmp_path, index):
    shards = {"a.weight": "first.safetensors", "b.weight": "second.safetensors"}
    (tmp_path / index).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ConvertError, match=rf"beside it \({index}\), or the folder"):
        refuse_lone_shard(tmp_path / "second.safetensors")
    refuse_lone_shard(tmp_path / "third.safetensors")
    refuse_lone_shard(tmp_path / index)
    refuse_lone_shard(tmp_path)


def test_an_index_of_one_shard_or_a_damaged_one_makes_nothing_a_part(tmp_path):
    (tmp_path / "a.safetensors.index.json").write_text("{")
    one = {"weight_map": {"a.weight": "whole.safetensors"}}
    (tmp_path / "b.safetensors.index.json").write_text(json.dumps(one))
    refuse_lone_shard(tmp_path / "whole.safetensors")


def test_a_folder_of_shards_without_their_index_says_so(tmp_path):
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ConvertError, match=r"holds shards \(.*\) and no index; download"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "second"),
    [("m-00001-of-00003.gguf", "m-00002-of-00003.gguf"), ("m_9_of_12.gguf", "m_2_of_12.gguf"),
     ("1-of-2 m-01-of-03.gguf", "1-of-2 m-02-of-03.gguf")],
)  # fmt: skip
def test_siblings_keep_the_form_of_the_name(tmp_path, name, second):
    assert sibling(tmp_path / name, 2) == tmp_path / second
