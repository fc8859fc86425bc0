"""Sources that are quantised already: adopted, decoded or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.errors import ConvertError
from nvfp4.source.open import open_source
from support.conversions import convert_tiny
from support.plans import BLOCK


@pytest.mark.parametrize(
    "name", ["a.comfy_quant", "a.scale_weight", "a.weight_scale_2", "weight_scale_inv"]
)
def test_a_source_that_is_already_quantised_is_refused(tmp_path, name):
    save_file(BLOCK | {name: torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ConvertError, match="is already quantised"):
        open_source(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["blocks.3.ffn.0.scale_weight"].fill_(0), "its scale is 0.0"),
        (lambda t: t["blocks.3.ffn.0.scale_weight"].fill_(float("nan")), "its scale is nan"),
        (lambda t: t.update({"blocks.3.ffn.0.scale_weight": torch.ones(511)}), r"F32 \[511\]"),
    ],
)
def test_fp8_without_one_good_scale_is_refused(tiny, tmp_path, change, reason):
    source = convert_tiny(tiny, tmp_path / "m.safetensors", "--recipe", "scaled-fp8", "--quiet")
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, source)
    with pytest.raises(ConvertError, match=rf"is already quantised.*{reason}.*original 16-"):
        open_source(source)
