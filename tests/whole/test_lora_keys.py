"""Each key of a LoRA that ComfyUI maps to a layer of a published model is found here, too."""

import json
import re

import pytest

from nvfp4.source.lora_names import layer_names, locate, parse_key, rows_of
from support.comfyui import needs_comfyui, run_comfyui
from support.files import model_with
from support.make_families import MODELS, read_headers
from support.paths import FAMILIES

# One model for each class that ComfyUI detects: others of it have the same names.
FILES = {
    model.detected: FAMILIES / ("" if model.recognised else "others") / f"{name}.txt"
    for name, model in MODELS.items()
}
MAPPED = """
import json, os, sys
sys.path.insert(0, "tests")
from support.lora_keys import mapped
from support.make_families import import_comfyui
import_comfyui()
files = json.loads(os.environ["FILES"])
print("RESULT", json.dumps({path: mapped(path) for path in files}))
"""


def differing(path, keys: dict[str, list]) -> list[str]:
    """Keys whose layer is another one here, or other rows of it, or none."""
    shapes = read_headers(path)
    refs, names, found = model_with([*shapes]).tensors, layer_names(shapes), []
    for name, shape in shapes.items():
        object.__setattr__(refs[name], "shape", shape)
    for key, (target, rows) in keys.items():
        # A file's norms may be named otherwise than ComfyUI's; some of its keys are of no layer.
        targets = {target, re.sub(r"\.weight$", ".scale", target)} & shapes.keys()
        place = locate(parse_key(f"{key}.lora_up.weight")["layer"], names)
        if not targets:
            continue
        part = rows_of(place[1], refs[place[0]]) if place else slice(None)
        ours = [] if part == slice(None) else [part.start, part.stop - part.start]
        if place is None or place[0] not in targets or ours != rows:
            found.append(key)
    return found


@pytest.mark.slow
@needs_comfyui
def test_every_key_that_comfyui_maps_is_found():
    files = [str(path) for path in FILES.values()]
    keys, _ = run_comfyui(MAPPED, FILES=json.dumps(files))
    known = {path: found for path, found in keys.items() if found}
    assert len(known) > 40
    found = {path: differing(path, found)[:5] for path, found in known.items()}
    assert {path: keys for path, keys in found.items() if keys} == {}
