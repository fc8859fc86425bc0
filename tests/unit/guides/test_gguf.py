"""A GGUF's types, and their match with the model's tensors."""

import dataclasses
import struct

import gguf
import numpy as np
import pytest
from make_wan import write_gguf

from nvfp4.errors import ConvertError
from nvfp4.guides.gguf import match_gguf, open_gguf, shapes_agree
from nvfp4.guides.records import GGUF_BITS
from nvfp4.model import PREFIXES
from support.files import model_with


def test_every_ggml_type_has_its_bits():
    assert {kind.name for kind in gguf.GGMLQuantizationType} <= GGUF_BITS.keys()


@pytest.mark.parametrize("kind", gguf.GGMLQuantizationType, ids=lambda kind: kind.name)
def test_bits_are_the_storage_cost_rounded_down(kind):
    """The block's own scales make a type cost up to one and a half bits more than its name says."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = size * 8 / block
    assert GGUF_BITS[kind.name] <= stored <= GGUF_BITS[kind.name] + 2


def gguf_with(path, names, shape=(4, 256)):
    write_gguf(path, dict.fromkeys(names, shape), lambda *_: gguf.GGMLQuantizationType.Q5_K)
    return path


@pytest.mark.parametrize("ours", ["", *PREFIXES])
@pytest.mark.parametrize("theirs", ["", *PREFIXES])
def test_names_match_with_and_without_prefix(tmp_path, ours, theirs):
    path = gguf_with(tmp_path / "m.gguf", [f"{theirs}blocks.0.ffn.0.weight"])
    kinds, notes = match_gguf(path, model_with([f"{ours}blocks.0.ffn.0.weight"]))
    assert kinds == {f"{ours}blocks.0.ffn.0.weight": "Q5_K"}
    assert notes == []


def test_a_gguf_on_a_disk_needs_no_temporary_folder(tmp_path, monkeypatch):
    path = gguf_with(tmp_path / "m.gguf", ["blocks.0.ffn.0.weight"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert len(open_gguf(path).tensors) == 1


def test_a_gguf_of_another_model_shows_both_sides(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["double_blocks.0.img_attn.qkv.weight"])
    with pytest.raises(ConvertError) as caught:
        match_gguf(path, model_with(["blocks.0.ffn.0.weight"]))
    assert "the source has blocks.0.ffn.0.weight" in str(caught.value)
    assert "it has double_blocks.0.img_attn.qkv.weight" in str(caught.value)


def test_a_gguf_of_another_size_shows_both_shapes(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["blocks.0.ffn.0.weight"])
    with pytest.raises(ConvertError, match=r"\[4, 256\]; the source has .* \[8, 256\]"):
        match_gguf(path, model_with(["blocks.0.ffn.0.weight"], (8, 256)))


def test_what_is_packed_in_the_source_has_no_shape_of_the_gguf(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["blocks.0.q.weight", "blocks.1.q.weight"])
    model = model_with(["blocks.0.q.weight", "blocks.1.q.weight", "blocks.1.q.weight_scale_2"])
    kept = {
        name: dataclasses.replace(ref, dtype="U8", shape=(4, 128), is_kept=True)
        if name == "blocks.1.q.weight"
        else dataclasses.replace(ref, is_kept="blocks.1." in name)
        for name, ref in model.tensors.items()
    }
    kinds, notes = match_gguf(path, dataclasses.replace(model, tensors=kept))
    assert (kinds["blocks.0.q.weight"], notes) == ("Q5_K", [])


def test_what_only_one_side_has_is_noted(tmp_path):
    path = gguf_with(tmp_path / "m.gguf", ["a.weight", "extra.weight"])
    _, notes = match_gguf(path, model_with(["a.weight", "lacking.weight"]), partial=True)
    assert notes == [
        "--partial-guide: 50 % of the linear weights' bytes follow m.gguf",
        "1 tensor not in the GGUF stays 16-bit: lacking.weight",
        "1 tensor of the GGUF is not in the source: extra.weight",
    ]


def test_original_shapes_are_taken_from_the_ggufs_own_fields(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch="wan")
    writer.add_tensor("x.weight", np.zeros((2, 512), np.float32))
    writer.add_array("comfy.gguf.orig_shape.x.weight", [4, 256])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ref = open_gguf(tmp_path / "m.gguf").tensors["x.weight"]
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
    assert shapes_agree(shape, stored) is agree


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
        ConvertError, match=r"broken\.gguf: (is not a GGUF|the GGUF is cut off, damaged)"
    ):
        open_gguf(path)
