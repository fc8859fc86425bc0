"""A part of a known model is refused by what it lacks, whatever its name is."""

import json
from pathlib import Path

import pytest

from nvfp4.errors import ConvertError
from nvfp4.families import FAMILIES, recognise
from nvfp4.names import block_of
from nvfp4.source.whole import missing_parts, refuse_part
from support.comfyui import needs_comfyui, run_comfyui
from support.files import model_with
from support.make_families import of_no_family, read_headers
from support.paths import FAMILIES as HEADERS
from support.paths import ROOT

PUBLISHED = sorted(HEADERS.glob("*.txt"))
# Models whose blocks have unusual names.
OTHERS = [
    HEADERS / f"{name}.txt"
    for name in ("ace_step", "auraflow", "hidream_i1", "hunyuan_dit", "krea2", "stable_audio")
]
# Names and shapes of every class of ComfyUI that builds a model.
CLASSES = """
import json, os, sys
sys.path[:0] = [os.environ["TESTS"], os.environ["TESTS"] + "/.."]
from support.comfy_walk import built_states, import_comfyui
import_comfyui()
json.dump(built_states(), open(os.environ["OUT"], "w"))
print("RESULT", json.dumps(0))
"""
# The last tenth of these, as they are written, is what the variant has besides Wan's own layers, or
# the biases of one kind of layers.
ADDED_LAST = ("pid", "wan22_animate_14b", "wan22_s2v_14b", "minimax_music")


def names_of(path):
    return [*read_headers(path)]


def shaped(shapes):
    """A Model that is in no file, of {name: shape}."""
    model = model_with([*shapes])
    for name, shape in shapes.items():
        object.__setattr__(model.tensors[name], "shape", tuple(shape))
    return model


def header_of(path):
    """A published model's names and shapes."""
    return shaped(read_headers(path))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_published_model_is_whole(path):
    assert refuse_part(path, header_of(path)) == []


@needs_comfyui
def test_every_class_of_comfyui_is_whole(tmp_path):
    out = tmp_path / "states.json"
    run_comfyui(CLASSES, TESTS=str(ROOT / "tests"), OUT=str(out))
    states = json.loads(out.read_text(encoding="utf-8"))
    assert len(states) > 60
    assert {path: refuse_part(Path(path), shaped(shapes)) for path, shapes in states} == {
        path: [] for path, _ in states
    }


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("order", ["as written", "by name"])
def test_a_shard_that_is_recognised_lacks_something(path, share, order):
    """The first shard and the last, cut where a program might have cut."""
    model = header_of(path)
    family = FAMILIES.get(recognise(model)[0])
    names = sorted(model.tensors) if order == "by name" else [*model.tensors]
    cut = int(share * len(names))
    for kept in (names[:cut], names[cut:]):
        part = model_with(kept)
        for name in kept:
            object.__setattr__(part.tensors[name], "shape", model.tensors[name].shape)
        added = order == "as written" and share == 0.9 and path.stem in ADDED_LAST
        if family and FAMILIES.get(recognise(part)[0]) is family and not added:
            with pytest.raises(ConvertError, match=r"is not a whole .* it lacks"):
                refuse_part(path, part)


def test_a_gap_in_a_model_of_no_known_family_is_noted(tmp_path):
    names = [f"blocks.{n}.{part}.q.weight" for n in range(6) for part in ("a", "b", "c")]
    path = tmp_path / "m.safetensors"
    assert refuse_part(path, model_with(names)) == []
    cut = [name for name in names if not name.startswith(("blocks.2.", "blocks.3.c"))]
    what = "may be one shard of several: it lacks blocks.2, blocks.3.c.q.weight, which its other"
    assert refuse_part(path, model_with(cut)) == [f"m.safetensors {what} blocks have"]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_gaps_are_noted_whatever_the_blocks_are_called(path):
    """A part that begins within the blocks, from the sixth block of every name on."""
    names = [
        name
        for name in of_no_family(read_headers(path))
        if not (block := block_of(name)) or int(block.rpartition(".")[2]) > 4
    ]
    assert refuse_part(path, model_with(names))


def test_blocks_that_differ_by_design_are_noted_in_the_middle_alone():
    whole = [f"stack.joint.{n}.{part}.q.weight" for n in range(6) for part in ("a", "b")]
    for block, noted in ((0, []), (5, []), (2, ["stack.joint.2.b.q.weight"])):
        names = [name for name in whole if name != f"stack.joint.{block}.b.q.weight"]
        assert missing_parts(model_with(names), None) == noted
    names = [name for name in whole if ".2." not in name]
    assert missing_parts(model_with(names), None) == ["stack.joint.2"]


WAN = next(path for path in PUBLISHED if path.stem == "wan22_ti2v_5b")


@pytest.mark.parametrize(
    ("lost", "named"),
    [("blocks.7.", ["blocks.7"]), ("blocks.29.ffn.2.bias", ["blocks.29.ffn.2.bias"]),
     ("blocks.0.self_attn.v.weight", ["blocks.0.self_attn.v.weight"]),
     ("head.head.", ["head.head"]), ("patch_embedding.", ["patch_embedding"]), ("blocks.29.", [])],
)  # fmt: skip
def test_what_is_lost_is_named(lost, named):
    names = [name for name in names_of(WAN) if not name.startswith(lost)]
    assert missing_parts(model_with(names), FAMILIES["wan"]) == named


@pytest.mark.parametrize(
    ("model", "lost"),
    [("wan21_vace_14b", ["vace_patch_embedding"]),
     ("wan22_animate_14b", ["motion_encoder"]),
     ("wan22_animate_14b", ["pose_patch_embedding", "face_encoder"]),
     ("wan22_animate_14b", ["face_adapter"]),
     ("wan22_s2v_14b", ["casual_audio_encoder"]), ("wan22_s2v_14b", ["audio_injector"]),
     ("wan21_i2v_14b", ["img_emb"])],
)  # fmt: skip
def test_a_variant_without_all_its_own_parts_is_a_shard(model, lost):
    names = [name for name in names_of(HEADERS / f"{model}.txt") if name.split(".")[0] not in lost]
    assert sorted(missing_parts(model_with(names), FAMILIES["wan"])) == sorted(lost)


def test_a_hostile_block_number_costs_nothing():
    names = [*names_of(WAN), "blocks.999999999.ffn.0.weight"]
    missing = missing_parts(model_with(names), FAMILIES["wan"])
    assert missing[0] == "blocks.30"
    assert len(missing) < 100
