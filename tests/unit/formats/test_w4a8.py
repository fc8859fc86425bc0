"""INT8, W4A8, W6A8 and MXFP8 are written as comfy_kitchen's quantisers write them."""

import pytest
import torch

from nvfp4.encode.compute import Compute
from nvfp4.formats.base import format_titled
from nvfp4.formats.encoding import Given
from nvfp4.numeric.codes import amax_block_scales, largest_magnitude
from support.kitchen import kitchen_layout

# Multiples of 2**-6 up to 4: sums of their rotation are exact in any order.
WEIGHT = torch.randn(96, 512, generator=torch.Generator().manual_seed(5))
WEIGHT = (WEIGHT * 64).round().clamp(-256, 256) / 64
KITCHEN = {
    "INT8": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True}),
    "INT8 not rotated": ("TensorWiseINT8Layout", {"per_channel": True}),
    "W4A8": ("AsymW4A8Int8Layout", {}),
    "W6A8": ("AsymW4A8Int8Layout", {"bits": 6}),
    "MXFP8": ("TensorCoreMXFP8Layout", {}),
}


def stored(title, weight):
    """What a conversion with --scale-search amax stores, and what it decodes to."""
    form = format_titled(title)
    with Compute(torch.device("cpu"), search=amax_block_scales) as compute:
        encoded = form.encode(Given("layer", weight, largest_magnitude(weight)), compute)
    parts = {name: torch.cat(rows) for name, rows in form.pack(encoded, weight.shape).items()}
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    assert shapes == {name: shape for name, (_, shape) in form.parts(weight.shape).items()}
    rows, scale = form.unpack(parts)
    return parts, form.decode(*rows, scale)[: len(weight), : weight.shape[1]], encoded.damage


def kitchen(title, weight):
    name, keywords = KITCHEN[title]
    layout = kitchen_layout(name, *keywords)
    codes, params = layout.quantize(weight, **keywords)
    tensors = layout.state_dict_tensors(codes, params)
    return {f"weight{key}": part for key, part in tensors.items()}, layout.dequantize(codes, params)


@pytest.mark.parametrize("title", KITCHEN)
def test_bytes_are_those_of_comfy_kitchen(title):
    made, decoded, damage = stored(title, WEIGHT)
    expected, value = kitchen(title, WEIGHT)
    for name, part in made.items():
        other = expected[name]
        assert torch.equal(part.view(torch.uint8), other.contiguous().view(torch.uint8)), name
    value = value[: len(WEIGHT), : WEIGHT.shape[1]]
    torch.testing.assert_close(decoded, value, rtol=0, atol=1e-5)
    error = float((decoded - WEIGHT).square().sum() / WEIGHT.square().sum()) ** 0.5
    assert damage.relative_rmse == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("title", ["INT8", "W4A8", "W6A8"])
def test_of_any_numbers_few_codes_are_others(title):
    """Rotations whose sums run in another order differ in the last bit, which decides ties."""
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    made, expected = stored(title, weight)[0], kitchen(title, weight)[0]
    for name, part in made.items():
        other = expected[name]
        if part.dtype == torch.float32:
            torch.testing.assert_close(part, other, rtol=1e-5, atol=0)
        else:
            assert (part.float() == other.float()).float().mean() > 0.999, name


@pytest.mark.parametrize(
    ("asked", "columns", "expected"),
    [
        ("W4A8", 512, "W4A8"),
        ("W4A8", 272, "INT8 not rotated"),
        ("INT8", 272, "INT8 not rotated"),
        ("INT8", 97, "16-bit"),
        ("INT8 not rotated", 98, "16-bit"),
        ("W6A8", 99, "16-bit"),
    ],
)
def test_shapes_that_kernels_refuse_get_another_format(asked, columns, expected):
    """CUDA's INT8 matmul takes columns by four alone, and any number of rows."""
    assert format_titled(asked).for_shape((97, columns)).title == expected
