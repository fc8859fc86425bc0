"""The recorder has moved into the node pack comfyui_nvfp4; this loads it from there.

For who linked this folder into ComfyUI/custom_nodes. Where the pack itself is in custom_nodes, it
brings the node, and this folder nothing.
"""

import importlib.util
import logging
import sys
from pathlib import Path

PACK = "comfyui_nvfp4"
# Beside this folder, as it was named in custom_nodes; and in the repository that it is linked from.
BESIDE = Path(__file__).absolute().parents[1] / PACK
FOLDER = Path(__file__).resolve().parents[2] / PACK
NODE_CLASS_MAPPINGS = {}

# ComfyUI's nodes, for a pack that is in custom_nodes by another name, as the registry's.
KNOWN = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})

if not BESIDE.is_dir() and "NVFP4CalibrationRecorder" not in KNOWN:
    if (FOLDER / "record.py").is_file():
        spec = importlib.util.spec_from_file_location(
            f"{PACK}_of_recorder", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        pack = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)
        NODE_CLASS_MAPPINGS = {
            node.GET_SCHEMA().node_id: node for node in pack.node_classes("record")
        }
    else:
        logging.warning(
            "NVFP4: the recorder is part of the node pack now: copy the folder comfyui_nvfp4 into "
            "custom_nodes, and delete %s",
            Path(__file__).absolute().parent,
        )
