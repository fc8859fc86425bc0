"""NVFP4 for ComfyUI: nodes that convert models, check files and record calibrations.

Copy this folder into ComfyUI/custom_nodes; it needs nothing else. Each node is a module, imported
only when ComfyUI asks for the nodes, so that the rest of the folder is of use without ComfyUI, too.
"""

from importlib import import_module

# The folder of the scripts that ComfyUI's page loads.
WEB_DIRECTORY = "./web"
# {module of this folder: the classes of its nodes}, in the order of the menu.
NODES = {
    "convert": ("NVFP4Convert", "NVFP4MergeLora"),
    "convert_model": ("NVFP4ConvertModel",),
    "check": ("NVFP4CheckFile",),
    "calibrate": ("NVFP4Calibrate",),
    "record": ("NVFP4CalibrationRecorder",),
}


def node_classes(*modules: str) -> list[type]:
    """Import modules of nodes, all of them if none is named, and return the nodes' classes."""
    return [
        getattr(import_module(f".{module}", __name__), name)
        for module in modules or NODES
        for name in NODES[module]
    ]


async def comfy_entrypoint():
    """Return the extension: what ComfyUI asks a node pack for."""
    from comfy_api.latest import ComfyExtension  # tests and benchmarks load this without ComfyUI

    class Extension(ComfyExtension):
        """Tell ComfyUI of the nodes."""

        async def get_node_list(self) -> list[type]:
            return node_classes()

    return Extension()
