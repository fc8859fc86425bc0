"""The table of options, as docs/options.md shows it."""

import subprocess
import sys

from support.paths import ROOT


def test_documents_show_the_flags_that_help_shows():
    command = [sys.executable, str(ROOT / "tools/docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
