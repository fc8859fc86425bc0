"""Writes the tensor names and shapes of published diffusion transformers, as ComfyUI has them.

usage: COMFYUI_ROOT=<checkout> python tests/support/make_families.py [NAME ...]

Each model is built on the meta device, so nothing is downloaded and no weight takes memory. A file
tests/families/NAME.txt results, which read_headers() expands again, and ComfyUI must recognise it.
"""

import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvfp4.families import FAMILIES as ROWS_OF_MODELS
from support.comfyui import PREAMBLE
from support.models_image import IMAGE_CONFIGURATIONS, IMAGE_MODELS
from support.models_unet import UNET_CONFIGURATIONS, UNET_MODELS
from support.models_video import VIDEO_CONFIGURATIONS, VIDEO_MODELS
from support.paths import FAMILIES
from support.published import Published

Shapes = dict[str, tuple[int, ...]]
NUMBER = re.compile(r"(?<![^.])(\d+)(?![^.])")  # a whole part of a dotted name
RANGE = re.compile(r"\{(\d+)-(\d+)\}")


def collapse(shapes: Shapes, numbers: int = 1) -> list[str]:
    """One line per run of equal tensors whose names differ only in their first number.

    With more `numbers`, runs are made of the last of these first, and of the others in turn.
    """
    for place in reversed(range(numbers)):
        groups: dict[tuple, list[int]] = {}
        for name, shape in shapes.items():
            # NUMBER's group is a part, too: names and numbers take turns.
            parts = NUMBER.split(name, maxsplit=place + 1)
            *heads, number, tail = parts if len(parts) == 2 * place + 3 else (name, "0", None)
            members = groups.setdefault(("".join(heads), tail, shape), [])
            members.append(int(number))
        shapes = {}
        for (head, tail, shape), members in groups.items():
            for run in runs(members):
                span = f"{{{run[0]}-{run[-1]}}}" if len(run) > 1 else str(run[0])
                shapes[head if tail is None else head + span + tail] = shape
    return [f"[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items()]


def runs(numbers: list[int]) -> list[list[int]]:
    """[0, 1, 2, 5] -> [[0, 1, 2], [5]]"""
    steps = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    return [[number for _, number in step] for _, step in steps]


def expand(name: str) -> list[str]:
    """blocks.{0-1}.ffn.{0-1} -> blocks.0.ffn.0, blocks.0.ffn.1, blocks.1.ffn.0 ..."""
    span = RANGE.search(name)
    numbers = range(int(span[1]), int(span[2]) + 1) if span else ()
    names = [f"{name[: span.start()]}{number}{name[span.end() :]}" for number in numbers]
    return [found for each in names for found in expand(each)] if span else [name]


def read_headers(path: Path) -> Shapes:
    """{tensor name: shape} of a file in families/."""
    shapes = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        size, name = line[1:].split("] ")
        shape = tuple(int(number) for number in size.split(",") if number)
        shapes |= dict.fromkeys(expand(name), shape)
    return shapes


def of_no_family(shapes: Shapes) -> Shapes:
    """A published model without the tensors that its family is told by."""
    keys = [re.compile(key) for family in ROWS_OF_MODELS.values() for key in family.keys]
    return {
        name: shape
        for name, shape in shapes.items()
        if not any(key.match(f"{name} {[*shape]}") for key in keys)
    }


MODELS: dict[str, Published] = IMAGE_MODELS | VIDEO_MODELS | UNET_MODELS
# {class: more configurations of it}, which make_classes.py looks at, too: where ComfyUI's detection
# has the values, the name of a tensor that it tells such a model by.
CONFIGURATIONS: dict[str, list[dict | str]] = (
    IMAGE_CONFIGURATIONS | VIDEO_CONFIGURATIONS | UNET_CONFIGURATIONS
)


def read_facts(path: Path) -> dict[str, str]:
    """{field: value} of the first line of a file in families/: title, class, detected as ..."""
    with Path(path).open(encoding="utf-8") as lines:
        _, *fields = next(lines).strip().split("; ")
    return dict(field.split(": ", 1) for field in fields)


def import_comfyui() -> None:
    """Make comfy importable, on the CPU."""
    exec(PREAMBLE, {})


def class_of(path: str) -> type:
    """A class of ComfyUI, by its path in comfy.ldm or in comfy."""
    module, _, name = path.rpartition(".")
    room = "comfy" if module.startswith(("text_encoders.", "clip_model")) else "comfy.ldm"
    return getattr(importlib.import_module(f"{room}.{module}"), name)


def configuration(given: dict | str) -> dict:
    """The arguments of a class: as given, or those that ComfyUI has for a model with a tensor."""
    import torch
    from comfy.model_detection import detect_unet_config

    if isinstance(given, dict):
        return given
    # These are the same in every model of the class.
    return detect_unet_config({given: torch.empty(1, 1, device="meta")}, "")


def place_of(path: str) -> str:
    """Where a class is built: ACE-Step 1.5's quantiser counts levels in a tensor's values."""
    return "cpu" if path.endswith("AceStepConditionGenerationModel") else "meta"


def build(path: str, arguments: dict | str) -> Shapes:
    """The state dict of a class in comfy.ldm, {name: shape}."""
    import comfy.ops
    import torch

    arguments = {"dtype": torch.bfloat16} | configuration(arguments)
    operations = comfy.ops.disable_weight_init
    model = class_of(path)(**arguments, device=place_of(path), operations=operations)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def published(shapes: Shapes, path: str, detected: str = "") -> Shapes:
    """The names in the published file, where ComfyUI renames on loading.

    A norm's weight is called `scale` there, save in LongCat-Image. PixelDiT has one layer for the
    modulation of a pixel block, where ComfyUI makes two of it.
    """
    if path.startswith("pixeldit."):
        core = "core." if path.endswith("PixDiT_T2I") else ""
        return {core + name: shape for name, shape in whole_modulation(shapes)}
    if not path.startswith(("flux.", "chroma.")) or detected == "LongCatImage":
        return shapes
    norm = re.compile(r"(_norm|\.norms\.\d+)\.weight$")
    return {norm.sub(r"\1.scale", name): shape for name, shape in shapes.items()}


def whole_modulation(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Put the two halves of PixelDiT's modulations together."""
    for name, shape in shapes.items():
        if "adaLN_modulation_mlp." in name:
            continue
        if "adaLN_modulation_msa." in name:
            name, shape = name.replace("_msa.", ".0."), (2 * shape[0], *shape[1:])
        yield name, shape


def check(shapes: Shapes, model: Published) -> None:
    """ComfyUI recognises these tensors, and the model that it would build has just these."""
    import torch
    from comfy.model_detection import detect_unet_config, model_config_from_unet

    meta = {"dtype": torch.bfloat16, "device": "meta"}
    state = {name: torch.empty(shape, **meta) for name, shape in shapes.items()}
    assert detect_unet_config(state, "", metadata=model.metadata) is not None
    config = model_config_from_unet(state, "", metadata=model.metadata)
    assert type(config).__name__ == model.detected, (type(config), model.detected)
    renamed = config.process_unet_state_dict(state)
    renamed = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    assert build(model.path, config.unet_config) == renamed


def main(names: list[str]) -> None:
    import_comfyui()
    (FAMILIES / "others").mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        model = MODELS[name]
        built = build(model.path, model.arguments)
        shapes = published(built, model.path, model.detected)
        check(shapes, model)
        out = FAMILIES / ("" if model.recognised else "others") / f"{name}.txt"
        numbers = 3 if name in UNET_MODELS or not model.recognised else 1
        lines = [model.facts(name), *collapse(shapes, numbers)]
        out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        assert read_headers(out) == shapes
        print(name, model.detected, len(shapes), "tensors", out.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
