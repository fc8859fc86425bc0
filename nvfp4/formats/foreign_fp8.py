"""Read FP8 of dtypes and with names of scales that other programs use."""

from __future__ import annotations

from nvfp4.formats.base import Parts
from nvfp4.formats.scaled import Scaled

# The largest finite number of E5M2.
E5M2_MAX = 57344.0


class ForeignFp8(Scaled):
    """Describe FP8 of one dtype beside a scale of one name; despite some names all multiply."""

    runs_full_precision = "FP8 weights whose scale ComfyUI does not read"

    def __init__(self, dtype: str, scale_suffix: str, config: str = "") -> None:
        """Enter a row: dtype as safetensors has it, config where ComfyUI knows the format."""
        kind = dtype.replace("F8_", "FP8 ").removesuffix(" E4M3")
        self.title = kind if scale_suffix == "weight_scale" else f"{kind}, {scale_suffix}"
        self.weight_dtype, self.scale_suffix, self.config = dtype, scale_suffix, config
        self.is_configured = bool(config)
        if config:
            self.embedding_since = self.since
            self.activation_max = E5M2_MAX
            self.runs_scaled = self.runs_unscaled = "FP8 weights times FP8 activations, both E5M2"
            self.runs_full_precision = Scaled.runs_full_precision
        super().__init__()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """List the suffixes of weight and scale: such formats may have no name in ComfyUI."""
        return (*self.parts((1, 1)), "input_scale")

    def parts(self, shape: tuple[int, int]) -> Parts:
        """Tell codes and scale of a weight [N, K], as it is with one scale."""
        return {"weight": (self.weight_dtype, shape), self.scale_suffix: ("F32", ())}


# DeepSeek calls it weight_scale_inv, though a weight is multiplied by it, as by all the others.
INVERSE = "weight_scale_inv"
FOREIGN_ROWS = (
    ForeignFp8("F8_E4M3", INVERSE),
    ForeignFp8("F8_E5M2", "weight_scale", config="float8_e5m2"),
    *(ForeignFp8("F8_E5M2", suffix) for suffix in ("scale_weight", INVERSE)),
    *(
        ForeignFp8(dtype, suffix)
        for dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ")
        for suffix in ("weight_scale", "scale_weight", INVERSE)
    ),
)
