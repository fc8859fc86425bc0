"""A conversion that gets SIGKILL once a tensor is written."""

import os

import pytest

KILL = """
import os, signal, sys
import convert_nvfp4 as c
c.SYNC_BYTES = 1 << 18  # the tiny model is journalled on the way, too
finish = c.PartialFiles.finish
def kill(self, name, damage):
    finish(self, name, damage)
    if name == sys.argv[1]:
        self.writer.submit(int).result()
        os.kill(os.getpid(), signal.SIGKILL)
c.PartialFiles.finish = kill
sys.exit(c.main(sys.argv[2:]))
"""

needs_sigkill = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
