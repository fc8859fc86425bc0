"""The error of a decoded weight."""

import pytest
import torch

from nvfp4.numeric.codes import decode_nvfp4, encode_nvfp4, largest_magnitude, nvfp4_global_scale
from nvfp4.numeric.damage import measure_damage


def test_damage_is_the_error_of_the_decoded_weight():
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(3))
    scale = nvfp4_global_scale(largest_magnitude(weight))
    decoded = decode_nvfp4(*encode_nvfp4(weight, scale), scale)
    expected = (decoded[:, :40] - weight).norm() / weight.norm()
    assert measure_damage(weight, decoded).relative_rmse == pytest.approx(float(expected), rel=1e-5)
