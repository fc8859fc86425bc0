"""Folders as they lie on disks: which model in them is read, and what is said of others."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.read.checkpoint import open_model
from nvfp4.read.parts import refuse_lone_shard

APPLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(100)


def single(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(2)}, path)
    return path


def sharded(folder, index, *shards):
    for number, shard in enumerate(shards):
        save_file({f"a{number}": torch.ones(2)}, folder / shard)
    weight_map = {f"a{number}": shard for number, shard in enumerate(shards)}
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


def test_what_macos_lays_beside_files_is_passed_over(tmp_path):
    single(tmp_path / "m.safetensors")
    (tmp_path / "._m.safetensors").write_bytes(APPLE)
    assert [*open_model(tmp_path).tensors] == ["a"]
    with pytest.raises(ConvertError, match="is what macOS keeps beside a file"):
        open_model(tmp_path / "._m.safetensors")
    (tmp_path / "m.safetensors").unlink()
    sharded(tmp_path, "m.safetensors.index.json", "1.safetensors")
    (tmp_path / "._m.safetensors.index.json").write_bytes(APPLE)
    (tmp_path / "._1.safetensors").write_bytes(APPLE)
    assert [*open_model(tmp_path).tensors] == ["a0"]
    with pytest.raises(ConvertError, match="is what macOS keeps beside a file"):
        open_model(tmp_path / "._m.safetensors.index.json")


@pytest.mark.parametrize("name", ["m.sft", "M.SAFETENSORS", "m.Sft"])
def test_a_single_file_is_known_by_any_suffix_of_its_kind(tmp_path, name):
    single(tmp_path / name)
    assert [*open_model(tmp_path).tensors] == ["a"]
    assert [*open_model(tmp_path / name).tensors] == ["a"]


@pytest.mark.parametrize(
    "index",
    [
        "m.safetensors.index.json",
        "m.safetensors.index.fp16.json",
        "m.fp16.safetensors.index.json",
        "M.SAFETENSORS.INDEX.JSON",
    ],
)
def test_an_index_of_a_variant_goes_before_its_shards(tmp_path, index):
    sharded(tmp_path, index, "m.fp16-1.safetensors", "m.fp16-2.safetensors")
    assert {*open_model(tmp_path).tensors} == {"a0", "a1"}
    assert {*open_model(tmp_path / index).tensors} == {"a0", "a1"}


@pytest.mark.parametrize("source", ["", "model_index.json"])
@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["transformer", "vae", "text_encoder"], "transformer"),
        (["unet", "vae"], "unet"),
        (["transformer", "transformer_2", "vae"], "transformer, transformer_2"),
        (["split_files"], "split_files"),
    ],
)
def test_a_pipelines_root_names_the_right_subfolder(tmp_path, folders, named, source):
    for folder in folders:
        single(tmp_path / folder / "m.safetensors")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConvertError) as caught:
        open_model(tmp_path / source)
    assert str(caught.value).endswith(f"; give its subfolder {named}")


def test_several_models_are_named(tmp_path):
    for name in ("a.safetensors", "b.sft"):
        single(tmp_path / name)
    with pytest.raises(ConvertError, match=r"holds 2 .* it has a\.safetensors, b\.sft; give one"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["m-00002-of-00002.fp16.safetensors", "m.fp16-00001-of-00002.safetensors",
     "M-00001-OF-00002.SAFETENSORS", "m-00001-of-00002.sft"],
)  # fmt: skip
def test_one_shard_of_a_variant_is_no_model(tmp_path, name):
    with pytest.raises(ConvertError, match="is one shard of several"):
        refuse_lone_shard(tmp_path / name)
    refuse_lone_shard(tmp_path / "m-00001-of-00001.fp16.safetensors")
