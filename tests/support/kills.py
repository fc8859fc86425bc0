"""Conversions that get SIGKILL at a chosen moment, and what they leave."""

import os
import signal

import pytest

from nvfp4.files import unfinished
from support.conversions import RECIPE
from support.forks import run_forked

needs_sigkill = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
# Run with a tensor's name and a command line: killed once that tensor is written.
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
# The same with a number: killed once so many shards have their names.
NAMES = """
import os, signal, sys
import convert_nvfp4 as c
rename, named = c.rename, []
def kill(path, name):
    if len(named) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    named.append(name)
    rename(path, name)
c.rename = kill
sys.exit(c.main(sys.argv[2:]))
"""


def command(tiny, out, *more):
    return [str(tiny), str(out), "--gguf", str(tiny / "model.gguf"), *RECIPE, "--quiet", *more]


def killed(tiny, out, *more, at="blocks.4.ffn.0.weight"):
    """A conversion that gets SIGKILL once a tensor is written; what it leaves."""
    run_killed(KILL, at, *command(tiny, out, *more))
    return left_behind(out)


def run_killed(program, *arguments):
    """Run KILL, NAMES or one made of them, which has to end by the signal."""
    done = run_forked(program, *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr


def left_behind(out):
    """The unfinished file and the journal of a run that was killed."""
    return unfinished(out), unfinished(out).with_name(f"{out.name}.partial.journal")
