#!/usr/bin/env python3
"""Compare two checkpoints, or list one, and say what ComfyUI will do with each.

`--help` tells how. The program itself is in nvfp4/compare/, and needs the package folder beside it.
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

try:
    from nvfp4.cli.console import tolerate_consoles
    from nvfp4.compare.command import parse_comparison
    from nvfp4.requirements import REQUIRED, require
except ModuleNotFoundError as error:
    if error.name != "nvfp4":
        raise
    sys.exit("error: nvfp4/ is missing: this script needs the package folder beside it; copy both")

if __name__ == "__main__":
    # --help, --version and wrong options are answered here, before torch takes seconds to load.
    tolerate_consoles()
    parse_comparison()
    require(*REQUIRED)

from nvfp4.compare.entry import compare_models

if __name__ == "__main__":
    sys.exit(compare_models())
