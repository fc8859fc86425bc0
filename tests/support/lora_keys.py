"""Prints which layer each LoRA key is for, as ComfyUI maps them for published models, as JSON.

usage: COMFYUI_ROOT=<checkout> python tests/support/lora_keys.py FILE.txt ...  (of tests/families)

No weight is there: ComfyUI's model_lora_keys_unet looks at names and at the model's configuration.
Prints "RESULT {file: {key of a LoRA: (tensor, rows)}}" of those that the checkout recognises.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.make_families import import_comfyui, read_headers


class Found(Exception):
    """Carries the class of comfy.model_base that a model is of."""


def class_of_model(config, state) -> type:
    """The class in comfy.model_base that ComfyUI would make."""
    from comfy import model_base

    def stop(self, *_, **__):
        raise Found(type(self))

    made, model_base.BaseModel.__init__ = model_base.BaseModel.__init__, stop
    try:
        config.get_model(state, "")
    except Found as found:
        return found.args[0]
    # Some look at values, which are not there.
    except (NotImplementedError, RuntimeError):
        return model_base.BaseModel
    finally:
        model_base.BaseModel.__init__ = made
    raise AssertionError(config)


def mapped(path: str) -> dict[str, tuple[str, list]] | None:
    """{key of a LoRA: (tensor, [first row, number of rows] or [])}; None for an unknown model."""
    import torch
    from comfy.lora import model_lora_keys_unet
    from comfy.model_detection import model_config_from_unet

    shapes = read_headers(Path(path))
    meta = {"dtype": torch.bfloat16, "device": "meta"}
    state = {name: torch.empty(shape, **meta) for name, shape in shapes.items()}
    config = model_config_from_unet(state, "")
    if config is None:
        return None
    kind = class_of_model(config, state)
    names = [f"diffusion_model.{name}" for name in config.process_unet_state_dict(dict(state))]

    class Model(kind):
        model_config = config

        def __init__(self):
            torch.nn.Module.__init__(self)

        def state_dict(self):
            return dict.fromkeys(names)

    found = {}
    for key, target in model_lora_keys_unet(Model(), {}).items():
        name, where, *_ = target if isinstance(target, tuple) else (target, None)
        found[key] = (name.removeprefix("diffusion_model."), list(where[1:]) if where else [])
    return found


if __name__ == "__main__":
    files = sys.argv[1:]
    import_comfyui()
    print("RESULT", json.dumps({Path(path).stem: mapped(path) for path in files}))
