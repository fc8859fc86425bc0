"""Quantised sources, layer configs, and what a preset is for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_nvfp4 as c
from support.conversions import convert_tiny

NONE = ("--preset", "none", "--include", r"blocks\.", "--quiet")


def stored_parts(path, layer):
    """{part: bytes} of a layer."""
    tensors, _ = c.read_header(path)
    return {
        name.removeprefix(f"{layer}."): bytes(c.load_bytes(ref).tolist())
        for name, ref in tensors.items()
        if name.startswith(f"{layer}.")
    }


def decoded(path):
    """{layer: its weight} of the FP8 layers of a file."""
    model, _ = c.open_source(path)
    return {
        ref.layer: c.load_weight(ref) for ref in model.tensors.values() if ref.scale is not None
    }


@pytest.fixture(scope="module", params=["fp8", "scaled-fp8"])
def fp8(request, tiny, tmp_path_factory):
    """The tiny Wan as an FP8 checkpoint of either kind."""
    out = tmp_path_factory.mktemp(request.param) / f"{request.param}.safetensors"
    return convert_tiny(tiny, out, "--recipe", request.param, "--quiet")


def test_fp8_sources_are_decoded_first(fp8, tmp_path, capsys):
    out, plain = tmp_path / "o.safetensors", tmp_path / "plain.safetensors"
    weights = decoded(fp8)
    assert len(weights) == 40
    stored = load_file(fp8)
    for layer, weight in weights.items():
        scale = stored.get(f"{layer}.weight_scale", stored.get(f"{layer}.scale_weight"))
        assert torch.equal(weight, stored[f"{layer}.weight"].float() * scale)
    kept = {
        name: tensor
        for name, tensor in stored.items()
        if name.rpartition(".")[0] not in weights or name.endswith(".bias")
    }
    kept.pop("scaled_fp8", None)
    save_file(kept | {f"{layer}.weight": weight for layer, weight in weights.items()}, plain)
    assert c.main([str(fp8), str(out), *NONE]) == 0
    text = capsys.readouterr().out
    assert "40 layers are FP8 in the source and quantised twice" in text
    assert c.main(["--verify", str(out), "--source", str(fp8), "--quiet"]) == 0
    other = tmp_path / "other.safetensors"
    assert c.main([str(plain), str(other), *NONE]) == 0
    assert load_file(out).keys() == load_file(other).keys()
    for layer in weights:
        assert stored_parts(out, layer) == stored_parts(other, layer)


def test_fp8_layers_that_stay_fp8_keep_their_codes(fp8, tmp_path):
    out = tmp_path / "o.safetensors"
    assert c.main([str(fp8), str(out), *NONE, "--recipe", "fp8"]) == 0
    for layer in decoded(fp8):
        before, after = stored_parts(fp8, layer), stored_parts(out, layer)
        assert after["weight"] == before["weight"]
        assert after["weight_scale"] == before.get("weight_scale", before.get("scale_weight"))


def test_nvfp4_layers_go_over_untouched(tiny, converted, tmp_path, capsys):
    """Its FP8 layers become NVFP4; its NVFP4 layers, scales and flags stay as they are."""
    out = tmp_path / "o.safetensors"
    assert c.main([str(converted), str(out), *NONE]) == 0
    text = capsys.readouterr().out
    before, after = (c.stored_layers(c.open_model(path)) for path in (converted, out))
    packed = [name for name, layer in before.items() if layer.configured is c.NVFP4]
    assert f"{len(packed)} layers are quantised in the source and go over as they are" in text
    for layer in packed:
        assert stored_parts(out, layer) == stored_parts(converted, layer)
        assert after[layer].in_header == after[layer].in_tensor == before[layer].in_header
    again = [name for name, layer in before.items() if layer.configured is c.FP8]
    assert again
    assert {after[name].configured for name in again} == {c.NVFP4}
    assert c.main(["--verify", str(out), "--quiet"]) == 0
    assert c.main(["--verify", str(out), "--source", str(tiny), "--quiet"]) == 0


@pytest.mark.parametrize("lacks", ["header", "tensor"])
def test_a_configuration_in_one_place_is_written_to_both(converted, tmp_path, lacks):
    tensors, metadata = load_file(converted), dict(c.open_model(converted).metadata)
    if lacks == "header":
        del metadata["_quantization_metadata"]
    else:
        tensors = {name: t for name, t in tensors.items() if not name.endswith("comfy_quant")}
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file(tensors, source, metadata)
    assert c.main([str(source), str(out), *NONE]) == 0
    assert c.main(["--verify", str(out), "--quiet"]) == 0
    for layer in c.stored_layers(c.open_model(out)).values():
        assert layer.in_header == layer.in_tensor


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("blocks.3.ffn.0.scale_weight"), "blocks.3.ffn.0.weight"),
        (lambda t: t["blocks.3.ffn.0.scale_weight"].fill_(0), "its scale is 0.0"),
        (lambda t: t["blocks.3.ffn.0.scale_weight"].fill_(float("nan")), "its scale is nan"),
        (lambda t: t.update({"blocks.3.ffn.0.scale_weight": torch.ones(512)}), r"F32 \[512\]"),
    ],
)
def test_fp8_without_one_good_scale_is_refused(tiny, tmp_path, change, reason):
    source = convert_tiny(tiny, tmp_path / "m.safetensors", "--recipe", "scaled-fp8", "--quiet")
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, source)
    with pytest.raises(c.ConvertError, match=rf"is already quantised.*{reason}.*original 16-"):
        c.open_source(source)


def test_a_scaled_fp8_file_cannot_hold_nvfp4_layers(converted, tmp_path, capsys):
    command = [str(converted), str(tmp_path / "o.safetensors"), *NONE, "--recipe", "scaled-fp8"]
    assert c.main(command) == 1
    assert "--recipe scaled-fp8: the source has NVFP4 layers" in capsys.readouterr().err


def test_a_prefix_that_comfyui_does_not_know_is_taken_off(tmp_path, capsys):
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({"diffusion_model.blocks.0.x.weight": torch.ones(32, 32)}, source)
    assert c.main([str(source), str(out), *NONE]) == 0
    assert "names lose their diffusion_model., which" in capsys.readouterr().out
    assert "blocks.0.x.weight" in load_file(out)
    assert c.main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0


def test_what_is_not_the_diffusion_model_stays_as_it_is(tmp_path):
    tensors = {
        "model.diffusion_model.blocks.0.x.weight": torch.ones(32, 32),
        "first_stage_model.decoder.weight": torch.full((32, 32), 1 + 2.0**-20),
        "text_encoders.blocks.0.x.weight": torch.full((32, 32), 1 + 2.0**-20),
    }
    source, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file(tensors, source)
    assert c.main([str(source), str(out), "--preset", "all", "--quiet"]) == 0
    stored = load_file(out)
    assert "model.diffusion_model.blocks.0.x.weight_scale_2" in stored
    for name in ("first_stage_model.decoder.weight", "text_encoders.blocks.0.x.weight"):
        assert torch.equal(stored[name], tensors[name])


@pytest.fixture(scope="module")
def all_in_one(tmp_path_factory):
    """A 16-bit diffusion model beside a text encoder that is FP8."""
    path = tmp_path_factory.mktemp("all") / "all.safetensors"
    config = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    tensors = {f"model.diffusion_model.blocks.{i}.x.weight": torch.ones(32, 32) for i in range(4)}
    tensors |= {
        "text_encoders.blocks.0.x.weight": torch.ones(32, 32).to(torch.float8_e4m3fn),
        "text_encoders.blocks.0.x.weight_scale": torch.tensor(1e-3),
        "text_encoders.blocks.0.x.comfy_quant": config,
        "text_encoders.blocks.1.x.weight": torch.ones(32, 32).to(torch.float8_e4m3fn),
    }
    save_file(tensors, path)
    return path


def test_what_is_quantised_beside_the_diffusion_model_stays_whole(all_in_one, tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    assert c.main([str(all_in_one), str(out), "--preset", "all", "--quiet"]) == 0
    assert "in the source, FP8 layers have neither an input scale" in capsys.readouterr().out
    for layer in ("text_encoders.blocks.0.x", "text_encoders.blocks.1.x"):
        assert stored_parts(out, layer) == stored_parts(all_in_one, layer)
    again = tmp_path / "again.safetensors"
    assert c.main([str(out), str(again), "--preset", "all", "--quiet"]) == 1  # nothing is left


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--exclude", r"blocks\.3\.self_attn\.q"], "NVFP4 in the source already, and goes over"),
        (["--recipe", "fp8"], "--recipe fp8: the source has NVFP4 layers already"),
    ],
)
def test_options_against_nvfp4_layers_of_the_source_are_errors(
    converted, tmp_path, capsys, arguments, problem
):
    assert c.main([str(converted), str(tmp_path / "o.safetensors"), *NONE, *arguments]) == 1
    assert problem in capsys.readouterr().err


def test_edge_blocks_count_blocks_that_are_packed_already(tiny, tmp_path):
    """All but the feed-forward layers of blocks 2 to 5 are packed: the edges are 0, 1, 6 and 7."""
    out, other = tmp_path / "o.safetensors", tmp_path / "other.safetensors"
    include = ["--preset", "none", "--include", r"blocks\.\d\.(self|cross)", "--quiet"]
    include += ["--include", r"blocks\.[0167]\.ffn"]
    assert c.main([str(tiny), str(out), *include]) == 0
    options, model = with_model(c.parse_options([str(out), str(other)]))
    plans, _ = c.make_plans(options, model, c.read_guides(options, model))
    quantised = {plan.ref.layer for plan in plans if plan.is_quantised}
    assert quantised == {f"blocks.{block}.ffn.{i}" for block in (2, 3, 4, 5) for i in (0, 2)}


def with_model(options):
    return options, c.open_source(options.source)[0]


def test_swapped_arguments_do_not_cost_the_original(converted, tmp_path, capsys):
    out = tmp_path / "original.safetensors"
    save_file({"blocks.0.x.weight": torch.ones(32, 32)}, out)
    before = out.read_bytes()
    assert c.main([str(converted), str(out), *NONE]) == 1
    assert "did not make it, but SOURCE is quantised: are they swapped?" in capsys.readouterr().err
    assert out.read_bytes() == before
    save_file({"blocks.0.x.weight": torch.ones(32, 32)}, out, {"convert_nvfp4": "{}"})
    assert c.main([str(converted), str(out), *NONE]) == 0


def test_nan_in_an_fp8_source_is_an_error(tiny, tmp_path, capsys):
    source = convert_tiny(tiny, tmp_path / "m.safetensors", "--recipe", "fp8", "--quiet")
    tensors, metadata = load_file(source), c.open_model(source).metadata
    tensors["blocks.3.ffn.0.weight"].view(torch.uint8)[0, 0] = 0xFF
    save_file(tensors, source, metadata)
    capsys.readouterr()
    assert c.main([str(source), str(tmp_path / "o.safetensors"), *NONE]) == 1
    assert "blocks.3.ffn.0.weight holds NaN: the file is damaged" in capsys.readouterr().err


def test_a_report_or_plan_never_costs_another_file(tiny, tmp_path, capsys):
    out, source = tmp_path / "o.safetensors", tmp_path / "m.json"
    for dry in ([], ["--dry-run"]):
        for given in (
            ["--report", str(tmp_path / "r.json"), "--layer-config-out", str(tmp_path / "r.json")],
            ["--layer-config-out", str(source), "--layer-config", str(source)],
        ):
            source.write_text("{}", encoding="utf-8")
            assert c.main([str(tiny), str(out), *given, *dry, "--quiet"]) == 1
            assert "is another input or output of this conversion" in capsys.readouterr().err
            assert [*tmp_path.iterdir()] == [source]
    with pytest.raises(SystemExit):
        c.main([str(tiny), str(out), "--layer-config-out", str(out)])
    missing = str(tmp_path / "no" / "x.json")
    assert c.main([str(tiny), str(out), "--layer-config-out", missing, "--dry-run"]) == 1
    assert "no such folder; create it first" in capsys.readouterr().err


# ── Layer configs ────────────────────────────────────────────────────────────────────────────────


def test_a_plan_written_down_is_replayed_exactly(tiny, converted, tmp_path):
    """From a GGUF, a summary and layer lists to a config alone: the same bytes."""
    config, out = tmp_path / "plan.json", tmp_path / "o.safetensors"
    convert_tiny(tiny, tmp_path / "x.safetensors", "--dry-run", "--layer-config-out", str(config))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert c.main([str(tiny), str(out), "--layer-config", str(config), "--quiet"]) == 0
    (found, about), (expected, meant) = (c.read_header(path) for path in (out, converted))
    assert found.keys() == expected.keys()
    for name, ref in found.items():
        assert ref.dtype == expected[name].dtype
        assert torch.equal(c.load_bytes(ref), c.load_bytes(expected[name])), name
    key = "_quantization_metadata"
    assert json.loads(about[key]) == json.loads(meant[key])
    again = tmp_path / "again.json"
    command = [str(tiny), str(tmp_path / "x.safetensors"), "--layer-config", str(config)]
    assert c.main([*command, "--dry-run", "--quiet", "--layer-config-out", str(again)]) == 0
    assert again.read_bytes() == config.read_bytes()


def planned(tiny, tmp_path, config, *arguments):
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    command = [str(tiny), str(tmp_path / "o.safetensors"), *arguments, "--quiet", "--dry-run"]
    command += ["--layer-config", str(tmp_path / "c.json")]
    return {p.ref.layer: p for p in c.convert(c.parse_options(command)).plans}


def test_exact_names_go_before_patterns_and_options_before_both(tiny, tmp_path):
    config = {
        r"blocks\.\d\.ffn\.[02]": {"format": "float8_e4m3fn", "input_scale": 0.5},
        "blocks.3.ffn.0": {"format": "nvfp4", "full_precision_matrix_mult": True},
        "blocks.4.ffn.0": {"format": "float32"},
        "patch_embedding.weight": {"format": "source"},
    }
    plans = planned(tiny, tmp_path, config, "--exclude", r"blocks\.5\.ffn\.2")
    fp8 = plans["blocks.2.ffn.2"]
    assert (fp8.precision, fp8.input_scale, fp8.full_precision) == (c.FP8, 0.5, None)
    packed = plans["blocks.3.ffn.0"]
    assert (packed.precision, str(packed.full_precision)) == (c.NVFP4, "--layer-config")
    assert plans["blocks.4.ffn.0"].precision is c.FP32
    assert plans["blocks.5.ffn.2"].precision is c.HALF
    assert plans["patch_embedding"].dtype == "F32"
    assert plans["blocks.4.self_attn.q"].reason.text == "--preset wan"


def test_a_config_lifts_the_presets_mark(tiny, tmp_path):
    """Wan's preset marks cross-attention for full-precision matmul; an entry need not."""
    plans = planned(tiny, tmp_path, {"blocks.3.cross_attn.q": {"format": "nvfp4"}})
    assert plans["blocks.3.cross_attn.q"].full_precision is None
    assert plans["blocks.4.cross_attn.q"].full_precision.text == "--preset wan"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"blocks.3.ffn.9": {"format": "nvfp4"}}, "blocks.3.ffn.9: matches nothing of the source"),
        ({"(": {"format": "nvfp4"}}, r"\(: missing \), unterminated"),
        ({"head.head": {"format": "int4"}}, "format 'int4' is none of nvfp4, float8_e4m3fn, bf"),
        ({"head.head": "nvfp4"}, "needs an object like"),
        ({"head.head": {}}, "format None is none of"),
        ({}, "the layer config is empty"),
        ({"head.head": {"format": "nvfp4", "scale": 1}}, "has scale; known are format, full_p"),
        ({"head.head": {"format": "nvfp4", "input_scale": "1"}}, "input_scale '1' is no float"),
        ({"head.head": {"format": "nvfp4", "input_scale": 0}}, "is not a positive number"),
        ({"head.head": {"format": "bfloat16", "input_scale": 1}}, "bfloat16 takes nothing else"),
        ({"head.head.bias": {"format": "nvfp4"}}, "head.head.bias is no linear layer"),
        ({r".*\.bias": {"format": "nvfp4"}}, "matches nothing of the source: keys are"),
        (
            {"head.head": {"format": "nvfp4", "full_precision_matrix_mult": 1}},
            "full_precision_matrix_mult 1 is no bool",
        ),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_config_is_an_error(tiny, tmp_path, config, problem):
    with pytest.raises(c.ConvertError, match=rf"c\.json: .*{problem}"):
        planned(tiny, tmp_path, config)


# ── Presets ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    [
        "condition_embedder.text_embedder.linear_1.weight",
        "single_transformer_blocks.0.attn.to_q.weight",
        "layers.0.attention.to_q.weight",
    ],
)
def test_names_of_diffusers_are_refused_with_the_reason(tmp_path, name):
    save_file({name: torch.ones(32, 32)}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), *NONE]
    with pytest.raises(c.ConvertError, match="names its tensors as diffusers does"):
        c.convert(c.parse_options([*command[:-1], "--preset", "all"]))


@pytest.mark.parametrize(
    ("preset", "problem"),
    [
        ("auto", "is of no family that --list-presets has; give --gguf, --preset smart"),
        ("smart", "--preset smart: the source has no repeated blocks"),
        ("wan", "m.safetensors is of no known family; give --preset smart"),
    ],
)
def test_a_preset_that_does_not_suit_is_an_error(tmp_path, preset, problem):
    save_file({"x.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors")]
    with pytest.raises(c.ConvertError, match=problem):
        c.convert(c.parse_options([*command, "--preset", preset]))


def test_another_familys_preset_is_an_error(tiny, tmp_path):
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--preset", "flux"]
    with pytest.raises(
        c.ConvertError, match=r"--preset flux: .* is recognised as Wan; give --preset wan"
    ):
        c.convert(c.parse_options(command))


@pytest.mark.parametrize(
    ("count", "kept"), [("0", set()), ("1", {0, 7}), ("3", {0, 1, 2, 5, 6, 7})]
)
@pytest.mark.parametrize("by", ["preset", "gguf"])
def test_edge_blocks_are_as_many_as_asked_for(tiny, tmp_path, count, kept, by):
    source = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "6"]
    command = [str(tiny), str(tmp_path / "o.safetensors"), *(source if by == "gguf" else [])]
    plans = c.convert(c.parse_options([*command, "--edge-blocks", count, "--dry-run"])).plans
    edges = [plan.ref.name for plan in plans if plan.reason.kind is c.Why.EDGE_BLOCK]
    assert {int(name.split(".")[1]) for name in edges} == kept
    assert len(edges) == 10 * len(kept)


def test_plans_that_will_be_regretted_are_noted(tmp_path):
    names = ["txt_norm.weight", *(f"transformer_blocks.{i}.img_mod.1.weight" for i in range(8))]
    tensors = {name: torch.ones(32, 64) for name in names} | {"odd.weight": torch.ones(32, 40)}
    save_file(tensors, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--dry-run"]
    command += ["--preset", "all", "--full-precision-mm"]
    notes = "\n".join(c.convert(c.parse_options(command)).notes)
    assert "94 % of the linear weights are NVFP4: image models are known to give noise" in notes
    assert "no layer is W4A4: the file saves memory, and no time over 16-bit" in notes
    assert "1 layers are FP8 for their shape: odd" in notes


def test_list_presets_shows_every_row(capsys):
    with pytest.raises(SystemExit) as stop:
        c.main(["--list-presets"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, family in c.FAMILIES.items():
        assert f"\n{name}: {family.title}, in " in f"\n{text}"
        assert all(keep.layers in text and keep.why in text for keep in family.keeps)
    assert all(f"\n{name}: " in text for name in c.GENERAL_PRESETS)


def test_mode_is_another_name():
    given = {("--mode", "safe"): "auto", ("--mode", "all"): "all", (): "auto"}
    for arguments, preset in given.items():
        assert c.parse_options(["m", "o.safetensors", *arguments]).preset == preset
    assert c.parse_options(["m", "o.safetensors", "--gguf", "x.gguf"]).preset is None
