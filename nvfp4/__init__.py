"""Convert diffusion models to mixed-precision NVFP4, and check them.

    from nvfp4 import Options, convert
    report = convert(Options(source="wan", output="wan-nvfp4.safetensors", preset="wan"))

docs/python.md tells of all names in EXPORTS, which are loaded when they are asked for: options and
errors do without torch.

This package is the only source: the script convert_nvfp4.py at the root of the repository is built
from it by `python tools/single_file.py`, and has these names, too. Rooms stand on floors, and each
imports from lower ones alone. The data goes from `options` and `read` over `source`, `guides` and
`plan` to `encode` and `write`, then to `verify` and `report`; `conversion` calls them in that
order, and `cli` calls `conversion`.
"""

from importlib import import_module

# What programs import from here, and the module that has it.
EXPORTS = {
    "Check": "nvfp4.verify",
    "ConvertError": "nvfp4.errors",
    "MemoryTensor": "nvfp4.memory",
    "Options": "nvfp4.options",
    "Outcome": "nvfp4.stored.defects",
    "Report": "nvfp4.report.data",
    "Verification": "nvfp4.options",
    "__version__": "nvfp4.options",
    "convert": "nvfp4.conversion",
    "memory_file": "nvfp4.memory",
    "render_check": "nvfp4.report.check",
    "render_report": "nvfp4.report.summary",
    "report_data": "nvfp4.report.data",
    "verify_file": "nvfp4.verify",
    "watched_by": "nvfp4.progress",
}


def __getattr__(name: str) -> object:
    """Load a name of EXPORTS from its module: the command line imports this package, too."""
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    """List the names of EXPORTS beside the modules."""
    return sorted({*globals(), *EXPORTS})
