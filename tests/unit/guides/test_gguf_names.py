"""GGUFs of text encoders: llama.cpp's names, and the tokenizers that they carry."""

import dataclasses
import struct

import gguf
import numpy as np
import pytest

from nvfp4.errors import ConvertError
from nvfp4.guides import gguf as guides
from nvfp4.guides.gguf import match_gguf, open_gguf
from support.files import model_with

T5 = {
    "shared.weight": "token_embd.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "enc.blk.0.attn_q.weight",
    "encoder.block.0.layer.0.SelfAttention.k.weight": "enc.blk.0.attn_k.weight",
    "encoder.block.0.layer.0.SelfAttention.v.weight": "enc.blk.0.attn_v.weight",
    "encoder.block.0.layer.0.SelfAttention.o.weight": "enc.blk.0.attn_o.weight",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": "enc.blk.0.ffn_gate.weight",
    "encoder.block.0.layer.1.DenseReluDense.wi_1.weight": "enc.blk.0.ffn_up.weight",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": "enc.blk.0.ffn_down.weight",
    "encoder.final_layer_norm.weight": "enc.output_norm.weight",
}
LLAMA = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    "model.norm.weight": "output_norm.weight",
}
SEEING = {name.replace("model.", "model.language_model.", 1): old for name, old in LLAMA.items()}
# For each architecture of llama.cpp: the names that sources have, and those of the GGUF.
SOURCES = {
    "t5encoder": T5,
    "llama": LLAMA,
    "qwen2vl": LLAMA,
    "qwen3": LLAMA,
    "qwen3vl": SEEING,
    "gemma3": LLAMA,
}
# Types by the ends of names, as a Q5_K_M has them; all others are Q5_K.
TYPES = {"attn_v.weight": "Q6_K", "ffn_down.weight": "Q6_K", "norm.weight": "F32"}


def write(path, architecture, names, tokens=0, shape=(4, 256)):
    """Write a GGUF with tensors of the given names, and a tokenizer of so many tokens."""
    writer = gguf.GGUFWriter(path, arch=architecture)
    writer.add_block_count(2)
    if tokens:
        writer.add_token_list([f"token {number}" for number in range(tokens)])
        writer.add_token_scores([0.5] * tokens)
        writer.add_token_merges(["a b"] * tokens)
    writer.add_string("general.note", "after the tokenizer")
    for name in names:
        ends = (kind for end, kind in TYPES.items() if name.endswith(end))
        kind = gguf.GGMLQuantizationType[next(ends, "Q5_K")]
        if kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.zeros(shape, np.float32))
        else:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = np.zeros((shape[0], shape[1] // block * size), np.uint8)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("architecture", "names"), SOURCES.items())
def test_llama_cpps_names_are_those_of_the_source(tmp_path, architecture, names):
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        pytest.skip(f"this gguf library does not know {architecture}")
    path = write(tmp_path / "m.gguf", architecture, names.values(), tokens=5)
    kinds, notes = match_gguf(path, model_with(names))
    expected = {n: next((k for e, k in TYPES.items() if old.endswith(e)), "Q5_K")
                for n, old in names.items()}  # fmt: skip
    assert (kinds, notes) == (expected, [])


def test_a_vision_tower_is_none_of_the_ggufs_concern(tmp_path):
    """llama.cpp has it in another file: that its blocks are not covered is no error."""
    path = write(tmp_path / "m.gguf", "llama", LLAMA.values())
    tower = [f"model.visual.blocks.{number}.attn.qkv.weight" for number in range(9)]
    kinds, notes = match_gguf(path, model_with([*LLAMA, *tower]))
    assert kinds.keys() == LLAMA.keys()
    assert [str(note)[:45] for note in notes] == ["9 tensors not in the GGUF stay 16-bit: model."]


def test_a_gguf_with_more_blocks_is_of_another_model(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", [*LLAMA.values(), "blk.2.attn_q.weight"])
    with pytest.raises(ConvertError, match=r"whole blocks of it are not in the source: blk\.2"):
        match_gguf(path, model_with(LLAMA))


def test_a_gguf_with_other_shapes_is_of_another_model(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", LLAMA.values(), shape=(8, 256))
    with pytest.raises(ConvertError, match="8 tensors have other shapes"):
        match_gguf(path, model_with(LLAMA))


def test_an_encoders_gguf_for_another_model_is_refused(tmp_path):
    path = write(tmp_path / "m.gguf", "t5encoder", T5.values())
    with pytest.raises(ConvertError, match=r"give the GGUF of the model that is converted"):
        match_gguf(path, model_with(["blocks.0.ffn.0.weight", "blocks.0.ffn.2.weight"]))


def test_an_architecture_that_the_library_does_not_know_is_named(tmp_path):
    path = write(tmp_path / "m.gguf", "newest", LLAMA.values())
    with pytest.raises(ConvertError, match=r"architecture 'newest', which .* pip install --up"):
        match_gguf(path, model_with(LLAMA))


@pytest.mark.parametrize("tokens", [3, 60_000])
def test_a_tokenizer_of_any_length_is_left_out(tmp_path, tokens):
    """The gguf package would make an object of every token; the rest is read as it is there."""
    found = open_gguf(write(tmp_path / "m.gguf", "llama", LLAMA.values(), tokens))
    assert found.tensors.keys() == set(LLAMA.values())
    assert found.metadata["general.note"] == "after the tokenizer"
    assert not any(key.startswith("tokenizer.") for key in found.metadata)


def test_a_tokenizer_that_announces_too_much_is_damage(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", "llama", LLAMA.values(), tokens=20)
    monkeypatch.setattr(guides, "MAX_TOKENS", 50)
    with pytest.raises(ConvertError, match="its tokenizer has 60 values or more"):
        open_gguf(path)


def test_a_tokenizer_that_ends_beyond_the_file_is_damage(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", LLAMA.values(), tokens=20)
    data = path.read_bytes()
    # Key, type of a list, type of its values, number of values.
    place = data.index(b"tokenizer.ggml.scores") + len(b"tokenizer.ggml.scores") + 8
    path.write_bytes(data[:place] + struct.pack("<Q", 3_000_000) + data[place + 8 :])
    with pytest.raises(ConvertError, match=r"it announces 12,000,000 bytes at byte"):
        open_gguf(path)


def test_names_of_a_source_that_is_packed_match_as_well(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", LLAMA.values())
    model = model_with(LLAMA)
    name = "model.layers.0.self_attn.q_proj.weight"
    packed = dataclasses.replace(model.tensors[name], dtype="U8", shape=(4, 128), is_kept=True)
    model = dataclasses.replace(model, tensors=model.tensors | {name: packed})
    assert match_gguf(path, model)[0][name] == "Q5_K"
