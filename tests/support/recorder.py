"""The ComfyUI recorder, loaded as ComfyUI loads a node pack: from its folder."""

import importlib.util
import sys

from support.paths import ROOT

FOLDER = ROOT / "calib" / "comfyui_nvfp4_recorder"


def load_package():
    spec = importlib.util.spec_from_file_location(
        "nvfp4_recorder", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["nvfp4_recorder"] = module
    spec.loader.exec_module(module)
    return module


node = load_package()
recorder = sys.modules["nvfp4_recorder.recorder"]
second_moments = sys.modules["nvfp4_recorder.second_moments"]
