"""Store tensors without quantising: 16-bit, 32-bit, or as they are.

These rows have no configuration, no scales and no encoding: `encode.float16.cast` makes their
values, or their bytes are copied. They stand in the table because plans give every tensor a format,
and floors compare with them.
"""

from __future__ import annotations

from nvfp4.formats.base import Format


class Half(Format):
    """Store a tensor in 16-bit floats, or in whatever else --dtype says.

    One tensor of the source's shape, BF16 unless --dtype is float16 or float32. A tensor with a
    value beyond float16's 65504 is planned as Float32 instead.
    """

    name, title, rank = "HALF", "16-bit", 16
    option = "16bit"

    def dtype_of(self, source: str, half: str) -> str:
        """Return the safetensors dtype of --dtype: "BF16", "F16" or "F32", whatever the source has.

        Values are cast by `encode.float16.cast`.
        """
        return half


class Float32(Format):
    """Store a tensor in float32, for what loses too much in fewer bits.

    One tensor of the source's shape and dtype F32: what a GGUF keeps in F32, and what float16
    cannot hold.
    """

    name, title, rank = "FP32", "32-bit", 32

    def dtype_of(self, source: str, half: str) -> str:
        """Return "F32", whatever the source has and --dtype says."""
        return "F32"


class Kept(Format):
    """Store a tensor as the source does: the same bytes, dtype and shape, whatever they are.

    Its rank is above all others, so that no floor raises it. It is also the format of tensors of
    NVFP4 layers that the source has already.
    """

    # More than the bits of any other format, so that every floor is met.
    name, title, rank = "KEPT", "as in the source", 64
    is_copy = True


# The only instances: formats are compared by `is`, so that nobody makes a second one.
HALF, FP32, KEPT = Half(), Float32(), Kept()
