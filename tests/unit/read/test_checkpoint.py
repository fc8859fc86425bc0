"""Headers, indexes and shards: what is read, and one clear error for what is not."""

import json
import shutil
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nvfp4.errors import ConvertError, DamagedFileError
from nvfp4.read.checkpoint import open_model, read_header
from support.files import raw_safetensors

F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_header_is_read_as_the_safetensors_library_reads_it(tiny):
    path = sorted(tiny.glob("*.safetensors"))[0]
    tensors, _ = read_header(path)
    with safe_open(path, "pt") as library:
        assert set(tensors) == set(library.keys())
        for name, ref in tensors.items():
            part = library.get_slice(name)
            assert (ref.dtype, list(ref.shape)) == (part.get_dtype(), part.get_shape())


def test_tensor_bytes_are_where_the_header_says(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([7, 8])}
    save_file(tensors, tmp_path / "m.safetensors")
    found, _ = read_header(tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    for name, ref in found.items():
        raw = data[ref.begin : ref.begin + ref.nbytes]
        assert torch.equal(
            torch.frombuffer(bytearray(raw), dtype=tensors[name].dtype), tensors[name].flatten()
        )


HEADERS = {
    "empty file": (None, b"", "is empty; copy or download it again"),
    "garbage header": (b"{not json", b"", "the safetensors header is damaged"),
    "not UTF-8": (b'{"\xff": 1}', b"", "the safetensors header is damaged"),
    "deep nesting": (b"[" * 100_000, b"", "the safetensors header is damaged"),
    "a list": (b"[1, 2, 3]", b"", "the safetensors header is damaged"),
    "duplicate name": (b'{"a": 1, "a": 2}', b"", "duplicate key 'a'"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, b"", "must map to strings"),
    "unknown dtype": ({"a": F32_PAIR | {"dtype": "F31"}}, bytes(8), "tensor a: damaged or unknown"),
    "negative size": ({"a": F32_PAIR | {"shape": [-2]}}, bytes(8), "tensor a: damaged or unknown"),
    "boolean size": ({"a": F32_PAIR | {"shape": [True]}}, bytes(8), "tensor a: damaged or unknown"),
    "three offsets": ({"a": F32_PAIR | {"data_offsets": [0, 8, 9]}}, bytes(8), "tensor a: damaged"),
    "entry that is no object": ({"a": 5}, b"", "tensor a: damaged or unknown entry 5"),
    "shape against bytes": (
        {"a": F32_PAIR | {"shape": [3]}},
        bytes(8),
        "tensor a: F32 [3] needs 12 bytes, the header gives it 8",
    ),
    "backward offsets": ({"a": F32_PAIR | {"data_offsets": [8, 0]}}, bytes(8), "gives it -8"),
    "a number beyond 64 bits": (
        {"a": F32_PAIR | {"shape": [10**3000, 10**3000]}},
        bytes(8),
        "tensor a: damaged or unknown",
    ),
    "a hundred dimensions": ({"a": F32_PAIR | {"shape": [2**62] * 100}}, bytes(8), "tensor a: dam"),
    "a name that is no text": (
        b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        bytes(8),
        "damaged or unknown",
    ),
    "overlap": (
        {"a": F32_PAIR, "b": F32_PAIR | {"data_offsets": [4, 12]}},
        bytes(12),
        "tensor b overlaps another at byte",
    ),
    "gap": (
        {"a": F32_PAIR, "b": F32_PAIR | {"data_offsets": [12, 20]}},
        bytes(20),
        "tensor b leaves a gap before it at byte",
    ),
    "truncated data": ({"a": F32_PAIR}, bytes(5), "it is cut off; download it again"),
    "trailing bytes": ({"a": F32_PAIR}, bytes(9), "trailing bytes"),
}


@pytest.mark.parametrize(("header", "data", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, header, data, message):
    path = tmp_path / "model.safetensors"
    if header is None:
        path.write_bytes(data)
    else:
        raw_safetensors(path, header, data)
    with pytest.raises(ConvertError) as caught:
        read_header(path)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 5000) + b"{}")
    message = "its header should have 5,000 bytes; it has 10 bytes"
    with pytest.raises(ConvertError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("model.pt", b""),
        ("model.bin", b"x"),
        ("model.safetensors", b"PK\x03\x04 a zip, as torch's"),
    ],
)
def test_pickles_are_refused_unread(tmp_path, name, start):
    (tmp_path / name).write_bytes(start)
    with pytest.raises(ConvertError, match="is a pickle file"):
        open_model(tmp_path / name)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickles_start(length, tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = raw_safetensors(tmp_path / "m.safetensors", header.ljust(length), b"1234")
    assert read_header(path)[0]["x"].nbytes == 4


def test_a_gguf_as_source_is_refused(tiny):
    with pytest.raises(ConvertError, match="is a GGUF; give a"):
        open_model(tiny / "model.gguf")


def test_an_index_its_folder_and_its_shards_are_one_model(tiny):
    index = tiny / "diffusion_pytorch_model.safetensors.index.json"
    model = open_model(index)
    assert open_model(tiny) == model
    assert len(model.files) == 3
    assert set(model.tensors) == set(json.loads(index.read_text())["weight_map"])


@pytest.fixture
def copy(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    return tmp_path / "copy"


def change_index(folder, change):
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    value = json.loads(index.read_text())
    change(value["weight_map"])
    index.write_text(json.dumps(value))


def test_missing_shards_are_all_named(copy):
    for shard in copy.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(ConvertError) as caught:
        open_model(copy)
    assert len(caught.value.problems) == 2
    told = "00001-of-00002.safetensors: is missing, but diffusion_pytorch_model.safetensors.index"
    assert told in caught.value.problems[0]


def test_index_and_shards_must_list_the_same_tensors(copy):
    def change(weight_map):
        weight_map["blocks.99.ffn.0.weight"] = weight_map.pop("head.head.bias")

    change_index(copy, change)
    with pytest.raises(ConvertError) as caught:
        open_model(copy)
    missing, unlisted = caught.value.problems
    assert "the index lists blocks.99.ffn.0.weight in it" in missing
    assert "has no entry for head.head.bias of" in unlisted


@pytest.mark.parametrize(
    "shard", ["../x", "/etc/passwd", "a\\b", "C:x", "", "..", "a\0b", "a\ud800"]
)
def test_a_shard_must_be_in_the_indexs_folder(copy, shard):
    change_index(copy, lambda weight_map: weight_map.update({"head.head.bias": shard}))
    with pytest.raises(ConvertError, match="is not a file name in its own folder"):
        open_model(copy)


def test_shards_in_hugging_faces_cache_are_read(tiny, tmp_path):
    """Its folder of a revision is links to one folder of files named by their hash."""
    blobs, revision = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    revision.mkdir(parents=True)
    for number, path in enumerate([*tiny.glob("*.safetensors"), *tiny.glob("*.json")]):
        shutil.copy(path, blobs / f"{number:064}")
        (revision / path.name).symlink_to(f"../../blobs/{number:064}")
    assert open_model(revision).tensors.keys() == open_model(tiny).tensors.keys()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_malformed_index(tmp_path, text):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(ConvertError, match=r"m\.safetensors\.index\.json: "):
        open_model(path)


def test_a_folder_must_hold_one_model(tmp_path):
    with pytest.raises(ConvertError, match="holds no "):
        open_model(tmp_path)


NO_METADATA = b'{"__metadata__":null,"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def test_metadata_of_null_is_none_as_in_the_safetensors_library(tmp_path):
    path = raw_safetensors(tmp_path / "m.safetensors", NO_METADATA, bytes(8))
    with safe_open(path, "pt") as library:
        assert not library.metadata()
    tensors, metadata = read_header(path)
    assert ([*tensors], metadata) == (["a"], {})


def test_one_shard_of_null_metadata_leaves_that_of_the_others(tmp_path):
    raw_safetensors(tmp_path / "1.safetensors", NO_METADATA, bytes(8))
    save_file({"b": torch.ones(2)}, tmp_path / "2.safetensors", metadata={"format": "pt"})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert open_model(index).metadata == {"format": "pt"}


@pytest.mark.parametrize("name", ["a\nb", "a\u00a0b", "a\ue000b", "a" * 20_000])
def test_a_name_that_the_library_takes_is_refused_but_not_called_damage(name, tmp_path):
    path = raw_safetensors(tmp_path / "m.safetensors", {name: F32_PAIR}, bytes(8))
    with safe_open(path, "pt") as library:
        assert [*library.keys()] == [name]
    with pytest.raises(ConvertError, match="its name has") as caught:
        read_header(path)
    assert not isinstance(caught.value, DamagedFileError)


@pytest.mark.parametrize(
    "header",
    [{"\ud800": F32_PAIR}, {"__metadata__": {"k": "\ud800"}}, {"__metadata__": {"\udfff": ""}}],
)
def test_half_of_a_surrogate_pair_is_damage_to_both(header, tmp_path):
    path = raw_safetensors(tmp_path / "m.safetensors", {"a": F32_PAIR} | header, bytes(8))
    with pytest.raises(Exception, match="header"):
        safe_open(path, "pt")
    with pytest.raises(DamagedFileError):
        read_header(path)
