"""Take FP8 without scales for what it is: numbers that were cast, or codes whose scales are lost.

Some programs cast biases and norms beside scaled weights, others a whole model. Numbers that were
merely cast are decoded as they are; a model of them is converted only on request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch

from nvfp4.errors import ConvertError, examples, in_number
from nvfp4.formats.base import format_titled, is_quantised_part
from nvfp4.formats.plain_fp8 import PLAIN_FP8, unread_scales
from nvfp4.model import Coding, TensorRef
from nvfp4.notes import Note, Rank
from nvfp4.numeric.dtypes import TORCH_DTYPES
from nvfp4.numeric.float8 import decode_byte, has_no_number
from nvfp4.read.tensors import fill
from nvfp4.stored.lint import is_too_large

# Bytes of a weight in which codes without their scale show: one in five is larger than 100 then.
TELLING_CODES = 1 << 16


def taken_as_is(ref: TensorRef) -> TensorRef:
    """Mark an FP8 tensor without a scale for decoding, such as a bias; any other stays."""
    if ref.dtype not in PLAIN_FP8 or not ref.nbytes or is_quantised_part(ref.name):
        return ref
    return dataclasses.replace(ref, coding=Coding(title=PLAIN_FP8[ref.dtype].title, scale=1.0))


def plain_notes(path: Path, refs: Iterable[TensorRef], allowed: bool) -> list[str]:
    """Note which tensors have no scale, and refuse a model of them.

    path: the model, for messages; refs: of the diffusion model, marked; allowed: whether
    --plain-fp8 is given. Raises ConvertError where more weights lack a scale than have one and that
    option is not given, where numbers are too large to be weights, and where what may be a scale
    lies beside one.
    """
    refs = [*refs]
    plain, scaled, unread = [], 0, unread_scales(ref.name for ref in refs)
    for ref in refs:
        if ref.coding and not format_titled(ref.coding.title).scale_suffix:
            plain.append(ref)
        # Of a kept layer, the weight alone has a configuration.
        scaled += bool(ref.coding or ref.config)
    if lost := [ref.name for ref in plain if ref.name in unread]:
        raise ConvertError(
            f"{path}: {examples(lost)}: FP8 beside a scale that is not known here, "
            f"{unread[lost[0]]}; give the original 16- or 32-bit model"
        )
    weights = [ref for ref in plain if len(ref.shape) > 1]
    # Other tensors of several dimensions, such as modulations, may well be large.
    told = (ref for ref in weights if ref.name.endswith(".weight") or ref.is_expert_bank)
    if large := [ref.name for ref in told if has_large_codes(ref)]:
        raise ConvertError(
            f"{path}: {examples(large)}: FP8 without a scale, and too large to be weights: the "
            "scales are lost or in another file; give the original 16- or 32-bit model"
        )
    scaled -= len(plain)
    if len(weights) > scaled and not allowed:
        raise ConvertError(
            f"{path}: {len(weights)} weights are FP8 without scales, cast from 16 bits "
            f"({examples(ref.name for ref in weights)}); give the original model, or --plain-fp8 "
            "to convert this one: what the cast lost, some 3 % of a weight (E5M2: 5 %) and more "
            "of small ones, stays lost"
        )
    if not plain:
        return []
    what = in_number(len(plain), "FP8 tensors have no scale and are taken as they are")
    rank = Rank.INFORMATION if allowed else Rank.NOTE
    return [Note(f"{what}: {examples(ref.name for ref in plain)}", rank)]


def has_large_codes(ref: TensorRef) -> bool:
    """Tell whether many of the first numbers of an FP8 tensor are larger than trained weights."""
    data = torch.empty(min(ref.nbytes, TELLING_CODES), dtype=torch.uint8)
    fill(ref, 0, memoryview(data.numpy()))
    codes = data.view(TORCH_DTYPES[ref.dtype])
    # NaN is told where the tensor is read as a whole.
    return not has_no_number(codes) and is_too_large(decode_byte(codes))
