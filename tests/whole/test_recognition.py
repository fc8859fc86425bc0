"""What is made of published models, by real names and shapes: ComfyUI recognises it as before.

No weight is there in these tests: a plan says which tensors a conversion writes, and of which dtype
and shape, and ComfyUI's detection looks at nothing else.
"""

import json

import pytest

from nvfp4.errors import ConvertError
from nvfp4.layout import planned_tensors
from nvfp4.modules import is_doubtful, not_linear, shape_read
from support.comfyui import needs_comfyui, run_comfyui
from support.make_families import read_headers
from support.make_golden import planned_for
from support.paths import FAMILIES

OTHERS = FAMILIES / "others"
# {model: {tensor that has to be written as it is: whether --preset all would pack it else}}
KEPT = {
    "wan22_s2v_14b": {"trainable_cond_mask.weight": (3, 5120)},
    "wan22_animate_14b": {
        "motion_encoder.enc.fc.0.weight": (512, 512),
        "motion_encoder.enc.fc.4.weight": (20, 512),
        "motion_encoder.dec.direction.weight": (512, 20),
    },
    "hidream_i1": {
        "double_stream_blocks.3.block.ff_i.gate.weight": (4, 2560),
        "single_stream_blocks.31.block.ff_i.gate.weight": (4, 2560),
    },
    "hunyuan3d_21": {"blocks.15.moe.gate.weight": (8, 2048), "x_embedder.weight": (2048, 64)},
    "sdxl": {
        "label_emb.0.0.weight": (1280, 2816),
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        "output_blocks.0.1.transformer_blocks.0.attn2.to_k.weight": (1280, 2048),
    },
    "sd35_large": {
        "context_embedder.weight": (2432, 4096),
        "y_embedder.mlp.0.weight": (2432, 2048),
    },
    "ace_step": {"lyric_embs.weight": (6693, 1024)},
    "hunyuan_dit": {"style_embedder.weight": (1, 1408), "extra_embedder.0.weight": (5632, 3968)},
    "stable_audio": {
        "timestep_features.weight": (128, 1),
        "transformer.layers.0.self_attn.to_qkv.weight": (4608, 1536),
    },
    "krea2": {"first.weight": (6144, 64), "txtfusion.projector.weight": (1, 12)},
    "qwen_image_layered": {"time_text_embed.addition_t_embedding.weight": (2, 3072)},
}
PRESETS = ("smart", "all", "auto")


def written(shapes: dict, preset: str) -> dict[str, tuple[str, tuple]]:
    """{tensor: (dtype, shape)} of the file that a preset makes."""
    found = {}
    for plan in planned_for(shapes, ["--preset", preset]).plans:
        found |= planned_tensors(plan)
    return found


@pytest.mark.parametrize("preset", ["smart", "all"])
@pytest.mark.parametrize("model", KEPT)
def test_what_comfyui_cannot_load_packed_is_written_as_it_is(model, preset):
    found = written(read_headers(FAMILIES / f"{model}.txt"), preset)
    for name, shape in KEPT[model].items():
        assert found[name] == ("BF16", shape)
    assert any(dtype == "U8" and len(shape) == 2 for dtype, shape in found.values())


@pytest.mark.parametrize("model", ["krea2", "auraflow", "sdxl"])
def test_known_models_lose_no_linear_layer_to_the_careful_rule(model):
    report = planned_for(read_headers(FAMILIES / f"{model}.txt"), ["--preset", "all"])
    assert not any("may be those of embeddings" in note for note in report.notes)


# What ComfyUI detects in files of which it sees names and shapes alone.
DETECT = """
import json, os, pathlib, sys
sys.path.insert(0, "tests")
from support.comfy_walk import recognised
from support.make_families import import_comfyui
import_comfyui()
found = json.loads(pathlib.Path(os.environ["SHAPES"]).read_text())
print("RESULT", json.dumps({name: recognised(shapes) for name, shapes in found.items()}))
"""
# Names and shapes of every model class and configuration that comfy_walk.py builds.
STATES = """
import json, sys
sys.path.insert(0, "tests")
from support.comfy_walk import built_states
from support.make_families import import_comfyui
import_comfyui()
states = enumerate(built_states())
print("RESULT", json.dumps({f"{path} {number}": shapes for number, (path, shapes) in states}))
"""


def detected(files: dict[str, dict], tmp_path) -> dict[str, list]:
    """{file: [class of comfy.supported_models, configuration]} of {file: {tensor: shape}}."""
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(files))
    return run_comfyui(DETECT, SHAPES=str(path))[0]


def shapes_only(found: dict[str, tuple[str, tuple]]) -> dict[str, tuple]:
    return {name: shape for name, (_, shape) in found.items()}


@needs_comfyui
def test_comfyui_detects_published_models_as_before(tmp_path):
    files = {}
    for path in [*FAMILIES.glob("*.txt"), *OTHERS.glob("*.txt")]:
        shapes = files[path.stem, "source"] = read_headers(path)
        for preset in PRESETS[: None if path.parent == FAMILIES else -1]:
            files[path.stem, preset] = shapes_only(written(shapes, preset))
    found = detected({" ".join(key): shapes for key, shapes in files.items()}, tmp_path)
    # Some are newer than the checkout.
    known = {name for name, _ in files if found[f"{name} source"][0]}
    assert len(known) > 30
    changed = [
        (name, preset)
        for name, preset in files
        if name in known and found[f"{name} {preset}"] != found[f"{name} source"]
    ]
    assert changed == []


@pytest.mark.slow
@needs_comfyui
def test_comfyui_detects_all_its_models_as_before(tmp_path):
    """Every class and configuration that the tables were made of, and every linear layer packed."""
    states, _ = run_comfyui(STATES)
    files, refused = {}, {}
    for name, shapes in states.items():
        shapes = {tensor: tuple(shape) for tensor, shape in shapes.items()}
        try:
            files |= {f"{name} all": shapes_only(written(shapes, "all")), f"{name} source": shapes}
        except ConvertError as error:
            refused[name] = str(error)
    # FILES are parts of models, in which nothing else is to be quantised. A few models are named in
    # ComfyUI as in diffusers.
    known = ("no layer would be quantised", "names its tensors as diffusers does")
    assert not [text for text in refused.values() if not any(part in text for part in known)]
    found = detected(files, tmp_path)
    recognised = [name for name in states.keys() - refused if found[f"{name} source"][0]]
    assert len(recognised) > 80
    assert [n for n in recognised if found[f"{n} all"] != found[f"{n} source"]] == []


@pytest.mark.slow
@needs_comfyui
def test_the_tables_hold_for_this_comfyui():
    """Nothing that the classes and the detection of this checkout say is missing."""
    script = """
import json, sys
sys.path.insert(0, "tests")
from support.comfy_walk import walk
print("RESULT", json.dumps(walk()))
"""
    found, _ = run_comfyui(script)
    for path, name, rows, columns, has_bias, kind in found["weights"]:
        known = not_linear(name)
        assert (known.kind if known else "") == kind, (path, name)
        assert kind or not is_doubtful(name, (rows, columns), has_bias=has_bias), (path, name)
    for path, name, dim in found["reads"]:
        if name.endswith(".weight"):
            assert getattr(shape_read(name.removesuffix(".weight")), dim), (path, name)
