"""Run the converter: `python -m nvfp4`. The built convert_nvfp4.py takes the same steps."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C in the seconds that torch takes to load ends the program at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from nvfp4.cli.console import tolerate_consoles
from nvfp4.cli.parse import parse_options
from nvfp4.requirements import REQUIRED, require

if __name__ == "__main__":
    # --help, --version and wrong options are answered here, before torch takes seconds to load.
    tolerate_consoles()
    parse_options()
    require(*REQUIRED)

from nvfp4.cli.entry import interrupt, main

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C; torchrun's way, and a shutdown's
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a script's shell has it after `&`
            signal.signal(number, interrupt)  # clean up first
    sys.exit(main())
