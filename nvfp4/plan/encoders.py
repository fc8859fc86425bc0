"""Plan text encoders: their embeddings, how ComfyUI multiplies by them, and what has no use there.

A text encoder's linear layers go by the same rules as those of a diffusion model. Its token
embeddings, up to a quarter of a file, are quantised as well, as ComfyUI looks up rows of FP8 and
INT8; and whatever the format, ComfyUI decodes it to multiply in 16 bits or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nvfp4.errors import ConvertError
from nvfp4.families import EIGHT_BITS, ENCODERS
from nvfp4.formats.base import Format
from nvfp4.formats.floats import HALF
from nvfp4.guides.records import GGUF_BITS, Guides
from nvfp4.model import Model, bare
from nvfp4.options import ACTIVATION_GROUPS, Options, options_of
from nvfp4.plan.choosing import format_called
from nvfp4.plan.records import Rule
from nvfp4.reasons import Reason, Why

IN_16_BITS = Reason(Why.ENCODER, "ComfyUI multiplies text encoders in 16 bits or more")
# Of a text encoder's embeddings, those of tokens are large; others are tables of a few rows.
TOKEN_EMBEDDINGS = re.compile(r"(^|\.)(shared|embed_tokens(_per_layer)?)$")
# Options of other groups that tell how activations are multiplied.
ACTIVATION_OPTIONS = ("--w4a4-share", "--pre-quant-scale", "--fp4-share")


def encoder_embeddings(options: Options, model: Model, guides: Guides) -> frozenset[str]:
    """Name the weights of token embeddings that are quantised.

    Beside a GGUF those are what it has in up to 8 bits; with --preset none there are none.
    """
    kinds = guides.kinds
    return frozenset(
        name
        for name, ref in model.tensors.items()
        if ref.is_embedding
        and (part := model.part_of(name))
        and ENCODERS[part.row].embeddings == EIGHT_BITS
        and TOKEN_EMBEDDINGS.search(bare(ref.layer))
        and options.preset != "none"
        and (kinds is None or GGUF_BITS[kinds.get(name, "F32")] <= 8)
    )


def embedding_format(options: Options) -> Format:
    """Return the format of quantised embeddings: of 8 bits, where rows of it can be looked up."""
    allowed = (format_called(word) for word in options.eight_bits if word in options.allowed)
    return next((form for form in allowed if form.embedding_since), HALF)


def encoder_rules(options: Options, model: Model, guides: Guides) -> list[Rule]:
    """Make the rule for the token embeddings of text encoders."""
    form = embedding_format(options)
    if not form.is_quantised:
        return []
    names = encoder_embeddings(options, model, guides)
    reason = Reason(Why.FAMILY, "token embeddings: ComfyUI looks up their rows in 8 bits")
    return [Rule(names=names, precision=form, reason=reason)] if names else []


def encoder_weights(model: Model) -> frozenset[str]:
    """Name the tensors of text encoders that are converted."""
    return frozenset(name for name in model.tensors if model.part_of(name))


def refuse_idle(options: Options, model: Model, guides: Guides) -> None:
    """Raise ConvertError for options that say how activations are quantised, in an encoder's file.

    Beside a diffusion model they are for that.
    """
    if not any(part.prefix == "" for part in model.encoders):
        return
    idle = [*idle_options(options), *(["input scales"] if guides.calibration else [])]
    if idle:
        raise ConvertError(
            f"{options.source}: is a text encoder, and {idle[0]} has no use there, as ComfyUI "
            "multiplies text encoders in 16 bits or more and quantises no activations"
        )


def idle_options(options: Options) -> Iterable[str]:
    """List the options that were given and say how activations are quantised, by their flags."""
    return (
        flag
        for row in options_of(Options)
        for flag in row.named_by(getattr(options, row.name))
        if row.group in ACTIVATION_GROUPS or flag in ACTIVATION_OPTIONS
    )
