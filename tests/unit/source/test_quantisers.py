"""Models that other programs quantised are refused by their name, with any options."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.source.open import open_source

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
