"""What is not quantised: 16-bit, 32-bit, and the source's own bytes."""

from __future__ import annotations

from nvfp4.formats.base import Format


class Half(Format):
    """16-bit floats, or whatever else --dtype says."""

    name, title, rank = "HALF", "16-bit", 16

    def dtype_of(self, source: str, half: str) -> str:
        return half


class Float32(Format):
    """float32, for what loses too much in fewer bits."""

    name, title, rank = "FP32", "32-bit", 32

    def dtype_of(self, source: str, half: str) -> str:
        return "F32"


class Kept(Format):
    """The source's bytes, whatever they are. No floor raises them."""

    name, title, rank = "KEPT", "as in the source", 64
    is_copy = True


HALF, FP32, KEPT = Half(), Float32(), Kept()
