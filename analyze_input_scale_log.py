#!/usr/bin/env python3
"""Turn a calibration log into input-scale statistics, plots and a list of sensitive layers.

`--help` tells how. The program itself is in nvfp4/logs/, and needs the package folder beside it.
"""

import sys
from pathlib import Path

# The Python of a portable ComfyUI does not look into the folder of the script that it runs.
sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    from nvfp4.commands import analyze_command
except ModuleNotFoundError as error:
    if error.name != "nvfp4":
        raise
    sys.exit("error: nvfp4/ is missing: this script needs the package folder beside it; copy both")

if __name__ == "__main__":
    analyze_command()
