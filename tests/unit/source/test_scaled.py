"""FP8 sources as other programs write them: decoded exactly, or refused by layer and shape."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.cli.entry import main
from nvfp4.encode.pieces import PIECE_BYTES, Piece, pieces_of, read_piece
from nvfp4.errors import ConvertError
from nvfp4.formats.floats import HALF
from nvfp4.model import Coding, Lora, TensorRef
from nvfp4.plan.records import UNNAMED, plan_tensor
from nvfp4.read.checkpoint import open_model
from nvfp4.read.tensors import load_some_rows, load_weight
from nvfp4.source.loras import merge_loras
from nvfp4.source.open import open_source
from nvfp4.stored.layers import stored_layers
from nvfp4.stored.lint import lint
from support.scaled import E4M3, E5M2, FORMS, as_bytes, configuration, stored_as, whole

G = torch.Generator().manual_seed(0)
# Neither rows nor columns are multiples of 128 in all of them.
SHAPES = {"blocks.0.a": (320, 192), "blocks.0.b": (512, 64), "blocks.1.a": (96, 320)}
WEIGHTS = {
    layer: torch.randn(shape, generator=G) * torch.rand(shape[0], 1, generator=G) * 0.1
    for layer, shape in SHAPES.items()
}
BESIDE = {f"{layer}.bias": torch.randn(shape[0]) for layer, shape in SHAPES.items()}
SCALE = "blocks.0.a.weight_scale"


def saved(path, tensors):
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except KeyError as error:
        pytest.skip(f"this safetensors writes no {error}")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_source_decodes_to_code_times_scale_in_float32(tmp_path, form):
    tensors, decoded = stored_as(form, WEIGHTS)
    model, notes = open_source(saved(tmp_path / "m.safetensors", tensors | BESIDE))
    assert model.tensors.keys() == {*BESIDE} | {f"{layer}.weight" for layer in WEIGHTS}
    assert notes == ()
    for layer, expected in decoded.items():
        ref = model.tensors[f"{layer}.weight"]
        assert ref.is_linear_weight
        assert torch.equal(load_weight(ref), expected)
        count = len(expected)
        if count > 256:
            rows = [i * (count - 32) // 7 + j for i in range(8) for j in range(32)]
            assert torch.equal(load_some_rows(ref), expected[rows])


@pytest.mark.parametrize("form", ["rows", "128 x 128", "kohya", "E5M2 128 x 128", "scalar"])
def test_rows_from_the_middle_of_a_weight_have_their_own_scales(tmp_path, form):
    tensors, decoded = stored_as(form, WEIGHTS)
    model, _ = open_source(saved(tmp_path / "m.safetensors", tensors))
    plan = plan_tensor(model.tensors["blocks.0.a.weight"], UNNAMED, "F32")
    for first, last in ((0, 1), (1, 130), (127, 129), (200, 320)):
        piece = Piece(plan=plan, begin=192 * first, end=192 * last)
        data = read_piece(piece, torch.empty(piece.nbytes, dtype=torch.uint8))
        assert torch.equal(data.view(-1, 192), decoded["blocks.0.a"][first:last])


@pytest.mark.parametrize(
    "shape", [(4096, 9000), (70_000, 1500), (3, PIECE_BYTES + 5), (64, 16, 1, 1025, 33)]
)
def test_large_weights_with_several_scales_are_cut_between_rows(shape):
    size = torch.Size(shape).numel()
    ref = {"dtype": "F8_E4M3", "shape": shape, "path": None, "begin": 0, "nbytes": size}
    scale = TensorRef(name="s", **ref)
    coded = TensorRef(name="w", **ref, coding=Coding(title="FP8", parts={"weight_scale": scale}))
    pieces = [*pieces_of(plan_tensor(coded, UNNAMED, "BF16"))]
    row = size // shape[0]
    assert len(pieces) > 1
    assert all(piece.begin % row == 0 for piece in pieces)
    assert [piece.end for piece in pieces] == [*(p.begin for p in pieces[1:]), size]
    assert max(piece.nbytes for piece in pieces) <= max(PIECE_BYTES, row)


@pytest.mark.parametrize("form", [form for form in FORMS if "scalar" not in form])
def test_the_output_is_that_of_the_decoded_weights(tmp_path, form):
    tensors, decoded = stored_as(form, WEIGHTS)
    plain = {f"{layer}.weight": weight for layer, weight in decoded.items()}
    outputs = []
    for name, weights in (("quantised", tensors), ("plain", plain)):
        source = saved(tmp_path / f"{name}.safetensors", weights | BESIDE)
        for more in ((), ("--recipe", "fp8"), ("--exclude", "a$", "--dtype", "float16")):
            out = tmp_path / f"{name}{len(outputs)}.safetensors"
            assert main([str(source), str(out), "--preset", "all", "--quiet", *more]) == 0
            outputs.append(as_bytes(out))
        assert main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0
    assert outputs[:3] == outputs[3:]


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ("scalar [1]", True),
        ("scalar inverse", True),
        ("E5M2 scalar", False),
        ("FNUZ scalar", False),
    ],
)
def test_codes_of_e4m3_with_one_scale_stay_as_they_are(tmp_path, form, kept):
    tensors, decoded = stored_as(form, WEIGHTS)
    source, out = saved(tmp_path / "m.safetensors", tensors), tmp_path / "o.safetensors"
    arguments = ["--preset", "all", "--recipe", "fp8", "--quiet"]
    assert main([str(source), str(out), *arguments]) == 0
    model, _ = open_source(out)
    for layer, weight in decoded.items():
        ref = model.tensors[f"{layer}.weight"]
        scale = weight.abs().amax().item() / 448
        assert ref.coding.scale == pytest.approx(scale, rel=0.01)
        assert torch.equal(load_weight(ref), weight) is kept


WRONG = {
    r"blocks.0.a: one of its scales is 0.0": {SCALE: torch.zeros(320, 1)},
    r"blocks.0.a: one of its scales is -1.0": {SCALE: -torch.ones(320)},
    r"blocks.0.a: one of its scales is nan": {SCALE: torch.full((3, 2), float("nan"))},
    r"blocks.0.a: its scale is inf": {SCALE: torch.full((), float("inf"))},
    r"blocks.0.a: its scale is inf ": {SCALE: torch.full((1,), 1e300, dtype=torch.float64)},
    r"blocks.0.a: its scale is F32 \[319, 1\] for a weight \[320, 192\]": {
        SCALE: torch.ones(319, 1)
    },
    r"its scale is F32 \[192\] for": {SCALE: torch.ones(192)},
    r"its scale is F32 \[2, 100\] for": {SCALE: torch.ones(2, 100)},
    r"its scale is F32 \[1, 96\] for a weight \[96": {"blocks.1.a.weight_scale": torch.ones(1, 96)},
    r"its scale is F32 \[2, 1\] for a weight \[96": {"blocks.1.a.weight_scale": torch.ones(2, 1)},
    r"its scale is F32 \[320, 1, 2\] for": {SCALE: torch.ones(320, 1, 2)},
    r"its scale is F32 \[0\] for": {SCALE: torch.ones(0)},
    r"its scale is F32 \[640\] for": {SCALE: torch.ones(640)},
    r"its scale is I32 \[\] for": {SCALE: torch.ones((), dtype=torch.int32)},
    r"its scale is F8_E4M3 \[\] for": {SCALE: torch.ones(()).to(E4M3)},
    r"beside FP8 it has pre_quant_scale": {"blocks.0.a.pre_quant_scale": torch.ones(192)},
    r"it has weight_scale": {"blocks.0.a.weight_scale_inv": torch.ones(())},
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_scale_that_does_not_fit_is_told_with_its_layer(tmp_path, problem):
    tensors, _ = stored_as("scalar", WEIGHTS)
    source = saved(tmp_path / "m.safetensors", tensors | WRONG[problem])
    with pytest.raises(ConvertError, match=f"is already quantised.*{problem.strip()}"):
        open_source(source)


@pytest.mark.parametrize("dtype", [E4M3, E5M2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz])
def test_nan_is_refused_in_every_dtype(tmp_path, dtype):
    tensors, _ = stored_as("scalar", WEIGHTS)
    codes = WEIGHTS["blocks.0.a"].to(dtype)
    codes.view(torch.uint8)[3, 5] = 0x80 if "fnuz" in str(dtype) else 0xFF
    model, _ = open_source(
        saved(tmp_path / "m.safetensors", tensors | {"blocks.0.a.weight": codes})
    )
    with pytest.raises(ConvertError, match=re.escape("blocks.0.a.weight holds NaN")):
        load_weight(model.tensors["blocks.0.a.weight"])


CAST = {f"{layer}.weight": weight.to(E4M3) for layer, weight in WEIGHTS.items()}


def test_a_model_without_any_scale_is_converted_on_request_alone(tmp_path, capsys):
    source, out = saved(tmp_path / "m.safetensors", CAST | BESIDE), tmp_path / "o.safetensors"
    command = [str(source), str(out), "--preset", "all", "--quiet"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "3 weights are FP8 without scales" in told
    assert "or --plain-fp8 to convert this one" in told
    assert not out.exists()
    assert main([*command, "--plain-fp8"]) == 0
    assert "3 FP8 tensors have no scale and are taken as they are" in capsys.readouterr().out
    plain = tmp_path / "plain.safetensors"
    saved(plain, {name: codes.float() for name, codes in CAST.items()} | BESIDE)
    other = tmp_path / "other.safetensors"
    assert main([str(plain), str(other), *command[2:]]) == 0
    assert as_bytes(out) == as_bytes(other)
    assert main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0


@pytest.mark.parametrize("dtype", [E4M3, E5M2, torch.float8_e4m3fnuz])
def test_what_has_no_scale_among_what_has_one_is_taken_as_it_is(tmp_path, dtype):
    tensors, decoded = stored_as("rows", WEIGHTS)
    del tensors["blocks.1.a.weight_scale"]
    tensors["blocks.1.a.weight"] = WEIGHTS["blocks.1.a"].to(dtype)
    tensors["blocks.0.modulation"] = torch.randn(1, 6, 192).to(dtype)
    tensors["blocks.0.norm.weight"] = (200 * torch.rand(192)).to(dtype)
    tensors |= {name: bias.to(dtype) for name, bias in BESIDE.items()}
    model, notes = open_source(saved(tmp_path / "m.safetensors", tensors))
    assert notes[0].startswith("6 FP8 tensors have no scale and are taken as they are: ")
    for name in ("blocks.1.a.weight", "blocks.0.modulation", "blocks.0.norm.weight", *BESIDE):
        ref = model.tensors[name]
        assert torch.equal(load_weight(ref), tensors[name].float())
        assert ref.is_float
    assert torch.equal(load_weight(model.tensors["blocks.0.a.weight"]), decoded["blocks.0.a"])


def test_biases_and_norms_of_8_bits_become_16_bits(tmp_path):
    tensors, _ = stored_as("scalar", WEIGHTS)
    tensors |= {name: bias.to(E4M3) for name, bias in BESIDE.items()}
    source, out = saved(tmp_path / "m.safetensors", tensors), tmp_path / "o.safetensors"
    assert main([str(source), str(out), "--preset", "all", "--quiet"]) == 0
    stored = load_file(out)
    for name in BESIDE:
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(stored[name].float(), tensors[name].float())


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_codes_whose_scale_is_lost_are_no_plain_fp8(tmp_path, dtype):
    tensors, _ = stored_as("scalar", WEIGHTS)
    codes, _, _ = whole(dtype=dtype)(WEIGHTS["blocks.0.b"])
    del tensors["blocks.0.b.weight_scale"]
    source = saved(tmp_path / "m.safetensors", tensors | {"blocks.0.b.weight": codes})
    with pytest.raises(
        ConvertError, match=r"blocks.0.b.weight: FP8 without a scale, and too large"
    ):
        open_source(source, plain_fp8=True)


@pytest.mark.parametrize("name", ["a.scale", "a.fp8_scale", "a.weight.scale", "a.weight_scales"])
def test_a_scale_of_an_unknown_name_is_refused_by_that_name(tmp_path, name):
    tensors, _ = stored_as("scalar", WEIGHTS)
    scale = tensors.pop(SCALE)
    # Its codes are small enough to be weights.
    tensors["blocks.0.a.weight"] = (WEIGHTS["blocks.0.a"] * 50).to(E4M3)
    source = saved(tmp_path / "m.safetensors", tensors | {f"blocks.0.{name}": scale})
    told = f"blocks.0.a.weight: FP8 beside a scale that is not known here, blocks.0.{name}"
    for plain_fp8 in (False, True):
        with pytest.raises(ConvertError, match=re.escape(told)):
            open_source(source, plain_fp8=plain_fp8)
    model = open_model(source)
    found = [finding for finding in lint(model, stored_layers(model)) if finding.detail]
    assert [(one.defect, one.detail) for one in found if one.defect == "unscaled"] == [
        ("unscaled", f"beside blocks.0.{name}")
    ]


@pytest.mark.parametrize("end", ["_scale_inv", "_scale", ".scale"])
def test_experts_with_a_scale_are_refused(tmp_path, end):
    bank = torch.randn(4, 64, 64, generator=G).to(E4M3)
    tensors = CAST | {"blocks.0.moe.gate_up_proj": bank}
    tensors[f"blocks.0.moe.gate_up_proj{end}"] = torch.ones(4, 1, 1)
    with pytest.raises(ConvertError, match=f"scale that is not known .*gate_up_proj{end}"):
        open_source(saved(tmp_path / "m.safetensors", tensors), plain_fp8=True)


@pytest.mark.parametrize("name", ["a.act_scale", "a.input_scale_inv", "scale_shift_table"])
def test_scales_of_inputs_leave_plain_fp8_as_it_is(tmp_path, name):
    tensors = CAST | {f"blocks.0.{name}": torch.ones(1)}
    model, _ = open_source(saved(tmp_path / "m.safetensors", tensors), plain_fp8=True)
    weight = load_weight(model.tensors["blocks.0.a.weight"])
    assert torch.equal(weight, CAST["blocks.0.a.weight"].float())


def test_large_numbers_of_no_weight_and_single_ones_are_no_lost_scales(tmp_path):
    weights = {name: codes.float() for name, codes in CAST.items()}
    weights["blocks.0.a.weight"][3, 4] = 120
    tensors = {name: weight.to(E4M3) for name, weight in weights.items()}
    tensors["blocks.0.modulation"] = torch.full((1, 6, 192), 120.0).to(E4M3)
    model, _ = open_source(saved(tmp_path / "m.safetensors", tensors), plain_fp8=True)
    for name, codes in tensors.items():
        assert torch.equal(load_weight(model.tensors[name]), codes.float())


@pytest.mark.parametrize("form", ["scalar", "rows", "rows [N]", "rows [N, 1, 1]", "E5M2 scalar"])
def test_convolutions_have_scales_as_well(tmp_path, form):
    tensors, decoded = stored_as(form, {"patch": torch.randn(48, 16, 1, 2, 2, generator=G)})
    tensors |= stored_as("scalar", WEIGHTS)[0]
    model, _ = open_source(saved(tmp_path / "m.safetensors", tensors))
    ref = model.tensors["patch.weight"]
    assert torch.equal(load_weight(ref), decoded["patch"])
    assert not ref.is_linear_weight
    assert plan_tensor(ref, UNNAMED, "BF16").precision is HALF


def test_a_configuration_or_a_marker_changes_nothing(tmp_path):
    tensors, decoded = stored_as("rows", WEIGHTS)
    marked = {"scaled_fp8": torch.zeros(2).to(E4M3)}
    config = configuration(format="float8_e4m3fn", full_precision_matrix_mult=True)
    configured = {f"{layer}.comfy_quant": config.clone() for layer in WEIGHTS}
    scales = {f"{layer}.input_scale": torch.ones(()) for layer in WEIGHTS}
    for more in (marked, configured, configured | scales):
        model, _ = open_source(saved(tmp_path / "m.safetensors", tensors | more))
        for layer, weight in decoded.items():
            assert torch.equal(load_weight(model.tensors[f"{layer}.weight"]), weight)
        assert len(model.tensors) == 3


@pytest.mark.parametrize("name", ["convrot_w4a4", "asym_w4a8_int8", "awq_w4a16"])
def test_formats_that_do_not_fit_their_tensors_are_refused_by_name(tmp_path, name):
    tensors, _ = stored_as("scalar", WEIGHTS)
    tensors["blocks.0.a.weight"] = torch.zeros(320, 96, dtype=torch.int8)
    tensors["blocks.0.a.comfy_quant"] = configuration(format=name)
    told = "its 192 columns are no whole groups of 256" if "rot" in name else f"is stored as {name}"
    with pytest.raises(ConvertError, match=f"blocks.0.a: {told}"):
        open_source(saved(tmp_path / "m.safetensors", tensors))


def test_scales_may_lie_in_another_shard_than_their_weights(tmp_path):
    tensors, decoded = stored_as("128 x 128", WEIGHTS)
    parts = {
        "a.safetensors": {name: t for name, t in tensors.items() if name.endswith(".weight")},
        "b.safetensors": {name: t for name, t in tensors.items() if not name.endswith(".weight")},
    }
    for name, part in parts.items():
        saved(tmp_path / name, part)
    shards = {key: name for name, part in parts.items() for key in part}
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    model, _ = open_source(index)
    for layer, weight in decoded.items():
        assert torch.equal(load_weight(model.tensors[f"{layer}.weight"]), weight)


def test_a_lora_is_merged_into_the_decoded_weight(tmp_path):
    tensors, decoded = stored_as("rows", WEIGHTS)
    source = saved(tmp_path / "m.safetensors", tensors)
    up, down = torch.randn(320, 4, generator=G), torch.randn(4, 192, generator=G)
    lora = {"blocks.0.a.lora_up.weight": up, "blocks.0.a.lora_down.weight": down}
    lora = Lora(saved(tmp_path / "l.safetensors", lora), 0.01)
    model, _ = merge_loras([lora], open_source(source).model, partial=False)
    expected = decoded["blocks.0.a"] + 0.01 * up @ down
    found = load_weight(model.tensors["blocks.0.a.weight"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    stripes = [i * (320 - 32) // 7 + j for i in range(8) for j in range(32)]
    assert torch.equal(load_some_rows(model.tensors["blocks.0.a.weight"]), found[stripes])


def test_what_is_beside_the_weights_verifies_as_well(tmp_path, capsys):
    tensors, _ = stored_as("kohya", WEIGHTS)
    tensors |= stored_as("rows", {"patch": torch.randn(48, 16, 1, 2, 2, generator=G)})[0]
    tensors |= {name: bias.to(E4M3) for name, bias in BESIDE.items()}
    source, out = saved(tmp_path / "m.safetensors", tensors), tmp_path / "o.safetensors"
    command = ["--preset", "all", "--quiet", "--dtype", "float16"]
    assert main([str(source), str(out), *command]) == 0
    assert main(["--verify", str(out), "--source", str(source), "--quiet"]) == 0
    assert "no defect found" in capsys.readouterr().out
    # The weight of a layer whose source has other scales is found out.
    broken = saved(tmp_path / "other.safetensors", tensors | {"patch.weight_scale": torch.ones(48)})
    assert main(["--verify", str(out), "--source", str(broken), "--quiet"]) == 1
    assert "patch (relative RMSE" in capsys.readouterr().out
