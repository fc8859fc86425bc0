"""A tensor's fate, and the rules it comes from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nvfp4.formats.base import Format, configured_formats
from nvfp4.formats.floats import FP32, HALF
from nvfp4.guides.records import Moments
from nvfp4.model import TensorRef
from nvfp4.reasons import Reason, Why

BEYOND_FLOAT16 = Reason(Why.FLOAT16, "a value beyond float16's 65504")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """These tensors get this precision (or, as a floor, at least this one), and why."""

    names: frozenset[str]
    precision: Format
    reason: Reason
    is_open: bool = False  # --target-size may choose otherwise
    dtype: str = ""  # instead of --dtype, or of the source's


UNNAMED = Rule(names=frozenset(), precision=HALF, reason=Reason(Why.NOTHING, "no rule names it"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor's fate and the reason, decided before any byte is written."""

    ref: TensorRef
    precision: Format
    reason: Reason
    dtype: str  # safetensors dtype of the tensor itself in the output
    is_open: bool = False  # --target-size may choose otherwise
    full_precision: Reason | None = None  # why its matmul stays 16-bit; else activations are, too
    input_scale: float | None = None
    input_scale_source: str = ""
    saturated_blocks: float | None = None  # share of the recorded input that clips at that scale
    moments: Moments | None = None  # of its input, to round it by
    smoothing: torch.Tensor | None = None  # [K] BF16: multiplies the input and divides the weight
    bias: TensorPlan | None = None  # the layer's bias, which makes up for the mean error

    @property
    def is_quantised(self) -> bool:
        return self.precision.is_quantised

    @property
    def is_layer(self) -> bool:
        """Whether it is a linear layer's weight, packed in the source or not."""
        return self.ref.is_linear_weight or bool(self.ref.config)

    @property
    def weights(self) -> int:
        """How many weights the tensor stands for; two lie in a byte of a packed layer."""
        shape = self.ref.shape
        return math.prod(self.format.logical_shape(shape, None) if self.ref.config else shape)

    @property
    def format(self) -> Format:
        """How the layer lies in the output, whether it is quantised now or was in the source."""
        return configured_formats()[self.config["format"]] if self.ref.config else self.precision

    @property
    def is_fp4(self) -> bool:
        """Whether Blackwell can multiply the layer in 4 bits."""
        return self.format.activation_bits == 4

    @property
    def is_w4a4(self) -> bool:
        return self.is_fp4 and "full_precision_matrix_mult" not in self.config

    @property
    def may_overflow(self) -> bool:
        """Whether it is to be float16, and may hold values that float16 cannot."""
        is_made = self.ref.dtype != "F16" or bool(self.ref.patches)
        return self.dtype == "F16" and is_made and not self.is_quantised

    @property
    def config(self) -> dict[str, str | bool]:
        """What ComfyUI reads for this layer, in `comfy_quant` and in the header alike."""
        if self.ref.config or not self.is_quantised:
            return json.loads(self.ref.config or "{}")
        return self.precision.configuration(full_precision=bool(self.full_precision))

    @property
    def config_bytes(self) -> bytes:
        return json.dumps(self.config).encode()


class Plan(NamedTuple):
    """Every tensor's plan in source order, and notes on them."""

    plans: list[TensorPlan]
    notes: tuple[str, ...]


def plan_tensor(ref: TensorRef, rule: Rule, half: str) -> TensorPlan:
    return TensorPlan(
        ref=ref,
        precision=rule.precision,
        reason=rule.reason,
        dtype=rule.dtype or rule.precision.dtype_of(ref.dtype, half),
        is_open=rule.is_open,
    )


def weights_of(plans: Iterable[TensorPlan]) -> int:
    return sum(plan.weights for plan in plans)


def widen(plans: Iterable[TensorPlan], names: frozenset[str]) -> list[TensorPlan]:
    """Plan those of the named tensors as float32 that were to be float16."""

    def widened(plan: TensorPlan) -> TensorPlan:
        if plan.bias:
            (bias,) = widen([plan.bias], names)
            plan = dataclasses.replace(plan, bias=bias)
        if plan.ref.name not in names or not plan.may_overflow:
            return plan
        reason = BEYOND_FLOAT16.over(plan.reason)
        return dataclasses.replace(plan, precision=FP32, dtype="F32", reason=reason)

    return [*map(widened, plans)]
