"""Decide which precision a tensor gets: the rules in order, then the floors.

`choice_rules` lists what may choose a precision, and the first rule that names a tensor wins.
`floor_rules` lists least precisions, which can only raise it: minimum options, recipes, formats
that may be chosen, what ComfyUI's classes ask for (`contract`), shapes without an FP4 matmul, and
tensors that are no linear layer's weight. `decide` is the one place where the two meet, and
`fitted` then sees to shapes. Families' own rules come from `presets`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable

from nvfp4.dtypes import BLOCK_SIZE, FP4_MATMUL_K, FP4_MATMUL_N
from nvfp4.errors import ConvertError, examples
from nvfp4.formats.base import Format, format_titled
from nvfp4.formats.floats import FP32, HALF, KEPT
from nvfp4.formats.int8 import INT8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.records import GGUF_BITS, Guides, Setting
from nvfp4.model import Model, TensorRef, bare
from nvfp4.modules import not_linear
from nvfp4.options import LEGACY_RECIPE, MINIMUM_OPTIONS, TARGET, Options
from nvfp4.plan.choosing import (
    eight_bit,
    fitting,
    format_for,
    least_format,
    recipe_format,
    unfit_reason,
)
from nvfp4.plan.contract import contract_rules, embedding_rules
from nvfp4.plan.encoders import encoder_embeddings, encoder_rules, encoder_weights
from nvfp4.plan.presets import edge_block_rules, edge_count, edge_format, preset_rules
from nvfp4.plan.records import UNNAMED, Rule
from nvfp4.reasons import Reason, Why

# A file may hold a text encoder or a VAE beside the diffusion model: these are only copied.
NOT_DIFFUSION = Reason(Why.BESIDE, "not of the diffusion model")
BY_LAYER_CONFIG = Reason(Why.LAYER_CONFIG, "--layer-config")
# Small tensors that keep the source's dtype without a GGUF: they cost few bytes, and rounding them
# to --dtype would reach every token.
KEEPS_SOURCE_PRECISION = r"bias$|norm|modulation|scale_shift_table"


def select(model: Model, pattern: str, option: str) -> frozenset[str]:
    """Return the linear weights that a pattern matches, by bare layer name or by full tensor name.

    `pattern` is searched without regard to case; `option` is what messages name. Raises
    ConvertError if nothing matches, as a typo would otherwise go unnoticed.
    """
    # Full names match as well as bare ones, so that a name can be copied from any report.
    found = re.compile(pattern, re.IGNORECASE)
    beside = model.beside
    matched = [
        ref
        for name, ref in model.tensors.items()
        if ref.is_matrix and name not in beside
        if found.search(bare(ref.layer)) or found.search(name)
    ]
    names = frozenset(ref.name for ref in matched if ref.is_linear_weight)
    if not names:
        layers = examples(ref.layer for ref in model.linear_weights) or "no linear layers at all"
        why = f"; {matched[0].layer}: {not_linear(bare(matched[0].layer))}" if matched else ""
        raise ConvertError(
            f"{option}: matches no linear layer of the source, which has {layers}{why}"
        )
    return names


def gguf_precision(kind: str, options: Options) -> tuple[Format, str]:
    """Return the format that a GGML type asks for, and the reason's text.

    F32 and F64 stay 32-bit; F16, BF16 and more than 8 bits become 16-bit. Of the others, those of
    up to --gguf-nvfp4-max-bitdepth bits become NVFP4, and the rest FP8 with --use-fp8, INT8 with
    --use-int8, what a recipe for 8 bits says, else 16-bit.
    """
    bits, limit = GGUF_BITS[kind], options.gguf_nvfp4_max_bitdepth
    if kind in ("F32", "F64"):
        return FP32, f"GGUF {kind}"
    # I16 to I64 are no quantised weights: treat them as the 16-bit types.
    if kind in ("F16", "BF16") or bits > 8:
        return HALF, f"GGUF {kind}"
    if bits <= limit:
        return NVFP4, f"GGUF {kind} <= {limit} bits"
    eight = eight_bit(options)
    if options.use_fp8 or options.use_int8 or recipe_format(options) is eight:
        return eight, f"GGUF {kind} > {limit} bits"
    flag = "--use-fp8" if "fp8" in options.allowed else "--use-int8"
    return HALF, f"GGUF {kind} > {limit} bits, no {flag}"


def gguf_rules(kinds: dict[str, str], options: Options) -> list[Rule]:
    """Make one rule for each GGML type among {tensor: GGML type}, so that reasons name the type."""
    by_kind = defaultdict(set)
    for name, kind in kinds.items():
        by_kind[kind].add(name)
    rules = []
    for kind, names in sorted(by_kind.items()):
        precision, text = gguf_precision(kind, options)
        names, reason = frozenset(names), Reason(Why.GGUF, text)
        is_open = precision.is_quantised
        rules.append(Rule(names=names, precision=precision, reason=reason, is_open=is_open))
    return rules


def untouched_rules(model: Model) -> list[Rule]:
    """Make the rules for tensors that go over as they are, whatever else names them.

    These are tensors beside the diffusion model, parts of layers that are packed in the source, and
    tensors that are empty or no floats of 16 or 32 bits.
    """
    refs = model.tensors.values()
    beside = Rule(names=frozenset(model.beside), precision=KEPT, reason=NOT_DIFFUSION)
    rows = {
        "quantised in the source: as it is": (ref.name for ref in refs if ref.is_kept),
        "empty, or not a 16/32-bit float": (ref.name for ref in refs if not ref.is_float),
    }
    return [beside] + [
        Rule(names=frozenset(names), precision=KEPT, reason=Reason(Why.SOURCE, text))
        for text, names in rows.items()
    ]


def option_rules(options: Options, model: Model) -> list[Rule]:
    """Make the rules of --exclude (16-bit), then of --include (NVFP4), one for each pattern.

    Raises ConvertError for a pattern that matches no linear layer.
    """
    rows = [("--exclude", pattern, HALF) for pattern in options.exclude]
    rows += [("--include", pattern, NVFP4) for pattern in options.include]
    return [
        Rule(
            names=select(model, pattern, f"{option} {pattern}"),
            precision=precision,
            reason=Reason(Why.OPTION, f"{option} {pattern}"),
        )
        for option, pattern, precision in rows
    ]


def choice_rules(
    options: Options, model: Model, guides: Guides, chosen: dict[str, Format]
) -> list[Rule]:
    """List what decides a tensor's precision, in order: the first rule that names it wins.

    That is: untouched tensors, --exclude and --include, the layer config and chosen sizes, edge
    blocks, and then either the GGUF's types or the preset with the source's precision for small
    tensors. `chosen` is {tensor: format} of --target-size.
    """
    rules = [
        *untouched_rules(model),
        *option_rules(options, model),
        *setting_rules(guides.settings, chosen),
    ]
    rules += encoder_rules(options, model, guides)
    count, form = edge_count(options, guides.family), edge_format(options, guides.family)
    rules += edge_block_rules(model, guides.family, count, form)
    if guides.kinds is not None:
        # A tensor that the GGUF does not have gives no hint: 16-bit is safe.
        lacking = Rule(
            names=frozenset(model.tensors.keys() - guides.kinds.keys()),
            precision=HALF,
            reason=Reason(Why.GGUF, "not in the GGUF"),
        )
        return [*rules, *gguf_rules(guides.kinds, options), lacking]
    rules += [*preset_rules(options, model, guides.family), *embedding_rules(model)]
    # ComfyUI computes a text encoder in the dtype of its last norm, and should not in float32.
    wide = {name for name in encoder_weights(model) if model.tensors[name].dtype == "F32"}
    small = frozenset(
        ref.name
        for ref in model.tensors.values()
        if not (ref.is_linear_weight or ref.coding or ref.name in wide)
        and (len(ref.shape) <= 1 or re.search(KEEPS_SOURCE_PRECISION, bare(ref.name)))
    )
    if options.recipe == LEGACY_RECIPE:  # files of the older kind have one dtype for the rest
        return rules
    reason = Reason(Why.SOURCE, "bias, norm or modulation: as in the source")
    return [*rules, Rule(names=small, precision=KEPT, reason=reason)]


def floor_rules(options: Options, model: Model, guides: Guides) -> list[Rule]:
    """List least precisions: each rule that names a tensor can only raise it.

    Of a --layer-config, full names of layers count as those of --include do; what it says goes
    before --formats and --card.
    """
    linear, eight = model.linear_weights, eight_bit(options)
    rows = [
        (
            select(model, switch.layers, option),
            format_for(options, switch.least),
            Reason(Why.OPTION, option),
        )
        for option, switch in MINIMUM_OPTIONS.items()
        if option in options.minimums
    ]
    settings = guides.settings
    least, option = least_format(options)
    chosen = {ref.name for ref in linear}
    if not recipe_format(options):
        chosen = chosen.difference(*(setting.names for setting in settings))
    rows.append((chosen, least, Reason(Why.OPTION, option)))
    packed = [setting for setting in settings if setting.precision.is_quantised]
    named = frozenset().union(*(setting.names for setting in packed))
    embeddings = {name for name in named if model.tensors[name].is_embedding}
    embeddings |= encoder_embeddings(options, model, guides)
    nonlinear = model.tensors.keys() - {ref.name for ref in linear} - embeddings
    rows.append((nonlinear, HALF, Reason(Why.SOURCE, "not a linear layer's weight")))
    included = (*options.include, *(setting.key for setting in packed))
    return [
        *(
            Rule(names=frozenset(names), precision=precision, reason=reason)
            for names, precision, reason in rows
        ),
        *contract_rules(model, included, eight, embeddings),
        *shape_rules(model, eight),
    ]


def shape_rules(model: Model, eight: Format) -> list[Rule]:
    """Make rules that give NVFP4 layers without an FP4 matmul the format `eight`.

    Layers of such shapes would load, but be decoded on every call. Layers of fewer columns than a
    block scale has stay 16-bit: their scales would take what packing saves.
    """
    linear = model.linear_weights
    columns = f"no FP4 matmul: columns % {FP4_MATMUL_K} != 0"
    with_bias = f"no FP4 matmul with a bias: rows % {FP4_MATMUL_N} != 0"
    rows = {
        columns: (ref.name for ref in linear if ref.shape[1] % FP4_MATMUL_K),
        with_bias: (
            ref.name
            for ref in linear
            if ref.shape[0] % FP4_MATMUL_N and f"{ref.layer}.bias" in model.tensors
        ),
    }
    few = Rule(
        names=frozenset(ref.name for ref in linear if ref.shape[1] < BLOCK_SIZE),
        precision=HALF,
        reason=Reason(Why.SHAPE, f"fewer than {BLOCK_SIZE} columns"),
        instead_of=frozenset({NVFP4, INT8}),
    )
    return [
        few,
        *(
            Rule(
                names=frozenset(names),
                precision=eight,
                reason=Reason(Why.SHAPE, text),
                instead_of=frozenset({NVFP4}),
            )
            for text, names in rows.items()
        ),
    ]


def decide(name: str, choices: list[Rule], floors: list[Rule]) -> Rule:
    """Return the rule that a tensor goes by; precisions are decided here and nowhere else.

    The first of `choices` that names it, UNNAMED without any; then every floor that is higher takes
    its place, and its reason keeps the one that it overruled.
    """
    # A floor replaces the rule but not `is_open`: --target-size may raise a layer above its floor.
    named = (rule for rule in choices if name in rule.names)
    decided = next(named, UNNAMED)
    if decided.reason.kind is Why.TARGET_SIZE:
        # What would have kept more bits is worth telling, as of layers outside the blocks.
        other = next(named, UNNAMED)
        if decided.precision < other.precision:
            decided = dataclasses.replace(decided, reason=decided.reason.over(other.reason))
    # Floors come in any order: the highest one that applies is what remains. Those that are for
    # single formats see what the others have left.
    for rule in sorted(floors, key=lambda rule: bool(rule.instead_of)):
        if name in rule.names and rule.replaces(decided.precision):
            reason = rule.reason.over(decided.reason)
            decided = dataclasses.replace(rule, reason=reason, is_open=decided.is_open)
    return decided


def fitted(options: Options, rule: Rule, ref: TensorRef) -> Rule:
    """Return a tensor's rule with a format that stores its shape, and why if it is another.

    What a --layer-config says goes before --formats and --card here, too.
    """
    asked = rule.precision
    form = fitting(options, asked, ref.shape)
    if rule.reason.kind is Why.LAYER_CONFIG:
        form = asked.for_shape(ref.shape)
    if form is asked:
        return rule
    reason = unfit_reason(asked, form)
    return dataclasses.replace(rule, precision=form, reason=reason.over(rule.reason))


def refuse_for_kept(options: Options, model: Model) -> None:
    """Raise ConvertError for options that ask to change layers which are packed in the source.

    Such layers go over as they are: neither a recipe for another format nor --exclude can apply.
    """
    # Only a packed layer's weight has a configuration: one entry for each layer.
    beside = model.beside
    refs = [ref for ref in model.tensors.values() if ref.name not in beside]
    packed = {bare(ref.layer): json.loads(ref.config)["format"] for ref in refs if ref.config}
    recipe = recipe_format(options)
    if others := [layer for layer, config in packed.items() if recipe and config != recipe.config]:
        raise ConvertError(
            f"--recipe {options.recipe}: {examples(others)}: quantised otherwise in the source "
            "already, and goes over as it is"
        )
    for pattern in options.exclude:
        found = re.compile(pattern, re.IGNORECASE)
        if named := [layer for layer in packed if found.search(layer)]:
            raise ConvertError(
                f"--exclude {pattern}: {examples(named)}: quantised in the source already, and "
                "goes over as it is"
            )


def setting_rules(settings: Iterable[Setting], chosen: dict[str, Format]) -> list[Rule]:
    """Make rules of what a --layer-config says and of what --target-size chose.

    `settings` come in the order in which they count; `chosen` is {tensor: format}.
    """
    rules = [
        Rule(
            names=setting.names,
            precision=setting.precision,
            reason=BY_LAYER_CONFIG,
            dtype=setting.dtype,
        )
        for setting in settings
    ]
    # What was chosen may be planned already: an older form is planned as the newer one again.
    newer = {format_titled(row.older_form): row for row in Format.rows if row.older_form}
    chosen = {name: newer.get(form, form) for name, form in chosen.items()}
    reason = Reason(Why.TARGET_SIZE, TARGET)
    # One rule for each precision; sorted, so that equal choices give equal lists of rules.
    for precision in sorted({*chosen.values()}):
        names = frozenset(name for name, other in chosen.items() if other is precision)
        rules.append(Rule(names=names, precision=precision, reason=reason, is_open=True))
    return rules
