"""Find out what the changes of a LoRA are scaled by: its alpha, over its rank.

Some trainers store alpha as a tensor of each layer, others only in the file's metadata or, as PEFT
does, in adapter_config.json beside it. ComfyUI reads the tensors alone, and takes a scale of 1
where there are none; diffusers and PEFT read both, and what was trained is meant by both.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nvfp4.errors import EXCERPT, ConvertError, examples, in_number, one_line
from nvfp4.files import exists, translated
from nvfp4.model import TensorRef, compiled
from nvfp4.notes import Note, Rank
from nvfp4.read.checkpoint import MODEL_SUFFIXES, opened
from nvfp4.read.json_files import load_json, parse_json, unique_keys
from nvfp4.read.tensors import fetching, load
from nvfp4.source.lora_names import plain_layer

# The file that PEFT writes beside a LoRA, and the name that it gives the LoRA itself.
CONFIG_FILE, PEFT_MODEL = "adapter_config.json", "adapter_model"
# Under this name of a header's metadata, diffusers has PEFT's configuration as JSON.
CONFIG_KEY = "lora_adapter_metadata"
# The factor whose first dimension is the rank, by the kind of patch: the first that is there.
RANKED_PARTS = {"lora": ("down",), "loha": ("w1_b",), "lokr": ("w2_b", "w1_b")}
# What programs call the alpha of a whole file, and its rank; the first one that is there counts.
ALPHA_FIELDS = ("lora_alpha", "network_alpha", "alpha", "ss_network_alpha")
RANK_FIELDS = ("r", "lora_rank", "rank", "network_dim", "ss_network_dim")
# What PEFT has besides: values for single modules, rank stabilisation (alpha over the root of the
# rank), and DoRA, whose magnitudes would have to be in the file.
PATTERNS = ("alpha_pattern", "rank_pattern")
OTHER_FIELDS = (*PATTERNS, "use_rslora", "use_dora")
# How programs write that they have no value.
NO_VALUE = (None, "", "None", "null")
# Metadata of a model's parts that are not converted.
TEXT_ENCODER = re.compile(r"text_encoder|te\d?$|clip")
# kohya's trainers write this beside ss_network_alpha, and always a tensor of each layer, under
# names with underscores. Converters to other names multiply alpha into the weights, drop the
# tensors, and leave the metadata as it was (musubi-tuner's convert_lora.py).
KOHYA_TRAINED, KOHYA_NAME = "ss_network_module", re.compile(r"lora_\w+$")
# Patterns for modules come from the file, and must not take long to match: a repeated group could
# take exponential time, and many quantifiers nearly so.
MAX_PATTERNS, MAX_PATTERN = 10_000, 200
COSTLY, SIMPLE_NAME = re.compile(r"\)[*+{]|([*+?{].*){3}"), re.compile(r"[\w.]+")


class Trained(NamedTuple):
    """Hold one statement of how a LoRA was trained.

    source: where it stands, as messages call it. component: the part of a pipeline that it is for,
    "" for all. fields: what it says, by the names in ALPHA_FIELDS, RANK_FIELDS and OTHER_FIELDS;
    metadata have text for every value.
    """

    source: str
    component: str
    fields: dict[str, object]

    @property
    def label(self) -> str:
        """Name the statement in a message: its source, and the component if it is for one."""
        return f"{self.source} for {self.component}" if self.component else self.source


class Alpha(NamedTuple):
    """Hold a layer's alpha from a statement, and whether it is over the root of the rank."""

    value: float
    is_rank_stabilised: bool

    def scale(self, rank: int) -> float:
        """Return what the layer's change is multiplied by."""
        return self.value / (math.sqrt(rank) if self.is_rank_stabilised else rank)


class Scales(NamedTuple):
    """Hold what the parts of a LoRA are multiplied by besides its strength.

    by_part: by layer and kind, where that is not an alpha tensor's business or 1. idle: layers
    whose alpha is 0, so that they change nothing.
    """

    by_part: dict[tuple[str, str], float]
    idle: set[str]
    notes: list[str]
    problems: list[str]


class Alphas(NamedTuple):
    """Hold the alphas of layers that have no tensor for it, and what is to be told about them."""

    by_layer: dict[str, Alpha]
    notes: list[str]
    problems: list[str]


def lora_scales(
    path: Path, metadata: dict[str, str], layers: dict[str, dict[str, dict[str, TensorRef]]]
) -> Scales:
    """Find the scales of a LoRA's layers: of their alpha tensors, else of what is stated elsewhere.

    layers: {layer: {kind: {part: TensorRef}}}, of those that are merged. Raises ConvertError for an
    alpha tensor that is no number, and a configuration that cannot be read.
    """
    ranks = {layer: rank for layer, kinds in layers.items() if (rank := rank_of(kinds))}
    weights = {layer: {k: v for parts in kinds.values() for k, v in parts.items()}
               for layer, kinds in layers.items()}  # fmt: skip
    tensors = {layer: parts["alpha"] for layer, parts in weights.items() if "alpha" in parts}
    stored = stored_alphas(path, tensors)
    stated = trained_alphas(path, metadata, {k: v for k, v in ranks.items() if k not in tensors})
    scales = {layer: alpha.scale(ranks[layer]) for layer, alpha in stated.by_layer.items()}
    # An alpha tensor is among the parts of its layer's weight, and scales that when it is merged.
    by_part = {(layer, kind): scale for layer, scale in scales.items()
               for kind in layers[layer].keys() & RANKED_PARTS.keys()}  # fmt: skip
    scales |= {layer: stored[layer] / ranks[layer] for layer in stored.keys() & ranks.keys()}
    by_part |= {(layer, "lora_bias"): scale for layer, scale in scales.items()
                if "lora_bias" in layers[layer]}  # fmt: skip
    # DoRA scales a weight whose change is 0, too.
    idle = {layer for layer in stored if not stored[layer] and "dora_scale" not in weights[layer]}
    what = f"alpha is 0 in {in_number(len(idle), 'layers')}, which changes nothing"
    what = Note(f"{what}: {examples(idle)}", Rank.NOTE)
    return Scales(by_part, idle, stated.notes + ([what] if idle else []), stated.problems)


def rank_of(kinds: dict[str, dict[str, TensorRef]]) -> int:
    """Tell the rank that a layer's alpha is divided by, or 0: as `numeric.lora` does."""
    shapes = (
        kinds[kind][name].shape
        for kind, names in RANKED_PARTS.items()
        for name in names
        if name in kinds.get(kind, ())
    )
    return next((shape[0] for shape in shapes if shape), 0)


def stored_alphas(path: Path, alphas: dict[str, TensorRef]) -> dict[str, float]:
    """Read alpha tensors: {layer: value}.

    alphas: {layer: its tensor}, of one element each; others are passed over, as they do not fit.
    Raises ConvertError for one that is NaN or infinite.
    """
    found = {}
    with opened(path) as file, fetching(alphas.values()):
        for layer, ref in alphas.items():
            if math.prod(ref.shape) == 1:
                found[layer] = float(load(ref, file).float())
                if not math.isfinite(found[layer]):
                    raise ConvertError(f"{path}: {ref.name} is {found[layer]}: the LoRA is damaged")
    return found


def trained_alphas(path: Path, metadata: dict[str, str], ranks: dict[str, int]) -> Alphas:
    """Find the alphas that layers without a tensor were trained with.

    path: the LoRA. metadata: its header's. ranks: {layer as the file names it: rank}, of the layers
    that are merged and have no alpha tensor. Layers for which nothing is stated, or alpha is the
    rank, are not in the result. Problems are statements that contradict each other or the file, or
    are no positive numbers: their layers are not in the result either. Raises ConvertError for a
    configuration that cannot be read.
    """
    if not ranks:
        return Alphas({}, [], [])
    stated, notes = [*statements(path, metadata)], []
    folded = [one for one in stated if is_folded(one, metadata, ranks)]
    stated = [one for one in stated if one not in folded]
    if folded:
        what = "the file was converted from kohya's names, which multiplies it into the weights"
        told_of = f"ss_network_alpha of its metadata is not applied: {what}"
        notes.append(Note(told_of, Rank.INFORMATION))
    if not stated and exists(path.parent / CONFIG_FILE) and not is_of_peft(path):
        what = "is not read, as it may be of another LoRA there"
        notes.append(Note(f"{CONFIG_FILE} in its folder {what}", Rank.NOTE))
    found, problems = {}, defaultdict(list)
    for layer, rank in ranks.items():
        try:
            alpha = agreed([(one, alpha_of(one, layer, rank)) for one in applying(stated, layer)])
        except ValueError as error:
            problems[one_line(str(error))].append(layer)
            continue
        if alpha is not None and alpha.scale(rank) != 1:
            found[layer] = alpha
    notes += told(stated, found, ranks)
    lines = [
        f"{problem}; so the scale of {in_number(len(layers), 'layers')} is not certain, and "
        f"ComfyUI takes 1: {examples(layers)}"
        for problem, layers in problems.items()
    ]
    return Alphas(found, notes, lines)


def told(stated: list[Trained], found: dict[str, Alpha], ranks: dict[str, int]) -> Iterator[str]:
    """Yield a note on the alphas that are applied, and where ComfyUI does otherwise."""
    if not found:
        return
    scales = sorted({found[layer].scale(ranks[layer]) for layer in found})
    scales = [f"{scale:.6g}" for scale in dict.fromkeys((scales[0], scales[-1]))]
    sources = ", ".join(dict.fromkeys(one.source for one in stated))
    root = (
        ", over the root of the rank" if any(a.is_rank_stabilised for a in found.values()) else ""
    )
    what = in_number(len(found), "layers are merged at the scale they were trained with")
    yield Note(
        f"{what}, {' to '.join(scales)} (alpha from {sources}{root}); ComfyUI, which reads alpha "
        "tensors only, takes 1",
        Rank.INFORMATION,
    )


def statements(path: Path, metadata: dict[str, str]) -> Iterator[Trained]:
    """Yield what a file's metadata, and the configuration beside it, say of its alpha.

    Raises ConvertError for a configuration that is no JSON object.
    """
    if CONFIG_KEY in metadata:
        try:
            config = parse_json(metadata[CONFIG_KEY], unique_keys)
            if not isinstance(config, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise ConvertError(
                f"{path}: {CONFIG_KEY} in its metadata is damaged: {error}"
            ) from error
        yield from by_component(CONFIG_KEY, config)
    yield from by_component("its metadata", metadata)
    if is_of_peft(path):
        yield from by_component(CONFIG_FILE, load_json(path.parent / CONFIG_FILE, "configuration"))


def is_of_peft(path: Path) -> bool:
    """Tell whether the configuration beside a LoRA, if there is one, is of this LoRA.

    It is where the file has the name that PEFT gives it, or is the only one in its folder.
    """
    if not exists(path.parent / CONFIG_FILE):
        return False
    with translated(path.parent, "cannot read"):
        files = [other for other in path.parent.iterdir() if other.suffix.lower() in MODEL_SUFFIXES]
    return path.name.startswith(PEFT_MODEL) or len(files) == 1


def by_component(source: str, fields: dict[str, object]) -> Iterator[Trained]:
    """Sort {"transformer.lora_alpha": 32} by component, and yield those that have an alpha.

    Names without a dot are of the component "". Text encoders are left out.
    """
    known = {*ALPHA_FIELDS, *RANK_FIELDS, *OTHER_FIELDS}
    found = defaultdict(dict)
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        if field in known and value not in NO_VALUE and not TEXT_ENCODER.match(component):
            found[component][field] = dictionary(value) if field in PATTERNS else value
    # The library writes metadata in any order.
    for component, stated in sorted(found.items()):
        if "alpha" in stated and not is_trained_alpha(stated):
            del stated["alpha"]
        if stated.keys() & {*ALPHA_FIELDS, "alpha_pattern"}:
            yield Trained(source, component, stated)


def is_trained_alpha(fields: dict[str, object]) -> bool:
    """Tell whether a bare `alpha` is a LoRA's, as beside a rank or the pattern of one.

    Programs that merge LoRAs write their ratio, up to 1, under the same name; MiniMax's trainer
    writes alpha alone. What is no number is a remark.
    """
    try:
        value = float(fields["alpha"])
    except (TypeError, ValueError, OverflowError):
        return False
    return value > 1 or bool(fields.keys() & {*RANK_FIELDS, *PATTERNS})


def dictionary(value: object) -> object:
    """Parse what metadata have as JSON text, if it is any; the value itself otherwise."""
    try:
        return parse_json(value, unique_keys) if isinstance(value, str) else value
    except ValueError:
        return value


def is_folded(stated: Trained, metadata: dict[str, str], ranks: Iterable[str]) -> bool:
    """Tell whether a statement is kohya's, in a file that was converted to other names."""
    theirs = {*ALPHA_FIELDS} & stated.fields.keys() == {"ss_network_alpha"}
    return theirs and KOHYA_TRAINED in metadata and not all(map(KOHYA_NAME.match, ranks))


def agreed(alphas: list[tuple[Trained, Alpha]]) -> Alpha | None:
    """Return the alpha that all statements on a layer agree about, or None without any.

    Not every one tells of rank stabilisation: one that does is enough. Raises ValueError where they
    do not agree.
    """
    if len({alpha.value for _, alpha in alphas}) > 1:
        said = (f"{alpha.value:g} in {one.label}" for one, alpha in alphas)
        raise ValueError(f"alpha is {' and '.join(said)}")
    if not alphas:
        return None
    return Alpha(alphas[0][1].value, any(alpha.is_rank_stabilised for _, alpha in alphas))


def applying(stated: list[Trained], layer: str) -> list[Trained]:
    """Choose the statements that are for a layer, by the component that its name begins with.

    Of each source these are the ones of that component, else the general one, else all.
    """
    chosen = []
    for _, group in itertools.groupby(stated, key=lambda one: one.source):
        group = [*group]
        own = [one for one in group if one.component and f".{one.component}." in f".{layer}"]
        chosen += own or [one for one in group if not one.component] or group
    return chosen


def alpha_of(stated: Trained, layer: str, rank: int) -> Alpha:
    """Take a layer's alpha from a statement.

    Raises ValueError for what is no positive number, a rank that the layer does not have, and DoRA,
    as no layer here has magnitudes of PEFT.
    """
    fields, module = stated.fields, plain_layer(layer)
    alpha = by_pattern(stated, "alpha_pattern", module, ALPHA_FIELDS)
    said = by_pattern(stated, "rank_pattern", module, RANK_FIELDS)
    if said is not None and stated_number(stated.source, said, "rank") != rank:
        raise ValueError(f"the rank is {said} in {stated.source} and {rank} in the file")
    if is_true(fields.get("use_dora")):
        raise ValueError(f"{stated.source} tells of DoRA, whose magnitudes the file does not have")
    # A pattern alone leaves the other layers as they are: PEFT's own default would be a guess.
    value = rank if alpha is None else stated_number(stated.source, alpha, "alpha")
    return Alpha(float(value), alpha is not None and is_true(fields.get("use_rslora")))


def by_pattern(stated: Trained, patterns: str, module: str, names: Iterable[str]) -> object:
    """Look a value up for a module: in a dictionary of patterns, or else under its general names.

    As in PEFT, the first pattern counts that is the module's name or the end of it. Returns None
    where nothing is said. Raises ValueError for a dictionary that is none, or too large, and for a
    pattern that is no simple regular expression.
    """
    given = stated.fields.get(patterns, {})
    if not isinstance(given, dict) or len(given) > MAX_PATTERNS:
        raise ValueError(f"{patterns} in {stated.source} is no dictionary of modules")
    for pattern, value in given.items():
        # Most are plain names, which take no regular expression.
        if SIMPLE_NAME.fullmatch(pattern):
            if f".{module}".endswith(f".{pattern}"):
                return value
        elif max(len(pattern), len(module)) > MAX_PATTERN or COSTLY.search(pattern):
            short = pattern[:EXCERPT]
            raise ValueError(f"{patterns} in {stated.source} has {short!r}, too intricate")
        elif compiled(rf"(.*\.)?({pattern})").fullmatch(module):
            return value
    return next((stated.fields[name] for name in names if name in stated.fields), None)


def stated_number(source: str, value: object, what: str) -> float:
    """Read a positive number, which metadata have as text; raises ValueError for all else."""
    try:
        # True is an int for Python, and no number here.
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 < found < math.inf:
        raise ValueError(
            f"{what} is {repr(value)[:EXCERPT]} in {source}, which is no positive number"
        )
    return found


def is_true(value: object) -> bool:
    """Tell whether a switch is on; metadata have text for it."""
    return value is True or (isinstance(value, str) and value.lower() in ("true", "1"))
