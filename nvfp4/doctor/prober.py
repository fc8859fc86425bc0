"""Tell what a Python has, torch and its cards above all: the program that runs in it.

The package never imports this module: `facts` sends its text to the Python that is asked, which may
be ComfyUI's own. It needs nothing but the standard library.
"""

from __future__ import annotations

import importlib.metadata
import platform

# The packages whose versions are told, by their names on PyPI.
TOLD_VERSIONS = (
    "torch", "comfy-kitchen", "numba", "triton", "triton-windows", "matplotlib", "safetensors",
    "gguf", "numpy",
)  # fmt: skip
# comfy_kitchen's layouts by our words for formats: a version that lacks one cannot load the format.
LAYOUTS = {
    "nvfp4": "TensorCoreNVFP4Layout",
    "w4a8": "AsymW4A8Int8Layout",
    "int8": "TensorWiseINT8Layout",
    "fp8": "TensorCoreFP8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
}


def probe_python(*, kitchen: bool) -> dict:
    """Collect all that is told, ready for JSON; what cannot be imported is told with its error.

    kitchen: import comfy_kitchen as well.
    """
    found = {"python": platform.python_version(), "versions": installed_versions()}
    if "torch" in found["versions"]:
        found["torch"] = probed(probe_torch)
    if kitchen and "comfy-kitchen" in found["versions"]:
        found["kitchen"] = probed(probe_kitchen)
    return found


def probed(probe: object) -> dict:
    """Call a function that imports a package, and tell the error of one that is broken."""
    try:
        return probe()
    except Exception as error:  # noqa: BLE001
        return {"problem": f"{type(error).__name__}: {error}".partition("\n")[0]}


def installed_versions() -> dict:
    """Read the versions of TOLD_VERSIONS; what is not installed is left out."""
    found = {}
    for name in TOLD_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def probe_torch() -> dict:
    """Tell which torch there is, what it was built for, and the cards that it can use."""
    import torch

    cards = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        cards.append({
            "name": facts.name, "capability": [facts.major, facts.minor],
            "memory": facts.total_memory, "chip": getattr(facts, "gcnArchName", ""),
        })  # fmt: skip
    return {
        "version": torch.__version__, "cuda": torch.version.cuda, "cards": cards,
        "hip": getattr(torch.version, "hip", None),
    }  # fmt: skip


def probe_kitchen() -> dict:
    """Ask comfy_kitchen which kernels it has here, and which formats it multiplies on this card."""
    import comfy_kitchen
    from comfy_kitchen import tensor

    layouts = {word: getattr(tensor, name, None) for word, name in LAYOUTS.items()}
    return {
        "backends": {
            name: "" if state["available"] else str(state["unavailable_reason"])
            for name, state in sorted(comfy_kitchen.list_backends().items())
        },
        "multiplies": {
            word: bool(layout.supports_fast_matmul()) for word, layout in layouts.items() if layout
        },
    }
