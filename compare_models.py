#!/usr/bin/env python3
"""Compare two checkpoints, or list one, and say what ComfyUI will do with each.

`--help` tells how. The program itself is in nvfp4/compare/, and needs the package folder beside it.
"""

import sys
from pathlib import Path

# The Python of a portable ComfyUI does not look into the folder of the script that it runs.
sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    from nvfp4.commands import compare_command
except ModuleNotFoundError as error:
    if error.name != "nvfp4":
        raise
    sys.exit("error: nvfp4/ is missing: this script needs the package folder beside it; copy both")

if __name__ == "__main__":
    compare_command()
