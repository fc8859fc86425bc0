"""Every file of the corpus is refused in one line a problem, quickly and in little memory."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="no limits on Windows")

import resource

from fuzz import fuzz
from support import hostile
from support.paths import TESTS

MEMORY = 300 << 20  # bytes beyond what was taken before
SECONDS = 2.0
GOLDEN = dict(
    re.findall(r"^# (.*)\n((?:(?!# ).*\n)+)", hostile.HOSTILE.read_text(encoding="utf-8"), re.M)
)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_the_golden_text_is_of_this_corpus():
    assert [*GOLDEN] == [*hostile.CASES]
    assert len(GOLDEN) > 300


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory):
    """What gguf and torch import at the first use takes seconds that no case is to blame for."""
    for name in ("gguf: of another shape", "lora: of another size"):
        hostile.outcome(hostile.CASES[name], tmp_path_factory.mktemp("first") / "f")


@pytest.mark.parametrize("name", hostile.CASES)
def test_refused(name, tmp_path):
    before = peak()
    status, printed, seconds = hostile.outcome(hostile.CASES[name], tmp_path / "f")
    assert printed == GOLDEN[name]
    assert status == 1
    assert all(line.isprintable() for line in printed.splitlines())
    if not name.startswith("verify: "):  # whose report is on stdout
        assert all(line.startswith(("error: ", "  ... and")) for line in printed.splitlines())
    assert [*(tmp_path / "f" / "out").iterdir()] == []
    assert seconds < SECONDS
    assert peak() - before < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_few_fuzzed_inputs_are_read_or_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "WARM_UP", 10)
    sample, read = fuzz.READERS[name]
    reader = fuzz.Reader(*fuzz.SAMPLES[sample], read)
    assert fuzz.fuzz(name, reader, 0, 0, tmp_path) == 0, capsys.readouterr().out
    assert reader.counts.total() == 10


LIMITED = """
import re, resource, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import gguf
from support import hostile
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for name in [name for name in hostile.CASES if name.startswith("gguf: ")]:
    with tempfile.TemporaryDirectory() as folder:
        status, printed, _ = hostile.outcome(hostile.CASES[name], Path(folder) / "f")
    print(f"# {name}\\n{printed}", end="")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_gguf_gets_more_memory_than_there_is():
    """In a process that cannot have more, so that nothing is taken and given back unseen."""
    command = [sys.executable, "-c", LIMITED, str(TESTS), str(MEMORY)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "".join(
        f"# {name}\n{text}" for name, text in GOLDEN.items() if name.startswith("gguf: ")
    )
