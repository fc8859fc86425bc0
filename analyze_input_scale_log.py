#!/usr/bin/env python3
"""Turn a calibration log into input-scale statistics, plots and a list of sensitive layers.

`--help` tells how. The program itself is in nvfp4/logs/, and needs the package folder beside it.
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback

try:
    from nvfp4.cli.console import tolerate_consoles
    from nvfp4.logs.command import parse_analysis
    from nvfp4.requirements import REQUIRED, require
except ModuleNotFoundError as error:
    if error.name != "nvfp4":
        raise
    sys.exit("error: nvfp4/ is missing: this script needs the package folder beside it; copy both")

if __name__ == "__main__":
    # --help, --version and wrong options are answered here, before torch takes seconds to load.
    tolerate_consoles()
    parse_analysis()
    require(*REQUIRED)

from nvfp4.logs.entry import analyze_log

if __name__ == "__main__":
    sys.exit(analyze_log())
