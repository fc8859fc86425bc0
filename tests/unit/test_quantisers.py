"""Models that other programs quantised are refused by their name, with any options."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.entry import main as convert
from nvfp4.compare.entry import compare_models as compare
from nvfp4.errors import ConvertError
from nvfp4.source.open import open_source
from nvfp4.stored.defects import DEFECTS

LAYER = "transformer_blocks.0.attn.to_q"
PACKED = {
    "Nunchaku SVDQuant": ["qweight", "wscales", "smooth_factor", "proj_down", "proj_up"],
    "GPTQ": ["qweight", "qzeros", "scales", "g_idx"],
    "AWQ": ["qweight", "qzeros", "scales"],
    "HQQ": ["W_q", "scale", "zero"],
    "optimum-quanto": ["weight._data", "weight._scale", "input_scale", "output_scale"],
    "torchao": ["_weight_qdata", "_weight_scale", "_weight_zero_point"],
    "bitsandbytes NF4": [
        "weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
    "bitsandbytes FP4": [
        "weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__fp4"],
    "bitsandbytes INT8": ["weight", "SCB"],
    "compressed-tensors": ["weight_packed", "weight_scale", "weight_shape"],
    "LightX2V NVFP4": ["weight", "weight_scale", "weight_global_scale", "alpha"],
    "EXL2": ["q_weight", "q_scale", "q_groups"],
    "EXL3": ["trellis", "suh", "svh"],
    "AQLM": ["codes", "codebooks", "scales"],
    "SDNQ": ["weight", "scale", "zero_point"],
    "DFloat11": ["encoded_exponent", "sign_mantissa", "luts", "output_positions", "gaps"],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("program", PACKED)
def test_a_model_of_another_program_is_refused_by_its_name(tmp_path, program, prefix):
    tensors = {
        f"{prefix}{LAYER}.{part}": torch.ones(16, 16, dtype=torch.uint8) for part in PACKED[program]
    }
    save_file(tensors | {f"{prefix}img_in.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors")
    with pytest.raises(ConvertError) as caught:
        open_source(tmp_path / "m.safetensors")
    message = str(caught.value)
    assert f"is already quantised ({program}: {prefix}{LAYER}); give the original" in message
    assert "--preset" not in message


@pytest.mark.parametrize("name", ["scales", "zero", "scale", "absmax", "norm.codes", "a.qzeros"])
def test_one_likely_name_makes_no_quantised_model(tmp_path, name):
    tensors = {f"blocks.0.{name}": torch.ones(16), "img_in.weight": torch.ones(32, 32)}
    save_file(tensors, tmp_path / "m.safetensors")
    assert len(open_source(tmp_path / "m.safetensors").model.tensors) == 2


def test_a_quantised_text_encoder_beside_the_model_is_no_reason(tmp_path):
    tensors = {
        **{f"text_encoders.t5.layer.{part}": torch.ones(16) for part in PACKED["GPTQ"]},
        "model.diffusion_model.img_in.weight": torch.ones(32, 32),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    assert len(open_source(tmp_path / "m.safetensors").model.tensors) == 5


def packed_file(tmp_path, program):
    tensors = {f"{LAYER}.{part}": torch.ones(16, 16, dtype=torch.uint8) for part in PACKED[program]}
    tensors |= {"img_in.weight": torch.ones(32, 32), "img_in.bias": torch.ones(32)}
    save_file(tensors, tmp_path / "packed.safetensors")
    return tmp_path / "packed.safetensors"


@pytest.mark.parametrize("program", PACKED)
def test_verifying_and_comparing_say_whose_layers_they_are(tmp_path, capsys, program):
    path, source = packed_file(tmp_path, program), tmp_path / "m.safetensors"
    whole = {f"{LAYER}.weight": torch.ones(32, 32), "img_in.weight": torch.ones(32, 32)}
    save_file(whole, source)
    commands = [
        (convert, ["--verify", str(path)]),
        (convert, ["--verify", str(path), "--source", str(source), "--quiet"]),
        (compare, [str(source), str(path), "--values"]),
    ]
    for main, command in commands:
        main(command)
        printed = capsys.readouterr().out
        assert f"FAILS{'' if main is convert else ':'}" in printed
        assert f"1 x {DEFECTS['other program'].what}" in printed
        assert f"{LAYER} ({program})" in printed
        # Neither is anything else said of such layers, nor are they called missing.
        assert "WRONG" not in printed
        assert "nothing is quantised" not in printed


def test_a_file_of_another_program_has_no_input_scales_for_comfyui(tmp_path, capsys):
    path, source = packed_file(tmp_path, "optimum-quanto"), tmp_path / "m.safetensors"
    save_file({f"{LAYER}.weight": torch.ones(32, 32)}, source)
    command = [str(source), str(tmp_path / "o.safetensors"), "--preset", "all", "--quiet"]
    assert convert([*command, "--input-scale-from", str(path)]) == 1
    told = capsys.readouterr().err
    assert f"is quantised by another program (optimum-quanto: {LAYER})" in told
