"""Which precision a tensor gets: the rules in order, the floors."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable

from nvfp4.dtypes import FP4_MATMUL_K, FP4_MATMUL_N
from nvfp4.errors import ConvertError, examples
from nvfp4.families import NEVER_PACKED, RECOGNISED_BY_ROWS
from nvfp4.formats.base import Format, format_titled
from nvfp4.formats.floats import FP32, HALF, KEPT
from nvfp4.formats.fp8 import FP8
from nvfp4.formats.nvfp4 import NVFP4
from nvfp4.guides.records import GGUF_BITS, Guides, Setting
from nvfp4.model import Model, bare, diffusion_prefix
from nvfp4.options import LEGACY_RECIPE, MINIMUM_OPTIONS, TARGET, Options
from nvfp4.plan.presets import edge_block_rules, edge_count, preset_rules
from nvfp4.plan.records import UNNAMED, Rule
from nvfp4.reasons import Reason, Why

NOT_DIFFUSION = Reason(Why.SOURCE, "not of the diffusion model")
BY_LAYER_CONFIG = Reason(Why.LAYER_CONFIG, "--layer-config")
KEEPS_SOURCE_PRECISION = r"bias$|norm|modulation|scale_shift_table"


def select(model: Model, pattern: str, option: str) -> frozenset[str]:
    """Linear weights whose bare layer name matches; none is an error, as a typo would be silent."""
    found = re.compile(pattern, re.IGNORECASE)
    names = frozenset(
        ref.name
        for ref in model.linear_weights
        if found.search(bare(ref.layer)) or found.search(ref.name)
    )
    if not names:
        layers = examples(ref.layer for ref in model.linear_weights) or "no linear layers at all"
        raise ConvertError(f"{option}: matches no linear layer of the source, which has {layers}")
    return names


def gguf_precision(kind: str, options: Options) -> tuple[Format, str]:
    bits, limit = GGUF_BITS[kind], options.gguf_nvfp4_max_bitdepth
    if kind in ("F32", "F64"):
        return FP32, f"GGUF {kind}"
    if kind in ("F16", "BF16") or bits > 8:
        return HALF, f"GGUF {kind}"
    if bits <= limit:
        return NVFP4, f"GGUF {kind} <= {limit} bits"
    if options.use_fp8 or options.only_fp8:
        return FP8, f"GGUF {kind} > {limit} bits"
    return HALF, f"GGUF {kind} > {limit} bits, no --use-fp8"


def gguf_rules(kinds: dict[str, str], options: Options) -> list[Rule]:
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
    """Tensors that go over as they are, whatever else names them."""
    refs = model.tensors.values()
    rows = {
        "quantised in the source: as it is": (ref.name for ref in refs if ref.is_kept),
        "empty, or not a 16/32-bit float": (ref.name for ref in refs if not ref.is_float),
    }
    return [
        Rule(names=frozenset(names), precision=KEPT, reason=Reason(Why.SOURCE, text))
        for text, names in rows.items()
    ]


def option_rules(options: Options, model: Model) -> list[Rule]:
    """--exclude, then --include."""
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
    """What decides a tensor's precision, in order: the first row that names it wins."""
    prefix = diffusion_prefix(model.tensors)
    beside = frozenset(name for name in model.tensors if not name.startswith(prefix))
    rules = [
        *untouched_rules(model),
        *option_rules(options, model),
        *setting_rules(guides.settings, chosen),
        Rule(names=beside, precision=KEPT, reason=NOT_DIFFUSION),
    ]
    rules += edge_block_rules(model, guides.family, edge_count(options, guides.family))
    if guides.kinds is not None:
        lacking = Rule(
            names=frozenset(model.tensors.keys() - guides.kinds.keys()),
            precision=HALF,
            reason=Reason(Why.GGUF, "not in the GGUF"),
        )
        return [*rules, *gguf_rules(guides.kinds, options), lacking]
    rules += preset_rules(options, model, guides.family)
    small = frozenset(
        ref.name
        for ref in model.tensors.values()
        if not ref.is_linear_weight
        and (len(ref.shape) <= 1 or re.search(KEEPS_SOURCE_PRECISION, bare(ref.name)))
    )
    if options.recipe == LEGACY_RECIPE:  # everything else is --dtype
        return rules
    reason = Reason(Why.SOURCE, "bias, norm or modulation: as in the source")
    return [*rules, Rule(names=small, precision=KEPT, reason=reason)]


def floor_rules(options: Options, model: Model) -> list[Rule]:
    """Least precisions: each row that names a tensor raises it."""
    linear = model.linear_weights
    rows = [
        (
            select(model, switch.layers, option),
            format_titled(switch.least),
            Reason(Why.OPTION, option),
        )
        for option, switch in MINIMUM_OPTIONS.items()
        if option in options.minimums
    ]
    if options.only_fp8:
        recipe = Reason(Why.OPTION, f"--recipe {options.recipe}")
        rows.append(({ref.name for ref in linear}, FP8, recipe))
    for family, pattern in NEVER_PACKED.items():
        names = {ref.name for ref in linear if re.search(pattern, bare(ref.layer))}
        recognised = Reason(Why.RECOGNITION, f"ComfyUI recognises {family} by its shape")
        rows.append((names, HALF, recognised))
    odd_columns = {ref.name for ref in linear if ref.shape[1] % FP4_MATMUL_K}
    odd_rows = {
        ref.name
        for ref in linear
        if ref.shape[0] % FP4_MATMUL_N
        and (f"{ref.layer}.bias" in model.tensors or re.search(RECOGNISED_BY_ROWS, bare(ref.layer)))
    }
    nonlinear = model.tensors.keys() - {ref.name for ref in linear}
    columns = f"no FP4 matmul: columns % {FP4_MATMUL_K} != 0"
    with_bias = f"no FP4 matmul with a bias: rows % {FP4_MATMUL_N} != 0"
    rows += [
        (odd_columns, FP8, Reason(Why.FP4_MATMUL, columns)),
        (odd_rows, FP8, Reason(Why.FP4_MATMUL, with_bias)),
        (nonlinear, HALF, Reason(Why.SOURCE, "not a linear layer's weight")),
    ]
    return [
        Rule(names=frozenset(names), precision=precision, reason=reason)
        for names, precision, reason in rows
    ]


def decide(name: str, choices: list[Rule], floors: list[Rule]) -> Rule:
    """The only place where a precision is born: the rule that a tensor goes by."""
    decided = next((rule for rule in choices if name in rule.names), UNNAMED)
    for rule in floors:
        if name in rule.names and rule.precision > decided.precision:
            reason = rule.reason.over(decided.reason)
            decided = dataclasses.replace(rule, reason=reason, is_open=decided.is_open)
    return decided


def refuse_for_kept(options: Options, model: Model) -> None:
    """Layers that are NVFP4 in the source stay so: options that mean otherwise are errors."""
    packed = {bare(ref.layer): ref.name for ref in model.tensors.values() if ref.config}
    if packed and options.only_fp8:
        raise ConvertError(f"--recipe {options.recipe}: the source has NVFP4 layers already")
    for pattern in options.exclude:
        found = re.compile(pattern, re.IGNORECASE)
        if named := [layer for layer in packed if found.search(layer)]:
            raise ConvertError(
                f"--exclude {pattern}: {examples(named)}: NVFP4 in the source already, and goes "
                "over as it is"
            )


def setting_rules(settings: Iterable[Setting], chosen: dict[str, Format]) -> list[Rule]:
    """What --layer-config says and --target-size chose, as rules."""
    rules = [
        Rule(
            names=setting.names,
            precision=setting.precision,
            reason=BY_LAYER_CONFIG,
            dtype=setting.dtype,
        )
        for setting in settings
    ]
    reason = Reason(Why.TARGET_SIZE, TARGET)
    for precision in sorted({*chosen.values()}):
        names = frozenset(name for name, other in chosen.items() if other is precision)
        rules.append(Rule(names=names, precision=precision, reason=reason, is_open=True))
    return rules
