"""A layer encoded, and its error."""

import pytest
import torch

from nvfp4.encode.compute import Compute
from nvfp4.formats.encoding import encode_rows, with_damage
from nvfp4.numeric.codes import decode_nvfp4, encode_nvfp4, largest_magnitude, nvfp4_global_scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_of_16_bit_sources_is_measured_in_float32(dtype):
    weight = (torch.randn(64, 128, generator=torch.Generator().manual_seed(7)) * 2e-3).to(dtype)
    compute = Compute(torch.device("cpu"))
    scale = nvfp4_global_scale(largest_magnitude(weight))
    encode = with_damage(encode_nvfp4, decode_nvfp4, torch.float32)
    found = encode_rows(weight, scale, encode, compute)
    decoded = decode_nvfp4(torch.cat(found.codes), found.by_rows[0], scale)
    expected = float((decoded - weight.float()).norm() / weight.float().norm())
    assert found.damage.relative_rmse == pytest.approx(expected, rel=1e-5)
