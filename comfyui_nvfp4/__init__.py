"""NVFP4 for ComfyUI: nodes that convert models, check files and record calibrations.

Copy this folder into ComfyUI/custom_nodes; it needs nothing else. Each node is a module, imported
only when ComfyUI asks for the nodes, so that the rest of the folder is of use without ComfyUI, too.
"""

import importlib.util
import inspect
import logging
import sys
from importlib import import_module
from pathlib import Path

# {module of this folder: the classes of its nodes}, in the order of the menu.
NODES = {
    "convert": ("NVFP4Convert", "NVFP4MergeLora"),
    "convert_model": ("NVFP4ConvertModel",),
    "check": ("NVFP4CheckFile",),
    "calibrate": ("NVFP4Calibrate",),
    "record": ("NVFP4CalibrationRecorder", "NVFP4EncoderRecorder"),
}


# By this node ComfyUI is seen to have a copy of this pack already.
FIRST_NODE = NODES["convert"][0]
# Where the recorder was before it came into this pack, with a module of its own for the measuring.
OLD_RECORDER = ("comfyui_nvfp4_recorder", "recorder.py")


def copy_before() -> Path | None:
    """Return the folder of another copy of this pack that ComfyUI loaded before, None without one.

    Of two copies, as the registry's and one that was put in by hand, both would bring the same
    nodes and routes.
    """
    node = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(FIRST_NODE)
    other, own = node and Path(inspect.getfile(node)).parent, Path(__file__).parent
    return None if other in (None, own) else other


# The folder of the scripts that ComfyUI's page loads, once.
WEB_DIRECTORY = None if copy_before() else "./web"


def node_classes(*modules: str) -> list[type]:
    """Import modules of nodes, all of them if none is named, and return the nodes' classes."""
    return [
        getattr(import_module(f".{module}", __name__), name)
        for module in modules or NODES
        for name in NODES[module]
    ]


def welcome() -> list[type]:
    """Return the nodes to bring: none where another copy did, which a line in the log says.

    Raises ImportError where ComfyUI is too old: what ComfyUI prints of it is one line.
    """
    if other := copy_before():
        where = Path(__file__).parent
        logging.warning("NVFP4: %s has the same nodes: they are used, delete %s", other, where)
        return []
    if importlib.util.find_spec("comfy.quant_ops") is None:
        raise ImportError("the NVFP4 nodes need ComfyUI 0.29 or newer; update ComfyUI")
    old = Path(__file__).absolute().parent.with_name(OLD_RECORDER[0])
    if (old / OLD_RECORDER[1]).is_file():
        logging.warning("NVFP4: the recorder is part of this pack now: delete %s", old)
    return node_classes()


async def comfy_entrypoint():
    """Return the extension: what ComfyUI asks a node pack for."""
    from comfy_api.latest import ComfyExtension  # tests and benchmarks load this without ComfyUI

    class Extension(ComfyExtension):
        """Tell ComfyUI of the nodes."""

        async def get_node_list(self) -> list[type]:
            return welcome()

    return Extension()
