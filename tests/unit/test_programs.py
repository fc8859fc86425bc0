"""What is started takes nothing from the current folder, and ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvfp4.programs import (
    GRACE,
    end_tree,
    installed_program,
    python_command,
    server_command,
    start_server,
)


@pytest.mark.parametrize("flags", [(), ("-I", "-B")])
def test_nothing_is_imported_from_the_current_folder(flags, tmp_path):
    """-I is how the Python of a portable ComfyUI runs: its path begins with the library's."""
    for module in ("json", "importlib", "faulthandler", "random"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit(3)", encoding="utf-8")
    program = "import importlib, json, random; print(json.dumps(sys.argv[1:]))"
    command = python_command(Path(sys.executable), program, "a b", 7, seconds=60, flags=flags)
    done = subprocess.run(
        [*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '["a b", "7"]\n', "")


def test_a_process_ends_by_itself():
    command = python_command(
        Path(sys.executable), "import time; time.sleep(60)", seconds=0.1 - GRACE
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout ")


def test_programs_are_those_of_path_alone(tmp_path, monkeypatch):
    file = tmp_path / ("card.exe" if sys.platform == "win32" else "card")
    file.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert installed_program("card") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_program("card") == file


# A server that starts a process of its own, says so, and waits; stdin leads nowhere.
SERVER = """
import beside, subprocess, sys, time
assert sys.stdin.read() == "" and __name__ == "__main__" and sys.argv[1:] == ["a b"]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(beside.WORD, child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def served(tmp_path):
    """A server's process, and the number of the one that it has started."""
    (tmp_path / "beside.py").write_text("WORD = 'ready'", encoding="utf-8")
    script, log = tmp_path / "main.py", tmp_path / "log"
    script.write_text(SERVER, encoding="utf-8")
    with log.open("wb") as output:
        process = start_server(
            server_command(Path(sys.executable), script, "a b"), output, tmp_path
        )
    until = time.monotonic() + 60
    while not log.read_text("utf-8").startswith("ready") or "\n" not in log.read_text("utf-8"):
        assert time.monotonic() < until
        assert process.poll() is None, log.read_text("utf-8")
        time.sleep(0.05)
    yield process, int(log.read_text("utf-8").split()[1])
    end_tree(process)


def is_alive(number):
    state = Path(f"/proc/{number}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_ends_with_all_that_it_started(served):
    process, child = served
    end_tree(process)
    assert process.poll() is not None
    # The system takes its time to end what was killed.
    until = time.monotonic() + 30
    while sys.platform == "linux" and is_alive(child):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_server_ends_when_whoever_started_it_is_gone(served):
    process, _ = served
    process.stdin.close()
    assert process.wait(30) == 1
