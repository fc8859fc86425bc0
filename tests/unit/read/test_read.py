"""Readers: what they accept, and one clear error for what they do not."""

import json
import shutil
import struct

import gguf
import numpy as np
import pytest
import torch
from make_wan import write_gguf
from safetensors import safe_open
from safetensors.torch import save_file

import convert_nvfp4 as c
from support.files import model_with, raw_safetensors

F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_header_is_read_as_the_safetensors_library_reads_it(tiny):
    path = sorted(tiny.glob("*.safetensors"))[0]
    tensors, _ = c.read_header(path)
    with safe_open(path, "pt") as library:
        assert set(tensors) == set(library.keys())
        for name, ref in tensors.items():
            part = library.get_slice(name)
            assert (ref.dtype, list(ref.shape)) == (part.get_dtype(), part.get_shape())


def test_tensor_bytes_are_where_the_header_says(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([7, 8])}
    save_file(tensors, tmp_path / "m.safetensors")
    found, _ = c.read_header(tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    for name, ref in found.items():
        raw = data[ref.begin : ref.begin + ref.nbytes]
        assert torch.equal(
            torch.frombuffer(bytearray(raw), dtype=tensors[name].dtype), tensors[name].flatten()
        )


HEADERS = {
    "empty file": (None, b"", "not a safetensors file; it has 0 bytes"),
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
    with pytest.raises(c.ConvertError) as caught:
        c.read_header(path)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 5000) + b"{}")
    message = "its header should have 5,000 bytes; it has 10 bytes"
    with pytest.raises(c.ConvertError, match=message):
        c.read_header(path)


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
    with pytest.raises(c.ConvertError, match="is a pickle file"):
        c.open_model(tmp_path / name)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickles_start(length, tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = raw_safetensors(tmp_path / "m.safetensors", header.ljust(length), b"1234")
    assert c.read_header(path)[0]["x"].nbytes == 4


def test_a_gguf_as_source_is_refused(tiny):
    with pytest.raises(c.ConvertError, match="is a GGUF; give a"):
        c.open_model(tiny / "model.gguf")


def test_an_index_its_folder_and_its_shards_are_one_model(tiny):
    index = tiny / "diffusion_pytorch_model.safetensors.index.json"
    model = c.open_model(index)
    assert c.open_model(tiny) == model
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
    with pytest.raises(c.ConvertError) as caught:
        c.open_model(copy)
    assert len(caught.value.problems) == 2
    told = "00001-of-00002.safetensors: is missing, but diffusion_pytorch_model.safetensors.index"
    assert told in caught.value.problems[0]


def test_index_and_shards_must_list_the_same_tensors(copy):
    def change(weight_map):
        weight_map["blocks.99.ffn.0.weight"] = weight_map.pop("head.head.bias")

    change_index(copy, change)
    with pytest.raises(c.ConvertError) as caught:
        c.open_model(copy)
    missing, unlisted = caught.value.problems
    assert "the index lists blocks.99.ffn.0.weight in it" in missing
    assert "has no entry for head.head.bias of" in unlisted


@pytest.mark.parametrize(
    "shard", ["../x", "/etc/passwd", "a\\b", "C:x", "", "..", "a\0b", "a\ud800"]
)
def test_a_shard_must_be_in_the_indexs_folder(copy, shard):
    change_index(copy, lambda weight_map: weight_map.update({"head.head.bias": shard}))
    with pytest.raises(c.ConvertError, match="is not a file name in its own folder"):
        c.open_model(copy)


def test_shards_in_hugging_faces_cache_are_read(tiny, tmp_path):
    """Its folder of a revision is links to one folder of files named by their hash."""
    blobs, revision = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    revision.mkdir(parents=True)
    for number, path in enumerate([*tiny.glob("*.safetensors"), *tiny.glob("*.json")]):
        shutil.copy(path, blobs / f"{number:064}")
        (revision / path.name).symlink_to(f"../../blobs/{number:064}")
    assert c.open_model(revision).tensors.keys() == c.open_model(tiny).tensors.keys()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_malformed_index(tmp_path, text):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(c.ConvertError, match=r"m\.safetensors\.index\.json: "):
        c.open_model(path)


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nerror: all is well", "a\u202eb", "\0"])
def test_a_name_that_could_forge_output_is_refused(name, tmp_path, capsys):
    save_file({name: torch.zeros(1)}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--include", "a"]
    assert c.main(command) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert name not in error


def test_one_shard_alone_is_refused(tiny, tmp_path, capsys):
    shard = min(tiny.glob("*-00001-of-*.safetensors"))
    command = [str(shard), str(tmp_path / "o.safetensors"), "--include", "ffn"]
    assert c.main(command) == 1
    assert "is one shard of several; give the *.safetensors.index.json" in capsys.readouterr().err


def test_a_folder_must_hold_one_model(tmp_path):
    with pytest.raises(c.ConvertError, match="holds no "):
        c.open_model(tmp_path)


# GGUF


def test_every_ggml_type_has_its_bits():
    assert {kind.name for kind in gguf.GGMLQuantizationType} <= c.GGUF_BITS.keys()


@pytest.mark.parametrize("kind", gguf.GGMLQuantizationType, ids=lambda kind: kind.name)
def test_bits_are_the_storage_cost_rounded_down(kind):
    """The block's own scales make a type cost up to one and a half bits more than its name says."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = size * 8 / block
    assert c.GGUF_BITS[kind.name] <= stored <= c.GGUF_BITS[kind.name] + 2


def gguf_with(path, names, shape=(4, 256)):
    write_gguf(path, dict.fromkeys(names, shape), lambda *_: gguf.GGMLQuantizationType.Q5_K)
    return path


@pytest.mark.parametrize("ours", ["", *c.PREFIXES])
@pytest.mark.parametrize("theirs", ["", *c.PREFIXES])
def test_names_match_with_and_without_prefix(tmp_path, ours, theirs):
    path = gguf_with(tmp_path / "m.gguf", [f"{theirs}blocks.0.ffn.0.weight"])
    kinds, notes = c.match_gguf(path, model_with([f"{ours}blocks.0.ffn.0.weight"]))
    assert kinds == {f"{ours}blocks.0.ffn.0.weight": "Q5_K"}
    assert notes == []


def test_a_gguf_of_another_model_shows_both_sides(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["double_blocks.0.img_attn.qkv.weight"])
    with pytest.raises(c.ConvertError) as caught:
        c.match_gguf(path, model_with(["blocks.0.ffn.0.weight"]))
    assert "the source has blocks.0.ffn.0.weight" in str(caught.value)
    assert "the GGUF has double_blocks.0.img_attn.qkv.weight" in str(caught.value)


def test_a_gguf_of_another_size_shows_both_shapes(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["blocks.0.ffn.0.weight"])
    with pytest.raises(c.ConvertError, match=r"is \[8, 256\] in the source, \[4, 256\] as"):
        c.match_gguf(path, model_with(["blocks.0.ffn.0.weight"], (8, 256)))


def test_what_only_one_side_has_is_noted(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["a.weight", "extra.weight"])
    _, notes = c.match_gguf(path, model_with(["a.weight", "lacking.weight"]))
    assert notes == [
        "1 tensors not in the GGUF stay 16-bit: lacking.weight",
        "1 tensors of the GGUF are not in the source: extra.weight",
    ]


def test_original_shapes_are_taken_from_the_ggufs_own_fields(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch="wan")
    writer.add_tensor("x.weight", np.zeros((2, 512), np.float32))
    writer.add_array("comfy.gguf.orig_shape.x.weight", [4, 256])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ref = c.open_gguf(tmp_path / "m.gguf").tensors["x.weight"]
    assert (ref.dtype, ref.shape) == ("F32", (4, 256))


@pytest.mark.parametrize(
    ("shape", "stored", "agree"),
    [
        ((5, 256), (5, 256), True),
        ((1, 6, 256), (6, 256), True),
        ((256, 16, 1, 2, 2), (4096, 1, 2, 2), True),
        ((256, 16, 1, 2, 2), (256, 16, 1, 2, 2), True),
        ((256, 16, 1, 2, 2), (256, 16, 2, 2), True),
        ((5, 256), (256, 5), False),
        ((256, 16, 1, 2, 2), (256, 15, 2, 2), False),
    ],
)
def test_shapes_that_agree(shape, stored, agree):
    assert c.shapes_agree(shape, stored) is agree


def unknown_type(data):
    position = data.index(b"blocks.0.cross_attn.k.weight") + len(b"blocks.0.cross_attn.k.weight")
    return data[: position + 20] + struct.pack("<I", 999) + data[position + 24 :]


BROKEN_GGUFS = {
    "empty": lambda data: data[:0],
    "not one": lambda data: b"GGML" + data[4:],
    "cut in the names": lambda data: data[:2000],
    "version 9": lambda data: data[:4] + struct.pack("<I", 9) + data[8:],
    "absurd count": lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:],
    "unknown type": unknown_type,
}


@pytest.mark.parametrize("break_it", BROKEN_GGUFS.values(), ids=BROKEN_GGUFS.keys())
def test_a_broken_gguf_is_one_error(tiny, tmp_path, break_it):
    path = tmp_path / "broken.gguf"
    path.write_bytes(break_it((tiny / "model.gguf").read_bytes()))
    with pytest.raises(
        c.ConvertError, match=r"broken\.gguf: (is not a GGUF|the GGUF is cut off, damaged)"
    ):
        c.open_gguf(path)


# Layer lists and calibration


def test_layer_lists_have_comments_and_blank_lines(tmp_path):
    path = tmp_path / "layers.txt"
    path.write_text("# all\n\nblocks.2.ffn.0  # 0.31\nblocks.3.ffn.0.weight\nblocks.2.ffn.0\n")
    assert c.read_layer_list(path) == ("blocks.2.ffn.0", "blocks.3.ffn.0")


def test_a_byte_order_mark_does_not_hide_the_first_layer(tmp_path):
    (tmp_path / "layers.txt").write_text("x\ny\n", encoding="utf-8-sig")
    assert c.read_layer_list(tmp_path / "layers.txt") == ("x", "y")


def options_with(path, percentile=99.9, multiplier=1.0):
    return c.Options(
        source=path,
        output=path,
        input_scale_summary_json=path,
        input_scale_summary_percentile=percentile,
        input_scale_summary_multiplier=multiplier,
    )


def test_a_summary_gives_both_scales_with_its_multiplier(tmp_path):
    row = {"layer": "diffusion_model.a", "scale_p99_9": 0.001, "amax_p99_9": 2.0}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": [row]}))
    rows = c.read_rows(path, "calibration summary")
    found = c.summary_calibration(options_with(path, multiplier=1.5), rows)
    assert found["a"].scales[c.Precision.NVFP4] == pytest.approx(0.0015)
    assert found["a"].scales[c.Precision.FP8] == pytest.approx(3.0 / 448)
    assert found["a"].source == "summary p99.9 x 1.5"


SUMMARIES = {
    "not JSON": ("{", "the calibration summary is not valid JSON"),
    "no layers": ("{}", "has no list of `layers`"),
    "a row without a name": ('{"layers": [{}]}', "has no list of `layers`"),
    "lacks the percentile": (
        '{"layers": [{"layer": "a", "scale_p50": 1}]}',
        "has no scale_p99_9 for a; it has scale_p50",
    ),
    "text for a number": (
        '{"layers": [{"layer": "a", "scale_p99_9": "1"}]}',
        "layer a: scale_p99_9 must be a positive number, not '1'",
    ),
    "zero": ('{"layers": [{"layer": "a", "scale_p99_9": 0}]}', "must be a positive number, not 0"),
    "beyond float32": (
        '{"layers": [{"layer": "a", "scale_p99_9": 1%s}]}' % ("0" * 400),
        "positive",
    ),
    "two rows": (
        '{"layers": [{"layer": "a", "scale_p99_9": 1}, {"layer": "a", "scale_p99_9": 2}]}',
        "has two rows for layer a",
    ),
    "NaN": ('{"layers": [{"layer": "a", "scale_p99_9": NaN}]}', "must be a positive number"),
}


@pytest.mark.parametrize(("text", "message"), SUMMARIES.values(), ids=SUMMARIES.keys())
def test_a_wrong_summary_is_one_error(tmp_path, text, message):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(c.ConvertError) as caught:
        c.summary_calibration(options_with(path), c.read_rows(path, "calibration summary"))
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_reference_scales_are_read_by_the_format_of_their_layer(tmp_path):
    save_file(
        {
            "a.weight": torch.zeros(16, 8, dtype=torch.uint8),
            "a.input_scale": torch.tensor(0.01),
            "b.weight": torch.zeros(16, 16).to(torch.float8_e4m3fn),
            "b.input_scale": torch.tensor(0.5),
        },
        tmp_path / "r.safetensors",
    )
    found = c.read_reference_scales(tmp_path / "r.safetensors")
    assert found["a"].scales[c.Precision.NVFP4] == pytest.approx(0.01)
    assert found["a"].scales[c.Precision.FP8] == pytest.approx(0.06)
    assert found["b"].scales[c.Precision.NVFP4] == pytest.approx(0.5 / 6)


def test_a_reference_scale_of_a_layer_that_is_not_quantised_is_an_error(tmp_path):
    tensors = {"a.weight": torch.zeros(16, 8), "a.input_scale": torch.tensor(0.01)}
    save_file(tensors, tmp_path / "r.safetensors")
    with pytest.raises(c.ConvertError, match="beside an NVFP4 or FP8 weight"):
        c.read_reference_scales(tmp_path / "r.safetensors")


def test_a_reference_without_scales_is_an_error(tiny):
    with pytest.raises(c.ConvertError, match="has no input_scale tensors"):
        c.read_reference_scales(sorted(tiny.glob("*.safetensors"))[0])
