"""The scale that a LoRA is merged at, wherever its alpha is stored: measured in merged weights."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.model import Lora
from nvfp4.read.tensors import load_weight
from nvfp4.source.loras import merge_loras
from support.loras import loha, lokr, opened, rand

RANK, ALPHA = 8, 32.0
LAYERS = ("blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.1.ffn.0")
STATE = {f"{layer}.weight": torch.zeros(32, 16) for layer in LAYERS}
STATE |= {f"{layer}.bias": torch.zeros(32) for layer in LAYERS}


def factors(prefix="transformer.", rank=RANK, layers=LAYERS):
    """{layer: (A, B)} and the LoRA's tensors, as PEFT names them."""
    pairs = {layer: (rand(rank, 16), rand(32, rank)) for layer in layers}
    keys = {}
    for layer, (a, b) in pairs.items():
        keys |= {f"{prefix}{layer}.lora_A.weight": a, f"{prefix}{layer}.lora_B.weight": b}
    return pairs, keys


def merge(tmp_path, path, *, partial=False):
    return merge_loras([Lora(path, 1.0)], opened(tmp_path, STATE), partial=partial)


def scales_of(source, pairs):
    """{layer: scale} by least squares of what was added, which is exactly a multiple of B A."""
    found = {}
    for layer, (a, b) in pairs.items():
        added, change = load_weight(source.model.tensors[f"{layer}.weight"]), b @ a
        found[layer] = float((added * change).sum() / change.square().sum())
        assert torch.allclose(added, found[layer] * change, rtol=1e-4, atol=1e-4)
    return found


def written(tmp_path, keys, metadata=None, config=None, name="lora.safetensors"):
    folder = tmp_path / "lora"
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in keys.items()}, folder / name, metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def stated(**fields):
    """The metadata of diffusers: PEFT's configuration as JSON, under the component's name."""
    config = {f"transformer.{name}": value for name, value in fields.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


KOHYA = {"ss_network_alpha": "32.0", "ss_network_dim": "8"}
SOURCES = {
    "diffusers": (stated(r=RANK, lora_alpha=ALPHA, target_modules=["q"]), None),
    "diffusers without a component": (
        {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})},
        None,
    ),
    "SimpleTuner": ({"transformer.lora_alpha": "32.0", "transformer.r": "8"}, None),
    "both, agreeing": (stated(r=RANK, lora_alpha=32) | {"transformer.lora_alpha": "32.0"}, None),
    "plain": ({"lora_alpha": "32", "r": "8"}, None),
    "MiniMax's": ({"alpha": "32"}, None),
    "network_alpha": ({"network_alpha": "32", "network_dim": "8"}, None),
    "kohya's": (KOHYA, None),
    "a text encoder's besides": (
        stated(lora_alpha=ALPHA) | {"text_encoder.lora_alpha": "4", "text_encoder.r": "2"},
        None,
    ),
    "an unused component": (
        {"transformer.lora_alpha": "32", "transformer_2.lora_alpha": "8"},
        None,
    ),
    "PEFT's file": (None, {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}),
    "PEFT's file and metadata": (stated(lora_alpha=ALPHA), {"r": RANK, "lora_alpha": ALPHA}),
    "another value that says nothing": (
        {"lora_alpha": "32", "ss_network_alpha": "None"},
        {"lora_alpha": None},
    ),
}


@pytest.mark.parametrize(("metadata", "config"), SOURCES.values(), ids=SOURCES)
def test_alpha_outside_of_tensors_is_applied_and_told(tmp_path, metadata, config):
    pairs, keys = factors()
    source = merge(tmp_path, written(tmp_path, keys, metadata, config))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 4.0), rel=1e-5)
    merged, note = source.notes
    assert merged == "lora.safetensors: merged into 3 tensors at strength 1"
    assert "3 layers are merged at the scale they were trained with, 4 (alpha from" in note
    assert "ComfyUI, which reads alpha tensors only, takes 1" in note


@pytest.mark.parametrize(
    ("metadata", "config"),
    [
        (None, None),
        ({"format": "pt", "lora_adapter_metadata": "{}"}, None),
        (stated(r=RANK, lora_alpha=RANK), None),
        (stated(r=RANK), {"r": RANK, "lora_alpha": None}),
        ({"modelspec.title": "alpha", "text_encoder.lora_alpha": "99"}, None),
    ],
)
def test_nothing_stated_or_alpha_of_the_rank_is_a_scale_of_1_without_a_note(
    tmp_path, metadata, config
):
    pairs, keys = factors()
    source = merge(tmp_path, written(tmp_path, keys, metadata, config))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 1.0), rel=1e-5)
    assert len(source.notes) == 1


@pytest.mark.parametrize("on", [True, "true", "True", "1"])
def test_rank_stabilised_is_over_the_root_of_the_rank(tmp_path, on):
    pairs, keys = factors()
    metadata = stated(r=RANK, lora_alpha=ALPHA, use_rslora=on)
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    expected = ALPHA / math.sqrt(RANK)
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, expected), rel=1e-5)
    assert "over the root of the rank" in source.notes[1]


def test_patterns_give_single_modules_their_own(tmp_path):
    """As in PEFT: a pattern is the module's name or the end of it."""
    pairs, keys = factors()
    wide = factors(rank=4, layers=LAYERS[2:])
    pairs, keys = pairs | wide[0], keys | wide[1]
    metadata = stated(
        r=RANK,
        lora_alpha=ALPHA,
        alpha_pattern={"self_attn.k": 2, r".*\.1\.ffn\.0": 6.0},
        rank_pattern={"blocks.1.ffn.0": 4},
    )
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    expected = dict(zip(LAYERS, (32 / 8, 2 / 8, 6 / 4), strict=True))
    assert scales_of(source, pairs) == pytest.approx(expected, rel=1e-5)
    assert "0.25 to 4" in source.notes[1]


def test_a_pattern_alone_leaves_the_others_at_1(tmp_path):
    pairs, keys = factors()
    metadata = stated(alpha_pattern={"q": 16})
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    expected = dict(zip(LAYERS, (2, 1, 1), strict=True))
    assert scales_of(source, pairs) == pytest.approx(expected, rel=1e-5)


def test_each_component_has_its_own(tmp_path):
    pairs, keys = factors("transformer_2.")
    metadata = {"transformer.lora_alpha": "64", "transformer_2.lora_alpha": "16"}
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 2.0), rel=1e-5)


def test_an_alpha_tensor_goes_before_metadata_layer_by_layer(tmp_path):
    pairs, keys = factors()
    keys[f"transformer.{LAYERS[0]}.alpha"] = torch.tensor(4.0)
    source = merge(tmp_path, written(tmp_path, keys, {"lora_alpha": "32"}))
    expected = dict(zip(LAYERS, (0.5, 4.0, 4.0), strict=True))
    assert scales_of(source, pairs) == pytest.approx(expected, rel=1e-5)
    assert source.notes[1].startswith("lora.safetensors: 2 layers are merged at the scale")


def test_metadata_that_no_layer_needs_are_not_minded(tmp_path):
    """kohya's trainers write both; resized files have words in their metadata."""
    pairs, keys = factors("lora_unet_")
    keys = {
        f"lora_unet_{layer.replace('.', '_')}.{part}": value
        for layer, (a, b) in pairs.items()
        for part, value in (
            ("lora_down.weight", a),
            ("lora_up.weight", b),
            ("alpha", torch.tensor(4.0)),
        )
    }
    metadata = {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 0.5), rel=1e-5)
    assert len(source.notes) == 1


def test_kohyas_alpha_is_in_the_weights_of_a_converted_file(tmp_path):
    """musubi-tuner's convert_lora.py multiplies it in, and leaves the metadata as they were."""
    pairs, keys = factors("diffusion_model.")
    metadata = KOHYA | {"ss_network_module": "networks.lora_wan"}
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 1.0), rel=1e-5)
    assert "ss_network_alpha of its metadata is not applied: the file was conv" in source.notes[1]


def test_kohyas_own_names_without_tensors_take_the_metadata(tmp_path):
    pairs, _ = factors()
    keys = {}
    for layer, (a, b) in pairs.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        keys |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
    metadata = KOHYA | {"ss_network_module": "networks.lora_wan"}
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 4.0), rel=1e-5)


def test_loha_and_lokr_are_over_their_own_ranks(tmp_path):
    ours = loha(f"transformer.{LAYERS[0]}", (32, 16), rank=3)
    ours |= lokr(f"transformer.{LAYERS[1]}", (32, 16), split=(True, True))
    ours |= lokr(f"transformer.{LAYERS[2]}", (32, 16), split=(False, False))
    with_tensors = ours | {f"transformer.{layer}.alpha": torch.tensor(6.0) for layer in LAYERS}
    stated_only = merge(tmp_path, written(tmp_path, ours, {"alpha": "6"}))
    stored = merge(tmp_path, written(tmp_path / "lora", with_tensors))
    for layer in LAYERS:
        found, expected = (
            load_weight(source.model.tensors[f"{layer}.weight"]) for source in (stated_only, stored)
        )
        assert torch.allclose(found, expected, rtol=1e-6)


def test_dora_is_scaled_before_its_lengths(tmp_path):
    pairs, keys = factors(layers=LAYERS[:1])
    keys[f"transformer.{LAYERS[0]}.dora_scale"] = rand(32, 1).abs()
    with_tensor = keys | {f"transformer.{LAYERS[0]}.alpha": torch.tensor(ALPHA)}
    state = STATE | {f"{LAYERS[0]}.weight": rand(32, 16)}
    merged = []
    for given, metadata in ((keys, {"alpha": "32"}), (with_tensor, None)):
        path = written(tmp_path, given, metadata)
        source = merge_loras([Lora(path, 0.5)], opened(tmp_path, state), partial=False)
        merged.append(load_weight(source.model.tensors[f"{LAYERS[0]}.weight"]))
    assert torch.allclose(*merged, rtol=1e-6)
    assert pairs


def test_a_bias_beside_b_has_the_scale_of_its_layer(tmp_path):
    """PEFT's lora_bias: the bias gets scale times it. ComfyUI leaves it out."""
    _, keys = factors(layers=LAYERS[:2])
    biases = {layer: rand(32) for layer in LAYERS[:2]}
    keys |= {f"transformer.{layer}.lora_B.bias": bias for layer, bias in biases.items()}
    keys[f"transformer.{LAYERS[1]}.alpha"] = torch.tensor(16.0)
    source = merge(tmp_path, written(tmp_path, keys, {"lora_alpha": "32"}))
    for layer, scale in zip(LAYERS, (4, 2), strict=False):
        found = load_weight(source.model.tensors[f"{layer}.bias"])
        assert torch.allclose(found, scale * biases[layer], rtol=1e-6)
    assert "2 biases beside lora_B are merged, which ComfyUI leaves out" in source.notes[-1]


WRONG = {
    "zero": ({"lora_alpha": "0"}, None, "alpha is '0' in its metadata, which is no positive"),
    "NaN": ({"lora_alpha": "nan"}, None, "alpha is 'nan' in its metadata"),
    "infinite": (stated(lora_alpha=math.inf), None, "alpha is inf in lora_adapter_metadata"),
    "negative": ({"r": "8", "alpha": "-3"}, None, "alpha is '-3' in its metadata"),
    "words": ({"transformer.lora_alpha": "many"}, None, "alpha is 'many' in its metadata"),
    "a truth value": (stated(lora_alpha=True), None, "alpha is True in lora_adapter_metadata"),
    "a list": (stated(lora_alpha=[32]), None, "alpha is [32] in lora_adapter_metadata"),
    "a dictionary": (None, {"lora_alpha": {"q": 1}}, "alpha is {'q': 1} in adapter_config.json"),
    "huge": (None, {"lora_alpha": 10**400}, "alpha is 1000"),
    "another rank": (stated(lora_alpha=32, r=16), None, "the rank is 16 in lora_adapter_metadata"),
    "a rank of words": (KOHYA | {"ss_network_dim": "x"}, None, "rank is 'x' in its metadata"),
    "two values": (
        {"lora_alpha": "32"},
        {"lora_alpha": 16},
        "alpha is 32 in its metadata and 16 in adapter_config.json",
    ),
    "two components": (
        {"high.alpha": "32", "low.alpha": "8"},
        None,
        "alpha is 32 in its metadata for high and 8 in its metadata for low",
    ),
    "DoRA without magnitudes": (
        stated(lora_alpha=32, use_dora=True),
        None,
        "lora_adapter_metadata tells of DoRA",
    ),
    "a pattern that is none": (
        stated(lora_alpha=32, alpha_pattern={"(": 8}),
        None,
        "missing ), unterminated subpattern",
    ),
    "a costly pattern": (
        stated(lora_alpha=32, alpha_pattern={"(a+)+b": 8}),
        None,
        "alpha_pattern in lora_adapter_metadata has '(a+)+b', too intricate",
    ),
    "patterns in a list": (stated(lora_alpha=32, alpha_pattern=[8]), None, "is no dictionary"),
}


@pytest.mark.parametrize(("metadata", "config", "problem"), WRONG.values(), ids=WRONG)
def test_what_is_no_scale_is_an_error_or_with_lora_partial_1(tmp_path, metadata, config, problem):
    pairs, keys = factors()
    path = written(tmp_path, keys, metadata, config)
    with pytest.raises(ConvertError) as caught:
        merge(tmp_path, path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert problem in line
    told = (
        f"; so the scale of 3 layers is not certain, and ComfyUI takes 1: transformer.{LAYERS[1]}"
    )
    assert told in line
    assert line.endswith("; --lora-partial goes on")
    source = merge(tmp_path, path, partial=True)
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 1.0), rel=1e-5)
    assert any(problem in note for note in source.notes)


@pytest.mark.parametrize("text", ["{", "[]", "3", "{" * 70])
def test_damaged_metadata_are_an_error(tmp_path, text):
    path = written(tmp_path, factors()[1], {"lora_adapter_metadata": text})
    with pytest.raises(ConvertError, match="lora_adapter_metadata in its metadata is damaged"):
        merge(tmp_path, path)


def test_a_configuration_that_is_a_pointer_is_told(tmp_path):
    path = written(tmp_path, factors()[1], config={})
    (path.parent / "adapter_config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConvertError, match="is a Git LFS pointer"):
        merge(tmp_path, path)


def test_a_configuration_among_several_loras_is_only_that_of_peft(tmp_path):
    """Folders of LoRAs often have a stray one."""
    config = {"r": RANK, "lora_alpha": ALPHA}
    pairs, keys = factors()
    theirs = written(tmp_path, keys, name="adapter_model.safetensors", config=config)
    other = written(tmp_path, keys, name="other.safetensors")
    assert scales_of(merge(tmp_path, theirs), pairs)[LAYERS[0]] == pytest.approx(4, rel=1e-5)
    source = merge(tmp_path, other)
    assert scales_of(source, pairs)[LAYERS[0]] == pytest.approx(1, rel=1e-5)
    assert "adapter_config.json in its folder is not read" in source.notes[1]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"])
def test_a_folder_stands_for_its_lora(tmp_path, name):
    pairs, keys = factors()
    path = written(tmp_path, keys, name=name, config={"r": RANK, "lora_alpha": ALPHA})
    if name.startswith("adapter"):
        written(tmp_path, keys, name="optimizer.safetensors")
    source = merge(tmp_path, path.parent)
    assert scales_of(source, pairs)[LAYERS[0]] == pytest.approx(4, rel=1e-5)
    assert source.notes[0] == "lora: merged into 3 tensors at strength 1"


def test_a_folder_of_several_or_none_is_an_error(tmp_path):
    _, keys = factors()
    for name in ("a.safetensors", "b.safetensors"):
        path = written(tmp_path, keys, name=name)
    with pytest.raises(ConvertError, match=r"a\.safetensors, b\.safetensors; give one by name"):
        merge(tmp_path, path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConvertError, match="holds no"):
        merge(tmp_path, tmp_path / "empty")


def test_alpha_of_zero_changes_nothing_and_says_so(tmp_path):
    pairs, keys = factors()
    keys[f"transformer.{LAYERS[0]}.alpha"] = torch.tensor(0.0)
    source = merge(tmp_path, written(tmp_path, keys))
    expected = dict(zip(LAYERS, (0, 1, 1), strict=True))
    assert scales_of(source, pairs) == pytest.approx(expected, rel=1e-5)
    assert not source.model.tensors[f"{LAYERS[0]}.weight"].patches
    what = f"alpha is 0 in 1 layer, which changes nothing: transformer.{LAYERS[0]}"
    assert source.notes == (
        "lora.safetensors: merged into 2 tensors at strength 1",
        f"lora.safetensors: {what}",
    )
    keys |= {f"transformer.{layer}.alpha": torch.tensor(0) for layer in LAYERS}
    source = merge(tmp_path, written(tmp_path, keys))
    assert source.notes[0] == "lora.safetensors: merged into 0 tensors at strength 1"
    assert not any(ref.patches for ref in source.model.tensors.values())


def test_dora_with_an_alpha_of_zero_still_scales_the_weight(tmp_path):
    _, keys = factors(layers=LAYERS[:1])
    name = f"transformer.{LAYERS[0]}"
    keys |= {f"{name}.alpha": torch.tensor(0.0), f"{name}.dora_scale": torch.ones(32, 1)}
    source = merge(tmp_path, written(tmp_path, keys))
    assert source.model.tensors[f"{LAYERS[0]}.weight"].patches


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_alpha_that_is_no_number_is_refused_before_anything_is_read(tmp_path, alpha, dtype):
    _, keys = factors()
    keys[f"transformer.{LAYERS[0]}.alpha"] = torch.tensor([alpha], dtype=dtype)
    path = written(tmp_path, keys)
    with pytest.raises(ConvertError, match=rf"q\.alpha is {alpha}: the LoRA is damaged"):
        merge(tmp_path, path)


@pytest.mark.parametrize(
    "metadata",
    [{"alpha": "0.7"}, {"alpha": "1"}, {"alpha": "see readme"}, {"alpha": "see it", "r": "8"}],
)
def test_a_bare_alpha_may_be_no_loras(tmp_path, metadata):
    pairs, keys = factors()
    source = merge(tmp_path, written(tmp_path, keys, metadata))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 1.0), rel=1e-5)
    assert len(source.notes) == 1


def test_a_bare_alpha_beside_a_rank_is_a_loras(tmp_path):
    pairs, keys = factors()
    source = merge(tmp_path, written(tmp_path, keys, {"alpha": "1", "rank": str(RANK)}))
    assert scales_of(source, pairs) == pytest.approx(dict.fromkeys(LAYERS, 1 / RANK), rel=1e-4)
