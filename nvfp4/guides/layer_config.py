"""Read layer configs and layer lists, and match them to the model.

A --layer-config says what single tensors become, by name or by pattern; a layer list names layers
for full-precision matmul, one a line. Both are written by hand, so that every mistake in them is an
error or a note. `report.layer_config` writes such a config from a plan.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

from nvfp4.coverage import Cover, check_blocks
from nvfp4.dtypes import FLOAT32_MAX
from nvfp4.errors import EXCERPT, ConvertError, did_you_mean, examples, of_another_model
from nvfp4.files import translated
from nvfp4.formats.base import Format, format_titled, written_formats
from nvfp4.formats.floats import FP32, HALF, KEPT
from nvfp4.formats.fp8 import FP8
from nvfp4.guides.records import LayerList, Setting
from nvfp4.model import Model, TensorRef, bare, compiled, unwrapped
from nvfp4.modules import not_linear
from nvfp4.read.beginnings import decode_text
from nvfp4.read.json_files import load_json, read_whole

# What an entry may have, and the Python types that its JSON values must be of. `bool` is a subclass
# of `int` in Python, so types are compared exactly.
SETTING_KEYS = {
    "format": (str,),
    "full_precision_matrix_mult": (bool,),
    "input_scale": (int, float),
    "convrot": (bool,),
    "convrot_groupsize": (int,),
    "group_size": (int,),
    "bits": (int,),
}
# Of these, what tells formats apart that ComfyUI calls by one name.
FORMAT_OPTIONS = ("convrot", "convrot_groupsize", "group_size", "bits")
# Formats of an entry that quantise nothing, as precision and safetensors dtype; "16bit" takes that
# of --dtype, "source" keeps the source's own.
UNQUANTISED_SETTINGS = {
    "16bit": (HALF, ""),
    "bfloat16": (HALF, "BF16"),
    "float16": (HALF, "F16"),
    "float32": (FP32, "F32"),
    "source": (KEPT, ""),
}


def setting_names() -> list[str]:
    """List what the "format" of an entry may be: names of `comfy_quant`, and words of --formats."""
    words = (word for row in written_formats() for word in (row.config, row.option) if word)
    return [*dict.fromkeys(words), *UNQUANTISED_SETTINGS]


def setting_of(row: Format) -> str:
    """Name a format that is written so that an entry with this "format" alone means it."""
    # Where ComfyUI needs options beside the name, the word says it all.
    return row.config if len(row.configuration(full_precision=False)) == 1 else row.option


def asked_format(entry: dict) -> Format | None:
    """Find the format that an entry asks for by its name and options; None where none fits.

    A name of `comfy_quant` means what it means to ComfyUI: int8_tensorwise without `convrot` is not
    rotated. A word of --formats stands for a name with all of its options.
    """
    for row in written_formats():
        own = row.configuration(full_precision=False)
        alike = (other for other in written_formats() if other.config == row.config)
        known = {key for one in alike for key in one.configuration(full_precision=False)}
        foreign = entry.keys() & {*FORMAT_OPTIONS} - known - {"bits"}
        whole = {**own, **entry, "format": row.config} if entry["format"] == row.option else entry
        fits = entry.get("bits", row.weight_bits) == row.weight_bits
        if row.is_meant_by(whole) and fits and not foreign:
            return row
    return None


def read_layer_list(path: Path) -> tuple[str, ...]:
    """Read the layer names of a list, one a line, without repeats and `.weight`.

    Text after # and blank lines are left out. Raises ConvertError for a file that cannot be read,
    is too large, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    try:
        with translated(path, "cannot read the layer list"):
            raw = read_whole(path)
        lines = decode_text(raw).splitlines()
    except ValueError as error:
        what = "is not UTF-8" if getattr(error, "encoding", "") == "utf-8" else "cannot be read"
        raise ConvertError(f"{path}: the layer list {what}: {error}") from error
    names = (line.partition("#")[0].strip().removesuffix(".weight") for line in lines)
    return tuple(dict.fromkeys(name for name in names if name))


def match_layer_list(path: Path, model: Model, partial: bool = False) -> LayerList:
    """Match a list to the model: the linear weights that it names, and names that match nothing.

    Prefixes are ignored on both sides. Raises ConvertError where it names no layer of the model
    or, unless `partial`, layers of whole blocks that the model lacks.
    """
    layers = {bare(ref.layer): ref.name for ref in model.linear_weights}
    listed = {bare(unwrapped(name)) for name in read_layer_list(path)}
    weights = frozenset(layers[name] for name in listed & layers.keys())
    if not listed:
        raise ConvertError(f"{path}: names no layer: it is empty, or all of it is comments")
    if not weights:
        raise of_another_model(path, it_has=listed, other_has=layers)
    check_blocks(Cover((path,), frozenset(listed)), model, partial)
    return LayerList(weights=weights, unknown=frozenset(listed - layers.keys()))


def read_layer_config(path: Path, model: Model) -> list[Setting]:
    """Read the settings of a --layer-config, each with the tensors that it is for.

    A key is a tensor's name or a regular expression for whole names. A tensor goes by its own name
    if that is there, else by the first pattern in the file. Patterns for a quantised format apply
    to linear weights alone. Raises ConvertError with all mistakes together.
    """
    names, beside = {config_key(ref): ref for ref in model.tensors.values()}, model.beside
    settings, problems, left = [], [], {*names}
    found = load_json(path, "layer config")
    if not found:
        raise ConvertError(f"{path}: the layer config is empty")
    # Exact names come first and take their tensors out of `left`, whatever the order in the file.
    for key in sorted(found, key=lambda key: key not in names):
        try:
            setting = as_setting(key, found[key])
            matched = {key} if key in names else {*filter(compiled(key).fullmatch, names)}
            # A pattern may match biases, norms and text encoders besides: these are passed over,
            # and no error.
            if key not in names and setting.precision.is_quantised:
                matched = {name for name in matched if names[name].is_linear_weight}
            if key not in names:
                matched = {name for name in matched if names[name].name not in beside}
            refuse_setting(setting, [names[name] for name in matched], beside)
        except ValueError as error:
            problems.append(f"{path}: {key[:EXCERPT]}: {error}")
            continue
        # What an earlier key has taken is not this one's, but a pattern may match it all the same.
        refs = frozenset(names[name].name for name in matched & left)
        settings.append(setting._replace(names=refs))
        left -= matched
    if problems:
        raise ConvertError(*problems)
    return settings


def refuse_setting(setting: Setting, refs: list[TensorRef], beside: Container[str]) -> None:
    """Raise ValueError where a setting cannot be for the tensors that it names.

    It names none, quantises what is no linear layer and no embedding, changes what goes over as it
    is, or copies what is decoded when it is read. `beside` are names that are not of the diffusion
    model.
    """
    if not refs:
        raise ValueError(
            "matches nothing of the source: keys are linear layers without .weight, other tensors "
            "by their whole names, both without prefix, or regular expressions for all of these"
        )
    for ref in refs:
        name = config_key(ref)
        if ref.name in beside and not setting.precision.is_copy:
            raise ValueError(f"{name} is not of the diffusion model and goes over as it is: source")
        if setting.precision.is_quantised and not (ref.is_linear_weight or ref.config):
            refuse_nonlinear(setting, ref)
        if ref.is_kept and not setting.precision.is_copy:
            raise ValueError(f"{name} is quantised in the source and goes over as it is: source")
        if ref.coding and setting.precision.is_copy:
            row = format_titled(ref.coding.title)
            row = FP8 if row.weight_dtype == FP8.weight_dtype and ref.coding.scale else row
            kept = f": {setting_of(row)} keeps it" if row in written_formats() else ", and decoded"
            raise ValueError(f"{name} is {ref.coding.title} in the source{kept}")


def refuse_nonlinear(setting: Setting, ref: TensorRef) -> None:
    """Raise ValueError for a setting that quantises what is no linear layer.

    An embedding of ComfyUI's operations may be quantised to formats whose rows it looks up. It
    multiplies nothing, so that marks and input scales are refused.
    """
    name = config_key(ref)
    found = f": {not_linear(name)}" if not_linear(name) else ""
    if not ref.is_embedding:
        raise ValueError(f"{name} is no linear layer{found}")
    if not setting.precision.embedding_since:
        takes = {row.option for row in written_formats() if row.option and row.embedding_since}
        raise ValueError(f"{name} is no linear layer{found}, which takes {examples(takes)} alone")
    if setting.full_precision or setting.input_scale is not None:
        raise ValueError(
            f"{name} takes no mark and no input_scale{found}, which multiplies nothing"
        )


def config_key(ref: TensorRef) -> str:
    """Return the name of a tensor in a layer config, without prefix.

    A matrix named `*.weight` goes by its layer, without that; other tensors by their whole names.
    """
    return bare(ref.layer if ref.is_matrix or ref.config else ref.name)


def as_setting(key: str, value: object) -> Setting:
    """Check one entry of a layer config and make a Setting of it, for no tensors yet.

    Raises ValueError for unknown keys or formats, values of a wrong type, an input scale that is
    not a positive float32, and full-precision matmul or an input scale of what is not quantised.
    """
    if not isinstance(value, dict):
        raise ValueError('needs an object like {"format": "nvfp4"}')
    if unknown := value.keys() - SETTING_KEYS.keys():
        raise ValueError(f"has {examples(unknown)}; known are {', '.join(SETTING_KEYS)}")
    known = setting_names()
    if not isinstance(value.get("format"), str) or value["format"] not in known:
        given = value.get("format")
        hint = did_you_mean(str(given), known)
        raise ValueError(f"format {given!r} is none of {', '.join(known)}{hint}")
    for name, kinds in SETTING_KEYS.items():
        if name in value and type(value[name]) not in kinds:
            raise ValueError(f"{name} {repr(value[name])[:EXCERPT]} is no {kinds[-1].__name__}")
    scale = value.get("input_scale")
    if scale is not None and not 0 < scale < FLOAT32_MAX:
        raise ValueError(f"input_scale {str(scale)[:EXCERPT]} is not a positive number")
    precision, dtype = UNQUANTISED_SETTINGS.get(value["format"], (asked_format(value), ""))
    flag = value.get("full_precision_matrix_mult", False)
    refuse_extras(value, precision)
    return Setting(key, precision, dtype, flag, scale, frozenset())


def refuse_extras(entry: dict, precision: Format | None) -> None:
    """Raise ValueError where the format that an entry asks for does not take the rest of it.

    precision: what its format and options mean, None where they mean nothing.
    """
    options = {key: entry[key] for key in FORMAT_OPTIONS if key in entry}
    if precision is None or (options and not precision.is_quantised):
        raise ValueError(f"{entry['format']} is not written with {json.dumps(options)}")
    flag, scale = entry.get("full_precision_matrix_mult"), entry.get("input_scale")
    if not precision.is_quantised and (flag or scale is not None):
        raise ValueError(f"{entry['format']} takes nothing else")
    if flag and not precision.takes_mark:
        raise ValueError(f"{precision.title} takes no full_precision_matrix_mult")
    if scale is not None and not precision.activation_max:
        raise ValueError(f"{precision.title} takes no input_scale: ComfyUI measures its input")
