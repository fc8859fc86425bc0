"""Define the records of planning: rules, and each tensor's plan.

A Rule says what some tensors become and why; a TensorPlan is what came of all rules for one tensor.
Everything after planning (layout, encoding, report) goes by TensorPlans and asks them, never the
rules. Facts that follow from others are properties.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nvfp4.formats.base import Format, format_titled
from nvfp4.formats.floats import FP32, HALF
from nvfp4.guides.records import Moments
from nvfp4.model import TensorRef
from nvfp4.reasons import Reason, Why

# The reason of tensors that stay float32: float16 would turn such values to infinity.
BEYOND_FLOAT16 = Reason(Why.FLOAT16, "a value beyond float16's 65504")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Give these tensors this precision, or as a floor at least this one, for this reason.

    `is_open` tells that --target-size may choose otherwise; `dtype`, where it is not "", goes
    before --dtype or the source's. A floor with `instead_of` takes the place of these formats, and
    of no other, however many bits they have.
    """

    names: frozenset[str]
    precision: Format
    reason: Reason
    is_open: bool = False
    dtype: str = ""  # a safetensors dtype; a --layer-config may set it
    instead_of: frozenset[Format] = frozenset()

    def replaces(self, precision: Format) -> bool:
        """Tell whether it takes the place of a precision, as a floor."""
        if self.instead_of:
            return precision in self.instead_of
        return precision < self.precision


# What applies where no rule names a tensor.
UNNAMED = Rule(names=frozenset(), precision=HALF, reason=Reason(Why.NOTHING, "no rule names it"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """Describe one tensor's fate and the reason, decided before any byte is written.

    Plans are never changed: phases that know more make new ones with `dataclasses.replace`. The
    fields from `full_precision` on are of quantised layers only.
    """

    ref: TensorRef
    precision: Format
    reason: Reason
    dtype: str  # safetensors dtype of the tensor itself in the output
    is_open: bool = False  # --target-size may choose otherwise
    full_precision: Reason | None = None  # why its matmul stays 16-bit; else activations are, too
    input_scale: float | None = None
    input_scale_source: str = ""
    saturated_blocks: float | None = None  # share of the recorded input that clips at that scale
    moments: Moments | None = None  # statistics of its input, which rounding goes by
    mean: np.ndarray | None = None  # of its input [K], where that alone is known: its bias moves
    smoothing: torch.Tensor | None = None  # [K] BF16: multiplies the input and divides the weight
    bias: TensorPlan | None = None  # the layer's bias, which makes up for the mean error

    @property
    def is_quantised(self) -> bool:
        """Tell whether this conversion quantises it; a layer packed in the source is not."""
        return self.precision.is_quantised

    @property
    def is_layer(self) -> bool:
        """Tell whether it is a linear layer's weight, packed in the source or not.

        Layers beside the diffusion model do not count.
        """
        is_own = self.reason.kind is not Why.BESIDE
        return is_own and (self.ref.is_linear_weight or bool(self.ref.config))

    @property
    def is_looked_up(self) -> bool:
        """Tell whether it becomes a quantised embedding, which nothing is multiplied by."""
        return self.is_quantised and self.ref.is_embedding

    @property
    def is_multiplied(self) -> bool:
        """Tell whether it counts among the linear weights: a layer's, or a bank of experts."""
        return self.is_layer or self.ref.is_expert_bank

    @property
    def is_convolution(self) -> bool:
        """Tell whether it is a convolution of the diffusion model, which is never packed."""
        return self.ref.is_convolution and self.reason.kind is not Why.BESIDE

    @property
    def weights(self) -> int:
        """Count the weights that the tensor stands for; a byte of a packed 4-bit layer has two."""
        if not self.ref.kept_as:
            return math.prod(self.ref.shape)
        # A bank of experts has one dimension more than their weights.
        *experts, rows, columns = self.ref.shape
        return math.prod(experts) * math.prod(self.format.logical_shape((rows, columns), None))

    @property
    def format(self) -> Format:
        """Return the format of the layer in the output, quantised now or already in the source.

        One that lies beside the diffusion model may have a format that no row describes.
        """
        return format_titled(self.ref.kept_as) if self.ref.kept_as else self.precision

    @property
    def has_nvfp4_input(self) -> bool:
        """Tell whether Blackwell can multiply the layer in 4 bits."""
        return self.format.has_nvfp4_input

    @property
    def is_decoded(self) -> bool:
        """Tell whether ComfyUI multiplies the layer by its decoded weight, for sure.

        That is by a mark in its configuration; in text encoders it is so without one, too.
        """
        is_encoder = self.full_precision and self.full_precision.kind is Why.ENCODER
        return bool(is_encoder) or "full_precision_matrix_mult" in self.config

    @property
    def is_w4a4(self) -> bool:
        """Tell whether ComfyUI also quantises the layer's activations to 4 bits."""
        return self.has_nvfp4_input and not self.is_decoded

    @property
    def quantises_input(self) -> bool:
        """Tell whether ComfyUI multiplies the layer with quantised activations where it can."""
        return self.is_quantised and not self.is_decoded

    @property
    def kept_scale(self) -> float | None:
        """Return the source's scale, with which its codes come back as they were; None without one.

        A LoRA that is merged changes the largest weight, and codes of another dtype have another
        scale.
        """
        same = self.ref.coding and not self.ref.patches and self.precision.stores(self.ref)
        return self.ref.coding.scale if same and self.precision.has_one_scale else None

    @property
    def keeps_codes(self) -> bool:
        """Tell whether the source's codes come back as they were, in the same format."""
        coding, form = self.ref.coding, self.precision
        if not coding or self.ref.patches or self.smoothing is not None:
            return False
        same = form.title == coding.title and not form.has_one_scale
        return same or self.kept_scale is not None

    @property
    def may_overflow(self) -> bool:
        """Tell whether it is to be float16 and may hold values that float16 cannot.

        A source that is float16 already and that no LoRA changes cannot.
        """
        is_made = self.ref.dtype != "F16" or bool(self.ref.patches)
        return self.dtype == "F16" and is_made and not self.is_quantised

    @property
    def config(self) -> dict[str, str | bool]:
        """Return what ComfyUI reads of this layer, in `comfy_quant` and in the header alike.

        Layers packed in the source keep their own configuration; {} for what is not quantised.
        """
        if self.ref.config or not self.is_quantised:
            return json.loads(self.ref.config or "{}")
        return self.precision.configuration(full_precision=bool(self.full_precision))

    @property
    def config_bytes(self) -> bytes:
        """Return that configuration as the bytes of the `comfy_quant` tensor, JSON in UTF-8."""
        return (self.ref.config or json.dumps(self.config)).encode()


class Plan(NamedTuple):
    """Hold every tensor's plan in source order, and notes on them."""

    plans: list[TensorPlan]
    notes: tuple[str, ...]


def plan_tensor(ref: TensorRef, rule: Rule, half: str) -> TensorPlan:
    """Make the plan of a tensor from its rule alone.

    `half` is the safetensors dtype of --dtype, which unquantised tensors get where neither the rule
    nor the precision says otherwise.
    """
    return TensorPlan(
        ref=ref,
        precision=rule.precision,
        reason=rule.reason,
        dtype=rule.dtype or rule.precision.dtype_of(ref.dtype, half),
        is_open=rule.is_open,
    )


def weights_of(plans: Iterable[TensorPlan]) -> int:
    """Count the weights of several plans."""
    return sum(plan.weights for plan in plans)


def widen(plans: Iterable[TensorPlan], names: frozenset[str]) -> list[TensorPlan]:
    """Plan those of the named tensors as float32 that were to be float16.

    `names` are tensors that hold a value beyond 65504. Biases that go along with a layer are
    widened, too. Plans of other tensors come back as they are.
    """

    def widened(plan: TensorPlan) -> TensorPlan:
        if plan.bias:
            (bias,) = widen([plan.bias], names)
            plan = dataclasses.replace(plan, bias=bias)
        if plan.ref.name not in names or not plan.may_overflow:
            return plan
        reason = BEYOND_FLOAT16.over(plan.reason)
        return dataclasses.replace(plan, precision=FP32, dtype="F32", reason=reason)

    return [*map(widened, plans)]
