"""Run the converter as `python -m nvfp4`.

This module is also the template of the built script convert_nvfp4.py, which takes the same steps in
the same order: the options are read first, with nothing but the standard library, then the
installed packages are looked for, and only then is everything imported that needs torch.
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C in the seconds that torch takes to load ends the program at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from nvfp4.cli.console import announce, tolerate_consoles
from nvfp4.cli.doctor import run_doctor
from nvfp4.cli.parse import parse_tasks
from nvfp4.options import CalibrationRun, Doctor
from nvfp4.requirements import REQUIRED, load_torch, require

if __name__ == "__main__":
    # --help, --version and wrong options are answered here, before torch takes seconds to load.
    tolerate_consoles()
    tasks = parse_tasks()
    if isinstance(tasks[0], Doctor):
        # It tells of packages that are missing, and needs none.
        sys.exit(run_doctor(tasks[0]))
    require(*REQUIRED)
    announce(quiet=any(task.quiet for task in tasks))
    load_torch()

from nvfp4.calibrate.run import run_calibration
from nvfp4.cli.entry import interrupt, main
from nvfp4.memory import memory_file  # noqa: F401 (for programs that import the built script)

if __name__ == "__main__":
    # SIGINT is Ctrl-C; SIGTERM is what torchrun and a shutdown send; SIGHUP, unknown to Windows, is
    # what a terminal sends that is closed. All raise KeyboardInterrupt, so that partial files are
    # deleted, or kept for --resume, before the program ends.
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # A shell starts a script's background job (`&`) with the signal ignored: leave it so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.exit(run_calibration(tasks[0]) if isinstance(tasks[0], CalibrationRun) else main())
