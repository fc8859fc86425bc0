"""Run the log analyser as `python -m nvfp4.logs`: the options first, then what needs torch."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from nvfp4.cli.console import announce, tolerate_consoles
from nvfp4.logs.command import parse_analysis
from nvfp4.requirements import REQUIRED, load_torch, require

if __name__ == "__main__":
    # --help, --version and wrong options are answered here, before torch takes seconds to load.
    tolerate_consoles()
    parse_analysis()
    require(*REQUIRED)
    announce()
    load_torch()

from nvfp4.logs.entry import analyze_log

if __name__ == "__main__":
    sys.exit(analyze_log())
