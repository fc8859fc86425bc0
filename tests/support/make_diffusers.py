"""Writes the tensor names of diffusers' model classes, a block of each.

usage: python tests/support/make_diffusers.py       (needs diffusers and transformers)

Each class is built on the meta device, so nothing is downloaded and no weight takes memory. The
file tests/families/diffusers/classes.txt results, which read_classes() reads.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.paths import FAMILIES

OUT = FAMILIES / "diffusers" / "classes.txt"
# Parts of diffusers.models by what their classes are, and how many names tell them.
ROOMS = {"transformers": 99, "unets": 60, "controlnets": 60, "autoencoders": 12}
# What a class has to be given where it has no defaults.
GIVEN = {
    "HunyuanDiT2DModel": {"num_layers": 2, "in_channels": 4, "patch_size": 2, "sample_size": 32,
                          "activation_fn": "gelu"},
    "UNet2DConditionModel": {"cross_attention_dim": 768},
    "WanVACETransformer3DModel": {"num_layers": 2, "vace_layers": [0]},
}  # fmt: skip


def read_classes(path: Path = OUT) -> dict[str, dict[str, list[str]]]:
    """{room: {class: names}} of the file that main() writes."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            continue
        if line.startswith("["):
            room, name = line[1:-1].split(".")
            names = found.setdefault(room, {}).setdefault(name, [])
        else:
            names.append(line)
    return found


def classes(room: str) -> Iterator[type]:
    """The models of a room of diffusers.models that can be imported."""
    from diffusers import ModelMixin

    package = importlib.import_module(f"diffusers.models.{room}")
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            is_model = inspect.isclass(kind) and issubclass(kind, ModelMixin)
            if is_model and kind.__module__ == module.__name__:
                yield kind


def names_of(kind: type) -> list[str]:
    """The names of a model's tensors, of blocks the first one's alone, without biases."""
    import torch

    depth = ("num_layers", "num_single_layers", "num_refiner_layers", "num_joint_layers")
    taken = inspect.signature(kind.__init__).parameters
    given = GIVEN.get(kind.__name__, {name: 1 for name in depth if name in taken})
    with torch.device("meta"):
        model = kind(**given)
    return [
        name
        for name in model.state_dict()
        if not name.endswith(".bias") and {*re.findall(r"(?<![^.])\d+(?![^.])", name)} <= {"0", "2"}
    ]


def main() -> None:
    import diffusers

    lines = [f"# The classes of diffusers {diffusers.__version__}; see support/make_diffusers.py"]
    for room, count in ROOMS.items():
        for kind in classes(room):
            try:
                names = names_of(kind)
            except (TypeError, ValueError, KeyError, RuntimeError) as error:
                print(f"{kind.__name__}: left out: {error}", file=sys.stderr)
                continue
            lines += [f"[{room}.{kind.__name__}]", *names[:count]]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
