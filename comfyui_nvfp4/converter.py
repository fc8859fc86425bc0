"""Load the converter that this folder carries: convert_nvfp4.py, the whole program in one file."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

# A name without dots, and nobody else's: the program finds its data and its cache of compiled
# kernels by its own name, and a convert_nvfp4 may be installed beside ComfyUI.
MODULE = "comfyui_nvfp4_converter"
FILE = Path(__file__).resolve().with_name("convert_nvfp4.py")
LOADING = threading.Lock()


def converter() -> ModuleType:
    """Return the converter's module, loaded the first time that a node needs it.

    Its names are those of docs/python.md: Options, convert, Verification, verify_file, ...
    """
    with LOADING:
        if MODULE not in sys.modules:
            spec = importlib.util.spec_from_file_location(MODULE, FILE)
            module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[MODULE]
                raise
    return sys.modules[MODULE]
