"""The test run itself: it tells where it is, it ends whatever happens, and however it ends it leaves no process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vega3d_ros.inference.process import ChildProcess

TESTS = Path(__file__).resolve().parent
DEADLINE_S = 120.0
CONFTEST = """
import leftovers
from progress import Progress

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return
    config.pluginmanager.register(Progress(config, 0.2))
    config.add_cleanup(leftovers.watch().communicate)
"""
# A process out of every group and session of the run, with a child of its own.
LONG = """
import subprocess, sys

def test_short():
    pass

def test_wrong():
    print("seven apples")
    assert "six" == "seven"

def test_long():
    child = "import subprocess; subprocess.run(['sleep', '3600'])"
    orphan = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    with open("pid", "w") as file:
        print(orphan.pid, file=file)
    orphan.wait()
"""
# A process of pytest-xdist that is gone from one moment to the next, as one killed for its memory is.
DIES = "if 'PYTEST_XDIST_WORKER' in os.environ: os.kill(os.getpid(), 9)\n"
LOST = {
    "while it runs a test": {"test_dies.py": f"import os\ndef test_it():\n    {DIES}"},
    "while it collects": {"test_dies.py": f"import os\n{DIES}"},
    "after its last test": {"conftest.py": f"import os\ndef pytest_sessionfinish():\n    {DIES}"},
}



def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("shared", [(), ("-n", "1", "--dist", "loadfile")])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_tells_its_progress_and_when_it_is_killed_nothing_is_left(
    tmp_path: Path, number: signal.Signals, shared: tuple[str, ...]
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_long.py").write_text(LONG)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shared, "test_long.py"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with ChildProcess("pytest", command, environment=environment, folder=tmp_path, on_line=None) as run:
        line = run.wait_for_line("2 of 3 done, 1 failed; test_long.py::test_long", DEADLINE_S)
        assert re.fullmatch(r"\[\d+ s\] 2 of 3 done, 1 failed; test_long.py::test_long for \d+ s", line)
        told = "\n".join(run.tail(50))
        assert "FAILED test_long.py::test_wrong (call)" in told
        assert "test_long.py:9: AssertionError: assert 'six' == 'seven'" in told and "\nseven apples" in told
        deadline = time.monotonic() + DEADLINE_S
        while not (tmp_path / "pid").is_file() or not (text := (tmp_path / "pid").read_text()).endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        orphan = int(text)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal sends it
        else:
            os.kill(run.pid, number)
        assert run.wait(DEADLINE_S) is not None
        while alive(orphan):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("when", LOST)
def test_as_make_runs_it_a_process_that_is_lost_ends_it_as_a_failure(tmp_path: Path, when: str) -> None:
    files = {"conftest.py": "", "test_before.py": "def test_it():\n    pass\n"} | LOST[when]
    files["conftest.py"] = CONFTEST + files["conftest.py"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (line,) = re.findall(r"-m pytest (.*) \$\(ARGS\)", (TESTS.parent / "Makefile").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *line.replace("$(JOBS)", "1").split()]
    # Where the tests are shared by processes, this is one of them, and the run below is not.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**own, "PYTHONPATH": str(TESTS)}
    with ChildProcess("pytest", command, environment=environment, folder=tmp_path, on_line=None) as run:
        assert run.wait(DEADLINE_S) == 1
        assert "LOST gw0: Not properly terminated" in run.tail(50)


def test_make_demo_leaves_the_policy_to_the_command_unless_one_is_given() -> None:
    """So that the default stands in one place, policies/types.py."""
    told = {}
    for words in ((), ("POLICY=vega-nano-suites",)):
        command = ["make", "--dry-run", "--no-print-directory", "demo", *words]
        own = {name: value for name, value in os.environ.items() if name not in ("POLICY", "MAKEFLAGS")}
        run = subprocess.run(command, cwd=TESTS.parent, env=own, capture_output=True, text=True, timeout=DEADLINE_S)
        assert "-m sim.demo" in run.stdout, run.stderr
        told[words] = re.findall(r"--policy (\S+)", run.stdout)
    assert told == {(): [], ("POLICY=vega-nano-suites",): ["vega-nano-suites"]}
