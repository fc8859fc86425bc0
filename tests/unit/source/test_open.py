"""Sources that are quantised already: adopted, decoded or refused."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.errors import ConvertError
from nvfp4.source.open import open_source
from support.plans import BLOCK


@pytest.mark.parametrize(
    "name", ["a.comfy_quant", "a.scale_weight", "a.weight_scale_2", "weight_scale_inv"]
)
def test_a_source_that_is_already_quantised_is_refused(tmp_path, name):
    save_file(BLOCK | {name: torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ConvertError, match="is already quantised"):
        open_source(tmp_path / "m.safetensors")
